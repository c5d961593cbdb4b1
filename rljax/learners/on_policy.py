"""Mechanics of agents that learn a policy and a value from fresh rollouts.

The losses, and how often a rollout is used, set the agents apart.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import losses, networks, prng
from rljax._distrax import distrax
from rljax._loops import scan
from rljax.autodiff import semi_gradient
from rljax.contracts import (
    ActorCriticState,
    AdvantageConfig,
    ClipConfig,
    ClippedConfig,
    DiscountConfig,
    EpochsConfig,
    HasActor,
    HasCritic,
    LearnerConfig,
    Network,
    NetworkConfig,
    OnPolicyConfig,
    OptimizerConfig,
    PolicyGradientConfig,
    PolicyLossConfig,
    PolicyNetworkConfig,
    RolloutEpochsConfig,
    ValueConfig,
)
from rljax.learners import optimizers
from rljax.networks import distributions, torsos
from rljax.running import parallel
from rljax.running.sharding import side_by_side
from rljax.types import (
    Agent,
    Extras,
    Key,
    Leaf,
    Memory,
    Metrics,
    Obs,
    OptState,
    Params,
    Rollout,
    Spec,
    UpdateFn,
)

EPS = 1e-5  # of Adam
_KEPT = "gradients"  # of each step, for a derivative of all steps in reverse
_CACHED = 2**16  # numbers; networks on CPU are slower on more of them at once

Tree = TypeVar("Tree")
Examples = TypeVar("Examples")  # tree of [B, ...]
S = TypeVar("S", bound=ActorCriticState)
# (flat parameters, the same as data, minibatch) -> (loss [], metrics)
FlatLoss = Callable[[jax.Array, jax.Array, Examples], tuple[jax.Array, Metrics]]
# (parameters, minibatch) -> (loss [], metrics)
MinibatchLoss = Callable[[Params, Examples], tuple[jax.Array, Metrics]]
# (parameters, the same as data, minibatch) -> (loss [], metrics)
SemiLoss = Callable[[Params, Params, Examples], tuple[jax.Array, Metrics]]
GoingOn = Callable[[Metrics], jax.Array]  # metrics of a step -> [] bool
# what `fit` carries: the parameters as one flat vector, the optimiser's state
Fitted = tuple[jax.Array, OptState]


class OnPolicyState(NamedTuple):
    """Networks, optimisers and counts of the agent."""

    actor: Params
    critic: Params
    actor_opt: OptState  # Adam over the actor's parameters as one flat vector
    critic_opt: OptState  # likewise
    step: jax.Array  # [] int32, rollouts learned from


class Minibatch(NamedTuple):
    """Transitions with what a policy gradient needs."""

    obs: Obs  # [B, ...]
    action: jax.Array  # [B] or [B, *shape]
    log_prob: jax.Array  # [B] of the action, when it was taken
    advantage: jax.Array  # [B]
    target: jax.Array  # [B] return that the value is to predict


def make(spec: Spec, update: UpdateFn, *, parts: int = 1) -> Agent:
    """Make an agent from its update, with the `init` and `act` below.

    Args:
      spec: of the environments.
      update: the agent's.
      parts: as `Agent.parts`.
    """
    return Agent(
        init=functools.partial(init, spec),
        memory=lambda config, num_envs: (),
        act=functools.partial(act, spec),
        observe=lambda config, state, rollout: state,
        update=update,
        policy=functools.partial(policy, spec),
        value=functools.partial(value, spec),
        parts=parts,
    )


def validate(config: LearnerConfig) -> None:
    """Raise ValueError naming a field out of range, its value and the range."""
    cfg.check_range(config, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
    cfg.check_range(config, "gamma", low=0.0, high=1.0)
    cfg.check_loop(config)
    torsos.validate(config)


def validate_minibatches(config: RolloutEpochsConfig) -> None:
    """The same for the fields of agents that go over a rollout several times."""
    cfg.check_count(config, "num_epochs", "num_minibatches")
    steps = config.num_envs * config.rollout_length
    what = "num_envs * rollout_length"
    cfg.check_divides(config, "num_minibatches", steps, what=what)


def actor(spec: Spec, config: PolicyNetworkConfig) -> Network:
    """The policy's network."""
    body = networks.policy_body(spec, config)
    return networks.Actor(body=body, action=spec.action)


def critic(spec: Spec, config: NetworkConfig) -> Network:
    """The value's network, with parameters of its own."""
    return networks.Critic(body=networks.body(spec, config))


def init_network(
    config: ClipConfig, network: Network, key: Key, *inputs: Any
) -> tuple[Params, OptState]:
    """Fresh parameters for such inputs, and Adam's state over them as one vector."""
    params = network.init(key, *inputs)
    optimizer = optimizers.clipped_adam(config, EPS)
    return params, optimizer.init(ravel_pytree(params)[0])


def init(spec: Spec, config: OnPolicyConfig, key: Key) -> OnPolicyState:
    """Fresh networks and optimisers; ValueError if the config lacks a field."""
    cfg.check_contract("on_policy", config, OnPolicyConfig)
    actor_key, critic_key = jax.random.split(key)
    obs = spec.zeros(1)
    actor_params, actor_opt = init_network(config, actor(spec, config), actor_key, obs)
    critic_params, critic_opt = init_network(
        config, critic(spec, config), critic_key, obs
    )
    return OnPolicyState(
        actor=actor_params,
        critic=critic_params,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        step=jnp.zeros((), jnp.int32),
    )


def act(
    spec: Spec,
    config: PolicyNetworkConfig,
    state: HasActor,
    memory: Memory,
    obs: Obs,
    key: Key,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """Sample the policy, with the log-probability; or take its mode."""
    distribution = policy(spec, config, state, obs)
    if not explore:
        return distribution.mode(), memory, ()
    action = distributions.sample(distribution, key)
    return action, memory, distribution.log_prob(action)


def policy(
    spec: Spec, config: PolicyNetworkConfig, state: HasActor, obs: Obs
) -> distrax.Distribution:
    """The policy at observations `[..., *shape]`: an agent's `policy`."""
    return actor(spec, config).apply(state.actor, obs)


def value(spec: Spec, config: NetworkConfig, state: HasCritic, obs: Obs) -> jax.Array:
    """Values `[...]` of observations `[..., *shape]`: an agent's `value`."""
    return critic(spec, config).apply(state.critic, obs)


def bootstrap_values(
    critic: Callable[[Obs], jax.Array], rollout: Rollout, max_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Values of a rollout's observations and of their true successors, `[T, N]` each.

    Most successors are the next row's observation, whose value is known already. Only
    the newest ones and those that the time limit cut are valued on their own. Where a
    step terminated, what stands for its successor is of no meaning.

    Args:
      critic: maps observations `[..., N, *shape]` to values `[..., N]`.
      rollout: `[T, N, ...]`.
      max_steps: `Spec.max_steps`; in so many rows an environment is cut at most once.
        The value after a cut that breaks the promise is NaN.

    Returns:
      `(v_tm1, v_t)`.
    """
    length = len(rollout.reward)
    rows = max(n for n in range(1, min(length, max_steps) + 1) if length % n == 0)
    cut = rollout.truncated & ~rollout.terminated
    where_cut = cut.reshape(-1, rows, *cut.shape[1:]).argmax(axis=1)
    row = where_cut + rows * jnp.arange(len(where_cut))[:, None]  # [T / rows, N]
    column = jnp.arange(row.shape[1])

    def all_valued(obs: jax.Array, next_obs: jax.Array) -> jax.Array:
        return jnp.concatenate([obs, next_obs[-1:], next_obs[row, column]])

    every = jax.tree.map(all_valued, rollout.obs, rollout.next_obs)
    num_rows = length + 1 + len(row)
    size = sum(leaf[0].size for leaf in jax.tree.leaves(every))  # of a row
    at_once = max(1, _CACHED // size)  # rows
    if at_once < num_rows:
        pieces = functools.partial(jax.lax.map, critic, batch_size=at_once)
        found = jax.lax.platform_dependent(every, cpu=pieces, default=critic)
    else:
        found = critic(every)
    at_ends = jnp.repeat(found[length + 1 :], rows, axis=0)
    v_t = jnp.where(cut, at_ends, found[1 : length + 1])
    first_cut = jnp.repeat(row, rows, axis=0) == jnp.arange(length)[:, None]
    return found[:length], jnp.where(cut & ~first_cut, jnp.nan, v_t)


def cut(gamma: Leaf, lambda_: Leaf, rollout: Rollout) -> tuple[jax.Array, jax.Array]:
    """Discounts, 0 where it terminated; trace decays, 0 where it ended; `[T, N]`."""
    going_on = 1.0 - (rollout.terminated | rollout.truncated)
    return gamma * (1.0 - rollout.terminated), lambda_ * going_on


def flatten(batch: Tree) -> Tree:
    """Tree of `[T, N, ...]` to `[T * N, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)


def advantages(
    spec: Spec, config: ValueConfig, params: Params, *, rollout: Rollout, lambda_: Leaf
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantages of a rollout and the values of its observations, `[T, N]`.

    Schulman et al. (2015), https://arxiv.org/abs/1506.02438. Differentiable in
    everything; an agent's loss takes them as data, from parameters before the update.
    """
    value_of = functools.partial(critic(spec, config).apply, params)
    v_tm1, v_t = bootstrap_values(value_of, rollout, spec.max_steps)
    adv = from_values(config, rollout, v_tm1, v_t=v_t, lambda_=lambda_)
    return adv, v_tm1


def from_values(
    config: DiscountConfig,
    rollout: Rollout,
    v_tm1: jax.Array,
    *,
    v_t: jax.Array,
    lambda_: Leaf,
) -> jax.Array:
    """Generalised advantages given the values of states and true successors, `[T, N]`.

    Schulman et al. (2015), https://arxiv.org/abs/1506.02438, eq. 16.
    """
    discount, lambda_ = cut(config.gamma, lambda_, rollout)
    # The losses' gradients do not see these values; stopping them would only cut
    # meta-gradients.
    gae = functools.partial(losses.generalized_advantage_estimation, stop="none")
    over_envs = jax.vmap(gae, in_axes=1, out_axes=1)
    return over_envs(rollout.reward, discount, v_tm1, v_t, lambda_)


def normalize(adv: jax.Array) -> jax.Array:
    """Mean 0, standard deviation 1, over the shards of a run together."""
    # d sqrt(0) is infinite: no variance, no slope
    std = jnp.sqrt(jnp.maximum(parallel.variance(adv), 1e-16))
    return (adv - parallel.mean(adv.mean())) / (std + 1e-8)


def prepare(
    spec: Spec,
    config: AdvantageConfig,
    state: HasCritic,
    *,
    rollout: Rollout,
    lambda_: Leaf,
) -> Minibatch:
    """A rollout's advantages, normalised if the config says so, and returns."""
    cfg.check_fields("on_policy.prepare", config, "gamma", "normalize_advantages")
    adv, value = advantages(
        spec, config, state.critic, rollout=rollout, lambda_=lambda_
    )
    batch = Minibatch(
        obs=rollout.obs,
        action=rollout.action,
        log_prob=rollout.extras,
        advantage=normalize(adv) if config.normalize_advantages else adv,
        target=adv + value,
    )
    return flatten(batch)


def policy_loss(
    spec: Spec, config: PolicyLossConfig, params: Params, batch: Minibatch
) -> tuple[jax.Array, Metrics]:
    """Likelihood-ratio loss less the entropy bonus, mean over the batch.

    Sutton and Barto (2018), eq. 13.11, http://incompleteideas.net/book/the-book.html.
    """
    cfg.check_fields("on_policy.policy_loss", config, "entropy_cost")
    distribution = actor(spec, config).apply(params, batch.obs)
    loss = -jnp.mean(distribution.log_prob(batch.action) * batch.advantage)
    entropy = distribution.entropy().mean()
    metrics = {"policy_loss": loss, "entropy": entropy}
    return loss - config.entropy_cost * entropy, metrics


def value_loss(
    spec: Spec, config: NetworkConfig, params: Params, batch: Minibatch
) -> tuple[jax.Array, Metrics]:
    """Half the squared error of the return's prediction, mean over the batch."""
    value = critic(spec, config).apply(params, batch.obs)
    loss = optax.l2_loss(value, batch.target).mean()
    return loss, {"value_loss": loss}


def clipped_policy_loss(
    config: ClippedConfig,
    policy: distrax.Distribution,
    action: jax.Array,
    *,
    log_prob: jax.Array,
    adv: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate less the entropy bonus, mean over a batch.

    Schulman et al. (2017), https://arxiv.org/abs/1707.06347, eq. 7. The divergence is
    estimated as by Schulman (2020), http://joschu.net/blog/kl-approx.html, k3.

    Args:
      config: the agent's.
      policy: distributions of batch shape `[...]`.
      action: `[...]` or `[..., *shape]`.
      log_prob: `[...]` of the action, when it was taken.
      adv: `[...]` advantages.

    Returns:
      `([], metrics)`.
    """
    cfg.check_contract("on_policy.clipped_policy_loss", config, ClippedConfig)
    if config.normalize_advantages:
        adv = normalize(adv)
    log_ratio = policy.log_prob(action) - log_prob
    ratio, epsilon = jnp.exp(log_ratio), config.clip_epsilon
    terms = losses.clipped_surrogate_pg_loss(ratio.ravel(), adv.ravel(), epsilon)
    surrogate, entropy = terms.mean(), policy.entropy().mean()
    return surrogate - config.entropy_cost * entropy, {
        "policy_loss": surrogate,
        "entropy": entropy,
        "approx_kl": jnp.mean(ratio - 1.0 - log_ratio),
        "clip_fraction": jnp.mean(jnp.abs(ratio - 1.0) > epsilon),
    }


def fit(
    loss: FlatLoss[Examples],
    start: Fitted,
    batch: Examples,
    *,
    index: jax.Array,
    optimizer: optax.GradientTransformation,
    rate: Leaf,
    going_on: GoingOn | None = None,
) -> tuple[Fitted, Metrics]:
    """Steps along the gradients of a loss, each of a part of a batch.

    Args:
      loss: of the parameters as one flat vector, which Adam takes in one kernel. The
        step is along the semi-gradient: in the first argument alone.
      start: the flat parameters and the optimiser's state.
      batch: tree of `[B, ...]`.
      index: `[steps, size]` int, which of the batch each step takes.
      optimizer: gives the direction of each step.
      rate: `[]` learning rate.
      going_on: `metrics -> [] bool`; the first step for which it is False is not taken,
        and none after it.

    Returns:
      Where it ends, and the metrics' means; with `going_on` over the steps taken and
      the one refused, and `steps_taken`, the share of them.
    """
    grad = semi_gradient(loss, has_aux=True)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(carry: Any, index: jax.Array) -> tuple[Any, Metrics]:
        flat, opt_state = carry
        grads, metrics = grad(flat, jax.tree.map(lambda x: x[index], batch))
        grads = checkpoint_name(grads, _KEPT)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.tree.add_scale(flat, -rate, updates), opt_state), metrics

    if going_on is None:
        end, metrics = _in_parts(step, start, index)
        return end, jax.tree.map(jnp.mean, metrics)

    def checked(carry: Any, index: jax.Array) -> tuple[Any, Any]:
        old, alive = carry
        new, metrics = step(old, index)
        taken = alive & going_on(parallel.mean(metrics))
        # A choice, not a branch: under vmap a branch is one too.
        kept = jax.tree.map(functools.partial(jnp.where, taken), new, old)
        return (kept, taken), (metrics, alive, taken)

    carry, (metrics, alive, taken) = _in_parts(checked, (start, True), index)
    mean = functools.partial(jnp.mean, where=alive)
    return carry[0], jax.tree.map(mean, metrics) | {"steps_taken": taken.mean()}


def _in_parts(
    step: Callable[[Any, jax.Array], tuple[Any, Any]], start: Any, index: jax.Array
) -> tuple[Any, Any]:
    """Scan over `index` by two loops, one in the other; results have both axes.

    A derivative in reverse keeps the gradient of each step and where each inner loop
    starts. The optimiser finds the other starts from the gradients, and a step computes
    its loss once more.
    """
    number = len(index)
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    size = max(n for n in divisors if n * n <= number)
    kept = jax.checkpoint_policies.save_only_these_names(_KEPT)

    @functools.partial(jax.checkpoint, prevent_cse=False, policy=kept)
    def part(carry: Any, index: jax.Array) -> tuple[Any, Any]:
        return scan(step, carry, index)

    parts = index.reshape(number // size, size, *index.shape[1:])
    return scan(part, start, parts)


def minibatches(config: EpochsConfig, key: Key, size: int) -> jax.Array:
    """Indices of shuffled minibatches, `[num_epochs * num_minibatches, size / num]`.

    Args:
      config: the agent's, with the fields of `validate_minibatches`.
      key: `[]` typed key, consumed here.
      size: of the batch, B.
    """
    index = prng.permutations(key, config.num_epochs, size)
    return index.reshape(config.num_epochs * config.num_minibatches, -1)


def fit_minibatches(
    config: ClipConfig,
    rate: Leaf,
    loss: SemiLoss[Examples],
    *,
    params: Params,
    opt_state: OptState,
    batch: Examples,
    index: jax.Array,
    going_on: GoingOn | None = None,
    adam_epsilon: float = EPS,
) -> tuple[Params, OptState, Metrics]:
    """Steps of Adam along the semi-gradients of a loss, each of a minibatch.

    Args:
      config: the agent's.
      rate: `[]` learning rate.
      loss: `(params, the same as data, minibatch) -> (loss [], metrics)`.
      params: where to start.
      opt_state: the optimiser's, over the parameters as one flat vector.
      batch: tree of `[B, ...]`.
      index: as returned by `minibatches`.
      going_on: as in `fit`.
      adam_epsilon: of Adam.

    Returns:
      The new parameters, the optimiser's new state, the metrics' means.
    """
    flat, unravel = ravel_pytree(params)  # one vector: one kernel in Adam

    def of_flat(
        flat: jax.Array, fixed: jax.Array, batch: Examples
    ) -> tuple[jax.Array, Metrics]:
        return loss(unravel(flat), unravel(fixed), batch)

    (flat, opt_state), metrics = fit(
        of_flat,
        (flat, opt_state),
        batch,
        index=index,
        optimizer=optimizers.clipped_adam(config, adam_epsilon),
        rate=rate,
        going_on=going_on,
    )
    return unravel(flat), opt_state, metrics


def fit_epochs(
    config: EpochsConfig,
    rate: Leaf,
    loss: MinibatchLoss[Examples],
    *,
    params: Params,
    opt_state: OptState,
    batch: Examples,
    key: Key,
    adam_epsilon: float = EPS,
) -> tuple[Params, OptState, Metrics]:
    """Steps of Adam along the gradients of a loss: several epochs of minibatches.

    Args:
      config: the agent's, with the fields of `validate_minibatches`.
      rate: `[]` learning rate.
      loss: `(params, minibatch) -> (loss [], metrics)`.
      params: where to start.
      opt_state: the optimiser's, over the parameters as one flat vector.
      batch: tree of `[B, ...]`.
      key: `[]` typed key, consumed here.
      adam_epsilon: of Adam.

    Returns:
      The new parameters, the optimiser's new state, the metrics' means.
    """
    cfg.check_contract("on_policy.fit_epochs", config, EpochsConfig)
    return fit_minibatches(
        config,
        rate,
        lambda params, _, batch: loss(params, batch),
        params=params,
        opt_state=opt_state,
        batch=batch,
        index=minibatches(config, key, len(jax.tree.leaves(batch)[0])),
        adam_epsilon=adam_epsilon,
    )


def fit_both(
    config: OptimizerConfig,
    state: S,
    batch: Examples,
    *,
    index: jax.Array,
    actor_loss: SemiLoss[Examples],
    critic_loss: SemiLoss[Examples],
    going_on: GoingOn | None = None,
) -> tuple[S, Metrics]:
    """Steps of Adam for an actor and for a critic on the same minibatches.

    Args:
      config: the agent's.
      state: the agent's.
      batch: tree of `[B, ...]`.
      index: as returned by `minibatches`.
      actor_loss: as in `fit_minibatches`.
      critic_loss: likewise.
      going_on: of the actor's steps, as in `fit`.

    Returns:
      The new state, and both losses' metrics.
    """
    progress = optimizers.progress(config, state.step)
    rate = optimizers.annealed(config, progress, config.learning_rate)
    fit_one = functools.partial(fit_minibatches, config, rate, batch=batch, index=index)
    # Two loops, not one: each network stays in cache, of its own core if there are two.
    (actor, actor_opt, metrics), (critic, critic_opt, more) = side_by_side(
        lambda: fit_one(
            actor_loss,
            params=state.actor,
            opt_state=state.actor_opt,
            going_on=going_on,
        ),
        lambda: fit_one(critic_loss, params=state.critic, opt_state=state.critic_opt),
    )
    new_state = state._replace(
        actor=actor,
        critic=critic,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        step=cfg.next_count(state.step),
    )
    return new_state, metrics | more


def adam_step(
    config: ClipConfig,
    rate: Leaf,
    loss: Callable[[Params], tuple[jax.Array, Metrics]],
    *,
    params: Params,
    opt_state: OptState,
) -> tuple[Params, OptState, Metrics]:
    """One step of Adam along the gradient of a loss.

    Args:
      config: the agent's.
      rate: `[]` learning rate.
      loss: `params -> (loss [], metrics)`.
      params: where to start.
      opt_state: the optimiser's, over the parameters as one flat vector.

    Returns:
      The new parameters, the optimiser's new state, the metrics.
    """
    flat, unravel = ravel_pytree(params)  # one vector: one kernel in Adam
    grads, metrics = jax.grad(lambda f: loss(unravel(f)), has_aux=True)(flat)
    epsilon = getattr(config, "adam_epsilon", EPS)  # not every config has it
    optimizer = optimizers.clipped_adam(config, epsilon)
    updates, opt_state = optimizer.update(grads, opt_state)
    return unravel(optax.tree.add_scale(flat, -rate, updates)), opt_state, metrics


def learn(
    spec: Spec, config: PolicyGradientConfig, state: S, batch: Minibatch
) -> tuple[S, Metrics]:
    """One step of both networks along the policy gradient of one rollout.

    Args:
      spec: of the environment.
      config: the agent's.
      state: the agent's, with actor, critic and their optimisers.
      batch: the rollout's.

    Returns:
      The new state, and the losses.
    """
    progress = optimizers.progress(config, state.step)
    rate = optimizers.annealed(config, progress, config.learning_rate)
    actor_params, actor_opt, metrics = adam_step(
        config,
        rate,
        functools.partial(policy_loss, spec, config, batch=batch),
        params=state.actor,
        opt_state=state.actor_opt,
    )
    critic_params, critic_opt, more = adam_step(
        config,
        rate,
        functools.partial(value_loss, spec, config, batch=batch),
        params=state.critic,
        opt_state=state.critic_opt,
    )
    new_state = state._replace(
        actor=actor_params,
        critic=critic_params,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        step=cfg.next_count(state.step),
    )
    return new_state, metrics | more
