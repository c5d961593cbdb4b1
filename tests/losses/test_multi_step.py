"""Multi-step temporal-difference errors: identities, tabular MDPs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import losses

from .. import oracles
from . import cases_one_step
from .cases_multi_step import CASES
from .loss_case import SIZES, call, draw_numpy, jitted

T, A = SIZES["T"], SIZES["A"]


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def values_of(q, a):
    return np.take_along_axis(q, a[:, None], axis=1)[:, 0]


@pytest.mark.parametrize(
    "name, stop", [("tree_backup", "bootstrap"), ("retrace", "none")]
)
def test_masked_actions_count_nothing_in_sequences(name, stop, x64):
    case = CASES[name]
    x = draw_numpy(case)
    x["a_tm1"] = x["a_t"] = np.arange(T, dtype=np.int32) % 2  # never the last one
    last = np.arange(A) == A - 1
    x["pi_t"] = np.where(last, 0.0, x["pi_t"])
    x["pi_t"] /= x["pi_t"].sum(axis=1, keepdims=True)
    short = {k: v[:, :-1] if v.ndim == 2 else v for k, v in x.items()}
    x["q_t"] = np.where(last, -np.inf, x["q_t"])
    actions = {k: x[k] for k in ("a_tm1", "a_t")}

    @jax.jit
    def f(x):
        def score(x):
            errors = call(case, x | actions, stop=stop)
            return jnp.sum(jnp.sin(errors)), errors

        return jax.grad(score, has_aux=True)({k: x[k] for k in x if k not in actions})

    g, errors = jax.device_get(f(x))
    expected_g, expected = f(short)
    np.testing.assert_allclose(errors, expected, 1e-12)
    np.testing.assert_array_equal(g["q_t"][:, -1], 0.0)
    g["pi_t"] = np.where(last, 0.0, g["pi_t"])  # -inf is worth it where it is taken
    g = {k: v[:, :-1] if v.ndim == 2 else v for k, v in g.items()}
    chex.assert_trees_all_close(g, expected_g, rtol=1e-12, atol=1e-14)


def test_retrace_continuous_has_one_step_less_of_ratios():
    x = draw_numpy(CASES["retrace_continuous"])
    for k in ("q_t", "log_rhos", "lambda_"):
        x[k] = x[k][1:]
    with pytest.raises(AssertionError) as error:
        losses.retrace_continuous(**x)
    for k, v in x.items():
        assert f"{k} {jax.typeof(v).str_short()}" in str(error.value)


@pytest.mark.parametrize("n", [0, -1])
def test_n_below_one(n):
    x = draw_numpy(CASES["transformed_n_step_q_learning"])
    with pytest.raises(ValueError, match=f"n={n}: must be an integer >= 1"):
        losses.transformed_n_step_q_learning(**x, n=n)


# Identities of sequences.


@pytest.mark.parametrize(
    "name, one_step",
    [
        *(("td_lambda", "td_learning"), ("sarsa_lambda", "sarsa")),
        *(("q_lambda", "q_learning"), ("transformed_q_lambda", "q_learning")),
        *(("tree_backup", "expected_sarsa"), ("retrace", "expected_sarsa")),
        *(("transformed_retrace", "expected_sarsa"),),
        *(("transformed_n_step_q_learning", "sarsa"),),
    ],
)
def test_lambda_zero_is_the_one_step_error(name, one_step, x64):
    """Also what `tx_pair` is by default: nothing."""
    case = CASES[name]
    static = {k: v for k, v in case.static.items() if k == "n"}
    x = draw_numpy(case)
    x |= {k: np.zeros_like(x[k]) for k in case.scalar}
    names = {"probs_a_t": "pi_t", "q_t": "target_q_t" if "n" in static else "q_t"}
    one = cases_one_step.CASES[one_step]
    args = [x[names.get(k, k)] for k in one.args]
    td = jitted(case.fn)(**x, **static)
    np.testing.assert_allclose(td, jax.jit(jax.vmap(one.fn))(*args), 1e-12)


def test_q_lambda_carries_the_value_of_its_own_successor(x64):
    """Not the next one's, which is right in the last step only."""
    r_t, discount_t = np.array([1.0, 2.0, 4.0]), np.full(3, 0.5)
    v_t = np.array([2.0, 3.0, 8.0])
    q_t = np.stack([v_t - 1, v_t, v_t - 2], axis=1)
    q_tm1, a_tm1 = np.zeros((3, A)), np.zeros(3, int)
    targets = jitted(losses.q_lambda)(q_tm1, a_tm1, r_t, discount_t, q_t, 0.5)
    # 4 + 0.5 * 8; 2 + 0.5 * (1.5 + 4); 1 + 0.5 * (1 + 2.375)
    np.testing.assert_allclose(targets, [2.6875, 4.75, 8.0], 1e-12)
    returns = jitted(losses.lambda_returns)(r_t, discount_t, v_t, 0.5)
    np.testing.assert_allclose(targets, returns, 1e-12)
    late = [0.0, 0.0, 8.0]
    for t in (1, 0):
        late[t] = r_t[t] + 0.5 * (0.5 * v_t[t + 1] + 0.5 * late[t + 1])
    assert np.abs(targets - np.array(late))[:2].min() > 0.5


def test_watkins_is_tree_backup_and_retrace_of_the_greedy_policy(x64):
    x = draw_numpy(CASES["retrace"]) | {"eps": 0.0}
    best = np.argmax(x["q_t"], axis=1)
    greedy = best == x["a_t"]
    assert 0 < np.sum(greedy[:-1]) < T - 1
    x |= {"pi_t": np.eye(A)[best]}
    names = ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t")
    args = [x[k] for k in names]
    watkins = jitted(losses.q_lambda)(*args, np.where(greedy, x["lambda_"], 0.0))
    tree = jitted(losses.tree_backup)(*args, x["a_t"], x["pi_t"], x["lambda_"])
    np.testing.assert_allclose(watkins, tree, 1e-12)
    np.testing.assert_allclose(jitted(losses.retrace)(**x), watkins, 1e-12)


def test_certain_and_on_policy_all_are_sarsa_lambda(x64):
    x = draw_numpy(CASES["retrace"]) | {"eps": 0.0, "mu_t": np.ones(T)}
    x |= {"pi_t": np.eye(A)[x["a_t"]]}
    args = [x[k] for k in ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t", "a_t")]
    sarsa = jitted(losses.sarsa_lambda)(*args, x["lambda_"])
    tree = jitted(losses.tree_backup)(*args, x["pi_t"], x["lambda_"])
    np.testing.assert_allclose(jitted(losses.retrace)(**x), sarsa, 1e-12)
    np.testing.assert_allclose(tree, sarsa, 1e-12)


def test_tree_backup_does_not_correct_by_default(x64):
    x = draw_numpy(CASES["tree_backup"])
    one = jitted(losses.tree_backup)(**x | {"lambda_": np.ones(T)})
    del x["lambda_"]
    np.testing.assert_allclose(jitted(losses.tree_backup)(**x), one, 1e-12)


def test_retrace_is_retrace_continuous_of_the_actions_taken(x64):
    x = draw_numpy(CASES["retrace"]) | {"eps": 0.0}
    continuous = jitted(losses.retrace_continuous)(
        q_tm1=values_of(x["q_tm1"], x["a_tm1"]),
        q_t=values_of(x["q_t"], x["a_t"])[:-1],
        v_t=np.sum(x["pi_t"] * x["q_t"], axis=1),
        r_t=x["r_t"],
        discount_t=x["discount_t"],
        log_rhos=np.log(values_of(x["pi_t"], x["a_t"]) / x["mu_t"])[:-1],
        lambda_=x["lambda_"][:-1],
    )
    np.testing.assert_allclose(jitted(losses.retrace)(**x), continuous, 1e-12)


def test_retrace_of_improbable_actions():
    """Ratios of 0/0 and 1/0 and their logarithms: no NaN, in no slope."""
    x = draw_numpy(CASES["retrace"])
    del x["eps"]
    x |= {"mu_t": np.zeros(T, np.float32), "pi_t": np.eye(A, dtype=np.float32)[[0] * T]}
    actions = {k: x.pop(k) for k in ("a_tm1", "a_t")}

    def slopes(f, x):
        return jax.jit(jax.grad(lambda x: jnp.sum(f(**x, stop="none"))))(x)

    g = slopes(functools.partial(losses.retrace, **actions), x)
    chex.assert_tree_all_finite(jax.device_get(g))
    y = draw_numpy(CASES["retrace_continuous"])
    y["log_rhos"] = np.array([-np.inf, -200.0, 0.0, 1.0, 200.0, 1e30], np.float32)
    chex.assert_tree_all_finite(jax.device_get(slopes(losses.retrace_continuous, y)))


def test_identity_pair_is_the_default(x64):
    for name in ("q_lambda", "retrace"):
        x = draw_numpy(CASES[name])
        transformed = jitted(CASES["transformed_" + name].fn)(**x)
        chex.assert_trees_all_equal(transformed, jitted(CASES[name].fn)(**x))


@pytest.mark.parametrize("n", [1, 3, T])
def test_n_step_q_learning(n, x64):
    """Greedy over the whole trajectory it is q_lambda at 1."""
    x = draw_numpy(CASES["transformed_n_step_q_learning"])
    del x["lambda_t"]
    x |= {"a_t": np.argmax(x["target_q_t"], axis=1)}
    td = jitted(losses.transformed_n_step_q_learning)(**x, n=n)
    v_t, args = np.max(x["target_q_t"], axis=1), (x["r_t"], x["discount_t"])
    g_t = jitted(losses.n_step_bootstrapped_returns)(*args, v_t, n)
    np.testing.assert_allclose(td, g_t - values_of(x["q_tm1"], x["a_tm1"]), 1e-12)
    if n == T:
        q_lambda = jitted(losses.q_lambda)
        whole = q_lambda(x["q_tm1"], x["a_tm1"], *args, x["target_q_t"], 1.0)
        np.testing.assert_allclose(td, whole, 1e-12)


def first_error(name, mdp, q, v, pi, mu, lambda_, s, a):
    """`[]` of a trajectory that has one action more than steps."""
    a_tm1, a_t, q_tm1, q_t = a[:-1], a[1:], q[s[:-1]], q[s[1:]]
    r_t = jnp.asarray(mdp.r)[s[:-1], a_tm1]
    discount_t, pi_t, mu_t = jnp.full_like(r_t, mdp.gamma), pi[s[1:]], mu[s[1:], a_t]
    one_step = (q_tm1, a_tm1, r_t, discount_t, q_t)
    if name == "td_lambda":
        args = (v[s[:-1]], r_t, discount_t, v[s[1:]])
    elif name == "sarsa_lambda":
        args = (*one_step, a_t)
    elif name == "q_lambda":  # Watkins
        args, lambda_ = one_step, jnp.where(jnp.argmax(q_t, axis=1) == a_t, lambda_, 0)
    elif name == "tree_backup":
        args = (*one_step, a_t, pi_t)
    elif name == "retrace":
        args = (q_tm1, q_t, a_tm1, a_t, r_t, discount_t, pi_t, mu_t)
    else:
        qa_tm1, qa_t = values_of(q_tm1, a_tm1), values_of(q_t, a_t)
        log_rhos = jnp.log(values_of(pi_t, a_t) / mu_t)
        args = (qa_tm1, qa_t[:-1], v[s[1:]], r_t, discount_t, log_rhos[:-1])
    return CASES[name].fn(*args, lambda_)[0]


@pytest.mark.parametrize(
    "name",
    [
        *("td_lambda", "sarsa_lambda", "q_lambda"),
        *("tree_backup", "retrace", "retrace_continuous"),
    ],
)
def test_expected_error_of_trajectories_is_zero_at_the_values(name, x64):
    """For every lambda, and but for the first two from another policy's actions."""
    mdp = oracles.random_mdp(2, num_states=3, num_actions=2)
    pi = oracles.random_policy(2, mdp)
    mu = pi if name in ("td_lambda", "sarsa_lambda") else oracles.random_policy(5, mdp)
    v = oracles.policy_value(mdp, pi)
    q = oracles.action_value(mdp, v)
    q = oracles.optimal_action_value(mdp) if name == "q_lambda" else q
    rows = [oracles.trajectories(mdp, mu, s, a, length=4) for s, a in np.ndindex(3, 2)]
    weights, states, actions = (np.stack(column) for column in zip(*rows, strict=True))
    f = functools.partial(first_error, name, mdp, *map(jnp.asarray, (q, v, pi, mu)))
    f = jax.vmap(jax.vmap(f, (None, 0, 0)), (None, 0, 0))  # trajectories; first pairs
    f = jax.jit(jax.vmap(f, (0, None, None)))
    lambdas, states = jnp.array([0.0, 0.8, 1.0]), jnp.asarray(states[..., :-1])
    errors = f(lambdas, states, jnp.asarray(actions))
    expected = np.einsum("pn,lpn->lp", weights, errors)
    if name == "td_lambda":  # a state's value is that of no single action
        expected = np.einsum("lsa,sa->ls", expected.reshape(3, 3, 2), pi)
    np.testing.assert_allclose(expected, 0.0, atol=1e-10)
