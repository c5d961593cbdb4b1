"""Rainbow: six extensions of DQN. Hessel et al. (2018), https://arxiv.org/abs/1710.02298.

C51 with double and dueling values, returns of several steps, prioritised replay and
noisy weights.
"""

import dataclasses

import jax

from rljax import config as cfg
from rljax.agents import c51
from rljax.agents.c51 import HEAD
from rljax.learners import q_learner
from rljax.types import Agent, Spec

# A reward of 1 or -1 at every step adds up to 100 or -100 with gamma = 0.99.
PRESETS: dict[str, cfg.Preset] = {
    "CartPole-v1": cfg.Preset(dict(value_min=0.0, value_max=100.0)),
    "Acrobot-v1": cfg.Preset(dict(value_min=-100.0, value_max=0.0)),
    "MountainCar-v0": cfg.Preset(dict(value_min=-100.0, value_max=0.0)),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config(c51.Config):
    """C51's, with other defaults."""

    priority_exponent: float = 0.5  # 0: uniform, 1: in proportion
    priority: str = cfg.static("td_error")  # the loss; or "grad_norm", "uniform"
    double: bool = cfg.static(True)  # select the next action by the online network
    dueling: bool = cfg.static(True)  # in each atom's logit
    noisy: bool = cfg.static(True)  # explore by noise in the weights


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    return q_learner.make("rainbow", spec, HEAD)
