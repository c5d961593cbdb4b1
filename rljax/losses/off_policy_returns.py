"""Off-policy returns of one trajectory, with any trace: arrays in, arrays out."""

import jax
import jax.numpy as jnp

from rljax.losses._common import (
    Stop,
    accumulate,
    checked,
    chosen,
    mean_value,
    stop_if,
    weighted,
)


@checked("q_t[K-1] v_t[K] r_t[K] discount_t[K] c_t[K-1]")
def general_off_policy_returns_from_q_and_v(
    q_t: jax.Array,
    v_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    c_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Off-policy returns with any trace coefficient, from values and action values.

    .. math::
        G_t = r_t + \gamma_t (v_t - c_t q_t + c_t G_{t+1}),
        \qquad G_{K-1} = r_{K-1} + \gamma_{K-1} v_{K-1}

    The trace `c_t` makes the algorithm, with the ratio
    :math:`\rho_t = \pi(a_t|s_t) / \mu(a_t|s_t)`: importance sampling :math:`\rho_t`,
    Q(lambda) :math:`\lambda`, tree backup :math:`\lambda \pi(a_t|s_t)`, Retrace
    :math:`\lambda \min(1, \rho_t)`.

    Args:
      q_t: values of the actions taken next, in the true successors.
      stop: "bootstrap" stops `q_t` and `v_t`, "target" the whole return, "none"
        nothing.

    Returns:
      `[K]` returns, to be compared with the values of the actions taken first.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import general_off_policy_returns_from_q_and_v
      >>> general_off_policy_returns_from_q_and_v(
      ...     q_t=jnp.array([2.0, 4.0]),
      ...     v_t=jnp.array([1.0, 3.0, 8.0]),
      ...     r_t=jnp.array([1.0, 2.0, 4.0]),
      ...     discount_t=jnp.array([0.5, 0.5, 0.5]),
      ...     c_t=jnp.array([1.0, 0.5]),
      ... )
      Array([2.75, 4.5 , 8.  ], dtype=float32)

    References:
      Munos et al. (2016), eq. 4, https://arxiv.org/abs/1606.02647

    Differs from:
      `rlax.general_off_policy_returns_from_q_and_v` stops nothing by default, or else
      the whole return.
    """
    q_t, v_t = stop_if(stop == "bootstrap", (q_t, v_t))
    last = jnp.zeros_like(r_t[:1])  # nothing follows the last step
    c_t, cq_t = jnp.append(c_t, last), jnp.append(weighted(c_t, q_t), last)
    g_t = accumulate(r_t + discount_t * (v_t - cq_t), discount_t * c_t, 0.0)
    return stop_if(stop == "target", g_t)


@checked("q_t[K,A] a_t[K]:int r_t[K] discount_t[K] c_t[K] pi_t[K,A]")
def general_off_policy_returns_from_action_values(
    q_t: jax.Array,
    a_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    c_t: jax.Array,
    pi_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Off-policy returns with any trace coefficient, from action values and a policy.

    .. math::
        G_t &= r_t + \gamma_t (v_t - c_t q_t(a_t) + c_t G_{t+1}), \qquad
        v_t = \sum_a \pi_t(a) q_t(a) \\
        G_{K-1} &= r_{K-1} + \gamma_{K-1} v_{K-1}

    The traces of the algorithms: see `general_off_policy_returns_from_q_and_v`.

    Args:
      stop: "bootstrap" stops `q_t` and `pi_t`, "target" the whole return, "none"
        nothing.

    Returns:
      `[K]` returns, to be compared with the values of the actions taken first.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import general_off_policy_returns_from_action_values
      >>> general_off_policy_returns_from_action_values(
      ...     q_t=jnp.array([[2.0, 0.0], [2.0, 4.0]]),
      ...     a_t=jnp.array([0, 1]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     c_t=jnp.array([0.5, 1.0]),
      ...     pi_t=jnp.array([[0.5, 0.5], [0.25, 0.75]]),
      ... )
      Array([1.9375, 3.75  ], dtype=float32)

    References:
      Munos et al. (2016), eq. 4, https://arxiv.org/abs/1606.02647

    Differs from:
      `rlax.general_off_policy_returns_from_action_values` stops nothing by default, or
      else the whole return.
    """
    return general_off_policy_returns_from_q_and_v(
        q_t=jax.vmap(chosen)(q_t, a_t)[:-1],
        v_t=mean_value(pi_t, q_t),
        r_t=r_t,
        discount_t=discount_t,
        c_t=c_t[:-1],
        stop=stop,
    )
