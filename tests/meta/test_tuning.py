"""Agents that tune their own config, against updates and losses written out."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import agents, envs, networks, replay
from rljax.learners import on_policy
from rljax.meta import (
    Bounded,
    Contextual,
    Logarithmic,
    LogHorizon,
    Settings,
    StateDependent,
    conditioned,
    declared,
    parameters,
    parse_parameter,
    parse_parameters,
    tunable,
    tune,
    validate,
)
from rljax.running import checkpoint, train
from rljax.types import Agent, Levels, ObsSpec, Rollout, States

from .. import agent_case, compiled

T, N = 6, 3
ENV = envs.make("CartPole-v1")
SPEC = ENV.spec._replace(max_steps=1)  # random rollouts are cut as they like
SMALL = dict(num_envs=N, rollout_length=T, hidden_sizes=(8,), total_steps=10_000)
MORE = {
    "ppo": dict(num_epochs=2, num_minibatches=2),
    "pqn": dict(num_epochs=2, num_minibatches=2, anneal=False),
    "dqn": dict(capacity=72, batch_size=16, warmup_steps=16, n_step=2, target_rate=0.3),
}


def config_of(name, **changes):
    kept = SMALL | MORE.get(name, {}) | changes
    return agents.get("a2c" if name == "prediction" else name).Config(**kept)


def prediction(spec):
    """TD(lambda) with one step of gradient descent: nothing but a value."""
    a2c = agents.get("a2c").make(spec)

    def update(config, state, rollout, key):
        del key
        batch = on_policy.prepare(
            spec, config, state, rollout=rollout, lambda_=config.lambda_
        )
        loss = functools.partial(on_policy.value_loss, spec, config, batch=batch)
        grads, metrics = jax.grad(loss, has_aux=True)(state.critic)
        moved = optax.tree.add_scale(state.critic, -config.learning_rate, grads)
        return state._replace(critic=moved), metrics

    return a2c._replace(update=update, policy=None)


def agent_of(name, spec=SPEC):
    return prediction(spec) if name == "prediction" else agents.get(name).make(spec)


A2C = agent_of("a2c")


def rollouts(number, seed=0):
    """`[number, T, N, ...]` of random numbers; episodes end in both ways."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(number, T + 1, N, 4))
    ends = rng.random((2, number, T, N)) < 0.15
    return Rollout(
        obs=obs[:, :-1],
        action=rng.integers(2, size=(number, T, N), dtype=np.int32),
        reward=rng.normal(size=(number, T, N)),
        terminated=ends[0],
        truncated=ends[1],
        next_obs=obs[:, 1:] + ends[1][..., None],  # another one where it is cut
        extras=rng.uniform(-1.0, -0.4, size=(number, T, N)),
        memory=(),
    )


def at(tree, index):
    return jax.tree.map(lambda x: x[index], tree)


KEYS = np.random.default_rng(7).integers(2**32, size=(16, 2), dtype=np.uint32)


def key_of(data):
    return jax.random.wrap_key_data(data)


def numbers(shapes):
    """Random float64 in place of initial weights and moments, zeros elsewhere."""
    rng = np.random.default_rng(1)

    def fill(path, x):
        name = jax.tree_util.keystr(path)
        if not is_float(x):
            return np.zeros(x.shape, x.dtype)
        if not name.startswith((".agent", ".critic")):
            return np.zeros(x.shape)
        drawn = 0.3 * rng.normal(size=x.shape)
        return abs(drawn) if ".nu" in name else drawn

    return jax.tree.map_with_path(fill, shapes)


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, float) if is_float(x) else x, tree)


GAMMA = LogHorizon(0.0, 0.999)
LAMBDA = Bounded(0.0, 1.0)
STEPS = {
    "a2c": 1,
    "ppo": 2,
    "impala": 2,
    "reinforce": 2,
    "prediction": 2,
    "dqn": 2,
    "pqn": 1,
    "sarsa": 2,
}
FIELDS = {"a2c": {"gamma": GAMMA, "lambda_": LAMBDA}}  # of others only the discount
OUTER = dict(
    outer_gamma=0.97, outer_lambda=0.8, outer_value_cost=0.3, outer_entropy_cost=0.02
)
MORE_OUTER = {
    "a2c": dict(outer_critic_rate=5.0, evolution_pairs=64),
    "reinforce": dict(outer_critic="inner"),
}


class Past(NamedTuple):
    """Updates of a tuned agent in float64; each key was used once."""

    agent: Agent  # the one that is tuned
    tuned: Agent
    config: Any
    settings: Settings
    step: Callable  # (config, state, rollout, key data) -> state with it, new, metrics
    seen: Rollout  # [5, T, N, ...]
    before: list  # the states before each update, with its rollout
    metrics: list
    end: Any  # the state after the last one


@functools.cache
def past_of(name, **more):
    agent, config = agent_of(name), config_of(name, gamma=0.9)
    steps = dict(num_updates=STEPS[name])
    settings = Settings(**steps | OUTER | MORE_OUTER.get(name, {}) | more)
    fields = FIELDS.get(name, {"gamma": GAMMA})
    tuned = tune(agent, SPEC, fields, settings)
    init = functools.partial(tuned.init, config)
    if name == "a2c" and not more:
        state = as_float64(jax.jit(init)(jax.random.key(0)))
    else:
        state = numbers(jax.eval_shape(init, jax.random.key(0)))
    seen = rollouts(5)
    if name in ("dqn", "pqn", "sarsa"):  # without a policy
        seen = seen._replace(extras=())
    return run_updates(agent, tuned, config, settings, state, seen)


def run_updates(agent, tuned, config, settings, state, seen):
    @jax.jit
    def step(config, state, rollout, key_data):
        state = tuned.observe(config, state, rollout)
        new, metrics = tuned.update(config, state, rollout, key_of(key_data))
        return state, new, metrics

    def checked(*args):
        with jax.debug_key_reuse(True), jax.debug_nans(True), jax.debug_infs(True):
            return step(*args)

    before, all_metrics = [], []
    for i in range(len(seen.reward)):
        with_it, state, metrics = checked(config, state, at(seen, i), KEYS[i])
        before.append(with_it)
        all_metrics.append(jax.device_get(metrics))
    return Past(
        agent=agent,
        tuned=tuned,
        config=config,
        settings=settings,
        step=checked,
        seen=seen,
        before=before,
        metrics=all_metrics,
        end=state,
    )


def gamma_at(raw):
    """Even in the logarithm of the horizon, of a sigmoid."""
    return 1.0 - jnp.exp(math.log(0.001) / (1.0 + jnp.exp(-raw)))


def lambda_at(raw):
    return 1.0 / (1.0 + np.exp(-raw))


VALUE_AT = {"gamma": gamma_at, "lambda_": lambda_at}


def raws_of(past, name):
    """`[6]` before each update and after the last."""
    return np.array([float(x.raw[name]) for x in (*past.before, past.end)])


def outer_loss(name, config, settings, before, rollout, data_key):
    """Function of the agent's state: what the newest rollout says of it."""
    outer = dataclasses.replace(config, gamma=settings.outer_gamma)
    if name in ("dqn", "pqn", "sarsa"):
        return outer_td_loss(name, outer, before, rollout, data_key)
    inner = settings.outer_critic == "inner"
    values = before.agent.critic if inner else before.critic.params
    adv, value = on_policy.advantages(
        SPEC, outer, values, rollout=rollout, lambda_=settings.outer_lambda
    )

    def value_score(state):
        v = on_policy.critic(SPEC, config).apply(state.critic, rollout.obs)
        return 0.5 * jnp.mean((v - adv - value) ** 2)

    def policy_score(state):
        policy = on_policy.actor(SPEC, config).apply(state.actor, rollout.obs)
        ratio = jnp.exp(policy.log_prob(rollout.action) - rollout.extras)
        score = -jnp.mean(ratio * adv) - 0.02 * policy.entropy().mean()
        return score + settings.outer_value_cost * value_score(state)

    return value_score if name == "prediction" else policy_score


def outer_td_loss(name, outer, before, rollout, data_key):
    """One step, by another network's value of the agent's choice; dqn: of replay."""
    size = outer.hidden_sizes, outer.activation
    network = networks.QNetwork(compiled.body(1, *size), 2)
    if name == "dqn":
        seen = replay.sample(before.agent.replay, data_key, outer.batch_size).windows
        seen = seen._replace(reward=seen.reward[:, 0])
    else:
        seen = on_policy.flatten(rollout)
    q_values = agents.get(name).make(SPEC).q_values
    own = q_values(outer, before.agent, seen.next_obs)
    q_t = network.apply(before.critic.target_params, seen.next_obs)
    v_t = q_t[jnp.arange(len(q_t)), own.argmax(-1)]
    target = seen.reward + outer.gamma * (1 - seen.terminated) * v_t

    def score(state):
        q = q_values(outer, state, seen.obs)
        chosen = q[jnp.arange(len(target)), seen.action]
        return 0.5 * jnp.mean((target - chosen) ** 2)

    return score


def score_after(name, past):
    """What the last rollout says of some updates before it, as a function of values.

    Of the tuned values in each of these updates, `{name: [K]}`.
    """
    steps, config = past.settings.num_updates, past.config
    replayed = slice(-1 - steps, -1)

    @jax.jit
    def score(values, state, before, seen, key_data):
        def update(state, inputs):
            values, rollout, data = inputs
            changed = dataclasses.replace(config, **values)
            if name == "dqn" and steps > 1:  # draws from what is in the replay now
                state = state._replace(replay=before.agent.replay)
            key = jax.random.split(key_of(data), 4)[0]
            return past.agent.update(changed, state, rollout, key)[0], None

        inputs = (values, at(seen, replayed), key_data[replayed])
        end, _ = jax.lax.scan(update, state, inputs)
        data_key = jax.random.split(key_of(key_data[-1]), 4)[1]
        newest = at(seen, -1)
        return outer_loss(name, config, past.settings, before, newest, data_key)(end)

    state = past.before[-1 - steps].agent
    return lambda values: float(
        score(values, state, past.before[-1], past.seen, KEYS[: len(past.before)])
    )


@pytest.mark.parametrize("name, steps", STEPS.items())
def test_tuned_discount_follows_finite_differences(name, steps, x64):
    """Of the agent's own updates, run again with another discount, and scored.

    Before there are enough of them, nothing moves.
    """
    check_against_differences(name, past_of(name), steps)


def check_against_differences(name, past, steps):
    score, metrics = score_after(name, past), past.metrics[-1]
    raws = {field: raws_of(past, field) for field in past.end.raw}
    tried = {field: raw[-1 - steps : -1] for field, raw in raws.items()}
    middle = {field: VALUE_AT[field](raw) for field, raw in tried.items()}
    np.testing.assert_allclose(metrics["meta_loss"], score(middle), rtol=1e-6)
    for field, raw in raws.items():
        assert (raw[: steps + 1] == raw[0]).all() and (np.diff(raw[steps:]) != 0).all()
        up, down = (
            score(middle | {field: VALUE_AT[field](tried[field] + h)})
            for h in (1e-5, -1e-5)
        )
        want = (up - down) / 2e-5
        assert abs(want) > 1e-7
        found = f"meta_{field}_gradient"
        np.testing.assert_allclose(metrics[found], want, rtol=1e-4)
        assert metrics[f"{found}_sign"] == np.sign(want)
        np.testing.assert_allclose(metrics[f"{found}_norm"], abs(want), 1e-4)


CARRIED = dict(num_updates=1, evolution_pairs=0)


def fast(*names):
    """Of all agents these; the others are slow tests."""
    return [n if n in names else pytest.param(n, marks=pytest.mark.slow) for n in STEPS]


@pytest.mark.parametrize("name", fast("a2c", "dqn"))
def test_one_updates_derivative_is_taken_with_the_update(name, x64):
    """Of the batch that the update drew from a replay, not of another one."""
    past = past_of(name, **CARRIED)
    assert past.end.window == () and past.before[-1].slopes
    check_against_differences(name, past, steps=1)


@pytest.mark.parametrize("name", [n for n in fast("a2c", "ppo") if n != "dqn"])
def test_an_update_made_again_has_the_same_derivative(name, x64):
    """Backwards through the replayed update, for agents without a replay memory."""
    carried = past_of(name, **CARRIED)
    replayed = past_of(name, **CARRIED, mode="reverse")
    assert replayed.end.slopes == () and len(replayed.end.window.keys) == 1
    for ours, theirs in zip(carried.metrics, replayed.metrics, strict=True):
        assert ours.keys() == theirs.keys()
        chex.assert_trees_all_close(ours, theirs, rtol=1e-8, atol=1e-12)
    chex.assert_trees_all_close(carried.end.raw, replayed.end.raw, rtol=1e-10)


SHORT = dict(num_epochs=1, num_minibatches=1)


@pytest.mark.parametrize(
    "name, how",
    [
        ("ppo", CARRIED),
        ("ppo", CARRIED | dict(mode="reverse")),
        ("pqn", dict(num_updates=2)),
    ],
    ids=["carried", "replayed", "two"],
)
def test_a_shorter_update_gives_the_derivative(name, how, x64):
    """The agent learns as ever; only the slope is that of fewer steps."""
    past = past_of(name, **SHORT, **how)
    plain = past_of(name, **how)
    steps, shorter = (
        past.settings.num_updates,
        dataclasses.replace(past.config, **SHORT),
    )
    learned, wanted = past.before[1].agent, plain.before[1].agent
    chex.assert_trees_all_close(learned, wanted, rtol=1e-12)
    score = score_by_shorter(name, past, shorter)
    metrics, raws = past.metrics[-1], raws_of(past, "gamma")[-1 - steps : -1]
    np.testing.assert_allclose(metrics["meta_loss"], score(raws, 0.0), rtol=1e-6)
    want = (score(raws, 1e-5) - score(raws, -1e-5)) / 2e-5
    np.testing.assert_allclose(metrics["meta_gamma_gradient"], want, rtol=1e-4)
    whole = plain.metrics[-1]["meta_gamma_gradient"]
    assert abs(want - whole) > 0.01 * abs(whole)


def score_by_shorter(name, past, shorter):
    """What the last rollout says of states moved as the shorter updates move them."""
    steps, config = past.settings.num_updates, past.config
    replayed = slice(-1 - steps, -1)

    @jax.jit
    def score(raws, move, start, before, seen, key_data):
        def made(config, raw, state, inputs):
            rollout, data = inputs
            changed = dataclasses.replace(config, gamma=gamma_at(raw))
            key = jax.random.split(key_of(data), 4)[0]
            return past.agent.update(changed, state, rollout, key)[0]

        def update(states, inputs):
            (middle, state), (raw, *inputs) = states, inputs
            whole = made(config, raw, middle, inputs)
            moved = made(shorter, raw + move, state, inputs)
            unmoved = made(shorter, raw, middle, inputs)
            new = jax.tree.map(
                lambda x, y, z: x + (y - z) if is_float(x) else x, whole, moved, unmoved
            )
            return (whole, new), None

        inputs = (raws, at(seen, replayed), key_data[replayed])
        (_, end), _ = jax.lax.scan(update, (start, start), inputs)
        data_key = jax.random.split(key_of(key_data[-1]), 4)[1]
        newest = at(seen, -1)
        return outer_loss(name, config, past.settings, before, newest, data_key)(end)

    start, before = past.before[-1 - steps].agent, past.before[-1]
    keys = KEYS[: len(past.before)]
    return lambda raws, move: float(score(raws, move, start, before, past.seen, keys))


def test_values_start_at_the_config(x64):
    metrics = past_of("a2c").metrics[0]
    np.testing.assert_allclose(metrics["meta_gamma"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(metrics["meta_lambda_"], 0.95, rtol=1e-6)


def tuned_a2c(parameters=None, **settings):
    parameters = parameters or {"gamma": GAMMA}
    return tune(A2C, SPEC, parameters, Settings(**settings))


@pytest.mark.parametrize("name", ["a2c", "pqn"])
def test_raw_numbers_move_by_amsgrad(name, x64):
    """The rate falls with the agent's, if it does; the greatest square stays."""
    past = past_of(name)
    raw = raws_of(past, "gamma")
    gradients = [metrics["meta_gamma_gradient"] for metrics in past.metrics]
    assert gradients[0] == 0  # there is nothing to replay yet
    mean = square = greatest = 0.0
    for i, gradient in enumerate(gradients):
        rate = 0.01 * (1.0 - past.config.anneal * i * T * N / 10_000)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 1e-3 * gradient**2
        greatest = max(greatest, square / (1 - 0.999 ** (i + 1)))
        step = mean / (1 - 0.9 ** (i + 1)) / (math.sqrt(greatest) + 1e-8)
        np.testing.assert_allclose(raw[i + 1] - raw[i], -rate * step, rtol=1e-6)


def test_a_rate_moves_at_a_pace_of_its_own(x64):
    agent, config = agent_of("a2c"), config_of("a2c")
    settings = Settings(**OUTER)

    def first_move(pace):
        fields = {"learning_rate": Logarithmic(1e-5, 1e-1, pace=pace)}
        tuned = tune(agent, SPEC, fields, settings)
        init = functools.partial(tuned.init, config)
        state = numbers(jax.eval_shape(init, jax.random.key(0)))
        past = run_updates(agent, tuned, config, settings, state, rollouts(2))
        return np.diff(raws_of(past, "learning_rate"))[-1]

    assert abs(first_move(1.0)) > 1e-3
    np.testing.assert_allclose(first_move(0.1), 0.1 * first_move(1.0), rtol=1e-6)


@pytest.mark.parametrize("name", ["a2c", "pqn"])
def test_steps_shrink_with_the_agents_learning_rate(name, x64):
    """To nothing at the end of training; without annealing they stay."""
    past = past_of(name)
    start = past.before[-1]
    count = np.int32(2**31 - 1)  # also after the greatest number of updates
    state = start._replace(count=count)
    _, new, _ = past.step(past.config, state, at(past.seen, -1), KEYS[-1])
    assert (new.raw["gamma"] == start.raw["gamma"]) == past.config.anneal
    assert new.count == count


@pytest.mark.parametrize(
    "name, asked, cost",
    [("entropy_cost", None, 0.01), ("entropy_cost", 0.0, 0.0), ("gamma", None, 0.0)],
)
def test_score_explores_where_the_cost_of_it_is_tuned(name, asked, cost):
    """Else every cost of entropy looks too high to the next rollout."""
    tuned = tuned_a2c({name: Bounded(0.0, 0.999)}, outer_entropy_cost=asked)
    tuning, config = tuned.update.args[0], config_of("a2c")
    state = jax.jit(functools.partial(tuned.init, config))(jax.random.key(0))
    rollout = at(rollouts(1), 0)
    data = tuning.objective.prepare(
        config, state.agent, state.critic, rollout=rollout, key=jax.random.key(0)
    )
    found = tuning.objective.loss(config, state.agent, data)
    without = tuned_a2c({name: LAMBDA}, outer_entropy_cost=0.0).update.args[0]
    entropy = A2C.policy(config, state.agent, rollout.obs).entropy().mean()
    plain = without.objective.loss(config, state.agent, data)
    np.testing.assert_allclose(found, plain - cost * entropy, rtol=1e-5)


NETWORKS = {
    "gamma": StateDependent(Bounded(0.5, 0.95), (3,)),
    "lambda_": LAMBDA,
    "entropy_cost": Contextual(Bounded(0.0, 0.5), 4, (3,)),
}


@functools.cache
def past_with_networks():
    """Tuned in reverse mode, by networks; the agent's metrics show its discounts."""

    def update(config, state, rollout, key):
        new, metrics = A2C.update(config, state, rollout, key)
        return new, metrics | {"discount": config.gamma}

    agent, config = A2C._replace(update=update), config_of("a2c", gamma=0.9)
    settings = Settings(num_updates=2, learning_rate=0.1, mode="reverse")
    tuned = tune(agent, SPEC, NETWORKS, settings)
    init = jax.jit(functools.partial(tuned.init, config))
    state = as_float64(init(jax.random.key(0)))
    return run_updates(agent, tuned, config, settings, state, rollouts(8))


@jax.jit
def network(params, obs):
    """Of one tuned value."""
    return networks.Critic(compiled.body(1, (3,), "tanh")).apply(params, obs)


def test_networks_tune_within_the_bounds(x64):
    metrics = jax.tree.map(lambda *x: np.stack(x), *past_with_networks().metrics)
    assert ((metrics["meta_gamma"] > 0.5) & (metrics["meta_gamma"] < 0.95)).all()
    for name in NETWORKS:
        assert metrics[f"meta_{name}_gradient_norm"][-1] > 0
        assert len(np.unique(metrics[f"meta_{name}"])) > 4


@pytest.mark.parametrize("how", [{"mode": "forward"}, {"remat": True}], ids=str)
def test_modes_and_rematerialisation_agree(how, x64):
    """Also with a network's numbers."""
    past = past_with_networks()
    settings = dataclasses.replace(past.settings, **how)
    tuned = tune(A2C, SPEC, NETWORKS, settings)

    @jax.jit
    def step(config, state, rollout, key_data):
        return tuned.update(config, state, rollout, key_of(key_data))[0]

    new = step(past.config, past.before[-1], at(past.seen, -1), KEYS[7])
    chex.assert_trees_all_close(new.raw, past.end.raw, rtol=1e-6)
    chex.assert_trees_all_close(new.opt_state, past.end.opt_state, rtol=1e-6)


def test_context_is_of_the_newest_rewards_in_units_of_all(x64):
    """Whatever the unit of rewards; the value is that of the network at it."""
    past = past_with_networks()
    state = past.before[0]
    np.testing.assert_array_equal(state.context, np.zeros(4))
    means = 1e-3 * np.array([2.0, -1.0, 0.5, 3.0, -2.0])
    first = at(past.seen, 0)
    fresh = network(state.raw["entropy_cost"]["network"], np.ones(4))
    assert 0 < abs(fresh) < 0.2  # near the start everywhere
    nothing = first._replace(reward=np.zeros((T, N)))
    _, still, _ = past.step(past.config, state, nothing, KEYS[0])
    np.testing.assert_array_equal(still.context, np.zeros(4))
    for mean, data in zip(means, KEYS, strict=False):
        rollout = first._replace(reward=np.full((T, N), mean))
        before, state, metrics = past.step(past.config, state, rollout, data)
    roots = np.sqrt(np.cumsum(means**2) / np.arange(1, 6))
    np.testing.assert_allclose(state.context, np.tanh(means / roots)[1:], rtol=1e-5)
    raw = state.raw["entropy_cost"]
    place = raw["start"] + network(raw["network"], before.context)
    value = 0.5 / (1.0 + np.exp(-place))
    np.testing.assert_allclose(metrics["meta_entropy_cost"], value, rtol=1e-5)


def test_a_shorter_context_is_the_end_of_a_longer_one():
    shapes = jax.eval_shape(
        networks.Critic(compiled.body(1, (3,), "tanh")).init,
        jax.random.key(0),
        np.zeros((1, 2)),
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    context, raw = rng.normal(size=5), {"start": 0.3, "network": params}
    parameter = Contextual(LAMBDA, 2, (3,))
    place = functools.partial(
        parameters.position, parameter, obs=None, obs_spec=SPEC.obs
    )
    got = jax.jit(place)(raw=raw, context=context)
    want = lambda_at(0.3 + network(params, context[-2:]))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_state_dependent_discount_is_of_the_successor(x64):
    past = past_with_networks()
    raw = past.end.raw["gamma"]
    place = raw["start"] + network(raw["network"], at(past.seen, -1).next_obs)
    want = 0.5 + 0.45 / (1.0 + np.exp(-place))
    np.testing.assert_allclose(past.metrics[-1]["discount"], want, rtol=1e-5)
    assert np.ptp(place) > 1e-3


@pytest.mark.parametrize("length", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_bootstrapped_target_is_a_step_from_where_the_agent_is(length, x64):
    """The divergence from it and the derivative, of updates run again by hand.

    Of the slow one the target's last step is the only one.
    """
    past = past_of(
        "a2c",
        num_target_updates=length,
        target_rate=0.3,
        outer_value_cost=0.0,
        evolution_pairs=0,
    )
    index = -1 - length
    assert len(past.before[-1].window.keys) == length
    policy = on_policy.actor(SPEC, past.config)

    @jax.jit
    def distance(values, before, start, seen, key_data):
        newest = at(seen, -1)
        score = outer_loss("a2c", past.config, past.settings, before, newest, None)
        slope = jax.grad(lambda x: score(before.agent._replace(actor=x)))
        target = optax.tree.add_scale(
            before.agent.actor, -0.3, slope(before.agent.actor)
        )
        changed = dataclasses.replace(past.config, **values)
        key = jax.random.split(key_of(key_data), 4)[0]
        new, _ = past.agent.update(changed, start.agent, at(seen, index), key)
        old, new = (policy.apply(x, newest.obs) for x in (target, new.actor))
        return jnp.mean(jnp.sum(old.probs * jnp.log(old.probs / new.probs), axis=-1))

    def of_raw(moves):
        values = {
            name: at_raw(raws_of(past, name)[index] + moves.get(name, 0.0))
            for name, at_raw in VALUE_AT.items()
        }
        start = past.before[index]
        return distance(values, past.before[-1], start, past.seen, KEYS[5 + index])

    metrics = past.metrics[-1]
    np.testing.assert_allclose(metrics["meta_loss"], of_raw({}), 1e-5)
    for name in VALUE_AT:
        up, down = (of_raw({name: h}) for h in (1e-5, -1e-5))
        want = (up - down) / 2e-5
        assert want != 0
        np.testing.assert_allclose(metrics[f"meta_{name}_gradient"], want, rtol=1e-3)


def test_evolution_agrees_with_the_meta_gradient(x64):
    cosines = [metrics["evolution_cosine"] for metrics in past_of("a2c").metrics]
    assert (np.array(cosines[1:]) > 0.8).all()


def test_inner_critic_is_the_only_one(x64):
    """There is no network of the outer discount."""
    assert past_of("a2c").end.critic.opt_state[1].count == 5
    assert not jax.tree.leaves(past_of("reinforce").end.critic)


def test_outer_critic_has_a_learning_rate_of_its_own(x64):
    """The first step of Adam is as long as the rate: 5 times the agent's."""
    first, second = (x.critic.params for x in past_of("a2c").before[:2])
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), first, second)
    np.testing.assert_allclose(max(jax.tree.leaves(moved)), 5.0 * 2e-3, rtol=1e-3)


@pytest.mark.parametrize("name, rate", [("dqn", 0.3), ("sarsa", 1.0)])
def test_outer_target_network_moves_at_the_agents_rate(name, rate, x64):
    """Without one the agent has no such rate, and it is a copy."""
    old, new = (x.critic for x in past_of(name).before[-2:])
    want = jax.tree.map(
        lambda x, y: (1.0 - rate) * np.asarray(x) + rate * np.asarray(y),
        old.target_params,
        new.params,
    )
    chex.assert_trees_all_close(new.target_params, want, rtol=1e-12)


def test_saturated_clips_are_counted(x64):
    past = past_of("a2c")
    for limit, share in ((1e-6, 1.0), (1e6, 0.0)):
        config, state = dataclasses.replace(past.config, max_grad_norm=limit), past.end
        for data in KEYS[:2]:
            _, state, metrics = past.step(config, state, at(past.seen, 0), data)
        assert metrics["saturated_clips"] == share


def test_states_side_by_side_are_tuned_as_alone(x64):
    """Sixteen of them, under vmap."""
    past, seen = past_of("a2c"), rollouts(16, seed=1)

    def several(x):
        scales = 1.0 + 0.01 * np.arange(16) if is_float(x) else np.ones(16, x.dtype)
        return np.stack([scale * np.asarray(x) for scale in scales])

    states = jax.tree.map(several, past.before[-1])
    _, new, _ = jax.jit(jax.vmap(past.step, (None, 0, 0, 0)))(
        past.config, states, seen, KEYS
    )
    _, alone, _ = past.step(past.config, at(states, 5), at(seen, 5), KEYS[5])
    chex.assert_trees_all_close(at(new.raw, 5), alone.raw, rtol=1e-6)
    chex.assert_trees_all_close(at(new.opt_state, 5), alone.opt_state, rtol=1e-6)
    assert len(np.unique(new.raw["gamma"])) == 16


@pytest.mark.slow
def test_seeds_train_side_by_side_in_one_program():
    """The whole loop of sixteen, initialisation included, each as it does alone."""
    config = config_of("a2c", gamma=0.9, total_steps=8 * T * N)
    tuned = tuned_a2c()
    keys = jax.vmap(jax.random.key)(jnp.arange(16))
    go = functools.partial(train.train, tuned, ENV, config)
    ts, metrics = jax.jit(jax.vmap(go))(keys)
    alone, _ = jax.jit(go)(keys[5])
    of_five = jax.tree.map(lambda x: x[5], ts.agent.raw)
    chex.assert_trees_all_close(of_five, alone.agent.raw, rtol=1e-3)
    assert len(np.unique(metrics["meta_gamma"][:, -1])) == 16


def test_a_checkpoint_restores_every_bit(tmp_path):
    """Of random numbers in place of every array that a tuned training keeps."""
    config = config_of("a2c", gamma=0.9)
    tuned = tuned_a2c(
        {"gamma": GAMMA, "entropy_cost": Contextual(Bounded(0, 1))}, num_updates=2
    )
    start = functools.partial(train.init, tuned, ENV, config)
    shapes = jax.eval_shape(start, jax.random.key(0))
    rng = np.random.default_rng(0)

    def is_key(x):
        return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)

    def draw(x):
        if is_key(x):
            return key_of(KEYS[0])
        return jnp.asarray(rng.integers(2**31, size=x.shape).astype(x.dtype))

    middle = jax.tree.map(draw, shapes)
    checkpoint.save(tmp_path / "checkpoints", 4, middle)
    restored = checkpoint.restore(tmp_path / "checkpoints", shapes)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, middle)
    as_data = functools.partial(
        jax.tree.map, lambda x: jax.random.key_data(x) if is_key(x) else x
    )
    chex.assert_trees_all_equal(as_data(restored), as_data(middle))


def test_conditioned_networks_see_the_tuned_values(x64):
    """Before the observation, from -1 at the low bound to 1; in acting and learning."""
    spec = conditioned(SPEC, 2)
    assert [leaf.shape for leaf in spec.obs.leaves] == [(2,), (4,)]
    fields = {"gamma": Bounded(0.5, 1.0), "lambda_": LAMBDA}
    settings = Settings(condition=True, mode="reverse")  # replays: records rollouts
    plain = agent_of("prediction", spec)
    agent = tune(plain, spec, fields, settings)
    config = config_of("prediction")
    shapes = jax.eval_shape(functools.partial(agent.init, config), jax.random.key(0))
    raw = {"gamma": math.log(0.2 / 0.8), "lambda_": math.log(0.95 / 0.05)}
    state = numbers(shapes)._replace(raw=raw)

    def act(config, state, memory, obs, key, explore):
        return obs, memory, ()

    shows = tune(plain._replace(act=act), spec, fields, settings)
    obs = np.arange(12.0).reshape(3, 4)
    seen, *_ = shows.act(config, state, (), obs, None, True)
    np.testing.assert_allclose(seen.obs, obs)
    np.testing.assert_allclose(seen.tuned, [[-0.6, 0.9]] * 3, rtol=1e-5)
    past = run_updates(plain, agent, config, settings, state, rollouts(2))
    window = past.end.window.rollouts
    first = past.before[1].window.rollouts
    for name in ("obs", "next_obs"):
        assert getattr(window, name).tuned.shape == (1, T, N, 2)
        seen = getattr(first, name)
        np.testing.assert_allclose(seen.obs[0], getattr(at(past.seen, 0), name))
        np.testing.assert_allclose(seen.tuned[0, ..., 0], -0.6, rtol=1e-5)
        np.testing.assert_allclose(seen.tuned[0, ..., 1], 0.9, rtol=1e-5)
    assert past.metrics[1]["meta_gamma"] != 0.6


@pytest.mark.parametrize(
    "obs",
    [
        ObsSpec.array((10, 10, 4), "bool"),
        ObsSpec.array((1,), "int32", States(5)),
        ObsSpec.array((6, 6, 1), "uint8", Levels((0.0,), (255.0,))),
    ],
)
def test_observations_of_every_kind_are_conditioned(obs):
    spec = conditioned(SPEC._replace(obs=obs), 1)
    assert spec.obs.leaves[1:] == obs.leaves
    fields = {"gamma": Bounded(0.0, 1.0)}
    agent = tune(agent_of("a2c", spec), spec, fields, Settings(condition=True))
    config = config_of("a2c", gamma=0.75)

    def act(key, obs):
        state = agent.init(config, key)
        return agent.act(config, state, (), obs, key, True)

    action, _, _ = jax.eval_shape(act, jax.random.key(0), obs.zeros(2))
    assert action.shape == (2,)


@pytest.mark.parametrize(
    "text, parameter",
    [
        ("gamma", LogHorizon(0.0, 0.9999)),
        ("gamma=bounded,0.9,1", Bounded(0.9, 1.0)),
        ("gamma=log_horizon,0.5,0.99", LogHorizon(0.5, 0.99)),
        ("gamma=state_dependent", StateDependent(LogHorizon(0.0, 0.9999))),
        ("gamma=state_dependent,0,1", StateDependent(Bounded(0.0, 1.0))),
        ("lambda_", Bounded(0.0, 1.0)),
        ("learning_rate", Logarithmic(1e-5, 1e-1, pace=0.1)),  # as the config declares
        ("learning_rate=log,1e-4,1e-2", Logarithmic(1e-4, 1e-2, pace=0.1)),
        ("learning_rate=bounded,0,1", Bounded(0.0, 1.0, pace=0.1)),
        ("entropy_cost=log", Logarithmic(1e-5, 1.0)),
        ("adam_epsilon", Bounded(0.01 * 1e-5, 1.0)),  # 0 is not allowed
        ("max_grad_norm", Bounded(0.01 * 2.0, 10.0 * 2.0)),
        ("entropy_cost=contextual,0,2", Contextual(Bounded(0.0, 2.0))),
        ("entropy_cost=contextual", Contextual(Bounded(0.0, 1.0))),
    ],
)
def test_parameters_on_the_command_line(text, parameter):
    name = text.partition("=")[0]
    config = config_of("a2c", max_grad_norm=2.0)
    assert parse_parameter(text, config) == (name, parameter)


@pytest.mark.parametrize("name", agents.names())
def test_declared_ranges_hold_the_default_and_are_allowed(name):
    """But for a cost of 0, which counts as the least."""
    config = agents.get(name).Config(**agent_case.required(name))
    found = declared(config)
    validate(found, config)
    scales = {field: scale for field, scale in found.items() if field != "gamma"}
    assert not any(isinstance(scale, LogHorizon) for scale in scales.values())
    if name not in agent_case.NOT_TUNED:
        assert isinstance(found["gamma"], LogHorizon) and "learning_rate" in found


def test_all_is_what_the_config_declares_and_may_be_told_otherwise():
    config = config_of("impala")
    found = parse_parameters(["gamma=bounded,0.5,1", "all"], config)
    assert found == declared(config) | {"gamma": Bounded(0.5, 1.0)}
    assert list(found) == [
        *("learning_rate", "gamma", "lambda_", "alpha_rho", "alpha_c", "entropy_cost")
    ]


def test_what_the_score_does_not_depend_on_is_not_tunable():
    """All of it is told at once, and what is learned beside it is no field."""
    agent, config = agent_of("a2c"), config_of("a2c")
    assert list(tunable(agent, ENV, config)) == list(declared(config))

    def update(config, state, rollout, key):
        fixed = dataclasses.replace(config, gamma=0.9, entropy_cost=0.1)
        return agent.update(fixed, state, rollout, key)

    stopped = agent._replace(update=update)
    assert list(tunable(stopped, ENV, config)) == ["learning_rate", "lambda_"]
    with pytest.raises(ValueError, match="^entropy_cost, gamma: the meta-gradient"):
        tuned = tune(stopped, SPEC, declared(config))
        jax.eval_shape(
            functools.partial(train.train, tuned, ENV, config), jax.random.key(0)
        )

    def nothing(config, state, rollout, key):
        return state, {}

    with pytest.raises(ValueError, match="reward: the meta-gradient is zero"):
        unmoved = agent._replace(update=nothing)
        tunable(unmoved, ENV, config, learned=("reward",))
    assert tunable(agent, ENV, Settings()) == {}


def test_all_is_tuned_at_once(x64):
    """Each along finite differences of the agent's own updates and the score."""
    config = config_of("impala", entropy_cost=0.01, alpha_rho=0.7, alpha_c=0.6)
    agent, fields = agent_of("impala"), declared(config)
    settings = Settings(num_updates=2, **OUTER)
    tuned = tune(agent, SPEC, fields, settings)
    shapes = jax.eval_shape(functools.partial(tuned.init, config), jax.random.key(0))
    past = run_updates(agent, tuned, config, settings, numbers(shapes), rollouts(5))
    score, metrics = score_after("impala", past), past.metrics[-1]
    raws = {name: raws_of(past, name)[-3:-1] for name in fields}

    def value_at(name, raw):
        return np.asarray(fields[name].at(1.0 / (1.0 + np.exp(-raw))))

    middle = {name: value_at(name, raw) for name, raw in raws.items()}
    for name, raw in raws.items():
        up, down = (
            score(middle | {name: value_at(name, raw + h)}) for h in (1e-4, -1e-4)
        )
        want = (up - down) / 2e-4
        assert abs(want) > 1e-9
        np.testing.assert_allclose(
            metrics[f"meta_{name}_gradient"], want, rtol=1e-3, err_msg=name
        )


def test_horizons_are_even_in_their_logarithm():
    scale = LogHorizon(0.9, 0.999)
    places = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(scale.at(places), [0.9, 0.99, 0.999], rtol=1e-5)
    rates = Logarithmic(1e-4, 1e-2)
    np.testing.assert_allclose(rates.at(places), [1e-4, 1e-3, 1e-2], rtol=1e-5)
    assert rates.position(0.0) == 0.0
    for other in (scale, rates, Bounded(-1.0, 3.0)):
        np.testing.assert_allclose(other.position(other.at(places)), places, atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: tuned_a2c({"gama": GAMMA}),
            "field to tune 'gama'; did you mean: gamma",
        ),
        (lambda: tuned_a2c({"num_envs": GAMMA}), "num_envs: shapes the program"),
        (lambda: tuned_a2c({"gamma": Bounded(0.0, 2.0)}), "gamma=2.0: must be in"),
        (lambda: tuned_a2c({"lambda_": Bounded(-1.0, 1.0)}), "lambda_=-1.0: must be"),
        (
            lambda: tuned_a2c({"gamma": Bounded(0.95, 1.0)}),
            r"gamma=0.9: must be in \[0.95",
        ),
        (
            lambda: tune(agent_of("ppo"), SPEC, {"max_kl": Bounded(0.1, 1.0)}),
            "max_kl=None: must be a number",
        ),
        (lambda: tune(A2C, SPEC, {}), "tuned: names no field"),
        (lambda: Bounded(1.0, 1.0), "low must be below high"),
        (lambda: Logarithmic(0.0, 1.0), "bounds must be above 0"),
        (lambda: Logarithmic(0.1, 1.0, pace=0.0), "pace=0.0"),
        (lambda: Bounded(0.1, 1.0, pace=-1.0), "pace=-1.0"),
        (
            lambda: parse_parameters(["gamma", "gamma"], config_of("a2c")),
            "gamma is to be tuned twice",
        ),
        (
            lambda: parse_parameters(["all"], Settings()),
            "all: no field of Settings declares a range",
        ),
        (lambda: LogHorizon(0.0, 1.0), r"bounds of a discount must be in \[0, 1\)"),
        (lambda: StateDependent(GAMMA, (0,)), "hidden_sizes"),
        (lambda: Contextual(GAMMA, 0), "length=0"),
        (lambda: tuned_a2c(num_updates=0), "num_updates=0"),
        (lambda: tuned_a2c(num_epochs=0), "num_epochs=0"),
        (lambda: tuned_a2c(num_minibatches=0), "num_minibatches=0"),
        (
            lambda: tuned_a2c(num_epochs=1),
            "Config has no num_epochs: the meta-setting num_epochs needs num_epochs",
        ),
        (lambda: tuned_a2c(outer_gamma=1.1), "outer_gamma=1.1"),
        (lambda: tuned_a2c(outer_critic_rate=0.0), "outer_critic_rate=0.0"),
        (lambda: tuned_a2c(mode="both"), "mode='both'"),
        (lambda: tuned_a2c(outer_critic="none"), "outer_critic='none'"),
        (
            lambda: tune(A2C._replace(policy=None, value=None), SPEC, {"gamma": GAMMA}),
            "no `policy`, `q_values` or `value`",
        ),
        (
            lambda: tune(
                agent_of("dqn"),
                SPEC,
                {"gamma": GAMMA},
                Settings(outer_critic="inner"),
            ),
            "outer_critic='inner': only of agents with a policy",
        ),
        (
            lambda: parse_parameter("gamma=0.9,1", config_of("a2c")),
            "NAME=KIND,LOW,HIGH",
        ),
        (lambda: parse_parameter("gamma=bounded,a,b", config_of("a2c")), "be numbers"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        agent = make()
        name = "ppo" if "max_kl" in message else "a2c"
        agent.init(config_of(name, gamma=0.9), jax.random.key(0))


@pytest.mark.parametrize(
    "name, field", [("ppo", "max_kl"), ("dqn", "epsilon_end"), ("a2c", "clip")]
)
def test_a_field_without_derivative_is_named(name, field):
    """A comparison, what only acting depends on, a whole target stopped."""
    agent, bounds = agent_of(name), Bounded(0.001, 1.0)
    config = config_of(name)
    if field == "max_kl":
        config = dataclasses.replace(config, max_kl=0.1)
    if name == "a2c":
        field = "gamma"

        def update(config, state, rollout, key):
            return A2C.update(jax.lax.stop_gradient(config), state, rollout, key)

        agent = agent._replace(update=update)
    tuned = tune(agent, SPEC, {field: bounds})
    with pytest.raises(
        ValueError, match=f"{field}: the meta-gradient is zero whatever"
    ):
        jax.eval_shape(
            lambda key: train.train(tuned, ENV, config, key), jax.random.key(0)
        )
