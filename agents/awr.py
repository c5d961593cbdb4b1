"""AWR: advantage-weighted regression. Peng et al. (2019), https://arxiv.org/abs/1910.00177.

Returns and advantages with a trace that decays: Schulman et al. (2015),
https://arxiv.org/abs/1506.02438.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax

from rljax import config as cfg
from rljax import losses, replay
from rljax.learners import actor_critic, on_policy, optimizers
from rljax.learners.on_policy import Minibatch
from rljax.types import Agent, Key, Metrics, OptState, Params, Rollout, Spec, Torso

PRESETS: dict[str, cfg.Preset] = {
    "Pendulum-v1": cfg.Preset(dict(gamma=0.95, num_epochs=4)),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = cfg.rate(1e-3)  # of Adam, for actor and critic
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    lambda_: float = cfg.share(0.95)  # trace decay of the returns, cut at any end
    temperature: float = cfg.cost(1.0, 0.05, 20.0)  # of weights, in advantages
    max_weight: float = 20.0  # of an action
    max_grad_norm: float = 0.5  # where each network's gradient is clipped
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(32)  # steps per environment and update
    capacity: int = cfg.static(16_384)  # steps in the replay
    batch_size: int = cfg.static(64)  # sequences per update
    sequence_length: int = cfg.static(32)  # steps of each
    num_epochs: int = cfg.static(1)  # passes over them, of the critic, then the actor
    num_minibatches: int = cfg.static(8)  # gradient steps of each per pass
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))  # of actor and critic each
    activation: str = cfg.static("tanh")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(True)  # learning rate falls linearly to 0
    normalize_advantages: bool = cfg.static(True)  # per update

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        on_policy.validate(self)
        replay.validate(self)
        cfg.check_range(self, "lambda_", low=0.0, high=1.0)
        cfg.check_range(self, "temperature", "max_weight", low=0.0, open_low=True)
        cfg.check_count(self, "batch_size", "sequence_length")
        cfg.check_count(self, "num_epochs", "num_minibatches")
        if self.sequence_length > self.rollout_length:  # the first rollout has one
            raise ValueError(
                f"sequence_length={self.sequence_length}: must be at most "
                f"rollout_length = {self.rollout_length}"
            )
        steps = self.batch_size * self.sequence_length
        if steps > self.capacity:
            raise ValueError(
                f"batch_size={self.batch_size}: must be at most capacity / "
                f"sequence_length = {self.capacity // self.sequence_length}"
            )
        what = "batch_size * sequence_length"
        cfg.check_divides(self, "num_minibatches", steps, what=what)


class State(NamedTuple):
    """Networks, optimisers, counts and replay of the agent."""

    actor: Params
    critic: Params
    actor_opt: OptState  # Adam over the actor's parameters as one flat vector
    critic_opt: OptState  # likewise
    step: jax.Array  # [] int32, rollouts learned from
    replay: replay.Replay


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`."""
    return Agent(
        init=functools.partial(init, spec),
        memory=lambda config, num_envs: (),
        act=functools.partial(on_policy.act, spec),
        observe=actor_critic.observe,
        update=functools.partial(update, spec),
        policy=functools.partial(on_policy.policy, spec),
        value=functools.partial(on_policy.value, spec),
    )


def policy_loss(
    spec: Spec, config: Config, params: Params, batch: Minibatch
) -> tuple[jax.Array, Metrics]:
    """Weighted regression on the actions of the replay, mean over the batch.

    Whatever policy took them: the weights do not depend on it.
    """
    policy = on_policy.actor(spec, config).apply(params, batch.obs)
    loss = losses.awr_loss(
        log_prob_t=policy.log_prob(batch.action),
        adv_t=batch.advantage,
        temperature=config.temperature,
        max_weight=config.max_weight,
    ).mean()
    return loss, {"policy_loss": loss, "entropy": policy.entropy().mean()}


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh networks and optimisers, an empty replay."""
    buffer = replay.init(spec, config.num_envs, config.capacity, prioritized=False)
    state = on_policy.init(spec, config, key)
    return State(
        actor=state.actor,
        critic=state.critic,
        actor_opt=state.actor_opt,
        critic_opt=state.critic_opt,
        step=state.step,
        replay=buffer,
    )


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """Learn values, then the policy, from sequences of the replay.

    The returns come from the critic before its steps, the advantages from that after.
    """
    sample_key, critic_key, actor_key = jax.random.split(key, 3)
    _, sequences, _ = replay.sample_sequences(
        state.replay,
        sample_key,
        batch_size=config.batch_size,
        length=config.sequence_length,
    )
    progress = optimizers.progress(config, state.step)
    rate = optimizers.annealed(config, progress, config.learning_rate)
    critic, critic_opt, metrics = on_policy.fit_epochs(
        config,
        rate,
        functools.partial(on_policy.value_loss, spec, config),
        params=state.critic,
        opt_state=state.critic_opt,
        batch=on_policy.prepare(
            spec, config, state, rollout=sequences, lambda_=config.lambda_
        ),
        key=critic_key,
    )
    state = state._replace(critic=critic, critic_opt=critic_opt)
    actor, actor_opt, more = on_policy.fit_epochs(
        config,
        rate,
        functools.partial(policy_loss, spec, config),
        params=state.actor,
        opt_state=state.actor_opt,
        batch=on_policy.prepare(
            spec, config, state, rollout=sequences, lambda_=config.lambda_
        ),
        key=actor_key,
    )
    step = cfg.next_count(state.step)
    state = state._replace(actor=actor, actor_opt=actor_opt, step=step)
    return state, metrics | more
