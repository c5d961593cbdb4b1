"""The distance of a training from what its machine can do.

Its matrix products and convolutions are counted in the program as it is traced, and
the three with the most multiplications are timed alone on the same devices and threads:
the quickest is the peak. Beside it stands how many steps the environments make with
random actions.
"""

import collections
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax.contracts import BatchedEnv, RunConfig
from rljax.envs.checking import random_action
from rljax.running import rollout, sharding
from rljax.types import TrainState

SAMPLE_S = 0.3  # of each measurement
_SHAPES = 3  # of products that are timed; one with few columns can be slow alone


class Product(NamedTuple):
    """The shape of matrix products `[batch, rows, inner] x [batch, inner, columns]`."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def multiplications(self) -> int:
        """Of one."""
        return math.prod(self)


def measured(
    env: BatchedEnv,
    config: RunConfig,
    jaxpr: Any,
    *,
    seeds: int,
    devices: int,
    seconds: float,
) -> dict[str, float]:
    """Returns the cells of a row: the share of the peak, and the environments alone.

    Args:
      env: of the training.
      config: the agent's.
      jaxpr: of the training of one seed.
      seeds: that train at once.
      devices: that they train on.
      seconds: that they take.
    """
    counts = products(jaxpr)
    heaviest = sorted(counts, key=lambda x: x.multiplications * counts[x])[-_SHAPES:]
    rate = seeds * total(counts) / seconds
    return {
        "peak_share": rate / max(peak(product, devices) for product in heaviest),
        "env_steps_per_s": steps_alone(env, config, seeds),
    }


def products(jaxpr: Any) -> collections.Counter[Product]:
    """Counts the products of a jaxpr, those of loops as often as they are made.

    A `while` loop counts once, of the branches of a `cond` that with most.
    """
    counts: collections.Counter[Product] = collections.Counter()
    for equation in jaxpr.eqns:
        name, times = equation.primitive.name, equation.params.get("length", 1)
        if name == "dot_general":
            counts[_of_dot(equation)] += 1
        elif name == "conv_general_dilated":
            counts[_of_convolution(equation)] += 1
        elif name == "cond":
            branches = [products(x.jaxpr) for x in equation.params["branches"]]
            counts.update(max(branches, key=total))
        else:
            for inner in _inside(equation):
                for product, count in products(inner).items():
                    counts[product] += count * times
    return counts


def total(counts: collections.Counter[Product]) -> int:
    """Returns the multiplications of all products."""
    return sum(product.multiplications * n for product, n in counts.items())


def peak(product: Product, devices: int) -> float:
    """Returns multiplications per second where a product is all that devices do."""
    batch, rows, inner, columns = product
    left = jnp.ones((devices, batch, rows, inner))
    right = jnp.ones((devices, batch, inner, columns))

    @jax.jit
    def program(left: jax.Array, right: jax.Array, times: int) -> jax.Array:
        def one(left: jax.Array, right: jax.Array) -> jax.Array:
            def body(_: jax.Array, left: jax.Array) -> jax.Array:
                out = left @ right
                # One number changes, in place: the same product would be made once.
                return left.at[0, 0, 0].set(0.5 * out[0, 0, 0])

            return jax.lax.fori_loop(0, times, body, left)

        return sharding.map_runs(one)(left, right)

    rate = _rate(lambda times: program(left, right, times))
    return devices * product.multiplications * rate


def steps_alone(env: BatchedEnv, config: RunConfig, seeds: int) -> float:
    """Returns the steps per second that environments make with random actions."""
    length = config.rollout_length

    def start(key: jax.Array) -> TrainState:
        state, obs = env.reset(key, config.num_envs)
        return TrainState(
            agent=(),
            env=state,
            obs=obs,
            memory=(),
            key=key,
            step=jnp.zeros((), jnp.int32),
        )

    def act(_config: Any, _state: Any, memory: Any, obs: Any, key: Any, explore: bool):
        del explore
        return random_action(env.spec, obs, key)[0], memory, ()

    at_once = max(1, 16 // config.num_envs)  # environments share an operation's cost
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    states = jax.jit(sharding.map_runs(start, at_once))(keys)

    def play(
        _: jax.Array, carry: tuple[TrainState, jax.Array]
    ) -> tuple[TrainState, jax.Array]:
        state, rewards = carry
        key, unrolled = jax.random.split(state.key)
        state, steps, _info = rollout.unroll(
            act,
            env,
            config,
            state,
            memory=lambda config, num_envs: (),
            key=unrolled,
            length=length,
        )
        return state._replace(key=key), rewards + steps.reward.sum()

    @jax.jit
    def program(states: TrainState, times: int) -> tuple[TrainState, jax.Array]:
        def one(state: TrainState) -> tuple[TrainState, jax.Array]:
            return jax.lax.fori_loop(0, times, play, (state, jnp.zeros(())))

        return sharding.map_runs(one, at_once)(states)

    return seeds * config.num_envs * length * _rate(lambda n: program(states, n))


def _rate(repeat: Callable[[int], Any]) -> float:
    """Times a function that repeats something so many times; times per second."""

    def seconds(times: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(repeat(times))
        return time.perf_counter() - begin

    times = 1
    seconds(times)  # compiles
    while (taken := seconds(times)) < SAMPLE_S:
        times = math.ceil(times * min(64, 2 * SAMPLE_S / taken))
    return times / min(taken, seconds(times), seconds(times))


def _of_dot(equation: Any) -> Product:
    (left, right) = (x.aval.shape for x in equation.invars[:2])
    (over_left, over_right), (batch_left, _) = equation.params["dimension_numbers"]
    batch = math.prod(left[i] for i in batch_left)
    inner = math.prod(left[i] for i in over_left)
    columns = math.prod(right) // (batch * math.prod(right[i] for i in over_right))
    return Product(batch, math.prod(left) // (batch * inner), inner, columns)


def _of_convolution(equation: Any) -> Product:
    """The product of patches and kernels that makes the same numbers."""
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    numbers = equation.params["dimension_numbers"]
    columns = out[numbers.out_spec[1]]
    inner = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    return Product(1, math.prod(out) // columns, inner, columns)


def _inside(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation calls."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner
