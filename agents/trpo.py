"""Trust-region policy optimisation. Schulman et al. (2015), https://arxiv.org/abs/1502.05477.

The natural gradient comes from products with the Fisher matrix, never formed. The
advantages are those of Schulman et al. (2015), https://arxiv.org/abs/1506.02438.
"""

import dataclasses
import functools
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax.autodiff import fisher_vp, natural_gradient
from rljax.learners import on_policy, optimizers
from rljax.learners.on_policy import Minibatch
from rljax.running import parallel
from rljax.types import (
    Agent,
    Key,
    Leaf,
    Metrics,
    OptState,
    Params,
    Rollout,
    Spec,
    Torso,
)

PRESETS: dict[str, cfg.Preset] = {
    "Pendulum-v1": cfg.Preset(
        dict(gamma=0.95, total_steps=1_000_000, rollout_length=256)
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    max_kl: float = 0.01  # mean divergence of the new policy from the old, at most
    damping: float = 0.1  # added to the Fisher matrix's diagonal
    backtracking: float = 0.8  # shrinks a step that is not accepted
    learning_rate: float = cfg.rate(1e-3)  # of Adam, for the critic
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    lambda_: float = cfg.share(0.95)  # trace decay of the advantages, cut at any end
    max_grad_norm: float = 0.5  # where the critic's gradient is clipped
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(8)
    rollout_length: int = cfg.static(128)  # steps per environment and update
    cg_iterations: int = cfg.static(10)  # of conjugate gradients
    fisher_stride: int = cfg.static(4)  # the Fisher matrix is that of every n-th state
    max_backtracks: int = cfg.static(10)  # sizes that are tried
    num_epochs: int = cfg.static(10)  # the critic's passes over each rollout
    num_minibatches: int = cfg.static(8)  # its gradient steps per pass
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))  # of actor and critic each
    activation: str = cfg.static("tanh")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(True)  # max_kl and learning_rate fall linearly to 0
    normalize_advantages: bool = cfg.static(True)  # per rollout

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        on_policy.validate_minibatches(self)
        cfg.check_range(self, "lambda_", "damping", low=0.0, high=1.0)
        cfg.check_range(self, "max_kl", low=0.0, open_low=True)
        cfg.check_range(self, "backtracking", low=0.0, high=1.0, open_low=True)
        cfg.check_count(self, "cg_iterations", "fisher_stride", "max_backtracks")


class State(NamedTuple):
    """Networks, optimisers and counts of the agent."""

    actor: Params
    critic: Params
    critic_opt: OptState  # Adam over the critic's parameters as one flat vector
    step: jax.Array  # [] int32, rollouts learned from


class Search(NamedTuple):
    """The line search: what is tried next, and what came of the last try."""

    scale: jax.Array  # [] of the step
    tries: jax.Array  # [] int32
    accepted: jax.Array  # [] bool
    kl: jax.Array  # [] of the last try
    gain: jax.Array  # [] in the surrogate, of the last try


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`."""
    agent = on_policy.make(spec, functools.partial(update, spec))
    return agent._replace(init=functools.partial(init, spec))


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh networks, and an optimiser for the critic."""
    state = on_policy.init(spec, config, key)
    return State(
        actor=state.actor,
        critic=state.critic,
        critic_opt=state.critic_opt,
        step=state.step,
    )


def surrogate(
    spec: Spec, config: Config, params: Params, batch: Minibatch
) -> jax.Array:
    """Expected advantage of the policy at the states of another, `[]`; eq. 14."""
    policy = on_policy.actor(spec, config).apply(params, batch.obs)
    ratio = jnp.exp(policy.log_prob(batch.action) - batch.log_prob)
    return jnp.mean(ratio * batch.advantage)


def natural_step(
    spec: Spec, config: Config, params: Params, *, batch: Minibatch, max_kl: Leaf
) -> Params:
    """The step along the natural gradient to the edge of the trust region.

    As long as the divergence's quadratic model allows; appendix C.
    """
    # The products are what a step costs.
    some = jax.tree.map(lambda x: x[:: config.fisher_stride], batch.obs)

    def policy(params: Params) -> distrax.Distribution:
        return on_policy.actor(spec, config).apply(params, some)

    def product(tangent: Params) -> Params:
        return parallel.mean(fisher_vp(policy, params, tangent))

    gradient = parallel.mean(jax.grad(surrogate, 2)(spec, config, params, batch))
    direction = natural_gradient(
        product,
        gradient,
        damping=config.damping,
        iterations=config.cg_iterations,
    )
    # Of each iterate x conjugate gradients make x (F + damping) x equal to x g.
    curvature = jnp.asarray(optax.tree.vdot(direction, gradient))
    nothing = curvature <= 0  # no advantage anywhere: stay
    length = jnp.sqrt(2.0 * max_kl / jnp.where(nothing, 1.0, curvature))
    return optax.tree.scale(jnp.where(nothing, 0.0, length), direction)


def line_search(
    spec: Spec,
    config: Config,
    params: Params,
    *,
    step: Params,
    batch: Minibatch,
    max_kl: Leaf,
) -> Search:
    """The longest of ever shorter steps that keeps the divergence and gains."""
    # A choice: what is learned has derivatives in the step, not in its size here.
    config, params, step, batch, max_kl = jax.lax.stop_gradient(
        (config, params, step, batch, max_kl)
    )
    old = on_policy.actor(spec, config).apply(params, batch.obs)
    before = parallel.mean(surrogate(spec, config, params, batch))

    def attempt(search: Search) -> Search:
        scale = jnp.where(search.tries == 0, 1.0, search.scale * config.backtracking)
        tried = optax.tree.add_scale(params, scale, step)
        new = on_policy.actor(spec, config).apply(tried, batch.obs)
        kl = parallel.mean(old.kl_divergence(new).mean())
        gain = parallel.mean(surrogate(spec, config, tried, batch)) - before
        accepted = (kl <= max_kl) & (gain > 0)
        return Search(
            scale=scale, tries=search.tries + 1, accepted=accepted, kl=kl, gain=gain
        )

    def going_on(search: Search) -> jax.Array:
        return ~search.accepted & (search.tries < config.max_backtracks)

    zero = jnp.zeros((), batch.advantage.dtype)
    start = Search(
        scale=zero,
        tries=jnp.zeros((), jnp.int32),
        accepted=jnp.array(False),
        kl=zero,
        gain=zero,
    )
    return jax.lax.while_loop(going_on, attempt, start)


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """One natural-gradient step of the policy, several of the critic."""
    progress = optimizers.progress(config, state.step)
    max_kl = optimizers.annealed(config, progress, config.max_kl)
    batch = on_policy.prepare(
        spec, config, state, rollout=rollout, lambda_=config.lambda_
    )
    step = natural_step(spec, config, state.actor, batch=batch, max_kl=max_kl)
    search = line_search(
        spec, config, state.actor, step=step, batch=batch, max_kl=max_kl
    )
    scale = jnp.where(search.accepted, search.scale, 0.0)
    actor_params = optax.tree.add_scale(state.actor, scale, step)
    policy = on_policy.actor(spec, config).apply(state.actor, batch.obs)

    rate = optimizers.annealed(config, progress, config.learning_rate)
    critic_params, critic_opt, metrics = on_policy.fit_epochs(
        config,
        rate,
        functools.partial(on_policy.value_loss, spec, config),
        params=state.critic,
        opt_state=state.critic_opt,
        batch=batch,
        key=key,
    )
    new_state = State(
        actor=actor_params,
        critic=critic_params,
        critic_opt=critic_opt,
        step=cfg.next_count(state.step),
    )
    return new_state, metrics | {
        "kl": jnp.where(search.accepted, search.kl, 0.0),
        "surrogate_gain": jnp.where(search.accepted, search.gain, 0.0),
        "step_scale": scale,
        "entropy": policy.entropy().mean(),
    }
