"""Sarsa: errors by hand, next actions, its gradient, the values of a known policy."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents, envs
from rljax.learners import fresh_q_learner
from rljax.running import train
from rljax.types import Transition

from .. import compiled, probe_envs
from ..agent_case import N, T, parameters

only_sarsa = pytest.mark.parametrize("case", ["sarsa"], indirect=True)
EPSILON = 0.4
UNKNOWN = -1
sarsa = agents.get("sarsa")


def transitions_by_step(rollout):
    return Transition(*(getattr(rollout, name) for name in Transition._fields))


def transitions(rollout):
    rows = transitions_by_step(rollout)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def errors(spec, config, params, bootstrap_params, rollout, next_action):
    def error(row, action, key):
        return sarsa.td_error(
            spec,
            config,
            params,
            bootstrap_params=bootstrap_params,
            transition=row,
            next_action=action,
            epsilon=EPSILON,
            key=key,
        )

    keys = jax.random.split(jax.random.key(0), T * N)
    return jax.vmap(error)(transitions(rollout), next_action.ravel(), keys)


@functools.partial(jax.jit, static_argnums=0)
def errors_and_gradients(spec, config, params, bootstrap_params, rollout, next_action):
    """Errors; gradients of their sum in both parameters, of the loss in the first."""

    def totals(params, bootstrap_params):
        args = (params, bootstrap_params, rollout, next_action)
        found = errors(spec, config, *args)
        return (found.sum(), 0.5 * (found**2).mean()), found

    (_, loss), pull, found = jax.vjp(totals, params, bootstrap_params, has_aux=True)
    return found, pull((1.0, 0.0)), (loss, pull((0.0, 1.0))[0])


@pytest.fixture(scope="module")
def other(case):
    return jax.jit(case.agent.init)(case.config, jax.random.key(1)).params


@only_sarsa
@pytest.mark.parametrize("expected", [False, True])
def test_sarsa_td_error_by_hand(case, state, rollout, other, expected):
    config = dataclasses.replace(case.config, gamma=0.9, expected=expected)
    net = fresh_q_learner.network(case.spec, config)
    q = np.array(compiled.apply(net, state.params, rollout.obs)).reshape(-1, 2)
    q_next = np.array(compiled.apply(net, other, rollout.next_obs)).reshape(-1, 2)
    rows, next_action = np.arange(T * N), np.arange(T * N) % 2
    value = q_next[rows, next_action]
    if expected:
        value = (1 - EPSILON) * q_next.max(axis=1) + EPSILON * q_next.mean(axis=1)
    discount = np.where(np.ravel(rollout.terminated), 0.0, 0.9)
    target = np.ravel(rollout.reward) + discount * value
    want = target - q[rows, np.ravel(rollout.action)]
    args = (state.params, other, rollout, next_action)
    got, *_ = errors_and_gradients(case.spec, config, *args)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@only_sarsa
def test_sarsa_draws_the_next_action_that_is_not_known(case, state, rollout):
    """Over many keys with the policy's odds, in the true successor."""
    net = fresh_q_learner.network(case.spec, case.config)
    row = jax.tree.map(lambda x: np.array(x)[0, 1], transitions_by_step(rollout))
    assert not row.terminated
    q, q_t = (
        np.array(compiled.apply(net, state.params, x)) for x in (row.obs, row.next_obs)
    )
    td_error = functools.partial(case.module.td_error, case.spec, case.config)

    def next_value(key, next_action):
        error = td_error(
            state.params,
            bootstrap_params=state.params,
            transition=row,
            next_action=next_action,
            epsilon=EPSILON,
            key=key,
        )
        return (error + q[row.action] - row.reward) / case.config.gamma

    keys = jax.random.split(jax.random.key(0), 5_000)
    values = jax.jit(jax.vmap(next_value, (0, None)))
    drawn = np.array(values(keys, UNKNOWN))
    assert abs(q_t[0] - q_t[1]) > 1e-2
    greedy = np.abs(drawn - q_t.max()) < 1e-3
    assert (greedy | (np.abs(drawn - q_t.min()) < 1e-3)).all()
    np.testing.assert_allclose(greedy.mean(), 1 - EPSILON / 2, atol=0.02)
    for action in (0, 1):
        known = values(keys, action)
        np.testing.assert_allclose(known, q_t[action], rtol=1e-3, atol=1e-4)


@only_sarsa
def test_sarsa_next_actions_are_those_taken(case, rollout):
    got = np.array(jax.jit(case.module.next_actions)(rollout))
    rollout = jax.tree.map(np.array, rollout)
    for t in range(T):
        for n in range(N):
            end = rollout.terminated[t, n] or rollout.truncated[t, n]
            known = t + 1 < T and not end
            assert got[t, n] == (rollout.action[t + 1, n] if known else UNKNOWN)


@only_sarsa
@pytest.mark.parametrize("expected", [False, True])
def test_sarsa_gradient_is_the_semi_gradient(case, state, rollout, expected):
    config = dataclasses.replace(case.config, expected=expected)
    args = (state.params, state.params, rollout, np.arange(T * N) % 2)
    _, (semi, rest), _ = errors_and_gradients(case.spec, config, *args)

    @jax.jit
    @jax.grad
    def minus_q(params):
        q = fresh_q_learner.network(case.spec, config).apply(params, rollout.obs)
        return -jnp.take_along_axis(q, rollout.action[..., None], axis=-1).sum()

    chex.assert_trees_all_close(semi, minus_q(state.params), rtol=1e-4, atol=1e-5)
    assert compiled.all_nonzero(rest)


@only_sarsa
@pytest.mark.parametrize("expected", [False, True])
def test_sarsa_update_is_one_semi_gradient_step(case, update, state, rollout, expected):
    config = dataclasses.replace(case.config, expected=expected, max_grad_norm=1e9)
    config = dataclasses.replace(config, epsilon_start=EPSILON, epsilon_end=EPSILON)
    # Only rows that end or know their next action: nothing is drawn.
    ends = np.tile((np.arange(T) > 1)[:, None], N)
    rollout = rollout._replace(terminated=ends, truncated=np.zeros_like(ends))
    new, metrics = update(config, state, rollout, jax.random.key(0))
    known = np.where(ends, 0, np.roll(rollout.action, -1, axis=0)).ravel()
    args = (state.params, state.params, rollout, known)
    *_, (value, grads) = errors_and_gradients(case.spec, config, *args)
    want, _ = ravel_pytree(jax.tree.map(np.array, grads))
    mean = np.array(new.opt_state[1].mu) / 0.1
    np.testing.assert_allclose(mean, want, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)


@only_sarsa
def test_sarsa_learning_rate_falls_to_zero(case, update, state, rollout):
    end = state._replace(step=jnp.int32(case.config.total_steps // (T * N)))
    new, _ = update(case.config, end, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    assert new.step == end.step + 1


def test_sarsa_needs_discrete_actions():
    with pytest.raises(ValueError, match="sarsa needs discrete actions, not Box"):
        agents.get("sarsa").make(envs.make("Pendulum-v1").spec)


@pytest.mark.slow
@pytest.mark.parametrize("expected", [False, True])
@pytest.mark.parametrize("rollout_length", [1, 4])
def test_sarsa_finds_the_values_of_the_policy_it_follows(rollout_length, expected):
    """With epsilon 1/2 the better action has odds 3/4: v = 3/4 (1 + v/2) + 1/4 v/2.

    To the step by hand this adds trainings that follow their own policy to the end.
    """
    env = envs.wrap(probe_envs.TwoPlaces())
    config = sarsa.Config(
        gamma=0.5,
        learning_rate=1e-2,
        epsilon_start=0.5,
        epsilon_end=0.5,
        total_steps=12_000,
        num_envs=16,
        rollout_length=rollout_length,
        hidden_sizes=(16,),
        expected=expected,
    )
    fn = jax.jit(functools.partial(train.train, sarsa.make(env.spec)))
    ts, _ = fn(env, config, jax.random.key(0))
    q = compiled.apply(
        fresh_q_learner.network(env.spec, config), ts.agent.params, np.eye(2)
    )
    want = [[0.75, 1.75], [1.75, 0.75]]  # v is 3/2 at both places
    np.testing.assert_allclose(q, want, atol=0.05)
