"""Losses of soft actor-critics: critic, actor and temperature."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import Stop, checked, chosen, expectation, stop_if


@checked("q_tm1[] r_t[] discount_t[] q_t[C] log_prob_t[] temperature[]:scalar")
def sac_learning(
    q_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    log_prob_t: jax.Array,
    temperature: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Temporal-difference error of a soft actor-critic's critic.

    .. math::
        \delta_t = r_t + \gamma_t (\min_c q_t(c) - \tau \log \pi_t) - q_{t-1}

    Args:
      q_tm1: value of the action taken: the prediction.
      q_t: values, by each critic of an ensemble, of an action of the policy in the true
        successor (the final observation when truncated).
      log_prob_t: log-probability (density) of that action.
      stop: "bootstrap" stops `q_t` and `log_prob_t`, "target" the whole target, "none"
        nothing; when which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import sac_learning
      >>> sac_learning(0.5, 1.0, 0.5, jnp.array([4.0, 2.0]), -2.0, 0.5)
      Array(2., dtype=float32)

    References:
      Haarnoja et al. (2018), eq. 3 and 5, https://arxiv.org/abs/1812.05905
      Fujimoto et al. (2018), eq. 10, https://arxiv.org/abs/1802.09477

    Differs from:
      rlax has no soft actor-critic.
    """
    q_t, log_prob_t = stop_if(stop == "bootstrap", (q_t, log_prob_t))
    target_tm1 = r_t + discount_t * (jnp.min(q_t) - temperature * log_prob_t)
    return stop_if(stop == "target", target_tm1) - q_tm1


@checked("log_prob_t[...] q_t[...] temperature[]:scalar")
def sac_actor_loss(
    log_prob_t: jax.Array, q_t: jax.Array, temperature: ArrayLike
) -> jax.Array:
    r"""Loss of a soft actor-critic's actor, with reparametrised actions.

    .. math:: L_t = \tau \log \pi_t(a_t) - q_t(a_t), \qquad a_t = f(\epsilon_t)

    Nothing is stopped here: the actor learns through the action, in `q_t` and in
    `log_prob_t`. Critic parameters and a learned temperature are arguments of their
    own, for `jax.grad` to leave out.

    Args:
      log_prob_t: log-probabilities (densities) of actions of the policy.
      q_t: values of these actions, the least ones of an ensemble.

    Returns:
      `[T]` losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import sac_actor_loss
      >>> sac_actor_loss(jnp.array([-1.0, -2.0]), jnp.array([1.0, 2.0]), 0.5)
      Array([-1.5, -3. ], dtype=float32)

    References:
      Haarnoja et al. (2018), eq. 9, https://arxiv.org/abs/1812.05905

    Differs from:
      rlax has no soft actor-critic.
    """
    return log_prob_t * temperature - q_t


@checked(
    "q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t[C,A] logits_t[A] temperature[]:scalar"
)
def sac_discrete_learning(
    q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    logits_t: jax.Array,
    temperature: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Temporal-difference error of a soft actor-critic's critic, discrete actions.

    .. math::
        \delta_t = r_t + \gamma_t \sum_a \pi_t(a)
        (\min_c q_t(c, a) - \tau \log \pi_t(a)) - q_{t-1}(a_{t-1})

    Args:
      q_t: action values, by each critic of an ensemble, of the true successor (the
        final observation when truncated).
      logits_t: log-probabilities up to a constant of the policy there, -inf for masked
        actions.
      stop: "bootstrap" stops `q_t` and `logits_t`, "target" the whole target, "none"
        nothing; when which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import sac_discrete_learning
      >>> q_tm1, q_t = jnp.array([0.5, 9.0]), jnp.array([[2.0, 4.0], [4.0, 2.0]])
      >>> logits_t = jnp.zeros(2)  # entropy log 2 = 0.693
      >>> sac_discrete_learning(q_tm1, 0, 1.0, 0.5, q_t, logits_t, 2.0)
      Array(2.1931472, dtype=float32)

    References:
      Christodoulou (2019), eq. 10, https://arxiv.org/abs/1910.07207

    Differs from:
      rlax has no soft actor-critic.
    """
    q_t, logits_t = stop_if(stop == "bootstrap", (q_t, logits_t))
    v_t = _soft_value(logits_t, jnp.min(q_t, axis=0), temperature)
    target_tm1 = r_t + discount_t * v_t
    return stop_if(stop == "target", target_tm1) - chosen(q_tm1, a_tm1)


@checked("logits_t[A] q_t[A] temperature[]:scalar")
def sac_discrete_actor_loss(
    logits_t: jax.Array,
    q_t: jax.Array,
    temperature: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Loss of a soft actor-critic's actor, discrete actions.

    .. math:: L_t = \sum_a \pi_t(a) (\tau \log \pi_t(a) - q_t(a)), \qquad
        \pi_t = \mathrm{softmax}(logits_t)

    Args:
      q_t: action values of the same state, the least ones of an ensemble.
      stop: "bootstrap" and "target" stop `q_t`, "none" nothing; when which:
        `rljax.losses`.

    Returns:
      `[]` loss: minus the soft value of the state.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import sac_discrete_actor_loss
      >>> q_t = jnp.array([1.0, 3.0])
      >>> sac_discrete_actor_loss(jnp.zeros(2), q_t, 1.0)  # entropy log 2 = 0.693
      Array(-2.6931472, dtype=float32)

    References:
      Christodoulou (2019), eq. 12, https://arxiv.org/abs/1910.07207

    Differs from:
      rlax has no soft actor-critic.
    """
    return -_soft_value(logits_t, stop_if(stop != "none", q_t), temperature)


@checked("log_temperature[]:scalar log_prob_t[...] target_entropy[]:scalar")
def sac_temperature_loss(
    log_temperature: jax.Array,
    log_prob_t: jax.Array,
    target_entropy: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Loss of a soft actor-critic's temperature: keeps the entropy at a target.

    .. math:: L_t = -\tau (\log \pi_t + \bar H), \qquad \tau = \exp(log\_temperature)

    Args:
      log_temperature: logarithm of the temperature, which stays positive.
      log_prob_t: log-probabilities (densities) of actions of the policy; with discrete
        actions, minus its entropies.
      target_entropy: in nats, for instance minus the number of action dimensions;
        differentiable.
      stop: "bootstrap" stops `log_prob_t`, "target" its sum with `target_entropy`,
        "none" nothing.

    Returns:
      `[T]` losses: descending them raises the temperature while the entropy is below
      its target.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import sac_temperature_loss
      >>> sac_temperature_loss(0.0, jnp.array([-1.0, -3.0]), 2.0)
      Array([-1.,  1.], dtype=float32)

    References:
      Haarnoja et al. (2018), eq. 18, https://arxiv.org/abs/1812.05905

    Differs from:
      rlax has no soft actor-critic.
    """
    missing_t = stop_if(stop == "bootstrap", log_prob_t) + target_entropy
    return -jnp.exp(log_temperature) * stop_if(stop == "target", missing_t)


def _soft_value(logits: jax.Array, q: jax.Array, temperature: ArrayLike) -> jax.Array:
    """`[]` expected value plus temperature times entropy, of `[A]` logits."""
    log_pi = jax.nn.log_softmax(logits)
    return expectation(log_pi, q) - temperature * expectation(log_pi, log_pi)
