"""V-MPO: its parts and a step by hand, dual variables and target."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents, envs
from rljax.learners import on_policy
from rljax.types import Box, ObsSpec, Spec

from .. import compiled
from ..agent_case import differ

vmpo = agents.get("vmpo")
only_vmpo = pytest.mark.parametrize("case", ["vmpo"], indirect=True)
BOX = Spec(ObsSpec.array((3,)), Box((2,), (-1.0, -2.0), (1.0, 6.0)))  # half widths 1, 4


def with_other_target(state):
    """The target is another policy, and all dual variables differ."""
    target = compiled.scaled(state.target_actor, 20, 0.1)
    multipliers = (
        np.array(x) + np.float32(i + 0.5) for i, x in enumerate(state.duals.multipliers)
    )
    temperature = np.array(state.duals.temperature) - np.float32(0.3)
    duals = vmpo.Duals(temperature, tuple(multipliers))
    return state._replace(target_actor=target, duals=duals)


def weights_by_hand(adv, temperature):
    used = adv >= np.sort(adv)[len(adv) // 2]
    weights = np.where(used, np.exp(adv / temperature), 0.0)
    return weights / weights.sum(), np.log(weights[used].mean())


def losses_by_hand(config, duals, log_prob, advantage, kls, epsilons):
    """Losses of actor and dual variables, as the paper's equations 3 to 5."""
    temperature = jnp.exp(duals.temperature)
    used = advantage >= jnp.sort(advantage)[len(advantage) // 2]
    grown = jnp.where(used, jnp.exp(advantage / temperature), 0.0)
    actor_loss = -jnp.sum(grown / grown.sum() * log_prob)
    dual_loss = temperature * (config.epsilon + jnp.log(grown.sum() / used.sum()))
    for kl, multiplier, epsilon in zip(kls, duals.multipliers, epsilons, strict=True):
        actor_loss += jnp.exp(multiplier) * kl.mean()
        dual_loss += jnp.exp(multiplier) * (epsilon - kl.mean())
    return actor_loss, dual_loss


def gaussian_kls(old_mean, old_std, mean, std):
    """Of means in the old covariance, and of covariances; appendix C."""
    apart = 0.5 * (((mean - old_mean) / old_std) ** 2).sum(axis=-1)
    ratio = (old_std / std) ** 2
    return apart, 0.5 * (ratio - 1 - np.log(ratio)).sum(axis=-1)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_vmpo_parts_by_hand(kind):
    spec = BOX if kind == "continuous" else envs.make("CartPole-v1").spec
    config = vmpo.Config(hidden_sizes=(8,), epsilon_mean=0.2, epsilon_stddev=0.3)
    init = jax.jit(functools.partial(vmpo.init, spec))
    state = with_other_target(init(config, jax.random.key(0)))
    obs, adv = compiled.normal(1, 12, *spec.obs_shape), compiled.normal(3, 12)
    network = on_policy.actor(spec, config)
    params = compiled.scaled(state.actor, 10, -0.05)

    @jax.jit
    def parts(params, duals, target_actor):
        policy, old = (network.apply(p, obs) for p in (params, target_actor))
        action = old.sample(seed=jax.random.key(2))
        batch = on_policy.Minibatch(
            obs=obs,
            action=action,
            log_prob=old.log_prob(action),
            advantage=adv,
            target=adv,
        )
        out, kls = vmpo.parts(
            spec,
            config,
            params,
            variables=duals,
            target_params=target_actor,
            batch=batch,
        )
        actor_loss = jnp.mean(out.policy_loss + out.kl_loss)
        dual_loss = out.temperature_loss + out.alpha_loss.mean()
        seen = [
            (x.mean(), x.stddev()) if kind == "continuous" else (x.probs,)
            for x in (old, policy)
        ]
        return (actor_loss, dual_loss), kls, sum(seen, ()), policy.log_prob(action)

    found = parts(params, state.duals, state.target_actor)
    got_losses, kls, seen, log_prob = jax.tree.map(np.array, found)
    if kind == "continuous":
        want_kls, epsilons = gaussian_kls(*seen), (0.2, 0.3)
    else:
        old_probs, probs = seen
        kl = (old_probs * np.log(old_probs / probs)).sum(axis=-1)
        want_kls, epsilons = (kl,), (config.epsilon_policy,)
    for got, want in zip(kls, want_kls, strict=True):
        assert want.max() > 1e-3
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-6)
    by_hand = jax.jit(losses_by_hand)
    want_losses = by_hand(config, state.duals, log_prob, adv, want_kls, epsilons)
    np.testing.assert_allclose(got_losses, want_losses, rtol=1e-4)


@only_vmpo
def test_vmpo_steps_along_the_gradients_by_hand(case, update, state, rollout):
    spec, config, state = case.spec, case.config, with_other_target(state)
    network = on_policy.actor(spec, config)

    @jax.jit
    def stepped(state, rollout):
        batch = on_policy.prepare(
            spec, config, state, rollout=rollout, lambda_=config.lambda_
        )
        old = network.apply(state.target_actor, batch.obs)

        def both(params, duals):
            policy = network.apply(params, batch.obs)
            kls = ((old.probs * jnp.log(old.probs / policy.probs)).sum(axis=-1),)
            log_prob, epsilons = policy.log_prob(batch.action), (config.epsilon_policy,)
            args = (config, duals, log_prob, batch.advantage, kls, epsilons)
            return losses_by_hand(*args)

        clip = optax.clip_by_global_norm(config.max_grad_norm)
        rates, new = (config.learning_rate, config.dual_learning_rate), []
        for i, params in enumerate((state.actor, state.duals)):
            loss = functools.partial(lambda i, *args: both(*args)[i], i)
            grads = jax.grad(loss, argnums=i)(state.actor, state.duals)
            optimizer = optax.chain(clip, optax.adam(rates[i], eps=1e-5))
            updates, _ = optimizer.update(grads, optimizer.init(params))
            new.append(optax.apply_updates(params, updates))
        return new

    new, _ = update(config, state, rollout, jax.random.key(0))
    got, want = [new.actor, new.duals], stepped(state, rollout)
    chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-6)
    assert new.step == 1 and differ(new.critic, state.critic)


@only_vmpo
def test_vmpo_weights_diverge_by_the_bound_in_the_end(case, update, state, rollout):
    config = dataclasses.replace(
        case.config, learning_rate=1e-12, dual_learning_rate=0.1, anneal=False
    )
    prepare = jax.jit(functools.partial(on_policy.prepare, case.spec, config))
    batch = prepare(state, rollout=rollout, lambda_=config.lambda_)
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
        assert state.step == count and case.config.target_period == 2
        if count % 2 == 0:
            chex.assert_trees_all_equal(state.target_actor, state.actor)
        else:
            chex.assert_trees_all_equal(state.target_actor, before)
            assert differ(state.target_actor, state.actor)


@only_vmpo
def test_vmpo_target_is_renewed_also_beyond_int32(case, update, state, rollout):
    """The greatest int32 is odd."""
    late = with_other_target(state)._replace(step=np.int32(2**31 - 1))
    state, _ = update(case.config, late, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(state.target_actor, state.actor)


@only_vmpo
def test_vmpo_acts_by_the_target_and_is_judged_by_the_learner(case, state):
    turned, target = (compiled.scaled(state.actor, scale) for scale in (-1, 5))
    state = state._replace(actor=turned, target_actor=target)
    obs = compiled.normal(1, 200, 4)
    act, key = jax.jit(case.agent.act, static_argnums=5), jax.random.key(0)
    network = on_policy.actor(case.spec, case.config)
    action, _, log_prob = act(case.config, state, (), obs, key, True)
    want = compiled.log_prob(network, target, obs, action)
    np.testing.assert_allclose(log_prob, want, rtol=1e-5)
    greedy, *_ = act(case.config, state, (), obs, key, False)
    want = np.array(compiled.apply(network, turned, obs).logits).argmax(axis=-1)
    np.testing.assert_array_equal(greedy, want)


@only_vmpo
def test_vmpo_is_differentiable_in_its_config(case, state, rollout):
    """Through two updates: the first one's dual variables weigh the second one's."""

    def change(config):
        def step(state, key):
            return case.agent.update(config, state, rollout, key)[0], None

        keys = jax.random.split(jax.random.key(0), 2)
        new, _ = jax.lax.scan(step, with_other_target(state), keys)
        flat, old = (ravel_pytree(x.actor)[0] for x in (new, state))
        return 1e3 * jnp.sum((flat - old) ** 2)

    config = dataclasses.replace(case.config, dual_learning_rate=0.1)
    checked = ("gamma", "dual_learning_rate")
    others = ("learning_rate", "lambda_", "epsilon", "epsilon_policy")
    found = compiled.slopes(change, config, checked + others, 1e-2)
    for name, (slope, difference) in found.items():
        assert np.isfinite(slope) and slope != 0, name
        if name in checked:
            np.testing.assert_allclose(slope, difference, rtol=0.05, err_msg=name)
