import json
import logging
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax.running import checkpoint
from rljax.running.checkpoint import CheckpointError, latest, restore, save
from rljax.types import TrainState


@jax.jit
def make_arrays(seed):
    """A train state with everything a real one has."""
    key = jax.random.key(seed)
    env, env_params = gymnax.make("CartPole-v1")
    obs, env_state = jax.vmap(env.reset, in_axes=(0, None))(
        jax.random.split(key, 4), env_params
    )
    params = {"Dense_0": {"kernel": jax.random.normal(key, (4, 8))}}
    agent = {
        "params": params,
        "opt": optax.adam(1e-3).init(params),
        "mask": jnp.array([True, False]),
        "odd": jnp.array([-0.0, jnp.nan, jnp.inf, 1e-45], jnp.float32),
        "zeros": -jnp.zeros((3, 2)),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "empty": jnp.zeros((0, 5)),
        "keys": jax.random.split(key, 3),
        "other": jax.random.key(1, impl="rbg"),
    }
    return TrainState(agent, env_state, obs, (), key, jnp.int32(seed))


def make_state(seed=0):
    """The arrays, and one of numpy's that is wider than jax's."""
    state = make_arrays(seed)
    return state._replace(agent={**state.agent, "a/b.c": np.float64(0.1)})


def widened(state):
    """The shapes of a state with a layer of 9 instead of 8 units."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((4, 9), x.dtype) if x.shape == (4, 8) else x,
        state,
    )


def data(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype, type(a)) == (b.shape, b.dtype, type(b))
        assert data(a) == data(b)


@pytest.fixture(scope="module")
def state():
    return make_state(1)


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    assert save(folder, 12, state) == folder / "12"
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the checkpoint, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_round_trip_is_bit_exact(saved, state):
    assert latest(saved) == 12
    assert_same(restore(saved, make_state(2)), state)
    assert_same(restore(str(saved), state, step=12), state)


def test_like_may_be_shapes_only(saved, state):
    like = jax.eval_shape(lambda: make_state(2))
    with pytest.raises(CheckpointError, match=r"a/b.c.* float64.* float32\[\]$"):
        restore(saved, like)  # numpy's float64 becomes float32 under eval_shape
    like.agent["a/b.c"] = np.float64(0)
    assert_same(restore(saved, like), state)


def test_float64_is_not_cut_to_float32(saved, state):
    like = state._replace(
        agent={**state.agent, "a/b.c": jax.ShapeDtypeStruct((), np.float64)}
    )
    with pytest.raises(CheckpointError, match="a/b.c'] is float64: set jax_enable_x64"):
        restore(saved, like)


def test_restored_leaves_may_be_donated(saved, state):
    got = restore(saved, state)
    for _ in range(3):
        got = jax.jit(
            lambda s: s._replace(step=s.step + 1, obs=s.obs + 1), donate_argnums=0
        )(got._replace(agent=()))
    assert got.step == state.step + 3
    np.testing.assert_array_equal(got.obs, ((state.obs + 1) + 1) + 1)


@pytest.mark.parametrize("state", [(), {"e": jnp.zeros((0, 2))}])
def test_state_without_data(tmp_path, state):
    save(tmp_path, 0, state)
    assert_same(restore(tmp_path, state), state)


def test_missing(saved, state, tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None
    with pytest.raises(CheckpointError, match=f"{tmp_path}/nowhere: no checkpoint"):
        restore(tmp_path / "nowhere", state)
    with pytest.raises(CheckpointError, match=r"/13: no such .* steps here: \[12\]"):
        restore(saved, state, step=13)


def test_unfinished_and_strange_folders_are_ignored(copy, state):
    shutil.copytree(copy / "12", copy / ".13.tmp")
    shutil.copytree(copy / "12", copy / "best")
    shutil.copytree(copy / "12", copy / "013")
    (copy / "14").mkdir()
    (copy / "15").write_text("")
    assert latest(copy) == 12
    assert_same(restore(copy, state), state)


def test_damage_to_any_file_is_found(copy, state):
    files = [path for path in copy.rglob("*") if path.is_file()]
    assert len(files) > 5
    for path in files:
        good = path.read_bytes()
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 4]) + good[middle + 1 :]
        for bad in (good[:middle], flipped, b"", None):
            path.unlink() if bad is None else path.write_bytes(bad)
            with pytest.raises(CheckpointError, match=f"{copy}/12: [^\n]*$"):
                restore(copy, state, step=12)
            path.write_bytes(good)
    assert_same(restore(copy, state), state)


def test_damage_that_reads_as_another_structure(copy, state):
    path = copy / "12" / "manifest.json"
    path.write_text(path.read_text().replace("state.step", "state.stop"))
    with pytest.raises(CheckpointError, match=r"checksum of manifest.json differs$"):
        restore(copy, state)


def test_damage_names_the_other_steps(copy, state):
    save(copy, 13, state)
    manifest = copy / "13" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(CheckpointError, match=r"13: unreadable.*steps here: \[12\]"):
        restore(copy, state)
    assert_same(restore(copy, state, step=12), state)


def test_arrays_are_compared_with_the_manifest(copy, state):
    """As if orbax had written something else than it was given."""
    path = copy / "12" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["leaves"][-1]["sha256"] = "0"
    del manifest["sha256"]
    manifest["sha256"] = checkpoint._sha256(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"12: .*checksum of state.step differs"):
        restore(copy, state)


def test_other_format(copy, state):
    path = copy / "12" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["format"] = 2
    del manifest["sha256"]
    manifest["sha256"] = checkpoint._sha256(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"12: unreadable: format 2, not 1"):
        restore(copy, state)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            widened,
            r"float32\[4, 8\], expected state.agent\['opt'\]\[0\].*float32\[4, 9\]",
        ),
        (
            lambda s: s._replace(step=jnp.uint32(0)),
            r"has state.step int32\[\], expected state.step uint32\[\]",
        ),
        (
            lambda s: s._replace(key=jax.random.key(0, impl="rbg")),
            r"state.key key<fry>\[\], expected state.key key<rbg>\[\]",
        ),
        (
            lambda s: s._replace(key=jax.random.PRNGKey(0)),
            r"state.key key<fry>\[\], expected state.key uint32\[2\]",
        ),
        (
            lambda s: s._replace(memory=jnp.zeros(2)),
            r"has state.key key<fry>\[\], expected state.memory float32\[2\]",
        ),
        (
            lambda s: s._replace(step=()),
            r"has state.step int32\[\], expected nothing",
        ),
        (
            lambda s: s._replace(step=(s.step, s.step)),
            r"has state.step int32\[\], expected state.step\[0\] int32\[\]",
        ),
    ],
)
def test_foreign(saved, state, change, words):
    with pytest.raises(CheckpointError, match=f"{saved}/12: another .*{words}$"):
        restore(saved, change(state))


def test_longer_state_than_saved(tmp_path):
    save(tmp_path, 0, (jnp.zeros(2),))
    with pytest.raises(CheckpointError, match=r"has nothing, expected state\[1\] bool"):
        restore(tmp_path, (jnp.zeros(2), jnp.zeros(1, bool)))


def test_only_arrays(tmp_path):
    no_keys = jax.random.split(jax.random.key(0))[:0]
    for leaf in (1.0, "text", np.array(["a"], object), len, no_keys):
        with pytest.raises(
            CheckpointError, match=r"/0: state\['x'\] is no array of numbers: "
        ):
            save(tmp_path, 0, {"x": leaf})
    assert list(tmp_path.iterdir()) == []


def test_pruning(tmp_path):
    def steps():
        return sorted(int(path.name) for path in tmp_path.iterdir())

    for step in (9, 10, 100):
        save(tmp_path, step, {"x": jnp.full(2, step)})
    assert steps() == [10, 100]
    save(tmp_path, 50, {"x": jnp.full(2, 50)}, keep=2)  # resumed from 10
    assert steps() == [10, 50, 100]
    (tmp_path / ".7.tmp").mkdir()  # a killed run left this
    save(tmp_path, 200, {"x": jnp.full(2, 200)}, keep=1)
    assert steps() == [200]
    assert restore(tmp_path, {"x": jnp.zeros(2, int)})["x"].tolist() == [200, 200]


def test_saving_a_step_again_removes_older_ones_all_the_same(tmp_path):
    save(tmp_path, 5, {"w": jnp.ones(2)})
    save(tmp_path, 2, {"w": jnp.zeros(2)}, keep=1)  # of a run that goes on from before
    save(tmp_path, 5, {"w": jnp.ones(2)}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


def test_pruning_takes_the_name_first(tmp_path, monkeypatch):
    """So that a kill while files go leaves no half checkpoint under a number."""
    save(tmp_path, 1, {"x": jnp.zeros(2)})
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda path, **_: None)
    save(tmp_path, 2, {"x": jnp.zeros(2)}, keep=1)
    assert sorted(os.listdir(tmp_path)) == [".1.tmp", "2"]


def test_no_pruning_before_the_new_one_is_complete(tmp_path, monkeypatch):
    state = {"x": jnp.arange(3)}
    save(tmp_path, 1, state, keep=1)

    def fail(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "rename", fail)
        with pytest.raises(CheckpointError, match="2: cannot write: .*no space left"):
            save(tmp_path, 2, {"x": jnp.arange(4)}, keep=1)
    assert os.listdir(tmp_path) == ["1"]
    assert_same(restore(tmp_path, state), state)


def test_never_overwrites(tmp_path):
    state, other = {"x": jnp.arange(3)}, {"x": jnp.arange(1, 4)}
    path = save(tmp_path, 1, state)
    assert save(tmp_path, 1, state) == path  # the same content is fine
    with pytest.raises(CheckpointError, match="/1: exists with other content"):
        save(tmp_path, 1, other)
    assert_same(restore(tmp_path, state), state)
    (path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="/1: unreadable.*not overwritten"):
        save(tmp_path, 1, state)
    (tmp_path / "2").mkdir()
    with pytest.raises(CheckpointError, match="/2: unreadable.*not overwritten"):
        save(tmp_path, 2, state)


@pytest.mark.parametrize("step, keep", [(-1, 2), (0, 0)])
def test_bad_numbers(tmp_path, step, keep):
    with pytest.raises(CheckpointError, match="step=.* must be >= 0 and keep=.* >= 1"):
        save(tmp_path, step, {"x": jnp.zeros(2)}, keep=keep)


def test_unwritable_folder(tmp_path, state):
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "deeper"):
        with pytest.raises(CheckpointError, match=f"{folder}/1: cannot write: .*Error"):
            save(folder, 1, state)
        with pytest.raises(CheckpointError, match=f"{folder}: no checkpoint here"):
            restore(folder, state)
    assert file.read_text() == "mine"


def test_deleted_array(tmp_path):
    x = jnp.zeros(2)
    x.delete()
    with pytest.raises(CheckpointError, match="/1: cannot write: .*deleted"):
        save(tmp_path, 1, {"x": x})


def test_orbax_is_quiet(tmp_path, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("absl").setLevel(logging.DEBUG)
        save(tmp_path, 1, {"x": jnp.zeros(2)})
        restore(tmp_path, {"x": jnp.zeros(2)})
        assert logging.getLogger("absl").level == logging.DEBUG
    assert [r for r in caplog.records if r.name in ("absl", "root")] == []
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_named_without_the_tracebacks_of_other_writes(
    tmp_path, monkeypatch
):
    """What tensorstore says, and what it prints after orbax's event loop has ended."""
    save(tmp_path, 1, {"x": jnp.zeros(2)})
    printed = []
    monkeypatch.setattr(checkpoint, "_hooks", [printed.append])
    for text in ("Event loop is closed", "another"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text)))
    assert [str(unraisable.exc_value) for unraisable in printed] == ["another"]

    def full(*args):
        raise ValueError("RESOURCE_EXHAUSTED: " + 300 * "x" + "No space left on device")

    monkeypatch.setattr(checkpoint.os, "rename", full)
    with pytest.raises(CheckpointError, match="/2: cannot write: No space left on dev"):
        save(tmp_path, 2, {"x": jnp.zeros(2)})
    assert os.listdir(tmp_path) == ["1"]


def run_python(code, *args):
    """Runs `code` in a fresh interpreter, with this package first on its path."""
    root = str(Path(checkpoint.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )


KILLED = """
import os, signal, sys, time, warnings
warnings.simplefilter("ignore")  # jax on fork; no backend runs in the parent
import numpy as np
from rljax import checkpoint
import orbax.checkpoint  # once, for all children

def child(folder, pipe):
    for step in range(10_000):
        state = {"x": np.full((200, 200), step), "y": np.arange(step + 1.0)[-1:]}
        checkpoint.save(folder, step, state, keep=2)
        os.write(pipe, b".")

for trial, delay in enumerate(np.linspace(0.0, 0.045, 10)):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(f"{sys.argv[1]}/{trial}", writer)
    for _ in range(1 + trial % 3):
        os.read(reader, 1)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_loadable_checkpoint(tmp_path):
    """Kills real processes, also where orbax writes and no function can be replaced."""
    done = run_python(KILLED, tmp_path)
    assert done.returncode == 0, done.stderr
    like = {"x": np.zeros((200, 200), int), "y": np.zeros(1)}
    unfinished = 0
    for trial in range(10):
        folder = tmp_path / str(trial)
        step = latest(folder)
        got = restore(folder, like)
        assert (got["x"] == step).all() and got["y"] == [step]
        names = [path.name for path in folder.iterdir()]
        unfinished += any(name.endswith(".tmp") for name in names)
        for name in names:  # no complete step is damaged either
            if name.isdigit():
                restore(folder, like, step=int(name))
        save(folder, step + 1, like, keep=1)  # and the next run tidies up
        assert os.listdir(folder) == [str(step + 1)]
    assert unfinished >= 2  # some kills came in the middle of a save
