"""A uniform ring buffer on device, as pure functions."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import prng


class Replay(NamedTuple):
    """The last `capacity` items."""

    items: Any  # tree of [capacity, ...]
    added: jax.Array  # [] int32, items ever added, modulo twice the capacity


def init(example: Any, capacity: int) -> Replay:
    """An empty buffer.

    Args:
      example: one item, as arrays or `jax.ShapeDtypeStruct`s; dtypes are kept.
      capacity: items to hold.

    Returns:
      The buffer.
    """
    items = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    return Replay(items, jnp.zeros((), jnp.int32))


def size(replay: Replay) -> jax.Array:
    """Items that can be sampled, `[]` int32."""
    return jnp.minimum(replay.added, _capacity(replay))


def add(replay: Replay, batch: Any) -> Replay:
    """Write a batch over the oldest items.

    Args:
      replay: the buffer.
      batch: tree of `[B, ...]`; always the same B, which divides the capacity, so
        that a write is one contiguous block, in place inside a scan.

    Returns:
      The buffer with the batch.

    Raises:
      ValueError: B does not divide the capacity.
    """
    capacity, length = _capacity(replay), jax.tree.leaves(batch)[0].shape[0]
    if capacity % length:
        raise ValueError(f"capacity={capacity}: must be a multiple of {length}")
    start = replay.added % capacity
    items = jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, start, 0),
        replay.items,
        batch,
    )
    added = replay.added + length
    added = jnp.where(added >= 2 * capacity, added - capacity, added)
    return Replay(items, added)


def sample(replay: Replay, key: jax.Array, batch_size: int) -> Any:
    """Draw items uniformly, with replacement.

    Args:
      replay: a buffer that is not empty.
      key: `[]` typed key, consumed here.
      batch_size: B.

    Returns:
      Tree of `[B, ...]`.
    """
    index = prng.indices(key, (batch_size,), size(replay))
    return jax.tree.map(lambda x: x[index], replay.items)


def _capacity(replay: Replay) -> int:
    return jax.tree.leaves(replay.items)[0].shape[0]
