"""Sweep hyperparameters in one program, over seeds, and rank the results.

`rljax sweep ppo --env CartPole-v1 --seeds 4 --vary learning_rate=1e-4,1e-3`

Runs go in groups. With --out the results of each group are written when it is done, and
the same command goes on where it was stopped.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax import agents, loading
from rljax.commands import common, folders
from rljax.commands.looking import look
from rljax.config import as_arrays, check_range
from rljax.running import hosts, sharding, train
from rljax.running.evaluate import evaluate
from rljax.running.logging import read_csv

IDENTITY = "sweep"  # column that tells the sweep, by a number


def options_type(agent: str, env_name: str, env_params: dict[str, Any]) -> type:
    """The command line's dataclass: its defaults depend on agent and environment."""
    defaults = common.config_for(agent, env_name, env_params)

    @dataclasses.dataclass(frozen=True)
    class Options:
        vary: tuple[str, ...]
        """NAME=VALUE,VALUE,... for each float of the config to vary"""
        env: str = env_name
        """environment's name, or your own as my.module:make_env or file.py:make_env"""
        env_params: dict[str, str] = dataclasses.field(default_factory=dict)
        """parameters of the environment: NAME VALUE pairs"""
        seeds: int = 2
        """seeds per combination"""
        seed: int = 0
        """number of the first seed"""
        steps: int | None = None
        """environment steps of each run, in place of config.total_steps"""
        episodes: int = 128
        """evaluation episodes of each run"""
        out: Path | None = None
        """CSV of all runs, written group by group"""
        at_once: int | None = None
        """runs of one group, trained at once; by default as many as keep all devices
        busy and fit in their memory"""
        distributed: bool = False
        """one of several processes of this command, which share the runs"""
        config: type(defaults) = defaults  # pyright: ignore[reportInvalidTypeForm]
        """the agent's hyperparameters, the same for all runs"""

        def validate(self) -> None:
            check_range(self, "episodes", low=1, high=common.INT32)
            if self.at_once is not None:
                check_range(self, "at_once", low=1, high=common.INT32)

    return Options


def combinations(vary: tuple[str, ...], config: Any) -> tuple[list[str], np.ndarray]:
    """Names of the varied fields, and their combinations `[C, names]`.

    Raises:
      ValueError: not NAME=VALUES, or not a float field of the config.
    """
    fields = dataclasses.fields(config)
    floats = [f.name for f in fields if not f.metadata.get("static")]
    grids = {}
    for word in vary:
        name, _, values = word.partition("=")
        if name not in floats:
            raise ValueError(f"--vary {word}: can vary {', '.join(floats)}")
        try:
            grids[name] = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise ValueError(f"--vary {word}: expected NAME=VALUE,VALUE") from error
        if len(set(grids[name])) < len(grids[name]):
            raise ValueError(f"--vary {word}: a value is there twice")
    if not vary:
        raise ValueError(f"--vary: name at least one of {', '.join(floats)}")
    if len(grids) < len(vary):
        raise ValueError(f"--vary {' '.join(vary)}: a name is there twice")
    return list(grids), np.array(list(itertools.product(*grids.values())))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep. Its runs are numbered, those of a combination one after another.

    Results map such a number to a run's mean return.
    """

    run: common.Run
    names: list[str]
    grid: np.ndarray  # [C, names]
    episodes: int

    def __len__(self) -> int:
        """The number of runs."""
        return len(self.grid) * self.run.seeds

    def inputs(self, numbers: list[int]) -> tuple[jax.Array, jax.Array]:
        """Values `[R, names]` and keys `[R]` of runs."""
        combination, seed = np.divmod(np.array(numbers), self.run.seeds)
        return jnp.asarray(self.grid[combination], jnp.float32), self.run.keys()[seed]

    def identity(self) -> int:
        """A number of all that the results depend on."""
        what = self.run.to_json() | {"episodes": self.episodes}
        what |= {"names": self.names, "grid": self.grid.tolist()}
        what |= self.run.sources()
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
        return int(digest.hexdigest()[:12], 16)

    def columns(self) -> list[str]:
        """Of the CSV."""
        return [*self.names, "seed", "return", IDENTITY]

    def write(self, path: Path, results: dict[int, Any], order: list[int]) -> None:
        """Write the results of runs, in some order."""
        text, identity = io.StringIO(), self.identity()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns())
        for number in order:
            combination, seed = divmod(number, self.run.seeds)
            cells = [self.run.seed + seed, results[number], identity]
            writer.writerow([*self.grid[combination], *cells])
        folders.write_text(path, text.getvalue())

    def read(self, path: Path) -> dict[int, Any]:
        """The results that were written; none where there is no file.

        Raises:
          ValueError: they are of another sweep.
        """
        if not path.exists() or not path.stat().st_size:
            return {}
        table = read_csv(path)
        same = list(table) == self.columns() and np.all(
            table[IDENTITY] == self.identity()
        )
        if not same:
            raise ValueError(f"{path}: holds another sweep; choose another --out")
        seeds, found = self.run.seeds, {}
        for *values, seed, score, _ in zip(*table.values(), strict=True):
            combination = int(np.argmax((self.grid == values).all(axis=1)))
            number = combination * seeds + int(seed) - self.run.seed
            found[number] = np.float32(score)
        return found


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


def program(sweep: Sweep, size: int) -> jax.stages.Compiled:
    """Compile the training and evaluation of a group of runs.

    It maps their `inputs` to returns `[R, episodes]`.
    """
    (agent, env), config = sweep.run.build(), sweep.run.config

    def one(values: jax.Array, key: jax.Array) -> jax.Array:
        fields = {name: values[i] for i, name in enumerate(sweep.names)}
        varied = dataclasses.replace(as_arrays(config), **fields)
        ts, _ = train.train(agent, env, varied, key)
        key = jax.random.fold_in(key, common.EVALUATION)
        return evaluate(agent, env, varied, ts, key, sweep.episodes).returns

    return jax.jit(sweep.run.map_runs(one)).lower(*sweep.inputs([0] * size)).compile()


def fitting_program(sweep: Sweep, size: int) -> tuple[jax.stages.Compiled, int]:
    """The program of a group of so many runs, or of fewer that fit in memory.

    Args:
      sweep: the sweep.
      size: runs of a group.

    Returns:
      The program, and the number of runs that it takes.
    """
    devices = len(jax.devices())
    while True:
        compiled = program(sweep, size)
        needed = sharding.bytes_needed(compiled)
        there = hosts.agree(sharding.bytes_of_a_device())
        if size <= devices or needed <= there:
            return compiled, size
        runs_each = size // devices
        fewer = min(runs_each - 1, runs_each * there // needed)
        size = max(1, fewer) * devices


def compute(
    sweep: Sweep, results: dict[int, Any], size: int | None, out: Path | None
) -> dict[int, Any]:
    """All results: those given, and those of the runs that are left."""
    total = len(sweep)
    of = f"{common.short(sweep.run.agent)} {common.short(sweep.run.env)}"

    def keep() -> None:
        if out:
            order = sorted(results)
            hosts.on_primary(functools.partial(sweep.write, out, results, order))
        seconds = f"{time.monotonic() - begin:.1f} s"
        done = f"{len(results)} of {total} runs, {seconds}"
        print(f"{of}: {done}", file=sys.stderr, flush=True)

    begin = time.monotonic()
    keep()
    left = [number for number in range(total) if number not in results]
    if not left:
        return results
    if size is None:
        size = group_size(total, sweep.run.at_once())
        mapped, size = fitting_program(sweep, size)
    else:
        mapped = program(sweep, size)
    for start in range(0, len(left), size):
        group = left[start : start + size]
        padded = group + group[:1] * (size - len(group))  # one program for all groups
        returns = hosts.to_host(mapped(*sweep.inputs(padded))).mean(axis=1)
        results = results | dict(zip(group, returns, strict=False))
        keep()
    return results


def report(sweep: Sweep, results: dict[int, Any], out: Path | None) -> None:
    """Print the combinations by mean return, best first; write the runs so."""
    seeds = sweep.run.seeds
    returns = np.array([results[i] for i in range(len(sweep))]).reshape(-1, seeds)
    order = np.argsort(-returns.mean(axis=1))
    titles = [f"{name:>14}" for name in sweep.names]
    print(*titles, f"{'return':>10} {'min':>10} {'max':>10}")
    for i in order:
        row = returns[i]
        cells = [f"{value:14.6g}" for value in sweep.grid[i]]
        print(*cells, f"{row.mean():10.1f} {row.min():10.1f} {row.max():10.1f}")
    if out:
        ranked = [i * seeds + j for i in order for j in range(seeds)]
        hosts.on_primary(functools.partial(sweep.write, out, results, ranked))
        print(f"all runs: {out}")


def parse_command_line(argv: list[str], prog: str) -> tuple[Sweep, Any]:
    """Read the command line into what to run and how."""
    agent, argv = common.agent_and_rest(argv, __doc__ or "")
    env_params = common.with_values(common.pairs(argv, "--env-params"))
    env = common.word(argv, "--env", "CartPole-v1")
    options_class = options_type(agent, env, env_params)
    options = common.parse(options_class, argv, __doc__ or "", f"{prog} {agent}")
    options.validate()
    config = common.as_recorded(options.config)
    if options.steps is not None:
        config = dataclasses.replace(config, total_steps=options.steps)
    names, grid = combinations(options.vary, config)
    for values in grid:
        varied = dataclasses.replace(config, **dict(zip(names, values, strict=True)))
        common.check_config(agent, varied)
    env, params = loading.recorded(options.env), common.with_values(options.env_params)
    run = common.Run(
        agent=agent,
        env=env,
        env_params=agents.env_params_for(agent, env, params),
        seeds=options.seeds,
        seed=options.seed,
        rows=1,
        config=config,
    )
    return Sweep(run, names, grid, options.episodes), options


def claimed(sweep: Sweep, out: Path, stack: contextlib.ExitStack) -> dict[int, Any]:
    """Lock the file for as long as the stack is open; the results that it holds."""

    def claim() -> list[tuple[int, float]]:
        folders.check_output(out, ",".join(sweep.names).encode())
        stack.enter_context(folders.lock(out.with_name(f".{out.name}.lock"), out))
        return [(number, float(score)) for number, score in sweep.read(out).items()]

    pairs = hosts.agree(hosts.on_primary(claim))
    return {number: np.float32(score) for number, score in pairs or ()}


def main(argv: list[str], prog: str) -> None:
    """One program for all groups of runs; then the table."""
    sweep, options = parse_command_line(argv, prog)
    hosts.on_primary(lambda: look(sweep.run))
    size = min(options.at_once, len(sweep)) if options.at_once else None
    begin, out, found = time.monotonic(), options.out, {}
    with contextlib.ExitStack() as stack:
        if out:
            found = claimed(sweep, out, stack)
        results = compute(sweep, found, size, out)
        report(sweep, results, out)
    runs, config = len(sweep) - len(found), sweep.run.config
    steps = runs * train.num_iterations(config) * train.steps_per_iteration(config)
    print(f"{runs} runs, {steps:,} steps, {time.monotonic() - begin:.1f} s")
