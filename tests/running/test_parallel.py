"""A run that is split over shards: `vmap(axis_name)` is them all on one device."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from rljax import agents, envs, replay
from rljax.envs.wrappers import Statistics
from rljax.learners import on_policy
from rljax.meta import Settings, meta_step, parse_parameter, tune
from rljax.running import parallel, sharding, train
from rljax.running.rollout import unroll

from ..agent_case import CONTINUOUS_ONLY, NOT_TUNED, N, T, learned, small

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What shards have each of their own, anywhere in an agent's state.
OWN = {"replay", "past", "rollouts", "keys"}
FUNCTIONS = (parallel.mean, parallel.total, parallel.greatest, parallel.fold)


def split(function):
    """The function of all shards at once."""
    return jax.vmap(function, axis_name=parallel.AXIS)


def halves(tree, axis):
    """Arrays in two shards, `[2, ...]`."""
    return jax.tree.map(lambda x: jnp.stack(jnp.split(x, 2, axis)), tree)


# The functions.


@pytest.mark.parametrize("function", [*FUNCTIONS, parallel.shared])
def test_without_an_axis_an_argument_comes_back(function):
    key = jax.random.key(0)
    assert function(key) is key
    with jax.set_mesh(Mesh(jax.devices()[:1], "other")):
        assert function(key) is key
    assert parallel.size() == 1 and parallel.axis_name() is None


def test_collectives():
    x = jnp.array([[1.0, 5.0], [3.0, 2.0]])
    assert split(parallel.mean)(x).tolist() == 2 * [[2.0, 3.5]]
    assert split(parallel.total)(x).tolist() == 2 * [[4.0, 7.0]]
    assert split(parallel.greatest)(x).tolist() == 2 * [[3.0, 5.0]]
    assert split(lambda x: x + parallel.size())(x[0]).tolist() == [3.0, 7.0]
    keys = jax.random.split(jax.random.key(0), 2)
    first = jax.random.key_data(keys[0]).tolist()
    assert jax.random.key_data(split(parallel.shared)(keys)).tolist() == 2 * [first]
    own = jax.random.key_data(split(parallel.fold)(keys[jnp.zeros(2, int)]))
    assert own[0].tolist() != own[1].tolist()


@pytest.mark.parametrize("axis", [None, 0])
def test_variance_is_that_of_all_numbers(axis):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)) + [0, 1, 2])
    x = x.at[3:].add(10.0)  # the shards' means differ
    found = split(functools.partial(parallel.variance, axis=axis))(halves(x, 0))
    np.testing.assert_allclose(found, 2 * [x.var(axis)], rtol=1e-5)


# What is shared within a run.


def test_statistics_are_those_of_all_samples():
    batches = np.random.default_rng(0).normal(size=(3, 8, 2)) * [1.0, 4.0] + [0.0, 9.0]

    def learned(batches):
        statistics = Statistics.start((2,))
        for batch in batches:
            statistics = statistics.add(batch)
        return statistics

    whole = learned(jnp.float32(batches))
    for shard in range(2):
        found = split(learned)(halves(jnp.float32(batches), 1))
        found = jax.tree.map(lambda x, i=shard: x[i], found)
        chex.assert_trees_all_close(found, whole, rtol=1e-5)


def test_importance_weights_have_one_unit():
    """A shard whose transitions are all likely does not weigh them as another does."""
    env = envs.make("CartPole-v1")
    buffer = replay.init(env.spec, 1, 4, prioritized=True)._replace(added=jnp.array(4))
    weights = functools.partial(replay.importance_weights, buffer, beta=1.0)
    found = split(weights)(jnp.array([[0.5, 1.0], [0.25, 0.125]]))
    np.testing.assert_allclose(found, [[0.25, 0.125], [0.5, 1.0]])


def test_new_transitions_get_the_greatest_priority_of_all_shards():
    env = envs.make("CartPole-v1")
    buffer = replay.init(env.spec, 1, 4, prioritized=True)._replace(added=jnp.array(4))

    def updated(priority):
        return replay.update_priorities(buffer, jnp.array([0]), priority).max_priority

    assert split(updated)(jnp.array([[2.0], [7.0]])).tolist() == [7.0, 7.0]


def test_shards_descend_to_one_target():
    def target(slope):
        return meta_step._descended(lambda x: slope * x, jnp.float32(1.0), rate=0.5)

    assert split(target)(jnp.array([1.0, 2.0])).tolist() == [0.25, 0.25]


def test_shards_stop_at_the_same_step():
    """By the mean of what they are to stop at."""

    def fitted(divergence):
        def loss(flat, _, batch):
            return (flat * batch).sum(), {"kl": divergence}

        optimizer = optax.sgd(1.0)
        (end, _), metrics = on_policy.fit(
            loss,
            (jnp.zeros(1), optimizer.init(jnp.zeros(1))),
            jnp.ones(2),
            index=jnp.arange(2)[:, None],
            optimizer=optimizer,
            rate=1.0,
            going_on=lambda metrics: metrics["kl"] < 1.0,
        )
        return end, metrics["steps_taken"]

    assert split(fitted)(jnp.array([0.5, 2.5]))[1].tolist() == [0.0, 0.0]
    assert split(fitted)(jnp.array([0.5, 1.25]))[1].tolist() == [1.0, 1.0]


def test_shards_search_for_one_step():
    """One that gains on average, though it does not for one of them."""
    trpo, env = agents.get("trpo"), envs.make("CartPole-v1")
    config = trpo.Config(hidden_sizes=(8,))
    params = on_policy.actor(env.spec, config).init(
        jax.random.key(0), env.spec.zeros(1)
    )
    obs = jax.random.normal(jax.random.key(1), (2, 16, *env.spec.obs_shape))

    def searched(advantage, obs):
        batch = on_policy.Minibatch(
            obs=obs,
            action=jnp.zeros(16, int),
            log_prob=jnp.full(16, jnp.log(0.5)),
            advantage=jnp.full(16, advantage),
            target=jnp.zeros(16),
        )
        step = jax.grad(trpo.surrogate, 2)(env.spec, config, params, batch)
        step = jax.tree.map(lambda x: 1e-2 * jnp.sign(advantage) * x, step)
        return trpo.line_search(
            env.spec, config, params, step=step, batch=batch, max_kl=1.0
        )

    gains = jax.jit(split(searched))(jnp.array([3.0, -1.0]), obs)
    assert gains.accepted.all() and gains.tries.tolist() == [1, 1]
    assert gains.kl[0] == gains.kl[1] > 0
    losses = jax.jit(split(searched))(jnp.array([1.0, -3.0]), obs)
    assert not losses.accepted.any()


def test_shards_draw_each_their_own():
    """Starts, what happens in a rollout, and what an update draws."""

    def act(config, state, memory, obs, key, explore):
        return jax.random.bernoulli(key, shape=(N,)).astype(int), memory, ()

    def update(config, state, rollout, key):
        return (rollout.action, jax.random.key_data(key)), {}

    agent, env, config = case_of("a2c")
    agent = agent._replace(
        init=lambda config, key: (jnp.zeros((T, N), int), jnp.zeros(2, jnp.uint32)),
        act=act,
        update=update,
    )

    def drawn(key):
        start = train.init(agent, env, config, key)
        return start.obs, train.run(agent, env, config, start, 1)[0].agent

    obs, (action, key) = jax.jit(split(drawn))(jnp.broadcast_to(jax.random.key(0), 2))
    for one, other in (obs, action, key):
        assert (one != other).any()


# A whole training.


def case_of(name, *, wrap=None, tuned=(), learned=(), settings=None, **fields):
    """Agent, environment, and the config of a shard."""
    module = agents.get(name)
    task = "Pendulum-v1" if name in CONTINUOUS_ONLY else "CartPole-v1"
    env = envs.make(task, **(wrap or {}))
    sizes = dict(num_envs=N, rollout_length=T, hidden_sizes=(8,))
    config = module.Config(**sizes, **small(name) | fields)
    agent = module.make(env.spec)
    if tuned or learned:
        parameters = dict(parse_parameter(text, config) for text in tuned)
        agent = tune(agent, env.spec, parameters, settings, learned=learned, env=env)
    return agent, env, config


NORMALIZED = dict(normalize_obs=True, normalize_rewards=0.99)
BOOTSTRAPPED = Settings(num_target_updates=2, evolution_pairs=1)
CASES = {name: functools.partial(case_of, name) for name in agents.names()} | {
    "ppo max_kl": functools.partial(case_of, "ppo", wrap=NORMALIZED, max_kl=1e-5),
    "dqn priorities": functools.partial(
        case_of, "dqn", wrap=NORMALIZED, priority="td_error"
    ),
    "a2c bootstrapped": functools.partial(
        case_of, "a2c", tuned=["gamma"], settings=BOOTSTRAPPED
    ),
    "a2c reward": functools.partial(case_of, "a2c", learned=("reward",)),
    "ppo learned": functools.partial(case_of, "ppo", learned=("reward", "target")),
}
CASES |= {
    f"{name} tuned": functools.partial(case_of, name, tuned=["gamma"])
    for name in agents.names()
    if name not in NOT_TUNED
}
FAST = ("ppo max_kl", "dqn priorities", "a2c reward")


def cases(*fast):
    """Parametrise `case`: these are fast, the others slow."""
    rows = [
        name if name in fast else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
    ]
    return pytest.mark.parametrize("case", rows)


def trained(case, key):
    """State and metrics after four iterations."""
    agent, env, config = CASES[case]()
    train_state = train.init(agent, env, config, key)
    return train.run(agent, env, config, train_state, iterations=4, log_every=2)


def plain(tree):
    """Numpy arrays, also of keys."""

    def data(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(data, tree)


def is_own(path):
    names = {getattr(key, "name", getattr(key, "key", None)) for key in path}
    return bool(OWN & names)


def statistics(tree):
    def found(x):
        return isinstance(x, Statistics)

    return [x for x in jax.tree.leaves(tree, is_leaf=found) if found(x)]


@cases(*FAST)
def test_shards_learn_the_same_from_data_of_their_own(case):
    keys = jnp.broadcast_to(jax.random.key(0), 2)
    train_state, metrics = jax.jit(split(functools.partial(trained, case)))(keys)
    train_state = plain(train_state)
    assert not np.array_equal(*train_state.obs)  # of each its own
    shared = (train_state.agent, statistics(train_state.env), metrics)
    for path, leaf in jax.tree_util.tree_flatten_with_path(shared)[0]:
        if not is_own(path):
            np.testing.assert_array_equal(*leaf, err_msg=jax.tree_util.keystr(path))
    steps = N * T * (len(train_state.step) * 4)
    assert metrics["step"][0][-1] - metrics["step"][0][0] == steps // 2
    assert (train_state.step == metrics["step"][:, -1]).all()


def test_episodes_of_all_shards_are_counted():
    keys = jnp.broadcast_to(jax.random.key(0), 2)
    with mock.patch.object(parallel, "total", lambda tree: tree):
        _, each = jax.jit(split(functools.partial(trained, "a2c")))(keys)
    _, metrics = jax.jit(split(functools.partial(trained, "a2c")))(keys)
    total = each["episodes"].sum(0)
    assert metrics["episodes"].tolist() == 2 * [total.tolist()]
    returns = (each["episode_return"] * each["episodes"]).sum(0) / total
    np.testing.assert_allclose(metrics["episode_return"][0], returns, rtol=1e-6)


@cases("ppo max_kl", "dqn priorities")
def test_one_shard_is_the_plain_run_bit_for_bit(case):
    function, mesh = functools.partial(trained, case), sharding.split_mesh(1, 1)
    key = jax.random.key(0)
    mapped = sharding.map_runs(function, mesh=mesh)
    train_state, metrics = plain(mapped(key[None, None]))
    expected = plain(jax.jit(function)(key))
    found = jax.tree.map(lambda x: x[0, 0], (train_state, metrics))
    chex.assert_trees_all_equal(found, expected)


ON_TWO_DEVICES = """
import functools, json, traceback
from rljax.running import sharding

sharding.set_cpu_devices(2)
import chex, jax, jax.numpy as jnp
from tests.running import test_parallel as tests

def check(case):
    function = functools.partial(tests.trained, case)
    keys = jnp.broadcast_to(jax.random.key(0), (1, 2))
    mapped = sharding.map_runs(function, mesh=sharding.split_mesh(1, 2))
    found = tests.plain(mapped(keys))
    expected = tests.plain(jax.jit(jax.vmap(tests.split(function)))(keys))
    for path, leaf in jax.tree_util.tree_flatten_with_path(found[0].agent)[0]:
        assert tests.is_own(path) or (leaf[:, 0] == leaf[:, 1]).all(), path
    state = found[0].agent, expected[0].agent
    chex.assert_trees_all_close(*map(tests.learned, state), rtol=1e-2, atol=1e-3)

results = {}
for case in tests.CASES:
    try:
        results[case] = check(case)
    except Exception:
        results[case] = traceback.format_exc()
    jax.clear_caches()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def two_devices():
    """For each case None, or what differs between two devices and one."""
    result = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", CASES)
def test_two_devices_learn_as_two_shards_on_one(two_devices, case):
    """All agents, tuned ones too; ppo's fast test is in test_sharding.py."""
    assert two_devices[case] is None, two_devices[case]


def lowered(case):
    jax.clear_caches()  # a function that was traced keeps what it called
    text = jax.jit(functools.partial(trained, case)).lower(jax.random.key(0)).as_text()
    return text


@cases("ppo max_kl")
def test_without_an_axis_the_program_is_as_if_there_were_no_shards(case):
    with_functions = lowered(case)
    same = {function.__name__: lambda x: x for function in FUNCTIONS}
    same |= {"variance": jnp.var, "size": lambda: 1, "axis_name": lambda: None}
    with mock.patch.multiple(parallel, **same):
        assert lowered(case) == with_functions


# An update of all the data is that of its parts.

ON_POLICY = (
    "a2c",
    "impala",
    "ppo",
    "ppo_rnn",
    "pqn",
    "reinforce",
    "sarsa",
    "trpo",
    "vmpo",
)


def whole(name, **fields):
    """An agent that takes all of a rollout in one step."""
    usual = dict(num_epochs=1, num_minibatches=1, expected=True, fisher_stride=1)
    own = {field.name for field in dataclasses.fields(agents.get(name).Config)}
    usual = {field: value for field, value in usual.items() if field in own}
    return case_of(name, **usual | fields)


def random_rollouts(agent, env, config, count):
    """Rollouts `[count, T, N, ...]` of an agent that has learned nothing."""

    def play(train_state, key):
        train_state, rollout, _ = unroll(
            agent.act,
            env,
            config,
            train_state,
            memory=agent.memory,
            key=key,
            length=T,
        )
        return train_state, rollout

    train_state = train.init(agent, env, config, jax.random.key(1))
    return jax.lax.scan(play, train_state, jax.random.split(jax.random.key(2), count))[
        1
    ]


def updated(agent, config, rollouts):
    """The state and the last metrics after some updates."""

    shard = jax.lax.axis_index(parallel.AXIS) if parallel.size() > 1 else 0
    key = jax.random.fold_in(jax.random.key(3), shard)

    def update(state, rollout):
        return agent.update(config, state, rollout, key)

    state, metrics = jax.lax.scan(
        update, agent.init(config, jax.random.key(1)), rollouts
    )
    return state, jax.tree.map(lambda x: x[-1], metrics)


def both(case, count):
    """What updates make of all data at once, and of both halves."""
    agent, env, config = case
    rollouts = jax.jit(lambda: random_rollouts(agent, env, config, count))()
    reward = np.random.default_rng(0).normal(size=rollouts.reward.shape)
    rollouts = rollouts._replace(reward=jnp.float32(reward))
    at_once = jax.jit(functools.partial(updated, agent, config))(rollouts)
    of_shard = functools.partial(updated, agent, sharding.share(config, 2))
    parts = jax.jit(split(of_shard))(halves(rollouts, 2))
    return at_once, jax.tree.map(lambda x: x[1], parts)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("ppo", "trpo", "vmpo")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in ON_POLICY
    ],
)
def test_an_update_of_all_data_is_that_of_its_parts(name):
    (state, _), (parts, _) = both(whole(name), count=1)
    for (path, x), y in zip(
        jax.tree_util.tree_flatten_with_path(learned(state))[0],
        jax.tree.leaves(learned(parts)),
        strict=True,
    ):
        if is_own(path):
            continue
        scale = max(float(jnp.abs(x).max()), 1e-6)
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(x / scale, y / scale, atol=2e-5, err_msg=where)


@pytest.mark.parametrize(
    "mode", ["forward", pytest.param("reverse", marks=pytest.mark.slow)]
)
def test_a_meta_gradient_of_all_data_is_that_of_its_parts(mode):
    """And so are the estimate that it is compared with, and the size of rewards."""
    settings = Settings(mode=mode, num_updates=2, evolution_pairs=3)
    case = whole(
        "a2c",
        tuned=["gamma", "lambda_"],
        settings=settings,
        normalize_advantages=True,
        learning_rate=0.1,  # large slopes, of which the estimate has more digits
    )
    (state, metrics), (of_part, parts) = both(case, count=3)
    np.testing.assert_allclose(of_part.mean_square, state.mean_square, rtol=1e-5)
    for name in ("meta_gamma_gradient", "meta_lambda__gradient"):
        assert abs(metrics[name]) > 1e-6
        np.testing.assert_allclose(parts[name], metrics[name], rtol=1e-3)
    cosine = metrics["evolution_cosine"]
    assert abs(cosine) < 0.99
    np.testing.assert_allclose(parts["evolution_cosine"], cosine, atol=1e-3)


# Sizes.


def test_share_divides_what_shards_have_each_of_their_own():
    config = agents.get("dqn").Config(
        num_envs=4, capacity=100, batch_size=32, warmup_steps=60, total_steps=1001
    )
    shard = sharding.share(config, 2)
    sizes = dict(num_envs=2, capacity=50, batch_size=16, warmup_steps=30)
    assert shard == dataclasses.replace(config, total_steps=501, **sizes)
    assert sharding.share(config, 1) is config
    for count in (train.num_iterations, train.warm_up_iterations):
        assert count(shard) == count(config)


@pytest.mark.parametrize(
    ("name", "fields", "shards", "message"),
    [
        ("ppo", dict(num_envs=6), 4, "num_envs=6: must divide by 4 shards"),
        ("dqn", dict(capacity=10_001), 2, "capacity=10001: must divide by 2 shards"),
        ("dqn", dict(batch_size=33), 2, "batch_size=33: must divide by 2 shards"),
        (
            "ppo",
            dict(num_envs=4, rollout_length=8, num_minibatches=32),
            2,
            "in each of 2 shards: num_minibatches=32: must divide num_envs",
        ),
    ],
    ids=["environments", "replay", "batches", "minibatches"],
)
def test_share_names_what_does_not_divide(name, fields, shards, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sharding.share(agents.get(name).Config(**fields), shards)


def test_split_mesh_names_the_devices_that_are_there():
    with pytest.raises(ValueError, match="data_parallel=3: there are 1 devices"):
        sharding.split_mesh(1, 3)


def test_arguments_have_as_many_shards_as_the_mesh():
    mapped = sharding.map_runs(lambda x: x, mesh=sharding.split_mesh(1, 1))
    with pytest.raises(ValueError, match=r"arguments need axes \[runs, shards\]"):
        mapped(jnp.zeros((1, 2, 3)))
