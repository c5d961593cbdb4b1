"""What the scripts share: run folders, command lines, one-line errors."""

import ast
import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from rljax import sharding

# Before anything starts jax, and importing gymnax does: a device per core, so that
# seeds run side by side.
sharding.set_cpu_devices(len(os.sched_getaffinity(0)))

from rljax import agents, envs, train
from rljax.checkpoint import latest, restore
from rljax.config import unknown
from rljax.evaluate import evaluate
from rljax.meta import Parameter, Settings, conditioned, parse_parameter, tune, validate
from rljax.types import Agent, TrainState

CONFIG_FILE, METRICS_FILE, CURVE_FILE = "config.json", "metrics.csv", "curve.png"
CHECKPOINTS = "checkpoints"
EVALUATION = 1_000_000  # folded into a seed's key, away from training


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is: everything that its numbers depend on."""

    agent: str
    env: str
    env_params: dict[str, Any]  # numbers and booleans
    seeds: int
    seed: int
    rows: int  # lines of metrics per seed
    config: Any  # the agent's Config
    meta: tuple[str, ...] = ()  # config floats to tune: `parse_parameter`
    meta_settings: Settings = Settings()

    def build(self) -> tuple[Agent, Any]:
        """The agent and its environment.

        Raises:
          ValueError: anything unknown, out of range, or that does not fit together.
        """
        if self.seeds < 1 or self.rows < 1:
            raise ValueError(f"seeds={self.seeds}, rows={self.rows}: must be >= 1")
        self.config.validate()
        env = envs.make(self.env, **self.env_params)
        make = agents.get(self.agent).make
        if not self.meta:
            return make(env.spec), env
        tuned, settings, spec = self.tuned(), self.meta_settings, env.spec
        validate(tuned, self.config)
        if settings.condition:
            spec = conditioned(spec, len(tuned))
        return tune(make(spec), spec, tuned, settings), env

    def tuned(self) -> dict[str, Parameter]:
        """What is tuned, and how it hangs on the raw numbers."""
        return dict(parse_parameter(text, self.config) for text in self.meta)

    def keys(self) -> jax.Array:
        """A key per seed, the one that `--seed` with its number alone gives."""
        return jax.vmap(jax.random.key)(self.seed + jnp.arange(self.seeds))

    def chunks(self) -> tuple[int, int]:
        """How many chunks the run has, and the iterations of each.

        Of the numbers of chunks near `rows` that which overshoots least.
        """
        iterations = train.num_iterations(self.config)
        most = min(self.rows, iterations)
        counts = range(most // 2 + 1, most + 1)
        count = min(counts, key=lambda n: (-iterations % n, -n))
        return count, -(-iterations // count)

    def map_runs(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Map a function of one seed over seeds, always on the same devices."""
        agent, _ = self.build()
        at_once = sharding.runs_at_once(self.config.num_envs)
        return sharding.map_runs(function, at_once, agent.parts)

    def initial_state(self) -> Callable[[jax.Array], TrainState]:
        """Function from `keys()` to the state at the start, a leading axis per seed."""
        agent, env = self.build()
        return self.map_runs(lambda key: train.init(agent, env, self.config, key))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Run":
        """Undo `to_json`."""
        config = agents.get(data["agent"]).Config()
        values = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in data["config"].items()
        }
        config = dataclasses.replace(config, **values)
        settings = Settings(**data["meta_settings"])
        given = dict(config=config, meta=tuple(data["meta"]), meta_settings=settings)
        return cls(**{**data, **given})


def write_run(folder: Path, run: Run) -> None:
    """Describe the run in its folder.

    Raises:
      ValueError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / (CONFIG_FILE + ".tmp")
        temporary.write_text(json.dumps(run.to_json(), indent=2) + "\n")
        os.replace(temporary, folder / CONFIG_FILE)
    except OSError as error:
        raise ValueError(f"{folder}: cannot write: {error.strerror}") from error


def read_run(folder: Path) -> Run:
    """Read what `write_run` wrote.

    Raises:
      ValueError: no run there, or its description is damaged.
    """
    path = folder / CONFIG_FILE
    try:
        return Run.from_json(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no run here ({CONFIG_FILE} is missing)") from error
    except NotADirectoryError as error:
        raise ValueError(f"{folder}: not a folder") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged or of another version: {error}") from error


def restore_state(folder: Path, run: Run) -> TrainState:
    """The latest checkpoint of a run, a leading axis per seed.

    Raises:
      CheckpointError: missing, damaged or of another run.
    """
    like = jax.eval_shape(run.initial_state(), run.keys())
    return restore(folder / CHECKPOINTS, like)


def latest_step(folder: Path) -> int | None:
    """Environment steps per seed at the latest checkpoint."""
    return latest(folder / CHECKPOINTS)


def evaluate_run(
    run: Run, states: TrainState, episodes: int, explore: bool = False
) -> np.ndarray:
    """Returns `[S, episodes]` of final policies, on keys of their own."""
    agent, env = run.build()

    def returns(ts: TrainState, key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, EVALUATION)
        return evaluate(
            agent, env, run.config, ts, key, episodes, explore=explore
        ).returns

    return np.asarray(run.map_runs(returns)(states, run.keys()))


def summary(returns: np.ndarray) -> str:
    """One line about evaluation returns `[S, episodes]`."""
    seeds, episodes = returns.shape
    spread = f", {returns.mean(axis=1).min():.1f} to {returns.mean(axis=1).max():.1f}"
    return (
        f"evaluation: mean return {returns.mean():.1f} over {episodes} episodes"
        f"{f' of each of {seeds} seeds{spread}' if seeds > 1 else ''}"
    )


def curve(
    table: dict[str, np.ndarray], name: str = "episode_return"
) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[R]` and a metric `[S, R]` from a table of metrics."""
    steps, seeds = np.unique(table["step"]), np.unique(table["seed"])
    values = table[name].reshape(len(steps), len(seeds)).T
    return steps, np.asarray(values, float)


def score(*tables: dict[str, np.ndarray]) -> tuple[str, str]:
    """What learning curves show, and the metric: rewards where no episode ended."""
    ended = any(np.isfinite(table["episode_return"]).any() for table in tables)
    if ended or not all("reward" in table for table in tables):
        return "Episode return", "episode_return"
    return "Reward per step", "reward"


def agent_and_rest(argv: list[str], description: str) -> tuple[str, list[str]]:
    """The agent's name, first on the command line, and the words after it.

    Without one, prints what there is and exits.

    Raises:
      ValueError: unknown agent.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(description.strip())
        print(f"\nagents: {', '.join(agents.names())}")
        print(f"\nenvironments: {', '.join(envs.names())}")
        print("\nAGENT --help lists all options, with the agent's defaults.")
        sys.exit(0 if argv else 2)
    agents.get(argv[0])
    return argv[0], argv[1:]


def word(argv: list[str], option: str, default: str) -> str:
    """The word after an option, or after its equals sign; for defaults to depend on."""
    for i, text in enumerate(argv):
        if text.startswith(option + "="):
            return text.partition("=")[2]
        if text == option and i + 1 < len(argv):
            return argv[i + 1]
    return default


def parse(options: type, argv: list[str], description: str, prog: str) -> Any:
    """Parse a command line into a dataclass; `--help` prints and exits.

    Raises:
      ValueError: an unknown option, a missing one, or a value of the wrong kind.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed, rest = tyro.cli(
                options,
                args=argv,
                description=description,
                prog=prog,
                return_unknown_args=True,
            )
    except SystemExit as end:
        if not end.code:
            raise
        lines = [line.strip(" \n╭╮╰╯│─") for line in errors.getvalue().splitlines()]
        texts = [line for line in lines if line and "--help" not in line]
        raise ValueError(" ".join(texts) + f" (see {prog} --help)") from None
    if rest:
        names = [f.name for f in dataclasses.fields(options)]
        for part in ("config", "meta_settings"):
            if part in names:
                fields = dataclasses.fields(getattr(parsed, part))
                names += [f"{part}.{f.name}" for f in fields]
        known = ["--" + re.sub("_(?!$)", "-", name) for name in names]
        raise ValueError(unknown("option", rest[0], known))
    return parsed


def with_number_values(pairs: dict[str, str]) -> dict[str, float | int | bool]:
    """Read the values of `--env-params`: numbers, True or False.

    Raises:
      ValueError: another value.
    """
    values = {}
    for name, text in pairs.items():
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if not isinstance(value, bool | int | float):
            raise ValueError(f"{name}={text!r}: must be a number, True or False")
        values[name] = value
    return values


def one_line_errors(main: Callable[[], None]) -> Callable[[], None]:
    """Turn bad input into one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped
