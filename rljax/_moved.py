"""Modules that were here before they got rooms: the old paths lead to the new ones."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MODULES = {
    "actor_critic": "learners.actor_critic",
    "checkpoint": "running.checkpoint",
    "distributions": "networks.distributions",
    "evaluate": "running.evaluate",
    "layers": "networks.layers",
    "logging": "running.logging",
    "losses.noise": "learners.exploration",
    "losses.off_policy": "losses.off_policy_returns",
    "losses.policy": "losses.policy_gradient",
    "losses.value": "losses.one_step",
    "losses.value_sequences": "losses.multi_step",
    "maml": "meta.maml",
    "meta_envs": "envs.tasks",
    "observations": "networks.observations",
    "on_policy": "learners.on_policy",
    "optimizers": "learners.optimizers",
    "plotting": "running.plotting",
    "priority": "replay.priority",
    "q_learner": "learners.q_learner",
    "recurrent": "networks.recurrent",
    "rollout": "running.rollout",
    "sharding": "running.sharding",
    "sum_tree": "replay.sum_tree",
    "train": "running.train",
    "two_colors": "envs.two_colors",
    "wrappers": "envs.wrappers",
}


def load(name: str) -> ModuleType:
    """The module that had this name, with a warning that names its new path."""
    new = f"rljax.{MODULES[name]}"
    warnings.warn(f"rljax.{name} is now {new}", DeprecationWarning, stacklevel=3)
    return importlib.import_module(new)


class _Finder(MetaPathFinder, Loader):
    """Makes `import rljax.OLD` and `from rljax.OLD import ...` work."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package == "rljax" and name in MODULES:
            return ModuleSpec(fullname, self)
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system takes what stands here once this returns.
        sys.modules[module.__name__] = load(module.__name__.partition(".")[2])


def install() -> None:
    """Have imports of old paths find the new modules."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
