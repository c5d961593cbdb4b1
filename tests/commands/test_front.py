"""The front door: commands by name, as a command, a module and scripts."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

from rljax.commands import front
from rljax.commands.errors import one_line_errors

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"


def called(*argv):
    return subprocess.run([sys.executable, *map(str, argv)], capture_output=True)


LISTS = """
import sys
from rljax.commands import front
from rljax.commands.errors import one_line_errors
sys.argv[1:] = ["--help"]
try:
    front.main()
finally:
    sys.exit("jax was imported" if "jax" in sys.modules else 0)
"""


def test_a_reader_that_has_enough_is_no_error():
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "rljax", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141  # as a shell has it: 128 and SIGPIPE


def test_another_broken_pipe_is_told(capfd):
    @one_line_errors
    def fails():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(SystemExit, match="2"):
        fails()
    assert capfd.readouterr().err == "error: [Errno 32] Broken pipe\n"


def test_the_list_of_commands_needs_no_jax():
    done = called("-c", LISTS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed == list(front.COMMANDS)


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_command_has_a_module_and_a_script(name):
    file = name.replace("-", "_")
    module = importlib.import_module(f"rljax.commands.{file}")
    assert callable(module.main)
    script = (SCRIPTS / f"{file}.py").read_text()
    assert f'run("{name}")' in script and len(script.splitlines()) == 6


def test_there_is_no_script_without_a_command():
    names = {name.replace("-", "_") for name in front.COMMANDS}
    assert {path.stem for path in SCRIPTS.glob("*.py")} == names


@pytest.mark.parametrize(
    ("door", "prog"),
    [
        (("-m", "rljax", "check-env"), "python -m rljax check-env"),
        ((SCRIPTS / "check_env.py",), "check_env.py"),
    ],
)
def test_usage_names_the_door(door, prog):
    done = called(*door, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: {prog} " in " ".join(done.stdout.decode().split())


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        ([], 2, "usage: rljax COMMAND", ""),
        (["--version"], 0, "rljax 0.", ""),
        (
            ["trian", "ppo"],
            2,
            "",
            "error: unknown command 'trian'; did you mean: train, meta-train?",
        ),
        (["check_en"], 2, "", "did you mean: check-env?"),
        (["xyz"], 2, "", "did you mean: train, evaluate, export,"),
        (["train", "pppo"], 2, "", "error: unknown agent 'pppo'; did you mean: ppo"),
        (["train", "ppo", "--sed", "1"], 2, "", "error: unknown option '--sed'"),
        (["sweep", "ppo"], 2, "", "(see rljax sweep ppo --help)"),
        (["plot", "--distributed"], 2, "", "--distributed: plot runs in one process"),
        (["benchmark", "--distributed"], 2, "", "benchmark runs in one process"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, argv, code, out, err):
    monkeypatch.setattr(sys, "argv", ["/somewhere/rljax", *argv])
    monkeypatch.setattr(front, "set_up_jax", lambda kept: None)  # jax has started
    try:
        front.main()
        found = 0
    except SystemExit as end:
        found = end.code
    printed = capsys.readouterr()
    assert found == code, printed
    assert printed.out.startswith(out) and err in printed.err
    assert len(printed.err.splitlines()) == bool(err)


DEVICES = """
import os, sys
from rljax.commands import front
from rljax.commands.errors import one_line_errors
sys.argv[1:] = ["train", "--help"]
try:
    front.main()
except SystemExit:
    pass
import jax
sys.exit(jax.local_device_count() != len(os.sched_getaffinity(0)))
"""


def test_devices_are_set_up_before_a_command():
    done = called("-c", DEVICES)
    assert done.returncode == 0, done.stderr


CACHE = """
import contextlib, sys
from rljax.commands import front
with contextlib.suppress(SystemExit):
    front.run("plot", ["nowhere", *sys.argv[1:]])
import jax
print(jax.config.jax_enable_compilation_cache, jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize("options", [[], ["--no-cache"]])
def test_programs_are_kept_unless_told_otherwise(options, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    done = called("-c", CACHE, *options)
    assert b"nowhere: no run here" in done.stderr
    enabled, folder = done.stdout.decode().split()
    assert enabled == str(not options)
    assert (folder == "None") == bool(options) == (not list(tmp_path.iterdir()))
