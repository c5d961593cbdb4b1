"""Sarsa. Sutton and Barto (2018), https://incompleteideas.net/book/the-book-2nd.html.

First by Rummery and Niranjan (1994), report CUED/F-INFENG/TR 166.
Expected: van Seijen et al. (2009), https://doi.org/10.1109/ADPRL.2009.4927542.

Online: every transition is learned from once, when it is new. Consecutive ones are
alike and targets move with what is learned; many environments, each somewhere else in
its episode, and layer normalisation keep that stable without replay or target network:
Gallici et al. (2024), https://arxiv.org/abs/2407.04811.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import losses
from rljax.learners import fresh_q_learner, on_policy, optimizers, q_learner
from rljax.learners.fresh_q_learner import FreshQState as State
from rljax.networks import distributions, torsos
from rljax.types import Agent, Key, Metrics, Params, Rollout, Spec, Torso, Transition

PRESETS: dict[str, cfg.Preset] = {}
_UNKNOWN = -1  # the next action is not taken yet, or the episode ended


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = cfg.rate(2e-3)  # of Adam
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    epsilon_start: float = 1.0  # chance of a uniform action at first
    epsilon_end: float = 0.02  # and after `exploration_fraction`
    exploration_fraction: float = 0.3  # of total_steps, over which epsilon falls
    epsilon_eval: float = 0.0  # in evaluation
    max_grad_norm: float = 10.0  # global norm at which gradients are clipped
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(4)  # steps per environment and gradient step
    hidden_sizes: tuple[int, ...] = cfg.static((128, 128))
    activation: str = cfg.static("relu")
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(True)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    expected: bool = cfg.static(True)  # mean over next actions, not the one taken

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        cfg.check_range(self, "learning_rate", "max_grad_norm", low=0.0, open_low=True)
        cfg.check_range(self, "gamma", low=0.0, high=1.0)
        q_learner.validate_epsilon(self)
        cfg.check_loop(self)
        torsos.validate(self)


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    return fresh_q_learner.make("sarsa", spec, functools.partial(update, spec))


def next_actions(rollout: Rollout) -> jax.Array:
    """The actions taken next `[T, N]`, where they are in the rollout and episode."""
    newest = jnp.full_like(rollout.action[:1], _UNKNOWN)
    taken = jnp.concatenate([rollout.action[1:], newest])
    return jnp.where(rollout.terminated | rollout.truncated, _UNKNOWN, taken)


def td_error(
    spec: Spec,
    config: Config,
    params: Params,
    *,
    bootstrap_params: Params,
    transition: Transition,
    next_action: jax.Array,
    epsilon: jax.Array,
    key: Key,
) -> jax.Array:
    """Temporal-difference error of one transition, `[]`.

    A next action that is not known is drawn here from the policy, as exact as the one
    that is taken later. The semi-gradient is the gradient with respect to `params`
    alone: what the target takes from `bootstrap_params` stays differentiable.
    """
    apply = fresh_q_learner.network(spec, config).apply
    q_t = apply(bootstrap_params, transition.next_obs)
    if config.expected:
        return losses.expected_sarsa(
            q_tm1=apply(params, transition.obs),
            a_tm1=transition.action,
            r_t=transition.reward,
            discount_t=config.gamma * (1.0 - transition.terminated),
            q_t=q_t,
            probs_a_t=distributions.epsilon_greedy_probs(q_t, epsilon),
            stop="none",
        )
    drawn = distributions.epsilon_greedy(q_t, epsilon, key)
    return losses.sarsa(
        q_tm1=apply(params, transition.obs),
        a_tm1=transition.action,
        r_t=transition.reward,
        discount_t=config.gamma * (1.0 - transition.terminated),
        q_t=q_t,
        a_t=jnp.where(next_action == _UNKNOWN, drawn, next_action),
        stop="none",
    )


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """One gradient step on the rollout."""
    epsilon = q_learner.epsilon(config, state.step, explore=True)
    steps = Transition(
        obs=rollout.obs,
        action=rollout.action,
        reward=rollout.reward,
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        next_obs=rollout.next_obs,
    )
    steps, next_action = on_policy.flatten((steps, next_actions(rollout)))
    keys = jax.random.split(key, rollout.reward.size)
    flat, unravel = ravel_pytree(state.params)  # one vector: one kernel in Adam

    def loss(flat: jax.Array) -> jax.Array:
        params = unravel(flat)

        def error(step: Transition, action: jax.Array, key: Key) -> jax.Array:
            return td_error(
                spec,
                config,
                params,
                bootstrap_params=state.params,
                transition=step,
                next_action=action,
                epsilon=epsilon,
                key=key,
            )

        return optax.l2_loss(jax.vmap(error)(steps, next_action, keys)).mean()

    value, grads = jax.value_and_grad(loss)(flat)
    updates, opt_state = optimizers.clipped_adam(config).update(grads, state.opt_state)
    progress = optimizers.progress(config, state.step)
    rate = optimizers.annealed(config, progress, config.learning_rate)
    new_state = State(
        params=unravel(optax.tree.add_scale(flat, -rate, updates)),
        opt_state=opt_state,
        step=cfg.next_count(state.step),
    )
    return new_state, {"loss": value}
