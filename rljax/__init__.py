"""Reinforcement learning in JAX where differentiation is the instrument.

Modules load when first used: `import rljax; rljax.losses.td_learning(...)` does not
import gymnax, and `rljax.sharding.set_cpu_devices` can still come before jax starts.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rljax.types import (
    Agent,
    Box,
    Discrete,
    Rollout,
    Spec,
    TimeStep,
    TrainState,
    Transition,
)

if TYPE_CHECKING:
    from rljax import (
        actor_critic,
        agents,
        autodiff,
        checkpoint,
        config,
        distributions,
        envs,
        evaluate,
        layers,
        logging,
        losses,
        maml,
        meta,
        meta_envs,
        networks,
        observations,
        on_policy,
        optimizers,
        plotting,
        priority,
        prng,
        q_learner,
        recurrent,
        replay,
        rollout,
        sharding,
        sum_tree,
        train,
        two_colors,
        types,
        wrappers,
    )

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Box",
    "Discrete",
    "Rollout",
    "Spec",
    "TimeStep",
    "TrainState",
    "Transition",
    "actor_critic",
    "agents",
    "autodiff",
    "checkpoint",
    "config",
    "distributions",
    "envs",
    "evaluate",
    "layers",
    "logging",
    "losses",
    "maml",
    "meta",
    "meta_envs",
    "networks",
    "observations",
    "on_policy",
    "optimizers",
    "plotting",
    "priority",
    "prng",
    "q_learner",
    "recurrent",
    "replay",
    "rollout",
    "sharding",
    "sum_tree",
    "train",
    "two_colors",
    "types",
    "wrappers",
]


def __getattr__(name: str) -> Any:
    """Import a module of the package when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'rljax' has no attribute {name!r}")
    return importlib.import_module(f"rljax.{name}")
