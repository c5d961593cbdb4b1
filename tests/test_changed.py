"""The tests that `make check` runs for a changed file."""

from pathlib import PurePath

import pytest

from . import changed


@pytest.mark.parametrize(
    ("path", "files", "rules"),
    [
        ("agents/dqn.py", ["test_dqn", "test_train"], ["(test_train.py and (dqn))"]),
        ("rljax/losses/vtrace.py", ["test_losses"], ["vtrace_td_error_and_advantage"]),
        ("rljax/replay.py", ["test_replay", "test_train"], ["not (a2c or apg or"]),
        ("rljax/meta/objectives.py", ["test_meta", "test_tuning"], ["test_tuning.py"]),
        ("rljax/meta/tuning.py", ["test_tuning"], ["test_tuning.py"]),
        ("scripts/sweep.py", ["test_scripts"], ["test_scripts.py"]),
        ("scripts/folders.py", ["test_folders", "test_scripts"], ["test_folders.py"]),
        ("scripts/benchmarks/meta.py", ["test_benchmark"], ["test_benchmark.py"]),
        ("tests/cases_mpo.py", ["test_losses"], ["test_losses.py"]),
        ("tests/test_replay.py", ["test_replay"], ["test_replay.py"]),
    ],
)
def test_each_file_has_its_tests(path, files, rules):
    found, expression = changed.selection([PurePath(path)])
    assert {f"tests/{name}.py" for name in files} <= set(found)
    assert all(rule in expression for rule in rules)
    assert all((changed.ROOT / name).exists() for name in found)


def test_shared_code_is_tried_on_two_agents_only():
    _, expression = changed.selection([PurePath("rljax/train.py")])
    for name in changed.BOTH_KINDS:
        assert f" {name} " not in expression and f" {name})" not in expression
    assert " ppo_rnn " in expression and " vmpo)" in expression


def test_nothing_is_run_for_nothing():
    assert changed.selection([]) == ([], "")
    assert changed.selection([PurePath("tests/hang_check.py")]) == ([], "")
