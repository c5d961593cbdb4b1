"""Evaluation while a run trains: rows of its own, and the best policies of all.

Keys and environments are its own: training is the same with it, bit for bit.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import jax
import numpy as np

from rljax.commands import common, folders
from rljax.running import hosts
from rljax.running.checkpoint import save
from rljax.running.evaluate import Summary, evaluate, summarize
from rljax.running.logging import CsvSink, Row, Sink, read_csv
from rljax.types import TrainState

_KEY = common.EVALUATION + 1  # folded into a seed's key; the end's is another


def program(run: common.Run) -> Callable[[TrainState, jax.Array], Summary]:
    """Make the jitted function from states and `keys_at` to `summarize`, `[S]`."""
    agent, env = run.build()

    def summary(ts: TrainState, key: jax.Array) -> Summary:
        return summarize(evaluate(agent, env, run.shard(), ts, key, run.eval_episodes))

    return jax.jit(run.map_runs(summary))


def keys_at(run: common.Run, step: int) -> jax.Array:
    """The keys of an evaluation, in the form of `run.keys()`: others at each step.

    Args:
      run: the run.
      step: environment steps per seed, which may pass int32.
    """

    def fold(key: jax.Array) -> jax.Array:
        own = jax.random.fold_in(key, _KEY)
        return jax.random.fold_in(own, np.uint32(step % 2**32))

    keys = run.keys()
    return jax.vmap(fold)(keys.ravel()).reshape(keys.shape)


def read(folder: Path, run: common.Run) -> dict[str, np.ndarray]:
    """The evaluations of a run that may still write: the rows of complete steps.

    An empty table where there are none.

    Raises:
      ValueError: the file is damaged.
    """
    path = folder / folders.EVALUATIONS_FILE
    if not path.exists() or b"\n" not in path.read_bytes():
        return {}
    table = common.complete(read_csv(path), run)
    return table if table["step"].size else {}


class Evaluations:
    """Plays episodes between the pieces of a run's training.

    A context manager: the file of rows is open in it, in process 0. Policies are best
    where the mean return over all seeds is highest; `checkpoints/best` holds them.

    Args:
      run: the run; nothing is done where its `eval_every` is None.
      folder: the run's.
      resume_step: environment steps per seed at the checkpoint that it goes on from;
        None for a new run.
    """

    def __init__(
        self, run: common.Run, folder: Path, resume_step: int | None = None
    ) -> None:
        self._run, self._folder, self._resume_step = run, folder, resume_step
        self.program = program(run) if run.eval_every else None
        self._best = self._last = -math.inf  # mean returns over all seeds
        self._sink: CsvSink | None = None

    def __enter__(self) -> Self:
        if self.program:
            hosts.on_primary(self._open)
            self._best, self._last = hosts.agree([self._best, self._last])
        return self

    def __exit__(self, *exception: object) -> None:
        if self._sink:
            self._sink.close()

    @property
    def reached(self) -> bool:
        """Whether the last evaluation met the return at which the run stops."""
        goal = self._run.stop_at
        return goal is not None and self._last >= goal

    def after(
        self, done: int, chunks: common.Chunks, ts: TrainState, sinks: Sequence[Sink]
    ) -> None:
        """Evaluate where a piece of training has passed a multiple of `eval_every`.

        Args:
          done: number of pieces; the last is always followed by an evaluation.
          chunks: the pieces.
          ts: the states after the last of those that are done.
          sinks: where rows go beside the file.
        """
        every = self._run.eval_every
        step, before = chunks.step(done), chunks.step(done - 1)
        if not every or (done < chunks.count and step // every == before // every):
            return
        assert self.program
        found = hosts.to_host(self.program(ts, keys_at(self._run, step)))
        metrics = {k: self._run.of_seeds(v) for k, v in found._asdict().items()}
        hosts.on_primary(lambda: self._write(step, metrics, sinks))
        self._last = float(metrics["mean_return"].mean(dtype=np.float64))
        if self._last > self._best:
            self._best = self._last
            save(self._folder / folders.BEST, step, ts, keep=1)

    def _open(self) -> None:
        path = self._folder / folders.EVALUATIONS_FILE
        self._sink = CsvSink(path, self._resume_step)
        table = read(self._folder, self._run)
        if table:
            _, returns = common.curve(table, "mean_return")
            means = returns.mean(axis=0)
            self._best, self._last = float(means.max()), float(means[-1])

    def _write(
        self, step: int, metrics: dict[str, np.ndarray], sinks: Sequence[Sink]
    ) -> None:
        assert self._sink
        for i in range(self._run.seeds):
            place: Row = {"step": step, "seed": self._run.seed + i}
            row: Row = {name: float(values[i]) for name, values in metrics.items()}
            self._sink.write(place | row | {"episodes": self._run.eval_episodes})
            for sink in sinks:
                sink.write(place | {f"eval_{name}": row[name] for name in row})
        self._sink.sync()
