"""A grid with two items, one good and one bad, that swap at times; one endless stream.

`envs.make("TwoColors-v0")`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from rljax.envs._gymnax import Action, Environment, EnvParams, EnvState, spaces

_SIZE = 5
_CELLS = _SIZE * _SIZE
_MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))  # rows and columns: up, right, down, left


@struct.dataclass
class TwoColorsParams(EnvParams):
    """Of `TwoColors`."""

    flip_period: int = 100_000  # steps of one copy of the environment
    respawn_all: bool = True  # at a capture; False: the captured item only
    step_reward: float = -0.04  # of a step without capture
    max_steps_in_episode: int = 1000  # of an evaluation; the stream goes on


@struct.dataclass
class TwoColorsState(EnvState):
    """Of `TwoColors`; cells are counted row by row, and never shared."""

    agent: jax.Array  # [] int32
    blue: jax.Array  # [] int32
    red: jax.Array  # [] int32


class TwoColors(Environment[TwoColorsState, TwoColorsParams]):
    """A blue item pays 1 and a red one -1; each `flip_period` steps the signs swap.

    Flennerhag et al. (2022), https://arxiv.org/abs/2109.04504, and Luketina et al.
    (2022), https://arxiv.org/abs/2209.06159, appendix A. Nothing shows which one pays.
    A captured item goes to a free cell at random; with `respawn_all` so do all three.
    Nothing ends. An evaluation is cut after `max_steps_in_episode` steps, all of them
    before the first flip: rewards in training say more.
    """

    @property
    def default_params(self) -> TwoColorsParams:
        """As in the papers; respawn as in the second."""
        return TwoColorsParams()

    @property
    def num_actions(self) -> int:
        """Up, right, down, left."""
        return len(_MOVES)

    def action_space(self, params: TwoColorsParams | None = None) -> spaces.Discrete:
        """Up, right, down, left."""
        return spaces.Discrete(len(_MOVES))

    def observation_space(self, params: TwoColorsParams | None = None) -> spaces.Box:
        """Zeros and ones."""
        return spaces.Box(0, 1, (6 * _SIZE,), jnp.float32)

    def reset_env(
        self, key: jax.Array, params: TwoColorsParams
    ) -> tuple[jax.Array, TwoColorsState]:
        """Put all three in cells at random."""
        time: Any = jnp.zeros((), jnp.int32)
        agent, blue, red = _spread(_draw(key))
        state = TwoColorsState(time=time, agent=agent, blue=blue, red=red)
        return self.observe(key, state, None, params), state

    def step_env(
        self,
        key: jax.Array,
        state: TwoColorsState,
        action: Action,
        params: TwoColorsParams,
    ) -> tuple[jax.Array, TwoColorsState, jax.Array, jax.Array, dict]:
        """Move, capture, respawn."""
        place = jnp.stack([state.agent // _SIZE, state.agent % _SIZE])
        place = jnp.clip(place + jnp.array(_MOVES)[action], 0, _SIZE - 1)
        agent = place[0] * _SIZE + place[1]
        at_blue, at_red = agent == state.blue, agent == state.red
        flipped = state.time // params.flip_period % 2 == 1
        reward = jnp.where(at_blue == flipped, -1.0, 1.0)
        reward = jnp.where(at_blue | at_red, reward, params.step_reward)

        draws = _draw(key)
        blue = jnp.where(at_blue, _free(draws[2], agent, state.red), state.blue)
        red = jnp.where(at_red, _free(draws[2], agent, state.blue), state.red)
        cells = jnp.stack([agent, blue, red])
        afresh = (at_blue | at_red) & params.respawn_all
        agent, blue, red = jnp.where(afresh, _spread(draws), cells)
        state = TwoColorsState(time=state.time + 1, agent=agent, blue=blue, red=red)
        obs = self.observe(key, state, action, params)
        return obs, state, reward, jnp.bool(False), {}

    def observe(
        self,
        key: jax.Array,
        state: TwoColorsState,
        action: Action | None,
        params: TwoColorsParams,
    ) -> jax.Array:
        """Row and column of agent, blue and red, one-hot each."""
        cells = jnp.stack([state.agent, state.blue, state.red])
        places = jnp.stack([cells // _SIZE, cells % _SIZE], axis=1)
        return jax.nn.one_hot(places, _SIZE, dtype=jnp.float32).ravel()

    def is_truncated(self, state: TwoColorsState, params: TwoColorsParams) -> jax.Array:
        """Never."""
        return jnp.bool(False)

    def is_terminated(
        self, state: TwoColorsState, params: TwoColorsParams
    ) -> jax.Array:
        """Never."""
        return jnp.bool(False)


def _draw(key: jax.Array) -> jax.Array:
    """Draw numbers among the cells that are left, `[3]`, one after the other."""
    return jax.random.randint(key, (3,), 0, _CELLS - jnp.arange(3))


def _spread(draws: jax.Array) -> jax.Array:
    """Choose the cells of three, `[3]`; all ways have the same chance."""
    agent, blue = draws[0], draws[1] + (draws[1] >= draws[0])
    return jnp.stack([agent, blue, _free(draws[2], agent, blue)])


def _free(draw: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Find a cell by its number among all cells but two."""
    cell = draw + (draw >= jnp.minimum(first, second))
    return cell + (cell >= jnp.maximum(first, second))
