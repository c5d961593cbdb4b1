"""What runs get of a CPU, and that a process may start jax again for it."""

import json
import os
import subprocess
import sys

import jax
import pytest

from rljax import agents
from rljax.running import cpu, train
from rljax.types import Discrete, ObsLeaf, ObsSpec, Spec, States

AGAIN = """
import json, os, jax, jax.numpy as jnp
from rljax.running import cpu

os.environ.update(PJRT_NPROC=os.environ["LATER"]) if "LATER" in os.environ else None
cpu.set_cpu_devices(2)
before = jnp.arange(3.0)
double = jax.jit(lambda x: 2 * x + before)
old = double(before).tolist()
cpu.take(cpu.Share(devices=1, threads=1))
fresh = jax.jit(lambda x: x + before)(jnp.ones(3))  # an old array in a new program
results = dict(
    devices=jax.device_count(),
    threads=os.environ["PJRT_NPROC"],
    same=double(before).tolist() == old,
    fresh=fresh.tolist(),
    where=[str(x) for x in fresh.devices()] == [str(x) for x in jax.devices()],
)
print(json.dumps(results))
"""

ASKED = """
import json
from rljax.running import cpu, hosts

cpu.set_cpu_devices(4)
hosts.cores = lambda: 4
from rljax import agents
from rljax.commands import common

def asked(agent, env, seeds=1, data_parallel=1, **meta):
    config = common.config_for(agent, env, {})
    run = common.Run(agent=agent, env=env, env_params={}, seeds=seeds, seed=0, rows=2,
        config=config, data_parallel=data_parallel, **meta)
    return run.cpu_share()

print(json.dumps([
    asked("sac", "Pendulum-v1"),
    asked("sac", "Pendulum-v1", seeds=3),
    asked("ppo", "CartPole-v1"),
    asked("ppo", "CartPole-v1", meta=("gamma",)),
    asked("ppo", "Breakout-MinAtar"),
    asked("ppo", "CartPole-v1", data_parallel=4),
]))
"""

TRAINED = """
import json, sys, jax
from rljax.commands import front
from rljax.running import hosts

hosts.cores = lambda: 2
argv = "dqn --steps 400 --config.warmup-steps 200 --rows 2 --episodes 0".split()
front.run("train", [*argv, "--out", sys.argv[1]])
counts = [jax.device_count()]
front.run("train", [*argv, "--data-parallel", "2", "--out", sys.argv[1]])
print(json.dumps([*counts, jax.device_count()]))
"""


def array_spec(shape: tuple[int, ...]) -> Spec:
    """Observations of one array, two actions."""
    return Spec(ObsSpec.array(shape, "float32"), Discrete(2))


def run(program: str, *args: str, **environ: str):
    """The last line of what a process prints, read as JSON."""
    known = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    result = subprocess.run(
        [sys.executable, "-c", program, *args],
        env=known | {"JAX_PLATFORMS": "cpu"} | environ,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_runs_ask_for_what_suits_them():
    sac, seeds, ppo, tuned, images, split = run(ASKED)
    assert (sac, seeds) == ([1, 1], [3, 3])
    assert (ppo, tuned) == ([2, 2], [1, 1])  # a tuned agent's parts learn together
    assert (images, split) == ([2, 4], [4, 4])


def test_trainings_take_the_devices_that_suit_them(tmp_path):
    assert run(TRAINED, str(tmp_path)) == [1, 2]


@pytest.mark.parametrize(
    ("environ", "got"), [({}, "1"), ({"PJRT_NPROC": "3"}, "3"), ({"LATER": "3"}, "3")]
)
def test_jax_starts_again_with_what_a_run_needs(environ, got):
    found = run(AGAIN, **environ)
    expected = dict(devices=1, threads=got, same=True, fresh=[1.0, 2.0, 3.0])
    assert found == expected | {"where": True}


def test_jax_stays_where_the_process_has_not_asked_for_devices():
    x = jax.numpy.ones(2)
    cpu.take(cpu.Share(devices=3, threads=3))
    assert jax.devices()[0] in x.devices() and jax.device_count() != 3


SMALL, LARGE = 2**22, 2**22 + 1


@pytest.mark.parametrize(
    ("runs", "parts", "product", "expected"),
    [
        (1, 1, SMALL, (1, 1)),
        (1, 1, LARGE, (1, 8)),
        (1, 1, None, (1, 8)),
        (1, 2, SMALL, (2, 2)),
        (1, 2, LARGE, (2, 8)),
        (3, 2, SMALL, (6, 6)),
        (5, 2, SMALL, (8, 8)),
        (20, 1, LARGE, (8, 8)),
    ],
)
def test_share(runs, parts, product, expected):
    assert cpu.share(8, runs=runs, parts=parts, product=product) == expected


@pytest.mark.parametrize(
    ("agent", "fields", "shape", "expected"),
    [
        ("dqn", dict(batch_size=8, hidden_sizes=(5, 7)), (3,), 8 * 5 * 7),
        ("dqn", dict(batch_size=8, hidden_sizes=(5, 7)), (9,), 8 * 9 * 5),
        ("dqn", dict(batch_size=8, hidden_sizes=()), (9,), None),
        ("mpo", dict(batch_size=8, num_samples=3, hidden_sizes=(5, 7)), (3,), 840),
        (
            "ppo",
            dict(num_envs=6, rollout_length=4, num_minibatches=3, hidden_sizes=(5, 7)),
            (3,),
            8 * 5 * 7,
        ),
        ("a2c", dict(num_envs=6, rollout_length=4, hidden_sizes=(5, 7)), (3,), 840),
        # The MinAtar network: 3 x 3 places of 3 * 3 * 2 * 16 weights, then 144 * 30.
        ("dqn", dict(batch_size=8, hidden_sizes=(5, 7)), (5, 5, 2), 8 * 9 * 288),
        ("dqn", dict(batch_size=8, hidden_sizes=(30,)), (5, 5, 2), 8 * 144 * 30),
        ("dqn", dict(batch_size=8, torso="nature_cnn"), (84, 84, 4), None),
        ("dqn", dict(batch_size=8, hidden_sizes=(5,), torso="mlp"), (4, 4, 2), 1280),
        ("dqn", dict(batch_size=8, hidden_sizes=(5,), torso="my:Own"), (3,), None),
    ],
)
def test_largest_product(agent, fields, shape, expected):
    config = agents.get(agent).Config(**fields)
    assert train.largest_product(array_spec(shape), config) == expected


def test_largest_product_of_states_that_networks_see_one_hot():
    leaf = ObsLeaf((1,), "int32", States(5))
    spec = array_spec((1,))
    spec = spec._replace(obs=spec.obs._replace(leaves=(leaf,)))
    config = agents.get("dqn").Config(batch_size=8, hidden_sizes=(7,))
    assert train.largest_product(spec, config) == 8 * 5 * 7


def test_largest_product_of_a_config_without_networks():
    class Config:
        total_steps, num_envs, rollout_length = 8, 2, 2

    assert train.largest_product(array_spec((3,)), Config()) is None


@pytest.mark.parametrize(
    ("agent", "fields", "expected"),
    [
        ("ppo", dict(num_envs=4, rollout_length=128), 4),  # minibatches of 128
        ("ppo", dict(num_envs=8, rollout_length=128), 2),
        ("ppo", dict(num_envs=16, rollout_length=128), 1),
        ("sac", dict(num_envs=1, batch_size=128), 2),
        ("sac", dict(num_envs=1, batch_size=1024), 1),
        ("dqn", dict(num_envs=4, torso="my:Own"), 1),
    ],
)
def test_runs_at_once_are_as_many_as_stay_small(agent, fields, expected):
    config = agents.get(agent).Config(**{"hidden_sizes": (64, 64)} | fields)
    assert train.runs_at_once(array_spec((3,)), config) == expected
