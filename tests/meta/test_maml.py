"""Adaptation and MAML against closed forms: sums over all trajectories, no sampling."""

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import envs, networks
from rljax.autodiff import magic_box, semi_gradient
from rljax.envs import tasks
from rljax.meta import adapt, maml, maml_loss
from rljax.types import Rollout

from .. import compiled, oracles, probe_envs
from ..autodiff.test_estimators import TwoSteps

RATE = 0.7


class Game(TwoSteps):
    """Two steps whose trajectories are all known, as batches of `policy_loss`."""

    def __init__(self):
        super().__init__()
        choices = self.policy[self.s, self.a].prod(1)
        self.chance = self.probability / choices  # of the successors
        n, length = self.s.shape
        last = np.arange(length) == length - 1
        successor = np.append(self.s[:, 1:], np.full((n, 1), 3), 1)
        self.batches = Rollout(  # [n, T, 1, ...]
            obs=np.eye(4)[self.s][:, :, None],
            action=self.a[..., None],
            reward=self.mdp.r[self.s, self.a][..., None],
            terminated=np.tile(last[:, None], (n, 1, 1)),
            truncated=np.zeros((n, length, 1), bool),
            next_obs=np.eye(4)[successor][:, :, None],
            extras=(),
            memory=(),
        )
        values = jnp.array([0.3, -1.0, 2.0, 0.0])  # a poor baseline
        self.network = SimpleNamespace(
            apply=lambda logits, obs: (
                distrax.Categorical(logits=obs @ logits),
                obs @ values,
            )
        )
        config = maml.Config(gamma=self.mdp.gamma, lambda_=1.0, value_cost=0.0)
        self.loss = functools.partial(maml.policy_loss, self.network, config)

    def log_probs(self, logits):
        """`[n]` of the actions of each trajectory."""
        return jax.nn.log_softmax(logits)[self.s, self.a].sum(1)

    def dice(self, logits, bootstrap, batch):
        return self.loss(logits, bootstrap, batch)[0]

    def plain(self, logits, _, batch):
        """The usual surrogate, with the same gradient."""
        log_prob = self.network.apply(logits, batch.obs)[0].log_prob(batch.action)
        reward, gamma = batch.reward[:, 0], self.mdp.gamma
        later = reward + gamma * jnp.append(reward[1:], 0.0)
        return -jnp.sum(log_prob[:, 0] * gamma ** jnp.arange(2) * later)

    def expected(self, loss):
        """The mean of a loss over all trajectories, drawn as the parameters are now."""

        def mean(logits, bootstrap, _):
            probability = self.chance * jnp.exp(self.log_probs(bootstrap))
            losses = jax.vmap(loss, (None, None, 0))(logits, bootstrap, self.batches)
            return jax.lax.stop_gradient(probability) @ losses

        return mean

    def outer(self, logits, *_):
        """Minus the return, in closed form."""
        policy = jax.nn.softmax(logits)
        p = jnp.einsum("sa,sat->st", policy, self.mdp.p)
        r = jnp.sum(policy * self.mdp.r, 1)
        return -jnp.linalg.solve(jnp.eye(4) - self.mdp.gamma * p, r)[0]

    def value(self, logits):
        return oracles.policy_value(self.mdp, oracles.softmax(logits))[0]


@pytest.fixture(scope="module")
def game():
    with jax.enable_x64(True):
        return Game()


def differences(f, x, h=1e-5):
    """Central differences of a numpy function."""
    slopes = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        slopes[i] = (f(x + step) - f(x - step)) / (2 * h)
    return slopes


@functools.cache
def meta_gradient(game, kind, steps, first_order=False):
    """Of the return after steps along expected gradients; in logits and rates."""
    inner = game.expected(getattr(game, kind))

    def after(logits, rates):
        loss = functools.partial(maml_loss, inner, game.outer)
        return loss(logits, jnp.zeros(steps), 0, rates, first_order=first_order)

    rates = RATE / (1.0 + np.arange(steps))
    return jax.jit(jax.grad(after, (0, 1)))(game.logits, rates)


def adapted(game, logits, rates):
    """Steps along the gradient in closed form."""
    for rate in rates:
        logits = logits + rate * game.gradient(logits)
    return logits


@pytest.mark.parametrize("steps", [1, 2])
def test_the_meta_gradient_equals_finite_differences(game, steps, x64):
    rates = RATE / (1.0 + np.arange(steps))

    def after(logits, rates):
        return -game.value(adapted(game, logits, rates))

    in_logits = differences(lambda x: after(x, rates), game.logits)
    in_rates = differences(lambda x: after(game.logits, x), rates)
    found = meta_gradient(game, "dice", steps)
    np.testing.assert_allclose(found[0], in_logits, atol=1e-9)
    np.testing.assert_allclose(found[1], in_rates, atol=1e-9)
    plain, _ = meta_gradient(game, "plain", steps)
    assert np.abs(plain - in_logits).max() > 0.03 * np.abs(in_logits).max()


def test_first_order_is_the_gradient_of_the_adapted_parameters(game, x64):
    end = adapted(game, game.logits, [RATE, RATE / 2])
    found, _ = meta_gradient(game, "dice", 2, first_order=True)
    np.testing.assert_allclose(found, -game.gradient(end), atol=1e-12)
    second, _ = meta_gradient(game, "dice", 2)
    assert np.abs(second - found).max() > 0.03 * np.abs(found).max()


def test_the_policy_loss_has_the_hessian_of_the_return(game, x64):
    """A plain surrogate has the same gradient, not the same derivative of it."""

    def derivatives(loss):
        gradient = semi_gradient(game.expected(loss))
        return jax.jit(lambda x: (gradient(x, 0), jax.jacfwd(gradient)(x, 0)))(
            game.logits
        )

    exact = -oracles.policy_hessian(game.mdp, game.logits, np.eye(4)[0])
    (gradient, hessian), (same, other) = map(derivatives, (game.dice, game.plain))
    np.testing.assert_allclose(gradient, -game.gradient(game.logits), atol=1e-12)
    np.testing.assert_allclose(same, gradient, atol=1e-12)
    np.testing.assert_allclose(hessian, exact, atol=1e-12)
    assert np.abs(other - exact).max() > 0.1 * np.abs(exact).max()


def test_a_magic_box_around_the_outer_loss_is_e_maml(game, x64):
    """The gradient of what one sampled trajectory leads to, in expectation."""

    def after(logits, inner):  # of every trajectory
        def one(batch, log_prob):
            batches = jax.tree.map(lambda x: x[None], batch)
            return maml_loss(inner, game.outer, logits, batches, 0, RATE) * magic_box(
                log_prob
            )

        log_probs = game.log_probs(logits)
        losses = jax.vmap(one)(game.batches, log_probs)
        probability = game.chance * jnp.exp(jax.lax.stop_gradient(log_probs))
        return probability @ losses

    def expected(logits):
        policy = oracles.softmax(logits)
        log_policy = np.log(policy)
        total = 0.0
        for s, a, chance in zip(game.s, game.a, game.chance, strict=True):
            end, (r_0, r_1) = logits.copy(), game.mdp.r[s, a]
            later = (r_0 + game.mdp.gamma * r_1, game.mdp.gamma * r_1)
            for t in range(2):
                end[s[t]] += RATE * later[t] * (np.eye(2)[a[t]] - policy[s[t]])
            probability = chance * np.exp(log_policy[s, a].sum())
            total -= probability * game.value(end)
        return total

    exact = differences(expected, game.logits)
    gradient = jax.jit(jax.grad(after), static_argnums=1)
    np.testing.assert_allclose(gradient(game.logits, game.plain), exact, atol=1e-9)
    twice = gradient(game.logits, without_values(game))
    assert np.abs(twice - exact).max() > 0.02 * np.abs(exact).max()


def without_values(game):
    """DiCE with a baseline of 0, whose gradient on one trajectory is the plain one."""
    network = SimpleNamespace(
        apply=lambda *args: (game.network.apply(*args)[0], 0.0 * args[1][..., 0])
    )
    loss = functools.partial(maml.policy_loss, network, game.loss.args[1])
    return lambda *args: loss(*args)[0]


def test_adaptation_steps_along_semi_gradients(x64):
    """Two steps of a value learning from itself: v += rate (r + discount v - v)."""
    rewards, rates = np.array([1.0, -2.0]), np.array([0.5, 0.25])

    def end(discount, rates):
        def loss(v, v_bootstrap, r):
            error = r + discount * v_bootstrap["v"] - v["v"]
            return 0.5 * error**2, error

        return adapt(loss, {"v": 3.0}, rewards, rates, has_aux=True)

    def by_hand(discount, rates):
        v, errors = 3.0, []
        for r, rate in zip((1.0, -2.0), rates, strict=True):
            errors.append(r + discount * v - v)
            v += rate * errors[-1]
        return v, np.array(errors)

    @jax.jit
    def with_slope(discount):
        def last(discount):
            params, errors = end(discount, rates)
            return params["v"], errors

        return jax.value_and_grad(last, has_aux=True)(discount)

    (last, errors), slope = with_slope(0.9)
    v, by_hand_errors = by_hand(0.9, rates)
    np.testing.assert_allclose(last, v, rtol=1e-12)
    np.testing.assert_allclose(errors, by_hand_errors, rtol=1e-12)
    h = 1e-6
    up, down = (by_hand(0.9 + x, rates)[0] for x in (h, -h))
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-8)


def test_outer_losses_learn_along_semi_gradients(x64):
    """One that bootstraps from itself, by v, after one step by hand."""
    rate, discount = 0.25, 0.9

    def inner(v, _, r):
        return 0.5 * (r - v) ** 2

    def outer(v, v_bootstrap, r):
        return 0.5 * (r + discount * v_bootstrap - v) ** 2

    def after(v):
        return maml_loss(inner, outer, v, np.ones(1), 2.0, rate)

    slope = jax.jit(jax.grad(after))(3.0)
    adapted = 3.0 + rate * (1.0 - 3.0)
    want = -(2.0 + discount * adapted - adapted) * (1.0 - rate)
    np.testing.assert_allclose(slope, want, rtol=1e-12)


SMALL = maml.Config(
    inner_steps=2, num_tasks=3, num_envs=4, rollout_length=5, inner_rate=0.5
)


@pytest.fixture(scope="module")
def tabular():
    draw = tasks.tabular()
    spec = jax.eval_shape(draw, jax.random.key(0)).spec
    network = networks.ActorCritic(compiled.body(1, (8,)), spec.action)
    init = jax.jit(functools.partial(maml.init, network, SMALL, draw))
    return draw, network, init(jax.random.key(1))


def value_and_grad(network, config, draw, params, number):
    """Of the loss of a task that is drawn by the number's bits."""
    task_key, key = jax.random.split(jax.random.wrap_key_data(number))
    loss = functools.partial(maml.task_loss, network, config)
    return jax.value_and_grad(loss, has_aux=True)(params, draw(task_key), key)


def test_keys_are_used_once_and_all_parameters_learn(tabular):
    """In two steps of the adaptation, with a network."""
    draw, network, state = tabular
    of_one = functools.partial(value_and_grad, network, SMALL, draw)
    with jax.debug_key_reuse(True):
        _, gradients = jax.jit(of_one)(state.params, np.zeros(2, np.uint32))
    for gradient in jax.tree.leaves(gradients):
        assert np.abs(gradient).max() > 0


def test_adapt_policy_is_what_the_task_loss_adapts(tabular):
    """With the rate 0 nothing moves; else the policy plays better on what it saw."""
    draw, network, state = tabular
    env = jax.jit(draw)(jax.random.key(3))
    config = dataclasses.replace(SMALL, num_envs=256, rollout_length=10)
    still = dataclasses.replace(config, inner_rate=0.0)
    move = jax.jit(functools.partial(maml.adapt_policy, network))
    same = move(still, state.params, env, jax.random.key(4))
    jax.tree.map(np.testing.assert_array_equal, same, state.params)
    moved = move(config, state.params, env, jax.random.key(4))

    @jax.jit
    def mean_return(params):
        batch = maml.play(network, config, env, params, jax.random.key(5))
        return batch.reward.sum(0).mean()

    assert mean_return(moved) > mean_return(state.params) + 1.0


class Lever:
    """A policy and a value of one parameter each, of a `Counter`'s time."""

    def apply(self, params, obs):
        logits = jnp.concatenate([params["x"] * obs, 0.0 * obs], -1)
        return distrax.Categorical(logits=logits), params["v"] * obs[..., 0]

    def init(self, key, obs):
        x, v = jax.random.normal(key, 2)
        return {"x": x, "v": v}


COUNTER = envs.wrap(probe_envs.Counter(), probe_envs.CounterParams(terminate_at=3))


def draw_counter(key):
    """Its tasks pay differently."""
    return tasks.with_params(COUNTER, reward=jax.random.normal(key))


def test_tasks_under_vmap_equal_a_loop():
    config = maml.Config(num_envs=4, rollout_length=5, inner_rate=0.5)
    params = {"x": np.float32(0.5), "v": np.float32(0.25)}
    alone = functools.partial(value_and_grad, Lever(), config, draw_counter)
    numbers = np.arange(6, dtype=np.uint32).reshape(3, 2)
    batched = jax.jit(jax.vmap(alone, (None, 0)))(params, numbers)
    alone = jax.jit(alone)
    rows = [jax.device_get(alone(params, number)) for number in numbers]
    loop = jax.tree.map(lambda *x: np.stack(x), *rows)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        batched,
        loop,
    )
    assert len(set(np.asarray(batched[0][1]["return"]))) == 3


def test_two_runs_equal_one_long_one():
    config = maml.Config(num_tasks=2, num_envs=2, rollout_length=4)
    state = jax.jit(lambda key: maml.init(Lever(), config, draw_counter, key))(
        jax.random.key(1)
    )
    run = jax.jit(
        functools.partial(maml.run, Lever(), config, draw_counter), static_argnums=1
    )
    half, first = run(state, 1)
    end, second = run(half, 1)
    with jax.debug_nans(True), jax.debug_infs(True):
        whole, metrics = run(state, 2)
    assert set(metrics) == {"return", "adapted_return"}
    for name in metrics:
        both = np.append(first[name], second[name])
        np.testing.assert_allclose(metrics[name], both, rtol=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        whole.params,
        end.params,
    )
    keys = [np.asarray(jax.random.key_data(x.key)) for x in (state, half, end, whole)]
    assert len(np.unique(keys[:3], axis=0)) == 3
    np.testing.assert_array_equal(keys[2], keys[3])


def test_only_an_environments_first_episode_counts():
    """It lasts three steps, and each pays 1."""
    env = envs.wrap(probe_envs.Counter(), probe_envs.CounterParams(100, terminate_at=3))
    params = {"x": jnp.float32(0.5), "v": jnp.float32(0.25)}
    config = maml.Config(num_envs=4, gamma=0.5, lambda_=0.9, reward_scale=2.0)

    def returns(length):
        sized = dataclasses.replace(config, rollout_length=length)
        batch = maml.play(Lever(), sized, env, params, jax.random.key(0))
        return maml.policy_loss(Lever(), sized, params, params, batch)[1]

    np.testing.assert_array_equal(jax.jit(returns, static_argnums=0)(8), [3.0] * 4)
    np.testing.assert_array_equal(jax.jit(returns, static_argnums=0)(2), [2.0] * 4)


def test_later_episodes_leave_the_loss_alone():
    config = maml.Config(gamma=0.5, lambda_=0.9)
    params = {"x": jnp.float32(0.5), "v": jnp.float32(0.25)}
    ends = jnp.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)  # [T, N]
    batch = Rollout(
        obs=jnp.arange(12.0).reshape(4, 3, 1),
        action=jnp.array([[0, 1, 1]] * 4),
        reward=jnp.arange(12.0).reshape(4, 3),
        terminated=ends & (jnp.arange(3) == 0),
        truncated=ends & (jnp.arange(3) == 1),
        next_obs=jnp.arange(12.0).reshape(4, 3, 1) + 0.5,
        extras=(),
        memory=(),
    )
    counts = jnp.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 0, 1]], bool)

    @jax.jit
    def derivatives(batch):
        def loss(params):
            return maml.policy_loss(Lever(), config, params, params, batch)

        return jax.value_and_grad(loss, has_aux=True)(params)

    changed = batch._replace(
        obs=jnp.where(counts[..., None], batch.obs, 9.0),
        reward=jnp.where(counts, batch.reward, -7.0),
        next_obs=jnp.where(counts[..., None], batch.next_obs, 3.0),
        action=jnp.where(counts, batch.action, 1),
    )
    jax.tree.map(
        np.testing.assert_array_equal, derivatives(batch), derivatives(changed)
    )
    _, returns = derivatives(batch)[0]
    np.testing.assert_array_equal(returns, (batch.reward * counts).sum(0))


def test_the_value_learns_lambda_returns():
    """Of one trajectory by hand: the loss, its value and the critic's gradient."""
    config = maml.Config(gamma=0.5, lambda_=0.8, value_cost=0.7, reward_scale=2.0)
    params = {"x": np.float32(0.0), "v": np.float32(0.25)}
    old = {"x": np.float32(0.0), "v": np.float32(-0.5)}
    times, reward = np.arange(1.0, 4.0), np.array([1.0, -2.0, 3.0])
    ended = np.array([False, False, True])
    batch = Rollout(
        obs=times.reshape(3, 1, 1),
        action=np.zeros((3, 1), int),
        reward=reward[:, None],
        terminated=ended[:, None],
        truncated=np.zeros((3, 1), bool),
        next_obs=1.0 + times.reshape(3, 1, 1),
        extras=(),
        memory=(),
    )

    @jax.jit
    def value_and_grad(value_cost):
        costly = dataclasses.replace(config, value_cost=value_cost)

        def loss(params):
            return maml.policy_loss(Lever(), costly, params, old, batch)[0]

        return jax.value_and_grad(loss)(params)

    target, later = np.zeros(3), 0.0
    for t in reversed(range(3)):
        v_t = -0.5 * (times[t] + 1.0)
        after = (1 - 0.8) * v_t + 0.8 * later if t < 2 else 0.0
        target[t] = later = 2.0 * reward[t] + (0.0 if ended[t] else 0.5 * after)
    error = 0.25 * times - target
    (total, slopes), (without, _) = map(value_and_grad, (0.7, 0.0))
    np.testing.assert_allclose(total - without, 0.7 * np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(slopes["v"], 1.4 * np.mean(error * times), rtol=1e-5)


def test_refuses(game):
    def loss(x, _, batch):
        return jnp.sum(x * batch)

    two = jnp.ones(2)
    for match, call in (
        (r"batches: .* K > 0, got \{\(\)\}", lambda: adapt(loss, 1.0, 1.0, 0.1)),
        (r"K > 0, got set\(\)", lambda: adapt(loss, 1.0, (), 0.1)),
        (r"K > 0", lambda: adapt(loss, 1.0, (two, two[:1]), 0.1)),
        (r"K > 0, got \{\(0,\)\}", lambda: adapt(loss, 1.0, two[:0], 0.1)),
        (r"K=2, got \(3,\)", lambda: adapt(loss, 1.0, two, jnp.ones(3))),
        ("params: expected an array of floats", lambda: adapt(loss, 3, two, 0.1)),
        (
            r"loss: expected a scalar, got \(2,\)",
            lambda: adapt(lambda x, *_: x * two, 1.0, two, 0.1),
        ),
        (
            r"outer_loss\(...\): .* float32\[2\]",
            lambda: maml_loss(loss, lambda x, *_: x * two, 1.0, two, two, 0.1),
        ),
        ("inner_rate=-1.0", lambda: maml.Config(inner_rate=-1.0).validate()),
        ("gamma=1.5", lambda: maml.Config(gamma=1.5).validate()),
        ("lambda_=nan", lambda: maml.Config(lambda_=np.nan).validate()),
        ("value_cost=-1", lambda: maml.Config(value_cost=-1.0).validate()),
        ("reward_scale=0", lambda: maml.Config(reward_scale=0.0).validate()),
        ("learning_rate=0", lambda: maml.Config(learning_rate=0.0).validate()),
        ("max_grad_norm=0", lambda: maml.Config(max_grad_norm=0.0).validate()),
        *(
            (f"{name}=0: ", maml.Config(**{name: 0}).validate)
            for name in ("inner_steps", "num_tasks", "num_envs", "rollout_length")
        ),
        ("unknown tasks 'cartpol'.*cartpole", lambda: tasks.tasks("cartpol")),
    ):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.slow
def test_the_tabular_tasks_are_adapted_to():
    """experiments.md B12 as a user runs it, with XLA's optimisations."""
    script = pathlib.Path(__file__).parents[2] / "scripts" / "maml.py"
    command = [
        sys.executable,
        str(script),
        "--tasks",
        "tabular",
        "--test-tasks",
        "1000",
    ]
    env = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    rows = re.findall(r"^(\w+).*? (-?[\d.]+) \+- ([\d.]+)$", done.stdout, re.MULTILINE)
    mean = {name: float(value) for name, value, _ in rows}
    assert abs(mean["initial"] - 10.0) < 0.5
    assert mean["adapted"] > mean["initial"] + 1.0
    assert abs(mean["optimum"] - 21.84) < 0.5
    assert mean["gap"] > 5.0
