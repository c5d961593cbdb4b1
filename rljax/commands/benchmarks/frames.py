"""An environment of images whose steps cost little, for rljax's worker.

The same as `Frames` of sb3_worker.py.
"""

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

SIZE = 84  # of the image, height and width
PLANES = 4
WIDTH = 12  # of the bar
STEP = 4  # of a move
ACTIONS = 6
LENGTH = 200  # of an episode


@struct.dataclass
class State(environment.EnvState):
    """The step and the first lit column."""

    place: jax.Array


class Frames(environment.Environment):
    """A bar of light, which actions 0 and 1 move; the middle of the image pays.

    Observations are uint8 `[84, 84, 4]`, actions 6, episodes cut after 200 steps.
    """

    @property
    def default_params(self):
        """Returns the length of episodes."""
        return environment.EnvParams(max_steps_in_episode=LENGTH)

    def reset_env(self, key, params):
        """Returns the first observation and state."""
        place = jax.random.randint(key, (), 0, SIZE - WIDTH)
        return self.look(place), State(time=jnp.int32(0), place=place)

    def step_env(self, key, state, action, params):
        """Returns observation, state, reward, whether it ended, and no more."""
        move = jnp.array([-STEP, STEP, 0, 0, 0, 0])[action]
        place = jnp.clip(state.place + move, 0, SIZE - WIDTH)
        reward = (jnp.abs(place - (SIZE - WIDTH) // 2) < WIDTH).astype(jnp.float32)
        state = State(time=state.time + 1, place=place)
        return self.look(place), state, reward, jnp.bool_(False), {}

    def look(self, place):
        """Returns the image of a state."""
        column = jnp.arange(SIZE) - place
        lit = jnp.where((column >= 0) & (column < WIDTH), 255, 0).astype(jnp.uint8)
        return jnp.broadcast_to(lit[:, None], (SIZE, SIZE, PLANES))

    def action_space(self, params):
        """Returns the space of actions."""
        return spaces.Discrete(ACTIONS)

    def observation_space(self, params):
        """Returns the space of observations."""
        return spaces.Box(0, 255, (SIZE, SIZE, PLANES), jnp.uint8)
