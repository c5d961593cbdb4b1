"""Scores of a policy by the values of its actions, on a batch of the replay.

For agents whose policy learns from action values. The outer critic is the lesser of two
networks, as in Fujimoto et al. (2018), https://arxiv.org/abs/1802.09477: a policy that
climbs one would find where that one errs.
"""

import functools
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from rljax import losses, replay
from rljax.contracts import Network, ReplayConfig, TunedConfig
from rljax.learners import actor_critic
from rljax.meta import critics
from rljax.meta.critics import CriticConfig, critic_config
from rljax.meta.of_rollouts import divergence
from rljax.meta.recorded import HoldsReplay
from rljax.meta.types import Objective, OuterCritic, Scored, Settings
from rljax.types import (
    Agent,
    AgentState,
    Discrete,
    Metrics,
    Obs,
    Params,
    Policy,
    Rollout,
    Spec,
)

_SAMPLES = 8  # actions in each state, whose likelihood is moved


class Chosen(NamedTuple):
    """Actions of the policy in each state, with which a likelihood is scored."""

    action: jax.Array  # [S, B, D]
    log_prob: jax.Array  # [S, B]
    advantage: jax.Array  # [S, B] over the mean of the state's S


class ActorBatch(NamedTuple):
    """Transitions of the replay, and the critic that scores the policy there."""

    obs: Obs  # [B, ...]
    action: jax.Array  # [B] or [B, D]
    target: jax.Array  # [B] return that the critic is to predict
    critic: Params  # of the outer discount
    key: jax.Array  # [] typed key of the actions that are scored
    chosen: Chosen | tuple[()]  # of continuous actions that learn by their likelihood


class _Scored(Scored):
    """An agent whose policy is scored by action values."""

    @property
    def is_discrete(self) -> bool:
        return isinstance(self.spec.action, Discrete)

    @property
    def by_likelihood(self) -> bool:
        return self.agent.policy_gradient == "likelihood" and not self.is_discrete

    def critic_config(self, config: TunedConfig) -> CriticConfig:
        return critic_config(self.settings, config)

    def values(
        self, config: TunedConfig, params: Params, obs: Obs, *action: jax.Array
    ) -> jax.Array:
        """Values `[2, B]` of actions, or `[2, B, A]` of all discrete ones."""
        network = _critics(self.spec, self.critic_config(config))
        return critics.applied(network, params, obs, *action)

    def policy_value(
        self,
        config: TunedConfig,
        params: Params,
        obs: Obs,
        *,
        policy: Policy,
        key: jax.Array,
    ) -> jax.Array:
        """The lesser values `[B]` of a policy: the mean, or of one action drawn."""
        if self.is_discrete:
            every = self.values(config, params, obs).min(axis=0)
            return jnp.sum(policy.probs * every, axis=-1)
        return self.values(config, params, obs, policy.sample(seed=key)).min(axis=0)


def objective(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Score the policy by the outer critic's values of the actions it would take.

    Of discrete actions the mean over the policy is exact. Continuous ones are scored as
    the policy learns them: along the slope of the values, through actions whose noise
    is fixed; or by the likelihood of drawn actions. The error of the agent's own
    critics at the outer discount is added: one update moves the policy along the
    critics that the update found, so that what the discount does to the critics
    reaches the policy only with the next one.
    """
    scored = _Scored(agent=agent, spec=spec, settings=settings)
    return scored.objective(
        init=_init, prepare=_prepare, loss=_loss, distance=_distance, update=_update
    )


def _init(scored: _Scored, config: TunedConfig, key: jax.Array) -> OuterCritic:
    own = scored.critic_config(config)
    inputs = actor_critic.example(scored.spec)
    network = _critics(scored.spec, own)
    return critics.init(own, network, key, *inputs, has_target=True)


def _prepare(
    scored: _Scored,
    config: TunedConfig,
    state: HoldsReplay,
    critic: OuterCritic,
    *,
    rollout: Rollout,
    key: jax.Array,
) -> ActorBatch:
    del rollout  # the replay holds it already
    size = cast(ReplayConfig, config).batch_size  # `tuning.init` looked
    draw_key, next_key, key = jax.random.split(key, 3)
    seen = replay.sample(state.replay, draw_key, batch_size=size).windows
    v_t = scored.policy_value(
        config,
        critic.target_params,
        seen.next_obs,
        policy=scored.policy(config, state, seen.next_obs),
        key=next_key,
    )
    discount = scored.settings.outer_gamma * (1.0 - seen.terminated)
    drawn = ()
    if scored.by_likelihood:
        policy = scored.policy(config, state, seen.obs)
        drawn = _draw(scored, config, critic, obs=seen.obs, policy=policy, key=key)
    batch = ActorBatch(
        obs=seen.obs,
        action=seen.action if scored.is_discrete else seen.action.reshape(size, -1),
        target=seen.reward[:, 0] + discount * v_t,
        critic=critic.params,
        key=jax.random.clone(key),
        chosen=drawn,
    )
    return jax.lax.stop_gradient(batch)


def _draw(
    scored: _Scored,
    config: TunedConfig,
    critic: OuterCritic,
    *,
    obs: Obs,
    policy: Policy,
    key: jax.Array,
) -> Chosen:
    drawn = policy.sample(seed=key, sample_shape=_SAMPLES)
    values = functools.partial(scored.values, config, critic.params, obs)
    q = jax.vmap(values)(drawn).min(axis=1)
    return Chosen(
        action=drawn, log_prob=policy.log_prob(drawn), advantage=q - q.mean(axis=0)
    )


def _loss(
    scored: _Scored, config: TunedConfig, state: AgentState, data: ActorBatch
) -> jax.Array:
    policy = scored.policy(config, state, data.obs)
    if isinstance(data.chosen, Chosen):
        ratio = jnp.exp(policy.log_prob(data.chosen.action) - data.chosen.log_prob)
        score = jnp.mean(ratio * data.chosen.advantage)
    else:
        key = jax.random.clone(data.key)
        values = scored.policy_value(
            config, data.critic, data.obs, policy=policy, key=key
        )
        score = values.mean()
    action_values, cost = scored.agent.action_values, scored.settings.outer_value_cost
    if action_values is None or not cost:
        return -score
    q = action_values(config, state, data.obs, data.action)
    return cost * optax.l2_loss(q - data.target).mean() - score


def _distance(
    scored: _Scored,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: ActorBatch,
) -> jax.Array:
    old, new = (scored.policy(config, x, data.obs) for x in (target, state))
    if scored.is_discrete:
        return divergence(old, new)
    goal, reached = (x.sample(seed=jax.random.clone(data.key)) for x in (old, new))
    return optax.l2_loss(reached, goal).mean()


def _update(
    scored: _Scored,
    config: TunedConfig,
    critic: OuterCritic,
    data: ActorBatch,
    *,
    progress: jax.Array,
    key: jax.Array,
) -> tuple[OuterCritic, Metrics]:
    own = scored.critic_config(config)

    def errors(params: Params, batch: ActorBatch) -> jax.Array:
        if scored.is_discrete:
            every = scored.values(config, params, batch.obs)
            chosen = jax.vmap(losses.batched_index, (0, None))(every, batch.action)
            return chosen - batch.target
        return scored.values(config, params, batch.obs, batch.action) - batch.target

    return critics.fit(
        scored.settings,
        own._replace(num_minibatches=0),  # one step for each batch of the replay
        critic,
        examples=data,
        errors=errors,
        progress=progress,
        key=key,
    )


def _critics(spec: Spec, config: CriticConfig) -> Network:
    return actor_critic.critics(spec, config, 2)
