"""Sample efficiency: an aggregate at each step of training."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from rljax.statistics.aggregates import check_scores, iqm
from rljax.statistics.intervals import Interval, stratified_bootstrap


def sample_efficiency(
    curves: ArrayLike,
    statistic: Callable[[np.ndarray], np.ndarray] = iqm,
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """An aggregate of a method at each step, with its interval.

    A draw takes a run's whole curve, so that the intervals of two steps rest on the
    same runs; each holds at its step alone.

    Args:
      curves: `[runs, tasks, steps]` scores after so many steps.
      statistic: maps `[..., runs, tasks]` to `[...]`.
      confidence: as for `stratified_bootstrap`.
      draws: likewise.
      seed: likewise.

    Returns:
      The aggregate and both ends of its interval, `[steps]`.

    Raises:
      ValueError: not three axes; as by `stratified_bootstrap`.

    Example:
      >>> curves = np.arange(24.0).reshape(4, 2, 3)
      >>> sample_efficiency(curves).estimate
      array([10.5, 11.5, 12.5])

    References: Agarwal et al. (2021), section 4.3, https://arxiv.org/abs/2108.13264
    """
    curves = check_scores(curves)
    if curves.ndim != 3:
        raise ValueError(f"curves {curves.shape}: must be [runs, tasks, steps]")
    by_step = np.moveaxis(curves, -1, 0)
    return stratified_bootstrap(
        statistic, by_step, confidence=confidence, draws=draws, seed=seed
    )
