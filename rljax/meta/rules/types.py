"""The parts of a learned update rule, and the data that it reads."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from rljax.types import Params

Outputs = Any  # tree of [..., ...], what an agent's network puts out, by name
Targets = Any  # tree of [T, B, ...], what a rule wants of them
RuleState = Any  # tree of arrays, what a rule keeps of an agent's lifetime, or ()


class Trajectory(NamedTuple):
    """T steps of B environments, time-major; what has T + 1 rows tells what follows.

    Outputs may have more rows: of true successors that the time limit cut off, which
    `following` then names. `successors` finds what each step led to.
    """

    outputs: Outputs  # [T + 1, B, ...] of the agent's network, as data
    target_outputs: Outputs  # likewise of an older copy; () for rules without one
    behaviour_logits: jax.Array  # [T, B, A] of the policy that acted
    action: jax.Array  # [T, B] int32
    reward: jax.Array  # [T, B]
    discount: jax.Array  # [T, B] of what follows, 0 where the episode terminated
    ended: jax.Array  # [T, B] bool, the next row belongs to another episode
    weight: jax.Array  # [T, B] of each step in the loss
    # [T, B] int32, the row of the outputs that a step led to; None: the next one
    following: jax.Array | None = None


def successors(x: jax.Array, trajectory: Trajectory) -> jax.Array:
    """Numbers of the row that each step led to.

    Args:
      x: `[R, B, ...]`, of the rows of a trajectory's outputs.
      trajectory: of T < R steps.

    Returns:
      `[T, B, ...]`; after a termination of the next episode's first row.
    """
    length = len(trajectory.action)
    if trajectory.following is None:
        return x[1 : length + 1]
    return x[trajectory.following, jnp.arange(x.shape[1])]


class InitRuleFn(Protocol):
    """Make the numbers of a fresh rule; the key is consumed."""

    def __call__(self, key: jax.Array, /) -> Params: ...


class StartFn(Protocol):
    """Make the rule's state at the start of an agent's lifetime."""

    def __call__(self) -> RuleState: ...


class TargetsFn(Protocol):
    """Make targets for the outputs of a trajectory, and the rule's next state."""

    def __call__(
        self, params: Params, state: RuleState, trajectory: Trajectory, /
    ) -> tuple[Targets, RuleState]: ...


class RuleLossFn(Protocol):
    """Losses of each step, `[T, B]`.

    The agent's step is along the gradient in `outputs` alone; targets and trajectory
    stay differentiable for meta-gradients.
    """

    def __call__(
        self, outputs: Outputs, targets: Targets, trajectory: Trajectory, /
    ) -> jax.Array: ...


class Rule(NamedTuple):
    """A learned update rule as a value: a tuple of pure functions."""

    init: InitRuleFn
    start: StartFn
    targets: TargetsFn
    loss: RuleLossFn
