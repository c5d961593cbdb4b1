"""Lanczos iteration and the small eigenproblem that it leaves, without LAPACK."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Accelerators round the factors of a matrix product; orthogonal bases do not bear it.
matmul = partial(jnp.matmul, precision="highest")


class Krylov(NamedTuple):
    """Where the Lanczos iteration is."""

    basis: jax.Array  # [m, P], rows of zeros that are not reached yet
    q: jax.Array  # [P], the next one
    scale: jax.Array  # [] the greatest coefficient so far


def lanczos(
    product: Callable[[jax.Array], jax.Array], start: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Diagonal `[m]`, off-diagonal `[m]` and basis `[m, P]`, one step per key.

    Where the Krylov space is exhausted, a fresh random vector goes on.
    """
    tiny = 10 * jnp.finfo(start.dtype).eps

    def orthogonal(x: jax.Array, basis: jax.Array) -> jax.Array:
        for _ in range(2):  # twice is enough
            x -= matmul(matmul(basis, x), basis)
        return x

    def unit(x: jax.Array) -> jax.Array:
        norm = jnp.linalg.norm(x)
        return x / jnp.where(norm > 0, norm, 1)

    def step(
        now: Krylov, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[Krylov, tuple[jax.Array, jax.Array]]:
        i, key = inputs
        basis = now.basis.at[i].set(now.q)
        aq = product(now.q)
        alpha = jnp.sum(now.q * aq)
        rest = orthogonal(aq, basis)
        beta = jnp.linalg.norm(rest)
        scale = jnp.maximum(now.scale, jnp.maximum(jnp.abs(alpha), beta))
        exhausted = beta <= tiny * scale
        fresh = partial(jax.random.normal, key, now.q.shape, now.q.dtype)
        q = jax.lax.cond(exhausted, lambda: orthogonal(fresh(), basis), lambda: rest)
        following = Krylov(basis=basis, q=unit(q), scale=scale)
        return following, (alpha, jnp.where(exhausted, 0, beta))

    first = Krylov(
        basis=jnp.zeros((len(keys), start.size), start.dtype),
        q=unit(start),
        scale=jnp.zeros((), start.dtype),
    )
    inputs = (jnp.arange(len(keys)), keys)
    end, (alpha, beta) = jax.lax.scan(step, first, inputs)
    return alpha, beta, end.basis


def eigh(matrix: jax.Array, sweeps: int = 12) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues `[m]`, unsorted, and eigenvectors in rows `[m, m]`.

    Jacobi rotations in plain XLA operations: in each round the pairs (i, j) with
    i + j = round, modulo m, are rotated at once. Convergence is quadratic;
    Brent and Luk (1985), https://doi.org/10.1137/0906007, needed at most 10 sweeps.
    """
    size = len(matrix)
    index = jnp.arange(size)

    def rotate(
        i: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        a, v = carry
        partner = (i - index) % size
        diagonal = jnp.diagonal(a)
        gap = diagonal[partner] - diagonal
        off = a[index, partner] + a[partner, index]  # twice the element
        sign = jnp.sign(jnp.where(gap == 0, (partner - index).astype(a.dtype), gap))
        below = jnp.abs(gap) + jnp.hypot(gap, off)
        tangent = sign * off / jnp.where(below == 0, 1, below)  # 0 for partner == index
        cosine = 1 / jnp.hypot(tangent, 1)
        sine = -tangent * cosine
        a = cosine[:, None] * a + sine[:, None] * a[partner]
        a = cosine * a + sine * a[:, partner]
        return a, cosine[:, None] * v + sine[:, None] * v[partner]

    identity = jnp.eye(size, dtype=matrix.dtype)
    a, v = jax.lax.fori_loop(0, sweeps * size, rotate, (matrix, identity))
    return jnp.diagonal(a), v
