# pyright: reportMissingImports=false
"""Adapter of XLand-MiniGrid's environments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from xminigrid.core.constants import NUM_COLORS, NUM_TILES
from xminigrid.registration import make as make_own
from xminigrid.registration import registered_environments
from xminigrid.rendering.rgb_render import render
from xminigrid.types import TimeStep

from rljax.envs._gymnax import Action, spaces
from rljax.envs.adapters.functional import AdapterParams, Functional, Step, box, planes

_COUNTS = (NUM_TILES, NUM_COLORS)


def names() -> list[str]:
    """List the environments; those of rulesets start with an empty one."""
    return list(registered_environments())


def options(name: str) -> list[str]:
    """List the fields of an environment's parameters, and `one_hot`."""
    fields = dataclasses.fields(make_own(name)[1])
    return [field.name for field in fields] + ["one_hot"]


def make(name: str, *, one_hot: bool = True, **arguments: Any) -> Functional:
    """Make an environment.

    Args:
      name: as the package has it.
      one_hot: planes of zeros and ones instead of the numbers of tiles and colours.
      **arguments: fields of its parameters. They shape programs, so they are no
        parameters in gymnax's sense, but for `max_steps`, the time limit.
    """
    env, fixed = make_own(name, **arguments)

    def observe(obs: Any) -> jax.Array:
        return planes(obs, _COUNTS) if one_hot else obs

    def reset(key: jax.Array, params: AdapterParams) -> tuple[jax.Array, Any]:
        first = env.reset(fixed, key)
        return observe(first.observation), first.state

    def step(_: jax.Array, state: Any, action: Action, params: AdapterParams) -> Step:
        # The limit shapes the reward: 1 - 0.9 step / limit.
        limited = fixed.replace(max_steps=params.max_steps_in_episode)
        before = TimeStep(
            state=state,
            step_type=jnp.zeros((), jnp.uint8),
            reward=jnp.zeros(()),
            discount=jnp.ones(()),
            observation=jnp.zeros(()),
        )
        after = env.step(limited, before, jnp.asarray(action))
        return Step(
            obs=observe(after.observation),
            state=after.state,
            reward=after.reward,
            terminated=after.discount == 0,
        )

    params = AdapterParams(max_steps_in_episode=fixed.max_steps)
    shape = jax.eval_shape(reset, jax.random.key(0), params)[0]
    high = 1 if one_hot else np.broadcast_to(np.array(_COUNTS) - 1, shape.shape)
    return Functional(
        reset=reset,
        step=step,
        action=spaces.Discrete(env.num_actions(fixed)),
        observation=box(0 * high, high, shape.shape, shape.dtype),
        params=params,
        picture=lambda state: render(
            np.asarray(state.grid), jax.device_get(state.agent), fixed.view_size
        ),
    )
