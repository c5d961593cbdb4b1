"""Two trees of rljax side by side: this one and another git revision of it.

Both are copied, so that a worker finds `rljax` and `rljax.agents` in one folder, starts
without bytecode, and does not see edits made while the benchmark runs.
"""

import contextlib
import io
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any

PARTS = ("rljax", "agents")  # of a checkout; the second is installed as rljax.agents


def short_hash(root: pathlib.Path, revision: str) -> str:
    """Returns the abbreviated hash of the commit that a revision names.

    Args:
      root: of this checkout.
      revision: anything that git understands: a hash, branch, tag, HEAD~3.

    Raises:
      SystemExit: there is no such revision, no git repository, or no git.
    """
    commit = f"{revision}^{{commit}}"
    command = ("rev-parse", "--verify", "--quiet", "--short", commit)
    return _git(root, revision, *command).decode().strip()


@contextlib.contextmanager
def side_by_side(
    root: pathlib.Path, revision: str
) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """Gives two temporary folders that hold `rljax`: of this tree, of the revision.

    Args:
      root: of this checkout; its uncommitted changes belong to this tree.
      revision: what git calls the other.

    Raises:
      SystemExit: the revision cannot be read, or has no package rljax.
    """
    archive = _git(root, revision, "archive", "--format=tar", revision)
    with tempfile.TemporaryDirectory(prefix="rljax-benchmark-") as folder:
        this, other = (pathlib.Path(folder).resolve() / name for name in "ab")
        for part in PARTS:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(root / part, this / part, ignore=ignore)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            wanted = [m for m in tar if pathlib.PurePath(m.name).parts[0] in PARTS]
            tar.extractall(other, members=wanted, filter="data")
        if not (other / "rljax" / "__init__.py").exists():
            raise SystemExit(f"--against {revision}: it has no package rljax")
        for tree in (this, other):
            if (tree / "agents").exists():
                (tree / "agents").rename(tree / "rljax" / "agents")
        yield this, other


def environ(tree: pathlib.Path) -> dict[str, str]:
    """Returns the environment variables with which Python imports a tree's rljax."""
    paths = (str(tree), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def checked(result: dict[str, Any], tree: pathlib.Path) -> dict[str, Any]:
    """Returns a worker's result; only a note if it measured something else.

    Args:
      result: of a worker, or a note alone.
      tree: the folder from which it should have imported rljax.
    """
    if "imported_from" not in result:  # it failed before it could say
        return result
    folders = result["imported_from"]
    package = tree / "rljax"
    if folders and all(pathlib.Path(f).is_relative_to(package) for f in folders):
        return result
    found = ", ".join(folders) or "nowhere"
    return {"note": f"failed: rljax was imported from {found}, not only {package}"}


def _git(root: pathlib.Path, revision: str, *command: str) -> bytes:
    """Runs a git command on a checkout; the last line of its errors ends the script."""
    try:
        done = subprocess.run(["git", "-C", str(root), *command], capture_output=True)
    except FileNotFoundError:
        raise SystemExit(f"--against {revision}: git is not installed") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        problem = lines[-1] if lines else f"no such revision of {root}"
        raise SystemExit(f"--against {revision}: {problem}")
    return done.stdout
