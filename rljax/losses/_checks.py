"""Checks at the entry of every loss, and the one place where gradients are stopped.

The checks read shapes and dtypes only: a jitted loss pays for them once, when traced.
"""

import re
from typing import Any, Literal, get_args

import chex
import jax
from jax.typing import ArrayLike

Stop = Literal["bootstrap", "target", "none"]

_ARGUMENT = re.compile(r"(\w+)\[(.*?)\](\|\[\])?(:int)?")


def check_stop(stop: str) -> None:
    """Raises ValueError unless `stop` is one of the three modes."""
    if stop not in get_args(Stop):
        raise ValueError(f"stop={stop!r}, expected one of {get_args(Stop)}")


def stop_if(condition: bool, x: Any) -> Any:
    """Returns the array or tree `x`, without its gradient if `condition`."""
    return jax.lax.stop_gradient(x) if condition else x


def check_arrays(spec: str, *arrays: ArrayLike) -> None:
    """Asserts that arrays have the shapes of `spec` and one floating dtype.

    Weakly typed arguments (Python floats) go with every floating dtype.

    Args:
      spec: one word per array. `q_t[T,A]`: a name means the same size everywhere;
        `v_t[...]`: any shape, the same everywhere; `lambda_[T]|[]`: or a scalar;
        `a_t[T]:int`: integers instead.
      *arrays: in the order of `spec`.

    Raises:
      AssertionError: naming every argument with its dtype and shape.
    """
    arguments = _ARGUMENT.findall(spec)
    avals = [jax.typeof(x) for x in arrays]
    given = ", ".join(
        f"{name} {aval.str_short()}"
        for (name, *_), aval in zip(arguments, avals, strict=True)
    )
    sizes: dict[str, Any] = {}
    floats = []
    for (name, axes, or_scalar, integer), aval in zip(arguments, avals, strict=True):
        message = f"{name}: expected {spec}, got {given}"
        if not (or_scalar and aval.ndim == 0):
            if axes == "...":
                shape = sizes.setdefault(axes, aval.shape)
            else:
                names = axes.split(",") if axes else []
                shape = tuple(map(sizes.get, names))  # None, still free, fits any size
                sizes.update(zip(names, aval.shape, strict=False))
            chex.assert_shape(aval, shape, custom_message=message)
        chex.assert_type(aval, int if integer else float, custom_message=message)
        if not (integer or aval.weak_type):
            floats.append(aval)
            chex.assert_type(aval, floats[0].dtype, custom_message=message)
