"""Transforms of values with their inverses: squashing functions and two-hot codes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax._shapes import promoted
from rljax.losses._common import checked


@checked("x[...]")
def signed_logp1(x: jax.Array) -> jax.Array:
    r"""Logarithm of 1 + abs(x) with the sign of x.

    .. math:: h(x) = \mathrm{sign}(x) \log(1 + |x|)

    Args:
      x: values; the derivative at 0 is 1.

    Returns:
      The shape of `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import signed_logp1
      >>> signed_logp1(jnp.array([-1.0, 0.0, 1.0]))
      Array([-0.6931472,  0.       ,  0.6931472], dtype=float32)

    References:
      Hafner et al. (2023), "symlog", https://arxiv.org/abs/2301.04104

    Differs from:
      `rlax.signed_logp1` has the derivative 0 at 0.
    """
    return _odd(jnp.log1p, x)


@checked("x[...]")
def signed_expm1(x: jax.Array) -> jax.Array:
    r"""Exponential of abs(x), minus 1, with the sign of x: inverse of `signed_logp1`.

    .. math:: h^{-1}(x) = \mathrm{sign}(x) (e^{|x|} - 1)

    Args:
      x: values; the derivative at 0 is 1.

    Returns:
      The shape of `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import signed_expm1
      >>> signed_expm1(jnp.array([-1.0, 0.0, 1.0]))
      Array([-1.7182817,  0.       ,  1.7182817], dtype=float32)

    References:
      Hafner et al. (2023), "symexp", https://arxiv.org/abs/2301.04104

    Differs from:
      `rlax.signed_expm1` has the derivative 0 at 0.
    """
    return _odd(jnp.expm1, x)


@checked("x[...] eps[]:scalar")
def signed_hyperbolic(x: jax.Array, eps: ArrayLike = 1e-3) -> jax.Array:
    r"""Square root that squashes large values, with the sign of x.

    .. math::
        h(x) = \mathrm{sign}(x) (\sqrt{|x| + 1} - 1) + \epsilon x
        = x \left(\frac{1}{\sqrt{|x| + 1} + 1} + \epsilon\right)

    Args:
      x: values; the derivative at 0 is 1/2 + eps.
      eps: not negative, the slope of the linear part; differentiable.

    Returns:
      The shape of `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import signed_hyperbolic
      >>> signed_hyperbolic(jnp.array([-8.0, 0.0, 3.0]), 0.5)
      Array([-6. ,  0. ,  2.5], dtype=float32)

    References:
      Pohlen et al. (2018), proposition A.2, https://arxiv.org/abs/1805.11593

    Differs from:
      `rlax.signed_hyperbolic` has the derivative eps at 0, and loses small x: in
      float32 it gives eps x for x of 1e-8.
    """
    return x * (1 / (jnp.sqrt(jnp.abs(x) + 1) + 1) + eps)


@checked("x[...] eps[]:scalar")
def signed_parabolic(x: jax.Array, eps: ArrayLike = 1e-3) -> jax.Array:
    r"""Inverse of `signed_hyperbolic`.

    .. math::
        h^{-1}(x) &= \mathrm{sign}(x) \left(\left(
        \frac{\sqrt{1 + 4 \epsilon (|x| + 1 + \epsilon)} - 1}{2 \epsilon}
        \right)^2 - 1\right) \\
        &= x w (2 + |x| w), \qquad
        w = \frac{2}{\sqrt{(1 + 2 \epsilon)^2 + 4 \epsilon |x|} + 1 + 2 \epsilon}

    Args:
      x: values; the derivative at 0 is 1 / (1/2 + eps).
      eps: not negative, the same as in `signed_hyperbolic`; differentiable.

    Returns:
      The shape of `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import signed_parabolic
      >>> signed_parabolic(jnp.array([-6.0, 0.0, 2.5]), 0.5)
      Array([-8.,  0.,  3.], dtype=float32)

    References:
      Pohlen et al. (2018), proposition A.2, https://arxiv.org/abs/1805.11593

    Differs from:
      `rlax.signed_parabolic` computes the first form, which cancels: in float32 it is
      wrong by 40 % at x = 1e-4, and by more below. It has the derivative 0 at 0.
    """
    slope = 1 + 2 * eps
    w = 2 / (jnp.sqrt(slope**2 + 4 * eps * jnp.abs(x)) + slope)
    return x * w * (2 + jnp.abs(x) * w)


@checked("x[...] p[]:scalar")
def power(x: jax.Array, p: ArrayLike) -> jax.Array:
    r"""Power of 1 + abs(x) with the sign of x; `power(., 1 / p)` is the inverse.

    .. math::
        h(x) = \mathrm{sign}(x) \frac{(|x| / \sqrt{p} + 1)^p - 1}{\sqrt{p}}

    Args:
      x: values; the derivative at 0 is 1.
      p: positive; differentiable.

    Returns:
      The shape of `x`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import power
      >>> power(jnp.array([-7.5, 0.0, 7.5]), 0.25)
      Array([-2.,  0.,  2.], dtype=float32)

    References:
      Box and Cox (1964), eq. 1, https://doi.org/10.1111/j.2517-6161.1964.tb00553.x

    Differs from:
      `rlax.power` has the derivative 0 at 0.
    """
    root = jnp.sqrt(p)
    return _odd(lambda y: jnp.expm1(p * jnp.log1p(y / root)) / root, x)


def _odd(f: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The odd function that is `f` for x > 0, where f(0) = 0.

    At 0 the derivative of a maximum is 1/2, so the halves add up to the derivative
    f'(0), and to 0 for the second derivative.
    """
    return f(jnp.maximum(x, 0)) - f(jnp.maximum(-x, 0))


class TxPair(NamedTuple):
    """A transform and its inverse."""

    apply: Callable[[jax.Array], jax.Array]  # from values to learned values
    apply_inv: Callable[[jax.Array], jax.Array]  # and back


IDENTITY_PAIR = TxPair(lambda x: x, lambda x: x)
SIGNED_LOGP1_PAIR = TxPair(signed_logp1, signed_expm1)
SIGNED_HYPERBOLIC_PAIR = TxPair(signed_hyperbolic, signed_parabolic)
HYPERBOLIC_SIN_PAIR = TxPair(jnp.arcsinh, jnp.sinh)
# From a discount to the logarithm of 1 / (1 - discount), its effective horizon.
DISCOUNT_TRANSFORM_PAIR = TxPair(lambda x: -jnp.log1p(-x), lambda x: -jnp.expm1(-x))


def compose_tx(*tx_list: TxPair) -> TxPair:
    r"""Applies transforms one after another, the first one first.

    .. math::
        h = h_n \circ \dots \circ h_1, \qquad
        h^{-1} = h_1^{-1} \circ \dots \circ h_n^{-1}

    Args:
      *tx_list: each a `TxPair`; none of them makes the identity.

    Returns:
      A `TxPair`.

    Raises:
      Errors of the transforms, when they are applied.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import SIGNED_LOGP1_PAIR, TxPair, compose_tx
      >>> double = TxPair(lambda x: 2 * x, lambda x: x / 2)
      >>> tx = compose_tx(double, SIGNED_LOGP1_PAIR)
      >>> tx.apply(jnp.array([0.5])), tx.apply_inv(tx.apply(jnp.array([0.5])))
      (Array([0.6931472], dtype=float32), Array([0.5], dtype=float32))

    References:
      van Hasselt et al. (2019), https://arxiv.org/abs/1907.03687

    Differs from:
      `rlax.compose_tx` is the same.
    """

    def apply(x):
        for tx in tx_list:
            x = tx.apply(x)
        return x

    def apply_inv(x):
        for tx in reversed(tx_list):
            x = tx.apply_inv(x)
        return x

    return TxPair(apply, apply_inv)


@checked("scalar[...]")
def transform_to_2hot(
    scalar: jax.Array, min_value: float, max_value: float, num_bins: int
) -> jax.Array:
    r"""Scalars as probabilities of the two nearest of evenly spaced bins.

    .. math::
        p_i = \max(0, 1 - |x - z_i| / \Delta), \qquad
        z_i = z_0 + i \Delta, \quad \sum_i p_i z_i = x

    Args:
      scalar: values, clipped to the range of the bins. The derivative is exact
        between bins, belongs to the bins above at a bin, and is 0 where the value is
        clipped.

    Returns:
      `[..., num_bins]` probabilities, at most two of which are not 0.

    Raises:
      ValueError: fewer than 2 bins, or an empty range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import transform_to_2hot
      >>> transform_to_2hot(jnp.array([0.5, 7.0]), -2.0, 2.0, 3)
      Array([[0.  , 0.75, 0.25],
             [0.  , 0.  , 1.  ]], dtype=float32)

    References:
      Schrittwieser et al. (2020), appendix F, https://arxiv.org/abs/1911.08265

    Differs from:
      `rlax.transform_to_2hot` divides by a bin's width plus 1e-5, so its mean is not
      the scalar.
    """
    _check_bins(min_value, max_value, num_bins)
    position = (scalar - min_value) * ((num_bins - 1) / (max_value - min_value))
    position = jnp.clip(position, 0, num_bins - 1)
    lower = jnp.minimum(jnp.floor(position), num_bins - 2)
    return _two_hot(lower.astype(int), position - lower, num_bins)


@checked("probs[...,N]")
def transform_from_2hot(
    probs: jax.Array, min_value: float, max_value: float, num_bins: int
) -> jax.Array:
    r"""Means of probabilities over evenly spaced bins: inverse of `transform_to_2hot`.

    .. math:: x = \sum_i p_i z_i, \qquad z_i = z_0 + i \Delta

    Args:
      probs: probabilities of the bins: N is `num_bins`.

    Returns:
      `[...]` scalars.

    Raises:
      ValueError: fewer than 2 bins, or an empty range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import transform_from_2hot
      >>> transform_from_2hot(jnp.array([0.25, 0.0, 0.75]), -2.0, 2.0, 3)
      Array(1., dtype=float32)

    References:
      Schrittwieser et al. (2020), appendix F, https://arxiv.org/abs/1911.08265

    Differs from:
      `rlax.transform_from_2hot` returns `[1]` for `probs[num_bins]`.
    """
    _check_bins(min_value, max_value, num_bins)
    bins = jnp.linspace(min_value, max_value, num_bins, dtype=probs.dtype)
    return _mean(probs, bins)


def twohot_pair(min_value: float, max_value: float, num_bins: int) -> TxPair:
    r"""`transform_to_2hot` and `transform_from_2hot` over the same bins.

    .. math::
        h(x)_i = \max(0,\; 1 - |x - z_i| / \Delta), \qquad
        h^{-1}(p) = \sum_i p_i z_i

    Args:
      min_value: the first bin.
      max_value: the last bin, greater.
      num_bins: at least 2.

    Returns:
      A `TxPair` from `[...]` to `[..., num_bins]`.

    Raises:
      ValueError: fewer than 2 bins, or an empty range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import twohot_pair
      >>> twohot_pair(-2.0, 2.0, 3).apply(jnp.array(1.0))
      Array([0. , 0.5, 0.5], dtype=float32)

    References:
      Schrittwieser et al. (2020), appendix F, https://arxiv.org/abs/1911.08265

    Differs from:
      `rlax.twohot_pair` takes any number of bins: see `transform_to_2hot`.
    """
    _check_bins(min_value, max_value, num_bins)
    bins = {"min_value": min_value, "max_value": max_value, "num_bins": num_bins}
    return TxPair(
        functools.partial(transform_to_2hot, **bins),
        functools.partial(transform_from_2hot, **bins),
    )


def muzero_pair(
    min_value: float, max_value: float, num_bins: int, tx: TxPair
) -> TxPair:
    r"""Squashes values and codes them over evenly spaced bins.

    .. math:: h(x) = \mathrm{twohot}(g(x)), \qquad h^{-1}(p) = g^{-1}(\sum_i p_i z_i)

    The mean is taken in the squashed space: the value of a mixture of codes is not
    the mixture of their values. `unbiased_transform_pair` has no such bias.

    Args:
      min_value: the first bin, in the squashed space.
      max_value: the last bin, greater.
      num_bins: at least 2.
      tx: the squashing function, for instance `SIGNED_HYPERBOLIC_PAIR`.

    Returns:
      A `TxPair` from `[...]` to `[..., num_bins]`.

    Raises:
      ValueError: fewer than 2 bins, or an empty range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import TxPair, muzero_pair
      >>> root = TxPair(jnp.sqrt, jnp.square)
      >>> muzero_pair(0.0, 4.0, 3, root).apply(jnp.array(9.0))
      Array([0. , 0.5, 0.5], dtype=float32)

    References:
      Schrittwieser et al. (2020), appendix F, https://arxiv.org/abs/1911.08265

    Differs from:
      `rlax.muzero_pair`: as `twohot_pair`.
    """
    return compose_tx(tx, twohot_pair(min_value, max_value, num_bins))


def unbiased_transform_pair(
    min_value: float, max_value: float, num_bins: int, tx: TxPair
) -> TxPair:
    r"""Codes values over bins that are evenly spaced in a squashed space.

    .. math:: h^{-1}(p) = \sum_i p_i\, g^{-1}(z_i)

    The bins are mapped back and values coded between them, so the value of a mixture
    of codes is the mixture of their values.

    Args:
      min_value: the first bin, in the squashed space.
      max_value: the last bin, greater.
      num_bins: at least 2.
      tx: the squashing function, increasing, for instance `SIGNED_LOGP1_PAIR`.

    Returns:
      A `TxPair` from `[...]` to `[..., num_bins]`.

    Raises:
      ValueError: fewer than 2 bins, or an empty range.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.losses import TxPair, unbiased_transform_pair
      >>> root = TxPair(jnp.sqrt, jnp.square)
      >>> unbiased_transform_pair(0.0, 4.0, 3, root).apply(jnp.array(7.0))
      Array([0.  , 0.75, 0.25], dtype=float32)

    References:
      Hafner et al. (2023), "symexp twohot", https://arxiv.org/abs/2301.04104

    Differs from:
      `rlax.unbiased_transform_pair` makes its bins in the default type, once.
    """
    _check_bins(min_value, max_value, num_bins)

    def bins(x):  # of the values' type
        z = jnp.linspace(min_value, max_value, num_bins, dtype=jnp.result_type(x))
        return tx.apply_inv(z)

    def apply(x):
        (x,) = promoted({"x[...]": x})
        z = bins(x)
        x = jnp.clip(x, z[0], z[-1])
        lower = jnp.clip(jnp.searchsorted(z, x, side="right") - 1, 0, num_bins - 2)
        return _two_hot(lower, (x - z[lower]) / (z[lower + 1] - z[lower]), num_bins)

    def apply_inv(probs):
        (probs,) = promoted({"probs[...,N]": probs})
        return _mean(probs, bins(probs))

    return TxPair(apply, apply_inv)


def _check_bins(min_value: float, max_value: float, num_bins: int) -> None:
    if num_bins < 2:
        raise ValueError(f"num_bins={num_bins}: must be >= 2")
    if not min_value < max_value:
        raise ValueError(f"min_value={min_value}: must be < max_value={max_value}")


def _two_hot(lower: jax.Array, share: jax.Array, num_bins: int) -> jax.Array:
    """`share` of the probability in the bin after `lower`, the rest in `lower`."""
    one, two = (
        jax.nn.one_hot(bin_, num_bins, dtype=share.dtype) for bin_ in (lower, lower + 1)
    )
    share = share[..., None]
    return one * (1 - share) + two * share


def _mean(probs: jax.Array, bins: jax.Array) -> jax.Array:
    chex.assert_axis_dimension(
        probs, -1, len(bins), custom_message=f"probs {probs.shape}"
    )
    return jnp.sum(probs * jnp.broadcast_to(bins, probs.shape), axis=-1)
