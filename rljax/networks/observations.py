"""How networks read observations: as they come, states one-hot, levels scaled.

Rollouts and replay keep the integers, which need a fraction of the memory; every
network reads them here.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rljax.types import Levels, Spec, States


def read(reading: States | Levels | None, obs: jax.Array, ndim: int) -> jax.Array:
    """Observations as a network takes them.

    Args:
      reading: `Spec.reading`.
      obs: `[..., *obs_shape]` of any dtype.
      ndim: axes of one observation.

    Returns:
      float32 `[..., *obs_shape]`; of states one-hot, `[..., entries * number]`.

    Example:
      >>> read(States(3), jnp.array([[2], [0]]), ndim=1).tolist()
      [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
      >>> read(Levels((0.0,), (255.0,)), jnp.array([255, 0], jnp.uint8), 1).tolist()
      [1.0, 0.0]
    """
    if isinstance(reading, States):
        one_hot = jax.nn.one_hot(obs, reading.number, dtype=jnp.float32)
        return one_hot.reshape(*obs.shape[: obs.ndim - ndim], -1)
    obs = obs.astype(jnp.float32)
    if reading is None:
        return obs
    low, high = bounds(reading, obs.shape[obs.ndim - ndim :])
    return (obs - low) / (high - low)


def read_spec(spec: Spec) -> Spec:
    """The spec of observations that were read."""
    shape = spec.obs_shape
    if isinstance(spec.reading, States):
        shape = (math.prod(shape) * spec.reading.number,)
    return spec._replace(obs_shape=shape, obs_dtype="float32", reading=None)


def bounds(levels: Levels, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest level as arrays that broadcast against `shape`."""
    low, high = (
        np.float32(bound[0]) if len(bound) == 1 else np.reshape(bound, shape)
        for bound in levels
    )
    return np.asarray(low, np.float32), np.asarray(high, np.float32)


def stacked(levels: Levels, shape: tuple[int, ...], size: int) -> Levels:
    """The levels of `size` observations side by side on the last axis."""

    def stack(bound: tuple[float, ...]) -> tuple[float, ...]:
        if len(bound) == 1:
            return bound
        repeated = np.concatenate([np.reshape(bound, shape)] * size, axis=-1)
        return tuple(repeated.ravel().tolist())

    return Levels(stack(levels.low), stack(levels.high))
