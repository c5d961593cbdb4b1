"""TRPO: its step against a dense Fisher matrix, and the line search."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents
from rljax.autodiff import fisher_vp
from rljax.learners import on_policy

from .. import compiled
from ..agent_case import N, T, differ

only_trpo = pytest.mark.parametrize("case", ["trpo"], indirect=True)


@pytest.fixture(scope="module")
def problem(case, state, rollout):
    """The module, spec, config, the actor's parameters, a batch, their policy."""
    spec, config = case.spec, case.config
    rollout = freshly_acted(spec, config, state, rollout)
    prepare = jax.jit(functools.partial(on_policy.prepare, spec, config))
    batch = jax.tree.map(np.array, prepare(state, rollout=rollout, lambda_=0.95))
    return case.module, spec, config, state.actor, batch


def freshly_acted(spec, config, state, rollout):
    """The rollout with the actions' probabilities under the current policy."""
    args = (state.actor, rollout.obs, rollout.action)
    log_prob = compiled.log_prob(on_policy.actor(spec, config), *args)
    return rollout._replace(extras=log_prob)


@functools.partial(jax.jit, static_argnums=0)
def natural_step(spec, config, params, batch):
    natural_step = agents.get("trpo").natural_step
    return natural_step(spec, config, params, batch=batch, max_kl=config.max_kl)


@functools.partial(jax.jit, static_argnums=0)
def line_search(spec, config, params, step, batch):
    line_search = agents.get("trpo").line_search
    return line_search(
        spec, config, params, step=step, batch=batch, max_kl=config.max_kl
    )


def divergence(spec, config, old, new, batch):
    net = on_policy.actor(spec, config)
    logits = (np.array(compiled.apply(net, p, batch.obs).logits) for p in (old, new))
    before, after = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits)
    return (np.exp(before) * (before - after)).sum(axis=-1).mean()


def moved(params, scale, step):
    return jax.tree.map(lambda x, y: np.array(x) + scale * np.array(y), params, step)


@only_trpo
@pytest.mark.parametrize("stride", [1, 3])
def test_trpo_step_is_that_of_the_dense_fisher_matrix(problem, stride):
    _, spec, config, params, batch = problem
    config = dataclasses.replace(
        config, damping=0.3, cg_iterations=100, fisher_stride=stride
    )
    flat, unravel = ravel_pytree(params)
    net = on_policy.actor(spec, config)

    @jax.jit
    def log_probs_and_jacobian(flat):
        def log_probs(flat):
            logits = net.apply(unravel(flat), batch.obs).logits
            return (jax.nn.log_softmax(logits),) * 2

        jacobian, value = jax.jacobian(log_probs, has_aux=True)(flat)  # [B, A, P]
        return value, jacobian

    log_probs, jacobian = (np.array(x) for x in log_probs_and_jacobian(flat))
    probs = np.exp(log_probs)
    some = (probs[::stride], jacobian[::stride], jacobian[::stride])
    fisher = np.einsum("ba,bap,baq->pq", *some) / len(some[0])
    chosen = jacobian[np.arange(len(probs)), batch.action]
    gradient = (batch.advantage[:, None] * chosen).mean(axis=0)
    matrix = np.array(fisher + 0.3 * np.eye(len(flat)), np.float64)
    x = np.linalg.solve(matrix, np.array(gradient, np.float64))
    want = np.sqrt(2 * config.max_kl / (x @ matrix @ x)) * x
    step = jax.tree.map(np.array, natural_step(spec, config, params, batch))
    np.testing.assert_allclose(ravel_pytree(step)[0], want, rtol=2e-3, atol=1e-5)
    # Without much damping the model's divergence is the limit.
    config = dataclasses.replace(config, damping=1e-4)
    step = natural_step(spec, config, params, batch)

    @jax.jit
    def quadratic(step):
        product = fisher_vp(lambda p: net.apply(p, batch.obs[::stride]), params, step)
        return 0.5 * optax.tree.vdot(step, product)

    quadratic = quadratic(step)
    np.testing.assert_allclose(quadratic, config.max_kl, rtol=0.05)


@only_trpo
@pytest.mark.parametrize("stretch", [0.5, 1.0, 3.0, 30.0])
def test_trpo_takes_the_longest_step_that_is_allowed(problem, stretch):
    trpo, spec, config, params, batch = problem
    step = compiled.scaled(natural_step(spec, config, params, batch), stretch)
    surrogate = jax.jit(functools.partial(trpo.surrogate, spec, config))
    before = surrogate(params, batch)
    want = None
    for tries in range(config.max_backtracks):
        new = moved(params, 0.8**tries, step)
        inside = divergence(spec, config, params, new, batch) <= config.max_kl
        if inside and surrogate(new, batch) > before:
            want = tries
            break
    search = jax.tree.map(np.array, line_search(spec, config, params, step, batch))
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
    _, spec, config, params, batch = problem
    back = compiled.scaled(natural_step(spec, config, params, batch), -1.0)
    assert not line_search(spec, config, params, back, batch).accepted
    nothing = batch._replace(advantage=np.zeros_like(batch.advantage))
    step = natural_step(spec, config, params, nothing)
    chex.assert_trees_all_equal(step, jax.tree.map(np.zeros_like, params))


@only_trpo
def test_trpo_updates_keep_the_trust_region(case, update, state, rollout):
    spec, config = case.spec, case.config
    for seed in range(5):
        rollout = freshly_acted(spec, config, state, rollout)
        new, metrics = update(config, state, rollout, jax.random.key(seed))
        kl = divergence(spec, config, state.actor, new.actor, rollout)
        np.testing.assert_allclose(metrics["kl"], kl, rtol=2e-2, atol=1e-6)
        progress = np.array(state.step) * T * N / config.total_steps
        assert 0 < metrics["kl"] <= config.max_kl * (1 - progress)
        assert metrics["surrogate_gain"] > 0 and metrics["step_scale"] <= 1
        assert differ(new.actor, state.actor)
        state = new


@only_trpo
def test_trpo_update_without_an_accepted_step_keeps_the_policy(
    case, state, rollout, monkeypatch
):
    def too_far(*args, **keywords):
        return optax.tree.scale(30.0, natural_step(*args, **keywords))

    natural_step = case.module.natural_step
    monkeypatch.setattr(case.module, "natural_step", too_far)
    rollout = freshly_acted(case.spec, case.config, state, rollout)
    update = jax.jit(functools.partial(case.agent.update, case.config))
    new, metrics = update(state, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(new.actor, state.actor)
    assert differ(new.critic, state.critic)
    names = ("kl", "surrogate_gain", "step_scale")
    assert [metrics[name] for name in names] == [0.0, 0.0, 0.0]


@only_trpo
def test_trpo_is_differentiable_in_its_config(case, update, state, rollout):
    """The step grows as the root of `max_kl`; `backtracking` only chooses."""
    rollout = freshly_acted(case.spec, case.config, state, rollout)

    def actor(config):
        new = case.agent.update(config, state, rollout, jax.random.key(0))[0]
        return ravel_pytree(new.actor)[0]

    @jax.jit
    def change_and_slopes(config):
        out, pull = jax.vjp(actor, config)
        change = out - ravel_pytree(state.actor)[0]
        return change, pull(change)[0]

    change, grad = change_and_slopes(case.config)
    want = change @ change / (2 * case.config.max_kl)
    np.testing.assert_allclose(grad.max_kl, want, rtol=1e-4)
    assert grad.gamma != 0 and grad.lambda_ != 0 and grad.damping != 0
    assert grad.backtracking == 0
