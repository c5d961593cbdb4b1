"""The ring buffer against lists of Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs, replay
from rljax.types import Discrete, ObsSpec, Rollout, Spec

N, T, ROWS, LIMIT = 3, 2, 8, 4
SPEC = Spec(ObsSpec.array((2,), "int32"), Discrete(5), max_steps=LIMIT)
KEY = jax.random.key(0)
add = jax.jit(replay.add, static_argnames="length")
sample = jax.jit(replay.sample, static_argnums=2)
sample_sequences = jax.jit(
    replay.sample_sequences, static_argnames=("batch_size", "length")
)
update_priorities = jax.jit(replay.update_priorities)
importance_weights = jax.jit(replay.importance_weights)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init(prioritized=False, rows=ROWS, limit=LIMIT):
    return replay.init(
        SPEC._replace(max_steps=limit), N, rows * N, prioritized=prioritized
    )


class Episodes:
    """Steps of N environments with numbers that name them, as lists."""

    def __init__(self, seed, limit=LIMIT):
        self.rng, self.limit = np.random.default_rng(seed), limit
        self.steps = [
            [] for _ in range(N)
        ]  # (obs, reward, terminated, truncated, next)
        self.time = np.zeros(N, int)
        self.obs = [self.fresh() for _ in range(N)]

    def fresh(self):
        return self.rng.integers(1_000_000, size=2)

    def rollout(self, length=T):
        for _ in range(length):
            for n in range(N):
                self.time[n] += 1
                terminated = self.rng.random() < 0.2
                truncated = self.time[n] >= self.limit
                next_obs = self.fresh()
                reward = float(self.rng.integers(1, 100))
                self.steps[n].append(
                    (self.obs[n], reward, terminated, truncated, next_obs)
                )
                if terminated or truncated:
                    self.time[n], next_obs = 0, self.fresh()
                self.obs[n] = next_obs
        last = [steps[-length:] for steps in self.steps]  # [N, T]
        obs, reward, terminated, truncated, next_obs = (
            np.stack([[step[i] for step in steps] for steps in last], axis=1)
            for i in range(5)
        )
        action = reward.astype(int) % 5
        args = (obs, action, reward, terminated, truncated, next_obs)
        return Rollout(*args, extras=(), memory=())


def window(steps, n_step):
    """What is known from the first of `steps` on, by a loop."""
    seen = []
    for step in steps[:n_step]:
        seen.append(step)
        if step[2] or step[3]:
            break
    rewards = [step[1] for step in seen] + [0.0] * (n_step - len(seen))
    return steps[0][0], rewards, len(seen), seen[-1][2], seen[-1][4]


@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_windows_equal_a_loop(seed, n_step):
    """At termination, truncation, both at once, wrap-around and the newest row."""
    limit = (4, 3, 5)[seed]  # which the number of rows divides by, or not
    episodes, buffer = Episodes(seed, limit), init(False, ROWS, limit)
    seen = jax.jit(functools.partial(replay.windows, n_step=n_step))
    for count in range(1, 3 * ROWS // T + 2):
        buffer = add(buffer, episodes.rollout())
        held = min(count * T, ROWS)
        assert replay.size(buffer) == held * N
        found = jax.tree.map(np.array, seen(buffer, np.arange(ROWS * N)))
        for age in range(held):
            row = (count * T - 1 - age) % ROWS
            for n in range(N):
                steps = episodes.steps[n]
                obs, reward, num_steps, terminated, next_obs = window(
                    steps[len(steps) - 1 - age :], n_step
                )
                got = jax.tree.map(lambda x, i=row * N + n: x[i], found)
                np.testing.assert_array_equal(got.obs, obs)
                assert got.action == int(reward[0]) % 5
                np.testing.assert_array_equal(got.reward, reward)
                assert got.num_steps == num_steps
                assert got.terminated == terminated
                if not terminated:  # else nothing follows
                    np.testing.assert_array_equal(got.next_obs, next_obs)


def test_successors_are_true_whatever_cuts_an_episode():
    """Without a promise every truncated step keeps its own."""
    episodes, buffer = Episodes(0, limit=1), init(False, ROWS, 1)
    seen = jax.jit(replay.windows)
    for _ in range(ROWS):
        buffer = add(buffer, episodes.rollout())
    next_obs = seen(buffer, np.arange(ROWS * N)).next_obs.reshape(ROWS, N, 2)
    for n, steps in enumerate(episodes.steps):
        for row, step in enumerate(steps[-ROWS:]):
            if not step[2]:
                np.testing.assert_array_equal(next_obs[row, n], step[4])


def test_a_broken_promise_gives_nan_and_no_wrong_successor():
    """One environment of many cuts: cut at every step, promised every fourth."""
    episodes, buffer = Episodes(0, limit=1), init(False, ROWS, LIMIT)
    seen = jax.jit(replay.windows)
    for _ in range(ROWS):
        buffer = add(buffer, episodes.rollout())
    found = jax.device_get(seen(buffer, np.arange(ROWS * N)))
    rewards, next_obs = found.reward.reshape(ROWS, N), found.next_obs
    want = np.array([[step[4] for step in s[-ROWS:]] for s in episodes.steps])
    want = want.swapaxes(0, 1)  # [ROWS, N, 2]
    ended = np.array([[step[2] for step in s[-ROWS:]] for s in episodes.steps]).T
    right = (next_obs.reshape(ROWS, N, 2) == want).all(axis=-1)
    assert (right | ended | np.isnan(rewards)).all()
    kept = len(buffer.finals)
    assert np.isnan(rewards).sum() == (~ended).sum() - kept > 0
    sequences = jax.jit(
        replay.sample_sequences, static_argnames=("batch_size", "length")
    )
    index, drawn, _ = sequences(buffer, KEY, 64, length=1)
    lost = np.isnan(rewards).reshape(-1)[np.asarray(index)]
    np.testing.assert_array_equal(np.isnan(drawn.reward[0]), lost)


def test_counts_of_truncated_steps_do_not_overflow():
    """They turn over where slots begin anew: all successors stay true."""
    episodes, buffer = Episodes(3), init()
    turns = replay.buffer._turns(len(buffer.finals))
    assert turns % len(buffer.finals) == 0 and turns < 2**30 + 1
    buffer = buffer._replace(num_finals=jnp.int32(turns - 2))
    seen = jax.jit(replay.windows)
    for count in range(1, 3 * ROWS):
        buffer = add(buffer, episodes.rollout())
        held = min(count * T, ROWS)
        found = seen(buffer, np.arange(ROWS * N))
        for age in range(held):
            row = (count * T - 1 - age) % ROWS
            for n in range(N):
                _, reward, terminated, _, next_obs = episodes.steps[n][-1 - age]
                assert found.reward[row * N + n, 0] == reward
                if not terminated:
                    np.testing.assert_array_equal(found.next_obs[row * N + n], next_obs)
    assert buffer.num_finals < turns - 2


@pytest.mark.parametrize("rollouts", [1, ROWS // T])
def test_indices_of_no_step_are_left_out(rollouts):
    """Negative, beyond the buffer, and for priorities of rows not written yet."""
    episodes, buffer = Episodes(1), init(True)
    for _ in range(rollouts):
        buffer = add(buffer, episodes.rollout())
    held = rollouts * T * N
    outside = np.array([held, held + 1, -1, ROWS * N, ROWS * N + 1, 2**31 - 1])

    @jax.jit
    def use(buffer, index):
        new = replay.update_priorities(buffer, index, jnp.full(len(index), 9.0))
        return new, replay.windows(buffer, index[2:], 2).reward

    new, rewards = use(buffer, outside)
    jax.tree.map(np.testing.assert_array_equal, new, buffer)
    assert np.isnan(rewards).all()


def test_after_a_termination_the_replay_knows_no_successor():
    """The next row stands there, another episode's: of no meaning, as is said."""
    episodes, buffer = Episodes(1), init()
    buffer = add(buffer, episodes.rollout(ROWS))
    found = jax.jit(replay.windows)(buffer, np.arange((ROWS - 1) * N))
    at = np.flatnonzero(found.terminated & ~(buffer.steps.truncated[:-1].ravel()))
    following = np.asarray(buffer.steps.obs[1:]).reshape(-1, 2)
    np.testing.assert_array_equal(found.next_obs[at], following[at])
    true = [episodes.steps[i % N][i // N][4] for i in at]
    assert len(at) and (np.asarray(true) != following[at]).all()


def test_dtypes_are_kept():
    spec = envs.make("Breakout-MinAtar").spec
    buffer = jax.eval_shape(lambda: replay.init(spec, N, ROWS * N, prioritized=True))
    assert buffer.steps.obs.dtype == buffer.finals.dtype == bool
    assert buffer.steps.action.dtype == jnp.int32
    box = envs.make("Pendulum-v1").spec
    buffer = jax.eval_shape(lambda: replay.init(box, N, ROWS * N, prioritized=False))
    assert buffer.steps.action.shape == (ROWS, N, 1)
    assert buffer.steps.action.dtype == jnp.float32


def test_observations_are_stored_once():
    spec = envs.make("Breakout-MinAtar").spec
    buffer = jax.eval_shape(lambda: replay.init(spec, 10, 100_000, prioritized=False))
    arrays = (buffer.steps.obs, buffer.finals, buffer.head)
    stored = sum(x.size * x.dtype.itemsize for x in arrays)
    assert stored < 1.01 * 100_000 * 400


def filled(count, prioritized=False, length=1):
    """A buffer after `count` rollouts, and for each index the step it holds."""
    episodes, buffer = Episodes(0), init(prioritized)
    for _ in range(count):
        buffer = add(buffer, episodes.rollout(), length=length)
    return buffer, episodes


@pytest.mark.parametrize("count", [2, 4, 7])
@pytest.mark.parametrize("prioritized", [False, True])
def test_samples_uniformly_what_was_added(count, prioritized):
    buffer, _ = filled(count, prioritized)
    held = min(count * T, ROWS) * N
    drawn = sample(buffer, jax.random.key(0), 100_000)
    counts = np.bincount(drawn.index, minlength=ROWS * N)
    assert (counts[held:] == 0).all()
    expected = 100_000 / held
    assert ((counts[:held] - expected) ** 2 / expected).sum() < 49.7  # 99.9 % of 23
    np.testing.assert_allclose(drawn.probability, 1 / held, rtol=1e-5)
    weights = importance_weights(buffer, drawn.probability, 0.7)
    np.testing.assert_allclose(weights, 1.0, rtol=1e-5)


def test_samples_in_proportion_to_priorities():
    buffer, _ = filled(9, True)
    priority = np.arange(24, dtype=np.float32) ** 2
    buffer = update_priorities(buffer, np.arange(24), priority)
    assert buffer.max_priority == 23.0**2
    drawn = jax.tree.map(np.array, sample(buffer, jax.random.key(0), 100_000))
    counts = np.bincount(drawn.index, minlength=24)
    expected = 100_000 * priority / priority.sum()
    assert counts[0] == 0  # of priority 0
    assert ((counts - expected)[1:] ** 2 / expected[1:]).sum() < 48.3  # of 22
    np.testing.assert_allclose(drawn.probability, expected[drawn.index] / 1e5, 1e-4)
    weights = importance_weights(buffer, drawn.probability, 0.5)
    want = (24 * drawn.probability) ** -0.5
    np.testing.assert_allclose(weights, want / want.max(), rtol=1e-5)
    # What is written next comes up with the greatest priority ever given.
    buffer = update_priorities(buffer, np.arange(24), np.sqrt(priority))
    buffer = add(buffer, Episodes(1).rollout(), length=1)
    row = 9 * T % ROWS
    leaves = np.array(buffer.tree.levels[-1]).ravel()
    np.testing.assert_array_equal(leaves[row * N : (row + T) * N], 23.0**2)


@pytest.mark.parametrize("count", [3, 4, 5, 8, 9])
@pytest.mark.parametrize("prioritized", [False, True])
def test_sequences_are_whole(count, prioritized):
    length = 5
    buffer, episodes = filled(count, prioritized, length)
    key = jax.random.key(count)
    drawn = sample_sequences(buffer, key, 2000, length=length)
    index, found, probability = jax.tree.map(np.array, drawn)
    held = min(count * T, ROWS)
    starts = held - length + 1
    np.testing.assert_allclose(probability, 1 / (starts * N), rtol=1e-5)
    ages = (count * T - 1 - index // N) % ROWS
    assert set(np.unique(ages)) == set(range(length - 1, held))
    for b in range(50):
        steps = episodes.steps[index[b] % N]
        first = len(steps) - 1 - ages[b]
        for t, want in enumerate(steps[first : first + length]):
            obs, reward, terminated, truncated, next_obs = want
            np.testing.assert_array_equal(found.obs[t, b], obs)
            assert found.reward[t, b] == reward
            assert found.terminated[t, b] == terminated
            assert found.truncated[t, b] == truncated
            if not terminated:
                np.testing.assert_array_equal(found.next_obs[t, b], next_obs)


def test_memory_is_stored():
    memory = np.arange(T * N * 4, dtype=np.float32).reshape(T, N, 4)
    rollout = Episodes(0).rollout()._replace(memory=memory)

    @jax.jit
    def drawn(rollout, key):
        buffer = replay.init(
            SPEC, N, ROWS * N, prioritized=False, memory=jnp.zeros((N, 4))
        )
        return replay.sample_sequences(replay.add(buffer, rollout), key, 20, length=T)

    _, found, _ = jax.tree.map(np.array, drawn(rollout, KEY))
    for b in range(20):
        assert (found.memory[:, b] == memory[:, int(found.memory[0, b, 0]) // 4]).all()


def test_a_rollout_that_does_not_divide_the_capacity():
    rollout = Episodes(0).rollout(3)
    with pytest.raises(ValueError, match="capacity=24: must be a multiple of .* = 9"):
        jax.eval_shape(replay.add, init(), rollout)


@pytest.mark.parametrize("prioritized", [False, True])
def test_vmapped_buffers_are_independent(prioritized):
    singles, rollouts = [], [Episodes(seed).rollout() for seed in range(8)]
    buffers = jax.tree.map(
        lambda x: np.broadcast_to(np.array(x), (8, *x.shape)), init(prioritized)
    )
    stacked = jax.tree.map(lambda *x: np.stack(x), *rollouts)
    keys = jax.random.split(jax.random.key(0), 8)

    def use(buffer, rollout, key):
        buffer = replay.add(buffer, rollout)
        drawn = replay.sample(buffer, key, 4, n_step=3)
        if prioritized:
            priority = drawn.windows.reward.sum(axis=1)
            buffer = replay.update_priorities(buffer, drawn.index, priority)
        return buffer, drawn

    together = jax.jit(jax.vmap(use))(buffers, stacked, keys)
    use = jax.jit(use)
    for i, rollout in enumerate(rollouts):
        singles.append(use(init(prioritized), rollout, keys[i]))
    alone = jax.tree.map(lambda *x: np.stack(x), *singles)
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("seeds", [1, 4])
def test_nothing_copies_the_buffer(seeds):
    rollout = jax.tree.map(jnp.array, Episodes(0).rollout())

    def run(buffer, keys):
        def step(buffer, key):
            buffer = replay.add(buffer, rollout)
            drawn = replay.sample(buffer, key, 8, n_step=3)
            priority = drawn.windows.reward.sum(axis=1)
            weights = replay.importance_weights(buffer, drawn.probability, 0.5)
            return replay.update_priorities(buffer, drawn.index, priority), weights

        return jax.lax.scan(step, buffer, keys)

    big = jax.eval_shape(
        jax.vmap(lambda _: init(True, rows=8_000)), np.arange(float(seeds))
    )
    keys = jax.eval_shape(lambda key: jax.random.split(key, (seeds, 10)), KEY)
    compiled = jax.jit(jax.vmap(run), donate_argnums=0).lower(big, keys).compile()
    stored = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(big))
    assert compiled.memory_analysis().temp_size_in_bytes < 0.05 * stored


@pytest.mark.parametrize("prioritized", [False, True])
def test_an_empty_buffer_gives_zeros_and_no_nan(prioritized):
    spec = envs.make("CartPole-v1").spec

    @jax.jit
    def draw(key):
        buffer = replay.init(spec, 2, 8, prioritized=prioritized)
        drawn = replay.sample(buffer, key, 5)
        sequences = replay.sample_sequences(buffer, key, 5, length=3)
        weights = replay.importance_weights(buffer, drawn.probability, 1.0)
        return drawn, sequences, weights

    with jax.debug_nans(True), jax.debug_infs(True):
        drawn, (start, sequences, _), weights = draw(jax.random.key(0))
    for index in (drawn.index, start):
        assert ((index >= 0) & (index < 8)).all()
    assert not drawn.windows.obs.any() and not sequences.obs.any()
    np.testing.assert_array_equal(weights, 1.0)
