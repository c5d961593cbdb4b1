"""Scores of action values with a memory, on sequences of the replay.

The outer critic remembers on its own: what the agent fails to remember must not be
hidden from its judge.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses, networks, replay
from rljax.contracts import ReplayConfig, TunedConfig
from rljax.learners import on_policy
from rljax.meta import critics
from rljax.meta.critics import CriticConfig, critic_config
from rljax.meta.recorded import HoldsReplay
from rljax.meta.types import Objective, OuterCritic, Scored, Settings
from rljax.networks import recurrent
from rljax.types import (
    Agent,
    AgentState,
    Discrete,
    Metrics,
    Params,
    Recalled,
    Rollout,
    Spec,
)


class ReplayedBatch(NamedTuple):
    """Sequences of the replay; the last row only tells what follows."""

    seen: Recalled  # [T + 1, B, ...]
    action: jax.Array  # [T, B]
    target: jax.Array  # [T, B] return that a value is to predict
    weight: jax.Array  # [T, B] 1, or 0 where there is nothing to learn


def objective(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Score action values by their errors, on sequences of the replay.

    As `of_values.objective`, with the agent's memory replayed from what is stored. The
    outer critic has no stored memory: the critic starts each sequence with an empty one
    and the first `burn_in` steps only bring it up to date. Targets are lambda returns
    that are cut where the agent would have acted otherwise: Watkins (1989). A step that
    the time limit cut has no successor in the sequence and is not scored.
    """
    scored = Scored(agent=agent, spec=spec, settings=settings)
    return scored.objective(
        init=_init, prepare=_prepare, loss=_loss, distance=_distance, update=_update
    )


def _unrolled(
    scored: Scored, params: Params, config: CriticConfig, seen: Recalled
) -> jax.Array:
    """The critic's values `[T + 1, B, A]`, from an empty memory."""
    fresh = recurrent.fresh_memory(config, seen.start.shape[1])
    found, _ = _action_values(scored.spec, config).apply(
        params, seen.obs, seen.start, fresh, method="unroll"
    )
    return found


def _init(scored: Scored, config: TunedConfig, key: jax.Array) -> OuterCritic:
    own = critic_config(scored.settings, config)
    one = recurrent.fresh_memory(own, 1)
    return critics.init(
        own,
        _action_values(scored.spec, own),
        key,
        scored.spec.zeros(1),
        one,
        has_target=True,
    )


def _prepare(
    scored: Scored,
    config: TunedConfig,
    state: HoldsReplay,
    critic: OuterCritic,
    *,
    rollout: Rollout,
    key: jax.Array,
) -> ReplayedBatch:
    del rollout  # the replay holds it already
    names = ("batch_size", "burn_in", "sequence_length")
    cfg.check_fields("tune with a memory and a replay", config, *names)
    size = cast(ReplayConfig, config).batch_size
    burn_in, length = (getattr(config, name) for name in names[1:])
    _, steps, _ = replay.sample_sequences(
        state.replay, key, batch_size=size, length=burn_in + length
    )
    first = jax.tree.map(lambda x: x[0], steps.memory)
    start = recurrent.starts_of(steps.terminated | steps.truncated)
    seen = Recalled(obs=steps.obs, start=start, memory=first)
    choice = scored.q_values(config, state, seen).argmax(axis=-1)
    own = critic_config(scored.settings, config)
    q = _unrolled(scored, critic.target_params, own, seen)
    v_t = losses.batched_index(q, choice)[1:]
    taken = (choice == steps.action)[1:]
    steps = jax.tree.map(lambda x: x[:-1], steps)
    discount, trace = on_policy.cut(
        scored.settings.outer_gamma, scored.settings.outer_lambda, rollout=steps
    )
    over_envs = jax.vmap(losses.lambda_returns, in_axes=1, out_axes=1)
    target = over_envs(steps.reward, discount, v_t, trace * taken)
    lost = steps.truncated & ~steps.terminated
    late = jnp.arange(len(lost))[:, None] >= burn_in
    batch = ReplayedBatch(
        seen=seen,
        action=steps.action,
        target=target,
        weight=(late & ~lost).astype(jnp.float32),
    )
    return jax.lax.stop_gradient(batch)


def _loss(
    scored: Scored, config: TunedConfig, state: AgentState, data: ReplayedBatch
) -> jax.Array:
    q = scored.q_values(config, state, data.seen)[:-1]
    errors = losses.batched_index(q, data.action) - data.target
    return jnp.mean(data.weight * optax.l2_loss(errors))


def _distance(
    scored: Scored,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: ReplayedBatch,
) -> jax.Array:
    goal, q = (scored.q_values(config, x, data.seen) for x in (target, state))
    return optax.l2_loss(q, goal).mean()


def _update(
    scored: Scored,
    config: TunedConfig,
    critic: OuterCritic,
    data: ReplayedBatch,
    *,
    progress: jax.Array,
    key: jax.Array,
) -> tuple[OuterCritic, Metrics]:
    own = critic_config(scored.settings, config)

    def errors(params: Params, batch: ReplayedBatch) -> jax.Array:
        q = _unrolled(scored, params, own, batch.seen)[:-1]
        return batch.weight * (losses.batched_index(q, batch.action) - batch.target)

    return critics.fit(
        scored.settings,
        own._replace(num_minibatches=0),
        critic,
        examples=data,
        errors=errors,
        progress=progress,
        key=key,
    )


def _action_values(spec: Spec, config: CriticConfig) -> Any:
    assert isinstance(spec.action, Discrete)
    return recurrent.RecurrentQNetwork(
        body=networks.body(spec, config),
        memory_cell=recurrent.cell(config),
        num_actions=spec.action.num_actions,
    )
