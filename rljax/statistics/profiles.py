"""Profiles: the shares of runs, or of tasks, that score above thresholds."""

import numpy as np
from numpy.typing import ArrayLike

from rljax.statistics.aggregates import check_scores


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Share of the runs in all tasks whose score is above each threshold.

    The area under it, from the least score on, is the mean. With
    `stratified_bootstrap` each point has an interval; together they are a band that
    holds point by point.

    Args:
      scores: `[..., runs, tasks]`.
      thresholds: `[T]`.

    Returns:
      `[..., T]`, in [0, 1], falling.

    Raises:
      ValueError: thresholds that are no numbers or not one axis of them; as by
        `check_scores`.

    Example:
      >>> performance_profile([[0.2, 0.4], [0.6, 0.8]], [0.0, 0.4, 0.7])
      array([1.  , 0.5 , 0.25])

    References: Agarwal et al. (2021), section 4.2, https://arxiv.org/abs/2108.13264
    """
    scores, thresholds = check_scores(scores), _check_thresholds(thresholds)
    above = [(scores > x).mean(axis=(-2, -1)) for x in thresholds]
    return np.stack(above, axis=-1)


def average_score_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Share of tasks whose mean score is above each threshold.

    Args:
      scores: `[..., runs, tasks]`.
      thresholds: `[T]`.

    Returns:
      `[..., T]`, in [0, 1], falling.

    Raises:
      ValueError: as by `performance_profile`.

    Example:
      >>> average_score_profile([[0.2, 0.4], [0.6, 0.8]], [0.3, 0.5])
      array([1. , 0.5])

    References: Agarwal et al. (2021), section 4.2, https://arxiv.org/abs/2108.13264
    """
    means = check_scores(scores).mean(axis=-2)
    return (means[..., None] > _check_thresholds(thresholds)).mean(axis=-2)


def _check_thresholds(thresholds: ArrayLike) -> np.ndarray:
    thresholds = np.asarray(thresholds, np.float64)
    if thresholds.ndim != 1 or not thresholds.size or np.isnan(thresholds).any():
        raise ValueError(f"thresholds {thresholds.shape}: must be [T], no NaN")
    return thresholds
