"""Learned Policy Gradient: a recurrent network that reads a trajectory backwards.

Oh et al. (2020), https://arxiv.org/abs/2007.08794; sizes after Jackson et al. (2023),
https://arxiv.org/abs/2310.02782, smaller by default.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax import config as cfg
from rljax.meta.rules.types import (
    Outputs,
    Rule,
    RuleState,
    Targets,
    Trajectory,
    successors,
)
from rljax.types import Params

FILE = "rule.npz"  # in a run folder
_SETTINGS = "settings"  # name of the array that holds them, as JSON
_INPUTS = 5  # of each step
_GATES = ("keep", "reset", "new")  # of the recurrent unit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the rule's network, and constants of the agent's loss."""

    y_cost: float = 0.5  # weight of the prediction's loss
    bound: float = 1.0  # of the policy's target, either way
    y_size: int = cfg.static(8)  # categories of the prediction
    memory_size: int = cfg.static(32)  # features of the recurrent network
    hidden_size: int = cfg.static(16)  # of the network that reads predictions

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        cfg.check_range(self, "y_cost", low=0.0)
        cfg.check_range(self, "bound", low=0.0, open_low=True)
        cfg.check_count(self, "y_size", "memory_size", "hidden_size", high=2**14)


def make(settings: Settings | None = None) -> Rule:
    r"""Make the rule.

    For each step, backwards in time, the network reads

    .. math:: x_t = [r_t, \gamma_t, \pi(a_t | s_t), \varphi(y(s_t)),
              \varphi(y(s_{t+1}))]

    and puts out a number :math:`\hat\pi_t` in (-bound, bound) and the logits
    :math:`\hat y_t` of a categorical distribution. The agent's loss is

    .. math:: -\hat\pi_t \log \pi_\theta(a_t | s_t)
              + \alpha_y \text{KL}(y_\theta(s_t) \| \hat y_t)

    with the prediction first: DiscoRL has the target first. What the prediction y means
    is learned. Numbers of actions and observations do not enter, so that the rule
    works for agents of any.

    At the end of an episode the network starts anew. After a termination
    :math:`\varphi(y(s_{t+1}))` is 0; after a time limit the prediction is that of the
    true successor, or 0 where a trajectory does not have it.

    The rule reads `outputs["logits"]` `[T, B, A]` and `outputs["y"]` `[R, B, Y]`, of
    the rows of a trajectory, and keeps no state. Nothing is stopped.

    Args:
      settings: the defaults unless given.
    """
    settings = Settings() if settings is None else settings
    return Rule(
        init=functools.partial(init, settings),
        start=tuple,
        targets=functools.partial(targets, settings),
        loss=functools.partial(loss, settings),
    )


def init(settings: Settings, key: jax.Array) -> Params:
    """Fresh numbers; the targets are small at first."""
    keys = jax.random.split(key, 6)
    of_inputs, of_memory = (
        dict(zip(_GATES, jax.random.split(key, len(_GATES)), strict=True))
        for key in keys[2:4]
    )
    y, hidden, memory = settings.y_size, settings.hidden_size, settings.memory_size
    return {
        "read_0": _dense(keys[0], y, hidden),
        "read_1": _dense(keys[1], hidden, 1),
        "input": {gate: _dense(k, _INPUTS, memory) for gate, k in of_inputs.items()},
        "memory": {gate: _dense(k, memory, memory) for gate, k in of_memory.items()},
        "pi_hat": _dense(keys[4], memory, 1, scale=0.1),
        "y_hat": _dense(keys[5], memory, y, scale=0.1),
    }


def targets(
    settings: Settings, params: Params, state: RuleState, trajectory: Trajectory
) -> tuple[Targets, RuleState]:
    """Targets `{"pi_hat": [T, B], "y_hat": [T, B, Y]}`, the latter as logits."""
    inputs = features(params, trajectory)
    memory = backwards(params, inputs, trajectory.ended)
    raw = _apply(params["pi_hat"], memory)[..., 0]
    bound = settings.bound
    pi_hat = bound * jnp.tanh(raw / bound)
    return {"pi_hat": pi_hat, "y_hat": _apply(params["y_hat"], memory)}, state


def save(path: str | os.PathLike, settings: Settings, params: Params) -> None:
    """Write a rule to a file of arrays, `.npz`, whole or not at all.

    Args:
      path: of the file.
      settings: of the rule.
      params: its numbers.

    Raises:
      OSError: the file cannot be written.
    """
    path = Path(path)
    arrays: dict[str, Any] = {
        name: np.asarray(leaf, np.float32) for name, leaf in _named(params)
    }
    arrays[_SETTINGS] = np.array(json.dumps(dataclasses.asdict(settings)))
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> tuple[Settings, Params]:
    """Read a rule that `save` wrote, and check all of it.

    Args:
      path: of the file, or of the run folder that holds it as `rule.npz`.

    Returns:
      The settings, and the numbers as numpy arrays; the same ones for as long as the
      file stays.

    Raises:
      ValueError: no such file, a damaged one, or another rule's; names the path and
        what is wrong.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        stat = path.stat()
        return _load(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error


@functools.lru_cache(maxsize=4)
def _load(path: Path, time: int, size: int) -> tuple[Settings, Params]:
    """Read a file once for each time that it was written."""
    del time, size
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except OSError:
        raise
    except Exception as error:  # of many kinds, by where the damage is
        raise ValueError(f"{path}: no file of arrays, or damaged: {error}") from error
    try:
        settings = Settings(**json.loads(str(arrays.pop(_SETTINGS)[()])))
        settings.validate()
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: no settings of this rule: {reason}") from error
    like = jax.eval_shape(functools.partial(init, settings), jax.random.key(0))
    expected = dict(_named(like))
    if different := sorted(expected.keys() ^ arrays.keys()):
        raise ValueError(f"{path}: another rule: missing or more: {different[0]}")
    for name, leaf in expected.items():
        array = arrays[name]
        if array.shape != leaf.shape or array.dtype != np.float32:
            have = f"{array.dtype}{list(array.shape)}"
            raise ValueError(
                f"{path}: {name} is {have}, expected float32{list(leaf.shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name} has numbers that are not finite")
        array.flags.writeable = False  # all callers share them
    leaves = [arrays[name] for name in expected]
    return settings, jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(params: Params) -> list[tuple[str, jax.Array]]:
    """Leaves by their paths: `memory/keep/w`."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
    ]


def features(params: Params, trajectory: Trajectory) -> jax.Array:
    """The inputs `[T, B, 5]` of the recurrent network."""
    outputs = trajectory.outputs
    length = len(trajectory.action)
    log_pi = _chosen(outputs["logits"][:length], trajectory.action)
    hidden = jax.nn.relu(_apply(params["read_0"], jax.nn.softmax(outputs["y"])))
    read = _apply(params["read_1"], hidden)[..., 0]  # [R, B]
    seen = trajectory.discount > 0
    if trajectory.following is None:
        seen &= ~trajectory.ended
    columns = (
        trajectory.reward,
        trajectory.discount,
        jnp.exp(log_pi),
        read[:length],
        jnp.where(seen, successors(read, trajectory), 0.0),
    )
    return jnp.stack(columns, axis=-1)


def backwards(params: Params, inputs: jax.Array, ended: jax.Array) -> jax.Array:
    """Memory `[T, B, M]` of a gated recurrent unit that runs from the last step.

    Cho et al. (2014), https://arxiv.org/abs/1406.1078.

    Args:
      params: the rule's.
      inputs: `[T, B, I]`.
      ended: `[T, B]` bool; there nothing of later steps gets through.
    """
    # Three products each, not slices of one: on CPU a third of the time.
    xs = [_apply(params["input"][gate], inputs) for gate in _GATES]
    going_on = 1.0 - ended[..., None]

    def step(
        memory: jax.Array, row: tuple[list[jax.Array], jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        x, going_on = row
        memory = memory * going_on
        h = [_apply(params["memory"][gate], memory) for gate in _GATES]
        keep, reset = jax.nn.sigmoid(x[0] + h[0]), jax.nn.sigmoid(x[1] + h[1])
        new = _tanh(x[2] + reset * h[2])
        memory = new + keep * (memory - new)
        return memory, memory

    start = jnp.zeros_like(xs[0][0])
    return jax.lax.scan(step, start, (xs, going_on), reverse=True)[1]


def loss(
    settings: Settings, outputs: Outputs, targets: Targets, trajectory: Trajectory
) -> jax.Array:
    """Losses `[T, B]` of the agent's outputs, whose first T rows count."""
    length = len(trajectory.action)
    logits, y = outputs["logits"][:length], outputs["y"][:length]
    log_y, log_y_hat = jax.nn.log_softmax(y), jax.nn.log_softmax(targets["y_hat"])
    kl = jnp.sum(jnp.exp(log_y) * (log_y - log_y_hat), axis=-1)
    policy = -targets["pi_hat"] * _chosen(logits, trajectory.action)
    return policy + settings.y_cost * kl


def _tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent, on CPU in a sixth of the time of XLA's."""
    return 2.0 * jax.nn.sigmoid(2.0 * x) - 1.0


def _chosen(logits: jax.Array, action: jax.Array) -> jax.Array:
    """Log-probabilities `[...]` of actions `[...]`."""
    log_pi = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_pi, action[..., None], axis=-1)[..., 0]


def _dense(key: jax.Array, inputs: int, outputs: int, scale: float = 1.0) -> Params:
    drawn = jax.nn.initializers.variance_scaling(scale**2, "fan_in", "normal")
    return {"w": drawn(key, (inputs, outputs)), "b": jnp.zeros(outputs)}


def _apply(layer: Params, x: jax.Array) -> jax.Array:
    return x @ layer["w"] + layer["b"]
