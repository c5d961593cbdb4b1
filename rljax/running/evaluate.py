"""Evaluation episodes, inside jit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import prng
from rljax.config import as_arrays
from rljax.contracts import BatchedEnv
from rljax.envs.wrappers import with_statistics
from rljax.types import (
    Agent,
    AgentConfig,
    EnvState,
    Memory,
    Obs,
    TrainState,
)


class Episodes(NamedTuple):
    """Finished episodes."""

    returns: jax.Array  # [episodes] float32, undiscounted
    lengths: jax.Array  # [episodes] int32, steps


class Summary(NamedTuple):
    """Finished episodes in a few numbers, `[]` each."""

    mean_return: jax.Array
    std_return: jax.Array
    min_return: jax.Array
    max_return: jax.Array
    mean_length: jax.Array  # steps


def summarize(episodes: Episodes) -> Summary:
    """Describe finished episodes by a few numbers.

    Args:
      episodes: as returned by `evaluate`.

    Example:
      >>> episodes = Episodes(jnp.array([1.0, 3.0]), jnp.array([10, 20]))
      >>> [float(number) for number in summarize(episodes)]
      [2.0, 1.0, 1.0, 3.0, 15.0]
    """
    return Summary(
        mean_return=episodes.returns.mean(),
        std_return=episodes.returns.std(),
        min_return=episodes.returns.min(),
        max_return=episodes.returns.max(),
        mean_length=episodes.lengths.mean(dtype=jnp.float32),
    )


class _Playing(NamedTuple):
    """Episodes that go on."""

    step: jax.Array  # [] int32
    running: jax.Array  # [episodes] bool
    episodes: Episodes  # so far
    env: EnvState
    obs: Obs
    memory: Memory
    key: jax.Array  # [] typed key


def evaluate(
    agent: Agent,
    env: BatchedEnv,
    config: AgentConfig,
    train_state: TrainState,
    key: jax.Array,
    episodes: int = 128,
    *,
    explore: bool = False,
) -> Episodes:
    """Play one episode in each of `episodes` environments.

    Each environment plays one, to its end: short episodes are not counted more often
    than long ones. An episode beyond the environment's time limit is cut there.

    Args:
      agent: its `act` is used.
      env: batched environment, as in training.
      config: the agent's config.
      train_state: its agent is evaluated, with the statistics of observations that
        its environments learned in training, which stay as they are.
      key: `[]` typed key, consumed here.
      episodes: number of episodes.
      explore: act as in training instead of greedily.

    Returns:
      Returns, of true rewards, and lengths, `[episodes]` each.

    Raises:
      TypeError: `train_state` is none: an agent's state alone lacks the statistics of
        the environments.
      ValueError: a function that the agent does not have.
    """
    cfg.check_functions(agent, "memory", "act")
    env = with_statistics(env)
    if not isinstance(train_state, TrainState):
        kind = type(train_state).__name__
        raise TypeError(f"train_state: must be a TrainState, not {kind}")
    config = as_arrays(config)
    env = env.for_evaluation(train_state.env)
    reset_key, key = jax.random.split(prng.fusible(key))
    env_state, obs = env.reset(reset_key, episodes)
    memory = agent.memory(config, episodes)

    def unfinished(playing: _Playing) -> jax.Array:
        return playing.running.any() & (playing.step < env.max_steps)

    def step(playing: _Playing) -> _Playing:
        key, act_key, env_key = jax.random.split(playing.key, 3)
        action, memory, _ = agent.act(
            config,
            train_state.agent,
            playing.memory,
            playing.obs,
            act_key,
            explore=explore,
        )
        noise = jax.tree.map(lambda x: x[0], env.draw(env_key, 1, episodes))
        env_state, timestep = env.step(noise, playing.env, action)
        so_far, running = playing.episodes, playing.running
        return _Playing(
            step=playing.step + 1,
            running=running & ~(timestep.terminated | timestep.truncated),
            episodes=Episodes(
                returns=so_far.returns + timestep.reward * running,
                lengths=so_far.lengths + running,
            ),
            env=env_state,
            obs=timestep.obs,
            memory=memory,
            key=key,
        )

    start = _Playing(
        step=jnp.zeros((), jnp.int32),
        running=jnp.ones(episodes, bool),
        episodes=_no_episodes(episodes),
        env=env_state,
        obs=obs,
        memory=memory,
        key=key,
    )
    return jax.lax.while_loop(unfinished, step, start).episodes


def _no_episodes(num: int) -> Episodes:
    """Episodes without a step."""
    return Episodes(
        returns=jnp.zeros(num, jnp.float32), lengths=jnp.zeros(num, jnp.int32)
    )
