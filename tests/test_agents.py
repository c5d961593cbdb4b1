"""Every agent: targets, gradients, what changes in an update, and what it learns."""

import dataclasses
import functools
import itertools
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, train
from rljax.types import Rollout, Transition

from . import probe_envs

T, N = 8, 4  # as the case's config has it
only_dqn = pytest.mark.parametrize("case", ["dqn"], indirect=True)
only_ppo = pytest.mark.parametrize("case", ["ppo"], indirect=True)


# Contracts, for every agent.


@pytest.fixture(scope="module")
def update(case):
    return jax.jit(case.agent.update)


@pytest.fixture(scope="module")
def state(case):
    return jax.jit(case.agent.init)(case.config, jax.random.key(0))


@pytest.fixture(scope="module")
def rollout(case):
    """Random numbers: every third step terminates, every fourth is truncated."""
    rng = np.random.default_rng(0)
    step = np.arange(T * N).reshape(T, N)
    obs, next_obs = rng.normal(size=(2, T, N, *case.env.spec.obs_shape))
    num_actions = case.env.spec.action.num_actions
    return Rollout(
        obs=jnp.array(obs, jnp.float32),
        action=jnp.array(rng.integers(num_actions, size=(T, N)), jnp.int32),
        reward=jnp.array(rng.normal(size=(T, N)), jnp.float32),
        terminated=jnp.array(step % 3 == 0),
        truncated=jnp.array(step % 4 == 0),  # both at every twelfth
        next_obs=jnp.array(next_obs, jnp.float32),
        extras=(),
        memory=(),
    )


def with_other_next_obs(rollout, mask):
    next_obs = jnp.where(mask[..., None], rollout.next_obs + 3.0, rollout.next_obs)
    return rollout._replace(next_obs=next_obs)


def parameters(state):
    """The networks that are trained."""
    names = {"params", "actor", "critic"}.intersection(state._fields)
    return {name: getattr(state, name) for name in sorted(names)}


def learned(state):
    """All but the stored transitions; the optimiser shows what a sign hides."""
    return {k: v for k, v in state._asdict().items() if k != "replay"}


def differ(x, y):
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return any((a != b).any() for a, b in pairs)


def test_termination_cuts_the_bootstrap(case, update, state, rollout):
    other = with_other_next_obs(rollout, rollout.terminated)
    new, _ = update(case.config, state, rollout, jax.random.key(1))
    same, _ = update(case.config, state, other, jax.random.key(1))
    chex.assert_trees_all_equal(learned(new), learned(same))


@pytest.mark.parametrize("truncated", [True, False])
def test_truncation_does_not_cut_the_bootstrap(case, update, state, rollout, truncated):
    mask = ~rollout.terminated & (rollout.truncated == truncated)
    other = with_other_next_obs(rollout, mask)
    new, _ = update(case.config, state, rollout, jax.random.key(1))
    changed, _ = update(case.config, state, other, jax.random.key(1))
    assert differ(learned(new), learned(changed))


def test_an_update_changes_every_parameter(case, update, state, rollout):
    new, metrics = update(case.config, state, rollout, jax.random.key(1))
    for (path, old), leaf in zip(
        jax.tree.leaves_with_path(parameters(state)),
        jax.tree.leaves(parameters(new)),
        strict=True,
    ):
        assert (leaf != old).any(), jax.tree_util.keystr(path)
        assert jnp.isfinite(leaf).all()
    for name, value in metrics.items():
        assert value.shape == () and jnp.isfinite(value), name


def test_gradients_are_clipped(case, update, state, rollout):
    config = dataclasses.replace(case.config, max_grad_norm=1e-12)
    new, _ = update(config, state, rollout, jax.random.key(1))
    chex.assert_trees_all_close(parameters(new), parameters(state), atol=1e-5)


def test_an_update_depends_on_its_key(case, update, state, rollout):
    a, _ = update(case.config, state, rollout, jax.random.key(1))
    b, _ = update(case.config, state, rollout, jax.random.key(2))
    assert differ(learned(a), learned(b))


@pytest.mark.parametrize(
    "env_name",
    ["Breakout-MinAtar", "FourRooms-misc", "FrozenLake-misc", "Pendulum-v1"],
)
def test_trains_on_observations_and_actions_of_every_kind(case, env_name):
    env = envs.make(env_name)
    if env_name == "Pendulum-v1" and case.name == "dqn":
        pytest.skip("needs discrete actions")
    agent = case.module.make(env.spec)
    init = functools.partial(train.init, agent)
    ts = jax.eval_shape(init, env, case.config, jax.random.key(0))
    new, _ = jax.eval_shape(lambda ts: train.run(agent, env, case.config, ts, 2), ts)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), ts
    )


def test_acting(case, state):
    act = jax.jit(case.agent.act, static_argnums=5)
    obs = jax.random.normal(jax.random.key(3), (500, *case.env.spec.obs_shape))

    def actions(seed, explore):
        key = jax.random.key(seed)
        action, memory, _ = act(case.config, state, (), obs, key, explore)
        assert (action.shape, action.dtype) == ((500,), jnp.int32)
        assert memory == ()
        return action

    np.testing.assert_array_equal(actions(0, False), actions(1, False))
    assert (actions(0, True) != actions(1, True)).any()
    assert set(np.unique(actions(0, True))) == {0, 1}


def test_observing_alone_learns_nothing(case, state, rollout):
    new = case.agent.observe(case.config, state, rollout)
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    assert new.step == 0


# The table of agents.


def test_names_and_get():
    assert agents.names() == sorted(agents.names())
    for name in agents.names():
        assert agents.get(name).__name__ == f"rljax.agents.{name}"
    with pytest.raises(ValueError, match="unknown agent 'dqm'; did you mean: dqn?"):
        agents.get("dqm")
    with pytest.raises(ValueError, match="did you mean: dqn, ppo?"):
        agents.get("xyz")


def test_presets_are_valid_configs_of_existing_environments():
    for name in agents.names():
        for env_name in agents.get(name).PRESETS:
            assert env_name in envs.names()
        for env_name in ("anything", *agents.get(name).PRESETS):
            agents.config_for(name, env_name).validate()
        default = agents.get(name).Config()
        assert agents.config_for(name, "anything") == default
    assert agents.config_for("ppo", "Pendulum-v1") != agents.get("ppo").Config()


@pytest.mark.parametrize("name", agents.names())
def test_an_agent_reads_in_one_sitting(name):
    lines = Path(agents.get(name).__file__).read_text().splitlines()
    assert len(lines) < 250
    assert "https://" in " ".join(lines[:8])  # the paper comes first


BAD_VALUES = {
    "learning_rate": (-1.0, 0.0, math.nan, None),
    "gamma": (1.5, -0.1),
    "max_grad_norm": (0.0,),
    "lambda_": (2.0, -1.0),
    "clip_epsilon": (0.0, -0.2),
    "entropy_cost": (-0.01,),
    "epsilon_start": (1.5, -0.1),
    "epsilon_end": (1.5, -0.1),
    "epsilon_eval": (1.5, -0.1),
    "exploration_fraction": (0.0, 1.1),
    "total_steps": (0, 1e6),
    "num_envs": (0, -1, True, 2.0),
    "rollout_length": (0, True),
    "num_epochs": (0,),
    "num_minibatches": (0, 3),  # 3 does not divide 4 * 128
    "num_updates": (0,),
    "batch_size": (0, 32.0),
    "capacity": (0, 10_001),  # not a multiple of 10 * 1
    "warmup_steps": (0,),
    "target_period": (0,),
    "target_rate": (0.0, 1.5),
    "hidden_sizes": ((0,), (64, -1), (8.0,)),
    "activation": ("swosh", None),
}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        (name, field.name, value)
        for name in agents.names()
        for field in dataclasses.fields(agents.get(name).Config)
        for value in BAD_VALUES.get(field.name, ())
    ],
)
def test_bad_values_are_named(name, field, value):
    config = agents.get(name).Config(**{field: value})
    with pytest.raises(ValueError) as error:
        config.validate()
    assert str(error.value).startswith(f"{field}={value!r}: must ")


def test_every_number_is_checked():
    for name in agents.names():
        for field in dataclasses.fields(agents.get(name).Config):
            assert field.name in BAD_VALUES or field.type is bool, field.name


# DQN.


@pytest.fixture(scope="module")
def q_learner():
    """Spec, a config of plain Q-learning, two sets of parameters, transitions."""
    dqn, spec = agents.get("dqn"), envs.make("CartPole-v1").spec
    config = dqn.Config(gamma=0.9, hidden_sizes=(8,), double=False)
    net = dqn.network(spec, config)
    params, other = (
        net.init(jax.random.key(seed), jnp.zeros((1, 4))) for seed in (0, 1)
    )
    obs, next_obs = jax.random.normal(jax.random.key(2), (2, 16, 4))
    flags = np.array(list(itertools.product([False, True], repeat=2)) * 4).T
    batch = Transition(
        obs=obs,
        action=jnp.arange(16) % 2,
        reward=jnp.arange(16.0),
        terminated=jnp.array(flags[0]),
        truncated=jnp.array(flags[1]),
        next_obs=next_obs,
    )
    return dqn, spec, config, params, other, batch


def td_errors(q_learner, params, bootstrap_params, **changes):
    dqn, spec, config, *_, batch = q_learner
    config = dataclasses.replace(config, **changes)
    error = functools.partial(dqn.td_error, spec, config, params, bootstrap_params)
    return jax.vmap(error)(batch)


@pytest.mark.parametrize("double", [False, True])
def test_dqn_td_error_by_hand(q_learner, double):
    dqn, spec, config, params, other, batch = q_learner
    q, q_next = (
        np.array(dqn.network(spec, config).apply(params, x))
        for x in (batch.obs, batch.next_obs)
    )
    q_other = np.array(dqn.network(spec, config).apply(other, batch.next_obs))
    rows = np.arange(16)
    best = q_next.argmax(1) if double else q_other.argmax(1)
    assert (q_next.argmax(1) != q_other.argmax(1)).any()
    discount = np.where(batch.terminated, 0.0, 0.9)  # truncation does not cut
    target = np.array(batch.reward) + discount * q_other[rows, best]
    want = target - q[rows, np.array(batch.action)]
    got = td_errors(q_learner, params, other, double=double)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("double", [False, True])
def test_dqn_gradient_is_the_semi_gradient(q_learner, double):
    dqn, spec, config, params, _, batch = q_learner

    def total_error(params, bootstrap_params):
        return td_errors(q_learner, params, bootstrap_params, double=double).sum()

    def total_q(params):
        q = dqn.network(spec, config).apply(params, batch.obs)
        return q[jnp.arange(16), batch.action].sum()

    semi, rest = jax.jit(jax.grad(total_error, (0, 1)))(params, params)
    minus_q = jax.tree.map(jnp.negative, jax.grad(total_q)(params))
    chex.assert_trees_all_close(semi, minus_q, rtol=1e-4, atol=1e-6)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(rest))


def test_dqn_learns_from_the_target_network(q_learner):
    _, _, _, params, other, batch = q_learner
    own, moved = (td_errors(q_learner, params, p) for p in (params, other))
    np.testing.assert_array_equal((own == moved), batch.terminated)


@only_dqn
def test_dqn_update_uses_the_target_network(case, update, state, rollout):
    other = jax.tree.map(lambda x: x + 1.0, state.target_params)
    moved = state._replace(target_params=other)
    new, _ = update(case.config, state, rollout, jax.random.key(1))
    moved, _ = update(case.config, moved, rollout, jax.random.key(1))
    assert differ(moved.opt_state, new.opt_state)


@only_dqn
@pytest.mark.parametrize("rate", [0.25, 1.0])
def test_dqn_moves_the_target_network_each_period(case, update, state, rollout, rate):
    config = dataclasses.replace(case.config, target_rate=rate, learning_rate=0.1)
    for count in range(1, 9):
        before = state.target_params
        state, _ = update(config, state, rollout, jax.random.key(1))
        assert state.num_updates == count
        moves = rate if count % config.target_period == 0 else 0.0
        target = jax.tree.map(
            lambda old, new, moves=moves: old + moves * (new - old),
            before,
            state.params,
        )
        chex.assert_trees_all_close(state.target_params, target, rtol=1e-5, atol=1e-6)
        assert differ(before, state.target_params) == (
            count % config.target_period == 0
        )


@only_dqn
def test_dqn_stores_transitions(case, update, state, rollout):
    new, _ = update(case.config, state, rollout, jax.random.key(0))
    stored = jax.tree.map(lambda x: x[: T * N], new.replay.items)
    for name, field in stored._asdict().items():
        want = getattr(rollout, name)
        np.testing.assert_array_equal(field, want.reshape(field.shape), err_msg=name)
    assert new.replay.added == new.step == T * N
    chex.assert_trees_all_equal(
        new.replay, case.agent.observe(case.config, state, rollout).replay
    )


@only_dqn
def test_dqn_epsilon_falls_linearly(case, state):
    config = dataclasses.replace(
        case.config,
        epsilon_start=0.8,
        epsilon_end=0.2,
        epsilon_eval=0.5,
        exploration_fraction=0.5,
    )
    obs = jnp.zeros((20_000, 4)).at[:, 0].set(1.0)
    act = jax.jit(case.agent.act, static_argnums=5)
    q = case.module.network(case.env.spec, config).apply(state.params, obs[0])

    def explored(step, explore=True):
        """How often another than the greedy action, times two actions."""
        key = jax.random.key(step)
        now = state._replace(step=jnp.int32(step))
        action = act(config, now, (), obs, key, explore)[0]
        return 2 * (action != q.argmax()).mean()

    total = config.total_steps
    for step, epsilon in ((0, 0.8), (total // 4, 0.5), (total // 2, 0.2), (total, 0.2)):
        np.testing.assert_allclose(explored(step), epsilon, atol=0.03)
    np.testing.assert_allclose(explored(0, explore=False), 0.5, atol=0.03)


def test_dqn_needs_discrete_actions():
    with pytest.raises(ValueError, match="dqn needs discrete actions, not Box"):
        agents.get("dqn").make(envs.make("Pendulum-v1").spec)


def test_dqn_finds_the_action_values():
    dqn, env = agents.get("dqn"), envs.wrap(probe_envs.TwoPlaces())
    config = dqn.Config(
        gamma=0.5,
        learning_rate=3e-3,
        epsilon_end=1.0,
        total_steps=6_000,
        num_envs=8,
        capacity=1_000,
        batch_size=32,
        warmup_steps=200,
        target_rate=0.1,
        hidden_sizes=(16,),
        dueling=True,
    )
    fn = jax.jit(functools.partial(train.train, dqn.make(env.spec)))
    ts, _ = fn(env, config, jax.random.key(0))
    q = dqn.network(env.spec, config).apply(ts.agent.params, jnp.eye(2))
    np.testing.assert_allclose(q, env.env.gym.q, atol=0.05)


# PPO.


@only_ppo
def test_ppo_targets_by_hand(case, state, rollout):
    ppo, spec = case.module, case.env.spec
    config = dataclasses.replace(case.config, gamma=0.9, lambda_=0.8)
    batch = jax.jit(functools.partial(ppo.prepare, spec))(config, state, rollout)
    value, next_value = (
        np.array(ppo.critic(spec, config).apply(state.critic, x))
        for x in (rollout.obs, rollout.next_obs)
    )
    policy = ppo.actor(spec, config).apply(state.actor, rollout.obs)
    advantage = np.zeros((T + 1, N))
    for t in reversed(range(T)):
        for n in range(N):
            terminated, truncated = rollout.terminated[t, n], rollout.truncated[t, n]
            bootstrap = 0.0 if terminated else 0.9 * next_value[t, n]
            later = 0.0 if terminated or truncated else 0.9 * 0.8 * advantage[t + 1, n]
            advantage[t, n] = rollout.reward[t, n] + bootstrap - value[t, n] + later
    advantage = advantage[:T]
    log_prob = policy.log_prob(rollout.action)
    columns = (log_prob, advantage, advantage + value, value)
    for i, want in enumerate(columns):
        np.testing.assert_allclose(
            batch.targets[:, i], np.ravel(want), rtol=1e-4, atol=1e-5, err_msg=i
        )
    np.testing.assert_array_equal(batch.obs, rollout.obs.reshape(T * N, -1))
    np.testing.assert_array_equal(batch.action, rollout.action.ravel())


@only_ppo
def test_ppo_losses_by_hand(case, state, rollout):
    ppo, spec = case.module, case.env.spec
    config = dataclasses.replace(case.config, entropy_cost=0.3, clip_value=False)
    rng = np.random.default_rng(1)
    policy = ppo.actor(spec, config).apply(state.actor, rollout.obs)
    new_log_prob = np.ravel(policy.log_prob(rollout.action))
    old_log_prob = new_log_prob + rng.normal(size=T * N) * 0.4
    adv, target, old_value = rng.normal(2.0, 3.0, size=(3, T * N))
    targets = jnp.stack([old_log_prob, adv, target, old_value], axis=-1)
    obs, action = rollout.obs.reshape(T * N, -1), rollout.action.ravel()
    batch = ppo.Batch(obs, action, targets)

    ratio = np.exp(new_log_prob - old_log_prob)
    adv = (adv - adv.mean()) / adv.std()
    surrogate = np.minimum(ratio * adv, np.clip(ratio, 0.8, 1.2) * adv).mean()
    want = -surrogate - 0.3 * policy.entropy().mean()
    loss, metrics = ppo.actor_loss(spec, config, state.actor, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    np.testing.assert_allclose(metrics["policy_loss"], -surrogate, rtol=1e-4)
    clipped = (np.abs(ratio - 1) > 0.2).mean()
    np.testing.assert_allclose(metrics["clip_fraction"], clipped, rtol=1e-5)

    value = np.array(ppo.critic(spec, config).apply(state.critic, obs))
    loss, _ = ppo.critic_loss(spec, config, state.critic, batch)
    np.testing.assert_allclose(loss, 0.5 * ((value - target) ** 2).mean(), rtol=1e-4)
    config = dataclasses.replace(config, clip_value=True)
    near = np.clip(value, old_value - 0.2, old_value + 0.2)
    want = 0.5 * np.maximum((value - target) ** 2, (near - target) ** 2).mean()
    loss, _ = ppo.critic_loss(spec, config, state.critic, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-4)


@only_ppo
def test_ppo_learning_rate_falls_to_zero(case, update, state, rollout):
    end = state._replace(step=jnp.int32(case.config.total_steps))
    new, _ = update(case.config, end, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    assert new.step == case.config.total_steps + T * N


def test_ppo_finds_the_best_actions_and_their_values():
    ppo, env = agents.get("ppo"), envs.wrap(probe_envs.TwoPlaces())
    config = ppo.Config(
        gamma=0.5,
        learning_rate=1e-2,
        total_steps=8_000,
        num_envs=8,
        rollout_length=16,
        hidden_sizes=(16,),
        anneal=False,
    )
    fn = jax.jit(functools.partial(train.train, ppo.make(env.spec)))
    ts, metrics = fn(env, config, jax.random.key(0))
    policy = ppo.actor(env.spec, config).apply(ts.agent.actor, jnp.eye(2))
    assert policy.probs[0, 1] > 0.95 and policy.probs[1, 0] > 0.95
    value = ppo.critic(env.spec, config).apply(ts.agent.critic, jnp.eye(2))
    np.testing.assert_allclose(value, [2.0, 2.0], atol=0.15)
    assert metrics["episode_return"][-1] > 3.7  # of 4 steps


def test_ppo_finds_a_continuous_action():
    ppo, env = agents.get("ppo"), envs.wrap(probe_envs.Target())
    agent = ppo.make(env.spec)
    config = ppo.Config(
        learning_rate=1e-2,
        total_steps=12_000,
        num_envs=8,
        rollout_length=16,
        hidden_sizes=(16,),
        entropy_cost=0.0,
    )
    ts, _ = jax.jit(functools.partial(train.train, agent))(
        env, config, jax.random.key(0)
    )
    action, *_ = agent.act(
        config, ts.agent, (), jnp.zeros((1, 2)), jax.random.key(0), explore=False
    )
    np.testing.assert_allclose(action[0], env.env.gym.target, atol=0.1)
    policy = ppo.actor(env.spec, config).apply(ts.agent.actor, jnp.zeros((1, 2)))
    assert (policy.stddev() < jnp.array([1.0, 2.0])).all()  # smaller than at first
