from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from PIL import Image

from mimo_benchmarks.report import plots
from mimo_benchmarks.report.plots import Point, Series
from mimo_benchmarks.result import Spread

RATE = Spread(value=1000, low=900, high=1200)
ONE = Point(n="n = 1", accuracy=0.9, spread=0.01, macs=4e6, rates={"some GPU": RATE})
FOUR = Point(n="n = 4", accuracy=0.8, spread=0.02, macs=1e6, rates={})
OURS = Series(
    label="MIMOConv",
    superposed=True,
    points=[ONE, FOUR],
    train_curves=[("1", [1, 2, 3], [0.1, 0.2, 0.6])],
    dev_curves=[("1", [2], [0.5])],
)
PLAIN = Series(
    label="_plain $x$",
    superposed=False,
    points=[
        Point(n="n = 1", accuracy=0.85, spread=0.0, macs=2e6, rates={"some GPU": Spread(value=3000, low=3000, high=3000)}),
    ],
)


def points(axes) -> dict[str, tuple[list[float], list[float]]]:
    """By label, what is drawn: x and y."""
    bars = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    return {bar.get_label(): tuple(list(values) for values in bar[0].get_data()) for bar in bars}


def test_accuracy_is_in_both_panels_at_its_cost_and_its_rate():
    figure = plots.draw_accuracy_throughput([OURS, PLAIN])
    top, bottom = figure.axes
    assert points(top) == {"MIMOConv": ([4, 1], [90, 80]), "plain $x$": ([2], [85])}
    assert points(bottom) == {"MIMOConv": ([1000], [90]), "plain $x$": ([3000], [85])}
    assert top.get_shared_y_axes().joined(top, bottom)
    assert bottom.get_xlabel() == "inputs per second\nsome GPU"
    assert legend(figure) == ["MIMOConv", "plain $x$", "n = 1", "n = 4"]


def test_each_n_has_a_marker_which_the_legend_explains():
    """Words beside the points would cover those of other networks."""
    other = Series(label="other", superposed=True, points=[FOUR])
    figure = plots.draw_accuracy_throughput([OURS, PLAIN, other])
    top = figure.axes[0]
    drawn = [
        (line.get_marker(), line.get_xdata()[0])
        for line in top.lines
        if line.get_marker() in ("o", "s") and len(line.get_xdata())
    ]
    assert sorted(drawn) == [("o", 2), ("o", 4), ("s", 1), ("s", 1)]
    handles = dict(zip(legend(figure), figure.legends[0].legend_handles, strict=True))
    assert [handles[n].get_marker() for n in ("n = 1", "n = 4")] == ["o", "s"]
    assert not top.texts
    assert legend(plots.draw_accuracy_throughput([PLAIN])) == ["plain $x$"]


@pytest.mark.parametrize("low", [150, 9_000, 24_000, 950_000])
@pytest.mark.parametrize("factor", [1, 1.01, 1.5, 2.4, 2.6, 5.9, 6.1, 19, 21, 199])
def test_numbers_of_an_axis_of_rates_do_not_collide(low, factor):
    rates = [Spread(value=value, low=value, high=value) for value in (low, low * factor)]
    rows = [Point(n="", accuracy=0.5, spread=0, macs=1e6, rates={"a": one}) for one in rates]
    figure = plots.draw_accuracy_throughput([Series(label="x", superposed=False, points=rows)])
    figure.draw_without_rendering()
    axes = figure.axes[1]
    left, right = axes.get_xlim()
    labels = [label for at, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True) if left <= at <= right]
    boxes = [label.get_window_extent() for label in labels]
    assert labels
    assert all(one.x1 + 3 < two.x0 for one, two in pairwise(boxes))


@pytest.mark.parametrize(("value", "shown"), [(0.25, "0.25"), (9000, "9,000"), (24000, "24k"), (1.5e6, "1.5M")])
def test_numbers_of_axes_are_short(value, shown):
    assert plots.short_number(value, 0) == shown


def bars(axes) -> tuple[list[list[float]], list[list[float]]]:
    """Ends of the bars of the only network: horizontal and vertical ones."""
    (container,) = axes.containers
    across, along = (lines.get_segments() for lines in container[2])
    return [list(segment[:, 0]) for segment in across], [list(segment[:, 1]) for segment in along]


def test_bars_are_as_long_as_the_spread():
    top, bottom = plots.draw_accuracy_throughput([OURS]).axes
    np.testing.assert_allclose(bars(top), [[[4, 4], [1, 1]], [[89, 91], [78, 82]]])
    np.testing.assert_allclose(bars(bottom), [[[900, 1200]], [[89, 91]]])


def test_panels_are_of_one_height_where_networks_were_timed_on_different_devices():
    other = Series(label="y", superposed=True, points=[Point(n="", accuracy=0.6, spread=0, macs=1e6, rates={"a": RATE})])
    figure = plots.draw_accuracy_throughput([OURS, PLAIN, other])
    figure.draw_without_rendering()
    heights = [axes.get_window_extent().height for axes in figure.axes]
    assert min(heights) > 0.95 * max(heights) > 2 * figure.dpi


def test_each_device_has_a_panel_and_runs_that_were_timed_apart_are_told():
    gpu, cpu = (Spread(value=value, low=value, high=value) for value in (8000.0, 1000.0))
    both = Series(label="x", superposed=True, points=[Point(n="", accuracy=0.5, spread=0, macs=1e6, rates={"b": gpu, "a": cpu})])
    other = Series(label="y", superposed=True, points=[Point(n="", accuracy=0.6, spread=0, macs=1e6, rates={"a": gpu})])
    _, first, second = plots.draw_accuracy_throughput([both, other], {"a"}).axes
    assert points(first) == {"x": ([1000], [50]), "y": ([8000], [60])}
    assert points(second) == {"x": ([8000], [50])}
    assert first.get_xlabel() == "inputs per second, runs timed apart\na"
    assert second.get_xlabel() == "inputs per second\nb"


@pytest.mark.parametrize(
    ("accuracies", "limits"), [((0.995, 0.7), (None, 100)), ((1.0, 1.0), (None, 100)), ((0.0, 0.05), (0, None))]
)
def test_axes_of_accuracies_end_at_0_and_100_percent(accuracies, limits):
    """Bars too, while markers at the ends are drawn whole."""
    rows = [Point(n="n", accuracy=share, spread=0.02, macs=1e6 * (1 + place), rates={}) for place, share in enumerate(accuracies)]
    curve = ("1", [1, 2], accuracies)
    series = Series(label="x", superposed=True, points=rows, train_curves=[curve], dev_curves=[curve])
    for figure in (plots.draw_accuracy_throughput([series]), plots.draw_learning_curves([series])):
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        assert (low if limits[1] is None else high) == (limits[0] if limits[1] is None else limits[1])
        assert 0 <= low < high <= 100
        lines = [line for line in axes.lines if len(line.get_xdata())]
        assert not any(line.get_clip_on() for line in lines)
        assert all(line.get_zorder() > axes.spines["top"].get_zorder() for line in lines)
    (axes,) = plots.draw_accuracy_throughput([series]).axes
    assert min(map(min, bars(axes)[1])) >= 0
    assert max(map(max, bars(axes)[1])) <= 100


def test_without_rates_there_is_one_panel():
    assert len(plots.draw_accuracy_throughput([Series(label="x", superposed=True, points=[FOUR])]).axes) == 1


@pytest.mark.parametrize("factor", [1, 1.5, 3, 40, 3000])
def test_axis_of_cost_has_a_few_numbers_apart(factor):
    rows = [Point(n="", accuracy=0.5, spread=0, macs=3.3e6 * share, rates={}) for share in (1, factor)]
    (axes,) = plots.draw_accuracy_throughput([Series(label="x", superposed=False, points=rows)]).axes
    low, high = axes.get_xlim()
    inside = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 1 <= len(inside) <= 9
    assert not axes.get_xticks(minor=True).size


def test_superposed_networks_are_warm_and_joined_and_all_look_different():
    series = [Series(label=str(k), superposed=k % 2 == 0, points=[ONE, FOUR]) for k in range(6)]
    top = plots.draw_accuracy_throughput(series).axes[0]
    drawn = [bar[0] for bar in top.containers]
    colours = [to_hex(line.get_color()) for line in drawn]
    assert all((colour in plots.WARM) == (k % 2 == 0) for k, colour in enumerate(colours))
    assert len(set(colours)) == len(series)
    assert [line.get_linestyle() for line in drawn] == ["-", "None"] * 3


def test_learning_curves_are_running_means():
    values = np.linspace(0, 1, 100) ** 2
    long = Series(label="long", superposed=False, points=[ONE], train_curves=[("1", list(range(10, 1010, 10)), list(values))])
    (axes,) = plots.draw_learning_curves([OURS, long]).axes
    short, dev, _, smooth, _, _ = [line.get_data() for line in axes.lines]
    np.testing.assert_allclose(short, [[1, 2, 3], [10, 20, 60]])
    np.testing.assert_allclose(dev, [[2], [50]])
    np.testing.assert_allclose(smooth[0], range(40, 1010, 10))
    np.testing.assert_allclose(smooth[1], [100 * sum(values[k : k + 4]) / 4 for k in range(97)])
    assert legend(plots.draw_learning_curves([OURS, long])) == ["MIMOConv", "long", "on the dev split"]
    two = Series(label="two", superposed=True, points=[ONE], train_curves=[("2", [1, 2], [0.1, 0.2])])
    figure = plots.draw_learning_curves([two])
    assert legend(figure) == ["two", "n = 2"]
    assert figure.axes[0].xaxis.get_major_locator().tick_values(1, 2).tolist() == [1, 2]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_n_has_a_curve_in_a_style_of_its_own():
    """The curves of one network have one colour; a plain network has one curve, whatever the n of the others."""
    curves = [("10", [1, 4], [0.1, 0.2]), ("2", [2, 5], [0.3, 0.4]), ("1", [3, 6], [0.5, 0.6])]
    ours = Series(label="ours", superposed=True, points=[ONE], train_curves=curves, dev_curves=[("2", [2, 4], [0.1, 0.2])])
    plain = Series(label="plain", superposed=False, points=[ONE], train_curves=[("2", [1, 2], [0.1, 0.2])])
    figure = plots.draw_learning_curves([ours, plain])
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata())]
    np.testing.assert_allclose([line.get_ydata() for line in lines], [[10, 20], [30, 40], [50, 60], [10, 20], [10, 20]])
    ten, two, one, dev, single = lines
    assert len({line.get_color() for line in (ten, two, one, dev)}) == 1
    styles = [str(line._dash_pattern) for line in (ten, two, one, dev, single)]
    assert len(set(styles[:3])) == 3
    assert styles[3] == styles[1]
    assert styles[4] == styles[2]
    assert legend(figure) == ["ours", "plain", "n = 1", "n = 2", "n = 10", "on the dev split"]


def test_a_curve_of_a_single_point_is_a_point():
    curves = [("1", [20], [0.5]), ("2", [40, 60], [0.1, 0.2])]
    series = Series(label="x", superposed=True, points=[ONE], train_curves=curves)
    figure = plots.draw_learning_curves([series])
    (axes,) = figure.axes
    assert [line.get_marker() for line in axes.lines if len(line.get_xdata())] == ["o", ""]
    handles = dict(zip(legend(figure), figure.legends[0].legend_handles, strict=True))
    assert [handles[n].get_marker() for n in ("n = 1", "n = 2")] == ["o", ""]
    assert not axes.texts
    (axes,) = plots.draw_crosstalk({"2": {"logits": 0.5}}, {"2": {"logits": 0.4}}).axes
    assert [line.get_marker() for line in axes.lines if len(line.get_xdata())] == [".", "o"]


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
    odd = Series(
        label="$\\frac{$ {} 100% {x}",
        superposed=True,
        points=[Point(n="$_", accuracy=0.5, spread=0, macs=1, rates={"$\\x$": ONE.rates["some GPU"]})],
    )
    picture = Image.open(BytesIO(plots.render_png(lambda: plots.draw_accuracy_throughput([odd]))))
    assert picture.format == "PNG"
    assert picture.width == pytest.approx(plots.WIDTH * plots.DPI, abs=1)


def test_a_long_legend_makes_the_figure_higher_and_not_the_panels_lower():
    def height(count: int) -> float:
        series = [
            Series(label=f"a network {k}", superposed=False, points=[ONE], train_curves=[("1", [1], [0.5])]) for k in range(count)
        ]
        figure = plots.draw_learning_curves(series)
        figure.draw_without_rendering()
        return figure.axes[0].get_window_extent().height

    assert height(12) > 0.9 * height(1)
