"""Mechanics of agents that learn action values from a replay, with a target network.

`make` builds an agent from its `Head`: the network, the action values in its outputs,
and the loss of one transition. Noise in the weights, returns of several steps,
exploration, priorities and targets are the same for all of them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import replay
from rljax._loops import scan
from rljax.contracts import (
    ActionValueState,
    EpsilonConfig,
    Network,
    QAgentConfig,
    QConfig,
)
from rljax.learners import optimizers
from rljax.networks import distributions, layers, torsos
from rljax.replay import Windows, priority
from rljax.types import (
    Agent,
    AgentConfig,
    Discrete,
    Extras,
    Key,
    Memory,
    Metrics,
    MultiDiscrete,
    Obs,
    OptState,
    Params,
    Rollout,
    Spec,
    Torso,
)

# (params, bootstrap_params, window or sequence, key) -> (loss [], absolute TD error [])
WindowLoss = Callable[[Params, Params, Any, jax.Array], tuple[jax.Array, jax.Array]]
Outputs = Callable[..., jax.Array]  # of a network: (observation, *inputs) -> outputs
S = TypeVar("S", bound=ActionValueState)
Keys = tuple[jax.Array, jax.Array]  # [] typed key for the network, and for the target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QLearnerConfig:
    """Hyperparameters that Q-learners share; each adds its own."""

    learning_rate: float = cfg.rate(5e-4)  # of Adam
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    epsilon_start: float = 1.0  # chance of a uniform action at first
    epsilon_end: float = 0.02  # and after `exploration_fraction`
    exploration_fraction: float = 0.5  # of total_steps, over which epsilon falls
    epsilon_eval: float = 0.0  # in evaluation
    max_grad_norm: float = 1e3  # global norm at which gradients are clipped
    target_rate: float = cfg.rate(0.01, high=1.0)  # how far targets move, 1: copy
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
    hidden_sizes: tuple[int, ...] = cfg.static((128, 128))
    activation: str = cfg.static("relu")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        validate(self)
        validate_epsilon(self)


class QState(NamedTuple):
    """Networks, optimisers, replay and counts of the agent."""

    params: Params  # of the agent's network
    target_params: Params  # an older copy
    opt_state: OptState  # of Adam, over the parameters as one flat vector
    replay: replay.Replay
    step: jax.Array  # [] int32, rollouts learned from
    num_updates: jax.Array  # [] int32, gradient steps


class Step(NamedTuple):
    """One transition of n steps, or of fewer at an episode's end."""

    obs: Obs  # [*shape]
    action: jax.Array  # [] int32
    reward: jax.Array  # [] discounted sum of the rewards
    discount: jax.Array  # [] of what follows, 0 where the episode terminated
    next_obs: Obs  # [*shape]


class Head(NamedTuple):
    """The parts that set one Q-learner apart from another.

    Attributes:
      network: `(spec, config) -> module`.
      values: `(config, outputs) -> [..., A]`, the action values in the outputs.
      loss: `(config, online, target, step, keys) -> (loss [], absolute TD error [])`
        of one transition, where `online` and `target` map an observation to the
        outputs. The semi-gradient is the gradient in the parameters of `online`
        alone: what comes from `target` stays differentiable for meta-gradients.
      inputs: `config -> arrays` that the network takes behind the observation when
        the agent acts.
      noisy: `config -> bool`, whether noise in the weights explores; None: it cannot.
    """

    network: Callable[[Spec, Any], Network]
    values: Callable[[Any, jax.Array], jax.Array]
    loss: Callable[[Any, Outputs, Outputs, Step, Keys], tuple[jax.Array, jax.Array]]
    inputs: Callable[[Any], tuple[jax.Array, ...]] = lambda config: ()
    noisy: Callable[[Any], bool] | None = None


def make(name: str, spec: Spec, head: Head) -> Agent:
    """Make the agent for environments of `spec`.

    Args:
      name: the agent's, for errors.
      spec: of the environments.
      head: the agent's.

    Raises:
      ValueError: the actions are not discrete, or masked.
    """
    check_discrete(name, spec)

    def init_agent(config: AgentConfig, key: Key) -> QState:
        network, inputs = head.network(spec, config), head.inputs(config)
        return init(spec, config, network, key=key, inputs=inputs)

    return Agent(
        init=init_agent,
        memory=lambda config, num_envs: (),
        act=functools.partial(act, head, spec),
        observe=observe,
        update=functools.partial(update, head, spec),
        q_values=functools.partial(q_values, head, spec),
    )


def check_discrete(name: str, spec: Spec) -> None:
    """Raise unless actions can be enumerated.

    Raises:
      ValueError: the actions are not discrete, or masked; names the agent `name`.
    """
    if isinstance(spec.action, MultiDiscrete):
        raise ValueError(
            f"{name} values one discrete choice at a time, not {spec.action}: use ppo, "
            "a2c, impala, trpo, vmpo, awr or ppo_rnn"
        )
    if not isinstance(spec.action, Discrete):
        raise ValueError(f"{name} needs discrete actions, not {spec.action}")
    distributions.check_unmasked(name, spec)


def num_actions(spec: Spec) -> int:
    """The number of discrete actions."""
    assert isinstance(spec.action, Discrete)  # `make` has checked
    return spec.action.num_actions


def validate(config: QAgentConfig) -> None:
    """Raise ValueError naming a field out of range, its value and the range."""
    cfg.check_range(config, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
    cfg.check_range(config, "gamma", low=0.0, high=1.0)
    cfg.check_range(config, "target_rate", low=0.0, high=1.0, open_low=True)
    cfg.check_loop(config)
    cfg.check_count(config, "num_updates", "target_period")
    torsos.validate(config)
    priority.validate(config)


def validate_epsilon(config: EpsilonConfig) -> None:
    """The same for the fields of `epsilon`."""
    for name in ("epsilon_start", "epsilon_end", "epsilon_eval"):
        cfg.check_range(config, name, low=0.0, high=1.0)
    cfg.check_range(config, "exploration_fraction", low=0.0, high=1.0, open_low=True)


def epsilon(config: EpsilonConfig, step: jax.Array, explore: bool) -> jax.Array:
    """Chance of a uniform action: falls linearly, or `epsilon_eval` in evaluation."""
    names = ("epsilon_start", "epsilon_end", "epsilon_eval", "exploration_fraction")
    cfg.check_fields("q_learner.epsilon", config, *names)
    if not explore:
        return jnp.asarray(config.epsilon_eval)
    start, end = config.epsilon_start, config.epsilon_end
    return optimizers.exploration(config, step, start=start, end=end)


def init(
    spec: Spec,
    config: QConfig,
    network: Network,
    *,
    key: Key,
    inputs: tuple[jax.Array, ...] = (),
    memory: Memory = (),
) -> QState:
    """Fresh network and optimiser, an empty replay.

    The network takes a batch of observations and `inputs`; `memory` is the agent's.
    """
    cfg.check_contract("q_learner", config, QConfig)
    params = network.init(key, spec.zeros(1), *inputs)
    buffer = replay.init(
        spec,
        config.num_envs,
        config.capacity,
        prioritized=priority.keeps_priorities(config),
        memory=memory,
    )
    return QState(
        params=params,
        target_params=jax.tree.map(jnp.copy, params),  # buffers of its own: donatable
        opt_state=optimizers.clipped_adam(config).init(ravel_pytree(params)[0]),
        replay=buffer,
        step=jnp.zeros((), jnp.int32),
        num_updates=jnp.zeros((), jnp.int32),
    )


def q_values(
    head: Head, spec: Spec, config: AgentConfig, state: QState, obs: Obs
) -> jax.Array:
    """Action values `[..., A]` of observations `[..., *shape]`."""
    network = head.network(spec, config)
    return head.values(config, network.apply(state.params, obs, *head.inputs(config)))


def explore_values(
    head: Head,
    spec: Spec,
    config: AgentConfig,
    *,
    state: QState,
    obs: Obs,
    key: Key,
    explore: bool,
) -> tuple[jax.Array, jax.Array | float, jax.Array]:
    """Action values to act by, the chance of a uniform action, and a key to draw it.

    With noise in the weights there is no such chance; evaluation has one of its own.
    """
    chance = epsilon(config, state.step, explore)
    if head.noisy is not None:
        key, noise_key = jax.random.split(key)
        if explore and head.noisy(config):
            noisy = layers.with_noise(state.params, noise_key)
            state, chance = state._replace(params=noisy), 0.0
    return q_values(head, spec, config, state, obs), chance, key


def act(
    head: Head,
    spec: Spec,
    config: AgentConfig,
    state: QState,
    memory: Memory,
    obs: Obs,
    key: Key,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """Act epsilon-greedily, or by noisy weights."""
    q, chance, key = explore_values(
        head, spec, config, state=state, obs=obs, key=key, explore=explore
    )
    return distributions.epsilon_greedy(q, chance, key), memory, ()


def observe(
    config: AgentConfig, state: QState, rollout: Rollout, length: int = 1
) -> QState:
    """Store the rollout; `length` is the length of the sequences to be drawn."""
    return state._replace(replay=replay.add(state.replay, rollout, length=length))


def transition_loss(head: Head, spec: Spec, config: AgentConfig) -> WindowLoss:
    """The head's loss as a function of parameters, with noise in the weights if any."""
    apply = head.network(spec, config).apply

    def loss(
        params: Params, bootstrap_params: Params, window: Windows, key: Key
    ) -> tuple[jax.Array, jax.Array]:
        key, target_key = jax.random.split(key)
        factored = config.priority == "grad_norm"
        noisy = layers.with_noise(params, key, factored)
        noisy_target = layers.with_noise(bootstrap_params, target_key)
        reward, discount = priority.n_step_return(window, config.gamma)
        step = Step(
            obs=window.obs,
            action=window.action,
            reward=reward,
            discount=discount,
            next_obs=window.next_obs,
        )
        online = functools.partial(apply, noisy)
        target = functools.partial(apply, noisy_target)
        return head.loss(config, online, target, step, (key, target_key))

    return loss


def update(
    head: Head,
    spec: Spec,
    config: AgentConfig,
    state: QState,
    rollout: Rollout,
    key: Key,
) -> tuple[QState, Metrics]:
    """Learn from samples of the replay."""
    del rollout  # the replay holds it already
    return learn(transition_loss(head, spec, config), config, state, key=key)


def learn(
    loss: WindowLoss,
    config: QConfig,
    state: S,
    *,
    key: Key,
    length: int | None = None,
) -> tuple[S, Metrics]:
    """Learn from samples of the replay.

    Args:
      loss: of one transition or sequence. The gradient is the one with respect to its
        first argument alone: what comes from the second stays differentiable for
        meta-gradients.
      config: the agent's.
      state: the agent's.
      key: `[]` typed key, consumed here.
      length: of the sequences to learn from; None: windows of `config.n_step` steps.

    Returns:
      The new state, and the mean loss before weighting.
    """
    flat, unravel = ravel_pytree(state.params)  # one vector: one kernel in Adam
    target_flat, _ = ravel_pytree(state.target_params)
    progress = optimizers.progress(config, state.step)
    optimizer = optimizers.clipped_adam(config)
    rate = optimizers.annealed(config, progress, config.learning_rate)

    def step(carry: Any, key: Key) -> tuple[Any, Metrics]:
        flat, target_flat, opt_state, buffer, count = carry
        sample_key, loss_key = jax.random.split(key)

        def of_online(params: Params, window: Any) -> tuple[jax.Array, jax.Array]:
            return loss(params, unravel(target_flat), window, loss_key)

        params = unravel(flat)
        batch = priority.sample(
            config,
            buffer,
            sample_key,
            progress=progress,
            loss=of_online,
            params=params,
            length=length,
        )
        new = priority.gradient(config, of_online, params, batch=batch)
        grads = ravel_pytree(new.mean)[0]
        updates, opt_state = optimizer.update(grads, opt_state)
        flat = optax.tree.add_scale(flat, -rate, updates)
        count += 1
        moves = (count % config.target_period == 0) * config.target_rate
        target_flat = target_flat + moves * (flat - target_flat)
        buffer = priority.store(buffer, batch, new.priorities)
        carry = (flat, target_flat, opt_state, buffer, count)
        return carry, {"loss": new.losses.mean()}

    count = cfg.with_room(state.num_updates, config.num_updates, config.target_period)
    start = (flat, target_flat, state.opt_state, state.replay, count)
    end, metrics = scan(step, start, jax.random.split(key, config.num_updates))
    flat, target_flat, opt_state, buffer, count = end
    new_state = state._replace(
        params=unravel(flat),
        target_params=unravel(target_flat),
        opt_state=opt_state,
        replay=buffer,
        step=cfg.next_count(state.step),
        num_updates=count,
    )
    return new_state, jax.tree.map(jnp.mean, metrics)
