"""MPO: targets, weights and divergences by hand, its dual variables."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs
from rljax.learners.actor_critic import Keyed
from rljax.networks import distributions
from rljax.replay import Windows
from rljax.types import Box

from .. import compiled, probe_envs
from ..agent_case import differ, observe_and_update

mpo = agents.get("mpo")
KEY = jax.random.key(9)
KINDS = ["continuous", "discrete"]
only_mpo = pytest.mark.parametrize("case", ["mpo"], indirect=True)


class Problem:
    """Random networks, dual variables and one transition of two steps."""

    def __init__(self, env):
        self.spec = spec = env.spec
        self.config = config = mpo.Config(
            gamma=0.9,
            hidden_sizes=(8,),
            num_samples=5,
            epsilon=0.2,
            epsilon_policy=0.03,
            epsilon_mean=0.04,
            epsilon_stddev=0.05,
        )
        init = jax.jit(functools.partial(mpo.init, spec))
        state, other = (init(config, jax.random.key(i)) for i in (0, 1))
        more = list(compiled.normal(3, 5))
        self.duals = jax.tree.map(lambda x: np.array(x) + more.pop(), state.duals)
        self.continuous = isinstance(spec.action, Box)
        scale = 4 if self.continuous else 50
        scaled = compiled.scaled((state.actor, other.actor), scale)
        self.state = state._replace(
            actor=scaled[0],
            target_actor=scaled[1],
            target_critic=compiled.scaled(other.critic, 2),
            duals=self.duals,
        )
        self.obs, next_obs = compiled.normal(2, 2, *spec.obs_shape)
        self.action = np.float32([0.5, 1.5]) if self.continuous else np.array(1)
        self.actor, self.critic = mpo.actor(spec, config), mpo.critic(spec, config)
        self.window = Windows(
            obs=self.obs,
            action=self.action,
            reward=np.float32([2.0, 3.0, 0.0]),
            num_steps=np.array(2),
            terminated=np.array(False),
            next_obs=next_obs,
        )

    def errors(self, params, bootstrap, **changes):
        window = self.window._replace(**changes)
        args = (self.spec, self.config, params, bootstrap, window)
        return np.array(errors_and_gradients(*args)[0])

    def log_probs(self, params, obs):
        logits = np.array(compiled.apply(self.actor, params, obs).logits)
        return logits - np.log(np.exp(logits).sum())

    def gaussian(self, params, obs):
        return tuple(np.array(x) for x in gaussian(self.actor, params, obs))

    def q(self, params, *inputs):
        return np.array(compiled.apply(self.critic, params, *inputs))[0]

    def samples(self, obs):
        """Before the tanh, their values, and the shares of each."""
        state = self.state
        if not self.continuous:
            probs = np.exp(self.log_probs(state.target_actor, obs))
            return None, self.q(state.target_critic, obs), probs
        mean, stddev = self.gaussian(state.target_actor, obs)
        x = mean + stddev * np.array(jax.random.normal(KEY, (5, 2)))
        actions = np.tanh(x) * [1.0, 2.0] + [0.0, 1.0]
        actions = actions.astype(np.float32)
        values = [self.q(state.target_critic, obs, a) for a in actions]
        return x, np.array(values, np.float32), np.full(5, 0.2)


@functools.partial(jax.jit, static_argnums=0)
def gaussian(actor, params, obs):
    base = actor.apply(params, obs).distribution
    return base.loc, base.scale_diag


@functools.partial(jax.jit, static_argnums=0)
def errors_and_gradients(spec, config, params, bootstrap, window):
    """Errors; gradients of their sum in critic, target critic and target actor."""

    def total(params, target_critic, target_actor):
        targets = dict(target_critic=target_critic, target_actor=target_actor)
        state = bootstrap._replace(**targets)
        transition = Keyed(window=window, key=KEY)
        found = mpo.td_errors(
            spec, config, params, bootstrap=state, transition=transition
        )
        return found.sum(), found

    args = (params, bootstrap.target_critic, bootstrap.target_actor)
    grads, found = jax.grad(total, (0, 1, 2), has_aux=True)(*args)
    return found, grads


class ActorLoss(NamedTuple):
    loss: Any
    evidence: Any
    gradients: Any  # in the target critic and the dual variables
    slopes: Any  # of the dual variables' own losses
    weights: Any


@functools.partial(jax.jit, static_argnums=0)
def actor_loss(spec, config, params, obs, bootstrap):
    def loss(target_critic, duals):
        state = bootstrap._replace(target_critic=target_critic, duals=duals)
        return mpo.actor_loss(spec, config, params, obs, KEY, bootstrap=state)

    args = (bootstrap.target_critic, bootstrap.duals)
    (value, evidence), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(*args)

    def loss_of_duals(duals):
        parts = mpo.mpo_parts(config, duals, evidence)
        return parts.temperature_loss + parts.alpha_loss, parts.normalized_weights

    slopes, weights = jax.grad(loss_of_duals, has_aux=True)(bootstrap.duals)
    return ActorLoss(value, evidence, grads, slopes, weights)


def weights_of(values, shares, temperature):
    weights = shares * np.exp((values - values.max()) / temperature)
    return weights / weights.sum()


def log_normal(x, mean, stddev):
    density = -0.5 * ((x - mean) / stddev) ** 2 - np.log(stddev * np.sqrt(2 * np.pi))
    return density.sum(axis=-1)


@pytest.fixture(scope="module")
def continuous():
    return Problem(envs.wrap(probe_envs.Target()))  # half widths 1 and 2


@pytest.fixture(scope="module")
def discrete():
    return Problem(envs.make("Acrobot-v1"))


@pytest.fixture(params=KINDS)
def problem(request):
    return request.getfixturevalue(request.param)


def test_mpo_targets_by_hand(problem):
    p = problem
    _, values, shares = p.samples(p.window.next_obs)
    action = (p.action,) if p.continuous else ()
    q = p.q(p.state.critic, p.obs, *action)
    q = q if p.continuous else q[1]
    reward = 2.0 + 0.9 * 3.0
    want = reward + 0.81 * (shares * values).sum() - q
    assert np.ptp(values) > 0.1 and (p.continuous or np.ptp(shares) > 0.1)
    np.testing.assert_allclose(p.errors(p.state.critic, p.state), [want], rtol=1e-4)
    ended = p.errors(p.state.critic, p.state, terminated=np.array(True))
    np.testing.assert_allclose(ended, [reward - q], rtol=1e-5)


def test_mpo_actor_loss_by_hand(problem):
    p, state = problem, problem.state
    x, values, shares = p.samples(p.obs)
    temperature, multipliers = jax.tree.map(np.exp, jax.device_get(tuple(p.duals)))
    weights = weights_of(values, shares, temperature)
    assert np.ptp(weights) > 0.1
    if p.continuous:
        old_mean, old_std = p.gaussian(state.target_actor, p.obs)
        mean, std = p.gaussian(state.actor, p.obs)
        log_probs = log_normal(x, mean, old_std) + log_normal(x, old_mean, std)
        kls = [
            (mean - old_mean) ** 2 / (2 * old_std**2),
            np.log(std / old_std) + old_std**2 / (2 * std**2) - 0.5,
        ]
    else:
        log_probs = p.log_probs(state.actor, p.obs)
        kls = [(shares * (np.log(shares) - log_probs)).sum()]
    pairs = list(zip(multipliers, kls, strict=True))
    want = -(weights * log_probs).sum() + sum((a * kl).sum() for a, kl in pairs)
    got = actor_loss(p.spec, p.config, state.actor, p.obs, state)
    np.testing.assert_allclose(got.loss, want, rtol=1e-4)
    chex.assert_trees_all_close(list(got.evidence.kls), kls, rtol=1e-3, atol=1e-6)
    # Slopes of the duals' losses: bound less divergence, times the dual variable.
    bounds = [0.04, 0.05] if p.continuous else [0.03]
    divergence = (weights * np.log(weights / shares)).sum()
    want = [temperature * (0.2 - divergence)]
    want += [a * (e - kl) for e, (a, kl) in zip(bounds, pairs, strict=True)]
    for found, slope in zip(jax.tree.leaves(got.slopes), want, strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-3, atol=1e-5)


def test_mpo_gradients_are_in_the_trained_networks_alone(problem):
    p, state = problem, problem.state

    @jax.jit
    @jax.grad
    def minus_q(params):
        q = functools.partial(p.critic.apply, params, p.obs)
        return -q(p.action)[0] if p.continuous else -q()[0, 1]

    args = (p.spec, p.config, state.critic, state, p.window)
    _, (semi, *rest) = errors_and_gradients(*args)
    chex.assert_trees_all_close(semi, minus_q(state.critic), rtol=1e-4, atol=1e-6)
    more = actor_loss(p.spec, p.config, state.actor, p.obs, state).gradients
    for tree in (*rest, *more):  # differentiable all the same
        assert any(np.array(leaf).any() for leaf in jax.tree.leaves(tree))


def test_mpo_values_an_action_by_all_its_weight(discrete):
    """Where the target policy is sure of an action, its value alone counts."""
    p = discrete

    def add(path, x):
        sure = np.float32([0.0, 50.0, 0.0])
        return np.array(x) + sure if x.shape == (3,) else x

    actor = jax.tree.map_with_path(add, p.state.target_actor)
    state = p.state._replace(target_actor=actor)
    got = p.errors(p.state.critic, state) - p.errors(
        p.state.critic, state, reward=np.zeros(3, np.float32)
    )
    np.testing.assert_allclose(got, [2.0 + 0.9 * 3.0], rtol=1e-4)
    target = p.errors(p.state.critic, state, reward=np.zeros(3, np.float32))
    target += p.q(p.state.critic, p.obs)[1]
    want = 0.81 * p.q(p.state.target_critic, p.window.next_obs)[1]
    np.testing.assert_allclose(target, [want], rtol=1e-4)
    found = actor_loss(p.spec, p.config, actor, p.obs, state)
    np.testing.assert_allclose(found.weights, [0.0, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(found.loss, 0.0, atol=1e-5)


@only_mpo
def test_mpo_rates_and_targets(case, update, state, rollout):
    config = dataclasses.replace(
        case.config, target_rate=0.25, learning_rate=0.1, dual_learning_rate=0.02
    )
    new, _ = update(config, state, rollout, jax.random.key(1))
    new, state = jax.tree.map(np.array, (new, state))
    for name in ("actor", "critic"):
        old, trained = getattr(state, name), getattr(new, name)
        want = jax.tree.map(lambda x, y: x + 0.25 * (y - x), old, trained)
        target = getattr(new, f"target_{name}")
        chex.assert_trees_all_close(target, want, rtol=1e-5, atol=1e-6)
        assert differ(target, old)
        # Adam's first step is as long as the rate, where the gradient is not 0.
        step = max(
            jax.tree.leaves(jax.tree.map(lambda x, y: abs(x - y).max(), old, trained))
        )
        np.testing.assert_allclose(step, 0.1, rtol=1e-2)
    (temperature, (multiplier,)), before = new.duals, state.duals
    np.testing.assert_allclose(abs(temperature - before.temperature), 0.02, rtol=1e-2)
    # The policy has not left the target's yet.
    np.testing.assert_allclose(multiplier - before.multipliers[0], -0.02, rtol=1e-2)


@only_mpo
@pytest.mark.parametrize("field", ["epsilon", "epsilon_policy"])
def test_mpo_duals_grow_where_divergences_exceed_their_bounds(
    case, update, state, rollout, field
):
    other = compiled.scaled(state.actor, 10)
    state = state._replace(actor=other)
    which = "temperature" if field == "epsilon" else "multipliers"
    for bound, sign in ((1e-9, 1), (10.0, -1)):
        config = dataclasses.replace(case.config, **{field: bound})
        new, _ = update(config, state, rollout, jax.random.key(1))
        old, moved = (np.ravel(getattr(x.duals, which)) for x in (state, new))
        assert np.sign(moved - old) == sign


@only_mpo
def test_mpo_is_differentiable_in_its_config(case, rollout, state):
    """Over two updates of each kind of parameters, since duals act on the next."""
    config = dataclasses.replace(case.config, num_updates=2)

    def score(config):
        start = case.module.init(case.spec, config, jax.random.key(0))
        new, _ = observe_and_update(
            case.agent, config, start, rollout, jax.random.key(1)
        )
        leaves = jax.tree.leaves((new.actor, new.critic, new.duals))
        return sum(jnp.sum(jnp.sin(x)) for x in leaves)

    grad = jax.jit(jax.grad(score))(config)
    unused = ("epsilon_mean", "epsilon_stddev", "noise_damping")  # discrete actions
    unused += ("priority_exponent", "importance_exponent")  # uniform replay
    for field in dataclasses.fields(config):
        if field.metadata.get("static") or field.name == "max_grad_norm":
            continue
        slope = getattr(grad, field.name)
        assert jnp.isfinite(slope), field.name
        assert (slope != 0) == (field.name not in unused), field.name


def test_a_change_of_mean_or_stddev_alone_is_the_whole_divergence():
    box = Box((2,), (-1.0, -1.0), (1.0, 3.0))
    mean, log_std = np.array([0.3, -2.0]), np.array([-1.0, 0.5])
    x = compiled.normal(1, 4, 2)

    @jax.jit
    def compared(to_mean, to_log_std):
        old, new = (
            distributions.tanh_gaussian(*parameters, box)
            for parameters in (
                (jnp.array(mean), jnp.array(log_std)),
                (mean + to_mean, log_std + to_log_std),
            )
        )
        log_probs, kls = distributions.compare(old, new, x)
        whole = old.distribution.kl_divergence(new.distribution)
        both = new.distribution.log_prob(x) + old.distribution.log_prob(x)
        return log_probs, kls, whole, both

    for step in (np.array([0.7, 0.1]), np.array([-0.2, 0.4])):
        for i, moves in enumerate(((step, np.zeros(2)), (np.zeros(2), step))):
            log_probs, kls, whole, both = compared(*moves)
            np.testing.assert_allclose(np.sum(kls[i]), whole, rtol=1e-5)
            np.testing.assert_allclose(kls[1 - i], 0.0, atol=1e-6)
            np.testing.assert_allclose(log_probs, both, rtol=1e-5)
