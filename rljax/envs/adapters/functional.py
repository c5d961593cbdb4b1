"""One environment of another package as functions, and those as gymnax's Environment.

An adapter writes a `Functional`; all that gymnax wants beside it is here, once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from rljax.envs._gymnax import Action, Environment, EnvParams, EnvState, spaces

# Of other packages, a pytree each.
Obs = Any
State = Any
Params = Any  # has the field max_steps_in_episode


class Step(NamedTuple):
    """One transition, before any reset."""

    obs: Obs  # the true successor's
    state: State
    reward: jax.Array  # []
    terminated: jax.Array  # [] never for a time limit


class Functional(NamedTuple):
    """One environment as functions of the package's state."""

    reset: Callable[[jax.Array, Params], tuple[Obs, State]]  # of key and parameters
    step: Callable[[jax.Array, State, Action, Params], Step]  # of key, state, action
    action: object  # spaces, with the fields of gymnax's
    observation: object
    params: Params  # their defaults; the package's time limit is among them
    mask: Callable[[State], jax.Array] | None = None  # bool [A], legal actions
    picture: Callable[[State], np.ndarray] | None = None  # uint8 [height, width, 3]
    differentiable: bool = False  # whether gradients pass through a step


@struct.dataclass
class AdapterParams(EnvParams):
    """Of an adapter whose package has no parameters that arrays could be."""

    max_steps_in_episode: Any = np.inf  # a number


@struct.dataclass
class AdapterState(EnvState):
    """The steps of the episode, and the package's state."""

    inner: State


class Adapter(Environment[AdapterState, Any]):
    """An environment of another package, with gymnax's API.

    The package's own time limit is taken out of `terminated` by its adapter and cuts
    episodes as gymnax's does, by `max_steps_in_episode`.
    """

    def __init__(self, name: str, functional: Functional):
        super().__init__()
        self._name = name
        self.functional = functional
        self._supports_transition_gradients = functional.differentiable
        # Hooks that are there only where the package has the means.
        if functional.mask is not None:
            mask = functional.mask
            self.action_mask = lambda state, params: mask(state.inner)
        if functional.picture is not None:
            picture = functional.picture
            self.render = lambda state, params: picture(state.inner)

    @property
    def name(self) -> str:
        """The package's name, a slash, and the name in the package."""
        return self._name

    @property
    def default_params(self) -> Params:
        """The time limit, and the package's own parameters."""
        return self.functional.params

    def action_space(self, params: Params = None) -> object:
        """Return the space of actions."""
        return self.functional.action

    def observation_space(self, params: Params = None) -> object:
        """Return the space of observations."""
        return self.functional.observation

    def reset_env(self, key: jax.Array, params: Params) -> tuple[Obs, AdapterState]:
        """Start an episode."""
        obs, inner = self.functional.reset(key, params)
        zero: Any = jnp.zeros((), jnp.int32)
        return obs, AdapterState(time=zero, inner=inner)

    def step_env(
        self, key: jax.Array, state: AdapterState, action: Action, params: Params
    ) -> tuple[Obs, AdapterState, jax.Array, jax.Array, dict[str, Any]]:
        """Step, and count."""
        after = self.functional.step(key, state.inner, action, params)
        stepped = AdapterState(time=state.time + 1, inner=after.state)
        obs, stepped = self._apply_transition_gradient_policy(after.obs, stepped)
        return obs, stepped, after.reward, after.terminated, {}


class MultiDiscrete(NamedTuple):
    """Several choices at once: the space of actions int32 `[K]`."""

    nvec: tuple[int, ...]  # number of choices of each


def box(low: Any, high: Any, shape: tuple[int, ...], dtype: Any) -> spaces.Box:
    """Return gymnax's space of an array between bounds, one or one for each entry."""
    return spaces.Box(low, high, shape, dtype)


def unbounded(obs: Obs) -> object:
    """Return the space of observations of which only shapes are known.

    Args:
      obs: one array, or a dict of them; `jax.ShapeDtypeStruct` will do.
    """
    if isinstance(obs, dict):
        return spaces.Dict({name: unbounded(part) for name, part in obs.items()})
    return spaces.Box(-jnp.inf, jnp.inf, obs.shape, obs.dtype)


def planes(identifiers: jax.Array, counts: tuple[int, ...]) -> jax.Array:
    """Make planes of a grid of identifiers, one for each value.

    Args:
      identifiers: integers `[height, width, K]`.
      counts: numbers of values of the K identifiers.

    Returns:
      bool `[height, width, sum(counts)]`.
    """
    kinds = [
        identifiers[..., i, None] == jnp.arange(count) for i, count in enumerate(counts)
    ]
    return jnp.concatenate(kinds, axis=-1)


def repeated(
    step: Callable[[State, Action], Step], state: State, action: Action, *, times: int
) -> Step:
    """Repeat an action until the episode ends; rewards add up.

    Args:
      step: of a state and an action.
      state: before.
      action: to repeat.
      times: steps at most, >= 1.
    """

    def once(before: Step, _: None) -> tuple[Step, None]:
        after = step(before.state, action)
        after = after._replace(reward=before.reward + after.reward)
        frozen = jax.tree.map(
            lambda x, y: jnp.where(before.terminated, x, y), before, after
        )
        return frozen, None

    first = step(state, action)
    return first if times == 1 else jax.lax.scan(once, first, None, times - 1)[0]


def check_repeat(action_repeat: object) -> None:
    """Raise unless an action can be repeated so often.

    Raises:
      ValueError: no integer, or below 1.
    """
    if type(action_repeat) is not int or action_repeat < 1:
        raise ValueError(f"action_repeat={action_repeat!r}: must be an integer >= 1")
