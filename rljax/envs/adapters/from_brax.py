# pyright: reportMissingImports=false
"""Adapter of Brax' environments."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax import envs

from rljax.envs._gymnax import Action
from rljax.envs.adapters.functional import (
    AdapterParams,
    Functional,
    Step,
    box,
    check_repeat,
    repeated,
    unbounded,
)
from rljax.envs.adapters.mujoco_picture import draw

_STEPS = 1000  # of the physics, the limit that Brax' own wrapper has by default
_NO_GRADIENTS = "mjx"  # a backend whose solver loops until it is done


def names() -> list[str]:
    """List Brax' environments, without the one for its tests."""
    return sorted(name for name in envs._envs if name != "fast")


def options(name: str) -> list[str]:
    """List the arguments of an environment's class, and `action_repeat`."""
    arguments = inspect.signature(envs._envs[name].__init__).parameters
    own = [argument for argument in arguments if argument not in ("self", "kwargs")]
    return list(dict.fromkeys([*own, "n_frames", "debug", "action_repeat"]))


def make(name: str, *, action_repeat: int = 1, **arguments: Any) -> Functional:
    """Make an environment.

    Args:
      name: as Brax has it.
      action_repeat: steps of each action; their rewards add up.
      **arguments: of the environment's class: `backend="spring"`.
    """
    check_repeat(action_repeat)
    env: Any = envs.get_environment(name, **arguments)  # without Brax' limit and resets

    def reset(key: jax.Array, _: AdapterParams) -> tuple[Any, envs.State]:
        state = env.reset(key)
        return state.obs, state

    def one_step(state: envs.State, action: Action) -> Step:
        state = env.step(state, jnp.asarray(action))
        return Step(
            obs=state.obs, state=state, reward=state.reward, terminated=state.done > 0
        )

    def step(
        _: jax.Array, state: envs.State, action: Action, __: AdapterParams
    ) -> Step:
        return repeated(one_step, state, action, times=action_repeat)

    limit = -(-_STEPS // action_repeat)
    params = AdapterParams(max_steps_in_episode=limit)
    return Functional(
        reset=reset,
        step=step,
        action=box(-1.0, 1.0, (env.action_size,), jnp.float32),
        observation=unbounded(jax.eval_shape(reset, jax.random.key(0), params)[0]),
        params=params,
        picture=lambda state: draw(
            env.sys.mj_model, np.asarray(state.pipeline_state.q)
        ),
        differentiable=env.backend != _NO_GRADIENTS,
    )
