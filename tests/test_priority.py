"""Which transitions are learned from: unbiased gradients, priorities by hand."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, autodiff, envs, priority, replay
from rljax.types import Discrete, Rollout, Spec

ROWS, N = 16, 4


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
    keeps = priority.keeps_priorities(config)
    spec = Spec((3,), "float32", Discrete(2), max_steps=100)
    rng = np.random.default_rng(0)
    obs = jnp.array(rng.normal(size=(ROWS, N, 3)) * rng.exponential(size=(ROWS, N, 1)))
    flags = jnp.zeros((ROWS, N), bool)
    reward = jnp.array(rng.normal(size=(ROWS, N)))
    args = (obs, flags.astype(int), reward, flags, flags, obs)
    rollout = Rollout(*args, extras=(), memory=())
    buffer = replay.add(replay.init(spec, N, ROWS * N, keeps), rollout)
    return config, buffer


def all_gradients(buffer, w):
    windows = replay.windows(buffer, jnp.arange(ROWS * N))
    return jax.vmap(jax.grad(lambda w, x: loss(w, x)[0]), (None, 0))(w, windows)


@pytest.mark.parametrize("sampler", ["replay", "large_batch"])
@pytest.mark.parametrize("kind", ["uniform", "td_error", "grad_norm"])
def test_the_weighted_gradient_is_unbiased_at_the_end(kind, sampler):
    if (kind, sampler) == ("uniform", "large_batch"):
        pytest.skip("refused")
    config, buffer = filled(kind, sampler)
    w = jnp.array([0.5, -1.0, 0.25])
    grads = all_gradients(buffer, w)
    if buffer.tree is not None:
        norms = jnp.linalg.norm(grads, axis=1)
        buffer = replay.update_priorities(buffer, jnp.arange(ROWS * N), norms + 0.01)

    def estimate(key):
        batch = priority.sample(config, buffer, key, jnp.ones(()), loss, w)
        scale = 1.0
        if buffer.tree is not None:  # undo the division by the greatest weight
            share = replay.sum_tree.values(buffer.tree, batch.index[0])
            share = share / replay.sum_tree.total(buffer.tree)
            scale = 1 / (ROWS * N * share * batch.weights[0])
        return scale * priority.gradient(config, loss, w, batch).mean

    found = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 4000))
    spread = found.std(axis=0) / np.sqrt(len(found))
    assert (jnp.abs(found.mean(axis=0) - grads.mean(axis=0)) < 4 * spread).all()


@pytest.mark.parametrize("kind", ["td_error", "grad_norm"])
def test_priorities_by_hand(kind):
    config, buffer = filled(kind)
    config.priority_exponent, w = 0.6, jnp.array([0.5, -1.0, 0.25])
    batch = priority.sample(config, buffer, jax.random.key(0), jnp.zeros(()), loss, w)
    found = priority.gradient(config, loss, w, batch)
    if kind == "grad_norm":
        scores = jnp.linalg.norm(all_gradients(buffer, w)[batch.index], axis=1)
    else:
        scores = jax.vmap(lambda x: loss(w, x)[1])(batch.windows)
    np.testing.assert_allclose(found.priorities, scores**0.6, rtol=1e-4)
    stored = priority.store(buffer, batch, found.priorities)
    kept = replay.sum_tree.values(stored.tree, batch.index)
    np.testing.assert_allclose(kept, found.priorities, rtol=1e-5)


def test_n_step_return_by_hand():
    window = replay.Windows(
        *(None, None, jnp.array([1.0, 2.0, 0.0]), jnp.int32(2), jnp.bool(False), None)
    )
    found = priority.n_step_return(window, 0.5)
    np.testing.assert_allclose(found, (2.0, 0.25))
    ended = window._replace(terminated=jnp.bool(True))
    assert priority.n_step_return(ended, 0.5)[1] == 0.0
    slope = jax.grad(lambda g: sum(priority.n_step_return(window, g)))(0.5)
    np.testing.assert_allclose(slope, 2.0 + 2 * 0.5)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("c51", "loss"),
        ("iqn", "quantile_loss"),
        ("qrdqn", "loss"),
        ("rainbow", "cross_entropy"),
    ],
)
def test_norms_of_agents_losses_are_exact(name, loss):
    """By the layers' inputs and output gradients, noisy weights included."""
    module, spec = agents.get(name), envs.make("CartPole-v1").spec
    config = module.Config(hidden_sizes=(8,), priority="grad_norm")
    if hasattr(config, "noisy"):
        config = dataclasses.replace(config, noisy=True)
    init = jax.jit(lambda key: module.make(spec).init(config, key).params)
    params, bootstrap_params = init(jax.random.key(0)), init(jax.random.key(1))
    num, steps = 12, config.n_step
    obs, next_obs = jax.random.normal(jax.random.key(2), (2, num, 4))
    windows = replay.Windows(
        obs=obs,
        action=jnp.arange(num) % 2,
        reward=jax.random.normal(jax.random.key(4), (num, steps)),
        num_steps=jnp.full(num, steps),
        terminated=jnp.arange(num) % 3 == 0,
        next_obs=next_obs,
    )

    def loss_of(params, window):
        fn = functools.partial(getattr(module, loss), spec, config, params)
        return jax.tree.leaves(fn(bootstrap_params, window, jax.random.key(3)))[0]

    norms = functools.partial(autodiff.per_transition_grad_norms, loss_of)
    exact, factored = (
        jax.jit(functools.partial(norms, method=method))(params, windows)
        for method in ("vmap", "factored")
    )
    np.testing.assert_allclose(factored, exact, rtol=1e-4)
    assert len(np.unique(exact)) == num
