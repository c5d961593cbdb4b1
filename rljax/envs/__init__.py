"""Batched environments: by name, or from any object with gymnax's API.

`make` and `wrap` give what rollouts need, `names` lists what there is, and `check`
tries an environment of your own and says what is wrong with it.
"""

from rljax.envs.batched import Env, Noise
from rljax.envs.checking import check
from rljax.envs.making import make, names, wrap
from rljax.types import Box, Discrete, Levels, Spec, States, TimeStep
from rljax.wrappers import (
    BatchedEnv,
    EpisodeStatistics,
    NormalizeObservations,
    NormalizeRewards,
    StackFrames,
    StickyActions,
    TerminalLimit,
    TimeAware,
)

__all__ = [
    "BatchedEnv",
    "Box",
    "Discrete",
    "Env",
    "EpisodeStatistics",
    "Levels",
    "Noise",
    "NormalizeObservations",
    "NormalizeRewards",
    "Spec",
    "StackFrames",
    "States",
    "StickyActions",
    "TerminalLimit",
    "TimeAware",
    "TimeStep",
    "check",
    "make",
    "names",
    "wrap",
]
