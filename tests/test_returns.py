"""Returns and V-trace: truncation, identities, and exact values of tabular MDPs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax import losses

from . import oracles
from .cases_returns import CASES
from .loss_case import SIZES, call, draw

T = SIZES["T"]
ON_POLICY = ("generalized_advantage_estimation", "lambda_returns")


# Truncation: gamma 0.9, one step of reward 1 at the time limit, then a new episode.


def test_gae_bootstraps_a_truncated_step_from_its_true_successor():
    """The value acted in is 5, of the final observation 55, after the reset 0."""
    r_t, discount_t = jnp.array([1.0, 0.0]), jnp.array([0.9, 0.9])
    v_tm1, v_t = jnp.array([5.0, 0.0]), jnp.array([55.0, 0.0])
    lambda_t = jnp.array([0.0, 0.95])
    adv_t = losses.generalized_advantage_estimation(
        r_t, discount_t, v_tm1, v_t, lambda_t
    )
    np.testing.assert_allclose(adv_t, [45.5, 0.0], 1e-6)
    wrong = rlax.truncated_generalized_advantage_estimation(
        r_t, discount_t, lambda_t, jnp.array([5.0, 0.0, 0.0])
    )
    np.testing.assert_allclose(wrong[0], -4.0, 1e-6)


def test_vtrace_bootstraps_a_truncated_step_from_its_true_successor():
    """The value acted in is 2, of the final observation 10, after the reset 1."""
    v_tm1, v_t = jnp.array([2.0, 1.0]), jnp.array([10.0, 1.0])
    args = (v_tm1, v_t, jnp.array([1.0, 0.1]), jnp.array([0.9, 0.9]), jnp.ones(2))
    lambda_t = jnp.array([0.0, 1.0])
    ours = losses.vtrace_td_error_and_advantage(*args, lambda_t)
    theirs = rlax.vtrace_td_error_and_advantage(*args, lambda_t)
    np.testing.assert_allclose(ours.pg_advantage, [8.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(theirs.pg_advantage[0], -0.1, 1e-5)
    np.testing.assert_allclose(ours.errors, theirs.errors, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 3, T - 1])
@pytest.mark.parametrize(
    "name",
    [
        *("n_step_bootstrapped_returns", "lambda_returns", "vtrace", "leaky_vtrace"),
        *("generalized_advantage_estimation", "importance_corrected_td_errors"),
        *("vtrace_td_error_and_advantage", "leaky_vtrace_td_error_and_advantage"),
        *("transformed_lambda_returns", "transformed_n_step_returns"),
        "general_off_policy_returns_from_action_values",
        "transformed_general_off_policy_returns_from_action_values",
    ],
)
def test_lambda_zero_at_a_cut_splits_the_trajectory(name, cut, x64):
    case = CASES[name]
    x = draw(case)
    argument = next(k for k in ("lambda_", "lambda_t", "c_t") if k in x)
    x[argument] = x[argument].at[cut - 1].set(0.0)
    parts = [
        call(case, {k: v[part] if v.ndim else v for k, v in x.items()})
        for part in (slice(cut), slice(cut, None))
    ]
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *parts)
    chex.assert_trees_all_close(call(case, x), joined)


# Identities.


def test_lambda_one_is_the_monte_carlo_advantage(x64):
    x = draw(CASES["generalized_advantage_estimation"])
    v_t = jnp.append(x["v_tm1"][1:], x["v_t"][-1])
    mc = oracles.discounted_returns(x["r_t"], x["discount_t"], v_t) - x["v_tm1"]
    x = x | {"v_t": v_t, "lambda_t": 1.0}
    np.testing.assert_allclose(losses.generalized_advantage_estimation(**x), mc, 1e-12)
    g_t = losses.lambda_returns(x["r_t"], x["discount_t"], v_t)  # 1 is the default
    np.testing.assert_allclose(g_t - x["v_tm1"], mc, 1e-12)


def test_lambda_zero_is_the_td_error(x64):
    x = draw(CASES["generalized_advantage_estimation"]) | {"lambda_t": 0.0}
    order = ("v_tm1", "r_t", "discount_t", "v_t")
    td = jax.vmap(losses.td_learning)(*(x[name] for name in order))
    chex.assert_trees_all_close(losses.generalized_advantage_estimation(**x), td)
    g_t = losses.lambda_returns(x["r_t"], x["discount_t"], x["v_t"], 0.0)
    chex.assert_trees_all_close(g_t - x["v_tm1"], td)


@pytest.mark.parametrize("cut", [1, 3, T - 1])
def test_gae_is_lambda_returns_minus_values(cut, x64):
    """Also over a truncation, where the successor's value is not the next value."""
    x = draw(CASES["generalized_advantage_estimation"])
    v_t = jnp.append(x["v_tm1"][1:], x["v_t"][-1]).at[cut - 1].set(9.0)
    x = x | {"v_t": v_t, "lambda_t": x["lambda_t"].at[cut - 1].set(0.0)}
    adv_t = losses.generalized_advantage_estimation(**x)
    g_t = losses.lambda_returns(x["r_t"], x["discount_t"], x["v_t"], x["lambda_t"])
    np.testing.assert_allclose(adv_t, g_t - x["v_tm1"], 1e-12)


@pytest.mark.parametrize("n", [1, 2, T - 1, T, T + 5])
def test_n_step_returns_from_one_step_to_all(n, x64):
    x = draw(CASES["lambda_returns"])
    r_t, discount_t, v_t = x["r_t"], x["discount_t"], x["v_t"]
    g_t = losses.n_step_bootstrapped_returns(r_t, discount_t, v_t, n)
    expected = [
        oracles.n_step_return(r_t, discount_t, v_t, t, min(n, T - t)) for t in range(T)
    ]
    np.testing.assert_allclose(g_t, expected, 1e-12)
    mixed = losses.n_step_bootstrapped_returns(r_t, discount_t, v_t, n, x["lambda_"])
    if n >= T:
        whole = losses.lambda_returns(r_t, discount_t, v_t, x["lambda_"])
        np.testing.assert_allclose(mixed, whole, 1e-12)


@pytest.mark.parametrize("n", [0, -1, 2.0])
def test_n_below_one(n):
    x = draw(CASES["n_step_bootstrapped_returns"])
    with pytest.raises(ValueError, match=f"n={n}: must be an integer >= 1"):
        losses.n_step_bootstrapped_returns(**x, n=n)


def test_on_policy_vtrace_is_gae(x64):
    """Ratios of 1, whatever the clips; the advantage is one step of lambda-returns."""
    x = draw(CASES["vtrace_td_error_and_advantage"])
    x = x | {"rho_tm1": jnp.ones(T), "clip_rho_threshold": 1.0}
    x = x | {"clip_pg_rho_threshold": 2.0, "lambda_": 0.7}
    x["v_t"] = jnp.append(x["v_tm1"][1:], x["v_t"][-1])
    out = losses.vtrace_td_error_and_advantage(**x)
    adv_t = losses.generalized_advantage_estimation(
        x["r_t"], x["discount_t"], x["v_tm1"], x["v_t"], 0.7
    )
    np.testing.assert_allclose(out.errors, adv_t, 1e-12)
    np.testing.assert_allclose(out.pg_advantage, adv_t, 1e-12)


def test_leaky_vtrace_at_alpha_zero_is_importance_sampling(x64):
    x = draw(CASES["leaky_vtrace"]) | {"alpha_": 0.0}
    x["v_t"] = jnp.append(x["v_tm1"][1:], x["v_t"][-1])
    names = ("r_t", "discount_t", "rho_tm1", "lambda_", "v_tm1", "v_t")
    expected = losses.importance_corrected_td_errors(*(x[name] for name in names))
    np.testing.assert_allclose(losses.leaky_vtrace(**x), expected, 1e-12)


@pytest.mark.parametrize("stop", ["bootstrap", "target", "none"])
def test_vtrace_sample_mask_leaves_steps_out(stop, x64):
    """As if the others followed each other; all steps masked give no error."""
    x = draw(CASES["leaky_vtrace"])
    mask = np.array([True, False, True, True, False, True])
    errors = losses.leaky_vtrace(**x, stop=stop, sample_mask=jnp.asarray(mask))
    short = {k: v[mask] if v.ndim else v for k, v in x.items()}
    np.testing.assert_allclose(errors[mask], losses.leaky_vtrace(**short), 1e-12)
    nothing = losses.leaky_vtrace(**x, stop=stop, sample_mask=jnp.zeros(T, bool))
    np.testing.assert_array_equal(nothing, 0.0)
    rlax_errors = rlax.leaky_vtrace(**x, sample_mask=jnp.asarray(mask))
    np.testing.assert_allclose(errors, rlax_errors, 1e-12)


def test_sample_mask_reaches_the_advantages(x64):
    x = draw(CASES["vtrace_td_error_and_advantage"])
    x["v_t"] = jnp.append(x["v_tm1"][1:], x["v_t"][-1])
    mask = jnp.array([True, False, True, True, False, True])
    ours = losses.vtrace_td_error_and_advantage(**x, sample_mask=mask)
    theirs = rlax.vtrace_td_error_and_advantage(**x, sample_mask=mask)
    chex.assert_trees_all_close(tuple(ours), tuple(theirs))
    whole = losses.vtrace_td_error_and_advantage(**x)
    assert not jnp.allclose(ours.pg_advantage, whole.pg_advantage)


@pytest.mark.parametrize("stop", ["bootstrap", "target", "none"])
@pytest.mark.parametrize("name", [name for name in CASES if "transformed" in name])
def test_meta_gradient_of_the_transform(name, stop, x64):
    """Through one step: its parameters are tuned, unless the target is stopped."""
    case, rng = CASES[name], np.random.default_rng(3)
    x = {k: v for k, v in draw(case).items()}
    network = "q_t" if "q_t" in x else "v_t"
    weights = jnp.asarray(rng.normal(size=(*x[network].shape, 3)))
    predict = jnp.asarray(rng.normal(size=(T, 3)))

    def outer(eps):
        pair = losses.TxPair(
            lambda y: losses.signed_hyperbolic(y, eps),
            lambda y: losses.signed_parabolic(y, eps),
        )

        def loss(p, boot):
            static = dict(case.static) | {"tx_pair": pair}
            target = case.fn(**x | {network: weights @ boot}, **static, stop=stop)
            return jnp.mean((target - predict @ p) ** 2)

        p = jnp.ones(3)
        return jnp.sum(jnp.sin(p - 0.1 * jax.grad(loss)(p, p)))

    slope, h = jax.grad(outer)(0.1), 1e-6
    expected = (outer(0.1 + h) - outer(0.1 - h)) / (2 * h)
    assert abs(expected) > 1e-4
    np.testing.assert_allclose(slope, 0.0 if stop == "target" else expected, 1e-5)


@pytest.mark.parametrize("length", [T - 1, T + 1])
def test_traces_are_one_shorter_than_rewards(length):
    x = draw(CASES["general_off_policy_returns_from_q_and_v"])
    x = x | dict.fromkeys(("q_t", "c_t"), jnp.ones(length))
    with pytest.raises(AssertionError, match="all_but_first_of_r_t"):
        losses.general_off_policy_returns_from_q_and_v(**x)


@pytest.mark.parametrize("mask", [jnp.ones(T), jnp.ones(T - 1, bool)])
def test_sample_mask_is_checked(mask):
    with pytest.raises(AssertionError, match="sample_mask"):
        losses.vtrace(**draw(CASES["vtrace"]), sample_mask=mask)


def test_identity_pair_changes_nothing(x64):
    for name in ("lambda_returns", "n_step_bootstrapped_returns"):
        plain = CASES[name]
        x = draw(plain)
        transformed = getattr(
            losses, "transformed_" + name.replace("bootstrapped_", "")
        )
        chex.assert_trees_all_equal(
            transformed(losses.IDENTITY_PAIR, **x, **plain.static), call(plain, x)
        )


# Exact values of tabular MDPs.


def test_oracles_known_value_gamma_gradient():
    """Six states drawn with seed 0; the numbers were found by three other routes."""
    rng = np.random.default_rng(0)
    p, r = rng.dirichlet(np.ones(6), 6), rng.normal(size=6)
    mdp = oracles.MDP(p[:, None], r[:, None], 0.9)
    expected = [101.4891, 101.4822, 101.3672, 101.7111, 101.6445, 101.4856]
    gradient = oracles.value_gamma_gradient(mdp, np.ones((6, 1)))
    np.testing.assert_allclose(gradient, expected, 1e-6)


def rollouts(seed, policy_seed=None, length=3):
    """Every trajectory of an MDP from each state and action, with exact values."""
    mdp = oracles.random_mdp(seed, num_states=3, num_actions=2)
    policy = oracles.random_policy(seed, mdp)
    behaviour = oracles.random_policy(policy_seed or seed, mdp)
    v = oracles.policy_value(mdp, policy)
    q = oracles.action_value(mdp, v)
    rows = [
        oracles.trajectories(mdp, behaviour, s, a, length)
        for s, a in np.ndindex(q.shape)
    ]
    weights, states, actions = (np.stack(column) for column in zip(*rows, strict=True))
    np.testing.assert_allclose(weights.sum(1), 1.0, 1e-12)
    return mdp, policy, behaviour, v, q, weights, states, actions


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_expected_gae_is_the_advantage(lambda_, x64):
    """With the true values, for every lambda; and the return is Q."""
    mdp, _, _, v, q, weights, states, actions = rollouts(2)
    r_t = jnp.asarray(mdp.r[states[..., :-1], actions])  # [S * A, N, length]
    v_tm1, v_t = jnp.asarray(v[states[..., :-1]]), jnp.asarray(v[states[..., 1:]])
    discount_t = jnp.full(r_t.shape[-1], mdp.gamma)

    @jax.vmap
    @jax.vmap
    def estimates(r_t, v_tm1, v_t):
        return (
            losses.generalized_advantage_estimation(
                r_t, discount_t, v_tm1, v_t, lambda_
            )[0],
            losses.lambda_returns(r_t, discount_t, v_t, lambda_)[0],
        )

    adv, g = estimates(r_t, v_tm1, v_t)
    expected_adv = (q - v[:, None]).ravel()
    np.testing.assert_allclose((weights * adv).sum(1), expected_adv, 1e-10)
    np.testing.assert_allclose((weights * g).sum(1), q.ravel(), 1e-10)


@pytest.mark.parametrize("trace", ["retrace", "importance", "tree backup", "q lambda"])
def test_expected_off_policy_return_is_the_action_value(trace, x64):
    """From another policy's trajectories, with the true values of this one."""
    mdp, policy, mu, _, q, weights, states, actions = rollouts(2, policy_seed=5)
    policy, mu = jnp.asarray(policy), jnp.asarray(mu)

    @jax.vmap
    @jax.vmap
    def first_return(s, a):
        pi_a, mu_a = policy[s[1:-1], a[1:]], mu[s[1:-1], a[1:]]
        c_t = {
            "retrace": 0.9 * jnp.minimum(1.0, pi_a / mu_a),
            "importance": pi_a / mu_a,
            "tree backup": 0.9 * pi_a,
            "q lambda": jnp.full_like(pi_a, 0.3),
        }[trace]
        q_t, discount_t = jnp.asarray(q)[s[1:]], jnp.full(len(a), mdp.gamma)
        r_t, last = jnp.asarray(mdp.r)[s[:-1], a], jnp.zeros(1, int)
        return losses.general_off_policy_returns_from_action_values(
            q_t,
            jnp.append(a[1:], last),
            r_t,
            discount_t,
            jnp.append(c_t, 0.0),
            policy[s[1:]],
        )[0]

    g = first_return(jnp.asarray(states), jnp.asarray(actions))
    np.testing.assert_allclose((weights * g).sum(1), q.ravel(), 1e-10)


# Under shard_map, where a scan's carry must vary as its inputs do.


@pytest.mark.parametrize("varying", ["r_t", "discount_t"])
@pytest.mark.parametrize("name", ON_POLICY)
def test_shard_map_over_any_argument(name, varying):
    f, x = CASES[name].fn, draw(CASES[name])
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((1,), ("seed",), axis_types=(auto,))
    spec = jax.sharding.PartitionSpec("seed")
    g = jax.shard_map(
        lambda y: f(**{**x, varying: y[0]})[None],
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )
    chex.assert_trees_all_close(
        jax.jit(g)(x[varying][None])[0], f(**x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ON_POLICY)
def test_vmap_over_the_second_axis(name):
    """Rollouts are time-major, `[T, N]`."""
    f, x = CASES[name].fn, draw(CASES[name], batch=(4,))
    columns = jax.vmap(f, in_axes=1, out_axes=1)
    chex.assert_trees_all_close(
        columns(*(a.T for a in x.values())).T,
        jax.vmap(f)(*x.values()),
        rtol=1e-5,
        atol=1e-6,
    )
