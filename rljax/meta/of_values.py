"""Scores of action values by TD errors: on the newest rollout, or on a replay's batch.

The outer critic values the action that the agent would take next. An action that only
the critic overrates is not tried, so nothing would correct the critic's own greedy
choice: Ostrovski et al. (2021), https://arxiv.org/abs/2110.14020.
"""

from typing import cast

import jax
import optax

from rljax import losses, networks, replay
from rljax.contracts import ReplayConfig, TunedConfig
from rljax.learners import on_policy
from rljax.meta import critics
from rljax.meta.critics import CriticConfig, critic_config
from rljax.meta.recorded import holds_replay
from rljax.meta.types import Objective, OuterBatch, OuterCritic, Scored, Settings
from rljax.types import (
    Agent,
    AgentState,
    Discrete,
    Metrics,
    Obs,
    Params,
    Rollout,
    Spec,
)

_AT_ONCE = 512  # observations by two networks: of a whole rollout it takes much memory


def objective(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Score action values as the agent learns them: by what their targets would be."""
    scored = Scored(agent=agent, spec=spec, settings=settings)
    return scored.objective(
        init=_init, prepare=_prepare, loss=_loss, distance=_distance, update=_update
    )


def _init(scored: Scored, config: TunedConfig, key: jax.Array) -> OuterCritic:
    own, spec = critic_config(scored.settings, config), scored.spec
    return critics.init(own, _q_network(spec, own), key, spec.zeros(1), has_target=True)


def _prepare(
    scored: Scored,
    config: TunedConfig,
    state: AgentState,
    critic: OuterCritic,
    *,
    rollout: Rollout,
    key: jax.Array,
) -> OuterBatch:
    """Data of a rollout's steps, or of a replay's, with one-step targets."""
    seen = on_policy.flatten(rollout._replace(simulation=()))
    if holds_replay(state):
        size = cast(ReplayConfig, config).batch_size  # `tuning.init` looked
        seen = replay.sample(state.replay, key, batch_size=size).windows
        seen = seen._replace(reward=seen.reward[:, 0])
    network = _q_network(scored.spec, critic_config(scored.settings, config))

    def judge(obs: Obs) -> jax.Array:
        """The critic's value `[]` of the action that the agent would take."""
        alone = jax.tree.map(lambda x: x[None], obs)
        action = scored.q_values(config, state, alone).argmax(axis=-1)
        q = critics.applied(network, critic.target_params, alone)
        return losses.batched_index(q, action)[0]

    v_t = jax.lax.map(judge, seen.next_obs, batch_size=_AT_ONCE)
    discount = scored.settings.outer_gamma * (1.0 - seen.terminated)
    batch = OuterBatch(
        obs=seen.obs,
        action=seen.action,
        log_prob=(),
        advantage=(),
        target=seen.reward + discount * v_t,
    )
    return jax.lax.stop_gradient(batch)


def _loss(
    scored: Scored, config: TunedConfig, state: AgentState, data: OuterBatch
) -> jax.Array:
    q = scored.q_values(config, state, data.obs)
    chosen = losses.batched_index(q, data.action)
    return optax.l2_loss(chosen, data.target).mean()


def _distance(
    scored: Scored,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: OuterBatch,
) -> jax.Array:
    goal, q = (scored.q_values(config, x, data.obs) for x in (target, state))
    return optax.l2_loss(q, goal).mean()


def _update(
    scored: Scored,
    config: TunedConfig,
    critic: OuterCritic,
    data: OuterBatch,
    *,
    progress: jax.Array,
    key: jax.Array,
) -> tuple[OuterCritic, Metrics]:
    own = critic_config(scored.settings, config)

    def errors(params: Params, batch: OuterBatch) -> jax.Array:
        q = critics.applied(_q_network(scored.spec, own), params, batch.obs)
        return losses.batched_index(q, batch.action) - batch.target

    return critics.fit(
        scored.settings,
        own,
        critic,
        examples=data,
        errors=errors,
        progress=progress,
        key=key,
    )


def _q_network(spec: Spec, config: CriticConfig) -> networks.QNetwork:
    assert isinstance(spec.action, Discrete)
    return networks.QNetwork(
        body=networks.body(spec, config), num_actions=spec.action.num_actions
    )
