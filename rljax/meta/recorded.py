"""States and rollouts, to be recorded: without what is too large or never changes.

An agent's replay is too large; the environment that an agent runs again is the same.
"""

from typing import Protocol, TypeGuard

import jax
import jax.numpy as jnp

from rljax.replay import Replay
from rljax.types import AgentState, Rollout


class HoldsReplay(Protocol):
    """State of an agent with a replay memory: a named tuple."""

    @property
    def replay(self) -> Replay:
        """Steps to draw from."""
        ...

    def _replace(self, *, replay: Replay | tuple[()]) -> AgentState: ...


def holds_replay(state: AgentState) -> TypeGuard[HoldsReplay]:
    """Tell whether an agent's state holds a replay, or held one when recorded."""
    return hasattr(state, "replay")


def check_replay(state: AgentState) -> None:
    """Raise ValueError if a state's field `replay` cannot be left out and put back."""
    if not holds_replay(state):
        return
    if not (isinstance(state.replay, Replay) and hasattr(state, "_replace")):
        kinds = f"{type(state).__name__} with {type(state.replay).__name__}"
        raise ValueError(
            "tune: a state with a field `replay` must be a named tuple, and that a "
            f"replay.Replay, not {kinds}"
        )


def without_replay(state: AgentState) -> AgentState:
    """The agent's state, to be recorded."""
    return state._replace(replay=()) if holds_replay(state) else state


def without_env(rollout: Rollout) -> Rollout:
    """A rollout, to be recorded: its simulation's keys as data, of whatever kind."""
    if rollout.simulation == ():
        return rollout
    bare = rollout.simulation._replace(env=())
    return rollout._replace(simulation=jax.tree.map(_key_data, bare))


def with_env(rollout: Rollout, source: Rollout) -> Rollout:
    """A recorded rollout with the environment and the kinds of keys of another."""
    if rollout.simulation == ():
        return rollout

    def as_there(x: jax.Array, there: jax.Array) -> jax.Array:
        if not _is_key(there):
            return x
        return jax.random.wrap_key_data(x, impl=jax.random.key_impl(there))

    bare = source.simulation._replace(env=())
    simulation = jax.tree.map(as_there, rollout.simulation, bare)
    env = source.simulation.env
    return rollout._replace(simulation=simulation._replace(env=env))


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_data(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if _is_key(x) else x


def with_replay(state: AgentState, source: AgentState) -> AgentState:
    """A recorded state with the replay of another."""
    return state._replace(replay=source.replay) if holds_replay(state) else state
