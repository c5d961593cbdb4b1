"""Agents with actor and critics on a replay: priorities, weights, what they learn."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, replay
from rljax._loops import Packing
from rljax.learners import actor_critic
from rljax.learners.actor_critic import Keyed
from rljax.running import train

from .. import compiled, probe_envs
from ..agent_case import N, T, differ, parameters

PRIORITIES = {"mpo": "grad_norm", "sac": "td_error", "td3": "td_error"}
each_agent = pytest.mark.parametrize("case", PRIORITIES, indirect=True)
KEY = jax.random.key(3)  # of targets and losses, none of which draws anything


class Learner(NamedTuple):
    config: Any
    update: Any  # compiled
    state: Any  # that has stored the rollout


@pytest.fixture(scope="module")
def learner(case, state, rollout):
    """One gradient step from stored priorities, whose targets have no noise."""
    quiet = dict(policy_delay=1, target_noise=0.0) if case.name == "td3" else {}
    config = dataclasses.replace(
        case.config,
        priority=PRIORITIES[case.name],
        batch_size=12,  # a part of what is stored
        anneal=True,
        num_updates=1,
        **quiet,
    )

    @jax.jit
    def filled(rollout):
        return replay.add(actor_critic.init_replay(case.spec, config), rollout)

    state = state._replace(replay=filled(rollout))
    return Learner(config, jax.jit(case.agent.update), state)


@pytest.fixture(scope="module")
def scores_and_draws(case, learner):
    """The score of each step, and the batch that an update with this key draws."""
    module, config = case.module, learner.config

    @jax.jit
    def found(state, key):
        def loss(params, window):
            errors = module.td_errors(
                case.spec,
                config,
                params,
                bootstrap=state,
                transition=Keyed(window, KEY),
            )
            return 0.5 * jnp.sum(errors**2), jnp.mean(jnp.abs(errors))

        first, second = jax.random.split(jax.random.split(key, 1)[0])
        sample_key = jax.random.split(second, 1)[0] if case.name == "td3" else first
        batch = actor_critic.sample(
            config,
            state.replay,
            sample_key,
            progress=jnp.zeros(()),
            loss=loss,
            params=state.critic,
        )
        windows = replay.windows(state.replay, jnp.arange(T * N), config.n_step)
        grad = jax.grad(loss, has_aux=True)
        grads, errors = jax.vmap(grad, (None, 0))(state.critic, windows)
        squares = jax.tree.map(
            lambda x: jnp.sum(x.reshape(T * N, -1) ** 2, axis=1), grads
        )
        norms = jnp.sqrt(sum(jax.tree.leaves(squares)))
        return norms if config.priority == "grad_norm" else errors, batch

    return found


def with_priorities(state, priority):
    index = np.arange(T * N)
    return state._replace(
        replay=jax.jit(replay.update_priorities)(state.replay, index, priority)
    )


def stored(state):
    return np.array(state.replay.tree.levels[-1]).ravel()[: T * N]


@each_agent
def test_stored_priorities_by_hand(learner, scores_and_draws, rollout):
    """The mean error of both critics or their gradient's norm, to a power."""
    config, update, state = learner
    new, _ = update(config, state, rollout, jax.random.key(1))
    scores, batch = scores_and_draws(state, jax.random.key(1))
    drawn = np.unique(batch.index)
    assert 0 < len(drawn) < T * N
    want = np.ones(T * N)
    want[drawn] = np.array(scores)[drawn] ** config.priority_exponent
    np.testing.assert_allclose(stored(new), want, rtol=1e-3)
    np.testing.assert_allclose(new.replay.max_priority, want.max(), rtol=1e-3)


@each_agent
def test_learns_from_what_has_priority(learner, rollout):
    config, update, state = learner
    only = np.float32(np.arange(T * N) == 5)
    before = with_priorities(state, only)
    new, _ = update(config, before, rollout, jax.random.key(1))
    changed = stored(new) != only
    assert changed[5] and changed.sum() == 1


@each_agent
def test_steps_along_the_weighted_gradient(case, learner, scores_and_draws, rollout):
    """Of policy and critics, and of the temperature or the dual variables."""
    module, spec, (config, update, state) = case.module, case.spec, learner
    state = with_priorities(state, np.linspace(0.5, 3.0, T * N, dtype=np.float32))
    new, _ = update(config, state, rollout, jax.random.key(1))
    _, batch = scores_and_draws(state, jax.random.key(1))
    # TD3's policy learns from the critics after their step.
    seen = state._replace(critic=new.critic) if case.name == "td3" else state
    assert np.ptp(batch.weights) > 0.2

    def loss(params, obs):
        return module.actor_loss(spec, config, params, obs, KEY, bootstrap=seen)

    def critic_loss(params, window):
        errors = module.td_errors(
            spec, config, params, bootstrap=state, transition=Keyed(window, KEY)
        )
        return 0.5 * jnp.sum(errors**2)

    def dual_loss(duals, evidence):
        if case.name == "mpo":
            parts = module.mpo_parts(config, duals, evidence)
            return parts.temperature_loss + parts.alpha_loss
        return -jnp.exp(duals) * (evidence + module.target_entropy(spec, config))

    @jax.jit
    def gradients(windows):
        grad = jax.vmap(jax.grad(loss, has_aux=True), (None, 0))
        actor, evidence = grad(state.actor, windows.obs)
        critic = jax.vmap(jax.grad(critic_loss), (None, 0))(state.critic, windows)
        if case.name == "td3":
            return actor, critic
        grad = jax.vmap(jax.grad(dual_loss), (None, 0))
        return actor, critic, grad(state[2], evidence)

    weights = np.array(batch.weights)
    want = jax.tree.map(
        lambda x: np.tensordot(weights, np.array(x), 1) / len(weights),
        gradients(batch.examples.window),
    )
    for opt_state, mean in zip(new.opt_states.values(), want, strict=True):
        moment = Packing(mean).unpack(opt_state[1].mu)
        moment = compiled.scaled(moment, 10)  # Adam's, a tenth at first
        chex.assert_trees_all_close(moment, mean, rtol=1e-3, atol=1e-5)


@each_agent
def test_the_learning_rate_falls_to_zero(learner, rollout):
    config, update, state = learner
    end = state._replace(step=jnp.int32(config.total_steps // (T * N)))
    new, _ = update(config, end, rollout, jax.random.key(1))
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    for name in {"duals", "log_temperature"}.intersection(state._fields):
        chex.assert_trees_all_equal(getattr(new, name), getattr(state, name))


@pytest.mark.parametrize("case", ["sac"], indirect=True)
def test_scores_a_large_batch(case, update, state, rollout):
    changes = dict(priority="td_error", sampler="large_batch")
    config = dataclasses.replace(case.config, **changes)
    new, metrics = update(config, state, rollout, jax.random.key(0))
    assert new.replay.tree is None and np.isfinite(metrics["critic_loss"])
    before, after = jax.tree.map(np.array, (state.critic, new.critic))
    steps = jax.tree.map(np.subtract, after, before)
    assert compiled.all_nonzero(steps)


@pytest.mark.slow
@pytest.mark.parametrize("priority", ["grad_norm", "td_error"])
@pytest.mark.parametrize("sampler", ["replay", "large_batch"])
@pytest.mark.parametrize("name", ["mpo", "sac", "td3"])
def test_learns_from_priorities(name, priority, sampler):
    """Every combination, with continuous actions, in whole trainings."""
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
    assert np.isfinite(metrics["critic_loss"]).all()
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


@pytest.mark.parametrize(
    ("name", "atol"), [pytest.param("mpo", 0.1, marks=pytest.mark.slow), ("sac", 0.15)]
)
def test_finds_a_continuous_action(name, atol):
    """The slow one adds MPO, whose dual variables have to find their values."""
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
    memory, obs = agent.memory(config, 1), np.zeros((1, 2), np.float32)
    act = jax.jit(agent.act, static_argnums=5)
    action, *_ = act(config, ts.agent, memory, obs, jax.random.key(0), False)
    np.testing.assert_allclose(action[0], env.env.gym.target, atol=atol)
