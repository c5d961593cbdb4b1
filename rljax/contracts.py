"""Contracts between the parts: the fields of configs and states, and environments.

A config of your own is any registered dataclass with the fields of the protocols that
the functions you call ask for. Fields that are `float` here are leaves and may be
tracers.
"""

from typing import Any, Protocol

import jax

from rljax.types import EnvState, Noise, Obs, OptState, Params, Spec, TimeStep


class RunConfig(Protocol):
    """Of a run."""

    @property
    def total_steps(self) -> int: ...  # environment steps, all environments
    @property
    def num_envs(self) -> int: ...
    @property
    def rollout_length(self) -> int: ...  # steps per environment and update


class TrainConfig(RunConfig, Protocol):
    """Of a training: `train.init` and `train.train`."""

    def validate(self) -> None:
        """Raise ValueError naming a field out of range."""
        ...


class OptimizerConfig(RunConfig, Protocol):
    """Of the optimiser that agents share."""

    @property
    def learning_rate(self) -> float: ...  # at the start
    @property
    def max_grad_norm(self) -> float: ...  # where a gradient is clipped
    @property
    def anneal(self) -> bool: ...  # learning rates fall linearly to 0


class NetworkConfig(Protocol):
    """Of a network without memory."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def activation(self) -> str: ...  # a name of `networks.layers.ACTIVATIONS`


class EncoderConfig(NetworkConfig, Protocol):
    """Of a network that may see images."""

    @property
    def convolution(self) -> bool: ...  # images go through one, else flat


class OnPolicyConfig(OptimizerConfig, EncoderConfig, Protocol):
    """Of agents with a policy and a value that learn from fresh rollouts."""

    @property
    def gamma(self) -> float: ...  # discount, cut at termination


class AdvantageConfig(OnPolicyConfig, Protocol):
    """Of agents that learn from generalised advantages."""

    @property
    def normalize_advantages(self) -> bool: ...


class PolicyGradientConfig(AdvantageConfig, Protocol):
    """Of agents with the plain policy gradient."""

    @property
    def entropy_cost(self) -> float: ...  # weight of the entropy bonus


class ClippedConfig(Protocol):
    """Of the clipped surrogate."""

    @property
    def clip_epsilon(self) -> float: ...  # greatest change of a probability ratio
    @property
    def entropy_cost(self) -> float: ...  # weight of the entropy bonus
    @property
    def normalize_advantages(self) -> bool: ...


class EpochsConfig(Protocol):
    """Of agents that go over a rollout several times."""

    @property
    def max_grad_norm(self) -> float: ...  # where a gradient is clipped
    @property
    def num_epochs(self) -> int: ...  # passes over the batch
    @property
    def num_minibatches(self) -> int: ...  # gradient steps per pass


class BufferConfig(RunConfig, Protocol):
    """Of a replay's buffer."""

    @property
    def capacity(self) -> int: ...  # steps in the replay


class ReplayConfig(BufferConfig, Protocol):
    """Of agents that draw from a replay."""

    @property
    def warmup_steps(self) -> int: ...  # stored before the first update
    @property
    def batch_size(self) -> int: ...
    @property
    def n_step(self) -> int: ...  # rewards before the bootstrap
    @property
    def priority(self) -> str: ...  # "uniform", "td_error" or "grad_norm"
    @property
    def priority_exponent(self) -> float: ...  # 0: uniform, 1: in proportion
    @property
    def importance_exponent(self) -> float: ...  # grows to 1 over the training
    @property
    def sampler(self) -> str: ...  # "replay", or "large_batch": scored afresh
    @property
    def large_batch_factor(self) -> int: ...  # large batch over batch size


class TargetConfig(OptimizerConfig, ReplayConfig, Protocol):
    """Of agents with a replay and target networks."""

    @property
    def num_updates(self) -> int: ...  # gradient steps per iteration
    @property
    def target_rate(self) -> float: ...  # how far targets move, 1: copy


class QConfig(TargetConfig, Protocol):
    """Of agents that learn action values from a replay."""

    @property
    def gamma(self) -> float: ...  # discount, cut at termination
    @property
    def target_period(self) -> int: ...  # gradient steps between target updates


class ActorCriticConfig(TargetConfig, NetworkConfig, Protocol):
    """Of agents that learn an actor and critics from a replay."""


class EpsilonConfig(RunConfig, Protocol):
    """Of epsilon-greedy exploration."""

    @property
    def epsilon_start(self) -> float: ...  # chance of a uniform action at first
    @property
    def epsilon_end(self) -> float: ...  # and after `exploration_fraction`
    @property
    def exploration_fraction(self) -> float: ...  # of the training
    @property
    def epsilon_eval(self) -> float: ...  # in evaluation


def fields(config: type) -> list[str]:
    """The names that a config's protocol asks for, sorted.

    Example:
      >>> fields(RunConfig)
      ['num_envs', 'rollout_length', 'total_steps']
    """
    names = {
        name
        for protocol in config.__mro__
        for name, value in vars(protocol).items()
        if isinstance(value, property)
    }
    return sorted(names)


class ActorCriticState(Protocol):
    """Of agents with an actor and a critic, each with Adam over one flat vector."""

    @property
    def actor(self) -> Params: ...
    @property
    def critic(self) -> Params: ...
    @property
    def actor_opt(self) -> OptState: ...
    @property
    def critic_opt(self) -> OptState: ...
    @property
    def step(self) -> jax.Array: ...  # [] int32, rollouts learned from
    def _replace(self, **changes: Any) -> Any: ...


class BatchedEnv(Protocol):
    """N environments that reset themselves: what rollouts need."""

    @property
    def spec(self) -> Spec:
        """Observations and actions of one environment."""
        ...

    @property
    def max_steps(self) -> Any:
        """Time limit of an episode, in steps."""
        ...

    def reset(self, key: jax.Array, num_envs: int) -> tuple[EnvState, Obs]:
        """Return `(state, obs[N, ...])`."""
        ...

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Noise:
        """Randomness of `length` steps, `[T, N, ...]`, drawn in bulk."""
        ...

    def step(
        self, noise: Noise, state: EnvState, action: jax.Array
    ) -> tuple[EnvState, TimeStep]:
        """One step with one row of `draw`: `(state, TimeStep)`.

        `TimeStep.info` may hold `episode_return` and `episode_length` `[N]`, of the
        running episodes up to this step; training counts them itself if they are not
        there. It may hold `reward` `[N]`, where the environment's own differs from the
        one that the agent learns from.
        """
        ...

    def for_evaluation(self, state: EnvState) -> "BatchedEnv":
        """The same task with what training learned of it, and its true rewards."""
        ...
