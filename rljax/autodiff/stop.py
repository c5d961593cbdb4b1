"""Where gradients stop: by separate arguments, or by a factor on the way back."""

from collections.abc import Callable
from typing import Any, Concatenate, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.autodiff._checks import floats
from rljax.types import Params

T = TypeVar("T")  # a tree of arrays
# (params, bootstrap_params, ...) -> loss [], or a pair of the loss and something else
SeparateLoss = Callable[Concatenate[Params, Params, ...], Any]
# (params, ...) -> gradient like params; it may come in a pair: see below
GradientFn = Callable[Concatenate[Params, ...], Any]


def semi_gradient(loss: SeparateLoss, has_aux: bool = False) -> GradientFn:
    r"""The gradient of a loss with its bootstrap held fixed, by argument separation.

    .. math:: g(\theta) = \partial_1 L(\theta, \theta)

    The function that comes back has the exact semi-gradient as its value, and stays
    exact when it is differentiated: a stopped bootstrap would cut every path from
    earlier updates through later targets, and a meta-gradient through two or more
    updates would be wrong. So the loss itself must stop nothing: `stop="none"`.

    Args:
      loss: `loss(params, bootstrap_params, *args, **kwargs) -> []`, where
        `bootstrap_params` make the target.
      has_aux: `loss` returns a pair of the scalar and something else.

    Returns:
      `(params, *args, **kwargs) -> gradient` like `params`; a pair with the auxiliary
      output if `has_aux`. Differentiable in all its arguments, any number of times.

    Raises:
      ValueError: `loss` is no function; when called, it returns no scalar, or `params`
        is no tree of floating arrays.

    Example:
      >>> import jax
      >>> from rljax.autodiff import semi_gradient
      >>> from rljax.losses import td_learning
      >>> def loss(v, v_bootstrap, discount):
      ...     error = td_learning(v, 1.0, discount, 2 * v_bootstrap, stop="none")
      ...     return 0.5 * error**2
      >>> gradient = semi_gradient(loss)
      >>> float(gradient(1.0, 0.25)), float(jax.grad(gradient)(1.0, 0.25))
      (-0.5, 0.5)

    References:
      Sutton and Barto (2018), section 9.3, http://incompleteideas.net/book/the-book.html
    """
    return _gradient(jax.grad, loss, has_aux=has_aux, separate=True)


def value_and_semi_gradient(loss: SeparateLoss, has_aux: bool = False) -> GradientFn:
    r"""A loss and its :func:`semi_gradient`, in one pass.

    .. math:: L(\theta, \theta), \quad \partial_1 L(\theta, \theta)

    Args:
      loss: as in :func:`semi_gradient`.
      has_aux: `loss` returns a pair of the scalar and something else.

    Returns:
      `(params, *args, **kwargs) -> (value, gradient)`; the value is a pair with the
      auxiliary output if `has_aux`.

    Raises:
      ValueError: as :func:`semi_gradient`.

    Example:
      >>> import jax
      >>> from rljax.autodiff import value_and_semi_gradient
      >>> def loss(v, v_bootstrap, r):
      ...     return 0.5 * (r + 0.5 * v_bootstrap - v) ** 2
      >>> jax.tree.map(float, value_and_semi_gradient(loss)(2.0, 3.0))
      (2.0, -2.0)

    References:
      Sutton and Barto (2018), section 9.3, http://incompleteideas.net/book/the-book.html
    """
    return _gradient(jax.value_and_grad, loss, has_aux=has_aux, separate=True)


def residual_gradient(loss: SeparateLoss, has_aux: bool = False) -> GradientFn:
    r"""The whole gradient of a loss, through its bootstrap as well.

    .. math:: g(\theta) = \partial_1 L(\theta, \theta) + \partial_2 L(\theta, \theta)

    On squared errors of sampled transitions it converges, but to values that mix in
    the variance of the successors (Sutton and Barto, 2018, example 11.2).

    Args:
      loss: as in :func:`semi_gradient`.
      has_aux: `loss` returns a pair of the scalar and something else.

    Returns:
      `(params, *args, **kwargs) -> gradient` like `params`; a pair with the auxiliary
      output if `has_aux`.

    Raises:
      ValueError: as :func:`semi_gradient`.

    Example:
      >>> from rljax.autodiff import residual_gradient
      >>> def loss(v, v_bootstrap, r):
      ...     return 0.5 * (r + 0.5 * v_bootstrap - v) ** 2
      >>> residual_gradient(loss)(2.0, 3.0)
      Array(-1., dtype=float32, weak_type=True)

    References:
      Baird (1995), https://doi.org/10.1016/B978-1-55860-377-6.50013-X
    """
    return _gradient(jax.grad, loss, has_aux=has_aux, separate=False)


def scale_gradient(x: T, scale: ArrayLike) -> T:
    r"""The identity, through which the gradient comes multiplied.

    .. math:: y = x, \qquad \partial y = c \, \partial x

    In forward and reverse mode and at every order: derivative n of f(y) is
    :math:`c^n f^{(n)}(x)`. The gradient, not the value, depends on `scale`, so a
    meta-gradient reaches it. MuZero halves gradients at every step of its model; a
    negative scale reverses them.

    Args:
      x: an array or a tree of arrays; integers pass unchanged.
      scale: `[]`. The Python number 0 stops the gradient even where it is infinite.

    Returns:
      `x`, bit for bit.

    Raises:
      ValueError: `scale` is no scalar.

    Example:
      >>> import jax
      >>> from rljax.autodiff import scale_gradient
      >>> value_and_grad = jax.value_and_grad(lambda x: scale_gradient(x, 0.5) ** 2)
      >>> jax.tree.map(float, value_and_grad(3.0))
      (9.0, 3.0)

    References:
      Schrittwieser et al. (2020), appendix G, https://arxiv.org/abs/1911.08265
      Ganin et al. (2016), section 4.2, https://arxiv.org/abs/1505.07818
    """
    if jnp.ndim(scale) != 0:
        raise ValueError(f"scale: expected a scalar, got shape {jnp.shape(scale)}")
    if isinstance(scale, int | float) and scale == 0:
        return jax.lax.stop_gradient(x)

    def leaf(x: ArrayLike) -> jax.Array:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return _scale_gradient(x, jnp.asarray(scale, x.dtype))

    return jax.tree.map(leaf, x)


@jax.custom_jvp
def _scale_gradient(x: jax.Array, scale: jax.Array) -> jax.Array:
    del scale
    return x


_scale_gradient.defjvps(lambda x_dot, out, x, scale: scale * x_dot, None)


def _gradient(
    transform: Callable[..., GradientFn],  # jax.grad or jax.value_and_grad
    loss: SeparateLoss,
    *,
    has_aux: bool,
    separate: bool,
) -> GradientFn:
    """Transform a loss in its first argument; unless `separate`, in the second too."""
    if not callable(loss):
        raise ValueError(f"loss: expected a function, got {loss!r}")

    def gradient(params: Params, *args: Any, **kwargs: Any) -> Any:
        floats("params", params)

        def inner(x: Params) -> Any:
            output = loss(x, params if separate else x, *args, **kwargs)
            value = output[0] if has_aux else output
            if jnp.shape(value) != ():
                raise ValueError(f"loss: expected a scalar, got {jnp.shape(value)}")
            return output

        return transform(inner, has_aux=has_aux)(params)

    return gradient
