"""Random numbers that cost little inside loops. The numbers are jax's own."""

import functools

import jax
import jax.numpy as jnp
import jaxlib.version
from jax.extend import random as jex_random
from jax.typing import ArrayLike

_JAXLIB = jaxlib.version.__version_info__
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


# A function of its own is traced and batched once where it is called again.
@functools.partial(jax.jit, static_argnums=2)
def _four_rounds(
    x0: jax.Array, x1: jax.Array, rotations: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    for rotation in rotations:
        x0 = x0 + x1
        x1 = (x1 << jnp.uint32(rotation)) | (x1 >> jnp.uint32(32 - rotation))
        x1 = x0 ^ x1
    return x0, x1


def _threefry2x32(
    key: jax.Array, x0: jax.Array, x1: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Twenty rounds, written out. Salmon et al. (2011), section 3.3."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for group in range(5):
        x0, x1 = _four_rounds(x0, x1, _ROTATIONS[group % 2])
        x0 = x0 + keys[(group + 1) % 3]
        x1 = x1 + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x0, x1


def _counts(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The high and low words of 0, 1, 2, ... in row-major order."""
    low, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        steps = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        low, stride = low + steps * jnp.uint32(stride), stride * shape[axis]
    if stride >= 2**32:
        raise ValueError(f"shape={shape}: at most 2**32 - 1 numbers from one key")
    return jnp.zeros_like(low), low


def _unrolled_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    high, low = _threefry2x32(key, *_counts(shape))
    if bit_width == 64:
        shift = jnp.uint64(32)
        return (high.astype(jnp.uint64) << shift) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


def _jax_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    key = jax.random.wrap_key_data(key, impl="threefry2x32")
    return jax.random.bits(key, shape, f"uint{bit_width}")


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.platform_dependent(
        key,
        cpu=functools.partial(_unrolled_bits, bit_width=bit_width, shape=shape),
        default=functools.partial(_jax_bits, bit_width=bit_width, shape=shape),
    )


def _unrolled_split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    keys = jnp.stack(_threefry2x32(key, *_counts(shape)), axis=-1)
    # Keys that are made of keys would else be computed again in each of their users.
    return jax.lax.optimization_barrier(keys)


def _jax_split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    keys = jax.random.split(jax.random.wrap_key_data(key, impl="threefry2x32"), shape)
    return jax.random.key_data(keys)


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    # Unrolled, keys derived from keys make LLVM's vectoriser in jaxlib 0.11 take
    # exponentially long.
    if _JAXLIB >= (0, 11):
        return _jax_split(key, shape)
    return jax.lax.platform_dependent(
        key,
        cpu=functools.partial(_unrolled_split, shape=shape),
        default=functools.partial(_jax_split, shape=shape),
    )


def _fold_in(key: jax.Array, data: ArrayLike) -> jax.Array:
    new = jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), data)
    return jax.random.key_data(new)


def _seed(seed: jax.Array) -> jax.Array:
    low = seed.astype(jnp.uint32)  # as jax: the high word of a 32-bit seed is 0
    return jnp.stack([jnp.zeros_like(low), low])


_UNROLLED = jex_random.define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_unrolled",
    tag="fry_unrolled",
)


def fusible(key: jax.Array) -> jax.Array:
    """Make XLA fuse a key's random numbers into their consumers on CPU.

    jax lowers threefry on CPU to a loop, which costs more than a whole environment
    step of a small program. Unrolled, the rounds that draw bits fuse; those that make
    new keys are one kernel of their own. Lowered for another platform, bits and keys
    are made as jax makes them. A key of another kind comes back as it is.

    Args:
      key: typed key of any shape.

    Returns:
      A typed key of that shape with the same data.

    Example:
      >>> key = jax.random.key(0)
      >>> bool(jax.random.normal(fusible(key)) == jax.random.normal(key))
      True
    """
    if jax.random.key_impl(key) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_UNROLLED)


def plain(key: jax.Array) -> jax.Array:
    """Undo `fusible`, so that a stored key is one of jax's own."""
    if jax.random.key_impl(key) != _UNROLLED:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl="threefry2x32")


def permutations(key: jax.Array, num: int, length: int) -> jax.Array:
    """Independent random permutations of `0 .. length - 1`, drawn in bulk.

    The index rides in the low bits of a random word, so one sort of plain integers
    shuffles; `jax.random.permutation` sorts pairs and takes four times as long.

    Args:
      key: `[]` typed key, consumed here.
      num: number of permutations.
      length: at most 2**16; above that ties between the random high bits would
        bias the order, and `jax.random.permutation` is used.

    Returns:
      `[num, length]` int32.

    Example:
      >>> sorted(permutations(jax.random.key(0), 1, 5)[0].tolist())
      [0, 1, 2, 3, 4]
    """
    if length > 2**16:
        keys = jax.random.split(key, num)
        return jax.vmap(lambda k: jax.random.permutation(k, length))(keys)
    mask = jnp.uint32((1 << (length - 1).bit_length()) - 1)
    words = jax.random.bits(key, (num, length), jnp.uint32) & ~mask
    words = jnp.sort(words | jnp.arange(length, dtype=jnp.uint32), stable=False)
    return (words & mask).astype(jnp.int32)


def indices(key: jax.Array, shape: tuple[int, ...], size: jax.Array | int) -> jax.Array:
    """Random integers in `[0, size)`, for indices and actions.

    A random word modulo `size`: the bias is below `size / 2**32`, and the cost a third
    of `jax.random.randint`, which draws twice to push it lower.

    Args:
      key: `[]` typed key, consumed here.
      shape: of the result.
      size: `[]` positive integer.

    Returns:
      int32 of `shape`.

    Example:
      >>> indices(jax.random.key(0), (3,), 1).tolist()
      [0, 0, 0]
    """
    bits = jax.random.bits(key, shape, jnp.uint32)
    return (bits % jnp.asarray(size, jnp.uint32)).astype(jnp.int32)
