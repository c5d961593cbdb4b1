"""What a benchmark counts as the machine's limits; times are those of fakes."""

import functools
import importlib
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

from rljax import agents, envs
from rljax.commands import benchmark
from rljax.running import train

WORKERS = pathlib.Path(benchmark.__file__).resolve().parent / "benchmarks"
sys.path.insert(0, str(WORKERS))  # as for a worker
limits = importlib.import_module("limits")


def count(function, *args):
    return dict(limits.products(jax.make_jaxpr(function)(*args).jaxpr))


def convolve(image, kernel):
    return jax.lax.conv_general_dilated(
        image, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_products_of_dots():
    def function(x, w, y):
        for _ in range(2):
            out = x @ w
        return out, jnp.einsum("abk,akc->abc", y, y.swapaxes(1, 2)), x.T @ x

    x, w, y = jnp.ones((3, 4)), jnp.ones((4, 5)), jnp.ones((7, 2, 6))
    expected = {(1, 3, 4, 5): 2, (7, 2, 6, 2): 1, (1, 4, 3, 4): 1}
    assert count(function, x, w, y) == expected


def test_products_of_a_convolution_are_those_of_its_patches():
    image, kernel = jnp.ones((2, 9, 7, 3)), jnp.ones((3, 3, 3, 5))
    assert convolve(image, kernel).shape == (2, 4, 3, 5)
    assert count(convolve, image, kernel) == {(1, 2 * 4 * 3, 3 * 3 * 3, 5): 1}


def test_products_in_loops_count_as_often_as_they_are_made():
    def inner(x, _):
        return x @ x, None

    def outer(x, _):
        return jax.lax.scan(inner, x, None, 3)[0], None

    @jax.jit
    def function(x):
        return jax.lax.scan(outer, x, None, 5)[0]

    assert count(function, jnp.ones((2, 2))) == {(1, 2, 2, 2): 15}


def test_products_of_the_branch_with_most():
    def function(x):
        one, three = lambda: x @ x, lambda: x @ x @ x @ x
        return jax.lax.cond(x.sum() > 0, one, three)

    assert count(function, jnp.ones((2, 2))) == {(1, 2, 2, 2): 3}


def test_products_of_a_gradient_are_three_times_those_of_its_loss():
    def loss(ws, x):
        for w in ws:
            x = jnp.tanh(x @ w)
        return x.sum()

    ws, x = [jnp.ones((4, 4))] * 3, jnp.ones((8, 4))
    forward = limits.total(limits.products(jax.make_jaxpr(loss)(ws, x).jaxpr))
    both = limits.products(jax.make_jaxpr(jax.grad(loss))(ws, x).jaxpr)
    # The first layer's input has no gradient.
    assert limits.total(both) == 3 * forward - 8 * 4 * 4


@pytest.fixture
def twice(monkeypatch):
    """What was repeated twice in place of a measurement, which is 7 times a second."""
    results = []

    def rate(repeat):
        results.append(repeat(2))
        return 7.0

    monkeypatch.setattr(limits, "_rate", rate)
    return results


@pytest.mark.parametrize(
    ("name", "num_envs", "seeds"), [("CartPole-v1", 3, 1), ("Pendulum-v1", 2, 2)]
)
def test_environments_alone_make_their_steps(twice, name, num_envs, seeds):
    env = envs.make(name)
    config = agents.get("ppo").Config(num_envs=num_envs, rollout_length=5)
    assert limits.steps_alone(env, config, seeds) == 7.0 * seeds * num_envs * 5
    states, rewards = twice[0]
    assert states.step.tolist() == [2 * num_envs * 5] * seeds
    assert rewards.shape == (seeds,) and all(map(math.isfinite, rewards.tolist()))


def test_peak_makes_the_product_on_every_device(twice):
    product = limits.Product(batch=2, rows=3, inner=4, columns=5)
    assert limits.peak(product, devices=3) == 7.0 * 3 * 2 * 3 * 4 * 5
    (left,) = twice
    assert left.shape == (3, 2, 3, 4)
    # Twice half a sum of four numbers, of which one has changed.
    assert left[0, 0, 0, 0] == 0.5 * (0.5 * 4 + 3)


def test_measured_share_is_of_all_seeds_and_products(monkeypatch):
    asked = []

    def peak(product, devices):
        asked.append((product, devices))
        return {4: 1000.0, 3: 4000.0, 2: 2000.0}[product.rows]

    monkeypatch.setattr(limits, "peak", peak)
    monkeypatch.setattr(limits, "steps_alone", lambda *args: 5.0)

    def function(w, x, y, z):
        return w @ w, x @ x, y @ y @ y, z @ z

    squares = [jnp.ones((size, size)) for size in (2, 4, 3, 1)]
    jaxpr = jax.make_jaxpr(function)(*squares).jaxpr
    found = limits.measured(None, None, jaxpr, seeds=2, devices=6, seconds=0.5)
    share = 2 * (2**3 + 4**3 + 2 * 3**3 + 1) / 0.5 / 4000.0
    assert found == {"peak_share": share, "env_steps_per_s": 5.0}
    assert asked == [((1, n, n, n), 6) for n in (2, 3, 4)]  # the three heaviest


def test_a_rate_is_of_the_fastest_of_three(monkeypatch):
    clock = iter([0, 9, 9, 9.15, 10, 10.6, 20, 20.5, 30, 30.4])
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(clock))
    asked = []
    assert limits._rate(asked.append) == pytest.approx(4 / 0.4)
    # Compiled, too short, then long enough and twice more.
    assert asked == [1, 1, 4, 4, 4]


def test_products_of_a_training():
    env, ppo = envs.make("CartPole-v1"), agents.get("ppo")
    sizes = dict(num_envs=2, rollout_length=8, num_epochs=3, num_minibatches=2)
    config = ppo.Config(**sizes, hidden_sizes=(5,), total_steps=64)
    learn = functools.partial(train.train, ppo.make(env.spec), env, config)
    found = limits.products(jax.make_jaxpr(learn)(jax.random.key(0)).jaxpr)
    # 4 iterations of 8 steps act; of 3 epochs of 2 minibatches actor and critic learn,
    # forwards, after a forward pass of the critic over the rollout.
    assert found[1, 2, 4, 5] == 4 * 8
    assert found[1, 8, 4, 5] == 4 * 3 * 2 * 2
