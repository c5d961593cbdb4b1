"""Updates of an agent as one differentiable function."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from rljax.autodiff._checks import leading_axis

C = TypeVar("C")  # a config, or anything else that governs the updates
S = TypeVar("S")  # a state, any tree
R = TypeVar("R")  # a rollout, any tree; with a leading axis K all of them
M = TypeVar("M")  # metrics of an update; with a leading axis K of all of them


def unroll(
    update: Callable[[C, S, R, jax.Array], tuple[S, M]],
    config: C,
    state: S,
    rollouts: R,
    keys: jax.Array,
    *,
    remat: bool = False,
) -> tuple[S, M]:
    r"""Make K updates, one after another, differentiable in config, state and rollouts.

    .. math:: s_{k+1} = U(\eta, s_k, \tau_k), \qquad k = 0, ..., K-1

    Exact for agents of this package, whose updates follow semi-gradients by argument
    separation: what an earlier update did to later bootstraps is not cut off.

    Args:
      update: `(config, state, rollout, key) -> (state, metrics)`, an `Agent.update`.
      config: its first argument, the same in every update.
      state: before the first one.
      rollouts: a tree of `[K, ...]`.
      keys: `[K]`, one for each update.
      remat: keep on the way forward only every sqrt(K)-th state and compute the rest
        again on the way back: memory of the derivative grows with sqrt(K) instead of
        K, for one more evaluation of the updates.

    Returns:
      The state after K updates, and their metrics `[K]`.

    Raises:
      ValueError: `rollouts` and `keys` without one leading axis K > 0.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.meta import unroll
      >>> def update(rate, x, target, key):
      ...     return x + rate * (target - x), {"error": target - x}
      >>> def after(rate):
      ...     keys = jax.random.split(jax.random.key(0), 2)
      ...     return unroll(update, rate, 0.0, jnp.ones(2), keys)[0]
      >>> float(after(0.5)), float(jax.grad(after)(0.5))
      (0.75, 1.0)

    References:
      Xu et al. (2018), https://arxiv.org/abs/1805.09801
    """
    length = leading_axis("rollouts, keys", (rollouts, keys))

    def step(state: S, inputs: tuple[R, jax.Array]) -> tuple[S, M]:
        rollout, key = inputs
        return update(config, state, rollout, key)

    if not remat:
        return jax.lax.scan(step, state, (rollouts, keys))
    size = math.isqrt(length - 1) + 1
    number = length // size
    whole = number * size
    inputs = (rollouts, keys)
    parts = jax.tree.map(
        lambda x: x[:whole].reshape(number, size, *x.shape[1:]), inputs
    )

    def part(state: S, inputs: tuple[R, jax.Array]) -> tuple[S, M]:
        return jax.lax.scan(step, state, inputs)

    in_loop = jax.checkpoint(part, prevent_cse=False)
    state, out = jax.lax.scan(in_loop, state, parts)
    out = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), out)
    if whole == length:
        return state, out
    rest = jax.tree.map(lambda x: x[whole:], inputs)
    state, more = jax.checkpoint(part)(state, rest)
    return state, jax.tree.map(lambda x, y: jnp.concatenate([x, y]), out, more)
