"""Derivatives of expectations: exact sums where possible, else five standard errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.autodiff.estimators import (
    dice_objective,
    loaded_dice_objective,
    magic_box,
    pathwise_gradient,
    rebar_surrogate,
    relax_gradient,
    score_function_gradient,
    variance_table,
)
from rljax.autodiff.straight_through import gumbel_softmax

from . import oracles


@pytest.mark.parametrize(
    "theta, first, second, wrong",
    [(0.3, 0.244458, -0.036396, -0.140427), (0.0, 0.25, 0.0, -0.125)],
)
def test_bernoulli(theta, first, second, wrong, x64):
    """experiments.md B5: the reward is the action, the expectation summed."""

    def expectation(estimate):
        def objective(x):
            total = 0.0
            for a in (0.0, 1.0):
                log_prob = jax.nn.log_sigmoid((2 * a - 1) * x)
                probability = jnp.exp(jax.lax.stop_gradient(log_prob))
                total += probability * estimate(log_prob, a)
            return total

        return objective

    dice = expectation(lambda log_prob, a: a * magic_box(log_prob))
    surrogate = expectation(lambda log_prob, a: a * log_prob)
    np.testing.assert_allclose(dice(theta), jax.nn.sigmoid(theta), rtol=1e-15)
    for objective in (dice, surrogate):
        np.testing.assert_allclose(jax.grad(objective)(theta), first, atol=5e-7)
    for objective, expected in ((dice, second), (surrogate, wrong)):
        derivative = jax.grad(jax.grad(objective))(theta)
        np.testing.assert_allclose(derivative, expected, atol=5e-7)


class TwoSteps:
    """State 0, then 1 or 2, then 3 for ever: closed forms, and all trajectories."""

    def __init__(self):
        mdp = oracles.random_mdp(0, num_states=4, num_actions=2)
        p, r = mdp.p.copy(), mdp.r.copy()
        p[0, :, [0, 3]] = 0.0
        p[0] /= p[0].sum(-1, keepdims=True)
        p[1:] = np.eye(4)[3]
        r[3] = 0.0
        self.mdp = oracles.MDP(p, r, mdp.gamma)
        self.logits = np.random.default_rng(1).normal(size=(4, 2))
        pi = np.exp(self.logits)
        self.policy = pi / pi.sum(1, keepdims=True)
        self.v = oracles.policy_value(self.mdp, self.policy)
        self.adv = oracles.action_value(self.mdp, self.v) - self.v[:, None]
        parts = [oracles.trajectories(self.mdp, self.policy, 0, a, 2) for a in (0, 1)]
        first = np.repeat(self.policy[0], len(parts[0][0]))
        probability, s, a = map(np.concatenate, zip(*parts, strict=True))
        possible = probability > 0
        self.probability = (first * probability)[possible]
        self.s, self.a = s[possible, :2], a[possible]

    def gradient(self, logits, gamma=None):
        mdp = self.mdp._replace(gamma=self.mdp.gamma if gamma is None else gamma)
        return oracles.policy_gradient(mdp, logits, np.eye(4)[0])

    def hessian(self, h=1e-5):
        rows = []
        for i in np.ndindex(4, 2):
            step = np.zeros((4, 2))
            step[i] = h
            up, down = (
                self.gradient(self.logits + step),
                self.gradient(self.logits - step),
            )
            rows.append((up - down) / (2 * h))
        return np.reshape(rows, (4, 2, 4, 2))

    def derivatives(self, objective):
        """Of `objective(log_probs, t)`: value, gradient, Hessian of each trajectory."""

        def one(logits, s, a):
            return objective(jax.nn.log_softmax(logits)[s, a], s, a)

        def all_of(logits, s, a):
            return one(logits, s, a), jax.grad(one)(logits, s, a), hessian(logits, s, a)

        hessian = jax.hessian(one)
        return jax.jit(jax.vmap(all_of, (None, 0, 0)))(self.logits, self.s, self.a)

    def moments(self, x):
        mean = np.tensordot(self.probability, x, 1)
        return mean, np.sum(np.tensordot(self.probability, x**2, 1) - mean**2)


@pytest.fixture(scope="module")
def two_steps():
    return TwoSteps()


def test_dice_gives_the_exact_derivatives_of_the_return(two_steps, x64):
    """Summed over all trajectories; baselines change the variance alone."""
    mdp = two_steps.mdp
    r, v = jnp.asarray(mdp.r), jnp.asarray(two_steps.v)
    variances = []
    for scale in (None, 1.0, -1.0):  # no baseline, the values, the worst

        def objective(log_probs, s, a, scale=scale):
            baselines = None if scale is None else scale * v[s]
            return dice_objective(log_probs, r[s, a], mdp.gamma, baselines)

        (value, _), (gradient, var_1), (hessian, var_2) = map(
            two_steps.moments, two_steps.derivatives(objective)
        )
        np.testing.assert_allclose(value, two_steps.v[0], rtol=1e-12)
        np.testing.assert_allclose(
            gradient, two_steps.gradient(two_steps.logits), atol=1e-12
        )
        np.testing.assert_allclose(hessian, two_steps.hessian(), atol=1e-9)
        variances.append((var_1, var_2))
    plain, good, bad = np.array(variances)
    assert np.all(good < plain) and np.all(plain < bad)


def test_loaded_dice_gives_the_exact_derivatives_of_the_return(two_steps, x64):
    adv, gamma = jnp.asarray(two_steps.adv), two_steps.mdp.gamma

    def objective(log_probs, s, a):
        return loaded_dice_objective(log_probs, adv[s, a], gamma)

    (value, _), (gradient, _), (hessian, _) = map(
        two_steps.moments, two_steps.derivatives(objective)
    )
    assert value == 0.0
    np.testing.assert_allclose(
        gradient, two_steps.gradient(two_steps.logits), atol=1e-12
    )
    np.testing.assert_allclose(hessian, two_steps.hessian(), atol=1e-9)


@pytest.mark.parametrize("lambda_", [0.0, 0.3])
def test_lambda_of_loaded_dice(lambda_):
    """By hand: three steps, whose log-probabilities are theta, 2 theta, 4 theta."""
    w, adv = np.array([1.0, 0.5, 0.0]), np.array([1.0, -3.0, 7.0])
    discounts = jnp.array([0.5, 0.0, 0.9])  # step 2 comes after the end

    def objective(x):
        log_probs = x * jnp.array([1.0, 2.0, 4.0])
        return loaded_dice_objective(log_probs, jnp.asarray(adv), discounts, lambda_)

    before = np.array([0.0, lambda_ * 1, lambda_ * (lambda_ * 1 + 2)])
    after = before + [1.0, 2.0, 4.0]
    first = np.sum(w * adv * (after - before))
    second = np.sum(w * adv * (after**2 - before**2))
    np.testing.assert_allclose(jax.grad(objective)(-0.5), first, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(jax.grad(objective))(-0.5), second, rtol=1e-6)


def test_dice_keeps_the_discount_alive(two_steps, x64):
    """The mixed derivative of a meta-gradient: d/d discount of the policy gradient."""
    r, gamma = jnp.asarray(two_steps.mdp.r), two_steps.mdp.gamma
    s, a = two_steps.s, two_steps.a

    def expected_return(logits, gamma):
        log_probs = jax.nn.log_softmax(logits)[s, a]
        objective = jax.vmap(dice_objective, (0, 0, None))
        return two_steps.probability @ objective(log_probs, r[s, a], gamma)

    value, mixed = jax.jit(
        lambda *x: (
            jax.grad(expected_return, 1)(*x),
            jax.jacfwd(jax.grad(expected_return), 1)(*x),
        )
    )(two_steps.logits, gamma)
    expected = oracles.value_gamma_gradient(two_steps.mdp, two_steps.policy)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    h, logits = 1e-5, two_steps.logits
    difference = two_steps.gradient(logits, gamma + h) - two_steps.gradient(
        logits, gamma - h
    )
    np.testing.assert_allclose(mixed, difference / (2 * h), atol=1e-9)


def test_a_zero_discount_ends_the_episode():
    """And has a finite derivative of its own."""
    log_probs, rewards = jnp.log(jnp.array([0.5, 0.5, 0.5])), jnp.array([1.0, 2.0, 9.0])
    discounts = jnp.array([0.5, 0.0, 0.0])
    value, (g, g_discounts) = jax.value_and_grad(dice_objective, (0, 2))(
        log_probs, rewards, discounts
    )
    assert value == 2.0
    np.testing.assert_array_equal(g, [2.0, 1.0, 0.0])
    np.testing.assert_array_equal(g_discounts, [2.0, 4.5, 0.0])


def test_score_function_and_pathwise():
    """Of a Gaussian: E (x^2 + 10) = mean^2 + std^2 + 10."""
    params = {"mean": jnp.float32(0.5), "log_std": jnp.float32(-0.2)}

    def sample(params, key):
        return params["mean"] + jnp.exp(params["log_std"]) * jax.random.normal(key)

    def log_prob(params, x):
        z = (x - params["mean"]) * jnp.exp(-params["log_std"])
        return -0.5 * z**2 - params["log_std"]

    def f(x):
        return x**2 + 10.0

    def score(baseline):
        def estimator(params, key):
            x = jax.vmap(sample, (None, 0))(params, jax.random.split(key, 4))
            return score_function_gradient(log_prob, f, params, x, baseline)

        return estimator

    table = variance_table(
        {
            "score": score(0.0),
            "baseline": score(10.0),
            "leave_one_out": score("leave_one_out"),
            "pathwise": lambda params, key: pathwise_gradient(
                sample, f, params, key, 4
            ),
        },
        params,
        jax.random.key(0),
        20_000,
    )
    exact = {"mean": 1.0, "log_std": 2 * np.exp(-0.4)}
    for name, row in table.items():
        for k, expected in exact.items():
            error = np.sqrt(row["variance"][k] / 20_000)
            assert abs(row["mean"][k] - expected) < 5 * error, name
    total = {k: float(sum(row["variance"].values())) for k, row in table.items()}
    assert total["pathwise"] < total["leave_one_out"] < total["score"]
    assert total["baseline"] < total["score"]
    np.testing.assert_allclose(  # Var(2 x), of a mean of 4
        table["pathwise"]["variance"]["mean"], 4 * np.exp(-0.4) / 4, rtol=0.05
    )


def outcomes(kind):
    if kind == "categorical":
        return jnp.eye(3)
    return jnp.array(list(itertools.product((0.0, 1.0), repeat=3)))


W = jnp.array([2.0, 1.0, 0.5])


def f(b):
    """Neither linear nor separable, and with a mean that costs variance."""
    d = b - jnp.array([0.45, 0.1, 0.8])
    return 2 + jnp.sum(d**2) + 2 * b[0] * b[1] - 1.5 * b[2]


def exact_gradient(kind, logits):
    def expectation(logits):
        if kind == "categorical":
            p = jax.nn.softmax(logits)
        else:
            signs = 2 * outcomes(kind) - 1
            p = jnp.prod(jax.nn.sigmoid(signs * logits), axis=1)
        return p @ jax.vmap(f)(outcomes(kind))

    return jax.grad(expectation)(logits)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_rebar_and_relax(kind):
    """Unbiased whatever the surrogate; with a good one less variable than without."""
    logits, n = jnp.array([0.3, -0.5, 1.0]), 20_000

    def relax(surrogate):
        return lambda logits, key: relax_gradient(key, logits, f, surrogate, kind=kind)

    def gumbel(temperature):
        return jax.grad(lambda logits, key: f(gumbel_softmax(key, logits, temperature)))

    estimators = {
        "score": relax(lambda z: 0.0 * jnp.sum(z)),
        "rebar": relax(rebar_surrogate(f, 0.5, kind=kind)),
        "relax": relax(lambda z: jnp.sum(jnp.sin(W * z) + 2 * jax.nn.softplus(z))),
    }
    biased = {"gumbel_1": gumbel(1.0), "gumbel_.1": gumbel(0.1)}
    if kind == "bernoulli":
        biased = {}
    table = variance_table(estimators | biased, logits, jax.random.key(0), n)
    exact = exact_gradient(kind, logits)
    z = {k: (t["mean"] - exact) / np.sqrt(t["variance"] / n) for k, t in table.items()}
    for name in estimators:
        assert np.max(np.abs(z[name])) < 5, name
    total = {name: float(jnp.sum(row["variance"])) for name, row in table.items()}
    assert total["rebar"] < 0.7 * total["score"]
    if biased:  # the test can see a bias; a low temperature has variance instead
        assert np.max(np.abs(z["gumbel_1"])) > 5
        assert total["gumbel_1"] < total["gumbel_.1"]


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_variance_of_relax_has_a_gradient_in_its_surrogate(kind, x64):
    logits, keys = jnp.array([0.3, -0.5, 1.0]), jax.random.split(jax.random.key(1), 16)

    def second_moment(scale, temperature):
        surrogate = rebar_surrogate(f, temperature, scale, kind=kind)
        g = jax.vmap(lambda k: relax_gradient(k, logits, f, surrogate, kind=kind))(keys)
        return jnp.mean(jnp.sum(g**2, axis=1))

    second_moment, h = jax.jit(second_moment), 1e-6
    gradient = jax.grad(second_moment, (0, 1))(0.8, 0.6)
    differences = (
        second_moment(0.8 + h, 0.6) - second_moment(0.8 - h, 0.6),
        second_moment(0.8, 0.6 + h) - second_moment(0.8, 0.6 - h),
    )
    np.testing.assert_allclose(gradient, np.array(differences) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_relax_is_finite_for_nearly_certain_samples(kind):
    logits, keys = (
        jnp.array([80.0, -80.0, 0.0]),
        jax.random.split(jax.random.key(0), 99),
    )
    surrogate = rebar_surrogate(f, 0.1, kind=kind)
    g = jax.jit(jax.vmap(lambda k: relax_gradient(k, logits, f, surrogate, kind=kind)))(
        keys
    )
    assert np.all(np.isfinite(g))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_stay(dtype, x64):
    def outputs(x):
        def relax(kind):
            surrogate = rebar_surrogate(jnp.sum, kind=kind)
            return relax_gradient(jax.random.key(0), x, jnp.sum, surrogate, kind=kind)

        dice = dice_objective(x, x, 0.9, x), loaded_dice_objective(x, x, 0.9, 0.5)
        return dice, relax("bernoulli"), relax("categorical")

    shapes = jax.eval_shape(outputs, jnp.zeros(3, dtype))
    assert {y.dtype for y in jax.tree.leaves(shapes)} == {jnp.dtype(dtype)}


def test_refuses():
    x, n, key = jnp.ones(2), jnp.arange(2), jax.random.key(0)

    def log_prob(params, x):
        return -((x - params) ** 2)

    def score(samples, baseline=0.0, params=1.0):
        return score_function_gradient(log_prob, jnp.square, params, samples, baseline)

    def relax(logits, kind):
        return relax_gradient(key, logits, jnp.sum, jnp.sum, kind=kind)

    for match, call in (
        ("log_probs: expected a floating.*int32", lambda: magic_box(n)),
        (
            r"log_probs f.*\[2\], rewards f.*\[1\]",
            lambda: dice_objective(x, x[:1], 1.0),
        ),
        (r"baselines float32\[\]", lambda: dice_objective(x, x, 1.0, x[0])),
        (r"T > 0, got .*\[0\]", lambda: dice_objective(x[:0], x[:0], 1.0)),
        (r"T=2, got \(3,\)", lambda: dice_objective(x, x, jnp.ones(3))),
        (r"advantages int32", lambda: loaded_dice_objective(x, n, 1.0)),
        (r"lambda_: .*\(2,\)", lambda: loaded_dice_objective(x, x, 1.0, x)),
        (r"N > 0, got \[\(\)\]", lambda: score(1.0)),
        (r"N > 0, got \[\(2,\), \(1,\)\]", lambda: score((x, x[:1]))),
        ("baseline='mean', expected", lambda: score(x, "mean")),
        ("at least two samples", lambda: score(x[:1], "leave_one_out")),
        ("params: expected an array of floats, got", lambda: score(x, params=3)),
        (r"f\(x\): .* float32\[1\]", lambda: score(x[:, None])),
        (
            r"log_prob_fn\(params, x\): .* float32\[1\]",
            lambda: score_function_gradient(log_prob, jnp.sum, 1.0, x[:, None]),
        ),
        (
            r"f\(x\): .* float32\[2\]",
            lambda: pathwise_gradient(lambda p, _: p, jnp.square, x, key),
        ),
        (
            r"f\(b\): .* float32\[2\]",
            lambda: relax_gradient(key, x, jnp.square, jnp.sum),
        ),
        ("n=0", lambda: pathwise_gradient(jnp.add, jnp.sum, 1.0, key, 0)),
        ("kind='gaussian', expected", lambda: relax(x, "gaussian")),
        (r"logits\[A\].*\(1, 2\)", lambda: relax(x[None], "categorical")),
        ("logits: expected a floating", lambda: relax(n, "bernoulli")),
        ("kind='x', expected", lambda: rebar_surrogate(jnp.sum, kind="x")),
        ("temperature=0.0, expected", lambda: rebar_surrogate(jnp.sum, 0.0)),
        ("num_samples=1", lambda: variance_table({}, 1.0, key, 1)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
