"""Imports that wait until they are needed."""

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any


class _Deferred(types.ModuleType):
    """Stands for a module and imports it when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system itself
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def deferred(name: str) -> Iterator[None]:
    """Modules imported within get `name` as a module that loads at its first use.

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
