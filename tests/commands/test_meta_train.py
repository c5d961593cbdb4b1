"""The command meta-train: its run folder, a kill, agents that learn by its rule."""

import json
import signal
import subprocess
import sys

import chex
import numpy as np
import pytest

from rljax.commands import common, meta_train, train
from rljax.meta.rules import lpg
from rljax.running.logging import read_csv

SMALL = (
    "--iterations 6 --rows 3 --data-parallel 1 --config.num-lifetimes 2 "
    "--config.num-envs 2 --config.rollout-length 4 --config.lifetime 3 "
    "--config.inner-updates 1 --settings.memory-size 3 --settings.y-size 2 "
    "--settings.hidden-size 2 --checkpoint-seconds 0"
)
TESTS = "--test-tasks 3 --no-baselines"


def meta(line):
    meta_train.main(line.split(), "meta-train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the run `whole` is, of three rows, with a test on tasks."""
    path = tmp_path_factory.mktemp("meta")
    meta(f"{SMALL} {TESTS} --out {path} --name whole")
    return path


def test_a_run_leaves_rule_metrics_curve_checkpoint_and_evaluation(folder):
    run = folder / "whole"
    table = read_csv(run / "metrics.csv")
    assert table["step"].tolist() == [2, 4, 6]
    names = {"reward", "late_reward", "policy_entropy", "pi_hat_squared", "seconds"}
    assert names <= table.keys()
    settings, params = lpg.load(run)
    assert settings == lpg.Settings(memory_size=3, y_size=2, hidden_size=2)
    with (run / "curve.png").open("rb") as file:
        assert file.read(4) == b"\x89PNG"
    assert common.latest_step(run) == 6
    found = json.loads((run / "evaluation.json").read_text())
    assert found["tasks"] == 3
    of_tasks = found["return_per_task"]
    assert of_tasks.keys() == {"meta-trained rule", "optimum of each task"}
    best, learned = of_tasks["optimum of each task"], of_tasks["meta-trained rule"]
    assert max(np.subtract(learned, best)) < 1.0  # means of 128 episodes
    assert found["mean_return"]["optimum of each task"] == pytest.approx(np.mean(best))


def test_the_rule_of_a_run_is_tested_without_training(folder, capsys):
    """The same tasks and actions, so the same numbers; nothing is written."""
    before = sorted((folder / "whole").iterdir())
    meta(f"{TESTS} --out {folder} --name whole --test-only")
    found = json.loads((folder / "whole/evaluation.json").read_text())
    mean = found["mean_return"]["meta-trained rule"]
    lines = capsys.readouterr().out.splitlines()
    assert f"{mean:9.3f}" in next(x for x in lines if x.startswith("meta-trained"))
    assert sorted((folder / "whole").iterdir()) == before


KILLED = """
import os, signal, sys
from rljax.commands import meta_train

write, rows = meta_train.CsvSink.write, []

def counted(sink, row):
    write(sink, row)
    rows.append(row)
    if len(rows) == 2:  # beyond the last checkpoint
        os.kill(os.getpid(), signal.SIGKILL)

meta_train.CsvSink.write = counted
meta_train.main(sys.argv[1:], "meta-train")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(folder):
    line = f"{SMALL} --test-tasks 0 --out {folder} --name killed"
    process = subprocess.run([sys.executable, "-c", KILLED, *line.split()], timeout=280)
    assert process.returncode == -signal.SIGKILL
    run, whole = folder / "killed", folder / "whole"
    assert read_csv(run / "metrics.csv")["step"].tolist() == [2, 4]
    assert common.latest_step(run) == 2
    meta(f"--out {folder} --name killed --resume --test-tasks 0 --checkpoint-seconds 0")
    tables = [read_csv(x / "metrics.csv") for x in (run, whole)]
    assert tables[0].keys() == tables[1].keys()
    for name, column in tables[0].items():
        if name not in ("seconds", "steps_per_second"):
            np.testing.assert_array_equal(column, tables[1][name])
    chex.assert_trees_all_equal(*(lpg.load(x)[1] for x in (run, whole)))
    states = [digests(x / "checkpoints/6") for x in (run, whole)]
    assert states[0] == states[1]


def digests(path):
    leaves = json.loads((path / "manifest.json").read_text())["leaves"]
    return {leaf["path"]: leaf["sha256"] for leaf in leaves}


def refused(words, line):
    with pytest.raises(ValueError, match=words) as error:
        meta(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--tasks grid_world", "unknown tasks 'grid_world'; did you mean: grid_worlds"),
        ("--tasks cartpole", "tasks must have observations that name states"),
        ("--iterations 0", "iterations=0"),
        ("--config.gamma 1.5", "gamma=1.5"),
        ("--settings.y-size 0", "y_size=0"),
        ("--data-parallel 0", "data_parallel=0"),
        ("--data-parallel 3", "num_lifetimes=64: must divide by 3 devices"),
        ("--data-parallel 64", "data_parallel=64: there are"),
        ("--resume", "--resume needs --name"),
        ("--resume --name no-such", "no-such: no run here"),
        ("--test-only --name no-such", "no-such: no run here"),
        ("--seeds 3", "unknown option '--seeds'"),
    ],
)
def test_bad_input_is_one_line(tmp_path, options, words):
    refused(words, f"{options} --out {tmp_path}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", ["--seed 1", "--config.gamma 0.5", "--iterations 9"]
)
def test_a_run_goes_on_as_it_began(folder, options):
    field = options.split()[0].removeprefix("--").removeprefix("config.")
    refused(
        f"--name: the run has {field}=.*, not {options.split()[1]}",
        f"--resume --out {folder} --name whole {options}",
    )


def test_other_folders_are_refused(folder, tmp_path):
    refused("whole: exists", f"{SMALL} --out {folder} --name whole")
    (tmp_path / "other").mkdir()
    config = tmp_path / "other/config.json"
    for text in ("{", "[]", '{"command": "train"}', '{"command": "meta-train"}'):
        config.write_text(text)
        refused(
            "damaged or of another command", f"--resume --out {tmp_path} --name other"
        )


def test_an_agent_learns_by_the_run_of_a_rule(folder, tmp_path, capsys):
    line = (
        f"lpg --config.weights {folder}/whole --steps 160 --rows 1 --episodes 2 "
        f"--config.num-envs 2 --config.hidden-sizes 4 --out {tmp_path} --name agent"
    )
    train.main(line.split(), "train")
    assert "evaluation: mean return" in capsys.readouterr().out
    table = read_csv(tmp_path / "agent/metrics.csv")
    assert np.isfinite(table["loss"]).all()


def test_an_agent_needs_a_rule(folder, tmp_path):
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, w=np.ones(3))
    for weights, words in (
        (str(foreign), "no settings of this rule"),
        (str(tmp_path), "No such file"),
    ):
        line = f"lpg --config.weights {weights} --out {tmp_path}"
        with pytest.raises(
            ValueError, match="must be a rule that `rljax meta-train`"
        ) as e:
            train.main(line.split(), "train")
        assert words in str(e.value) and "\n" not in str(e.value)
