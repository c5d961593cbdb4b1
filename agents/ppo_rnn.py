"""Proximal policy optimisation with memory. Schulman et al. (2017).

https://arxiv.org/abs/1707.06347; burn-in of the stored memory: Kapturowski et al.
(2019), https://openreview.net/forum?id=r1lyTjAqYX.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import networks
from rljax.learners import on_policy, sequences
from rljax.learners.sequences import Pair, Seen
from rljax.networks import distributions, recurrent
from rljax.networks.recurrent import Recurrent
from rljax.types import (
    Agent,
    Cell,
    Extras,
    Key,
    Metrics,
    Obs,
    OptState,
    Params,
    Rollout,
    Spec,
    Torso,
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

    learning_rate: float = cfg.rate(1e-3)  # of Adam
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    lambda_: float = cfg.share(0.95)  # trace decay of the advantages, cut at any end
    clip_epsilon: float = cfg.share(0.2, 0.01)  # of the probability ratio
    entropy_cost: float = cfg.cost(0.01)  # weight of the entropy bonus
    max_grad_norm: float = 0.5  # where each network's gradient is clipped
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(128)  # steps per environment and update
    sequence_length: int = cfg.static(32)  # steps that gradients go back at most
    burn_in: int = cfg.static(0)  # steps before them that bring the memory up to date
    num_epochs: int = cfg.static(4)  # passes over each rollout
    num_minibatches: int = cfg.static(4)  # gradient steps per pass
    hidden_sizes: tuple[int, ...] = cfg.static((64,))  # of each, before the memory
    memory_size: int = cfg.static(64)  # features of each memory
    cell: Cell = cfg.static("lstm")  # that remembers, or "gru"
    activation: str = cfg.static("tanh")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    normalize_advantages: bool = cfg.static(True)  # per minibatch

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        cfg.check_range(self, "lambda_", low=0.0, high=1.0)
        cfg.check_range(self, "entropy_cost", low=0.0)
        cfg.check_range(self, "clip_epsilon", low=0.0, open_low=True)
        recurrent.validate(self)
        cfg.check_count(self, "num_epochs", "num_minibatches", "sequence_length")
        cfg.check_count(self, "burn_in", low=0)
        steps = self.rollout_length
        cfg.check_divides(self, "sequence_length", steps, what="rollout_length")
        sequences = self.num_envs * steps // self.sequence_length
        what = "num_envs * rollout_length / sequence_length"
        cfg.check_divides(self, "num_minibatches", sequences, what=what)
        if self.burn_in > steps:
            what = f"must be at most rollout_length = {steps}"
            raise ValueError(f"burn_in={self.burn_in}: {what}")


class State(NamedTuple):
    """Networks, optimisers and counts of the agent."""

    actor: Params
    critic: Params
    actor_opt: OptState  # Adam over the actor's parameters as one flat vector
    critic_opt: OptState  # likewise
    past: Any  # the last rollout's end, `[burn_in, N, ...]`; () without burn-in
    step: jax.Array  # [] int32, rollouts learned from


class Sequences(NamedTuple):
    """Steps in a row with what their losses need; L is the sequence's length."""

    seen: Seen  # whose memory is a Pair
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
        policy=sequences.recalled(functools.partial(nets, spec), member="actor"),
        value=sequences.recalled(functools.partial(nets, spec), member="critic"),
        recurrent=True,
    )


def nets(spec: Spec, config: Config) -> Pair:
    """The networks."""
    network = functools.partial(Recurrent, memory_cell=recurrent.cell(config))
    return Pair(
        actor=network(
            body=networks.policy_body(spec, config),
            head=networks.PolicyHead(spec.action),
        ),
        critic=network(body=networks.body(spec, config), head=networks.ValueHead()),
    )


def memory(config: Config, num_envs: int) -> Pair:
    """The memories of `num_envs` episodes that start."""
    fresh = recurrent.fresh_memory(config, num_envs)
    return Pair(actor=fresh, critic=fresh)


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh networks and optimisers."""
    obs, fresh = spec.zeros(config.num_envs), memory(config, config.num_envs)
    one, both = memory(config, 1), nets(spec, config)
    actor_key, critic_key = jax.random.split(key)
    actor_params, actor_opt = on_policy.init_network(
        config, both.actor, actor_key, spec.zeros(1), one.actor
    )
    critic_params, critic_opt = on_policy.init_network(
        config, both.critic, critic_key, spec.zeros(1), one.critic
    )
    return State(
        actor=actor_params,
        critic=critic_params,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        past=sequences.no_past(obs, fresh, length=config.burn_in),
        step=jnp.zeros((), jnp.int32),
    )


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Pair,
    obs: Obs,
    key: Key,
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


def actor_loss(
    spec: Spec, config: Config, params: Params, burn_in_params: Params, batch: Sequences
) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate less the entropy bonus, mean over sequences."""
    policy = sequences.outputs(
        nets(spec, config).actor,
        params,
        batch.seen._replace(memory=batch.seen.memory.actor),
        burn_in_params=burn_in_params,
        burn_in=config.burn_in,
    )
    action = jnp.swapaxes(batch.action, 0, 1)
    return on_policy.clipped_policy_loss(
        config, policy, action, log_prob=batch.log_prob.T, adv=batch.advantage.T
    )


def critic_loss(
    spec: Spec, config: Config, params: Params, burn_in_params: Params, batch: Sequences
) -> tuple[jax.Array, Metrics]:
    """Half the squared error of the return's prediction, mean over sequences."""
    value = sequences.outputs(
        nets(spec, config).critic,
        params,
        batch.seen._replace(memory=batch.seen.memory.critic),
        burn_in_params=burn_in_params,
        burn_in=config.burn_in,
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
    length = config.sequence_length
    seen, end = sequences.split(
        rollout, state.past, length=length, burn_in=config.burn_in
    )
    cut = functools.partial(sequences.cut, stride=length, length=length)
    batch = Sequences(
        seen=seen,
        action=cut(rollout.action),
        log_prob=cut(rollout.extras),
        advantage=cut(adv),
        target=cut(adv + value),
    )
    return batch, end


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """Several epochs of minibatches of sequences over one rollout."""
    batch, past = prepare(spec, config, state, rollout)
    state, metrics = on_policy.fit_both(
        config,
        state,
        batch,
        index=on_policy.minibatches(config, key, len(batch.target)),
        actor_loss=functools.partial(actor_loss, spec, config),
        critic_loss=functools.partial(critic_loss, spec, config),
    )
    return state._replace(past=past), metrics
