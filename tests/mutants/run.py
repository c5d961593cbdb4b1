"""Break the package in one line at a time and see that the tests notice.

    make mutants
    python tests/mutants/run.py --lists losses replay     # these files of the folder
    python tests/mutants/run.py --match "d/d discount"    # in file, text, tests, reason

`tests/mutants/*.toml` hold the breakages: the file, the text (once in the file), its
replacement, the tests that have to fail, and what it breaks. Each is made in a copy of
the tree, where only these tests run. One under which they pass survives: it is printed,
and the exit status is 1. The same tests have to pass in an unbroken copy.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from typing import NamedTuple

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
COPIED = (
    "rljax",
    "agents",
    "scripts",
    "tests",
    "docs",
    ".ci",
    "pyproject.toml",
    "Makefile",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
)
SECONDS = 600  # after which a broken copy counts as hung, and so as noticed
PASSED, FAILED = "passed", "failed"
PYTEST = 100  # added to pytest's status, so that a failure of this program is not one

# Imported once, by the process that all others are forked from. None of these starts
# JAX's backend, whose threads do not survive a fork; gymnax does. Nor is any of them a
# plugin of pytest, which wants to import its plugins itself.
PRELOADED = [
    *("jax", "chex", "flax.linen", "optax", "distrax", "rlax", "orbax.checkpoint"),
    *("pytest", "matplotlib.pyplot", "seaborn", "tyro", "rich"),
]


class Mutant(NamedTuple):
    """One breakage, a row of a list."""

    file: str  # from the root of the tree
    text: str  # once in the file
    replacement: str
    tests: list[str]  # node ids; at least one of them fails
    breaks: str  # in words

    def apply(self, root: pathlib.Path) -> None:
        """Breaks the tree at `root`."""
        path = root / self.file
        source = path.read_text()
        if source.count(self.text) != 1:
            times = source.count(self.text)
            raise ValueError(f"{self.file}: {self.text!r} is there {times} times")
        path.write_text(source.replace(self.text, self.replacement))

    def __str__(self) -> str:
        """The lines that tell of it."""
        return f"{self.file}: {self.text!r} -> {self.replacement!r} ({self.breaks})"


def read(names: Iterable[str] = ()) -> dict[str, list[Mutant]]:
    """Returns the mutants of the named lists, or of all of them."""
    paths = [FOLDER / f"{name}.toml" for name in names] or sorted(FOLDER.glob("*.toml"))
    return {
        path.stem: [Mutant(**row) for row in tomllib.loads(path.read_text())["mutant"]]
        for path in paths
    }


def run_tests(mutant: Mutant | None, tests: list[str], log: str) -> None:
    """Runs tests in a fresh copy of the tree; exits with `PYTEST` + pytest's status."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = pathlib.Path(folder)
        for name in COPIED:
            source = ROOT / name
            copies = shutil.copytree if source.is_dir() else shutil.copy2
            copies(source, copy / name)
        (copy / "rljax" / "agents").symlink_to(copy / "agents")
        if mutant:
            mutant.apply(copy)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(copy)
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = folder  # for the processes that tests start
        import pytest

        every = ["-m", "slow or not slow"]
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *every, *tests])
        sys.stdout.flush()
        os.chdir(ROOT)
    sys.exit(PYTEST + int(status))


def result(mutant: Mutant | None, tests: list[str], log: pathlib.Path) -> str:
    """Returns how the tests end in a copy: `PASSED`, `FAILED` or what went wrong.

    A broken copy that hangs or crashes has failed too. Anything else, such as a test
    that does not exist, is an error of the list.
    """
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=run_tests, args=(mutant, tests, str(log)))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return FAILED if mutant else f"no result after {SECONDS} s"
    if process.exitcode < 0:
        return FAILED if mutant else f"died of signal {-process.exitcode}"
    statuses = {PYTEST: PASSED, PYTEST + 1: FAILED}
    return statuses.get(process.exitcode, f"exit status {process.exitcode}")


def wrong(outcome: str, *, broken: bool) -> bool:
    """Returns whether a copy's tests should have ended in another way."""
    return outcome != (FAILED if broken else PASSED)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--match", default="", metavar="TEXT")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    lists = read(args.lists)
    mutants = [m for rows in lists.values() for m in rows if args.match in repr(m)]
    sound = [
        sorted({test for m in rows if m in mutants for test in m.tests})
        for rows in lists.values()
    ]
    jobs = [(None, tests) for tests in sound if tests] + [(m, m.tests) for m in mutants]
    logs = pathlib.Path(tempfile.mkdtemp(prefix="mutants-"))
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    begin, bad = time.monotonic(), 0
    with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
        futures = {
            pool.submit(result, mutant, tests, logs / f"{i}.log"): (i, mutant)
            for i, (mutant, tests) in enumerate(jobs)
        }
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            i, mutant = futures[future]
            if wrong(future.result(), broken=mutant is not None):
                bad += 1
                what = mutant or "without a breakage"
                print(f"{future.result()}: {what}; see {logs}/{i}.log", flush=True)
            elif sys.stdout.isatty():
                print(f"{done} of {len(jobs)}", end="\r", flush=True)
    seconds = time.monotonic() - begin
    print(f"{len(mutants)} mutants, {bad} not as they should be, {seconds:.0f} s")
    if not bad:
        shutil.rmtree(logs)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
