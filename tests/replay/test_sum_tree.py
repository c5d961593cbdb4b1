"""The sum tree: sums, draws, and what rounding must not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.replay import sum_tree

SIZES = [1, 7, 8, 9, 64, 65, 1000]


@jax.jit
def filled(values):
    index = jnp.arange(len(values))
    return sum_tree.update(sum_tree.init(len(values)), index, jnp.asarray(values))


sample = jax.jit(sum_tree.sample)


def check_sums(tree):
    tree = jax.tree.map(np.array, tree)
    for upper, lower in zip(tree.levels, tree.levels[1:], strict=False):
        sums = lower.sum(axis=-1)
        np.testing.assert_allclose(upper.reshape(-1)[: len(sums)], sums, rtol=1e-6)
        assert (upper.reshape(-1)[len(sums) :] == 0).all()


@pytest.mark.parametrize("size", SIZES)
def test_sums_and_values(size):
    values = np.random.default_rng(size).random(size).astype(np.float32)
    tree = filled(values)
    np.testing.assert_allclose(sum_tree.total(tree), values.sum(), rtol=1e-5)
    got = jax.jit(sum_tree.values)(tree, np.arange(size))
    np.testing.assert_array_equal(got, values)
    check_sums(tree)


@pytest.mark.parametrize("size", SIZES)
def test_every_share_of_the_mass_leads_to_its_item(size):
    values = np.random.default_rng(size).integers(0, 4, size).astype(np.float32)
    values[0] = 1.0
    owners = np.repeat(np.arange(size), values.astype(int))  # of each unit of mass
    middle = (np.arange(2_000) % len(owners) + 0.5) / len(owners)
    got = sample(filled(values), np.float32(middle))  # of one shape for all sizes
    np.testing.assert_array_equal(got[: len(owners)], owners)


def test_equal_and_skipped_indices():
    tree = filled(np.ones(100, np.float32))
    index, new = np.array([5, 5, 99, sum_tree.SKIP]), np.float32([3, 3, 0, 9])
    tree = jax.jit(sum_tree.update)(tree, index, new)
    assert sum_tree.total(tree) == 98 + 3
    check_sums(tree)


@pytest.mark.parametrize("size", [33, 64, 65])
def test_an_index_outside_the_leaves_is_left_out(size):
    """Negative ones, those of the padding, and those beyond it."""
    tree = filled(np.ones(size, np.float32))
    end = tree.levels[-1].size  # of the padding
    outside = np.array([-1, -size, size, size + 1, end - 1, end, sum_tree.SKIP])
    outside = outside[(outside < 0) | (outside >= size)]

    @jax.jit
    def use(tree, outside):
        new = sum_tree.update(tree, outside, jnp.full(len(outside), 5.0))
        draws = sum_tree.sample(new, jnp.linspace(0.0, 0.9999, 500))
        return new, draws, sum_tree.values(new, outside)

    new, draws, values = use(tree, outside)
    jax.tree.map(np.testing.assert_array_equal, new, tree)
    assert sum_tree.total(new) == size
    assert set(np.asarray(draws).tolist()) == set(range(size))
    np.testing.assert_array_equal(values, 0.0)


def test_a_tree_without_leaves_is_refused():
    with pytest.raises(ValueError, match="size=0: must be >= 1"):
        sum_tree.init(0)


def test_zero_is_never_drawn():
    """Not at the edges of shares either, with values of many magnitudes."""
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(0, 8, 3000)).astype(np.float32)
    values[rng.random(3000) < 0.7] = 0.0
    values[:3] = 0.0  # where the mass begins
    tree = filled(values)
    edges = np.cumsum(values.astype(float)) / values.astype(float).sum()
    uniform = np.concatenate([edges, rng.random(100_000), [0.0, 1 - 2**-24]])
    uniform = np.clip(uniform, 0, 1 - 2**-24).astype(np.float32)
    drawn = sample(tree, uniform)
    assert (values[np.asarray(drawn)] > 0).all()


def test_rounding_does_not_add_up():
    """After a million updates the root is still the sum of the leaves."""
    size, batch = 10_000, 1000
    tree = filled(np.zeros(size, np.float32))

    def step(tree, key):
        index_key, value_key = jax.random.split(key)
        index = jax.random.randint(index_key, (batch,), 0, size)
        value = jnp.exp(4 * jax.random.normal(value_key, (batch,)))
        return sum_tree.update(tree, index, value), None

    keys = jax.random.split(jax.random.key(0), 1_000_000 // batch)
    tree = jax.jit(lambda tree: jax.lax.scan(step, tree, keys)[0])(tree)
    leaves = np.asarray(tree.levels[-1], np.float64)
    np.testing.assert_allclose(sum_tree.total(tree), leaves.sum(), rtol=1e-5)
    check_sums(tree)


def test_frequencies():
    values = np.random.default_rng(1).random(50).astype(np.float32)
    values[::7] = 0.0
    draws = 200_000
    uniform = np.random.default_rng(0).random(draws, np.float32)
    counts = np.bincount(sample(filled(values), uniform), minlength=50)
    expected = draws * values / values.sum()
    positive = values > 0
    assert (counts[~positive] == 0).all()
    chi2 = ((counts - expected)[positive] ** 2 / expected[positive]).sum()
    assert chi2 < 74.7  # 99.9 % of 41 degrees
