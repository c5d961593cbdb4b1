"""Checks of a process with two devices, where runs and parts of runs are spread.

Run by `test_sharding.py` in a process of its own, with a folder for the checkpoint:
prints for each check null or its traceback, as JSON.
"""

import functools
import json
import os
import sys
import traceback
import warnings

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax import autodiff
from rljax.running import sharding
from rljax.running.checkpoint import restore, save


def plain(tree):
    """Numpy arrays, also of keys."""

    def data(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(data, tree)


def runs():
    assert len(jax.devices()) == 2 and os.environ["PJRT_NPROC"] == "2"

    def draw(key):
        return jax.random.normal(key, (3,))

    keys = jax.random.split(jax.random.key(0), 5)
    single = jax.jit(draw)
    expected = np.stack([single(key) for key in keys])
    for num_runs in (1, 2, 3, 4, 5):
        result = sharding.map_runs(draw)(keys[:num_runs])
        np.testing.assert_array_equal(result, expected[:num_runs])
        assert len(result.sharding.device_set) == min(num_runs, 2), num_runs


def initial_states():
    from rljax import agents, envs
    from rljax.running import train  # importing gymnax starts jax

    dqn, env = agents.get("dqn"), envs.make("CartPole-v1")
    config = dqn.Config(num_envs=2, capacity=100, warmup_steps=10, batch_size=10)
    init = functools.partial(train.init, dqn.make(env.spec), env, config)
    keys = jax.random.split(jax.random.key(0))
    mapped, single = plain(sharding.map_runs(init)(keys)), jax.jit(init)
    for i, key in enumerate(keys):
        one = jax.tree.map(lambda x, i=i: x[i], mapped)
        chex.assert_trees_all_close(one, plain(single(key)), rtol=1e-5, atol=1e-6)


def side_by_side():
    def branches(x, y):  # more of them than devices; one needs no input
        return sharding.side_by_side(
            lambda: {"a": jnp.sin(x) * y, "b": x > y, "c": (x * y).astype("bfloat16")},
            lambda: (jnp.stack([x * y**2, -0.0 * x]), jnp.int32(7)),
            lambda: jnp.exp(x),
        )

    def total(xy):
        tree = jax.tree.leaves(branches(*xy))
        return sum(jnp.sum(leaf.astype(jnp.float32)) ** 2 for leaf in tree)

    def derivatives(*xy):
        return branches(*xy), jax.grad(total)(xy), jax.hessian(total)(xy)

    xy = np.array([0.5, 1.0], np.float32), np.array([2.0, 0.25], np.float32)
    one_each = sharding.map_runs(derivatives, parts=2)  # two runs: nothing to spare
    alone = jax.jit(sharding.map_runs(derivatives, parts=2))
    alone = [alone(*(x[i : i + 1] for x in xy)) for i in range(2)]
    assert all(len(x.sharding.device_set) == 2 for x in jax.tree.leaves(alone))
    shared = jax.tree.map(lambda *x: np.concatenate(x), *plain(alone))
    expected = plain(jax.jit(jax.vmap(derivatives))(*xy))
    chex.assert_trees_all_equal_shapes_and_dtypes(shared, expected)
    chex.assert_trees_all_close(shared, expected, rtol=1e-6)
    chex.assert_trees_all_close(plain(one_each(*xy)), expected, rtol=1e-6)
    (_, (stacked, _), _), *_ = plain(alone[0])
    assert np.signbit(stacked[0, 1])


def parts_of_an_agent():
    from rljax import agents, envs
    from rljax.running import train

    ppo, env = agents.get("ppo"), envs.make("CartPole-v1")
    agent = ppo.make(env.spec)
    config = ppo.Config(num_envs=2, rollout_length=16, total_steps=64)
    key = jax.random.key(0)

    def trained(key):
        return train.train(agent, env, config, key)[0].agent

    mapped = jax.jit(sharding.map_runs(trained, parts=agent.parts)).lower(key[None])
    program = mapped.compile()
    assert program.as_text().count(" all-reduce(") == 1
    state = jax.tree.map(lambda x: x[0], plain(program(key[None])))
    expected = plain(jax.jit(trained)(key))
    chex.assert_trees_all_close(state, expected, rtol=1e-4, atol=1e-6)


def shards():
    from rljax import agents, envs
    from rljax.running import parallel, train

    ppo = agents.get("ppo")
    env = envs.make("CartPole-v1", normalize_obs=True, normalize_rewards=0.99)
    agent = ppo.make(env.spec)
    config = ppo.Config(
        num_envs=4, rollout_length=16, total_steps=256, max_kl=1e-3, hidden_sizes=(8,)
    )
    config = sharding.share(config, 2)
    keys = sharding.copies(jax.random.split(jax.random.key(0)), 2)

    def trained(key):
        return train.train(agent, env, config, key)

    mesh = sharding.split_mesh(2, 2)
    got = sharding.map_runs(trained, mesh=mesh)(keys)
    assert all(len(x.sharding.device_set) == 2 for x in jax.tree.leaves(got))
    got = plain(got)
    for leaf in jax.tree.leaves((got[0].agent, got[1])):
        np.testing.assert_array_equal(leaf[:, 0], leaf[:, 1])
    on_one_device = jax.vmap(trained, axis_name=parallel.AXIS)
    expected = plain(jax.jit(jax.vmap(on_one_device))(keys))
    chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-4)


def per_transition():
    net, x = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)]), jnp.eye(4, 5)
    params = jax.jit(net.init)(jax.random.key(0), x)
    mesh = Mesh(jax.devices(), ("devices",))

    def loss(params, x):
        return jnp.sum(net.apply(params, x) ** 2)

    def norms(params, x, **options):
        return autodiff.per_transition_grad_norms(loss, params, x, **options)

    def all_of_them(params, x):  # params are the same on both devices, x is not
        return {
            "one pass": autodiff.value_and_grad_with_norms(loss, params, x)[2],
            "gradients": autodiff.per_transition_grads(loss, params, x),
            "norms": norms(params, x),
            "norms of vmap": norms(params, x, method="vmap"),
        }

    devices = PartitionSpec("devices")
    split = jax.jit(
        jax.shard_map(
            all_of_them,
            mesh=mesh,
            in_specs=(PartitionSpec(), devices),
            out_specs=devices,
        )
    )
    got, expected = plain(split(params, x)), plain(jax.jit(all_of_them)(params, x))
    chex.assert_trees_all_close(got, expected, rtol=1e-6)


def checkpoint():
    split = NamedSharding(jax.make_mesh((2,), ("seed",)), PartitionSpec("seed"))
    keys = jax.random.split(jax.random.key(3), 4)
    state = {"x": np.arange(8.0, dtype=np.float32).reshape(4, 2), "key": keys}
    state = {**jax.device_put(state, split), "one": jnp.ones(3)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(sys.argv[1], 5, state)
        for like in (state, jax.eval_shape(lambda: state)):
            got = restore(sys.argv[1], like)
            sharded = like is state
            assert (got["x"].sharding == state["x"].sharding) == sharded
            assert got["key"].sharding.is_equivalent_to(split, 1) == sharded
            assert len(got["one"].sharding.device_set) == 1
            chex.assert_trees_all_equal(plain(got), plain(state))


def main():
    sharding.set_cpu_devices(2)
    checks = [runs, initial_states, side_by_side, parts_of_an_agent, shards]
    results = {}
    for check in (*checks, per_transition, checkpoint):
        try:
            results[check.__name__] = check()
        except Exception:
            results[check.__name__] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
