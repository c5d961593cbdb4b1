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
    jnp.array([1.0, -2.0, 0.5]),
    jnp.array([2.0, 0.5, 3.0]),
    jnp.array([5.0, 4.25, 9.25]),
)
TARGETS = jnp.array([[4.0, -3.0, 7.0, 1.0], [0.0, 2.0, -1.0, 6.0]])
INDICES = jnp.array([[0, 2, 0, 0], [2, 2, 0, 2]])  # none of output 1
NAMES = [("kernel", "bias"), ("w", "b")]


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def parameters(names, num_inputs=4):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(num_inputs, N)), rng.normal(size=N)
    return {names[0]: jnp.asarray(weight, float), names[1]: jnp.asarray(bias, float)}


def outputs(params, names, state, x):
    y = x @ params[names[0]] + params[names[1]][None]
    indices = jnp.broadcast_to(jnp.arange(N)[None], y.shape)
    return losses.unnormalize(state, y, indices)


@pytest.mark.parametrize("names", NAMES)
def test_outputs_are_preserved(names, x64):
    """By any number of updates, while the statistics move far."""
    init, update = popart(N, 0.1, 1e-2, 1e3)
    params, state = parameters(names), init()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)))
    before = outputs(params, names, state, x)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = jnp.asarray(rng.normal(100.0, 30.0, 4))
        new, state = jax.jit(update)(params, state, targets, jnp.array([0, 1, 2, 0]))
        assert set(new) == set(names)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, params)
        params = new
    assert np.all(state.shift > 50)
    np.testing.assert_allclose(outputs(params, names, state, x), before, rtol=1e-10)


def test_outputs_of_a_flax_layer_are_preserved():
    layer, x = nn.Dense(N), jnp.ones((2, 4))
    params = layer.init(jax.random.key(0), x)["params"]
    new = art(STATE, TARGETS, INDICES, 0.1, 0.1, 10.0)
    popped = losses.pop(params, STATE, new)
    indices = jnp.tile(jnp.arange(N), (2, 1))
    before = losses.unnormalize(STATE, layer.apply({"params": params}, x), indices)
    after = losses.unnormalize(new, layer.apply({"params": popped}, x), indices)
    np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize("names", [("kernel",), ("w", "bias"), ("kernel", "bias", "x")])
def test_unknown_parameters(names):
    params = {name: jnp.ones((2, N)) for name in names}
    with pytest.raises(ValueError, match="'kernel' and 'bias'") as error:
        losses.pop(params, STATE, STATE)
    assert str(sorted(names)) in str(error.value)


def test_statistics_converge():
    """To mean and standard deviation, each output's own."""
    init, update = popart(2, 2e-3, 1e-3, 1e3)
    params = {"w": jnp.ones((1, 2)), "b": jnp.zeros(2)}
    keys = jax.random.split(jax.random.key(0), 2000)
    indices = jnp.array([0, 0, 1, 1, 1])
    mean, std = jnp.array([10.0, -3.0]), jnp.array([2.0, 0.5])

    def step(carry, key):
        targets = mean[indices] + std[indices] * jax.random.normal(key, (5,))
        return update(*carry, targets, indices), None

    (_, state), _ = jax.lax.scan(step, (params, init()), keys)
    np.testing.assert_allclose(state.shift, mean, atol=0.2)
    np.testing.assert_allclose(state.scale, std, rtol=0.1)
    z = losses.normalize(state, mean + std, jnp.arange(2))
    np.testing.assert_allclose(z, 1.0, atol=0.2)


def test_one_step_is_a_moving_average():
    new = art(STATE, TARGETS, INDICES, 0.1, 1e-3, 1e3)
    shift, second = np.array(STATE.shift), np.array(STATE.second_moment)
    for g, i in zip(TARGETS.ravel(), INDICES.ravel(), strict=True):
        shift[i] += 0.1 * (g - STATE.shift[i])
        second[i] += 0.1 * (g**2 - STATE.second_moment[i])
    np.testing.assert_allclose(new.shift, shift, rtol=1e-6)
    np.testing.assert_allclose(new.second_moment, second, rtol=1e-6)
    np.testing.assert_allclose(new.scale, np.sqrt(second - shift**2), rtol=1e-5)


def test_equals_rlax(x64):
    """On a thousand random inputs."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(1000, 4, N)), rng.normal(size=(1000, N))
    shift, scale = rng.normal(size=(1000, N)), rng.uniform(0.5, 3.0, (1000, N))
    state = (shift, scale, shift**2 + scale**2)
    targets, indices = rng.normal(size=(1000, 8)), rng.integers(0, N, (1000, 8))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0, 0))
    def both(use, kernel, bias, state, targets, indices):
        del use
        params, out = {"w": kernel, "b": bias}, []
        for lib, cls in ((losses, PopArtState), (rlax, rlax.PopArtState)):
            _, update = lib.popart(N, 0.05, 0.8, 2.0)
            new_params, new = update(params, cls(*state), targets, indices)
            used = (
                lib.normalize(new, targets, indices),
                lib.unnormalize(new, targets, indices),
                *lib.unnormalize_linear(new, kernel, indices[:4]),
            )
            out.append((new_params, tuple(new), used))
        return out

    with jax.numpy_rank_promotion("allow"):
        ours, theirs = both(0, kernel, bias, state, targets, indices)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-9)


def test_bounds_of_the_scale():
    """Targets that are all the same, and huge ones."""
    state = STATE
    for _ in range(50):
        state = art(state, jnp.full(4, 7.0), jnp.zeros(4, int), 0.2, 0.25, 4.0)
    assert state.scale[0] == 0.25
    state = art(state, jnp.array([1e4, 1e4]), jnp.array([1, 2]), 0.5, 0.25, 4.0)
    np.testing.assert_array_equal(state.scale[1:], 4.0)


def test_other_outputs_are_unchanged():
    """Also by an index that is no output's: it moves nothing."""
    new = art(STATE, TARGETS, INDICES, 0.1, 0.1, 10.0)
    for before, after in zip(STATE, new, strict=True):
        assert before[1] == after[1] and before[0] != after[0]
    for index in (-1, N):
        targets = jnp.array([jnp.nan, 1e9])
        new = art(STATE, targets, jnp.full(2, index), 0.1, 0.1, 10.0)
        chex.assert_trees_all_close(new, STATE, rtol=1e-6)


def test_no_such_output():
    for index in (-1, N):
        x, i = jnp.ones(2), jnp.array([0, index])
        for out in (
            losses.normalize(STATE, x, i),
            losses.unnormalize(STATE, x, i),
            *losses.unnormalize_linear(STATE, jnp.ones((2, N)), i),
        ):
            np.testing.assert_array_equal(jnp.isnan(out), [False, True])


def test_normalising_and_back():
    z = losses.normalize(STATE, TARGETS, INDICES)
    assert not np.allclose(z, TARGETS)
    np.testing.assert_allclose(losses.unnormalize(STATE, z, INDICES), TARGETS, 1e-6)
    y = jnp.arange(4.0 * N).reshape(4, N)
    out = losses.unnormalize_linear(STATE, y, INDICES[0])
    np.testing.assert_array_equal(out.normalized, y[jnp.arange(4), INDICES[0]])
    np.testing.assert_array_equal(
        out.unnormalized, losses.unnormalize(STATE, out.normalized, INDICES[0])
    )


@pytest.mark.parametrize("axis_name", ["i", ("i", "j")])
def test_a_mapped_axis_equals_the_whole_batch(axis_name):
    whole = art(STATE, TARGETS, INDICES, 0.05, 0.1, 10.0)
    part = functools.partial(art, step_size=0.05, scale_lb=0.1, scale_ub=10.0)
    f = functools.partial(part, STATE, axis_name=axis_name)
    if axis_name == "i":
        mapped = jax.vmap(f, axis_name="i")(TARGETS, INDICES)
        each = jax.tree.map(lambda x: x[0], mapped)
    else:
        f = jax.vmap(jax.vmap(f, axis_name="j"), axis_name="i")
        mapped = f(TARGETS, INDICES)
        each = jax.tree.map(lambda x: x[0, 0], mapped)
    chex.assert_trees_all_close(each, whole, rtol=1e-6)
    for x, y in zip(mapped, whole, strict=True):
        np.testing.assert_allclose(x, np.broadcast_to(y, x.shape), rtol=1e-6)


def test_under_vmap():
    """Independent statistics for every seed."""
    states = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), STATE)
    f = functools.partial(art, step_size=0.05, scale_lb=0.1, scale_ub=10.0)
    many = jax.vmap(f)(states, TARGETS, INDICES)
    for i in range(2):
        each = f(jax.tree.map(lambda x, i=i: x[i], states), TARGETS[i], INDICES[i])
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], many), each)


def test_gradients_reach_targets_and_step_size(x64):
    """Nothing is stopped, and at a bound of the scale nothing is NaN."""
    state = jax.tree.map(lambda x: x.astype(float), STATE)

    @functools.partial(jax.jit, static_argnums=2)
    def score(targets, step_size, bounds=(0.1, 10.0)):
        new = art(state, targets, INDICES, step_size, *bounds)
        return sum(jnp.sum(jnp.sin(x)) for x in new)

    targets, h = TARGETS.astype(float), 1e-6
    for argument in (0, 1):
        g = jax.grad(score, argument)(targets, 0.05)
        x = [targets, jnp.asarray(0.05)]
        flat = x[argument].ravel()
        for i, expected in enumerate(g.ravel()):
            moved = [flat.at[i].add(s).reshape(g.shape) for s in (h, -h)]
            values = [score(*x[:argument], m, *x[argument + 1 :]) for m in moved]
            fd = (values[0] - values[1]) / (2 * h)
            np.testing.assert_allclose(expected, fd, rtol=1e-6, atol=1e-8)
    for bounds in ((0.1, 0.2), (50.0, 60.0)):
        chex.assert_tree_all_finite(jax.grad(score, (0, 1))(targets, 0.05, bounds))


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
    x, i = jnp.ones(4), jnp.zeros(4, int)
    with pytest.raises(
        AssertionError, match=r"targets float32\[4\].*indices int32\[1\]"
    ):
        art(STATE, x, i[:1], 0.1, 0.1, 1.0)
    with pytest.raises(AssertionError, match=r"indices float32\[4\]"):
        losses.normalize(STATE, x, x)
    with pytest.raises(AssertionError, match=r"normalized bfloat16\[4\]"):
        losses.unnormalize(STATE, x.astype(jnp.bfloat16), i)
    with pytest.raises(AssertionError):
        losses.unnormalize_linear(STATE, jnp.ones((4, N + 1)), i)
    for shape in ((4, 1), (N,), (4, N + 1)):
        with pytest.raises(AssertionError):
            losses.pop({"w": jnp.ones((4, 1)), "b": jnp.ones(shape[-1])}, STATE, STATE)
