"""Intervals: rliable's, brute force, and how often they cover the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from rljax.statistics import (
    average_score_profile,
    iqm,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
    sample_efficiency,
    stratified_bootstrap,
)

from .test_aggregates import X, Y

# Of X by rliable 1.2.0: `library.get_interval_estimates({"x": X}, ..., reps=50000)`.
RLIABLE = {
    mean: (0.3666666666666667, 0.638095238095238),
    median: (0.19999999999999998, 0.6714285714285714),
    iqm: (0.35454545454545455, 0.6000000000000001),
    optimality_gap: (0.44285714285714284, 0.661904761904762),
}
# `library.create_performance_profile({"x": X, "y": Y}, THRESHOLDS, reps=50000)`.
THRESHOLDS = [-0.2, 0.1, 0.5, 0.8, 1.4]
SHARES = {
    "x": [
        *(0.9047619047619048, 0.7619047619047619, 0.5238095238095238),
        *(0.23809523809523808, 0.047619047619047616),
    ],
    "y": [
        *(0.7333333333333333, 0.6, 0.26666666666666666),
        *(0.13333333333333333, 0.0),
    ],
}
LOW = [
    *(0.7619047619047619, 0.6190476190476191, 0.38095238095238093),
    *(0.09523809523809523, 0.0),
]
HIGH = [
    *(1.0, 0.9047619047619048, 0.6190476190476191),
    *(0.38095238095238093, 0.14285714285714285),
]
# `..., use_score_distribution=False`.
TASK_SHARES = {
    "x": [1.0, 2 / 3, 1 / 3, 1 / 3, 0.0],
    "y": [2 / 3, 2 / 3, 1 / 3, 1 / 3, 0],
}


@pytest.mark.parametrize("statistic", RLIABLE, ids=lambda x: x.__name__)
def test_intervals_are_those_of_rliable(statistic):
    """To the grid of values that the statistic takes near the ends."""
    found = stratified_bootstrap(statistic, X, draws=20_000, seed=3)
    assert found.estimate == statistic(X)
    np.testing.assert_allclose(found[1:], RLIABLE[statistic], atol=0.011)


def test_the_interval_of_an_improvement_is_that_of_rliable():
    """With 3000 draws there."""
    found = stratified_bootstrap(probability_of_improvement, X, Y, draws=20_000)
    assert found.estimate == probability_of_improvement(X, Y)
    np.testing.assert_allclose(
        found[1:], (0.5190476190476191, 0.8525000000000004), atol=0.02
    )


@pytest.mark.parametrize("name, scores", [("x", X), ("y", Y)])
def test_profiles_are_those_of_rliable(name, scores):
    found = performance_profile(scores, THRESHOLDS)
    np.testing.assert_allclose(found, SHARES[name], rtol=0, atol=1e-12)
    found = average_score_profile(scores, THRESHOLDS)
    np.testing.assert_allclose(found, TASK_SHARES[name], rtol=0, atol=1e-12)


def test_bands_of_profiles_are_those_of_rliable():
    """Shares of 21 runs: one of them more or less."""

    def profile(scores):
        return performance_profile(scores, THRESHOLDS)

    found = stratified_bootstrap(profile, X, draws=20_000)
    np.testing.assert_allclose(found.low, LOW, atol=1.01 / 21)
    np.testing.assert_allclose(found.high, HIGH, atol=1.01 / 21)


def test_the_area_under_a_profile_is_the_mean():
    scores = np.random.default_rng(0).uniform(size=(50, 3))
    thresholds = (np.arange(10_000) + 0.5) / 10_000
    area = performance_profile(scores, thresholds).mean()
    assert abs(area - mean(scores)) < 1e-4


@pytest.mark.parametrize("runs, tasks, confidence", [(2, 2, 0.8), (3, 1, 0.5)])
def test_draws_have_the_distribution_of_all_there_are(runs, tasks, confidence):
    """All `runs ** (runs * tasks)` resamples, listed."""
    scores = np.random.default_rng(1).normal(size=(runs, tasks))
    every = np.stack(
        [
            np.take_along_axis(scores, np.reshape(chosen, (runs, tasks)), axis=0)
            for chosen in np.ndindex(*[runs] * (runs * tasks))
        ]
    )
    seen = []

    def look(x):
        seen.append(x.reshape(-1, runs, tasks))
        return mean(x)

    stratified_bootstrap(look, scores, confidence=confidence, draws=20_000)
    means = np.sort(mean(np.concatenate(seen[:-1])))
    exact = np.sort(mean(every))
    share = np.searchsorted(means, exact + 1e-9) / len(means)
    expected = np.searchsorted(exact, exact + 1e-9) / len(exact)
    assert np.abs(share - expected).max() < 4 * 0.5 / math.sqrt(20_000)


def test_tasks_keep_their_scores():
    scores = np.arange(3.0) * 10 + np.arange(4.0)[:, None]
    seen = []
    stratified_bootstrap(lambda x: seen.append(x) or mean(x), scores, draws=50)
    drawn = seen[0]
    assert drawn.shape == (50, 4, 3)
    assert (drawn // 10 == np.arange(3)).all()
    assert (drawn[..., 0] != drawn[..., 1] - 10).any()  # each on its own


def test_axes_in_front_share_the_draws():
    scores = np.random.default_rng(0).normal(size=(5, 2))
    steps = np.stack([scores, scores + 1])
    found = stratified_bootstrap(iqm, steps, draws=100)
    for interval in (found.estimate, found.low, found.high):
        assert interval.shape == (2,)
        np.testing.assert_allclose(interval[1], interval[0] + 1)


def test_draws_come_in_pieces_of_bounded_size(monkeypatch):
    sizes = []

    def count(x):
        sizes.append(x.size)
        return mean(x)

    monkeypatch.setattr("rljax.statistics.intervals.CELLS", 100)
    found = stratified_bootstrap(count, np.zeros((5, 3)), draws=20)
    assert sizes == [90, 90, 90, 30, 15]
    assert found.low == found.high == 0


def test_a_seed_tells_the_interval():
    def ends(seed):
        return stratified_bootstrap(mean, X, seed=seed, draws=500)[1:]

    assert ends(0) == ends(0) != ends(1)


def test_one_run_has_an_interval_without_width():
    found = stratified_bootstrap(iqm, [[0.25, 0.75]])
    assert found == (0.5, 0.5, 0.5)


def expected_coverage(runs, tasks, confidence=0.95):
    """Of the mean of normal scores, whose bootstrap deviation is too small."""
    z = stats.norm.ppf(0.5 + confidence / 2)
    width = z * math.sqrt(1 - 1 / runs)
    return 1 - 2 * stats.t.sf(width, tasks * (runs - 1))


def covered(statistic, truth, scores, draws=400):
    """Share of tables `[tables, runs, tasks]` whose interval has the truth in it."""
    found = stratified_bootstrap(statistic, scores, draws=draws)
    return np.mean((found.low <= truth) & (truth <= found.high))


TABLES = 500
DIFFERENT = [-3.0, -1.0, 1.0, 3.0]  # means of tasks, far apart beside their runs


@pytest.mark.parametrize("runs, rate", [(4, 0.885), (10, 0.929), (50, 0.946)])
def test_intervals_of_means_cover_the_truth_as_often_as_they_say(runs, rate):
    """Rates as in the docstring; within 3 standard errors of 500 tables."""
    assert abs(expected_coverage(runs, tasks=4) - rate) < 0.001
    scores = np.random.default_rng(2).normal(DIFFERENT, 1, (TABLES, runs, 4))
    error = math.sqrt(rate * (1 - rate) / TABLES)
    assert abs(covered(mean, 0.0, scores) - rate) < 3 * error


@pytest.mark.parametrize("statistic", [iqm, optimality_gap], ids=lambda x: x.__name__)
def test_intervals_of_other_aggregates_cover_the_truth(statistic):
    """Uniform scores in [0, 2]: IQM 1, gap 1/4; 10 runs, 4 tasks, rates near 0.93."""
    scores = np.random.default_rng(3).uniform(0, 2, (TABLES, 10, 4))
    truth = {iqm: 1.0, optimality_gap: 0.25}[statistic]
    assert 0.89 < covered(statistic, truth, scores) < 0.97


def test_intervals_of_improvements_cover_the_truth():
    """Normal scores one deviation apart, 10 runs, 4 tasks."""
    rng, tables = np.random.default_rng(4), 200
    x, y = rng.normal(1, 1, (tables, 10, 4)), rng.normal(0, 1, (tables, 10, 4))
    found = stratified_bootstrap(probability_of_improvement, x, y, draws=200)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    assert 0.87 < np.mean((found.low <= truth) & (truth <= found.high)) < 0.98


def test_sample_efficiency_is_the_aggregate_at_each_step():
    """And its interval that of this step's scores with the same draws."""
    curves = np.random.default_rng(0).normal(size=(6, 3, 4)).cumsum(axis=-1)
    found = sample_efficiency(curves, median, draws=300, seed=5, confidence=0.9)
    for i in range(4):
        alone = stratified_bootstrap(
            median, curves[..., i], draws=300, seed=5, confidence=0.9
        )
        np.testing.assert_allclose([x[i] for x in found], alone, rtol=1e-12)


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(confidence=1.0), r"confidence=1.0: must be in \(0, 1\)"),
        (dict(confidence=0.0), r"confidence=0.0: must be in \(0, 1\)"),
        (dict(draws=0), "draws=0: must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        stratified_bootstrap(mean, X, **options)


def test_curves_and_thresholds_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"curves \(7, 3\): must be \[runs, tasks, "):
        sample_efficiency(X)
    for thresholds in (0.5, [], [np.nan]):
        with pytest.raises(ValueError, match=r"thresholds \(.*\): must be \[T\]"):
            performance_profile(X, thresholds)
