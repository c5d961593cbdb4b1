"""Networks as one program for each shape, where every operation would be one."""

import functools

import jax
import numpy as np

from rljax.networks import Body
from rljax.types import ObsSpec


@functools.partial(jax.jit, static_argnums=0)
def init(net, key, *inputs):
    """The network's parameters for such inputs."""
    return net.init(key, *inputs)


@functools.partial(jax.jit, static_argnums=0)
def apply(net, params, *inputs):
    """The network's output."""
    return net.apply(params, *inputs)


@functools.partial(jax.jit, static_argnums=0)
def log_prob(net, params, obs, action):
    """Logarithm of the probability that the policy gives to actions."""
    return net.apply(params, obs).log_prob(action)


def body(ndim, hidden_sizes, activation="relu", **options):
    """The body of a network of one array with so many axes."""
    obs = ObsSpec.array((3,) * ndim)
    return Body(obs=obs, hidden_sizes=hidden_sizes, activation=activation, **options)


def normal(seed, *shape):
    """Standard normal inputs, drawn on the host."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scaled(params, scale, shift=0.0):
    """Parameters times `scale` plus `shift`, on the host."""
    return jax.tree.map(lambda x: scale * np.asarray(x) + shift, params)


def all_nonzero(tree):
    """Whether every leaf has a number other than 0."""
    return all(np.asarray(leaf).any() for leaf in jax.tree.leaves(tree))


def slopes(fn, config, names, step):
    """`{name: (slope, difference)}` of `fn(config)` in some of the config's floats.

    Values at the config and beside it, and the gradient, all in one program.
    """
    rows = 1 + 2 * len(names)
    configs = jax.tree.map(lambda x: np.full(rows, x, float), config)
    for i, name in enumerate(names):
        getattr(configs, name)[2 * i + 1 : 2 * i + 3] += step, -step
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(fn)))(configs)
    above, below = np.array(values)[1::2], np.array(values)[2::2]
    differences = (above - below) / (2 * step)
    found = (np.array(getattr(grads, name))[0] for name in names)
    return dict(zip(names, zip(found, differences, strict=True), strict=True))
