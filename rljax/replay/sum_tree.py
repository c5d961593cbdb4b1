"""Sums over a changing array, to draw its items in proportion to their values."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

_WIDTH = 8  # children of a node; 16 to 128 were slower on CPU
SKIP = 2**31 - 1  # an index beyond all leaves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SumTree:
    """Values at the leaves; every node above is the sum of its children.

    Sums are always taken afresh from all children, never changed by a difference, so
    that rounding does not add up (flashbax issue 52).
    """

    levels: tuple[jax.Array, ...]  # root's children first: float32 [groups, width]
    size: int = dataclasses.field(metadata={"static": True})  # leaves; more are padding


def init(size: int) -> SumTree:
    """Make a tree of `size` zeros.

    Example:
      >>> tree = update(init(100), jnp.array([7, 42]), jnp.array([1.0, 3.0]))
      >>> float(total(tree)), sample(tree, jnp.array([0.2, 0.3])).tolist()
      (4.0, [7, 42])
    """
    if size < 1:
        raise ValueError(f"size={size}: must be >= 1")
    depth = max(1, math.ceil(math.log(size, _WIDTH) - 1e-9))
    groups = [-(-size // _WIDTH ** (depth - level)) for level in range(depth)]
    levels = tuple(jnp.zeros((group, _WIDTH), jnp.float32) for group in groups)
    return SumTree(levels=levels, size=size)


def total(tree: SumTree) -> jax.Array:
    """Return the sum of all values, `[]`."""
    return tree.levels[0].sum()


def values(tree: SumTree, index: jax.Array) -> jax.Array:
    """Return values `[B]` at `index` `[B]`, 0 outside [0, size)."""
    inside = (index >= 0) & (index < tree.size)
    leaves = tree.levels[-1].reshape(-1)
    return jnp.where(inside, leaves[jnp.where(inside, index, 0)], 0.0)


def update(tree: SumTree, index: jax.Array, new: jax.Array) -> SumTree:
    """Set values; of equal indices with unequal values one wins.

    Args:
      tree: the tree.
      index: `[B]` int32; one outside [0, size), as `SKIP`, leaves the value out.
      new: `[B]`, not negative.

    Returns:
      The tree, in B steps for each of its few levels, whatever its size.
    """
    levels = list(tree.levels)
    index = jnp.where((index >= 0) & (index < tree.size), index, SKIP)
    leaves = levels[-1].reshape(-1).at[index].set(new, mode="drop")
    levels[-1] = leaves.reshape(-1, _WIDTH)
    for level in range(len(levels) - 1, 0, -1):
        index = index // _WIDTH
        sums = levels[level].at[index].get(mode="clip").sum(axis=-1)
        parents = levels[level - 1].reshape(-1).at[index].set(sums, mode="drop")
        levels[level - 1] = parents.reshape(-1, _WIDTH)
    return dataclasses.replace(tree, levels=tuple(levels))


def sample(tree: SumTree, uniform: jax.Array) -> jax.Array:
    """Draw indices with probability `value / total`; values of 0 never are.

    Args:
      tree: whose total is positive.
      uniform: `[B]` in [0, 1).

    Returns:
      `[B]` int32.
    """
    mass = uniform * total(tree)
    group = jnp.zeros(uniform.shape, jnp.int32)
    upper = jnp.asarray(np.triu(np.ones((_WIDTH, _WIDTH), np.float32)))
    for level in tree.levels:
        sums = jnp.matmul(level[group], upper, precision="highest")  # [B, width]
        # Rounding must not lead past the last child that has mass.
        mass = jnp.clip(mass, 0.0, jnp.nextafter(sums[:, -1], 0.0))
        child = (sums <= mass[:, None]).sum(axis=-1).astype(jnp.int32)
        child = jnp.minimum(child, _WIDTH - 1)
        before = jnp.take_along_axis(sums, jnp.maximum(child - 1, 0)[:, None], 1)[:, 0]
        mass = mass - jnp.where(child > 0, before, 0.0)
        group = group * _WIDTH + child
    return group
