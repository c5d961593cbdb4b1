"""Masked means, batched indexing, clipped gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.losses import batched_index, clip_gradient, masked_mean


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


X = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
MASK = np.random.default_rng(1).random((3, 4, 5)) < 0.5
MASK[0] = True


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2)])
def test_masked_mean_equals_numpy(axis):
    expected = np.mean(X, axis, where=MASK)
    f = jax.jit(masked_mean, static_argnums=2)
    np.testing.assert_allclose(f(X, MASK, axis), expected, 1e-6)
    np.testing.assert_allclose(f(X, np.ones_like(MASK), axis), X.mean(axis), 1e-5)


def test_masked_mean_without_jit():
    np.testing.assert_allclose(masked_mean(X, MASK), np.mean(X, where=MASK), 1e-6)


@jax.jit
def masked_mean_and_gradients(x, mask):
    """The mean, and gradients of the mean of squares and of the mean."""
    squares = jax.grad(lambda x: masked_mean(x**2, mask))(x)
    return masked_mean(x, mask), squares, jax.grad(masked_mean)(x, mask)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_masked_elements_do_not_count(bad):
    """Neither in the mean nor in its gradients, whatever they are."""
    x = np.where(MASK, X, np.float32(bad))
    mean, squares, g = jax.device_get(masked_mean_and_gradients(x, MASK))
    np.testing.assert_array_equal(mean, masked_mean_and_gradients(X, MASK)[0])
    np.testing.assert_allclose(squares[MASK], 2 * X[MASK] / MASK.sum(), 1e-6)
    np.testing.assert_allclose(g, MASK / MASK.sum(), 1e-6)


def test_empty_masks():
    x, mask = np.full((2, 3), np.nan), np.zeros((2, 3), bool)
    mean = jax.jit(masked_mean, static_argnums=2)(x, mask, 1)
    np.testing.assert_array_equal(mean, np.zeros(2))
    g = jax.jit(jax.grad(masked_mean))(x, mask)
    np.testing.assert_array_equal(g, np.zeros((2, 3)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_masked_mean_keeps_the_dtype(dtype, x64):
    x = np.ones(3000, dtype)
    mean = jax.jit(masked_mean)(x, np.ones(3000, bool))
    assert mean.dtype == dtype and mean == 1.0  # bfloat16 does not count to 3000


def test_masked_mean_refuses():
    for x, mask in (
        (X, MASK[0]),
        (X, MASK[:1]),
        (X, MASK.astype(np.float32)),
        (MASK, MASK),
    ):
        with pytest.raises(AssertionError, match=r"x .*\[.*mask .*\["):
            masked_mean(x, mask)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_batched_index_equals_numpy(shape):
    rng = np.random.default_rng(2)
    values, indices = rng.normal(size=(*shape, 5)), rng.integers(0, 5, shape)
    expected = np.take_along_axis(values, indices[..., None], -1)[..., 0]
    out = jax.jit(batched_index)(values, indices)
    np.testing.assert_allclose(out, expected, 1e-6)


@jax.jit
def indexed_and_gradient(x, indices):
    g = jax.grad(lambda x: batched_index(x, indices).sum())(x)
    return batched_index(x, indices), g


@pytest.mark.parametrize("index", [-1, -5, 5, 1000])
def test_no_such_index(index):
    """NaN, here alone, and no gradient to a value that was not meant."""
    out, g = indexed_and_gradient(np.ones((3, 5)), np.array([0, index, 4]))
    np.testing.assert_array_equal(np.isnan(out), [False, True, False])
    np.testing.assert_array_equal(g, np.eye(5)[[0, 1, 4]] * [[1], [0], [1]])


def huber(x):
    return 0.5 * clip_gradient(x, -1.0, 1.0) ** 2


def test_clipped_gradient_of_a_square_is_hubers():
    """First and second derivative; under jit and vmap; reverse over reverse or not."""
    x = np.array([-3.0, -0.5, 0.0, 0.5, 3.0], np.float32)

    @jax.jit
    @jax.vmap
    def derivatives(x):
        slope = jax.grad(huber)
        return slope(x), jax.grad(slope)(x), jax.jacfwd(slope)(x)

    np.testing.assert_array_equal(huber(x), 0.5 * x**2)
    slope, *seconds = derivatives(x)
    np.testing.assert_array_equal(slope, [-1.0, -0.5, 0.0, 0.5, 1.0])
    for second in seconds:
        np.testing.assert_array_equal(second, [0.0, 1.0, 1.0, 1.0, 0.0])


def test_only_the_gradient_of_the_result_is_clipped():
    """Not that of its argument's own computation."""
    slope = jax.jit(jax.grad(lambda x, a: a * clip_gradient(3 * x, -2.0, 1.0)))
    assert slope(1.0, 10.0) == 3.0
    assert slope(1.0, -10.0) == -6.0


def test_meta_gradient_of_the_bounds():
    """A step down a gradient that is clipped depends on where it is clipped."""

    def updated(bound, x):
        return x - 0.1 * jax.grad(lambda x: clip_gradient(x, -bound, bound) ** 2)(x)

    meta_gradient = jax.jit(jax.grad(updated))
    assert meta_gradient(1.0, 3.0) == pytest.approx(-0.1)
    assert meta_gradient(1.0, -3.0) == pytest.approx(0.1)
    assert meta_gradient(1.0, 0.2) == 0.0
    bounds = jax.jit(jax.grad(clip_gradient, (1, 2)))(3.0, -1.0, 1.0)
    assert bounds == (0.0, 0.0)  # of the value, which is x
