"""Every agent: targets, gradients, and what changes in an update."""

import ast
import dataclasses
import inspect
import io
import math
import tokenize
from pathlib import Path

import chex
import gymnax
import jax
import numpy as np
import pytest

from rljax import agents, envs
from rljax.envs import adapters
from rljax.running import train

from ..agent_case import (
    CONTINUOUS_ONLY,
    VARIANTS,
    T,
    differ,
    learned,
    parameters,
    required,
    with_other_next_obs,
)
from . import test_probes

DRAWS_NOTHING = ("a2c", "impala", "lpg", "reinforce")  # in an update

# Contracts, for every agent.


def test_termination_cuts_the_bootstrap(case, update, state, rollout):
    other = with_other_next_obs(rollout, rollout.terminated)
    new, _ = update(case.config, state, rollout, jax.random.key(1))
    same, _ = update(case.config, state, other, jax.random.key(1))
    # Where a target has weights, those of a sure thing add up to 1 but for rounding.
    chex.assert_trees_all_close(learned(new), learned(same), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("where", ["truncated", "newest"])
def test_truncation_does_not_cut_the_bootstrap(case, update, state, rollout, where):
    terminated, truncated = jax.device_get((rollout.terminated, rollout.truncated))
    newest = (np.arange(T) == T - 1)[:, None] & ~truncated
    mask = ~terminated & (newest if where == "newest" else truncated)
    assert mask.any()
    other = with_other_next_obs(rollout, mask)
    new, _ = update(case.config, state, rollout, jax.random.key(1))
    changed, _ = update(case.config, state, other, jax.random.key(1))
    assert differ(learned(new), learned(changed))


def test_an_update_changes_every_parameter(case, update, state, rollout):
    result = update(case.config, state, rollout, jax.random.key(1))
    start, (new, metrics) = jax.device_get((state, result))
    for (path, old), leaf in zip(
        jax.tree.leaves_with_path(parameters(start)),
        jax.tree.leaves(parameters(new)),
        strict=True,
    ):
        assert (leaf != old).any(), jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all()
    for name, value in metrics.items():
        assert value.shape == () and np.isfinite(value), name


def test_gradients_are_clipped(case, update, state, rollout):
    per_parameter = hasattr(case.config, "max_update")
    small = {"max_update" if per_parameter else "max_grad_norm": 1e-12}
    if hasattr(case.config, "max_kl"):  # bounds the policy's step
        small |= {"max_kl": 1e-14}
    config = dataclasses.replace(case.config, **small)
    new, _ = update(config, state, rollout, jax.random.key(1))
    chex.assert_trees_all_close(parameters(new), parameters(state), atol=1e-5)


def test_an_update_depends_on_its_key(case, update, state, rollout):
    a, _ = update(case.config, state, rollout, jax.random.key(1))
    b, _ = update(case.config, state, rollout, jax.random.key(2))
    assert differ(learned(a), learned(b)) == (case.name not in DRAWS_NOTHING)


OWN_CODE = sorted(set(agents.names()) - set(VARIANTS))
OF_EVERY_KIND = (  # observations: images, one number, several; continuous actions
    ("Breakout-MinAtar", OWN_CODE),
    ("FrozenLake-misc", OWN_CODE),
    ("FourRooms-misc", ["a2c", "dqn", "ppo_rnn", "sac"]),
    ("Pendulum-v1", OWN_CODE),
)


@pytest.mark.parametrize(
    ("case", "env_name"),
    [
        pytest.param(
            name,
            env_name,
            marks=() if name in fast else pytest.mark.slow,
            id=f"{name}-{env_name}",
        )
        for name in agents.names()
        for env_name, fast in OF_EVERY_KIND
    ],
    indirect=["case"],
)
def test_trains_on_observations_and_actions_of_every_kind(case, env_name):
    """The slow ones add several numbers as an observation, for the other agents."""
    env = envs.make(env_name)
    try:
        agent = case.module.make(env.spec)
    except ValueError as error:  # README's table says who refuses, which is tested
        wanted = "discrete" if env_name == "Pendulum-v1" else "continuous"
        assert str(error).startswith(f"{case.name} needs {wanted} actions, not ")
        return

    def chunk(key):
        ts = train.init(agent, env, case.config, key)
        return ts, train.run(agent, env, case.config, ts, 1)[0]

    ts, new = jax.eval_shape(chunk, jax.random.key(0))
    assert jax.tree.map(kind, new) == jax.tree.map(kind, ts)


def kind(x):
    """The next chunk traces again if one of these changes."""
    return x.shape, x.dtype, x.weak_type


def test_acting(case, state):
    act = jax.jit(case.agent.act, static_argnums=5)
    rng = np.random.default_rng(3)
    obs = rng.normal(size=(500, *case.env.spec.obs_shape)).astype(np.float32)
    memory = case.agent.memory(case.config, 500)
    continuous = case.name in CONTINUOUS_ONLY
    shape, dtype = ((500, 1), np.float32) if continuous else ((500,), np.int32)

    def actions(state, seed, explore):
        key = jax.random.key(seed)
        action, new, _ = act(case.config, state, memory, obs, key, explore)
        assert (action.shape, action.dtype) == (shape, dtype)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, memory)
        return np.array(action)

    greedy = actions(state, 0, False)
    np.testing.assert_array_equal(greedy, actions(state, 1, False))
    other = jax.jit(case.agent.init)(case.config, jax.random.key(1))
    assert (greedy != actions(other, 0, False)).any()
    explored = np.stack([actions(state, seed, True) for seed in range(8)])
    assert (explored != explored[0]).any()  # one may be greedy
    if continuous:  # Pendulum's bounds
        assert explored.min() < -1 and explored.max() > 1 and abs(explored).max() <= 2
    else:
        assert set(np.unique(explored)) == {0, 1}


def test_observing_alone_learns_nothing(case, state, rollout):
    new = jax.jit(case.agent.observe)(case.config, state, rollout)
    chex.assert_trees_all_equal(parameters(new), parameters(state))
    assert new.step == 0


def test_no_array_is_twice_in_a_state(case):
    """Eager initialisation would give two leaves one buffer: donating that fails."""
    init = jax.make_jaxpr(case.agent.init)(case.config, jax.random.key(0))
    arrays = [x for x in init.jaxpr.outvars if not hasattr(x, "val")]  # no constants
    assert len(set(arrays)) == len(arrays) > 3
    assert set(arrays).isdisjoint(init.jaxpr.invars)


# The table of agents.


def test_names_and_get():
    assert agents.names() == sorted(agents.names())
    for name in agents.names():
        assert agents.get(name).__name__ == f"rljax.agents.{name}"
    with pytest.raises(ValueError, match="unknown agent 'dqm'; did you mean: dqn?"):
        agents.get("dqm")
    with pytest.raises(ValueError, match=f"did you mean: {', '.join(agents.names())}?"):
        agents.get("xyz")


def preset_rows():
    for name in agents.names():
        for env_name, preset in agents.get(name).PRESETS.items():
            for params in preset.env_params or ():
                yield name, env_name, preset, preset.wrap | params


def test_a_preset_is_for_the_parameters_that_it_states_and_no_others():
    """Each entry, against the options of `wrap` and the environment's parameters."""
    assert {row[:2] for row in preset_rows()} >= {("ppo", "Pendulum-v1")}
    for name, env_name, preset, params in preset_rows():
        module = agents.get(name)
        config = agents.config_for(name, env_name, params)
        assert config == dataclasses.replace(module.Config(), **preset.config)
        assert config != module.Config()
        dataclasses.replace(config, **required(name)).validate()
        assert agents.other_preset(name, env_name, params) == ""
        asked = {k: v for k, v in params.items() if k not in preset.wrap}
        assert agents.env_params_for(name, env_name, asked) == params
        spec = envs.make(env_name, **params).spec  # all of them exist
        module.make(spec)
        bare = gymnax.make(env_name)[1]
        as_ever = dict(scale_obs=False, max_steps_in_episode=bare.max_steps_in_episode)
        assert agents.config_for(name, env_name, as_ever | params) == config
        others = [dict(max_steps_in_episode=7), dict(time_aware=True)]
        others += [
            dict(normalize_rewards=0.9),
            dict(normalize_obs=True, stack_frames=2),
        ]
        for other in others:
            assert agents.config_for(name, env_name, params | other) == module.Config()
            note = agents.other_preset(name, env_name, params | other)
            assert f"the preset of {name} for {env_name} is for" in note
            assert " ".join(f"{k} {v}" for k, v in params.items()) in note


def test_presets_of_other_packages_bring_options_of_wrap():
    """The packages need not be there, so their environments are not made."""
    options = inspect.signature(envs.wrap).parameters
    found = [
        (name, env_name, preset)
        for name in agents.names()
        for env_name, preset in agents.get(name).PRESETS.items()
        if preset.env_params is None
    ]
    assert {("ppo", "brax/*"), ("ppo", "navix/*")} <= {row[:2] for row in found}
    for name, env_name, preset in found:
        assert env_name.partition("/")[0] in adapters.PACKAGES
        config = agents.config_for(name, env_name.replace("*", "any"), {"x": 1})
        assert config == dataclasses.replace(agents.get(name).Config(), **preset.config)
        dataclasses.replace(config, **required(name)).validate()
        assert preset.wrap.keys() <= options.keys()


@pytest.mark.parametrize("name", agents.names())
def test_without_a_preset_the_plain_default_holds(name):
    assert agents.config_for(name, "anything") == agents.get(name).Config()
    assert agents.config_for(name, "anything", {"x": 1}) == agents.get(name).Config()
    assert agents.other_preset(name, "anything", {"x": 1}) == ""


def test_a_preset_for_parameters_does_not_hold_without():
    assert agents.config_for("ppo", "MountainCarContinuous-v0").entropy_cost == 0.01
    note = agents.other_preset("ppo", "MountainCarContinuous-v0")
    assert "--env-params normalize_obs True normalize_rewards 0.99;" in note
    scaled = {"normalize_rewards": 0.99}
    for name in ("c51", "rainbow"):
        assert agents.config_for(name, "CartPole-v1").value_max == 100.0
        assert agents.config_for(name, "CartPole-v1", scaled).value_max == 10.0


def code_lines(source):
    """Numbers of the lines with code, those of `Config` and `PRESETS` left out."""
    skipped = set()
    for node in ast.walk(ast.parse(source)):
        config = isinstance(node, ast.ClassDef) and node.name == "Config"
        presets = isinstance(
            node, ast.Assign | ast.AnnAssign
        ) and "PRESETS" in ast.dump(node)
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if config or presets or text:
            first = [node, *getattr(node, "decorator_list", [])]
            start = min(part.lineno for part in first)
            skipped |= set(range(start, node.end_lineno + 1))
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.DEDENT)
    lines = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in (*silent, tokenize.INDENT, tokenize.ENDMARKER)
        for line in range(token.start[0], token.end[0] + 1)
    }
    return lines - skipped


@pytest.mark.parametrize("name", agents.names())
def test_an_agent_is_known_where_it_must_be(name):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    fields = {field.name for field in dataclasses.fields(agents.get(name).Config)}
    unchecked = sorted(field for field in fields if not checked(name, field))
    known = {
        "a row in ROWS of tests/agents/test_probes.py": name
        in test_probes.ROWS.keys() | test_probes.UNPROBED.keys(),
        "a row in README.md's table of agents": f"| `{name}` |" in readme,
        f"values out of range of {unchecked} in BAD_VALUES": not unchecked,
    }
    missing = [place for place, there in known.items() if not there]
    assert not missing, f"{name} needs {', and '.join(missing)}"


@pytest.mark.parametrize("name", agents.names())
def test_an_agent_reads_in_one_sitting(name):
    source = Path(agents.get(name).__file__).read_text()
    assert len(code_lines(source)) <= 160
    assert "https://" in " ".join(source.splitlines()[:8])  # the paper comes first


BAD_VALUES = {
    "learning_rate": (-1.0, 0.0, math.nan, None),
    "gamma": (1.5, -0.1),
    "max_grad_norm": (0.0,),
    "max_update": (0.0, -1.0),
    "adam_epsilon": (0.0, -1e-5),
    "lambda_": (2.0, -1.0),
    "clip_epsilon": (0.0, -0.2),
    "clip_rho": (0.0, -1.0),
    "clip_pg_rho": (0.0, -1.0),
    "alpha_rho": (1.1, -0.1),
    "alpha_c": (1.1, -0.1),
    "actor_period": (0, True),
    "max_kl": (0.0, -0.01),
    "damping": (-0.1, 1.5),
    "backtracking": (0.0, 1.5),
    "cg_iterations": (0, 10.0),
    "fisher_stride": (0, True),
    "max_backtracks": (0, True),
    "entropy_cost": (-0.01,),
    "epsilon_start": (1.5, -0.1),
    "epsilon_end": (1.5, -0.1),
    "epsilon_eval": (1.5, -0.1),
    "exploration_fraction": (0.0, 1.1),
    "total_steps": (0, 1e6),
    "num_envs": (0, -1, True, 2.0),
    "rollout_length": (0, True),
    "num_epochs": (0,),
    "num_minibatches": (0, 3),  # 3 does not divide 4 * 128
    "num_updates": (0,),
    "batch_size": (0, 32.0, 10**6),  # more than the warm-up
    "capacity": (0, 10_001),  # not a multiple of 10 * 1
    "warmup_steps": (0, 10**9),
    "n_step": (0, 10**6),  # longer than the buffer
    "priority": ("td", None),
    "sampler": ("large", None),
    "large_batch_factor": (0,),
    "priority_exponent": (-0.1, 1.5),
    "importance_exponent": (-0.1, 1.5),
    "entropy_temperature": (0.0,),
    "munchausen_coefficient": (-0.1, 1.5),
    "value_min": (-math.inf, math.nan),
    "value_max": (-10.0, -20.0, math.inf, math.nan),  # -10 is the least value
    "num_atoms": (1, 51.0),
    "num_quantiles": (1, 32.0),
    "target_period": (0,),
    "target_rate": (0.0, 1.5),
    "dual_learning_rate": (0.0, math.nan),
    "epsilon": (0.0, -0.1),
    "epsilon_policy": (0.0, -0.1),
    "epsilon_mean": (0.0,),
    "epsilon_stddev": (0.0,),
    "multiplier": (0.0, None),
    "num_samples": (0, True),
    "top_fraction": (0.0, 1.5),
    "max_repeats": (0, True),
    "priority_mix": (-0.1, 1.5),
    "burn_in": (-1, True),
    "sequence_length": (0, 10**6),  # more than the warm-up
    "memory_size": (0, 8.0),
    "cell": ("rnn", None),
    "torso": ("nature", None),
    "compute_dtype": ("float16", None),
    "critic_obs": ("state", (1,)),
    "huber_kappa": (-1.0, None),
    "num_fractions": (0, True),
    "num_target_fractions": (0,),
    "num_policy_fractions": (0,),
    "embedding_size": (0, 8.0),
    "temperature": (0.0, None),
    "max_weight": (0.0, -1.0),
    "target_entropy": (math.nan, None),
    "target_entropy_ratio": (-0.1, 1.5),
    "noise_damping": (0.0, 1.5),
    "noise_start": (-0.1,),
    "noise_end": (-0.1,),
    "target_noise": (-0.1,),
    "target_noise_clip": (-0.1,),
    "policy_delay": (0, True),
    "hidden_sizes": ((0,), (64, -1), (8.0,)),
    "action_size": (0, 8.0),
    "weights": ("", "no/such.npz", None),
    "activation": ("swosh", None),
}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        (name, field.name, value)
        for name in agents.names()
        for field in dataclasses.fields(agents.get(name).Config)
        for value in BAD_VALUES.get(field.name, ())
    ],
)
def test_bad_values_are_named(name, field, value):
    more = {"num_envs": 10} if field == "capacity" else {}
    config = agents.get(name).Config(**more, **{field: value})
    with pytest.raises(ValueError) as error:
        config.validate()
    assert str(error.value).startswith(f"{field}={value!r}: must ")


@pytest.mark.parametrize("name", agents.names())
def test_every_integer_fits_the_programs_counters(name):
    """Within int32; of the steps in all there may be so many rollouts."""
    config = agents.get(name).Config(**required(name))
    integers = [f.name for f in dataclasses.fields(config) if f.type is int]
    assert {"total_steps", "num_envs", "rollout_length"}.issubset(integers)
    for field in integers:
        value = 10**30 if field == "total_steps" else 2**31
        with pytest.raises(ValueError) as error:
            dataclasses.replace(config, **{field: value}).validate()
        assert str(error.value).startswith(f"{field}={value}: must be an integer <= ")
    per_rollout = config.num_envs * config.rollout_length
    most = (2**31 - 1) * per_rollout
    dataclasses.replace(config, total_steps=most).validate()
    with pytest.raises(ValueError, match=f"total_steps={most + 1}: .* <= {most}"):
        dataclasses.replace(config, total_steps=most + 1).validate()


def test_a_rollout_has_at_most_an_int32_of_steps():
    config = agents.get("ppo").Config(num_envs=2**20, rollout_length=2**11)
    with pytest.raises(
        ValueError, match="num_envs=1048576: must be at most 2147483647 /"
    ):
        config.validate()


def checked(name, field):
    """Whether BAD_VALUES has a field, or the field is a flag."""
    types = {x.name: x.type for x in dataclasses.fields(agents.get(name).Config)}
    return field in BAD_VALUES or types[field] is bool


def test_all_networks_but_followers_are_trained(case, state):
    """By their fields' names: other tests look at all parameters that are trained."""
    fields = {"params"} if hasattr(state, "params") else {"actor", "critic"}
    assert fields <= set(parameters(state))
