"""The agents: one readable file each, chosen by the name of the file.

Your own are chosen by the name of their module, `my.module`, or by their file,
`path/to/agent.py`. A package offers agents by entry points of the group
`rljax.agents`: names, each with the name of a module.
"""

import dataclasses
import fnmatch
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from rljax import loading
from rljax.agents._own import checked
from rljax.config import Preset, unknown
from rljax.types import Agent, Spec

GROUP = "rljax.agents"  # of entry points
_NAMES = sorted(
    module.name
    for module in pkgutil.iter_modules(__path__)
    if not module.name.startswith("_")
)

__all__ = [
    "GROUP",
    "config_for",
    "env_params_for",
    "get",
    "is_own",
    "make",
    "names",
    "other_preset",
    "preset",
]


def names() -> list[str]:
    """Names that `get` knows: of the files here, and what installed packages offer."""
    return sorted({*_NAMES, *loading.offered(GROUP)})


def get(name: str) -> ModuleType:
    """An agent's module, with `Config`, `make(spec) -> Agent` and perhaps `PRESETS`.

    Args:
      name: one of `names()`, or your own: `my.module` or `path/to/agent.py`.

    Returns:
      The module, `rljax.agents.<name>` or your own.

    Raises:
      ValueError: unknown name; the near matches are listed. A module of your own that
        cannot be loaded, or lacks a hook or has another thing in its place.

    Example:
      >>> get("ppo").Config().gamma
      0.99
    """
    if name in _NAMES:
        return importlib.import_module(f"rljax.agents.{name}")
    if loading.is_reference(name) or "." in name:
        return checked(name, loading.load(name, "agent"))
    reference = loading.offered(GROUP).get(name)
    if reference is None:
        raise ValueError(unknown("agent", name, names()))
    return checked(name, loading.load(reference, f"agent {name!r}, offered as"))


def is_own(name: str) -> bool:
    """Whether an agent's name is none of those of the files here."""
    return name not in _NAMES


def make(name: str, spec: Spec) -> Agent:
    """Make an agent for an environment.

    Args:
      name: as for `get`.
      spec: of the environment.

    Raises:
      ValueError: as by `get`, and by the `make` of the agent's module; or this returned
        something other than an `Agent`.

    Example:
      >>> import rljax
      >>> make("ppo", rljax.envs.make("CartPole-v1").spec).simulates
      False
    """
    module = get(name)
    agent = module.make(spec)
    if not isinstance(agent, Agent):
        kind = "None" if agent is None else type(agent).__name__
        raise ValueError(
            f"agent {name}: make returned {kind}, expected rljax.types.Agent"
        )
    return agent


def preset(name: str, env_name: str) -> Preset | None:
    """An agent's preset for an environment.

    The keys of an agent's `PRESETS` are names of environments, or patterns as of files:
    `brax/*`. The name itself goes before patterns, a longer pattern before a shorter.

    Args:
      name: as for `get`.
      env_name: an environment's name.

    Example:
      >>> found = preset("ppo", "MountainCarContinuous-v0")
      >>> found.wrap
      {'normalize_obs': True, 'normalize_rewards': 0.99}
      >>> preset("ppo", "no such environment") is None
      True
    """
    presets = getattr(get(name), "PRESETS", {})
    if env_name in presets:
        return presets[env_name]
    found = [key for key in presets if fnmatch.fnmatchcase(env_name, key)]
    return presets[max(found, key=len)] if found else None


def env_params_for(
    name: str, env_name: str, env_params: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Parameters of an environment, with those that the agent's preset brings.

    Args:
      name: as for `get`.
      env_name: an environment's name.
      env_params: parameters that are given; these stay. With others than the preset
        was made for, the preset brings none.

    Returns:
      Arguments for `envs.make`, and for `config_for`.

    Example:
      >>> env_params_for("ppo", "MountainCarContinuous-v0")
      {'normalize_obs': True, 'normalize_rewards': 0.99}
      >>> env_params_for("ppo", "MountainCarContinuous-v0", {"normalize_obs": False})
      {'normalize_obs': False}
    """
    given = dict(env_params or {})
    found = preset(name, env_name)
    if found is None:
        return given
    whole = found.wrap | given
    return whole if _is_for(found, env_name, whole) else given


def config_for(
    name: str, env_name: str, env_params: Mapping[str, Any] | None = None
) -> Any:
    """An agent's default config, with its preset for the environment if it has one.

    A preset states the environment's parameters that it was made for. With others, say
    rewards on another scale, it is left out: `other_preset` tells. Parameters that the
    preset itself brings are among those; `env_params_for` adds them.

    Args:
      name: as for `get`.
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
    plain, found = get(name).Config(), preset(name, env_name)
    if found and _is_for(found, env_name, env_params):
        return dataclasses.replace(plain, **found.config)
    return plain


def other_preset(
    name: str, env_name: str, env_params: Mapping[str, Any] | None = None
) -> str:
    """A line that says for which parameters there is a preset, where not for these.

    Args:
      name: as for `get`.
      env_name: an environment's name.
      env_params: what `envs.make` gets beside the name.

    Returns:
      The line, or an empty string.

    Example:
      >>> other_preset("sac", "Pendulum-v1", {"g": 9.0})
      'the preset of sac for Pendulum-v1 is for no --env-params; plain defaults hold'
    """
    found = preset(name, env_name)
    if not found or _is_for(found, env_name, env_params):
        return ""
    texts = [
        " ".join(f"{k} {v}" for k, v in (found.wrap | made).items())
        for made in found.env_params or ({},)
    ]
    those = " or ".join(f"--env-params {x}" if x else "no --env-params" for x in texts)
    what = f"the preset of {name} for {env_name} is for {those}"
    return f"{what}; plain defaults hold"


def _is_for(found: Preset, env_name: str, env_params: Mapping[str, Any] | None) -> bool:
    """Whether a preset was made for these parameters of an environment."""
    if found.env_params is None:
        return True
    changed = _changed(env_name, env_params)
    return any(changed == found.wrap | made for made in found.env_params)


def _changed(env_name: str, env_params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters that are not what they are by default."""
    if not env_params:
        return {}
    from rljax.envs import making, own  # only who changes an environment needs gymnax

    _, params, _ = making.build(env_name)
    options = inspect.signature(making.wrap).parameters.values()
    defaults = {option.name: option.default for option in options}
    defaults |= {field: getattr(params, field) for field in own.field_names(params)}
    return {
        k: v for k, v in env_params.items() if k not in defaults or v != defaults[k]
    }
