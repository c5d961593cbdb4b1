"""Gradients of the result of learning in the numbers that govern the learning."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from rljax.autodiff._checks import floats, scalar

E = TypeVar("E")  # eta, a tree of floating arrays
S = TypeVar("S")  # a state, any tree
T = TypeVar("T")  # a tree of floating arrays
A = TypeVar("A")  # anything else
MODES = ("reverse", "forward")


def meta_gradient(
    inner: Callable[[E], S],
    outer: Callable[[S], Any],  # [], or a pair with `has_aux`
    eta: E,
    *,
    mode: str = "reverse",
    has_aux: bool = False,
) -> tuple[Any, E]:
    r"""Score the result of learning, with the gradient of the score in meta-parameters.

    .. math:: J(\theta_K(\eta)), \qquad
              \frac{dJ}{d\eta} = \frac{\partial J}{\partial \theta_K}
              \frac{d \theta_K}{d\eta}

    The outer loss does not see `eta`: scored by the discount that it tunes, a
    prediction would be best at discount 0.

    Args:
      inner: `eta -> state`, usually K updates: :func:`unroll`.
      outer: `state -> []`, on data that the updates did not see.
      eta: a tree of floating arrays.
      mode: "reverse", one pass back through all updates; or "forward", one pass for
        every number in `eta` along with the updates, in memory that does not grow
        with K.
      has_aux: `outer` returns a pair of the scalar and something else.

    Returns:
      The outer loss, a pair with the auxiliary output if `has_aux`, and its gradient,
      like `eta`.

    Raises:
      ValueError: `eta` not floating, `outer` not returning a scalar, unknown `mode`.

    Example:
      >>> from rljax.meta import meta_gradient
      >>> def inner(discount):
      ...     return 0.5 * (1.0 + discount * 2.0)  # half the way to a target
      >>> jax.tree.map(float, meta_gradient(inner, lambda v: (v - 3.0) ** 2, 0.5))
      (4.0, -4.0)

    References:
      Xu et al. (2018), eq. 3 to 5, https://arxiv.org/abs/1805.09801
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
    eta = floats("eta", eta)

    def objective(eta: E) -> tuple[jax.Array, tuple[jax.Array, object]]:
        output = outer(inner(eta))
        value, aux = output if has_aux else (output, ())
        value = scalar("outer(...)", value)
        return value, (value, aux)

    if mode == "reverse":
        gradient, (value, aux) = jax.grad(objective, has_aux=True)(eta)
    else:
        flat, unravel = ravel_pytree(eta)
        _, slopes, (value, aux) = pushed_forward(lambda x: objective(unravel(x)), flat)
        gradient = unravel(slopes)
    return ((value, aux) if has_aux else value), gradient


def pushed_forward(
    function: Callable[[jax.Array], tuple[T, A]], numbers: jax.Array
) -> tuple[T, T, A]:
    """Call a function, with its derivative in each of a few numbers on the way.

    Args:
      function: `[n] -> (tree of floating arrays, anything else)`.
      numbers: `[n]`.

    Returns:
      The tree, its derivatives `[n, ...]`, and what else the function returns.

    Example:
      >>> _, slopes, _ = pushed_forward(lambda x: (x.prod(), ()), jnp.array([2.0, 3.0]))
      >>> slopes.tolist()
      [3.0, 2.0]
    """

    def along(direction: jax.Array) -> tuple[T, T, A]:
        return jax.jvp(function, (numbers,), (direction,), has_aux=True)

    directions = jnp.eye(numbers.size, dtype=numbers.dtype)
    return each(along, directions, out_axes=(None, 0, None))


def each(
    function: Callable[[E], tuple[Any, ...]],
    directions: E,
    *,
    out_axes: tuple[int | None, ...],
) -> tuple[Any, ...]:
    """Call `jax.vmap` of a function, or where there is one direction, the function.

    Products of a batch of one are slower than products without a batch.
    """
    if len(jax.tree.leaves(directions)[0]) > 1:
        return jax.vmap(function, out_axes=out_axes)(directions)
    outputs = function(jax.tree.map(lambda x: x[0], directions))
    return tuple(
        output if axis is None else jax.tree.map(lambda x: x[None], output)
        for output, axis in zip(outputs, out_axes, strict=True)
    )


def bootstrapped_meta_gradient(
    inner: Callable[[E], S],
    target: Callable[[S], S],
    matching: Callable[[S, S], jax.Array],
    eta: E,
    *,
    mode: str = "reverse",
) -> tuple[jax.Array, E]:
    r"""Measure how far the result of learning is from a target, with the gradient.

    .. math:: \mu(\text{stop}(T(\theta_K)), \theta_K(\eta))

    With the target one step :math:`\alpha` down the gradient of an outer loss, and half
    the squared distance, this is :math:`\alpha` times the :func:`meta_gradient`. More
    steps before the last look further ahead, and no derivative passes through them.

    Args:
      inner: `eta -> state`, usually K updates: :func:`unroll`.
      target: `state -> state`, usually further updates and a last one along the outer
        loss.
      matching: `(target, state) -> []`, say a divergence of their policies.
      eta: a tree of floating arrays.
      mode: as in :func:`meta_gradient`.

    Returns:
      The distance, and its gradient, like `eta`.

    Raises:
      ValueError: as :func:`meta_gradient`.

    Example:
      >>> from rljax.meta import bootstrapped_meta_gradient, squared_distance
      >>> def inner(discount):
      ...     return 0.5 * (1.0 + discount * 2.0)
      >>> def target(v):
      ...     return v - 0.1 * 2.0 * (v - 3.0)
      >>> value, gradient = bootstrapped_meta_gradient(
      ...     inner, target, squared_distance, 0.5
      ... )
      >>> round(float(gradient), 6)
      -0.4

    References:
      Flennerhag et al. (2022), eq. 2, https://arxiv.org/abs/2109.04504
    """

    def outer(state: S) -> jax.Array:
        goal = jax.lax.stop_gradient(target(jax.lax.stop_gradient(state)))
        return matching(goal, state)

    return meta_gradient(inner, outer, eta, mode=mode)


def squared_distance(target: S, state: S) -> jax.Array:
    """Half the squared Euclidean distance `[]` of all floating arrays in two trees."""
    pairs = zip(jax.tree.leaves(target), jax.tree.leaves(state), strict=True)
    floating = [
        (jnp.asarray(x), jnp.asarray(y))
        for x, y in pairs
        if jnp.issubdtype(jnp.result_type(y), jnp.floating)
    ]
    return 0.5 * sum((jnp.sum((x - y) ** 2) for x, y in floating), jnp.float32(0))


def evolution_gradient(
    objective: Callable[[E], jax.Array],
    eta: E,
    key: jax.Array,
    *,
    num_pairs: int = 16,
    sigma: float = 0.1,
) -> E:
    r"""Estimate a smoothed objective's gradient from values: evolution strategies.

    .. math:: \frac{1}{2 n \sigma} \sum_{i=1}^{n}
              \epsilon_i (f(\eta + \sigma \epsilon_i) - f(\eta - \sigma \epsilon_i)),
              \qquad \epsilon_i \sim N(0, I)

    The estimate needs no derivative of the learning, so that it also sees what a
    stopped path hides from :func:`meta_gradient`; its noise grows with the size of
    `eta`.

    Args:
      objective: `eta -> []`, say the outer loss after the inner updates.
      eta: a tree of floating arrays.
      key: `[]` typed key, consumed here.
      num_pairs: n, of antithetic evaluations, one pair after the other.
      sigma: standard deviation of the perturbations.

    Returns:
      Like `eta`.

    Raises:
      ValueError: `eta` not floating, `num_pairs` < 1, `sigma` not positive,
        `objective` not returning a scalar.

    Example:
      >>> from rljax.meta import evolution_gradient
      >>> key = jax.random.key(0)
      >>> estimate = evolution_gradient(lambda x: 3.0 * x, 1.0, key, num_pairs=4096)
      >>> 2.8 < float(estimate) < 3.2
      True

    References:
      Salimans et al. (2017), https://arxiv.org/abs/1703.03864
    """
    if num_pairs < 1 or not sigma > 0:
        raise ValueError(f"num_pairs={num_pairs}, sigma={sigma}: must be positive")
    flat, unravel = ravel_pytree(floats("eta", eta))

    def pair(key: jax.Array) -> jax.Array:
        step = jax.random.normal(key, flat.shape, flat.dtype)
        up, down = (
            scalar("objective(...)", objective(unravel(flat + sign * sigma * step)))
            for sign in (1.0, -1.0)
        )
        return step * (up - down) / (2 * sigma)

    terms = jax.lax.map(pair, jax.random.split(key, num_pairs))
    return unravel(terms.mean(axis=0))


def finite_differences(
    objective: Callable[[E], jax.Array], eta: E, step: float = 1e-3
) -> E:
    r"""Take central differences, one number of `eta` after the other.

    .. math:: \frac{f(\eta + h e_i) - f(\eta - h e_i)}{2 h}

    Args:
      objective: `eta -> []`.
      eta: a tree of floating arrays.
      step: h. About 1e-6 in float64; float32 resolves no more than 1e-2 to 1e-3.

    Returns:
      Like `eta`.

    Raises:
      ValueError: `eta` not floating, `objective` not returning a scalar.

    Example:
      >>> from rljax.meta import finite_differences
      >>> finite_differences(lambda x: x**2, 3.0, 0.5)
      Array(6., dtype=float32)
    """
    flat, unravel = ravel_pytree(floats("eta", eta))

    def slope(direction: jax.Array) -> jax.Array:
        up, down = (
            scalar("objective(...)", objective(unravel(flat + h * direction)))
            for h in (step, -step)
        )
        return (up - down) / (2 * step)

    return unravel(jax.lax.map(slope, jnp.eye(flat.size, dtype=flat.dtype)))
