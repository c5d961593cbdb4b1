"""Strictness, and the small training problem that several files share."""

import functools
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs
from rljax.types import Agent, Box, Rollout, Simulation, Spec

from .agent_case import CONTINUOUS_ONLY, N, T, observe_and_update

# The tests' time is that of compiling: a third less without LLVM's optimisations, and
# half of what is left with the older, simpler code for fusions.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FAST)


@pytest.fixture(scope="module")
def strict_keys():
    """Consuming a key twice raises, also inside jitted functions, and so do raw keys.

    No other strict flag holds: distrax makes raw keys in entropies of Gaussians and
    promotes ranks, optax promotes dtypes.
    """
    with jax.debug_key_reuse(True), jax.legacy_prng_key("error"):
        yield


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Compiled programs go before a worker has all the mappings that Linux allows.

    Each takes ten or so of 65530; the whole suite in two workers would need more, and
    then XLA crashes.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


SMALL: dict[str, dict[str, Any]] = {
    "a2c": dict(total_steps=6 * 32),
    "apg": dict(total_steps=6 * 32, num_epochs=2, num_minibatches=2),
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
    "impala": dict(total_steps=6 * 32),
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
    "mpo": dict(total_steps=6 * 32 + 64, warmup_steps=50, capacity=128, batch_size=48),
    "ppo": dict(total_steps=6 * 32, num_epochs=2, num_minibatches=2),
    "ppo_rnn": dict(
        total_steps=6 * 32,
        num_epochs=2,
        num_minibatches=2,
        burn_in=2,
        sequence_length=4,
        memory_size=6,
    ),
    "pqn": dict(total_steps=6 * 32, num_epochs=2, num_minibatches=2),
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
    "reinforce": dict(total_steps=6 * 32),
    "sac": dict(total_steps=6 * 32 + 64, warmup_steps=50, capacity=128, batch_size=48),
    "td3": dict(total_steps=6 * 32 + 64, warmup_steps=50, capacity=128, batch_size=48),
    "trpo": dict(total_steps=6 * 32, num_epochs=2, num_minibatches=2),
    "vmpo": dict(total_steps=6 * 32, num_minibatches=2, target_period=2),
    "rainbow": dict(
        total_steps=6 * 32 + 64,
        warmup_steps=50,
        capacity=128,
        batch_size=48,
        num_atoms=5,
    ),
}


class Case(NamedTuple):
    """An agent with a small config: 6 iterations of 8 steps in 4 CartPoles.

    In Pendulums where actions have to be continuous.
    """

    name: str
    module: ModuleType
    agent: Agent
    env: Any
    spec: Spec  # the environment's, but for a time limit that the rollout needs
    config: Any


@pytest.fixture(scope="session", params=agents.names())
def case(request):
    module = agents.get(request.param)
    continuous = request.param in CONTINUOUS_ONLY
    env = envs.make("Pendulum-v1" if continuous else "CartPole-v1")
    config = module.Config(
        num_envs=N, rollout_length=T, hidden_sizes=(8,), **SMALL[request.param]
    )
    spec = env.spec._replace(max_steps=1)  # the rollout below is cut often
    return Case(request.param, module, module.make(spec), env, spec, config)


@pytest.fixture(scope="module")
def update(case):
    return jax.jit(functools.partial(observe_and_update, case.agent))


@pytest.fixture(scope="module")
def state(case):
    return jax.jit(case.agent.init)(case.config, jax.random.key(0))


@pytest.fixture(scope="module")
def rollout(case, state):
    """Random numbers: every third step terminates, every fourth is truncated.

    What the agent returns beside its actions is log(1/2) throughout.
    """
    rng = np.random.default_rng(0)
    step = np.arange(T * N).reshape(N, T).T
    terminated, truncated = step % 3 == 0, step % 4 == 0  # both at every twelfth
    spec = case.env.spec
    obs, next_obs = rng.normal(size=(2, T, N, *spec.obs_shape))
    going_on = ~(terminated | truncated)[:-1]
    next_obs[:-1][going_on] = obs[1:][going_on]
    if isinstance(spec.action, Box):
        action = jnp.array(rng.uniform(-1, 1, (T, N, *spec.action.shape)), jnp.float32)
    else:
        action = jnp.array(rng.integers(spec.action.num_actions, size=(T, N)))
    act = functools.partial(case.agent.act, explore=True)
    memory = case.agent.memory(case.config, N)
    key = jax.random.key(0)
    *_, extras = jax.eval_shape(act, case.config, state, memory, obs[0], key)
    simulation = ()
    if case.agent.simulates:
        start, _ = case.env.reset(jax.random.key(1), N)
        simulation = Simulation(case.env, start, case.env.draw(key, T, N))
    return Rollout(
        obs=jnp.array(obs, jnp.float32),
        action=action,
        reward=jnp.array(rng.normal(size=(T, N)), jnp.float32),
        terminated=jnp.array(terminated),
        truncated=jnp.array(truncated),
        next_obs=jnp.array(next_obs, jnp.float32),
        extras=jax.tree.map(lambda x: jnp.full((T, *x.shape), -0.693), extras),
        memory=jax.tree.map(
            lambda x: jnp.array(rng.normal(size=(T, *x.shape)), x.dtype), memory
        ),
        simulation=simulation,
    )
