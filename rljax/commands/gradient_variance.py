"""Measure how much priorities lower the variance of a gradient from replay.

    rljax gradient-variance --env CartPole-v1

DQN trains for a while. Its replay and its networks then fix one gradient, the mean over
all stored transitions, which every sampler estimates without bias: priorities and
importance weights have the exponent 1. Printed is the trace of the covariance of one
draw's weighted gradient: exactly, from the probabilities that the replay draws with;
measured over batches; and the least there is for any probabilities, which is that of
gradient norms: Alain et al. (2015), https://arxiv.org/abs/1511.06481.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from rljax import agents, envs, replay
from rljax.autodiff import per_transition_grad_norms
from rljax.commands import common
from rljax.config import check_range
from rljax.learners import q_learner
from rljax.replay import priority, sum_tree
from rljax.running import train

Loss = priority.ScoredLoss[replay.Windows]
Batch = priority.ReplayBatch[replay.Windows]


@dataclasses.dataclass(frozen=True)
class Options:
    """The training, its length, and the amount to draw."""

    env: str = "CartPole-v1"
    """environment name"""
    steps: int = 50_000
    """environment steps of training"""
    transitions: int = 5_000
    """capacity of the replay"""
    batch_size: int = 128
    """transitions in a batch"""
    batches: int = 2_000
    """batches to measure over"""
    seed: int = 0
    """of training and drawing"""

    def validate(self) -> None:
        """Raise ValueError naming an option out of range."""
        counts = ("transitions", "batch_size", "batches")
        check_range(self, *counts, low=1, high=common.INT32)
        check_range(self, "steps", low=1)
        common.check_seeds(self.seed)


def trained(options: Options) -> tuple[Loss, Any, Any]:
    """Returns DQN's loss of one transition, its config, and its state after training.

    Raises:
      ValueError: an option out of range.
    """
    params = agents.env_params_for("dqn", options.env)
    dqn, env = agents.get("dqn"), envs.make(options.env, **params)
    config = dataclasses.replace(
        agents.config_for("dqn", options.env, params),
        total_steps=options.steps,
        capacity=options.transitions,
        warmup_steps=options.transitions,
        batch_size=options.batch_size,
        priority_exponent=1.0,
    )
    config.validate()
    run = functools.partial(train.train, dqn.make(env.spec))
    ts, _ = jax.jit(run)(env, config, common.key(options.seed))
    state = ts.agent

    of_transition = q_learner.transition_loss(dqn.HEAD, env.spec, config)

    def loss(params: Any, window: replay.Windows) -> tuple[jax.Array, jax.Array]:
        return of_transition(params, state.target_params, window, jax.random.key(0))

    return loss, config, state


def prioritized(name: str, loss: Loss, config: Any, state: Any) -> Any:
    """Returns the replay with the priorities called `name`, of all that it holds."""
    config = dataclasses.replace(config, priority=name)
    if not priority.keeps_priorities(config):
        return state.replay
    everything = jnp.arange(replay.size(state.replay))
    windows = replay.windows(state.replay, everything, config.n_step)
    batch = Batch(index=everything, examples=windows, weights=jnp.ones(len(everything)))
    found = priority.gradient(config, loss, state.params, batch=batch)
    buffer = state.replay._replace(tree=sum_tree.init(len(everything)))
    return priority.store(buffer, batch, found.priorities)


def measure(
    buffer: Any, loss: Loss, config: Any, state: Any, options: Options
) -> tuple[float, float, float]:
    """Returns the trace: exact, measured, and the least for any probabilities."""
    everything = jnp.arange(replay.size(buffer))
    windows = replay.windows(buffer, everything, config.n_step)
    norms = per_transition_grad_norms(lambda p, w: loss(p, w)[0], state.params, windows)
    size, params = len(everything), state.params
    share = jnp.full(size, 1 / size)
    if buffer.tree is not None:
        share = sum_tree.values(buffer.tree, everything) / sum_tree.total(buffer.tree)

    def mean_gradient(batch: Batch) -> jax.Array:
        found = priority.gradient(config, loss, params, batch=batch)
        return ravel_pytree(found.mean)[0]

    whole = mean_gradient(
        Batch(index=everything, examples=windows, weights=jnp.ones(size))
    )
    rest = jnp.sum(whole**2)
    exact = jnp.sum((norms / size) ** 2 / share) - rest
    least = norms.mean() ** 2 - rest

    def squared_error(key: jax.Array) -> jax.Array:
        drawn = replay.sample(buffer, key, options.batch_size, n_step=config.n_step)
        weights = 1 / (size * drawn.probability)
        batch = Batch(index=drawn.index, examples=drawn.windows, weights=weights)
        return jnp.sum((mean_gradient(batch) - whole) ** 2)

    keys = jax.random.split(common.key(options.seed), options.batches)
    measured = options.batch_size * jax.lax.map(squared_error, keys).mean()
    return float(exact), float(measured), float(least)


def main(argv: list[str], prog: str) -> None:
    """Train, measure, print a table."""
    options = common.parse(Options, argv, __doc__ or "", prog)
    options.validate()
    loss, config, state = trained(options)
    print(f"{options.env}: trace of the covariance of one draw's gradient")
    print(f"{'priority':10} {'exact':>12} {'measured':>12} {'optimum':>12} of uniform")
    uniform = 0.0
    for name in priority.PRIORITIES:
        buffer = prioritized(name, loss, config, state)
        exact, measured, least = measure(buffer, loss, config, state, options)
        uniform = uniform or exact
        numbers = f"{exact:12.5g} {measured:12.5g} {least:12.5g}"
        print(f"{name:10} {numbers} {exact / uniform:10.3f}", flush=True)
