"""PQN: lambda returns by hand, the loss, what its targets depend on."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents, envs
from rljax.learners import fresh_q_learner

from .. import compiled
from ..agent_case import N, T, parameters

only_pqn = pytest.mark.parametrize("case", ["pqn"], indirect=True)
GAMMA, LAMBDA = 0.9, 0.8


@pytest.fixture(scope="module")
def targets(case):
    return jax.jit(functools.partial(case.module.targets, case.spec))


@pytest.fixture(scope="module")
def gradient(case):
    """The loss of a batch, the metrics and the gradient."""
    loss = functools.partial(case.module.loss, case.spec)
    return jax.jit(jax.value_and_grad(loss, 1, has_aux=True))


def batch_of(case, rollout, target):
    obs, action = np.reshape(rollout.obs, (T * N, -1)), np.ravel(rollout.action)
    return case.module.Targets(obs=obs, action=action, target=np.ravel(target))


@only_pqn
def test_pqn_targets_by_hand(case, targets, state, rollout):
    config = dataclasses.replace(case.config, gamma=GAMMA, lambda_=LAMBDA)
    net = fresh_q_learner.network(case.spec, config)
    v_t = np.array(compiled.apply(net, state.params, rollout.next_obs)).max(axis=-1)
    assert v_t.shape == (T, N)
    want = np.zeros((T + 1, N))
    want[T] = v_t[-1]
    for t in reversed(range(T)):
        for n in range(N):
            terminated, truncated = rollout.terminated[t, n], rollout.truncated[t, n]
            mixed = v_t[t, n]
            if not (terminated or truncated):
                mixed = (1 - LAMBDA) * v_t[t, n] + LAMBDA * want[t + 1, n]
            bootstrap = 0.0 if terminated else GAMMA * mixed
            want[t, n] = rollout.reward[t, n] + bootstrap
    got = targets(config, state.params, rollout)
    np.testing.assert_allclose(got, want[:T], rtol=1e-4, atol=1e-5)


@only_pqn
def test_pqn_targets_are_differentiable(case, targets, state, rollout):
    """In gamma, lambda and the parameters they bootstrap from."""

    def total(config, params):
        return case.module.targets(case.spec, config, params, rollout).sum()

    config = dataclasses.replace(case.config, gamma=GAMMA, lambda_=LAMBDA)
    by_config, by_params = jax.jit(jax.grad(total, (0, 1)))(config, state.params)
    for name in ("gamma", "lambda_"):
        value, step = getattr(config, name), 1e-2
        above, below = (
            np.array(
                targets(dataclasses.replace(config, **{name: x}), state.params, rollout)
            )
            for x in (value + step, value - step)
        )
        want = (above - below).sum() / (2 * step)
        np.testing.assert_allclose(getattr(by_config, name), want, rtol=2e-3)
    assert compiled.all_nonzero(by_params)


@only_pqn
def test_pqn_loss_by_hand(case, gradient, state, rollout):
    net = fresh_q_learner.network(case.spec, case.config)
    batch = batch_of(case, rollout, compiled.normal(0, T, N))
    q = np.array(compiled.apply(net, state.params, rollout.obs)).reshape(T * N, -1)
    want = 0.5 * ((q[np.arange(T * N), batch.action] - batch.target) ** 2).mean()
    (loss, metrics), _ = gradient(case.config, state.params, batch)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)


@only_pqn
def test_pqn_update_is_the_semi_gradient_step(case, targets, gradient, state, rollout):
    """One epoch, one minibatch: Adam's first step, whose moments are the gradient's."""
    config = dataclasses.replace(
        case.config, num_epochs=1, num_minibatches=1, max_grad_norm=1e9
    )
    new, _ = jax.jit(case.agent.update)(config, state, rollout, jax.random.key(0))
    target = targets(case.config, state.params, rollout)
    batch = batch_of(case, rollout, target)
    _, grads = gradient(case.config, state.params, batch)
    mean = np.array(new.opt_state[1].mu) / 0.1
    want, _ = ravel_pytree(jax.tree.map(np.array, grads))
    np.testing.assert_allclose(mean, want, rtol=1e-3, atol=1e-4)


@only_pqn
def test_pqn_learns_from_each_transition_once_an_epoch(
    case, targets, gradient, update, state, rollout
):
    """The rewards far above the values: the loss's mean is the rollout's own."""
    config = dataclasses.replace(case.config, learning_rate=1e-9)
    _, metrics = update(config, state, rollout, jax.random.key(0))
    target = targets(config, state.params, rollout)
    (want, _), _ = gradient(config, state.params, batch_of(case, rollout, target))
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-4)


@only_pqn
def test_pqn_learning_rate_falls_to_zero(case, update, state, rollout):
    end = state._replace(step=jnp.int32(case.config.total_steps // (T * N)))
    new, _ = update(case.config, end, rollout, jax.random.key(0))
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    assert new.step == end.step + 1


@only_pqn
def test_pqn_explores_less_and_less(case, state):
    changes = dict(epsilon_start=0.8, epsilon_end=0.2, total_steps=40 * T * N)
    config = dataclasses.replace(case.config, **changes)
    obs = np.tile(np.float32([1, 0, 0, 0]), (20_000, 1))
    act = jax.jit(case.agent.act, static_argnums=5)
    net = fresh_q_learner.network(case.spec, config)
    greedy = np.array(compiled.apply(net, state.params, obs[0])).argmax()
    end = int(config.exploration_fraction * 40)
    for step, epsilon in ((0, 0.8), (end // 2, 0.5), (end, 0.2), (2 * end, 0.2)):
        now = state._replace(step=jnp.int32(step))
        action, *_ = act(config, now, (), obs, jax.random.key(step), True)
        explored = 2 * (np.array(action) != greedy).mean()  # of two actions
        np.testing.assert_allclose(explored, epsilon, atol=0.03)


def test_pqn_needs_discrete_actions():
    with pytest.raises(ValueError, match="pqn needs discrete actions, not Box"):
        agents.get("pqn").make(envs.make("Pendulum-v1").spec)
