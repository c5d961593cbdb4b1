"""One-step temporal-difference errors of one transition: arrays in, a scalar out."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._checks import Stop, check_arrays, check_stop, stop_if


def td_learning(
    v_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""One-step temporal-difference error.

    .. math:: \delta_t = r_t + \gamma_t v_t - v_{t-1}

    Args:
      v_tm1: `[]` value of the state acted in: the prediction.
      r_t: `[]` reward.
      discount_t: `[]` in [0, 1], 0 only at termination; differentiable.
      v_t: `[]` value of the true successor (the final observation when truncated).
      stop: "bootstrap" stops `v_t`, "target" the whole target, "none" nothing.
        "bootstrap" gives exact meta-gradients through one inner step; through more,
        separate the arguments, `jax.grad(loss, argnums=0)(params, params)`, and use
        "none".

    Returns:
      `[]` target minus prediction.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: rank, shape or dtype, at trace time.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.losses import td_learning
      >>> v_tm1, r_t = jnp.array([0.5, 0.5]), jnp.array([1.0, 1.0])
      >>> discount_t, v_t = jnp.array([0.5, 0.0]), jnp.array([4.0, 4.0])
      >>> jax.vmap(td_learning)(v_tm1, r_t, discount_t, v_t)
      Array([2.5, 0.5], dtype=float32)

    References:
      Sutton (1988), https://doi.org/10.1007/BF00115009
      Sutton and Barto (2018), eq. 6.5, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.td_learning` stops the whole target, and d/d discount with it.
    """
    check_stop(stop)
    check_arrays("v_tm1[] r_t[] discount_t[] v_t[]", v_tm1, r_t, discount_t, v_t)
    target_tm1 = r_t + discount_t * stop_if(stop == "bootstrap", v_t)
    return stop_if(stop == "target", target_tm1) - v_tm1


def q_learning(
    q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Q-learning temporal-difference error.

    .. math:: \delta_t = r_t + \gamma_t \max_a q_t(a) - q_{t-1}(a_{t-1})

    Args:
      q_tm1: `[A]` action values of the state acted in: the prediction.
      a_tm1: `[]` int in [0, A), the action taken; outside, the result is NaN.
      r_t: `[]` reward.
      discount_t: `[]` in [0, 1], 0 only at termination; differentiable.
      q_t: `[A]` action values of the true successor (the final observation when
        truncated).
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing.
        "bootstrap" gives exact meta-gradients through one inner step; through more,
        separate the arguments, `jax.grad(loss, argnums=0)(params, params)`, and use
        "none".

    Returns:
      `[]` target minus prediction.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: rank, shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import q_learning
      >>> q_tm1, q_t = jnp.array([0.5, 1.0]), jnp.array([2.0, 4.0])
      >>> q_learning(q_tm1, 0, 1.0, 0.5, q_t)
      Array(2.5, dtype=float32)

    References:
      Watkins and Dayan (1992), https://doi.org/10.1007/BF00992698
      Sutton and Barto (2018), eq. 6.8, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.q_learning` stops the whole target, and d/d discount with it, and takes an
      action out of range for the nearest one.
    """
    check_stop(stop)
    check_arrays(
        "q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t[A]",
        *(q_tm1, a_tm1, r_t, discount_t, q_t),
    )
    target_tm1 = r_t + discount_t * jnp.max(stop_if(stop == "bootstrap", q_t))
    return stop_if(stop == "target", target_tm1) - _chosen(q_tm1, a_tm1)


def double_q_learning(
    q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t_value: jax.Array,
    q_t_selector: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Double Q-learning temporal-difference error.

    .. math::
        \delta_t = r_t + \gamma_t q^{value}_t(\arg\max_a q^{selector}_t(a))
        - q_{t-1}(a_{t-1})

    Args:
      q_tm1: `[A]` action values of the state acted in: the prediction.
      a_tm1: `[]` int in [0, A), the action taken; outside, the result is NaN.
      r_t: `[]` reward.
      discount_t: `[]` in [0, 1], 0 only at termination; differentiable.
      q_t_value: `[A]` action values of the true successor (the final observation when
        truncated) by the evaluating network; DQN: the target network.
      q_t_selector: `[A]` the same by the network that chooses the action; DQN: the
        online network. Has no gradient in any mode.
      stop: "bootstrap" stops `q_t_value`, "target" the whole target, "none" nothing.
        "bootstrap" gives exact meta-gradients through one inner step; through more,
        separate the arguments, `jax.grad(loss, argnums=0)(params, params)`, and use
        "none".

    Returns:
      `[]` target minus prediction.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: rank, shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import double_q_learning
      >>> q_tm1, target_q_t = jnp.array([0.5, 1.0]), jnp.array([2.0, 4.0])
      >>> double_q_learning(q_tm1, 0, 1.0, 0.5, target_q_t, jnp.array([3.0, 2.0]))
      Array(1.5, dtype=float32)

    References:
      van Hasselt (2010), https://papers.nips.cc/paper/3964-double-q-learning
      van Hasselt et al. (2016), https://arxiv.org/abs/1509.06461
      Sutton and Barto (2018), eq. 6.10, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.double_q_learning` stops the whole target, and d/d discount with it, and
      takes an action out of range for the nearest one.
    """
    check_stop(stop)
    check_arrays(
        "q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t_value[A] q_t_selector[A]",
        *(q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector),
    )
    v_t = _chosen(stop_if(stop == "bootstrap", q_t_value), jnp.argmax(q_t_selector))
    target_tm1 = r_t + discount_t * v_t
    return stop_if(stop == "target", target_tm1) - _chosen(q_tm1, a_tm1)


def _chosen(q: jax.Array, a: ArrayLike) -> jax.Array:
    """`[]` value of action `a`, NaN where there is no such action."""
    return q.at[a].get(mode="fill", wrap_negative_indices=False)
