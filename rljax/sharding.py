"""Independent runs, one group per device."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec


def set_cpu_devices(num_devices: int) -> None:
    """Split the host's CPU into several jax devices, so that runs go in parallel.

    A small program runs faster on one thread than on two; two of them on two
    devices use two cores. Call it before jax computes anything.

    Args:
      num_devices: usually the number of cores, at most the number of runs.

    Raises:
      RuntimeError: jax has started already.
    """
    jax.config.update("jax_num_cpu_devices", num_devices)


def map_runs(run: Callable[..., Any]) -> Callable[..., Any]:
    """Map a function over the leading axis of its arguments, split over devices.

    On each device the runs go one after the other on CPU, where batching small
    matrices is slower than not to, and vmapped on accelerators.

    Args:
      run: function of arrays, for one run; for example
        `lambda key: train.train(agent, env, config, key)`.

    Returns:
      The same function with a leading axis `[R]` on every argument and result.

    Example:
      >>> import jax.numpy as jnp
      >>> map_runs(lambda x: x + 1)(jnp.arange(3)).tolist()
      [1, 2, 3]
    """

    def one_device(args: Any) -> Any:
        if jax.default_backend() == "cpu":
            return jax.lax.map(lambda a: run(*a), args)
        return jax.vmap(lambda a: run(*a))(args)

    def mapped(*args: Any) -> Any:
        num_runs = jax.tree.leaves(args)[0].shape[0]
        devices = jax.devices()
        num_devices = max(
            n for n in range(1, len(devices) + 1) if num_runs % n == 0 or n == 1
        )
        mesh = Mesh(devices[:num_devices], ("runs",))
        specs = PartitionSpec("runs")
        shards = jax.shard_map(
            one_device, mesh=mesh, in_specs=(specs,), out_specs=specs, check_vma=False
        )
        return jax.jit(shards)(args)

    return mapped
