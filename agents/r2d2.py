"""R2D2: deep Q-learning with memory, from sequences with stored state and burn-in.

Kapturowski et al. (2019), https://openreview.net/forum?id=r1lyTjAqYX.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import losses, networks
from rljax.learners import q_learner
from rljax.learners.q_learner import QLearnerConfig
from rljax.learners.q_learner import QState as State
from rljax.networks import distributions, recurrent
from rljax.types import (
    Agent,
    Cell,
    Extras,
    Key,
    Memory,
    Metrics,
    Obs,
    Params,
    Recalled,
    Rollout,
    Spec,
)

PRESETS: dict[str, cfg.Preset] = {
    "MemoryChain-bsuite": cfg.Preset(
        dict(
            learning_rate=1e-3,
            total_steps=60_000,
            warmup_steps=5_000,
            memory_size=32,
        ),
        env_params=(dict(memory_length=15),),
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config(QLearnerConfig):
    """Hyperparameters beside those of every `QLearnerConfig`."""

    priority_exponent: float = 0.9  # 0: uniform, 1: in proportion
    importance_exponent: float = 0.6  # grows to 1, which undoes the priorities' bias
    priority_mix: float = 0.9  # share of a sequence's greatest error, rest: of the mean
    rollout_length: int = cfg.static(2)  # steps per environment and iteration
    batch_size: int = cfg.static(32)  # sequences
    burn_in: int = cfg.static(10)  # steps that only bring the memory up to date
    sequence_length: int = cfg.static(20)  # steps after them, which are learned from
    priority: str = cfg.static("td_error")  # or "uniform", "grad_norm"
    hidden_sizes: tuple[int, ...] = cfg.static((64,))  # before the memory
    memory_size: int = cfg.static(64)  # features of the memory
    cell: Cell = cfg.static("lstm")  # that remembers, or "gru"

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        super().validate()
        cfg.check_range(self, "priority_mix", low=0.0, high=1.0)
        cfg.check_count(self, "sequence_length")
        recurrent.validate(self)
        cfg.check_count(self, "burn_in", low=0)
        rows = min(self.warmup_steps, self.capacity) // self.num_envs
        if length(self) > rows:
            raise ValueError(
                f"sequence_length={self.sequence_length}: must be at most "
                f"min(warmup_steps, capacity) / num_envs - burn_in = "
                f"{rows - self.burn_in}"
            )


def length(config: Config) -> int:
    """Steps of a sequence, burn-in and all."""
    return config.burn_in + config.sequence_length


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not discrete.
    """
    q_learner.check_discrete("r2d2", spec)

    def observe(config: Config, state: State, rollout: Rollout) -> State:
        return q_learner.observe(config, state, rollout, length=length(config))

    return Agent(
        init=functools.partial(init, spec),
        memory=memory,
        act=functools.partial(act, spec),
        observe=observe,
        update=functools.partial(update, spec),
        q_values=functools.partial(q_values, spec),
        recurrent=True,
    )


def network(spec: Spec, config: Config) -> Any:
    """The action values' network."""
    return recurrent.RecurrentQNetwork(
        body=networks.body(spec, config),
        memory_cell=recurrent.cell(config),
        num_actions=q_learner.num_actions(spec),
    )


def q_values(spec: Spec, config: Config, state: State, seen: Recalled) -> jax.Array:
    """Action values of observations in a row, `[T, N, A]`: not as h(Q)."""
    found, _ = network(spec, config).apply(
        state.params, seen.obs, seen.start, seen.memory, method="unroll"
    )
    return losses.SIGNED_HYPERBOLIC_PAIR.apply_inv(found)


def action_values(
    spec: Spec,
    config: Config,
    params: Params,
    *,
    burn_in_params: Params,
    sequence: Rollout,
) -> tuple[jax.Array, jax.Array]:
    """Action values of one sequence after the burn-in, `[T, num_actions]` each.

    First of the states acted in, then of their true successors. After a step that the
    time limit cut, the successor is not the next row: each successor is valued with the
    memory after its own step.
    """
    net = network(spec, config)
    burn_in = config.burn_in
    starts = recurrent.starts_of(sequence.terminated | sequence.truncated)
    before = jax.tree.map(lambda x: x[:burn_in], sequence.obs)
    obs, next_obs = jax.tree.map(
        lambda x: x[burn_in:], (sequence.obs, sequence.next_obs)
    )
    memory = recurrent.recall(
        net,
        burn_in_params,
        obs=before,
        starts=starts[:burn_in],
        memory=jax.tree.map(lambda x: x[0], sequence.memory),
    )
    q, memories = net.apply(params, obs, starts[burn_in:], memory, method="unroll")
    next_q, _ = net.apply(params, next_obs, memories)
    return q, next_q


def td_errors(
    spec: Spec,
    config: Config,
    params: Params,
    *,
    bootstrap_params: Params,
    sequence: Rollout,
) -> jax.Array:
    """Double Q-learning's errors of one sequence after the burn-in, `[T]`.

    Values are learned as h(Q), which squashes large ones. The semi-gradient is the
    gradient with respect to `params` alone: what the target takes from
    `bootstrap_params` stays differentiable for meta-gradients.
    """
    # What the burn-in leaves is data to the online network, like the stored memory.
    values = functools.partial(action_values, spec, config, sequence=sequence)
    q, next_q = values(params, burn_in_params=jax.lax.stop_gradient(params))
    _, target_q = values(bootstrap_params, burn_in_params=bootstrap_params)
    steps = jax.tree.map(lambda x: x[config.burn_in :], sequence)
    return losses.transformed_n_step_q_learning(
        q_tm1=q,
        a_tm1=steps.action,
        target_q_t=target_q,
        a_t=next_q.argmax(axis=-1),
        r_t=steps.reward,
        discount_t=config.gamma * (1.0 - steps.terminated),
        n=config.n_step,
        lambda_t=1.0 - (steps.terminated | steps.truncated),
        stop="none",
        tx_pair=losses.SIGNED_HYPERBOLIC_PAIR,
    )


def memory(config: Config, num_envs: int) -> Memory:
    """The memory of `num_envs` episodes that start."""
    return recurrent.fresh_memory(config, num_envs)


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh network and optimiser, an empty replay with room for memories."""
    return q_learner.init(
        spec,
        config,
        network(spec, config),
        key=key,
        inputs=(memory(config, 1),),
        memory=memory(config, config.num_envs),
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
    """Epsilon-greedy, with an epsilon of its own in evaluation."""
    q, memory = network(spec, config).apply(state.params, obs, memory)
    epsilon = q_learner.epsilon(config, state.step, explore)
    return distributions.epsilon_greedy(q, epsilon, key), memory, ()


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """Learn from sequences of the replay."""
    del rollout  # the replay holds it already

    def loss(
        params: Params, bootstrap_params: Params, sequence: Rollout, key: Key
    ) -> tuple[jax.Array, jax.Array]:
        del key  # nothing is drawn
        errors = td_errors(
            spec, config, params, bootstrap_params=bootstrap_params, sequence=sequence
        )
        sizes, mix = jnp.abs(errors), config.priority_mix
        score = mix * sizes.max() + (1.0 - mix) * sizes.mean()
        return optax.l2_loss(errors).mean(), score

    return q_learner.learn(loss, config, state, key=key, length=length(config))
