"""Lists by hand that must agree with a folder."""

import ast
import json
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import rljax
from rljax import agents

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = pathlib.Path(rljax.__file__).parent


def public(folder):
    """Modules and packages of a folder whose names have no underscore in front."""
    names = (module.name for module in pkgutil.iter_modules([str(folder)]))
    return {name for name in names if not name.startswith("_")}


# Agents have a folder beside the others'; an installed package has them inside.
MODULES = public(FOLDER) | {"agents"}

LOADED = """
import json, sys, types
import rljax

at_first = sorted(name for name in sys.modules if name.startswith("rljax."))
found = {}
for name in sys.argv[1:]:  # of the module itself: others may have set the attribute
    module = rljax.__getattr__(name)
    found[name] = isinstance(module, types.ModuleType) and module.__name__
print(json.dumps([at_first, found]))
"""


@pytest.fixture(scope="module")
def loaded():
    """What a fresh `import rljax` loads, and what it finds under each name."""
    command = [sys.executable, "-c", LOADED, *sorted(MODULES)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_public_module_loads_when_first_used(loaded):
    at_first, found = loaded
    assert at_first == ["rljax.types"]
    assert found == {name: f"rljax.{name}" for name in MODULES}


def test_the_packages_names_are_those_of_its_folder():
    tree = ast.parse((FOLDER / "__init__.py").read_text())
    (block,) = (x for x in tree.body if isinstance(x, ast.If))  # TYPE_CHECKING
    known = [alias.name for x in block.body for alias in x.names]
    assert known == sorted(MODULES)
    assert len(rljax.__all__) == len(set(rljax.__all__))
    nouns = {name for name in rljax.__all__ if name[0].isupper()}
    assert set(rljax.__all__) - nouns == MODULES
    assert all(hasattr(rljax.types, name) for name in nouns)


def test_agents_are_those_of_their_folder():
    assert agents.names() == sorted(public(pathlib.Path(agents.__file__).parent))


def test_the_readmes_map_has_every_module():
    text = (ROOT / "README.md").read_text()
    (found,) = re.findall(r"^```\n(rljax/ .*?)^```", text, re.M | re.S)
    named = set(re.findall(r"(\w+)(?:\.py|/)", found))
    files = {path.stem for path in (*ROOT.glob("*"), *FOLDER.rglob("*"))}
    assert MODULES <= named <= files
