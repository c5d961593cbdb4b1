"""How parameters move: the optimiser that agents share, and its learning rate.

Configs have the fields `max_grad_norm`, `total_steps` and `anneal`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def clipped_adam(config: Any, eps: float = 1e-8) -> optax.GradientTransformation:
    """Direction of the step; the learning rate comes on top."""
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    return optax.chain(clip, optax.scale_by_adam(eps=eps))


def progress(config: Any, step: jax.Array) -> jax.Array:
    """Share of the training that is over after `step` environment steps, 0 to 1."""
    return jnp.minimum(step / config.total_steps, 1.0)


def annealed(config: Any, progress: jax.Array, start: Any) -> jax.Array:
    """What starts there and, with `config.anneal`, falls linearly to 0."""
    return start * (1.0 - progress if config.anneal else 1.0)
