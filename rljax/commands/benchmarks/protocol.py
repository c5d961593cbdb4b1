"""The talk of benchmark.py and its workers: one JSON job in, one JSON line out.

A worker is a fresh process that measures one library once. It gets its job as the
only argument and prints its result as the last line of its standard output. This
file imports the standard library only, so that a worker imports just what it measures.
"""

import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

Job = dict[str, Any]  # see `job` in ../benchmark.py, and autodiff.Work
Result = dict[str, Any]  # see `result`, and `run` in autodiff_worker.py

WITH_RESULTS = "MB with results"  # the unit of memory that counts what is returned
EXCHANGES, BYTES = "exchanges", "kB exchanged"  # units, between devices


def run_worker(
    python: str | pathlib.Path,
    script: pathlib.Path,
    job: Job,
    timeout: float,
    *,
    environ: Mapping[str, str] | None = None,
) -> Result:
    """Runs one worker to its end.

    Args:
      python: the interpreter.
      script: the worker.
      job: what it is asked to do.
      timeout: seconds after which it counts as hung and is killed.
      environ: environment variables, beside those of this process.

    Returns: the result of the worker, or only a `note` that says what went wrong.
    """
    hidden = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    variables = {k: v for k, v in os.environ.items() if k not in hidden}
    variables["JAX_TRACEBACK_FILTERING"] = "off"  # its note would be the last line
    variables |= environ or {}
    argument = json.dumps(job | {"start": time.time()})
    try:
        done = subprocess.run(
            [str(python), str(script), argument],
            capture_output=True,
            text=True,
            timeout=timeout,  # kills this process and no other
            env=variables,
        )
    except subprocess.TimeoutExpired:
        return {"note": f"hang: no result after {timeout:g} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"note": f"failed: exit status {done.returncode}: {last}"}
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"note": f"failed: no result in {done.stdout[-200:]!r}"}


def read_job() -> Job:
    """Returns the job this process was started with."""
    return json.loads(sys.argv[1])


def measure(
    run: Callable[[], int], executions: int = 3, budget_s: float = 8.0
) -> tuple[list[float], int]:
    """Calls `run() -> environment steps` up to `executions` times.

    Stops early once `budget_s` is spent: a long execution needs no repetition.

    Returns: seconds of each execution, the steps of one.
    """
    seconds: list[float] = []
    steps = 0
    while len(seconds) < executions and sum(seconds) < budget_s:
        begin = time.perf_counter()
        steps = run()
        seconds.append(time.perf_counter() - begin)
    return seconds, steps


def alternate(
    what: Callable[[], Any], against: Callable[[], Any], rounds: int, sample_s: float
) -> list[tuple[float, float]]:
    """Times two functions in turns, A B A B: a machine that drifts slows both.

    Both are called before that, to compile and to learn how long a call takes.

    Args:
      what: one function; it returns when its work is done.
      against: the other.
      rounds: samples of each.
      sample_s: seconds that a sample takes about, or longer: it is 3 calls or more.

    Returns: seconds per call of `what` and `against`, for each round.
    """

    def seconds(function: Callable[[], Any], calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - begin) / calls

    both = []
    for function in (what, against):
        function()
        calls = max(3, math.ceil(sample_s / seconds(function, 3)))
        both.append((function, calls))
    first, second = both
    return [(seconds(*first), seconds(*second)) for _ in range(rounds)]


def versions(*packages: str) -> str:
    """Returns the versions of packages, as a row holds them."""

    def version(package: str) -> str:
        if package != "rljax":
            return metadata.version(package)
        import rljax  # its distribution has another name, and in revisions before this

        return rljax.__version__

    return ", ".join(f"{package} {version(package)}" for package in packages)


def result(
    job: Job,
    *,
    imported: float,
    compile_s: float,
    ready: float,
    seconds: list[float],
    steps: int,
    device: str,
    packages: tuple[str, ...],
) -> Result:
    """Makes the result of a worker.

    Args:
      job: what was asked for; `job["start"]` is when the parent started this process.
      imported: `time.time()` when the imports were done.
      compile_s: seconds spent compiling.
      ready: `time.time()` when the first timed execution began.
      seconds: what each execution took.
      steps: environment steps of one execution, over all seeds.
      device: "cpu" or the name of the accelerator.
      packages: distributions whose versions are recorded.

    Returns: a dictionary for `print_result`. Where fewer steps were run than the work
      has, the cold start is extrapolated at the steady rate, and says so.
    """
    rate = steps / statistics.median(seconds)
    missing = job["full_steps"] - steps
    extrapolated = missing > 0.01 * job["full_steps"]
    cold_start = ready - job["start"] + seconds[0]
    if extrapolated:
        cold_start += missing / rate
    return {
        "steps": steps,
        "executions": len(seconds),
        "steps_per_s": rate,
        "best_steps_per_s": steps / min(seconds),
        "import_s": imported - job["start"],
        "compile_s": compile_s,
        "cold_start_s": cold_start,
        "note": "cold start extrapolated" if extrapolated else "",
        "versions": versions(*packages),
        "device": device,
    }


def imported_from() -> list[str]:
    """Returns the folders from which modules of rljax were imported."""
    files = [
        getattr(module, "__file__", None) or "built in"
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "rljax"
    ]
    return sorted({str(pathlib.Path(file).parent) for file in files})


def print_result(values: Result) -> None:
    """Prints the line that the parent reads: the last of the standard output."""
    print(json.dumps(values | {"imported_from": imported_from()}), flush=True)
