"""Every agent finds the known values and best actions of tables of four places."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs, losses
from rljax.learners import on_policy
from rljax.running import train

from .. import probe_envs
from ..agent_case import CONTINUOUS_ONLY, VARIANTS

NEVER = np.nan
GAMMA, STEPS = 0.5, 3  # of a walk from each place


class Probe(NamedTuple):
    table: dict[str, Any]  # fields of TableParams
    values: tuple[float, ...]  # of the four places, when the best is done
    at_chance: tuple[float, ...] = ()  # likewise, who cannot know what is best


ONE = ((1.0, 1.0),) * 4
EITHER = ((0.0, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.0))
CUT = "reward of what is seen, time is up halfway"
LEAK = "reward of what was seen an episode ago"  # which must be forgotten
PROBES = {
    "constant reward to the end, when time is up as well": Probe(
        dict(follows=(1, 2, 0, 0), ends=(0, 0, 1, 0), pays=ONE, max_steps_in_episode=3),
        (1.75, 1.5, 1.0, NEVER),
    ),
    "constant reward without an end, but time is up": Probe(
        dict(pays=ONE, follows=(0, 0, 0, 0), max_steps_in_episode=2),
        (2.0, NEVER, NEVER, NEVER),
    ),
    "reward of what is seen": Probe(
        dict(
            starts=(0, 1, 2, 3),
            ends=(1, 1, 1, 1),
            pays=((-1.0, -1.0), (0.0, 0.0), (1.0, 1.0), (2.0, 2.0)),
        ),
        (-1.0, 0.0, 1.0, 2.0),
    ),
    CUT: Probe(
        dict(
            starts=(0, 1, 2, 3),
            follows=(1, 2, 3, 0),
            pays=((0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (3.0, 3.0)),
            max_steps_in_episode=2,
        ),
        (0.4, 0.8, 1.6, 3.2),
    ),
    "reward of the action": Probe(
        dict(starts=(0, 1, 0, 1), ends=(1, 1, 1, 1), pays=EITHER),
        (1.0, 1.0, NEVER, NEVER),
    ),
    "reward of the action before": Probe(
        dict(starts=(0, 1, 0, 1), follows=(2, 2, 0, 0), late=1, ends=(0, 0, 1, 0))
        | dict(pays=(*EITHER[:2], (0.0, 0.0), (0.0, 0.0))),
        (0.5, 0.5, 1.0, NEVER),
    ),
    "reward of what was seen": Probe(
        dict(starts=(0, 1, 0, 1), follows=(2, 3, 0, 0), shows=(0, 1, 2, 2))
        | dict(ends=(0, 0, 1, 1), pays=((0.0, 0.0), (0.0, 0.0), *EITHER[:2])),
        (0.5, 0.5, 1.0, 1.0),
        (NEVER, NEVER, 0.5, 0.5),
    ),
    LEAK: Probe(
        dict(starts=(0, 1, 2, 3), ends=(1, 1, 1, 1), leaks=1)
        | dict(pays=EITHER, shows=(0, 0, 1, 1)),
        (0.5, 0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5, 0.5),
    ),
}


def of_state(module, spec, config, state, memory, obs, action):
    return on_policy.critic(spec, config).apply(state.critic, obs)


def of_state_to_apg(module, spec, config, state, memory, obs, action):
    return module.critic(spec, config).apply(state.critic, obs)


def of_state_from_memory(module, spec, config, state, memory, obs, action):
    critic = module.nets(spec, config).critic
    return critic.apply(state.critic, obs, memory.critic)[0]


def of_actions(module, spec, config, state, memory, obs, action):
    return module.make(spec).q_values(config, state, obs)


def of_actions_from_memory(module, spec, config, state, memory, obs, action):
    q, _ = module.network(spec, config).apply(state.params, obs, memory)
    return losses.SIGNED_HYPERBOLIC_PAIR.apply_inv(q)


def of_best_atoms(*args):
    """Noise that explores fades, and with it what is known of other actions."""
    return of_actions(*args).max(axis=-1)


def of_critics(module, spec, config, state, memory, obs, action):
    """The first of the critics'; of all actions, or of the one given."""
    given = () if action.ndim == 1 else (action,)
    return module.critic(spec, config).apply(state.critic, obs, *given)[0]


class Row(NamedTuple):
    """How an agent is trained and its values read."""

    values: Callable[..., jax.Array]
    fields: dict[str, Any]  # of its config
    remembers: bool = False
    cut_atol: float = 0.15  # of values where time is up halfway
    seeds: int = 2  # in the fast test


FRESH = dict(
    gamma=GAMMA,
    learning_rate=1e-2,
    total_steps=16_000,
    num_envs=16,
    rollout_length=8,
    hidden_sizes=(16,),
)
EPOCHS = FRESH | dict(num_epochs=2, num_minibatches=2)
REPLAY = dict(
    gamma=GAMMA,
    learning_rate=1e-2,
    total_steps=16_000,
    num_envs=16,
    hidden_sizes=(16,),
    anneal=True,
    capacity=4_000,
    batch_size=32,
    warmup_steps=400,
    target_rate=0.1,
)
UNIFORM = REPLAY | dict(epsilon_end=1.0)
SHORT = dict(total_steps=8_000)  # enough for agents whose steps cost more
ATOMS = dict(value_min=-2.0, value_max=4.0, num_atoms=25)  # each quarter
FEW = dict(num_fractions=8, num_target_fractions=8, num_policy_fractions=8)
RECURRENT = dict(sequence_length=4, burn_in=2, memory_size=8)
ROWS = {
    "a2c": Row(of_state, FRESH),
    "apg": Row(of_state_to_apg, FRESH),
    "awr": Row(of_state, EPOCHS | SHORT | dict(sequence_length=8, capacity=512)),
    "c51": Row(of_actions, UNIFORM | SHORT | ATOMS),
    "dqn": Row(of_actions, UNIFORM),
    "impala": Row(of_state, FRESH),
    "iqn": Row(of_actions, UNIFORM | SHORT | FEW),
    "mpo": Row(of_critics, REPLAY),
    "ppo": Row(of_state, EPOCHS),
    # At a cut it bootstraps from a longer memory than any it learns from.
    "ppo_rnn": Row(
        of_state_from_memory,
        EPOCHS | RECURRENT,
        remembers=True,
        cut_atol=0.6,
        seeds=1,
    ),
    "pqn": Row(of_actions, EPOCHS | dict(epsilon_end=1.0)),
    "qrdqn": Row(of_actions, UNIFORM | SHORT | dict(num_quantiles=8)),
    "r2d2": Row(
        of_actions_from_memory,
        REPLAY | RECURRENT | dict(epsilon_end=0.3),
        remembers=True,
        seeds=1,
    ),
    "rainbow": Row(of_best_atoms, REPLAY | SHORT | ATOMS),
    "reinforce": Row(of_state, FRESH),
    "sac": Row(of_critics, REPLAY | dict(temperature=0.01, target_entropy_ratio=0.02)),
    "sarsa": Row(of_actions, FRESH | dict(epsilon_end=1.0)),
    "td3": Row(of_critics, REPLAY),
    "trpo": Row(of_state, EPOCHS),
    "vmpo": Row(of_state, FRESH),
}


LONG = ("apg", "awr", "c51", "mpo", "ppo_rnn", "r2d2", "trpo")  # slow tests

# Agents without a row, and why.
_RANDOM = "the rule's numbers are random here: a policy learns nothing"
UNPROBED = {"disco103": _RANDOM, "lpg": _RANDOM}


class Learned(NamedTuple):
    """What an agent says on its best walk from each place; `[STEPS, 4, ...]`."""

    place: jax.Array
    action: jax.Array
    values: jax.Array  # of the state, or of each action
    episode_return: jax.Array  # [], of training, the last fifth


def learn(name, config, env, key):
    """Train, then walk; a pure function of `env` and `key`."""
    module = agents.get(name)
    agent, gym, params = module.make(env.spec), env.env.gym, env.env.params
    ts, metrics = train.train(agent, env, config, key)
    args = (config, ts.agent)
    key = jax.random.key(0)

    def step(carry, _):
        state, obs, memory = carry
        action, *_ = agent.act(*args, memory, obs, key, False)
        values = ROWS[name].values(module, env.spec, *args, memory, obs, action)
        if ROWS[name].remembers:  # both networks; greedy acts may leave one out
            _, memory, _ = agent.act(*args, memory, obs, key, True)
        move = jax.vmap(gym.step_env, (None, 0, 0, None))
        obs, new, *_ = move(key, state, action, params)
        return (new, obs, memory), (state.place, action, values)

    place = jnp.arange(4)
    zeros = jnp.zeros(4)
    state = probe_envs.TableState(zeros.astype(jnp.int32), place, zeros)
    obs = jax.vmap(gym.observe, (None, 0, None, None))(key, state, None, params)
    start = (state, obs, agent.memory(config, 4))
    _, walk = jax.lax.scan(step, start, None, STEPS)
    late = -len(metrics["episodes"]) // 5
    ended = metrics["episodes"][late:] > 0
    episode_return = jnp.mean(metrics["episode_return"][late:], where=ended)
    return Learned(*walk, episode_return)


def all_probes(gym, names):
    """One environment whose parameters are those of several, `[P, ...]`."""
    tables = [probe_envs.table(**PROBES[name].table) for name in names]
    least = min(tables, key=lambda table: table.max_steps_in_episode)
    env = envs.wrap(gym, least)
    params = jax.tree.map(lambda *x: jnp.stack(x), *tables)
    return dataclasses.replace(env, env=dataclasses.replace(env.env, params=params))


def visited(probe):
    """Whether a walk's steps are in an episode, `[STEPS, 4]`."""
    table = dataclasses.asdict(probe_envs.TableParams()) | probe.table
    place, alive = np.arange(4), np.isin(np.arange(4), table["starts"])
    rows = []
    for _ in range(min(STEPS, table["max_steps_in_episode"])):
        rows.append(alive)
        alive = alive & ~np.array(table["ends"], bool)[place]
        place = np.array(table["follows"])[place]
    rows += [np.zeros(4, bool)] * (STEPS - len(rows))
    return np.stack(rows)


def wanted(probe, remembers, continuous):
    """What is known of the places: values, action values, best actions or NaN."""
    pays = np.array(probe.table["pays"])
    loss = pays.max(axis=1, keepdims=True) - pays
    best = np.where(loss.any(axis=1), loss.argmin(axis=1) - 0.5 * continuous, np.nan)
    values = np.array(probe.values)
    if probe.at_chance and not (remembers and probe.values != probe.at_chance):
        values, loss = np.array(probe.at_chance), 0.0 * loss
        best = np.full(4, np.nan)
        if continuous:  # halfway between its tops a parabola pays 3/4, not 1/2
            values, best = 1.5 * values, np.where(pays.any(axis=1), 0.0, np.nan)
    late = GAMMA if probe.table.get("late") else 1.0
    return values, values[:, None] - late * loss, best


def gym_for(name):
    if name in CONTINUOUS_ONLY:
        return probe_envs.ContinuousTable()
    return probe_envs.LeakyTable() if ROWS[name].remembers else probe_envs.Table()


def results(name, seeds):
    names = probes_for(name)
    env = all_probes(gym_for(name), names)
    config = agents.get(name).Config(**ROWS[name].fields)
    fn = functools.partial(learn, name, config)
    fn = jax.jit(jax.vmap(jax.vmap(fn, (None, 0)), (0, None)))
    out = fn(env, jax.random.split(jax.random.key(0), seeds))
    of_probe = [
        jax.tree.map(lambda x, i=i: np.array(x[i]), out) for i in range(len(names))
    ]
    return dict(zip(names, of_probe, strict=True))


def probes_for(name):
    everything = [n for n in PROBES if n != LEAK]
    return [*everything, LEAK] if ROWS[name].remembers else everything


def check(name, probe, learned):
    remembers, continuous = ROWS[name].remembers, name in CONTINUOUS_ONLY
    values, action_values, best = wanted(PROBES[probe], remembers, continuous)
    place, seen = learned.place, visited(PROBES[probe])
    want = (action_values if learned.values.ndim > place.ndim else values)[place]
    known = seen & ~np.isnan(values[place])
    atol = ROWS[name].cut_atol if probe == CUT else 0.15
    np.testing.assert_allclose(learned.values[known], want[known], atol=atol)
    matters = seen & ~np.isnan(best[place])
    action, atol = learned.action.reshape(place.shape), 0.2 if continuous else 0.0
    np.testing.assert_allclose(action[matters], best[place][matters], 0.0, atol)
    if probe == LEAK:
        np.testing.assert_allclose(learned.episode_return, 0.5, atol=0.15)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in (*VARIANTS, *LONG)))
        for name in ROWS
    ],
)
def test_finds_the_known_values_and_best_actions(name):
    check_all(name, ROWS[name].seeds)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].seeds < 2])
def test_a_second_seed_finds_them_too(name):
    """Adds a seed of those agents that the fast test trains once."""
    check_all(name, 2)


def check_all(name, seeds):
    for probe, learned in results(name, seeds).items():
        for seed in range(seeds):
            try:
                check(name, probe, jax.tree.map(lambda x, i=seed: x[i], learned))
            except AssertionError as error:
                raise AssertionError(f"{name}, {probe}, seed {seed}") from error
