"""Disco103, the published DiscoRL rule. Oh et al. (2025), https://doi.org/10.1038/s41586-025-09761-x.

The agent learns by a rule that meta-learning found: `rljax.meta.rules.disco`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import contracts, networks, replay
from rljax.learners import by_rule, q_learner
from rljax.meta.rules import disco
from rljax.networks import torsos
from rljax.networks.layers import dense, precise
from rljax.types import (
    Agent,
    Extras,
    Key,
    Memory,
    Metrics,
    Obs,
    OptState,
    Params,
    Rollout,
    Spec,
    Torso,
)

PRESETS: dict[str, cfg.Preset] = {
    "CartPole-v1": cfg.Preset(
        dict(
            learning_rate=1e-2,
            gamma=0.99,
            batch_size=16,
            hidden_sizes=(128, 128),
            action_size=64,
            anneal=True,
        )
    ),
    "Catch-bsuite": cfg.Preset(
        dict(
            learning_rate=1e-2,
            batch_size=16,
            hidden_sizes=(128, 128),
            action_size=64,
        )
    ),
}
WHERE = (
    "must be the path of disco_103.npz, the rule's published numbers: see the "
    "repository google-deepmind/disco_rl; licence CC-BY 4.0; the paper declares a "
    "pending patent application"
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 1e-3  # of Adam
    gamma: float = 0.997  # discount, cut at termination; the rule was found with this
    max_update: float = 1.0  # of each parameter in a step, in learning rates
    target_rate: float = 0.1  # how far the target moves to the network, 1: copy
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(8)
    rollout_length: int = cfg.static(29)  # steps per environment and update
    batch_size: int = cfg.static(32)  # sequences per update, the newest among them
    capacity: int = cfg.static(29 * 1024)  # steps in the replay
    hidden_sizes: tuple[int, ...] = cfg.static((512, 512))  # the last is linear
    action_size: int = cfg.static(128)  # of the LSTM over actions and a layer behind
    activation: str = cfg.static("relu")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    anneal: bool = cfg.static(False)  # learning rate falls linearly to 0
    weights: str = cfg.static("")  # path of the rule's numbers, an .npz file

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        by_rule.validate(self)
        replay.validate(self)
        cfg.check_count(self, "batch_size", "action_size")
        if self.batch_size < self.num_envs:
            raise ValueError(
                f"batch_size={self.batch_size}: must be at least num_envs = "
                f"{self.num_envs}"
            )
        if self.batch_size * self.rollout_length > self.capacity:
            raise ValueError(
                f"batch_size={self.batch_size}: must be at most capacity / "
                f"rollout_length = {self.capacity // self.rollout_length}"
            )
        try:
            disco.load(self.weights)
        except ValueError as error:
            found = f"; {error}" if self.weights else ""
            raise ValueError(f"weights={self.weights!r}: {WHERE}{found}") from error


class State(NamedTuple):
    """Network, optimiser, counts, replay, and what the rule keeps."""

    params: Params
    target_params: Params  # an older copy, which the rule reads too
    opt_state: OptState  # of Adam, over the parameters as one flat vector
    rule_state: disco.State
    step: jax.Array  # [] int32, rollouts learned from
    replay: replay.Replay  # with the logits of the policy that acted as memory


def near_zero(key: Key, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Biases of the action value's logits: first values are near 0.

    Random logits over so wide bins are values of 100, and the rule's running moments
    take hundreds of updates to forget the first errors.
    """
    del key
    bins = jnp.arange(shape[0], dtype=dtype) - disco.LIMIT
    return -jnp.abs(bins) / 10


class Network(nn.Module):
    """Observations to the outputs that the rule reads."""

    body: networks.Body
    num_actions: int
    action_size: int

    @nn.compact
    def __call__(self, obs: Obs) -> dict[str, jax.Array]:
        """Map observations `[..., *shape]` to logits by name; see `rules.disco`."""
        body, num_actions = self.body, self.num_actions
        inner = dataclasses.replace(body, hidden_sizes=body.hidden_sizes[:-1])
        dtype = torsos.compute_dtype(body.compute_dtype)
        x = torsos.mlp(inner)(networks.Encoder(body)(obs))
        x = dense(body.hidden_sizes[-1], 1.0, dtype=dtype)(x)
        small = nn.initializers.truncated_normal(0.01)
        outputs = {
            name: nn.Dense(size, kernel_init=small, name=name)(x)
            for name, size in (("logits", num_actions), ("y", disco.Y))
        }
        each = self.of_actions(x, dtype)
        sizes = {"z": disco.Y, "aux_pi": num_actions, "q": 2 * disco.LIMIT + 1}
        for name, size in sizes.items():
            h = nn.relu(nn.Dense(self.action_size, dtype=dtype)(each))
            start: dict[str, Any] = dict(name=name)
            if name == "q":
                start |= dict(kernel_init=small, bias_init=near_zero)
            outputs[name] = precise(nn.Dense(size, dtype=dtype, **start)(h))
        return outputs

    def of_actions(self, x: jax.Array, dtype: str | None) -> jax.Array:
        """Features of each action, `[..., A, L]`: one step of an LSTM from `x`."""
        size = self.action_size
        cell = nn.Dense(size, dtype=dtype)(x)
        hidden = nn.Dense(4 * size, dtype=dtype)(jnp.tanh(cell))
        init = nn.initializers.truncated_normal((self.num_actions + size) ** -0.5)
        shape = (self.num_actions, 4 * size)
        of_action = self.param("action", init, shape, jnp.float32)
        gates = hidden[..., None, :] + of_action
        return disco.gated(gates, cell[..., None, :])[0]


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`."""
    q_learner.check_discrete("disco103", spec)
    return Agent(
        init=functools.partial(init, spec),
        memory=lambda config, num_envs: (),
        act=functools.partial(act, spec),
        observe=observe,
        update=functools.partial(update, spec),
    )


def network(spec: Spec, config: Config) -> contracts.Network:
    """The agent's network."""
    body, num_actions = networks.body(spec, config), q_learner.num_actions(spec)
    return Network(body=body, num_actions=num_actions, action_size=config.action_size)


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh network and optimiser, an empty replay."""
    net = network(spec, config)
    learner = by_rule.init(net, spec.zeros(1), disco.rule(), key=key)
    buffer = replay.init(
        spec,
        config.num_envs,
        config.capacity,
        prioritized=False,
        memory=jnp.zeros((config.num_envs, q_learner.num_actions(spec)), jnp.float32),
    )
    return State(**learner._asdict(), replay=buffer)


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Memory,
    obs: Obs,
    key: Key,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """Sample the policy, with its logits; or take its mode."""
    return by_rule.act(policy(spec, config, state, obs), memory, key, explore)


def policy(spec: Spec, config: Config, state: State, obs: Obs) -> distrax.Categorical:
    """The policy at observations `[..., *shape]`."""
    outputs = network(spec, config).apply(state.params, obs)
    return distrax.Categorical(outputs["logits"])


def observe(config: Config, state: State, rollout: Rollout) -> State:
    """Store the rollout, with the logits of the policy."""
    return state._replace(replay=replay.add(state.replay, with_logits(rollout)))


def with_logits(rollout: Rollout) -> Rollout:
    """The rollout as the replay keeps it."""
    return rollout._replace(memory=rollout.extras, extras=())


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """One step on the newest sequences and on some of the replay."""
    batch, num = with_logits(rollout), config.batch_size - config.num_envs
    if num:
        _, drawn, _ = replay.sample_sequences(
            state.replay, key, batch_size=num, length=config.rollout_length
        )
        batch = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), batch, drawn)
    return by_rule.learn(
        network(spec, config).apply,
        config,
        state,
        batch._replace(extras=batch.memory),
        rule=disco.rule(),
        rule_params=disco.load(config.weights),
        max_steps=spec.max_steps,
    )
