"""Parallelised Q-network. Gallici et al. (2024), https://arxiv.org/abs/2407.04811.

Q-learning from the newest rollout of many environments, without replay or target
network: layer normalisation and lambda returns make up for both. The returns are
Peng's, Peng and Williams (1996), https://doi.org/10.1007/BF00114731.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses
from rljax.learners import fresh_q_learner, on_policy, optimizers, q_learner
from rljax.learners.fresh_q_learner import FreshQState as State
from rljax.types import Agent, Key, Metrics, Obs, Params, Rollout, Spec, Torso

_MINATAR = dict(
    learning_rate=5e-4,
    lambda_=0.65,
    epsilon_end=0.05,
    exploration_fraction=0.1,
    total_steps=10_000_000,
    num_envs=128,
    rollout_length=32,
    num_epochs=2,
    num_minibatches=32,
    hidden_sizes=(128,),
)
_GAMES = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
PRESETS: dict[str, cfg.Preset] = {
    "Acrobot-v1": cfg.Preset(
        dict(
            learning_rate=1e-3,
            lambda_=0.6,
            exploration_fraction=0.15,  # chance alone hardly ever swings up
            rollout_length=32,
            hidden_sizes=(128, 128),
        )
    ),
} | {f"{game}-MinAtar": cfg.Preset(_MINATAR) for game in _GAMES}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = cfg.rate(5e-4)  # of Adam
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    lambda_: float = cfg.share(0.9)  # mixes the returns' lengths, cut at any end
    epsilon_start: float = 1.0  # chance of a uniform action at first
    epsilon_end: float = 0.02  # and after `exploration_fraction`
    exploration_fraction: float = 0.5  # of total_steps, over which epsilon falls
    epsilon_eval: float = 0.0  # in evaluation
    max_grad_norm: float = 10.0  # global norm at which gradients are clipped
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(64)  # steps per environment and update
    num_epochs: int = cfg.static(4)  # passes over each rollout
    num_minibatches: int = cfg.static(8)  # gradient steps per pass
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))
    activation: str = cfg.static("relu")
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(True)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        on_policy.validate_minibatches(self)
        cfg.check_range(self, "lambda_", low=0.0, high=1.0)
        q_learner.validate_epsilon(self)


class Targets(NamedTuple):
    """Transitions with the returns that their values are to predict."""

    obs: Obs  # [B, ...]
    action: jax.Array  # [B] int32
    target: jax.Array  # [B]


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    return fresh_q_learner.make("pqn", spec, functools.partial(update, spec))


def targets(
    spec: Spec, config: Config, bootstrap_params: Params, rollout: Rollout
) -> jax.Array:
    """Lambda returns `[T, N]` over the greatest action values; eq. 12 and 13.

    They see other parameters than the loss's gradient does: nothing is stopped, and
    meta-gradients pass.
    """
    apply = fresh_q_learner.network(spec, config).apply

    def greatest(obs: jax.Array) -> jax.Array:
        return jnp.max(apply(bootstrap_params, obs), axis=-1)

    _, v_t = on_policy.bootstrap_values(greatest, rollout, spec.max_steps)
    discount, lambda_ = on_policy.cut(config.gamma, config.lambda_, rollout)
    returns = functools.partial(losses.lambda_returns, stop="none")
    over_envs = jax.vmap(returns, in_axes=1, out_axes=1)
    return over_envs(rollout.reward, discount, v_t, lambda_)


def loss(
    spec: Spec, config: Config, params: Params, batch: Targets
) -> tuple[jax.Array, Metrics]:
    """Half the squared error of the targets' prediction, mean over the batch."""
    q = fresh_q_learner.network(spec, config).apply(params, batch.obs)
    chosen = losses.batched_index(q, batch.action)
    total = optax.l2_loss(chosen, batch.target).mean()
    return total, {"loss": total}


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """Several epochs of minibatches over one rollout."""
    target = targets(spec, config, state.params, rollout)
    batch = Targets(obs=rollout.obs, action=rollout.action, target=target)
    progress = optimizers.progress(config, state.step)
    params, opt_state, metrics = on_policy.fit_epochs(
        config,
        optimizers.annealed(config, progress, config.learning_rate),
        functools.partial(loss, spec, config),
        params=state.params,
        opt_state=state.opt_state,
        batch=on_policy.flatten(batch),
        key=key,
        adam_epsilon=1e-8,
    )
    step = cfg.next_count(state.step)
    return State(params=params, opt_state=opt_state, step=step), metrics
