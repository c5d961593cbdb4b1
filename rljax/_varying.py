"""The types of arrays that differ between the devices of a `shard_map`."""

from typing import TypeVar

import jax

T = TypeVar("T")  # a tree


def varying(tree: T, like: object) -> T:
    """Let the tree differ between the devices of a `shard_map` as `like` does.

    The gradient in what is the same on all devices would be summed over them.
    """

    def axes(x: jax.Array | jax.ShapeDtypeStruct) -> frozenset[str]:
        if isinstance(x, jax.ShapeDtypeStruct):
            return frozenset()
        return jax.typeof(x).manual_axis_type.varying

    wanted: set[str] = set()
    for leaf in jax.tree.leaves(like):
        wanted |= axes(leaf)

    def vary(x: jax.Array) -> jax.Array:
        missing = tuple(sorted(wanted - axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, tree)
