"""Pictures of statistics: intervals, profiles, sample efficiency, improvement."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rljax.running import plotting
from rljax.statistics.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves", "draw_improvement", "draw_intervals"]


def draw_intervals(
    aggregates: Mapping[str, Mapping[str, Interval]],
    path: str | os.PathLike,
    *,
    note: str = "",
) -> Path:
    """Draws a panel per aggregate, and in it a bar with its interval per method.

    Args:
      aggregates: by title, then by method: numbers with intervals.
      path: the PNG; an old file is replaced at once.
      note: below the panels, say about the scores.

    Returns:
      `path`.

    Raises:
      ValueError: no aggregate or no method.

    Example:
      >>> import tempfile
      >>> iqm = {"ppo": Interval(np.array(0.5), np.array(0.4), np.array(0.6))}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     draw_intervals({"IQM": iqm}, Path(folder) / "intervals.png").name
      'intervals.png'
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    _check_not_empty(aggregates)
    methods = list(dict.fromkeys(name for of in aggregates.values() for name in of))
    colors = _colors(methods)
    size = (1.2 + 2.7 * len(aggregates), 1.3 + 0.42 * len(methods))
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    panels = figure.subplots(1, len(aggregates), squeeze=False, sharey=True)[0]
    for axes, (title, of) in zip(panels, aggregates.items(), strict=True):
        for name, interval in of.items():
            _draw_bar(axes, methods.index(name), interval, color=colors[name])
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
        axes.set_yticks(range(len(methods)), methods)
        axes.use_sticky_edges = False  # of bars: they would touch the frame
        axes.margins(x=0.08)
        _decorate(axes)
    panels[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.supxlabel(note, fontsize=8.5, color="0.4")
    return plotting.write_figure(figure, Path(path))


def draw_curves(
    curves: Mapping[str, Interval],
    x: np.ndarray,
    path: str | os.PathLike,
    *,
    xlabel: str,
    ylabel: str,
) -> Path:
    """Draws a line with its band per method: profiles, or sample efficiency.

    Args:
      curves: by method, numbers with intervals at each of `x`.
      x: `[X]` thresholds, or environment steps.
      path: the PNG; an old file is replaced at once.
      xlabel: name of `x`.
      ylabel: name of the numbers.

    Returns:
      `path`.

    Raises:
      ValueError: no method.

    Example:
      >>> import tempfile
      >>> share = np.array([1.0, 0.5])
      >>> curves = {"ppo": Interval(share, share - 0.1, share)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "profiles.png"
      ...     draw_curves(curves, np.arange(2), path, xlabel="t", ylabel="Share").name
      'profiles.png'
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display
    from matplotlib.ticker import EngFormatter

    _check_not_empty(curves)
    colors = _colors(list(curves))
    figure = Figure(figsize=(7.5, 4.5), dpi=160, layout="constrained")
    axes = figure.subplots()
    marker = "o" if len(x) == 1 else None
    for name, (center, low, high) in curves.items():
        color = colors[name]
        axes.plot(x, center, color=color, lw=1.8, label=name, marker=marker)
        axes.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if np.max(np.abs(x)) >= 1000:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 0, 200k, 1M
    axes.margins(x=0.02)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    _decorate(axes)
    return plotting.write_figure(figure, Path(path))


def draw_improvement(pairs: Mapping[str, Interval], path: str | os.PathLike) -> Path:
    """Draws the probability of improvement of each pair of methods.

    Args:
      pairs: by label, as "ppo > dqn", the probability with its interval.
      path: the PNG; an old file is replaced at once.

    Returns:
      `path`.

    Raises:
      ValueError: no pair.

    Example:
      >>> import tempfile
      >>> pairs = {"ppo > dqn": Interval(np.array(0.7), np.array(0.6), np.array(0.8))}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     draw_improvement(pairs, Path(folder) / "improvement.png").name
      'improvement.png'
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    _check_not_empty(pairs)
    size = (7.5, 1.3 + 0.42 * len(pairs))
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    axes = figure.subplots()
    for row, interval in enumerate(pairs.values()):
        _draw_bar(axes, row, interval, color=plotting.COLORS[0])
    axes.axvline(0.5, color="0.5", lw=1, ls="--")  # methods that are alike
    axes.set_yticks(range(len(pairs)), list(pairs))
    axes.set_ylim(len(pairs) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xlabel("Probability of improvement")
    _decorate(axes)
    return plotting.write_figure(figure, Path(path))


def _draw_bar(axes: "Axes", row: int, interval: Interval, *, color: str) -> None:
    """Draws an interval as a bar, its estimate as a line in it."""
    estimate, low, high = (float(x) for x in interval)
    axes.barh(row, high - low, left=low, height=0.6, color=color, alpha=0.35, lw=0)
    axes.plot([estimate, estimate], [row - 0.3, row + 0.3], color=color, lw=2.2)


def _decorate(axes: "Axes") -> None:
    axes.grid(color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3, color="0.6", labelsize=9)


def _colors(names: list[str]) -> dict[str, str]:
    return dict(zip(names, itertools.cycle(plotting.COLORS), strict=False))


def _check_not_empty(items: Mapping[str, object]) -> None:
    if not items or not all(items.values()):
        raise ValueError("nothing to draw: no method")
