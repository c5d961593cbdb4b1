"""Batched environments over gymnax's six-value step. Only this file knows gymnax."""

import dataclasses
import inspect
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax._deferred import deferred
from rljax.config import unknown
from rljax.types import Box, Discrete, Spec, TimeStep

with deferred("seaborn"):  # only to draw Pong, and a third of all import time
    import gymnax
    from gymnax.environments import environment as gymnax_environment
    from gymnax.environments import spaces


class BatchedEnv(Protocol):
    """What rollouts need: N environments that reset themselves."""

    @property
    def spec(self) -> Spec:
        """Observations and actions of one environment."""
        ...

    @property
    def max_steps(self) -> Any:
        """Time limit of an episode, in steps."""
        ...

    def reset(self, key: jax.Array, num_envs: int) -> tuple[Any, Any]:
        """Return `(state, obs[N, ...])`."""
        ...

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Any:
        """Randomness of `length` steps, `[T, N, ...]`, drawn in bulk."""
        ...

    def step(self, noise: Any, state: Any, action: jax.Array) -> tuple[Any, TimeStep]:
        """One step with one row of `draw`: `(state, TimeStep)`."""
        ...


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
        return _strong(state), self._observe(obs)

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Noise:
        """Draw `length` steps' randomness at once, and the resets they may need.

        gymnax computes a reset at every step; outside the loop the same resets are
        one batched program. Environments with a `step` of their own keep it.
        """
        step_key, reset_key = jax.random.split(key, (2, length, num_envs))
        if not self._has_gymnax_step:
            return Noise(step_key, None, None)
        reset = _vmap2(lambda k: self.gym.reset_env(k, self.params))
        reset_obs, reset_state = reset(reset_key)
        return Noise(step_key, self._observe(reset_obs), reset_state)

    def step(self, noise: Noise, state: Any, action: jax.Array) -> tuple[Any, TimeStep]:
        """Step every environment; one whose episode ended starts the next."""
        if isinstance(self.spec.action, Box):
            low, high = (
                np.reshape(np.array(bound, np.float32), self.spec.action.shape)
                for bound in (self.spec.action.low, self.spec.action.high)
            )
            action = jnp.clip(action, low, high)
        if noise.reset_obs is None:
            step = jax.vmap(self.gym.step, in_axes=(0, 0, 0, None))
            obs, state, reward, terminated, truncated, info = step(
                noise.key, state, action, self.params
            )
            obs, next_obs = self._observe(obs), self._observe(info["final_observation"])
        else:
            step = jax.vmap(self._transition)
            next_obs, state, reward, terminated, truncated = step(
                noise.key, state, action
            )
            next_obs, done = self._observe(next_obs), terminated | truncated
            obs, state = where(
                done, (noise.reset_obs, noise.reset_state), (next_obs, state)
            )
        reward = jnp.asarray(reward, jnp.float32).reshape(terminated.shape)
        timestep = TimeStep(obs, reward, terminated, truncated, next_obs, {})
        return _strong(state), timestep

    def _transition(self, key: jax.Array, state: Any, action: jax.Array) -> tuple:
        """`gymnax.Environment.step` without its reset; one environment."""
        obs, state, reward, terminated, _ = self.gym.step_env(
            key, state, action, self.params
        )
        truncated = self.gym.is_truncated(state, self.params)
        return obs, state, reward, jnp.asarray(terminated), jnp.asarray(truncated)

    @property
    def _has_gymnax_step(self) -> bool:
        step = getattr(type(self.gym), "step", None)
        return step is gymnax_environment.Environment.step

    def _observe(self, obs: jax.Array) -> jax.Array:
        """What agents see of gymnax's observation."""
        if self.obs_bounds is not None:
            low, high = (
                np.reshape(np.array(bound, np.float32), self.spec.obs_shape)
                for bound in (self.obs_bounds.low, self.obs_bounds.high)
            )
            obs = (obs - (high + low) / 2) / ((high - low) / 2)
        return obs.astype(self.spec.obs_dtype)


class EpisodeState(NamedTuple):
    """State of `EpisodeStatistics`."""

    env: Any
    episode_return: jax.Array  # [N] float32, of the running episode
    episode_length: jax.Array  # [N] int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EpisodeStatistics:
    """Adds `episode_return` and `episode_length`, undiscounted, to `TimeStep.info`.

    They count the running episode up to this step: read them where
    `terminated | truncated`. Wrappers that change rewards go around this one.
    """

    env: Any

    @property
    def spec(self) -> Spec:
        """Observations and actions of one environment."""
        return self.env.spec

    @property
    def max_steps(self) -> Any:
        """Time limit of an episode, in steps."""
        return self.env.max_steps

    def reset(self, key: jax.Array, num_envs: int) -> tuple[EpisodeState, Any]:
        """Reset the inner environments and the counters."""
        state, obs = self.env.reset(key, num_envs)
        zeros = jnp.zeros(num_envs)
        return EpisodeState(state, zeros, zeros.astype(jnp.int32)), obs

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Any:
        """Randomness of the inner environments."""
        return self.env.draw(key, length, num_envs)

    def step(
        self, noise: Any, state: EpisodeState, action: jax.Array
    ) -> tuple[EpisodeState, TimeStep]:
        """Step and count."""
        env_state, ts = self.env.step(noise, state.env, action)
        episode_return = state.episode_return + ts.reward
        episode_length = state.episode_length + 1
        info = ts.info | {
            "episode_return": episode_return,
            "episode_length": episode_length,
        }
        going_on = ~(ts.terminated | ts.truncated)
        state = EpisodeState(
            env_state, episode_return * going_on, episode_length * going_on
        )
        return state, ts._replace(info=info)


def names() -> list[str]:
    """Names that `make` knows: gymnax's, with those added by `gymnax.register`."""
    return list(gymnax.registered_envs)


def make(name: str, *, scale_obs: bool = False, **params: Any) -> EpisodeStatistics:
    """Make a batched environment by its gymnax name.

    Args:
      name: one of `names()`.
      scale_obs: scale observations to [-1, 1] by the bounds of their space. Networks
        learn little from features as small as MountainCar's velocity, at most 0.07.
      **params: fields of the environment's `EnvParams` (`gravity=12.0`) or
        arguments of its constructor (`use_minimal_action_set=False`).

    Returns:
      The environment, with episode statistics.

    Raises:
      ValueError: unknown name or parameter; the near matches are listed. Bounds of
        observations to be scaled that are not finite, or not numbers.

    Example:
      >>> env = make("CartPole-v1", gravity=12.0)
      >>> env.spec.obs_shape, env.spec.action
      ((4,), Discrete(num_actions=2))
    """
    if name not in names():
        raise ValueError(unknown("environment", name, names()))
    if not isinstance(scale_obs, bool):
        raise ValueError(f"scale_obs={scale_obs!r} of {name}: must be True or False")
    factory = gymnax.registration._registry[name]
    arguments = inspect.signature(factory).parameters
    gym, defaults = gymnax.make(
        name, **{k: v for k, v in params.items() if k in arguments}
    )
    overrides = {k: v for k, v in params.items() if k not in arguments}
    fields = [field.name for field in dataclasses.fields(defaults)]
    for key, value in overrides.items():
        if key not in fields:
            known = [*fields, *arguments, "scale_obs"]
            raise ValueError(unknown(f"parameter of {name}", key, known))
        if np.ndim(value) or np.asarray(value).dtype.kind not in "iuf":
            raise ValueError(f"{key}={value!r} of {name}: expected a number")
    return wrap(gym, dataclasses.replace(defaults, **overrides), scale_obs)


def wrap(gym: Any, params: Any = None, scale_obs: bool = False) -> EpisodeStatistics:
    """Make a batched environment from any object with gymnax's API.

    Args:
      gym: an object with gymnax 1.x's `reset`, six-value `step`, `action_space`
        and `default_params`; build it once, jit caches by its identity.
      params: its parameters, `gym.default_params` unless given.
      scale_obs: as of `make`.

    Returns:
      The environment, with episode statistics.

    Raises:
      ValueError: an observation that is not one array, an action space other than
        Discrete and Box, or `scale_obs` without finite bounds.
    """
    params = gym.default_params if params is None else params
    gym = _with_gradients(gym)
    obs, _ = jax.eval_shape(gym.reset, jax.random.key(0), params)
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise ValueError(f"{gym.name}: observations must be one array, not {obs}")
    dtype = "bool" if _is_minatar(gym) else np.dtype(obs.dtype).name
    limit = getattr(params, "max_steps_in_episode", 1)
    max_steps = 1 if isinstance(limit, Tracer) else max(1, int(limit))
    differentiable = bool(getattr(gym, "transition_gradients_enabled", False))
    spec = Spec(obs.shape, dtype, _action_spec(gym, params), max_steps, differentiable)
    bounds = _obs_bounds(gym, params, spec) if scale_obs else None
    return EpisodeStatistics(Env(gym, params, spec, bounds))


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


def _vmap2(fn: Any) -> Any:
    return jax.vmap(jax.vmap(fn))


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


def where(mask: jax.Array, on_true: Any, on_false: Any) -> Any:
    """`jnp.where` over trees, with `mask` `[N]` against leaves `[N, ...]`."""

    def select(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(select, on_true, on_false)
