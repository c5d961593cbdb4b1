"""PPO: targets and losses by hand, its learning rate, where it stops, time limits."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents, envs, prng
from rljax.learners import on_policy, optimizers
from rljax.running import train
from rljax.running.rollout import unroll

from .. import compiled
from ..agent_case import N, T, differ, parameters

only_ppo = pytest.mark.parametrize("case", ["ppo"], indirect=True)


@only_ppo
def test_ppo_targets_by_hand(case, state, rollout):
    ppo, spec = case.module, case.spec
    config = dataclasses.replace(case.config, gamma=0.9, lambda_=0.8)
    log_prob = compiled.normal(2, T, N)
    rollout = rollout._replace(extras=log_prob)
    batch = jax.jit(functools.partial(ppo.prepare, spec))(config, state, rollout)
    value, next_value = (
        np.array(compiled.apply(on_policy.critic(spec, config), state.critic, x))
        for x in (rollout.obs, rollout.next_obs)
    )
    batch, rollout = jax.tree.map(np.array, (batch, rollout))
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
    act = jax.jit(case.agent.act, static_argnums=5)
    action, _, log_prob = act(case.config, state, (), obs, key, True)
    actor = on_policy.actor(case.spec, case.config)
    want = compiled.log_prob(actor, state.actor, obs, action)
    np.testing.assert_allclose(log_prob, want, rtol=1e-5)


@only_ppo
def test_ppo_losses_by_hand(case, state, rollout):
    ppo, spec = case.module, case.env.spec
    config = dataclasses.replace(case.config, entropy_cost=0.3, clip_value=False)
    rng = np.random.default_rng(1)
    obs, action = np.reshape(rollout.obs, (T * N, -1)), np.ravel(rollout.action)
    actor = on_policy.actor(spec, config)
    log_probs = np.array(compiled.apply(actor, state.actor, obs).logits)
    log_probs -= np.log(np.exp(log_probs).sum(axis=1, keepdims=True))
    entropy = -(np.exp(log_probs) * log_probs).sum(axis=1)
    new_log_prob = log_probs[np.arange(T * N), action]
    old_log_prob = new_log_prob + rng.normal(size=T * N) * 0.4
    adv, target, old_value = rng.normal(2.0, 3.0, size=(3, T * N))
    targets = np.stack([old_log_prob, adv, target, old_value], axis=-1)
    batch = ppo.Transitions(obs=obs, action=action, targets=targets)

    ratio = np.exp(new_log_prob - old_log_prob)
    adv = (adv - adv.mean()) / adv.std()
    surrogate = np.minimum(ratio * adv, np.clip(ratio, 0.8, 1.2) * adv).mean()
    want = -surrogate - 0.3 * entropy.mean()
    actor_loss = jax.jit(ppo.actor_loss, static_argnums=0)
    loss, metrics = actor_loss(spec, config, state.actor, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["policy_loss"], -surrogate, rtol=1e-4)
    clipped = (np.abs(ratio - 1) > 0.2).mean()
    np.testing.assert_allclose(metrics["clip_fraction"], clipped, rtol=1e-5)

    critic = on_policy.critic(spec, config)
    value = np.array(compiled.apply(critic, state.critic, obs))
    critic_loss = jax.jit(ppo.critic_loss, static_argnums=0)
    loss, _ = critic_loss(spec, config, state.critic, batch)
    np.testing.assert_allclose(loss, 0.5 * ((value - target) ** 2).mean(), rtol=1e-4)
    config = dataclasses.replace(config, clip_value=True)
    near = np.clip(value, old_value - 0.2, old_value + 0.2)
    want = 0.5 * np.maximum((value - target) ** 2, (near - target) ** 2).mean()
    loss, _ = critic_loss(spec, config, state.critic, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-4)


@only_ppo
def test_ppo_learning_rate_falls_to_zero(case, update, state, rollout):
    end = state._replace(step=jnp.int32(case.config.total_steps // (T * N)))
    new, _ = update(case.config, end, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    assert new.step == end.step + 1


@only_ppo
def test_ppo_stops_the_policy_where_it_has_gone_far_enough(
    case, update, state, rollout
):
    actor = on_policy.actor(case.spec, case.config)
    args = (state.actor, rollout.obs, rollout.action)
    rollout = rollout._replace(extras=compiled.log_prob(actor, *args))
    config = dataclasses.replace(case.config, learning_rate=0.02, num_epochs=8)
    prepare = jax.jit(functools.partial(case.module.prepare, case.spec))
    batch = jax.tree.map(np.array, prepare(config, state, rollout))
    index = jax.jit(lambda key: prng.permutations(key, 8, T * N))(jax.random.key(1))
    index = np.array(index).reshape(16, -1)
    optimizer = optimizers.clipped_adam(config, on_policy.EPS)
    flat, unravel = ravel_pytree(state.actor)
    opt_state, divergences, path = state.actor_opt, [], [np.array(flat)]
    loss = functools.partial(case.module.actor_loss, case.spec, config)

    @jax.jit
    def step(flat, opt_state, part):
        rate = optimizers.annealed(config, 0.0, config.learning_rate)
        grads, metrics = jax.grad(loss, has_aux=True)(unravel(flat), part)
        updates, opt_state = optimizer.update(ravel_pytree(grads)[0], opt_state)
        return flat - rate * updates, opt_state, metrics["approx_kl"]

    for rows in index:
        part = jax.tree.map(lambda x, rows=rows: x[rows], batch)
        flat, opt_state, kl = step(flat, opt_state, part)
        divergences.append(float(kl))
        path.append(np.array(flat))
    limit = sorted(divergences)[8]
    taken = next(i for i, kl in enumerate(divergences) if kl > limit)
    assert 0 < taken < 15 and min(divergences[taken:]) <= limit  # it might go on
    config = dataclasses.replace(config, max_kl=limit)
    new, metrics = update(config, state, rollout, jax.random.key(1))
    got = ravel_pytree(jax.tree.map(np.array, new.actor))[0]
    np.testing.assert_allclose(got, path[taken], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["steps_taken"], taken / 16)
    mean = np.mean(divergences[: taken + 1])
    np.testing.assert_allclose(metrics["approx_kl"], mean, rtol=1e-3)
    whole, _ = update(
        dataclasses.replace(config, max_kl=1e9), state, rollout, jax.random.key(1)
    )
    got = ravel_pytree(jax.tree.map(np.array, whole.actor))[0]
    np.testing.assert_allclose(got, path[-1], rtol=1e-3, atol=1e-4)
    assert not differ(new.critic, whole.critic)  # which goes on


@jax.jit
def late_values(key, cap_ends):
    """What ppo learns on CartPole cut at 50 steps: the critic's mean after step 40.

    And how long training's last episodes were. With `cap_ends` the update takes the
    time limit for a termination.
    """
    env, ppo = envs.make("CartPole-v1", max_steps_in_episode=50), agents.get("ppo")
    plain = ppo.make(env.spec)

    def update(config, state, rollout, key):
        terminated = rollout.terminated | (cap_ends & rollout.truncated)
        truncated = rollout.truncated & ~cap_ends
        rollout = rollout._replace(terminated=terminated, truncated=truncated)
        return plain.update(config, state, rollout, key)

    agent = plain._replace(update=update)
    config = ppo.Config(
        gamma=0.95,
        learning_rate=3e-3,
        total_steps=60_000,
        num_envs=16,
        rollout_length=64,
        hidden_sizes=(32,),
        clip_value=False,  # which would take the critic long to reach 20
    )
    ts, metrics = train.train(agent, env, config, key)
    _, rollout, info = unroll(
        agent.act,
        env,
        config,
        ts,
        memory=agent.memory,
        key=jax.random.key(1),
        length=100,
    )
    value = on_policy.critic(env.spec, config).apply(ts.agent.critic, rollout.obs)
    value = value.mean(where=info["episode_length"] > 40)
    return value, metrics["episode_length"][-5:].mean()


@pytest.mark.slow
def test_ppo_learns_values_beyond_the_time_limit():
    """Balancing for ever pays 1 / (1 - gamma) = 20 at any time; to the cap far less.

    To the targets by hand this adds a whole training, and one with wrong targets.
    """
    keys, cap_ends = jax.random.split(jax.random.key(0), 2), jnp.array([False, True])
    both = jax.vmap(jax.vmap(late_values, (None, 0)), (0, None))
    values, lengths = both(keys, cap_ends)
    assert (lengths > 45).all()
    np.testing.assert_allclose(values[:, 0], 20.0, atol=1.0)
    assert (values[:, 1] < 16.0).all()
