"""IQN: its loss by hand, its gradient, its fractions, the quantiles it finds."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, networks
from rljax.learners import q_learner
from rljax.replay import Windows
from rljax.running import train

from .. import compiled, probe_envs

iqn = agents.get("iqn")
SPEC = envs.make("CartPole-v1").spec
CONFIG = iqn.Config(
    gamma=0.9,
    huber_kappa=0.3,
    hidden_sizes=(8, 6),
    embedding_size=4,
    num_fractions=3,
    num_target_fractions=2,
    num_policy_fractions=5,
)
STEPS = np.arange(16) % 3  # of each window, less 1
ROWS = np.arange(16)


init = jax.jit(iqn.make(SPEC).init)


@pytest.fixture(scope="module")
def problem():
    """Two sets of parameters and some transitions."""
    state, other = (init(CONFIG, jax.random.key(seed)) for seed in (0, 1))
    obs, next_obs = compiled.normal(29, 2, 16, 4)
    windows = Windows(
        obs=obs,
        action=ROWS % 2,
        reward=np.arange(48.0).reshape(16, 3) / 24 * (np.arange(3) <= STEPS[:, None]),
        num_steps=STEPS + 1,
        terminated=ROWS % 3 == 0,
        next_obs=next_obs,
    )
    return state.params, other.params, windows


@pytest.fixture
def given(monkeypatch):
    """Known fractions for the prediction and the target."""
    fractions = {3: np.array([0.1, 0.5, 0.8]), 2: np.array([0.3, 0.6])}
    fractions = {num: np.float32(tau) for num, tau in fractions.items()}
    monkeypatch.setattr(iqn, "random_fractions", lambda key, num: fractions[num])


@jax.jit
def losses_and_gradients(params, bootstrap_params, windows):
    """With given fractions; gradients of the losses' sum in both parameters."""

    def total(params, bootstrap_params):
        loss, key = q_learner.transition_loss(iqn.HEAD, SPEC, CONFIG), jax.random.key(0)
        found, _ = jax.vmap(lambda x: loss(params, bootstrap_params, x, key))(windows)
        return found.sum(), found

    grads, found = jax.grad(total, (0, 1), has_aux=True)(params, bootstrap_params)
    return found, grads


def by_hand(params, obs, fractions):
    """`[16, N, A]`: features times embedded fractions, eq. 4, then the head."""
    p = jax.tree.map(np.array, params["params"])

    def linear(layer, x):
        return x @ layer["kernel"] + layer["bias"]

    x = np.maximum(linear(p["MLP_0"]["Dense_0"], np.array(obs)), 0)
    x = np.maximum(linear(p["MLP_0"]["Dense_1"], x), 0)
    cosines = np.cos(np.pi * np.arange(4) * np.array(fractions)[:, None])
    embedded = np.maximum(linear(p["CosineEmbedding_0"]["Dense_0"], cosines), 0)
    return linear(p, x[:, None] * embedded)


def test_network_by_hand(problem):
    params, _, windows = problem
    fractions = np.array([0.0, 0.2, 1.0])
    got = compiled.apply(iqn.network(SPEC, CONFIG), params, windows.obs, fractions)
    assert got.shape == (16, 3, 2)
    want = by_hand(params, windows.obs, fractions)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def targets(other, windows):
    """`[16, 2]`: of the target network, at the action with its highest mean."""
    middles = (0.1, 0.3, 0.5, 0.7, 0.9)
    best = by_hand(other, windows.next_obs, middles).mean(1).argmax(1)
    assert 0 < best.sum() < 16
    reward = windows.reward @ 0.9 ** np.arange(3)
    discount = np.where(windows.terminated, 0.0, 0.9 ** (STEPS + 1))
    z = by_hand(other, windows.next_obs, (0.3, 0.6))[ROWS, :, best]
    return reward[:, None] + discount[:, None] * z


def test_iqn_loss_by_hand(problem, given):
    params, other, windows = problem
    z = by_hand(params, windows.obs, (0.1, 0.5, 0.8))[ROWS, :, ROWS % 2]
    target, want = targets(other, windows), np.zeros(16)
    for i, tau in enumerate((0.1, 0.5, 0.8)):
        for j in range(2):
            delta = target[:, j] - z[:, i]
            size = np.abs(delta)
            huber = np.where(size <= 0.3, delta**2 / 2, 0.3 * (size - 0.15))
            want += np.where(delta < 0, 1 - tau, tau) * huber / 0.3 / 2
    got, _ = losses_and_gradients(params, other, windows)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_iqn_gradient_is_the_semi_gradient(problem, given):
    params, _, windows = problem
    constants = targets(params, windows)
    tau = np.array([0.1, 0.5, 0.8])

    @jax.jit
    @jax.grad
    def to_constants(params):
        z = iqn.network(SPEC, CONFIG).apply(params, windows.obs, tau)
        delta = constants[:, None] - z[ROWS, :, windows.action][:, :, None]
        clipped = jnp.clip(delta, -0.3, 0.3)
        weight = jnp.where(delta < 0, 1 - tau[:, None], tau[:, None])
        return (weight * clipped * (delta - clipped / 2) / 0.3).mean(axis=2).sum()

    _, (semi, rest) = losses_and_gradients(params, params, windows)
    want = to_constants(params)
    chex.assert_trees_all_close(semi, want, rtol=1e-4, atol=1e-5)
    assert compiled.all_nonzero(rest)


def test_iqn_draws_fractions_uniformly():
    keys = jax.random.split(jax.random.key(0), 10_000)
    draw = functools.partial(iqn.random_fractions, num=4)
    tau = np.array(jax.jit(jax.vmap(draw))(keys))
    assert ((tau * 4).astype(int) == np.arange(4)).all()  # one in each quarter
    # All together they are uniform, like independent ones.
    np.testing.assert_allclose(np.quantile(tau, (0.1, 0.6)), (0.1, 0.6), atol=0.01)
    inside = tau * 4 - np.arange(4)
    np.testing.assert_allclose(np.corrcoef(inside.T), np.eye(4), atol=0.05)


def test_iqn_draws_afresh_for_prediction_and_target(problem, monkeypatch):
    params, other, windows = problem
    window = jax.tree.map(lambda x: x[0], windows)

    @jax.jit
    def keys(key):
        drawn = []

        def fractions(key, num):
            drawn.append(jax.random.key_data(key))
            return jnp.linspace(0.1, 0.9, num)

        monkeypatch.setattr(iqn, "random_fractions", fractions)
        q_learner.transition_loss(iqn.HEAD, SPEC, CONFIG)(params, other, window, key)
        return drawn

    drawn = keys(jax.random.key(0)) + keys(jax.random.key(1))
    assert len({tuple(np.array(key)) for key in drawn}) == 4


def test_iqn_acts_by_the_mean(problem):
    params, _, windows = problem
    state = init(CONFIG, jax.random.key(0))
    want = by_hand(params, windows.obs, (0.1, 0.3, 0.5, 0.7, 0.9)).mean(1).argmax(1)
    assert 0 < want.sum() < 16
    act = jax.jit(iqn.make(SPEC).act, static_argnums=5)
    action, *_ = act(CONFIG, state, (), windows.obs, jax.random.key(0), False)
    np.testing.assert_array_equal(action, want)


def test_embedding_tells_fractions_apart():
    embedding = networks.CosineEmbedding(16, 8)
    fractions = np.linspace(0.0, 1.0, 5)
    features = jax.jit(embedding.init_with_output)(jax.random.key(0), fractions)[0]
    assert features.shape == (5, 16) and np.linalg.matrix_rank(features) == 5


@pytest.mark.slow
def test_iqn_finds_the_quantiles():
    """Training ends at the fixed point of the loss that is checked by hand above."""
    env = envs.wrap(probe_envs.Dice())
    config = iqn.Config(
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
        embedding_size=16,
        num_fractions=8,
        num_target_fractions=8,
        num_policy_fractions=8,
        hidden_sizes=(16, 16),
    )
    fn = jax.jit(functools.partial(train.train, iqn.make(env.spec)))
    ts, _ = fn(env, config, jax.random.key(0))
    middles = (np.arange(4) + 0.5) / 4
    net = iqn.network(env.spec, config)
    z = np.array(compiled.apply(net, ts.agent.params, np.eye(2), middles))
    np.testing.assert_allclose(z.mT, env.env.gym.returns, atol=0.25)
