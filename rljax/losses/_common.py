"""What all losses share: checks at their entry, stopped gradients, small parts.

The checks read shapes and dtypes only: a jitted loss pays for them once, when traced.
"""

import re
from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

Stop = Literal["bootstrap", "target", "none"]
AxisName = str | tuple[str, ...] | None

_ARGUMENT = re.compile(r"(\w+)\[(.*?)\](\|\[\])?(?::(\w+))?")
_TYPES = {"": float, "int": int, "bool": bool}


def check_stop(stop: str) -> None:
    """Raises ValueError unless `stop` is one of the three modes."""
    if stop not in get_args(Stop):
        raise ValueError(f"stop={stop!r}, expected one of {get_args(Stop)}")


def stop_if(condition: bool, x: Any) -> Any:
    """Returns the array or tree `x`, without its gradient if `condition`."""
    return jax.lax.stop_gradient(x) if condition else x


def chosen(x: jax.Array, a: ArrayLike) -> jax.Array:
    """Returns `x[a]` of `[A, ...]`, NaN where there is no such action."""
    return jnp.asarray(x).at[a].get(mode="fill", wrap_negative_indices=False)


def expectation(log_pi: jax.Array, x: jax.Array) -> jax.Array:
    """Sums `pi * x` over the last axis; where `pi` is 0 so is the term, for any `x`."""
    pi = jnp.exp(log_pi)
    return jnp.sum(pi * jnp.where(pi > 0, x, 0.0), axis=-1)


def mean_value(probs: jax.Array, q: jax.Array) -> jax.Array:
    """Sums `probs * q` over the last axis; masked actions, 0 times -inf, count 0."""
    masked = (probs == 0) & (q == -jnp.inf)
    return jnp.sum(probs * jnp.where(masked, 0, q), axis=-1)


def check_arrays(spec: str, *arrays: ArrayLike) -> None:
    """Asserts that arrays have the shapes of `spec` and one floating dtype.

    Weakly typed arguments (Python floats) go with every floating dtype.

    Args:
      spec: one word per array. `q_t[T,A]`: a name means the same size everywhere;
        `v_t[...]`: any shape, the same everywhere; `lambda_[T]|[]`: or a scalar;
        `a_t[T]:int` and `mask[T]:bool`: another type.
      *arrays: in the order of `spec`.

    Raises:
      AssertionError: naming every argument with its dtype and shape.
      TypeError: naming an argument that is no array.
    """
    arguments = _ARGUMENT.findall(spec)
    avals = [_type_of(name, x) for (name, *_), x in zip(arguments, arrays, strict=True)]
    given = ", ".join(
        f"{name} {aval.str_short()}"
        for (name, *_), aval in zip(arguments, avals, strict=True)
    )
    sizes: dict[str, Any] = {}
    floats = []
    for (name, axes, or_scalar, other), aval in zip(arguments, avals, strict=True):
        message = f"{name}: expected {spec}, got {given}"
        if not (or_scalar and aval.ndim == 0):
            if axes == "...":
                shape = sizes.setdefault(axes, aval.shape)
            else:
                names = axes.split(",") if axes else []
                shape = tuple(map(sizes.get, names))  # None, still free, fits any size
                sizes.update(zip(names, aval.shape, strict=False))
            chex.assert_shape(aval, shape, custom_message=message)
        chex.assert_type(aval, _TYPES[other], custom_message=message)
        if not (other or aval.weak_type):
            floats.append(aval)
            chex.assert_type(aval, floats[0].dtype, custom_message=message)


def _type_of(name: str, x: Any) -> Any:
    """Shape and dtype of an argument."""
    try:
        return jax.typeof(x)
    except TypeError as error:
        raise TypeError(f"{name}: expected an array, got {x!r}") from error


def accumulate(x_t: jax.Array, decay_t: jax.Array, last: ArrayLike) -> jax.Array:
    """`[T]` of `y_t = x_t + decay_t * y_{t+1}`, backwards from `y_T = last`.

    A plain scan, because XLA compiles this body to one small loop. On a CPU, T = 128,
    unrolling by 2 to 8 gained nothing; unrolling by 16 and more, and
    `associative_scan`, were slower and took 3 to 30 times as long to compile.
    """

    def step(y, inputs):
        x, decay = inputs
        y = x + decay * y
        return y, y

    # Adds nothing, but makes `last` vary over a shard_map's devices as the result does.
    last += jnp.zeros_like(x_t[-1] * decay_t[-1])
    return jax.lax.scan(step, last, (x_t, decay_t), reverse=True)[1]
