"""Measures one run that is split over devices of the CPU."""

import functools
from typing import Any

import jax
from measuring import compare
from protocol import print_result, read_job

from rljax.running import sharding

DEVICES = 8  # of the process


def find(job: dict[str, Any], name: str) -> tuple[Any, tuple[Any, ...]]:
    """Returns training over `N devices`, and the state that it goes on from."""
    from rljax import agents, envs
    from rljax.running import train

    shards = int(name.split()[0])
    module, env = agents.get(job["agent"]), envs.make("CartPole-v1")
    agent, config = module.make(env.spec), module.Config()
    mesh = sharding.split_mesh(1, shards)
    init = functools.partial(train.init, agent, env, config)
    run_on = functools.partial(train.run, agent, env, config)
    count = job["iterations"]
    run = functools.partial(run_on, iterations=count, log_every=count)
    key = sharding.copies(jax.random.key(job["seed"])[None], shards)
    start = jax.jit(sharding.map_runs(init, mesh=mesh))(key)
    return sharding.map_runs(run, mesh=mesh), (start,)


def main():
    """Does the job this process was started with."""
    sharding.set_cpu_devices(DEVICES)  # before gymnax's import starts jax
    job = read_job()
    print_result(compare(job, lambda name: find(job, name)))


if __name__ == "__main__":
    main()
