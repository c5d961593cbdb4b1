"""Agents of fresh rollouts: advantages, losses, a step by hand; what they learn."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import agents, envs, on_policy, train

from . import probe_envs
from .agent_case import N, T, parameters

LAMBDAS = {"a2c": 0.8, "reinforce": 1.0}
only_these = pytest.mark.parametrize("case", LAMBDAS, indirect=True)


def by_hand(case, config, state, rollout, lambda_):
    """Advantages and values `[T, N]`, in plain loops."""
    value, next_value = (
        np.array(on_policy.critic(case.spec, config).apply(state.critic, x))
        for x in (rollout.obs, rollout.next_obs)
    )
    adv = np.zeros((T + 1, N))
    for t in reversed(range(T)):
        for n in range(N):
            terminated, truncated = rollout.terminated[t, n], rollout.truncated[t, n]
            bootstrap = 0.0 if terminated else 0.9 * next_value[t, n]
            later = 0.0 if terminated or truncated else 0.9 * lambda_ * adv[t + 1, n]
            adv[t, n] = rollout.reward[t, n] + bootstrap - value[t, n] + later
    return adv[:T], value


@only_these
@pytest.mark.parametrize("normalized", [False, True])
def test_one_step_along_the_gradients_by_hand(case, state, rollout, normalized):
    spec, entropy_cost, lambda_ = case.spec, 0.3, LAMBDAS[case.name]
    changes = {"lambda_": lambda_} if case.name == "a2c" else {}
    config = dataclasses.replace(
        case.config,
        gamma=0.9,
        entropy_cost=entropy_cost,
        adam_epsilon=1e-2,
        normalize_advantages=normalized,
        **changes,
    )
    adv, value = by_hand(case, config, state, rollout, lambda_)
    target = adv + value
    if normalized:
        adv = (adv - adv.mean()) / adv.std()

    def policy_loss(params):
        policy = on_policy.actor(spec, config).apply(params, rollout.obs)
        per_step = policy.log_prob(rollout.action) * adv
        return -(per_step + entropy_cost * policy.entropy()).mean()

    def value_loss(params):
        v = on_policy.critic(spec, config).apply(params, rollout.obs)
        return 0.5 * ((v - target) ** 2).mean()

    agent = case.module.make(spec)  # cut as often as the rollout is
    new, metrics = jax.jit(agent.update)(config, state, rollout, jax.random.key(0))
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(config.learning_rate, eps=config.adam_epsilon),
    )
    for name, loss in (("actor", policy_loss), ("critic", value_loss)):
        params = getattr(state, name)
        updates, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params))
        want = optax.apply_updates(params, updates)
        chex.assert_trees_all_close(getattr(new, name), want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["value_loss"], value_loss(state.critic), 1e-5)
    assert new.step == T * N


@only_these
def test_the_learning_rate_falls_to_zero(case, update, state, rollout):
    end = state._replace(step=jnp.int32(case.config.total_steps))
    new, _ = update(case.config, end, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    config = dataclasses.replace(case.config, anneal=False)
    new, _ = update(config, end, rollout, jax.random.key(0))
    assert (jax.tree.leaves(new.actor)[0] != jax.tree.leaves(state.actor)[0]).any()


REPLAY = dict(capacity=1_024, batch_size=32, sequence_length=8)
# What sets an agent's config apart from the others' in the test below.
CONTINUOUS: dict[str, dict] = {
    "a2c": dict(entropy_cost=0.0),
    "awr": dict(gamma=0.5) | REPLAY,
    "impala": dict(entropy_cost=0.0),
    "ppo": dict(total_steps=12_000, rollout_length=16, entropy_cost=0.0),
    "reinforce": dict(entropy_cost=0.0),
    "trpo": dict(gamma=0.5, rollout_length=16, num_minibatches=4, total_steps=20_000),
    "vmpo": dict(gamma=0.5, total_steps=20_000),
}
BOTH = dict(learning_rate=1e-2, num_envs=8, rollout_length=8, hidden_sizes=(16,))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_finds_a_continuous_action(name):
    module, env = agents.get(name), envs.wrap(probe_envs.Target())
    agent = module.make(env.spec)
    config = module.Config(**(BOTH | dict(total_steps=24_000) | CONTINUOUS[name]))
    fn = jax.jit(functools.partial(train.train, agent))
    ts, _ = fn(env, config, jax.random.key(0))
    obs = jnp.zeros((1, 2))
    action, *_ = agent.act(config, ts.agent, (), obs, jax.random.key(0), explore=False)
    np.testing.assert_allclose(action[0], env.env.gym.target, atol=0.1)
    policy = on_policy.actor(env.spec, config).apply(ts.agent.actor, obs)
    assert (policy.stddev() < jnp.array([1.0, 2.0])).all()  # smaller than at first
