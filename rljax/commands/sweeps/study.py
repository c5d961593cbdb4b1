"""Configurations that Optuna asks for, and is told the returns of, batch by batch.

Optuna: Akiba et al. (2019), https://arxiv.org/abs/1907.10902. Its storage lets several
processes share a study.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from rljax.commands.sweeps.groups import DIVERGED, Groups, Keep, Place, Results, Sweep
from rljax.commands.sweeps.space import Row, Space, Span, written

MODULE = "optuna"


def load() -> Any:
    """Import Optuna.

    Raises:
      ValueError: it is not installed.
    """
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        text = "optuna is not installed: pip install 'rljax-lab[optuna]'"
        raise ValueError(f"--search optuna: {text}") from error


def create(optuna: Any, name: str, storage: str | None, search_seed: int) -> Any:
    """Make a study that looks for the greatest return, or join one of its name.

    Raises:
      ValueError: there is no such storage.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=search_seed),
            load_if_exists=True,
        )
    except (ImportError, OSError) as error:
        raise ValueError(f"--storage {storage}: {error}") from error
    except Exception as error:  # of the many data bases that there are
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"--storage {storage}: {first}") from error


def ask(trial: Any, space: Space) -> Row:
    """Ask a trial for a value of each field."""
    values = []
    for varied in space:
        if isinstance(varied, Span):
            log = varied.scale == "log"
            number = trial.suggest_float(varied.name, varied.low, varied.high, log=log)
            values.append(number)
        else:
            texts = [written(value) for value in varied.values]
            chosen = trial.suggest_categorical(varied.name, texts)
            values.append(varied.values[texts.index(chosen)])
    return tuple(values)


def search(
    groups: Groups,
    space: Space,
    study: Any,
    *,
    samples: int,
    batch: int,
    keep: Callable[[Sweep], Keep],
) -> tuple[Sweep, Results]:
    """Train the configurations that a study asks for, until it has had enough.

    Args:
      groups: of a sweep without configurations, which get these.
      space: the values of each field.
      study: of Optuna.
      samples: finished trials that the study shall have, those of all processes.
      batch: trials that are asked for before any of them is told.
      keep: called with the sweep so far and its results after each group.

    Returns:
      The sweep with the configurations of this process, and their results.
    """
    sweep, results = groups.sweep, {}
    while True:
        finished = [trial for trial in study.trials if trial.state.is_finished()]
        number = min(batch, samples - len(finished))
        if number < 1:
            return sweep, results
        trials = [study.ask() for _ in range(number)]
        first = len(sweep.rows)
        rows = [*sweep.rows, *(ask(trial, space) for trial in trials)]
        sweep = dataclasses.replace(sweep, rows=rows)
        groups.sweep = sweep
        places = [
            Place(first + i, seed)
            for i in range(number)
            for seed in range(sweep.run.seeds)
        ]
        results = groups.train(places, results, keep(sweep))
        for i, trial in enumerate(trials):
            runs = [results[Place(first + i, seed)] for seed in range(sweep.run.seeds)]
            tell(study, trial, [(run.score, run.status) for run in runs])


def tell(study: Any, trial: Any, runs: list[tuple[np.float32, str]]) -> None:
    """Tell a trial's mean return; one with a run that diverged has failed."""
    mean = float(np.mean([score for score, _ in runs]))
    failed = math.isnan(mean) or any(status == DIVERGED for _, status in runs)
    if failed:
        state = importlib.import_module(f"{MODULE}.trial").TrialState.FAIL
        study.tell(trial, state=state)
    else:
        study.tell(trial, mean)
