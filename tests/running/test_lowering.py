"""Training lowered for accelerators, where there is none."""

import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import rljax
from rljax import agents, envs, meta
from rljax.running import parallel, train

from ..agent_case import CONTINUOUS_ONLY, NOT_TUNED, N, T, small

ACCELERATORS = ("cuda", "tpu")


def alone(run):
    return jax.jit(run).trace(jax.random.key(0))


def over_seeds(run):
    return jax.jit(jax.vmap(run)).trace(jax.random.split(jax.random.key(0), 2))


def split(run):
    """Over two devices of a mesh that needs none."""

    def shard(key):
        return jax.tree.map(lambda x: x[None], run(key[0]))

    spread = jax.shard_map(
        shard,
        mesh=AbstractMesh((2,), (parallel.AXIS,), (AxisType.Auto,)),
        in_specs=PartitionSpec(parallel.AXIS),
        out_specs=PartitionSpec(parallel.AXIS),
        check_vma=False,
    )
    return jax.jit(spread).trace(jax.random.split(jax.random.key(0), 2))


class Way(NamedTuple):
    """A way to train the agents, some of them in fast tests."""

    trace: Callable[[Callable], Any]
    tuned: bool
    fast: set[str]


# Those whose code is least like that of the agents of images below.
DISTINCT = {"apg", "awr", "iqn", "mpo", "r2d2", "sac", "td3", "trpo", "vmpo"}
WAYS = {
    "alone": Way(alone, tuned=False, fast=DISTINCT),
    "seeds": Way(over_seeds, tuned=False, fast={"ppo"}),
    "split": Way(split, tuned=False, fast={"ppo"}),
    "tuned": Way(alone, tuned=True, fast={"dqn"}),
    "tuned seeds": Way(over_seeds, tuned=True, fast=set()),
    "tuned split": Way(split, tuned=True, fast=set()),
}
ROWS = [
    pytest.param(name, way, marks=() if name in WAYS[way].fast else pytest.mark.slow)
    for name in agents.names()
    for way in WAYS
    if not (WAYS[way].tuned and name in NOT_TUNED)
]


@pytest.fixture(autouse=True)
def backend_is_not_asked(monkeypatch):
    def asked():
        raise AssertionError("asked for this host's backend while tracing")

    monkeypatch.setattr(jax, "default_backend", asked)


def training(name, env_name, tuned=False):
    """A small run of an agent, a function of its key."""
    module, env = agents.get(name), envs.make(env_name)
    agent = module.make(env.spec)
    if tuned:
        agent = meta.tune(agent, env.spec, {"gamma": meta.LogHorizon()}, env=env)
    config = module.Config(
        num_envs=N, rollout_length=T, hidden_sizes=(8,), **small(name)
    )
    return functools.partial(train.train, agent, env, config)


def has_unrolled_bits(text):
    """Whether bits are drawn outside jax's own function, where 20 rounds shift."""
    function = r"^  func\.func private @threefry2x32.*?^  }$"
    return "shift_left" in re.sub(function, "", text, flags=re.DOTALL | re.MULTILINE)


def assert_for_accelerators(text):
    """No library that only the CPU has, no call of Python, no 64 bits, no CPU form."""
    assert re.findall(r"custom_call @\S+|callback|[<x]f64\b", text) == []
    assert "optimization_barrier" not in text  # of a layer norm's product
    assert not has_unrolled_bits(text)


@pytest.mark.parametrize(("name", "way"), ROWS)
def test_an_agent_is_lowered_for_accelerators(name, way):
    """The slow ones add the other agents, and every one in every way."""
    env_name = "Pendulum-v1" if name in CONTINUOUS_ONLY else "CartPole-v1"
    traced = WAYS[way].trace(training(name, env_name, WAYS[way].tuned))
    text = traced.lower(lowering_platforms=ACCELERATORS).as_text()
    assert_for_accelerators(text)
    assert ("stablehlo.all_reduce" in text) == ("split" in way)


@pytest.mark.parametrize(
    "name", ["dqn", "pqn", pytest.param("ppo", marks=pytest.mark.slow)]
)
def test_images_are_convolved_on_accelerators(name):
    """Layer norms are pqn's; the slow one adds fresh rollouts of a policy."""
    traced = alone(training(name, "Breakout-MinAtar"))
    text = traced.lower(lowering_platforms=ACCELERATORS).as_text()
    assert "stablehlo.convolution" in text
    assert_for_accelerators(text)
    on_cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" not in on_cpu
    means = re.search(r"optimization_barrier.*<(\d+)x\1xf32>", on_cpu)  # of layer norms
    assert bool(means) == (name == "pqn")


def test_only_the_host_asks_for_the_backend():
    """Not what is traced: its programs may be lowered for another platform."""
    package = pathlib.Path(rljax.__file__).parent
    files = [*package.rglob("*.py"), *pathlib.Path(agents.__file__).parent.glob("*.py")]
    asking = [path for path in files if "default_backend(" in path.read_text()]
    assert {"/".join(path.parts[-2:]) for path in asking} <= {
        "benchmarks/flashbax_replay_worker.py",
    }
