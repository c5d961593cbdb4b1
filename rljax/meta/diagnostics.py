"""Checks of a meta-gradient: is it right, and if not, what cuts it?"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.interpreters import partial_eval

from rljax.autodiff._checks import floats
from rljax.learners.optimizers import ClipState
from rljax.meta.gradients import finite_differences, meta_gradient

E = TypeVar("E")  # eta, a tree of floating arrays
S = TypeVar("S")  # a state, any tree


def paths(objective: Callable[[E], jax.Array], eta: E) -> E:
    """Tell which arrays of `eta` the derivative depends on, whatever the data: bools.

    False where every path to the objective is behind a `stop_gradient`, a comparison
    or an integer, or there is none.
    """

    def slope(eta: E, direction: E) -> jax.Array:
        return jax.jvp(objective, (eta,), (direction,))[1]

    jaxpr = jax.make_jaxpr(slope)(eta, eta).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True])
    leaves, structure = jax.tree.flatten(eta)
    return structure.unflatten(used[len(used) - len(leaves) :])


class NoPath(ValueError):
    """A derivative is zero whatever the data; `names` has in what."""

    def __init__(self, names: tuple[str, ...]):
        super().__init__(
            f"{', '.join(names)}: the meta-gradient is zero whatever the data: the "
            "update does not depend on it, or only behind a stop_gradient or a "
            "comparison"
        )
        self.names = names


def check_paths(
    objective: Callable[[dict[str, E]], jax.Array], eta: dict[str, E]
) -> None:
    """Raise NoPath naming all that the objective's derivative does not depend on."""
    found = paths(objective, eta)
    without = [name for name, used in found.items() if not any(jax.tree.leaves(used))]
    if without:
        raise NoPath(tuple(without))


def saturated_fraction(start: object, end: object) -> jax.Array:
    """Share `[]` of the steps between two states whose gradient norm was clipped."""

    def totals(tree: object) -> tuple[jax.Array, jax.Array]:
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, ClipState))
        clips = [x for x in leaves if isinstance(x, ClipState)]
        steps = sum((x.steps for x in clips), jnp.int32(0))
        return steps, sum((x.saturated for x in clips), jnp.int32(0))

    before, after = totals(start), totals(end)
    steps, saturated = (y - x for x, y in zip(before, after, strict=True))
    return saturated / jnp.maximum(steps, 1)


def cosine(x: E, y: E) -> jax.Array:
    """Cosine `[]` of the angle between two trees, 0 where one of them is 0."""
    a, b = (ravel_pytree(tree)[0] for tree in (x, y))
    sizes = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return jnp.vdot(a, b) / jnp.where(sizes > 0, sizes, 1.0)


class Check(NamedTuple, Generic[E]):
    """Result of `check_meta_gradient`; the gradients are like `eta`."""

    reverse: E  # gradient in reverse mode
    forward: E | None  # in forward mode; None where a custom_vjp has none
    differences: E  # central finite differences
    causes: tuple[str, ...]  # what is wrong, in words; nothing if they agree


def check_meta_gradient(
    inner: Callable[[E], S],
    outer: Callable[[S], jax.Array],
    eta: E,
    *,
    step: float = 1e-3,
    rtol: float = 0.02,
) -> Check[E]:
    """Compare a meta-gradient with finite differences, and say what cuts it.

    Run it with fixed keys, in float64 if possible (`jax.enable_x64`, `step=1e-6`): what
    float32 resolves of a difference is allowed for.

    Args:
      inner: `eta -> state`, as in `meta_gradient`. An agent's state says more: its
        optimisers show what Adam cancels and what is clipped.
      outer: `state -> []`.
      eta: a tree of floating arrays.
      step: of the finite differences.
      rtol: by how much they may differ, relative to the greatest entry.

    Returns:
      The three gradients, and the causes of what is wrong.

    Raises:
      ValueError: as `meta_gradient`.

    Example:
      >>> import jax
      >>> from rljax.meta import check_meta_gradient
      >>> def inner(discount):
      ...     return 0.5 * jax.lax.stop_gradient(1.0 + discount * 2.0)
      >>> check = check_meta_gradient(inner, lambda v: (v - 3.0) ** 2, 0.5)
      >>> print(check.causes[0])
      eta: no path: everything between it and the outer loss is behind a ...
    """
    eta = floats("eta", eta)

    def objective(eta: E) -> jax.Array:
        return outer(inner(eta))

    value, reverse = jax.jit(lambda e: meta_gradient(inner, outer, e))(eta)
    differences = jax.jit(lambda e: finite_differences(objective, e, step))(eta)
    forward, end, moves = _forwards(inner, outer, eta)
    noise = 10 * jnp.finfo(value.dtype).eps * float(jnp.abs(value)) / step

    def agree(x: object, y: object) -> bool:
        a, b = (ravel_pytree(tree)[0] for tree in (x, y))
        size = max(float(jnp.abs(a).max()), float(jnp.abs(b).max()))
        return bool(jnp.abs(a - b).max() <= rtol * size + noise)

    flat = ravel_pytree(reverse)[0]
    causes = _no_path(paths(objective, eta))
    if not jnp.isfinite(flat).all():
        causes += [
            "not finite: something has an infinite derivative where a gradient is 0, "
            "such as the root in Adam without eps_root or in a norm; "
            "rljax.optimizers has safe ones"
        ]
    elif not agree(reverse, differences):
        causes += [
            "differs from finite differences: a stop_gradient cuts one of several "
            "paths, say a stopped bootstrap in the second of several updates, or a "
            "custom rule is wrong"
        ]
    if not jnp.any(flat != 0) or agree(reverse, jnp.zeros_like(flat)):
        causes += _vanishing(end, moves)
    return Check(
        reverse=reverse, forward=forward, differences=differences, causes=tuple(causes)
    )


def _forwards(
    inner: Callable[[E], S], outer: Callable[[S], jax.Array], eta: E
) -> tuple[E | None, S | tuple[()], S | tuple[()]]:
    """The gradient in forward mode, the state, and the state's derivative in eta."""
    ones = jax.tree.map(jnp.ones_like, eta)

    def both(eta: E) -> tuple[E, S, S]:
        gradient = meta_gradient(inner, outer, eta, mode="forward")[1]
        end, moves = jax.jvp(inner, (eta,), (ones,))
        return gradient, end, moves

    try:
        return jax.jit(both)(eta)
    except TypeError:  # of a custom_vjp
        return None, (), ()


def _no_path(used: object) -> list[str]:
    return [
        f"eta{jax.tree_util.keystr(path)}: no path: everything between it and the "
        "outer loss is behind a stop_gradient or a comparison, say a whole target"
        for path, is_used in jax.tree.leaves_with_path(used)
        if not is_used
    ]


def _vanishing(end: object, moves: object) -> list[str]:
    """Name the causes for which an agent's state may not move with eta."""
    causes = []
    is_part = lambda x: isinstance(x, optax.ScaleByAdamState | ClipState)  # noqa: E731
    parts = zip(
        jax.tree.leaves(end, is_leaf=is_part),
        jax.tree.leaves(moves, is_leaf=is_part),
        strict=True,
    )
    for part, move in parts:
        if isinstance(part, ClipState) and part.saturated == part.steps != 0:
            causes.append(
                "zero: every gradient was clipped, and a clipped step has a fixed "
                "length: what scales the gradient does not move the parameters"
            )
        is_adam = isinstance(part, optax.ScaleByAdamState)
        if is_adam and part.count == 1 and optax.tree.norm(move.mu) > 0:
            causes.append(
                "zero: the first step of a fresh Adam is the sign of the gradient "
                "times the learning rate; unroll more updates, or start later"
            )
    return causes
