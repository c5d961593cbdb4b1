"""Meta-training of an update rule: many lifetimes at once, one gradient of them all.

Every lifetime is that of one agent with a task of its own, and has an age. A meta-step
lets each agent make K updates by the rule, plays the policy that came out on fresh
data, and moves the rule along the mean gradient of all outer losses. The gradient is
exact through the K updates: the agent's step is a semi-gradient by argument separation.
It is cut where a meta-step begins. The rule is so rewarded only for what an update
does within K updates, less for the last of them: a bias towards short-sighted rules,
that a greater K lessens. Actions are drawn, not differentiated: the gradient has no
term for how the rule changes the data that later updates see.

Oh et al. (2020), https://arxiv.org/abs/2007.08794, algorithm 1; the critic of the outer
loss after Jackson et al. (2023), https://arxiv.org/abs/2310.02782.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import prng
from rljax.contracts import BatchedEnv
from rljax.envs.wrappers import where
from rljax.learners import on_policy, optimizers
from rljax.meta.maml import DrawTask
from rljax.meta.rules.types import Outputs, Rule, RuleState, Trajectory
from rljax.meta.unrolling import unroll
from rljax.running import parallel, rollout
from rljax.types import (
    AgentConfig,
    Discrete,
    EnvState,
    Memory,
    Metrics,
    Obs,
    OptState,
    Params,
    Rollout,
    Spec,
    States,
    TrainState,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Of meta-training; floats are pytree leaves, the rest shapes the program."""

    learning_rate: float = 5e-4  # of Adam, for the rule
    inner_rate: float = 20.0  # of gradient descent, for agents
    gamma: float = 0.98  # discount of rule and outer loss, cut at termination
    lambda_: float = 0.95  # trace decay of the outer advantages
    critic_rate: float = 0.3  # how far a value moves to the mean of its targets
    policy_entropy: float = 0.02  # weight of the policy's entropy
    y_entropy: float = 1e-3  # weight of the prediction's entropy
    pi_hat_cost: float = 5e-3  # weight of the squared target of the policy
    y_hat_cost: float = 1e-3  # weight of the squared target of the prediction
    max_grad_norm: float = 1.0  # where the gradient is clipped that Adam gets
    adam_epsilon: float = 1e-8
    num_lifetimes: int = cfg.static(64)
    lifetime: int = cfg.static(200)  # updates of an agent
    inner_updates: int = cfg.static(5)  # K, of each agent in a meta-step
    num_envs: int = cfg.static(16)  # copies of its task that an agent plays in
    rollout_length: int = cfg.static(20)  # steps per environment and update
    remat: bool = cfg.static(False)  # less memory, more time: `meta.unroll`

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        for name in ("learning_rate", "inner_rate", "max_grad_norm", "adam_epsilon"):
            cfg.check_range(self, name, low=0.0, open_low=True)
        cfg.check_range(self, "gamma", "lambda_", "critic_rate", low=0.0, high=1.0)
        for name in ("policy_entropy", "y_entropy", "pi_hat_cost", "y_hat_cost"):
            cfg.check_range(self, name, low=0.0)
        cfg.check_count(self, "num_lifetimes", "lifetime", "inner_updates", "num_envs")
        cfg.check_count(self, "rollout_length")


class Table(NamedTuple):
    """An agent's network where observations name states: a row for each."""

    num_states: int
    num_actions: int
    y_size: int

    def init(self, key: jax.Array, obs: Obs) -> Params:
        """Zeros: a uniform policy, uniform predictions."""
        del key, obs
        width = self.num_actions + self.y_size
        return {"table": jnp.zeros((self.num_states, width))}

    def apply(self, params: Params, obs: Obs) -> Outputs:
        """Outputs `logits [..., A]` and `y [..., Y]` of states `[..., 1]`."""
        row = params["table"][obs[..., 0]]
        return {"logits": row[..., : self.num_actions], "y": row[..., -self.y_size :]}


def table(spec: Spec, y_size: int) -> Table:
    """Make an agent's table.

    Raises:
      ValueError: observations do not name states, or actions are not discrete.
    """
    lone = spec.obs.leaves[0]
    if not (spec.obs.lone and isinstance(lone.reading, States)):
        raise ValueError("meta-training: tasks must have observations that name states")
    if not isinstance(spec.action, Discrete) or spec.action.masked:
        raise ValueError(f"meta-training: actions must be Discrete, not {spec.action}")
    return Table(
        num_states=lone.reading.number,
        num_actions=spec.action.num_actions,
        y_size=y_size,
    )


class Parts(NamedTuple):
    """A rule, the network of its agents, and the tasks that they live in."""

    rule: Rule
    network: Table
    draw_task: DrawTask


class Lifetime(NamedTuple):
    """One agent, learning."""

    params: Params  # of the agent's network
    rule: RuleState
    critic: jax.Array  # [S] values of states at the outer discount
    env: EnvState
    obs: Obs  # [N, ...]
    age: jax.Array  # [] int32, updates so far
    end: jax.Array  # [] int32, age at which the life is over
    task: jax.Array  # [] typed key, that draws the task
    key: jax.Array  # [] typed key


class MetaState(NamedTuple):
    """A rule, what moves it, and the lifetimes `[L]`."""

    params: Params  # of the rule
    opt_state: OptState  # Adam over them as one flat vector
    lifetimes: Lifetime


def act(
    network: Table,
    config: AgentConfig,
    life: Lifetime,
    memory: Memory,
    obs: Obs,
    key: jax.Array,
    explore: bool,
) -> tuple[jax.Array, Memory, jax.Array]:
    """Sample the policy, with its logits; or take its mode."""
    logits = network.apply(life.params, obs)["logits"]
    if not explore:
        return logits.argmax(axis=-1), memory, logits
    return jax.random.categorical(key, logits), memory, logits


def play(
    parts: Parts, config: Config, env: BatchedEnv, life: Lifetime, key: jax.Array
) -> tuple[Lifetime, Rollout]:
    """Act for a rollout `[T, N, ...]`, whose `extras` are the policy's logits."""
    start = TrainState(
        agent=jax.lax.stop_gradient(life),
        env=life.env,
        obs=life.obs,
        memory=(),
        key=key,
        step=jnp.zeros((), jnp.int32),
    )
    end, played, _ = rollout.unroll(
        functools.partial(act, parts.network),
        env,
        config,
        start,
        memory=lambda config, num_envs: (),
        key=key,
        length=config.rollout_length,
    )
    return life._replace(env=end.env, obs=end.obs), played


def trajectory_of(
    network: Table, config: Config, params: Params, played: Rollout
) -> Trajectory:
    """A rollout as rules read it, with the outputs of these parameters."""
    length = len(played.reward)
    rows = jnp.concatenate([played.obs, played.next_obs[-1:], played.next_obs])
    following = jnp.arange(length + 1, 2 * length + 1)[:, None]
    return Trajectory(
        outputs=network.apply(params, rows),
        target_outputs=(),
        behaviour_logits=played.extras,
        action=played.action,
        reward=played.reward,
        discount=config.gamma * (1.0 - played.terminated),
        ended=played.terminated | played.truncated,
        weight=jnp.ones_like(played.reward),
        following=jnp.broadcast_to(following, played.action.shape),
    )


def learn(
    parts: Parts, config: Config, rule_params: Params, life: Lifetime, played: Rollout
) -> tuple[Lifetime, Metrics]:
    """One update of an agent by the rule: a semi-gradient, by argument separation."""
    network = parts.network
    trajectory = trajectory_of(network, config, life.params, played)
    targets, rule_state = parts.rule.targets(rule_params, life.rule, trajectory)

    def loss(params: Params) -> jax.Array:
        outputs = network.apply(params, played.obs)
        steps = parts.rule.loss(outputs, targets, trajectory)
        return jnp.mean(trajectory.weight * steps)

    grads = jax.grad(loss)(life.params)
    params = optax.tree.add_scale(life.params, -config.inner_rate, grads)
    life = life._replace(
        params=params,
        rule=rule_state,
        critic=value_step(config, life.critic, played)[0],
        age=life.age + 1,
    )
    squared = {name: jnp.mean(x**2) for name, x in targets.items()}
    return life, {f"{name}_squared": x for name, x in squared.items()}


def value_step(
    config: Config, critic: jax.Array, played: Rollout
) -> tuple[jax.Array, jax.Array]:
    """Values `[S]` moved towards lambda returns, and advantages `[T, N]` before that.

    Schulman et al. (2015), https://arxiv.org/abs/1506.02438.
    """
    state, following = played.obs[..., 0], played.next_obs[..., 0]
    adv = on_policy.from_values(
        config, played, critic[state], v_t=critic[following], lambda_=config.lambda_
    )
    # The mean over a state's visits, so that its rate is the same for all states.
    size = len(critic)
    index = state.ravel()
    total = jnp.zeros(size, adv.dtype).at[index].add(adv.ravel())
    visits = jnp.zeros(size, adv.dtype).at[index].add(1.0)
    step = config.critic_rate * total / jnp.maximum(visits, 1.0)
    return critic + step, adv


def lifetime_loss(
    parts: Parts, config: Config, rule_params: Params, life: Lifetime
) -> tuple[jax.Array, tuple[Lifetime, Metrics]]:
    r"""The outer loss of one agent after K updates by the rule.

    .. math:: -E[\log \pi(a|s) A] - \beta_0 H(\pi) - \beta_1 H(y)
              + \beta_2 E[\hat\pi^2] + \beta_3 E[\hat y^2]

    on data that the policy after the updates has played, with the advantages of a
    critic at the outer discount. The last two terms are of the targets in the updates,
    means over all their numbers.

    Args:
      parts: rule, network and tasks.
      config: hyperparameters; `config.inner_updates` is K.
      rule_params: of the rule.
      life: the agent before the updates.

    Returns:
      `[]`; the agent after the updates, and metrics.

    References:
      Oh et al. (2020), eq. 4, https://arxiv.org/abs/2007.08794
    """
    env = parts.draw_task(life.task)
    key, outer_key, *keys = jax.random.split(life.key, 2 + config.inner_updates)

    def update(
        rule_params: Params, life: Lifetime, _: tuple[()], key: jax.Array
    ) -> tuple[Lifetime, Metrics]:
        life, played = play(parts, config, env, life, key)
        return learn(parts, config, rule_params, life, played)

    life, of_updates = unroll(
        update, rule_params, life, (), jnp.stack(keys), remat=config.remat
    )
    life, played = play(parts, config, env, life, outer_key)
    critic, adv = value_step(config, life.critic, played)
    outputs = parts.network.apply(life.params, played.obs)
    log_pi, log_y = (jax.nn.log_softmax(outputs[name]) for name in ("logits", "y"))
    chosen = jnp.take_along_axis(log_pi, played.action[..., None], axis=-1)[..., 0]
    metrics = {
        "policy_loss": -jnp.mean(chosen * adv),
        "policy_entropy": -jnp.mean(jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1)),
        "y_entropy": -jnp.mean(jnp.sum(jnp.exp(log_y) * log_y, axis=-1)),
        **{name: x.mean() for name, x in of_updates.items()},
    }
    loss = (
        metrics["policy_loss"]
        - config.policy_entropy * metrics["policy_entropy"]
        - config.y_entropy * metrics["y_entropy"]
        + config.pi_hat_cost * metrics["pi_hat_squared"]
        + config.y_hat_cost * metrics["y_hat_squared"]
    )
    metrics |= {"reward": played.reward.mean()}
    return loss, (life._replace(critic=critic, key=key), metrics)


def live(
    parts: Parts, config: Config, rule_params: Params, life: Lifetime, updates: int
) -> tuple[Lifetime, jax.Array]:
    """Let an agent learn by a rule; mean rewards `[updates]` on the way."""
    env = parts.draw_task(life.task)

    def update(life: Lifetime, _: None) -> tuple[Lifetime, jax.Array]:
        key, play_key = jax.random.split(life.key)
        life, played = play(parts, config, env, life, play_key)
        life = learn(parts, config, rule_params, life, played)[0]
        return life._replace(key=key), played.reward.mean()

    return jax.lax.scan(update, life, None, updates)


def renewed(parts: Parts, config: Config, life: Lifetime) -> Lifetime:
    """The same agent, or a fresh one with another task where its life is over."""
    key, task, env_key, next_key = jax.random.split(life.key, 4)
    fresh = born(parts, config, task=task, env_key=env_key, key=next_key)
    return jax.tree.map(
        lambda x, y: where(life.age >= life.end, x, y), fresh, life._replace(key=key)
    )


def born(
    parts: Parts,
    config: Config,
    *,
    task: jax.Array,
    env_key: jax.Array,
    key: jax.Array,
) -> Lifetime:
    """A fresh agent in a task; keys are consumed."""
    env = parts.draw_task(task)
    env_state, obs = env.reset(env_key, config.num_envs)
    key, network_key = jax.random.split(key)
    return Lifetime(
        params=parts.network.init(network_key, obs),
        rule=parts.rule.start(),
        critic=jnp.zeros(parts.network.num_states),
        env=env_state,
        obs=obs,
        age=jnp.zeros((), jnp.int32),
        end=jnp.asarray(config.lifetime, jnp.int32),
        task=task,
        key=key,
    )


def init(parts: Parts, config: Config, key: jax.Array) -> MetaState:
    """Make a fresh rule, and agents of which some end sooner.

    The first lives last a share of `config.lifetime` each, from little to all of it, so
    that from then on agents of all ages are there. A shard of a split run makes its own
    part of the lifetimes; they are those of the whole run.
    """
    rule_key, key = jax.random.split(key)
    params = parts.rule.init(rule_key)
    optimizer = optimizers.clipped_adam(config, eps=config.adam_epsilon)
    number, shards = config.num_lifetimes, parallel.size()
    first = jax.lax.axis_index(parallel.AXIS) * number if shards > 1 else 0
    index = first + jnp.arange(number)

    def life(index: jax.Array) -> Lifetime:
        task, env_key, life_key = jax.random.split(jax.random.fold_in(key, index), 3)
        made = born(parts, config, task=task, env_key=env_key, key=life_key)
        share = (index + 1) * config.lifetime // (number * shards)
        return made._replace(end=share.astype(jnp.int32))

    return MetaState(
        params=params,
        opt_state=optimizer.init(ravel_pytree(params)[0]),
        lifetimes=jax.vmap(life)(index),
    )


def run(
    parts: Parts, config: Config, state: MetaState, iterations: int
) -> tuple[MetaState, Metrics]:
    """Make meta-steps.

    Args:
      parts: rule, network and tasks.
      config: sizes and hyperparameters; of a shard where the run is split.
      state: as returned by `init`, or by the last run: two runs equal one long one.
      iterations: how many meta-steps.

    Returns:
      The new state, and metrics `[iterations]`, means over the lifetimes;
      `late_reward` is the mean reward of the `late` agents in the last quarter of
      their lives, 0 where there is none.
    """
    config = cfg.as_arrays(config)

    def step(state: MetaState, _: None) -> tuple[MetaState, Metrics]:
        renew = functools.partial(renewed, parts, config)
        lifetimes = jax.vmap(renew)(state.lifetimes)

        def loss(params: Params) -> tuple[jax.Array, Any]:
            of_one = functools.partial(lifetime_loss, parts, config, params)
            losses, aux = jax.vmap(of_one)(lifetimes)
            return losses.mean(), aux

        rate: Any = config.learning_rate  # an array, as all floats of `config` here
        moved: Any = on_policy.adam_step(
            config, rate, loss, params=state.params, opt_state=state.opt_state
        )
        params, opt_state, (lifetimes, metrics) = moved
        old = lifetimes.age > config.lifetime - config.lifetime // 4
        sums = parallel.total((jnp.sum(old * metrics["reward"]), jnp.sum(old)))
        metrics = parallel.mean(jax.tree.map(jnp.mean, metrics))
        metrics["late_reward"] = sums[0] / jnp.maximum(sums[1], 1)
        metrics["late"] = sums[1].astype(jnp.float32)
        new = MetaState(params=params, opt_state=opt_state, lifetimes=lifetimes)
        return new, metrics

    state = _with_keys(prng.fusible, state)
    state, metrics = jax.lax.scan(step, state, None, iterations)
    return _with_keys(prng.plain, state), metrics


def _with_keys(change: Any, state: MetaState) -> MetaState:
    lives = state.lifetimes
    lives = lives._replace(task=change(lives.task), key=change(lives.key))
    return state._replace(lifetimes=lives)
