"""The loop, rollouts and evaluation: chunks, seeds, sweeps, counts, gradients."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, replay
from rljax.learners import on_policy
from rljax.running import train
from rljax.running.evaluate import evaluate
from rljax.running.rollout import unroll
from rljax.types import Agent, TrainState

from .. import probe_envs
from ..agent_case import CONTINUOUS_ONLY, fast_for, learned, required

pytestmark = pytest.mark.usefixtures("strict_keys")

init = jax.jit(train.init, static_argnums=0)
run = jax.jit(train.run, static_argnums=(0, 4, 5))
ITERATIONS, STEPS = 6, 32  # of the case, and environment steps in each
SEEDS = (0, 1, 1, 1, 2)  # of a sweep, run by run
RATES = (1e-3, 1e-3, 3e-3, 1e-2, 1e-2)


# Agents of several kinds of state and update; the loop knows no more of an agent.
each_kind = fast_for("apg", "dqn", "ppo", "ppo_rnn")


class Result(NamedTuple):
    """Numpy arrays, those of a sweep with an axis in front."""

    first: TrainState  # at the start
    last: TrainState
    rows: dict[str, Any]  # metrics, [ITERATIONS]


def whole_run(agent, env, config, key):
    first = train.init(agent, env, config, key)
    last, rows = train.run(agent, env, config, first, ITERATIONS)
    return Result(first, last, rows)


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def numbers(tree):
    """Numpy arrays, with keys as numbers, so that trees can be compared."""
    return jax.device_get(
        jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)
    )


def with_keys(tree, like):
    """Undo `numbers`."""
    return jax.tree.map(
        lambda x, y: jax.random.wrap_key_data(x) if is_key(y) else x, tree, like
    )


def row(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


@pytest.fixture(scope="module")
def config(case):
    """The case's; its replay is much larger than all else, and sampled by priority."""
    changes = {"capacity": 1_000 * STEPS, "priority": "td_error"}
    mine = {k: v for k, v in changes.items() if hasattr(case.config, k)}
    return dataclasses.replace(case.config, **mine)


def swept(config, rates):
    """Its learning rates, and the axes of `vmap` over them."""
    axes = jax.tree.map(lambda _: None, config)
    axes = dataclasses.replace(axes, learning_rate=0)
    return dataclasses.replace(config, learning_rate=np.array(rates)), axes


def keys(seeds):
    return jax.vmap(jax.random.key)(np.array(seeds))


@pytest.fixture(scope="module")
def sweep_program(case, config):
    """Whole runs of several seeds and learning rates, compiled."""
    rates, axes = swept(config, RATES)
    fn = jax.vmap(functools.partial(whole_run, case.agent), (None, axes, 0))
    with jax.debug_key_reuse(False):  # takes keys that vmap moves for consumed ones
        return jax.jit(fn).lower(case.env, rates, keys(SEEDS)).compile()


@pytest.fixture(scope="module")
def sweep(case, config, sweep_program):
    rates, _ = swept(config, RATES)
    return numbers(sweep_program(case.env, rates, keys(SEEDS)))


@pytest.fixture(scope="module")
def start_types(case, config):
    return init.eval_shape(case.agent, case.env, config, jax.random.key(0))


@pytest.fixture(scope="module")
def program(case, config, start_types):
    """A run from a state that `init` returned, compiled."""
    fn = jax.jit(train.run, static_argnums=(0, 4), donate_argnums=3)
    lowered = fn.lower(case.agent, case.env, config, start_types, ITERATIONS)
    return lowered.compile()


@pytest.fixture(scope="module")
def train_alone(case, config, sweep, start_types, program):
    """A function: one run of the sweep again, without the others."""

    def run_row(i):
        first = row(sweep.first, i)
        ts = jax.device_put(with_keys(first, start_types))
        one = dataclasses.replace(config, learning_rate=RATES[i])
        last, rows = numbers(program(case.env, one, ts))
        return Result(first, last, rows)

    return run_row


@pytest.fixture(scope="module")
def long_run(train_alone):
    return train_alone(0)


def start(case, seed=0):
    return init(case.agent, case.env, case.config, jax.random.key(seed))


@fast_for("dqn", "ppo_rnn")
def test_chunks_equal_one_long_run(case):
    """The slow ones add the other agents' states to those with replay and memory."""
    whole, rows = run(case.agent, case.env, case.config, start(case), ITERATIONS)
    ts, chunks = start(case), []
    for _ in range(3):
        ts, metrics = run(case.agent, case.env, case.config, ts, 2)
        chunks.append(jax.device_get(metrics))
    chex.assert_trees_all_equal(numbers(ts), numbers(whole))
    chunks = jax.tree.map(lambda *x: np.concatenate(x), *chunks)
    chex.assert_trees_all_equal(chunks, jax.device_get(rows))


@fast_for("dqn", "ppo_rnn")
def test_log_every_averages_rows(case):
    """The slow ones add the other agents' metrics; how to average is the loop's."""
    whole = run(case.agent, case.env, case.config, start(case), ITERATIONS)
    logged = run(case.agent, case.env, case.config, start(case), ITERATIONS, 3)
    (end, rows), (ts, metrics) = numbers((whole, logged))
    chex.assert_trees_all_close(ts, end, rtol=1e-5, atol=1e-6)
    rows = jax.tree.map(lambda x: x.reshape(2, 3), rows)
    np.testing.assert_array_equal(metrics.pop("step"), rows.pop("step")[:, -1])
    episodes = rows.pop("episodes")
    np.testing.assert_array_equal(metrics.pop("episodes"), episodes.sum(axis=1))
    for name in ("episode_return", "episode_length"):
        sums = np.sum(rows.pop(name) * episodes, axis=1)
        means = sums / np.maximum(episodes.sum(axis=1), 1)
        np.testing.assert_allclose(metrics.pop(name), means, rtol=1e-5)
    assert metrics.keys() == rows.keys()
    for name, row in rows.items():
        np.testing.assert_allclose(metrics[name], row.mean(axis=1), 1e-4, 1e-6, name)


@fast_for("dqn", "ppo_rnn")
def test_evaluations_are_of_each_row_and_leave_training_as_it_is(case):
    """The slow ones add the other agents' ways to act."""
    play = functools.partial(evaluate, case.agent, case.env, case.config, episodes=3)
    own_key = jax.random.key(7)
    rows_of_3 = functools.partial(train.run, iterations=ITERATIONS, log_every=3)
    loop = functools.partial(
        jax.jit(rows_of_3, static_argnums=0, static_argnames="evaluate"),
        case.agent,
        case.env,
        case.config,
    )
    whole = loop(start(case))
    ts, rows = loop(start(case), evaluate=functools.partial(play, key=own_key))
    returns = jax.jit(play)(ts, own_key).returns
    (ts, rows), (end, plain) = numbers(((ts, rows), whole))
    chex.assert_trees_all_equal(ts, end)
    chex.assert_trees_all_equal({name: rows[name] for name in plain}, plain)
    assert rows["eval_mean_return"].shape == (2,)
    np.testing.assert_allclose(rows["eval_mean_return"][-1], returns.mean(), 1e-6)
    np.testing.assert_allclose(rows["eval_max_return"][-1], returns.max(), 1e-6)


@fast_for("dqn", "ppo_rnn")
def test_debug_flags_find_neither_nan_nor_infinity(case):
    """The slow ones add the other agents; rows without an episode are among these."""
    ts = start(case)
    with jax.debug_nans(True), jax.debug_infs(True):
        _, rows = run(case.agent, case.env, case.config, ts, ITERATIONS)
    assert case.name != "dqn" or not rows["episodes"].all()


@each_kind
def test_episode_metrics_account_for_every_step(case, long_run):
    """The slow ones add the other agents to one of each kind."""
    if case.name in CONTINUOUS_ONLY:
        pytest.skip("no episode of Pendulum ends so soon")
    first, last, rows = long_run
    assert (rows["episodes"] > 0).any()
    assert (rows["episodes"] == 0).any() or case.name not in ("dqn", "ppo")
    for name in ("episode_return", "episode_length"):
        np.testing.assert_array_equal(rows[name] == 0, rows["episodes"] == 0)
    finished = np.sum(rows["episode_length"] * rows["episodes"])
    running = last.env.episode_length.sum() - first.env.episode_length.sum()
    assert finished + running == ITERATIONS * STEPS
    np.testing.assert_array_equal(rows["episode_return"], rows["episode_length"])
    np.testing.assert_array_equal(rows["reward"], 1.0)
    assert np.isfinite(list(rows.values())).all()


@each_kind
def test_steps_are_counted(case, long_run):
    """The slow ones add the other agents to one of each kind."""
    first, last, rows = long_run
    assert {x.shape for x in rows.values()} == {(ITERATIONS,)}
    warm_up = train.warm_up_iterations(case.config) * STEPS
    assert (first.step, last.step) == (warm_up, case.config.total_steps)
    want = warm_up + STEPS * np.arange(1, ITERATIONS + 1)
    np.testing.assert_array_equal(rows["step"], want)


@pytest.mark.parametrize("case", ["dqn"], indirect=True)
def test_warm_up_fills_the_replay_and_learns_nothing(case, long_run):
    state, end = start(case).agent, long_run.last.agent
    assert replay.size(state.replay) == 64  # 50 rounded up to whole rollouts
    assert (state.step, state.num_updates) == (0, 0)
    agent_key = jax.random.split(jax.random.key(0), 3)[0]
    fresh = jax.jit(case.agent.init)(case.config, agent_key)
    chex.assert_trees_all_equal(state.params, fresh.params)
    assert (end.step, end.num_updates) == (ITERATIONS, ITERATIONS)


@pytest.mark.parametrize("name", agents.names())
@pytest.mark.parametrize("total_steps", [1, 31, 32, 33, 1_000, 10**9])
def test_total_steps_are_rounded_up_to_whole_iterations(name, total_steps):
    config = agents.get(name).Config(
        total_steps=total_steps, num_envs=4, rollout_length=8
    )
    iterations = train.num_iterations(config)
    warm_up = train.warm_up_iterations(config)
    assert iterations >= 1
    total = (iterations + warm_up) * train.steps_per_iteration(config)
    assert total >= total_steps
    assert iterations == 1 or total - STEPS < total_steps


def num_rows(agent, env, config, iterations):
    config = dataclasses.replace(config, total_steps=STEPS * iterations)
    fn = functools.partial(train.train, agent)
    _, metrics = jax.eval_shape(fn, env, config, jax.random.key(0))
    (rows,) = {x.shape[0] for x in metrics.values()}
    return rows


@pytest.mark.slow
def test_metrics_of_a_long_run_are_at_most_a_thousand_rows_for_every_agent(case):
    """Adds every agent's metrics to those of the loop."""
    assert 500 <= num_rows(case.agent, case.env, case.config, 1_001) <= 1_000


@each_kind
def test_seeds_and_learning_rates_can_be_vmapped(case, config, sweep, train_alone):
    """The slow ones add the other agents to one of each kind."""
    assert sweep.rows["step"].shape == (len(SEEDS), ITERATIONS)
    assert (sweep.last.step == config.total_steps).all()
    for i in range(len(SEEDS)):
        chex.assert_trees_all_close(train_alone(i), row(sweep, i), rtol=1e-3, atol=1e-5)
    for leaf in jax.tree.leaves(sweep.last.agent):
        if np.issubdtype(leaf.dtype, np.floating) and len(np.unique(leaf)) > 2:
            assert not np.array_equal(leaf[0], leaf[1])  # seeds
    loss = next(v for k, v in sweep.rows.items() if "loss" in k)
    assert len(np.unique(loss[1:4, -1])) == 3  # learning rates


@pytest.mark.slow
def test_a_grid_of_seeds_and_learning_rates_can_be_vmapped(case, config):
    """One `vmap` in another, initialisation compared as well: the slow ones for all."""
    rates, seeds = RATES[1:4], (0, 1, 2)
    many, axes = swept(config, rates)
    over_seeds = jax.vmap(functools.partial(whole_run, case.agent), (None, None, 0))
    over_rates = jax.jit(jax.vmap(over_seeds, (None, axes, None)))
    with jax.debug_key_reuse(False):  # takes keys that vmap moves for consumed ones
        grid = numbers(over_rates(case.env, many, keys(seeds)))
    alone = jax.jit(functools.partial(whole_run, case.agent))
    for i, rate in enumerate(rates):
        for j, seed in enumerate(seeds):
            one = dataclasses.replace(config, learning_rate=rate)
            single = numbers(alone(case.env, one, jax.random.key(seed)))
            same = row(row(grid, i), j)
            chex.assert_trees_all_close(single, same, rtol=1e-3, atol=1e-5)


@each_kind
def test_training_copies_no_replay(case, long_run, program, sweep_program):
    """The slow ones add the other agents to one of each kind."""
    if not hasattr(case.config, "capacity"):
        pytest.skip("keeps no replay")
    stored = sum(x.nbytes for x in jax.tree.leaves(long_run.last.agent.replay))
    for compiled, runs in ((program, 1), (sweep_program, len(SEEDS))):
        temporary = compiled.memory_analysis().temp_size_in_bytes
        assert temporary < 0.2 * runs * stored


@each_kind
def test_two_seeds_differ_everywhere(case, sweep):
    """The slow ones add the other agents to one of each kind."""
    ts, other = row(sweep.first, 0), row(sweep.first, 1)
    for x, y in zip(*map(jax.tree.leaves, (ts.agent[0], other.agent[0])), strict=True):
        constant = x.ndim == 1 or (x == x[0]).all()  # biases, scales of noise
        assert constant or (x != y).all()
    assert (ts.obs != other.obs).all()
    assert len(np.unique(ts.obs[:, 0])) == len(ts.obs)  # environments differ too
    assert (ts.key != other.key).any()


def traces_of_three_configs(agent, env, config):
    """How often training is traced, after each of three calls.

    The second has other floats, the third is also longer.
    """
    traces = []

    def traced(*args):
        traces.append(args)
        return train.train(agent, *args)

    jitted = jax.jit(traced)
    other = dataclasses.replace(config, gamma=0.5, learning_rate=1e-2)
    longer = dataclasses.replace(other, total_steps=2 * other.total_steps)
    counts = []
    for seed, given in enumerate((config, other, longer)):
        jitted.eval_shape(env, given, jax.random.key(seed))
        counts.append(len(traces))
    return counts


@pytest.mark.slow
def test_other_values_of_the_floats_do_not_trace_an_agent_again(case):
    """Adds the agents to their configs."""
    assert traces_of_three_configs(case.agent, case.env, case.config) == [1, 1, 2]


@fast_for("dqn", "ppo_rnn")
def test_a_second_chunk_does_not_trace_again(case):
    """The slow ones add the other agents, of which the fast tests see the types."""
    traces = []

    def chunk(ts):
        traces.append(ts)
        return train.run(case.agent, case.env, case.config, ts, 2)[0]

    jitted = jax.jit(chunk)
    ts = jax.eval_shape(lambda: start(case))
    for _ in range(3):
        ts = jitted.eval_shape(ts)
    assert len(traces) == 1


@fast_for("dqn")
def test_the_state_can_be_donated(case):
    """The slow ones add the other agents; a fast test reads that off their programs."""
    state = case.agent.init(case.config, jax.random.key(0))  # eager: nothing is copied
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)  # donating one twice is an error


def near_the_limit(tree):
    """The same state when its counters have come to the greatest int32."""

    def late(path, x):
        name = jax.tree_util.keystr(path)
        counts = x.shape == () and ".replay" not in name and ".env.env" not in name
        if x.dtype == jnp.int32 and (counts or name.endswith(".episode_length")):
            return jnp.full_like(x, 2**31 - 3)
        return x

    return jax.tree.map_with_path(late, tree)


@fast_for("dqn")
def test_counters_do_not_run_over(case):
    """The slow ones add the other agents' counters and schedules."""
    ts = near_the_limit(start(case))
    assert (ts.step, ts.agent.step) == (2**31 - 3, 2**31 - 3)
    end, rows = numbers(run(case.agent, case.env, case.config, ts, ITERATIONS))
    np.testing.assert_array_equal(rows.pop("step"), [2**31 - 1] * ITERATIONS)
    assert end.step == 2**31 - 1 and end.agent.step > 2**31 - 10
    chex.assert_tree_all_finite((learned(end.agent), rows))
    assert (rows["episode_length"] >= 0).all() and rows["episode_length"].any()
    assert (end.env.episode_length >= 0).all()
    if getattr(case.config, "anneal", False):  # the rate is 0 for good
        chex.assert_trees_all_equal(end.agent[0], ts.agent[0])


@fast_for("dqn")
def test_more_steps_than_int32_can_be_planned(case):
    """The slow ones add the other agents' schedules."""
    total_steps = 10**10
    config = dataclasses.replace(case.config, total_steps=total_steps)
    fn = functools.partial(train.train, case.agent)
    ts, metrics = jax.eval_shape(fn, case.env, config, jax.random.key(0))
    assert ts.step.dtype == metrics["step"].dtype == jnp.int32
    assert train.num_iterations(config) == -(-total_steps // STEPS) - (
        train.warm_up_iterations(config)
    )


def test_invalid_arguments(case):
    with pytest.raises(ValueError, match="log_every=4: must divide iterations=6"):
        train.run(case.agent, case.env, case.config, None, 6, 4)
    for fn in (train.init, train.train):
        config = dataclasses.replace(case.config, gamma=1.5)
        with pytest.raises(ValueError, match="gamma=1.5"):
            fn(case.agent, case.env, config, jax.random.key(0))


@pytest.mark.parametrize(("normalize", "seed"), [(False, 0), (True, 1)])
def test_gradients_through_training_equal_finite_differences(normalize, seed):
    ppo, env = agents.get("ppo"), envs.wrap(probe_envs.TwoPlaces())
    agent = ppo.make(env.spec)
    config = ppo.Config(
        gamma=0.9,
        lambda_=0.8,
        learning_rate=0.01,
        total_steps=16,  # one iteration: actions do not depend on what is learned
        num_envs=2,
        rollout_length=8,
        num_epochs=2,
        num_minibatches=2,
        hidden_sizes=(4,),
        normalize_advantages=normalize,
    )

    def score(config):
        ts, _ = train.train(agent, env, config, jax.random.key(seed))
        obs = jnp.eye(2)
        value = on_policy.critic(env.spec, config).apply(ts.agent.critic, obs)
        policy = on_policy.actor(env.spec, config).apply(ts.agent.actor, obs)
        return value.sum() + 10 * policy.log_prob(jnp.array([0, 0])).sum()

    grad = jax.jit(jax.value_and_grad(score))
    exact = grad(config)[1]
    steps = {"gamma": 1e-3, "lambda_": 1e-3, "learning_rate": 1e-4}
    for name, step in steps.items():
        x = getattr(config, name)
        up, down = (
            grad(dataclasses.replace(config, **{name: x + s}))[0] for s in (step, -step)
        )
        assert abs(getattr(exact, name)) > 1e-2
        np.testing.assert_allclose(
            getattr(exact, name), (up - down) / (2 * step), rtol=0.02, err_msg=name
        )


# Scripted agents: rollouts and evaluation without networks.


def scripted(act):
    return Agent(
        init=lambda config, key: (),
        memory=lambda config, num_envs: jnp.zeros(num_envs, jnp.int32),
        act=act,
        observe=lambda config, state, rollout: state,
        update=lambda config, state, rollout, key: (state, {}),
    )


def counting(config, state, memory, obs, key, explore):
    """Remembers how often it acted in this episode."""
    return memory % 2, memory + 1, {"explore": jnp.full(len(obs), explore)}


def random(config, state, memory, obs, key, explore):
    return jax.random.randint(key, (len(obs),), 0, 2), memory, ()


def counter(**params):
    gym = probe_envs.Counter()
    return envs.wrap(gym, gym.default_params.replace(**params))


def test_metrics_of_a_long_run_are_at_most_a_thousand_rows():
    config = agents.get("ppo").Config(num_envs=4, rollout_length=8)
    for iterations in (999, 1_000, 1_001, 1_999, 10**6 + 1):
        rows = num_rows(scripted(counting), counter(), config, iterations)
        assert 500 <= rows <= 1_000


@pytest.mark.parametrize("name", agents.names())
def test_other_values_of_the_floats_do_not_trace_again(name):
    config = agents.get(name).Config(**required(name))
    assert traces_of_three_configs(scripted(counting), counter(), config) == [1, 1, 2]


@pytest.mark.parametrize(
    "kind", [float, np.float32, np.float64, jnp.array, jnp.float32]
)
def test_numbers_of_any_kind_train_alike(kind):
    def update(config, state, rollout, key):
        assert (config.gamma.dtype, config.gamma.weak_type) == (jnp.float32, False)
        return state, {"third": config.gamma / 3}

    config = agents.get("ppo").Config(
        gamma=kind(0.7), num_envs=2, rollout_length=4, total_steps=8
    )
    agent = scripted(counting)._replace(update=update)
    fn = jax.jit(functools.partial(train.train, agent))
    _, metrics = fn(counter(), config, jax.random.key(0))
    assert metrics["third"] == np.float32(0.7) / np.float32(3)


def test_init_gives_each_its_own_key():
    class KeysAsStates(envs.EpisodeStatistics):
        def reset(self, key, num_envs):
            return key, jnp.zeros((num_envs, 1))

    agent = scripted(counting)._replace(init=lambda config, key: key)
    config = agents.get("ppo").Config(num_envs=2, rollout_length=4, total_steps=8)
    ts = train.init(agent, KeysAsStates(env=None), config, jax.random.key(0))
    used = np.array([jax.random.key_data(key) for key in (ts.agent, ts.env, ts.key)])
    assert len(np.unique(used, axis=0)) == 3


def test_the_reward_is_the_true_mean_of_a_step():
    def update(config, state, rollout, key):
        return state, {"mean": rollout.reward.mean()}

    config = agents.get("ppo").Config(num_envs=3, rollout_length=8, total_steps=96)
    agent = scripted(random)._replace(update=update)
    fn = jax.jit(functools.partial(train.train, agent))
    plain, scaled = (
        fn(envs.wrap(probe_envs.TwoPlaces(), **options), config, jax.random.key(0))[1]
        for options in ({}, dict(normalize_rewards=0.9))
    )
    np.testing.assert_array_equal(plain["reward"], plain["mean"])
    np.testing.assert_array_equal(scaled["reward"], plain["reward"])
    assert (scaled["mean"] != plain["mean"]).all()
    assert len(np.unique(plain["reward"])) > 1


def test_unroll():
    env = counter(terminate_at=3)
    agent = scripted(counting)
    env_state, obs = env.reset(jax.random.key(0), 2)
    start = TrainState((), env_state, obs, agent.memory((), 2), (), jnp.int32(10))
    key = jax.random.key(1)
    ts, rollout, info = jax.jit(
        lambda s, k: unroll(agent.act, env, (), s, memory=agent.memory, key=k, length=5)
    )(start, key)
    columns = {
        "obs": [0, 1, 2, 0, 1],
        "next_obs": [1, 2, 3, 1, 2],
        "action": [0, 1, 0, 0, 1],
        "memory": [0, 1, 2, 0, 1],  # before acting; starts again with an episode
        "reward": [1, 1, 1, 1, 1],
        "terminated": [0, 0, 1, 0, 0],
        "truncated": [0, 0, 0, 0, 0],
    }
    for name, column in columns.items():
        field = getattr(rollout, name)
        want = np.stack([column, column], axis=1).reshape(field.shape)
        np.testing.assert_array_equal(field, want, err_msg=name)
    assert rollout.extras["explore"].all() and rollout.extras["explore"].shape == (5, 2)
    np.testing.assert_array_equal(info["episode_return"][:, 0], [1, 2, 3, 1, 2])
    assert (ts.memory == 2).all() and (ts.obs == 2).all() and ts.step == 20


def test_unroll_links_steps_and_draws_new_randomness():
    env, agent = envs.make("CartPole-v1"), scripted(random)
    env_state, obs = env.reset(jax.random.key(0), 2)
    ts = TrainState((), env_state, obs, agent.memory((), 2), (), jnp.int32(0))
    play = jax.jit(
        lambda ts, key: unroll(
            agent.act, env, (), ts, memory=agent.memory, key=key, length=60
        )[1]
    )
    first, second = play(ts, jax.random.key(1)), play(ts, jax.random.key(2))
    assert (first.action != second.action).any()
    done = first.terminated | first.truncated
    linked = (first.obs[1:] == first.next_obs[:-1]).all(axis=-1)
    np.testing.assert_array_equal(linked, ~done[:-1])
    assert done.any()


def score(env, act, episodes=3, **kwargs):
    @jax.jit
    def play(env, key):
        ts = TrainState((), env.reset(key, 1)[0], (), (), (), ())
        return evaluate(scripted(act), env, (), ts, key, episodes, **kwargs)

    with jax.debug_nans(True), jax.debug_infs(True):
        return jax.device_get(play(env, jax.random.key(0)))


def test_evaluate_plays_each_episode_once_to_its_end():
    for params, length in (
        (dict(max_steps_in_episode=4), 4),
        (dict(terminate_at=3), 3),
    ):
        result = score(counter(reward=0.5, **params), counting)
        np.testing.assert_array_equal(result.lengths, [length] * 3)
        np.testing.assert_array_equal(result.returns, [length / 2] * 3)
        assert result.lengths.dtype == np.int32


def test_evaluate_stops_counting_where_an_episode_ended():
    env = envs.make("CartPole-v1")  # pays 1 a step, ends at different times
    result = score(env, random, 20)
    np.testing.assert_array_equal(result.returns, result.lengths)
    assert len(np.unique(result.lengths)) > 5
    assert (result.lengths >= 8).all() and (result.lengths < 200).all()


class Endless(probe_envs.Counter):
    def is_truncated(self, state, params):
        return jnp.bool(False)


def test_evaluate_cuts_at_the_time_limit():
    result = score(envs.wrap(Endless()), counting)
    np.testing.assert_array_equal(result.lengths, [5] * 3)


def test_evaluate_refuses_an_agents_state():
    env, agent = counter(), scripted(counting)
    with pytest.raises(TypeError, match="train_state: must be a TrainState, not dict"):
        evaluate(agent, env, (), {"params": ()}, jax.random.key(0))


def test_evaluate_tells_the_agent_whether_to_explore():
    def switch_if_exploring(config, state, memory, obs, key, explore):
        return jnp.full(len(obs), int(explore)), memory, ()

    env = envs.wrap(probe_envs.TwoPlaces())
    greedy = score(env, switch_if_exploring, 8)
    assert set(greedy.returns) == {0, 4}  # stays where it starts
    exploring = score(env, switch_if_exploring, 8, explore=True)
    assert set(exploring.returns) == {2}  # switches every step
