"""DiscoRL, the update rule that was found by meta-learning over many environments.

Oh et al. (2025), "Discovering state-of-the-art reinforcement learning algorithms",
Nature 648, https://doi.org/10.1038/s41586-025-09761-x. The rule reads an agent's
outputs along trajectories and says what they should have been. An agent has, for each
state and as logits,

- `logits` `[A]`: the policy,
- `y` `[600]` and `z` `[A, 600]`: predictions whose meaning the rule found,
- `q` `[A, 601]`: the action value, over bins of its signed square root,
- `aux_pi` `[A, A]`: the policy at the next state, after each action.

The numbers of the rule as published, Disco103, are in the repository
google-deepmind/disco_rl under CC-BY 4.0: `load` reads them.
"""

import functools
import math
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.losses import signed_hyperbolic, signed_logp1, signed_parabolic
from rljax.meta.rules.types import Outputs, Rule, Trajectory, successors
from rljax.running import parallel
from rljax.types import Params

Y = 600  # size of the predictions y and z
LIMIT = 300  # of the bins of q: -300, -299, ..., 300
LAMBDA = 0.95  # trace decay of the values
DECAY = 0.99  # of the running moments, per update
VALUE_COST = 0.2  # weight of the value's loss

_RNN = "lstm/~/meta_lstm/~unroll/"  # names of the meta-RNN's own numbers begin so


def _shapes() -> dict[str, tuple[int, ...]]:
    """The arrays of the published file and their shapes."""
    of_inputs = {  # of a reader of trajectories; the rule has two
        "mlp/~/linear_0": (Y, 16),
        "mlp/~/linear_1": (16, 1),
        "mlp_1/~/linear_0": (Y, 16),
        "mlp_1/~/linear_1": (16, 1),
        "sequential/conv1_d": (1, 18, 16),
        "sequential/conv1_d_1": (1, 32, 2),
    }
    layers = {
        "lstm/linear": (128, 256),
        "lstm/linear_1": (256, 1),
        "lstm/linear_2": (256, Y),
        "lstm/linear_3": (256, Y),
        "lstm/linear_4": (16, 1),
        "lstm/lstm/linear": (27 + 256, 4 * 256),
        "lstm/sequential_1/conv1_d": (1, 2 * (256 + 2), 16),
        _RNN + "lstm/linear": (16 + 128, 4 * 128),
        _RNN + "mlp_2/~/linear_0": (29, 16),
    }
    layers |= {
        f"{p}{name}": x for p in ("lstm/", _RNN) for name, x in of_inputs.items()
    }
    weights = {f"{name}/w": shape for name, shape in layers.items()}
    return weights | {f"{name}/b": shape[-1:] for name, shape in layers.items()}


SHAPES = _shapes()


class Moments(NamedTuple):
    """Running first and second moments, with the weight of their start."""

    first: jax.Array  # []
    second: jax.Array  # []
    start: jax.Array  # [] product of the decays so far


class State(NamedTuple):
    """The rule's memory of one agent's lifetime."""

    advantage: Moments
    td_error: Moments  # of action values; shown, not used
    hidden: jax.Array  # [128] of the RNN over updates
    cell: jax.Array  # [128]


class Values(NamedTuple):
    """Values of a trajectory, by Retrace from the target network."""

    q: jax.Array  # [R, B, A] of the online network
    v: jax.Array  # [R, B] likewise
    target_q: jax.Array  # [R, B, A] of the target network
    q_target: jax.Array  # [T, B] the return G of each step
    advantage: jax.Array  # [T, B] over the target network's v
    norm_advantage: jax.Array  # [T, B]
    td_error: jax.Array  # [T, B] G less the online q of the action
    norm_td_error: jax.Array  # [T, B] by its root mean square
    q_advantage: jax.Array  # [R, B, A] the target network's q over its v
    norm_q_advantage: jax.Array  # [R, B, A] by the moments of `advantage`


class Inputs(NamedTuple):
    """A trajectory as one of the rule's two readers sees it."""

    steps: jax.Array  # [T, B, 27]
    actions: jax.Array  # [T, B, A, 2]


class Targets(NamedTuple):
    """Targets of the outputs at each step; logits, but for `q`."""

    pi: jax.Array  # [T, B, A]
    y: jax.Array  # [T, B, 600]
    z: jax.Array  # [T, B, 600] of the action taken
    q: jax.Array  # [T, B] return of the action taken
    next_pi: jax.Array  # [T, B, A] the agent's own policy at the next state


class Losses(NamedTuple):
    """The parts of the loss of each step, `[T, B]`, without their weights."""

    pi: jax.Array
    y: jax.Array
    z: jax.Array
    aux_pi: jax.Array  # 0 where the episode terminated
    q: jax.Array


def rule() -> Rule:
    """Make the rule; its parameters are those of `load`, or fresh ones.

    `targets` reads a trajectory's outputs by the names above, of R rows: T + 1, and
    perhaps more that `following` names. An episode that terminated ends what the rule
    reads backwards, and the discount is 0; one that a time limit cut ends only the
    reading. The discount was 0.997 when the rule was found.

    Example:
      >>> disco = rule()
      >>> disco.start().hidden.shape
      (128,)
    """
    return Rule(init=init, start=start, targets=targets, loss=loss)


def load(path: str) -> dict[str, np.ndarray]:
    """Read the rule's numbers from an .npz file.

    Args:
      path: of the file, as `weights/disco_103.npz` of google-deepmind/disco_rl.

    Returns:
      Arrays by the file's names, float32; the same ones for as long as the file stays.

    Raises:
      ValueError: no such file, a damaged one, or one with other arrays; names the path
        and what is wrong.
    """
    try:
        stat = os.stat(os.fspath(path))
    except (OSError, TypeError, ValueError) as error:
        words = getattr(error, "strerror", None) or error
        raise ValueError(f"{path!r}: {words}") from error
    return _load(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4)
def _load(path: str, time: int, size: int) -> dict[str, np.ndarray]:
    """Read a file once for each time that it was written."""
    del time, size
    try:
        with open(path, "rb") as file:  # closed also where numpy raises
            found = np.load(file, allow_pickle=False)
            arrays = {name: found[name] for name in found.files}
    except Exception as error:  # of many kinds, by where the damage is
        raise ValueError(f"{path!r}: is no .npz file, or damaged: {error}") from error
    _check(path, arrays)
    for array in arrays.values():
        array.flags.writeable = False  # all callers share them
    return arrays


def _check(path: str, arrays: dict[str, np.ndarray]) -> None:
    """Raise ValueError unless these are the arrays of the rule."""
    missing = sorted(SHAPES.keys() - arrays.keys())
    if missing:
        raise ValueError(
            f"{path!r}: {len(missing)} of the rule's {len(SHAPES)} arrays are missing: "
            f"{', '.join(missing)}"
        )
    foreign = sorted(arrays.keys() - SHAPES.keys())
    if foreign:
        raise ValueError(f"{path!r}: arrays that the rule lacks: {', '.join(foreign)}")
    for name, shape in SHAPES.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(
                f"{path!r}: {name} is {array.dtype}{list(array.shape)}, expected "
                f"float32{list(shape)}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{path!r}: {name} has numbers that are not finite")


def init(key: jax.Array) -> Params:
    """Fresh numbers: weights of variance 1 over their inputs, biases 0."""
    params = {}
    keys = jax.random.split(key, len(SHAPES))
    for (name, shape), k in zip(SHAPES.items(), keys, strict=True):
        scale = 1 / math.sqrt(math.prod(shape[:-1])) if name.endswith("/w") else 0.0
        params[name] = scale * jax.random.normal(k, shape, jnp.float32)
    return params


def start() -> State:
    """The state at the start of an agent's lifetime."""

    def moments() -> Moments:
        return Moments(
            first=jnp.zeros((), jnp.float32),
            second=jnp.zeros((), jnp.float32),
            start=jnp.ones((), jnp.float32),
        )

    return State(
        advantage=moments(),
        td_error=moments(),
        hidden=jnp.zeros(128, jnp.float32),
        cell=jnp.zeros(128, jnp.float32),
    )


def targets(
    params: Params, state: State, trajectory: Trajectory
) -> tuple[Targets, State]:
    """Targets for the agent's outputs, and the rule's next state.

    Derivatives in `params` are those that the rule was found with: through the targets
    and through y and z, not through policies and values.
    """
    found, moments = values(state, trajectory)
    read = inputs(params, "lstm/", trajectory, found)
    memory = memorize(params, read, trajectory)
    pi, y, z, embedding = heads(params, memory, hidden=state.hidden)
    own = inputs(params, _RNN, trajectory, found)
    hidden, cell = remember(params, state, own, embedding=embedding, y=y)
    outputs, _ = _stopped(trajectory)
    next_pi = successors(outputs["logits"], trajectory)
    made = Targets(pi=pi, y=y, z=z, q=found.q_target, next_pi=next_pi)
    return made, State(*moments, hidden=hidden, cell=cell)


def loss(outputs: Outputs, targets: Targets, trajectory: Trajectory) -> jax.Array:
    """Loss of each step, `[T, B]`: divergences from the targets."""
    parts = losses(outputs, targets, trajectory)
    return parts.pi + parts.y + parts.z + parts.aux_pi + VALUE_COST * parts.q


def losses(outputs: Outputs, targets: Targets, trajectory: Trajectory) -> Losses:
    """The parts of the loss of each step."""
    length, action = len(trajectory.action), trajectory.action

    def of_step(name: str) -> jax.Array:
        x = outputs[name][:length]
        return x if name in ("logits", "y") else chosen(x, action)

    return Losses(
        pi=divergence(targets.pi, of_step("logits")),
        y=divergence(targets.y, of_step("y")),
        z=divergence(targets.z, of_step("z")),
        aux_pi=(1 - terminated(trajectory))
        * divergence(targets.next_pi, of_step("aux_pi")),
        q=-jnp.sum(two_hot(targets.q) * jax.nn.log_softmax(of_step("q")), axis=-1),
    )


def values(
    state: State, trajectory: Trajectory
) -> tuple[Values, tuple[Moments, Moments]]:
    """Values of a trajectory, and the next moments of advantages and TD errors.

    Retrace: Munos et al. (2016), https://arxiv.org/abs/1606.02647, with the target
    network's action values and the online policy.
    """
    outputs, target_outputs = _stopped(trajectory)
    action, length = trajectory.action, len(trajectory.action)
    pi = jax.nn.softmax(outputs["logits"])
    q, target_q = mean_value(outputs["q"]), mean_value(target_outputs["q"])
    target_v = jnp.sum(pi * target_q, axis=-1)
    mu = jax.nn.softmax(trajectory.behaviour_logits)
    ratio = chosen(pi[:length], action) / chosen(mu, action)
    q_target = _retrace(
        trajectory,
        next_v=successors(target_v, trajectory),
        q=chosen(target_q[:length], action),
        trace=LAMBDA * jnp.minimum(1.0, ratio),
    )
    advantage = q_target - target_v[:length]
    td_error = q_target - chosen(q[:length], action)
    moments = (
        _moved(state.advantage, advantage),
        _moved(state.td_error, td_error),
    )
    (mean, scale), (_, td_scale) = map(_mean_and_scale, moments)
    q_advantage = target_q - target_v[..., None]
    found = Values(
        q=q,
        v=jnp.sum(pi * q, axis=-1),
        target_q=target_q,
        q_target=q_target,
        advantage=advantage,
        norm_advantage=(advantage - mean) / scale,
        td_error=td_error,
        norm_td_error=td_error / td_scale,
        q_advantage=q_advantage,
        norm_q_advantage=(q_advantage - mean) / scale,
    )
    return found, moments


def _retrace(
    trajectory: Trajectory, *, next_v: jax.Array, q: jax.Array, trace: jax.Array
) -> jax.Array:
    """Returns `[T, B]`; the ratio of a step's own action does not enter."""

    def step(
        correction: jax.Array, now: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, jax.Array]:
        reward, discount, ended, next_v, q, trace = now
        target = reward + discount * (next_v + jnp.where(ended, 0.0, correction))
        return trace * (target - q), target

    reward, discount, ended = trajectory.reward, trajectory.discount, trajectory.ended
    rows = (reward, discount, ended, next_v, q, trace)
    _, targets = jax.lax.scan(step, jnp.zeros_like(next_v[0]), rows, reverse=True)
    return targets


def inputs(
    params: Params, prefix: str, trajectory: Trajectory, found: Values
) -> Inputs:
    """Read a trajectory with one of the two sets of numbers, named by a prefix."""
    outputs, target_outputs = _stopped(trajectory)
    action, length = trajectory.action, len(trajectory.action)

    def pair(x: jax.Array) -> list[jax.Array]:
        return [x[:length], successors(x, trajectory)]

    def of_z(z: jax.Array) -> list[jax.Array]:
        return [
            chosen(z[:length], action),
            *pair(jnp.sum(pi * z, axis=-1)),
            *pair(z.max(axis=-1)),
        ]

    def of_logits(name: str, x: jax.Array) -> jax.Array:
        return _mlp(params, prefix + name, jax.nn.softmax(x))

    pi = jax.nn.softmax(outputs["logits"])
    mu = jax.nn.softmax(trajectory.behaviour_logits)
    target_pi = jax.nn.softmax(target_outputs["logits"])
    z = of_logits("mlp_1", outputs["z"])
    target_z = of_logits("mlp_1", target_outputs["z"])
    of_actions = [
        *(pi[:length], mu, target_pi[:length], z[:length], target_z[:length]),
        signed_logp1(found.target_q[:length]),
        signed_logp1(found.q_advantage[:length]),
        found.norm_q_advantage[:length],
        jax.nn.one_hot(action, pi.shape[-1], dtype=pi.dtype),
    ]
    actions = jnp.stack(of_actions, axis=-1)
    for name in ("conv1_d", "conv1_d_1"):
        actions = _block(params, f"{prefix}sequential/{name}", actions)
    of_steps = [
        chosen(pi[:length], action),
        chosen(mu, action),
        signed_logp1(trajectory.reward),
        1 - terminated(trajectory),
        *pair(signed_logp1(found.v)),
        signed_logp1(found.advantage),
        found.norm_advantage,
        chosen(target_pi[:length], action),
        *pair(of_logits("mlp", outputs["y"])),
        *pair(of_logits("mlp", target_outputs["y"])),
        *of_z(z),
        *of_z(target_z),
    ]
    steps = [
        jnp.stack(of_steps, axis=-1),
        actions.mean(axis=2),
        chosen(actions, action),
    ]
    return Inputs(steps=jnp.concatenate(steps, axis=-1), actions=actions)


def memorize(params: Params, read: Inputs, trajectory: Trajectory) -> Inputs:
    """Read the steps backwards, from the last one to the first; `steps` `[T, B, 256]`.

    Nothing passes from one episode to the one before.
    """
    name, num_inputs = "lstm/lstm/linear", read.steps.shape[-1]
    of_inputs, of_hidden = jnp.split(params[f"{name}/w"], [num_inputs])

    def step(
        carry: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        gates, ended = now
        hidden, cell = (jnp.where(ended[:, None], 0.0, x) for x in carry)
        hidden, cell = gated(gates + hidden @ of_hidden, cell)
        return (hidden, cell), hidden

    gates = read.steps @ of_inputs + params[f"{name}/b"]
    start = jnp.zeros((gates.shape[1], len(of_hidden)), gates.dtype)
    _, hidden = jax.lax.scan(
        step, (start, start), (gates, trajectory.ended), reverse=True
    )
    return read._replace(steps=hidden)


def heads(
    params: Params, memory: Inputs, *, hidden: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Targets of pi `[T, B, A]`, y and z `[T, B, 600]`, and the RNN's own `[T, B, 1]`.

    Args:
      params: the rule's.
      memory: as returned by `memorize`.
      hidden: `[128]` of the RNN over updates, before this one.
    """
    x = memory.steps * _dense(params, "lstm/linear", hidden)
    embedding, y, z = (_dense(params, f"lstm/linear_{i}", x) for i in (1, 2, 3))
    shape = (*memory.actions.shape[:-1], x.shape[-1])
    each = jnp.broadcast_to(x[:, :, None], shape)
    each = jnp.concatenate([each, memory.actions], axis=-1)
    each = _block(params, "lstm/sequential_1/conv1_d", each)
    return _dense(params, "lstm/linear_4", each)[..., 0], y, z, embedding


def remember(
    params: Params,
    state: State,
    read: Inputs,
    *,
    embedding: jax.Array,
    y: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Step the RNN over updates on the mean of a batch: its hidden and cell `[128]`."""
    of_y = _mlp(params, _RNN + "mlp", jax.nn.softmax(y))
    x = jnp.concatenate([read.steps, embedding, of_y[..., None]], axis=-1)
    x = _dense(params, _RNN + "mlp_2/~/linear_0", x)
    x = parallel.mean(x.mean(axis=(0, 1)))
    gates = _dense(
        params, _RNN + "lstm/linear", jnp.concatenate([x, state.hidden], axis=-1)
    )
    return gated(gates, state.cell)


def mean_value(logits: jax.Array) -> jax.Array:
    """Values `[...]` of logits over the bins `[..., 601]`."""
    bins = jnp.arange(-LIMIT, LIMIT + 1, dtype=logits.dtype)
    return signed_parabolic(jax.nn.softmax(logits) @ bins)


def two_hot(value: jax.Array) -> jax.Array:
    """Probabilities `[..., 601]` of the bins around a value `[...]`."""
    x = jnp.clip(signed_hyperbolic(value), -LIMIT, LIMIT)
    low, high = jnp.floor(x), jnp.ceil(x)
    p = (high - x) / (high - low + 1e-5)

    def at(bins: jax.Array) -> jax.Array:
        index = bins.astype(jnp.int32) + LIMIT
        return jax.nn.one_hot(index, 2 * LIMIT + 1, dtype=x.dtype)

    return p[..., None] * at(low) + (1 - p)[..., None] * at(high)


def divergence(target: jax.Array, logits: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence of logits `[..., n]` from target logits, `[...]`."""
    log_p = jax.nn.log_softmax(target)
    return jnp.sum(jnp.exp(log_p) * (log_p - jax.nn.log_softmax(logits)), axis=-1)


def chosen(x: jax.Array, action: jax.Array) -> jax.Array:
    """Of `[T, B, A, ...]` what belongs to the actions `[T, B]`."""
    taken = jnp.arange(x.shape[2]) == action[..., None]  # on CPU a gather is slow
    taken = taken.reshape(taken.shape + (1,) * (x.ndim - 3))
    return jnp.sum(jnp.where(taken, x, 0.0), axis=2)


def terminated(trajectory: Trajectory) -> jax.Array:
    """1 where the episode terminated, else 0, `[T, B]`."""
    ends = trajectory.ended & (trajectory.discount == 0)
    return ends.astype(trajectory.discount.dtype)


def _stopped(trajectory: Trajectory) -> tuple[Outputs, Outputs]:
    """Outputs without the derivatives that the rule was not found with."""

    def stop(outputs: Outputs) -> Outputs:
        live = {name: outputs[name] for name in ("y", "z")}
        return jax.lax.stop_gradient(outputs) | live

    return stop(trajectory.outputs), stop(trajectory.target_outputs)


def _moved(moments: Moments, x: jax.Array) -> Moments:
    """Move to the moments of a batch, of all shards."""
    first, second = parallel.mean((x.mean(), jnp.square(x).mean()))
    return Moments(
        first=DECAY * moments.first + (1 - DECAY) * first,
        second=DECAY * moments.second + (1 - DECAY) * second,
        start=DECAY * moments.start,
    )


def _mean_and_scale(moments: Moments) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation, without the weight of the start at 0."""
    mean = moments.first / (1 - moments.start)
    variance = moments.second / (1 - moments.start) - jnp.square(mean)
    return mean, jnp.sqrt(jnp.maximum(variance, 0.0) + 1e-12) + 1e-6


def _dense(params: Params, name: str, x: jax.Array) -> jax.Array:
    w = params[f"{name}/w"]
    return x @ w.reshape(w.shape[-2:]) + params[f"{name}/b"]  # of width 1, if a kernel


def _mlp(params: Params, name: str, x: jax.Array) -> jax.Array:
    """Map `[..., 600]` to `[...]`."""
    x = jax.nn.relu(_dense(params, f"{name}/~/linear_0", x))
    return _dense(params, f"{name}/~/linear_1", x)[..., 0]


def _block(params: Params, name: str, x: jax.Array) -> jax.Array:
    """A layer over actions, `[T, B, A, n]`, each beside the mean of all."""
    mean = jnp.broadcast_to(x.mean(axis=2, keepdims=True), x.shape)
    return jax.nn.relu(_dense(params, name, jnp.concatenate([x, mean], axis=-1)))


def gated(gates: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The new hidden and cell `[..., L]` of an LSTM, of gates `[..., 4 L]`.

    The gates' order is not flax's: input, new, forget, output.
    """
    i, g, f, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell
