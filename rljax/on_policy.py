"""What agents share that learn a policy and a value from fresh rollouts.

Their config has the fields named in `validate`; what sets the agents apart are their
losses and how often they use a rollout.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import distributions, layers, losses, networks, optimizers
from rljax.rollout import values
from rljax.types import Metrics, Params, Rollout, Spec

EPS = 1e-5  # of Adam
# (flat parameters, batch) -> (loss [], metrics)
Loss = Callable[[jax.Array, Any], tuple[jax.Array, Metrics]]


class State(NamedTuple):
    """What the agent learns and counts."""

    actor: Params
    critic: Params
    actor_opt: Any  # Adam over the actor's parameters as one flat vector
    critic_opt: Any  # likewise
    step: jax.Array  # [] int32, environment steps learned from


def validate(config: Any) -> None:
    """Raise ValueError naming a field out of range, its value and the range."""
    cfg.check_range(config, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
    cfg.check_range(config, "gamma", low=0.0, high=1.0)
    cfg.check_count(config, "total_steps", "num_envs", "rollout_length")
    cfg.check_sizes(config, "hidden_sizes")
    cfg.check_choice(config, "activation", tuple(layers.ACTIVATIONS))


def validate_minibatches(config: Any) -> None:
    """The same for the fields of agents that go over a rollout several times."""
    cfg.check_count(config, "num_epochs", "num_minibatches")
    steps = config.num_envs * config.rollout_length
    if steps % config.num_minibatches:
        raise ValueError(
            f"num_minibatches={config.num_minibatches}: must divide "
            f"num_envs * rollout_length = {steps}"
        )


def actor(spec: Spec, config: Any) -> Any:
    """The policy's network."""
    args = (config.hidden_sizes, config.activation, config.convolution)
    return networks.Actor(len(spec.obs_shape), spec.action, *args)


def critic(spec: Spec, config: Any) -> Any:
    """The value's network, with parameters of its own."""
    args = (config.hidden_sizes, config.activation, config.convolution)
    return networks.Critic(len(spec.obs_shape), *args)


def init(spec: Spec, config: Any, key: jax.Array) -> State:
    """Fresh networks and optimisers."""
    actor_key, critic_key = jax.random.split(key)
    obs = jnp.zeros((1, *spec.obs_shape), spec.obs_dtype)
    actor_params = actor(spec, config).init(actor_key, obs)
    critic_params = critic(spec, config).init(critic_key, obs)
    optimizer = optimizers.clipped_adam(config, EPS)
    return State(
        actor=actor_params,
        critic=critic_params,
        actor_opt=optimizer.init(ravel_pytree(actor_params)[0]),
        critic_opt=optimizer.init(ravel_pytree(critic_params)[0]),
        step=jnp.zeros((), jnp.int32),
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
    """Sample the policy, with the log-probability; or take its mode."""
    distribution = actor(spec, config).apply(state.actor, obs)
    if not explore:
        return distribution.mode(), memory, ()
    action = distributions.sample(distribution, key)
    return action, memory, distribution.log_prob(action)


def cut(gamma: Any, lambda_: Any, rollout: Rollout) -> tuple[jax.Array, jax.Array]:
    """Discounts, 0 where it terminated; trace decays, 0 where it ended; `[T, N]`."""
    going_on = 1.0 - (rollout.terminated | rollout.truncated)
    return gamma * (1.0 - rollout.terminated), lambda_ * going_on


def flatten(batch: Any) -> Any:
    """Tree of `[T, N, ...]` to `[T * N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def advantages(
    spec: Spec, config: Any, params: Params, rollout: Rollout, lambda_: Any
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantages of a rollout and the values of its observations, `[T, N]`.

    Schulman et al. (2015), https://arxiv.org/abs/1506.02438. Differentiable in
    everything; an agent's loss takes them as data, from parameters before the update.
    """
    value = functools.partial(critic(spec, config).apply, params)
    v_tm1, v_t = values(value, rollout, spec.max_steps)
    discount, lambda_ = cut(config.gamma, lambda_, rollout)
    # The losses' gradients do not see these values; stopping them would only cut
    # meta-gradients.
    gae = functools.partial(losses.generalized_advantage_estimation, stop="none")
    over_envs = jax.vmap(gae, in_axes=1, out_axes=1)
    return over_envs(rollout.reward, discount, v_tm1, v_t, lambda_), v_tm1


def normalize(adv: jax.Array) -> jax.Array:
    """Mean 0, standard deviation 1."""
    # d sqrt(0) is infinite: no variance, no slope
    std = jnp.sqrt(jnp.maximum(adv.var(), 1e-16))
    return (adv - adv.mean()) / (std + 1e-8)


class Batch(NamedTuple):
    """Transitions with what a policy gradient needs."""

    obs: jax.Array  # [B, ...]
    action: jax.Array  # [B] or [B, *shape]
    log_prob: jax.Array  # [B] of the action, when it was taken
    advantage: jax.Array  # [B]
    target: jax.Array  # [B] return that the value is to predict


def prepare(
    spec: Spec, config: Any, state: Any, rollout: Rollout, lambda_: Any
) -> Batch:
    """A rollout's advantages, normalised if the config says so, and returns."""
    adv, value = advantages(spec, config, state.critic, rollout, lambda_)
    scaled = normalize(adv) if config.normalize_advantages else adv
    batch = Batch(rollout.obs, rollout.action, rollout.extras, scaled, adv + value)
    return flatten(batch)


def policy_loss(
    spec: Spec, config: Any, params: Params, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """Likelihood-ratio loss less the entropy bonus, mean over the batch.

    Sutton and Barto (2018), eq. 13.11, http://incompleteideas.net/book/the-book.html.
    """
    distribution = actor(spec, config).apply(params, batch.obs)
    loss = -jnp.mean(distribution.log_prob(batch.action) * batch.advantage)
    entropy = distribution.entropy().mean()
    metrics = {"policy_loss": loss, "entropy": entropy}
    return loss - config.entropy_cost * entropy, metrics


def value_loss(
    spec: Spec, config: Any, params: Params, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """Half the squared error of the return's prediction, mean over the batch."""
    value = critic(spec, config).apply(params, batch.obs)
    loss = optax.l2_loss(value, batch.target).mean()
    return loss, {"value_loss": loss}


def fit(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    rate: jax.Array,
    start: tuple[jax.Array, Any],
    batch: Any,
    index: jax.Array,
) -> tuple[tuple[jax.Array, Any], Metrics]:
    """Steps along the gradients of a loss, each of a part of a batch.

    Args:
      loss: of the parameters as one flat vector, which Adam takes in one kernel.
      optimizer: gives the direction of each step.
      rate: `[]` learning rate.
      start: the flat parameters and the optimiser's state.
      batch: tree of `[B, ...]`.
      index: `[steps, size]` int, which of the batch each step takes.

    Returns:
      Where it ends, and the metrics' means.
    """
    grad = jax.grad(loss, has_aux=True)

    def step(carry: Any, index: jax.Array) -> tuple[Any, Metrics]:
        flat, opt_state = carry
        grads, metrics = grad(flat, jax.tree.map(lambda x: x[index], batch))
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.tree.add_scale(flat, -rate, updates), opt_state), metrics

    end, metrics = jax.lax.scan(step, start, index)
    return end, jax.tree.map(jnp.mean, metrics)


def learn(spec: Spec, config: Any, state: Any, batch: Batch) -> tuple[Any, Metrics]:
    """One step of both networks along the policy gradient of one rollout.

    Args:
      spec: of the environment.
      config: the agent's.
      state: the agent's, with the fields of `State`.
      batch: the rollout's.

    Returns:
      The new state, and the losses.
    """
    progress = optimizers.progress(config, state.step)
    rate = optimizers.annealed(config, progress, config.learning_rate)
    optimizer = optimizers.clipped_adam(config, EPS)

    def step(loss: Any, params: Params, opt_state: Any) -> tuple[Any, Any, Metrics]:
        flat, unravel = ravel_pytree(params)  # one vector: one kernel in Adam
        grad = jax.grad(lambda f: loss(spec, config, unravel(f), batch), has_aux=True)
        grads, metrics = grad(flat)
        updates, opt_state = optimizer.update(grads, opt_state)
        flat = optax.tree.add_scale(flat, -rate, updates)
        return unravel(flat), opt_state, metrics

    actor_params, actor_opt, metrics = step(policy_loss, state.actor, state.actor_opt)
    critic_params, critic_opt, more = step(value_loss, state.critic, state.critic_opt)
    state = state._replace(
        actor=actor_params,
        critic=critic_params,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        step=state.step + len(batch.target),
    )
    return state, metrics | more
