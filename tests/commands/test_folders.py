"""Run folders belong to one process; what fails before its first row leaves nothing."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from rljax.commands import errors, folders

ROW = "step,seed\n1,0\n"
# Claims a folder at a given time, writes a row and holds it until it is told to end.
CLAIMS = """
import pathlib, sys, time
from rljax.commands import folders
_, folder, free, begin = sys.argv
time.sleep(max(0, float(begin) - time.time()))
try:
    with folders.claim(pathlib.Path(folder), free=free == "free") as mine:
        (mine / "metrics.csv").write_text("step,seed\\n1,0\\n")
        print(mine.name, flush=True)
        sys.stdin.read()
except folders.Taken as error:
    print("taken:", error, flush=True)
"""


def start(folder, free="", begin=0.0):
    command = [sys.executable, "-c", CLAIMS, str(folder), free, str(begin)]
    return subprocess.Popen(command, stdin=-1, stdout=-1, text=True)


def together(folder, free, number=6):
    """What processes that start at once print."""
    begin = time.time() + 0.5
    processes = [start(folder, free, begin) for _ in range(number)]
    lines = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    return lines


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "a"


def refused(match, folder, *, resume=False, error=folders.Taken):
    with pytest.raises(error, match=match), folders.claim(folder, resume=resume):
        pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_of_processes_that_want_one_name_one_gets_it(run):
    lines = together(run, "")
    assert lines.count("a") == 1
    assert all(line in ("a",) or line.startswith("taken:") for line in lines)
    assert names(run) == ["metrics.csv"]


def test_processes_with_the_same_default_name_all_run(run):
    lines = together(run, "free")
    assert sorted(lines) == ["a", *(f"a-{i}" for i in range(2, 7))]
    assert names(run.parent) == sorted(lines)


@pytest.mark.parametrize("resume", [False, True])
def test_a_live_run_is_named(run, resume):
    who = f"process {os.getpid()} on {socket.gethostname()} since 20"
    with folders.claim(run):
        refused(f"^{run}: exists, in use by {who}", run, resume=resume)
        assert names(run) == ["lock"]
    assert names(run) == []  # the other claim took nothing with it


def test_a_killed_run_blocks_nothing(run):
    process = start(run)
    assert process.stdout.readline() == "a\n"
    refused(f"process {process.pid} on", run, resume=True)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert names(run) == ["lock", "metrics.csv"]
    with folders.claim(run, resume=True):
        pass
    assert names(run) == ["metrics.csv"]


def fail(run, *, inside=lambda: None, error=OverflowError):
    with pytest.raises(error), folders.claim(run):
        (run / "config.json").write_text("{}")
        (run / "metrics.csv").write_text("step,seed\n1,")
        (run / "checkpoints/.1.tmp").mkdir(parents=True)
        inside()
        raise error


@pytest.mark.parametrize("error", [OverflowError, KeyboardInterrupt, SystemExit])
def test_what_fails_before_its_first_row_gives_its_name_back(run, error):
    fail(run, error=error)
    assert names(run.parent) == []
    with folders.claim(run):
        pass


def test_a_folder_of_others_stays(run):
    run.mkdir(parents=True)
    fail(run)
    assert names(run.parent) == ["a"] and names(run) == []
    run.rmdir()
    fail(run, inside=lambda: (run / "notes.txt").write_text("mine"))
    assert names(run) == ["notes.txt"]


@pytest.mark.parametrize("kept", ["row", "checkpoint"])
def test_what_has_a_row_or_a_checkpoint_stays(run, kept):
    def inside():
        if kept == "row":
            (run / "metrics.csv").write_text(ROW)
        else:
            (run / "checkpoints/1").mkdir()

    fail(run, inside=inside)
    assert names(run) == ["checkpoints", "config.json", "metrics.csv"]
    refused("a: exists; go on with --resume", run)
    with folders.claim(run, free=True) as other:
        assert other.name == "a-2"


def test_a_full_disk_while_claiming_leaves_nothing(run, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "write", full)
    full_lock = f"No space left on device: '{run}/lock'"
    with pytest.raises(OSError, match=full_lock), folders.claim(run):
        pass
    assert names(run.parent) == []


def test_leftovers_of_a_killed_start_may_be_taken_and_nothing_else(run):
    run.mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "metrics.csv").write_text("step,seed\n1,0")
    (run / "lock").write_text("process 1 on nowhere")
    with folders.claim(run):
        pass
    (run / "thesis.tex").write_text("mine")
    before = names(run)
    refused("a: exists; go on", run)
    assert names(run) == before
    for name in ("config.json", "config.json/deeper"):
        refused("config.json: not a folder", run / name, error=ValueError)


def test_a_lock_that_goes_while_it_is_awaited_is_made_anew(run, monkeypatch):
    """A run that fails removes folder and lock between another's open and lock."""
    real, gone = folders.fcntl.flock, []

    def removed_first(descriptor, how):
        if not gone:
            gone.append((run / "lock").unlink())
            run.rmdir()
        real(descriptor, how)

    monkeypatch.setattr(folders.fcntl, "flock", removed_first)
    with folders.claim(run), pytest.raises(folders.Taken), folders.claim(run):
        pass
    assert gone


def test_a_run_that_comes_between_look_and_lock_stays(run, monkeypatch):
    run.mkdir(parents=True)
    real = folders.fcntl.flock

    def after_another(descriptor, how):
        (run / "metrics.csv").write_text(ROW)
        real(descriptor, how)

    monkeypatch.setattr(folders.fcntl, "flock", after_another)
    refused("a: exists; go on with --resume", run)
    assert names(run) == ["metrics.csv"]


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    folders.write_text(path, "old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        folders.write_text(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["a.json"]


def test_an_output_replaces_its_own_kind_only(tmp_path):
    for text in ("", "step,seed\n"):
        (tmp_path / "a.csv").write_text(text)
        folders.check_output(tmp_path / "a.csv", b"step,", b"other,")
    folders.check_output(tmp_path / "deep" / "new.csv")
    assert names(tmp_path) == ["a.csv", "deep"] and names(tmp_path / "deep") == []
    for starts, words in (((b"name,",), " and is something else; not"), ((), "; not")):
        with pytest.raises(ValueError, match=f"a.csv: exists{words} overwritten"):
            folders.check_output(tmp_path / "a.csv", *starts)
    with pytest.raises(ValueError, match="deep: is a folder"):
        folders.check_output(tmp_path / "deep")
    with pytest.raises(OSError):
        folders.check_output(tmp_path / "a.csv" / "b.csv")


NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.csv")


@pytest.mark.parametrize(
    "error, code, line",
    [
        (ValueError("two\nlines"), 2, "error: two lines"),
        (NO_SPACE, 2, "error: runs/a/metrics.csv: No space left on device"),
        (OSError("<urlopen error no network>"), 2, "error: <urlopen error no network>"),
        (ConnectionError(), 2, "error: ConnectionError"),
        (OverflowError("big"), 2, "error: big"),
        (ImportError("No module named 'x'"), 2, "error: No module named 'x'"),
        (SystemExit("--repeats 0"), 2, "error: --repeats 0"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nBFC"),
            2,
            "error: out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 "
            "bytes.",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_machine_refuses_is_one_line(capsys, error, code, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        errors.one_line_errors(main)()
    assert end.value.code == code
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("error", [RuntimeError("a bug"), TypeError("a bug")])
def test_a_bug_has_its_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error), match="a bug"):
        errors.one_line_errors(main)()
