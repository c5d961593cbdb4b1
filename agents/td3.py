"""TD3. Fujimoto et al. (2018), https://arxiv.org/abs/1802.09477.

DDPG: Lillicrap et al. (2016), https://arxiv.org/abs/1509.02971, is `twin=False,
policy_delay=1, target_noise=0.0`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import losses, networks, replay
from rljax.contracts import Network
from rljax.learners import actor_critic
from rljax.learners.actor_critic import Keyed
from rljax.learners.optimizers import exploration
from rljax.networks import distributions
from rljax.replay import priority
from rljax.types import (
    Agent,
    Box,
    Extras,
    Key,
    Memory,
    Metrics,
    Obs,
    OptState,
    Params,
    Spec,
    Torso,
)

PRESETS: dict[str, cfg.Preset] = {
    "MountainCarContinuous-v0": cfg.Preset(
        dict(
            batch_size=128,
            hidden_sizes=(64, 64),
            total_steps=50_000,
            capacity=50_000,
            warmup_steps=5_000,
            noise_damping=0.1,
            exploration_fraction=0.5,
        )
    ),
    "Pendulum-v1": cfg.Preset(
        dict(
            batch_size=128,
            hidden_sizes=(64, 64),
            total_steps=20_000,
            capacity=20_000,
            warmup_steps=500,
        )
    ),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program.

    Noise is in units of half the width of the actions' bounds.
    """

    learning_rate: float = cfg.rate(1e-3)  # of Adam, for actor and critics
    gamma: float = cfg.discount(0.99)  # discount, cut at termination
    max_grad_norm: float = 1e3  # where each network's gradient is clipped
    target_rate: float = cfg.rate(0.005, high=1.0)  # how far targets move
    target_noise: float = 0.2  # on the target's actions
    target_noise_clip: float = 0.5  # greatest size of it
    noise_start: float = 1.0  # of exploration, at first
    noise_end: float = 0.1  # and after `exploration_fraction`
    exploration_fraction: float = 0.1  # of total_steps, over which the noise falls
    noise_damping: float = 1.0  # of exploration's noise, below 1: correlated in time
    priority_exponent: float = 0.6  # 0: uniform, 1: in proportion
    importance_exponent: float = 0.4  # grows to 1, which undoes the priorities' bias
    total_steps: int = cfg.static(100_000)  # environment steps, all environments
    num_envs: int = cfg.static(1)
    rollout_length: int = cfg.static(2)  # steps per environment and iteration
    num_updates: int = cfg.static(2)  # the critics' gradient steps per iteration
    policy_delay: int = cfg.static(2)  # of these per step of the actor and the targets
    batch_size: int = cfg.static(256)
    capacity: int = cfg.static(100_000)  # transitions in the replay
    n_step: int = cfg.static(1)  # rewards before the bootstrap
    priority: str = cfg.static("uniform")  # or "td_error", "grad_norm"
    sampler: str = cfg.static("replay")  # or "large_batch": scored afresh
    large_batch_factor: int = cfg.static(4)  # large batch over batch size
    warmup_steps: int = cfg.static(1_000)  # stored before the first update
    hidden_sizes: tuple[int, ...] = cfg.static((256, 256))  # of each network
    activation: str = cfg.static("relu")
    torso: Torso = cfg.static("minatar")  # makes features of images
    layer_norm: bool = cfg.static(False)  # before each activation
    compute_dtype: str = cfg.static("float32")  # of layers, or "bfloat16"
    critic_obs: tuple[str, ...] = cfg.static(())  # arrays that only the critic sees
    anneal: bool = cfg.static(False)  # learning rate falls linearly to 0
    twin: bool = cfg.static(True)  # two critics, the target takes the lesser value

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        actor_critic.validate(self)
        cfg.check_range(self, "target_noise", "target_noise_clip", low=0.0)
        cfg.check_range(self, "noise_start", "noise_end", low=0.0)
        cfg.check_range(self, "exploration_fraction", low=0.0, high=1.0, open_low=True)
        cfg.check_count(self, "policy_delay")
        if self.num_updates % self.policy_delay:
            raise ValueError(
                f"num_updates={self.num_updates}: must be a multiple of "
                f"policy_delay={self.policy_delay}"
            )


class State(NamedTuple):
    """Networks, optimisers, replay and counts of the agent."""

    actor: Params
    critic: Params  # two in one, or one
    opt_states: dict[str, OptState]  # of Adam, for each network
    target_actor: Params  # an older copy
    target_critic: Params  # likewise
    replay: replay.Replay
    step: jax.Array  # [] int32, rollouts learned from


def make(spec: Spec) -> Agent:
    """Make the agent for environments of `spec`.

    Raises:
      ValueError: the actions are not continuous, or a bound is infinite.
    """
    box(spec)
    agent = actor_critic.make(
        spec,
        functools.partial(init, spec),
        functools.partial(learn, spec),
        times=lambda config: config.num_updates // config.policy_delay,
        size=lambda config: 2 if config.twin else 1,
    )
    return agent._replace(
        act=functools.partial(act, spec),
        policy=actor_critic.deterministic(functools.partial(actor, spec)),
    )


def box(spec: Spec) -> Box:
    """The actions; ValueError if they are not continuous, or a bound is infinite."""
    return distributions.check_bounded("td3", spec)


def actor(spec: Spec, config: Config) -> Network:
    """The policy's network."""
    return networks.DeterministicActor(
        body=networks.policy_body(spec, config), action=box(spec)
    )


def critic(spec: Spec, config: Config) -> Network:
    """One or two networks: values `[C]` of an action."""
    return actor_critic.critics(spec, config, 2 if config.twin else 1)


def td_errors(
    spec: Spec, config: Config, params: Params, transition: Keyed, *, bootstrap: State
) -> jax.Array:
    """Temporal-difference errors of one transition, `[C]`, one of each critic.

    The semi-gradient is the gradient with respect to `params`, the critics', alone;
    what the target takes from `bootstrap` stays differentiable.
    """
    window, key = transition.window, transition.key
    reward, discount = priority.n_step_return(window, config.gamma)
    middle, half = distributions.middle_and_half(box(spec))
    action = losses.td3_smoothed_action(
        key=key,
        action=actor(spec, config).apply(bootstrap.target_actor, window.next_obs),
        stddev=config.target_noise * half,
        noise_clip=config.target_noise_clip * half,
        minimum=middle - half,
        maximum=middle + half,
    )
    apply = critic(spec, config).apply
    loss = functools.partial(
        losses.td3_learning,
        r_t=reward,
        discount_t=discount,
        q_t=apply(bootstrap.target_critic, window.next_obs, action),
        stop="none",
    )
    return jax.vmap(loss)(apply(params, window.obs, window.action.reshape(-1)))


def actor_loss(
    spec: Spec, config: Config, params: Params, obs: Obs, key: Key, *, bootstrap: State
) -> tuple[jax.Array, jax.Array]:
    """Loss of the policy in one state, `[]`, and its action's value.

    The policy's gradient is the gradient with respect to `params` alone.
    """
    del key  # nothing is drawn
    apply = actor(spec, config).apply

    def value(action: jax.Array) -> jax.Array:
        return critic(spec, config).apply(bootstrap.critic, obs, action)[0]

    q, dqda = jax.value_and_grad(value)(apply(bootstrap.actor, obs))
    return losses.dpg_loss(apply(params, obs), dqda, stop="none"), q


def init(spec: Spec, config: Config, key: Key) -> State:
    """Fresh networks and optimisers, an empty replay."""
    networks = actor_critic.init_networks(
        spec, actor(spec, config), critic(spec, config), key
    )
    targets = jax.tree.map(jnp.copy, networks)  # buffers of their own: donatable
    return State(
        **networks,
        opt_states=actor_critic.init_optimizers(config, networks),
        target_actor=targets["actor"],
        target_critic=targets["critic"],
        replay=actor_critic.init_replay(spec, config),
        step=jnp.zeros((), jnp.int32),
    )


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Memory,
    obs: Obs,
    key: Key,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """The policy's action, with noise to explore."""
    action = actor(spec, config).apply(state.actor, obs)
    if explore:
        stddev = exploration(
            config, state.step, start=config.noise_start, end=config.noise_end
        )
        memory = actor_critic.next_noise(config, memory, key)
        middle, half = distributions.middle_and_half(box(spec))
        action = action + stddev * half * memory
        action = jnp.clip(action, middle - half, middle + half)
    return action.reshape(-1, *box(spec).shape), memory, ()


def learn(
    spec: Spec, config: Config, progress: jax.Array, state: State, key: Key
) -> tuple[State, Metrics]:
    """Steps of the critics, then one of the actor and the targets."""
    actor_key, key = jax.random.split(key)
    adam_step = functools.partial(actor_critic.adam_step, config, progress)

    def critic_step(carry: Any, key: Key) -> Any:
        critic, opt_states, buffer = carry
        batch, new = actor_critic.critic_gradient(
            config,
            buffer,
            key,
            progress=progress,
            td_errors=functools.partial(td_errors, spec, config, bootstrap=state),
            params=critic["critic"],
        )
        critic, opt_states = adam_step(
            critic, grads={"critic": new.mean}, opt_states=opt_states
        )
        buffer = priority.store(buffer, batch, new.priorities)
        unkeyed = batch.examples._replace(key=())  # the keys are used up
        seen = batch._replace(examples=unkeyed)
        return (critic, opt_states, buffer), (seen, new.losses)

    start = ({"critic": state.critic}, state.opt_states, state.replay)
    keys = jax.random.split(key, config.policy_delay)
    end, (batches, values) = jax.lax.scan(critic_step, start, keys)
    critic, opt_states, buffer = end
    learned = state._replace(**critic, replay=buffer)
    batch = jax.tree.map(lambda x: x[-1], batches)
    loss = functools.partial(actor_loss, spec, config, bootstrap=learned)
    grads, _, q = actor_critic.policy_gradient(loss, state.actor, batch, actor_key)
    actor, opt_states = adam_step(
        {"actor": state.actor}, grads={"actor": grads}, opt_states=opt_states
    )
    follow = functools.partial(actor_critic.follow, config)
    new_state = learned._replace(
        **actor,
        opt_states=opt_states,
        target_actor=follow(actor["actor"], state.target_actor),
        target_critic=follow(learned.critic, state.target_critic),
    )
    return new_state, {"critic_loss": values.mean(), "value": q.mean()}
