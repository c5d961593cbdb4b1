"""Layers that networks are made of, and how their weights start."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike

from rljax import prng
from rljax.networks.products import dot_general, hidden_dot_general, product
from rljax.types import Params

ACTIVATIONS = {
    "tanh": nn.tanh,
    "relu": nn.relu,
    "silu": nn.silu,
    "gelu": nn.gelu,
    "elu": nn.elu,
}


def orthogonal(scale: float = 1.0) -> Callable[..., jax.Array]:
    """Orthogonal initialisation in plain XLA operations.

    Equal in distribution to `jax.nn.initializers.orthogonal`, but without LAPACK's
    QR, which can deadlock under `vmap` on CPU. The polar factor of a Gaussian matrix
    is uniform over orthogonal ones, since rotating the matrix rotates the factor. The
    iteration of Bjorck and Bowie (1971, https://doi.org/10.1137/0708036) finds it:
    each step takes a singular value s in (0, sqrt(3)) to s (3 - s^2) / 2. Fifty steps
    take one of 1e-8 to 1. The greatest one of the start is below 1 but for an
    excess of 4 over the bound of Davidson and Szarek (2001, theorem II.13), and
    below sqrt(3) in all but 1 of 10^15 draws.

    Args:
      scale: factor on the result.

    Returns:
      A flax initialiser: the last axis is the output, all others the input.

    Example:
      >>> w = orthogonal()(jax.random.key(0), (8, 3))
      >>> bool(jnp.allclose(w.T @ w, jnp.eye(3), atol=1e-6))
      True
    """

    def init(
        key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
    ) -> jax.Array:
        inputs, outputs = math.prod(shape[:-1]), shape[-1]
        tall = (max(inputs, outputs), min(inputs, outputs))
        precise = jnp.promote_types(dtype, jnp.float32)
        gaussian = jax.random.normal(prng.fusible(key), tall, precise)

        def orthonormalise(_: jax.Array, a: jax.Array) -> jax.Array:
            return 1.5 * a - 0.5 * a @ (a.T @ a)

        bound = math.sqrt(inputs) + math.sqrt(outputs) + 4
        q = jax.lax.fori_loop(0, 50, orthonormalise, gaussian / bound)
        q = q if inputs >= outputs else q.T
        return (scale * q).reshape(shape).astype(dtype)

    return init


def precise(x: jax.Array) -> jax.Array:
    """Cast to float32 what has less, as heads and losses take it."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def dense(
    features: int,
    scale: float,
    name: str | None = None,
    *,
    dtype: str | None = None,
    hidden: bool = False,
) -> nn.Dense:
    """A linear layer with orthogonal weights and zero bias, computed in `dtype`.

    `hidden` if an activation follows: see `products.product`.
    """
    return nn.Dense(
        features,
        kernel_init=orthogonal(scale),
        name=name,
        dtype=dtype,
        dot_general=hidden_dot_general if hidden else dot_general,
    )


def valid_convolution(
    images: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "VALID",
    dimension_numbers: Any = ("NHWC", "HWIO", "NHWC"),
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` without padding, quick on CPU.

    There XLA computes the gradient of a small kernel in plain loops, hundreds of times
    slower than one product of matrices with the image's patches, and with a stride on
    one thread. With large images of many channels patches gain nothing. Lowered for
    another platform it is a convolution.

    Args:
      images: `[B, height, width, channels]`.
      kernel: `[rows, columns, channels, features]`.
      window_strides: down and across; they divide `rows` and `columns`.
      padding: for other platforms; none on CPU.
      dimension_numbers: for other platforms; on CPU as by default.
      **options: for other platforms; none on CPU.

    Returns:
      `[B, (height - rows) // down + 1, (width - columns) // across + 1, features]`.

    Raises:
      ValueError: the strides do not divide the kernel's size.
    """
    down, across = window_strides
    if kernel.shape[0] % down or kernel.shape[1] % across:
        raise ValueError(
            f"window_strides={(down, across)}: must divide the kernel's rows and "
            f"columns, {kernel.shape[:2]}"
        )
    on_cpu = functools.partial(_by_blocks, down=down, across=across)
    if down == across == 1:
        on_cpu = _by_patches
    elsewhere = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        dimension_numbers=dimension_numbers,
        **options,
    )
    return jax.lax.platform_dependent(images, kernel, cpu=on_cpu, default=elsewhere)


def _by_patches(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """One product with all patches of the images that meet the kernel."""
    rows, columns, _, features = kernel.shape
    height, width = images.shape[1] - rows + 1, images.shape[2] - columns + 1
    patches = [
        images[:, i : i + height, j : j + width]
        for i in range(rows)
        for j in range(columns)
    ]
    return product(jnp.concatenate(patches, axis=-1), kernel.reshape(-1, features))


def _by_blocks(
    images: jax.Array, kernel: jax.Array, *, down: int, across: int
) -> jax.Array:
    """One product of all blocks of the images with all blocks of the kernel.

    A block is as large as a stride, so blocks of an image are points of a smaller one,
    and no patch is copied. What the blocks of the kernel make is shifted and added.
    """
    channels, features = kernel.shape[2:]
    rows, columns = kernel.shape[0] // down, kernel.shape[1] // across  # in blocks
    height, width = images.shape[1] // down, images.shape[2] // across
    images = images[:, : height * down, : width * across]
    points = images.reshape(-1, height, down, width, across, channels)
    points = points.swapaxes(2, 3).reshape(-1, down * across * channels)
    kernel = kernel.reshape(rows, down, columns, across, channels, features)
    kernel = kernel.transpose(1, 3, 4, 0, 2, 5).reshape(points.shape[1], -1)
    out = product(points, kernel)
    out = out.reshape(-1, height, width, rows, columns, features)
    last_row, last_column = height - rows + 1, width - columns + 1
    shifted = [
        out[:, i : i + last_row, j : j + last_column, i, j]
        for i in range(rows)
        for j in range(columns)
    ]
    return sum(shifted[1:], start=shifted[0])


class LayerNorm(nn.Module):
    """Over the last axis, by Ba et al. (2016), https://arxiv.org/abs/1607.06450.

    As in flax, but quick on CPU for few features, such as the channels of an image:
    there XLA takes several times as long for their sums as for one product of matrices.
    Lowered for another platform it has sums.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., features]` to the same shape."""
        size = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (size,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (size,), jnp.float32)

        def by_sum(x: jax.Array) -> jax.Array:
            return x.mean(axis=-1, keepdims=True)

        def by_sum_repeated(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(by_sum(x), x.shape)  # as the product's

        def by_product(x: jax.Array) -> jax.Array:
            average = jnp.full((size, size), 1.0 / size, x.dtype)
            # Known to XLA as a constant, this gave wrong numbers in a vmapped loop.
            return x @ jax.lax.optimization_barrier(average)

        def mean(x: jax.Array) -> jax.Array:
            if size > 32:
                return by_sum(x)
            return jax.lax.platform_dependent(
                x, cpu=by_product, default=by_sum_repeated
            )

        x = precise(x)
        x = x - mean(x)
        return x * jax.lax.rsqrt(mean(x * x) + 1e-6) * scale + bias


class NoisyDense(nn.Module):
    """A linear layer whose weights have learnt noise, if they come `with_noise`.

    Factorised noise of Fortunato et al. (2018), https://arxiv.org/abs/1706.10295,
    section 3, the same for a whole batch.
    """

    features: int
    dtype: str | None = None  # of the computation

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., inputs]` to `[..., features]`."""
        bound = 1 / math.sqrt(x.shape[-1])
        upward = nn.initializers.uniform(2 * bound)
        constant = nn.initializers.constant(0.5 * bound)

        def centred(
            key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32
        ) -> jax.Array:
            return upward(key, shape, dtype) - bound

        def layer(name: str, init: Callable[..., jax.Array]) -> nn.Dense:
            return nn.Dense(
                self.features,
                kernel_init=init,
                bias_init=init,
                name=name,
                dtype=self.dtype,
                dot_general=dot_general,
            )

        means = layer("mean", init=centred)
        scales = layer("scale", init=constant)
        if not self.has_variable("noise", "inputs"):
            scales(x)  # its parameters exist all the same
            return means(x)
        inputs = self.get_variable("noise", "inputs")
        outputs = self.get_variable("noise", "outputs")
        return means(x) + scales(x * inputs) * outputs


def with_noise(params: Params, key: jax.Array, factored: bool = False) -> Params:
    """Parameters of a network with noise in the layers that are a `NoisyDense`.

    Args:
      params: of a flax network; as they are they mean no noise.
      key: `[]` typed key, consumed here.
      factored: keep the noise apart, which costs every layer a second product, so
        that `per_transition_grad_norms` sees how the parameters enter. The outputs
        are the same.

    Returns:
      The parameters with the noise, for the network's `apply`: every use has the same
      noise.

    Example:
      >>> layer = NoisyDense(2)
      >>> params = layer.init(jax.random.key(0), jnp.zeros(3))
      >>> layer.apply(with_noise(params, jax.random.key(1)), jnp.ones(3)).shape
      (2,)
    """
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params["params"])
    layers = sorted(path[:-2] for path in flat if path[-2:] == ("scale", "kernel"))
    if not layers:
        return params
    sizes = [size for layer in layers for size in flat[*layer, "scale", "kernel"].shape]
    draws = jax.random.normal(key, (sum(sizes),), jnp.float32)  # all at once
    # The sign times the root of the absolute value, but with roots as the last costly
    # step: XLA repeats whatever comes after one for every element of a weight.
    factors = jnp.sqrt(jnp.maximum(draws, 0.0)) - jnp.sqrt(jnp.maximum(-draws, 0.0))
    noise: dict[tuple[str, ...], jax.Array] = {}
    ends = itertools.accumulate(sizes)
    parts = iter([factors[end - n : end] for n, end in zip(sizes, ends, strict=True)])
    for layer in layers:
        inputs, outputs = next(parts), next(parts)
        if factored:
            noise |= {(*layer, "inputs"): inputs, (*layer, "outputs"): outputs}
        else:
            mean, scale = (flat[*layer, n, "kernel"] for n in ("mean", "scale"))
            flat[*layer, "mean", "kernel"] = mean + scale * (inputs[:, None] * outputs)
            mean, scale = (flat[*layer, n, "bias"] for n in ("mean", "scale"))
            flat[*layer, "mean", "bias"] = mean + scale * outputs
    return {
        "params": traverse_util.unflatten_dict(flat),
        "noise": traverse_util.unflatten_dict(noise),
    }


class MLP(nn.Module):
    """Linear layers, each followed by the activation."""

    hidden_sizes: tuple[int, ...]
    activation: str
    noisy: bool = False
    layer_norm: bool = False
    dtype: str | None = None  # of the computation; None: as the input and float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., features]` to `[..., hidden_sizes[-1]]`, in float32 at least."""
        for size in self.hidden_sizes:
            if self.noisy:
                layer = NoisyDense(size, dtype=self.dtype)
            else:
                layer = dense(size, math.sqrt(2), dtype=self.dtype, hidden=True)
            x = LayerNorm()(layer(x)) if self.layer_norm else layer(x)
            x = ACTIVATIONS[self.activation](x)
        return precise(x)
