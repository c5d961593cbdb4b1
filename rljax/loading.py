"""Own code by reference: `my.module:Object`, `path/to/file.py:Object`, or a module."""

import contextlib
import difflib
import functools
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

FORMS = "my.module:Object or path/to/file.py:Object"
_folders: set[Path] = set()  # of files that were loaded


def is_reference(text: str) -> bool:
    """Tell a reference from a name: a reference has a colon or ends in `.py`.

    Example:
      >>> is_reference("my.module:make_env"), is_reference("CartPole-v1")
      (True, False)
    """
    return ":" in text or text.endswith(".py")


def load(reference: str, what: str) -> Any:
    """Load an object, or a module, from one's own code.

    The current directory is importable, as with `python -m`. A file is loaded once,
    under a module name that follows from its path, so that its objects stay the same;
    modules beside the file are importable.

    Args:
      reference: `my.module:Object`, `path/to/file.py:Object`, or either without
        `:Object` for the module. Dots in `Object` lead to attributes of attributes.
      what: the kind of thing that is asked for, for the error: "environment".

    Returns:
      The object, or the module.

    Raises:
      ValueError: no such file, module or object (near matches are listed), or a module
        that fails while it is imported. One line that names the kind and the reference.

    Example:
      >>> load("rljax.types:Discrete", "action space").__name__
      'Discrete'
    """
    place, colon, path = reference.partition(":")
    named = f"{what} {reference!r}"
    if not place or (colon and not all(path.split("."))):
        raise ValueError(f"{named}: expected {FORMS}")
    module = _file(place, named) if place.endswith(".py") else _module(place, named)
    return functools.reduce(
        lambda found, name: _attribute(found, name, place=place, named=named),
        path.split(".") if path else [],
        module,
    )


def recorded(reference: str) -> str:
    """Return a reference that holds in every directory: a file by its absolute path.

    Example:
      >>> recorded("my.module:make_env")
      'my.module:make_env'
    """
    place, colon, path = reference.partition(":")
    if place.endswith(".py"):
        place = str(_absolute(place))
    return f"{place}{colon}{path}"


def offered(group: str) -> dict[str, str]:
    """Return what installed packages offer: references by name.

    Args:
      group: of entry points, such as `rljax.environments`.

    Example:
      >>> offered("rljax.no_such_group")
      {}
    """
    return {entry.name: entry.value for entry in metadata.entry_points(group=group)}


def _absolute(place: str) -> Path:
    return Path(place).expanduser().resolve()


def _module(name: str, named: str) -> ModuleType:
    if not all(name.split(".")) or "/" in name:
        raise ValueError(f"{named}: expected {FORMS}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may be younger than the last look
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            message = f"{named}: no module {error.name}, here ({here}) or installed"
            raise ValueError(message) from error
        raise ValueError(f"{named}: {_failure(error)}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{named}: {_failure(error)}") from error


def _file(place: str, named: str) -> ModuleType:
    path = _absolute(place)
    if not path.is_file():
        raise ValueError(f"{named}: no file {path}")
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader  # as for every name that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look for their module there
    try:
        with _beside(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{named}: {_failure(error)}") from error
    return module


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let modules beside a file go before those beside files of other folders.

    Installed modules go before both. A module of another folder that has the name of
    one beside this file is imported anew: who imported the other keeps it.
    """
    others = {*_folders, Path.cwd()} - {folder}
    _folders.add(folder)
    names = {path.stem for path in folder.glob("*.py")}
    names |= {path.parent.name for path in folder.glob("*/__init__.py")}
    names -= {__name__.partition(".")[0]}  # this package, where it is a checkout
    hidden = {name for name in names if _is_in(name, others)}
    for name in list(sys.modules):
        if name.partition(".")[0] in hidden:
            del sys.modules[name]
    before = list(sys.path)
    here, there = str(folder), [str(other) for other in others]
    sys.path[:] = [place for place in before if place not in there]
    sys.path.extend([here] * (here not in before))
    sys.path.extend(place for place in before if place in there)
    try:
        yield
    finally:
        sys.path[:] = before + [here] * (here not in before)


def _is_in(name: str, folders: Iterable[Path]) -> bool:
    """Whether a module was imported from one of these folders."""
    file = getattr(sys.modules.get(name), "__file__", None)
    places = [(other / f"{name}.py", other / name / "__init__.py") for other in folders]
    return file is not None and any(Path(file) in pair for pair in places)


def _failure(error: BaseException) -> str:
    """Say in one line where a module failed while it was imported, and why."""
    steps = traceback.extract_tb(error.__traceback__)
    own = [x for x in steps if "importlib" not in x.filename and x.filename != __file__]
    where = f"fails at {own[-1].filename}:{own[-1].lineno}" if own else "fails"
    reason = (str(error).splitlines() or [""])[0]
    return f"{where}: {type(error).__name__}: {reason}"


def _attribute(found: Any, name: str, *, place: str, named: str) -> Any:
    try:
        return getattr(found, name)
    except AttributeError as error:
        near = difflib.get_close_matches(name, [x for x in dir(found) if x[0] != "_"])
        hint = f"; did you mean: {', '.join(near)}?" if near else ""
        raise ValueError(f"{named}: {place} has no {name}{hint}") from error
