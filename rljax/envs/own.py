"""Own environments: by reference, or offered by an installed package.

A package offers environments by entry points of the group `rljax.environments`: names,
each with a reference to an object as `find` returns it.
"""

import dataclasses
import inspect
from collections.abc import Collection
from types import ModuleType
from typing import Any, NamedTuple

from rljax import loading
from rljax.contracts import BatchedEnv
from rljax.envs import boundary
from rljax.envs.boundary import GymEnv, GymParams

GROUP = "rljax.environments"
_BATCHED = ("spec", "max_steps", "reset", "draw", "step", "for_evaluation")
_EXPECTED = (
    "an environment with gymnax's API, a pair of one and its parameters, or a batched "
    "environment"
)


class Built(NamedTuple):
    """An environment, before its wrappers."""

    env: GymEnv | BatchedEnv
    params: GymParams  # None: the environment's own; also of a batched environment
    arguments: Collection[str]  # that the function or class takes


def find(name: str) -> Any | None:
    """Return the object that a reference or an entry point names, None for others.

    Raises:
      ValueError: it cannot be loaded, or is None.
    """
    if loading.is_reference(name):
        found = loading.load(name, "environment")
    elif reference := loading.offered(GROUP).get(name):
        found = loading.load(reference, f"environment {name!r}, offered as")
    else:
        return None
    if found is None:
        raise ValueError(f"{name}: is None, expected {_EXPECTED}")
    return found


def offers(package: str) -> bool:
    """Whether entry points have names that begin with `package/`."""
    return any(name.startswith(f"{package}/") for name in loading.offered(GROUP))


def is_batched(env: object) -> bool:
    """Whether an object is a batched environment, or was meant as one."""
    return not isinstance(env, type) and all(
        hasattr(env, hook) for hook in ("reset", "draw", "step", "spec")
    )


def build(
    name: str, found: Any, params: dict[str, Any], *, options: Collection[str]
) -> Built:
    """Build the environment of an object that `find` returned.

    Args:
      name: its reference or name.
      found: an environment, a pair of one and its parameters, or a function or class
        that returns either.
      params: those that the function or class takes are given to it.
      options: of `wrap`, which a function that takes any name does not get.

    Raises:
      ValueError: the object is nothing of the kind, or the call fails.
    """
    if isinstance(found, ModuleType):
        raise ValueError(f"{name}: is a module; name an object in it, {name}:make_env")
    arguments: Collection[str] = ()
    result, verb = found, "is"
    if isinstance(found, type) or (callable(found) and not _is_environment(found)):
        result, arguments = _called(name, found, params, options=options)
        verb = "returned"
    env, own_params = result, None
    if isinstance(result, tuple) and len(result) == 2 and not _is_environment(result):
        env, own_params = result
    if isinstance(env, type) or not _is_environment(env):
        raise ValueError(f"{name}: {verb} {_described(result)}, expected {_EXPECTED}")
    if is_batched(env):
        missing = [hook for hook in _BATCHED if not hasattr(env, hook)]
        if missing:
            raise ValueError(
                f"{name}: a batched environment needs {', '.join(_BATCHED)}; "
                f"{type(env).__name__} has no {', '.join(missing)}"
            )
    elif own_params is None:
        own_params = boundary.check_hooks(env, None)
    return Built(env=env, params=own_params, arguments=arguments)


def _is_environment(found: object) -> bool:
    """Whether an object steps."""
    return hasattr(found, "reset") and hasattr(found, "step")


def _called(
    name: str, make: Any, params: dict[str, Any], *, options: Collection[str]
) -> tuple[Any, list[str]]:
    """Call a function or class with the parameters that its signature takes."""
    try:
        signature = inspect.signature(make)
    except ValueError:  # of a function in C
        signature = inspect.Signature()
    kinds = {x.name: x.kind for x in signature.parameters.values()}
    by_name = (
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    known = [x for x, kind in kinds.items() if kind in by_name]
    if inspect.Parameter.VAR_KEYWORD in kinds.values():
        known += [x for x in params if x not in known and x not in options]
    given = {k: v for k, v in params.items() if k in known}
    try:
        signature.bind(**given)
    except TypeError as error:
        takes = f"{getattr(make, '__name__', 'the object')}{signature}"
        raise ValueError(f"{name}: {takes}: {error}") from error
    hook = getattr(make, "__name__", "the call")
    return boundary.call(name, hook, lambda: make(**given)), known


def _described(found: object) -> str:
    if isinstance(found, tuple):
        return f"a tuple of {', '.join(type(x).__name__ for x in found) or 'nothing'}"
    return "None" if found is None else f"of type {type(found).__name__}"


def field_names(params: GymParams) -> list[str]:
    """Return the names of the parameters that an environment has."""
    if dataclasses.is_dataclass(params):
        return [field.name for field in dataclasses.fields(params)]
    return []
