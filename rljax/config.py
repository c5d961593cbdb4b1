"""Configs are data: frozen dataclasses whose floats are pytree leaves."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

C = TypeVar("C")


class Preset(NamedTuple):
    """Hyperparameters for an environment, where its parameters are these."""

    config: dict[str, Any]
    env_params: tuple[dict[str, Any], ...] = ({},)  # any of these, each with no others


def static(default: Any) -> Any:
    """A field that shapes the program: part of jit's cache key, not a leaf."""
    return dataclasses.field(default=default, metadata={"static": True})


def as_arrays(config: C) -> C:
    """Cast every leaf to the default float dtype, so that jit sees one type.

    A Python float, a numpy scalar and a weakly typed array in the same field would
    be three compilations.
    """
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), config)


def check_range(
    config: Any, *names: str, low: Any = -np.inf, high: float = np.inf, open_low=False
) -> None:
    """Raise unless the named fields are numbers in `[low, high]`, or `(low, high]`.

    Values under a jax transformation have no number to check and pass.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, Tracer) or isinstance(low, Tracer):
            continue
        allowed = f"must be in {'(' if open_low else '['}{low}, {high}]"
        numbers = np.asarray(value)
        if numbers.dtype.kind not in "iuf":
            raise ValueError(f"{name}={value!r}: {allowed}")
        above = numbers > low if open_low else numbers >= low
        if not np.all(above & (numbers <= high)):
            raise ValueError(f"{name}={value}: {allowed}")


def check_count(config: Any, *names: str, low: int = 1) -> None:
    """Raise unless the named fields are integers of at least `low`.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name}={value!r}: must be an integer >= {low}")


def check_divides(config: Any, name: str, total: int, what: str) -> None:
    """Raise unless the named field divides `total`, which `what` describes.

    Raises:
      ValueError: names the field, its value and what it has to divide.
    """
    value = getattr(config, name)
    if total % value:
        raise ValueError(f"{name}={value}: must divide {what} = {total}")


def check_choice(config: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raise unless the named field is one of `choices`.

    Raises:
      ValueError: names the field, its value and the choices.
    """
    value = getattr(config, name)
    if value not in choices:
        raise ValueError(f"{name}={value!r}: must be one of {', '.join(choices)}")


def check_sizes(config: Any, name: str) -> None:
    """Raise unless the named field is a tuple of positive integers.

    Raises:
      ValueError: names the field and its value.
    """
    value = getattr(config, name)
    good = isinstance(value, tuple) and all(
        isinstance(size, int) and not isinstance(size, bool) and size > 0
        for size in value
    )
    if not good:
        raise ValueError(f"{name}={value!r}: must be a tuple of integers >= 1")


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """The error message for a name that is not known, with the near matches."""
    lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.4)
    hint = ", ".join(lower[match] for match in near) or ", ".join(known)
    return f"unknown {kind} {name!r}; did you mean: {hint}?"
