"""Gradient TD, and the divergence of semi-gradients that it avoids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import losses

from .. import oracles
from .cases_gradient_td import CASES
from .loss_case import draw_numpy

STOPS = ("bootstrap", "target", "none")


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("method", ["TDC", "", None])
def test_unknown_method(method):
    x = draw_numpy(CASES["gradient_td_loss"])
    with pytest.raises(ValueError, match="'tdc', 'gtd2'") as error:
        losses.gradient_td_loss(**x, method=method)
    assert f"method={method!r}" in str(error.value)


# Gradient TD.


def test_gradient_td_is_minus_the_updates(x64):
    """By hand: the TD error is 3 + 0.5 * 4 - 2 = 3; h is 2."""

    def loss(v_tm1, v_t, h_tm1, method):
        return losses.gradient_td_loss(
            v_tm1, 3.0, 0.5, v_t, h_tm1, v_tm1, v_t, h_tm1, method=method
        )

    for method, first in (("tdc", -3.0), ("gtd2", -2.0)):
        slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnames="method")
        g = slopes(2.0, 4.0, 2.0, method=method)
        np.testing.assert_allclose(g, (first, 1.0, -1.0), 1e-12)


@pytest.mark.parametrize("stop", STOPS)
def test_gtd2_gradients_of_each_mode(stop, x64):
    """Every partial derivative; TDC's are in the sweep."""
    x = draw_numpy(CASES["gradient_td_loss"])
    loss = functools.partial(losses.gradient_td_loss, method="gtd2", stop=stop)
    v_tm1, _, discount, v_t, h, _, target_v_t, target_h = x.values()
    e = x["r_t"] + discount * target_v_t - x["target_v_tm1"] - h
    expected = {"v_tm1": -target_h, "v_t": discount * target_h, "h_tm1": -e}
    live = {"r_t": e, "discount_t": target_h * v_t + e * target_v_t}
    network = {
        **{"target_v_tm1": -e, "target_v_t": discount * e},
        "target_h_tm1": discount * v_t - v_tm1,
    }
    for parts, on in ((live, stop != "target"), (network, stop == "none")):
        expected |= {k: y if on else 0.0 for k, y in parts.items()}
    value, g = jax.jit(jax.value_and_grad(lambda x: loss(**x)))(x)
    for k, y in expected.items():
        np.testing.assert_allclose(g[k], y, 1e-12, err_msg=k)
    oracle = CASES["gradient_td_loss"].oracle(**x, method="gtd2")
    np.testing.assert_allclose(value, oracle, 1e-12)


class Linear:
    """Linear values of a random MDP's states and of their policy's chain."""

    def __init__(self, num_features=2):
        mdp = oracles.random_mdp(3)
        self.p, self.r = oracles.policy_chain(mdp, oracles.random_policy(3, mdp))
        self.gamma = mdp.gamma
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(len(self.r), num_features))
        self.d = rng.dirichlet(np.ones(len(self.r)))  # off-policy: not stationary
        self.w, self.u = rng.normal(size=(2, num_features))

    def update(self, w):
        """`[F]` expected semi-gradient update."""
        td = self.r + self.gamma * self.p @ self.x @ w - self.x @ w
        return self.x.T @ (self.d * td)

    def covariance(self):
        return self.x.T @ (self.d[:, None] * self.x)

    def projected_bellman_error(self, w):
        return self.update(w) @ jnp.linalg.solve(self.covariance(), self.update(w))

    def loss(self, w, u, method):
        """Expected over states and successors."""
        f = functools.partial(losses.gradient_td_loss, method=method)
        f = jax.vmap(f, (None, None, None, 0, None, None, 0, None))
        f = jax.vmap(f, (0, 0, None, None, 0, 0, None, 0))
        v, h = self.x @ w, self.x @ u
        each = f(v, jnp.asarray(self.r), self.gamma, v, h, v, v, h)
        return jnp.sum(self.d[:, None] * self.p * each)


@pytest.mark.parametrize("method", ["tdc", "gtd2"])
def test_with_the_best_h_it_descends_the_projected_bellman_error(method, x64):
    linear = Linear()
    w, u = linear.w, linear.u
    best = np.linalg.solve(linear.covariance(), linear.update(w))
    g = jax.jit(jax.grad(linear.loss, argnums=(0, 1)), static_argnums=2)
    g_w, g_u = g(w, best, method)
    truth = jax.jit(jax.grad(linear.projected_bellman_error))(w)
    assert np.abs(truth).min() > 1e-2
    np.testing.assert_allclose(g_w, truth / 2, 1e-10)
    np.testing.assert_allclose(g_u, 0.0, atol=1e-12)
    lms = linear.update(w) - linear.covariance() @ u
    np.testing.assert_allclose(-g(w, u, method)[1], lms, 1e-10)


@pytest.mark.parametrize("method", ["tdc", "gtd2"])
def test_td_fixed_point_is_at_rest(method, x64):
    linear = Linear()
    a = linear.x.T @ (linear.d[:, None] * (linear.gamma * linear.p - np.eye(4)))
    w = -np.linalg.solve(a @ linear.x, linear.x.T @ (linear.d * linear.r))
    g = jax.jit(jax.grad(linear.loss, argnums=(0, 1)), static_argnums=2)
    np.testing.assert_allclose(g(w, np.zeros(2), method), np.zeros((2, 2)), atol=1e-12)


def test_between_semi_gradient_and_residual_gradient(x64):
    """With h = 0 TDC is TD; with h the TD error both are the residual gradient."""
    w = np.array([0.3, -0.7])
    x_tm1, x_t = np.array([1.0, 2.0]), np.array([-1.0, 0.5])

    def gradient_td_of(w, h, method):
        v_tm1, v_t = x_tm1 @ w, x_t @ w
        return losses.gradient_td_loss(
            v_tm1, 1.0, 0.9, v_t, h, v_tm1, v_t, h, method=method
        )

    def td(w, stop):
        return losses.td_learning(x_tm1 @ w, 1.0, 0.9, x_t @ w, stop=stop)

    def td_gradient(w, stop):
        return jax.grad(lambda w: td(w, stop) ** 2 / 2)(w)

    @jax.jit
    def evaluate(w):
        g, h = jax.grad(gradient_td_of), td(w, "none")
        corrected = g(w, 0.0, "tdc"), g(w, h, "tdc"), g(w, h, "gtd2")
        return td_gradient(w, "bootstrap"), td_gradient(w, "none"), corrected

    semi, residual, (without_h, tdc, gtd2) = jax.device_get(evaluate(w))
    np.testing.assert_allclose(without_h, semi, 1e-12)
    np.testing.assert_allclose(tdc, residual, 1e-12)
    np.testing.assert_allclose(gtd2, residual, 1e-12)
    assert np.abs(semi - residual).min() > 0.1


# Divergence of semi-gradients, from the literature.


def descend(gradient, params, rates, num_steps):
    """The parameters at each of the steps, the first ones included."""

    def step(p, _):
        g = gradient(p)
        return jax.tree.map(lambda x, y, rate: x - rate * y, p, g, rates), p

    run = jax.jit(lambda p: jax.lax.scan(step, p, length=num_steps + 1)[1])
    return jax.device_get(run(params))


class Baird:
    """Seven states, eight weights, no reward; every action evaluated leads to one.

    Baird (1995); Sutton and Barto (2018), section 11.2. States are uniform.
    """

    gamma = 0.99
    x = 2 * np.eye(7, 8)
    x[6, 6] = 1.0
    x[:, 7] = [1.0] * 6 + [2.0]
    w = np.array([1.0] * 6 + [10.0, 1.0])

    @classmethod
    def td(cls, w, boot, stop):
        """`[7]` TD errors: predictions by `w`, bootstraps by `boot`."""
        x = jnp.asarray(cls.x)
        f = functools.partial(losses.td_learning, stop=stop)
        return jax.vmap(f, (0, None, None, None))(x @ w, 0.0, cls.gamma, x[6] @ boot)

    @classmethod
    def loss(cls, w, boot, stop):
        return jnp.mean(cls.td(w, boot, stop) ** 2) / 2

    @classmethod
    def separated(cls, w):
        return jax.grad(cls.loss)(w, w, "none")


@pytest.mark.parametrize("stop", ["bootstrap", "target", "separated"])
def test_semi_gradient_diverges_on_bairds_counterexample(stop, x64):
    gradient = Baird.separated
    if stop != "separated":
        gradient = jax.grad(lambda w: Baird.loss(w, w, stop))
    w = descend(gradient, jnp.asarray(Baird.w), 0.01, 1000)
    norms = np.linalg.norm(w, axis=1)[[0, 100, 500, 1000]]
    np.testing.assert_allclose(norms, [10.344, 16.826, 101.22, 436.86], 1e-4)


def test_growth_on_bairds_counterexample(x64):
    """By an eigenvalue of the update, which is seen through no stopped bootstrap."""
    slope = jax.jit(jax.jacobian(Baird.separated))(Baird.w)
    rate = np.linalg.eigvals(-slope).real.max()
    np.testing.assert_allclose(rate, 0.239250, atol=5e-7)
    np.testing.assert_allclose(1 + 0.01 * rate, 1.002393, atol=5e-7)
    hessian = jax.hessian(lambda w: Baird.loss(w, w, "bootstrap"))
    stopped = -jax.jit(hessian)(Baird.w)
    assert np.linalg.eigvals(stopped).real.max() < 1e-12


def test_residual_gradient_converges_on_bairds_counterexample(x64):
    def loss(w):
        return Baird.loss(w, w, "none")

    w = descend(jax.grad(loss), jnp.asarray(Baird.w), 0.01, 20_000)
    errors = [2 * jax.jit(loss)(w[k]) for k in (0, 1000, 20_000)]
    np.testing.assert_allclose(errors, [67.5915, 5.4417e-5, 5.3929e-5], 1e-4)


def test_tdc_converges_on_bairds_counterexample(x64):
    x = jnp.asarray(Baird.x)

    def loss(params):
        v, h = x @ params["w"], x @ params["u"]
        f = jax.vmap(losses.gradient_td_loss, (0, None, None, None, 0, 0, None, 0))
        return jnp.mean(f(v, 0.0, Baird.gamma, v[6], h, v, v[6], h))

    params = {"w": jnp.asarray(Baird.w), "u": jnp.zeros(8)}
    w = descend(jax.grad(loss), params, {"w": 0.005, "u": 0.05}, 1000)["w"]

    def errors(w):
        """Roots of the projected Bellman error and of the value error."""
        x, td = Baird.x, jax.jit(Baird.td, static_argnums=2)
        update = x.T @ td(w, w, "none") / 7
        pbe = update @ np.linalg.pinv(x.T @ x / 7) @ update
        return np.sqrt([pbe, np.mean((x @ w) ** 2)])

    expected = {0: (8.2214, 5.3184), 100: (2.7792, 3.3230), 1000: (0.00738, 1.9355)}
    for k, roots in expected.items():
        np.testing.assert_allclose(errors(w[k]), roots, 1e-3)
    np.testing.assert_allclose(w[-1], [2.135] * 6 + [6.628, -2.338], atol=5e-4)


@pytest.mark.parametrize(
    "stop, expected",
    [("bootstrap", (1 / 2, 1.0, 0.0)), ("none", (1 / 2, 3 / 4, 1 / 4))],
)
def test_a_split(stop, expected, x64):
    """Sutton and Barto (2018), example 11.2: residual gradients split the credit.

    From A to B or C with equal chances, from B to the end with 1, from C with 0.
    """
    s_tm1, s_t = jnp.array([0, 0, 1, 2]), jnp.array([1, 2, 0, 0])
    r_t, discount_t = jnp.array([0.0, 0.0, 1.0, 0.0]), jnp.array([1.0, 1.0, 0.0, 0.0])

    def loss(v):
        f = jax.vmap(functools.partial(losses.td_learning, stop=stop))
        return jnp.mean(f(v[s_tm1], r_t, discount_t, v[s_t]) ** 2)

    v = descend(jax.grad(loss), jnp.zeros(3), 0.5, 500)[-1]
    np.testing.assert_allclose(v, expected, atol=1e-10)


@pytest.mark.parametrize(
    "gamma, factor", [(0.49, 0.998), (0.5, 1.0), (0.51, 1.002), (0.99, 1.098)]
)
def test_semi_gradient_from_w_to_2w(gamma, factor, x64):
    """It diverges where gamma > 1/2; the residual gradient never."""

    def step(w, stop):
        def loss(w):
            return losses.td_learning(w, 0.0, gamma, 2 * w, stop=stop) ** 2 / 2

        return w - 0.1 * jax.grad(loss)(w)

    residual = 1 - 0.1 * (2 * gamma - 1) ** 2
    steps = jax.jit(lambda w: [step(w, stop) for stop in ("bootstrap", "none")])(1.0)
    np.testing.assert_allclose(steps, [factor, residual], 1e-12)
