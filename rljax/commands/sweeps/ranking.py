"""Configurations by their mean return over seeds, with its interval."""

import math
from typing import NamedTuple

import numpy as np

from rljax.commands.sweeps.groups import Place, Results, Sweep
from rljax.commands.sweeps.space import Value, written


class Mean(NamedTuple):
    """A mean over seeds and its 95 % interval, NaN where one seed tells of none."""

    mean: float
    low: float
    high: float


def interval(scores: np.ndarray, confidence: float = 0.95) -> Mean:
    """Mean of a normal distribution, and its interval by Student's t.

    Args:
      scores: `[S]` one number of each seed.
      confidence: probability that such an interval holds the mean, in (0, 1).

    Example:
      >>> mean, low, high = interval(np.array([1.0, 2.0, 3.0]))
      >>> mean, round(low, 3), round(high, 3)
      (2.0, -0.484, 4.484)

    References: Student (1908), https://doi.org/10.1093/biomet/6.1.1
    """
    from scipy.special import stdtrit  # 0.1 s

    scores = np.asarray(scores, np.float64)
    mean, number = float(scores.mean()), len(scores)
    if number == 1:
        return Mean(mean, math.nan, math.nan)
    quantile = stdtrit(number - 1, (1 + confidence) / 2)
    half = float(quantile * scores.std(ddof=1) / math.sqrt(number))
    return Mean(mean, mean - half, mean + half)


def means(sweep: Sweep, results: Results, seeds: range) -> dict[int, Mean]:
    """Mean return of each configuration that has run with all these seeds."""
    return {
        c: interval(np.array([results[Place(c, s)].score for s in seeds]))
        for c in range(len(sweep.rows))
        if all(Place(c, s) in results for s in seeds)
    }


def rank(sweep: Sweep, results: Results) -> list[int]:
    """Order configurations: trained furthest first, of those the best, NaN last."""
    seeds = range(sweep.run.seeds)
    found = means(sweep, results, seeds)

    def place(c: int) -> tuple[float, bool, float]:
        share = results[Place(c, 0)].steps / sweep.steps(c)
        return -share, math.isnan(found[c].mean), -found[c].mean

    return sorted(found, key=place)


def lines(sweep: Sweep, results: Results, again: range | None = None) -> list[str]:
    """Lay the ranked configurations out as a table.

    Args:
      sweep: the sweep.
      results: of its runs.
      again: further seeds, with which some configurations were trained again.
    """
    seeds = range(sweep.run.seeds)
    found = means(sweep, results, seeds)
    fresh = means(sweep, results, again) if again else {}
    order = rank(sweep, results)
    cells = [[_shown(value) for value in sweep.rows[c]] for c in order]
    widths = [
        max([14, len(name), *(len(row[i]) for row in cells)])
        for i, name in enumerate(sweep.names)
    ]
    head = [f"{name:>{width}}" for name, width in zip(sweep.names, widths, strict=True)]
    titles = f"{'return':>10} {'95 % interval':>21}"
    if again:
        titles += f" {'again':>10} {'95 % interval':>21}"
    shares = [results[Place(c, 0)].steps / sweep.steps(c) for c in order]
    early = any(share < 1 for share in shares)
    table = [" ".join([*head, titles, *(["trained"] if early else [])])]
    for c, row, share in zip(order, cells, shares, strict=True):
        words = [f"{text:>{w}}" for text, w in zip(row, widths, strict=True)]
        words.append(_mean(found[c]))
        if again:
            words.append(_mean(fresh[c]) if c in fresh else " " * 32)
        if early:
            words.append(f"{share:7.0%}")
        table.append(" ".join(words).rstrip())
    return table


def _shown(value: Value) -> str:
    """A value of a field, a number by its first digits."""
    return f"{value:.6g}" if isinstance(value, float) else written(value)


def _mean(found: Mean) -> str:
    """A mean and its interval in 32 places."""
    spread = "-"
    if not math.isnan(found.low):
        spread = f"{_number(found.low)} to {_number(found.high)}"
    return f"{_number(found.mean):>10} {spread:>21}"


def _number(x: float) -> str:
    """Three digits, or all before the point and one after it."""
    return f"{x:.1f}" if abs(x) >= 100 else f"{x:.3g}"
