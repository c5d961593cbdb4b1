"""N copies of an environment with gymnax's API, stepped at once and regular."""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from rljax.envs import boundary
from rljax.envs.boundary import Contract, GymEnv, GymParams, GymState, MaskedGymEnv
from rljax.envs.spaces import ActionFormat
from rljax.envs.wrappers import where
from rljax.types import Box, Discrete, EnvState, Obs, Spec, States, TimeStep

_MANY = 2**24  # steps, more than a rollout has; up to here floats count them exactly
NO_LIMIT = 100_000  # steps of an evaluation episode, where an environment has no limit


class Noise(NamedTuple):
    """Randomness of one step: all that does not depend on the state."""

    key: jax.Array  # [N] key of the transition
    reset_obs: Obs | None  # [N, ...] first observation, should the episode end
    reset_state: GymState | None  # its state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Env:
    """N copies of one gymnax environment.

    A pytree whose leaves are the environment's parameters, so dynamics can be
    vmapped and differentiated; the gymnax object itself is static.
    """

    gym: GymEnv = dataclasses.field(metadata={"static": True})
    params: GymParams
    contract: Contract = dataclasses.field(metadata={"static": True})
    # Without `max_steps`, which depends on the parameters: `spec` has all.
    fixed_spec: Spec = dataclasses.field(metadata={"static": True})
    action_format: ActionFormat = dataclasses.field(metadata={"static": True})
    first_state: int = dataclasses.field(default=0, metadata={"static": True})
    # Bounds that observations are scaled by, to [-1, 1]; None: as they come.
    obs_bounds: Box | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def spec(self) -> Spec:
        """Observations and actions of one environment.

        Its `max_steps` is a promise, so it is the limit only where that is a number and
        the episodes are known to be cut there and not before.
        """
        if self.contract.cuts == "never":
            return self.fixed_spec._replace(max_steps=_MANY)
        limit: Any = getattr(self.params, "max_steps_in_episode", None)
        if self.contract.cuts == "anytime" or not _is_number(limit):
            return self.fixed_spec
        steps = int(min(np.ceil(float(limit)), _MANY))
        return self.fixed_spec._replace(max_steps=steps)

    @property
    def max_steps(self) -> ArrayLike:
        """Time limit of an episode, in steps; without one, the limit of evaluations."""
        limit = getattr(self.params, "max_steps_in_episode", NO_LIMIT)
        if jnp.issubdtype(jnp.result_type(limit), jnp.integer):
            return limit
        limit = np.asarray(limit) if not isinstance(limit, Tracer) else limit
        return jnp.where(jnp.isinf(limit), NO_LIMIT, limit)

    def reset(self, key: jax.Array, num_envs: int) -> tuple[EnvState, Obs]:
        """Return first states and observations of `num_envs` episodes."""
        keys = boundary.keys_for(self.contract, jax.random.split(key, num_envs))
        obs, state = jax.vmap(self.gym.reset, in_axes=(0, None))(keys, self.params)
        state = boundary.regular_state(self.contract, state)
        return state, jax.vmap(self._observe)(obs, state)

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Noise:
        """Draw `length` steps' randomness at once, and the resets they may need.

        gymnax computes a reset at every step; outside the loop the same resets are
        one batched program. Environments with a `step` of their own keep it.
        """
        keys = jax.random.split(key, (2, length, num_envs))
        step_key, reset_key = boundary.keys_for(self.contract, keys)
        if not boundary.has_gymnax_step(self.gym):
            return Noise(key=step_key, reset_obs=None, reset_state=None)
        reset_obs, reset_state = jax.vmap(jax.vmap(self._reset))(reset_key)
        return Noise(key=step_key, reset_obs=reset_obs, reset_state=reset_state)

    def step(
        self, noise: Noise, state: EnvState, action: jax.Array
    ) -> tuple[EnvState, TimeStep]:
        """Step every environment; one whose episode ended starts the next."""
        action = self._regular_action(action)
        if noise.reset_obs is None:
            step = jax.vmap(self._own_step)
            state, timestep = step(noise.key, state, action)
        else:
            step = jax.vmap(self._transition)
            state, timestep = step(noise.key, state, action)
            ended = timestep.terminated | timestep.truncated
            fresh = (noise.reset_obs, noise.reset_state)
            obs, state = where(ended, fresh, (timestep.next_obs, state))
            timestep = timestep._replace(obs=obs)
        return boundary.regular_state(self.contract, state), timestep

    def for_evaluation(self, state: EnvState) -> "Env":
        """Return the same environment: nothing here is learned."""
        return self

    def _regular_action(self, action: jax.Array) -> jax.Array:
        """Actions within the bounds, or as the environment numbers them."""
        space, form = self.fixed_spec.action, self.action_format
        if isinstance(space, Discrete):
            if form == ActionFormat():
                return action
            shape = (*action.shape, *form.shape)
            return (action + form.start).astype(form.dtype).reshape(shape)
        low, high = _bounds(space)
        return jnp.clip(action, low, high)

    @property
    def _hooks(self) -> boundary.Gymnax:
        """The environment, whose `step` is gymnax's own."""
        return cast(boundary.Gymnax, self.gym)

    def _reset(self, key: jax.Array) -> tuple[Obs, GymState]:
        """Return the first observation and state of one environment."""
        obs, state = self._hooks.reset_env(key, self.params)
        return self._observe(obs, state), state

    def _transition(
        self, key: jax.Array, state: GymState, action: jax.Array
    ) -> tuple[GymState, TimeStep]:
        """`gymnax.Environment.step` without its reset; one environment."""
        obs, state, reward, terminated, _ = self._hooks.step_env(
            key, state, action, self.params
        )
        truncated = boundary.flag(self._hooks.is_truncated(state, self.params))
        terminated, reward = boundary.flag(terminated), _reward(reward)
        next_obs = self._observe(obs, state)
        timestep = TimeStep(
            obs=next_obs,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            next_obs=next_obs,
            info={},
        )
        return state, timestep

    def _own_step(
        self, key: jax.Array, state: GymState, action: jax.Array
    ) -> tuple[GymState, TimeStep]:
        """A `step` that resets by itself; one environment."""
        obs, state, reward, terminated, truncated, info = self.gym.step(
            key, state, action, self.params
        )
        next_obs = self._observe(info["final_observation"], state)
        terminated, truncated = boundary.flag(terminated), boundary.flag(truncated)
        timestep = TimeStep(
            obs=self._observe(obs, state),
            reward=_reward(reward),
            terminated=terminated,
            truncated=truncated,
            next_obs=next_obs,
            info={},
        )
        return state, timestep

    def _observe(self, obs: Obs, state: GymState) -> Obs:
        """Make of gymnax's observation the one that agents see; one environment."""
        obs = jnp.asarray(obs).reshape(self.contract.obs_shape)
        if self.obs_bounds is not None:
            low, high = _bounds(self.obs_bounds)
            obs = (obs - (high + low) / 2) / ((high - low) / 2)
        spec = self.fixed_spec
        if isinstance(spec.reading, States):
            obs = obs - self.first_state
        masked = isinstance(spec.action, Discrete) and spec.action.masked
        if not masked:
            return obs.astype(spec.obs_dtype)
        gym = cast(MaskedGymEnv, self.gym)
        legal = gym.action_mask(state, self.params).astype(spec.obs_dtype)
        obs = obs.astype(spec.obs_dtype)
        planes = jnp.broadcast_to(legal, (*obs.shape[:-1], len(legal)))
        return jnp.concatenate([obs, planes], axis=-1)


def _bounds(box: Box) -> tuple[np.ndarray, np.ndarray]:
    """Return the bounds of a box, `[*shape]` each."""
    low = np.reshape(np.array(box.low, np.float32), box.shape)
    high = np.reshape(np.array(box.high, np.float32), box.shape)
    return low, high


def _is_number(x: object) -> bool:
    if isinstance(x, int | float | np.ndarray | np.generic | jax.Array):
        return not isinstance(x, Tracer) and np.ndim(x) == 0
    return False


def _reward(reward: ArrayLike) -> jax.Array:
    return jnp.asarray(reward, jnp.float32).reshape(())
