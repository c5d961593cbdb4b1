"""Orthogonal weights without LAPACK, convolutions, normalised and noisy layers."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import autodiff, layers, networks


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
    one, three = (layers.orthogonal(s)(jax.random.key(0), (4, 3)) for s in (1.0, 3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)
    half = layers.orthogonal()(jax.random.key(0), (4, 3), jnp.bfloat16)
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


def test_convolution_equals_jax():
    images = jax.random.normal(jax.random.key(0), (3, 2, 6, 5, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 2, 2, 4))

    def reference(images, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "VALID", dimension_numbers=layout
        )

    def outputs_and_gradients(convolution):
        def cubed(images, kernel):
            out = jax.vmap(convolution, in_axes=(0, None))(images, kernel)
            return (out**3).sum(), out

        grad = jax.jit(jax.value_and_grad(cubed, (0, 1), has_aux=True))
        return grad(images, kernel)

    chex.assert_trees_all_close(
        outputs_and_gradients(layers.valid_convolution),
        outputs_and_gradients(reference),
        rtol=1e-4,
        atol=1e-3,
    )


def test_activations_differ():
    x = jnp.array([[-1.0, 2.0]])
    outputs = [
        jax.jit(layers.MLP((8,), name).init_with_output)(jax.random.key(0), x)[0]
        for name in layers.ACTIVATIONS
    ]
    assert len(outputs) == 5 and len(np.unique(np.stack(outputs), axis=0)) == 5


@pytest.mark.parametrize("shape", [(4,), (10, 10, 4)])
def test_layer_norm_comes_before_each_activation(shape):
    net = networks.QNetwork(len(shape), 3, (8, 5), layer_norm=True)
    obs = jax.random.normal(jax.random.key(1), (2, *shape))
    q, params = jax.jit(net.init_with_output)(jax.random.key(0), obs)
    params = jax.tree.map(
        lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), params
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
        x = layers.valid_convolution(x, kernel) + bias
        x = normalised(x, encoder["LayerNorm_0"]).reshape(2, -1)
    for i in range(2):
        dense = weights["MLP_0"][f"Dense_{i}"]
        x = x @ dense["kernel"] + dense["bias"]
        x = normalised(x, weights["MLP_0"][f"LayerNorm_{i}"])
    want = x @ weights["Dense_0"]["kernel"] + weights["Dense_0"]["bias"]
    np.testing.assert_allclose(net.apply(params, obs), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factored", [False, True])
def test_noisy_layer_by_hand(factored):
    """y = x W + b + noise; a weight's noise is f(e_in) f(e_out) times its scale."""
    layer, x = layers.NoisyDense(3), jnp.array([[1.0, -2.0], [0.5, 4.0]])
    params = layer.init(jax.random.key(0), x)
    means, scales = params["params"]["mean"], params["params"]["scale"]
    bound = 1 / np.sqrt(2)
    assert (jnp.abs(means["kernel"]) < bound).all() and (means["kernel"] < 0).any()
    np.testing.assert_allclose(scales["kernel"], 0.5 * bound, rtol=1e-6)
    quiet = layer.apply(params, x)
    np.testing.assert_allclose(quiet, x @ means["kernel"] + means["bias"], rtol=1e-5)
    same = jnp.stack([x[0], x[0]])

    def noise(key):
        y = layer.apply(layers.with_noise(params, key, factored), same)
        return y - layer.apply(params, same)

    draws = jax.vmap(noise)(jax.random.split(jax.random.key(1), 20_000))
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
    net = networks.QNetwork(1, 3, (5,), dueling=True, noisy=True)
    obs, key = jax.random.normal(jax.random.key(1), (4, 2)), jax.random.key(2)
    params = net.init(jax.random.key(0), obs)
    noisy = layers.with_noise(params, key, factored)
    draws = np.array(jax.random.normal(key, (2 + 5 + 5 + 3 + 5 + 1,)))
    factors = np.sign(draws) * np.sqrt(np.abs(draws))
    x = jnp.maximum(by_hand(params, ("MLP_0", "NoisyDense_0"), obs, factors[:7]), 0)
    advantage = by_hand(params, ("advantage",), x, factors[7:15])
    value = by_hand(params, ("value",), x, factors[15:])
    want = value + advantage - advantage.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(net.apply(noisy, obs), want, rtol=1e-4, atol=1e-5)
    grads = jax.grad(
        lambda p: (net.apply(layers.with_noise(p, key, factored), obs) ** 2).sum()
    )(params)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads))


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
    net = networks.QNetwork(1, 3, (5,), noisy=True)
    obs, key = jax.random.normal(jax.random.key(1), (4, 2)), jax.random.key(2)
    params = net.init(jax.random.key(0), obs)

    def loss(factored, params, obs):
        noisy = layers.with_noise(params, key, factored)
        return (net.apply(noisy, obs) ** 2).sum()

    factored, merged = (
        autodiff.per_transition_grad_norms(
            functools.partial(loss, f), params, obs, method=method
        )
        for f, method in ((True, "factored"), (False, "vmap"))
    )
    np.testing.assert_allclose(factored, merged, rtol=1e-4)


def test_parameters_without_noisy_layers_stay_as_they_are():
    params = networks.QNetwork(1, 3, (5,)).init(jax.random.key(0), jnp.ones((1, 2)))
    assert layers.with_noise(params, jax.random.key(0)) is params
