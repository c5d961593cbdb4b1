"""Spaces of any package, read by their fields.

A space with a field `n` and no axes is discrete, one with `low`, `high` and `shape` a
box.
"""

import functools
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rljax.types import (
    Action,
    Box,
    Discrete,
    Levels,
    MultiDiscrete,
    ObsLeaf,
    ObsSpec,
    Reading,
    States,
)

UNBOUNDED = 1e30  # gymnax writes float32's greatest number for no bound
_MOST_ACTIONS = 2**16  # of a box of integers that is read as a choice


class DiscreteSpace(Protocol):
    """A choice among `n`, numbered from `start`, or from 0 without that field."""

    @property
    def n(self) -> int:
        """Number of choices."""
        ...


class BoxSpace(Protocol):
    """An array between bounds; its field `dtype` is float32 unless given."""

    @property
    def low(self) -> ArrayLike:
        """Bounds below, one for all entries or one each."""
        ...

    @property
    def high(self) -> ArrayLike:
        """Bounds above, one for all entries or one each."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of the array."""
        ...


class ActionFormat(NamedTuple):
    """Format in which an environment takes discrete actions. Hashable."""

    start: int | tuple[int, ...] = 0  # the number of the first action, of each choice
    shape: tuple[int, ...] = ()  # of several choices, or of an array with one
    dtype: str = "int32"
    apart: bool = False  # several choices come as a tuple

    def put(self, action: jax.Array) -> Any:
        """Number `[...]` or `[..., K]` actions as the environment does."""
        several = isinstance(self.start, tuple)
        batch = action.shape[:-1] if several else action.shape
        action = (action + np.asarray(self.start, np.int32)).astype(self.dtype)
        if self.apart:
            return tuple(jnp.moveaxis(action, -1, 0))
        return action.reshape(*batch, *self.shape)


def actions(name: str, space: object) -> tuple[Action, ActionFormat]:
    """Read an action space: what agents must know, and how actions are handed over.

    Several choices at once are a space with a field `nvec` or `num_values`, a box of
    integers, or one with a field `spaces`, a sequence of discrete ones.

    Args:
      name: the environment's, for errors.
      space: an object of any class.

    Raises:
      ValueError: a space of another kind, or bounds that leave no choice.
    """
    if _is_discrete(space):
        number = _count(name, "action_space", space)
        return Discrete(number), ActionFormat(start=int(getattr(space, "start", 0)))
    several = getattr(space, "nvec", getattr(space, "num_values", None))
    if several is not None:
        return _several(name, np.asarray(several), start=getattr(space, "start", 0))
    inner = getattr(space, "spaces", None)
    if isinstance(inner, Sequence) and inner and all(map(_is_discrete, inner)):
        numbers = np.array([_count(name, "action_space", x) for x in inner])
        starts = np.array([int(getattr(x, "start", 0)) for x in inner])
        multi, form = _several(name, numbers, start=starts)
        return multi, form._replace(apart=True)
    if not _is_box(space):
        raise ValueError(
            f"{name}: action space {_kind(space)}, expected Discrete, MultiDiscrete or "
            "Box: a field n, nvec, or fields low, high and shape"
        )
    low, high = _bounds(name, "action_space", space)
    shape = tuple(int(size) for size in space.shape)
    if not low.size:
        raise ValueError(f"{name}: action_space has the shape {shape}, so no actions")
    dtype = np.dtype(getattr(space, "dtype", np.float32))
    if dtype.kind in "iub":
        form = ActionFormat(start=0, shape=shape, dtype=dtype.name)
        return _choices(name, low, high, form=form)
    _check_order(name, "action_space", low=low, high=high)
    return box_of(low, high), ActionFormat()


def box_of(low: np.ndarray, high: np.ndarray) -> Box:
    """Return the box with these bounds of every element."""
    return Box(
        shape=low.shape,
        low=tuple(low.ravel().tolist()),
        high=tuple(high.ravel().tolist()),
    )


def observations(
    name: str, space: object, *, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[Reading, int]:
    """Tell how networks are to read observations, and the number of the first state.

    Args:
      name: the environment's, for errors.
      space: its observation space, None where it has none.
      shape: of an observation.
      dtype: of an observation.

    Returns:
      `States` for a Discrete space, `Levels` for integers with finite bounds, else
      None; and what to subtract from the number of a state.
    """
    if _is_discrete(space) and shape in ((), (1,)):
        number = _count(name, "observation_space", space)
        return States(number), int(getattr(space, "start", 0))
    if not np.issubdtype(dtype, np.integer):
        return None, 0
    box = finite_bounds(name, space, shape)
    if box is not None:
        low, high = box
        return Levels(low=_compressed(low), high=_compressed(high)), 0
    if dtype == np.uint8:
        return Levels(low=(0.0,), high=(255.0,)), 0
    return None, 0


def finite_bounds(
    name: str, space: object, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the bounds `[*shape]` of a box, None where some are missing or equal."""
    bounds = some_bounds(name, space, shape)
    if bounds is None:
        return None
    low, high = bounds
    if not np.all(np.isfinite(low) & np.isfinite(high) & (low < high)):
        return None
    return low, high


def some_bounds(
    name: str, space: object, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the bounds `[*shape]` of a box, infinite where there is none, or None."""
    if not _is_box(space) or (tuple(space.shape) or (1,)) != shape:
        return None
    hook = "observation_space"
    low, high = _bounds(name, hook, space)
    _check_order(name, hook, low=low, high=high, may_be_equal=True)
    return low.reshape(shape), high.reshape(shape)


def _is_discrete(space: object) -> TypeGuard[DiscreteSpace]:
    number: Any = getattr(space, "n", None)
    if getattr(space, "shape", None):  # MultiBinary has n, too
        return False
    return isinstance(number, numbers.Integral) or (
        hasattr(number, "dtype") and np.ndim(number) == 0
    )


def _is_box(space: object) -> TypeGuard[BoxSpace]:
    return all(hasattr(space, field) for field in ("low", "high", "shape"))


def is_space(found: object) -> bool:
    """Whether an object has a field of a space, or is a tree of objects."""
    fields = ("shape", "n", "nvec", "num_values", "spaces")
    tree = isinstance(found, Mapping | tuple | list)
    return tree or any(hasattr(found, field) for field in fields)


def _kind(space: object) -> str:
    """The class of a space; an address in a `repr` says nothing."""
    return f"{type(space).__module__}.{type(space).__qualname__}"


def _count(name: str, hook: str, space: DiscreteSpace) -> int:
    number = int(space.n)
    if number < 1:
        raise ValueError(f"{name}: {hook} has n={number}: must be >= 1")
    return number


def _bounds(name: str, hook: str, space: BoxSpace) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of every entry, infinite where there is none."""
    shape = tuple(space.shape)
    try:
        low = np.broadcast_to(np.asarray(space.low, float), shape)
        high = np.broadcast_to(np.asarray(space.high, float), shape)
    except ValueError as error:
        raise ValueError(
            f"{name}: {hook} has bounds low={space.low}, high={space.high} that do not "
            f"fit its shape {shape}"
        ) from error
    for field, bound in dict(low=low, high=high).items():
        if np.isnan(bound).any():
            raise ValueError(f"{name}: {hook} has {field}={bound.tolist()}: NaN")
    return _with_infinity(low), _with_infinity(high)


def _with_infinity(bound: np.ndarray) -> np.ndarray:
    return np.where(np.abs(bound) >= UNBOUNDED, np.copysign(np.inf, bound), bound)


def _check_order(
    name: str,
    hook: str,
    *,
    low: np.ndarray,
    high: np.ndarray,
    may_be_equal: bool = False,
) -> None:
    # In float32, which is what environments get: bounds closer than that are equal.
    below, above = low.astype(np.float32), high.astype(np.float32)
    wrong = ~(below <= above) if may_be_equal else ~(below < above)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        where = f" at {at}" if at else ""
        raise ValueError(
            f"{name}: {hook} has low={low[at]}, high={high[at]}{where}: low must be "
            f"{'<=' if may_be_equal else '<'} high"
        )


def _choices(
    name: str, low: np.ndarray, high: np.ndarray, *, form: ActionFormat
) -> tuple[Action, ActionFormat]:
    """Read a box of integers as a choice among a few, or as several."""
    finite = np.isfinite(low) & np.isfinite(high)
    numbers = np.where(finite, high - low + 1, 0).ravel()
    if not np.all((numbers >= 1) & (numbers <= _MOST_ACTIONS)):
        raise ValueError(
            f"{name}: action_space is a box of {form.dtype} with low={low.tolist()}, "
            f"high={high.tolist()} and shape {form.shape}: each integer must have 1 to "
            f"{_MOST_ACTIONS} values"
        )
    if low.size == 1:
        return Discrete(int(numbers.item())), form._replace(start=int(low.item()))
    multi, start = _several(name, numbers, start=low.ravel())
    return multi, form._replace(start=start.start)


def _several(
    name: str, numbers: np.ndarray, *, start: ArrayLike
) -> tuple[MultiDiscrete, ActionFormat]:
    """Read several choices at once, of so many values each."""
    if not numbers.size or numbers.dtype.kind not in "iuf" or np.any(numbers < 1):
        raise ValueError(
            f"{name}: action_space has choices of {numbers.tolist()} values: each must "
            "have at least 1"
        )
    starts = np.broadcast_to(np.asarray(start, int), numbers.shape)
    form = ActionFormat(start=tuple(starts.ravel().tolist()), shape=numbers.shape)
    return MultiDiscrete(tuple(int(n) for n in numbers.ravel())), form


def of_leaves(space: object, obs: ObsSpec) -> list[object | None]:
    """The space of each array of observations; None where there is none to be had.

    Trees of spaces have a field `spaces`, a mapping or a sequence.
    """
    if obs.lone:
        return [space]
    paths = jax.tree_util.tree_flatten_with_path(obs.tree(obs.leaves), _is_leaf)[0]
    return [functools.reduce(_inside, path, space) for path, _ in paths]


def _is_leaf(x: object) -> bool:
    return isinstance(x, ObsLeaf)


def _inside(space: object, key: Any) -> object | None:
    """The space at one key of a path, None where there is none."""
    inner = getattr(space, "spaces", None)
    names = [getattr(key, field, None) for field in ("key", "name", "idx")]
    name = next((x for x in names if x is not None), None)
    if isinstance(inner, Mapping):
        return inner.get(name)
    if isinstance(inner, Sequence) and isinstance(name, int) and name < len(inner):
        return inner[name]
    return None


def _compressed(bound: np.ndarray) -> tuple[float, ...]:
    """One number where all are equal: an image has thousands."""
    first = bound.flat[0]
    same = bool(np.all(bound == first))
    return (float(first),) if same else tuple(bound.ravel().tolist())
