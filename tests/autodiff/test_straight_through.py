"""Straight-through estimators: hard values to the bit, soft gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.autodiff.straight_through import (
    bernoulli_straight_through,
    categorical_straight_through,
    gumbel_softmax,
    quantize,
    round_straight_through,
    sign_straight_through,
    straight_through,
)

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38], np.float32)


def bits(x):
    return np.asarray(x).view(np.int32)


def test_forward_is_the_hard_value_to_the_bit():
    """Magnitudes from 1e-30 to 1e30, and every pair of special values."""
    rng = np.random.default_rng(0)
    hard, soft = rng.normal(size=(2, 10_000)) * 10.0 ** rng.integers(
        -30, 30, (2, 10_000)
    )
    special = np.meshgrid(SPECIAL, SPECIAL)
    hard = np.append(hard.astype(np.float32), special[0])
    soft = np.append(soft.astype(np.float32), special[1])

    @jax.jit
    def transformed(hard, soft):
        return (
            straight_through(hard, soft),
            jax.vmap(straight_through)(hard, soft),
            jax.jvp(straight_through, (hard, soft), (hard, soft))[0],
            jax.vjp(straight_through, hard, soft)[0],
        )

    for value in (straight_through(hard, soft), *transformed(hard, soft)):
        np.testing.assert_array_equal(bits(value), bits(hard))
    # The textbook's sum rounds: the test can tell the two apart.
    assert not np.array_equal(soft[:9] + (hard[:9] - soft[:9]), hard[:9])


def third_derivative(f):
    return jax.jacfwd(jax.hessian(f))


@pytest.mark.parametrize(
    "mode", [jax.jit, jax.jacrev, jax.jacfwd, jax.hessian, third_derivative]
)
def test_derivatives_are_those_of_the_textbook_form(mode, x64):
    """Bengio's soft + stop(hard - soft), exact enough in float64; to third order."""

    def f(through, x):
        return jnp.sin(through(jnp.round(x) * x, jnp.tanh(x))) * x

    def textbook(hard, soft):
        return soft + jax.lax.stop_gradient(hard - soft)

    @jax.jit
    def both(x):
        return [mode(lambda x, g=g: f(g, x))(x) for g in (straight_through, textbook)]

    ours, expected = both(1.7)
    np.testing.assert_allclose(ours, expected)
    assert expected != 0


def test_hard_has_no_gradient_and_nan_is_local():
    g = jax.grad(lambda h, s: jnp.sum(straight_through(h, s) ** 2), (0, 1))
    hard, soft = np.float32([1.0, 2.0]), np.float32([np.nan, np.inf])
    g_hard, g_soft = jax.jit(g)(hard, soft)
    np.testing.assert_array_equal(g_hard, [0.0, 0.0])
    np.testing.assert_array_equal(g_soft, [2.0, 4.0])


LOGITS = np.float32([0.3, -1.0, 2.0, -np.inf])


def test_categorical():
    """Samples by frequency; and an exact gradient for a linear function."""
    q = np.float32([1.0, -2.0, 0.5, 7.0])

    def value(logits, key):
        y = categorical_straight_through(key, logits)
        return q @ y, y

    @jax.jit
    def gradients(key):
        keys = jax.random.split(key, 4000)
        return jax.vmap(jax.grad(value, has_aux=True), (None, 0))(LOGITS, keys)

    g, y = gradients(jax.random.key(0))
    assert set(np.unique(y)) == {0.0, 1.0} and np.all(np.sum(y, 1) == 1)
    p = np.exp(LOGITS) / np.sum(np.exp(LOGITS))
    np.testing.assert_allclose(np.mean(y, 0), p, atol=5 * 0.5 / 4000**0.5)
    expected = p * (q - p @ q)  # of sum(p q)
    np.testing.assert_allclose(g, np.tile(expected, (4000, 1)), atol=1e-6)


@jax.jit
def hard_and_soft(key, logits, temperature):
    """A sample of the categorical distribution and gradients of two relaxed ones."""

    def f(logits, temperature, hard):
        y = gumbel_softmax(key, logits, temperature, hard)
        return jnp.arange(4.0) @ y, y

    gradients = [
        jax.grad(f, (0, 1), has_aux=True)(logits, temperature, hard)
        for hard in (True, False)
    ]
    return categorical_straight_through(key, logits), gradients


@pytest.mark.parametrize("temperature", [1e-30, 0.01, 1.0, 1e30])
def test_gumbel_softmax_hard(temperature):
    """The same exact sample at every temperature; the relaxed one's gradient."""
    sample, ((g_hard, y), (g_soft, _)) = hard_and_soft(
        jax.random.key(3), LOGITS, temperature
    )
    np.testing.assert_array_equal(y, sample)
    for hard, soft in zip(g_hard, g_soft, strict=True):
        np.testing.assert_array_equal(hard, soft)
        # One over 1e-30 squared is no float32.
        assert np.all(np.isfinite(hard)) or (hard.ndim == 0 and temperature == 1e-30)


def test_gumbel_softmax_limits():
    """One-hot as the temperature falls, uniform over the possible as it rises."""
    key, jitted = jax.random.key(1), jax.jit(gumbel_softmax, static_argnums=3)
    sample = jitted(key, LOGITS, 1.0, True)
    np.testing.assert_allclose(jitted(key, LOGITS, 1e-30, False), sample)
    huge = jitted(key, 1e10 * LOGITS, 1e-30, False)  # overflows float32
    np.testing.assert_array_equal(huge, [0.0, 0.0, 1.0, 0.0])
    uniform = [1 / 3, 1 / 3, 1 / 3, 0.0]
    np.testing.assert_allclose(jitted(key, LOGITS, 1e30, False), uniform)


def test_gumbel_softmax_gradients(x64):
    """Both of them against finite differences, with an impossible action."""
    key, w, h = jax.random.key(0), np.array([1.0, 2.0, 4.0, 8.0]), 1e-6
    x = np.append(LOGITS.astype(float), 0.7)

    @jax.jit
    @jax.vmap
    @jax.value_and_grad
    def value_and_grad(x):  # the logits, then the temperature
        return w @ gumbel_softmax(key, x[:4], x[4], False)

    moved = h * np.eye(5)
    values, gradients = value_and_grad(np.stack([x, *(x + moved), *(x - moved)]))
    up, down = np.split(np.asarray(values)[1:], 2)
    g, possible = np.asarray(gradients)[0], np.array([0, 1, 2, 4])
    expected = (up - down)[possible] / (2 * h)
    np.testing.assert_allclose(g[possible], expected, rtol=1e-7, atol=1e-9)
    assert g[3] == 0.0


def test_bernoulli():
    logits = np.float32([-1.0, 0.0, 2.0])

    @jax.jit
    def samples_and_slope(key, logits):
        y = jax.vmap(bernoulli_straight_through, (0, None))
        slope = jax.jacobian(lambda x: bernoulli_straight_through(key, x))
        return y(jax.random.split(key, 4000), logits), slope(logits)

    y, g = samples_and_slope(jax.random.key(0), logits)
    p = 1 / (1 + np.exp(-logits))
    assert set(np.unique(y)) == {0.0, 1.0}
    np.testing.assert_allclose(np.mean(y, 0), p, atol=5 * 0.5 / 4000**0.5)
    np.testing.assert_allclose(g, np.diag(p * (1 - p)), rtol=1e-5)


def test_round():
    @jax.jit
    def value_and_slope(x):
        return round_straight_through(x), jax.jacobian(round_straight_through)(x)

    value, slope = value_and_slope(np.float32([-1.5, 0.4, 0.5, 2.6]))
    np.testing.assert_array_equal(value, [-2.0, 0.0, 0.0, 3.0])
    np.testing.assert_array_equal(slope, np.eye(4))


def test_sign_and_its_window():
    x = np.float32([-np.inf, -1.001, -1.0, -0.0, 0.0, 1e-30, 1.0, 1.001, np.nan])

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope(x):
        y = sign_straight_through(x)
        return jnp.sum(y), y

    g, y = slope(x)
    expected = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, np.nan]
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(g, [0, 0, 1, 1, 1, 1, 1, 0, 0])


def test_quantize():
    """Each of the three terms trains what the paper says, and nothing else."""
    codebook = np.float32([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [9.0, 9.0]])
    x, w = np.float32([1.1, 1.5]), np.float32([3.0, -4.0])
    e, d = np.array([1.0, 2.0]), np.array([0.1, -0.5])
    terms = (
        lambda out: w @ out.code,
        lambda out: out.codebook_loss,
        lambda out: out.commitment_loss,
    )

    @jax.jit
    def value_and_gradients(x, codebook):
        return quantize(x, codebook), [
            jax.grad(lambda x, c, term=term: term(quantize(x, c)), (0, 1))(x, codebook)
            for term in terms
        ]

    out, gradients = value_and_gradients(x, codebook)
    np.testing.assert_array_equal(out.code, e)
    assert out.index == 1  # the first of two equal ones
    np.testing.assert_allclose(out.codebook_loss, d @ d, rtol=1e-6)
    np.testing.assert_allclose(out.commitment_loss, d @ d, rtol=1e-6)

    zero = np.zeros((4, 2))
    only_e = zero.copy()
    only_e[1] = -2 * d
    expected = (w, zero), (0 * d, only_e), (2 * d, zero)
    for (g_x, g_codebook), (by_x, by_codebook) in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(g_x, by_x, rtol=1e-5)
        np.testing.assert_allclose(g_codebook, by_codebook, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_stay(dtype, x64):
    def outputs(x):
        key = jax.random.key(0)
        return (
            categorical_straight_through(key, x),
            gumbel_softmax(key, x, 0.5),
            gumbel_softmax(key, x, 0.5, hard=False),
            bernoulli_straight_through(key, x),
            round_straight_through(x),
            sign_straight_through(x),
            quantize(x, x[None]).code,
        )

    for y in jax.eval_shape(outputs, jnp.zeros(2, dtype)):
        assert y.dtype == dtype and y.shape == (2,)


def test_refuses():
    x, n = np.ones(2, np.float32), np.arange(2, dtype=np.int32)
    key = jax.random.key(0)
    for match, call in (
        (r"got f.*\[2\] and f.*\[1\]", lambda: straight_through(x, x[:1])),
        (r"hard: expected a floating.*int32\[2\]", lambda: straight_through(n, x)),
        (
            "got float32.* and bfloat16",
            lambda: straight_through(x, x.astype("bfloat16")),
        ),
        (r"logits.*A > 0, got \(\)", lambda: categorical_straight_through(key, x[0])),
        (r"logits.*A > 0, got \(0,\)", lambda: gumbel_softmax(key, x[:0], 1.0)),
        ("temperature=0, expected", lambda: gumbel_softmax(key, x, 0)),
        (r"temperature: .*\(2,\)", lambda: gumbel_softmax(key, x, x)),
        ("logits: expected a floating", lambda: bernoulli_straight_through(key, n)),
        ("x: expected a floating", lambda: round_straight_through(n)),
        ("x: expected a floating", lambda: sign_straight_through(n)),
        (r"got \(2,\) and \(1, 1\)", lambda: quantize(x, np.ones((1, 1)))),
        (r"got \(2,\) and \(0, 2\)", lambda: quantize(x, np.ones((0, 2)))),
    ):
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(call)  # compiles nothing
