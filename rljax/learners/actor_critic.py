"""What agents share that learn an actor and critics from a replay.

Their config has `FIELDS`, and `noise_damping` where actions are continuous; what sets
the agents apart are their networks and their losses.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses, networks, replay
from rljax.learners import optimizers
from rljax.networks import distributions, layers
from rljax.replay import priority
from rljax.replay.priority import Batch
from rljax.types import Discrete, Metrics, Params, Rollout, Spec

FIELDS = (
    "learning_rate",
    "max_grad_norm",
    "target_rate",
    "total_steps",
    "num_envs",
    "rollout_length",
    "num_updates",
    "capacity",
    "hidden_sizes",
    "activation",
    "anneal",
    *priority.FIELDS,
)
# (params, (window, key)) -> (loss [], absolute TD error [])
Loss = Callable[[Params, Any], tuple[jax.Array, jax.Array]]


def validate(config: Any) -> None:
    """Raise ValueError naming a field out of range, its value and the range."""
    cfg.check_range(config, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
    cfg.check_range(config, "gamma", low=0.0, high=1.0)
    rates = ("target_rate", "noise_damping")
    cfg.check_range(config, *rates, low=0.0, high=1.0, open_low=True)
    cfg.check_loop(config)
    cfg.check_count(config, "num_updates")
    cfg.check_sizes(config, "hidden_sizes")
    cfg.check_choice(config, "activation", tuple(layers.ACTIVATIONS))
    priority.validate(config)


def action_size(spec: Spec) -> int:
    """How many numbers an action has, D; 0 where actions are discrete."""
    return 0 if isinstance(spec.action, Discrete) else len(spec.action.low)


def example(spec: Spec) -> tuple[jax.Array, ...]:
    """A critic's inputs, zeros: observation `[1, ...]`, continuous action `[1, D]`."""
    obs, size = jnp.zeros((1, *spec.obs_shape), spec.obs_dtype), action_size(spec)
    return (obs, jnp.zeros((1, size), jnp.float32)) if size else (obs,)


def stochastic_actor(spec: Spec, config: Any) -> Any:
    """Network of a policy: categorical, or Gaussian squashed by tanh."""
    sizes, activation, action = config.hidden_sizes, config.activation, spec.action
    discrete = isinstance(action, Discrete)
    kind: Any = networks.Actor if discrete else networks.TanhGaussianActor
    return kind(len(spec.obs_shape), action, sizes, activation, reading=spec.reading)


def critics(spec: Spec, config: Any, size: int) -> networks.Ensemble:
    """Networks for the values `[C]` of an action, or `[C, A]` of all discrete ones."""
    action = spec.action
    discrete = isinstance(action, Discrete)
    one = functools.partial(
        networks.QNetwork if discrete else networks.ContinuousQ,
        len(spec.obs_shape),
        action.num_actions if discrete else action,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        reading=spec.reading,
    )
    return networks.Ensemble(one, size)


def memory(spec: Spec, config: Any, num_envs: int) -> Any:
    """The exploration's noise `[N, D]`, none where an episode starts."""
    size = action_size(spec)
    return jnp.zeros((num_envs, size), jnp.float32) if size else ()


def next_noise(config: Any, memory: jax.Array, key: jax.Array) -> jax.Array:
    """The noise of the next step `[N, D]`, in the long run standard normal.

    The smaller `config.noise_damping`, the longer it keeps its direction; at 1 the
    noise of each step is independent. Consumes the key.
    """
    cfg.check_fields("actor_critic.next_noise", config, "noise_damping")
    damping = config.noise_damping
    args = (damping, jnp.sqrt(1.0 - (1.0 - damping) ** 2))
    return losses.add_ornstein_uhlenbeck_noise(
        key, jnp.zeros_like(memory), memory, *args
    )


def act(
    spec: Spec,
    config: Any,
    state: Any,
    memory: Any,
    obs: Any,
    key: Any,
    explore: bool,
) -> tuple[jax.Array, Any, Any]:
    """Sample the policy, or take its mode (continuous: its mean before the tanh).

    `act` of an agent whose `state.actor` are a `stochastic_actor`'s parameters.
    """
    policy = stochastic_actor(spec, config).apply(state.actor, obs)
    if isinstance(spec.action, Discrete):
        sampled = distributions.sample(policy, key) if explore else policy.mode()
        return sampled, memory, ()
    noise = jnp.zeros_like(memory)
    if explore:
        memory = noise = next_noise(config, memory, key)
    action = distributions.squashed(policy, noise)
    return action.reshape(-1, *spec.action.shape), memory, ()


def init_replay(spec: Spec, config: Any) -> replay.Replay:
    """An empty buffer; ValueError if the config lacks one of `FIELDS`."""
    cfg.check_fields("actor_critic", config, *FIELDS)
    prioritized = priority.keeps_priorities(config)
    return replay.init(spec, config.num_envs, config.capacity, prioritized)


def observe(config: Any, state: Any, rollout: Rollout) -> Any:
    """Store the rollout."""
    return state._replace(replay=replay.add(state.replay, rollout))


def update(
    learn: Callable[..., Any],
    config: Any,
    state: Any,
    rollout: Rollout,
    key: jax.Array,
    times: int,
) -> tuple[Any, Metrics]:
    """Learn from samples of the replay, which holds the rollout already.

    Args:
      learn: `(progress, state, key) -> (state, metrics)`, `progress` of training from
        0 to 1.
      config: the agent's.
      state: the agent's, with a `replay` and the number of rollouts learned from,
        `step`.
      rollout: `[T, N, ...]`.
      key: `[]` typed key, consumed here.
      times: how often to call `learn`.

    Returns:
      The new state, and the mean of the metrics.
    """
    progress = optimizers.progress(config, state.step)
    step = functools.partial(learn, progress)
    state, metrics = jax.lax.scan(step, state, jax.random.split(key, times))
    state = state._replace(step=cfg.next_count(state.step))
    return state, jax.tree.map(jnp.mean, metrics)


def sample(
    config: Any,
    buffer: replay.Replay,
    key: jax.Array,
    progress: jax.Array,
    loss: Loss,
    params: Params,
) -> Batch:
    """`priority.sample`, with a key for each transition.

    The batch's `windows` are `(windows, keys)`. A large batch is scored with one key
    for all.
    """
    draw_key, score_key, key = jax.random.split(key, 3)

    def score(params: Params, window: Any) -> tuple[jax.Array, jax.Array]:
        return loss(params, (window, score_key))

    batch = priority.sample(config, buffer, draw_key, progress, score, params)
    keys = jax.random.split(key, config.batch_size)
    return batch._replace(windows=(batch.windows, keys))


def critic_loss(errors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Loss of one transition, whose priority is the mean absolute TD error.

    Args:
      errors: `[C]` TD errors, one of each critic.

    Returns:
      Half the sum of squares and the mean size, `[]` each.
    """
    return optax.l2_loss(errors).sum(), jnp.abs(errors).mean()


def policy_gradient(
    loss: Callable[..., tuple[jax.Array, Any]],
    params: Params,
    batch: Batch,
    key: jax.Array,
) -> tuple[Params, jax.Array, Any]:
    """Gradient of an actor's weighted mean loss.

    Args:
      loss: `(params, obs, key) -> (loss [], anything)` in one state.
      params: the actor's.
      batch: as of `sample`.
      key: `[]` typed key, consumed here.

    Returns:
      The gradient, the mean loss, and `[B]` of whatever `loss` returns with it.
    """

    def mean(params: Params) -> tuple[jax.Array, Any]:
        keys = jax.random.split(key, len(batch.weights))
        obs = batch.windows[0].obs
        values, more = jax.vmap(lambda x, key: loss(params, x, key))(obs, keys)
        return jnp.mean(batch.weights * values), more

    (value, more), grads = jax.value_and_grad(mean, has_aux=True)(params)
    return grads, value, more


def init_optimizers(config: Any, networks: Sequence[Params]) -> tuple[Any, ...]:
    """Adam's state for each network."""
    return tuple(optimizers.clipped_adam(config).init(x) for x in networks)


def descend(
    config: Any,
    progress: jax.Array,
    networks: Sequence[Params],
    grads: Sequence[Params],
    opt_states: Sequence[Any],
    rates: Sequence[Any] = (),
) -> tuple[Sequence[Params], tuple[Any, ...]]:
    """One step of Adam for each network; the new networks and Adam's new states.

    `rates` are the networks' learning rates at the start, by default the config's.
    """
    optimizer = optimizers.clipped_adam(config)
    rates = rates or (config.learning_rate,) * len(networks)
    rates = [optimizers.annealed(config, progress, rate) for rate in rates]

    # Not one vector, as small networks have: XLA joins arrays on CPU by masked loads
    # beyond the short ones, which take milliseconds where no memory is mapped there.
    def step(
        rate: jax.Array, params: Params, grad: Params, opt_state: Any
    ) -> tuple[Params, Any]:
        updates, opt_state = optimizer.update(grad, opt_state)
        return optax.tree.add_scale(params, -rate, updates), opt_state

    new, opt_states = zip(*map(step, rates, networks, grads, opt_states), strict=True)
    return new, opt_states


def follow(config: Any, params: Params, target_params: Params) -> Params:
    """Target networks, moved by `config.target_rate` to the online ones."""
    return optax.incremental_update(params, target_params, config.target_rate)
