"""Strictness, and the small training problem that several files share."""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import pytest

from rljax import agents, envs
from rljax.types import Agent


@pytest.fixture(scope="module")
def strict_keys():
    """Consuming a key twice raises, also inside jitted functions, and so do raw keys.

    No other strict flag holds: distrax makes raw keys in entropies of Gaussians and
    promotes ranks, optax promotes dtypes.
    """
    with jax.debug_key_reuse(True), jax.legacy_prng_key("error"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


SMALL: dict[str, dict[str, Any]] = {
    "dqn": dict(
        total_steps=6 * 32 + 64,
        warmup_steps=50,  # two rollouts
        capacity=128,
        batch_size=8,
        target_period=4,
    ),
    "ppo": dict(total_steps=6 * 32, num_epochs=2, num_minibatches=2),
}


class Case(NamedTuple):
    """An agent with a small config: 6 iterations of 8 steps in 4 CartPoles."""

    name: str
    module: ModuleType
    agent: Agent
    env: Any
    config: Any


@pytest.fixture(scope="session", params=agents.names())
def case(request):
    module = agents.get(request.param)
    env = envs.make("CartPole-v1")
    config = module.Config(
        num_envs=4, rollout_length=8, hidden_sizes=(8,), **SMALL[request.param]
    )
    return Case(request.param, module, module.make(env.spec), env, config)
