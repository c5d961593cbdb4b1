"""Policy and value losses per time step: arrays in, arrays out, no mean over time."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import Stop, checked, chosen, expectation, stop_if


@checked("logits_t[T,A] a_t[T]:int adv_t[T] w_t[T]|[]")
def policy_gradient_loss(
    logits_t: jax.Array,
    a_t: jax.Array,
    adv_t: jax.Array,
    w_t: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Likelihood-ratio policy-gradient loss.

    .. math:: L_t = -w_t A_t \log \pi_t(a_t), \qquad \pi_t = \mathrm{softmax}(logits_t)

    Args:
      a_t: in [0, A), the action taken; outside, the loss is NaN.
      stop: "target" stops `adv_t`; "bootstrap" and "none" stop nothing, because an
        advantage from `generalized_advantage_estimation` has its values stopped
        already, and d/d discount and d/d lambda pass through it.

    Returns:
      `[T]` losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import policy_gradient_loss
      >>> logits_t, a_t = jnp.zeros((2, 2)), jnp.array([0, 1])  # log 2 = 0.693
      >>> policy_gradient_loss(logits_t, a_t, jnp.array([1.0, -2.0]), 1.0)
      Array([ 0.6931472, -1.3862944], dtype=float32)

    References:
      Williams (1992), section 4, https://doi.org/10.1007/BF00992696
      Sutton and Barto (2018), eq. 13.11, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.policy_gradient_loss` returns the mean over T and stops the advantage by
      default; with an action out of range it is infinite.
    """
    log_prob_t = jax.vmap(chosen)(jax.nn.log_softmax(logits_t), a_t)
    return -log_prob_t * stop_if(stop == "target", adv_t) * w_t


@checked("logits_t[T,A] w_t[T]|[]")
def entropy_loss(logits_t: jax.Array, w_t: ArrayLike) -> jax.Array:
    r"""Entropy regularisation of a categorical policy.

    .. math:: L_t = w_t \sum_a \pi_t(a) \log \pi_t(a), \qquad
        \pi_t = \mathrm{softmax}(logits_t)

    Args:
      w_t: weights, for instance an entropy cost; differentiable.

    Returns:
      `[T]` losses: minus the entropies, in nats, times the weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import entropy_loss
      >>> entropy_loss(jnp.array([[0.0, 0.0], [0.0, -jnp.inf]]), 1.0)  # log 2 = 0.693
      Array([-0.6931472,  0.       ], dtype=float32)

    References:
      Williams and Peng (1991), https://doi.org/10.1080/09540099108946587
      Mnih et al. (2016), section 4, https://arxiv.org/abs/1602.01783

    Differs from:
      `rlax.entropy_loss` returns the mean over T.
    """
    log_pi_t = jax.nn.log_softmax(logits_t)
    return expectation(log_pi_t, log_pi_t) * w_t


@checked("prob_ratios_t[...] adv_t[...] epsilon[...]|[]")
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
      prob_ratios_t: probability of the action taken under the policy to be improved
        over that under the policy that took it.
      epsilon: positive, how far a ratio pays to go from 1. The loss is differentiable
        in it, but its slope in the ratios is not a function of it: a meta-gradient
        through inner steps is 0.
      stop: "target" stops `adv_t`; "bootstrap" and "none" stop nothing, because an
        advantage from `generalized_advantage_estimation` has its values stopped
        already, and d/d discount and d/d lambda pass through it.

    Returns:
      `[T]` losses; their mean is PPO's.

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
    adv_t = stop_if(stop == "target", adv_t)
    clipped_ratios_t = jnp.clip(prob_ratios_t, 1 - epsilon, 1 + epsilon)
    return -jnp.minimum(prob_ratios_t * adv_t, clipped_ratios_t * adv_t)


@checked("v_t[...] v_old_t[...] target_t[...] epsilon[...]|[]")
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
      v_t: values to be improved: the prediction.
      v_old_t: values of the same states when the rollout was collected.
      target_t: for instance `lambda_returns`; differentiable.
      epsilon: positive, how far a value pays to go from the old one, in units of value;
        its meta-gradient is 0, as in `clipped_surrogate_pg_loss`.

    Returns:
      `[T]` losses.

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
    clipped_t = jnp.clip(v_t, v_old_t - epsilon, v_old_t + epsilon)
    return 0.5 * jnp.maximum((v_t - target_t) ** 2, (clipped_t - target_t) ** 2)


@checked("logits_t[T,A] old_logits_t[T,A] w_t[T]|[]")
def kl_penalty_loss(
    logits_t: jax.Array, old_logits_t: jax.Array, w_t: ArrayLike
) -> jax.Array:
    r"""Penalty on the divergence of a categorical policy from the one before it.

    .. math:: L_t = w_t \sum_a \pi^{old}_t(a)
        (\log \pi^{old}_t(a) - \log \pi_t(a))

    Nothing is stopped here: old logits that come with the rollout are constants, and
    their derivative is there for whoever differentiates through the rollout.

    Args:
      logits_t: log-probabilities up to a constant of the policy to be improved, -inf
        for masked actions.
      old_logits_t: logits of the policy that took the actions, with the same mask;
        differentiable.
      w_t: weights, for instance PPO's penalty; differentiable.

    Returns:
      `[T]` losses: KL(old || new), in nats, times the weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import kl_penalty_loss
      >>> logits_t = jnp.log(jnp.array([[0.25, 0.75]]))
      >>> kl_penalty_loss(logits_t, jnp.zeros((1, 2)), 2.0).round(4)  # log(4 / 3)
      Array([0.2877], dtype=float32)

    References:
      Schulman et al. (2017), eq. 8, https://arxiv.org/abs/1707.06347

    Differs from:
      rlax has no such loss; its policy losses return means over T.
    """
    return _kl_divergence(old_logits_t, logits_t) * w_t


@checked("logits_t[T,A] q_t[T,A]")
def qpg_loss(
    logits_t: jax.Array, q_t: jax.Array, *, stop: Stop = "bootstrap"
) -> jax.Array:
    r"""Policy-gradient loss over all actions.

    .. math:: L_t = -\sum_a \pi_t(a) q_t(a), \qquad \pi_t = \mathrm{softmax}(logits_t)

    A baseline would change nothing, since the gradients of the probabilities sum to 0.

    Args:
      q_t: action values of the same states.
      stop: "bootstrap" and "target" stop `q_t`, "none" nothing; when which:
        `rljax.losses`.

    Returns:
      `[T]` losses: minus the values of the states.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import qpg_loss
      >>> qpg_loss(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
      Array([-2.], dtype=float32)

    References:
      Srinivasan et al. (2018), "QPG", https://arxiv.org/abs/1810.09026
      Sutton and Barto (2018), eq. 13.7, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.qpg_loss` returns the mean over T and subtracts the value of the state: its
      own value is 0, and its gradient, otherwise the same, is 0 without stopping.
    """
    q_t = stop_if(stop != "none", q_t)
    return -expectation(jax.nn.log_softmax(logits_t), q_t)


@checked("logits_t[T,A] q_t[T,A]")
def rm_loss(
    logits_t: jax.Array, q_t: jax.Array, *, stop: Stop = "bootstrap"
) -> jax.Array:
    r"""Regret-matching policy-gradient loss.

    .. math::
        L_t &= -\sum_a \pi_t(a) R_t(a), \qquad
        \pi_t = \mathrm{softmax}(logits_t) \\
        R_t(a) &= \max(0,\; q_t(a) - \textstyle\sum_b \pi_t(b) q_t(b))

    Args:
      q_t: action values of the same states.
      stop: "bootstrap" and "target" stop the regrets `R_t`, with `q_t` and the policy
        in them: the paper's update. "none" stops nothing, which is another update. To
        separate the arguments: `qpg_loss(logits_t, regrets, stop="none")`, where the
        regrets come from `bootstrap_params`.

    Returns:
      `[T]` losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import rm_loss
      >>> rm_loss(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
      Array([-0.5], dtype=float32)

    References:
      Srinivasan et al. (2018), "RMPG", https://arxiv.org/abs/1810.09026

    Differs from:
      `rlax.rm_loss` returns the mean over T and stops `q_t` whatever its flag.
    """
    log_pi_t = jax.nn.log_softmax(logits_t)
    return -expectation(log_pi_t, stop_if(stop != "none", _regrets(log_pi_t, q_t)))


@checked("logits_t[T,A] q_t[T,A]")
def rpg_loss(
    logits_t: jax.Array, q_t: jax.Array, *, stop: Stop = "bootstrap"
) -> jax.Array:
    r"""Regret policy-gradient loss.

    .. math:: L_t = \sum_a \max(0,\; q_t(a) - \textstyle\sum_b \pi_t(b) q_t(b)),
        \qquad \pi_t = \mathrm{softmax}(logits_t)

    Args:
      q_t: action values of the same states.
      stop: "bootstrap" and "target" stop `q_t`, "none" nothing; when which:
        `rljax.losses`.

    Returns:
      `[T]` losses: the regrets of the actions better than the policy, summed.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import rpg_loss
      >>> rpg_loss(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
      Array([1.], dtype=float32)

    References:
      Srinivasan et al. (2018), "RPG", https://arxiv.org/abs/1810.09026

    Differs from:
      `rlax.rpg_loss` returns the mean over T.
    """
    q_t = stop_if(stop != "none", q_t)
    return jnp.sum(_regrets(jax.nn.log_softmax(logits_t), q_t), axis=-1)


@checked("logits_t[T,A] teacher_logits_t[T,A] temperature[]:scalar")
def policy_distillation_loss(
    logits_t: jax.Array,
    teacher_logits_t: jax.Array,
    temperature: ArrayLike = 1.0,
) -> jax.Array:
    r"""Divergence of a categorical policy from a teacher's.

    .. math:: L_t = \sum_a p_t(a) (\log p_t(a) - \log \pi_t(a)), \qquad
        p_t = \mathrm{softmax}(teacher_t / \tau)

    Nothing is stopped here: a teacher that learns by the same gradient is stopped by
    the caller.

    Args:
      logits_t: log-probabilities up to a constant of the student, -inf for masked
        actions.
      teacher_logits_t: logits of the teacher, or its action values, with the same mask;
        differentiable.
      temperature: positive: below 1 it sharpens the teacher, and the teacher only;
        differentiable.

    Returns:
      `[T]` losses: KL(teacher || student), in nats.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import policy_distillation_loss
      >>> teacher_logits_t = jnp.array([[0.0, jnp.log(3.0) / 2]])  # 1/4 and 3/4
      >>> policy_distillation_loss(jnp.zeros((1, 2)), teacher_logits_t, 0.5).round(4)
      Array([0.1308], dtype=float32)

    References:
      Rusu et al. (2015), the loss "KL", https://arxiv.org/abs/1511.06295

    Differs from:
      rlax has `sampled_policy_distillation_loss`, a mean over sampled actions.
    """
    # The derivative of -inf / temperature would be NaN.
    masked_t = jnp.isneginf(teacher_logits_t)
    sharper_t = jnp.where(masked_t, 0.0, teacher_logits_t) / temperature
    return _kl_divergence(jnp.where(masked_t, -jnp.inf, sharper_t), logits_t)


@checked("log_prob_t[...] adv_t[...] temperature[]:scalar max_weight[]:scalar")
def awr_loss(
    log_prob_t: jax.Array,
    adv_t: jax.Array,
    temperature: ArrayLike,
    max_weight: ArrayLike = 20.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Advantage-weighted regression: cloning of the actions that were good.

    .. math:: L_t = -\min(\exp(A_t / \tau),\; w^{max}) \log \pi_t(a_t)

    Also the policy extraction of implicit Q-learning, with
    :math:`A_t = q_t(a_t) - v_t`.

    Args:
      log_prob_t: log-probabilities of the actions taken.
      temperature: positive; differentiable.
      max_weight: positive; differentiable.
      stop: "target" stops the weight, "bootstrap" and "none" stop nothing, because an
        advantage from `generalized_advantage_estimation` has its values stopped
        already. One from two networks' outputs is stopped by the caller.

    Returns:
      `[T]` losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import awr_loss
      >>> log_prob_t, adv_t = jnp.array([-0.5, -0.5]), jnp.array([0.0, 1000.0])
      >>> awr_loss(log_prob_t, adv_t, 0.05)
      Array([ 0.5, 10. ], dtype=float32)

    References:
      Peng et al. (2019), algorithm 1, https://arxiv.org/abs/1910.00177
      Kostrikov et al. (2021), eq. 7, https://arxiv.org/abs/2110.06169

    Differs from:
      rlax has no such loss; its policy losses return means over T.
    """
    exponent_t = adv_t / temperature
    capped = exponent_t > jnp.log(max_weight)
    # Without this `where` exp would overflow, and its gradient be NaN.
    exponent_t = jnp.where(capped, 0.0, exponent_t)
    weight_t = jnp.where(capped, max_weight, jnp.exp(exponent_t))
    return -stop_if(stop == "target", weight_t) * log_prob_t


def _kl_divergence(logits_p: jax.Array, logits_q: jax.Array) -> jax.Array:
    """`[T]` KL(p || q) of `[T, A]` logits."""
    log_p, log_q = jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)
    return expectation(log_p, log_p - log_q)


def _regrets(log_pi_t: jax.Array, q_t: jax.Array) -> jax.Array:
    """`[T, A]` how much better than the policy each action is, 0 if it is not."""
    adv_t = q_t - expectation(log_pi_t, q_t)[:, None]
    return jnp.where(log_pi_t > -jnp.inf, jax.nn.relu(adv_t), 0.0)
