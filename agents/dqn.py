"""Deep Q-learning. Mnih et al. (2015), https://doi.org/10.1038/nature14236.

Double: van Hasselt et al. (2016), https://arxiv.org/abs/1509.06461.
Dueling: Wang et al. (2016), https://arxiv.org/abs/1511.06581.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import distributions, losses, networks, replay
from rljax.types import Agent, Discrete, Metrics, Params, Rollout, Spec, Transition

PRESETS: dict[str, dict[str, Any]] = {}


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
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(10)
    rollout_length: int = cfg.static(1)  # steps per environment and iteration
    num_updates: int = cfg.static(1)  # gradient steps per iteration
    batch_size: int = cfg.static(128)
    capacity: int = cfg.static(100_000)  # transitions in the replay
    warmup_steps: int = cfg.static(10_000)  # stored before the first update
    target_period: int = cfg.static(1)  # gradient steps between target updates
    hidden_sizes: tuple[int, ...] = cfg.static((128, 128))
    activation: str = cfg.static("relu")
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    double: bool = cfg.static(False)  # select the next action by the online network
    dueling: bool = cfg.static(False)

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        cfg.check_range(self, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
        cfg.check_range(self, "gamma", low=0.0, high=1.0)
        cfg.check_range(
            self, "epsilon_start", "epsilon_end", "epsilon_eval", low=0.0, high=1.0
        )
        fractions = ("exploration_fraction", "target_rate")
        cfg.check_range(self, *fractions, low=0.0, high=1.0, open_low=True)
        cfg.check_count(self, "total_steps", "num_envs", "rollout_length")
        cfg.check_count(self, "num_updates", "batch_size", "capacity", "warmup_steps")
        cfg.check_count(self, "target_period")
        cfg.check_sizes(self, "hidden_sizes")
        cfg.check_choice(self, "activation", tuple(networks.ACTIVATIONS))
        if self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps}: must be below "
                f"total_steps={self.total_steps}"
            )
        steps = self.num_envs * self.rollout_length
        if self.capacity % steps:
            raise ValueError(
                f"capacity={self.capacity}: must be a multiple of "
                f"num_envs * rollout_length = {steps}"
            )


class State(NamedTuple):
    """What the agent learns, stores and counts."""

    params: Params  # of QNetwork
    target_params: Params  # an older copy
    opt_state: Any  # of Adam, over the parameters as one flat vector
    replay: replay.Replay  # of Transition
    step: jax.Array  # [] int32, environment steps learned from
    num_updates: jax.Array  # [] int32, gradient steps


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    if not isinstance(spec.action, Discrete):
        raise ValueError(f"dqn needs discrete actions, not {spec.action}")
    return Agent(
        init=functools.partial(init, spec),
        memory=lambda config, num_envs: (),
        act=functools.partial(act, spec),
        observe=observe,
        update=functools.partial(update, spec),
    )


def network(spec: Spec, config: Config) -> Any:
    """The action values' network; `spec.action` is discrete."""
    assert isinstance(spec.action, Discrete)
    return networks.QNetwork(
        len(spec.obs_shape),
        spec.action.num_actions,
        config.hidden_sizes,
        config.activation,
        config.dueling,
    )


def td_error(
    spec: Spec, config: Config, params: Params, bootstrap_params: Params, t: Transition
) -> jax.Array:
    """Temporal-difference error of one transition, `[]`.

    The semi-gradient is the gradient with respect to `params` alone: what the
    target takes from `bootstrap_params` stays differentiable for meta-gradients.
    """
    q = network(spec, config).apply
    discount = config.gamma * (1.0 - t.terminated)
    args = (q(params, t.obs), t.action, t.reward, discount)
    q_t = q(bootstrap_params, t.next_obs)
    if config.double:
        q_t_selector = q(params, t.next_obs)
        return losses.double_q_learning(*args, q_t, q_t_selector, stop="none")
    return losses.q_learning(*args, q_t, stop="none")


def optimizer(config: Config) -> optax.GradientTransformation:
    """Direction of the step; the learning rate comes on top."""
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(clip, optax.scale_by_adam())


def init(spec: Spec, config: Config, key: jax.Array) -> State:
    """Fresh network and optimiser, an empty replay."""
    obs = jnp.zeros(spec.obs_shape, spec.obs_dtype)
    params = network(spec, config).init(key, obs[None])
    opt_state = optimizer(config).init(ravel_pytree(params)[0])
    flag = jnp.zeros((), bool)
    action, reward = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    example = Transition(obs, action, reward, flag, flag, obs)
    buffer = replay.init(example, config.capacity)
    target_params = jax.tree.map(jnp.copy, params)  # buffers of its own: donatable
    counts = (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))
    return State(params, target_params, opt_state, buffer, *counts)


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Any,
    obs: Any,
    key: Any,
    explore: bool,
) -> tuple[jax.Array, Any, Any]:
    """Epsilon-greedy, with an epsilon of its own in evaluation."""
    progress = state.step / (config.exploration_fraction * config.total_steps)
    span = config.epsilon_end - config.epsilon_start
    epsilon = config.epsilon_start + span * jnp.minimum(progress, 1.0)
    epsilon = epsilon if explore else config.epsilon_eval
    q = network(spec, config).apply(state.params, obs)
    return distributions.epsilon_greedy(q, epsilon, key), memory, ()


def observe(config: Config, state: State, rollout: Rollout) -> State:
    """Store the rollout."""
    batch = Transition(*rollout[: len(Transition._fields)])
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    return state._replace(replay=replay.add(state.replay, batch))


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Store the rollout, then learn from samples of the replay."""
    state = observe(config, state, rollout)
    flat, unravel = ravel_pytree(state.params)  # one vector: one kernel in Adam
    target_flat, _ = ravel_pytree(state.target_params)
    progress = jnp.minimum(state.step / config.total_steps, 1.0)
    rate = config.learning_rate * (1.0 - progress if config.anneal else 1.0)

    def loss(flat: jax.Array, target_params: Params, batch: Transition) -> Any:
        error = functools.partial(td_error, spec, config, unravel(flat), target_params)
        errors = jax.vmap(error)(batch)
        return optax.l2_loss(errors).mean(), jnp.abs(errors).mean()

    def step(carry: Any, key: jax.Array) -> tuple[Any, Metrics]:
        flat, target_flat, opt_state, count = carry
        batch = replay.sample(state.replay, key, config.batch_size)
        (value, error), grads = jax.value_and_grad(loss, has_aux=True)(
            flat, unravel(target_flat), batch
        )
        updates, opt_state = optimizer(config).update(grads, opt_state)
        flat, count = optax.tree.add_scale(flat, -rate, updates), count + 1
        moves = (count % config.target_period == 0) * config.target_rate
        target_flat = target_flat + moves * (flat - target_flat)
        metrics = {"loss": value, "abs_td_error": error}
        return (flat, target_flat, opt_state, count), metrics

    start = (flat, target_flat, state.opt_state, state.num_updates)
    keys = jax.random.split(key, config.num_updates)
    end, metrics = jax.lax.scan(step, start, keys)
    flat, target_flat, opt_state, count = end
    state = state._replace(
        params=unravel(flat),
        target_params=unravel(target_flat),
        opt_state=opt_state,
        step=state.step + rollout.reward.size,
        num_updates=count,
    )
    return state, jax.tree.map(jnp.mean, metrics)
