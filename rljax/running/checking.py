"""Tries an agent of one's own in shapes, and names the function that breaks."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from rljax.config import as_arrays
from rljax.contracts import BatchedEnv, TrainConfig
from rljax.envs.wrappers import with_statistics
from rljax.running.rollout import unroll
from rljax.types import Agent, AgentState, Rollout, Spec, TrainState

T = TypeVar("T")


def check_agent(name: str, agent: Agent, env: BatchedEnv, config: TrainConfig) -> None:
    """Raise unless an agent's functions return what training asks of them.

    They are traced once, without running anything.

    Args:
      name: the agent's, for errors.
      agent: made for `env.spec`.
      env: batched environment.
      config: the agent's config.

    Raises:
      ValueError: one line that names the agent, its function, what it returned and what
        it should.

    Example:
      >>> from rljax import agents, envs
      >>> env, config = envs.make("CartPole-v1"), agents.get("a2c").Config()
      >>> check_agent("a2c", agents.make("a2c", env.spec), env, config)
    """
    env, config = with_statistics(env), as_arrays(config)

    def program(key: jax.Array) -> None:
        state = _call(name, "init", lambda: agent.init(config, key))
        rollout = _played(name, agent, env, config=config, state=state, key=key)
        _check_learning(name, agent, config, state=state, rollout=rollout, key=key)

    jax.eval_shape(program, jax.random.key(0))


def _played(
    name: str,
    agent: Agent,
    env: BatchedEnv,
    *,
    config: TrainConfig,
    state: AgentState,
    key: jax.Array,
) -> Rollout:
    """Check what `act` and `memory` return; play with them."""
    number = config.num_envs
    env_state, obs = env.reset(key, number)
    memory = _call(name, "memory", lambda: agent.memory(config, number))

    def act(explore: bool) -> Any:
        return agent.act(config, state, memory, obs, key, explore=explore)

    for explore in (True, False):
        found = _call(name, "act", lambda explore=explore: act(explore))
        if not isinstance(found, tuple) or len(found) != 3:
            raise ValueError(
                f"agent {name}: act returned {_kind(found)}, expected action, memory, "
                "extras"
            )
        _check_action(name, env.spec, found[0], number=number)
        _check_same(f"agent {name}: act: memory", found[1], memory)
    start = TrainState(
        agent=state,
        env=env_state,
        obs=obs,
        memory=memory,
        key=key,
        step=jnp.zeros((), jnp.int32),
    )
    _, rollout, _ = unroll(
        agent.act,
        env,
        config,
        start,
        memory=agent.memory,
        key=key,
        length=config.rollout_length,
        simulates=agent.simulates,
    )
    return rollout


def _check_learning(
    name: str,
    agent: Agent,
    config: TrainConfig,
    *,
    state: AgentState,
    rollout: Rollout,
    key: jax.Array,
) -> None:
    """Check what `observe` and `update` return."""
    seen = _call(name, "observe", lambda: agent.observe(config, state, rollout))
    _check_same(f"agent {name}: observe: state", seen, state)
    found = _call(name, "update", lambda: agent.update(config, seen, rollout, key))
    if not isinstance(found, tuple) or len(found) != 2:
        raise ValueError(
            f"agent {name}: update returned {_kind(found)}, expected state, metrics"
        )
    _check_same(f"agent {name}: update: state", found[0], state)
    metrics = found[1]
    if not isinstance(metrics, dict):
        raise ValueError(
            f"agent {name}: update: metrics are {_kind(metrics)}, expected a dict"
        )
    for metric, value in metrics.items():
        if jnp.shape(value):
            raise ValueError(
                f"agent {name}: update: metric {metric!r} has shape "
                f"{jnp.shape(value)}, expected a scalar"
            )


def _call(name: str, hook: str, function: Callable[[], T]) -> T:
    try:
        return function()
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        kind = type(error).__name__
        raise ValueError(f"agent {name}: {hook} failed: {kind}: {text}") from error


def _kind(found: object) -> str:
    if isinstance(found, tuple):
        return f"a tuple of {len(found)}"
    return "None" if found is None else f"a value of type {type(found).__name__}"


def _check_action(name: str, spec: Spec, action: Any, *, number: int) -> None:
    wanted = spec.no_action(number)
    kind = jnp.floating if jnp.issubdtype(wanted.dtype, jnp.floating) else jnp.integer
    same_kind = jnp.issubdtype(_dtype(action), kind)
    if jnp.shape(action) != wanted.shape or not same_kind:
        raise ValueError(
            f"agent {name}: act: action is {_text(action)}, expected {_text(wanted)}"
        )


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _text(leaf: Any) -> str:
    return f"{_dtype(leaf)}{list(jnp.shape(leaf))}"


def _check_same(what: str, found: Any, expected: Any) -> None:
    """Raise unless two trees have the same leaves: names, shapes, dtypes."""
    old, new = (
        {jax.tree_util.keystr(path): _text(leaf) for path, leaf in leaves}
        for leaves in map(jax.tree.leaves_with_path, (expected, found))
    )
    for path in old | new:
        if old.get(path) != new.get(path):
            raise ValueError(
                f"{what}{path} is {new.get(path, 'missing')}, expected "
                f"{old.get(path, 'none')} as before"
            )
