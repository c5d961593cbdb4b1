"""Losses of policies: exact policy gradients, properties, edges."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax import losses
from rljax.losses import (
    awr_loss,
    clipped_surrogate_pg_loss,
    clipped_value_loss,
    entropy_loss,
    kl_penalty_loss,
    policy_distillation_loss,
    policy_gradient_loss,
    qpg_loss,
    rm_loss,
    rpg_loss,
    sac_discrete_actor_loss,
    sac_discrete_learning,
)

from .. import oracles
from .cases_policy_gradient import CASES, regrets, softmax
from .loss_case import SIZES, call, draw

T, A = SIZES["T"], SIZES["A"]


STOPS = ("bootstrap", "target", "none")


CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # of one float32 computation to another


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@functools.cache
def jitted(name):
    """The loss, of its arguments by name."""
    return jax.jit(functools.partial(call, CASES[name]))


def arrays(name, seed=0, batch=()):
    """Arguments by name in numpy, so that what is made of them compiles nothing."""
    return {k: np.asarray(x) for k, x in draw(CASES[name], seed, batch).items()}


# The clipped losses.


class HandComputedTest(chex.TestCase):
    """Small numbers, worked out on paper, with and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_clipped_surrogate_pg_loss(self):
        ratios = jnp.array([0.5, 0.5, 2.0, 2.0, 1.0])
        adv_t = jnp.array([1.0, -1.0, 1.0, -1.0, 3.0])

        def loss(ratios, stop):
            loss = clipped_surrogate_pg_loss(ratios, adv_t, 0.25, stop=stop)
            return jnp.sum(loss), loss

        gradient = jax.grad(loss, has_aux=True)
        out = self.variant(lambda x: [gradient(x, stop) for stop in STOPS])(ratios)
        for slope, value in out:
            np.testing.assert_array_equal(value, [-0.5, 0.75, -1.25, 2.0, -3.0])
            np.testing.assert_array_equal(slope, [-1.0, 0.0, 0.0, 1.0, -3.0])

    @chex.variants(with_jit=True, without_jit=True)
    def test_clipped_value_loss(self):
        v_t = jnp.array([0.25, 1.0, 1.0, -1.0, 2.0])
        v_old_t = jnp.array([0.0, 0.0, 0.0, 0.0, 2.0])
        target_t = jnp.array([1.0, 2.0, 0.0, -2.0, 1.0])

        def loss(v_t):
            loss = clipped_value_loss(v_t, v_old_t, target_t, 0.5)
            return jnp.sum(loss), loss

        slope, value = self.variant(jax.grad(loss, has_aux=True))(v_t)
        np.testing.assert_array_equal(value, [0.28125, 1.125, 0.5, 1.125, 0.5])
        np.testing.assert_array_equal(slope, [-0.75, 0.0, 1.0, 0.0, 1.0])


def test_clipped_losses_start_from_the_unclipped_gradient():
    """In the first epoch ratio = 1 and v = v_old: two equal branches, one gradient."""
    x, y = arrays("clipped_surrogate_pg_loss"), arrays("clipped_value_loss")

    def surrogate(ratios):
        return jnp.sum(clipped_surrogate_pg_loss(ratios, x["adv_t"], x["epsilon"]))

    def value_loss(v_t):
        return jnp.sum(clipped_value_loss(**y | {"v_t": v_t}))

    @jax.jit
    def slopes(ratios, v_t):
        return jax.grad(surrogate)(ratios), jax.grad(value_loss)(v_t)

    by_ratios, by_v = slopes(np.ones(T, np.float32), y["v_old_t"])
    np.testing.assert_allclose(by_ratios, -x["adv_t"], **CLOSE)
    np.testing.assert_allclose(by_v, y["v_old_t"] - y["target_t"], **CLOSE)


@pytest.mark.parametrize("name", ["clipped_surrogate_pg_loss", "clipped_value_loss"])
def test_no_meta_gradient_tunes_epsilon(name, x64):
    """A term is clipped or not; neither slope depends on epsilon."""
    x = arrays(name, seed=4)
    prediction = next(iter(x))

    def slope(epsilon):
        def loss(p):
            return jnp.sum(CASES[name].fn(**x | {prediction: p, "epsilon": epsilon}))

        return jax.grad(loss)(x[prediction])

    slope_and_derivative = jax.jit(lambda epsilon: jax.jvp(slope, (epsilon,), (1.0,)))
    g, derivative = slope_and_derivative(0.4)
    assert 0 < np.count_nonzero(g) < T  # some are clipped
    np.testing.assert_array_equal(derivative, np.zeros(T))
    np.testing.assert_array_equal(slope_and_derivative(0.4 + 1e-6)[0], g)


# Exact policy gradients: J = start . V of a tabular MDP.


GAMMA = 0.9


def evaluation(mdp, policy, start, gamma):
    """State distribution `[S]` discounted from the start, values `[S]` and `[S, A]`."""
    p = jnp.einsum("sa,sat->st", policy, mdp.p)
    a = jnp.eye(len(start)) - gamma * p
    v = jnp.linalg.solve(a, jnp.sum(policy * mdp.r, axis=1))
    return jnp.linalg.solve(a.T, start), v, mdp.r + gamma * mdp.p @ v


def sampled_gradient(logits, policy, d, v, q, stop):
    """What sampling would give: every state and action at its frequency."""
    states, actions = map(jnp.asarray, np.indices(q.shape).reshape(2, -1))

    def loss(logits):
        adv_t = (q - v[:, None])[states, actions]
        w_t = (d[:, None] * policy)[states, actions]
        return jnp.sum(
            policy_gradient_loss(logits[states], actions, adv_t, w_t, stop=stop)
        )

    return jax.grad(loss)(logits)


def all_action_gradient(logits, policy, d, v, q, stop, loss_fn):
    if loss_fn is rpg_loss:  # counts every action with a positive regret
        d = d / jnp.sum(jax.lax.stop_gradient(q) > v[:, None], axis=1)
    return jax.grad(lambda x: jnp.sum(d * loss_fn(x, q, stop=stop)))(logits)


GRADIENTS = {
    "policy_gradient_loss": sampled_gradient,
    "qpg_loss": functools.partial(all_action_gradient, loss_fn=qpg_loss),
    "rpg_loss": functools.partial(all_action_gradient, loss_fn=rpg_loss),
}


@functools.cache
def tabular():
    mdp = oracles.random_mdp(0, gamma=GAMMA)
    rng = np.random.default_rng(1)
    return mdp, rng.normal(size=mdp.r.shape), rng.dirichlet(np.ones(len(mdp.r)))


@functools.cache
def gradients_of_return():
    """By each loss and `stop`, with true values for `GAMMA`; their d/dgamma."""

    def gradients(gamma):
        mdp, logits, start = jax.tree.map(jnp.asarray, tabular())
        policy = jax.nn.softmax(logits)
        d, v, q = evaluation(mdp, policy, start, gamma)
        return {
            (name, stop): -gradient(logits, policy, d, v, q, stop)
            for name, gradient in GRADIENTS.items()
            for stop in STOPS
        }

    return jax.jit(lambda gamma: jax.jvp(gradients, (gamma,), (1.0,)))(GAMMA)


def test_oracle_policy_gradient():
    """Of J = start . V, by central differences."""
    mdp, logits, start = tabular()
    g = oracles.policy_gradient(mdp, logits, start)
    for s, a in np.ndindex(logits.shape):
        h = np.zeros_like(logits)
        h[s, a] = 1e-5
        up, down = (
            start @ oracles.policy_value(mdp, np.array([softmax(x) for x in y]))
            for y in (logits + h, logits - h)
        )
        np.testing.assert_allclose(g[s, a], (up - down) / 2e-5, 1e-6)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("name", GRADIENTS)
def test_is_the_exact_policy_gradient(name, stop, x64):
    expected = oracles.policy_gradient(*tabular())
    gradient = gradients_of_return()[0][name, stop]
    np.testing.assert_allclose(gradient, expected, 1e-10)


def test_oracle_policy_hessian():
    """By central differences of the gradient."""
    mdp, logits, start = tabular()
    hessian = oracles.policy_hessian(mdp, logits, start)
    for s, a in np.ndindex(logits.shape):
        h = np.zeros_like(logits)
        h[s, a] = 1e-5
        up, down = (oracles.policy_gradient(mdp, logits + d, start) for d in (h, -h))
        np.testing.assert_allclose(hessian[s, a], (up - down) / 2e-5, 1e-6, 1e-9)


def test_derivative_of_the_policy_gradient_is_the_exact_hessian(x64):
    """Of the semi-gradient by separate arguments: values and states move as well."""
    mdp, logits, start = jax.tree.map(jnp.asarray, tabular())

    def gradient(logits):
        values = evaluation(mdp, jax.nn.softmax(logits), start, GAMMA)
        return -all_action_gradient(logits, None, *values, "none", qpg_loss)

    derivative = jax.jit(jax.jacobian(gradient))(logits)
    expected = oracles.policy_hessian(*tabular())
    np.testing.assert_allclose(derivative, expected, 1e-8, 1e-10)


@pytest.mark.parametrize(
    "name, stop",
    [
        ("policy_gradient_loss", "bootstrap"),
        ("policy_gradient_loss", "none"),
        ("qpg_loss", "none"),
        ("rpg_loss", "none"),
    ],
)
def test_discount_gradient_of_the_policy_gradient(name, stop, x64):
    """d/dgamma passes through the advantages, and through action values if unstopped.

    "target" loses all of it but that of the state distribution.
    """
    mdp, logits, start = tabular()
    h = 1e-5
    up, down = (
        oracles.policy_gradient(mdp._replace(gamma=GAMMA + d), logits, start)
        for d in (h, -h)
    )
    expected = (up - down) / (2 * h)
    by_gamma = gradients_of_return()[1]
    np.testing.assert_allclose(by_gamma[name, stop], expected, 1e-6)
    assert np.abs(by_gamma[name, "target"] - expected).max() > 0.1


@pytest.mark.parametrize("action", [-1, A])
def test_action_out_of_range_is_nan(action):
    x = arrays("policy_gradient_loss")
    x["a_t"] = np.where(np.arange(T) == 2, np.int32(action), x["a_t"])
    loss = jitted("policy_gradient_loss")(x)
    np.testing.assert_array_equal(np.isnan(loss), np.arange(T) == 2)
    theirs = CASES["policy_gradient_loss"].rlax
    assert np.isinf(jax.jit(lambda x: theirs(**x))(x))


# All-action losses.


def test_qpg_is_the_expectation_of_policy_gradients(x64):
    """Over the actions, with the state's value as the baseline."""
    x = arrays("qpg_loss")
    pi = oracles.softmax(x["logits_t"])
    adv = x["q_t"] - np.sum(pi * x["q_t"], axis=1, keepdims=True)

    def expected(logits):
        return sum(
            jnp.sum(policy_gradient_loss(logits, jnp.full(T, a), adv[:, a], pi[:, a]))
            for a in range(A)
        )

    def total(logits):
        return jnp.sum(qpg_loss(logits, x["q_t"]))

    g, g_expected = jax.jit(lambda x: (jax.grad(total)(x), jax.grad(expected)(x)))(
        x["logits_t"]
    )
    np.testing.assert_allclose(g, g_expected, 1e-10)


@pytest.mark.parametrize("name", ["qpg_loss", "rm_loss", "rpg_loss"])
def test_all_action_update_is_that_of_rlax(name):
    """In the logits, with the default of both; rlax's qpg_loss itself is 0."""
    x = arrays(name, batch=(1000,))

    @jax.jit
    @jax.vmap
    def both(logits, q):
        return [
            jax.grad(lambda logits, f=f: jnp.mean(f(logits, q)))(logits)
            for f in (getattr(losses, name), getattr(rlax, name))
        ]

    ours, theirs = both(x["logits_t"], x["q_t"])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_regret_matching_update(x64):
    """-sum_a dpi(a) R(a): the regrets are constants, but under "none"."""
    x = arrays("rm_loss")
    logits, q = x["logits_t"], x["q_t"]
    pi = np.array([softmax(row) for row in logits])
    regret = np.array([regrets(p, q_row) for p, q_row in zip(pi, q, strict=True)])
    update = -pi * (regret - (pi * regret).sum(1, keepdims=True))

    def total(logits, q, stop):
        return jnp.sum(rm_loss(logits, q, stop=stop))

    @jax.jit
    def gradients(logits, q):
        out = {stop: jax.grad(total, (0, 1))(logits, q, stop) for stop in STOPS}
        separated = jax.grad(lambda x: jnp.sum(qpg_loss(x, regret, stop="none")))
        return out, separated(logits)

    out, separated = gradients(logits, q)
    for stop in ("bootstrap", "target"):
        by_logits, by_q = out[stop]
        np.testing.assert_allclose(by_logits, update, 1e-10)
        np.testing.assert_array_equal(by_q, np.zeros_like(by_q))
    np.testing.assert_allclose(separated, update, 1e-10)
    jax.test_util.check_grads(
        jax.jit(functools.partial(rm_loss, stop="none")),
        (logits, q),
        order=1,
        modes=["rev"],
    )
    assert np.abs(out["none"][0] - update).max() > 1e-2


# Masked actions, logits of -inf.


MASKED = {
    "policy_gradient_loss": lambda x, q: policy_gradient_loss(
        x, jnp.array([0, 2]), q[:, 0], 0.5
    ),
    "entropy_loss": lambda x, q: entropy_loss(x, 0.5),
    "kl_penalty_loss": lambda x, q: kl_penalty_loss(x, x + q, 0.5),
    "kl_penalty_loss of the old": lambda x, q: kl_penalty_loss(x + q, x, 0.5),
    "policy_distillation_loss": lambda x, q: policy_distillation_loss(
        x, 3.0 * x, q[0, 0]
    ),
    "qpg_loss": functools.partial(qpg_loss, stop="none"),
    "rm_loss": functools.partial(rm_loss, stop="none"),
    "rpg_loss": functools.partial(rpg_loss, stop="none"),
    "sac_discrete_actor_loss": lambda x, q: jax.vmap(
        lambda x_t, q_t: sac_discrete_actor_loss(x_t, q_t, q[0, 0], stop="none")
    )(x, q),
    "sac_discrete_learning": lambda x, q: jax.vmap(
        lambda x_t, q_t: sac_discrete_learning(
            q_t, 0, 1.0, 0.5, q_t[None], x_t, q[0, 0], stop="none"
        )
    )(x, q),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_action_is_as_if_it_were_not_there(name, x64):
    """The value and, without NaN, the first and second derivatives."""
    f = MASKED[name]
    few_x = np.array([[0.3, -0.4], [1.0, 0.2]])
    few_q = np.array([[0.5, 2.0], [0.3, -0.7]])

    def insert(x, value):
        return np.insert(x, 1, value, axis=1)

    def without(x, q):
        if name == "policy_gradient_loss":  # the actions have other numbers
            return policy_gradient_loss(x, jnp.array([0, 1]), q[:, 0], 0.5)
        return f(x, q)

    def gradient(f):
        def loss(x, q):
            value = f(x, q)
            return jnp.sum(jnp.sin(value)), value

        return jax.grad(loss, (0, 1), has_aux=True)

    @jax.jit
    def both(x, q, few_x, few_q):
        def slope(x, q):
            first, value = gradient(f)(x, q)
            return sum(jnp.sum(jnp.sin(g)) for g in first), (first, value)

        second, (first, value) = jax.grad(slope, (0, 1), has_aux=True)(x, q)
        first_few, value_few = gradient(without)(few_x, few_q)
        weights = jax.tree.map(jnp.cos, first_few)  # Hessians are symmetric
        _, second_few, _ = jax.jvp(
            gradient(without), (few_x, few_q), weights, has_aux=True
        )
        return (value, first + second), (value_few, first_few + second_few)

    (value, g), (value_few, g_few) = both(
        insert(few_x, -np.inf), insert(few_q, 7.0), few_x, few_q
    )
    np.testing.assert_allclose(value, value_few, 1e-12)
    for masked, expected in zip(g, g_few, strict=True):
        np.testing.assert_allclose(masked, insert(expected, 0.0), 1e-10, 1e-12)


# Divergences.


def test_kl_penalty_is_the_fisher_metric(x64):
    """At equal logits: gradient 0, Hessian diag(pi) - pi pi^T, in either policy."""
    logits = arrays("kl_penalty_loss")["logits_t"][:1]
    pi = softmax(logits[0])
    fisher = np.diag(pi) - np.outer(pi, pi)

    def kl(x, y):
        return kl_penalty_loss(x, y, 2.0)[0]

    @jax.jit
    def derivatives(x):
        value = kl(x, x)
        return value, [
            (jax.grad(kl, i)(x, x), jax.hessian(kl, i)(x, x)) for i in (0, 1)
        ]

    value, of_each = derivatives(logits)
    np.testing.assert_allclose(value, 0.0, atol=1e-15)
    for g, h in of_each:
        np.testing.assert_allclose(g, 0.0, atol=1e-15)
        np.testing.assert_allclose(h[0, :, 0], 2.0 * fisher, rtol=1e-10, atol=1e-15)


def test_temperature_is_the_teachers_alone(x64):
    x = arrays("policy_distillation_loss")
    student, teacher = x["logits_t"], x["teacher_logits_t"]
    loss = jax.jit(policy_distillation_loss)
    np.testing.assert_allclose(loss(teacher / 0.1, teacher, 0.1), 0.0, atol=1e-12)
    sharp = loss(student, teacher, 1e-3)  # cloning of the best
    best = np.log(oracles.softmax(student))[np.arange(T), teacher.argmax(axis=1)]
    np.testing.assert_allclose(sharp, -best, 1e-6)


def test_distillation_has_a_temperature_of_1():
    x = arrays("policy_distillation_loss")
    student, teacher = x["logits_t"], x["teacher_logits_t"]
    loss = jax.jit(policy_distillation_loss)
    one = loss(student, teacher, 1.0)
    assert np.abs(loss(student, teacher, 0.5) - one).max() > 1e-2
    np.testing.assert_allclose(loss(student, teacher), one, **CLOSE)


# Advantage-weighted regression.


def test_awr_weight_is_capped_without_overflow():
    """exp(1e6) is inf; its gradient would be NaN."""
    adv_t = np.float32([-1e4, 0.0, 1e3])
    log_prob_t = np.float32([-0.5, -0.5, -0.5])

    def loss(*args):
        return jnp.sum(awr_loss(*args))

    @jax.jit
    def results(log_prob_t, adv_t, temperature, max_weight):
        g = jax.grad(loss, (0, 1, 2, 3))(log_prob_t, adv_t, temperature, max_weight)
        return awr_loss(log_prob_t, adv_t, temperature), g

    default, g = results(log_prob_t, adv_t, 1e-3, 5.0)
    np.testing.assert_allclose(default, [0.0, 0.5, 10.0], 1e-6)
    np.testing.assert_allclose(g[0], [0.0, -1.0, -5.0], 1e-6)
    np.testing.assert_allclose(g[1], [0.0, 500.0, 0.0], 1e-6)
    np.testing.assert_allclose(g[2:], [0.0, 0.5], 1e-6)


def test_awr_between_cloning_and_nothing(x64):
    """A high temperature clones every action; advantages well below it count for 0."""
    log_prob_t, adv_t, *_ = arrays("awr_loss").values()
    loss = jax.jit(awr_loss)
    np.testing.assert_allclose(loss(log_prob_t, adv_t, 1e9), -log_prob_t, 1e-8)
    assert np.all(loss(log_prob_t, -np.abs(adv_t) - 1.0, 1e-3) == 0.0)
