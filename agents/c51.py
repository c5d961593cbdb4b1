"""Categorical DQN, C51. Bellemare et al. (2017), https://arxiv.org/abs/1707.06887.

Double: van Hasselt et al. (2016), https://arxiv.org/abs/1509.06461.
Dueling: Wang et al. (2016), https://arxiv.org/abs/1511.06581.
Noisy: Fortunato et al. (2018), https://arxiv.org/abs/1706.10295.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import losses, networks
from rljax.contracts import Network
from rljax.learners import q_learner
from rljax.learners.q_learner import Head, Keys, Outputs, QLearnerConfig, Step
from rljax.types import Agent, Spec

PRESETS: dict[str, cfg.Preset] = {
    "CartPole-v1": cfg.Preset(dict(value_min=0.0, value_max=100.0)),
    "Acrobot-v1": cfg.Preset(dict(value_min=-100.0, value_max=0.0)),
    "MountainCar-v0": cfg.Preset(dict(value_min=-100.0, value_max=0.0)),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config(QLearnerConfig):
    """Hyperparameters beside those of every `QLearnerConfig`."""

    value_min: float = -10.0  # first atom, of discounted returns
    value_max: float = 10.0  # last atom: returns beyond count as it
    num_atoms: int = cfg.static(51)  # evenly spaced
    double: bool = cfg.static(False)  # select the next action by the online network
    dueling: bool = cfg.static(False)  # in each atom's logit
    noisy: bool = cfg.static(False)  # explore by noise in the weights

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        super().validate()
        cfg.check_count(self, "num_atoms", low=2)
        cfg.check_range(self, "value_min", open_low=True)  # finite
        low, largest = self.value_min, float(jnp.finfo(jnp.float32).max)
        cfg.check_range(self, "value_max", low=low, high=largest, open_low=True)


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    return q_learner.make("c51", spec, HEAD)


def network(spec: Spec, config: Config) -> Network:
    """The network of the returns' logits, `[..., num_actions, num_atoms]`."""
    return networks.QNetwork(
        body=networks.body(spec, config),
        num_actions=q_learner.num_actions(spec),
        num_outputs=config.num_atoms,
        dueling=config.dueling,
        noisy=config.noisy,
    )


def atoms(config: Config) -> jax.Array:
    """Returns that the logits stand for, `[num_atoms]`."""
    return jnp.linspace(config.value_min, config.value_max, config.num_atoms)


def means(config: Config, logits: jax.Array) -> jax.Array:
    """Mean return of each action: `[..., num_actions]`."""
    return jax.nn.softmax(logits) @ atoms(config)


def loss(
    config: Config, online: Outputs, target: Outputs, step: Step, keys: Keys
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of one transition, `[]`, which is also its error for priorities.

    Rainbow takes the Kullback-Leibler divergence, https://arxiv.org/abs/1710.02298:
    less by the entropy of the target, which has no gradient here.
    """
    del keys  # nothing is drawn
    z = atoms(config)
    if config.double:
        total = losses.categorical_double_q_learning(
            q_atoms_tm1=z,
            q_logits_tm1=online(step.obs),
            a_tm1=step.action,
            r_t=step.reward,
            discount_t=step.discount,
            q_atoms_t=z,
            q_logits_t=target(step.next_obs),
            q_t_selector=means(config, online(step.next_obs)),
            stop="none",
        )
    else:
        total = losses.categorical_q_learning(
            q_atoms_tm1=z,
            q_logits_tm1=online(step.obs),
            a_tm1=step.action,
            r_t=step.reward,
            discount_t=step.discount,
            q_atoms_t=z,
            q_logits_t=target(step.next_obs),
            stop="none",
        )
    return total, total


HEAD = Head(
    network=network,
    values=means,
    loss=loss,
    noisy=lambda config: config.noisy,
)
