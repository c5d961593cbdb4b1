"""Shows how far a sweep is: a bar on a terminal, a line after each group elsewhere."""

import sys
import time
from typing import Self

import numpy as np

from rljax.commands.sweeps.groups import Results
from rljax.running.logging import Progress


class SweepProgress:
    """Shows people how far a sweep is, and its best run so far.

    Args:
      label: of the sweep.
      runs: that there will be.
      steps: environment steps of all of them.

    Example:
      >>> with SweepProgress("ppo CartPole-v1", runs=4, steps=4000) as progress:
      ...     progress.update({})  # to stderr
    """

    def __init__(self, label: str, *, runs: int, steps: int) -> None:
        self._label, self._runs = label, runs
        self._begin = time.monotonic()
        self._bar = Progress(steps, label) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.__enter__()
        return self

    def __exit__(self, exception: object, *rest: object) -> None:
        if self._bar:
            self._bar.__exit__(exception, *rest)

    def update(self, results: Results) -> None:
        """Shows the results so far."""
        scores = [float(found.score) for found in results.values()]
        known = [score for score in scores if np.isfinite(score)]
        if self._bar:
            best = max(known, default=float("nan"))
            self._bar.update(sum(found.steps for found in results.values()), best)
            return
        done = f"{len(results)} of {self._runs} runs"
        best = f", best return {max(known):.1f}" if known else ""
        seconds = f"{time.monotonic() - self._begin:.1f} s"
        print(f"{self._label}: {done}{best}, {seconds}", file=sys.stderr, flush=True)
