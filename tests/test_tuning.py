"""Agents that tune their own config, against updates and losses written out."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents, checkpoint, distributions, envs, on_policy, train
from rljax.meta import (
    Bounded,
    Contextual,
    LogHorizon,
    Settings,
    StateDependent,
    conditioned,
    parse_parameter,
    tune,
)
from rljax.types import Agent, Rollout

T, N = 6, 3
ENV = envs.make("CartPole-v1")
SMALL = dict(num_envs=N, rollout_length=T, hidden_sizes=(8,), total_steps=10_000)
MORE = {
    "ppo": dict(num_epochs=2, num_minibatches=2),
    "pqn": dict(num_epochs=2, num_minibatches=2),
    "dqn": dict(capacity=120, batch_size=16, warmup_steps=0, n_step=2),
}


def config_of(name, **changes):
    kept = SMALL | MORE.get(name, {}) | changes
    return agents.get(name).Config(**kept)


def prediction(spec):
    """TD(lambda) with one step of gradient descent: nothing but a value."""
    a2c = agents.get("a2c").make(spec)

    def update(config, state, rollout, key):
        del key
        batch = on_policy.prepare(spec, config, state, rollout, config.lambda_)
        loss = functools.partial(on_policy.value_loss, spec, config, batch=batch)
        grads, metrics = jax.grad(loss, has_aux=True)(state.critic)
        moved = optax.tree.add_scale(state.critic, -config.learning_rate, grads)
        return state._replace(critic=moved, step=state.step + T * N), metrics

    return a2c._replace(update=update, policy=None)


def agent_of(name, spec=ENV.spec):
    return prediction(spec) if name == "prediction" else agents.get(name).make(spec)


def rollouts(number, seed=0):
    """`[number, T, N, ...]` of random numbers; episodes end in both ways."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(number, T + 1, N, 4))
    ends = rng.random((2, number, T, N)) < 0.15
    next_obs = obs[:, 1:] + ends[1][..., None]  # another successor where it is cut
    return Rollout(
        obs=jnp.array(obs[:, :-1]),
        action=jnp.array(rng.integers(2, size=(number, T, N)), jnp.int32),
        reward=jnp.array(rng.normal(size=(number, T, N))),
        terminated=jnp.array(ends[0]),
        truncated=jnp.array(ends[1]),
        next_obs=jnp.array(next_obs),
        extras=jnp.array(rng.uniform(-1.0, -0.4, size=(number, T, N))),
        memory=(),
    )


def as_float64(tree):
    return jax.tree.map(
        lambda x: x.astype("float64") if jnp.result_type(x) == jnp.float32 else x, tree
    )


def keys_of(number):
    return jax.random.split(jax.random.key(7), number)


def history(tuned_agent, config, number, float64=True):
    """States before each of some updates, their metrics, what they were given."""
    state = jax.jit(tuned_agent.init)(config, jax.random.key(0))
    seen = rollouts(number)
    state = as_float64(state) if float64 else state

    @jax.jit
    def step(state, rollout, key):
        state = tuned_agent.observe(config, state, rollout)
        new, metrics = tuned_agent.update(config, state, rollout, key)
        return new, (state, metrics)

    out = []
    for i, key in enumerate(keys_of(number)):
        rollout = jax.tree.map(lambda x, i=i: x[i], seen)
        state, (before, metrics) = step(state, rollout, key)
        out.append((before, metrics, rollout, jax.random.split(key, 4)))
    return out


GAMMA = LogHorizon(0.0, 0.999)
OUTER = dict(outer_gamma=0.97, outer_lambda=0.8)


def gamma_at(raw):
    """Even in the logarithm of the horizon, of a sigmoid."""
    return 1.0 - math.exp(math.log(0.001) / (1.0 + math.exp(-raw)))


def outer_loss(name, config, settings, before, rollout, keys):
    """Function of the agent's state: what the newest rollout says of it."""
    module_spec = ENV.spec
    if name in ("dqn", "pqn", "sarsa"):
        pytest.skip("below")
    outer = dataclasses.replace(config, gamma=settings.outer_gamma)
    args = (module_spec, outer, before.critic.params, rollout, settings.outer_lambda)
    adv, value = on_policy.advantages(*args)

    def policy_score(state):
        policy = on_policy.actor(module_spec, config).apply(state.actor, rollout.obs)
        ratio = jnp.exp(policy.log_prob(rollout.action) - rollout.extras)
        return -jnp.mean(ratio * adv)

    def value_score(state):
        v = on_policy.critic(module_spec, config).apply(state.critic, rollout.obs)
        return 0.5 * jnp.mean((v - adv - value) ** 2)

    return value_score if name == "prediction" else policy_score


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["a2c", "ppo", "impala", "reinforce", "prediction"])
def test_tuned_discount_follows_finite_differences(name, steps, x64):
    """Of the agent's own updates, run again with another discount, and scored."""
    agent = agent_of(name)
    config = config_of("a2c" if name == "prediction" else name, gamma=0.9)
    settings = Settings(num_updates=steps, **OUTER)
    tuned = tune(agent, ENV.spec, {"gamma": GAMMA}, settings)
    past = history(tuned, config, steps + 2)
    before, metrics, rollout, keys = past[-1]
    score = outer_loss(name, config, settings, before, rollout, keys)

    @jax.jit
    def after(gammas):
        state = past[-1 - steps][0].agent
        for gamma, (_, _, seen, keys) in zip(
            gammas, past[-1 - steps : -1], strict=True
        ):
            changed = dataclasses.replace(config, gamma=gamma)
            state, _ = agent.update(changed, state, seen, keys[0])
        return score(state)

    raws = [float(past[i + 1][0].raw["gamma"]) for i in range(-1 - steps, -1)]
    up, down = (
        after(jnp.array([gamma_at(raw + h) for raw in raws])) for h in (1e-5, -1e-5)
    )
    want = (up - down) / 2e-5
    assert abs(want) > 1e-7
    np.testing.assert_allclose(metrics["meta_gamma_gradient"], want, rtol=1e-4)
    middle = after(jnp.array([gamma_at(raw) for raw in raws]))
    np.testing.assert_allclose(metrics["meta_loss"], middle, rtol=1e-6)
    assert metrics["meta_gamma_gradient_sign"] == np.sign(want)
    np.testing.assert_allclose(metrics["meta_gamma_gradient_norm"], abs(want), 1e-4)
