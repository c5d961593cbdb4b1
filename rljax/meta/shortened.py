"""An agent's update, with the derivative of an update of fewer steps."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax.contracts import TunedConfig
from rljax.meta.types import STEPS, Settings, Tuning
from rljax.types import AgentState, Metrics, Rollout

T = TypeVar("T")  # a tree of arrays


def check(settings: Settings, config: TunedConfig) -> None:
    """Raise ValueError unless the agent can make the update that is differentiated.

    Raises:
      ValueError: names a field that the config lacks, or a number out of range.
    """
    steps = _steps(settings)
    for name in steps:
        cfg.check_fields(f"the meta-setting {name}", config, name)
    if steps:
        _shorter(config, steps).validate()


def update(
    tuning: Tuning,
    config: TunedConfig,
    state: AgentState,
    rollout: Rollout,
    key: jax.Array,
) -> tuple[AgentState, Metrics]:
    """Make the agent's update; the settings may give it a shorter one's derivative."""
    make = tuning.agent.update
    new, metrics = make(config, state, rollout, key)
    steps = _steps(tuning.settings)
    if all(getattr(config, name) == number for name, number in steps.items()):
        return new, metrics
    short, _ = make(_shorter(config, steps), state, rollout, jax.random.clone(key))
    return _with_derivative(new, short), metrics


def _steps(settings: Settings) -> dict[str, int]:
    """Numbers that the settings give."""
    numbers = {name: getattr(settings, name) for name in STEPS}
    return {name: number for name, number in numbers.items() if number is not None}


def _shorter(config: TunedConfig, steps: dict[str, int]) -> TunedConfig:
    return dataclasses.replace(config, **steps)


def _with_derivative(values: T, path: T) -> T:
    """The values of one tree, with the derivatives of another, which is finite."""

    def one(x: jax.Array, y: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jax.lax.stop_gradient(x) + (y - jax.lax.stop_gradient(y))

    return jax.tree.map(one, values, path)
