"""Mechanics of agents that learn an actor and critics from a replay.

The networks and the losses set the agents apart.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import networks, replay
from rljax.contracts import (
    ActorCriticConfig,
    DampedConfig,
    HasActor,
    HasReplay,
    Network,
    NetworkConfig,
    OptimizerConfig,
    ReplayAgentConfig,
    ReplayConfig,
    RunConfig,
    TargetRateConfig,
)
from rljax.learners import exploration, optimizers
from rljax.networks import distributions, layers
from rljax.replay import Windows, priority
from rljax.replay.priority import ReplayBatch
from rljax.types import (
    AgentConfig,
    Discrete,
    Extras,
    Leaf,
    Memory,
    Metrics,
    Obs,
    OptState,
    Params,
    Rollout,
    Spec,
)

S = TypeVar("S", bound=HasReplay)
More = TypeVar("More")


class Keyed(NamedTuple):
    """A transition, and a key for the actions that its loss draws."""

    window: Windows
    key: jax.Array  # [] typed key


# (params, transition) -> (loss [], absolute TD error [])
CriticLoss = Callable[[Params, Keyed], tuple[jax.Array, jax.Array]]


def validate(config: ReplayAgentConfig) -> None:
    """Raise ValueError naming a field out of range, its value and the range."""
    cfg.check_range(config, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
    cfg.check_range(config, "gamma", low=0.0, high=1.0)
    for name in ("target_rate", "noise_damping"):
        cfg.check_range(config, name, low=0.0, high=1.0, open_low=True)
    cfg.check_loop(config)
    cfg.check_count(config, "num_updates")
    cfg.check_sizes(config, "hidden_sizes")
    cfg.check_choice(config, "activation", tuple(layers.ACTIVATIONS))
    priority.validate(config)


def action_size(spec: Spec) -> int:
    """How many numbers an action has, D; 0 where actions are discrete."""
    return 0 if isinstance(spec.action, Discrete) else len(spec.action.low)


def example(spec: Spec) -> tuple[jax.Array, ...]:
    """A critic's inputs, zeros: observation `[1, ...]`, continuous action `[1, D]`."""
    obs = jnp.zeros((1, *spec.obs_shape), spec.obs_dtype)
    size = action_size(spec)
    return (obs, jnp.zeros((1, size), jnp.float32)) if size else (obs,)


def stochastic_actor(spec: Spec, config: NetworkConfig) -> Network:
    """Network of a policy: categorical, or Gaussian squashed by tanh."""
    if isinstance(spec.action, Discrete):
        return networks.Actor(
            obs_ndim=len(spec.obs_shape),
            action=spec.action,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            reading=spec.reading,
        )
    return networks.TanhGaussianActor(
        obs_ndim=len(spec.obs_shape),
        action=spec.action,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        reading=spec.reading,
    )


def critics(spec: Spec, config: NetworkConfig, size: int) -> Network:
    """Networks for the values `[C]` of an action, or `[C, A]` of all discrete ones."""
    if isinstance(spec.action, Discrete):
        one = functools.partial(
            networks.QNetwork,
            obs_ndim=len(spec.obs_shape),
            num_actions=spec.action.num_actions,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            reading=spec.reading,
        )
    else:
        one = functools.partial(
            networks.ContinuousQ,
            obs_ndim=len(spec.obs_shape),
            action=spec.action,
            hidden_sizes=config.hidden_sizes,
            activation=config.activation,
            reading=spec.reading,
        )
    return networks.Ensemble(network=one, size=size)


def memory(spec: Spec, config: AgentConfig, num_envs: int) -> Memory:
    """The exploration's noise `[N, D]`, none where an episode starts."""
    size = action_size(spec)
    return jnp.zeros((num_envs, size), jnp.float32) if size else ()


def next_noise(config: DampedConfig, memory: jax.Array, key: jax.Array) -> jax.Array:
    """The noise of the next step `[N, D]`, in the long run standard normal.

    The smaller `config.noise_damping`, the longer it keeps its direction; at 1 the
    noise of each step is independent. Consumes the key.
    """
    cfg.check_contract("actor_critic.next_noise", config, DampedConfig)
    damping = config.noise_damping
    return exploration.add_ornstein_uhlenbeck_noise(
        key=key,
        action=jnp.zeros_like(memory),
        noise_tm1=memory,
        damping=damping,
        stddev=jnp.sqrt(1.0 - (1.0 - damping) ** 2),
    )


def act(
    spec: Spec,
    config: AgentConfig,
    state: HasActor,
    memory: Memory,
    obs: Obs,
    key: jax.Array,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """Sample the policy, or take its mode (continuous: its mean before the tanh).

    `act` of an agent whose `state.actor` are a `stochastic_actor`'s parameters.
    """
    policy = stochastic_actor(spec, config).apply(state.actor, obs)
    if isinstance(spec.action, Discrete):
        sampled = distributions.sample(policy, key) if explore else policy.mode()
        return sampled, memory, ()
    noise = jnp.zeros_like(memory)
    if explore:
        memory = noise = next_noise(config, memory, key)
    action = distributions.squashed(policy, noise)
    return action.reshape(-1, *spec.action.shape), memory, ()


def init_replay(spec: Spec, config: ActorCriticConfig) -> replay.Replay:
    """An empty buffer; ValueError if the config lacks a field."""
    cfg.check_contract("actor_critic", config, ActorCriticConfig)
    return replay.init(
        spec,
        config.num_envs,
        config.capacity,
        prioritized=priority.keeps_priorities(config),
    )


def observe(config: AgentConfig, state: S, rollout: Rollout) -> S:
    """Store the rollout."""
    return state._replace(replay=replay.add(state.replay, rollout))


def learn(
    step: Callable[[jax.Array, S, jax.Array], tuple[S, Metrics]],
    config: RunConfig,
    state: S,
    *,
    key: jax.Array,
    times: int,
) -> tuple[S, Metrics]:
    """Learn from samples of the replay.

    Args:
      step: `(progress, state, key) -> (state, metrics)`, `progress` of training from
        0 to 1.
      config: the agent's.
      state: the agent's, with a `replay` and the number of rollouts learned from,
        `step`.
      key: `[]` typed key, consumed here.
      times: number of calls of `step`.

    Returns:
      The new state, and the mean of the metrics.
    """
    progress = optimizers.progress(config, state.step)
    one = functools.partial(step, progress)
    state, metrics = jax.lax.scan(one, state, jax.random.split(key, times))
    state = state._replace(step=cfg.next_count(state.step))
    return state, jax.tree.map(jnp.mean, metrics)


def sample(
    config: ReplayConfig,
    buffer: replay.Replay,
    key: jax.Array,
    *,
    progress: jax.Array,
    loss: CriticLoss,
    params: Params,
) -> ReplayBatch[Keyed]:
    """`priority.sample`, with a key for each transition.

    A large batch is scored with one key for all.
    """
    draw_key, score_key, key = jax.random.split(key, 3)

    def score(params: Params, window: Windows) -> tuple[jax.Array, jax.Array]:
        return loss(params, Keyed(window=window, key=score_key))

    batch = priority.sample(
        config, buffer, draw_key, progress=progress, loss=score, params=params
    )
    keys = jax.random.split(key, config.batch_size)
    return batch._replace(examples=Keyed(window=batch.examples, key=keys))


def critic_loss(errors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Loss of one transition, whose priority is the mean absolute TD error.

    Args:
      errors: `[C]` TD errors, one of each critic.

    Returns:
      Half the sum of squares and the mean size, `[]` each.
    """
    return optax.l2_loss(errors).sum(), jnp.abs(errors).mean()


def policy_gradient(
    loss: Callable[[Params, Obs, jax.Array], tuple[jax.Array, More]],
    params: Params,
    batch: ReplayBatch[Keyed],
    key: jax.Array,
) -> tuple[Params, jax.Array, More]:
    """Gradient of an actor's weighted mean loss.

    Args:
      loss: `(params, obs, key) -> (loss [], anything)` in one state.
      params: the actor's.
      batch: as returned by `sample`.
      key: `[]` typed key, consumed here.

    Returns:
      The gradient, the mean loss, and `[B]` of whatever `loss` returns beside the loss.
    """

    def mean(params: Params) -> tuple[jax.Array, More]:
        keys = jax.random.split(key, len(batch.weights))
        obs = batch.examples.window.obs
        values, more = jax.vmap(lambda x, key: loss(params, x, key))(obs, keys)
        return jnp.mean(batch.weights * values), more

    (value, more), grads = jax.value_and_grad(mean, has_aux=True)(params)
    return grads, value, more


def init_optimizer(config: OptimizerConfig, params: Params) -> OptState:
    """Adam's state for one network."""
    return optimizers.clipped_adam(config).init(params)


def adam_step(
    config: OptimizerConfig,
    progress: jax.Array,
    params: Params,
    *,
    grads: Params,
    opt_state: OptState,
    start_rate: Leaf | None = None,
) -> tuple[Params, OptState]:
    """One step of Adam for one network.

    Args:
      config: the agent's.
      progress: `[]` of training, from 0 to 1.
      params: the network's.
      grads: as `params`.
      opt_state: Adam's.
      start_rate: the network's learning rate at the start; None: the config's.

    Returns:
      The new parameters, and Adam's new state.
    """
    # Not one vector, as small networks have: XLA joins arrays on CPU by masked loads
    # beyond the short ones, which take milliseconds where no memory is mapped there.
    start = config.learning_rate if start_rate is None else start_rate
    rate = optimizers.annealed(config, progress, start)
    updates, opt_state = optimizers.clipped_adam(config).update(grads, opt_state)
    return optax.tree.add_scale(params, -rate, updates), opt_state


def follow(config: TargetRateConfig, params: Params, target_params: Params) -> Params:
    """Target networks, moved by `config.target_rate` to the online ones."""
    return optax.incremental_update(params, target_params, config.target_rate)
