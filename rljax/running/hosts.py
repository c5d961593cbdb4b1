"""Several processes that run one program, on one machine or many.

Each runs the same commands on devices of its own, and every array may be spread over
the devices of all (`jax.distributed`). Process 0 writes and prints; what hangs on a
clock, a signal or a file is agreed on, because a process that does something else than
the others waits for them for ever. In a single process all of this does nothing.
"""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed  # the store of texts has no public name
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

__all__ = [
    "PrimaryError",
    "agree",
    "any_of",
    "cores",
    "greatest",
    "initialize",
    "on_all",
    "on_primary",
    "primary",
    "session",
    "several",
    "to_host",
]

ADDRESS = "JAX_COORDINATOR_ADDRESS"
NUMBER = "JAX_NUM_PROCESSES"
INDEX = "JAX_PROCESS_ID"
TIMEOUT = "RLJAX_INITIALIZATION_TIMEOUT"

HEARTBEAT_SECONDS = 10  # a process that is silent for longer is dead
SHUTDOWN_SECONDS = 30  # the first process that ends waits so long for the others
LOST = 1  # exit code where another process has gone
_BLOCK = 256  # bytes of a broadcast, the first four of them the length

T = TypeVar("T")


class PrimaryError(ValueError):
    """Bad input, as process 0 has found it."""


def initialize(asked: bool = False) -> bool:
    """Join the other processes, before jax computes anything.

    Slurm, Open MPI, Cloud TPU and Kubernetes tell where they are. Otherwise the
    environment variables JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID do. RLJAX_INITIALIZATION_TIMEOUT is the number
    of seconds to wait for the others, 300 unless set; after them this process ends.

    Args:
      asked: there are several processes even where none of the variables is set.

    Returns:
      Whether there are several.

    Raises:
      ValueError: the variables are wrong, or nothing tells of other processes.
    """
    if jax.distributed.is_initialized():
        return True
    if not (asked or any(name in os.environ for name in (ADDRESS, NUMBER, INDEX))):
        return False
    address, number, index = _place()
    seconds = _whole_number(TIMEOUT, low=1) or 300
    # SIGTERM is a signal as in one process, not one for jax's preemption service.
    jax.config.update("jax_enable_preemption_service", False)
    missing = [
        name
        for name, value in ((ADDRESS, address), (NUMBER, number), (INDEX, index))
        if value is None
    ]
    try:
        with _ends_after(seconds, f"{address or 'coordinator'}: not all processes"):
            jax.distributed.initialize(
                address,
                number,
                index,
                initialization_timeout=2 * seconds + 60,  # jax aborts the process
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            )
    except Exception as error:  # of jax, and of what finds the processes
        if missing and isinstance(error, ValueError):
            found = "found no other processes by Slurm, Open MPI, TPU or Kubernetes"
            raise ValueError(f"{found}; set {', '.join(missing)}") from error
        raise ValueError(f"--distributed: {error}") from error
    return True


def _place() -> tuple[str | None, int | None, int | None]:
    """Address, number and index from the environment, None where they are not set."""
    address = os.environ.get(ADDRESS)
    if address is not None and not re.fullmatch(r".+:[0-9]+", address):
        raise ValueError(f"{ADDRESS}={address}: must be host:port of process 0")
    number, index = _whole_number(NUMBER, low=1), _whole_number(INDEX, low=0)
    if number is not None and index is not None and index >= number:
        raise ValueError(
            f"{INDEX}={index}: must be in [0, {number - 1}], {NUMBER} is {number}"
        )
    return address, number, index


def _whole_number(name: str, low: int) -> int | None:
    """An environment variable, None where it is not set."""
    text = os.environ.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]+", text) or int(text) < low:
        raise ValueError(f"{name}={text}: must be a whole number, at least {low}")
    return int(text)


@contextlib.contextmanager
def _ends_after(seconds: int, what: str) -> Iterator[None]:
    """End the process in one line where jax, after its own time, would abort it."""

    def give_up() -> None:
        print(
            f"error: {what} were there after {seconds} s ({TIMEOUT})", file=sys.stderr
        )
        sys.stderr.flush()
        os._exit(2)  # the main thread waits in jax

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    previous = signal.signal(signal.SIGINT, signal.SIG_DFL)  # jax waits through Ctrl-C
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        timer.cancel()


def cores() -> int:
    """Count the cores for this process, before jax computes anything.

    Processes that may use the same cores share them. All processes get the least share
    of any, because they need the same number of devices.
    """
    here, state = sorted(os.sched_getaffinity(0)), distributed.global_state
    client = state.client
    if client is None:
        return len(here)
    client.key_value_set(
        f"rljax/cores/{state.process_id}", json.dumps([socket.gethostname(), here])
    )
    every = [
        client.blocking_key_value_get(f"rljax/cores/{i}", 1000 * SHUTDOWN_SECONDS)
        for i in range(state.num_processes)
    ]
    shares = [len(json.loads(text)[1]) // every.count(text) for text in every]
    return max(1, min(shares))


def several() -> bool:
    """Whether there are other processes; asking starts nothing."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def primary() -> bool:
    """Whether this process writes and prints."""
    return not several() or jax.process_index() == 0


def agree(value: T) -> T:
    """Return what process 0 has.

    Args:
      value: numbers, texts, None, and lists and dicts of these; others than that of
        process 0 are not looked at.
    """
    if not several():
        return value
    data = json.dumps(value).encode() if primary() else b""
    head = np.zeros(_BLOCK, np.uint8)
    head[:4] = np.frombuffer(np.int32(len(data)).tobytes(), np.uint8)
    start = data[: _BLOCK - 4]
    head[4 : 4 + len(start)] = np.frombuffer(start, np.uint8)
    head = np.asarray(multihost_utils.broadcast_one_to_all(head))
    length = int(head[:4].view(np.int32)[0])
    text = head[4 : 4 + length].tobytes()
    if length > len(text):
        rest = np.zeros(length - len(text), np.uint8)
        if primary():
            rest = np.frombuffer(data[len(text) :], np.uint8)
        text += np.asarray(multihost_utils.broadcast_one_to_all(rest)).tobytes()
    return json.loads(text)


def greatest(*numbers: int) -> tuple[int, ...]:
    """Return the greatest of each number over the processes."""
    if not several():
        return numbers
    every = multihost_utils.process_allgather(np.array(numbers, np.int32))
    return tuple(np.asarray(every).max(axis=0).tolist())


def any_of(flag: bool) -> bool:
    """Whether a flag is set in any process."""
    return bool(greatest(int(flag))[0])


def on_primary(function: Callable[[], T]) -> T | None:
    """Call a function in process 0, while the others wait.

    Args:
      function: what writes a file, for example.

    Returns:
      Its result in process 0, None in the others.

    Raises:
      PrimaryError: in the others, where process 0 raised a ValueError; files and exits
        raise OSError and SystemExit in all.
    """
    if not several():
        return function()
    result, error = None, None
    if primary():
        try:
            result = function()
        except BaseException as caught:
            error = caught
    words = agree(error and _in_words(error))
    if error:
        raise error
    if words:
        raise _from_words(**words)
    return result


def _in_words(error: BaseException) -> dict[str, Any]:
    """An exception as plain data."""
    if isinstance(error, SystemExit):
        return {"kind": "exit", "values": [error.code]}
    if isinstance(error, KeyboardInterrupt):
        return {"kind": "exit", "values": [128 + signal.SIGINT]}
    if isinstance(error, OSError) and error.strerror:
        return {"kind": "os", "values": [error.errno, error.strerror, error.filename]}
    text = str(error) or type(error).__name__
    if isinstance(error, ValueError | OSError | ImportError | MemoryError):
        return {"kind": "value", "values": [text]}
    return {"kind": "bug", "values": [f"in process 0: {type(error).__name__}: {text}"]}


def _from_words(kind: str, values: list[Any]) -> BaseException:
    """Undo `_in_words`, as far as it goes."""
    kinds = {"exit": SystemExit, "os": OSError, "value": PrimaryError}
    return kinds.get(kind, RuntimeError)(*values)


def on_all(function: Callable[[], T]) -> T:
    """Call a function in every process; where it fails in one, it fails in all.

    Args:
      function: what reads a file, for example; without a part that waits for others.

    Raises:
      ValueError: another process has failed.
      Exception: what the function raised here.
    """
    if not several():
        return function()
    result, error = None, None
    try:
        result = function()
    except Exception as caught:
        error = caught
    failed = any_of(error is not None)
    if error:
        raise error
    if failed:
        raise ValueError("another process has failed and says why")
    return result  # pyright: ignore[reportReturnType]


def to_host(tree: Any) -> Any:
    """Return arrays as numpy's, whole in every process.

    Args:
      tree: arrays without typed keys, spread over devices of several processes or not.
        All that are spread are for a moment on every device.
    """
    leaves, structure = jax.tree.flatten(tree)
    spread = [i for i, x in enumerate(leaves) if _is_spread(x)]
    if spread:
        shardings = [
            NamedSharding(leaves[i].sharding.mesh, PartitionSpec()) for i in spread
        ]
        # One program, because one exchange takes as long as a small one.
        whole = jax.jit(_same, out_shardings=shardings)([leaves[i] for i in spread])
        for i, x in zip(spread, whole, strict=True):
            leaves[i] = x.addressable_data(0)
    return structure.unflatten(map(np.asarray, leaves))


def _is_spread(x: Any) -> bool:
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def _same(x: T) -> T:
    return x


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Let process 0 alone print, and end at once where another process has gone.

    Python's own errors are printed as ever.
    """
    if not several():
        yield
        return
    try:
        with contextlib.ExitStack() as stack:
            if not primary():
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    except Exception as error:
        if "Gloo" not in str(error):  # what XLA says of a connection on CPU
            raise
        text = " ".join(str(error).split())
        print(f"error: another process has ended: {text}", file=sys.stderr, flush=True)
        os._exit(LOST)  # jax would wait for the other before it aborts
