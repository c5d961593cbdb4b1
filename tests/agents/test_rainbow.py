"""Rainbow: its loss by hand, its gradient, its noise and priorities, what it finds."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, replay
from rljax.learners import q_learner
from rljax.networks import layers
from rljax.replay import Windows
from rljax.running import train

from .. import compiled, probe_envs

rainbow, c51 = agents.get("rainbow"), agents.get("c51")
SPEC = envs.make("CartPole-v1").spec
CONFIG = rainbow.Config(
    gamma=0.9, hidden_sizes=(8,), num_atoms=5, value_min=-1.0, value_max=3.0
)
STEPS = np.arange(16) % 3  # of each window, less 1
ROWS = np.arange(16)
Z = np.array([-1.0, 0.0, 1.0, 2.0, 3.0])
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def problem():
    """Two sets of parameters and some transitions."""
    net = c51.network(SPEC, CONFIG)
    params, other = (
        compiled.init(net, jax.random.key(seed), np.zeros((1, 4), np.float32))
        for seed in (0, 1)
    )
    obs, next_obs = 3 * compiled.normal(2, 2, 16, 4)
    windows = Windows(
        obs=obs,
        action=ROWS % 2,
        reward=np.arange(48.0).reshape(16, 3) / 24 * (np.arange(3) <= STEPS[:, None]),
        num_steps=STEPS + 1,
        terminated=ROWS % 3 == 0,
        next_obs=next_obs,
    )
    return params, other, windows


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropies(spec, config, params, bootstrap_params, windows, key):
    loss = q_learner.transition_loss(c51.HEAD, spec, config)
    return jax.vmap(lambda w: loss(params, bootstrap_params, w, key)[0])(windows)


@jax.jit
def losses_and_gradients(params, bootstrap_params, windows):
    """And gradients of the losses' sum in both parameters."""

    def total(params, bootstrap_params):
        found = cross_entropies(SPEC, CONFIG, params, bootstrap_params, windows, KEY)
        return found.sum(), found

    grads, found = jax.grad(total, (0, 1), has_aux=True)(params, bootstrap_params)
    return found, grads


@jax.jit
def logits(params, key, obs):
    """With the noise that the loss draws from `key`."""
    noisy = layers.with_noise(params, key)
    return c51.network(SPEC, CONFIG).apply(noisy, obs)


def targets(params, other, windows):
    """`[16, 5]`: the target network's at the online network's action, projected."""
    key, target_key = jax.random.split(KEY)
    online, target = (
        softmax(np.array(logits(p, k, windows.next_obs)))
        for p, k in ((params, key), (other, target_key))
    )
    best = (online @ Z).argmax(1)
    assert (best != (target @ Z).argmax(1)).any()
    reward = windows.reward @ 0.9 ** np.arange(3)
    discount = np.where(windows.terminated, 0.0, 0.9 ** (STEPS + 1))
    projected = np.zeros((16, 5))
    for b in range(16):
        for p, z in zip(target[b, best[b]], Z, strict=True):
            moved = np.clip(reward[b] + discount[b] * z, -1, 3)
            projected[b] += p * np.maximum(0, 1 - np.abs(moved - Z))
    return projected


def test_rainbow_loss_by_hand(problem):
    params, other, windows = problem
    target = targets(params, other, windows)
    probs = softmax(np.array(logits(params, jax.random.split(KEY)[0], windows.obs)))
    want = -(target * np.log(probs[ROWS, ROWS % 2])).sum(1)
    got, _ = losses_and_gradients(params, other, windows)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_rainbow_gradient_is_the_semi_gradient(problem):
    params, other, windows = problem
    target = targets(params, other, windows)

    @jax.jit
    @jax.grad
    def to_constants(params):
        out = logits(params, jax.random.split(KEY)[0], windows.obs)
        log_probs = jax.nn.log_softmax(out[ROWS, windows.action])
        return -(target * log_probs).sum()

    _, (semi, rest) = losses_and_gradients(params, other, windows)
    want = to_constants(params)
    chex.assert_trees_all_close(semi, want, rtol=1e-4, atol=1e-5)
    assert compiled.all_nonzero(rest)


def test_rainbow_explores_by_noise_alone(problem):
    params, _, windows = problem
    agent = rainbow.make(SPEC)
    state = jax.jit(agent.init)(CONFIG, jax.random.key(0))._replace(params=params)
    act = functools.partial(agent.act, CONFIG, state, ())
    q = np.array(compiled.apply(c51.network(SPEC, CONFIG), params, windows.obs))
    want = (softmax(q) @ Z).argmax(1)
    same = np.stack([windows.obs[0]] * 50)
    keys = jax.random.split(KEY, 50)

    @jax.jit
    def actions(keys):
        noisy = jax.vmap(lambda key: act(same, key, True)[0])(keys)
        return act(windows.obs, KEY, False)[0], noisy

    greedy, actions = (np.array(x) for x in actions(keys))
    np.testing.assert_array_equal(greedy, want)
    assert (actions == actions[:, :1]).all()  # the same noise for a whole batch
    assert set(actions[:, 0]) == {0, 1}


@pytest.mark.parametrize("case", ["rainbow"], indirect=True)
def test_rainbow_priorities_are_losses(case, update, state, rollout):
    config, key = case.config, jax.random.key(1)
    new, _ = update(config, state, rollout, key)
    size = rollout.reward.size
    stored = np.array(new.replay.tree.levels[-1]).reshape(-1)[:size]
    drawn = stored != 1.0  # the greatest at first
    assert drawn.sum() > size / 2

    @jax.jit
    def losses(buffer, key):
        windows = replay.windows(buffer, jnp.arange(size), config.n_step)
        _, loss_key = jax.random.split(jax.random.split(key, 1)[0])
        both = (state.params, state.target_params)
        return cross_entropies(case.spec, config, *both, windows, loss_key)

    want = np.array(losses(new.replay, key)) ** config.priority_exponent
    np.testing.assert_allclose(stored[drawn], want[drawn], rtol=1e-4)


@pytest.mark.slow
def test_rainbow_finds_the_distributions():
    """Training ends at the fixed point of the loss that is checked by hand above."""
    env = envs.wrap(probe_envs.Dice())
    config = rainbow.Config(
        gamma=0.5,
        value_min=-4.0,
        value_max=3.0,
        num_atoms=15,  # one on every return
        learning_rate=1e-2,
        n_step=1,
        total_steps=24_000,
        num_envs=16,
        capacity=8_000,
        batch_size=64,
        warmup_steps=2_000,
        target_rate=0.1,
        hidden_sizes=(16,),
    )
    fn = jax.jit(functools.partial(train.train, rainbow.make(env.spec)))
    ts, _ = fn(env, config, jax.random.key(0))
    net = c51.network(env.spec, config)
    out = np.array(compiled.apply(net, ts.agent.params, np.eye(2)))
    probs, z = softmax(out), np.array(rainbow.atoms(config))
    for time, action in ((0, 0), (0, 1), (1, 0)):  # noise fades where it costs
        returns = np.array(env.env.gym.returns[time][action])
        want = np.isclose(z[:, None], returns, atol=1e-4).sum(1) / 4
        np.testing.assert_allclose(probs[time, action], want, atol=0.1)
