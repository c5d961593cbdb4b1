"""Learning curves: an average over seeds, its bootstrap interval, a PNG of both."""

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "interval", "learning_curve", "learning_curves", "write_figure"]

Runs = dict[str, tuple[np.ndarray, np.ndarray]]  # by label: steps [R], values [S, R]

# Okabe and Ito's colours, told apart by the colour-blind too.
COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#E69F00",
    "#8C6D31",
    "#000000",
)


_MOST_ROWS = 3  # of further values below a curve; more stand in a grid
_COLUMNS = 3  # of that grid


def interval(
    values: np.ndarray,
    confidence: float = 0.95,
    statistic: str = "iqm",
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An average over seeds and its percentile-bootstrap interval, row by row.

    The interquartile mean is the mean of the middle half of the seeds, where the
    quartiles cut a seed in two with a fractional weight. A seed that has no value in a
    row (no finished episode: NaN) carries its last one forward; before its first one it
    is left out.

    Args:
      values: `[S, R]` one row of numbers per seed.
      confidence: mass inside the interval, in (0, 1).
      statistic: "iqm" or "mean".
      resamples: number of times that seeds are drawn with replacement.
      seed: of these draws.

    Returns: `(center, low, high)`, `[R]` each; NaN where no seed has a value yet, and
      all three equal with one seed.

    Raises: ValueError: wrong rank or no seed, unknown `statistic`, `confidence` or
      `resamples` out of range.

    Example:
      >>> center, low, high = interval(np.array([[0.0], [1.0], [2.0], [9.0]]))
      >>> center
      array([1.5])

    References: Agarwal et al. (2021), section 4.3, https://arxiv.org/abs/2108.13264.
    rliable trims whole seeds, so that it agrees only where their number is a multiple
    of four.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape[0] == 0:
        raise ValueError(f"values {values.shape} must be [S, R] with S >= 1")
    if statistic not in ("iqm", "mean"):
        raise ValueError(f"{statistic=} must be 'iqm' or 'mean'")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"{confidence=} must be in (0, 1) and {resamples=} >= 1")
    average = _iqm if statistic == "iqm" else _mean
    values = _carry_forward(values)
    if len(values) == 1:
        return values[0], values[0].copy(), values[0].copy()
    draws = np.random.default_rng(seed).integers(
        len(values), size=(resamples, len(values))
    )
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):  # 0 / 0 without a value; inf - inf
        center = average(values)
        averages = np.stack([average(values[draw]) for draw in draws])
        # A draw of seeds without a value yet says nothing; it counts as the center.
        averages = np.where(np.isnan(averages), center, averages)
        low, high = np.quantile(averages, (tail, 1 - tail), axis=0)
    return center, low, high


def learning_curve(
    runs: Runs,
    path: str | os.PathLike,
    *,
    title: str,
    ylabel: str = "Episode return",
    statistic: str = "iqm",
    below: dict[str, Runs] | None = None,
) -> Path:
    """Draws learning curves with 95 % bands over seeds into a PNG.

    Args:
      runs: by label, `(steps[R], values[S, R])`: environment steps, and a number per
        seed, NaN where there is none. One seed draws no band.
      path: the PNG; folders are made, an old file is replaced at once.
      title: above the picture.
      ylabel: name of the values.
      statistic: "iqm" or "mean", over seeds.
      below: by label of its vertical axis, `runs` of their own to draw under the first
        picture, say a tuned discount's, with labels from above.

    Returns: `path`.

    Raises: ValueError: no runs, shapes that do not fit, unknown `statistic`.

    Example:
      >>> import tempfile
      >>> steps, values = np.arange(3) * 1000, np.array([[1.0, 5.0, 9.0]])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "ppo.png"
      ...     learning_curve({"ppo": (steps, values)}, path, title="PPO").name
      'ppo.png'
    """
    return learning_curves(
        {title: runs},
        path,
        ylabel=ylabel,
        statistic=statistic,
        below={name: {title: under} for name, under in (below or {}).items()},
    )


def learning_curves(
    panels: dict[str, Runs],
    path: str | os.PathLike,
    *,
    ylabel: str = "Episode return",
    statistic: str = "iqm",
    below: dict[str, dict[str, Runs]] | None = None,
) -> Path:
    """Draws learning curves side by side, a panel for each environment, say.

    Args:
      panels: by title, `runs` as for `learning_curve`.
      path: likewise.
      ylabel: likewise.
      statistic: likewise.
      below: likewise, with one of `runs` for each panel, by its title; may be empty.

    Returns: `path`.

    Raises: ValueError: no panels, or as by `learning_curve`.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    if not panels:
        raise ValueError("panels is empty: nothing to draw")
    if len(panels) == 1 and len(below or {}) > _MOST_ROWS:
        return _over_a_grid(
            panels, path, ylabel, statistic=statistic, below=below or {}
        )
    rows = {ylabel: panels} | (below or {})
    colors = {  # of a label the same in every row
        title: dict(zip(runs, itertools.cycle(COLORS), strict=False))
        for title, runs in panels.items()
    }
    width, height = (7.5, 4.5) if len(panels) == 1 else (4.4 * len(panels), 3.8)
    size = (width, height + 0.6 * height * (len(rows) - 1))
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    every = figure.subplots(
        len(rows),
        len(panels),
        squeeze=False,
        sharex="col",
        height_ratios=[1.0] + [0.6] * (len(rows) - 1),
    )
    for i, (name, row) in enumerate(rows.items()):
        for j, (title, runs) in enumerate(row.items()):
            axes = every[i][j]
            if i and not runs:
                axes.set_axis_off()
                continue
            note = _draw(axes, runs, statistic=statistic, colors=colors[title])
            first_row, first_column = i == 0, j == 0
            _decorate(
                axes,
                title=title if first_row else "",
                note=note if first_row else "",
                ylabel=name if first_column else "",
            )
            if i + 1 < len(rows):
                axes.set_xlabel("")
            beside = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
            place = beside if len(panels) == 1 else {"loc": "best", "fontsize": 8.5}
            if len(runs) > 1 and i == 0:
                axes.legend(frameon=False, **place)
    figure.align_ylabels()
    return write_figure(figure, Path(path))


def _over_a_grid(
    panels: dict[str, Runs],
    path: str | os.PathLike,
    ylabel: str,
    *,
    statistic: str,
    below: dict[str, dict[str, Runs]],
) -> Path:
    """Draws one panel over a grid of small ones, each with its name for a title."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    ((title, runs),) = panels.items()
    colors = dict(zip(runs, itertools.cycle(COLORS), strict=False))
    rows = -(-len(below) // _COLUMNS)
    figure = Figure(figsize=(9.0, 4.0 + 1.9 * rows), dpi=160, layout="constrained")
    grid = figure.add_gridspec(1 + rows, _COLUMNS, height_ratios=[4.0] + [1.9] * rows)
    axes = figure.add_subplot(grid[0, :])
    note = _draw(axes, runs, statistic=statistic, colors=colors)
    _decorate(axes, title=title, note=note, ylabel=ylabel)
    if len(runs) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    for i, (name, row) in enumerate(below.items()):
        small = figure.add_subplot(grid[1 + i // _COLUMNS, i % _COLUMNS])
        found = row.get(title, {})
        if not found:
            small.set_axis_off()
            continue
        _draw(small, found, statistic=statistic, colors=colors)
        _decorate(small, title="", note="", ylabel="")
        small.set_title(name, loc="left", fontsize=9.5)
        small.tick_params(labelsize=8)
        small.set_xlabel("")
        if _spans_decades(found):
            small.set_yscale("log")
    return write_figure(figure, Path(path))


def _spans_decades(runs: Runs) -> bool:
    values = np.concatenate([np.ravel(values) for _, values in runs.values()])
    values = values[~np.isnan(values)]
    return values.size > 0 and 0 < 20 * values.min() < values.max()


def _draw(axes: "Axes", runs: Runs, *, statistic: str, colors: dict[str, str]) -> str:
    """Draws lines and bands; returns their meaning in words."""
    if not runs:
        raise ValueError("runs is empty: nothing to draw")
    note = ""
    for label, (steps, values) in runs.items():
        steps, values = np.asarray(steps), np.asarray(values)
        if values.ndim != 2 or steps.shape != values.shape[1:]:
            shapes = f"steps {steps.shape}, values {values.shape}"
            raise ValueError(f"{label}: {shapes}, must be [R], [S, R]")
        center, low, high = interval(values, statistic=statistic)
        color, seeds = colors[label], len(values)
        name = f"{label} ({seeds} seed{'s' * (seeds > 1)})"
        marker = "o" if len(steps) == 1 else None
        axes.plot(steps, center, color=color, lw=1.8, label=name, marker=marker)
        if seeds > 1:
            axes.fill_between(steps, low, high, color=color, alpha=0.18, lw=0)
            what = "Interquartile mean" if statistic == "iqm" else "Mean"
            over = f"{seeds} seeds" if len(runs) == 1 else "seeds"
            note = f"{what} over {over}, 95 % bootstrap interval"
    return note


def _decorate(axes: "Axes", *, title: str, note: str, ylabel: str) -> None:
    """Adds titles, axes, grid and legend."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set_title(
        title, loc="left", fontsize=13, fontweight="bold", pad=20 if note else 8
    )
    axes.annotate(
        note,
        (0, 1),
        xytext=(0, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=8.5,
        color="0.4",
    )
    axes.set_xlabel("Environment steps")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 0, 200k, 1M
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.set_xlim(left=min(0, axes.dataLim.x0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3, color="0.6")


def write_figure(figure: "Figure", path: Path) -> Path:
    """Writes a PNG beside `path`, then renames: no one sees half a picture.

    Args:
      figure: of matplotlib.
      path: the PNG; folders are made, an old file is replaced at once.

    Returns: `path`.

    Example:
      >>> import tempfile
      >>> from matplotlib.figure import Figure
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_figure(Figure(), Path(folder) / "empty.png").name
      'empty.png'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _carry_forward(values: np.ndarray) -> np.ndarray:
    """Every NaN of `[S, R]` becomes the last number before it in its seed, if any."""
    columns = np.where(np.isnan(values), 0, np.arange(values.shape[1]))
    last = np.maximum.accumulate(columns, axis=1)
    return np.take_along_axis(values, last, axis=1)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the seeds that have a value: `[S, R]` to `[R]`."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)


def _iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the seeds that have a value: `[S, R]` to `[R]`."""
    ordered = np.sort(values, axis=0)  # NaN last
    count = (~np.isnan(values)).sum(axis=0)
    rank = np.arange(len(values))[:, None]  # the k-th smallest fills [k, k + 1]
    weight = np.minimum(rank + 1, 0.75 * count) - np.maximum(rank, 0.25 * count)
    weight = np.maximum(weight, 0.0)
    total = np.where(weight > 0, weight * ordered, 0.0).sum(axis=0)
    return total / (0.5 * count)
