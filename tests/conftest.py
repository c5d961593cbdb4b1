"""Strictness, and the small training problem that several files share."""

import ctypes
import functools
import gc
import os
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# The tests' time is that of compiling. A third is saved without LLVM's optimisations,
# half of the rest by the older, simpler code for fusions, a fifth by compiling whole.
# This comes before gymnax: its import starts JAX's backend, which reads these once.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # nothing in homes

import jax
import numpy as np
import pytest

from rljax import agents, envs
from rljax.types import Agent, Box, Rollout, Simulation, Spec

from .agent_case import CONTINUOUS_ONLY, VARIANTS, N, T, observe_and_update, small

PROCESS = Path("/proc/self/statm")  # Linux


def pytest_xdist_auto_num_workers():
    """As many workers as cores, each with 2 GB of the memory that is available."""
    return max(1, min(len(available_cores()), int(available_bytes() // 2e9)))


def pytest_configure(config):
    config.pluginmanager.register(BoundedMemory())


class BoundedMemory:
    """Compiled programs go before a worker has 2 GB.

    Each takes about a megabyte, and ten of the 65530 memory maps that Linux allows,
    beyond which XLA crashes. A plugin sees doctests; a fixture of this file would not.
    """

    def pytest_runtest_logfinish(self):
        if PROCESS.exists() and resident_bytes() > 1.2e9:
            jax.clear_caches()
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system


def available_cores():
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def available_bytes():
    """Memory to be had without swapping; a container may have less than its host."""
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
    rows = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = 1024 * int(rows["MemAvailable"].split()[0])
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()))
    return free


def resident_bytes():
    return int(PROCESS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name in VARIANTS))
        for name in agents.names()
    ],
)
def case(request):
    module = agents.get(request.param)
    continuous = request.param in CONTINUOUS_ONLY
    env = envs.make("Pendulum-v1" if continuous else "CartPole-v1")
    config = module.Config(
        num_envs=N, rollout_length=T, hidden_sizes=(8,), **small(request.param)
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
        action = rng.uniform(-1, 1, (T, N, *spec.action.shape)).astype(np.float32)
    else:
        action = rng.integers(spec.action.num_actions, size=(T, N), dtype=np.int32)
    act = functools.partial(case.agent.act, explore=True)
    memory = case.agent.memory(case.config, N)
    key = jax.random.key(0)
    *_, extras = jax.eval_shape(act, case.config, state, memory, obs[0], key)
    simulation = ()
    if case.agent.simulates:
        start, noise = jax.jit(start_and_noise)(case.env, key)
        simulation = Simulation(case.env, start, noise)
    rollout = Rollout(
        obs=obs.astype(np.float32),
        action=action,
        reward=rng.normal(size=(T, N)).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        next_obs=next_obs.astype(np.float32),
        extras=jax.tree.map(
            lambda x: np.full((T, *x.shape), -0.693, np.float32), extras
        ),
        memory=jax.tree.map(
            lambda x: rng.normal(size=(T, *x.shape)).astype(x.dtype), memory
        ),
        simulation=simulation,
    )
    return jax.device_put(rollout)  # compiles nothing


def start_and_noise(env, key):
    start, _ = env.reset(key, N)
    return start, env.draw(key, T, N)
