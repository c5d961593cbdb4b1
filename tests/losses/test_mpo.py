"""MPO and V-MPO: dual optima in closed form, what is used, what has a gradient."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from rljax.losses import mpo
from rljax.losses.mpo import LagrangePenalty

from ..oracles import softmax

E_STEP = functools.partial(
    mpo.vmpo_compute_weights_and_temperature_loss, projection_operator=mpo.clip_positive
)
STOPS = ["bootstrap", "target", "none"]


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def normal(seed, *shape):
    """Input in numpy, so that what is made of it compiles nothing."""
    dtype = np.float64 if jax.config.jax_enable_x64 else np.float32
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


ones = functools.partial(np.ones, dtype=np.float32)


def e_step_of_mpo(q_values, temperature, epsilon=0.1):
    return mpo.mpo_compute_weights_and_temperature_loss(
        q_values, LagrangePenalty(temperature, epsilon), mpo.clip_positive
    )


# The E-step of MPO.


def mpo_dual(temperature, q_values, epsilon):
    return e_step_of_mpo(q_values, temperature, epsilon)[0]


def test_weights_are_a_softmax():
    q = normal(0, 7, 4)
    _, weights, num_samples = jax.jit(e_step_of_mpo)(q, 0.3)
    np.testing.assert_allclose(weights, softmax(q.T / 0.3).T, rtol=1e-5)
    assert num_samples == 7


def test_best_temperature_makes_the_divergence_epsilon(x64):
    """Two actions: KL(w || uniform) = log 2 - H(p) = epsilon gives p, and with it eta.

    Q = (d, 0): p = sigmoid(d / eta), so eta = d / logit(p).
    """
    p, d = 0.8, 1.7
    epsilon = np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
    best = d / np.log(p / (1 - p))
    q = np.array([d, 0.0])
    slope_and_curvature = jax.jit(jax.value_and_grad(jax.grad(mpo_dual)))
    slope, curvature = slope_and_curvature(best, q, epsilon)
    np.testing.assert_allclose(slope, 0.0, atol=1e-12)
    assert curvature > 0.1
    eta = 1.0
    for _ in range(20):  # Newton's method finds it
        slope, curvature = slope_and_curvature(eta, q, epsilon)
        eta -= float(slope) / float(curvature)
    np.testing.assert_allclose(eta, best, rtol=1e-10)


slope_of_dual = jax.jit(jax.grad(mpo_dual))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_slope_of_the_dual_is_the_excess_of_the_bound(temperature, x64):
    """epsilon - KL(w || uniform) at every temperature, not at the best one alone."""
    q = normal(1, 6)
    w = softmax(q / temperature)
    divergence = np.sum(w * np.log(6 * w))
    slope = slope_of_dual(temperature, q, 0.1)
    np.testing.assert_allclose(slope, 0.1 - divergence, rtol=1e-10)


@pytest.mark.parametrize("sample_axis", [0, 1, 2, -1, -3])
def test_sample_axis(sample_axis):
    """Any of them is any other, for values and weights."""
    q, log_probs, kl = normal(2, 5, 3, 4), normal(3, 5, 3, 4), normal(4, 3, 4)

    @functools.partial(jax.jit, static_argnums=2)
    def loss_and_weights(log_probs, q, axis):
        temperature = LagrangePenalty(jnp.array(0.5), 0.1)
        kls = [(kl, LagrangePenalty(jnp.array(0.7), 0.2))]
        loss, parts = mpo.mpo_loss(log_probs, q, temperature, kls, sample_axis=axis)
        return loss, parts.normalized_weights

    loss, weights = loss_and_weights(log_probs, q, 0)
    moved, moved_weights = loss_and_weights(
        np.moveaxis(log_probs, 0, sample_axis),
        np.moveaxis(q, 0, sample_axis),
        sample_axis,
    )
    np.testing.assert_allclose(moved, loss, rtol=1e-6)
    moved_weights = np.moveaxis(np.asarray(moved_weights), sample_axis, 0)
    np.testing.assert_allclose(moved_weights, weights, rtol=1e-6)
    assert loss.shape == (3, 4)


# The E-step of V-MPO.


@functools.partial(jax.jit, static_argnames=("fraction", "stop"))
def e_step(
    advantages,
    restarting=None,
    importance=None,
    fraction=0.5,
    temperature=0.5,
    stop="bootstrap",
):
    ones = jnp.ones_like(advantages)
    return E_STEP(
        advantages,
        ones if restarting is None else restarting,
        ones if importance is None else importance,
        LagrangePenalty(temperature, 0.1),
        top_k_fraction=fraction,
        stop=stop,
    )


def test_only_the_top_half_is_used():
    advantages = normal(5, 4, 5)
    _, weights, num_samples = e_step(advantages)
    top = advantages >= np.sort(advantages, axis=None)[10]
    assert num_samples == 10 == top.sum()
    np.testing.assert_array_equal(np.asarray(weights) > 0, top)
    expected = np.exp(advantages / 0.5) * top
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)
    _, weights, num_samples = e_step(advantages, fraction=1.0)
    assert num_samples == 20 and np.asarray(weights).min() > 0


def test_vmpo_with_all_examples_is_mpo_with_one_state(x64):
    q = normal(6, 9)
    loss, weights, _ = e_step(q, fraction=1.0)
    mpo_loss, mpo_weights, _ = jax.jit(e_step_of_mpo)(q, 0.5)
    np.testing.assert_allclose(loss, mpo_loss, rtol=1e-12)
    np.testing.assert_allclose(weights, mpo_weights, rtol=1e-12)


def test_equal_advantages_are_all_used():
    _, weights, num_samples = e_step(np.float32([1.0, 1.0, 1.0, 0.0]))
    assert num_samples == 3
    np.testing.assert_allclose(weights, [1 / 3, 1 / 3, 1 / 3, 0.0], rtol=1e-6)


def test_restarted_examples_are_left_out():
    """As if they were not there: not among the best, and not in a sum."""
    advantages = np.float32([3.0, 1.0, 50.0, 0.5, 2.0, -400.0])
    restarting = np.float32([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    loss, weights, num_samples = e_step(advantages, restarting)
    weights = np.asarray(weights)
    others = np.float32([3.0, 1.0, 0.5, 2.0])
    expected_loss, expected, _ = e_step(others, fraction=0.75)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(weights[[0, 1, 3, 4]], expected, rtol=1e-6)
    assert num_samples == 3 and weights[2] == weights[5] == 0


def test_importance_weights():
    """They multiply; a factor common to all moves the dual's loss alone."""
    advantages, importance = normal(7, 8), np.exp(normal(8, 8))
    _, plain, _ = e_step(advantages)
    loss, weights, _ = e_step(advantages, importance=importance)
    expected = np.asarray(plain) * importance
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)
    twice_loss, twice, _ = e_step(advantages, importance=2 * importance)
    np.testing.assert_allclose(twice, weights, rtol=1e-5)
    np.testing.assert_allclose(twice_loss, float(loss) + 0.5 * np.log(2), rtol=1e-5)


@functools.partial(jax.jit, static_argnames="stop")
def extreme(x, temperature, stop):
    """Gradients and weights of the E-step."""

    def f(x, temperature):
        loss, weights, _ = e_step(*x, temperature=temperature, stop=stop)
        return loss + jnp.sum(weights**2), weights

    return jax.grad(f, (0, 1), has_aux=True)(x, temperature)


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    "advantages, restarting, importance",
    [
        ([1.0, 2.0, 3.0, 4.0], [0.0] * 4, [1.0] * 4),  # none to be used
        ([1.0, 2.0, 3.0, 4.0], [1.0] * 4, [0.0] * 4),  # none that counts
        ([1e4, -1e4, 3.0, 1e4], [1.0, 1.0, 1.0, 0.0], [1.0] * 4),
        ([-1e4, -1e4, -1e4, 1e4], [1.0, 1.0, 1.0, 0.0], [1.0] * 4),
        ([1e4, 3.0, 2.0, 1.0], [1.0] * 4, [0.0, 1.0, 1.0, 1.0]),
        ([2.0] * 4, [1.0] * 4, [1.0] * 4),
    ],
)
def test_extremes_are_finite(advantages, restarting, importance, stop):
    """And so are gradients, at a temperature of 1e-2; weights add up to 1 or 0."""
    x = [np.float32(v) for v in (advantages, restarting, importance)]
    gradients, weights = extreme(x, 1e-2, stop=stop)
    chex.assert_tree_all_finite((gradients, weights))
    total = float(np.sum(weights))
    assert total == pytest.approx(1.0) or not np.any(weights)
    assert (total > 0) == (any(restarting) and any(importance))


# The M-step.


def penalty(kl, alpha, epsilon, per_dimension=False, stop="bootstrap"):
    constraint = LagrangePenalty(alpha, epsilon, per_dimension)
    return mpo.compute_parametric_kl_penalty_and_dual_loss(
        [(kl, constraint)], mpo.clip_positive, stop=stop
    )


def test_constraints_per_dimension_add_up():
    """One dual each; a scalar dual is the same for all; so is one constraint each."""
    kl, alpha = np.abs(normal(9, 4, 3)), np.float32([0.5, 1.0, 2.0])

    @jax.jit
    def penalties(kl, alpha):
        each = [(kl[:, i], LagrangePenalty(alpha[i], 0.3)) for i in range(3)]
        return (
            penalty(kl, alpha, 0.3, per_dimension=True),
            mpo.compute_parametric_kl_penalty_and_dual_loss(each, mpo.clip_positive),
            penalty(kl, 0.7, 0.3, per_dimension=True),
            penalty(kl, jnp.full(3, 0.7), 0.3, per_dimension=True),
            penalty(kl.sum(1), 0.7, 0.9),
        )

    out, each, scalar, same, total = penalties(kl, alpha)
    chex.assert_trees_all_close(out, each, rtol=1e-6)
    chex.assert_trees_all_close(scalar, same)
    chex.assert_trees_all_close(scalar, total, rtol=1e-5)


def test_duals_grow_while_a_bound_is_exceeded():
    @jax.jit
    def slope(kl):
        return jax.grad(lambda alpha: penalty(kl, alpha, 0.3)[1])(1.0)

    assert slope(0.5) == pytest.approx(-0.2)
    assert slope(0.1) == pytest.approx(0.2)


def test_projection_keeps_duals_positive():
    """Whatever the parameters; softplus has a gradient everywhere."""
    q, log_probs, kl = normal(10, 5), normal(11, 5), np.float32(0.4)
    for projection in (mpo.clip_positive, jax.nn.softplus):

        def parts(duals, projection=projection):
            temperature, alpha = duals
            constraint = LagrangePenalty(temperature, 0.1)
            kls = [(kl, LagrangePenalty(alpha, 0.3))]
            loss, parts = mpo.mpo_loss(log_probs, q, constraint, kls, projection)
            return loss, parts

        gradients, out = jax.jit(jax.grad(parts, has_aux=True))((-2.0, -3.0))
        assert out.kl_loss > 0
        assert np.min(out.normalized_weights) >= 0
        chex.assert_tree_all_finite((gradients, out))
        assert (gradients == (0.0, 0.0)) == (projection is mpo.clip_positive)


# Which gradients there are.


def arguments(fn):
    """Arguments of a loss by name, some of which it takes in a structure."""
    samples = (6,) if fn is mpo.vmpo_loss else (5, 6)
    return {
        "sample_log_probs": normal(12, *samples),
        "q": normal(13, *samples),
        "temperature": 0.6,
        "kl": np.abs(normal(14, 6, 2)),
        "alpha": np.abs(normal(17, 2)) + 0.5,
        "importance": np.exp(normal(15, 6)),
    }


def parts_of(fn, x, **stop):
    lib = rlax if fn in (rlax.mpo_loss, rlax.vmpo_loss) else mpo
    alpha = jnp.broadcast_to(x["alpha"], x["kl"].shape)
    constraint = lib.LagrangePenalty(alpha if lib is rlax else x["alpha"], 0.3, True)
    args = (x["sample_log_probs"], x["q"], lib.LagrangePenalty(x["temperature"], 0.1))
    more = {}
    if fn in (mpo.vmpo_loss, rlax.vmpo_loss):
        more = {"importance_weights": x["importance"]}
    return fn(*args, [(x["kl"], constraint)], **more, **stop)


def total(fn, x, **stop):
    return jnp.sum(jnp.sin(parts_of(fn, x, **stop)[0]))


@pytest.mark.parametrize(
    "fn, theirs", [(mpo.mpo_loss, rlax.mpo_loss), (mpo.vmpo_loss, rlax.vmpo_loss)]
)
def test_gradients_equal_rlax(fn, theirs, x64):
    """By default those of policy and duals; with nothing stopped, all."""

    @jax.jit
    def gradients(x):
        ours = {
            stop: jax.grad(functools.partial(total, fn, stop=stop)) for stop in STOPS
        }
        flags = {
            flag: jax.grad(functools.partial(total, theirs, use_stop_gradient=flag))
            for flag in (True, False)
        }
        return jax.tree.map(lambda gradient: gradient(x), (ours, flags))

    ours, g = gradients(arguments(fn))
    for stop in ("bootstrap", "target"):
        for k in ("sample_log_probs", "temperature", "kl", "alpha", "importance"):
            np.testing.assert_allclose(ours[stop][k], g[True][k], rtol=1e-7, err_msg=k)
        live = fn is mpo.vmpo_loss and stop == "bootstrap"
        assert np.any(ours[stop]["q"]) == live  # rlax leaves the temperature loss's
    chex.assert_trees_all_close(ours["none"], g[False], rtol=1e-7)


@pytest.mark.parametrize("fn", [mpo.mpo_loss, mpo.vmpo_loss])
def test_two_calls_separate_the_arguments(fn, x64):
    """As the docstring says: the gradient of the default, with nothing stopped."""
    x = arguments(fn)
    learned = {k: x[k] for k in ("sample_log_probs", "temperature", "kl", "alpha")}

    def separated(learned):
        old = {k: x[k] for k in ("temperature", "alpha")}
        _, policy = parts_of(fn, x | learned | old, stop="none")
        _, dual = parts_of(fn, x | learned | {"kl": x["kl"]}, stop="none")
        loss = policy.policy_loss + policy.kl_loss
        return jnp.sum(jnp.sin(loss + dual.temperature_loss + dual.alpha_loss))

    @jax.jit
    def both(learned):
        default = jax.grad(lambda learned: total(fn, x | learned))(learned)
        return jax.grad(separated)(learned), default

    by_hand, default = both(learned)
    chex.assert_trees_all_close(by_hand, default, rtol=1e-10)


@pytest.mark.parametrize("fn", [mpo.mpo_loss, mpo.vmpo_loss])
def test_weights_of_the_parts(fn):
    names = ("policy_loss", "temperature_loss", "kl_loss", "alpha_loss")
    weights = {f"{name}_weight": 2.0 + i for i, name in enumerate(names)}

    @jax.jit
    def both(x):
        return parts_of(fn, x)[1], parts_of(fn, x, **weights)[0]

    parts, loss = both(arguments(fn))
    expected = sum(
        (2.0 + i) * np.asarray(getattr(parts, name)) for i, name in enumerate(names)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_constraints_are_trees():
    """A penalty passes through jit and grad; what is static stays static."""
    kl, ones = np.ones((4, 2), np.float32), np.ones(2, np.float32)
    constraint = LagrangePenalty(ones, np.float32(0.3), per_dimension=True)

    @jax.jit
    @jax.grad
    def gradient(constraint):
        kls = [(kl, constraint)]
        _, loss = mpo.compute_parametric_kl_penalty_and_dual_loss(
            kls, mpo.clip_positive
        )
        return loss.sum()

    g = gradient(constraint)
    np.testing.assert_allclose(g.alpha, 4 * (0.3 - 1.0), rtol=1e-6)
    assert g.epsilon == 8.0 and g.per_dimension is True


def test_minimising_finds_the_best_policy():
    """Both steps, a categorical policy: its divergence goes to the bound."""
    q, old = np.float32([1.0, 0.0, -1.0, 0.5]), np.log(softmax(normal(16, 4)))
    pi, bound = np.exp(old), 0.05
    actions = np.random.default_rng(0).choice(4, 4000, p=pi / pi.sum())

    def loss(x):
        new = jax.nn.log_softmax(x["logits"])
        kl = jnp.sum(pi * (old - new))
        kls = [(kl, LagrangePenalty(x["alpha"], bound))]
        temperature = LagrangePenalty(x["temperature"], 0.5)
        loss, _ = mpo.mpo_loss(
            new[actions], q[actions], temperature, kls, jax.nn.softplus
        )
        return loss, kl

    @jax.jit
    def train(x):
        def step(x, _):
            g, kl = jax.grad(loss, has_aux=True)(x)
            return jax.tree.map(lambda p, g: p - 0.1 * g, x, g), kl

        return jax.lax.scan(step, x, None, length=4000)

    x, kl = train({"logits": old, "alpha": 0.0, "temperature": 0.0})
    np.testing.assert_allclose(np.asarray(kl)[-100:], bound, rtol=0.05)
    assert softmax(np.asarray(x["logits"])) @ q > pi @ q + 0.1


# Mapped axes.


@pytest.mark.parametrize(
    "axes, stop",
    [
        ("i", "bootstrap"),
        *(("ij", stop) for stop in STOPS),
        *(pytest.param("i", stop, marks=pytest.mark.slow) for stop in STOPS[1:]),
    ],
)
def test_mapped_axes_equal_one_batch(axes, stop, x64):
    """Losses, weights, counts, and the gradient of the whole in everything.

    The slow ones are one axis with what two axes are tested with already.
    """
    shape = (2, 3)[: len(axes)]
    x = {
        k: normal(20 + i, *shape, 4) for i, k in enumerate(("log_probs", "advantages"))
    }
    x["importance"] = np.exp(normal(22, *shape, 4))
    x["kl"] = normal(23, *shape, 4) ** 2
    x["restarting"] = (normal(24, *shape, 4) > -1).astype(float)
    duals = {"temperature": 0.5, "alpha": 0.8}

    def f(duals, x, axis_name=None):
        return mpo.vmpo_loss(
            *(x["log_probs"], x["advantages"]),
            LagrangePenalty(duals["temperature"], 0.1),
            [(x["kl"], LagrangePenalty(duals["alpha"], 0.3))],
            restarting_weights=x["restarting"],
            importance_weights=x["importance"],
            axis_name=axis_name,
            stop=stop,
        )

    mapped = functools.partial(f, axis_name=axes if len(axes) == 1 else tuple(axes))
    for axis in reversed(axes):
        mapped = jax.vmap(mapped, (None, 0), axis_name=axis)

    def score(f, duals, x):
        loss, parts = f(duals, x)
        return jnp.mean(jnp.sin(loss)) + jnp.mean(parts.temperature_loss), parts

    @jax.jit
    def both(duals, x):
        return [
            jax.value_and_grad(functools.partial(score, g), (0, 1), has_aux=True)(
                duals, x
            )
            for g in (mapped, f)
        ]

    ours, whole = both(duals, x)
    (value, parts), g = ours
    (expected, expected_parts), expected_g = whole
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    chex.assert_trees_all_close(g, expected_g, rtol=1e-9, atol=1e-14)
    for name in ("normalized_weights", "policy_loss", "kl_loss"):
        np.testing.assert_allclose(
            getattr(parts, name), getattr(expected_parts, name), rtol=1e-10
        )
    np.testing.assert_array_equal(
        parts.num_samples, np.broadcast_to(expected_parts.num_samples, shape)
    )


# Dual variables of the examples' shape.


def both_losses(temperature, alpha, alpha_by_dimension):
    """Of examples `[2, 3]`, the samples of MPO in their midst."""
    log_probs, q, kl, kls = (
        normal(i, *s) for i, s in enumerate([(2, 5, 3), (2, 5, 3), (2, 3), (2, 3, 4)])
    )
    temperature = LagrangePenalty(temperature, 0.1)
    constraints = [
        (kl**2, LagrangePenalty(alpha, 0.2)),
        (kls**2, LagrangePenalty(alpha_by_dimension, 0.3, per_dimension=True)),
    ]
    out = mpo.mpo_loss(log_probs, q, temperature, constraints, sample_axis=1)
    on_policy = mpo.vmpo_loss(log_probs[:, 0], q[:, 0], temperature, constraints)
    return out, on_policy


def test_duals_of_every_shape_equal_the_scalar():
    """And their gradients add up to the scalar's."""
    numbers = (0.5, 0.7, 0.9)
    shapes = [((), (), ()), ((3,), (3,), (4,)), ((2, 1), (1, 3), (3, 4))]
    shapes.append(((2, 3), (2, 3), (2, 3, 4)))

    def mean(duals):
        out = both_losses(*duals)
        return sum(jnp.mean(loss) for loss, _ in out), out

    @jax.jit
    def results():
        return [
            jax.value_and_grad(mean, has_aux=True)(
                [jnp.full(shape, x) for shape, x in zip(each, numbers, strict=True)]
            )
            for each in shapes
        ]

    ((_, expected), slopes), *others = results()
    for (_, out), gradients in others:
        for a, b in zip(*map(jax.tree.leaves, (out, expected)), strict=True):
            np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-5)
        for g, slope in zip(gradients, slopes, strict=True):
            np.testing.assert_allclose(np.sum(g), slope, rtol=1e-4)


def test_each_example_has_its_own_duals(x64):
    temperatures, alphas = np.exp(normal(0, 3)), np.exp(normal(1, 3))
    log_probs, q, kl = normal(2, 5, 3), normal(3, 5, 3), normal(4, 3) ** 2

    def loss(log_probs, q, temperature, alpha, kl):
        constraints = [(kl, LagrangePenalty(alpha, 0.2))]
        return mpo.mpo_loss(
            log_probs, q, LagrangePenalty(temperature, 0.1), constraints
        )

    one_by_one = jax.vmap(
        loss, (1, 1, 0, 0, 0), (0, mpo.MpoOutputs(0, 0, 0, 0, 1, None))
    )
    x = (log_probs, q, temperatures, alphas, kl)
    together, each = jax.jit(lambda *x: (loss(*x), one_by_one(*x)))(*x)
    chex.assert_trees_all_close(together, each, rtol=1e-12)


def test_masked_samples_count_nothing():
    """An action of value and log-probability -inf; no gradient becomes NaN."""
    log_probs, q = normal(0, 5, 3), normal(1, 5, 3)
    masked = np.arange(5) == 2
    log_probs, q = (np.where(masked[:, None], -np.inf, x) for x in (log_probs, q))

    def loss(log_probs, q, temperature, stop):
        duals = LagrangePenalty(temperature, 0.1)
        out = mpo.mpo_loss(log_probs, q, duals, [(ones(3), duals)], stop=stop)[0]
        return jnp.sum(out), out

    @jax.jit
    def gradients(log_probs, q):
        grad = jax.grad(loss, (0, 1, 2), has_aux=True)
        return [grad(log_probs, q, 0.5, stop) for stop in STOPS]

    chex.assert_tree_all_finite(gradients(np.float32(log_probs), np.float32(q)))


# Refusals.


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_fraction(fraction):
    with pytest.raises(ValueError, match=rf"top_k_fraction={fraction}: must be in"):
        e_step(ones(4), fraction=fraction)


def test_fraction_that_leaves_nothing():
    with pytest.raises(ValueError, match="top_k_fraction=0.2: leaves none of 4"):
        e_step(ones(4), fraction=0.2)


def test_no_constraints():
    temperature = LagrangePenalty(1.0, 0.1)
    for call in (
        lambda: mpo.mpo_loss(ones(3), ones(3), temperature, []),
        lambda: mpo.vmpo_loss(ones(3), ones(3), temperature, []),
        lambda: mpo.compute_parametric_kl_penalty_and_dual_loss([], jnp.abs),
    ):
        with pytest.raises(ValueError, match=r"kl_constraints=\[\]: must be at least"):
            call()


@pytest.mark.parametrize("sample_axis", [2, -3])
def test_no_such_axis(sample_axis):
    x, temperature = ones((2, 3)), LagrangePenalty(1.0, 0.1)
    kls = [(ones(3), temperature)]
    with pytest.raises(ValueError, match=rf"sample_axis={sample_axis}: no such axis"):
        mpo.mpo_loss(x, x, temperature, kls, sample_axis=sample_axis)
    with pytest.raises(ValueError, match=rf"sample_axis={sample_axis}: no such axis"):
        mpo.mpo_compute_weights_and_temperature_loss(
            x, temperature, jnp.abs, sample_axis
        )


def test_refusals_name_every_argument():
    x, temperature = ones((2, 3)), LagrangePenalty(np.float32(1.0), 0.1)
    per_dimension = LagrangePenalty(ones(5), 0.1, per_dimension=True)
    unfit = r"^alpha_1: expected a shape that broadcasts to"
    names = rf"{unfit}|sample_log_probs.*temperature.*kl_0.*alpha_0.*epsilon_0.*kl_1"
    good = (ones(3), temperature)
    for bad in (
        (ones(2), temperature),  # of the samples
        (ones((3, 5)), temperature),  # not per dimension
        (ones(3), per_dimension),
        (ones((3, 4)), per_dimension),
        (ones(3), LagrangePenalty(1.0, ones(3))),
        (np.ones(3, np.int32), temperature),
    ):
        with pytest.raises(AssertionError, match=names):
            mpo.mpo_loss(x, x, temperature, [good, bad])
        with pytest.raises(AssertionError, match=f"{unfit}|kl_0.*kl_1"):
            mpo.compute_parametric_kl_penalty_and_dual_loss([good, bad], jnp.abs)
        with pytest.raises(AssertionError, match=names):
            mpo.vmpo_loss(x[0], x[0], temperature, [good, bad])
    bad = LagrangePenalty(ones(2), 0.1)  # neither for all nor for each
    for call in (
        lambda: mpo.mpo_loss(x, x, bad, [good]),
        lambda: mpo.vmpo_loss(x[0], x[0], bad, [good]),
        lambda: mpo.mpo_compute_weights_and_temperature_loss(x, bad, jnp.abs),
        lambda: E_STEP(x, x, x, bad, top_k_fraction=0.5),
    ):
        with pytest.raises(AssertionError, match=r"^temperature: .*\(2,\)"):
            call()
    with pytest.raises(AssertionError, match=r"^alpha_1: .*\(2,\)"):
        mpo.mpo_loss(x, x, temperature, [good, (ones(3), bad)])
