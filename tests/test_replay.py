"""The ring buffer against a deque."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import replay

CAPACITY = 12
EXAMPLE = {
    "obs": jax.ShapeDtypeStruct((2,), jnp.bool),
    "id": jax.ShapeDtypeStruct((), jnp.int32),
}


def batch(first, length):
    index = first + jnp.arange(length, dtype=jnp.int32)
    return {"obs": jnp.stack([index % 2 == 0, index % 2 == 1], axis=1), "id": index}


@pytest.mark.parametrize("length", [1, 3, 4, 12])
def test_holds_what_a_deque_holds(length):
    buffer = replay.init(EXAMPLE, CAPACITY)
    deque = collections.deque(maxlen=CAPACITY)
    add = jax.jit(replay.add)
    for first in range(0, 5 * CAPACITY, length):  # the counter wraps at 2 * CAPACITY
        buffer = add(buffer, batch(first, length))
        deque.extend(range(first, first + length))
        assert replay.size(buffer) == len(deque)
        held = np.asarray(buffer.items["id"])[: len(deque)]
        assert sorted(held) == list(deque)
        if len(deque) == CAPACITY:  # the oldest is where the next will be written
            oldest = int(buffer.added) % CAPACITY
            assert list(np.roll(held, -oldest)) == list(deque)
        assert 0 <= buffer.added < 2 * CAPACITY
    np.testing.assert_array_equal(buffer.items["obs"][:, 0], held % 2 == 0)


def test_dtypes_are_kept():
    buffer = replay.add(replay.init(EXAMPLE, CAPACITY), batch(0, 4))
    sample = replay.sample(buffer, jax.random.key(0), 5)
    for tree in (buffer.items, sample):
        assert (tree["obs"].dtype, tree["id"].dtype) == (jnp.bool, jnp.int32)
    assert sample["obs"].shape == (5, 2)


def test_samples_only_what_was_added_and_keeps_items_together():
    buffer = replay.init(EXAMPLE, CAPACITY)
    buffer = replay.add(buffer, batch(5, 4))
    sample = replay.sample(buffer, jax.random.key(0), 1000)
    assert set(np.unique(sample["id"])) == {5, 6, 7, 8}
    np.testing.assert_array_equal(sample["obs"][:, 0], sample["id"] % 2 == 0)
    for first in (9, 13, 17):  # 17 .. 20 overwrite the first
        buffer = replay.add(buffer, batch(first, 4))
    sample = replay.sample(buffer, jax.random.key(1), 1000)
    assert set(np.unique(sample["id"])) == set(range(9, 21))


def test_samples_uniformly():
    buffer = replay.init(EXAMPLE, CAPACITY)
    for first in range(0, 4 * CAPACITY, 4):
        buffer = replay.add(buffer, batch(first, 4))
    sample = replay.sample(buffer, jax.random.key(0), 12_000)
    counts = np.bincount(sample["id"] - 3 * CAPACITY, minlength=CAPACITY)
    assert ((counts - 1000) ** 2 / 1000).sum() < 31.3  # 99.9 % of 11 degrees


def test_a_batch_that_does_not_divide_the_capacity():
    with pytest.raises(ValueError, match="capacity=12: must be a multiple of 5"):
        replay.add(replay.init(EXAMPLE, CAPACITY), batch(0, 5))


def test_vmapped_buffers_are_independent():
    buffers = jax.vmap(lambda _: replay.init(EXAMPLE, CAPACITY))(jnp.arange(3))
    batches = jax.vmap(lambda first: batch(first, 4))(jnp.array([0, 100, 200]))
    buffers = jax.vmap(replay.add)(buffers, batches)
    keys = jax.random.split(jax.random.key(0), 3)
    sample = jax.vmap(replay.sample, (0, 0, None))(buffers, keys, 50)
    np.testing.assert_array_equal(np.unique(sample["id"][1]), [100, 101, 102, 103])
    np.testing.assert_array_equal(np.unique(sample["id"][2]), [200, 201, 202, 203])


def test_a_scan_writes_in_place():
    def run(buffer):
        def add(buffer, first):
            return replay.add(buffer, batch(first, 4)), None

        return jax.lax.scan(add, buffer, jnp.arange(100))[0]

    big = replay.init(EXAMPLE, 4_000)
    compiled = jax.jit(run, donate_argnums=0).lower(big).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4_000  # no second buffer
