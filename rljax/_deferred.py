"""Imports that wait until they are needed."""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any


class _Deferred(types.ModuleType):
    """Stands for a module and imports it when an attribute is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system itself
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def deferred(name: str) -> Iterator[None]:
    """Give modules imported within `name` as a module that loads at its first use.

    Args:
      name: a top-level module that they import but seldom use. Loaded already, it
        stays as it is.

    Example:
      >>> with deferred("modulefinder"):
      ...     import modulefinder
      >>> modulefinder.ModuleFinder.__name__  # imported now
      'ModuleFinder'
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = _Deferred(name)
    try:
        yield
    finally:
        del sys.modules[name]


def submodule(package: str, name: str) -> types.ModuleType:
    """Import a package's module when it is first used: for the package's `__getattr__`.

    Args:
      package: its name.
      name: the module's.

    Returns:
      The module.

    Raises:
      AttributeError: the package has no module of that name.

    Example:
      >>> submodule("rljax", "prng").__name__
      'rljax.prng'
    """
    full = f"{package}.{name}"
    if name.startswith("_") or importlib.util.find_spec(full) is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return importlib.import_module(full)
