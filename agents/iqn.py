"""Implicit quantile networks. Dabney et al. (2018), https://arxiv.org/abs/1806.06923."""

import dataclasses

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import losses, networks
from rljax.contracts import Network
from rljax.learners import q_learner
from rljax.learners.q_learner import Head, Keys, Outputs, Step
from rljax.types import Agent, Spec

PRESETS: dict[str, cfg.Preset] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 5e-4  # of Adam
    gamma: float = 0.99  # discount, cut at termination
    huber_kappa: float = 1.0  # up to which errors count squared; 0: none
    epsilon_start: float = 1.0  # chance of a uniform action at first
    epsilon_end: float = 0.02  # and after `exploration_fraction`
    exploration_fraction: float = 0.5  # of total_steps, over which epsilon falls
    epsilon_eval: float = 0.0  # in evaluation
    max_grad_norm: float = 1e3  # global norm at which gradients are clipped
    target_rate: float = 0.01  # how far the target moves to the online network, 1: copy
    priority_exponent: float = 0.6  # 0: uniform, 1: in proportion
    importance_exponent: float = 0.4  # grows to 1, which undoes the priorities' bias
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(10)
    rollout_length: int = cfg.static(1)  # steps per environment and iteration
    num_updates: int = cfg.static(1)  # gradient steps per iteration
    batch_size: int = cfg.static(128)
    capacity: int = cfg.static(100_000)  # transitions in the replay
    n_step: int = cfg.static(3)  # rewards before the bootstrap
    priority: str = cfg.static("uniform")  # or "td_error", the loss; "grad_norm"
    sampler: str = cfg.static("replay")  # or "large_batch": scored afresh
    large_batch_factor: int = cfg.static(4)  # large batch over batch size
    warmup_steps: int = cfg.static(10_000)  # stored before the first update
    target_period: int = cfg.static(1)  # gradient steps between target updates
    num_fractions: int = cfg.static(32)  # N, of the prediction
    num_target_fractions: int = cfg.static(32)  # N', of the target
    num_policy_fractions: int = cfg.static(32)  # K, whose mean the actions maximise
    embedding_size: int = cfg.static(16)  # cosines of each fraction
    hidden_sizes: tuple[int, ...] = cfg.static((128, 128))
    activation: str = cfg.static("relu")
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        q_learner.validate(self)
        q_learner.validate_epsilon(self)
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
        obs_ndim=len(spec.obs_shape),
        num_actions=q_learner.num_actions(spec),
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        embedding_size=config.embedding_size,
        reading=spec.reading,
    )


def random_fractions(key: jax.Array, num: int) -> jax.Array:
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
