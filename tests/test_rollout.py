"""Values of a rollout: each successor's own, however episodes end."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.rollout import values
from rljax.types import Rollout

T, N = 12, 3


def rollout_of(terminated, truncated):
    """Observations that are all different, but for successors within an episode."""
    obs, next_obs = np.random.default_rng(0).normal(size=(2, T, N, 2))
    going_on = ~(terminated | truncated)[:-1]
    next_obs[:-1][going_on] = obs[1:][going_on]
    return Rollout(
        obs=jnp.array(obs),
        action=jnp.zeros((T, N), jnp.int32),
        reward=jnp.zeros((T, N)),
        terminated=jnp.array(terminated),
        truncated=jnp.array(truncated),
        next_obs=jnp.array(next_obs),
        extras=(),
        memory=(),
    )


def cut_every(steps, seed=0):
    """Each environment truncated once in `steps` rows, each from another row on."""
    start = np.random.default_rng(seed).integers(steps, size=N)
    return (np.arange(T)[:, None] + start) % steps == steps - 1


def critic(obs):
    return jnp.sin(obs[..., 0]) + obs[..., 1]


@pytest.mark.parametrize("max_steps", [1, 2, 5, 6, 12, 500])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_values_are_those_of_every_observation(max_steps, seed):
    rng = np.random.default_rng(seed)
    terminated = rng.uniform(size=(T, N)) < 0.3
    truncated = (
        cut_every(max_steps, seed) if max_steps < 500 else np.zeros((T, N), bool)
    )
    rollout = rollout_of(terminated, truncated)
    v_tm1, v_t = jax.jit(values, static_argnums=(0, 2))(critic, rollout, max_steps)
    np.testing.assert_allclose(v_tm1, critic(rollout.obs), rtol=1e-6)
    want = critic(rollout.next_obs)
    np.testing.assert_allclose(v_t[~terminated], want[~terminated], rtol=1e-6)
    assert (truncated & ~terminated)[:-1].any() or max_steps >= 12


def test_values_in_pieces_are_the_same(monkeypatch):
    """On CPU large observations go through the critic a few rows at a time."""
    rollout, seen = rollout_of(np.zeros((T, N), bool), cut_every(6)), []

    def counting(obs):
        seen.append(obs.shape)
        return critic(obs)

    want = values(critic, rollout, 6)
    monkeypatch.setattr("rljax.rollout._CACHED", 5 * N * 2)  # of 12 + 1 + 2 rows
    got = values(counting, rollout, 6)
    chex.assert_trees_all_close(got, want, rtol=1e-6)
    pieces = jax.default_backend() == "cpu"
    assert seen[0] == ((N, 2) if pieces else (T + 1 + 2, N, 2))  # of five, by vmap


def test_values_keep_their_derivatives():
    rollout = rollout_of(np.zeros((T, N), bool), cut_every(6))

    def total(scale, values_of):
        v_tm1, v_t = values_of(lambda obs: critic(scale * obs))
        return (v_tm1 * 2 + v_t**2).sum()

    def every(f):
        return f(rollout.obs), f(rollout.next_obs)

    got, want = (
        jax.grad(total)(1.3, values_of)
        for values_of in (lambda f: values(f, rollout, 6), every)
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_values_skip_what_the_next_row_tells():
    rollout, seen = rollout_of(np.zeros((T, N), bool), cut_every(6)), []

    def counting(obs):
        seen.append(obs.shape)
        return critic(obs)

    chex.assert_shape(values(counting, rollout, 6), (T, N))
    assert seen == [(T + 1 + 2, N, 2)]  # the newest successors, two limits
