"""Conjugate gradients that end where rounding begins."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def conjugate_gradients(
    product: Callable[[Any], Any], right: Any, *, tol: ArrayLike, iterations: int
) -> Any:
    """Solves A x = `right`; derivatives are those of the exact solution.

    `jax.scipy.sparse.linalg.cg` goes on where residual and curvature are rounding. If A
    is singular, its steps along the kernel then grow without bound.

    Args:
      product: v to A v, symmetric and positive semi-definite, on trees of one dtype.
      right: tree of float arrays.
      tol: of the residual's norm, relative to that of `right`.
      iterations: at most so many.
    """

    def solve(product: Callable[[Any], Any], right: Any) -> Any:
        return _iterate(product, right, tol, iterations)

    return jax.lax.custom_linear_solve(
        product, right, solve=solve, transpose_solve=solve, symmetric=True
    )


def _iterate(
    product: Callable[[Any], Any], right: Any, tol: ArrayLike, iterations: int
) -> Any:
    tiny = 10 * jnp.finfo(jnp.result_type(*jax.tree.leaves(right))).eps
    start = _dot(right, right)
    enough = jnp.square(jnp.maximum(tol, tiny)) * start

    def going_on(carry: Any) -> jax.Array:
        *_, square, _, left = carry
        return (square > enough) & (left > 0)

    def step(carry: Any) -> Any:
        x, residual, direction, square, greatest, left = carry
        image = product(direction)
        curvature, length = _dot(direction, image), _dot(direction, direction)
        greatest = jnp.maximum(greatest, curvature / jnp.where(length > 0, length, 1))
        rounding = curvature <= tiny * greatest * length  # false for NaN, which spreads
        size = jnp.where(rounding, 0, square / jnp.where(rounding, 1, curvature))
        x = _add(x, size, direction)
        residual = _add(residual, -size, image)
        new = _dot(residual, residual)
        direction = _add(residual, new / square, direction)
        left = jnp.where(rounding, 0, left - 1)
        return x, residual, direction, new, greatest, left

    x = jax.tree.map(jnp.zeros_like, right)
    carry = (x, right, right, start, jnp.zeros_like(start), jnp.asarray(iterations))
    return jax.lax.while_loop(going_on, step, carry)[0]


def _dot(x: Any, y: Any) -> jax.Array:
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision="highest"), x, y)
    return jax.tree.reduce(jnp.add, products)


def _add(x: Any, size: jax.Array, y: Any) -> Any:
    return jax.tree.map(lambda x, y: x + size * y, x, y)
