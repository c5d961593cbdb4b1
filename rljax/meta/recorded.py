"""The agent's state as the window records it: without a replay, which is too large."""

from typing import Protocol, TypeGuard

from rljax.replay import Replay
from rljax.types import AgentState


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


def with_replay(state: AgentState, source: AgentState) -> AgentState:
    """A recorded state with the replay of another."""
    return state._replace(replay=source.replay) if holds_replay(state) else state
