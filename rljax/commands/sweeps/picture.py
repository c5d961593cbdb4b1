"""The score against each varied field, as a PNG."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rljax.commands.sweeps import ranking
from rljax.commands.sweeps.groups import Results, Sweep
from rljax.commands.sweeps.space import written
from rljax.running import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3  # panels side by side
_DECADES = 20  # ratio of numbers from which on they stand on a log scale


def draw(path: Path, sweep: Sweep, results: Results) -> None:
    """Draw a panel for each varied field, a point for each configuration.

    Args:
      path: of the PNG, replaced at once.
      sweep: the sweep.
      results: of its runs.
    """
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    found = ranking.means(sweep, results, range(sweep.run.seeds))
    columns = min(_COLUMNS, len(sweep.names))
    rows = -(-len(sweep.names) // columns)
    size = (4.2 * columns + 0.6, 3.4 * rows)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    every = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes in every[len(sweep.names) :]:
        axes.set_axis_off()
    for i, (axes, name) in enumerate(zip(every, sweep.names, strict=False)):
        values = [sweep.rows[c][i] for c in found]
        places = _places(axes, values)
        center = np.array([mean.mean for mean in found.values()])
        low = np.array([mean.low for mean in found.values()])
        half = np.nan_to_num(center - low)  # no line where there is no interval
        axes.errorbar(places, center, yerr=half, fmt="o", ms=4, lw=0.8, alpha=0.7)
        axes.set_xlabel(name)
        axes.grid(color="0.9", lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    every[0].set_ylabel("Mean return, 95 % interval")
    plotting.write_figure(figure, path)


def _places(axes: "Axes", values: list) -> list[float]:
    """Where values stand: numbers at their own, others one beside the other."""
    if all(type(value) in (int, float) for value in values):
        if 0 < _DECADES * min(values) < max(values):
            axes.set_xscale("log")
        return values
    names = list(dict.fromkeys(map(written, values)))
    axes.set_xticks(range(len(names)), names)
    axes.margins(x=0.2)
    return [float(names.index(written(value))) for value in values]
