"""Dual variables of MPO and V-MPO: a temperature, and a multiplier for each bound."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rljax.losses import LagrangePenalty


class BoundsConfig(Protocol):
    """The fields that are read here."""

    @property
    def epsilon(self) -> float:
        """Greatest divergence of the weighted examples."""
        ...

    @property
    def epsilon_policy(self) -> float:
        """Greatest divergence of the policy; discrete actions."""
        ...

    @property
    def epsilon_mean(self) -> float:
        """Greatest divergence by the mean; continuous actions."""
        ...

    @property
    def epsilon_stddev(self) -> float:
        """Greatest divergence by the standard deviation."""
        ...


class StartConfig(Protocol):
    """The first values."""

    @property
    def temperature(self) -> float:
        """Of the weights."""
        ...

    @property
    def multiplier(self) -> float:
        """Weight of each divergence."""
        ...


class Duals(NamedTuple):
    """Logarithms of the dual variables, one for each bound."""

    temperature: jax.Array  # []
    multipliers: tuple[jax.Array, ...]  # of the policy; or of mean and deviation


def init(config: StartConfig, shapes: tuple[tuple[int, ...], ...]) -> Duals:
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
