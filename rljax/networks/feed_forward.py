"""Policies and values as flax modules, of observations of any tree."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax._distrax import distrax
from rljax.networks import distributions
from rljax.networks.layers import NoisyDense, dense, orthogonal
from rljax.networks.torsos import Body, Encoder, mlp
from rljax.types import Action, Box, Discrete, Masked, MultiDiscrete, Obs, Policy


class PolicyHead(nn.Module):
    """Features to a distribution over actions: categorical or Gaussian."""

    action: Action

    @nn.compact
    def __call__(self, x: jax.Array) -> distrax.Distribution:
        """Map `[..., features]` to a distribution of batch shape `[...]`."""
        if isinstance(self.action, Discrete):
            return distrax.Categorical(dense(self.action.num_actions, 0.01)(x))
        if isinstance(self.action, MultiDiscrete):
            logits = dense(sum(self.action.num_actions), 0.01)(x)
            return distributions.multi_categorical(logits, self.action.num_actions)
        size = math.prod(self.action.shape)
        mean = dense(size, 0.01)(x)
        log_std = self.param("log_std", nn.initializers.zeros, (size,), jnp.float32)
        return distributions.gaussian(mean, log_std, self.action)


class ValueHead(nn.Module):
    """Features to state values."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., features]` to `[...]`."""
        return dense(1, 1.0)(x)[..., 0]


class Actor(nn.Module):
    """Observations to a distribution over actions."""

    body: Body
    action: Action

    @nn.compact
    def __call__(self, obs: Obs) -> distrax.Distribution:
        """Map observations `[..., *shape]` to a distribution of batch shape `[...]`."""
        x = mlp(self.body)(Encoder(self.body)(obs))
        policy: Policy = PolicyHead(self.action)(x)
        if isinstance(obs, Masked):
            return distributions.masked(policy.logits, obs.legal)
        return policy


class Critic(nn.Module):
    """Observations to state values."""

    body: Body
    scale: float = 1.0  # of the last layer's first weights

    @nn.compact
    def __call__(self, obs: Obs) -> jax.Array:
        """Map observations `[..., *shape]` to `[...]`."""
        x = mlp(self.body)(Encoder(self.body)(obs))
        return dense(1, self.scale)(x)[..., 0]


class ActorCritic(nn.Module):
    """Observations to a policy and a value, from features that both share."""

    body: Body
    action: Action

    @nn.compact
    def __call__(self, obs: Obs) -> tuple[distrax.Distribution, jax.Array]:
        """Map observations `[..., *shape]` to a policy and a value of shape `[...]`."""
        x = mlp(self.body)(Encoder(self.body)(obs))
        return PolicyHead(self.action)(x), ValueHead()(x)


class QNetwork(nn.Module):
    """Action values; dueling: Wang et al. (2016), https://arxiv.org/abs/1511.06581."""

    body: Body
    num_actions: int
    dueling: bool = False
    noisy: bool = False
    num_outputs: int = 1  # per action: atoms or quantiles of its return

    @nn.compact
    def __call__(self, obs: Obs) -> jax.Array:
        """Map observations `[..., *shape]` to `[..., num_actions]`.

        With more than one output per action to `[..., num_actions, num_outputs]`.
        """
        x = mlp(self.body, noisy=self.noisy)(Encoder(self.body)(obs))

        def head(actions: int, name: str | None = None) -> jax.Array:
            size = actions * self.num_outputs
            layer = (
                NoisyDense(size, name=name) if self.noisy else dense(size, 1, name=name)
            )
            return layer(x).reshape(*x.shape[:-1], actions, self.num_outputs)

        if self.dueling:
            value = head(1, name="value")
            advantage = head(self.num_actions, name="advantage")
            q = value + advantage - advantage.mean(axis=-2, keepdims=True)
        else:
            q = head(self.num_actions)
        return q if self.num_outputs > 1 else q[..., 0]


class TanhGaussianActor(nn.Module):
    """Observations to a Gaussian squashed into the bounds of the actions.

    Haarnoja et al. (2018), https://arxiv.org/abs/1801.01290, appendix C.
    """

    body: Body
    action: Box

    @nn.compact
    def __call__(self, obs: Obs) -> distrax.Transformed:
        """Map observations `[..., *shape]` to a distribution over `[..., D]`."""
        x = mlp(self.body)(Encoder(self.body)(obs))
        size = math.prod(self.action.shape)
        mean, log_std = jnp.split(dense(2 * size, 0.01)(x), 2, axis=-1)
        log_std = jnp.clip(log_std, -10.0, 2.0)
        return distributions.tanh_gaussian(mean, log_std, self.action)


class DeterministicActor(nn.Module):
    """Observations to actions inside their bounds, which tanh approaches."""

    body: Body
    action: Box

    @nn.compact
    def __call__(self, obs: Obs) -> jax.Array:
        """Map observations `[..., *shape]` to `[..., D]`."""
        x = mlp(self.body)(Encoder(self.body)(obs))
        middle, half = distributions.middle_and_half(self.action)
        return middle + half * nn.tanh(dense(math.prod(self.action.shape), 0.01)(x))


class ContinuousQ(nn.Module):
    """Values of continuous actions."""

    body: Body
    action: Box

    @nn.compact
    def __call__(self, obs: Obs, action: jax.Array) -> jax.Array:
        """Map observations `[..., *shape]` and `[..., D]` to `[...]`."""
        middle, half = distributions.middle_and_half(self.action)
        x = Encoder(self.body)(obs)
        x = jnp.concatenate([x, (action - middle) / half], axis=-1)
        x = mlp(self.body)(x)
        return dense(1, 1.0)(x)[..., 0]


class Ensemble(nn.Module):
    """Several networks of one kind, each with parameters of its own."""

    network: Callable[..., nn.Module]  # takes a name
    size: int

    @nn.compact
    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Stack the outputs `[...]` to `[size, ...]`."""
        members = [self.network(name=f"member_{i}") for i in range(self.size)]
        return jnp.stack([member(*inputs) for member in members])


class CosineEmbedding(nn.Module):
    """Features of fractions in [0, 1]: eq. 4 of Dabney et al. (2018)."""

    features: int
    size: int = 64  # cosines

    @nn.compact
    def __call__(self, fractions: jax.Array) -> jax.Array:
        """Map `[N]` to `[N, features]`."""
        cosines = jnp.cos(
            jnp.pi * jnp.arange(self.size, dtype=jnp.float32) * fractions[:, None]
        )
        return nn.relu(dense(self.features, math.sqrt(2))(cosines))


class ImplicitQuantileNetwork(nn.Module):
    """Quantiles of the return at given fractions, the same for a whole batch.

    Dabney et al. (2018), https://arxiv.org/abs/1806.06923: the embedded fractions
    multiply the features of the observation. Here this comes after all hidden layers,
    not before the last one: then many fractions cost little more than one, and the
    mean over them is as exact as a plain action value.
    """

    body: Body
    num_actions: int
    embedding_size: int = 64

    @nn.compact
    def __call__(self, obs: Obs, fractions: jax.Array) -> jax.Array:
        """Map observations `[..., *shape]` and `[N]` to `[..., N, num_actions]`."""
        x = mlp(self.body)(Encoder(self.body)(obs))
        embedded = CosineEmbedding(x.shape[-1], self.embedding_size)(fractions)
        shape = (x.shape[-1], self.num_actions)
        kernel = self.param("kernel", orthogonal(), shape)
        bias = self.param(
            "bias", nn.initializers.zeros, (self.num_actions,), jnp.float32
        )
        # The head's weights take the product in place of the features: the fractions
        # are then columns of one matrix, whatever the size of the batch.
        weights = embedded.T[:, :, None] * kernel[:, None, :]  # [features, N, actions]
        return jnp.tensordot(x, weights, axes=1) + bias
