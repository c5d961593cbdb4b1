"""The agents: one readable file each, chosen by the name of the file."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from rljax.config import unknown

_NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("_")
)

__all__ = ["config_for", "get", "names", "other_preset"]


def names() -> list[str]:
    """Names that `get` knows."""
    return list(_NAMES)


def get(name: str) -> ModuleType:
    """An agent's module, with `Config`, `PRESETS` and `make(spec) -> Agent`.

    Args:
      name: one of `names()`.

    Returns:
      The module `rljax.agents.<name>`.

    Raises:
      ValueError: unknown name; the near matches are listed.

    Example:
      >>> get("ppo").Config().gamma
      0.99
    """
    if name not in _NAMES:
        raise ValueError(unknown("agent", name, _NAMES))
    return importlib.import_module(f"rljax.agents.{name}")


def config_for(
    name: str, env_name: str, env_params: Mapping[str, Any] | None = None
) -> Any:
    """An agent's default config, with its preset for the environment if it has one.

    A preset states the environment's parameters that it was made for. With others, say
    rewards on another scale, it is left out: `other_preset` tells.

    Args:
      name: one of `names()`.
      env_name: an environment's name; unknown ones get the plain default.
      env_params: what `envs.make` gets beside the name.

    Returns:
      The agent's `Config`.

    Example:
      >>> config_for("ppo", "Pendulum-v1").gamma
      0.95
      >>> config_for("ppo", "Pendulum-v1", {"normalize_rewards": 0.99}).gamma
      0.99
    """
    module = get(name)
    preset = module.PRESETS.get(env_name)
    if preset and _changed(env_name, env_params) in preset.env_params:
        return dataclasses.replace(module.Config(), **preset.config)
    return module.Config()


def other_preset(
    name: str, env_name: str, env_params: Mapping[str, Any] | None = None
) -> str:
    """A line that says for which parameters there is a preset, where not for these.

    Args:
      name: one of `names()`.
      env_name: an environment's name.
      env_params: what `envs.make` gets beside the name.

    Returns:
      The line, or an empty string.

    Example:
      >>> other_preset("sac", "Pendulum-v1", {"g": 9.0})
      'the preset of sac for Pendulum-v1 is for no --env-params; plain defaults hold'
    """
    preset = get(name).PRESETS.get(env_name)
    if not preset or _changed(env_name, env_params) in preset.env_params:
        return ""
    texts = [
        " ".join(f"{k} {v}" for k, v in made.items()) for made in preset.env_params
    ]
    those = " or ".join(f"--env-params {x}" if x else "no --env-params" for x in texts)
    what = f"the preset of {name} for {env_name} is for {those}"
    return f"{what}; plain defaults hold"


def _changed(env_name: str, env_params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters that are not what they are by default."""
    if not env_params:
        return {}
    from rljax.envs import making  # only who changes an environment needs gymnax here

    _, params, _ = making.build(env_name)
    options = inspect.signature(making.wrap).parameters.values()
    defaults = {option.name: option.default for option in options} | vars(params)
    return {
        k: v for k, v in env_params.items() if k not in defaults or v != defaults[k]
    }
