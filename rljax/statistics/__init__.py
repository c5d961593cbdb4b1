"""Statistics of scores over seeds and tasks. Needs numpy only, no jax.

Scores of a method are an array `[runs, tasks]`: a row per run, usually of one seed, and
a column per task. The definitions are those of Agarwal et al. (2021), "Deep
Reinforcement Learning at the Edge of the Statistical Precipice",
https://arxiv.org/abs/2108.13264, and of its library rliable.

aggregates  one number for all runs and tasks: mean, median, IQM, optimality gap
curves      an aggregate at each step of training: sample efficiency
intervals   stratified bootstrap: an interval for any statistic
pictures    intervals, profiles, curves and improvements as PNGs
profiles    shares of runs, or of tasks, that score above thresholds
references  scores of random actions and the best known, to normalise by
"""

from rljax.statistics import pictures
from rljax.statistics.aggregates import (
    iqm,
    mean,
    median,
    optimality_gap,
    probability_of_improvement,
)
from rljax.statistics.curves import sample_efficiency
from rljax.statistics.intervals import Interval, stratified_bootstrap
from rljax.statistics.profiles import average_score_profile, performance_profile
from rljax.statistics.references import Reference, normalise, read_references

__all__ = [
    "Interval",
    "Reference",
    "average_score_profile",
    "iqm",
    "mean",
    "median",
    "normalise",
    "optimality_gap",
    "performance_profile",
    "pictures",
    "probability_of_improvement",
    "read_references",
    "sample_efficiency",
    "stratified_bootstrap",
]
