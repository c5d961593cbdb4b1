"""Agents and configs of a user's own: the least that works, or what is missing."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, contracts, envs, meta
from rljax import config as cfg
from rljax.learners import actor_critic, on_policy, q_learner
from rljax.meta.critics import CriticConfig, critic_config
from rljax.replay import priority
from rljax.running import checkpoint, train
from rljax.running.evaluate import evaluate
from rljax.types import Agent

from .. import probe_envs

KEY = jax.random.key(0)
GAMMA = {"gamma": meta.LogHorizon()}
a2c = agents.get("a2c")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """What the loop and the tuning need, and one number to learn with."""

    gamma: float = 0.9
    total_steps: int = cfg.static(64)
    num_envs: int = cfg.static(2)
    rollout_length: int = cfg.static(8)

    def validate(self):
        cfg.check_range(self, "gamma", low=0.0, high=1.0)


def without(names, *left_out):
    """An object with all these fields, but for one or two."""
    kept = {name: 1 for name in names if name not in left_out}
    return type("Partial", (), kept)()


def counting():
    """Learns a number, keeps a dict and has no memory."""
    return Agent(
        init=lambda config, key: {"sum": jnp.zeros(())},
        memory=lambda config, num_envs: (),
        act=lambda config, state, memory, obs, key, explore: (
            jnp.zeros(len(obs), jnp.int32),
            memory,
            (),
        ),
        observe=lambda config, state, rollout: state,
        update=lambda config, state, rollout, key: (
            {"sum": state["sum"] + config.gamma * rollout.reward.sum()},
            {},
        ),
    )


def around_a2c(spec):
    """An agent with fewer numbers to set than the one it is made of."""
    inner = a2c.make(spec)

    def full(fn):
        def own(config, *args, **kwargs):
            return fn(a2c.Config(**vars(config)), *args, **kwargs)

        return own

    names = ("init", "memory", "act", "observe", "update", "policy", "value")
    return inner._replace(**{name: full(getattr(inner, name)) for name in names})


def test_a_minimal_agent_trains_is_evaluated_and_saved(tmp_path):
    env, agent, config = envs.wrap(probe_envs.Counter()), counting(), Config()

    @jax.jit
    def program(key):
        ts, metrics = train.train(agent, env, config, key)
        return ts, metrics, evaluate(agent, env, config, ts, key, 3)

    ts, metrics, episodes = program(KEY)
    np.testing.assert_allclose(ts.agent["sum"], 64 * 0.9, rtol=1e-6)
    np.testing.assert_array_equal(metrics["step"], [16, 32, 48, 64])
    np.testing.assert_array_equal(episodes.lengths, [5] * 3)
    checkpoint.save(tmp_path, 64, ts)
    restored = checkpoint.restore(tmp_path, ts)
    chex.assert_trees_all_equal(restored.agent, ts.agent)


LOOP = ("validate", "num_envs", "rollout_length")
USES = {  # what takes a config, its fields, and more arguments, none of them looked at
    train.init: (LOOP, lambda fn, config: fn(counting(), None, config, None)),
    train.num_iterations: (
        (*LOOP[1:], "total_steps"),
        lambda fn, config: fn(config),
    ),
    train.run: (
        ("rollout_length",),
        lambda fn, config: fn(counting(), None, config, None, 1),
    ),
    q_learner.init: (
        contracts.fields(contracts.QConfig),
        lambda fn, config: fn(None, config, None, key=None),
    ),
    q_learner.epsilon: (
        ("epsilon_start", "epsilon_end", "epsilon_eval", "exploration_fraction"),
        lambda fn, config: fn(config, None, True),
    ),
    actor_critic.init_replay: (
        contracts.fields(contracts.ActorCriticConfig),
        lambda fn, config: fn(None, config),
    ),
    actor_critic.next_noise: (
        ("noise_damping",),
        lambda fn, config: fn(config, None, None),
    ),
    on_policy.init: (
        contracts.fields(contracts.OnPolicyConfig),
        lambda fn, config: fn(None, config, None),
    ),
    on_policy.prepare: (
        ("gamma", "normalize_advantages"),
        lambda fn, config: fn(None, config, None, rollout=None, lambda_=None),
    ),
    on_policy.policy_loss: (
        ("entropy_cost",),
        lambda fn, config: fn(None, config, None, None),
    ),
    on_policy.clipped_policy_loss: (
        ("clip_epsilon", "entropy_cost", "normalize_advantages"),
        lambda fn, config: fn(config, None, None, log_prob=None, adv=None),
    ),
    on_policy.fit_epochs: (
        ("max_grad_norm", "num_epochs", "num_minibatches"),
        lambda fn, config: fn(
            config, None, None, params=None, opt_state=None, batch=None, key=None
        ),
    ),
}


@pytest.mark.parametrize(
    ("fn", "field"),
    [
        pytest.param(
            fn, name, id=f"{fn.__module__.split('.')[-1]}.{fn.__name__}-{name}"
        )
        for fn, (names, _) in USES.items()
        for name in names
    ],
)
def test_a_missing_field_is_named(fn, field):
    names, call = USES[fn]
    with pytest.raises(ValueError, match=f"^Partial has no {field}: .* needs "):
        call(fn, without(names, field))


def test_all_missing_fields_are_named_at_once():
    left_out = ("num_envs", "capacity", "priority")
    config = without(contracts.fields(contracts.QConfig), *left_out)
    message = "Partial has no capacity, num_envs, priority: q_learner needs anneal"
    with pytest.raises(ValueError, match=message):
        q_learner.init(None, config, None, key=None)


@pytest.mark.parametrize(
    "check",
    [q_learner, actor_critic, on_policy, priority],
    ids=lambda module: module.__name__,
)
def test_a_check_names_a_field_that_is_missing(check):
    with pytest.raises(ValueError, match="^Config has no "):
        check.validate(Config())


@pytest.mark.parametrize("name", ["init", "memory", "act", "observe", "update"])
def test_a_missing_function_is_named(name):
    agent, config = counting()._replace(**{name: None}), Config()
    env = envs.wrap(probe_envs.Counter())
    with pytest.raises(ValueError, match=f"Agent: {name}: no function; needed are "):
        train.train(agent, env, config, KEY)
    if name in ("memory", "act"):
        with pytest.raises(ValueError, match=f"Agent: {name}: no function"):
            evaluate(agent, env, config, None, KEY)


def test_metrics_must_be_a_dict():
    agent = counting()._replace(update=lambda config, state, *_: (state, None))
    fn = functools.partial(train.train, agent, envs.wrap(probe_envs.Counter()))
    with pytest.raises(ValueError, match="must return a dict of metrics, not NoneType"):
        jax.eval_shape(lambda key: fn(Config(), key), KEY)


def test_a_config_that_is_no_tree_of_numbers_is_named():
    plain = dataclasses.make_dataclass("Plain", [("rate", float, 0.5)])
    with pytest.raises(ValueError, match=r"^Plain=Plain\(rate=0.5\): must be a number"):
        cfg.as_arrays(plain())
    wrong = dataclasses.make_dataclass("Wrong", [("mode", str, "fast")])
    wrong = jax.tree_util.register_dataclass(wrong)
    with pytest.raises(ValueError, match="^mode='fast': must be a number, or a field"):
        cfg.as_arrays(wrong())


# Tuning.


def traced(agent, env, config):
    fn = functools.partial(train.train, agent, env, config)
    return jax.eval_shape(fn, KEY)


def test_an_agent_of_a_users_own_can_be_tuned():
    env = envs.make("CartPole-v1")
    settings = meta.Settings(critic_hidden_sizes=(5,))
    tuned = meta.tune(around_a2c(env.spec), env.spec, GAMMA, settings)
    ts, metrics = traced(tuned, env, Config())
    assert metrics["meta_gamma"].shape == (4,)
    shapes = {x.shape for x in jax.tree.leaves(ts.agent.critic.params)}
    assert shapes == {(4, 5), (5,), (5, 1), (1,)}


@pytest.mark.slow
def test_a_tuned_agent_of_a_users_own_learns_what_a_packages_agent_does():
    """Adds numbers: by settings that say what the other's config has."""
    env, full = envs.make("CartPole-v1"), a2c.Config(**vars(Config()))
    settings = meta.Settings(
        critic_learning_rate=full.learning_rate,
        critic_hidden_sizes=full.hidden_sizes,
        critic_activation=full.activation,
        critic_torso=full.torso,
        critic_max_grad_norm=full.max_grad_norm,
        anneal=full.anneal,
    )
    results = [
        jax.jit(functools.partial(train.train, tuned, env, config))(KEY)[1]
        for tuned, config in (
            (meta.tune(a2c.make(env.spec), env.spec, GAMMA), full),
            (meta.tune(around_a2c(env.spec), env.spec, GAMMA, settings), Config()),
        )
    ]
    chex.assert_trees_all_equal(*results)
    assert len(np.unique(results[0]["meta_gamma"])) > 1


def test_the_outer_critic_is_as_settings_say_else_as_the_agents_config():
    config = agents.get("ppo").Config(learning_rate=0.25, hidden_sizes=(7,))
    got = critic_config(meta.Settings(), config)
    for name in CriticConfig._fields:
        if hasattr(config, name):
            assert getattr(got, name) == getattr(config, name)
    assert got.num_minibatches == 4 and got.target_rate == 1.0
    assert critic_config(meta.Settings(), Config()) == CriticConfig()
    said = dict(
        critic_learning_rate=0.5,
        critic_hidden_sizes=[3],  # as JSON has it
        critic_activation="silu",
        critic_torso="mlp",
        critic_max_grad_norm=2.0,
        critic_target_rate=0.1,
        anneal=False,
    )
    settings = meta.Settings(**said)
    settings.validate()
    got = critic_config(settings, config)
    assert got.hidden_sizes == (3,) and got.num_epochs == config.num_epochs
    for name, value in said.items():
        if name != "critic_hidden_sizes":
            assert getattr(got, name.removeprefix("critic_")) == value


@pytest.mark.parametrize(
    "bad",
    [
        dict(critic_learning_rate=0.0),
        dict(critic_hidden_sizes=(0,)),
        dict(critic_activation="swosh"),
        dict(critic_max_grad_norm=-1.0),
        dict(critic_target_rate=1.5),
    ],
)
def test_bad_settings_of_the_outer_critic_are_named(bad):
    (field,) = bad
    with pytest.raises(ValueError, match=f"^{field}=.*: must "):
        meta.Settings(**bad).validate()


class Stored(NamedTuple):
    sum: jax.Array
    replay: jax.Array


def test_what_tuning_needs_is_named():
    env = envs.make("CartPole-v1")
    own = around_a2c(env.spec)

    def init(agent, config):
        tuned = meta.tune(agent, env.spec, GAMMA)
        return jax.eval_shape(lambda key: tuned.init(config, key), KEY)

    needed = ("num_envs", "rollout_length", "total_steps", "validate")
    for field in needed:
        with pytest.raises(ValueError, match=f"Partial has no {field}: tune needs "):
            init(own, without(needed, field))
    with pytest.raises(ValueError, match="must be a dataclass to be tuned"):
        init(own, without(needed))
    stored = own._replace(init=lambda config, key: Stored(jnp.zeros(()), jnp.zeros(3)))
    with pytest.raises(ValueError, match="a replay.Replay, not Stored with "):
        init(stored, Config())
    blind = own._replace(value=None)
    with pytest.raises(ValueError, match="no `value`, which is scored unless outer_va"):
        traced(meta.tune(blind, env.spec, GAMMA), env, Config())
    settings = meta.Settings(outer_value_cost=0.0)
    traced(meta.tune(blind, env.spec, GAMMA, settings), env, Config())
    quiet = own._replace(act=counting().act)
    with pytest.raises(ValueError, match="the logarithm of the action's probability"):
        init(quiet, Config())
    dqn = agents.get("dqn")
    config = dqn.Config(num_envs=2, rollout_length=8, capacity=160)
    values = dqn.make(env.spec)
    stored = own._replace(
        init=lambda c, key: values.init(config, key),
        policy=None,
        value=None,
        q_values=values.q_values,
        act=counting().act,
    )
    with pytest.raises(ValueError, match="no batch_size: tune with a replay needs"):
        init(stored, Config())
