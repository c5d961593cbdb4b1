"""MPO and V-MPO: policies weighted by their values, within bounds on divergences.

The dual variables (temperature, alpha) are learned, each by a loss of its own. Unless
`stop` is "none" each has a gradient from this loss alone, and this loss has none in the
policy. For a temperature that is tuned instead, weigh the log-probabilities by
`mpo_compute_weights_and_temperature_loss`, which stops nothing.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax._shapes import promoted
from rljax.losses._common import AxisName, Stop, checked, stop_if, unmasked, weighted

Projection = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LagrangePenalty:
    """A bound on a divergence, and the dual variable that enforces it."""

    # Before projection: [], or of any shape that broadcasts to the divergence's.
    alpha: ArrayLike
    epsilon: ArrayLike  # [] the bound
    per_dimension: bool = dataclasses.field(default=False, metadata={"static": True})


class MpoOutputs(NamedTuple):
    """The parts of a loss of MPO, of examples of shape E."""

    temperature_loss: jax.Array  # E; of V-MPO []
    policy_loss: jax.Array  # E
    kl_loss: jax.Array  # E
    alpha_loss: jax.Array  # E
    normalized_weights: jax.Array  # E and the axis of samples; of V-MPO E
    num_samples: ArrayLike  # of each example; of V-MPO how many examples were used


KlConstraints = Sequence[tuple[jax.Array, LagrangePenalty]]
Part = tuple[jax.Array, ArrayLike]  # a loss and its weight
clip_positive: Projection = functools.partial(jnp.clip, min=1e-10)


@checked("sample_log_probs[...] sample_q_values[...]")
def mpo_loss(
    sample_log_probs: jax.Array,
    sample_q_values: jax.Array,
    temperature_constraint: LagrangePenalty,
    kl_constraints: KlConstraints,
    projection_operator: Projection = clip_positive,
    policy_loss_weight: ArrayLike = 1.0,
    temperature_loss_weight: ArrayLike = 1.0,
    kl_loss_weight: ArrayLike = 1.0,
    alpha_loss_weight: ArrayLike = 1.0,
    sample_axis: int = 0,
    *,
    stop: Stop = "bootstrap",
) -> tuple[jax.Array, MpoOutputs]:
    r"""Loss of MPO: the policy, its divergences, and both steps' dual variables.

    .. math::
        L = -\sum_i w_i \log \pi(a_i) + L_\eta + L_{KL} + L_\alpha, \qquad
        w_i = \frac{e^{Q_i / \eta}}{\sum_j e^{Q_j / \eta}}

    with :math:`L_\eta` and :math:`w` of `mpo_compute_weights_and_temperature_loss`, the
    others of `compute_parametric_kl_penalty_and_dual_loss`. Nothing is averaged over
    the examples; their shape E is any, `[]` and `[T, B]` included.

    Args:
      sample_log_probs: E and the axis of samples, log-probabilities, under the policy
        to be improved, of actions drawn from the old one.
      sample_q_values: the shape of `sample_log_probs`, values of these actions.
      projection_operator: makes temperature and alpha positive. The default clips them
        at 1e-10, below which they have no gradient any more; `jax.nn.softplus` has.
      sample_axis: the axis of the samples in the first two arguments.
      stop: "bootstrap" and "target" stop `sample_q_values`, the temperature in the
        weights, alpha in :math:`L_{KL}` and the divergences in :math:`L_\alpha`; "none"
        nothing. Bounds and weights of losses keep their gradients. To separate the
        arguments, call it twice with "none": with the duals of the bootstrap for
        `policy_loss` and `kl_loss`, with its divergences for `temperature_loss` and
        `alpha_loss`.

    Returns:
      E losses, and their parts as `MpoOutputs`.

    Raises:
      ValueError: `sample_axis` out of range, no `kl_constraints`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import LagrangePenalty, mpo_loss
      >>> loss, parts = mpo_loss(
      ...     sample_log_probs=jnp.array([-1.0, -2.0]),
      ...     sample_q_values=jnp.log(jnp.array([3.0, 1.0])),
      ...     temperature_constraint=LagrangePenalty(alpha=1.0, epsilon=0.5),
      ...     kl_constraints=[(jnp.array(2.0), LagrangePenalty(0.25, epsilon=1.0))],
      ... )
      >>> parts.normalized_weights.round(4)
      Array([0.75, 0.25], dtype=float32)
      >>> print(*(f"{x:.4f}" for x in (loss, *parts[:4])))
      2.6931 1.1931 1.2500 0.5000 -0.2500

    References:
      Abdolmaleki et al. (2018a), https://arxiv.org/abs/1806.06920
      Abdolmaleki et al. (2018b), https://arxiv.org/abs/1812.02256

    Differs from:
      `rlax.mpo_loss` leaves the gradient of :math:`L_\eta` in the values: a critic
      that shared parameters with the policy would be pushed down.
    """
    sample_axis = _axis(sample_axis, sample_q_values)
    axes = [f"E{i}" for i in range(jnp.ndim(sample_q_values))]
    samples = ",".join(axes)
    del axes[sample_axis]
    (sample_log_probs, sample_q_values, alpha, epsilon), kl_constraints = _promoted(
        {
            f"sample_log_probs[{samples}]": sample_log_probs,
            f"sample_q_values[{samples}]": sample_q_values,
            **_words(temperature_constraint),
        },
        kl_constraints,
        examples=axes,
    )
    saddle = stop != "none"
    temperature_loss, weights, num_samples = mpo_compute_weights_and_temperature_loss(
        stop_if(saddle, sample_q_values),
        LagrangePenalty(alpha=alpha, epsilon=epsilon),
        projection_operator,
        sample_axis=sample_axis,
    )
    weights = stop_if(saddle, weights)
    policy_loss = -jnp.sum(weighted(weights, sample_log_probs), axis=sample_axis)
    kl_loss, alpha_loss = compute_parametric_kl_penalty_and_dual_loss(
        kl_constraints, projection_operator, stop=stop
    )
    return _assembled(
        temperature=(temperature_loss, temperature_loss_weight),
        policy=(policy_loss, policy_loss_weight),
        kl=(kl_loss, kl_loss_weight),
        alpha=(alpha_loss, alpha_loss_weight),
        normalized_weights=weights,
        num_samples=num_samples,
    )


@checked("sample_q_values[...]")
def mpo_compute_weights_and_temperature_loss(
    sample_q_values: jax.Array,
    temperature_constraint: LagrangePenalty,
    projection_operator: Projection,
    sample_axis: int = 0,
) -> tuple[jax.Array, jax.Array, int]:
    r"""Weights of sampled actions, and the loss of the temperature that they have.

    .. math::
        w_i = \frac{e^{Q_i / \eta}}{\sum_{j=1}^S e^{Q_j / \eta}}, \qquad
        L_\eta = \eta \left(\epsilon
        + \log \frac{1}{S} \sum_{j=1}^S e^{Q_j / \eta}\right)

    The derivative of :math:`L_\eta` is epsilon minus the divergence of the weights from
    uniform ones, so at its minimum they diverge by epsilon. Nothing is stopped here.

    Args:
      sample_q_values: E and the axis of samples, values of sampled actions.
      temperature_constraint: alpha is the temperature :math:`\eta`, `[]` or as E;
        epsilon bounds the divergence.
      sample_axis: the axis of the samples.

    Returns:
      E losses of the temperature, weights of the shape of `sample_q_values` that add up
      to 1 over the samples, and how many samples there are.

    Raises:
      ValueError: `sample_axis` out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import LagrangePenalty
      >>> from rljax.losses import mpo_compute_weights_and_temperature_loss
      >>> q_values = jnp.log(jnp.array([3.0, 1.0]))
      >>> temperature = LagrangePenalty(alpha=1.0, epsilon=0.5)
      >>> loss, weights, num_samples = mpo_compute_weights_and_temperature_loss(
      ...     q_values, temperature, projection_operator=jnp.abs
      ... )
      >>> loss.round(4), weights.round(4), num_samples
      (Array(1.1931, dtype=float32), Array([0.75, 0.25], dtype=float32), 2)

    References:
      Abdolmaleki et al. (2018a), "E-step", https://arxiv.org/abs/1806.06920

    Differs from:
      `rlax.mpo_compute_weights_and_temperature_loss` accepts a temperature of any
      shape, also one that broadcasts the values.
    """
    sample_q_values, alpha, epsilon = promoted(
        {"sample_q_values[...]": sample_q_values, **_words(temperature_constraint)}
    )
    sample_axis = _axis(sample_axis, sample_q_values)
    num_samples = sample_q_values.shape[sample_axis]
    temperature = projection_operator(jnp.asarray(alpha))
    divisor = temperature
    if temperature.ndim:
        examples = list(sample_q_values.shape)
        del examples[sample_axis]
        temperature = _broadcast("temperature", temperature, tuple(examples))
        divisor = jnp.expand_dims(temperature, sample_axis)
    scaled = unmasked(lambda q: q / divisor, sample_q_values)
    log_mean = jax.nn.logsumexp(scaled, axis=sample_axis) - math.log(num_samples)
    weights = jax.nn.softmax(scaled, axis=sample_axis)
    return temperature * (epsilon + log_mean), weights, num_samples


@checked()
def compute_parametric_kl_penalty_and_dual_loss(
    kl_constraints: KlConstraints,
    projection_operator: Projection,
    *,
    stop: Stop = "bootstrap",
) -> tuple[jax.Array, jax.Array]:
    r"""Penalties of divergences, and losses of the dual variables that weigh them.

    .. math::
        L_{KL} = \sum_k \alpha_k D_k, \qquad
        L_\alpha = \sum_k \alpha_k (\epsilon_k - D_k)

    summed over dimensions as well where a penalty is per dimension. A divergence above
    its bound raises its :math:`\alpha`, one below lowers it.

    Args:
      kl_constraints: at least one pair of divergences, of any shape E (the same in all
        pairs), and their `LagrangePenalty`; where it is per dimension, E + `[A]`.
      stop: "bootstrap" and "target" stop alpha in :math:`L_{KL}` and the divergences in
        :math:`L_\alpha`, "none" nothing. Bounds keep their gradients.

    Returns:
      E penalties and E losses of the dual variables.

    Raises:
      ValueError: no `kl_constraints`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import LagrangePenalty
      >>> from rljax.losses import compute_parametric_kl_penalty_and_dual_loss
      >>> kl = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> penalty = LagrangePenalty(jnp.array([0.5, 2.0]), 3.0, per_dimension=True)
      >>> compute_parametric_kl_penalty_and_dual_loss([(kl, penalty)], jnp.abs)
      (Array([4.5, 9.5], dtype=float32), Array([ 3., -2.], dtype=float32))

    References:
      Abdolmaleki et al. (2018a), "M-step", https://arxiv.org/abs/1806.06920
      Abdolmaleki et al. (2018b), https://arxiv.org/abs/1812.02256

    Differs from:
      `rlax.compute_parametric_kl_penalty_and_dual_loss` gives (0, 0) where there are
      no constraints.
    """
    _, kl_constraints = _promoted({}, kl_constraints)
    kl_losses, alpha_losses = [], []
    for kl, penalty in kl_constraints:
        alpha = projection_operator(jnp.asarray(penalty.alpha))
        alpha = _broadcast("alpha", alpha, jnp.shape(kl))
        kl_loss = stop_if(stop != "none", alpha) * kl
        alpha_loss = alpha * (penalty.epsilon - stop_if(stop != "none", kl))
        if penalty.per_dimension:
            kl_loss, alpha_loss = kl_loss.sum(-1), alpha_loss.sum(-1)
        kl_losses.append(kl_loss)
        alpha_losses.append(alpha_loss)
    return sum(kl_losses[1:], kl_losses[0]), sum(alpha_losses[1:], alpha_losses[0])


@checked(
    "sample_log_probs[...] advantages[...] restarting_weights[...] "
    "importance_weights[...]"
)
def vmpo_loss(
    sample_log_probs: jax.Array,
    advantages: jax.Array,
    temperature_constraint: LagrangePenalty,
    kl_constraints: KlConstraints,
    projection_operator: Projection = clip_positive,
    restarting_weights: jax.Array | None = None,
    importance_weights: jax.Array | None = None,
    top_k_fraction: float = 0.5,
    policy_loss_weight: ArrayLike = 1.0,
    temperature_loss_weight: ArrayLike = 1.0,
    kl_loss_weight: ArrayLike = 1.0,
    alpha_loss_weight: ArrayLike = 1.0,
    axis_name: AxisName = None,
    *,
    stop: Stop = "bootstrap",
) -> tuple[jax.Array, MpoOutputs]:
    r"""Loss of V-MPO: the policy, its divergences, and both steps' dual variables.

    .. math::
        L_i = -n w_i \log \pi(a_i) + L_\eta + L_{KL,i} + L_{\alpha,i}

    with :math:`L_\eta` and :math:`w` of `vmpo_compute_weights_and_temperature_loss`,
    the others of `compute_parametric_kl_penalty_and_dual_loss`. The weights of all
    :math:`n` examples add up to 1, so this function takes the whole batch, of any shape
    E, and the mean of its result is V-MPO's loss.

    Args:
      sample_log_probs: E log-probabilities, under the policy to be improved, of the
        actions taken.
      advantages: E advantages of these actions; differentiable.
      projection_operator: makes temperature and alpha positive. The default clips them
        at 1e-10, below which they have no gradient any more; `jax.nn.softplus` has.
      restarting_weights: E, 0 for examples that are left out of the weights, for
        instance the first step of an episode, else 1; by default all 1.
      importance_weights: E ratios of probabilities, by default all 1.
      top_k_fraction: share of the examples that is used, the examples with the greatest
        advantages; a Python float in (0, 1].
      stop: "bootstrap" stops `importance_weights`, the temperature in the weights,
        alpha in :math:`L_{KL}` and the divergences in :math:`L_\alpha`; "target" stops
        `advantages` and `restarting_weights` as well; "none" nothing. An advantage from
        `generalized_advantage_estimation` has its values stopped already, and d/d
        discount and d/d lambda pass through it. To separate the arguments: as in
        `mpo_loss`.

    Returns:
      E losses, and their parts as `MpoOutputs`.

    Raises:
      ValueError: no `kl_constraints`, `top_k_fraction` out of range or too small to
        leave an example.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import LagrangePenalty, vmpo_loss
      >>> loss, parts = vmpo_loss(
      ...     sample_log_probs=jnp.array([-1.0, -2.0, -1.0, -2.0]),
      ...     advantages=jnp.log(jnp.array([3.0, 1.0, 0.5, 0.25])),
      ...     temperature_constraint=LagrangePenalty(alpha=1.0, epsilon=0.5),
      ...     kl_constraints=[(jnp.ones(4), LagrangePenalty(0.25, epsilon=1.0))],
      ... )
      >>> parts.normalized_weights.round(4)
      Array([0.75, 0.25, 0.  , 0.  ], dtype=float32)
      >>> parts.policy_loss.round(4), loss.shape
      (Array([3., 2., 0., 0.], dtype=float32), (4,))

    References:
      Song et al. (2020), https://arxiv.org/abs/1909.12238

    Differs from:
      `rlax.vmpo_loss` always stops the advantages in the weights and never the
      advantages in :math:`L_\eta`; it cannot be differentiated along `axis_name` with
      nothing stopped.
    """
    restarting, importance = (
        jnp.ones_like(sample_log_probs) if weights is None else weights
        for weights in (restarting_weights, importance_weights)
    )
    own, kl_constraints = _promoted(
        {
            "sample_log_probs[...]": sample_log_probs,
            "advantages[...]": advantages,
            "restarting_weights[...]": restarting,
            "importance_weights[...]": importance,
            **_words(temperature_constraint),
        },
        kl_constraints,
    )
    sample_log_probs, advantages, restarting, importance, alpha, epsilon = own
    temperature_loss, weights, num_samples = vmpo_compute_weights_and_temperature_loss(
        advantages,
        restarting,
        importance,
        temperature_constraint=LagrangePenalty(alpha=alpha, epsilon=epsilon),
        projection_operator=projection_operator,
        top_k_fraction=top_k_fraction,
        axis_name=axis_name,
        stop=stop,
    )
    num_examples = _num_examples(sample_log_probs, axis_name)
    policy_loss = weighted(-num_examples * weights, sample_log_probs)
    kl_loss, alpha_loss = compute_parametric_kl_penalty_and_dual_loss(
        kl_constraints, projection_operator, stop=stop
    )
    return _assembled(
        temperature=(temperature_loss, temperature_loss_weight),
        policy=(policy_loss, policy_loss_weight),
        kl=(kl_loss, kl_loss_weight),
        alpha=(alpha_loss, alpha_loss_weight),
        normalized_weights=weights,
        num_samples=num_samples,
    )


@checked("advantages[...] restarting_weights[...] importance_weights[...]")
def vmpo_compute_weights_and_temperature_loss(
    advantages: jax.Array,
    restarting_weights: jax.Array,
    importance_weights: jax.Array,
    temperature_constraint: LagrangePenalty,
    projection_operator: Projection,
    top_k_fraction: float,
    axis_name: AxisName = None,
    *,
    stop: Stop = "bootstrap",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Weights of examples, and the loss of the temperature that they have.

    .. math::
        w_i = \frac{m_i r_i \rho_i e^{A_i / \eta}}
        {\sum_j m_j r_j \rho_j e^{A_j / \eta}}, \qquad
        L_\eta = \eta \left(\epsilon + \log
        \frac{\sum_j m_j r_j \rho_j e^{A_j / \eta}}{\sum_j m_j r_j}\right)

    with :math:`m_i` 1 for the greatest advantages and 0 for the others.

    Args:
      advantages: E advantages, of any shape; differentiable.
      restarting_weights: E, :math:`r`, 0 for examples that are left out, else 1.
      importance_weights: E ratios of probabilities, :math:`\rho`.
      temperature_constraint: alpha is the temperature :math:`\eta`, `[]` or as E;
        epsilon bounds the divergence.
      top_k_fraction: share of all examples that is used, rounded down, and more where
        advantages are equal; a Python float in (0, 1].
      stop: "bootstrap" stops `importance_weights` and the temperature in the weights;
        "target" stops `advantages` and `restarting_weights` as well; "none" nothing.
        The bound keeps its gradient.

    Returns:
      `[]` loss of the temperature, E weights that add up to 1, and `[]` how many
      examples were used. Where there are none, the weights are 0.

    Raises:
      ValueError: `top_k_fraction` out of range or too small to leave an example.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import LagrangePenalty
      >>> from rljax.losses import vmpo_compute_weights_and_temperature_loss
      >>> loss, weights, num_samples = vmpo_compute_weights_and_temperature_loss(
      ...     advantages=jnp.log(jnp.array([3.0, 9.0, 1.0, 0.5])),
      ...     restarting_weights=jnp.array([1.0, 0.0, 1.0, 1.0]),
      ...     importance_weights=jnp.ones(4),
      ...     temperature_constraint=LagrangePenalty(alpha=1.0, epsilon=0.5),
      ...     projection_operator=jnp.abs,
      ...     top_k_fraction=0.5,
      ... )
      >>> loss.round(4), num_samples
      (Array(1.1931, dtype=float32), Array(2., dtype=float32))
      >>> weights.round(4)
      Array([0.75, 0.  , 0.25, 0.  ], dtype=float32)

    References:
      Song et al. (2020), "E-step", https://arxiv.org/abs/1909.12238

    Differs from:
      `rlax.vmpo_compute_weights_and_temperature_loss` multiplies the advantages by the
      restarting weights, loses all weights where the greatest of them is far above the
      advantages that are used, and adds 1e-10 to the sums.
    """
    advantages, restarting_weights, importance_weights, alpha, epsilon = promoted(
        {
            "advantages[...]": advantages,
            "restarting_weights[...]": restarting_weights,
            "importance_weights[...]": importance_weights,
            **_words(temperature_constraint),
        }
    )
    importance = stop_if(stop != "none", importance_weights)
    advantages, restarting = stop_if(stop == "target", (advantages, restarting_weights))
    temperature = projection_operator(jnp.asarray(alpha))
    if temperature.ndim:
        temperature = _broadcast("temperature", temperature, advantages.shape)
    used = _top_k(advantages, restarting > 0, top_k_fraction, axis_name)
    restarting = jnp.where(used, restarting, 0)
    num_samples = _all_sum(restarting, axis_name)

    def weigh(temperature):
        scaled = unmasked(lambda x: x / temperature, advantages)
        return _weigh(scaled, restarting * importance, used, axis_name)

    weights, _ = weigh(stop_if(stop != "none", temperature))
    _, log_sum = weigh(temperature)
    log_mean = log_sum - jnp.log(jnp.where(num_samples > 0, num_samples, 1))
    return temperature * (epsilon + log_mean), weights, num_samples


def _assembled(
    temperature: Part,
    policy: Part,
    kl: Part,
    alpha: Part,
    normalized_weights: jax.Array,
    num_samples: ArrayLike,
) -> tuple[jax.Array, MpoOutputs]:
    """The weighted sum of the parts, and the parts."""
    parts = (temperature, policy, kl, alpha)
    temperature_loss, policy_loss, kl_loss, alpha_loss = (loss for loss, _ in parts)
    outputs = MpoOutputs(
        temperature_loss=temperature_loss,
        policy_loss=policy_loss,
        kl_loss=kl_loss,
        alpha_loss=alpha_loss,
        normalized_weights=normalized_weights,
        num_samples=num_samples,
    )
    terms = (loss * weight for loss, weight in parts)
    return functools.reduce(operator.add, terms), outputs


def _top_k(
    advantages: jax.Array, allowed: jax.Array, fraction: float, axis_name: AxisName
) -> jax.Array:
    """Bools: which of the allowed examples are among the greatest of all."""
    if not 0 < fraction <= 1:
        raise ValueError(f"top_k_fraction={fraction}: must be in (0, 1]")
    if fraction == 1:
        return allowed
    candidates = jnp.where(allowed, jax.lax.stop_gradient(advantages), -jnp.inf)
    every = candidates
    for name in (axis_name,) if isinstance(axis_name, str) else axis_name or ():
        every = jax.lax.all_gather(every, name)  # vmap gathers one axis at a time
    k = int(fraction * every.size)
    if k == 0:
        raise ValueError(f"top_k_fraction={fraction}: leaves none of {every.size}")
    return allowed & (candidates >= jnp.sort(every.reshape(-1))[-k])


def _weigh(
    scaled: jax.Array, factors: jax.Array, used: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
    """`factors * exp(scaled)` over its sum, and its sum's logarithm; of nothing, 0."""
    used &= factors > 0  # else the greatest might not count
    greatest = jax.lax.stop_gradient(jnp.max(jnp.where(used, scaled, -jnp.inf)))
    if axis_name is not None:
        greatest = jax.lax.pmax(greatest, axis_name)
    # Without a gradient because it cancels; unused examples must not overflow.
    weights = factors * jnp.exp(jnp.where(used, scaled - greatest, 0))
    total = _all_sum(weights, axis_name)
    positive = jnp.where(total > 0, total, 1)
    log_sum = jnp.where(total > 0, greatest + jnp.log(positive), 0)
    return weights / positive, log_sum


def _num_examples(x: jax.Array, axis_name: AxisName) -> int:
    return x.size if axis_name is None else x.size * jax.lax.psum(1, axis_name)


def _all_sum(x: jax.Array, axis_name: AxisName) -> jax.Array:
    return jnp.sum(x) if axis_name is None else jax.lax.psum(jnp.sum(x), axis_name)


def _axis(sample_axis: int, samples: jax.Array) -> int:
    """The axis, counted from the first."""
    if not -samples.ndim <= sample_axis < samples.ndim:
        raise ValueError(f"sample_axis={sample_axis}: no such axis of {samples.shape}")
    return sample_axis % samples.ndim


def _words(temperature_constraint: LagrangePenalty) -> dict[str, ArrayLike]:
    return {
        "temperature[*]|[]": temperature_constraint.alpha,
        "epsilon[]:scalar": temperature_constraint.epsilon,
    }


def _broadcast(name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x` of this shape; AssertionError if it does not broadcast to it."""
    try:
        return jnp.broadcast_to(x, shape)
    except ValueError as error:
        raise AssertionError(
            f"{name}: expected a shape that broadcasts to {shape}, got {x.shape}"
        ) from error


def _promoted(
    arrays: dict[str, ArrayLike],
    kl_constraints: KlConstraints,
    examples: Sequence[str] = ("...",),
) -> tuple[list[jax.Array], list[tuple[jax.Array, LagrangePenalty]]]:
    """Arrays, by their declarations, and constraints: checked, and of one dtype.

    `examples` names the axes of E.
    """
    if not kl_constraints:
        raise ValueError("kl_constraints=[]: must be at least one")
    declared = dict(arrays)
    for i, (kl, penalty) in enumerate(kl_constraints):
        axes = [*examples, f"A{i}"] if penalty.per_dimension else examples
        declared |= {
            f"kl_{i}[{','.join(axes)}]": kl,
            f"alpha_{i}[*]|[]": penalty.alpha,
            f"epsilon_{i}[]:scalar": penalty.epsilon,
        }
    every = promoted(declared)
    own, rest = every[: len(arrays)], every[len(arrays) :]
    constraints = [
        (kl, dataclasses.replace(penalty, alpha=alpha, epsilon=epsilon))
        for (_, penalty), kl, alpha, epsilon in zip(
            kl_constraints, rest[::3], rest[1::3], rest[2::3], strict=True
        )
    ]
    for i, (kl, penalty) in enumerate(constraints):
        _broadcast(f"alpha_{i}", jnp.asarray(penalty.alpha), jnp.shape(kl))
    return own, constraints
