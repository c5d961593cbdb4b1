"""The expectile loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.losses import (
    expectile_loss,
)

from .cases_iql import CASES
from .loss_case import draw_numpy


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


# Expectiles.


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_expectile_loss_is_least_at_the_expectile(expectile, x64):
    """Of two points (1 - e) a + e b; of a sample the mean for e = 1/2."""

    def loss(prediction, targets):
        predictions = jnp.broadcast_to(prediction, targets.shape)
        return jnp.sum(expectile_loss(predictions, targets, expectile))

    @jax.jit
    def derivatives(prediction, targets):
        return [f(prediction, targets) for f in (slope, jax.grad(slope))]

    slope, (a, b) = jax.grad(loss), (-1.0, 3.0)
    least = (1 - expectile) * a + expectile * b
    g, curvature = derivatives(least, np.array([a, b]))
    np.testing.assert_allclose(g, 0.0, atol=1e-12)
    assert curvature > 0
    targets = draw_numpy(CASES["expectile_loss"])["targets"]
    g, _ = derivatives(targets.mean(), targets)
    np.testing.assert_allclose(np.sign(np.round(g, 12)), np.sign(0.5 - expectile))
