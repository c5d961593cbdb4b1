# pyright: reportMissingImports=false
"""Adapter of pgx's games for one player: MinAtar and 2048."""

import inspect
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pgx

from rljax.envs._gymnax import Action, spaces
from rljax.envs.adapters.functional import AdapterParams, Functional, Step, box

# pgx has no limit, and a good player of breakout plays for ever. freeway's timer, which
# observations do not show, ends it after 2501 steps.
_MINATAR_STEPS = 2500
_PIXELS = 24  # of a cell of a picture, each way


def names() -> list[str]:
    """List the games for one player."""
    known = pgx.available_envs()
    return [name for name in known if name == "2048" or name.startswith("minatar-")]


def refusal(name: str) -> str | None:
    """Say why a game is not listed."""
    if name not in pgx.available_envs():
        return None
    players = pgx.make(cast(Any, name)).num_players
    return f"pgx/{name} has {players} players: agents here play alone"


def options(name: str) -> list[str]:
    """List the arguments of a game's class."""
    return list(inspect.signature(type(pgx.make(cast(Any, name))).__init__).parameters)[
        1:
    ]


def make(name: str, **arguments: Any) -> Functional:
    """Make a game."""
    make_game: Any = type(pgx.make(cast(Any, name)))
    env = make_game(**arguments)

    def reset(key: jax.Array, _: AdapterParams) -> tuple[jax.Array, Any]:
        state = env.init(key)
        return state.observation, state

    def step(key: jax.Array, state: Any, action: Action, _: AdapterParams) -> Step:
        state = env.step(state, action, key)
        return Step(
            obs=state.observation,
            state=state,
            reward=state.rewards[0],
            terminated=state.terminated,
        )

    first = jax.eval_shape(env.init, jax.random.key(0))
    minatar = name.startswith("minatar-")
    return Functional(
        reset=reset,
        step=step,
        action=spaces.Discrete(first.legal_action_mask.shape[0]),
        observation=box(False, True, first.observation.shape, jnp.bool_),
        params=AdapterParams(_MINATAR_STEPS) if minatar else AdapterParams(),
        # All actions of MinAtar are legal always.
        mask=None if minatar else lambda state: state.legal_action_mask,
        picture=lambda state: _picture(np.asarray(state.observation)),
    )


def _picture(planes: np.ndarray) -> np.ndarray:
    """Give each plane a colour of its own, the last one that is set on top."""
    import matplotlib

    colours = matplotlib.colormaps["turbo"](np.linspace(0.1, 1.0, planes.shape[-1]))
    top = planes.shape[-1] - 1 - planes[..., ::-1].argmax(axis=-1)
    cells = colours[top, :3] * np.any(planes, axis=-1, keepdims=True)
    return np.kron(np.uint8(255 * cells), np.ones((_PIXELS, _PIXELS, 1), np.uint8))
