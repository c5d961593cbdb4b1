"""The lists of breakages fit the tree: `make mutants` tries them."""

import ast
import subprocess
import sys

import pytest

from .mutants import run

LISTS = run.read()
MUTANTS = [mutant for rows in LISTS.values() for mutant in rows]


def test_there_are_breakages_of_every_kind():
    assert len(MUTANTS) >= 120
    least = dict(losses=35, autodiff=20, meta=20, replay=15, envs=15, agents=15)
    least |= dict(rules=20)
    assert {name: len(LISTS[name]) >= n for name, n in least.items()} == dict.fromkeys(
        least, True
    )
    broken = [(m.file, m.text, m.replacement) for m in MUTANTS]
    assert len(set(broken)) == len(broken)


@pytest.mark.parametrize("name", LISTS)
def test_each_is_a_change_of_the_file_that_still_compiles(name, tmp_path):
    for mutant in LISTS[name]:
        path = tmp_path / mutant.file
        path.parent.mkdir(parents=True, exist_ok=True)
        source = (run.ROOT / mutant.file).read_text()
        path.write_text(source)
        mutant.apply(tmp_path)
        assert ast.dump(ast.parse(path.read_text())) != ast.dump(ast.parse(source))


def test_the_tests_that_find_them_are_there():
    """By the names that pytest gives: a row that is added renames those after it."""
    wanted = {test for mutant in MUTANTS for test in mutant.tests}
    files = sorted({test.partition("::")[0] for test in wanted})
    collect = ["pytest", "-q", "--collect-only", "-m", "slow or not slow", *files]
    found = subprocess.run(
        [sys.executable, "-m", *collect, "-p", "no:cacheprovider"],
        cwd=run.ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    ).stdout.splitlines()
    functions = [test.partition("[")[0] for test in found]
    assert wanted - set(found) - set(functions) == set()


def test_a_text_that_is_not_there_once_is_refused(tmp_path):
    mutant = run.Mutant("a.py", "x = 1", "x = 2", ["tests/test_a.py::test_a"], "x")
    for source, times in (("y = 1\n", 0), ("x = 1\nx = 1\n", 2)):
        (tmp_path / "a.py").write_text(source)
        with pytest.raises(ValueError, match=f"'x = 1' is there {times} times"):
            mutant.apply(tmp_path)


def test_the_tests_exist():
    for mutant in MUTANTS:
        for test in mutant.tests:
            path, *names = test.partition("[")[0].split("::")
            source = (run.ROOT / path).read_text()
            for name in names:
                assert f" {name}" in source, test


def test_the_kinds_of_results():
    """Survivors, failures without a breakage, and tests that do not run are told."""
    assert run.wrong(run.FAILED, broken=True) is False
    assert run.wrong(run.PASSED, broken=True) is True
    assert run.wrong(run.FAILED, broken=False) is True
    assert run.wrong("exit status 104", broken=True) is True
