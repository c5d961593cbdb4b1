"""Returns and V-trace: truncation, identities, and exact values of tabular MDPs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax import losses

from .. import oracles
from .cases_returns import CASES
from .loss_case import SIZES, draw_numpy, jitted

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


def test_vtrace_bootstraps_a_truncated_step_from_its_true_successor():
    """The value acted in is 2, of the final observation 10, after the reset 1."""
    v_tm1, v_t = np.array([2.0, 1.0]), np.array([10.0, 1.0])
    args = (v_tm1, v_t, np.array([1.0, 0.1]), np.array([0.9, 0.9]), np.ones(2))
    lambda_t = np.array([0.0, 1.0])
    ours = jitted(losses.vtrace_td_error_and_advantage)(*args, lambda_t)
    theirs = jitted(rlax.vtrace_td_error_and_advantage)(*args, lambda_t)
    np.testing.assert_allclose(ours.pg_advantage, [8.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(theirs.pg_advantage[0], -0.1, 1e-5)
    np.testing.assert_allclose(ours.errors, theirs.errors, atol=1e-6)


SEQUENCES = (
    *("n_step_bootstrapped_returns", "lambda_returns", "vtrace", "leaky_vtrace"),
    *("generalized_advantage_estimation", "importance_corrected_td_errors"),
    *("vtrace_td_error_and_advantage", "leaky_vtrace_td_error_and_advantage"),
    *("transformed_lambda_returns", "transformed_n_step_returns"),
    "general_off_policy_returns_from_action_values",
    "transformed_general_off_policy_returns_from_action_values",
)


def split_by_lambda(case):
    """Yields arguments with lambda 0 at a cut, and those of the two parts."""
    for cut in (1, 3, T - 1):
        x = draw_numpy(case)
        argument = next(k for k in ("lambda_", "lambda_t", "c_t") if k in x)
        x[argument][cut - 1] = 0.0
        slices = slice(cut), slice(cut, None)
        yield x, [{k: v[i] if v.ndim else v for k, v in x.items()} for i in slices]


def equal_joined(whole, parts):
    for leaf, *each in zip(*map(jax.tree.leaves, (whole, *parts)), strict=True):
        np.testing.assert_allclose(leaf, np.concatenate(each), 1e-10, 1e-12)


@pytest.mark.parametrize("name", SEQUENCES)
def test_lambda_zero_at_a_cut_splits_the_trajectory(name, x64):
    """In two parts, each by its definition."""
    case = CASES[name]
    for x, parts in split_by_lambda(case):
        whole = jitted(case.fn)(**x, **case.static)
        equal_joined(whole, [case.oracle(**y, **case.static) for y in parts])


@pytest.mark.parametrize(
    "name",
    [
        "vtrace_td_error_and_advantage",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in SEQUENCES
            if name != "vtrace_td_error_and_advantage"
        ),
    ],
)
def test_parts_of_any_length(name, x64):
    """As above, but the parts too are computed by the package, from 1 to 5 steps."""
    case = CASES[name]
    for x, parts in split_by_lambda(case):
        whole = jitted(case.fn)(**x, **case.static)
        equal_joined(whole, [jitted(case.fn)(**y, **case.static) for y in parts])


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


def test_on_policy_vtrace_is_gae(x64):
    """Ratios of 1, whatever the clips; the advantage is one step of lambda-returns."""
    x = draw_numpy(CASES["vtrace_td_error_and_advantage"])
    x |= {"rho_tm1": np.ones(T), "clip_rho_threshold": 1.0}
    x |= {"clip_pg_rho_threshold": 2.0, "lambda_": np.full(T, 0.7)}
    x["v_t"] = np.append(x["v_tm1"][1:], x["v_t"][-1])
    out = jitted(losses.vtrace_td_error_and_advantage)(**x)
    adv_t = jitted(losses.generalized_advantage_estimation)(
        x["r_t"], x["discount_t"], x["v_tm1"], x["v_t"], x["lambda_"]
    )
    np.testing.assert_allclose(out.errors, adv_t, 1e-12)
    np.testing.assert_allclose(out.pg_advantage, adv_t, 1e-12)


def test_leaky_vtrace_at_alpha_zero_is_importance_sampling(x64):
    x = draw_numpy(CASES["leaky_vtrace"]) | {"alpha_": 0.0}
    x["v_t"] = np.append(x["v_tm1"][1:], x["v_t"][-1])
    names = ("r_t", "discount_t", "rho_tm1", "lambda_", "v_tm1", "v_t")
    importance = jitted(losses.importance_corrected_td_errors)
    expected = importance(*(x[name] for name in names))
    np.testing.assert_allclose(jitted(losses.leaky_vtrace)(**x), expected, 1e-12)


MASK = np.array([True, False, True, True, False, True])


@pytest.mark.parametrize("stop", ["bootstrap", "target", "none"])
def test_vtrace_sample_mask_leaves_steps_out(stop, x64):
    """As if the others followed each other; all steps masked give no error."""
    x, leaky_vtrace = draw_numpy(CASES["leaky_vtrace"]), jitted(losses.leaky_vtrace)
    errors = leaky_vtrace(**x, stop=stop, sample_mask=MASK)
    short = {k: v[MASK] if v.ndim else v for k, v in x.items()}
    np.testing.assert_allclose(errors[MASK], leaky_vtrace(**short), 1e-12)
    nothing = leaky_vtrace(**x, stop=stop, sample_mask=np.zeros(T, bool))
    np.testing.assert_array_equal(nothing, 0.0)
    rlax_errors = jitted(rlax.leaky_vtrace)(**x, sample_mask=MASK)
    np.testing.assert_allclose(errors, rlax_errors, 1e-12)


def test_sample_mask_reaches_the_advantages(x64):
    x = draw_numpy(CASES["vtrace_td_error_and_advantage"])
    x["v_t"] = np.append(x["v_tm1"][1:], x["v_t"][-1])
    ours = jitted(losses.vtrace_td_error_and_advantage)(**x, sample_mask=MASK)
    theirs = jitted(rlax.vtrace_td_error_and_advantage)(**x, sample_mask=MASK)
    chex.assert_trees_all_close(tuple(ours), tuple(theirs))
    whole = jitted(losses.vtrace_td_error_and_advantage)(**x)
    assert not np.allclose(ours.pg_advantage, whole.pg_advantage)


STOPS = ("bootstrap", "target", "none")


@functools.cache
def meta_gradients_of_the_transform(name):
    """Returns the slopes of the three modes, and what they are in truth."""
    case, rng = CASES[name], np.random.default_rng(3)
    x = draw_numpy(case)
    network = "q_t" if "q_t" in x else "v_t"
    weights = rng.normal(size=(*x[network].shape, 3))
    predict = rng.normal(size=(T, 3))

    def outer(eps, stop):
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

    @jax.jit
    def evaluate(eps):
        return [jax.value_and_grad(outer)(eps, stop) for stop in STOPS]

    h = 1e-6
    slopes = [float(slope) for _, slope in evaluate(0.1)]
    up, down = (np.array([y for y, _ in evaluate(0.1 + d)]) for d in (h, -h))
    return dict(
        zip(STOPS, zip(slopes, (up - down) / (2 * h), strict=True), strict=True)
    )


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", [name for name in CASES if "transformed" in name])
def test_meta_gradient_of_the_transform(name, stop, x64):
    """Through one step: its parameters are tuned, unless the target is stopped."""
    slope, expected = meta_gradients_of_the_transform(name)[stop]
    assert abs(expected) > 1e-4
    np.testing.assert_allclose(slope, 0.0 if stop == "target" else expected, 1e-5)


@pytest.mark.parametrize("length", [T - 1, T + 1])
def test_traces_are_one_shorter_than_rewards(length):
    x = draw_numpy(CASES["general_off_policy_returns_from_q_and_v"])
    x = x | dict.fromkeys(("q_t", "c_t"), np.ones(length, np.float32))
    with pytest.raises(AssertionError, match=r"^v_t: expected the shape .*q_t\[K-1\]"):
        losses.general_off_policy_returns_from_q_and_v(**x)


@pytest.mark.parametrize("mask", [np.ones(T), np.ones(T - 1, bool)])
def test_sample_mask_is_checked(mask):
    with pytest.raises(AssertionError, match="sample_mask"):
        losses.vtrace(**draw_numpy(CASES["vtrace"]), sample_mask=mask)


def test_identity_pair_changes_nothing(x64):
    for name in ("lambda_returns", "n_step_bootstrapped_returns"):
        plain = CASES[name]
        x = draw_numpy(plain)
        transformed = getattr(
            losses, "transformed_" + name.replace("bootstrapped_", "")
        )
        chex.assert_trees_all_equal(
            jitted(transformed)(tx_pair=losses.IDENTITY_PAIR, **x, **plain.static),
            jitted(plain.fn)(**x, **plain.static),
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


@functools.cache
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


@jax.jit
def first_off_policy_returns(q_t, a_t, r_t, discount_t, c_t, pi_t):
    """Returns of the first step of every row `[S * A, N, length]`."""

    def first_return(q_t, a_t, r_t, c_t, pi_t):
        return losses.general_off_policy_returns_from_action_values(
            q_t, a_t, r_t, discount_t, c_t, pi_t
        )[0]

    return jax.vmap(jax.vmap(first_return))(q_t, a_t, r_t, c_t, pi_t)


@pytest.mark.parametrize("trace", ["retrace", "importance", "tree backup", "q lambda"])
def test_expected_off_policy_return_is_the_action_value(trace, x64):
    """From another policy's trajectories, with the true values of this one."""
    mdp, policy, mu, _, q, weights, states, actions = rollouts(2, policy_seed=5)
    between = states[..., 1:-1], actions[..., 1:]
    pi_a, mu_a = policy[between], mu[between]
    c_t = {
        "retrace": 0.9 * np.minimum(1.0, pi_a / mu_a),
        "importance": pi_a / mu_a,
        "tree backup": 0.9 * pi_a,
        "q lambda": np.full_like(pi_a, 0.3),
    }[trace]
    last = np.zeros((*actions.shape[:-1], 1))  # neither an action nor a trace
    g = first_off_policy_returns(
        q_t=q[states[..., 1:]],
        a_t=np.append(actions[..., 1:], last.astype(int), axis=-1),
        r_t=mdp.r[states[..., :-1], actions],
        discount_t=np.full(actions.shape[-1], mdp.gamma),
        c_t=np.append(c_t, last, axis=-1),
        pi_t=policy[states[..., 1:]],
    )
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
