"""Deep Q-learning. Mnih et al. (2015), https://doi.org/10.1038/nature14236.

Double: van Hasselt et al. (2016), https://arxiv.org/abs/1509.06461.
Dueling: Wang et al. (2016), https://arxiv.org/abs/1511.06581.
Munchausen: Vieillard et al. (2020), https://arxiv.org/abs/2007.14430.
Noisy: Fortunato et al. (2018), https://arxiv.org/abs/1706.10295.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import distributions, losses, networks, priority, replay
from rljax.replay import Windows
from rljax.types import Agent, Discrete, Metrics, Params, Rollout, Spec

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
        cfg.check_range(self, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
        cfg.check_range(self, "gamma", low=0.0, high=1.0)
        cfg.check_range(
            self, "epsilon_start", "epsilon_end", "epsilon_eval", low=0.0, high=1.0
        )
        fractions = ("exploration_fraction", "target_rate")
        cfg.check_range(self, *fractions, low=0.0, high=1.0, open_low=True)
        cfg.check_count(self, "total_steps", "num_envs", "rollout_length")
        cfg.check_range(self, "entropy_temperature", low=0.0, open_low=True)
        cfg.check_range(self, "munchausen_coefficient", low=0.0, high=1.0)
        cfg.check_count(self, "num_updates", "target_period")
        cfg.check_sizes(self, "hidden_sizes")
        cfg.check_choice(self, "activation", tuple(networks.ACTIVATIONS))
        priority.validate(self)
        if self.double and self.munchausen:
            raise ValueError("double=True: must be False with munchausen=True")


class State(NamedTuple):
    """What the agent learns, stores and counts."""

    params: Params  # of QNetwork
    target_params: Params  # an older copy
    opt_state: Any  # of Adam, over the parameters as one flat vector
    replay: replay.Replay
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
        config.noisy,
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
    q = functools.partial(apply, params, rngs={"noise": key})
    target_q = functools.partial(apply, bootstrap_params, rngs={"noise": target_key})
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


def optimizer(config: Config) -> optax.GradientTransformation:
    """Direction of the step; the learning rate comes on top."""
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(clip, optax.scale_by_adam())


def init(spec: Spec, config: Config, key: jax.Array) -> State:
    """Fresh network and optimiser, an empty replay."""
    obs = jnp.zeros((1, *spec.obs_shape), spec.obs_dtype)
    params = network(spec, config).init(key, obs)
    prioritized = priority.keeps_priorities(config)
    return State(
        params=params,
        target_params=jax.tree.map(jnp.copy, params),  # buffers of its own: donatable
        opt_state=optimizer(config).init(ravel_pytree(params)[0]),
        replay=replay.init(spec, config.num_envs, config.capacity, prioritized),
        step=jnp.zeros((), jnp.int32),
        num_updates=jnp.zeros((), jnp.int32),
    )


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
    noise = {"noise": noise_key} if explore and config.noisy else {}
    q = network(spec, config).apply(state.params, obs, rngs=noise)
    progress = state.step / (config.exploration_fraction * config.total_steps)
    span = config.epsilon_end - config.epsilon_start
    epsilon = config.epsilon_start + span * jnp.minimum(progress, 1.0)
    epsilon = jnp.where(config.noisy, 0.0, epsilon) if explore else config.epsilon_eval
    return distributions.epsilon_greedy(q, epsilon, key), memory, ()


def observe(config: Config, state: State, rollout: Rollout) -> State:
    """Store the rollout."""
    return state._replace(replay=replay.add(state.replay, rollout))


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Store the rollout, then learn from samples of the replay."""
    state = observe(config, state, rollout)
    flat, unravel = ravel_pytree(state.params)  # one vector: one kernel in Adam
    target_flat, _ = ravel_pytree(state.target_params)
    progress = jnp.minimum(state.step / config.total_steps, 1.0)
    rate = config.learning_rate * (1.0 - progress if config.anneal else 1.0)

    def step(carry: Any, key: jax.Array) -> tuple[Any, Metrics]:
        flat, target_flat, opt_state, buffer, count = carry
        sample_key, noise_key = jax.random.split(key)

        def loss(params: Params, window: Windows) -> tuple[jax.Array, jax.Array]:
            args = (params, unravel(target_flat), window, noise_key)
            error = td_error(spec, config, *args)
            return optax.l2_loss(error), jnp.abs(error)

        params = unravel(flat)
        batch = priority.sample(config, buffer, sample_key, progress, loss, params)
        new = priority.gradient(config, loss, params, batch)
        grads = ravel_pytree(new.mean)[0]
        updates, opt_state = optimizer(config).update(grads, opt_state)
        flat, count = optax.tree.add_scale(flat, -rate, updates), count + 1
        moves = (count % config.target_period == 0) * config.target_rate
        target_flat = target_flat + moves * (flat - target_flat)
        buffer = priority.store(buffer, batch, new.priorities)
        return (flat, target_flat, opt_state, buffer, count), {
            "loss": new.losses.mean()
        }

    start = (flat, target_flat, state.opt_state, state.replay, state.num_updates)
    end, metrics = jax.lax.scan(step, start, jax.random.split(key, config.num_updates))
    flat, target_flat, opt_state, buffer, count = end
    step_count = state.step + rollout.reward.size
    params, target_params = unravel(flat), unravel(target_flat)
    state = State(params, target_params, opt_state, buffer, step_count, count)
    return state, jax.tree.map(jnp.mean, metrics)
