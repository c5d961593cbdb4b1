"""Reports of measurements: the machine, tables, CSV files."""

import csv
import dataclasses
import datetime
import itertools
import os
import pathlib
import platform
import statistics
from collections.abc import Iterator, Sequence
from typing import Any


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host() -> str:
    """Returns the processor and how many cores this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {cores()} cores"


def circumstances(result: dict[str, Any]) -> dict[str, str]:
    """Returns the cells that every row ends with, from the result of a worker."""
    device = result.get("device", "cpu")
    return {
        "note": result.get("note", ""),
        "versions": result.get("versions", ""),
        "machine": host() if device == "cpu" else f"{host()}, {device}",
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


def ratio_text(values: Sequence[float]) -> str:
    """Returns "median (minimum-maximum)"."""
    if not values:
        return "-"
    low, middle, high = spread(values)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def align(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Returns a table: columns `left` hold words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_csv(path: pathlib.Path, row_type: Any, rows: Iterator[Any]) -> list[Any]:
    """Writes rows as they come, so that a run broken off keeps what it has.

    An older file stays until the first row is there.
    """
    first = next(rows, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(row_type)])
        writer.writeheader()
        for row in itertools.chain([first] if first else [], rows):
            writer.writerow(dataclasses.asdict(row))
            file.flush()
            print(row, flush=True)
            written.append(row)
    return written
