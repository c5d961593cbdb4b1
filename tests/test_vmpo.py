"""V-MPO: its parts and a step by hand, dual variables and target."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents, envs, on_policy
from rljax.types import Box, Spec

from .agent_case import N, T, differ

vmpo = agents.get("vmpo")
STEPS = (1e-2, -1e-2)  # of finite differences
only_vmpo = pytest.mark.parametrize("case", ["vmpo"], indirect=True)
BOX = Spec((3,), "float32", Box((2,), (-1.0, -2.0), (1.0, 6.0)))  # half widths 1, 4


def with_other_target(state):
    """The target is another policy, and all dual variables differ."""
    target = jax.tree.map(lambda x: 20 * x + 0.1, state.target_actor)
    multipliers = tuple(x + i + 0.5 for i, x in enumerate(state.duals.multipliers))
    duals = vmpo.Duals(state.duals.temperature - 0.3, multipliers)
    return state._replace(target_actor=target, duals=duals)


def weights_by_hand(adv, temperature):
    used = adv >= np.sort(adv)[len(adv) // 2]
    weights = np.where(used, np.exp(adv / temperature), 0.0)
    return weights / weights.sum(), np.log(weights[used].mean())


def losses_by_hand(config, duals, policy, old, batch, kls, epsilons):
    """Losses of actor and dual variables, as the paper's equations 3 to 5."""
    temperature = jnp.exp(duals.temperature)
    used = batch.advantage >= jnp.sort(batch.advantage)[len(batch.advantage) // 2]
    grown = jnp.where(used, jnp.exp(batch.advantage / temperature), 0.0)
    log_prob = policy.log_prob(batch.action)
    actor_loss = -jnp.sum(grown / grown.sum() * log_prob)
    dual_loss = temperature * (config.epsilon + jnp.log(grown.sum() / used.sum()))
    for kl, multiplier, epsilon in zip(kls, duals.multipliers, epsilons, strict=True):
        actor_loss += jnp.exp(multiplier) * kl.mean()
        dual_loss += jnp.exp(multiplier) * (epsilon - kl.mean())
    return actor_loss, dual_loss


def gaussian_kls(old, policy):
    """Of means in the old covariance, and of covariances; appendix C."""
    mean, std = (np.array(x) for x in (policy.mean(), policy.stddev()))
    old_mean, old_std = (np.array(x) for x in (old.mean(), old.stddev()))
    apart = 0.5 * (((mean - old_mean) / old_std) ** 2).sum(axis=-1)
    ratio = (old_std / std) ** 2
    return apart, 0.5 * (ratio - 1 - np.log(ratio)).sum(axis=-1)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_vmpo_parts_by_hand(kind):
    spec = BOX if kind == "continuous" else envs.make("CartPole-v1").spec
    config = vmpo.Config(hidden_sizes=(8,), epsilon_mean=0.2, epsilon_stddev=0.3)
    state = with_other_target(vmpo.init(spec, config, jax.random.key(0)))
    obs = jax.random.normal(jax.random.key(1), (12, *spec.obs_shape))
    network = on_policy.actor(spec, config)
    params = jax.tree.map(lambda x: 10 * x - 0.05, state.actor)
    policy, old = (network.apply(p, obs) for p in (params, state.target_actor))
    action = old.sample(seed=jax.random.key(2))
    adv = jax.random.normal(jax.random.key(3), (12,))
    batch = on_policy.Batch(obs, action, old.log_prob(action), adv, adv)
    if kind == "continuous":
        want_kls, epsilons = gaussian_kls(old, policy), (0.2, 0.3)
    else:
        probs, old_probs = np.array(policy.probs), np.array(old.probs)
        kl = (old_probs * np.log(old_probs / probs)).sum(axis=-1)
        want_kls, epsilons = (kl,), (config.epsilon_policy,)
    args = (params, state.duals, state.target_actor, batch)
    out, kls = vmpo.parts(spec, config, *args)
    for got, want in zip(kls, want_kls, strict=True):
        assert want.max() > 1e-3
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-6)
    args = (config, state.duals, policy, old, batch, want_kls, epsilons)
    actor_loss, dual_loss = losses_by_hand(*args)
    got = jnp.mean(out.policy_loss + out.kl_loss)
    np.testing.assert_allclose(got, actor_loss, rtol=1e-4)
    got = out.temperature_loss + out.alpha_loss.mean()
    np.testing.assert_allclose(got, dual_loss, rtol=1e-4)


@only_vmpo
def test_vmpo_steps_along_the_gradients_by_hand(case, update, state, rollout):
    spec, config, state = case.spec, case.config, with_other_target(state)
    batch = on_policy.prepare(spec, config, state, rollout, config.lambda_)
    network = on_policy.actor(spec, config)
    old = network.apply(state.target_actor, batch.obs)

    def both(params, duals):
        policy = network.apply(params, batch.obs)
        kls = ((old.probs * jnp.log(old.probs / policy.probs)).sum(axis=-1),)
        args = (config, duals, policy, old, batch, kls, (config.epsilon_policy,))
        return losses_by_hand(*args)

    new, _ = update(config, state, rollout, jax.random.key(0))
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    for i, (name, rate) in enumerate(
        (("actor", config.learning_rate), ("duals", config.dual_learning_rate))
    ):
        grad = jax.jit(jax.grad(lambda *args, i=i: both(*args)[i], argnums=i))
        optimizer = optax.chain(clip, optax.adam(rate, eps=1e-5))
        params = getattr(state, name)
        grads = grad(state.actor, state.duals)
        updates, _ = optimizer.update(grads, optimizer.init(params))
        want = optax.apply_updates(params, updates)
        chex.assert_trees_all_close(getattr(new, name), want, rtol=1e-3, atol=1e-6)
    assert new.step == T * N and differ(new.critic, state.critic)


@only_vmpo
def test_vmpo_weights_diverge_by_the_bound_in_the_end(case, update, state, rollout):
    config = dataclasses.replace(
        case.config, learning_rate=1e-12, dual_learning_rate=0.1, anneal=False
    )
    batch = on_policy.prepare(case.spec, config, state, rollout, config.lambda_)
    for _ in range(200):
        state, _ = update(config, state, rollout, jax.random.key(0))
    temperature = np.exp(state.duals.temperature)
    weights, _ = weights_by_hand(np.array(batch.advantage), temperature)
    weights = weights[weights > 0]
    divergence = (weights * np.log(weights * len(weights))).sum()
    np.testing.assert_allclose(divergence, config.epsilon, rtol=0.05)


@only_vmpo
@pytest.mark.parametrize("bound", [1e-6, 1.0])
def test_vmpo_multiplier_grows_where_the_policy_is_too_far(
    case, update, state, rollout, bound
):
    state = with_other_target(state)
    config = dataclasses.replace(case.config, epsilon_policy=bound)
    new, metrics = update(config, state, rollout, jax.random.key(0))
    assert 1e-6 < metrics["kl"] < 1.0
    (old_multiplier,), (multiplier,) = state.duals.multipliers, new.duals.multipliers
    assert (multiplier > old_multiplier) == (bound < metrics["kl"])


@only_vmpo
def test_vmpo_target_is_renewed_every_few_updates(case, update, state, rollout):
    for count in range(1, 6):  # the rate is 0 after six
        before = state.target_actor
        state, _ = update(case.config, state, rollout, jax.random.key(0))
        assert state.step == count * T * N and case.config.target_period == 2
        if count % 2 == 0:
            chex.assert_trees_all_equal(state.target_actor, state.actor)
        else:
            chex.assert_trees_all_equal(state.target_actor, before)
            assert differ(state.target_actor, state.actor)


@only_vmpo
def test_vmpo_acts_by_the_target_and_is_judged_by_the_learner(case, state):
    turned = jax.tree.map(lambda x: -x, state.actor)
    target = jax.tree.map(lambda x: 5 * x, state.actor)
    state = state._replace(actor=turned, target_actor=target)
    obs = jax.random.normal(jax.random.key(1), (200, 4))
    act, key = case.agent.act, jax.random.key(0)
    network = on_policy.actor(case.spec, case.config)
    action, _, log_prob = act(case.config, state, (), obs, key, True)
    want = network.apply(target, obs).log_prob(action)
    np.testing.assert_allclose(log_prob, want, rtol=1e-5)
    greedy, *_ = act(case.config, state, (), obs, key, False)
    want = network.apply(turned, obs).logits.argmax(axis=-1)
    np.testing.assert_array_equal(greedy, jnp.asarray(want))


@only_vmpo
def test_vmpo_is_differentiable_in_its_config(case, state, rollout):
    """Through two updates: the first one's dual variables weigh the second one's."""

    def change(config):
        new = with_other_target(state)
        for seed in range(2):
            new, _ = case.agent.update(config, new, rollout, jax.random.key(seed))
        flat, old = (ravel_pytree(x.actor)[0] for x in (new, state))
        return 1e3 * jnp.sum((flat - old) ** 2)

    config = dataclasses.replace(case.config, dual_learning_rate=0.1)
    grad = jax.jit(jax.grad(change))(config)
    for name in ("learning_rate", "lambda_", "epsilon", "epsilon_policy"):
        assert np.isfinite(getattr(grad, name)) and getattr(grad, name) != 0, name
    fn = jax.jit(change)
    for name in ("gamma", "dual_learning_rate"):
        at = getattr(config, name)
        up, down = (fn(dataclasses.replace(config, **{name: at + x})) for x in STEPS)
        want = (up - down) / (STEPS[0] - STEPS[1])
        np.testing.assert_allclose(getattr(grad, name), want, rtol=0.05, err_msg=name)
