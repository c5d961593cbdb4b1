"""Return distributions: projections, fixed points, quantiles, limits, extremes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax.losses import distributional
from rljax.losses.distributional import (
    categorical_l2_project,
    categorical_q_learning,
    categorical_td_learning,
    implicit_quantile_q_learning,
    quantile_expected_sarsa,
    quantile_q_learning,
    quantile_regression_loss,
    two_hot_loss,
)
from rljax.losses.transforms import transform_from_2hot

from .cases_distributional import CASES, project, project_evenly, quiet, softmax
from .loss_case import call, draw, split

LOGITS = [name for name, case in CASES.items() if "logits" in str(case.args)]
QUANTILES = [name for name in CASES if name.startswith("quantile")]
l2_project = jax.jit(categorical_l2_project)


@functools.cache
def jitted(name):
    """The loss, of its arguments by name."""
    return jax.jit(functools.partial(call, CASES[name]))


def arrays(name, seed=0, batch=()):
    """Arguments by name in numpy, so that what is made of them compiles nothing."""
    return {k: np.asarray(x) for k, x in draw(CASES[name], seed, batch).items()}


# The projection.


def cramer(*distributions):
    """Squared L2 distance of two cumulative functions, each of atoms and masses."""
    grid = np.sort(np.concatenate([z for z, _ in distributions]))
    steps = [[p[z <= x].sum() for x in grid[:-1]] for z, p in distributions]
    return np.sum((np.array(steps[0]) - np.array(steps[1])) ** 2 * np.diff(grid))


@pytest.mark.parametrize("seed", range(5))
def test_projection_is_orthogonal(seed, x64):
    """Pythagoras, in the Cramer distance: Rowland et al. (2018)."""
    x, rng = arrays("categorical_l2_project", seed), np.random.default_rng(seed)
    z_p, probs, z_q = 2 * x["z_p"], x["probs"], x["z_q"]
    p, q = (z_p, probs), (z_q, np.asarray(l2_project(z_p, probs, z_q)))
    other = (z_q, rng.dirichlet(np.ones(len(z_q))))
    np.testing.assert_allclose(cramer(p, other), cramer(p, q) + cramer(q, other), 1e-10)


def test_projection_keeps_mass_and_mean(x64):
    rng = np.random.default_rng(0)
    z_q = np.sort(rng.normal(size=7))
    z_p, probs = rng.uniform(z_q[0], z_q[-1], 9), rng.dirichlet(np.ones(9))
    q = np.asarray(l2_project(z_p, probs, z_q))
    np.testing.assert_allclose(q.sum(), 1, 1e-12)
    np.testing.assert_allclose(q @ z_q, probs @ z_p, 1e-12)
    assert (q >= 0).all()


def test_projection_equals_c51_on_even_atoms(x64):
    """Some atoms fall on atoms: there lower and upper are the same."""
    z_p = np.array([-7.0, -2.0, -1.0, -0.3, 0.0, 0.01, 1.9, 2.0, 3.5])
    probs = np.random.default_rng(0).dirichlet(np.ones(len(z_p)))
    q = l2_project(z_p, probs, np.linspace(-2, 2, 9))
    np.testing.assert_allclose(q, project_evenly(z_p, probs, -2, 2, 9), atol=1e-14)


def test_projection_onto_the_same_atoms_is_the_identity():
    """51 uneven ones; and so from one further out at each end."""
    rng = np.random.default_rng(0)
    z = np.sort(rng.normal(size=51)).astype(np.float32)
    probs = rng.dirichlet(np.ones(51)).astype(np.float32)
    further = z.copy()
    further[[0, -1]] += [-3, np.inf]
    for z_p in (z, further):
        np.testing.assert_allclose(l2_project(z_p, probs, z), probs, atol=1e-8)


slope_of_projection = jax.jit(jax.jacobian(categorical_l2_project))


@pytest.mark.parametrize(
    "z, slope",
    [
        (-1.0, [0.0, 0.0, 0.0]),
        (0.0, [-0.5, 0.5, 0.0]),
        (0.5, [-1.0, 1.0, 0.0]),
        (1.0, [-0.5, 0.25, 0.25]),
        (2.5, [0.0, -0.5, 0.5]),
        (3.0, [0.0, -0.25, 0.25]),
        (4.0, [0.0, 0.0, 0.0]),
    ],
)
def test_derivative_of_the_projection(z, slope):
    """0 beyond the range; at an atom a central difference: the mean of both sides."""
    z_q = np.array([0.0, 1.0, 3.0], np.float32)
    g = slope_of_projection(np.float32([z]), np.ones(1, np.float32), z_q)
    np.testing.assert_array_equal(np.asarray(g)[:, 0], slope)


def test_equal_atoms_keep_the_mass():
    """rlax counts what lies above them twice."""
    z_q, z_p = np.float32([0.0, 1.0, 1.0, 3.0]), np.float32([0.5, 1.0, 2.0, 4.0])

    @jax.jit
    def results(z_p, probs, z_q):
        ours = categorical_l2_project(z_p, probs, z_q)
        g = jax.jacobian(categorical_l2_project, (0, 1, 2))(z_p, probs, z_q)
        theirs = rlax.categorical_l2_project(z_p, probs, z_q)
        return ours, g, theirs, categorical_l2_project(z_p, probs, z_q[:1])

    ours, g, theirs, one = results(z_p, np.full(4, 0.25, np.float32), z_q)
    np.testing.assert_array_equal(ours, [0.125, 0.125, 0.375, 0.375])
    chex.assert_tree_all_finite(g)
    assert np.sum(theirs) > 1.7
    np.testing.assert_array_equal(one, [1.0])


# Fixed points.


@pytest.mark.parametrize(
    "gamma, z, chance, fixed_point",
    [
        (0.0, [0.0, 1.0], 0.3, [0.7, 0.3]),
        # The return is uniform on [0, 2]: binary digits. The trapezoidal rule is the
        # projection of that, and of its own Bellman update.
        (0.5, [0.0, 0.5, 1.0, 1.5, 2.0], 0.5, [0.125, 0.25, 0.25, 0.25, 0.125]),
    ],
)
def test_td_learns_the_distribution_of_a_bernoulli_return(
    gamma, z, chance, fixed_point, x64
):
    z, rewards, chances = np.array(z), np.array([0.0, 1.0]), [1 - chance, chance]

    @jax.grad
    def semi_gradient(logits):
        losses = jax.vmap(categorical_td_learning, (None, None, 0, None, None, None))
        each = losses(z, logits, rewards, jnp.array(gamma), z, logits)
        return jnp.asarray(chances) @ each

    @jax.jit
    def learn(start):  # also returns the first step
        end = jax.lax.fori_loop(0, 2000, lambda _, x: x - semi_gradient(x), start)
        return semi_gradient(start), end

    slope, _ = learn(np.log(fixed_point))
    np.testing.assert_allclose(slope, 0, atol=1e-14)
    _, logits = learn(np.linspace(-1.0, 2.0, len(z)))
    np.testing.assert_allclose(softmax(logits), fixed_point, atol=1e-6)


def test_two_hot_minimiser_has_the_mean_of_the_targets(x64):
    targets, low, high = np.array([-0.9, -0.2, 0.4, 1.7, 5.0]), -1.0, 2.0

    @jax.jit
    def learned_mean(start):
        losses = jax.vmap(two_hot_loss, (None, 0, None, None))
        step = jax.grad(lambda logits: losses(logits, targets, low, high).mean())
        logits = jax.lax.fori_loop(0, 2000, lambda _, x: x - step(x), start)
        return transform_from_2hot(jax.nn.softmax(logits), low, high, 4)

    mean = learned_mean(np.zeros(4))
    np.testing.assert_allclose(mean, np.clip(targets, low, high).mean(), 1e-6)


losses_of_predictions = jax.jit(jax.vmap(quantile_regression_loss, (0, None, None)))


@pytest.mark.parametrize("tau", [0.07, 0.33, 0.5, 0.66, 0.99])
def test_quantile_regression_is_least_at_the_quantile(tau):
    """Piecewise linear and convex, so it is least at one of the samples."""
    samples = np.random.default_rng(0).normal(size=15).astype(np.float32)
    losses = losses_of_predictions(samples[:, None], np.float32([tau]), samples)
    expected = np.quantile(samples, tau, method="inverted_cdf")
    assert samples[np.argmin(losses)] == expected


# Closed forms.


@pytest.mark.parametrize("stop", ["bootstrap", "target"])
def test_semi_gradient_is_the_softmax_minus_the_target(stop, x64):
    x = arrays("categorical_td_learning")
    z_t = x["r_t"] + x["discount_t"] * x["v_atoms_t"]
    target = project(z_t, softmax(x["v_logits_t"]), x["v_atoms_tm1"])
    # One network: without its stop the bootstrap would add to the gradient.
    boot = x["v_logits_t"] - x["v_logits_tm1"][:-1]

    def loss(logits):
        both = {"v_logits_tm1": logits, "v_logits_t": logits[:-1] + boot}
        return categorical_td_learning(**x | both, stop=stop)

    logits = x["v_logits_tm1"]
    g = jax.jit(jax.grad(loss))(logits)
    np.testing.assert_allclose(g, softmax(logits) - target, 1e-9)


def test_slope_of_quantile_regression(x64):
    """The share of samples below, minus tau."""
    x = arrays("quantile_regression_loss") | {"huber_param": 0.0}
    slope = jax.grad(lambda theta: quantile_regression_loss(**x | {"dist_src": theta}))
    g = jax.jit(slope)(x["dist_src"])
    below = np.mean(x["dist_target"][None] < x["dist_src"][:, None], axis=1)
    np.testing.assert_allclose(g, below - x["tau_src"], atol=1e-12)


@pytest.mark.parametrize("stop, live", [("bootstrap", 1), ("target", 0), ("none", 1)])
def test_derivative_in_gamma_by_hand(stop, live):
    """The atom 1 moves to 1.3: its mass moves from the atom 1 to the atom 2 at rate 1,
    the loss by their logits. The quantile 4 moves to 3, at rate 4 times tau times the
    slope: 1, kappa, and 1 again if divided by kappa."""
    one, z = np.ones(1, np.float32), np.float32([0.0, 1.0, 2.0])
    logits, dist_t = np.float32([[0.0, 1.0, 3.0]]), np.float32([[4.0]])

    def td(gamma):
        return categorical_td_learning(z, logits[0], 0.5, gamma, one, one, stop=stop)

    def q(gamma):
        return categorical_q_learning(
            z, logits, 0, 0.5, gamma, one, one[None], stop=stop
        )

    def quantile(gamma, fn, kappa):
        return fn(
            dist_q_tm1=jnp.zeros((1, 1)),
            tau_q_tm1=0.25 * one,
            a_tm1=0,
            r_t=1.0,
            discount_t=gamma,
            dist_q_t_selector=dist_t,
            dist_q_t=dist_t,
            huber_param=kappa,
            stop=stop,
        )

    @jax.jit
    def slopes(categorical, quantiles):
        return [jax.grad(f)(categorical) for f in (td, q)], [
            jax.grad(quantile)(quantiles, fn, kappa)
            for fn in (quantile_q_learning, implicit_quantile_q_learning)
            for kappa in (0.0, 2.0)
        ]

    of_categorical, of_quantiles = slopes(0.8, 0.5)
    np.testing.assert_allclose(of_categorical, 2 * [-2.0 * live], 1e-5)
    np.testing.assert_allclose(of_quantiles, np.array([1.0, 2.0, 1.0, 1.0]) * live)


# Identities and limits.


def test_double_with_the_means_for_selector_is_plain():
    x = arrays("categorical_q_learning") | {"r_t": np.float32(0.0)}
    probs = np.array([softmax(row) for row in x["q_logits_t"]])
    means = probs @ x["q_atoms_t"]
    plain, double = map(
        jitted, ("categorical_q_learning", "categorical_double_q_learning")
    )
    assert double(x | {"q_t_selector": means}) == plain(x)
    assert double(x | {"q_t_selector": -means}) != plain(x)


def test_expected_sarsa_of_the_greedy_policy_is_q_learning():
    x = arrays("quantile_q_learning")
    q_learning = jitted("quantile_q_learning")(x)
    selector = x.pop("dist_q_t_selector")
    greedy = np.eye(selector.shape[1], dtype=np.float32)[selector.mean(0).argmax()]
    sarsa = jitted("quantile_expected_sarsa")(x | {"probs_a_t": greedy})
    np.testing.assert_allclose(sarsa, q_learning, 1e-6)


def test_expected_sarsa_is_the_regression_to_the_mixture():
    """Two actions, the second three times as likely: its samples three times."""
    theta, tau = np.float32([[0.0, 0.5], [1.0, 0.5]]), np.float32([0.2, 0.6])
    dist_q_t, pi = np.float32([[1.0, -1.0], [3.0, 0.5]]), np.float32([0.25, 0.75])
    mixture = 0.5 + 0.8 * np.concatenate([dist_q_t[:, 0], *3 * [dist_q_t[:, 1]]])

    @jax.jit
    def both(theta, dist_q_t, mixture):
        return (
            quantile_expected_sarsa(theta, tau, 0, 0.5, 0.8, dist_q_t, pi),
            quantile_regression_loss(theta[:, 0], tau, mixture),
        )

    sarsa, regression = both(theta, dist_q_t, mixture)
    np.testing.assert_allclose(sarsa, regression, 1e-6)


@pytest.mark.parametrize("name", QUANTILES)
def test_no_huber_is_the_absolute_value_as_in_rlax(name):
    x = arrays(name, batch=(100,))
    del x["huber_param"]

    @jax.jit
    @jax.vmap
    def each(x):
        ours, theirs = CASES[name].fn, getattr(rlax, name)
        zero = {"huber_param": jnp.zeros(())}
        return ours(**x | zero), theirs(**x, huber_param=0.0), ours(**x)

    ours, theirs, default = each(x)
    np.testing.assert_allclose(ours, theirs, 1e-5)
    np.testing.assert_array_equal(default, ours)


def test_implicit_quantiles_have_a_huber_parameter_of_1():
    """Some errors are below it, some above."""
    x = arrays("implicit_quantile_q_learning")
    x["dist_q_t"] = 3 * x["dist_q_t"]
    loss = jitted("implicit_quantile_q_learning")
    one = loss(x | {"huber_param": 1.0})
    assert min(abs(loss(x | {"huber_param": k}) - one) for k in (0.5, 2.0)) > 1e-3
    del x["huber_param"]
    np.testing.assert_allclose(loss(x), one, 1e-6)


def test_huber_over_kappa_tends_to_the_absolute_value(x64):
    x = arrays("implicit_quantile_q_learning")
    absolute = jitted("quantile_q_learning")(x | {"huber_param": 0.0})

    @jax.jit
    @jax.value_and_grad
    def value_and_slope(kappa):
        return implicit_quantile_q_learning(**x | {"huber_param": kappa})

    for kappa, rtol in ((0.0, 1e-12), (1e-9, 1e-8), (1e-3, 1e-2)):
        np.testing.assert_allclose(value_and_slope(kappa)[0], absolute, rtol)
    assert abs(value_and_slope(1e-3)[0] - absolute) > 1e-5
    assert value_and_slope(0.0)[1] == 0.0


def test_curvature_at_an_error_of_zero(x64):
    """The square's, weighted by tau, also where the error is exactly 0."""
    hessian = jax.jit(jax.hessian(quantile_regression_loss))
    curvature = hessian(np.ones(1), np.array([0.25]), np.array([1.0, 1.0]), 0.5)
    np.testing.assert_array_equal(curvature, [[0.25]])


# Special inputs.


@pytest.mark.parametrize("name", LOGITS)
def test_extreme_logits(name):
    """Probabilities of 0 and 1: nothing overflows or is 0 times infinity."""
    case = CASES[name]
    mode = {"stop": "none"} if case.stops else {}
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda floats, rest: call(case, floats | rest, **mode))
    )
    for seed in range(5):
        x = arrays(name, seed)
        rng = np.random.default_rng(seed)
        for k in x:
            if "logits" in k:
                x[k] = rng.choice(np.float32([-1e4, 0.0, 1e4]), x[k].shape)
        chex.assert_tree_all_finite(value_and_grad(*split(case, x)))


def test_a_target_of_probability_zero_has_a_gradient():
    """rlax's is NaN when nothing is stopped: log(0) of the target."""
    z, logits = np.float32([0.0, 1.0, 2.0, 3.0]), np.float32([0.0, 1.0, 3.0, 0.0])
    live = {"r_t": np.float32(0.2), "discount_t": np.float32(0.5)}
    live |= {"v_atoms_t": z[:2], "v_logits_t": logits[:2]}
    prediction = {"v_atoms_tm1": z, "v_logits_tm1": logits}

    def ours(live):
        return categorical_td_learning(**prediction, **live, stop="none")

    def theirs(live):
        return quiet(rlax.categorical_td_learning)(
            **prediction, **live, stop_target_gradients=False
        )

    g, g_theirs = jax.jit(lambda x: (jax.grad(ours)(x), jax.grad(theirs)(x)))(live)
    chex.assert_tree_all_finite(g)
    np.testing.assert_allclose(g["r_t"], -1.0, 1e-6)  # the logits of atoms 0 and 1
    assert np.isnan(g_theirs["r_t"])


def test_termination_ignores_the_bootstrap():
    """With discount 0 all mass lies at the reward, whatever the successor's."""
    x = arrays("categorical_q_learning") | {"discount_t": np.float32(0.0)}
    loss = jitted("categorical_q_learning")
    once, again = loss(x), loss(x | {"q_logits_t": -3 * x["q_logits_t"]})
    np.testing.assert_allclose(once, again, 1e-6)
    logits = x["q_logits_tm1"][x["a_tm1"]]
    target = project([x["r_t"]], [1.0], x["q_atoms_tm1"])
    np.testing.assert_allclose(once, -target @ np.log(softmax(logits)), 1e-5)


@pytest.mark.parametrize(
    "size, bins, match",
    [
        (1, (0.0, 1.0), "num_bins=1"),
        (3, (1.0, 1.0), "min_value=1.0"),
        (3, (2.0, 1.0), "max_value=1.0"),
    ],
)
def test_two_hot_refuses_bins(size, bins, match):
    with pytest.raises(ValueError, match=match):
        two_hot_loss(np.zeros(size, np.float32), np.float32(0.5), *bins)


def test_two_hot_takes_a_python_float():
    def loss(logits):
        return two_hot_loss(logits, 0.5, 0.0, 2.0)  # pyright: ignore

    out = jax.eval_shape(loss, jax.ShapeDtypeStruct((3,), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16


def test_all_functions_are_cases():
    module = distributional.__name__
    public = [k for k, v in vars(distributional).items() if k[0] != "_" and callable(v)]
    here = [k for k in public if getattr(distributional, k).__module__ == module]
    assert here == list(CASES)
