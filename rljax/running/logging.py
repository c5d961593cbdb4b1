"""Sinks for the numbers of a run: CSV, TensorBoard, Weights & Biases, the terminal.

A row is a flat dict of numbers. A run of several seeds makes one row per step and seed
(columns `step` and `seed`), the rows of a step one after the other. CSV keeps every
row; TensorBoard and Weights & Biases get the mean over the seeds of a step.
"""

import contextlib
import csv
import datetime
import importlib
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

import numpy as np

if TYPE_CHECKING:
    from rich import progress

__all__ = [
    "CsvSink",
    "Progress",
    "Row",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "read_csv",
]

Row = dict[str, float | int]


class Sink(Protocol):
    """Takes rows until it is closed; a context manager."""

    def write(self, row: Row) -> None:
        """Takes one row."""
        ...

    def close(self) -> None:
        """Writes what is left and lets go of the file or run."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class CsvSink(Sink):
    """A CSV file, one line per row, on disk after every write.

    The first row fixes the columns. A later row may lack some (`nan` is written), but
    not bring new ones. NaN and infinities are written as `nan`, `inf`, `-inf`.

    Args:
      path: the file; folders are made.
      resume_step: None starts anew, in place of a file that is there. A number keeps
        the rows of a file that is there up to that `step` and appends to them.

    Raises: ValueError: the file to resume is not such a file (at the start), or a row
      has a new column (in `write`).

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with CsvSink(f"{folder}/log.csv") as sink:
      ...         sink.write({"step": 100, "seed": 0, "loss": 0.5})
      ...     print(Path(folder, "log.csv").read_text())
      step,seed,loss
      100,0,0.5
      <BLANKLINE>
    """

    def __init__(self, path: str | os.PathLike, resume_step: int | None = None):
        self._path = Path(path)
        self._columns: list[str] = []
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None and self._path.exists():
            self._columns = _cut(self._path, resume_step)
        mode = "a" if self._columns else "w"
        self._file = self._path.open(mode, newline="", encoding="utf-8")
        self._csv = csv.writer(self._file, lineterminator="\n")

    def write(self, row: Row) -> None:
        """Appends one row and flushes it."""
        if not self._columns:
            self._columns = list(row)
            self._csv.writerow(self._columns)
        for name in row:
            if name not in self._columns:
                raise ValueError(f"{self._path}: row with a new column {name!r}")
        cells = [_cell(row.get(name, math.nan)) for name in self._columns]
        with _named(self._path):
            self._csv.writerow(cells)
            self._file.flush()

    def sync(self) -> None:
        """Waits until the rows are on the disk, for the case of a power cut."""
        with _named(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        with _named(self._path):
            self._file.close()


class TensorBoardSink(Sink):
    """TensorBoard event files; needs the extra `tensorboard`.

    The rows of one step are averaged (NaN left out) and written when the next step
    begins, or at the end.

    Args:
      folder: where the event files go.
      resume_step: the step a run was resumed from; TensorBoard then hides what an
        earlier event file in `folder` has beyond it.

    Raises: ValueError: tensorboardX is not installed.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int | None = None):
        try:
            import tensorboardX  # pyright: ignore  # noqa: F401
        except ImportError as error:
            raise ValueError(_missing("tensorboardX", "tensorboard")) from error
        from tensorboardX import record_writer, summary  # pyright: ignore

        events: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._path, self._flushed = Path(folder, name), time.monotonic()
        # Not `SummaryWriter`, whose thread dies of a full disk and is waited for.
        self._file = record_writer.RecordWriter(str(self._path))
        self._event, self._scalar = events.Event, summary.scalar
        self._means = _Means(self._emit)
        self._write(file_version="brain.Event:2")
        if resume_step is not None:
            start = events.SessionLog(status=events.SessionLog.START)
            self._write(step=resume_step + 1, session_log=start)

    def write(self, row: Row) -> None:
        """Takes one row; writes the mean of the step before."""
        self._means.add(row)

    def close(self) -> None:
        """Writes the last step and closes the file."""
        try:
            self._means.flush()
        finally:
            with _named(self._path):
                self._file.close()

    def _emit(self, step: int, means: Row) -> None:
        with _muted("tensorboardX"):  # it complains about every NaN
            for name, value in means.items():
                self._write(step=step, summary=self._scalar(name, value))
        if time.monotonic() - self._flushed > 5:
            self._flushed = time.monotonic()
            with _named(self._path):
                self._file.flush()

    def _write(self, **fields: object) -> None:
        event = self._event(wall_time=time.time(), **fields)
        with _named(self._path):
            self._file.write(event.SerializeToString())


class WandbSink(Sink):
    """A Weights & Biases run; needs the extra `wandb`.

    The rows of one step are averaged (NaN left out) and sent when the next step begins,
    or at the end.

    Args:
      project: project to put the run in.
      name: name of the run.
      config: settings to record, as a flat dict.
      folder: where wandb keeps its files.

    Raises: ValueError: wandb is not installed.
    """

    def __init__(
        self,
        project: str,
        name: str,
        config: dict[str, Any],
        *,
        folder: str | os.PathLike,
    ):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError(_missing("wandb", "wandb")) from error
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project, name=name, config=config, dir=str(folder)
        )
        self._means = _Means(lambda step, means: self._run.log(means, step=step))

    def write(self, row: Row) -> None:
        """Takes one row; sends the mean of the step before."""
        self._means.add(row)

    def close(self) -> None:
        """Sends the last step and ends the run."""
        self._means.flush()
        self._run.finish()


class Progress:
    """Shows people how far a run is: a bar on a terminal, plain lines elsewhere.

    Steps per second and the time left count from the first update on, so that the
    compilation before it does not. Elsewhere than on a terminal a line comes after
    another tenth of the run, or another hundredth that took two seconds, and at the
    end.

    Args:
      total_steps: environment steps at the end.
      label: name of the run.
      file: where to show it; stderr if None.

    Example:
      >>> with Progress(1_000_000, "ppo", file=sys.stdout) as progress:
      ...     progress.update(200_000, episode_return=21.5)
      ppo:  20% of 1M steps, return 21.50, - steps/s, - left
    """

    def __init__(self, total_steps: int, label: str, *, file: TextIO | None = None):
        self._total, self._label = total_steps, label
        self._file = file
        self._bar: progress.Progress | None = None
        self._first: tuple[float, int] | None = None  # time and step of first update
        self._shown = (-math.inf, -math.inf)  # time and fraction of the last display
        self._step, self._text, self._unshown = 0, "", False

    def __enter__(self) -> Self:
        self._file = self._file or sys.stderr
        if self._file.isatty():
            self._bar = _bar(self._file, self._total, self._label)
            self._bar.start()
        return self

    def __exit__(self, exception: object, *rest: object) -> None:
        if self._unshown and exception is None:
            self._show(self._step)
        if self._bar is not None:
            self._bar.stop()

    def update(
        self, step: int, episode_return: float = math.nan, reward: float = math.nan
    ) -> None:
        """Shows that `step` environment steps are done.

        Args:
          step: environment steps so far, those before a resume counted.
          episode_return: mean return of late; NaN where no episode has ended.
          reward: mean reward of a step, shown where there is no return.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = (now, step)
        seconds, steps = now - self._first[0], step - self._first[1]
        rate = steps / seconds if steps > 0 and seconds > 0 else math.nan
        left = (self._total - step) / rate
        self._step, self._unshown = step, True
        score = f"return {_number(float(episode_return), '.2f')}"
        if math.isnan(episode_return) and math.isfinite(reward):
            score = f"reward {reward:.3f}"
        self._text = f"{score}, {_short(rate)} steps/s, {_duration(left)} left"
        fraction = step / max(self._total, 1)
        waited, moved = now - self._shown[0], fraction - self._shown[1]
        if self._bar is not None:
            due = waited >= 0.1
        else:
            due = moved >= 0.0999 or (waited >= 2 and moved >= 0.01)
        if due or step >= self._total:
            self._shown = (now, fraction)
            self._show(step)

    def _show(self, step: int) -> None:
        self._unshown = False
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=step, text=self._text, refresh=True)
            return
        done = f"{step / max(self._total, 1):4.0%} of {_short(self._total)} steps"
        print(f"{self._label}: {done}, {self._text}", file=self._file, flush=True)


def read_csv(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a file of `CsvSink`; of a run that still writes, the complete lines.

    Args:
      path: the file.

    Returns: an array `[rows]` per column, int64 where every cell is a whole number,
      else float64.

    Raises: ValueError: not such a file; the line is named.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with CsvSink(f"{folder}/log.csv") as sink:
      ...         sink.write({"step": 100, "loss": float("nan")})
      ...     read_csv(f"{folder}/log.csv")
      {'step': array([100]), 'loss': array([nan])}
    """
    path = Path(path)
    columns, rows = _read_lines(path)
    table = {}
    for i, name in enumerate(columns):
        cells = [row[i] for row in rows]
        try:
            table[name] = np.array([int(cell) for cell in cells], np.int64)
        except ValueError:
            try:
                table[name] = np.array([float(cell) for cell in cells], np.float64)
            except ValueError as error:
                raise ValueError(f"{path}: column {name!r}: {error}") from error
    return table


def _read_lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """Column names and rows; a last line without its end (a kill's) is left out."""
    text = path.read_text(encoding="utf-8")
    lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    if not lines:
        raise ValueError(f"{path}: no columns in line 1")
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            what = f"{len(line)} cells, not {len(lines[0])}"
            raise ValueError(f"{path}: line {number} has {what}")
    return lines[0], lines[1:]


def _cut(path: Path, last_step: int) -> list[str]:
    """Drops the rows after `last_step` from a CSV file; returns its columns."""
    if "\n" not in path.read_text(encoding="utf-8"):
        return []  # killed before the first row
    columns, rows = _read_lines(path)
    if "step" not in columns:
        raise ValueError(f"{path}: cannot resume, no column 'step'")
    at = columns.index("step")
    try:
        kept = [row for row in rows if float(row[at]) <= last_step]
    except ValueError as error:
        raise ValueError(f"{path}: column 'step': {error}") from error
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *kept])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return columns


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Gives errors of an open file its name, which the system leaves out."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


class _Means:
    """Gathers the rows of a step; hands on their mean when the next step begins."""

    def __init__(self, emit: Callable[[int, Row], None]):
        self._emit = emit
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        if self._rows and row["step"] != self._rows[0]["step"]:
            self.flush()
        self._rows.append(row)

    def flush(self) -> None:
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        means: Row = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            if name not in ("step", "seed"):
                values = [float(row[name]) for row in rows if name in row]
                known = [value for value in values if not math.isnan(value)]
                means[name] = sum(known) / len(known) if known else math.nan
        self._emit(int(rows[0]["step"]), means)


@contextlib.contextmanager
def _muted(name: str) -> Iterator[None]:
    """Mutes a library's loggers below errors."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _bar(file: TextIO, total_steps: int, label: str) -> "progress.Progress":
    """Makes a rich progress bar, drawn only when told to."""
    from rich import console, progress

    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[text]}", markup=False),
        console=console.Console(file=file),
        auto_refresh=False,
    )
    bar.add_task(label, total=total_steps, text="compiling")
    return bar


def _missing(package: str, extra: str) -> str:
    return f"{package} is not installed: pip install '.[{extra}]'"


def _cell(value: float | int) -> str:
    """A number as text that reads back as the same number."""
    value = getattr(value, "item", lambda: value)()  # numpy's and jax's scalars
    return str(int(value)) if isinstance(value, int) else repr(float(value))


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _short(value: float) -> str:
    """Three digits and a letter: 950, 52.3k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if 0.9995 * size <= value < math.inf:
            return f"{value / size:.3g}{letter}"
    return _number(value, ".3g")


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-"
    return str(datetime.timedelta(seconds=round(max(seconds, 0))))
