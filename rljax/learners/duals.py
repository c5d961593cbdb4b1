"""Dual variables of MPO and V-MPO: a temperature, and a multiplier for each bound."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax.contracts import BoundsConfig, DualsConfig
from rljax.losses import LagrangePenalty


class Duals(NamedTuple):
    """Logarithms of the dual variables, one for each bound."""

    temperature: jax.Array  # []
    multipliers: tuple[jax.Array, ...]  # of the policy; or of mean and deviation


def init(config: DualsConfig, shapes: tuple[tuple[int, ...], ...]) -> Duals:
    """The first values, with a multiplier of each shape."""
    log = jnp.log(config.multiplier)
    multipliers = tuple(jnp.full(shape, log) for shape in shapes)
    return Duals(temperature=jnp.log(config.temperature), multipliers=multipliers)


def constraints(
    config: BoundsConfig,
    duals: Duals,
    kls: tuple[jax.Array, ...],
    *,
    per_dimension: bool = False,
) -> list[tuple[jax.Array, LagrangePenalty]]:
    """Each divergence with its bound and its multiplier."""
    bounds = (config.epsilon_policy,)
    if len(kls) == 2:
        bounds = (config.epsilon_mean, config.epsilon_stddev)
    return [
        (kl, LagrangePenalty(alpha=x, epsilon=bound, per_dimension=per_dimension))
        for kl, x, bound in zip(kls, duals.multipliers, bounds, strict=True)
    ]


def temperature(config: BoundsConfig, duals: Duals) -> LagrangePenalty:
    """The temperature, and the bound that it enforces."""
    return LagrangePenalty(alpha=duals.temperature, epsilon=config.epsilon)
