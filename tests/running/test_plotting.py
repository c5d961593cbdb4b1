import sys

import numpy as np
import pytest

from rljax.running import plotting
from rljax.running.plotting import interval, learning_curve, learning_curves


def column(*values):
    return np.array(values, float)[:, None]


@pytest.mark.parametrize(
    "values, iqm",
    [
        ((5,), 5),
        ((1, 3), 2),
        ((9, 0, 3), (0.25 * 0 + 3 + 0.25 * 9) / 1.5),
        ((9, 1, 0, 2), 1.5),
        ((100, 2, 1, 3, 0), (0.75 * 1 + 2 + 0.75 * 3) / 2.5),
        ((-50, 4, 3, 2, 1, 0, 5, 90), 2.5),
        ((np.nan, 9, 1, 0, 2), 1.5),
        ((np.inf, 1, -np.inf, 2), 1.5),
    ],
)
def test_iqm_by_hand(values, iqm):
    center, _, _ = interval(column(*values), resamples=10)
    np.testing.assert_allclose(center, [iqm], rtol=1e-12)


def test_iqm_is_rliables_where_seeds_are_not_cut():
    values = np.random.default_rng(0).normal(size=(12, 5))
    middle = np.sort(values, axis=0)[3:9]
    np.testing.assert_allclose(interval(values)[0], middle.mean(axis=0))


@pytest.mark.parametrize("statistic", ["iqm", "mean"])
def test_interval_of_two_seeds_by_hand(statistic):
    """Of two seeds at 0 and 4, draws average 0, 2, 4 with odds 1, 2, 1."""
    values = np.array([[0.0, 1.0], [4.0, 1.0]])
    center, low, high = interval(values, 0.95, statistic)
    assert (center.tolist(), low.tolist(), high.tolist()) == ([2, 1], [0, 1], [4, 1])
    center, low, high = interval(values, 0.4, statistic)
    assert (center.tolist(), low.tolist(), high.tolist()) == ([2, 1], [2, 1], [2, 1])


def test_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(1).normal(size=(50, 4))
    center, low, high = interval(values, statistic="mean", resamples=5000)
    np.testing.assert_allclose(center, values.mean(axis=0))
    half = 1.96 * values.std(axis=0) / np.sqrt(50)
    np.testing.assert_allclose(low, center - half, atol=0.05 * half.max() + 0.01)
    np.testing.assert_allclose(high, center + half, atol=0.05 * half.max() + 0.01)


def test_mean_feels_an_outlier_and_iqm_does_not():
    values = column(0, 1, 2, 1000)
    assert interval(values, statistic="mean")[0] == [250.75]
    assert interval(values, statistic="iqm")[0] == [1.5]


def test_same_seed_same_interval():
    values = np.random.default_rng(0).normal(size=(7, 3))
    first, again, other = (
        interval(values, resamples=20, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first[1] != other[1]).all()


def test_nan_carries_the_last_value_forward():
    nan = np.nan
    values = np.array([[nan, 1, nan, 3], [nan, nan, 5, nan]])
    center, low, high = interval(values, statistic="mean")
    np.testing.assert_array_equal(center, [nan, 1, 3, 4])
    np.testing.assert_array_equal(low, [nan, 1, 1, 3])
    np.testing.assert_array_equal(high, [nan, 1, 5, 5])
    assert np.isnan(values[0, 2])  # the argument is as it was


def test_one_seed_has_no_band():
    center, low, high = interval(np.array([[1.0, np.nan, 3.0]]))
    for values in (center, low, high):
        assert values.tolist() == [1, 1, 3]


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        ((np.zeros(3),), {}, r"values \(3,\) must be \[S, R\]"),
        ((np.zeros((0, 3)),), {}, r"values \(0, 3\) must be"),
        ((np.zeros((2, 3)), 0.95, "median"), {}, "statistic='median' must be"),
        ((np.zeros((2, 3)), 95), {}, "confidence=95 must be"),
        ((np.zeros((2, 3)),), {"resamples": 0}, "resamples=0 >= 1"),
    ],
)
def test_bad_arguments(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        interval(*arguments, **options)


def drawn(monkeypatch, runs, path, draw=learning_curve, **options):
    """The figure that is written, and the file's content."""
    figures = []
    write = plotting.write_figure

    def spy(figure, path):
        figures.append(figure)
        return write(figure, path)

    monkeypatch.setattr(plotting, "write_figure", spy)
    assert draw(runs, path, **options) == path
    return figures[0], path.read_bytes()


def some_runs():
    rng = np.random.default_rng(0)
    steps = np.arange(0, 1_000_001, 100_000)
    several = rng.normal(size=(4, 11)).cumsum(axis=1)
    several[:, 0] = np.nan
    return {"ppo": (steps, several), "dqn": (steps, several[:1] + 3)}


def test_a_panel_for_each_environment(tmp_path, monkeypatch):
    runs, path = some_runs(), tmp_path / "two.png"
    panels = {"CartPole": runs, "Acrobot": {"ppo": runs["ppo"]}}
    figure, _ = drawn(monkeypatch, panels, path, learning_curves)
    first, second = figure.axes
    assert first.get_title(loc="left") == "CartPole"
    assert second.get_title(loc="left") == "Acrobot"
    assert (first.get_ylabel(), second.get_ylabel()) == ("Episode return", "")
    assert len(first.lines) == 2 and len(second.lines) == 1
    texts = [text.get_text() for text in first.get_legend().get_texts()]
    assert texts == ["ppo (4 seeds)", "dqn (1 seed)"]
    assert second.get_legend() is None  # a title says as much
    with pytest.raises(ValueError, match="panels is empty"):
        learning_curves({}, tmp_path / "none.png")


def test_picture_of_several_runs(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "curve.png"
    path.parent.mkdir()
    path.write_text("old")
    runs = some_runs()
    figure, png = drawn(monkeypatch, runs, path, title="CartPole-v1", ylabel="Return")
    assert png.startswith(b"\x89PNG\r\n") and png.endswith(b"IEND\xaeB`\x82")
    assert [p.name for p in path.parent.iterdir()] == ["curve.png"]
    (axes,) = figure.axes
    assert axes.get_title("left") == "CartPole-v1"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Environment steps", "Return")
    assert len(axes.collections) == 1  # one band: a single seed has none
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), runs["ppo"][0])
    np.testing.assert_array_equal(
        axes.lines[0].get_ydata(), interval(runs["ppo"][1])[0]
    )
    legend = axes.get_legend()
    assert [t.get_text() for t in legend.texts] == ["ppo (4 seeds)", "dqn (1 seed)"]
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert {"0", "200k", "1M"} <= set(ticks)
    assert "Interquartile mean over seeds" in axes.texts[0].get_text()


def test_a_row_below_for_each_tuned_value(tmp_path, monkeypatch):
    runs, path = some_runs(), tmp_path / "curve.png"
    gamma = {"ppo": (np.arange(3), np.full((4, 3), 0.9))}
    figure, _ = drawn(monkeypatch, runs, path, title="PPO", below={"gamma": gamma})
    above, below = figure.axes
    assert (above.get_ylabel(), below.get_ylabel()) == ("Episode return", "gamma")
    assert (above.get_xlabel(), below.get_xlabel()) == ("", "Environment steps")
    assert (above.get_title("left"), below.get_title("left")) == ("PPO", "")
    assert above.get_legend() and not below.get_legend()
    np.testing.assert_allclose(below.lines[0].get_ydata(), 0.9)
    assert above.get_xlim() == below.get_xlim()


def test_many_values_below_stand_in_a_grid(tmp_path, monkeypatch):
    """Ten tuned values: three to a row, each named, on a picture that stays short."""
    steps = np.arange(4) * 1000
    runs = {"ppo": (steps, np.ones((2, 4)))}
    ten = {f"value{i}": {"ppo": (steps, np.full((2, 4), i + 1.0))} for i in range(9)}
    ten["rate"] = {"ppo": (steps, np.array([[1e-4, 1e-3, 1e-2, 1e-1]]))}
    path = tmp_path / "ppo.png"
    figure, _ = drawn(monkeypatch, runs, path, title="PPO", below=ten)
    above, *below = figure.axes
    assert above.get_title("left") == "PPO"
    assert [axes.get_title("left") for axes in below] == list(ten)
    assert [axes.get_yscale() for axes in below] == ["linear"] * 9 + ["log"]
    np.testing.assert_allclose(below[3].lines[0].get_ydata(), 4.0)
    assert len({round(axes.get_position().x0, 2) for axes in below}) == 3
    assert figure.get_size_inches()[1] < 13


def test_rows_below_keep_colours_and_may_be_empty(tmp_path, monkeypatch):
    runs, path = some_runs(), tmp_path / "curve.png"
    last = list(runs)[-1]
    gamma = {"A": {last: (np.arange(3), np.full((4, 3), 0.9))}, "B": {}}
    args = ({"A": runs, "B": runs}, path, learning_curves)
    figure, _ = drawn(monkeypatch, *args, below={"gamma": gamma})
    above, _, below, empty = figure.axes
    assert below.lines[0].get_color() == above.lines[-1].get_color()
    assert above.lines[0].get_color() != above.lines[-1].get_color()
    assert below.axison and not empty.axison


def test_picture_of_one_run(tmp_path, monkeypatch):
    runs = {"ppo": some_runs()["ppo"]}
    path = tmp_path / "curve.png"
    figure, _ = drawn(monkeypatch, runs, path, title="PPO", statistic="mean")
    (axes,) = figure.axes
    assert axes.get_legend() is None
    assert axes.texts[0].get_text().startswith("Mean over 4 seeds")


@pytest.mark.parametrize(
    "values",
    [
        np.full((2, 3), np.nan),
        np.ones((1, 3)),
        np.array([[1, np.inf, 2], [1, -np.inf, np.inf]]),
    ],
)
def test_picture_of_next_to_nothing(tmp_path, values):
    learning_curve({"ppo": (np.arange(3), values)}, tmp_path / "a.png", title="A")
    learning_curve(
        {"ppo": (np.arange(1), values[:, :1])}, tmp_path / "b.png", title="B"
    )
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "b.png"}


def test_an_interrupted_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curve.png"
    path.write_text("old")

    def fail(*args):
        raise OSError("killed")

    monkeypatch.setattr(plotting.os, "replace", fail)
    with pytest.raises(OSError, match="killed"):
        learning_curve(some_runs(), path, title="A")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "runs, words",
    [
        ({}, "runs is empty"),
        ({"ppo": (np.arange(3), np.ones(3))}, r"ppo: steps \(3,\), values \(3,\)"),
        ({"ppo": (np.arange(4), np.ones((2, 3)))}, r"ppo: steps \(4,\), values \(2, 3"),
    ],
)
def test_bad_runs(tmp_path, runs, words):
    with pytest.raises(ValueError, match=words):
        learning_curve(runs, tmp_path / "a.png", title="A")
    assert list(tmp_path.iterdir()) == []


def test_no_pyplot_state(tmp_path):
    pyplot = sys.modules.get("matplotlib.pyplot")  # others may have imported it
    before = pyplot.get_fignums() if pyplot else None
    learning_curve(some_runs(), tmp_path / "a.png", title="A")
    assert sys.modules.get("matplotlib.pyplot") is pyplot
    assert pyplot is None or pyplot.get_fignums() == before
