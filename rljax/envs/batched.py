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
from rljax.types import (
    Box,
    EnvState,
    Masked,
    Obs,
    ObsLeaf,
    Spec,
    States,
    TimeStep,
    num_rows,
)

_MANY = 2**24  # steps, more than a rollout has; up to here floats count them exactly
_BULK = 2**28  # bytes of first states that are drawn before a rollout
NO_LIMIT = 100_000  # steps of an evaluation episode, where an environment has no limit


class Noise(NamedTuple):
    """Randomness of one step: all that does not depend on the state."""

    key: jax.Array  # [N] key of the transition
    reset_key: jax.Array | None = None  # [R] keys of resets that are still to come
    reset_obs: Obs | None = None  # [R, ...] first observations, should episodes end
    reset_state: GymState | None = None  # their states


class Cached(NamedTuple):
    """State of environments that return to their own first state."""

    state: GymState  # [N, ...]
    first_obs: Obs  # [N, ...]
    first_state: GymState  # [N, ...]


class LeafFormat(NamedTuple):
    """Changes from an environment's array to the one that agents see. Hashable."""

    first_state: int = 0  # its number, where the array names states
    bounds: Box | None = None  # that are scaled to [-1, 1]; None: as it comes


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
    obs_format: tuple[LeafFormat, ...] = dataclasses.field(metadata={"static": True})
    resets: str = dataclasses.field(default="every_step", metadata={"static": True})
    # Environments for each reset in a step, where resets are optimistic.
    reset_ratio: int = dataclasses.field(default=1, metadata={"static": True})

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
        obs = jax.vmap(self._observe)(obs, state)
        if self.resets == "cached":
            return Cached(state=state, first_obs=obs, first_state=state), obs
        return state, obs

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Noise:
        """Draw `length` steps' randomness at once, and the resets they may need.

        gymnax computes a reset at every step; outside the loop the same resets are
        one batched program, unless they would take more than 256 MiB. Environments
        with a `step` of their own keep it.
        """
        keys = jax.random.split(key, (2, length, num_envs))
        step_key, reset_key = boundary.keys_for(self.contract, keys)
        if not boundary.has_gymnax_step(self.gym):
            return Noise(key=step_key)
        reset_key = reset_key[:, : -(-num_envs // self.reset_ratio)]
        key_shape = jax.ShapeDtypeStruct((), step_key.dtype)
        first = jax.eval_shape(self._reset, key_shape)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(first))
        if self.resets == "cached" or size * reset_key.size > _BULK:
            return Noise(key=step_key, reset_key=reset_key)
        reset_obs, reset_state = jax.vmap(jax.vmap(self._reset))(reset_key)
        return Noise(key=step_key, reset_obs=reset_obs, reset_state=reset_state)

    def step(
        self, noise: Noise, state: EnvState, action: jax.Array
    ) -> tuple[EnvState, TimeStep]:
        """Step every environment; one whose episode ended starts the next."""
        action = self._regular_action(action)
        if not boundary.has_gymnax_step(self.gym):
            state, timestep = jax.vmap(self._own_step)(noise.key, state, action)
            return boundary.regular_state(self.contract, state), timestep
        inner = self.gym_state(state)
        inner, timestep = jax.vmap(self._transition)(noise.key, inner, action)
        ended = timestep.terminated | timestep.truncated
        fresh = self._fresh(noise, state, ended)
        obs, inner = where(ended, fresh, (timestep.next_obs, inner))
        inner = boundary.regular_state(self.contract, inner)
        timestep = timestep._replace(obs=obs)
        if isinstance(state, Cached):
            return state._replace(state=inner), timestep
        return inner, timestep

    def _fresh(
        self, noise: Noise, state: EnvState, ended: jax.Array
    ) -> tuple[Obs, GymState]:
        """First observations and states `[N, ...]`, should episodes end."""
        if isinstance(state, Cached):
            assert noise.reset_key is not None
            keyed = boundary.with_new_keys(state.first_state, noise.reset_key)
            return state.first_obs, keyed
        if noise.reset_key is None:
            fresh = (noise.reset_obs, noise.reset_state)
        else:
            fresh = jax.vmap(self._reset)(noise.reset_key)
        if self.reset_ratio == 1:
            return fresh
        # Those that ended get different ones as far as there are any.
        which = (jnp.cumsum(ended) - 1) % num_rows(fresh)
        return jax.tree.map(lambda x: x[which], fresh)

    def gym_state(self, state: EnvState) -> GymState:
        """Return gymnax's states `[N, ...]`, without what resets keep beside them."""
        return state.state if isinstance(state, Cached) else state

    def for_evaluation(self, state: EnvState) -> "Env":
        """Return the same environment: nothing here is learned."""
        return self

    def _regular_action(self, action: jax.Array) -> Any:
        """Actions within the bounds, or as the environment numbers them."""
        space, form = self.fixed_spec.action, self.action_format
        if isinstance(space, Box):
            low, high = _bounds(space)
            return jnp.clip(action, low, high)
        return action if form == ActionFormat() else form.put(action)

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
        spec = self.fixed_spec
        forms = spec.obs.tree(self.obs_format)
        seen = spec.obs.map(_regular, obs, forms)
        if not spec.masked:
            return seen
        gym = cast(MaskedGymEnv, self.gym)
        return Masked(obs=seen, legal=gym.action_mask(state, self.params))


def _regular(leaf: ObsLeaf, array: ArrayLike, form: LeafFormat) -> jax.Array:
    """Make of an array of gymnax's observation the one that agents see."""
    obs = jnp.asarray(array).reshape(leaf.shape)
    if form.bounds is not None:
        low, high = _bounds(form.bounds)
        obs = (obs - (high + low) / 2) / ((high - low) / 2)
    if isinstance(leaf.reading, States):
        obs = obs - form.first_state
    return obs.astype(leaf.dtype)


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
