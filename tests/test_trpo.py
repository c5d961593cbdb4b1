"""TRPO: its step against a dense Fisher matrix, and the line search."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from rljax import on_policy
from rljax.autodiff import fisher_vp

from .agent_case import differ

only_trpo = pytest.mark.parametrize("case", ["trpo"], indirect=True)


@pytest.fixture(scope="module")
def problem(case, state, rollout):
    """The module, spec, config, the actor's parameters, a batch, their policy."""
    spec, config = case.spec, case.config
    policy = on_policy.actor(spec, config).apply(state.actor, rollout.obs)
    rollout = rollout._replace(extras=policy.log_prob(rollout.action))
    batch = on_policy.prepare(spec, config, state, rollout, 0.95)
    return case.module, spec, config, state.actor, batch


def divergence(spec, config, old, new, batch):
    before, after = (
        np.array(on_policy.actor(spec, config).apply(params, batch.obs).probs)
        for params in (old, new)
    )
    return (before * np.log(before / after)).sum(axis=-1).mean()


def moved(params, scale, step):
    return optax.tree.add_scale(params, scale, step)


@only_trpo
@pytest.mark.parametrize("stride", [1, 3])
def test_trpo_step_is_that_of_the_dense_fisher_matrix(problem, stride):
    trpo, spec, config, params, batch = problem
    config = dataclasses.replace(
        config, damping=0.3, cg_iterations=100, fisher_stride=stride
    )
    flat, unravel = ravel_pytree(params)
    net = on_policy.actor(spec, config)
    probs = net.apply(params, batch.obs).probs

    def log_probs(flat):
        return jax.nn.log_softmax(net.apply(unravel(flat), batch.obs).logits)

    jacobian = jax.jacobian(log_probs)(flat)  # of log-probabilities [B, A, P]
    some = (probs[::stride], jacobian[::stride], jacobian[::stride])
    fisher = jnp.einsum("ba,bap,baq->pq", *some) / len(some[0])
    chosen = jacobian[jnp.arange(len(probs)), batch.action]
    gradient = (batch.advantage[:, None] * chosen).mean(axis=0)
    matrix = np.array(fisher + 0.3 * jnp.eye(len(flat)), np.float64)
    x = np.linalg.solve(matrix, np.array(gradient, np.float64))
    want = np.sqrt(2 * config.max_kl / (x @ matrix @ x)) * x
    step = ravel_pytree(trpo.natural_step(spec, config, params, batch, config.max_kl))[
        0
    ]
    np.testing.assert_allclose(step, want, rtol=2e-3, atol=1e-5)
    # Without much damping the model's divergence is the limit.
    config = dataclasses.replace(config, damping=1e-4)
    step = trpo.natural_step(spec, config, params, batch, config.max_kl)
    product = fisher_vp(lambda p: net.apply(p, batch.obs[::stride]), params, step)
    quadratic = 0.5 * optax.tree.vdot(step, product)
    np.testing.assert_allclose(quadratic, config.max_kl, rtol=0.05)


@only_trpo
@pytest.mark.parametrize("stretch", [0.5, 1.0, 3.0, 30.0])
def test_trpo_takes_the_longest_step_that_is_allowed(problem, stretch):
    trpo, spec, config, params, batch = problem
    step = trpo.natural_step(spec, config, params, batch, config.max_kl)
    step = optax.tree.scale(stretch, step)
    surrogate = functools.partial(trpo.surrogate, spec, config)
    before = surrogate(params, batch)
    want = None
    for tries in range(config.max_backtracks):
        new = moved(params, 0.8**tries, step)
        inside = divergence(spec, config, params, new, batch) <= config.max_kl
        if inside and surrogate(new, batch) > before:
            want = tries
            break
    search = jax.jit(trpo.line_search, static_argnums=0)(
        spec, config, params, step, batch, config.max_kl
    )
    assert bool(search.accepted) == (want is not None)
    if stretch == 30.0:  # ten times 0.8 is not enough
        assert want is None and search.tries == config.max_backtracks
        return
    assert search.tries == want + 1
    np.testing.assert_allclose(search.scale, 0.8**want, rtol=1e-6)
    new = moved(params, search.scale, step)
    kl = divergence(spec, config, params, new, batch)
    np.testing.assert_allclose(search.kl, kl, rtol=1e-3)
    np.testing.assert_allclose(search.gain, surrogate(new, batch) - before, rtol=1e-2)


@only_trpo
def test_trpo_keeps_the_policy_where_no_step_gains(problem):
    trpo, spec, config, params, batch = problem
    step = trpo.natural_step(spec, config, params, batch, config.max_kl)
    back = optax.tree.scale(-1.0, step)
    assert not trpo.line_search(
        spec, config, params, back, batch, config.max_kl
    ).accepted
    nothing = batch._replace(advantage=jnp.zeros_like(batch.advantage))
    step = trpo.natural_step(spec, config, params, nothing, config.max_kl)
    chex.assert_trees_all_equal(step, jax.tree.map(jnp.zeros_like, params))


@only_trpo
def test_trpo_updates_keep_the_trust_region(case, update, state, rollout):
    spec, config = case.spec, case.config
    for seed in range(5):
        policy = on_policy.actor(spec, config).apply(state.actor, rollout.obs)
        rollout = rollout._replace(extras=policy.log_prob(rollout.action))
        new, metrics = update(config, state, rollout, jax.random.key(seed))
        kl = divergence(spec, config, state.actor, new.actor, rollout)
        np.testing.assert_allclose(metrics["kl"], kl, rtol=2e-2, atol=1e-6)
        progress = state.step / config.total_steps
        assert 0 < metrics["kl"] <= config.max_kl * (1 - progress)
        assert metrics["surrogate_gain"] > 0 and metrics["step_scale"] <= 1
        assert differ(new.actor, state.actor)
        state = new


@only_trpo
def test_trpo_update_without_an_accepted_step_keeps_the_policy(
    case, state, rollout, monkeypatch
):
    def too_far(*args):
        return optax.tree.scale(30.0, natural_step(*args))

    natural_step = case.module.natural_step
    monkeypatch.setattr(case.module, "natural_step", too_far)
    policy = on_policy.actor(case.spec, case.config).apply(state.actor, rollout.obs)
    rollout = rollout._replace(extras=policy.log_prob(rollout.action))
    update = jax.jit(functools.partial(case.agent.update, case.config))
    new, metrics = update(state, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(new.actor, state.actor)
    assert differ(new.critic, state.critic)
    names = ("kl", "surrogate_gain", "step_scale")
    assert [metrics[name] for name in names] == [0.0, 0.0, 0.0]


@only_trpo
def test_trpo_is_differentiable_in_its_config(case, update, state, rollout):
    """The step grows as the root of `max_kl`; `backtracking` only chooses."""
    policy = on_policy.actor(case.spec, case.config).apply(state.actor, rollout.obs)
    rollout = rollout._replace(extras=policy.log_prob(rollout.action))

    def actor(config):
        new = case.agent.update(config, state, rollout, jax.random.key(0))[0]
        return ravel_pytree(new.actor)[0]

    out, pull = jax.vjp(jax.jit(actor), case.config)
    change = out - ravel_pytree(state.actor)[0]
    (grad,) = pull(change)
    want = change @ change / (2 * case.config.max_kl)
    np.testing.assert_allclose(grad.max_kl, want, rtol=1e-4)
    assert grad.gamma != 0 and grad.lambda_ != 0 and grad.damping != 0
    assert grad.backtracking == 0
