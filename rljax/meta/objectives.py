"""Outer losses: how good an agent is by a fixed discount, and a critic of its own.

A learner scored by the discount that is tuned would do best with none, and an outer
advantage from the learner's critic inherits its bias: Bonnet et al. (2022),
https://arxiv.org/abs/2211.10550. So each objective keeps a network that learns values
at the outer discount.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import losses, networks, replay
from rljax.learners import on_policy, optimizers
from rljax.learners.on_policy import bootstrap_values as values
from rljax.networks import distributions
from rljax.types import Agent, Metrics, Params, Rollout, Spec

_AT_ONCE = 512  # observations by two networks: of a whole rollout it takes much memory


class Objective(NamedTuple):
    """An outer loss as a tuple of pure functions; `state` is the agent's.

    init:     `(config, key) -> critic`
    prepare:  `(config, state, critic, rollout, key) -> data`, of the newest rollout,
              constant in what follows
    loss:     `(config, state, data) -> []`
    distance: `(config, target, state, data) -> []`, of how two states behave
    update:   `(config, progress, critic, data, key) -> (critic, metrics)`
    """

    init: Callable[..., Any]
    prepare: Callable[..., Any]
    loss: Callable[..., jax.Array]
    distance: Callable[..., jax.Array]
    update: Callable[..., tuple[Any, Metrics]]


class Critic(NamedTuple):
    """A network of the outer discount's values."""

    params: Params
    target_params: Params  # an older copy, () for state values
    opt_state: Any  # of Adam, over the parameters as one flat vector


class CriticConfig(NamedTuple):
    """What the outer critic's network and its training take from a config."""

    learning_rate: Any = 1e-3
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    convolution: bool = True
    max_grad_norm: Any = 0.5
    target_rate: Any = 1.0  # of a Q-network whose agent has no target network
    anneal: bool = False
    adam_epsilon: Any = on_policy.EPS
    num_epochs: int = 1
    num_minibatches: int = 0  # 0: one step along the gradient of the whole rollout


def critic_config(settings: Any, config: Any) -> CriticConfig:
    """As the settings say; where they do not, as the agent's config; else as above."""
    defaults = CriticConfig()
    own = {name: getattr(config, name, x) for name, x in defaults._asdict().items()}
    names = {f"critic_{name}": name for name in defaults._fields} | {"anneal": "anneal"}
    said = {new: getattr(settings, old, None) for old, new in names.items()}
    return CriticConfig(**own | {k: v for k, v in said.items() if v is not None})


class Batch(NamedTuple):
    """What outer losses need of a rollout."""

    obs: Any  # [B, ...]
    action: jax.Array  # [B] or [B, *shape]
    log_prob: Any  # [B] of the action, when it was taken; () without a policy
    advantage: Any  # [B]; () without a policy
    target: jax.Array  # [B] what a value is to predict


def choose(agent: Agent, spec: Spec, settings: Any) -> Objective:
    """The objective that fits what the agent learns.

    Raises:
      ValueError: it shows neither a policy nor values.
    """
    if agent.policy is not None:
        return _of_states(agent, spec, settings, _policy_loss, _divergence)
    if agent.q_values is not None:
        return _of_actions(agent, spec, settings)
    if agent.value is not None:
        return _of_states(agent, spec, settings, _value_loss, _value_distance)
    raise ValueError("tune: the agent has no `policy`, `q_values` or `value` to score")


def _of_states(
    agent: Any, spec: Spec, settings: Any, loss: Any, distance: Any
) -> Objective:
    """Scored along the newest rollout, by state values and lambda returns."""

    def init(config: Any, key: jax.Array) -> Critic:
        if settings.outer_critic == "inner":
            return Critic((), (), ())
        obs = jnp.zeros((1, *spec.obs_shape), spec.obs_dtype)
        own = critic_config(settings, config)
        params = on_policy.critic(spec, own).init(key, obs)
        flat = ravel_pytree(params)[0]
        return Critic(params, (), optimizers.clipped_adam(own).init(flat))

    def prepare(
        config: Any, state: Any, critic: Critic, rollout: Rollout, key: jax.Array
    ) -> Batch:
        del key  # nothing is drawn
        if settings.outer_critic == "inner":
            value = functools.partial(agent.value, config, state)
        else:
            network = on_policy.critic(spec, critic_config(settings, config))
            value = functools.partial(network.apply, critic.params)
        v_tm1, v_t = values(value, rollout, spec.max_steps)
        discount, lambda_ = on_policy.cut(
            settings.outer_gamma, settings.outer_lambda, rollout
        )
        gae = jax.vmap(losses.generalized_advantage_estimation, 1, 1)
        adv = gae(rollout.reward, discount, v_tm1, v_t, lambda_)
        data = (rollout.obs, rollout.action, rollout.extras, adv, adv + v_tm1)
        return jax.lax.stop_gradient(on_policy.flatten(Batch(*data)))

    def update(
        config: Any, progress: Any, critic: Critic, data: Batch, key: jax.Array
    ) -> tuple[Critic, Metrics]:
        own = critic_config(settings, config)
        if settings.outer_critic == "inner":
            return critic, {}
        error = functools.partial(on_policy.value_loss, spec, own)
        return _fit(settings, own, progress, error, critic, data, key)

    return Objective(
        init=init,
        prepare=prepare,
        loss=functools.partial(loss, agent, settings),
        distance=functools.partial(distance, agent),
        update=update,
    )


def _fit(
    settings: Any,
    config: CriticConfig,
    progress: Any,
    error: Any,
    critic: Critic,
    data: Batch,
    key: jax.Array,
) -> tuple[Critic, Metrics]:
    """As many gradient steps as the agent takes with a rollout."""
    start = settings.outer_critic_rate * config.learning_rate
    rate = optimizers.annealed(config, progress, start)
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
        of_params = functools.partial(error, batch=data)
        params, opt_state, metrics = on_policy.adam_step(
            config,
            rate,
            of_params,
            params=critic.params,
            opt_state=critic.opt_state,
        )
    critic = critic._replace(params=params, opt_state=opt_state)
    return critic, {"outer_value_loss": metrics["value_loss"]}


def _policy_loss(
    agent: Any, settings: Any, config: Any, state: Any, data: Batch
) -> jax.Array:
    """The policy's surrogate, with the value's error and less an entropy bonus.

    Xu et al. (2018), eq. 11 to 13, with ratios for what acted, and without the change
    of the outer discount's own critic.
    """
    policy = agent.policy(config, state, data.obs)
    ratio = jnp.exp(policy.log_prob(data.action) - data.log_prob)
    total = -jnp.mean(ratio * data.advantage)
    if settings.outer_value_cost:
        error = _value_loss(agent, settings, config, state, data)
        total += settings.outer_value_cost * error
    if settings.outer_entropy_cost:
        total -= settings.outer_entropy_cost * policy.entropy().mean()
    return total


def _divergence(
    agent: Any, config: Any, target: Any, state: Any, data: Batch
) -> jax.Array:
    old, new = (agent.policy(config, x, data.obs) for x in (target, state))
    return jnp.sum(jnp.stack([d.mean() for d in distributions.divergences(old, new)]))


def _value_loss(
    agent: Any, settings: Any, config: Any, state: Any, data: Batch
) -> jax.Array:
    del settings
    value = agent.value(config, state, data.obs)
    return optax.l2_loss(value, data.target).mean()


def _value_distance(
    agent: Any, config: Any, target: Any, state: Any, data: Batch
) -> jax.Array:
    goal, value = (agent.value(config, x, data.obs) for x in (target, state))
    return optax.l2_loss(value, goal).mean()


def _of_actions(agent: Any, spec: Spec, settings: Any) -> Objective:
    """Scored by TD errors: on the newest rollout, or on a batch of the replay.

    The outer critic values what the agent would do next. An action that only it
    overrates is not tried, so nothing would correct its own greedy choice: Ostrovski
    et al. (2021), https://arxiv.org/abs/2110.14020.
    """
    if settings.outer_critic == "inner":
        raise ValueError("outer_critic='inner': only of agents with a policy")

    network = functools.partial(_q_network, spec)

    def init(config: Any, key: jax.Array) -> Critic:
        obs = jnp.zeros((1, *spec.obs_shape), spec.obs_dtype)
        own = critic_config(settings, config)
        params = network(own).init(key, obs)
        flat = ravel_pytree(params)[0]
        opt_state = optimizers.clipped_adam(own).init(flat)
        return Critic(params, jax.tree.map(jnp.copy, params), opt_state)

    def prepare(
        config: Any, state: Any, critic: Critic, rollout: Rollout, key: jax.Array
    ) -> Batch:
        seen: Any = on_policy.flatten(rollout._replace(simulation=()))
        if hasattr(state, "replay"):
            seen = replay.sample(state.replay, key, config.batch_size).windows
            seen = seen._replace(reward=seen.reward[:, 0])
        own = critic_config(settings, config)
        args = (agent, config, state, network(own), critic.target_params)
        value = functools.partial(_value_of_choice, *args)
        v_t = jax.lax.map(value, seen.next_obs, batch_size=_AT_ONCE)
        discount = settings.outer_gamma * (1.0 - seen.terminated)
        data = (seen.obs, seen.action, (), (), seen.reward + discount * v_t)
        return jax.lax.stop_gradient(Batch(*data))

    def loss(config: Any, state: Any, data: Batch) -> jax.Array:
        q = agent.q_values(config, state, data.obs)
        chosen = losses.batched_index(q, data.action)
        return optax.l2_loss(chosen, data.target).mean()

    def distance(config: Any, target: Any, state: Any, data: Batch) -> jax.Array:
        goal, q = (agent.q_values(config, x, data.obs) for x in (target, state))
        return optax.l2_loss(q, goal).mean()

    def update(
        config: Any, progress: Any, critic: Critic, data: Batch, key: jax.Array
    ) -> tuple[Critic, Metrics]:
        own = critic_config(settings, config)

        def error(params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
            q = network(own).apply(params, batch.obs)
            chosen = losses.batched_index(q, batch.action)
            total = optax.l2_loss(chosen, batch.target).mean()
            return total, {"value_loss": total}

        new, metrics = _fit(settings, own, progress, error, critic, data, key)
        rate = own.target_rate
        moved = optax.incremental_update(new.params, critic.target_params, rate)
        return new._replace(target_params=moved), metrics

    return Objective(init, prepare, loss, distance, update)


def _q_network(spec: Spec, config: Any) -> Any:
    action: Any = spec.action
    return networks.QNetwork(
        len(spec.obs_shape),
        action.num_actions,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        reading=spec.reading,
    )


def _value_of_choice(
    agent: Any, config: Any, state: Any, network: Any, params: Params, obs: Any
) -> jax.Array:
    """What the critic says of the action that the agent would take, `[]`."""
    action = agent.q_values(config, state, obs[None]).argmax(axis=-1)
    return losses.batched_index(network.apply(params, obs[None]), action)[0]
