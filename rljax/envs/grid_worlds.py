"""Small grid worlds, drawn at random: tasks of one program, told apart by arrays.

In the manner of Oh et al. (2020), https://arxiv.org/abs/2007.08794, section 4.1, and
Jackson et al. (2023), https://arxiv.org/abs/2310.02782: objects pay, may end the
episode, and may come back. The state is observed whole, as its number.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rljax.envs._gymnax import Action, Environment, EnvParams, EnvState, spaces

_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # rows and columns: up, right, down, left


@struct.dataclass
class GridWorldParams(EnvParams):
    """Of `GridWorld`: C cells, M objects. Cells are counted row by row."""

    next_cell: jax.Array = struct.field(default=None)  # [C, 4] int32, of each move
    start: jax.Array = struct.field(default=None)  # [C] probabilities
    place: jax.Array = struct.field(default=None)  # [M] int32, cells of the objects
    reward: jax.Array = struct.field(default=None)  # [M] for whoever gets there
    p_end: jax.Array = struct.field(default=None)  # [M] that the episode then ends
    p_respawn: jax.Array = struct.field(default=None)  # [M] to be back after a step
    max_steps_in_episode: int = 50


@struct.dataclass
class GridWorldState(EnvState):
    """Of `GridWorld`."""

    cell: jax.Array  # [] int32, of the agent
    present: jax.Array  # [M] bool, the objects that are there


class GridWorld(Environment[GridWorldState, GridWorldParams]):
    """Walk a grid with walls and objects; an object that is reached pays and is gone.

    A move into a wall stays. Each object has its place, comes back there by chance, and
    may end the episode, which is then terminated; the time limit truncates. The agent
    sees the number of the state: `cell * 2**M`, and a bit for each object. Time is not
    seen.

    Args:
      size: rows and columns of the square that holds the grid.
      num_objects: M.
    """

    def __init__(self, size: int = 6, num_objects: int = 3):
        super().__init__()
        self.size, self.num_objects = size, num_objects

    @property
    def num_states(self) -> int:
        """Cells times sets of objects."""
        return self.size**2 * 2**self.num_objects

    @property
    def default_params(self) -> GridWorldParams:
        """No walls; objects that pay 1 and end the episode, in the first cells."""
        free, ones = jnp.ones(self.size**2, bool), jnp.ones(self.num_objects)
        place = jnp.arange(self.num_objects)
        return GridWorldParams(
            next_cell=moves(free),
            start=_uniform(free.at[place].set(False)),
            place=place,
            reward=ones,
            p_end=ones,
            p_respawn=0 * ones,
        )

    @property
    def num_actions(self) -> int:
        """Up, right, down, left."""
        return len(_MOVES)

    def action_space(self, params: GridWorldParams | None = None) -> spaces.Discrete:
        """Up, right, down, left."""
        return spaces.Discrete(len(_MOVES))

    def observation_space(
        self, params: GridWorldParams | None = None
    ) -> spaces.Discrete:
        """The number of the state."""
        return spaces.Discrete(self.num_states)

    def reset_env(
        self, key: jax.Array, params: GridWorldParams
    ) -> tuple[jax.Array, GridWorldState]:
        """Put the agent into a free cell; all objects are there."""
        below = jax.random.uniform(key) < jnp.cumsum(params.start)
        last = jnp.max(jnp.where(params.start > 0, jnp.arange(self.size**2), 0))
        cell = jnp.where(below.any(), below.argmax(), last).astype(jnp.int32)
        zero: Any = jnp.zeros((), jnp.int32)
        present = jnp.ones(self.num_objects, bool)
        state = GridWorldState(time=zero, cell=cell, present=present)
        return self.observe(key, state, None, params), state

    def step_env(
        self,
        key: jax.Array,
        state: GridWorldState,
        action: Action,
        params: GridWorldParams,
    ) -> tuple[jax.Array, GridWorldState, jax.Array, jax.Array, dict]:
        """Move, take what is there, let what is gone come back."""
        chance = jax.random.uniform(key, (1 + self.num_objects,))
        cell = params.next_cell[state.cell, action]
        taken = state.present & (params.place == cell)
        back = ~state.present & (chance[1:] < params.p_respawn)
        reward = jnp.sum(jnp.where(taken, params.reward, 0.0))
        ended = chance[0] < jnp.sum(jnp.where(taken, params.p_end, 0.0))
        state = GridWorldState(
            time=state.time + 1, cell=cell, present=(state.present & ~taken) | back
        )
        return self.observe(key, state, action, params), state, reward, ended, {}

    def observe(
        self,
        key: jax.Array,
        state: GridWorldState,
        action: Action | None,
        params: GridWorldParams,
    ) -> jax.Array:
        """The number of the state."""
        bits = jnp.sum(state.present * 2 ** jnp.arange(self.num_objects))
        return (state.cell * 2**self.num_objects + bits).astype(jnp.int32)


def moves(free: jax.Array) -> jax.Array:
    """Return the cells `[C, 4]` that moves lead to, in a square with these free cells.

    Args:
      free: `[C]` bool, the cells without a wall, row by row.
    """
    cells = len(free)
    size = round(cells**0.5)
    row, column = np.divmod(np.arange(cells), size)
    to = np.stack([row, column], 1)[:, None] + np.array(_MOVES)  # [C, 4, 2]
    inside = ((to >= 0) & (to < size)).all(-1)
    number = np.clip(to, 0, size - 1) @ np.array([size, 1])
    open_ = jnp.asarray(inside) & free[number]
    return jnp.where(open_, number, np.arange(cells)[:, None]).astype(jnp.int32)


def draw_params(key: jax.Array, gym: GridWorld) -> GridWorldParams:
    """Draw a grid world: a room with walls and three kinds of objects.

    Rows and columns are 3 to `size` each; up to a quarter of the cells are walls. The
    first object pays 0.5 to 1; the second -1 to 1; others -1 to 0. Half of the objects
    never end the episode, the others do with a chance of 0 to 1. Objects come back
    after each step with a chance of 0 to 0.2.
    """
    keys = jax.random.split(key, 6)
    height, width = jax.random.randint(keys[0], (2,), 3, gym.size + 1)
    row, column = np.divmod(np.arange(gym.size**2), gym.size)
    room = (row < height) & (column < width)
    order = jnp.argsort(jnp.where(room, jax.random.uniform(keys[1], room.shape), 2.0))
    kept = jnp.zeros(room.shape, bool).at[order[: gym.num_objects + 2]].set(True)
    share_key, wall_key = jax.random.split(keys[2])
    share = jax.random.uniform(share_key, maxval=0.25)
    wall = jax.random.uniform(wall_key, room.shape) < share
    free = room & (kept | ~wall)
    place = order[: gym.num_objects].astype(jnp.int32)
    low = np.array([0.5, *(gym.num_objects - 1) * [-1.0]])
    high = np.array([1.0, 1.0, *(gym.num_objects - 2) * [0.0]][: gym.num_objects])
    pays = low + (high - low) * jax.random.uniform(keys[3], low.shape)
    ends, chance = jax.random.uniform(keys[4], (2, gym.num_objects))
    return GridWorldParams(
        next_cell=moves(free),
        start=_uniform(free.at[place].set(False)),
        place=place,
        reward=jnp.asarray(pays, jnp.float32),
        p_end=jnp.where(ends < 0.5, 0.0, chance),
        p_respawn=jax.random.uniform(keys[5], low.shape, maxval=0.2),
    )


def _uniform(cells: jax.Array) -> jax.Array:
    return cells / jnp.sum(cells)


def transitions(
    gym: GridWorld, params: GridWorldParams
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return a grid world as a table, for dynamic programming.

    Returns:
      Probabilities `[S, 4, S]` of next states without an end, mean rewards `[S, 4]`,
      and first states' probabilities `[S]`.
    """
    masks = 2**gym.num_objects
    present = (np.arange(masks)[:, None] >> np.arange(gym.num_objects)) % 2 == 1
    cell = params.next_cell[:, :, None]  # [C, 4, 1]
    taken = present & (params.place == cell[..., None])  # [C, 4, masks, M]
    reward = jnp.sum(taken * params.reward, axis=-1)
    going_on = 1.0 - jnp.sum(taken * params.p_end, axis=-1)
    stays = 1.0 * (present & ~taken)
    there = jnp.where(present, stays, params.p_respawn)  # [C, 4, masks, M]
    chance = jnp.where(present, there[..., None, :], 1.0 - there[..., None, :])
    to_mask = chance.prod(-1) * going_on[..., None]  # [C, 4, masks, masks]
    to_cell = jax.nn.one_hot(cell[..., 0], gym.size**2)  # [C, 4, C]
    p = to_cell[:, :, None, :, None] * to_mask[:, :, :, None, :]
    p = jnp.moveaxis(p, 1, 2).reshape(gym.num_states, len(_MOVES), gym.num_states)
    reward = jnp.moveaxis(reward, 1, 2).reshape(gym.num_states, len(_MOVES))
    first = jnp.zeros((gym.size**2, masks)).at[:, -1].set(params.start)
    return p, reward, first.ravel()


def optimum(gym: GridWorld, params: GridWorldParams, horizon: int = 50) -> jax.Array:
    """Return the mean return `[]` of the best policy, which knows task and time."""
    p, reward, first = transitions(gym, params)

    def backup(value: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.max(reward + p @ value, axis=1), None

    value = jax.lax.scan(backup, jnp.zeros(gym.num_states), None, horizon)[0]
    return first @ value
