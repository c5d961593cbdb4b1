# pyright: reportMissingImports=false
"""Adapter of Craftax and Craftax-Classic."""

import functools
from typing import Any

import jax
import numpy as np
from craftax.craftax_env import make_craftax_env_from_name
from flax import struct

from rljax.envs._gymnax import Action
from rljax.envs.adapters.functional import Functional, Step

_NAMES = (
    "Craftax-Classic-Symbolic-v1",
    "Craftax-Classic-Pixels-v1",
    "Craftax-Symbolic-v1",
    "Craftax-Pixels-v1",
)
_NEVER = 1 << 30  # steps


def names() -> list[str]:
    """List the four environments."""
    return list(_NAMES)


def options(name: str) -> list[str]:
    """List nothing: all that there is to choose are parameters."""
    return []


def make(name: str) -> Functional:
    """Make an environment."""
    env: Any = make_craftax_env_from_name(name, auto_reset=False)
    params = _params(type(env.default_params))

    def reset(key: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        return env.reset_env(key, params)

    def step(key: jax.Array, state: Any, action: Action, params: Any) -> Step:
        obs, state, reward, done, _ = env.step_env(key, state, action, params)
        return Step(obs=obs, state=state, reward=reward, terminated=done)

    return Functional(
        reset=reset,
        step=step,
        action=env.action_space(params),
        observation=env.observation_space(params),
        params=params,
        picture=functools.partial(_picture, "Classic" in name),
    )


@functools.cache  # one class for all, else jit would compile for each
def _params(kind: type) -> Any:
    """Craftax' parameters, and the limit beside them instead of among them."""

    @struct.dataclass
    class Params(kind):
        """Of an adapter; with `max_timesteps` reached an episode would terminate."""

        max_timesteps: int = _NEVER
        max_steps_in_episode: int = kind().max_timesteps

    return Params()


def _picture(classic: bool, state: Any) -> np.ndarray:
    """Draw what the player sees; the first picture takes the time to load textures."""
    pixels = np.asarray(_renderer(classic)(state))
    return np.clip(pixels, 0, 255).astype(np.uint8)


@functools.cache
def _renderer(classic: bool) -> Any:
    if classic:
        from craftax.craftax_classic import constants, renderer
    else:
        from craftax.craftax import constants, renderer
    return jax.jit(renderer.make_craftax_pixel_renderer(constants.BLOCK_PIXEL_SIZE_IMG))
