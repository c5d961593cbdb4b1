"""The nouns of the package: spaces, transitions, rollouts, agents, train states."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Params = Any  # a tree of arrays
Metrics = dict[str, jax.Array]  # scalar arrays by name


class Discrete(NamedTuple):
    """Actions 0, 1, ..., num_actions - 1, as int32."""

    num_actions: int
    masked: bool = False  # observations end with so many flags: which are legal


class Box(NamedTuple):
    """Continuous actions, as float32 `[*shape]`, bounded elementwise."""

    shape: tuple[int, ...]
    low: tuple[float, ...]  # one bound per element, in row-major order
    high: tuple[float, ...]


class States(NamedTuple):
    """Observations that name states, as integers; networks see them one-hot."""

    number: int  # of states: 0, 1, ..., number - 1


class Levels(NamedTuple):
    """Integers between bounds, as of an image; networks see them from 0 to 1."""

    low: tuple[float, ...]  # one for all entries, or one each, in row-major order
    high: tuple[float, ...]


class Spec(NamedTuple):
    """What an agent must know of an environment. Hashable."""

    obs_shape: tuple[int, ...]
    obs_dtype: str  # numpy name: "float32", "bool", "uint8"
    action: Discrete | Box
    # In so many steps in a row an environment is truncated at most once, by proof; 1
    # where nothing is known. What follows every truncated step is then kept.
    max_steps: int = 1
    differentiable: bool = False  # steps have derivatives in state and action
    reading: States | Levels | None = None  # of observations; None: as they come


class TimeStep(NamedTuple):
    """What a batch of N environments returns from one step."""

    obs: Any  # [N, ...] to act on next: a new episode's first where one ended
    reward: jax.Array  # [N] float32
    terminated: jax.Array  # [N] bool, the task ended: no value beyond
    truncated: jax.Array  # [N] bool, the time limit cut the episode
    next_obs: Any  # [N, ...] the true successor, also where the episode ended
    info: dict[str, jax.Array]  # [N] each; may be empty, EpisodeStatistics adds two


class Transition(NamedTuple):
    """One step of one environment; `[B, ...]` or `[T, N, ...]` when batched."""

    obs: Any  # [...]
    action: jax.Array  # [] int32 or [*shape] float32
    reward: jax.Array  # [] float32
    terminated: jax.Array  # [] bool
    truncated: jax.Array  # [] bool
    next_obs: Any  # [...] the true successor; from a replay only if not terminated


class Simulation(NamedTuple):
    """What a rollout's environments need to run once more: `rollout.simulate`."""

    env: Any  # the batched environment, a pytree
    state: Any  # [N, ...] of the environments at the start
    noise: Any  # [T, N, ...] of `env.draw`


class Rollout(NamedTuple):
    """T steps of N environments, time-major."""

    obs: Any  # [T, N, ...]
    action: jax.Array  # [T, N] int32 or [T, N, *shape] float32
    reward: jax.Array  # [T, N] float32
    terminated: jax.Array  # [T, N] bool
    truncated: jax.Array  # [T, N] bool
    next_obs: Any  # [T, N, ...] the true successor; from a replay as a Transition's
    extras: Any  # [T, N, ...] whatever `act` returned beside the action
    memory: Any  # [T, N, ...] the agent's memory before each action
    simulation: Any = ()  # a Simulation, for agents that ask for it


class Agent(NamedTuple):
    """A learning rule as a value: a tuple of pure functions.

    init:    `(config, key) -> state`
    memory:  `(config, num_envs) -> memory`, `()` for feed-forward agents
    act:     `(config, state, memory, obs[N, ...], key, explore)
             -> (action[N, ...], memory, extras)`
    observe: `(config, state, rollout) -> state`, store only
    update:  `(config, state, rollout, key) -> (state, metrics)`, of a state that has
             observed the rollout
    parts:   how many functions `update` gives to `sharding.side_by_side`
    policy:  `(config, state, obs[..., *obs_shape]) -> distribution` over actions
    q_values: `(config, state, obs) -> [..., A]`, the action values
    value:   `(config, state, obs) -> [...]`, the state's value
    simulates: whether `update` runs the environments again: its rollouts then have
             their `simulation`
    """

    init: Callable[..., Any]
    memory: Callable[..., Any]
    act: Callable[..., tuple[jax.Array, Any, Any]]
    observe: Callable[..., Any]
    update: Callable[..., tuple[Any, Metrics]]
    parts: int = 1
    simulates: bool = False
    policy: Callable[..., Any] | None = None
    q_values: Callable[..., jax.Array] | None = None
    value: Callable[..., jax.Array] | None = None


class TrainState(NamedTuple):
    """Everything a run needs to go on: save it, load it, continue bit for bit."""

    agent: Any  # the agent's State
    env: Any  # state of the N environments
    obs: Any  # [N, ...]
    memory: Any  # [N, ...]
    key: jax.Array  # [] typed key
    # [] int32, environment steps taken, all N counted, at most 2^31 - 1: longer runs
    # are counted on the host
    step: jax.Array
