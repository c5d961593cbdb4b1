"""Which transitions are learned from: unbiased gradients, priorities by hand."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, autodiff, envs, replay
from rljax.learners import q_learner
from rljax.replay import priority
from rljax.types import Discrete, ObsSpec, Rollout, Spec

from .. import compiled

ROWS, N = 16, 4
update_priorities = jax.jit(replay.update_priorities)


def loss(w, window):
    """Half the squared error of a linear value; the error's size beside it."""
    error = window.reward[0] - window.obs @ w
    return 0.5 * error**2, jnp.abs(error)


def filled(kind, sampler="replay"):
    config = SimpleNamespace(
        priority=kind,
        sampler=sampler,
        batch_size=16,
        n_step=1,
        large_batch_factor=2,
        priority_exponent=1.0,
        importance_exponent=0.4,
    )
    return config, stored(priority.keeps_priorities(config))


@functools.cache
def stored(keeps):
    spec = Spec(ObsSpec.array((3,)), Discrete(2), max_steps=100)
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(ROWS, N, 3)) * rng.exponential(size=(ROWS, N, 1))
    flags = np.zeros((ROWS, N), bool)
    reward = rng.normal(size=(ROWS, N))
    args = (obs, flags.astype(int), reward, flags, flags, obs)
    rollout = Rollout(*args, extras=(), memory=())
    add = jax.jit(
        lambda x: replay.add(replay.init(spec, N, ROWS * N, prioritized=keeps), x)
    )
    return add(rollout)


W = np.float32([0.5, -1.0, 0.25])


@jax.jit
def all_gradients(buffer, w):
    windows = replay.windows(buffer, jnp.arange(ROWS * N))
    return jax.vmap(jax.grad(lambda w, x: loss(w, x)[0]), (None, 0))(w, windows)


@pytest.mark.parametrize("sampler", ["replay", "large_batch"])
@pytest.mark.parametrize("kind", ["uniform", "td_error", "grad_norm"])
def test_the_weighted_gradient_is_unbiased_at_the_end(kind, sampler):
    if (kind, sampler) == ("uniform", "large_batch"):
        pytest.skip("refused")
    config, buffer = filled(kind, sampler)
    grads = np.array(all_gradients(buffer, W))
    if buffer.tree is not None:
        norms = np.linalg.norm(grads, axis=1) + np.float32(0.01)
        buffer = update_priorities(buffer, np.arange(ROWS * N), norms)

    def estimate(key):
        batch = priority.sample(
            config, buffer, key, progress=jnp.ones(()), loss=loss, params=W
        )
        scale = 1.0
        if buffer.tree is not None:  # undo the division by the greatest weight
            share = replay.sum_tree.values(buffer.tree, batch.index[0])
            share = share / replay.sum_tree.total(buffer.tree)
            scale = 1 / (ROWS * N * share * batch.weights[0])
        return scale * priority.gradient(config, loss, W, batch=batch).mean

    found = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 4000))
    found = np.array(found)
    spread = found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - grads.mean(axis=0)) < 4 * spread).all()


@pytest.mark.parametrize("kind", ["td_error", "grad_norm"])
def test_priorities_by_hand(kind):
    config, buffer = filled(kind)
    config.priority_exponent = 0.6

    @jax.jit
    def updated(key):
        batch = priority.sample(
            config, buffer, key, progress=jnp.zeros(()), loss=loss, params=W
        )
        found = priority.gradient(config, loss, W, batch=batch).priorities
        tree = priority.store(buffer, batch, found).tree
        return batch, found, replay.sum_tree.values(tree, batch.index)

    batch, found, kept = jax.tree.map(np.array, updated(jax.random.key(0)))
    if kind == "grad_norm":
        scores = np.linalg.norm(all_gradients(buffer, W), axis=1)[batch.index]
    else:
        scores = np.abs(batch.examples.reward[:, 0] - batch.examples.obs @ W)
    np.testing.assert_allclose(found, scores**0.6, rtol=1e-4)
    np.testing.assert_allclose(kept, found, rtol=1e-5)


def test_importance_weights_by_hand():
    """The exponent grows from 0.4 to 1 as training goes on, and stays there."""
    config, buffer = filled("td_error")
    priorities = np.linspace(0.5, 4.0, ROWS * N, dtype=np.float32)
    buffer = update_priorities(buffer, np.arange(ROWS * N), priorities)

    @jax.jit
    def sample(progress):
        key = jax.random.key(0)
        return priority.sample(
            config, buffer, key, progress=progress, loss=loss, params=W
        )

    for progress, beta in ((0.0, 0.4), (0.5, 0.7), (1.0, 1.0), (1.2, 1.0)):
        batch = jax.tree.map(np.array, sample(np.float32(progress)))
        share = priorities[batch.index] / priorities.sum()
        want = (ROWS * N * share) ** -beta
        np.testing.assert_allclose(batch.weights, want / want.max(), rtol=1e-4)


def test_weights_and_priorities_are_constants():
    """Of scores, which depend on the parameters, no gradient comes."""
    large, kept = (filled("td_error", name) for name in ("large_batch", "replay"))

    @jax.jit
    def total(w):
        large_key, key = jax.random.split(jax.random.key(0))
        batch = priority.sample(
            *large, large_key, progress=jnp.zeros(()), loss=loss, params=w
        )
        weights = jnp.sum(batch.weights**2)
        config, buffer = kept
        batch = priority.sample(
            config, buffer, key, progress=jnp.zeros(()), loss=loss, params=w
        )
        found = priority.gradient(config, loss, w, batch=batch).priorities
        return jnp.stack([weights, jnp.sum(found)])

    slopes = jax.jit(jax.jacobian(total))(W)
    np.testing.assert_array_equal(slopes, np.zeros((2, 3)))
    one, other = total(W), total(2 * W)
    assert (np.array(one) != np.array(other)).all()


def test_n_step_return_by_hand():
    window = replay.Windows(
        *(None, None, np.float32([1, 2, 0]), np.int32(2), np.bool(False), None)
    )
    n_step_return = jax.jit(priority.n_step_return)
    found = n_step_return(window, 0.5)
    np.testing.assert_allclose(found, (2.0, 0.25))
    ended = window._replace(terminated=np.bool(True))
    assert n_step_return(ended, 0.5)[1] == 0.0
    slope = jax.jit(jax.grad(lambda g: sum(priority.n_step_return(window, g))))(0.5)
    np.testing.assert_allclose(slope, 2.0 + 2 * 0.5)


HEADS = [name for name in agents.names() if hasattr(agents.get(name), "HEAD")]


@pytest.mark.parametrize("name", HEADS)
def test_norms_of_agents_losses_are_exact(name):
    """By the layers' inputs and output gradients, noisy weights included."""
    module, spec = agents.get(name), envs.make("CartPole-v1").spec
    config = module.Config(hidden_sizes=(8,), priority="grad_norm")
    if hasattr(config, "noisy"):
        config = dataclasses.replace(config, noisy=True)
    init = jax.jit(lambda key: module.make(spec).init(config, key).params)
    params, bootstrap_params = init(jax.random.key(0)), init(jax.random.key(1))
    num, steps = 12, config.n_step
    obs, next_obs = compiled.normal(2, 2, num, 4)
    windows = replay.Windows(
        obs=obs,
        action=np.arange(num) % 2,
        reward=compiled.normal(4, num, steps),
        num_steps=np.full(num, steps),
        terminated=np.arange(num) % 3 == 0,
        next_obs=next_obs,
    )

    def loss_of(params, window):
        loss = q_learner.transition_loss(module.HEAD, spec, config)
        return loss(params, bootstrap_params, window, jax.random.key(3))[0]

    norms = functools.partial(autodiff.per_transition_grad_norms, loss_of)

    @jax.jit
    def both(params, windows):
        return [norms(params, windows, method=name) for name in ("vmap", "factored")]

    exact, factored = (np.array(x) for x in both(params, windows))
    np.testing.assert_allclose(factored, exact, rtol=1e-4)
    assert len(np.unique(exact)) == num


def test_a_large_batch_uses_each_key_once(strict_keys):
    config, buffer = filled("td_error", "large_batch")

    def sample(buffer, key):
        return priority.sample(
            config, buffer, key, progress=jnp.zeros(()), loss=loss, params=W
        )

    batch = jax.jit(sample)(buffer, jax.random.key(0))
    assert len(np.unique(batch.index)) > config.batch_size / 2
