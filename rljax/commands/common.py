"""Shared by the commands: runs and their metrics, command lines."""

import ast
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from rljax import agents, envs, loading
from rljax.commands.errors import one_line
from rljax.commands.folders import (
    BEST,
    CHECKPOINTS,
    CONFIG_FILE,
    METRICS_FILE,
    write_text,
)
from rljax.config import check_range, unknown
from rljax.meta import (
    Parameter,
    Settings,
    conditioned,
    parse_parameters,
    tunable,
    tune,
    validate,
)
from rljax.running import cpu, hosts, sharding, train
from rljax.running.checkpoint import latest, restore
from rljax.running.evaluate import evaluate
from rljax.running.logging import read_csv
from rljax.types import Agent, TrainState

EVALUATION = 1_000_000  # folded into a seed's key, away from training
INT32, UINT32 = 2**31 - 1, 2**32 - 1
MAX_ROWS = 1_000_000  # of metrics per seed
_LIMITS = {"total_steps": 2**63 - 1}  # counted on the host


class Chunks(NamedTuple):
    """The pieces of a run. Steps are a seed's, counted on the host: no int32."""

    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    iterations: int  # of each
    start: int  # environment steps before the first
    steps: int  # environment steps of each

    def step(self, done: int) -> int:
        """Environment steps after so many."""
        return self.start + done * self.steps

    def done(self, step: int) -> int:
        """The number that leads to a step, undoing `step`; ValueError if none does."""
        done, rest = divmod(step - self.start, self.steps)
        if rest or not 0 <= done <= self.count:
            raise ValueError(f"no piece of this run ends at step {step}")
        return done


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: everything that its numbers depend on."""

    agent: str  # a name, or a reference as `loading.recorded` gives
    env: str  # likewise
    env_params: dict[str, Any]  # numbers, booleans and texts
    seeds: int
    seed: int
    rows: int  # lines of metrics per seed
    config: Any  # the agent's Config
    meta: tuple[str, ...] = ()  # config floats to tune: `parse_parameters`
    meta_settings: Settings = Settings()
    meta_reward: bool = False  # learn a reward of the agent's own
    meta_target: bool = False  # learn its targets
    data_parallel: int = 1  # devices that each run is split over
    eval_every: int | None = None  # environment steps per seed; None: never
    eval_episodes: int = 32  # per seed and evaluation
    stop_at: float | None = None  # mean return over seeds of an evaluation

    def build(self) -> tuple[Agent, Any]:
        """The agent and its environment.

        Raises:
          ValueError: anything unknown, out of range, or that does not fit together.
        """
        check_range(self, "seeds", low=1, high=INT32)
        check_range(self, "rows", low=1, high=MAX_ROWS)
        check_range(self, "data_parallel", low=1)
        self._check_evaluation()
        check_seeds(self.seed, self.seeds)
        check_config(self.agent, self.config)
        self.shard()
        self.mesh()
        check_numbers(self.meta_settings)
        env = envs.make(self.env, **self.env_params)
        if not (self.meta or self.learned):
            return agents.make(self.agent, env.spec), env
        tuned, settings, spec = self.tuned(), self.meta_settings, env.spec
        validate(tuned, self.config)
        if settings.condition:
            spec = conditioned(spec, len(tuned))
        agent = agents.make(self.agent, spec)
        learned = self.learned
        return tune(agent, spec, tuned, settings, learned=learned, env=env), env

    def _check_evaluation(self) -> None:
        check_range(self, "eval_episodes", low=1, high=INT32)
        if self.eval_every is not None:
            check_range(self, "eval_every", low=1)
        elif self.stop_at is not None:
            raise ValueError(f"stop_at={self.stop_at}: needs eval_every")
        if self.stop_at is not None and not math.isfinite(self.stop_at):
            raise ValueError(f"stop_at={self.stop_at}: must be finite")

    def tuned(self) -> dict[str, Parameter]:
        """The tuned fields, and how each hangs on the raw numbers."""
        return parse_parameters(self.meta, self.config)

    def named(self) -> "Run":
        """The run with each field by its name that `all` stands for."""
        if "all" not in self.meta:
            return self
        check_config(self.agent, self.config)
        check_numbers(self.meta_settings)
        env = envs.make(self.env, **self.env_params)
        found = tunable(
            agents.make(self.agent, env.spec),
            env,
            self.config,
            self.meta_settings,
            learned=self.learned,
        )
        others = [text for text in self.meta if text != "all"]
        told = {text.partition("=")[0] for text in others}
        meta = (*(name for name in found if name not in told), *others)
        if not (meta or self.learned):
            raise ValueError("all: no field with a declared range changes the score")
        return dataclasses.replace(self, meta=meta)

    @property
    def learned(self) -> tuple[str, ...]:
        """The networks that are learned: of `shaping.LEARNED`."""
        asked = {"reward": self.meta_reward, "target": self.meta_target}
        return tuple(name for name, wanted in asked.items() if wanted)

    def shard(self) -> Any:
        """The config of one of the devices that a run is split over."""
        return sharding.share(self.config, self.data_parallel)

    def keys(self) -> jax.Array:
        """A key per seed `[S]`, the one that `--seed` with its number alone gives.

        For runs that are split `[S, D]`, the same for all shards.
        """
        seeds = np.arange(self.seed, self.seed + self.seeds, dtype=np.uint32)
        keys = jax.vmap(jax.random.key)(seeds)
        return sharding.copies(keys, self.data_parallel) if self.is_split else keys

    @property
    def is_split(self) -> bool:
        """Whether arrays have an axis of shards after that of seeds."""
        return self.data_parallel > 1

    def chunks(self) -> Chunks:
        """The pieces: of their numbers near `rows` that which overshoots least."""
        iterations = train.num_iterations(self.config)
        most = min(self.rows, iterations)
        counts = range(most // 2 + 1, most + 1)
        count = min(counts, key=lambda n: (-iterations % n, -n))
        each = -(-iterations // count)
        per_iteration = train.steps_per_iteration(self.config)
        start = train.warm_up_iterations(self.config) * per_iteration
        return Chunks(count, each, start, each * per_iteration)

    def mesh(self) -> jax.sharding.Mesh | None:
        """Devices of runs that are split."""
        if not self.is_split:
            return None
        return sharding.split_mesh(self.seeds, self.data_parallel)

    def cpu_share(self) -> cpu.Share:
        """The devices and threads with which the run is fastest on CPU."""
        agent, env = self.build()
        parts, product = agent.parts, train.largest_product(env.spec, self.config)
        if self.is_split:  # its shards need a device each
            parts, product = self.data_parallel, None
        return cpu.share(hosts.cores(), runs=self.seeds, parts=parts, product=product)

    def at_once(self) -> int:
        """Count the seeds that `map_runs` vmaps together on CPU."""
        _, env = self.build()
        return train.runs_at_once(env.spec, self.shard())

    def map_runs(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Map a function of one seed's shard over seeds, always on the same devices."""
        agent, _ = self.build()
        return sharding.map_runs(function, self.at_once(), agent.parts, self.mesh())

    def placement(self) -> jax.sharding.NamedSharding:
        """The devices on which `map_runs` leaves its results."""
        agent, _ = self.build()
        return sharding.placement(self.seeds, agent.parts, self.mesh())

    def of_seeds(self, array: np.ndarray) -> np.ndarray:
        """A result that is the same for all shards, `[S, ...]`."""
        return array[:, 0] if self.is_split else array

    def first_state(self, states: TrainState) -> TrainState:
        """The state of the first seed, of its first shard."""
        place = (0, 0) if self.is_split else 0
        return jax.tree.map(lambda x: x[place], states)

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and places of `initial_state`, for a program to compile."""
        shapes = jax.eval_shape(self.initial_state(), self.keys())
        place = self.placement()
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
        )

    def initial_state(self) -> Callable[[jax.Array], TrainState]:
        """Function from `keys()` to the state at the start, a leading axis per seed."""
        agent, env = self.build()
        return self.map_runs(lambda key: train.init(agent, env, self.shard(), key))

    def sources(self) -> dict[str, str]:
        """SHA-256 of the files that hold own code or a rule's numbers, by path."""
        texts = [self.agent, self.env, *vars(self.config).values()]
        places = {x.partition(":")[0] for x in texts if isinstance(x, str)}
        return {
            place: hashlib.sha256(Path(place).read_bytes()).hexdigest()
            for place in sorted(places)
            if place.endswith((".py", ".npz")) and Path(place).is_file()
        }

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
    """Describe the run in its folder."""
    data = run.to_json() | {"sources": run.sources()}
    write_text(folder / CONFIG_FILE, json.dumps(data, indent=2) + "\n")


def read_run(folder: Path) -> Run:
    """Read what `write_run` wrote; say which files have changed since.

    Raises:
      ValueError: no run there, or its description is damaged.
    """
    path = folder / CONFIG_FILE
    try:
        data = json.loads(path.read_text())
        _check_agent(path, data["agent"])
        sources = data.pop("sources", {})
        run = Run.from_json(data)
    except _NoAgent:
        raise
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: no run here ({CONFIG_FILE} is missing)") from error
    except NotADirectoryError as error:
        raise ValueError(f"{folder}: not a folder") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged or of another version: {error}") from error
    for place, digest in run.sources().items():
        if sources.get(place, digest) != digest:
            print(f"note: {place} has changed since the run began", file=sys.stderr)
    return run


class _NoAgent(ValueError):
    """The agent that a run names is not to be had."""


def _check_agent(path: Path, name: str) -> None:
    """Raise where a run's agent, perhaps a user's own, cannot be loaded."""
    try:
        agents.get(name)
    except ValueError as error:
        raise _NoAgent(f"{path}: {error}") from error


def as_recorded(options: Any) -> Any:
    """Return a dataclass whose references hold in every folder: `loading.recorded`."""
    return dataclasses.replace(
        options,
        **{
            field.name: loading.recorded(value)
            for field in dataclasses.fields(options)
            if isinstance(value := getattr(options, field.name), str)
            and loading.is_reference(value)
        },
    )


def short(name: str) -> str:
    """Return an agent's or environment's name, a file without its folder.

    Example:
      >>> short("/home/me/maze.py:Maze"), short("my.module:make_env"), short("brax/ant")
      ('maze.py:Maze', 'my.module:make_env', 'brax/ant')
    """
    place, colon, path = name.partition(":")
    return (Path(place).name if place.endswith(".py") else place) + colon + path


def in_file_names(name: str) -> str:
    """Return an agent's or environment's name as it can stand in the name of a file.

    Example:
      >>> in_file_names("/home/me/maze.py:Maze"), in_file_names("brax/ant")
      ('maze-Maze', 'brax-ant')
    """
    return re.sub(r"[^\w.-]+", "-", short(name).replace(".py", ""))


def restore_state(folder: Path, run: Run, *, best: bool = False) -> TrainState:
    """A checkpoint of a run, `[S, ...]`, or `[S, D, ...]` where it is split.

    Args:
      folder: the run's.
      run: the run.
      best: the one with the best evaluation, in place of the latest.

    Raises:
      ValueError: no evaluation has chosen the best one.
      CheckpointError: missing, damaged or of another run.
    """
    if best and latest(folder / BEST) is None:
        raise ValueError(f"{folder}: no best checkpoint; --eval-every keeps one")
    like = jax.eval_shape(run.initial_state(), run.keys())
    state = restore(folder / (BEST if best else CHECKPOINTS), like)
    if hosts.several():
        return state
    return jax.device_put(state, run.placement())  # where its programs look for it


def latest_step(folder: Path) -> int | None:
    """Environment steps per seed at the latest checkpoint."""
    return latest(folder / CHECKPOINTS)


def evaluation(
    run: Run, episodes: int, explore: bool = False
) -> Callable[[TrainState, jax.Array], jax.Array]:
    """Make the jitted function from states and `run.keys()` to returns of policies."""
    agent, env = run.build()

    def returns(ts: TrainState, key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, EVALUATION)
        return evaluate(
            agent, env, run.shard(), ts, key, episodes, explore=explore
        ).returns

    return jax.jit(run.map_runs(returns))


def evaluate_run(
    run: Run,
    states: TrainState,
    program: Callable[[TrainState, jax.Array], jax.Array],
) -> np.ndarray:
    """Returns `[S, episodes]` of final policies, as `evaluation` made the program."""
    return run.of_seeds(hosts.to_host(program(states, run.keys())))


def summary(returns: np.ndarray) -> str:
    """One line about evaluation returns `[S, episodes]`."""
    seeds, episodes = returns.shape
    spread = f", {returns.mean(axis=1).min():.1f} to {returns.mean(axis=1).max():.1f}"
    return (
        f"evaluation: mean return {returns.mean():.1f} over {episodes} episodes"
        f"{f' of each of {seeds} seeds{spread}' if seeds > 1 else ''}"
    )


def read_metrics(folder: Path, run: Run) -> dict[str, np.ndarray]:
    """The metrics of a run that may still write: the rows of complete steps.

    Raises:
      ValueError: there are none yet, or the file is damaged.
    """
    path = folder / METRICS_FILE
    if not path.exists() or b"\n" not in path.read_bytes():
        raise ValueError(f"{folder}: no rows yet")
    table = read_csv(path)
    for name in ("step", "seed"):
        if name not in table:
            raise ValueError(f"{path}: no column {name!r}")
    table = complete(table, run)
    if not table["step"].size:
        raise ValueError(f"{folder}: no rows yet")
    return table


def complete(table: dict[str, np.ndarray], run: Run) -> dict[str, np.ndarray]:
    """The rows of steps that have one of each seed."""
    _, step, rows = np.unique(table["step"], return_inverse=True, return_counts=True)
    kept = rows[step] == run.seeds
    return {name: column[kept] for name, column in table.items()}


def curve(
    table: dict[str, np.ndarray], name: str = "episode_return"
) -> tuple[np.ndarray, np.ndarray]:
    """Steps `[R]` and a metric `[S, R]` from a table of complete steps."""
    steps, seeds = np.unique(table["step"]), np.unique(table["seed"])
    values = table[name].reshape(len(steps), len(seeds)).T
    return steps, np.asarray(values, float)


def score(*tables: dict[str, np.ndarray]) -> tuple[str, str]:
    """The label of learning curves, and the metric: rewards where no episode ended."""
    ended = any(np.isfinite(table["episode_return"]).any() for table in tables)
    if ended or not all("reward" in table for table in tables):
        return "Episode return", "episode_return"
    return "Reward per step", "reward"


def agent_and_rest(argv: list[str], description: str) -> tuple[str, list[str]]:
    """The agent's name, first on the command line, and the words after it.

    A reference to an agent's file holds in every folder. Without a name, prints what
    there is and exits.

    Raises:
      ValueError: unknown agent.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(description.strip())
        print(f"\nagents: {', '.join(agents.names())}")
        print(f"\nenvironments: {', '.join(envs.names())}")
        print("\nyour own: as my.module or path/to/agent.py, and with an environment's")
        print("object as my.module:make_env or path/to/file.py:make_env")
        print("\nAGENT --help lists all options, with the agent's defaults.")
        sys.exit(0 if argv else 2)
    agents.get(argv[0])
    return loading.recorded(argv[0]), argv[1:]


def word(argv: list[str], option: str, default: str) -> str:
    """The word after an option, or after its equals sign; for defaults to depend on."""
    for i, text in enumerate(argv):
        if text.startswith(option + "="):
            return text.partition("=")[2]
        if text == option and i + 1 < len(argv):
            return argv[i + 1]
    return default


def pairs(argv: list[str], option: str) -> dict[str, str]:
    """The NAME VALUE pairs after an option, the last if it is there more than once."""
    found: dict[str, str] = {}
    for i, text in enumerate(argv):
        if text.replace("_", "-") == option:
            words = itertools.takewhile(lambda x: not x.startswith("--"), argv[i + 1 :])
            words = list(words)
            found = dict(zip(words[::2], words[1::2], strict=False))
    return found


def config_for(agent: str, env: str, env_params: dict[str, Any]) -> Any:
    """The agent's default config for an environment with these parameters.

    Where its preset is for others, one line says so. Parameters that the preset brings
    are among them.
    """
    env_params = agents.env_params_for(agent, env, env_params)
    note = agents.other_preset(agent, env, env_params)
    if note:
        print(f"note: {note}", file=sys.stderr)
    return agents.config_for(agent, env, env_params)


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
    except NameError as error:  # of an annotation, a text that leads to nothing
        raise ValueError(f"{prog}: types of the config's fields: {error}") from error
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


def with_values(pairs: dict[str, str]) -> dict[str, float | int | bool | str]:
    """Read the values of `--env-params`: numbers, True or False, any other text.

    Raises:
      ValueError: a number that is not finite or does not fit 32 bits.
    """
    values: dict[str, float | int | bool | str] = {}
    for name, text in pairs.items():
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if not isinstance(value, bool | int | float):
            values[name] = text
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={text}: must be finite")
        _check_number(name, value)
        values[name] = value
    return values


def check_seeds(seed: int, seeds: int = 1) -> None:
    """Raise unless all seeds are those of a key.

    Raises:
      ValueError: names what is out of range.
    """
    if not 0 <= seed <= UINT32:
        raise ValueError(f"seed={seed}: must be in [0, {UINT32}]")
    if seed + seeds - 1 > UINT32:
        last = f"the last one is {seed + seeds - 1}, must be at most {UINT32}"
        raise ValueError(f"seed={seed}, seeds={seeds}: {last}")


def key(seed: int) -> jax.Array:
    """The key of a seed below 2**32."""
    return jax.random.key(np.uint32(seed))


def check_config(agent: str, config: Any) -> None:
    """Raise unless an agent's config is in range and can be written down.

    Raises:
      ValueError: names the field, its value and what is allowed; also of an own config
        that fails to tell.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _is_plain(value):
            kind = type(value).__name__
            raise ValueError(
                f"agent {short(agent)}: Config: {field.name} is {kind}, expected a "
                "number, a text, None or a tuple of these, for which there is room in "
                f"{CONFIG_FILE}"
            )
    check_numbers(config)
    try:
        config.validate()
    except ValueError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        message = f"agent {short(agent)}: Config.validate failed: {what}"
        raise ValueError(message) from error


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def check_numbers(options: Any) -> None:
    """Raise where a number of a dataclass does not fit the 32 bits of a device.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                _check_number(field.name, number)


def _check_number(name: str, value: float | int) -> None:
    if isinstance(value, int):
        high = _LIMITS.get(name, INT32)
    else:
        high = float(np.finfo(np.float32).max)
    if (isinstance(value, int) or math.isfinite(value)) and abs(value) > high:
        raise ValueError(f"{name}={value}: must be in [{-high}, {high}]")
