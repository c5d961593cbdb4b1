"""Checkpoints: a whole pytree on disk, written atomically, verified when read.

`folder/<step>/` holds the leaves as one orbax checkpoint (`arrays/`, entries named by
leaf number) and `manifest.json`: path, shape, dtype and SHA-256 of every leaf, SHA-256
of every file of orbax's and of itself. A step is written under a hidden name and
renamed when it is complete, so a folder with a plain number is never half written.
Nothing is pickled. One program writes a folder at a time; of its processes, where it
has several, all call these functions, process 0 writes, and all read.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rljax.running import hosts

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

__all__ = ["CheckpointError", "latest", "restore", "save"]

_MANIFEST = "manifest.json"
_ARRAYS = "arrays"
_FORMAT = 1
_REASONS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
# `sys.unraisablehook` before this module's, the last one
_hooks: list[Callable[["sys.UnraisableHookArgs"], object]] = []
_TEMPORARY = re.compile(r"\.\d+\.tmp")
SavedLeaf = jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic
T = TypeVar("T")  # a tree of leaves


class _Entry(TypedDict):
    """One leaf in the manifest."""

    path: str
    shape: list[int]
    dtype: str  # of a key it names the generator
    sha256: NotRequired[str]


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; one line naming the path and why."""


def save(folder: str | os.PathLike, step: int, state: Any, *, keep: int = 2) -> Path:
    """Writes `state` to `folder/<step>`, then removes the oldest steps before it.

    A kill at any moment leaves the steps that were complete, complete. Steps later
    than this one are never removed. It is complete on return, in every process.

    Args:
      folder: where the checkpoints of one run live; made if missing.
      step: number of the checkpoint, >= 0.
      state: a pytree of jax (typed keys too) and numpy arrays; sharded ones are
        gathered on the host.
      keep: number of checkpoints to leave, this one counted, >= 1.

    Returns: `folder/<step>`.

    Raises: CheckpointError: a leaf is not an array, the folder cannot be written, or
      `folder/<step>` exists with other content.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save(folder, 7, {"w": jnp.ones(2), "key": jax.random.key(0)})
      ...     like = {"w": jnp.zeros(2), "key": jax.random.key(1)}
      ...     latest(folder), restore(folder, like)["w"]
      (7, Array([1., 1.], dtype=float32))
    """
    folder, step = Path(folder).absolute(), int(step)
    target, temporary = folder / str(step), folder / f".{step}.tmp"
    if step < 0 or keep < 1:
        raise CheckpointError(f"{target}: {step=} must be >= 0 and {keep=} >= 1")
    flat = _flatten(target, state)
    arrays = []

    def write() -> None:
        leaves: list[_Entry] = [
            {**_describe(name, leaf), "sha256": _sha256(array)}
            for (name, leaf), array in zip(flat, arrays, strict=True)
        ]
        if os.path.lexists(target):
            _check_same(target, leaves)
            _prune(folder, step, keep)
            return
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write(temporary, leaves, arrays)
            os.rename(temporary, target)
        except Exception:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(folder)
        _prune(folder, step, keep)

    with _one_line(target):
        for _, leaf in flat:
            array = _to_host(leaf)  # in all processes: they exchange their parts
            if hosts.primary():
                arrays.append(array)
    try:
        hosts.on_primary(_one_line(target)(write))
    except hosts.PrimaryError as error:
        raise CheckpointError(str(error)) from error
    return target


@contextlib.contextmanager
def _one_line(target: Path) -> Iterator[None]:
    """Names the checkpoint that cannot be written, and why."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # orbax raises all sorts
        raise CheckpointError(f"{target}: cannot write: {_line(error)}") from error


def latest(folder: str | os.PathLike) -> int | None:
    """The newest complete step in `folder`; unfinished ones do not count.

    Args:
      folder: where the checkpoints of one run live; may be missing.

    Returns: the step, or None where there is no checkpoint; in every process what
      process 0 sees.

    Example:
      >>> latest("/nowhere") is None
      True
    """
    return hosts.agree(max(_steps(Path(folder)), default=None))


def restore(folder: str | os.PathLike, like: T, step: int | None = None) -> T:
    """Reads a checkpoint, bit for bit, after checking all of it.

    Args:
      folder: where the checkpoints of one run live.
      like: a pytree with the structure, shapes and dtypes expected: arrays, or the
        `jax.ShapeDtypeStruct`s of `jax.eval_shape`. Only leaves count: a container
        without any (an empty tuple, None) is taken from here. A leaf sharded over
        several devices is put back on them, however many it was saved from, the
        others whole on the default device of each process; numpy leaves stay numpy.
      step: which checkpoint; the latest if None.

    Returns: a pytree like `like`.

    Raises: CheckpointError: there is no such checkpoint, it is damaged, or it is not
      of this structure; then the first leaf that differs is named.
    """
    folder = Path(folder).absolute()
    step = latest(folder) if step is None else step
    if step is None:
        raise CheckpointError(f"{folder}: no checkpoint here")
    path = folder / str(step)
    flat = _flatten(path, like)
    expected = [_describe(name, leaf) for name, leaf in flat]
    saved, arrays = hosts.on_all(lambda: _read_like(path, expected))
    restored = [
        _to_device(path, entry, array=array, like=leaf)
        for entry, array, (_, leaf) in zip(saved, arrays, flat, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), restored)


def _read_like(
    path: Path, expected: list[_Entry]
) -> tuple[list[_Entry], list[np.ndarray]]:
    """Reads one step whose leaves are as expected; others are named if it cannot."""
    steps = _steps(path.parent)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint, steps here: {steps}")
    try:
        saved, arrays = _read(path)
    except CheckpointError as error:
        others = [other for other in steps if str(other) != path.name]
        hint = f"; other steps here: {others}" if others else ""
        raise CheckpointError(f"{error}{hint}") from error
    _check_leaves(path, saved, expected)
    return saved, arrays


def _steps(folder: Path) -> list[int]:
    """The steps in `folder`, oldest first, damaged ones too: not an empty folder."""
    return sorted(
        {
            int(path.parent.name)
            for path in folder.glob("*/*")
            if re.fullmatch(r"0|[1-9][0-9]*", path.parent.name)
        }
    )


def _flatten(path: Path, tree: Any) -> list[tuple[str, SavedLeaf]]:
    """Lists `(name, leaf)` of every leaf; anything but an array is an error."""
    flat = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "state" + jax.tree_util.keystr(keys)
        if not _is_array(leaf):
            what = getattr(leaf, "dtype", type(leaf).__name__)
            raise CheckpointError(f"{path}: {name} is no array of numbers: {what}")
        flat.append((name, leaf))
    return flat


def _is_array(leaf: Any) -> TypeGuard[SavedLeaf]:
    """Whether bytes can hold it: no Python objects, no empty arrays of keys."""
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return False
    if _is_key(leaf):
        return 0 not in leaf.shape
    return not leaf.dtype.hasobject


def _is_key(leaf: SavedLeaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(like: SavedLeaf) -> Any:
    """Finds the generator of a typed key, also where only its shape is known."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return found[0]


def _describe(name: str, leaf: SavedLeaf) -> _Entry:
    """Makes the manifest's entry of one leaf, without the checksum."""
    return {"path": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _to_host(leaf: Any) -> np.ndarray:
    return hosts.to_host(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _to_device(
    path: Path, entry: _Entry, *, array: np.ndarray, like: SavedLeaf
) -> SavedLeaf:
    if isinstance(like, np.ndarray | np.generic):
        return array if isinstance(like, np.ndarray) else array[()]
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        name = entry["path"]
        raise CheckpointError(f"{path}: {name} is {array.dtype}: set jax_enable_x64")
    sharding, impl = _sharding(like), _key_impl(like) if _is_key(like) else None
    if sharding is None:
        leaf = jnp.array(array)
        return leaf if impl is None else jax.random.wrap_key_data(leaf, impl=impl)
    # Not `device_put`, which waits for ever where processes share an array.
    if impl is None:
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    def wrap() -> jax.Array:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)

    return jax.jit(wrap, out_shardings=sharding)()


def _sharding(like: SavedLeaf) -> jax.sharding.Sharding | None:
    """Tells how `like` is spread over several devices, None where it is not."""
    sharding = getattr(like, "sharding", None)
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        return None  # eval_shape knows of the split, not of the devices
    return sharding if sharding and len(sharding.device_set) > 1 else None


def _write(folder: Path, leaves: list[_Entry], arrays: list[np.ndarray]) -> None:
    """Writes everything of one step to `folder`, and on to the disk."""
    if folder.exists():  # left by a killed run
        shutil.rmtree(folder)
    folder.mkdir()
    stored = {f"{i:05d}": a for i, a in enumerate(arrays) if a.size}
    if stored:  # orbax takes neither empty arrays nor an empty tree
        with _orbax() as checkpointer:
            checkpointer.save(folder / _ARRAYS, stored)
    manifest = {"format": _FORMAT, "leaves": leaves, "files": _sha256_files(folder)}
    manifest["sha256"] = _sha256(manifest)
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _read(path: Path) -> tuple[list[_Entry], list[np.ndarray]]:
    """Reads entries and arrays of one step's leaves, after a search for damage."""
    try:
        text = (path / _MANIFEST).read_bytes().decode()
        manifest = json.loads(text)
        if text not in (json.dumps(manifest), json.dumps(manifest, indent=1)):
            raise ValueError(f"{_MANIFEST} is not as it was written")
        if manifest.pop("sha256") != _sha256(manifest):
            raise ValueError(f"checksum of {_MANIFEST} differs")
        files = _sha256_files(path)
        for name, digest in manifest["files"].items():
            if files.get(name) != digest:
                what = "checksum differs" if name in files else "is missing"
                raise ValueError(f"{name}: {what}")
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']}, not {_FORMAT}")
        stored = {}
        if manifest["files"]:
            with _orbax() as checkpointer:
                stored = checkpointer.restore(path / _ARRAYS)
        leaves, arrays = manifest["leaves"], []
        for i, leaf in enumerate(leaves):
            shape, dtype = leaf["shape"], leaf["dtype"]
            array = np.zeros(shape, dtype) if 0 in shape else stored[f"{i:05d}"]
            if leaf["sha256"] != _sha256(array):
                raise ValueError(f"checksum of {leaf['path']} differs")
            arrays.append(array)
    except Exception as error:  # whatever a parser makes of garbled bytes
        raise CheckpointError(f"{path}: unreadable: {_line(error)}") from error
    return leaves, arrays


def _sha256(value: object) -> str:
    """SHA-256 of the bytes of an array, or of the JSON of anything else."""
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    else:
        data = json.dumps(value, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _sha256_files(folder: Path) -> dict[str, str]:
    """SHA-256 by relative path of every file of orbax's in the folder of a step."""
    digests = {}
    for path in sorted((folder / _ARRAYS).rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _check_leaves(path: Path, saved: list[_Entry], expected: list[_Entry]) -> None:
    """Raises at the first leaf whose path, shape or dtype differs."""

    def words(leaf: _Entry | None) -> str:
        if leaf is None:
            return "nothing"
        shape = ", ".join(map(str, leaf["shape"]))
        return f"{leaf['path']} {leaf['dtype']}[{shape}]"

    for i in range(max(len(saved), len(expected))):
        have, want = (leaves[i] if i < len(leaves) else None
                      for leaves in (saved, expected))  # fmt: skip
        if words(have) != words(want):
            raise CheckpointError(
                f"{path}: another structure: has {words(have)}, expected {words(want)}"
            )


def _check_same(path: Path, leaves: list[_Entry]) -> None:
    """Raises unless `path` is an intact checkpoint of these leaves."""
    try:
        same = _read(path)[0] == leaves
    except CheckpointError as error:
        raise CheckpointError(f"{error}; not overwritten") from error
    if not same:
        raise CheckpointError(f"{path}: exists with other content; not overwritten")


def _prune(folder: Path, step: int, keep: int) -> None:
    """Removes all but `keep - 1` of the steps before `step`, and what kills left."""
    older = [s for s in _steps(folder) if s < step]
    for old in older[: max(len(older) - keep + 1, 0)]:
        temporary = folder / f".{old}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        os.rename(folder / str(old), temporary)  # never half removed under its name
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Forces a file or folder to disk, for the case of a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _orbax() -> "Iterator[ocp.Checkpointer]":
    """Opens orbax for this process alone, with its log below errors muted."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    if sys.unraisablehook is not _without_late_callbacks:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _without_late_callbacks
    try:
        import orbax.checkpoint as ocp  # 0.3 to 1.2 s: only who needs it pays

        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}
        )
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            yield checkpointer
    finally:
        log.setLevel(level)


def _without_late_callbacks(unraisable: "sys.UnraisableHookArgs") -> None:
    """Calls the hook before, but for orbax's other writes when one of them has failed.

    They end after its event loop, and tensorstore prints a traceback for each.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        _hooks[-1](unraisable)


def _line(error: Exception) -> str:
    """An exception in one short line, the system's reason if it has one."""
    for reason in map(os.strerror, _REASONS):
        if reason in str(error):
            return reason
    text = (str(error).splitlines() or [""])[0][:200]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"
