"""What an environment returns, found by tracing it once, and made regular at each step.

The only place where shapes, dtypes and keys of a user's environment are looked at.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal

from rljax import prng
from rljax.envs._gymnax import Environment as Gymnax
from rljax.envs.spaces import ActionFormat
from rljax.types import Box, Discrete

_SIX = (
    "obs, state, reward, terminated, truncated, info (gymnax >= 1; gymnax 0.x's step "
    "has five)"
)
_FIVE = "obs, state, reward, terminated, info"
# Operations that hand on the one number they get.
_SAME = ("stop_gradient", "convert_element_type", "broadcast_in_dim", "copy", "reshape")


class Contract(NamedTuple):
    """What was found out about an environment. Hashable."""

    obs_shape: tuple[int, ...]
    obs_dtype: str
    state_dtypes: tuple[str | None, ...]  # of the leaves of a state; None for keys
    plain_keys: bool  # whether it keeps keys, or minds of which kind they are
    cuts: str  # "limit": at the limit, counted from 0; "never"; "anytime": not known
    made_regular: tuple[str, ...] = ()  # what had another dtype or shape, in words


def has_gymnax_step(gym: Any) -> bool:
    """Whether an environment steps as gymnax does, by `step_env` and `reset_env`."""
    return getattr(type(gym), "step", None) is Gymnax.step


def name_of(gym: Any) -> str:
    """What errors call an environment."""
    name = getattr(gym, "name", None)
    return name if isinstance(name, str) else type(gym).__name__


def check_hooks(gym: Any, params: Any) -> Any:
    """The parameters to use, once all that is called is there.

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


def call(name: str, hook: str, function: Callable[..., Any], *args: Any) -> Any:
    """The result of a user's function.

    Raises:
      ValueError: it failed; names the environment, the hook and what was raised.
    """
    try:
        return function(*args)
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{name}: {hook} failed: {type(error).__name__}: {text}"
        ) from error


def find(gym: Any, params: Any, action: Discrete | Box, form: ActionFormat) -> Contract:
    """Trace an environment once, without running it.

    Raises:
      ValueError: names the environment, the hook, what it returned and what it should.
    """
    params = call(name_of(gym), "params", jax.tree.map, _abstract, params)
    example = jax.ShapeDtypeStruct(form.shape, form.dtype)
    if isinstance(action, Box):
        example = jax.ShapeDtypeStruct(action.shape, jnp.float32)
    # Keys whose numbers XLA can fuse, if the environment does not mind.
    key = prng.fusible(jax.random.key(0))
    try:
        trial = _try(gym, params, example, key)
        minds = any(map(_is_key, jax.tree.leaves(trial.state)))
    except Exception:  # with jax's own keys the error is the environment's
        trial, minds = None, True
    if trial is None or (minds and key.dtype != jax.random.key(0).dtype):
        trial = _try(gym, params, example, jax.random.key(0))
    return Contract(
        obs_shape=trial.obs.shape or (1,),
        # With jax_enable_x64 too a run is one in 32 bits.
        obs_dtype=trial.obs.dtype.name.replace("64", "32"),
        state_dtypes=_dtypes(trial.state),
        plain_keys=minds,
        cuts=_cuts(gym, trial, params),
        made_regular=trial.notes,
    )


class _Trial(NamedTuple):
    """What an environment returned to tracers."""

    obs: jax.ShapeDtypeStruct
    state: Any  # with the dtypes that all steps can keep to
    reset: Any  # its program
    step: Any  # its program
    notes: tuple[str, ...]  # what has to be made regular


class _Step(NamedTuple):
    """The shapes that a step returned."""

    observations: list[Any]
    state: Any
    scalars: dict[str, Any]  # reward and flags


def _try(gym: Any, params: Any, action: Any, key: jax.Array) -> _Trial:
    name, own = name_of(gym), not has_gymnax_step(gym)
    reset_hook, hook = ("reset", "step") if own else ("reset_env", "step_env")
    reset, first = _trace(name, reset_hook, getattr(gym, reset_hook), key, params)
    if not (isinstance(first, tuple | list) and len(first) == 2):
        what = _words(first)
        raise ValueError(f"{name}: {reset_hook} returns {what}, not obs, state")
    obs, state = first
    if not isinstance(obs, jax.ShapeDtypeStruct):
        what = _words(obs)
        raise ValueError(f"{name}: observations must be one array, not {what}")
    # A step may widen dtypes of the state: again, with what it returned.
    for _ in range(3):
        step, result = _trace(
            name, hook, getattr(gym, hook), key, state, action, params
        )
        found = _read_step(name, hook, result, own)
        _check_state(name, hook, state, found.state)
        before, state = state, jax.tree.map(_wider, state, found.state)
        if _dtypes(before) == _dtypes(state):
            break
    else:
        raise ValueError(f"{name}: {hook} returns a state with ever wider dtypes")
    for x in found.observations:
        if getattr(x, "shape", None) != obs.shape:
            what = f"{_words(x)}, {reset_hook} {_words(obs)}"
            raise ValueError(f"{name}: {hook} returns observations {what}")
    notes = _notes(reset_hook, hook, obs, first[1], found)
    obs = jax.ShapeDtypeStruct(obs.shape, jnp.result_type(obs, *found.observations))
    return _Trial(obs=obs, state=state, reset=reset, step=step, notes=notes)


def _notes(
    reset_hook: str, hook: str, obs: Any, state: Any, step: _Step
) -> tuple[str, ...]:
    """What has another dtype or shape than it should, or than at the reset."""
    notes = [
        f"{hook} returns {field} as {_words(x)}, taken for true where it is not 0"
        for field, x in step.scalars.items()
        if field != "reward" and (x.shape, x.dtype) != ((), bool)
    ]
    pairs = {f"the state{path}": (x, y) for path, x, y in _pairs(state, step.state)}
    pairs["observations"] = (obs, step.observations[-1])
    notes += [
        f"{reset_hook} returns {what} as {_words(x)}, {hook} as {_words(y)}: one dtype "
        "holds both"
        for what, (x, y) in pairs.items()
        if x.dtype != y.dtype
    ]
    return tuple(notes)


def _pairs(before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    """The leaves of two states, with their place."""
    return [
        (jax.tree_util.keystr(path), x, y)
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(before),
            jax.tree.leaves(after),
            strict=True,
        )
    ]


def _trace(name: str, hook: str, function: Any, *args: Any) -> tuple[Any, Any]:
    """A hook's program and the shapes of its result."""
    program = jax.make_jaxpr(function, return_shape=True)
    return call(name, hook, program, *args)


def _read_step(name: str, hook: str, result: Any, own: bool) -> _Step:
    expected = 6 if own else 5
    is_tuple = isinstance(result, tuple | list)
    if not (is_tuple and len(result) == expected):
        what = f"{len(result)} values" if is_tuple else _words(result)
        should = _SIX if own else _FIVE
        raise ValueError(f"{name}: {hook} returns {what}, not {expected}: {should}")
    obs, state, reward, terminated, *rest = result
    scalars = dict(reward=reward, terminated=terminated)
    observations = [obs]
    if own:
        truncated, info = rest
        scalars["truncated"] = truncated
        if not (isinstance(info, dict) and "final_observation" in info):
            what = list(info) if isinstance(info, dict) else _words(info)
            raise ValueError(
                f"{name}: {hook} returns an info without 'final_observation', the "
                f"observation before a reset; it has {what}"
            )
        observations.append(info["final_observation"])
    for field, value in scalars.items():
        _check_scalar(name, hook, field, value)
    return _Step(observations, state, scalars)


def _check_scalar(name: str, hook: str, field: str, value: Any) -> None:
    good = isinstance(value, jax.ShapeDtypeStruct) and np.prod(value.shape) == 1
    kinds = "biuf" + "V" * (value.dtype == jnp.bfloat16) if good else ""
    if not good or value.dtype.kind not in kinds:
        raise ValueError(
            f"{name}: {hook} returns {field} {_words(value)}, expected one number"
        )


def _check_state(name: str, hook: str, before: Any, after: Any) -> None:
    """Raise unless a step keeps the structure and the shapes of the state."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise ValueError(
            f"{name}: {hook} returns a state {jax.tree.structure(after)}, the reset "
            f"{jax.tree.structure(before)}"
        )
    for path, x, y in _pairs(before, after):
        if x.shape != y.shape or (_is_key(x) or _is_key(y)) and x.dtype != y.dtype:
            raise ValueError(
                f"{name}: {hook} returns the state{path} as {_words(y)}, the reset as "
                f"{_words(x)}"
            )


def _cuts(gym: Any, trial: _Trial, params: Any) -> str:
    """When `is_truncated` may be true, by what programs show."""
    if not has_gymnax_step(gym):
        return "anytime"
    name, state = name_of(gym), trial.state
    rule, cut = _trace(name, "is_truncated", gym.is_truncated, state, params)
    _check_scalar(name, "is_truncated", "truncated", cut)
    if getattr(gym.is_truncated, "__func__", None) is not Gymnax.is_truncated:
        never = _origin(rule, rule.jaxpr.outvars[0]) == (None, 0)
        return "never" if never else "anytime"
    times = [
        i for i, (path, _, _) in enumerate(_pairs(state, state)) if path == ".time"
    ]
    if len(times) != 1 or type(gym).reset is not Gymnax.reset:
        return "anytime"
    # The observation, one array, comes before the state, and so does the key.
    place = 1 + times[0]
    starts = _origin(trial.reset, trial.reset.jaxpr.outvars[place])
    goes_on = _origin(trial.step, trial.step.jaxpr.outvars[place])
    return "limit" if (starts, goes_on) == ((None, 0), (place, 1)) else "anytime"


def _origin(program: Any, var: Any) -> tuple[int | None, int] | None:
    """Where a count comes from: an input and what was added to it, or a constant.

    Returns:
      `(i, k)`: input i plus k; `(None, k)`: always k; None: anything else.
    """
    jaxpr = program.jaxpr
    if isinstance(var, Literal):
        return _constant(var.val)
    if var in jaxpr.invars:
        return jaxpr.invars.index(var), 0
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
        if found is None or found[0] is None:
            return found
        return _sum(_origin(program, eqn.invars[found[0]]), (None, found[1]))
    if kind == "add":
        return _sum(*(_origin(program, x) for x in eqn.invars))
    return None


def _constant(value: Any) -> tuple[None, int] | None:
    if isinstance(value, Tracer) or np.ndim(value) or value != int(value):
        return None
    return None, int(value)


def _sum(one: Any, other: Any) -> tuple[int | None, int] | None:
    """Of two origins; there is none for the sum of two inputs."""
    if one is None or other is None:
        return None
    inputs = [i for i, _ in (one, other) if i is not None]
    return None if len(inputs) > 1 else ((*inputs, None)[0], one[1] + other[1])


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a parameter, whatever holds it."""
    aval = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _dtypes(state: Any) -> tuple[str | None, ...]:
    leaves = jax.tree.leaves(state)
    return tuple(None if _is_key(leaf) else leaf.dtype.name for leaf in leaves)


def _wider(x: Any, y: Any) -> jax.ShapeDtypeStruct:
    """A leaf of the state with a dtype for what both hold."""
    dtype = x.dtype if _is_key(x) else jnp.promote_types(x.dtype, y.dtype)
    return jax.ShapeDtypeStruct(x.shape, dtype)


def _words(value: Any) -> str:
    """A result in words."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    return f"{jax.tree.map(_words, value)}" if value is not None else "None"


def regular_state(contract: Contract, state: Any) -> Any:
    """The state with the dtypes of the contract, none of them weak.

    Every step then returns what it was given, and nothing compiles twice.
    """
    leaves, structure = jax.tree.flatten(state)
    return structure.unflatten(
        leaf if dtype is None else jax.lax.convert_element_type(leaf, dtype)
        for leaf, dtype in zip(leaves, contract.state_dtypes, strict=True)
    )


def flag(value: Any) -> jax.Array:
    """One truth value of any dtype and of any shape with one element, as `[]` bool."""
    value = jnp.asarray(value).reshape(())
    return value if value.dtype == bool else value != 0


def keys_for(contract: Contract, key: jax.Array) -> jax.Array:
    """Keys to hand to the environment."""
    return prng.plain(key) if contract.plain_keys else key
