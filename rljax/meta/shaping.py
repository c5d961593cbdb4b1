"""Learned rewards and learned targets: what an agent learns from, as networks make it.

The agent does not know: it is given another rollout.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import losses
from rljax.contracts import TunedConfig
from rljax.meta.recorded import holds_replay
from rljax.meta.types import Settings
from rljax.networks import distributions
from rljax.networks.layers import dense, orthogonal
from rljax.networks.torsos import Body, Encoder, mlp
from rljax.types import (
    Action,
    Agent,
    AgentState,
    Box,
    Discrete,
    Metrics,
    MultiDiscrete,
    Obs,
    Params,
    Rollout,
    Spec,
)

LEARNED = ("reward", "target")
_STARTS_SMALL = 0.1  # scale of a network's last layer


class RewardNetwork(nn.Module):
    """A number for each observation and action."""

    body: Body
    action: Action

    @nn.compact
    def __call__(self, obs: Obs, action: jax.Array) -> jax.Array:
        """Map observations `[..., *shape]` and actions to `[...]`."""
        x = Encoder(self.body)(obs)
        x = jnp.concatenate([x, _features(self.action, action)], axis=-1)
        return dense(1, _STARTS_SMALL)(mlp(self.body)(x))[..., 0]


class TargetNetwork(nn.Module):
    """A number for each step of a rollout, of that step and of all later ones."""

    hidden_size: int

    @nn.compact
    def __call__(self, steps: jax.Array, ended: jax.Array) -> jax.Array:
        """Map features `[T, N, F]` and ends `[T, N]` of episodes to `[T, N]`."""
        cell = nn.GRUCell(self.hidden_size, recurrent_kernel_init=orthogonal())
        start = jnp.zeros((*ended[0].shape, self.hidden_size), steps.dtype)

        def step(
            cell: nn.GRUCell, memory: jax.Array, inputs: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array]:
            x, ended = inputs
            memory = jnp.where(ended[..., None], start, memory)  # what follows is new
            memory, out = cell(memory, x)
            return memory.astype(start.dtype), out

        scan = nn.scan(
            nn.remat(step, prevent_cse=False),  # of a step only its start is kept
            variable_broadcast="params",
            split_rngs={"params": False},
            reverse=True,
        )
        _, out = scan(cell, start, (steps, ended))
        return dense(1, _STARTS_SMALL)(out)[..., 0]


def check(agent: Agent, learned: tuple[str, ...]) -> None:
    """Raise ValueError for what cannot be learned, or not for this agent."""
    for name in learned:
        if name not in LEARNED:
            raise ValueError(f"learned={name!r}: must be of {', '.join(LEARNED)}")
    if not learned:
        return
    if agent.simulates or agent.policy is None or agent.policy_gradient != "rollout":
        raise ValueError(
            f"a learned {learned[0]}: only of agents with a policy that learn from "
            "fresh rollouts"
        )
    if "target" in learned and (agent.recurrent or agent.value is None):
        raise ValueError(
            "a learned target: only of agents with a `value` and without a memory"
        )


def check_state(learned: tuple[str, ...], state: AgentState) -> None:
    """Raise ValueError where an agent's state keeps rewards from before."""
    if learned and holds_replay(state):
        raise ValueError(
            f"a learned {learned[0]}: not of agents with a replay, which keeps rewards "
            "that were learned long ago"
        )


def init(
    agent: Agent, spec: Spec, settings: Settings, *, name: str, key: jax.Array
) -> Params:
    """Fresh parameters of the network that is learned under this name."""
    if name == "reward":
        network = _reward_network(spec, settings)
        return network.init(key, spec.zeros(1), spec.no_action(1))
    return _target_network(settings).init(
        key,
        jnp.zeros((1, 1, _NUM_FEATURES), jnp.float32),
        jnp.zeros((1, 1), bool),
    )


def shaped(
    agent: Agent,
    spec: Spec,
    settings: Settings,
    *,
    config: TunedConfig,
    state: AgentState,
    raw: dict[str, Params],
    rollout: Rollout,
) -> tuple[Rollout, Metrics]:
    r"""The rollout that the agent learns from, and what the networks say of it.

    .. math:: r'_t = c\, r_t + b \tanh(f_\eta(s_t, a_t)), \qquad
              g_t = B \tanh(h_\eta(\tau_{t:}) / B)

    With a learned target each step is an episode of its own, which pays the target and
    terminates: whatever return an actor-critic makes of it is the target, and its
    advantage the target less the value.
    """
    rollout, metrics = _paid(spec, settings, raw=raw, rollout=rollout)
    if "target" in raw:
        target = _targets(
            agent, settings, config=config, state=state, raw=raw, rollout=rollout
        )
        ends = jnp.ones_like(rollout.terminated)
        rollout = rollout._replace(reward=target, terminated=ends)
        metrics["meta_target"] = target.mean()
    return rollout, metrics


def inconsistency(
    agent: Agent,
    spec: Spec,
    settings: Settings,
    *,
    config: TunedConfig,
    state: AgentState,
    raw: dict[str, Params],
    rollout: Rollout,
) -> jax.Array:
    r"""Distance of each target from the reward and the next one, mean `[]`.

    .. math:: \tfrac12 (\text{stop}(r_t + \gamma g_{t+1}) - g_t)^2

    At the outer discount, over the steps that another one of the episode follows. The
    reward is the environment's; the targets are those that the agent gets, which read a
    learned reward if there is one.
    """
    paid, _ = _paid(spec, settings, raw=raw, rollout=rollout)
    g = _targets(agent, settings, config=config, state=state, raw=raw, rollout=paid)
    later = rollout.reward[:-1] + settings.outer_gamma * g[1:]
    ended = (rollout.terminated | rollout.truncated)[:-1]
    errors = jax.lax.stop_gradient(later) - g[:-1]
    return 0.5 * jnp.mean(jnp.where(ended, 0.0, errors) ** 2)


_NUM_FEATURES = 5


def _paid(
    spec: Spec, settings: Settings, *, raw: dict[str, Params], rollout: Rollout
) -> tuple[Rollout, Metrics]:
    """The rollout with a learned reward beside the environment's, if one is learned."""
    if "reward" not in raw:
        return rollout, {}
    network = _reward_network(spec, settings)
    found = network.apply(raw["reward"], rollout.obs, rollout.action)
    own = settings.reward_scale * jnp.tanh(_number(found))
    reward = settings.reward_extrinsic * rollout.reward + own
    return rollout._replace(reward=reward), {"meta_reward": own.mean()}


def _targets(
    agent: Agent,
    settings: Settings,
    *,
    config: TunedConfig,
    state: AgentState,
    raw: dict[str, Params],
    rollout: Rollout,
) -> jax.Array:
    assert agent.value is not None  # `check` looked
    squash = losses.signed_logp1
    ended = rollout.terminated | rollout.truncated
    steps = jnp.stack(
        [
            squash(rollout.reward),
            1.0 - rollout.terminated,
            1.0 - ended,
            squash(agent.value(config, state, rollout.obs)),
            squash(agent.value(config, state, rollout.next_obs)),
        ],
        axis=-1,
    )
    out = _number(_target_network(settings).apply(raw["target"], steps, ended))
    bound = settings.target_bound
    return bound * jnp.tanh(out / bound)


def _reward_network(spec: Spec, settings: Settings) -> RewardNetwork:
    body = Body(obs=spec.obs, hidden_sizes=settings.learned_hidden_sizes)
    return RewardNetwork(body=body, action=spec.action)


def _target_network(settings: Settings) -> TargetNetwork:
    return TargetNetwork(hidden_size=settings.learned_hidden_sizes[-1])


def _features(space: Action, action: jax.Array) -> jax.Array:
    """Actions as floats `[..., F]`: one-hot, or in units of their bounds."""
    if isinstance(space, Discrete):
        return jax.nn.one_hot(action, space.num_actions)
    if isinstance(space, MultiDiscrete):
        hot = [
            jax.nn.one_hot(action[..., i], number)
            for i, number in enumerate(space.num_actions)
        ]
        return jnp.concatenate(hot, axis=-1)
    assert isinstance(space, Box)
    middle, half = distributions.middle_and_half(space)
    flat = action.reshape(*action.shape[: action.ndim - len(space.shape)], -1)
    return (flat - middle) / half


def _number(output: object) -> jax.Array:
    assert isinstance(output, jax.Array)
    return output
