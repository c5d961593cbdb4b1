"""Measures rljax, on whatever backend jax has here."""

import dataclasses
import functools
import statistics
import time

import jax
import jax.numpy as jnp
from protocol import measure, print_result, read_job, result

from rljax.running import sharding


def fit_cpu(job, env, agent, config):
    """Takes the devices and threads that `rljax train` takes."""
    try:
        from rljax.running import cpu, train
    except ImportError:  # a revision before it
        return
    share = cpu.share(
        job["cores"],
        runs=job["seeds"],
        parts=agent.parts,
        product=train.largest_product(env.spec, config),
    )
    cpu.take(share)


def runs_at_once(env, config):
    """Returns how many runs `rljax train` vmaps together."""
    from rljax.running import train

    older = getattr(sharding, "runs_at_once", None)  # of a revision before
    if older is not None:
        return older(config.num_envs)
    return train.runs_at_once(env.spec, config)


def learning_rates(job):
    """Returns one for each run, from a tenth of the job's to ten times."""
    middle, number = job["hyper"]["learning_rate"], job["seeds"]
    return middle * 10 ** jnp.linspace(-1.0, 1.0, number)


def train_at(train, agent, env, config, start):
    """Trains from a key at a learning rate."""
    key, rate = start
    return train(agent, env, dataclasses.replace(config, learning_rate=rate), key)


def learning(job, agent, env, *, config, keys):
    """Returns the training of one run, where all start, and steps that they made."""
    from rljax.running import train

    if job["warm"]:
        init = functools.partial(train.init, agent, env, config)
        start = jax.block_until_ready(jax.jit(jax.vmap(init))(keys))
        skipped = int(start.step.sum())
        job["full_steps"] -= skipped
        iterations = train.num_iterations(config)
        run_on = functools.partial(train.run, agent, env, config)
        return functools.partial(run_on, iterations=iterations), start, skipped
    if job.get("rates"):
        learn = functools.partial(train_at, train.train, agent, env, config)
        return learn, (keys, learning_rates(job)), 0
    return functools.partial(train.train, agent, env, config), keys, 0


def compile_for(function, start):
    """Returns the program, and the seconds that it took to compile."""
    begin = time.perf_counter()
    compiled = jax.jit(function).lower(start).compile()
    return compiled, time.perf_counter() - begin


def near_limits(job, env, config, *, learn, start, parts, seconds):
    """Returns what `limits.measured` finds, if the job asks for it."""
    if not job["limits"]:
        return {}
    from limits import measured  # not before: gymnax's import starts jax

    return measured(
        env,
        config,
        jax.make_jaxpr(learn)(jax.tree.map(lambda x: x[0], start)).jaxpr,
        seeds=job["seeds"],
        devices=min(jax.device_count(), job["seeds"] * parts),
        seconds=statistics.median(seconds),
    )


def main():
    """Compiles the training of all seeds, then times it."""
    job = read_job()
    seeds, hyper = job["seeds"], job["hyper"]
    sharding.set_cpu_devices(job["cores"])
    from rljax import agents, envs  # not before: gymnax's import starts jax

    imported = time.time()
    module = agents.get(job["agent"])
    env = envs.make(job["env"])
    agent = module.make(env.spec)
    hyper["hidden_sizes"] = tuple(hyper["hidden_sizes"])  # json knows lists only
    hyper.pop("value_cost", None)  # the critic has an optimiser of its own
    config = dataclasses.replace(module.Config(), **hyper, total_steps=job["steps"])
    config.validate()
    fit_cpu(job, env, agent, config)
    start = jax.vmap(jax.random.key)(job["seed"] + jnp.arange(seeds))
    learn, start, skipped = learning(job, agent, env, config=config, keys=start)

    function = sharding.map_runs(learn, runs_at_once(env, config), agent.parts)
    compiled, compile_s = compile_for(function, start)

    def run():
        state, _ = jax.block_until_ready(compiled(start))
        return int(state.step.sum()) - skipped

    ready = time.time()
    seconds, steps = measure(run)
    near = near_limits(
        job,
        env,
        config,
        learn=learn,
        start=start,
        parts=agent.parts,
        seconds=seconds,
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
