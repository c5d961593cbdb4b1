"""Environments of other packages by `package/Name`, each by an adapter of its own.

A package is imported when one of its environments is asked for, or when all names are
listed. `pip install 'rljax-lab[PACKAGE]'` brings a package, `[envs]` all of them.

from_brax, from_craftax, ...  one package each
functional                    environments as functions, and those as gymnax's
mujoco_picture                pictures for brax and playground
"""

import importlib
import importlib.util
import warnings
from typing import Any, Protocol, cast

from rljax.config import unknown
from rljax.envs.adapters.functional import Adapter, Functional, Params

# The module to import of each package, where its name is another.
PACKAGES = {
    "brax": "brax",
    "craftax": "craftax",
    "jumanji": "jumanji",
    "navix": "navix",
    "pgx": "pgx",
    "playground": "mujoco_playground",
    "xminigrid": "xminigrid",
}


class AdapterModule(Protocol):
    """A module `from_PACKAGE` of this folder.

    It may also have `refusal(name) -> str | None`: why an environment that the package
    knows is none for one agent.
    """

    @staticmethod
    def names() -> list[str]:
        """List the package's environments for one agent."""
        ...

    @staticmethod
    def options(name: str) -> list[str]:
        """List the package's own parameters of an environment."""
        ...

    @staticmethod
    def make(name: str, **arguments: Any) -> Functional:
        """Make an environment."""
        ...


def is_name(name: str) -> bool:
    """Whether a name is of the form `package/Name`."""
    package, slash, _ = name.partition("/")
    return bool(slash) and package.isidentifier()


def names() -> list[str]:
    """List the environments of all packages that are installed and can be imported."""
    found = []
    for package in PACKAGES:
        if is_installed(package):
            try:
                found += _names(package)
            except ValueError:  # asked for by name, it says why
                continue
    return found


def options(name: str) -> list[str]:
    """List a package's own parameters of an environment.

    Raises:
      ValueError: as by `make`.
    """
    adapter, own_name = _find(name)
    return _call(name, adapter.options, own_name)


def make(name: str, arguments: dict[str, Any]) -> tuple[Adapter, Params]:
    """Make an environment and its parameters, as `gymnax.make` does.

    Args:
      name: `package/Name`.
      arguments: the package's own parameters, among `options(name)`.

    Raises:
      ValueError: unknown names, with the near matches; a package that is missing, with
        the command that installs it; a package that fails, with what it says.
    """
    adapter, own_name = _find(name)
    functional = _call(name, adapter.make, own_name, **arguments)
    return Adapter(name, functional), functional.params


def _find(name: str) -> tuple[AdapterModule, str]:
    """Return the adapter of a package, and the environment's name there."""
    package, _, own_name = name.partition("/")
    if package not in PACKAGES:
        known = ", ".join(PACKAGES)
        raise ValueError(
            f"environment {name!r}: unknown package {package!r}; known are: {known}"
        )
    if not is_installed(package):
        raise ValueError(
            f"{name} needs {package}: pip install 'rljax-lab[{package}]', or [envs] "
            "for the environments of all packages"
        )
    adapter, known = _adapter(package), _names(package)
    if name not in known:
        refusal = getattr(adapter, "refusal", lambda _: None)(own_name)
        raise ValueError(refusal or unknown("environment", name, known))
    return adapter, own_name


def is_installed(package: str) -> bool:
    """Whether a package of `PACKAGES` is there, without importing it."""
    return importlib.util.find_spec(PACKAGES[package]) is not None


def _names(package: str) -> list[str]:
    return [f"{package}/{name}" for name in _adapter(package).names()]


def _adapter(package: str) -> AdapterModule:
    """Import an adapter, and so its package.

    Raises:
      ValueError: the package cannot be imported; with the reason.
    """
    with warnings.catch_warnings():  # what packages warn of concerns their authors
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module(f"{__name__}.from_{package}")
        except Exception as error:
            raise ValueError(
                f"{package} is installed but cannot be imported: {_reason(error)}"
            ) from error
    return cast(AdapterModule, module)


def _call(name: str, function: Any, *args: Any, **arguments: Any) -> Any:
    """Return a package's result; what it raises gets one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*args, **arguments)
        except ValueError as error:
            text = (str(error).splitlines() or [""])[0]
            raise ValueError(text if name in text else f"{name}: {text}") from error
        except Exception as error:
            raise ValueError(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"
