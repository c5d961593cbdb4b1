"""The table of two trees of rljax: every figure of one over that of the other."""

import statistics
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from . import report


class Figure(NamedTuple):
    """One number that was measured of one tree."""

    work: str
    name: str  # with the unit
    library: str  # rljax, or rljax@HASH for the other tree
    turn: Hashable  # the same for the two numbers that make a pair
    value: float | None  # None where the measurement failed
    note: str


HEADER = ("work", "figure", "this tree", "revision", "ratio (min-max)", "notes")


def pairs(figures: Sequence[Figure]) -> list[tuple[float, float]]:
    """Returns the numbers of this tree and the revision, of turns that both finished.

    Args:
      figures: of one work and name.
    """
    sides: tuple[dict[Hashable, float], dict[Hashable, float]] = ({}, {})
    for figure in figures:
        if figure.value:
            sides["@" in figure.library][figure.turn] = figure.value
    this, other = sides
    return [(value, other[turn]) for turn, value in this.items() if turn in other]


def table_line(figures: Sequence[Figure]) -> list[str]:
    """Returns the cells of one work and name; medians are those of the pairs."""
    both = pairs(figures)
    this, other = zip(*both, strict=True) if both else ((), ())
    failed = [f"{f.library}: {f.note}" for f in figures if f.note]
    return [
        figures[0].work,
        figures[0].name,
        _median(this),
        _median(other),
        report.ratio_text([a / b for a, b in both]),
        "; ".join(dict.fromkeys(failed)),
    ]


def format_table(figures: Sequence[Figure]) -> str:
    """Returns the table of all works, this tree over the revision, columns aligned."""
    groups: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure.work, figure.name), []).append(figure)
    lines = [HEADER, *(table_line(group) for group in groups.values())]
    return report.align(lines, left=(0, 1, len(HEADER) - 1))


def _median(values: Sequence[float]) -> str:
    """Returns the text of a median, or a dash for no values."""
    if not values:
        return "-"
    median = statistics.median(values)
    return f"{median:,.0f}" if median >= 1000 else f"{median:.4g}"
