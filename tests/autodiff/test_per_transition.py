"""Per-transition gradients against vmap(grad), closed forms and bad input."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from rljax import losses, networks
from rljax.autodiff import _factored
from rljax.autodiff.per_transition import (
    clipped_mean_grad,
    gradient_statistics,
    pairwise_cosine,
    per_transition_grad_norms,
    per_transition_grads,
    value_and_grad_with_norms,
)
from rljax.networks import layers
from rljax.types import Discrete

from .. import compiled

B = 5


def normal(seed, *shape):
    """Input in numpy, so that what is made of it compiles nothing."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(shapes, seed=3):
    """Parameters without zero biases and equal scales, which would hide errors."""
    leaves, treedef = jax.tree.flatten(shapes)
    leaves = [
        np.float32(0.5) * normal(seed + i, *x.shape) for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, leaves)


def initial(module, x, seed=3):
    return drawn(jax.eval_shape(module.init, jax.random.key(0), x), seed)


def of_module(module, x, **kwargs):
    """A loss of all outputs of a module, its parameters and a batch."""
    params = initial(module, x[0])

    def loss_fn(params, x):
        y = module.apply(params, x, **kwargs)
        return jnp.sum(jnp.sin(y + 0.1 * jnp.arange(y.size).reshape(y.shape)))

    return loss_fn, params, x


def images(*shape):
    return (normal(1, B, *shape) > 0).astype(np.float32)


def mlp():
    net = networks.Critic(compiled.body(1, (8, 7), "tanh"))
    return of_module(net, normal(1, B, 6))


def minatar():
    net = networks.QNetwork(compiled.body(3, (8,)), 3)
    return of_module(net, images(10, 10, 4))


def minatar_normed():
    net = networks.QNetwork(compiled.body(3, (8,), layer_norm=True), 3)
    return of_module(net, images(10, 10, 4))


def dueling():
    net = networks.QNetwork(compiled.body(1, (8,)), 3, dueling=True)
    return of_module(net, normal(1, B, 6))


class Twice(nn.Module):
    """A small matrix (direct form) or a large one (Gram form), applied twice."""

    size: int

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(self.size)
        return layer(nn.tanh(layer(x)))


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
        for layer in (nn.LayerNorm(), nn.RMSNorm(), nn.GroupNorm(num_groups=2)):
            x = nn.silu(nn.Dense(8)(layer(x)))
        return x


class Embedding(nn.Module):
    """Words occur more than once; tied: the table is also the last layer."""

    count: int = 7
    tied: bool = False

    @nn.compact
    def __call__(self, words):
        table = nn.Embed(self.count, 3)
        x = nn.tanh(table(words))
        return table.attend(x) if self.tied else x


class Unrolled(nn.Module):
    """A cell for 4 steps, the first layer of an ensemble of vmapped ones."""

    @nn.compact
    def __call__(self, x):
        cell, h = nn.GRUCell(5), jnp.ones(5)
        for x_t in x:
            h, _ = cell(h, x_t)
        members = nn.vmap(
            nn.Dense,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=3,
        )
        return members(4)(h)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4)(x, x)
        x = nn.DenseGeneral((2, 3), axis=(-2, -1))(x)
        return nn.DenseGeneral(4, batch_dims=(0,))(x)


def embedding_batch():
    return np.array([[0, 1, 1, 6], [2, 2, 2, 2], [3, 4, 5, 3], [0, 0, 1, 1], [6] * 4])


def out_of_range(mode):
    """Look-ups before and after a table of 40 rows, some of them in the same row."""

    def loss_fn(table, rows):
        x = table.at[rows].get(mode=mode, fill_value=0.5)
        return jnp.sum(jnp.sin(x + 0.1 * jnp.arange(x.size).reshape(x.shape)))

    rows = [[-50, 0, 45, 100], [39, 40, 41, 1], [3, 3, 40, 40], [0] * 4, [7, 99, 99, 7]]
    return loss_fn, normal(0, 40, 3), np.array(rows)


def conv(channels, **kwargs):
    return lambda: of_module(nn.Conv(**kwargs), normal(1, B, *channels))


def actor_critic():
    """Two networks in one tree, a log_std-like parameter and a vmapped time axis."""
    actor = networks.Actor(compiled.body(1, (8,), "tanh"), Discrete(3))
    critic = networks.Critic(compiled.body(1, (8,), "tanh"))
    obs = normal(1, B, 4, 6)
    params = {
        "actor": initial(actor, obs[0]),
        "critic": initial(critic, obs[0], 20),
        "temperature": np.float32(0.7),
    }

    def loss_fn(params, transition):
        obs, action = transition
        policy = actor.apply(params["actor"], obs)
        v = jax.vmap(lambda x: critic.apply(params["critic"], x))(obs)
        policy_loss = -policy.log_prob(action) * jax.lax.stop_gradient(1.0 - v)
        return jnp.mean(policy_loss + params["temperature"] * jnp.square(1.0 - v))

    return loss_fn, params, (obs, np.arange(B * 4).reshape(B, 4) % 3)


def dqn(stop="bootstrap"):
    """Current and next states through one network; a target network in the tree."""
    net = networks.QNetwork(compiled.body(1, (8,)), 3)
    obs = normal(1, B, 2, 6)
    online = initial(net, obs[0, 0])
    params = {"online": online, "target": drawn(online, 9)}

    def loss_fn(params, obs):
        q_tm1, q_t = net.apply(params["online"], obs)
        target = net.apply(jax.lax.stop_gradient(params["target"]), obs[1])
        q_t = target if stop == "bootstrap" else q_t
        return jnp.square(losses.q_learning(q_tm1, 1, 1.0, 0.9, q_t, stop=stop))

    return loss_fn, params, obs


def double_dqn():
    """The online network also chooses the next action; a threshold only compares."""
    net = networks.QNetwork(compiled.body(1, (8,)), 3)
    obs = normal(1, B, 2, 6)
    params = {"online": initial(net, obs[0, 0]), "threshold": np.float32(0.3)}
    target_params = drawn(params["online"], 9)

    def loss_fn(params, obs):
        apply = jax.jit(net.apply)
        q_tm1, selector = (apply(params["online"], x) for x in obs)
        q_t = net.apply(target_params, obs[1])
        reward = jnp.where(obs[0, 0] > params["threshold"], 1.0, 2.0)
        error = losses.double_q_learning(q_tm1, 1, reward, 0.9, q_t, selector)
        return jnp.square(error)

    return loss_fn, params, obs


def positions():
    """Gram form: few positions and a large weight; also by transposed tying."""

    def loss_fn(params, x):
        return jnp.sum(jnp.sin(jnp.einsum("ti,oi->ot", x, params["w"]) - params["b"]))

    params = {"w": normal(0, 16, 12), "b": normal(1, 1, 3)}
    return loss_fn, params, normal(2, B, 3, 12)


def transposed():
    def loss_fn(w, x):
        return jnp.sum(jnp.sin(jnp.tanh(x @ w) @ w.T))

    return loss_fn, normal(0, 4, 6), normal(1, B, 4)


def either_side():
    """A square weight contracted on one side and the other; one that is broadcast."""

    def loss_fn(params, x):
        y = jnp.sin(x @ params["w"]) * jnp.cos(params["w"] @ x)
        copies = jnp.broadcast_to(params["v"], (2, 6, 6))
        return jnp.sum(y) + jnp.sum(jnp.sin(jnp.einsum("i,tij->tj", x, copies)))

    return loss_fn, {"w": normal(0, 6, 6), "v": normal(1, 6, 6)}, normal(2, B, 6)


def doubled():
    """Casts, scalars, negative biases, columns of a table, a constant in between."""

    def loss_fn(params, x):
        y = x @ (0.5 * params["w"]) - params["b"]
        y = y * params["s"].astype(y.dtype) + params["w"][:3].sum() * 0.0
        return jnp.sum(y**2 * params["table"][:, jnp.array([0, 2, 0])].sum(0))

    params = {"w": normal(0, 4, 3), "b": normal(1, 3), "s": np.float32(0.7)}
    return loss_fn, params | {"table": normal(2, 2, 3)}, normal(3, B, 4)


GRAM_CONV = dict(features=64, kernel_size=(3, 3), strides=2)
COVERED = {
    "mlp": mlp,
    "minatar": minatar,
    "minatar_normed": minatar_normed,
    "dueling": dueling,
    "twice": lambda: of_module(Twice(2), normal(1, B, 2)),
    "twice_gram": lambda: of_module(Twice(8), normal(1, B, 8)),
    "norms": lambda: of_module(Norms(), normal(1, B, 3, 8)),
    "embed": lambda: of_module(Embedding(), embedding_batch()),
    "embed_gram": lambda: of_module(Embedding(40), embedding_batch()),
    "embed_out_of_range": lambda: of_module(
        Embedding(13), np.minimum(embedding_batch(), 5) - 2
    ),
    "look_up_clipped": lambda: out_of_range("clip"),
    "look_up_filled": lambda: out_of_range("fill"),
    "tied": lambda: of_module(Embedding(tied=True), embedding_batch()),
    "transposed": transposed,
    "either_side": either_side,
    "unrolled": lambda: of_module(Unrolled(), normal(1, B, 4, 3)),
    "attention": lambda: of_module(Attention(), normal(1, B, 3, 4)),
    "conv": conv((6, 5, 3), features=4, kernel_size=(3, 2), padding="VALID"),
    "conv_gram": conv((5, 5, 8), **GRAM_CONV),
    "conv_strided": conv(
        (7, 6, 4), features=6, kernel_size=(3, 3), strides=(2, 1), kernel_dilation=2,
        padding=((1, 2), (0, 3)), feature_group_count=2,
    ),
    "conv_1d": conv((9, 2), features=3, kernel_size=(4,), padding="CIRCULAR"),
    "conv_transposed": lambda: of_module(
        nn.ConvTranspose(3, (3, 3), strides=(2, 2)), normal(1, B, 4, 4, 2)
    ),
    "positions": positions,
    "actor_critic": actor_critic,
    "dqn": dqn,
    "double_dqn": double_dqn,
    "residual": lambda: dqn("none"),
}  # fmt: skip


def with_decay():
    loss_fn, params, batch = mlp()

    def decayed(params, x):
        kernel = params["params"]["MLP_0"]["Dense_0"]["kernel"]
        return loss_fn(params, x) + 0.1 * jnp.sum(kernel * kernel)

    return decayed, params, batch


def scanned():
    cell = nn.RNN(nn.GRUCell(5))
    return of_module(cell, normal(1, B, 8, 3))


def rematerialised():
    return of_module(nn.remat(Twice)(8), normal(1, B, 8))


def frozen_statistics():
    net = nn.BatchNorm(use_running_average=True)
    statistics = {"mean": np.float32([0, 1, 2]), "var": np.float32([1, 2, 3])}

    def loss_fn(params, x):
        variables = {"params": params, "batch_stats": statistics}
        return jnp.sum(net.apply(variables, x) ** 2)

    params = {"scale": normal(0, 3), "bias": normal(1, 3)}
    return loss_fn, params, normal(2, B, 3)


FALLBACK = {
    "decay": with_decay,
    "scan": scanned,
    "remat": rematerialised,
    "odd_uses": doubled,
}


def oracle(loss_fn, params, batch):
    @jax.jit
    def run(params, batch):
        grads = jax.vmap(jax.grad(loss_fn), (None, 0))(params, batch)
        return grads, jax.vmap(optax.tree.norm)(grads)

    return run(params, batch)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("method", "chunk_size"))
def factored_norms(loss_fn, params, batch, method="factored", chunk_size=None):
    return per_transition_grad_norms(
        loss_fn, params, batch, method=method, chunk_size=chunk_size
    )


def weighted_mean(grads, weights):
    return jax.tree.map(
        lambda g: jnp.tensordot(jnp.asarray(weights, g.dtype), g, 1) / len(g), grads
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "minatar" else name
        for name in COVERED | FALLBACK
    ],
)
def test_all_forms_equal_vmap_of_grad(name):
    """The slow one has no more than minatar_normed and what is clipped below."""
    loss_fn, params, batch = (COVERED | FALLBACK)[name]()
    weights = np.linspace(0.5, 2.0, B, dtype=np.float32)
    method = "factored" if name in COVERED else "auto"

    @jax.jit
    def both(params, batch):
        only_norms = per_transition_grad_norms(loss_fn, params, batch, method=method)
        ours = value_and_grad_with_norms(loss_fn, params, batch, weights)
        each = jax.vmap(jax.value_and_grad(loss_fn), (None, 0))
        values, grads = each(params, batch)
        norms = jax.vmap(optax.tree.norm)(grads)
        return only_norms, ours, (values, weighted_mean(grads, weights), norms)

    only_norms, ours, expected = both(params, batch)
    norms = expected[2]
    assert np.min(norms) > 0
    np.testing.assert_allclose(only_norms, norms, rtol=1e-5)
    np.testing.assert_allclose(ours[2], norms, rtol=1e-5)
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5, atol=1e-6)
    for g, mean in zip(*map(jax.tree.leaves, (ours[1], expected[1])), strict=True):
        np.testing.assert_allclose(g, mean, rtol=1e-4, atol=1e-5)


def test_squares_of_float16_gradients_do_not_overflow():
    """300 squared is beyond float16."""

    @jax.jit
    def norms(w, x):
        return per_transition_grad_norms(jnp.dot, w, x, method="factored")

    x = np.float16([[300.0, 400.0], [3.0, 4.0]])
    np.testing.assert_allclose(
        norms(np.ones(2, np.float16), x), [500.0, 5.0], rtol=1e-3
    )


class Layer(NamedTuple):
    """A drawn layer; what its kind has no use for is ignored."""

    kind: str
    size: int
    bias: bool
    times: int
    kernel: int
    stride: int
    padding: str | int


class Random(nn.Module):
    """Drawn layers on `[*positions, features]`, each applied `times` times."""

    layers: tuple[Layer, ...]
    activation: str
    head: str
    vocabulary: int

    def make(self, layer, shape):
        *positions, features = shape
        size = layer.size if layer.times == 1 else features
        if layer.kind == "layer_norm":
            return nn.LayerNorm(use_bias=layer.bias, use_scale=layer.size > 1)
        if layer.kind == "rms_norm":
            return nn.RMSNorm()
        if layer.kind == "group_norm":
            return nn.GroupNorm(2 - features % 2, use_bias=layer.bias)
        if layer.kind == "dense":
            return nn.Dense(size, use_bias=layer.bias)
        padding, kernel = layer.padding, layer.kernel
        if padding == "VALID":  # leaves at least one position
            kernel = min(kernel, *positions)
        if layer.times > 1:
            padding = "SAME"
        return nn.Conv(
            size,
            (kernel,) * len(positions),
            layer.stride,
            padding,
            feature_group_count=math.gcd(2, features, size),
            use_bias=layer.bias,
        )

    def recur(self, layer, x):
        """A cell over the positions, unrolled or by `lax.scan`."""
        cells = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "scan": nn.SimpleCell}
        cell, outputs = cells[layer.kind](layer.size), []
        if layer.kind == "scan":
            return nn.RNN(cell)(x)
        carry = cell.initialize_carry(jax.random.key(0), x[0].shape)
        for x_t in x:
            carry, y = cell(carry, x_t)
            outputs.append(y)
        return jnp.stack(outputs)

    def outputs(self, x):
        if self.head == "dueling":
            advantage = nn.Dense(3)(x)
            return nn.Dense(1)(x) + advantage - advantage.mean(-1, keepdims=True)
        if self.head == "multi_head":
            heads = nn.tanh(nn.DenseGeneral((2, 3))(x))
            return nn.DenseGeneral(4, axis=(-2, -1))(heads)
        if self.head in ("ensemble", "mapped"):  # weights of their own, or shared
            each = self.head == "ensemble"
            mapped = nn.vmap(
                nn.Dense,
                variable_axes={"params": 0 if each else None},
                split_rngs={"params": each},
            )
            return mapped(3)(jnp.stack([x, jnp.cos(x)]))
        return nn.Dense(2, use_bias=False)(x)

    @nn.compact
    def __call__(self, x):
        if self.vocabulary:
            x = nn.Embed(self.vocabulary, 4)(x)
        for layer in self.layers:
            if layer.kind in ("gru", "lstm", "scan"):
                x = self.recur(layer, x)
                continue
            module = self.make(layer, x.shape)
            for _ in range(layer.times):
                x = layers.ACTIVATIONS[self.activation](module(x))
        return self.outputs(x)


@st.composite
def architectures(draw, inputs, first, others):
    """A network whose first layer is one of the first kinds, and a batch for it."""

    def layer(kinds):
        return st.builds(
            Layer,
            kind=st.sampled_from(kinds),
            size=st.sampled_from([1, 2, 5, 8]),
            bias=st.booleans(),
            times=st.sampled_from([1, 2]),
            kernel=st.integers(1, 3),
            stride=st.integers(1, 2),
            padding=st.sampled_from(["SAME", "VALID", "CIRCULAR", 2]),
        )

    heads = ["linear", "dueling", "multi_head", "ensemble", "mapped"]
    net = Random(
        layers=(draw(layer(first)), *draw(st.lists(layer(others), max_size=3))),
        activation=draw(st.sampled_from(sorted(layers.ACTIVATIONS))),
        head=draw(st.sampled_from(heads)),
        vocabulary=draw(st.sampled_from([3, 40])) if inputs == "words" else 0,
    )
    number = draw(st.integers(0, 99))
    length, width, features = (draw(st.integers(1, 4)) for _ in range(3))
    if inputs == "words":
        rng = np.random.default_rng(number)
        return net, rng.integers(net.vocabulary, size=(B, length))
    shape = {"vector": (), "sequence": (length,), "image": (length + 1, width)}
    return net, normal(number, B, *shape[inputs], features + 1)


NORMS = ("layer_norm", "rms_norm", "group_norm")
FAMILIES = [
    ("vector", ("dense",), ("dense", "layer_norm", "rms_norm")),
    ("image", ("conv",), ("conv", *NORMS, "dense")),
    ("sequence", NORMS, ("conv", "dense", *NORMS)),
    ("sequence", ("scan", "gru", "lstm"), ("dense", "layer_norm")),
    ("words", ("gru", "conv", "dense"), ("dense", *NORMS)),
]


@pytest.mark.parametrize("number", range(len(FAMILIES)))
@pytest.mark.parametrize("examples", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_random_architectures(number, examples):
    """The slow ones are the same two architectures and four more."""

    @seed(30 + number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # to shrink means to compile hundreds of networks
    )
    @given(architectures(*FAMILIES[number]))
    def equal(architecture):
        net, x = architecture
        loss_fn, params, x = of_module(net, x)
        scanned = any(layer.kind == "scan" for layer in net.layers)
        method = "auto" if scanned else "factored"

        def both(params, x):
            norms = per_transition_grad_norms(loss_fn, params, x, method=method)
            grads = jax.vmap(jax.grad(loss_fn), (None, 0))(params, x)
            return norms, jax.vmap(optax.tree.norm)(grads)

        np.testing.assert_allclose(*jax.jit(both)(params, x), rtol=1e-5)

    equal()


def test_what_only_chooses_costs_nothing():
    loss_fn, params, obs = double_dqn()
    uses = _factored.by_platform(
        lambda traced: traced.uses, loss_fn, params=params, transition=obs[0]
    )
    assert sorted(use.leaf for use in uses) == [0, 1, 2, 3]  # of two dense layers


def test_norms_take_the_branches_of_the_platform():
    """A convolution is products of patches on CPU, for the norms of its kernel too."""
    loss_fn, params, batch = minatar()

    @jax.jit
    def both(params, batch):
        return (
            per_transition_grad_norms(loss_fn, params, batch, method="factored"),
            value_and_grad_with_norms(loss_fn, params, batch),
        )

    traced = both.trace(params, batch)
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == (platform != "cpu")


def test_factored_names_what_is_not_covered():
    with pytest.raises(ValueError, match=r"\['Dense_0'\]\['kernel'\] is used by"):
        per_transition_grad_norms(*with_decay(), method="factored")
    with pytest.raises(ValueError, match="is used by scan"):
        per_transition_grad_norms(*scanned(), method="factored")
    with pytest.raises(ValueError, match="params is used by the loss"):
        per_transition_grad_norms(
            lambda w, x: w, np.float32(1.0), np.ones(2, np.float32), method="factored"
        )


def test_a_scanned_layer_leaves_the_others_factored():
    """An LSTM by lax.scan beside a plain layer: only the cell is loose."""
    loss_fn, params, x = scanned()
    w = normal(5, 3, 2)

    def both(params, x):
        return loss_fn(params["rnn"], jnp.tanh(x @ params["w"] @ params["w"].T))

    tree = {"rnn": params, "w": w}
    _, norms = oracle(both, tree, x)
    np.testing.assert_allclose(
        factored_norms(both, tree, x, method="auto"), norms, rtol=1e-5
    )
    with pytest.raises(ValueError) as error:
        per_transition_grad_norms(both, tree, x, method="factored")
    assert "params['w']" not in str(error.value)


@pytest.mark.parametrize("method", ["auto", "vmap"])
def test_batch_normalisation(method):
    net = nn.BatchNorm(use_running_average=False)
    x = normal(0, B, 3, 2)
    params = jax.jit(net.init)(jax.random.key(0), x[0])

    def loss_fn(weights, x):
        variables = {**params, "params": weights}
        return jnp.sum(net.apply(variables, x, mutable="batch_stats")[0] ** 3)

    with pytest.raises(ValueError, match="batch statistics"):
        per_transition_grad_norms(loss_fn, params["params"], x, method=method)
    jitted = jax.jit(loss_fn)
    jax.eval_shape(jitted, params["params"], x[0])  # so that it is not traced again
    for wrapped in (jitted, lambda *args: jitted(*args), jax.jit(jitted)):
        with pytest.raises(ValueError, match="batch statistics"):
            value_and_grad_with_norms(wrapped, params["params"], x)
    case = frozen_statistics()
    np.testing.assert_allclose(
        factored_norms(*case, method=method), oracle(*case)[1], rtol=1e-5
    )


@pytest.mark.parametrize("distance", [1e-2, 1e-4])
def test_opposite_uses_of_a_weight(distance):
    """As in a residual gradient: two like inputs whose gradients all but cancel."""
    weight, x = normal(0, 4, 64), normal(1, B, 4)
    pairs = x, x + np.float32(distance) * normal(2, B, 4)

    def loss_fn(weight, pair):
        return jnp.sum((jnp.tanh(pair[0] @ weight) - jnp.tanh(pair[1] @ weight)) ** 2)

    actual = factored_norms(loss_fn, weight, pairs)
    tolerance = 1e-7 / distance  # the difference of the inputs is rounded itself
    np.testing.assert_allclose(
        actual, oracle(loss_fn, weight, pairs)[1], rtol=max(1e-5, tolerance)
    )


def test_small_integers_look_up_rows():
    net, rows = nn.Embed(256, 4), np.array([[7, 7, 200], [0, 255, 3]], np.uint8)
    args = (
        lambda p, row: jnp.sum(net.apply(p, row) ** 2),
        initial(net, rows[0]),
        rows,
    )
    np.testing.assert_allclose(factored_norms(*args), oracle(*args)[1], rtol=1e-5)


def test_complex_numbers_inside():
    def loss_fn(w, x):
        return jnp.abs(jnp.dot(x + 1j, w)) ** 2

    args = loss_fn, normal(0, 2), normal(1, B, 2)
    actual = factored_norms(*args, method="auto")
    np.testing.assert_allclose(actual, oracle(*args)[1], rtol=1e-5)


@functools.cache
def mlp_and_norms():
    case = mlp()
    return case, oracle(*case)[1]


@pytest.mark.parametrize("method", ["factored", "vmap"])
@pytest.mark.parametrize("chunk_size", [3, 8])
def test_chunks_do_not_matter(method, chunk_size):
    case, norms = mlp_and_norms()
    actual = factored_norms(*case, method=method, chunk_size=chunk_size)
    np.testing.assert_allclose(actual, norms, rtol=1e-5)


@pytest.mark.parametrize("method", ["factored", "vmap"])
def test_zero_gradients_through_two_derivatives(method):
    """Squared error of 0 in the first transition: norm |e| |x|, e = w x - y."""
    x, y = np.float32([[1.0, 2], [3, 4]]), np.float32([3.0, 5.0])

    def loss_fn(params, transition):
        x, y = transition
        return 0.5 * jnp.square(x @ params["w"] - y)

    def norms(w):
        batch = (x, y)
        return per_transition_grad_norms(loss_fn, {"w": w}, batch, method=method)

    @jax.jit
    def derivatives(w):
        return norms(w), jax.jacrev(norms)(w), jax.jacfwd(jax.jacrev(norms))(w)

    value, first, second = derivatives(np.ones(2, np.float32))
    np.testing.assert_allclose(value, [0, 10], rtol=1e-6)
    np.testing.assert_allclose(first, [[0, 0], [15, 20]], rtol=1e-6)
    np.testing.assert_allclose(second, np.zeros((2, 2, 2)), atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_derivative_of_norms_in_float64():
    case = positions()
    params, batch = jax.tree.map(lambda x: x.astype(np.float64), case[1:])

    def total(params, method):
        return per_transition_grad_norms(case[0], params, batch, method=method).sum()

    @jax.jit
    def slopes(params):
        return [jax.value_and_grad(total)(params, m) for m in ("factored", "vmap")]

    (value, grads), (_, expected) = slopes(params)
    assert value.dtype == jnp.float64
    for g, other in zip(*map(jax.tree.leaves, (grads, expected)), strict=True):
        np.testing.assert_allclose(g, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["factored", "vmap"])
def test_nan_is_not_hidden(method):
    def loss_fn(w, x):
        return jnp.sum(jnp.sin(x @ w))

    x = np.float32([[1.0, 2.0], [np.nan, 1.0]])
    norms = factored_norms(loss_fn, np.ones((2, 2), np.float32), x, method=method)
    np.testing.assert_array_equal(np.isnan(norms), [False, True])


def test_transforms():
    """Several networks by vmap; a closed-over tracer; a jitted scan."""
    loss_fn, params, x = mlp()
    many = jax.tree.map(lambda p: np.stack([p, 2 * p]), params)

    @jax.jit
    def norms(scale, params):
        def scaled(params, x):
            return jax.jit(loss_fn)(params, scale * x)

        return per_transition_grad_norms(scaled, params, x, method="factored")

    @jax.jit
    def transformed(many, params):
        step = jax.jit(lambda c, scale: (c, norms(scale, params)))
        return (
            jax.vmap(norms, (None, 0))(2.0, many),
            jax.lax.scan(step, 0, jnp.array([1.99, 2.0, 2.01]))[1],
            jax.jvp(lambda scale: norms(scale, params), (2.0,), (1.0,)),
        )

    of_many, of_scales, (once, slope) = transformed(many, params)
    twice = jax.tree.map(lambda p: p[1], many)
    np.testing.assert_allclose(of_many[1], oracle(loss_fn, twice, 2 * x)[1], rtol=1e-5)
    below, middle, above = np.asarray(of_scales)
    np.testing.assert_allclose(middle, once, rtol=1e-5)
    np.testing.assert_allclose(slope, (above - below) / 0.02, rtol=2e-2, atol=1e-2)


def test_random_keys_in_the_batch():
    def loss_fn(w, key):
        return jnp.sum(jax.random.normal(key, (3,)) @ w)

    @jax.jit
    def both(w, key):
        keys = jax.random.split(key, B)
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
        return per_transition_grad_norms(loss_fn, w, keys), noise

    actual, noise = both(normal(0, 3, 2), jax.random.key(0))
    expected = np.sqrt(2 * np.sum(np.square(noise), axis=1))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_clipping():
    loss_fn, params, x = minatar()
    grads, norms = oracle(loss_fn, params, x)
    norms = np.asarray(norms)
    bound = float(np.median(norms))
    losses_, clipped, before = jax.jit(clipped_mean_grad, static_argnums=0)(
        loss_fn, params, x, bound
    )
    np.testing.assert_allclose(before, norms, rtol=1e-5)
    assert losses_.shape == (B,)
    expected = jax.jit(weighted_mean)(grads, np.minimum(1.0, bound / norms))
    for g, other in zip(*map(jax.tree.leaves, (clipped, expected)), strict=True):
        np.testing.assert_allclose(g, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_importance_sampling_by_norms():
    """Sampling in proportion to norms: unbiased, with the smallest covariance."""
    rng = np.random.default_rng(0)
    g = rng.normal(size=(1000, 20)) * np.exp(rng.normal(size=(1000, 1)))
    w, with_norms = np.zeros(20), jax.jit(value_and_grad_with_norms, static_argnums=0)
    _, *parts = with_norms(jnp.dot, w, g, np.ones(1000))
    mean, norms = map(np.asarray, parts)
    mean_square = np.sum(mean**2)
    np.testing.assert_allclose(np.mean(norms**2) - mean_square, 125.78921, atol=5e-6)
    np.testing.assert_allclose(np.mean(norms) ** 2 - mean_square, 48.57579, atol=5e-6)
    p = norms / norms.sum()
    weights = 1 / (1000 * p)
    np.testing.assert_allclose(  # the trace of the covariance by its definition
        np.sum(p * np.sum((weights[:, None] * g - mean) ** 2, axis=1)),
        48.57579,
        atol=5e-6,
    )
    weighted = with_norms(jnp.dot, w, g, weights * p * 1000)
    np.testing.assert_allclose(weighted[1], g.mean(axis=0), rtol=1e-12)


def test_statistics():
    """Unbiased over all batches of two from four gradients, without replacement."""
    g = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    mean, centred = g.mean(axis=0), g - g.mean(axis=0)
    trace = np.sum(centred**2) / 3
    statistics = jax.jit(gradient_statistics)
    stats = statistics(np.linalg.norm(g, axis=1), {"w": mean})
    np.testing.assert_allclose(stats.covariance_trace, trace, rtol=1e-5)
    signal = np.sum(mean**2) - trace / 4
    np.testing.assert_allclose(stats.mean_squared_norm, signal, rtol=1e-4)
    np.testing.assert_allclose(
        stats.signal_to_noise, np.sqrt(np.sum(mean**2) / trace), rtol=1e-5
    )
    np.testing.assert_allclose(
        stats.noise_scale, trace / signal if signal > 0 else np.inf, rtol=1e-3
    )
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    same = statistics(np.ones(4, np.float32), {"w": one})
    assert same.noise_scale == 0 and same.signal_to_noise == np.inf
    opposite = statistics(np.ones(4, np.float32), {"w": zero})
    assert opposite.noise_scale == np.inf and opposite.signal_to_noise == 0


def test_cosines():
    g = normal(0, 4, 3)
    g[3, 1:] = 0.0

    @jax.jit
    def cosines(g):
        return pairwise_cosine({"a": g[:, :1], "b": g[:, 1:]})

    found = np.asarray(cosines(g))
    np.testing.assert_allclose(np.diag(found), np.ones(4), rtol=1e-5)
    expected = g[0] @ g[1] / np.linalg.norm(g[0]) / np.linalg.norm(g[1])
    np.testing.assert_allclose(found[0, 1], expected, rtol=1e-4)
    assert not np.any(cosines(np.zeros((4, 3), np.float32)))


def test_memory_is_that_of_a_batch_gradient():
    """At B=1024 on the 400-256-256-6 MLP, where vmap(grad) needs 120 times as much."""
    net = networks.QNetwork(compiled.body(1, (256, 256)), 6)
    x = jax.ShapeDtypeStruct((1024, 400), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)

    def loss_fn(params, x):
        return jnp.sum(net.apply(params, x) ** 2)

    def batch_gradient(params, x):
        return jax.grad(lambda p: jnp.mean(jax.vmap(loss_fn, (None, 0))(p, x)))(params)

    def norms(params, x):
        return per_transition_grad_norms(loss_fn, params, x, method="factored")

    def with_norms(params, x):
        return value_and_grad_with_norms(loss_fn, params, x)

    temporary = [
        jax.jit(f).lower(params, x).compile().memory_analysis().temp_size_in_bytes
        for f in (batch_gradient, norms, with_norms)
    ]
    assert max(temporary[1:]) <= 2 * temporary[0], temporary


def test_gram_form_where_it_is_smaller():
    """A 64 x 64 layer applied twice: no product of that size per transition."""
    x = jax.ShapeDtypeStruct((256, 64), jnp.float32)
    params = jax.eval_shape(Twice(64).init, jax.random.key(0), x)

    def loss_fn(params, x):
        return jnp.sum(Twice(64).apply(params, x) ** 2)

    compiled = factored_norms.lower(loss_fn, params, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 256 * 64 * 64


ONES, BATCH = np.ones(2, np.float32), np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(loss_fn=lambda w, x: w), r"loss_fn returned .*\(2,\)"),
        (dict(loss_fn=lambda w, x: (w[0], x)), "loss_fn returned"),
        (dict(loss_fn=lambda w, x: 3), "loss_fn returned"),
        (dict(batch={"a": np.ones((2, 2)), "b": np.ones(3)}), r"\['b'\]\": \(3,\)"),
        (dict(batch=np.ones((0, 2))), r"'batch': \(0, 2\)"),
        (dict(batch=np.float32(1.0)), r"'batch': \(\)"),
        (dict(batch=()), r"leading axes .* got \{\}"),
        (
            dict(params=np.arange(2, dtype=np.int32)),
            r"params: expected .* floats, got int32\[2\]",
        ),
        (
            dict(params={"w": "text"}),
            r"params\['w'\]: expected .* got 'text'",
        ),
        (dict(params={}), "params: expected arrays of floats, got {}"),
    ],
)
def test_bad_input(changes, message):
    given = dict(loss_fn=jnp.dot, params=ONES, batch=BATCH)
    functions = [
        per_transition_grads,
        per_transition_grad_norms,
        value_and_grad_with_norms,
        lambda **kwargs: clipped_mean_grad(**kwargs, max_norm=1.0),
    ]
    for function in functions:
        jax.eval_shape(functools.partial(function, **given))
        with pytest.raises(ValueError, match=message):
            function(**given | changes)


def test_bad_options():
    args = (jnp.dot, ONES, BATCH)
    with pytest.raises(ValueError, match="method='ghost', expected one of"):
        per_transition_grad_norms(*args, method="ghost")
    for size in (0, True):
        with pytest.raises(ValueError, match=f"chunk_size={size}"):
            per_transition_grad_norms(*args, chunk_size=size)
    for norm in (-1.0, 0.0, np.ones(3)):
        with pytest.raises(ValueError, match="max_norm=.*, expected a positive"):
            clipped_mean_grad(*args, max_norm=norm)
    with pytest.raises(ValueError, match=r"weights of shape \(2,\), expected \(3,\)"):
        value_and_grad_with_norms(*args, ONES)
    with pytest.raises(ValueError, match=r"norms of shape \(1,\)"):
        gradient_statistics(ONES[:1], ONES)
    with pytest.raises(ValueError, match="unequal|equal leading axes"):
        pairwise_cosine({"a": BATCH[:2], "b": BATCH})
