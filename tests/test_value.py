"""Temporal-difference errors: identities, tabular MDPs, stop-gradients, divergence."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax import losses

from . import oracles
from .cases_value import CASES
from .loss_case import SIZES, call, draw, shape

STOPS = ("bootstrap", "target", "none")
T, A = SIZES["T"], SIZES["A"]
SEQUENCES = [name for name, case in CASES.items() if "lambda" in str(case.args)]


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def values_of(q, a):
    return jax.vmap(lambda row, i: row[i])(q, a)


# Signatures and refusals.


@pytest.mark.parametrize("stop", ["bootstrap", "none"])
@pytest.mark.parametrize(
    "name", ["soft_q_learning", "munchausen_q_learning", "expected_sarsa"]
)
def test_masked_actions_count_nothing(name, stop, x64):
    """-inf for an action that cannot be taken: values and gradients without it."""
    case = CASES[name]
    x, mask = draw(case) | {"a_tm1": jnp.int32(0)}, jnp.array([True, True, False])
    networks = [k for k in ("q_t", "target_q_tm1") if k in x]
    if "probs_a_t" in x:
        x["probs_a_t"] = jnp.array([0.4, 0.6, 0.0])
    short = {k: v[:2] if v.ndim else v for k, v in x.items()}
    x |= {k: jnp.where(mask, x[k], -jnp.inf) for k in networks}
    tuned = [*networks, *(k for k in x if k.startswith(("entropy", "discount")))]

    def f(y, x):
        return call(case, x | y, stop=stop)

    value, g = jax.value_and_grad(f)({k: x[k] for k in tuned}, x)
    expected = jax.value_and_grad(f)({k: short[k] for k in tuned}, short)
    g = {k: v[:2] if v.ndim else v for k, v in g.items()}
    chex.assert_trees_all_close((value, g), expected)


def test_munchausen_bonus_of_large_values():
    """A constant added to all values changes nothing but what it is worth itself."""
    q = jnp.array([0.0, 0.25, 0.5])
    args = (jnp.zeros(3), 1, 0.0, 0.0, jnp.zeros(3))
    small, large = (
        losses.munchausen_q_learning(*args, q + c, 0.3, 1.0) for c in (0.0, 2.0**18)
    )
    np.testing.assert_allclose(small, large, 1e-5)


@pytest.mark.parametrize("action", [-1, A, A + 4])
@pytest.mark.parametrize(
    "name, argument",
    [(n, a) for n in CASES for a in ("a_tm1", "a_t") if a in CASES[n].args],
)
def test_action_out_of_range_is_nan(name, argument, action):
    x = draw(CASES[name])
    if x[argument].ndim:
        x[argument] = x[argument].at[0].set(action)
        assert jnp.isnan(call(CASES[name], x)[0])
    else:
        assert jnp.isnan(call(CASES[name], x | {argument: action}))


@pytest.mark.parametrize("argument", ["r_t", "discount_t"])
@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case.args["r_t"] == ":real"]
)
def test_python_integers_are_refused(name, argument):
    with pytest.raises(AssertionError, match=argument):
        call(CASES[name], draw(CASES[name]) | {argument: 1})


@pytest.mark.parametrize(
    "name, argument", [("qv_learning", "q_tm1"), ("qv_max", "q_t")]
)
@pytest.mark.parametrize("wrong", [(), (2, A)])
def test_rank_of_the_only_action_values(name, argument, wrong):
    with pytest.raises(AssertionError, match=argument):
        call(CASES[name], draw(CASES[name]) | {argument: jnp.ones(wrong)})


def test_retrace_continuous_has_one_step_less_of_ratios():
    x = draw(CASES["retrace_continuous"])
    for k in ("q_t", "log_rhos", "lambda_"):
        x[k] = x[k][1:]
    with pytest.raises(AssertionError) as error:
        losses.retrace_continuous(**x)
    for k, v in x.items():
        assert f"{k} {jax.typeof(v).str_short()}" in str(error.value)


@pytest.mark.parametrize("n", [0, -1])
def test_n_below_one(n):
    x = draw(CASES["transformed_n_step_q_learning"])
    with pytest.raises(ValueError, match=f"n={n}: must be an integer >= 1"):
        losses.transformed_n_step_q_learning(**x, n=n)


@pytest.mark.parametrize("method", ["TDC", "", None])
def test_unknown_method(method):
    x = draw(CASES["gradient_td_loss"])
    with pytest.raises(ValueError, match="'tdc', 'gtd2'") as error:
        losses.gradient_td_loss(**x, method=method)
    assert f"method={method!r}" in str(error.value)


# Identities of one step.


def test_expected_sarsa_of_one_action(x64):
    """Certain of the greedy, the drawn or the selected one it is the other three."""
    x = draw(CASES["expected_sarsa"]) | {"q_t": jnp.array([1.0, 3.0, 2.0])}
    args, selector = (
        [x[k] for k in CASES["q_learning"].args],
        jnp.array([0.0, 0.0, 1.0]),
    )
    for a, td in (
        (0, losses.sarsa(*args, 0)),
        (1, losses.q_learning(*args)),
        (2, losses.double_q_learning(*args, selector)),
    ):
        expected = losses.expected_sarsa(**x | {"probs_a_t": jax.nn.one_hot(a, A)})
        np.testing.assert_allclose(td, expected, 1e-12)


def test_persistence_is_between_the_greedy_and_the_same_action(x64):
    x = draw(CASES["persistent_q_learning"]) | {"q_t": jnp.arange(3.0), "a_tm1": 1}
    args = [x[k] for k in CASES["q_learning"].args]
    for scale, td in (
        (0.0, losses.q_learning(*args)),
        (1.0, losses.sarsa(*args, x["a_tm1"])),
    ):
        persistent = losses.persistent_q_learning(**x | {"action_gap_scale": scale})
        np.testing.assert_allclose(persistent, td, 1e-12)


def test_qv_functions_share_their_targets(x64):
    x = draw(CASES["q_learning"])
    v_tm1, v_t = x["q_tm1"][x["a_tm1"]], jnp.max(x["q_t"])
    args = (x["r_t"], x["discount_t"])
    td = losses.q_learning(**x)
    qv = losses.qv_learning(x["q_tm1"], x["a_tm1"], *args, v_t)
    np.testing.assert_allclose(qv, td, 1e-12)
    np.testing.assert_allclose(losses.qv_max(v_tm1, *args, x["q_t"]), td, 1e-12)


# Temperatures.


def test_soft_q_learning_is_expected_sarsa_of_its_policy_plus_entropy(x64):
    x = draw(CASES["soft_q_learning"])
    pi = jax.nn.softmax(x["q_t"] / x["entropy_temperature"])
    entropy = -jnp.sum(pi * jnp.log(pi))
    sarsa = losses.expected_sarsa(*list(x.values())[:5], pi)
    bonus = x["discount_t"] * x["entropy_temperature"] * entropy
    np.testing.assert_allclose(losses.soft_q_learning(**x), sarsa + bonus, 1e-12)


@pytest.mark.parametrize("temperature", [1.0, 1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_cold_soft_q_learning_is_q_learning(temperature, scale):
    """Never below it, at most by temperature log A above, and no NaN in any slope."""
    x = draw(CASES["soft_q_learning"])
    x = x | {"q_t": scale * x["q_t"], "entropy_temperature": jnp.float32(temperature)}
    td, cold = losses.soft_q_learning(**x), losses.q_learning(*list(x.values())[:5])
    excess = (td - cold) / (x["discount_t"] * temperature)
    assert excess == 0.0 if temperature < 1e-3 else 0 <= excess <= np.log(A) + 1e-3

    def by_temperature(y):
        return losses.soft_q_learning(**x | {"entropy_temperature": y})

    slope = jax.grad(by_temperature)(x["entropy_temperature"])
    assert 0 <= slope <= x["discount_t"] * np.log(A)  # the entropy
    assert jnp.isfinite(jax.grad(jax.grad(by_temperature))(x["entropy_temperature"]))
    pi = jax.grad(lambda q: losses.soft_q_learning(**x | {"q_t": q}, stop="none"))(
        x["q_t"]
    )
    np.testing.assert_allclose(jnp.sum(pi), x["discount_t"], 1e-5)


def test_equal_values_are_a_uniform_policy():
    """The slope is shared, where that of a maximum is not one function's."""
    q, rest = jnp.ones(A), (jnp.zeros(A), 0, 0.0, 1.0)
    td, pi = jax.value_and_grad(
        lambda q: losses.soft_q_learning(*rest, q, 0.5, stop="none")
    )(q)
    np.testing.assert_allclose(td, 1 + 0.5 * np.log(A), 1e-6)
    np.testing.assert_allclose(pi, np.full(A, 1 / A), 1e-6)


def test_munchausen_without_its_bonus_is_soft_q_learning(x64):
    x = draw(CASES["munchausen_q_learning"]) | {"munchausen_coefficient": 0.0}
    soft = {k: x[k] for k in CASES["soft_q_learning"].args}
    np.testing.assert_allclose(
        losses.munchausen_q_learning(**x), losses.soft_q_learning(**soft), 1e-12
    )


@pytest.mark.parametrize("temperature", [1e-6, 1e-10])
def test_cold_munchausen_is_advantage_learning(temperature):
    """Then the scaled log-policy is the advantage: Vieillard et al. (2020), sec. 3."""
    x = draw(CASES["munchausen_q_learning"])
    x = x | {"entropy_temperature": jnp.float32(temperature)}
    q, m = x["target_q_tm1"], x["munchausen_coefficient"]
    greedy = losses.q_learning(*list(x.values())[:5])
    for a in range(A):
        y = x | {"a_tm1": a}
        td, slopes = jax.value_and_grad(
            lambda floats, a=a: losses.munchausen_q_learning(
                **floats, a_tm1=a, clip_value_min=-9.0, stop="none"
            )
        )({k: v for k, v in y.items() if k != "a_tm1"})
        learned = greedy + x["q_tm1"][x["a_tm1"]] - x["q_tm1"][a]
        np.testing.assert_allclose(td, learned + m * (q[a] - jnp.max(q)), 1e-5)
        chex.assert_tree_all_finite(slopes)


def test_munchausen_bonus_is_clipped():
    """Beyond the clip its slope is that of the clip."""
    x = draw(CASES["munchausen_q_learning"]) | {"entropy_temperature": 0.1}
    x["target_q_tm1"], m = jnp.arange(3.0), x["munchausen_coefficient"]

    def td(a, clip):
        return losses.munchausen_q_learning(**x | {"a_tm1": a}, clip_value_min=clip)

    for a, clipped in enumerate((True, False, False)):
        low = losses.munchausen_q_learning(**x | {"a_tm1": a})  # -1 is the default
        np.testing.assert_allclose(low, td(a, -1.5) + 0.5 * m * clipped, 1e-5)
        slope = jax.grad(td, 1)(a, -1.5)
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
    case, static = (
        CASES[name],
        {k: v for k, v in CASES[name].static.items() if k == "n"},
    )
    x = draw(case)
    x |= {k: jnp.zeros(T) for k in case.scalar}
    names = {"probs_a_t": "pi_t", "q_t": "target_q_t" if "n" in static else "q_t"}
    one = CASES[one_step]
    args = [x[names.get(k, k)] for k in one.args]
    np.testing.assert_allclose(case.fn(**x, **static), jax.vmap(one.fn)(*args), 1e-12)


@pytest.mark.parametrize("cut", [1, 3, T - 1])
@pytest.mark.parametrize("name", SEQUENCES)
def test_lambda_zero_at_a_cut_splits_the_trajectory(name, cut, x64):
    case = CASES[name]
    x = draw(case)
    x |= {k: x[k].at[cut - 1].set(0.0) for k in case.scalar}
    length = shape(case, "r_t")[0]

    def part(start, stop):
        """Arrays with one step less lack the part's last one."""
        return {
            k: v[start : stop - length + len(v)] if v.ndim else v for k, v in x.items()
        }

    parts = [call(case, part(0, cut)), call(case, part(cut, length))]
    np.testing.assert_allclose(call(case, x), jnp.concatenate(parts), 1e-12)


def test_q_lambda_carries_the_value_of_its_own_successor(x64):
    """Not the next one's, which is right in the last step only."""
    r_t, discount_t = jnp.array([1.0, 2.0, 4.0]), jnp.full(3, 0.5)
    v_t = np.array([2.0, 3.0, 8.0])
    q_t = jnp.stack([v_t - 1, v_t, v_t - 2], axis=1)
    q_tm1, a_tm1 = jnp.zeros((3, A)), jnp.zeros(3, int)
    targets = losses.q_lambda(q_tm1, a_tm1, r_t, discount_t, q_t, 0.5)
    # 4 + 0.5 * 8; 2 + 0.5 * (1.5 + 4); 1 + 0.5 * (1 + 2.375)
    np.testing.assert_allclose(targets, [2.6875, 4.75, 8.0], 1e-12)
    np.testing.assert_allclose(
        targets, losses.lambda_returns(r_t, discount_t, jnp.asarray(v_t), 0.5), 1e-12
    )
    late = [0.0, 0.0, 8.0]
    for t in (1, 0):
        late[t] = r_t[t] + 0.5 * (0.5 * v_t[t + 1] + 0.5 * late[t + 1])
    assert np.abs(targets - np.array(late))[:2].min() > 0.5


def test_watkins_is_tree_backup_and_retrace_of_the_greedy_policy(x64):
    x = draw(CASES["retrace"]) | {"eps": 0.0}
    greedy = jnp.argmax(x["q_t"], axis=1) == x["a_t"]
    assert 0 < jnp.sum(greedy[:-1]) < T - 1
    x |= {"pi_t": jax.nn.one_hot(jnp.argmax(x["q_t"], axis=1), A)}
    names = ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t")
    args = [x[k] for k in names]
    watkins = losses.q_lambda(*args, jnp.where(greedy, x["lambda_"], 0.0))
    tree = losses.tree_backup(*args, x["a_t"], x["pi_t"], x["lambda_"])
    np.testing.assert_allclose(watkins, tree, 1e-12)
    np.testing.assert_allclose(losses.retrace(**x), watkins, 1e-12)


def test_certain_and_on_policy_all_are_sarsa_lambda(x64):
    x = draw(CASES["retrace"]) | {"eps": 0.0, "mu_t": jnp.ones(T)}
    x |= {"pi_t": jax.nn.one_hot(x["a_t"], A)}
    args = [x[k] for k in ("q_tm1", "a_tm1", "r_t", "discount_t", "q_t", "a_t")]
    sarsa = losses.sarsa_lambda(*args, x["lambda_"])
    tree = losses.tree_backup(*args, x["pi_t"], x["lambda_"])
    np.testing.assert_allclose(losses.retrace(**x), sarsa, 1e-12)
    np.testing.assert_allclose(tree, sarsa, 1e-12)


def test_tree_backup_does_not_correct_by_default(x64):
    x = draw(CASES["tree_backup"])
    one = losses.tree_backup(**x | {"lambda_": 1.0})
    del x["lambda_"]
    np.testing.assert_allclose(losses.tree_backup(**x), one, 1e-12)


def test_retrace_is_retrace_continuous_of_the_actions_taken(x64):
    x = draw(CASES["retrace"]) | {"eps": 0.0}
    continuous = losses.retrace_continuous(
        q_tm1=values_of(x["q_tm1"], x["a_tm1"]),
        q_t=values_of(x["q_t"], x["a_t"])[:-1],
        v_t=jnp.sum(x["pi_t"] * x["q_t"], axis=1),
        r_t=x["r_t"],
        discount_t=x["discount_t"],
        log_rhos=jnp.log(values_of(x["pi_t"], x["a_t"]) / x["mu_t"])[:-1],
        lambda_=x["lambda_"][:-1],
    )
    np.testing.assert_allclose(losses.retrace(**x), continuous, 1e-12)


def test_retrace_of_improbable_actions():
    """Ratios of 0/0 and 1/0 and their logarithms: no NaN, in no slope."""
    x = draw(CASES["retrace"])
    del x["eps"]
    x |= {"mu_t": jnp.zeros(T), "pi_t": jax.nn.one_hot(jnp.zeros(T, int), A)}
    actions = {k: x.pop(k) for k in ("a_tm1", "a_t")}
    slopes = jax.grad(lambda x: jnp.sum(losses.retrace(**x, **actions, stop="none")))(x)
    chex.assert_tree_all_finite(slopes)
    y = draw(CASES["retrace_continuous"])
    y |= {"log_rhos": jnp.array([-jnp.inf, -200.0, 0.0, 1.0, 200.0, 1e30])}
    slopes = jax.grad(lambda y: jnp.sum(losses.retrace_continuous(**y, stop="none")))(y)
    chex.assert_tree_all_finite(slopes)


def test_identity_pair_is_the_default(x64):
    for name in ("q_lambda", "retrace"):
        x = draw(CASES[name])
        transformed = CASES["transformed_" + name].fn(**x)
        chex.assert_trees_all_equal(transformed, CASES[name].fn(**x))


@pytest.mark.parametrize("n", [1, 3, T])
def test_n_step_q_learning(n, x64):
    """Greedy over the whole trajectory it is q_lambda at 1."""
    x = draw(CASES["transformed_n_step_q_learning"])
    del x["lambda_t"]
    x |= {"a_t": jnp.argmax(x["target_q_t"], axis=1)}
    td = losses.transformed_n_step_q_learning(**x, n=n)
    v_t, args = jnp.max(x["target_q_t"], axis=1), (x["r_t"], x["discount_t"])
    g_t = losses.n_step_bootstrapped_returns(*args, v_t, n)
    np.testing.assert_allclose(td, g_t - values_of(x["q_tm1"], x["a_tm1"]), 1e-12)
    if n == T:
        whole = losses.q_lambda(x["q_tm1"], x["a_tm1"], *args, x["target_q_t"], 1.0)
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

    by_v = jax.jacobian(td)(v, mdp.gamma, "none")
    by_gamma = jax.jacobian(td, 1)(v, mdp.gamma, "bootstrap")
    expected = oracles.value_gamma_gradient(mdp, policy)
    np.testing.assert_allclose(-jnp.linalg.solve(by_v, by_gamma), expected, 1e-10)
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
    for s, a in np.ndindex(q.shape):
        td = jax.vmap(
            lambda q_t, selector, s=s, a=a: losses.double_q_learning(
                jnp.asarray(q[s]), a, mdp.r[s, a], mdp.gamma, q_t, selector
            )
        )(jnp.asarray(q), jnp.asarray(policy))
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
        return 0.5 * (5.0 - inner_step(gamma)[0]) ** 2

    np.testing.assert_allclose(inner_step(0.9), theta, 1e-12)
    np.testing.assert_allclose(jax.grad(outer)(0.9), meta_gradient, 1e-12)


def test_rlax_fixture_of_the_trap(x64):
    """0 with rlax's default, 2 (0.64 - 3) 0.1 = -0.472 with ours."""

    def outer(gamma, td_learning):
        def loss(p):
            return 0.5 * td_learning(p, 1.0, gamma, 2 * jax.lax.stop_gradient(p)) ** 2

        return (0.5 - 0.1 * jax.grad(loss)(0.5) - 3) ** 2

    np.testing.assert_allclose(jax.grad(outer)(0.9, losses.td_learning), -0.472, 1e-12)
    assert jax.grad(outer)(0.9, rlax.td_learning) == 0.0


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

    g = {stop: jax.grad(outer)(0.9, stop) for stop in STOPS}
    h = 1e-6
    truth = (outer(0.9 + h, "none") - outer(0.9 - h, "none")) / (2 * h)
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
        g = jax.grad(loss, argnums=(0, 1, 2))(2.0, 4.0, 2.0, method)
        np.testing.assert_allclose(g, (first, 1.0, -1.0), 1e-12)


@pytest.mark.parametrize("stop", STOPS)
def test_gtd2_gradients_of_each_mode(stop, x64):
    """Every partial derivative; TDC's are in the sweep."""
    x = draw(CASES["gradient_td_loss"])
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
    g = jax.grad(lambda x: loss(**x))(x)
    for k, y in expected.items():
        np.testing.assert_allclose(g[k], y, 1e-12, err_msg=k)
    oracle = CASES["gradient_td_loss"].oracle(**x, method="gtd2")
    np.testing.assert_allclose(loss(**x), oracle, 1e-12)


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
    w, u = jnp.asarray(linear.w), jnp.asarray(linear.u)
    best = jnp.linalg.solve(linear.covariance(), linear.update(w))
    g_w, g_u = jax.grad(linear.loss, argnums=(0, 1))(w, best, method)
    truth = jax.grad(linear.projected_bellman_error)(w)
    assert np.abs(truth).min() > 1e-2
    np.testing.assert_allclose(g_w, truth / 2, 1e-10)
    np.testing.assert_allclose(g_u, 0.0, atol=1e-12)
    lms = linear.update(w) - linear.covariance() @ u
    g_u = jax.grad(linear.loss, argnums=1)(w, u, method)
    np.testing.assert_allclose(-g_u, lms, 1e-10)


@pytest.mark.parametrize("method", ["tdc", "gtd2"])
def test_td_fixed_point_is_at_rest(method, x64):
    linear = Linear()
    a = linear.x.T @ (linear.d[:, None] * (linear.gamma * linear.p - np.eye(4)))
    w = jnp.asarray(-np.linalg.solve(a @ linear.x, linear.x.T @ (linear.d * linear.r)))
    g = jax.grad(linear.loss, argnums=(0, 1))(w, jnp.zeros(2), method)
    chex.assert_trees_all_close(g, (jnp.zeros(2), jnp.zeros(2)), atol=1e-12)


def test_between_semi_gradient_and_residual_gradient(x64):
    """With h = 0 TDC is TD; with h the TD error both are the residual gradient."""
    w = jnp.array([0.3, -0.7])
    x_tm1, x_t = jnp.array([1.0, 2.0]), jnp.array([-1.0, 0.5])

    def gradient_td_of(w, h, method):
        v_tm1, v_t = x_tm1 @ w, x_t @ w
        return losses.gradient_td_loss(
            v_tm1, 1.0, 0.9, v_t, h, v_tm1, v_t, h, method=method
        )

    def td(w, stop):
        return losses.td_learning(x_tm1 @ w, 1.0, 0.9, x_t @ w, stop=stop)

    semi, residual = (
        jax.grad(lambda w, stop=stop: td(w, stop) ** 2 / 2)(w)
        for stop in ("bootstrap", "none")
    )
    h = td(w, "none")
    g = jax.grad(gradient_td_of)
    np.testing.assert_allclose(g(w, 0.0, "tdc"), semi, 1e-12)
    np.testing.assert_allclose(g(w, h, "tdc"), residual, 1e-12)
    np.testing.assert_allclose(g(w, h, "gtd2"), residual, 1e-12)
    assert np.abs(semi - residual).min() > 0.1


# Divergence of semi-gradients, from the literature.


def descend(gradient, params, rates, num_steps):
    """The parameters at each of the steps, the first ones included."""

    def step(p, _):
        g = gradient(p)
        return jax.tree.map(lambda x, y, rate: x - rate * y, p, g, rates), p

    return jax.jit(lambda p: jax.lax.scan(step, p, length=num_steps + 1)[1])(params)


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
    w = jnp.asarray(Baird.w)
    rate = np.linalg.eigvals(-jax.jacobian(Baird.separated)(w)).real.max()
    np.testing.assert_allclose(rate, 0.239250, atol=5e-7)
    np.testing.assert_allclose(1 + 0.01 * rate, 1.002393, atol=5e-7)
    stopped = -jax.hessian(lambda w: Baird.loss(w, w, "bootstrap"))(w)
    assert np.linalg.eigvals(stopped).real.max() < 1e-12


def test_residual_gradient_converges_on_bairds_counterexample(x64):
    w = descend(
        jax.grad(lambda w: Baird.loss(w, w, "none")), jnp.asarray(Baird.w), 0.01, 20_000
    )
    errors = [2 * Baird.loss(w[k], w[k], "none") for k in (0, 1000, 20_000)]
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
        update = x.T @ Baird.td(w, w, "none") / 7
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

    np.testing.assert_allclose(step(1.0, "bootstrap"), factor, 1e-12)
    residual = 1 - 0.1 * (2 * gamma - 1) ** 2
    np.testing.assert_allclose(step(1.0, "none"), residual, 1e-12)
