"""What the tools ask of their arguments."""

from typing import Any

import jax
import jax.numpy as jnp


def describe(leaf: Any) -> str:
    """Dtype and shape, or what it is instead of an array."""
    try:
        return jax.typeof(leaf).str_short()
    except TypeError:
        return repr(leaf)


def floats(name: str, tree: Any) -> Any:
    """The tree with arrays as leaves; ValueError unless they are of real floats."""
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


def scalar(name: str, x: Any) -> jax.Array:
    """The value as an array; ValueError unless it is a number."""
    given = jax.tree.leaves(x)
    if len(given) != 1 or given[0] is not x or jnp.ndim(x) != 0:
        raise ValueError(f"{name}: expected a scalar, got {jax.tree.map(describe, x)}")
    return jnp.asarray(x)


def leading_axis(name: str, tree: Any) -> int:
    """The size K of the first axis; ValueError unless all arrays have it, and K > 0."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(f"{name}: expected one leading axis K > 0, got {sizes}")
    ((size,),) = sizes
    return size
