"""What the sweep over the public losses needs to know of each: see `Case`."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import oracles

SIZES = {"T": 6, "A": 3, "N": 5, "M": 4, "D": 2, "K": 7}


class Case(NamedTuple):
    """A public loss, what its arguments are, and what it must agree with.

    Every floating argument is in at most one of `always`, `network` and `live`; one
    in none of them has no gradient in any mode.
    """

    fn: Callable[..., Any]
    args: Mapping[str, str]
    """Every array argument, in order: its axes by the letters of `SIZES`, a colon, its
    kind (a key of `KINDS`). `{"q_tm1": "T,A:real", "a_tm1": "T:action"}`."""
    always: tuple[str, ...] = ()  # predictions: the same gradient in every mode
    network: tuple[str, ...] = ()  # bootstraps: a gradient under "none" only
    live: tuple[str, ...] = ()  # the target's other parts: none under "target"
    static: Mapping[str, Any] = {}  # further keywords, for instance n of n-step
    scalar: tuple[str, ...] = ()  # may be [] where `args` gives an axis
    stops: bool = True  # has the keyword `stop`
    loss: bool = False  # to be minimised as it is; else an error to be squared
    target: Callable[[Any, Mapping[str, Any]], Any] = lambda out, x: out
    """Made of the result and the arguments where the result has a prediction taken
    off that is a bootstrap as well: the result with the prediction put back."""
    oracle: Callable[..., Any] | None = None  # the same in numpy, from the paper
    rlax: Callable[..., Any] | None = None  # takes the arguments by name
    rlax_input: Callable[[Any], Any] = lambda x: x  # arguments that rlax can be given
    as_rlax: Callable[[Any], Any] = lambda out: out  # our result in rlax's form
    rlax_stops: bool = False  # its flag is "target" or "none", in every gradient
    any_shape: tuple[str, ...] = ()  # arguments that no other one's shape binds
    broadcast: tuple[str, ...] = ()  # of any shape that broadcasts to another one's
    smooth: bool = True  # has derivatives that finite differences can find


def real(rng, shape):
    return rng.normal(size=shape)


def simplex(rng, shape):
    return rng.dirichlet(np.full(shape[-1], 2.0), shape[:-1])


KINDS: dict[str, Callable[..., np.ndarray]] = {
    "real": real,
    "discount": lambda rng, shape: rng.uniform(0.2, 0.9, shape),
    "lambda": lambda rng, shape: rng.uniform(0.2, 0.9, shape),
    "hyper": lambda rng, shape: rng.uniform(0.2, 0.9, shape),  # another float to tune
    "positive": lambda rng, shape: rng.uniform(0.2, 1.5, shape),
    "ratio": lambda rng, shape: np.exp(rng.normal(size=shape)),  # of probabilities
    "probability": lambda rng, shape: rng.uniform(0.1, 0.9, shape),
    "simplex": simplex,  # over the last axis
    "log_probability": lambda rng, shape: -rng.exponential(size=shape),
    "sorted": lambda rng, shape: np.sort(rng.normal(size=shape)),
    "quantile": lambda rng, shape: np.sort(rng.uniform(0.05, 0.95, shape)),
    "action": lambda rng, shape: rng.integers(0, SIZES["A"], shape).astype(np.int32),
}
META = ("discount", "lambda", "hyper")  # what a meta-gradient tunes


def kind(case: Case, argument: str) -> str:
    return case.args[argument].split(":")[1]


def shape(case: Case, argument: str) -> tuple[int, ...]:
    axes = case.args[argument].split(":")[0]
    return tuple(SIZES[axis] for axis in axes.split(",") if axis)


def draw_numpy(
    case: Case, seed: int = 0, batch: tuple[int, ...] = ()
) -> dict[str, np.ndarray]:
    """Valid arguments by name, in the float type of the current mode."""
    rng, floating = np.random.default_rng(seed), jax.dtypes.canonicalize_dtype(float)
    x = {}
    for argument in case.args:
        value = KINDS[kind(case, argument)](rng, batch + shape(case, argument))
        dtype = np.int32 if kind(case, argument) == "action" else floating
        x[argument] = np.asarray(value, dtype)
    return x


def draw(case: Case, seed: int = 0, batch: tuple[int, ...] = ()) -> dict[str, Any]:
    """The arguments of `draw_numpy` on the device."""
    return {k: jnp.asarray(v) for k, v in draw_numpy(case, seed, batch).items()}


def split(case: Case, x: Mapping[str, Any]) -> tuple[dict, dict]:
    """The floating arguments, and the integers."""
    floats = {k: v for k, v in x.items() if kind(case, k) != "action"}
    return floats, {k: v for k, v in x.items() if k not in floats}


def call(case: Case, x: Mapping[str, Any], **stop: str) -> Any:
    return case.fn(**x, **case.static, **stop)


@functools.cache
def jitted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A loss as one program, which all tests share that call it with the same shapes.

    Without jit every operation in it is a program of its own.
    """
    static = {"stop", "n", "method", "tx_pair"} & {*inspect.signature(fn).parameters}
    return jax.jit(fn, static_argnames=tuple(static))


def leaf_sum(tree: Any) -> jax.Array:
    """Every element of the result with a cotangent of its own."""
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(tree))


@functools.cache
def rollouts(seed, policy_seed=None, length=3):
    """Every trajectory of an MDP from each state and action, with exact values."""
    mdp = oracles.random_mdp(seed, num_states=3, num_actions=2)
    policy = oracles.random_policy(seed, mdp)
    behaviour = oracles.random_policy(policy_seed or seed, mdp)
    v = oracles.policy_value(mdp, policy)
    q = oracles.action_value(mdp, v)
    rows = [
        oracles.trajectories(mdp, behaviour, s, a, length)
        for s, a in np.ndindex(q.shape)
    ]
    weights, states, actions = (np.stack(column) for column in zip(*rows, strict=True))
    np.testing.assert_allclose(weights.sum(1), 1.0, 1e-12)
    return mdp, policy, behaviour, v, q, weights, states, actions
