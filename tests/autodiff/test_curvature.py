"""Curvature: closed forms, finite differences in float64, numpy's LAPACK."""

import functools
import math
import re

import chex
import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rljax import losses
from rljax.autodiff import _spectrum
from rljax.autodiff.curvature import (
    fisher_vp,
    gauss_newton_vp,
    hessian,
    hutchinson_trace,
    hvp,
    hvp_fn,
    natural_gradient,
    nth_derivative,
    top_eigenvalues,
)

from .. import oracles

ORDERS = ("forward-over-reverse", "reverse-over-forward", "reverse-over-reverse")
KEY = jax.random.key(0)
RNG = np.random.default_rng
close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-12)


def symmetric(seed, size):
    a = np.random.default_rng(seed).normal(size=(size, size))
    return a + a.T


def dense(vp, like):
    """The matrix `[P, P]` of a vector product: vmapped over all tangents."""
    flat, unravel = ravel_pytree(like)
    rows = jax.vmap(lambda v: ravel_pytree(vp(unravel(v)))[0])
    return rows(jnp.eye(flat.size, dtype=flat.dtype))


def finite_differences(f, x, step=1e-5):
    """`[P, ...]` central differences of an array function of a flat array."""
    eye = step * np.eye(x.size)
    return np.stack([np.subtract(f(x + e), f(x - e)) / (2 * step) for e in eye])


def matrix_product(a):
    """v to A v on trees {"w": [2, 2], "b": [P - 4]}."""

    def vp(v):
        flat, unravel = ravel_pytree(v)
        return unravel(jnp.asarray(a, flat.dtype) @ flat)

    return vp


def tree(x):
    return {"w": x[-4:].reshape(2, 2), "b": x[:-4]}  # ravelled: b, then w


def network(dtype, batch=5, outputs=3):
    """Parameters of a small linen network, and params -> `[batch, outputs]`."""
    module, rng = nn.Sequential([nn.Dense(3), nn.tanh, nn.Dense(outputs)]), RNG(1)
    obs = rng.normal(size=(batch, 2)).astype(dtype)
    shapes = jax.eval_shape(module.init, KEY, obs)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(dtype), shapes)
    return params, lambda params: module.apply(params, obs)


# Hessians.


def test_quadratic(x64):
    a, x = symmetric(0, 6), np.random.default_rng(1).normal(size=6)

    def f(x):
        flat = ravel_pytree(x)[0]
        return 0.5 * flat @ a @ flat

    @jax.jit
    def results(x):
        gradient, vp = hvp_fn(f, x)
        each = dense(functools.partial(hvp, f, x), x)
        return ravel_pytree(gradient)[0], [dense(vp, x), each, hessian(f, x)]

    gradient, hessians = results(tree(x))
    close(gradient, a @ x)
    for matrix in hessians:
        close(matrix, a)


def test_logistic_and_softmax_hessians(x64):
    rng = np.random.default_rng(0)
    x, w, y = rng.normal(size=(7, 4)), rng.normal(size=4), rng.integers(2, size=7)

    def logistic(w):
        return jnp.sum(jax.nn.softplus(x @ w) - y * (x @ w))

    p = 1 / (1 + np.exp(-x @ w))
    expected = x.T @ np.diag(p * (1 - p)) @ x
    pi = np.exp(w) / np.exp(w).sum()

    @jax.jit
    def hessians(w):
        softmax = lambda w: -jax.nn.log_softmax(w)[2]  # noqa: E731
        return [(hessian(logistic, w, o), hessian(softmax, w, o)) for o in ORDERS]

    for of_logistic, of_softmax in hessians(w):
        close(of_logistic, expected)
        close(of_softmax, np.diag(pi) - np.outer(pi, pi))


def test_hessian_of_a_network_equals_finite_differences(x64):
    params, apply = network(jnp.float64)
    flat, unravel = ravel_pytree(params)

    def loss(params):
        return jnp.mean(jnp.sin(apply(params)) ** 2)

    gradient = jax.jit(jax.grad(lambda flat: loss(unravel(flat))))
    expected = finite_differences(gradient, np.asarray(flat))
    assert np.abs(expected).max() > 0.1

    @jax.jit
    def hessians(params):
        return hessian(loss, params), dense(
            functools.partial(hvp, loss, params), params
        )

    for matrix in hessians(params):
        close(matrix, expected, atol=1e-8)


def test_only_reverse_over_reverse_takes_custom_vjps():
    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (cube(x), x), lambda x, g: (3 * x**2 * g,))
    assert jax.jit(lambda x: hessian(cube, x, "reverse-over-reverse"))(2.0) == 12
    with pytest.raises(TypeError, match="custom_vjp"):
        hessian(cube, 2.0, "reverse-over-forward")


# The n-th derivative.


@pytest.mark.parametrize("n", range(6))
def test_nth_derivatives_of_known_functions(x64, n):
    x, coefficients = 0.7, [2.0, -1.0, 0.5, 3.0, -2.0, 1.0, 0.25]
    polynomial = np.polynomial.Polynomial(coefficients)

    def f(x):
        powers = sum(c * x**k for k, c in enumerate(coefficients))
        return jnp.sin(x), {"exp": jnp.exp(2 * x), "polynomial": powers}

    sin, rest = jax.jit(nth_derivative(f, n))(x)
    close(sin, np.sin(x + n * np.pi / 2))
    close(rest["exp"], 2**n * np.exp(2 * x))
    close(rest["polynomial"], polynomial.deriv(n)(x) if n else polynomial(x))


def test_derivatives_of_values_by_the_discount(x64):
    mdp = oracles.random_mdp(0)
    policy = oracles.random_policy(1, mdp)
    p, r = oracles.policy_chain(mdp, policy)

    def values(gamma):
        def back_up(v, _):
            return r + gamma * p @ v, None

        return jax.lax.scan(back_up, jnp.zeros_like(r), length=500)[0]

    expected = oracles.policy_value(mdp, policy)
    derivatives = jax.jit(lambda x: [nth_derivative(values, n)(x) for n in range(4)])
    found = derivatives(mdp.gamma)
    close(found[0], expected)
    close(found[1], oracles.value_gamma_gradient(mdp, policy))
    for n in (1, 2, 3):  # V^(n) = n! ((I - gamma P)^-1 P)^n V
        step = np.linalg.solve(np.eye(len(r)) - mdp.gamma * p, p)
        expected = n * step @ expected
        close(found[n], expected)


def test_third_derivative_through_lambda_returns(x64):
    rng = np.random.default_rng(0)
    r, v = rng.normal(size=(2, 5))

    def returns(gamma):
        return losses.lambda_returns(r, jnp.full(5, gamma), v, 0.7)

    def third(gamma):
        discount = np.full(5, gamma)
        return oracles.lambda_returns(r, discount, v, np.full(5, 0.7))

    x, h = 0.8, 0.02  # central, of order 4: exact for polynomials of degree 6
    weights = {1: -13 / 8, 2: 1.0, 3: -1 / 8}
    expected = sum(
        w * (third(x + k * h) - third(x - k * h)) for k, w in weights.items()
    )
    derivative = jax.jit(nth_derivative(returns, 3))(x)
    close(derivative, expected / h**3, rtol=1e-8, atol=1e-8)
    assert np.abs(derivative).max() > 1


def test_derivatives_along_a_line_are_contractions(x64):
    params, apply = network(jnp.float64)
    direction = jax.tree.map(np.cos, params)

    def loss(params):
        return jnp.mean(jnp.sin(apply(params)) ** 2)

    @jax.vmap
    def second(t):
        point = jax.tree.map(lambda x, v: x + t * v, params, direction)
        product = hvp(loss, point, direction)
        return ravel_pytree(product)[0] @ ravel_pytree(direction)[0]

    @jax.jit
    def results(params, t):
        along = [nth_derivative(loss, n)(params, direction) for n in (2, 3)]
        return along, second(t)

    along, (down, middle, up) = results(params, np.array([-1e-5, 0.0, 1e-5]))
    close(along[0], middle)
    close(along[1], (float(up) - float(down)) / 2e-5, rtol=1e-7)


# Gauss-Newton, Fisher, natural gradients.


def test_gauss_newton_of_a_linear_network_is_the_hessian(x64):
    x, y = np.random.default_rng(0).normal(size=(2, 7, 4))
    params = {"w": y[:4, :2], "b": np.ones(2)}

    def linear(params):
        return {"mean": x @ params["w"] + params["b"]}

    def squared(outputs):
        return jnp.mean(jnp.sum((outputs["mean"] - y[:, :2]) ** 2, axis=1))

    @jax.jit
    def both(params):
        vp = functools.partial(gauss_newton_vp, linear, squared, params)
        return dense(vp, params), hessian(lambda x: squared(linear(x)), params)

    matrix, expected = both(params)
    close(matrix, expected)
    ones = np.concatenate([x, np.ones((7, 1))], axis=1)
    order = [8, 9, *range(8)]  # ravelled: the bias first
    explicit = np.kron(2 / 7 * ones.T @ ones, np.eye(2))[np.ix_(order, order)]
    close(expected, explicit)


def test_fisher_is_the_covariance_of_the_score(x64):
    params, apply = network(jnp.float64)
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def log_pi_and_score(flat):
        log_pi = lambda flat: jax.nn.log_softmax(apply(unravel(flat)))  # noqa: E731
        return log_pi(flat), jax.jacfwd(log_pi)(flat)

    log_pi, score = log_pi_and_score(flat)
    pi = np.exp(log_pi)
    expected = np.einsum("ba,bai,baj->ij", pi, score, score) / len(pi)

    def policy(params):
        return distrax.Categorical(apply(params))

    def kl(p_logits, q_logits):
        p, q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    def cross_entropy(logits):  # of labels that do not matter
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 1])

    @jax.jit
    def matrices(params):
        products = (
            functools.partial(fisher_vp, policy, params),
            functools.partial(fisher_vp, apply, params, kl=kl),
            functools.partial(gauss_newton_vp, apply, cross_entropy, params),
        )
        return [dense(vp, params) for vp in products]

    for matrix in matrices(params):
        close(matrix, expected)
    assert np.linalg.matrix_rank(expected) > 8


def test_fisher_of_a_gaussian(x64):
    params = {
        "mean": np.array([[0.3, -1.0], [0.1, 0.2]]),
        "log_std": np.array([0.5, -0.7]),
    }

    def policy(params):
        return distrax.MultivariateNormalDiag(
            params["mean"], jnp.exp(params["log_std"]) * jnp.ones((2, 1))
        )

    @jax.jit
    def fisher(params):
        return dense(functools.partial(fisher_vp, policy, params), params)

    matrix = fisher(params)
    precision = np.exp(-2 * params["log_std"])
    close(matrix, np.diag([2.0, 2.0, *precision / 2, *precision / 2]))


def test_derivative_of_a_fisher_product(x64):
    logits, v = np.array([0.3, -0.5, 1.0]), np.array([1.0, 2.0, -1.0])

    def policy(x):  # not the natural parameters: there KL's Hessian knows q alone
        return distrax.Categorical(jnp.sin(2 * x))

    def closed(x):
        pi, jv = jax.nn.softmax(jnp.sin(2 * x)), 2 * jnp.cos(2 * x) * v
        return 2 * jnp.cos(2 * x) * (pi * jv - pi * (pi @ jv))

    product = functools.partial(fisher_vp, policy, tangent=v)
    derivatives = jax.jit(lambda x: [jax.jacobian(f)(x) for f in (product, closed)])
    by_product, by_hand = derivatives(logits)
    close(by_product, by_hand)


def test_softmax_bandits(x64):
    deltas = np.array([1e-2, 1e-3, 1e-4])  # sizes of trust regions
    draws = [np.random.default_rng(seed).normal(size=(2, 5)) for seed in (0, 1)]
    thetas, rs = np.stack(draws, axis=1)

    @jax.jit
    @jax.vmap
    def solve(theta, r):
        gradient = jax.grad(lambda theta: jax.nn.softmax(theta) @ r)(theta)
        vp = functools.partial(fisher_vp, distrax.Categorical, theta)
        step = natural_gradient(vp, gradient, damping=1e-12, iterations=10, tol=1e-12)
        step -= step.mean()
        scale = jnp.sqrt(2 * deltas / (step @ vp(step)))
        new = distrax.Categorical(theta + scale[:, None] * step)
        kl = distrax.Categorical(theta[None]).kl_divergence(new)
        return jax.vmap(vp)(jnp.eye(5)), step, kl / deltas

    solved = map(np.asarray, solve(thetas, rs))
    cases = zip(thetas, rs, *solved, strict=True)
    for theta, r, fisher, step, ratios in cases:
        pi = np.exp(theta) / np.exp(theta).sum()
        close(fisher, np.diag(pi) - np.outer(pi, pi), rtol=0, atol=1e-15)
        close(step, r - r.mean(), rtol=0, atol=3e-11)
        slopes = abs(ratios - 1) / np.sqrt(deltas)
        close(slopes, slopes[2], rtol=0.15)  # to 1 as the square root of delta
    close(step, r - r.mean(), rtol=0, atol=4e-12)  # the numbers of experiments.md
    close(ratios, [0.963, 0.989, 0.996], atol=5e-4)


def test_natural_gradient_solves_and_differentiates(x64):
    a = symmetric(0, 6)
    a, b, db = a @ a, *np.random.default_rng(1).normal(size=(2, 6))

    def solution(damping, scale, b):
        vp = matrix_product(a)
        return natural_gradient(
            lambda v: jax.tree.map(lambda x: scale * x, vp(v)),
            tree(b),
            damping=damping,
            iterations=50,
            tol=1e-14,
        )

    def closed(damping, scale, b):
        return np.linalg.solve(scale * a + damping * np.eye(6), b)

    def flat(*args):
        return ravel_pytree(solution(*args))[0]

    @jax.jit
    def results(*args):
        back = jax.grad(lambda *args: flat(*args)[2], argnums=(0, 1, 2))
        return jax.jvp(flat, args, (1.0, 0.5, db)), back(*args)

    (x, slope), (d, s, g) = jax.tree.map(np.asarray, results(0.3, 2.0, b))
    close(x, closed(0.3, 2.0, b), rtol=1e-8)
    h = 1e-6
    up, down = (closed(0.3 + s, 2.0 + 0.5 * s, b + s * db) for s in (h, -h))
    close(slope, (up - down) / (2 * h), rtol=1e-6)
    close(d + 0.5 * s + g @ db, slope[2], rtol=1e-6)


@pytest.mark.parametrize("tol", [1e-5, 1e-7, 0.0])
def test_conjugate_gradients_end_where_rounding_begins(tol):
    """A softmax policy's Fisher matrix is singular: steps along its kernel grow."""
    rng = np.random.default_rng(0)
    pi = np.exp(2 * rng.normal(size=(3, 3)))
    pi = np.float32(pi / pi.sum(axis=1, keepdims=True))
    states = np.float32([[0.5], [0.3], [0.2]])
    advantages = np.float32(rng.normal(size=(3, 3)))
    advantages -= (pi * advantages).sum(axis=1, keepdims=True)

    def fisher(v):
        return states * (pi * v - pi * (pi * v).sum(axis=1, keepdims=True))

    @jax.jit
    def solved():
        return natural_gradient(
            fisher, states * pi * advantages, damping=0.0, iterations=500, tol=tol
        )

    x = np.asarray(solved())
    error = (x - x.mean(1, keepdims=True)) - (
        advantages - advantages.mean(1, keepdims=True)
    )
    assert np.abs(error).max() < 1e-4 and np.abs(x).max() < 20.0


def test_natural_gradient_at_zero():
    vp, zero = matrix_product(np.eye(5)), tree(np.zeros(5, np.float32))
    x = jax.jit(lambda g: natural_gradient(vp, g, damping=0.0))(zero)
    chex.assert_trees_all_equal(x, zero)


def test_one_iteration_is_a_step_along_the_gradient(x64):
    """The best one, (g.g / g.Ag) g; the matrix is not a multiple of the identity."""
    a, g = spectrum([1.0, 2.0, 3.0, 4.0, 5.0]), RNG(1).normal(size=5)

    @jax.jit
    def step(g):
        vp = matrix_product(a)
        return natural_gradient(vp, tree(g), damping=0.0, iterations=1)

    close(ravel_pytree(step(g))[0], (g @ g) / (g @ a @ g) * g)


# Eigenvalues and traces.


def spectrum(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    size = len(values)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return q @ np.diag(values) @ q.T


def test_all_eigenvalues_after_as_many_steps(x64):
    values = np.array(
        [
            [0.0, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 1],
            [2, 0, 0, 0, 0, 0],
            [3, 3, 3, 1, 1, 0],
            [-1, -2, -3, -4, -5, -6],
            [1e6, 1, 1e-6, -1e-6, -1, -1e6],
        ]
    )

    @jax.jit
    @jax.vmap
    def eigenvalues(a):
        return top_eigenvalues(matrix_product(a), tree(np.zeros(6)), KEY, k=6)

    found = eigenvalues(np.stack([spectrum(v) for v in values]))
    close(found[:-1], values[:-1], rtol=0, atol=1e-13)
    close(found[-1], values[-1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64]
)
def test_few_steps_find_the_largest(x64, dtype):
    """In float32, which is slow, the tolerance is coarser."""
    values = np.concatenate([[40.0, 30.0, -50.0, -10.0], np.linspace(-1, 1, 96)])
    vp = matrix_product(spectrum(values))
    like = tree(np.zeros(100, dtype))

    @jax.jit
    @jax.vmap
    def both_ends(sign):
        signed = lambda v: jax.tree.map(lambda x: sign * x, vp(v))  # noqa: E731
        return top_eigenvalues(signed, like, KEY, k=2, iterations=15)

    eigenvalues = both_ends(np.array([1, -1], dtype))
    assert eigenvalues.dtype == dtype
    tolerance = 1e-12 if dtype == jnp.float64 else 2e-6
    close(eigenvalues, [[40.0, 30.0], [50.0, 10.0]], rtol=tolerance)


@pytest.mark.parametrize("size", [1, 2, 3, 20, 21])
def test_jacobi_rotations_equal_lapack(x64, size):
    middle = size // 2
    wilkinson = np.diag(np.abs(np.arange(size) - middle).astype(float))  # near pairs
    wilkinson += np.eye(size, k=1) + np.eye(size, k=-1)
    matrices = (wilkinson, symmetric(0, size), np.ones((size, size)), np.eye(size))
    eigh = jax.jit(_spectrum.eigh)
    for a in matrices:
        values, vectors = map(np.asarray, eigh(a))
        close(np.sort(values), np.linalg.eigvalsh(a), atol=1e-13)
        close(vectors @ vectors.T, np.eye(size), atol=1e-13)
        close(vectors.T @ np.diag(values) @ vectors, a, atol=1e-13)


def test_eigenvalues_have_exact_derivatives(x64):
    params = np.array([0.5, 1.0, 1.5])
    a = np.stack([symmetric(i, 6) for i in range(3)])

    def top(params):
        vp = matrix_product(jnp.tensordot(jnp.sin(params), a, 1))
        return top_eigenvalues(vp, tree(np.zeros(6)), KEY, k=2)

    def exact(params):
        return np.linalg.eigvalsh(np.tensordot(np.sin(params), a, 1))[:-3:-1]

    @jax.jit
    def derivatives(params):
        one = jax.grad(lambda c: top_eigenvalues(lambda v: c * v, np.ones(1), KEY)[0])
        return jax.jacrev(top)(params), jax.jacfwd(top)(params), one(2.0)

    reverse, forward, of_one = derivatives(params)
    expected = finite_differences(exact, params)
    close(np.transpose(reverse), expected, rtol=1e-7)
    close(np.transpose(forward), expected, rtol=1e-7)
    assert of_one == 1  # where the iteration has nothing left to normalise


def test_no_lapack_under_vmap():
    def loss(x):
        return jnp.sum(jnp.tanh(x) ** 2) + jnp.prod(x)

    def everything(x):
        gradient, vp = hvp_fn(loss, x)
        return (
            natural_gradient(vp, gradient),
            top_eigenvalues(vp, x, KEY),
            hutchinson_trace(vp, x, KEY, 2),
            hessian(loss, x),
        )

    def calls(f, x):
        text = jax.jit(jax.vmap(f)).lower(x).compile().as_text()
        return re.findall(r'custom_call_target="(.*?)"', text)

    x = np.ones((2, 4), np.float32)
    assert not [name for name in calls(everything, x) if "lapack" in name]
    eigh = calls(lambda x: jnp.linalg.eigvalsh(jnp.diag(x)), x)
    if jax.default_backend() == "cpu":
        assert [name for name in eigh if "lapack" in name]


def test_hutchinson_trace(x64):
    a, num_samples = symmetric(0, 8), 4000
    like = tree(np.zeros(8))
    trace = functools.partial(hutchinson_trace, like=like, num_samples=num_samples)
    off_diagonal = a - np.diag(np.diag(a))
    error = np.sqrt(2 * np.sum(off_diagonal**2) / num_samples)

    @jax.jit
    def results(key):
        keys = jax.random.split(key, 16)
        estimates = jax.vmap(lambda key: trace(matrix_product(a), key=key))(keys)
        diagonal = matrix_product(np.diag(np.arange(8.0)))
        slope = jax.grad(
            lambda c: hutchinson_trace(matrix_product(c * np.eye(8)), like, key, 3)
        )
        return estimates, hutchinson_trace(diagonal, like, key, 1), slope(2.0)

    estimates, of_diagonal, slope = map(np.asarray, results(KEY))
    assert abs(estimates.mean() - np.trace(a)) < 4 * error / 4
    assert 0.5 < estimates.std(ddof=1) / error < 1.7
    assert of_diagonal == 28
    assert slope == 8


# Transformations, dtypes, bad input.


def scanned(f, tangents):
    """`f` of every tangent `[T, B, ...]`: a jitted scan over vmapped ones."""
    step = lambda _, v: (None, jax.vmap(f)(v))  # noqa: E731
    return jax.jit(lambda tangents: jax.lax.scan(step, None, tangents)[1])(tangents)


def test_jit_vmap_scan_in_both_precisions(x64):
    def products(dtype):
        params, apply = network(jnp.float32)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        tangents = jax.tree.map(lambda x: np.array([[x, x**2], [-x, 3 * x]]), params)

        def cross_entropy(logits):
            return -jnp.mean(jax.nn.log_softmax(logits)[:, 1])

        def policy(params):
            return distrax.Categorical(apply(params))

        def every(v):
            return (
                hvp(lambda params: cross_entropy(apply(params)), params, v),
                gauss_newton_vp(apply, cross_entropy, params, v),
                fisher_vp(policy, params, v),
            )

        return scanned(every, tangents)

    single, double = products(jnp.float32), products(jnp.float64)
    assert {x.dtype for x in jax.tree.leaves(single)} == {jnp.dtype("float32")}
    chex.assert_trees_all_close(
        single, jax.tree.map(np.float32, double), rtol=1e-4, atol=1e-6
    )
    chex.assert_trees_all_close(double[1], double[2], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)]
)
def test_solvers_inside_scan_and_vmap(x64, dtype):
    """In float64, which is slow, the tolerance is finer."""
    theta = np.random.default_rng(0).normal(size=(2, 2, 5)).astype(dtype)

    def solvers(theta):
        vp = functools.partial(fisher_vp, distrax.Categorical, theta)
        return (
            natural_gradient(vp, theta, damping=0.1, iterations=20, tol=1e-7),
            top_eigenvalues(vp, theta, KEY, k=5),
            hutchinson_trace(vp, theta, KEY, 1),
        )

    results = jax.tree.map(np.asarray, scanned(solvers, theta))
    assert {x.dtype for x in results} == {jnp.dtype(dtype)}
    tolerance = 1e-6 if dtype == jnp.float64 else 2e-5
    for i, j in np.ndindex(2, 2):
        pi = np.exp(theta[i, j]) / np.exp(theta[i, j]).sum()
        fisher = np.diag(pi) - np.outer(pi, pi)
        x, eigenvalues, trace = (y[i, j] for y in results)
        expected = np.linalg.solve(fisher + 0.1 * np.eye(5), theta[i, j])
        close(x, expected, rtol=tolerance, atol=tolerance)
        expected = np.linalg.eigvalsh(fisher)[::-1]
        close(eigenvalues, expected, rtol=tolerance, atol=tolerance)
        assert 0 < trace <= 1


def test_leaves_of_several_dtypes():
    like = {"a": np.ones(2, jnp.bfloat16), "b": np.ones(3, np.float32)}

    @jax.jit
    def results(like):
        vp = functools.partial(jax.tree.map, lambda x: 2 * x)
        return (
            natural_gradient(vp, like, damping=2.0),
            hutchinson_trace(vp, like, KEY, 1),
            top_eigenvalues(vp, like, KEY),
        )

    x, trace, eigenvalues = results(like)
    chex.assert_trees_all_equal(x, jax.tree.map(lambda x: x / 4, like))
    assert trace == 10
    assert eigenvalues.dtype == jnp.float32


X = {"w": np.ones(2, np.float32)}


def square(x):
    return jnp.sum(ravel_pytree(x)[0] ** 2)


def same(v):
    return v


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hvp(square, X, {"w": np.ones(3, np.float32)}),
            r"tangents\['w'\]: float32\[3\]",
        ),
        (lambda: hvp(square, X, {"v": np.ones(2, np.float32)}), "tangents: PyTreeDef"),
        (
            lambda: hvp(square, {"w": np.arange(2, dtype=np.int32)}, X),
            r"\['w'\]: .* int32\[2\]",
        ),
        (lambda: hvp(square, X, {"w": np.ones(2, np.float16)}), r"float16\[2\]"),
        (lambda: hvp(square, X, {"w": "text"}), "'text'"),
        (lambda: hvp(square, {}, {}), "expected arrays of floats, got {}"),
        (lambda: hvp(same, X, X), r"f returned .*float32\[2\]"),
        (lambda: hvp(lambda x: x["w"], X, X), r"f returned float32\[2\]"),
        (lambda: hvp_fn(square, {"w": True}), "bool"),
        (
            lambda: hvp_fn(square, X)[1]({"w": np.ones(3, np.float32)}),
            r"^tangents\['w'\]",
        ),
        (lambda: hessian(square, X, "forward"), "order='forward'"),  # type: ignore
        (lambda: hessian(square, {"w": 1}), r"\['w'\]"),
        (lambda: hessian(same, X), "f returned"),
        (lambda: nth_derivative(square, -1), "n=-1"),
        (lambda: nth_derivative(square, 1.0), "n=1.0"),  # type: ignore
        (lambda: nth_derivative(square, 1)(X), "give a direction"),
        (lambda: nth_derivative(square, 1)(X, X["w"]), "direction: PyTreeDef"),
        (lambda: nth_derivative(square, 1)(2), "expected an array of floats"),
        (lambda: nth_derivative(lambda x: 3, 1)(2.0), r"f\(x\): .* int32\[\]"),
        (lambda: gauss_newton_vp(same, square, X, X["w"]), "tangent: PyTreeDef"),
        (lambda: gauss_newton_vp(same, same, X, X), "f returned"),
        (
            lambda: gauss_newton_vp(lambda x: jnp.arange(2), square, X, X),
            r"network_fn\(params\): .*int32",
        ),
        (lambda: fisher_vp(same, X, X), "is dict, expected a distrax"),
        (lambda: fisher_vp(same, X, X["w"], kl=lambda p, q: 0.0), "tangent: PyTree"),
        (lambda: natural_gradient(same, X, iterations=0), "iterations=0"),
        (lambda: natural_gradient(same, X, damping=-1.0), "damping=-1.0"),
        (lambda: natural_gradient(same, X, tol=math.nan), "tol=nan"),
        (lambda: natural_gradient(lambda v: v["w"], X), r"vp\(v\): PyTreeDef"),
        (lambda: top_eigenvalues(same, X, KEY, k=3), "k=3, .* at most 2"),
        (lambda: top_eigenvalues(same, X, KEY, k=0), "k=0"),
        (lambda: top_eigenvalues(same, X, KEY, k=2, iterations=1), "iterations=1"),
        (lambda: top_eigenvalues(square, X, KEY), r"vp\(v\): PyTreeDef"),
        (lambda: hutchinson_trace(same, X, KEY, 0), "num_samples=0"),
        (
            lambda: hutchinson_trace(same, {"w": np.arange(2, dtype=np.int32)}, KEY, 1),
            r"like\['w'\]",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)  # compiles nothing
