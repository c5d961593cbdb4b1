"""Implicit quantile networks. Dabney et al. (2018), https://arxiv.org/abs/1806.06923."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import losses, networks
from rljax.learners import q_learner
from rljax.learners.q_learner import State
from rljax.networks import distributions
from rljax.replay import Windows, priority
from rljax.types import Agent, Metrics, Params, Rollout, Spec

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
    q_learner.check_discrete("iqn", spec)
    return Agent(
        init=functools.partial(init, spec),
        memory=lambda config, num_envs: (),
        act=functools.partial(act, spec),
        observe=q_learner.observe,
        update=functools.partial(update, spec),
        q_values=functools.partial(q_values, spec),
    )


def network(spec: Spec, config: Config) -> Any:
    """The network of the return's quantiles."""
    return networks.ImplicitQuantileNetwork(
        len(spec.obs_shape),
        q_learner.check_discrete("iqn", spec),
        config.hidden_sizes,
        config.activation,
        config.embedding_size,
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


def quantile_loss(
    spec: Spec,
    config: Config,
    params: Params,
    bootstrap_params: Params,
    window: Windows,
    key: jax.Array,
) -> jax.Array:
    """Quantile regression of one transition, `[]`; eq. 3.

    The transitions of a batch share the key, so the fractions too, which are embedded
    once for all of them. Each transition's gradient has the same mean as with its own,
    but a batch says little of what lies between: more cosines than fractions, as in
    the paper, leave the quantiles rough, and the mean too rough to choose actions by.
    The semi-gradient is the gradient with respect to `params` alone: what the
    target takes from `bootstrap_params` stays differentiable for meta-gradients.
    """
    apply, (key, target_key) = network(spec, config).apply, jax.random.split(key)
    tau = random_fractions(key, config.num_fractions)
    tau_t = random_fractions(target_key, config.num_target_fractions)
    reward, discount = priority.n_step_return(window, config.gamma)
    return losses.implicit_quantile_q_learning(
        *(apply(params, window.obs, tau), tau, window.action, reward, discount),
        apply(bootstrap_params, window.next_obs, policy_fractions(config)),
        apply(bootstrap_params, window.next_obs, tau_t),
        config.huber_kappa,
        stop="none",
    )


def init(spec: Spec, config: Config, key: jax.Array) -> State:
    """Fresh network and optimiser, an empty replay."""
    net = network(spec, config)
    return q_learner.init(spec, config, net, key, policy_fractions(config))


def q_values(spec: Spec, config: Config, state: State, obs: Any) -> jax.Array:
    """Action values `[..., A]` of observations `[..., *obs_shape]`: mean returns."""
    apply = network(spec, config).apply
    return apply(state.params, obs, policy_fractions(config)).mean(axis=-2)


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Any,
    obs: Any,
    key: Any,
    explore: bool,
) -> tuple[jax.Array, Any, Any]:
    """Epsilon-greedy in the mean return; an epsilon of its own in evaluation."""
    q = q_values(spec, config, state, obs)
    epsilon = q_learner.epsilon(config, state.step, explore)
    return distributions.epsilon_greedy(q, epsilon, key), memory, ()


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Learn from samples of the replay."""

    def loss(*args: Any) -> tuple[jax.Array, jax.Array]:
        value = quantile_loss(spec, config, *args)
        return value, value

    return q_learner.update(loss, config, state, rollout, key)
