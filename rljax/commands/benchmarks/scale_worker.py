"""Measures one run that is split over devices of the CPU."""

import functools
from typing import Any

from collectives import exchanged
from protocol import BYTES, EXCHANGES, print_result, read_job

from rljax.running import sharding

DEVICES = 8  # of the process


def find(job: dict[str, Any], name: str) -> tuple[Any, tuple[Any, ...]]:
    """Returns training over `N devices`, and the state that it goes on from."""
    import jax

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


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Makes all comparisons of a job."""
    from measuring import compare

    place = {EXCHANGES: 0, BYTES: 1}.get(job["unit"])
    if place is None:
        return compare(job, functools.partial(find, job))

    def of_programs(job: dict[str, Any], *calls: Any) -> dict[str, float]:
        import jax

        programs = [jax.jit(f).lower(*args).compile() for f, args in calls]
        texts = [program.as_text() or "" for program in programs]
        what, against = (exchanged(x)[place] / job["iterations"] for x in texts)
        return {"ratio": what / against, "what_value": what, "against_value": against}

    return compare(job, functools.partial(find, job), of_programs)


def main():
    """Does the job this process was started with."""
    sharding.set_cpu_devices(DEVICES)  # before gymnax's import starts jax
    print_result(measure(read_job()))


if __name__ == "__main__":
    main()
