"""Wrappers of batched environments: statistics, normalisation, memory, noise.

`envs.make` and `envs.wrap` put them on. They see the whole batch, so that N
environments share their running statistics. The statistics are part of the
environments' state: checkpoints hold them, and `for_evaluation` takes them from there
and leaves them as they are.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.config import saturating_add
from rljax.contracts import BatchedEnv
from rljax.networks import observations
from rljax.running import parallel
from rljax.types import (
    EnvState,
    Levels,
    Masked,
    Obs,
    ObsLeaf,
    ObsSpec,
    Randomness,
    Spec,
    States,
    TimeStep,
)

_CLIP = 10.0  # standard deviations, of what is normalised
_EPS = 1e-8  # of a variance


class WrapperState(Protocol):
    """State of a wrapped environment."""

    @property
    def env(self) -> EnvState:
        """State of the environment inside."""
        ...


T = TypeVar("T")
S = TypeVar("S", bound=WrapperState)


class Wrapper(Generic[S]):
    """The parts that wrappers share. Each has `reset` and `step` of its own."""

    env: BatchedEnv  # inside
    # Whether `step` may truncate where the environment inside does not: nothing is then
    # promised of how often an environment is cut. A wrapper that never does says so.
    truncates: ClassVar[bool] = True

    @property
    def spec(self) -> Spec:
        """Observations and actions of one environment."""
        spec = self.env.spec
        return spec._replace(max_steps=1) if self.truncates else spec

    @property
    def max_steps(self) -> ArrayLike:
        """Time limit of an episode, in steps."""
        return self.env.max_steps

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Randomness:
        """Draw the randomness of the inner environments."""
        return self.env.draw(key, length, num_envs)

    def for_evaluation(self, state: S) -> BatchedEnv:
        """Put the same wrapper around the inner environment for evaluation."""
        inner = self.env.for_evaluation(state.env)
        return dataclasses.replace(self, env=inner)  # pyright: ignore


class EpisodeState(NamedTuple):
    """State of `EpisodeStatistics`."""

    env: EnvState
    episode_return: jax.Array  # [N] float32, of the running episode
    episode_length: jax.Array  # [N] int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EpisodeStatistics(Wrapper[EpisodeState]):
    """Adds `episode_return` and `episode_length`, undiscounted, to `TimeStep.info`.

    They count the running episode up to this step: read them where
    `terminated | truncated`. Wrappers that change rewards go around this one.
    """

    truncates = False
    env: BatchedEnv

    def reset(self, key: jax.Array, num_envs: int) -> tuple[EpisodeState, Obs]:
        """Reset the inner environments and the counters."""
        env_state, obs = self.env.reset(key, num_envs)
        state = EpisodeState(
            env=env_state,
            episode_return=jnp.zeros(num_envs, jnp.float32),
            episode_length=jnp.zeros(num_envs, jnp.int32),
        )
        return state, obs

    def step(
        self, noise: Randomness, state: EpisodeState, action: jax.Array
    ) -> tuple[EpisodeState, TimeStep]:
        """Step and count."""
        env_state, timestep = self.env.step(noise, state.env, action)
        episode_return = state.episode_return + timestep.reward
        episode_length = saturating_add(state.episode_length, 1)
        info = timestep.info | {
            "episode_return": episode_return,
            "episode_length": episode_length,
        }
        done = timestep.terminated | timestep.truncated
        state = EpisodeState(
            env=env_state,
            episode_return=jnp.where(done, 0.0, episode_return),
            episode_length=jnp.where(done, 0, episode_length),
        )
        return state, timestep._replace(info=info)


def with_statistics(env: BatchedEnv) -> BatchedEnv:
    """Make the environment put into `TimeStep.info` all that `train.run` reads there.

    Environments of `envs.make` and `envs.wrap` do. A `BatchedEnv` of your own gets
    `EpisodeStatistics` here, unless its own steps tell `episode_return` and
    `episode_length`.

    Raises:
      ValueError: a method is missing, fails, or returns other than `BatchedEnv` says;
        names the class, the method and what is expected.
    """
    inner = env
    while isinstance(inner, Wrapper):
        if isinstance(inner, EpisodeStatistics):
            return env
        inner = inner.env
    info = _checked_info(env)
    told = {"episode_return", "episode_length"} <= info
    return env if told else EpisodeStatistics(env)


def _checked_info(env: BatchedEnv) -> set[str]:
    """Return the names in steps' `info`, once the environment keeps to `BatchedEnv`."""
    name, num_envs = type(env).__name__, 2
    methods = ("reset", "draw", "step", "for_evaluation")
    missing = [x for x in ("spec", "max_steps", *methods) if not hasattr(env, x)]
    if missing:
        raise ValueError(f"{name}: has no {missing[0]}, which a BatchedEnv needs")
    spec = env.spec

    def first_step(
        key: jax.Array, action: jax.Array
    ) -> tuple[Obs, EnvState, EnvState, TimeStep]:
        state, obs = env.reset(key, num_envs)
        noise = jax.tree.map(lambda x: x[0], env.draw(key, 1, num_envs))
        after, timestep = env.step(noise, state, action)
        return obs, state, after, timestep

    try:
        key, action = jax.random.key(0), spec.no_action(num_envs)
        obs, state, after, timestep = jax.eval_shape(first_step, key, action)
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        kind = type(error).__name__
        raise ValueError(
            f"{name}: reset, draw and step of a BatchedEnv failed: {kind}: {text}"
        ) from error
    if not isinstance(timestep, TimeStep):
        raise ValueError(f"{name}: step returns {type(timestep)}, not state, TimeStep")
    if jax.tree.map(_kind, state) != jax.tree.map(_kind, after):
        raise ValueError(f"{name}: step returns a state unlike the one of reset")
    seen = jax.eval_shape(lambda: spec.zeros(num_envs))
    expected = {
        "obs": seen,
        "next_obs": seen,
        "terminated": jax.ShapeDtypeStruct((num_envs,), bool),
        "truncated": jax.ShapeDtypeStruct((num_envs,), bool),
        "reward": jax.ShapeDtypeStruct((num_envs,), jnp.float32),
        "obs of reset": seen,
    }
    found = timestep._asdict() | {"obs of reset": obs}
    for field, want in expected.items():
        kinds = [jax.tree.map(_kind, tree) for tree in (found[field], want)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{name}: {field} is {kinds[0]}, expected {kinds[1]} for {num_envs} "
                "environments"
            )
    return set(timestep.info.keys())


def _kind(x: jax.Array | jax.ShapeDtypeStruct) -> tuple[tuple[int, ...], str]:
    return x.shape, str(x.dtype)


class LimitedState(NamedTuple):
    """State of `TerminalLimit`."""

    env: EnvState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TerminalLimit(Wrapper[LimitedState]):
    """A step that the time limit truncates is terminated instead.

    For tasks that end there, Pardo et al. (2018), https://arxiv.org/abs/1712.00378.
    Returns then depend on the time left: observations should show the time.
    """

    truncates = False
    env: BatchedEnv

    def reset(self, key: jax.Array, num_envs: int) -> tuple[LimitedState, Obs]:
        """Reset the inner environments."""
        env_state, obs = self.env.reset(key, num_envs)
        return LimitedState(env=env_state), obs

    def step(
        self, noise: Randomness, state: LimitedState, action: jax.Array
    ) -> tuple[LimitedState, TimeStep]:
        """Step; whatever ends, terminates."""
        env_state, timestep = self.env.step(noise, state.env, action)
        ended = timestep.terminated | timestep.truncated
        timestep = timestep._replace(terminated=ended, truncated=jnp.zeros_like(ended))
        return LimitedState(env=env_state), timestep


class StickyState(NamedTuple):
    """State of `StickyActions`."""

    env: EnvState
    action: jax.Array  # [N] or [N, *shape], the one before
    started: jax.Array  # [N] bool, whether there is one


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StickyActions(Wrapper[StickyState]):
    """With some probability the environment repeats its last action instead.

    Machado et al. (2018), https://arxiv.org/abs/1709.06009. An episode's first action
    is always the agent's.
    """

    truncates = False
    env: BatchedEnv
    probability: float | jax.Array  # in [0, 1]

    def reset(self, key: jax.Array, num_envs: int) -> tuple[StickyState, Obs]:
        """Reset the inner environments; nothing to repeat."""
        env_state, obs = self.env.reset(key, num_envs)
        state = StickyState(
            env=env_state,
            action=self.spec.no_action(num_envs),
            started=jnp.zeros(num_envs, bool),
        )
        return state, obs

    def draw(
        self, key: jax.Array, length: int, num_envs: int
    ) -> tuple[Randomness, jax.Array]:
        """Draw also whether to repeat, `[T, N]`."""
        key, sticky_key = jax.random.split(key)
        shape = (length, num_envs)
        sticks = jax.random.bernoulli(sticky_key, self.probability, shape)
        return self.env.draw(key, length, num_envs), sticks

    def step(
        self, noise: Randomness, state: StickyState, action: jax.Array
    ) -> tuple[StickyState, TimeStep]:
        """Step with the new action or with the last."""
        inner_noise, sticks = noise
        action = action.astype(state.action.dtype)
        action = where(sticks & state.started, state.action, action)
        env_state, timestep = self.env.step(inner_noise, state.env, action)
        state = StickyState(
            env=env_state,
            action=action,
            started=~(timestep.terminated | timestep.truncated),
        )
        return state, timestep


class Statistics(NamedTuple):
    """Of all samples so far, the same for all environments."""

    count: jax.Array  # [] float32  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: jax.Array  # [...]
    var: jax.Array  # [...]

    @classmethod
    def start(cls, shape: tuple[int, ...]) -> Self:
        """Start with mean 0 and variance 1, worth one sample."""
        return cls(
            count=jnp.ones((), jnp.float32),
            mean=jnp.zeros(shape, jnp.float32),
            var=jnp.ones(shape, jnp.float32),
        )

    def add(self, batch: jax.Array) -> "Statistics":
        """Add a batch `[N, ...]` as data: statistics have no derivative in samples.

        Chan et al. (1979), "Updating formulae and a pairwise algorithm for computing
        sample variances".
        """
        batch = jax.lax.stop_gradient(batch)
        samples = len(batch) * parallel.size()
        total = self.count + samples
        weight = samples / total
        moved = parallel.mean(batch.mean(axis=0)) - self.mean
        variance = parallel.variance(batch, axis=0)
        within = self.var + weight * (variance - self.var)
        var = within + weight * (1.0 - weight) * moved**2
        return Statistics(count=total, mean=self.mean + weight * moved, var=var)


class NormalizedObservations(NamedTuple):
    """State of `NormalizeObservations`."""

    env: EnvState
    statistics: Any  # tree of Statistics, one for each array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NormalizeObservations(Wrapper[NormalizedObservations]):
    """Observations of mean 0 and variance 1, by the statistics of all so far.

    They are cut at ten standard deviations. Observations in rollouts and replay keep
    the normalisation of the time they were seen. Arrays that name states stay.
    """

    truncates = False
    env: BatchedEnv
    frozen: Any = None  # tree of Statistics; None: running ones

    @property
    def spec(self) -> Spec:
        """Observations are floats."""

        def normalized(leaf: ObsLeaf) -> ObsLeaf:
            if isinstance(leaf.reading, States):
                return leaf
            return leaf._replace(dtype="float32", reading=None)

        return with_leaves(self.env.spec, normalized)

    def reset(
        self, key: jax.Array, num_envs: int
    ) -> tuple[NormalizedObservations, Obs]:
        """Reset the inner environments; the statistics start with what they show."""
        env_state, obs = self.env.reset(key, num_envs)
        first = self._obs.map(lambda leaf: Statistics.start(leaf.shape))
        statistics = self._add(first, obs)
        state = NormalizedObservations(env=env_state, statistics=statistics)
        return state, self._normalize(statistics, obs)

    def step(
        self, noise: Randomness, state: NormalizedObservations, action: jax.Array
    ) -> tuple[NormalizedObservations, TimeStep]:
        """Step, learn the statistics, normalise."""
        env_state, timestep = self.env.step(noise, state.env, action)
        statistics = self._add(state.statistics, timestep.obs)
        timestep = timestep._replace(
            obs=self._normalize(statistics, timestep.obs),
            next_obs=self._normalize(statistics, timestep.next_obs),
        )
        state = NormalizedObservations(env=env_state, statistics=statistics)
        return state, timestep

    def for_evaluation(self, state: NormalizedObservations) -> "NormalizeObservations":
        """Normalise with the statistics in `state` as they are."""
        inner = self.env.for_evaluation(state.env)
        return NormalizeObservations(env=inner, frozen=state.statistics)

    @property
    def _obs(self) -> ObsSpec:
        return self.env.spec.obs

    def _add(self, statistics: Any, obs: Obs) -> Any:
        if self.frozen is not None:
            return self.frozen

        def add(_: ObsLeaf, old: Statistics, batch: jax.Array) -> Statistics:
            return old.add(batch.astype(jnp.float32))

        return self._obs.map(add, statistics, unmasked(obs))

    def _normalize(self, statistics: Any, obs: Obs) -> Obs:
        def normalize(leaf: ObsLeaf, of: Statistics, x: jax.Array) -> jax.Array:
            if isinstance(leaf.reading, States):
                return x
            scaled = (x - of.mean) * jax.lax.rsqrt(of.var + _EPS)
            return jnp.clip(scaled, -_CLIP, _CLIP)

        seen = self._obs.map(normalize, statistics, unmasked(obs))
        return like(obs, seen)


class DelayedState(NamedTuple):
    """State of `DelayRewards`."""

    env: EnvState
    owed: jax.Array  # [N] float32, rewards since the last that were handed out
    waited: jax.Array  # [N] int32, steps since then


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DelayRewards(Wrapper[DelayedState]):
    """Rewards handed out together: every so many steps, and where the episode ends.

    As the delayed tasks of Zheng, Oh and Singh (2018),
    https://arxiv.org/abs/1804.06459. Returns stay the same; no observation shows what
    is owed, or when it comes. `TimeStep.info` has the true `reward`.
    """

    truncates = False
    env: BatchedEnv
    steps: int = dataclasses.field(metadata={"static": True})

    def reset(self, key: jax.Array, num_envs: int) -> tuple[DelayedState, Obs]:
        """Reset the inner environments; nothing is owed."""
        env_state, obs = self.env.reset(key, num_envs)
        state = DelayedState(
            env=env_state,
            owed=jnp.zeros(num_envs, jnp.float32),
            waited=jnp.zeros(num_envs, jnp.int32),
        )
        return state, obs

    def step(
        self, noise: Randomness, state: DelayedState, action: jax.Array
    ) -> tuple[DelayedState, TimeStep]:
        """Step, and hand out what is due."""
        env_state, timestep = self.env.step(noise, state.env, action)
        owed, waited = state.owed + timestep.reward, state.waited + 1
        ended = timestep.terminated | timestep.truncated
        due = ended | (waited >= self.steps)
        state = DelayedState(
            env=env_state,
            owed=jnp.where(due, 0.0, owed),
            waited=jnp.where(due, 0, waited),
        )
        info = {"reward": timestep.reward} | timestep.info
        reward = jnp.where(due, owed, 0.0)
        return state, timestep._replace(reward=reward, info=info)

    def for_evaluation(self, state: DelayedState) -> BatchedEnv:
        """Return the inner environment: scores are true rewards."""
        return self.env.for_evaluation(state.env)


class NormalizedRewards(NamedTuple):
    """State of `NormalizeRewards`."""

    env: EnvState
    discounted: jax.Array  # [N] the episode's discounted rewards so far
    statistics: Statistics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NormalizeRewards(Wrapper[NormalizedRewards]):
    """Rewards in units of their discounted sums' standard deviation, within ten.

    Engstrom et al. (2020), https://arxiv.org/abs/2005.12729, appendix A.2: the sums run
    forward from the start of an episode. `TimeStep.info` has the true returns, and the
    true `reward`.
    """

    truncates = False
    env: BatchedEnv
    discount: float | jax.Array  # in [0, 1]; the agent's

    def reset(self, key: jax.Array, num_envs: int) -> tuple[NormalizedRewards, Obs]:
        """Reset the inner environments; nothing is known of rewards."""
        env_state, obs = self.env.reset(key, num_envs)
        state = NormalizedRewards(
            env=env_state,
            discounted=jnp.zeros(num_envs, jnp.float32),
            statistics=Statistics.start(()),
        )
        return state, obs

    def step(
        self, noise: Randomness, state: NormalizedRewards, action: jax.Array
    ) -> tuple[NormalizedRewards, TimeStep]:
        """Step, learn the statistics, scale."""
        env_state, timestep = self.env.step(noise, state.env, action)
        discounted = self.discount * state.discounted + timestep.reward
        statistics = state.statistics.add(discounted)
        scaled = timestep.reward * jax.lax.rsqrt(statistics.var + _EPS)
        ended = timestep.terminated | timestep.truncated
        discounted = jnp.where(ended, 0.0, discounted)
        info = {"reward": timestep.reward} | timestep.info  # a true one may be there
        timestep = timestep._replace(reward=jnp.clip(scaled, -_CLIP, _CLIP), info=info)
        state = NormalizedRewards(
            env=env_state, discounted=discounted, statistics=statistics
        )
        return state, timestep

    def for_evaluation(self, state: NormalizedRewards) -> BatchedEnv:
        """Return the inner environment: scores are true rewards."""
        return self.env.for_evaluation(state.env)


class StackedFrames(NamedTuple):
    """State of `StackFrames`."""

    env: EnvState
    frames: Obs  # [N, ..., size * C]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackFrames(Wrapper[StackedFrames]):
    """The newest observations side by side on the last axis, the oldest first.

    Mnih et al. (2015), https://www.nature.com/articles/nature14236. An episode starts
    with its first observation repeated.
    """

    truncates = False
    env: BatchedEnv
    size: int = dataclasses.field(metadata={"static": True})

    @property
    def spec(self) -> Spec:
        """The last axis of every array is longer."""

        def longer(leaf: ObsLeaf) -> ObsLeaf:
            reading = leaf.reading
            if isinstance(reading, Levels):
                reading = observations.stacked(reading, leaf.shape, self.size)
            shape = (*leaf.shape[:-1], self.size * leaf.shape[-1])
            return leaf._replace(shape=shape, reading=reading)

        return with_leaves(self.env.spec, longer)

    def reset(self, key: jax.Array, num_envs: int) -> tuple[StackedFrames, Obs]:
        """Reset the inner environments."""
        env_state, obs = self.env.reset(key, num_envs)
        frames = self._repeat(unmasked(obs))
        return StackedFrames(env=env_state, frames=frames), like(obs, frames)

    def step(
        self, noise: Randomness, state: StackedFrames, action: jax.Array
    ) -> tuple[StackedFrames, TimeStep]:
        """Step and put the new frame last."""
        env_state, timestep = self.env.step(noise, state.env, action)

        def append(frames: jax.Array, frame: jax.Array) -> jax.Array:
            older = frames[..., frame.shape[-1] :]
            return jnp.concatenate([older, frame], axis=-1)

        next_frames = jax.tree.map(append, state.frames, unmasked(timestep.next_obs))
        done = timestep.terminated | timestep.truncated
        frames = where(done, self._repeat(unmasked(timestep.obs)), next_frames)
        timestep = timestep._replace(
            obs=like(timestep.obs, frames),
            next_obs=like(timestep.next_obs, next_frames),
        )
        return StackedFrames(env=env_state, frames=frames), timestep

    def _repeat(self, frame: Obs) -> Obs:
        return jax.tree.map(lambda x: jnp.concatenate([x] * self.size, axis=-1), frame)


class TimedObs(NamedTuple):
    """An observation of several arrays with the time beside it."""

    obs: Obs
    time: jax.Array  # [..., 1] as a fraction of the time limit


class Timed(NamedTuple):
    """State of `TimeAware`."""

    env: EnvState
    time: jax.Array  # [N] int32, steps since the episode began


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TimeAware(Wrapper[Timed]):
    """Observations end with the time, as a fraction of the time limit.

    Pardo et al. (2018), https://arxiv.org/abs/1712.00378. An image gets the time as a
    plane; beside several arrays the time is one more: `TimedObs`.
    """

    truncates = False
    env: BatchedEnv

    @property
    def spec(self) -> Spec:
        """Observations are floats, their last axis longer by one; or `TimedObs`."""
        spec = self.env.spec
        if spec.obs.lone:

            def longer(leaf: ObsLeaf) -> ObsLeaf:
                shape = (*leaf.shape[:-1], leaf.shape[-1] + 1)
                return leaf._replace(shape=shape)

            return with_leaves(observations.read_spec(spec), longer)
        time = ObsLeaf(shape=(1,), dtype="float32", name="time")
        whole = TimedObs(obs=spec.obs.tree(spec.obs.leaves), time=jnp.zeros(()))
        structure = jax.tree.structure(whole, is_leaf=lambda x: isinstance(x, ObsLeaf))
        obs = ObsSpec(leaves=(*spec.obs.leaves, time), structure=structure)
        return spec._replace(obs=obs)

    def reset(self, key: jax.Array, num_envs: int) -> tuple[Timed, Obs]:
        """Reset the inner environments."""
        env_state, obs = self.env.reset(key, num_envs)
        time = jnp.zeros(num_envs, jnp.int32)
        return Timed(env=env_state, time=time), self._with(time, obs)

    def step(
        self, noise: Randomness, state: Timed, action: jax.Array
    ) -> tuple[Timed, TimeStep]:
        """Step and count."""
        env_state, timestep = self.env.step(noise, state.env, action)
        next_time = saturating_add(state.time, 1)
        time = jnp.where(timestep.terminated | timestep.truncated, 0, next_time)
        timestep = timestep._replace(
            obs=self._with(time, timestep.obs),
            next_obs=self._with(next_time, timestep.next_obs),
        )
        return Timed(env=env_state, time=time), timestep

    def _with(self, time: jax.Array, obs: Obs) -> Obs:
        """Put the time after an observation."""
        inner = self.env.spec
        if not inner.obs.lone:
            share = jnp.asarray(time[:, None] / self.max_steps, jnp.float32)
            return like(obs, TimedObs(obs=unmasked(obs), time=share))
        array = observations.read_tree(inner.obs, obs)
        ones = [1] * (array.ndim - 1)
        share = time.reshape(-1, *ones) / self.max_steps
        share = jnp.broadcast_to(share, (*array.shape[:-1], 1))
        seen = jnp.concatenate([array, share], axis=-1, dtype=jnp.float32)
        return like(obs, seen)


def unwrap(env: BatchedEnv, state: EnvState) -> tuple[BatchedEnv, EnvState]:
    """Return the innermost environment and its state."""
    while isinstance(env, Wrapper):
        state = state.env
        env = env.env
    return env, state


def with_leaves(spec: Spec, function: Callable[[ObsLeaf], ObsLeaf]) -> Spec:
    """Change each array of a spec's observations."""
    leaves = tuple(function(leaf) for leaf in spec.obs.leaves)
    return spec._replace(obs=spec.obs._replace(leaves=leaves))


def unmasked(obs: Obs) -> Obs:
    """Return observations without their mask, if they have one."""
    return obs.obs if isinstance(obs, Masked) else obs


def like(obs: Obs, seen: Obs) -> Obs:
    """Put the mask of `obs`, if there is one, beside what is to be seen of it."""
    return obs._replace(obs=seen) if isinstance(obs, Masked) else seen


def where(mask: jax.Array, on_true: T, on_false: T) -> T:
    """`jnp.where` over trees, with `mask` `[N]` against leaves `[N, ...]`."""

    def select(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(select, on_true, on_false)
