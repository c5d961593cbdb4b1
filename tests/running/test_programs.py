"""Programs that are compiled ahead, and kept."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rljax.running import programs


@pytest.fixture
def cache(monkeypatch):
    """jax's cache allowed, as outside of tests; what is set is undone."""
    names = (
        "jax_enable_compilation_cache",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_compilation_cache_max_size",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_below_the_users_cache(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = programs.keep()
    assert folder == programs.kept_in()
    assert folder.parent == tmp_path / "rljax"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert programs.kept_in().parent == tmp_path / "home" / ".cache" / "rljax"


def test_each_kind_of_processor_has_a_folder(monkeypatch):
    here = programs.kept_in()
    monkeypatch.setattr(programs.platform, "machine", lambda: "other")
    there = programs.kept_in()
    assert there.name.startswith("other-")
    monkeypatch.setattr(Path, "read_text", lambda self: "flags : sse\nflags : sse\n")
    assert len({here, there, programs.kept_in()}) == 3


def test_settings_of_jax_come_first(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert programs.keep(tmp_path / "other") == tmp_path / "own"
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert programs.keep(tmp_path / "other") is None
    assert not (tmp_path / "other").exists()


def test_folder_that_cannot_be_made_keeps_nothing(cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    assert programs.keep(tmp_path / "file") is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert programs.keep(tmp_path / "read-only") is None
    monkeypatch.setattr(programs, "kept_in", no_home)
    assert programs.keep() is None
    assert jax.config.jax_compilation_cache_dir is None


def no_home():
    raise RuntimeError("Could not determine home directory.")


TWICE = """
import sys
import jax, jax.numpy as jnp
from rljax.running import programs
programs.keep()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
found = []
jax.monitoring.register_event_listener(lambda name, **kw: found.append(name))
print(float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.arange(3.0))))
print(sum(name.endswith("cache_hits") for name in found))
"""


def test_next_process_finds_the_program(tmp_path):
    keeps = {"XDG_CACHE_HOME": str(tmp_path), "JAX_ENABLE_COMPILATION_CACHE": "true"}

    def run():
        done = subprocess.run(
            [sys.executable, "-c", TWICE],
            capture_output=True,
            text=True,
            env=os.environ | keeps,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout.split()

    (value, first), (again, second) = run(), run()
    assert value == again
    assert first == "0"
    assert int(second) > 0


def test_call_finds_the_program_compiled_for_it():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **kw: compiled.append(name)
    )

    def count():
        return sum(name.endswith("backend_compile_duration") for name in compiled)

    program = jax.jit(lambda tree: tree["x"] * 2, donate_argnums=0)
    x = jnp.arange(3.0)
    programs.compile_for(program, {"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})
    before = count()
    assert before > 0
    assert program({"x": x}).tolist() == [0, 2, 4]
    assert count() == before


@pytest.mark.parametrize("threaded", [True, False])
def test_ahead_gives_results_and_errors(threaded):
    with programs.Ahead(threaded) as ahead:
        good, bad = ahead.start(divmod, 7, 2), ahead.start(divmod, 7, 0)
        assert good() == good() == (3, 1)
        with pytest.raises(ZeroDivisionError):
            bad()


def test_ahead_works_in_a_thread_and_without_one_when_asked():
    with programs.Ahead() as ahead:
        assert ahead.start(threading.get_ident)() != threading.get_ident()
    done = []
    with programs.Ahead(threaded=False) as ahead:
        work = ahead.start(done.append, 1)
        assert not done
        work()
        work()
        assert done == [1]


def test_what_has_not_begun_is_dropped_at_the_end():
    done, begun, go_on = [], threading.Event(), threading.Event()

    def wait():
        begun.set()
        go_on.wait()
        done.append("first")

    with programs.Ahead() as ahead:
        ahead.start(wait)
        ahead.start(done.append, "second")
        begun.wait()
        threading.Timer(0.1, go_on.set).start()
    assert done == ["first"]
