"""Export a trained policy: `rljax export runs/NAME --out policy`.

Two files: policy.npz, which `rljax.load_policy` reads, and policy.jax, a program for a
process that has jax alone.
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from rljax import policies
from rljax.commands import common, folders
from rljax.config import check_range
from rljax.running.checkpoint import latest, restore
from rljax.types import TrainState


@dataclasses.dataclass(frozen=True)
class Options:
    """Export the policy of a run's checkpoint."""

    run: Annotated[Path, tyro.conf.Positional]
    """run folder"""
    out: Path | None = None
    """folder of the two files; policy in the run's unless given"""
    seed: int | None = None
    """the run's seed; its first unless given"""
    step: str = "latest"
    """the checkpoint: latest, best by evaluation, or environment steps"""
    explore: bool = False
    """act as in training instead of greedily; the policy then takes a key"""
    platforms: tuple[str, ...] = ("cpu", "cuda")
    """that policy.jax runs on: cpu, cuda, rocm, tpu"""
    batch: int | None = None
    """observations at once that policy.jax takes; any number unless given"""


def check(options: Options) -> None:
    """Raise ValueError naming an option that cannot be."""
    if not options.platforms:
        raise ValueError(f"--platforms: name some of {', '.join(policies.PLATFORMS)}")
    for name in options.platforms:
        if name not in policies.PLATFORMS:
            known = ", ".join(policies.PLATFORMS)
            raise ValueError(f"--platforms {name}: must be one of {known}")
    if options.batch is not None:
        check_range(options, "batch", low=1, high=common.INT32)
    if options.step not in ("latest", "best") and not _is_number(options.step):
        raise ValueError(
            f"--step {options.step}: must be latest, best or a number of steps"
        )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def check_folder(out: Path) -> None:
    """Raise ValueError unless a folder is new, empty, or holds an export."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: not a folder")
    names = (policies.POLICY_FILE, policies.PROGRAM_FILE)
    own = {*names, *(f".{name}.tmp" for name in names)}  # the latter of a kill
    others = sorted(set(os.listdir(out)) - own) if out.exists() else []
    if others:
        raise ValueError(f"{out}: exists and is no export: it holds {others[0]}")
    folders.check_output(out / policies.POLICY_FILE, b"PK")


def chosen_seed(run: common.Run, seed: int | None) -> int:
    """The seed to export; ValueError if the run has none such."""
    seeds = range(run.seed, run.seed + run.seeds)
    if seed is None:
        return seeds[0]
    if seed not in seeds:
        names = f"{seeds[0]} to {seeds[-1]}" if run.seeds > 1 else f"{seeds[0]} alone"
        raise ValueError(f"--seed {seed}: the run has {names}")
    return seed


def restored(
    folder: Path, run: common.Run, *, seed: int, step: str
) -> tuple[TrainState, int]:
    """The train state of a seed at a checkpoint, and its steps."""
    best = step == "best"
    place = folder / (folders.BEST if best else folders.CHECKPOINTS)
    number = int(step) if _is_number(step) else latest(place)
    if best and number is None:
        raise ValueError(f"{folder}: no best checkpoint; --eval-every keeps one")
    like = jax.eval_shape(run.initial_state(), run.keys())
    states = restore(place, like, number)
    row: Any = (seed - run.seed, 0) if run.is_split else seed - run.seed
    assert number is not None  # `restore` has found one
    return jax.tree.map(lambda x: x[row], states), number


def program(
    trained: policies.Policy, platforms: tuple[str, ...], batch: int | None
) -> tuple[bytes, int | None]:
    """The program, and the size of its batches if that is fixed; says if it has to."""
    try:
        return policies.exported(trained, platforms=platforms, batch=batch), batch
    except policies.FixedBatch as error:
        print(
            f"note: {error}; policy.jax takes 1 at once, or --batch N", file=sys.stderr
        )
        return policies.exported(trained, platforms=platforms, batch=1), 1


def main(argv: list[str], prog: str) -> None:
    """Restore, export, write."""
    options: Options = common.parse(Options, argv, __doc__ or "", prog)
    check(options)
    run = common.read_run(options.run)
    seed = chosen_seed(run, options.seed)
    out = options.out or options.run / "policy"
    check_folder(out)
    state, step = restored(options.run, run, seed=seed, step=options.step)
    trained = policies.from_state(
        policies.alone(run, seed), state, step=step, explore=options.explore
    )
    content, batch = program(trained, options.platforms, options.batch)
    folders.write_bytes(out / policies.PROGRAM_FILE, content)
    policies.save(trained, out / policies.POLICY_FILE)
    size = sum(path.stat().st_size for path in out.iterdir())
    takes = "any number" if batch is None else batch
    print(
        f"{out}: {common.short(run.agent)} for {common.short(run.env)}, seed {seed}, "
        f"step {step}; takes {takes} of observations; {size / 1000:.0f} kB, "
        f"for {', '.join(options.platforms)}"
    )
