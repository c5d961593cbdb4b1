"""Agents of one's own by module and file, and those that packages offer."""

import dataclasses
import importlib.metadata
import sys

import pytest

from rljax import agents, envs
from rljax.config import Preset
from rljax.types import Agent

AGENT = """
import dataclasses

from rljax.agents import a2c

PRESETS = {{
    "CartPole-v1": a2c.cfg.Preset(config=dict(gamma=0.1)),
    "CartPole*": a2c.cfg.Preset(config=dict(gamma=0.2)),
    "*": a2c.cfg.Preset(config=dict(gamma=0.3), env_params=None),
    "own/*": a2c.cfg.Preset(
        config=dict(gamma=0.4), wrap=dict(stack_frames=2, time_aware=True)
    ),
}}
Config = a2c.Config
make = a2c.make
{}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write the file of an agent with some lines more; its folder is worked in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(more=""):
        (tmp_path / "own").mkdir(exist_ok=True)
        for path in (tmp_path / "own_agent.py", tmp_path / "own" / "agent.py"):
            path.write_text(AGENT.format(more))
        return tmp_path

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("own"):
            del sys.modules[name]


@pytest.mark.parametrize("name", ["own.agent", "own_agent.py", "own/agent.py"])
def test_an_own_agent_is_found(write, name):
    write()
    module = agents.get(name)
    assert agents.get(name) is module and agents.is_own(name)
    assert module.Config().gamma == 0.99
    assert isinstance(agents.make(name, envs.make("CartPole-v1").spec), Agent)


def test_presets_are_optional(write):
    write("del PRESETS")
    assert agents.preset("own_agent.py", "CartPole-v1") is None
    assert agents.config_for("own_agent.py", "CartPole-v1").gamma == 0.99
    assert agents.env_params_for("own_agent.py", "CartPole-v1", {"x": 1}) == {"x": 1}


@pytest.mark.parametrize(
    ("env", "gamma"),
    [
        ("CartPole-v1", 0.1),  # the name itself
        ("CartPole-v2", 0.2),  # the longer pattern
        ("cartpole-v1", 0.3),
        ("Pendulum-v1", 0.3),
    ],
)
def test_the_name_goes_before_the_longest_pattern(write, env, gamma):
    write()
    assert agents.config_for("own_agent.py", env).gamma == gamma
    assert agents.preset("own_agent.py", env).config == {"gamma": gamma}


WRAP = {"stack_frames": 2, "time_aware": True}


@pytest.fixture
def own_env(write):
    """The name of an environment of one's own that a pattern with wrappers matches."""
    folder = write()
    (folder / "own" / "env.py").write_text(
        "from gymnax.environments.classic_control.cartpole import CartPole, EnvParams\n"
    )
    return "own/env.py:CartPole"


@pytest.mark.parametrize(
    ("given", "whole", "holds"),
    [
        ({}, WRAP, True),
        ({"stack_frames": 2}, WRAP, True),
        (WRAP | {"gravity": 9.8}, WRAP | {"gravity": 9.8}, True),  # as by default
        ({"stack_frames": 1}, {"stack_frames": 1}, False),
        ({"time_aware": False}, {"time_aware": False}, False),
        ({"gravity": 9.0}, {"gravity": 9.0}, False),
    ],
)
def test_a_preset_brings_its_parameters(own_env, given, whole, holds):
    params = agents.env_params_for("own_agent.py", own_env, given)
    assert params == whole
    config = agents.config_for("own_agent.py", own_env, params)
    assert config.gamma == (0.4 if holds else 0.99)
    note = agents.other_preset("own_agent.py", own_env, params)
    made = "is for --env-params stack_frames 2 time_aware True; plain defaults hold"
    assert note.endswith(made) if not holds else note == ""


def test_a_preset_does_not_hold_without_what_it_brings(own_env):
    """Code that gives `envs.make` no parameters gets the plain default."""
    assert agents.config_for("own_agent.py", own_env).gamma == 0.99


def test_a_preset_for_any_parameters_fills_in_what_is_not_given(write, monkeypatch):
    write()
    found = Preset(config={"gamma": 0.5}, env_params=None, wrap=WRAP)
    monkeypatch.setitem(agents.get("own_agent.py").PRESETS, "own/*", found)
    given = {"backend": "generalized", "time_aware": False}
    params = agents.env_params_for("own_agent.py", "own/env", given)
    assert params == {"stack_frames": 2, **given}
    assert agents.config_for("own_agent.py", "own/env", params).gamma == 0.5
    assert agents.other_preset("own_agent.py", "own/env", params) == ""


def test_mountain_car_brings_its_wrappers():
    name = "MountainCarContinuous-v0"
    params = agents.env_params_for("ppo", name)
    assert params == {"normalize_obs": True, "normalize_rewards": 0.99}
    assert agents.config_for("ppo", name, params).total_steps == 1_000_000
    envs.make(name, **params)


STATELESS = """
@dataclasses.dataclass(frozen=True)
class Config:
    total_steps: int = 1
    num_envs: int = 1
    rollout_length: int = 1
    def validate(self): pass
"""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("del Config", "Config: missing, expected a frozen dataclass that jax"),
        ("Config = a2c.Config()", "Config: is Config, expected a frozen dataclass"),
        ("class Config: pass", "Config: is type, expected a frozen dataclass"),
        (STATELESS, "Config is a dataclass that jax does not know; decorate it"),
        (
            "@a2c.jax.tree_util.register_dataclass\n@dataclasses.dataclass\n"
            "class Config:\n  gamma: float = 1.0\n  num_envs: int = 1",
            "Config has no rollout_length, total_steps, validate; training needs",
        ),
        (
            "@a2c.jax.tree_util.register_dataclass\n@dataclasses.dataclass\n"
            "class Config:\n  gamma: float",
            "Config(): ",
        ),
        ("del make", "make: missing, expected a function make(spec) that returns"),
        ("make = 3", "make: is int, expected a function make(spec)"),
        ("make = lambda: 3", "make(spec): too many positional arguments"),
        ("PRESETS = {'a': {}}", "PRESETS: expected a dict of rljax.config.Preset"),
        (
            "PRESETS = {3: a2c.cfg.Preset({})}",
            "PRESETS: expected a dict of rljax.config",
        ),
        (
            "PRESETS = {'a': a2c.cfg.Preset({'gama': 0.5})}",
            "PRESETS['a']: Config has no field gama",
        ),
    ],
)
def test_a_module_without_a_hook_gets_one_line(write, more, message):
    write(more)
    with pytest.raises(ValueError) as caught:
        agents.get("own_agent.py")
    text = str(caught.value)
    assert text.startswith("agent own_agent.py: ") and message in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("make", "kind"), [("lambda spec: None", "None"), ("lambda spec: (1,)", "tuple")]
)
def test_make_returns_an_agent(write, make, kind):
    write(f"make = {make}")
    expected = f"own_agent.py: make returned {kind}, expected rljax.types.Agent"
    with pytest.raises(ValueError, match=expected):
        agents.make("own_agent.py", envs.make("CartPole-v1").spec)


@pytest.fixture
def package(write, monkeypatch):
    """A package that offers agents."""
    folder = write()
    text = "[rljax.agents]\nspecial = own.agent\nppo = no_such\nlost = no_such\n"
    info = folder / "special-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: special\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(text)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.usefixtures("package")
def test_packages_offer_agents_by_name():
    assert {"special", "ppo", "lost"} <= {*agents.names()}
    assert agents.names() == sorted({*agents.names()})
    assert agents.get("special").__name__ == "own.agent"
    assert agents.get("ppo").__name__ == "rljax.agents.ppo"  # a built-in name stays
    assert agents.is_own("special") and not agents.is_own("ppo")
    with pytest.raises(ValueError, match="no module no_such"):
        agents.get("lost")
    with pytest.raises(ValueError, match="unknown agent 'specia'.*special"):
        agents.get("specia")


def test_built_in_names_do_not_look_for_packages(monkeypatch):
    def refuse(**_):
        raise AssertionError("looked")

    monkeypatch.setattr(importlib.metadata, "entry_points", refuse)
    config = agents.config_for("ppo", "CartPole-v1")
    assert dataclasses.is_dataclass(config)
    with pytest.raises(AssertionError, match="looked"):
        agents.get("no_such")
