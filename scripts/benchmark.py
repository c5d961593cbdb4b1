"""Measure rljax beside its peers: same work, same hyperparameters, one call.

    python scripts/benchmark.py --suite speed
    python scripts/benchmark.py --only ppo-4 dqn-10k --repeats 3
    python scripts/benchmark.py --no-peers

Every measurement is a fresh process (`benchmarks/*_worker.py`). The libraries take
turns, A B A B, so that a machine that drifts slows both; ratios are taken pair by
pair. The peers live in a virtual environment of their own, built on first use.
"""

import csv
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKERS = pathlib.Path(__file__).resolve().parent / "benchmarks"
RLJAX = "rljax"
REQUIREMENTS = (  # what the peers' environment holds, beside jax and torch
    "rejax==0.1.3",
    "gymnax==0.0.9",
    "stable-baselines3==2.9.2",
    "gymnasium",
)

PPO = {
    "rollout_length": 128,
    "num_epochs": 4,
    "num_minibatches": 4,
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "lambda_": 0.95,
    "clip_epsilon": 0.2,
    "entropy_cost": 0.01,
    "value_cost": 0.5,
    "max_grad_norm": 0.5,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
    "anneal": False,
    "clip_value": True,
    "normalize_advantages": True,
}
DQN = {  # one update per iteration of 10 environment steps
    "num_envs": 10,
    "rollout_length": 1,
    "batch_size": 128,
    "warmup_steps": 1000,
    "target_period": 50,  # gradient steps
    "double": True,  # of rljax and rejax; Stable-Baselines3 has no such thing
    "epsilon_start": 1.0,
    "epsilon_end": 0.05,
    "exploration_fraction": 0.5,
    "learning_rate": 2.5e-4,
    "gamma": 0.99,
    "max_grad_norm": 10.0,
    "hidden_sizes": (64, 64),
    "activation": "relu",
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing to do, the same for every library."""

    name: str
    text: str
    agent: str
    steps: int  # of the environment, per seed; a multiple of one rollout
    hyper: dict[str, Any]  # rljax's names
    seeds: int = 1
    peers: tuple[str, ...] = ("rejax",)
    short: dict[str, int] = dataclasses.field(default_factory=dict)  # fewer steps for


SPEED = (
    Work(
        "ppo-4",
        "ppo, 4 envs, 500k steps; its cold start is the suite's cold-start figure",
        "ppo",
        977 * 4 * 128,
        PPO | {"num_envs": 4},
        peers=("rejax", "sb3"),
        short={"sb3": 10 * 4 * 128},
    ),
    Work(
        "ppo-64",
        "ppo, 64 envs, 2M steps",
        "ppo",
        245 * 64 * 128,
        PPO | {"num_envs": 64},
    ),
    Work(
        "ppo-4x16",
        "ppo, 4 envs, 16 seeds at once, 100k steps each",
        "ppo",
        196 * 4 * 128,
        PPO | {"num_envs": 4},
        seeds=16,
    ),
    Work(
        "dqn-10k",
        "dqn, 10 envs, batch 128, buffer of 10k, 100k steps",
        "dqn",
        100_000,
        DQN | {"capacity": 10_000},
        peers=("rejax", "sb3"),
        short={"sb3": 4_000},
    ),
    Work(
        "dqn-100k",
        "the same with a buffer of 100k (rejax: 20k steps, it is slow there)",
        "dqn",
        100_000,
        DQN | {"capacity": 100_000, "warmup_steps": 200},
        short={"rejax": 20_000},
    ),
)
SUITES = {"speed": SPEED}


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure rljax beside its peers, one table and one CSV per call."""

    suite: Literal["speed"] = "speed"
    """What to measure."""
    only: tuple[str, ...] = ()
    """Names of works, as in --list; all of them unless given."""
    repeats: int = 5
    """Measurements of each library on each work."""
    out: pathlib.Path = pathlib.Path("runs/benchmark/speed.csv")
    """One row per measurement; an older file of that name is replaced."""
    peers: bool = True
    """Measure the peers too."""
    list_works: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Print the works of the suite and stop."""
    timeout: float = 180.0
    """Seconds after which a process counts as hung and is killed."""
    peers_env: pathlib.Path = ROOT / ".bench" / "peers"
    """The peers' virtual environment, built if missing or of other versions."""
    peers_python: pathlib.Path | None = None
    """A Python that has the peers already, instead of --peers-env."""
    torch_spec: str = "torch==2.13.0"
    """What pip installs as torch. Stable-Baselines3 is measured on the CPU."""
    jax_spec: str = "jax==0.10.2"
    """What pip installs as the peers' jax; on a GPU host "jax[cuda12]==0.10.2"."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: one line of the CSV. Numbers are None where it failed."""

    suite: str
    work: str
    library: str
    repeat: int
    steps_per_s: float | None  # median of the process's executions
    compile_s: float | None
    cold_start_s: float | None  # process start to the end of the first full result
    best_steps_per_s: float | None
    import_s: float | None
    steps: int | None  # of one execution, all seeds
    executions: int | None
    note: str
    versions: str
    machine: str
    date: str


# ---- the peers' environment ----------------------------------------------------------


def peers_python(args: Args) -> pathlib.Path:
    """Returns the peers' interpreter; builds its environment where needed."""
    if args.peers_python:
        if not args.peers_python.exists():
            raise SystemExit(f"--peers-python {args.peers_python}: no such file")
        return args.peers_python.absolute()
    wanted = (*REQUIREMENTS, args.jax_spec, args.torch_spec)
    python = args.peers_env.absolute() / "bin" / "python"
    marker = args.peers_env / "requirements.txt"
    if not marker.exists() or marker.read_text().splitlines() != list(wanted):
        print(f"building {args.peers_env} (minutes)", flush=True)
        venv = [sys.executable, "-m", "venv", str(args.peers_env)]
        subprocess.run(venv, check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", *wanted]
        subprocess.run(pip, check=True)
        marker.write_text("\n".join(wanted) + "\n")  # last: the mark of success
    return python


# ---- one measurement -----------------------------------------------------------------


def job(work: Work, library: str, seed: int) -> dict[str, Any]:
    """Returns what a worker is asked to do; the caller adds `start`."""
    return {
        "agent": work.agent,
        "env": "CartPole-v1",
        "steps": work.short.get(library, work.steps),
        "full_steps": work.steps * work.seeds,
        "seeds": work.seeds,
        "seed": seed,
        "cores": cores(),
        "hyper": work.hyper,
    }


def run_worker(
    python: str | pathlib.Path,
    script: pathlib.Path,
    job: dict[str, Any],
    timeout: float,
) -> dict[str, Any]:
    """Runs one worker to its end.

    Returns: the result of the worker, or only a `note` that says what went wrong.
    """
    hidden = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
    environ = {k: v for k, v in os.environ.items() if k not in hidden}
    argument = json.dumps(job | {"start": time.time()})
    try:
        done = subprocess.run(
            [str(python), str(script), argument],
            capture_output=True,
            text=True,
            timeout=timeout,  # kills this process and no other
            env=environ,
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


def make_row(
    suite: str, work: str, library: str, repeat: int, result: dict[str, Any]
) -> Row:
    """Returns the result of a worker as a row."""
    device = result.get("device", "cpu")
    machine = host() if device == "cpu" else f"{host()}, {device}"
    names = [f.name for f in dataclasses.fields(Row)]
    values: dict[str, Any] = {name: result.get(name) for name in names}
    values |= {
        "suite": suite,
        "work": work,
        "library": library,
        "repeat": repeat,
        "note": result.get("note", ""),
        "versions": result.get("versions", ""),
        "machine": machine,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    return Row(**values)


def measure_all(
    suite: str,
    works: Sequence[Work],
    libraries: Sequence[str],
    repeats: int,
    measure: Callable[[Work, str, int], dict[str, Any]],
) -> Iterator[Row]:
    """Yields the rows of all works, the libraries taking turns.

    Args:
      suite: its name, for the rows.
      works: what to do.
      libraries: which of those that a work names are measured.
      repeats: turns of each library.
      measure: `(work, library, repeat) -> result` of one worker. A library that
        fails or hangs is left out of the work's later turns.
    """
    for work in works:
        turns = [name for name in (RLJAX, *work.peers) if name in libraries]
        broken = set()
        for repeat in range(repeats):
            for library in turns:
                if library in broken:
                    continue
                result = measure(work, library, repeat)
                row = make_row(suite, work.name, library, repeat, result)
                if row.steps_per_s is None:
                    broken.add(library)
                yield row


# ---- the table -----------------------------------------------------------------------


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


def ratios(rows: Sequence[Row], work: str, peer: str, field: str) -> list[float]:
    """Returns rljax's value over the peer's, one per repeat that both finished."""
    values = {
        (row.library, row.repeat): getattr(row, field)
        for row in rows
        if row.work == work and getattr(row, field) is not None
    }
    repeats = sorted(repeat for library, repeat in values if library == RLJAX)
    return [
        values[RLJAX, repeat] / values[peer, repeat]
        for repeat in repeats
        if (peer, repeat) in values
    ]


HEADER = (
    "work",
    "library",
    "steps/s min",
    "median",
    "max",
    "compile s",
    "cold start s",
    "rljax/peer (min-max)",
    "cold peer/rljax (min-max)",
    "notes",
)


def table_line(rows: Sequence[Row], work: str, library: str) -> list[str]:
    """Returns the cells of one library on one work."""
    mine = [row for row in rows if (row.work, row.library) == (work, library)]
    good = [row for row in mine if row.steps_per_s is not None]
    notes = "; ".join(dict.fromkeys(row.note for row in mine if row.note))
    if not good:
        return [work, library, *["-"] * (len(HEADER) - 3), notes]
    rates = [f"{v:,.0f}" for v in spread([r.steps_per_s or 0.0 for r in good])]
    compile_s = statistics.median(r.compile_s or 0.0 for r in good)
    cold_start = statistics.median(r.cold_start_s or 0.0 for r in good)
    against = ["", ""]
    if library != RLJAX:
        faster = ratios(rows, work, library, "steps_per_s")
        colder = ratios(rows, work, library, "cold_start_s")
        against = [ratio_text(faster), ratio_text([1 / value for value in colder])]
    seconds = [f"{compile_s:.1f}", f"{cold_start:.1f}"]
    return [work, library, *rates, *seconds, *against, notes]


def ratio_text(values: Sequence[float]) -> str:
    """Returns "median (minimum-maximum)"."""
    if not values:
        return "-"
    low, middle, high = spread(values)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def format_table(rows: Sequence[Row]) -> str:
    """Returns the table of all works and libraries, columns aligned."""
    keys = dict.fromkeys((row.work, row.library) for row in rows)
    lines = [list(HEADER), *(table_line(rows, *key) for key in keys)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    left = (0, 1, len(HEADER) - 1)  # words; the other columns are numbers
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


# ---- the command ---------------------------------------------------------------------


def select(works: Sequence[Work], only: Sequence[str]) -> list[Work]:
    """Returns the named works, in the suite's order; all of them for no names."""
    unknown = set(only) - {work.name for work in works}
    if unknown:
        names = ", ".join(work.name for work in works)
        raise SystemExit(f"unknown work {', '.join(sorted(unknown))}; one of: {names}")
    return [work for work in works if not only or work.name in only]


def write_csv(path: pathlib.Path, rows: Iterator[Row]) -> list[Row]:
    """Writes rows as they come, so that a run broken off keeps what it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = []
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Row)])
        writer.writeheader()
        for row in rows:
            writer.writerow(dataclasses.asdict(row))
            file.flush()
            rate = f"{row.steps_per_s:,.0f} steps/s" if row.steps_per_s else row.note
            print(f"{row.work} {row.library} #{row.repeat}: {rate}", flush=True)
            written.append(row)
    return written


def main(args: Args) -> None:
    """Measures, prints the table, writes the CSV."""
    works = select(SUITES[args.suite], args.only)
    if args.list_works:
        for work in works:
            print(f"{work.name:10} {work.text} ({', '.join((RLJAX, *work.peers))})")
        return
    if args.repeats < 1:
        raise SystemExit(f"--repeats {args.repeats}: must be at least 1")
    begin = time.time()
    pythons = {RLJAX: pathlib.Path(sys.executable)}
    if args.peers:
        pythons |= dict.fromkeys(("rejax", "sb3"), peers_python(args))

    def measure(work: Work, library: str, repeat: int) -> dict[str, Any]:
        script = WORKERS / f"{library}_worker.py"
        asked = job(work, library, seed=repeat)
        return run_worker(pythons[library], script, asked, args.timeout)

    found = measure_all(args.suite, works, tuple(pythons), args.repeats, measure)
    rows = write_csv(args.out, found)
    machines = dict.fromkeys(row.machine for row in rows)
    versions = dict.fromkeys(row.versions for row in rows if row.versions)
    print(f"\n{'; '.join(machines)}\n{'; '.join(versions)}\n")
    print(format_table(rows))
    print(f"\n{len(rows)} rows in {args.out}, {time.time() - begin:.0f} s")
    if any(row.steps_per_s is None for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Args))
