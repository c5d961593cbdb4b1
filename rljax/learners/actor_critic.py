"""Mechanics of agents that learn an actor and critics from a replay.

The networks and the losses set the agents apart.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses, networks, replay
from rljax._distrax import distrax
from rljax._loops import Packing, scan
from rljax.contracts import (
    ActorCriticConfig,
    DampedConfig,
    HasActor,
    HasCritic,
    HasReplay,
    LearnFn,
    LearningState,
    Network,
    NetworkConfig,
    OptimizerConfig,
    PolicyNetworkConfig,
    ReplayAgentConfig,
    ReplayConfig,
    TargetRateConfig,
)
from rljax.learners import exploration, optimizers
from rljax.networks import distributions, torsos
from rljax.replay import Windows, priority
from rljax.replay.priority import ReplayBatch
from rljax.types import (
    Agent,
    AgentConfig,
    Box,
    Discrete,
    Extras,
    InitFn,
    Key,
    Leaf,
    Memory,
    Metrics,
    MultiDiscrete,
    Obs,
    Params,
    Policy,
    PolicyFn,
    Rollout,
    Spec,
)

S = TypeVar("S", bound=HasReplay)
More = TypeVar("More")
SizeFn = Callable[[AgentConfig], int]  # of a config


class Keyed(NamedTuple):
    """A transition, and a key for the actions that its loss draws."""

    window: Windows
    key: jax.Array  # [] typed key


Networks = dict[str, Params]  # by name, as their fields in the agent's state
# (params, transition) -> TD errors [C], one of each critic
TdErrors = Callable[[Params, Keyed], jax.Array]
CriticLoss = priority.ScoredLoss[Keyed]
# (params, observation, key) -> (loss [], anything)
ActorLoss = Callable[[Params, Obs, jax.Array], tuple[jax.Array, More]]


def make(
    spec: Spec, init: InitFn, learn: LearnFn, *, times: SizeFn, size: SizeFn
) -> Agent:
    """Make an agent that learns from samples of its replay.

    Args:
      spec: of the environments.
      init: the agent's.
      learn: called `times` for each rollout.
      times: `config -> int`.
      size: `config -> int`, how many critics there are.

    Returns:
      An agent with a `stochastic_actor` that learns along the slope of action values.
    """

    def update(
        config: AgentConfig, state: HasReplay, rollout: Rollout, key: Key
    ) -> tuple[HasReplay, Metrics]:
        del rollout  # the replay holds it already
        progress = optimizers.progress(config, state.step)
        step = functools.partial(learn, config, progress)
        state, metrics = scan(step, state, jax.random.split(key, times(config)))
        state = state._replace(step=cfg.next_count(state.step))
        return state, jax.tree.map(jnp.mean, metrics)

    return Agent(
        init=init,
        memory=functools.partial(memory, spec),
        act=functools.partial(act, spec),
        observe=observe,
        update=update,
        policy=functools.partial(policy, spec),
        action_values=functools.partial(action_values, spec, size),
        policy_gradient="pathwise",
    )


def validate(config: ReplayAgentConfig) -> None:
    """Raise ValueError naming a field out of range, its value and the range."""
    cfg.check_range(config, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
    cfg.check_range(config, "gamma", low=0.0, high=1.0)
    for name in ("target_rate", "noise_damping"):
        cfg.check_range(config, name, low=0.0, high=1.0, open_low=True)
    cfg.check_loop(config)
    cfg.check_count(config, "num_updates")
    torsos.validate(config)
    priority.validate(config)


def box(spec: Spec) -> Box:
    """The continuous actions."""
    assert isinstance(spec.action, Box)  # `make` has checked
    return spec.action


def action_size(spec: Spec) -> int:
    """The size D of an action; 0 where actions are discrete."""
    return len(spec.action.low) if isinstance(spec.action, Box) else 0


def check_action(name: str, spec: Spec) -> None:
    """Raise unless actions are one discrete choice or have finite bounds.

    Raises:
      ValueError: names the agent `name` and the actions.
    """
    if isinstance(spec.action, MultiDiscrete):
        raise ValueError(
            f"{name} cannot take several choices at once, {spec.action}: use ppo, a2c, "
            "impala, trpo, vmpo, awr or ppo_rnn"
        )
    if isinstance(spec.action, Box):
        distributions.check_bounded(name, spec)


def example(spec: Spec) -> tuple[Obs, ...]:
    """A critic's inputs, zeros: observation `[1, ...]`, continuous action `[1, D]`."""
    obs, size = spec.zeros(1), action_size(spec)
    return (obs, jnp.zeros((1, size), jnp.float32)) if size else (obs,)


def stochastic_actor(spec: Spec, config: PolicyNetworkConfig) -> Network:
    """Network of a policy: categorical, or Gaussian squashed by tanh."""
    body = networks.policy_body(spec, config)
    if isinstance(spec.action, Discrete):
        return networks.Actor(body=body, action=spec.action)
    return networks.TanhGaussianActor(body=body, action=box(spec))


def critics(spec: Spec, config: NetworkConfig, size: int) -> Network:
    """Networks for the values `[C]` of an action, or `[C, A]` of all discrete ones."""
    body = networks.body(spec, config)
    if isinstance(spec.action, Discrete):
        one = functools.partial(
            networks.QNetwork, body=body, num_actions=spec.action.num_actions
        )
    else:
        one = functools.partial(networks.ContinuousQ, body=body, action=box(spec))
    return networks.Ensemble(network=one, size=size)


def policy(
    spec: Spec, config: PolicyNetworkConfig, state: HasActor, obs: Obs
) -> Policy:
    """The policy at observations `[..., *shape]`: an agent's `policy`."""
    return stochastic_actor(spec, config).apply(state.actor, obs)


def deterministic(network: Callable[[AgentConfig], Network]) -> PolicyFn:
    """Make an agent's `policy` of a network that gives one action, `state.actor`'s."""

    def policy(config: AgentConfig, state: HasActor, obs: Obs) -> distrax.Deterministic:
        return distrax.Deterministic(network(config).apply(state.actor, obs))

    return policy


def action_values(
    spec: Spec,
    size: SizeFn,
    config: AgentConfig,
    state: HasCritic,
    obs: Obs,
    action: jax.Array,
) -> jax.Array:
    """Values `[C, B]` of actions `[B]` or `[B, D]`: an agent's `action_values`."""
    network: Any = critics(spec, config, size(config))
    if not isinstance(spec.action, Discrete):
        return network.apply(state.critic, obs, action)
    every = network.apply(state.critic, obs)
    return jax.vmap(losses.batched_index, (0, None))(every, action)


def memory(spec: Spec, config: AgentConfig, num_envs: int) -> Memory:
    """The exploration's noise `[N, D]`, none where an episode starts."""
    size = action_size(spec)
    return jnp.zeros((num_envs, size), jnp.float32) if size else ()


def next_noise(config: DampedConfig, memory: jax.Array, key: Key) -> jax.Array:
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
    key: Key,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """Sample the policy, or take its mode (continuous: its mean before the tanh).

    `act` of an agent whose `state.actor` are a `stochastic_actor`'s parameters.
    """
    chosen = policy(spec, config, state, obs)
    if isinstance(spec.action, Discrete):
        sampled = distributions.sample(chosen, key) if explore else chosen.mode()
        return sampled, memory, ()
    noise = jnp.zeros_like(memory)
    if explore:
        memory = noise = next_noise(config, memory, key)
    action = distributions.squashed(chosen, noise)
    return action.reshape(-1, *box(spec).shape), memory, ()


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


def sample(
    config: ReplayConfig,
    buffer: replay.Replay,
    key: Key,
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


def critic_loss(td_errors: TdErrors) -> CriticLoss:
    """The loss of one transition, with the mean absolute TD error as its score."""

    def loss(params: Params, transition: Keyed) -> tuple[jax.Array, jax.Array]:
        errors = td_errors(params, transition)
        return optax.l2_loss(errors).sum(), jnp.abs(errors).mean()

    return loss


def critic_gradient(
    config: ReplayConfig,
    buffer: replay.Replay,
    key: Key,
    *,
    progress: jax.Array,
    td_errors: TdErrors,
    params: Params,
) -> tuple[ReplayBatch[Keyed], priority.Gradient]:
    """Sample transitions, and take the critics' gradient on them.

    Args:
      config: the agent's.
      buffer: its replay, not empty.
      key: `[]` typed key, consumed here.
      progress: `[]` of training, from 0 to 1.
      td_errors: of one transition, `[C]`.
      params: the critics'.

    Returns:
      The transitions, and the gradient with new priorities.
    """
    loss = critic_loss(td_errors)
    batch = sample(config, buffer, key, progress=progress, loss=loss, params=params)
    return batch, priority.gradient(config, loss, params, batch=batch)


class Gradients(NamedTuple, Generic[More]):
    """Of critics and actor, from the same transitions and the same parameters."""

    batch: ReplayBatch[Keyed]
    critic: priority.Gradient
    actor: Params
    actor_loss: jax.Array  # [] mean
    more: More  # [B, ...] of each transition, beside the actor's loss


def gradients(
    config: ReplayConfig,
    state: LearningState,
    key: Key,
    *,
    progress: jax.Array,
    td_errors: TdErrors,
    actor_loss: ActorLoss[More],
) -> Gradients[More]:
    """Sample transitions, and take both gradients on them.

    Args:
      config: the agent's.
      state: the agent's.
      key: `[]` typed key, consumed here.
      progress: `[]` of training, from 0 to 1.
      td_errors: of one transition, `[C]`.
      actor_loss: as in `policy_gradient`.
    """
    sample_key, actor_key = jax.random.split(key)
    batch, critic = critic_gradient(
        config,
        state.replay,
        sample_key,
        progress=progress,
        td_errors=td_errors,
        params=state.critic,
    )
    actor, value, more = policy_gradient(actor_loss, state.actor, batch, actor_key)
    return Gradients(
        batch=batch, critic=critic, actor=actor, actor_loss=value, more=more
    )


def policy_gradient(
    loss: ActorLoss[More], params: Params, batch: ReplayBatch[Keyed], key: Key
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


def init_networks(spec: Spec, actor: Network, critic: Network, key: Key) -> Networks:
    """Fresh parameters of an actor and of critics, by name."""
    actor_key, critic_key = jax.random.split(key)
    inputs = example(spec)
    return {
        "actor": actor.init(actor_key, inputs[0]),
        "critic": critic.init(critic_key, *inputs),
    }


def init_optimizers(config: OptimizerConfig, networks: Networks) -> Networks:
    """Adam's state for each network, over its small arrays as one vector."""
    optimizer = optimizers.clipped_adam(config)
    return {
        name: optimizer.init(Packing(params).pack(params))
        for name, params in networks.items()
    }


def adam_step(
    config: OptimizerConfig,
    progress: jax.Array,
    networks: Networks,
    *,
    grads: Networks,
    opt_states: Networks,
    rates: Mapping[str, Leaf] | None = None,
) -> tuple[Networks, Networks]:
    """One step of Adam for each network.

    Args:
      config: the agent's.
      progress: `[]` of training, from 0 to 1.
      networks: to move.
      grads: of the same names.
      opt_states: of the same names, as returned by `init_optimizers`; others stay.
      rates: learning rates at the start, where they are not the config's.

    Returns:
      The new networks, and all of Adam's states.
    """
    optimizer = optimizers.clipped_adam(config)
    rates = rates or {}
    new, opt_states = dict(networks), dict(opt_states)
    # Only small arrays in one vector: XLA joins long ones on CPU by masked loads beyond
    # the short ones, which take milliseconds where no memory is mapped there.
    for name, params in networks.items():
        start = rates.get(name, config.learning_rate)
        rate = optimizers.annealed(config, progress, start)
        packing = Packing(params)
        updates: Any
        updates, opt_states[name] = optimizer.update(
            packing.pack(grads[name]), opt_states[name]
        )
        new[name] = optax.tree.add_scale(params, -rate, packing.unpack(updates))
    return new, opt_states


def follow(config: TargetRateConfig, params: Params, target_params: Params) -> Params:
    """Target networks, moved by `config.target_rate` to the online ones."""
    return optax.incremental_update(params, target_params, config.target_rate)
