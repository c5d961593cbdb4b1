"""Networks that remember the episode: observations of any shape and dtype.

Their memory is one array `[..., 2 * memory_size]`, zero where an episode starts: both
states of an LSTM. Hochreiter and Schmidhuber (1997),
https://doi.org/10.1162/neco.1997.9.8.1735.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax.networks.layers import MLP, Encoder, dense, orthogonal
from rljax.types import Levels, States


class RecurrentQNetwork(nn.Module):
    """Dueling action values from what is remembered.

    Wang et al. (2016), https://arxiv.org/abs/1511.06581.
    """

    obs_ndim: int
    num_actions: int
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "relu"
    memory_size: int = 64
    reading: States | Levels | None = None  # of observations

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
    """What a head makes of what is remembered: a policy, say, or state values."""

    obs_ndim: int
    head: nn.Module  # maps features `[..., memory_size]` to any outputs
    hidden_sizes: tuple[int, ...] = (64,)
    activation: str = "tanh"
    memory_size: int = 64
    reading: States | Levels | None = None  # of observations

    def setup(self) -> None:
        """Name the layers that both methods use."""
        self.encoder = Encoder(self.obs_ndim, reading=self.reading)
        self.mlp = MLP(self.hidden_sizes, self.activation)
        self.cell = _lstm(self.memory_size)

    def __call__(self, obs: jax.Array, memory: jax.Array) -> tuple[Any, jax.Array]:
        """One step: `[..., *obs_shape]` to the head's outputs and the new memory."""
        memory = _remember(self.cell, memory, self.mlp(self.encoder(obs)))
        return self.head(_output(memory)), memory

    def unroll(
        self, obs: jax.Array, starts: jax.Array, memory: jax.Array
    ) -> tuple[Any, jax.Array]:
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
    net: Any, params: Any, obs: jax.Array, starts: jax.Array, memory: jax.Array
) -> jax.Array:
    """The memory after steps in a row, if there are any; arguments as of `unroll`."""
    if not len(obs):
        return memory
    return net.apply(params, obs, starts, memory, method="unroll")[1][-1]


def _lstm(size: int) -> nn.Module:
    return nn.OptimizedLSTMCell(
        size, kernel_init=orthogonal(), recurrent_kernel_init=orthogonal()
    )


def _remember(cell: Any, memory: jax.Array, x: jax.Array) -> jax.Array:
    """One step of an LSTM whose two states are side by side in `memory`."""
    state, _ = cell(tuple(jnp.split(memory, 2, axis=-1)), x)
    return jnp.concatenate(state, axis=-1)


def _remember_all(
    cell: Any, memory: jax.Array, x: jax.Array, starts: jax.Array
) -> jax.Array:
    """Memories after each step `[T, ...]`; nothing is remembered across a start."""

    def step(cell: nn.Module, memory: jax.Array, inputs: Any) -> Any:
        x, start = inputs
        memory = _remember(cell, jnp.where(start[..., None], 0.0, memory), x)
        return memory, memory

    scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
    return scan(cell, memory, (x, starts))[1]


def _output(memory: jax.Array) -> jax.Array:
    """What an LSTM shows of its memory: the second half."""
    return jnp.split(memory, 2, axis=-1)[1]
