"""The one training loop: pure functions to jit, vmap, shard and differentiate."""

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import contracts, prng
from rljax._loops import scan
from rljax.config import as_arrays
from rljax.contracts import (
    BatchedEnv,
    NetworkConfig,
    RunConfig,
    TrainConfig,
    WarmUpConfig,
)
from rljax.envs.wrappers import with_statistics
from rljax.networks import torsos
from rljax.running import parallel
from rljax.running.evaluate import Episodes, summarize
from rljax.running.rollout import unroll
from rljax.types import Agent, Metrics, Rollout, Spec, TrainState

PER_EPISODE = ("episode_return", "episode_length")  # metrics that need one
_MAX_ROWS = 1000  # of metrics that `train` returns, however long it runs
_BATCHED = 2**21  # multiplications of products that runs vmapped together may have


def num_iterations(config: RunConfig) -> int:
    """Count the iterations after warm-up until `config.total_steps`, rounded up."""
    cfg.check_fields("train", config, "num_envs", "rollout_length", "total_steps")
    steps_each = steps_per_iteration(config)
    steps = config.total_steps - warm_up_iterations(config) * steps_each
    return max(1, -(-steps // steps_each))


def warm_up_iterations(config: RunConfig) -> int:
    """Count the iterations that only fill the replay, rounded up."""
    return -(-_warm_up_steps(config) // steps_per_iteration(config))


def _warm_up_steps(config: RunConfig) -> int:
    """Steps before the first update: 0 where the config has no warm-up."""
    if hasattr(config, "warmup_steps"):
        return cast(WarmUpConfig, config).warmup_steps
    return 0


def steps_per_iteration(config: RunConfig) -> int:
    """Count the environment steps of one rollout, in all environments."""
    return config.num_envs * config.rollout_length


def largest_product(spec: Spec, config: RunConfig) -> int | None:
    """Estimate the multiplications of a gradient step's largest matrix product.

    Args:
      spec: of the environment.
      config: the agent's.

    Returns:
      The rows of a batch times the weights of the largest matrix; None where a torso of
      images or of one's own has others, or the config lacks a network's fields.

    Example:
      >>> from rljax import agents, envs
      >>> spec = envs.make("CartPole-v1").spec
      >>> config = agents.get("dqn").Config(batch_size=64, hidden_sizes=(32, 16))
      >>> largest_product(spec, config)
      32768
    """
    if not all(hasattr(config, name) for name in contracts.fields(NetworkConfig)):
        return None
    weights = torsos.most_weights(spec, cast(NetworkConfig, config))
    if weights is None:
        return None
    steps = steps_per_iteration(config) // getattr(config, "num_minibatches", 1)
    rows = getattr(config, "batch_size", steps)
    return rows * getattr(config, "num_samples", 1) * weights  # MPO's actions in each


def runs_at_once(spec: Spec, config: RunConfig) -> int:
    """Count the runs of one device to vmap together on CPU, where that is quicker.

    Batching small programs shares the least cost of each operation; larger ones only
    leave the cache. Measured on CPU, so many runs at once against one after the other:
    4 of PPO or PQN with minibatches of 128 and layers of 64 1.1 to 1.2 times the speed,
    of PPO with minibatches of 512 1.0, of 2,048 0.8; 2 of DQN, SAC or TD3 with batches
    of 128 1.0 to 1.1, 16 of SAC 0.8.

    Args:
      spec: of the environment.
      config: of each run.

    Example:
      >>> from rljax import agents, envs
      >>> spec, ppo = envs.make("CartPole-v1").spec, agents.get("ppo")
      >>> runs_at_once(spec, ppo.Config(num_envs=4, rollout_length=128))
      4
      >>> runs_at_once(spec, ppo.Config(num_envs=64, rollout_length=128))
      1
    """
    product = largest_product(spec, config)
    if product is None:  # of images, or unknown
        return 1
    most = 2 if hasattr(config, "batch_size") else 4  # a replay each, or none
    return max(1, min(most, _BATCHED // max(1, product)))


def init(
    agent: Agent, env: BatchedEnv, config: TrainConfig, key: jax.Array
) -> TrainState:
    """Make a fresh agent, start episodes, and warm replay agents up.

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
    env_state, obs = env.reset(parallel.fold(env_key), config.num_envs)
    train_state = TrainState(
        agent=agent.init(config, agent_key),
        env=env_state,
        obs=obs,
        memory=agent.memory(config, config.num_envs),
        key=run_key,
        step=jnp.zeros((), jnp.int32),
    )

    def warm_up(train_state: TrainState, _: None) -> tuple[TrainState, None]:
        key, rollout_key = jax.random.split(train_state.key)
        train_state, rollout, _info = _play(
            agent, env, config, train_state=train_state, key=parallel.fold(rollout_key)
        )
        agent_state = agent.observe(config, train_state.agent, rollout)
        return train_state._replace(agent=agent_state, key=key), None

    iterations = warm_up_iterations(config)
    if iterations:
        train_state = train_state._replace(key=prng.fusible(train_state.key))
        train_state, _ = jax.lax.scan(warm_up, train_state, None, iterations)
        train_state = train_state._replace(key=prng.plain(train_state.key))
    return train_state


def run(
    agent: Agent,
    env: BatchedEnv,
    config: RunConfig,
    train_state: TrainState,
    iterations: int,
    log_every: int = 1,
    *,
    evaluate: Callable[[TrainState], Episodes] | None = None,
) -> tuple[TrainState, Metrics]:
    """Train for a number of iterations: rollout, update, metrics.

    Args:
      agent: made for `env.spec`.
      env: batched environment.
      config: the agent's config.
      train_state: as returned by `init` or an earlier `run`; N calls equal one long
        call bit for bit.
      iterations: number of iterations; static.
      log_every: iterations behind each row of metrics; must divide `iterations`.
      evaluate: plays episodes with the state at the end of each row, for example
        `partial(running.evaluate.evaluate, agent, env, config, key=key, episodes=32)`.
        Training is the same with it, bit for bit, as long as it draws from a key of
        its own.

    Returns:
      The new state, and metrics `[iterations // log_every]`: the agent's, averaged;
      `reward`, the mean of a step, as the environment gives it; `episodes` finished;
      `episode_return` and `episode_length`, averaged over them, 0 where there were
      none: weigh rows by `episodes`; `step`, environment steps so far, at most
      2^31 - 1. Of a split run they are those of all shards: see `parallel`. With
      `evaluate` also `eval_mean_return` and the rest of `evaluate.Summary`.

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

    @partial(jax.jit, inline=True)  # traced once
    def iteration(train_state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        key, rollout_key, update_key = jax.random.split(train_state.key, 3)
        update_key = parallel.fold(update_key)
        train_state, rollout, info = _play(
            agent, env, config, train_state=train_state, key=parallel.fold(rollout_key)
        )
        agent_state = agent.observe(config, train_state.agent, rollout)
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
        return train_state._replace(agent=agent_state, key=key), metrics | sums

    def row(train_state: TrainState, _: None) -> tuple[TrainState, Metrics]:
        if log_every == 1:
            train_state, total = iteration(train_state, None)
        else:
            shapes = jax.eval_shape(iteration, train_state, None)[1]
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            def accumulate(
                carry: tuple[TrainState, Metrics], _: None
            ) -> tuple[tuple[TrainState, Metrics], None]:
                train_state, total = carry
                train_state, metrics = iteration(train_state, None)
                return (train_state, jax.tree.map(jnp.add, total, metrics)), None

            carry = (train_state, zeros)
            (train_state, total), _ = jax.lax.scan(accumulate, carry, None, log_every)
        metrics = _averages(_of_all_shards(total), log_every)
        metrics |= {"step": train_state.step}
        if evaluate:
            found = summarize(evaluate(train_state))._asdict()
            metrics |= {f"eval_{name}": value for name, value in found.items()}
        return train_state, metrics

    train_state = train_state._replace(key=prng.fusible(train_state.key))
    train_state, metrics = scan(row, train_state, None, iterations // log_every)
    return train_state._replace(key=prng.plain(train_state.key)), metrics


def _play(
    agent: Agent,
    env: BatchedEnv,
    config: RunConfig,
    *,
    train_state: TrainState,
    key: jax.Array,
) -> tuple[TrainState, Rollout, dict[str, jax.Array]]:
    """Play one rollout of the agent."""
    return unroll(
        agent.act,
        env,
        config,
        train_state,
        memory=agent.memory,
        key=key,
        length=config.rollout_length,
        simulates=agent.simulates,
    )


def _sum_where(mask: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(mask, x.astype(jnp.float32), 0.0).sum()


def _of_all_shards(total: Metrics) -> Metrics:
    """Means over the shards of a run; sums of what counts or sums episodes."""
    episodes = {name: total[name] for name in ("episodes", *PER_EPISODE)}
    return parallel.mean(total) | parallel.total(episodes)


def _averages(total: Metrics, iterations: int) -> Metrics:
    """Means over iterations, and over episodes for what counts episodes."""
    episodes = total["episodes"]
    means = {name: value / iterations for name, value in total.items()}
    safe = jnp.maximum(episodes, 1.0)
    means |= {name: total[name] / safe for name in PER_EPISODE}
    return means | {"episodes": episodes}


def train(
    agent: Agent, env: BatchedEnv, config: TrainConfig, key: jax.Array
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
      The final state, and metrics as returned by `run`, at most a thousand rows.

    Example:
      >>> from rljax import agents, envs
      >>> env = envs.make("CartPole-v1")
      >>> ppo = agents.get("ppo")
      >>> config = ppo.Config(num_envs=2, rollout_length=8, total_steps=32)
      >>> agent = ppo.make(env.spec)
      >>> train_state, metrics = train(agent, env, config, jax.random.key(0))
      >>> int(train_state.step), metrics["step"].tolist()
      (32, [16, 32])
    """
    iterations = num_iterations(config)
    log_every = -(-iterations // _MAX_ROWS)
    iterations = -(-iterations // log_every) * log_every
    train_state = init(agent, env, config, key)
    return run(
        agent, env, config, train_state, iterations=iterations, log_every=log_every
    )
