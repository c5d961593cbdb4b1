"""Tiny environments with gymnax's API, whose every value is known beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams, EnvState


@struct.dataclass
class CounterParams(EnvParams):
    max_steps_in_episode: int = 5
    terminate_at: int = 1000  # time at which the episode terminates
    nan_at: int = 1000  # time from which on rewards are NaN
    reward: float = 1.0


class Counter(Environment):
    """Observes the time: 0 after a reset, k after k steps, whatever the action."""

    @property
    def default_params(self):
        return CounterParams()

    def action_space(self, params):
        return spaces.Discrete(2)

    def reset_env(self, key, params):
        state = EnvState(time=jnp.zeros((), jnp.int32))
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        state = EnvState(time=state.time + 1)
        obs = self.observe(key, state, action, params)
        reward = jnp.where(state.time >= params.nan_at, jnp.nan, params.reward)
        return obs, state, reward, state.time >= params.terminate_at, {}

    def observe(self, key, state, action, params):
        return jnp.float32(state.time)[None]

    def render(self, state, params):
        return np.full((4, 6, 3), state.time, np.uint8)


class OwnStep(Counter):
    """A `step` of its own, as a gymnax wrapper has; a reset observes -1."""

    def step(self, key, state, action, params=None):
        obs, stepped, reward, terminated, _ = self.step_env(key, state, action, params)
        truncated = self.is_truncated(stepped, params)
        done = terminated | truncated
        _, fresh = self.reset_env(key, params)
        state = jax.tree.map(lambda x, y: jnp.where(done, x, y), fresh, stepped)
        next_obs = jnp.where(done, -1.0, obs)
        info = {"final_observation": obs}
        return next_obs, state, reward, terminated, truncated, info


@struct.dataclass
class PlaceState(EnvState):
    place: jax.Array


class TwoPlaces(Environment):
    """Action 1 switches between places 0 and 1; arriving at place 1 pays 1.

    With discount 1/2 staying at place 1 is worth 2, and
    Q = [[1, 2], [2, 1]] in rows of places and columns of actions.
    """

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=4)

    def action_space(self, params):
        return spaces.Discrete(2)

    def reset_env(self, key, params):
        place = jax.random.randint(key, (), 0, 2)
        state = PlaceState(time=jnp.zeros((), jnp.int32), place=place)
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        state = PlaceState(time=state.time + 1, place=state.place ^ action)
        obs = self.observe(key, state, action, params)
        return obs, state, jnp.float32(state.place), jnp.bool(False), {}

    def observe(self, key, state, action, params):
        return jax.nn.one_hot(state.place, 2)


class Dice(Environment):
    """Two steps: the first pays nothing, the second 0, 1, 2 or 3, by equal chances.

    For action 1 the second pays 4 less. With discount 1/2 the returns are
    `returns[time][action]`, four equally likely ones each.
    """

    returns = (  # for discount 1/2
        ((0.0, 0.5, 1.0, 1.5), (0.0, 0.5, 1.0, 1.5)),
        ((0.0, 1.0, 2.0, 3.0), (-4.0, -3.0, -2.0, -1.0)),
    )

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=10)

    def action_space(self, params):
        return spaces.Discrete(2)

    def reset_env(self, key, params):
        state = EnvState(time=jnp.zeros((), jnp.int32))
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        throw = jax.random.randint(key, (), 0, 4) - 4 * action
        state = EnvState(time=state.time + 1)
        reward = jnp.where(state.time == 2, throw, 0).astype(jnp.float32)
        obs = self.observe(key, state, action, params)
        return obs, state, reward, state.time == 2, {}

    def observe(self, key, state, action, params):
        return jax.nn.one_hot(state.time, 2)


class Target(Environment):
    """One step: minus the squared distance of the action to (1/2, 1), then the end.

    Observes the action that arrived.
    """

    target = (0.5, 1.0)

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=10)

    def action_space(self, params):
        return spaces.Box(jnp.array([-1.0, -1.0]), jnp.array([1.0, 3.0]), (2,))

    def reset_env(self, key, params):
        return jnp.zeros(2), EnvState(time=jnp.zeros((), jnp.int32))

    def step_env(self, key, state, action, params):
        reward = -jnp.sum((action - jnp.array(self.target)) ** 2)
        return action, EnvState(time=state.time + 1), reward, jnp.bool(True), {}


@struct.dataclass
class SlideParams(EnvParams):
    max_steps_in_episode: int = 1000
    terminate_at: int = 1000  # time at which the episode terminates
    noise: float = 0.0  # standard deviation of what pushes beside the action


@struct.dataclass
class SlideState(EnvState):
    place: jax.Array


class Slide(Environment):
    """A place x goes to 0.9 x + action + noise and pays -x^2: all with derivatives."""

    _supports_transition_gradients = True

    @property
    def default_params(self):
        return SlideParams()

    def action_space(self, params):
        return spaces.Box(-4.0, 4.0, (1,))

    def reset_env(self, key, params):
        place = jax.random.uniform(key, (), minval=-1.0)
        state = SlideState(time=jnp.zeros((), jnp.int32), place=place)
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        push = action[0] + params.noise * jax.random.normal(key)
        state = SlideState(time=state.time + 1, place=0.9 * state.place + push)
        obs = self.observe(key, state, action, params)
        reward, ended = -(state.place**2), state.time >= params.terminate_at
        obs, state = self._apply_transition_gradient_policy(obs, state)
        return obs, state, reward, ended, {}

    def observe(self, key, state, action, params):
        return state.place[None]


class SlideOn(Slide):
    """A `step` of its own, whose episodes start where the last one ended."""

    def step(self, key, state, action, params=None):
        obs, state, reward, terminated, _ = self.step_env(key, state, action, params)
        truncated = self.is_truncated(state, params)
        time = jnp.where(terminated | truncated, 0, state.time)
        info = {"final_observation": obs}
        return obs, state.replace(time=time), reward, terminated, truncated, info


@struct.dataclass
class TableParams(EnvParams):
    """Places in rows; all of them leaves, so that one program serves many tables."""

    max_steps_in_episode: int = 1000
    starts: jax.Array = (0, 0, 0, 0)  # [4] places, equally likely
    follows: jax.Array = (0, 1, 2, 3)  # [4] the next place
    ends: jax.Array = (0, 0, 0, 0)  # [4] whether the step from there terminates
    shows: jax.Array = (0, 1, 2, 3)  # [4] what is seen there
    pays: jax.Array = ((0.0, 0.0),) * 4  # [4, 2] for each action
    late: int = 0  # whether it pays a step later and shows what it owes
    leaks: int = 0  # to `LeakyTable`


@struct.dataclass
class TableState(EnvState):
    place: jax.Array
    owed: jax.Array


def table(**fields):
    """`TableParams` of these fields, as arrays."""
    rows = TableParams(**fields)
    return jax.tree.map(jnp.array, rows, is_leaf=lambda x: isinstance(x, tuple))


class Table(Environment):
    """Four places whose rewards, order, ends and looks are those of `TableParams`."""

    _supports_transition_gradients = True

    @property
    def default_params(self):
        return table()

    def action_space(self, params):
        return spaces.Discrete(2)

    def reset_env(self, key, params):
        place = params.starts[jax.random.randint(key, (), 0, 4)]
        zero = jnp.zeros((), jnp.int32)
        state = TableState(time=zero, place=place, owed=jnp.float32(0.0))
        return self.observe(key, state, None, params), state

    def earned(self, pays, action):
        return pays[action]

    def step_env(self, key, state, action, params):
        earned = self.earned(params.pays[state.place], action)
        late = params.late == 1
        reward, owed = jnp.where(late, state.owed, earned), jnp.where(late, earned, 0.0)
        ended = params.ends[state.place] == 1
        place = params.follows[state.place]
        state = TableState(time=state.time + 1, place=place, owed=owed)
        obs = self.observe(key, state, action, params)
        obs, state = self._apply_transition_gradient_policy(obs, state)
        return obs, state, reward, ended, {}

    def observe(self, key, state, action, params):
        seen = jax.nn.one_hot(params.shows[state.place], 4)
        return jnp.append(seen, state.owed)


class ContinuousTable(Table):
    """Actions -1/2 and 1/2 pay what 0 and 1 do; a parabola whose top is the better."""

    def action_space(self, params):
        return spaces.Box(-1.0, 1.0, (1,))

    def earned(self, pays, action):
        best = jnp.where(pays[1] > pays[0], 0.5, -0.5)
        return pays.max() - (pays.max() - pays.min()) * (action[0] - best) ** 2


class LeakyTable(Table):
    """With `leaks`, an episode after one in place 2 i + j starts in 2 k + i.

    Who sees i and does not forget it knows the last bit of the next place.
    """

    def step(self, key, state, action, params=None):
        obs, stepped, reward, terminated, _ = self.step_env(key, state, action, params)
        truncated = self.is_truncated(stepped, params)
        _, fresh = self.reset_env(key, params)
        last, leaks = state.place // 2, params.leaks == 1
        place = jnp.where(leaks, 2 * (fresh.place // 2) + last, fresh.place)
        fresh = fresh.replace(place=place)
        done = terminated | truncated
        state = jax.tree.map(lambda x, y: jnp.where(done, x, y), fresh, stepped)
        info = {"final_observation": obs}
        next_obs = self.observe(key, state, action, params)
        return next_obs, state, reward, terminated, truncated, info
