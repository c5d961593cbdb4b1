"""Small parts of losses: masked means, indexing, clipped gradients."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import checked


@checked("x[...] mask[...]:bool")
def masked_mean(
    x: jax.Array, mask: jax.Array, axis: int | Sequence[int] | None = None
) -> jax.Array:
    r"""Mean of the elements that a mask leaves, 0 where it leaves none.

    .. math:: \frac{\sum_i m_i x_i}{\max(1, \sum_i m_i)}

    Args:
      x: values. Where one is masked it may be NaN or infinite, and its gradient is 0;
        but what made a NaN there may turn this 0 into a NaN again, so mask the
        arguments of a logarithm or a division as well.
      mask: False for elements that are left out.
      axis: axis or axes to average over, by default all.

    Returns:
      `x` without these axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import masked_mean
      >>> x = jnp.array([[1.0, 3.0, jnp.nan], [jnp.inf, 5.0, 7.0]])
      >>> mask = jnp.array([[True, True, False], [False, False, False]])
      >>> masked_mean(x, mask), masked_mean(x, mask, axis=1)
      (Array(2., dtype=float32), Array([2., 0.], dtype=float32))

    References:
      https://docs.jax.dev/en/latest/faq.html, on gradients that contain NaN

    Differs from:
      rlax has no such function; `jnp.mean(x, where=mask)` is NaN for an empty mask.
    """
    count = jnp.sum(mask, axis, dtype=x.dtype)
    return jnp.sum(x, axis, where=mask) / jnp.maximum(count, 1)


@checked("values[...,A] indices[...]:int")
def batched_index(values: jax.Array, indices: jax.Array) -> jax.Array:
    r"""One element of the last axis for each of the others.

    .. math:: y_{i \dots} = x_{i \dots, a_{i \dots}}

    Args:
      values: for instance action values `[T, A]`.
      indices: in [0, A); outside, the result is NaN.

    Returns:
      `[...]`

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import batched_index
      >>> values = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
      >>> batched_index(values, jnp.array([1, 0, 2]))
      Array([ 2.,  3., nan], dtype=float32)

    References:
      https://docs.jax.dev/en/latest/notebooks/Common_Gotchas_in_JAX.html, on indexing
      out of bounds

    Differs from:
      `rlax.batched_index` counts negative indices from the end, and has `keepdims`.
    """
    indices = jnp.where(indices < 0, values.shape[-1], indices)  # else from the end
    taken = jnp.take_along_axis(values, indices[..., None], axis=-1, mode="fill")
    return taken[..., 0]


@checked("x[...] gradient_min[]:scalar gradient_max[]:scalar")
def clip_gradient(
    x: jax.Array, gradient_min: ArrayLike, gradient_max: ArrayLike
) -> jax.Array:
    r"""The identity, through which every element of the gradient comes clipped.

    .. math::
        y = x, \qquad
        \frac{\partial L}{\partial x} = \min\left(\max\left(
        \frac{\partial L}{\partial y}, g_{min}\right), g_{max}\right)

    The second derivative is the clipped first one's: unchanged where nothing was
    clipped, 0 where it was. In the same way a meta-gradient reaches the bounds, where
    they clip. Reverse mode only: there is no `jax.jvp` of this function, though there
    is one of its `jax.grad`.

    Args:
      x: values.
      gradient_min: the least gradient of an element.
      gradient_max: the greatest gradient of an element.

    Returns:
      `x`

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.losses import clip_gradient
      >>> x = jnp.array([-3.0, 0.5, 3.0])
      >>> jax.grad(lambda x: jnp.sum(0.5 * clip_gradient(x, -1.0, 1.0) ** 2))(x)
      Array([-1. ,  0.5,  1. ], dtype=float32)

    References:
      Mnih et al. (2015), Methods, https://doi.org/10.1038/nature14236

    Differs from:
      `rlax.clip_gradient` has no gradient in the bounds, and takes trees as well: see
      `jax.tree.map`.
    """
    return _clip_gradient(x, gradient_min, gradient_max)


@jax.custom_vjp
def _clip_gradient(x, gradient_min, gradient_max):
    del gradient_min, gradient_max
    return x


def _forward(x, gradient_min, gradient_max):
    return x, (gradient_min, gradient_max)


def _backward(bounds, gradient):
    gradient_min, gradient_max = bounds
    return jnp.clip(gradient, gradient_min, gradient_max), None, None


_clip_gradient.defvjp(_forward, _backward)
