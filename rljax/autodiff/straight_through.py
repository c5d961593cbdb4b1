"""Hard values with the gradients of soft ones.

Bengio et al. (2013), https://arxiv.org/abs/1308.3432.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def straight_through(hard: jax.Array, soft: jax.Array) -> jax.Array:
    r"""The hard value, through which gradients flow as if it were the soft one.

    .. math:: y = \text{soft} + \text{stop}(\text{hard} - \text{soft})

    in exact arithmetic. In floating point that sum rounds, and an infinite `soft`
    makes it NaN. Here `hard` comes back untouched, bit for bit, whatever `soft` is.

    Args:
      hard: any shape, floating: the value. Its own gradient is stopped.
      soft: the shape and dtype of `hard`: the gradient, of every order, in forward and
        in reverse mode.

    Returns:
      `hard`

    Raises:
      ValueError: shapes or dtypes differ, or are not floating.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import straight_through
      >>> def step(x):
      ...     return straight_through(jnp.where(x > 0, 1.0, 0.0), jax.nn.sigmoid(x))
      >>> float(step(2.0)), float(jax.grad(step)(0.0))
      (1.0, 0.25)

    References:
      Bengio et al. (2013), https://arxiv.org/abs/1308.3432
    """
    _check_floating(hard=hard, soft=soft)
    hard_type, soft_type = jax.typeof(hard), jax.typeof(soft)
    if (hard_type.shape, hard_type.dtype) != (soft_type.shape, soft_type.dtype):
        raise ValueError(
            "hard and soft need one shape and dtype, "
            f"got {hard_type.str_short()} and {soft_type.str_short()}"
        )
    return _hard(jax.lax.stop_gradient(hard), soft)


@jax.custom_jvp
def _hard(hard, soft):
    del soft
    return hard


# Not `hard + (soft - stop_gradient(soft))`: adding the zero loses -0.0 and subnormal
# numbers, and the bracket is NaN where soft is infinite.
_hard.defjvps(None, lambda soft_dot, out, hard, soft: soft_dot)


def categorical_straight_through(key: jax.Array, logits: jax.Array) -> jax.Array:
    r"""A one-hot sample with the gradient of the probabilities.

    .. math:: y = \text{one-hot}(a), \; a \sim \pi = \text{softmax}(\text{logits}),
        \qquad \partial y = \partial \pi

    The gradient of `f(y)` is unbiased if `f` is linear, and biased otherwise.

    Args:
      key: `[]` typed key, consumed here.
      logits: `[..., A]`; -inf for an action that is never taken.

    Returns:
      `[..., A]` one-hot.

    Raises:
      ValueError: `logits` is not floating or has no axis.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import categorical_straight_through
      >>> logits, q = jnp.zeros(2), jnp.array([0.0, 4.0])
      >>> jax.grad(lambda x: q @ categorical_straight_through(jax.random.key(0), x))(
      ...     logits
      ... )
      Array([-1.,  1.], dtype=float32)

    References:
      Bengio et al. (2013), https://arxiv.org/abs/1308.3432
      Hafner et al. (2021), algorithm 1, https://arxiv.org/abs/2010.02193
    """
    _check_logits(logits)
    a = jax.random.categorical(key, logits)
    hard = jax.nn.one_hot(a, logits.shape[-1], dtype=logits.dtype)
    return straight_through(hard, jax.nn.softmax(logits))


def gumbel_softmax(
    key: jax.Array, logits: jax.Array, temperature: ArrayLike, hard: bool = True
) -> jax.Array:
    r"""A categorical sample relaxed to the simplex, or the hard one with its gradient.

    .. math::
        y = \text{softmax}((\text{logits} + g) / \tau),
        \qquad g_a \sim \text{Gumbel}(0, 1)

    The argmax of `y` is an exact sample of softmax(logits) at every temperature. As
    :math:`\tau \to 0`, `y` becomes one-hot, the bias of its gradient vanishes and the
    variance grows.

    Args:
      key: `[]` typed key, consumed here.
      logits: `[..., A]`; -inf for an action that is never taken.
      temperature: `[]`, above 0; differentiable.
      hard: returns the one-hot argmax of `y` with the gradient of `y`; else `y`.

    Returns:
      `[..., A]`

    Raises:
      ValueError: `logits` is not floating or has no axis, `temperature` is no scalar
        or a Python number that is not positive.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import gumbel_softmax
      >>> key, logits = jax.random.key(0), jnp.array([0.0, 9.0, -jnp.inf])
      >>> gumbel_softmax(key, logits, 0.5)
      Array([0., 1., 0.], dtype=float32)

    References:
      Jang et al. (2017), eq. 1 and 2, https://arxiv.org/abs/1611.01144
      Maddison et al. (2017), section 3, https://arxiv.org/abs/1611.00712
    """
    _check_logits(logits)
    if jnp.ndim(temperature) != 0:
        raise ValueError(f"temperature: need a scalar, got {jnp.shape(temperature)}")
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature={temperature!r}, expected a positive number")
    temperature = jnp.asarray(temperature, logits.dtype)
    x = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    # Below its maximum, x / temperature may overflow to -inf only, which is harmless.
    x = x - jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    never = jnp.isneginf(x)
    # Never inf / temperature: its derivative would be NaN.
    scaled = jnp.where(never, 0.0, x) / temperature
    soft = jax.nn.softmax(jnp.where(never, -jnp.inf, scaled))
    if not hard:
        return soft
    one_hot = jax.nn.one_hot(jnp.argmax(x, -1), x.shape[-1], dtype=x.dtype)
    return straight_through(one_hot, soft)


def bernoulli_straight_through(key: jax.Array, logits: jax.Array) -> jax.Array:
    r"""Samples of 0 or 1 with the gradient of the probabilities.

    .. math:: y \sim \text{Bernoulli}(p), \; p = \sigma(\text{logits}),
        \qquad \partial y = \partial p

    Args:
      key: `[]` typed key, consumed here.
      logits: any shape.

    Returns:
      The shape of `logits`, floating, 0 or 1.

    Raises:
      ValueError: `logits` is not floating.

    Example:
      >>> import jax
      >>> from rljax.autodiff import bernoulli_straight_through
      >>> g = jax.grad(lambda x: bernoulli_straight_through(jax.random.key(0), x))(0.0)
      >>> float(g)
      0.25

    References:
      Bengio et al. (2013), https://arxiv.org/abs/1308.3432
    """
    _check_floating(logits=logits)
    p = jax.nn.sigmoid(logits)
    return straight_through(jax.random.bernoulli(key, p).astype(p.dtype), p)


def round_straight_through(x: jax.Array) -> jax.Array:
    r"""The nearest integer (the even one of two), with the gradient of the identity.

    .. math:: y = \text{round}(x), \qquad \partial y = \partial x

    Args:
      x: any shape.

    Returns:
      The shape of `x`.

    Raises:
      ValueError: `x` is not floating.

    Example:
      >>> import jax
      >>> from rljax.autodiff import round_straight_through
      >>> value_and_grad = jax.value_and_grad(lambda x: round_straight_through(x) ** 2)
      >>> jax.tree.map(float, value_and_grad(1.8))
      (4.0, 4.0)

    References:
      Bengio et al. (2013), https://arxiv.org/abs/1308.3432
    """
    _check_floating(x=x)
    return straight_through(jnp.round(x), x)


def sign_straight_through(x: jax.Array) -> jax.Array:
    r"""The sign, 1 at zero, with the gradient of hard tanh.

    .. math::
        y = 1 \text{ if } x \ge 0 \text{ else } -1,
        \qquad \partial y = 1_{|x| \le 1} \, \partial x

    Args:
      x: any shape.

    Returns:
      The shape of `x`; NaN where `x` is.

    Raises:
      ValueError: `x` is not floating.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import sign_straight_through
      >>> x = jnp.array([-2.0, -1.0, 0.0, 0.5])
      >>> sign_straight_through(x)
      Array([-1., -1.,  1.,  1.], dtype=float32)
      >>> jax.grad(lambda x: jnp.sum(sign_straight_through(x)))(x)
      Array([0., 1., 1., 1.], dtype=float32)

    References:
      Hubara et al. (2016), eq. 1 and 4, https://arxiv.org/abs/1602.02830
    """
    _check_floating(x=x)
    hard = jnp.where(x == 0, jnp.ones_like(x), jnp.sign(x))
    # Not jnp.clip: at the edges of the window its gradient is 1/2.
    return straight_through(hard, jnp.where(jnp.abs(x) <= 1, x, hard))


class Quantized(NamedTuple):
    """The nearest vector of a codebook, and what trains encoder and codebook."""

    code: jax.Array  # [D]
    # [] int
    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    codebook_loss: jax.Array  # [] moves the code towards the input
    commitment_loss: jax.Array  # [] moves the input towards the code


def quantize(x: jax.Array, codebook: jax.Array) -> Quantized:
    r"""Vector quantisation: the nearest code forward, the input backward.

    .. math::
        k = \arg\min_j \lVert x - e_j \rVert, \quad y = e_k, \quad \partial y =
        \partial x, \qquad
        L_{codebook} = \lVert \text{stop}(x) - e_k \rVert^2, \quad
        L_{commitment} = \lVert x - \text{stop}(e_k) \rVert^2

    The paper adds `codebook_loss + 0.25 * commitment_loss` to the task's loss. Only
    `codebook_loss` has a gradient in the codebook.

    Args:
      x: `[D]`, output of an encoder.
      codebook: `[K, D]`, the vectors e; of several nearest ones the first is taken.

    Returns:
      A :class:`Quantized`.

    Raises:
      ValueError: shapes or dtypes, or an empty codebook.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import quantize
      >>> codebook = jnp.array([[0.0, 0.0], [1.0, 1.0]])
      >>> quantized = quantize(jnp.array([1.0, 3.0]), codebook)
      >>> quantized.code, quantized.commitment_loss
      (Array([1., 1.], dtype=float32), Array(4., dtype=float32))

    References:
      van den Oord et al. (2017), eq. 1 to 3, https://arxiv.org/abs/1711.00937
    """
    _check_floating(x=x, codebook=codebook)
    shape = jnp.shape(codebook)
    if jnp.ndim(x) != 1 or len(shape) != 2 or shape[1:] != x.shape or not shape[0]:
        raise ValueError(
            f"x[D] and codebook[K,D] with K > 0, got {jnp.shape(x)} and {shape}"
        )
    index = jnp.argmin(jnp.sum((codebook - x) ** 2, axis=-1))
    e = codebook[index]
    stop = jax.lax.stop_gradient
    return Quantized(
        code=straight_through(e, x),
        index=index,
        codebook_loss=jnp.sum((stop(x) - e) ** 2),
        commitment_loss=jnp.sum((x - stop(e)) ** 2),
    )


def _check_floating(**arrays: ArrayLike) -> None:
    for name, x in arrays.items():
        if not jnp.issubdtype(jax.typeof(x).dtype, jnp.floating):
            given = jax.typeof(x).str_short()
            raise ValueError(f"{name}: expected a floating array, got {given}")


def _check_logits(logits: jax.Array) -> None:
    _check_floating(logits=logits)
    if jnp.ndim(logits) == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits[..., A] with A > 0, got {jnp.shape(logits)}")
