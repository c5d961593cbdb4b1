"""Evaluation episodes, inside jit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import prng
from rljax.config import as_arrays
from rljax.contracts import BatchedEnv
from rljax.envs.wrappers import with_statistics
from rljax.types import Agent, TrainState


class Episodes(NamedTuple):
    """Finished episodes."""

    returns: jax.Array  # [episodes] float32, undiscounted
    lengths: jax.Array  # [episodes] int32, steps


def evaluate(
    agent: Agent,
    env: BatchedEnv,
    config: Any,
    ts: TrainState,
    key: jax.Array,
    episodes: int = 128,
    *,
    explore: bool = False,
) -> Episodes:
    """Play one episode in each of `episodes` environments.

    One episode each, to its end: short episodes are not counted more often than
    long ones. An episode beyond the environment's time limit is cut there.

    Args:
      agent: its `act` is used.
      env: batched environment, as in training.
      config: the agent's config.
      ts: what to evaluate: the agent in it, with what its environments learned in
        training (statistics of observations), which stays as it is.
      key: `[]` typed key, consumed here.
      episodes: how many.
      explore: act as in training instead of greedily.

    Returns:
      Returns, of true rewards, and lengths, `[episodes]` each.

    Raises:
      TypeError: `ts` is not a train state: an agent's state alone does not say what the
        environments learned.
      ValueError: a function that the agent does not have.
    """
    cfg.check_functions(agent, "memory", "act")
    env = with_statistics(env)
    if not isinstance(ts, TrainState):
        raise TypeError(f"ts: must be a TrainState, not {type(ts).__name__}")
    config = as_arrays(config)
    env = env.for_evaluation(ts.env)
    reset_key, key = jax.random.split(prng.fusible(key))
    env_state, obs = env.reset(reset_key, episodes)
    memory = agent.memory(config, episodes)
    zeros = jnp.zeros(episodes, jnp.float32)
    result = Episodes(zeros, zeros.astype(jnp.int32))

    def unfinished(carry: Any) -> jax.Array:
        step, running = carry[0], carry[1]
        return running.any() & (step < env.max_steps)

    def step(carry: Any) -> Any:
        step, running, result, env_state, obs, memory, key = carry
        key, act_key, env_key = jax.random.split(key, 3)
        action, memory, _ = agent.act(
            config, ts.agent, memory, obs, act_key, explore=explore
        )
        noise = jax.tree.map(lambda x: x[0], env.draw(env_key, 1, episodes))
        env_state, timestep = env.step(noise, env_state, action)
        result = Episodes(
            result.returns + timestep.reward * running, result.lengths + running
        )
        running &= ~(timestep.terminated | timestep.truncated)
        return step + 1, running, result, env_state, timestep.obs, memory, key

    running = jnp.ones(episodes, bool)
    start = (jnp.zeros((), jnp.int32), running, result, env_state, obs, memory, key)
    return jax.lax.while_loop(unfinished, step, start)[2]
