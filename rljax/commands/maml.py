"""MAML for policies: learn parameters that adapt to a new task in a few steps.

    rljax maml --tasks tabular
    rljax maml --tasks cartpole --config.first-order

Each update draws tasks, environments whose parameters differ, adapts the policy to
each, and moves what they all started from so that the adapted policies get better. In
the end it adapts to tasks that it has not seen. Finn et al. (2017),
https://arxiv.org/abs/1703.03400.
"""

import contextlib
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rljax import config as cfg
from rljax import networks
from rljax.commands import common, folders
from rljax.envs import tasks
from rljax.meta import maml
from rljax.running.logging import CsvSink

PRESETS: dict[str, dict[str, Any]] = {
    "cartpole": dict(num_tasks=20, rollout_length=100),
}


def options_type(tasks_name: str) -> type:
    """The command line's dataclass: its defaults depend on the tasks."""
    defaults = maml.Config(**PRESETS.get(tasks_name, {}))

    @dataclasses.dataclass(frozen=True)
    class Options:
        tasks: str = tasks_name
        """distribution of tasks: cartpole or tabular"""
        iterations: int = 500
        """updates of the initial parameters"""
        hidden_sizes: tuple[int, ...] = (32, 32)
        """layers that policy and value share"""
        test_tasks: int = 200
        """unseen tasks to adapt to in the end"""
        seed: int = 0
        """of tasks, parameters and actions"""
        rows: int = 10
        """lines of progress, at most"""
        out: Path | None = None
        """CSV with a line per update"""
        config: type(defaults) = defaults  # pyright: ignore[reportInvalidTypeForm]
        """hyperparameters"""

        def validate(self) -> None:
            counts = ("iterations", "test_tasks", "rows")
            cfg.check_range(self, *counts, low=1, high=common.INT32)
            common.check_seeds(self.seed)
            common.check_numbers(self.config)
            cfg.check_sizes(self, "hidden_sizes")
            self.config.validate()

    return Options


def learn(options: Any, network: Any, draw_task: maml.DrawTask) -> maml.MamlState:
    """Update in chunks of one program; print and write down what comes out."""
    config, total = options.config, options.iterations
    state = maml.init(network, config, draw_task, common.key(options.seed))
    rows = max(n for n in range(1, options.rows + 1) if total % n == 0)
    run = jax.jit(lambda s: maml.run(network, config, draw_task, s, total // rows))
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(CsvSink(options.out)) if options.out else None
        for done in range(total // rows, total + 1, total // rows):
            state, metrics = run(state)
            metrics = {name: np.asarray(column) for name, column in metrics.items()}
            for i in range(total // rows):
                row = {name: float(column[i]) for name, column in metrics.items()}
                if sink:
                    sink.write({"iteration": done - total // rows + i + 1, **row})
            before, after = (metrics[x].mean() for x in ("return", "adapted_return"))
            print(
                f"{options.tasks}: {done} of {total} updates, return {before:.2f}, "
                f"adapted {after:.2f}, {time.monotonic() - begin:.0f} s",
                flush=True,
            )
    return state


def test(options: Any, network: Any, draw_task: maml.DrawTask, params: Any) -> None:
    """Adapt to unseen tasks and print the returns, with the standard errors."""
    key = jax.random.fold_in(common.key(options.seed), common.EVALUATION)
    task_key, play_key = jax.random.split(key)
    drawn = jax.vmap(draw_task)(jax.random.split(task_key, options.test_tasks))
    keys = jax.random.split(play_key, options.test_tasks)
    adapted = functools.partial(maml.task_loss, network, options.config, params)
    _, metrics = jax.jit(jax.vmap(adapted))(drawn, keys)
    before, after = (np.asarray(metrics[x]) for x in ("return", "adapted_return"))

    def say(name: str, per_task: np.ndarray) -> None:
        error = per_task.std() / len(per_task) ** 0.5
        print(f"{name:24}{per_task.mean():9.2f} +- {error:.2f}")

    print(f"mean return over {options.test_tasks} unseen tasks")
    say("initial policy", before)
    say("adapted policy", after)
    say("gain", after - before)
    if options.tasks == "tabular":
        optimum = jax.vmap(lambda env: tasks.tabular_optimum(env.env.params))
        best = np.asarray(optimum(drawn))
        say("optimum of each task", best)
        say("gap of the adapted one", best - after)


def main(argv: list[str], prog: str) -> None:
    """Learn, then test."""
    options_class = options_type(common.word(argv, "--tasks", "tabular"))
    options = common.parse(options_class, argv, __doc__ or "", prog)
    options.validate()
    if options.out:
        folders.check_output(options.out)
    draw_task = tasks.tasks(options.tasks)
    spec = jax.eval_shape(draw_task, jax.random.key(0)).spec
    sizes = options.hidden_sizes
    body = networks.Body(obs=spec.obs, hidden_sizes=sizes, activation="relu")
    network = networks.ActorCritic(body=body, action=spec.action)
    test(options, network, draw_task, learn(options, network, draw_task).params)
