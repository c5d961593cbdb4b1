# pyright: reportMissingImports=false
"""Adapter of MuJoCo Playground's environments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mujoco_playground import registry
from mujoco_playground._src.mjx_env import MjxEnv, State

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


def names() -> list[str]:
    """List the environments; those of robots download models when they are made."""
    return sorted(registry.ALL_ENVS)


def options(name: str) -> list[str]:
    """List the fields of an environment's configuration, nested ones with dots."""
    return _flat(registry.get_default_config(name))


def make(name: str, *, action_repeat: int = 1, **overrides: Any) -> Functional:
    """Make an environment.

    Args:
      name: as Playground has it.
      action_repeat: steps of each action; their rewards add up.
      **overrides: fields of its configuration. `impl` is "jax" unless given; the
        package's own default is "warp", which is for NVIDIA's GPUs.
    """
    check_repeat(action_repeat)
    if "impl" in options(name):
        overrides = {"impl": "jax"} | overrides
    config: Any = registry.get_default_config(name)
    config.update_from_flattened_dict(overrides)
    env: MjxEnv = registry.load(name, config=config)

    def reset(key: jax.Array, _: AdapterParams) -> tuple[Any, State]:
        state = env.reset(key)
        return _plain(state.obs), state

    def one_step(state: State, action: Action) -> Step:
        state = env.step(state, jnp.asarray(action))
        return Step(
            obs=_plain(state.obs),
            state=state,
            reward=state.reward,
            terminated=state.done > 0,
        )

    def step(_: jax.Array, state: State, action: Action, __: AdapterParams) -> Step:
        return repeated(one_step, state, action, times=action_repeat)

    limit = -(-config.episode_length // action_repeat)
    params = AdapterParams(max_steps_in_episode=limit)
    return Functional(
        reset=reset,
        step=step,
        action=box(-1.0, 1.0, (env.action_size,), jnp.float32),
        observation=unbounded(jax.eval_shape(reset, jax.random.key(0), params)[0]),
        params=params,
        picture=lambda state: draw(env.mj_model, np.asarray(state.data.qpos)),
    )


def _flat(config: Any, prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        nested = hasattr(value, "items")
        found += _flat(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return found


def _plain(obs: Any) -> Any:
    return dict(obs) if hasattr(obs, "items") else obs
