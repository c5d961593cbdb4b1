"""Learned rewards and targets, against rollouts and scores written out."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from rljax import agents, networks
from rljax.meta import Settings, shaping, tune
from rljax.types import Box, MultiDiscrete

from .test_tuning import (
    KEYS,
    SPEC,
    N,
    T,
    agent_of,
    at,
    config_of,
    key_of,
    numbers,
    outer_loss,
    rollouts,
    run_updates,
)

OUTER = dict(
    outer_gamma=0.97,
    outer_lambda=0.8,
    outer_value_cost=0.3,
    outer_entropy_cost=0.02,
    learned_hidden_sizes=(5,),
    reward_scale=0.7,
    reward_extrinsic=0.6,
    target_bound=1.5,
    target_consistency=0.2,
)
CASES = [  # agent, what is learned, K
    ("a2c", ("reward",), 1),
    pytest.param("a2c", ("reward",), 5, marks=pytest.mark.slow),
    ("ppo", ("reward",), 2),
    pytest.param("ppo", ("target",), 1, marks=pytest.mark.slow),
    ("a2c", ("target",), 2),
    pytest.param("impala", ("target",), 5, marks=pytest.mark.slow),
    pytest.param("a2c", ("reward", "target"), 2, marks=pytest.mark.slow),
]


@functools.cache
def past_of(name, learned, steps, **more):
    agent, config = agent_of(name), config_of(name, gamma=0.9)
    settings = Settings(num_updates=steps, **OUTER | more)
    tuned = tune(agent, SPEC, {}, settings, learned=learned)
    init = functools.partial(tuned.init, config)
    state = numbers(jax.eval_shape(init, jax.random.key(0)))
    rng = np.random.default_rng(5)
    raw = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape), state.raw)
    window = state.window._replace(
        raw=jax.tree.map(lambda x: np.stack([x] * steps), raw)
    )
    state = state._replace(raw=raw, window=window)
    return run_updates(agent, tuned, config, settings, state, rollouts(steps + 1))


def gradient_of(past):
    """The newest: without momentum the mean of all gradients is the newest one."""
    return past.end.opt_state.inner_states["networks"].inner_state.mu


def reward_of(raw, rollout):
    """One transition after the other, of one-hot actions."""
    out = np.zeros((T, N)).tolist()
    layers = raw["reward"]["params"]
    (hidden, last) = (layers[name] for name in sorted(layers))
    if hidden["kernel"].shape[-1] == 1:
        hidden, last = last, hidden
    if "kernel" not in hidden:
        (hidden,) = hidden.values()
    for t in range(T):
        for n in range(N):
            action = jnp.arange(2) == rollout.action[t, n]
            x = jnp.concatenate([rollout.obs[t, n], action])
            x = jnp.tanh(x @ hidden["kernel"] + hidden["bias"])
            out[t][n] = (x @ last["kernel"] + last["bias"])[0]
    return 0.6 * rollout.reward + 0.7 * jnp.tanh(jnp.array(out))


def squash(x):
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def target_of(raw, agent, config, state, rollout):
    """Backwards in a Python loop, from an empty memory at every episode's end."""
    params = raw["target"]["params"]
    (cell_name,) = (name for name in params if "GRU" in name)
    (head_name,) = (name for name in params if "GRU" not in name)
    cell, head = nn.GRUCell(5), params[head_name]
    v, v_next = (agent.value(config, state, x) for x in (rollout.obs, rollout.next_obs))
    memory, targets = jnp.zeros((N, 5)), []
    for t in reversed(range(T)):
        ended = rollout.terminated[t] | rollout.truncated[t]
        memory = jnp.where(ended[:, None], 0.0, memory)
        x = jnp.stack(
            [
                squash(rollout.reward[t]),
                1.0 - rollout.terminated[t],
                1.0 - ended,
                squash(v[t]),
                squash(v_next[t]),
            ],
            axis=-1,
        )
        memory, out = cell.apply({"params": params[cell_name]}, memory, x)
        out = (out @ head["kernel"] + head["bias"])[:, 0]
        targets.append(1.5 * jnp.tanh(out / 1.5))
    return jnp.stack(targets[::-1])


def given(raw, agent, config, state, rollout):
    """The rollout that the agent learns from."""
    if "reward" in raw:
        rollout = rollout._replace(reward=reward_of(raw, rollout))
    if "target" in raw:
        target = target_of(raw, agent, config, state, rollout)
        ends = jnp.ones((T, N), bool)
        rollout = rollout._replace(reward=target, terminated=ends)
    return rollout


def penalty(raw, agent, config, state, rollout):
    reward = reward_of(raw, rollout) if "reward" in raw else rollout.reward
    read = rollout._replace(reward=reward)
    target = target_of(raw, agent, config, state, read)
    kept = jax.lax.stop_gradient(rollout.reward[:-1] + 0.97 * target[1:])
    ended = (rollout.terminated | rollout.truncated)[:-1]
    return 0.2 * 0.5 * jnp.mean(jnp.where(ended, 0.0, kept - target[:-1]) ** 2)


@pytest.mark.parametrize("name, learned, steps", CASES)
def test_networks_follow_finite_differences(name, learned, steps, x64):
    """Along directions in all their numbers; the target's own cost is added."""
    past = past_of(name, learned, steps)
    agent, config, start = past.agent, past.config, past.before[0]
    before = past.before[-1]

    @jax.jit
    def score(raw, seen, key_data):
        state = start.agent
        for i in range(steps):
            key = jax.random.split(key_of(key_data[i]), 4)[0]
            rollout = given(raw, agent, config, state, at(seen, i))
            state, _ = agent.update(config, state, rollout, key)
        loss = outer_loss(
            name, config, past.settings, before, at(seen, steps), key_data
        )
        return loss(state)

    np.testing.assert_allclose(
        past.metrics[-1]["meta_loss"], score(start.raw, past.seen, KEYS), rtol=1e-6
    )
    found = gradient_of(past)
    rng = np.random.default_rng(2)
    for _ in range(3):
        way = jax.tree.map(lambda x: rng.normal(size=x.shape), found)
        ends = (optax.tree.add_scale(start.raw, h, way) for h in (1e-6, -1e-6))
        up, down = (float(score(raw, past.seen, KEYS)) for raw in ends)
        want = (up - down) / 2e-6
        if "target" in learned:
            slope = jax.grad(penalty)(
                start.raw, agent, config, before.agent, at(past.seen, steps)
            )
            want += float(optax.tree.vdot(slope, way))
        assert abs(want) > 1e-6
        np.testing.assert_allclose(optax.tree.vdot(found, way), want, rtol=1e-4)


@pytest.mark.parametrize("learned", [("reward",), ("target",)])
@pytest.mark.parametrize("how", [{"mode": "forward"}, {"remat": True}], ids=str)
@pytest.mark.slow
def test_modes_and_rematerialisation_agree(learned, how, x64):
    past, other = past_of("a2c", learned, 2), past_of("a2c", learned, 2, **how)
    for x, y in zip(
        jax.tree.leaves(past.end.opt_state),
        jax.tree.leaves(other.end.opt_state),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-15)


@pytest.mark.slow
def test_evolution_is_compared_with_the_slope_of_the_score(x64):
    """Not of the targets' cost, a semi-gradient, which here is most of the step."""
    past = past_of("a2c", ("target",), 1, evolution_pairs=4096, target_consistency=30.0)
    assert past.metrics[-1]["evolution_cosine"] > 0.9


def test_networks_start_without_a_factorisation():
    """That of LAPACK can wait for ever where seeds train side by side."""
    tuned = tune(agent_of("a2c"), SPEC, {}, learned=("reward", "target"))
    init = functools.partial(tuned.init, config_of("a2c"))
    found = str(jax.make_jaxpr(init)(jax.random.key(0)))
    assert "erf_inv" in found  # numbers are drawn
    assert not re.findall(r"= (qr|geqrf|householder_product)\b", found)


def test_what_is_learned_is_in_the_metrics_and_bounded(x64):
    past = past_of("a2c", ("target",), 2)
    before, rollout = past.before[-1], at(past.seen, 2)
    settings = dataclasses.replace(past.settings, target_bound=0.01)
    with_bound, metrics = jax.jit(
        lambda raw: shaping.shaped(
            past.agent,
            SPEC,
            settings,
            config=past.config,
            state=before.agent,
            raw=raw,
            rollout=rollout,
        )
    )(before.raw)
    assert (np.abs(with_bound.reward) <= 0.01).all() and with_bound.terminated.all()
    assert metrics["meta_target"] == with_bound.reward.mean()
    metrics = past.metrics[-1]
    norm = metrics["meta_target_gradient_norm"]
    np.testing.assert_allclose(norm, optax.tree.norm(gradient_of(past)), rtol=1e-6)
    assert np.isfinite(metrics["meta_target"])


def test_a_derivative_of_targets_keeps_memories_alone():
    """Of a step its memory and its output, not the gates between them."""
    size, envs = 32, 16
    net = shaping.TargetNetwork(size)

    def memory(length):
        steps, ended = jnp.zeros((length, envs, 5)), jnp.zeros((length, envs), bool)
        params = jax.eval_shape(net.init, jax.random.key(0), steps, ended)
        slope = jax.grad(lambda params, *x: net.apply(params, *x).sum())
        found = jax.jit(slope).lower(params, steps, ended).compile()
        return found.memory_analysis().temp_size_in_bytes

    numbers = (memory(96) - memory(32)) / (64 * envs * size * 4)
    assert numbers < 4


@pytest.mark.parametrize(
    "space",
    [
        MultiDiscrete((2, 3)),
        Box(shape=(1, 2), low=(-2.0, 0.0), high=(2.0, 1.0)),
        Box(shape=(), low=(-1e31,), high=(1.0,)),
    ],
    ids=["choices", "box", "unbounded"],
)
def test_rewards_are_of_actions_of_every_kind(space):
    spec = SPEC._replace(action=space)
    settings = Settings(learned_hidden_sizes=(4,))
    agent = agents.get("a2c").make(spec)
    params = shaping.init(agent, spec, settings, name="reward", key=jax.random.key(0))
    action = spec.no_action(T, N)
    net = shaping.RewardNetwork(networks.Body(spec.obs, hidden_sizes=(4,)), space)
    zero, one = (net.apply(params, spec.zeros(T, N), action + x) for x in (0, 1))
    assert zero.shape == (T, N) and (np.asarray(zero) != np.asarray(one)).all()


@pytest.mark.parametrize(
    "name, learned, message",
    [
        ("a2c", ("rewards",), "learned='rewards': must be of reward, target"),
        ("dqn", ("reward",), "a learned reward: only of agents with a policy"),
        ("ppo_rnn", ("target",), "a learned target: only of agents with a `value`"),
        ("awr", ("reward",), "a learned reward: not of agents with a replay"),
        ("a2c", (), "tuned: names no field"),
    ],
)
def test_bad_arguments_are_named(name, learned, message):
    with pytest.raises(ValueError, match=message):
        agent = tune(agent_of(name), SPEC, {}, learned=learned)
        fields = dict(num_minibatches=2) if name == "awr" else {}
        jax.eval_shape(
            functools.partial(agent.init, config_of(name, **fields)), jax.random.key(0)
        )


@pytest.mark.parametrize(
    "fields",
    [
        dict(learned_rate=0.0),
        dict(reward_scale=-1.0),
        dict(target_bound=0.0),
        dict(target_consistency=-0.1),
        dict(learned_momentum=1.0),
        dict(learned_hidden_sizes=()),
        dict(learned_hidden_sizes=(0,)),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        Settings(**fields).validate()
