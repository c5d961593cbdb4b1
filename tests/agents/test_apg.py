"""APG: its gradient against finite differences and the score function; its critic."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents, envs, losses
from rljax.autodiff import variance_table
from rljax.learners import on_policy
from rljax.running import train
from rljax.running.rollout import simulate, unroll
from rljax.types import Discrete

from .. import compiled, probe_envs
from ..agent_case import differ

apg = agents.get("apg")
KEY = jax.random.key(9)
CONFIG = apg.Config(gamma=0.9, hidden_sizes=(8,), activation="tanh")
# The horizon's return, and its gradient in the actor.
gradient = jax.jit(jax.value_and_grad(apg.horizon_return, 2), static_argnums=0)
init = jax.jit(apg.init, static_argnums=0)
targets = jax.jit(apg.targets, static_argnums=0)
only_apg = pytest.mark.parametrize("case", ["apg"], indirect=True)


def random_state(env, config):
    """Wider heads than at the start, and a target critic of its own."""
    spec = env.spec._replace(max_steps=1)  # one program for all time limits
    state, other = (init(spec, config, jax.random.key(i)) for i in (0, 1))
    rng = np.random.default_rng(0)
    actor = jax.tree.map(
        lambda x: np.array(x) + np.float32(rng.normal(size=x.shape, scale=0.3)),
        state.actor,
    )
    return state._replace(actor=actor, target_critic=other.critic)


def played(env, config, state, key, length=8, num_envs=3):
    agent = apg.make(env.spec)
    env_key, key = jax.random.split(key)
    start, obs = env.reset(env_key, num_envs)
    zero = jnp.zeros((), jnp.int32)
    ts = train.TrainState(state, start, obs, (), jax.random.key(0), zero)
    return unroll(
        agent.act,
        env,
        config,
        ts,
        memory=agent.memory,
        simulates=agent.simulates,
        key=key,
        length=length,
    )[1]


play = jax.jit(played, static_argnames=("length", "num_envs"))


# The gradient.


def mlp(leaves, x):
    """The networks in numpy: biases and weights of the head, then of the layer."""
    head_bias, head, bias, weights = leaves
    return np.tanh(x @ weights + bias) @ head + head_bias


def pendulum_return(actor, critic, start, noise, resets, gamma, limit):
    """Mean over steps of every episode's return with the value where it is cut.

    Pendulum in numpy and float64, one environment after the other.
    """
    total, (length, num_envs) = 0.0, noise.shape
    for n in range(num_envs):
        (theta, speed), weight, time = start[n], 1.0, 0
        for t in range(length):
            mean, log_std = mlp(actor, observed(theta, speed))
            torque = 2 * np.tanh(mean + np.exp(log_std) * noise[t, n])
            angle = (theta + np.pi) % (2 * np.pi) - np.pi
            cost = angle**2 + 0.1 * speed**2 + 0.001 * torque**2
            speed = speed + 0.05 * (15 * np.sin(theta) + 3 * torque)
            assert abs(speed) < 8  # where it would be clipped
            theta, time = theta + 0.05 * speed, time + 1
            total, weight = total - weight * cost, weight * gamma
            if time == limit or t == length - 1:
                total += weight * mlp(critic, observed(theta, speed))[0]
                (theta, speed), weight, time = resets[t, n], 1.0, 0
    return total / noise.size


def observed(theta, speed):
    return np.array([np.cos(theta), np.sin(theta), speed])


def test_apg_gradient_equals_finite_differences():
    env = envs.make("Pendulum-v1", max_steps_in_episode=5)  # ends within the rollout
    state = random_state(env, CONFIG)
    rollout = play(env, CONFIG, state, jax.random.key(2))
    value, grads = gradient(env.spec, CONFIG, state.actor, state, rollout)

    def places(state):
        state = state.theta, state.theta_dot
        return np.stack([np.array(x, np.float64) for x in state], axis=-1)

    actor, critic = (
        [np.array(leaf, np.float64) for leaf in jax.tree.leaves(params)]
        for params in (state.actor, state.target_critic)
    )
    simulation, noise = rollout.simulation, np.array(rollout.extras[..., 0], np.float64)
    start, resets = places(simulation.state.env), places(simulation.noise.reset_state)
    args = (critic, start, noise, resets, 0.9, 5)
    np.testing.assert_allclose(value, pendulum_return(actor, *args), rtol=1e-5)
    for i, grad in enumerate(jax.tree.leaves(grads)):
        want = np.zeros(grad.shape)
        for index in np.ndindex(grad.shape):
            ends = []
            for h in (1e-5, -1e-5):
                leaf = actor[i].copy()
                leaf[index] += h
                ends.append(pendulum_return([*actor[:i], leaf, *actor[i + 1 :]], *args))
            want[index] = (ends[0] - ends[1]) / 2e-5
        assert abs(want).max() > 1e-2
        np.testing.assert_allclose(grad, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ends", ["terminate_at", "max_steps_in_episode"])
def test_apg_bootstraps_where_time_is_up_only(ends):
    gym = probe_envs.Slide()
    env = envs.wrap(gym, gym.default_params.replace(**{ends: 3}))
    state = random_state(env, CONFIG)
    rollout = play(env, CONFIG, state, jax.random.key(3))
    seen = jax.tree.map(np.array, rollout._replace(simulation=()))
    critic = apg.critic(env.spec, CONFIG)
    value = np.array(compiled.apply(critic, state.target_critic, seen.next_obs))
    want = 0.0
    for t in range(8):
        want += 0.9 ** (t % 3) * seen.reward[t]
        if t == 7 or (t % 3 == 2 and ends == "max_steps_in_episode"):
            want += 0.9 ** (t % 3 + 1) * value[t]
    got, _ = gradient(env.spec, CONFIG, state.actor, state, rollout)
    np.testing.assert_allclose(got, np.sum(want) / seen.reward.size, rtol=1e-5)


@pytest.mark.slow
def test_apg_gradient_has_far_less_variance_than_the_score_function():
    """On Pendulum, horizon 16, with a baseline for each step; the same mean.

    To the exact gradient this adds a comparison by thousands of samples.
    """
    env, length = envs.make("Pendulum-v1"), 16
    state = random_state(env, CONFIG)
    play = functools.partial(played, env, CONFIG, length=length)

    def to_go(rollout):
        """Returns from each step on, discounted to the first, `[T, N]`."""
        value = apg.critic(env.spec, CONFIG).apply
        v_t = value(state.target_critic, rollout.next_obs)
        discount, trace = on_policy.cut(CONFIG.gamma, 1.0, rollout)
        fn = jax.vmap(losses.lambda_returns, 1, 1)
        since = CONFIG.gamma ** jnp.arange(length)[:, None]
        return since * fn(rollout.reward, discount, v_t, trace)

    @jax.jit
    def mean_to_go(key):
        return to_go(play(state, key, num_envs=500)).mean(axis=1)

    baseline = mean_to_go(jax.random.key(5))

    def pathwise(params, key):
        rollout = play(state._replace(actor=params), key, num_envs=1)
        grad = jax.grad(apg.horizon_return, 2)
        return grad(env.spec, CONFIG, params, state, rollout)

    def score(params, key):
        rollout = play(state._replace(actor=params), key, num_envs=1)
        weights = (to_go(rollout) - baseline[:, None]) / length

        def base(params):
            network = apg.actor(env.spec, CONFIG)
            return network.apply(params, rollout.obs).distribution

        policy = base(params)
        taken = policy.loc + policy.scale_diag * rollout.extras  # before the tanh
        return jax.grad(lambda p: jnp.sum(weights * base(p).log_prob(taken)))(params)

    n = 1000
    table = variance_table(
        {"pathwise": pathwise, "score": score}, state.actor, jax.random.key(4), n
    )
    means, variances = (
        {
            name: np.concatenate([np.ravel(x) for x in jax.tree.leaves(row[what])])
            for name, row in table.items()
        }
        for what in ("mean", "variance")
    )
    error = np.sqrt((variances["pathwise"] + variances["score"]) / n)
    z = (means["pathwise"] - means["score"]) / error
    assert abs(z).max() < 4.5 and 0.5 < np.sqrt(np.mean(z**2)) < 1.5
    ratio = variances["pathwise"].sum() / variances["score"].sum()
    assert ratio < 0.01


# The update.


@only_apg
def test_apg_acts_as_it_simulates(case, state):
    rollout = play(case.env, case.config, state, jax.random.key(0))
    policy = functools.partial(apg.policy, case.spec, case.config, state.actor)
    same = jax.jit(lambda rollout: simulate(rollout, policy))(rollout)
    chex.assert_trees_all_close(same[:6], rollout[:6], rtol=1e-5, atol=1e-5)
    assert np.std(rollout.action) > 0.5


@only_apg
def test_apg_targets_by_hand(case, state, rollout):
    config = dataclasses.replace(case.config, gamma=0.9, lambda_=0.7)
    args = (case.spec, config, state.target_critic, rollout)
    got = np.array(targets(*args))
    critic = apg.critic(case.spec, config)
    value = np.array(compiled.apply(critic, state.target_critic, rollout.next_obs))
    rollout = jax.tree.map(np.array, rollout._replace(simulation=()))
    after = np.zeros(len(got[0]))
    for t in reversed(range(len(got))):
        ended, last = rollout.terminated[t] | rollout.truncated[t], t == len(got) - 1
        mixed = np.where(ended | last, value[t], 0.3 * value[t] + 0.7 * after)
        after = rollout.reward[t] + 0.9 * ~rollout.terminated[t] * mixed
        np.testing.assert_allclose(got[t], after, rtol=1e-4, atol=1e-5)


@only_apg
def test_apg_update_steps_each_network(case, update, state, rollout):
    config = dataclasses.replace(case.config, target_rate=0.25)
    sine = jax.tree.map(lambda x: np.sin(np.array(x)), state.critic)
    state = state._replace(target_critic=sine)
    new, metrics = update(config, state, rollout, KEY)
    actor_opt, critic_opt = new.actor_opt[1].count, new.critic_opt[1].count
    assert (actor_opt, critic_opt) == (1, 4)  # two epochs of two minibatches
    target, trained = jax.tree.map(np.array, (state.target_critic, new.critic))
    want = jax.tree.map(lambda x, y: x + 0.25 * (y - x), target, trained)
    chex.assert_trees_all_close(new.target_critic, want, rtol=1e-5, atol=1e-6)
    # The actor goes uphill, against the target critic; the critic to its targets.
    args = (case.spec, config)
    before, after, other = (
        float(gradient(*args, params, bootstrap, rollout)[0])
        for params, bootstrap in (
            (state.actor, state),
            (new.actor, state),
            (state.actor, state._replace(target_critic=state.critic)),
        )
    )
    np.testing.assert_allclose(metrics["policy_loss"], -before, rtol=1e-5)
    assert after > before and abs(other - before) > 1e-4
    batch = (rollout.obs, targets(*args, state.target_critic, rollout))
    value_loss = jax.jit(functools.partial(apg.value_loss, *args))
    worse, better = (
        value_loss(params, batch)[0] for params in (state.critic, new.critic)
    )
    assert better < worse
    same = update(config, state._replace(target_critic=state.critic), rollout, KEY)[0]
    assert differ(same.critic, new.critic)


@only_apg
def test_apg_is_differentiable_in_its_config(case, update, state, rollout):
    def outcome(config):
        new, metrics = update(config, state, rollout, KEY)
        flat = (ravel_pytree(x)[0] for x in (new.actor, new.target_critic))
        return metrics["policy_loss"], *(jnp.sum(x) for x in flat)

    @jax.jit
    def slopes_of_outcome(config):
        _, pull = jax.vjp(outcome, config)
        return jax.vmap(lambda row: pull(tuple(row))[0])(jnp.eye(3))

    slopes = jax.tree.map(np.array, slopes_of_outcome(case.config))
    up, down = (
        update(
            dataclasses.replace(case.config, gamma=case.config.gamma + h),
            state,
            rollout,
            KEY,
        )[1]["policy_loss"]
        for h in (5e-3, -5e-3)
    )
    np.testing.assert_allclose(slopes.gamma[0], (up - down) / 1e-2, rtol=1e-2)
    used = ("learning_rate", "gamma", "lambda_", "target_rate")
    slopes = [[getattr(slopes, name)[i] for name in used] for i in (1, 2)]
    assert np.isfinite(slopes).all()
    np.testing.assert_array_equal(np.array(slopes) != 0, [[1, 1, 0, 0], [1] * 4])


# What it is made for.


def test_apg_needs_bounded_actions_and_derivatives():
    spec = envs.make("Pendulum-v1").spec
    for wrong, message in (
        (spec._replace(action=Discrete(2)), "apg needs continuous actions, not"),
        (
            spec._replace(action=spec.action._replace(high=(np.inf,))),
            "apg needs finite bounds of actions",
        ),
        (spec._replace(differentiable=False), "apg needs spec.differentiable, not"),
        (envs.wrap(probe_envs.Target()).spec, "apg needs spec.differentiable, not"),
    ):
        with pytest.raises(ValueError, match=message):
            apg.make(wrong)


def test_apg_holds_a_place():
    """The best action in place x of `Slide` is -0.9 x, and leaves it at once."""
    gym = probe_envs.Slide()
    params = gym.default_params.replace(max_steps_in_episode=8)
    env = envs.wrap(gym, params)
    agent = apg.make(env.spec)
    config = apg.Config(
        total_steps=20_000, num_envs=4, rollout_length=4, hidden_sizes=(16,)
    )
    fn = jax.jit(functools.partial(train.train, agent))
    ts, metrics = fn(env, config, jax.random.key(0))
    obs = np.linspace(-1.0, 1.0, 9, dtype=np.float32)[:, None]
    act = jax.jit(agent.act, static_argnums=5)
    action, *_ = act(config, ts.agent, (), obs, jax.random.key(0), False)
    np.testing.assert_allclose(action, -0.9 * obs, atol=0.1)
    assert metrics["episode_return"][-1] > -0.1
    assert differ(ts.agent.target_critic, ts.agent.critic)
