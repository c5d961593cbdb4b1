"""Kills, full disks and damage at random: nothing that was saved is lost."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from rljax.running.checkpoint import CheckpointError, latest, restore, save
from rljax.running.logging import read_csv

TESTS = pathlib.Path(__file__).resolve().parents[1]
TRAIN = TESTS.parent / "scripts" / "train.py"
SMALL = {
    "ppo": "--config.num-envs 2 --config.rollout-length 8 --config.num-minibatches 2",
    "dqn": "--config.num-envs 2 --config.capacity 64 --config.warmup-steps 100 "
    "--config.batch-size 16",
}
KILLS, FULL_DISKS = 30, 10  # of each agent
TMPFS = 2**20  # bytes of a disk that is soon full


def line(agent, steps, rows):
    small = f"{SMALL[agent]} --config.hidden-sizes 8 --seeds 2"
    times = f"--steps {steps} --rows {rows} --episodes 0 --checkpoint-seconds 0"
    return f"{agent} {small} {times}"


def variables(folder):
    """Programs are compiled once for all processes."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def result(run):
    """The final parameters and the metrics but for times."""
    step = latest(run / "checkpoints")
    manifest = json.loads((run / f"checkpoints/{step}/manifest.json").read_text())
    table = read_csv(run / "metrics.csv")
    for name in ("seconds", "steps_per_second"):
        del table[name]
    return step, [leaf["sha256"] for leaf in manifest["leaves"]], table


def same(run, other):
    (step, leaves, table), (step_2, leaves_2, table_2) = result(run), result(other)
    assert (step, leaves) == (step_2, leaves_2)
    assert list(table) == list(table_2)
    for name, column in table.items():
        np.testing.assert_array_equal(column, table_2[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("agent", SMALL)
def test_runs_killed_at_any_time_end_as_if_they_had_not_been(tmp_path, agent, capsys):
    """Kills processes at random times of their whole lives, imports included."""
    words = line(agent, steps=6_000, rows=24).split()

    def start(name):
        resume = (
            ["--resume"] if (tmp_path / "runs" / name / "config.json").exists() else []
        )
        command = [sys.executable, str(TRAIN), *words, "--name", name, *resume]
        return subprocess.Popen(
            command, cwd=tmp_path, env=variables(tmp_path), stdout=-3, stderr=-1
        )

    def finish(name):
        process = start(name)
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors.decode()

    finish("first")  # compiles
    begin = time.monotonic()
    finish("whole")
    life, draw = time.monotonic() - begin, random.Random(0)
    killed = runs = 0
    while killed < KILLS:
        runs += 1
        name = f"run-{runs}"
        while killed < KILLS:
            process = start(name)
            try:
                _, errors = process.communicate(timeout=draw.uniform(0, life))
                assert process.returncode == 0, errors.decode()
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                killed += 1
        finish(name)
        same(tmp_path / "runs/whole", tmp_path / "runs" / name)
    with capsys.disabled():
        print(f"\n{agent}: {killed} kills of {runs} runs, nothing lost ({life:.1f} s)")


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own, and a function that leaves it some free bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={TMPFS}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if mounted.returncode:
        pytest.skip("a disk may not be mounted here")

    def leave(free):
        filler = folder / "filler"
        filler.unlink(missing_ok=True)
        if free is not None:
            state = os.statvfs(folder)
            size = max(0, state.f_bavail * state.f_frsize - free)
            filler.write_bytes(bytes(size))

    yield folder, leave
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def train(tmp_path):
    """Runs a line in one process with others, in a folder."""
    command = [sys.executable, str(TESTS / "script_runner.py"), "--answer"]
    process = subprocess.Popen(
        command, stdin=-1, stdout=-1, text=True, env=variables(tmp_path)
    )

    def run(cwd, words):
        process.stdin.write(json.dumps({"cwd": str(cwd), "line": words}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("agent", SMALL)
def test_runs_on_a_full_disk_end_in_a_line_and_go_on(
    tmp_path, agent, disk, train, capsys
):
    """A real disk: writes fail where no function can be replaced."""
    folder, leave = disk

    def start(cwd, name):
        resume = " --resume" if (cwd / "runs" / name / "config.json").exists() else ""
        small = line(agent, steps=4_000, rows=12)
        return train(cwd, f"train {small} --name {name}{resume}")

    done = start(tmp_path, "whole")
    assert done["code"] == 0, done["err"]
    whole, draw = tmp_path / "runs/whole", random.Random(1)
    failed, runs, failures = 0, 0, []
    while failed < FULL_DISKS:
        runs += 1
        name = f"run-{runs}"
        run = folder / "runs" / name
        while failed < FULL_DISKS and draw.random() < 0.8:
            leave(draw.randrange(2 * size(whole)))
            before = latest(run / "checkpoints") or 0
            done = start(folder, name)
            leave(None)
            if done["code"] == 0:
                break
            failed += 1
            failures.append(check_one_line(done))
            assert (latest(run / "checkpoints") or 0) >= before
        done = start(folder, name)
        assert done["code"] == 0, done["err"]
        same(whole, run)
        shutil.rmtree(run)
    with capsys.disabled():
        print(f"\n{agent}: {failed} full disks in {runs} runs, nothing lost", *failures)


def check_one_line(done):
    """Of a run on a full disk, which says what could not be written."""
    errors = [x for x in done["err"].splitlines() if "error" in x.lower()]
    assert done["code"] == 2 and len(errors) == 1, done
    assert "Traceback" not in done["err"] + done["out"], done["err"]
    assert errors[0].startswith("error: ") and "No space left on device" in errors[0]
    return "/".join(errors[0].split("/")[-2:]).partition(":")[0]


def size(path):
    """Bytes that its files take on a disk."""
    files = [p for p in path.rglob("*") if p.is_file()]
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in files)


@pytest.fixture
def tiny(tmp_path):
    """A checkpoint of a small tree, and the tree."""
    state = {"w": jnp.arange(3.0), "n": np.int32(7)}
    save(tmp_path, 1, state)
    return tmp_path, state


def refused(tiny):
    with pytest.raises(CheckpointError) as error:
        restore(*tiny)
    assert "\n" not in str(error.value) and f"{tiny[0]}/1: " in str(error.value)


def damage(tiny, every):
    """Changes bytes of every file, cuts and removes the file; how many ways."""
    draw, count = random.Random(0), 0
    for path in sorted(p for p in tiny[0].rglob("*") if p.is_file()):
        good = path.read_bytes()
        places = range(0, len(good), 1 if every else max(1, len(good) // 6))
        kinds = [good[:i] for i in places] + [good + b"\n", None]
        for i in places:
            other = draw.choice([x for x in range(256) if x != good[i]])
            for value in {other, good[i] ^ 1, *b" \t\n\r"} - {good[i]}:
                kinds.append(good[:i] + bytes([value]) + good[i + 1 :])
        for bad in kinds:
            path.unlink() if bad is None else path.write_bytes(bad)
            refused(tiny)
            count += 1
        path.write_bytes(good)
    restore(*tiny)
    return count


def test_a_checkpoint_with_a_changed_byte_or_a_cut_file_is_refused(tiny):
    assert damage(tiny, every=False) > 200


def test_a_manifest_with_any_byte_changed_is_refused(tiny):
    """Also one between the values, where JSON reads the same."""
    path = tiny[0] / "1/manifest.json"
    good = path.read_bytes()
    for i, byte in enumerate(good):
        path.write_bytes(good[:i] + (b"\t" if byte == 32 else b" ") + good[i + 1 :])
        refused(tiny)
    for i in (i for i, byte in enumerate(good) if byte == 10):
        path.write_bytes(good[:i] + b"\r" + good[i + 1 :])
        refused(tiny)


def test_a_checkpoint_without_its_manifest_does_not_make_way_for_an_older_one(tiny):
    save(tiny[0], 2, {"w": jnp.zeros(3), "n": np.int32(8)})
    (tiny[0] / "2/manifest.json").unlink()
    assert latest(tiny[0]) == 2
    with pytest.raises(CheckpointError, match=r"/2: unreadable.*other steps here: \[1"):
        restore(*tiny)


@pytest.mark.slow
def test_a_checkpoint_with_any_byte_changed_or_cut_is_refused(tiny, capsys):
    """Every byte of every file."""
    count = damage(tiny, every=True)
    with capsys.disabled():
        print(f"\n{count} kinds of damage to a checkpoint, all refused")
