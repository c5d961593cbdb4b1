"""One-step temporal-difference errors: identities, tabular MDPs, stop-gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax import losses

from .. import oracles
from .cases_one_step import CASES
from .loss_case import SIZES, call, draw_numpy, jitted

STOPS = ("bootstrap", "target", "none")
T, A = SIZES["T"], SIZES["A"]


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


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


def test_munchausen_bonus_of_large_values():
    """A constant added to all values changes nothing but what it is worth itself."""
    q = np.array([0.0, 0.25, 0.5])
    args = (np.zeros(3), 1, 0.0, 0.0, np.zeros(3))
    small, large = (
        jitted(losses.munchausen_q_learning)(*args, q + c, 0.3, 1.0)
        for c in (0.0, 2.0**18)
    )
    np.testing.assert_allclose(small, large, 1e-5)


@pytest.mark.parametrize(
    "name, argument", [("qv_learning", "q_tm1"), ("qv_max", "q_t")]
)
@pytest.mark.parametrize("wrong", [(), (2, A)])
def test_rank_of_the_only_action_values(name, argument, wrong):
    with pytest.raises(AssertionError, match=argument):
        call(CASES[name], draw_numpy(CASES[name]) | {argument: np.ones(wrong)})


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
