"""IMPALA. Espeholt et al. (2018), https://arxiv.org/abs/1802.01561.

Actors follow an older policy than the one that learns; V-trace corrects for it, leaky
if `alpha_rho` or `alpha_c` is below 1: Zahavy et al. (2020),
https://arxiv.org/abs/2002.12928.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses
from rljax.learners import on_policy
from rljax.learners.on_policy import Minibatch
from rljax.types import (
    Agent,
    Extras,
    Key,
    Memory,
    Metrics,
    Obs,
    OptState,
    Params,
    Rollout,
    Spec,
    Torso,
)

PRESETS: dict[str, cfg.Preset] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = cfg.rate(2e-3)  # of Adam
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    lambda_: float = cfg.share(0.95)  # trace decay of the targets, cut at any end
    clip_rho: float = 1.0  # of probability ratios, in the targets
    clip_pg_rho: float = 1.0  # likewise, in the policy gradient
    alpha_rho: float = cfg.share(1.0)  # of clipped ratios in the errors, rest: as found
    alpha_c: float = cfg.share(1.0)  # likewise, in the traces
    entropy_cost: float = cfg.cost(0.0)  # weight of the entropy bonus
    max_grad_norm: float = 0.5  # where each network's gradient is clipped
    adam_epsilon: float = 1e-5  # a larger one damps steps along tiny gradients
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(8)  # steps per environment and update
    actor_period: int = cfg.static(4)  # updates until actors get the learner's policy
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))  # of actor and critic each
    activation: str = cfg.static("tanh")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        cfg.check_range(self, "adam_epsilon", low=0.0, open_low=True)
        cfg.check_range(self, "lambda_", "alpha_rho", "alpha_c", low=0.0, high=1.0)
        cfg.check_range(self, "entropy_cost", low=0.0)
        cfg.check_range(self, "clip_rho", "clip_pg_rho", low=0.0, open_low=True)
        cfg.check_count(self, "actor_period")


class State(NamedTuple):
    """Networks, optimisers and counts of the agent."""

    actor: Params
    critic: Params
    actor_opt: OptState  # Adam over the actor's parameters as one flat vector
    critic_opt: OptState  # likewise
    step: jax.Array  # [] int32, rollouts learned from
    behaviour: Params  # an older copy of the actor, which acts


class Trace(NamedTuple):
    """Arguments of V-trace, `[T]` of one environment."""

    v_tm1: jax.Array
    v_t: jax.Array
    r_t: jax.Array
    discount_t: jax.Array
    rho_tm1: jax.Array
    lambda_: jax.Array


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`."""
    agent = on_policy.make(spec, functools.partial(update, spec))
    return agent._replace(
        init=functools.partial(init, spec), act=functools.partial(act, spec)
    )


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh networks and optimisers."""
    state = on_policy.init(spec, config, key)
    return State(
        actor=state.actor,
        critic=state.critic,
        actor_opt=state.actor_opt,
        critic_opt=state.critic_opt,
        step=state.step,
        behaviour=jax.tree.map(jnp.copy, state.actor),  # buffers of its own: donatable
    )


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Memory,
    obs: Obs,
    key: Key,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """Sample the actors' policy, or take the learner's mode."""
    if explore:
        state = state._replace(actor=state.behaviour)
    return on_policy.act(spec, config, state, memory, obs, key, explore)


def prepare(
    spec: Spec, config: Config, state: State, rollout: Rollout
) -> tuple[Minibatch, jax.Array]:
    """V-trace's advantages and targets of a rollout, and its ratios `[T, N]`; eq. 1.

    They come from the parameters before the update, which the losses' gradients do not
    see: nothing is stopped, and meta-gradients pass.
    """
    value = functools.partial(on_policy.critic(spec, config).apply, state.critic)
    v_tm1, v_t = on_policy.bootstrap_values(value, rollout, spec.max_steps)
    policy = on_policy.actor(spec, config).apply(state.actor, rollout.obs)
    rho = jnp.exp(policy.log_prob(rollout.action) - rollout.extras)
    discount, lambda_ = on_policy.cut(config.gamma, config.lambda_, rollout)

    vtrace = functools.partial(
        losses.leaky_vtrace_td_error_and_advantage,
        alpha=config.alpha_rho,
        alpha_c=config.alpha_c,
        clip_rho_threshold=config.clip_rho,
        clip_pg_rho_threshold=config.clip_pg_rho,
        stop="none",
    )

    def of_one(steps: Trace) -> losses.VTraceOutput:
        return vtrace(**steps._asdict())

    steps = Trace(
        v_tm1=v_tm1,
        v_t=v_t,
        r_t=rollout.reward,
        discount_t=discount,
        rho_tm1=rho,
        lambda_=lambda_,
    )
    out = jax.vmap(of_one, in_axes=1, out_axes=1)(steps)
    batch = Minibatch(
        obs=rollout.obs,
        action=rollout.action,
        log_prob=rollout.extras,
        advantage=out.pg_advantage,
        target=v_tm1 + out.errors,
    )
    return on_policy.flatten(batch), rho


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """One step along the corrected policy gradient of one rollout."""
    del key  # nothing is drawn
    batch, rho = prepare(spec, config, state, rollout)
    period = config.actor_period
    count = cfg.next_count(state.step, period)
    state, metrics = on_policy.learn(spec, config, state, batch)
    behaviour = optax.periodic_update(state.actor, state.behaviour, count, period)
    clipped = jnp.mean(rho > config.clip_rho)
    metrics |= {"rho": rho.mean(), "clipped_rho_fraction": clipped}
    return state._replace(behaviour=behaviour, step=count), metrics
