"""Unroll a policy in a batch of environments."""

from typing import Any

import jax

from rljax.envs import BatchedEnv, where
from rljax.types import Agent, Rollout, TrainState


def unroll(
    agent: Agent,
    env: BatchedEnv,
    config: Any,
    ts: TrainState,
    key: jax.Array,
    length: int,
) -> tuple[TrainState, Rollout, dict[str, jax.Array]]:
    """Act for `length` steps with exploration.

    Args:
      agent: its `act` and `memory` are used.
      env: N environments.
      config: the agent's config.
      ts: where to start; `ts.agent` is read, not changed.
      key: `[]` typed key, consumed here; `ts.key` is left alone.
      length: T.

    Returns:
      The train state after T steps, the rollout `[T, N, ...]` and the environment's
      `info` `[T, N]`.
    """
    num_envs = ts.obs.shape[0]
    act_key, env_key = jax.random.split(key)
    keys = jax.random.split(act_key, length)
    noises = env.draw(env_key, length, num_envs)
    first_memory = agent.memory(config, num_envs)

    def step(carry: Any, inputs: Any) -> Any:
        env_state, obs, memory = carry
        key, noise = inputs
        action, next_memory, extras = agent.act(
            config, ts.agent, memory, obs, key, explore=True
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

    start = (ts.env, ts.obs, ts.memory)
    end, (rollout, info) = jax.lax.scan(step, start, (keys, noises))
    env_state, obs, memory = end
    ts = ts._replace(
        env=env_state, obs=obs, memory=memory, step=ts.step + length * num_envs
    )
    return ts, rollout, info
