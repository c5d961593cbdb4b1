"""Transforms: exact at 0 and in float32, inverses, two-hot codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import losses
from rljax.losses import transforms

EPS = 1e-3
PAIRS = {
    "identity": losses.IDENTITY_PAIR,
    "signed_logp1": losses.SIGNED_LOGP1_PAIR,
    "signed_hyperbolic": losses.SIGNED_HYPERBOLIC_PAIR,
    "hyperbolic_sin": losses.HYPERBOLIC_SIN_PAIR,
    "power": losses.TxPair(
        lambda x: losses.power(x, 0.3), lambda x: losses.power(x, 1 / 0.3)
    ),
}


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


# Precision. The references are the papers' forms in 80 bits.


def hyperbolic(x, eps):
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + eps * x


def parabolic(x, eps):
    root = np.sqrt(1 + 4 * eps * (np.abs(x) + 1 + eps))
    return np.sign(x) * (((root - 1) / (2 * eps)) ** 2 - 1)


@pytest.mark.parametrize(
    "fn, reference",
    [
        (losses.signed_hyperbolic, lambda x: hyperbolic(x, np.longdouble(EPS))),
        (losses.signed_parabolic, lambda x: parabolic(x, np.longdouble(EPS))),
        (losses.signed_logp1, lambda x: np.sign(x) * np.log1p(np.abs(x))),
        (
            lambda x: losses.power(x, 0.5),
            lambda x: (
                np.sign(x)
                * np.sqrt(np.longdouble(2))
                * np.expm1(np.log1p(np.abs(x) * np.sqrt(np.longdouble(2))) / 2)
            ),
        ),
    ],
)
def test_float32_is_accurate(fn, reference):
    x = np.logspace(-6, 6, 25, dtype=np.float32)
    x = np.concatenate([-x, x])
    np.testing.assert_allclose(jax.jit(fn)(x), reference(np.longdouble(x)), 1e-6)


def test_parabolic_of_eps_0_is_the_inverse():
    x = np.float32([-3.0, 0.0, 1e-6, 8.0])

    @jax.jit
    def there_and_back(x):
        return losses.signed_parabolic(losses.signed_hyperbolic(x, 0.0), 0.0)

    np.testing.assert_allclose(there_and_back(x), x, rtol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_derivatives_at_0(name):
    """The limit of those nearby, the product of both is 1, and nothing is NaN."""

    @jax.jit
    @jax.vmap
    def derivatives(x):
        return [(jax.grad(f)(x), jax.grad(jax.grad(f))(x)) for f in PAIRS[name]]

    product = 1.0
    for slope, curvature in derivatives(np.float32([-1e-4, 0.0, 1e-4])):
        below, at_0, above = map(float, slope)
        assert at_0 > 0.0
        np.testing.assert_allclose([below, above], at_0, rtol=1e-3)
        below, middle, above = map(float, curvature)
        assert min(below, above) - 1e-3 <= middle <= max(below, above) + 1e-3
        product *= at_0
    np.testing.assert_allclose(product, 1.0, rtol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_increasing_inverses(name, x64):
    x = np.linspace(-9.0, 9.0, 101)
    apply, apply_inv = map(jax.jit, PAIRS[name])
    np.testing.assert_allclose(apply_inv(apply(x)), x, atol=1e-12)
    np.testing.assert_allclose(apply(apply_inv(x)), x, atol=1e-12)
    y = np.asarray(apply(x))
    assert np.all(np.diff(y) > 0)
    np.testing.assert_allclose(apply(-x), -y, rtol=1e-12)


def test_discount_pair():
    """The logarithm of the horizon; exact near 0 and near 1."""
    discount = np.float32([1e-7, 0.5, 0.99])
    y = losses.DISCOUNT_TRANSFORM_PAIR.apply(discount)
    np.testing.assert_allclose(y, [1e-7, np.log(2), np.log(100)], rtol=1e-5)
    back = losses.DISCOUNT_TRANSFORM_PAIR.apply_inv(y)
    np.testing.assert_allclose(back, discount, rtol=1e-6)


def test_composition():
    """The first one first; the inverses the other way round; none is the identity."""
    double = losses.TxPair(lambda x: 2 * x, lambda x: x / 2)
    tx = losses.compose_tx(double, losses.HYPERBOLIC_SIN_PAIR)
    x = np.float32([-1.0, 3.0])
    np.testing.assert_allclose(tx.apply(x), np.arcsinh(2 * x), 1e-6)
    np.testing.assert_allclose(tx.apply_inv(x), np.sinh(x) / 2, 1e-6)
    np.testing.assert_array_equal(losses.compose_tx().apply(x), x)
    np.testing.assert_array_equal(losses.compose_tx().apply_inv(x), x)


# Two-hot codes.


CODES = {
    "twohot": losses.twohot_pair(-2.0, 3.0, 11),
    "muzero": losses.muzero_pair(-2.0, 3.0, 11, losses.SIGNED_HYPERBOLIC_PAIR),
    "unbiased": losses.unbiased_transform_pair(
        -2.0, 3.0, 11, losses.SIGNED_HYPERBOLIC_PAIR
    ),
}
LIMITS = {k: (-2.0, 3.0) for k in CODES}
for k in ("muzero", "unbiased"):
    LIMITS[k] = tuple(float(losses.signed_parabolic(x)) for x in LIMITS[k])


@pytest.mark.parametrize("name", CODES)
def test_codes(name):
    """Probabilities of two neighbours, of any shape, that mean the scalar."""
    tx, (low, high) = CODES[name], LIMITS[name]
    x = np.linspace(low, high, 60, dtype=np.float32).reshape(3, 4, 5)

    @jax.jit
    def code(x):
        probs = tx.apply(x)
        return probs, tx.apply_inv(probs), tx.apply(x[0, 0, 0])

    probs, decoded, of_scalar = map(np.asarray, code(x))
    assert probs.shape == (3, 4, 5, 11)
    assert np.all(probs >= 0)
    np.testing.assert_allclose(probs.sum(-1), 1.0, rtol=1e-6)
    for row in probs.reshape(-1, 11):
        used = np.flatnonzero(row)
        assert len(used) <= 2 and used[-1] - used[0] <= 1
    np.testing.assert_allclose(decoded, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(of_scalar, probs[0, 0, 0])


@pytest.mark.parametrize("name", CODES)
def test_codes_are_clipped(name):
    tx, (low, high) = CODES[name], LIMITS[name]
    x = [-np.inf, low - 1, low, high, high + 1, np.inf, np.nan]

    @jax.jit
    @jax.vmap
    def probs_and_slopes(x):
        probs = tx.apply(x)
        return probs, jax.jacfwd(tx.apply)(x), tx.apply_inv(probs)

    probs, slopes, back = map(np.asarray, probs_and_slopes(np.float32(x)))
    ends = np.eye(11)[[0, 0, 0, 10, 10, 10]]
    np.testing.assert_allclose(probs[:6], ends, atol=1e-6)
    np.testing.assert_array_equal(slopes[4], 0.0)
    assert np.isnan(probs[6]).any() and np.isnan(back[6])


@pytest.mark.parametrize("name", ["twohot", "unbiased"])
def test_derivative_of_a_code(name):
    """1 / width up and down, so that the mean of the code has the derivative 1."""
    tx, (low, high) = CODES[name], LIMITS[name]
    x = np.linspace(low, high, 26, dtype=np.float32)[1:-1]
    slopes = jax.vmap(jax.grad(lambda x: tx.apply_inv(tx.apply(x))))
    np.testing.assert_allclose(jax.jit(slopes)(x), 1.0, rtol=1e-5)


def test_derivative_of_probabilities():
    """At a bin, and at the ends, it is still one of probabilities."""
    jacobian = jax.jit(jax.vmap(jax.jacrev(losses.twohot_pair(0.0, 4.0, 3).apply)))
    between, *at_bins = np.asarray(jacobian(np.float32([3.0, 0.0, 2.0, 4.0])))
    np.testing.assert_array_equal(between, [0.0, -0.5, 0.5])
    for row in at_bins:
        assert row.sum() == 0.0 and row.any()


def test_mixtures_of_codes():
    """Only the unbiased code's mean is linear in values; MuZero's is in squashed."""
    x, p = np.array([-3.0, 7.0]), np.array([0.25, 0.75])

    @jax.jit
    def mixed(x):
        return {
            name: CODES[name].apply_inv(jnp.asarray(p) @ CODES[name].apply(x))
            for name in ("unbiased", "muzero")
        }

    means = mixed(x)
    np.testing.assert_allclose(means["unbiased"], 4.5, rtol=1e-5)
    squashed = p @ hyperbolic(x, EPS)
    np.testing.assert_allclose(means["muzero"], parabolic(squashed, EPS), rtol=1e-5)
    assert means["muzero"] < 4.0


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_codes_keep_the_dtype(name, dtype, x64):
    x = jax.ShapeDtypeStruct((7,), dtype)
    probs = jax.eval_shape(CODES[name].apply, x)
    assert probs.dtype == dtype
    assert jax.eval_shape(CODES[name].apply_inv, probs).dtype == dtype


def test_many_bins_in_bfloat16():
    """Bins that bfloat16 cannot tell apart still have probabilities that add up."""

    @jax.jit
    def totals(x):
        return losses.transform_to_2hot(x, -300.0, 300.0, 601).sum(-1)

    x = np.linspace(-300, 300, 50).astype(jnp.bfloat16)
    np.testing.assert_array_equal(totals(x), 1.0)


@pytest.mark.parametrize(
    "make",
    [
        losses.twohot_pair,
        lambda *bins: losses.transform_to_2hot(np.zeros(3, np.float32), *bins),
        lambda *bins: losses.transform_from_2hot(np.ones(bins[2], np.float32), *bins),
        lambda *bins: losses.muzero_pair(*bins, losses.SIGNED_LOGP1_PAIR),
        lambda *bins: losses.unbiased_transform_pair(*bins, losses.SIGNED_LOGP1_PAIR),
    ],
)
def test_impossible_bins(make):
    with pytest.raises(ValueError, match="num_bins=1: must be >= 2"):
        make(0.0, 1.0, 1)
    with pytest.raises(ValueError, match="min_value=1.0: must be < max_value=1.0"):
        make(1.0, 1.0, 3)


def test_wrong_number_of_probabilities():
    for inverse in (
        lambda p: losses.transform_from_2hot(p, 0.0, 1.0, 3),
        losses.unbiased_transform_pair(0.0, 1.0, 3, losses.IDENTITY_PAIR).apply_inv,
    ):
        for shape in ((), (1,), (4,), (3, 1)):
            with pytest.raises(AssertionError):
                inverse(np.ones(shape, np.float32))


def test_no_aliases_of_jax():
    """What jax has is not offered under another name."""
    for name in ("identity", "sigmoid", "logit", "hyperbolic_sin"):
        assert not hasattr(transforms, name)
