"""Losses of deterministic actor-critics: DPG and TD3."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import Stop, checked, stop_if


@checked("a_t[D] dqda_t[D] dqda_clipping[]:scalar")
def dpg_loss(
    a_t: jax.Array,
    dqda_t: jax.Array,
    dqda_clipping: ArrayLike | None = None,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Deterministic policy-gradient loss.

    .. math:: L_t = -\sum_d a_t(d) g_t(d), \qquad
        g_t = \nabla_a q_t \min(1,\; c / \lVert \nabla_a q_t \rVert)

    Args:
      a_t: action of the policy.
      dqda_t: gradient of the critic's value with respect to the action, at `a_t`.
      dqda_clipping: positive: the greatest norm of the gradient, None for no clipping;
        differentiable.
      stop: "bootstrap" stops `dqda_t`, "target" the clipped gradient, "none" nothing;
        when which: `rljax.losses`.

    Returns:
      `[]` loss, whose derivative in `a_t` is minus the clipped gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import dpg_loss
      >>> dpg_loss(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), 2.5)
      Array(-5.5, dtype=float32)

    References:
      Silver et al. (2014), eq. 9, http://proceedings.mlr.press/v32/silver14.html

    Differs from:
      `rlax.dpg_loss` returns `[D]` halves of squared gradients, of the same derivative
      in `a_t` but with a second one; without stopping the derivative is 0.
    """
    dqda_t = stop_if(stop == "bootstrap", dqda_t)
    if dqda_clipping is not None:
        dqda_t = _clip_norm(dqda_t, dqda_clipping)
    return -jnp.sum(a_t * stop_if(stop == "target", dqda_t))


@checked("q_tm1[] r_t[] discount_t[] q_t[C]")
def td3_learning(
    q_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Clipped double Q-learning error of one critic of an ensemble.

    .. math:: \delta_t = r_t + \gamma_t \min_c q_t(c) - q_{t-1}

    Args:
      q_tm1: value of the action taken: the prediction.
      q_t: values, by each critic of the ensemble, of the target policy's action (see
        `td3_smoothed_action`) in the true successor (the final observation when
        truncated).
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import td3_learning
      >>> td3_learning(0.5, 1.0, 0.5, jnp.array([4.0, 2.0]))
      Array(1.5, dtype=float32)

    References:
      Fujimoto et al. (2018), eq. 10, https://arxiv.org/abs/1802.09477

    Differs from:
      rlax has no clipped double Q-learning.
    """
    target_tm1 = r_t + discount_t * jnp.min(stop_if(stop == "bootstrap", q_t))
    return stop_if(stop == "target", target_tm1) - q_tm1


@checked(
    "action[...] stddev[...]|[] noise_clip[...]|[] minimum[...]|[] maximum[...]|[]"
)
def td3_smoothed_action(
    key: jax.Array,
    action: jax.Array,
    stddev: ArrayLike,
    noise_clip: ArrayLike,
    minimum: ArrayLike,
    maximum: ArrayLike,
) -> jax.Array:
    r"""Target-policy smoothing: an action with clipped Gaussian noise.

    .. math:: \mathrm{clip}(a + \mathrm{clip}(\epsilon, -c, c), a^{min}, a^{max}),
        \qquad \epsilon \sim \mathcal{N}(0, \sigma^2)

    Nothing is stopped here.

    Args:
      key: used once.
      action: action of the target policy; differentiable.
      stddev: standard deviation of the noise, in units of the action.
      noise_clip: greatest size of the noise.
      minimum: least action.
      maximum: greatest action.

    Returns:
      `[D]` action.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.losses import td3_smoothed_action
      >>> action = jnp.array([0.5, 2.0])
      >>> td3_smoothed_action(jax.random.key(0), action, 0.0, 0.5, -1.0, 1.0)
      Array([0.5, 1. ], dtype=float32)

    References:
      Fujimoto et al. (2018), eq. 14, https://arxiv.org/abs/1802.09477

    Differs from:
      `rlax.add_gaussian_noise` clips nothing.
    """
    noise = stddev * jax.random.normal(key, action.shape, action.dtype)
    noise = jnp.clip(noise, jnp.negative(noise_clip), noise_clip)
    return jnp.clip(action + noise, minimum, maximum)


def _clip_norm(x: jax.Array, max_norm: ArrayLike) -> jax.Array:
    """`x` with at most this Euclidean norm; differentiable, at 0 as well."""
    greatest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    unit = jnp.where(greatest > 0, greatest, 1.0)  # whose squares are in range
    squared = jnp.sum((x / unit) ** 2)
    norm = unit * jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
    clipped = (squared > 0) & (norm > max_norm)
    return x * jnp.where(clipped, max_norm / norm, 1.0)
