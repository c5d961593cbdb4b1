"""Derivatives of expectations: exact sums where possible, else five standard errors."""

import functools
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

from .. import oracles


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

    @jax.jit
    def derivatives(x):
        return dice(x), [(jax.grad(f)(x), jax.hessian(f)(x)) for f in (dice, surrogate)]

    value, (of_dice, of_surrogate) = derivatives(theta)
    np.testing.assert_allclose(value, 1 / (1 + np.exp(-theta)), rtol=1e-15)
    np.testing.assert_allclose(of_dice, (first, second), atol=5e-7)
    np.testing.assert_allclose(of_surrogate, (first, wrong), atol=5e-7)


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


SLOPES, ADVANTAGES = np.array([1.0, 2.0, 4.0]), np.array([1.0, -3.0, 7.0])


@jax.jit
def derivatives_of_loaded_dice(discounts, lambda_):
    """First and second in theta at -0.5, and d/d lambda of both."""

    def objective(theta, lambda_):
        return loaded_dice_objective(theta * SLOPES, ADVANTAGES, discounts, lambda_)

    def derivatives(lambda_):
        first = jax.grad(objective)
        return first(-0.5, lambda_), jax.grad(first)(-0.5, lambda_)

    return jax.jvp(derivatives, (lambda_,), (1.0,))


def loaded_dice_by_hand(discounts, lambda_):
    """Of three steps, whose log-probabilities are theta, 2 theta, 4 theta."""
    weights = np.array([1.0, discounts[0], discounts[0] * discounts[1]])
    before = np.array([0.0, lambda_ * 1, lambda_ * (lambda_ * 1 + 2)])
    after = before + SLOPES
    first = np.sum(weights * ADVANTAGES * (after - before))
    return np.array([first, np.sum(weights * ADVANTAGES * (after**2 - before**2))])


@pytest.mark.parametrize(
    "discounts",
    [[0.5, 0.0, 0.9], [0.5, 0.8, 0.9]],
    ids=["over after two steps", "going on"],
)
@pytest.mark.parametrize("lambda_", [0.0, 0.3])
def test_lambda_of_loaded_dice(lambda_, discounts, x64):
    derivatives, _ = derivatives_of_loaded_dice(np.array(discounts), lambda_)
    expected = loaded_dice_by_hand(discounts, lambda_)
    np.testing.assert_allclose(derivatives, expected, rtol=1e-12)


def test_derivative_in_the_lambda_of_loaded_dice(x64):
    """0 of the first derivative in theta, which does not depend on lambda."""
    discounts, lambda_, h = [0.5, 0.8, 0.9], 0.3, 1e-5
    _, slopes = derivatives_of_loaded_dice(np.array(discounts), lambda_)
    up, down = (loaded_dice_by_hand(discounts, lambda_ + s) for s in (h, -h))
    np.testing.assert_allclose(slopes, (up - down) / (2 * h), rtol=1e-8, atol=1e-9)


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
    log_probs, rewards = np.log(np.float32([0.5] * 3)), np.float32([1.0, 2.0, 9.0])
    value_and_grad = jax.jit(jax.value_and_grad(dice_objective, (0, 2)))
    discounts = np.float32([0.5, 0.0, 0.0])
    value, (g, g_discounts) = value_and_grad(log_probs, rewards, discounts)
    assert value == 2.0
    np.testing.assert_array_equal(g, [2.0, 1.0, 0.0])
    np.testing.assert_array_equal(g_discounts, [2.0, 4.5, 0.0])


def test_variance_is_unbiased(x64):
    """Of three samples, by the mean of their squares."""

    def estimator(params, key):
        x = params * jax.random.normal(key)
        return {"x": x, "square": x**2}

    table = variance_table({"it": estimator}, 2.0, jax.random.key(0), 3)["it"]
    mean, square = float(table["mean"]["x"]), float(table["mean"]["square"])
    expected = (square - mean**2) * 3 / 2
    np.testing.assert_allclose(table["variance"]["x"], expected, rtol=1e-12)


def table_of(estimators, params, num_samples):
    """`variance_table` in numpy, compiled as one."""
    table = jax.jit(lambda key: variance_table(estimators, params, key, num_samples))(
        jax.random.key(0)
    )
    return jax.tree.map(np.asarray, table)


def test_score_function_and_pathwise():
    """Of a Gaussian: E (x^2 + 10) = mean^2 + std^2 + 10."""
    params = {"mean": np.float32(0.5), "log_std": np.float32(-0.2)}

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

    estimators = {
        "score": score(0.0),
        "baseline": score(10.0),
        "leave_one_out": score("leave_one_out"),
        "pathwise": lambda params, key: pathwise_gradient(sample, f, params, key, 4),
    }
    table = table_of(estimators, params, 20_000)
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
        return np.eye(3)
    return np.array(list(itertools.product((0.0, 1.0), repeat=3)))


W = np.float32([2.0, 1.0, 0.5])


def f(b):
    """Neither linear nor separable, and with a mean that costs variance."""
    d = b - np.float32([0.45, 0.1, 0.8])
    return 2 + (d**2).sum() + 2 * b[0] * b[1] - 1.5 * b[2]


def exact_gradient(kind, logits, h=1e-5):
    """By central differences of the sum over outcomes."""
    values = np.array([f(b) for b in outcomes(kind).astype(float)])

    def expectation(logits):
        if kind == "categorical":
            return oracles.softmax(logits) @ values
        signs = 2 * outcomes(kind) - 1
        return np.prod(1 / (1 + np.exp(-signs * logits)), axis=1) @ values

    moves = h * np.eye(3)
    up, down = ([expectation(logits + s * m) for m in moves] for s in (1, -1))
    return np.subtract(up, down) / (2 * h)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_rebar_and_relax(kind):
    """Unbiased whatever the surrogate; with a good one less variable than without."""
    logits, n = np.float32([0.3, -0.5, 1.0]), 20_000

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
    table = table_of(estimators | biased, logits, n)
    exact = exact_gradient(kind, logits.astype(float))
    z = {k: (t["mean"] - exact) / np.sqrt(t["variance"] / n) for k, t in table.items()}
    for name in estimators:
        assert np.max(np.abs(z[name])) < 5, name
    total = {name: float(np.sum(row["variance"])) for name, row in table.items()}
    assert total["rebar"] < 0.7 * total["score"]
    if biased:  # the test can see a bias; a low temperature has variance instead
        assert np.max(np.abs(z["gumbel_1"])) > 5
        assert total["gumbel_1"] < total["gumbel_.1"]


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_variance_of_relax_has_a_gradient_in_its_surrogate(kind, x64):
    logits, h = np.array([0.3, -0.5, 1.0]), 1e-6

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @jax.value_and_grad
    def second_moment(x, key):
        surrogate = rebar_surrogate(f, x["temperature"], x["scale"], kind=kind)
        keys = jax.random.split(key, 16)
        g = jax.vmap(lambda k: relax_gradient(k, logits, f, surrogate, kind=kind))(keys)
        return jnp.mean(jnp.sum(g**2, axis=1))

    scale = 0.8 + h * np.array([0, 1, -1, 0, 0])
    temperature = 0.6 + h * np.array([0, 0, 0, 1, -1])
    x = {"scale": scale, "temperature": temperature}
    values, gradients = jax.tree.map(np.asarray, second_moment(x, jax.random.key(1)))
    differences = {
        "scale": (values[1] - values[2]) / (2 * h),
        "temperature": (values[3] - values[4]) / (2 * h),
    }
    for name, expected in differences.items():
        np.testing.assert_allclose(gradients[name][0], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_relax_is_finite_for_nearly_certain_samples(kind):
    logits = np.float32([80.0, -80.0, 0.0])
    surrogate = rebar_surrogate(f, 0.1, kind=kind)

    @jax.jit
    def gradients(key):
        keys = jax.random.split(key, 99)
        return jax.vmap(lambda k: relax_gradient(k, logits, f, surrogate, kind=kind))(
            keys
        )

    assert np.all(np.isfinite(gradients(jax.random.key(0))))


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
    x, n = np.ones(2, np.float32), np.arange(2, dtype=np.int32)
    key = jax.random.key(0)

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
        (r"T=2, got \(3,\)", lambda: dice_objective(x, x, np.ones(3))),
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
            jax.eval_shape(call)  # compiles nothing
