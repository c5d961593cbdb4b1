"""Losses of actors with critics: DPG, SAC, TD3 and the expectiles of IQL."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import (
    Stop,
    check_stop,
    checked,
    chosen,
    expectation,
    stop_if,
)


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
      a_t: `[D]` action of the policy.
      dqda_t: `[D]` gradient of the critic's value with respect to the action, at `a_t`.
      dqda_clipping: `[]`, positive: the greatest norm of the gradient, None for no
        clipping; differentiable.
      stop: "bootstrap" stops `dqda_t`, "target" the clipped gradient, "none" nothing.
        "bootstrap" gives exact meta-gradients through one inner step; through more,
        separate the arguments, `jax.grad(loss, argnums=0)(params, params)`, and use
        "none".

    Returns:
      `[]` loss, whose derivative in `a_t` is minus the clipped gradient.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: rank, shape or dtype, at trace time.

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
    check_stop(stop)
    dqda_t = stop_if(stop == "bootstrap", dqda_t)
    if dqda_clipping is not None:
        dqda_t = _clip_norm(dqda_t, dqda_clipping)
    return -jnp.sum(a_t * stop_if(stop == "target", dqda_t))


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
      q_tm1: `[]` value of the action taken: the prediction.
      r_t: `[]` reward.
      discount_t: `[]` in [0, 1], 0 only at termination; differentiable.
      q_t: `[C]` values, by each critic of an ensemble, of an action of the policy in
        the true successor (the final observation when truncated).
      log_prob_t: `[]` log-probability (density) of that action.
      temperature: `[]` not negative; differentiable.
      stop: "bootstrap" stops `q_t` and `log_prob_t`, "target" the whole target, "none"
        nothing. "bootstrap" gives exact meta-gradients through one inner step; through
        more, separate the arguments, `jax.grad(loss, argnums=0)(params, params)`, and
        use "none".

    Returns:
      `[]` target minus prediction.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: rank, shape or dtype, at trace time.

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
    check_stop(stop)
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
      log_prob_t: `[T]` (or any shape) log-probabilities (densities) of actions of the
        policy.
      q_t: `[T]` values of these actions, the least ones of an ensemble.
      temperature: `[]` not negative; differentiable.

    Returns:
      `[T]` losses.

    Raises:
      AssertionError: shape or dtype, at trace time.

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
      q_tm1: `[A]` action values of the state acted in: the prediction.
      a_tm1: `[]` int in [0, A), the action taken; outside, the result is NaN.
      r_t: `[]` reward.
      discount_t: `[]` in [0, 1], 0 only at termination; differentiable.
      q_t: `[C, A]` action values, by each critic of an ensemble, of the true successor
        (the final observation when truncated).
      logits_t: `[A]` log-probabilities up to a constant of the policy there, -inf for
        masked actions.
      temperature: `[]` not negative; differentiable.
      stop: "bootstrap" stops `q_t` and `logits_t`, "target" the whole target, "none"
        nothing. "bootstrap" gives exact meta-gradients through one inner step; through
        more, separate the arguments, `jax.grad(loss, argnums=0)(params, params)`, and
        use "none".

    Returns:
      `[]` target minus prediction.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: rank, shape or dtype, at trace time.

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
    check_stop(stop)
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
      logits_t: `[A]` log-probabilities up to a constant, -inf for masked actions.
      q_t: `[A]` action values of the same state, the least ones of an ensemble.
      temperature: `[]` not negative; differentiable.
      stop: "bootstrap" and "target" stop `q_t`, "none" nothing. Stopping gives exact
        meta-gradients through one inner step; through more, separate the arguments,
        `jax.grad(loss, argnums=0)(params, params)`, and use "none".

    Returns:
      `[]` loss: minus the soft value of the state.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: rank, shape or dtype, at trace time.

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
    check_stop(stop)
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
      log_temperature: `[]` logarithm of the temperature, which stays positive.
      log_prob_t: `[T]` (or any shape) log-probabilities (densities) of actions of the
        policy; with discrete actions, minus its entropies.
      target_entropy: `[]` in nats, for instance minus the number of action
        dimensions; differentiable.
      stop: "bootstrap" stops `log_prob_t`, "target" its sum with `target_entropy`,
        "none" nothing.

    Returns:
      `[T]` losses: descending them raises the temperature while the entropy is below
      its target.

    Raises:
      ValueError: unknown `stop`.
      AssertionError: shape or dtype, at trace time.

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
    check_stop(stop)
    missing_t = stop_if(stop == "bootstrap", log_prob_t) + target_entropy
    return -jnp.exp(log_temperature) * stop_if(stop == "target", missing_t)


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
      q_tm1: `[]` value of the action taken: the prediction.
      r_t: `[]` reward.
      discount_t: `[]` in [0, 1], 0 only at termination; differentiable.
      q_t: `[C]` values, by each critic of the ensemble, of the target policy's action
        (see `td3_smoothed_action`) in the true successor (the final observation when
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
      >>> from rljax.losses import td3_learning
      >>> td3_learning(0.5, 1.0, 0.5, jnp.array([4.0, 2.0]))
      Array(1.5, dtype=float32)

    References:
      Fujimoto et al. (2018), eq. 10, https://arxiv.org/abs/1802.09477

    Differs from:
      rlax has no clipped double Q-learning.
    """
    check_stop(stop)
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
      key: a random key.
      action: `[D]` (or any shape) action of the target policy; differentiable.
      stddev: `[]` or `[D]` standard deviation of the noise, in units of the action.
      noise_clip: `[]` or `[D]` greatest size of the noise.
      minimum: `[]` or `[D]` least action.
      maximum: `[]` or `[D]` greatest action.

    Returns:
      `[D]` action.

    Raises:
      AssertionError: shape or dtype, at trace time.

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


@checked("predictions[...] targets[...] expectile[]:scalar")
def expectile_loss(
    predictions: jax.Array, targets: jax.Array, expectile: ArrayLike
) -> jax.Array:
    r"""Asymmetric squared error, least at an expectile of the targets.

    .. math:: L = |e - 1_{u < 0}| u^2, \qquad u = target - prediction

    Nothing is stopped here: stop the targets where they are made.

    Args:
      predictions: `[T]` (or any shape).
      targets: `[T]`; differentiable.
      expectile: `[]` in (0, 1): 1/2 for half the squared error, above for predictions
        nearer to the greatest target; differentiable.

    Returns:
      `[T]` losses.

    Raises:
      AssertionError: shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import expectile_loss
      >>> expectile_loss(jnp.array([1.0, 1.0]), jnp.array([3.0, 0.0]), 0.75)
      Array([3.  , 0.25], dtype=float32)

    References:
      Kostrikov et al. (2021), eq. 5, https://arxiv.org/abs/2110.06169
      Newey and Powell (1987), https://doi.org/10.2307/1911031

    Differs from:
      `rlax.expectile_loss` is the same.
    """
    error = targets - predictions
    return jnp.where(error < 0, 1 - expectile, expectile) * error**2


def _clip_norm(x: jax.Array, max_norm: ArrayLike) -> jax.Array:
    """`x` with at most this Euclidean norm; differentiable, at 0 as well."""
    greatest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    unit = jnp.where(greatest > 0, greatest, 1.0)  # whose squares are in range
    squared = jnp.sum((x / unit) ** 2)
    norm = unit * jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
    clipped = (squared > 0) & (norm > max_norm)
    return x * jnp.where(clipped, max_norm / norm, 1.0)


def _soft_value(logits: jax.Array, q: jax.Array, temperature: ArrayLike) -> jax.Array:
    """`[]` expected value plus temperature times entropy, of `[A]` logits."""
    log_pi = jax.nn.log_softmax(logits)
    return expectation(log_pi, q) - temperature * expectation(log_pi, log_pi)
