"""Multi-step temporal-difference errors of one trajectory: arrays in, arrays out."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import Stop, checked, chosen, stop_if
from rljax.losses.off_policy_returns import (
    general_off_policy_returns_from_action_values,
    general_off_policy_returns_from_q_and_v,
)
from rljax.losses.returns import lambda_returns
from rljax.losses.transformed_returns import (
    transformed_general_off_policy_returns_from_action_values,
    transformed_lambda_returns,
    transformed_n_step_returns,
)
from rljax.losses.transforms import IDENTITY_PAIR, TxPair


@checked("v_tm1[T] r_t[T] discount_t[T] v_t[T] lambda_[T]|[]")
def td_lambda(
    v_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    lambda_: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""TD(lambda) errors: `lambda_returns` minus predictions.

    .. math::
        \delta_t &= G_t - v_{t-1} \\
        G_t &= r_t + \gamma_t ((1 - \lambda_t) v_t + \lambda_t G_{t+1}),
        \qquad G_{T} = v_{T-1}

    Args:
      stop: "bootstrap" stops `v_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[T]` targets minus predictions.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import td_lambda
      >>> td_lambda(
      ...     v_tm1=jnp.array([2.0, 3.0, 3.0]),
      ...     r_t=jnp.array([1.0, 2.0, 4.0]),
      ...     discount_t=jnp.array([0.5, 0.5, 0.0]),
      ...     v_t=jnp.array([2.0, 3.0, 9.0]),
      ...     lambda_=0.5,
      ... )
      Array([0.4375, 0.75  , 1.    ], dtype=float32)

    References:
      Sutton and Barto (2018), eq. 12.18, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.td_lambda` stops the whole target, and d/d discount and d/d lambda with it,
      and broadcasts `v_tm1[1]`.
    """
    return lambda_returns(r_t, discount_t, v_t, lambda_=lambda_, stop=stop) - v_tm1


@checked(
    "q_tm1[T,A] a_tm1[T]:int r_t[T] discount_t[T] q_t[T,A] a_t[T]:int lambda_[T]|[]"
)
def sarsa_lambda(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    a_t: jax.Array,
    lambda_: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Sarsa(lambda) errors.

    .. math::
        \delta_t &= G_t - q_{t-1}(a_{t-1}) \\
        G_t &= r_t + \gamma_t ((1 - \lambda_t) q_t(a_t) + \lambda_t G_{t+1}),
        \qquad G_{T} = q_{T-1}(a_{T-1})

    Args:
      a_t: in [0, A), the action taken next, and where the trajectory was cut an action
        drawn from the policy; outside, the result is NaN.
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[T]` targets minus predictions.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import sarsa_lambda
      >>> sarsa_lambda(
      ...     q_tm1=jnp.array([[1.0, 0.0], [0.0, 1.0]]),
      ...     a_tm1=jnp.array([0, 1]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     q_t=jnp.array([[2.0, 9.0], [2.0, 4.0]]),
      ...     a_t=jnp.array([0, 1]),
      ...     lambda_=0.5,
      ... )
      Array([1.5, 3. ], dtype=float32)

    References:
      Sutton and Barto (2018), eq. 12.19, http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.sarsa_lambda` stops the whole target, and d/d discount and d/d lambda with
      it, and takes an action out of range for the nearest one.
    """
    v_t = jax.vmap(chosen)(q_t, a_t)
    target_tm1 = lambda_returns(r_t, discount_t, v_t, lambda_=lambda_, stop=stop)
    return target_tm1 - jax.vmap(chosen)(q_tm1, a_tm1)


@checked("q_tm1[T,A] a_tm1[T]:int r_t[T] discount_t[T] q_t[T,A] lambda_[T]|[]")
def q_lambda(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    lambda_: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Peng's or Watkins' Q(lambda) errors.

    .. math::
        \delta_t &= G_t - q_{t-1}(a_{t-1}), \qquad v_t = \max_a q_t(a) \\
        G_t &= r_t + \gamma_t ((1 - \lambda_t) v_t + \lambda_t G_{t+1}),
        \qquad G_{T} = v_{T-1}

    Args:
      lambda_: in [0, 1], 0 wherever an episode was truncated; differentiable. Peng:
        otherwise constant. Watkins: 0 also wherever the next action taken was not the
        greedy one.
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[T]` targets minus predictions.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import q_lambda
      >>> q_lambda(
      ...     q_tm1=jnp.array([[1.0, 0.0], [0.0, 1.0]]),
      ...     a_tm1=jnp.array([0, 1]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     q_t=jnp.array([[2.0, 0.0], [2.0, 4.0]]),
      ...     lambda_=0.5,
      ... )
      Array([1.5, 3. ], dtype=float32)

    References:
      Peng and Williams (1996), https://doi.org/10.1007/BF00114731
      Watkins (1989), http://www.cs.rhul.ac.uk/~chrisw/thesis.html
      Sutton and Barto (2018), section 12.10,
      http://incompleteideas.net/book/the-book.html

    Differs from:
      `rlax.q_lambda` stops the whole target, and d/d discount and d/d lambda with it,
      and takes an action out of range for the nearest one.
    """
    v_t = jnp.max(q_t, axis=-1)
    target_tm1 = lambda_returns(r_t, discount_t, v_t, lambda_=lambda_, stop=stop)
    return target_tm1 - jax.vmap(chosen)(q_tm1, a_tm1)


@checked(
    "q_tm1[T,A] a_tm1[T]:int r_t[T] discount_t[T] q_t[T,A] a_t[T]:int pi_t[T,A] "
    "lambda_[T]|[]"
)
def tree_backup(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    a_t: jax.Array,
    pi_t: jax.Array,
    lambda_: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Tree-backup(lambda) errors: off-policy, without the other policy.

    .. math::
        \delta_t &= G_t - q_{t-1}(a_{t-1}), \qquad c_t = \lambda_t \pi_t(a_t) \\
        G_t &= r_t + \gamma_t \left(\sum_a \pi_t(a) q_t(a)
        + c_t (G_{t+1} - q_t(a_t))\right)

    In the last step the sum alone is left.

    Args:
      stop: "bootstrap" stops `q_t` and `pi_t`, in `c_t` too, "target" the whole target,
        "none" nothing; when which: `rljax.losses`.

    Returns:
      `[T]` targets minus predictions.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import tree_backup
      >>> tree_backup(
      ...     q_tm1=jnp.array([[1.0, 0.0], [0.0, 1.0]]),
      ...     a_tm1=jnp.array([0, 1]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     q_t=jnp.array([[2.0, 0.0], [2.0, 4.0]]),
      ...     a_t=jnp.array([0, 1]),
      ...     pi_t=jnp.array([[0.5, 0.5], [0.25, 0.75]]),
      ... )
      Array([0.9375, 2.75  ], dtype=float32)

    References:
      Precup et al. (2000), https://scholarworks.umass.edu/cs_faculty_pubs/80
      Munos et al. (2016), table 1, https://arxiv.org/abs/1606.02647

    Differs from:
      rlax has no tree backup, only the returns with any trace.
    """
    pi_t = stop_if(stop == "bootstrap", pi_t)
    c_t = jax.vmap(chosen)(pi_t, a_t) * lambda_
    target_tm1 = general_off_policy_returns_from_action_values(
        q_t=q_t,
        a_t=a_t,
        r_t=r_t,
        discount_t=discount_t,
        c_t=c_t,
        pi_t=pi_t,
        stop=stop,
    )
    return target_tm1 - jax.vmap(chosen)(q_tm1, a_tm1)


def _retrace_traces(
    pi_t: jax.Array,
    a_t: jax.Array,
    mu_t: jax.Array,
    lambda_: ArrayLike,
    eps: ArrayLike,
    stop: Stop,
) -> jax.Array:
    """Returns `[T]` of min(1, pi / mu) lambda, live in lambda and eps."""
    pi_t, mu_t = stop_if(stop == "bootstrap", (pi_t, mu_t))
    return jnp.minimum(jax.vmap(chosen)(pi_t, a_t) / (mu_t + eps), 1) * lambda_


@checked(
    "q_tm1[T,A] q_t[T,A] a_tm1[T]:int a_t[T]:int r_t[T] discount_t[T] pi_t[T,A] "
    "mu_t[T] lambda_[T]|[] eps[]:scalar"
)
def retrace(
    q_tm1: jax.Array,
    q_t: jax.Array,
    a_tm1: jax.Array,
    a_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    pi_t: jax.Array,
    mu_t: jax.Array,
    lambda_: ArrayLike,
    eps: ArrayLike = 1e-8,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Retrace(lambda) errors: off-policy, with traces cut by clipped ratios.

    .. math::
        \delta_t &= G_t - q_{t-1}(a_{t-1}), \qquad
        c_t = \lambda_t \min\left(1, \frac{\pi_t(a_t)}{\mu_t + \epsilon}\right) \\
        G_t &= r_t + \gamma_t \left(\sum_a \pi_t(a) q_t(a)
        + c_t (G_{t+1} - q_t(a_t))\right)

    In the last step the sum alone is left.

    Args:
      stop: "bootstrap" stops `q_t`, `pi_t` and `mu_t`, in `c_t` too, "target" the whole
        target, "none" nothing; when which: `rljax.losses`.

    Returns:
      `[T]` targets minus predictions.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import retrace
      >>> retrace(
      ...     q_tm1=jnp.array([[1.0, 0.0], [0.0, 1.0]]),
      ...     q_t=jnp.array([[2.0, 0.0], [2.0, 4.0]]),
      ...     a_tm1=jnp.array([0, 1]),
      ...     a_t=jnp.array([0, 1]),
      ...     r_t=jnp.array([1.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     pi_t=jnp.array([[0.5, 0.5], [0.25, 0.75]]),
      ...     mu_t=jnp.array([0.25, 0.75]),
      ...     lambda_=0.5,
      ... )
      Array([0.9375, 2.75  ], dtype=float32)

    References:
      Munos et al. (2016), eq. 3 and 4, https://arxiv.org/abs/1606.02647

    Differs from:
      `rlax.retrace` stops the whole target, and d/d discount and d/d lambda with it,
      and takes an action out of range for the nearest one.
    """
    c_t = _retrace_traces(pi_t, a_t, mu_t, lambda_=lambda_, eps=eps, stop=stop)
    target_tm1 = general_off_policy_returns_from_action_values(
        q_t=q_t,
        a_t=a_t,
        r_t=r_t,
        discount_t=discount_t,
        c_t=c_t,
        pi_t=pi_t,
        stop=stop,
    )
    return target_tm1 - jax.vmap(chosen)(q_tm1, a_tm1)


@checked("q_tm1[K] q_t[K-1] v_t[K] r_t[K] discount_t[K] log_rhos[K-1] lambda_[K-1]|[]")
def retrace_continuous(
    q_tm1: jax.Array,
    q_t: jax.Array,
    v_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    log_rhos: jax.Array,
    lambda_: ArrayLike,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Retrace(lambda) errors from the values of the actions taken alone.

    .. math::
        \delta_t &= G_t - q_{t-1}, \qquad c_t = \lambda_t \min(1, \rho_t) \\
        G_t &= r_t + \gamma_t (v_t + c_t (G_{t+1} - q_t)),
        \qquad G_{K-1} = r_{K-1} + \gamma_{K-1} v_{K-1}

    For continuous actions, where `v_t` comes from another network or from samples.

    Args:
      q_tm1: values of the actions taken, in the states acted in: the predictions.
      q_t: values of the actions taken next, in the true successors.
      v_t: values of the true successors (the final observation when truncated) under
        the policy that is evaluated.
      log_rhos: log-probabilities of the actions taken next under the policy that is
        evaluated, minus their log-probabilities under the policy that took them.
      stop: "bootstrap" stops `q_t`, `v_t` and `log_rhos`, "target" the whole target,
        "none" nothing; when which: `rljax.losses`.

    Returns:
      `[K]` targets minus predictions.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import retrace_continuous
      >>> retrace_continuous(
      ...     q_tm1=jnp.array([1.0, 1.0, 1.0]),
      ...     q_t=jnp.array([2.0, 4.0]),
      ...     v_t=jnp.array([1.0, 3.0, 8.0]),
      ...     r_t=jnp.array([1.0, 2.0, 4.0]),
      ...     discount_t=jnp.array([0.5, 0.5, 0.5]),
      ...     log_rhos=jnp.array([0.75, 0.0]),
      ...     lambda_=jnp.array([1.0, 0.5]),
      ... )
      Array([1.75, 3.5 , 7.  ], dtype=float32)

    References:
      Munos et al. (2016), eq. 3 and 4, https://arxiv.org/abs/1606.02647

    Differs from:
      `rlax.retrace_continuous` stops the whole target, and d/d discount and d/d lambda
      with it.
    """
    log_rhos = stop_if(stop == "bootstrap", log_rhos)
    # min(1, exp) would have a NaN gradient where exp overflows.
    c_t = jnp.exp(jnp.minimum(log_rhos, 0)) * lambda_
    target_tm1 = general_off_policy_returns_from_q_and_v(
        q_t=q_t,
        v_t=v_t,
        r_t=r_t,
        discount_t=discount_t,
        c_t=c_t,
        stop=stop,
    )
    return target_tm1 - q_tm1


@checked("q_tm1[T,A] a_tm1[T]:int r_t[T] discount_t[T] q_t[T,A] lambda_[T]|[]")
def transformed_q_lambda(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    lambda_: ArrayLike,
    *,
    stop: Stop = "bootstrap",
    tx_pair: TxPair = IDENTITY_PAIR,
) -> jax.Array:
    r"""Q(lambda) errors of action values learned in a transformed space.

    .. math::
        \delta_t = h(G_t) - q_{t-1}(a_{t-1}), \quad
        G_t \text{ the `lambda_returns` of } h^{-1}(\max_a q_t(a))

    Args:
      q_tm1: transformed action values of the states acted in: the predictions.
      r_t: rewards, untransformed.
      q_t: transformed action values of the true successors (the final observation when
        truncated).
      lambda_: as in `q_lambda`.
      stop: "bootstrap" stops `q_t`, "target" the whole target, "none" nothing; when
        which: `rljax.losses`.

    Returns:
      `[T]` targets minus predictions, both transformed.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import TxPair, transformed_q_lambda
      >>> transformed_q_lambda(
      ...     q_tm1=jnp.array([[1.0, 0.0], [0.0, 0.5]]),
      ...     a_tm1=jnp.array([0, 1]),
      ...     r_t=jnp.array([2.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     q_t=jnp.array([[2.0, 0.0], [0.0, 2.0]]),
      ...     lambda_=0.5,
      ...     tx_pair=TxPair(apply=jnp.sqrt, apply_inv=jnp.square),
      ... )
      Array([1. , 1.5], dtype=float32)

    References:
      van Hasselt et al. (2019), https://arxiv.org/abs/1907.03687

    Differs from:
      `rlax.transformed_q_lambda` stops the whole target, and d/d discount and
      d/d lambda with it, and takes an action out of range for the nearest one.
    """
    v_t = jnp.max(q_t, axis=-1)
    target_tm1 = transformed_lambda_returns(
        tx_pair,
        r_t=r_t,
        discount_t=discount_t,
        v_t=v_t,
        lambda_=lambda_,
        stop=stop,
    )
    return target_tm1 - jax.vmap(chosen)(q_tm1, a_tm1)


@checked(
    "q_tm1[T,A] q_t[T,A] a_tm1[T]:int a_t[T]:int r_t[T] discount_t[T] pi_t[T,A] "
    "mu_t[T] lambda_[T]|[] eps[]:scalar"
)
def transformed_retrace(
    q_tm1: jax.Array,
    q_t: jax.Array,
    a_tm1: jax.Array,
    a_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    pi_t: jax.Array,
    mu_t: jax.Array,
    lambda_: ArrayLike,
    eps: ArrayLike = 1e-8,
    *,
    stop: Stop = "bootstrap",
    tx_pair: TxPair = IDENTITY_PAIR,
) -> jax.Array:
    r"""Retrace(lambda) errors of action values learned in a transformed space.

    .. math::
        \delta_t = h(G_t) - q_{t-1}(a_{t-1}), \quad
        G_t \text{ the return of `retrace` for } h^{-1}(q_t)

    Args:
      q_tm1: transformed action values of the states acted in: the predictions.
      q_t: transformed action values of the true successors (the final observation when
        truncated).
      r_t: rewards, untransformed.
      stop: "bootstrap" stops `q_t`, `pi_t` and `mu_t`, in the traces too, "target" the
        whole target, "none" nothing; when which: `rljax.losses`.

    Returns:
      `[T]` targets minus predictions, both transformed.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import TxPair, transformed_retrace
      >>> transformed_retrace(
      ...     q_tm1=jnp.array([[1.0, 0.0], [0.0, 0.5]]),
      ...     q_t=jnp.array([[2.0, 0.0], [2.0, 2.0]]),
      ...     a_tm1=jnp.array([0, 1]),
      ...     a_t=jnp.array([0, 1]),
      ...     r_t=jnp.array([3.0, 2.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     pi_t=jnp.array([[0.5, 0.5], [0.25, 0.75]]),
      ...     mu_t=jnp.array([0.25, 0.75]),
      ...     lambda_=0.5,
      ...     tx_pair=TxPair(apply=jnp.sqrt, apply_inv=jnp.square),
      ... )
      Array([1. , 1.5], dtype=float32)

    References:
      Kapturowski et al. (2019), section 2.3, https://openreview.net/forum?id=r1lyTjAqYX
      Munos et al. (2016), eq. 3 and 4, https://arxiv.org/abs/1606.02647

    Differs from:
      `rlax.transformed_retrace` stops the whole target, and d/d discount and
      d/d lambda with it, and takes an action out of range for the nearest one.
    """
    c_t = _retrace_traces(pi_t, a_t, mu_t, lambda_=lambda_, eps=eps, stop=stop)
    target_tm1 = transformed_general_off_policy_returns_from_action_values(
        tx_pair,
        q_t=q_t,
        a_t=a_t,
        r_t=r_t,
        discount_t=discount_t,
        c_t=c_t,
        pi_t=pi_t,
        stop=stop,
    )
    return target_tm1 - jax.vmap(chosen)(q_tm1, a_tm1)


@checked(
    "q_tm1[T,A] a_tm1[T]:int target_q_t[T,A] a_t[T]:int r_t[T] discount_t[T] "
    "lambda_t[T]|[]"
)
def transformed_n_step_q_learning(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    target_q_t: jax.Array,
    a_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    n: int,
    lambda_t: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
    tx_pair: TxPair = IDENTITY_PAIR,
) -> jax.Array:
    r"""n-step Q-learning errors of action values learned in a transformed space.

    .. math::
        \delta_t = h(G_t) - q_{t-1}(a_{t-1}), \quad
        G_t \text{ the `n_step_bootstrapped_returns` of } h^{-1}(q_t(a_t))

    Args:
      q_tm1: transformed action values of the states acted in: the predictions.
      target_q_t: transformed action values of the true successors (the final
        observation when truncated), by the target network.
      a_t: in [0, A), actions whose value is bootstrapped from: the greatest of
        `target_q_t`, or for double Q-learning of the online network's values. Outside,
        the result is NaN.
      r_t: rewards, untransformed.
      stop: "bootstrap" stops `target_q_t`, "target" the whole target, "none" nothing;
        when which: `rljax.losses`.

    Returns:
      `[T]` targets minus predictions, both transformed.

    Raises:
      ValueError: n < 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import TxPair, transformed_n_step_q_learning
      >>> transformed_n_step_q_learning(
      ...     q_tm1=jnp.array([[1.0, 0.0], [0.0, 0.5]]),
      ...     a_tm1=jnp.array([0, 1]),
      ...     target_q_t=jnp.array([[9.0, 9.0], [9.0, 4.0]]),
      ...     a_t=jnp.array([0, 1]),
      ...     r_t=jnp.array([4.5, 1.0]),
      ...     discount_t=jnp.array([0.5, 0.5]),
      ...     n=2,
      ...     tx_pair=TxPair(apply=jnp.sqrt, apply_inv=jnp.square),
      ... )
      Array([2. , 2.5], dtype=float32)

    References:
      Kapturowski et al. (2019), eq. 1, https://openreview.net/forum?id=r1lyTjAqYX

    Differs from:
      `rlax.transformed_n_step_q_learning` has no `lambda_t` and so no truncation, stops
      the whole target, and d/d discount with it, and takes an action out of range for
      the nearest one.
    """
    v_t = jax.vmap(chosen)(target_q_t, a_t)
    target_tm1 = transformed_n_step_returns(
        tx_pair,
        r_t=r_t,
        discount_t=discount_t,
        v_t=v_t,
        n=n,
        lambda_t=lambda_t,
        stop=stop,
    )
    return target_tm1 - jax.vmap(chosen)(q_tm1, a_tm1)
