"""Gradients through learning: updates as differentiable functions, and their uses.

`unroll` makes K updates one function, `meta_gradient` and `bootstrapped_meta_gradient`
differentiate what they lead to, and `tune` has any agent move floats of its own config
along them while it learns. `adapt` and `maml_loss` are for learning to adapt.

adaptation    gradient steps as a differentiable function
carried       the newest update's derivative, taken while the agent learns
conditioning  networks that see the tuned values
critics       networks that learn values at the outer discount
diagnostics   checks of a meta-gradient, and what cuts it
gradients     of the result of updates: exact, bootstrapped, estimated
maml          policies from which a few steps adapt to a task
meta_step     one move of the tuned values
objectives    outer losses, each with a critic of the outer discount
of_actors     scores of policies by action values
of_recurrent_policies  scores of policies with a memory
of_recurrent_values  scores of action values with a memory
of_rollouts   scores along the newest rollout
of_simulated  scores of agents that run their environments again
of_values     scores of action values
parameters    tuned values as functions of raw numbers
recorded      states of agents without their replays
rules         learned update rules
shaping       learned rewards and targets
shortened     an update with the derivative of fewer steps
tuning        an agent that tunes floats of its own config
types         settings, states and functions of the tuning
unrolling     K updates as one function
"""

from rljax.meta.adaptation import adapt, maml_loss
from rljax.meta.conditioning import conditioned
from rljax.meta.diagnostics import Check, check_meta_gradient
from rljax.meta.gradients import (
    bootstrapped_meta_gradient,
    evolution_gradient,
    finite_differences,
    meta_gradient,
    squared_distance,
)
from rljax.meta.parameters import (
    Bounded,
    Contextual,
    Logarithmic,
    LogHorizon,
    Parameter,
    StateDependent,
    declared,
    parse_parameter,
    parse_parameters,
)
from rljax.meta.tuning import tunable, tune, validate
from rljax.meta.types import Settings
from rljax.meta.unrolling import unroll

__all__ = [
    "Bounded",
    "Check",
    "Contextual",
    "LogHorizon",
    "Logarithmic",
    "Parameter",
    "Settings",
    "StateDependent",
    "adapt",
    "bootstrapped_meta_gradient",
    "check_meta_gradient",
    "conditioned",
    "declared",
    "evolution_gradient",
    "finite_differences",
    "maml_loss",
    "meta_gradient",
    "parse_parameter",
    "parse_parameters",
    "squared_distance",
    "tunable",
    "tune",
    "unroll",
    "validate",
]
