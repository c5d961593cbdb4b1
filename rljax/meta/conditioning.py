"""The agent's config with the tuned values in it, and observations that show them."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax.contracts import TunedConfig
from rljax.meta import parameters
from rljax.meta.parameters import Raw
from rljax.meta.types import TuneState, Tuning
from rljax.types import Masked, Obs, ObsLeaf, ObsSpec, Rollout, Spec


class Conditioned(NamedTuple):
    """An observation with the tuned values beside it."""

    tuned: jax.Array  # [..., number], positions on their scales, from -1 to 1
    obs: Obs


def conditioned(spec: Spec, number: int) -> Spec:
    """The spec of observations that are `Conditioned` on `number` tuned values."""
    tuned = ObsLeaf(shape=(number,), dtype="float32", name="tuned")
    whole = Conditioned(tuned=jnp.zeros(()), obs=spec.obs.tree(spec.obs.leaves))
    structure = jax.tree.structure(whole, is_leaf=lambda x: isinstance(x, ObsLeaf))
    obs = ObsSpec(leaves=(tuned, *spec.obs.leaves), structure=structure)
    return spec._replace(obs=obs)


def plain_spec(tuning: Tuning) -> ObsSpec:
    """The spec of observations as the environment gives them."""
    obs_spec = tuning.spec.obs
    if not tuning.settings.condition:
        return obs_spec
    structure = obs_spec.structure.children()[1]
    return ObsSpec(leaves=obs_spec.leaves[1:], structure=structure)


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
    if tuning.settings.condition:
        obs = _unmasked(obs).obs
    obs_spec = plain_spec(tuning)
    return {
        name: parameters.position(
            parameter, raw[name], obs, obs_spec=obs_spec, context=context
        )
        for name, parameter in tuning.tuned.items()
    }


def _unmasked(obs: Obs) -> Obs:
    return obs.obs if isinstance(obs, Masked) else obs


def seen(tuning: Tuning, state: TuneState, obs: Obs) -> Obs:
    """Observations as the agent sees them: `Conditioned`, if so."""
    if not tuning.settings.condition:
        return obs
    leaf = plain_spec(tuning).leaves[0]
    array = jax.tree.leaves(obs)[0]
    shape = array.shape[: array.ndim - len(leaf.shape)]
    tuned = jnp.zeros((*shape, len(tuning.tuned)), jnp.float32)
    bare = Conditioned(tuned=tuned, obs=_unmasked(obs))
    positions = _positions(tuning, state.raw, context=state.context, obs=bare)
    places = [jnp.broadcast_to(2.0 * x - 1.0, shape) for x in positions.values()]
    with_tuned = bare._replace(tuned=jnp.stack(places, axis=-1))
    return obs._replace(obs=with_tuned) if isinstance(obs, Masked) else with_tuned


def seen_rollout(tuning: Tuning, state: TuneState, rollout: Rollout) -> Rollout:
    """The rollout with observations as the agent sees them."""
    obs, next_obs = (seen(tuning, state, x) for x in (rollout.obs, rollout.next_obs))
    return rollout._replace(obs=obs, next_obs=next_obs)
