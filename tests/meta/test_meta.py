"""Meta-gradients against finite differences, closed forms and each other."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from rljax import losses, networks
from rljax.autodiff import semi_gradient
from rljax.learners import optimizers
from rljax.meta import (
    bootstrapped_meta_gradient,
    check_meta_gradient,
    evolution_gradient,
    meta_gradient,
    squared_distance,
    unroll,
)
from rljax.meta.diagnostics import saturated_fraction

from .. import compiled

T = 6


class Problem(NamedTuple):
    """Values to be learned: a network, where to start, K + 1 pieces of data."""

    apply: object
    params: object
    data: tuple  # obs [K + 1, T + 1, ...], reward [K + 1, T]


def product(w, x):
    return x @ w


def tabular():
    """Four states in a random walk."""
    rng = np.random.default_rng(0)
    states = rng.integers(4, size=(6, T + 1))
    obs = np.eye(5)[states]  # the fifth is never visited: its gradient is zero
    return Problem(product, rng.normal(size=5), (obs, obs[:, 1:] @ rng.normal(size=5)))


def linear():
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(6, T + 1, 5)) * [1, 1, 1, 1, 0]
    return Problem(product, rng.normal(size=5), (obs, rng.normal(size=(6, T))))


def images():
    """Planes of zeros and ones, some pixels always zero, into a convolution."""
    rng = np.random.default_rng(2)
    obs = (rng.random((6, T + 1, 10, 10, 4)) < 0.1) * (np.arange(4) < 3)
    net = networks.Critic(compiled.body(3, (8,)))
    params = jax.jit(net.init)(jax.random.key(0), obs[0].astype(float))
    return Problem(net.apply, params, (obs.astype(float), rng.normal(size=(6, T))))


OPTIMIZERS = {
    "sgd": optax.identity(),
    "rmsprop": optax.chain(optax.scale_by_rms(), optax.scale(0.1)),
    "adam": optax.chain(
        optimizers.clip_by_global_norm(1.0),
        optimizers.scale_by_adam(),
        optax.scale(0.1),
    ),
}


def update_of(problem, optimizer):
    """TD(lambda) as agents do it: along a semi-gradient by argument separation."""

    def loss(params, bootstrap_params, eta, obs, reward):
        v_tm1 = problem.apply(params, obs[:-1])
        v_t = problem.apply(bootstrap_params, obs[1:])
        discount = jnp.full(T, eta["gamma"])
        returns = losses.lambda_returns(
            reward, discount, v_t, eta["lambda_"], stop="none"
        )
        return 0.5 * jnp.mean((returns - v_tm1) ** 2)

    def update(eta, state, data, key):
        del key
        params, opt_state = state
        grads = semi_gradient(loss)(params, eta, *data)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.tree.add_scale(params, -eta["rate"], updates), opt_state), {}

    return update


def parts_of(problem, optimizer, steps, remat=False):
    """The inner updates as a function of eta, the outer loss of what comes out."""
    update = update_of(problem, optimizer)
    data = jax.tree.map(lambda x: x[:steps], problem.data)
    start = (problem.params, optimizer.init(problem.params))

    def inner(eta):
        keys = jax.random.split(jax.random.key(0), steps)
        return unroll(update, eta, start, data, keys, remat=remat)[0]

    def outer(state):
        obs, reward = (x[-1] for x in problem.data)
        v = problem.apply(state[0], obs)
        return jnp.mean((reward + 0.99 * v[1:] - v[:-1]) ** 2)

    return inner, outer


ETA = {"gamma": 0.9, "lambda_": 0.7, "rate": 0.1}


H = 1e-6


@functools.cache
def gradients_of(apply, kind, all_steps):
    """Reverse and forward mode and finite differences, for each number of steps.

    A function of a problem's arrays: those of one shape share a program.
    """

    @jax.jit
    def gradients(params, data):
        problem, out = Problem(apply, params, data), []
        eta, unravel = ravel_pytree(ETA)
        moves = jnp.concatenate([jnp.zeros((1, 3)), H * jnp.eye(3), -H * jnp.eye(3)])
        for steps in all_steps:
            parts = parts_of(problem, OPTIMIZERS[kind], steps)
            reverse_of = functools.partial(meta_gradient, *parts)
            values, reverse = jax.vmap(lambda e, f=reverse_of: f(unravel(e)))(
                eta + moves
            )
            forward = meta_gradient(*parts, unravel(eta), mode="forward")[1]
            differences = unravel((values[1:4] - values[4:]) / (2 * H))
            out.append((jax.tree.map(lambda x: x[0], reverse), forward, differences))
        return out

    return gradients


def slow(*case):
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "make, kind, all_steps",
    [
        *((tabular, kind, (1, 2, 5)) for kind in OPTIMIZERS),
        *((linear, kind, (1, 2, 5)) for kind in OPTIMIZERS),
        *(slow(images, kind, (1, 2, 5)) for kind in OPTIMIZERS),
    ],
)
def test_meta_gradient_equals_finite_differences(make, kind, all_steps, x64):
    """Through one, two and five updates; reverse and forward mode alike.

    The slow ones add a convolution to each optimiser and number of updates.
    """
    apply, *arrays = make()
    arrays = jax.tree.map(lambda x: np.asarray(x, float), arrays)
    gradients = gradients_of(apply, kind, all_steps)
    for reverse, forward, differences in jax.device_get(gradients(*arrays)):
        chex.assert_trees_all_close(reverse, forward, rtol=1e-6, atol=1e-12)
        chex.assert_trees_all_close(reverse, differences, rtol=1e-4, atol=1e-8)
        if kind != "adam":
            assert all(g != 0 for g in reverse.values())


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 9])
def test_rematerialised_unroll_is_the_same(steps):
    """Values, metrics, derivatives; where sqrt(K) does not divide K; empty data."""

    def update(rate, x, target, key):
        target, _ = target
        noise = jax.random.normal(key)
        metrics = {"x": x, "noise": noise, "none": jnp.ones(0)}
        return x + rate * (jnp.sin(target * x) + noise), metrics

    targets = (np.arange(1.0, steps + 1), np.ones((steps, 0)))

    @jax.jit
    def run(rate):
        keys = jax.random.split(jax.random.key(0), steps)

        def after(rate, remat):
            return unroll(update, rate, 0.5, targets, keys, remat=remat)

        derivatives = jax.value_and_grad(after, has_aux=True)
        return derivatives(rate, True), derivatives(rate, False)

    remat, plain = run(0.3)
    chex.assert_trees_all_close(remat, plain, rtol=1e-6)
    (end, metrics), _ = remat
    x = 0.5
    for k in range(steps):
        np.testing.assert_allclose(metrics["x"][k], x, rtol=1e-5)
        x = x + 0.3 * (np.sin(targets[0][k] * x) + np.asarray(metrics["noise"])[k])
    np.testing.assert_allclose(end, x, rtol=1e-5)
    assert len(np.unique(metrics["noise"])) == steps


def test_rematerialised_unroll_needs_less_memory():
    """Sixteen times the updates: not much more than four times the memory."""

    def update(rate, x, target, key):
        del key
        for _ in range(4):
            x = jnp.sin(x * target) + rate * x
        return x, {}

    def temporaries(steps, remat):
        keys, targets = jax.random.split(jax.random.key(0), steps), jnp.ones(steps)

        def after(rate):
            return unroll(update, rate, jnp.ones(4096), targets, keys, remat=remat)[
                0
            ].sum()

        compiled = jax.jit(jax.grad(after)).lower(0.3).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = (temporaries(k, True) for k in (16, 256))
    assert many < 6 * few
    assert temporaries(256, False) > 12 * temporaries(16, False)


@pytest.mark.parametrize("steps", [1, 3])
def test_bootstrapped_meta_gradient_is_a_multiple(steps, x64):
    """Flennerhag et al. (2022), of one step along the outer loss: alpha times it."""
    problem, alpha = tabular(), 0.07
    inner, outer = parts_of(problem, OPTIMIZERS["sgd"], steps)

    def target(state):
        slope = jax.grad(outer)(state)
        return optax.tree.add_scale(state, -alpha, slope)

    @jax.jit
    def gradients(eta):
        bootstrapped = functools.partial(
            bootstrapped_meta_gradient, inner, target, squared_distance, eta
        )
        want = meta_gradient(inner, outer, eta)[1]
        return bootstrapped()[1], bootstrapped(mode="forward")[1], want

    got, forward, want = jax.device_get(gradients(ETA))
    want = jax.tree.map(lambda x: alpha * x, want)
    chex.assert_trees_all_close(got, want, rtol=1e-12)
    chex.assert_trees_all_close(forward, want, rtol=1e-12)


def test_squared_distance_is_of_floats_alone():
    a = {"x": jnp.array([1.0, 2.0]), "n": jnp.int32(3), "key": jax.random.key(0)}
    b = {"x": jnp.array([0.0, 4.0]), "n": jnp.int32(9), "key": jax.random.key(1)}
    assert squared_distance(a, b) == 2.5


def test_meta_gradient_returns_value_and_auxiliary_output():
    for mode in ("reverse", "forward"):
        (value, aux), gradient = meta_gradient(
            lambda x: 3.0 * x, lambda y: (y**2, y), 2.0, mode=mode, has_aux=True
        )
        assert (value, aux, gradient) == (36.0, 6.0, 36.0)


def test_evolution_gradient_is_that_of_the_smoothed_objective():
    """Of a quadratic the gradient itself; of |x| where it bends, zero."""
    scale = jnp.array([1.0, -2.0])

    def objective(eta):
        return jnp.sum(scale * eta["a"] ** 2) + eta["b"]

    eta = {"a": jnp.array([0.5, 1.0]), "b": jnp.array(3.0)}
    estimate = jax.jit(
        lambda key: evolution_gradient(objective, eta, key, num_pairs=20_000)
    )(jax.random.key(0))
    np.testing.assert_allclose(estimate["a"], 2 * scale * eta["a"], atol=0.15)
    np.testing.assert_allclose(estimate["b"], 1.0, atol=0.15)
    step = evolution_gradient(
        lambda x: jax.lax.stop_gradient(x), 0.0, jax.random.key(0), num_pairs=4096
    )
    np.testing.assert_allclose(step, 1.0, atol=0.1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: meta_gradient(abs, abs, 1), "eta: expected an array of floats"),
        (lambda: meta_gradient(abs, abs, 1.0, mode="both"), "mode='both'"),
        (lambda: meta_gradient(abs, lambda x: jnp.ones(2), 1.0), "outer.*scalar"),
        (lambda: unroll(abs, 0, 0.0, jnp.ones(2), jnp.ones(3)), "leading axis K > 0"),
        (lambda: unroll(abs, 0, 0.0, jnp.ones(0), jnp.ones(0)), "leading axis K > 0"),
        (
            lambda: evolution_gradient(abs, 1.0, jax.random.key(0), num_pairs=0),
            "num_pairs=0",
        ),
        (
            lambda: evolution_gradient(abs, 1.0, jax.random.key(0), sigma=0.0),
            "sigma=0.0",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_discounts_of_the_signal_and_noise_process():
    """Xu et al. (2018), section 3: bootstrap where the future is signal, not noise.

    Even states reward with noise, odd ones with 0.1. The best discount of each state is
    known: of the variance and the mean of what it would let in.
    """
    alpha, size, signal = 0.5, 10, jnp.arange(10) % 2

    def rewards(key):
        return jnp.where(signal == 1, 0.1, jax.random.normal(key, (size,)))

    def returns(reward, discount):
        """`[T]`, with nothing after the last reward."""
        ones = jnp.append(discount, 0.0)
        return losses.discounted_returns(reward, ones, 0.0, stop="none")

    def update(raw, value, reward, key):
        del key
        target = returns(reward, jax.nn.sigmoid(raw))
        return value + alpha * (target - value), {}

    def gradient(raw, key):
        inner_key, outer_key = jax.random.split(key)
        inner_rewards = rewards(inner_key)[None]
        goal = returns(rewards(outer_key), jnp.ones(size - 1))

        def inner(raw):
            args = (update, raw, jnp.zeros(size), inner_rewards, inner_key[None])
            return unroll(*args)[0]

        return meta_gradient(inner, lambda v: jnp.mean((v - goal) ** 2), raw)[1]

    @jax.jit
    def learn(key):
        def step(raw, key):
            slopes = jax.vmap(gradient, (None, 0))(raw, jax.random.split(key, 64))
            raw = raw - 5.0 * slopes.mean(axis=0)
            return raw, raw

        keys = jax.random.split(key, 10_000)
        _, raws = jax.lax.scan(step, jnp.zeros(size - 1), keys)
        return jax.nn.sigmoid(raws[-1_000:]).mean(axis=0)

    tuned = learn(jax.random.key(0))
    # Backwards: the mean m and variance s of the return by the best discounts.
    want, (m, s, mu) = np.zeros(size - 1), (0.1, 0.0, 0.1)
    for k in reversed(range(size - 1)):
        mean, variance = (0.1, 0.0) if k % 2 else (0.0, 1.0)
        mu = mean + mu
        want[k] = np.clip((mu / alpha - mean) * m / (m**2 + s), 0, 1)
        m, s = mean + want[k] * m, variance + want[k] ** 2 * s
    np.testing.assert_allclose(want[1::2], [0.095, 0.073, 0.051, 0.030], atol=1e-3)
    np.testing.assert_allclose(tuned[1::2], want[1::2], atol=0.03)
    assert (want[::2] == 1).all() and (tuned[::2] > 0.9).all()


def causes(inner, outer, eta, **how):
    return " ".join(check_meta_gradient(inner, outer, eta, **how).causes)


def test_check_passes_a_right_meta_gradient(x64):
    inner, outer = parts_of(tabular(), OPTIMIZERS["adam"], 3)
    check = check_meta_gradient(inner, outer, ETA, step=1e-6)
    assert check.causes == ()
    chex.assert_trees_all_close(check.reverse, check.differences, rtol=1e-4)
    chex.assert_trees_all_close(check.reverse, check.forward, rtol=1e-6)


def test_check_names_what_cuts_the_meta_gradient(x64):
    """Whole target stopped, stop in a later bootstrap, Adam's first step, its NaN."""

    def outer(v):
        return (v - 2.5) ** 2

    def steps(number, stop_target, stop_bootstrap):
        def inner(gamma):
            v = jnp.asarray(0.5)
            for _ in range(number):
                bootstrap = jax.lax.stop_gradient(v) if stop_bootstrap else v
                target = 1.0 + 2.0 * gamma * bootstrap
                target = jax.lax.stop_gradient(target) if stop_target else target
                v = v + 0.1 * (target - v)
            return v

        return inner

    check = functools.partial(causes, outer=outer, eta=0.9, step=1e-6)
    assert check(steps(2, False, False)) == ""
    assert "eta: no path" in check(steps(2, True, False))
    assert "one of several paths" in check(steps(2, False, True))
    assert check(steps(1, False, True)) == ""

    def one_step(optimizer, number=1, scale=1.0):
        def inner(eta):
            params, state = jnp.array([1.0, 2.0]), optimizer.init(jnp.zeros(2))
            for _ in range(number):
                grads = eta * scale * (params - 5.0) * jnp.array([1.0, 0.0])
                updates, state = optimizer.update(grads, state)
                params = params + updates
            return params, state

        return inner

    check = functools.partial(
        causes, outer=lambda s: s[0].sum() ** 2, eta=0.9, step=1e-6
    )
    assert "not finite" in check(one_step(optax.adam(0.1), 2))
    assert "first step of a fresh Adam" in check(one_step(optimizers.adam(0.1)))
    clip = optax.chain(optimizers.clip_by_global_norm(0.5), optax.sgd(0.1))
    assert "every gradient was clipped" in check(one_step(clip, 2))
    assert check(one_step(clip, 2, 0.01)) == ""


def test_check_finds_a_wrong_rule():
    @jax.custom_vjp
    def twice(x):
        return 2.0 * x

    twice.defvjp(lambda x: (2.0 * x, None), lambda _, g: (3.0 * g,))
    check = check_meta_gradient(twice, jnp.sin, 0.3)
    assert check.forward is None and "a custom rule is wrong" in check.causes[0]


def clips(*counts):
    """Optimisers' states: `(steps, saturated)` of each."""
    return [optimizers.ClipState(np.int32(x), np.int32(y)) for x, y in counts]


def test_saturated_fraction_is_of_the_steps_between():
    """Of all optimisers together, whatever went before; 0 if there were no steps."""
    start, end = clips((10, 10), (3, 0)), clips((14, 11), (7, 2))
    assert saturated_fraction(start, end) == 3 / 8
    assert saturated_fraction(start[:1], end[:1]) == 1 / 4
    assert saturated_fraction(end, end) == saturated_fraction((), ()) == 0
    start, end = clips((2**31 - 2, 10)), clips((2 - 2**31, 11))  # beyond int32
    assert saturated_fraction(start, end) == 1 / 4


def test_check_blames_clipping_only_if_every_gradient_was_clipped(x64):
    """Also where some were clipped and the meta-gradient vanishes by itself."""

    def inner(eta, saturated):
        state = optimizers.ClipState(jnp.int32(4), jnp.int32(saturated))
        return eta, state

    def blamed(saturated):
        with_clips = functools.partial(inner, saturated=saturated)
        found = causes(with_clips, lambda s: (s[0] - 0.9) ** 2, 0.9, step=1e-6)
        return "every gradient was clipped" in found

    assert blamed(4) and not blamed(3) and not blamed(0)
