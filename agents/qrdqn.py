"""Quantile regression DQN. Dabney et al. (2018), https://arxiv.org/abs/1710.10044.

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

PRESETS: dict[str, cfg.Preset] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config(QLearnerConfig):
    """Hyperparameters beside those of every `QLearnerConfig`."""

    huber_kappa: float = 1.0  # error from which on the loss is linear, 0: everywhere
    num_quantiles: int = cfg.static(32)  # of each action's return
    double: bool = cfg.static(False)  # select the next action by the online network
    dueling: bool = cfg.static(False)  # in each quantile
    noisy: bool = cfg.static(False)  # explore by noise in the weights

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        super().validate()
        cfg.check_range(self, "huber_kappa", low=0.0)
        cfg.check_count(self, "num_quantiles", low=2)


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    return q_learner.make("qrdqn", spec, HEAD)


def network(spec: Spec, config: Config) -> Network:
    """The network of the returns' quantiles, `[..., num_actions, num_quantiles]`."""
    return networks.QNetwork(
        body=networks.body(spec, config),
        num_actions=q_learner.num_actions(spec),
        num_outputs=config.num_quantiles,
        dueling=config.dueling,
        noisy=config.noisy,
    )


def midpoints(config: Config) -> jax.Array:
    """Cumulative probabilities that the quantiles stand for; lemma 2."""
    number = config.num_quantiles
    return (jnp.arange(number, dtype=jnp.float32) + 0.5) / number


def loss(
    config: Config, online: Outputs, target: Outputs, step: Step, keys: Keys
) -> tuple[jax.Array, jax.Array]:
    """Quantile regression of one transition; its mean's absolute error; `[]` each."""
    del keys  # nothing is drawn
    z_tm1, z_t = online(step.obs).T, target(step.next_obs).T
    selector = online(step.next_obs).T if config.double else z_t
    total = losses.quantile_q_learning(
        dist_q_tm1=z_tm1,
        tau_q_tm1=midpoints(config),
        a_tm1=step.action,
        r_t=step.reward,
        discount_t=step.discount,
        dist_q_t_selector=selector,
        dist_q_t=z_t,
        huber_param=config.huber_kappa,
        stop="none",
    )
    error = losses.double_q_learning(
        q_tm1=z_tm1.mean(axis=0),
        a_tm1=step.action,
        r_t=step.reward,
        discount_t=step.discount,
        q_t_value=z_t.mean(axis=0),
        q_t_selector=selector.mean(axis=0),
        stop="none",
    )
    return total, jnp.abs(error)


HEAD = Head(
    network=network,
    values=lambda config, quantiles: quantiles.mean(axis=-1),
    loss=loss,
    noisy=lambda config: config.noisy,
)
