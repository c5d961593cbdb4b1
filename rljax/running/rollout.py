"""Unroll a policy in a batch of environments."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from rljax._loops import Packing, scan
from rljax.config import saturating_add
from rljax.contracts import BatchedEnv
from rljax.envs.wrappers import Statistics, where
from rljax.running import parallel
from rljax.types import (
    ActFn,
    AgentConfig,
    EnvState,
    Extras,
    Memory,
    MemoryFn,
    Obs,
    Randomness,
    Rollout,
    Simulation,
    TrainState,
    Transition,
    num_rows,
)

T = TypeVar("T")  # a tree
_UNROLLED = 4  # steps of a rollout


def unroll(
    act: ActFn,
    env: BatchedEnv,
    config: AgentConfig,
    train_state: TrainState,
    *,
    memory: MemoryFn,
    key: jax.Array,
    length: int,
    simulates: bool = False,
) -> tuple[TrainState, Rollout, dict[str, jax.Array]]:
    """Act for `length` steps with exploration.

    Args:
      act: the agent's.
      env: N environments.
      config: the agent's config.
      train_state: where to start; its `agent` is read, not changed.
      memory: the agent's, for episodes that start.
      key: `[]` typed key, consumed here; `train_state.key` is left alone.
      length: T.
      simulates: keep the environments, for `simulate`.

    Returns:
      The train state after T steps, the rollout `[T, N, ...]` and the environment's
      `info` `[T, N]`.
    """
    num_envs = num_rows(train_state.obs)
    keys = jax.random.split(key, 1 + length)
    env_key, keys = keys[0], keys[1:]
    noises = env.draw(env_key, length, num_envs)
    first_memory = memory(config, num_envs)

    def step(
        carry: tuple[EnvState, Obs, Memory], inputs: tuple[jax.Array, Randomness]
    ) -> tuple[tuple[EnvState, Obs, Memory], tuple[Rollout, dict[str, jax.Array]]]:
        env_state, obs, memory = carry
        key, noise = inputs
        action, next_memory, extras = act(
            config, train_state.agent, memory, obs, key, explore=True
        )
        env_state, timestep = env.step(noise, env_state, action)
        done = timestep.terminated | timestep.truncated
        next_memory = where(done, first_memory, next_memory)
        rollout = Rollout(
            obs=obs,
            action=action,
            reward=timestep.reward,
            terminated=timestep.terminated,
            truncated=timestep.truncated,
            next_obs=timestep.next_obs,
            extras=extras,
            memory=memory,
        )
        return (env_state, timestep.obs, next_memory), (rollout, timestep.info)

    carry = (train_state.env, train_state.obs, train_state.memory)
    packing = Packing(carry)

    def packed_step(
        packed: list[jax.Array], inputs: tuple[jax.Array, Randomness]
    ) -> tuple[list[jax.Array], tuple[Rollout, dict[str, jax.Array]]]:
        carry, outputs = step(packing.unpack(packed), inputs)
        return packing.pack(carry), outputs

    unrolled = min(length, _UNROLLED)
    end, (rollout, info) = scan(
        packed_step, packing.pack(carry), (keys, noises), unrolled=unrolled
    )
    env_state, obs, last_memory = packing.unpack(end)
    if simulates:
        simulation = Simulation(env=env, state=train_state.env, noise=noises)
        rollout = rollout._replace(simulation=simulation)
    train_state = train_state._replace(
        env=env_state,
        obs=obs,
        memory=last_memory,
        step=saturating_add(train_state.step, length * num_envs * parallel.size()),
    )
    return train_state, rollout, info


def simulate(rollout: Rollout, policy: Callable[[Obs, Extras], jax.Array]) -> Rollout:
    """Run a rollout's environments again, differentiably, as another policy acts.

    From the same state and with the same noise: the policy that acted gets its rollout
    back, to rounding. Rewards and observations have derivatives in all earlier actions
    of their episode, and in the environment's parameters. None passes from one episode
    to the next, and none through when an episode ends.

    Args:
      rollout: `[T, N, ...]`, with its `simulation`.
      policy: `(obs[N, ...], extras[N, ...]) -> action[N, ...]`, where `extras` are the
        rollout's: the decisions of chance.

    Returns:
      `[T, N, ...]`, with the old `extras`, `memory` and `simulation`.
    """
    env = rollout.simulation.env
    start = _fresh_keys(rollout.simulation.state)
    noises = _fresh_keys(rollout.simulation.noise)

    def is_shared(x: object) -> bool:  # by all environments, and without derivative
        return isinstance(x, Statistics)

    def step(
        carry: tuple[EnvState, Obs], inputs: tuple[Extras, Randomness]
    ) -> tuple[tuple[EnvState, Obs], Transition]:
        env_state, obs = carry
        extras, noise = inputs
        action = policy(obs, extras)
        env_state, new = env.step(noise, env_state, action)
        carry = (env_state, new.obs)
        done = new.terminated | new.truncated
        carry = jax.tree.map(
            lambda x: x if is_shared(x) else where(done, jax.lax.stop_gradient(x), x),
            carry,
            is_leaf=is_shared,
        )
        transition = Transition(
            obs=obs,
            action=action,
            reward=new.reward,
            terminated=new.terminated,
            truncated=new.truncated,
            next_obs=new.next_obs,
        )
        return carry, transition

    carry = (start, jax.tree.map(lambda x: x[0], rollout.obs))
    _, steps = jax.lax.scan(step, carry, (rollout.extras, noises))
    return rollout._replace(
        obs=steps.obs,
        action=steps.action,
        reward=steps.reward,
        terminated=steps.terminated,
        truncated=steps.truncated,
        next_obs=steps.next_obs,
    )


def _fresh_keys(tree: T) -> T:
    """Make keys as if nothing had consumed them yet."""

    def clone(leaf: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.clone(leaf) if is_key else leaf

    return jax.tree.map(clone, tree)
