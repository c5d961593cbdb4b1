"""Policy losses and actor-critics: exact policy gradients, properties, edges."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from absl.testing import parameterized

from rljax import losses
from rljax.losses import (
    awr_loss,
    clipped_surrogate_pg_loss,
    clipped_value_loss,
    dpg_loss,
    entropy_loss,
    expectile_loss,
    kl_penalty_loss,
    policy_distillation_loss,
    policy_gradient_loss,
    qpg_loss,
    rm_loss,
    rpg_loss,
    sac_actor_loss,
    sac_discrete_actor_loss,
    sac_discrete_learning,
    sac_learning,
    sac_temperature_loss,
    td3_learning,
    td3_smoothed_action,
)

from . import oracles
from .cases_policy import CASES, regrets, softmax
from .loss_case import SIZES, call, draw

T, A = SIZES["T"], SIZES["A"]
STOPS = ("bootstrap", "target", "none")
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # of one float32 computation to another


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


# The clipped losses.


class HandComputedTest(chex.TestCase):
    """Small numbers, worked out on paper, with and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.parameters(*STOPS)
    def test_clipped_surrogate_pg_loss(self, stop):
        f = functools.partial(clipped_surrogate_pg_loss, stop=stop)
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
        f = clipped_value_loss
        v_t = jnp.array([0.25, 1.0, 1.0, -1.0, 2.0])
        v_old_t = jnp.array([0.0, 0.0, 0.0, 0.0, 2.0])
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


def test_clipped_losses_start_from_the_unclipped_gradient():
    """In the first epoch ratio = 1 and v = v_old: two equal branches, one gradient."""
    x = draw(CASES["clipped_surrogate_pg_loss"])
    g = jax.grad(
        lambda r: jnp.sum(clipped_surrogate_pg_loss(r, x["adv_t"], x["epsilon"]))
    )(jnp.ones(T))
    chex.assert_trees_all_close(g, -x["adv_t"], **CLOSE)
    _, v_old_t, target_t, epsilon = draw(CASES["clipped_value_loss"]).values()
    g = jax.grad(lambda v: jnp.sum(clipped_value_loss(v, v_old_t, target_t, epsilon)))(
        v_old_t
    )
    chex.assert_trees_all_close(g, v_old_t - target_t, **CLOSE)


@pytest.mark.parametrize("name", ["clipped_surrogate_pg_loss", "clipped_value_loss"])
def test_no_meta_gradient_tunes_epsilon(name, x64):
    """A term is clipped or not; neither slope depends on epsilon."""
    x = draw(CASES[name], seed=4) | {"epsilon": 0.4}
    prediction = next(iter(x))

    @jax.jit
    def slope(epsilon):
        return jax.grad(
            lambda p: jnp.sum(
                CASES[name].fn(**{**x, prediction: p, "epsilon": epsilon})
            )
        )(x[prediction])

    assert 0 < jnp.count_nonzero(slope(0.4)) < T  # some are clipped
    np.testing.assert_array_equal(jax.jacobian(slope)(0.4), np.zeros(T))
    chex.assert_trees_all_equal(slope(0.4 + 1e-6), slope(0.4))


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


@functools.partial(jax.jit, static_argnames=("name", "stop"))
def gradient_of_return(gamma, name, stop):
    """By the loss `name`, with true values for `gamma`."""
    mdp, logits, start = jax.tree.map(jnp.asarray, tabular())
    policy = jax.nn.softmax(logits)
    values = evaluation(mdp, policy, start, gamma)
    return -GRADIENTS[name](logits, policy, *values, stop)


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
    np.testing.assert_allclose(gradient_of_return(GAMMA, name, stop), expected, 1e-10)


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

    expected = oracles.policy_hessian(*tabular())
    np.testing.assert_allclose(jax.jacobian(gradient)(logits), expected, 1e-8, 1e-10)


def test_clipped_dpg_at_the_ends_of_float32():
    for scale in (1e20, 1e-25):
        dqda_t = jnp.array([3.0, 4.0]) * scale
        loss = dpg_loss(jnp.array([1.0, 2.0]), dqda_t, scale)
        np.testing.assert_allclose(loss, -2.2 * scale, 1e-5)


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
    by_gamma = jax.jacfwd(gradient_of_return)
    np.testing.assert_allclose(by_gamma(GAMMA, name, stop), expected, 1e-6)
    assert np.abs(by_gamma(GAMMA, name, "target") - expected).max() > 0.1


@pytest.mark.parametrize("action", [-1, A])
def test_action_out_of_range_is_nan(action):
    x = draw(CASES["policy_gradient_loss"])
    x["a_t"] = x["a_t"].at[2].set(action)
    loss = policy_gradient_loss(**x)
    np.testing.assert_array_equal(jnp.isnan(loss), jnp.arange(T) == 2)
    assert np.isinf(CASES["policy_gradient_loss"].rlax(**x))
    x = draw(CASES["sac_discrete_learning"]) | {"a_tm1": action}
    assert np.isnan(sac_discrete_learning(**x))


# All-action losses.


def test_qpg_is_the_expectation_of_policy_gradients(x64):
    """Over the actions, with the state's value as the baseline."""
    x = draw(CASES["qpg_loss"])
    pi = jax.nn.softmax(x["logits_t"])
    adv = x["q_t"] - jnp.sum(pi * x["q_t"], axis=1)[:, None]

    def expected(logits):
        return sum(
            jnp.sum(policy_gradient_loss(logits, jnp.full(T, a), adv[:, a], pi[:, a]))
            for a in range(A)
        )

    g = jax.grad(lambda logits: jnp.sum(qpg_loss(logits, x["q_t"])))(x["logits_t"])
    np.testing.assert_allclose(g, jax.grad(expected)(x["logits_t"]), 1e-10)


@pytest.mark.parametrize("name", ["qpg_loss", "rm_loss", "rpg_loss"])
def test_all_action_update_is_that_of_rlax(name):
    """In the logits, with the default of both; rlax's qpg_loss itself is 0."""
    x = draw(CASES[name], batch=(1000,))
    ours, theirs = (
        jax.vmap(jax.grad(lambda logits, q, f=f: jnp.mean(f(logits, q))))(*x.values())
        for f in (getattr(losses, name), getattr(rlax, name))
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_regret_matching_update(x64):
    """-sum_a dpi(a) R(a): the regrets are constants, but under "none"."""
    x = draw(CASES["rm_loss"])
    logits, q = x["logits_t"], x["q_t"]
    pi = np.array([softmax(row) for row in logits])
    regret = np.array([regrets(p, q_row) for p, q_row in zip(pi, q, strict=True)])
    update = -pi * (regret - (pi * regret).sum(1, keepdims=True))

    def gradients(stop):
        def loss(*args):
            return jnp.sum(rm_loss(*args, stop=stop))

        return jax.jit(jax.grad(loss, (0, 1)))(logits, q)

    for stop in ("bootstrap", "target"):
        by_logits, by_q = gradients(stop)
        np.testing.assert_allclose(by_logits, update, 1e-10)
        np.testing.assert_array_equal(by_q, np.zeros_like(by_q))
    separated = jax.grad(lambda x: jnp.sum(qpg_loss(x, regret, stop="none")))(logits)
    np.testing.assert_allclose(separated, update, 1e-10)
    jax.test_util.check_grads(
        lambda *args: rm_loss(*args, stop="none"), (logits, q), order=1, modes=["rev"]
    )
    assert np.abs(gradients("none")[0] - update).max() > 1e-2


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
    x = jnp.array([[0.3, 2.0, -0.4], [1.0, 0.5, 0.2]])
    q = jnp.array([[0.5, -1.0, 2.0], [0.3, 1.0, -0.7]])

    def insert(x, value):
        return jnp.insert(x, 1, value, axis=1)

    def without(x, q):
        if name == "policy_gradient_loss":  # the actions have other numbers
            return policy_gradient_loss(x, jnp.array([0, 1]), q[:, 0], 0.5)
        return f(x, q)

    few_x, few_q = jnp.delete(x, 1, axis=1), jnp.delete(q, 1, axis=1)
    masked = (insert(few_x, -jnp.inf), insert(few_q, 7.0))
    np.testing.assert_allclose(f(*masked), without(few_x, few_q), 1e-12)

    def derivatives(f):
        def loss(x, q):
            return jnp.sum(jnp.sin(f(x, q)))

        def slope(x, q):
            by_x, by_q = jax.grad(loss, (0, 1))(x, q)
            return jnp.sum(jnp.sin(by_x)) + jnp.sum(jnp.sin(by_q))

        return jax.jit(
            lambda x, q: jax.grad(loss, (0, 1))(x, q) + jax.grad(slope, (0, 1))(x, q)
        )

    expected = derivatives(without)(few_x, few_q)
    for g, g_few in zip(derivatives(f)(*masked), expected, strict=True):
        np.testing.assert_allclose(g, insert(g_few, 0.0), 1e-10, 1e-12)


# Divergences.


def test_kl_penalty_is_the_fisher_metric(x64):
    """At equal logits: gradient 0, Hessian diag(pi) - pi pi^T, in either policy."""
    logits = draw(CASES["kl_penalty_loss"])["logits_t"][:1]
    pi = softmax(np.asarray(logits[0]))
    fisher = np.diag(pi) - np.outer(pi, pi)
    for argument in (0, 1):

        def kl(x, argument=argument):
            pair = (x, logits) if argument == 0 else (logits, x)
            return kl_penalty_loss(*pair, 2.0)[0]

        np.testing.assert_allclose(kl(logits), 0.0, atol=1e-15)
        g, h = jax.jit(lambda x, kl=kl: (jax.grad(kl)(x), jax.hessian(kl)(x)))(logits)
        np.testing.assert_allclose(g, 0.0, atol=1e-15)
        np.testing.assert_allclose(h[0, :, 0], 2.0 * fisher, rtol=1e-10, atol=1e-15)


def test_temperature_is_the_teachers_alone(x64):
    x = draw(CASES["policy_distillation_loss"])
    student, teacher = x["logits_t"], x["teacher_logits_t"]
    loss = policy_distillation_loss(teacher / 0.1, teacher, 0.1)
    np.testing.assert_allclose(loss, 0.0, atol=1e-12)
    sharp = policy_distillation_loss(student, teacher, 1e-3)  # cloning of the best
    log_pi = jax.nn.log_softmax(student)
    best = log_pi[jnp.arange(T), jnp.argmax(teacher, axis=1)]
    np.testing.assert_allclose(sharp, -best, 1e-6)


# Advantage-weighted regression.


def test_awr_weight_is_capped_without_overflow():
    """exp(1e6) is inf; its gradient would be NaN."""
    adv_t = jnp.array([-1e4, 0.0, 1e3])
    log_prob_t = jnp.array([-0.5, -0.5, -0.5])

    def loss(*args):
        return jnp.sum(awr_loss(*args))

    np.testing.assert_allclose(
        awr_loss(log_prob_t, adv_t, 1e-3), [0.0, 0.5, 10.0], 1e-6
    )
    g = jax.grad(loss, (0, 1, 2, 3))(log_prob_t, adv_t, 1e-3, 5.0)
    np.testing.assert_allclose(g[0], [0.0, -1.0, -5.0], 1e-6)
    np.testing.assert_allclose(g[1], [0.0, 500.0, 0.0], 1e-6)
    np.testing.assert_allclose(g[2:], [0.0, 0.5], 1e-6)


def test_awr_between_cloning_and_nothing(x64):
    """A high temperature clones every action; advantages well below it count for 0."""
    log_prob_t, adv_t, *_ = draw(CASES["awr_loss"]).values()
    np.testing.assert_allclose(awr_loss(log_prob_t, adv_t, 1e9), -log_prob_t, 1e-8)
    assert np.all(awr_loss(log_prob_t, -jnp.abs(adv_t) - 1.0, 1e-3) == 0.0)


# Deterministic policy gradients.


@pytest.mark.parametrize("clipping", [None, 0.5])
def test_dpg_update_is_that_of_rlax(clipping):
    """In the action, with the default of both; but ours has no second derivative."""
    x = draw(CASES["dpg_loss"], batch=(1000,))
    ours, theirs = (
        jax.vmap(jax.grad(lambda a, dqda, f=f: jnp.sum(f(a, dqda, clipping))))(
            x["a_t"], x["dqda_t"]
        )
        for f in (dpg_loss, rlax.dpg_loss)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    if clipping:
        assert np.linalg.norm(ours, axis=1).max() < clipping * (1 + 1e-5)
    hessian = jax.hessian(lambda a: dpg_loss(a, jnp.ones(2), clipping))
    np.testing.assert_array_equal(jax.jit(hessian)(jnp.ones(2)), np.zeros((2, 2)))


def test_dpg_through_a_critic_is_its_gradient(x64):
    """d q(a(theta))/d theta; through two steps the critic is differentiated as well."""

    def q(a):
        return jnp.sin(a[0]) * a[1] - jnp.sum(a**2)

    def actor(theta):
        return jnp.tanh(theta)

    def loss(theta, boot):
        return dpg_loss(actor(theta), jax.grad(q)(actor(boot)), stop="none")

    def step(theta):
        return theta - 0.3 * jax.grad(loss)(theta, theta)

    def true_step(theta):
        return theta + 0.3 * jax.grad(lambda theta: q(actor(theta)))(theta)

    theta = jnp.array([0.4, -0.8])
    np.testing.assert_allclose(step(theta), true_step(theta), 1e-12)
    twice = jax.jit(jax.jacobian(lambda x: step(step(x))))
    expected = jax.jit(jax.jacobian(lambda x: true_step(true_step(x))))
    np.testing.assert_allclose(twice(theta), expected(theta), 1e-10)


@pytest.mark.parametrize("dqda", [[0.0, 0.0], [0.3, 0.4]])
def test_dpg_clipping_leaves_small_gradients(dqda, x64):
    """At 0 and at the threshold itself, where the slope in them is -a_t."""
    a_t, dqda_t = jnp.array([1.0, -2.0]), jnp.array(dqda)

    def loss(dqda_t, clipping=0.5):
        return dpg_loss(a_t, dqda_t, clipping, stop="none")

    np.testing.assert_allclose(loss(dqda_t), -a_t @ dqda_t, 1e-12)
    if not dqda_t.any():
        np.testing.assert_allclose(jax.grad(loss)(dqda_t), -a_t, 1e-12)
        np.testing.assert_allclose(jax.jit(jax.hessian(loss))(dqda_t), 0.0, atol=1e-12)


# Soft actor-critics.


def test_soft_value_of_the_soft_greedy_policy(x64):
    """pi = softmax(q / tau): tau log sum exp(q / tau), and no policy is better."""
    x = draw(CASES["sac_discrete_learning"])
    tau = 0.7
    q = jnp.min(x["q_t"], axis=0)
    x = x | {"logits_t": q / tau, "temperature": tau}
    soft_max = tau * jax.nn.logsumexp(q / tau)
    expected = x["r_t"] + x["discount_t"] * soft_max - x["q_tm1"][x["a_tm1"]]
    np.testing.assert_allclose(sac_discrete_learning(**x), expected, 1e-12)
    actor = functools.partial(sac_discrete_actor_loss, q_t=q, temperature=tau)
    np.testing.assert_allclose(actor(q / tau), -soft_max, 1e-12)
    np.testing.assert_allclose(jax.grad(actor)(q / tau), 0.0, atol=1e-12)
    assert actor(q / tau + jnp.array([0.1, 0.0, 0.0])) > -soft_max


def test_discrete_actor_critic_is_the_expectation_of_the_sampled_one(x64):
    x = draw(CASES["sac_discrete_learning"])
    log_pi = jax.nn.log_softmax(x["logits_t"])
    same = {k: x[k] for k in ("r_t", "discount_t", "temperature")}
    q_t = jnp.broadcast_to(x["q_t"][:1], x["q_t"].shape)  # one critic
    sampled = jax.vmap(
        lambda q, log_prob: sac_learning(
            x["q_tm1"][x["a_tm1"]], q_t=q, log_prob_t=log_prob, **same
        ),
        in_axes=(1, 0),
    )(q_t, log_pi)
    td = sac_discrete_learning(**x | {"q_t": q_t})
    np.testing.assert_allclose(jnp.exp(log_pi) @ sampled, td, 1e-12)
    actor = sac_actor_loss(log_pi, q_t[0], x["temperature"])
    expected = sac_discrete_actor_loss(x["logits_t"], q_t[0], x["temperature"])
    np.testing.assert_allclose(jnp.exp(log_pi) @ actor, expected, 1e-12)


def test_hard_actor_critic_is_td3(x64):
    x = draw(CASES["sac_learning"]) | {"temperature": 0.0}
    hard = {k: x[k] for k in ("q_tm1", "r_t", "discount_t", "q_t")}
    np.testing.assert_allclose(sac_learning(**x), td3_learning(**hard), 1e-12)


@pytest.mark.parametrize("name", ["sac_learning", "td3_learning"])
def test_ensembles_have_an_axis(name):
    for q_t in (jnp.float32(1.0), jnp.ones((2, 3))):
        x = draw(CASES[name]) | {"q_t": q_t}
        with pytest.raises(AssertionError, match="q_t"):
            call(CASES[name], x)


def test_temperature_settles_where_the_entropy_is_at_its_target(x64):
    """Of the policy softmax(q / tau), by gradient descent on the logarithm of tau."""
    q, target = jnp.array([1.0, 0.3, -2.0]), 0.6

    def minus_entropy(log_tau):
        return entropy_loss(q[None] / jnp.exp(log_tau), 1.0)

    def step(log_tau, _):
        log_prob = minus_entropy(log_tau)
        g = jax.grad(lambda x: sac_temperature_loss(x, log_prob, target)[0])(log_tau)
        return log_tau - 0.5 * g, g

    for start in (-2.0, 2.0):  # entropy below the target, above it
        log_tau, g = jax.lax.scan(step, jnp.asarray(start), length=2000)
        assert g[0] * start > 0
        np.testing.assert_allclose(-minus_entropy(log_tau), [target], 1e-8)


# Target-policy smoothing.


def test_smoothing_noise_is_clipped_and_so_is_the_action():
    action = jnp.linspace(-1.0, 1.0, 1000)
    f = functools.partial(td3_smoothed_action, jax.random.key(0))
    noise = f(action, 1.0, 0.25, -9.0, 9.0) - action
    np.testing.assert_allclose([noise.min(), noise.max()], [-0.25, 0.25], 1e-5)
    assert np.mean(np.abs(noise) < 0.24) > 0.1
    out = f(action, 1.0, 9.0, -0.5, jnp.full(1000, 0.75))
    np.testing.assert_array_equal([out.min(), out.max()], [-0.5, 0.75])
    np.testing.assert_array_equal(f(action, 0.0, 0.25, -1.0, 1.0), action)


def test_smoothing_noise_is_gaussian():
    f = functools.partial(td3_smoothed_action, jax.random.key(1))
    noise = f(jnp.zeros(10_000), 0.2, 9.0, -9.0, 9.0)
    np.testing.assert_allclose([noise.mean(), noise.std()], [0.0, 0.2], atol=5e-3)
    assert not np.array_equal(
        noise, td3_smoothed_action(jax.random.key(2), noise, 0.2, 9.0, -9.0, 9.0)
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_smoothed_action_keeps_dtype_and_gradient(dtype, x64):
    def f(action):
        return td3_smoothed_action(jax.random.key(0), action, 0.1, 0.2, -1.0, 1.0)

    action = jnp.array([0.0, 5.0], dtype)
    assert f(action).dtype == dtype
    slope = jax.grad(lambda action: jnp.sum(f(action)))(action)
    np.testing.assert_array_equal(slope.astype(float), [1.0, 0.0])


@pytest.mark.parametrize("argument", range(5))
def test_smoothing_refuses_wrong_shapes(argument):
    args = [jnp.zeros(3), 0.1, 0.2, -1.0, 1.0]
    args[argument] = jnp.zeros((3, 3)) if argument else jnp.zeros(3, int)
    with pytest.raises(AssertionError, match="action.*stddev.*noise_clip.*minimum"):
        td3_smoothed_action(jax.random.key(0), *args)


# Expectiles.


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.9])
def test_expectile_loss_is_least_at_the_expectile(expectile, x64):
    """Of two points (1 - e) a + e b; of a sample the mean for e = 1/2."""

    def loss(prediction, targets):
        predictions = jnp.broadcast_to(prediction, targets.shape)
        return jnp.sum(expectile_loss(predictions, targets, expectile))

    a, b = -1.0, 3.0
    least = (1 - expectile) * a + expectile * b
    g = jax.grad(loss)(least, jnp.array([a, b]))
    np.testing.assert_allclose(g, 0.0, atol=1e-12)
    assert jax.grad(jax.grad(loss))(least, jnp.array([a, b])) > 0
    targets = draw(CASES["expectile_loss"])["targets"]
    g = jax.grad(loss)(jnp.mean(targets), targets)
    np.testing.assert_allclose(np.sign(np.round(g, 12)), np.sign(0.5 - expectile))
