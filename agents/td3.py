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
from rljax.learners import actor_critic
from rljax.learners.optimizers import exploration
from rljax.networks import distributions
from rljax.replay import Windows, priority
from rljax.types import Agent, Metrics, Params, Rollout, Spec

_SMALL: dict[str, Any] = dict(batch_size=128, hidden_sizes=(64, 64))
_LONG = _SMALL | dict(total_steps=50_000, capacity=50_000, warmup_steps=5_000)
_BRIEF = _SMALL | dict(total_steps=20_000, capacity=20_000, warmup_steps=500)
PRESETS: dict[str, cfg.Preset] = {
    "MountainCarContinuous-v0": cfg.Preset(
        _LONG | dict(noise_damping=0.1, exploration_fraction=0.5)
    ),
    "Pendulum-v1": cfg.Preset(_BRIEF),
}
box = functools.partial(distributions.check_bounded, "td3")  # the actions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Hyperparameters; floats are pytree leaves, the rest shapes the program.

    Noise is in units of half the width of the actions' bounds.
    """

    learning_rate: float = 1e-3  # of Adam, for actor and critics
    gamma: float = 0.99  # discount, cut at termination
    max_grad_norm: float = 1e3  # where each network's gradient is clipped
    target_rate: float = 0.005  # how far targets move to the networks they follow
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
    anneal: bool = cfg.static(False)  # learning rate falls linearly to 0
    twin: bool = cfg.static(True)  # two critics, the target takes the lesser value

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        actor_critic.validate(self)
        noises = ("target_noise", "target_noise_clip", "noise_start", "noise_end")
        cfg.check_range(self, *noises, low=0.0)
        cfg.check_range(self, "exploration_fraction", low=0.0, high=1.0, open_low=True)
        cfg.check_count(self, "policy_delay")
        if self.num_updates % self.policy_delay:
            raise ValueError(
                f"num_updates={self.num_updates}: must be a multiple of "
                f"policy_delay={self.policy_delay}"
            )


class State(NamedTuple):
    """What the agent learns, stores and counts."""

    actor: Params
    critic: Params  # two in one, or one
    opt_states: Any  # of Adam: actor, critic
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
    return Agent(
        init=functools.partial(init, spec),
        memory=functools.partial(actor_critic.memory, spec),
        act=functools.partial(act, spec),
        observe=actor_critic.observe,
        update=functools.partial(update, spec),
    )


def actor(spec: Spec, config: Config) -> Any:
    """The policy's network."""
    args = (len(spec.obs_shape), box(spec), config.hidden_sizes, config.activation)
    return networks.DeterministicActor(*args, reading=spec.reading)


def critic(spec: Spec, config: Config) -> Any:
    """One or two networks: values `[C]` of an action."""
    return actor_critic.critics(spec, config, 2 if config.twin else 1)


def td_errors(
    spec: Spec,
    config: Config,
    params: Params,
    bootstrap: State,
    window: Windows,
    key: Any,
) -> jax.Array:
    """Temporal-difference errors of one transition, `[C]`, one of each critic.

    The semi-gradient is the gradient with respect to `params`, the critics', alone;
    what the target takes from `bootstrap` stays differentiable.
    """
    reward, discount = priority.n_step_return(window, config.gamma)
    middle, half = distributions.middle_and_half(box(spec))
    action = actor(spec, config).apply(bootstrap.target_actor, window.next_obs)
    noise = (config.target_noise * half, config.target_noise_clip * half)
    bounds = (middle - half, middle + half)
    action = losses.td3_smoothed_action(key, action, *noise, *bounds)
    apply = critic(spec, config).apply
    q_t = apply(bootstrap.target_critic, window.next_obs, action)
    q_tm1 = apply(params, window.obs, window.action.reshape(-1))
    loss = functools.partial(losses.td3_learning, stop="none")
    return jax.vmap(lambda q: loss(q, reward, discount, q_t))(q_tm1)


def actor_loss(
    spec: Spec, config: Config, params: Params, obs: Any, key: Any, bootstrap: State
) -> tuple[jax.Array, jax.Array]:
    """Loss of the policy in one state, `[]`, and its action's value.

    The policy's gradient is the gradient with respect to `params` alone.
    """
    apply = actor(spec, config).apply

    def value(action: jax.Array) -> jax.Array:
        return critic(spec, config).apply(bootstrap.critic, obs, action)[0]

    q, dqda = jax.value_and_grad(value)(apply(bootstrap.actor, obs))
    return losses.dpg_loss(apply(params, obs), dqda, stop="none"), q


def init(spec: Spec, config: Config, key: jax.Array) -> State:
    """Fresh networks and optimisers, an empty replay."""
    actor_key, critic_key = jax.random.split(key)
    inputs = actor_critic.example(spec)
    actor_params = actor(spec, config).init(actor_key, inputs[0])
    critic_params = critic(spec, config).init(critic_key, *inputs)
    trained = (actor_params, critic_params)
    return State(
        *trained,
        actor_critic.init_optimizers(config, trained),
        *jax.tree.map(jnp.copy, trained),  # buffers of their own: donatable
        replay=actor_critic.init_replay(spec, config),
        step=jnp.zeros((), jnp.int32),
    )


def act(
    spec: Spec,
    config: Config,
    state: State,
    memory: Any,
    obs: Any,
    key: Any,
    explore: bool,
) -> tuple[jax.Array, Any, Any]:
    """The policy's action, with noise to explore."""
    action = actor(spec, config).apply(state.actor, obs)
    if explore:
        start, end = config.noise_start, config.noise_end
        stddev = exploration(config, state.step, start, end)
        memory = actor_critic.next_noise(config, memory, key)
        middle, half = distributions.middle_and_half(box(spec))
        action = action + stddev * half * memory
        action = jnp.clip(action, middle - half, middle + half)
    return action.reshape(-1, *box(spec).shape), memory, ()


def update(
    spec: Spec, config: Config, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Learn from samples of the replay."""
    step, times = functools.partial(learn, spec, config), config.num_updates
    times //= config.policy_delay
    return actor_critic.update(step, config, state, rollout, key, times)


def learn(
    spec: Spec, config: Config, progress: jax.Array, state: State, key: jax.Array
) -> tuple[State, Metrics]:
    """Steps of the critics, then one of the actor and the targets."""
    actor_key, key = jax.random.split(key)

    def critic_step(carry: Any, key: jax.Array) -> Any:
        params, opt_state, buffer = carry

        def loss(params: Params, inputs: Any) -> tuple[jax.Array, jax.Array]:
            errors = td_errors(spec, config, params, state, *inputs)
            return actor_critic.critic_loss(errors)

        args = (buffer, key, progress, loss, params)
        batch = actor_critic.sample(config, *args)
        new = priority.gradient(config, loss, params, batch)
        args = ((params,), (new.mean,), (opt_state,))
        (params,), (opt_state,) = actor_critic.descend(config, progress, *args)
        buffer = priority.store(buffer, batch, new.priorities)
        batch = batch._replace(windows=batch.windows[:1])  # its keys are used up
        return (params, opt_state, buffer), (batch, new.losses)

    actor_opt, critic_opt = state.opt_states
    start = (state.critic, critic_opt, state.replay)
    keys = jax.random.split(key, config.policy_delay)
    (critic_params, critic_opt, buffer), (batches, values) = jax.lax.scan(
        critic_step, start, keys
    )
    state = state._replace(critic=critic_params, replay=buffer)
    batch = jax.tree.map(lambda x: x[-1], batches)
    loss = functools.partial(actor_loss, spec, config, bootstrap=state)
    grads, _, q = actor_critic.policy_gradient(loss, state.actor, batch, actor_key)
    args = ((state.actor,), (grads,), (actor_opt,))
    (actor_params,), (actor_opt,) = actor_critic.descend(config, progress, *args)
    return state._replace(
        actor=actor_params,
        opt_states=(actor_opt, critic_opt),
        target_actor=actor_critic.follow(config, actor_params, state.target_actor),
        target_critic=actor_critic.follow(config, critic_params, state.target_critic),
    ), {"critic_loss": values.mean(), "value": q.mean()}
