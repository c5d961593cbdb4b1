"""Measures what tuning costs, in the agent's own updates.

The functions, by name: `update` is the agent's; `meta-step` scores the newest rollout,
moves the tuned value, and differentiates K replayed updates, or where the derivative
goes along with the agent's update, makes that; `iteration` is a tuned agent's whole
update: the meta-step, the agent's update, the outer critic's, and what is recorded.
Their arguments come from training; a replay memory is no result, as training changes it
in place.
"""

import dataclasses
import functools
from typing import Any

import jax
from measuring import Call, compare
from protocol import print_result, read_job

from rljax import agents, envs
from rljax.meta import Settings, parse_parameter, tune
from rljax.meta.carried import carries, learn
from rljax.meta.meta_step import move
from rljax.meta.recorded import without_replay
from rljax.running import train
from rljax.running.rollout import unroll


def settings(words: list[str]) -> Settings:
    """Reads `K=16 reverse` or `K=16 remat`; neither: in the automatic mode."""
    number = next((int(word[2:]) for word in words if word.startswith("K=")), 1)
    remat = "remat" in words
    mode = "reverse" if remat or "reverse" in words else "auto"
    return Settings(num_updates=number, mode=mode, remat=remat)


def made(work: dict[str, Any], how: Settings) -> tuple[Any, ...]:
    """Returns the environment, the agent, its config, and the agent tuned."""
    agent, env = work["agent"], envs.make(work["env"])
    config = agents.config_for(agent, work["env"])
    plain = agents.get(agent).make(env.spec)
    learned = tuple(work["learned"])
    fields = {} if learned else dict([parse_parameter("gamma", config)])
    tuned = tune(plain, env.spec, fields, how, learned=learned, env=env)
    return env, plain, config, tuned


@functools.cache
def arguments(
    agent: str, env_name: str, learned: tuple[str, ...], *, seed: int, how: Settings
) -> tuple[Any, ...]:
    """Returns those of a tuned update, from training with these settings."""
    work = {"agent": agent, "env": env_name, "learned": learned}
    env, _, config, tuned = made(work, how)
    iterations = train.warm_up_iterations(config) + how.num_updates + 1
    steps = iterations * train.steps_per_iteration(config)
    short, key = dataclasses.replace(config, total_steps=steps), jax.random.key(seed)

    @jax.jit
    def trained(key: jax.Array) -> tuple[Any, ...]:
        ts, _ = train.train(tuned, env, short, key)
        ts, rollout, _ = unroll(
            tuned.act,
            env,
            config,
            ts,
            memory=tuned.memory,
            key=ts.key,
            length=config.rollout_length,
            simulates=tuned.simulates,
        )
        return tuned.observe(config, ts.agent, rollout), rollout

    return config, *trained(key), key


def find(job: dict[str, Any], name: str) -> Call:
    """Returns the function and its arguments."""
    kind, *words = name.split()
    how = settings(words)
    _, agent, _, tuned = made(job, how)
    tuning = tuned.update.args[0]

    def update(config: Any, state: Any, rollout: Any, key: Any) -> Any:
        new, metrics = agent.update(config, state.agent, rollout, key)
        return without_replay(new), metrics

    def meta_step(config: Any, state: Any, rollout: Any, key: Any) -> Any:
        data = tuning.objective.prepare(
            config, state.agent, state.critic, rollout=rollout, key=key
        )
        raw, *rest = move(tuning, config, state, rollout=rollout, data=data, key=key)
        if not carries(tuning.settings, raw):
            return raw, *rest
        learned = learn(
            tuning, config, state, raw=raw, rollout=rollout, data=data, key=key
        )
        agent = without_replay(learned.agent)
        return raw, *rest, learned._replace(agent=agent)

    def iteration(config: Any, state: Any, rollout: Any, key: Any) -> Any:
        new, metrics = tuned.update(config, state, rollout, key)
        return new._replace(agent=without_replay(new.agent)), metrics

    known = {"update": update, "meta-step": meta_step, "iteration": iteration}
    given = arguments(
        job["agent"],
        job["env"],
        tuple(job["learned"]),
        seed=job["seed"],
        how=how,
    )
    return known[kind], given


def main():
    """Does the job this process was started with."""
    job = read_job()
    print_result(compare(job, lambda name: find(job, name)))


if __name__ == "__main__":
    main()
