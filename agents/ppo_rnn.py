"""Proximal policy optimisation with memory. Schulman et al. (2017).

https://arxiv.org/abs/1707.06347; burn-in of the stored memory: Kapturowski et al.
(2019), https://openreview.net/forum?id=r1lyTjAqYX.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import networks, prng
from rljax.learners import on_policy, optimizers
from rljax.networks import distributions
from rljax.networks.recurrent import Recurrent, recall
from rljax.running.sharding import side_by_side
from rljax.types import (
    Agent,
    Extras,
    Metrics,
    Obs,
    OptState,
    Params,
    Rollout,
    Spec,
)

PRESETS: dict[str, cfg.Preset] = {
    "MemoryChain-bsuite": cfg.Preset(
        dict(total_steps=200_000), env_params=(dict(memory_length=15),)
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 1e-3  # of Adam
    gamma: float = 0.99  # discount, cut at termination
    lambda_: float = 0.95  # trace decay of the advantages, cut at any end
    clip_epsilon: float = 0.2  # of the probability ratio
    entropy_cost: float = 0.01  # weight of the entropy bonus
    max_grad_norm: float = 0.5  # where each network's gradient is clipped
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(128)  # steps per environment and update
    sequence_length: int = cfg.static(32)  # steps that gradients go back at most
    burn_in: int = cfg.static(0)  # steps before them that bring the memory up to date
    num_epochs: int = cfg.static(4)  # passes over each rollout
    num_minibatches: int = cfg.static(4)  # gradient steps per pass
    hidden_sizes: tuple[int, ...] = cfg.static((64,))  # of each, before the memory
    memory_size: int = cfg.static(64)  # units of each LSTM
    activation: str = cfg.static("tanh")
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    normalize_advantages: bool = cfg.static(True)  # per minibatch

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        cfg.check_range(self, "lambda_", low=0.0, high=1.0)
        cfg.check_range(self, "entropy_cost", low=0.0)
        cfg.check_range(self, "clip_epsilon", low=0.0, open_low=True)
        counts = ("num_epochs", "num_minibatches", "memory_size", "sequence_length")
        cfg.check_count(self, *counts)
        cfg.check_count(self, "burn_in", low=0)
        steps = self.rollout_length
        cfg.check_divides(self, "sequence_length", steps, "rollout_length")
        sequences = self.num_envs * steps // self.sequence_length
        what = "num_envs * rollout_length / sequence_length"
        cfg.check_divides(self, "num_minibatches", sequences, what)
        if self.burn_in > steps:
            what = f"must be at most rollout_length = {steps}"
            raise ValueError(f"burn_in={self.burn_in}: {what}")


# (spec, config, parameters, parameters for the burn-in, batch) -> (loss [], metrics)
Loss = Callable[[Spec, Any, Params, Params, Any], tuple[jax.Array, Metrics]]


class Pair(NamedTuple):
    """Of the policy and of the value, which share nothing."""

    actor: Any
    critic: Any


class State(NamedTuple):
    """What the agent learns and counts."""

    actor: Params
    critic: Params
    opt_states: Pair  # Adam over each network's parameters as one flat vector
    past: Any  # the last rollout's end, `[burn_in, N, ...]`; () without burn-in
    step: jax.Array  # [] int32, rollouts learned from


class Past(NamedTuple):
    """What memories were made of; time-major."""

    obs: jax.Array  # [T, N, ...]
    ended: jax.Array  # [T, N] bool, whether the episode ended with the step
    memory: Pair  # [T, N, 2 * memory_size] before it, as when it was acted on


class Sequences(NamedTuple):
    """Steps in a row with what their losses need; L is the sequence's length."""

    obs: jax.Array  # [B, burn_in + L, ...]
    start: jax.Array  # [B, burn_in + L] bool
    memory: Pair  # [B, 2 * memory_size] before the first
    action: jax.Array  # [B, L] or [B, L, *shape]
    log_prob: jax.Array  # [B, L] of the action, when it was taken
    advantage: jax.Array  # [B, L]
    target: jax.Array  # [B, L] return that the value is to predict


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`; ValueError for masked actions."""
    distributions.check_unmasked("ppo_rnn", spec)
    return Agent(
        init=functools.partial(init, spec),
        memory=memory,
        act=functools.partial(act, spec),
        observe=lambda config, state, rollout: state,
        update=functools.partial(update, spec),
        parts=2,
    )


def nets(spec: Spec, config: Config) -> Pair:
    """The networks."""
    network = functools.partial(
        Recurrent,
        len(spec.obs_shape),
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        memory_size=config.memory_size,
        reading=spec.reading,
    )
    return Pair(
        actor=network(head=networks.PolicyHead(spec.action)),
        critic=network(head=networks.ValueHead()),
    )


def memory(config: Config, num_envs: int) -> Pair:
    """The memories of `num_envs` episodes that start."""
    zeros = jnp.zeros((num_envs, 2 * config.memory_size), jnp.float32)
    return Pair(actor=zeros, critic=zeros)


def init(spec: Spec, config: Config, key: jax.Array) -> State:
    """Fresh networks and optimisers."""
    obs = jnp.zeros((config.num_envs, *spec.obs_shape), spec.obs_dtype)
    fresh, both = memory(config, config.num_envs), nets(spec, config)
    actor_key, critic_key = jax.random.split(key)
    actor_params = both.actor.init(actor_key, obs[:1], fresh.actor[:1])
    critic_params = both.critic.init(critic_key, obs[:1], fresh.critic[:1])
    optimizer = optimizers.clipped_adam(config, on_policy.EPS)
    ended = jnp.ones(len(obs), bool)
    past = [Past(obs=obs, ended=ended, memory=fresh)] * config.burn_in
    return State(
        actor=actor_params,
        critic=critic_params,
        opt_states=Pair(
            actor=optimizer.init(ravel_pytree(actor_params)[0]),
            critic=optimizer.init(ravel_pytree(critic_params)[0]),
        ),
        past=jax.tree.map(lambda *x: jnp.stack(x), *past) if past else (),
        step=jnp.zeros((), jnp.int32),
    )


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Pair,
    obs: Obs,
    key: jax.Array,
    explore: bool,
) -> tuple[jax.Array, Pair, Extras]:
    """Sample the policy, with the log-probability; or take its mode."""
    actor, critic = nets(spec, config)
    policy, new = actor.apply(state.actor, obs, memory.actor)
    if not explore:  # the value is not needed
        return policy.mode(), memory._replace(actor=new), ()
    action = distributions.sample(policy, key)
    _, other = critic.apply(state.critic, obs, memory.critic)
    return action, Pair(actor=new, critic=other), policy.log_prob(action)


def outputs(
    config: Config,
    net: Recurrent,
    params: Params,
    *,
    burn_in_params: Params,
    memory: jax.Array,
    batch: Sequences,
) -> Any:
    """The outputs of a network for sequences, `[L, B]`, after a burn-in."""
    burn_in = config.burn_in
    obs, start = (jnp.swapaxes(x, 0, 1) for x in (batch.obs, batch.start))
    memory = recall(net, burn_in_params, obs[:burn_in], start[:burn_in], memory)
    found, _ = net.apply(
        params, obs[burn_in:], start[burn_in:], memory, method="unroll"
    )
    return found


def actor_loss(
    spec: Spec, config: Config, params: Params, burn_in_params: Params, batch: Sequences
) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate less the entropy bonus, mean over sequences."""
    policy = outputs(
        config,
        nets(spec, config).actor,
        params,
        burn_in_params=burn_in_params,
        memory=batch.memory.actor,
        batch=batch,
    )
    return on_policy.clipped_policy_loss(
        config,
        policy,
        jnp.swapaxes(batch.action, 0, 1),
        log_prob=batch.log_prob.T,
        adv=batch.advantage.T,
    )


def critic_loss(
    spec: Spec, config: Config, params: Params, burn_in_params: Params, batch: Sequences
) -> tuple[jax.Array, Metrics]:
    """Half the squared error of the return's prediction, mean over sequences."""
    value = outputs(
        config,
        nets(spec, config).critic,
        params,
        burn_in_params=burn_in_params,
        memory=batch.memory.critic,
        batch=batch,
    )
    loss = optax.l2_loss(value.T, batch.target).mean()
    return loss, {"value_loss": loss}


def prepare(
    spec: Spec, config: Config, state: State, rollout: Rollout
) -> tuple[Sequences, Any]:
    """A rollout as sequences, and its end, the past of the next one's."""
    # Each observation and true successor is valued with the memory of that time.
    value_of = functools.partial(nets(spec, config).critic.apply, state.critic)
    value, after = value_of(rollout.obs, rollout.memory.critic)
    next_value, _ = value_of(rollout.next_obs, after)
    adv = on_policy.from_values(
        config, rollout, value, v_t=next_value, lambda_=config.lambda_
    )
    length, burn_in = config.sequence_length, config.burn_in
    ended = rollout.terminated | rollout.truncated
    steps = Past(obs=rollout.obs, ended=ended, memory=rollout.memory)
    if burn_in:
        steps = jax.tree.map(lambda *x: jnp.concatenate(x), state.past, steps)
    # Where the very first step starts an episode, its memory is fresh already.
    start = jnp.concatenate([jnp.zeros_like(ended[:1]), steps.ended[:-1]])
    first = jnp.arange(0, len(ended), length)

    def cut(x: jax.Array, length: int) -> jax.Array:
        """`[T, N, ...]` to `[T / L * N, length, ...]`."""
        x = jnp.moveaxis(x[first[:, None] + jnp.arange(length)], 2, 1)
        return x.reshape(-1, *x.shape[2:])

    sequences = Sequences(
        obs=cut(steps.obs, burn_in + length),
        start=cut(start, burn_in + length),
        memory=jax.tree.map(lambda x: cut(x, 1)[:, 0], steps.memory),
        action=cut(rollout.action, length),
        log_prob=cut(rollout.extras, length),
        advantage=cut(adv, length),
        target=cut(adv + value, length),
    )
    end = jax.tree.map(lambda x: x[len(ended) :], steps) if burn_in else ()
    return sequences, end


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Several epochs of minibatches of sequences over one rollout."""
    batch, past = prepare(spec, config, state, rollout)
    index = prng.permutations(key, config.num_epochs, len(batch.target))
    index = index.reshape(config.num_epochs * config.num_minibatches, -1)
    progress = optimizers.progress(config, state.step)
    rate = optimizers.annealed(config, progress, config.learning_rate)

    def fit(
        loss: Loss, params: Params, opt_state: OptState
    ) -> tuple[Params, OptState, Metrics]:
        flat, unravel = ravel_pytree(params)  # one vector: one kernel in Adam

        def of_flat(
            flat: jax.Array, fixed: jax.Array, batch: Sequences
        ) -> tuple[jax.Array, Metrics]:
            return loss(spec, config, unravel(flat), unravel(fixed), batch)

        (flat, opt_state), metrics = on_policy.fit(
            of_flat,
            (flat, opt_state),
            batch,
            index=index,
            optimizer=optimizers.clipped_adam(config, on_policy.EPS),
            rate=rate,
        )
        return unravel(flat), opt_state, metrics

    (actor, actor_opt, metrics), (critic, critic_opt, more) = side_by_side(
        lambda: fit(actor_loss, state.actor, state.opt_states.actor),
        lambda: fit(critic_loss, state.critic, state.opt_states.critic),
    )
    new_state = State(
        actor=actor,
        critic=critic,
        opt_states=Pair(actor=actor_opt, critic=critic_opt),
        past=past,
        step=cfg.next_count(state.step),
    )
    return new_state, metrics | more
