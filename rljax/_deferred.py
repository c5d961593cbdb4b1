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
        if sys.modules.get(self.__name__) is self:  # used while it still stands there
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def deferred(*names: str) -> Iterator[None]:
    """Give modules imported within `names` as modules that load at their first use.

    Args:
      *names: modules that they import but seldom use, a package before its own
        modules. One that is loaded already stays as it is.

    Example:
      >>> with deferred("modulefinder"):
      ...     import modulefinder
      >>> modulefinder.ModuleFinder.__name__  # imported now
      'ModuleFinder'
    """
    stand_ins = {name: _Deferred(name) for name in names if name not in sys.modules}
    for name, stand_in in stand_ins.items():
        package, _, module = name.rpartition(".")
        if package in stand_ins:  # `import package.module as m` reads this attribute
            setattr(stand_ins[package], module, stand_in)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
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
