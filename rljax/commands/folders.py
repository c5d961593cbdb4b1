"""Who may write where: run folders of one process each, files that replace their own.

A run folder is made by the process that claims it, or taken where it holds nothing yet.
The claim is an operating system's lock on a file in it, which ends with the process
however that ends. Needs no jax.
"""

import contextlib
import datetime
import fcntl
import itertools
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

CONFIG_FILE, METRICS_FILE, CURVE_FILE = "config.json", "metrics.csv", "curve.png"
EVALUATIONS_FILE = "evaluations.csv"
CHECKPOINTS, TENSORBOARD, WANDB = "checkpoints", "tensorboard", "wandb"
BEST = f"{CHECKPOINTS}/best"  # by evaluation
LOCK_FILE = "lock"
# All that a run makes before its first row.
_OWN = (
    CONFIG_FILE,
    METRICS_FILE,
    EVALUATIONS_FILE,
    CHECKPOINTS,
    TENSORBOARD,
    WANDB,
)


class Taken(ValueError):
    """Another process has the lock, or another run the folder."""


@contextlib.contextmanager
def lock(path: Path, of: Path) -> Iterator[None]:
    """Hold a lock file, which says whose it is; remove it in the end.

    Args:
      path: the lock file.
      of: the file or folder that it stands for, to be named.

    Raises:
      Taken: another process holds it; the process is named.
    """
    descriptor = _locked(path, of)
    try:
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, owner.encode())
        except OSError as error:
            error.filename = str(path)
            raise
        yield
    finally:
        if _is_at(path, descriptor):
            path.unlink()  # while it is locked, so that it is never another's
        os.close(descriptor)


def _locked(path: Path, of: Path) -> int:
    """Descriptor of the lock file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            who = owner or "another process"
            raise Taken(f"{of}: exists, in use by {who}") from None
        except OSError:  # a file system without locks
            return descriptor
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its last owner has removed it meanwhile


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def claim(folder: Path, *, resume: bool = False, free: bool = False) -> Iterator[Path]:
    """Make a run folder, or take one without a run, for this process alone.

    Where the run fails before its first row, what it wrote is removed, and the folder
    too if it made that.

    Args:
      folder: of the run.
      resume: it holds a run, which goes on.
      free: where it is taken, add a number to its name until it is not.

    Raises:
      Taken: another process has it, or it holds anything and `resume` is false.
    """
    if resume:
        with lock(folder / LOCK_FILE, folder):
            yield folder
        return
    folder, made, held = _take(folder, free)
    try:
        with held:
            try:
                yield folder
            except BaseException:
                if not started(folder):
                    _clear(folder)
                raise
    except BaseException:
        if made:
            with contextlib.suppress(OSError):  # there is a run, or others' files
                folder.rmdir()
        raise


def _take(folder: Path, free: bool) -> tuple[Path, bool, contextlib.ExitStack]:
    """A folder for a new run, whether it was made here, and the lock."""
    if folder.parent.exists() and not folder.parent.is_dir():
        raise ValueError(f"{folder.parent}: not a folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        numbered = f"{folder.name}-{number}" if number > 1 else folder.name
        try:
            return folder.with_name(numbered), *_lock_empty(folder.with_name(numbered))
        except Taken:
            if not free:
                raise
    raise AssertionError


def _lock_empty(folder: Path) -> tuple[bool, contextlib.ExitStack]:
    """Make a folder, or take one that is there; whether it was made, and its lock."""
    while True:
        made = True
        try:
            folder.mkdir()
        except FileExistsError:
            made = False
            _refuse_other(folder)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(lock(folder / LOCK_FILE, folder))
                _refuse_other(folder)  # a run may have come before the lock
            except FileNotFoundError:  # one that failed has just removed the folder
                continue
            except OSError:
                if made:
                    folder.rmdir()
                raise
            return made, held.pop_all()


def _refuse_other(folder: Path) -> None:
    """Raise where a folder holds anything that is worth something."""
    if not folder.is_dir():
        if folder.exists():
            raise Taken(f"{folder}: not a folder")
        return
    others = set(os.listdir(folder)) - {*_OWN, LOCK_FILE, CONFIG_FILE + ".tmp"}
    if others or started(folder):
        raise Taken(f"{folder}: exists; go on with --resume or choose a --name")


def started(folder: Path) -> bool:
    """Whether a run has a row or a checkpoint to go on from."""
    metrics, checkpoints = folder / METRICS_FILE, folder / CHECKPOINTS
    if metrics.is_file():
        with metrics.open("rb") as file:
            file.readline()  # the columns
            if file.readline().endswith(b"\n"):
                return True
    return checkpoints.is_dir() and any(p.name.isdigit() for p in checkpoints.iterdir())


def _clear(folder: Path) -> None:
    """Remove what a run made before its first row."""
    for name in (*_OWN, CONFIG_FILE + ".tmp"):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; an old one stays until then."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as `write_text` does."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_output(path: Path, *starts: bytes) -> None:
    """Raise unless a file can be written that is new, or of the kind it replaces.

    Args:
      path: of the file; its folder is made.
      *starts: one of these begins a file that may be replaced; an empty one may be.

    Raises:
      ValueError: there is another file, or a folder of this name.
      OSError: nothing can be written there.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder")
    if path.exists():
        with path.open("rb") as file:
            start = file.read(max(map(len, starts), default=0) or 1)
        if start and not any(start.startswith(known) for known in starts):
            other = " and is something else" if starts else ""
            raise ValueError(f"{path}: exists{other}; not overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(b"\n")
    finally:
        temporary.unlink(missing_ok=True)
