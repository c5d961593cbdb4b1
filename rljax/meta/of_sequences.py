"""Scores of agents with a memory: on sequences, along which the memory is replayed.

The outer critic remembers on its own: what the agent fails to remember must not be
hidden from its judge.
"""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses, networks, replay
from rljax.contracts import ReplayConfig, TunedConfig
from rljax.envs.wrappers import where
from rljax.learners import on_policy, sequences
from rljax.meta import critics
from rljax.meta.critics import CriticConfig, critic_config
from rljax.meta.of_rollouts import advantages, divergence, shown, surrogate
from rljax.meta.recorded import HoldsReplay
from rljax.meta.types import Objective, OuterBatch, OuterCritic, Settings
from rljax.networks import recurrent
from rljax.types import (
    Agent,
    AgentState,
    Discrete,
    Memory,
    Metrics,
    Obs,
    Params,
    Recalled,
    Rollout,
    Spec,
    ValuesFn,
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


def of_policy(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Score a policy by likelihood ratios and advantages along the newest rollout.

    As `of_rollouts.of_policy`, with the agent's memory replayed over the whole rollout
    from what the memory was at its start. The outer critic's memory goes on from
    rollout to rollout; the critic learns from sequences of `sequence_length` steps, or
    of the whole rollout where the config has no such field.
    """
    policy = agent.policy
    assert policy is not None  # `objectives.choose` looked

    def init(config: TunedConfig, key: jax.Array) -> OuterCritic:
        own = critic_config(settings, config)
        one = recurrent.fresh_memory(own, 1)
        memory = recurrent.fresh_memory(own, config.num_envs)
        return critics.init(
            own, _state_values(spec, own), key, spec.zeros(1), one, memory=memory
        )

    def prepare(
        config: TunedConfig,
        state: AgentState,
        critic: OuterCritic,
        *,
        rollout: Rollout,
        key: jax.Array,
    ) -> RecalledBatch:
        del state, key  # nothing is drawn
        own = critic_config(settings, config)
        network: Any = _state_values(spec, own)
        start = _starts(rollout)
        v_tm1, after = network.apply(
            critic.params, rollout.obs, start, critic.memory, method="unroll"
        )
        v_t, _ = network.apply(critic.params, rollout.next_obs, after)
        adv = advantages(settings, rollout, v_tm1, v_t=v_t)
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
        data = RecalledBatch(
            batch=batch, before=before, after=where(ended, fresh, last)
        )
        return jax.lax.stop_gradient(data)

    def loss(config: TunedConfig, state: AgentState, data: RecalledBatch) -> jax.Array:
        batch = data.batch
        total = surrogate(settings, policy(config, state, batch.obs), batch)
        if settings.outer_value_cost:
            predicted = shown(agent.value)(config, state, batch.obs)
            error = optax.l2_loss(predicted, batch.target).mean()
            total += settings.outer_value_cost * error
        return total

    def distance(
        config: TunedConfig,
        target: AgentState,
        state: AgentState,
        *,
        data: RecalledBatch,
    ) -> jax.Array:
        old, new = (policy(config, x, data.batch.obs) for x in (target, state))
        return divergence(old, new)

    def update(
        config: TunedConfig,
        critic: OuterCritic,
        data: RecalledBatch,
        *,
        progress: jax.Array,
        key: jax.Array,
    ) -> tuple[OuterCritic, Metrics]:
        own = critic_config(settings, config)
        network: Any = _state_values(spec, own)

        def errors(params: Params, pieces: Piece) -> jax.Array:
            obs, start, target = jax.tree.map(
                lambda x: jnp.swapaxes(x, 0, 1),
                (pieces.obs, pieces.start, pieces.target),
            )
            found, _ = network.apply(params, obs, start, pieces.memory, method="unroll")
            return found - target

        new, metrics = critics.fit(
            settings,
            own,
            critic._replace(memory=data.after),
            examples=_pieces(config, data),
            errors=errors,
            progress=progress,
            key=key,
        )
        return new, metrics

    return Objective(
        init=init, prepare=prepare, loss=loss, distance=distance, update=update
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


class ReplayedBatch(NamedTuple):
    """Sequences of the replay; the last row only tells what follows."""

    seen: Recalled  # [T + 1, B, ...]
    action: jax.Array  # [T, B]
    target: jax.Array  # [T, B] return that a value is to predict
    weight: jax.Array  # [T, B] 1, or 0 where there is nothing to learn


def of_values(q_values: ValuesFn, spec: Spec, settings: Settings) -> Objective:
    """Score action values by their errors, on sequences of the replay.

    As `of_values.objective`, with the agent's memory replayed from what is stored. The
    outer critic has no stored memory: the critic starts each sequence with an empty one
    and the first `burn_in` steps only bring it up to date. Targets are lambda returns
    that are cut where the agent would have acted otherwise: Watkins (1989). A step that
    the time limit cut has no successor in the sequence and is not scored.
    """
    network = functools.partial(_action_values, spec)

    def unrolled(params: Params, config: CriticConfig, seen: Recalled) -> jax.Array:
        """The critic's values `[T + 1, B, A]`, from an empty memory."""
        fresh = recurrent.fresh_memory(config, seen.start.shape[1])
        found, _ = network(config).apply(
            params, seen.obs, seen.start, fresh, method="unroll"
        )
        return found

    def init(config: TunedConfig, key: jax.Array) -> OuterCritic:
        own = critic_config(settings, config)
        one = recurrent.fresh_memory(own, 1)
        return critics.init(own, network(own), key, spec.zeros(1), one, has_target=True)

    def prepare(
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
        seen = Recalled(obs=steps.obs, start=_starts(steps), memory=first)
        choice = q_values(config, state, seen).argmax(axis=-1)
        own = critic_config(settings, config)
        q = unrolled(critic.target_params, own, seen)
        v_t = losses.batched_index(q, choice)[1:]
        taken = (choice == steps.action)[1:]
        steps = jax.tree.map(lambda x: x[:-1], steps)
        discount, trace = on_policy.cut(
            settings.outer_gamma, settings.outer_lambda, rollout=steps
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

    def loss(config: TunedConfig, state: AgentState, data: ReplayedBatch) -> jax.Array:
        q = q_values(config, state, data.seen)[:-1]
        errors = losses.batched_index(q, data.action) - data.target
        return jnp.mean(data.weight * optax.l2_loss(errors))

    def distance(
        config: TunedConfig,
        target: AgentState,
        state: AgentState,
        *,
        data: ReplayedBatch,
    ) -> jax.Array:
        goal, q = (q_values(config, x, data.seen) for x in (target, state))
        return optax.l2_loss(q, goal).mean()

    def update(
        config: TunedConfig,
        critic: OuterCritic,
        data: ReplayedBatch,
        *,
        progress: jax.Array,
        key: jax.Array,
    ) -> tuple[OuterCritic, Metrics]:
        own = critic_config(settings, config)

        def errors(params: Params, batch: ReplayedBatch) -> jax.Array:
            q = unrolled(params, own, batch.seen)[:-1]
            return batch.weight * (losses.batched_index(q, batch.action) - batch.target)

        new, metrics = critics.fit(
            settings,
            own._replace(num_minibatches=0),
            critic,
            examples=data,
            errors=errors,
            progress=progress,
            key=key,
        )
        return critics.follow(own, new), metrics

    return Objective(
        init=init, prepare=prepare, loss=loss, distance=distance, update=update
    )


def _starts(rollout: Rollout) -> jax.Array:
    """Whether an episode starts at each step, `[T, N]`.

    Where the very first step starts one, its memory is fresh already.
    """
    ended = rollout.terminated | rollout.truncated
    return jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]])


def _state_values(spec: Spec, config: CriticConfig) -> recurrent.Recurrent:
    return recurrent.Recurrent(
        body=networks.body(spec, config),
        memory_cell=recurrent.cell(config),
        head=networks.ValueHead(),
    )


def _action_values(spec: Spec, config: CriticConfig) -> Any:
    assert isinstance(spec.action, Discrete)
    return recurrent.RecurrentQNetwork(
        body=networks.body(spec, config),
        memory_cell=recurrent.cell(config),
        num_actions=spec.action.num_actions,
    )
