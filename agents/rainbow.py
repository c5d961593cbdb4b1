"""Rainbow: six extensions of DQN. Hessel et al. (2018), https://arxiv.org/abs/1710.02298.

Categorical, double and dueling values, returns of several steps, prioritised replay
and noisy weights; `dqn` and `c51` have each of them as an option.
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
from rljax.networks import layers
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
    max_grad_norm: float = 1e3  # global norm at which gradients are clipped
    target_rate: float = 0.01  # how far the target moves to the online network, 1: copy
    priority_exponent: float = 0.5  # 0: uniform, 1: in proportion
    importance_exponent: float = 0.4  # grows to 1, which undoes the priorities' bias
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(10)
    rollout_length: int = cfg.static(1)  # steps per environment and iteration
    num_updates: int = cfg.static(1)  # gradient steps per iteration
    batch_size: int = cfg.static(128)
    capacity: int = cfg.static(100_000)  # transitions in the replay
    n_step: int = cfg.static(3)  # rewards before the bootstrap
    priority: str = cfg.static("td_error")  # the loss; or "grad_norm", "uniform"
    sampler: str = cfg.static("replay")  # or "large_batch": scored afresh
    large_batch_factor: int = cfg.static(4)  # large batch over batch size
    warmup_steps: int = cfg.static(10_000)  # stored before the first update
    target_period: int = cfg.static(1)  # gradient steps between target updates
    num_atoms: int = cfg.static(51)  # evenly spaced
    hidden_sizes: tuple[int, ...] = cfg.static((128, 128))
    activation: str = cfg.static("relu")
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        q_learner.validate(self)
        cfg.check_count(self, "num_atoms", low=2)
        cfg.check_range(self, "value_min", open_low=True)  # finite
        low, largest = self.value_min, float(jnp.finfo(jnp.float32).max)
        cfg.check_range(self, "value_max", low=low, high=largest, open_low=True)


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    q_learner.check_discrete("rainbow", spec)
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
        q_learner.check_discrete("rainbow", spec),
        config.hidden_sizes,
        config.activation,
        dueling=True,
        noisy=True,
        num_outputs=config.num_atoms,
        reading=spec.reading,
    )


def atoms(config: Config) -> jax.Array:
    """Returns that the logits stand for, `[num_atoms]`."""
    return jnp.linspace(config.value_min, config.value_max, config.num_atoms)


def means(config: Config, logits: jax.Array) -> jax.Array:
    """Mean return of each action: `[..., num_actions]`."""
    return jax.nn.softmax(logits) @ atoms(config)


def cross_entropy(
    spec: Spec,
    config: Config,
    params: Params,
    bootstrap_params: Params,
    window: Windows,
    key: jax.Array,
) -> jax.Array:
    """Cross-entropy of one transition's return distribution to its target, `[]`.

    The semi-gradient is the gradient with respect to `params` alone: what the
    target takes from `bootstrap_params` stays differentiable for meta-gradients.
    """
    key, target_key = jax.random.split(key)
    params = layers.with_noise(params, key, config.priority == "grad_norm")
    bootstrap_params = layers.with_noise(bootstrap_params, target_key)
    logits = functools.partial(network(spec, config).apply, params)
    target_logits = network(spec, config).apply(bootstrap_params, window.next_obs)
    reward, discount = priority.n_step_return(window, config.gamma)
    z = atoms(config)
    return losses.categorical_double_q_learning(
        *(z, logits(window.obs), window.action, reward, discount),
        *(z, target_logits, means(config, logits(window.next_obs))),
        stop="none",
    )


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
    """Greedy in the mean return: by noisy weights, in evaluation by their means."""
    params = layers.with_noise(state.params, key) if explore else state.params
    q = q_values(spec, config, state._replace(params=params), obs)
    return q.argmax(axis=-1).astype(jnp.int32), memory, ()


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Learn from samples of the replay."""

    def loss(*args: Any) -> tuple[jax.Array, jax.Array]:
        value = cross_entropy(spec, config, *args)
        return value, value  # the score is what learning minimises; section 4

    return q_learner.update(loss, config, state, rollout, key)
