"""The suite `autodiff`: what rljax.autodiff costs, in ordinary gradients."""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import report


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two functions, by their names in autodiff_worker.py."""

    what: str
    against: str
    bar: str = ""  # for the ratio of `what` to `against`; empty: none


@dataclasses.dataclass(frozen=True)
class Work:
    """Functions of one network and batch; the whole of it is a worker's job."""

    name: str
    text: str
    comparisons: tuple[Comparison, ...]
    unit: str = "ms"  # of a call, or "MB" of temporary memory
    obs_shape: tuple[int, ...] = (400,)
    hidden_sizes: tuple[int, ...] = (256, 256)
    batch: int = 256
    rounds: int = 15  # samples of each function
    sample_s: float = 0.05  # see protocol.alternate

    def __str__(self) -> str:
        """The line of --list."""
        pairs = ", ".join(f"{c.what} / {c.against}" for c in self.comparisons)
        return f"{self.name:18} {self.text} ({pairs})"


WORKS = (
    Work(
        "norms-mlp",
        "norms of transitions' gradients, 400-256-256-6 MLP, batch of 256",
        (
            Comparison("norms", "grad", "<= 0.7"),
            Comparison("norms vmap", "norms", ">= 15"),
        ),
    ),
    Work(
        "value-and-grad-mlp",
        "losses, mean gradient and norms in one pass, the same MLP and batch",
        (
            Comparison("value_and_grad_with_norms", "value_and_grad", "<= 1.3"),
            Comparison(
                "value_and_grad_with_norms weighted",
                "value_and_grad weighted",
                "<= 1.3",
            ),
        ),
    ),
    Work(
        "norms-minatar",
        "norms of transitions' gradients, MinAtar's network, batch of 256",
        (Comparison("norms", "grad", "<= 1.6"),),
        obs_shape=(10, 10, 4),
        hidden_sizes=(128,),
    ),
    Work(
        "memory-mlp",
        "temporary memory on the MLP, batch of 1024",
        (
            Comparison("norms", "grad", "<= 2"),
            Comparison("value_and_grad_with_norms", "grad", "<= 2"),
        ),
        unit="MB",
        batch=1024,
    ),
    Work(
        "hvp",
        "Hessian times vector, the MLP and batch of norms-mlp",
        (Comparison("hvp", "grad", "<= 2.5"),),
    ),
    Work(
        "natural-gradient",
        "ten conjugate gradients of a quarter of the states' Fisher matrix, the same",
        (Comparison("natural_gradient", "grad", "<= 12"),),
    ),
    Work(
        "curvature",
        "Gauss-Newton and Fisher matrix times vector, the same",
        (Comparison("gauss_newton_vp", "grad"), Comparison("fisher_vp", "grad")),
    ),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: one line of the CSV. Numbers are None where it failed."""

    suite: str
    work: str
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
        return f"{self.work} #{self.repeat}: {self.what} / {self.against}: {found}"


def make_rows(work: Work, repeat: int, result: dict[str, Any]) -> list[Row]:
    """Returns the result of a worker as rows, one per comparison."""
    found = result.get("measurements", [{}] * len(work.comparisons))
    return [
        Row(
            suite="autodiff",
            work=work.name,
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
    works: Sequence[Work],
    repeats: int,
    measure: Callable[[dict[str, Any]], dict[str, Any]],
) -> Iterator[Row]:
    """Yields the rows of all works.

    Args:
      works: what to do.
      repeats: processes for each work.
      measure: `job -> result` of one worker. A work that fails or hangs is not
        repeated.
    """
    for work in works:
        for repeat in range(repeats):
            result = measure(dataclasses.asdict(work) | {"seed": repeat})
            rows = make_rows(work, repeat, result)
            yield from rows
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
