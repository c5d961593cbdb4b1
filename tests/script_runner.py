"""Runs command lines of the scripts in one process, to pay for imports once.

Reads `[[script, argument, ...], ...]` as JSON on stdin, prints as JSON, for each, its
exit code, stdout and stderr.
"""

import contextlib
import importlib
import io
import json
import pathlib
import sys
import traceback

TESTS = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent / "scripts"), str(TESTS)]


def run(script: str, *arguments: str) -> dict:
    """One command line."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = [script, *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            importlib.import_module(script).main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def main() -> None:
    """Set up as a script does, with a probe environment, and run every line."""
    import common  # noqa: F401  first: it sets up devices before jax starts
    import gymnax
    import probe_envs

    gymnax.register("Counter-probe", probe_envs.Counter)
    print(json.dumps([run(*line) for line in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
