"""AWR: its loss and a step by hand, what it remembers, slopes in its config."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents, envs, replay
from rljax.learners import on_policy
from rljax.types import Box, ObsSpec, Spec

from .. import compiled
from ..agent_case import N, T, differ, learned, observe_and_update, parameters

awr = agents.get("awr")
only_awr = pytest.mark.parametrize("case", ["awr"], indirect=True)
BOX = Spec(ObsSpec.array((3,)), Box((2,), (-1.0, -2.0), (1.0, 6.0)))  # half widths 1, 4


def gaussian_log_prob(mean, std, action):
    density = -0.5 * ((action - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    return density.sum(axis=-1)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_awr_loss_by_hand(kind):
    spec = BOX if kind == "continuous" else envs.make("CartPole-v1").spec
    config = awr.Config(hidden_sizes=(8,), temperature=0.4, max_weight=3.0)
    net, obs = on_policy.actor(spec, config), compiled.normal(1, 12, *spec.obs_shape)
    params = compiled.scaled(compiled.init(net, jax.random.key(0), obs), 10, -0.05)
    adv = np.linspace(-1.0, 1.0, 12, dtype=np.float32)  # seven below the cap

    @jax.jit
    def found(params):
        policy = net.apply(params, obs)
        action = policy.sample(seed=jax.random.key(2))
        batch = on_policy.Minibatch(
            obs=obs, action=action, log_prob=adv, advantage=adv, target=adv
        )
        out = awr.policy_loss(spec, config, params, batch)
        continuous = kind == "continuous"
        seen = (policy.mean(), policy.stddev()) if continuous else (policy.probs,)
        return out, seen, action

    (loss, metrics), seen, action = jax.tree.map(np.array, found(params))
    if kind == "continuous":
        log_prob = gaussian_log_prob(*seen, action)
    else:
        log_prob = np.log(seen[0][np.arange(12), action])
    weights = [min(np.exp(x / 0.4), 3.0) for x in adv]
    np.testing.assert_allclose(loss, -np.mean(weights * log_prob), rtol=1e-5)
    assert metrics["policy_loss"] == loss


@pytest.fixture(scope="module")
def observe(case):
    return jax.jit(case.agent.observe)


def returns_by_hand(case, config, critic, steps):
    """Lambda-returns of sequences and values of their states, `[T, B]`."""
    network = on_policy.critic(case.spec, config)
    value = np.array(compiled.apply(network, critic, steps.obs))
    next_value = np.array(compiled.apply(network, critic, steps.next_obs))
    returns = np.zeros_like(value)
    for b in range(value.shape[1]):
        later = next_value[-1, b]  # what follows the last step is its value alone
        for t in reversed(range(len(value))):
            if steps.truncated[t, b]:
                later = next_value[t, b]
            mixed = (1 - config.lambda_) * next_value[t, b] + config.lambda_ * later
            going_on = config.gamma * (1.0 - steps.terminated[t, b])
            later = returns[t, b] = steps.reward[t, b] + going_on * mixed
    return returns, value


@only_awr
@pytest.mark.parametrize("normalized", [False, True])
def test_awr_steps_along_the_gradients_by_hand(
    case, update, observe, state, rollout, normalized
):
    """Returns by the critic before its step, advantages by the critic after it."""
    config = dataclasses.replace(
        case.config,
        gamma=0.9,
        lambda_=0.7,
        temperature=0.5,
        max_weight=4.0,
        num_epochs=1,
        num_minibatches=1,
        normalize_advantages=normalized,
        learning_rate=0.03,
    )
    rollout = jax.tree.map(np.array, rollout)
    state = observe(config, state, rollout)
    later = rollout._replace(reward=-rollout.reward, obs=rollout.obs + np.float32(0.5))
    key = jax.random.key(4)

    @jax.jit
    def drawn(buffer, later, key):
        buffer, key = replay.add(buffer, later), jax.random.split(key, 3)[0]
        return replay.sample_sequences(
            buffer, key, config.batch_size, length=config.sequence_length
        )[1]

    steps = jax.tree.map(np.array, drawn(state.replay, later, key))
    assert steps.reward.shape == (config.sequence_length, config.batch_size)
    assert steps.terminated.any() and (steps.truncated & ~steps.terminated).any()
    old_returns, _ = returns_by_hand(case, config, state.critic, steps)

    def value_loss(params):
        v = on_policy.critic(case.spec, config).apply(params, steps.obs)
        return 0.5 * jnp.mean((v - old_returns) ** 2)

    @functools.partial(jax.jit, static_argnums=0)
    def stepped(loss, params):
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        optimizer = optax.chain(clip, optax.adam(config.learning_rate, eps=1e-5))
        value, grads = jax.value_and_grad(loss)(params)
        updates, _ = optimizer.update(grads, optimizer.init(params))
        return optax.apply_updates(params, updates), value

    critic, old_value_loss = stepped(value_loss, state.critic)
    returns, value = returns_by_hand(case, config, critic, steps)
    adv = returns - value
    if normalized:
        adv = (adv - adv.mean()) / adv.std()
    weights = np.minimum(np.exp(adv / config.temperature), config.max_weight)
    assert (weights == config.max_weight).any() and np.ptp(weights) > 1

    def policy_loss(params):
        policy = on_policy.actor(case.spec, config).apply(params, steps.obs)
        return -jnp.mean(weights * policy.log_prob(steps.action))

    actor, old_policy_loss = stepped(policy_loss, state.actor)
    new, metrics = update(config, state, later, key)
    chex.assert_trees_all_close(new.critic, critic, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(new.actor, actor, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["policy_loss"], old_policy_loss, 1e-4)
    np.testing.assert_allclose(metrics["value_loss"], old_value_loss, 1e-4)
    assert new.step == 1


@only_awr
def test_awr_learns_from_what_the_replay_holds(case, update, observe, state, rollout):
    """From rollouts of the past, whichever policy took them, until they are gone."""
    rollout = jax.tree.map(np.array, rollout)
    rollouts = case.config.capacity // (T * N)
    other = rollout._replace(reward=rollout.reward + np.float32(1.0))

    def after(first, times):
        before = observe(case.config, state, first)
        for i in range(times - 1):
            between = rollout._replace(reward=rollout.reward * np.float32(i))
            before = observe(case.config, before, between)
        return learned(update(case.config, before, rollout, jax.random.key(1))[0])

    assert differ(after(rollout, rollouts - 1), after(other, rollouts - 1))
    same = after(rollout, rollouts), after(other, rollouts)
    chex.assert_trees_all_equal(*same)
    unlikely = rollout._replace(extras=rollout.extras - np.float32(5.0))
    chex.assert_trees_all_equal(after(rollout, 1), after(unlikely, 1))


@only_awr
def test_awr_learning_rate_falls_to_zero(case, update, state, rollout):
    end = state._replace(step=jnp.int32(case.config.total_steps // (T * N)))
    new, _ = update(case.config, end, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(parameters(new), parameters(state))


@only_awr
def test_awr_optimisers_go_on_where_they_were(case, update, state, rollout):
    for count in (6, 12):  # three minibatches in each of two epochs
        state, _ = update(case.config, state, rollout, jax.random.key(count))
        for opt_state in (state.actor_opt, state.critic_opt):
            assert optax.tree.get(opt_state, "count") == count


@only_awr
def test_awr_is_differentiable_in_its_config(case, state, rollout, x64):
    """Slopes of both networks after several steps are those of finite differences."""

    def double(x):
        return jnp.array(np.array(x, float)) if x.dtype == jnp.float32 else x

    state, rollout = jax.tree.map(double, (state, rollout))
    config = dataclasses.replace(
        case.config,
        temperature=0.7,
        max_weight=3.0,
        learning_rate=0.01,
        anneal=False,  # progress is in float32
    )

    def change(config):
        new, _ = observe_and_update(
            case.agent, config, state, rollout, jax.random.key(0)
        )
        flat, old = (ravel_pytree(parameters(x))[0] for x in (new, state))
        return 1e3 * jnp.sum(jnp.sin(flat - old))

    names = ("learning_rate", "gamma", "lambda_", "temperature", "max_weight")
    found = compiled.slopes(change, config, names, 1e-7)
    for name, (slope, difference) in found.items():
        assert abs(difference) > 1e-3, name
        np.testing.assert_allclose(slope, difference, rtol=1e-4, err_msg=name)
