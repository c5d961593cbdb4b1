"""QR-DQN: its loss by hand, its gradient, its priorities, the quantiles it finds."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs
from rljax.learners import q_learner
from rljax.replay import Windows
from rljax.running import train

from .. import compiled, probe_envs

qrdqn = agents.get("qrdqn")
SPEC = envs.make("CartPole-v1").spec
CONFIG = qrdqn.Config(gamma=0.9, hidden_sizes=(8,), num_quantiles=5, huber_kappa=0.3)
STEPS = np.arange(16) % 3  # of each window, less 1
ROWS = np.arange(16)


@pytest.fixture(scope="module")
def problem():
    """Two sets of parameters and some transitions."""
    net = qrdqn.network(SPEC, CONFIG)
    params, other = (
        compiled.init(net, jax.random.key(seed), np.zeros((1, 4), np.float32))
        for seed in (0, 1)
    )
    obs, next_obs = compiled.normal(2, 2, 16, 4)
    windows = Windows(
        obs=obs,
        action=ROWS % 2,
        reward=np.arange(48.0).reshape(16, 3) / 24 * (np.arange(3) <= STEPS[:, None]),
        num_steps=STEPS + 1,
        terminated=ROWS % 3 == 0,
        next_obs=next_obs,
    )
    return params, other, windows


@functools.partial(jax.jit, static_argnames="double")
def losses_and_gradients(params, bootstrap_params, windows, double, huber_kappa):
    """Losses and errors, and gradients of the losses' sum in both parameters."""
    config = dataclasses.replace(CONFIG, double=double, huber_kappa=huber_kappa)

    def total(params, bootstrap_params):
        loss, key = (
            q_learner.transition_loss(qrdqn.HEAD, SPEC, config),
            jax.random.key(0),
        )
        found = jax.vmap(lambda x: loss(params, bootstrap_params, x, key))(windows)
        return found[0].sum(), found

    grads, found = jax.grad(total, (0, 1), has_aux=True)(params, bootstrap_params)
    return found, grads


def quantiles(params, obs):
    """`[16, A, 5]`."""
    return np.array(compiled.apply(qrdqn.network(SPEC, CONFIG), params, obs))


def targets(params, other, windows, double):
    """`[16, 5]`: of the target network, at the action with the highest mean."""
    z, z_other = (quantiles(p, windows.next_obs) for p in (params, other))
    best, best_other = z.mean(2).argmax(1), z_other.mean(2).argmax(1)
    assert (best != best_other).any()
    reward = np.array(windows.reward) @ 0.9 ** np.arange(3)
    discount = np.where(windows.terminated, 0.0, 0.9 ** (STEPS + 1))
    z_t = z_other[ROWS, best if double else best_other]
    return reward[:, None] + discount[:, None] * z_t


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kappa", [0.3, 0.0])
def test_qrdqn_loss_by_hand(problem, double, kappa):
    params, other, windows = problem
    z = quantiles(params, windows.obs)[ROWS, windows.action]
    target = targets(params, other, windows, double)
    want = np.zeros(16)
    for i, tau in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
        for j in range(5):
            delta = target[:, j] - z[:, i]
            size = np.abs(delta)
            huber = np.where(size <= kappa, delta**2 / 2, kappa * (size - kappa / 2))
            huber = size if kappa == 0 else huber
            want += np.where(delta < 0, 1 - tau, tau) * huber / 5
    (got, error), _ = losses_and_gradients(
        params, other, windows, double=double, huber_kappa=kappa
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    want = np.abs(target.mean(1) - z.mean(1))
    np.testing.assert_allclose(error, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("double", [False, True])
def test_qrdqn_gradient_is_the_semi_gradient(problem, double):
    params, _, windows = problem
    kappa = CONFIG.huber_kappa

    @jax.jit
    @jax.grad
    def to_constants(params):
        z = qrdqn.network(SPEC, CONFIG).apply(params, windows.obs)
        z = z[ROWS, windows.action]
        delta = constants[:, None, :] - z[:, :, None]
        tau = (jnp.arange(5.0) + 0.5)[:, None] / 5
        weight = jnp.where(delta < 0, 1 - tau, tau)
        clipped = jnp.clip(delta, -kappa, kappa)
        return (weight * clipped * (delta - clipped / 2)).mean(axis=2).sum()

    best = quantiles(params, windows.next_obs)
    best = best[ROWS, best.mean(axis=2).argmax(axis=1)]
    reward = windows.reward @ 0.9 ** np.arange(3)
    discount = np.where(windows.terminated, 0.0, 0.9 ** (STEPS + 1))
    constants = reward[:, None] + discount[:, None] * best
    _, (semi, rest) = losses_and_gradients(
        params, params, windows, double=double, huber_kappa=kappa
    )
    want = to_constants(params)
    chex.assert_trees_all_close(semi, want, rtol=1e-4, atol=1e-5)
    assert compiled.all_nonzero(rest)


def test_qrdqn_needs_discrete_actions():
    with pytest.raises(ValueError, match="qrdqn needs discrete actions, not Box"):
        qrdqn.make(envs.make("Pendulum-v1").spec)


def test_qrdqn_acts_by_the_mean(problem):
    params, _, windows = problem
    agent, key = qrdqn.make(SPEC), jax.random.key(0)
    state = jax.jit(agent.init)(CONFIG, key)._replace(params=params)
    z = quantiles(params, windows.obs)
    by_mean, by_top = z.mean(2).argmax(1), z[:, :, -1].argmax(1)
    assert (by_mean != by_top).any()
    act = jax.jit(agent.act, static_argnums=5)
    action, _, _ = act(CONFIG, state, (), windows.obs, key, False)
    np.testing.assert_array_equal(action, by_mean)


@pytest.mark.slow
def test_qrdqn_finds_the_quantiles():
    """Training ends at the fixed point of the loss that is checked by hand above."""
    env = envs.wrap(probe_envs.Dice())
    config = qrdqn.Config(
        gamma=0.5,
        learning_rate=1e-2,
        huber_kappa=0.05,
        epsilon_end=1.0,
        n_step=1,  # more of them would be off-policy
        total_steps=24_000,
        num_envs=16,
        capacity=8_000,
        batch_size=64,
        warmup_steps=2_000,
        target_rate=0.1,
        num_quantiles=4,
        hidden_sizes=(16,),
        dueling=True,
    )
    fn = jax.jit(functools.partial(train.train, qrdqn.make(env.spec)))
    ts, _ = fn(env, config, jax.random.key(0))
    z = compiled.apply(qrdqn.network(env.spec, config), ts.agent.params, np.eye(2))
    np.testing.assert_allclose(z, env.env.gym.returns, atol=0.15)
