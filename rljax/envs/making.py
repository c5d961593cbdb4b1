"""Environments by name, or from any object with gymnax's API, in their wrappers."""

import dataclasses
import inspect
from typing import Any, cast

import jax
import numpy as np
from jax.core import Tracer

from rljax.config import INT32_MAX, unknown
from rljax.contracts import BatchedEnv
from rljax.envs import adapters, boundary, spaces
from rljax.envs._gymnax import gymnax, registration
from rljax.envs.batched import Env
from rljax.envs.boundary import GymEnv, GymParams, MaskedGymEnv
from rljax.envs.two_colors import TwoColors
from rljax.envs.wrappers import (
    EpisodeStatistics,
    NormalizeObservations,
    NormalizeRewards,
    StackFrames,
    StickyActions,
    TerminalLimit,
    TimeAware,
)
from rljax.networks import observations
from rljax.types import Box, Discrete, Levels, Spec, States

if "TwoColors-v0" not in gymnax.registered_envs:  # when this module is reloaded
    gymnax.register("TwoColors-v0", TwoColors)


def names(*, packages: bool = False) -> list[str]:
    """List the names that `make` knows: gymnax's, TwoColors-v0, `gymnax.register`'s.

    Args:
      packages: also list `package/Name` of other packages that are installed. They are
        imported for that, which may take ten seconds.
    """
    others = adapters.names() if packages else []
    return [*gymnax.registered_envs, *others]


def make(name: str, **params: Any) -> BatchedEnv:
    """Make a batched environment by its name.

    Args:
      name: one of `names()`, or of `names(packages=True)`: `brax/ant`.
      **params: the options of `wrap` (`normalize_obs=True`), fields of the
        environment's `EnvParams` (`gravity=12.0`) or arguments of its constructor
        (`use_minimal_action_set=False`).

    Returns:
      The environment, with episode statistics.

    Raises:
      ValueError: unknown name or parameter; the near matches are listed. An environment
        that cannot be built, for want of a network or a package say. As by `wrap`.

    Example:
      >>> env = make("CartPole-v1", gravity=12.0, time_aware=True)
      >>> env.spec.obs_shape, env.spec.action
      ((5,), Discrete(num_actions=2, masked=False))
    """
    gym, params, options = build(name, **params)
    return wrap(gym, params, **options)


def build(name: str, **params: Any) -> tuple[GymEnv, GymParams, dict[str, Any]]:
    """Build the gymnax object, its parameters, and the options of `wrap`; as `make`."""
    if name in names():
        factory = registration._registry[name]
        arguments, built = list(inspect.signature(factory).parameters), _built
    elif adapters.is_name(name):
        arguments, built = adapters.options(name), adapters.make
    else:
        raise ValueError(unknown("environment", name, names(packages=True)))
    options = inspect.signature(wrap).parameters.keys() - {"gym", "params"}
    gym, defaults = built(name, {k: v for k, v in params.items() if k in arguments})
    fields = [field.name for field in dataclasses.fields(defaults)]
    overrides = {k: v for k, v in params.items() if k not in {*arguments, *options}}
    for key, value in overrides.items():
        if key not in fields:
            known = [*fields, *arguments, *options]
            raise ValueError(unknown(f"parameter of {name}", key, known))
        _check_parameter(name, key, value, default=getattr(defaults, key))
    chosen = {k: v for k, v in params.items() if k in options}
    return gym, dataclasses.replace(defaults, **overrides), chosen


def _built(name: str, arguments: dict[str, Any]) -> tuple[GymEnv, GymParams]:
    """Call `gymnax.make`; some constructors load data."""
    try:
        return gymnax.make(name, **arguments)
    except OSError as error:  # of a file or of the network
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{name} needs data that could not be loaded or downloaded: {reason}"
        ) from error


def _check_parameter(
    name: str, key: str, value: Any, *, default: float | jax.Array
) -> None:
    kinds = "iufb" if isinstance(default, bool) else "iuf"
    kind = np.asarray(value).dtype.kind
    if np.ndim(value) or kind not in kinds:
        expected = "True or False" if "b" in kinds else "a number"
        raise ValueError(f"{key}={value!r} of {name}: expected {expected}")
    if kind in "iu" and not -INT32_MAX - 1 <= int(value) <= INT32_MAX:
        raise ValueError(
            f"{key}={value!r} of {name}: must be in [{-INT32_MAX - 1}, {INT32_MAX}]"
        )


def wrap(
    gym: GymEnv,
    params: GymParams | None = None,
    *,
    scale_obs: bool = False,
    sticky_actions: float = 0.0,
    normalize_rewards: float | None = None,
    normalize_obs: bool = False,
    stack_frames: int = 1,
    time_aware: bool = False,
    terminal_limit: bool = False,
) -> BatchedEnv:
    """Make a batched environment from any object with gymnax's API.

    The object is traced once, and a misfit is told here; `check` tells more. Flags and
    rewards of any dtype are taken. Networks see observations of a Discrete space
    one-hot, and integers between bounds as fractions of them: `Spec.reading`.

    If it has a method `action_mask(state, params) -> bool[A]`, illegal actions have
    probability 0: the mask ends the last axis of observations. Agents that cannot keep
    to a mask refuse the environment.

    Args:
      gym: an object with gymnax 1.x's `reset`, six-value `step`, `action_space`
        and `default_params`; build it once, jit caches by its identity.
      params: its parameters, `gym.default_params` unless given. A
        `max_steps_in_episode` of None or infinity means no time limit.
      scale_obs: scale observations to [-1, 1] by the bounds of their space. Networks
        learn little from features as small as MountainCar's velocity, at most 0.07.
        Images of integers become four times as large.
      sticky_actions: probability that the last action is repeated: `StickyActions`.
      normalize_rewards: discount of the returns that rewards are scaled by, usually
        the agent's; None: as they come. See `NormalizeRewards`.
      normalize_obs: by running mean and variance: `NormalizeObservations`.
      stack_frames: observations side by side: `StackFrames`.
      time_aware: observations end with the time: `TimeAware`.
      terminal_limit: the time limit is the end of the task, so that the step there is
        `terminated`, not `truncated`, and nothing comes after: `TerminalLimit`.
        DiscountingChain-bsuite is such a task.

    Returns:
      The environment, with episode statistics, in wrappers of `rljax.envs.wrappers`.

    Raises:
      ValueError: a method that is missing, fails, or returns other than it should; an
        observation that is not one array, an action space other than Discrete and
        Box, bounds that leave no choice, a time limit below 1, `scale_obs` without
        finite bounds, an option out of range. Names the environment and the method.

    Example:
      >>> env = wrap(gymnax.make("Pendulum-v1")[0], normalize_obs=True, stack_frames=2)
      >>> state, obs = env.reset(jax.random.key(0), 3)
      >>> obs.shape
      (3, 6)
    """
    _check_switches(
        normalize_obs=normalize_obs,
        time_aware=time_aware,
        scale_obs=scale_obs,
        terminal_limit=terminal_limit,
    )
    _check_fraction("sticky_actions", sticky_actions)
    if type(stack_frames) is not int or stack_frames < 1:
        raise ValueError(f"stack_frames={stack_frames!r}: must be an integer >= 1")
    bare = _env(gym, params, scale_obs=scale_obs)
    if normalize_obs and isinstance(bare.spec.reading, States):
        raise ValueError(
            f"normalize_obs=True: the observations of {boundary.name_of(gym)} name "
            "states, which networks see one-hot"
        )
    if time_aware and _limit_of(bare.params) in (None, np.inf):
        raise ValueError(f"time_aware=True: {boundary.name_of(gym)} has no time limit")
    env: BatchedEnv = EpisodeStatistics(bare)
    env = TerminalLimit(env) if terminal_limit else env
    if sticky_actions:
        env = StickyActions(env, sticky_actions)
    if normalize_rewards is not None:
        _check_fraction("normalize_rewards", normalize_rewards)
        env = NormalizeRewards(env, normalize_rewards)
    env = NormalizeObservations(env) if normalize_obs else env
    env = StackFrames(env, stack_frames) if stack_frames > 1 else env
    return TimeAware(env) if time_aware else env


def _check_switches(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: must be True or False")


def _check_fraction(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: must be in [0, 1]")


def _env(gym: GymEnv, params: GymParams | None, *, scale_obs: bool) -> Env:
    """Make the bare environment, with its spec."""
    params = with_limit(gym, boundary.check_hooks(gym, params))
    name, gym = boundary.name_of(gym), _with_gradients(gym)
    space = boundary.call(name, "action_space", lambda: gym.action_space(params))
    action, form = spaces.actions(name, space)
    contract = boundary.find(gym, params, action=action, form=form)
    dtype = "bool" if _is_minatar(gym) else contract.obs_dtype
    reading, first_state = spaces.observations(
        name,
        obs_space(gym, params),
        shape=contract.obs_shape,
        dtype=np.dtype(dtype),
    )
    spec = Spec(
        obs_shape=contract.obs_shape,
        obs_dtype="int32" if isinstance(reading, States) else dtype,
        action=action,
        differentiable=bool(getattr(gym, "transition_gradients_enabled", False)),
        reading=reading,
    )
    bounds = None
    if scale_obs:
        bounds = _obs_bounds(name, gym, params, spec=spec)
        spec = spec._replace(obs_dtype="float32", reading=None)
    env = Env(
        gym=gym,
        params=params,
        contract=contract,
        fixed_spec=spec,
        action_format=form,
        first_state=first_state,
        obs_bounds=bounds,
    )
    return _masked(env) if hasattr(gym, "action_mask") else env


def with_limit(gym: GymEnv, params: GymParams) -> GymParams:
    """Give parameters a time limit that steps can be compared with.

    Raises:
      ValueError: the limit is no number, or below 1.
    """
    if not hasattr(params, "max_steps_in_episode"):
        return params
    limit = params.max_steps_in_episode
    if limit is None:
        return dataclasses.replace(params, max_steps_in_episode=np.inf)
    if isinstance(limit, Tracer):
        return params
    numbers = np.asarray(limit)
    good = numbers.dtype.kind in "iuf" and np.all(numbers >= 1)
    if not good or np.any(np.isfinite(numbers) & (numbers > INT32_MAX)):
        raise ValueError(
            f"{boundary.name_of(gym)}: max_steps_in_episode={limit!r}: must be in [1, "
            f"{INT32_MAX}], or None or infinity for no limit"
        )
    return params


def _limit_of(params: GymParams) -> float | None:
    limit: Any = getattr(params, "max_steps_in_episode", None)
    return 1 if isinstance(limit, Tracer) or np.ndim(limit) else limit


def _masked(env: Env) -> Env:
    """Put the mask of legal actions into the observations."""
    gym, spec, name = env.gym, env.fixed_spec, boundary.name_of(env.gym)
    if not isinstance(spec.action, Discrete) or isinstance(spec.reading, States):
        raise ValueError(
            f"{name}: action_mask needs Discrete actions and observations with an "
            f"axis, not {spec.action} and {spec.reading or spec.obs_shape}"
        )
    if not boundary.has_gymnax_step(gym):
        raise ValueError(
            f"{name}: action_mask needs gymnax's own step, from which the state at "
            "the end of an episode is known"
        )

    def mask(key: jax.Array) -> jax.Array:
        state = gym.reset(key, env.params)[1]
        return cast(MaskedGymEnv, gym).action_mask(state, env.params)

    key = jax.random.key(0)
    shape = boundary.call(name, "action_mask", lambda: jax.eval_shape(mask, key))
    number = spec.action.num_actions
    if (shape.shape, shape.dtype) != ((number,), bool):
        raise ValueError(f"{name}: action_mask is {shape}, expected bool[{number}]")
    obs_bounds = env.obs_bounds
    if isinstance(spec.reading, Levels):  # the flags are none: scale the others here
        low, high = observations.bounds(spec.reading, spec.obs_shape)
        obs_bounds = spaces.box_of(
            low=np.broadcast_to(low, spec.obs_shape),
            high=np.broadcast_to(high, spec.obs_shape),
        )
        spec = spec._replace(obs_dtype="float32", reading=None)
    *shape, last = spec.obs_shape
    spec = spec._replace(
        obs_shape=(*shape, last + number), action=spec.action._replace(masked=True)
    )
    return dataclasses.replace(env, fixed_spec=spec, obs_bounds=obs_bounds)


def obs_space(gym: GymEnv, params: GymParams) -> object | None:
    """Return the space of observations, None where there is none to be had."""
    try:
        return cast(boundary.Gymnax, gym).observation_space(params)
    except (AttributeError, NotImplementedError):
        return None


def _obs_bounds(name: str, gym: GymEnv, params: GymParams, *, spec: Spec) -> Box:
    space, shape = obs_space(gym, params), spec.obs_shape
    if spec.obs_dtype != "bool" and not isinstance(spec.reading, States):
        bounds = spaces.finite_bounds(name, space, shape)
        if bounds is not None:
            low, high = bounds
            return spaces.box_of(low, high)
    raise ValueError(f"scale_obs=True: {name} has no finite bounds of observations")


def _with_gradients(gym: GymEnv) -> GymEnv:
    """Leave out the stop-gradients that gymnax puts around a step unless asked."""
    # Of a wrapper gymnax would return what is inside.
    if not isinstance(gym, boundary.Gymnax):
        return gym
    if gym.transition_gradients_enabled or not gym.supports_transition_gradients:
        return gym
    return gym.with_transition_gradients()


def _is_minatar(gym: GymEnv) -> bool:
    """Whether observations are MinAtar's planes of zeros and ones."""
    inner: Any = gym
    while not isinstance(inner, boundary.Gymnax) and hasattr(inner, "_env"):
        inner = inner._env
    kinds = type(inner).__mro__
    return any("gymnax.environments.minatar" in kind.__module__ for kind in kinds)
