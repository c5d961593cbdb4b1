"""Train an agent: `rljax train ppo --env CartPole-v1 --seeds 4`."""

import contextlib
import dataclasses
import datetime
import functools
import importlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rljax import agents, loading
from rljax.commands import common, folders
from rljax.commands.evaluations import Evaluations
from rljax.commands.evaluations import read as read_evaluations
from rljax.commands.looking import Shards, look
from rljax.config import check_range
from rljax.meta import Settings
from rljax.running import cpu, hosts, programs, train
from rljax.running.checkpoint import save
from rljax.running.logging import CsvSink, Progress, Row, TensorBoardSink, WandbSink
from rljax.running.plotting import learning_curve


def options_type(
    agent: str, env_name: str, env_params: dict[str, Any], stored: common.Run | None
) -> type:
    """The command line's dataclass: its defaults depend on agent and environment."""
    if stored:
        defaults = stored.config
    else:
        defaults = common.config_for(agent, env_name, env_params)

    @dataclasses.dataclass(frozen=True)
    class Options:
        env: str = env_name
        """environment's name, or your own as my.module:make_env or file.py:make_env"""
        env_params: dict[str, str] = dataclasses.field(default_factory=dict)
        """parameters of the environment: NAME VALUE pairs"""
        data_parallel: int = stored.data_parallel if stored else 1
        """devices to split each run over: environments, replay and batches"""
        seeds: int = stored.seeds if stored else 1
        """independent runs, trained at once"""
        seed: int = stored.seed if stored else 0
        """number of the first seed"""
        steps: int | None = None
        """environment steps per seed, in place of config.total_steps"""
        name: str | None = None
        """run folder below --out; by default agent, environment and time"""
        out: Path = Path("runs")
        """where run folders are"""
        resume: bool = False
        """go on from the run's last checkpoint (needs --name)"""
        rows: int = stored.rows if stored else 100
        """lines of metrics per seed, and pieces the run is done in"""
        episodes: int = 128
        """evaluation episodes per seed at the end, acting greedily; 0 for none"""
        eval_every: int | None = stored.eval_every if stored else None
        """environment steps per seed between evaluations while training: at the next
        row of metrics; the checkpoint of the best is kept"""
        eval_episodes: int = stored.eval_episodes if stored else 32
        """episodes per seed of each of them"""
        stop_at: float | None = stored.stop_at if stored else None
        """end the run at an evaluation with this mean return over all seeds"""
        checkpoint_seconds: float = 30.0
        """time between checkpoints, beside the one at the end"""
        tensorboard: bool = False
        """also write TensorBoard events"""
        wandb: str | None = None
        """also log to this Weights & Biases project"""
        allow_nan: bool = False
        """go on when a metric is NaN or infinite"""
        distributed: bool = False
        """one of several processes of this command, which share the seeds"""
        meta: tuple[str, ...] = stored.meta if stored else ()
        """floats of the config to tune online: NAME or NAME=KIND,LOW,HIGH with KIND
        bounded, log, log_horizon, state_dependent or contextual; `all`: every one that
        declares a range"""
        meta_reward: bool = stored.meta_reward if stored else False
        """learn a reward of observation and action, which is added to the agent's"""
        meta_target: bool = stored.meta_target if stored else False
        """learn the return that the agent regresses and climbs"""
        meta_settings: Settings = stored.meta_settings if stored else Settings()
        """of the tuning"""
        config: type(defaults) = defaults  # pyright: ignore[reportInvalidTypeForm]
        """the agent's hyperparameters"""

        def validate(self) -> None:
            check_range(self, "episodes", low=0, high=common.INT32)
            check_range(self, "checkpoint_seconds", low=0.0)

    return Options


def parse_command_line(argv: list[str], prog: str) -> tuple[common.Run, Any]:
    """Read the command line into what to run and how."""
    agent, argv = common.agent_and_rest(argv, __doc__ or "")
    stored = None
    if "--resume" in argv:
        name = common.word(argv, "--name", "")
        if not name:
            raise ValueError("--resume needs --name, the folder of the run to go on")
        stored = common.read_run(Path(common.word(argv, "--out", "runs")) / name)
    env = common.word(argv, "--env", stored.env if stored else "CartPole-v1")
    env_params = common.with_values(common.pairs(argv, "--env-params"))
    options_class = options_type(agent, env, env_params, stored)
    options = common.parse(options_class, argv, __doc__ or "", f"{prog} {agent}")
    options.validate()
    config = common.as_recorded(options.config)
    if options.steps is not None:
        config = dataclasses.replace(config, total_steps=options.steps)
    env_params = common.with_values(options.env_params)
    env = loading.recorded(options.env)
    if stored and env_params in ({}, stored.env_params):
        env_params = stored.env_params
    else:
        env_params = agents.env_params_for(agent, env, env_params)
    run = common.Run(
        agent=agent,
        env=env,
        env_params=env_params,
        seeds=options.seeds,
        seed=options.seed,
        rows=options.rows,
        config=config,
        meta=options.meta,
        meta_settings=options.meta_settings,
        meta_reward=options.meta_reward,
        meta_target=options.meta_target,
        data_parallel=options.data_parallel,
        eval_every=options.eval_every,
        eval_episodes=options.eval_episodes,
        stop_at=options.stop_at,
    )
    if "all" in run.meta:
        run = run.named()
        hosts.on_primary(lambda: print(f"tuned: {', '.join(run.meta)}"))
    if stored:
        refuse_other_run(stored, run)
    return run, options


def refuse_other_run(stored: common.Run, run: common.Run) -> None:
    """Raise where the command line asks for another run than the folder holds."""

    def flat(run: common.Run) -> dict[str, Any]:
        data = run.to_json()
        for part in ("config", "meta_settings"):
            fields = data.pop(part).items()
            data |= {f"{part}.{name}": value for name, value in fields}
        return data

    old, new = flat(stored), flat(run)
    for name in old | new:
        if old.get(name) != new.get(name):
            raise ValueError(
                f"--resume: the run has {name}={old.get(name)}, not {new.get(name)}; "
                "use another --name for a new run"
            )


@contextlib.contextmanager
def run_folder(run: common.Run, options: Any) -> Iterator[Path]:
    """Where the run lives, claimed by process 0: see `folders.claim`."""
    time_stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    parts = [common.in_file_names(name) for name in (run.agent, run.env)]
    name = "-".join([*parts, time_stamp])
    folder = options.out / (options.name or name)
    claim = folders.claim(folder, resume=options.resume, free=not options.name)
    with contextlib.ExitStack() as stack:
        claimed = hosts.on_primary(lambda: str(stack.enter_context(claim)))
        yield Path(hosts.agree(claimed or ""))


def write_rows(
    sinks: list[Any],
    run: common.Run,
    step: int,
    metrics: dict[str, np.ndarray],
    times: Row,
) -> None:
    """One row per seed; `metrics` holds `[S]` per name, `times` is the same for all."""
    for i in range(run.seeds):
        row: Row = {"step": step, "seed": run.seed + i}
        row |= {k: float(v[i]) for k, v in metrics.items()}
        for sink in sinks:
            sink.write(row | times)


def check_finite(metrics: dict[str, np.ndarray], step: int, folder: Path) -> None:
    """Raise if a metric is NaN or infinite, naming where and what is safe."""
    for name, values in metrics.items():
        no_episode = name in train.PER_EPISODE
        good = np.isfinite(values) | (no_episode & (metrics["episodes"] == 0))
        if not good.all():
            seed = int(np.argmin(good))
            last = common.latest_step(folder)
            kept = (
                f"last good checkpoint: step {last}"
                if last is not None
                else ("no checkpoint was written before")
            )
            raise ValueError(
                f"{name} is {values[seed]} at step {step}, seed "
                f"{seed}; {kept} in {folder} (--allow-nan goes on)"
            )


def on_host(run: common.Run, metrics: dict[str, Any]) -> dict[str, np.ndarray]:
    """A chunk's metrics, `[S]` each, but for the step: NaN where no episode ended."""
    metrics = {k: v for k, v in metrics.items() if k != "step"}
    metrics = hosts.to_host(metrics)
    arrays = {k: run.of_seeds(v)[:, 0] for k, v in metrics.items()}
    none = arrays["episodes"] == 0
    return arrays | {k: np.where(none, np.nan, arrays[k]) for k in train.PER_EPISODE}


def start_state(run: common.Run, folder: Path) -> tuple[int, Any]:
    """The number of chunks that are done, and the state after them."""
    step = common.latest_step(folder)
    if step is None:
        return 0, run.initial_state()(run.keys())
    try:
        done = run.chunks().done(step)
    except ValueError as error:
        raise ValueError(
            f"{folder / folders.CHECKPOINTS / str(step)}: {error}"
        ) from error
    return done, common.restore_state(folder, run)


class Programs:
    """Programs of a run, made ready side by side before the training asks."""

    def __init__(
        self, run: common.Run, episodes: int, evaluations: Evaluations
    ) -> None:
        agent, env = run.build()
        iterations = run.chunks().iterations

        def chunk(ts: Any) -> Any:
            return train.run(agent, env, run.shard(), ts, iterations, iterations)

        mapped, place = run.map_runs(chunk), run.placement()
        self.chunk = jax.jit(mapped, donate_argnums=0, out_shardings=place)
        self.evaluation = common.evaluation(run, episodes) if episodes else None
        self._evaluations = [p for p in (evaluations.program, self.evaluation) if p]
        self._run = run

    def start(self, ahead: programs.Ahead, folder: Path) -> tuple[int, Any]:
        """Return what `start_state` does, with the chunk compiled meanwhile."""
        state = ahead.start(start_state, self._run, folder)
        if ahead.threaded:
            like = self._run.abstract_state()
            programs.compile_for(self.chunk, like)
            for evaluation in self._evaluations:  # while the training runs
                ahead.start(programs.compile_for, evaluation, like, self._run.keys())
            for module in ("orbax.checkpoint", "matplotlib.figure"):
                ahead.start(importlib.import_module, module)
        return state()


def train_in_chunks(
    run: common.Run,
    options: Any,
    folder: Path,
    *,
    sinks: list[Any],
    evaluations: Evaluations,
    stop: "Interrupt",
    chunk: Callable[[Any], Any],
    start: tuple[int, Any],
) -> Any:
    """Run chunk by chunk; metrics, evaluations, checkpoints and signals are between."""
    chunks, (done, ts) = run.chunks(), start
    shards = Shards(run, ts)
    now = last_save = begin = time.monotonic()
    total_steps = run.seeds * chunks.step(chunks.count)
    title = f"{common.short(run.agent)} {common.short(run.env)}"
    with Progress(total_steps, title) as progress, stop:
        for i in range(done, chunks.count):
            if evaluations.reached:
                break
            ts, metrics = chunk(ts)
            shards.look(ts)
            metrics, step = on_host(run, metrics), chunks.step(i + 1)
            before, now = now, time.monotonic()
            rate = run.seeds * chunks.steps / (now - before)
            times: Row = {"seconds": now - begin, "steps_per_second": rate}
            write = functools.partial(write_rows, sinks, run, step, metrics, times)
            hosts.on_primary(write)
            if not options.allow_nan:
                check_finite(metrics, step, folder)
            reward = float(metrics["reward"].mean())
            progress.update(run.seeds * step, mean_return(metrics), reward)
            evaluations.after(i + 1, chunks, ts, sinks[1:])
            now = time.monotonic()  # the rates are of training alone
            late = now - last_save > options.checkpoint_seconds
            due, asked = hosts.greatest(late, stop.asked)
            last = i + 1 == chunks.count or evaluations.reached
            if due or asked or last:
                # No checkpoint is later than its rows.
                hosts.on_primary(lambda: sinks[0].sync())
                save(folder / folders.CHECKPOINTS, step, ts)
                last_save = now
            if asked and not last:
                print(f"stopped: --name {folder.name} --resume goes on")
                sys.exit(128 + asked)
    if evaluations.reached:
        print(f"stopped: an evaluation reached the mean return {run.stop_at}")
    return ts


def mean_return(metrics: dict[str, np.ndarray]) -> float:
    """Mean over the episodes of all seeds, NaN if there were none."""
    episodes = metrics["episodes"]
    returns = np.where(episodes > 0, metrics["episode_return"], 0.0)
    total = episodes.sum()
    return float((returns * episodes).sum() / total) if total else float("nan")


class Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; a second one kills."""

    def __init__(self) -> None:
        self.asked = 0  # number of the signal that came
        self._previous: dict[int, Any] = {}  # handlers

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if number not in self._previous:  # entered twice it is left once
                self._previous[number] = signal.signal(number, self._ask)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, number: int, _: object) -> None:
        self.asked = number
        self.__exit__()


def end(number: int, _: object) -> None:
    """End on a signal as on an error: a run without a row leaves nothing."""
    sys.exit(128 + number)


def finish(
    run: common.Run, options: Any, folder: Path, *, ts: Any, evaluation: Any
) -> None:
    """Evaluate the final policies, draw the curve, say where things are."""
    hosts.on_primary(lambda: draw_curve(run, folder))
    if options.episodes:
        returns = common.evaluate_run(run, ts, evaluation)
        result = {
            "episodes": options.episodes,
            "mean_return": float(returns.mean()),
            "mean_return_per_seed": returns.mean(axis=1).tolist(),
        }
        text, path = json.dumps(result, indent=2) + "\n", folder / "evaluation.json"
        hosts.on_primary(lambda: folders.write_text(path, text))
        print(common.summary(returns))
    print(f"run folder: {folder}")


def draw_curve(run: common.Run, folder: Path) -> None:
    """Draw what a run has written: its returns, and what it has tuned."""
    table = common.read_metrics(folder, run)
    ylabel, metric = common.score(table)
    agent = common.short(run.agent)
    title = f"{agent} on {common.short(run.env)}"
    evaluations = read_evaluations(folder, run)
    names = (*run.tuned(), *run.learned)
    tuned = {name: {agent: common.curve(table, f"meta_{name}")} for name in names}
    curves, path = {agent: common.curve(table, metric)}, folder / folders.CURVE_FILE
    if evaluations and metric == "episode_return":
        curves["evaluation"] = common.curve(evaluations, "mean_return")
    learning_curve(curves, path, title=title, ylabel=ylabel, below=tuned)


@contextlib.contextmanager
def open_sinks(
    run: common.Run, options: Any, folder: Path, resume_step: int | None
) -> Iterator[list[Any]]:
    """Where rows go, in process 0; the file first."""
    sinks: list[Any] = []
    with contextlib.ExitStack() as stack:

        def start() -> None:
            sinks.append(CsvSink(folder / folders.METRICS_FILE, resume_step))
            stack.enter_context(sinks[0])
            if options.tensorboard:
                events = folder / folders.TENSORBOARD
                sinks.append(stack.enter_context(TensorBoardSink(events, resume_step)))
            if options.wandb:
                config = run.to_json()
                sink = WandbSink(options.wandb, folder.name, config, folder=folder)
                sinks.append(stack.enter_context(sink))

        hosts.on_primary(start)
        yield sinks


def main(argv: list[str], prog: str) -> None:
    """Train, evaluate, plot."""
    run, options = parse_command_line(argv, prog)
    if not hosts.several():
        cpu.take(run.cpu_share())
    hosts.on_primary(lambda: look(run))
    stop = Interrupt()
    previous = signal.signal(signal.SIGTERM, end)
    try:
        # A process that ends before the first chunk would leave others waiting.
        with (
            stop if hosts.several() else contextlib.nullcontext(),
            run_folder(run, options) as folder,
        ):
            hosts.on_primary(lambda: common.write_run(folder, run))
            threaded = not hosts.several()  # several compile in one order
            with programs.Ahead(threaded) as ahead:
                done = common.latest_step(folder) or 0 if options.resume else None
                evaluations = Evaluations(run, folder, done)
                own = Programs(run, options.episodes, evaluations)
                with evaluations, open_sinks(run, options, folder, done) as sinks:
                    ts = train_in_chunks(
                        run,
                        options,
                        folder,
                        sinks=sinks,
                        evaluations=evaluations,
                        stop=stop,
                        chunk=own.chunk,
                        start=own.start(ahead, folder),
                    )
                finish(run, options, folder, ts=ts, evaluation=own.evaluation)
    finally:
        signal.signal(signal.SIGTERM, previous)
