"""One-step temporal-difference errors of one transition: arrays in, a scalar out."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import Stop, checked, chosen, mean_value, stop_if, weighted


@checked("v_tm1[] r_t[] discount_t[] v_t[]")
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
      stop: "bootstrap" stops `v_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

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
    target_tm1 = r_t + discount_t * stop_if(stop == "bootstrap", v_t)
    return stop_if(stop == "target", target_tm1) - v_tm1


@checked("q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t[A]")
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
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

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
    target_tm1 = r_t + discount_t * jnp.max(stop_if(stop == "bootstrap", q_t))
    return stop_if(stop == "target", target_tm1) - chosen(q_tm1, a_tm1)


@checked("q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t_value[A] q_t_selector[A]")
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
      q_t_value: action values of the true successor (the final observation when
        truncated) by the evaluating network; DQN: the target network.
      q_t_selector: action values of the true successor by the network that chooses the
        action; DQN: the online network. Has no gradient in any mode.
      stop: "bootstrap" stops `q_t_value`, "target" the whole target, "none" nothing;
        when which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

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
    v_t = chosen(stop_if(stop == "bootstrap", q_t_value), jnp.argmax(q_t_selector))
    target_tm1 = r_t + discount_t * v_t
    return stop_if(stop == "target", target_tm1) - chosen(q_tm1, a_tm1)


@checked("q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t[A] a_t[]:int")
def sarsa(
    q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    a_t: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Sarsa temporal-difference error.

    .. math:: \delta_t = r_t + \gamma_t q_t(a_t) - q_{t-1}(a_{t-1})

    Args:
      a_t: in [0, A), an action drawn in the true successor from the policy that is
        evaluated; outside, the result is NaN.
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import sarsa
      >>> q_tm1, q_t = jnp.array([0.5, 1.0]), jnp.array([2.0, 4.0])
      >>> sarsa(q_tm1, 0, 1.0, 0.5, q_t, 0)
      Array(1.5, dtype=float32)

    References:
      Sutton and Barto (2018), eq. 6.7, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.sarsa` stops the whole target, and d/d discount with it, and takes an action
      out of range for the nearest one.
    """
    v_t = chosen(stop_if(stop == "bootstrap", q_t), a_t)
    target_tm1 = r_t + discount_t * v_t
    return stop_if(stop == "target", target_tm1) - chosen(q_tm1, a_tm1)


@checked("q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t[A] probs_a_t[A]")
def expected_sarsa(
    q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    probs_a_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Expected Sarsa temporal-difference error.

    .. math:: \delta_t = r_t + \gamma_t \sum_a \pi_t(a) q_t(a) - q_{t-1}(a_{t-1})

    Args:
      stop: "bootstrap" stops `q_t` and `probs_a_t`, "target" the whole target, "none"
        nothing; when which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import expected_sarsa
      >>> q_tm1, q_t = jnp.array([0.5, 1.0]), jnp.array([2.0, 4.0])
      >>> expected_sarsa(q_tm1, 0, 1.0, 0.5, q_t, jnp.array([0.25, 0.75]))
      Array(2.25, dtype=float32)

    References:
      van Seijen et al. (2009), https://doi.org/10.1109/ADPRL.2009.4927542
      Sutton and Barto (2018), eq. 6.9, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.expected_sarsa` stops the whole target, and d/d discount with it, and takes
      an action out of range for the nearest one.
    """
    q_t, probs_a_t = stop_if(stop == "bootstrap", (q_t, probs_a_t))
    target_tm1 = r_t + discount_t * mean_value(probs_a_t, q_t)
    return stop_if(stop == "target", target_tm1) - chosen(q_tm1, a_tm1)


@checked("q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t[A] action_gap_scale[]:scalar")
def persistent_q_learning(
    q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    action_gap_scale: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Persistent Q-learning temporal-difference error: wider gaps between actions.

    .. math::
        \delta_t = r_t + \gamma_t \left((1 - \alpha) \max_a q_t(a)
        + \alpha q_t(a_{t-1})\right) - q_{t-1}(a_{t-1})

    Args:
      action_gap_scale: in [0, 1], the weight :math:`\alpha` of repeating the action; 0
        gives `q_learning`. Differentiable.
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import persistent_q_learning
      >>> q_tm1, q_t = jnp.array([0.5, 1.0]), jnp.array([2.0, 4.0])
      >>> persistent_q_learning(q_tm1, 0, 1.0, 0.5, q_t, 0.25)
      Array(2.25, dtype=float32)

    References:
      Bellemare et al. (2016), https://arxiv.org/abs/1512.04860

    Differs from:
      `rlax.persistent_q_learning` stops the whole target, and d/d discount with it, and
      takes an action out of range for the nearest one.
    """
    q_t = stop_if(stop == "bootstrap", q_t)
    greedy_t, repeated_t = jnp.max(q_t), chosen(q_t, a_tm1)
    repetition = jnp.asarray(action_gap_scale)
    v_t = (1 - repetition) * greedy_t + weighted(repetition, repeated_t)
    target_tm1 = r_t + discount_t * v_t
    return stop_if(stop == "target", target_tm1) - chosen(q_tm1, a_tm1)


def _soft_maximum(q: jax.Array, temperature: ArrayLike) -> jax.Array:
    """Returns temperature * logsumexp(q / temperature) of `[A]`, however cold."""
    q_max = jax.lax.stop_gradient(jnp.max(q))  # cancels, and its gradient with it
    possible = q > -jnp.inf  # masked actions would have NaN gradients
    exponentials = jnp.exp(jnp.where(possible, q - q_max, 0) / temperature)
    total = jnp.sum(jnp.where(possible, exponentials, 0))
    return q_max + temperature * jnp.log(total)


@checked("q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t[A] entropy_temperature[]:scalar")
def soft_q_learning(
    q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    entropy_temperature: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Soft Q-learning temporal-difference error: the greatest return plus entropy.

    .. math::
        \delta_t = r_t + \gamma_t \tau \log \sum_a \exp(q_t(a) / \tau)
        - q_{t-1}(a_{t-1})

    Args:
      entropy_temperature: positive, the worth :math:`\tau` of a nat of the policy's
        entropy; towards 0 this is `q_learning`. Differentiable.
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import soft_q_learning
      >>> q_tm1, q_t = jnp.array([0.5, 1.0]), jnp.log(jnp.array([1.0, 3.0]))
      >>> td = soft_q_learning(q_tm1, 0, 1.0, 0.5, q_t, 1.0)
      >>> jnp.exp(td - 0.5).round(4)  # half the logarithm of 1 + 3
      Array(2., dtype=float32)

    References:
      Haarnoja et al. (2017), https://arxiv.org/abs/1702.08165

    Differs from:
      rlax has no soft Q-learning.
    """
    v_t = _soft_maximum(stop_if(stop == "bootstrap", q_t), entropy_temperature)
    target_tm1 = r_t + discount_t * v_t
    return stop_if(stop == "target", target_tm1) - chosen(q_tm1, a_tm1)


@checked(
    "q_tm1[A] a_tm1[]:int r_t[] discount_t[] q_t[A] target_q_tm1[A] "
    "entropy_temperature[]:scalar munchausen_coefficient[]:scalar "
    "clip_value_min[]:scalar"
)
def munchausen_q_learning(
    q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    target_q_tm1: jax.Array,
    entropy_temperature: ArrayLike,
    munchausen_coefficient: ArrayLike,
    clip_value_min: ArrayLike = -1.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Munchausen Q-learning error: soft Q-learning, rewarded by its log-policy.

    .. math::
        \pi(\cdot|s) &\propto \exp(q(s, \cdot) / \tau) \\
        \delta_t &= r_t + m\, \mathrm{clip}(\tau \log \pi(a_{t-1}|s_{t-1}), l_0, 0)
        + \gamma_t \sum_a \pi(a|s_t) (q_t(a) - \tau \log \pi(a|s_t))
        - q_{t-1}(a_{t-1})

    The sum over actions is the soft value of `soft_q_learning`.

    Args:
      q_t: action values of the true successor (the final observation when truncated),
        by the target network.
      target_q_tm1: action values of the state acted in, by the target network: they
        give :math:`\pi(a_{t-1}|s_{t-1})`.
      entropy_temperature: positive, :math:`\tau`; differentiable.
      munchausen_coefficient: in [0, 1], :math:`m`, 0 for `soft_q_learning`;
        differentiable.
      clip_value_min: negative, :math:`l_0`, the least of the added rewards before they
        are scaled by :math:`m`; differentiable.
      stop: "bootstrap" stops `q_t` and `target_q_tm1`, "target" the whole target,
        "none" nothing; when which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import munchausen_q_learning
      >>> q_tm1, q_t = jnp.array([0.5, 1.0]), jnp.log(jnp.array([1.0, 3.0]))
      >>> td = munchausen_q_learning(q_tm1, 0, 1.0, 0.5, q_t, q_t, 1.0, 0.25)
      >>> jnp.exp(td - 0.25).round(4)  # log(1/4) counts as -1
      Array(2., dtype=float32)

    References:
      Vieillard et al. (2020), section 2, https://arxiv.org/abs/2007.14430

    Differs from:
      rlax has no Munchausen Q-learning.
    """
    q_t, target_q_tm1 = stop_if(stop == "bootstrap", (q_t, target_q_tm1))
    # Temperature times log-probability without forming either: finite however cold,
    # and without the greatest value, which would round it away.
    below_tm1 = target_q_tm1 - jax.lax.stop_gradient(jnp.max(target_q_tm1))
    v_tm1 = _soft_maximum(below_tm1, entropy_temperature)
    scaled_log_pi_tm1 = chosen(below_tm1, a_tm1) - v_tm1
    bonus_tm1 = munchausen_coefficient * jnp.clip(scaled_log_pi_tm1, clip_value_min, 0)
    v_t = _soft_maximum(q_t, entropy_temperature)
    target_tm1 = r_t + bonus_tm1 + discount_t * v_t
    return stop_if(stop == "target", target_tm1) - chosen(q_tm1, a_tm1)


@checked("q_tm1[A] a_tm1[]:int r_t[] discount_t[] v_t[]")
def qv_learning(
    q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""QV-learning temporal-difference error: action values from state values.

    .. math:: \delta_t = r_t + \gamma_t v_t - q_{t-1}(a_{t-1})

    The state values are learned beside them, by `td_learning`.

    Args:
      stop: "bootstrap" stops `v_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import qv_learning
      >>> qv_learning(jnp.array([0.5, 1.0]), 0, 1.0, 0.5, 4.0)
      Array(2.5, dtype=float32)

    References:
      Wiering and van Hasselt (2007), https://ieeexplore.ieee.org/document/4220845

    Differs from:
      `rlax.qv_learning` stops the whole target, and d/d discount with it, and takes an
      action out of range for the nearest one.
    """
    target_tm1 = r_t + discount_t * stop_if(stop == "bootstrap", v_t)
    return stop_if(stop == "target", target_tm1) - chosen(q_tm1, a_tm1)


@checked("v_tm1[] r_t[] discount_t[] q_t[A]")
def qv_max(
    v_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""QVMAX temporal-difference error: state values from the greatest action value.

    .. math:: \delta_t = r_t + \gamma_t \max_a q_t(a) - v_{t-1}

    The action values are learned beside them, by `qv_learning`.

    Args:
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[]` target minus prediction.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import qv_max
      >>> qv_max(0.5, 1.0, 0.5, jnp.array([2.0, 4.0]))
      Array(2.5, dtype=float32)

    References:
      Wiering and van Hasselt (2009), https://doi.org/10.1109/ADPRL.2009.4927532

    Differs from:
      `rlax.qv_max` stops the whole target, and d/d discount with it.
    """
    target_tm1 = r_t + discount_t * jnp.max(stop_if(stop == "bootstrap", q_t))
    return stop_if(stop == "target", target_tm1) - v_tm1
