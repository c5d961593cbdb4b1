"""A look at a run before it starts: its environment, and own code in it."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax import agents, envs, loading
from rljax.commands import common
from rljax.contracts import BatchedEnv
from rljax.running import hosts, parallel
from rljax.running.checking import check_agent
from rljax.types import AgentState, Masked, TrainState


def look(run: common.Run) -> None:
    """Say what a look at the environment shows; `check-env` says more.

    Raises:
      ValueError: as `run.build`; an agent, torso or cell of one's own that breaks a
        contract; an environment without a legal action at the start.
    """
    agent, env = run.build()
    for finding in envs.check(env, steps=0):
        if finding.level != "note":
            print(finding, file=sys.stderr)
    networks = own_networks(run.config)
    if agents.is_own(run.agent) or networks:
        name = " ".join([common.short(run.agent), *networks])
        check_agent(name, agent, env, run.shard())
    if env.spec.masked:
        check_legal(run, env)


def own_networks(config: Any) -> list[str]:
    """The references among a config's values, `torso=torso.py:Wide`."""
    named = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return [
        f"{name}={common.short(value)}"
        for name, value in named.items()
        if isinstance(value, str) and loading.is_reference(value)
    ]


class Shards:
    """Looks whether the devices of a split run keep the same networks.

    Agents of one's own alone need it: they take gradients in ways of their own.
    """

    def __init__(self, run: common.Run, states: TrainState) -> None:
        self._agent = common.short(run.agent)
        looks = run.is_split and agents.is_own(run.agent)
        self._same = _alike(states.agent) if looks else set()

    def look(self, states: TrainState) -> None:
        """Say, once, what was the same in all shards and is no longer."""
        if self._same:
            differing = sorted(self._same - _alike(states.agent))
            self._same = set()
            if differing:
                print(
                    f"note: {self._agent}: State{differing[0]} differs between the "
                    "devices of a run; average gradients by rljax.running.parallel."
                    "mean, or it is each device's own data",
                    file=sys.stderr,
                )


def _alike(state: AgentState) -> set[str]:
    """The arrays `[S, D, ...]` that are the same in all shards, but for a replay."""
    arrays = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }
    same = jax.jit(lambda tree: {k: (x == x[:, :1]).all() for k, x in tree.items()})
    found = hosts.to_host(same(arrays))
    return {name for name in arrays if found[name] and not name.startswith(".replay")}


def check_legal(run: common.Run, env: BatchedEnv) -> None:
    """Raise where an environment leaves no legal action at the start.

    Raises:
      ValueError: names the environment and the seed.
    """

    def legal_at_first(key: jax.Array) -> jax.Array:
        _, env_key, _ = jax.random.split(key, 3)  # as `train.init` does
        obs: Masked = env.reset(parallel.fold(env_key), run.shard().num_envs)[1]
        return obs.legal

    # Not `run.map_runs`: one process of several looks.
    over_shards = jax.vmap(legal_at_first, axis_name=parallel.AXIS)
    of_seed = over_shards if run.is_split else legal_at_first
    legal = np.asarray(jax.jit(jax.vmap(of_seed))(run.keys()))
    legal = legal.reshape(run.seeds, -1, legal.shape[-1])  # [S, N, A]
    stuck = ~legal.any(axis=-1)
    if stuck.any():
        seed, place = np.argwhere(stuck)[0]
        raise ValueError(
            f"{run.env}: no action is legal in environment {place} of seed "
            f"{run.seed + seed}; a mask leaves at least one"
        )
