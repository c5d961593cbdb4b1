"""REINFORCE with a learnt baseline. Williams (1992), https://doi.org/10.1007/BF00992696.

Sutton and Barto (2018), section 13.4, http://incompleteideas.net/book/the-book.html,
with whole rollouts in place of whole episodes: what a rollout or the time limit cuts
off goes on with the baseline's value.
"""

import dataclasses

import jax

from rljax import config as cfg
from rljax.agents import a2c
from rljax.agents.a2c import make

PRESETS: dict[str, cfg.Preset] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config(a2c.Config):
    """A2C's, with other defaults."""

    lambda_: float = cfg.share(1.0)  # whole returns
    entropy_cost: float = cfg.cost(0.01)  # weight of the entropy bonus
    rollout_length: int = cfg.static(64)  # steps per environment and update
    normalize_advantages: bool = cfg.static(True)  # per rollout


__all__ = ["PRESETS", "Config", "make"]
