"""Networks that remember the episode, of observations of any tree.

Their memory is the carry of a recurrent cell, a tree of arrays `[..., size]`, as
`fresh_memory` makes it where an episode starts.
"""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import loading
from rljax._distrax import distrax
from rljax.contracts import MemoryConfig
from rljax.networks.layers import dense, orthogonal, precise
from rljax.networks.torsos import Body, Encoder, compute_dtype, mlp
from rljax.types import Memory, Obs, Params

HeadOutputs = distrax.Distribution | jax.Array  # a policy, say, or state values
# Hochreiter and Schmidhuber (1997), https://doi.org/10.1162/neco.1997.9.8.1735; Cho et
# al. (2014), https://arxiv.org/abs/1406.1078.
CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell}


def validate(config: MemoryConfig) -> None:
    """Raise ValueError naming a field out of range, its value and what is allowed."""
    cfg.check_count(config, "memory_size")
    own = isinstance(config.cell, str) and loading.is_reference(config.cell)
    if not (own or isinstance(config.cell, nn.Module)):
        cfg.check_choice(config, "cell", tuple(CELLS), beside="module:Class")


def cell(config: MemoryConfig) -> nn.RNNCellBase:
    """The cell that a config asks for.

    Args:
      config: the agent's; its `cell` is a name of `CELLS`, "module:Class" or
        "file.py:Class" of a `flax.linen.RNNCellBase` that takes `features`, or such a
        cell.

    Raises:
      ValueError: an unknown cell, or something else.
    """
    found: Any = config.cell
    if isinstance(found, str) and found in CELLS:
        return CELLS[found](
            features=config.memory_size,
            kernel_init=orthogonal(),
            recurrent_kernel_init=orthogonal(),
            dtype=compute_dtype(config.compute_dtype),
        )
    if isinstance(found, str):
        found = loading.load(found, "cell")
    if _is_cell_class(found):
        found = found(features=config.memory_size)
    if not isinstance(found, nn.RNNCellBase):
        kind = type(found).__name__
        raise ValueError(
            f"cell={config.cell!r}: must be a flax.linen.RNNCellBase, not {kind}"
        )
    return found


def _is_cell_class(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, nn.RNNCellBase)


def fresh_memory(config: MemoryConfig, *batch: int) -> Memory:
    """The memory `[*batch, ...]` where episodes start."""
    return _fresh(cell(config), batch)


class Recurrence(NamedTuple):
    """The outputs of a cell, and its memories."""

    outputs: jax.Array  # [..., features]
    memory: Memory  # [..., size] after each step


class RecurrentQNetwork(nn.Module):
    """Dueling action values from what is remembered.

    Wang et al. (2016), https://arxiv.org/abs/1511.06581.
    """

    body: Body
    memory_cell: nn.RNNCellBase
    num_actions: int

    def setup(self) -> None:
        """Name the layers that both methods use."""
        self.encoder = Encoder(self.body)
        self.mlp = mlp(self.body)
        self.cell = self.memory_cell.clone()
        self.value = dense(1, 1.0)
        self.advantage = dense(self.num_actions, 1.0)

    def __call__(self, obs: Obs, memory: Memory) -> tuple[jax.Array, Memory]:
        """One step: `[..., *shape]` to `[..., num_actions]` and the new memory."""
        found = _remember(self.cell, memory, self.mlp(self.encoder(obs)))
        return self._action_values(found.outputs), found.memory

    def unroll(
        self, obs: Obs, starts: jax.Array, memory: Memory
    ) -> tuple[jax.Array, Memory]:
        """Steps in a row.

        Args:
          obs: `[T, ..., *shape]`.
          starts: `[T, ...]` bool, whether an episode starts there.
          memory: `[..., size]` before the first step.

        Returns:
          Action values `[T, ..., num_actions]` and the memory after each step
          `[T, ..., size]`.
        """
        x = self.mlp(self.encoder(obs))
        found = _remember_all(self.cell, memory, x, starts)
        return self._action_values(found.outputs), found.memory

    def _action_values(self, x: jax.Array) -> jax.Array:
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(axis=-1, keepdims=True)


class Recurrent(nn.Module):
    """A head on features that remember the episode: a policy, say, or state values."""

    body: Body
    memory_cell: nn.RNNCellBase
    head: nn.Module  # maps features `[..., features]` to `HeadOutputs`

    def setup(self) -> None:
        """Name the layers that both methods use."""
        self.encoder = Encoder(self.body)
        self.mlp = mlp(self.body)
        self.cell = self.memory_cell.clone()

    def __call__(self, obs: Obs, memory: Memory) -> tuple[HeadOutputs, Memory]:
        """One step: `[..., *shape]` to the head's outputs and the new memory."""
        found = _remember(self.cell, memory, self.mlp(self.encoder(obs)))
        return self.head(found.outputs), found.memory

    def unroll(
        self, obs: Obs, starts: jax.Array, memory: Memory
    ) -> tuple[HeadOutputs, Memory]:
        """Steps in a row.

        Args:
          obs: `[T, ..., *shape]`.
          starts: `[T, ...]` bool, whether an episode starts there.
          memory: `[..., size]` before the first step.

        Returns:
          The head's outputs of batch shape `[T, ...]` and the memory after each step
          `[T, ..., size]`.
        """
        x = self.mlp(self.encoder(obs))
        found = _remember_all(self.cell, memory, x, starts)
        return self.head(found.outputs), found.memory


def starts_of(ended: jax.Array) -> jax.Array:
    """Whether an episode starts at each step, `[T, ...]` bool: the one before ended.

    Where the very first step starts one, its memory is fresh already.
    """
    return jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]])


def recall(
    net: RecurrentQNetwork | Recurrent,
    params: Params,
    *,
    obs: Obs,
    starts: jax.Array,
    memory: Memory,
) -> Memory:
    """Return the memory after steps in a row, if there are any; see `unroll`."""
    if not len(starts):
        return memory
    _, memories = net.apply(params, obs, starts, memory, method="unroll")
    return jax.tree.map(lambda x: x[-1], cast(Memory, memories))


def _fresh(cell: nn.RNNCellBase, batch: tuple[int, ...]) -> Memory:
    return cell.initialize_carry(jax.random.key(0), (*batch, 1))


def _remember(cell: nn.RNNCellBase, memory: Memory, x: jax.Array) -> Recurrence:
    """One step; the memory keeps its dtypes."""
    new, outputs = cell(memory, x)
    kept = jax.tree.map(lambda x, old: x.astype(jnp.result_type(old)), new, memory)
    return Recurrence(outputs=precise(outputs), memory=kept)


def _remember_all(
    cell: nn.RNNCellBase, memory: Memory, x: jax.Array, starts: jax.Array
) -> Recurrence:
    """Steps in a row, `[T, ...]`; nothing is remembered across a start."""
    fresh = _fresh(cell, x.shape[1:-1])

    def step(
        cell: nn.RNNCellBase, memory: Memory, inputs: tuple[jax.Array, jax.Array]
    ) -> tuple[Memory, Recurrence]:
        x, start = inputs
        memory = jax.tree.map(
            lambda new, old: jnp.where(start[..., None], new, old), fresh, memory
        )
        found = _remember(cell, memory, x)
        return found.memory, found

    scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
    return scan(cell, memory, (x, starts))[1]
