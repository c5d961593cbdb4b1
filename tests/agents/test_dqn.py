"""DQN: targets by hand, its gradient, target network, exploration."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs
from rljax.networks import layers
from rljax.replay import Windows
from rljax.running import train
from rljax.running.rollout import unroll

from .. import compiled
from ..agent_case import N, T, differ, parameters

STEPS = np.arange(16) % 3  # of each window, less 1
only_dqn = pytest.mark.parametrize("case", ["dqn"], indirect=True)


@pytest.fixture(scope="module")
def q_learner():
    """Spec, a config of plain Q-learning, two sets of parameters, transitions."""
    dqn, spec = agents.get("dqn"), envs.make("CartPole-v1").spec
    config = dqn.Config(gamma=0.9, hidden_sizes=(8,), double=False)
    net = dqn.network(spec, config)
    params, other = (
        compiled.init(net, jax.random.key(seed), np.zeros((1, 4), np.float32))
        for seed in (0, 1)
    )
    obs, next_obs = compiled.normal(2, 2, 16, 4)
    batch = Windows(
        obs=obs,
        action=np.arange(16) % 2,
        reward=np.arange(48.0).reshape(16, 3) * (np.arange(3) <= STEPS[:, None]),
        num_steps=STEPS + 1,
        terminated=np.arange(16) % 3 == 0,
        next_obs=next_obs,
    )
    return dqn, spec, config, params, other, batch


@functools.partial(jax.jit, static_argnums=0)
def errors_and_gradients(spec, config, params, bootstrap_params, batch):
    """Errors, and gradients of their sum in both parameters."""
    td_error, key = agents.get("dqn").td_error, jax.random.key(0)

    def total(params, bootstrap_params):
        args = (spec, config, params, bootstrap_params)
        found = jax.vmap(lambda window: td_error(*args, window, key))(batch)
        return found.sum(), found

    grads, found = jax.grad(total, (0, 1), has_aux=True)(params, bootstrap_params)
    return found, grads


def td_errors(q_learner, params, bootstrap_params, **changes):
    _, spec, config, *_, batch = q_learner
    config = dataclasses.replace(config, **changes)
    return errors_and_gradients(spec, config, params, bootstrap_params, batch)[0]


@pytest.mark.parametrize("double", [False, True])
def test_dqn_td_error_by_hand(q_learner, double):
    dqn, spec, config, params, other, batch = q_learner
    net = dqn.network(spec, config)
    q, q_next = (
        np.array(compiled.apply(net, params, x)) for x in (batch.obs, batch.next_obs)
    )
    q_other = np.array(compiled.apply(net, other, batch.next_obs))
    rows = np.arange(16)
    best = q_next.argmax(1) if double else q_other.argmax(1)
    assert (q_next.argmax(1) != q_other.argmax(1)).any()
    discount = np.where(batch.terminated, 0.0, 0.9 ** (STEPS + 1))
    target = (
        np.array(batch.reward) @ 0.9 ** np.arange(3) + discount * q_other[rows, best]
    )
    want = target - q[rows, np.array(batch.action)]
    got = td_errors(q_learner, params, other, double=double)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_dqn_munchausen_td_error_by_hand(q_learner):
    """All but the prediction is the target network's, also the policy acted by."""
    dqn, spec, config, params, other, batch = q_learner
    net, rows = dqn.network(spec, config), np.arange(16)
    q, target_q, target_q_next = (
        np.array(compiled.apply(net, p, x))
        for p, x in ((params, batch.obs), (other, batch.obs), (other, batch.next_obs))
    )

    def log_policy(q):
        scaled = q / 0.5
        return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))

    log_pi, log_pi_next = log_policy(target_q), log_policy(target_q_next)
    bonus = np.clip(0.5 * log_pi[rows, batch.action], -1.0, 0.0)
    soft = (np.exp(log_pi_next) * (target_q_next - 0.5 * log_pi_next)).sum(axis=1)
    reward = batch.reward @ 0.9 ** np.arange(3)
    discount = np.where(batch.terminated, 0.0, 0.9 ** (STEPS + 1))
    want = reward + 0.8 * bonus + discount * soft - q[rows, batch.action]
    changes = dict(entropy_temperature=0.5, munchausen_coefficient=0.8)
    got = td_errors(q_learner, params, other, munchausen=True, **changes)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "flags",
    [dict(), dict(double=True), dict(munchausen=True)],
    ids=["plain", "double", "munchausen"],
)
def test_dqn_gradient_is_the_semi_gradient(q_learner, flags):
    dqn, spec, config, params, other, batch = q_learner

    @jax.jit
    @jax.grad
    def minus_q(params):
        q = dqn.network(spec, config).apply(params, batch.obs)
        return -q[np.arange(16), batch.action].sum()

    changed = dataclasses.replace(config, **flags)
    _, (semi, rest) = errors_and_gradients(spec, changed, params, params, batch)
    chex.assert_trees_all_close(semi, minus_q(params), rtol=1e-4, atol=1e-6)
    assert compiled.all_nonzero(rest)


def test_dqn_learns_from_the_target_network(q_learner):
    _, _, _, params, other, batch = q_learner
    own, moved = (td_errors(q_learner, params, p) for p in (params, other))
    np.testing.assert_array_equal(np.array(own) == np.array(moved), batch.terminated)


@only_dqn
def test_dqn_update_uses_the_target_network(case, update, state, rollout):
    other = compiled.scaled(state.target_params, 1.0, 1.0)
    moved = state._replace(target_params=other)
    new, _ = update(case.config, state, rollout, jax.random.key(1))
    moved, _ = update(case.config, moved, rollout, jax.random.key(1))
    assert differ(moved.opt_state, new.opt_state)


@only_dqn
@pytest.mark.parametrize(
    ("rate", "first"), [(0.25, 0), (1.0, 0), (0.5, 2**31 - 4)], ids=str
)
def test_dqn_moves_the_target_network_each_period(
    case, update, state, rollout, rate, first
):
    """Also beyond the greatest int32."""
    config = dataclasses.replace(case.config, target_rate=rate, learning_rate=0.1)
    state = state._replace(num_updates=jnp.int32(first))
    for count in range(first + 1, first + 9):
        before = state.target_params
        state, _ = update(config, state, rollout, jax.random.key(1))
        assert count >= 2**31 or state.num_updates == count
        moves = rate if count % config.target_period == 0 else 0.0
        before, trained = jax.tree.map(np.array, (before, state.params))
        target = jax.tree.map(
            lambda old, new, moves=moves: old + moves * (new - old), before, trained
        )
        chex.assert_trees_all_close(state.target_params, target, rtol=1e-5, atol=1e-6)
        assert differ(before, state.target_params) == (
            count % config.target_period == 0
        )


@only_dqn
def test_dqn_learning_rate_falls_to_zero(case, update, state, rollout):
    end = state._replace(step=jnp.int32(case.config.total_steps // (T * N)))
    new, _ = update(case.config, end, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(parameters(new), parameters(state))


@only_dqn
def test_dqn_stores_transitions(case, update, state, rollout):
    new, _ = update(case.config, state, rollout, jax.random.key(0))
    for name, field in new.replay.steps._asdict().items():
        if name != "memory":
            want = getattr(rollout, name)
            np.testing.assert_array_equal(field[:T], want, err_msg=name)
    assert new.replay.added == T and new.step == 1
    chex.assert_trees_all_equal(
        new.replay, case.agent.observe(case.config, state, rollout).replay
    )


@only_dqn
def test_dqn_epsilon_falls_linearly(case, state):
    config = dataclasses.replace(
        case.config,
        epsilon_start=0.8,
        epsilon_end=0.2,
        epsilon_eval=0.5,
        exploration_fraction=0.5,
    )
    obs = np.tile(np.float32([1, 0, 0, 0]), (20_000, 1))
    act = jax.jit(case.agent.act, static_argnums=5)
    net = case.module.network(case.env.spec, config)
    greedy = np.array(compiled.apply(net, state.params, obs[0])).argmax()

    def explored(step, explore=True):
        """How often another than the greedy action, times two actions."""
        key = jax.random.key(step)
        now = state._replace(step=jnp.int32(step))
        action = np.array(act(config, now, (), obs, key, explore)[0])
        return 2 * (action != greedy).mean()

    total = config.total_steps // (T * N)
    for step, epsilon in ((0, 0.8), (total // 4, 0.5), (total // 2, 0.2), (total, 0.2)):
        np.testing.assert_allclose(explored(step), epsilon, atol=0.03)
    np.testing.assert_allclose(explored(0, explore=False), 0.5, atol=0.03)


@only_dqn
def test_dqn_repeats_exploring_actions(case, state):
    """Within an episode, not in evaluation, and nothing of it goes into the replay."""
    config = dataclasses.replace(case.config, max_repeats=50, epsilon_start=1.0)
    env, agent = case.env, case.agent

    @jax.jit
    def played(key):
        ts = train.init(agent, env, config, key)
        assert ts.agent.replay.steps.memory == ()
        return unroll(
            agent.act,
            env,
            config,
            ts,
            memory=agent.memory,
            key=jax.random.key(1),
            length=40,
        )[1]

    rollout = jax.tree.map(np.array, played(jax.random.key(0)))
    left = np.array(rollout.memory[..., 1])
    assert (left > 0).mean() > 0.3
    same = np.array(rollout.action)[1:] == np.array(rollout.action)[:-1]
    assert same[left[1:] > 0].all()
    ended = np.array(rollout.terminated | rollout.truncated)[:-1]
    assert ended.any() and (left[1:][ended] == 0).all()
    obs = rollout.obs[0]
    memory = np.full((len(obs), 2), 1)
    act = jax.jit(agent.act, static_argnums=5)
    greedy, after, _ = act(config, state, memory, obs, jax.random.key(0), False)
    net = case.module.network(env.spec, config)
    q = np.array(compiled.apply(net, state.params, obs))
    np.testing.assert_array_equal(greedy, q.argmax(axis=1))
    np.testing.assert_array_equal(after, memory)


def test_dqn_noise_replaces_epsilon(q_learner):
    dqn, spec, config, *_, batch = q_learner
    config = dataclasses.replace(config, noisy=True, epsilon_start=1.0)
    agent, key = dqn.make(spec), jax.random.key(0)
    same = np.stack([batch.obs[0]] * 50)
    keys = jax.random.split(key, 50)

    @jax.jit
    def actions(keys):
        state = agent.init(config, key)
        q = dqn.network(spec, config).apply(state.params, batch.obs)
        greedy = agent.act(config, state, (), batch.obs, key, False)[0]
        act = jax.vmap(lambda key: agent.act(config, state, (), same, key, True)[0])
        return q, greedy, act(keys)

    q, greedy, drawn = (np.array(x) for x in actions(keys))
    np.testing.assert_array_equal(greedy, q.argmax(axis=1))
    assert (drawn == drawn[:, :1]).all()  # the same noise for a whole batch
    assert set(drawn[:, 0]) == {0, 1}


def test_dqn_noise_by_hand(q_learner):
    """Each network has noise of its own, the same for all that it values."""
    dqn, spec, config, *_, batch = q_learner
    config = dataclasses.replace(config, noisy=True)
    net, window = dqn.network(spec, config), jax.tree.map(lambda x: x[1], batch)

    @jax.jit
    def found(key):
        params = net.init(jax.random.key(1), batch.obs)
        params_, target_params = (
            layers.with_noise(params, k) for k in jax.random.split(key)
        )
        q, q_next = net.apply(params_, window.obs), net.apply(params_, window.next_obs)
        target_q = net.apply(target_params, window.next_obs)
        errors = {
            double: dqn.td_error(
                spec,
                dataclasses.replace(config, double=double),
                params,
                params,
                window,
                key,
            )
            for double in (False, True)
        }
        return errors, q, q_next, target_q

    errors, q, q_next, target_q = jax.tree.map(np.array, found(jax.random.key(0)))
    reward = window.reward @ 0.9 ** np.arange(3)
    for double, best in ((False, target_q.argmax()), (True, q_next.argmax())):
        want = reward + 0.9**window.num_steps * target_q[best] - q[window.action]
        np.testing.assert_allclose(errors[double], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(double=True, munchausen=True), "double=True: must be False with munch"),
        (dict(noisy=True, max_repeats=2), "max_repeats=2: must be 1 with noisy=True"),
    ],
)
def test_dqn_flags_that_exclude_each_other(flags, words):
    with pytest.raises(ValueError, match=words):
        agents.get("dqn").Config(**flags).validate()


def test_dqn_needs_discrete_actions():
    with pytest.raises(ValueError, match="dqn needs discrete actions, not Box"):
        agents.get("dqn").make(envs.make("Pendulum-v1").spec)
