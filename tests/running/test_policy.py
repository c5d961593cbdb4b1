"""Trained policies on their own: they act as in evaluation, in any process."""

import dataclasses
import json
import subprocess
import sys
import warnings
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import rljax
from rljax import agents, envs, policies, prng
from rljax.commands.common import Run
from rljax.envs.wrappers import Wrapper
from rljax.running import policy, train
from rljax.running.evaluate import evaluate
from rljax.types import Masked

EPISODES, STEPS = 4, 12
OWN_ENVS = '''
import jax, jax.numpy as jnp
from gymnax.environments.environment import Environment, EnvParams, EnvState
from gymnax.environments import spaces

class Corner(Environment):
    """Dicts of two arrays; of four actions those up to the time's rest are legal."""

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=12)

    def action_space(self, params):
        return spaces.Discrete(4)

    def action_mask(self, state, params):
        return jnp.arange(4) <= state.time % 3

    def observe(self, key, state):
        place = jax.random.normal(key, (3,))
        return {"place": place, "level": jnp.uint8(state.time)}

    def reset_env(self, key, params):
        state = EnvState(time=jnp.zeros((), jnp.int32))
        return self.observe(key, state), state

    def step_env(self, key, state, action, params):
        legal = self.action_mask(state, params)[action]
        reward = jnp.where(legal, action + 0.25, -100.0)
        state = EnvState(time=state.time + 1)
        return self.observe(key, state), state, reward, jnp.bool(False), {}

class FromFive:
    n, start, shape, dtype = 2, 5, (), jnp.int32

class Numbered(Environment):
    """Actions 5 and 6."""

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=12)

    def action_space(self, params):
        return FromFive()

    def reset_env(self, key, params):
        return jnp.zeros(3), EnvState(time=jnp.zeros((), jnp.int32))

    def step_env(self, key, state, action, params):
        state = EnvState(time=state.time + 1)
        return jnp.zeros(3), state, 1.0 * action, jnp.bool(False), {}
'''
OWN_AGENT = """
from rljax.agents import a2c

Config = a2c.Config

def make(spec):
    agent = a2c.make(spec)

    def act(config, state, memory, obs, key, explore):
        assert len(obs) > 0  # asks for the size
        return agent.act(config, state, memory, obs, key, explore=explore)

    return agent._replace(act=act)
"""
SHORT = {"max_steps_in_episode": STEPS}
FRAMES = SHORT | {"normalize_obs": True, "stack_frames": 2, "time_aware": True}


class Case(NamedTuple):
    """An agent in an environment; `{}` is the folder of the test's own files."""

    agent: str
    env: str
    env_params: dict[str, Any]
    explore: bool = False
    meta: tuple[str, ...] = ()


CASES = {
    "normalized": Case("ppo", "CartPole-v1", SHORT | {"normalize_obs": True}),
    "q-learning": Case("dqn", "CartPole-v1", SHORT),
    "continuous": Case("sac", "Pendulum-v1", FRAMES),
    "recurrent": Case("ppo_rnn", "CartPole-v1", SHORT),
    "exploring": Case("sac", "Pendulum-v1", SHORT, explore=True),
    "masked dicts": Case("ppo", "{}/own.py:Corner", {"normalize_obs": True}),
    "tuned": Case("a2c", "CartPole-v1", SHORT, meta=("gamma",)),
}


def run_of(case, folder):
    config = agents.get(case.agent).Config()
    small = dict(hidden_sizes=(8,), memory_size=8, num_envs=4, rollout_length=8)
    small |= dict(sequence_length=8)
    small |= dict(capacity=64, warmup_steps=16, batch_size=16)
    fields = {field.name for field in dataclasses.fields(config)}
    config = dataclasses.replace(
        config, **{k: v for k, v in small.items() if k in fields}
    )
    return Run(
        agent=case.agent,
        env=case.env.replace("{}", str(folder)),
        env_params=case.env_params,
        seeds=1,
        seed=0,
        rows=1,
        config=config,
        meta=case.meta,
    )


def start_of(run):
    agent, env = run.build()
    init = jax.jit(lambda key: train.init(agent, env, run.config, key))
    return init(jax.random.key(0))


def shaken(state):
    """A state with other floats: its policy depends on what it sees."""
    rng = np.random.default_rng(0)

    def shake(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x + rng.uniform(0.1, 1.0, x.shape).astype(x.dtype)

    def signed(x):
        if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim < 2:
            return x
        return x + rng.normal(size=x.shape).astype(x.dtype)

    return state._replace(
        agent=jax.tree.map(signed, state.agent), env=jax.tree.map(shake, state.env)
    )


class Made(NamedTuple):
    """A policy, and the run that it is of."""

    run: Run
    state: Any
    policy: policies.Policy
    folder: Any  # holds policy.npz and policy.jax


def make(run, folder, *, explore=False):
    state = shaken(start_of(run))
    trained = policies.from_state(run, state, step=320, explore=explore)
    folder.mkdir()
    policies.save(trained, folder / "policy.npz")
    content = policies.exported(trained, platforms=("cpu", "cuda"))
    (folder / "policy.jax").write_bytes(content)
    return Made(run=run, state=state, policy=trained, folder=folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    (folder / "own.py").write_text(OWN_ENVS)
    (folder / "own_agent.py").write_text(OWN_AGENT)
    return folder


@pytest.fixture(scope="module")
def made(files):
    """Make a policy by the name of its case, once."""
    found = {}

    def get(name):
        if name not in found:
            case = CASES[name]
            folder = files / name.replace(" ", "-")
            found[name] = make(run_of(case, files), folder, explore=case.explore)
        return found[name]

    return get


def play(act, memory, env, key):
    """Play as `evaluate` does, with the environment alone: returns, lengths, actions.

    `act(obs, memory, key)` returns actions and the memory.
    """
    reset_key, key = jax.random.split(prng.fusible(key))
    env_state, obs = env.reset(reset_key, EPISODES)

    def step(carry, _):
        env_state, obs, memory, key, running = carry
        key, act_key, env_key = jax.random.split(key, 3)
        action, memory = act(obs, memory, prng.plain(act_key))
        noise = jax.tree.map(lambda x: x[0], env.draw(env_key, 1, EPISODES))
        env_state, timestep = env.step(noise, env_state, action)
        earned = timestep.reward * running, running, action
        running = running & ~(timestep.terminated | timestep.truncated)
        return (env_state, timestep.obs, memory, key, running), earned

    running = jnp.ones(EPISODES, bool)
    start = (env_state, obs, memory, key, running)
    _, (rewards, ran, actions) = jax.lax.scan(step, start, length=STEPS)
    return rewards.sum(axis=0), ran.sum(axis=0), actions


def with_package(trained):
    """The policy of `load_policy` as a function for `play`."""

    def act(obs, memory, key):
        if trained.remembers:
            return trained(obs, memory, key)
        return trained(obs, key=key), memory

    return act


def alone(path, trained):
    """The exported program as a function for `play`."""
    program = export.deserialize(bytearray(path.read_bytes()))

    def act(obs, memory, key):
        given = {"memory": memory} if trained.remembers else {}
        if trained.draws:
            given["key"] = jax.random.key_data(key)
        found = program.call(policies.plain(obs), **given)
        return found if trained.remembers else (found, memory)

    return act


@pytest.mark.parametrize("name", CASES)
def test_exported_policies_play_as_evaluation_does(made, name):
    run, state, _, folder = made(name)
    trained = rljax.load_policy(folder)
    agent, env = run.build()
    bare, key = policy.innermost(env), jax.random.key(7)
    explore = CASES[name].explore
    other = alone(folder / "policy.jax", trained)

    @jax.jit
    def all_three(state, key):
        expected = evaluate(
            agent, env, run.config, state, key, EPISODES, explore=explore
        )
        memory = trained.init(EPISODES)
        first = play(with_package(trained), memory, bare, key)
        return expected, first, play(other, memory, bare, key)

    expected, first, second = jax.device_get(all_three(state, key))
    assert expected.lengths.max() <= STEPS
    # Somebody acts: returns or actions differ within the batch.
    assert np.ptp(first[2]) > 0
    for returns, lengths, actions in (first, second):
        np.testing.assert_array_equal(lengths, expected.lengths)
        np.testing.assert_allclose(returns, expected.returns, rtol=1e-5)
        np.testing.assert_allclose(actions, first[2], rtol=1e-4, atol=1e-5)
    if "masked" in name:
        assert expected.returns.min() > 0


ELSEWHERE = """
import json, pathlib, sys
for name in ("rljax", "flax", "gymnax", "optax", "distrax", "orbax"):
    sys.modules[name] = None  # an import fails
import numpy as np
from jax import export

for folder in map(pathlib.Path, sys.argv[1:]):
    program = export.deserialize(bytearray((folder / "policy.jax").read_bytes()))
    asked = json.loads((folder / "asked.json").read_text())
    obs = {k: np.array(x["data"], x["dtype"]) for k, x in asked["obs"].items()}
    rows = len(next(iter(obs.values())))
    with np.load(folder / "policy.npz", allow_pickle=False) as saved:
        start = {
            name.removeprefix("init/"): np.repeat(saved[name][None], rows, axis=0)
            for name in saved.files
            if name.startswith("init/")
        }
    given = {"memory": start} if start else {}
    if asked["key"]:
        given["key"] = np.array(asked["key"], np.uint32)
    if list(obs) == [""]:
        obs = obs[""]
    elif "legal" in obs:
        legal = obs.pop("legal")
        obs = {"obs": obs, "legal": legal}
    first = second = program.call(obs, **given)
    if start:
        first, given["memory"] = first
        second, _ = program.call(obs, **given)
    kept = given.get("memory", {})
    np.savez(folder / "answer.npz", first=first, second=second, **kept)
"""


def test_a_process_with_jax_alone_acts_the_same(made, files):
    rng, names = np.random.default_rng(1), ("recurrent", "exploring", "masked dicts")
    expected = {}
    for name in names:
        trained, folder = made(name).policy, made(name).folder
        key = jax.random.key(5)
        example = policy.example(trained.spec, 6)
        obs = jax.tree.map(
            lambda x: rng.uniform(0, 3, x.shape).astype(x.dtype), example
        )
        memory = trained.init(6) if trained.remembers else None
        first = second = trained(obs, memory, key)
        kept = {}
        if trained.remembers:
            first, kept = first
            second, _ = trained(obs, kept, key)
        expected[name] = {"first": first, "second": second} | kept
        flat = {"": obs}
        if isinstance(obs, Masked):
            flat = obs.obs | {"legal": obs.legal}
        asked = {
            "obs": {
                k: {"data": x.tolist(), "dtype": str(x.dtype)} for k, x in flat.items()
            },
            "key": jax.random.key_data(key).tolist() if trained.draws else None,
        }
        (folder / "asked.json").write_text(json.dumps(asked))
    folders = [str(made(name).folder) for name in names]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *folders], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in names:
        with np.load(made(name).folder / "answer.npz") as answer:
            assert set(answer) == set(expected[name])
            for key, wanted in expected[name].items():
                np.testing.assert_allclose(answer[key], wanted, rtol=1e-4, atol=1e-5)
    assert len(expected["recurrent"]) == 4 and np.ptp(expected["recurrent"]["first"])


def sizes(trained):
    return sum(x.size for x in trained.params.values())


def test_a_file_holds_what_acting_reads_and_no_more(made):
    actor = 4 * 8 + 8 + 8 * 2 + 2
    assert sizes(made("normalized").policy) == actor + 4 + 4  # mean, variance
    assert sizes(made("q-learning").policy) == actor  # no target, no replay
    cells = 4 * 8 * (8 + 8) + 4 * 8  # of an LSTM
    assert sizes(made("recurrent").policy) == 4 * 8 + 8 + cells + 8 * 2 + 2
    assert (made("normalized").folder / "policy.npz").stat().st_size < 8000
    # Greedy SAC has no noise to remember; two frames and the time are remembered.
    assert not made("normalized").policy.remembers
    shapes = {x.shape for x in made("continuous").policy.init(5).values()}
    assert shapes == {(5, 6), (5,)}
    assert [x.shape for x in made("exploring").policy.init().values()] == [(1,)]
    draws = {name: made(name).policy.draws for name in CASES}
    assert draws == dict.fromkeys(CASES, False) | {"exploring": True}


def test_arrays_come_back_bit_for_bit(made):
    trained = made("tuned").policy
    again = rljax.load_policy(made("tuned").folder / "policy.npz")
    assert trained.params.keys() == again.params.keys()
    for name, x in trained.params.items():
        np.testing.assert_array_equal(x, again.params[name])
    assert (again.agent, again.env, again.step) == ("a2c", "CartPole-v1", 320)
    assert again.config == trained.config and again.spec == trained.spec
    assert again.run.meta == ("gamma",)


def test_keys_and_short_floats_are_kept_as_bits():
    for x in (jax.random.key(3), jnp.array([1.5, -2.0], jnp.bfloat16)):
        data = policies._to_numpy(x)
        assert data.dtype.kind == "u"
        back = policies._to_array(data, jax.eval_shape(lambda x=x: x))
        assert back.dtype == x.dtype and (back == x).all()


def test_one_observation_is_a_batch_of_one(made):
    for name in ("normalized", "recurrent", "masked dicts"):
        trained = made(name).policy
        obs = jax.tree.map(
            lambda x: np.ones(x.shape, x.dtype), policy.example(trained.spec)
        )
        many = jax.tree.map(lambda x: np.stack([x, x]), obs)
        if not trained.remembers:
            assert trained(obs).shape == () and (trained(many) == trained(obs)).all()
            continue
        action, memory = trained(obs, trained.init())
        actions, memories = trained(many, trained.init(2))
        assert (actions == action).all()
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y[0], rtol=1e-5, atol=1e-6),
            memory,
            memories,
        )


def test_masks_come_beside_dicts(made):
    trained = made("masked dicts").policy
    obs = {"place": np.ones(3, np.float32), "level": np.array([1], np.uint8)}
    for i in range(4):
        legal = np.arange(4) == i
        assert trained(Masked(obs=obs, legal=legal)) == i
        assert trained({"obs": obs, "legal": legal}) == i


class Backwards(NamedTuple):
    """A named tuple whose names are in no order."""

    z: Any
    a: Any


def test_plain_trees_have_all_leaves_by_their_names():
    tree = (Backwards(z=1, a=[2, None]), {"k": Backwards(z=3, a=4)})
    plain = policies.plain(tree)
    assert plain == ({"z": 1, "a": [2, None]}, {"k": {"z": 3, "a": 4}})
    assert policies.unplain(tree, plain) == tree
    assert jax.tree.leaves(plain) == [2, 1, 4, 3]  # dicts are sorted


def test_numbers_in_lists_are_taken(made):
    trained = made("normalized").policy
    array = np.array([[0.5, 1, -2, 3]], np.float32)
    assert trained([0.5, 1, -2, 3]) == trained(array)[0]


def test_actions_are_numbered_as_the_environment_does(files):
    run = run_of(Case("a2c", "{}/own.py:Numbered", {}), files)
    agent, env = run.build()
    state = shaken(start_of(run))
    trained = policies.from_state(run, state, step=0)
    obs = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    key = jax.random.key(0)
    chosen, *_ = agent.act(run.config, state.agent, (), obs, key, explore=False)
    assert set(np.asarray(chosen)) == {0, 1}
    np.testing.assert_array_equal(trained(obs), chosen + 5)


def test_observations_are_scaled_and_actions_clipped(files):
    case = Case("a2c", "MountainCarContinuous-v0", {"scale_obs": True})
    run = run_of(case, files)
    agent, env = run.build()
    state = shaken(start_of(run))
    state = jax.tree.map(lambda x: 3 * x if x.dtype == jnp.float32 else x, state)
    trained = policies.from_state(run, state, step=0)
    low, high = np.array([-1.2, -0.07]), np.array([0.6, 0.07])
    scaled = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    obs = low + (scaled + 1) / 2 * (high - low)
    seen = scaled.astype(np.float32)
    key = jax.random.key(0)
    chosen, *_ = agent.act(run.config, state.agent, (), seen, key, explore=False)
    assert np.abs(chosen).max() > 1 > np.abs(chosen).min()
    actions = trained(obs.astype(np.float32))
    np.testing.assert_allclose(actions, np.clip(chosen, -1, 1), rtol=1e-3, atol=1e-4)


BAD = {
    "shape": (np.zeros(3, np.float32), r"obs: shape \(3,\), expected \(4\)"),
    "axes": (np.zeros((2, 2, 4), np.float32), r"shape \(2, 2, 4\)"),
    "double": (np.zeros(4), "obs: dtype float64, expected float32"),
    "tree": ({"a": np.zeros(4, np.float32)}, "obs: no array|obs: dtype object"),
    "text": ("left", "obs: dtype <U4, expected float32"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_observations_are_refused(made, name):
    obs, words = BAD[name]
    with pytest.raises(ValueError, match=words):
        made("normalized").policy(obs)


def test_other_trees_and_batches_are_refused(made):
    trained = made("masked dicts").policy
    place, level = np.ones((2, 3), np.float32), np.ones((3, 1), np.uint8)
    legal = np.ones((2, 4), bool)
    with pytest.raises(ValueError, match="obs: its structure is"):
        trained({"place": place})
    with pytest.raises(ValueError, match=r"batches of \[\(2,\), \(3,\)\]"):
        trained(Masked(obs={"place": place, "level": level}, legal=legal))
    mask = legal.astype(np.float32)
    with pytest.raises(ValueError, match=r"obs.legal: dtype float32, expected bool"):
        trained(Masked(obs={"place": place, "level": level[:2]}, legal=mask))


def test_memory_and_key_are_asked_for(made):
    recurrent, exploring = made("recurrent").policy, made("exploring").policy
    obs = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"memory: .* as returned by init\(2\)"):
        recurrent(obs)
    with pytest.raises(ValueError, match=r"memory: must be as returned by init\(2\)"):
        recurrent(obs, recurrent.init(3))
    with pytest.raises(ValueError, match="memory: the policy of ppo has none"):
        made("normalized").policy(obs, recurrent.init(2))
    with pytest.raises(ValueError, match="num_envs=0: must be >= 1"):
        recurrent.init(0)
    obs = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="key: the policy of sac draws"):
        exploring(obs, exploring.init(2))
    with pytest.raises(ValueError, match="key: must be one typed key"):
        exploring(obs, exploring.init(2), jnp.zeros(2, jnp.uint32))


def rewritten(source, target, change):
    """A copy of a file whose description and arrays were changed."""
    with np.load(source) as saved:
        arrays = dict(saved)
    about = json.loads(arrays["about"].tobytes())
    change(about, arrays)
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(target, **arrays)
    return target


def test_files_that_are_damaged_or_something_else_are_refused(made, tmp_path):
    source = made("normalized").folder / "policy.npz"
    content = source.read_bytes()
    cut, flipped, text, array, pickled, other = (
        tmp_path / name
        for name in ("cut", "flipped", "text", "a.npy", "p.npz", "o.npz")
    )
    cut.write_bytes(content[:-30])
    flipped.write_bytes(content.replace(b'"format": 1', b'"format": 2', 1))
    text.write_text("policy")
    np.save(array, np.zeros(3))
    np.savez(pickled, about=np.array([{"format": 1}], dtype=object))
    np.savez(other, x=np.zeros(3))
    for path in (cut, flipped, text, array, pickled, other):
        with pytest.raises(ValueError, match=f"{path.name}: damaged, or no exported"):
            rljax.load_policy(path)
    with pytest.raises(ValueError, match="nowhere: no exported policy here"):
        rljax.load_policy(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="policy.npz: no exported policy here"):
        rljax.load_policy(tmp_path)


class Pickled:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_is_unpickled(made, tmp_path, capsys):
    path = tmp_path / "policy.npz"
    with np.load(made("normalized").folder / "policy.npz") as saved:
        arrays = dict(saved)
    np.savez(path, **arrays, more=np.array([Pickled()], dtype=object))
    with pytest.raises(ValueError, match="damaged, or no exported policy"):
        rljax.load_policy(path)
    assert capsys.readouterr().out == ""


CHANGES = {
    "has format 2 of a later version": lambda about, arrays: about.update(format=2),
    "damaged, or no exported policy: KeyError": lambda about, arrays: about.pop("run"),
    "damaged, or no exported policy: TypeError": lambda about, arrays: about[
        "run"
    ].update(colour=1),
    "unknown agent 'pppo'": lambda about, arrays: about["run"].update(agent="pppo"),
    "CartPole-v1 is another now": lambda about, arrays: about["spec"].update(obs="5"),
    "reads other arrays now: .agent.actor": lambda about, arrays: about["params"].pop(
        next(iter(about["params"]))
    ),
    "is not the array described": lambda about, arrays: arrays.pop(
        "params/.env.statistics.mean"
    ),
}


@pytest.mark.parametrize("words", CHANGES)
def test_files_that_do_not_fit_are_refused(made, tmp_path, words):
    source = made("normalized").folder / "policy.npz"
    path = rewritten(source, tmp_path / "other.npz", CHANGES[words])
    with pytest.raises(ValueError, match=words) as found:
        rljax.load_policy(path)
    assert "\n" not in str(found.value) and "other.npz" in str(found.value)


def test_own_code_that_has_changed_is_told(made, files):
    folder = made("masked dicts").folder
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rljax.load_policy(folder)
    own = files / "own.py"
    own.write_text(OWN_ENVS + "# later\n")
    with pytest.warns(UserWarning, match="own.py has changed since"):
        rljax.load_policy(folder)
    own.write_text(OWN_ENVS)


def test_an_agent_that_asks_for_the_size_has_batches_of_one_size(files):
    run = run_of(Case(f"{files}/own_agent.py", "CartPole-v1", {}), files)
    trained = policies.from_state(run, start_of(run), step=0)
    with pytest.raises(policies.FixedBatch, match="own_agent.py: not for batches of"):
        policies.exported(trained, platforms=("cpu",))
    content = policies.exported(trained, platforms=("cpu",), batch=3)
    program = export.deserialize(bytearray(content))
    obs = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(program.call(obs), trained(obs))
    assert program.in_avals[0].shape == (3, 4)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShowsReward(Wrapper):
    """Adds the last reward to observations."""

    env: Any

    def reset(self, key, num_envs):
        return self.env.reset(key, num_envs)

    def step(self, noise, state, action):
        state, timestep = self.env.step(noise, state, action)
        seen = timestep.obs + timestep.reward[:, None]
        return state, timestep._replace(obs=seen, next_obs=seen)

    def for_evaluation(self, state):
        return dataclasses.replace(self, env=self.env.for_evaluation(state))


def test_observations_that_a_policy_cannot_see_are_refused():
    env = ShowsReward(envs.wrap(gymnax.make("CartPole-v1")[0]))
    config = agents.get("a2c").Config(hidden_sizes=(8,))
    agent = agents.make("a2c", env.spec)
    state = jax.eval_shape(
        lambda key: train.init(agent, env, config, key), jax.random.key(0)
    )
    with pytest.raises(ValueError, match="ShowsReward: .* depend on the reward of"):
        policy.find(agent, env, config, state)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Own:
    """A batched environment of one's own: no wrapper, nothing to look into."""

    inner: Any

    @property
    def spec(self):
        return self.inner.spec

    @property
    def max_steps(self):
        return self.inner.max_steps

    def reset(self, key, num_envs):
        return self.inner.reset(key, num_envs)

    def draw(self, key, length, num_envs):
        return self.inner.draw(key, length, num_envs)

    def step(self, noise, state, action):
        return self.inner.step(noise, state, action)

    def for_evaluation(self, state):
        return Own(self.inner.for_evaluation(state))


def test_own_batched_environments_are_shown_as_they_show_themselves():
    env = Own(envs.make("Pendulum-v1", scale_obs=True))
    config = agents.get("a2c").Config(hidden_sizes=(8,), num_envs=4)
    agent = agents.make("a2c", env.spec)
    state = shaken(
        jax.jit(lambda key: train.init(agent, env, config, key))(jax.random.key(0))
    )
    acting = policy.find(agent, env, config, state)
    obs = np.random.default_rng(0).uniform(-1, 1, (30, 3)).astype(np.float32)
    key = jax.random.key(0)
    actions, memory = acting(acting.params(state), {}, obs, key)
    chosen, *_ = agent.act(config, state.agent, (), obs, key, explore=False)
    assert memory == {} and np.abs(chosen).max() > 2  # the environment clips
    np.testing.assert_allclose(actions, chosen, rtol=1e-5, atol=1e-6)


def test_a_chance_of_random_actions_needs_a_key(made, files):
    run, state = made("q-learning").run, made("q-learning").state
    config = dataclasses.replace(run.config, epsilon_eval=0.5)
    run = dataclasses.replace(run, config=config)
    trained = policies.from_state(run, state, step=0)
    assert trained.draws
    obs = np.ones((1000, 4), np.float32)
    actions = np.asarray(trained(obs, key=jax.random.key(0)))
    greedy = int(made("q-learning").policy(obs[0]))
    assert 0.68 < np.mean(actions == greedy) < 0.82  # half of them, and half of those
    config = dataclasses.replace(run.config, epsilon_eval=1e-6)  # no trial would tell
    run = dataclasses.replace(run, config=config)
    assert policies.from_state(run, state, step=0).draws


def test_greedy_agents_that_draw_need_a_key_without_that_chance(made, files):
    """`epsilon_eval` is 0, and yet actions are drawn."""
    run, state = made("q-learning").run, made("q-learning").state
    agent, env = run.build()

    def act(config, state, memory, obs, key, explore):
        return agent.act(config, state, memory, obs, key, explore=True)

    acting = policy.find(agent._replace(act=act), env, run.config, state)
    assert acting.draws(acting.params(state))
