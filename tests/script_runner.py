"""Runs command lines of the scripts in one process, to pay for imports once.

    python tests/script_runner.py < lines     # shows each one, stops where one fails
    python tests/script_runner.py --answer    # for a program: a request a line, as JSON

A line holds a script and its arguments: `train ppo --steps 1000`. A request holds such
a `line`, the folder `cwd` to run it in, and, to press Ctrl-C, the number `interrupt` of
the update of the progress bar with which the `signal` comes. Or it holds `code`, Python
that may change what the scripts use, `run` lines and set `code`, the exit code. The
answer, a line of JSON, has the exit code, stdout and stderr.
"""

import contextlib
import io
import json
import os
import pathlib
import runpy
import signal
import sys
import time
import traceback
import urllib.error
from typing import Any

TESTS = pathlib.Path(__file__).resolve().parent
SCRIPTS = TESTS.parent / "scripts"
sys.path.insert(0, str(TESTS))


def run(line: str) -> int:
    """Runs one command line; returns its exit code."""
    script, *arguments = line.split()
    path = str(SCRIPTS / f"{script}.py")
    sys.argv = [path, *arguments]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        if not isinstance(end.code, str):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def run_code(code: str) -> int:
    """Runs Python beside the scripts, in a namespace of its own with `run`."""
    names: dict[str, Any] = {"run": run, "code": 0}
    try:
        exec(code, names)
    except BaseException:
        traceback.print_exc()
        return 1
    return names["code"]


@contextlib.contextmanager
def interrupted_at(update: int | None, number: int) -> Any:
    """A signal comes with this update of the progress bar, counted from 1."""
    from rljax.running.logging import Progress

    original, count = Progress.update, 0

    def counting(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == update:
            signal.raise_signal(number)
        original(*args)

    Progress.update = counting
    yield
    Progress.update = original


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Returns exit code, stdout and stderr of a request."""
    out, err = io.StringIO(), io.StringIO()
    os.chdir(request["cwd"])
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        interrupted_at(request.get("interrupt"), request.get("signal", signal.SIGINT)),
    ):
        code = run_code(request["code"]) if "code" in request else run(request["line"])
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def answer_all() -> None:
    """Answers requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that nothing else is among the answers
    for request in sys.stdin:
        print(json.dumps(answer(json.loads(request))), file=answers, flush=True)


def show_all() -> None:
    """Runs lines until one fails."""
    for line in filter(None, map(str.strip, sys.stdin)):
        print(f"$ {line}", flush=True)
        begin, code = time.monotonic(), run(line)
        print(f"[exit code {code}, {time.monotonic() - begin:.0f} s]", flush=True)
        if code:
            sys.exit(1)


def no_network() -> None:
    """An environment that downloads what it shows."""
    raise urllib.error.URLError("no network")


def main() -> None:
    """Sets up as a script does, with a probe environment, and runs every line."""
    answering = sys.argv[1:] == ["--answer"]
    from rljax.commands import front

    front.set_up_jax()  # before gymnax starts jax
    import gymnax
    import probe_envs

    gymnax.register("Counter-probe", probe_envs.Counter)
    gymnax.register("Download-probe", no_network)
    answer_all() if answering else show_all()


if __name__ == "__main__":
    main()
