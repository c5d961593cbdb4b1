"""What the tests of agents share beside the fixtures of conftest.py."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rljax import agents
from rljax.meta.rules import disco, lpg

T, N = 8, 4  # of the case's rollouts
CONTINUOUS_ONLY = ("apg", "td3")
NOT_TUNED = ("disco103", "lpg")  # show nothing to score
VARIANTS = ("rainbow", "reinforce")  # the code of c51 and of a2c: fast tests try these
# Sizes of fields that agents share, so small that a test is fast.
SMALL_FIELDS = dict(
    num_epochs=2,
    num_minibatches=2,
    warmup_steps=50,  # two rollouts
    capacity=128,
    batch_size=48,
    num_atoms=5,
    num_quantiles=3,
    num_fractions=3,
    num_target_fractions=2,
    num_policy_fractions=4,
    embedding_size=5,
    burn_in=2,
    memory_size=6,
)
# What an agent needs beside them.
SMALL: dict[str, dict[str, Any]] = {
    "awr": dict(batch_size=12, sequence_length=5, num_minibatches=3),
    # 6 sequences, two of them from the replay; the published numbers are not here.
    "disco103": dict(batch_size=6, action_size=8),
    "dqn": dict(target_period=4),
    "ppo_rnn": dict(sequence_length=4),
    # 45 does not divide by the 8 sequences of one rollout.
    "r2d2": dict(batch_size=45, target_period=4, sequence_length=5),
    "sarsa": dict(expected=False),  # draws next actions
    "vmpo": dict(num_epochs=1, target_period=2),
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


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory()  # is there until the process ends


@functools.cache
def rule_weights():
    """The path of a file as that of Disco103, of random numbers; one per process."""
    path = Path(_folder().name) / "disco_103.npz"
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(0.0, max(0.1, np.prod(shape[:-1]) ** -0.5), shape)
        for name, shape in disco.SHAPES.items()
    }
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    np.savez(path, **arrays)
    return str(path)


@functools.cache
def lpg_weights():
    """The path of a small file as `rljax meta-train` writes; one per process."""
    path = Path(_folder().name) / lpg.FILE
    settings = lpg.Settings(y_size=3, memory_size=4, hidden_size=3)
    shapes = jax.eval_shape(lpg.make(settings).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    lpg.save(path, settings, jax.tree.map(lambda x: rng.normal(size=x.shape), shapes))
    return str(path)


def required(name):
    """Values of the fields without a default that would do."""
    files = {"disco103": rule_weights, "lpg": lpg_weights}
    return dict(weights=files[name]()) if name in files else {}


def small(name):
    """A config of six rollouts, beside T, N and the hidden sizes."""
    fields = {field.name for field in dataclasses.fields(agents.get(name).Config)}
    usual = {name: size for name, size in SMALL_FIELDS.items() if name in fields}
    total_steps = 6 * 32 + 64 * ("warmup_steps" in fields)
    own = SMALL.get(name, {}) | required(name)
    return dict(total_steps=total_steps) | usual | own


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
