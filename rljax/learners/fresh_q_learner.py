"""Mechanics of agents that learn action values from fresh rollouts.

There is no replay and no target network. Targets and the order of updates are the
agents' own.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from rljax import networks
from rljax.contracts import FreshQConfig, Network
from rljax.learners import optimizers, q_learner
from rljax.networks import distributions
from rljax.types import (
    Agent,
    Extras,
    Key,
    Memory,
    Obs,
    OptState,
    Params,
    Spec,
    UpdateFn,
)


class FreshQState(NamedTuple):
    """Networks, optimisers and counts of the agent."""

    params: Params
    opt_state: OptState  # of Adam, over the parameters as one flat vector
    step: jax.Array  # [] int32, rollouts learned from


def make(name: str, spec: Spec, update: UpdateFn) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete, or masked; names the agent `name`.
    """
    q_learner.check_discrete(name, spec)
    return Agent(
        init=functools.partial(init, spec),
        memory=lambda config, num_envs: (),
        act=functools.partial(act, spec),
        observe=lambda config, state, rollout: state,
        update=update,
        q_values=functools.partial(q_values, spec),
    )


def network(spec: Spec, config: FreshQConfig) -> Network:
    """The action values' network."""
    return networks.QNetwork(
        body=networks.body(spec, config), num_actions=q_learner.num_actions(spec)
    )


def init(spec: Spec, config: FreshQConfig, key: Key) -> FreshQState:
    """Fresh network and optimiser."""
    params = network(spec, config).init(key, spec.zeros(1))
    return FreshQState(
        params=params,
        opt_state=optimizers.clipped_adam(config).init(ravel_pytree(params)[0]),
        step=jnp.zeros((), jnp.int32),
    )


def q_values(
    spec: Spec, config: FreshQConfig, state: FreshQState, obs: Obs
) -> jax.Array:
    """Action values `[..., A]` of observations `[..., *shape]`."""
    return network(spec, config).apply(state.params, obs)


def act(
    spec: Spec,
    config: FreshQConfig,
    state: FreshQState,
    memory: Memory,
    obs: Obs,
    key: Key,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """Act epsilon-greedily; evaluation has an epsilon of its own."""
    q = q_values(spec, config, state, obs)
    epsilon = q_learner.epsilon(config, state.step, explore)
    return distributions.epsilon_greedy(q, epsilon, key), memory, ()
