"""Run the tests of what changed since the last commit.

    make check
    python tests/changed.py HEAD~3       # since another commit

`tests/` has the folders of `rljax/`: the tests of a module are in the file of its name
there, or else they are all of its folder. A loss or an agent also has rows in the
tables that sweep over all of them. What all agents share is tried on `ppo` and `dqn`.
"""

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
OVER_AGENTS = (
    "agents/test_agents.py",
    "agents/test_probes.py",
    "running/test_train.py",
)
SHARED = ("", "learners", "networks", "replay", "running")  # folders that agents use
BOTH_KINDS = ("ppo", "dqn")  # on-policy, and with a replay


def changed_files(commit: str) -> list[pathlib.PurePath]:
    """Returns Python files that differ from a commit or are new, and still exist."""
    lists = (
        ["git", "diff", "--name-only", "--relative", commit],
        ["git", "ls-files", "--others", "--exclude-standard"],
    )
    names = [
        name
        for command in lists
        for name in subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
    ]
    paths = [pathlib.PurePath(name) for name in dict.fromkeys(names)]
    return [path for path in paths if path.suffix == ".py" and (ROOT / path).exists()]


def functions(path: pathlib.PurePath) -> list[str]:
    """Returns the names of the public functions of a file."""
    tree = ast.parse((ROOT / path).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if not name.startswith("_")]


def imports(path: pathlib.Path, module: str) -> bool:
    """Returns whether a test file imports a module, given by its last name."""
    return any(
        module in (*(node.module or "").split("."), *(name.name for name in node.names))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    )


def importing(module: str) -> list[str]:
    """Returns the test files that import a module."""
    return [name for name in test_files() if imports(TESTS / name, module)]


def test_files(folder: str = "**") -> list[str]:
    """Returns the test files of a folder, by their paths within `tests/`."""
    paths = sorted(TESTS.glob(f"{folder}/test_*.py"))
    return [str(path.relative_to(TESTS)) for path in paths]


def of_both_kinds() -> str:
    """Returns the expression for pytest's -k that leaves out all other agents."""
    names = [path.stem for path in sorted((ROOT / "agents").glob("[a-z]*.py"))]
    return f"not ({' or '.join(name for name in names if name not in BOTH_KINDS)})"


def tests_of(path: pathlib.PurePath) -> dict[str, str]:
    """Returns the test files for a changed file, each with an expression for -k.

    An empty expression stands for the whole file.
    """
    top, *inner = path.parts
    if top == "tests":
        is_test = path.stem.startswith("test_")
        names = ["/".join(inner)] if is_test else importing(path.stem)
        return dict.fromkeys(names, "")
    own = f"test_{path.stem}.py"
    if top == "agents":
        return dict.fromkeys(OVER_AGENTS, path.stem) | {f"agents/{own}": ""}
    if top == "scripts" or inner[:1] == ["commands"]:
        general = "benchmark" if "benchmark" in str(path) else "commands"
        return {f"commands/{name}": "" for name in (own, f"test_{general}.py")}
    room = "/".join(inner[:-1])
    mirror = str(pathlib.PurePath(room, own))
    found = {mirror: ""}
    if room and not (TESTS / mirror).exists():
        found = dict.fromkeys(test_files(room), "")
    if room == "losses":
        swept = " or ".join(functions(path))
        found |= {"losses/test_losses.py": swept} if swept else {}
    if room in SHARED:
        found = dict.fromkeys(OVER_AGENTS, of_both_kinds()) | found
    return found


def selection(paths: Iterable[pathlib.PurePath]) -> tuple[list[str], str]:
    """Returns the test files of all changed files, and one expression for -k."""
    rules: dict[str, set[str]] = {}
    for path in paths:
        for name, rule in tests_of(path).items():
            if (TESTS / name).exists():
                whole = of_both_kinds() if name in OVER_AGENTS else ""
                rules.setdefault(name, set()).add(rule or whole)
    chosen = [
        file if "" in of_file else f"({file} and ({' or '.join(sorted(of_file))}))"
        for file, of_file in (
            (pathlib.PurePath(name).name, rules[name]) for name in sorted(rules)
        )
    ]
    return [f"tests/{name}" for name in sorted(rules)], " or ".join(chosen)


def main() -> int:
    """Returns pytest's exit status, 0 where nothing changed."""
    files, expression = selection(
        changed_files(sys.argv[1] if sys.argv[1:] else "HEAD")
    )
    if not files:
        print("no tests of what changed")
        return 0
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal"]
    return subprocess.run([*pytest, *files, "-k", expression], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
