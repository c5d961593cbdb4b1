"""Agents of fresh rollouts: advantages, losses, a step by hand; what they learn."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import agents, envs
from rljax.learners import on_policy
from rljax.running import train
from rljax.types import Rollout

from .. import compiled, probe_envs
from ..agent_case import N, T, differ, parameters

LAMBDAS = {"a2c": 0.8, "reinforce": 1.0}
only_these = pytest.mark.parametrize("case", LAMBDAS, indirect=True)


def by_hand(case, config, state, rollout, lambda_):
    """Advantages and values `[T, N]`, in plain loops."""
    value, next_value = (
        np.array(compiled.apply(on_policy.critic(case.spec, config), state.critic, x))
        for x in (rollout.obs, rollout.next_obs)
    )
    rollout = jax.tree.map(np.array, rollout)
    adv = np.zeros((T + 1, N))
    for t in reversed(range(T)):
        for n in range(N):
            terminated, truncated = rollout.terminated[t, n], rollout.truncated[t, n]
            bootstrap = 0.0 if terminated else 0.9 * next_value[t, n]
            later = 0.0 if terminated or truncated else 0.9 * lambda_ * adv[t + 1, n]
            adv[t, n] = rollout.reward[t, n] + bootstrap - value[t, n] + later
    return adv[:T], value


@only_these
@pytest.mark.parametrize("normalized", [False, True])
def test_one_step_along_the_gradients_by_hand(case, update, state, rollout, normalized):
    spec, entropy_cost, lambda_ = case.spec, 0.3, LAMBDAS[case.name]
    changes = {"lambda_": lambda_} if case.name == "a2c" else {}
    config = dataclasses.replace(
        case.config,
        gamma=0.9,
        entropy_cost=entropy_cost,
        adam_epsilon=1e-2,
        normalize_advantages=normalized,
        **changes,
    )
    adv, value = by_hand(case, config, state, rollout, lambda_)
    adv, value = adv.astype(np.float32), value.astype(np.float32)
    target = adv + value
    if normalized:
        adv = (adv - adv.mean()) / adv.std()

    def policy_loss(params, adv):
        policy = on_policy.actor(spec, config).apply(params, rollout.obs)
        per_step = policy.log_prob(rollout.action) * adv
        return -(per_step + entropy_cost * policy.entropy()).mean()

    def value_loss(params, target):
        v = on_policy.critic(spec, config).apply(params, rollout.obs)
        return 0.5 * ((v - target) ** 2).mean()

    new, metrics = update(config, state, rollout, jax.random.key(0))
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adam(config.learning_rate, eps=config.adam_epsilon),
    )

    @jax.jit
    def stepped(actor, critic, adv, target):
        _, actor_grads = jax.value_and_grad(policy_loss)(actor, adv)
        loss, critic_grads = jax.value_and_grad(value_loss)(critic, target)
        new = []
        for params, grads in ((actor, actor_grads), (critic, critic_grads)):
            updates, _ = optimizer.update(grads, optimizer.init(params))
            new.append(optax.apply_updates(params, updates))
        return new, loss

    want, loss = stepped(state.actor, state.critic, adv, target)
    got = [new.actor, new.critic]
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["value_loss"], loss, 1e-5)
    assert new.step == 1


@only_these
def test_the_learning_rate_falls_to_zero(case, update, state, rollout):
    end = state._replace(step=jnp.int32(case.config.total_steps // (T * N)))
    new, _ = update(case.config, end, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    config = dataclasses.replace(case.config, anneal=False)
    new, _ = update(config, end, rollout, jax.random.key(0))
    assert differ(new.actor, state.actor)


def test_fit_takes_no_step_after_one_refused():
    """Also where later ones would be allowed: the third of five is not."""
    batch, index = jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.arange(5)[:, None]

    def loss(flat, _, x):
        return jnp.sum(flat * x), {"x": x.sum()}

    @jax.jit
    def fit(index):
        optimizer = optax.identity()
        start = (jnp.zeros(1), optimizer.init(jnp.zeros(1)))
        return on_policy.fit(
            loss,
            start,
            batch,
            index=index,
            optimizer=optimizer,
            rate=1.0,
            going_on=lambda metrics: metrics["x"] != 4.0,
        )

    (flat, _), metrics = fit(index)
    np.testing.assert_allclose(flat, [-3.0])
    np.testing.assert_allclose(metrics["x"], 7 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["steps_taken"], 2 / 5)


def test_a_derivative_of_fit_keeps_gradients_and_few_starts():
    """Not the start of each step, nor what its loss computes, which is much more."""
    size, examples = 64, 512

    def loss(flat, _, x):
        out = jnp.tanh(x[:, None] * flat)  # [B, size]: what is not to be kept
        return jnp.mean(jnp.square(out)), {}

    def end(rate, index):
        optimizer = optax.scale_by_adam()
        start = (jnp.ones(size), optimizer.init(jnp.ones(size)))
        batch = jnp.linspace(0.1, 1.0, examples)
        fitted, _ = on_policy.fit(
            loss, start, batch, index=index, optimizer=optimizer, rate=rate
        )
        return fitted[0].sum()

    def derivative(steps):
        index = jnp.zeros((steps, examples), jnp.int32)
        return jax.jit(jax.grad(end)).trace(0.1, index)

    def memory(steps):
        compiled = derivative(steps).lower().compile()
        return compiled.memory_analysis().temp_size_in_bytes

    of_each_start = 3 * 4 * size  # bytes: parameters and Adam's two averages
    assert memory(256) - memory(64) < 2 / 3 * 192 * of_each_start
    assert str(derivative(16).jaxpr).count("= tanh") == 2  # there, and on the way back


REPLAY = dict(capacity=1_024, batch_size=32, sequence_length=8)
# What sets an agent's config apart from the others' in the test below.
CONTINUOUS: dict[str, dict] = {
    "a2c": dict(entropy_cost=0.0),
    "awr": dict(gamma=0.5) | REPLAY,
    "impala": dict(entropy_cost=0.0),
    "ppo": dict(total_steps=12_000, rollout_length=16, entropy_cost=0.0),
    "reinforce": dict(entropy_cost=0.0),
    "trpo": dict(gamma=0.5, rollout_length=16, num_minibatches=4, total_steps=20_000),
    "vmpo": dict(gamma=0.5, total_steps=20_000),
}
BOTH = dict(learning_rate=1e-2, num_envs=8, rollout_length=8, hidden_sizes=(16,))


@pytest.mark.parametrize(
    "name",
    [
        name if name == "a2c" else pytest.param(name, marks=pytest.mark.slow)
        for name in CONTINUOUS
    ],
)
def test_finds_a_continuous_action(name):
    """The slow ones are the agents akin to a2c, and those that weigh actions."""
    module, env = agents.get(name), envs.wrap(probe_envs.Target())
    agent = module.make(env.spec)
    config = module.Config(**(BOTH | dict(total_steps=24_000) | CONTINUOUS[name]))
    fn = jax.jit(functools.partial(train.train, agent))
    ts, _ = fn(env, config, jax.random.key(0))
    obs = np.zeros((1, 2), np.float32)
    act = jax.jit(agent.act, static_argnums=5)
    action, *_ = act(config, ts.agent, (), obs, jax.random.key(0), False)
    np.testing.assert_allclose(action[0], env.env.gym.target, atol=0.1)
    policy = on_policy.actor(env.spec, config)
    stddev = jax.jit(lambda params: policy.apply(params, obs).stddev())
    at_first = np.array([1.0, 2.0])
    assert (stddev(ts.agent.actor) < at_first).all()


# Values of a rollout's observations and of their true successors.

ROWS, ENVS = 12, 3


def rollout_of(terminated, truncated):
    """Observations that are all different, but for successors within an episode."""
    obs, next_obs = np.random.default_rng(0).normal(size=(2, ROWS, ENVS, 2))
    going_on = ~(terminated | truncated)[:-1]
    next_obs[:-1][going_on] = obs[1:][going_on]
    return Rollout(
        obs=np.float32(obs),
        action=np.zeros((ROWS, ENVS), np.int32),
        reward=np.zeros((ROWS, ENVS), np.float32),
        terminated=terminated,
        truncated=truncated,
        next_obs=np.float32(next_obs),
        extras=(),
        memory=(),
    )


def cut_every(steps, seed=0):
    """Each environment truncated once in `steps` rows, each from another row on."""
    start = np.random.default_rng(seed).integers(steps, size=ENVS)
    return (np.arange(ROWS)[:, None] + start) % steps == steps - 1


def critic(obs):
    return jnp.sin(obs[..., 0]) + obs[..., 1]


def critic_by_hand(obs):
    return np.sin(obs[..., 0]) + obs[..., 1]


values_of = jax.jit(on_policy.bootstrap_values, static_argnums=(0, 2))


@pytest.mark.parametrize("max_steps", [1, 2, 5, 6, 12, 500])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_are_those_of_every_observation(max_steps, seed):
    rng = np.random.default_rng(seed)
    terminated = rng.uniform(size=(ROWS, ENVS)) < 0.3
    truncated = (
        cut_every(max_steps, seed) if max_steps < 500 else np.zeros((ROWS, ENVS), bool)
    )
    rollout = rollout_of(terminated, truncated)
    v_tm1, v_t = jax.device_get(values_of(critic, rollout, max_steps))
    np.testing.assert_allclose(v_tm1, critic_by_hand(rollout.obs), 1e-6, 1e-6)
    want = critic_by_hand(rollout.next_obs)
    np.testing.assert_allclose(v_t[~terminated], want[~terminated], 1e-6, 1e-6)
    assert (truncated & ~terminated)[:-1].any() or max_steps >= 12


def test_a_broken_promise_gives_nan_and_no_wrong_value():
    """Environments cut every 2 rows where 6 were promised: one cut of three is kept."""
    rollout = rollout_of(np.zeros((ROWS, ENVS), bool), cut_every(2))
    _, v_t = jax.device_get(values_of(critic, rollout, 6))
    right = np.isclose(v_t, critic_by_hand(rollout.next_obs), 1e-6, 1e-6)
    assert (right | np.isnan(v_t)).all()
    assert np.isnan(v_t).sum() == ENVS * ROWS // 2 - ENVS * ROWS // 6
    assert rollout.truncated[np.isnan(v_t)].all()


def test_values_in_pieces_are_the_same(monkeypatch):
    """On CPU large observations go through the critic a few rows at a time."""
    rollout, seen = rollout_of(np.zeros((ROWS, ENVS), bool), cut_every(6)), []

    def counting(obs):
        seen.append(obs.shape)
        return critic(obs)

    want = values_of(critic, rollout, 6)
    monkeypatch.setattr(on_policy, "_CACHED", 5 * ENVS * 2)  # of 12 + 1 + 2 rows
    got = values_of(counting, rollout, 6)
    chex.assert_trees_all_close(got, want, rtol=1e-6)
    assert set(seen) == {(ENVS, 2), (ROWS + 1 + 2, ENVS, 2)}  # of five, by vmap
    fresh = jax.jit(lambda rollout: on_policy.bootstrap_values(critic, rollout, 6))
    traced = fresh.trace(rollout)
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.while" in text) == (platform == "cpu")


def test_values_keep_their_derivatives():
    rollout = rollout_of(np.zeros((ROWS, ENVS), bool), cut_every(6))

    def total(scale, of_all):
        v_tm1, v_t = of_all(lambda obs: critic(scale * obs))
        return (v_tm1 * 2 + v_t**2).sum()

    @jax.jit
    def slopes(scale, rollout):
        def every(f):
            return f(rollout.obs), f(rollout.next_obs)

        slope = jax.grad(total)
        return slope(scale, lambda f: on_policy.bootstrap_values(f, rollout, 6)), slope(
            scale, every
        )

    got, want = slopes(1.3, rollout)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_values_skip_what_the_next_row_tells():
    rollout, seen = rollout_of(np.zeros((ROWS, ENVS), bool), cut_every(6)), []

    def counting(obs):
        seen.append(obs.shape)
        return critic(obs)

    shapes = jax.eval_shape(
        lambda rollout: on_policy.bootstrap_values(counting, rollout, 6), rollout
    )
    chex.assert_shape(shapes, (ROWS, ENVS))
    assert seen == [(ROWS + 1 + 2, ENVS, 2)]  # the newest successors, two limits
