"""Recurrent PPO: sequences, burn-in and loss by loops; what it remembers."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rljax import agents, envs
from rljax.running import train
from rljax.running.evaluate import evaluate
from rljax.running.rollout import unroll

from .. import probe_envs

N, T = 3, 8
ppo_rnn = agents.get("ppo_rnn")
CONFIG = ppo_rnn.Config(
    gamma=0.9,
    lambda_=0.8,
    total_steps=1_000,
    num_envs=N,
    rollout_length=T,
    sequence_length=4,
    burn_in=3,
    num_epochs=1,
    num_minibatches=1,
    hidden_sizes=(5,),
    memory_size=4,
    max_grad_norm=1e3,
)


class Leaving(probe_envs.TwoPlaces):
    """After two steps action 1 terminates; the time limit cuts the others."""

    def step_env(self, key, state, action, params):
        obs, state, reward, _, info = super().step_env(key, state, action, params)
        return obs, state, reward, (state.time > 2) & (action == 1), info


ENV = envs.wrap(Leaving())
AGENT, NETS = ppo_rnn.make(ENV.spec), ppo_rnn.nets(ENV.spec, CONFIG)
value_of = jax.jit(NETS.critic.apply)
LOSSES = {"actor": ppo_rnn.actor_loss, "critic": ppo_rnn.critic_loss}
# (config, params, parameters of the burn-in, batch) -> ((loss, metrics), gradient)
GRADIENTS = {
    name: jax.jit(
        jax.value_and_grad(functools.partial(loss, ENV.spec), 1, has_aux=True)
    )
    for name, loss in LOSSES.items()
}
prepare = jax.jit(functools.partial(ppo_rnn.prepare, ENV.spec, CONFIG))


@jax.jit
def act(*args):
    """Log-probabilities of the actions, and the next memory."""
    policy, memory = NETS.actor.apply(*args)
    return jax.nn.log_softmax(policy.logits), memory


@pytest.fixture(scope="module")
def acted():
    """Two rollouts with parameters other than fresh, and the state between them."""

    @jax.jit
    def rollouts(key):
        ts = train.init(AGENT, ENV, CONFIG, key)
        flat, unravel = ravel_pytree((ts.agent.actor, ts.agent.critic))
        actor, critic = unravel(flat + jax.random.normal(key, flat.shape))
        ts = ts._replace(agent=ts.agent._replace(actor=actor, critic=critic))
        ts, first, _ = unroll(
            AGENT.act,
            ENV,
            CONFIG,
            ts,
            memory=AGENT.memory,
            key=jax.random.key(1),
            length=T,
        )
        _, past = ppo_rnn.prepare(ENV.spec, CONFIG, ts.agent, first)
        ts = ts._replace(agent=ts.agent._replace(past=past))
        ts, second, _ = unroll(
            AGENT.act,
            ENV,
            CONFIG,
            ts,
            memory=AGENT.memory,
            key=jax.random.key(2),
            length=T,
        )
        return ts.agent, first, second

    state, first, second = jax.tree.map(np.array, rollouts(jax.random.key(0)))
    ended = first.truncated | first.terminated
    assert any(0 < row.sum() < N for row in ended[-3:])
    assert second.terminated.any() and (second.truncated & ~second.terminated).any()
    return state, first, second


@pytest.fixture(scope="module")
def sequences(acted):
    state, _, second = acted
    return jax.tree.map(np.array, prepare(state, second)[0])


def test_ppo_rnn_sees_in_learning_what_it_saw_in_acting(acted, sequences):
    """With unchanged parameters every probability ratio is 1, also after burn-in."""
    state, first, _ = acted
    loss = functools.partial(GRADIENTS["actor"], CONFIG)
    (_, metrics), _ = loss(state.actor, state.actor, sequences)
    assert abs(metrics["approx_kl"]) < 1e-6 and metrics["clip_fraction"] == 0
    fresh = jax.jit(AGENT.init)(CONFIG, jax.random.key(0))
    fresh = fresh._replace(actor=state.actor, critic=state.critic)
    (_, metrics), _ = loss(state.actor, state.actor, prepare(fresh, first)[0])
    assert abs(metrics["approx_kl"]) < 1e-6  # nothing was before it
    other = jax.tree.map(np.zeros_like, state.actor)
    (_, metrics), _ = loss(state.actor, other, sequences)
    assert metrics["approx_kl"] > 1e-5


def test_ppo_rnn_sequences_by_a_loop(acted, sequences):
    state, first, second = acted
    adv, value = by_a_loop(state, second)
    both = jax.tree.map(lambda *x: np.concatenate(x), first, second)
    obs, memory, ended = both.obs, both.memory, both.terminated | both.truncated
    for part in range(2):
        for n in range(N):
            one = jax.tree.map(lambda x, i=part * N + n: x[i], sequences)
            t = T + part * 4
            np.testing.assert_array_equal(one.seen.obs, obs[t - 3 : t + 4, n])
            before = jax.tree.map(lambda x, at=(t - 3, n): x[at], memory)
            jax.tree.map(np.testing.assert_array_equal, one.seen.memory, before)
            np.testing.assert_array_equal(one.seen.start[1:], ended[t - 3 : t + 3, n])
            rows = slice(part * 4, part * 4 + 4)
            np.testing.assert_array_equal(one.action, second.action[rows, n])
            np.testing.assert_array_equal(one.log_prob, second.extras[rows, n])
            np.testing.assert_allclose(one.advantage, adv[rows, n], rtol=1e-4)
            target = (adv + value)[rows, n]
            np.testing.assert_allclose(one.target, target, rtol=1e-4)


def by_a_loop(state, rollout):
    """Advantages and values `[T, N]`; a cut step's successor has its own memory."""
    adv, values = np.zeros((T + 1, N)), np.zeros((T, N))
    for t in reversed(range(T)):
        before = jax.tree.map(lambda x, t=t: x[t], rollout.memory.critic)
        value, after = value_of(state.critic, rollout.obs[t], before)
        next_value, _ = value_of(state.critic, rollout.next_obs[t], after)
        value, next_value = np.array(value), np.array(next_value)
        terminated = np.array(rollout.terminated[t])
        going_on = ~(terminated | np.array(rollout.truncated[t]))
        values[t] = value
        error = rollout.reward[t] + 0.9 * ~terminated * next_value - value
        adv[t] = error + 0.9 * 0.8 * going_on * adv[t + 1]
    return adv[:T], values


def moved(params, wave):
    return jax.tree.map(lambda x: x + 0.2 * wave(37 * x + 1), params)


def walk(apply, params, older, one, memory):
    """Outputs of one sequence after the burn-in, step by step."""
    outputs = []
    for t in range(7):
        if one.seen.start[t]:
            memory = jax.tree.map(np.zeros_like, memory)
        output, memory = apply(older if t < 3 else params, one.seen.obs[t], memory)
        outputs.append(np.array(output))
    return outputs[3:]


def test_ppo_rnn_losses_by_a_loop(acted, sequences):
    """Parameters have moved on; the burn-in's are others again."""
    state, _, _ = acted
    config = dataclasses.replace(CONFIG, entropy_cost=0.3)
    actor, critic = moved(state.actor, np.sin), moved(state.critic, np.sin)
    old_actor, old_critic = moved(state.actor, np.cos), moved(state.critic, np.cos)
    adv = np.array(sequences.advantage)
    adv = (adv - adv.mean()) / adv.std()
    actor_terms, critic_terms = [], []
    for i in range(len(adv)):
        one = jax.tree.map(lambda x, i=i: x[i], sequences)
        policies = walk(act, actor, old_actor, one, one.seen.memory.actor)
        values = walk(value_of, critic, old_critic, one, one.seen.memory.critic)
        for t, (log_probs, value) in enumerate(zip(policies, values, strict=True)):
            ratio = np.exp(log_probs[one.action[t]] - one.log_prob[t])
            gain = min(ratio * adv[i, t], np.clip(ratio, 0.8, 1.2) * adv[i, t])
            entropy = -(np.exp(log_probs) * log_probs).sum()
            actor_terms.append(-gain - 0.3 * entropy)
            critic_terms.append((value - one.target[t]) ** 2 / 2)
    for name, args, terms in (
        ("actor", (actor, old_actor), actor_terms),
        ("critic", (critic, old_critic), critic_terms),
    ):
        (got, _), _ = GRADIENTS[name](config, *args, sequences)
        np.testing.assert_allclose(got, np.mean(terms), rtol=1e-4)


def test_ppo_rnn_steps_along_the_gradients_that_burn_in_does_not_carry(acted):
    state, _, second = acted
    batch, past = prepare(state, second)
    new, _ = jax.jit(AGENT.update)(CONFIG, state, second, jax.random.key(0))
    for name, gradient in GRADIENTS.items():
        params = getattr(state, name)
        _, grads = gradient(CONFIG, params, params, batch)
        first_moment = getattr(new, f"{name}_opt")[1].mu  # a tenth of the gradient
        want = 0.1 * ravel_pytree(jax.tree.map(np.array, grads))[0]
        np.testing.assert_allclose(first_moment, want, rtol=1e-3, atol=1e-6)
    chex.assert_trees_all_equal(past, new.past)
    np.testing.assert_array_equal(past.obs, second.obs[-3:])


def test_ppo_rnn_remembers_what_it_saw():
    """The bit seen first must be repeated after two steps that show nothing."""
    env = envs.make("MemoryChain-bsuite", memory_length=3)
    config = ppo_rnn.Config(
        learning_rate=5e-3,
        gamma=0.9,
        total_steps=20_000,
        rollout_length=32,
        sequence_length=8,
        burn_in=2,
        hidden_sizes=(16,),
        memory_size=16,
    )
    agent = ppo_rnn.make(env.spec)
    run = jax.jit(functools.partial(train.train, agent))
    ts, _ = run(env, config, jax.random.key(0))
    play = jax.jit(functools.partial(evaluate, agent, episodes=32))
    returns = play(env, config, ts, jax.random.key(1)).returns
    np.testing.assert_array_equal(returns, 1.0)


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("sequence_length", 3, "must divide rollout_length = 128"),
        ("burn_in", 129, "must be at most rollout_length = 128"),
        ("num_minibatches", 3, "must divide num_envs * rollout_length / sequence_len"),
    ],
)
def test_ppo_rnn_refuses_sequences_that_do_not_fit(field, value, allowed):
    with pytest.raises(ValueError) as error:
        ppo_rnn.Config(**{field: value}).validate()
    assert f"{field}={value}: {allowed}" in str(error.value)
