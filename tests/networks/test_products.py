"""Products with weights, beside those of jax."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from rljax import networks
from rljax.networks import layers, products

from .. import compiled

OUTPUTS = 4


hidden_product = functools.partial(products.product, hidden=True)


def loss(multiply, weights, x):
    return jnp.sum(jnp.sin(multiply(x, weights)))


def mean_loss(multiply, weights, x):
    """As losses of agents are: one row at a time, under `vmap`."""
    return jax.vmap(functools.partial(loss, multiply, weights))(x).mean()


@pytest.mark.parametrize("outputs", [1, OUTPUTS])
@pytest.mark.parametrize("multiply", [products.product, hidden_product])
@pytest.mark.parametrize("rows", [(), (5,), (2, 5), (0,)])
def test_derivatives_of_every_order_and_mode(rows, multiply, outputs):
    x, weights = compiled.normal(0, *rows, 3), compiled.normal(1, 3, outputs)
    np.testing.assert_allclose(multiply(x, weights), x @ weights, rtol=1e-5, atol=1e-6)
    if math.prod(rows):
        check_grads(multiply, (x, weights), order=2, atol=1e-2, rtol=1e-2)
    for derivative in (jax.grad, jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        ours, theirs = (
            jax.jit(derivative(functools.partial(loss, f)))(weights, x)
            for f in (multiply, jnp.matmul)
        )
        chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [6, 600])  # with and without a copy
def test_weights_gradient_of_a_mean_over_rows(rows):
    x, weights = compiled.normal(0, rows, 90), compiled.normal(1, 90, 90)
    assert (rows * weights.size <= products._FEW) == (rows == 6)
    ours, theirs = (
        jax.jit(jax.grad(functools.partial(mean_loss, f)))(weights, x)
        for f in (products.product, jnp.matmul)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# Of the inputs and of the weights.
@pytest.mark.parametrize("axes", [(0, None), (1, None), (None, 0), (None, 2), (1, 2)])
def test_vmap(axes):
    x = compiled.normal(0, *{0: (2, 5, 3), 1: (5, 2, 3), None: (5, 3)}[axes[0]])
    weights = compiled.normal(1, *{0: (2, 3, 4), 2: (3, 4, 2), None: (3, 4)}[axes[1]])

    def gradients(f):
        both = jax.grad(functools.partial(loss, f), argnums=(0, 1))
        return jax.jit(jax.vmap(both, in_axes=axes[::-1]))(weights, x)

    ours, theirs = (gradients(f) for f in (products.product, jnp.matmul))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-5, atol=1e-6)


def mesh(kind):
    return jax.make_mesh((1,), ("d",), axis_types=(kind,), devices=jax.devices()[:1])


def test_under_shard_map_the_gradient_is_summed_over_devices():
    x, weights = compiled.normal(0, 6, 3), compiled.normal(1, 3, OUTPUTS)
    gradient = jax.shard_map(
        jax.grad(functools.partial(loss, products.product)),
        mesh=mesh(AxisType.Auto),
        in_specs=(PartitionSpec(), PartitionSpec("d")),
        out_specs=PartitionSpec(),  # refused, if devices were to differ in it
    )
    want = jax.grad(functools.partial(loss, jnp.matmul))(weights, x)
    np.testing.assert_allclose(jax.jit(gradient)(weights, x), want, rtol=1e-5)


def test_arrays_whose_type_says_how_they_are_split():
    x, weights = compiled.normal(0, 6, 3), compiled.normal(1, 3, OUTPUTS)
    explicit = mesh(AxisType.Explicit)
    with jax.set_mesh(explicit):
        rows = jax.device_put(x, NamedSharding(explicit, PartitionSpec("d")))
        gradient = jax.jit(jax.grad(functools.partial(loss, products.product)))
        got = gradient(weights, rows)
    want = jax.grad(functools.partial(loss, jnp.matmul))(weights, x)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_precision_is_the_callers():
    x, weights = jnp.ones((2, 9)), jnp.ones((9, 9))
    with jax.default_matmul_precision("float32"):
        traced = jax.jit(products.product).trace(x, weights)
    assert "HIGHEST" in traced.lower().as_text()
    given = jax.jit(functools.partial(products.product, precision="highest"))
    gradient = jax.jit(jax.grad(functools.partial(loss, given), argnums=(0, 1)))
    text = gradient.lower(weights, x).as_text()
    assert text.count("HIGHEST, HIGHEST") == 3  # forwards, and both gradients


@pytest.mark.parametrize(("platform", "copied"), [("cpu", 1), ("cuda", 0), ("tpu", 0)])
@pytest.mark.parametrize("noisy", [False, True])
def test_on_cpu_layers_copy_their_inputs_for_the_weights_gradient(
    noisy, platform, copied
):
    layer = layers.NoisyDense(OUTPUTS) if noisy else layers.dense(OUTPUTS, 1.0)
    x = jnp.ones((6, 3))
    params = layer.init(jax.random.key(0), x)
    if noisy:
        params = layers.with_noise(params, jax.random.key(1), factored=True)

    def mean(params, x):
        return jax.vmap(lambda x: layer.apply(params, x).sum())(x).mean()

    traced = jax.jit(jax.grad(mean)).trace(params, x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products_of_layer = 2 if noisy else 1
    assert text.count("optimization_barrier") == copied * products_of_layer


@pytest.mark.parametrize(
    ("inputs", "hidden", "dtype", "platform", "summed"),
    [
        (1, True, "float32", "cpu", True),
        (8, True, "float32", "cpu", True),
        (9, True, "float32", "cpu", False),
        (0, True, "float32", "cpu", False),
        (8, False, "float32", "cpu", False),
        (8, True, "bfloat16", "cpu", False),  # each term would be rounded
        (8, True, "float32", "cuda", False),
        (8, True, "float32", "tpu", False),
    ],
)
def test_few_inputs_are_summed_in_hidden_layers_on_cpu(
    inputs, hidden, dtype, platform, summed
):
    x, weights = jnp.ones((6, inputs), dtype), jnp.ones((inputs, OUTPUTS), dtype)
    multiply = functools.partial(products.product, hidden=hidden)
    text = jax.jit(jax.vmap(multiply, in_axes=(0, None))).trace(x, weights)
    text = text.lower(lowering_platforms=(platform,)).as_text()
    assert ("dot_general" in text) == (not summed)


def test_hidden_layers_of_networks_are_summed_and_outputs_are_not():
    """Where the greatest output is asked for, all who ask must see the same."""
    network = networks.QNetwork(compiled.body(1, (8,)), 3)
    obs = jnp.ones((6, 4))
    params = network.init(jax.random.key(0), obs)
    text = jax.jit(network.apply).lower(params, obs).as_text()
    assert text.count("dot_general") == 1


@pytest.mark.parametrize(("rows", "outputs"), [(64, 1), (2**18, OUTPUTS)])
def test_no_copy_where_it_would_cost_more(rows, outputs):
    x = jax.ShapeDtypeStruct((rows, 5), jnp.float32)
    weights = jax.ShapeDtypeStruct((5, outputs), jnp.float32)
    gradient = jax.jit(jax.grad(functools.partial(loss, products.product)))
    text = gradient.trace(weights, x).lower(lowering_platforms=("cpu",)).as_text()
    assert "optimization_barrier" not in text
