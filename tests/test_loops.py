"""Loops that return few arrays, beside jax's own."""

import re

import chex
import jax
import jax.numpy as jnp
import pytest

from rljax._loops import Packing, scan

T = 6
TREE = {
    "floats": jnp.arange(6.0).reshape(2, 3),
    "more": (jnp.float32(-1.5), jnp.array([2.5])),
    "int": jnp.array([-7, 2**31 - 1], jnp.int32),
    "bools": jnp.array([[True], [False]]),
    "bytes": jnp.array([255, 0], jnp.uint8),
    "large": jnp.arange(5000.0),
    "key": jax.random.key(3),
    "none": (),
}


def data(tree):
    return jax.tree.map(
        lambda x: (
            jax.random.key_data(x)
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
            else x
        ),
        tree,
    )


def test_a_tree_is_packed_in_few_vectors_and_unpacked():
    """Floats, numbers and truths together, bytes; the large and the key alone."""
    packing = Packing(TREE)
    packed = packing.pack(TREE)
    assert sorted(str(x.dtype) for x in packed) == sorted(
        ["float32", "float32", "int32", "uint8", "key<fry>"]
    )
    back = packing.unpack(packed)
    chex.assert_trees_all_equal(data(back), data(TREE), strict=True)
    rows = packing.unpack([jnp.stack([x, x]) for x in packed])
    chex.assert_trees_all_equal(
        data(rows), data(jax.tree.map(lambda x: jnp.stack([x, x]), TREE)), strict=True
    )


def step(carry, x):
    key, number = x
    carry = jnp.sin(carry) * number + jax.random.normal(key, carry.shape)
    out = {
        "carry": carry,
        "sum": carry.sum(),
        "positive": carry > 0,
        "none": (),
        "key": jax.random.fold_in(jax.random.clone(key), 1),
        "count": jnp.int32(number),
    }
    return carry, out


INPUTS = jax.random.split(jax.random.key(0), T), jnp.arange(1.0, T + 1)
START = jnp.array([0.1, -0.4])


@pytest.mark.parametrize("unrolled", [1, 4])
def test_a_loop_is_that_of_jax(unrolled):
    want = jax.jit(lambda: jax.lax.scan(step, START, INPUTS))()
    got = jax.jit(lambda: scan(step, START, INPUTS, unrolled=unrolled))()
    chex.assert_trees_all_equal(data(got), data(want), strict=True)
    starts = jnp.stack([START, 2 * START])
    many = jax.vmap(lambda x: scan(step, x, INPUTS, unrolled=unrolled))(starts)
    chex.assert_trees_all_close(
        data(jax.tree.map(lambda x: x[0], many)), data(want), rtol=1e-6
    )


@pytest.mark.parametrize("unrolled", [1, 4])
def test_a_loop_has_the_derivative_of_jaxs(unrolled):
    def total(loop, start):
        end, out = loop(start)
        return end.sum() + (out["sum"] ** 2).sum() + out["carry"][2, 0]

    want = jax.grad(lambda x: total(lambda x: jax.lax.scan(step, x, INPUTS), x))(START)
    got = jax.grad(
        lambda x: total(lambda x: scan(step, x, INPUTS, unrolled=unrolled), x)
    )(START)
    chex.assert_trees_all_close(got, want, rtol=1e-5)


def test_a_length_takes_the_place_of_inputs():
    end, out = scan(lambda x, _: (x + 1, (x, x > 1)), jnp.int32(0), None, 3)
    assert int(end) == 3
    chex.assert_trees_all_equal(out, (jnp.arange(3), jnp.array([False, False, True])))


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_steps_are_unrolled_but_on_cpu(platform):
    """Six steps are two trips of three; few arrays are written."""
    traced = jax.jit(lambda x: scan(step, x, INPUTS, unrolled=3)).trace(START)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("tensor<2x3x" in text) == (platform == "cuda")
    written = re.findall(r"stablehlo\.dynamic_update_slice", text)
    assert len(written) == 3  # floats; numbers and truths; keys
