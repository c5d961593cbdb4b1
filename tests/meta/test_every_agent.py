"""Agents of every kind are tuned: their meta-gradients against scores written out."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, networks, replay
from rljax.envs.wrappers import EpisodeStatistics
from rljax.learners import actor_critic, on_policy
from rljax.meta import Bounded, LogHorizon, Settings, tune
from rljax.meta.critics import critic_config
from rljax.networks import recurrent
from rljax.running import rollout as playing
from rljax.running import train
from rljax.types import (
    Box,
    Discrete,
    ObsSpec,
    Rollout,
    Spec,
    TimeStep,
    TrainState,
)

from .test_tuning import KEYS, at, gamma_at, key_of, numbers, run_updates

T, N = 6, 3
GAMMA = LogHorizon(0.0, 0.999)
REPLAY = dict(capacity=72, batch_size=16, warmup_steps=16)
SEQUENCES = dict(memory_size=4, sequence_length=3)


class Kind(NamedTuple):
    """An agent and how small it is."""

    agent: str
    config: dict[str, Any]
    env: str = "Pendulum-v1"


KINDS = {
    "sac": Kind("sac", REPLAY | dict(num_updates=2)),
    "sac discrete": Kind("sac", REPLAY | dict(num_updates=2), "CartPole-v1"),
    "td3": Kind("td3", REPLAY),
    "mpo": Kind("mpo", REPLAY | dict(num_updates=2, num_samples=3)),
    "mpo discrete": Kind("mpo", REPLAY | dict(num_updates=2), "CartPole-v1"),
    "awr": Kind(
        "awr",
        dict(capacity=72, batch_size=6, num_minibatches=2, sequence_length=5),
        "CartPole-v1",
    ),
    "ppo_rnn": Kind(
        "ppo_rnn", SEQUENCES | dict(num_epochs=2, num_minibatches=2), "CartPole-v1"
    ),
    "r2d2": Kind(
        "r2d2", REPLAY | SEQUENCES | dict(batch_size=4, burn_in=2), "CartPole-v1"
    ),
    "apg": Kind(
        "apg", dict(num_minibatches=2, num_epochs=1, activation="tanh"), "drift"
    ),
}
OUTER = dict(outer_gamma=0.97, outer_lambda=0.8, outer_value_cost=0.3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drift:
    """A point that drifts, in the dtype of its noise; the time limit is 4 steps."""

    spec = Spec(
        obs=ObsSpec.array((2,)),
        action=Box(shape=(1,), low=(-1.0,), high=(1.0,)),
        max_steps=4,
        differentiable=True,
    )

    @property
    def max_steps(self):
        return self.spec.max_steps

    def for_evaluation(self, state):
        return self

    def reset(self, key, num_envs):
        place = jax.random.normal(key, (num_envs, 2))
        return (place, jnp.zeros(num_envs, jnp.int32)), place

    def draw(self, key, length, num_envs):
        return jax.random.normal(key, (length, num_envs, 2))

    def step(self, noise, state, action):
        place, time = state
        new = 0.9 * place + 0.3 * action * (1.0 - 0.2 * action) + 0.05 * noise
        reward = -jnp.sum(jnp.square(new), axis=-1) - 0.1 * action[:, 0]
        over = time + 1 >= 4
        obs = jnp.where(over[:, None], noise, new)
        timestep = TimeStep(
            obs=obs,
            reward=reward,
            terminated=jnp.zeros_like(over),
            truncated=over,
            next_obs=new,
            info={"episode_return": reward, "episode_length": time + 1},
        )
        return (obs, jnp.where(over, 0, time + 1)), timestep


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Unchecked(EpisodeStatistics):
    """An environment with statistics of its own; nothing looks at its float64."""

    def reset(self, key, num_envs):
        return self.env.reset(key, num_envs)

    def step(self, noise, state, action):
        return self.env.step(noise, state, action)


ENVS = {name: envs.make(name) for name in ("CartPole-v1", "Pendulum-v1")}
ENVS["drift"] = Unchecked(Drift())


class Case(NamedTuple):
    """A tuned agent after some updates."""

    kind: Kind
    spec: Spec
    module: Any
    past: Any


def config_of(kind):
    config = agents.get(kind.agent).Config(gamma=0.9)
    if hasattr(config, "anneal"):  # a rate in float32 would be no float64
        config = dataclasses.replace(config, anneal=False)
    sizes = dict(num_envs=N, rollout_length=T, hidden_sizes=(8,), total_steps=10_000)
    sizes["learning_rate"] = 0.1  # large slopes, of which differences tell more digits
    return dataclasses.replace(config, **sizes | kind.config)


def random_rollouts(env, agent, config, number):
    """`[number, T, N, ...]` of random numbers; episodes end in both ways."""
    rng = np.random.default_rng(0)
    spec = env.spec
    obs = rng.normal(size=(number, T + 1, N, *spec.obs_shape))
    ends = rng.random((2, number, T, N)) < 0.15
    action = (
        rng.integers(2, size=(number, T, N), dtype=np.int32)
        if is_discrete(spec)
        else rng.uniform(-1.9, 1.9, size=(number, T, N, *spec.action.shape))
    )
    memory = jax.tree.map(
        lambda x: rng.uniform(-1.0, 1.0, size=(number, T, *x.shape)),
        agent.memory(config, N),
    )
    has_probs = agent.policy is not None and agent.policy_gradient == "rollout"
    return Rollout(
        obs=obs[:, :-1],
        action=action,
        reward=rng.normal(size=(number, T, N)),
        terminated=ends[0],
        truncated=ends[1],
        next_obs=obs[:, 1:] + ends[1][..., None],  # another one where it is cut
        extras=rng.uniform(-1.0, -0.4, size=(number, T, N)) if has_probs else (),
        memory=memory,
    )


def is_discrete(spec):
    return isinstance(spec.action, Discrete)


def played_rollouts(env, agent, config, number):
    """Of the environment, which can be run again."""
    env_state, obs = env.reset(jax.random.key(0), N)
    ts = TrainState(
        agent=jax.jit(functools.partial(agent.init, config))(jax.random.key(0)),
        env=env_state,
        obs=obs,
        memory=(),
        key=(),
        step=jnp.zeros((), jnp.int32),
    )
    unroll = functools.partial(
        playing.unroll,
        agent.act,
        env,
        config,
        memory=agent.memory,
        length=T,
        simulates=True,
    )
    step = jax.jit(lambda ts, key: unroll(ts, key=key)[:2])
    found = []
    for i in range(number):
        ts, rollout = step(ts, jax.random.key(i))
        found.append(rollout)
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


@functools.cache
def case_of(name, steps):
    kind = KINDS[name]
    config, module = config_of(kind), agents.get(kind.agent)
    env = ENVS[kind.env]
    spec = env.spec
    if kind.agent != "apg":  # random rollouts are cut as they like
        spec = spec._replace(max_steps=1)
    agent = module.make(spec)
    settings = Settings(num_updates=steps, **OUTER)
    tuned = tune(agent, spec, {"gamma": GAMMA}, settings, env=env)
    init = functools.partial(tuned.init, config)
    number = steps + 2
    if agent.simulates:
        seen = played_rollouts(env, agent, config, number)
    else:
        seen = random_rollouts(env, agent, config, number)
    state = numbers(jax.eval_shape(init, jax.random.key(0)))
    past = run_updates(agent, tuned, config, settings, state, seen)
    return Case(kind=kind, spec=spec, module=module, past=past)


def of_actions(case, before, data_key):
    """The lesser of two critics of the outer discount, on a batch of the replay."""
    past, spec = case.past, case.spec
    config, settings, agent = past.config, past.settings, past.agent
    own = critic_config(settings, config)
    net = actor_critic.critics(spec, own, 2)
    draw_key, next_key, key = jax.random.split(data_key, 3)
    seen = replay.sample(before.agent.replay, draw_key, config.batch_size).windows
    discrete = is_discrete(spec)

    def all_values(params, obs):
        return net.apply(params, obs).min(axis=0)

    def value_of(params, obs, action):
        return net.apply(params, obs, action).min(axis=0)

    later = agent.policy(config, before.agent, seen.next_obs)
    if discrete:
        v_t = (
            later.probs * all_values(before.critic.target_params, seen.next_obs)
        ).sum(-1)
    else:
        drawn = later.sample(seed=next_key)
        v_t = value_of(before.critic.target_params, seen.next_obs, drawn)
    target = seen.reward[:, 0] + settings.outer_gamma * (1 - seen.terminated) * v_t
    rows = jnp.arange(config.batch_size)

    def score(state):
        now = agent.policy(config, state, seen.obs)
        critics = case.module.critic(spec, config)
        if discrete:
            every = critics.apply(state.critic, seen.obs)
            q = every[:, rows, seen.action]
            value = now.probs * all_values(before.critic.params, seen.obs)
            value = value.sum(-1).mean()
        else:
            q = critics.apply(state.critic, seen.obs, seen.action)
            if case.kind.agent == "mpo":
                then = agent.policy(config, before.agent, seen.obs)
                actions = then.sample(seed=jax.random.clone(key), sample_shape=8)
                values = jnp.stack(
                    [value_of(before.critic.params, seen.obs, x) for x in actions]
                )
                ratio = jnp.exp(now.log_prob(actions) - then.log_prob(actions))
                value = (ratio * (values - values.mean(0))).mean()
            else:
                action = now.sample(seed=jax.random.clone(key))
                value = value_of(before.critic.params, seen.obs, action).mean()
        return 0.3 * 0.5 * jnp.mean((q - target) ** 2) - value

    return score


def one_by_one(net, params, obs, starts, memory, fresh):
    """Outputs and memories of steps in a row, in a Python loop."""
    outputs, memories = [], []
    for x, start in zip(obs, starts, strict=True):
        reset = functools.partial(jnp.where, start[:, None])
        memory = jax.tree.map(reset, fresh, memory)
        out, memory = net.apply(params, x, memory)
        outputs.append(out)
        memories.append(memory)
    return outputs, memories


def gae(rollout, v_tm1, v_t, gamma, lambda_):
    going_on = 1.0 - (rollout.terminated | rollout.truncated)
    adv, total = [], jnp.zeros(N)
    for t in reversed(range(T)):
        delta = rollout.reward[t] - v_tm1[t]
        delta += gamma * (1.0 - rollout.terminated[t]) * v_t[t]
        total = delta + gamma * lambda_ * going_on[t] * total
        adv.append(total)
    return jnp.stack(adv[::-1])


def of_recurrent_policy(case, before, rollout):
    past, spec = case.past, case.spec
    config, settings = past.config, past.settings
    own = critic_config(settings, config)
    net = recurrent.Recurrent(
        body=networks.body(spec, own),
        memory_cell=recurrent.cell(own),
        head=networks.ValueHead(),
    )
    fresh, starts = recurrent.fresh_memory(own, N), starts_of(rollout)
    values, memories = one_by_one(
        net, before.critic.params, rollout.obs, starts, before.critic.memory, fresh
    )
    next_values = [
        net.apply(before.critic.params, x, memory)[0]
        for x, memory in zip(rollout.next_obs, memories, strict=True)
    ]
    adv = gae(rollout, values, next_values, settings.outer_gamma, settings.outer_lambda)
    target = adv + jnp.stack(values)
    both = case.module.nets(spec, config)
    first = at(rollout.memory, 0)

    def score(state):
        policies, _ = one_by_one(
            both.actor, state.actor, rollout.obs, starts, first.actor, fresh
        )
        log_probs = [
            p.log_prob(a) for p, a in zip(policies, rollout.action, strict=True)
        ]
        ratio = jnp.exp(jnp.stack(log_probs) - rollout.extras)
        values, _ = one_by_one(
            both.critic, state.critic, rollout.obs, starts, first.critic, fresh
        )
        error = 0.5 * jnp.mean((jnp.stack(values) - target) ** 2)
        return 0.3 * error - jnp.mean(ratio * adv)

    return score


def of_recurrent_values(case, before, data_key):
    past, spec = case.past, case.spec
    config, settings = past.config, past.settings
    length = config.burn_in + config.sequence_length
    _, steps, _ = replay.sample_sequences(
        before.agent.replay, data_key, config.batch_size, length=length
    )
    net = case.module.network(spec, config)
    fresh = recurrent.fresh_memory(config, config.batch_size)
    starts, rows = starts_of(steps), jnp.arange(config.batch_size)

    def real(squashed):
        x = jnp.abs(squashed)
        u = (jnp.sqrt(1 + 4 * 1e-3 * (x + 1 + 1e-3)) - 1) / (2 * 1e-3)
        return jnp.sign(squashed) * (u**2 - 1)

    def own(params):
        out, _ = one_by_one(net, params, steps.obs, starts, at(steps.memory, 0), fresh)
        return real(jnp.stack(out))

    outer, _ = one_by_one(
        net, before.critic.target_params, steps.obs, starts, fresh, fresh
    )
    choice = own(before.agent.params).argmax(-1)
    targets, following = [None] * (length - 1), None
    for t in reversed(range(length - 1)):
        v = outer[t + 1][rows, choice[t + 1]]
        follows = steps.action[t + 1] == choice[t + 1]
        going_on = ~(steps.terminated[t] | steps.truncated[t])
        lambda_ = settings.outer_lambda * (follows & going_on)
        after = v if following is None else (1 - lambda_) * v + lambda_ * following
        discount = settings.outer_gamma * (1.0 - steps.terminated[t])
        targets[t] = following = steps.reward[t] + discount * after

    def score(state):
        q, total = own(state.params), 0.0
        for t in range(config.burn_in, length - 1):
            error = q[t][rows, steps.action[t]] - targets[t]
            scored = steps.terminated[t] | ~steps.truncated[t]
            total += jnp.sum(scored * error**2) / 2
        return total / ((length - 1) * config.batch_size)

    return score


def starts_of(steps):
    ended = steps.terminated | steps.truncated
    return jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]])


def of_rollout(case, before, rollout):
    past, spec = case.past, case.spec
    config, settings = past.config, past.settings
    outer = dataclasses.replace(config, gamma=settings.outer_gamma)
    adv, value = on_policy.advantages(
        spec, outer, before.critic.params, rollout=rollout, lambda_=0.8
    )

    def score(state):
        policy = on_policy.actor(spec, config).apply(state.actor, rollout.obs)
        ratio = jnp.exp(policy.log_prob(rollout.action) - rollout.extras)
        v = on_policy.critic(spec, config).apply(state.critic, rollout.obs)
        return 0.3 * 0.5 * jnp.mean((v - adv - value) ** 2) - jnp.mean(ratio * adv)

    return score


def of_simulation(case, before, rollout):
    """The agent's own return, at the outer discount and by the outer critic."""
    past = case.past
    outer = dataclasses.replace(past.config, gamma=past.settings.outer_gamma)
    bootstrap = before.agent._replace(target_critic=before.critic.params)

    def score(state):
        return -case.module.horizon_return(
            case.spec, outer, state.actor, bootstrap=bootstrap, rollout=rollout
        )

    return score


def outer_score(case, before, rollout, data_key):
    name = case.kind.agent
    if name in ("sac", "td3", "mpo"):
        return of_actions(case, before, data_key)
    if name == "r2d2":
        return of_recurrent_values(case, before, data_key)
    rows = {"ppo_rnn": of_recurrent_policy, "awr": of_rollout, "apg": of_simulation}
    return rows[name](case, before, rollout)


def score_after(case):
    """What the last rollout says of updates before it, as a function of discounts."""
    past = case.past
    steps, config = past.settings.num_updates, past.config

    @jax.jit
    def score(gammas, state, before, seen, key_data):
        for i in range(steps):
            # An update made again draws from what is in the replay now.
            if hasattr(state, "replay") and steps > 1:
                state = state._replace(replay=before.agent.replay)
            changed = dataclasses.replace(config, gamma=gammas[i])
            key = jax.random.split(key_of(key_data[i]), 4)[0]
            state, _ = past.agent.update(changed, state, at(seen, i), key)
        data_key = jax.random.split(key_of(key_data[steps]), 4)[1]
        return outer_score(case, before, at(seen, steps), data_key)(state)

    first = len(past.before) - 1 - steps
    seen, data = (jax.tree.map(lambda x: x[first:], y) for y in (past.seen, KEYS))
    data = data[: steps + 1]
    state = past.before[first].agent
    return lambda gammas: float(score(gammas, state, past.before[-1], seen, data))


ROWS = [
    pytest.param(name, steps, marks=[] if steps == fast else pytest.mark.slow)
    for name, fast in zip(KINDS, (0, 0, 1, 0, 0, 0, 1, 0, 0), strict=True)
    for steps in (1, 2, 5)
]


@pytest.mark.parametrize("name, steps", ROWS)
def test_tuned_discount_follows_finite_differences(name, steps, x64):
    """Of the agent's own updates, run again with another discount, and scored."""
    case = case_of(name, steps)
    past, score = case.past, score_after(case)
    raws = np.array([float(x.raw["gamma"]) for x in past.before])[-steps:]
    metrics = past.metrics[-1]
    np.testing.assert_allclose(metrics["meta_loss"], score(gamma_at(raws)), rtol=1e-6)
    # Networks see observations in float32: of a simulator's, which move with the
    # policy, differences tell fewer digits.
    step, rtol = (1e-2, 1e-2) if case.kind.agent == "apg" else (1e-5, 1e-4)
    up, down = (score(gamma_at(raws + h)) for h in (step, -step))
    want = (up - down) / (2 * step)
    assert abs(want) > 1e-8
    np.testing.assert_allclose(metrics["meta_gamma_gradient"], want, rtol=rtol)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_reverse_mode_agrees_with_forward_mode(name, x64):
    case = case_of(name, 2)
    past = case.past
    gradients = {}
    for mode in ("forward", "reverse"):
        settings = dataclasses.replace(past.settings, mode=mode)
        env = past.tuned.update.args[0].env
        tuned = tune(past.agent, case.spec, {"gamma": GAMMA}, settings, env=env)

        @jax.jit
        def step(config, state, rollout, data, tuned=tuned):
            return tuned.update(config, state, rollout, key_of(data))[1]

        data = KEYS[len(past.before) - 1]
        metrics = step(past.config, past.before[-1], at(past.seen, -1), data)
        gradients[mode] = metrics["meta_gamma_gradient"]
    np.testing.assert_allclose(gradients["forward"], gradients["reverse"], rtol=1e-6)


PPO = Kind("ppo", dict(num_epochs=2, num_minibatches=2), "CartPole-v1")
RUNS = {name: (kind, ()) for name, kind in KINDS.items()} | {
    "a2c reward target": (Kind("a2c", {}, "CartPole-v1"), ("reward", "target")),
    "ppo reward": (PPO, ("reward",)),
    "ppo target": (PPO, ("target",)),
    "impala target": (Kind("impala", {}, "CartPole-v1"), ("target",)),
}


@pytest.mark.parametrize(
    "name",
    [
        name
        if name == "a2c reward target"
        else pytest.param(name, marks=pytest.mark.slow)
        for name in RUNS
    ],
)
def test_chunks_and_seeds_beside_each_other_are_runs_of_their_own(name):
    """Chunks to the bit; seeds side by side to rounding."""
    kind, learned = RUNS[name]
    env, settings = ENVS[kind.env], Settings(num_updates=2)
    plain = agents.get(kind.agent).make(env.spec)
    fields = {} if learned else {"gamma": GAMMA}
    tuned = tune(plain, env.spec, fields, settings, learned=learned, env=env)
    config = dataclasses.replace(config_of(kind), learning_rate=1e-3)
    init = jax.jit(functools.partial(train.init, tuned, env, config))
    run = functools.partial(train.run, tuned, env, config)
    keys = jax.random.split(jax.random.key(3), 3)

    def as_data(ts):
        return ts._replace(key=jax.random.key_data(ts.key))

    whole, rows = jax.jit(lambda ts: run(ts, 6))(init(keys[0]))
    half = jax.jit(lambda ts: run(ts, 3))
    middle, first_rows = half(init(keys[0]))
    end, last_rows = half(middle)
    chex.assert_trees_all_equal(as_data(end), as_data(whole))
    joined = jax.tree.map(lambda *x: np.concatenate(x), first_rows, last_rows)
    chex.assert_trees_all_equal(joined, jax.device_get(rows))

    together, _ = jax.jit(jax.vmap(lambda key: run(init(key), 6)))(keys)
    chex.assert_trees_all_close(
        at(together.agent, 0), whole.agent, rtol=1e-3, atol=1e-5
    )
    moved = [np.asarray(x) for x in jax.tree.leaves(together.agent.raw)]
    assert any((x[0] != x[1]).any() for x in moved)


@pytest.mark.parametrize("name", ["sac", "td3", "mpo", "ppo_rnn", "r2d2", "apg"])
def test_a_field_without_a_path_is_named(name):
    """What only acting depends on; of all others one is stopped."""
    kind = KINDS[name]
    env, module = ENVS[kind.env], agents.get(kind.agent)
    agent = module.make(env.spec)

    def update(config, state, rollout, key):
        return agent.update(jax.lax.stop_gradient(config), state, rollout, key)

    fields = {"gamma": Bounded(0.1, 0.99)}
    tuned = tune(agent._replace(update=update), env.spec, fields, env=env)
    go = functools.partial(train.train, tuned, env, config_of(kind))
    with pytest.raises(ValueError, match="gamma: the meta-gradient is zero whatever"):
        jax.eval_shape(go, jax.random.key(0))


def test_the_outer_critics_memory_goes_on(x64):
    """From rollout to rollout, and no further than the episode."""
    case = case_of("ppo_rnn", 1)
    past = case.past
    own = critic_config(past.settings, past.config)
    net = recurrent.Recurrent(
        body=networks.body(case.spec, own),
        memory_cell=recurrent.cell(own),
        head=networks.ValueHead(),
    )
    fresh, kept = recurrent.fresh_memory(own, N), 0
    for i, before in enumerate(past.before[:-1]):
        rollout = at(past.seen, i)
        critic = before.critic
        _, memories = one_by_one(
            net, critic.params, rollout.obs, starts_of(rollout), critic.memory, fresh
        )
        ended = rollout.terminated[-1] | rollout.truncated[-1]
        for last, none, new in zip(
            memories[-1], fresh, past.before[i + 1].critic.memory, strict=True
        ):
            want = np.where(ended[:, None], none, last)
            np.testing.assert_allclose(new, want, rtol=1e-6)
        kept += (~ended).sum()
    assert 0 < kept < 2 * N


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Silent(Drift):
    """Without episode statistics: training adds them."""

    def step(self, noise, state, action):
        state, timestep = super().step(noise, state, action)
        return state, timestep._replace(info={})


def test_a_simulator_is_tuned_as_training_runs_it():
    apg, env = agents.get("apg"), Silent()
    two = Settings(num_updates=2)  # which are made again
    agent = tune(apg.make(env.spec), env.spec, {"gamma": GAMMA}, two, env=env)
    go = functools.partial(train.train, agent, env, config_of(KINDS["apg"]))
    _, metrics = jax.eval_shape(go, jax.random.key(0))
    assert "meta_gamma" in metrics
    with pytest.raises(ValueError, match="env=None: this agent runs its environments"):
        tune(apg.make(env.spec), env.spec, {"gamma": GAMMA})
    with pytest.raises(ValueError, match="condition=True: not of an agent that runs"):
        tune(
            apg.make(env.spec),
            env.spec,
            {"gamma": GAMMA},
            Settings(condition=True),
            env=env,
        )
    mute = apg.make(env.spec)._replace(repeat=None)
    with pytest.raises(ValueError, match="has no `repeat`, which acts there"):
        tune(mute, env.spec, {"gamma": GAMMA}, env=env)
