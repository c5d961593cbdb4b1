"""Intervals of statistics over runs, by the stratified bootstrap."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rljax.statistics.aggregates import check_scores

CELLS = 2**22  # resampled scores that are in memory together


class Interval(NamedTuple):
    """A statistic and its bootstrap interval; arrays of one shape."""

    estimate: np.ndarray  # of the scores as they are
    low: np.ndarray
    high: np.ndarray


def stratified_bootstrap(
    statistic: Callable[..., np.ndarray],
    *scores: ArrayLike,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """A statistic of one or more methods, with its percentile interval.

    Each draw takes, for every method and within every task on its own, as many runs as
    there are, with replacement. Tasks are not drawn: the interval is about other runs
    of the same tasks. Its ends are quantiles of the statistic over the draws.

    The interval is a little narrow where runs are few. For the mean of normal scores in
    M tasks it covers as often as `|t| < z sqrt(1 - 1 / runs)`, with Student's t of
    `M (runs - 1)` degrees of freedom: at 95 % and 4 tasks 0.885 for 4 runs, 0.93 for 10
    and 0.946 for 50. With one run it has no width.

    Args:
      statistic: maps as many arrays `[..., runs, tasks]` as there are `scores` to
        `[..., *shape]`, as `iqm` does, with the same axes in front.
      *scores: `[..., runs, tasks]` of each method. Axes in front, of steps say, share
        the draws of runs.
      confidence: of the interval, in (0, 1).
      draws: number of draws.
      seed: of the draws.

    Returns:
      The statistic, and both ends of its interval, `[..., *shape]`.

    Raises:
      ValueError: `confidence` or `draws` out of range; as by `check_scores`.

    Example:
      >>> from rljax.statistics import iqm
      >>> scores = np.linspace(0, 1, 40).reshape(10, 4)
      >>> interval = stratified_bootstrap(iqm, scores)
      >>> bool(interval.low < interval.estimate < interval.high)
      True

    References: Agarwal et al. (2021), section 4.1, https://arxiv.org/abs/2108.13264
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must be in (0, 1)")
    if draws < 1:
        raise ValueError(f"draws={draws}: must be at least 1")
    arrays = [check_scores(x) for x in scores]
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // sum(x.size for x in arrays))
    found = []
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        found.append(statistic(*(_resampled(x, rng, count) for x in arrays)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(found), (tail, 1 - tail), axis=0)
    return Interval(estimate=statistic(*arrays), low=low, high=high)


def _resampled(scores: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw runs within each task, `count` times: `[count, ..., runs, tasks]`."""
    runs, tasks = scores.shape[-2:]
    chosen = rng.integers(runs, size=(count, runs, tasks))
    # Indexed, both axes come first: [count, runs, tasks, ...].
    found = np.moveaxis(scores, (-2, -1), (0, 1))[chosen, np.arange(tasks)]
    return np.moveaxis(found, (1, 2), (-2, -1))
