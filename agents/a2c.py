"""Advantage actor-critic, its environments in step with each other.

Mnih et al. (2016), https://arxiv.org/abs/1602.01783, with the advantages of Schulman
et al. (2015), https://arxiv.org/abs/1506.02438.
"""

import dataclasses
import functools

import jax

from rljax import config as cfg
from rljax.learners import on_policy
from rljax.learners.on_policy import OnPolicyState as State
from rljax.types import Agent, Key, Metrics, Rollout, Spec, Torso

PRESETS: dict[str, cfg.Preset] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = cfg.rate(2e-3)  # of Adam
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    lambda_: float = cfg.share(0.95)  # trace decay of the advantages, cut at any end
    entropy_cost: float = cfg.cost(0.0)  # weight of the entropy bonus
    max_grad_norm: float = 0.5  # where each network's gradient is clipped
    adam_epsilon: float = 1e-5  # a larger one damps steps along tiny gradients
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(8)  # steps per environment and update
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))  # of actor and critic each
    activation: str = cfg.static("tanh")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    normalize_advantages: bool = cfg.static(False)  # per rollout

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        cfg.check_range(self, "adam_epsilon", low=0.0, open_low=True)
        cfg.check_range(self, "entropy_cost", low=0.0)
        cfg.check_range(self, "lambda_", low=0.0, high=1.0)


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`."""
    return on_policy.make(spec, functools.partial(update, spec))


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """One step along the policy gradient of one rollout."""
    del key  # nothing is drawn
    batch = on_policy.prepare(
        spec, config, state, rollout=rollout, lambda_=config.lambda_
    )
    return on_policy.learn(spec, config, state, batch)
