"""The step of the tuned values: replay, score, move along the meta-gradient."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rljax.learners import optimizers
from rljax.meta.conditioning import configured
from rljax.meta.diagnostics import check_paths, cosine, saturated_fraction
from rljax.meta.gradients import (
    bootstrapped_meta_gradient,
    evolution_gradient,
    meta_gradient,
)
from rljax.meta.objectives import critic_config
from rljax.meta.types import State, Tuning
from rljax.meta.unrolling import unroll
from rljax.types import Metrics

OPTIMIZER = optax.scale_by_adam()
_FEW = 4  # raw numbers, up to which forward mode costs less than reverse mode


def move(
    tuning: Tuning, config: Any, state: State, data: Any, key: jax.Array
) -> tuple[Any, Any, Metrics]:
    """One step of the raw numbers along the meta-gradient."""
    settings, objective = tuning.settings, tuning.objective
    impl = jax.random.key_impl(key)
    replayed = functools.partial(_replay, tuning, config, state, impl)
    outer = functools.partial(objective.loss, config, data=data)

    def score(raw: Any) -> jax.Array:
        return outer(replayed(raw))

    check_paths(score, state.raw)
    mode = settings.mode
    if mode == "auto":
        mode = "forward" if optax.tree.size(state.raw) <= _FEW else "reverse"
    if settings.num_target_updates:
        target = _descend(outer, state.agent, settings.target_rate)
        distance = functools.partial(objective.distance, config, data=data)
        args = (replayed, lambda _: target, distance, state.raw)
        loss, gradient = bootstrapped_meta_gradient(*args, mode=mode)
    else:
        args = (replayed, outer, state.raw)
        loss, gradient = meta_gradient(*args, mode=mode)
    ready = state.window.count >= len(state.window.keys)
    loss, gradient = jax.tree.map(lambda x: jnp.where(ready, x, 0.0), (loss, gradient))
    updates, opt_state = OPTIMIZER.update(gradient, state.opt_state)
    progress = optimizers.progress(config, state.window.count)
    own = critic_config(settings, config)
    rate = optimizers.annealed(own, progress, settings.learning_rate)
    raw = optax.tree.add_scale(state.raw, -rate, updates)
    metrics = {"meta_loss": loss} | _gradient_metrics(gradient)
    start = jax.tree.map(lambda x: x[0], state.window.states)
    metrics["saturated_clips"] = saturated_fraction(start, state.agent)
    if settings.evolution_pairs:
        args = (score, state.raw, key)
        estimate = evolution_gradient(*args, num_pairs=settings.evolution_pairs)
        metrics["evolution_cosine"] = cosine(gradient, estimate)
    return raw, opt_state, metrics


def _replay(tuning: Tuning, config: Any, state: State, impl: Any, raw: Any) -> Any:
    """The agent's state after the oldest K updates of the window, again.

    Each with the raw numbers it had then, moved as far as `raw` is from `state.raw`.
    """
    window, size = state.window, tuning.settings.num_updates
    moves = jax.tree.map(jnp.subtract, raw, state.raw)

    def update(moves: Any, agent: Any, inputs: Any, key: jax.Array) -> Any:
        recorded, context, rollout = inputs
        there = jax.tree.map(jnp.add, recorded, moves)
        args = (tuning, config, there, context, rollout.next_obs)
        agent = _with_replay(agent, state.agent)
        key = jax.random.wrap_key_data(key, impl=impl)
        new, metrics = tuning.agent.update(configured(*args), agent, rollout, key)
        return without_replay(new), metrics

    start = jax.tree.map(lambda x: x[0], window.states)
    inputs = (window.raw, window.context, window.rollouts)
    inputs, keys = jax.tree.map(lambda x: x[:size], (inputs, window.keys))
    remat = tuning.settings.remat
    return unroll(update, moves, start, inputs, keys, remat=remat)[0]


def _gradient_metrics(gradient: dict[str, Any]) -> Metrics:
    metrics = {}
    for name, leaves in gradient.items():
        number = leaves["start"] if isinstance(leaves, dict) else leaves
        metrics |= {
            f"meta_{name}_gradient": number,
            f"meta_{name}_gradient_sign": jnp.sign(number),
            f"meta_{name}_gradient_norm": optax.tree.norm(leaves),
        }
    return metrics


def _descend(loss: Any, state: Any, rate: float) -> Any:
    """One step of all floating arrays down the gradient."""
    gradient = jax.grad(loss, allow_int=True)(state)

    def step(x: jax.Array, slope: jax.Array) -> jax.Array:
        return x - rate * slope if slope.dtype == x.dtype else x

    return jax.tree.map(step, state, gradient)


def without_replay(state: Any) -> Any:
    """The agent's state, to be recorded: a replay memory is too large for that."""
    return state._replace(replay=()) if hasattr(state, "replay") else state


def _with_replay(state: Any, source: Any) -> Any:
    return state._replace(replay=source.replay) if hasattr(state, "replay") else state
