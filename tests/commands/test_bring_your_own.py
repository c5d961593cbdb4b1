"""The page docs/bring-your-own.md as a new user follows it, and what goes wrong."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from rljax.commands import common
from rljax.running.logging import read_csv

TESTS = pathlib.Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "bring-your-own.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
WHOLE_LINES = PAGE.replace(" \\\n", "")
COMMANDS = re.findall(r"^rljax ([^#\n]*[^# \n])", WHOLE_LINES, re.MULTILINE)


@pytest.fixture(scope="session")
def rljax():
    """Run commands of `rljax`, all in one process: see script_runner.py."""
    command = [sys.executable, str(TESTS / "script_runner.py"), "--answer"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def run(cwd, line, **more):
        name, _, rest = line.partition(" ")
        line = f"{name.replace('-', '_')} {rest}"
        process.stdin.write(json.dumps({"cwd": str(cwd), "line": line, **more}) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()


@pytest.fixture(scope="session")
def folder(rljax, tmp_path_factory):
    """The page's folder after all commands, the first run stopped and resumed."""
    path = tmp_path_factory.mktemp("own")
    for name, code in FILES.items():
        (path / name).write_text(code)
    for i, line in enumerate(COMMANDS):
        stops = i == 1
        done = rljax(path, line, **({"interrupt": 3} if stops else {}))
        assert done["code"] == (130 if stops else 0), done
    return path


def test_the_page_has_files_and_commands():
    assert list(FILES) == ["corridor.py", "actor_critic.py", "torso.py"]
    names = [line.split()[0] for line in COMMANDS]
    assert names == ["check-env", *["train"] * 3, "evaluate", "sweep", "plot"]
    assert len(PAGE.splitlines()) <= 240


def test_the_run_of_the_page_learns_and_is_recorded(folder):
    evaluation = json.loads((folder / "runs/first/evaluation.json").read_text())
    assert min(evaluation["mean_return_per_seed"]) > 0.9  # 10 steps of -0.01 at most
    config = json.loads((folder / "runs/first/config.json").read_text())
    assert config["agent"] == f"{folder}/actor_critic.py"
    assert config["env"] == f"{folder}/corridor.py:Corridor"
    assert config["config"]["gamma"] == 0.95  # of the preset, by its pattern
    table = read_csv(folder / "runs/first/metrics.csv")
    steps = table["step"][::2]  # those before the stop, and of the resumed run
    assert (steps[1:] > steps[:-1]).all() and steps[-1] == 50176
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    other = json.loads((folder / "runs/ppo/config.json").read_text())
    assert other["env_params"] == {"length": 6}
    assert other["config"]["torso"] == f"{folder}/torso.py:Fourier"


def test_a_run_is_found_from_another_folder(rljax, folder, tmp_path):
    done = rljax(tmp_path, f"evaluate {folder}/runs/first --episodes 4")
    assert done["code"] == 0, done["err"]


def test_a_file_that_has_changed_is_told(rljax, folder, tmp_path):
    for name in ("corridor.py", "actor_critic.py"):
        shutil.copy(folder / name, tmp_path)
    line = "train actor_critic.py --env corridor.py:Corridor --steps 256 --rows 1"
    assert rljax(tmp_path, f"{line} --episodes 0 --name a")["code"] == 0
    before = rljax(tmp_path, "evaluate runs/a --episodes 2")
    with (tmp_path / "corridor.py").open("a") as file:
        file.write("# another\n")
    after = rljax(tmp_path, "evaluate runs/a --episodes 2")
    assert before["code"] == after["code"] == 0
    assert "changed" not in before["err"]
    note = f"note: {tmp_path}/corridor.py has changed since the run began"
    assert after["err"].splitlines() == [note]
    sweep = (
        "sweep a2c --env corridor.py:Corridor --vary gamma=0.9 --steps 80 --episodes 1"
    )
    sweep += " --config.num-envs 2 --config.hidden-sizes 8 --out a.csv"
    assert rljax(tmp_path, sweep)["code"] == 0
    with (tmp_path / "corridor.py").open("a") as file:
        file.write("# and another\n")
    again = rljax(tmp_path, sweep)
    assert again["code"] == 2 and "a.csv: holds another sweep" in again["err"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_networks_that_differ_between_devices_are_told(rljax, folder, tmp_path):
    alone = FILES["actor_critic.py"].replace("grads = parallel.mean(grads)", "pass")
    (tmp_path / "alone.py").write_text(alone)
    line = f"--env {folder}/corridor.py:Corridor --steps 512 --rows 2 --episodes 0"
    line += " --data-parallel 2"
    averaged = rljax(tmp_path, f"train {folder}/actor_critic.py {line}")
    assert averaged["code"] == 0 and "note" not in averaged["err"], averaged["err"]
    told = rljax(tmp_path, f"train alone.py {line}")
    note = "note: alone.py: State.opt_state[0].mu['params']"
    assert told["code"] == 0 and told["err"].count("note") == 1
    assert note in told["err"], told["err"]


def test_default_names_are_names_of_files(rljax, folder, tmp_path):
    short = f"--env {folder}/corridor.py:Corridor --steps 256 --rows 1 --episodes 0"
    done = rljax(tmp_path, f"train {folder}/actor_critic.py {short}")
    assert done["code"] == 0, done["err"]
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("actor_critic-corridor-Corridor-20")


@dataclasses.dataclass(frozen=True)
class Config:
    torso: str | None = "torso.py:Wide"
    cell: str | None = "my.module:Cell"
    activation: str = "tanh"
    width: int = 3


def test_references_in_a_config_hold_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recorded = common.as_recorded(Config())
    assert recorded == Config(torso=f"{tmp_path}/torso.py:Wide")
    assert common.as_recorded(recorded) == recorded


BAD = {
    "no file": ("train a2c --env maze.py:Maze", "maze.py:Maze': no file /"),
    "no object": ("train a2c --env corridor.py:Coridor", "did you mean: Corridor?"),
    "parameter": (
        "train a2c --env corridor.py:Corridor --env-params lenght 3",
        "corridor.py:Corridor 'lenght'; did you mean: length?",
    ),
    "no number": (
        "train a2c --env corridor.py:Corridor --env-params max_steps_in_episode long",
        "max_steps_in_episode='long' of ",
    ),
    "no agent file": ("train agent.py", "error: agent 'agent.py': no file /"),
    "no agent module": ("train my.agent", "error: agent 'my.agent': no module my,"),
    "no make": ("train no_make.py", "agent no_make.py: make: missing, expected a func"),
    "no agent": ("train no_agent.py", "make returned None, expected rljax.types.Agent"),
    "wrong hook": ("train wrong_act.py", "agent wrong_act.py: act returned a tuple of"),
    "wrong hook to sweep": (
        "sweep wrong_act.py --vary gamma=0.9",
        "agent wrong_act.py: act returned a tuple of 2",
    ),
    "stuck": (
        "train a2c --env stuck.py:Corridor --steps 512 --config.num-envs 2",
        "stuck.py:Corridor: no action is legal in environment 0 of seed 0; a mask",
    ),
    "stuck in a sweep": (
        "sweep a2c --env stuck.py:Corridor --vary gamma=0.9 --config.num-envs 2",
        "stuck.py:Corridor: no action is legal in environment 0 of seed 0; a mask",
    ),
    "torso in a sweep": (
        "sweep ppo --env corridor.py:Corridor --config.torso wrong_torso.py:Fourier "
        "--vary gamma=0.9",
        "agent ppo torso=wrong_torso.py:Fourier: init failed: RuntimeError: no torso",
    ),
    "cell": (
        "train ppo_rnn --env corridor.py:Corridor --config.cell wrong_cell.py:Cell",
        "agent ppo_rnn cell=wrong_cell.py:Cell: init failed: NotImplementedError",
    ),
    "array": (
        "train wrong_array.py --env corridor.py:Corridor",
        "agent wrong_array.py: Config: width is list, expected a number, a text, None",
    ),
    "validate in a sweep": (
        "sweep wrong_validate.py --env corridor.py:Corridor --vary gamma=0.9",
        "agent wrong_validate.py: Config.validate failed: AssertionError",
    ),
    "torso": (
        "train ppo --env corridor.py:Corridor --config.torso wrong_torso.py:Fourier",
        "agent ppo torso=wrong_torso.py:Fourier: init failed: RuntimeError: no torso",
    ),
    "validate": (
        "train wrong_validate.py --env corridor.py:Corridor",
        "agent wrong_validate.py: Config.validate failed: AssertionError",
    ),
    "annotation": (
        "train wrong_type.py --env corridor.py:Corridor",
        "types of the config's fields: name 'Nothing' is not defined",
    ),
    "option": (
        "check-env corridor.py:Corridor --env-params stack_frames 0",
        "stack_frames=0: must be an integer >= 1",
    ),
    "check": ("check-env corridor.py:State", "corridor.py:State: State(time"),
    "gone": ("evaluate runs/gone", "environment '/gone/corridor.py:Corridor': no file"),
    "agent gone": ("evaluate runs/agentless", "json: agent '/gone/agent.py': no file"),
    "other environment": (
        "train actor_critic.py --env CartPole-v1 --name first --resume",
        "the run has env=",
    ),
}


@pytest.fixture(scope="session")
def broken(folder):
    """Agents that break their contract, and runs whose files have gone."""
    code = FILES["actor_critic.py"]
    returns = "return Agent("
    (folder / "no_make.py").write_text(code.replace("def make(", "def mak("))
    (folder / "no_agent.py").write_text(code.replace(returns, "Agent("))
    (folder / "wrong_act.py").write_text(code.replace("memory, ()", "memory"))
    mask = "def action_mask(self, state, params):\n        return jnp.zeros(2, bool)"
    stuck = FILES["corridor.py"].replace("def look", f"{mask}\n\n    def look")
    (folder / "stuck.py").write_text(stuck)
    for name, old, new in (
        ("validate", "cfg.check_loop(self)", "assert False"),
        ("type", "width: int", "width: 'Nothing'"),
        (
            "array",
            "width: int = cfg.static(32)",
            "width: list[int] = dataclasses.field(default_factory=list)",
        ),
    ):
        (folder / f"wrong_{name}.py").write_text(code.replace(old, new))
    torso = FILES["torso.py"].replace(
        "if isinstance", "raise RuntimeError('no torso')\n        if isinstance"
    )
    cell = "from flax.linen import RNNCellBase\n\n\nclass Cell(RNNCellBase):\n"
    (folder / "wrong_cell.py").write_text(f"{cell}    features: int\n")
    (folder / "wrong_torso.py").write_text(torso)
    for name, key, value in (
        ("gone", "env", "/gone/corridor.py:Corridor"),
        ("agentless", "agent", "/gone/agent.py"),
    ):
        shutil.copytree(folder / "runs/first", folder / "runs" / name)
        path = folder / "runs" / name / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {key: value}))
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(rljax, broken, name):
    line, message = BAD[name]
    before = {*(broken / "runs").iterdir()}
    done = rljax(broken, line)
    assert done["code"] == 2, done
    assert len(done["err"].splitlines()) == 1 and done["err"].startswith("error: ")
    assert message in done["err"]
    assert {*(broken / "runs").iterdir()} == before


@pytest.mark.slow
def test_a_module_of_the_current_directory_is_found_again(folder, tmp_path):
    """In processes of their own, as a user starts them."""
    package = tmp_path / "mine"
    package.mkdir()
    for name in FILES:
        shutil.copy(folder / name, package / name)
    small = "--steps 512 --rows 1 --episodes 0 --name a"
    for words in (
        f"train mine.actor_critic --env mine.corridor:Corridor {small}",
        "evaluate runs/a --episodes 4",
    ):
        command = [sys.executable, "-m", "rljax", *words.split()]
        subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ})
    config = json.loads((tmp_path / "runs/a/config.json").read_text())
    assert config["env"] == "mine.corridor:Corridor"
