"""An agent that learns by a meta-trained rule, learned policy gradient.

Oh et al. (2020), https://arxiv.org/abs/2007.08794: `rljax.meta.rules.lpg`. The rule
comes from `rljax meta-train`.
"""

import dataclasses
import functools

import distrax
import flax.linen as nn
import jax

from rljax import config as cfg
from rljax import contracts, networks
from rljax.learners import by_rule, q_learner
from rljax.learners.by_rule import LearnerState as State
from rljax.meta.rules import lpg
from rljax.networks import torsos
from rljax.types import (
    Agent,
    Extras,
    Key,
    Memory,
    Metrics,
    Obs,
    Rollout,
    Spec,
    Torso,
)

PRESETS: dict[str, cfg.Preset] = {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 3e-3  # of Adam
    gamma: float = 0.98  # discount, cut at termination; as in meta-training
    max_update: float = 1.0  # of each parameter in a step, in learning rates
    total_steps: int = cfg.static(500_000)  # environment steps, all environments
    num_envs: int = cfg.static(16)
    rollout_length: int = cfg.static(20)  # steps per environment and update
    hidden_sizes: tuple[int, ...] = cfg.static((64, 64))
    activation: str = cfg.static("tanh")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    anneal: bool = cfg.static(False)  # learning rate falls linearly to 0
    weights: str = cfg.static("")  # a rule's file, or the run that has trained one

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        by_rule.validate(self)
        try:
            lpg.load(self.weights)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"weights={self.weights!r}: must be a rule that `rljax meta-train` "
                f"has made, its run folder or file; {error}"
            ) from error


class Network(nn.Module):
    """Observations to the outputs that the rule reads."""

    body: networks.Body
    num_actions: int
    y_size: int

    @nn.compact
    def __call__(self, obs: Obs) -> dict[str, jax.Array]:
        """Map observations `[..., *shape]` to `logits` and `y`, both as logits."""
        x = torsos.mlp(self.body)(networks.Encoder(self.body)(obs))
        small = nn.initializers.truncated_normal(0.01)
        sizes = {"logits": self.num_actions, "y": self.y_size}
        return {
            name: nn.Dense(size, kernel_init=small, name=name)(x)
            for name, size in sizes.items()
        }


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`."""
    q_learner.check_discrete("lpg", spec)
    return Agent(
        init=functools.partial(init, spec),
        memory=lambda config, num_envs: (),
        act=functools.partial(act, spec),
        observe=lambda config, state, rollout: state,
        update=functools.partial(update, spec),
    )


def network(spec: Spec, config: Config) -> contracts.Network:
    """The agent's network; its prediction is as large as the rule's."""
    settings, _ = lpg.load(config.weights)
    body, num_actions = networks.body(spec, config), q_learner.num_actions(spec)
    return Network(body=body, num_actions=num_actions, y_size=settings.y_size)


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh network and optimiser."""
    settings, _ = lpg.load(config.weights)
    net, rule = network(spec, config), lpg.make(settings)
    return by_rule.init(net, spec.zeros(1), rule, key=key, follows=False)


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


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: Key
) -> tuple[State, Metrics]:
    """One step by the rule on one rollout."""
    del key  # nothing is drawn
    settings, params = lpg.load(config.weights)
    return by_rule.learn(
        network(spec, config).apply,
        config,
        state,
        rollout,
        rule=lpg.make(settings),
        rule_params=params,
        max_steps=spec.max_steps,
    )
