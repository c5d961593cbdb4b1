"""V-MPO. Song et al. (2020), https://arxiv.org/abs/1909.12238.

Advantages and returns: Schulman et al. (2015), https://arxiv.org/abs/1506.02438.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import losses
from rljax.learners import duals, on_policy, optimizers
from rljax.learners.duals import Duals
from rljax.learners.on_policy import Minibatch
from rljax.losses import MpoOutputs
from rljax.networks import distributions
from rljax.running import parallel
from rljax.types import (
    Agent,
    Box,
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

    learning_rate: float = cfg.rate(2e-3)  # of Adam, for actor and critic
    dual_learning_rate: float = 1e-2  # likewise, for logarithms of the dual variables
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    lambda_: float = cfg.share(0.95)  # trace decay of the advantages, cut at any end
    epsilon: float = 1e-2  # divergence of the weighted from equally likely examples
    epsilon_policy: float = 1e-3  # of the policy from the target's; discrete actions
    epsilon_mean: float = 1e-2  # of its mean; continuous actions
    epsilon_stddev: float = 1e-4  # likewise, of its standard deviation
    temperature: float = 1.0  # of the weights, at first
    multiplier: float = 1.0  # weight of each divergence, at first
    max_grad_norm: float = 0.5  # where each network's gradient is clipped
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(32)  # steps per environment and update
    num_epochs: int = cfg.static(1)  # the critic's passes over each rollout
    num_minibatches: int = cfg.static(16)  # its gradient steps per pass
    target_period: int = cfg.static(4)  # updates until the target is renewed
    top_fraction: float = cfg.static(0.5)  # of examples, by advantage, that are learned
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))  # of actor and critic each
    activation: str = cfg.static("tanh")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(True)  # learning rates fall linearly to 0
    normalize_advantages: bool = cfg.static(True)  # per rollout

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        on_policy.validate_minibatches(self)
        cfg.check_range(self, "lambda_", low=0.0, high=1.0)
        for name in ("epsilon", "epsilon_policy", "epsilon_mean", "epsilon_stddev"):
            cfg.check_range(self, name, low=0.0, open_low=True)
        for name in ("dual_learning_rate", "temperature", "multiplier"):
            cfg.check_range(self, name, low=0.0, open_low=True)
        cfg.check_count(self, "target_period")
        least = 1.0 / (self.num_envs * self.rollout_length)  # one example
        cfg.check_range(self, "top_fraction", low=least, high=1.0)


class State(NamedTuple):
    """Networks, optimisers and counts of the agent."""

    actor: Params
    critic: Params
    actor_opt: OptState  # Adam over the actor's parameters as one flat vector
    critic_opt: OptState  # likewise
    step: jax.Array  # [] int32, rollouts learned from
    target_actor: Params  # an older copy, which acts
    duals: Duals
    dual_opt: OptState  # Adam over them as one flat vector


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`."""
    agent = on_policy.make(spec, functools.partial(update, spec))
    return agent._replace(
        init=functools.partial(init, spec), act=functools.partial(act, spec)
    )


def parts(
    spec: Spec,
    config: Config,
    params: Params,
    *,
    variables: Duals,
    target_params: Params,
    batch: Minibatch,
) -> tuple[MpoOutputs, tuple[jax.Array, ...]]:
    """The losses' parts and the divergences, `[B]`; eq. 3 to 5.

    The policy's gradient is that in `params` alone, the dual variables' that in
    `variables` alone: nothing is stopped, and meta-gradients pass.
    """
    network = on_policy.actor(spec, config)
    policy, old = (network.apply(p, batch.obs) for p in (params, target_params))
    kls = distributions.divergences(old, policy)
    _, out = losses.vmpo_loss(
        sample_log_probs=policy.log_prob(batch.action),
        advantages=batch.advantage,
        temperature_constraint=duals.temperature(config, variables),
        kl_constraints=duals.constraints(config, variables, kls),
        projection_operator=jnp.exp,
        top_k_fraction=config.top_fraction,
        axis_name=parallel.axis_name(),
        stop="none",
    )
    return out, kls


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh networks, dual variables and optimisers."""
    state = on_policy.init(spec, config, key)
    continuous = isinstance(spec.action, Box)
    variables = duals.init(config, shapes=((), ()) if continuous else ((),))
    optimizer = optimizers.clipped_adam(config, on_policy.EPS)
    return State(
        actor=state.actor,
        critic=state.critic,
        actor_opt=state.actor_opt,
        critic_opt=state.critic_opt,
        step=state.step,
        target_actor=jax.tree.map(jnp.copy, state.actor),  # donatable
        duals=variables,
        dual_opt=optimizer.init(ravel_pytree(variables)[0]),
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
    """Sample the target policy, or take the learner's mode."""
    if explore:
        state = state._replace(actor=state.target_actor)
    return on_policy.act(spec, config, state, memory, obs, key, explore)


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """One step of policy and dual variables on one rollout, several of the critic."""
    batch = on_policy.prepare(
        spec, config, state, rollout=rollout, lambda_=config.lambda_
    )
    of_parts = functools.partial(
        parts, spec, config, target_params=state.target_actor, batch=batch
    )

    def actor_loss(params: Params) -> tuple[jax.Array, Metrics]:
        out, kls = of_parts(params, variables=state.duals)
        metrics = {
            "policy_loss": out.policy_loss.mean(),
            "kl": jnp.asarray(sum(kl.mean() for kl in kls)),
        }
        return jnp.mean(out.policy_loss + out.kl_loss), metrics

    def dual_loss(variables: Duals) -> tuple[jax.Array, Metrics]:
        out, _ = of_parts(state.actor, variables=variables)
        return out.temperature_loss + out.alpha_loss.mean(), {
            "temperature": jnp.exp(variables.temperature),
            "multiplier": jnp.exp(variables.multipliers[0]),
        }

    progress = optimizers.progress(config, state.step)
    rate = optimizers.annealed(config, progress, config.learning_rate)
    actor, actor_opt, metrics = on_policy.adam_step(
        config, rate, actor_loss, params=state.actor, opt_state=state.actor_opt
    )
    dual_rate = optimizers.annealed(config, progress, config.dual_learning_rate)
    variables, dual_opt, more = on_policy.adam_step(
        config, dual_rate, dual_loss, params=state.duals, opt_state=state.dual_opt
    )
    critic, critic_opt, last = on_policy.fit_epochs(
        config,
        rate,
        functools.partial(on_policy.value_loss, spec, config),
        params=state.critic,
        opt_state=state.critic_opt,
        batch=batch,
        key=key,
    )
    period = config.target_period
    count = cfg.next_count(state.step, period)
    new_state = State(
        actor=actor,
        critic=critic,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        step=count,
        target_actor=optax.periodic_update(actor, state.target_actor, count, period),
        duals=variables,
        dual_opt=dual_opt,
    )
    return new_state, metrics | more | last
