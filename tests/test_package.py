"""Lists by hand that must agree with a folder."""

import ast
import importlib
import json
import pathlib
import pkgutil
import re
import subprocess
import sys
import tomllib

import pytest

import rljax
from rljax import _moved, agents, types
from rljax.commands import front

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = pathlib.Path(rljax.__file__).parent


def public(folder):
    """Modules and packages of a folder whose names have no underscore in front."""
    names = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return {name for name in names if not name.startswith("_")}


# Agents have a folder beside the others'; an installed package has them inside.
ROOMS = {path.parent.name: public(path.parent) for path in FOLDER.glob("*/__init__.py")}
ROOMS.pop("agents", None)
MODULES = public(FOLDER) | {"agents"}

LOADED = """
import importlib, json, sys, types
import rljax

at_first = sorted(name for name in sys.modules if name.startswith("rljax."))
found = {}
for path in sys.argv[1:]:  # as a user reaches it
    module = rljax
    for name in path.split("."):
        module = getattr(module, name)
    found[path] = isinstance(module, types.ModuleType) and module.__name__
print(json.dumps([at_first, found]))
"""


@pytest.fixture(scope="module")
def loaded():
    """What a fresh `import rljax` loads, and what it finds under each name."""
    rooms = ("learners", "running")
    inner = [f"{room}.{name}" for room in rooms for name in ROOMS[room]]
    command = [sys.executable, "-c", LOADED, *sorted(MODULES), *sorted(inner)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_public_module_loads_when_first_used(loaded):
    at_first, found = loaded
    assert at_first == ["rljax._deferred", "rljax._moved"]
    assert set(found) > MODULES
    assert found == {name: f"rljax.{name}" for name in found}


@pytest.mark.parametrize("package", ["", "learners", "running"])
def test_editors_know_the_modules_of_a_folder(package):
    tree = ast.parse((FOLDER / package / "__init__.py").read_text())
    (block,) = (x for x in tree.body if isinstance(x, ast.If))  # TYPE_CHECKING
    room = f"rljax.{package}".rstrip(".")
    known = [alias.name for x in block.body if x.module == room for alias in x.names]
    assert known == sorted(ROOMS[package] if package else MODULES)


def test_nouns_are_reached_from_the_package():
    for name in rljax._NOUNS:
        assert getattr(rljax, name) is getattr(types, name)
    tree = ast.parse((FOLDER / "__init__.py").read_text())
    imports = [x for x in ast.walk(tree) if isinstance(x, ast.ImportFrom)]
    known = [x.names[0].name for x in imports if x.module == "rljax.types"]
    assert known == [*rljax._NOUNS]
    with pytest.raises(AttributeError, match="no_such"):
        _ = rljax.no_such


def test_the_project_has_its_packages_and_its_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.parent for path in FOLDER.rglob("__init__.py")} - {FOLDER}
    names = {".".join(("rljax", *x.relative_to(FOLDER).parts)) for x in folders}
    packages = project["tool"]["setuptools"]["packages"]
    assert set(packages) == names | {"rljax", "rljax.agents"}
    command = pkgutil.resolve_name(project["project"]["scripts"]["rljax"])
    assert command is front.main


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_face_names_what_lives_there(room):
    face = ast.parse((FOLDER / room / "__init__.py").read_text())
    exported = {
        alias.asname or alias.name
        for x in face.body
        if isinstance(x, ast.ImportFrom) and x.module != "rljax._deferred"
        for alias in x.names
    }
    module = importlib.import_module(f"rljax.{room}")
    if hasattr(module, "__all__"):
        assert module.__all__ == sorted(set(module.__all__))
        assert set(module.__all__) == exported
    described = re.findall(r"^(\w+)  +\S", module.__doc__, re.M)
    assert described == sorted(ROOMS[room])


def test_tests_stand_on_the_shelves_of_what_they_test():
    shelves = {*ROOMS, "agents", "mutants"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == shelves


@pytest.mark.parametrize("old", sorted(_moved.MODULES))
def test_old_paths_lead_to_the_new_modules(old):
    new = f"rljax.{_moved.MODULES[old]}"
    path, _, name = f"rljax.{old}".rpartition(".")
    package = importlib.import_module(path)
    module = importlib.import_module(new)
    if package is rljax:  # knows the names also without an import
        with pytest.warns(DeprecationWarning, match=re.escape(new)):
            assert getattr(rljax, name) is module
    sys.modules.pop(f"rljax.{old}", None)
    with pytest.warns(DeprecationWarning, match=re.escape(new)):
        assert importlib.import_module(f"rljax.{old}") is module
    sys.modules.pop(f"rljax.{old}")
    vars(package).pop(name, None)


def test_agents_are_those_of_their_folder():
    assert agents.names() == sorted(public(pathlib.Path(agents.__file__).parent))


def test_the_map_of_the_folders_has_every_module():
    text = (ROOT / "docs" / "design.md").read_text()
    (found,) = re.findall(r"^```\n(rljax/ .*?)^```", text, re.M | re.S)
    named = set(re.findall(r"(\w+)(?:\.py|/)", found))
    files = {path.stem for path in (*ROOT.glob("*"), *FOLDER.glob("*"))}
    assert MODULES <= named <= files


def test_docstrings_begin_with_their_subject():
    """A sentence that begins with What, How or Which is read twice."""
    sources = [
        path
        for folder in ("rljax", "agents", "scripts")
        for path in ROOT.glob(f"{folder}/**/*.py")
    ]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sources
        for line in path.read_text().splitlines()
        if re.match(r' *r?"""(What|How|Which)\b', line)
    ]
    assert len(sources) > 100 and not found, "\n".join(found)
