"""Torsos and heads as flax modules; observations of any shape and dtype."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from rljax import distributions, prng
from rljax.types import Box, Discrete, Params

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


class LayerNorm(nn.Module):
    """Over the last axis, by Ba et al. (2016), https://arxiv.org/abs/1607.06450.

    As in flax, but quick on CPU for few features, such as the channels of an image:
    there XLA takes several times as long for their sums as for one product of matrices.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., features]` to the same shape."""
        size = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (size,))
        bias = self.param("bias", nn.initializers.zeros, (size,))
        by_product = size <= 32 and jax.default_backend() == "cpu"

        def mean(x: jax.Array) -> jax.Array:
            if by_product:
                return x @ jnp.full((size, size), 1.0 / size, x.dtype)
            return x.mean(axis=-1, keepdims=True)

        x = x - mean(x)
        return x * jax.lax.rsqrt(mean(x * x) + 1e-6) * scale + bias


class Encoder(nn.Module):
    """Observation to a flat float vector: a convolution for images, else itself.

    Images are `[height, width, channels]`, as MinAtar's 10 x 10 planes; the
    convolution is that of Young and Tian (2019), https://arxiv.org/abs/1903.03176.
    """

    obs_ndim: int
    layer_norm: bool = False  # over an image's channels

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
            x = convolution(x)
            x = nn.relu(LayerNorm()(x) if self.layer_norm else x)
        return x.reshape(*obs.shape[: obs.ndim - self.obs_ndim], -1)


class NoisyDense(nn.Module):
    """A linear layer whose weights have learnt noise, if they come `with_noise`.

    Factorised noise of Fortunato et al. (2018), https://arxiv.org/abs/1706.10295,
    section 3, the same for a whole batch.
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
      What the network's `apply` takes in place of `params`: every use has the same
      noise.

    Example:
      >>> layer = NoisyDense(2)
      >>> params = layer.init(jax.random.key(0), jnp.zeros(3))
      >>> layer.apply(with_noise(params, jax.random.key(1)), jnp.ones(3)).shape
      (2,)
    """
    flat: dict[Any, Any] = traverse_util.flatten_dict(params["params"])
    layers = sorted(path[:-2] for path in flat if path[-2:] == ("scale", "kernel"))
    if not layers:
        return params
    sizes = [size for layer in layers for size in flat[*layer, "scale", "kernel"].shape]
    draws = jax.random.normal(key, (sum(sizes),))  # all at once
    # The sign times the root of the absolute value, but with roots as the last costly
    # step: XLA repeats whatever comes after one for every element of a weight.
    factors = jnp.sqrt(jnp.maximum(draws, 0.0)) - jnp.sqrt(jnp.maximum(-draws, 0.0))
    ends, noise = itertools.accumulate(sizes), {}
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
    noise, flat = (traverse_util.unflatten_dict(x) for x in (noise, flat))
    return {"params": flat, "noise": noise}


class MLP(nn.Module):
    """Linear layers, each followed by the activation."""

    hidden_sizes: tuple[int, ...]
    activation: str
    noisy: bool = False
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., features]` to `[..., hidden_sizes[-1]]`."""
        for size in self.hidden_sizes:
            layer = NoisyDense(size) if self.noisy else dense(size, math.sqrt(2))
            x = LayerNorm()(layer(x)) if self.layer_norm else layer(x)
            x = ACTIVATIONS[self.activation](x)
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
    num_outputs: int = 1  # per action: atoms or quantiles of its return
    layer_norm: bool = False

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """Map `[..., *obs_shape]` to `[..., num_actions]`.

        With more than one output per action to `[..., num_actions, num_outputs]`.
        """
        x = Encoder(self.obs_ndim, self.layer_norm)(obs)
        x = MLP(self.hidden_sizes, self.activation, self.noisy, self.layer_norm)(x)

        def head(actions: int, name: str | None = None) -> jax.Array:
            size = actions * self.num_outputs
            layer = NoisyDense(size, name=name) if self.noisy else dense(size, 1, name)
            return layer(x).reshape(*x.shape[:-1], actions, self.num_outputs)

        if self.dueling:
            value, advantage = head(1, "value"), head(self.num_actions, "advantage")
            q = value + advantage - advantage.mean(axis=-2, keepdims=True)
        else:
            q = head(self.num_actions)
        return q if self.num_outputs > 1 else q[..., 0]


class TanhGaussianActor(nn.Module):
    """Observations to a Gaussian squashed into the bounds of the actions.

    Haarnoja et al. (2018), https://arxiv.org/abs/1801.01290, appendix C.
    """

    obs_ndim: int
    action: Box
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "relu"

    @nn.compact
    def __call__(self, obs: jax.Array) -> distrax.Transformed:
        """Map `[..., *obs_shape]` to a distribution over `[..., D]`."""
        x = MLP(self.hidden_sizes, self.activation)(Encoder(self.obs_ndim)(obs))
        size = math.prod(self.action.shape)
        mean, log_std = jnp.split(dense(2 * size, 0.01)(x), 2, axis=-1)
        log_std = jnp.clip(log_std, -10.0, 2.0)
        return distributions.tanh_gaussian(mean, log_std, self.action)


class DeterministicActor(nn.Module):
    """Observations to actions inside their bounds, which tanh approaches."""

    obs_ndim: int
    action: Box
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "relu"

    @nn.compact
    def __call__(self, obs: jax.Array) -> jax.Array:
        """Map `[..., *obs_shape]` to `[..., D]`."""
        x = MLP(self.hidden_sizes, self.activation)(Encoder(self.obs_ndim)(obs))
        middle, half = distributions.middle_and_half(self.action)
        return middle + half * nn.tanh(dense(math.prod(self.action.shape), 0.01)(x))


class ContinuousQ(nn.Module):
    """Values of continuous actions."""

    obs_ndim: int
    action: Box
    hidden_sizes: tuple[int, ...] = (256, 256)
    activation: str = "relu"

    @nn.compact
    def __call__(self, obs: jax.Array, action: jax.Array) -> jax.Array:
        """Map `[..., *obs_shape]` and `[..., D]` to `[...]`."""
        middle, half = distributions.middle_and_half(self.action)
        x = (Encoder(self.obs_ndim)(obs), (action - middle) / half)
        x = MLP(self.hidden_sizes, self.activation)(jnp.concatenate(x, axis=-1))
        return dense(1, 1.0)(x)[..., 0]


class Ensemble(nn.Module):
    """Several networks of one kind, each with parameters of its own."""

    network: Callable[..., nn.Module]  # takes a name
    size: int

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Stack the outputs `[...]` to `[size, ...]`."""
        members = [self.network(name=f"member_{i}") for i in range(self.size)]
        return jnp.stack([member(*inputs) for member in members])


class CosineEmbedding(nn.Module):
    """Features of fractions in [0, 1]: eq. 4 of Dabney et al. (2018)."""

    features: int
    size: int = 64  # cosines

    @nn.compact
    def __call__(self, fractions: jax.Array) -> jax.Array:
        """Map `[N]` to `[N, features]`."""
        cosines = jnp.cos(jnp.pi * jnp.arange(self.size) * fractions[:, None])
        return nn.relu(dense(self.features, math.sqrt(2))(cosines))


class ImplicitQuantileNetwork(nn.Module):
    """Quantiles of the return at given fractions, the same for a whole batch.

    Dabney et al. (2018), https://arxiv.org/abs/1806.06923: the embedded fractions
    multiply the features of the observation. Here this comes after all hidden layers,
    not before the last one: then many fractions cost little more than one, and the
    mean over them is as exact as a plain action value.
    """

    obs_ndim: int
    num_actions: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    embedding_size: int = 64

    @nn.compact
    def __call__(self, obs: jax.Array, fractions: jax.Array) -> jax.Array:
        """Map `[..., *obs_shape]` and `[N]` to `[..., N, num_actions]`."""
        x = Encoder(self.obs_ndim)(obs)
        x = MLP(self.hidden_sizes, self.activation)(x)
        embedded = CosineEmbedding(x.shape[-1], self.embedding_size)(fractions)
        shape = (x.shape[-1], self.num_actions)
        kernel = self.param("kernel", orthogonal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        # The head's weights take the product in place of the features: the fractions
        # are then columns of one matrix, whatever the size of the batch.
        weights = embedded.T[:, :, None] * kernel[:, None, :]  # [features, N, actions]
        return jnp.tensordot(x, weights, axes=1) + bias


class RecurrentQNetwork(nn.Module):
    """Dueling action values from what an LSTM remembers of the episode.

    Its memory is one array `[..., 2 * memory_size]`, zero where an episode starts.
    """

    obs_ndim: int
    num_actions: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    memory_size: int = 64

    def setup(self) -> None:
        """Name the layers that both methods use."""
        self.encoder = Encoder(self.obs_ndim)
        self.mlp = MLP(self.hidden_sizes, self.activation)
        self.cell = nn.OptimizedLSTMCell(
            self.memory_size,
            kernel_init=orthogonal(),
            recurrent_kernel_init=orthogonal(),
        )
        self.value = dense(1, 1.0)
        self.advantage = dense(self.num_actions, 1.0)

    def __call__(
        self, obs: jax.Array, memory: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One step: `[..., *obs_shape]` to `[..., num_actions]` and the new memory."""
        memory = _remember(self.cell, memory, self.mlp(self.encoder(obs)))
        return self._action_values(memory), memory

    def unroll(
        self, obs: jax.Array, starts: jax.Array, memory: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Steps in a row.

        Args:
          obs: `[T, ..., *obs_shape]`.
          starts: `[T, ...]` bool, whether an episode starts there.
          memory: `[..., 2 * memory_size]` before the first step.

        Returns:
          Action values `[T, ..., num_actions]` and the memory after each step
          `[T, ..., 2 * memory_size]`.
        """

        def step(cell: nn.Module, memory: jax.Array, inputs: Any) -> Any:
            x, start = inputs
            memory = _remember(cell, jnp.where(start[..., None], 0.0, memory), x)
            return memory, memory

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        x = self.mlp(self.encoder(obs))
        _, memories = scan(self.cell, memory, (x, starts))
        return self._action_values(memories), memories

    def _action_values(self, memory: jax.Array) -> jax.Array:
        x = memory[..., self.memory_size :]
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(axis=-1, keepdims=True)


def _remember(cell: Any, memory: jax.Array, x: jax.Array) -> jax.Array:
    """One step of an LSTM whose two states are side by side in `memory`."""
    state, _ = cell(tuple(jnp.split(memory, 2, axis=-1)), x)
    return jnp.concatenate(state, axis=-1)
