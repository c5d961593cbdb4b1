"""PPO: targets and losses by hand, its learning rate, what it learns."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, on_policy, train

from . import probe_envs
from .agent_case import N, T, parameters

only_ppo = pytest.mark.parametrize("case", ["ppo"], indirect=True)


@only_ppo
def test_ppo_targets_by_hand(case, state, rollout):
    ppo, spec = case.module, case.spec
    config = dataclasses.replace(case.config, gamma=0.9, lambda_=0.8)
    log_prob = jax.random.normal(jax.random.key(2), (T, N))
    rollout = rollout._replace(extras=log_prob)
    batch = jax.jit(functools.partial(ppo.prepare, spec))(config, state, rollout)
    value, next_value = (
        np.array(on_policy.critic(spec, config).apply(state.critic, x))
        for x in (rollout.obs, rollout.next_obs)
    )
    advantage = np.zeros((T + 1, N))
    for t in reversed(range(T)):
        for n in range(N):
            terminated, truncated = rollout.terminated[t, n], rollout.truncated[t, n]
            bootstrap = 0.0 if terminated else 0.9 * next_value[t, n]
            later = 0.0 if terminated or truncated else 0.9 * 0.8 * advantage[t + 1, n]
            advantage[t, n] = rollout.reward[t, n] + bootstrap - value[t, n] + later
    advantage = advantage[:T]
    columns = (log_prob, advantage, advantage + value, value)
    for i, want in enumerate(columns):
        np.testing.assert_allclose(
            batch.targets[:, i], np.ravel(want), rtol=1e-4, atol=1e-5, err_msg=i
        )
    np.testing.assert_array_equal(batch.obs, rollout.obs.reshape(T * N, -1))
    np.testing.assert_array_equal(batch.action, rollout.action.ravel())


@only_ppo
def test_ppo_keeps_the_log_probabilities_of_its_actions(case, state, rollout):
    obs, key = rollout.obs[0], jax.random.key(0)
    action, _, log_prob = case.agent.act(case.config, state, (), obs, key, True)
    policy = on_policy.actor(case.spec, case.config).apply(state.actor, obs)
    np.testing.assert_allclose(log_prob, policy.log_prob(action), rtol=1e-6)


@only_ppo
def test_ppo_losses_by_hand(case, state, rollout):
    ppo, spec = case.module, case.env.spec
    config = dataclasses.replace(case.config, entropy_cost=0.3, clip_value=False)
    rng = np.random.default_rng(1)
    policy = on_policy.actor(spec, config).apply(state.actor, rollout.obs)
    new_log_prob = np.ravel(policy.log_prob(rollout.action))
    old_log_prob = new_log_prob + rng.normal(size=T * N) * 0.4
    adv, target, old_value = rng.normal(2.0, 3.0, size=(3, T * N))
    targets = jnp.stack([old_log_prob, adv, target, old_value], axis=-1)
    obs, action = rollout.obs.reshape(T * N, -1), rollout.action.ravel()
    batch = ppo.Batch(obs, action, targets)

    ratio = np.exp(new_log_prob - old_log_prob)
    adv = (adv - adv.mean()) / adv.std()
    surrogate = np.minimum(ratio * adv, np.clip(ratio, 0.8, 1.2) * adv).mean()
    want = -surrogate - 0.3 * policy.entropy().mean()
    loss, metrics = ppo.actor_loss(spec, config, state.actor, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["policy_loss"], -surrogate, rtol=1e-4)
    clipped = (np.abs(ratio - 1) > 0.2).mean()
    np.testing.assert_allclose(metrics["clip_fraction"], clipped, rtol=1e-5)

    value = np.array(on_policy.critic(spec, config).apply(state.critic, obs))
    loss, _ = ppo.critic_loss(spec, config, state.critic, batch)
    np.testing.assert_allclose(loss, 0.5 * ((value - target) ** 2).mean(), rtol=1e-4)
    config = dataclasses.replace(config, clip_value=True)
    near = np.clip(value, old_value - 0.2, old_value + 0.2)
    want = 0.5 * np.maximum((value - target) ** 2, (near - target) ** 2).mean()
    loss, _ = ppo.critic_loss(spec, config, state.critic, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-4)


@only_ppo
def test_ppo_learning_rate_falls_to_zero(case, update, state, rollout):
    end = state._replace(step=jnp.int32(case.config.total_steps))
    new, _ = update(case.config, end, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    assert new.step == case.config.total_steps + T * N


def test_ppo_finds_the_best_actions_and_their_values():
    ppo, env = agents.get("ppo"), envs.wrap(probe_envs.TwoPlaces())
    config = ppo.Config(
        gamma=0.5,
        learning_rate=1e-2,
        total_steps=8_000,
        num_envs=8,
        rollout_length=16,
        hidden_sizes=(16,),
        anneal=False,
    )
    fn = jax.jit(functools.partial(train.train, ppo.make(env.spec)))
    ts, metrics = fn(env, config, jax.random.key(0))
    policy = on_policy.actor(env.spec, config).apply(ts.agent.actor, jnp.eye(2))
    assert policy.probs[0, 1] > 0.95 and policy.probs[1, 0] > 0.95
    value = on_policy.critic(env.spec, config).apply(ts.agent.critic, jnp.eye(2))
    np.testing.assert_allclose(value, [2.0, 2.0], atol=0.15)
    assert metrics["episode_return"][-1] > 3.7  # of 4 steps


def test_ppo_finds_a_continuous_action():
    ppo, env = agents.get("ppo"), envs.wrap(probe_envs.Target())
    agent = ppo.make(env.spec)
    config = ppo.Config(
        learning_rate=1e-2,
        total_steps=12_000,
        num_envs=8,
        rollout_length=16,
        hidden_sizes=(16,),
        entropy_cost=0.0,
    )
    ts, _ = jax.jit(functools.partial(train.train, agent))(
        env, config, jax.random.key(0)
    )
    action, *_ = agent.act(
        config, ts.agent, (), jnp.zeros((1, 2)), jax.random.key(0), explore=False
    )
    np.testing.assert_allclose(action[0], env.env.gym.target, atol=0.1)
    policy = on_policy.actor(env.spec, config).apply(ts.agent.actor, jnp.zeros((1, 2)))
    assert (policy.stddev() < jnp.array([1.0, 2.0])).all()  # smaller than at first
