"""Gradient temporal-difference learning: TDC and GTD2 as one loss."""

from typing import Literal

import jax

from rljax.losses._common import Stop, checked, stop_if

Rule = Literal["tdc", "gtd2"]


@checked(
    "v_tm1[] r_t[] discount_t[] v_t[] h_tm1[] target_v_tm1[] target_v_t[] "
    "target_h_tm1[]"
)
def gradient_td_loss(
    v_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    h_tm1: jax.Array,
    target_v_tm1: jax.Array,
    target_v_t: jax.Array,
    target_h_tm1: jax.Array,
    *,
    method: Rule = "tdc",
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Loss of gradient TD learning: stable off-policy, with function approximation.

    .. math::
        \delta_t &= r_t + \gamma_t \bar v_t - \bar v_{t-1} \\
        L^{TDC}_t &= -\delta_t v_{t-1} + \gamma_t \bar h_{t-1} v_t
        + (\delta_t - h_{t-1})^2 / 2 \\
        L^{GTD2}_t &= -\bar h_{t-1} (v_{t-1} - \gamma_t v_t)
        + (\delta_t - h_{t-1})^2 / 2

    `h_tm1` predicts the TD error. Descending the loss moves the parameters of `h_tm1`
    by the LMS rule and the parameters of the values by the TDC or GTD2 rule; the number
    that the loss amounts to means nothing. Every network output is passed twice:
    `target_v_tm1`, `target_v_t` and `target_h_tm1` have the values of `v_tm1`, `v_t`
    and `h_tm1`.

    Where `h_tm1` is the TD error itself, which it can be if every successor is certain,
    both rules are the residual gradient: the gradient of `td_learning`'s error under
    "none", squared and halved.

    Args:
      v_tm1: value of the state acted in.
      v_t: value of the true successor (the final observation when truncated); has its
        gradient in every mode.
      h_tm1: prediction of the TD error in the state acted in.
      target_v_tm1: :math:`\bar v_{t-1}`, `v_tm1` once more.
      target_v_t: :math:`\bar v_t`, `v_t` once more.
      target_h_tm1: :math:`\bar h_{t-1}`, `h_tm1` once more.
      method: "tdc" or "gtd2".
      stop: "bootstrap" stops the three targets, "target" also `r_t` and `discount_t`,
        "none" nothing: then the targets must be made of other parameters,
        `jax.grad(loss, argnums=0)(params, bootstrap_params)`. Only that gives exact
        meta-gradients through more than one inner step.

    Returns:
      `[]` loss.

    Example:
      >>> import jax
      >>> from rljax.losses import gradient_td_loss
      >>> def loss(v_tm1, v_t, h_tm1):  # the TD error is 1 + 0.5 * 4 - 2 = 1
      ...     return gradient_td_loss(v_tm1, 1.0, 0.5, v_t, h_tm1, v_tm1, v_t, h_tm1)
      >>> jax.tree.map(float, jax.grad(loss, argnums=(0, 1, 2))(2.0, 4.0, 0.25))
      (-1.0, 0.125, -0.75)

    References:
      Sutton et al. (2009), https://doi.org/10.1145/1553374.1553501
      Maei (2011), https://era.library.ualberta.ca/items/fd55edcb-ce47-4f84-84e2-be281d27b16a
      Patterson et al. (2022), https://arxiv.org/abs/2104.13844

    Differs from:
      rlax has no gradient TD learning.
    """
    target_v_tm1, target_v_t, target_h_tm1 = stop_if(
        stop != "none", (target_v_tm1, target_v_t, target_h_tm1)
    )
    r_t, discount_t = stop_if(stop == "target", (r_t, discount_t))
    td_t = r_t + discount_t * target_v_t - target_v_tm1
    if method == "tdc":
        value_loss = discount_t * target_h_tm1 * v_t - td_t * v_tm1
    else:
        value_loss = target_h_tm1 * (discount_t * v_t - v_tm1)
    return value_loss + (td_t - h_tm1) ** 2 / 2
