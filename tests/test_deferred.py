"""Imports that wait."""

import importlib
import subprocess
import sys

import pytest

from rljax._deferred import deferred


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module that nobody has imported yet."""
    (tmp_path / "seldom_used.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "seldom_used"
    sys.modules.pop("seldom_used", None)


def test_module_is_imported_at_its_first_use(module):
    with deferred(module):
        seldom_used = importlib.import_module(module)
    assert module not in sys.modules
    assert seldom_used.value == 3
    assert sys.modules[module].value == 3
    with pytest.raises(AttributeError, match="no_such"):
        _ = seldom_used.no_such


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Name of a package whose module notes that it was imported."""
    folder = tmp_path / "large_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "part.py").write_text("value = 4\n")
    (tmp_path / "importer.py").write_text(
        "import large_package.part as first\nfrom large_package import part as second\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "large_package"
    for name in ("large_package", "large_package.part", "importer"):
        sys.modules.pop(name, None)


def test_module_of_a_package_is_imported_at_its_first_use(package):
    with deferred(package, f"{package}.part"):
        importer = importlib.import_module("importer")
    assert not {package, f"{package}.part"} & set(sys.modules)
    assert importer.first.value == importer.second.value == 4
    assert f"{package}.part" in sys.modules


def test_module_can_be_used_before_the_imports_end(package):
    with deferred(f"{package}.part"):
        importer = importlib.import_module("importer")
        assert importer.first.value == 4
        real = sys.modules[f"{package}.part"]
    assert sys.modules[f"{package}.part"] is real


def test_imported_module_stays(module):
    first = importlib.import_module(module)
    with deferred(module):
        assert importlib.import_module(module) is first
    assert sys.modules[module] is first


def test_failing_import_leaves_nothing_behind(module):
    with pytest.raises(ZeroDivisionError), deferred(module):
        1 / 0  # noqa: B018
    assert module not in sys.modules


SELDOM_USED = """
import sys
import rljax.running.checkpoint, rljax.envs
names = {name.partition(".")[0] for name in sys.modules}
sys.exit(", ".join(names & {"matplotlib", "orbax", "scipy", "seaborn"}) or 0)
"""


def test_environments_and_checkpoints_import_little():
    command = [sys.executable, "-c", SELDOM_USED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
