"""The optimiser that agents share, and its learning rate over a training.

Values are those of optax. Derivatives are finite also where a gradient is exactly 0, as
it is for weights behind an input that is never active: the root in optax's Adam and in
its norms has none there, and a meta-gradient through optax's Adam is NaN.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rljax.contracts import AnnealConfig, ClipConfig, ExplorationConfig, RunConfig
from rljax.running import parallel
from rljax.types import Leaf


class ClipState(NamedTuple):
    """Counts of `clip_by_global_norm`, modulo 2^32: differences are exact."""

    steps: jax.Array  # [] int32
    saturated: jax.Array  # [] int32, of them with a gradient that was cut


@jax.custom_jvp
def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, whose derivative at 0 is 0 instead of infinite."""
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    root = safe_sqrt(x)
    positive = root > 0
    slope = jnp.where(positive, 0.5 / jnp.where(positive, root, 1.0), 0.0)
    return root, slope * x_dot


@jax.custom_jvp
def _shorten(x: jax.Array, norm: jax.Array, length: jax.Array) -> jax.Array:
    """Scale `x` to another norm; where that norm is 0, derivatives take 1 for it."""
    return x / norm * length


@_shorten.defjvp
def _shorten_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, norm, length), (x_dot, norm_dot, length_dot) = primals, tangents
    divisor = jnp.where(norm == 0, 1.0, norm)
    unit = x / divisor
    slope = (x_dot - unit * norm_dot) / divisor * length + unit * length_dot
    return unit * length, slope


def clip_by_global_norm(max_norm: ArrayLike) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, safe at the zero gradient, and counting.

    A cut gradient has a fixed length: what only scales it has no derivative. The
    state tells how often that was so.
    """

    def init(params: Any) -> ClipState:
        del params
        return ClipState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ClipState]:
        del params
        norm = safe_sqrt(optax.tree.norm(updates, squared=True))
        inside = norm < max_norm

        def clip(x: jax.Array) -> jax.Array:
            length = jnp.asarray(max_norm, x.dtype)
            return jax.lax.select(inside, x, _shorten(x, norm.astype(x.dtype), length))

        cut = (~inside).astype(jnp.int32)
        state = ClipState(state.steps + 1, state.saturated + cut)
        return jax.tree.map(clip, updates), state

    return optax.GradientTransformation(init, update)


def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: ArrayLike = 1e-8
) -> optax.GradientTransformation:
    """`optax.scale_by_adam`, safe where the second moment is 0.

    There every gradient so far was 0, and the derivative is that of the first moment
    over `eps`.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        mu_hat = optax.tree.bias_correction(mu, b1, count)
        nu_hat = optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (safe_sqrt(v) + eps), mu_hat, nu_hat)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    init = optax.scale_by_adam(b1, b2, eps).init
    return optax.GradientTransformation(init, update)


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """`optax.adam`, safe inside a meta-gradient.

    Kingma and Ba (2015), https://arxiv.org/abs/1412.6980.

    Example:
      >>> optimizer = adam(0.5)
      >>> def step(x):
      ...     updates, _ = optimizer.update(x, optimizer.init(x))
      ...     return updates
      >>> f"{jax.grad(step)(0.0):.1e}"  # -0.5 / eps
      '-5.0e+07'
    """
    rate = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(scale_by_adam(b1, b2, eps), rate)


def clipped_adam(
    config: ClipConfig, eps: ArrayLike = 1e-8
) -> optax.GradientTransformation:
    """Direction of the step; the learning rate comes on top.

    Gradients of the shards of a run are averaged.
    """
    clip = clip_by_global_norm(config.max_grad_norm)
    both = optax.chain(clip, scale_by_adam(eps=eps))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return both.update(parallel.mean(updates), state, params)

    return optax.GradientTransformation(both.init, update)


def progress(config: RunConfig, step: jax.Array) -> jax.Array:
    """Share of the training that is over after `step` rollouts, 0 to 1."""
    # A Python float: `total_steps` may be beyond int32.
    rollouts = config.total_steps / (config.num_envs * config.rollout_length)
    return jnp.clip(jnp.asarray(step, jnp.float32) / rollouts, 0.0, 1.0)


def exploration(
    config: ExplorationConfig, step: jax.Array, *, start: Leaf, end: Leaf
) -> jax.Array:
    """Go linearly from `start` to `end`, and never beyond.

    The way takes `config.exploration_fraction` of the training; `step` counts rollouts.
    """
    share = jnp.minimum(progress(config, step) / config.exploration_fraction, 1.0)
    least, most = jnp.minimum(start, end), jnp.maximum(start, end)
    return jnp.clip(start + (end - start) * share, least, most)  # within, rounded too


def annealed(config: AnnealConfig, progress: jax.Array, start: Leaf) -> Leaf:
    """Fall linearly from `start` to 0 with `config.anneal`, else stay there."""
    return start * (1.0 - progress if config.anneal else 1.0)
