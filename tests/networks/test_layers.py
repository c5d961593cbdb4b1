"""Orthogonal weights without LAPACK, convolutions, normalised and noisy layers."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import autodiff, networks
from rljax.networks import layers

from .. import compiled


@pytest.mark.parametrize(
    "shape", [(1, 1), (6, 6), (9, 4), (4, 9), (64, 64), (3, 3, 2, 5), (3, 3, 1, 16)]
)
def test_orthogonal_columns_or_rows(shape):
    w = np.array(jax.jit(lambda k: layers.orthogonal()(k, shape))(jax.random.key(0)))
    assert (w.shape, w.dtype) == (shape, np.float32)
    w = w.reshape(-1, shape[-1])
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(gram, np.eye(min(w.shape)), atol=2e-6)


def test_orthogonal_scale_and_dtype():
    @jax.jit
    def weights(key):
        return [layers.orthogonal(s)(key, (4, 3)) for s in (1.0, 3.0)]

    one, three = weights(jax.random.key(0))
    np.testing.assert_allclose(three, 3 * np.array(one), rtol=1e-6)
    half = jax.eval_shape(
        lambda key: layers.orthogonal()(key, (4, 3), jnp.bfloat16), jax.random.key(0)
    )
    assert half.dtype == jnp.bfloat16


def kolmogorov_smirnov(x, y):
    """Greatest difference of two empirical distribution functions, normalised."""
    both = np.concatenate([x, y])
    fx, fy = (np.searchsorted(np.sort(z), both, "right") / len(z) for z in (x, y))
    return np.abs(fx - fy).max() * math.sqrt(len(x) * len(y) / (len(x) + len(y)))


@pytest.mark.parametrize("shape", [(4, 4), (5, 2), (2, 5)])
def test_orthogonal_is_distributed_as_jax_has_it(shape):
    keys = jax.random.split(jax.random.key(0), (2, 4000))
    ours = jax.jit(jax.vmap(lambda k: layers.orthogonal()(k, shape)))(keys[0])
    reference = jax.nn.initializers.orthogonal()
    theirs = jax.jit(
        lambda keys: jax.lax.map(lambda k: reference(k, shape), keys)  # no vmap: hangs
    )(keys[1])
    for statistic in (
        lambda w: w[:, 0, 0],
        lambda w: w[:, -1, -1],
        lambda w: np.trace(w, axis1=1, axis2=2),
        lambda w: (w[:, 0] * w[:, 1]).sum(axis=1),
        lambda w: np.sum(w**4, axis=(1, 2)),
    ):
        x, y = statistic(np.array(ours)), statistic(np.array(theirs))
        if x.std() > 1e-5:  # rows of a wide matrix are exactly orthogonal
            assert kolmogorov_smirnov(x, y) < 1.95  # 99.9 %
    if shape == (4, 4):
        trace = np.trace(np.array(ours), axis1=1, axis2=2)
        np.testing.assert_allclose(np.mean(trace**2), 1.0, atol=0.1)
        np.testing.assert_allclose((np.linalg.det(ours) > 0).mean(), 0.5, atol=0.03)


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((3, 2), (1, 1)),
        ((4, 2), (1, 2)),
        ((4, 2), (2, 2)),
        ((3, 4), (3, 2)),
    ],
)
def test_convolution_equals_jax(size, strides):
    images, kernel = compiled.normal(0, 3, 2, 7, 5, 2), compiled.normal(1, *size, 2, 4)
    layout = ("NHWC", "HWIO", "NHWC")
    reference = functools.partial(
        jax.lax.conv_general_dilated, padding="VALID", dimension_numbers=layout
    )

    def outputs_and_gradients(convolution, images, kernel):
        def cubed(images, kernel):
            out = jax.vmap(convolution, in_axes=(0, None))(images, kernel)
            return (out**3).sum(), out

        return jax.value_and_grad(cubed, (0, 1), has_aux=True)(images, kernel)

    @jax.jit
    def both(images, kernel):
        return [
            outputs_and_gradients(
                functools.partial(fn, window_strides=strides), images, kernel
            )
            for fn in (layers.valid_convolution, reference)
        ]

    got, want = both(images, kernel)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("strides", [(2, 1), (1, 2)])
def test_strides_divide_the_size_of_a_kernel(strides):
    images, kernel = jnp.ones((2, 6, 6, 2)), jnp.ones((3, 3, 2, 4))
    with pytest.raises(ValueError, match=r"window_strides=.*divide.*\(3, 3\)"):
        layers.valid_convolution(images, kernel, strides)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("stride", [1, 2])
def test_accelerators_get_convolutions_and_the_cpu_products(stride, platform):
    images, kernel = jnp.ones((2, 6, 6, 2)), jnp.ones((2, 2, 2, 4))

    def loss(images, kernel):
        return layers.valid_convolution(images, kernel, (stride, stride)).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(images, kernel)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.convolution" in text) == (platform != "cpu")


def test_activations_differ():
    x = np.array([[-1.0, 2.0]])

    @jax.jit
    def outputs(key):
        return [
            layers.MLP((8,), name).init_with_output(key, x)[0]
            for name in layers.ACTIVATIONS
        ]

    outputs = outputs(jax.random.key(0))
    assert len(outputs) == 5 and len(np.unique(np.stack(outputs), axis=0)) == 5


@pytest.mark.parametrize("shape", [(4,), (10, 10, 4)])
def test_layer_norm_comes_before_each_activation(shape):
    net = networks.QNetwork(compiled.body(len(shape), (8, 5), layer_norm=True), 3)
    obs = compiled.normal(1, 2, *shape)
    params = jax.tree.map(
        lambda x: np.array(x) + compiled.normal(x.size, *x.shape),
        compiled.init(net, jax.random.key(0), obs),
    )
    weights = params["params"]

    def normalised(x, layer):
        x = np.array(x)
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        return np.maximum(x * layer["scale"] + layer["bias"], 0.0)

    x = obs
    if len(shape) == 3:
        encoder = weights["Encoder_0"]
        kernel, bias = encoder["Conv_0"]["kernel"], encoder["Conv_0"]["bias"]
        x = np.array(jax.jit(layers.valid_convolution)(x, kernel)) + bias
        x = normalised(x, encoder["LayerNorm_0"]).reshape(2, -1)
    for i in range(2):
        dense = weights["MLP_0"][f"Dense_{i}"]
        x = x @ dense["kernel"] + dense["bias"]
        x = normalised(x, weights["MLP_0"][f"LayerNorm_{i}"])
    want = x @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"]
    got = compiled.apply(net, params, obs)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factored", [False, True])
def test_noisy_layer_by_hand(factored):
    """y = x W + b + noise; a weight's noise is f(e_in) f(e_out) times its scale."""
    layer, x = layers.NoisyDense(3), np.float32([[1.0, -2.0], [0.5, 4.0]])
    params = jax.tree.map(np.array, compiled.init(layer, jax.random.key(0), x))
    means, scales = params["params"]["mean"], params["params"]["scale"]
    bound = 1 / np.sqrt(2)
    assert (np.abs(means["kernel"]) < bound).all() and (means["kernel"] < 0).any()
    np.testing.assert_allclose(scales["kernel"], 0.5 * bound, rtol=1e-6)
    quiet = compiled.apply(layer, params, x)
    np.testing.assert_allclose(quiet, x @ means["kernel"] + means["bias"], rtol=1e-5)
    same = np.stack([x[0], x[0]])

    @jax.jit
    @jax.vmap
    def noise(key):
        y = layer.apply(layers.with_noise(params, key, factored), same)
        return y - layer.apply(params, same)

    draws = np.array(noise(jax.random.split(jax.random.key(1), 20_000)))
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])  # one draw for a batch
    np.testing.assert_allclose(draws.mean(axis=0), 0.0, atol=0.02)
    # E f(e)^2 = E |e|, E f(e) = 0 and independent factors.
    size = np.sqrt(2 / np.pi)
    squares = (x[0] ** 2).sum() * size**2 + size
    want = (0.5 * bound) ** 2 * squares
    np.testing.assert_allclose((draws[:, 0] ** 2).mean(axis=0), want, rtol=0.05)


@pytest.mark.parametrize("factored", [False, True])
def test_noise_of_a_network(factored):
    """Each layer's noise by hand, the same for all inputs and ways to apply it."""
    net = networks.QNetwork(compiled.body(1, (5,)), 3, dueling=True, noisy=True)
    obs, key = compiled.normal(1, 4, 2), jax.random.key(2)
    params = jax.tree.map(np.array, compiled.init(net, jax.random.key(0), obs))

    @jax.jit
    def output_and_gradient(params):
        def sum_of_squares(params):
            got = net.apply(layers.with_noise(params, key, factored), obs)
            return (got**2).sum(), got

        grads, got = jax.grad(sum_of_squares, has_aux=True)(params)
        return got, grads, jax.random.normal(key, (2 + 5 + 5 + 3 + 5 + 1,))

    got, grads, draws = jax.tree.map(np.array, output_and_gradient(params))
    factors = np.sign(draws) * np.sqrt(np.abs(draws))
    x = np.maximum(by_hand(params, ("MLP_0", "NoisyDense_0"), obs, factors[:7]), 0)
    advantage = by_hand(params, ("advantage",), x, factors[7:15])
    value = by_hand(params, ("value",), x, factors[15:])
    want = value + advantage - advantage.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert compiled.all_nonzero(grads)


def by_hand(params, path, x, factors):
    """A noisy layer: of `factors` the inputs' come first."""
    layer = params["params"]
    for name in path:
        layer = layer[name]
    inputs, outputs = factors[: x.shape[1]], factors[x.shape[1] :]
    kernel, bias = (
        layer["mean"][n] + layer["scale"][n] * by
        for n, by in (("kernel", np.outer(inputs, outputs)), ("bias", outputs))
    )
    return x @ kernel + bias


def test_noise_leaves_the_norms_of_gradients_factored():
    net = networks.QNetwork(compiled.body(1, (5,)), 3, noisy=True)
    obs, key = compiled.normal(1, 4, 2), jax.random.key(2)
    params = compiled.init(net, jax.random.key(0), obs)

    def loss(factored, params, obs):
        noisy = layers.with_noise(params, key, factored)
        return (net.apply(noisy, obs) ** 2).sum()

    @jax.jit
    def norms(params):
        return [
            autodiff.per_transition_grad_norms(
                functools.partial(loss, f), params, obs, method=method
            )
            for f, method in ((True, "factored"), (False, "vmap"))
        ]

    factored, merged = norms(params)
    np.testing.assert_allclose(factored, merged, rtol=1e-4)


def test_parameters_without_noisy_layers_stay_as_they_are():
    net = networks.QNetwork(compiled.body(1, (5,)), 3)
    params = jax.eval_shape(net.init, jax.random.key(0), np.ones((1, 2)))
    assert layers.with_noise(params, jax.random.key(0)) is params
