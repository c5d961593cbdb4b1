"""Settings of the tuning, its states, and the functions that it is made of."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from rljax import config as cfg
from rljax.contracts import BatchedEnv, TunedConfig
from rljax.meta.gradients import MODES
from rljax.meta.parameters import Parameter, Raw
from rljax.networks import layers, torsos
from rljax.types import (
    Agent,
    AgentState,
    Extras,
    Memory,
    Metrics,
    Obs,
    OptState,
    Params,
    Policy,
    Rollout,
    Spec,
)

STEPS = ("num_epochs", "num_minibatches")  # of an update


@dataclasses.dataclass(frozen=True)
class Settings:
    """Numbers and choices of the tuning."""

    learning_rate: float = 1e-2  # of the raw numbers; annealed with the agent's
    outer_gamma: float = 0.99  # discount of the outer loss, fixed
    outer_lambda: float = 0.95  # trace decay of the outer advantages
    outer_value_cost: float = 0.5  # of the value's error beside the policy's loss
    # And of an entropy bonus; None: 0.01 where `entropy_cost` is tuned, else 0. No
    # rollout's score shows what exploration is good for.
    outer_entropy_cost: float | None = None
    outer_critic: str = "own"  # or "inner": the agent's, for comparison only
    outer_critic_rate: float = 1.0  # its learning rate, in multiples of the plain one
    # Of the outer critic, where None is what the agent's config has, else the default
    # of `objectives.CriticConfig`.
    critic_learning_rate: float | None = None  # the plain one; None: the agent's
    critic_hidden_sizes: tuple[int, ...] | None = None  # None: the agent's
    critic_activation: str | None = None  # None: the agent's
    critic_torso: str | None = None  # of images; None: the agent's
    critic_max_grad_norm: float | None = None  # where it is clipped; None: as the agent
    critic_target_rate: float | None = None  # of action values; None: the agent's
    anneal: bool | None = None  # both learning rates fall to 0; None: as the agent's
    num_updates: int = 1  # K, through which the meta-gradient goes
    num_target_updates: int = 0  # L of a bootstrapped target; 0: the outer loss itself
    target_rate: float = 0.1  # step along the outer loss that ends the target
    # Of the update whose derivative stands for that of the agent's; None: the agent's.
    num_epochs: int | None = None
    num_minibatches: int | None = None
    mode: str = "auto"  # "forward" for a few numbers, else "reverse": `meta_gradient`
    remat: bool = False  # reverse mode in memory that grows with sqrt(K)
    condition: bool = False  # show the tuned values to the networks: `conditioned`
    evolution_pairs: int = 0  # of an estimate to compare the meta-gradient with
    # Of a learned reward or target.
    learned_rate: float = 1e-3  # of its network's Adam
    learned_momentum: float = 0.0  # likewise; what was best is not what will be
    learned_hidden_sizes: tuple[int, ...] = (64,)  # a target's memory: the last
    reward_scale: float = 0.1  # greatest size of a learned reward
    reward_extrinsic: float = 1.0  # weight of the environment's reward beside it
    target_bound: float = 100.0  # greatest size of a learned target
    target_consistency: float = 0.1  # weight of each target's distance from the next

    def __post_init__(self) -> None:
        for name in ("critic_hidden_sizes", "learned_hidden_sizes"):
            sizes = getattr(self, name)
            if isinstance(sizes, list):  # as JSON has them
                object.__setattr__(self, name, tuple(sizes))

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        positive = ["learning_rate", "target_rate", "outer_critic_rate"]
        positive += ["learned_rate", "reward_scale", "target_bound"]
        positive += self._given("critic_learning_rate", "critic_max_grad_norm")
        for name in positive:
            cfg.check_range(self, name, low=0.0, open_low=True)
        for name in self._given("critic_target_rate"):
            cfg.check_range(self, name, low=0.0, high=1.0, open_low=True)
        if self.critic_hidden_sizes is not None:
            cfg.check_sizes(self, "critic_hidden_sizes")
        if self.critic_activation is not None:
            cfg.check_choice(self, "critic_activation", tuple(layers.ACTIVATIONS))
        if self.critic_torso is not None:
            torsos.check(self, "critic_torso")
        cfg.check_range(self, "outer_gamma", "outer_lambda", low=0.0, high=1.0)
        cfg.check_range(self, "outer_value_cost", low=0.0)
        costs = ["reward_extrinsic", "target_consistency"]
        cfg.check_range(self, *costs, *self._given("outer_entropy_cost"), low=0.0)
        cfg.check_range(self, "learned_momentum", low=0.0, high=0.999)
        cfg.check_sizes(self, "learned_hidden_sizes")
        if not self.learned_hidden_sizes:
            raise ValueError("learned_hidden_sizes=(): must have a size")
        cfg.check_choice(self, "outer_critic", ("own", "inner"))
        cfg.check_choice(self, "mode", ("auto", *MODES))
        cfg.check_count(self, "num_updates", *self._given(*STEPS))
        cfg.check_count(self, "num_target_updates", "evolution_pairs", low=0)

    def _given(self, *names: str) -> list[str]:
        """Of these fields those that are not None."""
        return [name for name in names if getattr(self, name) is not None]


class OuterCritic(NamedTuple):
    """A network of the outer discount's values; all () if the agent's critic is it."""

    params: Params
    target_params: Params  # an older copy, () for state values
    opt_state: OptState  # of Adam, over the parameters as one flat vector
    memory: Memory = ()  # [N, ...] after the newest rollout; () without one


OuterData = Any  # what an objective prepares for its loss: of rollouts, OuterBatch


class OuterBatch(NamedTuple):
    """Transitions with all that outer losses need of them."""

    obs: Obs  # [B, ...], or Recalled
    action: jax.Array  # [B] or [B, *shape]
    log_prob: Extras  # [B] of the action, when it was taken; () without a policy
    advantage: Extras  # [B]; () without a policy
    target: jax.Array  # [B] return that a value is to predict


class InitCriticFn(Protocol):
    """Start of an outer critic."""

    def __call__(self, config: TunedConfig, key: jax.Array) -> OuterCritic:
        """Make fresh parameters and optimiser; the key is consumed."""
        ...


class PrepareFn(Protocol):
    """Data of the outer loss, from the newest rollout; losses take them as constant."""

    def __call__(
        self,
        config: TunedConfig,
        state: AgentState,
        critic: OuterCritic,
        *,
        rollout: Rollout,
        key: jax.Array,
    ) -> OuterData:
        """Make the data; the key is consumed."""
        ...


class OuterLossFn(Protocol):
    """Score of an agent's state: the lower, the better."""

    def __call__(
        self, config: TunedConfig, state: AgentState, data: OuterData
    ) -> jax.Array:
        """Score the state, `[]`."""
        ...


class DistanceFn(Protocol):
    """Difference of an agent's behaviour between two states."""

    def __call__(
        self,
        config: TunedConfig,
        target: AgentState,
        state: AgentState,
        *,
        data: OuterData,
    ) -> jax.Array:
        """Measure the difference, `[]`."""
        ...


class UpdateCriticFn(Protocol):
    """Training of an outer critic."""

    def __call__(
        self,
        config: TunedConfig,
        critic: OuterCritic,
        data: OuterData,
        *,
        progress: jax.Array,  # [] share of the training that is over
        key: jax.Array,
    ) -> tuple[OuterCritic, Metrics]:
        """Fit the critic to the data; the key is consumed."""
        ...


class Objective(NamedTuple):
    """An outer loss as a tuple of pure functions; each `state` is the agent's."""

    init: InitCriticFn
    prepare: PrepareFn
    loss: OuterLossFn
    distance: DistanceFn
    update: UpdateCriticFn


class Scored(NamedTuple):
    """An agent, and what its score depends on."""

    agent: Agent
    spec: Spec
    settings: Settings

    def objective(self, **functions: Callable[..., Any]) -> Objective:
        """The objective of functions that take this before all else, by their names."""
        bound = {name: functools.partial(f, self) for name, f in functions.items()}
        return Objective(**bound)

    def policy(self, config: TunedConfig, state: AgentState, obs: Obs) -> Policy:
        """The agent's, which `objectives.choose` knows to be there."""
        assert self.agent.policy is not None
        return self.agent.policy(config, state, obs)

    def q_values(self, config: TunedConfig, state: AgentState, obs: Obs) -> jax.Array:
        """Likewise."""
        assert self.agent.q_values is not None
        return self.agent.q_values(config, state, obs)

    def repeat(
        self, config: TunedConfig, state: AgentState, obs: Obs, extras: Extras
    ) -> jax.Array:
        """Likewise."""
        assert self.agent.repeat is not None
        return self.agent.repeat(config, state, obs, extras)

    def value(self, config: TunedConfig, state: AgentState, obs: Obs) -> jax.Array:
        """The agent's; ValueError if the agent has none."""
        if self.agent.value is None:
            raise ValueError(
                "tune: the agent has no `value`, which is scored unless "
                "outer_value_cost=0 and outer_critic='own'"
            )
        return self.agent.value(config, state, obs)


class Window(NamedTuple):
    """The newest updates, oldest first: W = K, or K + L - 1 with a target."""

    states: AgentState  # [W, ...] before each update, but for its replay
    raw: dict[str, Raw]  # [W, ...] numbers that made the config of each update
    context: jax.Array  # [W, C]
    rollouts: Rollout  # [W, T, N, ...], with the simulation but for its environment
    keys: jax.Array  # [W, ...] data of each update's key


class TuneState(NamedTuple):
    """State of an agent that is tuned: the agent's own, and what tunes the agent."""

    agent: AgentState
    raw: dict[str, Raw]  # numbers that the tuned values hang on
    opt_state: OptState  # of their AMSGrad, and of networks' Adam
    critic: OuterCritic
    context: jax.Array  # [C] of the newest rollouts' rewards, from -1 to 1
    mean_square: jax.Array  # [] of the rollouts' mean rewards
    # [] int32, updates so far
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    window: Window | tuple[()]  # to replay; () where slopes are carried
    slopes: tuple[jax.Array, ...]  # of `carried`; () where updates are replayed


class Tuning(NamedTuple):
    """Arguments of `tune`, and the objective that fits them."""

    agent: Agent
    spec: Spec
    tuned: dict[str, Parameter]
    settings: Settings
    objective: Objective
    env: BatchedEnv | None  # of agents that run their environments again
    learned: tuple[str, ...]  # of `shaping.LEARNED`
