"""Networks that remember: an LSTM by hand, episodes apart, sequences in parts."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest

from rljax.agents import r2d2
from rljax.networks import PolicyHead, recurrent
from rljax.types import Discrete

from .. import compiled

SMALL = r2d2.Config(memory_size=4)
NETWORKS = {
    "q": recurrent.RecurrentQNetwork(
        body=compiled.body(1, (5,)), memory_cell=recurrent.cell(SMALL), num_actions=3
    ),
    "policy": recurrent.Recurrent(
        body=compiled.body(1, (5,)),
        memory_cell=recurrent.cell(SMALL),
        head=PolicyHead(Discrete(3)),
    ),
}


@pytest.fixture(params=NETWORKS, scope="module")
def problem(request):
    """A network, parameters without zeros, observations, starts, a memory."""
    net = NETWORKS[request.param]
    obs = compiled.normal(0, 6, 2, 3)
    memory = (compiled.normal(1, 2, 4), compiled.normal(2, 2, 4))
    keys = jax.random.split(jax.random.key(0), 2)
    init = jax.jit(jax.vmap(lambda key: net.init(key, obs[0], memory)))
    init = init.lower(keys).compile()
    assert "custom-call" not in init.as_text()  # LAPACK
    params = jax.tree.map(lambda x: np.array(x)[0], init(keys))
    kernel = params["params"]["cell"]["hf"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(4), atol=1e-5)
    params = jax.tree.map(  # biases other than 0
        lambda x: x + compiled.normal(x.size, *x.shape), params
    )
    starts = np.array([0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]).reshape(6, 2) == 1
    return Problem(request.param, net, params, obs, starts, memory)


class Problem(NamedTuple):
    kind: str
    net: Any
    params: Any
    obs: Any
    starts: Any
    memory: Any


@functools.partial(jax.jit, static_argnums=0)
def unroll(net, *args):
    return arrays(net.apply(*args, method="unroll"))


def linear(layer, x):
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def head(kind, weights, x):
    """The output from the LSTM's."""
    if kind == "q":
        advantage = linear(weights["advantage"], x)
        advantage -= advantage.mean(axis=-1, keepdims=True)
        return linear(weights["value"], x) + advantage
    logits = linear(weights["head"]["Dense_0"], x)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def arrays(outputs):
    """What a network returns, a policy as its logits."""
    output, memory = outputs
    return getattr(output, "logits", output), memory


def test_recurrent_network_equals_an_lstm_by_hand(problem):
    kind, net, params, obs, starts, memory = problem
    args = (net, params, obs, starts, memory)
    outputs, memories = jax.tree.map(np.array, unroll(*args))
    weights = jax.tree.map(lambda x: np.array(x, float), params["params"])
    cell, output = memory
    for t in range(6):
        going_on = 1 - np.array(starts[t])[:, None]
        cell, output = cell * going_on, output * going_on
        x = np.maximum(linear(weights["mlp"]["Dense_0"], np.array(obs[t])), 0)
        i, f, g, o = (
            linear(weights["cell"]["i" + gate], x)
            + linear(weights["cell"]["h" + gate], output)
            for gate in "ifgo"
        )
        cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        output = np.tanh(cell) / (1 + np.exp(-o))
        want = head(kind, weights, output)
        np.testing.assert_allclose(outputs[t], want, rtol=1e-4, atol=1e-4)
        for found, want in zip(memories, (cell, output), strict=True):
            np.testing.assert_allclose(found[t], want, rtol=1e-4, atol=1e-4)


def test_recurrent_sequences_in_parts_are_those_in_one(problem):
    _, net, params, obs, starts, memory = problem
    walk = functools.partial(unroll, net, params)
    whole = jax.tree.map(np.array, walk(obs, starts, memory))
    first = jax.tree.map(np.array, walk(obs[:3], starts[:3], memory))
    last = jax.tree.map(lambda x: x[-1], first[1])
    second = walk(obs[3:], starts[3:], last)
    parts = jax.tree.map(lambda *x: np.concatenate(x), first, second)
    chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)
    step = jax.jit(lambda *args: arrays(net.apply(params, *args)))
    before = jax.tree.map(lambda x: x[1], whole[1])
    step = step(obs[2], before)  # no episode starts there
    want = jax.tree.map(lambda x: x[2], whole)
    chex.assert_trees_all_close(step, want, rtol=1e-5)


def test_recurrent_networks_forget_where_an_episode_starts(problem):
    _, net, params, obs, starts, memory = problem
    outputs = unroll(net, params, obs, starts, memory)
    moved = obs + (np.arange(6) == 0)[:, None, None].astype(np.float32)
    others = jax.tree.map(lambda x: x + 1, memory)
    other = unroll(net, params, moved, starts, others)
    outputs, other = jax.tree.map(np.array, (outputs, other))
    for x, y in zip(jax.tree.leaves(outputs), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x[1:, 0], y[1:, 0])  # starts there
        np.testing.assert_array_equal(x[3:, 1], y[3:, 1])
        assert (x[0] != y[0]).all() and (x[1:3, 1] != y[1:3, 1]).all()
