"""Every loss: its value, its gradients in each mode, its meta-gradients, its checks."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from absl.testing import parameterized

from rljax import losses

from . import oracles

T, A = 6, 3
STOPS = ("bootstrap", "target", "none")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # of one float32 computation to another


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


class Case(NamedTuple):
    """A loss with the shapes of its arguments and what each mode does to them."""

    fn: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]  # every argument, in order
    always: tuple[str, ...]  # has the same gradient in every mode
    network: tuple[str, ...] = ()  # has a gradient under "none" only
    live: tuple[str, ...] = ()  # has none under "target"
    ratios: tuple[str, ...] = ()  # drawn around 1
    scalar: str = ""  # may be [] as well


CASES = {
    "td_learning": Case(
        losses.td_learning,
        {"v_tm1": (), "r_t": (), "discount_t": (), "v_t": ()},
        always=("v_tm1",),
        network=("v_t",),
        live=("r_t", "discount_t"),
    ),
    "q_learning": Case(
        losses.q_learning,
        {"q_tm1": (A,), "a_tm1": (), "r_t": (), "discount_t": (), "q_t": (A,)},
        always=("q_tm1",),
        network=("q_t",),
        live=("r_t", "discount_t"),
    ),
    "double_q_learning": Case(
        losses.double_q_learning,
        {
            **{"q_tm1": (A,), "a_tm1": (), "r_t": (), "discount_t": ()},
            **{"q_t_value": (A,), "q_t_selector": (A,)},
        },
        always=("q_tm1",),
        network=("q_t_value",),
        live=("r_t", "discount_t"),
    ),
    "generalized_advantage_estimation": Case(
        losses.generalized_advantage_estimation,
        dict.fromkeys(("r_t", "discount_t", "v_tm1", "v_t", "lambda_t"), (T,)),
        always=(),
        network=("v_tm1", "v_t"),
        live=("r_t", "discount_t", "lambda_t"),
        scalar="lambda_t",
    ),
    "lambda_returns": Case(
        losses.lambda_returns,
        dict.fromkeys(("r_t", "discount_t", "v_t", "lambda_"), (T,)),
        always=(),
        network=("v_t",),
        live=("r_t", "discount_t", "lambda_"),
        scalar="lambda_",
    ),
    "clipped_surrogate_pg_loss": Case(
        losses.clipped_surrogate_pg_loss,
        {"prob_ratios_t": (T,), "adv_t": (T,), "epsilon": ()},
        always=("prob_ratios_t", "epsilon"),
        live=("adv_t",),
        ratios=("prob_ratios_t",),
        scalar="epsilon",
    ),
    "clipped_value_loss": Case(
        losses.clipped_value_loss,
        {"v_t": (T,), "v_old_t": (T,), "target_t": (T,), "epsilon": ()},
        always=("v_t", "v_old_t", "target_t", "epsilon"),
        scalar="epsilon",
    ),
}
all_losses = pytest.mark.parametrize("name", CASES)
stopping = [name for name in CASES if name != "clipped_value_loss"]


def draw(name, seed=0, batch=()):
    """Valid arguments by name, in the float type of the current mode."""
    case, rng = CASES[name], np.random.default_rng(seed)
    arguments = {}
    for argument, shape in case.shapes.items():
        shape = batch + shape
        if argument == "a_tm1":
            value = jnp.asarray(rng.integers(0, A, shape), jnp.int32)
        elif argument.startswith(("discount", "lambda", "epsilon")):
            value = jnp.asarray(rng.uniform(0.2, 0.9, shape), float)
        else:
            loc = 1.0 if argument in case.ratios else 0.0
            value = jnp.asarray(rng.normal(loc, 1.0, shape), float)
        arguments[argument] = value
    return arguments


def split(x):
    """The floating arguments, and the action if there is one."""
    floats = {k: v for k, v in x.items() if k != "a_tm1"}
    return floats, {k: v for k, v in x.items() if k == "a_tm1"}


def finite_differences(f, x, h=1e-6):
    """Central differences of the scalar `f` in every element of the tree `x`."""
    flat, unravel = jax.flatten_util.ravel_pytree(x)

    def difference(step):
        return (f(unravel(flat + step)) - f(unravel(flat - step))) / (2 * h)

    return unravel(jax.jit(jax.vmap(difference))(h * jnp.eye(flat.size)))


# What the functions are.


def test_exports():
    assert sorted(losses.__all__) == losses.__all__
    assert sorted(CASES) == losses.__all__
    for name, case in CASES.items():
        assert case.fn is getattr(losses, name)


@pytest.mark.parametrize(
    "name",
    [
        *("td_learning", "q_learning", "double_q_learning"),
        *("lambda_returns", "clipped_surrogate_pg_loss"),
    ],
)
def test_signature_is_that_of_rlax(name):
    ours = list(inspect.signature(getattr(losses, name)).parameters.values())
    theirs = list(inspect.signature(getattr(rlax, name)).parameters.values())
    assert [(p.name, p.default) for p in ours[:-1]] == [
        (p.name, p.default) for p in theirs[:-1]
    ]


@pytest.mark.parametrize("name", stopping)
def test_stop_is_keyword_only_with_one_default(name):
    stop = inspect.signature(CASES[name].fn).parameters["stop"]
    assert (stop.kind, stop.default) == (stop.KEYWORD_ONLY, "bootstrap")


# Values.


class HandComputedTest(chex.TestCase):
    """Small numbers, worked out on paper, with and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*STOPS)
    def test_td_learning(self, stop):
        f = self.variant(functools.partial(losses.td_learning, stop=stop))
        x = jnp.array([0.5, 1.0, 0.5, 4.0])  # 1 + 0.5 * 4 - 0.5
        chex.assert_trees_all_equal(f(*x), jnp.float32(2.5))

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*STOPS)
    def test_q_learning(self, stop):
        f = self.variant(functools.partial(losses.q_learning, stop=stop))
        q_tm1, q_t = jnp.array([9.0, 0.5]), jnp.array([4.0, 2.0])
        chex.assert_trees_all_equal(f(q_tm1, 1, 1.0, 0.5, q_t), jnp.float32(2.5))

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*STOPS)
    def test_double_q_learning(self, stop):
        f = self.variant(functools.partial(losses.double_q_learning, stop=stop))
        q_tm1, value = jnp.array([9.0, 0.5]), jnp.array([4.0, 2.0])
        selector = jnp.array([-2.0, -1.0])  # 1 + 0.5 * 2 - 0.5
        td = f(q_tm1, 1, 1.0, 0.5, value, selector)
        chex.assert_trees_all_equal(td, jnp.float32(1.5))

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*STOPS)
    def test_generalized_advantage_estimation(self, stop):
        f = functools.partial(losses.generalized_advantage_estimation, stop=stop)
        r_t = jnp.array([1.0, 2.0, 4.0, 1.0])
        discount_t = jnp.array([0.5, 0.5, 0.0, 0.5])  # the third step terminates
        v_tm1, v_t = jnp.array([1.0, 2.0, 3.0, 5.0]), jnp.array([2.0, 3.0, 9.0, 4.0])
        # deltas 1, 1.5, 1, -2
        adv_t = self.variant(f)(r_t, discount_t, v_tm1, v_t, 0.5)
        chex.assert_trees_all_equal(adv_t, jnp.array([1.4375, 1.75, 1.0, -2.0]))

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*STOPS)
    def test_generalized_advantage_estimation_truncated(self, stop):
        f = functools.partial(losses.generalized_advantage_estimation, stop=stop)
        r_t, discount_t = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.5, 0.5])
        v_tm1, v_t = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 8.0, 6.0])
        lambda_t = jnp.array([0.5, 0.0, 0.5])  # the second step is truncated
        # deltas 1, 4, 4; the third belongs to the next episode
        adv_t = self.variant(f)(r_t, discount_t, v_tm1, v_t, lambda_t)
        chex.assert_trees_all_equal(adv_t, jnp.array([2.0, 4.0, 4.0]))

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*STOPS)
    def test_lambda_returns(self, stop):
        f = functools.partial(losses.lambda_returns, stop=stop)
        r_t, discount_t = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.5, 0.5])
        v_t = jnp.array([2.0, 3.0, 8.0])
        # 4 + 0.5 * 8; 2 + 0.5 * (1.5 + 4); 1 + 0.5 * (1 + 2.375)
        g_t = self.variant(f)(r_t, discount_t, v_t, 0.5)
        chex.assert_trees_all_equal(g_t, jnp.array([2.6875, 4.75, 8.0]))

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*STOPS)
    def test_clipped_surrogate_pg_loss(self, stop):
        f = functools.partial(losses.clipped_surrogate_pg_loss, stop=stop)
        ratios = jnp.array([0.5, 0.5, 2.0, 2.0, 1.0])
        adv_t = jnp.array([1.0, -1.0, 1.0, -1.0, 3.0])
        loss, slope = self.variant(
            lambda ratios: (
                f(ratios, adv_t, 0.25),
                jax.grad(lambda x: jnp.sum(f(x, adv_t, 0.25)))(ratios),
            )
        )(ratios)
        chex.assert_trees_all_equal(loss, jnp.array([-0.5, 0.75, -1.25, 2.0, -3.0]))
        chex.assert_trees_all_equal(slope, jnp.array([-1.0, 0.0, 0.0, 1.0, -3.0]))

    @chex.variants(with_jit=True, without_jit=True)
    def test_clipped_value_loss(self):
        f = losses.clipped_value_loss
        v_t, v_old_t = (
            jnp.array([0.25, 1.0, 1.0, -1.0, 2.0]),
            jnp.array([0.0] * 4 + [2.0]),
        )
        target_t = jnp.array([1.0, 2.0, 0.0, -2.0, 1.0])
        loss, slope = self.variant(
            lambda v_t: (
                f(v_t, v_old_t, target_t, 0.5),
                jax.grad(lambda x: jnp.sum(f(x, v_old_t, target_t, 0.5)))(v_t),
            )
        )(v_t)
        expected = jnp.array([0.28125, 1.125, 0.5, 1.125, 0.5])
        chex.assert_trees_all_equal(loss, expected)
        chex.assert_trees_all_equal(slope, jnp.array([-0.75, 0.0, 1.0, 0.0, 1.0]))


@pytest.mark.parametrize("seed", range(3))
def test_returns_equal_their_definitions(seed, x64):
    x = draw("generalized_advantage_estimation", seed)
    np.testing.assert_allclose(
        losses.generalized_advantage_estimation(**x), oracles.gae(*x.values()), 1e-12
    )
    x = draw("lambda_returns", seed)
    np.testing.assert_allclose(
        losses.lambda_returns(**x), oracles.lambda_returns(*x.values()), 1e-12
    )


@pytest.mark.parametrize("stop, stop_target", [("target", True), ("none", False)])
@pytest.mark.parametrize(
    "name", ["td_learning", "q_learning", "double_q_learning", "lambda_returns"]
)
def test_equals_rlax(name, stop, stop_target):
    """Forward and in every gradient, under the two modes that rlax has."""
    x = draw(name)

    def rlax_loss(**x):
        return getattr(rlax, name)(**x, stop_target_gradients=stop_target)

    def both(x):
        return CASES[name].fn(**x, stop=stop), rlax_loss(**x)

    floats, action = split(x)
    chex.assert_trees_all_close(*both(x), **CLOSE)
    ours, theirs = (
        jax.jit(jax.grad(lambda y, i=i: jnp.sum(jnp.sin(both(y | action)[i]))))(floats)
        for i in range(2)
    )
    chex.assert_trees_all_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_gae_equals_rlax(lambda_):
    x = draw("generalized_advantage_estimation")
    values = jnp.append(x["v_tm1"], x["v_t"][-1])
    args = x["r_t"], x["discount_t"]
    chex.assert_trees_all_close(
        losses.generalized_advantage_estimation(
            *args, values[:-1], values[1:], lambda_, stop="target"
        ),
        rlax.truncated_generalized_advantage_estimation(
            *args, lambda_, values, stop_target_gradients=True
        ),
        **CLOSE,
    )


def test_clipped_surrogate_pg_loss_averages_to_rlax():
    x = draw("clipped_surrogate_pg_loss", seed=4)  # some terms are clipped
    chex.assert_trees_all_close(
        jnp.mean(losses.clipped_surrogate_pg_loss(**x, stop="target")),
        rlax.clipped_surrogate_pg_loss(**x),
        **CLOSE,
    )


@pytest.mark.parametrize("name", stopping)
def test_modes_have_the_same_value(name):
    x = draw(name)
    values = [CASES[name].fn(**x, stop=stop) for stop in STOPS]
    chex.assert_trees_all_equal(*values, CASES[name].fn(**x))


# Identities.


def test_lambda_one_is_the_monte_carlo_advantage(x64):
    x = draw("generalized_advantage_estimation")
    v_t = jnp.append(x["v_tm1"][1:], x["v_t"][-1])
    mc = np.zeros(T)
    g = v_t[-1]
    for t in reversed(range(T)):
        g = x["r_t"][t] + x["discount_t"][t] * g
        mc[t] = g - x["v_tm1"][t]
    x = x | {"v_t": v_t, "lambda_t": 1.0}
    adv_t = losses.generalized_advantage_estimation(**x)
    np.testing.assert_allclose(adv_t, mc, 1e-12)
    g_t = losses.lambda_returns(x["r_t"], x["discount_t"], v_t)  # 1 is the default
    np.testing.assert_allclose(g_t - x["v_tm1"], mc, 1e-12)


def test_lambda_zero_is_the_td_error(x64):
    x = draw("generalized_advantage_estimation") | {"lambda_t": 0.0}
    order = ("v_tm1", "r_t", "discount_t", "v_t")
    td = jax.vmap(losses.td_learning)(*(x[name] for name in order))
    chex.assert_trees_all_close(losses.generalized_advantage_estimation(**x), td)
    g_t = losses.lambda_returns(x["r_t"], x["discount_t"], x["v_t"], 0.0)
    chex.assert_trees_all_close(g_t - x["v_tm1"], td)


@pytest.mark.parametrize("cut", [1, 3, T - 1])
def test_gae_is_lambda_returns_minus_values(cut, x64):
    """Also over a truncation, where the successor's value is not the next value."""
    x = draw("generalized_advantage_estimation")
    v_t = jnp.append(x["v_tm1"][1:], x["v_t"][-1]).at[cut - 1].set(9.0)
    x = x | {"v_t": v_t, "lambda_t": x["lambda_t"].at[cut - 1].set(0.0)}
    adv_t = losses.generalized_advantage_estimation(**x)
    g_t = losses.lambda_returns(x["r_t"], x["discount_t"], x["v_t"], x["lambda_t"])
    np.testing.assert_allclose(adv_t, g_t - x["v_tm1"], 1e-12)


@pytest.mark.parametrize("cut", [1, 3, T - 1])
@pytest.mark.parametrize("name", ["generalized_advantage_estimation", "lambda_returns"])
def test_lambda_zero_at_a_cut_splits_the_trajectory(name, cut, x64):
    f, x = CASES[name].fn, draw(name)
    last = "lambda_" if name == "lambda_returns" else "lambda_t"
    x[last] = x[last].at[cut - 1].set(0.0)
    parts = [f(*(a[s] for a in x.values())) for s in (slice(cut), slice(cut, None))]
    chex.assert_trees_all_close(f(**x), jnp.concatenate(parts))


def test_scalar_lambda_and_epsilon_equal_sequences(x64):
    for name, case in CASES.items():
        if case.scalar:
            x = draw(name)
            shape = next(iter(case.shapes.values()))
            one = case.fn(**x | {case.scalar: 0.3})
            many = case.fn(**x | {case.scalar: jnp.full(shape, 0.3)})
            chex.assert_trees_all_close(one, many)


# Tabular oracles.


def test_oracles_known_value_gamma_gradient():
    """Six states drawn with seed 0; the numbers were found by three other routes."""
    rng = np.random.default_rng(0)
    p, r = rng.dirichlet(np.ones(6), 6), rng.normal(size=6)
    mdp = oracles.MDP(p[:, None], r[:, None], 0.9)
    expected = [101.4891, 101.4822, 101.3672, 101.7111, 101.6445, 101.4856]
    gradient = oracles.value_gamma_gradient(mdp, np.ones((6, 1)))
    np.testing.assert_allclose(gradient, expected, 1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_expected_td_error_is_zero_at_the_values(seed, x64):
    mdp = oracles.random_mdp(seed)
    policy = oracles.random_policy(seed, mdp)
    v = jnp.asarray(oracles.policy_value(mdp, policy))
    td = expected_td(mdp, policy, v, v, mdp.gamma, "bootstrap")
    np.testing.assert_allclose(td, 0.0, atol=1e-12)
    assert (
        np.abs(expected_td(mdp, policy, v, v + 1, mdp.gamma, "bootstrap")).min() > 0.5
    )


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


@pytest.mark.parametrize("name", ["q_learning", "double_q_learning"])
def test_expected_q_learning_error_is_zero_at_the_optimum(name, x64):
    mdp = oracles.random_mdp(0)
    q = oracles.optimal_action_value(mdp)
    f = CASES[name].fn
    for s, a in np.ndindex(q.shape):

        def error(q_t, s=s, a=a):
            double = (q_t,) if name == "double_q_learning" else ()
            return f(jnp.asarray(q[s]), a, mdp.r[s, a], mdp.gamma, q_t, *double)

        td = jax.vmap(error)(jnp.asarray(q))
        np.testing.assert_allclose(mdp.p[s, a] @ td, 0.0, atol=1e-12)


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


@pytest.mark.parametrize("lambda_", [0.0, 0.6, 1.0])
def test_expected_gae_is_the_advantage(lambda_, x64):
    """With the true values, for every lambda; and the return is Q."""
    mdp = oracles.random_mdp(2, num_states=3, num_actions=2)
    policy = oracles.random_policy(2, mdp)
    v = oracles.policy_value(mdp, policy)
    q = oracles.action_value(mdp, v)
    pairs = list(np.ndindex(q.shape))
    rows = [oracles.trajectories(mdp, policy, s, a, length=3) for s, a in pairs]
    weights, states, actions = (np.stack(column) for column in zip(*rows, strict=True))
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
    np.testing.assert_allclose(weights.sum(1), 1.0, 1e-12)
    expected_adv = (q - v[:, None]).ravel()
    np.testing.assert_allclose((weights * adv).sum(1), expected_adv, 1e-10)
    np.testing.assert_allclose((weights * g).sum(1), q.ravel(), 1e-10)


# Gradients.


@all_losses
def test_gradients_of_each_mode(name, x64):
    """What a mode stops is exactly 0, what it leaves is the finite difference."""
    case = CASES[name]
    floats, action = split(draw(name, seed=4))  # some terms are clipped
    stopped = {"bootstrap": case.network, "target": case.live + case.network}

    def score(x, **stop):  # every output has a cotangent of its own
        return jnp.sum(jnp.sin(case.fn(**x, **action, **stop)))

    fd = finite_differences(score, floats)
    for stop in STOPS:
        keyword = {"stop": stop} if name in stopping else {}
        f = functools.partial(score, **keyword)
        for argument, g in jax.jit(jax.grad(f))(floats).items():
            if argument in (*stopped.get(stop, ()), "q_t_selector"):
                np.testing.assert_array_equal(g, np.zeros_like(g))
            else:
                assert argument in case.always + case.live + case.network
                assert np.abs(g).max() > 1e-2
                np.testing.assert_allclose(g, fd[argument], rtol=1e-6, atol=1e-8)


def test_clipped_losses_start_from_the_unclipped_gradient():
    """In the first epoch ratio = 1 and v = v_old: two equal branches, one gradient."""
    x = draw("clipped_surrogate_pg_loss")
    g = jax.grad(
        lambda r: jnp.sum(losses.clipped_surrogate_pg_loss(r, x["adv_t"], x["epsilon"]))
    )(jnp.ones(T))
    chex.assert_trees_all_close(g, -x["adv_t"], **CLOSE)
    _, v_old_t, target_t, epsilon = draw("clipped_value_loss").values()
    g = jax.grad(
        lambda v: jnp.sum(losses.clipped_value_loss(v, v_old_t, target_t, epsilon))
    )(v_old_t)
    chex.assert_trees_all_close(g, v_old_t - target_t, **CLOSE)


@pytest.mark.parametrize("name", ["clipped_surrogate_pg_loss", "clipped_value_loss"])
def test_no_meta_gradient_tunes_epsilon(name, x64):
    """A term is clipped or not; neither slope depends on epsilon."""
    x = draw(name, seed=4)
    prediction = next(iter(x))

    @jax.jit
    def slope(epsilon):
        return jax.grad(
            lambda p: jnp.sum(
                CASES[name].fn(**{**x, prediction: p, "epsilon": epsilon})
            )
        )(x[prediction])

    assert 0 < jnp.count_nonzero(slope(x["epsilon"])) < T  # some are clipped
    np.testing.assert_array_equal(jax.jacobian(slope)(x["epsilon"]), np.zeros(T))
    chex.assert_trees_all_equal(slope(x["epsilon"] + 1e-6), slope(x["epsilon"]))


# Meta-gradients through inner updates.


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
            return (
                0.5 * losses.td_learning(v, 1.0, gamma, 2 * bootstrap_v, stop=stop) ** 2
            )

        v = 0.5
        for _ in range(num_steps):
            v = v - 0.1 * jax.grad(loss)(v, v)
        return (v - 2.5) ** 2

    g = {stop: jax.grad(outer)(0.9, stop) for stop in STOPS}
    truth = finite_differences(lambda gamma: outer(gamma, "none"), 0.9)
    np.testing.assert_allclose(g["bootstrap"], stopped, atol=5e-6)
    np.testing.assert_allclose(g["none"], separated, atol=5e-6)
    np.testing.assert_allclose(g["none"], truth, 1e-8)
    assert g["target"] == 0.0


class Batch(NamedTuple):
    """One trajectory with a truncation after step 2 and a termination after step 4."""

    x_tm1: jax.Array  # [T, 3] features
    x_t: jax.Array  # [T, 3] features of the true successors
    a: jax.Array  # [T]
    r: jax.Array  # [T]
    ongoing: jax.Array  # [T] 0 where terminated
    uncut: jax.Array  # [T] 0 where terminated or truncated
    log_mu: jax.Array  # [T] log-probability of the action when it was taken
    v_old: jax.Array  # [T]


def batch():
    rng = np.random.default_rng(0)
    return Batch(
        x_tm1=jnp.asarray(rng.normal(size=(T, 3))),
        x_t=jnp.asarray(rng.normal(size=(T, 3))),
        a=jnp.asarray(rng.integers(0, A, T)),
        r=jnp.asarray(rng.normal(size=T)),
        ongoing=jnp.ones(T).at[4].set(0.0),
        uncut=jnp.ones(T).at[jnp.array([2, 4])].set(0.0),
        log_mu=jnp.asarray(np.log(rng.uniform(0.1, 0.9, T))),
        v_old=jnp.asarray(rng.normal(size=T)),
    )


def td_program(p, boot, eta, b, stop):
    f = jax.vmap(functools.partial(losses.td_learning, stop=stop))
    v_tm1, v_t = b.x_tm1 @ p["v"], b.x_t @ boot["v"]
    return 0.5 * jnp.mean(f(v_tm1, b.r, eta[0] * b.ongoing, v_t) ** 2)


def q_program(p, boot, eta, b, stop):
    f = jax.vmap(functools.partial(losses.q_learning, stop=stop))
    q_tm1, q_t = b.x_tm1 @ p["pi"], b.x_t @ boot["pi"]
    return 0.5 * jnp.mean(f(q_tm1, b.a, b.r, eta[0] * b.ongoing, q_t) ** 2)


def double_q_program(p, boot, eta, b, stop):
    f = jax.vmap(functools.partial(losses.double_q_learning, stop=stop))
    q_tm1, q_t, selector = b.x_tm1 @ p["pi"], b.x_t @ boot["pi"], b.x_t @ p["pi"]
    td = f(q_tm1, b.a, b.r, eta[0] * b.ongoing, q_t, selector)
    return 0.5 * jnp.mean(td**2)


def td_lambda_program(p, boot, eta, b, stop):
    gamma, lambda_ = eta
    g_t = losses.lambda_returns(
        b.r, gamma * b.ongoing, b.x_t @ boot["v"], lambda_ * b.uncut, stop=stop
    )
    return 0.5 * jnp.mean((g_t - b.x_tm1 @ p["v"]) ** 2)


def ppo_program(p, boot, eta, b, stop):
    discount_t, lambda_t = eta[0] * b.ongoing, eta[1] * b.uncut
    v_tm1, v_t = b.x_tm1 @ boot["v"], b.x_t @ boot["v"]
    adv_t = losses.generalized_advantage_estimation(
        b.r, discount_t, v_tm1, v_t, lambda_t, stop=stop
    )
    g_t = losses.lambda_returns(b.r, discount_t, v_t, lambda_t, stop=stop)
    log_pi = jax.nn.log_softmax(b.x_tm1 @ p["pi"])[jnp.arange(T), b.a]
    policy = losses.clipped_surrogate_pg_loss(
        jnp.exp(log_pi - b.log_mu), adv_t, 0.3, stop=stop
    )
    value = losses.clipped_value_loss(b.x_tm1 @ p["v"], b.v_old, g_t, 0.3)
    return jnp.mean(policy + value)


ETA = (0.9, 0.7)  # gamma, lambda_
PROGRAMS = {  # and how many elements of ETA each depends on
    td_program: 1,
    q_program: 1,
    double_q_program: 1,
    td_lambda_program: 2,
    ppo_program: 2,
}


def outer(eta, num_steps, program, stop):
    """Score and parameters after K <= 5 steps of SGD, the arguments separated."""
    rng, b = np.random.default_rng(1), batch()
    v, pi = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=(3, A)))

    def step(p, k):  # masked, so that one compilation does for every K
        g = jax.grad(program)(p, p, eta, b, stop)
        rate = jnp.where(k < num_steps, 0.3, 0.0)
        return jax.tree.map(lambda x, y: x - rate * y, p, g), None

    p, _ = jax.lax.scan(step, {"v": v, "pi": pi}, jnp.arange(5))
    return jnp.sum(jnp.sin(p["v"])) + jnp.sum(jnp.sin(p["pi"])), p


@pytest.mark.parametrize("program", PROGRAMS)
def test_meta_gradients_through_inner_updates(program, x64):
    """Against finite differences in gamma and lambda, through K = 1, 2, 5 steps."""
    eta, num_steps, n = jnp.array(ETA), jnp.array([1, 2, 5]), PROGRAMS[program]
    g, updated = {}, {}
    for stop in STOPS:
        f = functools.partial(outer, program=program, stop=stop)
        f = jax.jit(jax.vmap(jax.grad(f, has_aux=True), (None, 0)))
        g[stop], updated[stop] = f(eta, num_steps)
        g[stop] = g[stop][:, :n]
    chex.assert_trees_all_close(*updated.values(), rtol=1e-12)  # same semi-gradient

    def truth(k):
        return finite_differences(lambda eta: outer(eta, k, program, "none")[0], eta)

    fd = jax.vmap(truth)(num_steps)[:, :n]
    assert np.abs(fd).min() > 1e-3
    np.testing.assert_allclose(g["none"], fd, 1e-6)  # exact for every K
    np.testing.assert_allclose(g["bootstrap"][0], fd[0], 1e-6)  # for one step only
    assert np.abs(g["bootstrap"] - fd)[1:].max(1).min() > 1e-3
    np.testing.assert_array_equal(g["target"], 0.0)  # never


# Transformations.


class TransformationTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*CASES)
    def test_vmap_equals_a_loop(self, name):
        f, x = CASES[name].fn, draw(name, batch=(4,))
        many = self.variant(jax.vmap(lambda x: f(**x)))(x)
        each = [f(**jax.tree.map(lambda a, i=i: a[i], x)) for i in range(4)]
        chex.assert_trees_all_close(many, jnp.stack(each), **CLOSE)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters("generalized_advantage_estimation", "lambda_returns")
    def test_vmap_over_the_second_axis(self, name):
        """Rollouts are time-major, `[T, N]`."""
        f, x = CASES[name].fn, draw(name, batch=(4,))
        rows = jax.vmap(f)(*x.values())
        columns = self.variant(jax.vmap(f, in_axes=1, out_axes=1))
        chex.assert_trees_all_close(
            columns(*(a.T for a in x.values())).T, rows, **CLOSE
        )


@pytest.mark.parametrize("varying", ["r_t", "discount_t"])
@pytest.mark.parametrize("name", ["generalized_advantage_estimation", "lambda_returns"])
def test_shard_map_over_any_argument(name, varying):
    f, x = CASES[name].fn, draw(name)
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((1,), ("seed",), axis_types=(auto,))
    spec = jax.sharding.PartitionSpec("seed")
    g = jax.shard_map(
        lambda y: f(**{**x, varying: y[0]})[None],
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
    )
    chex.assert_trees_all_close(jax.jit(g)(x[varying][None])[0], f(**x), **CLOSE)


@all_losses
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_keeps_the_dtype(name, dtype, x64):
    """Whatever it is, and with Python floats for lambda and epsilon."""
    case = CASES[name]
    x = {
        k: v if v.dtype == jnp.int32 else v.astype(dtype) for k, v in draw(name).items()
    }
    assert jax.eval_shape(case.fn, **x).dtype == dtype
    if case.scalar:
        f = functools.partial(case.fn, **{case.scalar: 0.5})
        del x[case.scalar]
        assert jax.eval_shape(f, **x).dtype == dtype


# Refusals.


@pytest.mark.parametrize("name", stopping)
@pytest.mark.parametrize("stop", ["Target", "", None, True, False])
def test_unknown_stop(name, stop):
    with pytest.raises(ValueError, match="bootstrap.*target.*none") as error:
        CASES[name].fn(**draw(name), stop=stop)
    assert f"stop={stop!r}" in str(error.value)


def wrong_shapes():
    """Every way to be broadcast in silence."""
    for name, case in CASES.items():
        for argument, shape in case.shapes.items():
            yield name, argument, (1,)
            yield name, argument, (2, *shape)
            if shape and argument != case.scalar:
                yield name, argument, ()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name, argument, shape", list(wrong_shapes()))
def test_wrong_shape_names_every_argument(name, argument, shape, jit):
    x = draw(name)
    x[argument] = jnp.ones(shape, x[argument].dtype)
    refuses(name, x, jit)


@pytest.mark.parametrize(
    "name, argument", [(n, a) for n in CASES for a in CASES[n].shapes]
)
def test_wrong_dtype_names_every_argument(name, argument):
    x = draw(name)
    right = x[argument]
    wrong = [jnp.bool_, jnp.float32 if argument == "a_tm1" else jnp.int32]
    if argument != "a_tm1":
        wrong.append(jnp.bfloat16)  # beside float32
    for dtype in wrong:
        x[argument] = right.astype(dtype)
        refuses(name, x)


@pytest.mark.parametrize("name", ["td_learning", "q_learning", "double_q_learning"])
@pytest.mark.parametrize("argument", ["r_t", "discount_t"])
def test_python_integers_are_refused(name, argument):
    refuses(name, draw(name) | {argument: 1})


def refuses(name, x, jit=False):
    f = CASES[name].fn
    f = jax.jit(f) if jit else f
    with pytest.raises(AssertionError) as error:
        f(**x)
    for argument, value in x.items():
        assert f"{argument} {jax.typeof(value).str_short()}" in str(error.value)


@pytest.mark.parametrize("action", [-1, A, A + 4])
@pytest.mark.parametrize("name", ["q_learning", "double_q_learning"])
def test_action_out_of_range_is_nan(name, action):
    assert jnp.isnan(CASES[name].fn(**draw(name) | {"a_tm1": action}))
