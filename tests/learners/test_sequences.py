"""Sequences of steps against a loop over environments and rows."""

import functools

import jax
import numpy as np
import pytest

from rljax.learners import sequences
from rljax.types import Rollout

T, N = 6, 2


def rollout_of(first):
    """Observations and memories that count steps from `first` on; some episodes end."""
    step = first + np.arange(T)[:, None] + 100 * np.arange(N)
    nothing = np.zeros((T, N), np.float32)
    return Rollout(
        obs=np.float32(step)[..., None],
        action=nothing,
        reward=nothing,
        terminated=step % 4 == 1,
        truncated=step % 5 == 2,
        next_obs=nothing,
        extras=(),
        memory=np.float32(step)[..., None] + 0.5,
    )


@pytest.mark.parametrize("burn_in", [0, 2])
def test_split_equals_a_loop(burn_in):
    split = functools.partial(sequences.split, length=3, burn_in=burn_in)

    @jax.jit
    def both(first, second):
        fresh = sequences.no_past(first.obs[0], first.memory[0], length=burn_in)
        _, past = split(first, fresh)
        return split(second, past)

    first, second = rollout_of(0), rollout_of(T)
    seen, end = jax.device_get(both(first, second))
    every = jax.tree.map(lambda *x: np.concatenate(x), first, second)
    ended = every.terminated | every.truncated
    for part in range(2):
        for n in range(N):
            row, start = part * N + n, T + 3 * part - burn_in
            steps = range(start, T + 3 * part + 3)
            np.testing.assert_array_equal(seen.obs[row], every.obs[steps, n])
            np.testing.assert_array_equal(seen.memory[row], every.memory[start, n])
            # The first memory of all is fresh where an episode starts.
            starts = [ended[t - 1, n] and t > steps[0] for t in steps]
            np.testing.assert_array_equal(seen.start[row][1:], starts[1:])
    assert ended.any() and not ended.all()
    if burn_in:
        np.testing.assert_array_equal(end.obs, second.obs[-burn_in:])
        np.testing.assert_array_equal(end.ended, ended[-burn_in:])
    else:
        assert end == ()
