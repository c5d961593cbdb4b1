import csv
import dataclasses
import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
import types

import chex
import jax
import jax.numpy as jnp
import pytest

from rljax import agents, envs

SCRIPTS = pathlib.Path(__file__).resolve().parents[1] / "scripts"
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "benchmarks")]  # as for a script


def load(path):
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


benchmark = load(SCRIPTS / "benchmark.py")
worker = load(SCRIPTS / "benchmarks" / "autodiff_worker.py")
meta_worker = load(SCRIPTS / "benchmarks" / "meta_worker.py")
autodiff, meta, report = benchmark.autodiff, benchmark.meta, benchmark.report
comparisons = benchmark.comparisons
Comparison = comparisons.Comparison
protocol = importlib.import_module("benchmarks.protocol")
measuring = importlib.import_module("measuring")  # as the workers import it

WORK = benchmark.Work("w", "", "ppo", 1000, {"num_envs": 2}, peers=("rejax", "sb3"))


def make_row(library, repeat, rate=None, cold=None, work="w", note=""):
    result = {
        "steps_per_s": rate,
        "cold_start_s": cold,
        "compile_s": None if rate is None else 1.5,
        "note": note,
    }
    return benchmark.make_row("speed", work, library, repeat, result)


ROWS = [
    make_row("rljax", 0, 200.0, 4.0),
    make_row("rejax", 0, 100.0, 8.0),
    make_row("rljax", 1, 90.0, 10.0),  # the machine was slow in this pair
    make_row("rejax", 1, 30.0, 10.0),
    make_row("rljax", 2, 240.0, 4.0),
    make_row("rejax", 2, 60.0, 12.0),
    make_row("rljax", 3, 1000.0, 1.0),
    make_row("rejax", 3, note="hang: no result after 1 s"),
    make_row("rejax", 0, 1.0, 1.0, work="another"),
]


def test_ratios_are_taken_pair_by_pair():
    assert benchmark.ratios(ROWS, "w", "rejax", "steps_per_s") == [2.0, 3.0, 4.0]
    assert benchmark.ratios(ROWS, "w", "sb3", "steps_per_s") == []
    assert benchmark.ratios(ROWS, "another", "rejax", "steps_per_s") == []


def test_table():
    header, rljax, rejax, another = benchmark.format_table(ROWS).splitlines()
    assert rljax.split() == ["w", "rljax", "90", "220", "1,000", "1.5", "4.0"]
    assert rejax.split()[:7] == ["w", "rejax", "30", "60", "100", "1.5", "10.0"]
    assert "3.00 (2.00-4.00)  " in rejax  # steps/s: ours over theirs
    assert "2.00 (1.00-3.00)  " in rejax  # cold start: theirs over ours
    assert rejax.endswith("hang: no result after 1 s")
    assert header.index("median") + len("median") == rejax.index("60") + len("60")
    assert " ".join(another.split()) == "another rejax 1 1 1 1.5 1.0 - -"


def test_table_of_a_library_that_never_finished():
    rows = [make_row("sb3", 0, note="failed: exit status 1: no")]
    line = benchmark.format_table(rows).splitlines()[1]
    wanted = "w sb3 - - - - - - - failed: exit status 1: no"
    assert " ".join(line.split()) == wanted


def test_libraries_take_turns_and_a_broken_one_drops_out():
    asked = []

    def measure(work, library, repeat):
        asked.append((library, repeat))
        if library == "sb3" and repeat == 1:
            return {"note": "hang"}
        return {"steps_per_s": 1.0, "device": "NVIDIA X"}

    libraries = ("rljax", "sb3")
    rows = list(benchmark.measure_all("speed", [WORK], libraries, 3, measure))
    turns = [("rljax", 0), ("sb3", 0), ("rljax", 1), ("sb3", 1), ("rljax", 2)]
    assert asked == turns
    assert [(row.library, row.repeat) for row in rows] == turns
    assert rows[3].note == "hang" and rows[3].steps_per_s is None
    assert rows[0].machine == f"{report.host()}, NVIDIA X"


def test_variants_of_rljax_take_turns_too_without_peers():
    variants = {"big": {"num_envs": 4}}
    work = dataclasses.replace(WORK, variants=variants)
    asked = []

    def measure(work, library, repeat):
        asked.append((library, benchmark.job(work, library, repeat)["hyper"]))
        return {"steps_per_s": 2.0 if library == "big" else 3.0}

    rows = list(benchmark.measure_all("td", [work], ("rljax",), 1, measure))
    assert asked == [("rljax", {"num_envs": 2}), ("big", {"num_envs": 4})]
    assert benchmark.worker(work, "big").name == "rljax_worker.py"
    assert benchmark.ratios(rows, "w", "big", "steps_per_s") == [1.5]


def test_csv_keeps_what_was_measured_before_an_interrupt(tmp_path):
    def interrupted():
        yield ROWS[0]
        assert len(path.read_text().splitlines()) == 2  # there before a kill -9
        yield ROWS[7]
        raise KeyboardInterrupt

    path = tmp_path / "new" / "speed.csv"
    with pytest.raises(KeyboardInterrupt):
        report.write_csv(path, benchmark.Row, interrupted())
    with path.open(newline="") as file:
        first, failed = csv.DictReader(file)
    assert set(first) == {f.name for f in dataclasses.fields(benchmark.Row)}
    assert float(first["steps_per_s"]) == 200.0 and first["library"] == "rljax"
    assert failed["steps_per_s"] == "" and failed["note"].startswith("hang")
    assert first["machine"].endswith("cores") and first["date"][:2] == "20"


def run_fake(tmp_path, body, timeout=20.0):
    script = tmp_path / "worker.py"
    script.write_text(body)
    return benchmark.run_worker(sys.executable, script, {"steps": 7}, timeout)


def test_worker_protocol(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "warm")
    body = (
        f"import os, sys; sys.path.insert(0, {str(SCRIPTS / 'benchmarks')!r})\n"
        "import protocol; job = protocol.read_job(); print('noise')\n"
        "job['cache'] = os.environ.get('JAX_COMPILATION_CACHE_DIR')\n"
        "protocol.print_result(job)\n"
    )
    before = time.time()
    result = run_fake(tmp_path, body)
    assert result["steps"] == 7 and result["cache"] is None
    assert before <= result["start"] <= time.time()


@pytest.mark.parametrize(
    ("body", "note"),
    [
        ("raise ValueError('no such thing')", "exit status 1: ValueError: no such"),
        ("import os; os._exit(3)", "exit status 3: no message"),
        ("print('{oops')", "no result in '{oops"),
        ("", "no result in ''"),
    ],
)
def test_worker_that_fails(tmp_path, body, note):
    result = run_fake(tmp_path, body)
    assert set(result) == {"note"} and f"failed: {note}" in result["note"]


def test_worker_that_hangs_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    body = (
        "import os, pathlib, time\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    result = run_fake(tmp_path, body, timeout=1.0)
    assert result == {"note": "hang: no result after 1 s"}
    assert not pathlib.Path("/proc", pid_file.read_text()).exists()


def test_measure_stops_at_the_budget():
    seconds, steps = protocol.measure(lambda: 5)
    assert len(seconds) == 3 and steps == 5
    seconds, _ = protocol.measure(lambda: time.sleep(0.02) or 5, budget_s=0.01)
    assert len(seconds) == 1


@pytest.mark.parametrize(("full", "cold"), [(100, 6.0), (100.5, 6.0), (300, 10.0)])
def test_cold_start_is_extrapolated_only_where_steps_are_missing(full, cold):
    result = protocol.result(
        {"start": 1000.0, "full_steps": full},
        imported=1001.0,
        compile_s=2.0,
        ready=1004.0,
        seconds=[2.0, 4.0, 1.0],
        steps=100,
        device="cpu",
        packages=("pytest",),
    )
    assert result["steps_per_s"] == 50.0 and result["best_steps_per_s"] == 100.0
    assert result["cold_start_s"] == cold and result["import_s"] == 1.0
    assert result["note"] == ("cold start extrapolated" if full == 300 else "")
    assert result["versions"] == f"pytest {pytest.__version__}"


@pytest.mark.parametrize(
    "work",
    (*benchmark.SPEED, *benchmark.TD, *benchmark.PG[3:]),
    ids=lambda work: work.name,
)
def test_every_library_can_run_whole_iterations(work):
    rollout = work.hyper["num_envs"] * work.hyper.get("rollout_length", 1)
    for library in ("rljax", *work.peers, *work.variants):
        job = benchmark.job(work, library, seed=3)
        assert job["steps"] % rollout == 0 and job["seed"] == 3
        assert job["full_steps"] >= job["steps"] * job["seeds"]
        assert job["env"] in envs.names()
        assert benchmark.worker(work, library).exists()


@pytest.mark.parametrize(
    "work",
    [
        w
        for w in (*benchmark.SPEED, *benchmark.TD, *benchmark.PG)
        if w.agent != "replay"
    ],
    ids=lambda work: work.name,
)
def test_works_are_valid_configs(work):
    for library in ("rljax", *work.variants):
        job = benchmark.job(work, library, seed=0)
        hyper = {k: v for k, v in job["hyper"].items() if k != "value_cost"}
        config = agents.get(work.agent).Config(**hyper, total_steps=job["steps"])
        config.validate()


def test_select():
    assert benchmark.select(benchmark.SPEED, ()) == list(benchmark.SPEED)
    chosen = benchmark.select(benchmark.SPEED, ("dqn-10k", "ppo-4"))
    assert [work.name for work in chosen] == ["ppo-4", "dqn-10k"]
    with pytest.raises(SystemExit, match="unknown work ppo-5; one of: ppo-4,"):
        benchmark.select(benchmark.SPEED, ("ppo-4", "ppo-5"))
    with pytest.raises(SystemExit, match="unknown work ppo-4; one of: norms-mlp,"):
        benchmark.main(benchmark.Args(suite="autodiff", only=("ppo-4",)))


def test_peers_environment_is_built_once(tmp_path, monkeypatch):
    commands = []

    def run(command, check):
        commands.append(command)
        (tmp_path / "peers").mkdir(exist_ok=True)

    monkeypatch.setattr(subprocess, "run", run)
    args = benchmark.Args(peers_env=tmp_path / "peers")
    python = benchmark.peers_python(args)
    assert python == tmp_path / "peers" / "bin" / "python"
    assert commands[0][1:3] == ["-m", "venv"] and len(commands) == 2
    assert {"rejax==0.1.3", "jax==0.10.2", "torch==2.13.0"} <= set(commands[1])
    assert benchmark.peers_python(args) == python and len(commands) == 2
    benchmark.peers_python(dataclasses.replace(args, torch_spec="torch==9"))
    assert len(commands) == 4 and "torch==9" in commands[3]


def test_peers_environment_is_built_again_after_a_failure(tmp_path, monkeypatch):
    def run(command, check):
        (tmp_path / "peers").mkdir(exist_ok=True)
        if "pip" in command:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", run)
    args = benchmark.Args(peers_env=tmp_path / "peers")
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            benchmark.peers_python(args)


def test_peers_python_must_exist(tmp_path):
    args = benchmark.Args(peers_python=tmp_path / "python")
    with pytest.raises(SystemExit, match="no such file"):
        benchmark.peers_python(args)


@pytest.mark.parametrize("suite", benchmark.SUITES)
def test_list(suite, capsys):
    benchmark.main(benchmark.Args(suite=suite, list_works=True))
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [work.name for work in benchmark.SUITES[suite]]


def test_main_measures_prints_and_writes(tmp_path, monkeypatch, capsys):
    def run_worker(python, script, job, timeout):
        rate = 300.0 if script.name == "rljax_worker.py" else 100.0
        return {"steps_per_s": rate, "cold_start_s": 1.0, "compile_s": 0.5}

    monkeypatch.setattr(benchmark, "run_worker", run_worker)
    out = tmp_path / "speed.csv"
    args = benchmark.Args(
        only=("ppo-4",), repeats=2, out=out, peers_python=pathlib.Path(sys.executable)
    )
    benchmark.main(args)
    assert "3.00 (3.00-3.00)" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 1 + 2 * 3
    benchmark.main(dataclasses.replace(args, peers=False))
    assert len(out.read_text().splitlines()) == 1 + 2
    monkeypatch.setattr(benchmark, "run_worker", lambda *_: {"note": "hang"})
    with pytest.raises(SystemExit):
        benchmark.main(args)


# The suite autodiff.

PAIR = autodiff.Work("w", "", (Comparison("a", "b", "<= 2"), Comparison("c", "b")))


def found(*numbers):
    names = ("ratio", "what_value", "against_value")
    measurements = [dict(zip(names, each, strict=True)) for each in numbers]
    return {"measurements": measurements, "versions": "jax 9", "device": "NVIDIA X"}


def small(work):
    return dataclasses.asdict(
        dataclasses.replace(work, hidden_sizes=(8,), batch=4, rounds=1, sample_s=0.0)
    ) | {"seed": 0}


def test_functions_take_turns(monkeypatch):
    calls, now = [], 0.0

    def function(name, *seconds):
        def call():
            nonlocal now
            calls.append(name)
            now += seconds[min(calls.count(name), len(seconds)) - 1]

        return call

    clock = types.SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(protocol, "time", clock)
    a = function("a", 99.0, *[2.0] * 3, *[4.0] * 5, 6.0)  # compiles at its first call
    pairs = protocol.alternate(a, function("b", 8.0), 2, sample_s=9.5)
    assert pairs == [(4.0, 8.0), (6.0, 8.0)]
    assert "".join(calls) == "aaaabbbb" + 2 * ("aaaaa" + "bbb")


def test_autodiff_ratio_is_the_median_of_the_turns(monkeypatch):
    pairs = [(0.002, 0.001), (0.009, 0.003), (0.004, 0.004)]
    monkeypatch.setattr(measuring, "alternate", lambda *_: pairs)
    numbers = measuring.milliseconds(small(PAIR), (abs, (0,)), (abs, (0,)))
    assert numbers == {"ratio": 2.0, "what_value": 4.0, "against_value": 3.0}


def test_autodiff_table():
    rows = [
        *comparisons.make_rows(PAIR, 0, found((1.0, 4.0, 4.0), (0.5, 3.0, 6.0))),
        *comparisons.make_rows(PAIR, 1, found((3.0, 6.0, 2.0), (0.7, 3.5, 5.0))),
        *comparisons.make_rows(PAIR, 2, {"note": "hang"}),
    ]
    assert rows[0].machine == f"{report.host()}, NVIDIA X"
    assert rows[0].versions == "jax 9" and rows[0].date[:2] == "20"
    header, first, second = comparisons.format_table(rows).splitlines()
    assert " ".join(first.split()) == "w a / b 2.00 (1.00-3.00) <= 2 5.00 3.00 ms hang"
    assert " ".join(second.split()) == "w c / b 0.60 (0.50-0.70) 3.25 5.50 ms hang"
    assert header.index("bar") + len("bar") == first.index("<= 2") + len("<= 2")


def test_autodiff_work_that_fails_is_not_repeated():
    jobs = []

    def measure(job):
        jobs.append((job["name"], job["seed"]))
        good = job["name"] == "good"
        return found((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)) if good else {"note": "hang"}

    works = [dataclasses.replace(PAIR, name=name) for name in ("bad", "good")]
    rows = list(comparisons.measure_all(works, 2, measure))
    assert jobs == [("bad", 0), ("good", 0), ("good", 1)]
    assert [row.failed for row in rows] == [True, True, *[False] * 4]
    assert str(rows[0]) == "bad #0: a / b: hang"
    assert str(rows[2]) == "good #0: a / b: 1.000"
    line = comparisons.format_table(rows[:1]).splitlines()[1]
    assert " ".join(line.split()) == "bad a / b - <= 2 - - ms hang"


def test_autodiff_works_name_functions():
    for work in autodiff.WORKS:
        names = {name for c in work.comparisons for name in (c.what, c.against)}
        assert names <= set(worker.functions(None))


@pytest.mark.parametrize(("unit", "shape"), [("ms", (10, 10, 4)), ("MB", (7,))])
def test_autodiff_worker(unit, shape):
    pair = Comparison("norms", "grad")
    work = dataclasses.replace(PAIR, comparisons=(pair,), unit=unit, obs_shape=shape)
    obs = worker.make(small(work))[1].obs
    assert obs.shape == (4, *shape)
    assert obs.dtype == (bool if len(shape) == 3 else jnp.float32)
    (row,) = comparisons.make_rows(work, 0, worker.run(small(work)))
    assert row.ratio > 0 and row.what_value > 0 and row.against_value > 0
    assert row.unit == unit and row.versions.startswith("rljax ")


def test_autodiff_compares_functions_of_equal_results():
    network, inputs = worker.make(small(PAIR))
    functions = worker.functions(network)
    results = jax.jit(lambda x: {name: f(x) for name, f in functions.items()})(inputs)
    norms = results["norms vmap"]
    chex.assert_trees_all_close(results["norms"], norms, rtol=1e-4)
    for end in ("", " weighted"):
        value, grad = results[f"value_and_grad{end}"]
        losses, mean_grad, same = results[f"value_and_grad_with_norms{end}"]
        weights = inputs.weights if end else 1.0
        chex.assert_trees_all_close(mean_grad, grad, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(jnp.mean(weights * losses), value, rtol=1e-5)
        chex.assert_trees_all_close(same, norms, rtol=1e-4)
    grad = results["value_and_grad"][1]
    chex.assert_trees_all_close(grad, results["grad"], rtol=1e-4, atol=1e-5)
    for name in ("hvp", "gauss_newton_vp", "fisher_vp"):
        chex.assert_trees_all_equal_shapes(results[name], inputs.params)


def test_main_measures_autodiff(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = dataclasses.replace(autodiff.WORKS[0], batch=4, hidden_sizes=(8,), rounds=1)
    monkeypatch.setitem(benchmark.SUITES, "autodiff", (tiny,))
    benchmark.main(benchmark.Args(suite="autodiff", repeats=1))
    with (tmp_path / "runs" / "benchmark" / "autodiff.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert set(first) == {f.name for f in dataclasses.fields(comparisons.Row)}
    assert (first["what"], first["against"]) == ("norms", "grad")
    assert float(first["ratio"]) > 0 and first["bar"] == "<= 0.7"
    printed = capsys.readouterr().out
    assert first["machine"] in printed and first["versions"] in printed
    monkeypatch.setattr(benchmark, "run_worker", lambda *_: {"note": "hang"})
    with pytest.raises(SystemExit):
        benchmark.main(benchmark.Args(suite="autodiff", repeats=1))


# The suite meta.


@pytest.fixture
def small_a2c(monkeypatch):
    config = agents.get("a2c").Config(num_envs=2, rollout_length=4, hidden_sizes=(8,))
    monkeypatch.setattr(agents, "config_for", lambda agent, env: config)


def small_meta(*pairs, unit="ms"):
    work = meta.Work("w", "", "a2c", pairs, unit, rounds=1, sample_s=0.0)
    return work, dataclasses.asdict(work) | {"seed": 0}


def test_meta_worker_knows_the_functions_of_all_works():
    known = {"update", "meta-step", "iteration"}
    for work in meta.WORKS:
        agents.get(work.agent)
        for name in (n for c in work.comparisons for n in (c.what, c.against)):
            kind, *words = name.split()
            assert kind in known
            how = meta_worker.settings(words)
            assert (f"K={how.num_updates}" in words) == (how.num_updates > 1)
            assert (how.mode == "reverse") == bool({"reverse", "remat"} & set(words))
            assert how.remat == ("remat" in words)


def test_meta_step_is_that_of_the_iteration(small_a2c):
    """And the update is the agent's own."""
    _, job = small_meta()
    results = {}
    for name in ("update", "meta-step K=2", "iteration K=2"):
        function, arguments = meta_worker.find(job, name)
        results[name] = jax.jit(function)(*arguments)
    raw, opt_state, _ = results["meta-step K=2"]
    new, _ = results["iteration K=2"]
    chex.assert_trees_all_close((raw, opt_state), (new.raw, new.opt_state), rtol=1e-5)
    assert raw["gamma"] != arguments[1].raw["gamma"]
    assert len(arguments[1].window.keys) == 2  # K updates are there to be replayed
    config, state, rollout, key = meta_worker.find(job, "update")[1]
    agent = agents.get("a2c").make(envs.make("CartPole-v1").spec)
    want = jax.jit(agent.update)(config, state.agent, rollout, key)
    chex.assert_trees_all_close(results["update"], want, rtol=1e-5)


def test_meta_worker_counts_results_as_memory(small_a2c):
    pair = Comparison("update", "update")
    values = []
    for unit in ("MB", protocol.WITH_RESULTS):
        work, job = small_meta(pair, unit=unit)
        find = functools.partial(meta_worker.find, job)
        (row,) = comparisons.make_rows(work, 0, meta_worker.compare(job, find))
        assert row.ratio == 1 and row.suite == "meta" and row.unit == unit
        values.append(row.what_value)
    _, state, _, _ = meta_worker.find(job, "update")[1]
    size = sum(x.nbytes for x in jax.tree.leaves(state.agent)) / 1e6
    assert size <= values[1] - values[0] < 1.2 * size


# The suite td.


def test_replay_worker_counts_the_steps_of_its_loop(monkeypatch, capsys):
    replay_worker = load(SCRIPTS / "benchmarks" / "rljax_replay_worker.py")
    work = next(work for work in benchmark.TD if work.name == "replay-td_error-10k")
    hyper = work.hyper | {"capacity": 40, "batch_size": 4}
    work = dataclasses.replace(work, hyper=hyper, steps=50)
    job = benchmark.job(work, "rljax", seed=0) | {"start": 0.0}
    monkeypatch.setattr(replay_worker, "read_job", lambda: job)
    monkeypatch.setattr(replay_worker.sharding, "set_cpu_devices", lambda n: None)
    replay_worker.main()
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 50 and result["steps_per_s"] > 0
