"""Aggregates: rliable's numbers, closed forms, hand-made tables."""

import math

import numpy as np
import pytest
from scipy import stats

from rljax.statistics import (
    iqm,
    mean,
    median,
    optimality_gap,
    probability_of_improvement,
)

# Scores of 7 and 5 runs in 3 tasks, and what rliable 1.2.0 makes of them (Python 3.11,
# numpy 1.26.4, arch 7.2.0): `metrics.aggregate_mean(X)` and so on, and
# `metrics.probability_of_improvement(X, Y)`. No count of scores is a multiple of 4.
X = [
    [0.6, 1.2, 0.2],
    [0.2, 0.9, -0.1],
    [0.6, 1.6, 0.1],
    [0.4, 1.3, 0.4],
    [0.6, 0.7, 0.3],
    [0.9, 0.6, 0.1],
    [-0.2, 0.6, -0.4],
]
Y = [
    [0.3, 0.4, 0.2],
    [0.5, 0.8, -0.9],
    [0.2, 0.9, 0.1],
    [-0.2, 0.7, -0.3],
    [0.1, 1.3, -0.2],
]
RLIABLE = [
    (mean, 0.5047619047619047, 0.26),
    (median, 0.4428571428571428, 0.18),
    (iqm, 0.4727272727272727, 0.25555555555555554),
    (optimality_gap, 0.5476190476190477, 0.76),
]
AGGREGATES = [mean, median, iqm, optimality_gap]


def named(function):
    return getattr(function, "__name__", None)


@pytest.mark.parametrize("aggregate, of_x, of_y", RLIABLE, ids=named)
def test_aggregates_are_those_of_rliable(aggregate, of_x, of_y):
    assert abs(aggregate(X) - of_x) < 1e-12
    assert abs(aggregate(Y) - of_y) < 1e-12


def test_probability_of_improvement_is_that_of_rliable():
    assert abs(probability_of_improvement(X, Y) - 0.6952380952380953) < 1e-12


@pytest.mark.parametrize("aggregate", AGGREGATES, ids=named)
def test_axes_in_front_stay(aggregate):
    scores = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    found = aggregate(scores)
    assert found.shape == (2, 3)
    for place in np.ndindex(2, 3):
        np.testing.assert_allclose(found[place], aggregate(scores[place]), rtol=1e-14)


def test_probability_of_improvement_by_counting():
    x, y = np.random.default_rng(0).integers(4, size=(2, 6, 3))
    pairs = [(a, b) for i in range(3) for a in x[:, i] for b in y[:, i]]
    wins = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)
    found = probability_of_improvement(x, y)
    assert abs(found - wins / len(pairs)) < 1e-12
    assert abs(found + probability_of_improvement(y, x) - 1) < 1e-12
    assert probability_of_improvement(x, x) == 0.5


def test_aggregates_of_many_runs_reach_the_closed_forms():
    """Of exponential scores: mean 1, and the rest by integrals; errors of 4 sigma."""
    scores = np.random.default_rng(0).exponential(size=(100_000, 2))
    u = (np.arange(100_000) + 0.5) / 200_000 + 0.25
    quantiles = -np.log1p(-u)  # of the middle half
    assert abs(mean(scores) - 1) < 0.009
    assert abs(iqm(scores) - quantiles.mean()) < 0.009
    assert abs(optimality_gap(scores) - math.exp(-1)) < 0.003


def test_probability_of_improvement_of_normal_scores():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, (800, 3)), rng.normal(0, 1, (700, 3))
    exact = stats.norm.cdf(1 / math.sqrt(2))
    assert abs(probability_of_improvement(x, y) - exact) < 0.03


def test_the_median_is_over_tasks():
    scores = np.array([[0.0, 1.0, 100.0], [2.0, 5.0, 300.0]])
    assert median(scores) == 3.0
    assert mean(scores) == 68.0


@pytest.mark.parametrize(
    "scores, told",
    [
        ([1.0, 2.0], r"scores \(2,\): must be \[runs, tasks\]"),
        (np.zeros((0, 3)), r"scores \(0, 3\): must be \[runs, tasks\], not empty"),
        ([[1.0, np.nan], [np.inf, 2.0]], "2 of 4 are NaN or infinite"),
        ([[1.0, 2.0], [3.0]], r"must be an array \[runs, tasks\]"),
    ],
)
@pytest.mark.parametrize("aggregate", AGGREGATES, ids=named)
def test_scores_that_are_none_are_refused(aggregate, scores, told):
    with pytest.raises(ValueError, match=told):
        aggregate(scores)


def test_methods_of_other_tasks_are_refused():
    with pytest.raises(ValueError, match="3 and 2 tasks: must be the same"):
        probability_of_improvement(X, [[1.0, 2.0]])
