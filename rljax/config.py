"""Configs are data: frozen dataclasses whose floats are pytree leaves."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import KeyPath
from jax.typing import ArrayLike

from rljax import contracts
from rljax.contracts import RunConfig

C = TypeVar("C")
INT32_MAX = 2**31 - 1  # the greatest count in a program


class Preset(NamedTuple):
    """Hyperparameters for an environment, where its parameters are these.

    Keys of `PRESETS` may be patterns, `brax/*`: see `rljax.agents.preset`.
    """

    config: dict[str, Any]
    # Any of these, each with no others; None: whatever they are.
    env_params: tuple[dict[str, Any], ...] | None = ({},)
    # Parameters that the preset brings, where none are given of these names; they are
    # beside `env_params`.
    wrap: dict[str, Any] = {}


def static(default: Any) -> Any:
    """A field that shapes the program: part of jit's cache key, not a leaf."""
    return dataclasses.field(default=default, metadata={"static": True})


class Range(NamedTuple):
    """The values of a float among which tuning looks, and how they are spaced."""

    low: float
    high: float
    scale: str  # "linear", "log", or "horizon": even in the log of 1 / (1 - value)
    pace: float = 1.0  # of the tuning, in multiples of its learning rate


def discount(default: float, low: float = 0.0, high: float = 0.9999) -> Any:
    """A float field, by which the future counts less: in steps of its horizon."""
    return _tunable(default, Range(low, high, "horizon"))


def rate(default: float, low: float = 1e-5, high: float = 1e-1) -> Any:
    """A float field that scales steps: in steps of its logarithm, ten times smaller.

    A rate that follows the next update's score closely overshoots: greater steps look
    better until the policy is gone.
    """
    return _tunable(default, Range(low, high, "log", pace=0.1))


def cost(default: float, low: float = 1e-5, high: float = 1.0) -> Any:
    """A float field that weighs one goal against another: of its logarithm.

    0 counts as the least.
    """
    return _tunable(default, Range(low, high, "log"))


def share(default: float, low: float = 0.0, high: float = 1.0) -> Any:
    """A float field that mixes two things: even in itself."""
    return _tunable(default, Range(low, high, "linear"))


def _tunable(default: float, declared: Range) -> Any:
    return dataclasses.field(default=default, metadata={"range": declared})


def ranges(config: object) -> dict[str, Range]:
    """The declared ranges of a config's fields, by name.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Config:
      ...     gamma: float = discount(0.99)
      ...     epsilon: float = 0.1
      >>> ranges(Config())
      {'gamma': Range(low=0.0, high=0.9999, scale='horizon', pace=1.0)}
    """
    fields = dataclasses.fields(config)  # pyright: ignore[reportArgumentType]
    return {x.name: x.metadata["range"] for x in fields if "range" in x.metadata}


def saturating_add(count: ArrayLike, more: int) -> jax.Array:
    """Return `count + more`, or the greatest int32 where the sum is beyond int32."""
    return jnp.minimum(count, INT32_MAX - more) + more


def next_count(count: ArrayLike, period: int = 1) -> jax.Array:
    """Return `count + 1`, less by `period` where it is beyond int32.

    Modulo `period` the count is then right for ever.

    Example:
      >>> int(next_count(2**31 - 1)) == 2**31 - 1
      True
    """
    return jnp.where(count == INT32_MAX, count - period, count) + 1


def with_room(count: ArrayLike, more: int, period: int) -> jax.Array:
    """Return the count, less by some periods where `more` would lead beyond int32.

    Example:
      >>> int(with_room(2**31 - 1, 2, period=5)) == 2**31 - 6
      True
    """
    less = -(-more // period) * period
    return jnp.where(jnp.asarray(count) > INT32_MAX - more, count - less, count)


def as_arrays(config: C) -> C:
    """Cast every leaf to float32, the type of a run's arrays: jit sees one type.

    A Python float, a numpy scalar and a weakly typed array in the same field would
    be three compilations. A run is one in float32 with `jax_enable_x64` too.

    Raises:
      ValueError: a leaf that is no number.
    """

    def cast(path: KeyPath, leaf: ArrayLike) -> jax.Array:
        try:
            return jnp.asarray(leaf, jnp.float32)
        except (TypeError, ValueError) as error:
            name = jax.tree_util.keystr(path) or type(config).__name__
            raise ValueError(
                f"{name.lstrip('.')}={leaf!r}: must be a number, or a field that is "
                "static, of a dataclass that jax.tree_util.register_dataclass knows"
            ) from error

    return jax.tree.map_with_path(cast, config)


def check_fields(needed_by: str, config: object, *names: str) -> None:
    """Raise unless the config has all these fields.

    Raises:
      ValueError: names the config's class, what it lacks and what needs that.
    """
    missing = [name for name in names if not hasattr(config, name)]
    if missing:
        raise ValueError(
            f"{type(config).__name__} has no {', '.join(missing)}: "
            f"{needed_by} needs {', '.join(names)}"
        )


def check_contract(needed_by: str, config: Any, contract: type) -> None:
    """Raise unless the config has all fields of a protocol of `contracts`.

    Raises:
      ValueError: names the config's class, what it lacks and what needs that.
    """
    check_fields(needed_by, config, *contracts.fields(contract))


def check_functions(agent: object, *names: str) -> None:
    """Raise unless the agent has all these functions.

    Raises:
      ValueError: names the functions that are missing, and all that are needed.
    """
    missing = [name for name in names if not callable(getattr(agent, name, None))]
    if missing:
        needed = f"needed are {', '.join(names)}"
        raise ValueError(f"Agent: {', '.join(missing)}: no function; {needed}")


def check_range(
    config: object,
    *names: str,
    low: ArrayLike = -np.inf,
    high: float = np.inf,
    open_low: bool = False,
) -> None:
    """Raise unless the named fields are numbers in `[low, high]`, or `(low, high]`.

    Values under a jax transformation have no number to check and pass.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    for name in names:
        value = _field(config, name)
        if isinstance(value, Tracer) or isinstance(low, Tracer):
            continue
        allowed = f"must be in {'(' if open_low else '['}{low}, {high}]"
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "iuf":
            raise ValueError(f"{name}={value!r}: {allowed}")
        above = numbers > low if open_low else numbers >= low
        if not np.all(above & (numbers <= high)):
            raise ValueError(f"{name}={value}: {allowed}")


def check_count(
    config: object, *names: str, low: int = 1, high: int = INT32_MAX
) -> None:
    """Raise unless the named fields are integers from `low` to `high`.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    for name in names:
        value = _field(config, name)
        if not _is_int(value) or value < low:
            raise ValueError(f"{name}={value!r}: must be an integer >= {low}")
        if value > high:
            raise ValueError(f"{name}={value!r}: must be an integer <= {high}")


def check_loop(config: RunConfig) -> None:
    """Raise unless the loop can count: the fields that say how long a run is.

    These are `num_envs`, `rollout_length` and `total_steps`. A program counts rollouts
    in int32, so that there may be more environment steps than int32 can count.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    check_count(config, "num_envs", "rollout_length")
    steps = config.num_envs * config.rollout_length
    if steps > INT32_MAX:
        raise ValueError(
            f"num_envs={config.num_envs}: must be at most {INT32_MAX} / "
            f"rollout_length = {INT32_MAX // config.rollout_length}"
        )
    check_count(config, "total_steps", high=INT32_MAX * steps)


def check_divides(config: object, name: str, total: int, *, what: str) -> None:
    """Raise unless the named field divides `total`, which `what` describes.

    Raises:
      ValueError: names the field, its value and what it has to divide.
    """
    value = _field(config, name)
    if total % value:
        raise ValueError(f"{name}={value}: must divide {what} = {total}")


def check_choice(
    config: object, name: str, choices: tuple[str, ...], *, beside: str = ""
) -> None:
    """Raise unless the named field is one of `choices`.

    Raises:
      ValueError: names the field, its value, the choices and what else there is.
    """
    value = _field(config, name)
    if value not in choices:
        allowed = f"{', '.join(choices)}{', ' if beside else ''}{beside}"
        raise ValueError(f"{name}={value!r}: must be one of {allowed}")


def check_sizes(config: object, name: str) -> None:
    """Raise unless the named field is a tuple of positive integers.

    Raises:
      ValueError: names the field and its value.
    """
    value = _field(config, name)
    sizes = value if isinstance(value, tuple) else (0,)
    if not all(_is_int(size) and 0 < size <= INT32_MAX for size in sizes):
        raise ValueError(f"{name}={value!r}: must be a tuple of integers >= 1")


def _field(config: object, name: str) -> Any:
    if not hasattr(config, name):
        raise ValueError(f"{type(config).__name__} has no {name}")
    return getattr(config, name)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """Return the error message for a name that is not known, with the near matches."""
    lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.4)
    hint = ", ".join(lower[match] for match in near) or ", ".join(known)
    return f"unknown {kind} {name!r}; did you mean: {hint}?"
