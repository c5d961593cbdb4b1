"""`envs.check` finds what is wrong, and nothing where nothing is."""

import gymnax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from gymnax.environments.environment import EnvParams, EnvState

from rljax import envs
from rljax.envs import checking
from rljax.types import TimeStep

from .. import probe_envs
from .test_boundary import Bare, FiveValues, Keyed, Loose, OwnRule

Counter = probe_envs.Counter
T, N = 6, checking._NUM_ENVS


class Seen(Counter):
    """A Counter with the space of what it shows."""

    def observation_space(self, params):
        return spaces.Box(0, 100, (1,), jnp.float32)


def texts(findings):
    return [str(finding) for finding in findings]


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-misc"])
def test_gymnaxs_environments_have_nothing_to_see(name):
    gym, params = gymnax.make(name)
    assert envs.check(gym, params, steps=0) == []
    assert envs.check(envs.make(name, time_aware=True), steps=0) == []


class Misnamed(Seen):
    def is_truncted(self, state, params):
        return state.time > 3

    def is_terminal(self, state, params):
        return state.time > 3


class OneStep(Seen):
    @property
    def default_params(self):
        return EnvParams()

    def step_env(self, key, state, action, params):
        state = EnvState(time=state.time + 1)
        return jnp.zeros(1), state, 0.0, jnp.bool(False), {}


class OtherSpace(Counter):
    def observation_space(self, params):
        return spaces.Box(0, 100, (2,), jnp.int32)


class NanSpace(Counter):
    def observation_space(self, params):
        return spaces.Box(jnp.nan, 100, (1,), jnp.float32)


class Reversed(Counter):
    def observation_space(self, params):
        return spaces.Box(100, 0, (1,), jnp.float32)


class NoneAsHook(Counter):
    observation_space = None


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Reversed(), "low=100.0, high=0.0 at (0,): low must be <= high"),
        (NoneAsHook(), "note: NoneAsHook: has no observation_space"),
        (NanSpace(), "warning: NanSpace: observation_space has low=[nan]: NaN"),
        (FiveValues(), "error: FiveValues: step returns 5 values, not 6"),
        (
            Misnamed(),
            "warning: Misnamed: nothing calls is_truncted: did you mean is_tr",
        ),
        (OneStep(), "warning: OneStep: max_steps_in_episode=1, gymnax's default"),
        (OwnRule(), "note: OwnRule: may be truncated at any time"),
        (Counter(), "note: Counter: has no observation_space"),
        (OtherSpace(), "warning: OtherSpace: observations have shape (1,), their spac"),
        (OtherSpace(), "note: OtherSpace: observations are float32, their space int3"),
        (Loose("int32"), "note: Loose: step_env returns terminated as int32[]"),
        (Loose(), "returns the state.place as int32[], step_env as float32[]"),
        (Loose(), "returns observations as int32[1], step_env as float32[1]"),
    ],
)
def test_what_is_seen_without_a_run(env, message):
    assert any(message in text for text in texts(envs.check(env, steps=0)))


def test_hooks_of_gymnax_are_no_misnomers():
    assert not checking._unused_methods("Counter", probe_envs.Counter())
    (text,) = texts(checking._unused_methods("M", Misnamed()))[:1]
    assert "is_truncted" in text


class Faulty(Seen):
    """Many faults at once; `draws` are Python's, not the key's."""

    rng = np.random.default_rng(0)

    def step_env(self, key, state, action, params):
        state = EnvState(time=state.time + 1)
        obs = jnp.full(1, self.rng.normal()) - 200.0
        ended = state.time >= params.max_steps_in_episode
        return obs, state, jnp.where(ended, jnp.inf, 0.0), ended, {}


def test_a_run_shows_what_a_look_does_not():
    found = texts(envs.check(Faulty(), steps=10))
    for message in (
        "error: Faulty: equal keys gave unequal steps",
        "error: Faulty: reward is inf after step 4 of environment 0",
        "too: at its time limit a task goes on, terminated should be False",
        "warning: Faulty: 100.0% of observations are outside of their space",
    ):
        assert any(message in text for text in found), message
    assert len(found) == 4


def test_environments_without_fault_run_through():
    """With keys of its own, with a mask, and batched by its author."""

    class Masked(Seen):
        def action_mask(self, state, params):
            return jnp.array([True, False])

        def step_env(self, key, state, action, params):
            obs, state, reward, ended, info = super().step_env(
                key, state, action, params
            )
            return obs, state, jnp.where(action == 0, reward, jnp.nan), ended, info

    assert envs.check(Masked(), steps=10) == []
    assert texts(envs.check(Keyed(), steps=10)) == [
        "note: Keyed: has no observation_space"
    ]
    assert envs.check(Bare(), steps=10) == []


def test_a_run_that_fails_says_why():
    class Fails(Bare):
        def draw(self, key, length, num_envs):
            if length > 1:
                raise RuntimeError("no noise\nat all")
            return super().draw(key, length, num_envs)

    (text,) = texts(envs.check(Fails(), steps=10))
    assert text == "error: Fails: a run fails: RuntimeError: no noise"


def timesteps(**fields):
    """Steps without an end, observations that count."""
    obs = np.tile(np.arange(1.0, T + 1)[:, None, None], (1, N, 1))
    no = np.zeros((T, N), bool)
    steps = TimeStep(obs, np.zeros((T, N)), no, no, obs, {})
    lengths = np.tile(np.arange(1, T + 1)[:, None], (1, N))
    return steps._replace(info=dict(episode_length=lengths), **fields)


def at(*rows):
    mask = np.zeros((T, N), bool)
    mask[list(rows)] = True
    return mask


class Limit:
    max_steps = 3


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (timesteps(), "error: E: no episode ended in 6 steps, limit 3"),
        (timesteps(terminated=at(4)), "warning: E: an episode had 5 steps, its limit"),
        (
            timesteps(terminated=at(1, 2), truncated=at(2)),
            "warning: E: 16 of 16 truncated steps are terminated too",
        ),
        (timesteps(terminated=at(1), truncated=at(2)), None),
    ],
)
def test_ends(steps, message):
    found = texts(checking._ends("E", Limit(), steps))
    assert found == [] if message is None else found[0].startswith(message)


def test_equal_lengths_may_be_a_limit():
    steps = timesteps(terminated=at(1, 3, 5))
    steps.info["episode_length"][:] = 2
    (text,) = texts(checking._ends("E", Limit(), steps))
    assert text.startswith("note: E: all 48 episodes terminated after 2 steps")


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_successors(kind):
    steps, done = timesteps(**{kind: at(2)}), at(2)
    fresh = np.where(done[..., None], 0.0, steps.obs)
    assert checking._successors("E", steps._replace(obs=fresh)) == []
    (text,) = texts(checking._successors("E", steps))
    assert f"where a step {kind}, info['final_observation'] is the first one" in text
    wrong = steps._replace(obs=fresh, next_obs=steps.next_obs + 1)
    (text,) = texts(checking._successors("E", wrong))
    assert "within an episode info['final_observation'] is not the observ" in text


def test_numbers():
    steps = timesteps()
    steps.next_obs[3, 2] = np.nan
    stuck = at(1)
    played = checking._Played(steps, spoiled=np.arange(T) >= 4, stuck=stuck)
    assert texts(checking._numbers("E", played)) == [
        "error: E: observation is nan after step 3 of environment 2",
        "error: E: the state has NaN after step 4",
        "error: E: no action is legal at step 1 of environment 0",
    ]


def test_states_beyond_their_number():
    class Place(Counter):
        def observation_space(self, params):
            return spaces.Discrete(3)

        def observe(self, key, state, action, params):
            return state.time

    (text,) = texts(envs.check(Place(), steps=10))
    assert text == "error: Place: an observation is 3, its space has 3 states"


def test_negative_steps_are_refused():
    with pytest.raises(ValueError, match="steps=-1: must be >= 0"):
        envs.check(Counter(), steps=-1)
