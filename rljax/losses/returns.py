"""Multi-step returns and advantages of one trajectory: arrays in, arrays out."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import Stop, accumulate, checked, stop_if


@checked("r_t[T] discount_t[T] v_tm1[T] v_t[T] lambda_t[T]|[]")
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

    `v_t` is not `v_tm1` shifted: where an episode was truncated, `v_t` is the value of
    the true successor, and the next `v_tm1` the value of a new episode's first state.

    Args:
      v_tm1: values of the states acted in.
      lambda_t: in [0, 1], 0 wherever an episode ended, terminated or truncated;
        differentiable.
      stop: "bootstrap" stops `v_tm1` and `v_t`, "target" the whole advantage, "none"
        nothing; when which: `rljax.losses`.

    Returns:
      `[T]` advantages of the actions taken. Plus `v_tm1`: the `lambda_returns`.

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
    v_tm1, v_t = stop_if(stop == "bootstrap", (v_tm1, v_t))
    delta_t = r_t + discount_t * v_t - v_tm1
    adv_t = accumulate(delta_t, discount_t * lambda_t, 0.0)
    return stop_if(stop == "target", adv_t)


@checked("r_t[T] discount_t[T] v_t[T]|[]:float")
def discounted_returns(
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Discounted returns of one trajectory to its end.

    .. math:: G_t = r_t + \gamma_t G_{t+1}, \qquad G_{T} = v_{T-1}

    Nothing can cut these at a truncation within the trajectory: `lambda_returns` can.

    Args:
      v_t: value of the last successor; of `[T]` the last one counts.
      stop: "bootstrap" stops `v_t`, "target" the whole return, "none" nothing.

    Returns:
      `[T]` returns, to be compared with the values of the states acted in.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import discounted_returns
      >>> r_t, discount_t = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.5, 0.5])
      >>> discounted_returns(r_t, discount_t, 8.0)
      Array([4., 6., 8.], dtype=float32)

    References:
      Sutton and Barto (2018), eq. 3.9, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.discounted_returns` stops nothing by default, or else the whole return.
    """
    v_t = stop_if(stop == "bootstrap", v_t)
    last = v_t if jnp.ndim(v_t) == 0 else jnp.asarray(v_t)[-1]
    return stop_if(stop == "target", accumulate(r_t, discount_t, last))


@checked("r_t[T] discount_t[T] v_t[T] lambda_t[T]|[]")
def n_step_bootstrapped_returns(
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    n: int,
    lambda_t: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Returns over n rewards and the value of the state then reached.

    .. math::
        G_t &= G_t^{(n)}, \qquad G_t^{(0)} = v_{t-1} \\
        G_t^{(k)} &= r_t + \gamma_t ((1 - \lambda_t) v_t + \lambda_t G_{t+1}^{(k-1)})

    Within n steps of the end they use the rewards that are left and the last value.

    Args:
      stop: "bootstrap" stops `v_t`, "target" the whole return, "none" nothing.

    Returns:
      `[T]` returns, to be compared with the values of the states acted in.

    Raises:
      ValueError: n < 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import n_step_bootstrapped_returns
      >>> n_step_bootstrapped_returns(
      ...     r_t=jnp.array([1.0, 2.0, 4.0]),
      ...     discount_t=jnp.array([0.5, 0.5, 0.5]),
      ...     v_t=jnp.array([2.0, 4.0, 8.0]),
      ...     n=2,
      ... )
      Array([3., 6., 8.], dtype=float32)

    References:
      Sutton and Barto (2018), eq. 7.1, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.n_step_bootstrapped_returns` stops nothing by default, or else the whole
      return.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n}: must be an integer >= 1")
    v_t = stop_if(stop == "bootstrap", v_t)
    length, n = len(r_t), min(n, len(r_t))
    weight_t = discount_t * lambda_t
    mixed_t = r_t + (discount_t - weight_t) * v_t
    # Beyond the end: no reward, no discount, the last value.
    mixed_t = jnp.concatenate([mixed_t, jnp.zeros_like(mixed_t)])
    weight_t = jnp.concatenate([weight_t, jnp.ones_like(weight_t)])
    g_t = jnp.concatenate([v_t[n - 1 :], jnp.full_like(v_t[: n - 1], v_t[-1])])
    for k in reversed(range(n)):
        g_t = mixed_t[k : k + length] + weight_t[k : k + length] * g_t
    return stop_if(stop == "target", g_t)


@checked("r_t[T] discount_t[T] v_t[T] lambda_[T]|[]")
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
      lambda_: in [0, 1], 0 wherever an episode was truncated; differentiable. 0 gives
        one-step targets, 1 the discounted return.
      stop: "bootstrap" stops `v_t`, "target" the whole return, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[T]` returns, to be compared with the values of the states acted in.

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
    v_t = stop_if(stop == "bootstrap", v_t)
    g_t = accumulate(
        r_t + discount_t * (1 - lambda_) * v_t, discount_t * lambda_, v_t[-1]
    )
    return stop_if(stop == "target", g_t)
