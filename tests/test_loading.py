"""Own code by reference."""

import pickle
import sys

import pytest

from rljax import loading

MODULE = """
import neighbour

class Env:
    limit = 7

def make_env():
    return Env()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, whose modules are forgotten afterwards."""
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "own_code.py").write_text(MODULE)
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "inner.py").write_text("value = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my.module:make_env", True),
        ("path/to/file.py", True),
        ("path/to/file.py:Env", True),
        ("my.module", False),
        ("brax/ant", False),
        ("CartPole-v1", False),
    ],
)
def test_references_are_told_from_names(text, expected):
    assert loading.is_reference(text) is expected


@pytest.mark.parametrize(
    "reference",
    ["own_code:Env.limit", "own_code.py:Env.limit", "./own_code.py:Env.limit"],
)
def test_objects_are_found_in_modules_and_files(folder, reference):
    assert loading.load(reference, "number") == 7


@pytest.mark.parametrize("reference", ["nested.inner", "nested/inner.py"])
def test_modules_are_found_by_name_and_file(folder, reference):
    assert loading.load(reference, "agent").value == 3


@pytest.mark.parametrize("first", ["own_code:make_env", "own_code.py:make_env"])
def test_a_file_is_loaded_once(folder, monkeypatch, first):
    make_env = loading.load(first, "environment")
    absolute = f"{folder}/own_code.py"
    monkeypatch.chdir(folder / "nested")
    assert loading.load(f"{absolute}:make_env", "environment") is make_env
    assert pickle.loads(pickle.dumps(make_env)) is make_env


def test_each_file_gets_the_module_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "beside_it.py").write_text(f"value = {name!r}\n")
        (folder / "own.py").write_text("from beside_it import value\n")
        (folder / "later.py").write_text("import beside_it\nvalue = beside_it.value\n")
    for file in ("own.py", "later.py"):
        for name in ("a", "b"):
            found = loading.load(f"{tmp_path}/{name}/{file}:value", "environment")
            assert found == name


def test_a_module_of_the_current_directory_is_not_that_beside_a_file(
    folder, tmp_path_factory, monkeypatch
):
    (folder / "next_door.py").write_text("value = 'here'\n")
    monkeypatch.syspath_prepend(folder)
    assert loading.load("next_door:value", "environment") == "here"
    there = tmp_path_factory.mktemp("there")
    (there / "next_door.py").write_text("value = 'there'\n")
    (there / "own_file.py").write_text("from next_door import value\n")
    before = list(sys.path)
    assert loading.load(f"{there}/own_file.py:value", "environment") == "there"
    assert sys.path == [*before, str(there)]


def test_files_are_recorded_by_their_absolute_path(folder):
    assert loading.recorded("own_code.py:Env") == f"{folder}/own_code.py:Env"
    assert loading.recorded("own_code.py") == f"{folder}/own_code.py"
    assert loading.recorded("own_code:Env") == "own_code:Env"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (":Env", "expected my.module:Object or path/to/file.py:Object"),
        ("own_code:", "expected my.module:Object"),
        ("own_code:Env..limit", "expected my.module:Object"),
        ("nested/inner:value", "expected my.module:Object"),
        ("no_such_file.py:Env", "no file {folder}/no_such_file.py"),
        ("no_such.module:Env", "no module no_such, here ({folder}) or installed"),
        ("nested.no_such:Env", "no module nested.no_such, here"),
        ("own_code:make_envs", "own_code has no make_envs; did you mean: make_env?"),
        ("own_code.py:Env.limits", "own_code.py has no limits; did you mean: limit?"),
        ("own_code:zzz", "own_code has no zzz"),
    ],
)
def test_bad_references_get_one_line(folder, reference, message):
    with pytest.raises(ValueError) as caught:
        loading.load(reference, "environment")
    text = str(caught.value)
    assert text.startswith(f"environment {reference!r}: ")
    assert message.format(folder=folder) in text and "\n" not in text


@pytest.mark.parametrize("form", ["broken", "broken.py"])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import json, no_such_package", "broken.py:1: ModuleNotFoundError: No module"),
        ("x = 1\ny = x / 0", "broken.py:2: ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "broken.py:1: SystemExit: 3"),
        ("raise RuntimeError('first\\nsecond')", "broken.py:1: RuntimeError: first"),
    ],
)
def test_a_module_that_fails_says_where(folder, form, source, message):
    (folder / "broken.py").write_text(source)
    for _ in range(2):  # nothing of the first attempt is left
        with pytest.raises(ValueError) as caught:
            loading.load(f"{form}:Env", "torso")
        text = str(caught.value)
        assert text.startswith(f"torso '{form}:Env': fails") and message in text
        assert "\n" not in text
