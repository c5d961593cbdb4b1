"""TD3: targets by hand, its gradients, delay, noise, DDPG, what it learns."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs
from rljax.learners.actor_critic import Keyed
from rljax.replay import Windows
from rljax.running import train
from rljax.types import Box

from .. import compiled, probe_envs
from ..agent_case import N, T, differ

td3 = agents.get("td3")
KEY = jax.random.key(9)
CONFIG = td3.Config(gamma=0.9, hidden_sizes=(8,))
DDPG: dict = dict(twin=False, policy_delay=1, target_noise=0.0)
only_td3 = pytest.mark.parametrize("case", ["td3"], indirect=True)


@pytest.fixture(scope="module")
def spec():
    return envs.make("Pendulum-v1").spec


@pytest.fixture(scope="module")
def window():
    obs, next_obs = compiled.normal(2, 2, 3)
    return Windows(
        obs=obs,
        action=np.float32([1.5]),
        reward=np.float32([2.0, 3.0, 0.0]),
        num_steps=np.array(2),
        terminated=np.array(False),
        next_obs=next_obs,
    )


def random_state(spec, config):
    state, other = (init(spec, config, jax.random.key(i)) for i in (0, 1))
    other_actor = compiled.scaled(other.actor, 30)
    return state._replace(target_actor=other_actor, target_critic=other.critic)


init = jax.jit(td3.init, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def errors_and_gradients(spec, config, params, bootstrap, window):
    """Errors; gradients of their sum in critic, target critic and target actor."""

    def total(params, target_critic, target_actor):
        targets = dict(target_critic=target_critic, target_actor=target_actor)
        state = bootstrap._replace(**targets)
        transition = Keyed(window=window, key=KEY)
        found = td3.td_errors(
            spec, config, params, bootstrap=state, transition=transition
        )
        return found.sum(), found

    args = (params, bootstrap.target_critic, bootstrap.target_actor)
    grads, found = jax.grad(total, (0, 1, 2), has_aux=True)(*args)
    return found, grads


@functools.partial(jax.jit, static_argnums=0)
def values(spec, config, params, obs, action):
    return td3.critic(spec, config).apply(params, obs, action)


@pytest.mark.parametrize("ddpg", [False, True])
def test_td3_targets_by_hand(spec, window, ddpg):
    config = dataclasses.replace(CONFIG, **(DDPG if ddpg else {}))
    state, actor = random_state(spec, config), td3.actor(spec, config)
    action = np.array(compiled.apply(actor, state.target_actor, window.next_obs))
    if not ddpg:  # half the bounds' width is 2
        noise = 2 * 0.2 * np.array(jax.random.normal(KEY, (1,)))
        action = np.clip(action + np.clip(noise, -2 * 0.5, 2 * 0.5), -2, 2)
    args = (spec, config)
    q_next = np.array(values(*args, state.target_critic, window.next_obs, action))
    q = np.array(values(*args, state.critic, window.obs, window.action))
    assert q.shape == q_next.shape == ((1,) if ddpg else (2,))
    reward = 2.0 + 0.9 * 3.0
    got, _ = errors_and_gradients(*args, state.critic, state, window)
    np.testing.assert_allclose(got, reward + 0.81 * q_next.min() - q, rtol=1e-5)
    ended = window._replace(terminated=np.array(True))
    got, _ = errors_and_gradients(*args, state.critic, state, ended)
    np.testing.assert_allclose(got, reward - q, rtol=1e-5)


def test_td3_clips_noise_and_target_action(spec, window):
    config = dataclasses.replace(CONFIG, target_noise=100.0, target_noise_clip=0.1)
    state, actor = random_state(spec, config), td3.actor(spec, config)
    action = np.array(compiled.apply(actor, state.target_actor, window.next_obs))
    args = (spec, config)
    q = [
        np.array(values(*args, state.target_critic, window.next_obs, side))
        for side in (np.clip(action - 0.2, -2.0, 2.0), np.clip(action + 0.2, -2.0, 2.0))
    ]
    nothing = window._replace(reward=np.zeros(3, np.float32))
    got, _ = errors_and_gradients(*args, state.critic, state, nothing)
    prediction = np.array(values(*args, state.critic, window.obs, window.action))
    target = (np.array(got) + prediction)[0] / 0.81
    assert np.isclose(target, np.min(q, axis=1), rtol=1e-4).any()


def test_td3_gradient_is_the_semi_gradient(spec, window):
    state = random_state(spec, CONFIG)

    @jax.jit
    @jax.grad
    def minus_q(params):
        return -td3.critic(spec, CONFIG).apply(params, window.obs, window.action).sum()

    same = state._replace(target_critic=state.critic)
    args = (spec, CONFIG, state.critic, same, window)
    _, (semi, *rest) = errors_and_gradients(*args)
    want = minus_q(state.critic)
    chex.assert_trees_all_close(semi, want, rtol=1e-4, atol=1e-6)
    for tree in rest:  # differentiable all the same
        assert any(np.array(leaf).any() for leaf in jax.tree.leaves(tree))


def test_td3_policy_gradient_ascends_the_first_value(spec, window):
    state = random_state(spec, CONFIG)
    apply = td3.actor(spec, CONFIG).apply

    def loss(params):
        return td3.actor_loss(spec, CONFIG, params, window.obs, KEY, bootstrap=state)[0]

    def minus_q(params):
        action = apply(params, window.obs)
        return -td3.critic(spec, CONFIG).apply(state.critic, window.obs, action)[0]

    both = jax.jit(lambda params: (jax.grad(loss)(params), jax.grad(minus_q)(params)))
    got, want = both(state.actor)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-7)


@only_td3
@pytest.mark.parametrize("delay", [1, 2])
def test_td3_delays_actor_and_targets(case, update, state, rollout, delay):
    config = dataclasses.replace(
        case.config, policy_delay=delay, target_rate=0.25, learning_rate=0.1
    )
    new, _ = update(config, state, rollout, jax.random.key(1))
    actor_opt, critic_opt = (
        new.opt_states[name][1].count for name in ("actor", "critic")
    )
    assert (actor_opt, critic_opt) == (2 // delay, 2)
    if delay == 2:
        new, state = jax.tree.map(np.array, (new, state))
        for name in ("actor", "critic"):
            old, trained = getattr(state, name), getattr(new, name)
            want = jax.tree.map(lambda x, y: x + 0.25 * (y - x), old, trained)
            target = getattr(new, f"target_{name}")
            chex.assert_trees_all_close(target, want, rtol=1e-5, atol=1e-6)
            assert differ(target, old)


@only_td3
def test_td3_noise_falls_and_stays_inside(case, state):
    config = dataclasses.replace(
        case.config, noise_start=0.8, noise_end=0.2, exploration_fraction=0.5
    )
    obs, zeros = np.ones((20_000, 3), np.float32), np.zeros((20_000, 1), np.float32)
    act = jax.jit(case.agent.act, static_argnums=5)

    def explored(step, explore=True):
        now = state._replace(step=jnp.int32(step))
        return np.array(act(config, now, zeros, obs, jax.random.key(0), explore)[0])

    greedy = explored(0, explore=False)
    assert (greedy == greedy[0]).all() and abs(greedy[0]) < 0.2
    total = config.total_steps // (T * N)
    for step, stddev in ((0, 0.8), (total // 4, 0.5), (total // 2, 0.2), (total, 0.2)):
        action = explored(step)
        assert abs(action).max() <= 2.0
        # Quartiles, which clipping leaves alone, in units of half the bounds' width.
        low, high = np.quantile(action, [0.25, 0.75])
        np.testing.assert_allclose((high - low) / 2 / 1.349, stddev, atol=0.03)


def test_td3_needs_bounded_continuous_actions(spec):
    discrete = envs.make("CartPole-v1").spec
    message = r"td3 needs continuous actions, not Discrete\(num_actions=2, "
    with pytest.raises(ValueError, match=message):
        td3.make(discrete)
    action = Box((1,), (-1.0,), (np.inf,))
    with pytest.raises(ValueError, match="td3 needs finite bounds of actions, not Box"):
        td3.make(spec._replace(action=action))


def test_td3_updates_fit_the_delay():
    config = dataclasses.replace(CONFIG, num_updates=3)
    with pytest.raises(ValueError, match="num_updates=3: must be a multiple of"):
        config.validate()


@pytest.mark.slow
@pytest.mark.parametrize("ddpg", [False, True])
def test_td3_finds_a_continuous_action(ddpg):
    """Both variants learn, beyond what the probe environments ask of TD3."""
    env = envs.wrap(probe_envs.Target())
    agent = td3.make(env.spec)
    config = td3.Config(
        learning_rate=3e-3,
        anneal=True,
        total_steps=20_000,
        num_envs=4,
        batch_size=64,
        capacity=10_000,
        warmup_steps=200,
        hidden_sizes=(32, 32),
        noise_end=0.5,
        exploration_fraction=1.0,
        **(DDPG if ddpg else {}),
    )
    ts, _ = jax.jit(functools.partial(train.train, agent))(
        env, config, jax.random.key(0)
    )
    memory, obs = agent.memory(config, 1), jnp.zeros((1, 2))
    args = (config, ts.agent, memory, obs, jax.random.key(0))
    action, *_ = agent.act(*args, explore=False)
    np.testing.assert_allclose(action[0], env.env.gym.target, atol=0.25)
