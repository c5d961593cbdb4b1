"""Unseen tasks, learned by a rule and by what the rule has to be better than."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax import agents, prng
from rljax.commands import common
from rljax.envs import grid_worlds
from rljax.meta.rules import lpg, meta_training, td
from rljax.meta.rules.meta_training import Config, Parts
from rljax.running import sharding, train
from rljax.running.evaluate import evaluate
from rljax.types import Agent, Params, TrainState

EPISODES = 128  # of each task, at the end of a life; actions are sampled
A2C_RATES, A2C_ENTROPIES = (0.01, 0.03, 0.1, 0.3), (0.0, 0.02)
RATES = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)  # of gradient descent
_NO_BOUND = 100.0  # of advantages
_AT_ONCE = 16  # runs


def test(
    parts: Parts,
    config: Config,
    rule_params: Params,
    *,
    seed: int,
    num_tasks: int,
    baselines: bool,
) -> dict[str, Any]:
    """Learn unseen tasks, print and return mean returns of the final policies.

    Args:
      parts: rule, network and tasks.
      config: of the meta-training; each agent makes `config.lifetime` updates.
      rule_params: of the rule.
      seed: of the meta-training; the tasks are drawn by a key of their own.
      num_tasks: how many.
      baselines: also learn by a rule that was not trained, by a one-step
        actor-critic in the rule's place, and by a2c; the last two with the best of
        eight settings for each task.
    """
    key = jax.random.fold_in(common.key(seed), common.EVALUATION)
    task_key, life_key = jax.random.split(key)
    keys = jax.random.split(task_key, num_tasks), jax.random.split(life_key, num_tasks)
    usual = (config.inner_rate,)
    returns = {"meta-trained rule": by_rule(parts, config, rule_params, *keys, usual)}
    if baselines:
        fresh = parts.rule.init(jax.random.fold_in(key, 1))
        returns["untrained rule"] = by_rule(parts, config, fresh, *keys, usual)
        one_step = parts._replace(rule=td.make(lpg.Settings(bound=_NO_BOUND)))
        found = by_rule(one_step, config, {}, *keys, (*usual, *RATES))
        returns["one-step actor-critic"] = found[:1]
        returns["the same, best of 8 rates"] = found[1:].max(axis=0, keepdims=True)
        found = by_a2c(parts, config, *keys)
        best = found.mean(axis=1).argmax()
        returns["a2c, best setting"] = found[best : best + 1]
        returns["a2c, best of 8 per task"] = found.max(axis=0, keepdims=True)
    returns = {name: x[0] for name, x in returns.items()}
    drawn: Any = jax.vmap(parts.draw_task)(keys[0])
    gym = drawn.env.gym
    if isinstance(gym, grid_worlds.GridWorld):
        optimum = functools.partial(grid_worlds.optimum, gym)
        best = jax.jit(lambda p: jax.lax.map(optimum, p))(drawn.env.params)
        returns["optimum of each task"] = np.asarray(best)
    print(f"mean return over {num_tasks} unseen tasks after {config.lifetime} updates")
    for name, of_tasks in returns.items():
        error = of_tasks.std() / num_tasks**0.5
        print(f"{name:28}{of_tasks.mean():9.3f} +- {error:.3f}")
    return {
        "tasks": num_tasks,
        "episodes": EPISODES,
        "mean_return": {name: float(x.mean()) for name, x in returns.items()},
        "return_per_task": {name: x.tolist() for name, x in returns.items()},
    }


def by_rule(
    parts: Parts,
    config: Config,
    rule_params: Params,
    task_keys: jax.Array,
    keys: jax.Array,
    rates: tuple[float, ...],
) -> np.ndarray:
    """Mean returns `[rates, tasks]` of policies that were learned by a rule."""

    def returns(task: jax.Array, key: jax.Array, rate: jax.Array) -> jax.Array:
        sized = dataclasses.replace(config, inner_rate=rate)
        env_key, life_key, play_key = jax.random.split(prng.fusible(key), 3)
        life = meta_training.born(
            parts, sized, task=task, env_key=env_key, key=life_key
        )
        life, _ = meta_training.live(parts, sized, rule_params, life, config.lifetime)
        state = TrainState(
            agent=life,
            env=life.env,
            obs=life.obs,
            memory=(),
            key=life.key,
            step=jnp.zeros((), jnp.int32),
        )
        agent = acting(functools.partial(meta_training.act, parts.network))
        env = parts.draw_task(task)
        return evaluate(
            agent, env, sized, state, play_key, EPISODES, explore=True
        ).returns.mean()

    return of_settings(returns, task_keys, keys, np.array(rates)[:, None])


def of_settings(
    returns: Callable[..., jax.Array],
    task_keys: jax.Array,
    keys: jax.Array,
    settings: np.ndarray,
) -> np.ndarray:
    """Call `returns(task, key, *setting)` with all settings `[S, F]`: `[S, tasks]`."""
    number, tasks = len(settings), len(keys)
    columns = np.repeat(settings, tasks, axis=0).astype(np.float32).T
    repeated = (x[np.tile(np.arange(tasks), number)] for x in (task_keys, keys))
    found = sharding.map_runs(returns, _AT_ONCE)(*repeated, *columns)
    return np.asarray(found).reshape(number, tasks)


def acting(act: Callable[..., Any]) -> Agent:
    """An agent that acts and does not learn."""
    return Agent(
        init=lambda config, key: (),
        memory=lambda config, num_envs: (),
        act=act,
        observe=lambda config, state, rollout: state,
        update=lambda config, state, rollout, key: (state, {}),
    )


def by_a2c(
    parts: Parts, config: Config, task_keys: jax.Array, keys: jax.Array
) -> np.ndarray:
    """Mean returns `[8, tasks]` of tables that a2c has trained on as many steps."""
    module = agents.get("a2c")
    spec = jax.eval_shape(parts.draw_task, jax.random.key(0)).spec
    agent = module.make(spec)
    steps = config.lifetime * config.num_envs * config.rollout_length

    def returns(
        task: jax.Array, key: jax.Array, rate: jax.Array, entropy: jax.Array
    ) -> jax.Array:
        env = parts.draw_task(task)
        tuned = module.Config(
            learning_rate=rate,
            entropy_cost=entropy,
            gamma=config.gamma,
            total_steps=steps,
            num_envs=config.num_envs,
            rollout_length=config.rollout_length,
            hidden_sizes=(),
        )
        train_key, play_key = jax.random.split(key)
        state, _ = train.train(agent, env, tuned, train_key)
        return evaluate(
            agent, env, tuned, state, play_key, EPISODES, explore=True
        ).returns.mean()

    settings = [(x, y) for x in A2C_RATES for y in A2C_ENTROPIES]
    return of_settings(returns, task_keys, keys, np.array(settings))
