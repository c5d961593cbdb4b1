"""Runs spread over devices give what runs one by one give."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.running import sharding
from rljax.running.checkpoint import restore

from ..processes import ended, started

PROGRAM = pathlib.Path(__file__).with_name("two_devices.py")


def draw(key, scale, empty):
    x = scale * jax.random.normal(key, (3,))
    return {"x": x, "key": jax.random.split(key), "empty": empty}


@pytest.fixture(scope="module")
def arguments():
    """Four runs: keys, scales, and nothing, as the context of a tuned agent may be."""
    keys = jax.random.split(jax.random.key(0), 4)
    return keys, np.arange(1.0, 5, dtype=np.float32), np.zeros((4, 0), np.float32)


@pytest.fixture(scope="module")
def one_by_one(arguments):
    single = jax.jit(draw)
    return [single(*run) for run in zip(*arguments, strict=True)]


@pytest.mark.parametrize("at_once", [1, 2, 4])
@pytest.mark.parametrize("num_runs", [1, 3, 4])
def test_map_runs_equals_a_loop(arguments, one_by_one, num_runs, at_once):
    mapped = sharding.map_runs(draw, at_once)(*(x[:num_runs] for x in arguments))
    assert mapped["x"].shape == (num_runs, 3) and mapped["empty"].shape == (num_runs, 0)
    x, keys = np.asarray(mapped["x"]), np.asarray(jax.random.key_data(mapped["key"]))
    for i, single in enumerate(one_by_one[:num_runs]):
        np.testing.assert_allclose(x[i], single["x"], rtol=1e-6)
        np.testing.assert_array_equal(keys[i], jax.random.key_data(single["key"]))


EIGHT_DEVICES = """
import json, jax, jax.numpy as jnp, numpy as np
from rljax import sharding
from rljax.running import parallel

sharding.set_cpu_devices(8)
keys = jax.random.split(jax.random.key(0), 48)

def draw(key):
    def halves(part):
        return lambda: jax.random.normal(jax.random.fold_in(key, part), (3,))
    return sharding.side_by_side(halves(0), halves(1)), key

def plain(tree):
    (one, two), key = tree
    return np.concatenate([one, two, jax.random.key_data(key)], axis=-1).tolist()

results, placed = {}, []
for parts, at_once, runs in ((1, 1, 48), {cases}):
    mapped = sharding.map_runs(draw, at_once, parts)(keys[:runs])
    devices = [len(x.sharding.device_set) for x in jax.tree.leaves(mapped)]
    place = sharding.placement(runs, parts)
    placed.append(all(x.sharding == place for x in jax.tree.leaves(mapped)))
    again = sharding.map_runs(lambda *x: x)(mapped)[0]
    results[f"{parts} {at_once} {runs}"] = devices, plain(mapped), plain(again)
def fold(key):
    return parallel.fold(key), parallel.total(jax.random.normal(parallel.fold(key)))

for shards, runs in {splits}:
    mesh = sharding.split_mesh(runs, shards)
    keys_of_shards = sharding.copies(keys[:runs], shards)
    mapped = sharding.map_runs(fold, mesh=mesh)(keys_of_shards)
    place = sharding.placement(runs, mesh=mesh)
    placed.append(all(x.sharding == place for x in mapped))
    devices = [len(x.sharding.device_set) for x in jax.tree.leaves(mapped)]
    own, sums = jax.random.key_data(mapped[0]).tolist(), mapped[1].tolist()
    expected = jax.vmap(jax.vmap(fold, axis_name=parallel.AXIS))(keys_of_shards)
    alone = all(x.addressable_shards[0].data.shape[1] == 1 for x in mapped)
    same = own == jax.random.key_data(expected[0]).tolist()
    close = np.allclose(sums, expected[1], rtol=1e-6)
    results[f"{shards} shards of {runs}"] = devices, bool(same and close and alone)

def change(replay, start):
    def step(replay, i):
        replay = replay.at[i % len(replay)].set(start)
        return replay, replay[(i + 3) % len(replay), 0].sum()

    return jax.lax.scan(step, replay, jnp.arange(10))

def temporary(mesh, *axes):
    replay = jnp.zeros((*axes, 10_000, 1, 4))
    changed = jax.jit(sharding.map_runs(change, mesh=mesh), donate_argnums=0)
    compiled = changed.lower(replay, jnp.zeros(axes)).compile()
    return compiled.memory_analysis().temp_size_in_bytes / replay.nbytes

results["placed"] = placed
results["temporary"] = temporary(None, 1), temporary(sharding.split_mesh(1, 1), 1, 1)
jax.process_count = lambda: 2
results["rows of 3 runs by 2 processes"] = sharding._mesh(3, 1).shape["runs"]
print(json.dumps(results))
"""
SHARDS = [(2, 1), (2, 3), (2, 5), (8, 2), (3, 2)]
SPREAD = [(1, 1, n) for n in (3, 7, 8, 9, 11)] + [(2, 1, 11), (2, 4, 17)]


@pytest.fixture(scope="module")
def eight_devices():
    """For each of `SPREAD` the devices of every result, results, and them again."""
    program = EIGHT_DEVICES.replace("{cases}", repr(SPREAD)[1:-1])
    program = program.replace("{splits}", repr(SHARDS))
    environ = os.environ | {"JAX_PLATFORMS": "cpu"}
    environ.pop("XLA_FLAGS", None)  # compiled as for a user
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(("parts", "at_once", "runs"), SPREAD)
def test_runs_are_on_all_devices_also_where_these_do_not_divide_them(
    eight_devices, parts, at_once, runs
):
    """And their results are those of full rows, bit by bit, also when mapped again."""
    devices, results, again = eight_devices[f"{parts} {at_once} {runs}"]
    assert set(devices) == {min(runs, 8)}
    assert results == again == eight_devices["1 1 48"][1][:runs]


@pytest.mark.parametrize(("shards", "runs"), SHARDS)
def test_shards_are_on_as_many_devices(eight_devices, shards, runs):
    """And what they draw and exchange is that of `vmap(axis_name)`."""
    devices, equal = eight_devices[f"{shards} shards of {runs}"]
    assert set(devices) == {shards * min(runs, 8 // shards)} and equal


def test_results_are_where_they_are_said_to_be(eight_devices):
    """By the same words, which a program that is compiled for them compares."""
    assert eight_devices["placed"] == [True] * (1 + len(SPREAD) + len(SHARDS))


def test_a_replay_of_one_environment_is_changed_in_place(eight_devices):
    """Not copied where an axis of length 1 comes and goes."""
    assert max(eight_devices["temporary"]) < 0.1


def test_every_process_has_a_share_of_few_runs(eight_devices):
    assert eight_devices["rows of 3 runs by 2 processes"] == 8


PROCESS = """
import json, jax
from rljax.running import hosts, sharding

hosts.initialize()
results = []
for runs in (1, 2, 3):
    keys = jax.random.split(jax.random.key(0), 3)[:runs]
    out = sharding.map_runs(lambda key: jax.random.normal(key, (3,)))(keys)
    shards = [(x.index[0].start or 0, x.data.tolist()) for x in out.addressable_shards]
    results.append((out.shape[0], shards))
print(json.dumps(results))
"""


@pytest.mark.slow
def test_two_processes_share_the_runs(tmp_path):
    """Adds the processes: what each has of the results are those runs alone."""
    with started("-c", PROCESS, cwd=tmp_path) as processes:
        outputs = [out for _, out, _ in ended(processes)]
    keys = jax.random.split(jax.random.key(0), 3)
    alone = [jax.jit(lambda key: jax.random.normal(key, (3,)))(key) for key in keys]
    for output in outputs:
        for runs, shards in json.loads(output[-1]):
            assert shards
            for start, rows in shards:
                expected = alone[start : min(start + len(rows), runs)]
                np.testing.assert_array_equal(rows, expected)


def test_set_cpu_devices_comes_before_jax_starts():
    jax.devices()
    with pytest.raises(RuntimeError):
        sharding.set_cpu_devices(3)


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    """A folder with a checkpoint, and for each check None or its traceback."""
    folder = tmp_path_factory.mktemp("two_devices")
    environ = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    result = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)],
        env=environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "check",
    [
        "runs",
        "initial_states",
        "side_by_side",
        "parts_of_an_agent",
        "shards",
        "per_transition",
        "checkpoint",
    ],
)
def test_two_devices(two_devices, check):
    _, results = two_devices
    assert results[check] is None, results[check]


def test_checkpoint_of_two_devices_is_restored_on_one(two_devices):
    folder, _ = two_devices
    keys = jax.random.split(jax.random.key(0), 4)
    like = {"x": jnp.zeros((4, 2)), "key": keys, "one": jnp.zeros(3)}
    got = restore(folder, like)
    saved = jax.random.key_data(jax.random.split(jax.random.key(3), 4))
    np.testing.assert_array_equal(jax.random.key_data(got["key"]), saved)
    assert got["key"].dtype == keys.dtype
    assert len(got["x"].sharding.device_set) == 1
    assert got["x"].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
