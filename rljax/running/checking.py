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
# Columns of metrics that training itself fills.
RESERVED = (
    "step",
    "seed",
    "seconds",
    "steps_per_second",
    "reward",
    "episodes",
    "episode_return",
    "episode_length",
)


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
        _check_arrays(f"agent {name}: init: state", state)
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
    if jax.tree.leaves(memory):
        _check_arrays(f"agent {name}: memory", memory, batch=number)

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

    def play() -> Rollout:
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

    return _call(name, "act in a rollout", play)


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
        if not isinstance(metric, str) or metric in RESERVED:
            raise ValueError(
                f"agent {name}: update: a metric is named {metric!r}, expected a text "
                f"other than {', '.join(RESERVED)}"
            )
        if not _is_number(value):
            raise ValueError(
                f"agent {name}: update: metric {metric!r} is {_text(value)}, expected "
                "one number"
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


def _is_number(value: Any) -> bool:
    """Whether a value is one real number."""
    if isinstance(value, bool | int | float):
        return True
    return getattr(value, "shape", None) == () and any(
        jnp.issubdtype(value.dtype, kind)
        for kind in (jnp.bool_, jnp.integer, jnp.floating)
    )


def _check_arrays(what: str, found: Any, batch: int | None = None) -> None:
    """Raise unless a tree has leaves, all of them arrays, `[batch, ...]` if given."""
    if not jax.tree.leaves(found):
        raise ValueError(f"{what} is {_kind(found)}, expected a tree of arrays")
    for path, leaf in jax.tree.leaves_with_path(found):
        place = f"{what}{jax.tree_util.keystr(path)}"
        if not hasattr(leaf, "shape"):
            raise ValueError(f"{place} is {_kind(leaf)}, expected an array")
        if batch is not None and leaf.shape[:1] != (batch,):
            wanted = f"the leading axis [{batch}]"
            raise ValueError(f"{place} is {_text(leaf)}, expected {wanted}")


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _text(leaf: Any) -> str:
    if not isinstance(leaf, bool | int | float) and not hasattr(leaf, "dtype"):
        return _kind(leaf)
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
