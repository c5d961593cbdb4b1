"""With jax_enable_x64 every program is traced, and a run is one in float32."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, meta, networks
from rljax.envs import tasks
from rljax.meta import maml
from rljax.running import train
from rljax.running.evaluate import evaluate

from ..agent_case import CONTINUOUS_ONLY, required

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
KINDS = {
    "discrete": "CartPole-v1",
    "continuous": "Pendulum-v1",
    "images": "Breakout-MinAtar",
    "memory": "MemoryChain-bsuite",
}
WRAPPERS = {
    "sticky_actions": 0.25,
    "delay_rewards": 3,
    "normalize_rewards": 0.9,
    "normalize_obs": True,
    "stack_frames": 2,
    "time_aware": True,
    "terminal_limit": True,
    "scale_obs": True,
}
FAST = [
    ("dqn", "images"),
    ("ppo", "continuous"),
    ("td3", "continuous"),
]


def whole(agent, env, config, key):
    """Everything that a script calls."""
    ts = train.init(agent, env, config, key)
    ts, metrics = train.run(agent, env, config, ts, 2, 2)
    return ts._replace(env=()), metrics, evaluate(agent, env, config, ts, key, 3)


def wide(tree):
    """Names of arrays of 64 bits; keys have elements of so many."""
    return {
        jax.tree_util.keystr(path): x.dtype
        for path, x in jax.tree.leaves_with_path(tree)
        if x.dtype in (jnp.float64, jnp.int64, jnp.uint64)
    }


def assert_narrow(agent, env, config):
    traced = jax.eval_shape(functools.partial(whole, agent, env, config), KEY)
    assert wide(traced) == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=() if (name, kind) in FAST else pytest.mark.slow)
        for name in agents.names()
        for kind in KINDS
        if kind == "continuous" or name not in CONTINUOUS_ONLY
    ],
)
def test_an_agent_is_traced_on_each_kind_of_environment(name, kind):
    """The slow ones add the other agents and kinds to one of each."""
    env = envs.make(KINDS[kind])
    try:
        agent = agents.get(name).make(env.spec)
    except ValueError as error:
        assert "needs discrete actions" in str(error)
        return
    assert_narrow(agent, env, agents.get(name).Config(**required(name)))


@pytest.mark.parametrize(
    "options",
    [WRAPPERS]
    + [
        pytest.param({name: value}, marks=pytest.mark.slow)
        for name, value in WRAPPERS.items()
    ],
)
def test_wrappers_are_traced(options):
    """The slow ones put each on alone."""
    env = envs.make("MountainCar-v0", **options)
    assert env.spec.obs_dtype == "float32"
    dqn = agents.get("dqn")
    assert_narrow(dqn.make(env.spec), env, dqn.Config())


@pytest.mark.parametrize("kind", ["replay", "td_error", "grad_norm", "large_batch"])
@pytest.mark.slow
def test_priorities_are_traced(kind):
    """Adds what draws from the replay in another way."""
    changes = dict(priority="grad_norm" if kind == "large_batch" else kind)
    changes |= dict(sampler="large_batch") if kind == "large_batch" else {}
    config = agents.get("dqn").Config(**{} if kind == "replay" else changes)
    env = envs.make("CartPole-v1")
    assert_narrow(agents.get("dqn").make(env.spec), env, config)


HORIZON = meta.LogHorizon()
TUNED = {
    "a2c": dict(
        gamma=meta.StateDependent(HORIZON),
        lambda_=meta.Bounded(0.0, 1.0),
        entropy_cost=meta.Contextual(meta.Bounded(0.0, 1.0), 3),
    ),
    "dqn": dict(gamma=HORIZON),
    "ppo": dict(gamma=meta.Contextual(HORIZON, 3)),
    "pqn": dict(lambda_=meta.StateDependent(meta.Bounded(0.0, 1.0))),
}
SETTINGS = {
    "a2c": meta.Settings(num_updates=2, condition=True, remat=True),
    "dqn": meta.Settings(),
    "ppo": meta.Settings(outer_critic="inner", num_target_updates=1),
    "pqn": meta.Settings(evolution_pairs=2),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "dqn" else pytest.param(n, marks=pytest.mark.slow) for n in TUNED],
)
def test_tuned_agents_are_traced(name):
    """The slow ones add policies, networks as values, targets and estimates."""
    env, tuned, settings = envs.make("CartPole-v1"), TUNED[name], SETTINGS[name]
    spec = env.spec
    if settings.condition:
        spec = meta.conditioned(spec, len(tuned))
    agent = meta.tune(agents.get(name).make(spec), spec, tuned, settings)
    assert_narrow(agent, env, agents.get(name).Config())


@pytest.mark.parametrize(
    "name", ["tabular", pytest.param("cartpole", marks=pytest.mark.slow)]
)
def test_maml_is_traced(name):
    """The slow one adds tasks whose parameters are numbers."""
    draw_task = tasks.tasks(name)
    sizes = dict(num_tasks=2, num_envs=3, rollout_length=4)
    config = maml.Config(inner_rate=np.float64(0.1), gamma=np.float64(0.9), **sizes)

    def learn(config, key):
        spec = draw_task(key).spec
        network = networks.ActorCritic(
            networks.Body(spec.obs, hidden_sizes=(8,)), spec.action
        )
        state = maml.init(network, config, draw_task, key)
        state, metrics = maml.run(network, config, draw_task, state, 2)
        env = draw_task(key)
        return maml.adapt_policy(network, config, state.params, env, key), metrics

    assert wide(jax.eval_shape(learn, config, KEY)) == {}


SMALL = {
    "ppo": dict(rollout_length=8, total_steps=128),
    "dqn": dict(capacity=1_000, warmup_steps=200, batch_size=32, total_steps=300),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_training_runs_as_long_as_without(name):
    """Adds numbers: they differ by rounding and by what environments draw."""
    results = []
    for flag in (True, False):
        with jax.enable_x64(flag):
            env = envs.make("CartPole-v1")
            agent = agents.get(name).make(env.spec)
            config = agents.get(name).Config(**SMALL[name])
            fn = jax.jit(functools.partial(train.train, agent))
            ts, metrics = fn(env, config, jax.random.key(0))
            results.append(jax.device_get((ts.agent.step, metrics["step"])))
            chex.assert_tree_all_finite(metrics)
            losses = [np.array(v) for k, v in metrics.items() if "loss" in k]
            assert all(len(np.unique(x)) > 1 for x in losses)
    chex.assert_trees_all_equal(*results)
