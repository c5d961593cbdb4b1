"""Gradients through learning: updates as differentiable functions, and what for.

`unroll` makes K updates one function, `meta_gradient` and `bootstrapped_meta_gradient`
differentiate what they lead to, and `tune` has any agent move floats of its own config
along them while it learns. `adapt` and `maml_loss` are for learning to adapt.
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
    LogHorizon,
    Parameter,
    StateDependent,
    parse_parameter,
)
from rljax.meta.tuning import tune, validate
from rljax.meta.types import Settings
from rljax.meta.unrolling import unroll

__all__ = [
    "Bounded",
    "Check",
    "Contextual",
    "LogHorizon",
    "Parameter",
    "Settings",
    "StateDependent",
    "adapt",
    "bootstrapped_meta_gradient",
    "check_meta_gradient",
    "conditioned",
    "evolution_gradient",
    "finite_differences",
    "maml_loss",
    "meta_gradient",
    "parse_parameter",
    "squared_distance",
    "tune",
    "unroll",
    "validate",
]
