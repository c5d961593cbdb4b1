"""Disco103: what it learns from, its first values, its file."""

import dataclasses
import functools
import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import agents, envs
from rljax.commands.common import Run
from rljax.learners import by_rule
from rljax.meta.rules import disco
from rljax.running import checkpoint, train
from rljax.types import Discrete, MultiDiscrete, ObsSpec, Spec

from ..agent_case import N, T, differ, learned, observe_and_update, rule_weights

FOLDER = os.environ.get("RLJAX_DISCO")
disco103 = agents.get("disco103")
only_disco103 = pytest.mark.parametrize("case", ["disco103"], indirect=True)


@only_disco103
def test_disco103_learns_from_the_newest_rollout_and_the_replay(case, state, rollout):
    """With a rule that tells what it got."""
    seen = {}

    def learn(apply, config, state, batch, **kwargs):
        seen.update(batch=batch, **kwargs)
        return state, {}

    older = rollout._replace(reward=rollout.reward + 100.0)

    @jax.jit
    def got(state):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(by_rule, "learn", learn)
            state = case.agent.observe(case.config, state, older)
            observe_and_update(
                case.agent, case.config, state, rollout, jax.random.key(0)
            )
        return seen["batch"], seen["rule_params"]

    batch, params = got(state)
    assert batch.reward.shape == (T, case.config.batch_size)
    np.testing.assert_array_equal(batch.obs[:, :N], rollout.obs)
    np.testing.assert_array_equal(batch.extras[:, :N], rollout.extras)
    assert (batch.reward[:, N:] > 50).any()  # sequences of the rollout before, too
    np.testing.assert_allclose(batch.extras, -0.693)
    chex.assert_trees_all_equal(params, disco.load(rule_weights()))


@only_disco103
def test_disco103_first_values_are_near_zero(case):
    config = disco103.Config(hidden_sizes=(64, 64))
    obs = np.random.default_rng(0).normal(size=(50, *case.spec.obs_shape))

    @jax.jit
    def first(key):
        state = case.agent.init(config, key)
        outputs = disco103.network(case.spec, config).apply(state.params, obs)
        near = jax.nn.softmax(outputs["q"])[..., 250:351].sum(-1)  # bins of up to 50
        probs = jax.nn.softmax(outputs["logits"])
        return disco.mean_value(outputs["q"]), probs, near

    values, probs, near = first(jax.random.key(0))
    assert near.min() > 0.9
    assert 0 < np.abs(values).max() < 0.5
    assert 0 < np.abs(probs - 0.5).max() < 0.1


@only_disco103
def test_disco103_stores_the_logits_that_it_acted_by(case, state):
    obs = np.ones((N, *case.spec.obs_shape), np.float32)
    act = functools.partial(case.agent.act, case.config, state, (), obs)
    action, _, logits = jax.jit(act, static_argnames="explore")(
        jax.random.key(0), explore=True
    )
    policy = disco103.policy(case.spec, case.config, state, obs)
    np.testing.assert_allclose(logits, policy.logits, rtol=1e-6)
    assert action.shape == (N,)


@only_disco103
def test_disco103_keeps_no_weights_and_other_weights_change_it(
    case, state, rollout, tmp_path
):
    """They are constants of the program, the same ones for all seeds."""
    arrays = {name: 0.5 * x for name, x in disco.load(rule_weights()).items()}
    np.savez(tmp_path / "other.npz", **arrays)
    other = dataclasses.replace(case.config, weights=str(tmp_path / "other.npz"))
    step = jax.jit(functools.partial(observe_and_update, case.agent))
    one, two = (
        step(config, state, rollout, jax.random.key(0))[0]
        for config in (case.config, other)
    )
    assert differ(learned(one), learned(two))
    matrices = {shape for shape in disco.SHAPES.values() if np.prod(shape) > 1_000}
    assert len(matrices) > 5
    assert not matrices & {x.shape for x in jax.tree.leaves(one)}


@only_disco103
def test_disco103_is_saved_and_goes_on_bit_for_bit(case, tmp_path):
    run = jax.jit(
        functools.partial(train.run, case.agent, case.env, case.config, iterations=2)
    )
    init = functools.partial(train.init, case.agent, case.env, case.config)
    first, _ = run(train_state=jax.jit(init)(jax.random.key(0)))
    checkpoint.save(tmp_path, 1, first)
    restored = checkpoint.restore(tmp_path, jax.eval_shape(init, jax.random.key(0)))
    ends = [run(train_state=x)[0].agent for x in (first, restored)]
    chex.assert_trees_all_equal(*ends)


def test_disco103_says_where_the_weights_are():
    with pytest.raises(ValueError) as error:
        disco103.Config().validate()
    message = str(error.value)
    assert message.startswith("weights='': must be the path of disco_103.npz")
    assert "\n" not in message
    for words in (
        "google-deepmind/disco_rl",
        "CC-BY 4.0",
        "pending patent application",
    ):
        assert words in message


def test_disco103_run_knows_the_weights_by_their_content():
    """So that a run that goes on with others says so."""
    config = disco103.Config(weights=rule_weights())
    run = Run("disco103", "CartPole-v1", {}, seeds=1, seed=0, rows=1, config=config)
    assert list(run.sources()) == [rule_weights()]


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Discrete(2, masked=True), "disco103 cannot mask actions"),
        (MultiDiscrete((2, 3)), "disco103 values one discrete choice at a time"),
        (envs.make("Pendulum-v1").spec.action, "disco103 needs discrete actions"),
    ],
)
def test_disco103_takes_discrete_actions(action, words):
    with pytest.raises(ValueError, match=words):
        disco103.make(Spec(ObsSpec.array((3,)), action))


def test_disco103_batch_holds_the_newest_sequences():
    config = disco103.Config(weights=rule_weights())
    with pytest.raises(ValueError, match="batch_size=4: must be at least num_envs = 8"):
        dataclasses.replace(config, batch_size=4).validate()
    dataclasses.replace(config, batch_size=8).validate()


def test_disco103_takes_a_batch_without_replay():
    env = envs.make("CartPole-v1")
    sizes = dict(num_envs=2, batch_size=2, rollout_length=4, capacity=8)
    config = disco103.Config(
        hidden_sizes=(8,), action_size=4, weights=rule_weights(), **sizes
    )
    run = functools.partial(train.train, disco103.make(env.spec), env, config)
    state, _ = jax.eval_shape(run, jax.random.key(0))
    assert state.agent.step.shape == () and jnp.int32 == state.agent.step.dtype


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="RLJAX_DISCO names no folder with disco_103.npz")
def test_disco103_learns_catch_by_the_published_numbers():
    """Adds learning: 450 updates."""
    env = envs.make("Catch-bsuite")
    config = agents.config_for("disco103", "Catch-bsuite")
    config = dataclasses.replace(
        config, weights=f"{FOLDER}/disco_103.npz", total_steps=120_000
    )
    run = jax.jit(functools.partial(train.train, disco103.make(env.spec), env, config))
    _, metrics = run(jax.random.key(0))
    assert metrics["episode_return"][-20:].mean() > 0.8
