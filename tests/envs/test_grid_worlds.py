"""Grid worlds: their table, their optimum, their ends, and what is drawn."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.envs import grid_worlds, tasks

GYM = grid_worlds.GridWorld(size=3, num_objects=2)
UP, RIGHT, DOWN, LEFT = range(4)


def corridor(**changes):
    """Cells 0, 1, 2 in a row, walls below; objects in 0 and 2, the start in 1."""
    free = jnp.arange(9) < 3
    params = grid_worlds.GridWorldParams(
        next_cell=grid_worlds.moves(free),
        start=jnp.zeros(9).at[1].set(1.0),
        place=jnp.array([0, 2]),
        reward=jnp.array([1.0, -0.5]),
        p_end=jnp.array([0.0, 1.0]),
        p_respawn=jnp.array([0.0, 0.0]),
    )
    return dataclasses.replace(params, **changes)


def walk(params, actions):
    """Rewards, ends and states along the actions."""
    obs, state = GYM.reset_env(jax.random.key(0), params)
    rows = []
    for i, action in enumerate(actions):
        obs, state, reward, ended, _ = GYM.step_env(
            jax.random.key(i), state, action, params
        )
        rows.append((float(reward), bool(ended), obs.tolist()))
    return rows


def test_objects_pay_once_end_and_are_gone():
    assert GYM.reset_env(jax.random.key(0), corridor())[0] == 1 * 4 + 3
    assert walk(corridor(), [DOWN, LEFT, LEFT, RIGHT, RIGHT]) == [
        (0.0, False, 7),  # a wall
        (1.0, False, 2),
        (0.0, False, 2),  # the edge; the object is gone
        (0.0, False, 6),
        (-0.5, True, 8),
    ]


def test_objects_come_back():
    back = corridor(p_respawn=jnp.ones(2))
    assert walk(back, [LEFT, LEFT, LEFT, LEFT]) == [
        (1.0, False, 2),
        (0.0, False, 3),  # back after the step after it was taken
        (1.0, False, 2),
        (0.0, False, 3),
    ]


@pytest.mark.parametrize(
    ("changes", "horizon", "best"),
    [
        ({}, 5, 1.0),  # left, and never right
        (dict(p_respawn=jnp.ones(2)), 5, 3.0),  # steps 1, 3 and 5
        (dict(p_respawn=jnp.array([0.5, 0.0])), 3, 1.5),
        (dict(p_end=jnp.ones(2), p_respawn=jnp.ones(2)), 5, 1.0),
        (dict(p_end=jnp.array([0.5, 1.0]), p_respawn=jnp.ones(2)), 5, 1.75),
        (dict(reward=jnp.array([-1.0, -0.5])), 5, 0.0),
    ],
)
def test_the_optimum_by_hand(changes, horizon, best):
    found = grid_worlds.optimum(GYM, corridor(**changes), horizon)
    assert float(found) == pytest.approx(best, abs=1e-6)


def drawn(number, gym=GYM):
    draw = functools.partial(grid_worlds.draw_params, gym=gym)
    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), number))


def test_the_table_is_that_of_the_steps():
    """Frequencies of 4000 steps from each of some states, by the table's chances."""
    params = jax.tree.map(lambda x: x[0], drawn(1))
    assert float(params.p_end.max()) > 0
    table, mean, first = grid_worlds.transitions(GYM, params)
    ends = 1.0 - table.sum(-1)
    assert np.all(ends > -1e-6) and np.isclose(first.sum(), 1.0)
    place = int(params.place[int(params.p_end.argmax())])
    cells = [int(np.argmax(first.reshape(9, 4)[:, -1])), place]

    @jax.jit
    def step(keys, cell, mask, action):
        present = (mask >> np.arange(2)) % 2 == 1
        state = grid_worlds.GridWorldState(time=0, cell=cell, present=present)
        return jax.vmap(lambda key: GYM.step_env(key, state, action, params))(keys)

    keys = jax.random.split(jax.random.key(1), 4000)
    for cell in cells:
        for mask in range(4):
            for action in range(4):
                obs, _, reward, ended, _ = step(keys, cell, mask, action)
                state, size = 4 * cell + mask, len(keys)
                on = np.bincount(np.array(obs)[~np.array(ended)], minlength=36) / size
                np.testing.assert_allclose(on, table[state, action], atol=0.05)
                assert float(np.mean(ended)) == pytest.approx(
                    float(ends[state, action]), abs=0.05
                )
                assert float(reward.mean()) == pytest.approx(
                    float(mean[state, action]), abs=1e-5
                )


def test_what_is_drawn_is_a_room_with_a_start_and_objects_apart():
    gym = grid_worlds.GridWorld()
    params = drawn(500, gym)
    places = np.sort(params.place, axis=1)
    assert np.all(np.diff(places, axis=1) > 0)
    start = np.array(params.start)
    np.testing.assert_allclose(start.sum(-1), 1.0, rtol=1e-5)
    assert not np.any(np.take_along_axis(start, np.array(params.place), 1))
    assert np.all(params.reward[:, 0] >= 0.5) and np.all(params.reward[:, 2] <= 0)
    never = np.mean(np.array(params.p_end) == 0)
    assert 0.4 < never < 0.6 and np.all(params.p_end <= 1)
    assert np.all(params.p_respawn < 0.2)
    # Moves lead to free cells, and back.
    to = np.array(params.next_cell)
    for world in range(20):
        for action, opposite in ((UP, DOWN), (LEFT, RIGHT)):
            there = to[world, :, action]
            moved = there != np.arange(36)
            back = to[world, there[moved], opposite]
            open_ = to[world, np.arange(36)[moved]] != np.arange(36)[moved, None]
            free = open_.any(-1) & (start[world, np.arange(36)[moved]] > 0)
            np.testing.assert_array_equal(back[free], np.arange(36)[moved][free])


def test_terminations_terminate_and_limits_truncate():
    assert envs.check(grid_worlds.GridWorld()) == []
    params = corridor(p_end=jnp.zeros(2), max_steps_in_episode=3)
    env = envs.wrap(GYM, params)
    assert env.spec.max_steps == 3 and env.spec.reading.number == 36
    state, _ = env.reset(jax.random.key(0), 2)
    noise = env.draw(jax.random.key(1), 3, 2)
    for t in range(3):
        row = jax.tree.map(lambda x, t=t: x[t], noise)
        state, step = env.step(row, state, jnp.array([LEFT, RIGHT]))
        assert not step.terminated.any()
        assert step.truncated.tolist() == 2 * [t == 2]
    assert step.next_obs[:, 0].tolist() == [2, 9] and step.obs.tolist() == [[7], [7]]


def test_many_worlds_run_in_one_program():
    draw = tasks.tasks("grid_worlds")

    def returns(key):
        env = draw(key)
        state, obs = env.reset(key, 2)
        noise = env.draw(key, 60, 2)

        def step(state, row):
            state, timestep = env.step(row, state, jnp.array([1, 2]))
            return state, (timestep.reward, timestep.truncated)

        return jax.lax.scan(step, state, noise)[1]

    keys = jax.random.split(jax.random.key(0), 30)
    reward, truncated = jax.jit(jax.vmap(returns))(keys)
    assert reward.shape == (30, 60, 2) and truncated.any()
    assert len(np.unique(np.abs(reward).sum((1, 2)))) > 15
