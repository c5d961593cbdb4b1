"""Choose transitions to learn from: uniformly, or by TD errors or gradient norms.

Every replay agent samples and takes its gradient here. Its config is a
`contracts.ReplayConfig`.
"""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import config as cfg
from rljax.autodiff import per_transition_grad_norms, value_and_grad_with_norms
from rljax.contracts import ReplayConfig, WarmUpConfig
from rljax.replay import buffer as replay
from rljax.replay.buffer import Replay, Windows
from rljax.types import Params

PRIORITIES = ("uniform", "td_error", "grad_norm")
SAMPLERS = ("replay", "large_batch")
_LEAST = 1e-6  # priority, so that every transition comes up again

Example = TypeVar("Example")  # what a loss takes: of one transition, or `[B, ...]`
# (params, example) -> (loss [], score [] that a priority is made of)
ScoredLoss = Callable[[Params, Example], tuple[jax.Array, jax.Array]]


class ReplayBatch(NamedTuple, Generic[Example]):
    """Transitions to learn from."""

    # [B] where they are in the replay
    index: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    examples: Example  # [B, ...] Windows, or sequences as Rollout
    weights: jax.Array  # [B] of importance sampling


class Gradient(NamedTuple):
    """The gradient of a batch, and all that the same pass tells."""

    mean: Params  # gradient of the weighted mean loss
    losses: jax.Array  # [B], not weighted
    priorities: jax.Array | None  # [B]; None where the replay keeps none


def validate(config: WarmUpConfig) -> None:
    """Raise ValueError naming a field out of range, its value and what is allowed."""
    cfg.check_choice(config, "priority", PRIORITIES)
    cfg.check_choice(config, "sampler", SAMPLERS)
    replay.validate(config)
    cfg.check_count(config, "batch_size", "warmup_steps", "n_step")
    cfg.check_count(config, "large_batch_factor")
    exponents = ("priority_exponent", "importance_exponent")
    cfg.check_range(config, *exponents, low=0.0, high=1.0)
    if config.n_step > config.capacity // config.num_envs:
        raise ValueError(
            f"n_step={config.n_step}: must be at most capacity / num_envs = "
            f"{config.capacity // config.num_envs}"
        )
    if config.batch_size > config.warmup_steps:
        raise ValueError(
            f"batch_size={config.batch_size}: must be at most "
            f"warmup_steps={config.warmup_steps}"
        )
    if config.warmup_steps >= config.total_steps:
        raise ValueError(
            f"warmup_steps={config.warmup_steps}: must be below "
            f"total_steps={config.total_steps}"
        )
    if config.sampler == "large_batch" and config.priority == "uniform":
        raise ValueError(
            "sampler='large_batch': needs priority='td_error' or 'grad_norm'"
        )


def keeps_priorities(config: ReplayConfig) -> bool:
    """Whether the replay has to keep priorities."""
    return config.priority != "uniform" and config.sampler == "replay"


def sample(
    config: ReplayConfig,
    buffer: Replay,
    key: jax.Array,
    *,
    progress: jax.Array,
    loss: ScoredLoss[Any],
    params: Params,
    length: int | None = None,
) -> ReplayBatch[Any]:
    r"""Draw a batch as the config says.

    With `sampler="replay"` uniformly, or by stored priorities: Schaul et al. (2016),
    https://arxiv.org/abs/1511.05952. With `sampler="large_batch"` a uniform batch
    several times as large is scored afresh, and a batch of it drawn in proportion to
    the scores; algorithm 1 of Lahire et al. (2022), https://arxiv.org/abs/2110.01528.

    Args:
      config: the agent's.
      buffer: not empty.
      key: `[]` typed key, consumed here.
      progress: `[]` 0 to 1, over which the importance exponent grows to 1.
      loss: of one transition.
      params: at which a large batch is scored.
      length: of the sequences to draw; None: windows of `config.n_step` steps.

    Returns:
      The batch, with weights for an unbiased gradient: at once for a large batch, at
      the end of training for stored priorities.
    """
    if config.sampler == "large_batch":
        return _large_batch(
            config, buffer, key, loss=loss, params=params, length=length
        )
    drawn = _draw(config, buffer, key, size=config.batch_size, length=length)
    if config.priority == "uniform":
        weights = jnp.ones(config.batch_size, jnp.float32)
    else:
        beta = config.importance_exponent
        beta = beta + (1.0 - beta) * jnp.minimum(progress, 1.0)
        weights = replay.importance_weights(buffer, drawn.probability, beta)
    return ReplayBatch(index=drawn.index, examples=drawn.windows, weights=weights)


def _draw(
    config: ReplayConfig,
    buffer: Replay,
    key: jax.Array,
    *,
    size: int,
    length: int | None,
) -> replay.Sample:
    if length is None:
        return replay.sample(buffer, key, batch_size=size, n_step=config.n_step)
    index, steps, probability = replay.sample_sequences(
        buffer, key, batch_size=size, length=length
    )
    sequences: Any = jax.tree.map(lambda x: x.swapaxes(0, 1), steps)  # [B, T, ...]
    return replay.Sample(index=index, windows=sequences, probability=probability)


def _large_batch(
    config: ReplayConfig,
    buffer: Replay,
    key: jax.Array,
    *,
    loss: ScoredLoss[Any],
    params: Params,
    length: int | None,
) -> ReplayBatch[Any]:
    draw_key, pick_key = jax.random.split(key)
    size = config.batch_size * config.large_batch_factor
    large = _draw(config, buffer, draw_key, size=size, length=length)
    if config.priority == "grad_norm":
        scores = per_transition_grad_norms(
            lambda p, w: loss(p, w)[0], params, large.windows
        )
    else:
        scores = jax.vmap(lambda w: loss(params, w)[1])(large.windows)
    scores = jax.lax.stop_gradient(scores) + _LEAST
    # Inverse of the distribution function, one draw from each equal share.
    mass = jnp.cumsum(scores)
    shares = jnp.arange(config.batch_size) + jax.random.uniform(
        pick_key, (config.batch_size,), jnp.float32
    )
    pick = jnp.searchsorted(mass, shares / config.batch_size * mass[-1], side="right")
    pick = jnp.minimum(pick, size - 1)
    return ReplayBatch(
        index=large.index[pick],
        examples=jax.tree.map(lambda x: x[pick], large.windows),
        weights=scores.mean() / scores[pick],
    )


def gradient(
    config: ReplayConfig,
    loss: ScoredLoss[Example],
    params: Params,
    *,
    batch: ReplayBatch[Example],
) -> Gradient:
    """Gradient of the weighted mean loss; new priorities from the same pass."""
    if keeps_priorities(config) and config.priority == "grad_norm":
        losses, mean, norms = value_and_grad_with_norms(
            lambda p, example: loss(p, example)[0],
            params,
            batch.examples,
            batch.weights,
        )
        priorities = _powered(config, norms)
        return Gradient(mean=mean, losses=losses, priorities=priorities)

    def weighted(params: Params) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        losses, errors = jax.vmap(lambda x: loss(params, x))(batch.examples)
        return jnp.mean(batch.weights * losses), (losses, errors)

    mean, (losses, errors) = jax.grad(weighted, has_aux=True)(params)
    priorities = _powered(config, errors) if keeps_priorities(config) else None
    return Gradient(mean=mean, losses=losses, priorities=priorities)


def _powered(config: ReplayConfig, scores: jax.Array) -> jax.Array:
    scores = jax.lax.stop_gradient(scores)
    return (scores + _LEAST) ** config.priority_exponent


def store(
    buffer: Replay, batch: ReplayBatch[Any], priorities: jax.Array | None
) -> Replay:
    """Keep the new priorities of a batch, if there are any."""
    if priorities is None:
        return buffer
    return replay.update_priorities(buffer, batch.index, priorities)


def n_step_return(window: Windows, gamma: ArrayLike) -> tuple[jax.Array, jax.Array]:
    r"""Return over the steps of one window, and the discount of what follows.

    .. math:: \sum_{k < K} \gamma^k r_k, \quad \gamma^K (1 - d)

    K is the number of steps, d whether the last one terminated the episode. Sutton and
    Barto (2018), eq. 7.1, without its bootstrap value.
    """
    gamma = jnp.asarray(gamma)
    powers = gamma ** jnp.arange(len(window.reward))
    discount = gamma**window.num_steps * (1.0 - window.terminated)
    return jnp.sum(powers * window.reward), discount
