"""Environments of other packages keep gymnax's contract; messages need no package."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces

from rljax import agents, envs, networks
from rljax.autodiff import per_transition_grad_norms
from rljax.envs import adapters, making, pictures, tasks
from rljax.envs.adapters.functional import (
    Adapter,
    AdapterParams,
    Functional,
    Step,
    box,
    planes,
    repeated,
)
from rljax.envs.wrappers import unmasked
from rljax.running import checkpoint, train
from rljax.types import Box

N, LIMIT = 3, 3


class Row(NamedTuple):
    """One environment of a package, and what is known of it."""

    name: str
    limit: float  # by default
    # The package's own reset, of a key, and step, of key, state and action; no limit.
    own: Callable[[], tuple[Callable[..., Any], Callable[..., Any]]]
    steps: int = 200  # within which random actions terminate an episode
    # Makes of the package's state one that the next step terminates.
    spoil: Callable[[Any, jax.Array], Any] | None = None
    params: dict[str, Any] = {}
    slow: bool = False


def own_pgx():
    import pgx

    env = pgx.make("minatar-breakout")

    def first(key):
        state = env.init(key)
        return state, state.observation

    def after(key, state, action):
        state = env.step(state, action, key)
        return state, state.observation

    return first, after


def own_navix():
    import navix

    env = navix.make("Navix-Empty-Random-5x5-v0", max_steps=1000)

    def first(key):
        timestep = env.reset(key)
        return timestep, timestep.observation

    def after(_, timestep, action):
        timestep = env.step(timestep, action)
        return timestep, timestep.observation

    return first, after


def own_xminigrid():
    import xminigrid

    env, params = xminigrid.make("MiniGrid-EmptyRandom-5x5", max_steps=1000)

    def first(key):
        timestep = env.reset(params, key)
        return timestep, timestep.observation

    def after(_, timestep, action):
        timestep = env.step(params, timestep, action)
        return timestep, timestep.observation

    return first, after


def own_jumanji():
    import jumanji

    env = jumanji.make("Snake-v1")

    def first(key):
        state, timestep = env.reset(key)
        return state, timestep.observation.grid

    def after(_, state, action):
        state, timestep = env.step(state, action)
        return state, timestep.observation.grid

    return first, after


def own_craftax():
    from craftax.craftax_env import make_craftax_env_from_name

    env = make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=False)
    params = env.default_params

    def first(key):
        obs, state = env.reset_env(key, params)
        return state, obs

    def after(key, state, action):
        obs, state, *_ = env.step_env(key, state, action, params)
        return state, obs

    return first, after


def own_brax():
    from brax import envs

    env = envs.get_environment("inverted_pendulum", backend="generalized")
    return lambda key: two(env.reset(key)), lambda _, s, a: two(env.step(s, a))


def own_playground():
    from mujoco_playground import registry

    env = registry.load("CartpoleBalance", config_overrides={"impl": "jax"})
    return lambda key: two(env.reset(key)), lambda _, s, a: two(env.step(s, a))


def two(state):
    return state, state.obs


def dead(state, now):
    return state.replace(player_health=jnp.where(now, 0, state.player_health))


def not_a_number(state, now):
    qpos = jnp.where(now, jnp.nan, state.data.qpos)
    return state.replace(data=state.data.replace(qpos=qpos))


ROWS = {
    "pgx": Row("pgx/minatar-breakout", 2500, own_pgx),
    "navix": Row(
        "navix/Navix-Empty-Random-5x5-v0", 100, own_navix, params={"one_hot": False}
    ),
    "xminigrid": Row(
        "xminigrid/MiniGrid-EmptyRandom-5x5",
        100,
        own_xminigrid,
        params={"one_hot": False},
    ),
    "jumanji": Row("jumanji/Snake-v1", 4000, own_jumanji),
    "craftax": Row(
        "craftax/Craftax-Classic-Symbolic-v1",
        10_000,
        own_craftax,
        steps=6,
        spoil=dead,
        slow=True,  # generates worlds: a minute to compile
    ),
    "brax": Row(
        "brax/inverted_pendulum",
        1000,
        own_brax,
        params={"backend": "generalized"},
        slow=True,
    ),
    "playground": Row(
        "playground/CartpoleBalance",
        1000,
        own_playground,
        steps=6,
        spoil=not_a_number,
        slow=True,
    ),
}


def missing(package: str) -> bool:
    return not adapters.is_installed(package)


def needs(package: str, *marks: pytest.MarkDecorator):
    skip = pytest.mark.skipif(missing(package), reason=f"{package} is not installed")
    # Packages warn of their own future in this and that.
    quiet = pytest.mark.filterwarnings("ignore")
    return pytest.param(package, marks=[skip, quiet, *marks])


@pytest.fixture(
    scope="module",
    params=[
        needs(package, *[pytest.mark.slow] * row.slow) for package, row in ROWS.items()
    ],
)
def row(request):
    return ROWS[request.param]


class Played(NamedTuple):
    """An environment, and two runs of it with the same keys."""

    env: Any
    key: jax.Array  # of the reset
    actions: jax.Array  # [T, N]
    noise: Any  # [T, N]
    short: Any  # TimeStep [T, N] with limit 3
    long: Any  # TimeStep [T, N] without a limit, spoiled at first


@pytest.fixture(scope="module")
def played(row):
    env = envs.make(row.name, **row.params)
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (row.steps, N)
    if isinstance(env.spec.action, Box):
        size = env.spec.action.shape
        actions = jax.random.uniform(keys[2], (*shape, *size), minval=-1.0)
    else:
        number = env.spec.action.num_actions
        actions = jax.random.randint(keys[2], shape, 0, number)

    @jax.jit
    def play(env, spoiled):
        state, _ = env.reset(keys[0], N)
        if row.spoil is not None:
            inner = jax.vmap(row.spoil, (0, None))(state.env.inner, spoiled)
            state = state._replace(env=state.env.replace(inner=inner))
        noise = env.draw(keys[1], row.steps, N)

        def step(state, inputs):
            return env.step(inputs[0], state, inputs[1])

        return noise, jax.lax.scan(step, state, (noise, actions))[1]

    noise, short = play(tasks.with_params(env, max_steps_in_episode=LIMIT), False)
    endless = tasks.with_params(env, max_steps_in_episode=row.steps + 1)
    _, long = play(endless, row.spoil is not None)
    return Played(
        env=env, key=keys[0], actions=actions, noise=noise, short=short, long=long
    )


def test_names_list_the_environment(row):
    package = row.name.partition("/")[0]
    assert row.name in [f"{package}/{x}" for x in adapters._adapter(package).names()]


def test_the_limit_is_promised(row, played):
    assert played.env.spec.max_steps == row.limit
    short = envs.make(row.name, max_steps_in_episode=LIMIT, **row.params)
    assert short.spec.max_steps == LIMIT


def test_nothing_is_to_be_said_against_it(row, played):
    found = envs.check(played.env, steps=0)
    assert [str(finding) for finding in found if finding.level != "note"] == []


def test_the_limit_truncates_and_nothing_else(played):
    times = played.short.info["episode_length"]
    np.testing.assert_array_equal(played.short.truncated, times == LIMIT)
    assert played.short.truncated.any()
    assert not (played.short.terminated & played.short.truncated).all()


def test_at_the_limit_the_successor_is_the_packages_next_step(row, played):
    """Of environment 0: the package goes on, beyond where a wrapper would reset."""
    first, after = row.own()
    keys = jax.random.split(played.key, N)
    plain = jax.random.wrap_key_data(jax.random.key_data(played.noise.key[:LIMIT, 0]))

    @jax.jit
    def by_hand(key, keys, actions):
        state, obs = first(key)
        seen = []
        for i in range(LIMIT):
            state, obs = after(keys[i], state, actions[i])
            seen.append(obs)
        return jnp.stack(seen)

    expected = by_hand(keys[0], plain, played.actions[:LIMIT, 0])
    got = unmasked(played.short.next_obs)[:LIMIT, 0]
    assert not played.short.terminated[:LIMIT, 0].any() and played.short.truncated[2, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    fresh = unmasked(played.short.obs)[2, 0]
    assert not np.array_equal(fresh, got[2])


def test_ends_of_the_task_terminate(row, played):
    assert played.long.terminated.any()
    assert not played.long.truncated.any()
    if row.spoil is not None:
        assert played.long.terminated[0].all()
        assert not played.short.terminated[0].any()


def test_first_states_differ(row, played):
    """Between environments, and from one episode to the next."""
    starts = np.asarray(unmasked(played.short.obs))[np.asarray(played.short.truncated)]
    assert len(np.unique(starts.reshape(len(starts), -1), axis=0)) > 1
    assert np.isfinite(np.asarray(played.short.reward, float)).all()


def test_training_goes_on_bit_for_bit(played, tmp_path):
    a2c = agents.get("a2c")
    config = a2c.Config(
        num_envs=2,
        rollout_length=2,
        total_steps=64,
        hidden_sizes=(4,),
        torso="mlp",
    )
    agent = a2c.make(played.env.spec)
    begin = jax.jit(lambda key: train.init(agent, played.env, config, key))
    go_on = jax.jit(lambda ts: train.run(agent, played.env, config, ts, 2)[0])
    half = go_on(begin(jax.random.key(1)))
    checkpoint.save(tmp_path, 1, half)
    restored = checkpoint.restore(tmp_path, begin(jax.random.key(2)))
    once, again = go_on(half), go_on(restored)
    for x, y in zip(jax.tree.leaves(once), jax.tree.leaves(again), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_gradient_norms_of_its_observations(played):
    spec, obs = played.env.spec, unmasked(played.short.next_obs)[0]
    critic = networks.Critic(networks.Body(spec.obs, hidden_sizes=(4,)))
    params = critic.init(jax.random.key(0), obs[0])

    @jax.jit
    def both(params, obs):
        def loss(params, x):
            return critic.apply(params, x) ** 2

        factored = per_transition_grad_norms(loss, params, obs, method="factored")
        return factored, per_transition_grad_norms(loss, params, obs, method="vmap")

    factored, by_vmap = both(params, obs)
    assert (by_vmap > 0).any()
    np.testing.assert_allclose(factored, by_vmap, rtol=1e-4, atol=1e-6)


def test_it_draws_itself(row, played, tmp_path):
    gym, params, _ = making.build(row.name, **row.params)
    _, state = jax.jit(gym.reset)(jax.random.key(0), params)
    path = tmp_path / "x.gif"
    pictures.animate(path, gym, params, states=[state] * 2, returns=np.zeros(2))
    assert path.read_bytes().startswith(b"GIF8")
    picture = gym.render(state, params)
    assert picture.std() > 0  # something is to be seen


# Parts of single packages.


@pytest.mark.parametrize(
    ("package", "option"),
    [
        ("jumanji", "time_limit"),
        ("navix", "max_steps"),
        ("xminigrid", "max_steps"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_packages_own_limit_is_a_truncation(package, option):
    if missing(package):
        pytest.skip(f"{package} is not installed")
    gym, params = adapters.make(ROWS[package].name, {option: LIMIT})

    @jax.jit
    def play(key):
        _, state = gym.reset_env(key, params)
        ends = []
        for _ in range(LIMIT):
            mask = getattr(gym, "action_mask", lambda *_: jnp.array([True]))
            action = jnp.argmax(mask(state, params))
            _, state, _, terminated, _ = gym.step_env(key, state, action, params)
            ends.append((terminated, gym.is_truncated(state, params)))
        return ends

    ends = [(bool(x), bool(y)) for x, y in play(jax.random.key(3))]
    assert ends == [(False, False)] * (LIMIT - 1) + [(False, True)]


@pytest.mark.skipif(missing("jumanji"), reason="jumanji is not installed")
@pytest.mark.filterwarnings("ignore")
class TestJumanji:
    def test_choices_that_share_a_mask_are_one_choice(self):
        gym, params = adapters.make("jumanji/Tetris-v0", {})
        obs, state = gym.reset_env(jax.random.key(0), params)
        legal = gym.action_mask(state, params)
        assert gym.action_space(params).n == 4 * 10 and legal.shape == (40,)
        assert set(obs) == {"grid", "tetromino"}
        # Rotation 2 at column 3, by Jumanji itself.
        own = gym.functional
        after = own.step(jax.random.key(0), state.inner, jnp.int32(23), params)
        import jumanji

        env = jumanji.make("Tetris-v0")
        by_hand, _ = env.step(state.inner.state, jnp.array([2, 3]))
        np.testing.assert_array_equal(after.obs["grid"], by_hand.grid_padded[:10, :10])

    def test_choices_without_a_mask_are_handed_on(self):
        gym, params = adapters.make("jumanji/RubiksCube-v0", {"time_limit": 7})
        assert gym.action_space(params).nvec == (6, 1, 3)
        assert params.max_steps_in_episode == 7
        assert not hasattr(gym, "action_mask")

    def test_observations_of_several_arrays(self):
        env = envs.make("jumanji/Maze-v0")
        _, obs = jax.jit(env.reset, static_argnums=1)(jax.random.key(0), 2)
        assert obs.obs["walls"].shape == (2, 10, 10) and obs.legal.shape == (2, 4)
        assert {leaf.name for leaf in env.spec.obs.leaves} >= {"walls"}

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("Cleaner-v0", "jumanji/Cleaner-v0 has several agents"),
            ("JobShop-v0", "jumanji/JobShop-v0 masks each of several choices"),
            (
                "Snak-v1",
                "unknown environment 'jumanji/Snak-v1'; did you mean: jumanji/",
            ),
        ],
    )
    def test_names_that_are_none(self, name, message):
        with pytest.raises(ValueError, match=message):
            envs.make(f"jumanji/{name}")


@pytest.mark.skipif(missing("pgx"), reason="pgx is not installed")
@pytest.mark.filterwarnings("ignore")
class TestPgx:
    def test_games_of_two_are_refused(self):
        with pytest.raises(ValueError, match="pgx/chess has 2 players: agents here"):
            envs.make("pgx/chess")

    def test_parameters_of_the_class(self):
        name = "pgx/minatar-breakout"
        env = envs.make(name, use_minimal_action_set=False, sticky_action_prob=0.0)
        assert env.spec.action.num_actions == 6
        with pytest.raises(ValueError, match="'sticky_prob'; did you mean: sticky_act"):
            envs.make(name, sticky_prob=0.1)
        with pytest.raises(ValueError, match=f"{name}: max_steps_in_episode=0: must"):
            envs.make(name, max_steps_in_episode=0)

    def test_names_of_the_package_are_near_matches(self):
        assert "pgx/2048" in envs.names(packages=True)
        with pytest.raises(ValueError, match="did you mean: .*pgx/minatar-breakout"):
            envs.make("minatar-breakout")


@pytest.mark.skipif(missing("navix"), reason="navix is not installed")
@pytest.mark.filterwarnings("ignore")
def test_navix_shows_planes_symbols_or_pixels():
    name = "navix/Navix-DoorKey-5x5-v0"
    specs = [
        envs.make(name).spec,
        envs.make(name, one_hot=False).spec,
        envs.make(name, observation_fn="rgb").spec,
    ]
    assert [spec.obs_shape for spec in specs] == [(5, 5, 21), (5, 5, 3), (40, 40, 3)]
    assert [spec.obs_dtype for spec in specs] == ["bool", "uint8", "uint8"]
    assert specs[1].reading.high[:3] == (10, 5, 3)
    with pytest.raises(ValueError, match="unknown observation_fn 'rbg'; did you mean"):
        envs.make(name, observation_fn="rbg")


@pytest.mark.skipif(missing("xminigrid"), reason="xminigrid is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [10, 20])
def test_the_limit_shapes_xminigrids_reward(limit):
    gym, params = adapters.make("xminigrid/MiniGrid-Empty-5x5", {})
    params = params.replace(max_steps_in_episode=limit)

    @jax.jit
    def play(params):
        _, state = gym.reset_env(jax.random.key(0), params)
        for action in (0, 0, 1, 0, 0):  # forward, forward, right, forward, forward
            _, state, reward, ended, _ = gym.step_env(
                jax.random.key(0), state, action, params
            )
        return reward, ended

    reward, ended = play(params)
    assert ended
    np.testing.assert_allclose(reward, 1 - 0.9 * 5 / limit, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(missing("brax"), reason="brax is not installed")
@pytest.mark.filterwarnings("ignore")
def test_gradients_pass_through_brax():
    env = envs.make("brax/inverted_pendulum", backend="generalized")
    apg = agents.get("apg")
    config = apg.Config(
        num_envs=2, rollout_length=4, total_steps=64, hidden_sizes=(4,), num_epochs=1
    )
    agent = apg.make(env.spec)
    begin = train.init(agent, env, config, jax.random.key(0))
    run = jax.jit(lambda ts: train.run(agent, env, config, ts, 2))
    end, metrics = run(begin)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
    before, after = jax.tree.leaves(begin.agent.actor), jax.tree.leaves(end.agent.actor)
    assert any((x != y).any() for x, y in zip(before, after, strict=True))
    assert not envs.make("brax/inverted_pendulum", backend="mjx").spec.differentiable


# What needs no package.


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(adapters, "is_installed", lambda package: False)


@pytest.mark.parametrize("package", adapters.PACKAGES)
def test_a_missing_package_is_named_with_its_command(nothing_installed, package):
    text = f"^{package}/Any needs {package}: pip install 'rljax-lab\\[{package}\\]', or"
    with pytest.raises(ValueError, match=text):
        envs.make(f"{package}/Any")
    assert not [name for name in envs.names(packages=True) if "/" in name]


def test_an_unknown_package():
    with pytest.raises(ValueError, match="'gym/X': unknown package 'gym'; known are: "):
        envs.make("gym/X")


def test_names_alone_import_no_package(monkeypatch):
    monkeypatch.setattr(adapters, "_adapter", None)
    assert "CartPole-v1" in envs.names()


class Broken:
    """An adapter whose package fails."""

    @staticmethod
    def names():
        return ["E"]

    @staticmethod
    def options(name):
        return ["speed"]

    @staticmethod
    def make(name, **arguments):
        raise TypeError("no such\nspeed")


def test_a_package_that_fails_gets_one_line(monkeypatch):
    monkeypatch.setattr(adapters, "is_installed", lambda package: package == "brax")
    monkeypatch.setattr(adapters, "_adapter", lambda package: Broken)
    with pytest.raises(ValueError, match="^brax/E: TypeError: no such$"):
        envs.make("brax/E", speed=3)


def test_a_package_that_cannot_be_imported(monkeypatch):
    def fail(name):
        raise RuntimeError("no GPU\nat all")

    monkeypatch.setattr(adapters, "is_installed", lambda package: True)
    monkeypatch.setattr(importlib, "import_module", fail)
    text = "^pgx is installed but cannot be imported: RuntimeError: no GPU$"
    with pytest.raises(ValueError, match=text):
        envs.make("pgx/2048")
    assert adapters.names() == []


def counting(**fields):
    """Counts to 5 and terminates there; the action is added to the count."""

    def step(key, state, action, params):
        state = state + 1 + action
        return Step(jnp.float32(state)[None], state, jnp.float32(1.0), state >= 5)

    return Functional(
        reset=lambda key, params: (jnp.zeros(1), jnp.int32(0)),
        step=step,
        action=spaces.Discrete(2),
        observation=box(0, 10, (1,), jnp.float32),
        params=AdapterParams(3),
        **fields,
    )


def test_a_functional_is_an_environment():
    gym = Adapter(
        "own/Count", counting(mask=lambda state: jnp.array([True, state < 3]))
    )
    assert envs.check(gym, steps=20) == []
    env = envs.wrap(gym)
    assert (env.spec.max_steps, env.spec.action.masked) == (3, True)
    assert not env.spec.differentiable
    assert envs.wrap(Adapter("own/Count", counting())).spec.action.masked is False
    smooth = Adapter("own/Count", counting(differentiable=True))
    assert envs.wrap(smooth).spec.differentiable


def test_a_repeated_action_ends_with_the_episode():
    step = counting().step

    def one(state, action):
        return step(None, state, action, None)

    after = repeated(one, jnp.int32(0), jnp.int32(0), times=3)
    assert (int(after.state), float(after.reward), bool(after.terminated)) == (3, 3, 0)
    after = repeated(one, jnp.int32(0), jnp.int32(1), times=9)
    assert (int(after.state), float(after.reward), bool(after.terminated)) == (6, 3, 1)


def test_planes():
    grid = jnp.array([[[1, 0], [2, 1]]], jnp.uint8)
    expected = [[[0, 1, 0, 1, 0], [0, 0, 1, 0, 1]]]
    np.testing.assert_array_equal(planes(grid, (3, 2)), expected)


# Pictures.


def red(state):
    return np.full((2, 3, 3), (10 * int(state), 0, 0), np.uint8)


def test_pictures_become_an_animation(tmp_path):
    from PIL import Image

    gym = Adapter("own/Count", counting(picture=red))
    states = [gym.reset_env(None, None)[1]]
    for _ in range(2):
        states.append(gym.step_env(None, states[-1], 0, None)[1])
    pictures.animate(
        tmp_path / "x.gif", gym, None, states=states, returns=np.arange(3.0)
    )
    with Image.open(tmp_path / "x.gif") as image:
        assert (image.n_frames, image.size) == (3, (240, 160))  # enlarged
        image.seek(2)
        np.testing.assert_array_equal(np.array(image.convert("RGB"))[0, 0], (20, 0, 0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "own/Count cannot draw itself: no method render"),
        (
            {"picture": lambda state: np.zeros((2, 2))},
            r"own/Count: render returns float64\[2, 2\], not uint8",
        ),
    ],
)
def test_no_picture_is_said(tmp_path, fields, message):
    gym = Adapter("own/Count", counting(**fields))
    assert pictures.can_draw(gym) == bool(fields)
    state = gym.reset_env(None, None)[1]
    with pytest.raises(ValueError, match=message):
        pictures.animate(
            tmp_path / "x.gif", gym, None, states=[state], returns=np.zeros(1)
        )
