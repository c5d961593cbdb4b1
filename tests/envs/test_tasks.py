"""Task distributions: drawn under vmap, known means, an optimum that nothing beats."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs
from rljax.envs import tasks


def play(env, key, actions):
    """`TimeStep`s `[T, N]` of given actions."""
    reset_key, draw_key = jax.random.split(key)
    state, _ = env.reset(reset_key, actions.shape[1])
    noises = env.draw(draw_key, *actions.shape[:2])

    def step(state, inputs):
        return env.step(inputs[0], state, inputs[1])

    return jax.lax.scan(step, state, (noises, actions))[1]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_tasks_can_be_drawn_under_vmap_and_differ(name):
    draw = tasks.tasks(name)

    @jax.jit
    def under_vmap_and_alone():
        def one(key):
            env = draw(key)
            actions = jnp.zeros((6, 2, *getattr(env.spec.action, "shape", ())), int)
            return env, play(env, jax.random.key(0), actions).reward

        keys = jax.random.split(jax.random.key(1), 3)
        return jax.vmap(one)(keys), one(keys[1])[1]

    (drawn, several), alone = jax.device_get(under_vmap_and_alone())
    np.testing.assert_allclose(several[1], alone, rtol=1e-5)
    assert np.isfinite(several).all()
    leaves = jax.tree.leaves(drawn)
    assert any(len(np.unique(leaf, axis=0)) == 3 for leaf in leaves)


def test_cartpoles_differ_in_length_and_force():
    """The pole's mass times its half length follows; a push goes either way."""
    draw, number = tasks.cartpole(), 400

    @jax.jit
    def several():
        keys = jax.random.split(jax.random.key(0), number)
        return jax.vmap(lambda key: draw(key).env.params)(keys)

    params = jax.device_get(several())
    np.testing.assert_allclose(params.polemass_length, params.masspole * params.length)
    length, force = params.length, abs(params.force_mag)
    for values, low, high in ((length, 0.1, 2.0), (force, 2.0, 20.0)):
        assert low <= values.min() and values.max() <= high
        error = (high - low) / (12 * number) ** 0.5  # of a uniform variable's mean
        assert abs(values.mean() - 0.5 * (low + high)) < 5 * error
        assert np.ptp(values) > 0.9 * (high - low)
    right = (params.force_mag > 0).mean()
    assert abs(right - 0.5) < 5 * 0.5 / number**0.5


def test_parameters_reach_the_environment_inside_its_wrappers():
    env = envs.make("Pendulum-v1", time_aware=True)
    heavy = tasks.with_params(env, m=3.0)
    assert type(heavy) is type(env) and heavy.spec == env.spec
    leaves, others = jax.tree.leaves(heavy), jax.tree.leaves(env)
    changed = [(x, y) for x, y in zip(leaves, others, strict=True) if x != y]
    assert changed == [(3.0, 1.0)]
    with pytest.raises(TypeError, match="mass"):
        tasks.with_params(env, mass=3.0)


@pytest.fixture(scope="module")
def table():
    """2 states, 3 actions, horizon 4."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(2), (2, 3))
    return tasks.TabularParams(
        transition=jnp.asarray(p, jnp.float32),
        reward=jnp.asarray(rng.normal(size=(2, 3)), jnp.float32),
        max_steps_in_episode=4,
    )


def test_the_tabular_environment_follows_its_table(table):
    env, n = envs.wrap(tasks.Tabular(2, 3), table), 3000
    assert env.spec.obs_shape == (2,) and env.spec.action.num_actions == 3
    actions = np.random.default_rng(0).integers(3, size=(8, n))
    steps = jax.jit(play)(env, jax.random.key(1), actions)
    np.testing.assert_array_equal(
        steps.terminated, np.tile((np.arange(8) % 4 == 3)[:, None], (1, n))
    )
    place = np.asarray(steps.next_obs).argmax(-1)
    before = np.asarray(steps.obs).argmax(-1)
    np.testing.assert_array_equal(before[3], 0)  # what is seen after an end: the start
    before = np.append(np.zeros((1, n), int), before[:-1], 0)
    for s, a in itertools.product(range(2), range(3)):
        here = (before == s) & (actions == a)
        count = here.sum()
        reward, arrived = np.asarray(steps.reward)[here], place[here]
        assert abs(reward.mean() - table.reward[s, a]) < 5 / count**0.5
        assert abs(reward.std() - 1) < 5 / count**0.5
        assert abs(arrived.mean() - table.transition[s, a, 1]) < 2.5 / count**0.5


def test_the_optimum_is_the_best_of_all_policies(table):
    """Of all that map time and state to actions, over a horizon of 3: 3^6 of them."""
    p, r = np.asarray(table.transition), np.asarray(table.reward)
    best = -np.inf
    for policy in itertools.product(range(3), repeat=6):
        value = np.zeros(2)
        for t in range(3):
            a = policy[2 * t], policy[2 * t + 1]
            value = np.array([r[s, a[s]] + p[s, a[s]] @ value for s in range(2)])
        best = max(best, value[0])
    np.testing.assert_allclose(tasks.tabular_optimum(table, 3), best, rtol=1e-5)


def test_returns_of_the_tabular_tasks():
    """experiments.md B12: 10.0 for a uniform policy, 21.84 for the best ones."""
    draw = tasks.tabular()

    def uniform(params):
        value = jnp.zeros(10)
        for _ in range(10):
            value = jnp.mean(params.reward + params.transition @ value, axis=1)
        return value[0]

    @jax.jit
    def best_and_uniform():
        def one(key):
            params = draw(key).env.params
            return tasks.tabular_optimum(params), uniform(params)

        return jax.vmap(one)(jax.random.split(jax.random.key(0), 4000))

    best, values = jax.device_get(best_and_uniform())
    assert abs(best.mean() - 21.84) < 5 * 0.04 * 2**0.5
    assert abs(values.mean() - 10.0) < 5 * values.std() / 4000**0.5


def test_defaults_of_the_tabular_environment_are_equal_chances():
    params = tasks.Tabular(3, 2).default_params
    np.testing.assert_allclose(params.transition, 1 / 3)
    assert dataclasses.asdict(params)["max_steps_in_episode"] == 10
