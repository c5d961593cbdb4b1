"""Observations of several arrays, several choices at once, and what refuses them."""

import dataclasses
import functools

import chex
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams

from rljax import agents, autodiff, envs
from rljax.meta import LogHorizon, Settings, conditioned, tune
from rljax.running import train
from rljax.running.checkpoint import restore, save
from rljax.running.evaluate import evaluate
from rljax.types import MultiDiscrete, ObsSpec, Spec

from .. import agent_case
from ..probe_envs import PlaceState

WITH_POLICY = ("a2c", "awr", "impala", "ppo", "ppo_rnn", "reinforce", "trpo", "vmpo")
ASYMMETRIC = (*WITH_POLICY, "apg", "mpo", "sac", "td3")


def in_two(gym):
    """The same environment, its observation as a dict of two vectors."""

    class InTwo(type(gym)):
        def reset_env(self, key, params):
            obs, state = super().reset_env(key, params)
            return split(obs), state

        def step_env(self, key, state, action, params):
            obs, *rest = super().step_env(key, state, action, params)
            return (split(obs), *rest)

        def observation_space(self, params):
            low, high = -np.inf, np.inf
            return spaces.Dict(
                {"a": spaces.Box(low, high, (1,)), "b": spaces.Box(low, high, (2,))}
            )

    return InTwo()


def split(obs):
    return {"a": obs[..., :1], "b": obs[..., 1:]}


def joined(obs):
    return jnp.concatenate([obs["a"], obs["b"]], axis=-1)


def gym_of(case):
    continuous = case.name in agent_case.CONTINUOUS_ONLY
    return gymnax.make("Pendulum-v1" if continuous else "CartPole-v1")[0]


def trained(case, env):
    """The state after a few rollouts."""
    agent = case.module.make(env.spec)
    steps = agent_case.T * agent_case.N * 2
    steps += getattr(case.config, "warmup_steps", 0)
    config = dataclasses.replace(case.config, total_steps=steps)
    run = jax.jit(functools.partial(train.train, agent, env, config))
    return run(jax.random.key(3))


@agent_case.fast_for("dqn", "ppo")
def test_vectors_in_a_tree_are_one_vector(case):
    """Side by side they are the same features: nothing that is learned differs."""
    gym = gym_of(case)
    whole, metrics = trained(case, envs.wrap(gym, normalize_obs=True))
    parts, more = trained(case, envs.wrap(in_two(gym), normalize_obs=True))
    assert set(parts.obs) == {"a", "b"}
    same = agent_case.parameters(whole.agent), agent_case.parameters(parts.agent)
    chex.assert_trees_all_close(*same, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(joined(parts.obs), whole.obs, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, more, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", agents.names(), indirect=True)
def test_only_the_critic_sees_what_is_its_own(case):
    if case.name not in ASYMMETRIC:
        assert not hasattr(case.config, "critic_obs")
        return
    gym = gym_of(case)
    env = envs.wrap(in_two(gym))
    config = dataclasses.replace(case.config, critic_obs=("b",))
    agent = case.module.make(env.spec)
    state = jax.eval_shape(functools.partial(agent.init, config), jax.random.key(0))
    inputs = [
        {x.shape[0] for x in jax.tree.leaves(part) if x.ndim == 2 and x.shape[1] == 8}
        for part in (state.actor, state.critic)
    ]
    size = env.env.gym.reset(jax.random.key(0))[0]["b"].size
    actions = 1 if case.name in agent_case.CONTINUOUS_ONLY and case.name != "apg" else 0
    assert 1 in inputs[0] and 1 + size not in inputs[0]
    assert 1 + size + actions in inputs[1]


@agent_case.fast_for("ppo")
def test_trees_are_tuned_saved_and_evaluated(case, tmp_path):
    env = envs.wrap(in_two(gym_of(case)), stack_frames=2, time_aware=True)
    agent, config = case.module.make(env.spec), case.config
    if case.name not in (*agent_case.NOT_TUNED, "apg"):  # apg: no condition
        spec, fields = conditioned(env.spec, 1), {"gamma": LogHorizon(0.0, 0.99)}
        agent = tune(case.module.make(spec), spec, fields, Settings(condition=True))
    init = jax.jit(functools.partial(train.init, agent, env, config))
    state = init(jax.random.key(0))
    save(tmp_path / "checkpoints", 0, state)
    restored = restore(
        tmp_path / "checkpoints", jax.eval_shape(init, jax.random.key(0))
    )
    run = jax.jit(functools.partial(train.run, agent, env, config, iterations=2))
    ends = [run(train_state=x)[0].agent for x in (state, restored)]
    chex.assert_trees_all_equal(*(jax.tree.map(data, x) for x in ends))
    found = jax.jit(
        lambda ts: evaluate(agent, env, config, ts, jax.random.key(1), 3).returns
    )
    assert np.isfinite(found(state)).all()


def data(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


def test_gradient_norms_of_trees_are_exact():
    module, env = agents.get("dqn"), envs.wrap(in_two(gymnax.make("CartPole-v1")[0]))
    config = module.Config(hidden_sizes=(8,))
    agent = module.make(env.spec)

    @jax.jit
    def norms(key):
        state = agent.init(config, key)
        obs = jax.tree.map(
            lambda x: jax.random.normal(key, (5, *x.shape[1:])), env.spec.zeros(1)
        )

        def loss(params, obs):
            return agent.q_values(config, state._replace(params=params), obs)[0] ** 2

        methods = ("factored", "vmap")
        return [
            autodiff.per_transition_grad_norms(loss, state.params, obs, method=method)
            for method in methods
        ]

    factored, plain = norms(jax.random.key(0))
    np.testing.assert_allclose(factored, plain, rtol=1e-4)


class Both(Environment):
    """Shows two numbers; each choice that equals its number pays a half."""

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=5)

    def action_space(self, params):
        return spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)])

    def reset_env(self, key, params):
        place = jax.random.randint(key, (2,), 0, jnp.array([2, 3]))
        state = PlaceState(time=jnp.zeros((), jnp.int32), place=place)
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        reward = jnp.mean(jnp.stack(action) == state.place)
        _, after = self.reset_env(key, params)
        after = after.replace(time=state.time + 1)
        return self.observe(after), after, reward, jnp.bool(False), {}

    def observe(self, state):
        return jnp.concatenate([jax.nn.one_hot(x, 3) for x in state.place])


@pytest.mark.parametrize("name", agents.names())
def test_who_takes_several_choices_at_once(name):
    module, action = agents.get(name), MultiDiscrete((2, 3))
    spec = Spec(ObsSpec.array((6,)), action)
    if name not in WITH_POLICY:
        use = r"use ppo, a2c|needs continuous actions"
        with pytest.raises(ValueError, match=use):
            module.make(spec)
        return
    agent, config = module.make(spec), module.Config(hidden_sizes=(8,))
    init = functools.partial(agent.init, config)
    state = jax.eval_shape(init, jax.random.key(0))
    act = functools.partial(agent.act, explore=True)
    memory = jax.eval_shape(lambda: agent.memory(config, 4))
    chosen, _, log_prob = jax.eval_shape(
        act, config, state, memory, spec.zeros(4), jax.random.key(0)
    )
    assert (chosen.shape, chosen.dtype) == ((4, 2), jnp.int32)
    assert log_prob.shape == (4,)


BOTH = dict(total_steps=20_000, num_envs=8, rollout_length=32, hidden_sizes=(16,))


@pytest.mark.parametrize(
    "name",
    [
        name if name == "ppo" else pytest.param(name, marks=pytest.mark.slow)
        for name in WITH_POLICY
    ],
)
def test_several_choices_are_learned(name):
    module, env = agents.get(name), envs.wrap(Both())
    changes = dict(capacity=2560) if name == "awr" else {}
    config = module.Config(learning_rate=3e-3, **BOTH, **changes)
    agent = module.make(env.spec)

    @jax.jit
    def learn(key):
        ts, _ = train.train(agent, env, config, key)
        return evaluate(agent, env, config, ts, key).returns

    assert learn(jax.random.key(0)).mean() > 4.5  # of 5; by chance 5 * 5 / 12


def test_choices_at_once_refuse_a_mask():
    class Masked(Both):
        def action_mask(self, state, params):
            return jnp.ones(2, bool)

    with pytest.raises(ValueError, match="action_mask needs Discrete actions, not Mul"):
        envs.wrap(Masked())
