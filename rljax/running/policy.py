"""A trained policy on its own: what acting reads of a run, and nothing else.

Acting is the agent's `act` behind the wrappers of its environment, which normalise and
stack observations. Its program is traced once. Arrays of the train state that actions
do not depend on (optimisers, replay, targets, critics) are left out, and so is memory
that they do not depend on. That holds for every agent, also for one's own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval

from rljax.config import as_arrays, check_functions
from rljax.contracts import BatchedEnv
from rljax.envs import batched
from rljax.envs.wrappers import Wrapper, like, unmasked, with_statistics
from rljax.types import (
    Agent,
    AgentConfig,
    Discrete,
    EnvState,
    Masked,
    Memory,
    Obs,
    Spec,
    TimeStep,
    TrainState,
)

Arrays = dict[str, jax.Array]  # leaves of a tree by their path in it


class _Carried(NamedTuple):
    """Everything that acting may carry from step to step, `[N, ...]`."""

    agent: Memory
    env: EnvState  # of the wrappers
    start: jax.Array  # [N] bool, whether an episode starts


class _Unknown(NamedTuple):
    """Parts of an environment's step that a policy on its own is not told."""

    reward: jax.Array  # [N]
    action: jax.Array  # [N] or [N, *shape], the one before
    key: jax.Array  # [] typed key, of the wrappers' randomness


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Given:
    """Stands in place of the environment in its wrappers; shows given observations.

    An episode that starts is the first step of the next one, as in training.
    """

    env: BatchedEnv  # the one that this stands for
    obs: Obs  # [N, ...]
    start: jax.Array  # [N] bool
    reward: jax.Array  # [N]

    @property
    def spec(self) -> Spec:
        return self.env.spec

    @property
    def max_steps(self) -> Any:
        return self.env.max_steps

    def reset(self, key: jax.Array, num_envs: int) -> tuple[EnvState, Obs]:
        return (), self.obs

    def draw(self, key: jax.Array, length: int, num_envs: int) -> Any:
        return ()

    def step(self, noise: Any, state: EnvState, action: jax.Array) -> Any:
        timestep = TimeStep(
            obs=self.obs,
            reward=self.reward,
            terminated=self.start,
            truncated=jnp.zeros_like(self.start),
            next_obs=self.obs,
            info={},
        )
        return (), timestep

    def for_evaluation(self, state: EnvState) -> "_Given":
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class Acting:
    """A program that acts, and the names of the arrays that it needs."""

    agent: Agent
    env: BatchedEnv
    config: AgentConfig
    explore: bool  # act as in training instead of greedily
    state: TrainState  # shapes and dtypes of the run's
    spec: Spec  # of observations as they are given, and of actions
    needed: tuple[str, ...] = ()  # arrays of the train state
    carried: tuple[str, ...] = ()  # arrays of the memory
    uses_key: bool = False

    def params(self, state: TrainState) -> Arrays:
        """Pick the arrays that actions depend on.

        Args:
          state: of one run, with the shapes of `self.state`.
        """
        return {name: x for name, x in named(state).items() if name in self.needed}

    def start(self, params: Arrays, num_envs: int) -> Arrays:
        """Make the memory `[N, ...]` of episodes that start; empty if there is none.

        Args:
          params: as returned by `params`.
          num_envs: N.
        """
        whole = self._start(_filled(self.state, params), num_envs)
        return {name: x for name, x in named(whole).items() if name in self.carried}

    def __call__(
        self, params: Arrays, memory: Arrays, obs: Obs, key: jax.Array
    ) -> tuple[Any, Arrays]:
        """Choose an action for each observation.

        Args:
          params: as returned by `params`.
          memory: as returned by `start`, or by the call before.
          obs: `[N, ...]` as `self.spec` describes them.
          key: `[]` typed key, consumed here.

        Returns:
          Actions `[N, ...]` in the environment's own form, and the next memory.
        """
        state = _filled(self.state, params)
        num_envs = jax.tree.leaves(obs)[0].shape[0]
        whole = _replaced(self._start(state, num_envs), memory)
        unknown = self._unknown(num_envs)
        action, whole = self._act(state, whole, obs, key, unknown)
        return action, {k: x for k, x in named(whole).items() if k in self.carried}

    def draws(self, params: Arrays) -> bool:
        """Tell whether actions need a key.

        With a chance of random actions of 0, `epsilon_eval`, programs read the key in
        vain. A trial then tells whether something else draws.

        Args:
          params: as returned by `params`.
        """
        if not self.uses_key or self.explore:
            return self.uses_key
        if getattr(self.config, "epsilon_eval", None) != 0.0:
            return True
        num_envs, keys = 32, jax.random.split(jax.random.key(0), 8)
        obs = _filled(example(self.spec, num_envs), {})

        @jax.jit
        def differ(params: Arrays) -> Any:
            memory = self.start(params, num_envs)
            action = jax.vmap(lambda key: self(params, memory, obs, key)[0])(keys)
            return jax.tree.map(lambda x: jnp.any(x != x[0]), action)

        return any(map(bool, jax.tree.leaves(differ(params))))

    def _start(self, state: TrainState, num_envs: Any) -> _Carried:
        start = jnp.ones(num_envs, bool)
        obs = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), example(self.spec, num_envs)
        )
        reward = jnp.zeros(num_envs, jnp.float32)
        env = self._around(state, obs, start, reward)
        return _Carried(
            agent=self.agent.memory(self.config, num_envs),
            env=env.reset(jax.random.key(0), num_envs)[0],
            start=start,
        )

    def _unknown(self, num_envs: Any) -> _Unknown:
        return _Unknown(
            reward=jnp.zeros(num_envs, jnp.float32),
            action=self.env.spec.no_action(num_envs),
            key=jax.random.key(0),
        )

    def _act(
        self,
        state: TrainState,
        whole: _Carried,
        obs: Obs,
        key: jax.Array,
        unknown: _Unknown,
    ) -> tuple[Any, _Carried]:
        env = self._around(state, obs, whole.start, unknown.reward)
        draws = env.draw(unknown.key, 1, whole.start.shape[0])
        noise = jax.tree.map(lambda x: x[0], draws)
        env_state, timestep = env.step(noise, whole.env, unknown.action)
        action, memory, _ = self.agent.act(
            self.config,
            state.agent,
            whole.agent,
            timestep.obs,
            key,
            explore=self.explore,
        )
        bare = innermost(self.env)
        if isinstance(bare, batched.Env):
            action = bare._regular_action(action)
        going_on = jnp.zeros_like(whole.start)
        return action, _Carried(agent=memory, env=env_state, start=going_on)

    def _around(
        self, state: TrainState, obs: Obs, start: jax.Array, reward: jax.Array
    ) -> BatchedEnv:
        """The wrappers, as in evaluation, around given observations."""

        def given(env: BatchedEnv) -> _Given:
            return _Given(env=env, obs=seen(env, obs), start=start, reward=reward)

        return _rewrapped(self.env.for_evaluation(state.env), given)


def find(
    agent: Agent,
    env: BatchedEnv,
    config: AgentConfig,
    state: TrainState,
    *,
    explore: bool = False,
) -> Acting:
    """Find what acting needs, by tracing it.

    Args:
      agent: its `memory` and `act` are used.
      env: batched environment, as in training.
      config: the agent's config.
      state: a train state of one run, or its shapes by `jax.eval_shape`.
      explore: act as in training instead of greedily.

    Raises:
      ValueError: the wrappers of the environment need more than its observations.

    Example:
      >>> from rljax import agents, envs
      >>> from rljax.running import train
      >>> env, config = envs.make("CartPole-v1"), agents.get("ppo").Config()
      >>> agent = agents.make("ppo", env.spec)
      >>> init = lambda key: train.init(agent, env, config, key)
      >>> acting = find(agent, env, config, jax.eval_shape(init, jax.random.key(0)))
      >>> all(name.startswith(".agent.actor") for name in acting.needed)
      True
      >>> acting.carried, acting.uses_key
      ((), False)
    """
    check_functions(agent, "memory", "act")
    env = with_statistics(env)
    acting = Acting(
        agent=agent,
        env=env,
        config=as_arrays(config),
        explore=explore,
        state=jax.eval_shape(lambda: state),
        spec=given_spec(env),
    )
    reads = _reads(acting)
    outside = [name.removeprefix(".") for name in reads.unknown]
    if outside:
        raise ValueError(
            f"{type(env).__name__}: observations depend on the {', '.join(outside)} "
            "of the environment's steps, which a policy on its own does not know"
        )
    acting = dataclasses.replace(
        acting, needed=reads.state, carried=reads.carried, uses_key=reads.key
    )
    shapes = jax.eval_shape(lambda params: acting.start(params, 3), reads.params)
    for name, x in shapes.items():
        if x.shape[:1] != (3,):
            raise ValueError(f"memory{name}: has no axis of environments: {x.shape}")
    return acting


class _Reads(NamedTuple):
    """Names of inputs that actions depend on."""

    state: tuple[str, ...]
    carried: tuple[str, ...]
    key: bool
    unknown: tuple[str, ...]
    params: dict[str, jax.ShapeDtypeStruct]


def _reads(acting: Acting) -> _Reads:
    """Trace one step and see which inputs its actions depend on, now or later."""
    num_envs = 2
    key = jax.eval_shape(lambda: jax.random.key(0))
    whole = jax.eval_shape(lambda x: acting._start(x, num_envs), acting.state)
    unknown = jax.eval_shape(lambda: acting._unknown(num_envs))
    obs = example(acting.spec, num_envs)
    try:
        traced, shapes = jax.make_jaxpr(acting._act, return_shape=True)(
            acting.state, whole, obs, key, unknown
        )
    except Exception as error:
        text = (str(error).splitlines() or [""])[0]
        what = f"{type(error).__name__}: {text}"
        raise ValueError(f"acts only inside its environment: {what}") from error
    state_names, names = list(named(acting.state)), list(named(whole))
    first, last = len(state_names), len(state_names) + len(names)
    actions = len(jax.tree.leaves(shapes[0]))
    carried = [False] * len(names)
    while True:  # memory that only other memory depends on comes in with that
        outputs = [True] * actions + carried
        _, used = partial_eval.dce_jaxpr(traced.jaxpr, outputs)
        more = [x or y for x, y in zip(carried, used[first:last], strict=True)]
        if more == carried:
            break
        carried = more
    outside = used[last + len(jax.tree.leaves(obs)) :]
    state = named(acting.state)
    needed = tuple(x for x, use in zip(state, used, strict=False) if use)
    return _Reads(
        state=needed,
        carried=tuple(x for x, use in zip(names, carried, strict=True) if use),
        key=outside[0],
        unknown=tuple(
            x for x, use in zip(named(unknown), outside[1:], strict=True) if use
        ),
        params={name: state[name] for name in needed},
    )


def named(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their path in it.

    Example:
      >>> named({"actor": [3.0, 4.0]})
      {"['actor'][0]": 3.0, "['actor'][1]": 4.0}
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _filled(shapes: Any, arrays: Arrays) -> Any:
    """A tree with these arrays, and zeros where there are none."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return _replaced(zeros, arrays)


def _replaced(tree: Any, arrays: Arrays) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: arrays.get(jax.tree_util.keystr(path), leaf), tree
    )


def innermost(env: BatchedEnv) -> BatchedEnv:
    """Return the environment inside its wrappers."""
    while isinstance(env, Wrapper):
        env = env.env
    return env


def _rewrapped(env: BatchedEnv, given: Callable[[BatchedEnv], BatchedEnv]) -> Any:
    """The same wrappers around another environment, made from the one inside."""
    if not isinstance(env, Wrapper):
        return given(env)
    inner = _rewrapped(env.env, given)
    return dataclasses.replace(env, env=inner)  # pyright: ignore


def given_spec(env: BatchedEnv) -> Spec:
    """Describe observations before anything is made of them, and actions."""
    bare = innermost(env)
    if isinstance(bare, batched.Env):
        return bare.spec._replace(obs=bare.contract.obs)
    return bare.spec


def seen(env: BatchedEnv, obs: Obs) -> Obs:
    """Make of an environment's own observations `[N, ...]` those that agents see."""
    if not isinstance(env, batched.Env):
        return obs
    leaves, forms = env.fixed_spec.obs, env.fixed_spec.obs.tree(env.obs_format)

    def regular(one: Obs) -> Obs:
        return leaves.map(batched._regular, one, forms)

    return like(obs, jax.vmap(regular)(unmasked(obs)))


def example(spec: Spec, *batch: Any) -> Any:
    """Return shapes and dtypes of observations `[*batch, ...]`, with their mask.

    Example:
      >>> from rljax.types import ObsSpec
      >>> example(Spec(obs=ObsSpec.array((4,)), action=Discrete(2)), 3).shape
      (3, 4)
    """

    def shape(*shape: int, dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((*batch, *shape), jnp.dtype(dtype))

    obs = spec.obs.map(lambda leaf: shape(*leaf.shape, dtype=leaf.dtype))
    if not (isinstance(spec.action, Discrete) and spec.action.masked):
        return obs
    return Masked(obs=obs, legal=shape(spec.action.num_actions, dtype=bool))
