"""Returns in a transformed space: identities, meta-gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import losses

from . import cases_returns
from .cases_transformed_returns import CASES
from .loss_case import SIZES, draw_numpy, jitted

T = SIZES["T"]


STOPS = ("bootstrap", "target", "none")


@functools.cache
def meta_gradients_of_the_transform(name):
    """Returns the slopes of the three modes, and what they are in truth."""
    case, rng = CASES[name], np.random.default_rng(3)
    x = draw_numpy(case)
    network = "q_t" if "q_t" in x else "v_t"
    weights = rng.normal(size=(*x[network].shape, 3))
    predict = rng.normal(size=(T, 3))

    def outer(eps, stop):
        pair = losses.TxPair(
            lambda y: losses.signed_hyperbolic(y, eps),
            lambda y: losses.signed_parabolic(y, eps),
        )

        def loss(p, boot):
            static = dict(case.static) | {"tx_pair": pair}
            target = case.fn(**x | {network: weights @ boot}, **static, stop=stop)
            return jnp.mean((target - predict @ p) ** 2)

        p = jnp.ones(3)
        return jnp.sum(jnp.sin(p - 0.1 * jax.grad(loss)(p, p)))

    @jax.jit
    def evaluate(eps):
        return [jax.value_and_grad(outer)(eps, stop) for stop in STOPS]

    h = 1e-6
    slopes = [float(slope) for _, slope in evaluate(0.1)]
    up, down = (np.array([y for y, _ in evaluate(0.1 + d)]) for d in (h, -h))
    return dict(
        zip(STOPS, zip(slopes, (up - down) / (2 * h), strict=True), strict=True)
    )


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", CASES)
def test_meta_gradient_of_the_transform(name, stop, x64):
    """Through one step: its parameters are tuned, unless the target is stopped."""
    slope, expected = meta_gradients_of_the_transform(name)[stop]
    assert abs(expected) > 1e-4
    np.testing.assert_allclose(slope, 0.0 if stop == "target" else expected, 1e-5)


def test_identity_pair_changes_nothing(x64):
    for name in ("lambda_returns", "n_step_bootstrapped_returns"):
        plain = cases_returns.CASES[name]
        x = draw_numpy(plain)
        transformed = getattr(
            losses, "transformed_" + name.replace("bootstrapped_", "")
        )
        chex.assert_trees_all_equal(
            jitted(transformed)(tx_pair=losses.IDENTITY_PAIR, **x, **plain.static),
            jitted(plain.fn)(**x, **plain.static),
        )
