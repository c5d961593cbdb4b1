"""Environments agree with gymnax step by step and hand out true successors."""

import dataclasses
import functools

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from gymnax.wrappers.purerl import FlattenObservationWrapper, StickyActionWrapper

from rljax import envs
from rljax.types import Box, Discrete

from .. import probe_envs

NAMES = [name for name in envs.names() if name != "MNISTBandit-bsuite"]  # downloads
N = 3


def random_actions(action, key, length):
    if isinstance(action, Discrete):
        return jax.random.randint(key, (length, N), 0, action.num_actions)
    low, high = (jnp.reshape(jnp.array(b), action.shape) for b in action[1:])
    return jax.random.uniform(key, (length, N, *action.shape), minval=low, maxval=high)


@functools.partial(jax.jit, static_argnames="draw")
def play(env, key, actions, draw=None):
    """First observation and `TimeStep`s `[T, N]` of given actions."""
    reset_key, draw_key = jax.random.split(key)
    state, obs = env.reset(reset_key, N)
    noises = (draw or env.draw)(draw_key, len(actions), N)

    def step(state, inputs):
        return env.step(inputs[0], state, inputs[1])

    state, timesteps = jax.lax.scan(step, state, (noises, actions))
    return obs, state, timesteps


def as_gymnax(env):
    """A `draw` with the keys that `gymnax.Environment.step` makes of its own."""
    gym, params = env.env.gym, env.env.params

    def draw(key, length, num_envs):
        keys = jax.random.split(key, (length, num_envs))
        pairs = jax.vmap(jax.vmap(jax.random.split))(keys)
        reset = jax.vmap(jax.vmap(lambda key: gym.reset_env(key, params)))
        obs, state = reset(pairs[:, :, 1])
        obs = obs.astype(env.spec.obs_dtype)
        return envs.Noise(key=pairs[:, :, 0], reset_obs=obs, reset_state=state)

    return draw


@jax.jit
def play_gymnax(env, key, actions):
    """The same by `gymnax.Environment.step`, with the same keys."""
    gym, params = env.env.gym, env.env.params
    reset_key, draw_key = jax.random.split(key)
    keys = jax.random.split(reset_key, N)
    obs, state = jax.vmap(gym.reset, in_axes=(0, None))(keys, params)

    def step(state, inputs):
        obs, state, *rest = jax.vmap(gym.step, in_axes=(0, 0, 0, None))(
            inputs[0], state, inputs[1], params
        )
        return state, (obs, *rest)

    keys = jax.random.split(draw_key, (len(actions), N))
    state, steps = jax.lax.scan(step, state, (keys, actions))
    return obs, state, steps


def types(tree):
    """Shapes, dtypes and weak types: what the cache of jit looks at."""
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.fixture(scope="module", params=NAMES)
def shapes(request):
    """The spec, and shapes: state and observation at first, state and steps after."""
    env = envs.make(request.param)

    def run(key):
        actions = random_actions(env.spec.action, key, 2)
        return env.reset(key, N)[0], *play(env, key, actions)

    return env.spec, *jax.eval_shape(run, jax.random.key(0))


def test_shapes_and_dtypes_follow_the_spec(shapes):
    spec, _, first_obs, _, ts = shapes
    obs_dtype = jnp.dtype(spec.obs_dtype)
    assert (first_obs.shape, first_obs.dtype) == ((N, *spec.obs_shape), obs_dtype)
    for obs in (ts.obs, ts.next_obs):
        assert (obs.shape, obs.dtype) == ((2, N, *spec.obs_shape), obs_dtype)
    for flag in (ts.terminated, ts.truncated):
        assert (flag.shape, flag.dtype) == ((2, N), jnp.bool)
    assert (ts.reward.shape, ts.reward.dtype) == ((2, N), jnp.float32)
    assert ts.info["episode_return"].dtype == jnp.float32
    assert ts.info["episode_length"].dtype == jnp.int32
    hash(spec)  # agents keep it in static places


def test_a_step_keeps_the_type_of_the_state(shapes):
    _, before, _, after, _ = shapes
    assert types(after) == types(before)  # else a second chunk compiles again


CAPPED = {  # time limits that cut some episodes and leave others to end
    "CartPole-v1": 20,
    "Breakout-MinAtar": 15,
    "Pendulum-v1": 50,
    "Acrobot-v1": 100,
}


@functools.cache  # jit caches by the identity of the gymnax object
def capped(name):
    env = envs.make(name, max_steps_in_episode=CAPPED[name])
    return env, random_actions(env.spec.action, jax.random.key(1), 300)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "Acrobot-v1" else ())
        for name in CAPPED
    ],
)
def test_steps_equal_gymnax(name):
    """Of discrete and continuous actions and flags; the slow one swings higher."""
    env, actions = capped(name)
    key = jax.random.key(2)
    first_obs, state, ts = play(env, key, actions, as_gymnax(env))
    gym_first, gym_state, gym_steps = play_gymnax(env, key, actions)
    obs, reward, terminated, truncated, info = gym_steps
    np.testing.assert_array_equal(first_obs, gym_first)
    # Two programs: sines may be rounded in two ways, and swings amplify that.
    tol = 1e-4 if name in ("Pendulum-v1", "Acrobot-v1") else 0.0
    close = functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol)
    close(ts.obs, obs)
    close(ts.next_obs, info["final_observation"])
    close(ts.reward, reward)
    np.testing.assert_array_equal(ts.terminated, terminated)
    np.testing.assert_array_equal(ts.truncated, truncated)
    jax.tree.map(close, state.env, gym_state)
    assert (terminated | truncated).sum() > N  # episodes ended, several times


def test_draw_resets_as_gymnax_with_keys_used_once():
    env, _ = capped("CartPole-v1")
    gym, params = env.env.gym, env.env.params

    @jax.jit
    def noise_and_gymnaxs():
        key = jax.random.key(0)
        noise = env.draw(key, 3, N)
        keys = jax.random.split(key, (2, 3, N))
        reset = jax.vmap(jax.vmap(gym.reset_env, (0, None)), (0, None))
        noise = noise._replace(key=jax.random.key_data(noise.key))
        return noise, jax.random.key_data(keys), reset(keys[1], params)

    noise, keys, (obs, state) = jax.device_get(noise_and_gymnaxs())
    np.testing.assert_array_equal(noise.key, keys[0])
    np.testing.assert_array_equal(noise.reset_obs, obs)
    jax.tree.map(np.testing.assert_array_equal, noise.reset_state, state)
    assert len(np.unique(keys.reshape(-1, 2), axis=0)) == 2 * 3 * N


def test_minatar_observations_are_planes_of_booleans():
    assert envs.make("Asterix-MinAtar").spec.obs_dtype == "bool"
    assert envs.make("CartPole-v1").spec.obs_dtype == "float32"
    gym, params = gymnax.make("Breakout-MinAtar")
    wrapped = envs.wrap(StickyActionWrapper(gym, 0.5), params)
    assert wrapped.spec.obs_dtype == "bool"


@pytest.mark.parametrize("probe", [probe_envs.Counter, probe_envs.OwnStep])
@pytest.mark.parametrize("ends", ["terminated", "truncated"])
def test_next_obs_is_the_true_successor(probe, ends):
    field = "terminate_at" if ends == "terminated" else "max_steps_in_episode"
    gym = probe()
    env = envs.wrap(gym, gym.default_params.replace(**{field: 3}))
    _, _, ts = play(env, jax.random.key(0), jnp.zeros((6, N), jnp.int32))
    after_reset = 0.0 if probe is probe_envs.Counter else -1.0
    np.testing.assert_array_equal(ts.next_obs[:, 0, 0], [1, 2, 3, 1, 2, 3])
    np.testing.assert_array_equal(
        ts.obs[:, 0, 0], [1, 2, after_reset, 1, 2, after_reset]
    )
    done = np.array([0, 0, 1, 0, 0, 1], bool)
    np.testing.assert_array_equal(ts._asdict()[ends][:, 0], done)
    other = "truncated" if ends == "terminated" else "terminated"
    assert not ts._asdict()[other].any()


def test_episode_statistics_count_like_a_loop():
    env, actions = capped("CartPole-v1")
    _, state, ts = jax.device_get(play(env, jax.random.key(0), actions))
    for n in range(N):
        total, length = 0.0, 0
        for t in range(300):
            total, length = total + ts.reward[t, n], length + 1
            assert ts.info["episode_return"][t, n] == total
            assert ts.info["episode_length"][t, n] == length
            if ts.terminated[t, n] or ts.truncated[t, n]:
                total, length = 0.0, 0
        assert (state.episode_return[n], state.episode_length[n]) == (total, length)


def test_a_nan_reward_spoils_its_own_episode_only():
    gym = probe_envs.Counter()
    params = gym.default_params.replace(nan_at=2, max_steps_in_episode=3)
    env = envs.wrap(gym, params)
    _, _, ts = play(env, jax.random.key(0), jnp.zeros((5, N), jnp.int32))
    returns = ts.info["episode_return"][:, 0]
    np.testing.assert_array_equal(returns, [1, np.nan, np.nan, 1, np.nan])


def test_actions_are_clipped_to_the_box():
    env = envs.wrap(probe_envs.Target())
    actions = jnp.array([[[-5.0, -5.0], [5.0, 5.0], [0.5, 1.5]]])
    _, _, ts = play(env, jax.random.key(0), actions)
    np.testing.assert_array_equal(
        ts.next_obs[0], [[-1.0, -1.0], [1.0, 3.0], [0.5, 1.5]]
    )


WITH_DERIVATIVES = {
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "PointRobot-misc",
    "Reacher-misc",
    "Swimmer-misc",
}


def test_the_spec_says_whose_steps_have_derivatives():
    specs = {name: envs.make(name).spec for name in NAMES}
    assert {n for n, spec in specs.items() if spec.differentiable} == WITH_DERIVATIVES
    inner, params = gymnax.make("Pendulum-v1")
    for gym in (inner, inner.with_transition_gradients()):  # of a wrapper: as it is
        wrapped = envs.wrap(FlattenObservationWrapper(gym), params)
        assert wrapped.spec.differentiable == gym.transition_gradients_enabled
        assert isinstance(wrapped.env.gym, FlattenObservationWrapper)
    assert not inner.transition_gradients_enabled


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "Pendulum-v1" else pytest.mark.slow)
        for name in sorted(WITH_DERIVATIVES)
    ],
)
def test_later_observations_have_derivatives_in_actions(name):
    """The slow ones are the other environments whose specs say that they have."""
    env = envs.make(name)

    @jax.jit
    def jacobian_of():
        actions = 0.01 * random_actions(env.spec.action, jax.random.key(0), 3)

        def later(first):
            actions_then = actions.at[0].set(first)
            return play(env, jax.random.key(1), actions_then)[2].next_obs[-1]

        return jax.jacfwd(later)(actions[0])

    jacobian = jax.device_get(jacobian_of())
    assert np.isfinite(jacobian).all()
    by_env = abs(jacobian).sum(axis=(1, 3))  # of observations and actions
    assert (np.diag(by_env) > 0).any()  # one reaches a goal, and is put elsewhere
    np.testing.assert_array_equal(by_env, np.diag(np.diag(by_env)))


def test_parameters_can_be_vmapped():
    env, actions = capped("CartPole-v1")

    def obs(gravity):
        params = env.env.params.replace(gravity=gravity)
        inner = dataclasses.replace(env.env, params=params)
        changed = dataclasses.replace(env, env=inner)
        return play(changed, jax.random.key(0), actions)[2].next_obs[:20]

    gravity = np.array([5.0, 20.0], np.float32)
    swept = jax.device_get(jax.jit(jax.vmap(obs))(gravity))
    alone = jax.jit(obs)
    np.testing.assert_allclose(alone(gravity[0]), swept[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone(gravity[1]), swept[1], rtol=1e-4, atol=1e-5)
    assert not np.allclose(swept[0], swept[1])


def test_parameters_are_leaves_of_the_environment():
    env = envs.make("CartPole-v1", gravity=12.0)
    assert 12.0 in jax.tree.leaves(env)
    assert jax.tree.map(lambda x: x, env) == env


def test_make_passes_parameters_and_arguments():
    env = envs.make("CartPole-v1", gravity=12.0, max_steps_in_episode=7)
    assert (env.env.params.gravity, env.max_steps) == (12.0, 7)
    minimal = envs.make("Breakout-MinAtar")
    full = envs.make("Breakout-MinAtar", use_minimal_action_set=False)
    assert minimal.spec.action == Discrete(3)
    assert full.spec.action == Discrete(6)
    assert envs.make("DeepSea-bsuite", size=5).spec.obs_shape == (5, 5)
    assert envs.make("Pendulum-v1").spec.action == Box((1,), (-2.0,), (2.0,))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("cartpole", {}, "unknown environment 'cartpole'; did you mean: CartPole-v1"),
        ("Breakout", {}, "Breakout-MinAtar"),
        ("qqq", {}, "did you mean: CartPole-v1, Pendulum-v1"),  # all of them
        ("CartPole-v1", {"gravty": 1.0}, "CartPole-v1 'gravty'; did you mean: gravity"),
        ("CartPole-v1", {"gravity": "1"}, "gravity='1' of CartPole-v1"),
        ("CartPole-v1", {"gravity": True}, "gravity=True"),
        ("CartPole-v1", {"gravity": None}, "gravity=None"),
        ("Asterix-MinAtar", {"use_minimal": False}, "use_minimal_action_set"),
        ("Pendulum-v1", {"scale_ob": True}, "did you mean: scale_obs"),
        (
            "Pendulum-v1",
            {"scale_obs": 1},
            "scale_obs=1: must be True or",
        ),
        ("CartPole-v1", {"normalize_obs": 1}, "normalize_obs=1: must be True or False"),
        ("CartPole-v1", {"time_aware": "x"}, "time_aware='x': must be True or False"),
        ("CartPole-v1", {"terminal_limit": 1}, "terminal_limit=1: must be True or"),
        ("DeepSea-bsuite", {"deterministic": "x"}, "expected True or False"),
        ("CartPole-v1", {"sticky_actions": 1.5}, "sticky_actions=1.5: must be in [0"),
        ("CartPole-v1", {"normalize_rewards": True}, "normalize_rewards=True: must be"),
        ("CartPole-v1", {"delay_rewards": 0}, "delay_rewards=0: must be an integer"),
        ("CartPole-v1", {"stack_frames": 0}, "stack_frames=0: must be an integer >= 1"),
        ("CartPole-v1", {"stack_frames": 2.0}, "stack_frames=2.0: must be an integer"),
        ("FrozenLake-misc", {"normalize_obs": True}, "FrozenLake-misc name states"),
        ("FrozenLake-misc", {"scale_obs": True}, "no finite bounds of observations"),
        ("CartPole-v1", {"scale_obs": True}, "CartPole-v1 has no finite bounds"),
        ("Breakout-MinAtar", {"scale_obs": True}, "no finite bounds of observations"),
    ],
)
def test_make_names_what_is_wrong(name, params, message):
    with pytest.raises(ValueError) as error:
        envs.make(name, **params)
    assert message in str(error.value)


def test_observations_can_be_scaled_by_their_bounds():
    plain, scaled = (
        envs.make("MountainCar-v0"),
        envs.make("MountainCar-v0", scale_obs=True),
    )

    @functools.partial(jax.jit, static_argnums=0)
    def observations(env):
        """First ones, and what 200 swings show, to the goal or to the limit."""
        state, obs = env.reset(jax.random.key(0), 50)

        def step(carry, noise):
            state, right = carry
            state, ts = env.step(noise, state, jnp.where(right, 2, 0))
            return (state, ts.obs[:, 1] >= 0), (ts.obs, ts.next_obs)

        noises = env.draw(jax.random.key(1), 200, 50)
        _, later = jax.lax.scan(step, (state, obs[:, 1] >= 0), noises)
        return obs, *later

    low, high = np.array([-1.2, -0.07]), np.array([0.6, 0.07])
    for x, want in zip(observations(scaled), observations(plain), strict=True):
        x = np.asarray(x)
        np.testing.assert_allclose(low + (x + 1) / 2 * (high - low), want, atol=1e-5)
        assert (np.abs(x) <= 1 + 1e-5).all()


def test_make_takes_numbers_of_any_kind():
    for gravity in (3, 3.0, np.float32(3), np.float64(3), np.array(3.0), jnp.array(3)):
        assert envs.make("CartPole-v1", gravity=gravity).env.params.gravity == 3.0


def test_registered_environments_can_be_made():
    gymnax.register("Counter-probe", probe_envs.Counter)
    assert "Counter-probe" in envs.names()
    assert envs.make("Counter-probe", terminate_at=3).env.params.terminate_at == 3


class NoArray(probe_envs.Counter):
    def observe(self, key, state, action, params):
        return {}


class NoSpace(probe_envs.Counter):
    def action_space(self, params):
        return spaces.Dict({"a": spaces.Discrete(2)})


def test_wrap_refuses_what_agents_cannot_use():
    with pytest.raises(ValueError, match="NoArray: .* observations without an array"):
        envs.wrap(NoArray())
    with pytest.raises(ValueError, match="NoSpace: action space .*, expected Discrete"):
        envs.wrap(NoSpace())
