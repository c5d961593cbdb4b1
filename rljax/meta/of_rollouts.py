"""Scores along the newest rollout, by state values and lambda returns."""

import functools

import jax
import jax.numpy as jnp
import optax

from rljax import losses
from rljax.contracts import TunedConfig
from rljax.learners import on_policy
from rljax.meta import critics
from rljax.meta.critics import critic_config
from rljax.meta.types import Objective, OuterBatch, OuterCritic, Scored, Settings
from rljax.networks import distributions
from rljax.types import (
    Agent,
    AgentState,
    Metrics,
    Params,
    Policy,
    Rollout,
    Spec,
)


def of_policy(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Score a policy by its likelihood ratios and advantages, and its critic's error.

    The policy learns by the likelihood of the rollout's actions, so it is scored so.
    """
    scored = Scored(agent=agent, spec=spec, settings=settings)
    return scored.objective(
        init=_init,
        prepare=_prepare,
        loss=_policy_loss,
        distance=_policy_distance,
        update=_update,
    )


def of_value(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Score values by their errors: of an agent that only predicts."""
    scored = Scored(agent=agent, spec=spec, settings=settings)
    return scored.objective(
        init=_init,
        prepare=_prepare,
        loss=_value_loss,
        distance=_value_distance,
        update=_update,
    )


def _has_critic(scored: Scored) -> bool:
    """Whether the score has a critic of its own."""
    return scored.settings.outer_critic == "own"


def _init(scored: Scored, config: TunedConfig, key: jax.Array) -> OuterCritic:
    if not _has_critic(scored):
        return OuterCritic(params=(), target_params=(), opt_state=())
    own, spec = critic_config(scored.settings, config), scored.spec
    return critics.init(own, on_policy.critic(spec, own), key, spec.zeros(1))


def _prepare(
    scored: Scored,
    config: TunedConfig,
    state: AgentState,
    critic: OuterCritic,
    *,
    rollout: Rollout,
    key: jax.Array,
) -> OuterBatch:
    """Data of every step of a rollout, with lambda returns as targets."""
    del key  # nothing is drawn
    if _has_critic(scored):
        own = critic_config(scored.settings, config)
        network = on_policy.critic(scored.spec, own)
        judge = functools.partial(network.apply, critic.params)
    else:
        judge = functools.partial(scored.value, config, state)
    v_tm1, v_t = on_policy.bootstrap_values(judge, rollout, scored.spec.max_steps)
    adv = advantages(scored.settings, rollout, v_tm1, v_t=v_t)
    batch = OuterBatch(
        obs=rollout.obs,
        action=rollout.action,
        log_prob=rollout.extras,
        advantage=adv,
        target=adv + v_tm1,
    )
    return jax.lax.stop_gradient(on_policy.flatten(batch))


def advantages(
    settings: Settings, rollout: Rollout, v_tm1: jax.Array, *, v_t: jax.Array
) -> jax.Array:
    """Generalised advantages `[T, N]` at the outer discount."""
    discount, lambda_ = on_policy.cut(
        settings.outer_gamma, settings.outer_lambda, rollout=rollout
    )
    gae = jax.vmap(losses.generalized_advantage_estimation, in_axes=1, out_axes=1)
    return gae(rollout.reward, discount, v_tm1, v_t, lambda_)


def surrogate(settings: Settings, policy: Policy, data: OuterBatch) -> jax.Array:
    """The policy's surrogate less an entropy bonus, `[]`.

    Xu et al. (2018), eq. 11 to 13, with ratios for what acted.
    """
    ratio = jnp.exp(policy.log_prob(data.action) - data.log_prob)
    total = -jnp.mean(ratio * data.advantage)
    if settings.outer_entropy_cost:
        total -= settings.outer_entropy_cost * policy.entropy().mean()
    return total


def _policy_loss(
    scored: Scored, config: TunedConfig, state: AgentState, data: OuterBatch
) -> jax.Array:
    """The policy's surrogate, with the value's error.

    Without the change of the outer discount's own critic.
    """
    total = surrogate(scored.settings, scored.policy(config, state, data.obs), data)
    if cost := scored.settings.outer_value_cost:
        total += cost * _value_loss(scored, config, state, data)
    return total


def divergence(old: Policy, new: Policy) -> jax.Array:
    """Mean divergence `[]` of a new policy from an old one, its parts added."""
    return jnp.sum(jnp.stack([d.mean() for d in distributions.divergences(old, new)]))


def _policy_distance(
    scored: Scored,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: OuterBatch,
) -> jax.Array:
    old, new = (scored.policy(config, x, data.obs) for x in (target, state))
    return divergence(old, new)


def _value_loss(
    scored: Scored, config: TunedConfig, state: AgentState, data: OuterBatch
) -> jax.Array:
    predicted = scored.value(config, state, data.obs)
    return optax.l2_loss(predicted, data.target).mean()


def _value_distance(
    scored: Scored,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: OuterBatch,
) -> jax.Array:
    goal, reached = (scored.value(config, x, data.obs) for x in (target, state))
    return optax.l2_loss(reached, goal).mean()


def _update(
    scored: Scored,
    config: TunedConfig,
    critic: OuterCritic,
    data: OuterBatch,
    *,
    progress: jax.Array,
    key: jax.Array,
) -> tuple[OuterCritic, Metrics]:
    if not _has_critic(scored):
        return critic, {}
    own = critic_config(scored.settings, config)

    def errors(params: Params, batch: OuterBatch) -> jax.Array:
        network = on_policy.critic(scored.spec, own)
        return critics.applied(network, params, batch.obs) - batch.target

    return critics.fit(
        scored.settings,
        own,
        critic,
        examples=data,
        errors=errors,
        progress=progress,
        key=key,
    )
