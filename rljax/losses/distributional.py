"""Losses of return distributions, of one transition: arrays in, a scalar loss out.

Categorical distributions are probabilities of fixed atoms, quantile distributions are
values at given cumulative probabilities.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.losses._common import Stop, checked, chosen, stop_if
from rljax.losses.transforms import transform_to_2hot


@checked("z_p[N] probs[N] z_q[K]")
def categorical_l2_project(
    z_p: jax.Array, probs: jax.Array, z_q: jax.Array
) -> jax.Array:
    r"""Projection of a categorical distribution onto other atoms.

    .. math::
        q_i = \sum_j p_j (u_{i-1}(z_j) - u_i(z_j)), \qquad
        u_i(z) = \mathrm{clip}\left(\frac{z - z^q_i}{z^q_{i+1} - z^q_i}, 0, 1\right)

    with :math:`u_{-1} = 1` and :math:`u_{K-1} = 0`: the mass of an atom goes to its two
    neighbours among `z_q`, the nearer one getting more, or to the first or last one
    if it lies beyond. Of all distributions on `z_q` this one has the least L2 (Cramer)
    distance of the cumulative functions. Within the range it keeps the mean.

    Args:
      z_p: atoms, in any order. The derivative is exact between the atoms `z_q`, 0
        beyond their range, and the mean of both sides' at one of them.
      probs: probabilities of the atoms `z_p`.
      z_q: increasing atoms, evenly spaced or not; differentiable. Of equal ones the
        first gets what comes from below, the last the rest.

    Returns:
      `[K]` probabilities of `z_q`; they add up to the sum of `probs`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import categorical_l2_project
      >>> z_p, probs = jnp.array([0.5, 2.0, 5.0]), jnp.array([0.5, 0.25, 0.25])
      >>> categorical_l2_project(z_p, probs, z_q=jnp.array([0.0, 1.0, 3.0]))
      Array([0.25 , 0.375, 0.375], dtype=float32)

    References:
      Bellemare et al. (2017), eq. 7, https://arxiv.org/abs/1707.06887
      Rowland et al. (2018), https://arxiv.org/abs/1802.08163

    Differs from:
      `rlax.categorical_l2_project` has half of one side's derivative at an atom of
      `z_q`, and counts mass twice above two equal ones.
    """
    gap = jnp.diff(z_q)[:, None]
    above = z_p[None, :] - z_q[:-1, None]
    ramp = jnp.clip(above / jnp.where(gap > 0, gap, 1), 0, 1)
    passed = jnp.where(gap > 0, ramp, (above >= 0).astype(ramp.dtype))
    before = jnp.pad(passed, ((1, 0), (0, 0)), constant_values=1)
    share = before - jnp.pad(passed, ((0, 1), (0, 0)))
    return jnp.sum(share * probs[None, :], axis=1)


@checked("v_atoms_tm1[N] v_logits_tm1[N] r_t[] discount_t[] v_atoms_t[M] v_logits_t[M]")
def categorical_td_learning(
    v_atoms_tm1: jax.Array,
    v_logits_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    v_atoms_t: jax.Array,
    v_logits_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Cross-entropy of a categorical value distribution to its TD target.

    .. math::
        L_t = -\sum_i q_i \log \mathrm{softmax}(l_{t-1})_i, \qquad
        q = \Pi_{z_{t-1}} (r_t + \gamma_t z_t,\; \mathrm{softmax}(l_t))

    with :math:`\Pi` the `categorical_l2_project`.

    Args:
      v_logits_t: logits of the true successor (the final observation when truncated).
      stop: "bootstrap" stops `v_logits_t`, "target" the whole projected target, "none"
        nothing; when which: `rljax.losses`.

    Returns:
      `[]` loss; its semi-gradient in `v_logits_tm1` is the softmax of these minus the
      projected target.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import categorical_td_learning
      >>> z, logits_tm1 = jnp.array([0.0, 1.0]), jnp.log(jnp.array([1.0, 3.0]))
      >>> loss = categorical_td_learning(z, logits_tm1, 0.5, 0.5, z, jnp.zeros(2))
      >>> print(f"{loss:.4f}")  # -0.25 log(0.25) - 0.75 log(0.75)
      0.5623

    References:
      Bellemare et al. (2017), algorithm 1, https://arxiv.org/abs/1707.06887

    Differs from:
      `rlax.categorical_td_learning` stops the whole target, and d/d discount with it;
      not stopped, its gradient is NaN where the target has a probability of 0.
    """
    probs_t = jax.nn.softmax(stop_if(stop == "bootstrap", v_logits_t))
    z_t = r_t + discount_t * v_atoms_t
    target_tm1 = categorical_l2_project(z_t, probs_t, v_atoms_tm1)
    return _cross_entropy(stop_if(stop == "target", target_tm1), v_logits_tm1)


@checked(
    "q_atoms_tm1[N] q_logits_tm1[A,N] a_tm1[]:int r_t[] discount_t[] q_atoms_t[M] "
    "q_logits_t[A,M]"
)
def categorical_q_learning(
    q_atoms_tm1: jax.Array,
    q_logits_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_atoms_t: jax.Array,
    q_logits_t: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Cross-entropy of a categorical action value to its Q-learning target: C51.

    .. math::
        L_t &= -\sum_i q_i \log \mathrm{softmax}(l_{t-1}(a_{t-1}))_i, \qquad
        q = \Pi_{z_{t-1}} (r_t + \gamma_t z_t,\; \mathrm{softmax}(l_t(a^*))) \\
        a^* &= \arg\max_a \sum_i z_{t,i}\, \mathrm{softmax}(l_t(a))_i

    with :math:`\Pi` the `categorical_l2_project`.

    Args:
      q_logits_t: logits of the true successor (the final observation when truncated).
        The greedy action has no gradient in any mode.
      stop: "bootstrap" stops `q_logits_t`, "target" the whole projected target, "none"
        nothing; when which: `rljax.losses`.

    Returns:
      `[]` loss.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import categorical_q_learning
      >>> z, q_logits_t = jnp.array([0.0, 1.0]), jnp.array([[1.0, 0.0], [0.0, 0.0]])
      >>> q_logits_tm1 = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]]))
      >>> loss = categorical_q_learning(z, q_logits_tm1, 0, 0.5, 0.5, z, q_logits_t)
      >>> print(f"{loss:.4f}")  # -0.25 log(0.25) - 0.75 log(0.75)
      0.5623

    References:
      Bellemare et al. (2017), algorithm 1, https://arxiv.org/abs/1707.06887

    Differs from:
      `rlax.categorical_q_learning` stops the whole target, and d/d discount with it,
      and takes an action out of range for the nearest one; not stopped, its gradient
      is NaN where the target has a probability of 0.
    """
    q_t = jnp.sum(jax.nn.softmax(q_logits_t) * q_atoms_t[None, :], axis=1)
    return categorical_double_q_learning(
        q_atoms_tm1=q_atoms_tm1,
        q_logits_tm1=q_logits_tm1,
        a_tm1=a_tm1,
        r_t=r_t,
        discount_t=discount_t,
        q_atoms_t=q_atoms_t,
        q_logits_t=q_logits_t,
        q_t_selector=q_t,
        stop=stop,
    )


@checked(
    "q_atoms_tm1[N] q_logits_tm1[A,N] a_tm1[]:int r_t[] discount_t[] q_atoms_t[M] "
    "q_logits_t[A,M] q_t_selector[A]"
)
def categorical_double_q_learning(
    q_atoms_tm1: jax.Array,
    q_logits_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_atoms_t: jax.Array,
    q_logits_t: jax.Array,
    q_t_selector: jax.Array,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Cross-entropy of a categorical action value to its double Q-learning target.

    .. math::
        L_t &= -\sum_i q_i \log \mathrm{softmax}(l_{t-1}(a_{t-1}))_i, \qquad
        q = \Pi_{z_{t-1}} (r_t + \gamma_t z_t,\; \mathrm{softmax}(l_t(a^*))) \\
        a^* &= \arg\max_a q^{selector}_t(a)

    with :math:`\Pi` the `categorical_l2_project`.

    Args:
      q_logits_t: logits of the true successor (the final observation when truncated) by
        the evaluating network; the target network.
      q_t_selector: action values, means, by the network that chooses the action; the
        online network. Has no gradient in any mode.
      stop: "bootstrap" stops `q_logits_t`, "target" the whole projected target, "none"
        nothing; when which: `rljax.losses`.

    Returns:
      `[]` loss.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import categorical_double_q_learning
      >>> z, q_logits = jnp.array([0.0, 1.0]), jnp.log(jnp.array([[1.0, 3], [1, 1]]))
      >>> selector = jnp.array([2.0, 5.0])
      >>> loss = categorical_double_q_learning(
      ...     z, q_logits, 0, 0.5, 0.5, z, q_logits, selector
      ... )
      >>> print(f"{loss:.4f}")  # -0.25 log(0.25) - 0.75 log(0.75)
      0.5623

    References:
      Bellemare et al. (2017), algorithm 1, https://arxiv.org/abs/1707.06887
      van Hasselt et al. (2016), https://arxiv.org/abs/1509.06461

    Differs from:
      `rlax.categorical_double_q_learning` stops the whole target, and d/d discount with
      it, and takes an action out of range for the nearest one; not stopped, its
      gradient is NaN where the target has a probability of 0.
    """
    return categorical_td_learning(
        v_atoms_tm1=q_atoms_tm1,
        v_logits_tm1=chosen(q_logits_tm1, a_tm1),
        r_t=r_t,
        discount_t=discount_t,
        v_atoms_t=q_atoms_t,
        v_logits_t=chosen(q_logits_t, jnp.argmax(q_t_selector)),
        stop=stop,
    )


@checked("logits[N] target[]")
def two_hot_loss(
    logits: jax.Array, target: jax.Array, min_value: float, max_value: float
) -> jax.Array:
    r"""Cross-entropy of a categorical distribution to a scalar, two-hot encoded.

    .. math::
        L = -\sum_i p_i \log \mathrm{softmax}(l)_i, \qquad
        p_i = \max(0, 1 - |x - z_i| / \Delta), \quad z_i = z_0 + i \Delta

    The mean over the bins of the distribution that minimises it is the target, or over
    random targets their mean. Nothing is stopped here: stop the bootstraps where the
    target is made.

    Args:
      logits: logits of N >= 2 bins, evenly spaced: the prediction.
      target: scalar, clipped to the range of the bins; differentiable.

    Returns:
      `[]` loss.

    Raises:
      ValueError: fewer than 2 bins, or an empty range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import two_hot_loss
      >>> logits = jnp.log(jnp.array([1.0, 2.0, 1.0]))
      >>> loss = two_hot_loss(logits, jnp.array(0.5), 0.0, 2.0)
      >>> print(f"{loss:.4f}")  # 1.5 log(2)
      1.0397

    References:
      Schrittwieser et al. (2020), appendix F, https://arxiv.org/abs/1911.08265

    Differs from:
      rlax has no such loss; its `transform_to_2hot` shifts the target a little.
    """
    target = jnp.asarray(target, logits.dtype)
    probs = transform_to_2hot(target, min_value, max_value, len(logits))
    return _cross_entropy(probs, logits)


@checked("dist_src[N] tau_src[N] dist_target[M] huber_param[]:scalar")
def quantile_regression_loss(
    dist_src: jax.Array,
    tau_src: jax.Array,
    dist_target: jax.Array,
    huber_param: ArrayLike = 0.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Quantile regression of values at given quantiles to samples.

    .. math::
        L &= \sum_{i=1}^N \frac1M \sum_{j=1}^M
        |\tau_i - 1\{\delta_{ij} < 0\}|\, H_\kappa(\delta_{ij}), \qquad
        \delta_{ij} = y_j - \theta_i \\
        H_\kappa(\delta) &= \begin{cases}
        \tfrac12 \delta^2 & |\delta| \le \kappa \\
        \kappa (|\delta| - \tfrac12 \kappa) & \text{otherwise}
        \end{cases}, \qquad H_0(\delta) = |\delta|

    Summed over the N values, a mean over the M samples. The Huber term is not divided
    by kappa: it vanishes with kappa, and only 0 itself gives the absolute value. That
    is least at the quantiles, the Huber term between these and the expectiles.

    Args:
      dist_src: values: the prediction.
      tau_src: in [0, 1], their cumulative probabilities; differentiable.
      dist_target: samples; differentiable.
      stop: "target" stops `dist_target`; "bootstrap" and "none" stop nothing: stop the
        bootstraps where the target is made.

    Returns:
      `[]` loss.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import quantile_regression_loss
      >>> dist_src, tau_src = jnp.array([0.0, 2.0]), jnp.array([0.25, 0.75])
      >>> quantile_regression_loss(dist_src, tau_src, jnp.array([1.0, 3.0]))
      Array(1., dtype=float32)

    References:
      Dabney et al. (2018), eq. 8 and 10, https://arxiv.org/abs/1710.10044

    Differs from:
      `rlax.quantile_regression_loss` has a flag that stops nothing that has a gradient;
      its `huber_param` cannot be traced.
    """
    dist_target = stop_if(stop == "target", dist_target)
    delta = dist_target[None, :] - dist_src[:, None]
    tau = tau_src[:, None]
    loss = jnp.where(delta < 0, 1 - tau, tau) * _huber(delta, huber_param)
    return jnp.sum(jnp.mean(loss, axis=1))


@checked(
    "dist_q_tm1[N,A] tau_q_tm1[N] a_tm1[]:int r_t[] discount_t[] "
    "dist_q_t_selector[K,A] dist_q_t[M,A] huber_param[]:scalar"
)
def quantile_q_learning(
    dist_q_tm1: jax.Array,
    tau_q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    dist_q_t_selector: jax.Array,
    dist_q_t: jax.Array,
    huber_param: ArrayLike = 0.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Quantile regression of an action value to its Q-learning target: QR-DQN.

    .. math::
        L_t &= \sum_{i=1}^N \frac1M \sum_{j=1}^M
        |\tau_i - 1\{\delta_{ij} < 0\}|\, H_\kappa(\delta_{ij}) \\
        \delta_{ij} &= r_t + \gamma_t \theta^t_j(a^*) - \theta^{t-1}_i(a_{t-1}), \qquad
        a^* = \arg\max_a \sum_k \theta^{selector}_k(a)

    with :math:`H_\kappa` of `quantile_regression_loss`, not divided by kappa.

    Args:
      dist_q_t_selector: values of the true successor, whose means choose the action;
        `dist_q_t` itself, or the online network's. Has no gradient in any mode.
      stop: "bootstrap" stops `dist_q_t`, "target" the whole target, "none" nothing;
        when which: `rljax.losses`.

    Returns:
      `[]` loss: a sum over N, a mean over M.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import quantile_q_learning
      >>> quantile_q_learning(
      ...     dist_q_tm1=jnp.array([[0.0, 9.0], [2.0, 9.0]]),
      ...     tau_q_tm1=jnp.array([0.25, 0.75]),
      ...     a_tm1=0,
      ...     r_t=1.0,
      ...     discount_t=0.5,
      ...     dist_q_t_selector=jnp.array([[0.0, 1.0], [0.0, 1.0]]),
      ...     dist_q_t=jnp.array([[9.0, 0.0], [9.0, 4.0]]),
      ... )
      Array(1., dtype=float32)

    References:
      Dabney et al. (2018), algorithm 1, https://arxiv.org/abs/1710.10044

    Differs from:
      `rlax.quantile_q_learning` stops the whole target, and d/d discount with it, and
      takes an action out of range for the nearest one; its `huber_param` cannot be
      traced.
    """
    a_t = jnp.argmax(jnp.mean(dist_q_t_selector, axis=0))
    dist_t = chosen(stop_if(stop == "bootstrap", dist_q_t).T, a_t)
    return quantile_regression_loss(
        chosen(dist_q_tm1.T, a_tm1),
        tau_q_tm1,
        r_t + discount_t * dist_t,
        huber_param=huber_param,
        stop=stop,
    )


@checked(
    "dist_q_tm1[N,A] tau_q_tm1[N] a_tm1[]:int r_t[] discount_t[] dist_q_t[M,A] "
    "probs_a_t[A] huber_param[]:scalar"
)
def quantile_expected_sarsa(
    dist_q_tm1: jax.Array,
    tau_q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    dist_q_t: jax.Array,
    probs_a_t: jax.Array,
    huber_param: ArrayLike = 0.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Quantile regression of an action value to its Expected Sarsa target.

    .. math::
        L_t &= \sum_a \pi_t(a) \sum_{i=1}^N \frac1M \sum_{j=1}^M
        |\tau_i - 1\{\delta_{ija} < 0\}|\, H_\kappa(\delta_{ija}) \\
        \delta_{ija} &= r_t + \gamma_t \theta^t_j(a) - \theta^{t-1}_i(a_{t-1})

    with :math:`H_\kappa` of `quantile_regression_loss`, not divided by kappa. So the
    target is the mixture of the actions' distributions, not their mean.

    Args:
      dist_q_t: values of the true successor (the final observation when truncated), by
        action.
      stop: "bootstrap" stops `dist_q_t` and `probs_a_t`, "target" these and the whole
        target, "none" nothing; when which: `rljax.losses`.

    Returns:
      `[]` loss: a sum over N, a mean over M, an expectation over A.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import quantile_expected_sarsa
      >>> quantile_expected_sarsa(
      ...     dist_q_tm1=jnp.array([[0.0, 9.0], [2.0, 9.0]]),
      ...     tau_q_tm1=jnp.array([0.25, 0.75]),
      ...     a_tm1=0,
      ...     r_t=1.0,
      ...     discount_t=0.5,
      ...     dist_q_t=jnp.array([[0.0, 0.0], [4.0, 0.0]]),
      ...     probs_a_t=jnp.array([0.25, 0.75]),
      ... )
      Array(0.625, dtype=float32)

    References:
      Dabney et al. (2018), algorithm 1, https://arxiv.org/abs/1710.10044
      van Seijen et al. (2009), https://doi.org/10.1109/ADPRL.2009.4927542

    Differs from:
      `rlax.quantile_expected_sarsa` stops the whole target, and d/d discount with it,
      and takes an action out of range for the nearest one; its `huber_param` cannot be
      traced.
    """
    dist_q_t = stop_if(stop == "bootstrap", dist_q_t)
    probs_a_t = stop_if(stop != "none", probs_a_t)
    dist_qa_tm1 = chosen(dist_q_tm1.T, a_tm1)
    masked = (probs_a_t == 0)[None] & (dist_q_t == -jnp.inf)
    dist_q_t = jnp.where(masked, 0, dist_q_t)  # else 0 times an infinite loss

    def loss(dist_t):
        target_tm1 = r_t + discount_t * dist_t
        return quantile_regression_loss(
            dist_qa_tm1, tau_q_tm1, target_tm1, huber_param=huber_param, stop=stop
        )

    return jnp.sum(probs_a_t * jax.vmap(loss, in_axes=1)(dist_q_t))


@checked(
    "dist_q_tm1[N,A] tau_q_tm1[N] a_tm1[]:int r_t[] discount_t[] "
    "dist_q_t_selector[K,A] dist_q_t[M,A] huber_param[]:scalar"
)
def implicit_quantile_q_learning(
    dist_q_tm1: jax.Array,
    tau_q_tm1: jax.Array,
    a_tm1: ArrayLike,
    r_t: jax.Array,
    discount_t: jax.Array,
    dist_q_t_selector: jax.Array,
    dist_q_t: jax.Array,
    huber_param: ArrayLike = 1.0,
    *,
    stop: Stop = "bootstrap",
) -> jax.Array:
    r"""Quantile regression at sampled quantiles to sampled targets: IQN.

    .. math::
        L_t &= \sum_{i=1}^N \frac1M \sum_{j=1}^M
        |\tau_i - 1\{\delta_{ij} < 0\}|\, \frac{H_\kappa(\delta_{ij})}{\kappa} \\
        \delta_{ij} &= r_t + \gamma_t \theta^t_j(a^*) - \theta^{t-1}_i(a_{t-1}), \qquad
        a^* = \arg\max_a \sum_k \theta^{selector}_k(a)

    that is, `quantile_q_learning` with the Huber term divided by kappa.

    Args:
      tau_q_tm1: in [0, 1], the samples that `dist_q_tm1` was made from; differentiable.
        The K and M values below are made from samples of their own, which are not
        needed.
      dist_q_t_selector: values of the true successor, whose means choose the action.
        Has no gradient in any mode.
      huber_param: :math:`\kappa`; 0 for the absolute value, the limit. Differentiable,
        but not at 0.
      stop: "bootstrap" stops `dist_q_t`, "target" the whole target, "none" nothing;
        when which: `rljax.losses`.

    Returns:
      `[]` loss: a sum over N, a mean over M.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import implicit_quantile_q_learning
      >>> implicit_quantile_q_learning(
      ...     dist_q_tm1=jnp.array([[0.0, 9.0], [2.0, 9.0]]),
      ...     tau_q_tm1=jnp.array([0.25, 0.75]),
      ...     a_tm1=0,
      ...     r_t=1.0,
      ...     discount_t=0.5,
      ...     dist_q_t_selector=jnp.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]),
      ...     dist_q_t=jnp.array([[9.0, 4.0]]),
      ...     huber_param=2.0,
      ... )
      Array(0.6875, dtype=float32)

    References:
      Dabney et al. (2018), eq. 3, https://arxiv.org/abs/1806.06923

    Differs from:
      rlax has no such loss; `rlax.quantile_q_learning` is kappa times this one.
    """
    loss = quantile_q_learning(
        dist_q_tm1=dist_q_tm1,
        tau_q_tm1=tau_q_tm1,
        a_tm1=a_tm1,
        r_t=r_t,
        discount_t=discount_t,
        dist_q_t_selector=dist_q_t_selector,
        dist_q_t=dist_q_t,
        huber_param=huber_param,
        stop=stop,
    )
    return loss / jnp.where(jnp.greater(huber_param, 0), huber_param, 1)


def _cross_entropy(probs: jax.Array, logits: jax.Array) -> jax.Array:
    return -jnp.sum(probs * jax.nn.log_softmax(logits))


def _huber(x: jax.Array, kappa: ArrayLike) -> jax.Array:
    """Huber's loss for kappa > 0, else |x|; on CPU much quicker than with clip."""
    positive = jnp.greater(kappa, 0)
    slope, width = jnp.where(positive, kappa, 1), jnp.where(positive, kappa, 0)
    size = jnp.abs(x)
    return jnp.where(size <= width, jnp.square(x) / 2, slope * (size - width / 2))
