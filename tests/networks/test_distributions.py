"""Densities integrate to one, samples follow them, units are the environment's."""

import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.networks import distributions
from rljax.types import Box, ObsSpec, Spec

from .. import compiled

BOX = Box((2,), (-1.0, -2.0), (1.0, 6.0))  # middle (0, 2), half width (1, 4)
OPEN = Box((2,), (-np.inf, -2.0), (np.inf, np.inf))
MEAN, LOG_STD = np.float32([0.5, -0.25]), np.log(np.float32([0.4, 0.7]))


def test_gaussian_is_in_half_widths_of_the_bounds():
    d = distributions.gaussian(MEAN, LOG_STD, BOX)
    np.testing.assert_allclose(d.mean(), [0.5, 1.0], rtol=1e-6)
    np.testing.assert_allclose(d.stddev(), [0.4, 2.8], rtol=1e-6)
    edges = distributions.gaussian(jnp.array([[-1.0, -1.0], [1.0, 1.0]]), LOG_STD, BOX)
    np.testing.assert_allclose(edges.mode(), [BOX.low, BOX.high])


def test_gaussian_has_unit_one_where_a_bound_is_infinite():
    d = distributions.gaussian(MEAN, LOG_STD, OPEN)
    np.testing.assert_allclose(d.mean(), MEAN)
    np.testing.assert_allclose(d.stddev(), jnp.exp(LOG_STD), rtol=1e-6)
    assert np.isfinite(d.log_prob(jnp.array([100.0, 100.0])))


def test_gaussian_log_prob_is_that_of_independent_normals():
    x = np.array([[0.0, 0.0], [0.5, 1.0], [-3.0, 9.0]])
    z = (x - np.array([0.5, 1.0])) / np.array([0.4, 2.8])
    want = -0.5 * (z**2).sum(-1) - np.log(0.4 * 2.8 * 2 * np.pi)

    @jax.jit
    def log_prob_and_entropy(x):
        d = distributions.gaussian(np.tile(MEAN, (3, 1)), LOG_STD, BOX)
        assert d.batch_shape == (3,) and d.event_shape == (2,)
        return d.log_prob(x), d.entropy()

    log_prob, entropy = log_prob_and_entropy(x)
    np.testing.assert_allclose(log_prob, want, rtol=1e-5)
    want = np.log(0.4 * 2.8 * 2 * np.pi * np.e)
    np.testing.assert_allclose(entropy, np.full(3, want), rtol=1e-5)


def test_divergences_are_those_of_mean_and_standard_deviation_alone():
    old = distributions.gaussian(np.tile(MEAN, (3, 1)), LOG_STD, BOX)
    means = np.float32([[0.5, -0.25], [0.9, -0.25], [0.5, 1.0]])
    new = distributions.gaussian(means, LOG_STD - np.float32(0.1), BOX)
    divergences = jax.jit(distributions.divergences)
    apart, squeezed = divergences(old, new)
    want = [0.0, 0.5 * (0.4 / 0.4) ** 2, 0.5 * (1.25 / 0.7) ** 2]  # in half widths
    np.testing.assert_allclose(apart, want, rtol=1e-5, atol=1e-6)
    want = 2 * 0.5 * (np.exp(0.2) - 1 - 0.2)  # the same in both dimensions
    np.testing.assert_allclose(squeezed, np.full(3, want), rtol=1e-4)
    coins = (distrax.Categorical(probs=np.array([p, 1 - p])) for p in (0.5, 0.25))
    (kl,) = divergences(*coins)
    np.testing.assert_allclose(kl, 0.5 * np.log(2) + 0.5 * np.log(2 / 3), rtol=1e-5)


@jax.jit
def tanh_log_prob(mean, log_std, x):
    return distributions.tanh_gaussian(mean, log_std, BOX).log_prob(x)


def test_tanh_gaussian_density_integrates_to_one():
    centres = (np.arange(400) + 0.5) / 400 * 2 - 1
    x, y = np.meshgrid(centres, 2 + 4 * centres, indexing="ij")
    density = np.exp(tanh_log_prob(MEAN, LOG_STD, np.stack([x.ravel(), y.ravel()], -1)))
    np.testing.assert_allclose(density.mean() * 2 * 8, 1.0, atol=1e-3)


def test_tanh_gaussian_log_prob_is_a_change_of_variables():
    u = np.array([[0.1, -0.3], [2.0, -1.0], [-1.5, 0.5]])  # before the tanh
    std = np.exp(LOG_STD)
    normal = -0.5 * ((u - MEAN) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    jacobian = np.log(np.array([1.0, 4.0]) * (1 - np.tanh(u) ** 2))
    x = np.array([0.0, 2.0]) + np.array([1.0, 4.0]) * np.tanh(u)
    want = (normal - jacobian).sum(-1)
    got = tanh_log_prob(MEAN, LOG_STD, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bound", [np.inf, 1e30, float(np.finfo(np.float32).max)])
def test_a_bound_of_no_account_is_none(bound):
    """In one dimension of two: its unit is 1, and nothing overflows."""
    box = Box((2,), (-bound, -2.0), (bound, 6.0))
    middle, half = distributions.middle_and_half(box)
    np.testing.assert_array_equal((middle, half), [[0.0, 2.0], [1.0, 4.0]])
    spec = Spec(ObsSpec.array((1,)), box)
    with pytest.raises(ValueError, match="agent needs finite bounds of actions"):
        distributions.check_bounded("agent", spec)


@pytest.mark.parametrize("mean", [0.0, 2.0, 8.0, 10.0, -10.0])
def test_log_prob_of_saturated_actions_is_finite(mean):
    """Of samples, of the bounds, and one number inside; right to a bounded error."""
    unit = Box((2,), (-1.0, 0.0), (1.0, 5.0))
    below = np.nextafter(np.float32([1.0, 5.0]), np.float32(0.0))
    edges = np.float32([[1.0, 5.0], [-1.0, 0.0], below])

    @jax.jit
    def scores(mean):
        policy = distributions.tanh_gaussian(mean, jnp.full(2, -1.0), unit)
        key = jax.random.key(0)
        actions, exact = policy.sample_and_log_prob(seed=key, sample_shape=500)

        def total(mean, actions):
            density = distributions.tanh_gaussian(mean, jnp.full(2, -1.0), unit)
            return density.log_prob(actions).sum()

        both = jnp.concatenate([actions, edges])
        return policy.log_prob(both), exact, jax.grad(total, (0, 1))(mean, both)

    found, exact, slopes = jax.device_get(scores(jnp.full(2, mean)))
    assert np.isfinite(found).all()
    assert all(np.isfinite(slope).all() for slope in slopes)
    bound = 2e-3 if abs(mean) <= 2 else 10.0  # at the bounds the action tells little
    np.testing.assert_allclose(found[:500], exact, atol=bound)


def test_tanh_gaussian_samples_stay_inside_and_carry_their_log_prob():
    wide = np.full((500, 2), np.log(3.0), np.float32)

    @jax.jit
    def draw(key):
        d = distributions.tanh_gaussian(np.zeros((500, 2), np.float32), wide, BOX)
        return d.sample_and_log_prob(seed=key)

    x, log_prob = (np.array(x) for x in draw(jax.random.key(0)))
    assert x.shape == (500, 2) and log_prob.shape == (500,)
    assert (x >= np.float32(BOX.low)).all() and (x <= np.float32(BOX.high)).all()
    assert np.isfinite(log_prob).all()


def test_tanh_gaussian_gradients_reach_mean_and_std():
    x = np.float32([0.9, -1.9])
    grads = jax.jit(jax.grad(tanh_log_prob, (0, 1)))(MEAN, LOG_STD, x)
    assert all(np.isfinite(g).all() and np.all(g) for g in grads)


def test_sample_follows_the_categorical():
    logits = np.log(np.float32([0.5, 0.3, 0.15, 0.05]))
    d = distrax.Categorical(np.tile(logits, (20_000, 1)))
    action = jax.jit(distributions.sample)(d, jax.random.key(0))
    assert (action.shape, action.dtype) == ((20_000,), jnp.int32)
    counts = np.bincount(action, minlength=4)
    expected = 20_000 * np.exp(logits)
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # 99.9 % of 3 degrees


def test_sample_of_another_distribution_is_its_own():
    @jax.jit
    def both(key):
        d = distributions.gaussian(MEAN, LOG_STD, BOX)
        return distributions.sample(d, key), d.sample(seed=key)

    got, want = both(jax.random.key(0))
    np.testing.assert_array_equal(got, want)


Q = np.tile(np.float32([0.0, 1.0, 3.0, 2.0]), (20_000, 1))
epsilon_greedy = jax.jit(distributions.epsilon_greedy)


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_epsilon_greedy_frequencies(epsilon):
    action = np.array(epsilon_greedy(Q, epsilon, jax.random.key(0)))
    assert (action.shape, action.dtype) == ((20_000,), jnp.int32)
    frequency = np.bincount(action, minlength=4) / 20_000
    want = np.full(4, epsilon / 4) + np.array([0, 0, 1 - epsilon, 0])
    np.testing.assert_allclose(frequency, want, atol=0.015)
    assert epsilon > 0 or (action == 2).all()


def test_epsilon_greedy_probabilities_by_hand():
    q = np.float32([[0.0, 1.0, 3.0, 2.0], [5.0, 5.0, 1.0, 5.0]])
    probs = jax.jit(distributions.epsilon_greedy_probs)(q, 0.4)
    want = [[0.1, 0.1, 0.7, 0.1], [0.7, 0.1, 0.1, 0.1]]  # of equals the first
    np.testing.assert_allclose(probs, want, rtol=1e-6)


def test_epsilon_greedy_with_an_epsilon_each():
    q = np.tile(np.float32([0.0, 1.0]), (4000, 2, 1))
    epsilon = np.float32([0.0, 1.0])
    action = np.array(epsilon_greedy(q, epsilon, jax.random.key(0)))
    assert (action[:, 0] == 1).all()
    np.testing.assert_allclose(action[:, 1].mean(), 0.5, atol=0.03)


def repeat(q, epsilon, max_repeats, steps, seed=0):
    """Actions `[steps, N]` and the memory before each of them."""

    keys = jax.random.split(jax.random.key(seed), steps)
    actions, memories = repeated(q, np.float32(epsilon), keys, max_repeats)
    return np.array(actions), np.array(memories)


@functools.partial(jax.jit, static_argnums=3)
def repeated(q, epsilon, keys, max_repeats):
    def step(memory, key):
        action, after = distributions.repeated_epsilon_greedy(
            q, epsilon, memory, max_repeats=max_repeats, key=key
        )
        return after, (action, memory)

    start = jnp.zeros((len(q), 2), jnp.int32)
    return jax.lax.scan(step, start, keys)[1]


def test_repeated_epsilon_greedy_lasts_as_long_as_drawn():
    action, memory = repeat(Q, 1.0, 4, steps=2)
    # With n left at the start of step 2, n + 1 were drawn at step 1.
    counts = np.bincount(memory[1, :, 1], minlength=4)
    weights = 1 / np.arange(1, 5) ** 2
    expected = 20_000 * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # 99.9 % of 3 degrees
    going_on = memory[1, :, 1] > 0
    np.testing.assert_array_equal(action[1, going_on], action[0, going_on])
    frequency = np.bincount(action[1, ~going_on], minlength=4) / (~going_on).sum()
    np.testing.assert_allclose(frequency, np.full(4, 0.25), atol=0.015)


def test_repeated_epsilon_greedy_starts_only_where_nothing_goes_on():
    action, memory = repeat(Q[:4_000], 0.2, 30, steps=40)
    left = memory[..., 1]
    np.testing.assert_array_equal((action[1:] == action[:-1])[left[1:] > 0], True)
    np.testing.assert_array_equal(left[1:][left[:-1] > 0], left[:-1][left[:-1] > 0] - 1)
    free = left == 0
    np.testing.assert_allclose((action[free] != 2).mean(), 0.2 * 3 / 4, atol=0.01)


def test_repeated_epsilon_greedy_without_repeats_is_epsilon_greedy():
    q = Q[:4_000]
    action, memory = repeat(q, 0.4, 1, steps=5)
    assert (memory[..., 1] == 0).all()
    frequency = np.bincount(action.ravel(), minlength=4) / action.size
    np.testing.assert_allclose(frequency, [0.1, 0.1, 0.7, 0.1], atol=0.015)
    assert (repeat(q, 0.0, 30, steps=40)[0] == 2).all()


def test_products_of_categoricals_are_those_of_their_parts():
    numbers, logits = (2, 4, 3), compiled.normal(0, 2, 5, 9)
    policy, other = (
        distributions.multi_categorical(x, numbers) for x in (logits[0], logits[1])
    )
    parts, others = (
        [distrax.Categorical(part) for part in np.split(x, np.cumsum(numbers)[:-1], -1)]
        for x in logits
    )
    pairs = list(zip(parts, others, strict=True))
    actions = np.stack(
        [np.random.default_rng(1).integers(n, size=5) for n in numbers], axis=-1
    )
    of_parts = [part.log_prob(actions[:, i]) for i, part in enumerate(parts)]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    close(policy.log_prob(actions), sum(of_parts))
    close(policy.entropy(), sum(part.entropy() for part in parts))
    close(policy.kl_divergence(other), sum(p.kl_divergence(q) for p, q in pairs))
    (divergence,) = distributions.divergences(policy, other)
    close(divergence, policy.kl_divergence(other))
    close(policy.mode(), np.stack([part.mode() for part in parts], axis=-1))
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.jit(jax.vmap(functools.partial(distributions.sample, policy)))(keys)
    assert draws.dtype == np.int32 and draws.shape == (4000, 5, 3)
    for i, part in enumerate(parts):
        counts = np.stack([(draws[..., i] == k).mean(0) for k in range(numbers[i])], -1)
        np.testing.assert_allclose(counts, part.probs, atol=0.04)
