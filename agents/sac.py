"""Soft actor-critic. Haarnoja et al. (2018), https://arxiv.org/abs/1801.01290.

Learnt temperature: Haarnoja et al. (2018), https://arxiv.org/abs/1812.05905.
Discrete actions: Christodoulou (2019), https://arxiv.org/abs/1910.07207.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import losses, replay
from rljax.contracts import Network
from rljax.learners import actor_critic
from rljax.learners.actor_critic import Keyed
from rljax.networks import distributions
from rljax.replay import priority
from rljax.types import (
    Agent,
    Discrete,
    Key,
    Metrics,
    Obs,
    OptState,
    Params,
    Spec,
    Torso,
)

PRESETS: dict[str, cfg.Preset] = {
    "CartPole-v1": cfg.Preset(
        dict(
            learning_rate=1e-3,
            batch_size=128,
            hidden_sizes=(64, 64),
            total_steps=500_000,
            num_envs=16,
            anneal=True,
            target_rate=0.01,
            target_entropy_ratio=0.3,
        )
    ),
    "Pendulum-v1": cfg.Preset(
        dict(
            learning_rate=1e-3,
            batch_size=128,
            hidden_sizes=(64, 64),
            total_steps=20_000,
            capacity=20_000,
            warmup_steps=500,
        )
    ),
    "brax/inverted_pendulum": cfg.Preset(
        dict(
            learning_rate=1e-3,
            batch_size=128,
            hidden_sizes=(64, 64),
            total_steps=20_000,
        ),
        env_params=None,
        wrap=dict(resets="cached"),
    ),
}

actor = actor_critic.stochastic_actor  # the policy's network


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = cfg.rate(3e-4)  # of Adam, for actor, critics and temperature
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    max_grad_norm: float = 1e3  # where each network's gradient is clipped
    target_rate: float = cfg.rate(0.005, high=1.0)  # how far targets move
    temperature: float = 1.0  # weight of the entropy, at first
    target_entropy: float = -1.0  # nats per dimension, of actions scaled to [-1, 1]
    target_entropy_ratio: float = 0.5  # discrete actions: of the greatest entropy
    noise_damping: float = 1.0  # of noise that explores, below 1: correlated in time
    priority_exponent: float = 0.6  # 0: uniform, 1: in proportion
    importance_exponent: float = 0.4  # grows to 1, which undoes the priorities' bias
    total_steps: int = cfg.static(100_000)  # environment steps, all environments
    num_envs: int = cfg.static(1)
    rollout_length: int = cfg.static(1)  # steps per environment and iteration
    num_updates: int = cfg.static(1)  # gradient steps per iteration
    batch_size: int = cfg.static(256)
    capacity: int = cfg.static(100_000)  # transitions in the replay
    n_step: int = cfg.static(1)  # rewards before the bootstrap
    priority: str = cfg.static("uniform")  # or "td_error", "grad_norm"
    sampler: str = cfg.static("replay")  # or "large_batch": scored afresh
    large_batch_factor: int = cfg.static(4)  # large batch over batch size
    warmup_steps: int = cfg.static(1_000)  # stored before the first update
    hidden_sizes: tuple[int, ...] = cfg.static((256, 256))  # of each network
    activation: str = cfg.static("relu")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(False)  # learning rate falls linearly to 0

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        actor_critic.validate(self)
        cfg.check_range(self, "temperature", low=0.0, open_low=True)
        cfg.check_range(self, "target_entropy")
        cfg.check_range(self, "target_entropy_ratio", low=0.0, high=1.0)


class State(NamedTuple):
    """Networks, optimisers, replay and counts of the agent."""

    actor: Params
    critic: Params  # two in one
    log_temperature: jax.Array  # []
    opt_states: dict[str, OptState]  # of Adam, for each network
    target_critic: Params  # an older copy
    replay: replay.Replay
    step: jax.Array  # [] int32, rollouts learned from


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: several choices at once, or continuous actions without a bound.
    """
    actor_critic.check_action("sac", spec)
    return actor_critic.make(
        spec,
        functools.partial(init, spec),
        functools.partial(learn, spec),
        times=lambda config: config.num_updates,
        size=lambda config: 2,
    )


def critic(spec: Spec, config: Config) -> Network:
    """Two networks: `[2]` values of an action, or `[2, A]` of all discrete ones."""
    return actor_critic.critics(spec, config, 2)


def td_errors(
    spec: Spec, config: Config, params: Params, transition: Keyed, *, bootstrap: State
) -> jax.Array:
    """Temporal-difference errors of one transition, `[2]`, one of each critic.

    The semi-gradient is the gradient with respect to `params`, the critics', alone;
    what the target takes from `bootstrap` stays differentiable.
    """
    window, key = transition.window, transition.key
    reward, discount = priority.n_step_return(window, config.gamma)
    apply = critic(spec, config).apply
    policy = actor(spec, config).apply(bootstrap.actor, window.next_obs)
    temperature = jnp.exp(bootstrap.log_temperature)
    if isinstance(spec.action, Discrete):
        discrete = functools.partial(
            losses.sac_discrete_learning,
            a_tm1=window.action,
            r_t=reward,
            discount_t=discount,
            q_t=apply(bootstrap.target_critic, window.next_obs),
            logits_t=policy.logits,
            temperature=temperature,
            stop="none",
        )
        return jax.vmap(discrete)(apply(params, window.obs))
    action, log_prob = policy.sample_and_log_prob(seed=key)
    continuous = functools.partial(
        losses.sac_learning,
        r_t=reward,
        discount_t=discount,
        q_t=apply(bootstrap.target_critic, window.next_obs, action),
        log_prob_t=log_prob,
        temperature=temperature,
        stop="none",
    )
    return jax.vmap(continuous)(apply(params, window.obs, window.action.reshape(-1)))


def actor_loss(
    spec: Spec, config: Config, params: Params, obs: Obs, key: Key, *, bootstrap: State
) -> tuple[jax.Array, jax.Array]:
    """Loss of the policy in one state, `[]`, and minus its entropy, or an estimate.

    Critics and temperature are those of `bootstrap`.
    """
    policy = actor(spec, config).apply(params, obs)
    q = functools.partial(critic(spec, config).apply, bootstrap.critic, obs)
    temperature = jnp.exp(bootstrap.log_temperature)
    if isinstance(spec.action, Discrete):
        loss = losses.sac_discrete_actor_loss(
            logits_t=policy.logits,
            q_t=q().min(axis=0),
            temperature=temperature,
            stop="none",
        )
        return loss, -policy.entropy()
    action, log_prob = policy.sample_and_log_prob(seed=key)
    q_min = q(action).min(axis=0)
    return losses.sac_actor_loss(log_prob, q_min, temperature), log_prob


def target_entropy(spec: Spec, config: Config) -> jax.Array:
    """Entropy at which the temperature holds the policy, `[]`, in nats."""
    if isinstance(spec.action, Discrete):
        return config.target_entropy_ratio * jnp.log(spec.action.num_actions)
    box = distributions.check_bounded("sac", spec)
    half = distributions.middle_and_half(box)[1]  # the density's unit
    return jnp.sum(config.target_entropy + jnp.log(half))


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh networks and optimisers, an empty replay."""
    networks = actor_critic.init_networks(
        spec, actor(spec, config), critic(spec, config), key
    )
    networks["log_temperature"] = jnp.log(config.temperature)
    return State(
        **networks,
        opt_states=actor_critic.init_optimizers(config, networks),
        target_critic=jax.tree.map(jnp.copy, networks["critic"]),  # donatable
        replay=actor_critic.init_replay(spec, config),
        step=jnp.zeros((), jnp.int32),
    )


def learn(
    spec: Spec, config: Config, progress: jax.Array, state: State, key: Key
) -> tuple[State, Metrics]:
    """One gradient step of everything, from the same batch and the same parameters."""
    found = actor_critic.gradients(
        config,
        state,
        key,
        progress=progress,
        td_errors=functools.partial(td_errors, spec, config, bootstrap=state),
        actor_loss=functools.partial(actor_loss, spec, config, bootstrap=state),
    )

    def temperature_loss(log_temperature: jax.Array) -> jax.Array:
        values = losses.sac_temperature_loss(
            log_temperature=log_temperature,
            log_prob_t=found.more,
            target_entropy=target_entropy(spec, config),
            stop="none",
        )
        return jnp.mean(found.batch.weights * values)

    networks, opt_states = actor_critic.adam_step(
        config,
        progress,
        {
            "actor": state.actor,
            "critic": state.critic,
            "log_temperature": state.log_temperature,
        },
        grads={
            "actor": found.actor,
            "critic": found.critic.mean,
            "log_temperature": jax.grad(temperature_loss)(state.log_temperature),
        },
        opt_states=state.opt_states,
    )
    target = actor_critic.follow(config, networks["critic"], state.target_critic)
    new_state = state._replace(
        **networks,
        opt_states=opt_states,
        target_critic=target,
        replay=priority.store(state.replay, found.batch, found.critic.priorities),
    )
    return new_state, {
        "critic_loss": found.critic.losses.mean(),
        "actor_loss": found.actor_loss,
        "entropy": -found.more.mean(),
        "temperature": jnp.exp(new_state.log_temperature),
    }
