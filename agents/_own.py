"""Looks at the module of an agent of one's own."""

import dataclasses
import inspect
from typing import Any

import jax

from rljax import contracts
from rljax.config import Preset


def checked(name: str, module: Any) -> Any:
    """Return an own agent's module once its hooks are there.

    Raises:
      ValueError: names the agent, the hook and what it should be.
    """
    config = getattr(module, "Config", None)
    if not isinstance(config, type) or not dataclasses.is_dataclass(config):
        raise ValueError(
            f"agent {name}: Config: {_found(config)}, expected a frozen dataclass that "
            "jax.tree_util.register_dataclass knows"
        )
    try:
        default = config()
    except TypeError as error:
        raise ValueError(f"agent {name}: Config(): {error}") from error
    if any(leaf is default for leaf in jax.tree.leaves(default)):
        raise ValueError(
            f"agent {name}: Config is a dataclass that jax does not know; decorate it "
            "with @jax.tree_util.register_dataclass"
        )
    needed = [*contracts.fields(contracts.TrainConfig), "validate"]
    missing = [field for field in needed if not hasattr(default, field)]
    if missing:
        raise ValueError(
            f"agent {name}: Config has no {', '.join(missing)}; training needs "
            f"{', '.join(needed)}"
        )
    make = getattr(module, "make", None)
    if not callable(make):
        raise ValueError(
            f"agent {name}: make: {_found(make)}, expected a function make(spec) that "
            "returns an rljax.types.Agent"
        )
    try:
        inspect.signature(make).bind("spec")
    except TypeError as error:
        raise ValueError(f"agent {name}: make(spec): {error}") from error
    _check_presets(name, getattr(module, "PRESETS", {}), default)
    return module


def _check_presets(name: str, presets: Any, config: Any) -> None:
    """Raise unless `PRESETS` has presets by name, of fields that the config has."""
    if not isinstance(presets, dict) or not all(
        isinstance(key, str) and isinstance(value, Preset)
        for key, value in presets.items()
    ):
        raise ValueError(
            f"agent {name}: PRESETS: expected a dict of rljax.config.Preset by the "
            "environment's name or pattern"
        )
    for key, preset in presets.items():
        for field in preset.config:
            if not hasattr(config, field):
                raise ValueError(
                    f"agent {name}: PRESETS[{key!r}]: Config has no field {field}"
                )


def _found(hook: object) -> str:
    return "missing" if hook is None else f"is {type(hook).__name__}"
