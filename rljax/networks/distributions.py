"""Action distributions as distrax compositions, in the environment's units."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from rljax import prng
from rljax._distrax import distrax
from rljax.types import Box, Discrete, Policy, Spec

# Logit of an action that has no chance. Not minus infinity: 0 times that, in an
# entropy, is NaN.
_ILLEGAL = -1e9


def sample(distribution: distrax.Distribution, key: jax.Array) -> jax.Array:
    """One sample per batch element, `[..., *event_shape]`.

    `distrax.Categorical.sample` also looks for invalid logits at every call, which
    in a rollout of small networks is a fifth of the step; here it is left out.
    """
    inner: Any = distribution
    if isinstance(inner, distrax.Independent):
        inner = inner.distribution
    if isinstance(inner, distrax.Categorical):
        return jax.random.categorical(key, inner.logits).astype(jnp.int32)
    return distribution.sample(seed=key)


def masked(logits: jax.Array, legal: jax.Array) -> distrax.Categorical:
    """A policy without illegal actions; both arguments are `[..., num_actions]`.

    They have probability 0, and their logits no derivative. Huang and Ontanon (2020),
    https://arxiv.org/abs/2006.14171.

    Example:
      >>> masked(jnp.zeros(3), jnp.array([True, False, True])).probs.tolist()
      [0.5, 0.0, 0.5]
    """
    return distrax.Categorical(jnp.where(legal, logits, _ILLEGAL))


def multi_categorical(
    logits: jax.Array, num_actions: tuple[int, ...]
) -> distrax.Independent:
    """A product of categoricals, for actions of several choices at once.

    Args:
      logits: `[..., sum(num_actions)]`, of one choice after the other.
      num_actions: of each of K choices.

    Returns:
      Distribution over int32 `[..., K]`.

    Example:
      >>> policy = multi_categorical(jnp.zeros(5), (2, 3))
      >>> policy.event_shape, round(float(policy.prob(jnp.array([1, 2]))), 4)
      ((2,), 0.1667)
    """
    most, parts, start = max(num_actions), [], 0
    for number in num_actions:
        part = logits[..., start : start + number]
        padding = [(0, 0)] * (part.ndim - 1) + [(0, most - number)]
        parts.append(jnp.pad(part, padding, constant_values=_ILLEGAL))
        start += number
    return distrax.Independent(distrax.Categorical(jnp.stack(parts, axis=-2)), 1)


def check_unmasked(name: str, spec: Spec) -> None:
    """Raise ValueError if the agent `name` would take illegal actions."""
    if isinstance(spec.action, Discrete) and spec.action.masked:
        raise ValueError(f"{name} cannot mask actions, and some of {spec.action} are")


def epsilon_greedy(q: jax.Array, epsilon: ArrayLike, key: jax.Array) -> jax.Array:
    """Greedy actions, replaced by uniform ones with probability `epsilon`.

    Args:
      q: `[..., num_actions]` action values.
      epsilon: `[]` or `[...]` in [0, 1].
      key: `[]` typed key, consumed here.

    Returns:
      `[...]` int32 actions.
    """
    explore_key, action_key = jax.random.split(key)
    batch, num_actions = q.shape[:-1], q.shape[-1]
    explore = jax.random.uniform(explore_key, batch) < epsilon
    uniform = prng.indices(action_key, batch, num_actions)
    return jnp.where(explore, uniform, q.argmax(axis=-1).astype(jnp.int32))


def repeated_epsilon_greedy(
    q: jax.Array,
    epsilon: ArrayLike,
    memory: jax.Array,
    *,
    max_repeats: int,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Epsilon-greedy whose uniform actions last: for n steps with chance ~ 1 / n^2.

    Dabney et al. (2020), https://arxiv.org/abs/2006.01782, algorithm 1. Short ones are
    most likely, yet now and then one goes far where single steps undo each other.

    Args:
      q: `[..., num_actions]` action values.
      epsilon: `[]` or `[...]` in [0, 1], chance to start where none is going on.
      memory: `[..., 2]` int32, the action repeated last and the steps it has left;
        zeros at first.
      max_repeats: the longest that one may last.
      key: `[]` typed key, consumed here.

    Returns:
      `[...]` int32 actions and the new memory.
    """
    start_key, action_key, length_key = jax.random.split(key, 3)
    batch, num_actions = q.shape[:-1], q.shape[-1]
    action, left = memory[..., 0], memory[..., 1]
    starts = (left == 0) & (jax.random.uniform(start_key, batch) < epsilon)
    weights = 1.0 / np.arange(1, max_repeats + 1) ** 2
    below = jnp.asarray(np.cumsum(weights / weights.sum())[:-1])
    drawn = jax.random.uniform(length_key, batch)
    length = 1 + jnp.searchsorted(below, drawn, side="right").astype(jnp.int32)
    uniform = prng.indices(action_key, batch, num_actions)
    action = jnp.where(starts, uniform, action)
    left = jnp.where(starts, length, left)
    greedy = q.argmax(axis=-1).astype(jnp.int32)
    memory = jnp.stack([action, jnp.maximum(left - 1, 0)], axis=-1)
    return jnp.where(left > 0, action, greedy), memory


def epsilon_greedy_probs(q: jax.Array, epsilon: ArrayLike) -> jax.Array:
    """Probabilities of `epsilon_greedy`'s actions, `[..., num_actions]`.

    Args:
      q: `[..., num_actions]` action values; of equal ones the first is the greedy one.
      epsilon: `[]` in [0, 1].
    """
    num_actions = q.shape[-1]
    greedy = jax.nn.one_hot(q.argmax(axis=-1), num_actions, dtype=q.dtype)
    epsilon = jnp.asarray(epsilon)
    return epsilon / num_actions + (1.0 - epsilon) * greedy


def gaussian(mean: jax.Array, log_std: jax.Array, box: Box) -> distrax.Independent:
    """Diagonal Gaussian whose unit is half the width of the action bounds.

    Args:
      mean: `[..., D]`; 0 is the middle of the bounds, 1 the upper one.
      log_std: `[D]` or `[..., D]` in the same unit.
      box: the actions, D elements; where one has no bound the unit is 1.

    Returns:
      Distribution over `[..., *box.shape]`; samples may leave the bounds, environments
      clip.
    """
    middle, half = middle_and_half(box)
    shape = (*mean.shape[:-1], *box.shape)
    scale = jnp.broadcast_to(half * jnp.exp(log_std), mean.shape)
    normal = distrax.Normal((middle + half * mean).reshape(shape), scale.reshape(shape))
    return distrax.Independent(normal, len(box.shape))


def divergences(old: Policy, new: Policy) -> tuple[jax.Array, ...]:
    """Divergences of a new policy from an old one.

    A Gaussian has two: from the old one to one with only the mean new, and to one with
    only the standard deviation new. Song et al. (2020),
    https://arxiv.org/abs/1909.12238, appendix C.

    Args:
      old: categorical, or as returned by `multi_categorical` or `gaussian`, of batch
        shape `[...]`.
      new: likewise.

    Returns:
      KL(old | new) `[...]`; for Gaussians one of the mean and one of the standard
      deviation.
    """
    if isinstance(new, distrax.Categorical):
        return (old.kl_divergence(new),)
    if isinstance(new.distribution, distrax.Categorical):
        return (old.kl_divergence(new),)
    old_normal, new_normal = old.distribution, new.distribution
    dimensions = tuple(range(-len(old.event_shape), 0))
    apart = _apart(
        old_mean=old_normal.loc,
        old_stddev=old_normal.scale,
        new_mean=new_normal.loc,
        new_stddev=new_normal.scale,
    )
    return tuple(
        apart.old.kl_divergence(changed).sum(dimensions)
        for changed in (apart.mean_new, apart.stddev_new)
    )


class _Apart(NamedTuple):
    """Each a `distrax.Normal` for every element of an action."""

    old: Any
    mean_new: Any  # and the old standard deviation
    stddev_new: Any  # and the old mean


def _apart(
    *,
    old_mean: jax.Array,
    old_stddev: jax.Array,
    new_mean: jax.Array,
    new_stddev: jax.Array,
) -> _Apart:
    """Take the two changes of a Gaussian apart."""
    return _Apart(
        old=distrax.Normal(old_mean, old_stddev),
        mean_new=distrax.Normal(new_mean, old_stddev),
        stddev_new=distrax.Normal(old_mean, new_stddev),
    )


def tanh_gaussian(mean: jax.Array, log_std: jax.Array, box: Box) -> distrax.Transformed:
    """Gaussian squashed by tanh into the action bounds.

    Haarnoja et al. (2018), https://arxiv.org/abs/1801.01290, appendix C.

    Args:
      mean: `[..., D]` before the tanh.
      log_std: `[..., D]` before the tanh.
      box: finite bounds, D elements; where one has none they are -1 and 1.

    Returns:
      Distribution over `[..., D]` inside the bounds. `sample_and_log_prob` has exact
      log-densities. `log_prob` of an action has them as far as the action tells what
      there was before the tanh: in float32 to 1e-3 within 0.999 of the half width, and
      to 0.3 up to the last four numbers before a bound. These and the bound itself, to
      which tanh rounds all that is above 8, have the mean density of that part: finite,
      with derivatives, and right for ratios of policies.
    """
    middle, half = middle_and_half(box)
    affine = distrax.ScalarAffine(
        jnp.broadcast_to(middle, mean.shape), jnp.broadcast_to(half, mean.shape)
    )
    squash = distrax.Block(distrax.Chain([affine, distrax.Tanh()]), 1)
    normal = distrax.MultivariateNormalDiag(mean, jnp.exp(log_std))
    return _Squashed(normal, squash)


class _Squashed(distrax.Transformed):
    """With a log-density at the bounds, where the inverse of tanh is infinite."""

    def log_prob(self, value: jax.Array) -> jax.Array:
        normal: Any = self.distribution
        squash: Any = self.bijector
        mean, stddev = normal.loc, normal.scale_diag
        low = squash.forward(jnp.full_like(mean, -jnp.inf))
        high = squash.forward(jnp.full_like(mean, jnp.inf))
        middle, half = (low + high) / 2, (high - low) / 2
        position = (value - middle) / half
        spacing = jnp.maximum(2.0, jnp.maximum(jnp.abs(low), jnp.abs(high)) / half)
        width = spacing * jnp.finfo(position.dtype).eps  # of the part at each bound
        edge = jnp.log((2 - width) / width) / 2
        ends = jnp.abs(position) >= 1 - width
        before = jnp.arctanh(jnp.where(ends, 0.0, position))
        slope = 2 * (jnp.log(2.0) - before - jax.nn.softplus(-2 * before))
        inside = distrax.Normal(mean, stddev).log_prob(before) - slope
        beyond = log_ndtr((jnp.sign(position) * mean - edge) / stddev) - jnp.log(width)
        return jnp.sum(jnp.where(ends, beyond, inside) - jnp.log(half), axis=-1)


def compare(
    old: Policy, new: Policy, x: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Log-probabilities of a new policy, and its divergences from an old one.

    A squashed Gaussian changes in two ways, by its mean and by its standard deviation.
    Its log-probabilities, before the tanh, are a sum of two: with only the mean new,
    and with only the standard deviation new. Abdolmaleki et al. (2018),
    https://arxiv.org/abs/1812.02256.

    Args:
      old: categorical distribution, or as returned by `tanh_gaussian`, of batch shape
        `[]`.
      new: likewise.
      x: `[S, D]` before the tanh; not used for categorical ones.

    Returns:
      `[S]`, or `[num_actions]` of all actions; and KL(old | new): `[]`, or `[D]` of the
      mean and `[D]` of the standard deviation.
    """
    if isinstance(new, distrax.Categorical):
        return jnp.asarray(new.logits), (old.kl_divergence(new),)
    old_normal, new_normal = old.distribution, new.distribution
    apart = _apart(
        old_mean=old_normal.loc,
        old_stddev=old_normal.scale_diag,
        new_mean=new_normal.loc,
        new_stddev=new_normal.scale_diag,
    )
    log_probs = apart.mean_new.log_prob(x) + apart.stddev_new.log_prob(x)
    kls = (
        apart.old.kl_divergence(apart.mean_new),
        apart.old.kl_divergence(apart.stddev_new),
    )
    return jnp.sum(log_probs, axis=-1), kls


def squashed(distribution: Policy, noise: jax.Array) -> jax.Array:
    """Return the action that a squashed Gaussian makes of noise.

    Args:
      distribution: as returned by `tanh_gaussian`.
      noise: `[..., D]` standard normal for a sample; 0 for the squashed mean.

    Returns:
      `[..., D]`.
    """
    base = distribution.distribution
    return distribution.bijector.forward(base.loc + base.scale_diag * noise)


def check_bounded(name: str, spec: Spec) -> Box:
    """Return the actions, once they are known to be bounded.

    Raises:
      ValueError: not continuous, or a bound is missing; names the agent `name`.
    """
    if not isinstance(spec.action, Box):
        raise ValueError(f"{name} needs continuous actions, not {spec.action}")
    if not _bounded(spec.action).all():
        raise ValueError(f"{name} needs finite bounds of actions, not {spec.action}")
    return spec.action


def _bounded(box: Box) -> np.ndarray:
    """`[D]` bools: both bounds exist. Gymnax writes the greatest float32 for none."""
    low, high = np.array(box.low), np.array(box.high)
    return (np.abs(low) < 1e30) & (np.abs(high) < 1e30)


def middle_and_half(box: Box) -> tuple[Any, Any]:
    """Return middle and half width of the bounds `[D]`; 0 and 1 where one is missing.

    A bound of 1e30 or more counts as missing.
    """
    bounded = _bounded(box)
    low = np.where(bounded, np.array(box.low, np.float32), np.float32(-1.0))
    high = np.where(bounded, np.array(box.high, np.float32), np.float32(1.0))
    return (high + low) / 2, (high - low) / 2
