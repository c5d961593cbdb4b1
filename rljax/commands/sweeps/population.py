"""Population-based training: the worse members go on from the better ones.

Jaderberg et al. (2017), https://arxiv.org/abs/1711.09846: truncation selection of a
quarter, floats times 0.8 or 1.2, or drawn anew.
"""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.commands import common, folders
from rljax.commands.sweeps.groups import Place, Sweep, all_finite, with_floats
from rljax.commands.sweeps.space import Span
from rljax.running import hosts, train
from rljax.running.evaluate import evaluate
from rljax.types import TrainState

FACTORS = (0.8, 1.2)  # of a perturbed float
RESAMPLED = 0.25  # the share of floats that are drawn anew instead
EXPLORE = 2_000_000  # folded into a seed's key, away from training and evaluation
FIRST = ["seed", "step", "member", "parent"]  # columns of the history


class Moment(NamedTuple):
    """A population at the end of a chunk, for each seed."""

    step: int  # environment steps of each member
    parents: np.ndarray  # [S, N] whose state each member went on from in this chunk
    values: np.ndarray  # [S, N, floats] with which it was trained
    scores: np.ndarray  # [S, N] mean return of the chunk's episodes; -inf: none yet


class Outcome(NamedTuple):
    """A population that is trained."""

    history: list[Moment]
    returns: np.ndarray  # [S, N] mean return of each member's evaluation


def exploit(
    values: jax.Array,
    scores: jax.Array,
    key: jax.Array,
    *,
    spans: list[Span],
    fraction: float = 0.25,
) -> tuple[jax.Array, jax.Array]:
    """Let the worst members copy random ones of the best, and change what they copy.

    Args:
      values: `[N, floats]` of the members.
      scores: `[N]`; a member copies only one with a higher score.
      key: `[]` typed key, consumed here.
      spans: the range of each float.
      fraction: of the members that copy, and of those that are copied.

    Returns:
      The values to go on with, and for each member `[N]` the one whose state it takes:
      itself where it copies none.

    Example:
      >>> values = jnp.array([[0.1], [0.2], [0.3], [0.4]])
      >>> scores = jnp.array([5.0, 1.0, 9.0, 4.0])
      >>> spans = [Span("rate", "uniform", 0.0, 1.0)]
      >>> exploit(values, scores, jax.random.key(0), spans=spans)[1].tolist()
      [0, 2, 2, 3]
    """
    members, floats = values.shape
    number = int(members * fraction)
    donor_key, kind_key, factor_key, fresh_key = jax.random.split(key, 4)
    order = jnp.argsort(scores)
    low, high = order[:number], order[members - number :]
    donors = (
        high[jax.random.randint(donor_key, (number,), 0, number)] if number else low
    )
    donors = jnp.where(scores[donors] > scores[low], donors, low)
    parents = jnp.arange(members).at[low].set(donors)
    copied = values[parents]
    factors = jax.random.choice(factor_key, jnp.array(FACTORS), (members, floats))
    fresh = _drawn(fresh_key, members, spans)
    anew = jax.random.bernoulli(kind_key, RESAMPLED, (members, floats))
    explored = jnp.where(anew, fresh, copied * factors)
    lows = jnp.array([span.low for span in spans], jnp.float32)
    highs = jnp.array([span.high for span in spans], jnp.float32)
    explored = jnp.clip(explored, lows, highs)
    copies = (parents != jnp.arange(members))[:, None]
    return jnp.where(copies, explored, values), parents


def _drawn(key: jax.Array, members: int, spans: list[Span]) -> jax.Array:
    """Values `[members, floats]`, each from its range."""
    shares = jax.random.uniform(key, (members, len(spans)))
    columns = []
    for i, span in enumerate(spans):
        if span.scale == "log":
            ratio = np.log(span.high / span.low)
            columns.append(span.low * jnp.exp(shares[:, i] * ratio))
        else:
            columns.append(span.low + shares[:, i] * (span.high - span.low))
    return jnp.stack(columns, axis=1)


def take(states: TrainState, parents: jax.Array) -> TrainState:
    """Copy whole states between members, but for the key of the loop.

    Args:
      states: `[N, ...]`.
      parents: `[N]`, whose state each member takes.
    """
    copied = jax.tree.map(lambda x: x[parents], states)
    return copied._replace(key=states.key)


class Population:
    """Populations of one size, one for each seed, trained in one program.

    Args:
      sweep: its configurations are the members at the start.
      spans: the range of each varied float, in the sweep's order.
      chunks: pieces of the training, after each of which members copy.
      fraction: as of `exploit`; 0: nobody copies.
    """

    def __init__(
        self, sweep: Sweep, spans: list[Span], *, chunks: int, fraction: float = 0.25
    ) -> None:
        self._sweep, self._spans = sweep, spans
        self._chunks, self._fraction = chunks, fraction
        self._shape = (sweep.run.seeds, len(sweep.rows))
        run = sweep.run_of(0)
        self._run, self._config = run, run.config
        self._agent, self._env = run.build()
        self._iterations = -(-train.num_iterations(run.config) // chunks)
        self._mapped = jax.jit(run.map_runs(self._chunk))
        self._next = jax.jit(jax.vmap(self._copy))

    def step(self, chunk: int) -> int:
        """Environment steps of a member after a chunk, counted from 0."""
        warm_up = train.warm_up_iterations(self._config)
        iterations = warm_up + (chunk + 1) * self._iterations
        return iterations * train.steps_per_iteration(self._config)

    def train(self, search_seed: int, keep: Callable[[list[Moment]], None]) -> Outcome:
        """Train all populations.

        Args:
          search_seed: number that all copying follows from.
          keep: called with the history after each chunk.
        """
        seeds, members = self._shape
        places = [Place(c, seed) for seed in range(seeds) for c in range(members)]
        values, keys = self._sweep.inputs(places)
        numbers = jnp.tile(jnp.arange(members), seeds)
        keys = jax.vmap(jax.random.fold_in)(keys, numbers)
        states = jax.jit(self._run.map_runs(self._begin))(values, keys)
        scores = jnp.full(len(places), -jnp.inf)
        parents = np.tile(np.arange(members), (seeds, 1))
        explore = jax.random.fold_in(common.key(search_seed), EXPLORE)
        history: list[Moment] = []
        for chunk in range(self._chunks):
            states, scores = self._mapped(values, states, scores)
            floats = hosts.to_host(values).reshape(seeds, members, -1)
            found = hosts.to_host(scores).reshape(seeds, members)
            history.append(Moment(self.step(chunk), parents, floats, found))
            keep(history)
            if chunk + 1 == self._chunks:
                break
            copy_keys = jax.random.split(jax.random.fold_in(explore, chunk), seeds)
            together = jax.tree.map(self._by_seed, (values, states, scores))
            values, states, scores, chosen = self._next(*together, copy_keys)
            values, states, scores = jax.tree.map(
                lambda x: x.reshape(-1, *x.shape[2:]), (values, states, scores)
            )
            parents = hosts.to_host(chosen)
        evaluation = jax.jit(self._run.map_runs(self._evaluated))
        returns = hosts.to_host(evaluation(values, states, keys)).mean(axis=1)
        return Outcome(history, returns.reshape(seeds, members))

    def _by_seed(self, x: jax.Array) -> jax.Array:
        return x.reshape(*self._shape, *x.shape[1:])

    def _begin(self, values: jax.Array, key: jax.Array) -> TrainState:
        varied = with_floats(self._config, self._sweep.names, values)
        return train.init(self._agent, self._env, varied, key)

    def _chunk(
        self, values: jax.Array, state: TrainState, score: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        """Train a member; its score stays where no episode ends."""
        varied = with_floats(self._config, self._sweep.names, values)
        state, metrics = train.run(
            self._agent,
            self._env,
            varied,
            state,
            iterations=self._iterations,
            log_every=self._iterations,
        )
        late = jnp.where(
            metrics["episodes"][0] > 0, metrics["episode_return"][0], score
        )
        return state, jnp.where(all_finite(metrics), late, -jnp.inf)

    def _copy(
        self, values: jax.Array, states: TrainState, scores: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, TrainState, jax.Array, jax.Array]:
        """Exploit and explore in one population."""
        values, parents = exploit(
            values, scores, key, spans=self._spans, fraction=self._fraction
        )
        return values, take(states, parents), scores[parents], parents

    def _evaluated(
        self, values: jax.Array, state: TrainState, key: jax.Array
    ) -> jax.Array:
        varied = with_floats(self._config, self._sweep.names, values)
        key = jax.random.fold_in(key, common.EVALUATION)
        episodes = self._sweep.episodes
        return evaluate(self._agent, self._env, varied, state, key, episodes).returns


def write(path: Path, sweep: Sweep, history: list[Moment]) -> None:
    """Write a history: a row for each chunk, seed and member."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIRST, *sweep.names, "score"])
    for moment in history:
        for seed, member in np.ndindex(moment.scores.shape):
            place = [sweep.run.seed + seed, moment.step, member]
            parent, score = moment.parents[seed, member], moment.scores[seed, member]
            values = moment.values[seed, member]
            writer.writerow([*place, parent, *values, score])
    folders.write_text(path, text.getvalue())


def lines(sweep: Sweep, outcome: Outcome) -> list[str]:
    """Lay the members at the end out as a table, each seed's best first."""
    heads = [f"{'seed':>6} {'member':>6}", *(f"{name:>14}" for name in sweep.names)]
    table = [" ".join([*heads, f"{'return':>10}"])]
    last = outcome.history[-1].values
    for seed, returns in enumerate(outcome.returns):
        for member in np.argsort(-returns):
            cells = [f"{value:14.6g}" for value in last[seed, member]]
            start = f"{sweep.run.seed + seed:6} {member:6}"
            table.append(" ".join([start, *cells, f"{returns[member]:10.4g}"]))
    return table
