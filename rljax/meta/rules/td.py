"""One-step actor-critic as a rule without numbers of its own, to compare with."""

import functools

import jax
import jax.numpy as jnp

from rljax.meta.rules import lpg
from rljax.meta.rules.types import (
    Outputs,
    Rule,
    RuleState,
    Targets,
    Trajectory,
    successors,
)
from rljax.types import Params


def make(settings: lpg.Settings | None = None) -> Rule:
    """Make the rule, for agents with the outputs that `lpg` reads.

    The first entry of `y` predicts the return.

    Args:
      settings: `y_cost` weighs the critic's loss, `bound` holds the advantages.
    """
    settings = lpg.Settings() if settings is None else settings
    return Rule(
        init=lambda key: {"unused": jnp.zeros(())},
        start=tuple,
        targets=functools.partial(targets, settings),
        loss=functools.partial(loss, settings),
    )


def targets(
    settings: lpg.Settings, params: Params, state: RuleState, trajectory: Trajectory
) -> tuple[Targets, RuleState]:
    """The advantage `pi_hat` and the value's target `y_hat`, both `[T, B]`."""
    value = trajectory.outputs["y"][..., 0]
    following = successors(value, trajectory)
    target = trajectory.reward + trajectory.discount * following
    value, bound = value[: len(target)], settings.bound
    return {
        "pi_hat": jnp.clip(target - value, -bound, bound),
        "y_hat": target,
    }, state


def loss(
    settings: lpg.Settings, outputs: Outputs, targets: Targets, trajectory: Trajectory
) -> jax.Array:
    """Losses `[T, B]`: policy gradient, and half the critic's squared error."""
    length = len(trajectory.action)
    log_pi = jax.nn.log_softmax(outputs["logits"][:length])
    chosen = jnp.take_along_axis(log_pi, trajectory.action[..., None], axis=-1)[..., 0]
    error = outputs["y"][:length, ..., 0] - targets["y_hat"]
    return settings.y_cost * 0.5 * error**2 - targets["pi_hat"] * chosen
