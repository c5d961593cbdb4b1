"""One number for the scores of all runs in all tasks.

Scores `[..., runs, tasks]` may have axes in front, of bootstrap draws or steps, which
stay. A method needs equally many runs in every task: with more runs in one than in
another, tasks would weigh by their number of runs.
"""

import numpy as np
from numpy.typing import ArrayLike

TRIMMED = 0.25  # of the scores at each end, by the interquartile mean


def mean(scores: ArrayLike) -> np.ndarray:
    """Mean over runs and tasks.

    Args:
      scores: `[..., runs, tasks]`.

    Returns:
      `[...]`.

    Raises:
      ValueError: as by `check_scores`.

    Example:
      >>> float(mean([[0.0, 2.0], [1.0, 5.0]]))
      2.0
    """
    return check_scores(scores).mean(axis=(-2, -1))


def median(scores: ArrayLike) -> np.ndarray:
    """Median over tasks of their mean scores.

    Half of the tasks may score anything without a change of this number.

    Args:
      scores: `[..., runs, tasks]`.

    Returns:
      `[...]`.

    Raises:
      ValueError: as by `check_scores`.

    Example:
      >>> float(median([[0.0, 2.0, 9.0], [1.0, 4.0, 9.0]]))
      3.0
    """
    return np.median(check_scores(scores).mean(axis=-2), axis=-1)


def iqm(scores: ArrayLike) -> np.ndarray:
    """Interquartile mean: the mean of the middle half of all scores.

    Of `n = runs * tasks` scores the lowest and the highest `n // 4` are left out.

    Args:
      scores: `[..., runs, tasks]`.

    Returns:
      `[...]`.

    Raises:
      ValueError: as by `check_scores`.

    Example:
      >>> float(iqm([[0.0, 1.0], [3.0, 90.0]]))
      2.0

    References: Agarwal et al. (2021), section 4.3, https://arxiv.org/abs/2108.13264
    """
    scores = check_scores(scores)
    pooled = scores.reshape(*scores.shape[:-2], -1)
    count = pooled.shape[-1]
    left_out = int(TRIMMED * count)
    ends = (left_out, count - left_out - 1)
    middle = np.partition(pooled, ends, axis=-1)[..., left_out : count - left_out]
    return middle.mean(axis=-1)


def optimality_gap(scores: ArrayLike, threshold: float = 1.0) -> np.ndarray:
    """Mean shortfall from a score beyond which more is worth nothing.

    Args:
      scores: `[..., runs, tasks]`.
      threshold: that score; 1 is the reference's best of normalised scores.

    Returns:
      `[...]`, at least 0; lower is better.

    Raises:
      ValueError: as by `check_scores`.

    Example:
      >>> float(optimality_gap([[0.5, 1.0], [0.0, 7.0]]))
      0.375

    References: Agarwal et al. (2021), section 4.3, https://arxiv.org/abs/2108.13264
    """
    return threshold - np.minimum(check_scores(scores), threshold).mean(axis=(-2, -1))


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    r"""Probability that a run of X scores higher than one of Y, mean over tasks.

    .. math:: \frac{1}{M} \sum_m P(X_m > Y_m) + \frac{1}{2} P(X_m = Y_m)

    Args:
      x: `[..., runs of X, tasks]`.
      y: `[..., runs of Y, tasks]`, the same tasks in the same order.

    Returns:
      `[...]`, 0.5 for methods that are alike.

    Raises:
      ValueError: numbers of tasks that differ; as by `check_scores`.

    Example:
      >>> float(probability_of_improvement([[1.0], [3.0]], [[1.0], [2.0]]))
      0.625

    References: Agarwal et al. (2021), section 4.3, https://arxiv.org/abs/2108.13264
    """
    x, y = check_scores(x), check_scores(y)
    if x.shape[-1] != y.shape[-1]:
        tasks = f"{x.shape[-1]} and {y.shape[-1]} tasks"
        raise ValueError(f"scores of {tasks}: must be the same tasks")
    ahead = 0.0  # pairs won, less pairs lost; a loop needs no array of all pairs
    for i in range(x.shape[-2]):
        ahead += np.sign(x[..., i, None, :] - y).sum(axis=(-2, -1))
    return 0.5 + 0.5 * ahead / (x.shape[-2] * y.shape[-2] * y.shape[-1])


def check_scores(scores: ArrayLike) -> np.ndarray:
    """Return scores as float64, or raise.

    Args:
      scores: `[..., runs, tasks]`.

    Raises:
      ValueError: fewer than two axes, no run or no task, a number of runs that differs
        between tasks, NaN or infinity.

    Example:
      >>> check_scores([[1.0, float("nan")]])
      Traceback (most recent call last):
      ValueError: scores: 1 of 2 are NaN or infinite; every task needs as many runs
    """
    try:
        scores = np.asarray(scores, np.float64)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"scores: must be an array [runs, tasks] ({error})") from error
    if scores.ndim < 2 or 0 in scores.shape:
        raise ValueError(f"scores {scores.shape}: must be [runs, tasks], not empty")
    bad = scores.size - np.count_nonzero(np.isfinite(scores))
    if bad:
        raise ValueError(
            f"scores: {bad} of {scores.size} are NaN or infinite; "
            "every task needs as many runs"
        )
    return scores
