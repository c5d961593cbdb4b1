"""A command in several processes: one run, whoever is stopped, killed or refused."""

import json
import pathlib
import re
import shutil
import signal
import sys
import time

import pytest

from rljax.commands import folders

from ..processes import ended, free_port, send, started

SHELL = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1], shell=True))"
DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
SMALL = "--config.num-envs 2 --config.rollout-length 8 --config.num-minibatches 2"
SMALL += " --config.hidden-sizes 8 --seeds 2 --seed 3 --episodes 3"
LONG = f"train ppo {SMALL} --steps 1920 --rows 120 --checkpoint-seconds 1 "
LONG += "--eval-every 480 --eval-episodes 2 --name"


def rljax(line, **options):
    return started("-m", "rljax", *line.split(), **options)


def rows(run):
    """Lines of metrics without the times, which differ."""
    path = run / "metrics.csv"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.rsplit(",", 2)[0] for line in lines]


def leaves(run):
    """The last checkpoint's step, and shapes and checksums of its arrays."""
    steps = (run / "checkpoints").iterdir()
    step = max(int(path.name) for path in steps if path.name.isdigit())
    path = run / "checkpoints" / str(step) / "manifest.json"
    return step, json.loads(path.read_text())["leaves"]


def wait_for_rows(run, number, processes):
    """Wait until a run has more rows than a number."""
    while len(rows(run)) <= number:
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A run in one process, and one in two that is stopped, refused, killed, ended.

    Returns their folders, and exit codes, outputs and errors of the processes.
    """
    path = tmp_path_factory.mktemp("distributed")
    run, results = path / "runs" / "two", {}
    with rljax(f"{LONG} one", cwd=path, place=None, indices=(0,)) as processes:
        results["one"] = ended(processes)
    with rljax(f"{LONG} two", cwd=path) as processes:
        wait_for_rows(run, 2, processes)
        send(processes[1], signal.SIGTERM)
        results["stopped"] = ended(processes)
    results["step"], before = leaves(run)[0], len(rows(run))
    shutil.copytree(run, path / "before")
    held = folders.lock(run / folders.LOCK_FILE, run)
    with held, rljax(f"{LONG} two --resume", cwd=path) as processes:
        results["refused"] = ended(processes)
    results["unharmed"] = all(
        (run / file.relative_to(path / "before")).read_bytes() == file.read_bytes()
        for file in (path / "before").rglob("*")
        if file.is_file()
    )
    with rljax(f"{LONG} two --resume", cwd=path) as processes:
        wait_for_rows(run, before + 2, processes)
        send(processes[1], signal.SIGKILL)
        begin = time.monotonic()
        results["killed"] = ended(processes)
        results["seconds"] = time.monotonic() - begin
    with rljax(f"{LONG} two --resume", cwd=path) as processes:
        results["ended"] = ended(processes)
    return path / "runs", results


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(told):
    first, second = told[1]["stopped"]
    assert (first[0], second[0]) == (143, 143), (first, second)
    assert first[1] == ["stopped: --name two --resume goes on"] and second[1] == []
    assert 0 < told[1]["step"] < 1920


@pytest.mark.slow
def test_a_run_in_use_is_refused_in_all_processes_and_unharmed(told):
    for code, out, err in told[1]["refused"]:
        assert code == 2 and out == []
        assert re.fullmatch(r"error: runs/two: exists, in use by process \d+.*\n", err)
    assert told[1]["unharmed"]


@pytest.mark.slow
def test_where_one_process_is_killed_all_end_at_once(told):
    (code, _, err), (killed, *_) = told[1]["killed"]
    assert killed in (-9, 137)  # as `timeout` tells it
    assert code not in (0, None) and told[1]["seconds"] < 20
    assert "another process has ended" in err or "another task died" in err


@pytest.mark.slow
def test_a_run_that_was_stopped_and_killed_equals_one_in_a_single_process(told):
    runs, results = told
    assert [code for code, *_ in results["ended"]] == [0, 0], results["ended"]
    assert leaves(runs / "two") == leaves(runs / "one")
    assert rows(runs / "two") == rows(runs / "one") and len(rows(runs / "one")) == 241
    for name in ("evaluation.json", "evaluations.csv", "curve.png", "config.json"):
        pictures = [(runs / run / name).read_bytes() for run in ("one", "two")]
        assert pictures[0] == pictures[1], name


@pytest.mark.slow
def test_one_process_prints(told):
    first, second = told[1]["ended"]
    assert first[1] == [*told[1]["one"][0][1][:-1], "run folder: runs/two"]
    assert "100% of 3.84k steps" in first[2]
    assert second[1:] == ([], "")


def test_a_run_split_over_processes_equals_one_over_devices(tmp_path):
    line = f"train ppo {SMALL} --data-parallel 2 --steps 320 --rows 4 "
    line += "--eval-every 160 --eval-episodes 2 --name"
    with rljax(f"{line} one", cwd=tmp_path, place=None, indices=(0,)) as processes:
        assert ended(processes)[0][0] == 0
    with rljax(f"{line} two", cwd=tmp_path) as processes:
        results = ended(processes)
    assert [code for code, *_ in results] == [0, 0], results
    one, two = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    assert leaves(two) == leaves(one) and rows(two) == rows(one)
    for name in ("evaluation.json", "evaluations.csv", "curve.png", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.slow
def test_a_sweep_of_two_processes_equals_one_of_one(tmp_path):
    """Also where a process is killed after the first group, and the sweep goes on."""
    line = f"sweep ppo {SMALL} --vary gamma=0.5,0.9,0.99 --steps 3200 --at-once 2 --out"
    with rljax(f"{line} one.csv", cwd=tmp_path, place=None, indices=(0,)) as processes:
        ((code, out, err),) = ended(processes)
    assert code == 0, err
    with rljax(f"{line} two.csv", cwd=tmp_path) as processes:
        two = tmp_path / "two.csv"
        while not two.exists() or len(two.read_text().splitlines()) < 3:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.02)
        send(processes[1], signal.SIGKILL)
        assert 0 not in [code for code, *_ in ended(processes)]
    assert 3 <= len(two.read_text().splitlines()) < 7
    with rljax(f"{line} two.csv", cwd=tmp_path) as processes:
        first, second = ended(processes)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert two.read_text() == (tmp_path / "one.csv").read_text()
    assert first[1][:-2] == out[:-2] and second[1] == []


@pytest.mark.parametrize(
    ("line", "place", "variables", "words"),
    [
        (
            "train ppo --distributed",
            None,
            {},
            "found no other processes by Slurm, Open MPI, TPU or Kubernetes; set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID",
        ),
        (
            "train ppo",
            None,
            {"JAX_NUM_PROCESSES": "2"},
            "found no other processes by Slurm, Open MPI, TPU or Kubernetes; set "
            "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID",
        ),
        (
            "train ppo",
            lambda index, port: {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}"},
            {
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "1",
                "RLJAX_INITIALIZATION_TIMEOUT": "1",
            },
            "not all processes were there after 1 s (RLJAX_INITIALIZATION_TIMEOUT)",
        ),
    ],
)
def test_processes_that_are_not_found_are_one_line(
    tmp_path, line, place, variables, words
):
    options = {"cwd": tmp_path, "place": place, "indices": (0,), **variables}
    with rljax(line, **options) as processes:
        ((code, out, err),) = ended(processes)
    assert code == 2 and out == [] and words in err
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_of_the_docs_train_and_evaluate(tmp_path):
    """The lines for one machine, with a free port and fewer steps."""
    text = (DOCS / "scale.md").read_text()
    (script,) = re.findall(r"```sh\n(export .*?)```", text, re.DOTALL)
    script = script.replace("8476", str(free_port()))
    script = script.replace("rljax", f"{sys.executable} -m rljax")
    script = script.replace(" --name", " --steps 4096 --name")
    with started("-c", SHELL, script, cwd=tmp_path, place=None, indices=(0,)) as shell:
        ((code, out, err),) = ended(shell)
    assert code == 0, err
    assert out[-1] == "run folder: runs/pair" and out.count(out[-1]) == 1
    with rljax("evaluate runs/pair --episodes 4", cwd=tmp_path) as processes:
        first, second = ended(processes)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert first[1][0].startswith("evaluation: mean return") and second[1] == []
