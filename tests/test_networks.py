"""Orthogonal weights without LAPACK; networks for observations of every kind."""

import functools
import math

import chex
import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import autodiff, networks
from rljax.types import Box, Discrete


@pytest.mark.parametrize(
    "shape", [(1, 1), (6, 6), (9, 4), (4, 9), (64, 64), (3, 3, 2, 5), (3, 3, 1, 16)]
)
def test_orthogonal_columns_or_rows(shape):
    w = np.array(jax.jit(lambda k: networks.orthogonal()(k, shape))(jax.random.key(0)))
    assert (w.shape, w.dtype) == (shape, np.float32)
    w = w.reshape(-1, shape[-1])
    gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
    np.testing.assert_allclose(gram, np.eye(min(w.shape)), atol=2e-6)


def test_orthogonal_scale_and_dtype():
    one, three = (networks.orthogonal(s)(jax.random.key(0), (4, 3)) for s in (1.0, 3.0))
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)
    half = networks.orthogonal()(jax.random.key(0), (4, 3), jnp.bfloat16)
    assert half.dtype == jnp.bfloat16


def kolmogorov_smirnov(x, y):
    """Greatest difference of two empirical distribution functions, normalised."""
    both = np.concatenate([x, y])
    fx, fy = (np.searchsorted(np.sort(z), both, "right") / len(z) for z in (x, y))
    return np.abs(fx - fy).max() * math.sqrt(len(x) * len(y) / (len(x) + len(y)))


@pytest.mark.parametrize("shape", [(4, 4), (5, 2), (2, 5)])
def test_orthogonal_is_distributed_as_jax_has_it(shape):
    keys = jax.random.split(jax.random.key(0), (2, 4000))
    ours = jax.jit(jax.vmap(lambda k: networks.orthogonal()(k, shape)))(keys[0])
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


def test_initialisation_under_vmap_calls_no_lapack():
    net = networks.QNetwork(1, 3, (8, 5))
    keys = jax.random.split(jax.random.key(0), 64)

    def compiled(init):
        return jax.jit(jax.vmap(init)).lower(keys).compile()

    reference = jax.nn.initializers.orthogonal()
    assert "custom-call" in compiled(lambda key: reference(key, (3, 3))).as_text()
    ours = compiled(lambda key: net.init(key, jnp.zeros((1, 4))))
    assert "custom-call" not in ours.as_text()
    w = ours(keys)["params"]["MLP_0"]["Dense_1"]["kernel"]
    gram = jnp.einsum("bij,bik->bjk", w, w) / 2  # of scale sqrt(2)
    np.testing.assert_allclose(gram, np.tile(np.eye(5), (64, 1, 1)), atol=2e-6)
    assert len(np.unique(w[:, 0, 0])) == 64


@pytest.mark.parametrize(
    ("obs", "ndim"),
    [
        (jnp.ones((2, 10, 10, 4), jnp.bool), 3),
        (jnp.ones((2, 4), jnp.float32), 1),
        (jnp.ones((2, 10, 5), jnp.float32), 2),
        (jnp.array([3, 4], jnp.int32), 0),
        (jnp.ones((2, 4), jnp.int32), 1),
    ],
)
def test_networks_take_observations_of_every_kind(obs, ndim):
    net = networks.Critic(ndim, (4,))

    @jax.jit
    def values(obs):
        params = net.init(jax.random.key(0), obs[:1])
        several = jnp.stack([obs, obs, obs])
        inputs = (obs, obs.astype(float), obs[0], several)
        return [net.apply(params, x) for x in inputs]

    value, of_floats, first, more = values(obs)
    assert (value.shape, value.dtype) == ((2,), jnp.float32)
    np.testing.assert_allclose(value, of_floats, rtol=1e-5)
    np.testing.assert_allclose(value[0], first, rtol=1e-5)
    np.testing.assert_allclose(more, jnp.stack([value] * 3), rtol=1e-5)


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
        outputs_and_gradients(networks.valid_convolution),
        outputs_and_gradients(reference),
        rtol=1e-4,
        atol=1e-3,
    )


def test_policy_heads():
    obs = jnp.ones((5, 3))
    net = networks.Actor(1, Discrete(4), (8,))
    policy = jax.jit(net.init_with_output)(jax.random.key(0), obs)[0]
    assert isinstance(policy, distrax.Categorical)
    assert policy.batch_shape == (5,) and policy.num_categories == 4
    np.testing.assert_allclose(policy.probs, 0.25, atol=0.02)  # nearly uniform at first

    net = networks.Actor(1, Box((2,), (-1.0, -2.0), (1.0, 6.0)), (8,))
    policy = jax.jit(net.init_with_output)(jax.random.key(0), obs)[0]
    assert policy.batch_shape == (5,) and policy.event_shape == (2,)
    np.testing.assert_allclose(policy.mean(), np.tile([0, 2], (5, 1)), atol=0.2)
    np.testing.assert_allclose(policy.stddev(), np.tile([1, 4], (5, 1)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_continuous_actions_have_the_shape_of_the_box(shape):
    size = math.prod(shape)
    net = networks.Actor(1, Box(shape, (-1.0,) * size, (1.0,) * size), (8,))
    obs = jnp.ones((5, 3))
    action = jax.eval_shape(
        lambda key: net.init_with_output(key, obs)[0].sample(seed=key),
        jax.random.key(0),
    )
    assert action.shape == (5, *shape)


def test_activations_differ():
    x = jnp.array([[-1.0, 2.0]])
    outputs = [
        jax.jit(networks.MLP((8,), name).init_with_output)(jax.random.key(0), x)[0]
        for name in networks.ACTIVATIONS
    ]
    assert len(outputs) == 5 and len(np.unique(np.stack(outputs), axis=0)) == 5


def test_dueling_adds_a_value_and_centred_advantages():
    net = networks.QNetwork(1, 3, (8,), dueling=True)
    obs = jax.random.normal(jax.random.key(1), (5, 4))
    q, params = jax.jit(net.init_with_output)(jax.random.key(0), obs)
    assert q.shape == (5, 3) and (q.std(axis=1) > 1e-3).all()
    no_advantage = jax.tree.map(lambda x: x, params)
    no_advantage["params"]["advantage"] = jax.tree.map(
        jnp.zeros_like, params["params"]["advantage"]
    )
    value = net.apply(no_advantage, obs)
    np.testing.assert_allclose(value, jnp.tile(value[:, :1], (1, 3)), rtol=1e-6)
    np.testing.assert_allclose(q.mean(axis=1), value[:, 0], rtol=1e-4, atol=1e-6)


def test_q_network_without_dueling_is_one_head():
    net = networks.QNetwork(1, 3, (8,))
    q, params = jax.eval_shape(
        net.init_with_output, jax.random.key(0), jnp.ones((2, 6, 4))
    )
    assert set(params["params"]) == {"MLP_0", "Dense_0"}
    assert q.shape == (2, 6, 3)


@pytest.mark.parametrize("shape", [(4,), (10, 10, 4)])
def test_layer_norm_comes_before_each_activation(shape):
    net = networks.QNetwork(len(shape), 3, (8, 5), layer_norm=True)
    obs = jax.random.normal(jax.random.key(1), (2, *shape))
    q, params = jax.jit(net.init_with_output)(jax.random.key(0), obs)
    params = jax.tree.map(
        lambda x: x + jax.random.normal(jax.random.key(x.size), x.shape), params
    )
    layers = params["params"]

    def normalised(x, layer):
        x = np.array(x)
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        return np.maximum(x * layer["scale"] + layer["bias"], 0.0)

    x = obs
    if len(shape) == 3:
        encoder = layers["Encoder_0"]
        kernel, bias = encoder["Conv_0"]["kernel"], encoder["Conv_0"]["bias"]
        x = networks.valid_convolution(x, kernel) + bias
        x = normalised(x, encoder["LayerNorm_0"]).reshape(2, -1)
    for i in range(2):
        dense = layers["MLP_0"][f"Dense_{i}"]
        x = x @ dense["kernel"] + dense["bias"]
        x = normalised(x, layers["MLP_0"][f"LayerNorm_{i}"])
    want = x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"]
    np.testing.assert_allclose(net.apply(params, obs), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factored", [False, True])
def test_noisy_layer_by_hand(factored):
    """y = x W + b + noise; a weight's noise is f(e_in) f(e_out) times its scale."""
    layer, x = networks.NoisyDense(3), jnp.array([[1.0, -2.0], [0.5, 4.0]])
    params = layer.init(jax.random.key(0), x)
    means, scales = params["params"]["mean"], params["params"]["scale"]
    bound = 1 / np.sqrt(2)
    assert (jnp.abs(means["kernel"]) < bound).all() and (means["kernel"] < 0).any()
    np.testing.assert_allclose(scales["kernel"], 0.5 * bound, rtol=1e-6)
    quiet = layer.apply(params, x)
    np.testing.assert_allclose(quiet, x @ means["kernel"] + means["bias"], rtol=1e-5)
    same = jnp.stack([x[0], x[0]])

    def noise(key):
        y = layer.apply(networks.with_noise(params, key, factored), same)
        return y - layer.apply(params, same)

    draws = jax.vmap(noise)(jax.random.split(jax.random.key(1), 20_000))
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])  # one draw for a batch
    np.testing.assert_allclose(draws.mean(axis=0), 0.0, atol=0.02)
    # E f(e)^2 = E |e|, E f(e) = 0 and independent factors.
    size = np.sqrt(2 / np.pi)
    squares = (x[0] ** 2).sum() * size**2 + size
    want = (0.5 * bound) ** 2 * squares
    np.testing.assert_allclose((draws[:, 0] ** 2).mean(axis=0), want, rtol=0.05)


def test_q_network_with_several_outputs_per_action():
    obs = jax.random.normal(jax.random.key(1), (5, 6, 4))

    def outputs(dueling):
        net = networks.QNetwork(1, 3, (8,), dueling=dueling, num_outputs=2)
        z, params = jax.jit(net.init_with_output)(jax.random.key(0), obs)
        assert z.shape == (5, 6, 3, 2) and z.std(axis=(0, 1)).min() > 1e-2
        return np.array(z), params["params"]

    z, params = outputs(dueling=True)
    features = jax.nn.relu(obs @ params["MLP_0"]["Dense_0"]["kernel"])
    value = features @ params["value"]["kernel"]
    np.testing.assert_allclose(z.mean(axis=2), value, rtol=1e-4, atol=1e-5)
    z, params = outputs(dueling=False)
    features = jax.nn.relu(obs @ params["MLP_0"]["Dense_0"]["kernel"])
    flat = features @ params["Dense_0"]["kernel"]  # an action's outputs side by side
    np.testing.assert_allclose(z, flat.reshape(z.shape), rtol=1e-4, atol=1e-5)


def test_recurrent_q_network_equals_an_lstm_by_hand():
    net = networks.RecurrentQNetwork(1, 3, (5,), memory_size=4)
    key, obs_key, memory_key, noise_key = jax.random.split(jax.random.key(0), 4)
    obs = jax.random.normal(obs_key, (6, 2, 3))
    memory = jax.random.normal(memory_key, (2, 8))
    keys = jax.random.split(key, 2)
    init = jax.jit(jax.vmap(lambda key: net.init(key, obs[0], memory)))
    compiled = init.lower(keys).compile()
    assert "custom-call" not in compiled.as_text()  # LAPACK
    params = jax.tree.map(lambda x: x[0], compiled(keys))
    kernel = params["params"]["cell"]["hf"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(4), atol=1e-5)
    noise = jax.random.split(noise_key, 30)  # biases other than 0
    params = jax.tree.map(
        lambda x: x + jax.random.normal(noise[x.size % 30], x.shape), params
    )
    starts = jnp.array([0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]).reshape(6, 2) == 1
    q, memories = jax.jit(functools.partial(net.apply, method="unroll"))(
        params, obs, starts, memory
    )
    layers = jax.tree.map(lambda x: np.array(x, float), params["params"])

    def linear(layer, x):
        return x @ layer["kernel"] + layer.get("bias", 0.0)

    cell, output = np.split(np.array(memory), 2, axis=-1)
    for t in range(6):
        going_on = 1 - np.array(starts[t])[:, None]
        cell, output = cell * going_on, output * going_on
        x = np.maximum(linear(layers["mlp"]["Dense_0"], np.array(obs[t])), 0)
        i, f, g, o = (
            linear(layers["cell"]["i" + gate], x)
            + linear(layers["cell"]["h" + gate], output)
            for gate in "ifgo"
        )
        cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        output = np.tanh(cell) / (1 + np.exp(-o))
        advantage = linear(layers["advantage"], output)
        want = linear(layers["value"], output) + advantage
        want -= advantage.mean(axis=-1, keepdims=True)
        np.testing.assert_allclose(q[t], want, rtol=1e-4, atol=1e-4)
        both = np.concatenate([cell, output], axis=-1)
        np.testing.assert_allclose(memories[t], both, rtol=1e-4, atol=1e-4)
    one_step = net.apply(params, obs[1], memories[0])  # no episode starts there
    np.testing.assert_allclose(one_step[0][1], q[1, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factored", [False, True])
def test_noise_of_a_network(factored):
    """Each layer's noise by hand, the same for all inputs and ways to apply it."""
    net = networks.QNetwork(1, 3, (5,), dueling=True, noisy=True)
    obs, key = jax.random.normal(jax.random.key(1), (4, 2)), jax.random.key(2)
    params = net.init(jax.random.key(0), obs)
    noisy = networks.with_noise(params, key, factored)
    draws = np.array(jax.random.normal(key, (2 + 5 + 5 + 3 + 5 + 1,)))
    factors = np.sign(draws) * np.sqrt(np.abs(draws))
    x = jnp.maximum(by_hand(params, ("MLP_0", "NoisyDense_0"), obs, factors[:7]), 0)
    advantage = by_hand(params, ("advantage",), x, factors[7:15])
    value = by_hand(params, ("value",), x, factors[15:])
    want = value + advantage - advantage.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(net.apply(noisy, obs), want, rtol=1e-4, atol=1e-5)
    grads = jax.grad(
        lambda p: (net.apply(networks.with_noise(p, key, factored), obs) ** 2).sum()
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
        noisy = networks.with_noise(params, key, factored)
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
    assert networks.with_noise(params, jax.random.key(0)) is params
