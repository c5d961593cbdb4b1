"""The CSV of a sweep: a row per run, written whole, read back by the same sweep."""

import csv
import io
from pathlib import Path

import numpy as np

from rljax.commands import folders
from rljax.commands.sweeps.groups import Place, Result, Results, Sweep
from rljax.commands.sweeps.space import written

FIRST = "configuration"  # column that begins every such file
IDENTITY = "sweep"  # column that tells the sweep, by a number


def columns(sweep: Sweep) -> list[str]:
    """Name the columns, in order."""
    return [FIRST, *sweep.names, "seed", "return", "steps", "status", IDENTITY]


def write(path: Path, sweep: Sweep, results: Results, order: list[Place]) -> None:
    """Write the results of runs, in some order."""
    text, identity = io.StringIO(), sweep.identity()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns(sweep))
    for place in order:
        found, values = results[place], sweep.rows[place.configuration]
        cells = [sweep.run.seed + place.seed, found.score, found.steps, found.status]
        writer.writerow([place.configuration, *map(written, values), *cells, identity])
    folders.write_text(path, text.getvalue())


def read(path: Path, sweep: Sweep) -> Results:
    """Read the results that were written; none where there is no file.

    Raises:
      ValueError: they are of another sweep, or damaged.
    """
    if not path.exists() or not path.stat().st_size:
        return {}
    names, *rows = list(csv.reader(path.read_text().splitlines()))
    identity = str(sweep.identity())
    if names != columns(sweep) or any(row[-1:] != [identity] for row in rows):
        raise ValueError(f"{path}: holds another sweep; choose another --out")
    found: Results = {}
    try:
        for configuration, *_, seed, score, steps, status, _ in rows:
            place = Place(int(configuration), int(seed) - sweep.run.seed)
            found[place] = Result(np.float32(score), int(steps), status)
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    return found
