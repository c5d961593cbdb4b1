"""Where new episodes start: fresh, shared or cached first states."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams, EnvState

from rljax import envs
from rljax.envs import batched

from .. import probe_envs

N = 8


@struct.dataclass
class KeyedState(EnvState):
    start: jax.Array  # drawn at the reset
    key: jax.Array


class Keyed(Environment):
    """Ends when the action says so; observes where it started and a draw."""

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=50)

    def action_space(self, params):
        return spaces.Discrete(2)

    def reset_env(self, key, params):
        start = jax.random.uniform(key)
        state = KeyedState(time=jnp.zeros((), jnp.int32), start=start, key=key)
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        state = state.replace(time=state.time + 1, key=jax.random.split(state.key)[0])
        return self.observe(state), state, 0.0, action == 1, {}

    def observe(self, state):
        return jnp.stack([state.start, jax.random.uniform(state.key), state.time])


def rows(noise):
    """One noise for each step."""
    return [jax.tree.map(operator.itemgetter(t), noise) for t in range(3)]


def starts_after(env, ended):
    """First observations, and those after a step that ends the episodes `ended`."""

    @jax.jit
    def play(ended):
        state, first = env.reset(jax.random.key(0), N)
        seen = []
        for noise in rows(env.draw(jax.random.key(1), 3, N)):
            state, step = env.step(noise, state, ended.astype(jnp.int32))
            seen.append(step)
        return first, seen

    return jax.device_get(play(np.asarray(ended)))


ALL, SOME = [True] * N, [False, True, True, False, False, False, True, False]


def test_a_reset_at_every_step_is_fresh():
    first, seen = starts_after(envs.wrap(Keyed()), ALL)
    every = np.concatenate([first[:, 0], *(step.obs[:, 0] for step in seen)])
    assert len(np.unique(every)) == 4 * N


@pytest.mark.parametrize("ratio", [3, 4, N, 20])
def test_optimistic_resets_are_shared_where_too_few(ratio):
    env = envs.wrap(Keyed(), resets="optimistic", reset_ratio=ratio)
    number = -(-N // ratio)
    noise = jax.jit(lambda: env.draw(jax.random.key(1), 3, N).reset_obs)()
    assert noise.shape == (3, number, 3)
    _, seen = starts_after(env, ALL)
    for t, step in enumerate(seen):
        order = np.arange(N) % number
        np.testing.assert_array_equal(step.obs, noise[t][order])
        assert (step.next_obs[:, 2] == 1).all()  # the true successor, not the first


def test_optimistic_resets_differ_as_far_as_they_suffice():
    env = envs.wrap(Keyed(), resets="optimistic", reset_ratio=2)
    first, seen = starts_after(env, SOME)
    step, some = seen[0], np.array(SOME)
    assert len(np.unique(step.obs[some, 0])) == 3
    np.testing.assert_array_equal(step.obs[~some, 0], first[~some, 0])


def test_cached_resets_return_to_the_first_state():
    """But not to its key: episodes from the same state differ."""
    first, seen = starts_after(envs.wrap(Keyed(), resets="cached"), ALL)
    assert len(np.unique(first[:, 0])) == N
    for step in seen:
        np.testing.assert_array_equal(step.obs, first)
        assert (step.next_obs[:, 2] == 1).all()
    draws = [step.next_obs[:, 1] for step in seen]  # of the key, a step later
    assert len(np.unique(np.concatenate(draws))) == 3 * N


@pytest.mark.parametrize("resets", ["every_step", "optimistic"])
def test_many_resets_are_made_one_step_at_a_time(resets, monkeypatch):
    """With the same first states: memory is bounded, numbers are the same."""
    env = envs.wrap(Keyed(), resets=resets, reset_ratio=4)
    want = starts_after(env, SOME)
    monkeypatch.setattr(batched, "_BULK", 0)
    noise = jax.eval_shape(lambda: env.draw(jax.random.key(1), 3, N))
    assert noise.reset_obs is None and noise.reset_state is None
    chex.assert_trees_all_equal(starts_after(env, SOME), want)


def test_bulks_are_measured_in_bytes(monkeypatch):
    draw = functools.partial(envs.wrap(Keyed()).draw, jax.random.key(1), 3, N)
    size = 3 * 4 + 4 + 4 + 8  # observation, time, start, key
    for bulk, at_once in ((3 * N * size, True), (3 * N * size - 1, False)):
        monkeypatch.setattr(batched, "_BULK", bulk)
        assert (jax.eval_shape(lambda: draw()).reset_obs is not None) == at_once


@pytest.mark.parametrize(
    ("gym", "options", "message"),
    [
        (
            Keyed(),
            dict(resets="never"),
            "resets='never': must be one of every_",
        ),
        (Keyed(), dict(reset_ratio=0), "reset_ratio=0: must be an integer >= 1"),
        (Keyed(), dict(reset_ratio=2.0), "reset_ratio=2.0: must be an integer"),
        (
            probe_envs.OwnStep(),
            dict(resets="cached"),
            "OwnStep resets in a",
        ),
    ],
)
def test_bad_options_are_refused(gym, options, message):
    with pytest.raises(ValueError, match=message):
        envs.wrap(gym, **options)
