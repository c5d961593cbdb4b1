"""Compiled programs: made ahead of their use, and kept for the next process."""

import functools
import hashlib
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax

_ENABLED, _FOLDER = "jax_enable_compilation_cache", "jax_compilation_cache_dir"
_LEAST_SECONDS = 0.2  # to compile a program that is worth keeping
_MOST_BYTES = 2**30  # of all kept programs; the one that was used least recently goes
P = ParamSpec("P")
T = TypeVar("T")


def keep(folder: Path | None = None) -> Path | None:
    """Let jax keep compiled programs in a folder, and look there before it compiles.

    jax's own settings stay in force: `JAX_COMPILATION_CACHE_DIR` names another folder,
    `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing. A program's key holds the
    program and the versions of jax and XLA. Whoever may write to the folder may run
    code in this process.

    Args:
      folder: made if missing; `kept_in()` unless given.

    Returns:
      The folder in use; None where there is none that can be written.

    Example:
      >>> _ = keep()  # before the first program is compiled
    """
    if not getattr(jax.config, _ENABLED):
        return None
    asked = getattr(jax.config, _FOLDER)
    if asked:
        return Path(asked)
    try:
        folder = folder or kept_in()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none that can be written
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update(_FOLDER, str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    return folder


def keep_none() -> None:
    """Let this process neither keep programs nor take those that are kept.

    Example:
      >>> keep_none()  # before the first program is compiled
    """
    jax.config.update(_ENABLED, False)


def kept_in() -> Path:
    """Where programs are kept: a folder for each kind of processor below the cache's.

    `XDG_CACHE_HOME`, by default `~/.cache`, is the cache's. Homes are shared by
    machines, and a program for one CPU may use instructions that another lacks.

    Raises:
      RuntimeError: there is no home folder.

    Example:
      >>> kept_in().parent.name
      'rljax'
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    described = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        described += sorted({x for x in lines if x.startswith(("flags", "Features"))})
    except OSError:  # not Linux
        pass
    kind = hashlib.sha256("\n".join(described).encode()).hexdigest()[:8]
    return Path(cache) / "rljax" / f"{platform.machine()}-{kind}"


def compile_for(program: Callable[..., Any], *args: Any) -> None:
    """Compile a jitted function for arguments like these; its calls find it compiled.

    Args:
      program: as returned by `jax.jit`.
      *args: trees of arrays or of `jax.ShapeDtypeStruct`, placed as they will be.

    Example:
      >>> double = jax.jit(lambda x: 2 * x)
      >>> compile_for(double, jax.ShapeDtypeStruct((3,), float))
    """
    program.lower(*args).compile()  # pyright: ignore[reportFunctionMemberAccess]


class Ahead:
    """Does work in a thread, one after the other, before it is needed.

    jax compiles outside Python's lock, and so do training programs run: a second core
    has the work done meanwhile.

    Args:
      threaded: whether there is a thread. Without one each work is done when it is
        asked for: processes that run one program must all compile in one order.

    Example:
      >>> with Ahead() as ahead:
      ...     total = ahead.start(sum, [1, 2])
      ...     total()
      3
    """

    def __init__(self, threaded: bool = True) -> None:
        self.threaded = threaded
        self._pool = ThreadPoolExecutor(max_workers=1)

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], T]:
        """Start work, and return what waits for its result or raises its error."""
        if self.threaded:
            return self._pool.submit(function, *args, **kwargs).result
        return functools.cache(functools.partial(function, *args, **kwargs))
