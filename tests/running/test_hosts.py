"""Several processes that run one program."""

import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from rljax.commands import folders
from rljax.running import hosts

from ..processes import by_slurm, ended, started

SCRIPT = pathlib.Path(__file__).with_name("two_processes.py")
VARIABLES = (hosts.ADDRESS, hosts.NUMBER, hosts.INDEX, hosts.TIMEOUT)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both processes have printed, and their folder."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "file").write_text("mine")
    (folder / "busy").mkdir()
    lock = folders.lock(folder / "busy" / folders.LOCK_FILE, folder / "busy")
    with lock, started(SCRIPT, folder, cwd=folder, place=by_slurm) as processes:
        results = ended(processes)
    assert [code for code, *_ in results] == [0, 0], results
    first, second = (out for _, out, _ in results)
    assert first[0] == "one line of process 0" and len(first) == 2
    assert len(second) == 1
    return json.loads(first[-1]), json.loads(second[-1]), folder


def both(found, name):
    """A result that the processes share."""
    assert found[0][name] == found[1][name]
    return found[0][name]


def test_all_have_what_process_0_has(found):
    assert both(found, "agree") == {"index": 0, "none": None, "list": [0.5, "a"]}
    assert both(found, "long") == "process 0: " + 300 * "é"
    assert both(found, "greatest") == [1, 5]
    assert both(found, "any_of") == [True, False]


def test_processes_of_a_machine_share_its_cores(found):
    assert both(found, "cores") == max(1, len(os.sched_getaffinity(0)) // 2)


def test_an_error_of_process_0_reaches_all(found):
    assert [part["on_primary"] for part in found[:2]] == ["from 0", None]
    assert both(found, "os") == [
        "OSError",
        "[Errno 28] No space left on device: 'here.csv'",
    ]
    assert [part["value"] for part in found[:2]] == [
        ["ValueError", "bad"],
        ["PrimaryError", "bad"],
    ]
    assert both(found, "exit") == ["SystemExit", "143"]
    assert [part["bug"] for part in found[:2]] == [
        ["TypeError", "bug"],
        ["RuntimeError", "in process 0: TypeError: bug"],
    ]


def test_an_error_of_any_process_reaches_all(found):
    assert [part["on_all"] for part in found[:2]] == [
        ["ValueError", "another process has failed and says why"],
        ["ValueError", "only in process 1"],
    ]
    assert both(found, "after") == "fine"


def test_arrays_of_all_devices_are_whole_on_the_host(found):
    for name in ("whole", "everywhere", "numpy"):
        assert both(found, name) == [0, 1]
    for runs in (1, 3, 4):  # fewer than devices, not divided by them, divided
        assert both(found, f"runs {runs}") == [2 * i for i in range(runs)]


def test_checkpoints_of_two_processes(found):
    got, other = (part["checkpoints"] for part in found[:2])
    for result in (got, other):
        assert result["latest"] == 7
        assert result["sharded"] and result["shardings"] and result["whole"]
        assert result["late"] == 8
    for name in ("damaged", "exists"):
        assert got[name] == other[name] and got[name][0] == "CheckpointError"
    assert "8: unreadable" in got["damaged"][1]
    assert got["exists"][1].endswith("not overwritten")
    assert got["unread"][1] == "another process has failed and says why"
    assert other["unread"] == ["CheckpointError", "no disk"]


def test_all_stop_where_process_0_cannot_claim(found):
    folder, (first, second) = found[2], [part["claims"] for part in found[:2]]
    assert first["busy"] == ["Taken", second["busy"][1]]
    assert f"{folder}/busy: exists, in use by process" in first["busy"][1]
    assert first["file/x"] == ["ValueError", f"{folder}/file: not a folder"]
    for name in ("busy", "file/x"):
        assert second[name] == ["PrimaryError", first[name][1]]
    assert first["free"] == second["free"] == ["RuntimeError", "free"]
    assert not (folder / "free").exists()  # nothing had begun


def test_one_process_asks_nobody(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert not hosts.initialize() and not hosts.several() and hosts.primary()
    value = object()
    assert hosts.agree(value) is value and hosts.on_primary(lambda: value) is value
    assert hosts.on_all(lambda: value) is value
    assert hosts.greatest(1, 2) == (1, 2) and hosts.any_of(True)
    tree = hosts.to_host({"x": jnp.arange(2), "y": np.arange(2)})
    assert all(type(x) is np.ndarray and x.tolist() == [0, 1] for x in tree.values())
    assert hosts.cores() == len(os.sched_getaffinity(0))
    with hosts.session(), pytest.raises(KeyError):
        hosts.on_primary({}.popitem)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (("localhost", "2", "0"), "JAX_COORDINATOR_ADDRESS=localhost: must be host:po"),
        (("localhost:1", "two", "0"), "JAX_NUM_PROCESSES=two: must be a whole number"),
        (
            ("localhost:1", "0", "0"),
            "JAX_NUM_PROCESSES=0: must be a whole number, at l",
        ),
        (("localhost:1", "2", "-1"), "JAX_PROCESS_ID=-1: must be a whole number"),
        (("localhost:1", "2", "2"), r"JAX_PROCESS_ID=2: must be in \[0, 1\]"),
        (("localhost:1", "2", "0", "0"), "RLJAX_INITIALIZATION_TIMEOUT=0: must be"),
    ],
)
def test_wrong_variables_are_named(monkeypatch, variables, words):
    for name, value in zip(VARIABLES, variables, strict=False):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        hosts.initialize()
