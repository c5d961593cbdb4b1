"""The loss of implicit Q-learning: expectiles of the values of the actions taken."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import checked


@checked("predictions[...] targets[...] expectile[]:scalar")
def expectile_loss(
    predictions: jax.Array, targets: jax.Array, expectile: ArrayLike
) -> jax.Array:
    r"""Asymmetric squared error, least at an expectile of the targets.

    .. math:: L = |e - 1_{u < 0}| u^2, \qquad u = target - prediction

    Nothing is stopped here: stop the targets where they are made.

    Args:
      predictions: predictions.
      targets: targets; differentiable.
      expectile: in (0, 1): 1/2 for half the squared error, above for predictions nearer
        to the greatest target; differentiable.

    Returns:
      `[T]` losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import expectile_loss
      >>> expectile_loss(jnp.array([1.0, 1.0]), jnp.array([3.0, 0.0]), 0.75)
      Array([3.  , 0.25], dtype=float32)

    References:
      Kostrikov et al. (2021), eq. 5, https://arxiv.org/abs/2110.06169
      Newey and Powell (1987), https://doi.org/10.2307/1911031

    Differs from:
      `rlax.expectile_loss` is the same.
    """
    error = targets - predictions
    return jnp.where(error < 0, 1 - expectile, expectile) * error**2
