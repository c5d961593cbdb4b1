"""Proximal policy optimisation. Schulman et al. (2017), https://arxiv.org/abs/1707.06347.

Advantages: Schulman et al. (2015), https://arxiv.org/abs/1506.02438.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses
from rljax.learners import on_policy
from rljax.learners.on_policy import OnPolicyState as State
from rljax.types import Agent, Key, Metrics, Params, Rollout, Spec, Torso

_MINATAR = dict(
    learning_rate=1e-3,
    total_steps=3_000_000,
    num_envs=64,
    activation="relu",
    clip_value=False,
)
# With flat inputs Asterix pays 5 after so many steps, with a convolution 33.
_PLANES = _MINATAR | dict(num_minibatches=32, hidden_sizes=(128,))
_BREAKOUT = dict(
    learning_rate=5e-3,
    total_steps=10_000_000,
    num_envs=64,
    num_minibatches=32,  # with fewer its policies settle early
    activation="relu",
    torso="mlp",
    clip_value=False,
)
_GRID = cfg.Preset(
    dict(
        learning_rate=1e-3,
        num_envs=32,
        num_minibatches=8,
        # Before the first reward they would be noise of standard deviation 1.
        normalize_advantages=False,
    ),
    env_params=None,
    wrap=dict(resets="optimistic"),
)
_PHYSICS = cfg.Preset(
    dict(
        learning_rate=1e-3,
        entropy_cost=0.0,
        total_steps=1_000_000,
        num_envs=32,
        rollout_length=64,
        num_minibatches=8,
    ),
    env_params=None,
    wrap=dict(normalize_obs=True, normalize_rewards=0.99, resets="cached"),
)
PRESETS: dict[str, cfg.Preset] = {
    "Acrobot-v1": cfg.Preset(dict(learning_rate=3e-3)),
    "Breakout-MinAtar": cfg.Preset(_BREAKOUT),
    "MountainCarContinuous-v0": cfg.Preset(
        dict(entropy_cost=0.0, total_steps=1_000_000, num_envs=16),
        wrap=dict(normalize_obs=True, normalize_rewards=0.99),
    ),
    "Pendulum-v1": cfg.Preset(
        dict(
            learning_rate=1e-3,
            gamma=0.95,
            entropy_cost=0.0,
            total_steps=1_000_000,
            num_envs=8,
            num_epochs=10,
            num_minibatches=8,
            clip_value=False,
        )
    ),
    "brax/*": _PHYSICS,
    "brax/reacher": _PHYSICS._replace(
        config=_PHYSICS.config | dict(gamma=0.95, learning_rate=5e-4),
        wrap=_PHYSICS.wrap | dict(normalize_rewards=0.95),
    ),
    "craftax/*": cfg.Preset(
        dict(
            learning_rate=1e-3,
            total_steps=3_000_000,
            num_envs=64,
            num_minibatches=8,
            hidden_sizes=(256, 256),
        ),
        env_params=None,
        wrap=dict(resets="optimistic"),
    ),
    "jumanji/Snake-v1": cfg.Preset(
        dict(
            learning_rate=1e-3,
            total_steps=10_000_000,
            num_envs=64,
            num_minibatches=8,
            hidden_sizes=(128, 128),
            torso="mlp",
        ),
        env_params=None,
        wrap=dict(resets="optimistic"),
    ),
    "navix/*": _GRID,
    "pgx/minatar-breakout": cfg.Preset(_BREAKOUT, env_params=None),
    "playground/*": _PHYSICS,
    "xminigrid/*": _GRID,
    "Asterix-MinAtar": cfg.Preset(_PLANES),
    "Freeway-MinAtar": cfg.Preset(_PLANES),
    # Surfacing without a diver costs a life, and divers pay late.
    "Seaquest-MinAtar": cfg.Preset(_PLANES | dict(gamma=0.999, total_steps=6_000_000)),
    "SpaceInvaders-MinAtar": cfg.Preset(
        _MINATAR | dict(num_minibatches=8, hidden_sizes=(128, 128), torso="mlp")
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = cfg.rate(5e-4)  # of Adam
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    lambda_: float = cfg.share(0.95)  # trace decay of the advantages, cut at any end
    clip_epsilon: float = cfg.share(0.2, 0.01)  # of ratios, and values if clipped
    entropy_cost: float = cfg.cost(0.01)  # weight of the entropy bonus
    max_grad_norm: float = 0.5  # where each network's gradient is clipped
    max_kl: float | None = None  # from the old policy, beyond which its updates stop
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(4)
    rollout_length: int = cfg.static(128)  # steps per environment and update
    num_epochs: int = cfg.static(4)  # passes over each rollout
    num_minibatches: int = cfg.static(4)  # gradient steps per pass
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))  # of actor and critic each
    activation: str = cfg.static("tanh")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    clip_value: bool = cfg.static(True)  # also clip the change of the value
    normalize_advantages: bool = cfg.static(True)  # per minibatch

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        cfg.check_range(self, "lambda_", low=0.0, high=1.0)
        cfg.check_range(self, "entropy_cost", low=0.0)
        given = () if self.max_kl is None else ("max_kl",)
        cfg.check_range(self, "clip_epsilon", *given, low=0.0, open_low=True)
        on_policy.validate_minibatches(self)


class Transitions(NamedTuple):
    """Transitions with what their losses need."""

    obs: jax.Array  # [B, ...]
    action: jax.Array  # [B] or [B, *shape]
    targets: jax.Array  # [B, 4] log-probability, advantage, return, value at acting


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`."""
    return on_policy.make(spec, functools.partial(update, spec), parts=2)


def actor_loss(
    spec: Spec, config: Config, params: Params, batch: Transitions
) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate less the entropy bonus, mean over the batch."""
    policy = on_policy.actor(spec, config).apply(params, batch.obs)
    return on_policy.clipped_policy_loss(
        config,
        policy,
        batch.action,
        log_prob=batch.targets[:, 0],
        adv=batch.targets[:, 1],
    )


def critic_loss(
    spec: Spec, config: Config, params: Params, batch: Transitions
) -> tuple[jax.Array, Metrics]:
    """Half the squared error of the return's prediction, mean over the batch."""
    target, old_value = batch.targets[:, 2], batch.targets[:, 3]
    new_value = on_policy.critic(spec, config).apply(params, batch.obs)
    if config.clip_value:
        total = losses.clipped_value_loss(
            v_t=new_value,
            v_old_t=old_value,
            target_t=target,
            epsilon=config.clip_epsilon,
        ).mean()
    else:
        total = optax.l2_loss(new_value, target).mean()
    return total, {"value_loss": total}


def prepare(spec: Spec, config: Config, state: State, rollout: Rollout) -> Transitions:
    """Advantages and returns of a rollout, flattened to `[T * N, ...]`."""
    adv, value = on_policy.advantages(
        spec, config, state.critic, rollout=rollout, lambda_=config.lambda_
    )
    targets = jnp.stack([rollout.extras, adv, adv + value, value], axis=-1)
    batch = Transitions(obs=rollout.obs, action=rollout.action, targets=targets)
    return on_policy.flatten(batch)


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """Several epochs of minibatches over one rollout."""
    batch = prepare(spec, config, state, rollout)

    def close(metrics: Metrics) -> jax.Array:
        return metrics["approx_kl"] <= jnp.asarray(config.max_kl)

    return on_policy.fit_both(
        config,
        state,
        batch,
        index=on_policy.minibatches(config, key, len(batch.targets)),
        actor_loss=lambda params, _, part: actor_loss(spec, config, params, part),
        critic_loss=lambda params, _, part: critic_loss(spec, config, params, part),
        going_on=None if config.max_kl is None else close,
    )
