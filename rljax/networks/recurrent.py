"""Networks that remember the episode: observations of any shape and dtype.

Their memory is one array `[..., 2 * memory_size]`, zero where an episode starts: both
states of an LSTM. Hochreiter and Schmidhuber (1997),
https://doi.org/10.1162/neco.1997.9.8.1735.
"""

from typing import cast

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax.networks.layers import MLP, Encoder, dense, orthogonal
from rljax.types import Params, Reading

HeadOutputs = distrax.Distribution | jax.Array  # a policy, say, or state values


class RecurrentQNetwork(nn.Module):
    """Dueling action values from what is remembered.

    Wang et al. (2016), https://arxiv.org/abs/1511.06581.
    """

    obs_ndim: int
    num_actions: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    memory_size: int = 64
    reading: Reading = None

    def setup(self) -> None:
        """Name the layers that both methods use."""
        self.encoder = Encoder(self.obs_ndim, reading=self.reading)
        self.mlp = MLP(self.hidden_sizes, self.activation)
        self.cell = _lstm(self.memory_size)
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
        x = self.mlp(self.encoder(obs))
        memories = _remember_all(self.cell, memory, x, starts)
        return self._action_values(memories), memories

    def _action_values(self, memory: jax.Array) -> jax.Array:
        x = _output(memory)
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(axis=-1, keepdims=True)


class Recurrent(nn.Module):
    """A head on features that remember the episode: a policy, say, or state values."""

    obs_ndim: int
    head: nn.Module  # maps features `[..., memory_size]` to `HeadOutputs`
    hidden_sizes: tuple[int, ...] = (64,)
    activation: str = "tanh"
    memory_size: int = 64
    reading: Reading = None

    def setup(self) -> None:
        """Name the layers that both methods use."""
        self.encoder = Encoder(self.obs_ndim, reading=self.reading)
        self.mlp = MLP(self.hidden_sizes, self.activation)
        self.cell = _lstm(self.memory_size)

    def __call__(
        self, obs: jax.Array, memory: jax.Array
    ) -> tuple[HeadOutputs, jax.Array]:
        """One step: `[..., *obs_shape]` to the head's outputs and the new memory."""
        memory = _remember(self.cell, memory, self.mlp(self.encoder(obs)))
        return self.head(_output(memory)), memory

    def unroll(
        self, obs: jax.Array, starts: jax.Array, memory: jax.Array
    ) -> tuple[HeadOutputs, jax.Array]:
        """Steps in a row.

        Args:
          obs: `[T, ..., *obs_shape]`.
          starts: `[T, ...]` bool, whether an episode starts there.
          memory: `[..., 2 * memory_size]` before the first step.

        Returns:
          The head's outputs of batch shape `[T, ...]` and the memory after each step
          `[T, ..., 2 * memory_size]`.
        """
        x = self.mlp(self.encoder(obs))
        memories = _remember_all(self.cell, memory, x, starts)
        return self.head(_output(memories)), memories


def recall(
    net: RecurrentQNetwork | Recurrent,
    params: Params,
    *,
    obs: jax.Array,
    starts: jax.Array,
    memory: jax.Array,
) -> jax.Array:
    """Return the memory after steps in a row, if there are any; see `unroll`."""
    if not len(obs):
        return memory
    _, memories = net.apply(params, obs, starts, memory, method="unroll")
    return cast(jax.Array, memories)[-1]


def _lstm(size: int) -> nn.OptimizedLSTMCell:
    return nn.OptimizedLSTMCell(
        size, kernel_init=orthogonal(), recurrent_kernel_init=orthogonal()
    )


def _remember(cell: nn.OptimizedLSTMCell, memory: jax.Array, x: jax.Array) -> jax.Array:
    """One step of an LSTM whose two states are side by side in `memory`."""
    carry, output = jnp.split(memory, 2, axis=-1)
    state, _ = cell((carry, output), x)
    return jnp.concatenate(state, axis=-1)


def _remember_all(
    cell: nn.OptimizedLSTMCell, memory: jax.Array, x: jax.Array, starts: jax.Array
) -> jax.Array:
    """Memories after each step `[T, ...]`; nothing is remembered across a start."""

    def step(
        cell: nn.OptimizedLSTMCell,
        memory: jax.Array,
        inputs: tuple[jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        x, start = inputs
        memory = _remember(cell, jnp.where(start[..., None], 0.0, memory), x)
        return memory, memory

    scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
    return scan(cell, memory, (x, starts))[1]


def _output(memory: jax.Array) -> jax.Array:
    """The second half of an LSTM's memory, which is its output."""
    return jnp.split(memory, 2, axis=-1)[1]
