"""Meta-train an update rule, and test what agents learn by it.

    rljax meta-train --name lpg
    rljax meta-train --name lpg --test-only --test-tasks 32
    rljax train lpg --config.weights runs/lpg --env Catch-bsuite

The rule is LPG, learned policy gradient: a recurrent network that tells agents how to
change their policies and predictions. Agents live and learn in many tasks at once, and
the rule moves so that they learn more. Oh et al. (2020),
https://arxiv.org/abs/2007.08794.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rljax import config as cfg
from rljax.commands import common, folders, meta_scores
from rljax.commands.train import Interrupt, end
from rljax.envs import tasks
from rljax.meta.rules import lpg, meta_training
from rljax.running import sharding
from rljax.running.checkpoint import restore, save
from rljax.running.logging import CsvSink, Progress, read_csv
from rljax.running.plotting import learning_curve
from rljax.types import Params

KIND = "meta-train"  # of a run folder's config


@dataclasses.dataclass(frozen=True)
class Run:
    """A meta-training: everything that its numbers depend on."""

    tasks: str
    iterations: int
    seed: int
    rows: int
    data_parallel: int
    config: meta_training.Config
    settings: lpg.Settings

    def parts(self) -> meta_training.Parts:
        """Rule, network and tasks; ValueError for anything unknown or out of range."""
        cfg.check_range(self, "iterations", "rows", low=1, high=common.INT32)
        common.check_seeds(self.seed)
        for part in (self.config, self.settings):
            common.check_numbers(part)
            part.validate()
        draw_task = tasks.tasks(self.tasks)
        spec = jax.eval_shape(draw_task, jax.random.key(0)).spec
        network = meta_training.table(spec, self.settings.y_size)
        self.shard()
        self.mesh()
        return meta_training.Parts(lpg.make(self.settings), network, draw_task)

    def shard(self) -> meta_training.Config:
        """The config of one of the devices that the lifetimes are split over."""
        whole, shards = self.config.num_lifetimes, self.data_parallel
        cfg.check_count(self, "data_parallel")
        if whole % shards:
            raise ValueError(f"num_lifetimes={whole}: must divide by {shards} devices")
        return dataclasses.replace(self.config, num_lifetimes=whole // shards)

    def mesh(self) -> jax.sharding.Mesh:
        """Devices `[1, shards]`."""
        return sharding.split_mesh(1, self.data_parallel)

    def map(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Map a function of one shard over all of them."""
        return sharding.map_runs(function, mesh=self.mesh())

    def initial_state(self, parts: meta_training.Parts) -> Callable[[], Any]:
        """Function to the state at the start, `[1, shards, ...]`."""
        init = self.map(functools.partial(meta_training.init, parts, self.shard()))
        keys = jax.random.split(common.key(self.seed), 1)
        return lambda: init(sharding.copies(keys, self.data_parallel))

    def chunk(self) -> int:
        """Meta-steps of a row: rows are as many as divide the whole, at most `rows`."""
        most = min(self.rows, self.iterations)
        rows = max(n for n in range(1, most + 1) if self.iterations % n == 0)
        return self.iterations // rows

    def steps(self) -> int:
        """Environment steps of a meta-step."""
        config = self.config
        rollouts = config.num_lifetimes * (config.inner_updates + 1)
        return rollouts * config.num_envs * config.rollout_length

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {"command": KIND, **dataclasses.asdict(self)}


def read_run(folder: Path) -> Run:
    """Read a run from its folder; ValueError if there is none, or another's."""
    path = folder / folders.CONFIG_FILE
    try:
        data = json.loads(path.read_text())
        if data.pop("command", "") != KIND:
            raise ValueError(f"is not of {KIND}")
        config = meta_training.Config(**data.pop("config"))
        settings = lpg.Settings(**data.pop("settings"))
        return Run(**data, config=config, settings=settings)
    except OSError as error:
        raise ValueError(f"{folder}: no run here: {error.strerror}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged or of another command: {error}") from error


def options_type(stored: Run | None) -> type:
    """The command line's dataclass: defaults are those of the run that goes on."""
    usual = stored.config if stored else meta_training.Config()
    of_rule = stored.settings if stored else lpg.Settings()
    devices = len(jax.devices())
    divisors = range(1, devices + 1)
    most = max(n for n in divisors if usual.num_lifetimes % n == 0)

    @dataclasses.dataclass(frozen=True)
    class Options:
        tasks: str = stored.tasks if stored else "grid_worlds"
        """distribution of tasks, with observations that name states"""
        iterations: int = stored.iterations if stored else 6000
        """meta-steps: updates of the rule"""
        seed: int = stored.seed if stored else 0
        """of the rule, tasks and actions"""
        rows: int = stored.rows if stored else 600
        """lines of metrics, at most"""
        data_parallel: int = stored.data_parallel if stored else most
        """devices to split the lifetimes over"""
        name: str | None = None
        """run folder below --out; by default the tasks and the time"""
        out: Path = Path("runs")
        """where run folders are"""
        resume: bool = False
        """go on from the run's last checkpoint (needs --name)"""
        checkpoint_seconds: float = 60.0
        """time between checkpoints, beside the one at the end"""
        test_tasks: int = 64
        """unseen tasks to learn by the rule in the end; 0 for none"""
        test_only: bool = False
        """test the rule that the run --name has so far, and train nothing"""
        baselines: bool = True
        """learn the test tasks also by other rules and by a2c, tuned"""
        config: meta_training.Config = usual
        """hyperparameters"""
        settings: lpg.Settings = of_rule
        """of the rule"""

        def validate(self) -> None:
            least = 1 if self.test_only else 0
            cfg.check_range(self, "test_tasks", low=least, high=common.INT32)
            cfg.check_range(self, "checkpoint_seconds", low=0.0)

    return Options


def parse_command_line(argv: list[str], prog: str) -> tuple[Run, Any]:
    """Read the command line into what to run and how."""
    stored = None
    asked = [x for x in ("--resume", "--test-only") if x in argv]
    if asked:
        name = common.word(argv, "--name", "")
        if not name:
            raise ValueError(f"{asked[0]} needs --name, the folder of the run")
        stored = read_run(Path(common.word(argv, "--out", "runs")) / name)
    options = common.parse(options_type(stored), argv, __doc__ or "", prog)
    options.validate()
    names = [field.name for field in dataclasses.fields(Run)]
    run = Run(**{name: getattr(options, name) for name in names})
    run.parts()
    if stored:
        refuse_other_run(stored, run)
    return run, options


def refuse_other_run(stored: Run, run: Run) -> None:
    """Raise where the command line asks for another run than the folder holds."""
    for name, old in stored.to_json().items():
        new = run.to_json()[name]
        parts = old if isinstance(old, dict) else {"": old}
        for part, value in parts.items():
            other = new[part] if part else new
            if value != other:
                raise ValueError(
                    f"--name: the run has {part or name}={value}, not {other}; "
                    "use another --name for a new run"
                )


@contextlib.contextmanager
def run_folder(run: Run, options: Any) -> Iterator[Path]:
    """Where the run lives, claimed by this process."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = options.out / (options.name or f"lpg-{run.tasks}-{stamp}")
    claim = folders.claim(folder, resume=options.resume, free=not options.name)
    with claim as folder:
        text = json.dumps(run.to_json(), indent=2) + "\n"
        folders.write_text(folder / folders.CONFIG_FILE, text)
        yield folder


def latest(folder: Path) -> int:
    """Meta-steps at the latest checkpoint, 0 without one."""
    return common.latest_step(folder) or 0


def train_in_chunks(
    run: Run, options: Any, folder: Path, stop: Interrupt
) -> meta_training.MetaState:
    """Run chunk by chunk, with metrics, checkpoints and signals between them."""
    parts, each = run.parts(), run.chunk()
    step = functools.partial(meta_training.run, parts, run.shard(), iterations=each)
    chunk = jax.jit(run.map(step), donate_argnums=0)
    done, state = start(run, parts, folder)
    now = last_save = begin = time.monotonic()
    total = run.iterations * run.steps()
    with (
        CsvSink(folder / folders.METRICS_FILE, done or None) as sink,
        Progress(total, f"lpg {run.tasks}") as progress,
        stop,
    ):
        while done < run.iterations:
            state, metrics = chunk(state)
            row = row_of(metrics)
            done, before, now = done + each, now, time.monotonic()
            rate = each / (now - before)
            times = {"seconds": now - begin, "steps_per_second": rate}
            sink.write({"step": done, **row, **times})
            check_finite(row, done, folder)
            progress.update(done * run.steps(), reward=row["reward"])
            late = now - last_save > options.checkpoint_seconds
            if late or stop.asked or done == run.iterations:
                sink.sync()  # no checkpoint is later than its rows
                save(folder / folders.CHECKPOINTS, done, state)
                write_rule(run, folder, state)  # agents may learn by it already
                last_save = now
            if stop.asked and done < run.iterations:
                print(f"stopped: --name {folder.name} --resume goes on")
                sys.exit(128 + stop.asked)
    return state


def write_rule(run: Run, folder: Path, state: meta_training.MetaState) -> None:
    """Write the rule to its file; all shards hold the same."""
    lpg.save(folder / lpg.FILE, run.settings, rule_of(state))


def rule_of(state: meta_training.MetaState) -> Params:
    """The rule's numbers in a state `[1, shards, ...]`."""
    return jax.tree.map(lambda x: x[0, 0], state.params)


def start(run: Run, parts: meta_training.Parts, folder: Path) -> tuple[int, Any]:
    """Meta-steps that are done, and the state `[1, shards, ...]` after them."""
    initial, done = run.initial_state(parts), latest(folder)
    if not done:
        return 0, initial()
    if done % run.chunk() or done > run.iterations:
        raise ValueError(f"{folder}: no piece of this run ends at step {done}")
    return done, restore(folder / folders.CHECKPOINTS, jax.eval_shape(initial))


def row_of(metrics: dict[str, jax.Array]) -> dict[str, float]:
    """Means of a chunk's metrics; the late reward is NaN where no agent was old."""
    columns = {name: np.asarray(x)[0, 0] for name, x in metrics.items()}
    late = columns.pop("late")
    old = columns.pop("late_reward")
    mean = float((old * late).sum() / late.sum()) if late.any() else float("nan")
    row = {name: float(x.mean()) for name, x in columns.items()}
    return {"reward": row.pop("reward"), "late_reward": mean, **row}


def check_finite(row: dict[str, float], step: int, folder: Path) -> None:
    """Raise if a metric is NaN or infinite, naming where and what is safe."""
    for name, value in row.items():
        if name != "late_reward" and not np.isfinite(value):
            raise ValueError(
                f"{name} is {value} at meta-step {step}; last checkpoint in {folder}: "
                f"step {latest(folder)}; try a lower config.learning-rate"
            )


def finish(
    run: Run, options: Any, folder: Path, state: meta_training.MetaState
) -> None:
    """Draw the curve, test."""
    write_rule(run, folder, state)
    table = read_csv(folder / folders.METRICS_FILE)
    names = {"all agents": "reward", "last quarter of lives": "late_reward"}
    curves = {
        label: (table["step"] * run.steps(), np.asarray(table[name], float)[None])
        for label, name in names.items()
    }
    learning_curve(
        curves,
        folder / folders.CURVE_FILE,
        title=f"Meta-training of LPG on {run.tasks}",
        ylabel="Reward per step",
    )
    if options.test_tasks:
        result = test(run, options, rule_of(state))
        text = json.dumps(result, indent=2) + "\n"
        folders.write_text(folder / "evaluation.json", text)
    print(f"run folder: {folder}")


def test(run: Run, options: Any, rule_params: Params) -> dict[str, Any]:
    """Learn unseen tasks by a rule of the run; see `meta_scores.test`."""
    return meta_scores.test(
        run.parts(),
        run.config,
        rule_params,
        seed=run.seed,
        num_tasks=options.test_tasks,
        baselines=options.baselines,
    )


def main(argv: list[str], prog: str) -> None:
    """Meta-train, then test."""
    run, options = parse_command_line(argv, prog)
    if options.test_only:
        test(run, options, lpg.load(options.out / options.name)[1])
        return
    stop = Interrupt()
    previous = signal.signal(signal.SIGTERM, end)
    try:
        with run_folder(run, options) as folder:
            state = train_in_chunks(run, options, folder, stop)
            finish(run, options, folder, state)
    finally:
        signal.signal(signal.SIGTERM, previous)
