"""Draw the figures of a report: accuracy against cost and throughput, learning curves, crosstalk."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import cycle
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from mimo_benchmarks.result import Spread

WARM = ("#c2410c", "#f59e0b", "#be123c", "#7c2d12", "#ec4899")
COLD = ("#1d4ed8", "#0891b2", "#7c3aed", "#475569", "#059669", "#38bdf8", "#84cc16")
MARKERS = "osD^vPX"
"""Markers that tell the n of a network apart."""
OVER_FRAME: dict[str, Any] = {"clip_on": False, "zorder": 3}
"""Draws lines and markers at 0 and 100 % whole: the frame of the axes has zorder 2.5."""
LineStyle = str | tuple[float, tuple[float, ...]]
DPI = 200
WIDTH = 4.6
"""Width of a figure in inches; narrow, so that its text is large enough to read on a phone."""
LINES: tuple[LineStyle, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (9, 3)), (0, (5, 1, 1, 1, 1, 1)))
"""Line styles that tell the n of a network apart in learning curves."""
DEV: dict[str, Any] = {"marker": "o", "markersize": 4, "markerfacecolor": "white"}
"""Markers of accuracies on the dev split."""
NamedCurve = tuple[str, Sequence[float], Sequence[float]]
"""n, steps, and the share of right answers at each."""
Stages = Mapping[str, float]
"""Crosstalk at each place of the network, from its input on; NaN where it is unknown."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One network at one n."""

    n: str
    """Label of the point."""
    accuracy: float
    """Mean share of the test inputs answered right, over the seeds."""
    spread: float
    """Standard deviation of that share over the seeds."""
    macs: float
    """Multiply-adds per input."""
    rates: Mapping[str, Spread]
    """Inputs per second, with their quartiles, on each device where they were measured."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One network at all its n."""

    label: str
    """Name of the network in legends."""
    superposed: bool
    points: Sequence[Point]
    train_curves: Sequence[NamedCurve] = ()
    """For each seed and n, the steps with that n and the accuracy on their training inputs."""
    dev_curves: Sequence[NamedCurve] = ()
    """For each seed and n, the steps and the accuracy on the dev split."""


def render_png(draw: Callable[[], Figure]) -> bytes:
    """Return the figure that a function draws, as a PNG file; a dollar sign in its text does not begin a formula."""
    file = BytesIO()
    with rc_context({"text.parse_math": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10}):
        draw().savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def printable_label(label: str) -> str:
    """Return a label in ASCII on at most three lines, without leading underscores, which would hide it from the legend."""
    return "\n".join(wrap("".join(c if " " <= c <= "~" else "?" for c in label).lstrip("_"), 50)[:3])


def series_colours(series: Sequence[Series]) -> list[tuple[Series, str]]:
    """Return each series with its colour: a warm one for superposed networks, a cold one for plain networks."""
    warm, cold = cycle(WARM), cycle(COLD)
    return [(one, next(warm if one.superposed else cold)) for one in series]


def markers_of_n(labels: Collection[str]) -> dict[str, str]:
    """Return the marker of each n, in the order of their numbers."""
    return dict(zip(sorted(labels, key=lambda n: (len(n), n)), cycle(MARKERS), strict=False))


def short_number(value: float, _: float) -> str:
    """Write a number on an axis so that it takes little room, such as 24k."""
    if value < 1e4:
        return f"{value:,g}"
    return f"{value / 1e3:g}k" if value < 1e6 else f"{value / 1e6:g}M"


def legend_height(series: Sequence[Series]) -> float:
    """Return the height of a legend in inches."""
    return sum(0.06 + 0.16 * (1 + printable_label(one.label).count("\n")) for one in series)


def draw_accuracy_throughput(series: Sequence[Series], apart: Collection[str] = ()) -> Figure:
    """Draw accuracy against multiply-adds, and below it against the throughput on each device where it was measured.

    Bars are standard deviations of accuracy and quartiles of throughput. Networks differ in colour, n in the marker.

    Args:
        series: the networks.
        apart: devices on which several runs were timed one after another, which the axis says.
    """
    devices = sorted({device for one in series for point in one.points for device in point.rates})
    superposed = any(one.superposed for one in series)
    markers = markers_of_n({point.n for one in series for point in one.points})
    height = 3.2 + 3 * len(devices) + legend_height(series) + 0.22 * len(markers) * superposed
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    panels = figure.subplots(1 + len(devices), 1, sharey=True, squeeze=False).ravel()
    measures: list[Callable[[Point], Spread | None]]
    measures = [macs_in_millions, *(partial(rate_on, device) for device in devices)]
    for measure, axes in zip(measures, panels, strict=True):
        draw_accuracy_against(measure, axes, series, markers)
        axes.set(ylabel="test accuracy (%)")
    stay_within_100_percent(panels[0])
    for n, marker in markers.items() if superposed else ():
        panels[0].plot([], [], marker, color="gray", label=printable_label(n))
    panels[0].set(xlabel="million multiply-adds per input (fewer is cheaper)")
    for device, axes in zip(devices, panels[1:], strict=True):
        axes.set(xlabel=f"inputs per second{', runs timed apart' * (device in apart)}\n{printable_label(device)}")
    handles, labels = panels[0].get_legend_handles_labels()  # lines before error bars
    count = len(markers) * superposed
    figure.legend(handles[count:] + handles[:count], labels[count:] + labels[:count], loc="outside lower center", ncols=1)
    return figure


def macs_in_millions(point: Point) -> Spread:
    """Return the multiply-adds per input, in millions."""
    return Spread(value=point.macs / 1e6, low=point.macs / 1e6, high=point.macs / 1e6)


def rate_on(device: str, point: Point) -> Spread | None:
    """Return the inputs per second on a device; None where they were not measured."""
    return point.rates.get(device)


def measured_points(measure: Callable[[Point], Spread | None], one: Series) -> list[tuple[Spread, Point]]:
    """Return the points that have a measure, each behind it."""
    return [(x, point) for point in one.points if (x := measure(point)) is not None]


def draw_accuracy_against(
    measure: Callable[[Point], Spread | None], axes: Axes, series: Sequence[Series], markers: Mapping[str, str]
) -> None:
    """Draw accuracy against a positive measure, with the marker of each n; points where the measure is None are left out."""
    ends: list[float] = []
    for one, colour in series_colours(series):
        found = measured_points(measure, one)
        if not found:
            continue
        xs, ys = np.array([x.value for x, _ in found]), np.array([100 * point.accuracy for _, point in found])
        spread = np.array([100 * point.spread for _, point in found])
        lows, highs = np.array([x.low for x, _ in found]), np.array([x.high for x, _ in found])
        axes.errorbar(
            xs,
            ys,
            # Lists, because matplotlib takes an array of one number for a number.
            xerr=[(xs - lows).tolist(), (highs - xs).tolist()],
            yerr=[np.minimum(spread, ys).tolist(), np.minimum(spread, 100 - ys).tolist()],
            linestyle="-" if one.superposed else "",
            marker="" if one.superposed else markers[found[0][1].n],
            color=colour,
            capsize=3,
            label=printable_label(one.label),
            **OVER_FRAME,
        )
        for x, y, (_, point) in zip(xs, ys, found, strict=True) if one.superposed else ():
            axes.plot([x], [y], markers[point.n], color=colour, **OVER_FRAME)
        ends += [*lows, *highs]
    axes.set_xscale("log")
    span = max(ends) / min(ends)
    finer: list[tuple[float, tuple[float, ...]]] = [(6, (1, 1.5, 2, 3, 4, 6)), (20, (1, 2, 5)), (200, (1, 3))]
    digits = next((own for largest, own in finer if span < largest), (1,))
    axes.xaxis.set_major_locator(LogLocator(subs=digits) if span > 2.5 else MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(short_number)
    axes.margins(0.12, 0.2)


def stay_within_100_percent(axes: Axes) -> None:
    """Let an axis of accuracies end at 0 and 100 % where it would go beyond."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low), min(100, high))


def draw_learning_curves(series: Sequence[Series]) -> Figure:
    """Draw training accuracy for each n, as a running mean over a 25th of the logged steps, and dev accuracy where there is any.

    Networks differ in colour, n in the style of the line; a curve of a single point is the marker of its n.
    """
    curves = [curve for one in series if one.superposed for curve in (*one.train_curves, *one.dev_curves)]
    ns = sorted({n for n, *_ in curves}, key=lambda n: (len(n), n))
    styles = dict(zip(ns, cycle(LINES), strict=False)) if ns != ["1"] else {}
    markers = markers_of_n(ns)
    single = {curve[0] for one in series if one.superposed for curve in one.train_curves if len(curve[1]) == 1}
    has_dev = any(one.dev_curves for one in series)
    extra = len(styles) + has_dev
    figure = Figure(figsize=(WIDTH, 3.4 + legend_height(series) + 0.22 * extra), layout="constrained")
    axes = figure.subplots()
    for one, colour in series_colours(series):
        plot = partial(axes.plot, color=colour, linewidth=1, **OVER_FRAME)
        style_of = styles if one.superposed else {}
        for n, steps, values in one.train_curves:
            window = max(1, len(values) // 25)
            mean = np.convolve(100 * np.asarray(values), np.full(window, 1 / window), "valid")
            marker = marker_of_curve(mean, markers[n] if n in style_of else ".")
            plot(steps[window - 1 :], mean, linestyle=style_of.get(n, "-"), marker=marker, markersize=5)
        for n, steps, values in one.dev_curves:
            plot(steps, 100 * np.asarray(values), linestyle=style_of.get(n, "-"), **DEV)
        axes.plot([], [], color=colour, label=printable_label(one.label))
    for n, style in styles.items():
        marker = markers[n] if n in single else ""
        label = printable_label(f"n = {n}")
        axes.plot([], [], linestyle=style, marker=marker, markersize=5, color="gray", linewidth=1, label=label)
    if has_dev:
        axes.plot([], [], color="gray", linewidth=1, label="on the dev split", **DEV)
    stay_within_100_percent(axes)
    axes.set(xlabel="step", ylabel="accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def marker_of_curve(values: Sequence[float] | NDArray[np.floating], marker: str = ".") -> str:
    """Return the marker for a curve of a single point, of which a line shows nothing; none for others."""
    return marker if len(values) == 1 else ""


def draw_crosstalk(before: Mapping[str, Stages], after: Mapping[str, Stages]) -> Figure:
    """Draw crosstalk along the network for each n, before and after training."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (n, shares) in enumerate(after.items()):
        colour = f"C{place % 10}"
        if n in before:
            stages, values = [printable_label(stage) for stage in before[n]], list(before[n].values())
            axes.plot(stages, values, linestyle=":", marker=marker_of_curve(values), color=colour)
        axes.plot(
            [printable_label(stage) for stage in shares],
            list(shares.values()),
            "o-",
            color=colour,
            label=printable_label(f"n = {n}"),
        )
    axes.plot([], [], ":", color="gray", label="before training")
    axes.set(ylabel="crosstalk: share of the variance", ylim=(-0.03, 1.08))
    axes.tick_params(axis="x", rotation=40, labelsize=8)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
