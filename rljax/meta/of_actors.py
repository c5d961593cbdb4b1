"""Scores of a policy by the values of its actions, on a batch of the replay.

For agents whose policy learns from action values. The outer critic is the lesser of two
networks, as in Fujimoto et al. (2018), https://arxiv.org/abs/1802.09477: a policy that
climbs one would find where that one errs.
"""

import functools
from typing import Any, NamedTuple, cast

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
from rljax.meta.types import Objective, OuterCritic, Settings
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


def objective(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Score the policy by the outer critic's values of the actions it would take.

    Of discrete actions the mean over the policy is exact. Continuous ones are scored as
    the policy learns them: along the slope of the values, through actions whose noise
    is fixed; or by the likelihood of drawn actions.
    """
    policy = agent.policy
    assert policy is not None  # `objectives.choose` looked
    network = functools.partial(_critics, spec)
    by_likelihood = agent.policy_gradient == "likelihood" and not _is_discrete(spec)

    def values(params: Params, config: TunedConfig, obs: Obs, *action: Any) -> Any:
        """The lesser values `[B]`, or `[B, A]` of all discrete actions."""
        own = critic_config(settings, config)
        return critics.applied(network(own), params, obs, *action).min(axis=0)

    def value(
        params: Params, config: TunedConfig, obs: Obs, *, chosen: Policy, key: jax.Array
    ) -> jax.Array:
        """Values `[B]` of a policy: the mean, or of one action drawn."""
        if _is_discrete(spec):
            return jnp.sum(chosen.probs * values(params, config, obs), axis=-1)
        return values(params, config, obs, chosen.sample(seed=key))

    def init(config: TunedConfig, key: jax.Array) -> OuterCritic:
        own = critic_config(settings, config)
        inputs = actor_critic.example(spec)
        return critics.init(own, network(own), key, *inputs, has_target=True)

    def prepare(
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
        v_t = value(
            critic.target_params,
            config,
            seen.next_obs,
            chosen=policy(config, state, seen.next_obs),
            key=next_key,
        )
        discount = settings.outer_gamma * (1.0 - seen.terminated)
        action = seen.action if _is_discrete(spec) else seen.action.reshape(size, -1)
        chosen: Any = ()
        if by_likelihood:
            now = policy(config, state, seen.obs)
            drawn = now.sample(seed=key, sample_shape=_SAMPLES)
            over_samples = jax.vmap(
                functools.partial(values, critic.params, config, seen.obs)
            )
            q = over_samples(drawn)
            chosen = Chosen(
                action=drawn, log_prob=now.log_prob(drawn), advantage=q - q.mean(axis=0)
            )
        batch = ActorBatch(
            obs=seen.obs,
            action=action,
            target=seen.reward[:, 0] + discount * v_t,
            critic=critic.params,
            key=jax.random.clone(key),
            chosen=chosen,
        )
        return jax.lax.stop_gradient(batch)

    def loss(config: TunedConfig, state: AgentState, data: ActorBatch) -> jax.Array:
        now = policy(config, state, data.obs)
        if isinstance(data.chosen, Chosen):
            drawn = data.chosen
            ratio = jnp.exp(now.log_prob(drawn.action) - drawn.log_prob)
            score = jnp.mean(ratio * drawn.advantage)
        else:
            key = jax.random.clone(data.key)
            score = value(data.critic, config, data.obs, chosen=now, key=key).mean()
        if agent.action_values is None or not settings.outer_value_cost:
            return -score
        q = agent.action_values(config, state, data.obs, data.action)
        return settings.outer_value_cost * optax.l2_loss(q - data.target).mean() - score

    def distance(
        config: TunedConfig, target: AgentState, state: AgentState, *, data: ActorBatch
    ) -> jax.Array:
        old, new = (policy(config, x, data.obs) for x in (target, state))
        if _is_discrete(spec):
            return divergence(old, new)
        goal, reached = (x.sample(seed=jax.random.clone(data.key)) for x in (old, new))
        return optax.l2_loss(reached, goal).mean()

    def update(
        config: TunedConfig,
        critic: OuterCritic,
        data: ActorBatch,
        *,
        progress: jax.Array,
        key: jax.Array,
    ) -> tuple[OuterCritic, Metrics]:
        own = critic_config(settings, config)

        def errors(params: Params, batch: ActorBatch) -> jax.Array:
            apply = functools.partial(critics.applied, network(own), params, batch.obs)
            if _is_discrete(spec):
                each = jax.vmap(losses.batched_index, (0, None))
                return each(apply(), batch.action) - batch.target
            return apply(batch.action) - batch.target

        # Batches of the replay are not gone over several times.
        once = own._replace(num_minibatches=0)
        new, metrics = critics.fit(
            settings,
            once,
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


def _critics(spec: Spec, config: CriticConfig) -> Network:
    return actor_critic.critics(spec, config, 2)


def _is_discrete(spec: Spec) -> bool:
    return isinstance(spec.action, Discrete)
