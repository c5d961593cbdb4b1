"""Learned update rules: targets for an agent's outputs, from what it lived through.

disco          the rule DiscoRL, whose published numbers are Disco103
lpg            the rule LPG, learned policy gradient, and its file
meta_training  many agents' lives, along whose outer losses a rule moves
td             one-step actor-critic in a rule's place
types          the parts of a rule, and the data that it reads
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
