"""Outer critics: networks that learn values at the outer discount, and their training.

A learner scored by the discount that is tuned would do best with none, and an outer
advantage from the learner's critic inherits that critic's bias: Bonnet et al. (2022),
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

from rljax.contracts import Network, TunedConfig
from rljax.learners import on_policy, optimizers
from rljax.meta.types import OuterCritic, Settings
from rljax.types import Cell, Leaf, Memory, Metrics, Params, Torso, num_rows

ErrorsFn = Callable[[Params, Any], jax.Array]  # (params, examples) -> [...]


class CriticConfig(NamedTuple):
    """Numbers that make the outer critic's network and its training."""

    learning_rate: float = 1e-3
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    torso: Torso = "minatar"
    layer_norm: bool = False
    compute_dtype: str = "float32"
    cell: Cell = "lstm"  # of a recurrent agent's critic
    memory_size: int = 64  # likewise
    max_grad_norm: float = 0.5
    target_rate: float = 1.0  # of a Q-network whose agent has no target network
    anneal: bool = False
    adam_epsilon: float = on_policy.EPS
    num_epochs: int = 1
    num_minibatches: int = 0  # 0: one step along the gradient of the whole batch


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


def init(
    config: CriticConfig,
    network: Network,
    key: jax.Array,
    *inputs: Any,
    memory: Memory = (),
    has_target: bool = False,
) -> OuterCritic:
    """Fresh parameters for such inputs, their older copy, Adam; the key is consumed."""
    params = network.init(key, *inputs)
    return OuterCritic(
        params=params,
        target_params=jax.tree.map(jnp.copy, params) if has_target else (),
        opt_state=optimizers.clipped_adam(config).init(ravel_pytree(params)[0]),
        memory=memory,
    )


def fit(
    settings: Settings,
    config: CriticConfig,
    critic: OuterCritic,
    *,
    examples: Any,
    errors: ErrorsFn,
    progress: jax.Array,
    key: jax.Array,
) -> tuple[OuterCritic, Metrics]:
    """Take as many gradient steps as the agent takes with a rollout.

    Fewer per pass where the agent's number of minibatches does not divide the rollout.
    An older copy, if the critic has one, then moves towards the new parameters.

    Args:
      settings: of the tuning.
      config: the critic's.
      critic: to train.
      examples: tree of `[B, ...]`.
      errors: predictions less targets; the loss is the mean of their squares' halves.
      progress: `[]` share of the training that is over.
      key: `[]` typed key, consumed here.
    """

    def loss(params: Params, examples: Any) -> tuple[jax.Array, Metrics]:
        total = optax.l2_loss(errors(params, examples)).mean()
        return total, {"value_loss": total}

    start = settings.outer_critic_rate * config.learning_rate
    rate: Leaf = optimizers.annealed(config, progress, start)
    if config.num_minibatches:
        size = num_rows(examples)
        most = range(1, config.num_minibatches + 1)
        number = max(n for n in most if size % n == 0)
        params, opt_state, metrics = on_policy.fit_epochs(
            config._replace(num_minibatches=number),
            rate,
            loss,
            params=critic.params,
            opt_state=critic.opt_state,
            batch=examples,
            key=key,
        )
    else:
        params, opt_state, metrics = on_policy.adam_step(
            config,
            rate,
            functools.partial(loss, examples=examples),
            params=critic.params,
            opt_state=critic.opt_state,
        )
    target_params = critic.target_params
    if target_params:
        target_params = optax.incremental_update(
            params, target_params, config.target_rate
        )
    critic = critic._replace(
        params=params, target_params=target_params, opt_state=opt_state
    )
    return critic, {"outer_value_loss": metrics["value_loss"]}


def applied(network: Network, params: Params, *inputs: Any) -> jax.Array:
    """Apply a network that returns nothing but values."""
    output: Any = network.apply(params, *inputs)
    return output
