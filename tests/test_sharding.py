"""Runs spread over devices give what runs one by one give."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import sharding


def draw(key, scale, empty):
    x = scale * jax.random.normal(key, (3,))
    return {"x": x, "key": jax.random.split(key), "empty": empty}


@pytest.mark.parametrize("at_once", [1, 2, 4])
@pytest.mark.parametrize("num_runs", [1, 3, 4])
def test_map_runs_equals_a_loop(num_runs, at_once):
    keys = jax.random.split(jax.random.key(0), num_runs)
    scales = jnp.arange(1.0, num_runs + 1)
    empty = jnp.zeros((num_runs, 0))  # as the context of a tuned agent without one
    mapped = sharding.map_runs(draw, at_once)(keys, scales, empty)
    assert mapped["x"].shape == (num_runs, 3) and mapped["empty"].shape == (num_runs, 0)
    for i in range(num_runs):
        single = jax.jit(draw)(keys[i], scales[i], empty[i])
        np.testing.assert_allclose(mapped["x"][i], single["x"], rtol=1e-6)
        assert (mapped["key"][i] == single["key"]).all()


def test_set_cpu_devices_comes_before_jax_starts():
    jax.devices()
    with pytest.raises(RuntimeError):
        sharding.set_cpu_devices(3)


TWO_DEVICES = """
    from rljax import sharding
    sharding.set_cpu_devices(2)

    import os

    import jax
    import numpy as np
    from rljax import agents, envs, train

    assert len(jax.devices()) == 2 and os.environ["PJRT_NPROC"] == "2"

    def draw(key):
        return jax.random.normal(key, (3,))

    for num_runs in (1, 2, 3, 4):
        keys = jax.random.split(jax.random.key(0), num_runs)
        result = sharding.map_runs(draw)(keys)
        for i in range(num_runs):
            np.testing.assert_array_equal(result[i], jax.jit(draw)(keys[i]))
        if num_runs % 2 == 0:
            assert len(result.sharding.device_set) == 2, num_runs

    dqn, env = agents.get("dqn"), envs.make("CartPole-v1")
    config = dqn.Config(num_envs=2, capacity=100, warmup_steps=10, batch_size=10)
    init = lambda key: train.init(dqn.make(env.spec), env, config, key)
    keys = jax.random.split(jax.random.key(0))
    ts = sharding.map_runs(init)(keys)
    for i in range(2):
        for x, y in zip(jax.tree.leaves(ts), jax.tree.leaves(jax.jit(init)(keys[i]))):
            if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            np.testing.assert_allclose(x[i], y, rtol=1e-5, atol=1e-6)
    print("equal")
"""


SIDE_BY_SIDE = """
    from rljax import sharding
    sharding.set_cpu_devices(2)

    import chex
    import jax
    import jax.numpy as jnp
    from rljax import agents, envs, train

    def branches(x, y):  # more of them than devices; one needs no input
        return sharding.side_by_side(
            lambda: {"a": jnp.sin(x) * y, "b": x > y, "c": (x * y).astype("bfloat16")},
            lambda: (jnp.stack([x * y**2, -0.0 * x]), jnp.int32(7)),
            lambda: jnp.exp(x),
        )

    def total(xy):
        tree = jax.tree.leaves(branches(*xy))
        return sum(jnp.sum(leaf.astype(jnp.float32)) ** 2 for leaf in tree)

    xy = jnp.array([0.5, 1.0]), jnp.array([2.0, 0.25])
    for function in (
        branches,
        lambda *xy: jax.grad(total)(xy),
        lambda *xy: jax.hessian(total)(xy),
    ):
        one_each = sharding.map_runs(function, parts=2)  # two runs: nothing to spare
        alone = [sharding.map_runs(function, parts=2)(*(x[i:i+1] for x in xy))
                 for i in range(2)]
        shared = jax.tree.map(lambda *x: jnp.concatenate(x), *alone)
        assert all(len(x.sharding.device_set) == 2 for x in jax.tree.leaves(alone))
        expected = jax.vmap(function)(*xy)
        chex.assert_trees_all_equal_shapes_and_dtypes(shared, expected)
        chex.assert_trees_all_close(shared, expected, rtol=1e-6)
        chex.assert_trees_all_close(one_each(*xy), expected, rtol=1e-6)
    x, y = (x[:1] for x in xy)
    assert jnp.signbit(sharding.map_runs(branches, parts=2)(x, y)[1][0][0, 1])

    ppo, env = agents.get("ppo"), envs.make("CartPole-v1")
    agent = ppo.make(env.spec)
    config = ppo.Config(num_envs=2, rollout_length=16, total_steps=64)
    key = jax.random.key(0)
    fn = lambda key: train.train(agent, env, config, key)[0].agent
    mapped = jax.jit(sharding.map_runs(fn, parts=agent.parts)).lower(key[None])
    program = mapped.compile()
    assert program.as_text().count(" all-reduce(") == 1
    state = jax.tree.map(lambda x: x[0], program(key[None]))
    chex.assert_trees_all_close(state, jax.jit(fn)(key), rtol=1e-4, atol=1e-6)
    print("equal")
"""


PER_TRANSITION = """
    from rljax import sharding
    sharding.set_cpu_devices(2)

    import chex
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, PartitionSpec as P
    from rljax import autodiff

    net, x = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)]), jnp.eye(4, 5)
    params = net.init(jax.random.key(0), x)
    loss = lambda params, x: jnp.sum(net.apply(params, x) ** 2)
    mesh = Mesh(jax.devices(), ("devices",))

    def one_pass(params, x):  # params are the same on both devices, x is not
        return autodiff.value_and_grad_with_norms(loss, params, x)[2]

    for function in (
        one_pass,
        lambda p, x: autodiff.per_transition_grads(loss, p, x),
        lambda p, x: autodiff.per_transition_grad_norms(loss, p, x),
        lambda p, x: autodiff.per_transition_grad_norms(loss, p, x, method="vmap"),
    ):
        split = jax.shard_map(function, mesh=mesh, in_specs=(P(), P("devices")),
                              out_specs=P("devices"))
        chex.assert_trees_all_close(split(params, x), function(params, x), rtol=1e-6)
    print("equal")
"""


@pytest.mark.parametrize("program", [TWO_DEVICES, SIDE_BY_SIDE, PER_TRANSITION])
def test_two_devices(program):
    environ = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "equal"
