"""An environment's contract, found by tracing it once, and kept to at each step.

The only place where shapes, dtypes and keys of a user's environment are looked at.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal, Var
from jax.typing import ArrayLike

from rljax import prng
from rljax.envs._gymnax import Environment as Gymnax
from rljax.envs.spaces import ActionFormat
from rljax.types import Action, Box, Obs, ObsLeaf, ObsSpec, Spec

GymParams = Any  # of a user's environment, a pytree
GymState = Any  # of one copy of a user's environment, a pytree
T = TypeVar("T")
_SIX = (
    "obs, state, reward, terminated, truncated, info (gymnax >= 1; gymnax 0.x's step "
    "has five)"
)
_NONE = ObsSpec(leaves=(), structure=None)
_FIVE = "obs, state, reward, terminated, info"
# Operations that hand on the one number they get.
_SAME = ("stop_gradient", "convert_element_type", "broadcast_in_dim", "copy", "reshape")


class GymEnv(Protocol):
    """One environment with gymnax's API. Its parameters are given by position.

    It may also have `observation_space(params)`, `action_mask(state, params)`, and
    gymnax's hooks `reset_env`, `step_env` and `is_truncated`.
    """

    @property
    def default_params(self) -> GymParams:
        """Parameters for who gives none."""
        ...

    def reset(self, key: jax.Array, params: GymParams, /) -> tuple[Obs, GymState]:
        """Start an episode."""
        ...

    def step(
        self, key: jax.Array, state: GymState, action: Any, params: GymParams, /
    ) -> tuple[Obs, GymState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """Return `obs, state, reward, terminated, truncated, info`.

        Where an episode ended, `obs` and `state` are the next one's first;
        `info["final_observation"]` is the observation before the reset.
        """
        ...

    def action_space(self, params: GymParams, /) -> object:
        """Return an object with the fields of a Discrete or a Box."""
        ...


class MaskedGymEnv(GymEnv, Protocol):
    """One environment that tells which actions are legal."""

    def action_mask(self, state: GymState, params: GymParams, /) -> jax.Array:
        """Return bool `[A]`."""
        ...


class Contract(NamedTuple):
    """Facts about an environment. Hashable."""

    obs: ObsSpec  # readings are not known yet
    state_dtypes: tuple[str | None, ...]  # of the leaves of a state; None for keys
    plain_keys: bool  # whether it keeps keys, or minds of which kind they are
    cuts: str  # "limit": at the limit, counted from 0; "never"; "anytime": not known
    made_regular: tuple[str, ...] = ()  # other dtypes or shapes, in words


def has_gymnax_step(gym: object) -> bool:
    """Whether an environment steps as gymnax does, by `step_env` and `reset_env`."""
    return getattr(type(gym), "step", None) is Gymnax.step


def name_of(gym: object) -> str:
    """The name of an environment in errors."""
    name = getattr(gym, "name", None)
    return name if isinstance(name, str) else type(gym).__name__


def check_hooks(gym: GymEnv, params: GymParams | None) -> GymParams:
    """Return the parameters to use, once all that is called is there.

    Raises:
      ValueError: something is missing, or cannot be hashed; names the class and it.
    """
    name = name_of(gym)
    if isinstance(gym, str | type):
        what = f"the name {gym!r}: envs.make takes names"
        if isinstance(gym, type):
            what = f"the class {gym.__name__}: give an object, {gym.__name__}()"
        raise ValueError(f"envs.wrap takes an environment, not {what}")
    for hook in ("reset", "step", "action_space"):
        if not callable(getattr(gym, hook, None)):
            raise ValueError(f"{name}: has no method {hook}")
    try:
        hash(gym)
    except TypeError as error:
        raise ValueError(
            f"{name}: cannot be hashed, and jit keeps programs by it; a dataclass can "
            "with @dataclass(eq=False) or (frozen=True)"
        ) from error
    if params is not None:
        return params
    if not hasattr(gym, "default_params"):
        raise ValueError(f"{name}: has no default_params; give params")
    return gym.default_params


def call(name: str, hook: str, function: Callable[[], T]) -> T:
    """Return the result of a user's function.

    Raises:
      ValueError: it failed; names the environment, the hook and what was raised.
    """
    try:
        return function()
    except (Exception, SystemExit) as error:
        text = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{name}: {hook} failed: {type(error).__name__}: {text}"
        ) from error


def find(
    gym: GymEnv, params: GymParams, *, action: Action, form: ActionFormat
) -> Contract:
    """Trace an environment once, without running it.

    Raises:
      ValueError: names the environment, the hook, what it returned and what it should.
    """
    params = call(name_of(gym), "params", lambda: jax.tree.map(_abstract, params))
    if isinstance(action, Box):
        example = jax.ShapeDtypeStruct(action.shape, jnp.float32)
    else:
        example = jax.eval_shape(form.put, Spec(_NONE, action).no_action())
    # Keys whose numbers XLA can fuse, if the environment does not mind.
    key = prng.fusible(jax.random.key(0))
    try:
        trial = _try(gym, params, action=example, key=key)
        minds = any(map(_is_key, jax.tree.leaves(trial.state)))
    except Exception:  # with jax's own keys the error is the environment's
        trial, minds = None, True
    if trial is None or (minds and key.dtype != jax.random.key(0).dtype):
        trial = _try(gym, params, action=example, key=jax.random.key(0))
    return Contract(
        obs=_described(trial.obs),
        state_dtypes=_dtypes(trial.state),
        plain_keys=minds,
        cuts=_cuts(gym, trial, params),
        made_regular=trial.notes,
    )


def _described(obs: Obs) -> ObsSpec:
    """Describe observations of shapes."""
    paths, structure = jax.tree_util.tree_flatten_with_path(obs)
    leaves = [
        ObsLeaf(
            shape=leaf.shape or (1,),
            # With jax_enable_x64 too a run is one in 32 bits.
            dtype=leaf.dtype.name.replace("64", "32"),
            name=jax.tree_util.keystr(path, simple=True, separator="/"),
        )
        for path, leaf in paths
    ]
    return ObsSpec(leaves=tuple(leaves), structure=structure)


class _Trial(NamedTuple):
    """An environment's answer to tracers."""

    obs: Obs  # tree of shapes
    state: GymState  # of shapes, with the dtypes that all steps can keep to
    reset: ClosedJaxpr
    step: ClosedJaxpr
    notes: tuple[str, ...]  # what has to be made regular, in words


class _Step(NamedTuple):
    """The shapes that a step returned."""

    observations: list[Obs]  # trees of shapes
    state: GymState
    scalars: dict[str, jax.ShapeDtypeStruct]  # reward and flags


def _try(
    gym: GymEnv, params: GymParams, *, action: jax.ShapeDtypeStruct, key: jax.Array
) -> _Trial:
    name, own = name_of(gym), not has_gymnax_step(gym)
    reset_hook, hook = ("reset", "step") if own else ("reset_env", "step_env")
    reset, first = _trace(name, reset_hook, getattr(gym, reset_hook), key, params)
    if not (isinstance(first, tuple | list) and len(first) == 2):
        what = in_words(first)
        raise ValueError(f"{name}: {reset_hook} returns {what}, not obs, state")
    obs, state = first
    if not jax.tree.leaves(obs):
        raise ValueError(f"{name}: {reset_hook} returns observations without an array")
    for path, leaf in jax.tree_util.tree_leaves_with_path(obs):
        if not leaf.size:
            what = f"observations{jax.tree_util.keystr(path)} {in_words(leaf)}"
            raise ValueError(f"{name}: {reset_hook} returns {what}: without a number")
    # A step may widen dtypes of the state: again, with what it returned.
    for _ in range(3):
        step, result = _trace(
            name, hook, getattr(gym, hook), key, state, action, params
        )
        found = _read_step(name, hook, result, own=own)
        _check_state(name, hook, before=state, after=found.state)
        before = state
        state = jax.tree.map(_wider, before, found.state)
        if _dtypes(before) == _dtypes(state):
            break
    else:
        raise ValueError(f"{name}: {hook} returns a state with ever wider dtypes")
    for x in found.observations:
        if _shapes(x) != _shapes(obs):
            what = f"{in_words(x)}, {reset_hook} {in_words(obs)}"
            raise ValueError(f"{name}: {hook} returns observations {what}")
    notes = _notes(reset_hook, hook, obs=obs, state=first[1], step=found)
    for x in found.observations:
        obs = jax.tree.map(_wider, obs, x)
    return _Trial(obs=obs, state=state, reset=reset, step=step, notes=notes)


def _notes(
    reset_hook: str,
    hook: str,
    *,
    obs: Obs,
    state: GymState,
    step: _Step,
) -> tuple[str, ...]:
    """Say where a dtype or shape is not as it should be, or not as at the reset."""
    notes = [
        f"{hook} returns {field} as {in_words(x)}, taken for true where it is not 0"
        for field, x in step.scalars.items()
        if field != "reward" and (x.shape, x.dtype) != ((), bool)
    ]
    pairs = [(f"the state{path}", x, y) for path, x, y in _pairs(state, step.state)]
    pairs += [
        (f"observations{path}", x, y)
        for path, x, y in _pairs(obs, step.observations[-1])
    ]
    notes += [
        f"{reset_hook} returns {what} as {in_words(x)}, {hook} as {in_words(y)}: one "
        "dtype holds both"
        for what, x, y in pairs
        if x.dtype != y.dtype
    ]
    return tuple(notes)


def _pairs(
    before: GymState | Obs, after: GymState | Obs
) -> list[tuple[str, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]]:
    """The leaves of two trees, with their place."""
    return [
        (jax.tree_util.keystr(path), x, y)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(before),
            jax.tree.leaves(after),
            strict=True,
        )
    ]


def _trace(
    name: str, hook: str, function: Callable[..., object], *args: Any
) -> tuple[ClosedJaxpr, Any]:
    """Return a hook's program and the shapes of its result."""
    traced = jax.make_jaxpr(function, return_shape=True)
    return call(name, hook, lambda: traced(*args))


def _read_step(name: str, hook: str, result: object, *, own: bool) -> _Step:
    expected = 6 if own else 5
    is_tuple = isinstance(result, tuple | list)
    if not (is_tuple and len(result) == expected):
        what = f"{len(result)} values" if is_tuple else in_words(result)
        should = _SIX if own else _FIVE
        raise ValueError(f"{name}: {hook} returns {what}, not {expected}: {should}")
    obs, state, reward, terminated, *rest = result
    scalars = dict(reward=reward, terminated=terminated)
    observations = [obs]
    if own:
        truncated, info = rest
        scalars["truncated"] = truncated
        if not (isinstance(info, dict) and "final_observation" in info):
            what = list(info) if isinstance(info, dict) else in_words(info)
            raise ValueError(
                f"{name}: {hook} returns an info without 'final_observation', the "
                f"observation before a reset; it has {what}"
            )
        observations.append(info["final_observation"])
    for field, value in scalars.items():
        _check_scalar(name, hook, field, value)
    return _Step(observations=observations, state=state, scalars=scalars)


def _check_scalar(name: str, hook: str, field: str, value: object) -> None:
    if isinstance(value, jax.ShapeDtypeStruct) and np.prod(value.shape) == 1:
        dtype = value.dtype
        if dtype.kind in "biuf" or dtype == jnp.bfloat16:
            return
    raise ValueError(
        f"{name}: {hook} returns {field} {in_words(value)}, expected one number"
    )


def _check_state(name: str, hook: str, *, before: GymState, after: GymState) -> None:
    """Raise unless a step keeps the structure and the shapes of the state."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"{name}: {hook} returns a state {jax.tree.structure(after)}, the reset "
            f"{jax.tree.structure(before)}"
        )
    for path, x, y in _pairs(before, after):
        if x.shape != y.shape or (_is_key(x) or _is_key(y)) and x.dtype != y.dtype:
            raise ValueError(
                f"{name}: {hook} returns the state{path} as {in_words(y)}, the reset "
                f"as {in_words(x)}"
            )


def _cuts(gym: GymEnv, trial: _Trial, params: GymParams) -> str:
    """Tell from programs when `is_truncated` may be true."""
    if not has_gymnax_step(gym):
        return "anytime"
    hooks = cast(Gymnax, gym)
    name, state = name_of(gym), trial.state
    rule, cut = _trace(name, "is_truncated", hooks.is_truncated, state, params)
    _check_scalar(name, "is_truncated", "truncated", cut)
    if getattr(hooks.is_truncated, "__func__", None) is not Gymnax.is_truncated:
        false = _Origin(place=None, added=0)
        never = _origin(rule, rule.jaxpr.outvars[0]) == false
        return "never" if never else "anytime"
    times = [
        i for i, (path, _, _) in enumerate(_pairs(state, state)) if path == ".time"
    ]
    if len(times) != 1 or type(gym).reset is not Gymnax.reset:
        return "anytime"
    # Of the results observations come before the state, of the arguments the key.
    result = len(jax.tree.leaves(trial.obs)) + times[0]
    at_reset = _origin(trial.reset, trial.reset.jaxpr.outvars[result])
    at_step = _origin(trial.step, trial.step.jaxpr.outvars[result])
    from_zero = at_reset == _Origin(place=None, added=0)
    by_one = at_step == _Origin(place=1 + times[0], added=1)
    return "limit" if from_zero and by_one else "anytime"


class _Origin(NamedTuple):
    """A count is an input of the program, or nothing, plus a constant."""

    place: int | None  # of the input; None: nothing
    added: int  # the constant


def _origin(program: ClosedJaxpr, var: Var | Literal) -> _Origin | None:
    """Return where a count in a program comes from, None if it is no such sum."""
    jaxpr = program.jaxpr
    if isinstance(var, Literal):
        return _constant(var.val)
    if var in jaxpr.invars:
        return _Origin(place=jaxpr.invars.index(var), added=0)
    if var in jaxpr.constvars:
        return _constant(program.consts[jaxpr.constvars.index(var)])
    made_by = [eqn for eqn in jaxpr.eqns if var in eqn.outvars]
    if not made_by:
        return None
    eqn, kind = made_by[0], made_by[0].primitive.name
    if kind in _SAME and eqn.outvars[0].aval.size == 1:
        return _origin(program, eqn.invars[0])
    if kind in ("jit", "pjit"):
        inner = eqn.params["jaxpr"]
        found = _origin(inner, inner.jaxpr.outvars[eqn.outvars.index(var)])
        if found is None or found.place is None:
            return found
        outside = _origin(program, eqn.invars[found.place])
        return _sum(outside, _Origin(place=None, added=found.added))
    if kind == "add":
        one, other = eqn.invars
        return _sum(_origin(program, one), _origin(program, other))
    return None


def _constant(value: Any) -> _Origin | None:
    if isinstance(value, Tracer) or np.ndim(value) or value != int(value):
        return None
    return _Origin(place=None, added=int(value))


def _sum(one: _Origin | None, other: _Origin | None) -> _Origin | None:
    """Return the origin of a sum; there is none for the sum of two inputs."""
    if one is None or other is None:
        return None
    inputs = [origin.place for origin in (one, other) if origin.place is not None]
    place = inputs[0] if inputs else None
    added = one.added + other.added
    return None if len(inputs) > 1 else _Origin(place=place, added=added)


def _abstract(leaf: ArrayLike) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a parameter, whatever holds it."""
    aval = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _is_key(leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _dtypes(state: GymState) -> tuple[str | None, ...]:
    leaves = jax.tree.leaves(state)
    return tuple(None if _is_key(leaf) else leaf.dtype.name for leaf in leaves)


def _wider(x: jax.ShapeDtypeStruct, y: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """A leaf of the state with a dtype for what both hold."""
    dtype = x.dtype if _is_key(x) else jnp.promote_types(x.dtype, y.dtype)
    return jax.ShapeDtypeStruct(x.shape, dtype)


def _shapes(tree: object) -> object:
    """The shapes of a tree's leaves, in their structure."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [getattr(leaf, "shape", None) for leaf in leaves]


def in_words(value: object) -> str:
    """A result in words."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    return f"{jax.tree.map(in_words, value)}" if value is not None else "None"


def regular_state(contract: Contract, state: GymState) -> GymState:
    """Give a state the dtypes of the contract, none of them weak.

    Every step then returns what it was given, and nothing compiles twice.
    """
    leaves, structure = jax.tree.flatten(state)
    return structure.unflatten(
        leaf if dtype is None else jax.lax.convert_element_type(leaf, dtype)
        for leaf, dtype in zip(leaves, contract.state_dtypes, strict=True)
    )


def with_new_keys(state: GymState, key: jax.Array) -> GymState:
    """Draw anew the typed keys in states `[N, ...]`, from keys `[N]`."""

    def draw(leaf: jax.Array) -> jax.Array:
        if not _is_key(leaf):
            return leaf
        split = jax.vmap(lambda key: jax.random.split(key, leaf.shape[1:]))
        return prng.plain(split(key))

    return jax.tree.map(draw, state)


def flag(value: ArrayLike) -> jax.Array:
    """Make `[]` bool of a truth value of any dtype and any shape with one element."""
    value = jnp.asarray(value).reshape(())
    return value if value.dtype == bool else value != 0


def keys_for(contract: Contract, key: jax.Array) -> jax.Array:
    """Return keys to hand to the environment."""
    return prng.plain(key) if contract.plain_keys else key
