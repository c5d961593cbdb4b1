"""Successive halving: all configurations for a while, the better ones for longer.

Jamieson and Talwalkar (2016), https://arxiv.org/abs/1502.07943. The runs of a rung are
trained together and ranked together; ASHA (Li et al., 2020,
https://arxiv.org/abs/1810.05934) is the form for workers that do not wait.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.commands import common
from rljax.commands.sweeps.groups import (
    DIVERGED,
    DONE,
    STOPPED,
    Keep,
    Place,
    Results,
    Sweep,
    all_finite,
    group_size,
    result,
    with_floats,
)
from rljax.running import hosts, train
from rljax.running.evaluate import evaluate
from rljax.types import Metrics, TrainState


class Ladder(NamedTuple):
    """The rungs at which configurations are compared."""

    eta: int  # one of so many configurations goes on from a rung to the next
    rungs: int

    def iterations(self, config: Any, rung: int) -> int:
        """Iterations from the start of a run to a rung, counted from 0."""
        whole = train.num_iterations(config)
        return round(whole / self.eta ** (self.rungs - 1 - rung))

    def kept(self, configurations: int, rung: int) -> int:
        """Count the configurations that are trained to a rung.

        Example:
          >>> [Ladder(eta=3, rungs=3).kept(10, rung) for rung in range(3)]
          [10, 4, 2]
        """
        for _ in range(rung):
            configurations = math.ceil(configurations / self.eta)
        return configurations

    def check(self, config: Any) -> None:
        """Raise unless every rung has iterations of its own.

        Raises:
          ValueError: says how many rungs there may be.
        """
        if self.iterations(config, 0) < 1:
            whole = train.num_iterations(config)
            most = 1 + int(math.log(whole, self.eta))
            raise ValueError(
                f"--rounds {self.rungs}: with --eta {self.eta} the first rung of "
                f"{whole} iterations has none; at most {most}"
            )


class _Trained(NamedTuple):
    """Runs of one shape, and their states on the devices."""

    places: list[Place]
    states: TrainState  # [R, ...], in the order of the places

    def of(self, places: list[Place]) -> TrainState:
        """The states of some of the runs."""
        index = np.array([self.places.index(place) for place in places])
        return jax.tree.map(lambda x: x[index], self.states)


def search(
    sweep: Sweep, keep: Keep, *, ladder: Ladder, at_once: int | None = None
) -> Results:
    """Train all configurations to the first rung, the kept ones on from there.

    Args:
      sweep: configurations and seeds; a configuration is judged by its mean return.
      keep: called with all results after each group.
      ladder: the rungs.
      at_once: runs of a group; None: as many as keep all devices busy.

    Returns:
      The last result of each run: of those that went no further `stopped`.
    """
    results: Results = {}
    trained: dict[tuple[str, ...], _Trained] = {}
    kept = list(range(len(sweep.rows)))
    for rung in range(ladder.rungs):
        kept = _best(sweep, results, kept)[: ladder.kept(len(sweep.rows), rung)]
        shapes: dict[tuple[str, ...], list[Place]] = {}
        for c in sorted(kept):
            places = [Place(c, seed) for seed in range(sweep.run.seeds)]
            shapes.setdefault(sweep.shape(c), []).extend(places)
        before, trained = trained, {}
        for shape, places in shapes.items():
            old = before.pop(shape, None)
            states = None if old is None else old.of(places)
            trained[shape], results = _climb(
                sweep,
                _Climb(ladder, rung, at_once, keep),
                places,
                states=states,
                results=results,
            )
    return results


def is_complete(sweep: Sweep, results: Results, ladder: Ladder) -> bool:
    """Whether results are all that `search` leads to."""
    ended = [p for p in results if results[p].steps == sweep.steps(p.configuration)]
    last = ladder.kept(len(sweep.rows), ladder.rungs - 1) * sweep.run.seeds
    return len(results) == len(sweep) and len(ended) == last


def cost(sweep: Sweep, results: Results) -> str:
    """The environment steps of the search, and their share of all runs' to the end."""
    spent = sum(found.steps for found in results.values())
    whole = sum(sweep.steps(place.configuration) for place in sweep.places())
    return f"cost: {spent:,} of {whole:,} steps, {spent / whole:.0%} of the full cost"


def _best(sweep: Sweep, results: Results, kept: list[int]) -> list[int]:
    """Order configurations by mean return; those with a diverged run come last."""
    if not results:
        return kept

    def place(c: int) -> tuple[bool, float]:
        runs = [results[Place(c, seed)] for seed in range(sweep.run.seeds)]
        diverged = any(run.status == DIVERGED for run in runs)
        mean = float(np.mean([run.score for run in runs]))
        return diverged, 0.0 if math.isnan(mean) else -mean

    return sorted(kept, key=place)


class _Climb(NamedTuple):
    """The way of runs to a rung."""

    ladder: Ladder
    rung: int
    at_once: int | None
    keep: Keep


def _climb(
    sweep: Sweep,
    climb: _Climb,
    places: list[Place],
    *,
    states: TrainState | None,
    results: Results,
) -> tuple[_Trained, Results]:
    """Train runs of one shape to a rung, in groups of equal size."""
    configuration, runs = places[0].configuration, len(places)
    run = sweep.run_of(configuration)
    size = min(runs, climb.at_once or group_size(runs, run.at_once()))
    size = math.ceil(runs / math.ceil(runs / size))
    piece = _piece(sweep, configuration, climb, first=states is None)
    each = train.steps_per_iteration(run.config)
    there = climb.ladder.iterations(run.config, climb.rung)
    steps = (train.warm_up_iterations(run.config) + there) * each
    status = DONE if climb.rung == climb.ladder.rungs - 1 else STOPPED
    after = []
    for start in range(0, runs, size):
        group = places[start : start + size]
        padded = group + group[:1] * (size - len(group))
        values, keys = sweep.inputs(padded)
        if states is None:
            reached, returns, finite = piece(values, keys)
        else:
            index = np.minimum(np.arange(start, start + size), runs - 1)
            mine = jax.tree.map(lambda x, index=index: x[index], states)
            reached, returns, finite = piece(values, keys, mine)
        number = len(group)
        after.append(jax.tree.map(lambda x, number=number: x[:number], reached))
        returns, finite = hosts.to_host((returns, finite))
        results = results | {
            place: result(returns[i], finite[i], steps, status)
            for i, place in enumerate(group)
        }
        climb.keep(results)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *after)
    return _Trained(places, joined), results


def _piece(sweep: Sweep, configuration: int, climb: _Climb, *, first: bool) -> Any:
    """The program from one rung to the next, of runs like a configuration's."""
    run, names = sweep.run_of(configuration), sweep.floats(configuration)
    agent, env = run.build()
    iterations = climb.ladder.iterations(run.config, climb.rung)
    if not first:
        iterations -= climb.ladder.iterations(run.config, climb.rung - 1)

    def go_on(
        values: jax.Array, key: jax.Array, state: TrainState
    ) -> tuple[TrainState, jax.Array, jax.Array]:
        varied = with_floats(run.config, names, values)
        metrics: Metrics
        state, metrics = train.run(
            agent, env, varied, state, iterations=iterations, log_every=iterations
        )
        key = jax.random.fold_in(key, common.EVALUATION)
        episodes = evaluate(agent, env, varied, state, key, sweep.episodes)
        return state, episodes.returns, all_finite(metrics)

    def begin(
        values: jax.Array, key: jax.Array
    ) -> tuple[TrainState, jax.Array, jax.Array]:
        varied = with_floats(run.config, names, values)
        return go_on(values, key, train.init(agent, env, varied, key))

    return jax.jit(run.map_runs(begin if first else go_on))
