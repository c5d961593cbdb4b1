"""Observations as networks read them: as they come, states one-hot, levels scaled.

Rollouts and replay keep the integers, which need a fraction of the memory; every
network reads them here.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rljax.types import Levels, Masked, Obs, ObsLeaf, ObsSpec, Reading, Spec, States


def read(reading: Reading, obs: jax.Array, ndim: int) -> jax.Array:
    """Read observations as a network takes them.

    Args:
      reading: `Spec.reading`.
      obs: `[..., *shape]` of any dtype.
      ndim: axes of one observation.

    Returns:
      float32 `[..., *shape]`; of states one-hot, `[..., entries * number]`.

    Example:
      >>> read(States(3), jnp.array([[2], [0]]), ndim=1).tolist()
      [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
      >>> pixels = Levels(low=(0.0,), high=(255.0,))
      >>> read(pixels, jnp.array([255, 0], jnp.uint8), ndim=1).tolist()
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


def shape_read(leaf: ObsLeaf) -> tuple[int, ...]:
    """The shape of an array that was read."""
    if isinstance(leaf.reading, States):
        return (math.prod(leaf.shape) * leaf.reading.number,)
    return leaf.shape


def read_spec(spec: Spec) -> Spec:
    """The spec of observations that were read."""
    leaves = [
        leaf._replace(shape=shape_read(leaf), dtype="float32", reading=None)
        for leaf in spec.obs.leaves
    ]
    return spec._replace(obs=spec.obs._replace(leaves=tuple(leaves)))


def read_tree(obs_spec: ObsSpec, obs: Obs) -> Obs:
    """Read every array of observations; without their mask."""
    arrays = jax.tree.leaves(obs.obs if isinstance(obs, Masked) else obs)
    return obs_spec.tree(
        read(leaf.reading, array, len(leaf.shape))
        for leaf, array in zip(obs_spec.leaves, arrays, strict=True)
    )


def bounds(levels: Levels, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest level as arrays that broadcast against `shape`."""

    def array(bound: tuple[float, ...]) -> np.ndarray:
        one = len(bound) == 1
        return np.asarray(bound[0] if one else np.reshape(bound, shape), np.float32)

    return array(levels.low), array(levels.high)


def stacked(levels: Levels, shape: tuple[int, ...], size: int) -> Levels:
    """The levels of `size` observations side by side on the last axis."""

    def stack(bound: tuple[float, ...]) -> tuple[float, ...]:
        if len(bound) == 1:
            return bound
        repeated = np.concatenate([np.reshape(bound, shape)] * size, axis=-1)
        return tuple(repeated.ravel().tolist())

    return Levels(low=stack(levels.low), high=stack(levels.high))
