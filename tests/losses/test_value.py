"""Temporal-difference errors: identities, tabular MDPs, stop-gradients, divergence."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax import losses

from .. import oracles
from .cases_value import CASES
from .loss_case import SIZES, call, draw_numpy, jitted, shape

STOPS = ("bootstrap", "target", "none")
T, A = SIZES["T"], SIZES["A"]
SEQUENCES = [name for name, case in CASES.items() if "lambda" in str(case.args)]


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def values_of(q, a):
    return np.take_along_axis(q, a[:, None], axis=1)[:, 0]


# Signatures and refusals.


@pytest.mark.parametrize("stop", ["bootstrap", "none"])
@pytest.mark.parametrize(
    "name", ["soft_q_learning", "munchausen_q_learning", "expected_sarsa"]
)
def test_masked_actions_count_nothing(name, stop, x64):
    """-inf for an action that cannot be taken: values and gradients without it."""
    case = CASES[name]
    x, mask = draw_numpy(case) | {"a_tm1": np.int32(0)}, np.array([True, True, False])
    networks = [k for k in ("q_t", "target_q_tm1") if k in x]
    if "probs_a_t" in x:
        x["probs_a_t"] = np.array([0.4, 0.6, 0.0])
    short = {k: v[:2] if v.ndim else v for k, v in x.items()}
    x |= {k: np.where(mask, x[k], -np.inf) for k in networks}
    tuned = [*networks, *(k for k in x if k.startswith(("entropy", "discount")))]

    @jax.jit
    @jax.value_and_grad
    def f(y, x):
        return call(case, x | y, stop=stop)

    value, g = f({k: x[k] for k in tuned}, x)
    expected = f({k: short[k] for k in tuned}, short)
    g = {k: v[:2] if v.ndim else v for k, v in jax.device_get(g).items()}
    chex.assert_trees_all_close((value, g), expected)


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


def test_munchausen_bonus_of_large_values():
    """A constant added to all values changes nothing but what it is worth itself."""
    q = np.array([0.0, 0.25, 0.5])
    args = (np.zeros(3), 1, 0.0, 0.0, np.zeros(3))
    small, large = (
        jitted(losses.munchausen_q_learning)(*args, q + c, 0.3, 1.0)
        for c in (0.0, 2.0**18)
    )
    np.testing.assert_allclose(small, large, 1e-5)


@pytest.mark.parametrize("name", [n for n in CASES if "a_tm1" in CASES[n].args])
def test_action_out_of_range_is_nan(name):
    case = CASES[name]
    for argument in {"a_tm1", "a_t"} & {*case.args}:
        for action in (-1, A, A + 4):
            x = draw_numpy(case)
            x[argument][... if x[argument].ndim == 0 else 0] = action
            out = jitted(case.fn)(**x, **case.static)
            assert np.isnan(np.ravel(out)[0]), (argument, action)


@pytest.mark.parametrize(
    "name, argument", [("qv_learning", "q_tm1"), ("qv_max", "q_t")]
)
@pytest.mark.parametrize("wrong", [(), (2, A)])
def test_rank_of_the_only_action_values(name, argument, wrong):
    with pytest.raises(AssertionError, match=argument):
        call(CASES[name], draw_numpy(CASES[name]) | {argument: np.ones(wrong)})


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


@pytest.mark.parametrize("method", ["TDC", "", None])
def test_unknown_method(method):
    x = draw_numpy(CASES["gradient_td_loss"])
    with pytest.raises(ValueError, match="'tdc', 'gtd2'") as error:
        losses.gradient_td_loss(**x, method=method)
    assert f"method={method!r}" in str(error.value)


# Identities of one step.


def test_expected_sarsa_of_one_action(x64):
    """Certain of the greedy, the drawn or the selected one it is the other three."""
    x = draw_numpy(CASES["expected_sarsa"]) | {"q_t": np.array([1.0, 3.0, 2.0])}
    args = [x[k] for k in CASES["q_learning"].args]
    selector = np.array([0.0, 0.0, 1.0])
    for a, td in (
        (0, jitted(losses.sarsa)(*args, 0)),
        (1, jitted(losses.q_learning)(*args)),
        (2, jitted(losses.double_q_learning)(*args, selector)),
    ):
        expected = jitted(losses.expected_sarsa)(**x | {"probs_a_t": np.eye(A)[a]})
        np.testing.assert_allclose(td, expected, 1e-12)


def test_persistence_is_between_the_greedy_and_the_same_action(x64):
    x = draw_numpy(CASES["persistent_q_learning"])
    x |= {"q_t": np.arange(3.0), "a_tm1": np.int32(1)}
    args = [x[k] for k in CASES["q_learning"].args]
    for scale, td in (
        (0.0, jitted(losses.q_learning)(*args)),
        (1.0, jitted(losses.sarsa)(*args, x["a_tm1"])),
    ):
        x |= {"action_gap_scale": scale}
        persistent = jitted(losses.persistent_q_learning)(**x)
        np.testing.assert_allclose(persistent, td, 1e-12)


def test_qv_functions_share_their_targets(x64):
    x = draw_numpy(CASES["q_learning"])
    v_tm1, v_t = x["q_tm1"][x["a_tm1"]], np.max(x["q_t"])
    args = (x["r_t"], x["discount_t"])
    td = jitted(losses.q_learning)(**x)
    qv = jitted(losses.qv_learning)(x["q_tm1"], x["a_tm1"], *args, v_t)
    np.testing.assert_allclose(qv, td, 1e-12)
    qv = jitted(losses.qv_max)(v_tm1, *args, x["q_t"])
    np.testing.assert_allclose(qv, td, 1e-12)


# Temperatures.


def test_soft_q_learning_is_expected_sarsa_of_its_policy_plus_entropy(x64):
    x = draw_numpy(CASES["soft_q_learning"])
    pi = np.exp(x["q_t"] / x["entropy_temperature"])
    pi /= pi.sum()
    entropy = -np.sum(pi * np.log(pi))
    sarsa = jitted(losses.expected_sarsa)(*list(x.values())[:5], pi)
    bonus = x["discount_t"] * x["entropy_temperature"] * entropy
    td = jitted(losses.soft_q_learning)(**x)
    np.testing.assert_allclose(td, sarsa + bonus, 1e-12)


@functools.cache
def cold_soft_q_learning():
    """Returns a program: values, and slopes by the temperature and by the values."""

    def by_temperature(temperature, x):
        return losses.soft_q_learning(**x | {"entropy_temperature": temperature})

    def by_values(q_t, x):
        return losses.soft_q_learning(**x | {"q_t": q_t}, stop="none")

    @jax.jit
    def evaluate(x):
        temperature, slope = x["entropy_temperature"], jax.grad(by_temperature)
        return (
            by_temperature(temperature, x),
            losses.q_learning(*(x[k] for k in CASES["q_learning"].args)),
            slope(temperature, x),
            jax.grad(slope)(temperature, x),
            jax.grad(by_values)(x["q_t"], x),
        )

    return evaluate


@pytest.mark.parametrize("temperature", [1.0, 1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_cold_soft_q_learning_is_q_learning(temperature, scale):
    """Never below it, at most by temperature log A above, and no NaN in any slope."""
    x = draw_numpy(CASES["soft_q_learning"])
    x |= {"q_t": scale * x["q_t"], "entropy_temperature": np.float32(temperature)}
    x["q_t"] = x["q_t"].astype(np.float32)
    td, cold, slope, curvature, pi = jax.device_get(cold_soft_q_learning()(x))
    excess = (td - cold) / (x["discount_t"] * temperature)
    assert excess == 0.0 if temperature < 1e-3 else 0 <= excess <= np.log(A) + 1e-3
    assert 0 <= slope <= x["discount_t"] * np.log(A)  # the entropy
    assert np.isfinite(curvature)
    np.testing.assert_allclose(np.sum(pi), x["discount_t"], 1e-5)


def test_equal_values_are_a_uniform_policy():
    """The slope is shared, where that of a maximum is not one function's."""
    q, rest = np.ones(A), (np.zeros(A), 0, 0.0, 1.0)
    td, pi = jax.jit(
        jax.value_and_grad(lambda q: losses.soft_q_learning(*rest, q, 0.5, stop="none"))
    )(q)
    np.testing.assert_allclose(td, 1 + 0.5 * np.log(A), 1e-6)
    np.testing.assert_allclose(pi, np.full(A, 1 / A), 1e-6)


def test_munchausen_without_its_bonus_is_soft_q_learning(x64):
    x = draw_numpy(CASES["munchausen_q_learning"]) | {"munchausen_coefficient": 0.0}
    soft = {k: x[k] for k in CASES["soft_q_learning"].args}
    np.testing.assert_allclose(
        jitted(losses.munchausen_q_learning)(**x),
        jitted(losses.soft_q_learning)(**soft),
        1e-12,
    )


@pytest.mark.parametrize("temperature", [1e-6, 1e-10])
def test_cold_munchausen_is_advantage_learning(temperature):
    """Then the scaled log-policy is the advantage: Vieillard et al. (2020), sec. 3."""
    x = draw_numpy(CASES["munchausen_q_learning"])
    x |= {"entropy_temperature": np.float32(temperature)}
    q, m = x["target_q_tm1"], x["munchausen_coefficient"]
    greedy = jitted(losses.q_learning)(*list(x.values())[:5])

    @jax.jit
    @jax.value_and_grad
    def td_and_slopes(floats, a):
        return losses.munchausen_q_learning(
            **floats, a_tm1=a, clip_value_min=-9.0, stop="none"
        )

    floats = {k: v for k, v in x.items() if k != "a_tm1"}
    for a in range(A):
        td, slopes = td_and_slopes(floats, a)
        learned = greedy + x["q_tm1"][x["a_tm1"]] - x["q_tm1"][a]
        np.testing.assert_allclose(td, learned + m * (q[a] - np.max(q)), 1e-5)
        chex.assert_tree_all_finite(jax.device_get(slopes))


def test_munchausen_bonus_is_clipped():
    """Beyond the clip its slope is that of the clip."""
    x = draw_numpy(CASES["munchausen_q_learning"]) | {"entropy_temperature": 0.1}
    x["target_q_tm1"], m = np.arange(3, dtype=np.float32), x["munchausen_coefficient"]

    @jax.jit
    @jax.value_and_grad
    def td(clip, a):
        return losses.munchausen_q_learning(**x | {"a_tm1": a}, clip_value_min=clip)

    for a, clipped in enumerate((True, False, False)):
        # -1 is the default.
        low = jitted(losses.munchausen_q_learning)(**x | {"a_tm1": np.int32(a)})
        value, slope = td(-1.5, a)
        np.testing.assert_allclose(low, value + 0.5 * m * clipped, 1e-5)
        np.testing.assert_allclose(slope, m * clipped, 1e-6)


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
    one = CASES[one_step]
    args = [x[names.get(k, k)] for k in one.args]
    td = jitted(case.fn)(**x, **static)
    np.testing.assert_allclose(td, jax.jit(jax.vmap(one.fn))(*args), 1e-12)


def split_by_lambda(case):
    """Yields arguments with lambda 0 at a cut, and those of the two parts."""
    length = shape(case, "r_t")[0]
    for cut in (1, 3, T - 1):
        x = draw_numpy(case)
        for k in case.scalar:
            x[k][cut - 1] = 0.0

        def part(start, stop, x=x):
            """Arrays with one step less lack the part's last one."""
            return {
                k: v[start : stop - length + len(v)] if v.ndim else v
                for k, v in x.items()
            }

        yield x, (part(0, cut), part(cut, length))


@pytest.mark.parametrize("name", SEQUENCES)
def test_lambda_zero_at_a_cut_splits_the_trajectory(name, x64):
    """In two parts, each by its definition."""
    case = CASES[name]
    for x, parts in split_by_lambda(case):
        whole = jitted(case.fn)(**x, **case.static)
        parts = [case.oracle(**y, **case.static) for y in parts]
        np.testing.assert_allclose(whole, np.concatenate(parts), 1e-10, 1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "tree_backup",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in SEQUENCES
            if name != "tree_backup"
        ),
    ],
)
def test_parts_of_any_length(name, x64):
    """As above, but the parts too are computed by the package, from 1 to 5 steps."""
    case = CASES[name]
    for x, parts in split_by_lambda(case):
        whole = jitted(case.fn)(**x, **case.static)
        parts = [jitted(case.fn)(**y, **case.static) for y in parts]
        np.testing.assert_allclose(whole, np.concatenate(parts), 1e-12)


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


# Tabular MDPs.


@functools.partial(jax.jit, static_argnames="stop")
def expected_td(mdp, policy, v_tm1, v_t, gamma, stop):
    """`[S]` TD errors, averaged exactly over actions and successors."""
    f = functools.partial(losses.td_learning, stop=stop)
    f = jax.vmap(f, (None, None, None, 0))  # successors
    f = jax.vmap(f, (None, 0, None, None))  # actions
    f = jax.vmap(f, (0, 0, None, None))  # states
    td = f(v_tm1, jnp.asarray(mdp.r), gamma, v_t)
    return jnp.einsum("sa,sat,sat->s", policy, mdp.p, td)


@pytest.mark.parametrize("seed", range(3))
def test_expected_td_error_is_zero_at_the_values(seed, x64):
    mdp = oracles.random_mdp(seed)
    policy = oracles.random_policy(seed, mdp)
    v = jnp.asarray(oracles.policy_value(mdp, policy))
    td = expected_td(mdp, policy, v, v, mdp.gamma, "bootstrap")
    np.testing.assert_allclose(td, 0.0, atol=1e-12)
    off = expected_td(mdp, policy, v, v + 1, mdp.gamma, "bootstrap")
    assert np.abs(off).min() > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_implicit_value_gamma_gradient(seed, x64):
    """dV/dgamma from the TD errors alone: -(d td/dV)^-1 (d td/dgamma)."""
    mdp = oracles.random_mdp(seed)
    policy = oracles.random_policy(seed, mdp)
    v = jnp.asarray(oracles.policy_value(mdp, policy))

    def td(v, gamma, stop):
        return expected_td(mdp, policy, v, v, gamma, stop)

    @jax.jit
    def slopes(v, gamma):
        return jax.jacobian(td)(v, gamma, "none"), jax.jacobian(td, 1)(
            v, gamma, "bootstrap"
        )

    by_v, by_gamma = slopes(v, mdp.gamma)
    expected = oracles.value_gamma_gradient(mdp, policy)
    np.testing.assert_allclose(-np.linalg.solve(by_v, by_gamma), expected, 1e-10)
    h = 1e-5
    up, down = (
        oracles.policy_value(mdp._replace(gamma=mdp.gamma + d), policy) for d in (h, -h)
    )
    np.testing.assert_allclose(expected, (up - down) / (2 * h), 1e-6)


def soft_action_value(mdp, temperature):
    """`[S, A]` by soft value iteration."""
    q = np.zeros_like(mdp.r)
    for _ in range(500):
        v = temperature * np.log(np.exp(q / temperature).sum(1))
        q = oracles.action_value(mdp, v)
    return q


@pytest.mark.parametrize(
    "name",
    [
        *("q_learning", "double_q_learning", "qv_max", "soft_q_learning"),
        *("sarsa", "expected_sarsa", "qv_learning"),
    ],
)
def test_expected_error_is_zero_at_the_fixed_point(name, x64):
    """Over successors and next actions, from every state and action."""
    mdp = oracles.random_mdp(0)
    policy = oracles.random_policy(0, mdp)
    v = oracles.policy_value(mdp, policy)
    q = oracles.action_value(mdp, v)
    if name == "soft_q_learning":
        q = soft_action_value(mdp, 0.5)
    elif name in ("q_learning", "double_q_learning", "qv_max"):
        q = oracles.optimal_action_value(mdp)
    r, q, pi, v = map(jnp.asarray, (mdp.r, q, policy, v))

    @jax.jit
    def errors(shift):
        """`[S, A, S, A]` from states by actions to states and actions."""

        def td(s, a, s_t, a_t):
            q_t, v_t = q[s_t] + shift, v[s_t] + shift
            further = {
                "q_learning": (q_t,),
                "double_q_learning": (q_t, q_t),
                "qv_max": (q_t,),
                "soft_q_learning": (q_t, 0.5),
                "sarsa": (q_t, a_t),
                "expected_sarsa": (q_t, pi[s_t]),
                "qv_learning": (v_t,),
            }[name]
            prediction = (q[s, a],) if name == "qv_max" else (q[s], a)
            return CASES[name].fn(*prediction, r[s, a], mdp.gamma, *further)

        shape = (*r.shape, *r.shape)
        return jax.vmap(td)(*jnp.indices(shape).reshape(4, -1)).reshape(shape)

    for shift in (0.0, 1.0):
        expected = np.einsum("satb,sat,tb->sa", errors(shift), mdp.p, policy)
        np.testing.assert_allclose(expected, shift * mdp.gamma, atol=1e-12)


def test_double_q_learning_evaluates_the_selected_action(x64):
    mdp = oracles.random_mdp(1)
    policy = np.eye(3)[[0, 2, 1, 0]]  # one action in each of the four states
    q = oracles.action_value(mdp, oracles.policy_value(mdp, policy))
    f = jax.jit(jax.vmap(losses.double_q_learning, (None, None, None, None, 0, 0)))
    for s, a in np.ndindex(q.shape):
        td = np.asarray(f(q[s], a, mdp.r[s, a], mdp.gamma, q, policy))
        np.testing.assert_allclose(mdp.p[s, a] @ td, 0.0, atol=1e-12)


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


# The stop-gradient trap.


@pytest.mark.parametrize(
    "stop, theta, meta_gradient",
    [
        ("target", [0.55, 2.0], 0.0),
        ("bootstrap", [0.55, 2.0], -0.89),
        ("none", [0.55, 1.775], -0.89),
    ],
)
def test_stop_gradient_trap(stop, theta, meta_gradient, x64):
    """Only the default has the right update and the right slope, -(5 - 0.55) 0.1 2."""

    def inner_step(gamma):
        def loss(p):
            return 0.5 * losses.td_learning(p[0], 1.0, gamma, p[1], stop=stop) ** 2

        p = jnp.array([0.3, 2.0])
        return p - 0.1 * jax.grad(loss)(p)

    def outer(gamma):
        p = inner_step(gamma)
        return 0.5 * (5.0 - p[0]) ** 2, p

    g, p = jax.jit(jax.grad(outer, has_aux=True))(0.9)
    np.testing.assert_allclose(p, theta, 1e-12)
    np.testing.assert_allclose(g, meta_gradient, 1e-12)


def test_rlax_fixture_of_the_trap(x64):
    """0 with rlax's default, 2 (0.64 - 3) 0.1 = -0.472 with ours."""

    def outer(gamma, td_learning):
        def loss(p):
            return 0.5 * td_learning(p, 1.0, gamma, 2 * jax.lax.stop_gradient(p)) ** 2

        return (0.5 - 0.1 * jax.grad(loss)(0.5) - 3) ** 2

    g = jax.jit(jax.grad(outer), static_argnums=1)
    np.testing.assert_allclose(g(0.9, losses.td_learning), -0.472, 1e-12)
    assert g(0.9, rlax.td_learning) == 0.0


@pytest.mark.parametrize(
    "num_steps, stopped, separated",
    [
        (1, -0.37200, -0.37200),
        (2, -0.74504, -0.80655),
        (3, -1.09558, -1.27696),
        (5, -1.61497, -2.15510),
    ],
)
def test_argument_separation(num_steps, stopped, separated, x64):
    """Beyond one step stopping is wrong and separation is right."""

    def outer(gamma, stop):
        def loss(v, bootstrap_v):
            td = losses.td_learning(v, 1.0, gamma, 2 * bootstrap_v, stop=stop)
            return 0.5 * td**2

        v = 0.5
        for _ in range(num_steps):
            v = v - 0.1 * jax.grad(loss)(v, v)
        return (v - 2.5) ** 2

    @jax.jit
    def evaluate(gamma):
        return outer(gamma, "none"), {s: jax.grad(outer)(gamma, s) for s in STOPS}

    h, (_, g) = 1e-6, evaluate(0.9)
    up, down = (float(evaluate(0.9 + d)[0]) for d in (h, -h))
    truth = (up - down) / (2 * h)
    np.testing.assert_allclose(g["bootstrap"], stopped, atol=5e-6)
    np.testing.assert_allclose(g["none"], separated, atol=5e-6)
    np.testing.assert_allclose(g["none"], truth, 1e-8)
    assert g["target"] == 0.0


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
