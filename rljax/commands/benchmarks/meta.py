"""The suite `meta`: what tuning costs, in the agent's own updates."""

import dataclasses
import functools

from .comparisons import Comparison, listed
from .protocol import WITH_RESULTS


@dataclasses.dataclass(frozen=True)
class Work:
    """Functions of one agent on an environment; the whole of it is a worker's job."""

    name: str
    text: str
    agent: str
    comparisons: tuple[Comparison, ...]
    unit: str = "ms"  # of a call, "MB": temporary memory, or WITH_RESULTS
    rounds: int = 9  # samples of each function
    sample_s: float = 0.05  # see protocol.alternate
    suite: str = "meta"
    env: str = "CartPole-v1"
    learned: tuple[str, ...] = ()  # networks in place of the discount

    def __str__(self) -> str:
        """The line of --list."""
        return listed(self)


def _one_update(agent: str, learned: tuple[str, ...] = ()) -> tuple[Work, Work]:
    """Time and memory with K = 1, default settings.

    A new state counts as memory, whether it is returned or scored.
    """
    name = "-".join((agent, *learned))
    tuned = f"a {learned[0]} network" if learned else "gamma"
    text = f"{tuned} of {agent}, its default config, K = 1"
    env = "Pendulum-v1" if agent in ON_PENDULUM else "CartPole-v1"
    whole = Comparison("iteration", "update")
    time = Comparison("meta-step", "update", "<= 6" if learned else "<= 4.5")
    memory = Comparison("meta-step", "update", "<= 6" if learned else "<= 3.5")
    made = functools.partial(Work, agent=agent, env=env, learned=learned)
    return (
        made(f"time-{name}", f"time to tune {text}", comparisons=(time, whole)),
        made(
            f"memory-{name}",
            f"memory to tune {text}",
            comparisons=(memory, whole),
            unit=WITH_RESULTS,
        ),
    )


ON_PENDULUM = ("sac", "td3", "mpo", "apg")
AGENTS = (
    *("a2c", "ppo", "impala", "dqn", "pqn", "sarsa"),
    *("awr", "ppo_rnn", "r2d2", "sac", "td3", "mpo", "apg"),
)
WORKS = (
    *(work for agent in AGENTS for work in _one_update(agent)),
    *(
        work
        for agent in ("a2c", "ppo")
        for learned in ("reward", "target")
        for work in _one_update(agent, (learned,))
    ),
    Work(
        "time-growth",
        "time over many updates of a2c",
        "a2c",
        (
            Comparison("meta-step K=16", "meta-step K=4", "<= 4"),
            Comparison("meta-step K=16 reverse", "meta-step K=4 reverse", "<= 4"),
            Comparison("meta-step K=16 remat", "meta-step K=16 reverse"),
        ),
    ),
    Work(
        "memory-growth",
        "memory over many updates of a2c",
        "a2c",
        (
            Comparison("meta-step K=16", "meta-step K=4"),
            Comparison("meta-step K=16 reverse", "meta-step K=4 reverse"),
            Comparison("meta-step K=16 remat", "meta-step K=4 remat", "<= 2"),
        ),
        unit="MB",
    ),
)
