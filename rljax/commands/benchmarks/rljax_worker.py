"""Measures rljax, on whatever backend jax has here."""

import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
from protocol import measure, print_result, read_job, result

from rljax.running import sharding

try:
    from rljax.running import cpu
except ImportError:  # a revision before it
    cpu = None


def main():
    """Compiles the training of all seeds, then times it."""
    job = read_job()
    seeds, hyper = job["seeds"], job["hyper"]
    sharding.set_cpu_devices(job["cores"])
    from rljax import agents, envs
    from rljax.running import train  # not before: gymnax's import starts jax

    imported = time.time()
    module = agents.get(job["agent"])
    env = envs.make(job["env"])
    agent = module.make(env.spec)
    hyper["hidden_sizes"] = tuple(hyper["hidden_sizes"])  # json knows lists only
    hyper.pop("value_cost", None)  # the critic has an optimiser of its own
    config = dataclasses.replace(module.Config(), **hyper, total_steps=job["steps"])
    config.validate()
    if cpu:
        product = train.largest_product(env.spec, config)
        share = cpu.share(job["cores"], runs=seeds, parts=agent.parts, product=product)
        cpu.take(share)

    start = jax.vmap(jax.random.key)(job["seed"] + jnp.arange(seeds))
    skipped = 0
    if job["warm"]:
        init = functools.partial(train.init, agent, env, config)
        start = jax.block_until_ready(jax.jit(jax.vmap(init))(start))
        skipped = int(start.step.sum())
        job["full_steps"] -= skipped
        iterations = train.num_iterations(config)
        run_on = functools.partial(train.run, agent, env, config)
        learn = functools.partial(run_on, iterations=iterations)
    else:
        learn = functools.partial(train.train, agent, env, config)

    function = sharding.map_runs(
        learn, sharding.runs_at_once(config.num_envs), agent.parts
    )
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(start).compile()
    compile_s = time.perf_counter() - begin

    def run():
        state, _ = jax.block_until_ready(compiled(start))
        return int(state.step.sum()) - skipped

    ready = time.time()
    seconds, steps = measure(run)
    near: dict[str, float] = {}
    if job.get("limits"):
        import limits  # it imports gymnax

        near = limits.measured(
            env,
            config,
            jax.make_jaxpr(learn)(jax.tree.map(lambda x: x[0], start)).jaxpr,
            seeds=seeds,
            devices=min(jax.device_count(), seeds * agent.parts),
            seconds=statistics.median(seconds),
        )
    device = jax.devices()[0]
    print_result(
        near
        | result(
            job,
            imported=imported,
            compile_s=compile_s,
            ready=ready,
            seconds=seconds,
            steps=steps,
            device="cpu" if device.platform == "cpu" else device.device_kind,
            packages=("rljax", "gymnax", "jax"),
        )
    )


if __name__ == "__main__":
    main()
