"""Shapes and dtypes of a function's arguments, declared in one line and checked.

The checks read shapes and dtypes only: a jitted loss pays for them once, when traced.
"""

import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Function = TypeVar("Function", bound=Callable[..., Any])

_ARGUMENT = re.compile(
    r"(?P<name>\w+)\[(?P<axes>.*?)\](?P<or>\|\[\])?(?::(?P<type>\w+))?"
)


def checked(spec: str) -> Callable[[Function], Function]:
    """Decorates a loss, whose arguments of these names are then as of `promoted`.

    One that is None by default may be None.
    """
    arguments = _parse(spec)

    def decorate(f: Function) -> Function:
        signature = inspect.signature(f)
        optional = {k for k, v in signature.parameters.items() if v.default is None}

        @functools.wraps(f)
        def loss(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values = bound.arguments
            given = [
                argument
                for argument in arguments
                if not (argument.name in optional and values[argument.name] is None)
            ]
            names = [argument.name for argument in given]
            values.update(
                zip(names, _promote(given, map(values.get, names)), strict=True)
            )
            return f(*bound.args, **bound.kwargs)

        return cast(Function, loss)

    return decorate


def promoted(spec: str, *arrays: ArrayLike) -> list[Any]:
    """Arrays of the shapes of `spec`, its floats of the widest dtype among them.

    Arguments that have this dtype, or are weakly typed (Python floats), are returned
    as they came. Integers and bools count as floats only where they are numbers:
    Python's or numpy's, or `[]` arrays of a hyperparameter.

    Args:
      spec: one word per array. `q_t[T,A]`: a name means the same size everywhere, and
        `[K-1]` one less; `v_t[...]`: any shape, the same everywhere; `alpha[*]`: any
        shape; `lambda_[T]|[]`:
        or a hyperparameter, `v_t[T]|[]:float`: or one float; `eps[]:scalar`: a
        hyperparameter; `a_t[T]:int` and `mask[T]:bool`: another type.
      *arrays: in the order of `spec`.

    Raises:
      AssertionError: first the argument that is wrong, then all of them.
      TypeError: naming an argument that is no array.
    """
    return _promote(_parse(spec), arrays)


class _Argument(NamedTuple):
    """A word of a spec."""

    word: str
    name: str
    axes: tuple[str, ...]
    or_scalar: bool
    type: str  # "", "float", "scalar", "int" or "bool"


@functools.cache
def _parse(spec: str) -> tuple[_Argument, ...]:
    return tuple(
        _Argument(
            word=match[0],
            name=match["name"],
            axes=tuple(match["axes"].split(",")) if match["axes"] else (),
            or_scalar=bool(match["or"]),
            type=match["type"] or "",
        )
        for match in _ARGUMENT.finditer(spec)
    )


def _promote(arguments: Sequence[_Argument], arrays: Iterable[Any]) -> list[Any]:
    arrays = list(arrays)
    avals = [_type_of(a.name, x) for a, x in zip(arguments, arrays, strict=True)]

    def check(right: bool, argument: _Argument, expected: str) -> None:
        if not right:
            given = ", ".join(
                f"{a.name} {aval.str_short()}"
                for a, aval in zip(arguments, avals, strict=True)
            )
            spec = " ".join(a.word for a in arguments)
            raise AssertionError(
                f"{argument.name}: expected {expected}; expected {spec}, got {given}"
            )

    sizes: dict[str, Any] = {}
    for argument, aval in zip(arguments, avals, strict=True):
        if not (argument.or_scalar and aval.ndim == 0):
            shape = _bind(sizes, argument.axes, aval.shape)
            check(aval.shape == shape, argument, f"the shape {_text(shape)}")
    for argument, x, aval in zip(arguments, arrays, avals, strict=True):
        right, expected = _has_type(argument, x, aval)
        check(right, argument, expected)
    floating = [argument.type not in ("int", "bool") for argument in arguments]
    dtype = jnp.result_type(float, *itertools.compress(arrays, floating))
    return [
        _cast(x, aval, dtype) if is_float else x
        for x, aval, is_float in zip(arrays, avals, floating, strict=True)
    ]


def _bind(sizes: dict[str, Any], axes: tuple[str, ...], given: Any) -> tuple[Any, ...]:
    """The shape that the axes stand for; a name without a size yet gets its size."""
    if axes == ("*",):
        return given
    if axes == ("...",):
        return sizes.setdefault("...", given)
    shape = []
    for axis, size in itertools.zip_longest(axes, given[: len(axes)]):
        name, less = axis.removesuffix("-1"), int(axis.endswith("-1"))
        if size is not None:
            sizes.setdefault(name, size + less)
        shape.append(sizes[name] - less if name in sizes else axis)
    return tuple(shape)


def _text(shape: tuple[Any, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _has_type(argument: _Argument, x: Any, aval: Any) -> tuple[bool, str]:
    """Whether it has the right type, and what that is."""
    if argument.type in ("int", "bool"):
        kind = jnp.integer if argument.type == "int" else jnp.bool_
        return jnp.issubdtype(aval.dtype, kind), f"{argument.type}s"
    if jnp.issubdtype(aval.dtype, jnp.floating):
        return True, ""
    real = jnp.issubdtype(aval.dtype, jnp.integer) or aval.dtype == jnp.bool_
    hyperparameter = argument.type == "scalar" or (
        argument.or_scalar and argument.type != "float"
    )
    number = hyperparameter or aval.weak_type or isinstance(x, (bool, np.generic))
    return real and aval.ndim == 0 and number, "floats (see `astype`)"


def _cast(x: Any, aval: Any, dtype: Any) -> Any:
    weak = aval.weak_type and jnp.issubdtype(aval.dtype, jnp.floating)
    return x if weak or aval.dtype == dtype else jnp.asarray(x, dtype)


def _type_of(name: str, x: Any) -> Any:
    """Shape and dtype of an argument."""
    try:
        return jax.typeof(x)
    except TypeError as error:
        raise TypeError(f"{name}: expected an array, got {x!r}") from error
