"""Measure rljax: beside its peers, and its gradients beside ordinary ones.

    rljax benchmark --suite speed
    rljax benchmark --only ppo-4 dqn-10k --repeats 3
    rljax benchmark --no-peers
    rljax benchmark --rltools-python .bench/rltools/bin/python
    rljax benchmark --suite td
    rljax benchmark --suite pg
    rljax benchmark --suite images
    rljax benchmark --suite autodiff
    rljax benchmark --suite meta
    rljax benchmark --suite scale
    rljax benchmark --against HEAD --only ppo-4

Every measurement is a fresh process (`benchmarks/*_worker.py`). What is compared takes
turns, A B A B, so that a machine that drifts slows both; ratios are taken pair by
pair. In the suites `speed`, `td`, `pg` and `images` all libraries do the same work with
the same hyperparameters; the peers live in a virtual environment of their own, built on
first use, but RLtools, which needs a C++ compiler, in one that you name. Their works
are in benchmarks/works.py, those of the suites `autodiff`, `meta` and `scale` in files
of these names beside it.

`--against REVISION` measures this tree, uncommitted changes included, and another git
revision of it with the same worker scripts, interpreter and dependencies, and prints
every figure of this tree over the revision's; peers are left out.
"""

import contextlib
import dataclasses
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro

from rljax.commands import folders
from rljax.commands.benchmarks import (
    autodiff,
    comparisons,
    meta,
    paired,
    report,
    revisions,
    scale,
)
from rljax.commands.benchmarks.protocol import run_worker
from rljax.commands.benchmarks.works import (
    IMAGES,
    PG,
    RLJAX,
    RLTOOLS,
    RUNS,
    SPEED,
    TD,
    Work,
)

_AROUND = pathlib.Path(__file__).resolve().parents[2]
# The checkout: that of this file, or the one where an installed package is called.
ROOT = _AROUND if (_AROUND / "pyproject.toml").exists() else pathlib.Path.cwd()
WORKERS = pathlib.Path(__file__).resolve().parent / "benchmarks"
REQUIREMENTS = (  # what the peers' environment holds, beside jax and torch
    "rejax==0.1.3",
    "gymnax==0.0.9",
    "stable-baselines3==2.9.2",
    "flashbax==0.1.3",
    "gymnasium",
    "minatar==1.0.15",
)

Suite = Literal["speed", "td", "pg", "images", "runs", "autodiff", "meta", "scale"]
SUITES: dict[str, Any] = {
    "speed": SPEED,
    "td": TD,
    "pg": PG,
    "images": IMAGES,
    "runs": RUNS,
    "autodiff": autodiff.WORKS,
    "meta": meta.WORKS,
    "scale": scale.WORKS,
}
COMPARISONS = ("autodiff", "meta", "scale")  # suites of rljax beside itself


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure rljax, one table and one CSV per call."""

    suite: Suite = "speed"
    """Works to measure: training beside peers (td: with a replay or TD targets, pg:
    policy gradients, images: convolutions, runs: many at once), gradients beside
    ordinary ones, meta-gradients beside updates, or one run over more devices."""
    only: tuple[str, ...] = ()
    """Names of works, as in --list; all of them unless given."""
    repeats: int = 5
    """Measurements of each library, or comparison, on each work."""
    against: str | None = None
    """A git revision to measure this tree against, in turns, instead of the peers."""
    out: pathlib.Path | None = None
    """One row per measurement; runs/benchmark/<suite>.csv unless given, with --against
    <suite>-against-<hash>.csv. An older file of that name is replaced."""
    peers: bool = True
    """Measure the peers too. This and what follows on peers is for the first five."""
    list_works: Annotated[bool, tyro.conf.arg(name="list")] = False
    """Print the works of the suite and stop."""
    timeout: float = 180.0
    """Seconds after which a process counts as hung and is killed."""
    peers_env: pathlib.Path = ROOT / ".bench" / "peers"
    """The peers' virtual environment, built if missing or of other versions."""
    peers_python: pathlib.Path | None = None
    """A Python that has the peers already, instead of --peers-env."""
    rltools_python: pathlib.Path | None = None
    """A Python that has RLtools, which is measured only if this is given."""
    torch_spec: str = "torch==2.13.0"
    """torch, as pip takes it. Stable-Baselines3 is measured on the CPU."""
    jax_spec: str = "jax==0.10.2"
    """jax of the peers, as pip takes it; on a GPU host "jax[cuda12]==0.10.2"."""


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
    # Of the first repeat of rljax, see benchmarks/limits.py:
    peak_share: float | None  # of the peak, that matrix products reach
    env_steps_per_s: float | None  # of the environments with random actions
    import_s: float | None
    steps: int | None  # of one execution, all seeds
    executions: int | None
    note: str
    versions: str
    machine: str
    date: str

    @property
    def failed(self) -> bool:
        """There is no rate."""
        return self.steps_per_s is None

    def __str__(self) -> str:
        """The line that tells of progress."""
        rate = f"{self.steps_per_s:,.0f} steps/s" if self.steps_per_s else self.note
        return f"{self.work} {self.library} #{self.repeat}: {rate}"

    @property
    def figures(self) -> tuple[paired.Figure, ...]:
        """The figures that are paired with the numbers of another tree."""
        name = self.library.partition("@")[0]
        numbers = {
            "steps/s": self.steps_per_s,
            "compile s": self.compile_s,
            "cold start s": self.cold_start_s,
        }
        return tuple(
            paired.Figure(
                work=self.work,
                name=f"{name} {unit}",
                library=self.library,
                turn=self.repeat,
                value=value,
                note=self.note,
            )
            for unit, value in numbers.items()
        )


# ---- the peers' environment ----------------------------------------------------------


def existing(option: str, python: pathlib.Path) -> pathlib.Path:
    """Returns the interpreter that an option names, as an absolute path."""
    if not python.exists():
        raise SystemExit(f"{option} {python}: no such file")
    return python.absolute()


def peers_python(args: Args) -> pathlib.Path:
    """Returns the peers' interpreter; builds its environment where needed."""
    if args.peers_python:
        return existing("--peers-python", args.peers_python)
    wanted = (*REQUIREMENTS, args.jax_spec, args.torch_spec)
    python = args.peers_env.absolute() / "bin" / "python"
    marker = args.peers_env / "requirements.txt"
    if not marker.exists() or marker.read_text().splitlines() != list(wanted):
        print(f"building {args.peers_env} (minutes)", flush=True)
        venv = [sys.executable, "-m", "venv", str(args.peers_env)]
        pip = [str(python), "-m", "pip", "install", "--quiet", *wanted]
        try:
            subprocess.run(venv, check=True)
            subprocess.run(pip, check=True)
        except subprocess.CalledProcessError as error:
            message = f"--peers-env {args.peers_env}: cannot be built: {error}"
            raise SystemExit(message) from error
        marker.write_text("\n".join(wanted) + "\n")  # last: the mark of success
    return python


def pythons_of_peers(args: Args, peers: set[str]) -> dict[str, pathlib.Path]:
    """Returns the interpreters of the peers that can be measured."""
    pythons = {}
    if RLTOOLS in peers and args.rltools_python:
        pythons[RLTOOLS] = existing("--rltools-python", args.rltools_python)
    elif RLTOOLS in peers:
        print(f"{RLTOOLS} is left out: no --rltools-python", flush=True)
    if others := peers - {RLTOOLS}:
        pythons |= dict.fromkeys(others, peers_python(args))
    return pythons


# ---- one measurement -----------------------------------------------------------------


def job(work: Work, library: str, seed: int, *, limits: bool = False) -> dict[str, Any]:
    """Returns what a worker is asked to do; the caller adds `start`.

    Args:
      work: what to do.
      library: which library does it.
      seed: the first one.
      limits: also measure how near rljax comes to what the machine can do.
    """
    return {
        "agent": work.agent,
        "env": work.env,
        "steps": work.short.get(library, work.steps),
        "full_steps": work.steps * work.seeds,
        "seeds": work.seeds,
        "seed": seed,
        "cores": report.cores(),
        "hyper": work.hyper | work.variants.get(library, {}),
        "warm": work.warm,
        "rates": work.rates,
        "limits": limits,
    }


def make_row(
    suite: str, work: str, library: str, repeat: int, result: dict[str, Any]
) -> Row:
    """Returns the result of a worker as a row."""
    names = [f.name for f in dataclasses.fields(Row)]
    values: dict[str, Any] = {name: result.get(name) for name in names}
    values |= {
        "suite": suite,
        "work": work,
        "library": library,
        "repeat": repeat,
        **report.circumstances(result),
    }
    return Row(**values)


def measure_all(
    suite: str,
    works: Sequence[Work],
    libraries: Sequence[str],
    repeats: int,
    measure: Callable[[Work, str, int], dict[str, Any]],
    trees: Sequence[str] = ("",),
) -> Iterator[Row]:
    """Yields the rows of all works, the libraries taking turns.

    Args:
      suite: its name, for the rows.
      works: what to do.
      libraries: which of those that a work names are measured; its variants are.
      repeats: turns of each library.
      measure: `(work, library, repeat) -> result` of one worker. A library that
        fails or hangs is left out of the work's later turns.
      trees: what is added to the names of libraries, one for each tree of rljax.
    """
    for work in works:
        names = [name for name in (RLJAX, *work.peers) if name in libraries]
        names += work.variants
        turns = [name + tree for name in names for tree in trees]
        broken = set()
        for repeat in range(repeats):
            for library in turns:
                if library in broken:
                    continue
                result = measure(work, library, repeat)
                row = make_row(suite, work.name, library, repeat, result)
                if row.failed:
                    broken.add(library)
                yield row


# ---- the table -----------------------------------------------------------------------


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
    "of peak",
    "envs alone",
    "rljax/peer (min-max)",
    "cold peer/rljax (min-max)",
    "notes",
)


def table_line(rows: Sequence[Row], work: str, library: str) -> list[str]:
    """Returns the cells of one library on one work."""
    mine = [row for row in rows if (row.work, row.library) == (work, library)]
    good = [row for row in mine if not row.failed]
    notes = "; ".join(dict.fromkeys(row.note for row in mine if row.note))
    if not good:
        return [work, library, *["-"] * (len(HEADER) - 3), notes]
    rates = [f"{v:,.0f}" for v in report.spread([r.steps_per_s or 0.0 for r in good])]
    compile_s = statistics.median(r.compile_s or 0.0 for r in good)
    cold_start = statistics.median(r.cold_start_s or 0.0 for r in good)
    against = ["", ""]
    if library != RLJAX:
        faster = ratios(rows, work, library, "steps_per_s")
        colder = ratios(rows, work, library, "cold_start_s")
        against = [
            report.ratio_text(faster),
            report.ratio_text([1 / value for value in colder]),
        ]
    seconds = [f"{compile_s:.1f}", f"{cold_start:.1f}"]
    shares = [f"{r.peak_share:.0%}" for r in good if r.peak_share is not None]
    alone = [f"{r.env_steps_per_s:,.0f}" for r in good if r.env_steps_per_s is not None]
    limits = [(cells or [""])[0] for cells in (shares, alone)]
    return [work, library, *rates, *seconds, *limits, *against, notes]


def format_table(rows: Sequence[Row]) -> str:
    """Returns the table of all works and libraries, columns aligned."""
    keys = dict.fromkeys((row.work, row.library) for row in rows)
    lines = [HEADER, *(table_line(rows, *key) for key in keys)]
    return report.align(lines, left=(0, 1, len(HEADER) - 1))


# ---- the command ---------------------------------------------------------------------

# By what is added to the name of a library; None: rljax as it is installed.
Trees = Mapping[str, pathlib.Path | None]


def select(works: Sequence[Work], only: Sequence[str]) -> list[Work]:
    """Returns the named works, in the suite's order; all of them for no names."""
    unknown = set(only) - {work.name for work in works}
    if unknown:
        names = ", ".join(work.name for work in works)
        raise SystemExit(f"unknown work {', '.join(sorted(unknown))}; one of: {names}")
    return [work for work in works if not only or work.name in only]


def worker(work: Work, library: str) -> pathlib.Path:
    """Returns the script that measures a library, or a variant of rljax, on a work."""
    name = RLJAX if library in work.variants else library
    kind = "replay_worker" if work.agent == "replay" else "worker"
    return WORKERS / f"{name}_{kind}.py"


def run_in(
    tree: pathlib.Path | None,
    python: str | pathlib.Path,
    script: pathlib.Path,
    asked: dict[str, Any],
    timeout: float,
) -> dict[str, Any]:
    """Returns the result of one worker, which measured the rljax of a tree."""
    if tree is None:
        return run_worker(python, script, asked, timeout)
    variables = revisions.environ(tree)
    result = run_worker(python, script, asked, timeout, environ=variables)
    return revisions.checked(result, tree)


def training_rows(args: Args, works: Sequence[Work], trees: Trees) -> Iterator[Row]:
    """Returns the rows of the suites of training, measured as they are asked for."""
    pythons = {RLJAX: pathlib.Path(sys.executable)}
    if args.peers and not args.against:
        peers = {peer for work in works for peer in work.peers}
        pythons |= pythons_of_peers(args, peers)

    def measure(work: Work, library: str, repeat: int) -> dict[str, Any]:
        name, at, commit = library.partition("@")
        python = pythons.get(name, pythons[RLJAX])  # a variant is rljax's own
        first = repeat == 0 and not args.against
        asked = job(work, name, seed=repeat, limits=first)
        script = worker(work, name)
        return run_in(trees[at + commit], python, script, asked, args.timeout)

    return measure_all(
        args.suite, works, tuple(pythons), args.repeats, measure, trees=tuple(trees)
    )


def comparison_rows(
    args: Args, works: Sequence[Any], trees: Trees
) -> Iterator[comparisons.Row]:
    """Returns the rows of a suite of comparisons, measured as they are asked for."""
    script = WORKERS / f"{args.suite}_worker.py"
    libraries = {RLJAX + suffix: tree for suffix, tree in trees.items()}

    def measure(asked: dict[str, Any], library: str) -> dict[str, Any]:
        tree = libraries[library]
        return run_in(tree, sys.executable, script, asked, args.timeout)

    return comparisons.measure_all(works, args.repeats, measure, tuple(libraries))


@contextlib.contextmanager
def open_trees(against: str | None) -> Iterator[Trees]:
    """Gives the trees to measure: the installed package, or this and the revision's."""
    if against is None:
        yield {"": None}
        return
    commit = revisions.short_hash(ROOT, against)
    with revisions.side_by_side(ROOT, commit) as (this, other):
        yield {"": this, f"@{commit}": other}


def main(argv: list[str], prog: str) -> None:
    """Reads the command line and measures."""
    run(tyro.cli(Args, args=argv, prog=prog))


def run(args: Args) -> None:
    """Measures, prints the table, writes the CSV."""
    works: list[Any] = select(SUITES[args.suite], args.only)
    if args.list_works:
        for work in works:
            print(work)
        return
    if args.repeats < 1:
        raise SystemExit(f"--repeats {args.repeats}: must be at least 1")
    if not args.timeout > 0:
        raise SystemExit(f"--timeout {args.timeout}: must be above 0")
    if args.against and (args.peers_python or args.rltools_python):
        options = "--peers-python and --rltools-python"
        raise SystemExit(f"--against measures no peers: leave {options} out")
    begin = time.time()
    with open_trees(args.against) as trees:
        ending = "".join(trees).replace("@", "-against-")
        out = args.out or pathlib.Path(f"runs/benchmark/{args.suite}{ending}.csv")
        folders.check_output(out, b"suite,work,")
        if args.suite in COMPARISONS:
            measurements = comparison_rows(args, works, trees)
            rows = report.write_csv(out, comparisons.Row, measurements)
        else:
            rows = report.write_csv(out, Row, training_rows(args, works, trees))
    if args.against:
        table = paired.format_table([figure for row in rows for figure in row.figures])
    elif args.suite in COMPARISONS:
        table = comparisons.format_table(rows)
    else:
        table = format_table(rows)
    machines = dict.fromkeys(row.machine for row in rows)
    versions = dict.fromkeys(row.versions for row in rows if row.versions)
    print(f"\n{'; '.join(machines)}\n{'; '.join(versions)}\n")
    print(table)
    print(f"\n{len(rows)} rows in {out}, {time.time() - begin:.0f} s")
    if any(row.failed for row in rows):
        raise SystemExit(1)
