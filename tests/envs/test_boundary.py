"""What users' environments return is made regular, or refused by name when wrapped."""

import dataclasses
import subprocess
import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnasium.spaces import Discrete as GymDiscrete
from gymnasium.spaces import MultiBinary, MultiDiscrete
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams, EnvState

from rljax import agents, envs
from rljax.envs import boundary, tasks
from rljax.envs.wrappers import Wrapper, with_statistics
from rljax.running import train
from rljax.types import Box, Discrete
from rljax.types import MultiDiscrete as Several

from .. import probe_envs

N = 3
Counter, OwnStep = probe_envs.Counter, probe_envs.OwnStep


# How often an environment may be cut.


class OwnRule(Counter):
    """Cut by a rule of its own."""

    def is_truncated(self, state, params):
        return state.time % 2 == 0


class OwnReset(Counter):
    """Episodes start at a random time."""

    def reset_env(self, key, params):
        state = EnvState(time=jax.random.randint(key, (), 0, 3))
        return self.observe(key, state, None, params), state


class Late(Counter):
    """Episodes start at a fixed time that is not 0."""

    def reset_env(self, key, params):
        state = EnvState(time=jnp.int32(2))
        return self.observe(key, state, None, params), state


class Fast(Counter):
    """Two units of time in a step."""

    def step_env(self, key, state, action, params):
        state = EnvState(time=state.time + 1)
        return super().step_env(key, state, action, params)


class ByAction(Counter):
    """Time that passes as the action says."""

    def step_env(self, key, state, action, params):
        state = EnvState(time=state.time + action)
        return super().step_env(key, state, action, params)


class Endless(Counter):
    """Never cut."""

    def is_truncated(self, state, params):
        return jnp.bool(False)


class FloatTime(Counter):
    """A clock of floats."""

    def reset_env(self, key, params):
        state = EnvState(time=0.0)
        return self.observe(key, state, None, params), state

    def step_env(self, key, state, action, params):
        state = EnvState(time=state.time + 1.0)
        return self.observe(key, state, action, params), state, 1.0, False, {}


def own_is_truncated():
    gym = Counter()
    gym.is_truncated = lambda state, params: state.time % 2 == 0
    return gym


@pytest.mark.parametrize(
    ("gym", "promised"),
    [
        (Counter(), 5),
        (FloatTime(), 5),
        (Endless(), 2**24),
        (OwnRule(), 1),
        (OwnReset(), 1),
        (Late(), 1),
        (Fast(), 1),
        (ByAction(), 1),
        (OwnStep(), 1),
        (own_is_truncated(), 1),
    ],
)
def test_a_limit_is_promised_only_where_it_is_known(gym, promised):
    assert envs.wrap(gym).spec.max_steps == promised


def test_the_promise_follows_the_parameters():
    env = envs.wrap(Counter(), time_aware=True)
    short = tasks.with_params(env, max_steps_in_episode=2)
    params = env.env.env.params.replace(max_steps_in_episode=3)
    replaced = dataclasses.replace(env.env.env, params=params)
    assert (env.spec.max_steps, short.spec.max_steps) == (5, 2)
    assert replaced.spec.max_steps == 3
    seen = []

    def look(limit):
        traced = tasks.with_params(env, max_steps_in_episode=limit)
        seen.append(traced.spec.max_steps)
        return limit

    jax.vmap(look)(jnp.array([2, 3]))
    jax.jit(lambda env: seen.append(env.spec.max_steps))(env)
    assert seen == [1, 1]
    with pytest.raises(ValueError, match="Counter: max_steps_in_episode=0: must be in"):
        tasks.with_params(env, max_steps_in_episode=0)


def test_wrappers_that_may_truncate_promise_nothing():
    class Cut(Wrapper):
        def __init__(self, env):
            self.env = env

    class Careful(Cut):
        truncates = False

    env = envs.wrap(Counter(), normalize_obs=True, stack_frames=2, terminal_limit=True)
    assert env.spec.max_steps == 5
    assert Cut(env).spec.max_steps == 1
    assert Careful(env).spec.max_steps == 5


@pytest.mark.parametrize("limit", [None, np.inf, jnp.inf])
def test_environments_may_have_no_limit(limit):
    gym = Counter()
    env = envs.wrap(gym, gym.default_params.replace(max_steps_in_episode=limit))
    assert env.spec.max_steps == 2**24
    assert env.max_steps == jax.jit(lambda env: env.max_steps)(env) == 100_000
    with pytest.raises(ValueError, match="time_aware=True: Counter has no time limit"):
        envs.wrap(gym, env.env.params, time_aware=True)


@pytest.mark.parametrize("limit", [0, -1, 0.5, np.nan, 2**31, 10**10, "x"])
def test_a_limit_must_leave_a_step(limit):
    gym = Counter()
    params = gym.default_params.replace(max_steps_in_episode=limit)
    with pytest.raises(ValueError, match="Counter: max_steps_in_episode="):
        envs.wrap(gym, params)


# Flags, rewards, observations and states of any dtype.


@struct.dataclass
class Place(EnvState):
    place: jax.Array


class Loose(Counter):
    """Terminates at 3, with flags, rewards and observations as `cast` makes them."""

    casts = dict(
        bool=lambda x: x,
        int32=lambda x: x.astype("int32"),
        uint8=lambda x: x.astype("uint8"),
        float32=lambda x: x.astype("float32"),
        bfloat16=lambda x: x.astype("bfloat16"),
        shape_1=lambda x: x[None],
        shape_11=lambda x: x[None, None],
    )

    def __init__(self, cast="bool"):
        self.cast = self.casts[cast]

    def reset_env(self, key, params):
        state = Place(time=jnp.int32(0), place=jnp.int32(0))
        return jnp.zeros(1, jnp.int32), state

    def step_env(self, key, state, action, params):
        state = Place(time=state.time + 1, place=state.place + jnp.float32(0.5))
        ended = self.cast(state.time >= 3)
        return state.place[None], state, self.cast(state.time > 1), ended, {}


class LooseStep(Loose):
    """The same with a `step` of its own, whose flags are all cast."""

    def step(self, key, state, action, params=None):
        obs, after, reward, ended, _ = self.step_env(key, state, action, params)
        first, fresh = self.reset_env(key, params)
        done = jnp.squeeze(ended) > 0
        state = jax.tree.map(lambda x, y: jnp.where(done, x, y), fresh, after)
        no = self.cast(jnp.bool(False))
        info = {"final_observation": obs}
        return jnp.where(done, first, obs), state, reward, ended, no, info


OPTIONS = dict(
    sticky_actions=0.5, normalize_rewards=0.9, time_aware=True, stack_frames=2
)


@pytest.mark.parametrize("kind", [Loose, LooseStep])
def test_flags_of_any_kind_are_flags(kind):
    """With the wrappers that go by them; the state keeps the wider dtype."""
    # No limit: the time is a fraction of it.
    batch = {cast: envs.wrap(kind(cast), **OPTIONS) for cast in Loose.casts}

    @jax.jit
    def play():
        def one(env):
            state, _ = env.reset(jax.random.key(0), N)
            noises = env.draw(jax.random.key(1), 7, N)
            actions = jnp.zeros((7, N), jnp.int32)

            def step(state, inputs):
                state, ts = env.step(*inputs[:1], state, inputs[1])
                return state, ts

            return jax.lax.scan(step, state, (noises, actions))[1]

        return {cast: one(env) for cast, env in batch.items()}

    found = jax.device_get(play())
    for ts in found.values():
        jax.tree.map(np.testing.assert_array_equal, ts, found["bool"])
    ts = found["bool"]
    assert ts.terminated.dtype == bool and not ts.truncated.any()
    np.testing.assert_array_equal(ts.terminated[:, 0], [0, 0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(ts.info["episode_return"][:, 0], [0, 1, 2] * 2 + [0])
    np.testing.assert_array_equal(ts.next_obs[2, 0, :2], [1.0, 1.5])


@pytest.mark.parametrize("value", [True, False, np.bool_(True), 1, 0.0, jnp.ones(1)])
def test_flag(value):
    flag = boundary.flag(value)
    assert (flag.shape, flag.dtype) == ((), bool)
    assert bool(flag) == bool(value)


# Keys in states.


class Keyed(Environment):
    """Draws from a key of its own, held as `hold` says; observes the draw."""

    def __init__(self, hold="key"):
        self.hold = hold

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=3)

    def action_space(self, params):
        return spaces.Discrete(2)

    def reset_env(self, key, params):
        hold = dict(
            key=lambda: key,
            keys=lambda: jax.random.split(key, 2),
            nested=lambda: {"a": (key, jnp.int32(0))},
            raw=lambda: jax.random.key_data(key),
            rbg=lambda: jax.random.key(0, impl="rbg"),
            mixed=lambda: jax.random.key(0),
        )
        return jnp.zeros(1), Place(time=0, place=hold[self.hold]())

    def step_env(self, key, state, action, params):
        def advance(leaf):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                new = jax.vmap(jax.random.fold_in, (0, None))(leaf.reshape(-1), 1)
                return new.reshape(leaf.shape)
            return leaf

        place = jax.tree.map(advance, state.place)
        if self.hold == "mixed":  # the given key beside jax's own
            place = jnp.where(state.time > 0, key, place)
        leaf = jax.tree.leaves(place)[0]
        if self.hold == "raw":
            leaf = jax.random.wrap_key_data(leaf)
        obs = jax.random.normal(leaf.reshape(-1)[0], (1,))
        return obs, Place(time=state.time + 1, place=place), 1.0, jnp.bool(False), {}


@pytest.mark.parametrize("hold", ["key", "keys", "nested", "raw", "rbg", "mixed"])
def test_states_may_hold_keys(hold):
    """In training, evaluation and warm-up; the scan takes only equal types."""
    env, a2c = envs.wrap(Keyed(hold)), agents.get("dqn")
    config = a2c.Config(
        total_steps=8,
        num_envs=2,
        rollout_length=2,
        capacity=8,
        warmup_steps=4,
        batch_size=2,
    )
    agent = a2c.make(env.spec)
    ts, _ = jax.eval_shape(
        lambda key: train.train(agent, env, config, key), jax.random.key(0)
    )
    kinds = {leaf.dtype for leaf in jax.tree.leaves(ts.env)}
    assert not any("unrolled" in str(kind) for kind in kinds)


def test_held_keys_draw_gymnaxs_numbers():
    gym = Keyed()
    env = envs.wrap(gym)

    @jax.jit
    def both(key):
        state, _ = env.reset(key, N)
        noise = jax.tree.map(lambda x: x[0], env.draw(key, 1, N))
        actions = jnp.zeros(N, jnp.int32)
        ours = env.step(noise, state, actions)[1].next_obs
        step = jax.vmap(gym.step, (0, 0, 0, None))
        return ours, step(noise.key, state.env, actions, env.env.params)[0]

    ours, gymnaxs = both(jax.random.key(5))
    np.testing.assert_array_equal(ours, gymnaxs)
    assert len(np.unique(ours)) == N


# Actions.


class Acts(Counter):
    """Observes the action as it was handed over."""

    def __init__(self, space):
        self.space = space

    def action_space(self, params):
        return self.space

    def step_env(self, key, state, action, params):
        jnp.arange(9)[action] if jnp.issubdtype(action.dtype, jnp.integer) else None
        state = EnvState(time=state.time + 1)
        return jnp.float32(action).reshape(1), state, 1.0, jnp.bool(False), {}


@dataclasses.dataclass
class OwnDiscrete:
    n: int
    start: int = 0


@dataclasses.dataclass
class OwnBox:
    low: object
    high: object
    shape: tuple
    dtype: object = np.float32


@dataclasses.dataclass
class OwnMany:
    nvec: object


@pytest.mark.parametrize(
    ("space", "numbers", "handed"),
    [
        (OwnMany([2, 3]), (2, 3), [[0, 0], [1, 1], [1, 2]]),
        (MultiDiscrete([2, 3], start=[1, 5]), (2, 3), [[1, 5], [2, 6], [2, 7]]),
        (OwnBox([[0, 4]], [[1, 6]], (1, 2), np.int8), (2, 3), [[0, 4], [1, 5], [1, 6]]),
        (
            spaces.Tuple([OwnDiscrete(2, start=3), OwnDiscrete(3)]),
            (2, 3),
            [[3, 0], [4, 1], [4, 2]],
        ),
    ],
)
def test_several_choices_at_once_are_read_by_their_fields(space, numbers, handed):
    apart = isinstance(space, spaces.Tuple)

    class Many(Acts):
        def step_env(self, key, state, action, params):
            assert isinstance(action, tuple) == apart
            obs = jnp.stack(action) if apart else action.reshape(2)
            assert apart or action.shape == getattr(space, "shape", (2,))
            state = EnvState(time=state.time + 1)
            return jnp.float32(obs), state, 1.0, jnp.bool(False), {}

        def reset_env(self, key, params):
            return jnp.zeros(2), EnvState(time=jnp.zeros((), jnp.int32))

    env = envs.wrap(Many(space))
    assert env.spec.action == Several(numbers)
    actions = jnp.minimum(jnp.arange(3)[:, None], jnp.array(numbers) - 1)

    @jax.jit
    def step(actions):
        state, _ = env.reset(jax.random.key(0), 3)
        noise = jax.tree.map(lambda x: x[0], env.draw(jax.random.key(0), 1, 3))
        return env.step(noise, state, actions)[1].next_obs

    np.testing.assert_array_equal(step(actions), handed)


@pytest.mark.parametrize(
    ("space", "spec", "handed"),
    [
        (OwnDiscrete(3), Discrete(3), [0, 1, 2]),
        (OwnDiscrete(np.int64(3), start=4), Discrete(3), [4, 5, 6]),
        (OwnBox(2, 4, (), np.int32), Discrete(3), [2, 3, 4]),
        (OwnBox(2, 4, (1,), np.uint8), Discrete(3), [2, 3, 4]),
        (OwnBox(0, 1, (), bool), Discrete(2), [0, 1, 1]),
        (OwnBox(-1.0, 1.0, (1,)), Box((1,), (-1.0,), (1.0,)), [0, 1, 1]),
        (OwnBox([-1.0], np.inf, (1,)), Box((1,), (-1.0,), (np.inf,)), [0, 1, 2]),
        (OwnBox(-3e38, 3e38, ()), Box((), (-np.inf,), (np.inf,)), [0, 1, 2]),
        (GymDiscrete(3, start=2), Discrete(3), [2, 3, 4]),
    ],
)
def test_action_spaces_are_read_by_their_fields(space, spec, handed):
    env = envs.wrap(Acts(space))
    assert env.spec.action == spec
    discrete = isinstance(spec, Discrete)
    shape, dtype = ((), jnp.int32) if discrete else (spec.shape, jnp.float32)
    most = spec.num_actions - 1 if discrete else 2
    actions = jnp.minimum(jnp.arange(N), most).astype(dtype).reshape(N, *shape)

    @jax.jit
    def step(actions):
        state, _ = env.reset(jax.random.key(0), N)
        noise = jax.tree.map(lambda x: x[0], env.draw(jax.random.key(0), 1, N))
        return env.step(noise, state, actions)[1].next_obs[:, 0]

    np.testing.assert_array_equal(step(actions), handed)


F32 = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (OwnBox(1.0, 1.0, (1,)), r"low=1.0, high=1.0 at \(0,\): low must be < high"),
        (OwnBox(2.0, -2.0, ()), "low=2.0, high=-2.0: low must be < high"),
        (OwnBox([0.0, 1.0], [1.0, 1.0], (2,)), r"low=1.0, high=1.0 at \(1,\)"),
        (OwnBox(1.0, 1.0 + 1e-9, (1,)), "low must be < high"),  # equal in float32
        (OwnBox(F32, F32, (1,)), "low=inf, high=inf"),
        (OwnBox(-2.0, np.nan, (1,)), "action_space has high=.*NaN"),
        (OwnBox([np.nan, 0.0], 1.0, (2,)), "action_space has low=.*NaN"),
        (OwnBox([0.0, 0.0, 0.0], 1.0, (2,)), r"that do not fit its shape \(2,\)"),
        (OwnBox(-1.0, 1.0, (0,)), r"has the shape \(0,\), so no actions"),
        (OwnBox(0, 2**31 - 1, (), np.int32), "box of int32 .* 1 to 65536 values"),
        (OwnBox(0, [2, -1], (2,), np.int32), "each integer must have 1 to 65536"),
        (OwnMany([2, 0]), r"has choices of \[2, 0\] values: each must"),
        (OwnMany([]), r"has choices of \[\] values"),
        (OwnDiscrete(0), "action_space has n=0: must be >= 1"),
        (object(), "action space builtins.object, expected Discrete, Multi"),
        (MultiBinary(3), "action space gymnasium.*MultiBinary, expected Discrete"),
    ],
)
def test_action_spaces_that_leave_no_choice_are_refused(space, message):
    with pytest.raises(ValueError, match=f"Acts: .*{message}"):
        envs.wrap(Acts(space))


# Hooks that are missing, fail, or return other than they should.


class FiveValues(Counter):
    def step(self, key, state, action, params=None):
        return self.step_env(key, state, action, params)


class NoFinal(OwnStep):
    def step(self, *args):
        return *super().step(*args)[:5], {"TimeLimit": True}


class SixValues(Counter):
    def step_env(self, *args):
        return *super().step_env(*args), {}


class Fails(Counter):
    def step_env(self, key, state, action, params):
        return state.velocity


class OtherArguments(OwnStep):
    def step(self, state, action):
        return state


class NoSpace(Counter):
    action_space = None


class NoTime(Counter):
    def reset_env(self, key, params):
        return jnp.zeros(1), {"place": jnp.zeros(())}

    def step_env(self, key, state, action, params):
        return jnp.zeros(1), state, 1.0, jnp.bool(False), {}


class OtherShape(Counter):
    def reset_env(self, key, params):
        return jnp.zeros(2), super().reset_env(key, params)[1]


class OtherState(Counter):
    def step_env(self, key, state, action, params):
        obs, state, *rest = super().step_env(key, state, action, params)
        return obs, Place(time=state.time, place=obs), *rest


class GrowingState(Counter):
    def reset_env(self, key, params):
        return jnp.zeros(1), Place(time=jnp.int32(0), place=jnp.zeros(2))

    def step_env(self, key, state, action, params):
        state = Place(time=state.time + 1, place=jnp.zeros(3))
        return jnp.zeros(1), state, 1.0, jnp.bool(False), {}


class TwoRewards(Counter):
    def step_env(self, *args):
        obs, state, reward, *rest = super().step_env(*args)
        return obs, state, jnp.stack([reward, reward]), *rest


class Empty(Counter):
    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        return {"place": obs, "none": obs[:0]}, state


class FailingSpace(Counter):
    def observation_space(self, params):
        return {}["none"]


class OwnSpaces(Counter):
    def observation_space(self, params):
        return {"no": "class of a package"}


class TextAsSpace(Counter):
    def observation_space(self, params):
        return "box"


class NoReward(Counter):
    def step_env(self, *args):
        obs, state, _, *rest = super().step_env(*args)
        return obs, state, None, *rest


class TwoCuts(Counter):
    def is_truncated(self, state, params):
        return jnp.zeros(2, bool)


class MaskOfFloats(Counter):
    def action_mask(self, state, params):
        return jnp.ones(2)


@dataclasses.dataclass
class Unhashable(Counter):
    scale: float = 1.0


class NoDefaults:
    reset = step = action_space = lambda *args: None


@pytest.mark.parametrize(
    ("gym", "message"),
    [
        (FiveValues(), "FiveValues: step returns 5 values, not 6: obs, state, reward"),
        (NoFinal(), "without 'final_observation'.*it has .'TimeLimit'"),
        (SixValues(), "SixValues: step_env returns 6 values, not 5: obs, state"),
        (Fails(), "Fails: step_env failed: AttributeError: .*velocity"),
        (OtherArguments(), "OtherArguments: step failed: TypeError"),
        (NoSpace(), "NoSpace: has no method action_space"),
        (NoTime(), "NoTime: is_truncated failed: AttributeError: .*time"),
        (
            OtherShape(),
            r"step_env returns observations float32\[1\], reset_env .*\[2\]",
        ),
        (OtherState(), "OtherState: step_env returns a state PyTreeDef"),
        (GrowingState(), r"returns the state.place as float32\[3\], the reset as"),
        (TwoRewards(), r"step_env returns reward float32\[2\], expected one number"),
        (Empty(), r"observations\['none'\] float32\[0\]: without a number"),
        (FailingSpace(), "FailingSpace: observation_space failed: KeyError: 'none'"),
        (TextAsSpace(), "TextAsSpace: observation_space returns 'box', not a space"),
        (NoReward(), "step_env returns reward None, expected one number"),
        (TwoCuts(), r"is_truncated returns truncated bool\[2\], expected one number"),
        (MaskOfFloats(), r"action_mask is float32\[2\], expected bool\[2\]"),
        (Unhashable(), "Unhashable: cannot be hashed, .*eq=False"),
        (NoDefaults(), "NoDefaults: has no default_params; give params"),
        (object(), "object: has no method reset"),
        ("CartPole-v1", "not the name 'CartPole-v1': envs.make takes names"),
        (Counter, r"not the class Counter: give an object, Counter\(\)"),
    ],
)
def test_environments_are_refused_by_name(gym, message):
    with pytest.raises(ValueError, match=message):
        envs.wrap(gym)


def test_spaces_of_other_kinds_are_left_alone():
    assert envs.wrap(OwnSpaces()).spec == envs.wrap(Counter()).spec


def test_an_environment_that_needs_a_network_says_so(monkeypatch):
    def no_network(*args):
        raise ConnectionResetError("Name or service not known")

    monkeypatch.setitem(gymnax.registration._registry, "MNISTBandit-bsuite", no_network)
    message = "MNISTBandit-bsuite needs data that could not be .*service not known"
    with pytest.raises(ValueError, match=message):
        envs.make("MNISTBandit-bsuite")


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 10**10])
def test_integers_of_parameters_fit_the_program(value):
    with pytest.raises(ValueError, match=f"={value} of CartPole-v1: must be in"):
        envs.make("CartPole-v1", max_steps_in_episode=value)


def test_another_module_named_gymnax_is_told_at_import(tmp_path):
    (tmp_path / "gymnax").mkdir()
    (tmp_path / "gymnax" / "__init__.py").write_text('__version__ = "0.0.8"\n')
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rljax.envs"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1
    assert last.startswith(f"ImportError: the module gymnax at {tmp_path}")
    assert "pip install --force-reinstall gymnax" in last


# Batched environments that keep to the Protocol and to nothing else.


class Bare:
    """Five steps that pay 1, without any `info`."""

    spec, max_steps = envs.Spec(envs.ObsSpec.array((3,)), Discrete(2), 5), 5

    def reset(self, key, n):
        return jnp.zeros(n, jnp.int32), jnp.zeros((n, 3))

    def draw(self, key, length, n):
        return jax.random.split(key, (length, n))

    def for_evaluation(self, state):
        return self

    def step(self, noise, state, action):
        n = len(state)
        done, obs, no = state + 1 >= 5, jnp.zeros((n, 3)), jnp.zeros(n, bool)
        timestep = envs.TimeStep(obs, jnp.ones(n), no, done, obs, {})
        return jnp.where(done, 0, state + 1), timestep


class Telling(Bare):
    def step(self, *args):
        state, ts = super().step(*args)
        zeros = jnp.zeros(len(state))
        return state, ts._replace(info=dict(episode_return=zeros, episode_length=zeros))


class IntegerFlags(Bare):
    def step(self, *args):
        state, ts = super().step(*args)
        return state, ts._replace(truncated=ts.truncated.astype(jnp.int32))


class NoDraw(Bare):
    draw = property()


class OneValue(Bare):
    def step(self, *args):
        return super().step(*args)[1]


class OtherTypes(Bare):
    def step(self, *args):
        state, ts = super().step(*args)
        return state.astype(jnp.float32), ts


def test_statistics_are_put_on_where_they_are_missing():
    telling, whole = Telling(), envs.wrap(Counter(), time_aware=True)
    assert with_statistics(telling) is telling
    assert with_statistics(whole) is whole
    assert isinstance(with_statistics(Bare()), envs.EpisodeStatistics)
    assert isinstance(with_statistics(whole.env.env), envs.EpisodeStatistics)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (NoDraw(), "NoDraw: has no draw, which a BatchedEnv needs"),
        (IntegerFlags(), r"IntegerFlags: truncated is .*int32.*'bool'\)"),
        (OneValue(), "OneValue: reset, draw and step of a BatchedEnv failed"),
        (OtherTypes(), "OtherTypes: step returns a state unlike the one of reset"),
        (Counter(), "Counter: has no spec, which a BatchedEnv needs"),
    ],
)
def test_batched_environments_are_refused_by_name(env, message):
    with pytest.raises(ValueError, match=message):
        with_statistics(env)
