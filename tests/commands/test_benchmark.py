import csv
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import types
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs
from rljax.commands import benchmark
from rljax.commands.benchmarks import collectives, protocol, scale
from rljax.meta import Settings

COMMANDS = pathlib.Path(benchmark.__file__).resolve().parent
WORKERS, ROOT = COMMANDS / "benchmarks", COMMANDS.parents[1]
sys.path.insert(0, str(WORKERS))  # as for a worker


def load(path):
    spec = importlib.util.spec_from_file_location(f"bench_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


worker = load(WORKERS / "autodiff_worker.py")
meta_worker = load(WORKERS / "meta_worker.py")
scale_worker = load(WORKERS / "scale_worker.py")
autodiff, meta, report = benchmark.autodiff, benchmark.meta, benchmark.report
comparisons, paired = benchmark.comparisons, benchmark.paired
revisions = benchmark.revisions
Comparison = comparisons.Comparison
measuring = importlib.import_module("measuring")  # as the workers import it

WORK = benchmark.Work("w", "", "ppo", 1000, {"num_envs": 2}, peers=("rejax", "sb3"))


def make_row(library, repeat, rate=None, cold=None, work="w", note="", **limits):
    result = limits | {
        "steps_per_s": rate,
        "cold_start_s": cold,
        "compile_s": None if rate is None else 1.5,
        "note": note,
    }
    return benchmark.make_row("speed", work, library, repeat, result)


ROWS = [
    make_row("rljax", 0, 200.0, 4.0, peak_share=0.314, env_steps_per_s=12345.6),
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
    speed = ["w", "rljax", "90", "220", "1,000", "1.5", "4.0"]
    assert rljax.split() == [*speed, "31%", "12,346"]
    assert rejax.split()[:7] == ["w", "rejax", "30", "60", "100", "1.5", "10.0"]
    assert "3.00 (2.00-4.00)  " in rejax  # steps/s: ours over theirs
    assert "2.00 (1.00-3.00)  " in rejax  # cold start: theirs over ours
    assert rejax.endswith("hang: no result after 1 s")
    assert header.index("median") + len("median") == rejax.index("60") + len("60")
    assert " ".join(another.split()) == "another rejax 1 1 1 1.5 1.0 - -"


def test_table_of_a_library_that_never_finished():
    rows = [make_row("sb3", 0, note="failed: exit status 1: no")]
    line = benchmark.format_table(rows).splitlines()[1]
    wanted = "w sb3 - - - - - - - - - failed: exit status 1: no"
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

    def killed():
        raise KeyboardInterrupt
        yield ROWS[0]

    with pytest.raises(KeyboardInterrupt):
        report.write_csv(path, benchmark.Row, killed())  # before its first row
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
        f"import os, sys; sys.path.insert(0, {str(WORKERS)!r})\n"
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
    (
        *benchmark.SPEED,
        *benchmark.TD,
        *benchmark.PG[3:],
        *benchmark.IMAGES,
        *benchmark.RUNS,
    ),
    ids=lambda work: work.name,
)
def test_every_library_can_run_whole_iterations(work):
    rollout = work.hyper["num_envs"] * work.hyper.get("rollout_length", 1)
    for library in ("rljax", *work.peers, *work.variants):
        job = benchmark.job(work, library, seed=3)
        assert job["steps"] % rollout == 0 and job["seed"] == 3
        assert job["full_steps"] >= job["steps"] * job["seeds"]
        assert job["env"] in (*envs.names(), "frames:Frames")
        assert benchmark.worker(work, library).exists()


@pytest.mark.parametrize(
    "work",
    [
        w
        for suite in (
            benchmark.SPEED,
            benchmark.TD,
            benchmark.PG,
            benchmark.IMAGES,
            benchmark.RUNS,
        )
        for w in suite
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


def test_frames_keep_the_contract_of_environments():
    env = envs.make("frames:Frames")
    assert envs.check(env, steps=0) == []
    assert (env.spec.obs_shape, env.spec.action.num_actions) == ((84, 84, 4), 6)


def test_frames_by_hand():
    frames = importlib.import_module("frames")
    env, key = frames.Frames(), jax.random.key(0)
    state = frames.State(time=jnp.int32(0), place=jnp.int32(23))
    for action, place, reward in ((2, 23, 0.0), (1, 27, 1.0), (0, 23, 0.0)):
        image, state, got, *_ = env.step_env(key, state, action, env.default_params)
        assert (int(state.place), float(got)) == (place, reward)
        want = np.zeros((84, 84, 4), np.uint8)
        want[:, place : place + 12] = 255
        np.testing.assert_array_equal(image, want)
    edge = state.replace(place=jnp.int32(71))
    _, state, *_ = env.step_env(key, edge, 1, env.default_params)
    assert int(state.place) == 72


def test_select():
    assert benchmark.select(benchmark.SPEED, ()) == list(benchmark.SPEED)
    chosen = benchmark.select(benchmark.SPEED, ("dqn-10k", "ppo-4"))
    assert [work.name for work in chosen] == ["ppo-4", "dqn-10k"]
    with pytest.raises(SystemExit, match="unknown work ppo-5; one of: ppo-4,"):
        benchmark.select(benchmark.SPEED, ("ppo-4", "ppo-5"))
    with pytest.raises(SystemExit, match="unknown work ppo-4; one of: norms-mlp,"):
        benchmark.run(benchmark.Args(suite="autodiff", only=("ppo-4",)))


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
        with pytest.raises(SystemExit, match="--peers-env .*: cannot be built"):
            benchmark.peers_python(args)


def test_peers_python_must_exist(tmp_path):
    args = benchmark.Args(peers_python=tmp_path / "python")
    with pytest.raises(SystemExit, match="no such file"):
        benchmark.peers_python(args)


def test_rltools_is_measured_only_in_a_python_that_is_named(tmp_path, capsys):
    args = benchmark.Args(peers_env=tmp_path / "never built")
    assert benchmark.pythons_of_peers(args, {"rltools"}) == {}
    assert capsys.readouterr().out == "rltools is left out: no --rltools-python\n"
    python = pathlib.Path(sys.executable)
    args = dataclasses.replace(args, rltools_python=python)
    assert benchmark.pythons_of_peers(args, {"rltools"}) == {"rltools": python}
    assert benchmark.pythons_of_peers(args, set()) == {}
    args = dataclasses.replace(args, peers_python=tmp_path)
    found = benchmark.pythons_of_peers(args, {"rejax", "rltools"})
    assert found == {"rejax": tmp_path, "rltools": python}
    args = dataclasses.replace(args, rltools_python=tmp_path / "python")
    with pytest.raises(SystemExit, match="--rltools-python .*: no such file"):
        benchmark.pythons_of_peers(args, {"rltools"})


@pytest.mark.parametrize("suite", benchmark.SUITES)
def test_list(suite, capsys):
    benchmark.run(benchmark.Args(suite=suite, list_works=True))
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [work.name for work in benchmark.SUITES[suite]]


def test_main_measures_prints_and_writes(tmp_path, monkeypatch, capsys):
    limited = []

    def run_worker(python, script, job, timeout):
        rate = 300.0 if script.name == "rljax_worker.py" else 100.0
        limited.append((script.name, job["limits"]))
        return {"steps_per_s": rate, "cold_start_s": 1.0, "compile_s": 0.5}

    monkeypatch.setattr(benchmark, "run_worker", run_worker)
    out = tmp_path / "speed.csv"
    args = benchmark.Args(
        only=("ppo-4",), repeats=2, out=out, peers_python=pathlib.Path(sys.executable)
    )
    benchmark.run(args)
    assert "3.00 (3.00-3.00)" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 1 + 2 * 3
    assert [x for name, x in limited if name == "rljax_worker.py"] == [True, False]
    benchmark.run(dataclasses.replace(args, peers=False))
    assert len(out.read_text().splitlines()) == 1 + 2
    monkeypatch.setattr(benchmark, "run_worker", lambda *_: {"note": "hang"})
    with pytest.raises(SystemExit):
        benchmark.run(args)


# RLtools, which need not be there.


@pytest.fixture
def rltools(tmp_path, monkeypatch):
    """The worker, beside an RLtools that only notes what it is asked for."""
    asked = []

    def make(env, **arguments):
        asked.append((env, arguments))
        fake.steps = 0
        return types.SimpleNamespace(State=State)

    class State:
        def __init__(self, seed):
            fake.seed = seed

        def step(self):
            fake.steps += 1

    fake = types.SimpleNamespace(PPO=make, SAC=make, TD3=make, CACHE_PATH=str(tmp_path))
    monkeypatch.setitem(sys.modules, "rltools", fake)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1")
    worker = load(WORKERS / "rltools_worker.py")
    return types.SimpleNamespace(worker=worker, fake=fake, asked=asked)


def rltools_jobs():
    works = (*benchmark.SPEED, *benchmark.TD)
    named = {work.name: work for work in works if "rltools" in work.peers}
    return {
        name: benchmark.job(work, "rltools", seed=5) for name, work in named.items()
    }


def without_compiler(tmp_path, environ):
    """Runs the worker where an empty package stands for RLtools, and no program is."""
    (tmp_path / "rltools.py").write_text("PPO = SAC = TD3 = CACHE_PATH = None\n")
    variables = environ | {"PATH": "", "PYTHONPATH": str(tmp_path)}
    script = WORKERS / "rltools_worker.py"
    job = {"env": "CartPole-v1"}
    return protocol.run_worker(sys.executable, script, job, 20.0, environ=variables)


def test_works_of_rltools():
    names = ["ppo-pendulum-4", "ppo-pendulum-64", "sac", "sac-64", "td3-64"]
    assert list(rltools_jobs()) == names


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "ppo-pendulum-64",
            dict(
                N_ENVIRONMENTS=64,
                ON_POLICY_RUNNER_STEPS_PER_ENV=128,
                N_EPOCHS=4,
                BATCH_SIZE=2048,
                LAMBDA=0.95,
                EPSILON_CLIP=0.2,
                ACTION_ENTROPY_COEFFICIENT=0.01,
                NORMALIZE_ADVANTAGE=True,
                OPTIMIZER_ALPHA=2.5e-4,
                ACTOR_ACTIVATION_FUNCTION="TANH",
                CRITIC_HIDDEN_DIM=64,
                STEP_LIMIT=245,
            ),
        ),
        (
            "sac",
            dict(
                ACTOR_BATCH_SIZE=256,
                CRITIC_BATCH_SIZE=256,
                ACTOR_HIDDEN_DIM=256,
                CRITIC_HIDDEN_DIM=256,
                REPLAY_BUFFER_CAP=20_000,
                N_WARMUP_STEPS=500,
                ACTOR_POLYAK=0.995,
                CRITIC_POLYAK=0.995,
                OPTIMIZER_ALPHA=1e-3,
                ACTOR_ACTIVATION_FUNCTION="RELU",
                STEP_LIMIT=10_000,
            ),
        ),
        (
            "td3-64",
            dict(
                CRITIC_BATCH_SIZE=128,
                CRITIC_NUM_LAYERS=3,
                ACTOR_TRAINING_INTERVAL=2,
                ACTOR_TARGET_UPDATE_INTERVAL=2,
                CRITIC_TARGET_UPDATE_INTERVAL=2,
                TARGET_NEXT_ACTION_NOISE_STD=0.2,
                TARGET_NEXT_ACTION_NOISE_CLIP=0.5,
                EXPLORATION_NOISE=0.1,
                N_WARMUP_STEPS=128,
            ),
        ),
    ],
)
def test_rltools_does_the_work_of_a_job(rltools, name, wanted):
    rltools.worker.compiled(rltools_jobs()[name])
    ((env, arguments),) = rltools.asked
    assert arguments | wanted | {"GAMMA": 0.99} == arguments
    assert not arguments["enable_evaluation"] and arguments["enable_blas"]
    header = pathlib.Path(env["path"]) / "environment.h"
    assert "environments::Pendulum" in header.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyper": {"hidden_sizes": [64, 32]}}, "one size, not .64, 32"),
        ({"hyper": {"num_updates": 2}}, "updates once per step"),
        ({"hyper": {"num_envs": 4}}, "updates once per step"),
        ({"env": "CartPole-v1"}, "CartPole-v1 is not among"),
    ],
)
def test_rltools_refuses_other_work(rltools, change, message):
    job = rltools_jobs()["sac"]
    job |= change | {"hyper": job["hyper"] | change.get("hyper", {})}
    with pytest.raises(ValueError, match=message):
        rltools.worker.compiled(job)


def test_rltools_compiles_each_configuration_once(rltools, monkeypatch):
    """A module that was compiled before counts as it did then."""
    clock = types.SimpleNamespace(perf_counter=iter([0, 9, 20, 21, 40, 45]).__next__)
    monkeypatch.setattr(rltools.worker, "time", clock)
    job = rltools_jobs()["sac"]
    assert rltools.worker.compiled(job)[1:] == (9.0, 9)
    assert rltools.worker.compiled(job | {"seed": 6})[1:] == (9.0, 1)
    other = job | {"hyper": job["hyper"] | {"gamma": 0.9}}
    assert rltools.worker.compiled(other)[1:] == (5.0, 5)
    first, again, new = (arguments["interface_name"] for _, arguments in rltools.asked)
    assert first == again != new


@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("name", ["ppo-pendulum-4", "td3-64"])
def test_rltools_worker_counts_its_steps(rltools, monkeypatch, capsys, name, mkl):
    job = rltools_jobs()[name] | {"start": time.time()}
    job["full_steps"] = job["steps"] = 51_200
    monkeypatch.setenv("MKL_NUM_THREADS", "8")
    monkeypatch.setattr(rltools.worker, "read_job", lambda: job)
    monkeypatch.setattr(rltools.worker, "check_compiler", lambda: None)
    if not mkl:
        monkeypatch.setattr(rltools.worker, "packages", lambda: ("rltools",))
    rltools.worker.main()
    result = json.loads(capsys.readouterr().out)
    times = 100 if name == "ppo-pendulum-4" else 51_200
    assert rltools.fake.steps == times * result["executions"]
    assert result["steps"] == 51_200 and rltools.fake.seed == 5
    assert result["versions"] == ("rltools 1, mkl 1" if mkl else "rltools 1")
    assert result["note"] == ("" if mkl else "without MKL")
    assert rltools.asked[0][1]["enable_blas"] is mkl
    assert os.environ["MKL_NUM_THREADS"] == "1"


def test_rltools_needs_a_compiler(tmp_path):
    note = without_compiler(tmp_path, environ={})["note"]
    line = "no C++ compiler: RLtools needs g++ or clang++"
    assert note == f"failed: exit status 1: {line}"
    note = without_compiler(tmp_path, environ={"RL_TOOLS_COMPILER": "/mine/c++"})[
        "note"
    ]
    assert "CartPole-v1 is not among" in note  # it went on, to compile


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

    def measure(job, library):
        assert library == "rljax"
        jobs.append((job["name"], job["seed"]))
        good = job["name"] == "good"
        return found((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)) if good else {"note": "hang"}

    works = [dataclasses.replace(PAIR, name=name) for name in ("bad", "good")]
    rows = list(comparisons.measure_all(works, 2, measure))
    assert jobs == [("bad", 0), ("good", 0), ("good", 1)]
    assert [row.failed for row in rows] == [True, True, *[False] * 4]
    assert str(rows[0]) == "bad rljax #0: a / b: hang"
    assert str(rows[2]) == "good rljax #0: a / b: 1.000"
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
    products = ("hvp", "gauss_newton_vp", "fisher_vp", "natural_gradient")
    for name in products:
        results = jax.eval_shape(functions.pop(name), inputs)
        chex.assert_trees_all_equal_shapes(results, inputs.params)
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


@pytest.fixture
def tiny_autodiff(monkeypatch):
    """The suite has one work, of one comparison and a small network."""
    pair = Comparison("norms", "grad", "<= 0.7")
    names = {"name": "tiny", "comparisons": (pair,), "hidden_sizes": (8,)}
    times = {"batch": 4, "rounds": 1, "sample_s": 0.0}
    tiny = dataclasses.replace(autodiff.WORKS[0], **names, **times)
    monkeypatch.setitem(benchmark.SUITES, "autodiff", (tiny,))


def test_main_measures_autodiff(tmp_path, tiny_autodiff, monkeypatch, capsys):
    results = []

    def run_worker(python, script, job, timeout):
        assert (python, script.name) == (sys.executable, "autodiff_worker.py")
        monkeypatch.setattr(worker, "read_job", lambda: json.loads(json.dumps(job)))
        worker.main()
        return results[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "print_result", results.append)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # before jax starts only
    monkeypatch.setattr(benchmark, "run_worker", run_worker)
    benchmark.run(benchmark.Args(suite="autodiff", repeats=1))
    with (tmp_path / "runs" / "benchmark" / "autodiff.csv").open(newline="") as file:
        (first,) = csv.DictReader(file)
    assert set(first) == {f.name for f in dataclasses.fields(comparisons.Row)}
    assert first["library"] == "rljax"
    assert (first["what"], first["against"]) == ("norms", "grad")
    assert float(first["ratio"]) > 0 and first["bar"] == "<= 0.7"
    printed = capsys.readouterr().out
    assert first["machine"] in printed and first["versions"] in printed
    monkeypatch.setattr(benchmark, "run_worker", lambda *_: {"note": "hang"})
    with pytest.raises(SystemExit):
        benchmark.run(benchmark.Args(suite="autodiff", repeats=1))


# The suite meta.


SMALL_A2C = agents.get("a2c").Config(num_envs=2, rollout_length=4, hidden_sizes=(8,))


@functools.cache
def untrained(*work, seed, how, trained=meta_worker.arguments.__wrapped__):
    """Returns arguments as those that the worker trains, of random values."""
    rng = np.random.default_rng(seed)

    def random(path, like):
        name = jax.tree_util.keystr(path)
        if "opt_state" in name or "truncated" in name:  # as at the start, no time limit
            return np.zeros(like.shape, like.dtype)
        if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jax.random.key(seed)
        if jnp.issubdtype(like.dtype, jnp.floating):
            return rng.random(like.shape, np.float32)
        return rng.integers(2, size=like.shape).astype(like.dtype)

    like = jax.eval_shape(lambda: trained(*work, seed=seed, how=how)[1:])
    state, rollout, key = jax.tree_util.tree_map_with_path(random, like)
    count = np.int32(how.num_updates)  # a full window: there is a gradient
    return SMALL_A2C, state._replace(count=count), rollout, key


@pytest.fixture
def small_a2c(monkeypatch):
    """A small agent whose updates are there without its training."""
    monkeypatch.setattr(agents, "config_for", lambda agent, env: SMALL_A2C)
    monkeypatch.setattr(meta_worker, "arguments", untrained)


def small_meta(*pairs, unit="ms", learned=()):
    work = meta.Work(
        "w", "", "a2c", pairs, unit, rounds=1, sample_s=0.0, learned=learned
    )
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
    _, job = small_meta()
    meta_step, arguments = meta_worker.find(job, "meta-step K=2")
    iteration, same = meta_worker.find(job, "iteration K=2")
    assert same is arguments
    both = jax.jit(lambda *x: (meta_step(*x), iteration(*x)))
    (raw, opt_state, metrics), (new, _) = both(*arguments)
    chex.assert_trees_all_close((raw, opt_state), (new.raw, new.opt_state), rtol=1e-5)
    gradient = metrics["meta_gamma_gradient"]
    state = arguments[1]
    assert raw["gamma"] != state.raw["gamma"]
    assert gradient != 0 and np.isfinite(gradient)
    assert len(state.window.keys) == 2  # K updates are there to be replayed


def test_meta_suite_learns_networks(small_a2c):
    _, job = small_meta(learned=("reward",))
    meta_step, arguments = meta_worker.find(job, "meta-step")
    raw, *_ = jax.eval_shape(meta_step, *arguments)
    assert {*raw} == {"reward"}


@pytest.mark.slow
def test_meta_arguments_come_from_training(small_a2c):
    """Adds values: in the fast tests the training is only traced."""
    train, how = (
        untrained.__wrapped__.__kwdefaults__["trained"],
        Settings(num_updates=2),
    )
    config, state, rollout, _ = train("a2c", "CartPole-v1", (), seed=0, how=how)
    assert state.count == state.agent.step == 3  # the window of K = 2 is full
    assert jnp.isfinite(state.raw["gamma"]) and jnp.any(state.window.keys != 0)
    assert rollout.reward.shape == state.window.rollouts.reward.shape[1:]
    assert jnp.any(rollout.obs != state.window.rollouts.obs[-1])  # nobody saw it
    chex.assert_tree_all_finite(rollout)


def test_meta_suite_measures_the_agents_own_update(small_a2c):
    """It returns the new state, so that its memory is counted."""
    _, job = small_meta()
    update, arguments = meta_worker.find(job, "update K=2")
    agent = agents.get("a2c").make(envs.make("CartPole-v1").spec)

    def own(config, state, rollout, key):
        return agent.update(config, state.agent, rollout, key)

    jaxpr, new = jax.make_jaxpr(update, return_shape=True)(*arguments)
    assert str(jaxpr) == str(jax.make_jaxpr(own)(*arguments))
    size = sum(x.nbytes for x in jax.tree.leaves(arguments[1].agent))
    returned = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(new))
    assert size <= returned < 1.2 * size


def test_meta_worker_counts_results_as_memory():
    x = jnp.ones((32, 32))
    values = []
    for unit in ("MB", protocol.WITH_RESULTS):
        work, job = small_meta(Comparison("a", "a"), unit=unit)
        found = meta_worker.compare(job, lambda name: (lambda x: x @ x @ x, (x,)))
        (row,) = comparisons.make_rows(work, 0, found)
        assert row.ratio == 1 and row.suite == "meta" and row.unit == unit
        values.append(row.what_value)
    assert values[1] - values[0] == pytest.approx(x.nbytes / 1e6)


# The suite scale.


PROGRAM = """
HloModule split

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner (x: (f32[8], s32[])) -> (f32[8], s32[]) {
  %all = (f32[8]{0}, s32[]) all-reduce(%a, %b), to_apply=%add
  ROOT %all-reduce.7 = f32[2,3]{1,0} all-reduce(%c), channel_id=2, to_apply=%add
}

%outer (x: f32[8]) -> f32[8] {
  %while.1 = (f32[8]{0}, s32[]) while(%x), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %greatest = bf16[4]{0} all-reduce(%y), to_apply=%max
}

%search (x: f32[8]) -> f32[8] {
  ROOT %one = pred[] all-reduce(%y), to_apply=%or
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %while.2 = f32[8]{0} while(%x), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"10"}}
  %while.3 = f32[8]{0} while(%x), condition=%c, body=%search
  ROOT %fusion = f32[8]{0} fusion(%x), kind=kLoop, calls=%add
}
"""  # noqa: E501


def test_exchanges_are_counted_as_often_as_their_loops_run():
    found = collectives.exchanged(PROGRAM)
    assert found.exchanges == 10 * (3 * 2 + 1) + 1
    of_inner, of_outer = 8 * 4 + 4 + 2 * 3 * 4, 4 * 2
    assert found.kilobytes * 1e3 == 10 * (3 * of_inner + of_outer) + 1


def test_exchanges_and_bytes_are_those_of_an_iteration():
    """Of a program of two iterations."""
    values = []
    for unit in (protocol.EXCHANGES, protocol.BYTES):
        work = scale.Work("w", "", "a2c", (Comparison("a", "a"),), 2, unit)
        job = dataclasses.asdict(work)
        with mock.patch.object(jax.stages.Compiled, "as_text", lambda _: PROGRAM):
            found = meta_worker.compare(job, lambda name: (jnp.sin, (1.0,)))
        (row,) = comparisons.make_rows(work, 0, found)
        assert row.ratio == 1 and row.suite == "scale" and row.unit == unit
        values.append(row.what_value)
    whole = collectives.exchanged(PROGRAM)
    assert values == [whole.exchanges / 2, whole.kilobytes / 2]


def test_scale_worker_trains_on_as_many_devices_as_its_functions_say():
    job = {"agent": "a2c", "seed": 0, "iterations": 2}
    for work in scale.WORKS:
        agents.get(work.agent)
        for comparison in work.comparisons:
            for name in (comparison.what, comparison.against):
                assert 1 <= int(name.split()[0]) <= scale_worker.DEVICES
    run, (start,) = scale_worker.find(job, "1 device")
    assert jax.eval_shape(run, start)[1]["step"].shape == (1, 1, 1)
    with pytest.raises(ValueError, match="data_parallel=8: there are"):
        scale_worker.find(job, "8 devices")


@pytest.mark.slow
def test_scale_suite_counts_the_exchanges_of_an_update(tmp_path):
    """One for each network's gradient, and those of the metrics, once a call."""
    out = tmp_path / "scale.csv"
    args = benchmark.Args(suite="scale", only=("exchanges-dqn",), repeats=1, out=out)
    benchmark.run(args)
    (row,) = csv.DictReader(out.read_text().splitlines())
    assert float(row["ratio"]) == 1
    assert 1 <= float(row["what_value"]) < 1.1


# The suite td.


def test_replay_worker_counts_the_steps_of_its_loop(monkeypatch, capsys):
    replay_worker = load(WORKERS / "rljax_replay_worker.py")
    work = next(work for work in benchmark.TD if work.name == "replay-td_error-10k")
    hyper = work.hyper | {"capacity": 40, "batch_size": 4}
    work = dataclasses.replace(work, hyper=hyper, steps=50)
    job = benchmark.job(work, "rljax", seed=0) | {"start": 0.0}
    monkeypatch.setattr(replay_worker, "read_job", lambda: job)
    monkeypatch.setattr(replay_worker.sharding, "set_cpu_devices", lambda n: None)
    replay_worker.main()
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 50 and result["steps_per_s"] > 0


# Another revision of this tree.


def figures(*values, name="a ms", library="rljax", note=""):
    return [
        paired.Figure("w", name, library, turn, value, note)
        for turn, value in enumerate(values)
    ]


def test_paired_table():
    rows = [
        *figures(2000.0, 300.0, 90.0, 8.0),
        *figures(1000.0, 100.0, 45.0, library="rljax@abc"),  # the last did not finish
        *figures(5.0, name="b ms"),
        *figures(None, name="b ms", library="rljax@abc", note="hang"),
    ]
    header, first, second = paired.format_table(rows).splitlines()
    assert " ".join(first.split()) == "w a ms 300 100 2.00 (2.00-3.00)"
    assert " ".join(second.split()) == "w b ms - - - rljax@abc: hang"
    end = header.index("this tree") + len("this tree")
    assert end == first.index("300") + len("300")
    reverse = [f._replace(turn=-f.turn) for f in rows[:4]]  # pairs are found by turn
    assert paired.pairs([*reverse, *rows[4:7]]) == [(2000.0, 1000.0)]


def test_figures_of_training():
    turns = [("1M", 5.0, 2.0), ("1M@abc", 4.0, 8.0)]
    rows = [make_row(name, 0, rate, cold) for name, rate, cold in turns]
    table = paired.format_table([f for row in rows for f in row.figures])
    assert [" ".join(line.split()) for line in table.splitlines()[1:]] == [
        "w 1M steps/s 5 4 1.25 (1.25-1.25)",
        "w 1M compile s 1.5 1.5 1.00 (1.00-1.00)",
        "w 1M cold start s 2 8 0.25 (0.25-0.25)",
    ]


def test_figures_of_comparisons():
    """Function b is measured in both comparisons: two pairs in every repeat."""
    this = found((0.5, 1.0, 2.0), (0.5, 3.0, 6.0))
    other = found((0.5, 4.0, 8.0), (0.5, 6.0, 8.0))
    rows = [
        *comparisons.make_rows(PAIR, 0, this),
        *comparisons.make_rows(PAIR, 0, other, library="rljax@abc"),
    ]
    assert [row.library for row in rows] == 2 * ["rljax"] + 2 * ["rljax@abc"]
    table = paired.format_table([f for row in rows for f in row.figures])
    assert [" ".join(line.split()) for line in table.splitlines()[1:]] == [
        "w a ms 1 4 0.25 (0.25-0.25)",
        "w b ms 4 8 0.50 (0.25-0.75)",
        "w c ms 3 6 0.50 (0.50-0.50)",
    ]


def test_trees_take_turns():
    asked = []

    def measure(work, library, repeat):
        asked.append(library)
        return {"steps_per_s": 1.0}

    def compare(job, library):
        asked.append(library)
        return {"note": "hang"} if library == "rljax@abc" else found(*2 * [(1, 1, 1)])

    work = dataclasses.replace(WORK, variants={"big": {}})
    trees = ("", "@abc")
    turns = ["rljax", "rljax@abc", "big", "big@abc"]
    rows = benchmark.measure_all("td", [work], ("rljax",), 2, measure, trees)
    assert [row.library for row in rows] == asked == 2 * turns
    asked.clear()
    rows = list(comparisons.measure_all([PAIR], 2, compare, ("rljax", "rljax@abc")))
    assert asked == ["rljax", "rljax@abc"]  # nothing to pair the second repeat with
    assert [row.failed for row in rows] == [False, False, True, True]


def git(root, *command):
    settings = ("user.name=A", "user.email=a@example.org", "commit.gpgsign=false")
    options = [word for setting in settings for word in ("-c", setting)]
    arguments = ["git", "-C", str(root), *options, *command]
    done = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def write_package(root, text):
    for part in ("rljax", "agents"):
        (root / part).mkdir(exist_ok=True)
        (root / part / "__init__.py").write_text(f"TEXT = {text!r}\n")


def commit_all(root):
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "text")
    return git(root, "rev-parse", "--short", "HEAD")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of two commits and a change; the script's, for the test."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # in a hook they name the repository of this file
    root = tmp_path / "checkout"
    root.mkdir()
    git(root, "init", "-q")
    (root / "README").write_text("no package yet")
    commit_all(root)
    for text in ("first", "second"):
        write_package(root, text)
        commit_all(root)
    write_package(root, "uncommitted")
    monkeypatch.setattr(benchmark, "ROOT", root)
    return root


def test_workers_measure_their_own_tree(checkout, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(WORKERS)!r})\n"
        "import protocol, rljax, rljax.agents\n"
        "texts = [rljax.TEXT, rljax.agents.TEXT]\n"
        "protocol.print_result({'texts': texts})\n"
    )
    first = git(checkout, "rev-parse", "--short", "HEAD~1")
    texts, wrong = {}, None
    with benchmark.open_trees("HEAD~1") as trees:
        for suffix, tree in trees.items():
            result = benchmark.run_in(tree, sys.executable, script, {}, 20.0)
            texts[suffix] = result["texts"]
        this, other = trees.values()
        wrong = revisions.checked(result, this)
        assert revisions.checked(result, other) == result
    assert texts == {"": 2 * ["uncommitted"], f"@{first}": 2 * ["first"]}
    assert set(wrong) == {"note"} and str(other / "rljax") in wrong["note"]
    assert not this.exists() and not other.exists()
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


def test_a_worker_must_import_rljax_from_its_tree_alone(tmp_path, monkeypatch):
    strange = {"imported_from": ["/elsewhere/rljax"]}
    monkeypatch.setattr(benchmark, "run_worker", lambda *_, environ: strange)
    result = benchmark.run_in(tmp_path, sys.executable, COMMANDS, {}, 1.0)
    assert set(result) == {"note"} and "/elsewhere/rljax" in result["note"]
    note = {"note": "hang"}
    assert revisions.checked(note, tmp_path) == note
    nowhere = revisions.checked({"imported_from": []}, tmp_path)
    assert "imported from nowhere" in nowhere["note"]
    folders = [str(tmp_path / "rljax"), "/elsewhere/agents"]
    mixed = revisions.checked({"imported_from": folders}, tmp_path)
    assert set(mixed) == {"note"} and "/elsewhere/agents" in mixed["note"]


def test_environment_keeps_the_path_of_this_process(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    assert revisions.environ(COMMANDS) == {"PYTHONPATH": f"{COMMANDS}{os.pathsep}/mine"}
    monkeypatch.delenv("PYTHONPATH")
    assert revisions.environ(COMMANDS) == {"PYTHONPATH": str(COMMANDS)}


@pytest.mark.parametrize(
    ("revision", "message"),
    [("nope", "no such revision"), ("--help", "no such"), ("HEAD~2", "no package rl")],
)
def test_against_what_is_no_revision(checkout, revision, message):
    with pytest.raises(SystemExit, match=f"--against .*: .*{message}"):
        benchmark.run(benchmark.Args(against=revision))


def test_against_needs_git_alone(checkout, tmp_path, monkeypatch):
    python = pathlib.Path(sys.executable)
    for option in ("peers_python", "rltools_python"):
        args = benchmark.Args(against="HEAD", **{option: python})
        with pytest.raises(SystemExit, match="--against measures no peers"):
            benchmark.run(args)
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(SystemExit, match="--against HEAD: fatal: not a git repository"):
        benchmark.run(benchmark.Args(against="HEAD"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="--against HEAD: git is not installed"):
        benchmark.run(benchmark.Args(against="HEAD"))


def test_main_measures_against_a_revision(checkout, tmp_path, monkeypatch, capsys):
    old_fails = False

    def run_worker(python, script, job, timeout, *, environ):
        assert (python, script.name) == (pathlib.Path(sys.executable), name)
        tree = pathlib.Path(environ["PYTHONPATH"].split(os.pathsep)[0])
        old = "first" in (tree / "rljax" / "__init__.py").read_text()
        if old and old_fails:
            return {"note": "failed: exit status 1: no"}
        rate = 100.0 if old else 300.0
        assert not job["limits"]  # an older revision may lack what they need
        times = {"steps_per_s": rate, "cold_start_s": 1.0, "compile_s": 0.5}
        return times | {"imported_from": [str(tree / "rljax")]}

    name = "rljax_worker.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "run_worker", run_worker)
    monkeypatch.setattr(benchmark, "peers_python", lambda args: pytest.fail("built"))
    args = benchmark.Args(only=("ppo-4",), repeats=2, against="HEAD~1")
    benchmark.run(args)
    commit = git(checkout, "rev-parse", "--short", "HEAD~1")
    path = tmp_path / "runs" / "benchmark" / f"speed-against-{commit}.csv"
    with path.open(newline="") as file:
        libraries = [row["library"] for row in csv.DictReader(file)]
    assert libraries == 2 * ["rljax", f"rljax@{commit}"]
    assert "3.00 (3.00-3.00)" in capsys.readouterr().out
    old_fails = True
    with pytest.raises(SystemExit) as error:
        benchmark.run(args)
    assert error.value.code == 1
    assert f"rljax@{commit}: failed: exit status 1: no" in capsys.readouterr().out


@pytest.mark.slow
def test_main_measures_gradients_against_a_revision(
    checkout, tmp_path, tiny_autodiff, monkeypatch
):
    """Adds real processes: they import rljax from both trees and call jitted code."""
    for part in ("rljax", "agents"):
        shutil.copytree(ROOT / part, checkout / part, dirs_exist_ok=True)
    commit = commit_all(checkout)
    out = tmp_path / "autodiff.csv"
    args = benchmark.Args(suite="autodiff", repeats=1, against="HEAD", out=out)
    benchmark.run(args)
    with out.open(newline="") as file:
        this, other = csv.DictReader(file)
    assert (this["library"], other["library"]) == ("rljax", f"rljax@{commit}")
    assert float(this["what_value"]) > 0 and float(other["what_value"]) > 0
    (checkout / "rljax" / "autodiff" / "__init__.py").write_text("1 / 0\n")
    commit = commit_all(checkout)
    shutil.copytree(ROOT / "rljax", checkout / "rljax", dirs_exist_ok=True)
    with pytest.raises(SystemExit):
        benchmark.run(dataclasses.replace(args, against="HEAD"))
    with out.open(newline="") as file:
        this, other = csv.DictReader(file)
    assert float(this["what_value"]) > 0 and other["what_value"] == ""
    assert "ZeroDivisionError" in other["note"]
