"""Replay on device: ring buffers, uniform or prioritised, as pure functions.

A step is stored once. Its successor is the next row's observation, but for two cases
that have a place of their own: the successors of the newest row, and the successor of a
step cut by the time limit, after which the next row belongs to another episode.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import config as cfg
from rljax import prng
from rljax.contracts import BufferConfig
from rljax.replay import sum_tree
from rljax.running import parallel
from rljax.types import Memory, Obs, Rollout, Spec, num_rows

_LEAST = 1e-30  # in place of the sum or the probability of what is empty


class Steps(NamedTuple):
    """Stored steps, `[rows, N, ...]`."""

    obs: Obs
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    memory: Memory  # the agent's, before acting; () for feed-forward agents


class Replay(NamedTuple):
    """The last rows of N environments."""

    steps: Steps
    head: Obs  # [N, ...] successors of the newest row
    finals: Obs  # [F, ...] successors of steps that the time limit cut
    final: jax.Array  # [rows, N] int32, the number of a step among those cut
    num_finals: jax.Array  # [] int32, steps cut so far, modulo a multiple of F
    added: jax.Array  # [] int32, rows ever added, modulo twice their number
    tree: sum_tree.SumTree | None  # priorities, [rows * N]; None: uniform
    max_priority: jax.Array  # [] float32, the greatest one ever given


class Windows(NamedTuple):
    """Up to n steps each, cut where episode or buffer end; `[B, ...]`."""

    obs: Obs  # where the window starts
    action: jax.Array  # taken there
    reward: jax.Array  # [B, n], 0 beyond the window
    num_steps: jax.Array  # [B] int32, 1 to n
    terminated: jax.Array  # [B] at the window's last step
    next_obs: Obs  # the last step's true successor; of no meaning if it terminated


class Sample(NamedTuple):
    """Steps as drawn by `sample`."""

    # [B] int32, for `update_priorities`
    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    windows: Windows
    probability: jax.Array  # [B] of each draw


def validate(config: BufferConfig) -> None:
    """Raise ValueError if the config's capacity does not suit its rollouts."""
    cfg.check_count(config, "capacity", high=2**30)  # rows are counted to twice that
    steps = config.num_envs * config.rollout_length
    if config.capacity % steps:
        raise ValueError(
            f"capacity={config.capacity}: must be a multiple of "
            f"num_envs * rollout_length = {steps}"
        )


def init(
    spec: Spec,
    num_envs: int,
    capacity: int,
    *,
    prioritized: bool,
    memory: Memory = (),
) -> Replay:
    """Make an empty buffer.

    Args:
      spec: of the environment; observations keep their dtypes.
      num_envs: N.
      capacity: steps to hold, of all environments together; a multiple of N.
      prioritized: keep priorities.
      memory: the agent's memory of N environments, `[N, ...]`, if it has one.

    Returns:
      The buffer.
    """
    rows = capacity // num_envs
    # Of `max_steps` steps in a row at most one is truncated.
    num_finals = num_envs * min(rows, rows // spec.max_steps + 1)
    steps = Steps(
        obs=spec.zeros(rows, num_envs),
        action=spec.no_action(rows, num_envs),
        reward=jnp.zeros((rows, num_envs), jnp.float32),
        terminated=jnp.zeros((rows, num_envs), bool),
        truncated=jnp.zeros((rows, num_envs), bool),
        memory=jax.tree.map(lambda x: jnp.zeros((rows, *x.shape), x.dtype), memory),
    )
    return Replay(
        steps=steps,
        head=spec.zeros(num_envs),
        finals=spec.zeros(num_finals),
        final=jnp.zeros((rows, num_envs), jnp.int32),
        num_finals=jnp.zeros((), jnp.int32),
        added=jnp.zeros((), jnp.int32),
        tree=sum_tree.init(rows * num_envs) if prioritized else None,
        max_priority=jnp.ones((), jnp.float32),
    )


def size(replay: Replay) -> jax.Array:
    """Count the steps held, `[]` int32."""
    rows, num_envs = replay.final.shape
    return jnp.minimum(replay.added, rows) * num_envs


def add(replay: Replay, rollout: Rollout, length: int = 1) -> Replay:
    """Write a rollout over the oldest rows.

    Args:
      replay: the buffer.
      rollout: `[T, N, ...]`; always the same T, which divides the number of rows, so
        that a write is one contiguous block, in place inside a scan.
      length: of the sequences that will be drawn by priority. A step gets the
        greatest priority so far once that many rows from it on are there.

    Returns:
      The buffer with the rollout.

    Raises:
      ValueError: T does not divide the number of rows.
    """
    (rows, num_envs), num_new = replay.final.shape, len(rollout.reward)
    if rows % num_new:
        raise ValueError(
            f"capacity={rows * num_envs}: must be a multiple of num_envs * "
            f"rollout_length = {num_envs * num_new}"
        )
    row = replay.added % rows

    def put(x: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), row, 0)

    cut = (rollout.truncated & ~rollout.terminated).reshape(-1)
    num_slots = num_rows(replay.finals)
    final = replay.num_finals + jnp.cumsum(cut, dtype=jnp.int32) - 1
    if cut.size > num_slots:  # of two that would go to one slot the later one does
        cut &= final[-1] - final < num_slots
    slot = jnp.where(cut, final % num_slots, num_slots)
    added = replay.added + num_new
    if not jax.tree.leaves(replay.steps.memory):  # made without room for it
        rollout = rollout._replace(memory=())
    new = Steps(
        obs=rollout.obs,
        action=rollout.action,
        reward=rollout.reward,
        terminated=rollout.terminated,
        truncated=rollout.truncated,
        memory=rollout.memory,
    )

    def keep(finals: jax.Array, next_obs: jax.Array) -> jax.Array:
        ends = next_obs.reshape(-1, *next_obs.shape[2:])
        return finals.at[slot].set(ends, mode="drop")

    return replay._replace(
        steps=jax.tree.map(put, replay.steps, new),
        head=jax.tree.map(lambda x: x[-1], rollout.next_obs),
        finals=jax.tree.map(keep, replay.finals, rollout.next_obs),
        final=put(replay.final, final.reshape(num_new, num_envs)),
        num_finals=(final[-1] + 1) % _turns(num_slots),
        added=jnp.where(added >= 2 * rows, added - rows, added),
        tree=None if replay.tree is None else _add_priorities(replay, num_new, length),
    )


def _add_priorities(replay: Replay, num_new: int, length: int) -> sum_tree.SumTree:
    """Priority 0 for the new rows, the greatest for those now followed by enough."""
    rows, num_envs = replay.final.shape
    assert replay.tree is not None

    def put(row: jax.Array, value: ArrayLike) -> sum_tree.SumTree:
        index = (row % rows)[:, None] * num_envs + jnp.arange(num_envs)
        index = jnp.where(row[:, None] >= 0, index, sum_tree.SKIP).reshape(-1)
        assert tree is not None
        return sum_tree.update(tree, index, jnp.full(index.shape, value))

    tree, new = replay.tree, replay.added + jnp.arange(num_new)
    if length > 1:
        tree = put(new, 0.0)
    return put(new - (length - 1), replay.max_priority)


def sample(
    replay: Replay, key: jax.Array, batch_size: int, *, n_step: int = 1
) -> Sample:
    """Draw steps with replacement, uniformly or in proportion to their priorities.

    Args:
      replay: a buffer that is not empty.
      key: `[]` typed key, consumed here.
      batch_size: B.
      n_step: n, the greatest number of steps in a window.

    Returns:
      The draws, and the window from each.
    """
    index, probability = _draw(replay, key, batch_size)
    return Sample(
        index=index,
        windows=_windows(replay, index, n_step),
        probability=probability,
    )


def _draw(replay: Replay, key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    if replay.tree is None:
        held = jnp.maximum(size(replay), 1)  # no NaN, nor an infinity, of none
        probability = jnp.full(num, 1.0 / held, jnp.float32)
        return prng.indices(key, (num,), held), probability
    # One draw from each of B equal shares of the mass: less variance, same mean.
    shares = (jnp.arange(num) + jax.random.uniform(key, (num,), jnp.float32)) / num
    index = sum_tree.sample(replay.tree, shares)
    total = jnp.maximum(sum_tree.total(replay.tree), _LEAST)
    probability = sum_tree.values(replay.tree, index) / total
    # Always `index`, but known after the tree was read, so that a write there needs
    # no copy of the tree. XLA on CPU forgets an optimization barrier too early.
    return jnp.where(probability >= 0, index, 0), probability


def windows(replay: Replay, index: jax.Array, n_step: int = 1) -> Windows:
    """Return the windows that start at the steps of `index` `[B]`.

    A window ends at the end of the episode, or with the newest row: fewer steps then,
    but never a step of another episode, nor a wrong successor. Rewards are NaN for an
    index outside the buffer, and where more steps were truncated than `Spec.max_steps`
    promised, so that the true successor is lost.
    """
    inside = (index >= 0) & (index < replay.final.size)
    found = _windows(replay, jnp.where(inside, index, 0), n_step)
    return found._replace(reward=jnp.where(inside[:, None], found.reward, jnp.nan))


def _windows(replay: Replay, index: jax.Array, n_step: int) -> Windows:
    """Windows from an index within the buffer."""
    (rows, num_envs), steps = replay.final.shape, replay.steps
    ahead = (index[:, None] + jnp.arange(n_step) * num_envs) % (rows * num_envs)
    if n_step == 1:
        taken = jnp.ones(ahead.shape, bool)
    else:
        ended = _take(steps.terminated, ahead) | _take(steps.truncated, ahead)
        going_on = jnp.cumsum(ended, axis=1) - ended == 0
        left = (replay.added - 1 - index // num_envs) % rows  # rows after this one
        taken = going_on & (jnp.arange(n_step) <= left[:, None])
    num_steps = taken.sum(axis=1, dtype=jnp.int32)
    last = (index + (num_steps - 1) * num_envs) % (rows * num_envs)
    reward = _take(steps.reward, ahead) * taken
    return Windows(
        obs=jax.tree.map(lambda x: _take(x, index), steps.obs),
        action=_take(steps.action, index),
        reward=jnp.where(_lost(replay, last)[:, None], jnp.nan, reward),
        num_steps=num_steps,
        terminated=_take(steps.terminated, last),
        next_obs=_successors(replay, last),
    )


def _turns(num_slots: int) -> int:
    """The modulus of counts of truncated steps, far below int32's end."""
    return num_slots * (2**30 // num_slots)


def _successors(replay: Replay, index: jax.Array) -> Obs:
    """True successors of steps; where one terminated there is none to speak of."""
    rows, num_envs = replay.final.shape
    newest = index // num_envs == (replay.added - 1) % rows
    cut = _cut(replay, index)
    slot = _take(replay.final, index) % num_rows(replay.finals)

    def where(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim)), x, y)

    def successor(obs: jax.Array, head: jax.Array, finals: jax.Array) -> jax.Array:
        following = _take(obs, (index + num_envs) % (rows * num_envs))
        going_on = where(newest, head[index % num_envs], following)
        return where(cut, finals[slot], going_on)

    return jax.tree.map(successor, replay.steps.obs, replay.head, replay.finals)


def _cut(replay: Replay, index: jax.Array) -> jax.Array:
    """Whether steps were truncated, so that successors have a place of their own."""
    steps = replay.steps
    return _take(steps.truncated, index) & ~_take(steps.terminated, index)


def _lost(replay: Replay, index: jax.Array) -> jax.Array:
    """Whether the place of a truncated step's successor was needed again."""
    num_slots = num_rows(replay.finals)
    if num_slots >= replay.final.size:  # one for every step
        return jnp.zeros(index.shape, bool)
    since = replay.num_finals - _take(replay.final, index)
    since = jnp.where(since < 0, since + _turns(num_slots), since)
    return _cut(replay, index) & (since > num_slots)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    """Elements of `[rows, N, ...]` by their number, which is in bounds."""
    flat = x.reshape(-1, *x.shape[2:])
    return flat.at[index].get(mode="promise_in_bounds")


def sample_sequences(
    replay: Replay, key: jax.Array, batch_size: int, *, length: int
) -> tuple[jax.Array, Rollout, jax.Array]:
    """Draw sequences of equal length; episodes may end inside.

    Args:
      replay: a buffer that holds at least `length` rows.
      key: `[]` typed key, consumed here.
      batch_size: B.
      length: T, as given to `add` where there are priorities.

    Returns:
      `index` `[B]` of the first steps, the sequences `[T, B, ...]` with `extras=()`,
      and the probability `[B]` of each draw.
    """
    rows, num_envs = replay.final.shape
    if replay.tree is None:
        held = jnp.minimum(replay.added, rows)
        starts = jnp.maximum((held - length + 1) * num_envs, 1)
        start = prng.indices(key, (batch_size,), starts)
        oldest = (replay.added - held) % rows
        index = (start + oldest * num_envs) % (rows * num_envs)
        probability = jnp.full(batch_size, 1.0 / starts, jnp.float32)
    else:
        index, probability = _draw(replay, key, batch_size)
    ahead = (index + jnp.arange(length)[:, None] * num_envs) % (rows * num_envs)
    steps = jax.tree.map(lambda x: _take(x, ahead), replay.steps)  # [T, B, ...]
    next_obs = _successors(replay, ahead)
    reward = jnp.where(_lost(replay, ahead), jnp.nan, steps.reward)
    sequences = Rollout(
        obs=steps.obs,
        action=steps.action,
        reward=reward,
        terminated=steps.terminated,
        truncated=steps.truncated,
        next_obs=next_obs,
        extras=(),
        memory=steps.memory,
    )
    return index, sequences, probability


def importance_weights(
    replay: Replay, probability: jax.Array, beta: ArrayLike
) -> jax.Array:
    r"""Return weights `[B]` that undo the priorities, the greatest of the batch 1.

    .. math:: w_i = (M P_i)^{-\beta} / \max_j w_j

    M is the number of steps held; the shards of a run share the maximum. Schaul et al.
    (2016), section 3.4, https://arxiv.org/abs/1511.05952.
    """
    times = jnp.maximum(size(replay) * probability, _LEAST)
    weights = times ** -jnp.asarray(beta)
    return weights / parallel.greatest(weights.max())


def update_priorities(replay: Replay, index: jax.Array, priority: jax.Array) -> Replay:
    """Set priorities `[B]`, not negative, of the steps at `index` `[B]`.

    Priorities are in proportion to the probability: raise them to a power beforehand. A
    step of priority 0 is never drawn until it is overwritten. An index of a step that
    is not held leaves its priority out.
    """
    assert replay.tree is not None
    held = (index >= 0) & (index < size(replay))
    tree = sum_tree.update(replay.tree, jnp.where(held, index, sum_tree.SKIP), priority)
    greatest = parallel.greatest(jnp.where(held, priority, 0.0).max())
    return replay._replace(
        tree=tree, max_priority=jnp.maximum(replay.max_priority, greatest)
    )
