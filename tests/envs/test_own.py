"""Environments of one's own by reference, and those that packages offer."""

import importlib.metadata
import sys

import gymnax
import jax
import pytest

from rljax import envs, loading
from rljax.envs import own

FILE = """
import dataclasses

import gymnax
from gymnax.environments.classic_control import cartpole
from rljax import envs

object_ = cartpole.CartPole()
pair = cartpole.CartPole(), cartpole.EnvParams(gravity=5.0)
batched = envs.make("Pendulum-v1", stack_frames=2)
number = 3
Env = cartpole.CartPole

@dataclasses.dataclass(frozen=True)
class Params:
    backend: str = "positional"
    max_steps_in_episode: int = 7

class Named(cartpole.CartPole):
    @property
    def default_params(self):
        return cartpole.EnvParams(max_steps_in_episode=9)

def make_env(limit=50, time_aware=None):
    assert time_aware in (None, "own")
    return cartpole.CartPole(), cartpole.EnvParams(max_steps_in_episode=limit)

def needs(size):
    return make_env(limit=size)

def anything(**kwargs):
    return make_env(**kwargs)

def batch(frames=1, name="Pendulum-v1"):
    return envs.make(name, stack_frames=frames)

def fails():
    raise RuntimeError("no luck")

def nothing():
    pass

def with_backend():
    return cartpole.CartPole(), Params()

class HalfBatched:
    spec = reset = draw = step = None

half = HalfBatched()

none = None

def exits():
    raise SystemExit(3)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A folder with a file, in which names are looked for."""
    (tmp_path / "own_envs.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path / "own_envs.py"
    for name in set(sys.modules) - before:
        if "own_envs" in name:
            del sys.modules[name]


@pytest.mark.parametrize("place", ["own_envs", "own_envs.py", "{file}"])
@pytest.mark.parametrize(
    ("name", "params", "max_steps", "obs_shape"),
    [
        ("object_", {}, 500, (4,)),
        ("object_", {"max_steps_in_episode": 8, "stack_frames": 2}, 8, (8,)),
        ("pair", {}, 500, (4,)),
        ("Env", {"time_aware": True}, 500, (5,)),
        ("Named", {}, 9, (4,)),
        ("make_env", {}, 50, (4,)),
        ("make_env", {"limit": 5}, 5, (4,)),
        ("make_env", {"limit": 5, "max_steps_in_episode": 6}, 6, (4,)),
        ("make_env", {"time_aware": "own"}, 50, (4,)),
        ("needs", {"size": 4}, 4, (4,)),
        ("anything", {"limit": 3, "stack_frames": 2}, 3, (8,)),
        ("batched", {}, 200, (6,)),
        ("batch", {"frames": 3}, 200, (9,)),
        ("batch", {"name": "CartPole-v1"}, 500, (4,)),
    ],
)
def test_an_own_environment_is_made(file, place, name, params, max_steps, obs_shape):
    env = envs.make(f"{place.format(file=file)}:{name}", **params)
    assert env.max_steps == max_steps and env.spec.obs_shape == obs_shape
    _, obs = jax.eval_shape(lambda: env.reset(jax.random.key(0), 2))
    assert obs.shape == (2, *obs_shape)


def test_parameters_that_a_pair_brings_hold(file):
    env = envs.make("own_envs:pair", length=2.0)
    inner = env.env.params
    assert (inner.gravity, inner.length) == (5.0, 2.0)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("own_envs", {}, "unknown environment 'own_envs'"),
        ("own_envs.py", {}, "own_envs.py: is a module; name an object in it, own_envs"),
        ("own_envs:make_en", {}, "own_envs has no make_en; did you mean: make_env"),
        ("own_envs:number", {}, "own_envs:number: is of type int, expected an env"),
        ("own_envs:nothing", {}, "own_envs:nothing: returned None, expected an env"),
        ("own_envs:none", {}, "own_envs:none: is None, expected an environment"),
        ("own_envs:exits", {}, "own_envs:exits: exits failed: SystemExit: 3"),
        ("own_envs:fails", {}, "own_envs:fails: fails failed: RuntimeError: no luck"),
        ("own_envs:needs", {}, "own_envs:needs: needs(size): missing a required arg"),
        ("own_envs:half", {}, "HalfBatched has no max_steps, for_evaluation"),
        (
            "own_envs:make_env",
            {"limt": 3},
            "own_envs:make_env 'limt'; did you mean: l",
        ),
        ("own_envs:make_env", {"gravit": 3}, "'gravit'; did you mean: gravity"),
        ("own_envs:make_env", {"stack_frame": 3}, "did you mean: stack_frames"),
        ("own_envs:make_env", {"gravity": "high"}, "gravity='high' of own_envs:make_"),
        ("own_envs:with_backend", {"backend": 3}, "backend=3 of own_envs:with_backend"),
        (
            "own_envs:batched",
            {"stack_frames": 2},
            "unknown parameter of own_envs:bat",
        ),
    ],
)
def test_what_is_no_environment_gets_one_line(file, name, params, message):
    with pytest.raises(ValueError) as caught:
        envs.make(name, **params)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_text_is_taken_where_the_default_is_one(file):
    from rljax.envs.making import build

    _, params, _ = build("own_envs:with_backend", backend="generalized")
    assert params.backend == "generalized"


@pytest.fixture
def package(file, monkeypatch):
    """A package that offers an environment."""
    text = "[rljax.environments]\nspecial/Pole = own_envs:make_env\n"
    text += "CartPole-v1 = own_envs:number\nlost/Env = no_such_module:Env\n"
    info = file.parent / "special-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: special\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(text)
    monkeypatch.syspath_prepend(file.parent)


@pytest.mark.usefixtures("package")
def test_packages_offer_environments_by_name():
    assert {"special/Pole", "CartPole-v1", "lost/Env"} <= {*envs.names()}
    assert len(set(envs.names())) == len(envs.names())
    assert envs.make("special/Pole", limit=6).max_steps == 6
    assert envs.make("CartPole-v1").max_steps == 500  # a built-in name stays
    with pytest.raises(ValueError, match="'lost/Env', offered as 'no_such_mod"):
        envs.make("lost/Env")
    with pytest.raises(ValueError, match="unknown .*'special/Pol'.*: special/Pole"):
        envs.make("special/Pol")


def test_built_in_names_do_not_look_for_packages(monkeypatch):
    def refuse(**_):
        raise AssertionError("looked")

    monkeypatch.setattr(importlib.metadata, "entry_points", refuse)
    envs.make("CartPole-v1")
    with pytest.raises(AssertionError, match="looked"):
        envs.names()


@pytest.mark.parametrize(("name", "text"), [("make_env", ""), ("batched", "")])
def test_own_environments_are_checked(file, name, text):
    found = loading.load(f"own_envs:{name}", "environment")
    built = own.build(name, found, {}, options=())
    findings = envs.check(built.env, built.params, steps=0)
    assert "".join(map(str, findings)) == text
    assert envs.check(f"own_envs.py:{name}", steps=0) == findings


def test_gymnax_registers_as_before():
    assert set(gymnax.registered_envs) <= set(envs.names())
