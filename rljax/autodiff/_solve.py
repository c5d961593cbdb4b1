"""Conjugate gradients that end where rounding begins."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.types import Params

VectorProduct = Callable[[Params], Params]  # v to A v, on trees of one form


def conjugate_gradients(
    product: VectorProduct, right: Params, *, tol: ArrayLike, iterations: int
) -> Params:
    """Solve A x = `right`; derivatives are those of the exact solution.

    `jax.scipy.sparse.linalg.cg` goes on where residual and curvature are rounding. If A
    is singular, its steps along the kernel then grow without bound.

    Args:
      product: v to A v, symmetric and positive semi-definite, on trees of one dtype.
      right: tree of float arrays.
      tol: of the residual's norm, relative to that of `right`.
      iterations: at most so many.
    """

    def solve(product: VectorProduct, right: Params) -> Params:
        return _iterate(product, right, tol=tol, iterations=iterations)

    return jax.lax.custom_linear_solve(
        product, right, solve=solve, transpose_solve=solve, symmetric=True
    )


class Iterate(NamedTuple):
    """Where the iteration is."""

    x: Params
    residual: Params
    direction: Params  # of the next step
    square: jax.Array  # [] of the residual's norm
    greatest: jax.Array  # [] curvature per squared length seen so far
    left: jax.Array  # [] int32, steps that may still be made; 0 in rounding


def _iterate(
    product: VectorProduct, right: Params, *, tol: ArrayLike, iterations: int
) -> Params:
    tiny = 10 * jnp.finfo(jnp.result_type(*jax.tree.leaves(right))).eps
    start = _dot(right, right)
    enough = jnp.square(jnp.maximum(tol, tiny)) * start

    def going_on(now: Iterate) -> jax.Array:
        return (now.square > enough) & (now.left > 0)

    def step(now: Iterate) -> Iterate:
        image = product(now.direction)
        curvature = _dot(now.direction, image)
        length = _dot(now.direction, now.direction)
        mean = curvature / jnp.where(length > 0, length, 1)
        greatest = jnp.maximum(now.greatest, mean)
        rounding = curvature <= tiny * greatest * length  # false for NaN, which spreads
        size = jnp.where(rounding, 0, now.square / jnp.where(rounding, 1, curvature))
        residual = _add(now.residual, -size, image)
        square = _dot(residual, residual)
        return Iterate(
            x=_add(now.x, size, now.direction),
            residual=residual,
            direction=_add(residual, square / now.square, now.direction),
            square=square,
            greatest=greatest,
            left=jnp.where(rounding, 0, now.left - 1),
        )

    first = Iterate(
        x=jax.tree.map(jnp.zeros_like, right),
        residual=right,
        direction=right,
        square=start,
        greatest=jnp.zeros_like(start),
        left=jnp.asarray(iterations),
    )
    return jax.lax.while_loop(going_on, step, first).x


def _dot(x: Params, y: Params) -> jax.Array:
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y, precision="highest"), x, y)
    return jax.tree.reduce(jnp.add, products)


def _add(x: Params, size: jax.Array, y: Params) -> Params:
    return jax.tree.map(lambda x, y: x + size * y, x, y)
