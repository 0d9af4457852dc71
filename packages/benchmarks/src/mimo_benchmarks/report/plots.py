"""Draw the figures of a report: accuracy against cost and throughput, learning curves, crosstalk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from textwrap import wrap

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

WARM = ("#c2410c", "#f59e0b", "#be123c", "#7c2d12", "#ec4899")
COLD = ("#1d4ed8", "#0891b2", "#7c3aed", "#475569", "#059669", "#38bdf8", "#84cc16")
MARKERS = "osD^vPX"
DPI = 200
WIDTH = 4.6
"""Width of a figure in inches; narrow, so that its text is large enough to read on a phone."""
Stages = Mapping[str, float]
"""Crosstalk at each place of the network, from its input on."""


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
    rate: float | None
    """Inputs per second; None where it was not measured on the device of the figure."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One network at all its n."""

    label: str
    """Name of the network in legends."""
    superposed: bool
    points: Sequence[Point]
    train_curves: Sequence[tuple[Sequence[float], Sequence[float]]] = ()
    """Steps of each seed, and the accuracy on their training inputs."""
    dev_curves: Sequence[tuple[Sequence[float], Sequence[float]]] = ()
    """Steps of each seed and n, and the accuracy on the dev split."""


def render_png(draw: Callable[[], Figure]) -> bytes:
    """Return the figure that a function draws, as a PNG file; a dollar sign in its text does not begin a formula."""
    file = BytesIO()
    with rc_context({"text.parse_math": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10}):
        draw().savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def printable_label(label: str) -> str:
    """Return a label in ASCII on at most three lines, without leading underscores, which would hide it from the legend."""
    return "\n".join(wrap("".join(c if " " <= c <= "~" else "?" for c in label).lstrip("_"), 50)[:3])


def series_styles(series: Sequence[Series]) -> list[tuple[Series, str, str]]:
    """Return each series with its colour and marker: warm colours for superposed networks, cold ones for plain networks."""
    warm, cold, markers = cycle(WARM), cycle(COLD), cycle(MARKERS)
    return [(one, next(warm if one.superposed else cold), next(markers)) for one in series]


def legend_height(series: Sequence[Series]) -> float:
    """Return the height of a legend in inches."""
    return sum(0.06 + 0.16 * (1 + printable_label(one.label).count("\n")) for one in series)


def draw_accuracy_throughput(series: Sequence[Series], device: str) -> Figure:
    """Draw accuracy against multiply-adds, and below it against throughput if measured; bars are standard deviations."""
    measured = any(point.rate for one in series for point in one.points)
    figure = Figure(figsize=(WIDTH, (6 if measured else 3.2) + legend_height(series)), layout="constrained")
    panels = figure.subplots(2 if measured else 1, 1, sharey=True, squeeze=False).ravel()
    draw_accuracy_against(lambda point: point.macs / 1e6, panels[0], series)
    panels[0].set(xlabel="million multiply-adds per input (fewer is cheaper)", ylabel="test accuracy (%)")
    if measured:
        draw_accuracy_against(lambda point: point.rate, panels[1], series)
        panels[1].set(xlabel=f"inputs per second, {printable_label(device)}", ylabel="test accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure


def draw_accuracy_against(measure: Callable[[Point], float | None], axes: Axes, series: Sequence[Series]) -> None:
    """Draw accuracy against a positive measure; points where it is None are left out."""
    all_xs: list[float] = []
    sides = cycle((1, -1))  # above and below, so that the labels of two networks keep apart
    for one, colour, marker in series_styles(series):
        found = [(x, point) for point in one.points if (x := measure(point)) is not None]
        xs, ys = [x for x, _ in found], [100 * point.accuracy for _, point in found]
        bars = [100 * point.spread for _, point in found]
        line = "-" if one.superposed else ""
        axes.errorbar(xs, ys, yerr=bars, linestyle=line, marker=marker, color=colour, capsize=3, label=printable_label(one.label))
        if one.superposed:
            side = next(sides)
            for x, point in found:
                place, offset = (x, 100 * (point.accuracy + side * point.spread)), (0, 10 * side)
                axes.annotate(
                    printable_label(point.n), place, offset, textcoords="offset points", ha="center", va="center", fontsize=9
                )
        all_xs += xs
    axes.set_xscale("log")
    span = max(all_xs) / min(all_xs)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 60 else (1,)) if span > 6 else MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.margins(0.12, 0.2)


def draw_learning_curves(series: Sequence[Series]) -> Figure:
    """Draw training accuracy, as a running mean over a 25th of the logged steps, and dev accuracy where there is any."""
    figure = Figure(figsize=(WIDTH, 3.4 + legend_height(series)), layout="constrained")
    axes = figure.subplots()
    for one, colour, _ in series_styles(series):
        for steps, values in one.train_curves:
            window = max(1, len(values) // 25)
            mean = np.convolve(100 * np.asarray(values), np.full(window, 1 / window), "valid")
            axes.plot(steps[window - 1 :], mean, "-", color=colour, linewidth=1)
        for steps, values in one.dev_curves:
            axes.plot(steps, 100 * np.asarray(values), "o--", color=colour, markersize=3, linewidth=1)
        axes.plot([], [], color=colour, label=printable_label(one.label))
    if any(one.dev_curves for one in series):
        axes.plot([], [], "o--", color="gray", markersize=3, label="on the dev split")
    axes.set(xlabel="step", ylabel="accuracy (%)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def draw_crosstalk(before: Mapping[str, Stages], after: Mapping[str, Stages]) -> Figure:
    """Draw crosstalk along the network for each n, before and after training."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (n, shares) in enumerate(after.items()):
        colour = f"C{place % 10}"
        if n in before:
            axes.plot([printable_label(stage) for stage in before[n]], list(before[n].values()), ":", color=colour)
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
