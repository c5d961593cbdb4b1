"""Compare methods over seeds and tasks: `rljax compare runs/A runs/B --by agent`.

A method is all runs with one value of `--by`, a task is an environment with its
parameters; each seed of a run folder is a run. Printed are mean, median, interquartile
mean and optimality gap with bootstrap intervals, and the probability that a run of one
method scores higher than one of another. `docs/comparing.md` explains them.
"""

import csv
import dataclasses
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from rljax import statistics
from rljax.commands import common, evaluations, folders
from rljax.config import check_range, unknown
from rljax.statistics import Interval, Reference

FINAL_FILE = "evaluation.json"
SOURCES = {  # of scores, the best first
    folders.EVALUATIONS_FILE: "evaluations during training",
    FINAL_FILE: "the evaluation at the end",
    folders.METRICS_FILE: "training episodes, over tenths of the rows",
}
# How an agent sees its task, and where episodes start again: no other task, since
# returns are true rewards.
SHOWN = (
    "normalize_obs",
    "normalize_rewards",
    "reset_ratio",
    "resets",
    "scale_obs",
    "stack_frames",
    "terminal_limit",
    "time_aware",
)
# Fields of a run that do not change its score, or only by chance.
NO_SETTING = ("seed", "seeds", "rows", "eval_every", "eval_episodes", "data_parallel")
AGGREGATES: dict[str, Callable[..., np.ndarray]] = {
    "mean": statistics.mean,
    "median": statistics.median,
    "iqm": statistics.iqm,
    "optimality_gap": statistics.optimality_gap,
}
TITLES = {"iqm": "IQM"}  # where it is not the name with spaces
THRESHOLDS, STEPS = 101, 100  # of profiles, at most of sample efficiency
OUTPUTS = {  # and how each begins
    "scores.csv": b"method,task,seed,score,",
    "statistics.json": b'{\n  "comparison": ',
    "scores.json": b'{\n  "tasks": ',
    "intervals.png": b"\x89PNG",
    "profiles.png": b"\x89PNG",
    "sample_efficiency.png": b"\x89PNG",
    "improvement.png": b"\x89PNG",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare methods over seeds and tasks, with intervals."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run folders"""
    by: str = "agent"
    """field of a run whose values are the methods: agent, env, config.learning_rate"""
    metric: Literal["final", "best"] = "final"
    """score of a run: its last evaluation, or its highest"""
    references: Path | None = None
    """CSV of task, random and best, to normalise scores by; goes before rljax's own"""
    confidence: float = 0.95
    """of the intervals"""
    draws: int = 2000
    """of the bootstrap"""
    seed: int = 0
    """of the bootstrap's draws"""
    out: Path | None = None
    """folder for scores, statistics and pictures"""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        if not self.runs:
            raise ValueError("name at least one run folder")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence}: must be in (0, 1)")
        check_range(self, "draws", low=1, high=10_000_000)
        common.check_seeds(self.seed)


class Loaded(NamedTuple):
    """A run folder, and where its runs belong."""

    folder: Path
    run: common.Run
    method: str
    task: str
    env: str  # with its parameters, as references name it


class Scores(NamedTuple):
    """Scores of the runs of a folder."""

    values: np.ndarray  # [S]
    steps: np.ndarray  # [R]
    curve: np.ndarray  # [S, R] after these steps; NaN before the first


class Entry(NamedTuple):
    """A run: one seed of a folder."""

    folder: Path
    env: str
    score: float
    steps: np.ndarray  # [R]
    curve: np.ndarray  # [R]


class Comparison(NamedTuple):
    """All scores; `entries[method][task]` is in the order of seeds."""

    entries: dict[str, dict[str, dict[int, Entry]]]
    tasks: list[str]
    references: dict[str, Reference] | None  # by environment; None: raw scores

    def of(self, method: str, pick: Callable[[Entry], Any]) -> np.ndarray:
        """Something about each run of a method, `[runs, tasks, ...]`."""
        columns = [
            [pick(entry) for entry in self.entries[method][task].values()]
            for task in self.tasks
        ]
        return np.swapaxes(np.array(columns, float), 0, 1)

    def scores(self, method: str, *, raw: bool = False) -> np.ndarray:
        """Scores of a method `[runs, tasks]`."""
        scores = self.of(method, lambda entry: entry.score)
        return scores if raw else self.normalise(method, scores)

    def normalise(self, method: str, scores: np.ndarray) -> np.ndarray:
        """Scores `[..., runs, tasks]` as they are compared."""
        if self.references is None:
            return scores
        first = [next(iter(self.entries[method][x].values())) for x in self.tasks]
        references = [self.references[entry.env] for entry in first]
        return statistics.normalise(scores, references)


# Reading runs.


def flat(run: common.Run) -> dict[str, Any]:
    """The fields of a run by dotted names."""
    found: dict[str, Any] = {}
    for name, value in run.to_json().items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": x for inner, x in value.items()}
        else:
            found[name] = value
    return found


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Labels of agents or environments: without folders where these do not matter."""
    names = list(dict.fromkeys(names))
    labels = {name: common.short(name) for name in names}
    return labels if len({*labels.values()}) == len(names) else {x: x for x in names}


def env_label(run: common.Run, name: str, without: str = "") -> str:
    """An environment with the parameters that make it a task of its own."""
    params = {
        f"env_params.{key}": f"{key}={value}"
        for key, value in sorted(run.env_params.items())
        if key not in SHOWN
    }
    return " ".join([name, *(x for key, x in params.items() if key != without)])


def load(paths: Sequence[Path], by: str) -> list[Loaded]:
    """Read run folders; find method and task of each.

    Raises:
      ValueError: a folder without a run, or a run without the field.
    """
    runs = [(folder, common.read_run(folder)) for folder in paths]
    agents = short_names(run.agent for _, run in runs)
    envs = short_names(run.env for _, run in runs)
    loaded = []
    for folder, run in runs:
        fields = flat(run)
        if by not in fields:
            raise ValueError(f"{folder}: --by: {unknown('field', by, [*fields])}")
        env = env_label(run, envs[run.env])
        if by == "env":
            method, task = env, agents[run.agent]
        else:
            labels = fields | {"agent": agents[run.agent]}
            method, task = _text(labels[by]), env_label(run, envs[run.env], by)
        loaded.append(Loaded(folder, run, method=method, task=task, env=env))
    return loaded


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def choose_source(loaded: list[Loaded], metric: str) -> str:
    """The best source of scores that all runs have; says where some have a better one.

    The evaluation at the end has no highest of several.
    """
    known = [x for x in SOURCES if metric == "final" or x != FINAL_FILE]
    have = {x: [has_source(run, x) for run in loaded] for x in known}
    chosen = next(source for source in known if all(have[source]))
    for source in known[: known.index(chosen)]:
        if any(have[source]):
            lack = loaded[have[source].index(False)].folder
            print(f"note: {source} is not used: {lack} has none", file=sys.stderr)
    return chosen


def has_source(loaded: Loaded, source: str) -> bool:
    """Whether a folder has a source of scores."""
    if source == folders.EVALUATIONS_FILE:
        return bool(evaluations.read(loaded.folder, loaded.run))
    return source == folders.METRICS_FILE or (loaded.folder / source).exists()


def read_scores(loaded: Loaded, source: str, metric: str) -> Scores:
    """Scores of the runs of a folder, and their curves.

    Raises:
      ValueError: no rows, a column that is missing, a damaged file, a seed without a
        finished episode.
    """
    folder, run = loaded.folder, loaded.run
    if source == folders.EVALUATIONS_FILE:
        table = evaluations.read(folder, run)
        _check_columns(folder / source, table, "mean_return")
        steps, curve = common.curve(table, "mean_return")
        means = curve
    else:
        table = common.read_metrics(folder, run)
        path = folder / folders.METRICS_FILE
        _check_columns(path, table, "episode_return", "episodes")
        steps, curve = common.curve(table, "episode_return")
        means = window_means(curve, common.curve(table, "episodes")[1])
    if source == FINAL_FILE:
        values = read_final(folder / source, run.seeds)
    elif metric == "final":
        values = means[:, -1]
    else:
        values = np.where(np.isnan(means), -np.inf, means).max(axis=1)
    bad = ~np.isfinite(values)
    if bad.any():
        seed = run.seed + int(np.argmax(bad))
        raise ValueError(
            f"{folder}: seed {seed} has no score in {source}: no finished episode, or "
            "a return that is not finite"
        )
    return Scores(values=values, steps=steps, curve=carried(curve))


def _check_columns(path: Path, table: dict[str, np.ndarray], *names: str) -> None:
    for name in names:
        if name not in table:
            raise ValueError(f"{path}: no column {name!r}")


def window_means(returns: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Mean returns over the episodes of a tenth of the rows, `[S, R]` to `[S, W]`.

    One for each place of that window. NaN where no episode ended in it.
    """
    width = -(-returns.shape[1] // 10)
    weights = np.where(np.isnan(returns), 0.0, episodes)
    sums = np.where(weights > 0, returns, 0.0) * weights
    windows = np.lib.stride_tricks.sliding_window_view
    count = windows(weights, width, axis=1).sum(axis=-1)
    total = windows(sums, width, axis=1).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def carried(curve: np.ndarray) -> np.ndarray:
    """Each NaN or infinity of `[S, R]` becomes the number before it in its row."""
    place = np.where(np.isfinite(curve), np.arange(curve.shape[1]), 0)
    return np.take_along_axis(curve, np.maximum.accumulate(place, axis=1), axis=1)


def read_final(path: Path, seeds: int) -> np.ndarray:
    """The mean return of each seed in the evaluation at the end, `[S]`.

    Raises:
      ValueError: damaged, or of another number of seeds.
    """
    try:
        data = json.loads(path.read_text())
        values = np.array(data["mean_return_per_seed"], float)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if values.shape != (seeds,):
        raise ValueError(f"{path}: scores {values.shape} for {seeds} seeds")
    return values


# Methods and tasks.


def gather(loaded: list[Loaded], source: str, metric: str) -> Comparison:
    """Sort runs by method, task and seed; all methods have the same tasks.

    Raises:
      ValueError: a seed that is there twice, a task that a method lacks, a number of
        runs that differs between tasks.
    """
    found: dict[str, dict[str, dict[int, Entry]]] = {}
    for one in loaded:
        scores = read_scores(one, source, metric)
        cell = found.setdefault(one.method, {}).setdefault(one.task, {})
        for i in range(one.run.seeds):
            seed = one.run.seed + i
            if seed in cell:
                raise ValueError(
                    f"{one.method}, {one.task}, seed {seed}: in {cell[seed].folder} "
                    f"and in {one.folder}; tell them apart by another --by"
                )
            cell[seed] = Entry(
                folder=one.folder,
                env=one.env,
                score=float(scores.values[i]),
                steps=scores.steps,
                curve=scores.curve[i],
            )
    tasks = list(dict.fromkeys(one.task for one in loaded))
    for method, cells in found.items():
        lacking = [task for task in tasks if task not in cells]
        if lacking:
            raise ValueError(
                f"{method} has no run of {', '.join(lacking)}, which others have"
            )
        counts = {task: len(cells[task]) for task in tasks}
        if len({*counts.values()}) > 1:
            told = ", ".join(f"{count} of {task}" for task, count in counts.items())
            raise ValueError(f"{method} has runs: {told}; must be as many of each")
    entries = {
        method: {task: dict(sorted(cells[task].items())) for task in tasks}
        for method, cells in found.items()
    }
    return Comparison(entries=entries, tasks=tasks, references=None)


def find_references(
    loaded: list[Loaded], path: Path | None
) -> dict[str, Reference] | None:
    """References of all environments; None for a lone one that has none.

    Raises:
      ValueError: one of several environments has none.
    """
    known = statistics.read_references()
    if path:
        known |= statistics.read_references(path)
    names = list(dict.fromkeys(one.env for one in loaded))
    missing = [name for name in names if name not in known]
    if missing and len(names) > 1:
        raise ValueError(
            f"no reference for {', '.join(missing)}: returns of several tasks compare "
            "only if normalised; name a CSV of task, random, best with --references"
        )
    return None if missing else {name: known[name] for name in names}


def tell_differences(loaded: list[Loaded]) -> None:
    """Say in which settings runs of one method and task differ."""
    cells: dict[tuple[str, str], list[Loaded]] = {}
    for one in loaded:
        cells.setdefault((one.method, one.task), []).append(one)
    for (method, task), members in cells.items():
        first, *others = [flat(member.run) for member in members]
        names = dict.fromkeys(name for run in (first, *others) for name in run)
        differing = [
            name
            for name in names
            if name not in NO_SETTING
            and any(run.get(name) != first.get(name) for run in others)
        ]
        if differing:
            text = f"note: {method} on {task}: runs differ in {', '.join(differing)}"
            print(text, file=sys.stderr)


def tell_lengths(comparison: Comparison) -> None:
    """Say of which tasks runs are of different lengths, by more than a rounding."""
    for task in comparison.tasks:
        ends = {
            int(entry.steps[-1])
            for cells in comparison.entries.values()
            for entry in cells[task].values()
        }
        if max(ends) > 1.05 * min(ends):
            steps = f"{min(ends)} to {max(ends)} environment steps"
            print(f"note: {task}: runs end after {steps}", file=sys.stderr)


# Statistics.


def common_steps(entries: Iterable[Entry]) -> np.ndarray:
    """Steps that the curves of all runs span, at most `STEPS` of them; may be none."""
    first, last, known = 0, sys.maxsize, set()
    for entry in entries:
        reached = entry.steps[np.isfinite(entry.curve)]
        if not reached.size:
            return np.zeros(0, np.int64)
        first, last = max(first, int(reached[0])), min(last, int(entry.steps[-1]))
        known |= {*map(int, entry.steps)}
    steps = np.array(sorted(x for x in known if first <= x <= last), np.int64)
    if steps.size > STEPS:
        steps = steps[np.linspace(0, steps.size - 1, STEPS).round().astype(int)]
    return steps


def curves(comparison: Comparison, method: str, steps: np.ndarray) -> np.ndarray:
    """Scores of a method after each of these steps, `[runs, tasks, steps]`.

    Between a run's rows they are on a straight line.
    """

    def after(entry: Entry) -> np.ndarray:
        return np.interp(steps, entry.steps, entry.curve)

    by_step = np.moveaxis(comparison.of(method, after), -1, 0)
    return np.moveaxis(comparison.normalise(method, by_step), 0, -1)


class Results(NamedTuple):
    """All statistics of a comparison."""

    aggregates: dict[str, dict[str, Interval]]  # by name and method
    pairs: dict[tuple[str, str], Interval]  # probability that the first is better
    thresholds: np.ndarray  # [T]
    profiles: dict[str, Interval]  # [T] by method
    steps: np.ndarray  # [X]; may be none
    sample_efficiency: dict[str, Interval]  # [X] by method


def compute(comparison: Comparison, options: Options) -> Results:
    """All statistics, with intervals."""
    drawing = {
        "confidence": options.confidence,
        "draws": options.draws,
        "seed": options.seed,
    }
    scores = {method: comparison.scores(method) for method in comparison.entries}
    normalised = comparison.references is not None
    names = [x for x in AGGREGATES if normalised or x != "optimality_gap"]
    every = np.concatenate([x.ravel() for x in scores.values()])
    thresholds = spanned(every, *((0.0, 1.0) if normalised else ()))
    steps = common_steps(
        entry
        for cells in comparison.entries.values()
        for cell in cells.values()
        for entry in cell.values()
    )

    def interval(statistic: Callable[..., np.ndarray], *x: np.ndarray) -> Interval:
        return statistics.stratified_bootstrap(statistic, *x, **drawing)

    def profile(x: np.ndarray) -> np.ndarray:
        return statistics.performance_profile(x, thresholds)

    return Results(
        aggregates={
            name: {m: interval(AGGREGATES[name], x) for m, x in scores.items()}
            for name in names
        },
        pairs={
            (a, b): interval(
                statistics.probability_of_improvement, scores[a], scores[b]
            )
            for a, b in itertools.combinations(scores, 2)
        },
        thresholds=thresholds,
        profiles={method: interval(profile, x) for method, x in scores.items()},
        steps=steps,
        sample_efficiency={
            method: statistics.sample_efficiency(
                curves(comparison, method, steps), **drawing
            )
            for method in (scores if steps.size else ())
        },
    )


def spanned(scores: np.ndarray, *more: float) -> np.ndarray:
    """Thresholds from the least number to the greatest."""
    ends = np.array([scores.min(), scores.max(), *more])
    low, high = ends.min(), ends.max()
    pad = 0.0 if low < high else 0.5
    return np.linspace(low - pad, high + pad, THRESHOLDS)


# Output.


def shown(interval: Interval, *, normalised: bool) -> str:
    """A number and its interval, as text."""
    center, low, high = (float(x) for x in interval)
    if normalised:
        return f"{center:.3f} [{low:.3f}, {high:.3f}]"
    return f"{center:.4g} [{low:.4g}, {high:.4g}]"


def title(name: str) -> str:
    """An aggregate's name for people."""
    return TITLES.get(name, name.replace("_", " "))


def report(comparison: Comparison, results: Results, options: Options) -> None:
    """Print a row per method, then the pairs."""
    normalised = comparison.references is not None
    methods = list(comparison.entries)
    column = options.by.rpartition(".")[2]
    width = max(map(len, [column, *methods]))
    heads = [f"{title(name):>22}" for name in results.aggregates]
    print(f"{column:{width}} {'runs':>5} {''.join(heads)}")
    for method in methods:
        runs = len(comparison.scores(method))
        cells = [
            f"{shown(of[method], normalised=normalised):>22}"
            for of in results.aggregates.values()
        ]
        print(f"{method:{width}} {runs:5} {''.join(cells)}")
    if results.pairs:
        print("\nprobability of improvement")
    for (a, b), interval in results.pairs.items():
        print(f"{a:>{width}} > {b:{width}} {shown(interval, normalised=True)}")


def describe(comparison: Comparison, source: str, options: Options) -> dict[str, Any]:
    """The kind of comparison and its settings, as plain data."""
    references = comparison.references
    return {
        "by": options.by,
        "metric": options.metric,
        "source": source,
        "tasks": comparison.tasks,
        "normalised": references is not None,
        "references": {k: v._asdict() for k, v in (references or {}).items()},
        "confidence": options.confidence,
        "draws": options.draws,
        "seed": options.seed,
    }


def plain(interval: Interval) -> dict[str, Any]:
    """An interval as plain data."""
    return {name: x.tolist() for name, x in interval._asdict().items()}


def write_tables(
    folder: Path, comparison: Comparison, results: Results, about: dict[str, Any]
) -> None:
    """Write scores and statistics."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "task", "seed", "score", "normalised_score"])
    for method, cells in comparison.entries.items():
        normalised = comparison.scores(method)
        for j, (task, cell) in enumerate(cells.items()):
            for i, (seed, entry) in enumerate(cell.items()):
                last = float(normalised[i, j]) if about["normalised"] else ""
                writer.writerow([method, task, seed, entry.score, last])
    folders.write_text(folder / "scores.csv", text.getvalue())
    methods = list(comparison.entries)
    data = {
        "comparison": about,
        "methods": {
            m: {"runs": len(comparison.scores(m))}
            | {name: plain(of[m]) for name, of in results.aggregates.items()}
            for m in methods
        },
        "improvement": [
            {"x": a, "y": b} | plain(found) for (a, b), found in results.pairs.items()
        ],
        "profiles": {
            "thresholds": results.thresholds.tolist(),
            "methods": {m: plain(x) for m, x in results.profiles.items()},
        },
        "sample_efficiency": {
            "statistic": "iqm",
            "steps": results.steps.tolist(),
            "methods": {m: plain(x) for m, x in results.sample_efficiency.items()},
        },
    }
    folders.write_text(folder / "statistics.json", json.dumps(data, indent=2) + "\n")
    scores = {
        "tasks": comparison.tasks,
        "normalised": about["normalised"],
        "scores": {m: comparison.scores(m).tolist() for m in methods},
    }
    folders.write_text(folder / "scores.json", json.dumps(scores, indent=2) + "\n")


def draw(folder: Path, results: Results, about: dict[str, Any]) -> None:
    """Draw the pictures; those without anything to show are left out."""
    pictures = statistics.pictures
    score = "Normalised score" if about["normalised"] else "Score"
    titles = {title(name): of for name, of in results.aggregates.items()}
    confidence = f"{about['confidence']:.4g}"
    note = f"{score}, with intervals of confidence {confidence}"
    pictures.draw_intervals(titles, folder / "intervals.png", note=note)
    pictures.draw_curves(
        results.profiles,
        results.thresholds,
        folder / "profiles.png",
        xlabel=f"{score} t",
        ylabel="Share of runs above t",
    )
    if results.steps.size:
        pictures.draw_curves(
            results.sample_efficiency,
            results.steps,
            folder / "sample_efficiency.png",
            xlabel="Environment steps",
            ylabel=f"{score}, IQM",
        )
    if results.pairs:
        pairs = {f"{a} > {b}": found for (a, b), found in results.pairs.items()}
        pictures.draw_improvement(pairs, folder / "improvement.png")


def main(argv: list[str], prog: str) -> None:
    """Read runs, compare, print and write."""
    options = common.parse(Options, argv, __doc__ or "", prog)
    options.validate()
    if options.out:
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"{options.out}: not a folder")
        for name, start in OUTPUTS.items():
            folders.check_output(options.out / name, start)
    loaded = load(options.runs, options.by)
    references = find_references(loaded, options.references)
    source = choose_source(loaded, options.metric)
    comparison = gather(loaded, source, options.metric)
    comparison = comparison._replace(references=references)
    tell_differences(loaded)
    tell_lengths(comparison)
    results = compute(comparison, options)
    print(f"scores: {options.metric}, of {SOURCES[source]} ({source})")
    if references is None:
        print("not normalised: the task has no reference")
    print(f"tasks: {', '.join(comparison.tasks)}\n")
    report(comparison, results, options)
    for method in comparison.entries:
        if len(comparison.scores(method)) == 1:
            text = f"note: {method} has one run per task: no interval"
            print(text, file=sys.stderr)
    if not results.steps.size:
        text = "note: no sample efficiency: no steps that all runs have reached"
        print(text, file=sys.stderr)
    if options.out:
        about = describe(comparison, source, options)
        write_tables(options.out, comparison, results, about)
        draw(options.out, results, about)
        print(f"\nresults: {options.out}")
