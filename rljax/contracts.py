"""Contracts between the parts: the fields of configs and states, and environments.

A config of your own is any registered dataclass with the fields of the protocols that
the functions you call ask for. Fields that are `float` here are leaves and may be
tracers.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax

from rljax.types import (
    AgentConfig,
    AgentState,
    Cell,
    EnvState,
    Key,
    Metrics,
    Obs,
    OptState,
    Params,
    Randomness,
    Spec,
    TimeStep,
    Torso,
)


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


class ClipConfig(Protocol):
    """Of gradients that are clipped."""

    @property
    def max_grad_norm(self) -> float: ...  # the greatest norm


class AnnealConfig(Protocol):
    """Of rates that may fall."""

    @property
    def anneal(self) -> bool: ...  # learning rates fall linearly to 0


class OptimizerConfig(RunConfig, ClipConfig, AnnealConfig, Protocol):
    """Of the optimiser that agents share."""

    @property
    def learning_rate(self) -> float: ...  # at the start


class NetworkConfig(Protocol):
    """Of a network without memory."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]: ...
    @property
    def activation(self) -> str: ...  # a name of `networks.layers.ACTIVATIONS`
    @property
    def torso(self) -> Torso: ...  # makes features of observations
    @property
    def layer_norm(self) -> bool: ...  # before each activation
    @property
    def compute_dtype(self) -> str: ...  # of layers, "float32" or "bfloat16"


class MemoryConfig(NetworkConfig, Protocol):
    """Of a network with a memory."""

    @property
    def cell(self) -> Cell: ...
    @property
    def memory_size(self) -> int: ...  # its features


class PolicyNetworkConfig(NetworkConfig, Protocol):
    """Of a policy beside a critic that may see more."""

    @property
    def critic_obs(self) -> tuple[str, ...]: ...  # arrays that only the critic sees


class DiscountConfig(Protocol):
    """Of agents that look ahead."""

    @property
    def gamma(self) -> float: ...  # discount, cut at termination


class LearnerConfig(OptimizerConfig, NetworkConfig, DiscountConfig, Protocol):
    """Of agents that learn networks without memory, or what comes before one."""


class OnPolicyConfig(LearnerConfig, PolicyNetworkConfig, Protocol):
    """Of agents with a policy and a value that learn from fresh rollouts."""


class ValueConfig(NetworkConfig, DiscountConfig, Protocol):
    """Of state values that look ahead."""


class AdvantageConfig(ValueConfig, Protocol):
    """Of generalised advantages."""

    @property
    def normalize_advantages(self) -> bool: ...


class EntropyConfig(Protocol):
    """Of policies that are paid for their entropy."""

    @property
    def entropy_cost(self) -> float: ...  # weight of the entropy bonus


class PolicyLossConfig(PolicyNetworkConfig, EntropyConfig, Protocol):
    """Of the plain policy gradient's loss."""


class PolicyGradientConfig(OnPolicyConfig, EntropyConfig, Protocol):
    """Of agents with the plain policy gradient."""


class ClippedConfig(EntropyConfig, Protocol):
    """Of the clipped surrogate."""

    @property
    def clip_epsilon(self) -> float: ...  # greatest change of a probability ratio
    @property
    def normalize_advantages(self) -> bool: ...


class EpochsConfig(ClipConfig, Protocol):
    """Of agents that go over a batch several times."""

    @property
    def num_epochs(self) -> int: ...  # passes over the batch
    @property
    def num_minibatches(self) -> int: ...  # gradient steps per pass


class RolloutEpochsConfig(LearnerConfig, EpochsConfig, Protocol):
    """Of agents that go over each rollout several times."""


class BufferConfig(RunConfig, Protocol):
    """Of a replay's buffer."""

    @property
    def capacity(self) -> int: ...  # steps in the replay


class ReplayConfig(BufferConfig, Protocol):
    """Of agents that draw from a replay."""

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


class WarmUpConfig(ReplayConfig, Protocol):
    """Of agents whose replay is filled before the first update."""

    @property
    def warmup_steps(self) -> int: ...  # stored before the first update


class TargetRateConfig(Protocol):
    """Of target networks that move a little with each update."""

    @property
    def target_rate(self) -> float: ...  # how far targets move, 1: copy


class TargetConfig(OptimizerConfig, ReplayConfig, TargetRateConfig, Protocol):
    """Of agents with a replay and target networks."""

    @property
    def num_updates(self) -> int: ...  # gradient steps per iteration


class QConfig(TargetConfig, Protocol):
    """Of agents that learn action values from a replay."""

    @property
    def target_period(self) -> int: ...  # gradient steps between target updates


class ActorCriticConfig(TargetConfig, PolicyNetworkConfig, Protocol):
    """Of agents that learn an actor and critics from a replay."""


class ReplayAgentConfig(LearnerConfig, TargetConfig, WarmUpConfig, Protocol):
    """All that agents with a replay and target networks have in common."""


class QAgentConfig(ReplayAgentConfig, QConfig, Protocol):
    """All that agents with action values and a replay have in common."""


class ExplorationConfig(RunConfig, Protocol):
    """Of exploration that falls linearly."""

    @property
    def exploration_fraction(self) -> float: ...  # of the training


class EpsilonConfig(ExplorationConfig, Protocol):
    """Of epsilon-greedy exploration."""

    @property
    def epsilon_start(self) -> float: ...  # chance of a uniform action at first
    @property
    def epsilon_end(self) -> float: ...  # and after `exploration_fraction`
    @property
    def epsilon_eval(self) -> float: ...  # in evaluation


class FreshQConfig(LearnerConfig, EpsilonConfig, Protocol):
    """Of agents that learn action values from fresh rollouts."""


class DampedConfig(Protocol):
    """Of exploring noise that may last."""

    @property
    def noise_damping(self) -> float: ...  # 1: independent noise at each step


class BoundsConfig(Protocol):
    """Of bounds on divergences, as MPO and V-MPO have them."""

    @property
    def epsilon(self) -> float: ...  # of the weighted examples
    @property
    def epsilon_policy(self) -> float: ...  # of the policy; discrete actions
    @property
    def epsilon_mean(self) -> float: ...  # of the policy's mean; continuous actions
    @property
    def epsilon_stddev(self) -> float: ...  # likewise, of its standard deviation


class DualsConfig(Protocol):
    """Of the first values of dual variables."""

    @property
    def temperature(self) -> float: ...  # of the weights
    @property
    def multiplier(self) -> float: ...  # weight of each divergence


class RuleConfig(RunConfig, AnnealConfig, NetworkConfig, DiscountConfig, Protocol):
    """Of agents that learn by a learned update rule."""

    @property
    def learning_rate(self) -> float: ...  # of Adam
    @property
    def max_update(self) -> float: ...  # of each parameter in a step, before the rate


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


class Network(Protocol):
    """A network of any kind, as flax's modules are."""

    def init(self, key: Any, /, *inputs: Any) -> Any:
        """Return fresh parameters for such inputs."""
        ...

    def apply(self, params: Any, /, *inputs: Any) -> Any:
        """Return the outputs."""
        ...


class HasActor(Protocol):
    """A state with a policy."""

    @property
    def actor(self) -> Params: ...


class HasCritic(Protocol):
    """A state with values, of states or of actions."""

    @property
    def critic(self) -> Params: ...


class HasReplay(Protocol):
    """A state with a replay, and a count of what it learned from."""

    @property
    def replay(self) -> Any: ...  # replay.Replay
    @property
    def step(self) -> jax.Array: ...  # [] int32, rollouts learned from
    def _replace(self, **changes: Any) -> Any: ...


class ActionValueState(HasReplay, Protocol):
    """A state with action values and a target network; more fields may be."""

    @property
    def params(self) -> Params: ...
    @property
    def target_params(self) -> Params: ...
    @property
    def opt_state(self) -> OptState: ...
    @property
    def num_updates(self) -> jax.Array: ...  # [] int32, gradient steps


class LearningState(HasActor, HasCritic, HasReplay, Protocol):
    """A state with a policy, critics and a replay."""


class ActorCriticState(HasActor, HasCritic, Protocol):
    """Of agents with an actor and a critic, each with Adam over one flat vector."""

    @property
    def actor_opt(self) -> OptState: ...
    @property
    def critic_opt(self) -> OptState: ...
    @property
    def step(self) -> jax.Array: ...  # [] int32, rollouts learned from
    def _replace(self, **changes: Any) -> Any: ...


class RuleLearnerState(Protocol):
    """Of agents that learn by a learned update rule; more fields may be."""

    @property
    def params(self) -> Params: ...
    @property
    def target_params(self) -> Params: ...  # an older copy; () if the rule reads none
    @property
    def opt_state(self) -> OptState: ...
    @property
    def rule_state(self) -> Any: ...  # what the rule keeps
    @property
    def step(self) -> jax.Array: ...  # [] int32, rollouts learned from
    def _replace(self, **changes: Any) -> Any: ...


class LearnFn(Protocol):
    """Take the gradient steps that belong together; the key is consumed.

    `progress` of training goes from 0 to 1.
    """

    def __call__(
        self, config: AgentConfig, progress: jax.Array, state: AgentState, key: Key, /
    ) -> tuple[AgentState, Metrics]: ...


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

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Randomness:
        """Randomness of `length` steps, `[T, N, ...]`, drawn in bulk."""
        ...

    def step(
        self, noise: Randomness, state: EnvState, action: jax.Array
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


class TunedConfig(RunConfig, Protocol):
    """Of an agent that is tuned: a registered dataclass that checks its values."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        ...
