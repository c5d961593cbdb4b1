"""Categorical DQN, C51. Bellemare et al. (2017), https://arxiv.org/abs/1707.06887.

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

# A reward of 1 or -1 at every step adds up to 100 or -100 with gamma = 0.99.
PRESETS: dict[str, cfg.Preset] = {
    "CartPole-v1": cfg.Preset(dict(value_min=0.0, value_max=100.0)),
    "Acrobot-v1": cfg.Preset(dict(value_min=-100.0, value_max=0.0)),
    "MountainCar-v0": cfg.Preset(dict(value_min=-100.0, value_max=0.0)),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 5e-4  # of Adam
    gamma: float = 0.99  # discount, cut at termination
    value_min: float = -10.0  # first atom, of discounted returns
    value_max: float = 10.0  # last atom: returns beyond count as it
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
    priority: str = cfg.static("uniform")  # or "td_error": the loss, or "grad_norm"
    sampler: str = cfg.static("replay")  # or "large_batch": scored afresh
    large_batch_factor: int = cfg.static(4)  # large batch over batch size
    warmup_steps: int = cfg.static(10_000)  # stored before the first update
    target_period: int = cfg.static(1)  # gradient steps between target updates
    num_atoms: int = cfg.static(51)  # evenly spaced
    hidden_sizes: tuple[int, ...] = cfg.static((128, 128))
    activation: str = cfg.static("relu")
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    double: bool = cfg.static(False)  # select the next action by the online network
    dueling: bool = cfg.static(False)  # in each atom's logit
    noisy: bool = cfg.static(False)  # explore by noise in the weights

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        q_learner.validate(self)
        q_learner.validate_epsilon(self)
        cfg.check_count(self, "num_atoms", low=2)
        cfg.check_range(self, "value_min", open_low=True)  # finite
        low, largest = self.value_min, float(jnp.finfo(jnp.float32).max)
        cfg.check_range(self, "value_max", low=low, high=largest, open_low=True)


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    q_learner.check_discrete("c51", spec)
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
    """The network of the returns' logits, `[..., num_actions, num_atoms]`."""
    return networks.QNetwork(
        len(spec.obs_shape),
        q_learner.check_discrete("c51", spec),
        config.hidden_sizes,
        config.activation,
        config.dueling,
        config.noisy,
        config.num_atoms,
        reading=spec.reading,
    )


def atoms(config: Config) -> jax.Array:
    """Returns that the logits stand for, `[num_atoms]`."""
    return jnp.linspace(config.value_min, config.value_max, config.num_atoms)


def means(config: Config, logits: jax.Array) -> jax.Array:
    """Mean return of each action: `[..., num_actions]`."""
    return jax.nn.softmax(logits) @ atoms(config)


def loss(
    spec: Spec,
    config: Config,
    params: Params,
    bootstrap_params: Params,
    window: Windows,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of one transition, `[]`, which is also its error for priorities.

    Rainbow takes the Kullback-Leibler divergence, https://arxiv.org/abs/1710.02298:
    less by the entropy of the target, which has no gradient here.

    The semi-gradient is the gradient with respect to `params` alone: what the
    target takes from `bootstrap_params` stays differentiable for meta-gradients.
    """
    apply, (key, target_key) = network(spec, config).apply, jax.random.split(key)
    factored = config.priority == "grad_norm"
    logits = functools.partial(apply, layers.with_noise(params, key, factored))
    target_params = layers.with_noise(bootstrap_params, target_key)
    target = functools.partial(apply, target_params)
    reward, discount = priority.n_step_return(window, config.gamma)
    z = atoms(config)
    taken = logits(window.obs), window.action, reward, discount
    args = (z, *taken, z, target(window.next_obs))
    if config.double:
        q_t_selector = means(config, logits(window.next_obs))
        total = losses.categorical_double_q_learning(*args, q_t_selector, stop="none")
    else:
        total = losses.categorical_q_learning(*args, stop="none")
    return total, total


def q_values(spec: Spec, config: Config, state: State, obs: Any) -> jax.Array:
    """Action values `[..., A]` of observations `[..., *obs_shape]`: mean returns."""
    return means(config, network(spec, config).apply(state.params, obs))


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
