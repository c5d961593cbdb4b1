"""Exploration: noise that is added to actions or to a prior."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax._shapes import checked


@checked("action[...] stddev[...]|[]")
def add_gaussian_noise(
    key: jax.Array, action: jax.Array, stddev: ArrayLike
) -> jax.Array:
    r"""Action with independent Gaussian noise.

    .. math:: a + \sigma z, \qquad z \sim \mathcal{N}(0, I)

    Args:
      key: used once.
      action: continuous. The result may lie outside the action space.
      stddev: standard deviation, not negative; differentiable.

    Returns:
      The shape of `action`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.learners.exploration import add_gaussian_noise
      >>> action = jnp.array([1.0, -1.0])
      >>> add_gaussian_noise(jax.random.key(0), action, 0.1).shape
      (2,)
      >>> add_gaussian_noise(jax.random.key(0), action, 0.0)
      Array([ 1., -1.], dtype=float32)

    References:
      Fujimoto et al. (2018), https://arxiv.org/abs/1802.09477

    Differs from:
      `rlax.add_gaussian_noise` turns bfloat16 into float32.
    """
    return action + stddev * jax.random.normal(key, action.shape, action.dtype)


@checked("action[...] noise_tm1[...] damping[]:scalar stddev[...]|[]")
def add_ornstein_uhlenbeck_noise(
    key: jax.Array,
    action: jax.Array,
    noise_tm1: jax.Array,
    damping: ArrayLike,
    stddev: ArrayLike,
) -> jax.Array:
    r"""Action with noise of an Ornstein-Uhlenbeck process, correlated over time.

    .. math::
        a + n_t, \qquad
        n_t = (1 - \theta) n_{t-1} + \sigma z, \qquad z \sim \mathcal{N}(0, I)

    The noise has in the long run the variance
    :math:`\sigma^2 / (1 - (1 - \theta)^2)` and the autocorrelation
    :math:`(1 - \theta)^k` over k steps.

    Args:
      key: used once.
      action: continuous. The result may lie outside the action space.
      noise_tm1: the noise of the step before, at first zeros; the noise of this step is
        the result minus `action`.
      damping: in (0, 1], 1 for independent noise; differentiable.
      stddev: standard deviation, not negative, of one step's noise; differentiable.

    Returns:
      The shape of `action`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.learners.exploration import add_ornstein_uhlenbeck_noise
      >>> action, noise_tm1 = jnp.array([1.0, -1.0]), jnp.array([0.5, 0.5])
      >>> noisy = add_ornstein_uhlenbeck_noise(
      ...     jax.random.key(0), action, noise_tm1, damping=0.5, stddev=0.0
      ... )
      >>> noisy, noisy - action
      (Array([ 1.25, -0.75], dtype=float32), Array([0.25, 0.25], dtype=float32))

    References:
      Uhlenbeck and Ornstein (1930), https://doi.org/10.1103/PhysRev.36.823
      Lillicrap et al. (2016), section 3, https://arxiv.org/abs/1509.02971

    Differs from:
      `rlax.add_ornstein_uhlenbeck_noise` accepts vectors only.
    """
    return add_gaussian_noise(key, action + (1 - damping) * noise_tm1, stddev)


@checked("prior[...,A] dirichlet_alpha[]:scalar dirichlet_fraction[]:scalar")
def add_dirichlet_noise(
    key: jax.Array,
    prior: jax.Array,
    dirichlet_alpha: ArrayLike,
    dirichlet_fraction: ArrayLike,
) -> jax.Array:
    r"""Policy mixed with a random one, as at the root of AlphaZero's search.

    .. math:: (1 - f) p + f \eta, \qquad \eta \sim \mathrm{Dirichlet}(\alpha)

    Args:
      key: used once.
      prior: action probabilities; each row gets noise of its own.
      dirichlet_alpha: positive: the smaller, the fewer actions share the noise.
        AlphaZero: 0.3 in chess, 0.15 in shogi, 0.03 in go.
      dirichlet_fraction: in [0, 1], how much of the result is noise; differentiable.
        AlphaZero: 0.25.

    Returns:
      `[..., A]` action probabilities.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from rljax.learners.exploration import add_dirichlet_noise
      >>> prior = jnp.array([0.5, 0.25, 0.25])
      >>> add_dirichlet_noise(jax.random.key(0), prior, 0.3, 0.25).shape
      (3,)
      >>> add_dirichlet_noise(jax.random.key(0), prior, 0.3, 0.0)
      Array([0.5 , 0.25, 0.25], dtype=float32)

    References:
      Silver et al. (2018), https://doi.org/10.1126/science.aar6404

    Differs from:
      `rlax.add_dirichlet_noise` takes `prior[B, A]` only.
    """
    alpha = jnp.full(prior.shape[-1:], dirichlet_alpha, prior.dtype)
    noise = jax.random.dirichlet(key, alpha, prior.shape[:-1], prior.dtype)
    return prior * (1 - dirichlet_fraction) + noise * dirichlet_fraction
