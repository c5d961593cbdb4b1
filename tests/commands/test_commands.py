"""The commands as a user runs them: outputs, resume after a kill, errors in a line."""

import csv
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rljax import agents
from rljax.commands import common, train
from rljax.running.logging import read_csv
from rljax.running.plotting import learning_curve, learning_curves

TESTS = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = TESTS.parent / "scripts"
SMALL = {
    "ppo": "--config.num-envs 2 --config.rollout-length 8 --config.num-minibatches 2",
    "dqn": "--config.num-envs 2 --config.capacity 64 --config.warmup-steps 16 "
    "--config.batch-size 16",
}
PPO = f"ppo {SMALL['ppo']} --config.hidden-sizes 8 --seeds 2 --seed 3"
# 113 iterations, a prime number, after a warm-up that is longer than one of 3 chunks.
DQN = f"train dqn {SMALL['dqn']} --config.warmup-steps 100 --steps 326 --rows 4 "
DQN += "--config.hidden-sizes 8 --episodes 0"
SWEEP = f"sweep {PPO} --vary gamma=0.5,0.99 learning_rate=0.01 --steps 320 --episodes 3"
SWEEP += " --at-once 2"


@pytest.fixture(scope="session")
def scripts():
    """Run command lines as scripts, all of them in one process.

    Call it with a folder and lines; it returns exit code, stdout and stderr of each.
    Its `code` runs Python beside the scripts: see script_runner.py.
    """
    command = [sys.executable, str(TESTS / "script_runner.py"), "--answer"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(cwd, **request):
        process.stdin.write(json.dumps({"cwd": str(cwd), **request}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    def run(cwd, *lines, **request):
        return [ask(cwd, line=line, **request) for line in lines]

    run.code = lambda cwd, code: ask(cwd, code=code)
    yield run
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()


def finished(scripts, cwd, *lines):
    for result in scripts(cwd, *lines):
        assert result["code"] == 0, result["err"]


@pytest.fixture(scope="session")
def folder(scripts, tmp_path_factory):
    """A folder with two small finished runs, `ppo` and `dqn`."""
    path = tmp_path_factory.mktemp("scripts")
    learning_rate = "--config.learning-rate 0.01"
    ppo = f"train {PPO} {learning_rate} --steps 320 --name ppo --episodes 3 --rows 4"
    finished(scripts, path, ppo, f"{DQN} --name dqn")
    return path


ASKED_ELSEWHERE = """
from unittest import mock
from rljax.running import hosts
answers = iter([(0, 0), (0, 15)])  # the second chunk: SIGTERM came to another process
with mock.patch.object(hosts, "greatest", lambda due, asked: next(answers)):
    code = run("{line}")
"""


def test_a_signal_to_another_process_stops_this_one(scripts, tmp_path):
    line = f"train {PPO} --steps 320 --episodes 0 --rows 4 --name two"
    stopped = scripts.code(tmp_path, ASKED_ELSEWHERE.format(line=line))
    assert stopped["code"] == 143, stopped["err"]
    assert stopped["out"] == "stopped: --name two --resume goes on\n"
    steps = (tmp_path / "runs" / "two" / "checkpoints").iterdir()
    assert [path.name for path in steps] == ["160"]


COMPILED = """
import jax
found = []

def listen(event, seconds, fun_name="", **rest):
    if event.endswith("backend_compile_duration"):
        found.append(fun_name)

jax.monitoring.register_event_duration_secs_listener(listen)
code = run("{line}")
jax.monitoring.unregister_event_duration_listener(listen)
print("mapped:", sum("mapped" in name for name in found))
"""


@pytest.mark.parametrize("how", ["--seeds 3", "--data-parallel 2"])
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_each_program_is_compiled_once(scripts, tmp_path, how):
    """The chunk and the evaluation, which are compiled before there is a state."""
    settings = PPO.replace("--seeds 2", how)
    line = f"train {settings} --steps 320 --episodes 3 --rows 4 --name"
    (stopped,) = scripts(tmp_path, f"{line} stopped", interrupt=2)
    assert stopped["code"] == 130
    for rest in ("once", "stopped --resume"):
        done = scripts.code(tmp_path, COMPILED.format(line=f"{line} {rest}"))
        assert done["code"] == 0, done["err"]
        assert done["out"].endswith("mapped: 2\n"), (rest, done["out"])


SAME_ON_BOTH = """
import pathlib, jax
from rljax.commands import common
folder = pathlib.Path("runs/part")
states = common.restore_state(folder, common.read_run(folder))
assert all((x[:, 0] == x[:, 1]).all() for x in jax.tree.leaves(states.agent))
assert (states.obs[:, 0] != states.obs[:, 1]).any()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_run_split_over_devices_goes_on_bit_for_bit(scripts, tmp_path):
    """And metrics, counts and evaluation are those of a run of so many steps."""
    line = f"train {PPO} --data-parallel 2 --steps 320 --episodes 3 --rows 4"
    finished(scripts, tmp_path, f"{line} --name whole")
    (stopped,) = scripts(tmp_path, f"{line} --name part", interrupt=2)
    assert stopped["code"] == 130
    whole, part = tmp_path / "runs/whole", tmp_path / "runs/part"
    other, resumed, evaluated = scripts(
        tmp_path,
        "train ppo --name part --resume --data-parallel 1",
        "train ppo --name part --resume --episodes 3",
        "evaluate runs/part --episodes 3",
    )
    assert "the run has data_parallel=2, not 1" in other["err"]
    assert resumed["code"] == 0, resumed["err"]
    tables = [read_csv(run / "metrics.csv") for run in (whole, part)]
    assert tables[0]["step"].tolist() == [80, 80, 160, 160, 240, 240, 320, 320]
    for name in set(tables[0]) - {"seconds", "steps_per_second"}:
        np.testing.assert_array_equal(tables[0][name], tables[1][name])
    kept = [json.loads((run / "evaluation.json").read_text()) for run in (whole, part)]
    assert kept[0] == kept[1] and len(kept[0]["mean_return_per_seed"]) == 2
    assert f"mean return {kept[0]['mean_return']:.1f}" in evaluated["out"]
    same = scripts.code(tmp_path, SAME_ON_BOTH)
    assert same["code"] == 0, same["err"]


@pytest.fixture(scope="session")
def endless(scripts, folder):
    """A run of the folder without an end of an episode."""
    line = "train a2c --env TwoColors-v0 --steps 640 --name endless --episodes 2"
    finished(scripts, folder, f"{line} --rows 4 --config.hidden-sizes 8")
    return folder / "runs" / "endless"


@pytest.fixture(scope="session")
def tuned(scripts, folder):
    """A run of the folder with a tuned discount and a tuned entropy cost."""
    line = "train a2c --steps 1280 --seeds 2 --name tuned --episodes 2 --rows 4 "
    line += "--config.hidden-sizes 8 --config.gamma 0.6 --meta gamma "
    line += "entropy_cost=contextual,0,0.5 --meta-settings.num-updates 2"
    finished(scripts, folder, line)
    return folder / "runs" / "tuned"


def test_a_run_leaves_config_metrics_curve_checkpoint_and_evaluation(folder):
    run = folder / "runs" / "ppo"
    assert json.loads((run / "config.json").read_text())["config"]["gamma"] == 0.99
    table = read_csv(run / "metrics.csv")
    assert table["seed"].tolist() == [3, 4] * 4
    assert len(table["step"]) == 8 and table["step"][-1] == 320
    assert (table["policy_loss"][::2] != table["policy_loss"][1::2]).all()
    assert table["episodes"].sum() > 0
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "checkpoints" / "320" / "manifest.json").exists()
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert len(evaluation["mean_return_per_seed"]) == 2
    assert evaluation["mean_return"] > 5


def test_rewards_are_shown_where_no_episode_ends(scripts, folder, endless, tmp_path):
    table = read_csv(endless / "metrics.csv")
    assert np.isnan(table["episode_return"]).all() and np.ptp(table["reward"]) > 0
    (plot,) = scripts(folder, "plot runs/endless --labels a2c --out endless.png")
    assert plot["code"] == 0, plot["err"]
    curves, picture = {"a2c": (table["step"], table["reward"][None])}, tmp_path / "png"
    for title, path in (
        ("a2c on TwoColors-v0", endless / "curve.png"),
        ("TwoColors-v0", folder / "endless.png"),
    ):
        learning_curve(curves, picture, title=title, ylabel="Reward per step")
        assert path.read_bytes() == picture.read_bytes()
    evaluation = json.loads((endless / "evaluation.json").read_text())
    assert -1000 < evaluation["mean_return"] < 1000 * 0.27


def test_a_tuned_discount_is_in_metrics_picture_and_config(
    scripts, folder, tuned, tmp_path
):
    table = read_csv(tuned / "metrics.csv")
    gamma = table["meta_gamma"].reshape(4, 2)
    assert (gamma > 0.5).all() and (np.diff(gamma, axis=0) != 0).all()
    assert (table["meta_entropy_cost"] < 0.5).all()
    for name in ("gamma", "entropy_cost"):
        assert (table[f"meta_{name}_gradient_norm"] > 0).all()
    below = {
        name: {"a2c": (table["step"][::2], table[f"meta_{name}"].reshape(4, 2).T)}
        for name in ("gamma", "entropy_cost")
    }
    curves = {"a2c": (table["step"][::2], table["episode_return"].reshape(4, 2).T)}
    picture = tmp_path / "png"
    learning_curve(curves, picture, title="a2c on CartPole-v1", below=below)
    assert (tuned / "curve.png").read_bytes() == picture.read_bytes()
    config = json.loads((tuned / "config.json").read_text())
    assert config["meta"] == ["gamma", "entropy_cost=contextual,0,0.5"]
    assert config["meta_settings"]["num_updates"] == 2
    (evaluate,) = scripts(folder, "evaluate runs/tuned --episodes 2")
    trained = json.loads((tuned / "evaluation.json").read_text())
    assert f"mean return {trained['mean_return']:.1f}" in evaluate["out"]


@pytest.mark.usefixtures("tuned", "endless")
def test_runs_that_keep_a_value_are_below_beside_those_that_tune_it(
    scripts, folder, tmp_path
):
    """None where the agent has no such field."""
    line = "plot runs/ppo runs/dqn runs/tuned runs/endless --statistic mean"
    (plot,) = scripts(folder, f"{line} --labels A B C D --out beside.png")
    assert plot["code"] == 0, plot["err"]
    tables = [
        read_csv(folder / "runs" / run / "metrics.csv")
        for run in ("ppo", "dqn", "tuned", "endless")
    ]

    def values(i, name):
        table = tables[i]
        steps, seeds = np.unique(table["step"]), len(np.unique(table["seed"]))
        return steps, table[name].reshape(-1, seeds).T

    def fixed(i, value):
        steps = np.unique(tables[i]["step"])
        return steps, np.full((1, len(steps)), value)

    returns = {label: values(i, "episode_return") for i, label in enumerate("ABC")}
    endless = values(3, "episode_return")
    config = json.loads((folder / "runs/ppo/config.json").read_text())["config"]
    cost = fixed(0, config["entropy_cost"])
    gamma = {"A": fixed(0, 0.99), "B": fixed(1, 0.99), "C": values(2, "meta_gamma")}
    entropy_cost = {"A": cost, "C": values(2, "meta_entropy_cost")}
    picture = learning_curves(
        {"CartPole-v1": returns, "TwoColors-v0": {"D": endless}},
        tmp_path / "png",
        statistic="mean",
        below={
            "gamma": {"CartPole-v1": gamma, "TwoColors-v0": {"D": fixed(3, 0.99)}},
            "entropy_cost": {
                "CartPole-v1": entropy_cost,
                "TwoColors-v0": {"D": fixed(3, 0.0)},
            },
        },
    )
    assert (folder / "beside.png").read_bytes() == picture.read_bytes()


def test_evaluate_and_plot(scripts, folder):
    evaluate, explore, plot = scripts(
        folder,
        "evaluate runs/ppo --episodes 3",
        "evaluate runs/ppo --episodes 3 --explore",
        "plot runs/ppo runs/dqn --labels A B --out both.png",
    )
    assert evaluate["code"] == 0, evaluate["err"]
    trained = json.loads((folder / "runs/ppo/evaluation.json").read_text())
    assert f"mean return {trained['mean_return']:.1f}" in evaluate["out"]
    assert explore["code"] == 0, explore["err"]
    assert explore["out"] != evaluate["out"]
    assert plot["code"] == 0, plot["err"]
    assert (folder / "both.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("resets", ["every_step", "cached"])
def test_an_animation_ends_with_the_episode(scripts, tmp_path, resets):
    train, evaluate = scripts(
        tmp_path,
        "train a2c --env Counter-probe --env-params terminate_at 3 reward 2 "
        f"resets {resets} --steps 8 --config.num-envs 1 --config.rollout-length 8 "
        "--config.hidden-sizes 8 --rows 1 --episodes 0 --name counter",
        "evaluate runs/counter --episodes 1 --gif episode.gif",
    )
    assert train["code"] == 0, train["err"]
    assert evaluate["code"] == 0, evaluate["err"]
    assert "drew 3 steps, return 6.0: episode.gif" in evaluate["out"]
    assert (tmp_path / "episode.gif").read_bytes().startswith(b"GIF8")


@pytest.fixture(scope="session")
def swept(scripts, folder):
    """The CSV of a sweep."""
    (sweep,) = scripts(folder, f"{SWEEP} --out sweep.csv")
    assert sweep["code"] == 0, sweep["err"]
    assert "2 of 4 runs" in sweep["err"] and "4 of 4 runs" in sweep["err"]
    return folder / "sweep.csv"


def test_a_row_of_a_sweep_is_the_run_of_its_seed(folder, swept):
    with swept.open() as file:
        rows = list(csv.DictReader(file))
    names = ("gamma", "seed", "return")
    table = {name: np.array([float(row[name]) for row in rows]) for name in names}
    assert len(table["return"]) == 4 and set(table["gamma"]) == {0.5, 0.99}
    means = table["return"].reshape(2, 2).mean(axis=1)
    assert means[0] >= means[1]  # the best combination comes first
    assert table["seed"].tolist() == [3, 4] * 2
    trained = json.loads((folder / "runs/ppo/evaluation.json").read_text())
    returns = table["return"][table["gamma"] == 0.99]
    np.testing.assert_allclose(returns, trained["mean_return_per_seed"], rtol=1e-6)


BREAK_OFF = """
from rljax.commands import folders
write, texts = folders.write_text, []
def once(path, text):
    if len(texts) == 2:  # that before the first group, and after it
        raise KeyboardInterrupt
    texts.append(write(path, text))
folders.write_text = once
try:
    code = run("{line}")
finally:
    folders.write_text = write
"""


def test_a_broken_off_sweep_goes_on(scripts, swept, tmp_path):
    """The same command computes what is missing, and ends with the same file."""
    part, line = tmp_path / "part.csv", f"{SWEEP} --out part.csv"
    broken = scripts.code(tmp_path, BREAK_OFF.format(line=line))
    assert broken["code"] == 130
    assert len(part.read_text().splitlines()) == 3  # one group is lost, not two
    left, nothing, other = scripts(tmp_path, line, line, f"{line} --episodes 4")
    assert left["code"] == 0, left["err"]
    assert left["err"].count(" of 4 runs") == 2
    assert "2 runs, 640 steps" in left["out"]
    whole = swept.read_text()
    assert part.read_text() == whole
    assert nothing["code"] == 0 and "0 runs, 0 steps" in nothing["out"]
    assert other["code"] == 2 and "part.csv: holds another sweep" in other["err"]
    assert part.read_text() == whole and list(tmp_path.iterdir()) == [part]


BAD = {
    "unknown agent": ("train pppo", "unknown agent 'pppo'; did you mean: ppo"),
    "unknown environment": ("train ppo --env CartPol", "did you mean: CartPole-v1"),
    "field to tune": ("train a2c --meta gama", "'gama'; did you mean: gamma"),
    "static field to tune": ("train a2c --meta num_envs", "num_envs: shapes the"),
    "bounds": ("train a2c --meta gamma=bounded,0,2", "gamma=2.0: must be in"),
    "no derivative": (
        "train ppo --steps 512 --config.max-kl 0.1 --meta max_kl --name cut --rows 1",
        "max_kl: the meta-gradient is zero whatever the data",
    ),
    "other tuning": (
        "train a2c --name tuned --resume --meta-settings.outer-gamma 0.5",
        "the run has meta_settings.outer_gamma=0.99, not 0.5",
    ),
    "more devices than there are": (
        "train ppo --data-parallel 64 --config.num-envs 64",
        "data_parallel=64: there are",
    ),
    "no devices": ("train ppo --data-parallel 0", "data_parallel=0: must be"),
    "environments that do not divide": (
        "train ppo --config.num-envs 3 --data-parallel 2",
        "num_envs=3: must divide by 2 shards",
    ),
    "unknown option": ("train ppo --config.gama 0.9", "mean: --config.gamma"),
    "underscore at the end": ("train ppo --config.lambda 1", "--config.lambda_"),
    "setting": (
        "train ppo --meta-settings.outer-gama 1",
        "mean: --meta-settings.outer-gamma",
    ),
    "unknown environment to measure on": (
        "gradient_variance --env CartPol",
        "did you mean: CartPole-v1",
    ),
    "no number": ("train ppo --config.gamma high", "gamma"),
    "unknown parameter": ("train ppo --env-params gravit 9", "mean: gravity"),
    "parameter no number": ("train ppo --env-params gravity heavy", "heavy"),
    "negative rate": ("train ppo --config.learning-rate -1", "learning_rate=-1.0"),
    "gamma 1.5": ("train dqn --config.gamma 1.5", "gamma=1.5: must be in [0.0, 1.0]"),
    "minibatches": ("train ppo --config.num-minibatches 7", "num_minibatches=7"),
    "continuous for dqn": ("train dqn --env Pendulum-v1", "discrete"),
    "seed below 0": ("train ppo --seed -1", "seed=-1: must be in [0, 4294967295]"),
    "seed beyond uint32": ("sweep ppo --vary gamma=0.9 --seed 4294967296", "seed="),
    "last seed": (
        "train ppo --seed 4294967295 --seeds 2",
        "seeds=2: the last one is 4294967296",
    ),
    "seed of tasks": ("maml --seed 4294967296", "seed=4294967296: must be in"),
    "seed of variance": ("gradient_variance --seed -3", "seed=-3: must be in"),
    "number of environments": (
        "train ppo --config.num-envs 3000000000",
        "num_envs=3000000000: must be in [-2147483647, 2147483647]",
    ),
    "layers": ("train ppo --config.hidden-sizes 8 2147483648", "hidden_sizes=21474"),
    "rate beyond float32": ("train ppo --config.learning-rate 1e39", "rate=1e+39: mu"),
    "updates": ("train a2c --meta-settings.num-updates 2147483648", "num_updates=2147"),
    "limit": (
        "train ppo --env-params max_steps_in_episode 10000000000",
        "max_steps_in_episode=10000000000: must be in",
    ),
    "infinite parameter": ("train ppo --env-params gravity 1e999", "gravity=1e999"),
    "steps 0": ("train ppo --steps 0", "total_steps=0: must be"),
    "rows 0": ("train ppo --rows 0", "rows=0: must be in [1, 1000000]"),
    "rows": ("train ppo --rows -1", "rows=-1: must be in"),
    "episodes below 0": ("train a2c --episodes -3", "episodes=-3: must be in [0, "),
    "time nan": ("train a2c --checkpoint-seconds nan", "checkpoint_seconds=nan: must"),
    "time below 0": ("train a2c --checkpoint-seconds -1", "checkpoint_seconds=-1.0"),
    "sweep without episodes": (
        "sweep a2c --vary gamma=0.9 --episodes 0",
        "episodes=0: must be in [1, ",
    ),
    "sweep without seeds": ("sweep a2c --vary gamma=0.9 --seeds 0", "seeds=0: must"),
    "empty groups": ("sweep a2c --vary gamma=0.9 --at-once 0", "at_once=0: must be in"),
    "sweep of nan": ("sweep a2c --vary gamma=nan", "gamma=nan: must be in"),
    "sweep of a value twice": ("sweep a2c --vary gamma=0.9,0.90", "is there twice"),
    "sweep of a name twice": ("sweep a2c --vary gamma=0.9 gamma=1", "is there twice"),
    "sweep over another file": (
        "sweep a2c --vary gamma=0.9 --out both.txt",
        "both.txt: exists and is something else; not overwritten",
    ),
    "no test tasks": ("maml --test-tasks -1", "test_tasks=-1: must be in"),
    "log exists": ("maml --out both.txt", "both.txt: exists; not overwritten"),
    "no batches": ("gradient_variance --batches 0", "batches=0: must be in"),
    "no repeats": ("benchmark --repeats 0", "--repeats 0: must be at least 1"),
    "no timeout": ("benchmark --timeout nan", "--timeout nan: must be above 0"),
    "benchmark over another file": ("benchmark --out both.txt", "both.txt: exists and"),
    "picture over another file": ("plot runs/ppo --out both.txt", "both.txt: exists"),
    "animation over another file": (
        "evaluate runs/ppo --gif both.txt",
        "both.txt: exists and is something else",
    ),
    "no network": ("train a2c --env Download-probe --name x", "no network"),
    "in use": ("train ppo --name live --resume", "live: exists, in use by another"),
    "plot no rows": ("plot runs/ppo runs/empty", "runs/empty: no rows yet"),
    "plot columns alone": ("plot runs/head", "runs/head: no rows yet"),
    "plot part of a step": ("plot runs/half", "runs/half: no rows yet"),
    "no seeds": ("train ppo --seeds 0", "seeds=0"),
    "folder exists": ("train ppo --name ppo", "exists"),
    "not a folder": ("train ppo --out both.txt --name x", "both.txt"),
    "resume nothing": ("train ppo --name none --resume", "no run"),
    "resume without name": ("train ppo --resume", "--name"),
    "resume another run": (
        "train ppo --name ppo --resume --config.gamma 0.5",
        "config.gamma=0.99, not 0.5",
    ),
    "resume another agent": ("train dqn --name ppo --resume", "agent=ppo, not dqn"),
    "corrupt checkpoint": ("train ppo --name corrupt --resume", "corrupt"),
    "foreign checkpoint": ("train ppo --name foreign --resume", "foreign"),
    "missing checkpoint": ("evaluate runs/missing", "no checkpoint"),
    "corrupt config": ("evaluate runs/badconfig", "config.json"),
    "no run": ("evaluate nowhere", "no run here"),
    "no episodes": ("evaluate runs/ppo --episodes 0", "episodes=0"),
    "plot nothing": ("plot nowhere", "no run here"),
    "plot with few labels": ("plot runs/ppo runs/dqn --labels A", "1 for 2 runs"),
    "plot label twice": ("plot runs/ppo runs/dqn --labels A A", "stands for two runs"),
    "sweep an unknown field": (
        "sweep ppo --vary num_env=1,2",
        "did you mean: num_envs",
    ),
    "sweep bad value": ("sweep ppo --vary gamma=0.9,1.5", "gamma=1.5"),
    "unknown tasks": ("maml --tasks cartpol", "did you mean: cartpole"),
    "no updates": ("maml --iterations 0", "iterations=0"),
    "inner rate 0": ("maml --config.inner-rate 0", "inner_rate=0.0"),
    "nan rewards": (
        "train ppo --env Counter-probe --env-params nan_at 3 --steps 64 --name nan "
        f"{SMALL['ppo']} --config.hidden-sizes 8",
        "is nan at step 16, seed 0; no checkpoint was written",
    ),
}


@pytest.mark.slow
def test_gradient_norms_are_the_best_priorities(scripts, tmp_path):
    """Measures the variance of gradients; the fast tests know that norms are exact."""
    line = "gradient_variance --steps 3000 --transitions 1000 --batches 300"
    (done,) = scripts(tmp_path, line)
    assert done["code"] == 0, done["err"]
    rows = [line.split() for line in done["out"].splitlines()[2:]]
    exact, measured, least, share = np.array([row[1:] for row in rows], float).T
    assert [row[0] for row in rows] == ["uniform", "td_error", "grad_norm"]
    assert exact[0] > exact[1] > exact[2]
    np.testing.assert_allclose(exact[2], least[2], rtol=1e-3)
    np.testing.assert_allclose(least, least[0], rtol=1e-3)
    np.testing.assert_allclose(share, exact / exact[0], atol=1e-3)
    # Measured over few batches, whose draws from equal shares are a little better.
    assert (measured / exact > 0.6).all() and (measured / exact < 1.2).all()


def test_maml_adapts_and_states_the_gap(scripts, tmp_path):
    line = "maml --iterations 4 --rows 2 --test-tasks 5 --out log.csv "
    small = "--config.first-order --config.num-tasks 3 --config.num-envs 4 "
    (done,) = scripts(tmp_path, line + small + "--hidden-sizes 8")
    assert done["code"] == 0, done["err"]
    assert "4 of 4 updates" in done["out"] and "gap" in done["out"]
    assert list(read_csv(tmp_path / "log.csv")["iteration"]) == [1, 2, 3, 4]


CUT = {"empty": 0, "head": 1, "half": 2}  # lines of metrics that are left


def cut_metrics(run, lines):
    path = run / "metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


@pytest.fixture(scope="session")
def bad(scripts, folder, tuned):
    """Run a line of BAD, by name, in a folder of broken runs; it changes nothing."""
    runs = folder / "runs"
    (folder / "both.txt").write_text("not a folder")
    copies = ("corrupt", "foreign", "missing", "badconfig", "live", *CUT)
    for name in copies:
        shutil.copytree(runs / "ppo", runs / name)
    for name, lines in CUT.items():
        cut_metrics(runs / name, lines)
    array = max((runs / "corrupt/checkpoints/320/arrays").rglob("d/*"))
    array.write_bytes(array.read_bytes()[:-20])
    shutil.rmtree(runs / "foreign/checkpoints")
    shutil.copytree(runs / "dqn/checkpoints", runs / "foreign/checkpoints")
    shutil.rmtree(runs / "missing/checkpoints")
    (runs / "badconfig/config.json").write_text('{"agent": "ppo"}')

    def run(name):
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        there = {p.name for p in runs.iterdir()}
        (result,) = scripts(folder, BAD[name][0])
        changed = [p for p, content in before.items() if p.read_bytes() != content]
        assert not changed
        made = {p.name for p in runs.iterdir()} - there
        assert made == ({"nan"} if name == "nan rewards" else set())  # it has rows
        return result

    with (runs / "live/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield run


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(bad, name):
    result = bad(name)
    assert result["code"] == 2, result
    assert "Traceback" not in result["err"] + result["out"]
    errors = [line for line in result["err"].splitlines() if "error" in line.lower()]
    assert len(errors) == 1
    assert BAD[name][1] in result["err"]


def test_help_lists_agents_environments_and_every_field(scripts, tmp_path):
    every, fields = scripts(tmp_path, "train --help", "train ppo --help")
    names = ", ".join(agents.names())
    assert f"agents: {names}" in every["out"]
    assert "Breakout-MinAtar" in every["out"]
    assert "--config.clip-epsilon" in fields["out"] and "0.2" in fields["out"]


def same_run(run, other):
    """The last checkpoint and the metrics of two runs are equal, bit for bit."""
    assert final_checkpoint(run) == final_checkpoint(other)
    columns, others = (read_csv(x / "metrics.csv") for x in (run, other))
    for name in columns.keys() - {"seconds", "steps_per_second"}:
        np.testing.assert_array_equal(columns[name], others[name], err_msg=name)


def final_checkpoint(run):
    step = max(int(p.name) for p in (run / "checkpoints").iterdir())
    leaves = json.loads((run / f"checkpoints/{step}/manifest.json").read_text())
    return step, [leaf["sha256"] for leaf in leaves["leaves"]]


FULL = """
import errno
from rljax.logging import CsvSink
def full(self, row):
    raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
write, CsvSink.write = CsvSink.write, full
try:
    code = run("{line}")
finally:
    CsvSink.write = write
"""


def test_stopped_and_resumed_equals_uninterrupted(scripts, folder):
    """Stopped by Ctrl-C, then by SIGTERM, then by a disk that is full."""
    whole, run = folder / "runs/dqn", folder / "runs/stopped"
    line = f"{DQN} --name stopped"
    for number, end, resume in (
        (signal.SIGINT, 176, ""),
        (signal.SIGTERM, 252, " --resume"),
    ):
        (stopped,) = scripts(folder, line + resume, interrupt=1, signal=number)
        assert stopped["code"] == 128 + number, stopped["err"]
        assert "--name stopped --resume goes on" in stopped["out"]
        step, _ = final_checkpoint(run)
        assert read_csv(run / "metrics.csv")["step"][-1] == step == end
    full = scripts.code(folder, FULL.format(line=line + " --resume"))
    assert full["code"] == 2
    assert full["err"] == "error: runs/stopped/metrics.csv: No space left on device\n"
    (resumed,) = scripts(folder, line + " --resume")
    assert resumed["code"] == 0, resumed["err"]
    assert final_checkpoint(whole)[0] == 328  # not less than was asked for
    same_run(whole, run)
    assert not (run / "lock").exists()


def test_a_full_disk_at_the_first_row_gives_the_name_back(scripts, folder):
    line = "train a2c --steps 64 --config.hidden-sizes 8 --config.num-envs 2 "
    full = scripts.code(folder, FULL.format(line=line + "--rows 1 --name full"))
    assert full["code"] == 2
    assert full["err"] == "error: runs/full/metrics.csv: No space left on device\n"
    assert not (folder / "runs/full").exists()


def test_plot_draws_the_complete_steps_of_a_run_that_writes(scripts, folder):
    shutil.copytree(folder / "runs/ppo", folder / "runs/writes")
    for lines, cut in ((5, "writes"), (4, "writes")):
        cut_metrics(folder / "runs" / cut, lines)
        (plot,) = scripts(folder, f"plot runs/{cut} --labels a --out {lines}.png")
        assert plot["code"] == 0, plot["err"]
    table = {k: v[:4] for k, v in read_csv(folder / "runs/ppo/metrics.csv").items()}
    for lines, steps in ((5, 2), (4, 1)):
        returns = table["episode_return"].reshape(2, 2).T[:, :steps]
        curves = {"a": (table["step"][::2][:steps], returns)}
        picture = learning_curve(curves, folder / "wanted.png", title="CartPole-v1")
        assert (folder / f"{lines}.png").read_bytes() == picture.read_bytes()


def test_a_run_whose_last_step_lacks_a_row_goes_on(scripts, folder):
    shutil.copytree(folder / "runs/ppo", folder / "runs/lacks")
    cut_metrics(folder / "runs/lacks", 8)
    line = f"train {PPO} --config.learning-rate 0.01 --steps 320 --rows 4 --episodes 0"
    (resumed,) = scripts(folder, f"{line} --name lacks --resume")
    assert resumed["code"] == 0, resumed["err"]


def test_all_is_written_down_by_name_and_without_what_has_no_path(capsys, monkeypatch):
    line = "ppo --meta all lambda_=bounded,0.5,1 --config.hidden-sizes 8"
    run, _ = train.parse_command_line(f"{line} --config.no-clip-value".split(), "train")
    found = "learning_rate gamma entropy_cost lambda_=bounded,0.5,1"
    assert run.meta == tuple(found.split())
    assert capsys.readouterr().out == f"tuned: {', '.join(run.meta)}\n"
    run, _ = train.parse_command_line(line.split(), "train")
    assert "clip_epsilon" in run.meta
    monkeypatch.setattr(common, "tunable", lambda *args, learned: {})
    with pytest.raises(ValueError, match="all: no field with a declared range"):
        train.parse_command_line(["a2c", "--meta", "all"], "train")
    learns = ["a2c", "--meta", "all", "--meta-reward"]
    assert train.parse_command_line(learns, "train")[0].meta == ()


NUMBERS = """
import dataclasses, pathlib, types
import jax, jax.numpy as jnp, numpy as np
from rljax.commands import common, train
from rljax.commands.evaluations import Evaluations
from rljax.checkpoint import latest, save
import rljax.running.logging

a2c = common.agents.get("a2c")
config = a2c.Config(num_envs=2**20, rollout_length=2**10, total_steps=10_000_000_000)
run_ = common.Run("a2c", "CartPole-v1", {}, 2, 2**32 - 2, 10, config)
assert jax.random.key_data(run_.keys()).tolist() == [[0, 2**32 - 2], [0, 2**32 - 1]]
small = dataclasses.replace(run_, seed=3, seeds=4)
keys = [jax.random.key_data(jax.random.key(seed)).tolist() for seed in range(3, 7)]
assert jax.random.key_data(small.keys()).tolist() == keys
assert jax.random.key_data(common.key(3)).tolist() == keys[0]

class Fake(common.Run):
    def build(self): return None, None
    def map_runs(self, function):
        names = ("reward", "episodes", "episode_return", "episode_length")
        zeros = {name: jnp.zeros((2, 1)) for name in names}
        step = jnp.full((2, 1), 2**31 - 1)
        return lambda ts: (ts + 1.0, zeros | {"step": step})

fake = Fake(**{f.name: getattr(run_, f.name) for f in dataclasses.fields(run_)})
folder, rows = pathlib.Path("many"), []
save(folder / "checkpoints", 2**30, np.float32([1.0]))
restore, common.restore_state = common.restore_state, lambda *_: jnp.array([1.0])
options = types.SimpleNamespace(allow_nan=False, checkpoint_seconds=1e9)
sink = types.SimpleNamespace(write=rows.append, sync=lambda: None)
try:
    ts = train.train_in_chunks(
        fake,
        options,
        folder,
        sinks=[sink],
        evaluations=Evaluations(fake, folder),
        stop=train.Interrupt(),
        chunk=jax.jit(fake.map_runs(None), donate_argnums=0),
        start=train.start_state(fake, folder),
    )
finally:
    common.restore_state = restore
assert float(ts[0]) == 10, ts
steps = [2**30 * i for i in range(2, 11)]
assert [row["step"] for row in rows[::2]] == steps, rows
assert [row["seed"] for row in rows[:2]] == [2**32 - 2, 2**32 - 1]
assert all(np.isnan(row["episode_return"]) for row in rows)
assert latest(folder / "checkpoints") == steps[-1] >= 10_000_000_000
"""


def test_steps_and_seeds_beyond_int32(scripts, tmp_path):
    """A run that goes on from a checkpoint whose number is just below 2**31."""
    numbers = scripts.code(tmp_path, NUMBERS)
    assert numbers["code"] == 0, numbers["err"]
    assert "100% of 21.5G steps" in numbers["err"]


DEFAULT_NAMES = """
import contextlib, datetime, types, pathlib
from rljax.commands import common, train

class Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz=None): return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

train.datetime = types.SimpleNamespace(datetime=Frozen)
run_ = types.SimpleNamespace(agent="ppo", env="CartPole-v1")
options = types.SimpleNamespace(out=pathlib.Path("runs"), name=None, resume=False)
with contextlib.ExitStack() as stack:
    for _ in range(3):
        print(stack.enter_context(train.run_folder(run_, options)).name)
"""


def test_default_names_of_one_second_differ(scripts, tmp_path):
    frozen = scripts.code(tmp_path, DEFAULT_NAMES)
    assert frozen["code"] == 0, frozen["err"]
    name = "ppo-CartPole-v1-20260102-030405"
    assert frozen["out"].split() == [name, f"{name}-2", f"{name}-3"]


GROUPS = """
import jax
from rljax.commands import sweep
devices = len(jax.devices())
for runs, at_once in ((1, 1), (devices, 1), (9, 1), (15, 4), (256, 1), (1000, 4)):
    size = sweep.group_size(runs, at_once)
    groups = -(-runs // size)
    assert size <= devices or size % devices == 0
    assert size >= min(runs, 8) and (groups - 1) * size < runs <= groups * size
    print(runs, size, groups)
"""


def test_sweeps_run_in_groups_that_keep_devices_busy(scripts, tmp_path):
    groups = scripts.code(tmp_path, GROUPS)
    assert groups["code"] == 0, groups["err"]
    runs, size, count = np.loadtxt(groups["out"].splitlines(), int).T
    assert (count[:3] == 1).all() and count[4] >= 2
    assert (size * count < runs + 2 * size).all()


MEMORY = f"""
from unittest import mock
from rljax.commands import sweep
from rljax.running import sharding

words = "{PPO} --vary gamma=0.9,0.99 --seeds 8 --steps 320".split()
sizes, needed = [], []
for there in (10**9, 1):
    with mock.patch.object(sharding, "bytes_of_a_device", lambda: there):
        swept, _ = sweep.parse_command_line(words, "sweep")
        program, size = sweep.fitting_program(swept, 16)
    needed.append(sharding.bytes_needed(program))
    sizes.append(size)
import jax
assert sizes == [16, len(jax.devices())], sizes
assert needed[0] > needed[1] > 1000, needed
assert sharding.bytes_of_a_device() > 10**8
"""


def test_a_group_of_a_sweep_is_as_large_as_its_memory_allows(scripts, tmp_path):
    fitting = scripts.code(tmp_path, MEMORY)
    assert fitting["code"] == 0, fitting["err"]


def test_an_environment_is_looked_at(scripts, tmp_path):
    """A line per finding; training starts with those that are no notes."""
    (tmp_path / "file").touch()
    short = "--env-params max_steps_in_episode 1"
    rooms, nothing, wrong, unknown, run = scripts(
        tmp_path,
        "check_env FourRooms-misc --steps 0",
        "check_env CartPole-v1 --steps 0",
        f"check_env CartPole-v1 {short} --steps 0",
        "check_env CartPole",
        f"train a2c {short} --out file",
    )
    note = "note: FourRooms-misc: observations are int32, their space float32\n"
    assert (rooms["code"], rooms["out"]) == (0, note)
    assert nothing["out"] == "CartPole-v1: nothing found\n"
    assert "warning: CartPole-v1: max_steps_in_episode=1" in wrong["out"]
    assert unknown["code"] == 2 and "did you mean: CartPole-v1" in unknown["err"]
    assert run["code"] == 2 and run["err"].startswith(wrong["out"])


def test_a_preset_for_other_parameters_is_told(scripts, tmp_path):
    params = "--env-params normalize_obs True normalize_rewards"
    line = "train ppo --env MountainCarContinuous-v0 --seeds 0"
    bare, without, other, measured, swept = scripts(
        tmp_path,
        line,
        f"{line} --env-params normalize_obs False",
        f"{line} {params} 0.9",
        f"{line} {params} 0.99",
        f"sweep c51 --vary gamma=2 {params} 0.99",
    )
    note = "note: the preset of ppo for MountainCarContinuous-v0 is for --env-params "
    for result in (without, other):
        assert result["err"].startswith(note + "normalize_obs True normalize_rewards")
    assert "preset" not in bare["err"] + measured["err"]
    assert "note: the preset of c51 for CartPole-v1 is for no --env-" in swept["err"]


def test_a_run_with_what_its_preset_brings_goes_on(scripts, tmp_path):
    """The parameters are recorded; the same command, and --name alone, go on."""
    line = f"train ppo --env MountainCarContinuous-v0 {SMALL['ppo']} --steps 32 "
    line += "--rows 1 --episodes 0 --name car"
    given = "--env-params max_steps_in_episode 999 normalize_obs True"
    first, again, same, without, other = scripts(
        tmp_path,
        f"{line} {given}",
        "train ppo --name car --resume --episodes 0",
        f"{line} {given} --resume",
        f"{line} --resume",
        f"{line} --env-params normalize_obs False --resume",
    )
    assert first["code"] == 0, first["err"]
    config = json.loads((tmp_path / "runs/car/config.json").read_text())
    brought = {"normalize_obs": True, "normalize_rewards": 0.99}
    assert config["env_params"] == brought | {"max_steps_in_episode": 999}
    assert config["config"]["entropy_cost"] == 0.0
    for result in (again, same, without):
        assert result["code"] == 0, result["err"]
    assert other["code"] == 2 and "not {'normalize_obs': False}" in other["err"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    """The signal comes from outside, while a chunk runs."""
    command = [sys.executable, str(SCRIPTS / "train.py"), "ppo", *SMALL["ppo"].split()]
    command += ["--steps", "10000000", "--rows", "1000", "--name", "stopped"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-3, text=True)
    metrics = tmp_path / "runs/stopped/metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size > 300):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "--name stopped --resume goes on" in out
    step, _ = final_checkpoint(tmp_path / "runs/stopped")
    assert step == read_csv(metrics)["step"][-1]
