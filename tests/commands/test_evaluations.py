"""Evaluation while training: rows, the best checkpoint, a run that stops by it."""

import json

import jax
import numpy as np
import pytest

from rljax.commands import common, evaluate, evaluations, plot, train
from rljax.running.evaluate import evaluate as play
from rljax.running.logging import read_csv

TRAIN = (
    "ppo --config.num-envs 2 --config.rollout-length 8 --config.num-minibatches 2 "
    "--config.hidden-sizes 8 --config.learning-rate 0.01 "
    "--steps 320 --rows 10 --seeds 2 --seed 3 --episodes 0"
)
EVAL = "--eval-every 96 --eval-episodes 4"  # after 3, 6 and 9 of 10 pieces, and the end
STEPS = [96, 192, 288, 320]


def run_train(line):
    train.main(line.split(), "rljax train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two runs, `plain` and `evaluated`, that differ in nothing else."""
    path = tmp_path_factory.mktemp("evaluations")
    run_train(f"{TRAIN} --out {path} --name plain")
    run_train(f"{TRAIN} {EVAL} --out {path} --name evaluated")
    return path


def checkpoint(path):
    """The SHA-256 of every array."""
    manifest = json.loads((path / "manifest.json").read_text())
    return [leaf["sha256"] for leaf in manifest["leaves"]]


def test_training_is_the_same_bit_for_bit(folder):
    plain, evaluated = folder / "plain", folder / "evaluated"
    assert checkpoint(plain / "checkpoints/320") == checkpoint(
        evaluated / "checkpoints/320"
    )
    columns, others = (read_csv(x / "metrics.csv") for x in (plain, evaluated))
    for name in columns.keys() - {"seconds", "steps_per_second"}:
        np.testing.assert_array_equal(columns[name], others[name], err_msg=name)
    assert not (plain / "evaluations.csv").exists()
    assert not (plain / "checkpoints/best").exists()


def test_rows_are_those_of_the_policies_at_their_steps(folder):
    run = common.read_run(folder / "evaluated")
    table = evaluations.read(folder / "evaluated", run)
    assert list(table) == [
        *("step", "seed", "mean_return", "std_return", "min_return", "max_return"),
        *("mean_length", "episodes"),
    ]
    assert table["step"].tolist() == np.repeat(STEPS, 2).tolist()
    assert table["seed"].tolist() == [3, 4] * 4
    states = common.restore_state(folder / "evaluated", run)
    agent, env = run.build()
    for i in range(2):
        state = jax.tree.map(lambda x, i=i: x[i], states)
        key = jax.random.fold_in(jax.random.key(3 + i), common.EVALUATION + 1)
        key = jax.random.fold_in(key, 320)
        returns, lengths = play(agent, env, run.config, state, key, 4)
        row = {name: column[6 + i] for name, column in table.items()}
        returns = np.asarray(returns, np.float64)
        assert row["mean_return"] == pytest.approx(returns.mean(), rel=1e-6)
        assert row["std_return"] == pytest.approx(returns.std(), rel=1e-5)
        assert (row["min_return"], row["max_return"]) == (returns.min(), returns.max())
        assert row["mean_length"] == pytest.approx(float(lengths.mean()), rel=1e-6)
        assert row["episodes"] == 4


def test_keys_are_others_at_each_step_beyond_int32_too(folder):
    run = common.read_run(folder / "evaluated")
    steps = (320, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1)
    keys = [evaluations.keys_at(run, step) for step in steps]
    data = np.concatenate([jax.random.key_data(x) for x in keys])
    assert len(np.unique(data, axis=0)) == len(steps) * run.seeds


def best_step(table):
    """The step of the highest mean over seeds."""
    return STEPS[int(table["mean_return"].reshape(4, 2).mean(axis=1).argmax())]


def test_the_best_checkpoint_is_that_of_the_highest_mean_over_seeds(folder, capsys):
    table = read_csv(folder / "evaluated/evaluations.csv")
    best = best_step(table)
    kept = list((folder / "evaluated/checkpoints/best").iterdir())
    assert [path.name for path in kept] == [str(best)]
    run = common.read_run(folder / "evaluated")
    states = common.restore_state(folder / "evaluated", run, best=True)
    again = evaluations.program(run)(states, evaluations.keys_at(run, best))
    rows = table["mean_return"].reshape(4, 2)[STEPS.index(best)]
    np.testing.assert_array_equal(again.mean_return, rows)
    capsys.readouterr()
    evaluate.main([str(folder / "evaluated"), "--best"], "rljax evaluate")
    assert "over 128 episodes of each of 2 seeds" in capsys.readouterr().out


def test_a_run_without_evaluations_has_no_best_checkpoint(folder):
    with pytest.raises(ValueError, match="plain: no best checkpoint; --eval-every"):
        evaluate.main([str(folder / "plain"), "--best"], "rljax evaluate")


def test_a_run_stops_where_an_evaluation_reaches_the_return(folder, tmp_path, capsys):
    table = read_csv(folder / "evaluated/evaluations.csv")
    means = table["mean_return"].reshape(4, 2).mean(axis=1)
    goal, end = float(means[0]), STEPS[0]
    line = f"{TRAIN} {EVAL} --stop-at {goal} --out {tmp_path} --name short"
    run_train(line)
    assert f"an evaluation reached the mean return {goal}" in capsys.readouterr().out
    short = read_csv(tmp_path / "short/evaluations.csv")
    assert short["step"].max() == end
    assert read_csv(tmp_path / "short/metrics.csv")["step"].max() == end
    assert (tmp_path / f"short/checkpoints/{end}").is_dir()
    run_train(f"{line} --resume")  # nothing is left to do
    assert read_csv(tmp_path / "short/metrics.csv")["step"].max() == end


def test_a_run_goes_on_with_its_evaluations(folder, tmp_path, monkeypatch):
    """Killed after the row of an evaluation, and before the checkpoint of its step."""
    saved = train.save

    def kill(path, step, state):
        if step == 320:
            raise KeyboardInterrupt
        return saved(path, step, state)

    line = f"{TRAIN} {EVAL} --checkpoint-seconds 0 --out {tmp_path} --name killed"
    monkeypatch.setattr(train, "save", kill)
    with pytest.raises(KeyboardInterrupt):
        run_train(line)
    rows = read_csv(tmp_path / "killed/evaluations.csv")
    assert rows["step"].max() == 320
    monkeypatch.setattr(train, "save", saved)
    run_train(f"{TRAIN} --out {tmp_path} --name killed --resume")
    whole = (folder / "evaluated/evaluations.csv").read_text()
    assert (tmp_path / "killed/evaluations.csv").read_text() == whole
    best = best_step(rows)
    kept = list((tmp_path / "killed/checkpoints/best").iterdir())
    assert [path.name for path in kept] == [str(best)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--eval-every 0", "eval_every=0: must be"),
        ("--eval-every 9 --eval-episodes 0", "eval_episodes=0: must be in"),
        ("--stop-at 3", "stop_at=3.0: needs eval_every"),
        ("--eval-every 9 --stop-at nan", "stop_at=nan: must be finite"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_train(f"{TRAIN} {options} --out {tmp_path}")
    assert not list(tmp_path.iterdir())


def test_curves_are_of_evaluations_where_all_runs_have_them(folder, tmp_path):
    names = {"evaluated": common.read_run(folder / "evaluated")}
    tables = {x: common.read_metrics(folder / x, run) for x, run in names.items()}
    found = {x: evaluations.read(folder / x, run) for x, run in names.items()}
    label, curves = plot.scores({"env": found}, {"env": tables})
    assert label == "Evaluation return"
    assert curves["env"]["evaluated"][0].tolist() == STEPS
    label, curves = plot.scores({"env": found | {"plain": {}}}, {"env": tables})
    assert label == "Episode return"
    assert len(curves["env"]["evaluated"][0]) == 10
    out = tmp_path / "curves.png"
    runs = [str(folder / "evaluated"), str(folder / "plain")]
    plot.main([*runs, "--out", str(out)], "rljax plot")
    assert out.read_bytes().startswith(b"\x89PNG")


def test_other_sinks_have_evaluations_under_names_of_their_own(tmp_path, monkeypatch):
    class Sink:
        rows = []

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, row):
            self.rows.append(row)

    monkeypatch.setattr(train, "TensorBoardSink", Sink)
    line = TRAIN.replace("--steps 320 --rows 10", "--steps 32 --rows 2")
    run_train(f"{line} --eval-every 16 --tensorboard --out {tmp_path} --name x")
    table = read_csv(tmp_path / "x/evaluations.csv")
    rows = [row for row in Sink.rows if "eval_mean_return" in row]
    assert [(row["step"], row["seed"]) for row in rows] == [
        (step, seed) for step in (16, 32) for seed in (3, 4)
    ]
    for name in ("mean_return", "std_return", "mean_length"):
        assert [row[f"eval_{name}"] for row in rows] == table[name].tolist()
