"""`rljax sweep`: values, programs, kills, ranks, and its searches.

The agent of a file, `planted.py`, learns nothing: the action that it pays for climbs to
a height that its config has. So every score is known but for its seed's luck.
"""

import contextlib
import csv
import functools
import io
import math
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents
from rljax.commands import sweep
from rljax.commands.sweeps import (
    groups,
    halving,
    population,
    ranking,
    searches,
    space,
    study,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
AGENT = """
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax.types import Agent


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.01
    weight: float = 0.5
    limit: float | None = None
    total_steps: int = cfg.static(108)
    num_envs: int = cfg.static(1)
    rollout_length: int = cfg.static(4)
    kind: str = cfg.static("plain")
    sizes: tuple[int, ...] = cfg.static((8,))
    wide: bool = cfg.static(False)

    def validate(self):
        cfg.check_loop(self)
        cfg.check_range(self, "rate", "weight", low=0, high=1)
        cfg.check_choice(self, "kind", ("plain", "broken"))


class State(NamedTuple):
    luck: jax.Array
    level: jax.Array  # climbs to the height that the config has


def make(spec):
    def init(config, key):
        return State(luck=0.02 * jax.random.normal(key), level=jnp.float32(0))

    def act(config, state, memory, obs, key, explore):
        score = state.level + state.luck
        return jnp.full((obs.shape[0], 1), score), memory, ()

    def update(config, state, rollout, key):
        height = jnp.exp(-((jnp.log10(config.rate) + 2) ** 2))
        height *= sum(config.sizes) / 8 + 2 * config.wide
        state = state._replace(level=state.level + 0.1 * (height - state.level))
        loss = jnp.float32(jnp.nan if config.kind == "broken" else 0)
        return state, {"loss": loss}

    return Agent(
        init=init,
        memory=lambda config, num_envs: (),
        act=act,
        observe=lambda config, state, rollout: state,
        update=update,
    )
"""
TASK = """
import jax.numpy as jnp
from gymnax.environments import environment, spaces


class Pays(environment.Environment):  # an episode is one step, which pays the action
    default_params = environment.EnvParams(max_steps_in_episode=5)

    def reset_env(self, key, params):
        return jnp.zeros(1), environment.EnvState(time=jnp.int32(0))

    def step_env(self, key, state, action, params):
        state = environment.EnvState(time=state.time + 1)
        return jnp.zeros(1), state, action[0], jnp.bool_(True), {}

    def action_space(self, params):
        return spaces.Box(-10.0, 10.0, (1,))

    def observation_space(self, params):
        return spaces.Box(0.0, 1.0, (1,))
"""


def level(rate, size=8, wide=False, updates=27):
    """The score that a config leads to, without luck."""
    height = math.exp(-((math.log10(rate) + 2) ** 2)) * (size / 8 + 2 * wide)
    return height * (1 - 0.9**updates)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Words that name the agent and its environment."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.py").write_text(AGENT)
    (folder / "task.py").write_text(TASK)
    return [f"{folder}/planted.py", "--env", f"{folder}/task.py:Pays", "--episodes=2"]


@pytest.fixture(scope="module")
def config(own):
    return agents.get(own[0]).Config()


def ran(own, line):
    """Run a line; the lines that it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        sweep.main([*own, *line.split()], "rljax sweep")
    return out.getvalue().splitlines()


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def scores(table, *names):
    """Returns by the texts of some columns."""
    return {tuple(row[name] for name in names): float(row["return"]) for row in table}


# Values.


def test_values_are_read_as_the_fields_own_options(config):
    words = ("rate=1e-3,0.1", "num_envs=2,4", "kind=plain,broken", "wide=True,False")
    words += ("sizes=8,64+64", "limit=None,0.5", "weight=uniform:0,1")
    found = space.parse(words, config)
    assert [field.name for field in found] == [w.partition("=")[0] for w in words]
    assert [field.values for field in found[:6]] == [
        (0.001, 0.1),
        (2, 4),
        ("plain", "broken"),
        (True, False),
        ((8,), (64, 64)),
        (None, 0.5),
    ]
    assert found[6] == space.Span("weight", "uniform", 0.0, 1.0)
    assert len(space.grid(found[:6])) == 64


@pytest.mark.parametrize("scale", space.SCALES)
def test_draws_follow_from_their_seed_and_fill_the_range(scale):
    span, choices = space.Span("x", scale, 1e-4, 1.0), space.Choices("y", ("a", "b"))
    drawn = space.draw([span, choices], 2000, 1)
    assert drawn[:7] == space.draw([span, choices], 7, 1)
    assert drawn[:7] != space.draw([span, choices], 7, 2)
    numbers = np.array([row[0] for row in drawn])
    assert ((numbers >= 1e-4) & (numbers <= 1)).all()
    shares = (np.log10(numbers) + 4) / 4 if scale == "log" else numbers
    # Of 2,000 numbers even in [0, 1]: five standard deviations of each count.
    np.testing.assert_allclose(np.histogram(shares, 4, (0, 1))[0], 500, atol=97)
    assert 888 < [row[1] for row in drawn].count("a") < 1112


BAD = {
    "unknown": ("--vary rat=0.1", "--vary rat=0.1: unknown field 'rat'"),
    "no float": ("--vary rate=high", "'high': expected float"),
    "no integer": ("--vary num_envs=1.5", "'1.5': expected int"),
    "no tuple": ("--vary sizes=8x8", "'8x8': expected values with + between them"),
    "empty": ("--vary rate=", "'': expected float"),
    "out of range": ("--vary rate=0.1,1.5", "rate=1.5: must be in [0, 1]"),
    "static out of range": ("--vary num_envs=1,0", "num_envs=0: must be an integer"),
    "no choice": ("--vary kind=plain,plane", "kind='plane': must be one of"),
    "drawn out of range": (
        "--vary rate=uniform:1.5,2 --samples 3",
        "must be in [0, 1]",
    ),
    "range of integers": ("--vary num_envs=log:1,9", "num_envs is no float"),
    "turned": ("--vary rate=log:1,0.1 --samples 3", "LOW must be below HIGH"),
    "log of 0": ("--vary rate=log:0,0.1 --samples 3", "LOW must be above 0"),
    "one bound": ("--vary rate=log:0.1 --samples 3", "expected NAME=log:LOW,HIGH"),
    "range in a grid": ("--vary rate=log:0.1,1", "a range needs --samples"),
    "no samples": ("--vary rate=log:0.1,1 --samples 0", "samples=0: must be in [1"),
    "picture of nothing": ("--vary rate=0.1 --picture", "--picture: needs --out"),
    "last fresh seed": (
        "--vary rate=0.1 --seed 4294967294 --top 1",
        "seeds=4: the last one is 4294967297",
    ),
    "rounds of a grid": ("--vary rate=0.1 --rounds 3", "is of --search halving"),
    "storage of a grid": ("--vary rate=0.1 --storage x", "is of --search optuna"),
    "rungs": (
        "--vary rate=0.1,0.2 --search halving --rounds 9",
        "the first rung of 27 iterations has none; at most 4",
    ),
    "pbt of choices": (
        "--vary rate=0.1,0.2 --search pbt --samples 4",
        "--search pbt: rate: needs a range",
    ),
    "pbt of few": ("--vary rate=log:0.1,1 --search pbt --samples 3", "samples=3: must"),
    "pbt beyond": (
        "--vary rate=uniform:0,1.01 --search pbt --samples 4",
        "rate=1.01: must be in [0, 1]",
    ),
    "pbt of many chunks": (
        "--vary rate=log:0.1,1 --search pbt --samples 4 --rounds 28",
        "rounds=28: must be at most the 27 iterations",
    ),
    "eta of a grid": ("--vary rate=0.1 --eta 2", "is of --search halving"),
    "pbt of none": ("--vary rate=log:0.1,1 --search pbt", "needs --samples"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_one_line_before_anything_runs(own, name, tmp_path):
    line, words = BAD[name]
    with pytest.raises(ValueError) as error:
        ran(own, line)
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


# Programs, groups, tables.


@pytest.fixture(scope="module")
def wide(own, tmp_path_factory):
    """A sweep over floats and statics: what it prints, its file, what it compiles."""
    out = tmp_path_factory.mktemp("wide") / "wide.csv"
    compiled = []

    def program(swept, size, configuration=0):
        compiled.append(swept.shape(configuration))
        return PROGRAM(swept, size, configuration)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "program", program)
        line = "--vary rate=0.1,0.01 --vary sizes=8,8+8 wide=False,True --top 2"
        printed = ran(own, f"{line} --out {out} --picture --seed 5")
    return printed, out, compiled


PROGRAM = groups.program


def test_a_program_for_each_shape_is_compiled_once(wide):
    printed, _, compiled = wide
    assert printed[0] == (
        "4 programs: sizes=8 wide=False (4 runs), sizes=8 wide=True (4 runs), "
        "sizes=8+8 wide=False (4 runs), sizes=8+8 wide=True (4 runs)"
    )
    assert len(compiled) == len(set(compiled)) == 4


def test_a_row_has_what_its_configuration_comes_to(wide):
    """All configurations have a seed's luck, so that it leaves their differences."""
    table = rows(wide[1])
    assert set(table[0]) == {
        *("configuration", "rate", "sizes", "wide", "seed"),
        *("return", "steps", "status", "sweep"),
    }
    found = scores(table, "rate", "sizes", "wide", "seed")
    assert len(found) == 8 * 2 + 2 * 2 == len(table)
    for (rate, sizes, wide_, seed), score in found.items():
        if seed in ("5", "6"):
            size = sum(map(int, sizes.split("+")))
            known = level(float(rate), size, wide_ == "True")
            least = level(0.1, 8, False)
            luck = found["0.1", "8", "False", seed] - least
            assert abs(luck) < 0.1
            assert score == pytest.approx(known + luck, abs=1e-5)
    assert {row["steps"] for row in table} == {"108"}
    assert {row["status"] for row in table} == {"done"}


def test_the_best_run_again_with_fresh_seeds(own, wide, tmp_path):
    """Both means are told, and the fresh ones are those of a sweep of these seeds."""
    table = rows(wide[1])
    fresh = [row for row in table if row["seed"] in ("7", "8")]
    best = {"0.01 8+8 True", "0.01 8 True"}
    assert {f"{r['rate']} {r['sizes']} {r['wide']}" for r in fresh} == best
    out = tmp_path / "fresh.csv"
    ran(own, f"--vary sizes=8+8 wide=True --config.rate 0.01 --seed 7 --out {out}")
    (alone, other) = rows(out)
    found = scores(fresh, "sizes", "seed")
    for row in (alone, other):
        assert found["8+8", row["seed"]] == pytest.approx(
            float(row["return"]), rel=1e-5
        )
    head, first, second, third = wide[0][1:5]
    assert head.split()[:3] == ["rate", "sizes", "wide"] and "again" in head
    mean = np.mean([score for key, score in found.items() if key[0] == "8+8"])
    assert f"{mean:.3g}" in first and first.split()[:3] == ["0.01", "8+8", "True"]
    assert second.split()[:3] == ["0.01", "8", "True"]
    assert len(first.split()) == len(second.split()) > len(third.split())


def test_a_picture_stands_beside_the_table(wide):
    picture = wide[1].with_name("wide.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in wide[1].parent.iterdir()} == {"wide.csv", "wide.png"}


def test_a_run_that_diverges_is_told_and_comes_last_in_halving(own, tmp_path):
    out = tmp_path / "a.csv"
    line = f"--vary kind=broken,plain --out {out}"
    assert "2 runs diverged: a metric or the return is not finite" in ran(own, line)
    assert {(row["kind"], row["status"]) for row in rows(out)} == {
        ("plain", "done"),
        ("broken", "diverged"),
    }
    out.unlink()
    ran(own, f"{line} --search halving --eta 2 --rounds 2")
    assert {(row["kind"], row["steps"]) for row in rows(out)} == {
        ("plain", "108"),
        ("broken", "56"),
    }


@pytest.mark.slow
def test_a_killed_sweep_goes_on_to_the_same_table(own, tmp_path):
    """64 configurations, killed with SIGKILL once some of their groups are there."""
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *own]
    command += ["--vary", "rate=log:1e-4,1", "sizes=8,8+8"]
    command += ["--samples", "64", "--seeds", "1", "--at-once", "4"]

    def start(name):
        return subprocess.Popen(
            [*command, "--out", name], cwd=tmp_path, stdout=-1, stderr=-2
        )

    whole = start("whole.csv")
    text = whole.communicate(timeout=200)[0]
    assert whole.returncode == 0, text
    killed, part = start("part.csv"), tmp_path / "part.csv"
    least = 2 + int(np.random.default_rng().integers(40))
    while not part.exists() or len(part.read_text().splitlines()) < least:
        assert killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert least <= len(part.read_text().splitlines()) < 65
    left = start("part.csv")
    text = left.communicate(timeout=200)[0]
    assert left.returncode == 0, text
    assert part.read_text() == (tmp_path / "whole.csv").read_text()


def test_a_file_of_another_search_stays(own, wide):
    before = wide[1].read_text()
    for more in ("--seed 6", "--episodes=3 --seed 5", "--seed 5 --search halving"):
        line = "--vary rate=0.1,0.01 --vary sizes=8,8+8 wide=False,True"
        with pytest.raises(ValueError, match="holds another sweep"):
            ran(own, f"{line} {more} --out {wide[1]}")
    with pytest.raises(ValueError, match="exists; not overwritten"):
        ran(own, f"--vary rate=log:0.1,1 --search pbt --samples 4 --out {wide[1]}")
    assert wide[1].read_text() == before


# Ranks.


def test_an_interval_is_students():
    """Quantiles of Student's table: 12.706 for two numbers, 4.303 for three."""
    mean, low, high = ranking.interval(np.array([0.0, 2.0]))
    np.testing.assert_allclose([mean, low, high], [1, -11.706, 13.706], rtol=1e-4)
    mean, low, high = ranking.interval(np.array([0.0, 0.0, 3.0]))
    np.testing.assert_allclose([mean, high], [1, 1 + 4.3027], rtol=1e-4)
    assert np.isnan(ranking.interval(np.array([7.0])).low)


# Successive halving.


def test_rungs_keep_a_share_and_go_on_without_training_anew(own, tmp_path):
    """The finished runs of a search are those of the whole sweep, bit for bit."""
    line = "--vary rate=log:1e-4,1 sizes=8,8+8 --samples 9 --search-seed 4"
    ran(own, f"{line} --out {tmp_path}/whole.csv")
    printed = ran(own, f"{line} --search halving --out {tmp_path}/some.csv")
    whole = {(r["configuration"], r["seed"]): r for r in rows(tmp_path / "whole.csv")}
    some = rows(tmp_path / "some.csv")
    by_steps = {
        steps: [r for r in some if r["steps"] == steps] for steps in ["12", "36", "108"]
    }
    assert [len(found) for found in by_steps.values()] == [12, 4, 2]
    assert {r["status"] for r in some} == {"done", "stopped"}
    for row in by_steps["108"]:
        other = whole[row["configuration"], row["seed"]]
        assert row["return"] == other["return"] and row["status"] == "done"
    # 12 runs of 12 steps, 4 of 36, 2 of 108; all to the end: 18 of 108.
    assert "cost: 504 of 1,944 steps, 26% of the full cost" in printed
    before = (tmp_path / "some.csv").read_bytes()
    again = ran(own, f"{line} --search halving --out {tmp_path}/some.csv")
    assert again[-1].startswith("0 runs, 0 steps")
    assert (tmp_path / "some.csv").read_bytes() == before


def test_halving_finds_the_best_for_less(own, monkeypatch):
    """27 rates in each of 10 tries; the best of each is known by its formula."""
    piece, programs = halving._piece, {}

    def once(swept, configuration, climb, *, first):  # all tries have these programs
        if climb.rung not in programs:
            programs[climb.rung] = piece(swept, configuration, climb, first=first)
        return programs[climb.rung]

    monkeypatch.setattr(halving, "_piece", once)
    ladder, found = halving.Ladder(eta=3, rungs=3), 0
    for seed in range(10):
        line = "--vary rate=log:1e-4,1 --samples 27 --search halving --seeds 1"
        words = [*own, *line.split(), "--search-seed", str(seed), "--at-once", "27"]
        swept, _ = sweep.parse_command_line(words, "sweep")
        results = halving.search(swept, lambda results: None, ladder=ladder, at_once=27)
        best = max(range(27), key=lambda c: level(swept.rows[c][0]))
        found += ranking.rank(swept, results)[0] == best
        spent = sum(result.steps for result in results.values())
        assert spent <= 0.4 * 27 * 108
    assert found >= 9


# Populations.


def test_the_worse_copy_the_better_and_stay_in_range():
    spans = [
        space.Span("a", "uniform", 0.0, 1.0),
        space.Span("b", "log", 1e-3, 1e-1),
    ]
    exploit = jax.jit(functools.partial(population.exploit, spans=spans))
    generator = np.random.default_rng(0)
    kinds = []
    for seed in range(200):
        values = np.stack([generator.uniform(0, 1, 8), generator.uniform(1e-3, 0.1, 8)])
        values = values.T.astype(np.float32)
        scores_ = generator.permutation(8).astype(np.float32)
        new, parents = exploit(values, scores_, jax.random.key(seed))
        new, parents = np.array(new), np.array(parents)
        lower, upper = np.argsort(scores_)[:2], np.argsort(scores_)[-2:]
        stay = np.setdiff1d(np.arange(8), lower)
        np.testing.assert_array_equal(parents[stay], stay)
        np.testing.assert_array_equal(new[stay], values[stay])
        assert set(parents[lower]) <= set(upper)
        assert (new >= [0, 0.999e-3]).all() and (new <= [1, 0.1001]).all()
        kinds += list((new[lower] / values[parents[lower]]).ravel())
    kinds = np.array(kinds)
    shares = [np.isclose(kinds, factor, rtol=1e-4).mean() for factor in (0.8, 1.2)]
    # 0.375 each but for values at the end of their range; a quarter is drawn anew.
    assert 0.3 < shares[0] < 0.45 and 0.2 < shares[1] < 0.45


def test_nobody_copies_an_equal():
    spans = [space.Span("a", "uniform", 0.0, 1.0)]
    values, scores_ = jnp.linspace(0, 1, 8)[:, None], jnp.full(8, -jnp.inf)
    new, parents = population.exploit(values, scores_, jax.random.key(0), spans=spans)
    assert parents.tolist() == list(range(8)) and (new == values).all()


def test_a_history_follows_states_from_parent_to_child(own, tmp_path):
    """A score is the parent's level, or one's own, some updates later."""
    out = tmp_path / "history.csv"
    line = "--vary rate=log:1e-4,1 --search pbt --samples 8 --rounds 3 --seeds 2"
    printed = ran(own, f"{line} --out {out}")
    table = rows(out)
    assert list(table[0]) == [*population.FIRST, "rate", "score"]
    assert len(table) == 2 * 3 * 8 and {r["step"] for r in table} == {"36", "72", "108"}
    copied = 0
    for seed in ("0", "1"):
        # Level and luck of each member; the first score tells the luck.
        levels, lucks = np.zeros(8), None
        for step in ("36", "72", "108"):
            now = [r for r in table if r["seed"] == seed and r["step"] == step]
            parents = np.array([int(r["parent"]) for r in now])
            rates = np.array([float(r["rate"]) for r in now])
            found = np.array([float(r["score"]) for r in now])
            heights = np.exp(-((np.log10(rates) + 2) ** 2))
            levels = levels[parents]
            path = []  # played before each update: the level that it begins with
            for _ in range(9):
                path.append(levels)
                levels = levels + 0.1 * (heights - levels)
            mean = np.mean(path, axis=0)
            lucks = found - mean if lucks is None else lucks[parents]
            np.testing.assert_allclose(found, mean + lucks, atol=1e-5)
            copied += (parents != np.arange(8)).sum()
    assert copied == 2 * 2 * 2
    assert printed[1].split() == ["seed", "member", "rate", "return"]
    assert len(printed) == 1 + 1 + 16 + 2


@pytest.mark.slow
def test_a_population_of_ppo_beats_one_that_does_not_copy():
    """Learning rates over three decades, on CartPole; the mean of all members."""
    line = "ppo --vary learning_rate=log:3e-5,3e-2 --search pbt --samples 8 --seeds 1 "
    line += "--steps 40960 --config.num-envs 8 --config.rollout-length 32 "
    line += "--config.hidden-sizes 32 --config.no-anneal --episodes 32"
    swept, options = sweep.parse_command_line(line.split(), "sweep")
    spans = [space.Span("learning_rate", "log", 3e-5, 3e-2)]
    means = []
    for fraction in (0.25, 0.0):
        trained = population.Population(swept, spans, chunks=10, fraction=fraction)
        outcome = trained.train(options.search_seed, lambda history: None)
        means.append(outcome.returns.mean())
    assert means[0] > means[1] + 50, means


# Optuna.


class FakeStudy:
    """Asks for values in turn, and writes down what it is told."""

    def __init__(self):
        self.trials, self.told = [], []

    def ask(self):
        trial = FakeTrial(len(self.trials))
        self.trials.append(trial)
        return trial

    def tell(self, trial, value=None, state=None):
        self.told.append((trial.number, value, state))
        trial.value = value
        trial.state.name = state or "COMPLETE"

    @property
    def best_trial(self):
        done = [trial for trial in self.trials if trial.value is not None]
        return max(done, key=lambda trial: trial.value)


class FakeTrial:
    def __init__(self, number):
        self.number, self.value = number, None
        self.state = types.SimpleNamespace(name="RUNNING")
        self.state.is_finished = lambda: self.state.name != "RUNNING"

    def suggest_float(self, name, low, high, *, log):
        assert (name, low, high, log) == ("rate", 1e-4, 1.0, True)
        return (0.1, 0.01, 0.001)[self.number % 3]

    def suggest_categorical(self, name, choices):
        return choices[self.number % len(choices)]


@pytest.fixture
def fake(monkeypatch):
    """Optuna as far as it is used; its studies by their names."""
    studies = {}

    def create_study(*, storage, study_name, direction, sampler, load_if_exists):
        assert direction == "maximize" and load_if_exists
        return studies.setdefault((storage, study_name), FakeStudy())

    module = types.ModuleType("optuna")
    module.create_study = create_study
    module.logging = types.SimpleNamespace(set_verbosity=lambda level: None, WARNING=30)
    module.samplers = types.SimpleNamespace(TPESampler=lambda seed: seed)
    trial = types.ModuleType("optuna.trial")
    trial.TrialState = types.SimpleNamespace(FAIL="FAIL")
    monkeypatch.setitem(sys.modules, "optuna", module)
    monkeypatch.setitem(sys.modules, "optuna.trial", trial)
    return studies


OPTUNA = "--vary rate=log:1e-4,1 kind=plain,broken --search optuna --seeds 1"


def test_optuna_asks_and_is_told(own, fake, tmp_path):
    line = f"{OPTUNA} --samples 6 --at-once 3 --storage sqlite:///a.db"
    printed = ran(own, f"{line} --out {tmp_path}/a.csv")
    ((place, made),) = fake.items()
    assert place[0] == "sqlite:///a.db" and place[1].startswith("rljax-")
    assert [number for number, _, _ in made.told] == list(range(6))
    for number, value, state in made.told:
        if number % 2:  # broken
            assert (value, state) == (None, "FAIL")
        else:
            rate = (0.1, 0.01, 0.001)[number % 3]
            assert value == pytest.approx(level(rate), abs=0.1)
    table = rows(tmp_path / "a.csv")
    assert [
        r["rate"] for r in sorted(table, key=lambda r: int(r["configuration"]))
    ] == [*("0.1", "0.01", "0.001", "0.1", "0.01", "0.001")]
    best = max(value for _, value, _ in made.told if value is not None)
    assert f"6 trials, best return {best:.4g}" in printed[-2]
    assert ran(own, line)[-1].startswith("0 runs")  # the study has had enough
    more = ran(own, line.replace("6", "8") + " --top 1")
    assert more[-1].startswith("3 runs") and "again" in more[0]
    assert len(fake) == 1 and len(made.told) == 8


def test_without_optuna_the_extra_is_named(own, monkeypatch):
    monkeypatch.setattr(study, "MODULE", "optuna_that_is_not_there")
    with pytest.raises(ValueError, match=r"pip install 'rljax-lab\[optuna\]'"):
        ran(own, f"{OPTUNA} --samples 2")


def test_searches_refuse_several_processes(own, monkeypatch):
    monkeypatch.setattr(searches.hosts, "several", lambda: True)
    with pytest.raises(ValueError, match="--search halving: runs in one process"):
        ran(own, "--vary rate=0.1,0.2 --search halving")
