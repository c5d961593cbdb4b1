"""References: scores of random actions and the best known, to normalise by.

The package's own are in `references.csv`, each with its source.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rljax.statistics.aggregates import check_scores

OWN = Path(__file__).with_name("references.csv")


class Reference(NamedTuple):
    """Scores of a task that become 0 and 1."""

    random: float  # mean return of random actions
    best: float  # the highest mean return there is, or that is known


def read_references(path: str | Path | None = None) -> dict[str, Reference]:
    """Read a table of references, by task.

    Args:
      path: a CSV file with the columns `task`, `random` and `best`; others are let
        alone. The package's own table unless given.

    Returns:
      A reference per task.

    Raises:
      ValueError: a column that is missing, a task that is there twice, a number that is
        none, or random and best that are equal; the line is named.

    Example:
      >>> read_references()["CartPole-v1"]
      Reference(random=22.24, best=500.0)
    """
    path = OWN if path is None else Path(path)
    found: dict[str, Reference] = {}
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        for name in ("task", *Reference._fields):
            if name not in (table.fieldnames or ()):
                raise ValueError(f"{path}: no column {name!r}")
        for row in table:
            place = f"{path}: line {table.line_num}"
            if row["task"] in found:
                raise ValueError(f"{place}: {row['task']!r} is there twice")
            found[row["task"]] = _reference(row, place)
    return found


def _reference(row: Mapping[str, str | None], place: str) -> Reference:
    numbers = {}
    for name in Reference._fields:
        try:
            numbers[name] = float(row[name] or "")
        except ValueError:
            numbers[name] = math.nan
        if not math.isfinite(numbers[name]):
            raise ValueError(f"{place}: {name}={row[name]!r}: must be a finite number")
    if numbers["random"] == numbers["best"]:
        raise ValueError(f"{place}: random and best are equal, must differ")
    return Reference(**numbers)


def normalise(scores: ArrayLike, references: Sequence[Reference]) -> np.ndarray:
    """Scores so that random actions have 0 and the best known 1, task by task.

    .. math:: (score - random) / (best - random)

    Args:
      scores: `[..., runs, tasks]`.
      references: one per task.

    Returns:
      `[..., runs, tasks]`; beyond 0 and 1 where a run is worse than random actions, or
      better than the best known.

    Raises:
      ValueError: another number of references than of tasks; as by `check_scores`.

    Example:
      >>> normalise([[10.0, 5.0]], [Reference(0, 20), Reference(1, 5)])
      array([[0.5, 1. ]])
    """
    scores = check_scores(scores)
    if len(references) != scores.shape[-1]:
        given = f"{len(references)} references for {scores.shape[-1]} tasks"
        raise ValueError(f"{given}: must be as many")
    random = np.array([reference.random for reference in references], np.float64)
    best = np.array([reference.best for reference in references], np.float64)
    return (scores - random) / (best - random)
