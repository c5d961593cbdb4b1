"""The newest update's derivative, taken while the agent learns, for the next score.

One update in few numbers needs no replay: its derivative goes along with the update and
waits until the next rollout scores the result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from rljax.contracts import TunedConfig
from rljax.meta import shaping, shortened
from rljax.meta.conditioning import configured
from rljax.meta.diagnostics import check_paths
from rljax.meta.gradients import each, pushed_forward
from rljax.meta.parameters import Raw
from rljax.meta.recorded import without_replay
from rljax.meta.types import OuterData, Settings, TuneState, Tuning
from rljax.types import AgentState, Metrics, Rollout

_FEW = 4  # raw numbers, up to which forward mode costs less than reverse mode
Slopes = tuple[jax.Array, ...]  # [n, ...] of the state's floating arrays, per number


class Learned(NamedTuple):
    """Results of an update."""

    agent: AgentState
    metrics: Metrics
    slopes: Slopes  # () unless they are carried


def forward(settings: Settings, raw: dict[str, Raw]) -> bool:
    """Whether derivatives in the raw numbers are taken in forward mode."""
    if settings.mode == "auto":
        return optax.tree.size(raw) <= _FEW
    return settings.mode == "forward"


def carries(settings: Settings, raw: dict[str, Raw]) -> bool:
    """Whether the newest update's derivative is carried, so that none is replayed."""
    one = settings.num_updates == 1 and not settings.num_target_updates
    return one and not settings.evolution_pairs and forward(settings, raw)


def no_slopes(raw: dict[str, Raw], agent: AgentState) -> Slopes:
    """Slopes before there was an update."""
    number = optax.tree.size(raw)
    numbers = _numbers(without_replay(agent))
    return tuple(jnp.zeros((number, *x.shape), x.dtype) for x in numbers)


def learn(
    tuning: Tuning,
    config: TunedConfig,
    state: TuneState,
    *,
    raw: dict[str, Raw],
    rollout: Rollout,
    data: OuterData,  # of the objective; only for the paths from the update to its loss
    key: jax.Array,
) -> Learned:
    """Update the agent by the rollout, at the tuned values of `raw`.

    Raises:
      NoPath: where the slopes are carried, of what does not reach the loss.
    """

    def updated(raw: dict[str, Raw]) -> tuple[AgentState, Metrics]:
        changed = configured(
            tuning, config, raw, context=state.context, obs=rollout.next_obs
        )
        given, said = shaping.shaped(
            tuning.agent,
            tuning.spec,
            tuning.settings,
            config=changed,
            state=state.agent,
            raw=raw,
            rollout=rollout,
        )
        new, metrics = shortened.update(tuning, changed, state.agent, given, key)
        values = {
            f"meta_{name}": jnp.mean(getattr(changed, name)) for name in tuning.tuned
        }
        return new, metrics | said | values

    def numbers(raw: dict[str, Raw]) -> tuple[tuple[jax.Array, ...], Learned]:
        new, metrics = updated(raw)
        learned = Learned(agent=new, metrics=metrics, slopes=())
        return _numbers(without_replay(new)), learned

    def score(raw: dict[str, Raw]) -> jax.Array:
        new = without_replay(updated(raw)[0])
        return tuning.objective.loss(config, new, data)

    if not carries(tuning.settings, raw):
        return numbers(raw)[1]
    check_paths(score, raw)
    flat, unravel = ravel_pytree(raw)
    _, slopes, learned = pushed_forward(lambda x: numbers(unravel(x)), flat)
    return learned._replace(slopes=slopes)


def score(
    tuning: Tuning, config: TunedConfig, state: TuneState, data: OuterData
) -> tuple[jax.Array, dict[str, Raw]]:
    """Score the agent, with the score's gradient in the newest update's raw numbers."""
    agent = without_replay(state.agent)

    def loss(numbers: tuple[jax.Array, ...]) -> jax.Array:
        return tuning.objective.loss(config, _with_numbers(agent, numbers), data)

    def along(slopes: Slopes) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(loss, (_numbers(agent),), (slopes,))

    value, slope = each(along, state.slopes, out_axes=(None, 0))
    return value, ravel_pytree(state.raw)[1](slope)


def _numbers(state: AgentState) -> tuple[jax.Array, ...]:
    """The floating arrays of a state."""
    return tuple(x for x in jax.tree.leaves(state) if _is_floating(x))


def _with_numbers(state: AgentState, numbers: tuple[jax.Array, ...]) -> AgentState:
    """The state with other floating arrays."""
    rest = iter(numbers)
    return jax.tree.map(lambda x: next(rest) if _is_floating(x) else x, state)


def _is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
