"""The runs of a sweep, trained group by group, by one program for each shape."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.commands import common
from rljax.commands.sweeps.space import Row, written
from rljax.config import as_arrays
from rljax.running import hosts, sharding, train
from rljax.running.evaluate import evaluate
from rljax.types import Metrics

DONE, STOPPED, DIVERGED = "done", "stopped", "diverged"  # the status of a run


class Place(NamedTuple):
    """A run: its configuration and its seed, each counted from 0."""

    configuration: int
    seed: int


class Result(NamedTuple):
    """The end of a run."""

    score: np.float32  # mean return of its evaluation
    steps: int  # environment steps that it was trained for
    status: str


Results = dict[Place, Result]
Keep = Callable[[Results], None]  # writes results down and says how far they are


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Configurations, each to be run with the same seeds."""

    run: common.Run  # its config has what is not varied
    names: list[str]  # of the varied fields
    rows: list[Row]  # their values, by configuration
    episodes: int  # of each evaluation
    search: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "full"})

    def __len__(self) -> int:
        """The number of runs."""
        return len(self.rows) * self.run.seeds

    def places(self, seeds: range | None = None) -> list[Place]:
        """All runs, those of a configuration one after another."""
        seeds = range(self.run.seeds) if seeds is None else seeds
        return [Place(c, s) for c in range(len(self.rows)) for s in seeds]

    def run_of(self, configuration: int) -> common.Run:
        """The run of a configuration, with all seeds."""
        values = dict(zip(self.names, self.rows[configuration], strict=True))
        config = dataclasses.replace(self.run.config, **values)
        return dataclasses.replace(self.run, config=common.as_recorded(config))

    def steps(self, configuration: int) -> int:
        """Environment steps of a whole run."""
        config = self.run_of(configuration).config
        iterations = train.warm_up_iterations(config) + train.num_iterations(config)
        return iterations * train.steps_per_iteration(config)

    def shapes(self) -> list[list[int]]:
        """The configurations of each program: they differ in floats alone."""
        found: dict[tuple[str, ...], list[int]] = {}
        for c in range(len(self.rows)):
            found.setdefault(self.shape(c), []).append(c)
        return list(found.values())

    def shape(self, configuration: int) -> tuple[str, ...]:
        """Name what a configuration gives to the fields that shape its program."""
        floats = self.floats(configuration)
        return tuple(
            f"{name}={written(value)}"
            for name, value in zip(self.names, self.rows[configuration], strict=True)
            if name not in floats
        )

    def floats(self, configuration: int) -> list[str]:
        """The varied fields that are arrays of the program."""
        config = self.run_of(configuration).config
        static = [
            field.name
            for field in dataclasses.fields(config)
            if field.metadata.get("static") or getattr(config, field.name) is None
        ]
        return [name for name in self.names if name not in static]

    def inputs(self, places: list[Place]) -> tuple[jax.Array, jax.Array]:
        """Values of the floats `[R, floats]` and keys `[R]` of runs of one shape."""
        columns = [self.names.index(x) for x in self.floats(places[0].configuration)]
        values = [[self.rows[c][i] for i in columns] for c, _ in places]
        seeds = np.array([self.run.seed + seed for _, seed in places], np.uint32)
        keys = jax.vmap(jax.random.key)(seeds)
        return jnp.asarray(values, jnp.float32).reshape(len(places), -1), keys

    def identity(self) -> int:
        """A number of all that the results depend on."""
        what = self.run.to_json() | {"episodes": self.episodes, "search": self.search}
        what |= {"names": self.names, "rows": self.rows}
        what |= {
            "sources": [self.run_of(shape[0]).sources() for shape in self.shapes()]
        }
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        return int(digest.hexdigest()[:12], 16)


def group_size(runs: int, at_once: int) -> int:
    """Runs of one program: enough for all devices, few enough to lose when killed.

    Args:
      runs: how many there are.
      at_once: that a device vmaps together on CPU.
    """
    devices, least = len(jax.devices()), 256 * len(jax.devices())
    if jax.devices()[0].platform == "cpu":
        least = max(8, devices * at_once)
    size = -(-runs // max(1, runs // least))
    return size if size <= devices else -(-size // devices) * devices


def program(sweep: Sweep, size: int, configuration: int = 0) -> jax.stages.Compiled:
    """Compile the training and evaluation of a group of runs.

    It maps their `inputs` to returns `[R, episodes]`, and whether all metrics of their
    training were finite `[R]`.

    Args:
      sweep: the sweep.
      size: runs of a group.
      configuration: one that has the program's shape.
    """
    run, names = sweep.run_of(configuration), sweep.floats(configuration)
    agent, env = run.build()
    iterations = train.num_iterations(run.config)

    def one(values: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        varied = with_floats(run.config, names, values)
        state = train.init(agent, env, varied, key)
        state, metrics = train.run(
            agent, env, varied, state, iterations=iterations, log_every=iterations
        )
        key = jax.random.fold_in(key, common.EVALUATION)
        episodes = evaluate(agent, env, varied, state, key, sweep.episodes)
        return episodes.returns, all_finite(metrics)

    places = [Place(configuration, 0)] * size
    return jax.jit(run.map_runs(one)).lower(*sweep.inputs(places)).compile()


def with_floats(config: Any, names: list[str], values: jax.Array) -> Any:
    """Put values `[names]` into a config of arrays."""
    fields = {name: values[i] for i, name in enumerate(names)}
    return dataclasses.replace(as_arrays(config), **fields)


def all_finite(metrics: Metrics) -> jax.Array:
    """Whether metrics are finite, and so what was trained: `[]`."""
    return jnp.stack([jnp.isfinite(x).all() for x in metrics.values()]).all()


def result(returns: np.ndarray, finite: bool, steps: int, status: str = DONE) -> Result:
    """Describe a run by the returns `[episodes]` of its evaluation."""
    score = returns.mean()
    good = bool(finite) and bool(np.isfinite(score))
    return Result(score, steps, status if good else DIVERGED)


def fitting_program(
    sweep: Sweep, size: int, configuration: int = 0
) -> tuple[jax.stages.Compiled, int]:
    """The program of a group of so many runs, or of fewer that fit in memory.

    Args:
      sweep: the sweep.
      size: runs of a group.
      configuration: one that has the program's shape.

    Returns:
      The program, and the number of runs that it takes.
    """
    devices = len(jax.devices())
    while True:
        compiled = program(sweep, size, configuration)
        needed = sharding.bytes_needed(compiled)
        there = hosts.agree(sharding.bytes_of_a_device())
        if size <= devices or needed <= there:
            return compiled, size
        runs_each = size // devices
        fewer = min(runs_each - 1, runs_each * there // needed)
        size = max(1, fewer) * devices


class Groups:
    """Trains runs, a group after another; compiles a program for each shape.

    Args:
      sweep: the sweep.
      at_once: runs of a group; None: as many as keep all devices busy and fit.
    """

    def __init__(self, sweep: Sweep, at_once: int | None = None) -> None:
        self.sweep, self._at_once = sweep, at_once
        self._programs: dict[tuple[str, ...], tuple[jax.stages.Compiled, int]] = {}

    def train(self, places: list[Place], results: Results, keep: Keep) -> Results:
        """Return results, and those of the runs that are not among them.

        Args:
          places: runs, of any shapes.
          results: those that are there.
          keep: called with all results after each group.
        """
        left: dict[tuple[str, ...], list[Place]] = {}
        for place in places:
            if place not in results:
                shape = self.sweep.shape(place.configuration)
                left.setdefault(shape, []).append(place)
        for of_shape in left.values():
            compiled, size = self._program(of_shape[0].configuration)
            for start in range(0, len(of_shape), size):
                group = of_shape[start : start + size]
                results = results | self._group(compiled, group, size)
                keep(results)
        return results

    def _program(self, configuration: int) -> tuple[jax.stages.Compiled, int]:
        """The program of a configuration's shape, and the runs that it takes."""
        sweep, shape = self.sweep, self.sweep.shape(configuration)
        if shape not in self._programs:
            alike = [c for c in range(len(sweep.rows)) if sweep.shape(c) == shape]
            runs = len(alike) * sweep.run.seeds
            if self._at_once is None:
                size = group_size(runs, sweep.run_of(configuration).at_once())
                found = fitting_program(sweep, size, configuration)
            else:
                size = min(self._at_once, runs)
                found = program(sweep, size, configuration), size
            self._programs[shape] = found
        return self._programs[shape]

    def _group(
        self, compiled: jax.stages.Compiled, group: list[Place], size: int
    ) -> Results:
        """Train a group, or one that is not full by the same program."""
        padded = group + group[:1] * (size - len(group))
        returns, finite = hosts.to_host(compiled(*self.sweep.inputs(padded)))
        steps = self.sweep.steps(group[0].configuration)
        return {
            place: result(returns[i], finite[i], steps) for i, place in enumerate(group)
        }
