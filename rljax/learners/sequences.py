"""Sequences of steps for networks with memory, with a burn-in of the stored memory.

Kapturowski et al. (2019), https://openreview.net/forum?id=r1lyTjAqYX.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax.networks.recurrent import recall, starts_of
from rljax.types import (
    AgentConfig,
    AgentState,
    Memory,
    Obs,
    Params,
    Recalled,
    Rollout,
    num_rows,
)


class Pair(NamedTuple):
    """Of the policy and of the value, which share nothing."""

    actor: Any
    critic: Any


class Past(NamedTuple):
    """Steps that memories were made of; time-major."""

    obs: Obs  # [T, N, ...]
    ended: jax.Array  # [T, N] bool, whether the episode ended with the step
    memory: Memory  # [T, N, ...] before the step, as when it was acted on


class Seen(NamedTuple):
    """Observations in a row; L is the sequence's length."""

    obs: Obs  # [B, burn_in + L, ...]
    start: jax.Array  # [B, burn_in + L] bool, whether an episode starts there
    memory: Memory  # [B, ...] before the first


def cut(x: jax.Array, stride: int, *, length: int) -> jax.Array:
    """Cut `[T, N, ...]` into `[B, length, ...]`: a piece each `stride` steps.

    B is N times the number of pieces that fit; environments vary fastest.

    Example:
      >>> cut(jnp.arange(4)[:, None], 2, length=2).tolist()
      [[0, 1], [2, 3]]
    """
    first = jnp.arange(0, len(x) - length + 1, stride)
    x = jnp.moveaxis(x[first[:, None] + jnp.arange(length)], 2, 1)
    return x.reshape(-1, *x.shape[2:])


def no_past(obs: Obs, memory: Memory, *, length: int) -> Past | tuple[()]:
    """Steps of N episodes that have not started, `[length, N, ...]`; () if none."""
    step = Past(obs=obs, ended=jnp.ones(num_rows(obs), bool), memory=memory)
    steps = [step] * length
    return jax.tree.map(lambda *x: jnp.stack(x), *steps) if steps else ()


def split(
    rollout: Rollout, past: Any, *, length: int, burn_in: int
) -> tuple[Seen, Any]:
    """A rollout as sequences, and its end, the past of the next rollout.

    Args:
      rollout: `[T, N, ...]`.
      past: the last rollout's end, `[burn_in, N, ...]`; () without a burn-in.
      length: L, which divides T.
      burn_in: steps before each sequence that bring its memory up to date.
    """
    ended = rollout.terminated | rollout.truncated
    steps = Past(obs=rollout.obs, ended=ended, memory=rollout.memory)
    num_steps = len(ended)
    if burn_in:
        steps = jax.tree.map(lambda *x: jnp.concatenate(x), past, steps)
    start = starts_of(steps.ended)

    def first(x: jax.Array) -> jax.Array:
        return cut(x[:num_steps], length, length=1)[:, 0]

    def overlapping(x: jax.Array) -> jax.Array:
        return cut(x, length, length=burn_in + length)

    seen = Seen(
        obs=jax.tree.map(overlapping, steps.obs),
        start=overlapping(start),
        memory=jax.tree.map(first, steps.memory),
    )
    end = jax.tree.map(lambda x: x[num_steps:], steps) if burn_in else ()
    return seen, end


def recalled(nets: Callable[[Any], Pair], *, member: str) -> Callable[..., Any]:
    """Make an agent's function of a `Recalled`: the outputs of one of its networks.

    Args:
      nets: `config -> networks`.
      member: the network's name, and that of its parameters and its memory.
    """

    def output(config: AgentConfig, state: AgentState, seen: Recalled) -> Any:
        net, params = getattr(nets(config), member), getattr(state, member)
        memory = getattr(seen.memory, member)
        return net.apply(params, seen.obs, seen.start, memory, method="unroll")[0]

    return output


def outputs(
    net: Any, params: Params, seen: Seen, *, burn_in_params: Params, burn_in: int
) -> Any:
    """The outputs of a network for sequences, `[L, B, ...]`, after the burn-in."""
    steps = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (seen.obs, seen.start))
    before_obs, before_start = jax.tree.map(lambda x: x[:burn_in], steps)
    obs, start = jax.tree.map(lambda x: x[burn_in:], steps)
    memory = recall(
        net,
        burn_in_params,
        obs=before_obs,
        starts=before_start,
        memory=seen.memory,
    )
    found, _ = net.apply(params, obs, start, memory, method="unroll")
    return found
