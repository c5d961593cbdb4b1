"""Measures rljax's replay without an agent."""

import functools
import time

import jax
import jax.numpy as jnp
import replay_work
from protocol import read_job

from rljax import prng, replay
from rljax.running import sharding
from rljax.types import Discrete, ObsSpec, Rollout, Spec


def main():
    """Runs the loop of replay_work."""
    job = read_job()
    sharding.set_cpu_devices(1)
    imported, hyper = time.time(), job["hyper"]
    num_envs, batch_size = hyper["num_envs"], hyper["batch_size"]
    prioritized = hyper["priority"] != "uniform"
    obs = ObsSpec.array((4,), "float32")
    spec = Spec(obs=obs, action=Discrete(2), max_steps=500)

    def add(buffer, time):
        obs, action, reward, done = (x[None] for x in replay_work.row(num_envs, time))
        never = jnp.zeros_like(done)
        new = Rollout(obs, action, reward, done, never, obs + 1.0, (), ())
        return replay.add(buffer, new)

    def learn(buffer, key):
        key = prng.fusible(key)
        index, windows, probability = replay.sample(buffer, key, batch_size)
        number = sum(x.sum() for x in jax.tree.leaves(windows))
        if prioritized:
            priorities = replay_work.priorities(windows.reward[:, 0]) ** 0.6
            buffer = replay.update_priorities(buffer, index, priorities)
        return buffer, number + probability.sum()

    empty = functools.partial(
        replay.init, spec, num_envs, hyper["capacity"], prioritized=prioritized
    )
    packages = ("rljax", "gymnax", "jax")
    replay_work.run(job, imported, empty, add, learn, packages)


if __name__ == "__main__":
    main()
