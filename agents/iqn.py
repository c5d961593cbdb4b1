"""Implicit quantile networks. Dabney et al. (2018), https://arxiv.org/abs/1806.06923."""

import dataclasses

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import losses, networks
from rljax.contracts import Network
from rljax.learners import q_learner
from rljax.learners.q_learner import Head, Keys, Outputs, QLearnerConfig, Step
from rljax.types import Agent, Key, Spec

PRESETS: dict[str, cfg.Preset] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config(QLearnerConfig):
    """Hyperparameters beside those of every `QLearnerConfig`."""

    huber_kappa: float = 1.0  # up to which errors count squared; 0: none
    num_fractions: int = cfg.static(32)  # N, of the prediction
    num_target_fractions: int = cfg.static(32)  # N', of the target
    num_policy_fractions: int = cfg.static(32)  # K, whose mean the actions maximise
    embedding_size: int = cfg.static(16)  # cosines of each fraction

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        super().validate()
        cfg.check_range(self, "huber_kappa", low=0.0)
        cfg.check_count(self, "num_fractions", "num_target_fractions")
        cfg.check_count(self, "num_policy_fractions", "embedding_size")


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    return q_learner.make("iqn", spec, HEAD)


def network(spec: Spec, config: Config) -> Network:
    """The network of the return's quantiles."""
    return networks.ImplicitQuantileNetwork(
        body=networks.body(spec, config),
        num_actions=q_learner.num_actions(spec),
        embedding_size=config.embedding_size,
    )


def random_fractions(key: Key, num: int) -> jax.Array:
    """One from each of `num` equal shares of [0, 1], `[num]`.

    Uniform on the whole like independent ones, but with less variance.
    """
    return (jnp.arange(num) + jax.random.uniform(key, (num,), jnp.float32)) / num


def policy_fractions(config: Config) -> jax.Array:
    """Middles of equal shares, `[K]`: a mean without noise, unlike the paper's."""
    number = config.num_policy_fractions
    return (jnp.arange(number, dtype=jnp.float32) + 0.5) / number


def loss(
    config: Config, online: Outputs, target: Outputs, step: Step, keys: Keys
) -> tuple[jax.Array, jax.Array]:
    """Quantile regression of one transition, `[]`, twice: also for priorities; eq. 3.

    The transitions of a batch share the keys, so the fractions too, which are embedded
    once for all of them. Each transition's gradient has the same mean as with its own,
    but a batch says little of what lies between: more cosines than fractions, as in
    the paper, leave the quantiles rough, and the mean too rough to choose actions by.
    """
    key, target_key = keys
    tau = random_fractions(key, config.num_fractions)
    tau_t = random_fractions(target_key, config.num_target_fractions)
    total = losses.implicit_quantile_q_learning(
        dist_q_tm1=online(step.obs, tau),
        tau_q_tm1=tau,
        a_tm1=step.action,
        r_t=step.reward,
        discount_t=step.discount,
        dist_q_t_selector=target(step.next_obs, policy_fractions(config)),
        dist_q_t=target(step.next_obs, tau_t),
        huber_param=config.huber_kappa,
        stop="none",
    )
    return total, total


HEAD = Head(
    network=network,
    values=lambda config, quantiles: quantiles.mean(axis=-2),
    loss=loss,
    inputs=lambda config: (policy_fractions(config),),
)
