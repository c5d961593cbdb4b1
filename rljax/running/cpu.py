"""Devices and threads of runs on CPU.

All devices share the threads, and a device gives them the operations of its program.
The operations of a small network take less time than waking a thread does.
"""

import os
from typing import NamedTuple

import jax
import jax.extend.backend

_THREADS = "PJRT_NPROC"  # of the process, as XLA reads it
# Of a product, in multiplications. One thread of two gives SAC with batches of 128 1.4
# times the speed with layers of 64 (2^19), 1.25 times with layers of 128 (2^21), and
# with batches of 256 and layers of 256 (2^24) 0.6 times; A2C and DQN 1.9 times, DQN
# with the MinAtar network and batches of 32 (2^22) twice the speed.
_SMALL = 2**22


class Share(NamedTuple):
    """A part of a CPU."""

    devices: int
    threads: int  # of all devices


_given: Share | None = None
_written: str | None = None  # number of threads, where it is not the user's


def set_cpu_devices(num_devices: int, num_threads: int | None = None) -> Share:
    """Split the host's CPU into several jax devices.

    A small program runs faster on one thread than on two; two of them on two devices
    use two cores. Call it before jax computes anything. The environment variable
    PJRT_NPROC, where set, stays the number of threads.

    Args:
      num_devices: usually the number of cores, at most the number of runs.
      num_threads: that all devices share; one for each unless given.

    Returns:
      What the process has now.

    Raises:
      RuntimeError: jax has started already.
    """
    global _given, _written
    jax.config.update("jax_num_cpu_devices", num_devices)
    if os.environ.get(_THREADS) in (None, _written):
        _written = os.environ[_THREADS] = str(num_threads or num_devices)
    _given = Share(num_devices, int(os.environ[_THREADS]))
    return _given


def share(cores: int, *, runs: int, parts: int, product: int | None) -> Share:
    """Decide what runs get.

    Args:
      cores: of this process.
      runs: seeds, or hyperparameters to try.
      parts: devices that a run can use, as `Agent.parts`.
      product: multiplications of the largest matrix product of a gradient step; None
        where they are unknown.

    Example:
      >>> share(8, runs=1, parts=1, product=128 * 64 * 64)
      Share(devices=1, threads=1)
      >>> share(8, runs=1, parts=1, product=256 * 256 * 256)
      Share(devices=1, threads=8)
    """
    devices = min(cores, runs * parts)
    small = product is not None and product <= _SMALL
    return Share(devices, devices if small else cores)


def take(wanted: Share) -> None:
    """Start jax again with the share, if `set_cpu_devices` gave this process another.

    Programs are forgotten. Arrays from before stay readable, on devices that no new
    program uses.
    """
    if _given in (None, wanted) or jax.devices()[0].platform != "cpu":
        return
    jax.extend.backend.clear_backends()
    set_cpu_devices(wanted.devices, wanted.threads)
