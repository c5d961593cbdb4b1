"""MPO: targets, weights and divergences by hand, its dual variables."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, distributions, envs
from rljax.replay import Windows
from rljax.types import Box

from . import probe_envs
from .agent_case import differ, observe_and_update

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
        state, other = (mpo.init(spec, config, jax.random.key(i)) for i in (0, 1))
        more = jax.random.normal(jax.random.key(3), (5,)).tolist()
        self.duals = jax.tree.map(lambda x: x + more.pop(), state.duals)
        self.continuous = isinstance(spec.action, Box)
        scale = 4 if self.continuous else 50
        scaled = jax.tree.map(lambda x: scale * x, (state.actor, other.actor))
        self.state = state._replace(
            actor=scaled[0],
            target_actor=scaled[1],
            target_critic=jax.tree.map(lambda x: 2 * x, other.critic),
            duals=self.duals,
        )
        self.obs, next_obs = jax.random.normal(jax.random.key(2), (2, *spec.obs_shape))
        self.action = jnp.array([0.5, 1.5]) if self.continuous else jnp.array(1)
        self.window = Windows(
            obs=self.obs,
            action=self.action,
            reward=jnp.array([2.0, 3.0, 0.0]),
            num_steps=jnp.array(2),
            terminated=jnp.array(False),
            next_obs=next_obs,
        )

    def errors(self, params, bootstrap, **changes):
        window = self.window._replace(**changes)
        return mpo.td_errors(self.spec, self.config, params, bootstrap, window, KEY)

    def policy(self, params, obs):
        return mpo.actor(self.spec, self.config).apply(params, obs)

    def gaussian(self, params, obs):
        base = self.policy(params, obs).distribution
        return np.array(base.loc), np.array(base.scale_diag)

    def q(self, params, *inputs):
        return np.array(mpo.critic(self.spec, self.config).apply(params, *inputs))[0]

    def samples(self, obs):
        """Before the tanh, their values, and the shares of each."""
        state = self.state
        if not self.continuous:
            probs = np.array(self.policy(state.target_actor, obs).probs)
            return None, self.q(state.target_critic, obs), probs
        mean, stddev = self.gaussian(state.target_actor, obs)
        x = mean + stddev * np.array(jax.random.normal(KEY, (5, 2)))
        actions = np.tanh(x) * [1.0, 2.0] + [0.0, 1.0]
        values = [self.q(state.target_critic, obs, jnp.array(a)) for a in actions]
        return x, np.array(values, np.float32), np.full(5, 0.2)


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
    ended = p.errors(p.state.critic, p.state, terminated=jnp.array(True))
    np.testing.assert_allclose(ended, [reward - q], rtol=1e-5)


def test_mpo_actor_loss_by_hand(problem):
    p, state = problem, problem.state
    x, values, shares = p.samples(p.obs)
    temperature, *multipliers = (np.exp(np.array(x)) for x in p.duals)
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
        log_probs = np.log(p.policy(state.actor, p.obs).probs)
        kls = [(shares * (np.log(shares) - log_probs)).sum()]
    pairs = list(zip(multipliers, kls, strict=True))
    want = -(weights * log_probs).sum() + sum((a * kl).sum() for a, kl in pairs)
    args = (p.spec, p.config, state.actor, p.obs, KEY, state)
    loss, evidence = mpo.actor_loss(*args)
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    chex.assert_trees_all_close(list(evidence.kls), kls, rtol=1e-3, atol=1e-6)
    # Slopes of the duals' losses: bound less divergence, times the dual variable.
    bounds = [0.04, 0.05] if p.continuous else [0.03]
    divergence = (weights * np.log(weights / shares)).sum()
    want = [temperature * (0.2 - divergence)]
    want += [a * (e - kl) for e, (a, kl) in zip(bounds, pairs, strict=True)]

    def loss_of_duals(duals):
        parts = mpo.mpo_parts(p.config, duals, evidence)
        return parts.temperature_loss + parts.alpha_loss

    slopes = jax.grad(loss_of_duals)(p.duals)
    for got, slope in zip(slopes, want, strict=True):
        np.testing.assert_allclose(got, slope, rtol=1e-3, atol=1e-5)


def test_mpo_gradients_are_in_the_trained_networks_alone(problem):
    p, state = problem, problem.state

    def errors(critic, target_critic, target_actor):
        targets = dict(target_critic=target_critic, target_actor=target_actor)
        return p.errors(critic, state._replace(**targets)).sum()

    def value(params):
        q = functools.partial(mpo.critic(p.spec, p.config).apply, params, p.obs)
        return q(p.action)[0] if p.continuous else q()[0, 1]

    args = (state.critic, state.target_critic, state.target_actor)
    semi, *rest = jax.grad(errors, (0, 1, 2))(*args)
    minus_q = jax.tree.map(jnp.negative, jax.grad(value)(state.critic))
    chex.assert_trees_all_close(semi, minus_q, rtol=1e-4, atol=1e-6)

    def actor_loss(actor, target_critic, duals):
        changed = state._replace(target_critic=target_critic, duals=duals)
        args = (p.spec, p.config, actor, p.obs, KEY, changed)
        return mpo.actor_loss(*args)[0]

    more = jax.grad(actor_loss, (1, 2))(state.actor, state.target_critic, p.duals)
    for tree in (*rest, *more):  # differentiable all the same
        assert any((leaf != 0).any() for leaf in jax.tree.leaves(tree))


def test_mpo_values_an_action_by_all_its_weight(discrete):
    """Where the target policy is sure of an action, its value alone counts."""
    p = discrete

    def add(path, x):
        sure = jnp.array([0.0, 50.0, 0.0])
        return x + sure if x.shape == (3,) else x

    actor = jax.tree.map_with_path(add, p.state.target_actor)
    state = p.state._replace(target_actor=actor)
    got = p.errors(p.state.critic, state) - p.errors(
        p.state.critic, state, reward=jnp.zeros(3)
    )
    np.testing.assert_allclose(got, [2.0 + 0.9 * 3.0], rtol=1e-4)
    target = p.errors(p.state.critic, state, reward=jnp.zeros(3))
    target += p.q(p.state.critic, p.obs)[1]
    want = 0.81 * p.q(p.state.target_critic, p.window.next_obs)[1]
    np.testing.assert_allclose(target, [want], rtol=1e-4)
    loss, evidence = mpo.actor_loss(p.spec, p.config, actor, p.obs, KEY, state)
    weights = mpo.mpo_parts(p.config, p.duals, evidence).normalized_weights
    np.testing.assert_allclose(weights, [0.0, 1.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)


@only_mpo
def test_mpo_rates_and_targets(case, update, state, rollout):
    config = dataclasses.replace(
        case.config, target_rate=0.25, learning_rate=0.1, dual_learning_rate=0.02
    )
    new, _ = update(config, state, rollout, jax.random.key(1))
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
    (temperature, multiplier), before = new.duals, state.duals
    np.testing.assert_allclose(abs(temperature - before[0]), 0.02, rtol=1e-2)
    # The policy has not left the target's yet.
    np.testing.assert_allclose(multiplier - before[1], -0.02, rtol=1e-2)


@only_mpo
@pytest.mark.parametrize("field", ["epsilon", "epsilon_policy"])
def test_mpo_duals_grow_where_divergences_exceed_their_bounds(
    case, update, state, rollout, field
):
    other = jax.tree.map(lambda x: 10 * x, state.actor)
    state = state._replace(actor=other)
    which = ["epsilon", "epsilon_policy"].index(field)
    for bound, sign in ((1e-9, 1), (10.0, -1)):
        config = dataclasses.replace(case.config, **{field: bound})
        new, _ = update(config, state, rollout, jax.random.key(1))
        assert np.sign(new.duals[which] - state.duals[which]) == sign


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
    mean, log_std = jnp.array([0.3, -2.0]), jnp.array([-1.0, 0.5])
    old = distributions.tanh_gaussian(mean, log_std, box)
    x = jax.random.normal(KEY, (4, 2))
    for step in (jnp.array([0.7, 0.1]), jnp.array([-0.2, 0.4])):
        moved = distributions.tanh_gaussian(mean + step, log_std, box)
        wider = distributions.tanh_gaussian(mean, log_std + step, box)
        for i, new in enumerate((moved, wider)):
            log_probs, kls = distributions.compare(old, new, x)
            whole = old.distribution.kl_divergence(new.distribution)
            np.testing.assert_allclose(kls[i].sum(), whole, rtol=1e-5)
            np.testing.assert_allclose(kls[1 - i], 0.0, atol=1e-6)
            both = new.distribution.log_prob(x) + old.distribution.log_prob(x)
            np.testing.assert_allclose(log_probs, both, rtol=1e-5)
