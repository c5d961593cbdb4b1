"""Torsos: sizes and outputs against flax's layers, trees, dtypes, one's own."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from rljax import envs, networks
from rljax.agents import dqn, ppo, ppo_rnn
from rljax.autodiff import per_transition_grad_norms
from rljax.networks import recurrent, torsos
from rljax.running import train
from rljax.types import Discrete, Levels, Masked, ObsLeaf, ObsSpec, Spec, States

from .. import compiled, probe_envs

ATARI = ObsSpec.array((84, 84, 4), "uint8", Levels(low=(0.0,), high=(255.0,)))
PLANES = ObsSpec.array((10, 10, 4), "bool")
LEAVES = dict(
    camera=ObsLeaf((10, 10, 3), "uint8", Levels((0.0,), (255.0,)), "camera"),
    joints=ObsLeaf((4,), "float32", None, "joints"),
    place=ObsLeaf((1,), "int32", States(5), "place"),
)
TREE = ObsSpec(tuple(LEAVES.values()), jax.tree.structure(dict.fromkeys(LEAVES, 0)))


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields that a body is made of."""

    hidden_sizes: tuple = (8,)
    activation: str = "relu"
    torso: object = "minatar"
    layer_norm: bool = False
    compute_dtype: str = "float32"
    cell: object = "lstm"
    memory_size: int = 4


def network(obs, **changes):
    """A critic with this body."""
    body = networks.body(Spec(obs, Discrete(2)), Config(**changes))
    return networks.Critic(body)


def drawn(obs, *batch):
    """Observations of a spec at random, on the host."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        if isinstance(leaf.reading, States):
            return rng.integers(leaf.reading.number, size=(*batch, *leaf.shape))
        high = {"bool": 2, "uint8": 256}.get(leaf.dtype)
        if high is None:
            return rng.normal(size=(*batch, *leaf.shape)).astype(leaf.dtype)
        return rng.integers(high, size=(*batch, *leaf.shape)).astype(leaf.dtype)

    return obs.map(draw)


@pytest.mark.parametrize(
    ("torso", "obs", "hidden", "number"),
    [
        ("nature_cnn", ATARI, 512, 1_684_128),  # Mnih et al. (2015)
        ("impala_resnet", ATARI, 256, 1_089_232),  # Espeholt et al. (2018)
        ("minatar", PLANES, 128, 131_792),  # Young and Tian (2019)
        ("mlp", PLANES, 128, 400 * 128 + 128),
    ],
)
def test_torsos_have_the_published_number_of_parameters(torso, obs, hidden, number):
    net = network(obs, torso=torso, hidden_sizes=(hidden,))
    shapes = jax.eval_shape(net.init, jax.random.key(0), obs.zeros(1))
    head = hidden + 1
    assert sum(x.size for x in jax.tree.leaves(shapes)) == number + head


class Reference(nn.Module):
    """The convolutions as flax has them, with the paddings and orders of the papers."""

    torso: str
    layer_norm: bool

    @nn.compact
    def __call__(self, x):
        def normed(x):
            return nn.LayerNorm()(x) if self.layer_norm else x

        if self.torso == "minatar":
            x = nn.relu(normed(nn.Conv(16, (3, 3), padding="VALID")(x)))
        elif self.torso == "nature_cnn":
            x = nn.relu(normed(nn.Conv(32, (8, 8), (4, 4), padding="VALID")(x)))
            x = nn.relu(normed(nn.Conv(64, (4, 4), (2, 2), padding="VALID")(x)))
            x = nn.relu(normed(nn.Conv(64, (3, 3), padding="VALID")(x)))
        else:
            for features in (16, 32, 32):
                x = normed(nn.Conv(features, (3, 3))(x))
                x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
                for _ in range(2):
                    y = normed(nn.Conv(features, (3, 3))(nn.relu(x)))
                    x += normed(nn.Conv(features, (3, 3))(nn.relu(y)))
            x = nn.relu(x)
        return x.reshape(len(x), -1)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("torso", ["minatar", "nature_cnn", "impala_resnet"])
def test_torsos_equal_flaxs_layers(torso, layer_norm):
    obs = ObsSpec.array((37, 36, 2), "uint8", Levels((0.0,), (255.0,)))
    body = networks.Body(obs, torso=torso, layer_norm=layer_norm)
    encoder, reference = networks.Encoder(body), Reference(torso, layer_norm)
    images = drawn(obs, 2)

    @jax.jit
    def both(images):
        scaled = images / 255.0
        params = reference.init(jax.random.key(0), scaled)
        params = jax.tree.map(lambda x: x + 0.02, params)  # biases too
        return encoder.apply(params, images), reference.apply(params, scaled)

    got, want = both(images)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_arrays_of_a_tree_stand_side_by_side():
    encoder, obs = networks.Encoder(networks.Body(TREE)), drawn(TREE, 3)
    features, params = jax.jit(encoder.init_with_output)(jax.random.key(0), obs)
    lone = ObsSpec((LEAVES["camera"],), jax.tree.structure(0))
    camera = networks.Encoder(networks.Body(lone))
    image = jax.jit(camera.apply)(params, obs["camera"])
    want = np.concatenate([image, obs["joints"], np.eye(5)[obs["place"][:, 0]]], axis=1)
    np.testing.assert_allclose(features, want, rtol=1e-6)
    masked = Masked(obs=obs, legal=np.zeros((3, 2), bool))
    np.testing.assert_array_equal(jax.jit(encoder.apply)(params, masked), features)


@pytest.mark.parametrize(
    "torso",
    [
        "mlp",
        "minatar",
        "nature_cnn",
        pytest.param("impala_resnet", marks=pytest.mark.slow),
    ],
)
def test_bfloat16_is_for_layers_alone(torso):
    obs = ObsSpec.array((36, 36, 1), "uint8", Levels((0.0,), (255.0,)))
    plain, low = (network(obs, torso=torso, compute_dtype=x) for x in torsos.DTYPES)
    images = drawn(obs, 4)
    params = compiled.init(plain, jax.random.key(0), images)
    assert {x.dtype for x in jax.tree.leaves(low.init(jax.random.key(0), images))} == {
        jnp.dtype("float32")
    }
    value, want = (
        compiled.apply(low, params, images),
        compiled.apply(plain, params, images),
    )
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, want, atol=0.05 * np.abs(want).max() + 0.02)
    program = str(jax.make_jaxpr(low.apply)(params, images))
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert sum("bf16" in line for line in products) == len(products) - 1  # the head


@pytest.mark.parametrize(
    ("torso", "size", "layer_norm"),
    [
        ("mlp", 4, True),
        ("minatar", 5, True),
        ("nature_cnn", 36, False),
        pytest.param("impala_resnet", 6, True, marks=pytest.mark.slow),
    ],
)
def test_gradient_norms_of_every_torso_are_exact(torso, size, layer_norm):
    obs = ObsSpec.array((size, size, 2), "uint8", Levels((0.0,), (255.0,)))
    net = network(obs, torso=torso, layer_norm=layer_norm)
    images = drawn(obs, 2)
    params = compiled.init(net, jax.random.key(0), images)

    @jax.jit
    def norms(params, images):
        def loss(params, image):
            return net.apply(params, image) ** 2

        return [
            per_transition_grad_norms(loss, params, images, method=method)
            for method in ("factored", "vmap")
        ]

    factored, plain = norms(params, images)
    np.testing.assert_allclose(factored, plain, rtol=1e-4)


class Own(nn.Module):
    """A torso of one's own: takes the whole tree."""

    size: int = 3

    @nn.compact
    def __call__(self, obs):
        assert obs["camera"].shape[1:] == (10, 10, 3) and obs["place"].shape[1:] == (5,)
        x = nn.Dense(self.size)(obs["camera"].mean((1, 2)))
        return jnp.concatenate([x, obs["place"]], axis=-1)


@pytest.mark.parametrize("torso", [Own(), f"{__file__}:Own"])
def test_a_torso_of_ones_own_gets_the_tree(torso):
    net = network(TREE, torso=torso, hidden_sizes=())
    obs = drawn(TREE, 2, 3)
    value, params = jax.jit(net.init_with_output)(jax.random.key(0), obs)
    layer = params["params"]["Encoder_0"]["torso"]["Dense_0"]
    colour = obs["camera"].mean((2, 3)) / 255
    features = np.concatenate(
        [colour @ layer["kernel"] + layer["bias"], np.eye(5)[obs["place"][..., 0]]], -1
    )
    head = params["params"]["Dense_0"]
    np.testing.assert_allclose(
        value, (features @ head["kernel"] + head["bias"])[..., 0], rtol=1e-4
    )
    first = jax.tree.map(lambda x: x[0, 0], obs)  # without an axis of batches
    alone = jax.jit(net.apply)(params, first)
    np.testing.assert_allclose(alone, value[0, 0], rtol=1e-4)


class Without(nn.Module):
    """A torso that needs one array alone."""

    @nn.compact
    def __call__(self, obs):
        assert obs["camera"] is None is obs["place"]
        return nn.Dense(3)(obs["joints"])


def test_a_torso_of_ones_own_does_not_get_what_is_the_critics():
    spec, config = Spec(TREE, Discrete(2)), Config(torso=Without())
    body = networks.body(spec, config, unseen=("camera", "place"))
    shapes = jax.eval_shape(
        networks.Critic(body).init, jax.random.key(0), TREE.zeros(1)
    )
    assert shapes["params"]["Encoder_0"]["torso"]["Dense_0"]["kernel"].shape == (4, 3)


class Flat(nn.Module):
    """Returns other than features of each observation."""

    kind: str

    def __call__(self, obs):
        batch = jax.tree.leaves(obs)[0].shape[0]
        return {
            "a number": lambda: jnp.zeros(()),
            "one for each": lambda: jnp.zeros(batch),
            "an image": lambda: jnp.zeros((batch, 2, 2)),
            "of another batch": lambda: jnp.zeros((batch + 1, 2)),
            "integers": lambda: jnp.zeros((batch, 2), int),
            "a dict": lambda: {"x": jnp.zeros((batch, 2))},
        }[self.kind]()


@pytest.mark.parametrize(
    "kind",
    ["a number", "one for each", "an image", "of another batch", "integers", "a dict"],
)
def test_a_torso_without_features_is_refused(kind):
    net = network(PLANES, torso=Flat(kind))
    with pytest.raises(
        ValueError, match=r"torso Flat: returns .* of a batch of 2, exp"
    ):
        net.init(jax.random.key(0), PLANES.zeros(2))


def test_images_that_are_too_small_are_refused():
    net = network(ObsSpec.array((35, 84, 1)), torso="nature_cnn")
    with pytest.raises(ValueError, match="torso='nature_cnn': an image of .* smaller"):
        net.init(jax.random.key(0), jnp.zeros((1, 35, 84, 1)))


NoModule = dict


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(torso="nature"), "torso='nature': must be one of mlp, minatar, nat"),
        (dict(torso=3), "torso=3: must be one of"),
        (dict(torso="no.such.module:Torso"), "torso 'no.such.module:Torso': no module"),
        (dict(torso=f"{__file__}:Onw"), "has no Onw; did you mean: Own"),
        (dict(torso=f"{__file__}:NoModule"), "must be a flax.linen module, not dict"),
        (dict(compute_dtype="float16"), "compute_dtype='float16': must be one of"),
        (dict(torso=f"{__file__}:Flat"), "missing 1 required .* argument: 'kind'"),
        (dict(cell="rnn"), "cell='rnn': must be one of lstm, gru, module:Class"),
        (dict(cell=f"{__file__}:Own"), "must be a flax.linen.RNNCellBase, not"),
    ],
)
def test_bad_choices_are_refused(changes, message):
    config = ppo_rnn.Config(**changes)
    with pytest.raises(ValueError, match=message):
        config.validate()
        networks.body(Spec(TREE, Discrete(2)), config)
        recurrent.cell(config)


@pytest.mark.parametrize(
    ("critic_obs", "obs", "message"),
    [
        (("joint",), TREE, "critic_obs='joint': observations are arrays camera, j"),
        (("joints",), PLANES, "critic_obs='joints': observations are one array"),
        (("camera", "joints", "place"), TREE, "nothing is left for the policy"),
    ],
)
def test_arrays_for_the_critic_alone_must_exist(critic_obs, obs, message):
    spec, config = Spec(obs, Discrete(2)), ppo.Config(critic_obs=critic_obs)
    with pytest.raises(ValueError, match=message):
        ppo.make(spec).init(config, jax.random.key(0))


def test_a_policy_does_not_see_what_is_the_critics_alone():
    config = ppo.Config(critic_obs=("place", "camera"), hidden_sizes=(8,))
    agent, obs = ppo.make(Spec(TREE, Discrete(2))), drawn(TREE, 2)
    other = obs | {"place": (obs["place"] + 1) % 5, "camera": 255 - obs["camera"]}

    @jax.jit
    def outputs(obs):
        state = agent.init(config, jax.random.key(0))
        policy = agent.policy(config, state, obs)
        return policy.logits, agent.value(config, state, obs), state

    logits, value, state = outputs(obs)
    same, moved, _ = outputs(other)
    np.testing.assert_array_equal(logits, same)
    assert (np.abs(value - moved) > 1e-3).all()
    kernel = state.actor["params"]["MLP_0"]["Dense_0"]["kernel"]
    assert kernel.shape == (4, 8)


@pytest.mark.parametrize("cell", ["gru", nn.SimpleCell(features=4), "lstm"])
def test_cells_equal_flaxs_scan(cell):
    config = Config(cell=cell, hidden_sizes=(), torso="mlp")
    net = recurrent.Recurrent(
        body=networks.body(Spec(ObsSpec.array((3,)), Discrete(2)), config),
        memory_cell=recurrent.cell(config),
        head=networks.ValueHead(),
    )
    obs, starts = compiled.normal(0, 5, 2, 3), np.zeros((5, 2), bool)
    memory = recurrent.fresh_memory(config, 2)

    @jax.jit
    def both(obs):
        params = net.init(jax.random.key(0), obs[0], memory)
        value, memories = net.apply(params, obs, starts, memory, method="unroll")
        rnn = nn.RNN(recurrent.cell(config), time_major=True, return_carry=True)
        inner = {"params": {"cell": params["params"]["cell"]}}
        last, features = rnn.apply(inner, obs)
        head = params["params"]["head"]["Dense_0"]
        want = (features @ head["kernel"] + head["bias"])[..., 0]
        return value, want, jax.tree.map(lambda x: x[-1], memories), last

    value, want, memory_end, last = both(obs)
    np.testing.assert_allclose(value, want, rtol=1e-4, atol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4)
    jax.tree.map(close, memory_end, last)


def test_agents_take_a_torso_of_ones_own_by_name_and_as_a_module():
    spec = Spec(TREE, Discrete(2))
    for module, torso in ((ppo, Own()), (dqn, f"{__file__}:Own")):
        config = module.Config(torso=torso)
        config.validate()
        init = functools.partial(module.make(spec).init, config)
        shapes = jax.eval_shape(init, jax.random.key(0))
        sizes = {math.prod(x.shape) for x in jax.tree.leaves(shapes)}
        assert 9 in sizes  # three colours to three features


class Frames(probe_envs.Counter):
    """Shows frames as Atari's are."""

    def observation_space(self, params):
        return spaces.Box(0, 255, (84, 84, 4), jnp.uint8)

    def observe(self, key, state, action, params):
        return jnp.full((84, 84, 4), 40 * state.time, jnp.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("compute_dtype", torsos.DTYPES)
def test_the_network_of_atari_trains(compute_dtype):
    env = envs.wrap(Frames())
    config = dqn.Config(
        torso="nature_cnn",
        hidden_sizes=(512,),
        compute_dtype=compute_dtype,
        num_envs=4,
        batch_size=8,
        warmup_steps=16,
        total_steps=48,
        capacity=64,
    )
    agent = dqn.make(env.spec)
    start = jax.jit(functools.partial(train.init, agent, env, config))(
        jax.random.key(0)
    )
    run = functools.partial(train.run, agent, env, config, iterations=8)
    state, metrics = jax.jit(run)(train_state=start)
    assert state.agent.replay.steps.obs.dtype == jnp.uint8
    assert np.isfinite(metrics["loss"]).all()
    for before, after in zip(
        jax.tree.leaves(start.agent.params),
        jax.tree.leaves(state.agent.params),
        strict=True,
    ):
        assert after.dtype == jnp.float32 and (before != after).any()
