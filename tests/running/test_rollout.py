"""Rollouts whose environments are run once more."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.running import train
from rljax.running.rollout import simulate, unroll
from rljax.types import Agent, Rollout

from .. import probe_envs

T, N = 12, 3


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
