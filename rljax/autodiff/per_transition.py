"""Gradients of one transition each: their norms, clipping and statistics.

Every `loss_fn(params, transition)` is the loss of one transition, a scalar; `batch` is
a tree of transitions with a leading axis B.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.typing import ArrayLike

from rljax._varying import varying
from rljax.autodiff import _factored
from rljax.autodiff._checks import floats

P = TypeVar("P")  # parameters, a tree of floating arrays
E = TypeVar("E")  # one transition, any tree; with a leading axis B a batch of them
T = TypeVar("T")  # any tree
TransitionLoss = Callable[[P, E], jax.Array]  # (params, transition) -> []
NormMethod = Literal["auto", "factored", "vmap"]
_GUARDED = jax.make_user_context(None)


def per_transition_grads(loss_fn: TransitionLoss[P, E], params: P, batch: E) -> P:
    r"""Gradient of each transition's loss.

    .. math:: g_i = \nabla_\theta L(\theta, x_i)

    Args:
      loss_fn: `(params, transition) -> []`, the loss of one transition.
      params: tree of floating arrays.
      batch: tree of `[B, ...]`.

    Returns:
      Tree as `params`, leaves `[B, ...]`: B times the memory of the parameters.

    Raises:
      ValueError: unfit `loss_fn`, `params` or `batch`; batch normalisation.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import per_transition_grads
      >>> def loss_fn(w, x):
      ...     return 0.5 * jnp.dot(w, x) ** 2
      >>> per_transition_grads(loss_fn, jnp.ones(2), jnp.array([[1.0, 2], [0, 1]]))
      Array([[3., 6.],
             [0., 1.]], dtype=float32)

    References:
      Goodfellow (2015), https://arxiv.org/abs/1510.01799
    """
    params, batch, _ = _checked(loss_fn, params, batch)
    return jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, batch)


def per_transition_grad_norms(
    loss_fn: TransitionLoss[P, E],
    params: P,
    batch: E,
    *,
    method: NormMethod = "auto",
    chunk_size: int | None = None,
) -> jax.Array:
    r"""Euclidean norm of the gradient of each transition's loss.

    .. math:: n_i = \|\nabla_\theta L(\theta, x_i)\|_2

    The weight of a linear layer with input :math:`a_{it}` and output gradient
    :math:`\delta_{it}`, at positions t, has the gradient
    :math:`\sum_t a_{it} \delta_{it}^\top`. For one position its norm is
    :math:`\|a_i\| \|\delta_i\|`. For T positions, whether of a convolution, of a time
    axis or of a layer applied several times, its square is
    :math:`\sum_{ts} (a_{it}^\top a_{is}) (\delta_{it}^\top \delta_{is})`, used where
    :math:`2 T^2` is less than the size of the weight. So the gradients themselves are
    not formed, and one backward pass to the layers' outputs serves all transitions.

    All parameters that enter by products of matrices, convolutions, scales, biases and
    look-ups are covered, whatever module does it: linen's Dense, DenseGeneral, Conv,
    LayerNorm, GroupNorm, RMSNorm, Embed and attention; vmapped, nested and repeated
    ones, also inside `lax.platform_dependent`. Parameters used in any other way, or
    inside `lax.scan`, `cond` and `remat`, are not. The norm is 0, with derivative 0,
    where the gradient is exactly 0. Where three uses of one weight or more cancel
    almost entirely, float32 leaves an error of about 3e-4 of one use's norm; "vmap"
    does not.

    Args:
      loss_fn: `(params, transition) -> []`, the loss of one transition.
      params: tree of floating arrays.
      batch: tree of `[B, ...]`.
      method: "factored" as above, an error if a parameter is not covered; "auto" takes
        the gradients of just those parameters as they are; "vmap" of all.
      chunk_size: transitions at a time, for less memory; None: all.

    Returns:
      `[B]`, differentiable.

    Raises:
      ValueError: unfit `loss_fn`, `params`, `batch`, `method` or `chunk_size`; a
        parameter that "factored" does not cover; batch normalisation.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import per_transition_grad_norms
      >>> def loss_fn(params, x):
      ...     return jnp.sum((x @ params["w"]) ** 2) / 2
      >>> params, x = {"w": jnp.eye(2)}, jnp.array([[3.0, 4.0], [0.0, 0.0]])
      >>> per_transition_grad_norms(loss_fn, params, x)
      Array([25.,  0.], dtype=float32)

    References:
      Goodfellow (2015), https://arxiv.org/abs/1510.01799
      Li et al. (2022), section 4, https://arxiv.org/abs/2110.05679
      Bu et al. (2022), https://arxiv.org/abs/2205.10683
    """
    if method not in get_args(NormMethod):
        raise ValueError(f"method={method!r}, expected one of {get_args(NormMethod)}")
    whole = isinstance(chunk_size, int) and not isinstance(chunk_size, bool)
    if chunk_size is not None and not (whole and chunk_size > 0):
        raise ValueError(f"chunk_size={chunk_size!r}, expected a positive int or None")
    params, batch, transition = _checked(loss_fn, params, batch)
    leaves = jax.tree.leaves(params)

    def each(norm: Callable[[E], jax.Array]) -> jax.Array:
        if chunk_size is None:
            return jax.vmap(norm)(batch)
        return jax.lax.map(norm, batch, batch_size=chunk_size)

    def of_gradient(transition: E) -> jax.Array:
        grads = jax.grad(loss_fn)(params, transition)
        return _root(_squared_norm(grads))

    def factored(traced: _factored.Trace) -> jax.Array:
        if method == "factored" and traced.loose:
            raise ValueError(f"method='factored' but {_uncovered(traced, params)}")

        def norm(transition: E) -> jax.Array:
            _, parts = _factored.backward(traced, leaves, transition)
            return _norm(traced, leaves, parts)

        return each(norm)

    if method == "vmap":
        return each(of_gradient)
    return _factored.by_platform(
        factored, loss_fn, params=params, transition=transition
    )


def value_and_grad_with_norms(
    loss_fn: TransitionLoss[P, E],
    params: P,
    batch: E,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, P, jax.Array]:
    r"""Losses, gradient of their weighted mean and norms, from one backward pass.

    .. math:: \Big(L_i,\; \tfrac{1}{B} \sum_i w_i g_i,\; \|g_i\|\Big),
        \quad g_i = \nabla_\theta L(\theta, x_i)

    Args:
      loss_fn: `(params, transition) -> []`, the loss of one transition.
      params: tree of floating arrays.
      batch: tree of `[B, ...]`.
      weights: `[B]`, for example of importance sampling; None: all 1.

    Returns:
      Losses `[B]`, not weighted; a tree as `params`; norms `[B]`, not weighted.

    Raises:
      ValueError: unfit `loss_fn`, `params`, `batch` or `weights`; batch normalisation.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import value_and_grad_with_norms
      >>> def loss_fn(w, x):
      ...     return 0.5 * jnp.dot(w, x) ** 2
      >>> x = jnp.array([[3.0, 4.0], [0.0, 1.0]])
      >>> losses, gradient, norms = value_and_grad_with_norms(loss_fn, jnp.ones(2), x)
      >>> losses
      Array([24.5,  0.5], dtype=float32)
      >>> gradient
      Array([10.5, 14.5], dtype=float32)
      >>> norms
      Array([35.,  1.], dtype=float32)

    References:
      Goodfellow (2015), https://arxiv.org/abs/1510.01799
      Katharopoulos and Fleuret (2018), eq. 6, https://arxiv.org/abs/1803.00942
    """
    params, batch, transition = _checked(loss_fn, params, batch)
    if weights is not None:
        weights = jnp.asarray(weights)
        size = len(jax.tree.leaves(batch)[0])
        if weights.shape != (size,):
            raise ValueError(f"weights of shape {weights.shape}, expected ({size},)")
    return _one_pass(
        loss_fn, params, batch, transition=transition, weigh=lambda norms: weights
    )


def clipped_mean_grad(
    loss_fn: TransitionLoss[P, E], params: P, batch: E, max_norm: ArrayLike
) -> tuple[jax.Array, P, jax.Array]:
    r"""Mean of the transitions' gradients, each clipped to a norm of its own.

    .. math:: \frac{1}{B} \sum_i g_i \min\Big(1, \frac{c}{\|g_i\|}\Big)

    No single transition moves the parameters further than `max_norm / B` times the
    learning rate. One backward pass; the gradients of covered parameters are not
    formed (see `per_transition_grad_norms`).

    Args:
      loss_fn: `(params, transition) -> []`, the loss of one transition.
      params: tree of floating arrays.
      batch: tree of `[B, ...]`.
      max_norm: `[]` positive, c.

    Returns:
      Losses `[B]`; the clipped mean, a tree as `params`; norms `[B]` before clipping.

    Raises:
      ValueError: unfit `loss_fn`, `params`, `batch` or `max_norm`; batch normalisation.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import clipped_mean_grad
      >>> x = jnp.array([[3.0, 4.0], [0.0, 1.0]])
      >>> clipped_mean_grad(jnp.dot, jnp.ones(2), x, max_norm=2.5)[1]
      Array([0.75, 1.5 ], dtype=float32)

    References:
      Abadi et al. (2016), algorithm 1, https://arxiv.org/abs/1607.00133
    """
    params, batch, transition = _checked(loss_fn, params, batch)
    bound = jnp.asarray(max_norm)
    if bound.ndim or not (isinstance(bound, Tracer) or bound > 0):
        raise ValueError(f"max_norm={max_norm}, expected a positive scalar")

    def weights(norms: jax.Array) -> jax.Array:
        over = norms > max_norm
        return jnp.where(over, max_norm / jnp.where(over, norms, 1.0), 1.0)

    return _one_pass(loss_fn, params, batch, transition=transition, weigh=weights)


class GradientStatistics(NamedTuple):
    """Statistics of the distribution that a batch's gradients come from; all `[]`."""

    mean_squared_norm: jax.Array
    """Estimate of the squared norm of the true mean gradient; can be negative."""
    covariance_trace: jax.Array
    """Estimate of the trace of the covariance of one transition's gradient."""
    signal_to_noise: jax.Array
    """Norm of the batch's gradient over the standard deviation of one transition's."""
    noise_scale: jax.Array
    """Batch size at which noise and signal are equal; inf if no signal is seen."""


def gradient_statistics(norms: jax.Array, mean_grad: object) -> GradientStatistics:
    r"""Signal-to-noise ratio and noise scale of a batch's gradients.

    .. math::
        |G|^2 = \frac{B \|\bar g\|^2 - \overline{\|g\|^2}}{B - 1}, \quad
        \mathrm{tr}\,\Sigma = \frac{\overline{\|g\|^2} - \|\bar g\|^2}{1 - 1 / B}, \quad
        \mathrm{SNR} = \frac{\|\bar g\|}{\sqrt{\mathrm{tr}\,\Sigma}}, \quad
        \mathcal{B} = \frac{\mathrm{tr}\,\Sigma}{|G|^2}

    Both estimates are unbiased, the two ratios are not: average the estimates over
    updates before dividing.

    The trace is a difference of squares, the nearer to each other the less noise there
    is: in float32 its relative error is about 1e-7 SNR^2, 0.1 % for an SNR of 100. From
    about 1000 on it is rounding, and so are the SNR and the noise scale. What is exact
    there needs the gradients themselves: their variances, summed.

    Args:
      norms: `[B]`, B >= 2, norms of the transitions' gradients.
      mean_grad: tree, the mean of the same gradients, without weights.

    Returns:
      The four numbers.

    Raises:
      ValueError: norms not `[B]`, or B < 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import gradient_statistics
      >>> grads = jnp.array([[1.0, 2.0], [1.0, -1.0]])
      >>> norms = jnp.linalg.norm(grads, axis=1)
      >>> gradient_statistics(norms, grads.mean(axis=0)).covariance_trace
      Array(4.5, dtype=float32)

    References:
      McCandlish et al. (2018), eq. 2.9 and appendix A.1,
      https://arxiv.org/abs/1812.06162
    """
    norms = jnp.asarray(norms)
    if norms.ndim != 1 or len(norms) < 2:
        raise ValueError(f"norms of shape {norms.shape}, expected [B] with B >= 2")
    size, square = len(norms), jnp.mean(jnp.square(norms))
    mean_square = _squared_norm(mean_grad)
    trace = jnp.maximum(square - mean_square, 0.0) * size / (size - 1)
    signal = (size * mean_square - square) / (size - 1)
    return GradientStatistics(
        mean_squared_norm=signal,
        covariance_trace=trace,
        signal_to_noise=_ratio(_root(mean_square), _root(trace)),
        noise_scale=_ratio(trace, signal),
    )


def pairwise_cosine(grads: object) -> jax.Array:
    r"""Cosines of the angles between the transitions' gradients.

    .. math:: c_{ij} = \frac{g_i^\top g_j}{\|g_i\| \|g_j\|}

    Args:
      grads: tree of `[B, ...]`, as returned by `per_transition_grads`.

    Returns:
      `[B, B]`; 0 where a gradient is 0.

    Raises:
      ValueError: no leaves, or unequal leading axes.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import pairwise_cosine
      >>> pairwise_cosine(jnp.array([[2.0, 0.0], [-4.0, 0.0], [0.0, 1.0]]))
      Array([[ 1., -1.,  0.],
             [-1.,  1.,  0.],
             [ 0.,  0.,  1.]], dtype=float32)

    References:
      Yu et al. (2020), definition 1, https://arxiv.org/abs/2001.06782
    """
    grads, _ = _checked_batch(grads, "grads")
    rows = [_factored.precise(x.reshape(len(x), -1)) for x in jax.tree.leaves(grads)]
    squares = (jnp.sum(jnp.square(x), axis=1) for x in rows)
    norms = _root(sum(squares, jnp.zeros(len(rows[0]), jnp.float32)))
    inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1.0), 0.0)
    units = [x * inverse[:, None] for x in rows]
    return sum(
        (x @ x.T for x in units), jnp.zeros((len(norms), len(norms)), jnp.float32)
    )


def _one_pass(
    loss_fn: TransitionLoss[P, E],
    params: P,
    batch: E,
    *,
    transition: E,
    weigh: Callable[[jax.Array], jax.Array | None],
) -> tuple[jax.Array, P, jax.Array]:
    """Losses, mean of the gradients weighted by `weigh(norms)`, and norms."""
    leaves, treedef = jax.tree.flatten(params)

    def factored(traced: _factored.Trace) -> tuple[jax.Array, P, jax.Array]:
        def one(transition: E) -> tuple[jax.Array, _factored.Parts, jax.Array]:
            loss, parts = _factored.backward(traced, leaves, transition)
            return loss, parts, _norm(traced, leaves, parts)

        losses, parts, norms = jax.vmap(one)(batch)
        weights = weigh(norms)

        def weighted(x: jax.Array) -> jax.Array:
            if weights is None:  # spares a copy of every layer's output gradients
                return x
            return x * weights.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))

        grads = [jnp.zeros_like(leaf) for leaf in leaves]
        for i, x in parts.loose.items():
            grads[i] = jnp.sum(weighted(x), axis=0)
        uses = zip(traced.uses, parts.others, parts.deltas, strict=True)
        for use, other, delta in uses:
            i, delta = use.leaf, weighted(delta)
            grads[i] += _factored.gradient(use, leaves[i], other=other, delta=delta)
        grads = [grad / len(norms) for grad in grads]
        return losses, jax.tree.unflatten(treedef, grads), norms

    return _factored.by_platform(
        factored, loss_fn, params=params, transition=transition
    )


def _norm(
    traced: _factored.Trace, leaves: list[jax.Array], parts: _factored.Parts
) -> jax.Array:
    """The norm of one transition's gradient by the parts of its backward pass."""
    total = _squared_norm(parts.loose)
    for i, leaf in enumerate(leaves):
        at = [n for n, use in enumerate(traced.uses) if use.leaf == i]
        total += _factored.squared_norm(
            leaf,
            uses=[traced.uses[n] for n in at],
            others=[parts.others[n] for n in at],
            deltas=[parts.deltas[n] for n in at],
        )
    return _root(total)


def _squared_norm(tree: object) -> jax.Array:
    squares = [_factored.squared(x) for x in jax.tree.leaves(tree)]
    return sum(squares, jnp.zeros((), jnp.float32))


def _root(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0; NaN stays NaN."""
    return jnp.where(x == 0, 0.0, jnp.sqrt(jnp.where(x == 0, 1.0, x)))


def _ratio(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x / y`; where y is not positive inf, or 0 if x is 0 too."""
    none = y <= 0
    bound = jnp.where(x > 0, jnp.inf, 0.0)
    return jnp.where(none, bound, x / jnp.where(none, 1.0, y))


def _uncovered(traced: _factored.Trace, params: object) -> str:
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return ", ".join(
        f"params{jax.tree_util.keystr(paths[i])} is used by {name}"
        for i, name in sorted(traced.loose.items())
    )


def _checked(loss_fn: TransitionLoss[P, E], params: P, batch: E) -> tuple[P, E, E]:
    """Make the arguments arrays; return with them one transition's shape and dtype."""
    batch, transition = _checked_batch(batch, "batch")
    params = varying(floats("params", params), transition)

    def guarded(params: P, transition: E) -> jax.Array:
        with nn.intercept_methods(_refuse_batch_statistics):
            return loss_fn(params, transition)

    with _GUARDED("guarded"):  # jitted functions within are traced anew
        out = jax.eval_shape(guarded, params, transition)
    given = jax.tree.leaves(out)
    scalar = len(given) == 1 and given[0] is out and out.shape == ()
    if not (scalar and jnp.issubdtype(out.dtype, jnp.floating)):
        raise ValueError(f"loss_fn returned {out}, expected a floating scalar")
    return params, batch, transition


def _checked_batch(batch: T, name: str) -> tuple[T, T]:
    """Make the batch arrays; return with it shape and dtype of one of its members."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    shapes = {name + jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves}
    sizes = {shape[:1] for shape in shapes.values()}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(f"expected equal leading axes [B, ...], B >= 1, got {shapes}")
    batch = jax.tree.map(jnp.asarray, batch)

    def one(x: jax.Array) -> jax.Array | jax.ShapeDtypeStruct:
        if jax.typeof(x).manual_axis_type.varying:  # a struct cannot say so
            return x[0]
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)

    return batch, jax.tree.map(one, batch)


def _refuse_batch_statistics(
    next_fn: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    context: nn.module.InterceptorContext,
) -> object:
    """Raise ValueError where a batch's statistics enter every transition's loss."""
    module = context.module
    if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
        given = args[1] if args[1:] else kwargs.get("use_running_average")
        if not (module.use_running_average if given is None else given):
            path = "/".join(module.path)
            raise ValueError(
                f"BatchNorm {path!r} uses batch statistics, with which a transition "
                "has no gradient of its own; expected use_running_average=True"
            )
    return next_fn(*args, **kwargs)
