"""SAC: targets and losses by hand, its gradients, temperature."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from rljax import agents, envs
from rljax.learners import actor_critic
from rljax.learners.actor_critic import Keyed
from rljax.replay import Windows
from rljax.types import Box

from .. import compiled, probe_envs
from ..agent_case import differ

sac = agents.get("sac")
KEY = jax.random.key(9)


def config_of(**changes):
    return sac.Config(gamma=0.9, hidden_sizes=(8,), temperature=0.3, **changes)


class Problem:
    """Random networks and one transition of two steps."""

    def __init__(self, env_name):
        self.spec, self.config = envs.make(env_name).spec, config_of()
        init = jax.jit(functools.partial(sac.init, self.spec))
        state, other = (init(self.config, jax.random.key(i)) for i in (0, 1))
        self.state = state._replace(target_critic=other.critic)
        self.actor = sac.actor(self.spec, self.config)
        self.critic = sac.critic(self.spec, self.config)
        obs, self.next_obs = compiled.normal(2, 2, *self.spec.obs_shape)
        continuous = isinstance(self.spec.action, Box)
        self.window = Windows(
            obs=obs,
            action=np.float32([1.5]) if continuous else np.array(1),
            reward=np.float32([2.0, 3.0, 0.0]),
            num_steps=np.array(2),
            terminated=np.array(False),
            next_obs=self.next_obs,
        )

    def errors(self, **changes):
        window = self.window._replace(**changes)
        args = (self.spec, self.config, self.state.critic, self.state, window)
        return errors_and_gradients(*args)[0]

    def q(self, params, *inputs):
        return np.array(compiled.apply(self.critic, params, *inputs))

    def probs(self, obs):
        logits = np.array(compiled.apply(self.actor, self.state.actor, obs).logits)
        return np.exp(logits) / np.exp(logits).sum()

    def gaussian(self, obs):
        """An action, and the mean and standard deviation before the tanh."""
        args = (self.actor, self.state.actor, obs)
        return tuple(np.array(x) for x in gaussian(*args))


@functools.partial(jax.jit, static_argnums=0)
def gaussian(actor, params, obs):
    policy = actor.apply(params, obs)
    base = policy.distribution
    return policy.sample(seed=KEY), base.loc, base.scale_diag


@functools.partial(jax.jit, static_argnums=0)
def errors_and_gradients(spec, config, params, bootstrap, window):
    """Errors; gradients of their sum in critic, target critic and actor."""

    def total(params, target_critic, actor):
        state = bootstrap._replace(target_critic=target_critic, actor=actor)
        transition = Keyed(window=window, key=KEY)
        found = sac.td_errors(
            spec, config, params, bootstrap=state, transition=transition
        )
        return found.sum(), found

    args = (params, bootstrap.target_critic, bootstrap.actor)
    grads, found = jax.grad(total, (0, 1, 2), has_aux=True)(*args)
    return found, grads


actor_loss = jax.jit(sac.actor_loss, static_argnums=0)


def log_density(mean, std, action):
    """Of one action in [-2, 2]: change of variables."""
    x = np.arctanh(action / 2)
    normal = -0.5 * ((x - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    return (normal - np.log(2 * (1 - np.tanh(x) ** 2))).sum()


@pytest.fixture(scope="module")
def continuous():
    return Problem("Pendulum-v1")


@pytest.fixture(scope="module")
def discrete():
    return Problem("CartPole-v1")


def test_sac_targets_by_hand(continuous):
    p = continuous
    action, *policy = p.gaussian(p.next_obs)
    q_next = p.q(p.state.target_critic, p.next_obs, action)
    assert q_next[0] != q_next[1]
    soft = q_next.min() - 0.3 * log_density(*policy, action)
    reward = 2.0 + 0.9 * 3.0
    q = p.q(p.state.critic, p.window.obs, p.window.action)
    np.testing.assert_allclose(p.errors(), reward + 0.81 * soft - q, rtol=1e-4)
    ended = p.errors(terminated=np.array(True))
    np.testing.assert_allclose(ended, reward - q, rtol=1e-5)


def test_sac_discrete_targets_by_hand(discrete):
    p = discrete
    probs = p.probs(p.next_obs)
    q_next = p.q(p.state.target_critic, p.next_obs).min(axis=0)
    soft = (probs * (q_next - 0.3 * np.log(probs))).sum()
    q = p.q(p.state.critic, p.window.obs)[:, 1]
    want = 2.0 + 0.9 * 3.0 + 0.81 * soft - q
    np.testing.assert_allclose(p.errors(), want, rtol=1e-5)


def test_sac_actor_losses_by_hand(continuous, discrete):
    p, obs = continuous, continuous.window.obs
    args = (p.spec, p.config, p.state.actor, obs, KEY)
    loss, log_prob = actor_loss(*args, bootstrap=p.state)
    action, *policy = p.gaussian(obs)
    want = log_density(*policy, action)
    np.testing.assert_allclose(log_prob, want, rtol=1e-4)
    want = 0.3 * want - p.q(p.state.critic, obs, action).min()
    np.testing.assert_allclose(loss, want, rtol=1e-4)

    p, obs = discrete, discrete.window.obs
    args = (p.spec, p.config, p.state.actor, obs, KEY)
    loss, log_prob = actor_loss(*args, bootstrap=p.state)
    probs, q = p.probs(obs), p.q(p.state.critic, obs).min(axis=0)
    np.testing.assert_allclose(log_prob, (probs * np.log(probs)).sum(), rtol=1e-5)
    want = (probs * (0.3 * np.log(probs) - q)).sum()
    np.testing.assert_allclose(loss, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_sac_gradient_is_the_semi_gradient(kind, request):
    p = request.getfixturevalue(kind)

    @jax.jit
    @jax.grad
    def minus_q(params):
        more = (p.window.action,) if kind == "continuous" else ()
        q = p.critic.apply(params, p.window.obs, *more)
        return -q.sum() if more else -q[:, 1].sum()

    same = p.state._replace(target_critic=p.state.critic)
    args = (p.spec, p.config, p.state.critic, same, p.window)
    _, (semi, *rest) = errors_and_gradients(*args)
    want = minus_q(p.state.critic)
    chex.assert_trees_all_close(semi, want, rtol=1e-4, atol=1e-6)
    for tree in rest:  # differentiable all the same
        assert any(np.array(leaf).any() for leaf in jax.tree.leaves(tree))


def test_sac_target_entropy_is_in_the_units_of_the_actions():
    config = config_of(target_entropy=-0.5, target_entropy_ratio=0.25)
    env = envs.wrap(probe_envs.Target())  # half widths 1 and 2
    want = -1.0 + np.log(2.0)
    np.testing.assert_allclose(sac.target_entropy(env.spec, config), want, rtol=1e-6)
    discrete = sac.target_entropy(envs.make("Acrobot-v1").spec, config)
    np.testing.assert_allclose(discrete, 0.25 * np.log(3.0), rtol=1e-6)


only_sac = pytest.mark.parametrize("case", ["sac"], indirect=True)


@only_sac
@pytest.mark.parametrize(("ratio", "sign"), [(0.0, -1), (1.0, 1)])
def test_sac_temperature_keeps_the_entropy(case, update, state, rollout, ratio, sign):
    other = compiled.scaled(state.actor, 30)  # neither 0 nor log 2
    state = state._replace(actor=other)
    config = dataclasses.replace(case.config, target_entropy_ratio=ratio)
    new, metrics = update(config, state, rollout, jax.random.key(1))
    assert 0.0 < metrics["entropy"] < np.log(2.0)
    assert np.sign(new.log_temperature - state.log_temperature) == sign


@only_sac
def test_sac_moves_the_target_critic(case, update, state, rollout):
    config = dataclasses.replace(case.config, target_rate=0.25, learning_rate=0.1)
    new, _ = update(config, state, rollout, jax.random.key(1))
    new, state = jax.tree.map(np.array, (new, state))
    want = jax.tree.map(
        lambda old, new: old + 0.25 * (new - old), state.target_critic, new.critic
    )
    chex.assert_trees_all_close(new.target_critic, want, rtol=1e-5, atol=1e-6)
    assert differ(new.target_critic, state.target_critic)


@pytest.fixture(scope="module")
def explored(continuous):
    """Actions of 120 steps in 200 environments that observe the same."""
    p, obs = continuous, np.tile(continuous.next_obs, (200, 1))

    @jax.jit
    def actions(config, key):
        act = functools.partial(actor_critic.act, p.spec, config, p.state, explore=True)

        def step(memory, key):
            action, memory, _ = act(memory, obs, key=key)
            return memory, action[:, 0]

        memory = sac.make(p.spec).memory(config, 200)
        return jax.lax.scan(step, memory, jax.random.split(key, 120))[1]

    return actions


@pytest.mark.parametrize("damping", [1.0, 0.1])
def test_sac_explores_with_the_policy_and_memory(continuous, explored, damping):
    p = continuous
    config = dataclasses.replace(p.config, noise_damping=damping)
    actions = np.array(explored(config, jax.random.key(0)))
    _, mean, std = p.gaussian(p.next_obs)
    noise = (np.arctanh(actions[60:] / 2) - mean) / std
    np.testing.assert_allclose(noise.mean(), 0.0, atol=0.1)
    np.testing.assert_allclose(noise.std(), 1.0, atol=0.1)
    correlation = (noise[1:] * noise[:-1]).mean()
    np.testing.assert_allclose(correlation, 1 - damping, atol=0.1)
