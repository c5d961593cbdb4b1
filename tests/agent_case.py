"""What the tests of agents share beside the fixtures of conftest.py."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from rljax import agents

T, N = 8, 4  # of the case's rollouts
CONTINUOUS_ONLY = ("apg", "td3")
VARIANTS = ("rainbow", "reinforce")  # the code of c51 and of a2c: fast tests try these
# Configs of six rollouts where `small` needs more, beside T, N and the hidden sizes.
SMALL: dict[str, dict[str, Any]] = {
    "awr": dict(
        total_steps=6 * 32,
        capacity=128,
        batch_size=12,
        sequence_length=5,
        num_epochs=2,
        num_minibatches=3,
    ),
    "c51": dict(
        total_steps=6 * 32 + 64,
        warmup_steps=50,
        capacity=128,
        batch_size=48,
        num_atoms=5,
    ),
    "dqn": dict(
        total_steps=6 * 32 + 64,
        warmup_steps=50,  # two rollouts
        capacity=128,
        batch_size=48,
        target_period=4,
    ),
    "iqn": dict(
        total_steps=6 * 32 + 64,
        warmup_steps=50,
        capacity=128,
        batch_size=48,
        num_fractions=3,
        num_target_fractions=2,
        num_policy_fractions=4,
        embedding_size=5,
    ),
    "ppo_rnn": dict(
        total_steps=6 * 32,
        num_epochs=2,
        num_minibatches=2,
        burn_in=2,
        sequence_length=4,
        memory_size=6,
    ),
    "sarsa": dict(total_steps=6 * 32, expected=False),  # draws next actions
    "qrdqn": dict(
        total_steps=6 * 32 + 64,
        warmup_steps=50,
        capacity=128,
        batch_size=48,
        num_quantiles=3,
    ),
    "r2d2": dict(
        total_steps=6 * 32 + 64,
        warmup_steps=50,
        capacity=128,
        batch_size=45,  # does not divide by the 8 sequences of one rollout
        target_period=4,
        burn_in=2,
        sequence_length=5,
        memory_size=6,
    ),
    "vmpo": dict(total_steps=6 * 32, num_minibatches=2, target_period=2),
    "rainbow": dict(
        total_steps=6 * 32 + 64,
        warmup_steps=50,
        capacity=128,
        batch_size=48,
        num_atoms=5,
    ),
}


def fast_for(*names):
    """Parametrise `case`: tests of these agents are fast, the others' are slow."""
    rows = [
        name if name in names else pytest.param(name, marks=pytest.mark.slow)
        for name in agents.names()
    ]
    return pytest.mark.parametrize("case", rows, indirect=True)


def with_other_next_obs(rollout, mask):
    next_obs = np.array(rollout.next_obs)
    next_obs[np.array(mask)] += 3.0
    return rollout._replace(next_obs=next_obs)


def parameters(state):
    """The networks that are trained: not those that follow them."""
    return {
        name: value
        for name, value in sorted(state._asdict().items())
        if isinstance(value, dict)
        and "params" in value
        and not name.startswith("target_")
        and name != "behaviour"
    }


def small(name):
    """A config of six rollouts: the row in `SMALL`, or what fits most agents."""
    fields = {field.name for field in dataclasses.fields(agents.get(name).Config)}
    fresh, stored = dict(total_steps=6 * 32), dict(total_steps=6 * 32 + 64)
    stored |= dict(warmup_steps=50, capacity=128, batch_size=48)
    usual = stored if "warmup_steps" in fields else fresh
    if "num_minibatches" in fields:
        usual |= dict(num_epochs=2, num_minibatches=2)
    return SMALL.get(name, usual)


def learned(state):
    """All but the stored transitions; the optimiser shows what a sign hides."""
    return {k: v for k, v in state._asdict().items() if k != "replay"}


def differ(x, y):
    x, y = jax.device_get((x, y))
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return any((a != b).any() for a, b in pairs)


def observe_and_update(agent, config, state, rollout, key):
    """What training does with a rollout."""
    state = agent.observe(config, state, rollout)
    return agent.update(config, state, rollout, key)
