"""Integer observations: kept as they are, read by every network as they are meant."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from rljax import agents, envs, meta, networks, replay
from rljax.envs import wrappers
from rljax.networks import observations
from rljax.types import Levels, ObsSpec, Spec, States

from .. import probe_envs
from ..agent_case import CONTINUOUS_ONLY, required
from ..envs.test_boundary import OwnBox, OwnDiscrete

N = 3


class Shows(probe_envs.Counter):
    """Observes its time in a space and as a dtype and shape of choice."""

    def __init__(self, space, shape, dtype, scale=1):
        self.space, self.shape, self.dtype = space, shape, dtype
        self.scale = scale

    def observation_space(self, params):
        return self.space

    def observe(self, key, state, action, params):
        value = jnp.asarray(state.time * self.scale, self.dtype)
        return jnp.broadcast_to(value, self.shape)


IMAGE = functools.partial(Shows, shape=(4, 4, 1), dtype="uint8", scale=51)
UINT8 = spaces.Box(0, 255, (4, 4, 1), jnp.uint8)


@pytest.mark.parametrize(
    ("gym", "reading"),
    [
        (Shows(spaces.Discrete(9), (), "int32"), States(9)),
        (Shows(OwnDiscrete(9, start=-1), (1,), "int8"), States(9)),
        (Shows(spaces.Discrete(9), (9,), "float32"), None),  # one-hot already
        (IMAGE(UINT8), Levels((0.0,), (255.0,))),
        (IMAGE(None), Levels((0.0,), (255.0,))),
        (
            Shows(OwnBox([0, 2], [4, 9], (2,)), (2,), "int32"),
            Levels((0.0, 2.0), (4.0, 9.0)),
        ),
        (Shows(OwnBox(0, np.inf, (2,)), (2,), "int32"), None),
        (Shows(OwnBox(0, 9, (2,)), (2,), "float32"), None),
        (Shows(None, (2,), "int32"), None),
        (Shows(UINT8, (4, 4, 1), "bool"), None),
    ],
)
def test_the_space_says_how_to_read(gym, reading):
    spec = envs.wrap(gym).spec
    assert spec.reading == reading
    assert spec.obs_shape == (gym.shape or (1,))
    assert spec.obs_dtype == ("int32" if isinstance(reading, States) else gym.dtype)


class Seen(NamedTuple):
    """A tree of observations."""

    image: Any
    rest: Any


class Trees(probe_envs.Counter):
    """Observes its time as an image of bytes, a number of a state, and floats."""

    def observation_space(self, params):
        rest = (spaces.Discrete(9), spaces.Box(0.0, 4.0, (2,)))
        return spaces.Dict({"image": UINT8, "rest": spaces.Tuple(rest)})

    def observe(self, key, state, action, params):
        image = jnp.full((4, 4, 1), 51 * state.time, jnp.uint8)
        return Seen(image, (state.time, jnp.full(2, state.time, jnp.float32)))


class NoSpaces(Trees):
    def observation_space(self, params):
        return spaces.Dict({"image": UINT8})


def test_the_spaces_of_a_tree_say_how_to_read():
    spec = envs.wrap(Trees()).spec
    image, place, floats = spec.obs.leaves
    assert image == ((4, 4, 1), "uint8", Levels((0.0,), (255.0,)), "image")
    assert place == ((1,), "int32", States(9), "rest/0")
    assert floats == ((2,), "float32", None, "rest/1")
    assert isinstance(spec.zeros(3), Seen) and spec.zeros(3).image.shape == (3, 4, 4, 1)
    with pytest.raises(ValueError, match="observations are a tree of image, rest/0"):
        _ = spec.obs_shape
    image, place, floats = envs.wrap(NoSpaces()).spec.obs.leaves
    assert image.reading and place.reading is None is floats.reading
    found = envs.check(NoSpaces(), steps=0)
    assert "NoSpaces: observations 'rest/0' are not in observation_space" in str(found)
    (outside,) = envs.check(Trees(), steps=8)  # its time grows to 5
    assert "of observations 'rest/1' are outside of their space" in outside.text


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, Seen(102, (2, [2, 2]))),
        (dict(stack_frames=2), Seen([51, 102], ([1, 2], [1, 1, 2, 2]))),
        (dict(time_aware=True), wrappers.TimedObs(Seen(102, (2, [2, 2])), 0.4)),
        (dict(normalize_obs=True), None),
    ],
)
def test_wrappers_keep_trees(options, want):
    env = envs.wrap(Trees(), **options)
    seen = observed(env)
    shapes = jax.tree.map(lambda x: (x.shape[2:], x.dtype), seen)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), env.spec.zeros())
    assert shapes == expected
    if want is None:
        assert seen.rest[0][1, 0] == 2  # names a state
        lone = observed(envs.wrap(IMAGE(UINT8), normalize_obs=True))
        np.testing.assert_allclose(seen.image, lone, rtol=1e-6)
        return
    for found, value in zip(
        jax.tree.leaves(seen),
        jax.tree.leaves(want, is_leaf=lambda x: isinstance(x, list)),
        strict=True,
    ):
        whole = np.broadcast_to(value, found.shape[2:])
        np.testing.assert_allclose(found[1, 0], whole, rtol=1e-6)


def test_every_array_of_a_tree_is_scaled_or_none():
    with pytest.raises(ValueError, match="scale_obs=True: Trees has no .* 'rest/0'"):
        envs.wrap(Trees(), scale_obs=True)

    class Floats(Trees):
        def observation_space(self, params):
            box = spaces.Box(0, 8, ())
            rest = spaces.Tuple((box, spaces.Box(0.0, 4.0, (2,))))
            return spaces.Dict({"image": UINT8, "rest": rest})

    seen = observed(envs.wrap(Floats(), scale_obs=True))
    assert (seen.rest[0][1, 0], seen.rest[1][1, 0, 0]) == (-0.5, 0.0)
    np.testing.assert_allclose(seen.image[1, 0], 2 * 102 / 255 - 1, rtol=1e-5)


def observed(env, length=3):
    """Next observations `[T, N, ...]` of `length` steps."""

    @jax.jit
    def play():
        state, _ = env.reset(jax.random.key(0), N)
        noises = env.draw(jax.random.key(1), length, N)
        action = jnp.zeros(N, jnp.int32)

        def step(state, noise):
            state, ts = env.step(noise, state, action)
            return state, ts.next_obs

        return jax.lax.scan(step, state, noises)[1]

    return jax.device_get(play())


DISCRETE = Shows(OwnDiscrete(9, start=-1), (), "int32")


@pytest.mark.parametrize(
    ("gym", "options", "want"),
    [
        (DISCRETE, {}, [[2], [3], [4]]),
        (DISCRETE, dict(stack_frames=2), [[1, 2], [2, 3], [3, 4]]),
        (IMAGE(UINT8), dict(scale_obs=True), [[-0.6], [-0.2], [0.2]]),
        (IMAGE(UINT8), dict(stack_frames=2), [[0, 51], [51, 102], [102, 153]]),
        (IMAGE(UINT8), dict(time_aware=True), [[0.2, 0.2], [0.4, 0.4], [0.6, 0.6]]),
    ],
)
def test_wrappers_keep_integers_or_read_them(gym, options, want):
    env = envs.wrap(gym, **options)
    found = observed(env)
    assert found.dtype == env.spec.obs_dtype
    assert found.shape[2:] == env.spec.obs_shape
    kept = options.keys() <= {"stack_frames"}
    assert (env.spec.reading is not None) == kept
    assert np.issubdtype(found.dtype, np.integer) == kept
    last = found[:, 0].reshape(3, -1, len(want[0]))[:, 0]
    np.testing.assert_allclose(last, want, rtol=1e-6)


def test_time_stands_beside_states_one_hot():
    env = envs.wrap(DISCRETE, time_aware=True, stack_frames=2)
    assert env.spec.obs_shape == (2 * 9 + 1,)
    found = observed(env)[1, 0]
    np.testing.assert_array_equal(np.flatnonzero(found[:-1]), [2, 9 + 3])
    assert found[-1] == np.float32(0.4)


def test_levels_of_each_entry_are_stacked():
    gym = Shows(OwnBox([0, 2], [4, 9], (2,)), (2,), "int32")
    spec = envs.wrap(gym, stack_frames=2).spec
    assert spec.reading == Levels((0.0, 2.0, 0.0, 2.0), (4.0, 9.0, 4.0, 9.0))


@pytest.mark.parametrize(
    ("gym", "options", "message"),
    [
        (DISCRETE, dict(normalize_obs=True), "observations of Shows name states"),
        (DISCRETE, dict(scale_obs=True), "Shows has no finite bounds of observations"),
        (Shows(None, (2,), "int32"), dict(scale_obs=True), "no finite bounds"),
    ],
)
def test_what_cannot_be_scaled_is_refused(gym, options, message):
    with pytest.raises(ValueError, match=message):
        envs.wrap(gym, **options)


def test_masks_stand_beside_integers():
    class Masked(Shows):
        def action_mask(self, state, params):
            return jnp.array([True, False])

    env = envs.wrap(Masked(OwnBox(0, 4, (2,)), (2,), "int32"))
    assert env.spec.reading == Levels(low=(0.0,), high=(4.0,))
    seen = observed(env)
    np.testing.assert_array_equal(seen.obs[:, 0], [[1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(seen.legal[:, 0], [[True, False]] * 3)
    assert envs.wrap(Masked(OwnDiscrete(9), (), "int32")).spec.reading == States(9)


def test_read_equals_numpy():
    rng = np.random.default_rng(0)
    states = rng.integers(5, size=(2, 3, 2))
    one_hot = np.eye(5)[states].reshape(2, 3, 10)
    np.testing.assert_array_equal(observations.read(States(5), states, 1), one_hot)
    images = rng.integers(256, size=(2, 4, 4, 3)).astype(np.uint8)
    low, high = rng.integers(0, 9, (4, 4, 3)), rng.integers(10, 300, (4, 4, 3))
    levels = Levels(tuple(low.ravel().tolist()), tuple(high.ravel().tolist()))
    found = jax.jit(observations.read, static_argnums=(0, 2))(levels, images, 3)
    np.testing.assert_allclose(found, (images - low) / (high - low), rtol=1e-5)
    assert observations.read(None, images, 3).dtype == np.float32


def test_networks_see_white_as_one():
    reading = envs.wrap(IMAGE(UINT8)).spec.reading
    white = np.full((1, 4, 4, 1), 255, np.uint8)
    of_bytes = networks.Critic(
        networks.Body(ObsSpec.array((8, 8, 3), "uint8", reading))
    )
    of_floats = networks.Critic(networks.Body(ObsSpec.array((8, 8, 3))))

    @jax.jit
    def both():
        params = of_bytes.init(jax.random.key(0), white)
        return of_bytes.apply(params, white), of_floats.apply(params, white / 255)

    np.testing.assert_allclose(*both(), rtol=1e-6)


def tuned(make):
    by_state = meta.StateDependent(scale=meta.LogHorizon())

    def make_tuned(spec):
        return meta.tune(make(spec), spec, {"gamma": by_state})

    return make_tuned


class Continuous(Shows):
    def action_space(self, params):
        return spaces.Box(-1.0, 1.0, (1,), jnp.float32)


MAKERS = {name: agents.get(name).make for name in agents.names()}


@pytest.mark.parametrize(
    ("name", "make"),
    [*MAKERS.items(), *((name, tuned(MAKERS[name])) for name in ("a2c", "dqn"))],
)
def test_every_network_of_every_agent_reads_observations(name, make, monkeypatch):
    """Recorded while initialising and acting; replay keeps the integers."""
    kind = Continuous if name in CONTINUOUS_ONLY else Shows
    env = envs.wrap(kind(OwnDiscrete(9), (), "int32"))
    if name == "apg":
        env = env_with_derivatives(env)
    seen, read = [], observations.read

    def recording(reading, obs, ndim):
        seen.append(reading if jnp.issubdtype(obs.dtype, jnp.integer) else "read")
        return read(reading, obs, ndim)

    monkeypatch.setattr(observations, "read", recording)
    config = agents.get(name).Config(**required(name))
    agent = make(env.spec)

    def everything(key):
        state = agent.init(config, key)
        memory = agent.memory(config, config.num_envs)
        obs = env.spec.zeros(config.num_envs)
        act = functools.partial(agent.act, config, state, memory, obs, key)
        return state, act(explore=True)[0]

    state, _ = jax.eval_shape(everything, jax.random.key(0))
    assert set(seen) - {"read"} == {States(9)}
    buffers = [
        leaf for leaf in jax.tree.leaves(state, is_leaf=is_replay) if is_replay(leaf)
    ]
    assert all(buffer.steps.obs.dtype == "int32" for buffer in buffers)


def is_replay(x):
    return isinstance(x, replay.Replay)


def env_with_derivatives(env):
    class Smooth:
        spec: Spec = env.spec._replace(differentiable=True)

    return Smooth()
