"""Checks of arguments that the tools share."""

from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")  # a tree


def describe(leaf: object) -> str:
    """Dtype and shape of an array; of anything else its `repr`."""
    try:
        return jax.typeof(leaf).str_short()
    except TypeError:
        return repr(leaf)


def floats(name: str, tree: T) -> T:
    """Make the leaves arrays; ValueError unless they are of real floats."""
    leaves = jax.tree.leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name}: expected arrays of floats, got {tree!r}")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", type(leaf))
        if dtype is not float and not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: "
                f"expected an array of floats, got {describe(leaf)}"
            )
    return jax.tree.map(jnp.asarray, tree)


def scalar(name: str, x: object) -> jax.Array:
    """Make the value an array; ValueError unless the value is a number."""
    given = jax.tree.leaves(x)
    if len(given) != 1 or given[0] is not x or jnp.ndim(given[0]) != 0:
        raise ValueError(f"{name}: expected a scalar, got {jax.tree.map(describe, x)}")
    return jnp.asarray(given[0])


def leading_axis(name: str, tree: object) -> int:
    """The size K of the first axis; ValueError unless all arrays have one K > 0."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(f"{name}: expected one leading axis K > 0, got {sizes}")
    ((size,),) = sizes
    return size
