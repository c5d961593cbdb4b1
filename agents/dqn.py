"""Deep Q-learning. Mnih et al. (2015), https://doi.org/10.1038/nature14236.

Double: van Hasselt et al. (2016), https://arxiv.org/abs/1509.06461.
Dueling: Wang et al. (2016), https://arxiv.org/abs/1511.06581.
Munchausen: Vieillard et al. (2020), https://arxiv.org/abs/2007.14430.
Noisy: Fortunato et al. (2018), https://arxiv.org/abs/1706.10295.
Repeated exploring actions: Dabney et al. (2020), https://arxiv.org/abs/2006.01782.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses, networks
from rljax.learners import q_learner
from rljax.learners.q_learner import State
from rljax.networks import distributions, layers
from rljax.replay import Windows, priority
from rljax.types import Agent, Metrics, Params, Rollout, Spec

PRESETS: dict[str, cfg.Preset] = {
    "MountainCar-v0": cfg.Preset(
        dict(
            learning_rate=1e-3,
            epsilon_end=0.1,
            exploration_fraction=0.1,
            max_repeats=32,  # single actions hardly ever reach the goal
            warmup_steps=1_000,
        ),
        env_params=({}, dict(scale_obs=True)),  # the second is better still
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 5e-4  # of Adam
    gamma: float = 0.99  # discount, cut at termination
    epsilon_start: float = 1.0  # chance of a uniform action at first
    epsilon_end: float = 0.02  # and after `exploration_fraction`
    exploration_fraction: float = 0.5  # of total_steps, over which epsilon falls
    epsilon_eval: float = 0.0  # in evaluation
    max_grad_norm: float = 1e3  # global norm at which gradients are clipped
    target_rate: float = 0.01  # how far the target moves to the online network, 1: copy
    priority_exponent: float = 0.6  # 0: uniform, 1: in proportion
    importance_exponent: float = 0.4  # grows to 1, which undoes the priorities' bias
    entropy_temperature: float = 0.03  # of Munchausen's soft values
    munchausen_coefficient: float = 0.9  # of the bonus for likely actions
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
    max_repeats: int = cfg.static(1)  # of an exploring action; drawn as 1 / n^2
    warmup_steps: int = cfg.static(10_000)  # stored before the first update
    target_period: int = cfg.static(1)  # gradient steps between target updates
    hidden_sizes: tuple[int, ...] = cfg.static((128, 128))
    activation: str = cfg.static("relu")
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    double: bool = cfg.static(False)  # select the next action by the online network
    dueling: bool = cfg.static(False)
    munchausen: bool = cfg.static(False)  # soft values, bonus for likely actions
    noisy: bool = cfg.static(False)  # explore by noise in the weights

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        q_learner.validate(self)
        q_learner.validate_epsilon(self)
        cfg.check_range(self, "entropy_temperature", low=0.0, open_low=True)
        cfg.check_range(self, "munchausen_coefficient", low=0.0, high=1.0)
        cfg.check_count(self, "max_repeats")
        if self.noisy and self.max_repeats > 1:
            raise ValueError(
                f"max_repeats={self.max_repeats}: must be 1 with noisy=True"
            )
        if self.double and self.munchausen:
            raise ValueError("double=True: must be False with munchausen=True")


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    q_learner.check_discrete("dqn", spec)
    return Agent(
        init=lambda config, key: q_learner.init(
            spec, config, network(spec, config), key
        ),
        memory=memory,
        act=functools.partial(act, spec),
        observe=q_learner.observe,
        update=functools.partial(update, spec),
        q_values=functools.partial(q_values, spec),
    )


def network(spec: Spec, config: Config) -> Any:
    """The action values' network."""
    return networks.QNetwork(
        len(spec.obs_shape),
        q_learner.check_discrete("dqn", spec),
        config.hidden_sizes,
        config.activation,
        config.dueling,
        config.noisy,
        reading=spec.reading,
    )


def td_error(
    spec: Spec,
    config: Config,
    params: Params,
    bootstrap_params: Params,
    window: Windows,
    key: jax.Array,
) -> jax.Array:
    """Temporal-difference error of one transition, `[]`.

    The semi-gradient is the gradient with respect to `params` alone: what the
    target takes from `bootstrap_params` stays differentiable for meta-gradients.
    """
    apply, (key, target_key) = network(spec, config).apply, jax.random.split(key)
    factored = config.priority == "grad_norm"
    q = functools.partial(apply, layers.with_noise(params, key, factored))
    target_params = layers.with_noise(bootstrap_params, target_key)
    target_q = functools.partial(apply, target_params)
    reward, discount = priority.n_step_return(window, config.gamma)
    args = (q(window.obs), window.action, reward, discount, target_q(window.next_obs))
    if config.munchausen:
        more = (config.entropy_temperature, config.munchausen_coefficient)
        target_q_tm1 = target_q(window.obs)
        return losses.munchausen_q_learning(*args, target_q_tm1, *more, stop="none")
    if config.double:
        q_t_selector = q(window.next_obs)
        return losses.double_q_learning(*args, q_t_selector, stop="none")
    return losses.q_learning(*args, stop="none")


def memory(config: Config, num_envs: int) -> Any:
    """What is being repeated in `num_envs` episodes that start: nothing."""
    repeats = config.max_repeats > 1
    return jnp.zeros((num_envs, 2), jnp.int32) if repeats else ()


def q_values(spec: Spec, config: Config, state: State, obs: Any) -> jax.Array:
    """Action values `[..., A]` of observations `[..., *obs_shape]`."""
    return network(spec, config).apply(state.params, obs)


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Any,
    obs: Any,
    key: Any,
    explore: bool,
) -> tuple[jax.Array, Any, Any]:
    """Epsilon-greedy or by noisy weights; an epsilon of its own in evaluation."""
    key, noise_key = jax.random.split(key)
    noisy, params = explore and config.noisy, state.params
    params = layers.with_noise(params, noise_key) if noisy else params
    q = q_values(spec, config, state._replace(params=params), obs)
    epsilon = q_learner.epsilon(config, state.step, explore)
    epsilon = 0.0 if noisy else epsilon
    if explore and config.max_repeats > 1:
        args = (q, epsilon, memory, config.max_repeats, key)
        return *distributions.repeated_epsilon_greedy(*args), ()
    return distributions.epsilon_greedy(q, epsilon, key), memory, ()


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Learn from samples of the replay."""

    def loss(*args: Any) -> tuple[jax.Array, jax.Array]:
        error = td_error(spec, config, *args)
        return optax.l2_loss(error), jnp.abs(error)

    return q_learner.update(loss, config, state, rollout, key)
