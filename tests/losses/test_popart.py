"""PopArt: outputs preserved, statistics of the targets, mapped axes, names."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax import losses
from rljax.losses import PopArtState, art, popart

N = 3
STATE = PopArtState(
    np.float32([1.0, -2.0, 0.5]),
    np.float32([2.0, 0.5, 3.0]),
    np.float32([4.0, 0.25, 9.0]),
)
TARGETS = np.float32([[4.0, -3.0, 7.0, 1.0], [0.0, 2.0, -1.0, 6.0]])
INDICES = np.int32([[0, 2, 0, 0], [2, 2, 0, 2]])  # none of output 1
NAMES = [("kernel", "bias"), ("w", "b")]
jitted_art = jax.jit(art, static_argnames=("scale_lb", "scale_ub"))


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def parameters(names, num_inputs=4):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(num_inputs, N)), rng.normal(size=N)
    return {names[0]: weight, names[1]: bias}


@jax.jit
def outputs(state, weight, bias, x):
    y = x @ weight + bias[None]
    return losses.unnormalize(state, y, np.tile(np.arange(N), (len(x), 1)))


@pytest.mark.parametrize("names", NAMES)
def test_outputs_are_preserved(names, x64):
    """By any number of updates, while the statistics move far."""
    init, update = popart(N, 0.1, 1e-2, 1e3)
    params, state, update = parameters(names), init(), jax.jit(update)
    x = np.random.default_rng(1).normal(size=(5, 4))
    weight, bias = names
    before = outputs(state, params[weight], params[bias], x)
    for seed in range(20):
        targets = np.random.default_rng(seed).normal(100.0, 30.0, 4)
        new, state = update(params, state, targets, np.array([0, 1, 2, 0]))
        assert set(new) == set(names)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, params)
        params = new
    assert np.min(state.shift) > 50
    after = outputs(state, params[weight], params[bias], x)
    np.testing.assert_allclose(after, before, rtol=1e-10)


def test_outputs_of_a_flax_layer_are_preserved():
    layer, x = nn.Dense(N), np.ones((2, 4), np.float32)
    indices = np.tile(np.arange(N, dtype=np.int32), (2, 1))

    @jax.jit
    def before_and_after(key, state):
        params = layer.init(key, x)["params"]
        new = art(state, TARGETS, INDICES, 0.1, 0.1, 10.0)
        popped = losses.pop(params, state, new)
        return (
            losses.unnormalize(state, layer.apply({"params": params}, x), indices),
            losses.unnormalize(new, layer.apply({"params": popped}, x), indices),
        )

    before, after = before_and_after(jax.random.key(0), STATE)
    np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("names", [("kernel",), ("w", "bias"), ("kernel", "bias", "x")])
def test_unknown_parameters(names):
    params = {name: np.ones((2, N), np.float32) for name in names}
    with pytest.raises(ValueError, match="'kernel' and 'bias'") as error:
        losses.pop(params, STATE, STATE)
    assert str(sorted(names)) in str(error.value)


def test_statistics_converge():
    """To mean and standard deviation, each output's own."""
    init, update = popart(2, 2e-3, 1e-3, 1e3)
    params = {"w": np.ones((1, 2), np.float32), "b": np.zeros(2, np.float32)}
    indices = np.array([0, 0, 1, 1, 1])
    mean, std = np.float32([10.0, -3.0]), np.float32([2.0, 0.5])
    noise = np.random.default_rng(0).normal(size=(2000, 5))
    targets = mean[indices] + std[indices] * np.float32(noise)

    @jax.jit
    def learn(params, state, targets):
        def step(carry, targets):
            return update(*carry, targets, indices), None

        (_, state), _ = jax.lax.scan(step, (params, state), targets)
        return state, losses.normalize(state, mean + std, np.arange(2))

    state, z = learn(params, init(), targets)
    np.testing.assert_allclose(state.shift, mean, atol=0.2)
    np.testing.assert_allclose(state.scale, std, rtol=0.1)
    np.testing.assert_allclose(z, 1.0, atol=0.2)


def test_one_step_is_a_moving_average():
    new = jitted_art(STATE, TARGETS, INDICES, 0.1, 1e-3, 1e3)
    shift, second = STATE.shift.copy(), STATE.second_moment
    np.testing.assert_array_equal(second, STATE.variance + STATE.shift**2)
    for g, i in zip(TARGETS.ravel(), INDICES.ravel(), strict=True):
        shift[i] += 0.1 * (g - STATE.shift[i])
        second[i] += 0.1 * (g**2 - STATE.second_moment[i])
    np.testing.assert_allclose(new.shift, shift, rtol=1e-6)
    np.testing.assert_allclose(new.second_moment, second, rtol=1e-6)
    np.testing.assert_allclose(new.scale, np.sqrt(second - shift**2), rtol=1e-5)


def by_recursion(state, targets, indices, step_size):
    """Means, variances of the float64 recursion in the second moment; unbounded."""
    shift, variance = (np.asarray(x, float) for x in (state.shift, state.variance))
    second = variance + shift**2
    for batch in np.asarray(targets, float):
        old_shift, old_second = shift.copy(), second.copy()
        for g, i in zip(batch, indices, strict=True):
            shift[i] += step_size * (g - old_shift[i])
            second[i] += step_size * (g**2 - old_second[i])
        yield shift.copy(), second - shift**2


@pytest.mark.parametrize(
    ("mean", "std"), [(1e3, 1.0), (-1e4, 3.0), (1e5, 100.0), (0.0, 1e-3), (3.0, 50.0)]
)
@pytest.mark.parametrize("count", [1, 4])
def test_scale_is_exact_far_from_zero(mean, std, count):
    """Two outputs, one or four targets for each; the statistics have moved there."""
    indices = np.repeat([0, 1], count)
    means = np.where(indices == 0, mean, 1 - mean)
    noise = np.random.default_rng(0).normal(size=(3000, 2 * count))
    targets = np.float32(means + std * noise)
    near = PopArtState(
        np.float32([mean + std, 1 - mean]),
        np.ones(2, np.float32),
        np.ones(2, np.float32),
    )
    state, scales = scan_art(near, targets, indices)
    expected = list(by_recursion(near, targets, indices, 0.01))
    variances = np.array([variance for _, variance in expected])
    np.testing.assert_allclose(scales, np.sqrt(variances), rtol=2e-3)
    np.testing.assert_allclose(state.shift, expected[-1][0], atol=2e-3 * std)
    np.testing.assert_allclose(state.variance, variances[-1], rtol=2e-3)


@jax.jit
def scan_art(state, targets, indices):
    def step(state, batch):
        state = art(state, batch, indices, 0.01, 1e-5, 1e6)
        return state, state.scale

    return jax.lax.scan(step, state, targets)


def test_a_first_batch_far_from_zero():
    """As many targets as the step size allows: their own mean and spread are left."""
    targets = np.float32(1e5 + np.random.default_rng(0).normal(size=1000))
    start = PopArtState(np.zeros(1), np.ones(1), np.ones(1))
    start = jax.tree.map(np.float32, start)
    new = jitted_art(start, targets, np.zeros(1000, int), 1e-3, 1e-3, 1e3)
    np.testing.assert_allclose(new.scale, targets.astype(float).std(), rtol=0.01)


def test_outputs_far_from_zero_are_preserved_in_single_precision():
    """After 20 000 updates, to a thousandth of the targets' spread."""
    init, update = popart(1, 1e-3, 1e-4, 1e6)
    noise = np.random.default_rng(0).normal(size=(20_000, 1))
    targets, index = np.float32(1e5 + 100 * noise), np.zeros(1, int)
    params = {"kernel": np.ones((1, 1), np.float32), "bias": np.zeros(1, np.float32)}

    @jax.jit
    def learn(params):
        def step(carry, target):
            return update(*carry, target, index), None

        (params, state), _ = jax.lax.scan(step, (params, init()), targets)
        x = jnp.linspace(-2.0, 2.0, 5)[:, None] * state.scale[None]
        return x, losses.unnormalize(
            state, x @ params["kernel"] + params["bias"][None], np.zeros((5, 1), int)
        )

    before, after = learn(params)
    np.testing.assert_allclose(after, before, atol=0.1)


def test_parameters_and_statistics_keep_their_dtypes():
    params = {"w": np.ones((4, N), jnp.bfloat16), "b": np.ones(N, jnp.bfloat16)}
    _, update = popart(N, 1, 0.1, 10.0)  # the step size an integer, too
    targets = TARGETS.astype(jnp.bfloat16)
    out = jax.eval_shape(update, params, STATE, targets, INDICES)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, (params, STATE))
    z = jax.eval_shape(losses.normalize, STATE, targets, INDICES)
    assert z.dtype == jnp.float32


def test_equals_rlax(x64):
    """On a thousand random inputs."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(1000, 4, N)), rng.normal(size=(1000, N))
    shift, scale = rng.normal(size=(1000, N)), rng.uniform(0.5, 3.0, (1000, N))
    state = (shift, scale, scale**2)
    targets, indices = rng.normal(size=(1000, 8)), rng.integers(0, N, (1000, 8))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0, 0))
    def both(use, kernel, bias, state, targets, indices):
        del use
        params, out = {"w": kernel, "b": bias}, []
        state = PopArtState(*state)
        theirs = rlax.PopArtState(state.shift, state.scale, state.second_moment)
        for lib, old in ((losses, state), (rlax, theirs)):
            _, update = lib.popart(N, 0.05, 0.8, 2.0)
            new_params, new = update(params, old, targets, indices)
            used = (
                lib.normalize(new, targets, indices),
                lib.unnormalize(new, targets, indices),
                *lib.unnormalize_linear(new, kernel, indices[:4]),
            )
            moments = (new.shift, new.scale, new.second_moment)
            out.append((new_params, moments, used))
        return out

    with jax.numpy_rank_promotion("allow"):
        ours, theirs = both(0, kernel, bias, state, targets, indices)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-9)


def test_bounds_of_the_scale():
    """Targets that are all the same, and huge ones."""
    state = STATE
    for _ in range(50):
        targets = np.full(4, 7.0, np.float32)
        state = jitted_art(state, targets, np.zeros(4, int), 0.2, 0.25, 4.0)
    assert np.asarray(state.scale)[0] == 0.25
    targets, indices = np.full(4, 1e4, np.float32), np.array([1, 2, 1, 2])
    state = jitted_art(state, targets, indices, 0.25, 0.25, 4.0)
    np.testing.assert_array_equal(np.asarray(state.scale)[1:], 4.0)


def test_other_outputs_are_unchanged():
    """Also by an index that is no output's: it moves nothing."""
    new = jitted_art(STATE, TARGETS, INDICES, 0.1, 0.1, 10.0)
    for before, after in zip(STATE, map(np.asarray, new), strict=True):
        assert before[1] == after[1] and before[0] != after[0]
    targets = np.where(np.arange(8).reshape(2, 4) == 3, np.float32(np.nan), 1e9)
    for index in (-1, N):
        indices = np.full_like(INDICES, index)
        new = jitted_art(STATE, np.float32(targets), indices, 0.1, 0.1, 10.0)
        chex.assert_trees_all_close(new, STATE, rtol=1e-6)


def test_no_such_output():
    @jax.jit
    def outputs(x, i):
        return (
            losses.normalize(STATE, x[:, 0], i),
            losses.unnormalize(STATE, x[:, 0], i),
            *losses.unnormalize_linear(STATE, x, i),
        )

    for index in (-1, N):
        for out in outputs(np.ones((2, N), np.float32), np.array([0, index])):
            np.testing.assert_array_equal(np.isnan(out), [False, True])


def test_normalising_and_back():
    @jax.jit
    def results(targets, y):
        z = losses.normalize(STATE, targets, INDICES)
        out = losses.unnormalize_linear(STATE, y, INDICES[0])
        chosen = losses.unnormalize(STATE, out.normalized, INDICES[0])
        return z, losses.unnormalize(STATE, z, INDICES), out, chosen

    y = np.arange(4 * N, dtype=np.float32).reshape(4, N)
    z, back, out, chosen = results(TARGETS, y)
    assert not np.allclose(z, TARGETS)
    np.testing.assert_allclose(back, TARGETS, 1e-6)
    np.testing.assert_array_equal(out.normalized, y[np.arange(4), INDICES[0]])
    np.testing.assert_array_equal(out.unnormalized, chosen)


@pytest.mark.parametrize("axis_name", ["i", ("i", "j")])
def test_a_mapped_axis_equals_the_whole_batch(axis_name):
    whole = jitted_art(STATE, TARGETS, INDICES, 0.1, 0.1, 10.0)

    def part(targets, indices):
        return art(STATE, targets, indices, 0.1, 0.1, 10.0, axis_name)

    if axis_name == "i":
        mapped = jax.vmap(part, axis_name="i")
    else:
        mapped = jax.vmap(jax.vmap(part, axis_name="j"), axis_name="i")
    for x, y in zip(jax.jit(mapped)(TARGETS, INDICES), whole, strict=True):
        np.testing.assert_allclose(x, np.broadcast_to(y, x.shape), rtol=1e-6)


def test_under_vmap():
    """Independent statistics for every seed."""
    states = jax.tree.map(lambda x: np.stack([x, 2 * x]), STATE)
    f = functools.partial(art, step_size=0.05, scale_lb=0.1, scale_ub=10.0)

    @jax.jit
    def both(states, targets, indices):
        each = [
            f(jax.tree.map(lambda x, i=i: x[i], states), targets[i], indices[i])
            for i in range(2)
        ]
        return jax.vmap(f)(states, targets, indices), each

    many, each = both(states, TARGETS, INDICES)
    stacked = jax.tree.map(lambda *x: np.stack(x), *each)
    chex.assert_trees_all_close(many, stacked)


def test_gradients_reach_targets_and_step_size(x64):
    """Nothing is stopped, and at a bound of the scale nothing is NaN."""
    state = jax.tree.map(lambda x: x.astype(float), STATE)

    def score(x, bounds):
        """Of the eight targets, then the step size."""
        targets, step_size = x[:8].reshape(2, 4), x[8]
        new = art(state, targets, INDICES, step_size, *bounds)
        return sum(jnp.sum(jnp.sin(part)) for part in new)

    @jax.jit
    def derivatives(x):
        value_and_grad = jax.value_and_grad(
            functools.partial(score, bounds=(0.1, 10.0))
        )
        at_bounds = [jax.grad(score)(x[0], b) for b in ((0.1, 0.2), (50.0, 60.0))]
        return jax.vmap(value_and_grad)(x), at_bounds

    x, h = np.append(TARGETS.ravel(), 0.05), 1e-6
    moved = h * np.eye(9)
    (values, gradients), at_bounds = derivatives(
        np.stack([x, *(x + moved), *(x - moved)])
    )
    up, down = np.split(np.asarray(values)[1:], 2)
    expected = (up - down) / (2 * h)
    np.testing.assert_allclose(np.asarray(gradients)[0], expected, rtol=1e-6, atol=1e-8)
    chex.assert_tree_all_finite(at_bounds)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_impossible_bounds(bounds):
    expected = f"scale_lb={bounds[0]}, scale_ub={bounds[1]}"
    with pytest.raises(ValueError, match=expected):
        popart(N, 0.1, *bounds)
    with pytest.raises(ValueError, match=expected):
        art(STATE, TARGETS, INDICES, 0.1, *bounds)
    with pytest.raises(ValueError, match="num_outputs=0: must be >= 1"):
        popart(0, 0.1, 0.1, 1.0)


def test_refusals():
    x, i = np.ones(4, np.float32), np.zeros(4, np.int32)
    with pytest.raises(
        AssertionError, match=r"targets float32\[4\].*indices int32\[1\]"
    ):
        art(STATE, x, i[:1], 0.1, 0.1, 1.0)
    with pytest.raises(AssertionError, match=r"indices float32\[4\]"):
        losses.normalize(STATE, x, x)
    with pytest.raises(AssertionError, match=r"^targets: expected floats.*int32\[4\]"):
        art(STATE, i, i, 0.1, 0.1, 1.0)
    with pytest.raises(AssertionError):
        losses.unnormalize_linear(STATE, np.ones((4, N + 1), np.float32), i)
    for size in (1, N, N + 1):
        params = {"w": np.ones((4, 1), np.float32), "b": np.ones(size, np.float32)}
        with pytest.raises(AssertionError):
            losses.pop(params, STATE, STATE)
