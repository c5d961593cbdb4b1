"""What agents share that learn action values from a replay, with a target network.

Their config has `FIELDS`; what sets the agents apart is their network and their loss.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import replay
from rljax.learners import optimizers
from rljax.networks import distributions, layers
from rljax.replay import priority
from rljax.types import Discrete, Metrics, Params, Rollout, Spec

FIELDS = (
    "learning_rate",
    "max_grad_norm",
    "target_rate",
    "total_steps",
    "num_envs",
    "rollout_length",
    "num_updates",
    "target_period",
    "capacity",
    "anneal",
    *priority.FIELDS,
)
# (params, bootstrap_params, window or sequence, key) -> (loss [], absolute TD error [])
Loss = Callable[[Params, Params, Any, jax.Array], tuple[jax.Array, jax.Array]]


class State(NamedTuple):
    """What the agent learns, stores and counts."""

    params: Params  # of the agent's network
    target_params: Params  # an older copy
    opt_state: Any  # of Adam, over the parameters as one flat vector
    replay: replay.Replay
    step: jax.Array  # [] int32, rollouts learned from
    num_updates: jax.Array  # [] int32, gradient steps


def check_discrete(name: str, spec: Spec) -> int:
    """The number of actions.

    Raises:
      ValueError: the actions are not discrete, or masked; names the agent `name`.
    """
    if not isinstance(spec.action, Discrete):
        raise ValueError(f"{name} needs discrete actions, not {spec.action}")
    distributions.check_unmasked(name, spec)
    return spec.action.num_actions


def validate(config: Any) -> None:
    """Raise ValueError naming a field out of range, its value and the range."""
    cfg.check_range(config, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
    cfg.check_range(config, "gamma", low=0.0, high=1.0)
    cfg.check_range(config, "target_rate", low=0.0, high=1.0, open_low=True)
    cfg.check_loop(config)
    cfg.check_count(config, "num_updates", "target_period")
    cfg.check_sizes(config, "hidden_sizes")
    cfg.check_choice(config, "activation", tuple(layers.ACTIVATIONS))
    priority.validate(config)


def validate_epsilon(config: Any) -> None:
    """The same for the fields of `epsilon`."""
    names = ("epsilon_start", "epsilon_end", "epsilon_eval")
    cfg.check_range(config, *names, low=0.0, high=1.0)
    cfg.check_range(config, "exploration_fraction", low=0.0, high=1.0, open_low=True)


def epsilon(config: Any, step: jax.Array, explore: bool) -> jax.Array:
    """Chance of a uniform action: falls linearly, or `epsilon_eval` in evaluation."""
    names = ("epsilon_start", "epsilon_end", "epsilon_eval", "exploration_fraction")
    cfg.check_fields("q_learner.epsilon", config, *names)
    if not explore:
        return jnp.asarray(config.epsilon_eval)
    start, end = config.epsilon_start, config.epsilon_end
    return optimizers.exploration(config, step, start, end)


def init(
    spec: Spec,
    config: Any,
    network: Any,
    key: jax.Array,
    *inputs: jax.Array,
    memory: Any = (),
) -> State:
    """Fresh network and optimiser, an empty replay.

    The network takes a batch of observations and `inputs`; `memory` is the agent's.
    """
    cfg.check_fields("q_learner", config, *FIELDS)
    obs = jnp.zeros((1, *spec.obs_shape), spec.obs_dtype)
    params = network.init(key, obs, *inputs)
    prioritized = priority.keeps_priorities(config)
    return State(
        params=params,
        target_params=jax.tree.map(jnp.copy, params),  # buffers of its own: donatable
        opt_state=optimizers.clipped_adam(config).init(ravel_pytree(params)[0]),
        replay=replay.init(spec, config.num_envs, config.capacity, prioritized, memory),
        step=jnp.zeros((), jnp.int32),
        num_updates=jnp.zeros((), jnp.int32),
    )


def observe(config: Any, state: State, rollout: Rollout, length: int = 1) -> State:
    """Store the rollout; `length` is that of the sequences to be drawn."""
    return state._replace(replay=replay.add(state.replay, rollout, length))


def update(
    loss: Loss,
    config: Any,
    state: State,
    rollout: Rollout,
    key: jax.Array,
    length: int | None = None,
) -> tuple[State, Metrics]:
    """Learn from samples of the replay, which holds the rollout already.

    Args:
      loss: of one transition or sequence. The gradient is the one with respect to its
        first argument alone: what comes from the second stays differentiable for
        meta-gradients.
      config: the agent's.
      state: the agent's.
      rollout: `[T, N, ...]`.
      key: `[]` typed key, consumed here.
      length: of the sequences to learn from; None: windows of `config.n_step` steps.

    Returns:
      The new state, and the mean loss before weighting.
    """
    flat, unravel = ravel_pytree(state.params)  # one vector: one kernel in Adam
    target_flat, _ = ravel_pytree(state.target_params)
    progress = optimizers.progress(config, state.step)
    optimizer = optimizers.clipped_adam(config)
    rate = optimizers.annealed(config, progress, config.learning_rate)

    def step(carry: Any, key: jax.Array) -> tuple[Any, Metrics]:
        flat, target_flat, opt_state, buffer, count = carry
        sample_key, loss_key = jax.random.split(key)

        def loss_of(params: Params, window: Any) -> tuple[jax.Array, jax.Array]:
            return loss(params, unravel(target_flat), window, loss_key)

        params = unravel(flat)
        batch = priority.sample(
            config, buffer, sample_key, progress, loss_of, params, length
        )
        new = priority.gradient(config, loss_of, params, batch)
        grads = ravel_pytree(new.mean)[0]
        updates, opt_state = optimizer.update(grads, opt_state)
        flat = optax.tree.add_scale(flat, -rate, updates)
        count += 1
        moves = (count % config.target_period == 0) * config.target_rate
        target_flat = target_flat + moves * (flat - target_flat)
        buffer = priority.store(buffer, batch, new.priorities)
        return (flat, target_flat, opt_state, buffer, count), {
            "loss": new.losses.mean()
        }

    count = cfg.with_room(state.num_updates, config.num_updates, config.target_period)
    start = (flat, target_flat, state.opt_state, state.replay, count)
    end, metrics = jax.lax.scan(step, start, jax.random.split(key, config.num_updates))
    flat, target_flat, opt_state, buffer, count = end
    step_count = cfg.next_count(state.step)
    params, target_params = unravel(flat), unravel(target_flat)
    state = State(params, target_params, opt_state, buffer, step_count, count)
    return state, jax.tree.map(jnp.mean, metrics)
