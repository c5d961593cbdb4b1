"""R2D2: errors and priorities against a loop, its gradient, what it remembers."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import agents, envs
from rljax.replay import sum_tree
from rljax.running import train
from rljax.running.evaluate import evaluate
from rljax.running.rollout import unroll
from rljax.types import Discrete, ObsSpec, Rollout, Spec

from .. import compiled, probe_envs

N, T, ROWS, LIMIT = 3, 4, 12, 5
SPEC = Spec(ObsSpec.array((2,)), Discrete(3), max_steps=LIMIT)
r2d2 = agents.get("r2d2")
CONFIG = r2d2.Config(
    gamma=0.9,
    total_steps=1000,
    num_envs=N,
    rollout_length=T,
    batch_size=36,
    capacity=ROWS * N,
    warmup_steps=36,
    burn_in=2,
    sequence_length=5,
    n_step=3,
    hidden_sizes=(8,),
    memory_size=6,
    priority_exponent=0.8,
    priority_mix=0.7,
)
AGENT, NET = r2d2.make(SPEC), r2d2.network(SPEC, CONFIG)
one_step = jax.jit(NET.apply)


class Step(NamedTuple):
    obs: Any
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_obs: Any
    memory: Any

    @property
    def ended(self):
        return self.terminated or self.truncated


FRESH = (np.zeros(6), np.zeros(6))  # both states of the LSTM


def episodes(num_steps, seed=0):
    """Random steps of one environment; the memories are as if from older networks."""
    rng, steps, time = np.random.default_rng(seed), [], 0
    obs, memory = rng.normal(size=2), FRESH
    for _ in range(num_steps):
        time += 1
        next_obs, reward = rng.normal(size=2), rng.normal() * 5
        terminated, truncated = rng.random() < 0.15, time >= LIMIT
        action = int(rng.integers(3))
        steps.append(Step(obs, action, reward, terminated, truncated, next_obs, memory))
        obs, memory = next_obs, tuple(rng.normal(size=(2, 6)))
        if steps[-1].ended:
            obs, memory, time = rng.normal(size=2), FRESH, 0
    return steps


def stacked(*lists):
    """Lists of steps as a rollout, `[T, N, ...]`."""

    def column(name):
        rows = zip(*[[getattr(s, name) for s in steps] for steps in lists], strict=True)
        array = np.array(list(rows))
        return array.astype(np.float32) if array.dtype == float else array

    rollout = Rollout(**{name: column(name) for name in Step._fields}, extras=())
    return rollout._replace(memory=tuple(np.moveaxis(rollout.memory, 2, 0)))


def sequence(steps):
    return jax.tree.map(lambda x: x[:, 0], stacked(steps))


@pytest.fixture(scope="module")
def two_networks():
    init = jax.jit(lambda key: NET.init(key, np.zeros(2), FRESH))
    return init(jax.random.key(0)), init(jax.random.key(1))


def h(x):
    return np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + 1e-3 * x


def h_inverse(x):
    root = (np.sqrt(1 + 4e-3 * (np.abs(x) + 1 + 1e-3)) - 1) / 2e-3
    return np.sign(x) * (root**2 - 1)


def errors_by_a_loop(config, params, target_params, steps):
    def walk(params):
        memory, values = steps[0].memory, []
        for last, step in zip([None, *steps], steps, strict=False):
            if last is not None and last.ended:
                memory = FRESH
            q, memory = one_step(params, step.obs, memory)
            next_q, _ = one_step(params, step.next_obs, memory)
            values.append((np.array(q, float), np.array(next_q, float)))
        return values[config.burn_in :]

    own, target, errors = walk(params), walk(target_params), []
    steps = steps[config.burn_in :]
    for t, start in enumerate(steps):
        total, discount = 0.0, 1.0
        for k in range(t, min(t + config.n_step, len(steps))):
            total += discount * steps[k].reward
            discount *= 0.0 if steps[k].terminated else config.gamma
            if steps[k].ended:
                break
        best = own[k][1].argmax()  # by the online network
        total += discount * h_inverse(target[k][1][best])
        errors.append(h(total) - own[t][0][start.action])
    return np.array(errors)


def test_r2d2_errors_equal_a_loop(two_networks):
    @jax.jit
    def found(params, bootstrap_params, sequence):
        return r2d2.td_errors(
            SPEC,
            CONFIG,
            params,
            bootstrap_params=bootstrap_params,
            sequence=sequence,
        )

    kinds = set()
    for seed in range(20):
        steps = episodes(10, seed)[3:]  # from the middle of an episode, mostly
        got = found(*two_networks, sequence(steps))
        want = errors_by_a_loop(CONFIG, *two_networks, steps)
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
        kinds |= {(s.terminated, s.truncated, i < 2) for i, s in enumerate(steps[:-1])}
    assert len(kinds) >= 6  # ends of every kind, in the burn-in and after it


@pytest.mark.parametrize("kind", ["td_error", "grad_norm"])
def test_r2d2_priorities_equal_a_loop(two_networks, kind):
    """Of every sequence in a buffer that was written over more than once."""
    config = dataclasses.replace(CONFIG, priority=kind)
    steps = [episodes(7 * T, seed) for seed in range(N)]
    rollouts = [stacked(*(s[i : i + T] for s in steps)) for i in range(0, 7 * T, T)]
    params, target_params = two_networks
    state = jax.jit(AGENT.init)(config, jax.random.key(0))
    state = state._replace(params=params, target_params=target_params)
    observe = jax.jit(AGENT.observe)
    for rollout in rollouts:
        state = observe(config, state, rollout)
    new, _ = jax.jit(AGENT.update)(config, state, rollouts[-1], jax.random.key(2))

    def loss(params, sequence):
        errors = r2d2.td_errors(
            SPEC, config, params, bootstrap_params=target_params, sequence=sequence
        )
        return optax.l2_loss(errors).mean()

    norm = jax.jit(lambda *args: optax.tree.norm(jax.grad(loss)(*args)))
    want = np.zeros((ROWS, N))
    for first in range(7 * T - ROWS, 7 * T - 6):  # seven steps are there from it on
        for n in range(N):
            seen = steps[n][first : first + 7]
            sizes = np.abs(errors_by_a_loop(config, params, target_params, seen))
            score = 0.7 * sizes.max() + 0.3 * sizes.mean()
            if kind == "grad_norm":
                score = norm(params, sequence(seen))
            want[first % ROWS, n] = score**0.8
    got = sum_tree.values(new.replay.tree, jnp.arange(ROWS * N)).reshape(ROWS, N)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    assert (want > 0).sum() == 6 * N


def test_r2d2_gradient_is_the_semi_gradient_after_the_burn_in(two_networks):
    params, other = two_networks
    seen, start = sequence(episodes(7, seed=3)), CONFIG.burn_in
    ended = seen.terminated | seen.truncated
    assert not ended[: start + 1].any()  # what was before the burn-in still counts
    starts = np.concatenate([[False], ended[:-1]])
    walk = functools.partial(NET.apply, method="unroll")
    _, memories = jax.jit(walk)(
        params,
        seen.obs[:start],
        starts[:start],
        jax.tree.map(lambda x: x[0], seen.memory),
    )

    def total_error(params, bootstrap_params):
        return r2d2.td_errors(
            SPEC, CONFIG, params, bootstrap_params=bootstrap_params, sequence=seen
        ).sum()

    memory = jax.tree.map(lambda x: np.array(x)[-1], memories)

    @jax.jit
    @jax.grad
    def minus_q(params):
        q, _ = walk(params, seen.obs[start:], starts[start:], memory)
        return -q[np.arange(5), seen.action[start:]].sum()

    semi, rest = jax.jit(jax.grad(total_error, (0, 1)))(params, other)
    chex.assert_trees_all_close(semi, minus_q(params), rtol=1e-4, atol=1e-6)
    assert compiled.all_nonzero(rest)
    assert compiled.all_nonzero(semi)


def test_r2d2_target_keeps_its_derivative_through_the_burn_in(two_networks, x64):
    seen = sequence(episodes(7))
    assert not seen.terminated[:5].any() and seen.truncated[4]  # a target after burn-in
    double = functools.partial(
        jax.tree.map,
        lambda x: np.array(x, float) if x.dtype == np.float32 else x,
    )
    (params, other), seen = double(two_networks), double(seen)
    leaves, structure = jax.tree.flatten(other)
    rng = np.random.default_rng(0)
    step = structure.unflatten([rng.normal(size=x.shape) for x in leaves])

    def total_error(size):
        moved = jax.tree.map(lambda x, d: x + size * d, other, step)
        return r2d2.td_errors(
            SPEC, CONFIG, params, bootstrap_params=moved, sequence=seen
        ).sum()

    fn = jax.jit(jax.vmap(jax.value_and_grad(total_error)))
    (_, above, below), slopes = (np.array(x) for x in fn(np.array([0, 1e-5, -1e-5])))
    np.testing.assert_allclose(slopes[0], (above - below) / 2e-5, rtol=1e-6)


def test_r2d2_remembers_in_replay_what_it_did_in_acting():
    """With unchanged parameters the stored memories are those of the unrolled ones."""
    env = envs.wrap(probe_envs.Counter(), probe_envs.CounterParams(terminate_at=3))
    config = dataclasses.replace(CONFIG, burn_in=0, rollout_length=12, capacity=36)
    agent, net = r2d2.make(env.spec), r2d2.network(env.spec, config)

    @jax.jit
    def values(key):
        ts = train.init(agent, env, config, key)
        params = ts.agent.params
        _, rollout, _ = unroll(
            agent.act, env, config, ts, memory=agent.memory, key=key, length=12
        )

        def of_one(sequence):
            return r2d2.action_values(
                env.spec, config, params, burn_in_params=params, sequence=sequence
            )

        q, next_q = jax.vmap(of_one, in_axes=1, out_axes=1)(rollout)
        return rollout, q, next_q, net.apply(params, rollout.obs, rollout.memory)[0]

    rollout, q, next_q, at_acting = values(jax.random.key(0))
    np.testing.assert_allclose(q, at_acting, rtol=1e-5, atol=1e-6)
    rollout, q, next_q = jax.tree.map(np.array, (rollout, q, next_q))
    going_on = ~(rollout.terminated | rollout.truncated)[:-1]
    np.testing.assert_allclose(next_q[:-1][going_on], q[1:][going_on], rtol=1e-5)
    for part in rollout.memory:
        assert not part[1:][~going_on].any() and (~going_on).any()


def test_r2d2_scores_a_large_batch_of_sequences():
    config = dataclasses.replace(CONFIG, sampler="large_batch", batch_size=8)
    state = jax.jit(AGENT.init)(config, jax.random.key(0))
    rollout = stacked(*(episodes(T, n) for n in range(N)))
    state = jax.jit(AGENT.observe)(config, state, rollout)
    new, metrics = jax.jit(AGENT.update)(config, state, rollout, jax.random.key(1))
    assert new.replay.tree is None and jnp.isfinite(metrics["loss"])
    before, after = jax.tree.map(np.array, (state.params, new.params))
    changed = jax.tree.map(np.subtract, after, before)
    assert compiled.all_nonzero(changed)


@pytest.mark.slow
def test_r2d2_finds_the_values_that_only_memory_tells():
    """The bit seen first must be repeated after two steps that show nothing.

    To the errors by a loop this adds a whole training, on what only memory tells.
    """
    env = envs.make("MemoryChain-bsuite", memory_length=3)
    config = r2d2.Config(
        learning_rate=3e-3,
        gamma=0.5,
        epsilon_end=1.0,
        n_step=1,  # more of them would be off-policy
        total_steps=10_000,
        num_envs=8,
        capacity=2_000,
        batch_size=32,
        burn_in=2,
        sequence_length=6,
        warmup_steps=200,
        target_rate=0.1,
        hidden_sizes=(16,),
        memory_size=16,
    )
    agent = r2d2.make(env.spec)
    ts, _ = jax.jit(functools.partial(train.train, agent))(
        env, config, jax.random.key(0)
    )
    play = jax.jit(functools.partial(evaluate, agent, episodes=32))
    returns = play(env, config, ts, jax.random.key(1)).returns
    np.testing.assert_array_equal(returns, 1.0)
    # Observations are: time left, query, bit; gymnax shows the first one twice.
    net, obs = r2d2.network(env.spec, config), np.zeros((4, 2, 3))
    obs[:, :, 0] = np.array([[1, 1, 2 / 3, 1 / 3]]).T
    obs[:2, :, 2] = np.array([-1.0, 1.0])
    starts, fresh = np.zeros((4, 2), bool), agent.memory(config, 2)
    walk = jax.jit(functools.partial(net.apply, method="unroll"))
    q, _ = walk(ts.agent.params, obs, starts, fresh)
    want = np.zeros((4, 2, 2))
    want[:3] = h(np.array([1 / 8, 1 / 4, 1 / 2]))[:, None, None]
    want[3] = h(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    np.testing.assert_allclose(q, want, atol=0.05)
