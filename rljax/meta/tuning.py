"""An agent that tunes floats of its own config while it learns."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import contracts
from rljax.contracts import BatchedEnv, TunedConfig
from rljax.envs.wrappers import with_statistics
from rljax.learners import optimizers
from rljax.meta import objectives, parameters, shaping, shortened
from rljax.meta.carried import carries, learn, no_slopes
from rljax.meta.conditioning import configured, plain_spec, seen, seen_rollout
from rljax.meta.diagnostics import NoPath, saturated_fraction
from rljax.meta.meta_step import move, optimizer, window_length
from rljax.meta.parameters import Parameter
from rljax.meta.recorded import (
    check_replay,
    holds_replay,
    without_env,
    without_replay,
)
from rljax.meta.types import Settings, TuneState, Tuning, Window
from rljax.running import parallel, train
from rljax.types import (
    Agent,
    AgentState,
    Extras,
    Memory,
    Metrics,
    Obs,
    Rollout,
    Simulation,
    Spec,
    TrainState,
)

T = TypeVar("T")  # a tree of arrays

_TINY = 1e-30  # in place of no reward at all
_EXPLORING = 0.01  # cost of the score's entropy bonus


def tune(
    agent: Agent,
    spec: Spec,
    tuned: Mapping[str, Parameter],
    settings: Settings | None = None,
    *,
    learned: tuple[str, ...] = (),
    env: BatchedEnv | None = None,
) -> Agent:
    r"""Wrap an agent so that it tunes floats of its config while it learns.

    .. math:: \eta \leftarrow \eta - \beta \nabla_\eta J(\theta_t(\eta), \tau_t),
              \qquad \theta_{k+1} = U(\eta, \theta_k, \tau_k)

    Every update scores the result of the K updates before it on the newest rollout,
    which they did not see, by a fixed discount and a critic of that discount, and moves
    the tuned values along the gradient. Then the agent learns from that rollout.

    With K = 1 and up to four numbers the derivative of each update is taken while the
    agent makes it, and waits for the score. Else the updates are made again. Each gets
    its recorded rollout, config and key; a replay is sampled as it is now.

    A derivative through many minibatch steps explodes. With `num_epochs` and
    `num_minibatches` in the settings the agent makes its update as ever, and the
    derivative is that of an update with these numbers, from the same state. It is
    biased, and cheaper.

    `Agent` says what an agent shows of itself: with `policy_gradient` from what its
    policy learns, with `recurrent` that what it shows takes a `Recalled`, with
    `action_values` its critics, with `repeat` how it acts again in a simulation.

    An agent of your own needs a config with the fields of `contracts.TunedConfig`: a
    registered dataclass with `validate`, `num_envs`, `rollout_length` and
    `total_steps`. Its state may be any tree. The numbers of the outer critic come from
    the settings, else from the config where it has such fields, else from
    `objectives.CriticConfig`; with `num_minibatches` and `num_epochs` in the config the
    critic goes over a rollout as often as the agent. `objectives.choose` says what
    scores which agent. Beside the actions of a `policy` that learns from rollouts,
    `act` returns the logarithm of their probability, `[N]`. A state with a field
    `replay` must be a named tuple, and the field a `replay.Replay`: scores by action
    values are then of `batch_size` of the replay's transitions, or of its sequences of
    `burn_in` and `sequence_length` steps where the agent is recurrent.

    Args:
      agent: its `update` is differentiable in the tuned fields, and it shows what is
        to be scored: its `policy`, else its `q_values`, else its `value`.
      spec: of the environment; with `settings.condition` as returned by `conditioned`,
        and the agent is made for that spec.
      tuned: names of config fields, and how each hangs on the raw numbers.
      settings: of the tuning.
      learned: networks to learn beside, or in place of, tuned floats: "reward", a
        bounded function of observation and action that is added to the agent's reward;
        "target", a bounded function of what follows each step, the return that the
        agent's value regresses and its policy climbs. Of agents with a policy that
        learn from fresh rollouts.
      env: of an agent that runs its environments again; of others not needed.

    Returns:
      An agent for the same config, which gives the tuned fields' first values. Its
      metrics also have, for every tuned NAME, `meta_NAME`, its mean value,
      `meta_NAME_gradient`, `..._gradient_norm` and `..._gradient_sign` of the raw
      number; of learned networks `meta_reward` and `meta_target`, the mean output, and
      its `..._gradient_norm`; `meta_loss`; `saturated_clips`, the share of the update's
      steps whose gradient was clipped; and `evolution_cosine` with
      `settings.evolution_pairs`.

    Raises:
      ValueError: nothing to tune, settings out of range, an agent that cannot be
        scored or that runs its environments again. `init` raises for a field that is
        unknown or static, a start or a bound out of range, and names what an agent or
        its config lacks; `update` for a field on which nothing that is scored depends.

    Example:
      >>> from rljax import agents, envs
      >>> from rljax.meta import LogHorizon, tune
      >>> from rljax.running import train
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
    if not (tuned or learned):
        raise ValueError("tuned: names no field")
    shaping.check(agent, learned)
    if agent.simulates and env is None:
        raise ValueError("env=None: this agent runs its environments again")
    if agent.simulates and settings.condition:
        raise ValueError(
            "condition=True: not of an agent that runs its environments again, which "
            "do not show the tuned values"
        )
    if settings.outer_entropy_cost is None and "entropy_cost" in tuned:
        settings = dataclasses.replace(settings, outer_entropy_cost=_EXPLORING)
    objective = objectives.choose(agent, spec, settings)
    tuning = Tuning(
        agent=agent,
        spec=spec,
        tuned=dict(tuned),
        settings=settings,
        objective=objective,
        env=env,
        learned=learned,
    )
    return agent._replace(
        init=functools.partial(init, tuning),
        act=functools.partial(act, tuning),
        observe=functools.partial(observe, tuning),
        update=functools.partial(update, tuning),
        parts=1,
        policy=None,
        q_values=None,
        value=None,
        action_values=None,
        repeat=None,
    )


def tunable(
    agent: Agent,
    env: BatchedEnv,
    config: TunedConfig,
    settings: Settings | None = None,
    *,
    learned: tuple[str, ...] = (),
) -> dict[str, Parameter]:
    """Those fields that `declared` finds on which the agent's score depends.

    With some configs a field has no derivative: PPO's `clip_epsilon` where the value is
    not clipped. `tune` refuses such a field. Nothing is computed, one iteration of the
    training is traced.

    Args:
      agent: as in `tune`.
      env: that the agent is for.
      config: the agent's.
      settings: of the tuning.
      learned: networks to learn beside the fields.

    Raises:
      ValueError: as `tune` and its `init`.

    Example:
      >>> from rljax import agents, envs
      >>> env, ppo = envs.make("CartPole-v1"), agents.get("ppo")
      >>> agent, config = ppo.make(env.spec), ppo.Config(clip_value=False)
      >>> list(tunable(agent, env, config))
      ['learning_rate', 'gamma', 'lambda_', 'entropy_cost']
    """
    fields = parameters.declared(config)
    if not fields:
        return {}
    # No score has more paths or fewer for showing the tuned values to the networks.
    settings = dataclasses.replace(settings or Settings(), condition=False)
    tuned = tune(agent, env.spec, fields, settings, learned=learned, env=env)

    def iteration(key: jax.Array) -> tuple[TrainState, Metrics]:
        start = train.init(tuned, env, config, key)
        return train.run(tuned, env, config, start, 1)

    try:
        jax.eval_shape(iteration, jax.random.key(0))
    except NoPath as found:
        if set(found.names) & set(learned):
            raise
        return {name: x for name, x in fields.items() if name not in found.names}
    return fields


def validate(tuned: Mapping[str, Parameter], config: TunedConfig) -> None:
    """Raise ValueError unless the config has the tuned fields, within their bounds.

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
        low = 0.0 if isinstance(scale, parameters.Logarithmic) else scale.low
        cfg.check_range(config, name, low=low, high=scale.high)


def _check_config(config: TunedConfig) -> None:
    """Raise ValueError if the config lacks fields that tuning needs."""
    names = [*contracts.fields(TunedConfig), "validate"]
    cfg.check_fields("tune", config, *names)
    if hasattr(config, "num_minibatches"):
        cfg.check_fields("tune with num_minibatches", config, "num_epochs")
    if not dataclasses.is_dataclass(config):
        kind = type(config).__name__
        raise ValueError(f"config: must be a dataclass to be tuned, not a {kind}")


def _check_agent(tuning: Tuning, config: TunedConfig, state: AgentState) -> None:
    """Raise ValueError if the agent's state or its actions lack what tuning needs."""
    if holds_replay(state):
        check_replay(state)
        cfg.check_fields("tune with a replay", config, "batch_size")
    extras = _acted(tuning, config, state)[1]
    shape = extras.shape if isinstance(extras, jax.ShapeDtypeStruct) else None
    agent = tuning.agent
    scored = agent.policy is not None and agent.policy_gradient == "rollout"
    if scored and shape != (config.num_envs,):
        raise ValueError(
            "tune: of an agent with a `policy`, `act` must return the logarithm of the "
            f"action's probability [N] beside the memory, not {extras}"
        )
    needs_replay = agent.policy_gradient != "rollout" or (
        agent.recurrent and agent.policy is None
    )
    if needs_replay and not agent.simulates and not holds_replay(state):
        raise ValueError(
            "tune: of this agent, whose score is of its replay, the state must have a "
            f"field `replay`, not only {', '.join(getattr(state, '_fields', ()))}"
        )


def init(tuning: Tuning, config: TunedConfig, key: jax.Array) -> TuneState:
    """Make a fresh agent, a fresh outer critic and an empty window."""
    _check_config(config)
    validate(tuning.tuned, config)
    shortened.check(tuning.settings, config)
    agent, settings = tuning.agent, tuning.settings
    agent_key, critic_key, raw_key = jax.random.split(key, 3)
    env_key = jax.random.fold_in(jax.random.clone(key), 3)  # a fourth, beside these
    obs_spec = plain_spec(tuning)
    raw = {
        name: parameters.init(parameter, getattr(config, name), obs_spec, key)
        for (name, parameter), key in zip(
            tuning.tuned.items(),
            jax.random.split(raw_key, len(tuning.tuned)),
            strict=True,
        )
    }
    raw_key = jax.random.fold_in(jax.random.clone(raw_key), len(tuning.tuned))
    for name in tuning.learned:
        raw_key, key = jax.random.split(raw_key)
        raw[name] = shaping.init(agent, tuning.spec, settings, name=name, key=key)
    state = agent.init(config, agent_key)
    _check_agent(tuning, config, state)
    shaping.check_state(tuning.learned, state)
    length = max(map(parameters.context_length, tuning.tuned.values()), default=0)
    context = jnp.zeros(length, jnp.float32)
    window = ()
    if not carries(settings, raw):
        size = window_length(settings)
        window = Window(
            states=_repeated(without_replay(state), size),
            raw=_repeated(raw, size),
            context=_repeated(context, size),
            rollouts=_repeated(_no_rollout(tuning, config, state, env_key), size),
            keys=_repeated(jnp.zeros_like(jax.random.key_data(key)), size),
        )
    return TuneState(
        agent=state,
        raw=raw,
        opt_state=optimizer(settings, tuning.learned).init(raw),
        critic=tuning.objective.init(config, critic_key),
        context=context,
        mean_square=jnp.zeros((), jnp.float32),
        count=jnp.zeros((), jnp.int32),
        window=window,
        slopes=no_slopes(raw, state) if carries(settings, raw) else (),
    )


def _repeated(tree: T, size: int) -> T:
    return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], size, axis=0), tree)


def act(
    tuning: Tuning,
    config: TunedConfig,
    state: TuneState,
    memory: Memory,
    obs: Obs,
    key: jax.Array,
    explore: bool,
) -> tuple[jax.Array, Memory, Extras]:
    """Act as the agent does with the tuned values."""
    obs = seen(tuning, state, obs)
    config = configured(tuning, config, state.raw, context=state.context, obs=obs)
    return tuning.agent.act(config, state.agent, memory, obs, key, explore=explore)


def observe(
    tuning: Tuning, config: TunedConfig, state: TuneState, rollout: Rollout
) -> TuneState:
    """Let the agent store the rollout."""
    rollout = seen_rollout(tuning, state, rollout)
    return state._replace(agent=tuning.agent.observe(config, state.agent, rollout))


def update(
    tuning: Tuning,
    config: TunedConfig,
    state: TuneState,
    rollout: Rollout,
    key: jax.Array,
) -> tuple[TuneState, Metrics]:
    """Tune by the newest rollout, then learn from that rollout."""
    objective = tuning.objective
    agent_key, data_key, critic_key, noise_key = jax.random.split(key, 4)
    rollout = seen_rollout(tuning, state, rollout)
    data = objective.prepare(
        config, state.agent, state.critic, rollout=rollout, key=data_key
    )
    raw, opt_state, metrics = move(
        tuning, config, state, rollout=rollout, data=data, key=noise_key
    )
    learned = learn(
        tuning, config, state, raw=raw, rollout=rollout, data=data, key=agent_key
    )
    progress = optimizers.progress(config, state.count)
    critic, critic_metrics = objective.update(
        config, state.critic, data, progress=progress, key=critic_key
    )
    metrics["saturated_clips"] = saturated_fraction(state.agent, learned.agent)
    count = cfg.next_count(state.count)
    reward = parallel.mean(rollout.reward.mean())
    context, mean_square = _appended(state, reward, count)
    newest = Window(
        states=without_replay(state.agent),
        raw=raw,
        context=state.context,
        rollouts=without_env(rollout),
        keys=jax.random.key_data(agent_key),
    )
    new_state = TuneState(
        agent=learned.agent,
        raw=raw,
        opt_state=opt_state,
        critic=critic,
        context=context,
        mean_square=mean_square,
        count=count,
        window=_newer(state.window, newest) if state.window else (),
        slopes=learned.slopes,
    )
    return new_state, metrics | learned.metrics | critic_metrics


def _newer(recorded: T, newest: T) -> T:
    """The recorded trees `[W, ...]` with the newest in place of the oldest."""
    return jax.tree.map(
        lambda old, new: jnp.concatenate([old[1:], new[None]]), recorded, newest
    )


def _appended(
    state: TuneState, reward: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The context with one more reward, in units of all rewards' root mean square."""
    square = state.mean_square + (reward**2 - state.mean_square) / count
    newest = jnp.tanh(reward * jax.lax.rsqrt(jnp.maximum(square, _TINY)))
    return jnp.append(state.context, newest)[1:], square


def _acted(
    tuning: Tuning, config: TunedConfig, state: AgentState
) -> tuple[jax.ShapeDtypeStruct, Extras]:
    """Shapes of one step's actions and of their extras."""
    agent, spec = tuning.agent, tuning.spec
    memory = agent.memory(config, config.num_envs)
    obs = spec.zeros(config.num_envs)
    sample = functools.partial(agent.act, explore=True)
    key = jax.random.key(0)
    action, _, extras = jax.eval_shape(sample, config, state, memory, obs, key)
    return action, extras


def _no_rollout(
    tuning: Tuning, config: TunedConfig, state: AgentState, key: jax.Array
) -> Rollout:
    """Zeros in the shape of a rollout; a simulation from a start of its own."""
    agent, spec = tuning.agent, tuning.spec
    shape = (config.rollout_length, config.num_envs)
    memory = agent.memory(config, config.num_envs)
    obs = spec.zeros(*shape)
    action, extras = _acted(tuning, config, state)
    action, extras, memory = jax.tree.map(
        lambda x: jnp.zeros((shape[0], *x.shape), x.dtype), (action, extras, memory)
    )
    rollout = Rollout(
        obs=obs,
        action=action,
        reward=jnp.zeros(shape, jnp.float32),
        terminated=jnp.zeros(shape, bool),
        truncated=jnp.zeros(shape, bool),
        next_obs=obs,
        extras=extras,
        memory=memory,
        simulation=_some_simulation(tuning, config, key),
    )
    return without_env(rollout)


def _some_simulation(
    tuning: Tuning, config: TunedConfig, key: jax.Array
) -> Simulation | tuple[()]:
    """Record of environments that are run again, as in the window; () without them."""
    if not tuning.agent.simulates:
        return ()
    assert tuning.env is not None  # `tune` looked
    reset_key, noise_key = jax.random.split(key)
    env = with_statistics(tuning.env)  # as training runs it
    start, _ = env.reset(reset_key, config.num_envs)
    noise = env.draw(noise_key, config.rollout_length, config.num_envs)
    return Simulation(env=(), state=start, noise=noise)
