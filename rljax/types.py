"""The nouns of the package: spaces, transitions, rollouts, agents, train states."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Params = Any  # a tree of floating arrays, of a network
Key = jax.Array  # [] typed key; who is given one consumes it
OptState = Any  # of an optax optimiser
Metrics = dict[str, jax.Array]  # scalar arrays by name
AgentConfig = Any  # a registered dataclass; `contracts` has what is asked of it
Leaf = jax.Array | float  # a field of a config that mathematics depends on
AgentState = Any  # of some agent: a NamedTuple
Obs = Any  # tree of arrays `[..., *shape]`, what an environment shows
Memory = Any  # tree of [N, ...], what an agent carries from step to step; () if nothing
Extras = Any  # tree of [N, ...], what `act` returns beside the action; () if nothing
EnvState = Any  # of N environments, a tree
Policy = Any  # a distribution of distrax over actions, of batch shape [...]
Randomness = Any  # tree of [T, N, ...], of T steps; a row of the tree is of one step


class Discrete(NamedTuple):
    """Actions 0, 1, ..., num_actions - 1, as int32."""

    num_actions: int
    masked: bool = False  # observations are `Masked`: some actions are illegal


class MultiDiscrete(NamedTuple):
    """Actions of several choices at once, as int32 `[K]`."""

    num_actions: tuple[int, ...]  # of each choice


class Box(NamedTuple):
    """Continuous actions, as float32 `[*shape]`, bounded elementwise."""

    shape: tuple[int, ...]
    low: tuple[float, ...]  # one bound per element, in row-major order
    high: tuple[float, ...]


Action = Discrete | MultiDiscrete | Box  # a space of actions
# How a network sees observations: a name of `networks.TORSOS`, "module:Class" or
# "file.py:Class" of a flax module, or a flax module.
Torso = Any
# How it remembers: a name of `networks.CELLS`, or likewise a `flax.linen.RNNCellBase`.
Cell = Any


class States(NamedTuple):
    """Observations that name states, as integers; networks see them one-hot."""

    number: int  # of states: 0, 1, ..., number - 1


class Levels(NamedTuple):
    """Integers between bounds, as of an image; networks see them from 0 to 1."""

    low: tuple[float, ...]  # one for all entries, or one each, in row-major order
    high: tuple[float, ...]


Reading = States | Levels | None  # how networks see observations; None: as they come


class Masked(NamedTuple):
    """An observation with the mask of legal actions beside it."""

    obs: Obs  # [..., *shape], for networks to read
    legal: jax.Array  # [..., A] bool


class ObsLeaf(NamedTuple):
    """One array of an observation. Hashable."""

    shape: tuple[int, ...]
    dtype: str  # numpy name: "float32", "bool", "uint8"
    reading: Reading = None
    name: str = ""  # its path in the tree, as "camera/left"; none of a lone array


class ObsSpec(NamedTuple):
    """The arrays of an observation and the tree they stand in. Hashable.

    Example:
      >>> ObsSpec.array((4,), "float32").zeros(2).shape
      (2, 4)
    """

    leaves: tuple[ObsLeaf, ...]
    structure: Any  # jax.tree_util.PyTreeDef

    @classmethod
    def array(
        cls, shape: tuple[int, ...], dtype: str = "float32", reading: Reading = None
    ) -> "ObsSpec":
        """Describe observations that are one array."""
        leaf = ObsLeaf(shape=shape, dtype=dtype, reading=reading)
        return cls(leaves=(leaf,), structure=jax.tree.structure(0))

    @property
    def lone(self) -> bool:
        """Whether an observation is one array."""
        return self.structure == jax.tree.structure(0)

    def tree(self, values: Any) -> Any:
        """Put one value for each array into the tree."""
        return jax.tree.unflatten(self.structure, values)

    def map(self, function: Callable[..., Any], *trees: Any) -> Any:
        """Make a tree of `function(leaf, *values)`.

        Args:
          function: of an `ObsLeaf` and what stands in its place in each tree.
          *trees: of this structure, with anything at the places of arrays.
        """
        columns = [self.structure.flatten_up_to(tree) for tree in trees]
        rows = zip(self.leaves, *columns, strict=True)
        return self.tree([function(leaf, *values) for leaf, *values in rows])

    def zeros(self, *batch: int) -> Obs:
        """Return observations `[*batch, *shape]` of zeros."""
        return self.map(lambda leaf: jnp.zeros((*batch, *leaf.shape), leaf.dtype))


class Spec(NamedTuple):
    """All that an agent must know of an environment. Hashable."""

    obs: ObsSpec  # of what networks read; where actions are masked, of `Masked.obs`
    action: Action
    # At least this many steps lie between two truncations of an environment, by proof;
    # 1 where nothing is known: what follows every truncated step is then kept.
    max_steps: int = 1
    differentiable: bool = False  # steps have derivatives in state and action

    @property
    def masked(self) -> bool:
        """Whether observations are `Masked`."""
        return isinstance(self.action, Discrete) and self.action.masked

    def zeros(self, *batch: int) -> Obs:
        """Return observations `[*batch, ...]` of zeros."""
        obs = self.obs.zeros(*batch)
        if not (isinstance(self.action, Discrete) and self.action.masked):
            return obs
        legal = jnp.zeros((*batch, self.action.num_actions), bool)
        return Masked(obs=obs, legal=legal)

    def no_action(self, *batch: int) -> jax.Array:
        """Return actions `[*batch]` or `[*batch, ...]` of zeros."""
        if isinstance(self.action, Discrete):
            return jnp.zeros(batch, jnp.int32)
        if isinstance(self.action, MultiDiscrete):
            return jnp.zeros((*batch, len(self.action.num_actions)), jnp.int32)
        return jnp.zeros((*batch, *self.action.shape), jnp.float32)

    @property
    def obs_shape(self) -> tuple[int, ...]:
        """Shape of observations that are one array; ValueError for a tree."""
        return self._lone.shape

    @property
    def obs_dtype(self) -> str:
        """Numpy's name of their dtype; ValueError for a tree."""
        return self._lone.dtype

    @property
    def reading(self) -> Reading:
        """The reading of them by networks; ValueError for a tree."""
        return self._lone.reading

    @property
    def _lone(self) -> ObsLeaf:
        if not self.obs.lone:
            names = ", ".join(leaf.name for leaf in self.obs.leaves)
            raise ValueError(f"observations are a tree of {names}, not one array")
        return self.obs.leaves[0]


class TimeStep(NamedTuple):
    """One step of a batch of N environments."""

    obs: Obs  # [N, ...] to act on next: a new episode's first where one ended
    reward: jax.Array  # [N] float32
    terminated: jax.Array  # [N] bool, the task ended: no value beyond
    truncated: jax.Array  # [N] bool, the time limit cut the episode
    next_obs: Obs  # [N, ...] the true successor, also where the episode ended
    info: dict[str, jax.Array]  # [N] each; may be empty, EpisodeStatistics adds two


class Transition(NamedTuple):
    """One step of one environment; `[B, ...]` or `[T, N, ...]` when batched."""

    obs: Obs  # [...]
    action: jax.Array  # [] int32 or [*shape] float32
    reward: jax.Array  # [] float32
    terminated: jax.Array  # [] bool
    truncated: jax.Array  # [] bool
    next_obs: Obs  # [...] the true successor; from a replay only if not terminated


class Simulation(NamedTuple):
    """All that a rollout's environments need to run once more: `rollout.simulate`."""

    env: Any  # the BatchedEnv, a pytree
    state: EnvState  # at the start
    noise: Randomness  # as returned by `env.draw`


class Rollout(NamedTuple):
    """T steps of N environments, time-major."""

    obs: Obs  # [T, N, ...]
    action: jax.Array  # [T, N] int32 or [T, N, *shape] float32
    reward: jax.Array  # [T, N] float32
    terminated: jax.Array  # [T, N] bool
    truncated: jax.Array  # [T, N] bool
    next_obs: Obs  # [T, N, ...] the true successor; from a replay as a Transition's
    extras: Extras  # [T, N, ...] whatever `act` returned beside the action
    memory: Memory  # [T, N, ...] the agent's memory before each action
    simulation: Any = ()  # a Simulation, for agents that ask for it


def num_rows(tree: Any) -> int:
    """Count the rows of a tree of arrays `[rows, ...]`."""
    return jax.tree.leaves(tree)[0].shape[0]


class Recalled(NamedTuple):
    """Observations in a row, for agents with a memory; time-major."""

    obs: Obs  # [T, N, ...]
    start: jax.Array  # [T, N] bool, whether an episode starts there
    memory: Memory  # [N, ...] the agent's before the first


class InitFn(Protocol):
    """Make the state of a fresh agent; the key is consumed."""

    def __call__(self, config: AgentConfig, key: Key, /) -> AgentState: ...


class MemoryFn(Protocol):
    """Make the memory of `num_envs` episodes that start."""

    def __call__(self, config: AgentConfig, num_envs: int, /) -> Memory: ...


class ActFn(Protocol):
    """Choose an action `[N]` or `[N, *shape]` for each observation `[N, ...]`.

    With `explore` as in training, else as in evaluation. The key is consumed.
    """

    def __call__(
        self,
        config: AgentConfig,
        state: AgentState,
        memory: Memory,
        obs: Obs,
        key: Key,
        /,
        explore: bool,
    ) -> tuple[jax.Array, Memory, Extras]: ...


class ObserveFn(Protocol):
    """Store a rollout `[T, N, ...]`, and do nothing else."""

    def __call__(
        self, config: AgentConfig, state: AgentState, rollout: Rollout, /
    ) -> AgentState: ...


class UpdateFn(Protocol):
    """Learn from a rollout that the state has observed; the key is consumed."""

    def __call__(
        self,
        config: AgentConfig,
        state: AgentState,
        rollout: Rollout,
        key: Key,
        /,
    ) -> tuple[AgentState, Metrics]: ...


class PolicyFn(Protocol):
    """Return the distribution over actions at observations `[..., *shape]`.

    Where the agent chooses without chance, a `distrax.Deterministic` one.
    """

    def __call__(
        self, config: AgentConfig, state: AgentState, obs: Obs, /
    ) -> Policy: ...


class ValuesFn(Protocol):
    """Return values of observations `[..., *shape]`: `[..., A]`, or `[...]`."""

    def __call__(
        self, config: AgentConfig, state: AgentState, obs: Obs, /
    ) -> jax.Array: ...


class ActionValuesFn(Protocol):
    """Return values of actions by each of C critics, `[C, B]`.

    Of observations `[B, ...]` and actions `[B]` or `[B, D]`.
    """

    def __call__(
        self, config: AgentConfig, state: AgentState, obs: Obs, action: jax.Array, /
    ) -> jax.Array: ...


class RepeatFn(Protocol):
    """Choose the actions `[N, *shape]` that chance of the past leads to.

    `extras` are what `act` returned beside its action, and stand for all that it drew.
    """

    def __call__(
        self, config: AgentConfig, state: AgentState, obs: Obs, extras: Extras, /
    ) -> jax.Array: ...


# What a policy learns from: the rollout's actions, whose log-probability `act` returns;
# or action values, by the likelihood of actions or along the values' slope in them.
PolicyGradient = Literal["rollout", "likelihood", "pathwise"]


class Agent(NamedTuple):
    """A learning rule as a value: a tuple of pure functions."""

    init: InitFn
    memory: MemoryFn
    act: ActFn
    observe: ObserveFn
    update: UpdateFn
    parts: int = 1  # how many functions `update` gives to `sharding.side_by_side`
    simulates: bool = False  # `update` runs the environments again: `Simulation`
    # For whom asks, say tuning; None where the agent has no such thing. Of a recurrent
    # agent the first three take a `Recalled` in place of observations.
    policy: PolicyFn | None = None
    q_values: ValuesFn | None = None  # [..., A] of all actions
    value: ValuesFn | None = None  # [...] of the state
    action_values: ActionValuesFn | None = None  # [C, B] of given actions
    repeat: RepeatFn | None = None  # acts again, in an environment that is run again
    policy_gradient: PolicyGradient = "rollout"
    recurrent: bool = False


class TrainState(NamedTuple):
    """Everything a run needs to go on: save it, load it, continue bit for bit."""

    agent: AgentState
    env: EnvState
    obs: Obs  # [N, ...]
    memory: Memory  # [N, ...]
    key: Key
    # [] int32, environment steps taken, all N counted, at most 2^31 - 1: longer runs
    # are counted on the host
    step: jax.Array
