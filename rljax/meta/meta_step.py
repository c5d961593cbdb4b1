"""The step of the tuned values: replay, score, move along the meta-gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rljax.contracts import TunedConfig
from rljax.learners import optimizers
from rljax.meta import carried, parameters, shaping, shortened
from rljax.meta.conditioning import configured
from rljax.meta.critics import critic_config
from rljax.meta.diagnostics import check_paths, cosine
from rljax.meta.gradients import (
    bootstrapped_meta_gradient,
    evolution_gradient,
    meta_gradient,
)
from rljax.meta.parameters import Raw
from rljax.meta.recorded import with_env, with_replay, without_replay
from rljax.meta.types import OuterData, Settings, TuneState, Tuning
from rljax.meta.unrolling import unroll
from rljax.running import parallel
from rljax.types import AgentState, Leaf, Metrics, OptState, Rollout


def optimizer(
    settings: Settings, learned: tuple[str, ...]
) -> optax.GradientTransformation:
    """AMSGrad of the raw numbers, Adam of networks, both without the rates.

    Scores and their gradients are near 0 for long once a task is solved. Adam would
    forget how large the gradients were, and one bad episode would be a leap.
    """
    of_numbers = optax.scale_by_amsgrad()
    if not learned:
        return of_numbers
    of_networks = optax.scale_by_adam(b1=settings.learned_momentum)
    return optax.partition(
        {"numbers": of_numbers, "networks": of_networks},
        lambda raw: {
            name: "networks" if name in learned else "numbers" for name in raw
        },
    )


def move(
    tuning: Tuning,
    config: TunedConfig,
    state: TuneState,
    *,
    rollout: Rollout,
    data: OuterData,
    key: jax.Array,
) -> tuple[dict[str, Raw], OptState, Metrics]:
    """Move the raw numbers one step along the meta-gradient.

    `rollout` is the newest, `data` what the objective prepared of it.
    """
    settings, objective = tuning.settings, tuning.objective

    def replayed(raw: dict[str, Raw]) -> AgentState:
        return _replay(tuning, config, state, raw=raw, newest=rollout, like=key)

    def outer(agent: AgentState) -> jax.Array:
        return objective.loss(config, agent, data)

    def distance(target: AgentState, agent: AgentState) -> jax.Array:
        return objective.distance(config, target, agent, data=data)

    def penalty(raw: dict[str, Raw]) -> jax.Array:
        return _penalty(tuning, config, state, raw=raw, rollout=rollout)

    def score(raw: dict[str, Raw]) -> jax.Array:
        return outer(replayed(raw))

    mode = "forward" if carried.forward(settings, state.raw) else "reverse"
    if carried.carries(settings, state.raw):
        loss, slope = carried.score(tuning, config, state, data)
    elif settings.num_target_updates:
        check_paths(score, state.raw)
        target = _descended(outer, state.agent, settings.target_rate)
        loss, slope = bootstrapped_meta_gradient(
            inner=replayed,
            target=lambda _: target,
            matching=distance,
            eta=state.raw,
            mode=mode,
        )
    else:
        check_paths(score, state.raw)
        loss, slope = meta_gradient(replayed, outer, state.raw, mode=mode)
    found = parallel.mean((loss, slope, jax.grad(penalty)(state.raw)))
    ready = state.count >= window_length(settings)
    loss, slope, of_penalty = jax.tree.map(lambda x: jnp.where(ready, x, 0.0), found)
    gradient = jax.tree.map(jnp.add, slope, of_penalty)
    updates: Any
    adam = optimizer(settings, tuning.learned)
    updates, opt_state = adam.update(gradient, state.opt_state)
    rates = _rates(tuning, config, state)
    raw = {
        name: optax.tree.add_scale(numbers, -rates[name], updates[name])
        for name, numbers in state.raw.items()
    }
    metrics = {"meta_loss": loss} | _gradient_metrics(tuning, gradient)
    if settings.evolution_pairs:
        shared_key = parallel.shared(key)  # all shards try the same numbers
        number = settings.evolution_pairs
        estimate = evolution_gradient(score, state.raw, shared_key, num_pairs=number)
        metrics["evolution_cosine"] = cosine(slope, parallel.mean(estimate))
    return raw, opt_state, metrics


def window_length(settings: Settings) -> int:
    """Updates before the first score: those replayed, and more for a target."""
    return settings.num_updates + max(settings.num_target_updates - 1, 0)


def _rates(tuning: Tuning, config: TunedConfig, state: TuneState) -> dict[str, Leaf]:
    """Learning rates of the raw numbers, by name."""
    settings = tuning.settings
    progress = optimizers.progress(config, state.count)
    own = critic_config(settings, config)
    return {
        name: optimizers.annealed(
            own,
            progress,
            settings.learned_rate
            if name in tuning.learned
            else settings.learning_rate * parameters.pace(tuning.tuned[name]),
        )
        for name in state.raw
    }


def _replay(
    tuning: Tuning,
    config: TunedConfig,
    state: TuneState,
    *,
    raw: dict[str, Raw],
    newest: Rollout,
    like: jax.Array,  # a key, of which only the kind counts
) -> AgentState:
    """Make the oldest K updates of the window again; return the agent's state.

    Each with the raw numbers of its time, moved as far as `raw` is from `state.raw`.
    """
    window, size = state.window, tuning.settings.num_updates
    assert window
    moves = jax.tree.map(jnp.subtract, raw, state.raw)
    impl = jax.random.key_impl(like)

    def update(
        moves: dict[str, Raw],
        agent: AgentState,
        inputs: tuple[dict[str, Raw], jax.Array, Rollout],
        key: jax.Array,
    ) -> tuple[AgentState, Metrics]:
        recorded, context, rollout = inputs
        there = jax.tree.map(jnp.add, recorded, moves)
        changed = configured(
            tuning, config, there, context=context, obs=rollout.next_obs
        )
        rollout = with_env(rollout, newest)
        agent = with_replay(agent, state.agent)
        key = jax.random.wrap_key_data(key, impl=impl)
        given, _ = shaping.shaped(
            tuning.agent,
            tuning.spec,
            tuning.settings,
            config=changed,
            state=agent,
            raw=there,
            rollout=rollout,
        )
        new, metrics = shortened.update(tuning, changed, agent, given, key)
        return without_replay(new), metrics

    start = jax.tree.map(lambda x: x[0], window.states)
    inputs = (window.raw, window.context, window.rollouts)
    inputs, keys = jax.tree.map(lambda x: x[:size], (inputs, window.keys))
    end, _ = unroll(
        update,
        config=moves,
        state=start,
        rollouts=inputs,
        keys=keys,
        remat=tuning.settings.remat,
    )
    return end


def _penalty(
    tuning: Tuning,
    config: TunedConfig,
    state: TuneState,
    *,
    raw: dict[str, Raw],
    rollout: Rollout,
) -> jax.Array:
    """Cost of targets that do not follow from each other, on the newest rollout.

    In `raw` alone, with the agent as it is; 0 without learned targets.
    """
    if "target" not in raw:
        return jnp.zeros((), jnp.float32)
    cost = shaping.inconsistency(
        tuning.agent,
        tuning.spec,
        tuning.settings,
        config=config,
        state=state.agent,
        raw=raw,
        rollout=rollout,
    )
    return tuning.settings.target_consistency * cost


def _gradient_metrics(tuning: Tuning, gradient: dict[str, Raw]) -> Metrics:
    metrics = {}
    for name, leaves in gradient.items():
        if name in tuning.learned:
            metrics[f"meta_{name}_gradient_norm"] = optax.tree.norm(leaves)
            continue
        number = leaves["start"] if isinstance(leaves, dict) else leaves
        metrics |= {
            f"meta_{name}_gradient": number,
            f"meta_{name}_gradient_sign": jnp.sign(number),
            f"meta_{name}_gradient_norm": optax.tree.norm(leaves),
        }
    return metrics


def _descended(
    loss: Callable[[AgentState], jax.Array], state: AgentState, rate: float
) -> AgentState:
    """The state with all floating arrays one step down the gradient."""
    gradient = jax.grad(loss, allow_int=True)(state)

    def step(x: jax.Array, slope: jax.Array) -> jax.Array:
        if slope.dtype != x.dtype:  # of no floating array: no slope
            return x
        return x - rate * parallel.mean(slope)

    return jax.tree.map(step, state, gradient)
