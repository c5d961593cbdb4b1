"""Steps by a rule of one's own: rows of a trajectory, and exact meta-gradients."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rljax.learners import by_rule
from rljax.meta.rules import Rule, successors
from rljax.running import parallel
from rljax.types import Rollout

T, B = 5, 2


def rollout_of(terminated=(), truncated=()):
    """Observations count from 0, successors from 100; ends are `(t, b)`."""
    rng = np.random.default_rng(0)
    step = np.arange(T * B).reshape(T, B)
    ends = np.zeros((2, T, B), bool)
    for kind, places in zip(ends, (terminated, truncated), strict=True):
        for place in places:
            kind[place] = True
    return Rollout(
        obs=1.0 * step[..., None],
        action=rng.integers(2, size=(T, B)),
        reward=rng.normal(size=(T, B)),
        terminated=ends[0],
        truncated=ends[1],
        next_obs=100.0 + step[..., None],
        extras=rng.normal(size=(T, B, 2)),
        memory=(),
    )


def test_rows_hold_what_each_step_led_to():
    """Time limits after steps 1 and 3 of the second, and an end beside the last."""
    rollout = rollout_of(terminated=[(2, 0), (4, 0)], truncated=[(1, 1), (3, 1)])
    obs, following, lost = by_rule.rows(rollout, max_steps=2)
    assert obs.shape == (T + 1 + 3, B, 1) and not lost.any()
    np.testing.assert_array_equal(obs[:T], rollout.obs)
    led_to = obs[following, np.arange(B)][..., 0]
    # After the last step that terminated its own observation stands for a start.
    assert led_to[:, 0].tolist() == [2, 4, 6, 8, 8]
    assert led_to[:, 1].tolist() == [3, 103, 7, 107, 109]


def test_a_termination_goes_before_a_time_limit():
    rollout = rollout_of(terminated=[(1, 0)], truncated=[(1, 0)])
    obs, following, _ = by_rule.rows(rollout, max_steps=500)
    assert obs[following[1, 0], 0, 0] == 4


def test_a_time_limit_that_comes_too_often_is_seen():
    rollout = rollout_of(truncated=[(1, 1), (3, 1)])
    _, _, lost = by_rule.rows(rollout, max_steps=500)
    assert np.argwhere(lost).tolist() == [[3, 1]]


class Kept(NamedTuple):
    mean: jax.Array


def toy_rule():
    """A rule that reads everything that it may, without any stop."""

    def targets(params, state, trajectory):
        following = successors(trajectory.outputs["logits"], trajectory)
        older = trajectory.target_outputs["logits"][:T]
        reward = trajectory.reward + trajectory.discount * following[..., 0]
        target = jnp.tanh(params["w"] * older + reward[..., None] + state.mean)
        mean = parallel.mean(reward.mean())
        return target + 0.1 * trajectory.behaviour_logits, Kept(mean)

    def loss(outputs, targets, trajectory):
        error = targets - outputs["logits"][:T] + 0.1 * trajectory.outputs["y"][:T]
        return jnp.square(error).sum(-1) + jnp.square(outputs["y"][:T]).sum(-1)

    return Rule(
        init=lambda key: {"w": jnp.ones(2)},
        start=lambda: Kept(jnp.zeros(())),
        targets=targets,
        loss=loss,
    )


CONFIG = SimpleNamespace(
    learning_rate=0.1,
    max_update=0.9,
    target_rate=0.25,
    gamma=0.9,
    anneal=True,
    total_steps=100,
    num_envs=B,
    rollout_length=T,
)


def apply(params, obs):
    hidden = jnp.tanh(0.1 * obs * params["a"] + params["b"])
    return {"logits": hidden * params["c"], "y": hidden + params["c"]}


def start():
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.normal(size=2)) for name in "abc"}
    net = SimpleNamespace(init=lambda key, obs: params)
    state = by_rule.init(net, None, toy_rule(), key=None)
    # An older one that differs, so that both are told apart.
    older = jax.tree.map(lambda x: 0.5 * x, params)
    return state._replace(target_params=older)


def learn(rule_params, state, rollout, config=CONFIG):
    return by_rule.learn(
        apply,
        config,
        state,
        rollout,
        rule=toy_rule(),
        rule_params=rule_params,
        max_steps=3,
    )


ROLLOUT = functools.partial(rollout_of, [(1, 0)], [(2, 1)])


def test_a_step_by_hand(x64):
    """Adam's first step is the gradient's sign, here clipped to 0.9."""
    state, rollout = start(), ROLLOUT()
    new, metrics = jax.jit(learn)({"w": jnp.array([0.3, -0.2])}, state, rollout)
    rate, old = 0.1, state.params
    for name, x in new.params.items():
        np.testing.assert_allclose(abs(x - old[name]), 0.9 * rate, rtol=1e-6)
        moved = 0.75 * state.target_params[name] + 0.25 * old[name]
        np.testing.assert_allclose(new.target_params[name], moved, rtol=1e-12)
    led_to = np.array([[2, 3], [4, 5], [6, 105], [8, 9], [108, 109]])[..., None]
    following = apply(old, led_to)["logits"][..., 0]
    want = rollout.reward + 0.9 * (1.0 - rollout.terminated) * following
    np.testing.assert_allclose(new.rule_state.mean, want.mean(), rtol=1e-12)
    assert new.step == 1 and metrics["loss"] > 0
    logits = apply(old, rollout.obs)["logits"]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1).mean()
    np.testing.assert_allclose(metrics["entropy"], entropy, rtol=1e-9)


def test_the_rate_falls_and_a_rule_may_read_no_older_copy():
    rule = toy_rule()._replace(
        targets=lambda params, state, trajectory: (trajectory.reward[..., None], state)
    )
    state = start()._replace(target_params=(), step=jnp.array(5))  # half of ten
    new, _ = by_rule.learn(
        apply, CONFIG, state, ROLLOUT(), rule=rule, rule_params=(), max_steps=3
    )
    assert new.target_params == ()
    moved = abs(ravel_pytree(new.params)[0] - ravel_pytree(state.params)[0])
    np.testing.assert_allclose(moved, 0.5 * 0.9 * 0.1, rtol=1e-4)


@pytest.mark.parametrize("num_updates", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_the_meta_gradient_is_exact(x64, num_updates):
    """Through targets, older copies, Adam and the rule's state; and in the config."""
    weights = np.random.default_rng(2).normal(size=6)
    rollout = jax.tree.map(jnp.asarray, ROLLOUT())

    def outcome(numbers):
        state, rule_params = start(), {"w": numbers[:2]}
        fields = vars(CONFIG) | dict(gamma=numbers[2], max_update=10.0)
        config = SimpleNamespace(**fields | dict(target_rate=numbers[3]))
        # Adam's first steps hide a gradient's size: these are not its first.
        opt_state = jax.tree.map(lambda x: x + (x.ndim > 0), state.opt_state)
        state = state._replace(opt_state=opt_state)
        for _ in range(num_updates):
            state, _ = learn(rule_params, state, rollout, config)
        return jnp.sin(ravel_pytree(state.params)[0]) @ weights

    numbers = jnp.array([0.3, -0.2, 0.9, 0.25])

    @jax.jit
    def both(numbers):
        moved = numbers + 1e-5 * jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
        high, low = jnp.split(jax.lax.map(outcome, moved), 2)
        return jax.grad(outcome)(numbers), (high - low) / 2e-5

    found, differences = both(numbers)
    np.testing.assert_allclose(found, differences, rtol=1e-5, atol=1e-9)
    assert (abs(found[:3]) > 1e-6).all()
    assert (abs(found[3]) > 1e-9) == (num_updates > 1)


def test_shards_take_the_step_of_all_data(x64):
    def both(rule_params, state, rollout):
        whole, _ = learn(rule_params, state, rollout)
        halves = jax.tree.map(lambda x: jnp.stack(jnp.split(x, 2, axis=1)), rollout)
        mapped = jax.vmap(learn, (None, None, 0), axis_name=parallel.AXIS)
        parts, _ = mapped(rule_params, state, halves)
        return whole, parts

    state = start()
    opt_state = jax.tree.map(lambda x: x + (x.ndim > 0), state.opt_state)
    state = state._replace(opt_state=opt_state)
    rollout = jax.tree.map(jnp.asarray, ROLLOUT())
    whole, parts = jax.jit(both)({"w": jnp.ones(2)}, state, rollout)
    for part in range(2):
        one = ravel_pytree(jax.tree.map(lambda x, i=part: x[i], parts))[0]
        np.testing.assert_allclose(one, ravel_pytree(whole)[0], rtol=1e-9)
