"""MAML for policies: parameters from which a few gradient steps adapt to a new task.

Finn et al. (2017), https://arxiv.org/abs/1703.03400. The derivative of an adapted
policy's return has two paths. One is through the update, from the parameters before it
to those after it: `meta.maml_loss` differentiates it exactly. The other is through the
actions that the update learnt from, which the old parameters drew. `policy_loss` has
that path by DiCE: the derivative of its gradient is, in expectation, the Hessian of the
expected return. This is the second formulation of Rothfuss et al. (2019),
https://arxiv.org/abs/1810.06784; a plain surrogate drops the path, as the first MAML
did. Their first formulation, E-MAML, multiplies the outer loss by
`autodiff.magic_box` of the log-probabilities of all those actions instead. The inner
loss is then a plain surrogate: with both, the path would count twice.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from rljax import config as cfg
from rljax import prng
from rljax.autodiff import loaded_dice_objective
from rljax.contracts import BatchedEnv
from rljax.learners import on_policy, optimizers
from rljax.meta import adapt, maml_loss
from rljax.networks import distributions
from rljax.running import rollout
from rljax.types import (
    AgentConfig,
    Memory,
    Metrics,
    Obs,
    OptState,
    Params,
    Policy,
    Rollout,
    TrainState,
)

DrawTask = Callable[[jax.Array], BatchedEnv]  # key to a task


class PolicyNetwork(Protocol):
    """A policy and a value, say a flax module such as `networks.ActorCritic`."""

    def init(self, key: jax.Array, obs: Obs, /) -> Params:
        """Make parameters, for observations `[1, *shape]`."""
        ...

    def apply(self, params: Params, obs: Obs, /) -> tuple[Policy, jax.Array]:
        """Map `[..., *shape]` to a distribution and to values `[...]`."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Config:
    """Of MAML for policies; floats are pytree leaves, the rest shapes the program."""

    inner_rate: float = 0.1  # learning rate of the adaptation
    learning_rate: float = 1e-3  # of Adam, for the initial parameters
    gamma: float = 0.99  # discount, cut at termination
    lambda_: float = 0.95  # trace decay of the advantages; 1: unbiased derivatives
    value_cost: float = 0.5  # weight of the critic's squared error
    reward_scale: float = 1.0  # of rewards, before anything is learnt from them
    max_grad_norm: float = 1.0  # where the gradient is clipped that Adam gets
    inner_steps: int = cfg.static(1)
    num_tasks: int = cfg.static(40)  # per update
    num_envs: int = cfg.static(20)  # trajectories per task and step
    rollout_length: int = cfg.static(10)  # steps of a trajectory at most
    first_order: bool = cfg.static(False)  # no derivatives of the adaptation's gradient

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        for name in ("inner_rate", "learning_rate", "reward_scale", "max_grad_norm"):
            cfg.check_range(self, name, low=0.0, open_low=True)
        cfg.check_range(self, "gamma", "lambda_", low=0.0, high=1.0)
        cfg.check_range(self, "value_cost", low=0.0)
        for name in ("inner_steps", "num_tasks", "num_envs", "rollout_length"):
            cfg.check_count(self, name)


class MamlState(NamedTuple):
    """Parameters that MAML learns, and what moves them."""

    params: Params  # where the adaptation to a task starts
    opt_state: OptState  # Adam over them as one flat vector
    key: jax.Array  # [] typed key


def play(
    network: PolicyNetwork,
    config: Config,
    env: BatchedEnv,
    params: Params,
    key: jax.Array,
) -> Rollout:
    """Trajectories of a policy from the start, `[T, N, ...]`, as constants."""
    reset_key, key = jax.random.split(key)
    env_state, obs = env.reset(reset_key, config.num_envs)

    def act(
        config: AgentConfig,
        params: Params,
        memory: Memory,
        obs: Obs,
        key: jax.Array,
        explore: bool,
    ) -> tuple[jax.Array, Memory, tuple[()]]:
        policy, _ = network.apply(params, obs)
        return distributions.sample(policy, key), memory, ()

    start = TrainState(
        agent=jax.lax.stop_gradient(params),
        env=env_state,
        obs=obs,
        memory=(),
        key=key,
        step=jnp.zeros((), jnp.int32),
    )
    _, played, _ = rollout.unroll(
        act,
        env,
        config,
        start,
        memory=lambda config, num_envs: (),
        key=key,
        length=config.rollout_length,
    )
    return played


def policy_loss(
    network: PolicyNetwork,
    config: Config,
    params: Params,
    bootstrap_params: Params,
    batch: Rollout,
) -> tuple[jax.Array, jax.Array]:
    r"""Actor-critic loss, whose policy gradient has the right derivative.

    .. math:: -J(\theta) + \frac cT \sum_t (v_\theta(s_t) - G_t)^2

    where J is `autodiff.loaded_dice_objective` of generalised advantages, which has the
    gradient of a trajectory's discounted return, and G the lambda return; mean over
    trajectories. The critic's part is differentiated at fixed data.

    Args:
      network: `apply(params, obs[..., *shape]) -> (policy, values[...])`.
      config: `gamma`, `lambda_`, `value_cost` and `reward_scale` are used.
      params: of the network.
      bootstrap_params: the same, for advantages and targets: see `meta.adapt`.
      batch: `[T, N, ...]`, drawn by the policy; an environment's first episode counts,
        and nothing after it.

    Returns:
      `[]`, and the undiscounted returns `[N]`, of at most T steps.

    References:
      Farquhar et al. (2019), section 4, https://arxiv.org/abs/1909.10549
      Schulman et al. (2015), https://arxiv.org/abs/1506.02438
    """
    policy, value = network.apply(params, batch.obs)
    v_tm1, v_t = (
        network.apply(bootstrap_params, obs)[1] for obs in (batch.obs, batch.next_obs)
    )
    scaled = batch._replace(reward=config.reward_scale * batch.reward)
    adv = on_policy.from_values(
        config, scaled, v_tm1=v_tm1, v_t=v_t, lambda_=config.lambda_
    )
    ended = batch.terminated | batch.truncated
    first = jnp.cumsum(ended, axis=0) - ended == 0  # [T, N]
    objective = jax.vmap(loaded_dice_objective, in_axes=1)
    dice = objective(policy.log_prob(batch.action), adv, config.gamma * (1.0 - ended))
    error = jnp.mean(first * (value - (adv + v_tm1)) ** 2)
    loss = config.value_cost * error - dice.mean()
    return loss, jnp.sum(first * batch.reward, axis=0)


def task_loss(
    network: PolicyNetwork,
    config: Config,
    params: Params,
    env: BatchedEnv,
    key: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """The loss of a policy that has adapted to one environment; `jax.vmap` over more.

    Args:
      network: as in :func:`policy_loss`.
      config: sizes and hyperparameters.
      params: where the adaptation starts.
      env: batched environment, the task.
      key: `[]` typed key, consumed here.

    Returns:
      `[]`, and mean returns: `return` of the policy before it adapts, `adapted_return`.
    """

    def loss(
        params: Params, bootstrap_params: Params, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        batch = play(network, config, env, params=params, key=key)
        return policy_loss(
            network, config, params, bootstrap_params=bootstrap_params, batch=batch
        )

    keys = jax.random.split(key, config.inner_steps + 1)
    total, (before, after) = maml_loss(
        inner_loss=loss,
        outer_loss=loss,
        params=params,
        batches=keys[:-1],
        held_out=keys[-1],
        learning_rate=config.inner_rate,
        first_order=config.first_order,
        has_aux=True,
    )
    return total, {"return": before[0].mean(), "adapted_return": after.mean()}


def adapt_policy(
    network: PolicyNetwork,
    config: Config,
    params: Params,
    env: BatchedEnv,
    key: jax.Array,
) -> Params:
    """The parameters after `config.inner_steps` steps in one environment."""
    config = cfg.as_arrays(config)

    def loss(params: Params, bootstrap_params: Params, key: jax.Array) -> jax.Array:
        batch = play(network, config, env, params=params, key=key)
        total, _ = policy_loss(
            network, config, params, bootstrap_params=bootstrap_params, batch=batch
        )
        return total

    keys = jax.random.split(key, config.inner_steps)
    return adapt(loss, params, batches=keys, learning_rate=config.inner_rate)


def init(
    network: PolicyNetwork, config: Config, draw_task: DrawTask, key: jax.Array
) -> MamlState:
    """Make fresh parameters and optimiser; ValueError if actions are masked."""
    params_key, key = jax.random.split(key)
    spec = jax.eval_shape(draw_task, key).spec
    distributions.check_unmasked("maml", spec)
    params = network.init(params_key, spec.zeros(1))
    optimizer = optimizers.clipped_adam(config, eps=on_policy.EPS)
    opt_state = optimizer.init(ravel_pytree(params)[0])
    return MamlState(params=params, opt_state=opt_state, key=key)


def run(
    network: PolicyNetwork,
    config: Config,
    draw_task: DrawTask,
    state: MamlState,
    iterations: int,
) -> tuple[MamlState, Metrics]:
    """Update the initial parameters, each time along the gradient of many tasks.

    Args:
      network: as in :func:`policy_loss`, for instance `networks.ActorCritic`.
      config: sizes and hyperparameters.
      draw_task: `key -> env`, a batched environment whose parameters are drawn.
      state: as returned by `init`, or by the last run: two runs equal one long one.
      iterations: how many updates.

    Returns:
      The new state, and metrics `[iterations]`, means over the tasks.

    References:
      Finn et al. (2017), algorithm 3, https://arxiv.org/abs/1703.03400
    """
    config = cfg.as_arrays(config)

    def step(state: MamlState, _: None) -> tuple[MamlState, Metrics]:
        key, task_key, play_key = jax.random.split(state.key, 3)
        tasks = jax.vmap(draw_task)(jax.random.split(task_key, config.num_tasks))
        keys = jax.random.split(play_key, config.num_tasks)

        def loss(params: Params) -> tuple[jax.Array, Metrics]:
            of_one = functools.partial(task_loss, network, config, params)
            losses, metrics = jax.vmap(of_one)(tasks, keys)
            return losses.mean(), jax.tree.map(jnp.mean, metrics)

        rate: Any = config.learning_rate  # an array, as all floats of `config` here
        params, opt_state, metrics = on_policy.adam_step(
            config, rate, loss, params=state.params, opt_state=state.opt_state
        )
        return MamlState(params=params, opt_state=opt_state, key=key), metrics

    state = state._replace(key=prng.fusible(state.key))
    state, metrics = jax.lax.scan(step, state, None, iterations)
    return state._replace(key=prng.plain(state.key)), metrics
