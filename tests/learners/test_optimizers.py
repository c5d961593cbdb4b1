"""Which optimisers have a derivative where a gradient is 0, and ours, which have."""

import functools
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax.learners import optimizers

DOCUMENT = Path(__file__).parents[2] / "docs" / "meta-safe-optimizers.md"


def before_sgd(transform):
    return optax.chain(transform, optax.sgd(0.1))


NAMED = {
    "sgd": optax.sgd(0.1),
    "sgd, momentum": optax.sgd(0.1, momentum=0.9),
    "sgd, nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop(0.1),
    "rmsprop, eps_in_sqrt=False": optax.rmsprop(0.1, eps_in_sqrt=False),
    "rmsprop, centered": optax.rmsprop(0.1, centered=True),
    "adam": optax.adam(0.1),
    "adam, eps_root=1e-8": optax.adam(0.1, eps_root=1e-8),
    "adamw": optax.adamw(0.1),
    "nadam": optax.nadam(0.1),
    "radam": optax.radam(0.1),
    "amsgrad": optax.amsgrad(0.1),
    "adamax": optax.adamax(0.1),
    "adabelief": optax.adabelief(0.1),
    "adagrad": optax.adagrad(0.1),
    "adadelta": optax.adadelta(0.1),
    "yogi": optax.yogi(0.1),
    "novograd": optax.novograd(0.1),
    "lamb": optax.lamb(0.1),
    "lars": optax.lars(0.1),
    "lion": optax.lion(0.1),
    "sign_sgd": optax.sign_sgd(0.1),
    "clip": before_sgd(optax.clip(1.0)),
    "clip_by_global_norm": before_sgd(optax.clip_by_global_norm(1.0)),
    "clip_by_block_rms": before_sgd(optax.clip_by_block_rms(1.0)),
    "adaptive_grad_clip": before_sgd(optax.adaptive_grad_clip(0.1)),
    "normalize_by_update_norm": before_sgd(optax.normalize_by_update_norm()),
    "add_decayed_weights": before_sgd(optax.add_decayed_weights(0.1)),
    "ema": before_sgd(optax.ema(0.9)),
    "centralize": before_sgd(optax.centralize()),
    "scale_by_schedule": optax.sgd(optax.linear_schedule(0.2, 0.1, 3)),
    "inject_hyperparams(sgd)": optax.inject_hyperparams(optax.sgd)(0.1),
    "inject_hyperparams(adam)": optax.inject_hyperparams(optax.adam)(0.1),
    "`rljax.learners.optimizers.adam`": optimizers.adam(0.1),
    "`rljax.learners.optimizers.clip_by_global_norm`": before_sgd(
        optimizers.clip_by_global_norm(1.0)
    ),
}


def documented():
    """The document's table, by name: four cells."""
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[1:]]
    return {name: rest for name, *rest in cells}


def learn(optimizer, first, eta):
    """Three steps; `unseen` have the gradient 0, since their input is.

    `first` scales the first loss: with 0 all its gradients are 0.
    """
    params = {
        "seen": jnp.array([[0.3, -0.8], [0.5, 0.1]]),
        "unseen": jnp.array([0.2, 0.4]),
    }
    target, state = jnp.array([[1.0, 2.0], [-1.0, 0.5]]), optimizer.init(params)

    def step(carry, scale):
        params, state = carry

        def loss(params):
            seen = params["seen"]
            behind_zero = params["unseen"] * jnp.zeros(2) * seen[0]
            error = 0.5 * jnp.sum((seen - eta * target) ** 2) + behind_zero.sum()
            return error * scale

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    scales = jnp.array([first, 1.0, 1.0])
    (params, _), _ = jax.lax.scan(step, (params, state), scales)
    weights = jnp.array([[1.0, 0.3], [0.2, 0.7]])
    score = jnp.sum(weights * jnp.sin(params["seen"]))
    return score + jnp.sum(params["unseen"] ** 2)


def gradients(optimizer):
    """For both sizes of the first loss, 1 and 0: both modes, finite differences."""

    @jax.jit
    def all_three(etas, firsts):
        fn = functools.partial(learn, optimizer)
        around = jax.vmap(jax.value_and_grad(fn, 1), (None, 0))
        values, reverse = jax.vmap(around, (0, None))(firsts, etas)
        forward = jax.vmap(jax.jacfwd(fn, 1), (0, None))(firsts, etas[0])
        return reverse[:, 0], forward, (values[:, 1] - values[:, 2]) / 2e-6

    etas = 1.3 + np.array([0.0, 1e-6, -1e-6])
    return jax.device_get(all_three(etas, np.array([1.0, 0.0])))


def in_words(gradient, differences):
    if np.isnan(gradient):
        return "NaN"
    if not np.isclose(gradient, differences, 1e-4, 1e-7):
        return "wrong"
    return "yes" if gradient != 0 else "yes, 0"


def test_every_optimiser_is_documented():
    assert list(documented()) == list(NAMED)


EVERY_ANSWER = (  # one for each kind of derivative, and all of this package
    "sgd",
    "rmsprop",
    "adam",
    "adam, eps_root=1e-8",
    "lars",
    "sign_sgd",
    "clip_by_global_norm",
    "normalize_by_update_norm",
    "inject_hyperparams(adam)",
    "`rljax.learners.optimizers.adam`",
    "`rljax.learners.optimizers.clip_by_global_norm`",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in EVERY_ANSWER else pytest.mark.slow)
        for name in NAMED
    ],
)
@pytest.mark.filterwarnings("ignore")  # of optax, which casts to float64 as it can
def test_derivatives_are_as_documented(name, x64):
    """The slow ones are optax's other optimisers."""
    found = []
    for reverse, forward, differences in zip(*gradients(NAMED[name]), strict=True):
        assert np.isfinite(differences)
        found += [in_words(g, differences) for g in (reverse, forward)]
    assert found == documented()[name]


@pytest.mark.parametrize(
    "optimizer, gradient",
    [
        (optax.sgd(0.1), -0.74504),
        (optax.rmsprop(0.1), -0.0760),
        (optax.adam(0.1, eps_root=1e-8), -4.2e-4),
        (optimizers.adam(0.1), -4.2e-4),
        (before_sgd(optimizers.clip_by_global_norm(100.0)), -0.74504),
        (before_sgd(optimizers.clip_by_global_norm(0.5)), 0.0),
    ],
)
def test_two_weights_of_which_one_is_unseen(optimizer, gradient, x64):
    """experiments.md A3: a stopped bootstrap, so not that of the differences."""

    def outer(gamma):
        params = jnp.array([0.5, 1.0])
        state = optimizer.init(params)
        for _ in range(2):

            def loss(params):
                v = params @ jnp.array([1.0, 0.0])
                return 0.5 * (1 + 2 * gamma * jax.lax.stop_gradient(v) - v) ** 2

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = params + updates
        return (params[0] - 2.5) ** 2

    both = jax.jit(lambda x: (jax.grad(outer)(x), jax.jacfwd(outer)(x)))(0.9)
    np.testing.assert_allclose(both, gradient, rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer, seen, unseen",
    [
        (optax.sgd(0.1), -0.9, -0.18),
        (optimizers.adam(0.1), 0.0, 0.0),
    ],
)
def test_a_scale_of_the_loss(optimizer, seen, unseen, x64):
    """experiments.md A3: Adam's first step ignores it."""

    def outer(scale, active):
        start = jnp.array([1.0, 2.0])
        gradient = scale * active * 2 * (start - jnp.array([0.5, 1.0]))
        updates, _ = optimizer.update(gradient, optimizer.init(start), start)
        return jnp.sum((start + updates) ** 2)

    gradient = jax.jit(jax.grad(outer))
    np.testing.assert_allclose(gradient(1.0, jnp.ones(2)), seen, atol=1e-7)
    active = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(gradient(1.0, active), unseen, atol=1e-7)


@pytest.mark.parametrize("differentiate", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize(
    "optimizer, slope",
    [
        (optimizers.adam(0.1), -0.1 / 1e-8),
        (before_sgd(optimizers.clip_by_global_norm(1.0)), -0.1),
    ],
)
def test_a_gradient_that_leaves_zero_moves_the_step(optimizer, slope, differentiate):
    """Exactly, in a scan under vmap."""
    direction = jnp.array([1.0, -2.0, 0.0])

    def after(eta):
        def step(state, _):
            updates, state = optimizer.update(eta * direction, state)
            return state, updates

        return jax.lax.scan(step, optimizer.init(direction), length=2)[1].sum(0)

    slopes = jax.jit(jax.vmap(differentiate(after)))(jnp.zeros(2))
    np.testing.assert_allclose(slopes, np.tile(2 * slope * direction, (2, 1)), 1e-5)


def trees(seed):
    """Random, with zeros, and once all zero."""
    rng = np.random.default_rng(seed)
    x = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5) * [1, 0, 1, 0, 1]}
    return jax.tree.map(lambda x: jnp.array(x * (seed != 2), jnp.float32), x)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optimizers.scale_by_adam(), optax.scale_by_adam()),
        (
            optimizers.scale_by_adam(0.5, 0.9, 1e-3),
            optax.scale_by_adam(0.5, 0.9, 1e-3),
        ),
        (optimizers.clip_by_global_norm(2.5), optax.clip_by_global_norm(2.5)),
        (optimizers.adam(0.1), optax.adam(0.1)),
    ],
)
def test_values_are_those_of_optax_bit_for_bit(ours, theirs):
    state, other = ours.init(trees(0)), theirs.init(trees(0))
    step, other_step = jax.jit(ours.update), jax.jit(theirs.update)
    for seed in range(5):
        updates, state = step(trees(seed), state)
        others, other = other_step(trees(seed), other)
        chex.assert_trees_all_equal(updates, others)


def test_clipping_counts_what_it_cuts():
    """A norm that is exactly the limit is cut too, to itself."""
    clip = optimizers.clip_by_global_norm(1.0)
    state, update = clip.init(np.ones(2)), jax.jit(clip.update)
    for size, counts in (
        (0.5, (1, 0)),
        (3.0, (2, 1)),
        (0.0, (3, 1)),
        (1.5, (4, 2)),
        (1.0, (5, 3)),
        (0.7, (6, 3)),
    ):
        _, state = update(np.array([size, 0.0], np.float32), state)
        assert state == counts


def test_the_limit_has_a_derivative():
    def clipped(limit, x):
        clip = optimizers.clip_by_global_norm(limit)
        return clip.update(x, clip.init(x))[0] @ jnp.array([1.0, 2.0])

    x = np.array([3.0, 4.0], np.float32)
    for differentiate in (jax.grad, jax.jacfwd):
        slope = jax.jit(differentiate(clipped))
        np.testing.assert_allclose(slope(1.0, x), 11 / 5, rtol=1e-6)
        assert slope(9.0, x) == 0
        assert slope(1.0, 0 * x) == 0


def test_second_derivatives_at_zero_are_finite():
    def after(x):
        adam = optimizers.adam(0.5)
        return adam.update(x, adam.init(x))[0] * x

    def orders(x):
        return after(x), jax.grad(after)(x), jax.grad(jax.grad(after))(x)

    assert np.isfinite(jax.jit(orders)(0.0)).all()


def test_an_annealed_rate_stays_0_after_the_last_step():
    """More steps than planned are taken where rollouts do not divide them."""
    config = SimpleNamespace(total_steps=200, num_envs=5, rollout_length=2, anneal=True)
    for step, progress, rate in ((0, 0.0, 0.3), (5, 0.25, 0.225), (26, 1.0, 0.0)):
        found = optimizers.progress(config, np.int32(step))
        np.testing.assert_allclose(found, progress, rtol=1e-6)
        np.testing.assert_allclose(
            optimizers.annealed(config, found, 0.3), rate, rtol=1e-6
        )


@pytest.mark.parametrize("total_steps", [1_000, 3_000_000_000, 10**10, 10**15])
def test_progress_is_a_share_also_beyond_int32(total_steps):
    """Of rollouts, of 64 steps each; exploration takes a fifth of it."""
    config = SimpleNamespace(
        total_steps=total_steps, num_envs=4, rollout_length=16, exploration_fraction=0.2
    )
    steps = np.array([-5, 0, 1, 3, 10, 10**6, 2**31 - 1], np.int32)
    want = np.clip(steps * 64.0 / total_steps, 0.0, 1.0)
    shares = jax.jit(lambda step: optimizers.progress(config, step))(steps)
    np.testing.assert_allclose(shares, want, rtol=1e-6)
    assert shares.max() <= 1.0 and shares.dtype == np.float32
    explore = jax.jit(
        lambda step: optimizers.exploration(config, step, start=1.0, end=0.02)
    )
    explored, share = explore(steps), np.minimum(5.0 * want, 1.0)
    np.testing.assert_allclose(explored, 1.0 - 0.98 * share, rtol=1e-5)
    assert explored.min() >= np.float32(0.02)  # rounding alone leads below
