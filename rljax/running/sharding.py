"""Runs over devices, one group each; shards of a run or its parts, one each."""

import dataclasses
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax.contracts import RunConfig
from rljax.running import parallel
from rljax.running.cpu import set_cpu_devices as set_cpu_devices

_RUNS, _PARTS = "runs", "parts"  # axes of the mesh, beside that of the shards
_USED = 0.8  # of a device's memory, by one program
_DIVIDED = ("num_envs", "capacity", "batch_size", "warmup_steps")  # over shards
T = TypeVar("T")  # a tree of arrays
C = TypeVar("C", bound=RunConfig)
Args = tuple[Any, ...]  # of a run: trees of arrays, `[R, ...]` of R runs


def split_mesh(runs: int, shards: int) -> Mesh:
    """Make a mesh `[runs at once, shards]` for runs that are split over devices.

    Args:
      runs: how many there are.
      shards: of each run.

    Raises:
      ValueError: so many devices are not there, or some of several processes would be
        left over.

    Example:
      >>> split_mesh(runs=4, shards=1).shape["data"]
      1
    """
    devices = jax.devices()
    if not 1 <= shards <= len(devices):
        raise ValueError(f"data_parallel={shards}: there are {len(devices)} devices")
    rows = len(devices) // shards
    if jax.process_count() == 1:
        rows = min(runs, rows)
    elif len(devices) % shards:
        raise ValueError(
            f"data_parallel={shards}: must divide the {len(devices)} devices of all "
            "processes"
        )
    # The shards of a run stay in a process as long as they fit there.
    grid = np.array(devices[: rows * shards]).reshape(rows, shards)
    return Mesh(grid, (_RUNS, parallel.AXIS))


def share(config: C, shards: int) -> C:
    """Return the config of a shard, for a run split over devices.

    Environments, replay, batches and steps are divided. What a shard's own program
    counts, such as minibatches and updates, stays.

    Args:
      config: the agent's, of the whole run.
      shards: how many there are.

    Raises:
      ValueError: names the field that does not divide; or what is wrong with a shard's
        config.

    Example:
      >>> from rljax import agents
      >>> share(agents.get("ppo").Config(num_envs=8), 2).num_envs
      4
    """
    if shards == 1:
        return config
    divided = {"total_steps": -(-config.total_steps // shards)}
    for name in _DIVIDED:
        if hasattr(config, name):
            whole = getattr(config, name)
            if whole % shards:
                raise ValueError(f"{name}={whole}: must divide by {shards} shards")
            divided[name] = whole // shards
    shard = dataclasses.replace(config, **divided)  # pyright: ignore
    try:
        shard.validate()
    except ValueError as error:
        raise ValueError(f"in each of {shards} shards: {error}") from error
    return shard


def copies(tree: T, shards: int) -> T:
    """Repeat arrays `[R, ...]` to `[R, shards, ...]`: a run's shards share them."""
    return jax.tree.map(lambda x: jnp.repeat(x[:, None], shards, axis=1), tree)


def bytes_of_a_device() -> int:
    """Memory that a program may take on each device; on CPU they share the host's."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    there = stats.get("bytes_limit")
    if there is None:
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        there = host // jax.local_device_count()
    return int(_USED * there)


def bytes_needed(program: jax.stages.Compiled) -> int:
    """Memory that a program takes on each device: inputs, outputs, all in between."""
    found = program.memory_analysis()
    if found is None:  # the backend does not tell
        return 0
    sizes = (
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.temp_size_in_bytes,
    )
    return sum(sizes) - found.alias_size_in_bytes


def map_runs(
    run: Callable[..., T], at_once: int = 1, parts: int = 1, mesh: Mesh | None = None
) -> Callable[..., T]:
    """Map a function over the leading axis of its arguments, split over devices.

    On each device the runs go one group after the other on CPU, where batching
    larger programs is slower than not to, and vmapped on accelerators.

    Args:
      run: function of arrays, for one run; for example
        `lambda key: train.train(agent, env, config, key)`.
      at_once: at most this many runs are vmapped on CPU; see `train.runs_at_once`.
      parts: on CPU, where that many devices are left for each run, they all follow
        the run and share out the functions of `side_by_side`; usually `agent.parts`.
      mesh: as of `split_mesh`, to split every run over devices: `run` is then for one
        shard, with the config of `share`, and the functions of `parallel` reach the
        others. None: each run stays on a device.

    Returns:
      The same function with a leading axis `[R]`, and with a mesh axes `[R, shards]`,
      on every argument and result. Where the devices do not divide the runs, those left
      over repeat the last run, and the results are on every device, in as many parts as
      divide both evenly.

    Raises:
      ValueError: arguments that do not have an axis of shards.

    Example:
      >>> import jax.numpy as jnp
      >>> map_runs(lambda x: x + 1)(jnp.arange(3)).tolist()
      [1, 2, 3]
    """

    def mapped(*args: Any) -> T:
        runs = _length(args)
        grid = mesh or _mesh(runs, parts)
        spread = _spread(run, grid, at_once)
        rows, place = grid.shape[_RUNS], placement(runs, parts, mesh)
        if runs % rows == 0:
            return jax.jit(spread, out_shardings=place)(args)

        def filled(args: Args) -> T:
            index = np.minimum(np.arange(-(-runs // rows) * rows), runs - 1)
            results = spread(jax.tree.map(lambda x: x[index], args))
            return jax.tree.map(lambda x: x[:runs], results)

        return jax.jit(filled, out_shardings=place)(args)

    return mapped


def placement(runs: int, parts: int = 1, mesh: Mesh | None = None) -> NamedSharding:
    """Say on which devices `map_runs` leaves its results.

    Args:
      runs: how many there are.
      parts: as `map_runs` takes it.
      mesh: likewise.

    Example:
      >>> tuple(placement(runs=1).spec)
      ('runs',)
    """
    grid = mesh or _mesh(runs, parts)
    if runs % grid.shape[_RUNS] == 0:
        return NamedSharding(grid, PartitionSpec(*_axes(grid)))
    return _shared(grid, runs)


def _axes(mesh: Mesh) -> tuple[str, ...]:
    """The leading axes of arguments and results, as the mesh divides them."""
    return (_RUNS, parallel.AXIS) if parallel.AXIS in mesh.axis_names else (_RUNS,)


def _spread(run: Callable[..., T], mesh: Mesh, at_once: int) -> Callable[[Args], T]:
    """Spread runs over the rows of a mesh, and their shards, if any, over columns."""
    split = parallel.AXIS in mesh.axis_names
    axes = _axes(mesh)

    def one_device(args: Args) -> T:
        group = at_once if _on_cpu(mesh) else _length(args)
        if not split:
            return _grouped(run, args, group)
        _check_shards(args)
        results = _grouped(run, _without_axis(args, 1), group)
        return _with_axis(results, 1)

    return jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(PartitionSpec(*axes),),
        out_specs=PartitionSpec(*axes),
        check_vma=False,  # else the gradient of a collective is another
    )


def _grouped(run: Callable[..., T], args: Args, at_once: int) -> T:
    """Map a function over the leading axis, so many of its places vmapped."""

    def one(args: Args) -> T:
        return run(*args)

    runs = _length(args)
    if runs == 1:
        return _with_axis(one(_without_axis(args, 0)), 0)
    group = _largest_divisor(runs, at_once)
    if group == runs:
        return jax.vmap(one)(args)
    if group == 1:
        return jax.lax.map(one, args)
    # Not `batch_size` of `lax.map`: it fails if a result has an axis of length 0.
    shape = (runs // group, group)
    groups = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), args)
    results = jax.lax.map(jax.vmap(one), groups)
    return jax.tree.map(lambda x: x.reshape(runs, *x.shape[2:]), results)


def side_by_side(*branches: Callable[[], Any]) -> tuple[Any, ...]:
    """Call functions that do not depend on each other, on two devices or on one.

    In a program that `map_runs` spreads with `parts`, every device calls its share
    of the functions, and one exchange gives all results to all. Anywhere else they
    are called one after the other. Derivatives are exact either way.

    Args:
      *branches: functions without arguments that return trees of arrays.

    Returns:
      Their results, in order.

    Example:
      >>> a, b = side_by_side(lambda: jnp.sin(0.0), lambda: {"x": jnp.arange(2)})
      >>> float(a), b["x"].tolist()
      (0.0, [0, 1])
    """
    mesh = jax.sharding.get_abstract_mesh()
    if _PARTS not in mesh.axis_names:
        return tuple(branch() for branch in branches)
    converted = [jax.closure_convert(branch) for branch in branches]
    inputs = [list(constants) for _, constants in converted]

    def calls(inputs: list[list[jax.Array]]) -> list[Callable[[], Any]]:
        pairs = zip(converted, inputs, strict=True)
        return [partial(function, *constants) for (function, _), constants in pairs]

    def shared(inputs: list[list[jax.Array]]) -> tuple[Any, ...]:
        here = calls(inputs)
        shapes = [jax.eval_shape(call) for call in here]
        sizes = [sum(_num_words(x) for x in jax.tree.leaves(s)) for s in shapes]
        parts = mesh.shape[_PARTS]

        def share(part: int) -> jax.Array:
            return jnp.concatenate(
                [
                    _words(call()) if i % parts == part else jnp.zeros(size, jnp.uint32)
                    for i, (call, size) in enumerate(zip(here, sizes, strict=True))
                ]
            )

        shares = [partial(share, part) for part in range(parts)]
        words = jax.lax.switch(jax.lax.axis_index(_PARTS), shares)
        pieces = jnp.split(jax.lax.psum(words, _PARTS), np.cumsum(sizes)[:-1])
        return tuple(map(_from_words, pieces, shapes))

    # psum of bits has no derivative; the functions' derivatives need no exchange.
    def all_here(inputs: list[list[jax.Array]]) -> tuple[Any, ...]:
        return tuple(call() for call in calls(inputs))

    exact = jax.custom_jvp(shared)
    exact.defjvp(lambda x, dx: jax.jvp(all_here, x, dx))
    return exact(inputs)


def _mesh(runs: int, parts: int) -> Mesh:
    """Devices `[runs at once, parts or 1]`."""
    devices = jax.devices()
    rows = min(runs, len(devices))
    if jax.process_count() > 1:  # each takes part, and has a share of the results
        rows = len(devices)
    columns = parts if _on_cpu(None) and rows * parts <= len(devices) else 1
    if columns == 1:
        return Mesh(devices[:rows], (_RUNS,))
    grid = np.array(devices[: rows * columns]).reshape(rows, columns)
    return Mesh(grid, (_RUNS, _PARTS))


def _shared(mesh: Mesh, runs: int) -> NamedSharding:
    """Runs on all devices of the mesh, in as many parts as divide them evenly."""
    divisor = math.gcd(runs, mesh.shape[_RUNS])
    shards = mesh.shape.get(parallel.AXIS, 1)
    grid = mesh.devices.reshape(divisor, -1, shards)
    axes = (_RUNS,) if shards == 1 else (_RUNS, parallel.AXIS)
    grid = Mesh(grid, (_RUNS, "copies", parallel.AXIS))
    return NamedSharding(grid, PartitionSpec(*axes))


def _on_cpu(mesh: Mesh | None) -> bool:
    """Whether the mesh, or that of all devices, is one of CPUs."""
    devices = jax.devices() if mesh is None else mesh.devices.flat
    return devices[0].platform == "cpu"


def _check_shards(args: Args) -> None:
    """Raise unless arguments of a device have one place for a shard."""
    for leaf in jax.tree.leaves(args):
        if leaf.shape[1:2] != (1,):
            raise ValueError(
                "map_runs: arguments need axes [runs, shards], as many shards as the "
                f"mesh has; each device has {leaf.shape}"
            )


def _without_axis(tree: T, axis: int) -> T:
    """Arrays without an axis of length 1."""
    return jax.tree.map(lambda x: _in_order(x.squeeze(axis)), tree)


def _with_axis(tree: T, axis: int) -> T:
    """Arrays with one more axis of length 1."""

    def expanded(x: jax.Array) -> jax.Array:
        return _in_order(jnp.expand_dims(_in_order(x), axis))

    return jax.tree.map(expanded, tree)


def _in_order(x: jax.Array) -> jax.Array:
    """The array with its axes in memory as they are written.

    Left to choose where an axis of length 1 goes, such as that of one environment, XLA
    may choose differently in a loop and outside, and copy a whole replay twice.
    """
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def _words(tree: Any) -> jax.Array:
    """Put the bits of all leaves into one vector of 32-bit words."""
    wide = [x.astype(_wide(x.dtype)) for x in jax.tree.leaves(tree)]
    words = [jax.lax.bitcast_convert_type(x, jnp.uint32).ravel() for x in wide]
    return jnp.concatenate(words)


def _from_words(words: jax.Array, like: T) -> T:
    """Undo `_words`; `like` has the shapes and dtypes."""
    leaves, structure = jax.tree.flatten(like)
    sizes = [_num_words(x) for x in leaves]
    out = []
    for x, piece in zip(leaves, jnp.split(words, np.cumsum(sizes)[:-1]), strict=True):
        wide = _wide(x.dtype)
        pair = (2,) if wide.itemsize == 8 else ()
        wide_x = jax.lax.bitcast_convert_type(piece.reshape(*x.shape, *pair), wide)
        out.append(wide_x.astype(x.dtype))
    return structure.unflatten(out)


def _num_words(x: jax.Array | jax.ShapeDtypeStruct) -> int:
    return x.size * _wide(x.dtype).itemsize // 4


def _wide(dtype: np.dtype) -> np.dtype:
    """The dtype itself, or one of 32 bits that holds all its values."""
    if dtype.itemsize >= 4:
        return np.dtype(dtype)
    floating = jnp.issubdtype(dtype, jnp.floating)
    return np.dtype(np.float32 if floating else np.int32)


def _length(tree: Args) -> int:
    return jax.tree.leaves(tree)[0].shape[0]


def _largest_divisor(number: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if number % n == 0)
