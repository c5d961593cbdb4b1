"""Environments of other packages keep gymnax's contract; messages need no package."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, networks
from rljax.autodiff import per_transition_grad_norms
from rljax.envs import adapters, making, pictures, tasks
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
        "craftax/Craftax-Classic-Symbolic-v1", 10_000, own_craftax, steps=6, spoil=dead
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
    return importlib.util.find_spec(adapters.PACKAGES[package]) is None


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
    got = played.short.next_obs[:LIMIT, 0][..., : expected.shape[-1]]  # mask apart
    assert not played.short.terminated[:LIMIT, 0].any() and played.short.truncated[2, 0]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert not np.array_equal(played.short.obs[2, 0], played.short.next_obs[2, 0])


def test_ends_of_the_task_terminate(row, played):
    assert played.long.terminated.any()
    assert not played.long.truncated.any()
    if row.spoil is not None:
        assert played.long.terminated[0].all()
        assert not played.short.terminated[0].any()


def test_first_states_differ(row, played):
    """Between environments, and from one episode to the next."""
    starts = np.asarray(played.short.obs)[np.asarray(played.short.truncated)]
    assert len(np.unique(starts.reshape(len(starts), -1), axis=0)) > 1
    assert np.isfinite(np.asarray(played.short.reward, float)).all()


def test_training_goes_on_bit_for_bit(played, tmp_path):
    a2c = agents.get("a2c")
    config = a2c.Config(
        num_envs=2,
        rollout_length=2,
        total_steps=64,
        hidden_sizes=(4,),
        convolution=False,
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
    spec, obs = played.env.spec, played.short.next_obs[0]
    critic = networks.Critic(
        obs_ndim=len(spec.obs_shape), hidden_sizes=(4,), reading=spec.reading
    )
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
