"""IMPALA: V-trace by hand, its lagged actors, A2C where they do not lag."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

from rljax import agents
from rljax.learners import on_policy

from .. import compiled
from ..agent_case import N, T, differ

only_impala = pytest.mark.parametrize("case", ["impala"], indirect=True)


@only_impala
def test_impala_targets_by_hand(case, state, rollout):
    impala, spec = case.module, case.spec
    config = dataclasses.replace(
        case.config, gamma=0.9, lambda_=0.8, clip_rho=1.2, clip_pg_rho=0.7
    )
    log_mu = np.float32(-0.7) + np.float32(0.5) * compiled.normal(2, T, N)
    rollout = rollout._replace(extras=log_mu)
    batch, rho = jax.jit(impala.prepare, static_argnums=0)(spec, config, state, rollout)
    rollout = jax.tree.map(np.array, rollout)
    actor = on_policy.actor(spec, config)
    args = (state.actor, rollout.obs, rollout.action)
    want_rho = np.exp(compiled.log_prob(actor, *args) - log_mu)
    np.testing.assert_allclose(rho, want_rho, rtol=1e-5)
    assert (want_rho > 1.2).any() and (want_rho < 0.7).any()
    value, next_value = (
        np.array(compiled.apply(on_policy.critic(spec, config), state.critic, x))
        for x in (rollout.obs, rollout.next_obs)
    )
    error, adv = np.zeros((T + 1, N)), np.zeros((T, N))
    for t in reversed(range(T)):
        for n in range(N):
            terminated, truncated = rollout.terminated[t, n], rollout.truncated[t, n]
            discount, ratio = 0.0 if terminated else 0.9, want_rho[t, n]
            trace = 0.0 if terminated or truncated else 0.8
            delta = rollout.reward[t, n] + discount * next_value[t, n] - value[t, n]
            later = discount * trace * error[t + 1, n]
            adv[t, n] = min(0.7, ratio) * (delta + later)
            error[t, n] = min(1.2, ratio) * delta + min(1.0, ratio) * later
    want = value + error[:T]
    np.testing.assert_allclose(batch.target, want.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(batch.advantage, adv.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(batch.action, rollout.action.ravel())


@only_impala
def test_impala_whose_actors_do_not_lag_is_a2c(case, update, state, rollout):
    actor = on_policy.actor(case.spec, case.config)
    args = (state.actor, rollout.obs, rollout.action)
    rollout = rollout._replace(extras=compiled.log_prob(actor, *args))
    a2c, config = agents.get("a2c"), case.config
    fields = (f.name for f in dataclasses.fields(a2c.Config))
    shared = {name: getattr(config, name) for name in fields if hasattr(config, name)}
    key = jax.random.key(0)
    want, _ = jax.jit(a2c.make(case.spec).update)(
        a2c.Config(**shared), on_policy.OnPolicyState(*state[:5]), rollout, key
    )
    new, _ = update(config, state, rollout, key)
    # Adam magnifies the rounding of gradients near 0.
    chex.assert_trees_all_close(new.actor, want.actor, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(new.critic, want.critic, rtol=1e-3, atol=1e-5)


@only_impala
def test_impala_actors_follow_every_few_updates(case, update, state, rollout):
    config = dataclasses.replace(case.config, actor_period=3)
    for count in range(1, 6):  # the rate is 0 after six
        before = state.behaviour
        state, _ = update(config, state, rollout, jax.random.key(0))
        assert state.step == count
        if count % 3 == 0:
            chex.assert_trees_all_equal(state.behaviour, state.actor)
        else:
            chex.assert_trees_all_equal(state.behaviour, before)
            assert differ(state.behaviour, state.actor)


@only_impala
def test_impala_actors_follow_also_beyond_int32(case, update, state, rollout):
    """The greatest int32 is 1 modulo 3."""
    config = dataclasses.replace(case.config, actor_period=3)
    older = compiled.scaled(state.behaviour, 5)
    state = state._replace(behaviour=older, step=np.int32(2**31 - 1))
    state, _ = update(config, state, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(state.behaviour, older)
    state, _ = update(config, state, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(state.behaviour, state.actor)


@only_impala
def test_impala_acts_by_the_older_policy_and_is_judged_by_the_newer(case, state):
    turned = compiled.scaled(state.actor, -1)
    state = state._replace(behaviour=compiled.scaled(state.actor, 5))
    obs = compiled.normal(1, 200, 4)
    act, key = jax.jit(case.agent.act, static_argnums=5), jax.random.key(0)
    net = on_policy.actor(case.spec, case.config)
    action, _, log_prob = act(case.config, state, (), obs, key, True)
    want = compiled.log_prob(net, state.behaviour, obs, action)
    np.testing.assert_allclose(log_prob, want, rtol=1e-5)
    state = state._replace(actor=turned)
    greedy, *_ = act(case.config, state, (), obs, key, False)
    want = np.array(compiled.apply(net, turned, obs).logits).argmax(axis=-1)
    np.testing.assert_array_equal(greedy, want)
