"""Multi-step returns and advantages of one trajectory: arrays in, arrays out."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._checks import Stop, check_arrays, check_stop, stop_if


def generalized_advantage_estimation(
    r_t: jax.Array,
    discount_t: jax.Array,
    v_tm1: jax.Array,
    v_t: jax.Array,
    lambda_t: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Generalized advantage estimates of one trajectory, truncation included.

    .. math::
        \delta_t &= r_t + \gamma_t v_t - v_{t-1} \\
        A_t &= \delta_t + \gamma_t \lambda_t A_{t+1}, \qquad A_{T} = 0

    `v_t` is not `v_tm1` shifted: where an episode was truncated, `v_t` is the value
    of the true successor and the next `v_tm1` that of a new episode's first state.

    Args:
      r_t: `[T]` rewards.
      discount_t: `[T]` in [0, 1], 0 only at termination; differentiable.
      v_tm1: `[T]` values of the states acted in.
      v_t: `[T]` values of the true successors (the final observation when truncated).
      lambda_t: `[T]` or `[]` in [0, 1], 0 wherever an episode ended, terminated or
        truncated; differentiable.
      stop: "bootstrap" stops `v_tm1` and `v_t`, "target" the whole advantage, "none"
        nothing. "bootstrap" gives exact meta-gradients through one inner step; through
        more, separate the arguments, `jax.grad(loss, argnums=0)(params, params)`, and
        use "none".

    Returns:
      `[T]` advantages of the actions taken. Plus `v_tm1`: the `lambda_returns`.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: rank, shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import generalized_advantage_estimation
      >>> terminated = jnp.array([0.0, 0.0, 1.0])
      >>> truncated = jnp.array([0.0, 1.0, 0.0])
      >>> generalized_advantage_estimation(
      ...     r_t=jnp.array([1.0, 2.0, 4.0]),
      ...     discount_t=0.5 * (1 - terminated),
      ...     v_tm1=jnp.array([1.0, 2.0, 3.0]),
      ...     v_t=jnp.array([2.0, 8.0, 0.0]),
      ...     lambda_t=0.5 * (1 - jnp.maximum(terminated, truncated)),
      ... )
      Array([2., 4., 1.], dtype=float32)

    References:
      Schulman et al. (2015), eq. 16, https://arxiv.org/abs/1506.02438

    Differs from:
      `rlax.truncated_generalized_advantage_estimation` takes one `values[T+1]`, so it
      cannot express truncation, and stops nothing by default.
    """
    check_stop(stop)
    check_arrays(
        "r_t[T] discount_t[T] v_tm1[T] v_t[T] lambda_t[T]|[]",
        *(r_t, discount_t, v_tm1, v_t, lambda_t),
    )
    v_tm1, v_t = stop_if(stop == "bootstrap", (v_tm1, v_t))
    delta_t = r_t + discount_t * v_t - v_tm1
    adv_t = _accumulate(delta_t, discount_t * lambda_t, 0.0)
    return stop_if(stop == "target", adv_t)


def lambda_returns(
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    lambda_: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Lambda-returns of one trajectory: mixtures of its n-step returns.

    .. math::
        G_t = r_t + \gamma_t ((1 - \lambda_t) v_t + \lambda_t G_{t+1}),
        \qquad G_{T} = v_{T-1}

    With `v_t` the values, the greatest or the chosen action values of the successors
    these are the targets of TD(lambda), Peng's Q(lambda) and Sarsa(lambda).

    Args:
      r_t: `[T]` rewards.
      discount_t: `[T]` in [0, 1], 0 only at termination; differentiable.
      v_t: `[T]` values of the true successors (the final observation when truncated).
      lambda_: `[T]` or `[]` in [0, 1], 0 wherever an episode was truncated;
        differentiable. 0 gives one-step targets, 1 the discounted return.
      stop: "bootstrap" stops `v_t`, "target" the whole return, "none" nothing.
        "bootstrap" gives exact meta-gradients through one inner step; through more,
        separate the arguments, `jax.grad(loss, argnums=0)(params, params)`, and use
        "none".

    Returns:
      `[T]` returns, to be compared with the values of the states acted in.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: rank, shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import lambda_returns
      >>> lambda_returns(
      ...     r_t=jnp.array([1.0, 2.0, 4.0]),
      ...     discount_t=jnp.array([0.5, 0.5, 0.0]),
      ...     v_t=jnp.array([2.0, 3.0, 9.0]),
      ...     lambda_=0.5,
      ... )
      Array([2.4375, 3.75  , 4.    ], dtype=float32)

    References:
      Sutton and Barto (2018), eq. 12.18, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.lambda_returns` stops nothing by default, or else the whole return.
    """
    check_stop(stop)
    check_arrays(
        "r_t[T] discount_t[T] v_t[T] lambda_[T]|[]", r_t, discount_t, v_t, lambda_
    )
    v_t = stop_if(stop == "bootstrap", v_t)
    g_t = _accumulate(
        r_t + discount_t * (1 - lambda_) * v_t, discount_t * lambda_, v_t[-1]
    )
    return stop_if(stop == "target", g_t)


def _accumulate(x_t: jax.Array, decay_t: jax.Array, last: ArrayLike) -> jax.Array:
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
