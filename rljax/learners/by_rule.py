"""Mechanics of agents that learn by a learned update rule.

The rule, `rljax.meta.rules.Rule`, makes targets for the agent's outputs of whole
trajectories. The network's outputs are a dict; its policy is `logits` `[..., A]`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax._distrax import distrax
from rljax.contracts import (
    Network,
    RuleConfig,
    RuleLearnerState,
    TargetRateConfig,
)
from rljax.learners import optimizers
from rljax.meta.rules.types import Outputs, Rule, RuleState, Trajectory
from rljax.networks import distributions, torsos
from rljax.running import parallel
from rljax.types import (
    Extras,
    Key,
    Leaf,
    Memory,
    Metrics,
    Obs,
    OptState,
    Params,
    Policy,
    Rollout,
)

Apply = Callable[[Params, Obs], Outputs]  # of a network


class LearnerState(NamedTuple):
    """Network, optimiser, counts, and what the rule keeps."""

    params: Params
    target_params: Params  # an older copy; () for rules that read none
    opt_state: OptState  # of Adam, over the parameters as one flat vector
    rule_state: RuleState
    step: jax.Array  # [] int32, rollouts learned from


S = TypeVar("S", bound=RuleLearnerState)


def validate(config: RuleConfig) -> None:
    """Raise ValueError naming a field out of range, its value and the range."""
    cfg.check_range(config, "learning_rate", "max_update", low=0.0, open_low=True)
    cfg.check_range(config, "gamma", low=0.0, high=1.0)
    if hasattr(config, "target_rate"):  # of agents with an older copy
        cfg.check_range(config, "target_rate", low=0.0, high=1.0, open_low=True)
    cfg.check_loop(config)
    torsos.validate(config)


def optimizer(max_update: Leaf) -> optax.GradientTransformation:
    """Adam, each number of its step clipped; the learning rate comes on top."""
    return optax.chain(optimizers.scale_by_adam(), optax.clip(max_update))


def init(
    network: Network, obs: Obs, rule: Rule, *, key: Key, follows: bool = True
) -> LearnerState:
    """Fresh network and optimiser, and a rule that has seen nothing.

    Args:
      network: maps observations `[B, ...]` to outputs.
      obs: a batch of observations.
      rule: the rule.
      key: `[]` typed key, consumed here.
      follows: keep an older copy of the network, which the rule reads too.
    """
    params = network.init(key, obs)
    return LearnerState(
        params=params,
        # Buffers of its own: donatable.
        target_params=jax.tree.map(jnp.copy, params) if follows else (),
        opt_state=optimizer(1.0).init(ravel_pytree(params)[0]),
        rule_state=rule.start(),
        step=jnp.zeros((), jnp.int32),
    )


def act(
    policy: Policy, memory: Memory, key: Key, explore: bool
) -> tuple[jax.Array, Memory, Extras]:
    """Sample the policy, with its logits `[N, A]`; or take its mode."""
    if not explore:
        return policy.mode(), memory, ()
    return distributions.sample(policy, key), memory, policy.logits


def rows(rollout: Rollout, max_steps: int) -> tuple[Obs, jax.Array, jax.Array]:
    """Observations of a trajectory, each once, and what each step led to.

    Behind the T observations stands what the newest steps led to, and then one true
    successor for each `max_steps` rows, where a time limit may have cut an episode. The
    successor of a step that terminated is the next episode's first observation; the
    newest step's is not in the rollout, and its own observation stands for that.

    Args:
      rollout: `[T, N, ...]`.
      max_steps: `Spec.max_steps`; in so many rows an environment is cut at most once.

    Returns:
      The observations `[R, N, ...]`, the row `[T, N]` int32 that each step led to, and
      the steps `[T, N]` bool after which the successor is lost, as `max_steps` is no
      true promise.
    """
    length, num_envs = rollout.reward.shape
    size = min(length, max_steps)
    num = -(-length // size)  # blocks of so many rows, the last perhaps shorter
    cut = rollout.truncated & ~rollout.terminated
    padded = jnp.concatenate([cut, jnp.zeros((num * size - length, num_envs), bool)])
    where_cut = padded.reshape(num, size, num_envs).argmax(axis=1)
    row = where_cut + size * jnp.arange(num)[:, None]  # [num, N]
    column = jnp.arange(num_envs)

    def every(obs: jax.Array, next_obs: jax.Array) -> jax.Array:
        ended = rollout.terminated[-1].reshape(-1, *[1] * (obs.ndim - 2))
        newest = jnp.where(ended, obs[-1], next_obs[-1])
        return jnp.concatenate([obs, newest[None], next_obs[row, column]])

    step = jnp.arange(length)[:, None]
    following = jnp.where(cut, length + 1 + step // size, step + 1)
    lost = cut & (row[jnp.arange(length) // size] != step)
    found = jax.tree.map(every, rollout.obs, rollout.next_obs)
    return found, following.astype(jnp.int32), lost


def learn(
    apply: Apply,
    config: RuleConfig,
    state: S,
    rollout: Rollout,
    *,
    rule: Rule,
    rule_params: Params,
    max_steps: int,
) -> tuple[S, Metrics]:
    r"""One step of the agent by its rule.

    .. math::
        \theta' &= \theta - \alpha \, \mathrm{clip}(\mathrm{Adam}(\partial_1 L)) \\
        \theta^{-\prime} &= (1 - \tau) \theta^- + \tau \theta

    The semi-gradient is in the outputs alone. Targets and trajectory are stopped by
    nothing here: derivatives through several updates, in the rule's parameters or in
    the config, are those of the whole update. The target network moves before the step.

    Args:
      apply: the network's, of parameters and observations.
      config: the agent's, with `target_rate` where there is an older copy.
      state: the agent's.
      rollout: `[T, B, ...]`, with the logits of the policy that acted as `extras`.
      rule: the rule.
      rule_params: its numbers.
      max_steps: `Spec.max_steps`.

    Returns:
      The new state, and the metrics `loss` and `entropy`.
    """
    obs, following, lost = rows(rollout, max_steps)
    flat, unravel = ravel_pytree(state.params)  # one vector: one kernel in Adam
    outputs, pull = jax.vjp(lambda flat: apply(unravel(flat), obs), flat)
    older = state.target_params
    follows = bool(jax.tree.leaves(older))
    trajectory = Trajectory(
        outputs=outputs,
        target_outputs=apply(older, obs) if follows else (),
        behaviour_logits=rollout.extras,
        action=rollout.action,
        reward=jnp.where(lost, jnp.nan, rollout.reward),
        discount=config.gamma * (1.0 - rollout.terminated),
        ended=rollout.terminated | rollout.truncated,
        weight=jnp.ones_like(rollout.reward),
        following=following,
    )
    targets, rule_state = rule.targets(rule_params, state.rule_state, trajectory)

    def loss(outputs: Outputs) -> jax.Array:
        weight = trajectory.weight
        total = parallel.mean(weight.sum()) + 1e-8
        return jnp.sum(weight * rule.loss(outputs, targets, trajectory)) / total

    value, of_outputs = jax.value_and_grad(loss)(outputs)
    (grads,) = pull(of_outputs)
    direction, opt_state = optimizer(config.max_update).update(
        parallel.mean(grads), state.opt_state
    )
    progress = optimizers.progress(config, state.step)
    rate = optimizers.annealed(config, progress, config.learning_rate)
    if follows:
        target_rate = cast(TargetRateConfig, config).target_rate
        older = optax.incremental_update(state.params, older, target_rate)
    new_state = state._replace(
        params=unravel(optax.tree.add_scale(flat, -rate, direction)),
        target_params=older,
        opt_state=opt_state,
        rule_state=rule_state,
        step=cfg.next_count(state.step),
    )
    policy = distrax.Categorical(outputs["logits"][: len(rollout.reward)])
    return new_state, {"loss": value, "entropy": policy.entropy().mean()}
