"""Compare runs in one picture: `python scripts/plot.py runs/A runs/B`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import common
import tyro

from rljax.logging import read_csv
from rljax.plotting import learning_curve


@dataclasses.dataclass(frozen=True)
class Options:
    """Draw the learning curves of runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders"""
    out: Path = Path("curves.png")
    """the picture"""
    statistic: Literal["iqm", "mean"] = "iqm"
    """over seeds"""


@common.one_line_errors
def main() -> None:
    """Read metrics, draw."""
    options = common.parse(Options, sys.argv[1:], __doc__ or "", "plot.py")
    if not options.runs:
        raise ValueError("name at least one run folder")
    curves, names = {}, set()
    for folder in options.runs:
        run = common.read_run(folder)
        if not (folder / common.METRICS_FILE).exists():
            raise ValueError(f"{folder}: no {common.METRICS_FILE} yet")
        curves[folder.name] = common.curve(read_csv(folder / common.METRICS_FILE))
        names.add(run.env)
    title = ", ".join(sorted(names))
    learning_curve(curves, options.out, title=title, statistic=options.statistic)
    print(f"picture: {options.out}")


if __name__ == "__main__":
    main()
