"""Batched environments over gymnax's six-value step, which only this file knows."""

import dataclasses
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax._deferred import deferred
from rljax.config import unknown
from rljax.two_colors import TwoColors
from rljax.types import Box, Discrete, Spec, TimeStep
from rljax.wrappers import (
    BatchedEnv,
    EpisodeStatistics,
    NormalizeObservations,
    NormalizeRewards,
    StackFrames,
    StickyActions,
    TerminalLimit,
    TimeAware,
    num_masked,
    where,
)

with deferred("seaborn"):  # only to draw Pong, and a third of all import time
    import gymnax
    from gymnax.environments import environment as gymnax_environment
    from gymnax.environments import spaces

if "TwoColors-v0" not in gymnax.registered_envs:  # when this module is reloaded
    gymnax.register("TwoColors-v0", TwoColors)


class Noise(NamedTuple):
    """Randomness of one step: everything that does not depend on the state."""

    key: jax.Array  # [N] key of the transition
    reset_obs: jax.Array | None  # [N, ...] first observation, should the episode end
    reset_state: Any  # its state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Env:
    """N copies of one gymnax environment.

    A pytree whose leaves are the environment's parameters, so dynamics can be
    vmapped and differentiated; the gymnax object itself is static.
    """

    gym: Any = dataclasses.field(metadata={"static": True})
    params: Any
    spec: Spec = dataclasses.field(metadata={"static": True})
    # Bounds that observations are scaled by, to [-1, 1]; None: as they come.
    obs_bounds: Box | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def max_steps(self) -> Any:
        """Time limit of an episode, in steps."""
        return getattr(self.params, "max_steps_in_episode", 100_000)

    def reset(self, key: jax.Array, num_envs: int) -> tuple[Any, jax.Array]:
        """First states and observations of `num_envs` episodes."""
        keys = jax.random.split(key, num_envs)
        obs, state = jax.vmap(self.gym.reset, in_axes=(0, None))(keys, self.params)
        return _strong(state), jax.vmap(self._observe)(obs, state)

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Noise:
        """Draw `length` steps' randomness at once, and the resets they may need.

        gymnax computes a reset at every step; outside the loop the same resets are
        one batched program. Environments with a `step` of their own keep it.
        """
        step_key, reset_key = jax.random.split(key, (2, length, num_envs))
        if not _has_gymnax_step(self.gym):
            return Noise(step_key, None, None)
        reset_obs, reset_state = jax.vmap(jax.vmap(self._reset))(reset_key)
        return Noise(step_key, reset_obs, reset_state)

    def step(self, noise: Noise, state: Any, action: jax.Array) -> tuple[Any, TimeStep]:
        """Step every environment; one whose episode ended starts the next."""
        if isinstance(self.spec.action, Box):
            low, high = (
                np.reshape(np.array(bound, np.float32), self.spec.action.shape)
                for bound in (self.spec.action.low, self.spec.action.high)
            )
            action = jnp.clip(action, low, high)
        before = state
        if noise.reset_obs is None:
            step = jax.vmap(self.gym.step, in_axes=(0, 0, 0, None))
            obs, state, reward, terminated, truncated, info = step(
                noise.key, state, action, self.params
            )
            observe = jax.vmap(self._observe)
            obs, next_obs = (
                observe(x, state) for x in (obs, info["final_observation"])
            )
        else:
            step = jax.vmap(self._transition)
            next_obs, state, reward, terminated, truncated = step(
                noise.key, state, action
            )
            fresh = (noise.reset_obs, noise.reset_state)
            obs, state = where(terminated | truncated, fresh, (next_obs, state))
        reward = jnp.asarray(reward, jnp.float32).reshape(terminated.shape)
        timestep = TimeStep(obs, reward, terminated, truncated, next_obs, {})
        # With jax_enable_x64 a step may return another dtype than the reset did.
        state = jax.tree.map(_cast, state, before)
        return _strong(state), timestep

    def for_evaluation(self, state: Any) -> "Env":
        """The same: nothing here is learned."""
        return self

    def _reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        """First observation and state of one environment."""
        obs, state = self.gym.reset_env(key, self.params)
        return self._observe(obs, state), state

    def _transition(self, key: jax.Array, state: Any, action: jax.Array) -> tuple:
        """`gymnax.Environment.step` without its reset; one environment."""
        obs, state, reward, terminated, _ = self.gym.step_env(
            key, state, action, self.params
        )
        truncated = self.gym.is_truncated(state, self.params)
        terminated, truncated = jnp.asarray(terminated), jnp.asarray(truncated)
        return self._observe(obs, state), state, reward, terminated, truncated

    def _observe(self, obs: jax.Array, state: Any) -> jax.Array:
        """What agents see of gymnax's observation; one environment."""
        if self.obs_bounds is not None:
            low, high = (
                np.reshape(np.array(bound, np.float32), self.obs_bounds.shape)
                for bound in (self.obs_bounds.low, self.obs_bounds.high)
            )
            obs = (obs - (high + low) / 2) / ((high - low) / 2)
        obs = obs.astype(self.spec.obs_dtype)
        if not num_masked(self.spec):
            return obs
        legal = self.gym.action_mask(state, self.params).astype(obs.dtype)
        planes = jnp.broadcast_to(legal, (*obs.shape[:-1], len(legal)))
        return jnp.concatenate([obs, planes], axis=-1)


def names() -> list[str]:
    """Names that `make` knows: gymnax's, TwoColors-v0, those of `gymnax.register`."""
    return list(gymnax.registered_envs)


def make(name: str, **params: Any) -> BatchedEnv:
    """Make a batched environment by its gymnax name.

    Args:
      name: one of `names()`.
      **params: the options of `wrap` (`normalize_obs=True`), fields of the
        environment's `EnvParams` (`gravity=12.0`) or arguments of its constructor
        (`use_minimal_action_set=False`).

    Returns:
      The environment, with episode statistics.

    Raises:
      ValueError: unknown name or parameter; the near matches are listed. What `wrap`
        raises.

    Example:
      >>> env = make("CartPole-v1", gravity=12.0, time_aware=True)
      >>> env.spec.obs_shape, env.spec.action
      ((5,), Discrete(num_actions=2, masked=False))
    """
    if name not in names():
        raise ValueError(unknown("environment", name, names()))
    factory = gymnax.registration._registry[name]
    arguments = inspect.signature(factory).parameters
    options = inspect.signature(wrap).parameters.keys() - {"gym", "params"}
    gym, defaults = gymnax.make(
        name, **{k: v for k, v in params.items() if k in arguments}
    )
    fields = [field.name for field in dataclasses.fields(defaults)]
    overrides = {k: v for k, v in params.items() if k not in {*arguments, *options}}
    for key, value in overrides.items():
        if key not in fields:
            known = [*fields, *arguments, *options]
            raise ValueError(unknown(f"parameter of {name}", key, known))
        kinds = "iufb" if isinstance(getattr(defaults, key), bool) else "iuf"
        if np.ndim(value) or np.asarray(value).dtype.kind not in kinds:
            expected = "True or False" if "b" in kinds else "a number"
            raise ValueError(f"{key}={value!r} of {name}: expected {expected}")
    chosen = {k: v for k, v in params.items() if k in options}
    return wrap(gym, dataclasses.replace(defaults, **overrides), **chosen)


def wrap(
    gym: Any,
    params: Any = None,
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

    If it has a method `action_mask(state, params) -> bool[A]`, illegal actions have
    probability 0: the mask ends the last axis of observations. Agents that cannot keep
    to it refuse the environment.

    Args:
      gym: an object with gymnax 1.x's `reset`, six-value `step`, `action_space`
        and `default_params`; build it once, jit caches by its identity.
      params: its parameters, `gym.default_params` unless given.
      scale_obs: scale observations to [-1, 1] by the bounds of their space. Networks
        learn little from features as small as MountainCar's velocity, at most 0.07.
      sticky_actions: probability that the last action is repeated: `StickyActions`.
      normalize_rewards: discount of the returns that rewards are scaled by, usually
        the agent's; None: as they come. See `NormalizeRewards`.
      normalize_obs: by running mean and variance: `NormalizeObservations`.
      stack_frames: observations side by side: `StackFrames`.
      time_aware: observations end with the time: `TimeAware`.
      terminal_limit: the time limit is the end of the task, so that the step there is
        `terminated` and nothing comes after it, not `truncated`: `TerminalLimit`.
        DiscountingChain-bsuite is meant so.

    Returns:
      The environment, with episode statistics, in wrappers of `rljax.wrappers`.

    Raises:
      ValueError: an observation that is not one array, an action space other than
        Discrete and Box, `scale_obs` without finite bounds, an option out of range.

    Example:
      >>> env = wrap(gymnax.make("Pendulum-v1")[0], normalize_obs=True, stack_frames=2)
      >>> state, obs = env.reset(jax.random.key(0), 3)
      >>> obs.shape
      (3, 6)
    """
    switches = dict(normalize_obs=normalize_obs, time_aware=time_aware)
    switches |= dict(scale_obs=scale_obs, terminal_limit=terminal_limit)
    _check_switches(**switches)
    _check_fraction("sticky_actions", sticky_actions)
    if type(stack_frames) is not int or stack_frames < 1:
        raise ValueError(f"stack_frames={stack_frames!r}: must be an integer >= 1")
    env: Any = EpisodeStatistics(_env(gym, params, scale_obs))
    if not env.spec.obs_shape and (stack_frames > 1 or time_aware):
        raise ValueError(f"{gym.name}: its observations are numbers, without an axis")
    env = TerminalLimit(env) if terminal_limit else env
    if sticky_actions:
        env = StickyActions(env, sticky_actions)
    if normalize_rewards is not None:
        _check_fraction("normalize_rewards", normalize_rewards)
        env = NormalizeRewards(env, normalize_rewards)
    env = NormalizeObservations(env) if normalize_obs else env
    env = StackFrames(env, stack_frames) if stack_frames > 1 else env
    return TimeAware(env) if time_aware else env


def _check_switches(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: must be True or False")


def _check_fraction(name: str, value: Any) -> None:
    is_number = not isinstance(value, bool) and isinstance(value, int | float)
    if not (is_number and 0 <= value <= 1):
        raise ValueError(f"{name}={value!r}: must be in [0, 1]")


def _env(gym: Any, params: Any, scale_obs: bool) -> Env:
    """The bare environment, with its spec."""
    params = gym.default_params if params is None else params
    gym = _with_gradients(gym)
    obs, state = jax.eval_shape(gym.reset, jax.random.key(0), params)
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise ValueError(f"{gym.name}: observations must be one array, not {obs}")
    dtype = "bool" if _is_minatar(gym) else np.dtype(obs.dtype).name.replace("64", "32")
    action = _action_spec(gym, params)
    limit = getattr(params, "max_steps_in_episode", 1)
    max_steps = 1 if isinstance(limit, Tracer) else max(1, int(limit))
    differentiable = bool(getattr(gym, "transition_gradients_enabled", False))
    spec = Spec(obs.shape, dtype, action, max_steps, differentiable)
    bounds = _obs_bounds(gym, params, spec) if scale_obs else None
    if hasattr(gym, "action_mask"):
        spec = _masked(gym, params, spec, state)
    return Env(gym, params, spec, bounds)


def _masked(gym: Any, params: Any, spec: Spec, state: Any) -> Spec:
    """The spec with the mask of legal actions in its observations."""
    if not (isinstance(spec.action, Discrete) and spec.obs_shape):
        raise ValueError(
            f"{gym.name}: action_mask needs Discrete actions and observations with an "
            f"axis, not {spec.action} and shape {spec.obs_shape}"
        )
    if not _has_gymnax_step(gym):
        raise ValueError(
            f"{gym.name}: action_mask needs gymnax's own step, from which the state at "
            "the end of an episode is known"
        )
    mask = jax.eval_shape(gym.action_mask, state, params)
    number = spec.action.num_actions
    if (mask.shape, mask.dtype) != ((number,), bool):
        raise ValueError(f"{gym.name}: action_mask is {mask}, expected bool[{number}]")
    *shape, last = spec.obs_shape
    action = spec.action._replace(masked=True)
    return spec._replace(obs_shape=(*shape, last + number), action=action)


def _action_spec(gym: Any, params: Any) -> Discrete | Box:
    space = gym.action_space(params)
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        return _box(space)
    raise ValueError(f"{gym.name}: action space {space!r}, expected Discrete or Box")


def _obs_bounds(gym: Any, params: Any, spec: Spec) -> Box:
    space = gym.observation_space(params)
    if isinstance(space, spaces.Box) and spec.obs_dtype.startswith("float"):
        box = _box(space)
        width = np.array(box.high) - np.array(box.low)
        # gymnax writes float32's greatest number for no bound
        if np.all((width > 0) & (width < 1e30)):
            return box
    raise ValueError(f"scale_obs=True: {gym.name} has no finite bounds of observations")


def _box(space: spaces.Box) -> Box:
    shape = tuple(space.shape)
    low, high = (
        tuple(np.broadcast_to(np.asarray(bound, float), shape).ravel().tolist())
        for bound in (space.low, space.high)
    )
    return Box(shape, low, high)


def _with_gradients(gym: Any) -> Any:
    """Without the stop-gradients that gymnax puts around a step unless asked."""
    # Of a wrapper gymnax would return what is inside.
    if not isinstance(gym, gymnax_environment.Environment):
        return gym
    if gym.transition_gradients_enabled or not gym.supports_transition_gradients:
        return gym
    return gym.with_transition_gradients()


def _is_minatar(gym: Any) -> bool:
    """Whether observations are MinAtar's planes of zeros and ones."""
    while not isinstance(gym, gymnax_environment.Environment) and hasattr(gym, "_env"):
        gym = gym._env
    return any("gymnax.environments.minatar" in c.__module__ for c in type(gym).__mro__)


def _has_gymnax_step(gym: Any) -> bool:
    step = getattr(type(gym), "step", None)
    return step is gymnax_environment.Environment.step


def _cast(x: jax.Array, like: jax.Array) -> jax.Array:
    return x if x.dtype == like.dtype else x.astype(like.dtype)


def _strong(tree: Any) -> Any:
    """Without weak types, so that every step returns what it was given."""
    return jax.tree.map(
        lambda x: (
            x
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else jax.lax.convert_element_type(x, x.dtype)
        ),
        tree,
    )
