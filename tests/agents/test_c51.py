"""C51: its loss by hand, its gradient, its support, the probabilities it finds."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from rljax import agents, envs
from rljax.learners import q_learner
from rljax.replay import Windows
from rljax.running import train

from .. import compiled, probe_envs

c51 = agents.get("c51")
SPEC = envs.make("CartPole-v1").spec
CONFIG = c51.Config(
    gamma=0.9, hidden_sizes=(8,), num_atoms=5, value_min=-1.0, value_max=3.0
)
ATOMS = np.arange(-1.0, 4.0)
STEPS = np.arange(16) % 3  # of each window, less 1
ROWS = np.arange(16)


@pytest.fixture(scope="module")
def problem():
    """Two sets of parameters and some transitions."""
    net = c51.network(SPEC, CONFIG)
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


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@functools.partial(jax.jit, static_argnames="double")
def losses_and_gradients(params, bootstrap_params, windows, double):
    """Losses and errors, and gradients of the losses' sum in both parameters."""
    config = dataclasses.replace(CONFIG, double=double)

    def total(params, bootstrap_params):
        loss, key = q_learner.transition_loss(c51.HEAD, SPEC, config), jax.random.key(0)
        found = jax.vmap(lambda x: loss(params, bootstrap_params, x, key))(windows)
        return found[0].sum(), found

    grads, found = jax.grad(total, (0, 1), has_aux=True)(params, bootstrap_params)
    return found, grads


def targets(params, other, windows, double):
    """`[16, 5]`: probabilities, each atom's mass dealt out by distance."""
    net = c51.network(SPEC, CONFIG)
    p, p_other = (
        softmax(np.array(compiled.apply(net, x, windows.next_obs)))
        for x in (params, other)
    )
    best, best_other = (p @ ATOMS).argmax(1), (p_other @ ATOMS).argmax(1)
    if params is not other:
        assert (best != best_other).any()
    reward = np.array(windows.reward) @ 0.9 ** np.arange(3)
    discount = np.where(windows.terminated, 0.0, 0.9 ** (STEPS + 1))
    probs = p_other[ROWS, best if double else best_other]
    target = np.zeros((16, 5))
    for row in ROWS:
        for mass, atom in zip(probs[row], ATOMS, strict=True):
            z = np.clip(reward[row] + discount[row] * atom, -1.0, 3.0) + 1.0
            lower = min(int(z), 3)
            target[row, lower] += mass * (lower + 1 - z)
            target[row, lower + 1] += mass * (z - lower)
    return target


@pytest.mark.parametrize("double", [False, True])
def test_c51_loss_by_hand(problem, double):
    params, other, windows = problem
    target = targets(params, other, windows, double)
    logits = np.array(compiled.apply(c51.network(SPEC, CONFIG), params, windows.obs))
    probs = softmax(logits)[ROWS, windows.action]
    want = -(target * np.log(probs)).sum(axis=1)
    (got, error), _ = losses_and_gradients(params, other, windows, double=double)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    np.testing.assert_array_equal(error, got)


@pytest.mark.parametrize("double", [False, True])
def test_c51_gradient_is_the_semi_gradient(problem, double):
    params, _, windows = problem
    target = targets(params, params, windows, double)

    @jax.jit
    @jax.grad
    def gradient(params, target):
        logits = c51.network(SPEC, CONFIG).apply(params, windows.obs)
        log_probs = jax.nn.log_softmax(logits)[ROWS, windows.action]
        return -(target * log_probs).sum()

    _, (semi, rest) = losses_and_gradients(params, params, windows, double=double)
    want = gradient(params, target)
    chex.assert_trees_all_close(semi, want, rtol=1e-4, atol=1e-5)
    assert compiled.all_nonzero(rest)


def test_c51_needs_discrete_actions():
    with pytest.raises(ValueError, match="c51 needs discrete actions, not Box"):
        c51.make(envs.make("Pendulum-v1").spec)


def test_c51_acts_by_the_mean(problem):
    params, _, windows = problem
    agent, key = c51.make(SPEC), jax.random.key(0)
    state = jax.jit(agent.init)(CONFIG, key)._replace(params=params)
    logits = np.array(compiled.apply(c51.network(SPEC, CONFIG), params, windows.obs))
    by_mean, by_top = (softmax(logits) @ ATOMS).argmax(1), logits[:, :, -1].argmax(1)
    assert (by_mean != by_top).any()
    act = jax.jit(agent.act, static_argnums=5)
    action, _, _ = act(CONFIG, state, (), windows.obs, key, False)
    np.testing.assert_array_equal(action, by_mean)


def test_c51_checks_its_support_also_where_a_bound_is_swept():
    order = r"value_max=3.0: must be in \(3.0, "
    with pytest.raises(ValueError, match=order):
        dataclasses.replace(CONFIG, value_min=3.0).validate()
    low = np.array([-2.0, 0.0])

    def last_atoms(low):
        config = dataclasses.replace(CONFIG, value_min=low)
        config.validate()
        return c51.atoms(config)

    np.testing.assert_allclose(
        jax.jit(jax.vmap(last_atoms))(low),
        [[-2.0, -0.75, 0.5, 1.75, 3.0], [0.0, 0.75, 1.5, 2.25, 3.0]],
    )


def test_c51_finds_the_probabilities():
    env = envs.wrap(probe_envs.Dice())
    config = c51.Config(
        gamma=0.5,
        learning_rate=1e-2,
        value_min=-4.0,
        value_max=3.0,
        num_atoms=15,  # every half
        epsilon_end=1.0,
        n_step=1,  # more of them would be off-policy
        total_steps=24_000,
        num_envs=16,
        capacity=8_000,
        batch_size=64,
        warmup_steps=2_000,
        target_rate=0.1,
        hidden_sizes=(16,),
        dueling=True,
    )
    fn = jax.jit(functools.partial(train.train, c51.make(env.spec)))
    ts, _ = fn(env, config, jax.random.key(0))
    net = c51.network(env.spec, config)
    logits = np.array(compiled.apply(net, ts.agent.params, np.eye(2)))
    returns = np.array(env.env.gym.returns)
    want = (returns[..., None] == np.arange(-4, 3.5, 0.5)).mean(axis=2)
    np.testing.assert_allclose(softmax(logits), want, atol=0.05)
