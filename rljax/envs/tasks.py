"""Distributions of tasks: functions of a key that draw an environment's parameters."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import struct

from rljax import envs
from rljax.config import unknown
from rljax.contracts import BatchedEnv
from rljax.envs import grid_worlds as worlds
from rljax.envs._gymnax import Action, Environment, EnvParams, EnvState, spaces
from rljax.envs.making import with_limit
from rljax.meta.maml import DrawTask

E = TypeVar("E", bound=BatchedEnv)


@struct.dataclass
class TabularParams(EnvParams):
    """Of `Tabular`: S states, A actions."""

    transition: jax.Array = struct.field(default=None)  # [S, A, S] probabilities
    reward: jax.Array = struct.field(default=None)  # [S, A] means
    max_steps_in_episode: int = 10


@struct.dataclass
class TabularState(EnvState):
    """Of `Tabular`."""

    place: jax.Array  # [] int32


class Tabular(Environment[TabularState, TabularParams]):
    """Steps between S states from state 0, for a fixed time; observed one-hot.

    Duan et al. (2016), https://arxiv.org/abs/1611.02779, section 3.2.1. Rewards are
    normal around their means, with standard deviation 1. The task ends with the
    horizon: it terminates.
    """

    def __init__(self, num_states: int = 10, num_actions: int = 5):
        super().__init__()
        self.shape = (num_states, num_actions)

    @property
    def default_params(self) -> TabularParams:
        """All successors equally likely, no mean rewards."""
        transition = jnp.full((*self.shape, self.shape[0]), 1.0 / self.shape[0])
        return TabularParams(transition=transition, reward=jnp.zeros(self.shape))

    def action_space(self, params: TabularParams) -> spaces.Discrete:
        """As many as the table has."""
        return spaces.Discrete(self.shape[1])

    def reset_env(
        self, key: jax.Array, params: TabularParams
    ) -> tuple[jax.Array, TabularState]:
        """Start in state 0."""
        zero: Any = jnp.zeros((), jnp.int32)
        state = TabularState(time=zero, place=zero)
        return self.observe(key, state, None, params), state

    def step_env(
        self,
        key: jax.Array,
        state: TabularState,
        action: Action,
        params: TabularParams,
    ) -> tuple[jax.Array, TabularState, jax.Array, Any, dict]:
        """Draw the reward and the next state."""
        reward_key, place_key = jax.random.split(key)
        reward = params.reward[state.place, action] + jax.random.normal(reward_key)
        logits = jnp.log(params.transition[state.place, action])
        place = jax.random.categorical(place_key, logits).astype(jnp.int32)
        state = TabularState(time=state.time + 1, place=place)
        ended = state.time >= params.max_steps_in_episode
        return self.observe(key, state, action, params), state, reward, ended, {}

    def observe(
        self,
        key: jax.Array,
        state: TabularState,
        action: Action | None,
        params: TabularParams,
    ) -> jax.Array:
        """The state, one-hot."""
        return jax.nn.one_hot(state.place, self.shape[0])


def tabular_optimum(params: TabularParams, horizon: int = 10) -> jax.Array:
    """Return the mean return `[]` of the best policy, which knows task and time."""

    def backup(value: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.max(params.reward + params.transition @ value, axis=1), None

    return jax.lax.scan(backup, jnp.zeros(len(params.reward)), None, horizon)[0][0]


def with_params(env: E, **changes: Any) -> E:
    """Give a batched environment other parameters, arrays under vmap as well.

    Args:
      env: as returned by `envs.make` or `envs.wrap`.
      **changes: fields of its `EnvParams`.

    Example:
      >>> from rljax import envs
      >>> with_params(envs.make("CartPole-v1"), length=1.0).env.params.length
      1.0
    """
    outer: Any = env
    if not hasattr(outer, "params"):  # a wrapper
        inner = with_params(outer.env, **changes)
        return dataclasses.replace(outer, env=inner)
    params = dataclasses.replace(outer.params, **changes)
    return dataclasses.replace(outer, params=with_limit(outer.gym, params))


def tabular() -> DrawTask:
    """10 states, 5 actions, horizon 10; p of Dirichlet(1), mean rewards of N(1, 1)."""
    gym = Tabular()
    env = envs.wrap(gym)

    def draw(key: jax.Array) -> BatchedEnv:
        transition_key, reward_key = jax.random.split(key)
        # Dirichlet(1): exponential variables over their sum.
        p = jax.random.exponential(transition_key, (*gym.shape, gym.shape[0]))
        p /= p.sum(axis=-1, keepdims=True)
        reward = 1.0 + jax.random.normal(reward_key, gym.shape)
        return with_params(env, transition=p, reward=reward)

    return draw


def cartpole() -> DrawTask:
    """Poles of half length 0.1 to 2, pushed with a force of 2 to 20, either way."""
    env = envs.make("CartPole-v1")

    def draw(key: jax.Array) -> BatchedEnv:
        length_key, force_key, sign_key = jax.random.split(key, 3)
        length = jax.random.uniform(length_key, minval=0.1, maxval=2.0)
        force = jax.random.uniform(force_key, minval=2.0, maxval=20.0)
        force *= jax.random.rademacher(sign_key, ())
        polemass_length = 0.1 * length
        return with_params(
            env, length=length, polemass_length=polemass_length, force_mag=force
        )

    return draw


def grid_worlds() -> DrawTask:
    """Rooms of 3 to 6 rows and columns, with walls and three objects; 50 steps."""
    gym = worlds.GridWorld()
    env = envs.wrap(gym)

    def draw(key: jax.Array) -> BatchedEnv:
        params = worlds.draw_params(key, gym)
        return with_params(env, **{name: getattr(params, name) for name in _DRAWN})

    return draw


_DRAWN = ("next_cell", "start", "place", "reward", "p_end", "p_respawn")
TASKS = {"cartpole": cartpole, "grid_worlds": grid_worlds, "tabular": tabular}


def tasks(name: str) -> DrawTask:
    """Return a distribution of tasks by its name.

    Raises:
      ValueError: an unknown name; those known are listed.
    """
    if name not in TASKS:
        raise ValueError(unknown("tasks", name, list(TASKS)))
    return TASKS[name]()
