"""N copies of an environment with gymnax's API, stepped at once and regular."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rljax.envs import boundary
from rljax.envs.boundary import Contract
from rljax.envs.spaces import ActionFormat
from rljax.envs.wrappers import where
from rljax.types import Box, Discrete, Spec, States, TimeStep

_MANY = 2**24  # steps, more than a rollout has; up to here floats count them exactly
NO_LIMIT = 100_000  # steps of an evaluation episode, where an environment has no limit


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
    contract: Contract = dataclasses.field(metadata={"static": True})
    # Without what hangs on the parameters: `spec` has that.
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
    def max_steps(self) -> Any:
        """Time limit of an episode, in steps; without one, that of an evaluation."""
        limit = getattr(self.params, "max_steps_in_episode", NO_LIMIT)
        if jnp.issubdtype(jnp.result_type(limit), jnp.integer):
            return limit
        limit = np.asarray(limit) if not isinstance(limit, Tracer) else limit
        return jnp.where(jnp.isinf(limit), NO_LIMIT, limit)

    def reset(self, key: jax.Array, num_envs: int) -> tuple[Any, jax.Array]:
        """First states and observations of `num_envs` episodes."""
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
            return Noise(step_key, None, None)
        reset_obs, reset_state = jax.vmap(jax.vmap(self._reset))(reset_key)
        return Noise(step_key, reset_obs, reset_state)

    def step(self, noise: Noise, state: Any, action: jax.Array) -> tuple[Any, TimeStep]:
        """Step every environment; one whose episode ended starts the next."""
        action = self._regular_action(action)
        if noise.reset_obs is None:
            step = jax.vmap(self._own_step)
            obs, state, reward, terminated, truncated, next_obs = step(
                noise.key, state, action
            )
        else:
            step = jax.vmap(self._transition)
            next_obs, state, reward, terminated, truncated = step(
                noise.key, state, action
            )
            fresh = (noise.reset_obs, noise.reset_state)
            obs, state = where(terminated | truncated, fresh, (next_obs, state))
        timestep = TimeStep(obs, reward, terminated, truncated, next_obs, {})
        return boundary.regular_state(self.contract, state), timestep

    def for_evaluation(self, state: Any) -> "Env":
        """The same: nothing here is learned."""
        return self

    def _regular_action(self, action: jax.Array) -> jax.Array:
        """Actions within the bounds, or as the environment numbers them."""
        space, form = self.fixed_spec.action, self.action_format
        if isinstance(space, Discrete):
            if form == ActionFormat():
                return action
            shape = (*action.shape, *form.shape)
            return (action + form.start).astype(form.dtype).reshape(shape)
        low, high = (
            np.reshape(np.array(bound, np.float32), space.shape)
            for bound in (space.low, space.high)
        )
        return jnp.clip(action, low, high)

    def _reset(self, key: jax.Array) -> tuple[jax.Array, Any]:
        """First observation and state of one environment."""
        obs, state = self.gym.reset_env(key, self.params)
        return self._observe(obs, state), state

    def _transition(self, key: jax.Array, state: Any, action: jax.Array) -> tuple:
        """`gymnax.Environment.step` without its reset; one environment."""
        obs, state, reward, terminated, _ = self.gym.step_env(
            key, state, action, self.params
        )
        truncated = boundary.flag(self.gym.is_truncated(state, self.params))
        terminated, reward = boundary.flag(terminated), _reward(reward)
        return self._observe(obs, state), state, reward, terminated, truncated

    def _own_step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple:
        """A `step` that resets by itself; one environment."""
        obs, state, reward, terminated, truncated, info = self.gym.step(
            key, state, action, self.params
        )
        next_obs = self._observe(info["final_observation"], state)
        terminated, truncated = boundary.flag(terminated), boundary.flag(truncated)
        obs = self._observe(obs, state)
        return obs, state, _reward(reward), terminated, truncated, next_obs

    def _observe(self, obs: jax.Array, state: Any) -> jax.Array:
        """What agents see of gymnax's observation; one environment."""
        obs = jnp.asarray(obs).reshape(self.contract.obs_shape)
        if self.obs_bounds is not None:
            low, high = (
                np.reshape(np.array(bound, np.float32), self.obs_bounds.shape)
                for bound in (self.obs_bounds.low, self.obs_bounds.high)
            )
            obs = (obs - (high + low) / 2) / ((high - low) / 2)
        spec = self.fixed_spec
        if isinstance(spec.reading, States):
            obs = obs - self.first_state
        masked = isinstance(spec.action, Discrete) and spec.action.masked
        if not masked:
            return obs.astype(spec.obs_dtype)
        legal = self.gym.action_mask(state, self.params).astype(spec.obs_dtype)
        obs = obs.astype(spec.obs_dtype)
        planes = jnp.broadcast_to(legal, (*obs.shape[:-1], len(legal)))
        return jnp.concatenate([obs, planes], axis=-1)


def _is_number(x: Any) -> bool:
    arrays = np.ndarray | np.generic | jax.Array
    known = isinstance(x, int | float | arrays) and not isinstance(x, Tracer)
    return known and np.ndim(x) == 0


def _reward(reward: Any) -> jax.Array:
    return jnp.asarray(reward, jnp.float32).reshape(())
