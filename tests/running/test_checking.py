"""Agents of one's own, tried in shapes."""

import jax
import jax.numpy as jnp
import pytest

from rljax import agents, envs
from rljax.running.checking import check_agent

from ..agent_case import required

ENV = envs.make("CartPole-v1")
BOX = envs.make("Pendulum-v1")
A2C = agents.get("a2c")
CONFIG = A2C.Config(num_envs=2, rollout_length=3, hidden_sizes=(8,))


def agent_for(env=ENV, **hooks):
    return A2C.make(env.spec)._replace(**hooks)


def with_act(change, env=ENV):
    """An agent whose `act` returns what `change` makes of action, memory, extras."""
    right = A2C.make(env.spec).act

    def act(*args, explore):
        return change(*right(*args, explore=explore))

    return agent_for(env, act=act)


def with_update(change):
    """An agent whose `update` returns what `change` makes of state and metrics."""
    right = A2C.make(ENV.spec).update
    return agent_for(update=lambda *args: change(*right(*args)))


def fails(*_, **__):
    raise RuntimeError("no\nluck")


def half(state):
    return state._replace(step=state.step.astype(jnp.float16))


@pytest.mark.parametrize("env", [ENV, BOX], ids=["discrete", "continuous"])
def test_an_agent_that_keeps_its_contract_passes(env):
    check_agent("a2c", agent_for(env), env, CONFIG)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in agents.names()]
)
def test_all_agents_pass(name):
    env = BOX if name in ("apg", "td3") else ENV
    config = agents.get(name).Config(**required(name))
    check_agent(name, agents.make(name, env.spec), env, config)


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        (agent_for(init=fails), "init failed: RuntimeError: no"),
        (agent_for(memory=fails), "memory failed: RuntimeError: no"),
        (agent_for(act=fails), "act failed: RuntimeError: no"),
        (agent_for(observe=fails), "observe failed: RuntimeError: no"),
        (agent_for(update=fails), "update failed: RuntimeError: no"),
        (agent_for(act=lambda config, state: 0), "act failed: TypeError"),
        (agent_for(init=lambda config, key: None), "init: state is None, expected a"),
        (
            agent_for(init=lambda config, key: {"params": "none"}),
            "init: state['params'] is a value of type str, expected an array",
        ),
        (
            agent_for(memory=lambda config, num_envs: jnp.zeros((3, 2))),
            "memory is float32[3, 2], expected the leading axis [2]",
        ),
        (
            with_update(lambda s, m: (s, m | {"seed": m["entropy"]})),
            "update: a metric is named 'seed', expected a text other than step, seed",
        ),
        (
            with_update(lambda s, m: (s, {3: m["entropy"]})),
            "update: a metric is named 3, expected a text other",
        ),
        (
            with_update(lambda s, m: (s, m | {"z": m["entropy"] + 1j})),
            "update: metric 'z' is complex64[], expected one number",
        ),
        (
            with_update(lambda s, m: (s, m | {"words": "good"})),
            "update: metric 'words' is a value of type str, expected one number",
        ),
        (with_act(lambda a, m, e: a), "act returned a value of type"),
        (
            with_act(lambda a, m, e: (a, m)),
            "act returned a tuple of 2, expected",
        ),
        (
            with_act(lambda a, m, e: (a[:1], m, e)),
            "act: action is int32[1], expected int32[2]",
        ),
        (
            with_act(lambda a, m, e: (a * 1.0, m, e)),
            "act: action is float32[2], expected int32[2]",
        ),
        (
            with_act(lambda a, m, e: (a, a, e)),
            "act: memory is int32[2], expected none as before",
        ),
        (
            agent_for(observe=lambda config, state, rollout: half(state)),
            "observe: state.step is float16[], expected int32[] as before",
        ),
        (
            agent_for(observe=lambda config, state, rollout: None),
            "observe: state.actor['params']",
        ),
        (with_update(lambda state, metrics: state), "update returned a tuple of 5"),
        (with_update(lambda state, metrics: None), "update returned None, expected st"),
        (
            with_update(lambda state, metrics: (half(state), metrics)),
            "update: state.step is float16[], expected int32[] as before",
        ),
        (
            with_update(lambda state, metrics: (state, 3.0)),
            "update: metrics are a value of type float, expected a dict",
        ),
        (
            with_update(lambda state, metrics: (state, {"loss": jnp.ones(2)})),
            "update: metric 'loss' is float32[2], expected one number",
        ),
    ],
)
def test_a_function_that_breaks_the_contract_is_named(agent, message):
    with pytest.raises(ValueError) as caught:
        check_agent("mine.py", agent, ENV, CONFIG)
    text = str(caught.value)
    assert text.startswith(f"agent mine.py: {message}") and "\n" not in text


def test_continuous_actions_have_the_shape_of_the_space():
    agent = with_act(lambda a, m, e: (a[:, 0], m, e), env=BOX)
    expected = r"action is float32\[2\], expected float32\[2, 1\]"
    with pytest.raises(ValueError, match=expected):
        check_agent("mine.py", agent, BOX, CONFIG)


def test_nothing_is_run():
    def init(config, key):
        jax.debug.callback(fails)
        return A2C.make(ENV.spec).init(config, key)

    check_agent("mine.py", agent_for(init=init), ENV, CONFIG)
