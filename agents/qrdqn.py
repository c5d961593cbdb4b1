"""Quantile regression DQN. Dabney et al. (2018), https://arxiv.org/abs/1710.10044.

Double: van Hasselt et al. (2016), https://arxiv.org/abs/1509.06461.
Dueling: Wang et al. (2016), https://arxiv.org/abs/1511.06581.
Noisy: Fortunato et al. (2018), https://arxiv.org/abs/1706.10295.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import losses, networks
from rljax.learners import q_learner
from rljax.learners.q_learner import State
from rljax.networks import distributions, layers
from rljax.replay import Windows, priority
from rljax.types import Agent, Metrics, Params, Rollout, Spec

PRESETS: dict[str, cfg.Preset] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 5e-4  # of Adam
    gamma: float = 0.99  # discount, cut at termination
    huber_kappa: float = 1.0  # error from which on the loss is linear, 0: everywhere
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
    priority: str = cfg.static("uniform")  # or "td_error", "grad_norm"
    sampler: str = cfg.static("replay")  # or "large_batch": scored afresh
    large_batch_factor: int = cfg.static(4)  # large batch over batch size
    warmup_steps: int = cfg.static(10_000)  # stored before the first update
    target_period: int = cfg.static(1)  # gradient steps between target updates
    num_quantiles: int = cfg.static(32)  # of each action's return
    hidden_sizes: tuple[int, ...] = cfg.static((128, 128))
    activation: str = cfg.static("relu")
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    double: bool = cfg.static(False)  # select the next action by the online network
    dueling: bool = cfg.static(False)  # in each quantile
    noisy: bool = cfg.static(False)  # explore by noise in the weights

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        q_learner.validate(self)
        q_learner.validate_epsilon(self)
        cfg.check_range(self, "huber_kappa", low=0.0)
        cfg.check_count(self, "num_quantiles", low=2)


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    q_learner.check_discrete("qrdqn", spec)
    return Agent(
        init=lambda config, key: q_learner.init(
            spec, config, network(spec, config), key
        ),
        memory=lambda config, num_envs: (),
        act=functools.partial(act, spec),
        observe=q_learner.observe,
        update=functools.partial(update, spec),
        q_values=functools.partial(q_values, spec),
    )


def network(spec: Spec, config: Config) -> Any:
    """The network of the returns' quantiles, `[..., num_actions, num_quantiles]`."""
    return networks.QNetwork(
        len(spec.obs_shape),
        q_learner.check_discrete("qrdqn", spec),
        config.hidden_sizes,
        config.activation,
        config.dueling,
        config.noisy,
        config.num_quantiles,
        reading=spec.reading,
    )


def midpoints(config: Config) -> jax.Array:
    """Cumulative probabilities that the quantiles stand for; lemma 2."""
    number = config.num_quantiles
    return (jnp.arange(number, dtype=jnp.float32) + 0.5) / number


def loss(
    spec: Spec,
    config: Config,
    params: Params,
    bootstrap_params: Params,
    window: Windows,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Quantile regression of one transition; the absolute error of the mean, `[]` each.

    The semi-gradient is the gradient with respect to `params` alone: what the
    target takes from `bootstrap_params` stays differentiable for meta-gradients.
    """
    apply, (key, target_key) = network(spec, config).apply, jax.random.split(key)
    factored = config.priority == "grad_norm"
    z = functools.partial(apply, layers.with_noise(params, key, factored))
    target_params = layers.with_noise(bootstrap_params, target_key)
    target_z = functools.partial(apply, target_params)
    reward, discount = priority.n_step_return(window, config.gamma)
    z_tm1, z_t = z(window.obs).T, target_z(window.next_obs).T
    selector = z(window.next_obs).T if config.double else z_t
    taken = window.action, reward, discount
    total = losses.quantile_q_learning(
        z_tm1, midpoints(config), *taken, selector, z_t, config.huber_kappa, stop="none"
    )
    q_tm1, q_t, q_selector = (x.mean(axis=0) for x in (z_tm1, z_t, selector))
    error = losses.double_q_learning(q_tm1, *taken, q_t, q_selector, stop="none")
    return total, jnp.abs(error)


def q_values(spec: Spec, config: Config, state: State, obs: Any) -> jax.Array:
    """Action values `[..., A]` of observations `[..., *obs_shape]`: mean returns."""
    return network(spec, config).apply(state.params, obs).mean(axis=-1)


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Any,
    obs: Any,
    key: Any,
    explore: bool,
) -> tuple[jax.Array, Any, Any]:
    """Epsilon-greedy in the mean return, or by noisy weights."""
    key, noise_key = jax.random.split(key)
    noisy, params = explore and config.noisy, state.params
    params = layers.with_noise(params, noise_key) if noisy else params
    q = q_values(spec, config, state._replace(params=params), obs)
    epsilon = q_learner.epsilon(config, state.step, explore)
    epsilon = 0.0 if noisy else epsilon
    return distributions.epsilon_greedy(q, epsilon, key), memory, ()


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Learn from samples of the replay."""
    return q_learner.update(
        functools.partial(loss, spec, config), config, state, rollout, key
    )
