"""Adaptation by gradient steps as a differentiable function."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rljax.autodiff import semi_gradient
from rljax.autodiff._checks import floats, leading_axis, scalar

P = TypeVar("P")  # parameters, a tree of floating arrays
B = TypeVar("B")  # a batch, any tree; with a leading axis K one for each step
# (params, bootstrap_params, batch) -> loss [], or a pair with `has_aux`
InnerLoss = Callable[[P, P, B], Any]


def adapt(
    loss: InnerLoss[P, B],
    params: P,
    batches: B,
    learning_rate: ArrayLike,
    *,
    first_order: bool = False,
    has_aux: bool = False,
) -> Any:
    r"""Take steps of gradient descent, differentiable in everything.

    .. math::
        \theta_{k+1} = \theta_k - \alpha_k \, \partial_1 L(\theta_k, \theta_k, b_k)

    Args:
      loss: `loss(params, bootstrap_params, batch) -> []`, where `bootstrap_params` make
        the target, if there is one; it stops nothing (`stop="none"`).
      params: a tree of floating arrays.
      batches: a tree of `[K, ...]`, what each step learns from. May be keys, for a loss
        that draws its own data. The program grows with K.
      learning_rate: `[]` or `[K]`.
      first_order: take the steps' gradients as constants: adapted parameters then move
        as the initial ones do, which is first-order MAML.
      has_aux: `loss` returns a pair of the scalar and something else.

    Returns:
      The parameters after K steps; a pair with the auxiliary outputs `[K, ...]` if
      `has_aux`.

    Raises:
      ValueError: `batches` without one leading axis K > 0, the shape of
        `learning_rate`, `params` not floating, `loss` not returning a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.meta import adapt
      >>> def loss(x, _, target):
      ...     return 0.5 * (x - target) ** 2
      >>> float(adapt(loss, 0.0, jnp.array([1.0, 1.0]), 0.5))
      0.75

    References:
      Finn et al. (2017), eq. 1 and section 5.2, https://arxiv.org/abs/1703.03400
    """
    steps = leading_axis("batches", batches)
    if jnp.shape(learning_rate) not in ((), (steps,)):
        given = jnp.shape(learning_rate)
        raise ValueError(f"learning_rate[] or [K] with K={steps}, got {given}")
    gradient = semi_gradient(loss, has_aux=has_aux)
    rates = jnp.broadcast_to(learning_rate, (steps,))
    params, all_aux = floats("params", params), []
    # Not a scan, whose derivative would draw the data of such a loss a second time.
    for k in range(steps):
        result = gradient(params, jax.tree.map(lambda x, k=k: x[k], batches))
        grads, aux = result if has_aux else (result, ())
        if first_order:
            grads = jax.lax.stop_gradient(grads)
        params = optax.tree.add_scale(params, -rates[k], grads)
        all_aux.append(aux)
    if not has_aux:
        return params
    return params, jax.tree.map(lambda *x: jnp.stack(x), *all_aux)


def maml_loss(
    inner_loss: InnerLoss[P, B],
    outer_loss: InnerLoss[P, B],
    params: P,
    batches: B,
    held_out: B,
    learning_rate: ArrayLike,
    *,
    first_order: bool = False,
    has_aux: bool = False,
) -> Any:
    r"""Score parameters after they have adapted to a task.

    .. math:: L_{out}(\theta_K, \text{stop}(\theta_K), b), \qquad \theta_0 = \theta

    One task; `jax.vmap` over a batch of tasks and take the mean. Differentiate the loss
    once, in `params` or `learning_rate`.

    Args:
      inner_loss: as in :func:`adapt`.
      outer_loss: likewise, of the adapted parameters.
      params: a tree of floating arrays.
      batches: a tree of `[K, ...]`, what to adapt to.
      held_out: the batch of `outer_loss`.
      learning_rate: `[]` or `[K]`, of the adaptation.
      first_order: as in :func:`adapt`.
      has_aux: both losses return a pair of the scalar and something else.

    Returns:
      `[]`; with `has_aux` `([], (inner_aux[K, ...], outer_aux))`.

    Raises:
      ValueError: as :func:`adapt`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.meta import maml_loss
      >>> def loss(x, _, target):
      ...     return 0.5 * (x - target) ** 2
      >>> def after(x):
      ...     return maml_loss(loss, loss, x, jnp.array([1.0]), 1.0, 0.5)
      >>> float(after(0.0)), float(jax.grad(after)(0.0))  # half the way, half the slope
      (0.125, -0.25)

    References:
      Finn et al. (2017), algorithm 3, https://arxiv.org/abs/1703.03400
    """
    result = adapt(
        inner_loss,
        params,
        batches,
        learning_rate=learning_rate,
        first_order=first_order,
        has_aux=has_aux,
    )
    adapted, inner_aux = result if has_aux else (result, ())
    loss = outer_loss(adapted, jax.lax.stop_gradient(adapted), held_out)
    if not has_aux:
        return scalar("outer_loss(...)", loss)
    return scalar("outer_loss(...)", loss[0]), (inner_aux, loss[1])
