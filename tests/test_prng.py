"""Fusible keys give jax's own numbers; bulk permutations and indices are uniform."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import prng

DRAWS = {
    "bits8": lambda key: jax.random.bits(key, (7,), jnp.uint8),
    "bits16": lambda key: jax.random.bits(key, (3, 5), jnp.uint16),
    "bits32": lambda key: jax.random.bits(key, (2, 3, 4), jnp.uint32),
    "scalar": lambda key: jax.random.bits(key),
    "empty": lambda key: jax.random.bits(key, (0, 4)),
    "normal": lambda key: jax.random.normal(key, (5,)),
    "uniform": lambda key: jax.random.uniform(key, (2, 3)),
    "randint": lambda key: jax.random.randint(key, (9,), -3, 11),
    "categorical": lambda key: jax.random.categorical(key, jnp.arange(4.0), shape=(6,)),
}
KEYS = {
    "pair": lambda key: jax.random.split(key),
    "many": lambda key: jax.random.split(key, 5),
    "matrix": lambda key: jax.random.split(key, (3, 4)),
    "fold_in": lambda key: jax.random.fold_in(key, 2**31 + 5),
    "of the second": lambda key: jax.random.split(jax.random.split(key)[1], 3),
    "clone": jax.random.clone,
}


def key():
    return jax.random.key(1234567)


def is_fusible(key):
    return "unrolled" in str(jax.random.key_impl(key))


def test_numbers_equal_jax():
    def draw(key):
        return {name: fn(key) for name, fn in DRAWS.items()}

    want = jax.jit(draw)(key())
    got = jax.jit(draw)(prng.fusible(key()))
    mapped = jax.jit(jax.vmap(draw))(prng.fusible(jnp.stack([key(), key()])))
    got, want, mapped = jax.tree.map(np.array, (got, want, mapped))
    for name in DRAWS:
        assert got[name].dtype == want[name].dtype
        np.testing.assert_array_equal(got[name], want[name], name)
        np.testing.assert_array_equal(mapped[name][1], want[name], name)


@pytest.mark.parametrize("jaxlib", [(0, 10, 2), (0, 11, 0)])
def test_keys_equal_jax(monkeypatch, jaxlib):
    monkeypatch.setattr(prng, "_JAXLIB", jaxlib)

    def derive(key):
        return {name: fn(key) for name, fn in KEYS.items()}

    want = jax.jit(derive)(key())
    got = jax.jit(derive)(prng.fusible(key()))
    mapped = jax.jit(jax.vmap(derive))(prng.fusible(jnp.stack([key(), key()])))
    for name in KEYS:
        assert is_fusible(got[name]) and is_fusible(mapped[name])
        data = jax.random.key_data(want[name])
        np.testing.assert_array_equal(jax.random.key_data(got[name]), data, name)
        np.testing.assert_array_equal(jax.random.key_data(mapped[name][1]), data, name)


def test_numbers_of_64_bits_equal_jax(x64):
    @jax.jit
    def draw(key):
        return (
            jax.random.bits(key, (3, 5), jnp.uint64),
            jax.random.normal(key, (4,), jnp.float64),
            jax.random.key_data(jax.random.fold_in(key, jnp.int64(2**33 + 3))),
        )

    got, want = draw(prng.fusible(key())), draw(key())
    assert got[0].dtype == jnp.uint64 and got[1].dtype == jnp.float64
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize(
    "make",
    [lambda key: jax.random.bits(key, (4,)), lambda key: jax.random.split(key)],
    ids=["bits", "keys"],
)
def test_rounds_are_unrolled_on_cpu_and_jax_own_elsewhere(monkeypatch, make):
    monkeypatch.setattr(prng, "_JAXLIB", (0, 10, 2))
    traced = jax.jit(lambda key: make(prng.fusible(key))).trace(key())
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "shift_left" in on_cpu and "stablehlo.while" not in on_cpu
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "call @threefry2x32" in text


def test_keys_are_jax_own_where_llvm_takes_too_long(monkeypatch):
    monkeypatch.setattr(prng, "_JAXLIB", (0, 11, 0))
    traced = jax.jit(lambda key: jax.random.split(prng.fusible(key))).trace(key())
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "call @threefry2x32" in on_cpu or "stablehlo.while" in on_cpu


def test_plain_undoes_fusible():
    keys = jax.random.split(key(), (2, 3))
    fusible = prng.fusible(keys)
    assert is_fusible(fusible) and fusible.shape == keys.shape
    back = prng.plain(fusible)
    assert jax.random.key_impl(back) == jax.random.key_impl(keys)
    assert (back == keys).all()
    assert prng.plain(keys) is keys


def test_keys_of_another_kind_come_back():
    rbg = jax.random.key(0, impl="rbg")
    assert prng.fusible(rbg) is rbg
    assert prng.plain(rbg) is rbg
    twice = prng.fusible(prng.fusible(key()))
    assert is_fusible(twice) and prng.plain(twice) == key()


def test_too_many_numbers_from_one_key():
    bits = jax.jit(lambda k: jax.random.bits(k, (2**16, 2**16)))
    with pytest.raises(ValueError, match=r"shape=\(65536, 65536\): at most"):
        bits.lower(prng.fusible(key()))


permutations = jax.jit(prng.permutations, static_argnums=(1, 2))


@pytest.mark.parametrize("length", [1, 8, 9, 1000])
def test_permutations_are_permutations(length):
    rows = permutations(jax.random.key(0), 5, length)
    assert (rows.shape, rows.dtype) == ((5, length), jnp.int32)
    want = np.broadcast_to(np.arange(length), (5, length))
    np.testing.assert_array_equal(np.sort(rows, axis=1), want)


def test_permutations_of_more_than_2_to_16():
    rows = np.array(permutations(jax.random.key(0), 2, 2**16 + 1))
    np.testing.assert_array_equal(np.sort(rows, axis=1)[1], np.arange(2**16 + 1))
    assert (rows[0] != rows[1]).any()


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


def test_permutations_are_uniform():
    rows = np.array(permutations(jax.random.key(0), 24_000, 4))
    order = [list(p) for p in itertools.permutations(range(4))]
    counts = np.array([(rows == p).all(axis=1).sum() for p in order])
    assert counts.sum() == 24_000
    assert chi_square(counts) < 49.7  # 99.9 % of 23 degrees of freedom


@pytest.mark.parametrize("size", [1, 3, 64])
def test_indices_are_uniform(size):
    draw = jax.jit(lambda key, size: prng.indices(key, (200, 64), size))
    index = draw(jax.random.key(0), np.int32(size))
    assert index.dtype == jnp.int32
    counts = np.bincount(np.ravel(index), minlength=size)
    assert counts.size == size
    assert chi_square(counts) < 2 * size + 15
