"""Wrappers of batched environments: statistics, normalisation, memory, noise.

`envs.make` and `envs.wrap` put them on. They see the whole batch, so that N
environments share their running statistics. The statistics are part of the
environments' state: checkpoints hold them, and `for_evaluation` takes them from there
and leaves them as they are.
"""

import dataclasses
from typing import ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax.config import saturating_add
from rljax.contracts import BatchedEnv
from rljax.networks import observations
from rljax.types import Box, Discrete, EnvState, Levels, Obs, Randomness, Spec, TimeStep

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
    if isinstance(spec.action, Discrete):
        action = jnp.zeros(num_envs, jnp.int32)
    else:
        action = jnp.zeros((num_envs, *spec.action.shape), jnp.float32)

    def first_step(
        key: jax.Array, action: jax.Array
    ) -> tuple[Obs, EnvState, EnvState, TimeStep]:
        state, obs = env.reset(key, num_envs)
        noise = jax.tree.map(lambda x: x[0], env.draw(key, 1, num_envs))
        after, timestep = env.step(noise, state, action)
        return obs, state, after, timestep

    try:
        key = jax.random.key(0)
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
    seen = (spec.obs_shape, spec.obs_dtype)
    expected = {
        "obs": seen,
        "next_obs": seen,
        "terminated": ((), "bool"),
        "truncated": ((), "bool"),
        "reward": ((), "float32"),
        "obs of reset": seen,
    }
    found = timestep._asdict() | {"obs of reset": obs}
    for field, (shape, dtype) in expected.items():
        want = ((num_envs, *shape), dtype)
        if _kind(found[field]) != want:
            raise ValueError(
                f"{name}: {field} is {_kind(found[field])}, expected {want} for "
                f"{num_envs} environments"
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
        action = self.spec.action
        shape = action.shape if isinstance(action, Box) else ()
        dtype = jnp.float32 if isinstance(action, Box) else jnp.int32
        state = StickyState(
            env=env_state,
            action=jnp.zeros((num_envs, *shape), dtype),
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
        total = self.count + len(batch)
        weight = len(batch) / total
        moved = batch.mean(axis=0) - self.mean
        within = self.var + weight * (batch.var(axis=0) - self.var)
        var = within + weight * (1.0 - weight) * moved**2
        return Statistics(count=total, mean=self.mean + weight * moved, var=var)


class NormalizedObservations(NamedTuple):
    """State of `NormalizeObservations`."""

    env: EnvState
    statistics: Statistics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NormalizeObservations(Wrapper[NormalizedObservations]):
    """Observations of mean 0 and variance 1, by the statistics of all so far.

    They are cut at ten standard deviations. Observations in rollouts and replay keep
    the normalisation of the time they were seen.
    """

    truncates = False
    env: BatchedEnv
    frozen: Statistics | None = None  # None: running ones

    @property
    def spec(self) -> Spec:
        """Observations are floats."""
        return self.env.spec._replace(obs_dtype="float32", reading=None)

    def reset(
        self, key: jax.Array, num_envs: int
    ) -> tuple[NormalizedObservations, Obs]:
        """Reset the inner environments; the statistics start with what they show."""
        env_state, obs = self.env.reset(key, num_envs)
        obs, mask = apart(self.spec, obs)
        statistics = self._add(Statistics.start(obs.shape[1:]), obs)
        state = NormalizedObservations(env=env_state, statistics=statistics)
        return state, together(self._normalize(statistics, obs), mask)

    def step(
        self, noise: Randomness, state: NormalizedObservations, action: jax.Array
    ) -> tuple[NormalizedObservations, TimeStep]:
        """Step, learn the statistics, normalise."""
        env_state, timestep = self.env.step(noise, state.env, action)
        obs, mask = apart(self.spec, timestep.obs)
        next_obs, next_mask = apart(self.spec, timestep.next_obs)
        statistics = self._add(state.statistics, obs)
        timestep = timestep._replace(
            obs=together(self._normalize(statistics, obs), mask),
            next_obs=together(self._normalize(statistics, next_obs), next_mask),
        )
        state = NormalizedObservations(env=env_state, statistics=statistics)
        return state, timestep

    def for_evaluation(self, state: NormalizedObservations) -> "NormalizeObservations":
        """Normalise with the statistics in `state` as they are."""
        inner = self.env.for_evaluation(state.env)
        return NormalizeObservations(env=inner, frozen=state.statistics)

    def _add(self, statistics: Statistics, obs: jax.Array) -> Statistics:
        if self.frozen is not None:
            return self.frozen
        return statistics.add(obs.astype(jnp.float32))

    def _normalize(self, statistics: Statistics, obs: jax.Array) -> jax.Array:
        scaled = (obs - statistics.mean) * jax.lax.rsqrt(statistics.var + _EPS)
        return jnp.clip(scaled, -_CLIP, _CLIP)


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
        info = timestep.info | {"reward": timestep.reward}
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
    frames: jax.Array  # [N, ..., size * C]


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
        """The last axis of observations is longer."""
        spec = self.env.spec
        legal = num_masked(spec)
        *shape, last = spec.obs_shape
        last = self.size * (last - legal) + legal
        reading = spec.reading
        if isinstance(reading, Levels):
            reading = observations.stacked(reading, spec.obs_shape, self.size)
        return spec._replace(obs_shape=(*shape, last), reading=reading)

    def reset(self, key: jax.Array, num_envs: int) -> tuple[StackedFrames, Obs]:
        """Reset the inner environments."""
        env_state, obs = self.env.reset(key, num_envs)
        frame, mask = apart(self.spec, obs)
        frames = self._repeat(frame)
        return StackedFrames(env=env_state, frames=frames), together(frames, mask)

    def step(
        self, noise: Randomness, state: StackedFrames, action: jax.Array
    ) -> tuple[StackedFrames, TimeStep]:
        """Step and put the new frame last."""
        env_state, timestep = self.env.step(noise, state.env, action)
        frame, mask = apart(self.spec, timestep.obs)
        next_frame, next_mask = apart(self.spec, timestep.next_obs)
        older = state.frames[..., frame.shape[-1] :]
        next_frames = jnp.concatenate([older, next_frame], axis=-1)
        done = timestep.terminated | timestep.truncated
        frames = where(done, self._repeat(frame), next_frames)
        timestep = timestep._replace(
            obs=together(frames, mask), next_obs=together(next_frames, next_mask)
        )
        return StackedFrames(env=env_state, frames=frames), timestep

    def _repeat(self, frame: jax.Array) -> jax.Array:
        return jnp.concatenate([frame] * self.size, axis=-1)


class Timed(NamedTuple):
    """State of `TimeAware`."""

    env: EnvState
    time: jax.Array  # [N] int32, steps since the episode began


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TimeAware(Wrapper[Timed]):
    """Observations end with the time, as a fraction of the time limit.

    Pardo et al. (2018), https://arxiv.org/abs/1712.00378. Images get it as a plane.
    """

    truncates = False
    env: BatchedEnv

    @property
    def spec(self) -> Spec:
        """Observations are floats, their last axis longer by one."""
        spec = observations.read_spec(self.env.spec)
        *shape, last = spec.obs_shape
        return spec._replace(obs_shape=(*shape, last + 1))

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

    def _with(self, time: jax.Array, obs: Obs) -> jax.Array:
        """Put the time after an observation."""
        inner = self.env.spec
        obs = observations.read(inner.reading, obs, len(inner.obs_shape))
        obs, mask = apart(self.spec, obs)
        ones = [1] * (obs.ndim - 1)
        time = time.reshape(-1, *ones) / self.max_steps
        time = jnp.broadcast_to(time, (*obs.shape[:-1], 1))
        return together(jnp.concatenate([obs, time], axis=-1, dtype=jnp.float32), mask)


def unwrap(env: BatchedEnv, state: EnvState) -> tuple[BatchedEnv, EnvState]:
    """Return the innermost environment and its state."""
    while isinstance(env, Wrapper):
        state = state.env
        env = env.env
    return env, state


def num_masked(spec: Spec) -> int:
    """Count the entries at the end of observations that say which actions are legal."""
    action = spec.action
    return action.num_actions if isinstance(action, Discrete) and action.masked else 0


def apart(spec: Spec, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split an observation and its mask of legal actions, `[..., A]` or `[..., 0]`."""
    at = obs.shape[-1] - num_masked(spec)
    return obs[..., :at], obs[..., at:]


def together(obs: jax.Array, mask: jax.Array) -> jax.Array:
    """Undo `apart`."""
    return jnp.concatenate([obs, mask.astype(obs.dtype)], axis=-1)


def where(mask: jax.Array, on_true: T, on_false: T) -> T:
    """`jnp.where` over trees, with `mask` `[N]` against leaves `[N, ...]`."""

    def select(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(select, on_true, on_false)
