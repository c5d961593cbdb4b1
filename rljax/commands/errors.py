"""Errors of commands, said in one line; needs no jax."""

import functools
import os
import select
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")
# Exit codes as shells have them: 128 and the signal.
INTERRUPTED, BROKEN_PIPE = 130, 141


def one_line_errors(main: Callable[P, None]) -> Callable[P, None]:
    """Turn bad input, and what a machine refuses, into one line and exit code 2.

    A disk that is full, a folder that may not be written, a download that fails, memory
    that is not there. Ctrl-C and `| head` end without a traceback.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            try:
                main(*args, **kwargs)
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)
        except SystemExit as end:
            if not isinstance(end.code, str):
                raise
            _fail(end.code)
        except BrokenPipeError as error:
            if not _has_no_reader(sys.stdout.fileno()):
                _fail(one_line(error))
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(BROKEN_PIPE)
        except (ValueError, OSError, ImportError, MemoryError, OverflowError) as error:
            _fail(one_line(error))
        except RuntimeError as error:  # XLA's
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            _fail("out of memory: " + str(error).splitlines()[0])

    return wrapped


def _has_no_reader(file: int) -> bool:
    """Whether a file is a pipe that nobody reads any more."""
    polled = select.poll()
    polled.register(file)
    return any(event & select.POLLERR for _, event in polled.poll(0))


def one_line(error: BaseException) -> str:
    """The error in words, with the file's name first where there is one."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(text.splitlines())


def _fail(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)
