"""Batched environments: by name, or from any object with gymnax's API.

`make` and `wrap` give what rollouts need, `names` lists what there is, and `check`
tries an environment of your own and says what is wrong with it.

adapters     environments of other packages, one small file each
batched      N environments of gymnax's API in step with each other
boundary     what an environment promises, by a trace of its program
checking     what is wrong with an environment, in a line each
grid_worlds  rooms with objects, drawn at random: tasks for meta-learning
making       environments by name
own          environments of one's own, by reference or entry point
pictures     animations of episodes
spaces       gymnax's spaces as this package's
tasks        distributions of tasks, for meta-learning
two_colors   an endless grid whose good and bad items swap
wrappers     statistics, normalisation, memory, noise around a batch
"""

from rljax.contracts import BatchedEnv
from rljax.envs.batched import Env, Noise
from rljax.envs.checking import check
from rljax.envs.making import make, names, wrap
from rljax.envs.wrappers import (
    DelayRewards,
    EpisodeStatistics,
    NormalizeObservations,
    NormalizeRewards,
    StackFrames,
    StickyActions,
    TerminalLimit,
    TimeAware,
)
from rljax.types import (
    Box,
    Discrete,
    Levels,
    Masked,
    MultiDiscrete,
    ObsLeaf,
    ObsSpec,
    Spec,
    States,
    TimeStep,
)

__all__ = [
    "BatchedEnv",
    "Box",
    "DelayRewards",
    "Discrete",
    "Env",
    "EpisodeStatistics",
    "Levels",
    "Masked",
    "MultiDiscrete",
    "Noise",
    "NormalizeObservations",
    "NormalizeRewards",
    "ObsLeaf",
    "ObsSpec",
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
