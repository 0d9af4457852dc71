"""Figures of a report, as PNG: accuracy against what it costs, learning curves, crosstalk."""

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
"""Inches, as few as will do, so that a phone shows letters large enough to read."""
Stages = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One network at one number of inputs a pass."""

    n: str
    """As it is written at the point."""
    accuracy: float
    """Share of the test inputs answered right, as is its spread."""
    spread: float
    macs: float
    """Multiply-adds per input."""
    rate: float | None
    """Inputs a second; None where it is not to be compared."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """All of one network."""

    label: str
    superposed: bool
    points: Sequence[Point]
    curves: Sequence[tuple[Sequence[float], Sequence[float]]] = ()
    """For each seed, steps and the accuracy of their inputs."""
    dev: Sequence[tuple[Sequence[float], Sequence[float]]] = ()
    """For each seed, steps and the accuracy on the dev split."""


def png(draw: Callable[[], Figure]) -> bytes:
    """What a function draws. Text is taken as it stands: a dollar sign begins no formula."""
    file = BytesIO()
    with rc_context({"text.parse_math": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10}):
        draw().savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def plain(label: str) -> str:
    """A label that the font has, on three lines at most, and not hidden from the legend by an underscore."""
    return "\n".join(wrap("".join(c if " " <= c <= "~" else "?" for c in label).lstrip("_"), 50)[:3])


def styles(series: Sequence[Series]) -> list[tuple[Series, str, str]]:
    """Each with its colour and its marker: warm what is superposed, cold what is not."""
    warm, cold, markers = cycle(WARM), cycle(COLD), cycle(MARKERS)
    return [(one, next(warm if one.superposed else cold), next(markers)) for one in series]


def legend_height(series: Sequence[Series]) -> float:
    """Inches that a legend takes."""
    return sum(0.06 + 0.16 * (1 + plain(one.label).count("\n")) for one in series)


def accuracy_throughput(series: Sequence[Series], device: str) -> Figure:
    """Accuracy against multiply-adds, and below on the same axis against throughput, if any; bars are standard deviations."""
    measured = any(point.rate for one in series for point in one.points)
    figure = Figure(figsize=(WIDTH, (6 if measured else 3.2) + legend_height(series)), layout="constrained")
    panels = figure.subplots(2 if measured else 1, 1, sharey=True, squeeze=False).ravel()
    panel(panels[0], series, lambda point: point.macs / 1e6)
    panels[0].set(xlabel="million multiply-adds per input (fewer is cheaper)", ylabel="test accuracy (%)")
    if measured:
        panel(panels[1], series, lambda point: point.rate)
        panels[1].set(xlabel=f"inputs per second, {plain(device)}", ylabel="test accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return figure


def panel(axes: Axes, series: Sequence[Series], across: Callable[[Point], float | None]) -> None:
    """Accuracy against one measure, which is positive; points where it is None are left out."""
    everything: list[float] = []
    sides = cycle((1, -1))  # above and below, so that the labels of two networks keep apart
    for one, colour, marker in styles(series):
        found = [(x, point) for point in one.points if (x := across(point)) is not None]
        xs, ys = [x for x, _ in found], [100 * point.accuracy for _, point in found]
        bars = [100 * point.spread for _, point in found]
        line = "-" if one.superposed else ""
        axes.errorbar(xs, ys, yerr=bars, linestyle=line, marker=marker, color=colour, capsize=3, label=plain(one.label))
        if one.superposed:
            side = next(sides)
            for x, point in found:
                place, offset = (x, 100 * (point.accuracy + side * point.spread)), (0, 10 * side)
                axes.annotate(plain(point.n), place, offset, textcoords="offset points", ha="center", va="center", fontsize=9)
        everything += xs
    axes.set_xscale("log")
    span = max(everything) / min(everything)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 60 else (1,)) if span > 6 else MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.margins(0.12, 0.2)


def learning_curves(series: Sequence[Series]) -> Figure:
    """Accuracy of the training inputs, averaged over a 25th of the lines, and of the dev split where there is one."""
    figure = Figure(figsize=(WIDTH, 3.4 + legend_height(series)), layout="constrained")
    axes = figure.subplots()
    for one, colour, _ in styles(series):
        for steps, values in one.curves:
            window = max(1, len(values) // 25)
            mean = np.convolve(100 * np.asarray(values), np.full(window, 1 / window), "valid")
            axes.plot(steps[window - 1 :], mean, "-", color=colour, linewidth=1)
        for steps, values in one.dev:
            axes.plot(steps, 100 * np.asarray(values), "o--", color=colour, markersize=3, linewidth=1)
        axes.plot([], [], color=colour, label=plain(one.label))
    if any(one.dev for one in series):
        axes.plot([], [], "o--", color="gray", markersize=3, label="on the dev split")
    axes.set(xlabel="step", ylabel="accuracy (%)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside lower center", ncols=1)
    return figure


def crosstalk(before: Mapping[str, Stages], after: Mapping[str, Stages]) -> Figure:
    """Crosstalk along the network for each n, before and after training."""
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    for place, (n, shares) in enumerate(after.items()):
        colour = f"C{place % 10}"
        if n in before:
            axes.plot([plain(stage) for stage in before[n]], list(before[n].values()), ":", color=colour)
        axes.plot([plain(stage) for stage in shares], list(shares.values()), "o-", color=colour, label=plain(f"n = {n}"))
    axes.plot([], [], ":", color="gray", label="before training")
    axes.set(ylabel="crosstalk: share of the variance", ylim=(-0.03, 1.08))
    axes.tick_params(axis="x", rotation=40, labelsize=8)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
