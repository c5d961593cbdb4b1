"""Each kind of search from its start to its report."""

import contextlib
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np

from rljax.commands import common, folders
from rljax.commands.looking import look
from rljax.commands.sweeps import (
    halving,
    picture,
    population,
    ranking,
    space,
    study,
    table,
)
from rljax.commands.sweeps.groups import (
    DIVERGED,
    Groups,
    Keep,
    Place,
    Result,
    Results,
    Sweep,
    group_size,
)
from rljax.commands.sweeps.progress import SweepProgress
from rljax.running import hosts, train
from rljax.running.logging import Progress

_NAMED = 8  # programs that are told one by one
_PNG = b"\x89PNG"


def claimed(sweep: Sweep, out: Path, stack: contextlib.ExitStack) -> Results:
    """Lock the file for as long as the stack is open; the results that it holds."""

    def claim() -> list[list[Any]]:
        folders.check_output(out, f"{table.FIRST},".encode())
        stack.enter_context(folders.lock(out.with_name(f".{out.name}.lock"), out))
        return [
            [*place, float(found.score), found.steps, found.status]
            for place, found in table.read(out, sweep).items()
        ]

    results: Results = {}
    for configuration, seed, score, steps, status in (
        hosts.agree(hosts.on_primary(claim)) or ()
    ):
        place = Place(configuration, seed)
        results[place] = Result(np.float32(score), steps, status)
    return results


def look_at(sweep: Sweep) -> None:
    """Look at a run of each shape, and say how many there are.

    Raises:
      ValueError: as `looking.look`.
    """
    shapes = sweep.shapes()
    for shape in shapes:
        look(sweep.run_of(shape[0]))
    texts = []
    for shape in shapes[:_NAMED]:
        words, runs = sweep.shape(shape[0]), f"{len(shape) * sweep.run.seeds} runs"
        texts.append(f"{' '.join(words)} ({runs})" if words else runs)
    more = ["..."] if len(shapes) > _NAMED else []
    plural = "s" if len(shapes) > 1 else ""
    print(f"{len(shapes)} program{plural}: {', '.join([*texts, *more])}", flush=True)


def write_kept(sweep: Sweep, out: Path | None, progress: SweepProgress) -> Keep:
    """Make the function that writes results, in the order of their runs."""

    def keep(results: Results) -> None:
        if out:
            order = sorted(results)
            write = functools.partial(table.write, out, sweep, results, order)
            hosts.on_primary(write)
        progress.update(results)

    return keep


def search(sweep: Sweep, options: Any, found: Results, keep: Keep) -> Results:
    """Train all runs, and the best combinations with fresh seeds."""
    groups = Groups(sweep, options.at_once)
    keep(found)
    if options.search == "halving":
        results = found or halving.search(
            sweep, keep, ladder=ladder(options), at_once=options.at_once
        )
    else:
        results = groups.train(sweep.places(), found, keep)
    return groups.train(best_again(sweep, results, options.top), results, keep)


def best_again(sweep: Sweep, results: Results, top: int) -> list[Place]:
    """The runs of the best configurations with fresh seeds."""
    best = ranking.rank(sweep, results)[:top]
    return [Place(c, seed) for c in best for seed in fresh_seeds(sweep)]


def of_search(sweep: Sweep, results: Results) -> Results:
    """The results without those of fresh seeds."""
    return {p: found for p, found in results.items() if p.seed < sweep.run.seeds}


def ladder(options: Any) -> halving.Ladder:
    """The rungs of successive halving."""
    return halving.Ladder(eta=options.eta or 3, rungs=options.rounds or 3)


def chunks(options: Any, config: Any) -> int:
    """The pieces of population-based training.

    Raises:
      ValueError: there are more than iterations.
    """
    iterations = train.num_iterations(config)
    if options.rounds and options.rounds > iterations:
        most = f"must be at most the {iterations} iterations of training"
        raise ValueError(f"rounds={options.rounds}: {most}")
    return options.rounds or min(20, iterations)


def fresh_seeds(sweep: Sweep) -> range:
    """Seeds after those of the search, counted from its first."""
    return range(sweep.run.seeds, 2 * sweep.run.seeds)


def report(sweep: Sweep, results: Results, options: Any) -> None:
    """Print the combinations by mean return, best first; write the runs so."""
    again = fresh_seeds(sweep) if options.top else None
    for line in ranking.lines(sweep, results, again):
        print(line)
    diverged = sum(found.status == DIVERGED for found in results.values())
    if diverged:
        print(f"{diverged} runs diverged: a metric or the return is not finite")
    if options.search == "halving":
        print(halving.cost(sweep, of_search(sweep, results)))
    out = options.out
    if out:
        place = {c: i for i, c in enumerate(ranking.rank(sweep, results))}
        order = sorted(results, key=lambda run: (place[run.configuration], run.seed))
        hosts.on_primary(functools.partial(table.write, out, sweep, results, order))
        if options.picture:
            path = out.with_suffix(".png")
            hosts.on_primary(lambda: picture.draw(path, sweep, results))
            print(f"picture: {path}")
        print(f"all runs: {out}")


def with_rows(sweep: Sweep, options: Any) -> None:
    """Train the configurations that are known beforehand, all or the better ones."""
    hosts.on_primary(lambda: look_at(sweep))
    begin, found = time.monotonic(), {}
    with contextlib.ExitStack() as stack:
        if options.out:
            hosts.on_primary(lambda: check_picture(options))
            found = claimed(sweep, options.out, stack)
        if options.search == "halving" and not halving.is_complete(
            sweep, of_search(sweep, found), ladder(options)
        ):
            found = {}  # the states are not on the disk
        fresh = len(found) - len(of_search(sweep, found))
        again = max(fresh, min(options.top, len(sweep.rows)) * sweep.run.seeds)
        steps = sum(sweep.steps(place.configuration) for place in sweep.places())
        steps += again * steps // len(sweep)  # those of the best are not known yet
        with shown(sweep, runs=len(sweep) + again, steps=steps) as progress:
            keep = write_kept(sweep, options.out, progress)
            results = search(sweep, options, found, keep)
        report(sweep, results, options)
    new = [place for place in results if place not in found]
    trained = sum(results[place].steps for place in new)
    print(f"{len(new)} runs, {trained:,} steps, {time.monotonic() - begin:.1f} s")


def shown(sweep: Sweep, *, runs: int, steps: int) -> SweepProgress:
    """Show how far a sweep is, under its agent and environment."""
    return SweepProgress(label(sweep), runs=runs, steps=steps)


def label(sweep: Sweep) -> str:
    """Name a sweep by its agent and environment."""
    return f"{common.short(sweep.run.agent)} {common.short(sweep.run.env)}"


def check_picture(options: Any) -> None:
    """Raise unless the picture, if any, can be written."""
    if options.picture:
        folders.check_output(options.out.with_suffix(".png"), _PNG)


def claimed_new(out: Path | None, stack: contextlib.ExitStack) -> None:
    """Lock a file that does not exist yet, or is empty.

    Raises:
      ValueError: it exists: the search cannot go on from it.
    """
    if out:
        folders.check_output(out)
        stack.enter_context(folders.lock(out.with_name(f".{out.name}.lock"), out))


def with_population(sweep: Sweep, varied: space.Space, options: Any) -> None:
    """Train a population for each seed; --out holds its history."""
    look_at(sweep)
    begin, number = time.monotonic(), chunks(options, sweep.run.config)
    spans = [field for field in varied if isinstance(field, space.Span)]
    trained = population.Population(sweep, spans, chunks=number)
    total = trained.step(number - 1) * len(sweep)
    with contextlib.ExitStack() as stack:
        claimed_new(options.out, stack)
        progress = stack.enter_context(Progress(total, label(sweep)))

        def keep(history: list[population.Moment]) -> None:
            if options.out:
                population.write(options.out, sweep, history)
            scores = history[-1].scores
            known = scores[np.isfinite(scores)]
            best = float(known.max()) if known.size else float("nan")
            progress.update(history[-1].step * len(sweep), best)

        outcome = trained.train(options.search_seed, keep)
    for line in population.lines(sweep, outcome):
        print(line)
    if options.out:
        print(f"history: {options.out}")
    seconds = f"{time.monotonic() - begin:.1f} s"
    print(f"{len(sweep)} runs, {total:,} steps, {seconds}")


def with_optuna(sweep: Sweep, varied: space.Space, options: Any) -> None:
    """Train what a study of Optuna asks for."""
    optuna = study.load()
    seeds = sweep.run.seeds
    template = dataclasses.replace(sweep, rows=space.draw(varied, 1, seed=0))
    look(template.run_of(0))
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        if options.out:
            check_picture(options)
        claimed_new(options.out, stack)
        name = f"rljax-{template_identity(sweep, varied)}"
        made = study.create(optuna, name, options.storage, options.search_seed)
        runs, at_once = options.samples * seeds, template.run_of(0).at_once()
        size = options.at_once or group_size(runs, at_once)
        runs += options.top * seeds
        steps, groups = runs * template.steps(0), Groups(sweep, size)
        with shown(sweep, runs=runs, steps=steps) as progress:
            keep = functools.partial(write_kept, out=options.out, progress=progress)
            asked, results = study.search(
                groups,
                varied,
                made,
                samples=options.samples,
                batch=max(1, size // seeds),
                keep=keep,
            )
            again = best_again(asked, results, options.top)
            results = groups.train(again, results, keep(asked))
        if results:
            report(asked, results, options)
    if any(trial.state.name == "COMPLETE" for trial in made.trials):
        best = made.best_trial
        print(f"study {name}: {len(made.trials)} trials, best return {best.value:.4g}")
    trained = sum(found.steps for found in results.values())
    seconds = f"{time.monotonic() - begin:.1f} s"
    print(f"{len(results)} runs, {trained:,} steps, {seconds}")


def template_identity(sweep: Sweep, varied: space.Space) -> int:
    """A number of all that the returns of a study's trials depend on."""
    words = [f"{type(field).__name__} {field}" for field in varied]
    search = {**sweep.search, "space": words}
    return dataclasses.replace(sweep, search=search).identity()
