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
sys.exit(", ".join(names & {"seaborn", "orbax"}) or 0)
"""


def test_environments_and_checkpoints_import_little():
    command = [sys.executable, "-c", SELDOM_USED]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
