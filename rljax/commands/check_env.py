"""Try an environment and list its faults: `rljax check-env CartPole-v1`."""

import dataclasses
import sys
from typing import Annotated

import tyro

from rljax import envs
from rljax.commands import common
from rljax.envs.making import build


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    name: Annotated[str, tyro.conf.Positional]
    """the environment: a name, my.module:make_env or path/to/file.py:make_env"""
    env_params: dict[str, str] = dataclasses.field(default_factory=dict)
    """parameters of the environment: NAME VALUE pairs"""
    steps: int = 1000
    """to play at random in each of 16 environments; 0 to look at it only"""


def main(argv: list[str], prog: str) -> None:
    """Check, print a line per finding; exit code 1 where one is an error."""
    options = common.parse(Options, argv, __doc__ or "", prog)
    values = common.with_values(options.env_params)
    gym, params, _ = build(options.name, **values)
    findings = envs.check(gym, params, steps=0)
    if not any(finding.level == "error" for finding in findings):
        env = envs.make(options.name, **values)  # with the options of `envs.wrap`
        findings = envs.check(env, steps=options.steps)
    for finding in findings:
        print(finding)
    if not findings:
        print(f"{options.name}: nothing found")
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)
