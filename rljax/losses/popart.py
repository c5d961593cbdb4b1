"""PopArt: values learned in normalised units, outputs preserved as the units move."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax._shapes import promoted
from rljax.losses._common import AxisName, chosen
from rljax.losses.basic import batched_index

LinearParams = Mapping[str, jax.Array]  # of one layer: a kernel and a bias


class PopArtState(NamedTuple):
    """Statistics of the targets of every output."""

    shift: jax.Array  # [N] means
    scale: jax.Array  # [N] standard deviations, bounded
    variance: jax.Array  # [N] the square of the scale before it is bounded

    @property
    def second_moment(self) -> jax.Array:
        """`[N]` means of the squares."""
        return self.variance + self.shift**2


class PopArtOutput(NamedTuple):
    """The outputs that were asked for."""

    normalized: jax.Array
    unnormalized: jax.Array


def popart(
    num_outputs: int,
    step_size: ArrayLike,
    scale_lb: float,
    scale_ub: float,
    axis_name: AxisName = None,
) -> tuple[
    Callable[[], PopArtState],
    Callable[
        [LinearParams, PopArtState, jax.Array, jax.Array],
        tuple[dict[str, jax.Array], PopArtState],
    ],
]:
    r"""PopArt for a linear layer: `art` and `pop` together.

    .. math::
        y = \sigma (W x + b) + \mu, \text{ unchanged while }
        (\mu, \sigma) \text{ follow the targets}

    Args:
      num_outputs: outputs of the layer, each with statistics of its own; one for each
        task, for instance.
      step_size: `[]` as in `art`.
      scale_lb: as in `art`.
      scale_ub: as in `art`.
      axis_name: as in `art`.

    Returns:
      `init() -> state`, and `update(params, state, targets, indices) -> (params,
      state)`, with the layer's `params` as in `pop`, the others as in `art`.

    Raises:
      ValueError: no outputs, bounds that are not 0 < scale_lb <= scale_ub; when
        updating, unknown names of parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import popart
      >>> init, update = popart(2, step_size=0.5, scale_lb=0.5, scale_ub=10.0)
      >>> params = {"kernel": jnp.array([[1.0, 1.0]]), "bias": jnp.array([0.0, 3.0])}
      >>> targets, indices = jnp.array([4.0]), jnp.array([0])
      >>> params, state = update(params, init(), targets, indices)
      >>> state.shift, state.scale
      (Array([2., 0.], dtype=float32), Array([2.1213202, 1.       ], dtype=float32))
      >>> params["bias"] * state.scale + state.shift
      Array([0., 3.], dtype=float32)

    References:
      van Hasselt et al. (2016), https://arxiv.org/abs/1602.07714
      Hessel et al. (2018), https://arxiv.org/abs/1809.04474

    Differs from:
      `rlax.popart` knows parameters named "w" and "b" only, and stops the statistics.
    """
    if num_outputs < 1:
        raise ValueError(f"num_outputs={num_outputs}: must be >= 1")
    _check_bounds(scale_lb, scale_ub)

    def init() -> PopArtState:
        zeros, ones = jnp.zeros(num_outputs), jnp.ones(num_outputs)
        return PopArtState(shift=zeros, scale=ones, variance=ones)

    def update(
        params: LinearParams, state: PopArtState, targets: jax.Array, indices: jax.Array
    ) -> tuple[dict[str, jax.Array], PopArtState]:
        new = art(
            state,
            targets,
            indices,
            step_size=step_size,
            scale_lb=scale_lb,
            scale_ub=scale_ub,
            axis_name=axis_name,
        )
        return pop(params, state, new), new

    return init, update


def art(
    state: PopArtState,
    targets: jax.Array,
    indices: jax.Array,
    step_size: ArrayLike,
    scale_lb: float,
    scale_ub: float,
    axis_name: AxisName = None,
) -> PopArtState:
    r"""Moves the statistics towards new targets: "adaptively rescale targets".

    .. math::
        \mu_i &\leftarrow \mu_i + \beta \sum_{j: k_j = i} (G_j - \mu_i), \qquad
        \nu_i \leftarrow \nu_i + \beta \sum_{j: k_j = i} (G_j^2 - \nu_i) \\
        \sigma_i &= \sqrt{\mathrm{clip}(\nu_i - \mu_i^2, l^2, u^2)}

    The state holds the variance :math:`\nu_i - \mu_i^2` itself, and it moves by a form
    of the rule in which nothing cancels: however far the targets are from 0, for their
    spread, the scale is as exact as the targets are.

    Every target moves the statistics, so keep `step_size` times the number of targets
    of an output below 1. Nothing is stopped here: a gradient reaches `targets` and
    `step_size`.

    Args:
      state: the statistics so far, `[N]`.
      targets: any shape, unnormalised.
      indices: the shape of `targets`, int, the output that each target belongs to;
        outside [0, N) it moves nothing.
      step_size: `[]` in (0, 1); differentiable.
      scale_lb: the least scale, positive; a Python float.
      scale_ub: the greatest; a Python float.
      axis_name: mapped axis or axes (`jax.vmap`, `jax.shard_map`) that hold further
        targets; the statistics are then the same along them.

    Returns:
      The new statistics, of the dtype of the old ones.

    Raises:
      ValueError: bounds that are not 0 < scale_lb <= scale_ub.
      AssertionError: shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import PopArtState, art
      >>> state = PopArtState(jnp.zeros(1), scale=jnp.ones(1), variance=jnp.ones(1))
      >>> art(state, jnp.array([2.0]), jnp.array([0]), 0.5, 0.1, 10.0)[:2]
      (Array([1.], dtype=float32), Array([1.2247449], dtype=float32))

    References:
      van Hasselt et al. (2016), section 2.2, https://arxiv.org/abs/1602.07714

    Differs from:
      `rlax.art` stops the gradient of the statistics, takes integer targets, and keeps
      the second moment: in float32 its scale is rounding where the mean is 1000 times
      the spread.
    """
    _check_bounds(scale_lb, scale_ub)
    shift, variance, targets, indices, step_size = promoted(
        {
            "shift[N]": state.shift,
            "variance[N]": state.variance,
            "targets[...]": targets,
            "indices[...]:int": indices,
            "step_size[]:scalar": step_size,
        }
    )
    indices = indices.reshape(-1, 1)
    own = indices == jnp.arange(len(shift))[None]
    errors = jnp.where(own, targets.reshape(-1, 1) - shift[None], 0)

    def total(x: jax.Array) -> jax.Array:
        x = jnp.sum(x, axis=0, where=own)
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    count, error = total(jnp.ones_like(errors)), total(errors)
    mean = error / jnp.maximum(count, 1)
    weight = step_size * count
    within = step_size * total((errors - mean[None]) ** 2)
    variance = (1 - weight) * (variance + weight * mean**2) + within
    new = PopArtState(
        shift=shift + step_size * error,
        scale=jnp.sqrt(jnp.clip(variance, scale_lb**2, scale_ub**2)),
        variance=variance,
    )
    return jax.tree.map(lambda x, old: x.astype(jnp.result_type(old)), new, state)


def pop(
    params: LinearParams, old: PopArtState, new: PopArtState
) -> dict[str, jax.Array]:
    r"""Parameters that preserve a linear layer's unnormalised outputs.

    .. math::
        w_i \leftarrow \frac{\sigma_i}{\sigma'_i} w_i, \qquad
        b_i \leftarrow \frac{\sigma_i b_i + \mu_i - \mu'_i}{\sigma'_i}

    Args:
      params: of the layer: "kernel" `[..., N]` and "bias" `[N]` (flax's names), or "w"
        and "b" (Haiku's).
      old: statistics that `params` were learned with.
      new: statistics that they are to be used with.

    Returns:
      The new parameters, by the same names and of their dtypes.

    Raises:
      ValueError: other names.
      AssertionError: shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import PopArtState, pop
      >>> old = PopArtState(jnp.array([1.0]), jnp.array([2.0]), jnp.array([4.0]))
      >>> new = PopArtState(jnp.array([3.0]), jnp.array([4.0]), jnp.array([16.0]))
      >>> pop({"w": jnp.array([[8.0]]), "b": jnp.array([3.0])}, old, new)
      {'w': Array([[4.]], dtype=float32), 'b': Array([1.], dtype=float32)}

    References:
      van Hasselt et al. (2016), proposition 1, https://arxiv.org/abs/1602.07714

    Differs from:
      `rlax.pop` knows "w" and "b" only.
    """
    names = next((n for n in (("kernel", "bias"), ("w", "b")) if {*n} == {*params}), ())
    if not names:
        raise ValueError(
            f"params has the keys {sorted(params)}: expected 'kernel' and 'bias', or "
            "'w' and 'b'"
        )
    weight_name, bias_name = names
    weight, bias, old_shift, old_scale, new_shift, new_scale = promoted(
        {
            "weight[...,N]": params[weight_name],
            "bias[N]": params[bias_name],
            "old_shift[N]": old.shift,
            "old_scale[N]": old.scale,
            "new_shift[N]": new.shift,
            "new_scale[N]": new.scale,
        }
    )
    weight = weight * jnp.broadcast_to(old_scale / new_scale, weight.shape)
    bias = (old_scale * bias + old_shift - new_shift) / new_scale
    return {
        name: x.astype(jnp.result_type(params[name]))
        for name, x in ((weight_name, weight), (bias_name, bias))
    }


def normalize(
    state: PopArtState, unnormalized: jax.Array, indices: jax.Array
) -> jax.Array:
    r"""Targets in units that a network learns in.

    .. math:: (x_j - \mu_{k_j}) / \sigma_{k_j}

    Args:
      state: statistics, `[N]`.
      unnormalized: any shape.
      indices: the shape of `unnormalized`, int in [0, N), the output that each element
        belongs to; outside, the result is NaN.

    Returns:
      The shape of `unnormalized`.

    Raises:
      AssertionError: shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import PopArtState, normalize
      >>> state = PopArtState(jnp.array([1.0]), jnp.array([2.0]), jnp.array([4.0]))
      >>> normalize(state, jnp.array([5.0]), jnp.array([0]))
      Array([2.], dtype=float32)

    References:
      van Hasselt et al. (2016), section 2, https://arxiv.org/abs/1602.07714

    Differs from:
      `rlax.normalize` takes an index out of range for the nearest one.
    """
    unnormalized, shift, scale = _select(state, "unnormalized", unnormalized, indices)
    return (unnormalized - shift) / scale


def unnormalize(
    state: PopArtState, normalized: jax.Array, indices: jax.Array
) -> jax.Array:
    r"""Outputs of a network in the units of the targets.

    .. math:: \sigma_{k_j} y_j + \mu_{k_j}

    Args:
      state: statistics, `[N]`.
      normalized: any shape.
      indices: the shape of `normalized`, int in [0, N), the output that each element
        belongs to; outside, the result is NaN.

    Returns:
      The shape of `normalized`.

    Raises:
      AssertionError: shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import PopArtState, unnormalize
      >>> state = PopArtState(jnp.array([1.0]), jnp.array([2.0]), jnp.array([4.0]))
      >>> unnormalize(state, jnp.array([2.0]), jnp.array([0]))
      Array([5.], dtype=float32)

    References:
      van Hasselt et al. (2016), section 2, https://arxiv.org/abs/1602.07714

    Differs from:
      `rlax.unnormalize` takes an index out of range for the nearest one.
    """
    normalized, shift, scale = _select(state, "normalized", normalized, indices)
    return scale * normalized + shift


def unnormalize_linear(
    state: PopArtState, inputs: jax.Array, indices: jax.Array
) -> PopArtOutput:
    r"""One output of a linear layer for each index, in both units.

    .. math:: (y_{j k_j},\; \sigma_{k_j} y_{j k_j} + \mu_{k_j})

    Args:
      state: statistics, `[N]`.
      inputs: `[..., N]` outputs of the layer, normalised.
      indices: `[...]` int in [0, N), the output to be used; outside, the result is NaN.

    Returns:
      `normalized` and `unnormalized`, `[...]` each.

    Raises:
      AssertionError: shape or dtype, at trace time.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import PopArtState, unnormalize_linear
      >>> shift, scale = jnp.array([1.0, 0.0]), jnp.array([2.0, 1.0])
      >>> state = PopArtState(shift, scale, scale**2)
      >>> unnormalize_linear(state, jnp.array([3.0, 4.0]), jnp.array(0)).unnormalized
      Array(7., dtype=float32)

    References:
      Hessel et al. (2018), https://arxiv.org/abs/1809.04474

    Differs from:
      `rlax.unnormalize_linear` takes an index out of range for the nearest one.
    """
    chex.assert_axis_dimension(
        inputs, -1, len(state.shift), custom_message=f"inputs {inputs.shape}"
    )
    normalized = batched_index(inputs, indices)
    return PopArtOutput(
        normalized=normalized, unnormalized=unnormalize(state, normalized, indices)
    )


def _check_bounds(scale_lb: float, scale_ub: float) -> None:
    if not 0 < scale_lb <= scale_ub:
        raise ValueError(
            f"scale_lb={scale_lb}, scale_ub={scale_ub}: "
            "must be 0 < scale_lb <= scale_ub"
        )


def _select(
    state: PopArtState, name: str, x: jax.Array, indices: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The argument `name`, and the shift and the scale of each of its elements."""
    shift, scale, x, indices = promoted(
        {
            "shift[N]": state.shift,
            "scale[N]": state.scale,
            f"{name}[...]": x,
            "indices[...]:int": indices,
        }
    )
    return x, chosen(shift, indices), chosen(scale, indices)
