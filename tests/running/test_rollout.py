"""Rollouts: values of each successor, and the environments run once more."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.running import train
from rljax.running.rollout import simulate, unroll, values
from rljax.types import Agent, Rollout

from .. import probe_envs

T, N = 12, 3


def rollout_of(terminated, truncated):
    """Observations that are all different, but for successors within an episode."""
    obs, next_obs = np.random.default_rng(0).normal(size=(2, T, N, 2))
    going_on = ~(terminated | truncated)[:-1]
    next_obs[:-1][going_on] = obs[1:][going_on]
    return Rollout(
        obs=np.float32(obs),
        action=np.zeros((T, N), np.int32),
        reward=np.zeros((T, N), np.float32),
        terminated=terminated,
        truncated=truncated,
        next_obs=np.float32(next_obs),
        extras=(),
        memory=(),
    )


def cut_every(steps, seed=0):
    """Each environment truncated once in `steps` rows, each from another row on."""
    start = np.random.default_rng(seed).integers(steps, size=N)
    return (np.arange(T)[:, None] + start) % steps == steps - 1


def critic(obs):
    return jnp.sin(obs[..., 0]) + obs[..., 1]


def by_hand(obs):
    return np.sin(obs[..., 0]) + obs[..., 1]


values_of = jax.jit(values, static_argnums=(0, 2))


@pytest.mark.parametrize("max_steps", [1, 2, 5, 6, 12, 500])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_are_those_of_every_observation(max_steps, seed):
    rng = np.random.default_rng(seed)
    terminated = rng.uniform(size=(T, N)) < 0.3
    truncated = (
        cut_every(max_steps, seed) if max_steps < 500 else np.zeros((T, N), bool)
    )
    rollout = rollout_of(terminated, truncated)
    v_tm1, v_t = jax.device_get(values_of(critic, rollout, max_steps))
    np.testing.assert_allclose(v_tm1, by_hand(rollout.obs), 1e-6, 1e-6)
    want = by_hand(rollout.next_obs)
    np.testing.assert_allclose(v_t[~terminated], want[~terminated], 1e-6, 1e-6)
    assert (truncated & ~terminated)[:-1].any() or max_steps >= 12


def test_a_broken_promise_gives_nan_and_no_wrong_value():
    """Environments cut every 2 rows where 6 were promised: one cut of three is kept."""
    rollout = rollout_of(np.zeros((T, N), bool), cut_every(2))
    _, v_t = jax.device_get(values_of(critic, rollout, 6))
    right = np.isclose(v_t, by_hand(rollout.next_obs), 1e-6, 1e-6)
    assert (right | np.isnan(v_t)).all()
    assert np.isnan(v_t).sum() == N * T // 2 - N * T // 6
    assert rollout.truncated[np.isnan(v_t)].all()


def test_values_in_pieces_are_the_same(monkeypatch):
    """On CPU large observations go through the critic a few rows at a time."""
    rollout, seen = rollout_of(np.zeros((T, N), bool), cut_every(6)), []

    def counting(obs):
        seen.append(obs.shape)
        return critic(obs)

    want = values_of(critic, rollout, 6)
    monkeypatch.setattr("rljax.running.rollout._CACHED", 5 * N * 2)  # of 12 + 1 + 2 rows
    got = values_of(counting, rollout, 6)
    chex.assert_trees_all_close(got, want, rtol=1e-6)
    pieces = jax.default_backend() == "cpu"
    assert seen[0] == ((N, 2) if pieces else (T + 1 + 2, N, 2))  # of five, by vmap


def test_values_keep_their_derivatives():
    rollout = rollout_of(np.zeros((T, N), bool), cut_every(6))

    def total(scale, of_all):
        v_tm1, v_t = of_all(lambda obs: critic(scale * obs))
        return (v_tm1 * 2 + v_t**2).sum()

    @jax.jit
    def slopes(scale, rollout):
        def every(f):
            return f(rollout.obs), f(rollout.next_obs)

        slope = jax.grad(total)
        return slope(scale, lambda f: values(f, rollout, 6)), slope(scale, every)

    got, want = slopes(1.3, rollout)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_values_skip_what_the_next_row_tells():
    rollout, seen = rollout_of(np.zeros((T, N), bool), cut_every(6)), []

    def counting(obs):
        seen.append(obs.shape)
        return critic(obs)

    shapes = jax.eval_shape(lambda rollout: values(counting, rollout, 6), rollout)
    chex.assert_shape(shapes, (T, N))
    assert seen == [(T + 1 + 2, N, 2)]  # the newest successors, two limits


# Simulated once more.


def throw(config, state, memory, obs, key, explore):
    """Random actions, half the place taken back."""
    extras = jax.random.normal(key, obs.shape)
    return again(obs, extras), memory, extras


def again(obs, extras):
    return extras - 0.5 * obs


def replayable(env, key):
    """A rollout of `throw`, and where its environments started."""
    agent = Agent(
        init=lambda config, key: (),
        memory=lambda config, num_envs: (),
        act=throw,
        observe=lambda config, state, rollout: state,
        update=lambda config, state, rollout, key: (state, {}),
        simulates=True,
    )
    env_key, key = jax.random.split(key)
    state, obs = env.reset(env_key, N)
    zero = jnp.zeros((), jnp.int32)
    ts = train.TrainState((), state, obs, (), jax.random.key(0), zero)
    return unroll(
        agent.act,
        env,
        None,
        ts,
        memory=agent.memory,
        simulates=agent.simulates,
        key=key,
        length=T,
    )[1]


@pytest.mark.parametrize("probe", [probe_envs.Slide, probe_envs.SlideOn])
def test_a_rollout_can_be_simulated_once_more(probe, strict_keys):
    gym = probe()
    params = gym.default_params.replace(
        noise=0.5, terminate_at=5, max_steps_in_episode=7
    )
    rollout = jax.jit(replayable)(envs.wrap(gym, params), jax.random.key(0))

    @jax.jit
    def again_and_other(rollout):
        return simulate(rollout, again), simulate(rollout, lambda obs, extras: extras)

    same, other = again_and_other(rollout)
    assert rollout.terminated.any() and rollout.reward.std() > 0.1
    for name in Rollout._fields[:-1]:
        got, want = getattr(same, name), getattr(rollout, name)
        chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-6)
    assert np.abs(np.asarray(other.reward) - np.asarray(rollout.reward)).mean() > 0.1


GYMS = {probe: probe() for probe in (probe_envs.Slide, probe_envs.SlideOn)}
replay_on = jax.jit(replayable)


@jax.jit
def slopes_of_rewards(rollout):
    """d reward_t / d action_s of the first environment, `[T, T]`."""

    def rewards(actions):
        taken = rollout._replace(extras=actions)
        return simulate(taken, lambda obs, action: action).reward[:, 0]

    return jax.jacrev(rewards)(rollout.action)[:, :, 0, 0]


@pytest.mark.parametrize("probe", [probe_envs.Slide, probe_envs.SlideOn])
@pytest.mark.parametrize("ends", ["terminate_at", "max_steps_in_episode"])
def test_no_derivative_passes_from_one_episode_to_the_next(probe, ends):
    """Within an episode d reward_t / d action_s is -2 x_t 0.9^(t - s)."""
    gym = GYMS[probe]  # jit caches by its identity
    params = gym.default_params.replace(**{ends: 5})
    rollout = jax.device_get(replay_on(envs.wrap(gym, params), jax.random.key(1)))
    got = slopes_of_rewards(rollout)
    t, s = np.mgrid[:T, :T]
    same_episode = (t // 5 == s // 5) & (t >= s)
    place = rollout.next_obs[:, 0]
    want = np.where(same_episode, -2 * place * 0.9 ** np.maximum(t - s, 0), 0.0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
