"""From observations of any tree to features: torsos by name, or of your own."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import config as cfg
from rljax import loading
from rljax.contracts import NetworkConfig, PolicyNetworkConfig
from rljax.networks import observations
from rljax.networks.layers import (
    ACTIVATIONS,
    MLP,
    LayerNorm,
    orthogonal,
    precise,
    valid_convolution,
)
from rljax.types import Masked, Obs, ObsLeaf, ObsSpec, Spec, Torso

DTYPES = ("float32", "bfloat16")
_MINATAR_SIZE = 3
_MINATAR_FEATURES = 16


@dataclasses.dataclass(frozen=True)
class Body:
    """The parts of a network between an observation and its head. Hashable.

    The torso makes features of observations, and dense layers of `hidden_sizes` follow.
    """

    obs: ObsSpec
    hidden_sizes: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    torso: Torso = "minatar"
    layer_norm: bool = False  # before each activation
    compute_dtype: str = "float32"  # of layers; parameters and features are float32
    unseen: tuple[str, ...] = ()  # names of arrays that this network does not get


def body(spec: Spec, config: NetworkConfig, unseen: tuple[str, ...] = ()) -> Body:
    """Describe the body that a config asks for.

    Args:
      spec: of the environment.
      config: the agent's; its `torso` is a name of `TORSOS`, "module:Class" or
        "file.py:Class" of a flax module, or a flax module.
      unseen: names of arrays of the observation that the network does not get.

    Raises:
      ValueError: an unknown torso; a name in `unseen` that no array has, or all names.
    """
    names = [leaf.name for leaf in spec.obs.leaves]
    for name in unseen:
        if spec.obs.lone or name not in names:
            known = "one array" if spec.obs.lone else f"arrays {', '.join(names)}"
            raise ValueError(f"critic_obs={name!r}: observations are {known}")
    if set(unseen) >= set(names):
        raise ValueError(f"critic_obs={unseen}: nothing is left for the policy")
    return Body(
        obs=spec.obs,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        torso=_found(config.torso),
        layer_norm=config.layer_norm,
        compute_dtype=config.compute_dtype,
        unseen=unseen,
    )


def policy_body(spec: Spec, config: PolicyNetworkConfig) -> Body:
    """Describe the body of a policy, which does not get the arrays of `critic_obs`."""
    return body(spec, config, unseen=config.critic_obs)


def validate(config: NetworkConfig) -> None:
    """Raise ValueError naming a field out of range, its value and what is allowed."""
    cfg.check_sizes(config, "hidden_sizes")
    cfg.check_choice(config, "activation", tuple(ACTIVATIONS))
    cfg.check_choice(config, "compute_dtype", DTYPES)
    check(config, "torso")
    names = getattr(config, "critic_obs", ())  # of agents with a critic
    if not (isinstance(names, tuple) and all(isinstance(x, str) for x in names)):
        raise ValueError(f"critic_obs={names!r}: must be a tuple of names")


def check(config: object, name: str) -> None:
    """Raise ValueError unless a field names a torso, or is one."""
    torso = getattr(config, name)
    own = isinstance(torso, str) and loading.is_reference(torso)
    if not (own or isinstance(torso, nn.Module)):
        cfg.check_choice(config, name, tuple(TORSOS), beside="module:Class")


def most_weights(spec: Spec, config: NetworkConfig) -> int | None:
    """The number of weights of a body's largest matrix, at all places of an image.

    Args:
      spec: of the environment.
      config: the agent's.

    Returns:
      The number; None where only the torso knows: larger ones of images, or one's own.

    Example:
      >>> from rljax import agents, envs
      >>> config = agents.get("dqn").Config(hidden_sizes=(32, 16))
      >>> most_weights(envs.make("CartPole-v1").spec, config)
      512
    """
    shapes = [observations.shape_read(leaf) for leaf in spec.obs.leaves]
    images = [shape for shape in shapes if len(shape) == 3]
    known = ("minatar", "mlp") if images else tuple(TORSOS)
    if config.torso not in known:
        return None
    features = sum(math.prod(shape) for shape in shapes)
    convolved = []
    if config.torso == "minatar":
        for height, width, channels in images:
            places = (height - _MINATAR_SIZE + 1) * (width - _MINATAR_SIZE + 1)
            convolved.append(places * _MINATAR_SIZE**2 * channels * _MINATAR_FEATURES)
            features += places * _MINATAR_FEATURES - height * width * channels
    widths = [features, *config.hidden_sizes]
    dense = [a * b for a, b in itertools.pairwise(widths)]
    return max(convolved + dense, default=None)


def _found(torso: Torso) -> Torso:
    """Load a torso of one's own."""
    if isinstance(torso, nn.Module) or torso in TORSOS:
        return torso
    found = loading.load(torso, "torso")
    try:
        module = found() if isinstance(found, type) else found
    except TypeError as error:  # fields without a default
        raise ValueError(f"torso={torso!r}: {error}") from error
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise ValueError(f"torso={torso!r}: must be a flax.linen module, not {kind}")
    return module


class Encoder(nn.Module):
    """Observations to a flat float vector, as the torso makes it.

    A torso by name takes each image, `[height, width, channels]`, through its
    convolutions; all other arrays are flattened. The results stand side by side in the
    order of the tree.
    """

    body: Body

    @nn.compact
    def __call__(self, obs: Obs) -> jax.Array:
        """Map a tree of `[..., *shape]` to floats `[..., features]`."""
        body = self.body
        seen = obs.obs if isinstance(obs, Masked) else obs
        arrays, structure = jax.tree.flatten(seen)
        if structure != body.obs.structure:
            raise ValueError(
                f"observations are {structure}, the network is for {body.obs.structure}"
            )
        pairs = list(zip(body.obs.leaves, arrays, strict=True))
        if isinstance(body.torso, nn.Module):
            return self._own(pairs)
        encode = TORSOS[body.torso]
        parts = []
        for leaf, array in pairs:
            if leaf.name in body.unseen:
                continue
            x = observations.read(leaf.reading, array, len(leaf.shape))
            if len(observations.shape_read(leaf)) == 3:
                x = precise(encode(x, body))
            parts.append(x.reshape(*_batch(leaf, array), -1))
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    def _own(self, pairs: list[tuple[ObsLeaf, jax.Array]]) -> jax.Array:
        """Features of a user's module, which takes a tree of `[B, *shape]`."""
        body = self.body
        batch = _batch(*pairs[0])
        size = math.prod(batch)
        arrays = []
        for leaf, array in pairs:
            x = observations.read(leaf.reading, array, len(leaf.shape))
            x = x.reshape(size, *observations.shape_read(leaf))
            arrays.append(None if leaf.name in body.unseen else x)
        torso = body.torso.clone(parent=self, name="torso")
        x = torso(body.obs.tree(arrays))
        name = type(torso).__name__
        shape, dtype = getattr(x, "shape", None), getattr(x, "dtype", jnp.int32)
        floating = jnp.issubdtype(dtype, jnp.floating)
        if shape is None or len(shape) != 2 or shape[0] != size or not floating:
            raise ValueError(
                f"torso {name}: returns {_words(x)} of a batch of {size}, expected "
                f"floats [{size}, features]"
            )
        return precise(x).reshape(*batch, -1)


def mlp(body: Body, noisy: bool = False) -> MLP:
    """The dense layers of a body."""
    return MLP(
        hidden_sizes=body.hidden_sizes,
        activation=body.activation,
        noisy=noisy,
        layer_norm=body.layer_norm,
        dtype=compute_dtype(body.compute_dtype),
    )


def _batch(leaf: ObsLeaf, array: jax.Array) -> tuple[int, ...]:
    return array.shape[: array.ndim - len(leaf.shape)]


def _words(x: Any) -> str:
    if hasattr(x, "shape"):
        return f"{x.dtype}{list(x.shape)}"
    return type(x).__name__


def _convolve(
    x: jax.Array,
    body: Body,
    *,
    features: int,
    size: int,
    stride: int = 1,
    padding: str = "VALID",
    convolution: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """A convolution of the module that calls."""
    if padding == "VALID" and min(x.shape[-3:-1]) < size:
        raise ValueError(
            f"torso={body.torso!r}: an image of {x.shape[-3]} x {x.shape[-2]}, at the "
            f"start or between, is smaller than a convolution of {size} x {size}"
        )
    layer = nn.Conv(
        features=features,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding=padding,
        kernel_init=orthogonal(math.sqrt(2)),
        conv_general_dilated=convolution,
        dtype=compute_dtype(body.compute_dtype),
    )
    return layer(x)


def compute_dtype(name: str) -> str | None:
    """The dtype of layers; None, as it comes, for float32."""
    return None if name == "float32" else name


def _normed(x: jax.Array, body: Body) -> jax.Array:
    return LayerNorm()(x) if body.layer_norm else x


def _minatar(x: jax.Array, body: Body) -> jax.Array:
    """Young and Tian (2019), https://arxiv.org/abs/1903.03176, for 10 x 10 planes."""
    x = _convolve(
        x,
        body,
        features=_MINATAR_FEATURES,
        size=_MINATAR_SIZE,
        convolution=valid_convolution,
    )
    return nn.relu(_normed(x, body))


def _nature(x: jax.Array, body: Body) -> jax.Array:
    """Mnih et al. (2015), https://www.nature.com/articles/nature14236.

    Its dense layer of 512 is `hidden_sizes`.
    """
    for features, size, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        x = _convolve(
            x,
            body,
            features=features,
            size=size,
            stride=stride,
            convolution=valid_convolution,
        )
        x = nn.relu(_normed(x, body))
    return x


def _impala(x: jax.Array, body: Body) -> jax.Array:
    """Espeholt et al. (2018), https://arxiv.org/abs/1802.01561, the deep one.

    Its dense layer of 256 is `hidden_sizes`.
    """

    def convolve(x: jax.Array, features: int) -> jax.Array:
        return _convolve(x, body, features=features, size=3, padding="SAME")

    for features in (16, 32, 32):
        x = _normed(convolve(x, features), body)
        x = nn.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding="SAME")
        for _ in range(2):
            inner = _normed(convolve(nn.relu(x), features), body)
            x = x + _normed(convolve(nn.relu(inner), features), body)
    return nn.relu(x)


def _flat(x: jax.Array, body: Body) -> jax.Array:
    """Images as vectors."""
    del body
    return x


# What makes features of an image `[..., height, width, channels]`.
TORSOS: dict[str, Callable[[jax.Array, Body], jax.Array]] = {
    "mlp": _flat,
    "minatar": _minatar,
    "nature_cnn": _nature,
    "impala_resnet": _impala,
}
