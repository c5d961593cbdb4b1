"""Losses of soft actor-critics: identities, the temperature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import losses
from rljax.losses import (
    entropy_loss,
    sac_actor_loss,
    sac_discrete_actor_loss,
    sac_learning,
    sac_temperature_loss,
)

from .cases_sac import CASES, softmax
from .loss_case import draw_numpy, jitted


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


# Soft actor-critics.


def test_soft_value_of_the_soft_greedy_policy(x64):
    """pi = softmax(q / tau): tau log sum exp(q / tau), and no policy is better."""
    x = draw_numpy(CASES["sac_discrete_learning"])
    tau = 0.7
    q = x["q_t"].min(axis=0)
    x = x | {"logits_t": q / tau, "temperature": tau}
    soft_max = tau * np.log(np.exp(q / tau).sum())
    expected = x["r_t"] + x["discount_t"] * soft_max - x["q_tm1"][x["a_tm1"]]
    error = jitted(losses.sac_discrete_learning)(**x)
    np.testing.assert_allclose(error, expected, 1e-12)
    actor = functools.partial(sac_discrete_actor_loss, q_t=q, temperature=tau)
    value_and_grad = jax.jit(jax.value_and_grad(actor))
    loss, slope = value_and_grad(q / tau)
    np.testing.assert_allclose(loss, -soft_max, 1e-12)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
    assert value_and_grad(q / tau + np.array([0.1, 0.0, 0.0]))[0] > -soft_max


def test_discrete_actor_critic_is_the_expectation_of_the_sampled_one(x64):
    x = draw_numpy(CASES["sac_discrete_learning"])
    pi = softmax(x["logits_t"])
    same = {k: x[k] for k in ("r_t", "discount_t", "temperature")}
    x["q_t"] = np.repeat(x["q_t"][:1], len(x["q_t"]), axis=0)  # one critic

    @jax.jit
    def sampled(q_t, log_pi):
        def error(q, log_prob):
            q_tm1 = x["q_tm1"][x["a_tm1"]]
            return sac_learning(q_tm1, q_t=q, log_prob_t=log_prob, **same)

        errors = jax.vmap(error, in_axes=(1, 0))(q_t, log_pi)
        return errors, sac_actor_loss(log_pi, q_t[0], x["temperature"])

    errors, actor = sampled(x["q_t"], np.log(pi))
    td = jitted(losses.sac_discrete_learning)(**x)
    np.testing.assert_allclose(pi @ errors, td, 1e-12)
    expected = jax.jit(sac_discrete_actor_loss)(
        x["logits_t"], x["q_t"][0], x["temperature"]
    )
    np.testing.assert_allclose(pi @ actor, expected, 1e-12)


def test_ensembles_have_an_axis():
    for q_t in (np.float32(1.0), np.ones((2, 3), np.float32)):
        x = draw_numpy(CASES["sac_learning"]) | {"q_t": q_t}
        with pytest.raises(AssertionError, match="q_t"):
            losses.sac_learning(**x)


def test_temperature_settles_where_the_entropy_is_at_its_target(x64):
    """Of the policy softmax(q / tau), by gradient descent on the logarithm of tau."""
    q, target = np.array([1.0, 0.3, -2.0]), 0.6

    def minus_entropy(log_tau):
        return entropy_loss(q[None] / jnp.exp(log_tau), 1.0)

    def step(log_tau, _):
        log_prob = minus_entropy(log_tau)
        g = jax.grad(lambda x: sac_temperature_loss(x, log_prob, target)[0])(log_tau)
        return log_tau - 0.5 * g, g

    @jax.jit
    def settle(log_tau):
        log_tau, g = jax.lax.scan(step, log_tau, length=2000)
        return -minus_entropy(log_tau), g[0]

    for start in (-2.0, 2.0):  # entropy below the target, above it
        entropy, g = settle(start)
        assert g * start > 0
        np.testing.assert_allclose(entropy, [target], 1e-8)
