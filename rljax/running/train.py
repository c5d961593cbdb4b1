"""The one training loop: pure functions to jit, vmap, shard and differentiate."""

from typing import Any

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import prng
from rljax.config import as_arrays
from rljax.contracts import BatchedEnv
from rljax.envs.wrappers import with_statistics
from rljax.running.rollout import unroll
from rljax.types import Agent, Metrics, Rollout, TrainState

_MAX_ROWS = 1000  # of metrics that `train` returns, however long it runs


def num_iterations(config: Any) -> int:
    """Iterations after warm-up until `config.total_steps`, rounded up."""
    cfg.check_fields("train", config, "num_envs", "rollout_length", "total_steps")
    steps = config.total_steps - warm_up_iterations(config) * steps_per_iteration(
        config
    )
    return max(1, -(-steps // steps_per_iteration(config)))


def warm_up_iterations(config: Any) -> int:
    """Iterations that only fill the replay: 0 where the config has no warm-up."""
    return -(-getattr(config, "warmup_steps", 0) // steps_per_iteration(config))


def steps_per_iteration(config: Any) -> int:
    """Environment steps of one rollout, all environments counted."""
    return config.num_envs * config.rollout_length


def init(agent: Agent, env: BatchedEnv, config: Any, key: jax.Array) -> TrainState:
    """Fresh agent, fresh episodes, and the warm-up of replay agents.

    Args:
      agent: made for `env.spec`.
      env: batched environment.
      config: the agent's config; checked here.
      key: `[]` typed key, consumed here.

    Returns:
      The state from which `run` goes on.

    Raises:
      ValueError: a config field out of range or missing, a function that the agent
        does not have.
    """
    cfg.check_fields("train.init", config, "validate", "num_envs", "rollout_length")
    cfg.check_functions(agent, "init", "memory", "act", "observe")
    env = with_statistics(env)
    config.validate()
    config = as_arrays(config)
    agent_key, env_key, run_key = jax.random.split(key, 3)
    env_state, obs = env.reset(env_key, config.num_envs)
    ts = TrainState(
        agent=agent.init(config, agent_key),
        env=env_state,
        obs=obs,
        memory=agent.memory(config, config.num_envs),
        key=run_key,
        step=jnp.zeros((), jnp.int32),
    )

    def warm_up(ts: TrainState, _: Any) -> tuple[TrainState, None]:
        key, rollout_key = jax.random.split(ts.key)
        ts, rollout, _ = _play(agent, env, config, ts, rollout_key)
        agent_state = agent.observe(config, ts.agent, rollout)
        return ts._replace(agent=agent_state, key=key), None

    if warm_up_iterations(config):
        ts = ts._replace(key=prng.fusible(ts.key))
        ts, _ = jax.lax.scan(warm_up, ts, None, warm_up_iterations(config))
        ts = ts._replace(key=prng.plain(ts.key))
    return ts


def run(
    agent: Agent,
    env: BatchedEnv,
    config: Any,
    ts: TrainState,
    iterations: int,
    log_every: int = 1,
) -> tuple[TrainState, Metrics]:
    """Train for a number of iterations: rollout, update, metrics.

    Args:
      agent: made for `env.spec`.
      env: batched environment.
      config: the agent's config.
      ts: from `init` or an earlier `run`; N calls equal one long call bit for bit.
      iterations: how many; static.
      log_every: iterations behind each row of metrics; must divide `iterations`.

    Returns:
      The new state, and metrics `[iterations // log_every]`: the agent's, averaged;
      `reward`, the mean of a step, as the environment gives it; `episodes` finished;
      `episode_return` and `episode_length`, averaged over them, 0 where there were
      none: weigh rows by `episodes`; `step`, environment steps so far, at most
      2^31 - 1.

    Raises:
      ValueError: `log_every` does not divide `iterations`; a config field or a function
        of the agent is missing, or `update` does not return a dict of metrics.
    """
    cfg.check_fields("train.run", config, "rollout_length")
    cfg.check_functions(agent, "memory", "act", "observe", "update")
    env = with_statistics(env)
    if iterations % log_every:
        raise ValueError(f"log_every={log_every}: must divide iterations={iterations}")
    config = as_arrays(config)

    def iteration(ts: TrainState, _: Any) -> tuple[TrainState, Metrics]:
        key, rollout_key, update_key = jax.random.split(ts.key, 3)
        ts, rollout, info = _play(agent, env, config, ts, rollout_key)
        agent_state = agent.observe(config, ts.agent, rollout)
        agent_state, metrics = agent.update(config, agent_state, rollout, update_key)
        if not isinstance(metrics, dict):
            kind = type(metrics).__name__
            raise ValueError(f"Agent.update: must return a dict of metrics, not {kind}")
        done = rollout.terminated | rollout.truncated
        sums = {
            "reward": info.get("reward", rollout.reward).mean(),
            "episodes": done.sum(dtype=jnp.float32),
            "episode_return": _sum_where(done, info["episode_return"]),
            "episode_length": _sum_where(done, info["episode_length"]),
        }
        return ts._replace(agent=agent_state, key=key), metrics | sums

    def row(ts: TrainState, _: Any) -> tuple[TrainState, Metrics]:
        if log_every == 1:
            ts, total = iteration(ts, None)
        else:
            shapes = jax.eval_shape(iteration, ts, None)[1]
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            def accumulate(carry: Any, _: Any) -> tuple[Any, None]:
                ts, metrics = iteration(carry[0], None)
                return (ts, jax.tree.map(jnp.add, carry[1], metrics)), None

            (ts, total), _ = jax.lax.scan(accumulate, (ts, zeros), None, log_every)
        return ts, _averages(total, log_every) | {"step": ts.step}

    ts = ts._replace(key=prng.fusible(ts.key))
    ts, metrics = jax.lax.scan(row, ts, None, iterations // log_every)
    return ts._replace(key=prng.plain(ts.key)), metrics


def _play(
    agent: Agent, env: BatchedEnv, config: Any, ts: TrainState, key: jax.Array
) -> tuple[TrainState, Rollout, dict[str, jax.Array]]:
    """One rollout of the agent."""
    return unroll(
        agent.act,
        env,
        config,
        ts,
        memory=agent.memory,
        key=key,
        length=config.rollout_length,
        simulates=agent.simulates,
    )


def _sum_where(mask: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(mask, x.astype(jnp.float32), 0.0).sum()


def _averages(total: Metrics, iterations: int) -> Metrics:
    """Means over iterations, and over episodes for what counts episodes."""
    per_episode = ("episode_return", "episode_length")
    episodes = total["episodes"]
    means = {name: value / iterations for name, value in total.items()}
    safe = jnp.maximum(episodes, 1.0)
    means |= {name: total[name] / safe for name in per_episode}
    return means | {"episodes": episodes}


def train(
    agent: Agent, env: BatchedEnv, config: Any, key: jax.Array
) -> tuple[TrainState, Metrics]:
    """Train from scratch for at least `config.total_steps` steps. Pure.

    `jax.jit(train, static_argnums=0)`; `jax.vmap` over `key` trains seeds at once,
    over leaves of `config` sweeps them.

    Args:
      agent: made for `env.spec`.
      env: batched environment.
      config: the agent's config.
      key: `[]` typed key, consumed here.

    Returns:
      The final state, and metrics as of `run`, at most a thousand rows.

    Example:
      >>> from rljax import agents, envs
      >>> env = envs.make("CartPole-v1")
      >>> ppo = agents.get("ppo")
      >>> config = ppo.Config(num_envs=2, rollout_length=8, total_steps=32)
      >>> ts, metrics = train(ppo.make(env.spec), env, config, jax.random.key(0))
      >>> int(ts.step), metrics["step"].tolist()
      (32, [16, 32])
    """
    iterations = num_iterations(config)
    log_every = -(-iterations // _MAX_ROWS)
    iterations = -(-iterations // log_every) * log_every
    ts = init(agent, env, config, key)
    return run(agent, env, config, ts, iterations, log_every)
