"""Exploration noise: its distribution, its keys, its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.losses import (
    add_dirichlet_noise,
    add_gaussian_noise,
    add_ornstein_uhlenbeck_noise,
)

PRIOR = jnp.array([0.6, 0.3, 0.1])
ADD = {
    "gaussian": lambda key, x: add_gaussian_noise(key, x, 0.5),
    "ornstein_uhlenbeck": lambda key, x: add_ornstein_uhlenbeck_noise(
        key, x, x, 0.25, 0.5
    ),
    "dirichlet": lambda key, x: add_dirichlet_noise(key, x, 0.5, 0.5),
}


@pytest.fixture(autouse=True)
def strict(strict_keys):
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("name", ADD)
def test_keys_differ_noise_differs(name):
    """Along a vmap and within an action; the same key gives the same noise."""
    keys = jax.random.split(jax.random.key(0), 100)
    noise = jax.vmap(ADD[name], (0, None))(keys, PRIOR) - PRIOR[None]
    assert len(np.unique(noise)) == noise.size
    again = jax.vmap(ADD[name], (0, None))(
        jax.random.split(jax.random.key(0), 100), PRIOR
    )
    np.testing.assert_array_equal(again - PRIOR[None], noise)


@pytest.mark.parametrize("name", ADD)
@pytest.mark.parametrize(
    "shape, dtype",
    [((3,), jnp.bfloat16), ((4, 2, 3), jnp.float32), ((2, 3), jnp.float64)],
)
def test_shape_and_dtype_are_kept(name, shape, dtype, x64):
    x = jnp.broadcast_to(PRIOR.astype(dtype), shape)
    out = jax.jit(ADD[name])(jax.random.key(0), x)
    assert (out.shape, out.dtype) == (shape, dtype)
    assert len(np.unique(out - x)) > 1


def test_gaussian():
    action = jnp.full((200_000, 2), 3.0)
    stddev = jnp.broadcast_to(jnp.array([0.5, 2.0]), action.shape)
    noise = add_gaussian_noise(jax.random.key(1), action, stddev) - action
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.02)
    np.testing.assert_allclose(noise.std(0), [0.5, 2.0], rtol=0.01)
    np.testing.assert_allclose((noise**4).mean(0), [3 * 0.5**4, 3 * 2.0**4], rtol=0.05)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.01


def ou_path(damping, stddev, steps, num_paths=4000):
    def step(noise, key):
        action = jnp.ones(num_paths)
        noisy = add_ornstein_uhlenbeck_noise(key, action, noise, damping, stddev)
        return noisy - action, noisy - action

    keys = jax.random.split(jax.random.key(2), steps)
    return jax.lax.scan(step, jnp.zeros(num_paths), keys)[1]


def test_ornstein_uhlenbeck():
    """Variance after every number of steps, and autocorrelation, in closed form."""
    damping, stddev = 0.25, 0.6
    noise = np.asarray(jax.jit(ou_path, static_argnums=2)(damping, stddev, 60))
    keep = (1 - damping) ** 2
    variance = stddev**2 * (1 - keep ** np.arange(1, 61)) / (1 - keep)
    np.testing.assert_allclose(noise.var(1), variance, rtol=0.15)
    stationary = noise[40:]
    np.testing.assert_allclose(stationary.var(), stddev**2 / (1 - keep), rtol=0.02)
    np.testing.assert_allclose(stationary.mean(), 0.0, atol=0.03)
    for k in (1, 2, 5):
        correlation = np.corrcoef(noise[50], noise[50 - k])[0, 1]
        np.testing.assert_allclose(correlation, (1 - damping) ** k, atol=0.05)


def test_damping_1_is_gaussian():
    key, action = jax.random.key(3), jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(
        add_ornstein_uhlenbeck_noise(jax.random.clone(key), action, action, 1.0, 0.5),
        add_gaussian_noise(key, action, 0.5),
    )


@pytest.mark.parametrize("alpha", [0.03, 0.3, 3.0])
def test_dirichlet(alpha):
    """A policy; mean and variance in closed form; each row noise of its own."""
    fraction, prior = 0.25, jnp.tile(PRIOR, (50_000, 1))
    out = jax.jit(add_dirichlet_noise)(jax.random.key(4), prior, alpha, fraction)
    assert np.all(out >= 0)
    np.testing.assert_allclose(out.sum(-1), 1.0, rtol=1e-5)
    mean = (1 - fraction) * PRIOR + fraction / 3
    np.testing.assert_allclose(out.mean(0), mean, atol=2e-3)
    variance = fraction**2 * (1 / 3) * (2 / 3) / (3 * alpha + 1)
    np.testing.assert_allclose(out.var(0), variance, rtol=0.05)


def test_gradients_of_the_parameters():
    """Noise is reparametrised: d/d stddev is the noise, d/d fraction what it adds."""
    x = jnp.array([1.0, 2.0, 3.0])

    def slope(f, at):
        return jax.jit(lambda p: jax.jvp(f, (p,), (1.0,))[1])(at)

    def gaussian(stddev):
        return add_gaussian_noise(jax.random.key(5), x, stddev)

    def ornstein_uhlenbeck(damping):
        key = jax.random.key(6)
        return add_ornstein_uhlenbeck_noise(key, x, 2 * x, damping, 0.3)

    def dirichlet(fraction):
        return add_dirichlet_noise(jax.random.key(7), PRIOR, 0.3, fraction)

    np.testing.assert_allclose(slope(gaussian, 0.3), gaussian(1.0) - x, rtol=1e-5)
    np.testing.assert_allclose(slope(ornstein_uhlenbeck, 0.5), -2 * x)
    only_noise = jax.jit(dirichlet)(1.0)
    np.testing.assert_allclose(slope(dirichlet, 0.25), only_noise - PRIOR, 1e-5, 1e-6)


def test_refusals():
    key, x = jax.random.key(0), jnp.ones(3)
    with pytest.raises(
        AssertionError, match=r"action float32\[3\].*stddev float32\[2\]"
    ):
        add_gaussian_noise(key, x, jnp.ones(2))
    with pytest.raises(AssertionError, match=r"noise_tm1 float32\[1\]"):
        add_ornstein_uhlenbeck_noise(key, x, jnp.ones(1), 0.5, 0.5)
    with pytest.raises(AssertionError, match=r"dirichlet_alpha float32\[3\]"):
        add_dirichlet_noise(key, x, x, 0.5)
    for add in ADD.values():
        with pytest.raises(AssertionError, match=r"int32\[3\]"):
            add(key, jnp.ones(3, jnp.int32))
