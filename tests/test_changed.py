"""The tests that `make check` runs for a changed file."""

from pathlib import PurePath

import pytest

from . import changed


@pytest.mark.parametrize(
    ("path", "files", "rules"),
    [
        (
            "agents/dqn.py",
            ["agents/test_dqn", "running/test_train"],
            ["(test_train.py and (dqn))"],
        ),
        ("rljax/losses/vtrace.py", ["losses/test_losses"], ["vtrace_td_error"]),
        (
            "rljax/replay/buffer.py",
            ["replay/test_buffer", "running/test_train"],
            ["not (a2c or apg or"],
        ),
        (
            "rljax/meta/objectives.py",
            ["meta/test_meta", "meta/test_tuning"],
            ["test_tuning.py"],
        ),
        ("rljax/meta/tuning.py", ["meta/test_tuning"], ["test_tuning.py"]),
        ("rljax/prng.py", ["test_prng", "agents/test_agents"], ["test_prng.py"]),
        ("scripts/sweep.py", ["commands/test_commands"], ["test_commands.py"]),
        (
            "rljax/commands/folders.py",
            ["commands/test_folders", "commands/test_commands"],
            ["test_folders.py"],
        ),
        (
            "rljax/commands/benchmarks/meta.py",
            ["commands/test_benchmark"],
            ["test_benchmark"],
        ),
        ("tests/losses/cases_mpo.py", ["losses/test_losses"], ["test_losses.py"]),
        ("tests/replay/test_buffer.py", ["replay/test_buffer"], ["test_buffer.py"]),
    ],
)
def test_each_file_has_its_tests(path, files, rules):
    found, expression = changed.selection([PurePath(path)])
    assert {f"tests/{name}.py" for name in files} <= set(found)
    assert all(rule in expression for rule in rules)
    assert all((changed.ROOT / name).exists() for name in found)


def test_shared_code_is_tried_on_two_agents_only():
    _, expression = changed.selection([PurePath("rljax/running/train.py")])
    for name in changed.BOTH_KINDS:
        assert f" {name} " not in expression and f" {name})" not in expression
    assert " ppo_rnn " in expression and " vmpo)" in expression


def test_nothing_is_run_for_nothing():
    assert changed.selection([]) == ([], "")
    assert changed.selection([PurePath("tests/running/hang_check.py")]) == ([], "")
