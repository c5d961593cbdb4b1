"""The agents: one readable file each, chosen by name."""

import dataclasses
import importlib
from types import ModuleType
from typing import Any

from rljax.config import unknown

_NAMES = (
    "a2c",
    "apg",
    "awr",
    "c51",
    "dqn",
    "impala",
    "iqn",
    "mpo",
    "ppo",
    "ppo_rnn",
    "pqn",
    "qrdqn",
    "r2d2",
    "rainbow",
    "reinforce",
    "sac",
    "sarsa",
    "td3",
    "trpo",
    "vmpo",
)

__all__ = ["config_for", "get", "names"]


def names() -> list[str]:
    """Names that `get` knows."""
    return list(_NAMES)


def get(name: str) -> ModuleType:
    """An agent's module, with `Config`, `State` and `make(spec) -> Agent`.

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


def config_for(name: str, env_name: str) -> Any:
    """An agent's default config, with its preset for the environment if it has one.

    Args:
      name: one of `names()`.
      env_name: an environment's name; unknown ones get the plain default.

    Returns:
      The agent's `Config`.

    Example:
      >>> config_for("ppo", "Pendulum-v1").gamma
      0.95
    """
    module = get(name)
    return dataclasses.replace(module.Config(), **module.PRESETS.get(env_name, {}))
