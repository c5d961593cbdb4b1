"""Train vmapped seeds for a moment, with default networks, and exit.

Usage: python tests/running/hang_check.py AGENT SEEDS

Run by `test_no_hang.py` in fresh processes: programs that call LAPACK under vmap
hang on CPU, in some processes and not in others. A single seed shares two devices.
"""

import functools
import sys

import jax

from rljax.running import sharding


def main(name: str, num_seeds: int) -> None:
    if num_seeds == 1:
        sharding.set_cpu_devices(2)
    from rljax import agents, envs
    from rljax.running import train  # not before: gymnax's import starts jax

    module, env = agents.get(name), envs.make("CartPole-v1")
    config = module.Config(total_steps=12_288)
    keys = jax.random.split(jax.random.key(0), num_seeds)
    agent = module.make(env.spec)
    fn = functools.partial(train.train, agent, env, config)
    mapped = jax.vmap(fn) if num_seeds > 1 else sharding.map_runs(fn, parts=agent.parts)
    ts, _ = jax.block_until_ready(jax.jit(mapped)(keys))
    assert (ts.step >= config.total_steps).all()
    print(f"{name} trained {num_seeds} seeds")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
