from io import BytesIO

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from PIL import Image

from mimo_benchmarks.report import plots
from mimo_benchmarks.report.plots import Point, Series

ONE = Point(n="n = 1", accuracy=0.9, spread=0.01, macs=4e6, rate=1000.0)
FOUR = Point(n="n = 4", accuracy=0.8, spread=0.02, macs=1e6, rate=None)
OURS = Series(
    label="MIMOConv", superposed=True, points=[ONE, FOUR], train_curves=[([1, 2, 3], [0.1, 0.2, 0.6])], dev_curves=[([2], [0.5])]
)
PLAIN = Series(label="_plain $x$", superposed=False, points=[Point(n="n = 1", accuracy=0.85, spread=0.0, macs=2e6, rate=3000.0)])


def points(axes) -> dict[str, tuple[list[float], list[float]]]:
    """By label, what is drawn: x and y."""
    bars = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    return {bar.get_label(): tuple(list(values) for values in bar[0].get_data()) for bar in bars}


def test_accuracy_is_in_both_panels_at_its_cost_and_its_rate():
    figure = plots.draw_accuracy_throughput([OURS, PLAIN], "some GPU")
    top, bottom = figure.axes
    assert points(top) == {"MIMOConv": ([4, 1], [90, 80]), "plain $x$": ([2], [85])}
    assert points(bottom) == {"MIMOConv": ([1000], [90]), "plain $x$": ([3000], [85])}
    assert top.get_shared_y_axes().joined(top, bottom)
    assert "some GPU" in bottom.get_xlabel()
    assert [text.get_text() for text in top.texts] == ["n = 1", "n = 4"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["MIMOConv", "plain $x$"]


def test_bars_are_as_long_as_the_spread():
    top = plots.draw_accuracy_throughput([OURS], "").axes[0]
    (bar,) = top.containers
    segments = bar[2][0].get_segments()
    np.testing.assert_allclose([segment[:, 1] for segment in segments], [[89, 91], [78, 82]])


def test_without_rates_there_is_one_panel():
    assert len(plots.draw_accuracy_throughput([Series(label="x", superposed=True, points=[FOUR])], "").axes) == 1


@pytest.mark.parametrize("factor", [1, 1.5, 3, 40, 3000])
def test_axis_of_cost_has_a_few_numbers_apart(factor):
    rows = [Point(n="", accuracy=0.5, spread=0, macs=3.3e6 * share, rate=None) for share in (1, factor)]
    (axes,) = plots.draw_accuracy_throughput([Series(label="x", superposed=False, points=rows)], "").axes
    low, high = axes.get_xlim()
    inside = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 1 <= len(inside) <= 9
    assert not axes.get_xticks(minor=True).size


def test_superposed_networks_are_warm_and_joined_and_all_look_different():
    series = [Series(label=str(k), superposed=k % 2 == 0, points=[ONE, FOUR]) for k in range(6)]
    top = plots.draw_accuracy_throughput(series, "").axes[0]
    drawn = [bar[0] for bar in top.containers]
    colours = [to_hex(line.get_color()) for line in drawn]
    assert all((colour in plots.WARM) == (k % 2 == 0) for k, colour in enumerate(colours))
    assert len(set(colours)) == len(series)
    assert [line.get_linestyle() for line in drawn] == ["-", "None"] * 3
    heights = [text.xyann[1] for text in top.texts]
    assert heights == [10, 10, -10, -10, 10, 10]


def test_learning_curves_are_running_means():
    values = np.linspace(0, 1, 100) ** 2
    long = Series(label="long", superposed=False, points=[ONE], train_curves=[(list(range(10, 1010, 10)), list(values))])
    (axes,) = plots.draw_learning_curves([OURS, long]).axes
    short, dev, _, smooth, _, _ = [line.get_data() for line in axes.lines]
    np.testing.assert_allclose(short, [[1, 2, 3], [10, 20, 60]])
    np.testing.assert_allclose(dev, [[2], [50]])
    np.testing.assert_allclose(smooth[0], range(40, 1010, 10))
    np.testing.assert_allclose(smooth[1], [100 * sum(values[k : k + 4]) / 4 for k in range(97)])
    labels = [text.get_text() for text in plots.draw_learning_curves([OURS, long]).legends[0].get_texts()]
    assert labels == ["MIMOConv", "long", "on the dev split"]


def test_crosstalk_before_is_dotted_in_the_colour_of_after():
    before = {"2": {"superposed": 0.5, "logits": 0.6}}
    after = {"2": {"superposed": 0.4, "logits": 0.1}, "4": {"superposed": 0.7, "logits": 0.3}}
    (axes,) = plots.draw_crosstalk(before, after).axes
    first, second, third, _ = axes.lines
    assert [list(line.get_ydata()) for line in (first, second, third)] == [[0.5, 0.6], [0.4, 0.1], [0.7, 0.3]]
    assert [line.get_linestyle() for line in (first, second, third)] == [":", "-", "-"]
    assert first.get_color() == second.get_color() != third.get_color()
    assert [text.get_text() for text in plots.draw_crosstalk(before, after).legends[0].get_texts()] == [
        "n = 2",
        "n = 4",
        "before training",
    ]


def test_labels_are_taken_as_they_stand():
    assert plots.printable_label("__hidden") == "hidden"
    assert plots.printable_label("a\u4e2d\x1b\u202eb") == "a???b"
    long = plots.printable_label("word " * 100).split("\n")
    assert len(long) == 3
    assert all(len(line) <= 50 for line in long)
    odd = Series(label="$\\frac{$ {} 100% {x}", superposed=True, points=[Point(n="$_", accuracy=0.5, spread=0, macs=1, rate=1)])
    picture = Image.open(BytesIO(plots.render_png(lambda: plots.draw_accuracy_throughput([odd], "$\\x$"))))
    assert picture.format == "PNG"
    assert picture.width == round(plots.WIDTH * plots.DPI)


def test_a_long_legend_makes_the_figure_higher_and_not_the_panels_lower():
    def height(count: int) -> float:
        series = [
            Series(label=f"a network {k}", superposed=False, points=[ONE], train_curves=[([1], [0.5])]) for k in range(count)
        ]
        figure = plots.draw_learning_curves(series)
        figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().height

    assert height(12) > 0.9 * height(1)
