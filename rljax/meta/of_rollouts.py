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
from rljax.meta.types import (
    DistanceFn,
    Objective,
    OuterBatch,
    OuterCritic,
    OuterLossFn,
    Settings,
)
from rljax.networks import distributions
from rljax.types import (
    AgentState,
    Metrics,
    Params,
    Policy,
    PolicyFn,
    Rollout,
    Spec,
    ValuesFn,
)


def of_policy(
    policy: PolicyFn, value: ValuesFn | None, spec: Spec, settings: Settings
) -> Objective:
    """Score a policy by its likelihood ratios and advantages, and its critic's error.

    The policy learns by the likelihood of the rollout's actions, so it is scored so.
    """
    loss = functools.partial(_policy_loss, policy, value, settings)
    distance = functools.partial(_divergence, policy)
    return _objective(value, spec, settings, loss=loss, distance=distance)


def of_value(value: ValuesFn, spec: Spec, settings: Settings) -> Objective:
    """Score values by their errors: of an agent that only predicts."""
    loss = functools.partial(_value_loss, value)
    distance = functools.partial(_value_distance, value)
    return _objective(value, spec, settings, loss=loss, distance=distance)


def _objective(
    value: ValuesFn | None,
    spec: Spec,
    settings: Settings,
    *,
    loss: OuterLossFn,
    distance: DistanceFn,
) -> Objective:
    inner = settings.outer_critic == "inner"

    def init(config: TunedConfig, key: jax.Array) -> OuterCritic:
        if inner:
            return OuterCritic(params=(), target_params=(), opt_state=())
        own = critic_config(settings, config)
        return critics.init(own, on_policy.critic(spec, own), key, spec.zeros(1))

    def update(
        config: TunedConfig,
        critic: OuterCritic,
        data: OuterBatch,
        *,
        progress: jax.Array,
        key: jax.Array,
    ) -> tuple[OuterCritic, Metrics]:
        if inner:
            return critic, {}
        own = critic_config(settings, config)

        def errors(params: Params, batch: OuterBatch) -> jax.Array:
            network = on_policy.critic(spec, own)
            return critics.applied(network, params, batch.obs) - batch.target

        return critics.fit(
            settings,
            own,
            critic,
            examples=data,
            errors=errors,
            progress=progress,
            key=key,
        )

    return Objective(
        init=init,
        prepare=functools.partial(_along_rollout, value, spec, settings),
        loss=loss,
        distance=distance,
        update=update,
    )


def _along_rollout(
    value: ValuesFn | None,
    spec: Spec,
    settings: Settings,
    config: TunedConfig,
    state: AgentState,
    critic: OuterCritic,
    *,
    rollout: Rollout,
    key: jax.Array,
) -> OuterBatch:
    """Data of every step of a rollout, with lambda returns as targets."""
    del key  # nothing is drawn
    if settings.outer_critic == "inner":
        judge = functools.partial(shown(value), config, state)
    else:
        network = on_policy.critic(spec, critic_config(settings, config))
        judge = functools.partial(network.apply, critic.params)
    v_tm1, v_t = on_policy.bootstrap_values(judge, rollout, spec.max_steps)
    adv = advantages(settings, rollout, v_tm1, v_t=v_t)
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


def shown(value: ValuesFn | None) -> ValuesFn:
    """The agent's `value`; ValueError if the agent has none."""
    if value is None:
        raise ValueError(
            "tune: the agent has no `value`, which is scored unless outer_value_cost=0 "
            "and outer_critic='own'"
        )
    return value


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
    policy: PolicyFn,
    value: ValuesFn | None,
    settings: Settings,
    config: TunedConfig,
    state: AgentState,
    data: OuterBatch,
) -> jax.Array:
    """The policy's surrogate, with the value's error.

    Without the change of the outer discount's own critic.
    """
    total = surrogate(settings, policy(config, state, data.obs), data)
    if settings.outer_value_cost:
        error = _value_loss(shown(value), config, state, data)
        total += settings.outer_value_cost * error
    return total


def divergence(old: Policy, new: Policy) -> jax.Array:
    """Mean divergence `[]` of a new policy from an old one, its parts added."""
    return jnp.sum(jnp.stack([d.mean() for d in distributions.divergences(old, new)]))


def _divergence(
    policy: PolicyFn,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: OuterBatch,
) -> jax.Array:
    old, new = (policy(config, x, data.obs) for x in (target, state))
    return divergence(old, new)


def _value_loss(
    value: ValuesFn, config: TunedConfig, state: AgentState, data: OuterBatch
) -> jax.Array:
    predicted = value(config, state, data.obs)
    return optax.l2_loss(predicted, data.target).mean()


def _value_distance(
    value: ValuesFn,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: OuterBatch,
) -> jax.Array:
    goal, reached = (value(config, x, data.obs) for x in (target, state))
    return optax.l2_loss(reached, goal).mean()
