"""Wrappers of environments do to whole batches what plain loops do."""

import functools

import chex
import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import spaces
from gymnax.environments.environment import Environment, EnvParams, EnvState

from rljax import agents, envs
from rljax.envs import wrappers
from rljax.meta import maml
from rljax.networks import distributions
from rljax.running import rollout, train
from rljax.running.evaluate import evaluate

from .. import probe_envs
from ..running.test_train import random, scripted

N, T = 3, 40


@jax.jit
def run_actions(env, key, actions):
    reset_key, draw_key = jax.random.split(key)
    state, obs = env.reset(reset_key, N)
    noises = env.draw(draw_key, len(actions), N)
    end, steps = jax.lax.scan(
        lambda state, x: env.step(x[0], state, x[1]), state, (noises, actions)
    )
    return obs, end, steps


def play(env, key, actions):
    """First observation, last state, and `TimeStep`s `[T, N]` of given actions."""
    return jax.device_get(run_actions(env, key, actions))


@functools.partial(jax.jit, static_argnames="num_envs")
def reset(env, seed, num_envs=N):
    return env.reset(jax.random.key(seed), num_envs)


@jax.jit
def one_step(env, seed, state):
    """With action 0."""
    noise = jax.tree.map(lambda x: x[0], env.draw(jax.random.key(seed), 1, N))
    return env.step(noise, state, jnp.zeros(N, int))


def coin_flips():
    return np.random.default_rng(1).integers(2, size=(T, N))


def cartpoles(**options):
    """The same episodes whatever the options, some cut and some ended."""
    env = envs.make("CartPole-v1", max_steps_in_episode=20, **options)
    return env, *play(env, jax.random.key(2), coin_flips())


@pytest.fixture(scope="module")
def plain():
    return cartpoles()[1:]


def seen(plain):
    """All observations acted on, `[T + 1, N, 4]`, float64; true successors; ends."""
    first, _, steps = plain
    obs = np.concatenate([first[None], steps.obs]).astype(float)
    done = np.asarray(steps.terminated | steps.truncated)
    assert steps.truncated.any() and steps.terminated.any()
    return obs, np.asarray(steps.next_obs, float), done


def test_observations_are_normalized_by_all_so_far(plain):
    obs, next_obs, _ = seen(plain)
    env, first, end, steps = cartpoles(normalize_obs=True)
    for t in range(T + 1):
        samples = obs[: t + 1].reshape(-1, 4)
        count = len(samples) + 1  # the start: mean 0 and variance 1, as one sample
        mean = samples.sum(axis=0) / count
        std = np.sqrt(((samples**2).sum(axis=0) + 1.0) / count - mean**2)
        got = first if t == 0 else steps.obs[t - 1]
        np.testing.assert_allclose(got, (obs[t] - mean) / std, rtol=2e-3, atol=2e-4)
        if t:
            want = (next_obs[t - 1] - mean) / std
            np.testing.assert_allclose(steps.next_obs[t - 1], want, 2e-3, 2e-4)
    assert end.statistics.count == count
    assert env.spec.obs_dtype == "float32"


def test_normalized_observations_are_clipped():
    env = envs.wrap(probe_envs.Counter(), normalize_obs=True)
    state, _ = reset(env, 0)
    far = wrappers.Statistics(
        mean=np.full(1, -50.0, np.float32),
        var=np.full(1, 1e-4, np.float32),
        count=np.float32(1e9),
    )
    _, step = one_step(env, 1, state._replace(statistics=far))
    np.testing.assert_array_equal(step.obs, np.full((N, 1), 10.0))


def test_statistics_of_flags_are_those_of_numbers():
    env = envs.make("Breakout-MinAtar", normalize_obs=True)
    state, obs = reset(env, 0)
    assert obs.dtype == jnp.float32 and state.statistics.mean.shape == (10, 10, 4)
    again = jax.jit(state.statistics.add)(np.ones((N, 10, 10, 4), np.float32))
    assert (np.asarray(again.mean) > np.asarray(state.statistics.mean)).all()


def test_rewards_are_scaled_by_the_spread_of_discounted_sums():
    env = envs.wrap(probe_envs.TwoPlaces(), normalize_rewards=0.9)
    actions = coin_flips()
    steps = play(env, jax.random.key(2), actions)[2]
    raw = play(env.env, jax.random.key(2), actions)[2]
    total, samples = np.zeros(N), [np.zeros(0)]
    for t in range(T):
        total = 0.9 * total + raw.reward[t].astype(float)
        samples.append(total)
        every = np.concatenate(samples)
        count = len(every) + 1
        var = ((every**2).sum() + 1) / count - (every.sum() / count) ** 2
        want = raw.reward[t] / np.sqrt(var)
        np.testing.assert_allclose(steps.reward[t], want, rtol=1e-4)
        total = total * ~(raw.terminated[t] | raw.truncated[t])
    assert raw.truncated.any() and (steps.reward != raw.reward).any()
    want = raw.info | {"reward": raw.reward}
    chex.assert_trees_all_equal(steps.info, want)  # true returns


def test_frames_are_stacked_within_an_episode(plain):
    obs, next_obs, done = seen(plain)
    env, first, _, steps = cartpoles(stack_frames=3)
    assert env.spec.obs_shape == (12,)
    for n in range(N):
        frames = [obs[0, n]] * 3
        np.testing.assert_array_equal(first[n], np.concatenate(frames))
        for t in range(T):
            frames = [*frames[1:], next_obs[t, n]]
            np.testing.assert_array_equal(steps.next_obs[t, n], np.concatenate(frames))
            if done[t, n]:
                frames = [obs[t + 1, n]] * 3
            np.testing.assert_array_equal(steps.obs[t, n], np.concatenate(frames))


def test_images_are_stacked_as_planes():
    env = envs.make("Breakout-MinAtar", stack_frames=2)
    _, obs = jax.eval_shape(functools.partial(reset, env), 0)
    assert obs.shape == (N, 10, 10, 8) == (N, *env.spec.obs_shape)
    assert obs.dtype == jnp.bool and env.spec.obs_dtype == "bool"


def test_the_time_is_a_fraction_of_the_limit(plain):
    obs, next_obs, done = seen(plain)
    env, first, _, steps = cartpoles(time_aware=True)
    assert env.spec.obs_shape == (5,)
    time = np.zeros(N)
    np.testing.assert_array_equal(first, np.c_[obs[0], time])
    for t in range(T):
        time = time + 1
        want = np.c_[next_obs[t], time / 20]
        np.testing.assert_allclose(steps.next_obs[t], want, rtol=1e-6)
        time = time * ~done[t]
        np.testing.assert_allclose(steps.obs[t], np.c_[obs[t + 1], time / 20], 1e-6)


def test_images_get_the_time_as_a_plane():
    env = envs.make("Breakout-MinAtar", time_aware=True)
    state, obs = reset(env, 0)
    _, step = one_step(env, 1, state)
    assert obs.shape == (N, 10, 10, 5) and obs.dtype == jnp.float32
    np.testing.assert_allclose(step.obs[..., -1], np.full((N, 10, 10), 1e-3), 1e-6)


def test_delayed_rewards_are_handed_out_together():
    """Every third step and at every end, none lost; the true ones are told beside."""
    env = envs.make("Pendulum-v1", max_steps_in_episode=7, delay_rewards=3)
    inner = env.env
    noise = env.draw(jax.random.key(1), 40, 2)

    def rewards(env):
        def step(state, noise):
            state, timestep = env.step(noise, state, jnp.zeros((2, 1)))
            ended = timestep.terminated | timestep.truncated
            told = timestep.info.get("reward", timestep.reward)
            return state, (timestep.reward, told, ended)

        start, _ = env.reset(jax.random.key(0), 2)
        return jax.device_get(jax.lax.scan(step, start, noise)[1])

    (delayed, told, ended), (true, _, _) = rewards(env), rewards(inner)
    np.testing.assert_array_equal(told, true)
    owed, waited = np.zeros(2), np.zeros(2, int)
    for t in range(40):
        owed, waited = owed + true[t], waited + 1
        due = ended[t] | (waited == 3)
        np.testing.assert_allclose(delayed[t], np.where(due, owed, 0.0))
        owed, waited = np.where(due, 0.0, owed), np.where(due, 0, waited)
    assert (delayed == 0).any() and ended.any()
    assert env.spec == inner.spec
    scaled = wrappers.NormalizeRewards(env, 0.9)
    np.testing.assert_array_equal(rewards(scaled)[1], true)  # of both together
    in_evaluation = env.for_evaluation(env.reset(jax.random.key(0), 2)[0])
    assert type(in_evaluation) is type(inner)  # of true rewards


def test_sticky_actions_repeat_the_last_one():
    env = envs.wrap(probe_envs.Target(), sticky_actions=0.3)  # shows the action taken
    wish = np.random.default_rng(1).uniform(size=(3000, N, 2)).astype(np.float32)
    steps = play(env, jax.random.key(2), wish)[2]
    np.testing.assert_array_equal(steps.next_obs, wish)  # one step: nothing to repeat

    class Going(probe_envs.Target):
        def step_env(self, key, state, action, params):
            *step, _, info = super().step_env(key, state, action, params)
            return *step, jnp.bool(False), info

    env = envs.wrap(Going(), sticky_actions=0.3)
    steps = play(env, jax.random.key(2), wish)[2]
    taken = steps.next_obs
    kept = (taken[1:] == taken[:-1]).all(axis=-1)
    new = (taken[1:] == wish[1:]).all(axis=-1)
    assert (kept ^ new).all()
    first = steps.truncated[:-1]  # of an episode
    assert new[first].all() and first.any()
    assert abs(kept[~first].mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / (~first).sum())


def test_the_limit_can_be_the_end_of_the_task(plain):
    first, _, want = plain
    env, obs, _, steps = cartpoles(terminal_limit=True)
    assert not steps.truncated.any()
    np.testing.assert_array_equal(steps.terminated, want.terminated | want.truncated)
    chex.assert_trees_all_equal(obs, first)
    rest = [s._replace(terminated=0, truncated=0) for s in (steps, want)]
    chex.assert_trees_all_equal(*rest)
    assert isinstance(env.for_evaluation(reset(env, 0)[0]), type(env))


@pytest.mark.parametrize("terminal_limit", [False, True])
def test_the_discounting_chain_ends_with_its_last_payment(terminal_limit):
    env = envs.make("DiscountingChain-bsuite", terminal_limit=terminal_limit)
    steps = play(env, jax.random.key(0), jnp.full((150, N), 4))[2]  # pays at the limit
    last = np.tile((np.arange(150) == 99)[:, None], (1, N))
    np.testing.assert_array_equal(steps.reward, last)
    np.testing.assert_array_equal(steps.terminated, last & terminal_limit)
    np.testing.assert_array_equal(steps.truncated, last & (not terminal_limit))


ALL = dict(
    terminal_limit=True,
    normalize_obs=True,
    normalize_rewards=0.9,
    stack_frames=2,
    time_aware=True,
    sticky_actions=0.1,
)


@pytest.fixture(scope="module")
def trained():
    """Of an agent that learns nothing: only the environment has a state."""
    env = envs.make("CartPole-v1", **ALL)
    config = agents.get("ppo").Config(num_envs=4, rollout_length=16)
    agent = scripted(random)
    ts = jax.jit(train.init, static_argnums=0)(agent, env, config, jax.random.key(0))
    run = jax.jit(train.run, static_argnums=(0, 4))
    return env, config, ts, lambda ts, n: run(agent, env, config, ts, n)


def test_statistics_are_part_of_what_a_run_goes_on_from(trained):
    *_, ts, run = trained
    whole, _ = run(ts, 2)
    half, _ = run(ts, 1)
    again, _ = run(half, 1)
    plain = jax.tree.map(
        lambda x: jax.random.key_data(x) if x.dtype == whole.key.dtype else x,
        (whole, again),
    )
    chex.assert_trees_all_close(*plain, rtol=1e-5, atol=1e-7)  # of two programs
    statistics = whole.env.env.env.statistics  # inside time and frames
    assert float(statistics.count) == 1 + 4 + 2 * 16 * 4


def test_evaluation_takes_the_statistics_as_they_are(trained):
    env, config, ts, run = trained
    ts, _ = run(ts, 2)
    frozen = env.for_evaluation(ts.env)
    inner = frozen.env.env
    assert isinstance(inner, wrappers.NormalizeObservations)
    assert isinstance(inner.env, wrappers.StickyActions)  # no NormalizeRewards
    statistics = jax.device_get(ts.env.env.env.statistics)
    chex.assert_trees_all_equal(inner.frozen, statistics)
    (state, obs), (_, raw) = reset(inner, 5), reset(inner.env, 5)
    want = (np.asarray(raw) - statistics.mean) / np.sqrt(statistics.var)
    np.testing.assert_allclose(obs, want, rtol=1e-3, atol=1e-5)
    state, _ = one_step(inner, 1, state)
    chex.assert_trees_all_equal(state.statistics, statistics)

    @jax.jit
    def play_on(ts):
        return evaluate(scripted(random), env, config, ts, jax.random.key(0), 8)

    result = play_on(ts)
    np.testing.assert_array_equal(result.returns, result.lengths)  # true rewards


def test_statistics_have_no_derivative():
    def total(batch):
        return sum(x.sum() for x in wrappers.Statistics.start((2,)).add(batch))

    slope = jax.jit(jax.grad(total))(np.full((N, 2), 3.0, np.float32))
    np.testing.assert_array_equal(slope, 0.0)


def test_normalized_runs_have_derivatives():
    env = envs.wrap(probe_envs.Slide(), normalize_obs=True, normalize_rewards=0.9)

    def total(scale):
        ts = train.TrainState(
            (), *env.reset(jax.random.key(0), 2), (), (), jnp.int32(0)
        )
        agent = scripted(
            lambda config, state, memory, obs, key, explore: (-obs * 0.1, memory, ())
        )._replace(simulates=True, memory=lambda config, num_envs: ())
        old = rollout.unroll(
            agent.act,
            env,
            (),
            ts,
            memory=agent.memory,
            simulates=agent.simulates,
            key=jax.random.key(1),
            length=6,
        )[1]
        new = rollout.simulate(old, lambda obs, extras: -obs * scale)
        return new.reward.sum(), (old, new)

    (_, (old, new)), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(0.1)
    chex.assert_trees_all_close(old.reward, new.reward, rtol=1e-5)
    assert jnp.isfinite(slope) and slope != 0.0


@struct.dataclass
class CornerState(EnvState):
    place: jax.Array


class Corner(Environment):
    """Four actions, of which only those up to the place, 0 to 3, are legal.

    The place drifts on by 1 a step; the reward is the action, -100 if it was illegal.
    """

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=6)

    def action_space(self, params):
        return spaces.Discrete(4)

    def action_mask(self, state, params):
        return jnp.arange(4) <= state.place

    def reset_env(self, key, params):
        place = jax.random.randint(key, (), 0, 4)
        state = CornerState(time=jnp.zeros((), jnp.int32), place=place)
        return self.observe(state), state

    def step_env(self, key, state, action, params):
        reward = jnp.where(action <= state.place, action, -100).astype(jnp.float32)
        state = CornerState(time=state.time + 1, place=(state.place + 1) % 4)
        return self.observe(state), state, reward, jnp.bool(False), {}

    def observe(self, state):
        return jnp.float32(state.place)[None]


@pytest.mark.parametrize(
    "options", [{}, dict(normalize_obs=True, stack_frames=2, time_aware=True)]
)
def test_masks_go_with_observations(options):
    env = envs.wrap(Corner(), **options)
    assert env.spec.action == envs.Discrete(4, masked=True)
    actions = np.zeros((T, N), int)
    obs, _, steps = play(env, jax.random.key(0), actions)
    bare = play(envs.wrap(Corner()), jax.random.key(0), actions)
    assert obs.obs.shape == (N, *env.spec.obs_shape) and steps.truncated.any()
    for got, place in (
        (obs, bare[0].obs[..., 0]),
        (steps.obs, bare[2].obs.obs[..., 0]),
        (steps.next_obs, bare[2].next_obs.obs[..., 0]),
    ):
        want = np.arange(4) <= place[..., None]
        np.testing.assert_array_equal(got.legal, want)
        assert got.legal.dtype == bool


def test_maml_refuses_masked_actions():
    with pytest.raises(ValueError, match="maml cannot mask actions"):
        maml.init(
            None, maml.Config(), lambda key: envs.wrap(Corner()), jax.random.key(0)
        )


MASKING = ("a2c", "awr", "impala", "mpo", "ppo", "reinforce", "sac", "trpo", "vmpo")


@pytest.mark.parametrize("name", agents.names())
def test_agents_take_legal_actions_only(name):
    module, env = agents.get(name), envs.wrap(Corner())
    if name not in MASKING:
        with pytest.raises(ValueError, match=r"cannot mask actions|continuous actions"):
            module.make(env.spec)
        return
    agent = module.make(env.spec)
    config = module.Config(num_envs=4, rollout_length=8, hidden_sizes=(8,))

    @jax.jit
    def act():
        state = agent.init(config, jax.random.key(0))
        _, obs = env.reset(jax.random.key(1), 200)
        sample = functools.partial(agent.act, config, state, (), obs, jax.random.key(2))
        return obs, sample(explore=True)[0], sample(explore=False)[0]

    obs, exploring, greedy = jax.device_get(act())
    place = obs.obs[:, 0]
    assert (exploring <= place).all() and (greedy <= place).all()
    assert len(np.unique(exploring)) == 4


def test_ppo_learns_with_a_mask():
    ppo, env = agents.get("ppo"), envs.wrap(Corner())
    config = ppo.Config(
        total_steps=10_000, num_envs=8, rollout_length=32, hidden_sizes=(16,)
    )
    agent = ppo.make(env.spec)

    @jax.jit
    def learn():
        ts, metrics = train.train(agent, env, config, jax.random.key(0))
        return evaluate(agent, env, config, ts, jax.random.key(1)).returns, metrics

    returns, metrics = learn()
    assert returns.min() >= 6 * 1.5 - 3 and jnp.isfinite(metrics["entropy"]).all()


def test_masked_policies_are_those_of_fewer_actions():
    logits, legal = np.array([1.0, 2.0, 3.0]), np.array([True, False, True])

    @jax.jit
    def both(logits):
        def entropy(logits):
            return distributions.masked(logits, legal).entropy()

        few = distrax.Categorical(logits[::2])
        probs = distributions.masked(logits, legal).probs
        slope = jax.grad(entropy)(logits)
        return probs[::2], few.probs, entropy(logits), few.entropy(), slope

    probs, few_probs, entropy, few_entropy, slope = jax.device_get(both(logits))
    np.testing.assert_allclose(probs, few_probs, rtol=1e-6)
    np.testing.assert_allclose(entropy, few_entropy, rtol=1e-6)
    assert np.isfinite(slope).all() and slope[1] == 0.0


def test_masks_need_gymnaxs_step_and_discrete_actions():
    class Masked(probe_envs.OwnStep):
        def action_mask(self, state, params):
            return jnp.ones(2, bool)

    class Continuous(probe_envs.Target):
        def action_mask(self, state, params):
            return jnp.ones(2, bool)

    class Short(probe_envs.Counter):
        def action_mask(self, state, params):
            return jnp.ones(3, bool)

    with pytest.raises(ValueError, match="action_mask needs gymnax's own step"):
        envs.wrap(Masked())
    with pytest.raises(ValueError, match="action_mask needs Discrete actions"):
        envs.wrap(Continuous())
    with pytest.raises(ValueError, match=r"expected bool\[2\]"):
        envs.wrap(Short())


def test_vmapped_runs_have_statistics_of_their_own():
    env = envs.make("CartPole-v1", normalize_obs=True)

    def statistics(key):
        state, _ = env.reset(key, N)
        frozen = env.for_evaluation(state)
        return frozen.reset(jax.random.key(9), N)[0].statistics.mean

    @jax.jit
    def both():
        keys = jax.random.split(jax.random.key(0), 2)
        return jax.vmap(statistics)(keys), statistics(keys[1])

    means, alone = jax.device_get(both())
    assert (means[0] != means[1]).all()
    np.testing.assert_allclose(means[1], alone, rtol=1e-6)
