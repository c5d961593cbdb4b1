"""MPO. Abdolmaleki et al. (2018), https://arxiv.org/abs/1806.06920.

Bounds on mean and deviation apart: Abdolmaleki et al. (2018),
https://arxiv.org/abs/1812.02256; here per dimension, https://arxiv.org/abs/2006.00979.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import losses, replay
from rljax.contracts import Network
from rljax.learners import actor_critic
from rljax.learners.actor_critic import Keyed
from rljax.losses import LagrangePenalty
from rljax.networks import distributions
from rljax.replay import priority
from rljax.types import Agent, Discrete, Metrics, Obs, OptState, Params, Rollout, Spec

_SMALL: dict[str, Any] = dict(learning_rate=1e-3, batch_size=128, hidden_sizes=(64, 64))
_BRIEF = _SMALL | dict(total_steps=20_000, warmup_steps=500, n_step=1)
PRESETS: dict[str, cfg.Preset] = {
    "CartPole-v1": cfg.Preset(_SMALL | dict(total_steps=500_000, num_envs=16)),
    "Pendulum-v1": cfg.Preset(_BRIEF),
}
_POSITIVE = (
    "epsilon",
    "epsilon_policy",
    "epsilon_mean",
    "epsilon_stddev",
    "dual_learning_rate",
    "temperature",
    "multiplier",
)

actor = actor_critic.stochastic_actor  # the policy's network


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 3e-4  # of Adam, for actor and critic
    dual_learning_rate: float = 1e-2  # likewise, for logarithms of the dual variables
    gamma: float = 0.99  # discount, cut at termination
    max_grad_norm: float = 1e3  # where each network's gradient is clipped
    target_rate: float = 0.01  # how far targets move to the networks they follow
    epsilon: float = 0.1  # divergence of the weighted actions from the target policy
    epsilon_policy: float = 1e-2  # of the policy from the target's; discrete actions
    epsilon_mean: float = 1e-2  # of its mean, per dimension; continuous actions
    epsilon_stddev: float = 1e-4  # likewise, of its standard deviation
    temperature: float = 1.0  # of the weights, at first
    multiplier: float = 1.0  # weight of each divergence, at first
    noise_damping: float = 1.0  # of noise that explores, below 1: correlated in time
    priority_exponent: float = 0.6  # 0: uniform, 1: in proportion
    importance_exponent: float = 0.4  # grows to 1, which undoes the priorities' bias
    total_steps: int = cfg.static(100_000)  # environment steps, all environments
    num_envs: int = cfg.static(1)
    rollout_length: int = cfg.static(1)  # steps per environment and iteration
    num_updates: int = cfg.static(1)  # gradient steps per iteration
    batch_size: int = cfg.static(256)
    num_samples: int = cfg.static(20)  # continuous actions of the target policy
    capacity: int = cfg.static(100_000)  # transitions in the replay
    n_step: int = cfg.static(3)  # rewards before the bootstrap
    priority: str = cfg.static("uniform")  # or "td_error", "grad_norm"
    sampler: str = cfg.static("replay")  # or "large_batch": scored afresh
    large_batch_factor: int = cfg.static(4)  # large batch over batch size
    warmup_steps: int = cfg.static(1_000)  # stored before the first update
    hidden_sizes: tuple[int, ...] = cfg.static((256, 256))  # of each network
    activation: str = cfg.static("relu")
    anneal: bool = cfg.static(False)  # learning rates fall linearly to 0

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        actor_critic.validate(self)
        for name in _POSITIVE:
            cfg.check_range(self, name, low=0.0, open_low=True)
        cfg.check_count(self, "num_samples")


class Duals(NamedTuple):
    """Logarithms of the dual variables, one for each bound."""

    temperature: jax.Array  # []
    multipliers: tuple[jax.Array, ...]  # [] of the policy; or [D] of mean and stddev


class OptStates(NamedTuple):
    """Of Adam, one for each network and for the dual variables."""

    actor: OptState
    critic: OptState
    duals: OptState


class State(NamedTuple):
    """What the agent learns, stores and counts."""

    actor: Params
    critic: Params
    duals: Duals
    opt_states: OptStates
    target_actor: Params  # an older copy
    target_critic: Params  # likewise
    replay: replay.Replay
    step: jax.Array  # [] int32, rollouts learned from


class Evidence(NamedTuple):
    """What the policy learns from in one state: S sampled actions, or all of them."""

    values: jax.Array  # [S] of the target critic
    log_weights: jax.Array  # [S] of S times each one's share
    log_probs: jax.Array  # [S] of the policy
    kls: tuple[jax.Array, ...]  # of the policy from the target's, as the multipliers


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are continuous and a bound is infinite.
    """
    if not isinstance(spec.action, Discrete):
        distributions.check_bounded("mpo", spec)
    return Agent(
        init=functools.partial(init, spec),
        memory=functools.partial(actor_critic.memory, spec),
        act=functools.partial(actor_critic.act, spec),
        observe=actor_critic.observe,
        update=functools.partial(update, spec),
    )


def critic(spec: Spec, config: Config) -> Network:
    """One network: `[1]` value of an action, or `[1, A]` of all discrete ones."""
    return actor_critic.critics(spec, config, 1)


class Choice(NamedTuple):
    """The target policy in one state and S of its actions, or all discrete ones."""

    policy: distrax.Distribution
    x: Any  # [S, D] actions before the tanh; () of discrete ones
    values: jax.Array  # [S] by the target critic
    log_weights: jax.Array  # [S] of S times each one's share


def choose(
    spec: Spec, config: Config, bootstrap: State, *, obs: Obs, key: jax.Array
) -> Choice:
    """Draw actions of the target policy in one state."""
    policy = actor(spec, config).apply(bootstrap.target_actor, obs)
    q = functools.partial(critic(spec, config).apply, bootstrap.target_critic, obs)
    if isinstance(spec.action, Discrete):
        log_weights = policy.logits + jnp.log(spec.action.num_actions)
        return Choice(policy=policy, x=(), values=q()[0], log_weights=log_weights)
    x = policy.distribution.sample(seed=key, sample_shape=config.num_samples)
    values = jax.vmap(q)(policy.bijector.forward(x))[:, 0]
    log_weights = jnp.zeros_like(values)
    return Choice(policy=policy, x=x, values=values, log_weights=log_weights)


def td_errors(
    spec: Spec,
    config: Config,
    params: Params,
    *,
    bootstrap: State,
    transition: Keyed,
) -> jax.Array:
    """Temporal-difference error of one transition, `[1]`: of the critic.

    The semi-gradient is the gradient with respect to `params`, the critic's, alone;
    what the target takes from `bootstrap` stays differentiable.
    """
    window = transition.window
    reward, discount = priority.n_step_return(window, config.gamma)
    chosen = choose(spec, config, bootstrap, obs=window.next_obs, key=transition.key)
    q = functools.partial(critic(spec, config).apply, params, window.obs)
    discrete = isinstance(spec.action, Discrete)
    q_tm1 = q()[:, window.action] if discrete else q(window.action.reshape(-1))
    loss = functools.partial(
        losses.td_learning,
        r_t=reward,
        discount_t=discount,
        v_t=jnp.mean(jnp.exp(chosen.log_weights) * chosen.values),
        stop="none",
    )
    return jax.vmap(loss)(q_tm1)


def mpo_parts(config: Config, duals: Duals, evidence: Evidence) -> losses.MpoOutputs:
    """Parts of MPO's loss in one state; nothing is stopped."""
    continuous = len(duals.multipliers) == 2
    bounds = (config.epsilon_policy,)
    if continuous:
        bounds = (config.epsilon_mean, config.epsilon_stddev)
    constraints = [
        (kl, LagrangePenalty(alpha=alpha, epsilon=bound, per_dimension=continuous))
        for kl, alpha, bound in zip(
            evidence.kls, duals.multipliers, bounds, strict=True
        )
    ]
    # Values that give actions of equal shares the same weights.
    values = evidence.values + jnp.exp(duals.temperature) * evidence.log_weights
    _, parts = losses.mpo_loss(
        sample_log_probs=evidence.log_probs,
        sample_q_values=values,
        temperature_constraint=LagrangePenalty(
            alpha=duals.temperature, epsilon=config.epsilon
        ),
        kl_constraints=constraints,
        projection_operator=jnp.exp,
        stop="none",
    )
    return parts


def actor_loss(
    spec: Spec,
    config: Config,
    params: Params,
    obs: Obs,
    key: jax.Array,
    *,
    bootstrap: State,
) -> tuple[jax.Array, Evidence]:
    """Loss of the policy in one state, `[]`, and what the dual variables learn from.

    The policy's gradient is the gradient with respect to `params` alone.
    """
    chosen = choose(spec, config, bootstrap, obs=obs, key=key)
    policy = actor(spec, config).apply(params, obs)
    log_probs, kls = distributions.compare(chosen.policy, policy, chosen.x)
    evidence = Evidence(
        values=chosen.values,
        log_weights=chosen.log_weights,
        log_probs=log_probs,
        kls=kls,
    )
    parts = mpo_parts(config, bootstrap.duals, evidence)
    return parts.policy_loss + parts.kl_loss, evidence


def init(spec: Spec, config: Config, key: jax.Array) -> State:
    """Fresh networks, dual variables and optimisers, an empty replay."""
    actor_key, critic_key = jax.random.split(key)
    inputs = actor_critic.example(spec)
    actor_params = actor(spec, config).init(actor_key, inputs[0])
    critic_params = critic(spec, config).init(critic_key, *inputs)
    size = actor_critic.action_size(spec)
    shapes = ((size,), (size,)) if size else ((),)
    multipliers = tuple(jnp.full(shape, jnp.log(config.multiplier)) for shape in shapes)
    duals = Duals(temperature=jnp.log(config.temperature), multipliers=multipliers)
    targets = jax.tree.map(jnp.copy, (actor_params, critic_params))  # donatable
    return State(
        actor=actor_params,
        critic=critic_params,
        duals=duals,
        opt_states=OptStates(
            actor=actor_critic.init_optimizer(config, actor_params),
            critic=actor_critic.init_optimizer(config, critic_params),
            duals=actor_critic.init_optimizer(config, duals),
        ),
        target_actor=targets[0],
        target_critic=targets[1],
        replay=actor_critic.init_replay(spec, config),
        step=jnp.zeros((), jnp.int32),
    )


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Learn from samples of the replay."""
    del rollout  # the replay holds it already
    step = functools.partial(learn, spec, config)
    return actor_critic.learn(step, config, state, key=key, times=config.num_updates)


def learn(
    spec: Spec, config: Config, progress: jax.Array, state: State, key: jax.Array
) -> tuple[State, Metrics]:
    """One gradient step of everything, from the same batch and the same parameters."""
    sample_key, actor_key = jax.random.split(key)

    def critic_loss(params: Params, transition: Keyed) -> tuple[jax.Array, jax.Array]:
        errors = td_errors(spec, config, params, bootstrap=state, transition=transition)
        return actor_critic.critic_loss(errors)

    batch = actor_critic.sample(
        config,
        state.replay,
        sample_key,
        progress=progress,
        loss=critic_loss,
        params=state.critic,
    )
    new = priority.gradient(config, critic_loss, state.critic, batch=batch)
    actor_grads, value, evidence = actor_critic.policy_gradient(
        functools.partial(actor_loss, spec, config, bootstrap=state),
        state.actor,
        batch,
        actor_key,
    )

    def dual_loss(duals: Duals) -> jax.Array:
        parts = jax.vmap(lambda x: mpo_parts(config, duals, x))(evidence)
        return jnp.mean(batch.weights * (parts.temperature_loss + parts.alpha_loss))

    adam_step = functools.partial(actor_critic.adam_step, config, progress)
    old = state.opt_states
    actor_params, actor_opt = adam_step(
        state.actor, grads=actor_grads, opt_state=old.actor
    )
    critic_params, critic_opt = adam_step(
        state.critic, grads=new.mean, opt_state=old.critic
    )
    duals, duals_opt = adam_step(
        state.duals,
        grads=jax.grad(dual_loss)(state.duals),
        opt_state=old.duals,
        start_rate=config.dual_learning_rate,
    )
    new_state = State(
        actor=actor_params,
        critic=critic_params,
        duals=duals,
        opt_states=OptStates(actor=actor_opt, critic=critic_opt, duals=duals_opt),
        target_actor=actor_critic.follow(config, actor_params, state.target_actor),
        target_critic=actor_critic.follow(config, critic_params, state.target_critic),
        replay=priority.store(state.replay, batch, new.priorities),
        step=state.step,
    )
    return new_state, {
        "critic_loss": new.losses.mean(),
        "actor_loss": value,
        "kl": jnp.stack([kl.mean() for kl in evidence.kls]).sum(),
        "temperature": jnp.exp(duals.temperature),
    }
