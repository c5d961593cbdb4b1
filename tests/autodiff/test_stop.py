"""Semi-gradients by argument separation, residual gradients, scaled gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.autodiff.stop import (
    residual_gradient,
    scale_gradient,
    semi_gradient,
    value_and_semi_gradient,
)


def toy(v, v_bootstrap, gamma):
    return 0.5 * (1 + 2 * gamma * v_bootstrap - v) ** 2


def stopped_toy(v, v_bootstrap, gamma):
    return toy(v, jax.lax.stop_gradient(v_bootstrap), gamma)


def outer(gradient, num_steps):
    def objective(gamma):
        def step(v, _):
            return v - 0.1 * gradient(v, gamma), None

        v, _ = jax.lax.scan(step, jnp.asarray(0.5), length=num_steps)
        return (v - 2.5) ** 2

    return objective


@pytest.mark.parametrize(
    "num_steps, separated, stopped",
    [
        (1, -0.37200, -0.37200),
        (2, -0.80655, -0.74504),
        (3, -1.27696, -1.09558),
        (5, -2.15510, -1.61497),
    ],
)
def test_meta_gradient_through_inner_steps(num_steps, separated, stopped, x64):
    """experiments.md A2. What is stopped loses the path of the earlier updates."""
    exact = jax.value_and_grad(outer(semi_gradient(toy), num_steps))
    wrong = jax.grad(outer(residual_gradient(stopped_toy), num_steps))
    evaluate = jax.jit(lambda gamma: (exact(gamma), wrong(gamma)))
    h, ((_, slope), wrong_slope) = 1e-6, evaluate(0.9)
    up, down = (float(evaluate(0.9 + d)[0][0]) for d in (h, -h))
    np.testing.assert_allclose(slope, separated, atol=5e-6)
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-8)
    np.testing.assert_allclose(wrong_slope, stopped, atol=5e-6)


def a_split(v, v_bootstrap):
    """experiments.md B8: A to B or C, B to the end with reward 1, C with 0."""
    a, b, c = v[0], v[1], v[2]
    errors = jnp.stack([v_bootstrap[1] - a, v_bootstrap[2] - a, 1 - b, 0 - c])
    return 0.125 * jnp.sum(errors**2)


@pytest.mark.parametrize(
    "differentiate, fixed_point",
    [(semi_gradient, [0.5, 1.0, 0.0]), (residual_gradient, [0.5, 0.75, 0.25])],
)
def test_a_split(differentiate, fixed_point, x64):
    gradient = differentiate(a_split)
    v = np.zeros(3)  # the gradient is affine in v
    slope, g = jax.jit(lambda v: (jax.jacobian(gradient)(v), gradient(v)))(v)
    v = np.linalg.solve(slope, -np.asarray(g))
    np.testing.assert_allclose(v, fixed_point, atol=1e-12)


def test_auxiliary_outputs_trees_and_keywords():
    def loss(params, bootstrap_params, x, *, r):
        target = r + jnp.vdot(bootstrap_params["w"], x) + bootstrap_params["b"]
        error = target - 2 * (jnp.vdot(params["w"], x) + params["b"])
        return 0.5 * error**2, error

    params, x = {"w": jnp.array([1.0, -2.0]), "b": 0.5}, jnp.array([2.0, 1.0])
    error = 3.0 + 0.5 - 2 * 0.5
    for step, factor in (
        (semi_gradient, -2.0),
        (residual_gradient, -1.0),
        (value_and_semi_gradient, -2.0),
    ):
        out = jax.jit(step(loss, has_aux=True))(params, x, r=3.0)
        if step is value_and_semi_gradient:
            (value, aux), gradient = out
            assert value == 0.5 * error**2
        else:
            gradient, aux = out
        assert aux == error
        np.testing.assert_allclose(gradient["w"], factor * error * x)
        np.testing.assert_allclose(gradient["b"], factor * error)


@pytest.mark.parametrize(
    "make", [semi_gradient, value_and_semi_gradient, residual_gradient]
)
def test_refuses(make):
    with pytest.raises(ValueError, match="loss: expected a function, got 3"):
        make(3)
    with pytest.raises(ValueError, match=r"expected a scalar, got \(2,\)"):
        make(lambda p, q: p - q)(jnp.zeros(2))
    with pytest.raises(ValueError, match=r"params\['n'\].*int32"):
        make(lambda p, q: p["w"])({"w": 1.0, "n": jnp.arange(2)})
    with pytest.raises(ValueError, match="params: .*got {}"):
        make(lambda p, q: 0.0)({})


@pytest.mark.parametrize("scale", [0.5, -1.0, 0.0, jnp.float32(0.0), 3.0])
def test_scale_gradient(scale):
    """The value to the bit, derivative n times scale^n, forward and reverse."""
    x = np.array([1e-30, 0.1, -0.0, 3e38, np.inf, np.nan], np.float32)
    y = jax.jit(lambda x: scale_gradient(x, scale))(x)
    np.testing.assert_array_equal(np.asarray(y).view(np.int32), x.view(np.int32))

    def f(x):
        return jnp.sin(scale_gradient(x, scale))

    @jax.jit
    def derivatives(x):
        by_mode = []
        for mode in (jax.grad, jax.jacfwd):
            first = mode(f)
            second = mode(first)
            by_mode.append([first(x), second(x), mode(second)(x)])
        return by_mode

    expected = float(scale) ** np.arange(1, 4) * [
        np.cos(0.7),
        -np.sin(0.7),
        -np.cos(0.7),
    ]
    for computed in derivatives(0.7):
        np.testing.assert_allclose(computed, expected, rtol=1e-6)


def test_scale_is_differentiable_through_the_gradient():
    def gradient(scale):
        return jax.grad(lambda x: scale_gradient(x, scale) ** 2)(3.0)

    # A traced 0 has a gradient to give.
    assert jax.jit(jax.grad(gradient))(0.0) == 6.0
    assert jax.jit(jax.grad(lambda scale: scale_gradient(3.0, scale)))(2.0) == 0.0


def test_scale_gradient_of_trees():
    def f(tree):
        tree = scale_gradient(tree, 2.0)
        assert tree["n"].dtype == jnp.int32 and tree["h"].dtype == jnp.bfloat16
        return jnp.sum(tree["x"]) + tree["h"].astype(jnp.float32)

    tree = {
        "x": np.ones(2, np.float32),
        "h": np.ones((), jnp.bfloat16),
        "n": np.int32(3),
    }
    gradient = jax.jit(jax.grad(f, allow_int=True))(tree)
    np.testing.assert_array_equal(gradient["x"], [2.0, 2.0])
    assert gradient["h"] == 2 and gradient["h"].dtype == jnp.bfloat16
    # What a Python 0 stops may be infinite.
    assert jax.jit(jax.grad(lambda x: jnp.sqrt(scale_gradient(x, 0))))(0.0) == 0.0
    with pytest.raises(ValueError, match=r"scale: .*\(2,\)"):
        scale_gradient(tree, np.ones(2))
