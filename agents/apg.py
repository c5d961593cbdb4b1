"""Analytic policy gradient. SHAC: Xu et al. (2022), https://arxiv.org/abs/2204.07137.

The derivative of the return through the simulator itself, over short horizons at whose
ends a critic stands for the rest. What jumps has none: a reward for reaching a goal
shows through the critic alone.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import losses, networks
from rljax.contracts import Network
from rljax.learners import actor_critic, on_policy, optimizers
from rljax.networks import distributions
from rljax.running.rollout import simulate
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
    num_rows,
)

PRESETS: dict[str, cfg.Preset] = {
    "brax/*": cfg.Preset({}, env_params=None, wrap=dict(resets="cached")),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = cfg.rate(3e-3)  # of Adam, for actor and critic
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    lambda_: float = cfg.share(0.95)  # trace decay of targets, cut at any end
    target_rate: float = 0.1  # how far the target critic moves to the critic
    max_grad_norm: float = 1.0  # where each network's gradient is clipped
    total_steps: int = cfg.static(200_000)  # environment steps, all environments
    num_envs: int = cfg.static(8)
    rollout_length: int = cfg.static(16)  # horizon, in steps per environment
    num_epochs: int = cfg.static(4)  # the critic's passes over each rollout
    num_minibatches: int = cfg.static(4)  # its gradient steps per pass
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))  # of actor and critic each
    activation: str = cfg.static("gelu")  # smooth: the actor learns from slopes
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        on_policy.validate_minibatches(self)
        cfg.check_range(self, "lambda_", low=0.0, high=1.0)
        cfg.check_range(self, "target_rate", low=0.0, high=1.0, open_low=True)


class State(NamedTuple):
    """Networks, optimisers and counts of the agent."""

    actor: Params
    critic: Params
    actor_opt: OptState  # Adam over the actor's parameters as one flat vector
    critic_opt: OptState  # likewise
    target_critic: Params  # follows the critic
    step: jax.Array  # [] int32, rollouts learned from


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not continuous, a bound is infinite, or the steps
        have no derivatives.
    """
    box(spec)
    if not spec.differentiable:
        raise ValueError(
            "apg needs spec.differentiable, not False: an environment whose step has "
            "derivatives, as gymnax's with `supports_transition_gradients`"
        )
    return Agent(
        init=functools.partial(init, spec),
        memory=lambda config, num_envs: (),
        act=functools.partial(act, spec),
        observe=lambda config, state, rollout: state,
        update=functools.partial(update, spec),
        simulates=True,
        repeat=functools.partial(repeat, spec),
    )


def box(spec: Spec) -> Box:
    """The actions; ValueError if they are not continuous, or a bound is infinite."""
    return distributions.check_bounded("apg", spec)


def actor(spec: Spec, config: Config) -> Network:
    """The policy's network."""
    return networks.TanhGaussianActor(
        body=networks.policy_body(spec, config), action=box(spec)
    )


def critic(spec: Spec, config: Config) -> Network:
    """The value's network."""
    return networks.Critic(body=networks.body(spec, config))


def policy(
    spec: Spec, config: Config, params: Params, *, obs: Obs, noise: jax.Array
) -> jax.Array:
    """Actions `[N, *shape]` that standard normal noise `[N, D]` makes."""
    action = distributions.squashed(actor(spec, config).apply(params, obs), noise)
    return action.reshape(-1, *box(spec).shape)


def repeat(
    spec: Spec, config: Config, state: State, obs: Obs, noise: jax.Array
) -> jax.Array:
    """The actions `[N, *shape]` that the noise of `act` leads to."""
    return policy(spec, config, state.actor, obs=obs, noise=noise)


def horizon_return(
    spec: Spec, config: Config, params: Params, *, bootstrap: State, rollout: Rollout
) -> jax.Array:
    """Discounted return within the rollout and the value beyond, per step; `[]`.

    Section 3.2. Of every episode in the rollout; its gradient with respect to
    `params`, the actor's, runs through all steps. The value is that of `bootstrap`'s
    target critic.
    """

    def act_again(obs: Obs, noise: jax.Array) -> jax.Array:
        return policy(spec, config, params, obs=obs, noise=noise)

    rollout = simulate(rollout, act_again)
    v_t = critic(spec, config).apply(bootstrap.target_critic, rollout.next_obs)
    discount, trace = on_policy.cut(config.gamma, 1.0, rollout)
    fn = functools.partial(losses.lambda_returns, stop="none")
    over_envs = jax.vmap(fn, in_axes=1, out_axes=1)
    returns = over_envs(rollout.reward, discount, v_t, trace)
    ended = rollout.terminated | rollout.truncated
    starts = jnp.concatenate([jnp.ones_like(ended[:1]), ended[:-1]])
    return jnp.mean(starts * returns)


def value_loss(
    spec: Spec, config: Config, params: Params, batch: tuple[Obs, jax.Array]
) -> tuple[jax.Array, Metrics]:
    """Half the squared error of the target's prediction, mean over a batch."""
    obs, target = batch
    value = critic(spec, config).apply(params, obs)
    loss = optax.l2_loss(value, target).mean()
    return loss, {"value_loss": loss}


def targets(spec: Spec, config: Config, params: Params, rollout: Rollout) -> jax.Array:
    """TD(lambda) targets `[T, N]` from the target critic's values."""
    value = functools.partial(critic(spec, config).apply, params)
    v_tm1, v_t = on_policy.bootstrap_values(value, rollout, spec.max_steps)
    adv = on_policy.from_values(config, rollout, v_tm1, v_t=v_t, lambda_=config.lambda_)
    return adv + v_tm1


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh networks and optimisers."""
    actor_key, critic_key = jax.random.split(key)
    obs = spec.zeros(1)
    actor_params, actor_opt = on_policy.init_network(
        config, actor(spec, config), actor_key, obs
    )
    critic_params, critic_opt = on_policy.init_network(
        config, critic(spec, config), critic_key, obs
    )
    return State(
        actor=actor_params,
        critic=critic_params,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        target_critic=jax.tree.map(jnp.copy, critic_params),  # donatable
        step=jnp.zeros((), jnp.int32),
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
    """Sample the policy, with the noise that did; or take its mean before the tanh."""
    shape = (num_rows(obs), actor_critic.action_size(spec))
    zeros = jnp.zeros(shape, jnp.float32)
    noise = jax.random.normal(key, shape, zeros.dtype) if explore else zeros
    action = policy(spec, config, state.actor, obs=obs, noise=noise)
    return action, memory, noise


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """One step of the policy, several of the critic."""
    progress = optimizers.progress(config, state.step)
    rate = optimizers.annealed(config, progress, config.learning_rate)
    optimizer = optimizers.clipped_adam(config, on_policy.EPS)

    flat, unravel = ravel_pytree(state.actor)  # one vector: one kernel in Adam

    def loss(flat: jax.Array) -> jax.Array:
        params = unravel(flat)
        return -horizon_return(spec, config, params, bootstrap=state, rollout=rollout)

    value, grads = jax.value_and_grad(loss)(flat)
    updates, actor_opt = optimizer.update(grads, state.actor_opt)
    actor_params = unravel(optax.tree.add_scale(flat, -rate, updates))

    target = targets(spec, config, state.target_critic, rollout)
    critic_params, critic_opt, metrics = on_policy.fit_epochs(
        config,
        rate,
        functools.partial(value_loss, spec, config),
        params=state.critic,
        opt_state=state.critic_opt,
        batch=on_policy.flatten((rollout.obs, target)),
        key=key,
    )
    new_state = State(
        actor=actor_params,
        critic=critic_params,
        actor_opt=actor_opt,
        critic_opt=critic_opt,
        target_critic=actor_critic.follow(config, critic_params, state.target_critic),
        step=cfg.next_count(state.step),
    )
    norm = optax.safe_norm(grads, 1e-16)
    return new_state, metrics | {"policy_loss": value, "grad_norm": norm}
