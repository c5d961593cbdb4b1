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
    categorical_double_q_learning,
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
from .loss_case import call, draw

ACTIONS = [name for name, case in CASES.items() if "a_tm1" in case.args]
LOGITS = [name for name, case in CASES.items() if "logits" in str(case.args)]


# The projection.


def cramer(*distributions):
    """Squared L2 distance of two cumulative functions, each of atoms and masses."""
    grid = np.sort(np.concatenate([z for z, _ in distributions]))
    steps = [[p[z <= x].sum() for x in grid[:-1]] for z, p in distributions]
    return np.sum((np.array(steps[0]) - np.array(steps[1])) ** 2 * np.diff(grid))


@pytest.mark.parametrize("seed", range(5))
def test_projection_is_orthogonal(seed, x64):
    """Pythagoras, in the Cramer distance: Rowland et al. (2018)."""
    x, rng = draw(CASES["categorical_l2_project"], seed), np.random.default_rng(seed)
    p = (np.asarray(2 * x["z_p"]), np.asarray(x["probs"]))
    z_q = np.asarray(x["z_q"])
    q = (z_q, np.asarray(categorical_l2_project(*map(jnp.asarray, (*p, z_q)))))
    other = (z_q, rng.dirichlet(np.ones(len(z_q))))
    np.testing.assert_allclose(cramer(p, other), cramer(p, q) + cramer(q, other), 1e-10)


def test_projection_keeps_mass_and_mean(x64):
    rng = np.random.default_rng(0)
    z_q = np.sort(rng.normal(size=7))
    z_p, probs = rng.uniform(z_q[0], z_q[-1], 9), rng.dirichlet(np.ones(9))
    q = categorical_l2_project(*map(jnp.asarray, (z_p, probs, z_q)))
    np.testing.assert_allclose(q.sum(), 1, 1e-12)
    np.testing.assert_allclose(q @ z_q, probs @ z_p, 1e-12)
    assert (q >= 0).all()


def test_projection_equals_c51_on_even_atoms(x64):
    """Some atoms fall on atoms: there lower and upper are the same."""
    z_p = np.array([-7.0, -2.0, -1.0, -0.3, 0.0, 0.01, 1.9, 2.0, 3.5])
    probs = np.random.default_rng(0).dirichlet(np.ones(len(z_p)))
    args = map(jnp.asarray, (z_p, probs, np.linspace(-2, 2, 9)))
    expected = project_evenly(z_p, probs, -2, 2, 9)
    np.testing.assert_allclose(categorical_l2_project(*args), expected, atol=1e-14)


def test_projection_onto_the_same_atoms_is_the_identity():
    """51 uneven ones; and so from one further out at each end."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(np.sort(rng.normal(size=51)), jnp.float32)
    probs = jnp.asarray(rng.dirichlet(np.ones(51)), jnp.float32)
    for z_p in (z, z.at[0].add(-3).at[-1].add(jnp.inf)):
        q = categorical_l2_project(z_p, probs, z)
        np.testing.assert_allclose(q, probs, atol=1e-8)


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
    z_q = jnp.array([0.0, 1.0, 3.0])
    g = jax.jacobian(categorical_l2_project)(jnp.array([z]), jnp.ones(1), z_q)
    np.testing.assert_array_equal(g[:, 0], slope)


def test_equal_atoms_keep_the_mass():
    """rlax counts what lies above them twice."""
    z_q, z_p = jnp.array([0.0, 1.0, 1.0, 3.0]), jnp.array([0.5, 1.0, 2.0, 4.0])
    args = (z_p, jnp.full(4, 0.25), z_q)
    np.testing.assert_array_equal(
        categorical_l2_project(*args), [0.125, 0.125, 0.375, 0.375]
    )
    g = jax.jacobian(categorical_l2_project, argnums=(0, 1, 2))(*args)
    chex.assert_tree_all_finite(g)
    assert rlax.categorical_l2_project(*args).sum() > 1.7
    one = categorical_l2_project(z_p, jnp.full(4, 0.25), z_q[:1])
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
    z, rewards = jnp.array(z), jnp.array([0.0, 1.0])

    @jax.grad
    def semi_gradient(logits):
        losses = jax.vmap(categorical_td_learning, (None, None, 0, None, None, None))
        each = losses(z, logits, rewards, jnp.array(gamma), z, logits)
        return (1 - chance) * each[0] + chance * each[1]

    fixed_point = jnp.array(fixed_point)
    np.testing.assert_allclose(semi_gradient(jnp.log(fixed_point)), 0, atol=1e-14)
    start = jnp.linspace(-1.0, 2.0, len(z))
    logits = jax.lax.fori_loop(0, 2000, lambda _, x: x - semi_gradient(x), start)
    np.testing.assert_allclose(softmax(logits), fixed_point, atol=1e-6)


def test_two_hot_minimiser_has_the_mean_of_the_targets(x64):
    targets, bins = jnp.array([-0.9, -0.2, 0.4, 1.7, 5.0]), (-1.0, 2.0)
    losses = jax.vmap(two_hot_loss, (None, 0, None, None))
    step = jax.grad(lambda logits: losses(logits, targets, *bins).mean())
    logits = jax.lax.fori_loop(0, 2000, lambda _, x: x - step(x), jnp.zeros(4))
    mean = transform_from_2hot(jax.nn.softmax(logits), *bins, 4)
    np.testing.assert_allclose(mean, jnp.clip(targets, *bins).mean(), 1e-6)


@pytest.mark.parametrize("tau", [0.07, 0.33, 0.5, 0.66, 0.99])
def test_quantile_regression_is_least_at_the_quantile(tau):
    """Piecewise linear and convex, so it is least at one of the samples."""
    samples = jnp.asarray(np.random.default_rng(0).normal(size=15), jnp.float32)
    loss = jax.vmap(quantile_regression_loss, (0, None, None))
    losses = loss(samples[:, None], jnp.array([tau]), samples)
    expected = np.quantile(samples, tau, method="inverted_cdf")
    assert samples[jnp.argmin(losses)] == expected


# Closed forms.


@pytest.mark.parametrize("stop", ["bootstrap", "target"])
def test_semi_gradient_is_the_softmax_minus_the_target(stop, x64):
    x = draw(CASES["categorical_td_learning"])
    z_t = x["r_t"] + x["discount_t"] * x["v_atoms_t"]
    target = project(z_t, softmax(x["v_logits_t"]), x["v_atoms_tm1"])
    # One network: without its stop the bootstrap would add to the gradient.
    boot = x["v_logits_t"] - x["v_logits_tm1"][:-1]

    def loss(logits):
        x["v_logits_tm1"], x["v_logits_t"] = logits, logits[:-1] + boot
        return categorical_td_learning(**x, stop=stop)

    logits = x["v_logits_tm1"]
    np.testing.assert_allclose(jax.grad(loss)(logits), softmax(logits) - target, 1e-9)


def test_slope_of_quantile_regression(x64):
    """The share of samples below, minus tau."""
    x = draw(CASES["quantile_regression_loss"]) | {"huber_param": 0.0}
    g = jax.grad(lambda theta: quantile_regression_loss(**x | {"dist_src": theta}))
    below = jnp.mean(x["dist_target"][None] < x["dist_src"][:, None], axis=1)
    np.testing.assert_allclose(g(x["dist_src"]), below - x["tau_src"], atol=1e-12)


@pytest.mark.parametrize("stop, live", [("bootstrap", 1), ("target", 0), ("none", 1)])
def test_derivative_in_gamma_by_hand(stop, live):
    """The atom 1 moves to 1.3: its mass moves from the atom 1 to the atom 2 at rate 1,
    the loss by their logits. The quantile 4 moves to 3, at rate 4 times tau times the
    slope: 1, kappa, and 1 again if divided by kappa."""
    one, r_t, z = jnp.ones(1), jnp.array(0.5), jnp.array([0.0, 1.0, 2.0])
    logits = jnp.array([[0.0, 1.0, 3.0]])
    g = functools.partial(jax.grad, argnums=0)

    def td(gamma):
        return categorical_td_learning(z, logits[0], r_t, gamma, one, one, stop=stop)

    def q(gamma):
        args = (z, logits, 0, r_t, gamma, one, one[None])
        return categorical_q_learning(*args, stop=stop)

    np.testing.assert_allclose(g(td)(jnp.array(0.8)), -2.0 * live, 1e-5)
    np.testing.assert_allclose(g(q)(jnp.array(0.8)), -2.0 * live, 1e-5)
    for fn, kappa, slope in (
        (quantile_q_learning, 0.0, 1.0),
        (quantile_q_learning, 2.0, 2.0),
        (implicit_quantile_q_learning, 0.0, 1.0),
        (implicit_quantile_q_learning, 2.0, 1.0),
    ):

        def quantile(gamma, fn=fn, kappa=kappa):
            src, dist_t = jnp.zeros((1, 1)), jnp.full((1, 1), 4.0)
            args = (src, 0.25 * one, 0, r_t + 0.5, gamma, dist_t, dist_t, kappa)
            return fn(*args, stop=stop)

        np.testing.assert_allclose(g(quantile)(jnp.array(0.5)), slope * live)


# Identities and limits.


def test_double_with_the_means_for_selector_is_plain():
    x = draw(CASES["categorical_q_learning"]) | {"r_t": jnp.array(0.0)}
    means = (jax.nn.softmax(x["q_logits_t"]) * x["q_atoms_t"][None]).sum(1)
    plain = categorical_q_learning(**x)
    chex.assert_trees_all_equal(
        categorical_double_q_learning(**x, q_t_selector=means), plain
    )
    assert categorical_double_q_learning(**x, q_t_selector=-means) != plain


def test_expected_sarsa_of_the_greedy_policy_is_q_learning():
    x = draw(CASES["quantile_q_learning"])
    selector = x.pop("dist_q_t_selector")
    greedy = jax.nn.one_hot(jnp.argmax(selector.mean(0)), selector.shape[1])
    np.testing.assert_allclose(
        quantile_expected_sarsa(**x, probs_a_t=greedy),
        quantile_q_learning(**x, dist_q_t_selector=selector),
        1e-6,
    )


def test_expected_sarsa_is_the_regression_to_the_mixture():
    """Two actions, the second three times as likely: its samples three times."""
    theta, tau = jnp.array([[0.0, 0.5], [1.0, 0.5]]), jnp.array([0.2, 0.6])
    dist_q_t = jnp.array([[1.0, -1.0], [3.0, 0.5]])
    mixture = 0.5 + 0.8 * jnp.concatenate([dist_q_t[:, 0], *3 * [dist_q_t[:, 1]]])
    np.testing.assert_allclose(
        quantile_expected_sarsa(
            theta, tau, 0, 0.5, 0.8, dist_q_t, jnp.array([0.25, 0.75])
        ),
        quantile_regression_loss(theta[:, 0], tau, mixture),
        1e-6,
    )


@pytest.mark.parametrize("name", [k for k in CASES if k.startswith("quantile")])
def test_no_huber_is_the_absolute_value_as_in_rlax(name):
    x = draw(CASES[name], batch=(100,)) | {"huber_param": jnp.zeros(100)}

    def ours(x):
        return CASES[name].fn(**x)

    def theirs(x):
        return getattr(rlax, name)(**x | {"huber_param": 0.0})

    np.testing.assert_allclose(jax.vmap(ours)(x), jax.vmap(theirs)(x), 1e-5)
    without = {k: v for k, v in x.items() if k != "huber_param"}  # the default
    chex.assert_trees_all_equal(jax.vmap(ours)(without), jax.vmap(ours)(x))


def test_huber_over_kappa_tends_to_the_absolute_value(x64):
    x = draw(CASES["implicit_quantile_q_learning"])
    absolute = quantile_q_learning(**x | {"huber_param": 0.0})
    for kappa, rtol in ((0.0, 1e-12), (1e-9, 1e-8), (1e-3, 1e-2)):
        limit = implicit_quantile_q_learning(**x | {"huber_param": kappa})
        np.testing.assert_allclose(limit, absolute, rtol)
    whole = implicit_quantile_q_learning(**x | {"huber_param": 1e-3})
    assert abs(whole - absolute) > 1e-5
    g = jax.grad(lambda k: implicit_quantile_q_learning(**x | {"huber_param": k}))
    assert g(0.0) == 0.0


def test_curvature_at_an_error_of_zero(x64):
    """The square's, weighted by tau, also where the error is exactly 0."""
    args = (jnp.array([0.25]), jnp.array([1.0, 1.0]), 0.5)
    hessian = jax.hessian(quantile_regression_loss)(jnp.ones(1), *args)
    np.testing.assert_array_equal(hessian, [[0.25]])


# Special inputs.


@pytest.mark.parametrize("name", LOGITS)
def test_extreme_logits(name):
    """Probabilities of 0 and 1: nothing overflows or is 0 times infinity."""
    case = CASES[name]
    mode = {"stop": "none"} if case.stops else {}
    for seed in range(5):
        x = draw(case, seed)
        rng = np.random.default_rng(seed)
        for k in x:
            if "logits" in k:
                x[k] = jnp.asarray(rng.choice([-1e4, 0.0, 1e4], x[k].shape), "float32")
        floats = {k: v for k, v in x.items() if k != "a_tm1"}
        value_and_grad = jax.value_and_grad(lambda y, x=x: call(case, x | y, **mode))
        chex.assert_tree_all_finite(value_and_grad(floats))


def test_a_target_of_probability_zero_has_a_gradient():
    """rlax's is NaN when nothing is stopped: log(0) of the target."""
    z, logits = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([0.0, 1.0, 3.0, 0.0])
    args = (z, logits, jnp.array(0.2), jnp.array(0.5), z[:2], logits[:2])
    g = jax.grad(categorical_td_learning, argnums=(2, 3, 4, 5))(*args, stop="none")
    chex.assert_tree_all_finite(g)
    np.testing.assert_allclose(g[0], -1.0, 1e-6)  # the logits of atoms 0 and 1
    names = ("v_atoms_tm1", "v_logits_tm1", "r_t", "discount_t")
    x = dict(zip((*names, "v_atoms_t", "v_logits_t"), args, strict=True))
    theirs = jax.grad(
        lambda r_t: quiet(rlax.categorical_td_learning)(
            **x | {"r_t": r_t}, stop_target_gradients=False
        )
    )(x["r_t"])
    assert np.isnan(theirs)


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.parametrize("action", [-1, 3])
def test_an_action_out_of_range_is_nan(name, action):
    x = draw(CASES[name]) | {"a_tm1": jnp.array(action)}
    assert np.isnan(call(CASES[name], x))


def test_termination_ignores_the_bootstrap():
    """With discount 0 all mass lies at the reward, whatever the successor's."""
    x = draw(CASES["categorical_q_learning"]) | {"discount_t": jnp.array(0.0)}
    once = categorical_q_learning(**x)
    again = categorical_q_learning(**x | {"q_logits_t": -3 * x["q_logits_t"]})
    np.testing.assert_allclose(once, again, 1e-6)
    logits = x["q_logits_tm1"][x["a_tm1"]]
    target = project([x["r_t"]], [1.0], x["q_atoms_tm1"])
    np.testing.assert_allclose(once, -target @ jax.nn.log_softmax(logits), 1e-5)


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
        two_hot_loss(jnp.zeros(size), jnp.array(0.5), *bins)


def test_two_hot_takes_a_python_float():
    loss = two_hot_loss(jnp.zeros(3, jnp.bfloat16), 0.5, 0.0, 2.0)  # pyright: ignore
    assert loss.dtype == jnp.bfloat16


def test_all_functions_are_cases():
    module = distributional.__name__
    public = [k for k, v in vars(distributional).items() if k[0] != "_" and callable(v)]
    here = [k for k in public if getattr(distributional, k).__module__ == module]
    assert here == list(CASES)
