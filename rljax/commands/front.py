"""The front door: finds the command, and sets up devices before jax starts.

Needs no jax itself, so that a list of the commands is there at once.
"""

import contextlib
import difflib
import functools
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import rljax
from rljax.commands.errors import one_line_errors

if TYPE_CHECKING:
    from rljax.running import cpu


class Command(NamedTuple):
    """A command; its module is `rljax.commands.NAME`, with `main(argv, prog)`."""

    text: str  # the line about it
    starts_jax: bool = True  # in this process
    on_hosts: bool = False  # runs in several processes with --distributed


COMMANDS = {
    "train": Command(
        "train an agent; a run folder holds metrics and checkpoints", on_hosts=True
    ),
    "evaluate": Command("play episodes with a trained run, draw one", on_hosts=True),
    "export": Command("write a trained policy as files that act without the run"),
    "plot": Command("compare the learning curves of runs in one picture"),
    "compare": Command("compare methods over seeds and tasks, with intervals"),
    "sweep": Command(
        "search hyperparameters in one program, rank the results", on_hosts=True
    ),
    "check-env": Command("try an environment and list its faults"),
    "benchmark": Command("measure speed, beside peers or a revision", starts_jax=False),
    "gradient-variance": Command("measure how much priorities help a gradient"),
    "maml": Command("learn a policy that adapts to a new task"),
    "meta-train": Command("learn an update rule for agents: LPG"),
}


NO_CACHE = "--no-cache"  # an option of every command


@one_line_errors
def main(prog: str = "rljax") -> None:
    """Run the command line of this process: a command and its arguments.

    Args:
      prog: what stands before the command, for help and errors.
    """
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        print(overview(prog))
        sys.exit(0 if argv else 2)
    if argv[0] == "--version":
        print(f"rljax {rljax.__version__}")
        return
    run(argv[0], argv[1:], f"{prog} {argv[0]}")


def run(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run one command; what is wrong with its arguments is one line and exit code 2.

    Args:
      name: of the command, such as "check-env".
      argv: its arguments; those of this process unless given.
      prog: what calls it, for help and errors; the script of this process unless given.
    """
    argv = sys.argv[1:] if argv is None else argv
    prog = os.path.basename(sys.argv[0]) if prog is None else prog
    one_line_errors(_run)(name, list(argv), prog)


def _run(name: str, argv: list[str], prog: str) -> None:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name.replace("_", "-"), COMMANDS, cutoff=0.5)
        known = ", ".join(near or COMMANDS)
        raise ValueError(f"unknown command {name!r}; did you mean: {known}?")
    kept, argv = NO_CACHE not in argv, [word for word in argv if word != NO_CACHE]
    on_hosts, asked = COMMANDS[name].on_hosts, "--distributed" in argv
    if asked and not on_hosts:
        raise ValueError(f"--distributed: {name} runs in one process")
    if on_hosts:
        join_hosts(asked)
    if COMMANDS[name].starts_jax:
        set_up_jax(kept)
    module = importlib.import_module(f"rljax.commands.{name.replace('-', '_')}")
    with printing(on_hosts):
        module.main(argv, prog)


def join_hosts(asked: bool) -> None:
    """Find the other processes of this program, before anything starts jax."""
    from rljax.running import hosts

    hosts.initialize(asked)


def printing(on_hosts: bool) -> contextlib.AbstractContextManager[None]:
    """Let one process of several print; commands without others need no jax for it."""
    if not on_hosts:
        return contextlib.nullcontext()
    from rljax.running import hosts

    return hosts.session()


def set_up_jax(keep_programs: bool = True) -> None:
    """Make a jax device per core, so that seeds run side by side, and keep programs.

    This comes before anything starts jax, and importing gymnax does. A command that ran
    in this process before may have taken fewer devices.

    Args:
      keep_programs: whether the next process finds what this one compiles.
    """
    from rljax.running import cpu, programs

    cpu.take(_first_share())
    if keep_programs:
        programs.keep()
    else:
        programs.keep_none()


@functools.cache
def _first_share() -> "cpu.Share":
    from rljax.running import cpu, hosts

    return cpu.set_cpu_devices(hosts.cores())


def overview(prog: str) -> str:
    """Return the list of commands."""
    lines = [f"  {name:18} {command.text}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {prog} COMMAND ...",
            "",
            *lines,
            "",
            f"{prog} COMMAND --help lists the options of a command.",
            f"{prog} COMMAND {NO_CACHE} neither keeps nor takes compiled programs.",
        ]
    )
