"""Returns of values learned in a transformed space: non-linear Bellman equations."""

import jax
from jax.typing import ArrayLike

from rljax.losses._common import Stop, checked, stop_if, unmasked
from rljax.losses.off_policy_returns import (
    general_off_policy_returns_from_action_values,
)
from rljax.losses.returns import lambda_returns, n_step_bootstrapped_returns
from rljax.losses.transforms import TxPair


@checked("r_t[T] discount_t[T] v_t[T] lambda_[T]|[]")
def transformed_lambda_returns(
    tx_pair: TxPair,
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    lambda_: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Lambda-returns of values that were learned in a transformed space.

    .. math:: h(G_t), \quad G_t \text{ the `lambda_returns` of } h^{-1}(v_t)

    Args:
      r_t: rewards, untransformed.
      v_t: transformed values of the true successors.
      stop: "bootstrap" stops `v_t`, "target" the whole return, "none" nothing.

    Returns:
      `[T]` transformed returns.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import SIGNED_LOGP1_PAIR, transformed_lambda_returns
      >>> r_t, v_t = jnp.array([1.0, 2.0]), jnp.log(jnp.array([1.0, 13.0]))
      >>> discount_t = jnp.array([0.5, 0.5])
      >>> transformed_lambda_returns(SIGNED_LOGP1_PAIR, r_t, discount_t, v_t)
      Array([1.7917595, 2.1972246], dtype=float32)

    References:
      van Hasselt et al. (2019), https://arxiv.org/abs/1907.03687
      Pohlen et al. (2018), https://arxiv.org/abs/1805.11593

    Differs from:
      `rlax.transformed_lambda_returns` stops nothing by default, or else all.
    """
    v_t = unmasked(tx_pair.apply_inv, stop_if(stop == "bootstrap", v_t))
    g_t = lambda_returns(r_t, discount_t, v_t, lambda_=lambda_, stop="none")
    return stop_if(stop == "target", tx_pair.apply(g_t))


@checked("r_t[T] discount_t[T] v_t[T] lambda_t[T]|[]")
def transformed_n_step_returns(
    tx_pair: TxPair,
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    n: int,
    lambda_t: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""n-step returns of values that were learned in a transformed space.

    .. math::
        h(G_t), \quad G_t \text{ the `n_step_bootstrapped_returns` of } h^{-1}(v_t)

    Args:
      r_t: rewards, untransformed.
      v_t: transformed values of the true successors.
      stop: "bootstrap" stops `v_t`, "target" the whole return, "none" nothing.

    Returns:
      `[T]` transformed returns.

    Raises:
      ValueError: n < 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import SIGNED_LOGP1_PAIR, transformed_n_step_returns
      >>> r_t, v_t = jnp.array([1.0, 2.0]), jnp.log(jnp.array([3.0, 13.0]))
      >>> discount_t = jnp.array([0.5, 0.5])
      >>> transformed_n_step_returns(SIGNED_LOGP1_PAIR, r_t, discount_t, v_t, n=1)
      Array([1.0986123, 2.1972246], dtype=float32)

    References:
      Kapturowski et al. (2019), eq. 1, https://openreview.net/forum?id=r1lyTjAqYX

    Differs from:
      `rlax.transformed_n_step_returns` stops nothing by default, or else all.
    """
    v_t = unmasked(tx_pair.apply_inv, stop_if(stop == "bootstrap", v_t))
    g_t = n_step_bootstrapped_returns(
        r_t, discount_t, v_t, n=n, lambda_t=lambda_t, stop="none"
    )
    return stop_if(stop == "target", tx_pair.apply(g_t))


@checked("q_t[K,A] a_t[K]:int r_t[K] discount_t[K] c_t[K] pi_t[K,A]")
def transformed_general_off_policy_returns_from_action_values(
    tx_pair: TxPair,
    q_t: jax.Array,
    a_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    c_t: jax.Array,
    pi_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Off-policy returns of action values learned in a transformed space.

    .. math::
        h(G_t), \quad G_t \text{ the
        `general_off_policy_returns_from_action_values` of } h^{-1}(q_t)

    Args:
      q_t: transformed action values of the true successors.
      r_t: rewards, untransformed.
      stop: "bootstrap" stops `q_t` and `pi_t`, "target" the whole return, "none"
        nothing.

    Returns:
      `[K]` transformed returns.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax import losses
      >>> losses.transformed_general_off_policy_returns_from_action_values(
      ...     losses.SIGNED_LOGP1_PAIR,
      ...     q_t=jnp.log(jnp.array([[3.0, 1.0], [3.0, 5.0]])),
      ...     a_t=jnp.array([0, 1]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     c_t=jnp.array([0.5, 1.0]),
      ...     pi_t=jnp.array([[0.5, 0.5], [0.25, 0.75]]),
      ... )
      Array([1.0775589, 1.5581446], dtype=float32)

    References:
      Kapturowski et al. (2019), section 2.3, https://openreview.net/forum?id=r1lyTjAqYX

    Differs from:
      `rlax.transformed_general_off_policy_returns_from_action_values` stops nothing by
      default, or else all.
    """
    q_t, pi_t = stop_if(stop == "bootstrap", (q_t, pi_t))
    g_t = general_off_policy_returns_from_action_values(
        q_t=unmasked(tx_pair.apply_inv, q_t),
        a_t=a_t,
        r_t=r_t,
        discount_t=discount_t,
        c_t=c_t,
        pi_t=pi_t,
        stop="none",
    )
    return stop_if(stop == "target", tx_pair.apply(g_t))
