"""Returns and advantages: truncation, identities, tabular MDPs."""

import chex
import jax
import numpy as np
import pytest
import rlax

from rljax import losses
from rljax.losses import _common

from .. import oracles
from .cases_returns import CASES
from .loss_case import SIZES, draw_numpy, jitted, rollouts

T = SIZES["T"]


ON_POLICY = ("generalized_advantage_estimation", "lambda_returns")


# Truncation: gamma 0.9, one step of reward 1 at the time limit, then a new episode.


def test_gae_bootstraps_a_truncated_step_from_its_true_successor():
    """The value acted in is 5, of the final observation 55, after the reset 0."""
    r_t, discount_t = np.array([1.0, 0.0]), np.array([0.9, 0.9])
    v_tm1, v_t = np.array([5.0, 0.0]), np.array([55.0, 0.0])
    lambda_t = np.array([0.0, 0.95])
    adv_t = jitted(losses.generalized_advantage_estimation)(
        r_t, discount_t, v_tm1, v_t, lambda_t
    )
    np.testing.assert_allclose(adv_t, [45.5, 0.0], 1e-6)
    wrong = jitted(rlax.truncated_generalized_advantage_estimation)(
        r_t, discount_t, lambda_t, np.array([5.0, 0.0, 0.0])
    )
    np.testing.assert_allclose(wrong[0], -4.0, 1e-6)


# Identities.


def test_lambda_one_is_the_monte_carlo_advantage(x64):
    x = draw_numpy(CASES["generalized_advantage_estimation"])
    v_t = np.append(x["v_tm1"][1:], x["v_t"][-1])
    mc = oracles.discounted_returns(x["r_t"], x["discount_t"], v_t) - x["v_tm1"]
    x = x | {"v_t": v_t, "lambda_t": np.ones(T)}
    adv_t = jitted(losses.generalized_advantage_estimation)(**x)
    np.testing.assert_allclose(adv_t, mc, 1e-12)
    # 1 is the default.
    g_t = jitted(losses.lambda_returns)(x["r_t"], x["discount_t"], v_t)
    np.testing.assert_allclose(g_t - x["v_tm1"], mc, 1e-12)


def test_lambda_zero_is_the_td_error(x64):
    x = draw_numpy(CASES["generalized_advantage_estimation"]) | {
        "lambda_t": np.zeros(T)
    }
    order = ("v_tm1", "r_t", "discount_t", "v_t")
    td = jax.jit(jax.vmap(losses.td_learning))(*(x[name] for name in order))
    adv_t = jitted(losses.generalized_advantage_estimation)(**x)
    np.testing.assert_allclose(adv_t, td, 1e-12)
    g_t = jitted(losses.lambda_returns)(
        x["r_t"], x["discount_t"], x["v_t"], x["lambda_t"]
    )
    np.testing.assert_allclose(g_t - x["v_tm1"], td, 1e-12)


@pytest.mark.parametrize("cut", [1, 3, T - 1])
def test_gae_is_lambda_returns_minus_values(cut, x64):
    """Also over a truncation, where the successor's value is not the next value."""
    x = draw_numpy(CASES["generalized_advantage_estimation"])
    x["v_t"] = np.append(x["v_tm1"][1:], x["v_t"][-1])
    x["v_t"][cut - 1] = 9.0
    x["lambda_t"][cut - 1] = 0.0
    adv_t = jitted(losses.generalized_advantage_estimation)(**x)
    g_t = jitted(losses.lambda_returns)(
        x["r_t"], x["discount_t"], x["v_t"], x["lambda_t"]
    )
    np.testing.assert_allclose(adv_t, g_t - x["v_tm1"], 1e-12)


@pytest.mark.parametrize("n", [1, 2, T - 1, T, T + 5])
def test_n_step_returns_from_one_step_to_all(n, x64):
    x = draw_numpy(CASES["lambda_returns"])
    r_t, discount_t, v_t = x["r_t"], x["discount_t"], x["v_t"]
    n_step_returns = jitted(losses.n_step_bootstrapped_returns)
    g_t = n_step_returns(r_t, discount_t, v_t, n)
    expected = [
        oracles.n_step_return(r_t, discount_t, v_t, t, min(n, T - t)) for t in range(T)
    ]
    np.testing.assert_allclose(g_t, expected, 1e-12)
    if n >= T:
        mixed = n_step_returns(r_t, discount_t, v_t, n, x["lambda_"])
        whole = jitted(losses.lambda_returns)(r_t, discount_t, v_t, x["lambda_"])
        np.testing.assert_allclose(mixed, whole, 1e-12)


@pytest.mark.parametrize("v_t", [5.0, np.arange(T, dtype=np.float32)])
def test_discounted_returns_bootstrap_from_the_last_value(v_t):
    r_t, discount_t = np.ones(T, np.float32), np.full(T, 0.5, np.float32)
    g_t = jitted(losses.discounted_returns)(r_t, discount_t, v_t)
    # 1 + 0.5 * 5 in the last step, by halves before it
    np.testing.assert_allclose(g_t, 2 + 3 * 0.5 ** np.arange(T, 0, -1), 1e-6)


@pytest.mark.parametrize("n", [0, -1, 2.0])
def test_n_below_one(n):
    x = draw_numpy(CASES["n_step_bootstrapped_returns"])
    with pytest.raises(ValueError, match=f"n={n}: must be an integer >= 1"):
        losses.n_step_bootstrapped_returns(**x, n=n)


# Exact values of tabular MDPs.


def test_oracles_known_value_gamma_gradient():
    """Six states drawn with seed 0; the numbers were found by three other routes."""
    rng = np.random.default_rng(0)
    p, r = rng.dirichlet(np.ones(6), 6), rng.normal(size=6)
    mdp = oracles.MDP(p[:, None], r[:, None], 0.9)
    expected = [101.4891, 101.4822, 101.3672, 101.7111, 101.6445, 101.4856]
    gradient = oracles.value_gamma_gradient(mdp, np.ones((6, 1)))
    np.testing.assert_allclose(gradient, expected, 1e-6)


@jax.jit
def first_estimates(r_t, discount_t, v_tm1, v_t, lambda_):
    """Advantages and returns of the first step of every row `[S * A, N, length]`."""

    def estimates(r_t, v_tm1, v_t):
        adv_t = losses.generalized_advantage_estimation(
            r_t, discount_t, v_tm1, v_t, lambda_
        )
        return adv_t[0], losses.lambda_returns(r_t, discount_t, v_t, lambda_)[0]

    return jax.vmap(jax.vmap(estimates))(r_t, v_tm1, v_t)


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_expected_gae_is_the_advantage(lambda_, x64):
    """With the true values, for every lambda; and the return is Q."""
    mdp, _, _, v, q, weights, states, actions = rollouts(2)
    r_t = mdp.r[states[..., :-1], actions]  # [S * A, N, length]
    discount_t = np.full(r_t.shape[-1], mdp.gamma)
    adv, g = first_estimates(
        r_t, discount_t, v[states[..., :-1]], v[states[..., 1:]], lambda_
    )
    expected_adv = (q - v[:, None]).ravel()
    np.testing.assert_allclose((weights * adv).sum(1), expected_adv, 1e-10)
    np.testing.assert_allclose((weights * g).sum(1), q.ravel(), 1e-10)


# Under shard_map, where a scan's carry must vary as its inputs do.


@pytest.mark.parametrize("varying", ["r_t", "discount_t"])
@pytest.mark.parametrize("name", ON_POLICY)
def test_shard_map_over_any_argument(name, varying):
    f, x = CASES[name].fn, draw_numpy(CASES[name])
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((1,), ("seed",), axis_types=(auto,))
    spec = jax.sharding.PartitionSpec("seed")
    g = jax.shard_map(
        lambda y: f(**{**x, varying: y[0]})[None],
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )
    y = np.asarray(jax.jit(g)(x[varying][None]))[0]
    np.testing.assert_allclose(y, jitted(f)(**x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ON_POLICY)
def test_vmap_over_the_second_axis(name):
    """Rollouts are time-major, `[T, N]`."""
    f, x = CASES[name].fn, draw_numpy(CASES[name], batch=(4,))
    columns = jax.jit(jax.vmap(f, in_axes=1, out_axes=1))
    by_column = np.asarray(columns(*(a.T for a in x.values())))
    by_row = jax.jit(jax.vmap(f))(*x.values())
    np.testing.assert_allclose(by_column.T, by_row, rtol=1e-5, atol=1e-6)


# Off a CPU the sums backwards are made in parallel.


@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_sums_in_parallel_are_those_one_after_another(length, x64):
    """Values and derivatives; a decay of 0 cuts."""
    rng = np.random.default_rng(length)
    x_t, weights = rng.normal(size=(2, length))
    decay_t = rng.random(length) * (rng.random(length) < 0.8)

    def of(accumulate):
        def total(x_t, decay_t, last):
            sums = accumulate(x_t, decay_t, last)
            return (weights * sums).sum(), sums

        graded = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)
        return graded(x_t, decay_t, np.float64(0.7))

    chex.assert_trees_all_close(
        of(_common._in_parallel), of(_common._one_after_another), rtol=1e-12
    )


def test_sums_take_no_loop_on_accelerators():
    """On a CPU they take one."""
    args = draw_numpy(CASES["generalized_advantage_estimation"])
    traced = jitted(losses.generalized_advantage_estimation).trace(**args)
    for platform in ("cpu", "cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.while" in text) == (platform == "cpu")
