"""Second and higher derivatives: products with curvature matrices, and what uses them.

A vector product (`vp`) is a function from a tree like the parameters to another: v to
A v for a symmetric matrix A that is never formed. `functools.partial` makes one of
`hvp`, `gauss_newton_vp` or `fisher_vp`. Nothing here calls LAPACK, so all of it may be
vmapped on CPU.
"""

from collections.abc import Callable
from typing import Literal, Protocol, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from rljax._distrax import distrax
from rljax.autodiff._checks import describe, floats
from rljax.autodiff._solve import VectorProduct, conjugate_gradients
from rljax.autodiff._spectrum import eigh, lanczos, matmul
from rljax.types import Params, Policy

X = TypeVar("X")  # a scalar, or a tree of floats
X_contra = TypeVar("X_contra", contravariant=True)
Y = TypeVar("Y")  # likewise
Y_co = TypeVar("Y_co", covariant=True)
Order = Literal["forward-over-reverse", "reverse-over-forward", "reverse-over-reverse"]


def hvp(f: Callable[[Params], jax.Array], primals: Params, tangents: Params) -> Params:
    r"""Product of a Hessian with a vector, forward over reverse.

    .. math:: \nabla^2 f(x) v = \frac{d}{dt} \nabla f(x + t v) \big|_{t=0}

    Exact, for about the price of two gradients, and without the Hessian.

    Args:
      f: tree of floats to a scalar `[]`.
      primals: tree of float arrays, where to take the Hessian.
      tangents: the vector, a tree of the same structure, shapes and dtypes.

    Returns:
      The product, a tree like `primals`.

    Raises:
      ValueError: a leaf that is not of floats, `tangents` unlike `primals`, `f` not
        scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import hvp
      >>> x, v = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
      >>> hvp(lambda x: x[0] ** 3 + x[0] * x[1], x, v)
      Array([6., 1.], dtype=float32)

    References:
      Pearlmutter (1994), https://doi.org/10.1162/neco.1994.6.1.147
    """
    primals = floats("primals", primals)
    tangents = _like("tangents", tangents, "primals", primals)
    return jax.jvp(jax.grad(_scalar(f)), (primals,), (tangents,))[1]


def hvp_fn(
    f: Callable[[Params], jax.Array], primals: Params
) -> tuple[Params, VectorProduct]:
    r"""Gradient and Hessian-vector product at one point, for many vectors.

    .. math:: \nabla f(x), \quad v \mapsto \nabla^2 f(x) v

    What does not depend on the vector is computed once and kept: as much memory as one
    gradient needs. Calling the product outside of jit does not compile it.

    Args:
      f: tree of floats to a scalar `[]`.
      primals: tree of float arrays, where to take the Hessian.

    Returns:
      The gradient, a tree like `primals`, and the product, a function on such trees.

    Raises:
      ValueError: a leaf that is not of floats, `f` not scalar; by the product: a tree
        unlike `primals`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import hvp_fn
      >>> x, v = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
      >>> gradient, vp = hvp_fn(lambda x: x[0] ** 3 + x[0] * x[1], x)
      >>> gradient, vp(v)
      (Array([5., 1.], dtype=float32), Array([6., 1.], dtype=float32))

    References:
      Pearlmutter (1994), https://doi.org/10.1162/neco.1994.6.1.147
    """
    primals = floats("primals", primals)
    gradient, product = jax.linearize(jax.grad(_scalar(f)), primals)
    return gradient, lambda v: product(_like("tangents", v, "primals", primals))


def hessian(
    f: Callable[[Params], jax.Array],
    x: Params,
    order: Order = "forward-over-reverse",
) -> jax.Array:
    r"""Hessian of a function of a small tree, as one matrix.

    .. math:: H_{ij} = \frac{\partial^2 f}{\partial x_i \partial x_j}

    Args:
      f: tree of floats to a scalar `[]`.
      x: tree of float arrays with P elements in all.
      order: which derivative is taken of which. "forward-over-reverse" is quickest;
        "reverse-over-reverse" is the one that works where `f` has a
        `jax.custom_vjp`, which forward mode refuses.

    Returns:
      `[P, P]`, rows and columns in the order of `jax.flatten_util.ravel_pytree(x)`,
      whose second result turns a row back into a tree.

    Raises:
      ValueError: unknown `order`, a leaf that is not of floats, `f` not scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import hessian
      >>> hessian(lambda x: x[0] ** 3 + x[0] * x[1], jnp.array([1.0, 2.0]))
      Array([[6., 1.],
             [1., 0.]], dtype=float32)

    Differs from:
      `jax.hessian` returns a tree of trees.
    """
    if order not in get_args(Order):
        raise ValueError(f"order={order!r}, expected one of {get_args(Order)}")
    jacobians = {"forward": jax.jacfwd, "reverse": jax.jacrev}
    outer, inner = (jacobians[mode] for mode in order.split("-over-"))
    flat, unravel = ravel_pytree(floats("x", x))
    scalar = _scalar(f)
    return outer(inner(lambda flat: scalar(unravel(flat))))(flat)


class Derivative(Protocol[X_contra, Y_co]):
    """Of a function of a scalar, or of a tree along a direction like that tree."""

    def __call__(self, x: X_contra, direction: X_contra | None = None) -> Y_co:
        """Differentiate at x; no direction is needed where x is a scalar."""
        ...


def nth_derivative(f: Callable[[X], Y], n: int) -> Derivative[X, Y]:
    r"""The n-th derivative of a function of a scalar, or along a line.

    .. math:: f^{(n)}(x) = \frac{d^n}{dt^n} f(x + t v) \big|_{t=0}

    Forward mode, n times: `f` may return arrays of any shape, such as the values of
    all states as a function of the discount. Time grows about as 2^n.

    Args:
      f: scalar `[]`, or tree of floats, to an array or tree of floats.
      n: how often to differentiate, a static int; 0 is `f` itself.

    Returns:
      A function of x, and of the direction v unless x is a scalar, where v is 1 by
      default. Its result has the form of the result of `f`.

    Raises:
      ValueError: `n` negative or no int; by the function: a leaf that is not of
        floats, a direction unlike x, no direction for an x that is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import nth_derivative
      >>> float(nth_derivative(lambda x: x**4, 3)(2.0))
      48.0
      >>> x, v = jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0])
      >>> nth_derivative(lambda x: x[0] * x[1] ** 2, 2)(x, v)
      Array(10., dtype=float32)
    """
    _check_count("n", n, 0)

    def derivative(x: X, direction: X | None = None) -> Y:
        x = floats("x", x)
        if direction is None:
            if not (isinstance(x, jax.Array) and x.ndim == 0):
                raise ValueError(
                    f"x={jax.tree.map(jax.typeof, x)} is no scalar: give a direction"
                )
            direction = jnp.ones_like(x)
        direction = _like("direction", direction, "x", x)

        def slope(g: Callable[[X], Y]) -> Callable[[X], Y]:
            return lambda x: jax.jvp(g, (x,), (direction,))[1]

        g = _returning_floats(f)
        for _ in range(n):
            g = slope(g)
        return g(x)

    return derivative


def gauss_newton_vp(
    network_fn: Callable[[Params], Y],
    loss_fn: Callable[[Y], jax.Array],
    params: Params,
    tangent: Params,
) -> Params:
    r"""Product of the generalised Gauss-Newton matrix with a vector.

    .. math:: J^T \nabla^2 \ell(z) \, J v, \quad z = f(\theta), \;
        J = \partial f / \partial \theta

    The Hessian of the loss without the curvature of the network: positive
    semi-definite where the loss is convex in the outputs, and equal to the Hessian
    where the network is linear in its parameters.

    Args:
      network_fn: parameters to outputs, any tree of floats.
      loss_fn: outputs to a scalar `[]`, already reduced over the batch.
      params: tree of float arrays.
      tangent: the vector, a tree like `params`.

    Returns:
      The product, a tree like `params`.

    Raises:
      ValueError: a leaf that is not of floats, `tangent` unlike `params`, `loss_fn`
        not scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import gauss_newton_vp
      >>> w, v = jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])
      >>> gauss_newton_vp(lambda w: w[0] * w[1], lambda z: 0.5 * z**2, w, v)
      Array([4., 2.], dtype=float32)

    References:
      Schraudolph (2002), https://doi.org/10.1162/08997660260028683
    """
    params = floats("params", params)
    tangent = _like("tangent", tangent, "params", params)
    outputs, push = jax.linearize(network_fn, params)
    curved = hvp(loss_fn, floats("network_fn(params)", outputs), push(tangent))
    return jax.linear_transpose(push, params)(curved)[0]


def fisher_vp(
    policy_fn: Callable[[Params], Policy],
    params: Params,
    tangent: Params,
    *,
    kl: Callable[[Policy, Policy], jax.Array] | None = None,
) -> Params:
    r"""Product of a policy's Fisher information matrix with a vector.

    .. math:: F v = \nabla^2_{\theta'} \,
        \overline{KL}(\pi_\theta \| \pi_{\theta'}) \big|_{\theta' = \theta} v

    The mean over the batch of the divergence, whose gradient is 0 here and whose
    Hessian is the Fisher matrix. Only :math:`\theta'` is differentiated, and nothing
    is stopped, so the product has the right derivatives in `params` too.

    Args:
      policy_fn: parameters to a distrax distribution of any batch shape, or, with
        `kl`, to anything.
      params: tree of float arrays.
      tangent: the vector, a tree like `params`.
      kl: divergence of two results of `policy_fn`, of any shape; its mean counts. By
        default `p.kl_divergence(q)` of distrax.

    Returns:
      The product, a tree like `params`.

    Raises:
      ValueError: a leaf that is not of floats, `tangent` unlike `params`, a policy
        that is no distribution without `kl`.

    Example:
      >>> import distrax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import fisher_vp
      >>> logits, v = jnp.zeros(2), jnp.array([1.0, -1.0])
      >>> fisher_vp(distrax.Categorical, logits, v)
      Array([ 0.5, -0.5], dtype=float32)

    References:
      Amari (1998), https://doi.org/10.1162/089976698300017746
      Schulman et al. (2015), appendix C, https://arxiv.org/abs/1502.05477
    """
    params = floats("params", params)
    old = policy_fn(params)
    if kl is None and not isinstance(old, distrax.Distribution):
        raise ValueError(
            f"policy_fn(params) is {type(old).__name__}, expected a distrax "
            "distribution, or kl= for anything else"
        )
    divergence = kl or (lambda p, q: p.kl_divergence(q))
    tangent = _like("tangent", tangent, "params", params)
    return hvp(lambda new: jnp.mean(divergence(old, policy_fn(new))), params, tangent)


def natural_gradient(
    vp: VectorProduct,
    gradient: Params,
    *,
    damping: ArrayLike = 1e-3,
    iterations: int = 10,
    tol: float = 1e-5,
) -> Params:
    r"""Gradient in the metric of a curvature matrix, by conjugate gradients.

    .. math:: x = (F + \lambda I)^{-1} g

    What `vp` computes independently of its vector is computed once, before the
    iterations. Derivatives are those of the exact solution, so they are as good as the
    solution is.

    Args:
      vp: v to F v, linear; F symmetric and positive semi-definite.
      gradient: tree of float arrays.
      damping: `[]` lambda, at least 0; differentiable. With 0 and a singular F the
        gradient must lie in its range; a Fisher matrix of a softmax is singular.
      iterations: at most so many products, a static int. More than are needed do no
        harm: the iteration ends where the residual is rounding (10 times the dtype's
        relative spacing, of the gradient's norm), or the curvature along the next step
        is (of the greatest curvature seen).
      tol: stop when the residual's norm is below this times the gradient's norm; 0 for
        the rounding alone.

    Returns:
      The solution, a tree like `gradient`; for the step of a trust region of size
      delta, scale it by `sqrt(2 delta / vdot(x, vp(x)))`.

    Raises:
      ValueError: a leaf that is not of floats, `vp` returning a tree unlike
        `gradient`, `damping` or `tol` negative, `iterations` below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import natural_gradient
      >>> vp = lambda v: jnp.array([1.0, 3.0]) * v
      >>> natural_gradient(vp, jnp.array([4.0, 8.0]), damping=1.0).round(4)
      Array([2., 2.], dtype=float32)

    References:
      Amari (1998), https://doi.org/10.1162/089976698300017746
      Martens (2010), https://www.cs.toronto.edu/~jmartens/docs/Deep_HessianFree.pdf
    """
    gradient = floats("gradient", gradient)
    _check_count("iterations", iterations, 1)
    for name, value in (("damping", damping), ("tol", tol)):
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f"{name}={value!r}, expected at least 0")
    dtype, product = _linear(vp, gradient)
    damping = jnp.asarray(damping, dtype)

    def damped(v: Params) -> Params:
        return jax.tree.map(lambda fv, v: fv + damping * v, product(v), v)

    right = jax.tree.map(lambda g: g.astype(dtype), gradient)
    x = conjugate_gradients(damped, right, tol=tol, iterations=iterations)
    return jax.tree.map(lambda x, g: x.astype(g.dtype), x, gradient)


def top_eigenvalues(
    vp: VectorProduct,
    like: Params,
    key: jax.Array,
    *,
    k: int = 1,
    iterations: int | None = None,
) -> jax.Array:
    r"""Largest eigenvalues of a symmetric matrix, from its products with vectors.

    .. math:: A u_i = \lambda_i u_i, \quad \lambda_1 \ge \lambda_2 \ge \dots

    Lanczos iteration with full re-orthogonalisation: memory for `iterations` vectors
    and, for all but the P-th, an error that falls quickly with their number. Exact
    after P iterations. Equal eigenvalues count as one before that. Derivatives in what
    `vp` depends on are :math:`u_i^T (dA) u_i`, right where the eigenvalue is simple and
    converged.

    Args:
      vp: v to A v, linear; A symmetric, definite or not.
      like: tree of float arrays with P elements, of which only the shapes count.
      key: `[]` typed key, consumed here, for the starting vector.
      k: how many, at most P, a static int.
      iterations: products to make, at least `k`; P at most are made. By default the
        larger of 20 and 2 k + 1.

    Returns:
      `[k]` eigenvalues, largest first, in float32 or better. For the smallest ones
      negate the product and the result.

    Raises:
      ValueError: a leaf that is not of floats, `vp` returning a tree unlike `like`,
        `k` or `iterations` out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import top_eigenvalues
      >>> vp = lambda v: jnp.array([1.0, 5.0, 3.0]) * v
      >>> top_eigenvalues(vp, jnp.zeros(3), jax.random.key(0), k=2).round(4)
      Array([5., 3.], dtype=float32)

    References:
      Lanczos (1950), https://doi.org/10.6028/jres.045.026
      Ghorbani et al. (2019), algorithm 1, https://arxiv.org/abs/1901.10159
    """
    like = floats("like", like)
    size = sum(leaf.size for leaf in jax.tree.leaves(like))
    _check_count("k", k, 1, size)
    iterations = max(20, 2 * k + 1) if iterations is None else iterations
    _check_count("iterations", iterations, k)
    keys = jax.random.split(key, min(iterations, size) + 1)
    dtype, start = _draw(jax.random.normal, keys[0], like)
    _, product = _linear(vp, start)
    flat, unravel = ravel_pytree(jax.tree.map(lambda x: x.astype(dtype), start))

    def flat_product(v: jax.Array) -> jax.Array:
        return ravel_pytree(product(unravel(v)))[0]

    def frozen(v: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(flat_product(v))

    diagonal, beside, basis = lanczos(frozen, flat, keys[1:])
    beside = beside[:-1]
    ritz_values, rotation = eigh(
        jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    )
    _, best = jax.lax.top_k(ritz_values, k)
    vectors = matmul(rotation[best], basis)
    return jax.vmap(lambda u: jnp.sum(u * flat_product(u)) / jnp.sum(u * u))(vectors)


def hutchinson_trace(
    vp: VectorProduct, like: Params, key: jax.Array, num_samples: int
) -> jax.Array:
    r"""Unbiased estimate of the trace of a matrix from its products with vectors.

    .. math:: \mathrm{tr} A = E[z^T A z] \approx \frac{1}{n} \sum_i z_i^T A z_i

    The probes z are of random signs, which is the choice of least variance:
    :math:`2 \sum_{i \ne j} A_{ij}^2 / n` for a symmetric A, so 0 for a diagonal one.

    Args:
      vp: v to A v, linear.
      like: tree of float arrays, of which only the shapes count.
      key: `[]` typed key, consumed here.
      num_samples: n products, one after the other, a static int.

    Returns:
      `[]` in float32 or better; differentiable in what `vp` depends on.

    Raises:
      ValueError: a leaf that is not of floats, `vp` returning a tree unlike `like`,
        `num_samples` below 1.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.autodiff import hutchinson_trace
      >>> vp = lambda v: jnp.array([1.0, 5.0, 3.0]) * v
      >>> hutchinson_trace(vp, jnp.zeros(3), jax.random.key(0), 1)
      Array(9., dtype=float32)

    References:
      Hutchinson (1990), https://doi.org/10.1080/03610919008812866
    """
    like = floats("like", like)
    _check_count("num_samples", num_samples, 1)
    keys = jax.random.split(key, num_samples)
    _, product = _linear(vp, jax.tree.map(jnp.ones_like, like))

    def quadratic(key: jax.Array) -> jax.Array:
        dtype, z = _draw(jax.random.rademacher, key, like)
        terms = jax.tree.map(lambda z, az: jnp.sum(z.astype(dtype) * az), z, product(z))
        return sum(jax.tree.leaves(terms), jnp.zeros((), dtype))

    return jnp.mean(jax.lax.map(quadratic, keys))


# What the public functions share.


def _linear(vp: VectorProduct, at: Params) -> tuple[jnp.dtype, VectorProduct]:
    """A dtype for all leaves, at least float32, and `vp` from and to that dtype.

    A linear function is its own derivative. Linearised, it keeps what does not depend
    on the vector, which a loop would otherwise compute at every step.
    """
    value, product = jax.linearize(vp, at)
    _like("vp(v)", value, "v", at)
    dtype = _precise_dtype(at)

    def precise(v: Params) -> Params:
        v = jax.tree.map(lambda v, at: v.astype(at.dtype), v, at)
        return jax.tree.map(lambda av: av.astype(dtype), product(v))

    return dtype, precise


def _precise_dtype(tree: Params) -> jnp.dtype:
    """The dtype that holds all leaves, at least float32."""
    return jnp.result_type(jnp.float32, *jax.tree.leaves(tree))


def _draw(
    sampler: Callable[..., jax.Array],  # (key, shape, dtype), as of `jax.random`
    key: jax.Array,
    like: Params,
) -> tuple[jnp.dtype, Params]:
    """A dtype for all leaves, at least float32, and random numbers of their own."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    drawn = [sampler(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return _precise_dtype(like), jax.tree.unflatten(structure, drawn)


def _like(name: str, tree: X, like_name: str, like: X) -> X:
    """Make the leaves arrays; ValueError unless the tree has the form of `like`.

    Structure, shapes and dtypes are compared; Python floats go with every dtype.
    """
    given, expected = jax.tree.structure(tree), jax.tree.structure(like)
    if given != expected:
        raise ValueError(f"{name}: {given}, expected {expected} as {like_name}")
    for (path, x), y in zip(
        jax.tree.leaves_with_path(floats(name, tree)),
        jax.tree.leaves(like),
        strict=True,
    ):
        if x.shape != y.shape or not (x.dtype == y.dtype or jax.typeof(x).weak_type):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)}: {describe(x)}, "
                f"expected {describe(y)} as {like_name}"
            )
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), tree, like)


def _scalar(f: Callable[[X], jax.Array]) -> Callable[[X], jax.Array]:
    def checked(x: X) -> jax.Array:
        y = floats("f(x)", f(x))
        if not (isinstance(y, jax.Array) and y.ndim == 0):
            raise ValueError(
                f"f returned {jax.tree.map(describe, y)}, expected a scalar float"
            )
        return y

    return checked


def _returning_floats(f: Callable[[X], Y]) -> Callable[[X], Y]:
    return lambda x: floats("f(x)", f(x))


def _check_count(name: str, n: int, least: int, most: int | None = None) -> None:
    integer = isinstance(n, (int, np.integer)) and not isinstance(n, bool)
    if not integer or n < least or (most is not None and n > most):
        upper = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name}={n!r}, expected an int, at least {least}{upper}")
