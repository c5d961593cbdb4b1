"""The Two-Colors grid against a plain-Python copy, and its known mean rewards."""

import functools
import itertools
import subprocess
import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.envs import two_colors
from rljax.running import train
from rljax.running.evaluate import evaluate

from ..running.test_train import scripted

GYM = two_colors.TwoColors()
MOVES = {0: (-1, 0), 1: (0, 1), 2: (1, 0), 3: (0, -1)}


@functools.partial(jax.jit, static_argnames=("steps", "num_envs"))
def stream(env, key, steps, num_envs=3, start=0):
    """Random actions from a time on: states before and after, actions, `TimeStep`s."""
    key, reset_key, draw_key = jax.random.split(key, 3)
    state, _ = env.reset(reset_key, num_envs)
    time = jnp.full(num_envs, start, jnp.int32)
    state = state._replace(env=state.env.replace(time=time))
    actions = jax.random.randint(key, (steps, num_envs), 0, 4)

    def step(state, inputs):
        action, noise = inputs
        after, ts = env.step(noise, state, action)
        return after, (state.env, after.env, ts)

    noises = env.draw(draw_key, steps, num_envs)
    before, after, ts = jax.lax.scan(step, state, (actions, noises))[1]
    return before, after, actions, ts


def check_step(before, after, action, reward, params):
    """One step by the rules."""
    row, column = divmod(before["agent"], 5)
    down, right = MOVES[action]
    if 0 <= row + down < 5 and 0 <= column + right < 5:
        row, column = row + down, column + right
    agent = 5 * row + column
    items = {name: before[name] for name in ("blue", "red")}
    captured = next((name for name in items if items[name] == agent), None)
    flipped = (before["time"] // params.flip_period) % 2 == 1
    good = "red" if flipped else "blue"
    want = params.step_reward if captured is None else 1 if captured == good else -1
    assert reward == np.float32(want)
    assert after["time"] == before["time"] + 1
    cells = [after[name] for name in ("agent", "blue", "red")]
    assert len(set(cells)) == 3 and min(cells) >= 0 and max(cells) < 25
    kept = items | {"agent": agent}
    if captured:
        kept = {} if params.respawn_all else kept
        if not params.respawn_all:
            del kept[captured]
    for name, cell in kept.items():
        assert after[name] == cell
    return captured


@pytest.mark.parametrize("respawn_all", [True, False])
def test_steps_follow_the_rules(respawn_all):
    options = dict(flip_period=7, respawn_all=respawn_all, step_reward=-0.5)
    env = envs.make("TwoColors-v0", **options)
    before, after, actions, ts = jax.device_get(stream(env, jax.random.key(0), 1000))
    assert not ts.terminated.any() and not ts.truncated.any()
    captured = []
    for t, n in itertools.product(range(1000), range(3)):
        one = [{k: int(v[t, n]) for k, v in vars(s).items()} for s in (before, after)]
        args = *one, int(actions[t, n]), ts.reward[t, n], env.env.params
        captured.append(check_step(*args))
        want = np.zeros((3, 2, 5))
        for i, name in enumerate(("agent", "blue", "red")):
            row, column = divmod(one[1][name], 5)
            want[i, 0, row] = want[i, 1, column] = 1
        np.testing.assert_array_equal(ts.obs[t, n], want.ravel())
    np.testing.assert_array_equal(ts.obs, ts.next_obs)
    assert captured.count("blue") > 30 and captured.count("red") > 30


STATES = np.array(list(itertools.permutations(range(25), 3)))  # agent, blue, red
INDEX = np.full((25, 25, 25), -1)
INDEX[tuple(STATES.T)] = np.arange(len(STATES))


@functools.partial(jax.jit, static_argnums=0)
def successors(respawn_all, cells, actions, key, time=0):
    """Cells `[K, 3]` and rewards `[K]` after a step from each of `cells` `[K, 3]`."""
    params = GYM.default_params.replace(respawn_all=respawn_all)

    def one(cells, action, key):
        agent, blue, red = cells
        state = two_colors.TwoColorsState(time=time, agent=agent, blue=blue, red=red)
        _, state, reward, _, _ = GYM.step_env(key, state, action, params)
        return jnp.stack([state.agent, state.blue, state.red]), reward

    return jax.vmap(one)(cells, actions, jax.random.split(key, len(cells)))


def check_chances(counts):
    """Each row's counts are those of equal chances, by Pearson's statistic."""
    want = counts.mean()
    statistic = ((counts - want) ** 2 / want).sum()
    freedom = counts.size - counts.size // counts.shape[-1]
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


@functools.cache
def model(respawn_all):
    """The process as the environment's own step shows it, in all states.

    Rewards `[S, 4]`, successors `[S, 4]` where nothing is captured, which pairs
    capture, and the successors there, all equally likely: `[pairs, 23]`, or `[1, S]`
    with `respawn_all`.
    """
    cells, actions = np.repeat(STATES, 4, axis=0), np.tile(np.arange(4), len(STATES))
    after, reward = jax.device_get(
        successors(respawn_all, cells, actions, jax.random.key(0))
    )
    capture = abs(reward) == 1
    number = INDEX[tuple(after.T)]
    assert (number >= 0).all()  # in cells of their own

    copies = 120 if respawn_all else 400
    again = [np.repeat(x[capture], copies, axis=0) for x in (cells, actions)]
    drawn = successors(respawn_all, *again, jax.random.key(1))[0]
    drawn = INDEX[tuple(np.asarray(drawn).T)].reshape(-1, copies)
    if respawn_all:
        counts = np.bincount(drawn.ravel(), minlength=len(STATES))
        check_chances(counts)
        spread = np.flatnonzero(counts)[None]
        assert spread.size == len(STATES)
    else:
        every = [np.unique(row, return_counts=True) for row in drawn]
        spread = np.stack([found for found, _ in every])
        check_chances(np.stack([counts for _, counts in every]))
        assert spread.shape[1] == 23
    shape = (len(STATES), 4)
    return reward.reshape(shape), number.reshape(shape), capture.reshape(shape), spread


def gain(respawn_all, optimal):
    """Mean reward of a step, by relative value iteration."""
    reward, number, capture, spread = model(respawn_all)
    # Actions first and copies first: numpy reduces long rows much faster.
    reward, number, spread = (x.T.copy() for x in (reward, number, spread))
    states, actions = np.nonzero(capture)
    value = np.zeros(len(STATES))
    for _ in range(3000):
        successor = value[number]
        successor[actions, states] = value[spread].mean(axis=0)
        q = reward + successor
        new = q.max(axis=0) if optimal else q.mean(axis=0)
        change = new - value
        if np.ptp(change) < 1e-5:  # the gain is between the least and the greatest
            return 0.5 * (change.min() + change.max())
        value = 0.1 * value + 0.9 * new  # without periods
        value -= value[0]
    raise AssertionError(np.ptp(change))


@pytest.mark.parametrize(
    ("respawn_all", "uniform", "optimal"),
    [(True, -0.03851, 0.26934), (False, -0.03857, 0.27893)],
)
def test_mean_rewards_are_the_known_ones(respawn_all, uniform, optimal):
    """experiments.md B3."""
    assert abs(gain(respawn_all, False) - uniform) < 1e-5
    assert abs(gain(respawn_all, True) - optimal) < 1e-5


def test_signs_swap_and_nothing_else_does():
    cells, actions = np.repeat(STATES, 4, axis=0), np.tile(np.arange(4), len(STATES))
    key, period = jax.random.key(0), GYM.default_params.flip_period
    first, last, flipped, back = (
        jax.device_get(successors(True, cells, actions, key, time))
        for time in (0, period - 1, period, 2 * period)
    )
    for after, reward in (last, back):
        np.testing.assert_array_equal(after, first[0])
        np.testing.assert_array_equal(reward, first[1])
    item = abs(first[1]) == 1
    np.testing.assert_array_equal(flipped[0], first[0])
    np.testing.assert_array_equal(flipped[1][item], -first[1][item])
    np.testing.assert_array_equal(flipped[1][~item], np.float32(-0.04))
    assert item.sum() == 3680 and first[1][item].sum() == 0


def test_resets_are_spread_evenly():
    keys = jax.random.split(jax.random.key(0), 20 * len(STATES))
    params = GYM.default_params
    _, state = jax.jit(jax.vmap(GYM.reset_env, in_axes=(0, None)))(keys, params)
    assert (state.time == 0).all()
    counts = np.bincount(INDEX[state.agent, state.blue, state.red], minlength=13800)
    check_chances(counts)


@pytest.fixture(scope="module")
def env():
    """Of the default parameters."""
    return envs.make("TwoColors-v0")


@pytest.mark.parametrize(
    "period, start",
    [
        (10_000, 0),
        (10_000, 2_000_000_000),
        pytest.param(100_000, 0, marks=pytest.mark.slow),
        pytest.param(100_000, 2_000_000_000, marks=pytest.mark.slow),
    ],
)
def test_a_long_stream_neither_ends_nor_forgets_the_time(period, start):
    """The slow ones are ten times as long, with the default period."""
    env = envs.make("TwoColors-v0", flip_period=period)
    steps = 2 * period + 500
    before, after, _, ts = jax.device_get(
        stream(env, jax.random.key(1), steps, num_envs=1, start=start)
    )
    assert not ts.terminated.any() and not ts.truncated.any()
    np.testing.assert_array_equal(before.time[:, 0], start + np.arange(steps))
    np.testing.assert_array_equal(before.blue[1:], after.blue[:-1])  # no reset
    assert (ts.info["episode_length"][:, 0] == 1 + np.arange(steps)).all()

    def beside(item):
        """Whether the agent is next to it, so that a step may get there."""
        here, there = (np.divmod(x[:, 0], 5) for x in (before.agent, item))
        return abs(np.subtract(here, there)).sum(axis=0) == 1

    paid = ts.reward[:, 0] == 1.0
    flipped = np.arange(steps) // period % 2 == 1
    good = np.where(flipped, beside(before.red), beside(before.blue))
    assert (paid <= good).all()
    ends = [500, period - 500, period + 500, 2 * period - 500]
    for part in np.split(paid, ends):
        assert part.any()


def test_vmapped_parameters_and_gymnaxs_own_api():
    gym, params = gymnax.make("TwoColors-v0")
    assert type(gym) is two_colors.TwoColors and gym.num_actions == 4
    assert gym.observation_space(params).shape == (30,)

    def rewards(period):
        env = envs.wrap(gym, params.replace(flip_period=period))
        return stream(env, jax.random.key(0), 300)[-1].reward

    swept = jax.device_get(jax.vmap(rewards)(np.array([1, 10**6])))
    item = abs(swept[1]) == 1
    sign = 1 - 2 * (np.arange(300)[:, None] % 2)
    assert item.sum() > 10
    np.testing.assert_array_equal(swept[0], np.where(item, sign * swept[1], swept[1]))

    @jax.jit
    def reset_and_step():
        obs, state = gym.reset(jax.random.key(0), params)
        return obs, gym.step(jax.random.key(1), state, 0, params)

    obs, step = reset_and_step()
    assert obs.shape == step[0].shape == (30,) and obs.dtype == jnp.float32
    assert not step[3] and not step[4] and step[1].time == 1


def test_made_by_name_with_its_parameters():
    assert "TwoColors-v0" in envs.names()
    env = envs.make("TwoColors-v0", flip_period=1000, respawn_all=False)
    params = env.env.params
    assert (params.flip_period, params.respawn_all) == (1000, False)
    assert env.spec.obs_shape == (30,) and env.spec.action == envs.Discrete(4)
    with pytest.raises(ValueError, match="respawn_all='no' of .* True or False"):
        envs.make("TwoColors-v0", respawn_all="no")


def act(config, state, memory, obs, key, explore):
    return jax.random.randint(key, (len(obs),), 0, 4), memory, ()


def test_evaluations_are_cut(env):
    @jax.jit
    def play(key):
        ts = train.TrainState((), *env.reset(key, 64), (), key, jnp.int32(0))
        return evaluate(scripted(act), env, (), ts, key, 64)

    result = play(jax.random.key(0))
    np.testing.assert_array_equal(result.lengths, 1000)
    error = result.returns.std() / 8
    assert abs(result.returns.mean() - 1000 * -0.03851) < 4 * error


def test_importing_it_alone_is_cheap():
    code = "import sys, rljax.two_colors; sys.exit('seaborn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
