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
from rljax.learners import actor_critic, duals
from rljax.learners.actor_critic import Keyed
from rljax.learners.duals import Duals
from rljax.networks import Torso, distributions
from rljax.replay import priority
from rljax.types import Agent, Discrete, Key, Metrics, Obs, OptState, Params, Spec

PRESETS: dict[str, cfg.Preset] = {
    "CartPole-v1": cfg.Preset(
        dict(
            learning_rate=1e-3,
            batch_size=128,
            hidden_sizes=(64, 64),
            total_steps=500_000,
            num_envs=16,
        )
    ),
    "Pendulum-v1": cfg.Preset(
        dict(
            learning_rate=1e-3,
            batch_size=128,
            hidden_sizes=(64, 64),
            total_steps=20_000,
            warmup_steps=500,
            n_step=1,
        )
    ),
}
actor = actor_critic.stochastic_actor  # the policy's network


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = cfg.rate(3e-4)  # of Adam, for actor and critic
    dual_learning_rate: float = 1e-2  # likewise, for logarithms of the dual variables
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    max_grad_norm: float = 1e3  # where each network's gradient is clipped
    target_rate: float = cfg.rate(0.01, high=1.0)  # how far targets move
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
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(False)  # learning rates fall linearly to 0

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        actor_critic.validate(self)
        for name in ("epsilon", "epsilon_policy", "epsilon_mean", "epsilon_stddev"):
            cfg.check_range(self, name, low=0.0, open_low=True)
        for name in ("dual_learning_rate", "temperature", "multiplier"):
            cfg.check_range(self, name, low=0.0, open_low=True)
        cfg.check_count(self, "num_samples")


class State(NamedTuple):
    """Networks, optimisers, replay and counts of the agent."""

    actor: Params
    critic: Params
    duals: Duals
    opt_states: dict[str, OptState]  # of Adam, for each network
    target_actor: Params  # an older copy
    target_critic: Params  # likewise
    replay: replay.Replay
    step: jax.Array  # [] int32, rollouts learned from


class Evidence(NamedTuple):
    """Evidence for the policy in one state: S sampled actions, or all of them."""

    values: jax.Array  # [S] of the target critic
    log_weights: jax.Array  # [S] of S times each one's share
    log_probs: jax.Array  # [S] of the policy
    kls: tuple[jax.Array, ...]  # of the policy from the target's, as the multipliers


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: several choices at once, or continuous actions without a bound.
    """
    actor_critic.check_action("mpo", spec)
    agent = actor_critic.make(
        spec,
        functools.partial(init, spec),
        functools.partial(learn, spec),
        times=lambda config: config.num_updates,
        size=lambda config: 1,
    )
    return agent._replace(policy_gradient="likelihood")


def critic(spec: Spec, config: Config) -> Network:
    """One network: `[1]` value of an action, or `[1, A]` of all discrete ones."""
    return actor_critic.critics(spec, config, 1)


def choose(
    spec: Spec, config: Config, bootstrap: State, *, obs: Obs, key: Key
) -> tuple[distrax.Distribution, Any, jax.Array, jax.Array]:
    """The target policy in one state and S of its actions, or all discrete ones.

    Returns:
      The policy, actions before the tanh `[S, D]` or none, values `[S]` by the target
      critic, and `[S]` logarithms of S times each one's share.
    """
    policy = actor(spec, config).apply(bootstrap.target_actor, obs)
    q = functools.partial(critic(spec, config).apply, bootstrap.target_critic, obs)
    if isinstance(spec.action, Discrete):
        return policy, (), q()[0], policy.logits + jnp.log(spec.action.num_actions)
    x = policy.distribution.sample(seed=key, sample_shape=config.num_samples)
    values = jax.vmap(q)(policy.bijector.forward(x))[:, 0]
    return policy, x, values, jnp.zeros_like(values)


def td_errors(
    spec: Spec, config: Config, params: Params, transition: Keyed, *, bootstrap: State
) -> jax.Array:
    """Temporal-difference error of one transition, `[1]`: of the critic.

    The semi-gradient is the gradient with respect to `params`, the critic's, alone;
    what the target takes from `bootstrap` stays differentiable.
    """
    window = transition.window
    reward, discount = priority.n_step_return(window, config.gamma)
    *_, q_t, log_weights = choose(
        spec, config, bootstrap, obs=window.next_obs, key=transition.key
    )
    q = functools.partial(critic(spec, config).apply, params, window.obs)
    discrete = isinstance(spec.action, Discrete)
    q_tm1 = q()[:, window.action] if discrete else q(window.action.reshape(-1))
    loss = functools.partial(
        losses.td_learning,
        r_t=reward,
        discount_t=discount,
        v_t=jnp.mean(jnp.exp(log_weights) * q_t),
        stop="none",
    )
    return jax.vmap(loss)(q_tm1)


def mpo_parts(
    config: Config, variables: Duals, evidence: Evidence
) -> losses.MpoOutputs:
    """Parts of MPO's loss in one state; nothing is stopped."""
    # Values that give actions of equal shares the same weights.
    values = evidence.values + jnp.exp(variables.temperature) * evidence.log_weights
    _, parts = losses.mpo_loss(
        sample_log_probs=evidence.log_probs,
        sample_q_values=values,
        temperature_constraint=duals.temperature(config, variables),
        kl_constraints=duals.constraints(
            config, variables, evidence.kls, per_dimension=len(evidence.kls) == 2
        ),
        projection_operator=jnp.exp,
        stop="none",
    )
    return parts


def actor_loss(
    spec: Spec, config: Config, params: Params, obs: Obs, key: Key, *, bootstrap: State
) -> tuple[jax.Array, Evidence]:
    """Loss of the policy in one state, `[]`, and what the dual variables learn from.

    The policy's gradient is the gradient with respect to `params` alone.
    """
    target, x, values, log_weights = choose(spec, config, bootstrap, obs=obs, key=key)
    policy = actor(spec, config).apply(params, obs)
    log_probs, kls = distributions.compare(target, policy, x)
    evidence = Evidence(
        values=values, log_weights=log_weights, log_probs=log_probs, kls=kls
    )
    parts = mpo_parts(config, bootstrap.duals, evidence)
    return parts.policy_loss + parts.kl_loss, evidence


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh networks, dual variables and optimisers, an empty replay."""
    networks = actor_critic.init_networks(
        spec, actor(spec, config), critic(spec, config), key
    )
    size = actor_critic.action_size(spec)
    shapes = ((size,), (size,)) if size else ((),)
    networks["duals"] = duals.init(config, shapes)
    targets = jax.tree.map(jnp.copy, networks)  # buffers of their own: donatable
    return State(
        **networks,
        opt_states=actor_critic.init_optimizers(config, networks),
        target_actor=targets["actor"],
        target_critic=targets["critic"],
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

    def dual_loss(variables: Duals) -> jax.Array:
        parts = jax.vmap(lambda x: mpo_parts(config, variables, x))(found.more)
        losses = parts.temperature_loss + parts.alpha_loss
        return jnp.mean(found.batch.weights * losses)

    networks, opt_states = actor_critic.adam_step(
        config,
        progress,
        {"actor": state.actor, "critic": state.critic, "duals": state.duals},
        grads={
            "actor": found.actor,
            "critic": found.critic.mean,
            "duals": jax.grad(dual_loss)(state.duals),
        },
        opt_states=state.opt_states,
        rates={"duals": config.dual_learning_rate},
    )
    follow = functools.partial(actor_critic.follow, config)
    new_state = state._replace(
        **networks,
        opt_states=opt_states,
        target_actor=follow(networks["actor"], state.target_actor),
        target_critic=follow(networks["critic"], state.target_critic),
        replay=priority.store(state.replay, found.batch, found.critic.priorities),
    )
    return new_state, {
        "critic_loss": found.critic.losses.mean(),
        "actor_loss": found.actor_loss,
        "kl": jnp.stack([kl.mean() for kl in found.more.kls]).sum(),
        "temperature": jnp.exp(new_state.duals.temperature),
    }
