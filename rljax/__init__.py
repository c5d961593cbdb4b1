"""Reinforcement learning in JAX where differentiation is the instrument.

Packages load when first used: `import rljax; rljax.losses.td_learning(...)` does not
import gymnax, and `rljax.running.sharding.set_cpu_devices` can still come before jax
starts. `import rljax` alone does not import jax.
"""

from typing import TYPE_CHECKING, Any

from rljax import _moved
from rljax._deferred import submodule

if TYPE_CHECKING:  # for editors; a test compares it with the folder
    from rljax import agents as agents
    from rljax import autodiff as autodiff
    from rljax import commands as commands
    from rljax import config as config
    from rljax import contracts as contracts
    from rljax import envs as envs
    from rljax import learners as learners
    from rljax import loading as loading
    from rljax import losses as losses
    from rljax import meta as meta
    from rljax import networks as networks
    from rljax import policies as policies
    from rljax import prng as prng
    from rljax import replay as replay
    from rljax import running as running
    from rljax import statistics as statistics
    from rljax import types as types
    from rljax.policies import load_policy as load_policy
    from rljax.types import Agent as Agent
    from rljax.types import Box as Box
    from rljax.types import Discrete as Discrete
    from rljax.types import Rollout as Rollout
    from rljax.types import Spec as Spec
    from rljax.types import TimeStep as TimeStep
    from rljax.types import TrainState as TrainState
    from rljax.types import Transition as Transition

__version__ = "0.1.0"

_NOUNS = (  # of `rljax.types`
    "Agent",
    "Box",
    "Discrete",
    "Rollout",
    "Spec",
    "TimeStep",
    "TrainState",
    "Transition",
)

_moved.install()


def __getattr__(name: str) -> Any:
    """Import a module of the package, or a public name, when it is first asked for."""
    if name in _NOUNS:
        return getattr(submodule(__name__, "types"), name)
    if name == "load_policy":
        return submodule(__name__, "policies").load_policy
    if name in _moved.MODULES:
        return _moved.load(name)
    return submodule(__name__, name)
