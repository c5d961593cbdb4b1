"""Checks name the field and the value; floats are leaves, the rest is static."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import config as cfg


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.5
    gamma: float = 0.9
    count: int = cfg.static(3)
    name: str = cfg.static("a")
    sizes: tuple[int, ...] = cfg.static((8,))


def raises(check, message):
    with pytest.raises(ValueError) as error:
        check()
    assert message in str(error.value)


def test_leaves_and_static_fields():
    leaves, structure = jax.tree.flatten(Config())
    assert leaves == [0.5, 0.9]
    assert structure == jax.tree.structure(Config(rate=1.0))
    assert structure != jax.tree.structure(Config(count=4))
    assert jax.grad(lambda c: c.rate**2 * c.count)(Config()) == Config(3.0, 0.0)


@pytest.mark.parametrize(
    "half", [0.5, np.float32(0.5), np.float64(0.5), jnp.array(0.5), jnp.float32(0.5)]
)
def test_as_arrays_makes_one_type_of_all_numbers(half):
    config = cfg.as_arrays(Config(rate=half))
    assert config.count == 3
    for leaf in jax.tree.leaves(config):
        assert isinstance(leaf, jax.Array)
        assert (leaf.shape, leaf.dtype, leaf.weak_type) == ((), jnp.float32, False)
    assert config.rate == 0.5


def test_as_arrays_under_transformations():
    sweep = jax.vmap(lambda c: cfg.as_arrays(c).rate)(
        Config(jnp.arange(3.0), jnp.ones(3))
    )
    np.testing.assert_array_equal(sweep, [0, 1, 2])
    assert jax.grad(lambda c: cfg.as_arrays(c).rate)(Config()).rate == 1.0


@pytest.mark.parametrize("rate", [0.0, 1, 0.5, np.float32(0.3), jnp.array([0.1, 1.0])])
def test_check_range_passes(rate):
    cfg.check_range(Config(rate=rate), "rate", "gamma", low=0.0, high=1.0)


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (-1.0, "rate=-1.0: must be in [0.0, 1.0]"),
        (1.5, "rate=1.5: must be in [0.0, 1.0]"),
        (float("nan"), "rate=nan: must be in [0.0, 1.0]"),
        (None, "rate=None"),
        (jnp.array([0.5, 2.0]), "rate=[0.5 2. ]"),
        ("fast", "rate='fast'"),
        (True, "rate=True"),
    ],
)
def test_check_range_raises(rate, message):
    config = Config(rate=rate)
    raises(lambda: cfg.check_range(config, "rate", low=0.0, high=1.0), message)


def test_check_range_with_an_open_bound():
    def check(rate):
        cfg.check_range(Config(rate=rate), "rate", low=0.0, open_low=True)

    check(1e-9)
    check(float("inf"))
    raises(lambda: check(0.0), "rate=0.0: must be in (0.0, inf]")


def test_check_range_lets_tracers_pass():
    def check(rate):
        cfg.check_range(Config(rate=rate), "rate", low=0.0)
        return rate

    assert jax.jit(check)(-1.0) == -1.0
    assert jax.grad(check)(-1.0) == 1.0


@pytest.mark.parametrize("count", [0, -1, 2.0, True, "3", None])
def test_check_count_raises(count):
    config = Config(count=count)
    raises(lambda: cfg.check_count(config, "count"), f"count={count!r}")


def test_check_count_passes():
    cfg.check_count(Config(count=1), "count")
    cfg.check_count(Config(count=0), "count", low=0)


def test_check_choice():
    cfg.check_choice(Config(name="a"), "name", ("a", "b"))
    config = Config(name="c")
    message = "name='c': must be one of a, b"
    raises(lambda: cfg.check_choice(config, "name", ("a", "b")), message)


@pytest.mark.parametrize("sizes", [(8,), (), (64, 32)])
def test_check_sizes_passes(sizes):
    cfg.check_sizes(Config(sizes=sizes), "sizes")


@pytest.mark.parametrize("sizes", [(0,), (8, -1), (8.0,), (True,), [8], 8])
def test_check_sizes_raises(sizes):
    config = Config(sizes=sizes)
    raises(lambda: cfg.check_sizes(config, "sizes"), f"sizes={sizes!r}")


def test_sums_stop_at_the_greatest_int32():
    counts = jnp.array([0, 5, 2**31 - 70, 2**31 - 65, 2**31 - 64, 2**31 - 1])
    total = jax.jit(lambda x: cfg.saturating_add(x, 64))(counts)
    want = np.minimum(np.array(counts, np.int64) + 64, 2**31 - 1)
    np.testing.assert_array_equal(total, want)
    assert total.dtype == jnp.int32


@pytest.mark.parametrize("period", [1, 3, 1_000, 2**31 - 1])
def test_counts_beyond_int32_are_right_modulo_their_period(period):
    start, steps = 2**31 - 3, 7

    def step(count, _):
        count = cfg.next_count(count, period)
        return count, count

    _, counts = jax.jit(lambda c: jax.lax.scan(step, c, None, steps))(jnp.int32(start))
    want = start + 1 + np.arange(steps, dtype=np.int64)
    np.testing.assert_array_equal(counts % period, want % period)
    assert (counts[:2] == want[:2]).all() and (counts >= 2**31 - 1 - period).all()
    assert counts.dtype == jnp.int32
