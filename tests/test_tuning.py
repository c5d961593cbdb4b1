"""Agents that tune their own config, against updates and losses written out."""

import dataclasses
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import agents, checkpoint, envs, networks, on_policy, replay, train
from rljax.meta import (
    Bounded,
    Contextual,
    LogHorizon,
    Settings,
    StateDependent,
    conditioned,
    parse_parameter,
    tune,
)
from rljax.types import Rollout

T, N = 6, 3
ENV = envs.make("CartPole-v1")
SMALL = dict(num_envs=N, rollout_length=T, hidden_sizes=(8,), total_steps=10_000)
MORE = {
    "ppo": dict(num_epochs=2, num_minibatches=2),
    "pqn": dict(num_epochs=2, num_minibatches=2),
    "dqn": dict(capacity=72, batch_size=16, warmup_steps=16, n_step=2),
}


def config_of(name, **changes):
    kept = SMALL | MORE.get(name, {}) | changes
    return agents.get(name).Config(**kept)


def prediction(spec):
    """TD(lambda) with one step of gradient descent: nothing but a value."""
    a2c = agents.get("a2c").make(spec)

    def update(config, state, rollout, key):
        del key
        batch = on_policy.prepare(spec, config, state, rollout, config.lambda_)
        loss = functools.partial(on_policy.value_loss, spec, config, batch=batch)
        grads, metrics = jax.grad(loss, has_aux=True)(state.critic)
        moved = optax.tree.add_scale(state.critic, -config.learning_rate, grads)
        return state._replace(critic=moved, step=state.step + T * N), metrics

    return a2c._replace(update=update, policy=None)


def agent_of(name, spec=ENV.spec):
    return prediction(spec) if name == "prediction" else agents.get(name).make(spec)


def rollouts(number, seed=0):
    """`[number, T, N, ...]` of random numbers; episodes end in both ways."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(number, T + 1, N, 4))
    ends = rng.random((2, number, T, N)) < 0.15
    next_obs = obs[:, 1:] + ends[1][..., None]  # another successor where it is cut
    return Rollout(
        obs=jnp.array(obs[:, :-1]),
        action=jnp.array(rng.integers(2, size=(number, T, N)), jnp.int32),
        reward=jnp.array(rng.normal(size=(number, T, N))),
        terminated=jnp.array(ends[0]),
        truncated=jnp.array(ends[1]),
        next_obs=jnp.array(next_obs),
        extras=jnp.array(rng.uniform(-1.0, -0.4, size=(number, T, N))),
        memory=(),
    )


def as_float64(tree):
    return jax.tree.map(
        lambda x: x.astype("float64") if jnp.result_type(x) == jnp.float32 else x, tree
    )


def keys_of(number):
    return jax.random.split(jax.random.key(7), number)


def history(tuned_agent, config, number, float64=True):
    """States before each of some updates, their metrics, what they were given."""
    state = jax.jit(tuned_agent.init)(config, jax.random.key(0))
    seen = rollouts(number)
    if isinstance(state.window.rollouts.extras, tuple):  # without a policy
        seen = seen._replace(extras=())
    state = as_float64(state) if float64 else state

    @jax.jit
    def step(state, rollout, key):
        state = tuned_agent.observe(config, state, rollout)
        new, metrics = tuned_agent.update(config, state, rollout, key)
        return new, (state, metrics)

    out = []
    for i, key in enumerate(keys_of(number)):
        rollout = jax.tree.map(lambda x, i=i: x[i], seen)
        state, (before, metrics) = step(state, rollout, key)
        out.append((before, metrics, rollout, jax.random.split(key, 4)))
    return out


GAMMA = LogHorizon(0.0, 0.999)
OUTER = dict(outer_gamma=0.97, outer_lambda=0.8)


def gamma_at(raw):
    """Even in the logarithm of the horizon, of a sigmoid."""
    return 1.0 - math.exp(math.log(0.001) / (1.0 + math.exp(-raw)))


def outer_loss(name, config, settings, before, rollout, data_key, value_cost=0.3):
    """Function of the agent's state: what the newest rollout says of it."""
    outer = dataclasses.replace(config, gamma=settings.outer_gamma)
    if name in ("dqn", "pqn", "sarsa"):
        return outer_td_loss(name, outer, before, rollout, data_key)
    args = (ENV.spec, outer, before.critic.params, rollout, settings.outer_lambda)
    adv, value = on_policy.advantages(*args)

    def value_score(state):
        v = on_policy.critic(ENV.spec, config).apply(state.critic, rollout.obs)
        return 0.5 * jnp.mean((v - adv - value) ** 2)

    def policy_score(state):
        policy = on_policy.actor(ENV.spec, config).apply(state.actor, rollout.obs)
        ratio = jnp.exp(policy.log_prob(rollout.action) - rollout.extras)
        score = -jnp.mean(ratio * adv) - 0.02 * policy.entropy().mean()
        return score + value_cost * value_score(state)

    return value_score if name == "prediction" else policy_score


def outer_td_loss(name, outer, before, rollout, data_key):
    """One step, by another network's value of the agent's choice; dqn: of replay."""
    size = outer.hidden_sizes, outer.activation
    network = networks.QNetwork(1, 2, *size)
    if name == "dqn":
        seen = replay.sample(before.agent.replay, data_key, outer.batch_size).windows
        seen = seen._replace(reward=seen.reward[:, 0])
    else:
        seen = on_policy.flatten(rollout)
    module = agents.get(name)
    own = module.network(ENV.spec, outer).apply(before.agent.params, seen.next_obs)
    q_t = network.apply(before.critic.target_params, seen.next_obs)
    v_t = q_t[jnp.arange(len(q_t)), own.argmax(-1)]
    target = seen.reward + outer.gamma * (1 - seen.terminated) * v_t

    def score(state):
        q = module.network(ENV.spec, outer).apply(state.params, seen.obs)
        chosen = q[jnp.arange(len(target)), seen.action]
        return 0.5 * jnp.mean((target - chosen) ** 2)

    return score


@pytest.mark.parametrize(
    "name, steps",
    [
        ("a2c", 1),
        ("ppo", 2),
        ("impala", 2),
        ("reinforce", 2),
        ("prediction", 2),
        ("dqn", 2),
        ("pqn", 1),
        ("sarsa", 2),
    ],
)
def test_tuned_discount_follows_finite_differences(name, steps, x64):
    """Of the agent's own updates, run again with another discount, and scored."""
    agent = agent_of(name)
    config = config_of("a2c" if name == "prediction" else name, gamma=0.9)
    costs = dict(outer_value_cost=0.3, outer_entropy_cost=0.02)
    settings = Settings(num_updates=steps, **OUTER, **costs)
    tuned = tune(agent, ENV.spec, {"gamma": GAMMA}, settings)
    past = history(tuned, config, steps + 2)
    before, metrics, rollout, keys = past[-1]
    score = outer_loss(name, config, settings, before, rollout, keys[1])
    present = before.agent.replay if name == "dqn" else None

    @jax.jit
    def after(gammas):
        state = past[-1 - steps][0].agent
        for gamma, (_, _, seen, keys) in zip(
            gammas, past[-1 - steps : -1], strict=True
        ):
            changed = dataclasses.replace(config, gamma=gamma)
            if present is not None:  # draws from what is in the replay now
                state = state._replace(replay=present)
            state, _ = agent.update(changed, state, seen, keys[0])
        return score(state)

    raws = [float(past[i + 1][0].raw["gamma"]) for i in range(-1 - steps, -1)]
    up, down = (
        after(jnp.array([gamma_at(raw + h) for raw in raws])) for h in (1e-5, -1e-5)
    )
    want = (up - down) / 2e-5
    assert abs(want) > 1e-7
    np.testing.assert_allclose(metrics["meta_gamma_gradient"], want, rtol=1e-4)
    middle = after(jnp.array([gamma_at(raw) for raw in raws]))
    np.testing.assert_allclose(metrics["meta_loss"], middle, rtol=1e-6)
    assert metrics["meta_gamma_gradient_sign"] == np.sign(want)
    np.testing.assert_allclose(metrics["meta_gamma_gradient_norm"], abs(want), 1e-4)


def run(tuned_agent, config, iterations=6, seed=0):
    """Final state and metrics of a short training."""

    @jax.jit
    def go(key):
        ts = train.init(tuned_agent, ENV, config, key)
        return train.run(tuned_agent, ENV, config, ts, iterations)

    return go(jax.random.key(seed))


A2C = agents.get("a2c").make(ENV.spec)


def tuned_a2c(parameters=None, **settings):
    parameters = parameters or {"gamma": GAMMA}
    return tune(A2C, ENV.spec, parameters, Settings(**settings))


def test_nothing_moves_before_the_window_is_full():
    config = config_of("a2c", gamma=0.9)
    _, metrics = run(tuned_a2c(num_updates=3), config)
    gamma = metrics["meta_gamma"]
    np.testing.assert_allclose(gamma[:3], 0.9, rtol=1e-6)
    assert (np.diff(gamma[2:]) != 0).all()


def test_raw_numbers_move_by_adam(x64):
    config = config_of("a2c", gamma=0.9, anneal=False)
    seen = history(tuned_a2c(learning_rate=0.1), config, 5)
    raw = np.array([before.raw["gamma"] for before, *_ in seen])
    gradients = [float(metrics["meta_gamma_gradient"]) for _, metrics, *_ in seen]
    assert gradients[0] == 0  # there is nothing to replay yet
    mean = square = 0.0
    for i, gradient in enumerate(gradients[:-1]):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 1e-3 * gradient**2
        root = math.sqrt(square / (1 - 0.999 ** (i + 1)))
        step = mean / (1 - 0.9 ** (i + 1)) / (root + 1e-8)
        np.testing.assert_allclose(raw[i + 1] - raw[i], -0.1 * step, rtol=1e-6)


def test_steps_shrink_with_the_agents_learning_rate():
    """To nothing at the end of training; without annealing they stay."""
    moved = {}
    for anneal in (True, False):
        config = config_of("a2c", gamma=0.9, anneal=anneal)
        tuned = tuned_a2c()
        ts, _ = run(tuned, config)
        end = ts.agent.agent._replace(step=jnp.int32(config.total_steps))
        state = ts.agent._replace(agent=end)
        rollout = jax.tree.map(lambda x: x[0], rollouts(1))
        new, _ = jax.jit(tuned.update)(config, state, rollout, jax.random.key(0))
        moved[anneal] = float(new.raw["gamma"] - state.raw["gamma"])
    assert moved[True] == 0 and moved[False] != 0


def test_modes_and_rematerialisation_agree():
    """Also with a network's numbers; the values learned by are within their bounds."""
    config = config_of("a2c", gamma=0.9)
    parameters = {
        "gamma": StateDependent(Bounded(0.5, 0.95), (3,)),
        "lambda_": Bounded(0.0, 1.0),
        "entropy_cost": Contextual(Bounded(0.0, 0.5), 4, (3,)),
    }
    results = [
        run(tuned_a2c(parameters, num_updates=2, learning_rate=0.1, **how), config, 8)
        for how in ({"mode": "reverse"}, {"mode": "forward"}, {"remat": True})
    ]
    for other, _ in results[1:]:
        chex.assert_trees_all_close(results[0][0].agent.raw, other.agent.raw, atol=2e-3)
    _, metrics = results[0]
    assert ((metrics["meta_gamma"] > 0.5) & (metrics["meta_gamma"] < 0.95)).all()
    for name in parameters:
        assert metrics[f"meta_{name}_gradient_norm"][-1] > 0
        assert len(np.unique(metrics[f"meta_{name}"])) > 4


def test_context_is_of_the_newest_rewards_in_units_of_all():
    """Whatever the unit of rewards; the value is that of the network at it."""
    parameter = Contextual(Bounded(0.0, 1.0), 3, (3,))
    tuned = tuned_a2c({"entropy_cost": parameter}, learning_rate=0.1)
    config = config_of("a2c", entropy_cost=0.3)
    step = jax.jit(tuned.update)
    state = jax.jit(tuned.init)(config, jax.random.key(0))
    chex.assert_trees_all_equal(state.context, jnp.zeros(3))
    means = 1e-3 * jnp.array([2.0, -1.0, 0.5, 3.0])
    first = jax.tree.map(lambda x: x[0], rollouts(1))
    before = []
    for mean in means:
        before.append(state)
        rollout = first._replace(reward=jnp.full((T, N), mean))
        state, metrics = step(config, state, rollout, jax.random.key(0))
    roots = jnp.sqrt(jnp.cumsum(means**2) / jnp.arange(1, 5))
    np.testing.assert_allclose(state.context, jnp.tanh(means / roots)[1:], rtol=1e-5)
    raw, net = state.raw["entropy_cost"], networks.Critic(1, (3,))
    fresh = before[0].raw["entropy_cost"]["network"]
    assert 0 < abs(net.apply(fresh, jnp.ones(3))) < 0.2  # near the start everywhere
    place = raw["start"] + net.apply(raw["network"], before[-1].context)
    np.testing.assert_allclose(
        metrics["meta_entropy_cost"], jax.nn.sigmoid(place), rtol=1e-5
    )
    nothing = first._replace(reward=jnp.zeros((T, N)))
    state, _ = step(config, before[0], nothing, jax.random.key(0))
    chex.assert_trees_all_equal(state.context, jnp.zeros(3))


def test_state_dependent_discount_is_of_the_successor():
    """And the network's gradient is that of finite differences, here of its start."""
    parameter = StateDependent(Bounded(0.0, 1.0), (3,))
    config = config_of("a2c", gamma=0.7)
    tuned = tuned_a2c({"gamma": parameter}, learning_rate=0.5)
    ts, _ = run(tuned, config, 8)
    raw, seen = ts.agent.raw["gamma"], jax.tree.map(lambda x: x[0], rollouts(1))
    net = networks.Critic(1, (3,))
    place = jax.nn.sigmoid(raw["start"] + net.apply(raw["network"], seen.next_obs))

    def update(config, state, rollout, key):
        new, metrics = A2C.update(config, state, rollout, key)
        return new, metrics | {"discount": config.gamma}

    spy = tune(
        A2C._replace(update=update),
        ENV.spec,
        {"gamma": parameter},
        Settings(learning_rate=1e-9),
    )
    _, metrics = jax.jit(spy.update)(config, ts.agent, seen, jax.random.key(0))
    np.testing.assert_allclose(metrics["discount"], place, rtol=1e-5)
    assert np.ptp(place) > 1e-3


@pytest.mark.parametrize("length", [1, 3])
def test_bootstrapped_target_is_a_step_from_where_the_agent_is(length, x64):
    """The divergence from it and the derivative, of updates run again by hand."""
    config = config_of("a2c", gamma=0.9)
    how = dict(num_target_updates=length, target_rate=0.3, outer_value_cost=0.0)
    settings = Settings(**OUTER, **how, outer_entropy_cost=0.02)
    tuned = tune(A2C, ENV.spec, {"gamma": GAMMA}, settings)
    past = history(tuned, config, length + 2)
    before, metrics, rollout, keys = past[-1]
    start, _, seen, start_keys = past[-1 - length]
    assert len(before.window.keys) == length
    score = outer_loss("a2c", config, settings, before, rollout, keys[1], 0.0)
    policy = on_policy.actor(ENV.spec, config)

    @jax.jit
    def distance(gamma):
        slope = jax.grad(lambda x: score(before.agent._replace(actor=x)))
        target = optax.tree.add_scale(
            before.agent.actor, -0.3, slope(before.agent.actor)
        )
        changed = dataclasses.replace(config, gamma=gamma)
        new, _ = A2C.update(changed, start.agent, seen, start_keys[0])
        old, new = (policy.apply(x, rollout.obs) for x in (target, new.actor))
        return jnp.mean(jnp.sum(old.probs * jnp.log(old.probs / new.probs), axis=-1))

    raw = float(past[-length][0].raw["gamma"])
    up, down = (distance(gamma_at(raw + h)) for h in (1e-5, -1e-5))
    np.testing.assert_allclose(metrics["meta_loss"], distance(gamma_at(raw)), 1e-5)
    want = (up - down) / 2e-5
    assert want != 0
    np.testing.assert_allclose(metrics["meta_gamma_gradient"], want, rtol=1e-3)


def test_evolution_agrees_with_the_meta_gradient():
    config = config_of("a2c", gamma=0.9)
    parameters = {"gamma": GAMMA, "lambda_": Bounded(0.0, 1.0)}
    _, metrics = run(tuned_a2c(parameters, evolution_pairs=64), config)
    assert (metrics["evolution_cosine"][1:] > 0.8).all()


def test_inner_critic_scores_by_the_agents_values():
    """And is then the only one: there is no network of the outer discount."""
    config = config_of("a2c", gamma=0.9)
    own, inner = (run(tuned_a2c(outer_critic=c), config)[0] for c in ("own", "inner"))
    assert own.agent.raw["gamma"] != inner.agent.raw["gamma"]
    assert own.agent.critic.opt_state[1].count == 6
    assert not jax.tree.leaves(inner.agent.critic)


def test_outer_critic_has_a_learning_rate_of_its_own():
    """The first step of Adam is as long as the rate."""
    config = config_of("a2c", gamma=0.9)
    state = jax.jit(tuned_a2c().init)(config, jax.random.key(0))
    rollout = jax.tree.map(lambda x: x[0], rollouts(1))
    moved = []
    for rate in (1.0, 5.0):
        tuned = tuned_a2c(outer_critic_rate=rate)
        new, _ = jax.jit(tuned.update)(config, state, rollout, jax.random.key(0))
        difference = jax.tree.map(jnp.subtract, new.critic.params, state.critic.params)
        moved.append(optax.tree.norm(difference))
    np.testing.assert_allclose(moved[1], 5.0 * moved[0], rtol=1e-3)


def test_saturated_clips_are_counted():
    for limit, share in ((1e-6, 1.0), (1e6, 0.0)):
        config = config_of("a2c", gamma=0.9, max_grad_norm=limit)
        _, metrics = run(tuned_a2c(), config)
        np.testing.assert_array_equal(metrics["saturated_clips"][1:], share)


def test_seeds_train_side_by_side_in_one_program():
    """Sixteen of them, under vmap, each as it does alone."""
    config = config_of("a2c", gamma=0.9, total_steps=8 * T * N)
    tuned = tuned_a2c()
    keys = jax.vmap(jax.random.key)(jnp.arange(16))
    go = functools.partial(train.train, tuned, ENV, config)
    ts, metrics = jax.jit(jax.vmap(go))(keys)
    alone, _ = jax.jit(go)(keys[5])
    of_five = jax.tree.map(lambda x: x[5], ts.agent.raw)
    chex.assert_trees_all_close(of_five, alone.agent.raw, rtol=1e-3)
    assert len(np.unique(metrics["meta_gamma"][:, -1])) == 16


def test_a_restored_run_goes_on_bit_for_bit(tmp_path):
    config = config_of("a2c", gamma=0.9)
    tuned = tuned_a2c(
        {"gamma": GAMMA, "entropy_cost": Contextual(Bounded(0, 1))}, num_updates=2
    )
    go = jax.jit(lambda ts: train.run(tuned, ENV, config, ts, 4)[0])
    ts = jax.jit(lambda key: train.init(tuned, ENV, config, key))(jax.random.key(0))
    middle = go(ts)
    checkpoint.save(tmp_path / "checkpoints", 4, middle)
    restored = checkpoint.restore(
        tmp_path / "checkpoints", jax.eval_shape(lambda: middle)
    )
    as_data = functools.partial(
        jax.tree.map,
        lambda x: (
            jax.random.key_data(x)
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        ),
    )
    chex.assert_trees_all_equal(as_data(go(restored)), as_data(go(middle)))


def test_conditioned_networks_see_the_tuned_values():
    """Before the observation, from -1 at the low bound to 1; in acting and learning."""
    spec = conditioned(ENV.spec, 2)
    assert spec.obs_shape == (6,)
    parameters = {"gamma": Bounded(0.5, 1.0), "lambda_": Bounded(0.0, 1.0)}
    seen = []
    plain = agents.get("a2c").make(spec)

    def act(config, state, memory, obs, key, explore):
        seen.append(obs)
        return plain.act(config, state, memory, obs, key, explore)

    agent = tune(plain._replace(act=act), spec, parameters, Settings(condition=True))
    config = config_of("a2c", gamma=0.6, lambda_=0.95)
    state = agent.init(config, jax.random.key(0))
    obs = jnp.arange(12.0).reshape(3, 4)
    agent.act(config, state, (), obs, jax.random.key(1), True)
    np.testing.assert_allclose(seen[-1][:, 2:], obs)
    np.testing.assert_allclose(seen[-1][:, :2], [[-0.6, 0.9]] * 3, rtol=1e-5)
    ts, metrics = run(agent, config)
    assert ts.agent.window.rollouts.obs.shape == (1, T, N, 6)
    assert (metrics["meta_gamma"][2:] != 0.6).all()


@pytest.mark.parametrize("shape", [(4,), (10, 10, 4)])
def test_conditioned_images_have_further_planes(shape):
    spec = conditioned(ENV.spec._replace(obs_shape=shape, obs_dtype="bool"), 1)
    assert spec.obs_shape == (*shape[:-1], 5) and spec.obs_dtype == "float32"
    agent = tune(
        agents.get("a2c").make(spec),
        spec,
        {"gamma": Bounded(0.0, 1.0)},
        Settings(condition=True),
    )
    config = config_of("a2c", gamma=0.75)
    state = agent.init(config, jax.random.key(0))
    obs = jnp.ones((2, *shape), bool)
    action, _, _ = agent.act(config, state, (), obs, jax.random.key(1), True)
    assert action.shape == (2,)


@pytest.mark.parametrize(
    "text, parameter",
    [
        ("gamma", LogHorizon(0.0, 0.9999)),
        ("gamma=bounded,0.9,1", Bounded(0.9, 1.0)),
        ("gamma=log_horizon,0.5,0.99", LogHorizon(0.5, 0.99)),
        ("gamma=state_dependent", StateDependent(LogHorizon(0.0, 0.9999))),
        ("gamma=state_dependent,0,1", StateDependent(Bounded(0.0, 1.0))),
        ("lambda_", Bounded(0.0, 1.0)),
        ("learning_rate", Bounded(0.01 * 2e-3, 1.0)),  # 0 is not allowed
        ("entropy_cost=contextual,0,2", Contextual(Bounded(0.0, 2.0))),
        ("entropy_cost=contextual", Contextual(Bounded(0.0, 1.0))),
    ],
)
def test_parameters_on_the_command_line(text, parameter):
    name = text.partition("=")[0]
    assert parse_parameter(text, config_of("a2c")) == (name, parameter)


def test_horizons_are_even_in_their_logarithm():
    scale = LogHorizon(0.9, 0.999)
    places = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(scale.at(places), [0.9, 0.99, 0.999], rtol=1e-5)
    for other in (scale, Bounded(-1.0, 3.0)):
        np.testing.assert_allclose(other.position(other.at(places)), places, atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: tuned_a2c({"gama": GAMMA}),
            "field to tune 'gama'; did you mean: gamma",
        ),
        (lambda: tuned_a2c({"num_envs": GAMMA}), "num_envs: shapes the program"),
        (lambda: tuned_a2c({"gamma": Bounded(0.0, 2.0)}), "gamma=2.0: must be in"),
        (lambda: tuned_a2c({"lambda_": Bounded(-1.0, 1.0)}), "lambda_=-1.0: must be"),
        (
            lambda: tuned_a2c({"gamma": Bounded(0.95, 1.0)}),
            r"gamma=0.9: must be in \[0.95",
        ),
        (
            lambda: tune(agent_of("ppo"), ENV.spec, {"max_kl": Bounded(0.1, 1.0)}),
            "max_kl=None: must be a number",
        ),
        (lambda: tune(A2C, ENV.spec, {}), "tuned: names no field"),
        (lambda: Bounded(1.0, 1.0), "low must be below high"),
        (lambda: LogHorizon(0.0, 1.0), r"bounds of a discount must be in \[0, 1\)"),
        (lambda: StateDependent(GAMMA, (0,)), "hidden_sizes"),
        (lambda: Contextual(GAMMA, 0), "length=0"),
        (lambda: tuned_a2c(num_updates=0), "num_updates=0"),
        (lambda: tuned_a2c(outer_gamma=1.1), "outer_gamma=1.1"),
        (lambda: tuned_a2c(outer_critic_rate=0.0), "outer_critic_rate=0.0"),
        (lambda: tuned_a2c(mode="both"), "mode='both'"),
        (lambda: tuned_a2c(outer_critic="none"), "outer_critic='none'"),
        (
            lambda: tune(
                A2C._replace(policy=None, value=None), ENV.spec, {"gamma": GAMMA}
            ),
            "no `policy`, `q_values` or `value`",
        ),
        (
            lambda: tune(
                agent_of("dqn"),
                ENV.spec,
                {"gamma": GAMMA},
                Settings(outer_critic="inner"),
            ),
            "outer_critic='inner': only of agents with a policy",
        ),
        (
            lambda: parse_parameter("gamma=0.9,1", config_of("a2c")),
            "NAME=KIND,LOW,HIGH",
        ),
        (lambda: parse_parameter("gamma=bounded,a,b", config_of("a2c")), "be numbers"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        agent = make()
        name = "ppo" if "max_kl" in message else "a2c"
        agent.init(config_of(name, gamma=0.9), jax.random.key(0))


@pytest.mark.parametrize(
    "name, field", [("ppo", "max_kl"), ("dqn", "epsilon_end"), ("a2c", "clip")]
)
def test_a_field_without_derivative_is_named(name, field):
    """A comparison, what only acting depends on, a whole target stopped."""
    agent, bounds = agent_of(name), Bounded(0.001, 1.0)
    config = config_of(name)
    if field == "max_kl":
        config = dataclasses.replace(config, max_kl=0.1)
    if name == "a2c":
        field = "gamma"

        def update(config, state, rollout, key):
            return A2C.update(jax.lax.stop_gradient(config), state, rollout, key)

        agent = agent._replace(update=update)
    tuned = tune(agent, ENV.spec, {field: bounds})
    with pytest.raises(
        ValueError, match=f"{field}: the meta-gradient is zero whatever"
    ):
        jax.eval_shape(
            lambda key: train.train(tuned, ENV, config, key), jax.random.key(0)
        )
