# pyright: reportMissingImports=false
"""Adapter of Navix' grid worlds."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import navix
import numpy as np
from navix.rendering.cache import RenderingCache

from rljax.config import unknown
from rljax.envs._gymnax import Action, spaces
from rljax.envs.adapters.functional import (
    AdapterParams,
    Functional,
    Step,
    box,
    planes,
    unbounded,
)

# Of a symbol: kinds of things, colours, and ways to be open or to look.
_COUNTS = (11, 6, 4)
_OBSERVATIONS = (
    "symbolic",
    "symbolic_first_person",
    "rgb",
    "rgb_first_person",
    "categorical",
    "categorical_first_person",
)


class _State(NamedTuple):
    """The parts of navix' time step that the next one depends on."""

    t: jax.Array  # [] int32
    # navix' state without its cache of images, which is its greatest part by far and
    # follows from the grid.
    state: Any


def names() -> list[str]:
    """List navix' environments."""
    return sorted(navix.registry())


def options(name: str) -> list[str]:
    """List the fields of an environment, and `one_hot`."""
    fields = [field.name for field in dataclasses.fields(navix.make(name))]
    return [field for field in fields if field not in ("height", "width")] + ["one_hot"]


def make(
    name: str,
    *,
    max_steps: int = 100,
    one_hot: bool = True,
    observation_fn: Any = "symbolic",
    **arguments: Any,
) -> Functional:
    """Make an environment.

    Args:
      name: as navix has it.
      max_steps: the time limit.
      one_hot: planes of zeros and ones instead of the numbers of symbols.
      observation_fn: a function of `navix.observations`, or its name.
      **arguments: fields of the environment.
    """
    if isinstance(observation_fn, str):
        if observation_fn not in _OBSERVATIONS:
            raise ValueError(unknown("observation_fn", observation_fn, _OBSERVATIONS))
        observation_fn = getattr(navix.observations, observation_fn)
    env = navix.make(name, observation_fn=observation_fn, **arguments)
    symbols = (navix.observations.symbolic, navix.observations.symbolic_first_person)
    view = _View(symbols=observation_fn in symbols, one_hot=one_hot)

    def reset(key: jax.Array, _: AdapterParams) -> tuple[jax.Array, _State]:
        first = env.reset(key)
        return view.of(first.observation), _without_cache(first)

    def step(
        _: jax.Array, state: _State, action: Action, params: AdapterParams
    ) -> Step:
        before = navix.Timestep(
            t=state.t,
            observation=jnp.zeros(()),
            action=jnp.zeros((), jnp.int32),
            reward=jnp.zeros(()),
            step_type=jnp.zeros((), jnp.int32),
            state=_with_cache(state.state),
        )
        # `_step`: the public one would reset, which is gymnax's task.
        limited = env.replace(max_steps=params.max_steps_in_episode)
        after = limited._step(before, jnp.asarray(action))
        return Step(
            obs=view.of(after.observation),
            state=_without_cache(after),
            reward=after.reward,
            terminated=after.step_type == 2,
        )

    params = AdapterParams(max_steps_in_episode=max_steps)
    shape = jax.eval_shape(reset, jax.random.key(0), params)[0]
    return Functional(
        reset=reset,
        step=step,
        action=spaces.Discrete(len(env.action_set)),
        observation=view.space(shape),
        params=params,
        picture=lambda state: np.asarray(
            navix.observations.rgb(_with_cache(state.state))
        ),
    )


class _View(NamedTuple):
    """The form in which observations are handed on."""

    symbols: bool  # three numbers for each cell
    one_hot: bool  # as zeros and ones

    def of(self, obs: jax.Array) -> jax.Array:
        """Return an observation for agents."""
        if not self.symbols:
            return obs
        # KeyCorridor's doors have the number -2, as a byte 254.
        obs = jnp.minimum(obs, jnp.array(_COUNTS, obs.dtype) - 1)
        return planes(obs, _COUNTS) if self.one_hot else obs

    def space(self, obs: jax.ShapeDtypeStruct) -> object:
        """Return the space of observations of such a shape."""
        if self.symbols and not self.one_hot:
            high = np.broadcast_to(np.array(_COUNTS) - 1, obs.shape)
            return box(np.zeros_like(high), high, obs.shape, obs.dtype)
        if self.symbols:
            return box(0, 1, obs.shape, obs.dtype)
        if obs.dtype == jnp.uint8:
            return box(0, 255, obs.shape, obs.dtype)
        return unbounded(obs)


def _with_cache(state: Any) -> Any:
    return state.replace(cache=RenderingCache.init(state.grid))


def _without_cache(timestep: Any) -> _State:
    return _State(t=timestep.t, state=timestep.state.replace(cache=None))
