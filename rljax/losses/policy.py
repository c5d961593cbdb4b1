"""Policy and value losses per time step: arrays in, arrays out, nothing reduced."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._checks import Stop, check_arrays, check_stop, stop_if


def clipped_surrogate_pg_loss(
    prob_ratios_t: jax.Array,
    adv_t: jax.Array,
    epsilon: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""PPO's clipped surrogate policy-gradient loss.

    .. math::
        L_t = -\min(\rho_t A_t,\; \mathrm{clip}(\rho_t, 1-\epsilon, 1+\epsilon) A_t)

    Args:
      prob_ratios_t: `[T]` (or any shape) probability of the action taken under the
        policy to be improved over that under the policy that took it.
      adv_t: `[T]` advantages; differentiable.
      epsilon: `[]` or `[T]`, positive, how far a ratio pays to go from 1. The loss is
        differentiable in it, but its slope in the ratios is not a function of it: a
        meta-gradient through inner steps is 0.
      stop: "target" stops `adv_t`; "bootstrap" and "none" stop nothing, because an
        advantage from `generalized_advantage_estimation` has its values stopped
        already, and d/d discount and d/d lambda pass through it.

    Returns:
      `[T]` losses; their mean is PPO's.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import clipped_surrogate_pg_loss
      >>> prob_ratios_t = jnp.array([0.5, 0.5, 2.0, 2.0])
      >>> adv_t = jnp.array([1.0, -1.0, 1.0, -1.0])
      >>> clipped_surrogate_pg_loss(prob_ratios_t, adv_t, 0.25)
      Array([-0.5 ,  0.75, -1.25,  2.  ], dtype=float32)

    References:
      Schulman et al. (2017), eq. 7, https://arxiv.org/abs/1707.06347

    Differs from:
      `rlax.clipped_surrogate_pg_loss` returns the mean over T and stops the advantage
      by default.
    """
    check_stop(stop)
    check_arrays(
        "prob_ratios_t[...] adv_t[...] epsilon[...]|[]", prob_ratios_t, adv_t, epsilon
    )
    adv_t = stop_if(stop == "target", adv_t)
    clipped_ratios_t = jnp.clip(prob_ratios_t, 1 - epsilon, 1 + epsilon)
    return -jnp.minimum(prob_ratios_t * adv_t, clipped_ratios_t * adv_t)


def clipped_value_loss(
    v_t: jax.Array,
    v_old_t: jax.Array,
    target_t: jax.Array,
    epsilon: ArrayLike,
) -> jax.Array:
    r"""PPO's clipped value loss.

    .. math::
        L_t = \tfrac12 \max\{(v_t - G_t)^2,\;
        (\mathrm{clip}(v_t, v^{old}_t - \epsilon, v^{old}_t + \epsilon) - G_t)^2\}

    Nothing is stopped here: stop the bootstraps where the target is made.

    Args:
      v_t: `[T]` (or any shape) values to be improved: the prediction.
      v_old_t: `[T]` values of the same states when the rollout was collected.
      target_t: `[T]` for instance `lambda_returns`; differentiable.
      epsilon: `[]` or `[T]`, positive, how far a value pays to go from the old one, in
        units of value; its meta-gradient is 0, as in `clipped_surrogate_pg_loss`.

    Returns:
      `[T]` losses.

    Raises:
      AssertionError: shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import clipped_value_loss
      >>> v_t, v_old_t = jnp.array([1.0, 1.0]), jnp.array([0.0, 0.0])
      >>> clipped_value_loss(v_t, v_old_t, jnp.array([2.0, 0.0]), 0.5)
      Array([1.125, 0.5  ], dtype=float32)

    References:
      Engstrom et al. (2020), https://arxiv.org/abs/2005.12729, "value function
      clipping": part of OpenAI's implementation of PPO, not of the paper.

    Differs from:
      rlax has no such loss; its policy losses return means over T.
    """
    check_arrays(
        "v_t[...] v_old_t[...] target_t[...] epsilon[...]|[]",
        *(v_t, v_old_t, target_t, epsilon),
    )
    clipped_t = jnp.clip(v_t, v_old_t - epsilon, v_old_t + epsilon)
    return 0.5 * jnp.maximum((v_t - target_t) ** 2, (clipped_t - target_t) ** 2)
