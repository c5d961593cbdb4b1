"""Measures Flashbax (github.com/instadeepai/flashbax): its flat buffers."""
# pyright: reportMissingImports=false

import time

import flashbax
import jax
import jax.numpy as jnp
import replay_work
from protocol import read_job

IMPORTED = time.time()


def main():
    """Runs the loop of replay_work."""
    job = read_job()
    hyper = job["hyper"]
    num_envs, prioritized = hyper["num_envs"], hyper["priority"] != "uniform"
    arguments = dict(
        max_length=hyper["capacity"],
        min_length=hyper["batch_size"],
        sample_batch_size=hyper["batch_size"],
        add_batch_size=num_envs,
    )
    if prioritized:
        accelerator = jax.default_backend()
        replay = flashbax.make_prioritised_flat_buffer(
            **arguments, priority_exponent=0.6, device=accelerator
        )
    else:
        replay = flashbax.make_flat_buffer(**arguments)

    def transition(time):
        obs, action, reward, done = replay_work.row(num_envs, time)
        return {"obs": obs, "action": action, "reward": reward, "done": done}

    def empty():
        return replay.init(jax.tree.map(lambda x: x[0], transition(jnp.int32(0))))

    def add(buffer, time):
        return replay.add(buffer, transition(time))

    def learn(buffer, key):
        drawn = replay.sample(buffer, key)
        first, second = drawn.experience.first, drawn.experience.second
        number = sum(x.sum() for x in jax.tree.leaves((first, second["obs"])))
        if not prioritized:
            return buffer, number
        probability = drawn.probabilities
        priorities = replay_work.priorities(first["reward"])
        buffer = replay.set_priorities(buffer, drawn.indices, priorities)
        return buffer, number + probability.sum()

    packages = ("flashbax", "jax")
    replay_work.run(job, IMPORTED, empty, add, learn, packages)


if __name__ == "__main__":
    main()
