"""Exploration noise: its distribution, its keys, its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.learners.exploration import (
    add_dirichlet_noise,
    add_gaussian_noise,
    add_ornstein_uhlenbeck_noise,
)

PRIOR = np.float32([0.6, 0.3, 0.1])
ADD = {
    "gaussian": lambda key, x: add_gaussian_noise(key, x, 0.5),
    "ornstein_uhlenbeck": lambda key, x: add_ornstein_uhlenbeck_noise(
        key, x, x, 0.25, 0.5
    ),
    "dirichlet": lambda key, x, alpha=0.5, fraction=0.5: add_dirichlet_noise(
        key, x, alpha, fraction
    ),
}


@pytest.fixture(autouse=True)
def strict(strict_keys):
    with jax.numpy_rank_promotion("raise"):
        yield


@functools.partial(jax.jit, static_argnames="name")
def along_keys(key, name, **parameters):
    """`[100, 500, 3]` noisy priors, along a vmap of 100 keys."""
    keys, priors = jax.random.split(key, 100), jnp.tile(PRIOR, (500, 1))
    add = functools.partial(ADD[name], **parameters)
    return jax.vmap(add, (0, None))(keys, priors)


@pytest.mark.parametrize("name", ADD)
def test_keys_differ_noise_differs(name):
    """Along a vmap and within an action; the same key gives the same noise."""
    more = {"alpha": 0.5, "fraction": 0.5} if name == "dirichlet" else {}
    noisy = np.asarray(along_keys(jax.random.key(0), name, **more))
    again = np.asarray(along_keys(jax.random.key(0), name, **more))
    noise = (noisy - PRIOR)[:, 0]  # float32 has too few values for all
    assert len(np.unique(noise)) == noise.size
    assert len(np.unique(noisy[:, :, 0])) > 0.9 * noisy[:, :, 0].size
    np.testing.assert_array_equal(again, noisy)


@pytest.mark.parametrize("name", ADD)
@pytest.mark.parametrize(
    "shape, dtype",
    [((3,), jnp.bfloat16), ((4, 2, 3), jnp.float32), ((2, 3), jnp.float64)],
)
def test_shape_and_dtype_are_kept(name, shape, dtype, x64):
    x = jax.ShapeDtypeStruct(shape, dtype)
    out = jax.eval_shape(ADD[name], jax.random.key(0), x)
    assert (out.shape, out.dtype) == (shape, dtype)


def test_bfloat16_is_noisy():
    prior = PRIOR.astype(jnp.bfloat16)

    @jax.jit
    def noisy(key):
        keys = jax.random.split(key, len(ADD))
        return [add(k, prior) for add, k in zip(ADD.values(), keys, strict=True)]

    for out in noisy(jax.random.key(0)):
        assert len(np.unique(np.asarray(out) - prior)) > 1


def test_gaussian():
    action = np.full((200_000, 2), 3.0, np.float32)
    stddev = np.broadcast_to(np.float32([0.5, 2.0]), action.shape)
    noisy = jax.jit(add_gaussian_noise)(jax.random.key(1), action, stddev)
    noise = np.asarray(noisy) - action
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
    @jax.jit
    def both(key, action):
        clone = jax.random.clone(key)
        return (
            add_ornstein_uhlenbeck_noise(clone, action, action, 1.0, 0.5),
            add_gaussian_noise(key, action, 0.5),
        )

    damped, gaussian = both(jax.random.key(3), np.float32([1.0, 2.0]))
    np.testing.assert_array_equal(damped, gaussian)


@pytest.mark.parametrize("alpha", [0.03, 0.3, 3.0])
def test_dirichlet(alpha):
    """A policy; mean and variance in closed form; each row noise of its own."""
    key, fraction = jax.random.key(4), 0.25
    out = along_keys(key, "dirichlet", alpha=alpha, fraction=fraction)
    out = np.asarray(out).reshape(50_000, 3)
    assert np.all(out >= 0)
    np.testing.assert_allclose(out.sum(-1), 1.0, rtol=1e-5)
    mean = (1 - fraction) * PRIOR + fraction / 3
    np.testing.assert_allclose(out.mean(0), mean, atol=2e-3)
    variance = fraction**2 * (1 / 3) * (2 / 3) / (3 * alpha + 1)
    np.testing.assert_allclose(out.var(0), variance, rtol=0.05)


def test_gradients_of_the_parameters():
    """Noise is reparametrised: d/d stddev is the noise, d/d fraction what it adds."""
    x = np.float32([1.0, 2.0, 3.0])

    def gaussian(stddev):
        return add_gaussian_noise(jax.random.key(5), x, stddev)

    def ornstein_uhlenbeck(damping):
        key = jax.random.key(6)
        return add_ornstein_uhlenbeck_noise(key, x, 2 * x, damping, 0.3)

    def dirichlet(fraction):
        return add_dirichlet_noise(jax.random.key(7), PRIOR, 0.3, fraction)

    @jax.jit
    def values_and_slopes(stddev, damping, fraction):
        functions = (
            (gaussian, stddev),
            (ornstein_uhlenbeck, damping),
            (dirichlet, fraction),
        )
        return [jax.jvp(f, (at,), (1.0,)) for f, at in functions]

    (unit, _), _, (only_noise, _) = values_and_slopes(1.0, 1.0, 1.0)
    (_, by_stddev), (_, by_damping), (_, by_fraction) = values_and_slopes(
        0.3, 0.5, 0.25
    )
    np.testing.assert_allclose(by_stddev, unit - x, rtol=1e-5)
    np.testing.assert_allclose(by_damping, -2 * x)
    np.testing.assert_allclose(by_fraction, only_noise - PRIOR, 1e-5, 1e-6)


def test_refusals():
    key, x = jax.random.key(0), np.ones(3, np.float32)
    with pytest.raises(
        AssertionError, match=r"action float32\[3\].*stddev float32\[2\]"
    ):
        add_gaussian_noise(key, x, x[:2])
    with pytest.raises(AssertionError, match=r"noise_tm1 float32\[1\]"):
        add_ornstein_uhlenbeck_noise(key, x, x[:1], 0.5, 0.5)
    with pytest.raises(AssertionError, match=r"dirichlet_alpha float32\[3\]"):
        add_dirichlet_noise(key, x, x, 0.5)
    for add in ADD.values():
        with pytest.raises(AssertionError, match=r"int32\[3\]"):
            add(key, np.ones(3, np.int32))
