"""Straight-through estimators: hard values to the bit, soft gradients."""

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
    for f in (straight_through, jax.jit(straight_through), jax.vmap(straight_through)):
        np.testing.assert_array_equal(bits(f(hard, soft)), bits(hard))
    value, _ = jax.jvp(straight_through, (hard, soft), (hard, soft))
    np.testing.assert_array_equal(bits(value), bits(hard))
    value, _ = jax.vjp(straight_through, hard, soft)
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

    x = jnp.array(1.7)
    expected = mode(lambda x: f(textbook, x))(x)
    np.testing.assert_allclose(mode(lambda x: f(straight_through, x))(x), expected)
    assert expected != 0


def test_hard_has_no_gradient_and_nan_is_local():
    g = jax.grad(lambda h, s: jnp.sum(straight_through(h, s) ** 2), (0, 1))
    hard, soft = jnp.array([1.0, 2.0]), jnp.array([jnp.nan, jnp.inf])
    g_hard, g_soft = g(hard, soft)
    np.testing.assert_array_equal(g_hard, [0.0, 0.0])
    np.testing.assert_array_equal(g_soft, [2.0, 4.0])


LOGITS = jnp.array([0.3, -1.0, 2.0, -jnp.inf])


def test_categorical():
    """Samples by frequency; and an exact gradient for a linear function."""
    q = jnp.array([1.0, -2.0, 0.5, 7.0])
    keys = jax.random.split(jax.random.key(0), 4000)

    def value(logits, key):
        y = categorical_straight_through(key, logits)
        return q @ y, y

    g, y = jax.vmap(jax.grad(value, has_aux=True), (None, 0))(LOGITS, keys)
    assert set(np.unique(y)) == {0.0, 1.0} and np.all(np.sum(y, 1) == 1)
    p = np.exp(LOGITS) / np.sum(np.exp(LOGITS))
    np.testing.assert_allclose(np.mean(y, 0), p, atol=5 * 0.5 / 4000**0.5)
    expected = p * (q - p @ np.asarray(q))  # of sum(p q)
    np.testing.assert_allclose(g, np.tile(expected, (4000, 1)), atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-30, 0.01, 1.0, 1e30])
def test_gumbel_softmax_hard(temperature):
    """The same exact sample at every temperature; the relaxed one's gradient."""
    w = jnp.arange(4.0)
    key = jax.random.key(3)
    y = gumbel_softmax(key, LOGITS, temperature)
    np.testing.assert_array_equal(y, categorical_straight_through(key, LOGITS))

    def f(logits, temperature, hard):
        return w @ gumbel_softmax(key, logits, temperature, hard)

    gradients = jax.jit(jax.grad(f, (0, 1)), static_argnums=2)
    for hard, soft in zip(
        gradients(LOGITS, temperature, True),
        gradients(LOGITS, temperature, False),
        strict=True,
    ):
        np.testing.assert_array_equal(hard, soft)
        # One over 1e-30 squared is no float32.
        assert np.all(np.isfinite(hard)) or (hard.ndim == 0 and temperature == 1e-30)


def test_gumbel_softmax_limits():
    """One-hot as the temperature falls, uniform over the possible as it rises."""
    key = jax.random.key(1)
    sample = gumbel_softmax(key, LOGITS, 1.0)
    np.testing.assert_allclose(gumbel_softmax(key, LOGITS, 1e-30, False), sample)
    huge = gumbel_softmax(key, 1e10 * LOGITS, 1e-30, False)  # overflows float32
    np.testing.assert_array_equal(huge, [0.0, 0.0, 1.0, 0.0])
    uniform = [1 / 3, 1 / 3, 1 / 3, 0.0]
    np.testing.assert_allclose(gumbel_softmax(key, LOGITS, 1e30, False), uniform)


def test_gumbel_softmax_gradients(x64):
    """Both of them against finite differences, with an impossible action."""
    key, w, h = jax.random.key(0), jnp.array([1.0, 2.0, 4.0, 8.0]), 1e-6
    logits = LOGITS.astype(float)

    def f(logits, temperature):
        return w @ gumbel_softmax(key, logits, temperature, False)

    g, g_temperature = jax.grad(f, (0, 1))(logits, 0.7)
    for i in range(3):
        d = (f(logits.at[i].add(h), 0.7) - f(logits.at[i].add(-h), 0.7)) / (2 * h)
        np.testing.assert_allclose(g[i], d, rtol=1e-7, atol=1e-9)
    assert g[3] == 0.0
    d = (f(logits, 0.7 + h) - f(logits, 0.7 - h)) / (2 * h)
    np.testing.assert_allclose(g_temperature, d, rtol=1e-7)


def test_bernoulli():
    logits = jnp.array([-1.0, 0.0, 2.0])
    keys = jax.random.split(jax.random.key(0), 4000)
    y = jax.vmap(bernoulli_straight_through, (0, None))(keys, logits)
    p = 1 / (1 + np.exp(-logits))
    assert set(np.unique(y)) == {0.0, 1.0}
    np.testing.assert_allclose(np.mean(y, 0), p, atol=5 * 0.5 / 4000**0.5)
    g = jax.jacobian(lambda x: bernoulli_straight_through(keys[0], x))(logits)
    np.testing.assert_allclose(g, np.diag(p * (1 - p)), rtol=1e-5)


def test_round():
    x = jnp.array([-1.5, 0.4, 0.5, 2.6])
    np.testing.assert_array_equal(round_straight_through(x), [-2.0, 0.0, 0.0, 3.0])
    np.testing.assert_array_equal(jax.jacobian(round_straight_through)(x), np.eye(4))


def test_sign_and_its_window():
    x = jnp.array([-jnp.inf, -1.001, -1.0, -0.0, 0.0, 1e-30, 1.0, 1.001, jnp.nan])
    y = [-1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, jnp.nan]
    np.testing.assert_array_equal(sign_straight_through(x), y)
    g = jax.grad(lambda x: jnp.sum(sign_straight_through(x)))(x)
    np.testing.assert_array_equal(g, [0, 0, 1, 1, 1, 1, 1, 0, 0])


def test_quantize():
    """Each of the three terms trains what the paper says, and nothing else."""
    codebook = jnp.array([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [9.0, 9.0]])
    x, w = jnp.array([1.1, 1.5]), jnp.array([3.0, -4.0])
    e, d = np.array([1.0, 2.0]), np.array([0.1, -0.5])
    out = jax.jit(quantize)(x, codebook)
    np.testing.assert_array_equal(out.code, e)
    assert out.index == 1  # the first of two equal ones
    np.testing.assert_allclose(out.codebook_loss, d @ d, rtol=1e-6)
    np.testing.assert_allclose(out.commitment_loss, d @ d, rtol=1e-6)

    zero = np.zeros((4, 2))
    only_e = zero.copy()
    only_e[1] = -2 * d
    for term, g_x, g_codebook in (
        (lambda out: w @ out.code, w, zero),
        (lambda out: out.codebook_loss, 0 * d, only_e),
        (lambda out: out.commitment_loss, 2 * d, zero),
    ):
        g = jax.grad(lambda x, c, term=term: term(quantize(x, c)), (0, 1))(x, codebook)
        np.testing.assert_allclose(g[0], g_x, rtol=1e-5)
        np.testing.assert_allclose(g[1], g_codebook, rtol=1e-5)


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
    x, n, key = jnp.ones(2), jnp.arange(2), jax.random.key(0)
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
        (r"got \(2,\) and \(1, 1\)", lambda: quantize(x, jnp.ones((1, 1)))),
        (r"got \(2,\) and \(0, 2\)", lambda: quantize(x, jnp.ones((0, 2)))),
    ):
        with pytest.raises(ValueError, match=match):
            call()
