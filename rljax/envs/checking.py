"""Tries an environment and tells its author, in a line each, of faults."""

import difflib
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from rljax.contracts import BatchedEnv
from rljax.envs import boundary, own, spaces
from rljax.envs.batched import Env, LeafFormat
from rljax.envs.boundary import GymEnv, GymParams
from rljax.envs.making import build, obs_space, wrap
from rljax.envs.wrappers import Wrapper, unmasked, with_statistics
from rljax.types import (
    Box,
    EnvState,
    Masked,
    MultiDiscrete,
    Obs,
    ObsLeaf,
    Randomness,
    Spec,
    States,
    TimeStep,
    num_rows,
)

_HOOKS = ("reset_env", "step_env", "is_truncated", "observe", "action_mask")
_KNOWN = {*_HOOKS, *dir(boundary.Gymnax)}
_SHOULD = {
    "is_terminal": "step_env returns terminated, and is_truncated tells the time limit",
    "max_steps": "the time limit is the field max_steps_in_episode of the parameters",
}
_NUM_ENVS = 16


class Finding(NamedTuple):
    """One line on an environment."""

    level: str  # "error": training is wrong or fails; "warning"; "note"
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


def _error(text: str) -> Finding:
    return Finding(level="error", text=text)


def _warning(text: str) -> Finding:
    return Finding(level="warning", text=text)


def _note(text: str) -> Finding:
    return Finding(level="note", text=text)


def check(
    env: GymEnv | BatchedEnv | str,
    params: GymParams | None = None,
    *,
    steps: int = 1000,
) -> list[Finding]:
    """Try an environment as training would use it.

    Results of its methods against its spaces; whether keys alone decide; true
    successors and flags at both kinds of end; time limits; NaN; masks; methods that are
    never called.

    Args:
      env: an object with gymnax's API, as `wrap` takes it, or a batched environment;
        also a name, or a reference to one's own, as `make` takes them.
      params: its parameters, its defaults unless given.
      steps: to play at random in 16 environments. 0: nothing is run, and only such
        faults are found as show in the time of a trace.

    Returns:
      Findings, none for an environment without fault.

    Raises:
      ValueError: `steps` below 0; a name or reference that leads to no environment.

    Example:
      >>> import gymnax
      >>> check(gymnax.make("CartPole-v1")[0], steps=0)
      []
    """
    if steps < 0:
        raise ValueError(f"steps={steps}: must be >= 0")
    if isinstance(env, str):
        env, of_name, _ = build(env)
        params = of_name if params is None else params
    try:
        if _is_batched(env):
            batched = cast(BatchedEnv, env)
        else:
            batched = wrap(cast(GymEnv, env), params)
        whole = with_statistics(batched)
    except ValueError as error:
        return [_error(str(error))]
    inner = _innermost(whole)
    found = _by_looking(inner) if isinstance(inner, Env) else []
    return found + (_by_playing(whole, steps) if steps else [])


def _is_batched(env: object) -> bool:
    return own.is_batched(env) or hasattr(env, "for_evaluation")


def _innermost(env: BatchedEnv) -> BatchedEnv:
    while isinstance(env, Wrapper):
        env = env.env
    return env


def _by_looking(env: Env) -> list[Finding]:
    """Find the faults that are seen without running anything."""
    name = boundary.name_of(env.gym)
    found = _unused_methods(name, env.gym) + _limit(name, env)
    found += [_note(f"{name}: {text}") for text in env.contract.made_regular]
    space = obs_space(env.gym, env.params)
    if space is None:
        return [*found, _note(f"{name}: has no observation_space")]
    inner = spaces.of_leaves(space, env.contract.obs)
    for leaf, leaf_space in zip(env.contract.obs.leaves, inner, strict=True):
        found += _against_space(name, leaf, leaf_space)
    return found


def _against_space(name: str, leaf: ObsLeaf, space: object | None) -> list[Finding]:
    """Compare an array of observations with its space."""
    what = f"observations {leaf.name!r}" if leaf.name else "observations"
    if space is None:
        return [_warning(f"{name}: {what} are not in observation_space")]
    found = []
    try:
        spaces.some_bounds(name, space, leaf.shape)
    except ValueError as error:
        found.append(_warning(str(error)))
    space_shape = tuple(getattr(space, "shape", leaf.shape)) or (1,)
    if space_shape != leaf.shape:
        text = f"{name}: {what} have shape {leaf.shape}, their space {space_shape}"
        found.append(_warning(text))
    of_space = np.dtype(getattr(space, "dtype", leaf.dtype))
    if of_space.kind != np.dtype(leaf.dtype).kind:
        text = f"{name}: {what} are {leaf.dtype}, their space {of_space.name}"
        found.append(_note(text))
    return found


def _unused_methods(name: str, gym: object) -> list[Finding]:
    """Find methods whose names are nearly hooks' names, or were hooks once."""
    own = [
        attribute
        for kind in type(gym).__mro__
        if not kind.__module__.startswith(("gymnax.", "builtins", "typing", "abc"))
        for attribute in vars(kind)
        if not attribute.startswith("_")
    ]
    found = []
    for attribute in dict.fromkeys(own):
        near = difflib.get_close_matches(attribute, _HOOKS, n=1, cutoff=0.8)
        should = _SHOULD.get(attribute)
        if near and attribute not in _KNOWN:
            should = f"did you mean {near[0]}?"
        if should:
            text = f"{name}: nothing calls {attribute}: {should}"
            found.append(_warning(text))
    return found


def _limit(name: str, env: Env) -> list[Finding]:
    limit = getattr(env.params, "max_steps_in_episode", None)
    if limit == 1:
        text = "max_steps_in_episode=1, gymnax's default: every episode is one step"
        return [_warning(f"{name}: {text}")]
    if env.contract.cuts == "anytime":
        text = "may be truncated at any time, as far as is known: every successor is "
        return [_note(f"{name}: {text}kept and valued, which costs time")]
    return []


class _Played(NamedTuple):
    """T steps of N environments."""

    steps: TimeStep  # [T, N, ...]
    spoiled: jax.Array  # [T] whether the state has a NaN
    stuck: jax.Array  # [T, N] whether no action was legal


def _play(env: BatchedEnv, key: jax.Array, length: int) -> _Played:
    """Act at random, within the masks."""
    reset_key, draw_key, act_key = jax.random.split(key, 3)
    state, obs = env.reset(reset_key, _NUM_ENVS)

    def step(
        carry: tuple[EnvState, Obs], inputs: tuple[Randomness, jax.Array]
    ) -> tuple[tuple[EnvState, Obs], _Played]:
        state, obs = carry
        noise, key = inputs
        action, stuck = random_action(env.spec, obs, key)
        state, timestep = env.step(noise, state, action)
        leaves = jax.tree.leaves(state)
        floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
        spoiled = jnp.array([False, *(jnp.isnan(x).any() for x in floats)]).any()
        played = _Played(steps=timestep, spoiled=spoiled, stuck=stuck)
        return (state, timestep.obs), played

    noises = env.draw(draw_key, length, _NUM_ENVS)
    keys = jax.random.split(act_key, length)
    return jax.lax.scan(step, (state, obs), (noises, keys))[1]


def random_action(spec: Spec, obs: Obs, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw a legal action for each environment, and tell whether there is none.

    Args:
      spec: of the environments.
      obs: `[N, ...]`, where to act.
      key: `[]` typed key, consumed here.

    Returns:
      Actions `[N, ...]`, and whether none is legal `[N]`.
    """
    action, shape = spec.action, (num_rows(obs),)
    if isinstance(action, MultiDiscrete):
        size = (*shape, len(action.num_actions))
        most = jnp.array(action.num_actions)
        return jax.random.randint(key, size, 0, most), jnp.zeros(shape, bool)
    if isinstance(action, Box):
        # An environment without bounds is tried on a few units.
        low = jnp.clip(jnp.array(action.low), -10.0, 10.0)
        high = jnp.clip(jnp.array(action.high), -10.0, 10.0)
        share = jax.random.uniform(key, (*shape, len(low)))
        chosen = low + share * (high - low)
        return chosen.reshape(*shape, *action.shape), jnp.zeros(shape, bool)
    legal = jnp.ones((*shape, action.num_actions), bool)
    if isinstance(obs, Masked):
        legal = obs.legal
    chosen = jax.random.categorical(key, jnp.where(legal, 0.0, -1e9))
    return chosen.astype(jnp.int32), ~legal.any(axis=-1)


def _by_playing(env: BatchedEnv, length: int) -> list[Finding]:
    """Find the faults that random actions show."""
    inner = _innermost(env)
    name = type(inner).__name__
    if isinstance(inner, Env):
        name = boundary.name_of(inner.gym)
    # Two programs, so that what Python draws or counts while tracing differs.
    runs = []
    for _ in range(2):
        play = jax.jit(lambda key: _play(env, key, length))
        try:
            runs.append(jax.device_get(play(jax.random.key(0))))
        except Exception as error:
            text = (str(error).splitlines() or [""])[0]
            what = f"{name}: a run fails: {type(error).__name__}: {text}"
            return [_error(what)]
    played, again = runs
    same = jax.tree.map(lambda x, y: np.array_equal(x, y, True), played, again)
    found = []
    if not all(jax.tree.leaves(same)):
        text = f"{name}: equal keys gave unequal steps: draw from the keys alone"
        found.append(_error(text))
    found += _numbers(name, played)
    found += _ends(name, env, played.steps)
    if isinstance(inner, Env):
        if env.spec.obs == inner.spec.obs:
            found += _within_bounds(name, inner, played.steps)
        if not boundary.has_gymnax_step(inner.gym):
            found += _successors(name, played.steps)
    return found


def _numbers(name: str, played: _Played) -> list[Finding]:
    found = []
    fields = [("reward", played.steps.reward)]
    paths = jax.tree_util.tree_leaves_with_path(played.steps.next_obs)
    fields += [(f"observation{jax.tree_util.keystr(at)}", x) for at, x in paths]
    for field, values in fields:
        bad = ~np.isfinite(np.asarray(values, float))
        if bad.any():
            step, env = np.argwhere(bad)[0][:2]
            value = np.asarray(values, float)[bad][0]
            text = f"{name}: {field} is {value} after step {step} of environment {env}"
            found.append(_error(text))
    if played.spoiled.any():
        step = int(played.spoiled.argmax())
        found.append(_error(f"{name}: the state has NaN after step {step}"))
    if played.stuck.any():
        step, env = np.argwhere(played.stuck)[0]
        text = f"{name}: no action is legal at step {step} of environment {env}"
        found.append(_error(text))
    return found


def _ends(name: str, env: BatchedEnv, steps: TimeStep) -> list[Finding]:
    """Whether termination and the time limit are told apart."""
    done, found = steps.terminated | steps.truncated, []
    limit = float(env.max_steps)
    if not done.any():
        if limit < len(done):
            text = f"{name}: no episode ended in {len(done)} steps, limit {limit:.0f}"
            found.append(_error(text))
        return found
    lengths = steps.info["episode_length"]
    if (lengths[done] > limit).any():
        text = f"an episode had {lengths[done].max()} steps, its limit is {limit:.0f}"
        found.append(_warning(f"{name}: {text}"))
    both = steps.terminated & steps.truncated
    if both.sum() > 0.5 * steps.truncated.sum():
        text = f"{both.sum()} of {steps.truncated.sum()} truncated steps are "
        why = "terminated too: at its time limit a task goes on, terminated should be "
        found.append(_warning(f"{name}: {text}{why}False"))
    ended = lengths[steps.terminated]
    if not steps.truncated.any() and len(ended) > _NUM_ENVS and len(set(ended)) == 1:
        text = f"all {len(ended)} episodes terminated after {ended[0]} steps: if that "
        found.append(_note(f"{name}: {text}is a time limit, truncate them"))
    return found


def _within_bounds(name: str, env: Env, steps: TimeStep) -> list[Finding]:
    """Observations against the bounds of their space."""
    inner = spaces.of_leaves(obs_space(env.gym, env.params), env.contract.obs)
    arrays = env.contract.obs.structure.flatten_up_to(unmasked(steps.next_obs))
    rows = zip(env.spec.obs.leaves, env.obs_format, inner, arrays, strict=True)
    found = []
    for leaf, form, space, array in rows:
        if isinstance(leaf.reading, States):
            found += _within_states(name, leaf.reading, form, array)
        elif form.bounds is None:
            found += _within_box(name, leaf, space, array)
    return found


def _within_states(
    name: str, reading: States, form: LeafFormat, obs: np.ndarray
) -> list[Finding]:
    wrong = (obs < 0) | (obs >= reading.number)
    if not wrong.any():
        return []
    value = int(obs[wrong][0]) + form.first_state
    text = f"{name}: an observation is {value}, its space has "
    return [_error(f"{text}{reading.number} states")]


def _within_box(
    name: str, leaf: ObsLeaf, space: object | None, array: np.ndarray
) -> list[Finding]:
    try:
        bounds = spaces.some_bounds(name, space, leaf.shape)
    except ValueError:  # told before
        bounds = None
    if bounds is None:
        return []
    obs = np.asarray(array, float)
    below, above = obs < bounds[0] - 1e-5, obs > bounds[1] + 1e-5
    if not (below | above).any():
        return []
    share = (below | above).any(axis=tuple(range(2, obs.ndim))).mean()
    value = obs[below | above][0]
    what = f"observations {leaf.name!r}" if leaf.name else "observations"
    text = f"{name}: {share:.1%} of {what} are outside of their space, one by "
    return [_warning(f"{text}the value {value:g}")]


def _successors(name: str, steps: TimeStep) -> list[Finding]:
    """Find faults of the observation before a reset, as told by a `step` of its own."""
    done, found = steps.terminated | steps.truncated, []

    def equal_arrays(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x == y).reshape(*done.shape, -1).all(axis=-1)

    pairs = jax.tree.map(equal_arrays, steps.obs, steps.next_obs)
    equal = np.logical_and.reduce(jax.tree.leaves(pairs))
    if not equal[~done].all():
        text = f"{name}: within an episode info['final_observation'] is not the "
        found.append(_error(f"{text}observation that follows"))
    ends = {"terminated": steps.terminated, "truncated": steps.truncated}
    for kind, at in ends.items():
        if at.any() and equal[at].all():
            text = f"{name}: where a step {kind}, info['final_observation'] is the "
            found.append(_error(f"{text}first one of the next episode: give the last"))
    return found
