"""Products with weights, whose gradients in the weights are quick on CPU.

The gradient in the weights is a product over the rows of both operands. On CPU XLA
leaves it to Eigen, which takes up to three times as long as XLA's own kernels; they do
not take a transposed operand, but one that was written out transposed before.

Of few inputs a hidden layer's product on CPU is a sum of outer products, which XLA
joins with the bias and the activation that follow. A kernel of its own takes as long as
all of them. XLA computes the sum wherever it is used, each time with a rounding of its
own, so no outputs are made so: the derivative of their maximum asks which equals the
maximum.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from rljax._varying import varying

_PRECISION = "jax_default_matmul_precision"
# Multiplications up to which the transposed copy pays. With 512 rows, 64 inputs and 64
# outputs (2^21) one thread of a Xeon takes 75 us instead of 106, with 256 of each
# (2^24) as long, with 16,384, 36 and 16 (2^23) 1078 instead of 788.
_FEW = 2**22
_FEW_INPUTS = 8
# Named as jax's own, which it is for those who read a jaxpr.
_product_p = Primitive("dot_general")


def product(
    x: jax.Array, weights: jax.Array, precision: Any = None, *, hidden: bool = False
) -> jax.Array:
    """`x @ weights`, `[..., inputs]` times `[inputs, outputs]` of one dtype.

    Derivatives of every order and mode are those of `jnp.matmul`.

    Args:
      x: `[..., inputs]`, real.
      weights: `[inputs, outputs]`.
      precision: as of `jnp.matmul`.
      hidden: a smooth function or a ReLU follows, and nothing asks whether results are
        equal.

    Returns:
      `[..., outputs]`.

    Example:
      >>> product(jnp.ones((4, 3)), jnp.ones((3, 2))).shape
      (4, 2)
    """
    if precision is None:
        precision = getattr(jax.config, _PRECISION)
    if _is_split(x) or _is_split(weights):
        return _plain(x, weights, precision=precision)
    x, weights = varying(x, like=weights), varying(weights, like=x)
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    return _product_p.bind(
        x, weights, dimension_numbers=numbers, precision=precision, hidden=hidden
    )


def dot_general(
    inputs: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None
) -> jax.Array:
    """`product`, as `flax.linen.Dense` calls it."""
    del dimension_numbers
    return product(inputs, kernel, precision)


def hidden_dot_general(
    inputs: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None
) -> jax.Array:
    """The same of a hidden layer."""
    del dimension_numbers
    return product(inputs, kernel, precision, hidden=True)


def _is_split(x: jax.Array) -> bool:
    """Tell whether the type says that devices have parts of it."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def _plain(x: jax.Array, weights: jax.Array, *, precision: Any, **_: Any) -> jax.Array:
    return jnp.matmul(x, weights, precision=precision)


def _on_cpu(
    x: jax.Array, weights: jax.Array, *, precision: Any, hidden: bool, **_: Any
) -> jax.Array:
    number = len(weights)
    few = hidden and 0 < number <= _FEW_INPUTS
    # bfloat16 would be rounded after each term.
    if not few or x.dtype not in (jnp.float32, jnp.float64):
        return _plain(x, weights, precision=precision)
    terms = [x[..., i, None] * weights[i] for i in range(number)]
    return functools.reduce(operator.add, terms)


def _out(x: ShapedArray, weights: ShapedArray, **_: Any) -> ShapedArray:
    return x.update(shape=(*x.shape[:-1], weights.shape[1]), weak_type=False)


def _batched(
    args: tuple[jax.Array, jax.Array],
    dims: tuple[int | None, int | None],
    *,
    precision: Any,
    hidden: bool,
    **_: Any,
) -> tuple[jax.Array, int]:
    x, weights = args
    if dims[1] is None:
        rows = jnp.moveaxis(x, dims[0] or 0, 0)
        return product(rows, weights, precision, hidden=hidden), 0
    each = jax.vmap(lambda x, w: _plain(x, w, precision=precision), in_axes=dims)
    return each(x, weights), 0


def _inputs_gradient(
    g: jax.Array, _: Any, weights: jax.Array, *, precision: Any, **_numbers: Any
) -> jax.Array:
    return product(g, weights.T, precision, hidden=True)


def _weights_gradient(
    g: jax.Array, x: jax.Array, _: Any, *, precision: Any, **_numbers: Any
) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1])
    g = g.reshape(-1, g.shape[-1])

    def plain(rows: jax.Array, g: jax.Array) -> jax.Array:
        return _plain(g.T, rows, precision=precision).T

    def written_out(rows: jax.Array, g: jax.Array) -> jax.Array:
        return _plain(jax.lax.optimization_barrier(rows.T), g, precision=precision)

    few = rows.size * g.shape[1] <= _FEW
    if g.shape[1] == 1 or not few:  # for one output it would take ten times as long
        return plain(rows, g)
    return jax.lax.platform_dependent(rows, g, cpu=written_out, default=plain)


_product_p.def_impl(_plain)
_product_p.def_abstract_eval(_out)
ad.defbilinear(_product_p, _inputs_gradient, _weights_gradient)
batching.primitive_batchers[_product_p] = _batched
mlir.register_lowering(_product_p, mlir.lower_fun(_plain, multiple_results=False))
mlir.register_lowering(
    _product_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu"
)
