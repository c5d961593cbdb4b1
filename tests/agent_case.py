"""What the tests of agents share beside the fixtures of conftest.py."""

import jax
import numpy as np
import pytest

from rljax import agents

T, N = 8, 4  # of the case's rollouts
CONTINUOUS_ONLY = ("apg", "td3")


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
    """The networks that are trained."""
    names = {"params", "actor", "critic"}.intersection(state._fields)
    return {name: getattr(state, name) for name in sorted(names)}


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
