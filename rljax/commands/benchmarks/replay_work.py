"""The loop that measures a replay: add a row, draw a batch, set its priorities."""

import time

import jax
import jax.numpy as jnp
from protocol import measure, print_result, result


def row(num_envs, time):
    """Returns observations, actions, rewards and ends of one step, `[N, ...]`."""
    obs = jnp.full((num_envs, 4), time, jnp.float32)
    action = jnp.full(num_envs, time % 2, jnp.int32)
    return obs, action, obs[:, 0] % 7.0, jnp.full(num_envs, time % 50 == 0)


def priorities(rewards):
    """Returns new priorities `[B]`, before their exponent."""
    return 1.0 + rewards


def run(job, imported, empty, add, learn, packages):
    """Fills the buffer, times the loop and prints the result.

    Args:
      job: what was asked for.
      imported: `time.time()` when the imports were done.
      empty: `() -> buffer`.
      add: `(buffer, time) -> buffer` adds the row of that time.
      learn: `(buffer, key) -> (buffer, number)` draws, sets priorities, and returns
        a number made of all that was drawn.
      packages: distributions whose versions are recorded.
    """
    hyper = job["hyper"]
    rows = hyper["capacity"] // hyper["num_envs"]
    iterations = job["steps"] // hyper["num_envs"]

    def step(carry, time):
        buffer, key, total = carry
        key, sample_key = jax.random.split(key)
        buffer, number = learn(add(buffer, time), sample_key)
        return (buffer, key, total + number), None

    def fill():
        buffer, _ = jax.lax.scan(
            lambda buffer, time: (add(buffer, time), None), empty(), jnp.arange(rows)
        )
        return buffer, jax.random.key(job["seed"]), jnp.zeros(())

    def loop(carry):
        return jax.lax.scan(step, carry, jnp.arange(iterations))[0]

    carry = jax.block_until_ready(jax.jit(fill)())
    begin = time.perf_counter()
    compiled = jax.jit(loop, donate_argnums=0).lower(carry).compile()
    compile_s = time.perf_counter() - begin

    def once():
        nonlocal carry
        carry = jax.block_until_ready(compiled(carry))
        return iterations * hyper["num_envs"]

    ready = time.time()
    seconds, steps = measure(once)
    assert jnp.isfinite(carry[-1])
    device = jax.devices()[0]
    print_result(
        result(
            job,
            imported=imported,
            compile_s=compile_s,
            ready=ready,
            seconds=seconds,
            steps=steps,
            device="cpu" if device.platform == "cpu" else device.device_kind,
            packages=packages,
        )
    )
