"""Errors and advantages corrected by importance ratios, of one trajectory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import Stop, accumulate, checked, stop_if


@checked("r_t[T] discount_t[T] rho_tm1[T] lambda_[T]|[] v_tm1[T] v_t[T]")
def importance_corrected_td_errors(
    r_t: jax.Array,
    discount_t: jax.Array,
    rho_tm1: jax.Array,
    lambda_: ArrayLike,
    v_tm1: jax.Array,
    v_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Multi-step temporal-difference errors, corrected per decision.

    .. math::
        \delta_t &= r_t + \gamma_t v_t - v_{t-1} \\
        e_t &= \delta_t + \gamma_t \lambda_t \rho_t e_{t+1}, \qquad
        \text{error}_t = \rho_{t-1} e_t

    Args:
      stop: "bootstrap" stops `v_t`, `rho_tm1` and `v_tm1` but for the prediction,
        "target" the whole target, "none" nothing. To separate the arguments, add the
        bootstrap's `v_tm1` and subtract the prediction, as in `vtrace`.

    Returns:
      `[T]` errors: target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import importance_corrected_td_errors
      >>> importance_corrected_td_errors(
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     rho_tm1=jnp.array([2.0, 0.5]),
      ...     lambda_=1.0,
      ...     v_tm1=jnp.array([1.0, 2.0]),
      ...     v_t=jnp.array([2.0, 4.0]),
      ... )
      Array([3., 1.], dtype=float32)

    References:
      Sutton et al. (2014), eq. 11-13, http://proceedings.mlr.press/v32/sutton14.html

    Differs from:
      `rlax._src.multistep.importance_corrected_td_errors` takes one `values[T+1]`, so
      it cannot express truncation, and stops nothing by default.
    """
    rho, base, v_t = stop_if(stop == "bootstrap", (rho_tm1, v_tm1, v_t))
    next_rho = jnp.append(rho[1:], jnp.zeros_like(rho[:1]))
    delta_t = r_t + discount_t * v_t - base
    errors = rho * accumulate(delta_t, discount_t * lambda_ * next_rho, 0.0)
    return _minus_prediction(errors, v_tm1, stop)


class VTraceOutput(NamedTuple):
    """Results of V-trace for an actor and its critic."""

    errors: jax.Array  # [T] of the critic, target minus prediction
    pg_advantage: jax.Array  # [T] of the actions taken, with their clipped ratio
    q_estimate: jax.Array  # [T] values of the actions taken


@checked(
    "v_tm1[T] v_t[T] r_t[T] discount_t[T] rho_tm1[T] lambda_[T]|[] "
    "clip_rho_threshold[]:scalar sample_mask[T]:bool"
)
def vtrace(
    v_tm1: jax.Array,
    v_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    rho_tm1: jax.Array,
    lambda_: ArrayLike = 1.0,
    clip_rho_threshold: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
    sample_mask: jax.Array | None = None,
) -> jax.Array:
    r"""V-trace errors: `leaky_vtrace` with every ratio clipped.

    .. math::
        \delta_t &= \min(\bar\rho, \rho_{t-1}) (r_t + \gamma_t v_t - v_{t-1}) \\
        e_t &= \delta_t + \gamma_t \lambda_t \min(1, \rho_{t-1}) e_{t+1}

    Args:
      stop: "bootstrap" stops `v_t`, `rho_tm1` and `v_tm1` but for the prediction,
        "target" the whole target, "none" nothing. To separate the arguments:
        `vtrace(old_v_tm1, v_t, ..., stop="none") + old_v_tm1 - v_tm1`, where all but
        the last `v_tm1` come from `bootstrap_params`.

    Returns:
      `[T]` errors: target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import vtrace
      >>> vtrace(
      ...     v_tm1=jnp.array([1.0, 2.0]),
      ...     v_t=jnp.array([2.0, 4.0]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     rho_tm1=jnp.array([2.0, 0.5]),
      ... )
      Array([1.5, 1. ], dtype=float32)

    References:
      Espeholt et al. (2018), eq. 1, https://arxiv.org/abs/1802.01561

    Differs from:
      `rlax.vtrace` stops the whole target, and d/d discount and d/d lambda with it.
    """
    return leaky_vtrace(
        v_tm1=v_tm1,
        v_t=v_t,
        r_t=r_t,
        discount_t=discount_t,
        rho_tm1=rho_tm1,
        alpha_=1.0,
        lambda_=lambda_,
        clip_rho_threshold=clip_rho_threshold,
        stop=stop,
        sample_mask=sample_mask,
    )


@checked(
    "v_tm1[T] v_t[T] r_t[T] discount_t[T] rho_tm1[T] alpha_[]:scalar lambda_[T]|[] "
    "clip_rho_threshold[]:scalar sample_mask[T]:bool "
    "alpha_c[]:scalar"
)
def leaky_vtrace(
    v_tm1: jax.Array,
    v_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    rho_tm1: jax.Array,
    alpha_: ArrayLike = 1.0,
    lambda_: ArrayLike = 1.0,
    clip_rho_threshold: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
    alpha_c: ArrayLike | None = None,
    sample_mask: jax.Array | None = None,
) -> jax.Array:
    r"""Leaky V-trace errors: between V-trace and importance sampling.

    .. math::
        f_c(\rho) &= \alpha \min(c, \rho) + (1 - \alpha) \rho \\
        \delta_t &= f_{\bar\rho}(\rho_{t-1}) (r_t + \gamma_t v_t - v_{t-1}) \\
        e_t &= \delta_t + \gamma_t \lambda_t f_1(\rho_{t-1}) e_{t+1}

    Args:
      stop: as in `vtrace`.
      alpha_c: of the traces' f_1 in place of `alpha_`.

    Returns:
      `[T]` errors: target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import leaky_vtrace
      >>> leaky_vtrace(
      ...     v_tm1=jnp.array([1.0, 2.0]),
      ...     v_t=jnp.array([2.0, 4.0]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     rho_tm1=jnp.array([2.0, 0.5]),
      ...     alpha_=0.5,
      ... )
      Array([2.25, 1.  ], dtype=float32)

    References:
      Zahavy et al. (2020), eq. 10-12, https://arxiv.org/abs/2002.12928

    Differs from:
      `rlax.leaky_vtrace` stops the whole target, and with it the meta-gradient for
      which alpha is there.
    """
    base, v_t, rho = stop_if(stop == "bootstrap", (v_tm1, v_t, rho_tm1))
    delta_t = _leaky_clip(rho, clip_rho_threshold, alpha_) * (
        r_t + discount_t * v_t - base
    )
    alpha_c = alpha_ if alpha_c is None else alpha_c
    decay_t = discount_t * lambda_ * _leaky_clip(rho, 1.0, alpha_c)
    if sample_mask is not None:
        delta_t = jnp.where(sample_mask, delta_t, 0.0)
        decay_t = jnp.where(sample_mask, decay_t, 1.0)
    return _minus_prediction(accumulate(delta_t, decay_t, 0.0), v_tm1, stop)


@checked(
    "v_tm1[T] v_t[T] r_t[T] discount_t[T] rho_tm1[T] lambda_[T]|[] "
    "clip_rho_threshold[]:scalar clip_pg_rho_threshold[]:scalar sample_mask[T]:bool"
)
def vtrace_td_error_and_advantage(
    v_tm1: jax.Array,
    v_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    rho_tm1: jax.Array,
    lambda_: ArrayLike = 1.0,
    clip_rho_threshold: ArrayLike = 1.0,
    clip_pg_rho_threshold: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
    sample_mask: jax.Array | None = None,
) -> VTraceOutput:
    r"""V-trace errors of a critic and advantages of an actor, truncation included.

    .. math::
        Q_t &= r_t + \gamma_t (v_t + \lambda_t e_{t+1}), \qquad e_T = 0 \\
        A_t &= \min(\bar\rho_{pg}, \rho_{t-1}) (Q_t - v_{t-1})

    with the errors :math:`e_t` of `vtrace`.

    Args:
      stop: as in `vtrace`; no mode leaves a gradient with respect to the values in the
        advantage but "none".

    Returns:
      Errors, advantages and estimates of action values, `[T]` each.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import vtrace_td_error_and_advantage
      >>> errors, pg_advantage, q_estimate = vtrace_td_error_and_advantage(
      ...     v_tm1=jnp.array([1.0, 2.0]),
      ...     v_t=jnp.array([2.0, 4.0]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     rho_tm1=jnp.array([2.0, 0.5]),
      ... )
      >>> errors, pg_advantage
      (Array([1.5, 1. ], dtype=float32), Array([1.5, 1. ], dtype=float32))
      >>> q_estimate
      Array([2.5, 4. ], dtype=float32)

    References:
      Espeholt et al. (2018), eq. 1 and section 4.2, https://arxiv.org/abs/1802.01561

    Differs from:
      `rlax.vtrace_td_error_and_advantage` takes the next `v_tm1` for `v_t`, wrong
      where an episode was truncated, and leaves the values' gradient in the advantage.
    """
    return leaky_vtrace_td_error_and_advantage(
        v_tm1=v_tm1,
        v_t=v_t,
        r_t=r_t,
        discount_t=discount_t,
        rho_tm1=rho_tm1,
        alpha=1.0,
        lambda_=lambda_,
        clip_rho_threshold=clip_rho_threshold,
        clip_pg_rho_threshold=clip_pg_rho_threshold,
        stop=stop,
        sample_mask=sample_mask,
    )


@checked(
    "v_tm1[T] v_t[T] r_t[T] discount_t[T] rho_tm1[T] alpha[]:scalar lambda_[T]|[] "
    "clip_rho_threshold[]:scalar clip_pg_rho_threshold[]:scalar sample_mask[T]:bool "
    "alpha_c[]:scalar"
)
def leaky_vtrace_td_error_and_advantage(
    v_tm1: jax.Array,
    v_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    rho_tm1: jax.Array,
    alpha: ArrayLike = 1.0,
    lambda_: ArrayLike = 1.0,
    clip_rho_threshold: ArrayLike = 1.0,
    clip_pg_rho_threshold: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
    alpha_c: ArrayLike | None = None,
    sample_mask: jax.Array | None = None,
) -> VTraceOutput:
    r"""Leaky V-trace errors of a critic and advantages of an actor.

    .. math::
        Q_t &= r_t + \gamma_t (v_t + \lambda_t e_{t+1}), \qquad e_T = 0 \\
        A_t &= (\alpha \min(\bar\rho_{pg}, \rho_{t-1}) + (1 - \alpha) \rho_{t-1})
        (Q_t - v_{t-1})

    with the errors :math:`e_t` of `leaky_vtrace`.

    Args:
      stop: as in `vtrace_td_error_and_advantage`.
      alpha_c: of the traces in place of `alpha`.

    Returns:
      Errors, advantages and estimates of action values, `[T]` each.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import leaky_vtrace_td_error_and_advantage
      >>> leaky_vtrace_td_error_and_advantage(
      ...     v_tm1=jnp.array([1.0, 2.0]),
      ...     v_t=jnp.array([2.0, 4.0]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     rho_tm1=jnp.array([2.0, 0.5]),
      ...     alpha=0.5,
      ... ).pg_advantage
      Array([2.25, 1.  ], dtype=float32)

    References:
      Zahavy et al. (2020), eq. 10-12, https://arxiv.org/abs/2002.12928

    Differs from:
      `rlax.leaky_vtrace_td_error_and_advantage`: as `vtrace_td_error_and_advantage`.
    """
    errors = leaky_vtrace(
        v_tm1=v_tm1,
        v_t=v_t,
        r_t=r_t,
        discount_t=discount_t,
        rho_tm1=rho_tm1,
        alpha_=alpha,
        lambda_=lambda_,
        clip_rho_threshold=clip_rho_threshold,
        stop=stop,
        sample_mask=sample_mask,
        alpha_c=alpha_c,
    )
    base, v_t, rho = stop_if(stop == "bootstrap", (v_tm1, v_t, rho_tm1))
    errors_t = errors + (v_tm1 - base)  # without the prediction's gradient
    next_errors = jnp.append(errors_t[1:], jnp.zeros_like(errors[:1]))
    q_t = r_t + discount_t * (v_t + lambda_ * next_errors)
    adv_t = _leaky_clip(rho, clip_pg_rho_threshold, alpha) * (q_t - base)
    return VTraceOutput(
        errors=errors,
        pg_advantage=stop_if(stop == "target", adv_t),
        q_estimate=stop_if(stop == "target", q_t),
    )


def _leaky_clip(rho: jax.Array, threshold: ArrayLike, alpha: ArrayLike) -> jax.Array:
    """Between the clipped ratio, alpha = 1, and the ratio itself, alpha = 0."""
    return jnp.minimum(threshold, rho) * alpha + rho * (1 - alpha)


def _minus_prediction(errors: jax.Array, v_tm1: jax.Array, stop: Stop) -> jax.Array:
    """The errors; their gradient in `v_tm1` becomes -1, unless `stop` is "none"."""
    if stop == "none":
        return errors
    zero = jax.lax.stop_gradient(v_tm1) - v_tm1
    return stop_if(stop == "target", errors) + zero
