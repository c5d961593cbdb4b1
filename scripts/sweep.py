"""Sweep hyperparameters in one program, over seeds, and rank the results.

`python scripts/sweep.py ppo --env CartPole-v1 --seeds 4 --vary learning_rate=1e-4,1e-3`
"""

import csv
import dataclasses
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from rljax import agents, train
from rljax.config import as_arrays
from rljax.evaluate import evaluate


def options_type(agent: str, env_name: str) -> type:
    """The command line's dataclass: its defaults depend on agent and environment."""
    defaults = agents.config_for(agent, env_name)

    @dataclasses.dataclass(frozen=True)
    class Options:
        vary: tuple[str, ...]
        """NAME=VALUE,VALUE,... for each float of the config to vary"""
        env: str = env_name
        """environment name"""
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
        """CSV of all runs"""
        config: type(defaults) = defaults  # pyright: ignore[reportInvalidTypeForm]
        """the agent's hyperparameters, the same for all runs"""

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
    return list(grids), np.array(list(itertools.product(*grids.values())))


def report(
    names: list[str],
    grid: np.ndarray,
    returns: np.ndarray,
    first_seed: int,
    out: Path | None,
) -> None:
    """Print the combinations `[C, names]` by mean of `returns` `[C, S]`, best first."""
    order = np.argsort(-returns.mean(axis=1))
    print(*[f"{n:>14}" for n in names], f"{'return':>10} {'min':>10} {'max':>10}")
    for i in order:
        row = returns[i]
        cells = [f"{value:14.6g}" for value in grid[i]]
        print(*cells, f"{row.mean():10.1f} {row.min():10.1f} {row.max():10.1f}")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*names, "seed", "return"])
            for i, j in itertools.product(order, range(returns.shape[1])):
                writer.writerow([*grid[i], first_seed + j, returns[i, j]])
        print(f"all runs: {out}")


@common.one_line_errors
def main() -> None:
    """One program for all runs; then the table."""
    agent_name, argv = common.agent_and_rest(sys.argv[1:], __doc__ or "")
    options_class = options_type(agent_name, common.word(argv, "--env", "CartPole-v1"))
    options = common.parse(options_class, argv, __doc__ or "", "sweep.py " + agent_name)
    config = options.config
    if options.steps is not None:
        config = dataclasses.replace(config, total_steps=options.steps)
    names, grid = combinations(options.vary, config)
    for values in grid:
        dataclasses.replace(config, **dict(zip(names, values, strict=True))).validate()
    params = common.with_number_values(options.env_params)
    run = common.Run(
        agent_name, options.env, params, options.seeds, options.seed, 1, config
    )
    agent, env = run.build()

    def one(values: jax.Array, key: jax.Array) -> jax.Array:
        fields = {name: values[i] for i, name in enumerate(names)}
        varied = dataclasses.replace(as_arrays(config), **fields)
        ts, _ = train.train(agent, env, varied, key)
        key = jax.random.fold_in(key, common.EVALUATION)
        return evaluate(agent, env, varied, ts, key, options.episodes).returns

    begin = time.monotonic()
    values = jnp.repeat(jnp.asarray(grid, jnp.float32), options.seeds, axis=0)
    keys = jnp.tile(run.keys(), len(grid))
    returns = np.asarray(run.map_runs(one)(values, keys)).mean(axis=1)
    returns = returns.reshape(len(grid), options.seeds)
    report(names, grid, returns, options.seed, options.out)
    steps = (
        len(values) * train.num_iterations(config) * train.steps_per_iteration(config)
    )
    print(f"{len(values)} runs, {steps:,} steps, {time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
