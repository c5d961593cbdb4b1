"""Torsos and heads as flax modules; observations of any shape and dtype."""

import math
from collections.abc import Callable
from typing import Any

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import distributions, prng
from rljax.types import Box, Discrete

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

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        inputs, outputs = math.prod(shape[:-1]), shape[-1]
        tall = (max(inputs, outputs), min(inputs, outputs))
        precise = jnp.promote_types(dtype, jnp.float32)
        gaussian = jax.random.normal(prng.unrolled(key), tall, precise)

        def orthonormalise(_: jax.Array, a: jax.Array) -> jax.Array:
            return 1.5 * a - 0.5 * a @ (a.T @ a)

        bound = math.sqrt(inputs) + math.sqrt(outputs) + 4
        q = jax.lax.fori_loop(0, 50, orthonormalise, gaussian / bound)
        q = q if inputs >= outputs else q.T
        return (scale * q).reshape(shape).astype(dtype)

    return init


def dense(features: int, scale: float, name: str | None = None) -> nn.Dense:
    """A linear layer with orthogonal weights and zero bias."""
    return nn.Dense(features, kernel_init=orthogonal(scale), name=name)


def valid_convolution(
    images: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for stride 1 without padding, quick on CPU.

    There XLA computes the gradient of a convolution's kernel in plain loops, hundreds
    of times slower than one product of matrices with the image's patches.

    Args:
      images: `[B, height, width, channels]`.
      kernel: `[rows, columns, channels, features]`.
      *args: strides and so on, for the other backends.
      **kwargs: likewise.

    Returns:
      `[B, height - rows + 1, width - columns + 1, features]`.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(images, kernel, *args, **kwargs)
    rows, columns, _, features = kernel.shape
    height, width = images.shape[1] - rows + 1, images.shape[2] - columns + 1
    patches = [
        images[:, i : i + height, j : j + width]
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, features)


class Encoder(nn.Module):
    """Observation to a flat float vector: a convolution for images, else itself.

    Images are `[height, width, channels]`, as MinAtar's 10 x 10 planes; the
    convolution is that of Young and Tian (2019), https://arxiv.org/abs/1903.03176.
    """

    obs_ndim: int

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """Map `[..., *obs_shape]` to `[..., features]`."""
        x = obs.astype(jnp.float32)
        if self.obs_ndim == 3:
            kernel = orthogonal(math.sqrt(2))
            convolution = nn.Conv(
                features=16,
                kernel_size=(3, 3),
                padding="VALID",
                kernel_init=kernel,
                conv_general_dilated=valid_convolution,
            )
            x = nn.relu(convolution(x))
        return x.reshape(*obs.shape[: obs.ndim - self.obs_ndim], -1)


class NoisyDense(nn.Module):
    """A linear layer whose weights have learnt noise.

    Factorised noise of Fortunato et al. (2018), https://arxiv.org/abs/1706.10295,
    section 3, drawn from the rng collection "noise", the same for a whole batch; none
    without it.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., inputs]` to `[..., features]`."""
        bound = 1 / math.sqrt(x.shape[-1])
        mean = nn.initializers.uniform(2 * bound)
        scale = nn.initializers.constant(0.5 * bound)

        def layer(name: str, init: Any) -> nn.Dense:
            def centred(*args: Any) -> jax.Array:
                return init(*args) - (bound if init is mean else 0.0)

            kwargs: dict[str, Any] = dict(kernel_init=centred, bias_init=centred)
            return nn.Dense(self.features, name=name, **kwargs)

        means, scales = layer("mean", mean), layer("scale", scale)
        if not self.has_rng("noise"):
            scales(x)  # its parameters exist all the same
            return means(x)
        keys = jax.random.split(self.make_rng("noise"))
        shapes = ((x.shape[-1],), (self.features,))
        draws = [jax.random.normal(k, n) for k, n in zip(keys, shapes, strict=True)]
        inputs, outputs = (jnp.sign(e) * jnp.sqrt(jnp.abs(e)) for e in draws)
        return means(x) + scales(x * inputs) * outputs


class MLP(nn.Module):
    """Linear layers, each followed by the activation."""

    hidden_sizes: tuple[int, ...]
    activation: str
    noisy: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., features]` to `[..., hidden_sizes[-1]]`."""
        for size in self.hidden_sizes:
            layer = NoisyDense(size) if self.noisy else dense(size, math.sqrt(2))
            x = ACTIVATIONS[self.activation](layer(x))
        return x


class PolicyHead(nn.Module):
    """Features to a distribution over actions: categorical or Gaussian."""

    action: Discrete | Box

    @nn.compact
    def __call__(self, x: jax.Array) -> distrax.Distribution:
        """Map `[..., features]` to a distribution of batch shape `[...]`."""
        if isinstance(self.action, Discrete):
            return distrax.Categorical(dense(self.action.num_actions, 0.01)(x))
        size = math.prod(self.action.shape)
        mean = dense(size, 0.01)(x)
        log_std = self.param("log_std", nn.initializers.zeros, (size,))
        return distributions.gaussian(mean, log_std, self.action)


class Actor(nn.Module):
    """Observations to a distribution over actions."""

    obs_ndim: int
    action: Discrete | Box
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"

    @nn.compact
    def __call__(self, obs: jax.Array) -> distrax.Distribution:
        """Map `[..., *obs_shape]` to a distribution of batch shape `[...]`."""
        x = MLP(self.hidden_sizes, self.activation)(Encoder(self.obs_ndim)(obs))
        return PolicyHead(self.action)(x)


class Critic(nn.Module):
    """Observations to state values."""

    obs_ndim: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """Map `[..., *obs_shape]` to `[...]`."""
        x = MLP(self.hidden_sizes, self.activation)(Encoder(self.obs_ndim)(obs))
        return dense(1, 1.0)(x)[..., 0]


class QNetwork(nn.Module):
    """Action values; dueling: Wang et al. (2016), https://arxiv.org/abs/1511.06581."""

    obs_ndim: int
    num_actions: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    dueling: bool = False
    noisy: bool = False

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """Map `[..., *obs_shape]` to `[..., num_actions]`."""
        x = Encoder(self.obs_ndim)(obs)
        x = MLP(self.hidden_sizes, self.activation, self.noisy)(x)

        def head(size: int, name: str | None = None) -> jax.Array:
            layer = NoisyDense(size, name=name) if self.noisy else dense(size, 1, name)
            return layer(x)

        if not self.dueling:
            return head(self.num_actions)
        value, advantage = head(1, "value"), head(self.num_actions, "advantage")
        return value + advantage - advantage.mean(axis=-1, keepdims=True)
