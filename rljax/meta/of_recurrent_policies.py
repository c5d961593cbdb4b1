"""Scores of policies with a memory, along the newest rollout.

The outer critic remembers on its own: what the agent fails to remember must not be
hidden from its judge.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import networks
from rljax.contracts import TunedConfig
from rljax.envs.wrappers import where
from rljax.learners import sequences
from rljax.meta import critics
from rljax.meta.critics import CriticConfig, critic_config
from rljax.meta.of_rollouts import advantages, divergence, surrogate
from rljax.meta.types import Objective, OuterBatch, OuterCritic, Scored, Settings
from rljax.networks import recurrent
from rljax.types import (
    Agent,
    AgentState,
    Memory,
    Metrics,
    Obs,
    Params,
    Recalled,
    Rollout,
    Spec,
)


class RecalledBatch(NamedTuple):
    """A rollout with what its score needs."""

    batch: OuterBatch  # [T, N, ...] whose `obs` are Recalled
    before: Memory  # [T, N, ...] of the outer critic, before each step
    after: Memory  # [N, ...] of the outer critic, for the next rollout


class Piece(NamedTuple):
    """A sequence of steps for the outer critic to learn from; `[B, ...]` of them."""

    obs: Obs  # [L, ...]
    start: jax.Array  # [L] bool
    memory: Memory  # before the first
    target: jax.Array  # [L]


def objective(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Score a policy by likelihood ratios and advantages along the newest rollout.

    As `of_rollouts.of_policy`, with the agent's memory replayed over the whole rollout
    from what the memory was at its start. The outer critic's memory goes on from
    rollout to rollout; the critic learns from sequences of `sequence_length` steps, or
    of the whole rollout where the config has no such field.
    """
    scored = Scored(agent=agent, spec=spec, settings=settings)
    return scored.objective(
        init=_init, prepare=_prepare, loss=_loss, distance=_distance, update=_update
    )


def _init(scored: Scored, config: TunedConfig, key: jax.Array) -> OuterCritic:
    own = critic_config(scored.settings, config)
    one = recurrent.fresh_memory(own, 1)
    memory = recurrent.fresh_memory(own, config.num_envs)
    return critics.init(
        own,
        _state_values(scored.spec, own),
        key,
        scored.spec.zeros(1),
        one,
        memory=memory,
    )


def _prepare(
    scored: Scored,
    config: TunedConfig,
    state: AgentState,
    critic: OuterCritic,
    *,
    rollout: Rollout,
    key: jax.Array,
) -> RecalledBatch:
    del state, key  # nothing is drawn
    own = critic_config(scored.settings, config)
    network: Any = _state_values(scored.spec, own)
    start = recurrent.starts_of(rollout.terminated | rollout.truncated)
    v_tm1, after = network.apply(
        critic.params, rollout.obs, start, critic.memory, method="unroll"
    )
    v_t, _ = network.apply(critic.params, rollout.next_obs, after)
    adv = advantages(scored.settings, rollout, v_tm1, v_t=v_t)
    first = jax.tree.map(lambda x: x[0], rollout.memory)
    ended = rollout.terminated[-1] | rollout.truncated[-1]
    fresh = recurrent.fresh_memory(own, len(ended))
    last = jax.tree.map(lambda x: x[-1], after)
    before = jax.tree.map(
        lambda old, new: jnp.concatenate([old[None], new[:-1]]),
        critic.memory,
        after,
    )
    batch = OuterBatch(
        obs=Recalled(obs=rollout.obs, start=start, memory=first),
        action=rollout.action,
        log_prob=rollout.extras,
        advantage=adv,
        target=adv + v_tm1,
    )
    data = RecalledBatch(batch=batch, before=before, after=where(ended, fresh, last))
    return jax.lax.stop_gradient(data)


def _loss(
    scored: Scored, config: TunedConfig, state: AgentState, data: RecalledBatch
) -> jax.Array:
    batch = data.batch
    total = surrogate(scored.settings, scored.policy(config, state, batch.obs), batch)
    if scored.settings.outer_value_cost:
        predicted = scored.value(config, state, batch.obs)
        error = optax.l2_loss(predicted, batch.target).mean()
        total += scored.settings.outer_value_cost * error
    return total


def _distance(
    scored: Scored,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: RecalledBatch,
) -> jax.Array:
    old, new = (scored.policy(config, x, data.batch.obs) for x in (target, state))
    return divergence(old, new)


def _update(
    scored: Scored,
    config: TunedConfig,
    critic: OuterCritic,
    data: RecalledBatch,
    *,
    progress: jax.Array,
    key: jax.Array,
) -> tuple[OuterCritic, Metrics]:
    own = critic_config(scored.settings, config)
    network: Any = _state_values(scored.spec, own)

    def errors(params: Params, pieces: Piece) -> jax.Array:
        obs, start, target = jax.tree.map(
            lambda x: jnp.swapaxes(x, 0, 1),
            (pieces.obs, pieces.start, pieces.target),
        )
        found, _ = network.apply(params, obs, start, pieces.memory, method="unroll")
        return found - target

    return critics.fit(
        scored.settings,
        own,
        critic._replace(memory=data.after),
        examples=_pieces(config, data),
        errors=errors,
        progress=progress,
        key=key,
    )


def _pieces(config: TunedConfig, data: RecalledBatch) -> Piece:
    """Cut a rollout into sequences `[B, ...]`."""
    seen = data.batch.obs
    length = getattr(config, "sequence_length", len(data.batch.target))
    cut = functools.partial(sequences.cut, stride=length, length=length)
    first = functools.partial(sequences.cut, stride=length, length=1)
    return Piece(
        obs=jax.tree.map(cut, seen.obs),
        start=cut(seen.start),
        memory=jax.tree.map(lambda x: first(x)[:, 0], data.before),
        target=cut(data.batch.target),
    )


def _state_values(spec: Spec, config: CriticConfig) -> recurrent.Recurrent:
    return recurrent.Recurrent(
        body=networks.body(spec, config),
        memory_cell=recurrent.cell(config),
        head=networks.ValueHead(),
    )
