"""Collectives over the shards of one run, along the axis `AXIS`.

A run is split by binding the axis, with `jax.shard_map` over a mesh or with
`jax.vmap(axis_name=AXIS)`. Every shard plays a part of the environments, keeps a part
of the replay and takes the gradient of a part of each batch; parameters are the same
on all. Where the axis is not bound each function here returns its argument, and a
program stays as it would be without.

A gradient is averaged itself, `mean(jax.grad(loss))`: the gradient of an averaged loss
is a shard's own part of it.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

AXIS = "data"
T = TypeVar("T")  # a tree of arrays


def size() -> int:
    """Count the shards of the run that is being traced.

    Example:
      >>> size()
      1
      >>> jax.vmap(lambda x: x * size(), axis_name=AXIS)(jnp.ones(3)).tolist()
      [3.0, 3.0, 3.0]
    """
    try:
        return jax.lax.axis_size(AXIS)
    except NameError:  # the axis is not bound
        return 1


def axis_name() -> str | None:
    """Name the axis to the losses that take one; None where a run is not split."""
    return AXIS if size() > 1 else None


def mean(tree: T) -> T:
    """Average every array over the shards.

    Example:
      >>> jax.vmap(mean, axis_name=AXIS)(jnp.array([1.0, 3.0])).tolist()
      [2.0, 2.0]
    """
    return _over(jax.lax.pmean, tree)


def total(tree: T) -> T:
    """Sum every array over the shards."""
    return _over(jax.lax.psum, tree)


def greatest(tree: T) -> T:
    """Take the greatest of every number over the shards."""
    return _over(jax.lax.pmax, tree)


def variance(x: jax.Array, axis: int | None = None) -> jax.Array:
    """Variance of the numbers of all shards.

    Args:
      x: a shard's, as many on each.
      axis: as of `jnp.var`.

    Example:
      >>> jax.vmap(variance, axis_name=AXIS)(jnp.array([1.0, 3.0])).tolist()
      [1.0, 1.0]
    """
    if size() == 1:
        return x.var(axis)
    # Not the mean of the shards' variances: their means differ.
    average = mean(x.mean(axis, keepdims=True))
    return mean(jnp.square(x - average).mean(axis))


def fold(key: jax.Array) -> jax.Array:
    """Make a key of each shard's own from a key that they share."""
    if size() == 1:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(AXIS))


def shared(key: jax.Array) -> jax.Array:
    """Give every shard the key of the first."""
    if size() == 1:
        return key
    data = jax.random.key_data(key)
    first = total(jnp.where(jax.lax.axis_index(AXIS) == 0, data, 0))
    return jax.random.wrap_key_data(first, impl=jax.random.key_impl(key))


def _over(collective: Callable[[jax.Array, str], jax.Array], tree: T) -> T:
    if size() == 1:
        return tree
    return jax.tree.map(lambda x: collective(x, AXIS), tree)
