"""Networks for observations and actions of every kind."""

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import networks
from rljax.types import Box, Discrete

from .. import compiled


def test_initialisation_under_vmap_calls_no_lapack():
    net = networks.QNetwork(compiled.body(1, (8, 5)), 3)
    keys = jax.random.split(jax.random.key(0), 64)

    def program(init):
        return jax.jit(jax.vmap(init)).lower(keys).compile()

    reference = jax.nn.initializers.orthogonal()
    assert "custom-call" in program(lambda key: reference(key, (3, 3))).as_text()
    ours = program(lambda key: net.init(key, jnp.zeros((1, 4))))
    assert "custom-call" not in ours.as_text()
    w = ours(keys)["params"]["MLP_0"]["Dense_1"]["kernel"]
    w = np.array(w)
    gram = np.einsum("bij,bik->bjk", w, w) / 2  # of scale sqrt(2)
    np.testing.assert_allclose(gram, np.tile(np.eye(5), (64, 1, 1)), atol=2e-6)
    assert len(np.unique(w[:, 0, 0])) == 64


@pytest.mark.parametrize(
    ("obs", "ndim"),
    [
        (np.ones((2, 10, 10, 4), bool), 3),
        (np.ones((2, 4), np.float32), 1),
        (np.ones((2, 10, 5), np.float32), 2),
        (np.array([3, 4], np.int32), 0),
        (np.ones((2, 4), np.int32), 1),
    ],
)
def test_networks_take_observations_of_every_kind(obs, ndim):
    net = networks.Critic(compiled.body(ndim, (4,), "tanh"))

    @jax.jit
    def values(obs):
        params = net.init(jax.random.key(0), obs[:1])
        several = jnp.stack([obs, obs, obs])
        inputs = (obs, obs.astype(float), obs[0], several)
        return [net.apply(params, x) for x in inputs]

    value, of_floats, first, more = (np.array(x) for x in values(obs))
    assert (value.shape, value.dtype) == ((2,), jnp.float32)
    np.testing.assert_allclose(value, of_floats, rtol=1e-5)
    np.testing.assert_allclose(value[0], first, rtol=1e-5)
    np.testing.assert_allclose(more, np.stack([value] * 3), rtol=1e-5)


@pytest.mark.parametrize("torso", ["minatar", "mlp"])
def test_images_go_through_a_convolution_or_flat(torso):
    convolution, body = torso == "minatar", compiled.body(3, (4,), torso=torso)
    for net in (networks.Critic(body), networks.Actor(body, Discrete(2))):
        obs = jnp.zeros((1, 10, 10, 4), bool)
        params = jax.eval_shape(net.init, jax.random.key(0), obs)
        shapes = {x.shape for x in jax.tree.leaves(params)}
        assert ((3, 3, 4, 16) in shapes) == convolution
        assert (8 * 8 * 16 if convolution else 400, 4) in shapes


def test_policy_heads():
    obs = np.ones((5, 3), np.float32)
    net = networks.Actor(compiled.body(1, (8,), "tanh"), Discrete(4))
    policy = jax.jit(net.init_with_output)(jax.random.key(0), obs)[0]
    assert isinstance(policy, distrax.Categorical)
    assert policy.batch_shape == (5,) and policy.num_categories == 4
    np.testing.assert_allclose(policy.probs, 0.25, atol=0.02)  # nearly uniform at first

    net = networks.Actor(
        compiled.body(1, (8,), "tanh"), Box((2,), (-1.0, -2.0), (1.0, 6.0))
    )
    policy = jax.jit(net.init_with_output)(jax.random.key(0), obs)[0]
    assert policy.batch_shape == (5,) and policy.event_shape == (2,)
    np.testing.assert_allclose(policy.mean(), np.tile([0, 2], (5, 1)), atol=0.2)
    np.testing.assert_allclose(policy.stddev(), np.tile([1, 4], (5, 1)), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_continuous_actions_have_the_shape_of_the_box(shape):
    size = math.prod(shape)
    net = networks.Actor(
        compiled.body(1, (8,), "tanh"), Box(shape, (-1.0,) * size, (1.0,) * size)
    )
    obs = jnp.ones((5, 3))
    action = jax.eval_shape(
        lambda key: net.init_with_output(key, obs)[0].sample(seed=key),
        jax.random.key(0),
    )
    assert action.shape == (5, *shape)


def test_dueling_adds_a_value_and_centred_advantages():
    net = networks.QNetwork(compiled.body(1, (8,)), 3, dueling=True)
    obs = compiled.normal(1, 5, 4)
    params = compiled.init(net, jax.random.key(0), obs)
    q = np.array(compiled.apply(net, params, obs))
    assert q.shape == (5, 3) and (q.std(axis=1) > 1e-3).all()
    no_advantage = jax.tree.map(lambda x: x, params)
    no_advantage["params"]["advantage"] = jax.tree.map(
        np.zeros_like, params["params"]["advantage"]
    )
    value = np.array(compiled.apply(net, no_advantage, obs))
    np.testing.assert_allclose(value, np.tile(value[:, :1], (1, 3)), rtol=1e-6)
    np.testing.assert_allclose(q.mean(axis=1), value[:, 0], rtol=1e-4, atol=1e-6)


WIDE = Box((2,), (-1.0, -2.0), (1.0, 6.0))  # middle (0, 2), half widths (1, 4)


def test_continuous_values_by_hand():
    """Actions come in as shares of the half widths, beside the observation."""
    net = networks.ContinuousQ(compiled.body(1, (8,)), WIDE)
    obs, action = compiled.normal(1, 5, 3), 3 * compiled.normal(2, 5, 2)
    params = jax.tree.map(np.array, compiled.init(net, jax.random.key(0), obs, action))
    layers = params["params"]
    x = np.concatenate([obs, (action - [0, 2]) / [1, 4]], axis=-1)
    for name in ("MLP_0", None):
        layer = (layers[name] if name else layers)["Dense_0"]
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0) if name else x
    got = compiled.apply(net, params, obs, action)
    np.testing.assert_allclose(got, x[:, 0], rtol=1e-4, atol=1e-5)


def test_squashed_policies_bound_their_standard_deviation():
    net, obs = (
        networks.TanhGaussianActor(compiled.body(1, (8,)), WIDE),
        compiled.normal(1, 50, 3),
    )
    params = compiled.scaled(compiled.init(net, jax.random.key(0), obs), 1000)

    @jax.jit
    def stddev(params):
        return net.apply(params, obs).distribution.scale_diag

    found = np.array(stddev(params))
    np.testing.assert_allclose(found.min(), np.exp(-10.0), rtol=1e-4)
    np.testing.assert_allclose(found.max(), np.exp(2.0), rtol=1e-4)


def test_q_network_without_dueling_is_one_head():
    net = networks.QNetwork(compiled.body(1, (8,)), 3)
    q, params = jax.eval_shape(
        net.init_with_output, jax.random.key(0), jnp.ones((2, 6, 4))
    )
    assert set(params["params"]) == {"MLP_0", "Dense_0"}
    assert q.shape == (2, 6, 3)


def test_q_network_with_several_outputs_per_action():
    obs = compiled.normal(1, 5, 6, 4)

    def outputs(dueling):
        net = networks.QNetwork(
            compiled.body(1, (8,)), 3, dueling=dueling, num_outputs=2
        )
        found = jax.jit(net.init_with_output)(jax.random.key(0), obs)
        z, params = jax.tree.map(np.array, found)
        assert z.shape == (5, 6, 3, 2) and z.std(axis=(0, 1)).min() > 1e-2
        return z, params["params"]

    z, params = outputs(dueling=True)
    features = np.maximum(obs @ params["MLP_0"]["Dense_0"]["kernel"], 0)
    value = features @ params["value"]["kernel"]
    np.testing.assert_allclose(z.mean(axis=2), value, rtol=1e-4, atol=1e-5)
    z, params = outputs(dueling=False)
    features = np.maximum(obs @ params["MLP_0"]["Dense_0"]["kernel"], 0)
    flat = features @ params["Dense_0"]["kernel"]  # an action's outputs side by side
    np.testing.assert_allclose(z, flat.reshape(z.shape), rtol=1e-4, atol=1e-5)
