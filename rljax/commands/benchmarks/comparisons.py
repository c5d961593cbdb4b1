"""The suites that compare functions of rljax with each other: their rows and tables."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import paired, report
from .works import RLJAX


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two functions, by their names in the suite's worker."""

    what: str
    against: str
    bar: str = ""  # for the ratio of `what` to `against`; empty: none


def listed(work: Any) -> str:
    """Returns the line of --list for a work of the suite `autodiff` or `meta`."""
    pairs = ", ".join(f"{c.what} / {c.against}" for c in work.comparisons)
    return f"{work.name:18} {work.text} ({pairs})"


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: one line of the CSV. Numbers are None where it failed."""

    suite: str
    work: str
    library: str  # rljax, or rljax@HASH for another revision
    what: str
    against: str
    repeat: int
    ratio: float | None  # median over the process's rounds
    what_value: float | None
    against_value: float | None
    unit: str
    bar: str
    note: str
    versions: str
    machine: str
    date: str

    @property
    def failed(self) -> bool:
        """There is no number."""
        return self.ratio is None

    def __str__(self) -> str:
        """The line that tells of progress."""
        found = self.note if self.ratio is None else f"{self.ratio:.3f}"
        compared = f"{self.what} / {self.against}"
        return f"{self.work} {self.library} #{self.repeat}: {compared}: {found}"

    @property
    def figures(self) -> tuple[paired.Figure, ...]:
        """Both absolute numbers, to be paired with those of another tree."""
        sides = ((self.what, self.what_value), (self.against, self.against_value))
        return tuple(
            paired.Figure(
                work=self.work,
                name=f"{function} {self.unit}",
                library=self.library,
                turn=(self.repeat, self.what, self.against),
                value=value,
                note=self.note,
            )
            for function, value in sides
        )


def make_rows(
    work: Any, repeat: int, result: dict[str, Any], library: str = RLJAX
) -> list[Row]:
    """Returns the result of a worker as rows, one per comparison."""
    found = result.get("measurements", [{}] * len(work.comparisons))
    return [
        Row(
            suite=work.suite,
            work=work.name,
            library=library,
            what=comparison.what,
            against=comparison.against,
            repeat=repeat,
            ratio=numbers.get("ratio"),
            what_value=numbers.get("what_value"),
            against_value=numbers.get("against_value"),
            unit=work.unit,
            bar=comparison.bar,
            **report.circumstances(result),
        )
        for comparison, numbers in zip(work.comparisons, found, strict=True)
    ]


def measure_all(
    works: Sequence[Any],
    repeats: int,
    measure: Callable[[dict[str, Any], str], dict[str, Any]],
    libraries: Sequence[str] = (RLJAX,),
) -> Iterator[Row]:
    """Yields the rows of all works, the libraries taking turns.

    Args:
      works: of the suite `autodiff` or `meta`.
      repeats: processes for each work and library.
      measure: `(job, library) -> result` of one worker. A work that fails or hangs is
        not repeated.
      libraries: rljax, and rljax@HASH for another revision.
    """
    for work in works:
        for repeat in range(repeats):
            job = dataclasses.asdict(work) | {"seed": repeat}
            rows = []
            for library in libraries:
                new = make_rows(work, repeat, measure(job, library), library)
                yield from new
                rows += new
            if any(row.failed for row in rows):
                break


HEADER = (
    "work",
    "what / against",
    "ratio (min-max)",
    "bar",
    "what",
    "against",
    "unit",
    "notes",
)


def table_line(rows: Sequence[Row]) -> list[str]:
    """Returns the cells of one comparison, from its repeats."""
    first = rows[0]
    ratios, *sides = (
        [row.ratio for row in rows if row.ratio is not None],
        [row.what_value for row in rows if row.what_value is not None],
        [row.against_value for row in rows if row.against_value is not None],
    )
    return [
        first.work,
        f"{first.what} / {first.against}",
        report.ratio_text(ratios),
        first.bar,
        *(f"{statistics.median(side):.2f}" if side else "-" for side in sides),
        first.unit,
        "; ".join(dict.fromkeys(row.note for row in rows if row.note)),
    ]


def format_table(rows: Sequence[Row]) -> str:
    """Returns the table of all comparisons, columns aligned."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.work, row.what, row.against), []).append(row)
    lines = [HEADER, *(table_line(group) for group in groups.values())]
    return report.align(lines, left=(0, 1, 6, 7))
