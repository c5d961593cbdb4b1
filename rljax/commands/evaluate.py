"""Evaluate a trained run: `rljax evaluate runs/NAME --episodes 128`."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from rljax import envs, prng
from rljax.commands import common, folders
from rljax.config import check_range
from rljax.envs import pictures
from rljax.envs.wrappers import unwrap
from rljax.running import hosts
from rljax.types import Agent, TrainState


@dataclasses.dataclass(frozen=True)
class Options:
    """Play episodes with a run's checkpoint."""

    run: Annotated[Path, tyro.conf.Positional]
    """run folder"""
    episodes: int = 128
    """episodes per seed"""
    explore: bool = False
    """act as in training instead of greedily"""
    best: bool = False
    """the checkpoint with the best evaluation in training, in place of the latest"""
    gif: Path | None = None
    """also draw one episode of the first seed"""
    distributed: bool = False
    """one of several processes of this command, which share the seeds"""


def play(
    agent: Agent, env: Any, config: Any, state: Any, key: jax.Array, length: int
) -> tuple[Any, jax.Array, jax.Array]:
    """One greedy episode: gymnax's states and rewards `[T]`, and where it ended."""
    key, reset_key = jax.random.split(prng.fusible(key))
    env_state, obs = env.reset(reset_key, 1)

    def step(carry: Any, key: jax.Array) -> Any:
        env_state, obs, memory = carry
        act_key, env_key = jax.random.split(key)
        action, memory, _ = agent.act(config, state, memory, obs, act_key, False)
        noise = jax.tree.map(lambda x: x[0], env.draw(env_key, 1, 1))
        next_state, ts = env.step(noise, env_state, action)
        done = ts.terminated | ts.truncated
        bare, bare_state = unwrap(env, env_state)
        assert isinstance(bare, envs.Env)  # `draw` has looked
        gym_state = bare.gym_state(bare_state)
        return (next_state, ts.obs, memory), (gym_state, ts.reward, done)

    start = (env_state, obs, agent.memory(config, 1))
    _, (states, rewards, done) = jax.lax.scan(
        step, start, jax.random.split(key, length)
    )
    return jax.tree.map(lambda x: x[:, 0], states), rewards[:, 0], done[:, 0]


def draw(path: Path, run: common.Run, ts: TrainState) -> None:
    """Write an animation of one episode.

    Raises:
      ValueError: the environment cannot be drawn, or what draws it is not installed.
    """
    agent, env = run.build()
    bare = unwrap(env, ts.env)[0]
    if not (isinstance(bare, envs.Env) and pictures.can_draw(bare.gym)):
        raise ValueError(f"--gif: {run.env} cannot draw itself: it has no render")
    env = env.for_evaluation(ts.env)
    arguments = (agent, env, run.config, ts.agent, common.key(run.seed))
    states, rewards, done = play(*arguments, int(env.max_steps))
    length = int(jnp.argmax(done)) + 1 if bool(done.any()) else len(done)
    frames = [jax.tree.map(lambda x, i=i: x[i], states) for i in range(length)]
    total = np.cumsum(np.asarray(rewards[:length]))
    temporary = path.with_name(f".tmp-{path.name}")  # its ending is the format
    try:
        pictures.animate(temporary, bare.gym, bare.params, states=frames, returns=total)
        os.replace(temporary, path)
    except Exception as error:  # of gymnax, gymnasium, pygame, matplotlib
        hint = "pip install '.[gif]' brings what classic control needs"
        raise ValueError(f"--gif: cannot draw {run.env}: {error} ({hint})") from error
    finally:
        temporary.unlink(missing_ok=True)
    print(f"drew {length} steps, return {total[-1]:.1f}: {path}")


def main(argv: list[str], prog: str) -> None:
    """Restore, play, report."""
    options = common.parse(Options, argv, __doc__ or "", prog)
    check_range(options, "episodes", low=1, high=common.INT32)
    gif = options.gif
    if gif:
        hosts.on_primary(lambda: folders.check_output(gif, b"GIF8"))
    run = common.read_run(options.run)
    states = common.restore_state(options.run, run, best=options.best)
    print(
        common.summary(
            common.evaluate_run(
                run, states, common.evaluation(run, options.episodes, options.explore)
            )
        )
    )
    if gif:
        first = run.first_state(states)  # whole in every process
        hosts.on_primary(lambda: draw(gif, run, first))
