"""Compare runs in one picture: `rljax plot runs/A runs/B`.

Curves are of evaluations where all runs have some, else of training episodes.

What any of them has tuned is below, with the values of those that keep it fixed.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from rljax.commands import common, evaluations, folders
from rljax.running.plotting import learning_curves


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw the learning curves of runs, a panel for each environment."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders"""
    out: Path = Path("curves.png")
    """the picture"""
    labels: tuple[str, ...] = ()
    """a name for each run, unless its folder's"""
    statistic: Literal["iqm", "mean"] = "iqm"
    """over seeds"""


def values_of(
    name: str, runs: dict[str, common.Run], tables: dict[str, Any]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Curves of a config's float, tuned or fixed; none of a run that has no such."""
    curves = {}
    for label, run in runs.items():
        table, fixed = tables[label], getattr(run.config, name, None)
        if name in run.tuned():
            curves[label] = common.curve(table, f"meta_{name}")
        elif fixed is not None:
            steps, _ = common.curve(table, "step")
            curves[label] = steps, np.full((1, len(steps)), fixed)
    return curves


def scores(
    evaluated: dict[str, dict[str, Any]], tables: dict[str, dict[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """The label of the curves, and the curves by environment and run."""
    if all(table for others in evaluated.values() for table in others.values()):
        label, metric, drawn = "Evaluation return", "mean_return", evaluated
    else:
        drawn = tables
        every = [table for others in tables.values() for table in others.values()]
        label, metric = common.score(*every)
    return label, {
        env: {name: common.curve(table, metric) for name, table in others.items()}
        for env, others in drawn.items()
    }


def main(argv: list[str], prog: str) -> None:
    """Read metrics, draw."""
    options = common.parse(Options, argv, __doc__ or "", prog)
    if not options.runs:
        raise ValueError("name at least one run folder")
    labels = options.labels or tuple(folder.name for folder in options.runs)
    if len(labels) != len(options.runs):
        given = f"{len(labels)} for {len(options.runs)} runs"
        raise ValueError(f"labels: {given}, must be as many")
    folders.check_output(options.out, b"\x89PNG")
    tables: dict[str, dict[str, Any]] = {}  # by environment and label
    evaluated: dict[str, dict[str, Any]] = {}  # likewise
    runs: dict[str, dict[str, common.Run]] = {}  # likewise
    for folder, label in zip(options.runs, labels, strict=True):
        run = common.read_run(folder)
        others = tables.setdefault(run.env, {})
        if label in others:
            raise ValueError(f"labels: {label!r} stands for two runs of {run.env}")
        others[label] = common.read_metrics(folder, run)
        evaluated.setdefault(run.env, {})[label] = evaluations.read(folder, run)
        runs.setdefault(run.env, {})[label] = run
    ylabel, panels = scores(evaluated, tables)
    names = [
        name for of in runs.values() for run in of.values() for name in run.tuned()
    ]
    below = {
        name: {env: values_of(name, of, tables[env]) for env, of in runs.items()}
        for name in dict.fromkeys(names)
    }
    titles = {env: common.short(env) for env in panels}
    if len({*titles.values()}) == len(titles):
        panels = {titles[env]: curves for env, curves in panels.items()}
        below = {
            name: {titles[env]: curves for env, curves in of.items()}
            for name, of in below.items()
        }
    kinds = {"ylabel": ylabel, "statistic": options.statistic}
    learning_curves(panels, options.out, below=below, **kinds)
    print(f"picture: {options.out}")
