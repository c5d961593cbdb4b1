"""The command `export`: files of the policy that was asked for, errors in a line."""

import dataclasses
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

import rljax
from rljax import agents
from rljax.commands import common, export
from rljax.commands.folders import BEST, CHECKPOINTS
from rljax.running.checkpoint import save

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "export.md"
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


def write(folder, agent, **steps):
    """A run of two seeds with these checkpoints: of states times a number."""
    config = agents.get(agent).Config(
        hidden_sizes=(8,),
        num_envs=4,
        rollout_length=8,
        **({"sequence_length": 8} if agent == "ppo_rnn" else {}),
    )
    run = common.Run(
        agent=agent,
        env="CartPole-v1",
        env_params={"normalize_obs": True},
        seeds=2,
        seed=3,
        rows=1,
        config=config,
    )
    folder.mkdir()
    common.write_run(folder, run)
    states = jax.jit(run.initial_state())(run.keys())

    def times(x, factor):
        return x * factor if jnp.issubdtype(x.dtype, jnp.floating) else x

    for place, factors in steps.items():
        for step, factor in factors.items():
            state = jax.tree.map(lambda x, by=factor: times(x, by), states)
            save(folder / (BEST if place == "best" else CHECKPOINTS), step, state)
    return states


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run's folder, and its states, which are those of step 160."""
    folder = tmp_path_factory.mktemp("runs") / "a2c"
    states = write(folder, "a2c", plain={160: 1.0, 320: 2.0}, best={80: 4.0})
    return folder, states


def run(*argv):
    export.main([str(x) for x in argv], "rljax export")


def same(trained, states, *, row, factor):
    """Whether a policy's arrays are those of a row of states, times a factor."""
    params = jax.tree.leaves(states.agent.actor)
    found = [x for name, x in trained.params.items() if name.startswith(".agent")]
    assert len(found) == len(params) == 4
    return all(
        np.array_equal(x, y[row] * factor) for x, y in zip(found, params, strict=True)
    )


def test_the_latest_checkpoint_of_the_first_seed_goes_into_the_runs_folder(
    written, tmp_path, capsys
):
    folder, states = written
    copy = shutil.copytree(folder, tmp_path / "copy")
    run(copy)
    out = copy / "policy"
    assert sorted(path.name for path in out.iterdir()) == ["policy.jax", "policy.npz"]
    line = capsys.readouterr().out
    assert line.startswith(f"{out}: a2c for CartPole-v1, seed 3, step 320; takes any ")
    assert line.endswith("kB, for cpu, cuda\n")
    trained = rljax.load_policy(out)
    assert same(trained, states, row=0, factor=2.0)
    assert (trained.run.seed, trained.run.seeds, trained.step) == (3, 1, 320)
    program = jax_export.deserialize(bytearray((out / "policy.jax").read_bytes()))
    assert program.platforms == ("cpu", "cuda")
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.testing.assert_array_equal(program.call(obs), trained(obs))


CHOICES = {
    "--step 160": (0, 1.0, 160),
    "--step latest --seed 3": (0, 2.0, 320),
    "--step best": (0, 4.0, 80),
    "--step 160 --seed 4": (1, 1.0, 160),
}


@pytest.mark.parametrize("options", CHOICES)
def test_seed_and_checkpoint_are_those_that_were_asked_for(written, tmp_path, options):
    (folder, states), (row, factor, step) = written, CHOICES[options]
    run(folder, "--out", tmp_path / "out", "--platforms", "cpu", *options.split())
    trained = rljax.load_policy(tmp_path / "out")
    assert same(trained, states, row=row, factor=factor)
    assert (trained.step, trained.run.seed) == (step, 3 + row)


def test_an_exploring_policy_for_batches_of_one_size(written, tmp_path, capsys):
    folder, _ = written
    out = tmp_path / "deep" / "out"
    run(folder, "--out", out, "--explore", "--batch", 5, "--platforms", "cpu", "tpu")
    assert "takes 5 of observations" in capsys.readouterr().out
    trained = rljax.load_policy(out)
    assert trained.explore and trained.draws
    program = jax_export.deserialize(bytearray((out / "policy.jax").read_bytes()))
    assert program.platforms == ("cpu", "tpu")
    key, obs = jax.random.key(2), np.zeros((5, 4), np.float32)
    alone = program.call(obs, key=jax.random.key_data(key))
    np.testing.assert_array_equal(alone, trained(obs, key=key))


def test_an_agent_that_asks_for_the_size_is_exported_for_one(tmp_path, capsys):
    own = tmp_path / "own.py"
    own.write_text(OWN_AGENT)
    write(tmp_path / "run", str(own), plain={16: 1.0})
    run(tmp_path / "run", "--platforms", "cpu")
    printed = capsys.readouterr()
    assert "note: agent own.py: not for batches of any size: TypeError" in printed.err
    assert "own.py for CartPole-v1, seed 3, step 16; takes 1 of obs" in printed.out


def test_an_export_replaces_an_export_alone(written, tmp_path):
    folder, states = written
    out = tmp_path / "out"
    run(folder, "--out", out, "--platforms", "cpu")
    run(folder, "--out", out, "--platforms", "cpu", "--step", 160)
    assert same(rljax.load_policy(out), states, row=0, factor=1.0)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="out: exists and is no export.* notes.txt"):
        run(folder, "--out", out)
    (out / "notes.txt").unlink()
    (out / "policy.npz").write_text("mine")
    with pytest.raises(ValueError, match="policy.npz: exists and is something else"):
        run(folder, "--out", out)
    assert (out / "policy.npz").read_text() == "mine"
    with pytest.raises(ValueError, match="policy.npz: not a folder"):
        run(folder, "--out", out / "policy.npz")


BAD = {
    "--seed 5": "--seed 5: the run has 3 to 4",
    "--step 7": r"checkpoints/7: no such checkpoint, steps here: \[160, 320\]",
    "--step last": "--step last: must be latest, best or a number of steps",
    "--step -1": "--step -1: must be latest, best or a number of steps",
    "--platforms cpu gpu": "--platforms gpu: must be one of cpu, cuda, rocm, tpu",
    "--platforms": "--platforms: name some of cpu, cuda, rocm, tpu",
    "--batch 0": "batch=0: must be in",
    "--colour red": "unknown option",
}


@pytest.mark.parametrize("options", BAD)
def test_bad_options_are_one_line_and_write_nothing(written, tmp_path, options):
    folder, _ = written
    with pytest.raises(ValueError, match=BAD[options]) as found:
        run(folder, "--out", tmp_path / "out", *options.split())
    assert "\n" not in str(found.value)
    assert not (tmp_path / "out" / "policy.npz").exists()


def test_runs_without_such_a_checkpoint_are_told(written, tmp_path):
    folder, _ = written
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / BEST)
    with pytest.raises(ValueError, match="copy: no best checkpoint; --eval-every"):
        run(copy, "--step", "best")
    shutil.rmtree(copy / CHECKPOINTS)
    with pytest.raises(ValueError, match="checkpoints: no checkpoint here"):
        run(copy)
    with pytest.raises(ValueError, match="nowhere: no run here"):
        run(tmp_path / "nowhere")


def test_one_seed_alone_is_named(written):
    config = agents.get("a2c").Config()
    run = common.Run("a2c", "CartPole-v1", {}, 1, 7, 1, config)
    assert export.chosen_seed(run, None) == 7
    assert export.chosen_seed(dataclasses.replace(run, seeds=3), 9) == 9
    with pytest.raises(ValueError, match="--seed 8: the run has 7 alone"):
        export.chosen_seed(run, 8)


def test_the_page_runs_as_it_stands(written, tmp_path, monkeypatch, capsys):
    """On untrained runs of the names that the page uses."""
    shutil.copytree(written[0], tmp_path / "runs" / "cartpole")
    write(tmp_path / "runs" / "recurrent", "ppo_rnn", plain={16: 1.0})
    monkeypatch.chdir(tmp_path)
    for name in ("cartpole", "recurrent"):
        run(f"runs/{name}")
    capsys.readouterr()
    found = []
    for code in re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL):
        names = {}
        exec(compile(code, "page", "exec"), names)
        found.append(names)
    one, program, memory, alone = found
    printed = "a2c CartPole-v1 Discrete(num_actions=2, masked=False)"
    assert capsys.readouterr().out.startswith(printed)
    assert one["action"].shape == () and (one["actions"] == one["action"]).all()
    np.testing.assert_array_equal(program["actions"], one["actions"])
    policy = memory["policy"]
    actions, after = policy(alone["obs"], policy.init(3))
    np.testing.assert_array_equal(alone["actions"], actions)
    assert alone["memory"].keys() == after.keys()
    for name, x in after.items():
        np.testing.assert_allclose(alone["memory"][name], x, rtol=1e-5, atol=1e-6)
