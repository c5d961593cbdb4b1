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

E_STEP = functools.partial(
    mpo.vmpo_compute_weights_and_temperature_loss, projection_operator=mpo.clip_positive
)
STOPS = ["bootstrap", "target", "none"]
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), float)


# The E-step of MPO.


def mpo_dual(temperature, q_values, epsilon):
    constraint = LagrangePenalty(temperature, epsilon)
    return mpo.mpo_compute_weights_and_temperature_loss(
        q_values, constraint, mpo.clip_positive
    )[0]


def test_weights_are_a_softmax():
    q, constraint = normal(0, 7, 4), LagrangePenalty(jnp.array(0.3), 0.1)
    _, weights, num_samples = mpo.mpo_compute_weights_and_temperature_loss(
        q, constraint, mpo.clip_positive
    )
    np.testing.assert_allclose(weights, jax.nn.softmax(q / 0.3, axis=0), rtol=1e-5)
    assert num_samples == 7


def test_best_temperature_makes_the_divergence_epsilon(x64):
    """Two actions: KL(w || uniform) = log 2 - H(p) = epsilon gives p, and with it eta.

    Q = (d, 0): p = sigmoid(d / eta), so eta = d / logit(p).
    """
    p, d = 0.8, 1.7
    epsilon = np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
    best = d / np.log(p / (1 - p))
    q = jnp.array([d, 0.0])
    slope, curvature = jit(jax.grad(mpo_dual)), jit(jax.grad(jax.grad(mpo_dual)))
    np.testing.assert_allclose(slope(best, q, epsilon), 0.0, atol=1e-12)
    assert curvature(best, q, epsilon) > 0.1
    eta = 1.0
    for _ in range(20):  # Newton's method finds it
        eta -= slope(eta, q, epsilon) / curvature(eta, q, epsilon)
    np.testing.assert_allclose(eta, best, rtol=1e-10)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_slope_of_the_dual_is_the_excess_of_the_bound(temperature, x64):
    """epsilon - KL(w || uniform) at every temperature, not at the best one alone."""
    q = normal(1, 6)
    w = np.asarray(jax.nn.softmax(q / temperature))
    divergence = np.sum(w * np.log(6 * w))
    slope = jax.grad(mpo_dual)(temperature, q, 0.1)
    np.testing.assert_allclose(slope, 0.1 - divergence, rtol=1e-10)


@pytest.mark.parametrize("sample_axis", [0, 1, 2, -1, -3])
def test_sample_axis(sample_axis):
    """Any of them is any other, for values and weights."""
    q, log_probs, kl = normal(2, 5, 3, 4), normal(3, 5, 3, 4), normal(4, 3, 4)
    temperature = LagrangePenalty(jnp.array(0.5), 0.1)
    kls = [(kl, LagrangePenalty(jnp.array(0.7), 0.2))]
    loss, parts = mpo.mpo_loss(log_probs, q, temperature, kls)
    q, log_probs = (jnp.moveaxis(x, 0, sample_axis) for x in (q, log_probs))
    moved, moved_parts = mpo.mpo_loss(
        log_probs, q, temperature, kls, sample_axis=sample_axis
    )
    np.testing.assert_allclose(moved, loss, rtol=1e-6)
    weights = jnp.moveaxis(moved_parts.normalized_weights, sample_axis, 0)
    np.testing.assert_allclose(weights, parts.normalized_weights, rtol=1e-6)
    assert loss.shape == (3, 4)


# The E-step of V-MPO.


def e_step(advantages, restarting=None, importance=None, fraction=0.5, **options):
    ones = jnp.ones_like(advantages)
    return E_STEP(
        advantages,
        ones if restarting is None else restarting,
        ones if importance is None else importance,
        LagrangePenalty(options.pop("temperature", jnp.array(0.5)), 0.1),
        top_k_fraction=fraction,
        **options,
    )


def test_only_the_top_half_is_used():
    advantages = normal(5, 4, 5)
    _, weights, num_samples = e_step(advantages)
    top = np.asarray(advantages) >= np.sort(advantages, axis=None)[10]
    assert num_samples == 10 == top.sum()
    np.testing.assert_array_equal(weights > 0, top)
    expected = np.exp(advantages / 0.5) * top
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)
    _, weights, num_samples = e_step(advantages, fraction=1.0)
    assert num_samples == 20 and np.all(weights > 0)


def test_vmpo_with_all_examples_is_mpo_with_one_state(x64):
    q = normal(6, 9)
    loss, weights, _ = e_step(q, fraction=1.0)
    mpo_loss, mpo_weights, _ = mpo.mpo_compute_weights_and_temperature_loss(
        q, LagrangePenalty(jnp.array(0.5), 0.1), mpo.clip_positive
    )
    np.testing.assert_allclose(loss, mpo_loss, rtol=1e-12)
    np.testing.assert_allclose(weights, mpo_weights, rtol=1e-12)


def test_equal_advantages_are_all_used():
    _, weights, num_samples = e_step(jnp.array([1.0, 1.0, 1.0, 0.0]))
    assert num_samples == 3
    np.testing.assert_allclose(weights, [1 / 3, 1 / 3, 1 / 3, 0.0], rtol=1e-6)


def test_restarted_examples_are_left_out():
    """As if they were not there: not among the best, and not in a sum."""
    advantages = jnp.array([3.0, 1.0, 50.0, 0.5, 2.0, -400.0])
    restarting = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    loss, weights, num_samples = e_step(advantages, restarting)
    others = jnp.array([3.0, 1.0, 0.5, 2.0])
    expected_loss, expected, _ = e_step(others, fraction=0.75)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(weights[jnp.array([0, 1, 3, 4])], expected, rtol=1e-6)
    assert num_samples == 3 and weights[2] == weights[5] == 0


def test_importance_weights():
    """They multiply; a factor common to all moves the dual's loss alone."""
    advantages, importance = normal(7, 8), jnp.exp(normal(8, 8))
    _, plain, _ = e_step(advantages)
    loss, weights, _ = e_step(advantages, importance=importance)
    expected = plain * importance
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)
    twice_loss, twice, _ = e_step(advantages, importance=2 * importance)
    np.testing.assert_allclose(twice, weights, rtol=1e-5)
    np.testing.assert_allclose(twice_loss, loss + 0.5 * np.log(2), rtol=1e-5)


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
    x = [jnp.array(v) for v in (advantages, restarting, importance)]

    def f(x, temperature):
        loss, weights, _ = e_step(*x, temperature=temperature, stop=stop)
        return loss + jnp.sum(weights**2), weights

    gradients, weights = jit(jax.grad(f, (0, 1), has_aux=True))(x, jnp.array(1e-2))
    chex.assert_tree_all_finite((gradients, weights))
    total = float(np.sum(weights))
    assert total == pytest.approx(1.0) or np.all(weights == 0)
    assert (total > 0) == (any(restarting) and any(importance))


# The M-step.


def penalty(kl, alpha, epsilon, per_dimension=False, stop="bootstrap"):
    constraint = LagrangePenalty(alpha, epsilon, per_dimension)
    return mpo.compute_parametric_kl_penalty_and_dual_loss(
        [(kl, constraint)], mpo.clip_positive, stop=stop
    )


def test_constraints_per_dimension_add_up():
    """One dual each; a scalar dual is the same for all; so is one constraint each."""
    kl, alpha = jnp.abs(normal(9, 4, 3)), jnp.array([0.5, 1.0, 2.0])
    out = penalty(kl, alpha, 0.3, per_dimension=True)
    each = mpo.compute_parametric_kl_penalty_and_dual_loss(
        [(kl[:, i], LagrangePenalty(alpha[i], 0.3)) for i in range(3)],
        mpo.clip_positive,
    )
    chex.assert_trees_all_close(out, each, rtol=1e-6)
    scalar = penalty(kl, 0.7, 0.3, per_dimension=True)
    chex.assert_trees_all_close(scalar, penalty(kl, jnp.full(3, 0.7), 0.3, True))
    total = penalty(kl.sum(1), 0.7, 0.9)
    chex.assert_trees_all_close(scalar, total, rtol=1e-5)


def test_duals_grow_while_a_bound_is_exceeded():
    def slope(kl):
        return jax.grad(lambda alpha: penalty(kl, alpha, 0.3)[1])(1.0)

    assert slope(jnp.array(0.5)) == pytest.approx(-0.2)
    assert slope(jnp.array(0.1)) == pytest.approx(0.2)


def test_projection_keeps_duals_positive():
    """Whatever the parameters; softplus has a gradient everywhere."""
    q, log_probs, kl = normal(10, 5), normal(11, 5), jnp.array(0.4)
    for projection in (mpo.clip_positive, jax.nn.softplus):

        def parts(duals, projection=projection):
            temperature, alpha = duals
            constraint = LagrangePenalty(temperature, 0.1)
            kls = [(kl, LagrangePenalty(alpha, 0.3))]
            loss, parts = mpo.mpo_loss(log_probs, q, constraint, kls, projection)
            return loss, parts

        gradients, out = jax.grad(parts, has_aux=True)((-2.0, -3.0))
        assert out.kl_loss > 0
        assert np.all(out.normalized_weights >= 0)
        chex.assert_tree_all_finite((gradients, out))
        assert (gradients == (0.0, 0.0)) == (projection is mpo.clip_positive)


# Which gradients there are.


def arguments(fn):
    """Arguments of a loss by name, some of which it takes in a structure."""
    samples = (6,) if fn is mpo.vmpo_loss else (5, 6)
    return {
        "sample_log_probs": normal(12, *samples),
        "q": normal(13, *samples),
        "temperature": jnp.array(0.6),
        "kl": jnp.abs(normal(14, 6, 2)),
        "alpha": jnp.array([0.5, 1.5]),
        "importance": jnp.exp(normal(15, 6)),
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
    x = arguments(fn)

    def gradient(fn, **stop):
        return jit(jax.grad(functools.partial(total, fn, **stop)))(x)

    g = gradient(theirs, use_stop_gradient=True)
    for stop in ("bootstrap", "target"):
        ours = gradient(fn, stop=stop)
        for k in ("sample_log_probs", "temperature", "kl", "alpha", "importance"):
            np.testing.assert_allclose(ours[k], g[k], rtol=1e-7, err_msg=k)
        live = fn is mpo.vmpo_loss and stop == "bootstrap"
        assert np.any(ours["q"]) == live  # rlax leaves those of the temperature's loss
    ours, g = gradient(fn, stop="none"), gradient(theirs, use_stop_gradient=False)
    chex.assert_trees_all_close(ours, g, rtol=1e-7)


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

    default = jit(jax.grad(lambda learned: total(fn, x | learned)))(learned)
    chex.assert_trees_all_close(jit(jax.grad(separated))(learned), default, rtol=1e-10)


@pytest.mark.parametrize("fn", [mpo.mpo_loss, mpo.vmpo_loss])
def test_weights_of_the_parts(fn):
    x = arguments(fn)
    _, parts = parts_of(fn, x)
    names = ("policy_loss", "temperature_loss", "kl_loss", "alpha_loss")
    weights = {f"{name}_weight": 2.0 + i for i, name in enumerate(names)}
    loss, _ = parts_of(fn, x, **weights)
    expected = sum((2.0 + i) * getattr(parts, name) for i, name in enumerate(names))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_constraints_are_trees():
    """A penalty passes through jit and grad; what is static stays static."""
    kl = jnp.ones((4, 2))
    constraint = LagrangePenalty(jnp.ones(2), jnp.array(0.3), per_dimension=True)

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
    q, old = jnp.array([1.0, 0.0, -1.0, 0.5]), jax.nn.log_softmax(normal(16, 4))
    actions = jax.random.categorical(jax.random.key(0), old, shape=(4000,))
    bound = 0.05

    def loss(x):
        new = jax.nn.log_softmax(x["logits"])
        kl = jnp.sum(jnp.exp(old) * (old - new))
        kls = [(kl, LagrangePenalty(x["alpha"], bound))]
        temperature = LagrangePenalty(x["temperature"], 0.5)
        args = (new[actions], q[actions], temperature, kls, jax.nn.softplus)
        return mpo.mpo_loss(*args)[0], kl

    @jax.jit
    def train(x):
        def step(x, _):
            g, kl = jax.grad(loss, has_aux=True)(x)
            return jax.tree.map(lambda p, g: p - 0.1 * g, x, g), kl

        return jax.lax.scan(step, x, None, length=4000)

    zero = jnp.array(0.0)
    x, kl = train({"logits": old, "alpha": zero, "temperature": zero})
    np.testing.assert_allclose(kl[-100:], bound, rtol=0.05)
    assert jnp.sum(jax.nn.softmax(x["logits"]) * q) > jnp.sum(jnp.exp(old) * q) + 0.1


# Mapped axes.


@pytest.mark.parametrize("axes", [("i",), ("i", "j")])
@pytest.mark.parametrize("stop", STOPS)
def test_mapped_axes_equal_one_batch(axes, stop, x64):
    """Losses, weights, counts, and the gradient of the whole in everything."""
    shape = (2, 3)[: len(axes)]
    x = {
        k: normal(20 + i, *shape, 4) for i, k in enumerate(("log_probs", "advantages"))
    }
    x["importance"], x["kl"] = (
        jnp.exp(normal(22, *shape, 4)),
        normal(23, *shape, 4) ** 2,
    )
    x["restarting"] = (normal(24, *shape, 4) > -1).astype(float)
    duals = {"temperature": jnp.array(0.5), "alpha": jnp.array(0.8)}

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

    mapped = functools.partial(f, axis_name=axes[0] if len(axes) == 1 else axes)
    for axis in reversed(axes):
        mapped = jax.vmap(mapped, (None, 0), axis_name=axis)

    def score(f, duals, x):
        loss, parts = f(duals, x)
        return jnp.mean(jnp.sin(loss)) + jnp.mean(parts.temperature_loss), parts

    def both(f):
        f = functools.partial(score, f)
        return jit(jax.value_and_grad(f, (0, 1), has_aux=True))(duals, x)

    ours, whole = both(mapped), both(f)
    (value, parts), g = ours
    (expected, expected_parts), expected_g = whole
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    chex.assert_trees_all_close(g, expected_g, rtol=1e-9, atol=1e-14)
    for name in ("normalized_weights", "policy_loss", "kl_loss"):
        np.testing.assert_allclose(
            getattr(parts, name), getattr(expected_parts, name), rtol=1e-10
        )
    assert np.all(parts.num_samples == expected_parts.num_samples)


# Refusals.


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_fraction(fraction):
    with pytest.raises(ValueError, match=rf"top_k_fraction={fraction}: must be in"):
        e_step(jnp.zeros(4), fraction=fraction)


def test_fraction_that_leaves_nothing():
    with pytest.raises(ValueError, match="top_k_fraction=0.2: leaves none of 4"):
        e_step(jnp.zeros(4), fraction=0.2)


def test_no_constraints():
    temperature = LagrangePenalty(1.0, 0.1)
    for call in (
        lambda: mpo.mpo_loss(jnp.ones(3), jnp.ones(3), temperature, []),
        lambda: mpo.vmpo_loss(jnp.ones(3), jnp.ones(3), temperature, []),
        lambda: mpo.compute_parametric_kl_penalty_and_dual_loss([], jnp.abs),
    ):
        with pytest.raises(ValueError, match=r"kl_constraints=\[\]: must be at least"):
            call()


@pytest.mark.parametrize("sample_axis", [2, -3])
def test_no_such_axis(sample_axis):
    x, temperature = jnp.ones((2, 3)), LagrangePenalty(1.0, 0.1)
    kls = [(jnp.ones(3), temperature)]
    with pytest.raises(ValueError, match=rf"sample_axis={sample_axis}: no such axis"):
        mpo.mpo_loss(x, x, temperature, kls, sample_axis=sample_axis)
    with pytest.raises(ValueError, match=rf"sample_axis={sample_axis}: no such axis"):
        mpo.mpo_compute_weights_and_temperature_loss(
            x, temperature, jnp.abs, sample_axis
        )


def test_refusals_name_every_argument():
    x, temperature = jnp.ones((2, 3)), LagrangePenalty(jnp.array(1.0), 0.1)
    per_dimension = LagrangePenalty(jnp.ones(5), 0.1, per_dimension=True)
    names = r"sample_log_probs.*temperature.*kl_0.*alpha_0.*epsilon_0.*kl_1"
    good = (jnp.ones(3), temperature)
    for bad in (
        (jnp.ones(2), temperature),  # of the samples
        (jnp.ones((3, 5)), temperature),  # not per dimension
        (jnp.ones(3), per_dimension),
        (jnp.ones((3, 4)), per_dimension),
        (jnp.ones(3), LagrangePenalty(jnp.ones(3), 0.1)),
        (jnp.ones(3), LagrangePenalty(1.0, jnp.ones(3))),
        (jnp.ones(3, int), temperature),
    ):
        with pytest.raises(AssertionError, match=names):
            mpo.mpo_loss(x, x, temperature, [good, bad])
        with pytest.raises(AssertionError, match="kl_0.*kl_1"):
            mpo.compute_parametric_kl_penalty_and_dual_loss([good, bad], jnp.abs)
        with pytest.raises(AssertionError, match=names):
            mpo.vmpo_loss(x[0], x[0], temperature, [good, bad])
    bad = LagrangePenalty(jnp.ones(3), 0.1)  # a temperature for each example
    for call in (
        lambda: mpo.mpo_loss(x, x, bad, [good]),
        lambda: mpo.vmpo_loss(x[0], x[0], bad, [good]),
        lambda: mpo.mpo_compute_weights_and_temperature_loss(x, bad, jnp.abs),
        lambda: E_STEP(x, x, x, bad, top_k_fraction=0.5),
    ):
        with pytest.raises(AssertionError, match=r"temperature float32\[3\]"):
            call()
