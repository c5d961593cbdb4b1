"""Sweep hyperparameters in one program, over seeds, and rank the results.

`rljax sweep ppo --env CartPole-v1 --seeds 4 --vary learning_rate=1e-4,1e-3`

Runs go in groups. With --out the results of each group are written when it is done, and
the same command goes on where it was stopped. --samples draws configurations at random;
--search stops the worse ones early, lets them copy the better ones, or asks Optuna.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from rljax import agents, loading
from rljax.commands import common
from rljax.commands.sweeps import searches, space
from rljax.commands.sweeps.groups import Sweep, fitting_program, group_size
from rljax.config import check_range
from rljax.running import hosts

__all__ = ["Sweep", "fitting_program", "group_size", "main", "parse_command_line"]


def options_type(agent: str, env_name: str, env_params: dict[str, Any]) -> type:
    """The command line's dataclass: its defaults depend on agent and environment."""
    defaults = common.config_for(agent, env_name, env_params)

    @dataclasses.dataclass(frozen=True)
    class Options:
        vary: tuple[str, ...]
        """NAME=VALUE,VALUE,... for each field of the config to vary; a tuple as 64+64;
        for floats to draw NAME=log:LOW,HIGH or NAME=uniform:LOW,HIGH"""
        env: str = env_name
        """environment's name, or your own as my.module:make_env or file.py:make_env"""
        env_params: dict[str, str] = dataclasses.field(default_factory=dict)
        """parameters of the environment: NAME VALUE pairs"""
        search: Literal["full", "halving", "pbt", "optuna"] = "full"
        """full: every combination to the end; halving: the better ones for longer;
        pbt: a population, the worse go on from the better; optuna: as Optuna asks"""
        samples: int | None = None
        """configurations to draw at random, members of a population, or Optuna's
        trials; by default every combination is run"""
        search_seed: int = 0
        """number that the draws follow from"""
        eta: int | None = None
        """of halving: one of so many combinations goes on after each rung; 3 by
        default"""
        rounds: int | None = None
        """rungs of halving, 3 by default; chunks of pbt, 20 by default"""
        storage: str | None = None
        """URL of Optuna's storage, which processes can share and go on with"""
        seeds: int = 2
        """seeds per combination"""
        seed: int = 0
        """number of the first seed"""
        steps: int | None = None
        """environment steps of each run, in place of config.total_steps"""
        episodes: int = 128
        """evaluation episodes of each run"""
        top: int = 0
        """best combinations to train again, with as many fresh seeds"""
        out: Path | None = None
        """CSV of all runs, written group by group"""
        picture: bool = False
        """also draw the score against each varied field, beside --out"""
        at_once: int | None = None
        """runs of one group, trained at once; by default as many as keep all devices
        busy and fit in their memory"""
        distributed: bool = False
        """one of several processes of this command, which share the runs"""
        config: type(defaults) = defaults  # pyright: ignore[reportInvalidTypeForm]
        """the agent's hyperparameters, the same for all runs"""

        def validate(self) -> None:
            check_range(self, "episodes", low=1, high=common.INT32)
            check_range(self, "search_seed", low=0, high=common.UINT32)
            check_range(self, "top", low=0, high=common.INT32)
            for name in ("at_once", "samples"):
                if getattr(self, name) is not None:
                    check_range(self, name, low=1, high=common.INT32)
            common.check_seeds(self.seed, self.seeds * (2 if self.top else 1))
            for name in ("eta", "rounds"):
                if getattr(self, name) is not None:
                    check_range(self, name, low=2, high=common.INT32)
            check_search(self)
            if self.picture and self.out is None:
                raise ValueError("--picture: needs --out, which it stands beside")

    return Options


def check_search(options: Any) -> None:
    """Raise where options do not fit the search.

    Raises:
      ValueError: names an option, and what it needs.
    """
    search = options.search
    if search != "full" and hosts.several():
        raise ValueError(f"--search {search}: runs in one process, not --distributed")
    if search in ("pbt", "optuna") and options.samples is None:
        raise ValueError(f"--search {search}: needs --samples")
    if search == "pbt" and options.samples < 4:
        least = "must be at least 4, so that a quarter is one"
        raise ValueError(f"samples={options.samples}: {least}")
    if search == "pbt" and (options.top or options.picture):
        text = "members change their values on the way"
        raise ValueError(f"--search pbt: has no --top and no --picture: {text}")
    if options.rounds is not None and search not in ("halving", "pbt"):
        raise ValueError(f"--rounds {options.rounds}: is of --search halving and pbt")
    if options.eta is not None and search != "halving":
        raise ValueError(f"--eta {options.eta}: is of --search halving")
    if options.storage is not None and search != "optuna":
        raise ValueError(f"--storage {options.storage}: is of --search optuna")


def parse_command_line(argv: list[str], prog: str) -> tuple[Sweep, Any]:
    """Read the command line into what to run and how."""
    sweep, _, options = parsed(argv, prog)
    return sweep, options


def parsed(argv: list[str], prog: str) -> tuple[Sweep, space.Space, Any]:
    """Read the command line into a sweep, the values of its fields, and options."""
    agent, argv = common.agent_and_rest(argv, __doc__ or "")
    env_params = common.with_values(common.pairs(argv, "--env-params"))
    env = common.word(argv, "--env", "CartPole-v1")
    options_class = options_type(agent, env, env_params)
    argv = with_one_vary(argv)
    options = common.parse(options_class, argv, __doc__ or "", f"{prog} {agent}")
    options.validate()
    config = common.as_recorded(options.config)
    if options.steps is not None:
        config = dataclasses.replace(config, total_steps=options.steps)
    varied = space.parse(options.vary, config)
    if options.search == "optuna":
        rows = []
    elif options.samples is None:
        rows = space.grid(varied)
    else:
        rows = space.draw(varied, options.samples, options.search_seed)
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
    sweep = Sweep(
        run=run,
        names=[field.name for field in varied],
        rows=rows,
        episodes=options.episodes,
        search=settings(options),
    )
    check(sweep, varied, options)
    return sweep, varied, options


def settings(options: Any) -> dict[str, Any]:
    """Name all that the results depend on beside the configurations."""
    if options.search == "halving":
        return {"name": "halving", **searches.ladder(options)._asdict()}
    return {"name": options.search}


def check(sweep: Sweep, varied: space.Space, options: Any) -> None:
    """Raise unless every configuration that there may be is in range.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    search = options.search
    if search == "pbt":
        choices = [field.name for field in varied if isinstance(field, space.Choices)]
        if choices:
            raise ValueError(
                f"--search pbt: {choices[0]}: needs a range, log:LOW,HIGH or "
                "uniform:LOW,HIGH, in which a value can move"
            )
        searches.chunks(options, sweep.run.config)
    corners = dataclasses.replace(sweep, rows=space.corners(varied))
    checked = corners if search == "optuna" else sweep
    for part in (checked, corners) if search == "pbt" else (checked,):
        for configuration in range(len(part.rows)):
            config = part.run_of(configuration).config
            common.check_config(sweep.run.agent, config)
            if search == "halving":
                searches.ladder(options).check(config)


def with_one_vary(argv: list[str]) -> list[str]:
    """Gather the words of every `--vary` under one, of which the parser takes the last.

    Example:
      >>> with_one_vary(["--vary", "a=1,2", "--seeds", "3", "--vary=b=x,y"])
      ['--seeds', '3', '--vary', 'a=1,2', 'b=x,y']
    """
    rest, gathered, varies = [], [], False
    for word in argv:
        if word.startswith("--"):
            varies = word == "--vary"
        if word.startswith("--vary="):
            gathered.append(word.removeprefix("--vary="))
        elif word == "--vary":
            continue
        elif varies:
            gathered.append(word)
        else:
            rest.append(word)
    return [*rest, "--vary", *gathered] if gathered else argv


def main(argv: list[str], prog: str) -> None:
    """Search, rank, report."""
    sweep, varied, options = parsed(argv, prog)
    if options.search == "pbt":
        searches.with_population(sweep, varied, options)
    elif options.search == "optuna":
        searches.with_optuna(sweep, varied, options)
    else:
        searches.with_rows(sweep, options)
