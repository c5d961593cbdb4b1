"""rljax compare: scores of run folders, by method and task; every error in a line."""

import csv
import json

import numpy as np
import pytest

from rljax import agents, statistics
from rljax.commands import common, compare, train
from rljax.running.logging import CsvSink

CATCH = "task,random,best\nCatch-bsuite,-1,1\n"
STEPS = (100, 200, 300, 400)


@pytest.fixture
def make(tmp_path):
    """Write a run folder: a number per seed and row, or rows of numbers per seed."""

    def write(name, returns, agent="ppo", env="CartPole-v1", **more):
        folder = tmp_path / name
        folder.mkdir()
        returns = np.atleast_2d(np.array(returns, float).T).T  # [S, R]
        given = {"steps": STEPS[: returns.shape[1]], "episodes": None} | more
        steps, episodes = given.pop("steps"), given.pop("episodes")
        config = agents.get(agent).Config(**given.pop("config", {}))
        run = common.Run(
            agent=agent,
            env=env,
            seeds=len(returns),
            rows=len(steps),
            config=config,
            **{"env_params": {}, "seed": 0} | given,
        )
        common.write_run(folder, run)
        with CsvSink(folder / "metrics.csv") as sink:
            for k, step in enumerate(steps):
                for i in range(len(returns)):
                    sink.write(
                        {
                            "step": step,
                            "seed": run.seed + i,
                            "episode_return": float(returns[i, k]),
                            "episodes": float(episodes[k] if episodes else 1),
                        }
                    )
        return folder

    return write


def evaluate(folder, returns, seed=0, steps=STEPS):
    """Add evaluations: rows of numbers per seed."""
    with CsvSink(folder / "evaluations.csv") as sink:
        for k, step in enumerate(steps):
            for i, row in enumerate(returns):
                score = {"mean_return": float(row[k]), "episodes": 4}
                sink.write({"step": step, "seed": seed + i, **score})


def finish(folder, returns):
    """Add the evaluation at the end."""
    text = json.dumps({"mean_return_per_seed": returns})
    (folder / "evaluation.json").write_text(text)


def run(*words):
    compare.main([*map(str, words)], "rljax compare")


def outputs(folder):
    """scores.csv by rows, statistics.json, scores.json."""
    with (folder / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    texts = [(folder / f"{x}.json").read_text() for x in ("statistics", "scores")]
    return rows, *map(json.loads, texts)


@pytest.fixture
def two_by_two(make, tmp_path):
    """PPO and DQN in two tasks, seeds in two folders for one of them."""
    folders = [
        make("a", [[0, 100], [0, 200]], "ppo", seed=5),
        make("b", [[0, 300]], "ppo", seed=7),
        make("c", [[0, 0.5], [0, 1.0], [0, -1.0]], "ppo", "Catch-bsuite", seed=5),
        make("d", [[0, 50], [0, 150], [0, 250]], "dqn"),
        make("e", [[0, 0.0], [0, -0.5], [0, -0.5]], "dqn", "Catch-bsuite"),
    ]
    references = tmp_path / "own.csv"
    references.write_text(CATCH + "CartPole-v1,0,500\n")
    return folders, references


def test_scores_and_statistics_of_two_methods_in_two_tasks(two_by_two, tmp_path):
    runs, references = two_by_two
    out = tmp_path / "out" / "deep"
    run(*runs, "--references", references, "--out", out, "--draws", 300, "--seed", 3)
    rows, found, table = outputs(out)
    ppo = np.array([[0.2, 0.75], [0.4, 1.0], [0.6, 0.0]])
    dqn = np.array([[0.1, 0.5], [0.3, 0.25], [0.5, 0.25]])
    assert table["tasks"] == ["CartPole-v1", "Catch-bsuite"]
    assert table["normalised"] is True
    assert list(table["scores"]) == ["ppo", "dqn"]
    np.testing.assert_allclose(table["scores"]["ppo"], ppo)
    np.testing.assert_allclose(table["scores"]["dqn"], dqn)
    assert len(rows) == 12
    assert rows[1] == {
        "method": "ppo",
        "task": "CartPole-v1",
        "seed": "6",
        "score": "200.0",
        "normalised_score": "0.4",
    }
    for name, scores in (("ppo", ppo), ("dqn", dqn)):
        told = found["methods"][name]
        assert told.pop("runs") == 3
        assert list(told) == ["mean", "median", "iqm", "optimality_gap"]
        for aggregate, interval in told.items():
            expected = statistics.stratified_bootstrap(
                getattr(statistics, aggregate), scores, draws=300, seed=3
            )
            np.testing.assert_allclose([*interval.values()], expected)
    (pair,) = found["improvement"]
    assert (pair["x"], pair["y"]) == ("ppo", "dqn")
    assert abs(pair["estimate"] - (6 / 9 + 6 / 9) / 2) < 1e-12
    profile = found["profiles"]["methods"]["ppo"]
    half = found["profiles"]["thresholds"].index(0.5)
    assert profile["estimate"][half] == 0.5 and profile["estimate"][0] == 5 / 6
    assert found["sample_efficiency"]["steps"] == [100, 200]
    by_step = found["sample_efficiency"]["methods"]["dqn"]["estimate"]
    np.testing.assert_allclose(by_step, [0.25, statistics.iqm(dqn)])
    about = found["comparison"]
    assert about["source"] == "metrics.csv" and about["draws"] == 300
    assert about["references"]["CartPole-v1"] == {"random": 0.0, "best": 500.0}
    for name in ("intervals", "profiles", "sample_efficiency", "improvement"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_that_is_printed(two_by_two, capsys):
    runs, references = two_by_two
    run(*runs, "--references", references)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("scores: final, of training episodes")
    assert lines[1] == "tasks: CartPole-v1, Catch-bsuite"
    head, ppo, dqn = (line.split() for line in lines[3:6])
    assert head == ["agent", "runs", "mean", "median", "IQM", "optimality", "gap"]
    assert ppo[:3] == ["ppo", "3", "0.492"] and dqn[:3] == ["dqn", "3", "0.317"]
    assert lines[7] == "probability of improvement"
    assert lines[8].split()[:4] == ["ppo", ">", "dqn", "0.667"]


def test_results_are_replaced_and_other_files_are_not(make, tmp_path):
    folder, out = make("a", [[1, 2], [3, 4]]), tmp_path / "out"
    run(folder, "--out", out)
    first = (out / "statistics.json").read_text()
    run(folder, "--out", out, "--draws", 10)
    assert (out / "statistics.json").read_text() != first
    (out / "scores.json").write_text("mine")
    with pytest.raises(ValueError, match=r"scores.json: exists and is something else"):
        run(folder, "--out", out)
    assert (out / "scores.json").read_text() == "mine"
    with pytest.raises(ValueError, match="config.json: not a folder"):
        run(folder, "--out", folder / "config.json")


# Where scores come from.


def scores_of(capsys, tmp_path, *words):
    """Mean score of the first method, source, and notes."""
    run(*words, "--out", tmp_path / "out")
    _, found, table = outputs(tmp_path / "out")
    notes = capsys.readouterr().err
    return next(iter(table["scores"].values())), found["comparison"]["source"], notes


RAW = "MemoryChain-bsuite"  # with a parameter: no reference


def test_evaluations_go_before_all_others(make, capsys, tmp_path):
    folder = make("a", [[7, 7, 7, 7]] * 2, env=RAW, env_params={"memory_length": 3})
    evaluate(folder, [[1, 4, 3, 2], [5, 6, 8, 7]])
    finish(folder, [9.0, 9.0])
    found = scores_of(capsys, tmp_path, folder)
    assert found == ([[2.0], [7.0]], "evaluations.csv", "")
    found = scores_of(capsys, tmp_path, folder, "--metric", "best")
    assert found == ([[4.0], [8.0]], "evaluations.csv", "")


def test_the_evaluation_at_the_end_has_no_best(make, capsys, tmp_path):
    folder = make("a", [[6, 8, 7, 5]], env=RAW, env_params={"memory_length": 3})
    finish(folder, [9.0])
    scores, source, _ = scores_of(capsys, tmp_path, folder)
    assert (scores, source) == ([[9.0]], "evaluation.json")
    scores, source, _ = scores_of(capsys, tmp_path, folder, "--metric", "best")
    assert (scores, source) == ([[8.0]], "metrics.csv")


def test_runs_are_scored_by_what_all_have(make, capsys, tmp_path):
    params = {"env": RAW, "env_params": {"memory_length": 3}}
    first, second = make("a", [[1, 2]], **params), make("b", [[3, 4]], seed=1, **params)
    evaluate(first, [[5, 6]], steps=STEPS[:2])
    finish(second, [7.0])
    scores, source, notes = scores_of(capsys, tmp_path, first, second)
    assert (scores, source) == ([[2.0], [4.0]], "metrics.csv")
    assert f"note: evaluations.csv is not used: {second} has none" in notes
    assert f"note: evaluation.json is not used: {first} has none" in notes
    finish(first, [8.0])
    scores, source, _ = scores_of(capsys, tmp_path, first, second)
    assert (scores, source) == ([[8.0], [7.0]], "evaluation.json")


def test_training_episodes_of_the_last_tenth_of_the_rows(make, capsys, tmp_path):
    """Of 21 rows 3; their 0, 1 and 3 episodes count alike, one by one."""
    returns = [0.0] * 10 + [90.0] * 2 + [30.0] + [0.0] * 5 + [np.nan, 10.0, 20.0]
    episodes = [1] * 18 + [0, 1, 3]
    params = {"steps": range(1, 22), "env": RAW, "env_params": {"memory_length": 3}}
    folder = make("a", [returns], episodes=episodes, **params)
    scores, *_ = scores_of(capsys, tmp_path, folder)
    assert scores == [[(10 + 3 * 20) / 4]]
    scores, *_ = scores_of(capsys, tmp_path, folder, "--metric", "best")
    assert scores == [[70.0]]


def test_a_real_run_is_read(tmp_path, capsys):
    line = "ppo --config.num-envs 2 --config.rollout-length 8 --steps 320 --seeds 2 "
    line += "--config.num-minibatches 2 --config.hidden-sizes 8 --rows 4 --episodes 3 "
    train.main(f"{line} --name real --out {tmp_path}".split(), "rljax train")
    found = json.loads((tmp_path / "real" / "evaluation.json").read_text())
    capsys.readouterr()
    run(tmp_path / "real", "--out", tmp_path / "out")
    rows, *_ = outputs(tmp_path / "out")
    assert [float(x["score"]) for x in rows] == found["mean_return_per_seed"]


# Methods and tasks.


def methods_and_tasks(tmp_path):
    _, _, table = outputs(tmp_path / "out")
    return list(table["scores"]), table["tasks"]


def test_any_field_tells_methods_apart(make, tmp_path, capsys):
    slow = make("a", [[1, 2]], config={"learning_rate": 0.001})
    fast = make("b", [[1, 3]], config={"learning_rate": 0.01})
    run(slow, fast, "--by", "config.learning_rate", "--out", tmp_path / "out")
    assert methods_and_tasks(tmp_path) == (["0.001", "0.01"], ["CartPole-v1"])
    captured = capsys.readouterr()
    assert "learning_rate  runs" in captured.out
    assert captured.err.count("has one run per task: no interval") == 2
    with pytest.raises(ValueError, match="ppo, CartPole-v1, seed 0: in .*a and in .*b"):
        run(slow, fast)


def test_parameters_are_part_of_the_task_but_for_how_it_is_seen(make, tmp_path):
    params = {"memory_length": 3}
    runs = [
        make("a", [[1, 2]], "ppo", env=RAW, env_params=params),
        make("b", [[1, 2]], "dqn", env=RAW, env_params=params | {"time_aware": True}),
    ]
    run(*runs, "--out", tmp_path / "out")
    tasks = ["MemoryChain-bsuite memory_length=3"]
    assert methods_and_tasks(tmp_path) == (["ppo", "dqn"], tasks)


def test_a_parameter_of_the_environment_as_the_method(make, tmp_path):
    runs = [
        make(str(n), [[0, 1]], env=RAW, env_params={"memory_length": n}) for n in (3, 4)
    ]
    by = ("--by", "env_params.memory_length", "--out", tmp_path / "out")
    with pytest.raises(ValueError, match="no reference for MemoryChain-bsuite memory_"):
        run(*runs, *by)
    table = tmp_path / "own.csv"
    rows = [f"MemoryChain-bsuite memory_length={n},0,{n}\n" for n in (3, 4)]
    table.write_text("task,random,best\n" + "".join(rows))
    run(*runs, *by, "--references", table)
    assert methods_and_tasks(tmp_path) == (["3", "4"], ["MemoryChain-bsuite"])
    _, _, found = outputs(tmp_path / "out")
    assert found["scores"] == {"3": [[1 / 3]], "4": [[1 / 4]]}


def test_environments_as_methods_have_agents_as_tasks(make, tmp_path):
    runs = [
        make(f"{agent}{env}", [[0, 1], [0, 1]], agent, env)
        for agent in ("ppo", "dqn")
        for env in ("CartPole-v1", "Catch-bsuite")
    ]
    run(*runs, "--by", "env", "--out", tmp_path / "out")
    found = methods_and_tasks(tmp_path)
    assert found == (["CartPole-v1", "Catch-bsuite"], ["ppo", "dqn"])
    _, _, table = outputs(tmp_path / "out")
    assert table["scores"]["Catch-bsuite"] == [[1.0, 1.0]] * 2


def test_a_lone_task_without_reference_has_raw_scores(make, tmp_path, capsys):
    folder = make("a", [[1, 20]] * 2, env=RAW, env_params={"memory_length": 3})
    run(folder, "--out", tmp_path / "out")
    rows, found, table = outputs(tmp_path / "out")
    assert table["scores"] == {"ppo": [[20.0], [20.0]]} and not table["normalised"]
    assert rows[0]["normalised_score"] == ""
    assert "optimality_gap" not in found["methods"]["ppo"]
    out = capsys.readouterr().out
    assert "not normalised: the task has no reference" in out
    assert "20 [20, 20]" in out
    assert not (tmp_path / "out" / "improvement.png").exists()  # a lone method


def test_settings_that_differ_within_a_method_are_told(make, capsys):
    runs = [
        make("a", [[1, 2]], seed=0),
        make("b", [[1, 2, 3]], seed=1, config={"gamma": 0.9}),
    ]
    run(*runs)
    notes = capsys.readouterr().err.splitlines()
    assert notes == [
        "note: ppo on CartPole-v1: runs differ in config.gamma",
        "note: CartPole-v1: runs end after 200 to 300 environment steps",
    ]


def test_curves_of_other_steps_meet_where_all_have_scores(make, tmp_path):
    """On straight lines between rows; those before the first episode are left out."""
    nan, params = float("nan"), {"env": RAW, "env_params": {"memory_length": 3}}
    runs = [
        make("a", [[nan, 1, 2, 3]], steps=(10, 20, 40, 80), **params),
        make("b", [[5, 6, nan]], steps=(15, 30, 60), seed=1, **params),
    ]
    for folder in runs:  # the last rows of one have no episode
        finish(folder, [7.0])
    run(*runs, "--out", tmp_path / "out")
    _, found, _ = outputs(tmp_path / "out")
    told = found["sample_efficiency"]
    assert told["steps"] == [20, 30, 40, 60]
    of_one, of_other = [1, 1.5, 2, 2.5], [5 + 1 / 3, 6, 6, 6]
    np.testing.assert_allclose(
        told["methods"]["ppo"]["estimate"], np.mean([of_one, of_other], axis=0)
    )


def test_no_common_steps_no_sample_efficiency(make, tmp_path, capsys):
    runs = [
        make("a", [[1, 2]], steps=(10, 20)),
        make("b", [[1, 2]], steps=(30, 40), seed=1),
    ]
    run(*runs, "--out", tmp_path / "out")
    assert "no sample efficiency: no steps that all" in capsys.readouterr().err
    assert not (tmp_path / "out" / "sample_efficiency.png").exists()


def test_long_curves_are_thinned():
    steps = np.arange(1, 1001)
    entry = compare.Entry(folder=None, env="", score=0, steps=steps, curve=steps * 1.0)
    found = compare.common_steps([entry])
    assert len(found) == 100 and found[0] == 1 and found[-1] == 1000


def test_names_without_folders_unless_these_tell_them_apart():
    assert compare.short_names(["/a/x.py:E", "ppo"]) == {
        "/a/x.py:E": "x.py:E",
        "ppo": "ppo",
    }
    same = ["/a/x.py:E", "/b/x.py:E"]
    assert compare.short_names(same) == {name: name for name in same}


# Errors.


def test_methods_need_the_same_tasks(make):
    runs = [
        make("a", [[1]], "ppo"),
        make("b", [[1]], "ppo", "Catch-bsuite"),
        make("c", [[1]], "dqn"),
    ]
    with pytest.raises(ValueError, match="dqn has no run of Catch-bsuite, which other"):
        run(*runs)


def test_tasks_need_as_many_runs(make):
    runs = [make("a", [[1], [1]]), make("b", [[1]], env="Catch-bsuite")]
    with pytest.raises(ValueError, match="ppo has runs: 2 of CartPole-v1, 1 of Catch"):
        run(*runs)


def test_several_tasks_need_references(make):
    runs = [
        make("a", [[1]]),
        make("b", [[1]], env=RAW, env_params={"memory_length": 3}),
    ]
    told = "no reference for MemoryChain-bsuite memory_length=3: .* --references"
    with pytest.raises(ValueError, match=told):
        run(*runs)


def test_a_field_that_is_not_there(make):
    folder = make("a", [[1]])
    with pytest.raises(ValueError, match="a: --by: unknown field 'config.gama'.*gamma"):
        run(folder, "--by", "config.gama")


def test_a_seed_without_an_episode(make):
    folder = make("a", [[1, 2], [1, float("nan")]], seed=3)
    with pytest.raises(ValueError, match="a: seed 4 has no score in metrics.csv"):
        run(folder)


@pytest.mark.parametrize(
    "text, told",
    [
        ("{", "evaluation.json: damaged"),
        ('{"mean_return": 3}', "evaluation.json: damaged"),
        ('{"mean_return_per_seed": [1.0]}', r"scores \(1,\) for 2 seeds"),
        ('{"mean_return_per_seed": [1.0, NaN]}', "seed 1 has no score in evaluation"),
    ],
)
def test_damaged_evaluations(make, text, told):
    folder = make("a", [[1], [2]])
    folder.joinpath("evaluation.json").write_text(text)
    with pytest.raises(ValueError, match=told):
        run(folder)


def test_columns_that_are_missing(make):
    folder = make("a", [[1]])
    folder.joinpath("metrics.csv").write_text("step,seed,reward\n1,0,2\n")
    with pytest.raises(ValueError, match=r"metrics.csv: no column 'episode_return'"):
        run(folder)
    folder.joinpath("evaluations.csv").write_text("step,seed,reward\n1,0,2\n")
    with pytest.raises(ValueError, match=r"evaluations.csv: no column 'mean_return'"):
        run(folder)


@pytest.mark.parametrize(
    "words, told",
    [
        ("", "name at least one run folder"),
        ("a --confidence 1", r"confidence=1.0: must be in \(0, 1\)"),
        ("a --confidence 0", r"confidence=0.0: must be in \(0, 1\)"),
        ("a --draws 0", "draws=0: must be in"),
        ("a --seed -1", "seed=-1: must be in"),
        ("a --metric worst", "worst"),
        ("a --level 0.9", "unknown option '--level'"),
        ("nowhere", "nowhere: no run here"),
    ],
)
def test_bad_command_lines(words, told):
    with pytest.raises(ValueError, match=told):
        run(*words.split())
