"""REINFORCE with a learnt baseline. Williams (1992), https://doi.org/10.1007/BF00992696.

Sutton and Barto (2018), section 13.4, http://incompleteideas.net/book/the-book.html,
with whole rollouts in place of whole episodes: what a rollout or the time limit cuts
off goes on with the baseline's value.
"""

import dataclasses
import functools

import jax

from rljax import config as cfg
from rljax.learners import on_policy
from rljax.learners.on_policy import State
from rljax.types import Agent, Metrics, Rollout, Spec

PRESETS: dict[str, cfg.Preset] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 2e-3  # of Adam
    gamma: float = 0.99  # discount, cut at termination
    entropy_cost: float = 0.01  # weight of the entropy bonus
    max_grad_norm: float = 0.5  # where each network's gradient is clipped
    adam_epsilon: float = 1e-5  # a larger one damps steps along tiny gradients
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(64)  # steps per environment and update
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))  # of actor and critic each
    activation: str = cfg.static("tanh")
    convolution: bool = cfg.static(True)  # images go through one, else flat
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    normalize_advantages: bool = cfg.static(True)  # per rollout

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        cfg.check_range(self, "adam_epsilon", low=0.0, open_low=True)
        cfg.check_range(self, "entropy_cost", low=0.0)


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`."""
    return Agent(
        init=functools.partial(on_policy.init, spec),
        memory=lambda config, num_envs: (),
        act=functools.partial(on_policy.act, spec),
        observe=lambda config, state, rollout: state,
        update=functools.partial(update, spec),
        policy=functools.partial(on_policy.policy, spec),
        value=functools.partial(on_policy.value, spec),
    )


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """One step along the policy gradient of one rollout."""
    del key  # nothing is drawn
    batch = on_policy.prepare(spec, config, state, rollout, 1.0)
    return on_policy.learn(spec, config, state, batch)
