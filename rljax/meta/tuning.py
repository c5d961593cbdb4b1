"""An agent that tunes floats of its own config while it learns."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import config as cfg
from rljax import optimizers
from rljax.meta import objectives, parameters
from rljax.meta.diagnostics import check_paths, cosine, saturated_fraction
from rljax.meta.gradients import (
    MODES,
    bootstrapped_meta_gradient,
    evolution_gradient,
    meta_gradient,
)
from rljax.meta.parameters import Parameter
from rljax.meta.unrolling import unroll
from rljax.types import Agent, Metrics, Rollout, Spec

_OPTIMIZER = optax.scale_by_adam()
_FEW = 4  # raw numbers, up to which forward mode costs less than reverse mode


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the tuning is done."""

    learning_rate: float = 1e-2  # of the raw numbers' Adam; annealed with the agent's
    outer_gamma: float = 0.99  # discount of the outer loss, fixed
    outer_lambda: float = 0.95  # trace decay of the outer advantages
    outer_value_cost: float = 0.5  # of the value's error beside the policy's loss
    outer_entropy_cost: float = 0.0  # and of an entropy bonus
    outer_critic: str = "own"  # or "inner": the agent's, for comparison only
    num_updates: int = 1  # K, through which the meta-gradient goes
    num_target_updates: int = 0  # L of a bootstrapped target; 0: the outer loss itself
    target_rate: float = 0.1  # step along the outer loss that ends the target
    mode: str = "auto"  # "forward" for a few numbers, else "reverse": `meta_gradient`
    remat: bool = False  # reverse mode in memory that grows with sqrt(K)
    condition: bool = False  # show the tuned values to the networks: `conditioned`
    evolution_pairs: int = 0  # of an estimate to compare the meta-gradient with

    def validate(self) -> None:
        """Raise ValueError naming a field out of range, its value and the range."""
        cfg.check_range(self, "learning_rate", "target_rate", low=0.0, open_low=True)
        cfg.check_range(self, "outer_gamma", "outer_lambda", low=0.0, high=1.0)
        cfg.check_range(self, "outer_value_cost", "outer_entropy_cost", low=0.0)
        cfg.check_choice(self, "outer_critic", ("own", "inner"))
        cfg.check_choice(self, "mode", ("auto", *MODES))
        cfg.check_count(self, "num_updates")
        cfg.check_count(self, "num_target_updates", "evolution_pairs", low=0)


class Window(NamedTuple):
    """The newest updates, oldest first: W = K, or K + L - 1 with a target."""

    states: Any  # [W, ...] the agent's before each, but for its replay
    raw: Any  # [W, ...] by which its config was made
    context: jax.Array  # [W, C]
    rollouts: Rollout  # [W, T, N, ...]
    keys: jax.Array  # [W, ...] data of each update's key
    count: jax.Array  # [] int32, updates so far


class State(NamedTuple):
    """The agent's, and what tunes it."""

    agent: Any
    raw: dict[str, Any]  # numbers that the tuned values hang on
    opt_state: Any  # of their Adam
    critic: objectives.Critic
    context: jax.Array  # [C] mean rewards of the newest rollouts
    window: Window


class Tuning(NamedTuple):
    """What `tune` was given."""

    agent: Agent
    spec: Spec
    tuned: dict[str, Parameter]
    settings: Settings
    objective: objectives.Objective


def tune(
    agent: Agent,
    spec: Spec,
    tuned: Mapping[str, Parameter],
    settings: Settings | None = None,
) -> Agent:
    r"""Wrap an agent so that it tunes floats of its config while it learns.

    .. math:: \eta \leftarrow \eta - \beta \nabla_\eta J(\theta_t(\eta), \tau_t),
              \qquad \theta_{k+1} = U(\eta, \theta_k, \tau_k)

    Every update replays the K before it, scores what they led to on the newest rollout,
    which they did not see, by a fixed discount and a critic of its own, and moves the
    tuned values along the gradient. Then the agent learns from that rollout. What the
    replays are given was recorded, so they lead to where the agent is; only agents with
    a replay memory draw from its present content.

    Args:
      agent: its `update` is differentiable in the tuned fields, and it shows what is
        to be scored: its `policy` (by advantages), else its `q_values` (by TD errors),
        else its `value`.
      spec: of the environment; with `settings.condition` that of `conditioned`, for
        which the agent was made.
      tuned: names of config fields, and how each hangs on the raw numbers.
      settings: of the tuning.

    Returns:
      An agent for the same config, which gives the tuned fields' first values. Its
      metrics also have, for every tuned NAME, `meta_NAME`, its mean value,
      `meta_NAME_gradient`, `..._gradient_norm` and `..._gradient_sign` of the raw
      number; `meta_loss`; `saturated_clips`, the share of the replayed steps whose
      gradient was clipped; and `evolution_cosine` with `settings.evolution_pairs`.

    Raises:
      ValueError: nothing to tune, settings out of range, an agent that cannot be
        scored or that runs its environments again. `init` raises for a field that is
        unknown or static, a start or a bound out of range; `update` for a field on
        which nothing that is scored depends.

    Example:
      >>> from rljax import agents, envs, train
      >>> from rljax.meta import LogHorizon, tune
      >>> env, a2c = envs.make("CartPole-v1"), agents.get("a2c")
      >>> agent = tune(a2c.make(env.spec), env.spec, {"gamma": LogHorizon()})
      >>> config = a2c.Config(gamma=0.6, num_envs=2, total_steps=64)
      >>> ts, metrics = train.train(agent, env, config, jax.random.key(0))
      >>> bool(metrics["meta_gamma"][-1] != 0.6)
      True

    References:
      Xu et al. (2018), https://arxiv.org/abs/1805.09801
      Flennerhag et al. (2022), https://arxiv.org/abs/2109.04504
    """
    settings = Settings() if settings is None else settings
    settings.validate()
    if not tuned:
        raise ValueError("tuned: names no field")
    if agent.simulates:
        raise ValueError("tune: this agent runs its environments again")
    objective = objectives.choose(agent, spec, settings)
    tuning = Tuning(agent, spec, dict(tuned), settings, objective)
    return agent._replace(
        init=functools.partial(init, tuning),
        act=functools.partial(act, tuning),
        observe=functools.partial(observe, tuning),
        update=functools.partial(update, tuning),
        parts=1,
        policy=None,
        q_values=None,
        value=None,
    )


def conditioned(spec: Spec, number: int) -> Spec:
    """The spec of observations that begin with `number` tuned values."""
    if not spec.obs_shape:
        raise ValueError("condition=True: observations are numbers, without an axis")
    *shape, last = spec.obs_shape
    return spec._replace(obs_shape=(*shape, number + last), obs_dtype="float32")


def validate(tuned: Mapping[str, Parameter], config: Any) -> None:
    """Raise ValueError unless the config has the fields, and they their bounds.

    Raises:
      ValueError: names the field, and says what is wrong and what is allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    floats = [name for name, x in fields.items() if not x.metadata.get("static")]
    for name, parameter in tuned.items():
        if name not in fields:
            raise ValueError(cfg.unknown("field to tune", name, floats))
        if name not in floats:
            raise ValueError(
                f"{name}: shapes the program and has no derivative; "
                f"may be tuned: {', '.join(floats)}"
            )
        scale = parameters.scale(parameter)
        for bound in (scale.low, scale.high):
            dataclasses.replace(config, **{name: bound}).validate()
        start = getattr(config, name)
        if start is None:
            raise ValueError(f"{name}=None: must be a number to be tuned")
        cfg.check_range(config, name, low=scale.low, high=scale.high)


def init(tuning: Tuning, config: Any, key: jax.Array) -> State:
    """Fresh agent, fresh outer critic, an empty window."""
    validate(tuning.tuned, config)
    agent, settings = tuning.agent, tuning.settings
    agent_key, critic_key, raw_key = jax.random.split(key, 3)
    *shape, last = tuning.spec.obs_shape or (1,)
    obs_shape = (*shape, last - settings.condition * len(tuning.tuned))
    raw = {
        name: parameters.init(parameter, getattr(config, name), obs_shape, key)
        for (name, parameter), key in zip(
            tuning.tuned.items(),
            jax.random.split(raw_key, len(tuning.tuned)),
            strict=True,
        )
    }
    state = agent.init(config, agent_key)
    context = jnp.zeros(max(map(parameters.context_length, tuning.tuned.values())))
    size = settings.num_updates + max(settings.num_target_updates - 1, 0)
    rollout = _no_rollout(tuning, config, state)
    key_data = jnp.zeros_like(jax.random.key_data(key))
    window = (_without_replay(state), raw, context, rollout, key_data)
    window = jax.tree.map(lambda x: jnp.repeat(x[None], size, axis=0), window)
    return State(
        agent=state,
        raw=raw,
        opt_state=_OPTIMIZER.init(raw),
        critic=tuning.objective.init(config, critic_key),
        context=context,
        window=Window(*window, count=jnp.zeros((), jnp.int32)),
    )


def act(
    tuning: Tuning,
    config: Any,
    state: State,
    memory: Any,
    obs: Any,
    key: Any,
    explore: bool,
) -> tuple[jax.Array, Any, Any]:
    """As the agent does with the tuned values."""
    obs = _seen(tuning, state, obs)
    config = _configured(tuning, config, state.raw, state.context, obs)
    return tuning.agent.act(config, state.agent, memory, obs, key, explore)


def observe(tuning: Tuning, config: Any, state: State, rollout: Rollout) -> State:
    """Let the agent store the rollout."""
    rollout = _seen_rollout(tuning, state, rollout)
    return state._replace(agent=tuning.agent.observe(config, state.agent, rollout))


def update(
    tuning: Tuning, config: Any, state: State, rollout: Rollout, key: jax.Array
) -> tuple[State, Metrics]:
    """Tune by the newest rollout, then learn from it."""
    agent, objective = tuning.agent, tuning.objective
    agent_key, data_key, critic_key, noise_key = jax.random.split(key, 4)
    rollout = _seen_rollout(tuning, state, rollout)
    args = (config, state.agent, state.critic, rollout, data_key)
    data = objective.prepare(*args)
    raw, opt_state, metrics = _move(tuning, config, state, data, noise_key)
    new_config = _configured(tuning, config, raw, state.context, rollout.next_obs)
    learned, more = agent.update(new_config, state.agent, rollout, agent_key)
    args = (config, state.agent, state.critic, data, critic_key)
    critic, critic_metrics = objective.update(*args)
    key_data = jax.random.key_data(agent_key)
    newest = (_without_replay(state.agent), raw, state.context, rollout, key_data)
    window = jax.tree.map(
        lambda old, new: jnp.concatenate([old[1:], new[None]]),
        state.window[: len(newest)],
        newest,
    )
    for name in tuning.tuned:
        metrics[f"meta_{name}"] = jnp.mean(getattr(new_config, name))
    context = jnp.append(state.context, rollout.reward.mean())[1:]
    window = Window(*window, count=state.window.count + 1)
    state = State(learned, raw, opt_state, critic, context, window)
    return state, metrics | more | critic_metrics


def _move(
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
    updates, opt_state = _OPTIMIZER.update(gradient, state.opt_state)
    progress = optimizers.progress(config, state.agent.step)
    rate = optimizers.annealed(config, progress, settings.learning_rate)
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
        new, metrics = tuning.agent.update(_configured(*args), agent, rollout, key)
        return _without_replay(new), metrics

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


def _configured(
    tuning: Tuning, config: Any, raw: Any, context: jax.Array, obs: jax.Array
) -> Any:
    """The config with the tuned values in it; `obs` as the agent sees them."""
    values = {
        name: parameters.scale(tuning.tuned[name]).at(place)
        for name, place in _positions(tuning, raw, context, obs).items()
    }
    return dataclasses.replace(config, **values)


def _positions(
    tuning: Tuning, raw: Any, context: jax.Array, obs: jax.Array
) -> dict[str, jax.Array]:
    plain = obs[..., len(tuning.tuned) :] if tuning.settings.condition else obs
    args = (plain, len(tuning.spec.obs_shape), context)
    return {
        name: parameters.position(parameter, raw[name], *args)
        for name, parameter in tuning.tuned.items()
    }


def _seen(tuning: Tuning, state: State, obs: jax.Array) -> jax.Array:
    """Observations as the agent sees them: behind the tuned values, from -1 to 1."""
    if not tuning.settings.condition:
        return obs
    padding = jnp.zeros((*obs.shape[:-1], len(tuning.tuned)))
    args = (tuning, state.raw, state.context, jnp.concatenate([padding, obs], -1))
    shape = obs.shape[: obs.ndim - len(tuning.spec.obs_shape)]
    axes = (1,) * len(tuning.spec.obs_shape)
    places = [
        jnp.broadcast_to(
            jnp.broadcast_to(x, shape).reshape(*shape, *axes), (*obs.shape[:-1], 1)
        )
        for x in _positions(*args).values()
    ]
    return jnp.concatenate([*(2.0 * x - 1.0 for x in places), obs], axis=-1)


def _seen_rollout(tuning: Tuning, state: State, rollout: Rollout) -> Rollout:
    obs, next_obs = (_seen(tuning, state, x) for x in (rollout.obs, rollout.next_obs))
    return rollout._replace(obs=obs, next_obs=next_obs)


def _without_replay(state: Any) -> Any:
    return state._replace(replay=()) if hasattr(state, "replay") else state


def _with_replay(state: Any, source: Any) -> Any:
    return state._replace(replay=source.replay) if hasattr(state, "replay") else state


def _no_rollout(tuning: Tuning, config: Any, state: Any) -> Rollout:
    """Zeros in the shape of a rollout."""
    agent, spec = tuning.agent, tuning.spec
    shape = (config.rollout_length, config.num_envs)
    memory = agent.memory(config, config.num_envs)
    obs = jnp.zeros((*shape, *spec.obs_shape), spec.obs_dtype)
    sample = functools.partial(agent.act, explore=True)
    args = (config, state, memory, obs[0], jax.random.key(0))
    action, _, extras = jax.eval_shape(sample, *args)
    action, extras, memory = jax.tree.map(
        lambda x: jnp.zeros((shape[0], *x.shape), x.dtype), (action, extras, memory)
    )
    reward, flag = jnp.zeros(shape), jnp.zeros(shape, bool)
    return Rollout(obs, action, reward, flag, flag, obs, extras, memory)
