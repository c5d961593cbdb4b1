"""Agents with actor and critics on a replay: priorities, bounds, what they learn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, train

from . import probe_envs
from .agent_case import differ


@pytest.mark.parametrize(
    ("priority", "sampler"), [("grad_norm", "replay"), ("td_error", "large_batch")]
)
@pytest.mark.parametrize("name", ["mpo", "sac", "td3"])
def test_learns_from_priorities(name, priority, sampler):
    module, env = agents.get(name), envs.wrap(probe_envs.Target())
    uniform = module.Config(
        hidden_sizes=(8,),
        total_steps=400,
        warmup_steps=32,
        batch_size=16,
        capacity=1_000,
        num_envs=4,
    )
    config = dataclasses.replace(uniform, priority=priority, sampler=sampler)
    run = jax.jit(functools.partial(train.train, module.make(env.spec)))
    ts, metrics = run(env, config, jax.random.key(0))
    assert jnp.isfinite(metrics["critic_loss"]).all()
    if sampler == "replay":
        assert ts.agent.replay.max_priority != 1.0
        other = uniform
    else:
        assert ts.agent.replay.tree is None
        other = dataclasses.replace(config, large_batch_factor=2)
    without, _ = run(env, other, jax.random.key(0))
    assert differ(ts.agent.critic, without.agent.critic)


@pytest.mark.parametrize("name", ["mpo", "sac"])
def test_needs_finite_bounds(name):
    spec = envs.wrap(probe_envs.Target()).spec
    box = spec.action._replace(low=(-1.0, -np.inf))
    message = f"{name} needs finite bounds of actions, not Box"
    with pytest.raises(ValueError, match=message):
        agents.get(name).make(spec._replace(action=box))


FIELDS = {
    "mpo": dict(
        total_steps=6_000,
        hidden_sizes=(32, 32),
        target_rate=0.05,
        epsilon_stddev=1e-2,
    ),
    "sac": dict(total_steps=4_000, hidden_sizes=(16,), target_entropy=-3.0),
}


@pytest.mark.parametrize(("name", "atol"), [("mpo", 0.1), ("sac", 0.15)])
def test_finds_a_continuous_action(name, atol):
    module, env = agents.get(name), envs.wrap(probe_envs.Target())
    agent, fields = module.make(env.spec), FIELDS[name]
    config = module.Config(
        learning_rate=3e-3,
        num_envs=4,
        batch_size=64,
        capacity=fields["total_steps"],
        warmup_steps=200,
        **fields,
    )
    fn = jax.jit(functools.partial(train.train, agent))
    ts, _ = fn(env, config, jax.random.key(0))
    memory, obs = agent.memory(config, 1), jnp.zeros((1, 2))
    args = (config, ts.agent, memory, obs, jax.random.key(0))
    action, *_ = agent.act(*args, explore=False)
    np.testing.assert_allclose(action[0], env.env.gym.target, atol=atol)
