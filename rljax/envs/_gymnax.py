"""gymnax, imported once and looked at: others install a module of that name too."""

import jax

from rljax._deferred import deferred

_WANTED = "gymnax >= 1.0.1"
Action = int | float | jax.Array  # as hooks take it

try:
    # What draws its environments takes longer to import than the environments.
    with deferred("seaborn", "matplotlib", "matplotlib.pyplot", "matplotlib.colors"):
        import gymnax
        from gymnax.environments import environment, spaces

    registration = gymnax.registration
    _used = (gymnax.register, gymnax.make, gymnax.registered_envs)
    Environment = environment.Environment
    EnvParams = environment.EnvParams
    EnvState = environment.EnvState
    _used = (Environment.is_truncated, Environment.with_transition_gradients)
except (ImportError, AttributeError) as error:
    import importlib.util

    _spec = importlib.util.find_spec("gymnax")
    if _spec is None:
        raise ImportError(f"{_WANTED} is not installed: pip install gymnax") from error
    raise ImportError(
        f"the module gymnax at {_spec.origin} is not {_WANTED}: {error} (an older one, "
        "a file of that name, or stable-gymnax, which popgym-arcade installs over it); "
        "pip install --force-reinstall gymnax"
    ) from error

__all__ = [
    "Action",
    "EnvParams",
    "EnvState",
    "Environment",
    "gymnax",
    "registration",
    "spaces",
]
