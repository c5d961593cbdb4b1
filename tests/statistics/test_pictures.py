"""Pictures: what is drawn, read back from the figure."""

import numpy as np
import pytest

from rljax.running import plotting
from rljax.statistics import Interval, pictures


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Figures that were written, and a path to write to."""
    figures, write = [], plotting.write_figure

    def keep(figure, path):
        figures.append(figure)
        return write(figure, path)

    monkeypatch.setattr(plotting, "write_figure", keep)
    return figures, tmp_path / "picture.png"


def interval(*numbers):
    return Interval(*map(np.array, numbers))


def bars(axes):
    return [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]


def estimates(axes):
    return [line.get_xdata()[0] for line in axes.lines]


def names(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_intervals_are_bars_by_method(drawn):
    figures, path = drawn
    of = {"ppo": interval(0.5, 0.25, 0.75), "dqn": interval(2.0, 1.5, 2.25)}
    aggregates = {"IQM": of, "mean": {"dqn": of["dqn"], "ppo": of["ppo"]}}
    assert pictures.draw_intervals(aggregates, path, note="scores") == path
    assert path.read_bytes().startswith(b"\x89PNG")
    first, second = figures[0].axes
    assert [x.get_title("left") for x in (first, second)] == ["IQM", "mean"]
    assert bars(first) == [(0.25, 0.75), (1.5, 2.25)] == bars(second)[::-1]
    assert estimates(first) == [0.5, 2.0]
    assert names(first) == ["ppo", "dqn"]
    assert [bar.get_y() + 0.3 for bar in second.patches] == [1, 0]  # rows by name
    low, high = first.get_xlim()
    assert low < 0.25 and high > 2.25


def test_curves_have_bands(drawn):
    figures, path = drawn
    center = np.array([1.0, 0.5, 0.0])
    curves = {"ppo": Interval(center, center - 0.25, center + 0.125)}
    x = np.array([0, 1000, 2000])
    pictures.draw_curves(curves, x, path, xlabel="steps", ylabel="IQM")
    (axes,) = figures[0].axes
    (line,) = axes.lines
    assert line.get_xdata().tolist() == x.tolist()
    assert line.get_ydata().tolist() == center.tolist()
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == -0.25 and band[:, 1].max() == 1.125
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", "IQM")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ppo"]


def test_improvements_stand_beside_one_half(drawn):
    figures, path = drawn
    pairs = {"a > b": interval(0.75, 0.5, 1.0), "a > c": interval(0.25, 0.0, 0.5)}
    pictures.draw_improvement(pairs, path)
    (axes,) = figures[0].axes
    assert bars(axes) == [(0.5, 1.0), (0.0, 0.5)]
    assert estimates(axes) == [0.75, 0.25, 0.5]
    assert names(axes) == ["a > b", "a > c"]
    assert axes.get_xlim() == (0, 1)


@pytest.mark.parametrize(
    "draw",
    [
        lambda path: pictures.draw_intervals({}, path),
        lambda path: pictures.draw_intervals({"IQM": {}}, path),
        lambda path: pictures.draw_improvement({}, path),
        lambda path: pictures.draw_curves({}, np.arange(2), path, xlabel="", ylabel=""),
    ],
)
def test_nothing_to_draw_is_refused(draw, tmp_path):
    with pytest.raises(ValueError, match="nothing to draw: no method"):
        draw(tmp_path / "picture.png")
    assert not any(tmp_path.iterdir())
