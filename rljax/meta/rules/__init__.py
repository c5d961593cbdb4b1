"""Learned update rules: targets for an agent's outputs, from what it lived through.

disco  the rule DiscoRL, whose published numbers are Disco103
types  the parts of a rule, and the data that it reads
"""

from rljax.meta.rules.types import (
    Outputs,
    Rule,
    RuleState,
    Targets,
    Trajectory,
    successors,
)

__all__ = ["Outputs", "Rule", "RuleState", "Targets", "Trajectory", "successors"]
