"""The scripts as a user runs them: outputs, resume after a kill, errors in a line."""

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

from rljax.logging import read_csv
from rljax.plotting import learning_curve, learning_curves

TESTS = pathlib.Path(__file__).resolve().parent
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


@pytest.fixture(scope="module")
def scripts():
    """Run command lines as scripts, all of them in one process.

    Call it with a folder and lines; it returns exit code, stdout and stderr of each.
    """
    command = [sys.executable, str(TESTS / "script_runner.py"), "--answer"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(cwd, *lines, interrupt=None):
        results = []
        for line in lines:
            request = {"cwd": str(cwd), "line": line, "interrupt": interrupt}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            results.append(json.loads(process.stdout.readline()))
        return results

    yield run
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()


def finished(scripts, cwd, *lines):
    for result in scripts(cwd, *lines):
        assert result["code"] == 0, result["err"]


@pytest.fixture(scope="module")
def folder(scripts, tmp_path_factory):
    """A folder with two small finished runs, `ppo` and `dqn`."""
    path = tmp_path_factory.mktemp("scripts")
    learning_rate = "--config.learning-rate 0.01"
    ppo = f"train {PPO} {learning_rate} --steps 320 --name ppo --episodes 3 --rows 4"
    finished(scripts, path, ppo, f"{DQN} --name dqn")
    return path


@pytest.fixture(scope="module")
def endless(scripts, folder):
    """A run of the folder without an end of an episode."""
    line = "train a2c --env TwoColors-v0 --steps 640 --name endless --episodes 2"
    finished(scripts, folder, f"{line} --rows 4 --config.hidden-sizes 8")
    return folder / "runs" / "endless"


@pytest.fixture(scope="module")
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


def test_an_animation_ends_with_the_episode(scripts, folder):
    train, evaluate = scripts(
        folder,
        "train a2c --env Counter-probe --env-params terminate_at 3 reward 2 --steps 8 "
        "--config.num-envs 1 --config.rollout-length 8 --config.hidden-sizes 8 "
        "--rows 1 --episodes 0 --name counter",
        "evaluate runs/counter --episodes 1 --gif episode.gif",
    )
    assert train["code"] == 0, train["err"]
    assert evaluate["code"] == 0, evaluate["err"]
    assert "drew 3 steps, return 6.0: episode.gif" in evaluate["out"]
    assert (folder / "episode.gif").read_bytes().startswith(b"GIF8")


def test_a_row_of_a_sweep_is_the_run_of_its_seed(scripts, folder):
    (sweep,) = scripts(
        folder,
        f"sweep {PPO} --vary gamma=0.5,0.99 learning_rate=0.01 --steps 320 "
        "--episodes 3 --out sweep.csv",
    )
    assert sweep["code"] == 0, sweep["err"]
    table = read_csv(folder / "sweep.csv")
    assert len(table["return"]) == 4 and set(table["gamma"]) == {0.5, 0.99}
    means = table["return"].reshape(2, 2).mean(axis=1)
    assert means[0] >= means[1]  # the best combination comes first
    assert table["seed"].tolist() == [3, 4] * 2
    trained = json.loads((folder / "runs/ppo/evaluation.json").read_text())
    returns = table["return"][table["gamma"] == 0.99]
    np.testing.assert_allclose(returns, trained["mean_return_per_seed"], rtol=1e-6)


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
    "sweep a static": ("sweep ppo --vary num_envs=1,2", "can vary"),
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


@pytest.fixture(scope="module")
def bad(scripts, folder, tuned):
    """Results of every line of BAD, and that nothing which was there has changed."""
    runs = folder / "runs"
    (folder / "both.txt").write_text("not a folder")
    for name in ("corrupt", "foreign", "missing", "badconfig"):
        shutil.copytree(runs / "ppo", runs / name)
    array = max((runs / "corrupt/checkpoints/320/arrays").rglob("d/*"))
    array.write_bytes(array.read_bytes()[:-20])
    shutil.rmtree(runs / "foreign/checkpoints")
    shutil.copytree(runs / "dqn/checkpoints", runs / "foreign/checkpoints")
    shutil.rmtree(runs / "missing/checkpoints")
    (runs / "badconfig/config.json").write_text('{"agent": "ppo"}')
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    results = scripts(folder, *[line for line, _ in BAD.values()])
    changed = [p for p, content in before.items() if p.read_bytes() != content]
    assert not changed
    return dict(zip(BAD, results, strict=True))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(bad, name):
    result = bad[name]
    assert result["code"] == 2, result
    assert "Traceback" not in result["err"] + result["out"]
    errors = [line for line in result["err"].splitlines() if "error" in line.lower()]
    assert len(errors) == 1
    assert BAD[name][1] in result["err"]


def test_help_lists_agents_environments_and_every_field(scripts, tmp_path):
    agents, fields = scripts(tmp_path, "train --help", "train ppo --help")
    assert "agents: a2c, apg, awr, c51, dqn, impala" in agents["out"]
    assert "Breakout-MinAtar" in agents["out"]
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


def test_stopped_and_resumed_equals_uninterrupted(scripts, folder):
    (stopped,) = scripts(folder, f"{DQN} --name stopped", interrupt=1)
    assert stopped["code"] == 130, stopped["err"]
    assert "--name stopped --resume goes on" in stopped["out"]
    whole, run = folder / "runs/dqn", folder / "runs/stopped"
    step, _ = final_checkpoint(run)
    assert read_csv(run / "metrics.csv")["step"].tolist() == [step] == [176]
    (resumed,) = scripts(folder, f"{DQN} --name stopped --resume")
    assert resumed["code"] == 0, resumed["err"]
    assert final_checkpoint(whole)[0] == 328  # not less than was asked for
    same_run(whole, run)


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, agent):
    """Kills a process without warning, between any two of its operations."""
    command = [sys.executable, str(SCRIPTS / "train.py"), agent, *SMALL[agent].split()]
    command += ["--config.hidden-sizes", "8", "--rows", "40", "--episodes", "0"]
    command += ["--steps", "200000", "--checkpoint-seconds", "0", "--name"]

    def start(*words):
        return subprocess.Popen([*command, *words], cwd=tmp_path, stderr=-3)

    assert start("whole").wait(timeout=120) == 0
    process = start("killed")
    checkpoints = tmp_path / "runs/killed/checkpoints"
    deadline = time.monotonic() + 120
    while not (checkpoints.is_dir() and len(list(checkpoints.glob("[0-9]*"))) >= 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed_at, _ = final_checkpoint(tmp_path / "runs/killed")
    assert start("killed", "--resume").wait(timeout=120) == 0

    whole, resumed = tmp_path / "runs/whole", tmp_path / "runs/killed"
    assert killed_at < final_checkpoint(whole)[0]
    same_run(whole, resumed)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    """The signal comes from outside, while a chunk runs."""
    command = [sys.executable, str(SCRIPTS / "train.py"), "ppo", *SMALL["ppo"].split()]
    command += ["--steps", "10000000", "--rows", "1000", "--name", "stopped"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-3, text=True)
    metrics = tmp_path / "runs/stopped/metrics.csv"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size > 300):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--name stopped --resume goes on" in out
    step, _ = final_checkpoint(tmp_path / "runs/stopped")
    assert step == read_csv(metrics)["step"][-1]
