import io
import logging as std_logging
import math
import os
import struct
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from rljax.running import logging
from rljax.running.logging import (
    CsvSink,
    Progress,
    TensorBoardSink,
    WandbSink,
    read_csv,
)


def test_csv_text(tmp_path):
    path = tmp_path / "deep" / "log.csv"
    with CsvSink(path) as sink:
        sink.write({"step": 100, "seed": 0, "loss": 0.1, "a,b": math.nan})
        sink.write({"a,b": -math.inf, "loss": math.inf, "seed": 1, "step": 100})
        sink.write(
            {"step": jnp.int32(200), "seed": np.int64(0), "loss": jnp.float32(2)}
        )
        sink.write({"step": 1e20, "seed": True, "loss": 1 / 3, "a,b": 1700000000.123})
    assert path.read_text() == (
        'step,seed,loss,"a,b"\n'
        "100,0,0.1,nan\n"
        "100,1,inf,-inf\n"
        "200,0,2.0,nan\n"
        "1e+20,1,0.3333333333333333,1700000000.123\n"
    )


def test_csv_is_on_disk_after_every_write(tmp_path):
    sink = CsvSink(tmp_path / "log.csv")
    for step in range(3):
        sink.write({"step": step})
        assert read_csv(tmp_path / "log.csv")["step"].tolist() == [*range(step + 1)]
    sink.close()


def test_csv_new_column(tmp_path):
    with CsvSink(tmp_path / "log.csv") as sink:
        sink.write({"step": 1, "loss": 1.0})
        with pytest.raises(ValueError, match="log.csv: row with a new column 'kl'"):
            sink.write({"step": 2, "loss": 1.0, "kl": 2.0})
        sink.write({"step": 2, "loss": 1.0})
    assert read_csv(tmp_path / "log.csv")["step"].tolist() == [1, 2]


def test_csv_resume(tmp_path):
    path = tmp_path / "log.csv"
    with CsvSink(path) as sink:
        for step in (100, 200, 300):
            for seed in (0, 1):
                sink.write({"step": step, "seed": seed, "loss": step / 3})
    before = path.read_text()
    with CsvSink(path, resume_step=200) as sink:
        assert path.read_text() == before[: before.index("300,0")]
        with pytest.raises(ValueError, match="new column 'other'"):
            sink.write({"step": 250, "seed": 0, "loss": 1.0, "other": 0})
        sink.write({"loss": 7.0, "step": 250, "seed": 0})
    table = read_csv(path)
    assert table["step"].tolist() == [100, 100, 200, 200, 250]
    assert table["loss"].tolist() == [100 / 3] * 2 + [200 / 3] * 2 + [7.0]
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_csv_without_resume_starts_anew(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step\n1\n")
    with CsvSink(path) as sink:
        sink.write({"seed": 5})
    assert path.read_text() == "seed\n5\n"


@pytest.mark.parametrize("text", [None, "", "step,lo"])
def test_csv_resume_of_nothing(tmp_path, text):
    path = tmp_path / "log.csv"
    if text is not None:
        path.write_text(text)
    with CsvSink(path, resume_step=10) as sink:
        sink.write({"step": 11})
    assert path.read_text() == "step\n11\n"


def test_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n100,1.5\n200,2.2")  # of 2.25, say
    assert read_csv(path)["loss"].tolist() == [1.5]
    with CsvSink(path, resume_step=200) as sink:
        sink.write({"step": 200, "loss": 2.25})
    assert path.read_text() == "step,loss\n100,1.5\n200,2.25\n"


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "no columns in line 1"),
        ("step,loss\n1,2\n3\n", "line 3 has 1 cells, not 2"),
        ("step,loss\n1,low\n", "column 'loss': could not convert .*'low'"),
    ],
)
def test_read_csv_of_something_else(tmp_path, text, words):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}: {words}"):
        read_csv(path)


@pytest.mark.parametrize(
    "text, words",
    [
        ("loss\n1\n", "cannot resume, no column 'step'"),
        ("step\nmany\n", "column 'step': .*'many'"),
        ("step,loss\n1\n", "line 2 has 1 cells, not 2"),
    ],
)
def test_resume_of_something_else(tmp_path, text, words):
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path}: {words}"):
        CsvSink(path, resume_step=1)
    assert path.read_text() == text


def test_read_csv_types(tmp_path):
    with CsvSink(tmp_path / "log.csv") as sink:
        sink.write({"step": 2**40, "loss": 1, "x": math.inf})
        sink.write({"step": 3, "loss": math.nan, "x": -0.0})
    table = read_csv(tmp_path / "log.csv")
    assert table["step"].dtype == np.int64 and table["step"].tolist() == [2**40, 3]
    np.testing.assert_array_equal(table["loss"], [1.0, math.nan])
    assert table["x"][0] == math.inf and np.signbit(table["x"][1])


def rows_of_two_seeds():
    return [
        {"step": 100, "seed": 0, "loss": 1.0, "return": math.nan, "odd": math.inf},
        {"step": 100, "seed": 1, "loss": 4.0, "return": math.nan, "odd": -math.inf},
        {"step": 200, "seed": 0, "loss": 2.0, "return": math.nan, "odd": math.inf},
        {"step": 200, "seed": 1, "loss": 2.0, "return": 9.0, "odd": 1.0},
    ]


MEANS = [
    (100, {"loss": 2.5, "return": math.nan, "odd": math.nan}),
    (200, {"loss": 2.0, "return": 9.0, "odd": math.inf}),
]


def read_events(folder):
    """`(step, tag, value)` of every scalar in the one event file of `folder`."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.iterdir()
    content, scalars = path.read_bytes(), []
    while content:  # length, its checksum, the event, its checksum
        (size,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + size])
        content = content[16 + size :]
        scalars += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return scalars


def test_tensorboard(tmp_path, caplog, capfd):
    pytest.importorskip("tensorboardX")
    with TensorBoardSink(tmp_path / "tb") as sink:
        for row in rows_of_two_seeds():
            sink.write(row)
    found = read_events(tmp_path / "tb")
    wanted = [(step, tag, v) for step, row in MEANS for tag, v in row.items()]
    assert [event[:2] for event in found] == [event[:2] for event in wanted]
    np.testing.assert_array_equal([e[2] for e in found], [e[2] for e in wanted])
    assert caplog.records == [] and capfd.readouterr() == ("", "")
    assert std_logging.getLogger("tensorboardX").level == std_logging.NOTSET


def test_tensorboard_resume_hides_what_came_later(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import SessionLog

    with TensorBoardSink(tmp_path, resume_step=100) as sink:
        sink.write({"step": 150, "loss": 1.0})
    (path,) = tmp_path.iterdir()
    mark = SessionLog(status=SessionLog.START).SerializeToString()
    assert mark in path.read_bytes()
    assert read_events(tmp_path) == [(150, "loss", 1.0)]


def test_wandb(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda row, step: calls.append((step, row)),
        finish=lambda: calls.append("finish"),
    )

    def init(**options):
        calls.append(options)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    folder = tmp_path / "wandb"
    with WandbSink("project", "name", {"gamma": 0.9}, folder=folder) as sink:
        for row in rows_of_two_seeds():
            sink.write(row)
        assert len(calls) == 2  # step 100 is complete, 200 may go on
    assert folder.is_dir()
    wanted = {"project": "project", "name": "name", "config": {"gamma": 0.9}}
    assert calls[0] == {**wanted, "dir": str(folder)}
    assert [step for step, _ in calls[1:3]] == [100, 200]
    for (_, got), (_, want) in zip(calls[1:3], MEANS, strict=True):
        assert list(got) == list(want)
        np.testing.assert_array_equal([*got.values()], [*want.values()])
    assert calls[3:] == ["finish"]


@pytest.mark.parametrize(
    "module, make, extra",
    [
        ("tensorboardX", lambda path: TensorBoardSink(path), "tensorboard"),
        ("wandb", lambda path: WandbSink("p", "n", {}, folder=path), "wandb"),
    ],
)
def test_missing_extra(tmp_path, monkeypatch, module, make, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError) as error:
        make(tmp_path)
    wanted = f"{module} is not installed: pip install '.[{extra}]'"
    assert str(error.value) == wanted


@pytest.fixture
def clock(monkeypatch):
    """A clock the test sets."""
    now = types.SimpleNamespace(seconds=0.0)
    fake = types.SimpleNamespace(monotonic=lambda: now.seconds)
    monkeypatch.setattr(logging, "time", fake)
    return now


def test_progress_rate_ignores_compilation(clock):
    out = io.StringIO()
    with Progress(100_000, "ppo", file=out) as progress:
        clock.seconds = 60.0  # compiles
        progress.update(20_000)
        clock.seconds = 70.0
        progress.update(40_000, 123.456)
        clock.seconds = 100.0
        progress.update(100_000, math.nan)
    assert out.getvalue().splitlines() == [
        "ppo:  20% of 100k steps, return -, - steps/s, - left",
        "ppo:  40% of 100k steps, return 123.46, 2k steps/s, 0:00:30 left",
        "ppo: 100% of 100k steps, return -, 2k steps/s, 0:00:00 left",
    ]


def test_progress_shows_rewards_where_no_episode_ended(clock):
    out = io.StringIO()
    with Progress(100, "ppo", file=out) as progress:
        progress.update(50, math.nan, -0.0384)
        progress.update(100, 123.456, -0.0384)
    first, second = out.getvalue().splitlines()
    assert "steps, reward -0.038, " in first
    assert "steps, return 123.46, " in second


@pytest.mark.parametrize(
    "seconds_per_update, lines",
    [
        (0.001, 11),  # a tenth of the run each, and the first
        (0.5, 100),  # a hundredth each that takes two seconds
        (0.01, 11),
    ],
)
def test_progress_prints_few_lines(clock, seconds_per_update, lines):
    out = io.StringIO()
    with Progress(1000, "ppo", file=out) as progress:
        for step in range(1, 1001):
            clock.seconds += seconds_per_update
            progress.update(step, 1.0)
    printed = out.getvalue().splitlines()
    assert abs(len(printed) - lines) <= 1
    assert printed[-1].startswith("ppo: 100%")


def test_progress_shows_every_tenth_and_the_end_at_once(clock):
    out = io.StringIO()
    with Progress(1000, "ppo", file=out) as progress:
        for step in (50, 150, 160, 250, 350, 450, 550, 650, 750, 850, 950, 960, 1000):
            progress.update(step)
        printed = [int(line[5:8]) for line in out.getvalue().splitlines()]
        assert printed == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95, 100]
    assert len(out.getvalue().splitlines()) == 11


def test_progress_ends_with_the_last_update(clock):
    out = io.StringIO()
    with Progress(1000, "ppo", file=out) as progress:
        progress.update(500)
        progress.update(501)
    assert [line[:9] for line in out.getvalue().splitlines()] == ["ppo:  50%"] * 2
    out = io.StringIO()
    with pytest.raises(KeyError), Progress(1000, "ppo", file=out) as progress:
        progress.update(500)
        progress.update(501)
        raise KeyError
    assert len(out.getvalue().splitlines()) == 1
    with Progress(1000, "ppo", file=out):
        pass  # no update at all


def test_progress_goes_to_stderr(capsys):
    with Progress(10, "ppo") as progress:
        progress.update(10)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ppo: 100% of 10 steps")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal(monkeypatch, clock):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    with Progress(1000, "[ppo]", file=out) as progress:
        for step in range(1, 999):
            clock.seconds += 0.001
            progress.update(step, 21.5)
    text = out.getvalue()
    assert "[ppo] " in text and "━" in text and "100%" in text
    assert "return 21.50, 1k steps/s, 0:00:00 left" in text
    assert 10 <= text.count("return") <= 15  # ten a second, not all 998


@pytest.mark.parametrize(
    "value, text",
    [(0, "0"), (950, "950"), (999.9, "1k"), (52_345, "52.3k"), (999_999, "1M"),
     (1.25e6, "1.25M"), (3e10, "30G"), (math.nan, "-"), (math.inf, "-")],
)  # fmt: skip
def test_short(value, text):
    assert logging._short(value) == text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
def test_a_full_disk_is_an_error_with_the_file_s_name():
    sink = CsvSink("/dev/full")
    for write in (lambda: sink.write({"step": 1}), sink.close):
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            write()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="of Linux")
def test_tensorboard_on_a_full_disk_is_an_error_and_no_hang(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    from tensorboardX import record_writer

    real = record_writer.RecordWriter
    monkeypatch.setattr(record_writer, "RecordWriter", lambda path: real("/dev/full"))
    sink = TensorBoardSink(tmp_path)
    full = f"No space left on device: '{tmp_path}/events.out.tfevents"
    with pytest.raises(OSError, match=full), sink:
        for step in range(10_000):
            sink.write({"step": step, "loss": 1.0})
