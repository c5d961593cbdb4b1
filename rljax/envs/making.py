"""Environments by name, or from any object with gymnax's API, in their wrappers."""

import dataclasses
import inspect
from collections.abc import Collection
from typing import Any, cast

import jax
import numpy as np
from jax.core import Tracer

from rljax import loading
from rljax.config import INT32_MAX, unknown
from rljax.contracts import BatchedEnv
from rljax.envs import adapters, boundary, own, spaces
from rljax.envs._gymnax import gymnax, registration
from rljax.envs.batched import Env, LeafFormat
from rljax.envs.boundary import GymEnv, GymParams, MaskedGymEnv
from rljax.envs.two_colors import TwoColors
from rljax.envs.wrappers import (
    DelayRewards,
    EpisodeStatistics,
    NormalizeObservations,
    NormalizeRewards,
    StackFrames,
    StickyActions,
    TerminalLimit,
    TimeAware,
)
from rljax.types import Discrete, ObsSpec, Spec, States

RESETS = ("every_step", "optimistic", "cached")

if "TwoColors-v0" not in gymnax.registered_envs:  # when this module is reloaded
    gymnax.register("TwoColors-v0", TwoColors)


def names(*, packages: bool = False) -> list[str]:
    """List the names that `make` knows: gymnax's, TwoColors-v0, `gymnax.register`'s.

    And those that installed packages offer, by entry points of `rljax.environments`.

    Args:
      packages: also list `package/Name` of the packages that `rljax.envs.adapters`
        knows and that are installed. They are imported for that, which may take ten
        seconds.
    """
    others = adapters.names() if packages else []
    offered = loading.offered(own.GROUP)
    return list(dict.fromkeys([*gymnax.registered_envs, *offered, *others]))


def make(name: str, /, **params: Any) -> BatchedEnv:
    """Make a batched environment by its name, or your own by reference.

    Args:
      name: one of `names()`, or of `names(packages=True)`: `brax/ant`; or a reference:
        `my.module:make_env`, or `path/to/file.py:make_env`. The reference leads to an
        object with gymnax's API, to a pair of one and its parameters, to a batched
        environment, which stays as it is, or to a function or class that returns any
        of these.
      **params: the options of `wrap` (`normalize_obs=True`), fields of the
        environment's `EnvParams` (`gravity=12.0`) or arguments of its constructor
        (`use_minimal_action_set=False`), or of your function.

    Returns:
      The environment, with episode statistics.

    Raises:
      ValueError: unknown name or parameter; the near matches are listed. An environment
        that cannot be built, for want of a network or a package say. As by `wrap`, and
        by `rljax.loading.load`.

    Example:
      >>> env = make("CartPole-v1", gravity=12.0, time_aware=True)
      >>> env.spec.obs_shape, env.spec.action
      ((5,), Discrete(num_actions=2, masked=False))
    """
    env, params, options = build(name, **params)
    if own.is_batched(env):
        return cast(BatchedEnv, env)
    return wrap(cast(GymEnv, env), params, **options)


def build(
    name: str, /, **params: Any
) -> tuple[GymEnv | BatchedEnv, GymParams, dict[str, Any]]:
    """Build the gymnax object, its parameters, and the options of `wrap`; as `make`.

    Of a batched environment there is the object alone.
    """
    options = inspect.signature(wrap).parameters.keys() - {"gym", "params"}
    env, defaults, arguments = _found(name, params, options=options)
    options = set() if own.is_batched(env) else options - {*arguments}
    fields = own.field_names(defaults)
    overrides = {k: v for k, v in params.items() if k not in {*arguments, *options}}
    for key, value in overrides.items():
        if key not in fields:
            known = [*fields, *arguments, *options]
            raise ValueError(unknown(f"parameter of {name}", key, known))
        _check_parameter(name, key, value, default=getattr(defaults, key))
    chosen = {k: v for k, v in params.items() if k in options}
    changed = dataclasses.replace(defaults, **overrides) if overrides else defaults
    return env, changed, chosen


def _found(name: str, params: dict[str, Any], *, options: Collection[str]) -> own.Built:
    """Build what a name or reference stands for, from the parameters it takes."""
    if name in gymnax.registered_envs:
        factory = registration._registry[name]
        arguments, built = inspect.signature(factory).parameters, _built
    elif (found := own.find(name)) is not None:
        return own.build(name, found, params, options=options)
    elif adapters.is_name(name) and not own.offers(name.partition("/")[0]):
        arguments, built = adapters.options(name), adapters.make
    else:
        raise ValueError(unknown("environment", name, names(packages=True)))
    gym, defaults = built(name, {k: v for k, v in params.items() if k in arguments})
    return own.Built(env=gym, params=defaults, arguments=arguments)


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
    name: str, key: str, value: Any, *, default: float | str | jax.Array
) -> None:
    if isinstance(default, str):
        if not isinstance(value, str):
            raise ValueError(f"{key}={value!r} of {name}: expected a text")
        return
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
    delay_rewards: int = 1,
    normalize_rewards: float | None = None,
    normalize_obs: bool = False,
    stack_frames: int = 1,
    time_aware: bool = False,
    terminal_limit: bool = False,
    resets: str = "every_step",
    reset_ratio: int = 16,
) -> BatchedEnv:
    """Make a batched environment from any object with gymnax's API.

    The object is traced once, and a misfit is told here; `check` tells more. Flags and
    rewards of any dtype are taken. Networks see observations of a Discrete space
    one-hot, and integers between bounds as fractions of them: `Spec.reading`.

    Observations may be a tree of arrays: dicts, tuples, NamedTuples. If the object has
    a method `action_mask(state, params) -> bool[A]`, illegal actions have probability
    0: observations are then `Masked`. Agents that cannot keep to a mask refuse the
    environment.

    Args:
      gym: an object with gymnax 1.x's `reset`, six-value `step`, `action_space`
        and `default_params`; build it once, jit caches by its identity.
      params: its parameters, `gym.default_params` unless given. A
        `max_steps_in_episode` of None or infinity means no time limit.
      scale_obs: scale observations to [-1, 1] by the bounds of their space. Networks
        learn little from features as small as MountainCar's velocity, at most 0.07.
        Images of integers become four times as large.
      sticky_actions: probability that the last action is repeated: `StickyActions`.
      delay_rewards: steps whose rewards are handed out together: `DelayRewards`.
      normalize_rewards: discount of the returns that rewards are scaled by, usually
        the agent's; None: as they come. See `NormalizeRewards`.
      normalize_obs: by running mean and variance: `NormalizeObservations`.
      stack_frames: observations side by side: `StackFrames`.
      time_aware: observations end with the time: `TimeAware`.
      terminal_limit: the time limit is the end of the task, so that the step there is
        `terminated`, not `truncated`, and nothing comes after: `TerminalLimit`.
        DiscountingChain-bsuite is such a task.
      resets: where new episodes start. "every_step": each from a reset of its own, for
        which every environment is reset at every step. "optimistic": `reset_ratio`
        environments have one reset at each step; those that end at the same step share
        first states if they are more than there are resets. "cached": each environment
        returns to its own first state, so that there are as many first states as
        environments; typed keys in states are drawn anew. Costs fall in this order.
      reset_ratio: environments for each reset, if optimistic.

    Returns:
      The environment, with episode statistics, in wrappers of `rljax.envs.wrappers`.

    Raises:
      ValueError: a method that is missing, fails, or returns other than it should; an
        observation without arrays, an action space of another kind, bounds that leave
        no choice, a time limit below 1, `scale_obs` without
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
    for name, number in (
        ("stack_frames", stack_frames),
        ("delay_rewards", delay_rewards),
    ):
        if type(number) is not int or number < 1:
            raise ValueError(f"{name}={number!r}: must be an integer >= 1")
    ratio = _reset_ratio(gym, resets, reset_ratio)
    bare = _env(gym, params, scale_obs=scale_obs, resets=resets, reset_ratio=ratio)
    if normalize_obs and all(
        isinstance(leaf.reading, States) for leaf in bare.spec.obs.leaves
    ):
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
    if delay_rewards > 1:
        env = DelayRewards(env, delay_rewards)
    if normalize_rewards is not None:
        _check_fraction("normalize_rewards", normalize_rewards)
        env = NormalizeRewards(env, normalize_rewards)
    env = NormalizeObservations(env) if normalize_obs else env
    env = StackFrames(env, stack_frames) if stack_frames > 1 else env
    return TimeAware(env) if time_aware else env


def _reset_ratio(gym: GymEnv, resets: str, reset_ratio: int) -> int:
    """Environments for each reset at a step."""
    if resets not in RESETS:
        raise ValueError(f"resets={resets!r}: must be one of {', '.join(RESETS)}")
    if type(reset_ratio) is not int or reset_ratio < 1:
        raise ValueError(f"reset_ratio={reset_ratio!r}: must be an integer >= 1")
    if resets != "every_step" and not boundary.has_gymnax_step(gym):
        raise ValueError(
            f"resets={resets!r}: {boundary.name_of(gym)} resets in a step of its own"
        )
    return reset_ratio if resets == "optimistic" else 1


def _check_switches(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: must be True or False")


def _check_fraction(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: must be in [0, 1]")


def _env(
    gym: GymEnv,
    params: GymParams | None,
    *,
    scale_obs: bool,
    resets: str,
    reset_ratio: int,
) -> Env:
    """Make the bare environment, with its spec."""
    params = with_limit(gym, boundary.check_hooks(gym, params))
    name, gym = boundary.name_of(gym), _with_gradients(gym)
    space = boundary.call(name, "action_space", lambda: gym.action_space(params))
    action, form = spaces.actions(name, space)
    contract = boundary.find(gym, params, action=action, form=form)
    obs, formats = _read(gym, params, contract.obs)
    if scale_obs:
        obs, formats = _scaled(gym, params, obs)
    env = Env(
        gym=gym,
        params=params,
        contract=contract,
        fixed_spec=Spec(
            obs=obs,
            action=action,
            differentiable=bool(getattr(gym, "transition_gradients_enabled", False)),
        ),
        action_format=form,
        obs_format=formats,
        resets=resets,
        reset_ratio=reset_ratio,
    )
    return _masked(env) if hasattr(gym, "action_mask") else env


def _read(
    gym: GymEnv, params: GymParams, bare: ObsSpec
) -> tuple[ObsSpec, tuple[LeafFormat, ...]]:
    """Say how networks see observations, by their space."""
    leaves, formats = [], []
    inner_spaces = spaces.of_leaves(obs_space(gym, params), bare)
    for leaf, space in zip(bare.leaves, inner_spaces, strict=True):
        dtype = "bool" if bare.lone and _is_minatar(gym) else leaf.dtype
        reading, first_state = spaces.observations(
            boundary.name_of(gym), space, shape=leaf.shape, dtype=np.dtype(dtype)
        )
        dtype = "int32" if isinstance(reading, States) else dtype
        leaves.append(leaf._replace(dtype=dtype, reading=reading))
        formats.append(LeafFormat(first_state=first_state))
    return bare._replace(leaves=tuple(leaves)), tuple(formats)


def _scaled(
    gym: GymEnv, params: GymParams, obs: ObsSpec
) -> tuple[ObsSpec, tuple[LeafFormat, ...]]:
    """Scale observations to [-1, 1] by the bounds of their space."""
    name, leaves, formats = boundary.name_of(gym), [], []
    inner_spaces = spaces.of_leaves(obs_space(gym, params), obs)
    for leaf, space in zip(obs.leaves, inner_spaces, strict=True):
        bounds = spaces.finite_bounds(name, space, leaf.shape)
        if bounds is None or leaf.dtype == "bool" or isinstance(leaf.reading, States):
            which = f" {leaf.name!r}" if leaf.name else ""
            raise ValueError(
                f"scale_obs=True: {name} has no finite bounds of observations{which}"
            )
        low, high = bounds
        leaves.append(leaf._replace(dtype="float32", reading=None))
        formats.append(LeafFormat(bounds=spaces.box_of(low, high)))
    return obs._replace(leaves=tuple(leaves)), tuple(formats)


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
    """Put the mask of legal actions beside the observations."""
    gym, action, name = env.gym, env.fixed_spec.action, boundary.name_of(env.gym)
    if not isinstance(action, Discrete):
        raise ValueError(f"{name}: action_mask needs Discrete actions, not {action}")
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
    number = action.num_actions
    if (shape.shape, shape.dtype) != ((number,), bool):
        what = boundary.in_words(shape)
        raise ValueError(f"{name}: action_mask is {what}, expected bool[{number}]")
    spec = env.fixed_spec._replace(action=action._replace(masked=True))
    return dataclasses.replace(env, fixed_spec=spec)


def obs_space(gym: GymEnv, params: GymParams) -> object | None:
    """Return the space of observations, None where there is none to be had.

    Raises:
      ValueError: `observation_space` fails, or returns something else.
    """
    name = boundary.name_of(gym)

    def found() -> object | None:
        try:
            return cast(boundary.Gymnax, gym).observation_space(params)
        except (AttributeError, NotImplementedError):
            return None

    if getattr(gym, "observation_space", None) is None:
        return None
    space = boundary.call(name, "observation_space", found)
    if space is not None and not spaces.is_space(space):
        raise ValueError(f"{name}: observation_space returns {space!r}, not a space")
    return space


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
