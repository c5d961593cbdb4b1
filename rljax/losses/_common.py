"""Parts that several losses share: stopped gradients, expectations, a scan."""

import sys
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import _shapes

Stop = Literal["bootstrap", "target", "none"]
AxisName = str | tuple[str, ...] | None
T = TypeVar("T")

# Meanings of arguments, the same in every loss.
GLOSSARY = _shapes.entries(sys.modules["rljax.losses"].__doc__ or "")


def checked(spec: str = "") -> Callable[[_shapes.Function], _shapes.Function]:
    """Declares the arguments of a loss, with the glossary of the package's docstring.

    Args:
      spec: as in `rljax._shapes.checked`.
    """
    return _shapes.checked(spec, GLOSSARY)


def stop_if(condition: bool, x: T) -> T:
    """Returns the array or tree `x`, without its gradient if `condition`."""
    return jax.lax.stop_gradient(x) if condition else x


def chosen(x: jax.Array, a: ArrayLike) -> jax.Array:
    """Returns `x[a]` of `[A, ...]`, NaN where there is no such action."""
    return jnp.asarray(x).at[a].get(mode="fill", wrap_negative_indices=False)


def expectation(log_pi: jax.Array, x: jax.Array) -> jax.Array:
    """Sums `pi * x` over the last axis; where `pi` is 0 so is the term, for any `x`."""
    pi = jnp.exp(log_pi)
    return jnp.sum(pi * jnp.where(pi > 0, x, 0.0), axis=-1)


def weighted(weights: jax.Array, x: jax.Array) -> jax.Array:
    """`weights * x`; masked terms, 0 times -inf, are 0, and so are their gradients."""
    masked = (weights == 0) & (x == -jnp.inf)
    return weights * jnp.where(masked, 0, x)


def mean_value(probs: jax.Array, q: jax.Array) -> jax.Array:
    """Sums `probs * q` over the last axis; masked actions count 0."""
    return jnp.sum(weighted(probs, q), axis=-1)


def unmasked(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`f(x)`, and -inf, without a gradient, where `x` is -inf: masked."""
    masked = x == -jnp.inf
    return jnp.where(masked, -jnp.inf, f(jnp.where(masked, 0, x)))


def accumulate(x_t: jax.Array, decay_t: jax.Array, last: ArrayLike) -> jax.Array:
    """`[T]` of `y_t = x_t + decay_t * y_{t+1}`, backwards from `y_T = last`.

    On a CPU a plain scan, because XLA compiles this body to one small loop: T = 128,
    unrolling by 2 to 8 gained nothing; unrolling by 16 and more, and
    `associative_scan`, were slower and took 3 to 30 times as long to compile. Elsewhere
    the loop is three kernels for each step, and `associative_scan` a few in all.
    """
    # Adds nothing, but makes `last` vary over a shard_map's devices as the result does.
    last += jnp.zeros_like(x_t[-1] * decay_t[-1])
    return jax.lax.platform_dependent(
        x_t, decay_t, last, cpu=_one_after_another, default=_in_parallel
    )


def _one_after_another(
    x_t: jax.Array, decay_t: jax.Array, last: jax.Array
) -> jax.Array:
    def step(y, inputs):
        x, decay = inputs
        y = x + decay * y
        return y, y

    return jax.lax.scan(step, last, (x_t, decay_t), reverse=True)[1]


def _in_parallel(x_t: jax.Array, decay_t: jax.Array, last: jax.Array) -> jax.Array:
    def join(later, earlier):
        (y, decay), (x, own_decay) = later, earlier
        return x + own_decay * y, own_decay * decay

    x_t, decay_t = jnp.broadcast_arrays(x_t, decay_t)
    x_t = x_t.at[-1].add(decay_t[-1] * last)
    return jax.lax.associative_scan(join, (x_t, decay_t), reverse=True)[0]
