"""Outer losses: scores of an agent by a fixed discount, with a critic of that discount.

A learner scored by the discount that is tuned would do best with none, and an outer
advantage from the learner's critic inherits that critic's bias: Bonnet et al. (2022),
https://arxiv.org/abs/2211.10550. So each objective keeps a network that learns values
at the outer discount.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import losses, networks, replay
from rljax.contracts import Network, ReplayConfig, TunedConfig
from rljax.learners import on_policy, optimizers
from rljax.meta.recorded import holds_replay
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
    Agent,
    AgentState,
    Discrete,
    Leaf,
    Metrics,
    Obs,
    Params,
    PolicyFn,
    Rollout,
    Spec,
    Torso,
    ValuesFn,
)

_AT_ONCE = 512  # observations by two networks: of a whole rollout it takes much memory

PredictFn = Callable[[Params, OuterBatch], jax.Array]  # the critic's values [B]


class CriticConfig(NamedTuple):
    """Numbers that make the outer critic's network and its training."""

    learning_rate: float = 1e-3
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    torso: Torso = "minatar"
    layer_norm: bool = False
    compute_dtype: str = "float32"
    max_grad_norm: float = 0.5
    target_rate: float = 1.0  # of a Q-network whose agent has no target network
    anneal: bool = False
    adam_epsilon: float = on_policy.EPS
    num_epochs: int = 1
    num_minibatches: int = 0  # 0: one step along the gradient of the whole rollout


def critic_config(settings: Settings, config: TunedConfig) -> CriticConfig:
    """Each number as the settings say, else as the agent's config, else the default."""
    defaults = CriticConfig()._asdict()
    own = {
        name: getattr(config, name, default)
        for name, default in defaults.items()
        if name != "layer_norm"  # the critic's training does not need it
    }
    said = {
        "learning_rate": settings.critic_learning_rate,
        "hidden_sizes": settings.critic_hidden_sizes,
        "activation": settings.critic_activation,
        "torso": settings.critic_torso,
        "max_grad_norm": settings.critic_max_grad_norm,
        "target_rate": settings.critic_target_rate,
        "anneal": settings.anneal,
    }
    given = {name: value for name, value in said.items() if value is not None}
    return CriticConfig(**own | given)


def choose(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Choose the objective that fits what the agent learns.

    Raises:
      ValueError: it shows neither a policy nor values.
    """
    if agent.policy is not None:
        loss = functools.partial(_policy_loss, agent.policy, agent.value, settings)
        distance = functools.partial(_divergence, agent.policy)
        return _of_states(agent.value, spec, settings, loss=loss, distance=distance)
    if agent.q_values is not None:
        return _of_actions(agent.q_values, spec, settings)
    if agent.value is not None:
        loss = functools.partial(_value_loss, agent.value)
        distance = functools.partial(_value_distance, agent.value)
        return _of_states(agent.value, spec, settings, loss=loss, distance=distance)
    raise ValueError("tune: the agent has no `policy`, `q_values` or `value` to score")


def _of_states(
    value: ValuesFn | None,
    spec: Spec,
    settings: Settings,
    *,
    loss: OuterLossFn,
    distance: DistanceFn,
) -> Objective:
    """Score along the newest rollout, by state values and lambda returns."""
    inner = settings.outer_critic == "inner"

    def init(config: TunedConfig, key: jax.Array) -> OuterCritic:
        if inner:
            return OuterCritic(params=(), target_params=(), opt_state=())
        own = critic_config(settings, config)
        params = on_policy.critic(spec, own).init(key, spec.zeros(1))
        flat = ravel_pytree(params)[0]
        opt_state = optimizers.clipped_adam(own).init(flat)
        return OuterCritic(params=params, target_params=(), opt_state=opt_state)

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

        def predict(params: Params, batch: OuterBatch) -> jax.Array:
            return _applied(on_policy.critic(spec, own), params, batch.obs)

        rate = _rate(settings, own, progress)
        return _fit(own, critic, data, rate=rate, predict=predict, key=key)

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
        judge = functools.partial(_shown(value), config, state)
    else:
        network = on_policy.critic(spec, critic_config(settings, config))
        judge = functools.partial(network.apply, critic.params)
    v_tm1, v_t = on_policy.bootstrap_values(judge, rollout, spec.max_steps)
    discount, lambda_ = on_policy.cut(
        settings.outer_gamma, settings.outer_lambda, rollout=rollout
    )
    gae = jax.vmap(losses.generalized_advantage_estimation, in_axes=1, out_axes=1)
    adv = gae(rollout.reward, discount, v_tm1, v_t, lambda_)
    batch = OuterBatch(
        obs=rollout.obs,
        action=rollout.action,
        log_prob=rollout.extras,
        advantage=adv,
        target=adv + v_tm1,
    )
    return jax.lax.stop_gradient(on_policy.flatten(batch))


def _rate(settings: Settings, config: CriticConfig, progress: jax.Array) -> Leaf:
    """The outer critic's learning rate."""
    start = settings.outer_critic_rate * config.learning_rate
    return optimizers.annealed(config, progress, start)


def _fit(
    config: CriticConfig,
    critic: OuterCritic,
    data: OuterBatch,
    *,
    rate: Leaf,
    predict: PredictFn,
    key: jax.Array,
) -> tuple[OuterCritic, Metrics]:
    """Take as many gradient steps as the agent takes with a rollout."""

    def error(params: Params, batch: OuterBatch) -> tuple[jax.Array, Metrics]:
        total = optax.l2_loss(predict(params, batch), batch.target).mean()
        return total, {"value_loss": total}

    if config.num_minibatches:
        params, opt_state, metrics = on_policy.fit_epochs(
            config,
            rate,
            error,
            params=critic.params,
            opt_state=critic.opt_state,
            batch=data,
            key=key,
        )
    else:
        params, opt_state, metrics = on_policy.adam_step(
            config,
            rate,
            functools.partial(error, batch=data),
            params=critic.params,
            opt_state=critic.opt_state,
        )
    critic = critic._replace(params=params, opt_state=opt_state)
    return critic, {"outer_value_loss": metrics["value_loss"]}


def _shown(value: ValuesFn | None) -> ValuesFn:
    """The agent's `value`; ValueError if the agent has none."""
    if value is None:
        raise ValueError(
            "tune: the agent has no `value`, which is scored unless outer_value_cost=0 "
            "and outer_critic='own'"
        )
    return value


def _policy_loss(
    policy: PolicyFn,
    value: ValuesFn | None,
    settings: Settings,
    config: TunedConfig,
    state: AgentState,
    data: OuterBatch,
) -> jax.Array:
    """The policy's surrogate, with the value's error and less an entropy bonus.

    Xu et al. (2018), eq. 11 to 13, with ratios for what acted, and without the change
    of the outer discount's own critic.
    """
    distribution = policy(config, state, data.obs)
    ratio = jnp.exp(distribution.log_prob(data.action) - data.log_prob)
    total = -jnp.mean(ratio * data.advantage)
    if settings.outer_value_cost:
        error = _value_loss(_shown(value), config, state, data)
        total += settings.outer_value_cost * error
    if settings.outer_entropy_cost:
        total -= settings.outer_entropy_cost * distribution.entropy().mean()
    return total


def _divergence(
    policy: PolicyFn,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: OuterBatch,
) -> jax.Array:
    old, new = (policy(config, x, data.obs) for x in (target, state))
    return jnp.sum(jnp.stack([d.mean() for d in distributions.divergences(old, new)]))


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


def _of_actions(q_values: ValuesFn, spec: Spec, settings: Settings) -> Objective:
    """Score by TD errors: on the newest rollout, or on a batch of the replay.

    The outer critic values the action that the agent would take next. An action that
    only the critic overrates is not tried, so nothing would correct the critic's own
    greedy choice: Ostrovski et al. (2021), https://arxiv.org/abs/2110.14020.
    """
    if settings.outer_critic == "inner":
        raise ValueError("outer_critic='inner': only of agents with a policy")

    network = functools.partial(_q_network, spec)

    def init(config: TunedConfig, key: jax.Array) -> OuterCritic:
        own = critic_config(settings, config)
        params = network(own).init(key, spec.zeros(1))
        flat = ravel_pytree(params)[0]
        return OuterCritic(
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizers.clipped_adam(own).init(flat),
        )

    def loss(config: TunedConfig, state: AgentState, data: OuterBatch) -> jax.Array:
        q = q_values(config, state, data.obs)
        chosen = losses.batched_index(q, data.action)
        return optax.l2_loss(chosen, data.target).mean()

    def distance(
        config: TunedConfig, target: AgentState, state: AgentState, *, data: OuterBatch
    ) -> jax.Array:
        goal, q = (q_values(config, x, data.obs) for x in (target, state))
        return optax.l2_loss(q, goal).mean()

    def update(
        config: TunedConfig,
        critic: OuterCritic,
        data: OuterBatch,
        *,
        progress: jax.Array,
        key: jax.Array,
    ) -> tuple[OuterCritic, Metrics]:
        own = critic_config(settings, config)

        def predict(params: Params, batch: OuterBatch) -> jax.Array:
            q = _applied(network(own), params, batch.obs)
            return losses.batched_index(q, batch.action)

        start = _rate(settings, own, progress)
        new, metrics = _fit(own, critic, data, rate=start, predict=predict, key=key)
        rate = own.target_rate
        moved = optax.incremental_update(new.params, critic.target_params, rate)
        return new._replace(target_params=moved), metrics

    return Objective(
        init=init,
        prepare=functools.partial(_of_choices, q_values, spec, settings),
        loss=loss,
        distance=distance,
        update=update,
    )


def _of_choices(
    q_values: ValuesFn,
    spec: Spec,
    settings: Settings,
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
    network = _q_network(spec, critic_config(settings, config))

    def judge(obs: Obs) -> jax.Array:
        """The critic's value `[]` of the action that the agent would take."""
        alone = jax.tree.map(lambda x: x[None], obs)
        action = q_values(config, state, alone).argmax(axis=-1)
        q = _applied(network, critic.target_params, alone)
        return losses.batched_index(q, action)[0]

    v_t = jax.lax.map(judge, seen.next_obs, batch_size=_AT_ONCE)
    discount = settings.outer_gamma * (1.0 - seen.terminated)
    batch = OuterBatch(
        obs=seen.obs,
        action=seen.action,
        log_prob=(),
        advantage=(),
        target=seen.reward + discount * v_t,
    )
    return jax.lax.stop_gradient(batch)


def _applied(network: Network, params: Params, obs: Obs) -> jax.Array:
    """Apply a network that returns nothing but values."""
    output: Any = network.apply(params, obs)
    return output


def _q_network(spec: Spec, config: CriticConfig) -> networks.QNetwork:
    assert isinstance(spec.action, Discrete)
    return networks.QNetwork(
        body=networks.body(spec, config), num_actions=spec.action.num_actions
    )
