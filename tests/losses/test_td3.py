"""Losses of deterministic actor-critics: DPG, smoothed actions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax import losses
from rljax.losses import (
    dpg_loss,
    td3_smoothed_action,
)

from . import cases_sac
from .cases_td3 import CASES
from .loss_case import draw_numpy, jitted


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def test_clipped_dpg_at_the_ends_of_float32():
    loss, a_t = jax.jit(dpg_loss), np.float32([1.0, 2.0])
    for scale in (1e20, 1e-25):
        dqda_t = np.float32([3.0 * scale, 4.0 * scale])
        np.testing.assert_allclose(loss(a_t, dqda_t, scale), -2.2 * scale, 1e-5)


# Deterministic policy gradients.


@pytest.mark.parametrize("clipping", [None, 0.5])
def test_dpg_update_is_that_of_rlax(clipping):
    """In the action, with the default of both; but ours has no second derivative."""
    x = draw_numpy(CASES["dpg_loss"], batch=(1000,))

    @jax.jit
    @jax.vmap
    def derivatives(a, dqda):
        slopes = [
            jax.grad(lambda a, f=f: jnp.sum(f(a, dqda, clipping)))(a)
            for f in (dpg_loss, rlax.dpg_loss)
        ]
        return slopes, jax.hessian(lambda a: dpg_loss(a, dqda, clipping))(a)

    (ours, theirs), hessian = derivatives(x["a_t"], x["dqda_t"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    if clipping:
        assert np.linalg.norm(ours, axis=1).max() < clipping * (1 + 1e-5)
    np.testing.assert_array_equal(hessian, np.zeros_like(hessian))


def test_dpg_through_a_critic_is_its_gradient(x64):
    """d q(a(theta))/d theta; through two steps the critic is differentiated as well."""

    def q(a):
        return jnp.sin(a[0]) * a[1] - jnp.sum(a**2)

    def actor(theta):
        return jnp.tanh(theta)

    def loss(theta, boot):
        return dpg_loss(actor(theta), jax.grad(q)(actor(boot)), stop="none")

    def step(theta):
        return theta - 0.3 * jax.grad(loss)(theta, theta)

    def true_step(theta):
        return theta + 0.3 * jax.grad(lambda theta: q(actor(theta)))(theta)

    @jax.jit
    def once_and_twice(theta):
        return [
            (f(theta), jax.jacobian(lambda x, f=f: f(f(x)))(theta))
            for f in (step, true_step)
        ]

    (once, twice), (true_once, true_twice) = once_and_twice(np.array([0.4, -0.8]))
    np.testing.assert_allclose(once, true_once, 1e-12)
    np.testing.assert_allclose(twice, true_twice, 1e-10)


def test_dpg_clipping_leaves_small_gradients(x64):
    """At 0, where the slope in them is -a_t, and at the threshold itself."""
    a_t = np.array([1.0, -2.0])

    def loss(dqda_t):
        return dpg_loss(a_t, dqda_t, 0.5, stop="none")

    @jax.jit
    def derivatives(dqda_t):
        return loss(dqda_t), jax.grad(loss)(dqda_t), jax.hessian(loss)(dqda_t)

    value, slope, curvature = derivatives(np.zeros(2))
    assert value == 0.0
    np.testing.assert_allclose(slope, -a_t, 1e-12)
    np.testing.assert_allclose(curvature, 0.0, atol=1e-12)
    value, *_ = derivatives(np.array([0.3, 0.4]))
    np.testing.assert_allclose(value, -a_t @ [0.3, 0.4], 1e-12)


def test_hard_actor_critic_is_td3(x64):
    x = draw_numpy(cases_sac.CASES["sac_learning"]) | {"temperature": 0.0}
    hard = {k: x[k] for k in ("q_tm1", "r_t", "discount_t", "q_t")}
    soft = jitted(losses.sac_learning)(**x)
    np.testing.assert_allclose(soft, jitted(losses.td3_learning)(**hard), 1e-12)


# Target-policy smoothing.


def test_smoothing_noise_is_clipped_and_so_is_the_action():
    action = np.linspace(-1.0, 1.0, 1000, dtype=np.float32)
    f = functools.partial(jax.jit(td3_smoothed_action), jax.random.key(0))
    noise = np.asarray(f(action, 1.0, 0.25, -9.0, 9.0)) - action
    np.testing.assert_allclose([noise.min(), noise.max()], [-0.25, 0.25], 1e-5)
    assert np.mean(np.abs(noise) < 0.24) > 0.1
    out = f(action, 1.0, 9.0, -0.5, np.full(1000, 0.75, np.float32))
    np.testing.assert_array_equal([np.min(out), np.max(out)], [-0.5, 0.75])
    np.testing.assert_array_equal(f(action, 0.0, 0.25, -1.0, 1.0), action)


def test_smoothing_noise_is_gaussian():
    def f(seed):
        action = np.zeros(10_000, np.float32)
        return smooth(jax.random.key(seed), action, 0.2, 9.0, -9.0, 9.0)

    smooth = jax.jit(td3_smoothed_action)
    noise = np.asarray(f(1))
    np.testing.assert_allclose([noise.mean(), noise.std()], [0.0, 0.2], atol=5e-3)
    assert not np.array_equal(noise, f(2))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_smoothed_action_keeps_dtype_and_gradient(dtype, x64):
    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope(action):
        key = jax.random.key(0)
        out = td3_smoothed_action(key, action, 0.1, 0.2, -1.0, 1.0)
        return jnp.sum(out), out

    g, out = slope(np.array([0.0, 5.0], dtype))
    assert out.dtype == dtype
    np.testing.assert_array_equal(np.asarray(g, float), [1.0, 0.0])


@pytest.mark.parametrize("argument", range(5))
def test_smoothing_refuses_wrong_shapes(argument):
    args = [np.zeros(3, np.float32), 0.1, 0.2, -1.0, 1.0]
    wrong = np.zeros((3, 3), np.float32) if argument else np.zeros(3, np.int32)
    args[argument] = wrong
    with pytest.raises(AssertionError, match="action.*stddev.*noise_clip.*minimum"):
        td3_smoothed_action(jax.random.key(0), *args)


def test_ensembles_have_an_axis():
    for q_t in (np.float32(1.0), np.ones((2, 3), np.float32)):
        x = draw_numpy(CASES["td3_learning"]) | {"q_t": q_t}
        with pytest.raises(AssertionError, match="q_t"):
            losses.td3_learning(**x)
