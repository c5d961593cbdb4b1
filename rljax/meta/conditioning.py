"""The agent's config with the tuned values in it, and observations that show them."""

import dataclasses

import jax
import jax.numpy as jnp

from rljax.contracts import TunedConfig
from rljax.meta import parameters
from rljax.meta.parameters import Raw
from rljax.meta.types import TuneState, Tuning
from rljax.networks import observations
from rljax.types import Obs, Rollout, Spec


def conditioned(spec: Spec, number: int) -> Spec:
    """The spec of observations that begin with `number` tuned values."""
    if spec.reading is not None:
        raise ValueError(
            f"condition=True: observations are {spec.reading}, which networks cannot "
            "read behind tuned values; scale_obs=True makes numbers of levels"
        )
    *shape, last = spec.obs_shape
    return spec._replace(obs_shape=(*shape, number + last), obs_dtype="float32")


def configured(
    tuning: Tuning,
    config: TunedConfig,
    raw: dict[str, Raw],
    *,
    context: jax.Array,
    obs: Obs,
) -> TunedConfig:
    """Put the tuned values into the config; `obs` as the agent sees them."""
    places = _positions(tuning, raw, context=context, obs=obs)
    values = {
        name: parameters.scale(tuning.tuned[name]).at(place)
        for name, place in places.items()
    }
    return dataclasses.replace(config, **values)


def _positions(
    tuning: Tuning, raw: dict[str, Raw], *, context: jax.Array, obs: Obs
) -> dict[str, jax.Array]:
    """The tuned values' positions on their scales, from 0 to 1."""
    plain = obs[..., len(tuning.tuned) :] if tuning.settings.condition else obs
    ndim = len(tuning.spec.obs_shape)
    read = observations.read(tuning.spec.reading, plain, ndim)
    return {
        name: parameters.position(
            parameter, raw[name], read, obs_ndim=ndim, context=context
        )
        for name, parameter in tuning.tuned.items()
    }


def seen(tuning: Tuning, state: TuneState, obs: Obs) -> Obs:
    """Observations as the agent sees them: behind the tuned values, from -1 to 1."""
    if not tuning.settings.condition:
        return obs
    padding = jnp.zeros((*obs.shape[:-1], len(tuning.tuned)), jnp.float32)
    padded = jnp.concatenate([padding, obs], axis=-1)
    positions = _positions(tuning, state.raw, context=state.context, obs=padded)
    shape = obs.shape[: obs.ndim - len(tuning.spec.obs_shape)]
    axes = (1,) * len(tuning.spec.obs_shape)
    places = [
        jnp.broadcast_to(
            jnp.broadcast_to(x, shape).reshape((*shape, *axes)), (*obs.shape[:-1], 1)
        )
        for x in positions.values()
    ]
    return jnp.concatenate([*(2.0 * x - 1.0 for x in places), obs], axis=-1)


def seen_rollout(tuning: Tuning, state: TuneState, rollout: Rollout) -> Rollout:
    """The rollout with observations as the agent sees them."""
    obs, next_obs = (seen(tuning, state, x) for x in (rollout.obs, rollout.next_obs))
    return rollout._replace(obs=obs, next_obs=next_obs)
