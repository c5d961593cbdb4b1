# pyright: reportMissingImports=false
"""Adapter of Jumanji's environments for one agent."""

import dataclasses
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jumanji import registration, specs
from jumanji.registration import registered_environments
from jumanji.viewer import MatplotlibViewer

from rljax.envs._gymnax import Action, spaces
from rljax.envs.adapters.functional import (
    AdapterParams,
    Functional,
    MultiDiscrete,
    Step,
    box,
)

_LAST = 2  # step type; with the time limit out, an end is a termination
_NEVER = 1 << 30  # steps
# Left out of observations: a mask has a hook of its own, and a clock its wrapper.
_NO_OBSERVATION = ("action_mask", "step_count")
_SEVERAL_AGENTS = (
    "Cleaner",
    "Connector",
    "LevelBasedForaging",
    "MMST",
    "MultiCVRP",
    "RobotWarehouse",
    "SearchAndRescue",
)
_INCHES = 4.0  # of a picture, each way


class _State(NamedTuple):
    """Jumanji's state, and the mask from the observation."""

    state: Any
    mask: jax.Array | None


def names() -> list[str]:
    """List the environments for one agent."""
    known = sorted(registered_environments())
    return [name for name in known if refusal(name) is None]


def refusal(name: str) -> str | None:
    """Say why an environment is not listed."""
    if name not in registered_environments():
        return None
    if name.startswith(_SEVERAL_AGENTS):
        return f"jumanji/{name} has several agents: agents here act alone"
    if name.startswith("JobShop"):
        return (
            f"jumanji/{name} masks each of several choices by itself: masks here are "
            "of one choice"
        )
    return None


def options(name: str) -> list[str]:
    """List the arguments of an environment's class."""
    kind = registration.load(registration._REGISTRY[name].entry_point)
    return list(inspect.signature(kind.__init__).parameters)[1:]


def make(name: str, **arguments: Any) -> Functional:
    """Make an environment."""
    env: Any
    limit: float = np.inf
    if "time_limit" in options(name):
        env = registration.make(name, **arguments)
        limit = env.time_limit
        arguments["time_limit"] = _NEVER
    env = registration.make(name, **arguments)
    form = _form(env)

    def reset(key: jax.Array, _: AdapterParams) -> tuple[Any, _State]:
        state, first = env.reset(key)
        return _observed(first.observation), _State(state, form.mask(first.observation))

    def step(_: jax.Array, state: _State, action: Action, __: AdapterParams) -> Step:
        after, timestep = env.step(state.state, form.own_action(action))
        obs = timestep.observation
        return Step(
            obs=_observed(obs),
            state=_State(after, form.mask(obs)),
            reward=timestep.reward,
            terminated=timestep.step_type == _LAST,
        )

    viewer = getattr(env, "_viewer", None)
    return Functional(
        reset=reset,
        step=step,
        action=form.space,
        observation=_space(env.observation_spec, leave_out=_NO_OBSERVATION),
        params=AdapterParams(max_steps_in_episode=limit),
        mask=(lambda state: state.mask) if form.masked else None,
        picture=_picture_by(viewer) if isinstance(viewer, MatplotlibViewer) else None,
    )


class _Form(NamedTuple):
    """The form in which actions are handed over."""

    space: spaces.Discrete | spaces.Box | MultiDiscrete
    masked: bool
    nvec: tuple[int, ...]  # of choices that become one; empty where there is one

    def mask(self, obs: Any) -> jax.Array | None:
        """Return the legal actions; all of them at an end where there is none."""
        if not self.masked:
            return None
        legal = obs.action_mask.reshape(-1)
        return legal | ~legal.any()

    def own_action(self, action: Action) -> jax.Array:
        """Return an action as Jumanji takes it."""
        if not self.nvec:
            return jnp.asarray(action)
        return jnp.stack(jnp.unravel_index(jnp.asarray(action), self.nvec))


def _form(env: Any) -> _Form:
    """Find the space of actions: choices that share a mask are one choice."""
    spec, fields = env.action_spec, env.observation_spec._specs
    masked = "action_mask" in fields
    if isinstance(spec, specs.DiscreteArray):
        space = spaces.Discrete(int(spec.num_values))
        return _Form(space=space, masked=masked, nvec=())
    if isinstance(spec, specs.MultiDiscreteArray):
        nvec = tuple(int(number) for number in np.array(spec.num_values))
        if masked and fields["action_mask"].shape == nvec:
            space = spaces.Discrete(int(np.prod(nvec)))
            return _Form(space=space, masked=True, nvec=nvec)
        return _Form(space=MultiDiscrete(nvec), masked=False, nvec=())
    return _Form(space=_space(spec), masked=False, nvec=())


def _observed(obs: Any) -> Any:
    """Return a dict of what an observation holds, or its one array."""
    if hasattr(obs, "_asdict"):
        parts = obs._asdict()
    elif dataclasses.is_dataclass(obs):
        parts = {
            field.name: getattr(obs, field.name) for field in dataclasses.fields(obs)
        }
    else:
        return obs
    return _alone(
        {k: _observed(v) for k, v in parts.items() if k not in _NO_OBSERVATION}
    )


def _space(spec: Any, leave_out: tuple[str, ...] = ()) -> Any:
    """Return gymnax's space of the arrays that a spec describes."""
    if isinstance(spec, specs.DiscreteArray):
        return spaces.Discrete(int(spec.num_values))
    if isinstance(spec, specs.BoundedArray):
        low, high = np.asarray(spec.minimum), np.asarray(spec.maximum)
        return box(low, high, spec.shape, spec.dtype)
    if isinstance(spec, specs.Array):
        return box(-np.inf, np.inf, spec.shape, spec.dtype)
    parts = {k: _space(v) for k, v in spec._specs.items() if k not in leave_out}
    only = _alone(parts)
    return spaces.Dict(only) if isinstance(only, dict) else only


def _alone(parts: dict[str, Any]) -> Any:
    """Return the only part, or all."""
    return next(iter(parts.values())) if len(parts) == 1 else parts


def _picture_by(viewer: MatplotlibViewer) -> Any:
    """Let a viewer return its pictures instead of showing them."""
    import matplotlib.pyplot as plt

    viewer.figure_size = (_INCHES, _INCHES)
    viewer._display = viewer._display_rgb_array

    def picture(state: _State) -> np.ndarray:
        backend = plt.get_backend()
        plt.switch_backend("agg")  # nothing is to be shown
        try:
            drawn = viewer.render(jax.tree.map(jnp.asarray, state.state))
            return np.array(drawn)[..., :3]
        finally:
            viewer.close()
            plt.switch_backend(backend)

    return picture
