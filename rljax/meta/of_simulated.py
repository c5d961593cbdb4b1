"""Scores of a policy by the newest rollout's return, its environments run again."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import losses
from rljax.contracts import TunedConfig
from rljax.learners import on_policy
from rljax.meta import critics
from rljax.meta.critics import critic_config
from rljax.meta.of_rollouts import advantages
from rljax.meta.types import Objective, OuterCritic, Scored, Settings
from rljax.running.rollout import simulate
from rljax.types import (
    Agent,
    AgentState,
    Extras,
    Metrics,
    Obs,
    Params,
    Rollout,
    Spec,
)


class SimulatedBatch(NamedTuple):
    """A rollout that can be run again, and the critic of what follows it."""

    rollout: Rollout  # [T, N, ...] with its simulation
    critic: Params  # of the outer discount
    target: jax.Array  # [T, N] return that the critic is to predict


def objective(agent: Agent, spec: Spec, settings: Settings) -> Objective:
    """Score as the policy learns: by the derivative of the return in the simulator.

    The return of every episode in the rollout at the outer discount, with the outer
    critic's value where the rollout ends. The agent's `repeat` acts.

    Raises:
      ValueError: the agent has no `repeat`.
    """
    if agent.repeat is None:
        raise ValueError(
            "tune: the agent runs its environments again and has no `repeat`, which "
            "acts there"
        )
    scored = Scored(agent=agent, spec=spec, settings=settings)
    return scored.objective(
        init=_init, prepare=_prepare, loss=_loss, distance=_distance, update=_update
    )


def _init(scored: Scored, config: TunedConfig, key: jax.Array) -> OuterCritic:
    own = critic_config(scored.settings, config)
    return critics.init(
        own, on_policy.critic(scored.spec, own), key, scored.spec.zeros(1)
    )


def _prepare(
    scored: Scored,
    config: TunedConfig,
    state: AgentState,
    critic: OuterCritic,
    *,
    rollout: Rollout,
    key: jax.Array,
) -> SimulatedBatch:
    del state, key  # nothing is drawn
    network = on_policy.critic(scored.spec, critic_config(scored.settings, config))
    judge = functools.partial(network.apply, critic.params)
    v_tm1, v_t = on_policy.bootstrap_values(judge, rollout, scored.spec.max_steps)
    adv = advantages(scored.settings, rollout, v_tm1, v_t=v_t)
    return SimulatedBatch(
        rollout=rollout,
        critic=critic.params,
        target=jax.lax.stop_gradient(adv + v_tm1),
    )


def _loss(
    scored: Scored, config: TunedConfig, state: AgentState, data: SimulatedBatch
) -> jax.Array:
    def act(obs: Obs, extras: Extras) -> jax.Array:
        return scored.repeat(config, state, obs, extras)

    again = simulate(data.rollout, act)
    network = on_policy.critic(scored.spec, critic_config(scored.settings, config))
    v_t = critics.applied(network, data.critic, again.next_obs)
    discount, trace = on_policy.cut(scored.settings.outer_gamma, 1.0, rollout=again)
    over_envs = jax.vmap(
        functools.partial(losses.lambda_returns, stop="none"), in_axes=1, out_axes=1
    )
    returns = over_envs(again.reward, discount, v_t, trace)
    ended = again.terminated | again.truncated
    starts = jnp.concatenate([jnp.ones_like(ended[:1]), ended[:-1]])
    return -jnp.mean(starts * returns)


def _distance(
    scored: Scored,
    config: TunedConfig,
    target: AgentState,
    state: AgentState,
    *,
    data: SimulatedBatch,
) -> jax.Array:
    over_steps = jax.vmap(scored.repeat, (None, None, 0, 0))
    seen = data.rollout
    goal, reached = (
        over_steps(config, x, seen.obs, seen.extras) for x in (target, state)
    )
    return optax.l2_loss(reached, goal).mean()


def _update(
    scored: Scored,
    config: TunedConfig,
    critic: OuterCritic,
    data: SimulatedBatch,
    *,
    progress: jax.Array,
    key: jax.Array,
) -> tuple[OuterCritic, Metrics]:
    own = critic_config(scored.settings, config)

    def errors(params: Params, batch: tuple[Obs, jax.Array]) -> jax.Array:
        obs, target = batch
        network = on_policy.critic(scored.spec, own)
        return critics.applied(network, params, obs) - target

    return critics.fit(
        scored.settings,
        own,
        critic,
        examples=on_policy.flatten((data.rollout.obs, data.target)),
        errors=errors,
        progress=progress,
        key=key,
    )
