"""Animations of episodes: by environments that draw themselves, and by gymnax."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rljax.envs import boundary
from rljax.envs.boundary import GymParams, GymState

_MILLISECONDS = 100  # of a frame
_LEAST_PIXELS = 240  # of a frame's longer side, about
# `gymnax.visualize.Visualizer` draws these, and of any other nothing but a title.
_BY_GYMNAX = {
    "Acrobot-v1",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "CartPole-v1",
    "Catch-bsuite",
    "FourRooms-misc",
    "Freeway-MinAtar",
    "MetaMaze-misc",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "PointRobot-misc",
    "Pong-misc",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
}


def can_draw(gym: object) -> bool:
    """Whether an environment draws itself, by `render(state, params)`, or gymnax does.

    Example:
      >>> import gymnax
      >>> [can_draw(gymnax.make(name)[0]) for name in ("Catch-bsuite", "Swimmer-misc")]
      [True, False]
    """
    return _draws_itself(gym) or boundary.name_of(gym) in _BY_GYMNAX


def animate(
    path: Path,
    gym: object,
    params: GymParams,
    *,
    states: Sequence[GymState],
    returns: np.ndarray,
) -> None:
    """Write a GIF with a frame for each state; small pictures are enlarged.

    Args:
      path: of the file, which ends in `.gif`.
      gym: the environment. Its method `render(state, params)`, if any, returns the
        picture of one state, uint8 `[height, width, 3]`.
      params: its parameters.
      states: of one environment, one step after the other.
      returns: `[len(states)]` sums of rewards, which gymnax writes above its pictures.

    Raises:
      ValueError: nothing can draw the environment, or its picture is none.
    """
    name = boundary.name_of(gym)
    if not can_draw(gym):
        raise ValueError(f"{name} cannot draw itself: no method render(state, params)")
    if not _draws_itself(gym):
        return _animate_by_gymnax(path, gym, params, states=states, returns=returns)
    from PIL import Image

    frames = []
    for state in states:
        picture = np.asarray(gym.render(state, params))  # pyright: ignore
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
            what = f"{picture.dtype}{list(picture.shape)}"
            raise ValueError(f"{name}: render returns {what}, not uint8[h, w, 3]")
        frame = Image.fromarray(picture)
        times = max(1, _LEAST_PIXELS // max(frame.size))
        frames.append(frame.resize([times * size for size in frame.size], resample=0))
    first, *rest = frames
    first.save(
        path,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=_MILLISECONDS,
        loop=0,
    )


def _draws_itself(gym: object) -> bool:
    return callable(getattr(gym, "render", None))


def _animate_by_gymnax(
    path: Path,
    gym: Any,
    params: GymParams,
    *,
    states: Sequence[GymState],
    returns: np.ndarray,
) -> None:
    for driver in ("SDL_VIDEODRIVER", "SDL_AUDIODRIVER"):  # pygame needs no screen
        os.environ.setdefault(driver, "dummy")
    from gymnax.visualize import Visualizer

    drawing = Visualizer(gym, params, states, returns)
    drawing.init()  # matplotlib hides what goes wrong here later
    drawing.animate(str(path))
