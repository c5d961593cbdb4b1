"""Trained policies as values and as files: `rljax export` writes, `load_policy` reads.

A file holds the arrays that the policy needs and a description in JSON; reading it runs
no code from it. A program of `export` needs jax alone.
"""

import dataclasses
import functools
import io
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.typing import ArrayLike

import rljax
from rljax import agents
from rljax.commands import folders
from rljax.commands.common import Run, short
from rljax.commands.errors import one_line
from rljax.running import policy, train
from rljax.types import AgentConfig, Obs, Spec, TrainState

FORMAT = 1  # of files
POLICY_FILE, PROGRAM_FILE = "policy.npz", "policy.jax"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_ABOUT = "about"  # the array of the file that holds the description, as bytes
_PARAM, _START = "params/", "init/"  # before the names of the others
_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "gymnax")
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError)

Memory = dict[str, jax.Array]  # what a policy carries from step to step


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A trained policy: `policy(obs)`; `load_policy` reads one.

    It may be called inside jitted functions, too.
    """

    run: Run  # of its one seed
    step: int  # environment steps of the training
    acting: policy.Acting
    params: policy.Arrays
    draws: bool  # needs a key

    @property
    def agent(self) -> str:
        """The agent's name, or its reference."""
        return self.run.agent

    @property
    def env(self) -> str:
        """The environment's name, or its reference."""
        return self.run.env

    @property
    def config(self) -> AgentConfig:
        """The agent's config."""
        return self.run.config

    @property
    def spec(self) -> Spec:
        """Observations as the environment gives them, and actions."""
        return self.acting.spec

    @property
    def explore(self) -> bool:
        """Whether it acts as in training, not greedily."""
        return self.acting.explore

    @property
    def remembers(self) -> bool:
        """Whether it carries a memory from step to step."""
        return bool(self.acting.carried)

    def init(self, num_envs: int | None = None) -> Memory:
        """Make the memory at the start of an episode.

        Args:
          num_envs: of so many episodes side by side; of one without that axis if None.

        Returns:
          Arrays by name, `[num_envs, ...]`; none where the policy remembers nothing.

        Raises:
          ValueError: `num_envs` is below 1.
        """
        if num_envs is not None and num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: must be >= 1")
        memory = self._start(self.params, num_envs or 1)
        return memory if num_envs else _first(memory)

    def __call__(
        self, obs: Obs, memory: Memory | None = None, key: jax.Array | None = None
    ) -> Any:
        """Choose an action for an observation, or one for each of a batch.

        Args:
          obs: as the environment gives it, in the form of `spec`: one, or `[N, ...]`.
            Where actions are masked, `rljax.types.Masked` with the mask beside it.
          memory: as returned by `init`, or by the call before; if it remembers.
          key: `[]` typed key, consumed here; if it draws.

        Returns:
          The action, or `[N, ...]` actions, in the environment's own form: numbered as
          it numbers them, within its bounds. A policy that remembers returns the
          action and the next memory.

        Raises:
          ValueError: names what has another shape, dtype or structure than `spec` says,
            or is missing.
        """
        obs, batch = checked(self.spec, obs)
        memory = self._checked_memory(memory, batch)
        key = self._checked_key(key)
        act = self._act if batch is not None else self._act_on_one
        action, after = act(self.params, memory, obs, key)
        return (action, after) if self.remembers else action

    @functools.cached_property
    def _act(self) -> Any:
        return jax.jit(self.acting)

    @functools.cached_property
    def _act_on_one(self) -> Any:
        def act(params: Any, memory: Memory, obs: Obs, key: jax.Array) -> Any:
            row = jax.tree.map(lambda x: x[None], (memory, obs))
            return _first(self.acting(params, row[0], row[1], key))

        return jax.jit(act)

    @functools.cached_property
    def _start(self) -> Any:
        return jax.jit(self.acting.start, static_argnums=1)

    def _checked_memory(self, memory: Memory | None, batch: int | None) -> Memory:
        if not self.remembers:
            if memory:
                raise ValueError(f"memory: the policy of {self.agent} has none")
            return {}
        again = f"must be as returned by init({batch or ''}) or by the call before"
        if memory is None:
            raise ValueError(f"memory: the policy of {self.agent} has one; {again}")
        before = () if batch is None else (batch,)
        expected = {
            name: ((*before, *x.shape), x.dtype) for name, x in self._row.items()
        }
        if expected != {name: (x.shape, x.dtype) for name, x in memory.items()}:
            raise ValueError(f"memory: {again}")
        return memory

    @functools.cached_property
    def _row(self) -> dict[str, jax.ShapeDtypeStruct]:
        return jax.eval_shape(self.init)

    @functools.cached_property
    def _no_key(self) -> jax.Array:
        with jax.ensure_compile_time_eval():  # not an array of the trace around
            return jax.random.key(0)  # programs take one in any case

    def _checked_key(self, key: jax.Array | None) -> jax.Array:
        if not self.draws:
            return self._no_key
        if key is None:
            raise ValueError(f"key: the policy of {self.agent} draws, so it needs one")
        if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.shape:
            raise ValueError("key: must be one typed key, as by jax.random.key(0)")
        return key


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[0], tree)


def checked(spec: Spec, obs: Obs) -> tuple[Obs, int | None]:
    """Return observations as arrays in the form of a spec, and the size of their batch.

    Args:
      spec: as returned by `policy.given_spec`.
      obs: one observation or a batch; trees as in the spec, or as by `plain`.

    Raises:
      ValueError: names what is of another shape, dtype or structure.

    Example:
      >>> from rljax.types import Discrete, ObsSpec
      >>> spec = Spec(obs=ObsSpec.array((2,)), action=Discrete(3))
      >>> checked(spec, np.zeros((5, 2), np.float32))[1]
      5
    """
    example = policy.example(spec)
    structure = jax.tree.structure(example)
    if spec.obs.lone and not spec.masked:
        leaves = [obs]
    elif jax.tree.structure(obs) == structure:
        leaves = jax.tree.leaves(obs)
    elif jax.tree.structure(obs) == jax.tree.structure(plain(example)):
        leaves = jax.tree.leaves(unplain(example, obs))
    else:
        raise ValueError(
            f"obs: its structure is {jax.tree.structure(obs)}, expected {structure}"
        )
    wanted = policy.named(example)
    arrays = [
        _checked_leaf(f"obs{name}", leaf, like)
        for (name, like), leaf in zip(wanted.items(), leaves, strict=True)
    ]
    batches = {
        x.shape[: x.ndim - len(like.shape)]
        for x, like in zip(arrays, wanted.values(), strict=True)
    }
    if len(batches) > 1:
        raise ValueError(f"obs: arrays have batches of {sorted(batches)}, not of one")
    (batch,) = batches
    return jax.tree.unflatten(structure, arrays), batch[0] if batch else None


def _checked_leaf(
    name: str, leaf: ArrayLike, like: jax.ShapeDtypeStruct
) -> jax.Array | np.ndarray:
    """An array of a dtype that holds what the spec's holds."""
    try:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    except ValueError as error:
        raise ValueError(f"{name}: no array: {one_line(error)}") from error
    # Numbers without a dtype, say lists, take the one that is asked for.
    rule = "safe" if hasattr(leaf, "dtype") else "same_kind"
    if array.dtype != like.dtype and not np.can_cast(array.dtype, like.dtype, rule):
        raise ValueError(f"{name}: dtype {array.dtype}, expected {like.dtype}")
    shape = array.shape[max(array.ndim - len(like.shape), 0) :]
    if shape != like.shape or array.ndim > len(like.shape) + 1:
        one = ", ".join(map(str, like.shape))
        raise ValueError(
            f"{name}: shape {array.shape}, expected ({one}) or a batch (N, {one})"
        )
    return array.astype(like.dtype)


def plain(tree: Any) -> Any:
    """Return a tree of dicts, lists and tuples alone; a named tuple becomes a dict.

    Example:
      >>> from rljax.types import Masked
      >>> plain(Masked(obs=1, legal=2))
      {'obs': 1, 'legal': 2}
    """
    inner = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    if jax.tree_util.all_leaves([tree]) or tree is None:
        return tree
    children = [plain(child) for _, child in inner[0]]
    if type(tree) in (list, tuple):
        return type(tree)(children)
    names = [jax.tree_util.keystr(path, simple=True) for path, _ in inner[0]]
    return dict(zip(names, children, strict=True))


def unplain(like: Any, tree: Any) -> Any:
    """Undo `plain` for a tree of the structure of `like`."""
    leaves, structure = jax.tree.flatten(like)
    order = jax.tree.leaves(plain(structure.unflatten(range(len(leaves)))))
    placed = dict(zip(order, jax.tree.leaves(tree), strict=True))
    return structure.unflatten([placed[i] for i in range(len(leaves))])


def from_state(
    run: Run, state: TrainState, *, step: int, explore: bool = False
) -> Policy:
    """Make the policy of one seed of a run.

    Args:
      run: of this seed alone, on one device: see `alone`.
      state: its train state.
      step: environment steps that it has trained.
      explore: act as in training instead of greedily.

    Raises:
      ValueError: the policy cannot act outside of its environment.
    """
    agent, env = run.build()
    acting = policy.find(agent, env, run.config, state, explore=explore)
    params = acting.params(state)
    return Policy(
        run=run, step=step, acting=acting, params=params, draws=acting.draws(params)
    )


def alone(run: Run, seed: int) -> Run:
    """Return the run of one seed, or of a shard of it, on one device."""
    return dataclasses.replace(
        run, seed=seed, seeds=1, config=run.shard(), data_parallel=1
    )


def save(trained: Policy, path: Path) -> None:
    """Write a policy to a file, whole or not at all."""
    about = {
        "format": FORMAT,
        "run": trained.run.to_json(),
        "sources": trained.run.sources(),
        "step": trained.step,
        "explore": trained.explore,
        "draws": trained.draws,
        "spec": _spec_in_words(trained.spec),
        "params": _shapes(trained.params),
        "versions": _versions(),
    }
    arrays = {_ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)}
    arrays |= {_PARAM + name: _to_numpy(x) for name, x in trained.params.items()}
    start = trained.init()
    arrays |= {_START + name: _to_numpy(x) for name, x in start.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    folders.write_bytes(path, buffer.getvalue())


def load_policy(path: str | os.PathLike) -> Policy:
    """Read a policy that `rljax export` wrote.

    The agent and the environment are built anew, by their names or from their files; a
    warning names a file that has changed since.

    Args:
      path: the folder of the export, or the file `policy.npz` in it.

    Returns:
      The policy, to be called with observations.

    Raises:
      ValueError: there is no such file, it is damaged, something else, or of a later
        version; its agent or environment cannot be built, or is another now.

    Example:
      >>> load_policy("/nowhere")
      Traceback (most recent call last):
        ...
      ValueError: /nowhere: no exported policy here
    """
    file = Path(path) / POLICY_FILE if Path(path).is_dir() else Path(path)
    about, arrays = _read(file)
    try:
        agents.get(about["run"]["agent"])
    except (KeyError, TypeError) as error:
        raise _damaged(file, error) from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    try:
        run = Run.from_json(about["run"])
        then, shapes = about["spec"], about["params"]
        step, explore, draws = (about[x] for x in ("step", "explore", "draws"))
        sources = dict(about["sources"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error
    for place, digest in run.sources().items():
        if sources.get(place, digest) != digest:
            text = f"{place} has changed since the policy was exported"
            warnings.warn(text, stacklevel=2)
    acting = _acting(run, explore)
    if then != (now := _spec_in_words(acting.spec)):
        raise ValueError(f"{file}: {run.env} is another now: {now}, it was {then}")
    leaves = policy.named(acting.state)
    likes = {name: leaves[name] for name in acting.needed}
    _check_arrays(file, run.agent, shapes=shapes, likes=likes, arrays=arrays)
    params = {
        name: _to_array(arrays[_PARAM + name], like) for name, like in likes.items()
    }
    return Policy(run=run, step=step, acting=acting, params=params, draws=draws)


def _acting(run: Run, explore: bool) -> policy.Acting:
    """The program that acts in a run, from its description alone."""
    agent, env = run.build()
    state = jax.eval_shape(
        lambda key: train.init(agent, env, run.config, key), jax.random.key(0)
    )
    return policy.find(agent, env, run.config, state, explore=explore)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description in a file, and its arrays; nothing is unpickled."""
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as saved:
            about = json.loads(saved[_ABOUT].tobytes())
            arrays = {name: saved[name] for name in saved.files if name != _ABOUT}
        version = int(about["format"])
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no exported policy here") from error
    except _DAMAGE as error:
        raise _damaged(file, error) from error
    if version > FORMAT:
        raise ValueError(
            f"{file}: has format {version} of a later version of rljax; this one, "
            f"{rljax.__version__}, reads up to {FORMAT}"
        )
    return about, arrays


def _damaged(file: Path, error: Exception) -> ValueError:
    what = f"{type(error).__name__}: {one_line(error)}"
    return ValueError(f"{file}: damaged, or no exported policy: {what}")


def _check_arrays(
    file: Path,
    agent: str,
    *,
    shapes: dict[str, Any],
    likes: dict[str, jax.ShapeDtypeStruct],
    arrays: dict[str, np.ndarray],
) -> None:
    """Raise unless the arrays are those that the agent's program reads."""
    expected = _shapes(likes)
    for name in sorted({*expected, *shapes}):
        then, now = shapes.get(name), expected.get(name)
        if then != now:
            raise ValueError(
                f"{file}: the agent {agent} reads other arrays now: {name} is {now}, "
                f"it was {then}"
            )
        data, like = arrays.get(_PARAM + name), likes[name]
        if data is None or data.shape[: like.ndim] != like.shape:
            raise ValueError(f"{file}: damaged: {name} is not the array described")


def _shapes(arrays: dict[str, Any]) -> dict[str, str]:
    """Dtype and shape of each array, in words."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def _spec_in_words(spec: Spec) -> dict[str, str]:
    example = policy.named(policy.example(spec))
    return {"action": str(spec.action)} | {
        f"obs{k}": str(x) for k, x in example.items()
    }


def _versions() -> dict[str, str]:
    """Of this package and those that its programs depend on."""
    return {"rljax": rljax.__version__} | {x: metadata.version(x) for x in _PACKAGES}


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _to_numpy(x: jax.Array) -> np.ndarray:
    """An array that numpy's format knows: keys and short floats as their bits."""
    array = np.asarray(jax.random.key_data(x) if _is_key(x) else x)
    return array if array.dtype.kind in "biufc" else array.view(f"u{array.itemsize}")


def _to_array(data: np.ndarray, like: Any) -> jax.Array:
    """Undo `_to_numpy`."""
    if not _is_key(like):
        return jnp.asarray(data.view(like.dtype))
    kinds = []
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(jnp.asarray(data), impl=kinds[0])


class FixedBatch(ValueError):
    """An agent whose program can be exported for batches of one size alone."""


def exported(
    trained: Policy,
    *,
    platforms: Sequence[str] = ("cpu", "cuda"),
    batch: int | None = None,
) -> bytes:
    """Return a policy's program for a process that has jax, but not this package.

    The program takes observations `[N, ...]` as `plain` trees; by the keyword `memory`
    the memory, if the policy has one; by the keyword `key` the data of a key, uint32
    `[2]`, if it draws. It returns actions, and after them the next memory, if any.

    Args:
      trained: the policy.
      platforms: of `PLATFORMS`.
      batch: N; any size if None.

    Returns:
      Bytes for `jax.export.deserialize`.

    Raises:
      FixedBatch: `batch` is None, and the agent asks for the size.
      ValueError: the program cannot be exported.
    """
    acting, like = trained.acting, policy.example(trained.spec)
    number = jax_export.symbolic_shape("n")[0] if batch is None else batch
    args: dict[str, Any] = {}
    if trained.remembers:
        args["memory"] = {
            name: jax.ShapeDtypeStruct((number, *x.shape), x.dtype)
            for name, x in trained.init().items()
        }
    if trained.draws:
        args["key"] = jax.ShapeDtypeStruct((2,), jnp.uint32)

    def act(obs: Any, memory: Memory | None = None, key: Any = None) -> Any:
        data = jnp.zeros(2, jnp.uint32) if key is None else key
        typed = jax.random.wrap_key_data(data, impl="threefry2x32")
        seen = unplain(like, obs)
        action, after = acting(trained.params, memory or {}, seen, typed)
        return (action, after) if trained.remembers else action

    obs = plain(policy.example(trained.spec, number))
    export = jax_export.export(jax.jit(act), platforms=list(platforms))
    try:
        return bytes(export(obs, **args).serialize())
    except Exception as error:  # of jax, flax or the agent
        what = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        name = short(trained.agent)
        if batch is None:
            text = f"agent {name}: not for batches of any size: {what}"
            raise FixedBatch(text) from error
        raise ValueError(f"agent {name}: cannot be exported: {what}") from error
