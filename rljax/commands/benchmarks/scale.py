"""The suite `scale`: one run over more devices, the work of each held constant."""

import dataclasses
import functools

from .comparisons import Comparison, listed
from .protocol import BYTES, EXCHANGES

DEVICES = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Work:
    """Iterations of an agent on CartPole; the whole of it is a worker's job."""

    name: str
    text: str
    agent: str
    comparisons: tuple[Comparison, ...]
    iterations: int  # of a call
    unit: str = "ms"  # of a call; EXCHANGES or BYTES of an iteration
    rounds: int = 9  # samples of each function
    sample_s: float = 0.2  # see protocol.alternate
    suite: str = "scale"

    def __str__(self) -> str:
        """The line of --list."""
        return listed(self)


def _weak(agent: str, iterations: int) -> tuple[Work, Work, Work]:
    """Time, and what is exchanged, with the default config on each device."""
    text = f"{agent}, its default config on each device"
    time = tuple(Comparison(f"{n} devices", "1 device") for n in DEVICES)
    same = (Comparison("8 devices", "2 devices"),)
    make = functools.partial(Work, agent=agent, iterations=iterations)
    return (
        make(f"time-{agent}", f"{iterations} iterations of {text}", comparisons=time),
        make(
            f"exchanges-{agent}",
            f"exchanges of an iteration of {text}",
            comparisons=same,
            unit=EXCHANGES,
        ),
        make(
            f"bytes-{agent}",
            f"bytes that an iteration exchanges, of {text}",
            comparisons=same,
            unit=BYTES,
        ),
    )


WORKS = (*_weak("ppo", 4), *_weak("dqn", 400), *_weak("trpo", 4))
