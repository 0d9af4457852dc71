"""The rows of a report's tables: networks at each n, over seeds, and how they are shown."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import floor, log10
from statistics import fmean, stdev
from typing import Any

from mimo_benchmarks.presets.controls import TOLERANCE
from mimo_benchmarks.report.runs import Run, Settings
from mimo_benchmarks.result import Result, Row


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed alone."""

    preset: str
    """And the settings in which it differs from others of this preset."""
    model: str
    runs: tuple[Run, ...]

    @property
    def one(self) -> Run:
        """One of the runs, for what all have in common."""
        return self.runs[0]

    @property
    def result(self) -> Result:
        """The result of one of the runs, for what all have in common."""
        return self.one.result


def group(runs: Sequence[Run]) -> tuple[list[Group], list[Run]]:
    """By task, preset and settings, a superposed network before its controls; and runs whose seed another run has already."""

    def settled(values: Settings) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(values.items()))

    def family(run: Run) -> tuple[str, str]:
        return run.result.task, run.result.preset

    def key(run: Run) -> tuple[Any, ...]:
        return (
            *family(run),
            settled(run.experiment),
            run.result.control or "",
            run.result.model,
            settled(run.settings),
            [row.n for row in run.result.rows],
        )

    groups, repeated = [], []
    ordered = sorted(runs, key=lambda run: (key(run), run.result.seed, str(run.path)))
    for same, members in groupby(ordered, key):
        seeds: dict[int, Run] = {}
        repeated += [run for run in members if seeds.setdefault(run.result.seed, run) is not run]
        one = next(iter(seeds.values()))
        kin = [other for other in runs if family(other) == family(one)]
        twins = [other.settings for other in kin if (other.result.control or "", other.experiment) == (same[3], one.experiment)]
        preset = one.result.preset + differences(one.experiment, [other.experiment for other in kin])
        groups.append(Group(preset=preset, model=one.result.model + differences(one.settings, twins), runs=tuple(seeds.values())))
    return groups, repeated


def differences(own: Settings, all_: Sequence[Settings]) -> str:
    """The settings that not all have alike, as they are here."""
    names = [name for name in dict.fromkeys(name for other in all_ for name in other) if len({o.get(name) for o in all_}) > 1]
    return "".join(f", {name} = {own.get(name, 'unknown')}" for name in names)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One network at one n, over the seeds."""

    group: Group
    rows: Sequence[Row]
    speedups: Mapping[str, Sequence[float]]
    """For each device, of each seed: inputs a second over those of the experiment's network at its smallest n."""
    ratio: float | None
    """Multiply-adds of a control over those that it should have, where it is too far off."""

    @property
    def n(self) -> str:
        """As it is shown: with the inputs of a pass, where these are not as many."""
        row = self.rows[0]
        return str(row.n) if row.inputs == row.n else f"{row.n} ({row.inputs} per pass)"

    @property
    def accuracy(self) -> float:
        return fmean(row.accuracy for row in self.rows)

    @property
    def spread(self) -> float:
        return stdev([row.accuracy for row in self.rows]) if len(self.rows) > 1 else 0.0

    @property
    def macs(self) -> float:
        return fmean(row.macs for row in self.rows)

    @property
    def control(self) -> str:
        """What kind of control it is, and how far off its cost is."""
        name = (self.group.result.control or "").replace("equal_cost_n", "equal cost, n = ").replace("_", " ")
        return name if self.ratio is None else name.replace("equal cost,", f"{self.ratio:.2f}x the cost of")

    @property
    def name(self) -> str:
        return self.group.model + (f" ({self.control})" if self.control else "")

    def rates(self) -> dict[str, list[float]]:
        """Inputs a second on each device."""
        return by_device(self.group.runs, [row.inputs_per_second for row in self.rows])


def by_device(runs: Sequence[Run], values: Sequence[float | None]) -> dict[str, list[float]]:
    """What was measured, apart for each device of the runs; empty if nothing was."""
    found: dict[str, list[float]] = {device: [] for device in sorted({run.result.device for run in runs})}
    for run, value in zip(runs, values, strict=True):
        found[run.result.device] += [] if value is None else [value]
    return found if any(found.values()) else {}


def lines(groups: Sequence[Group]) -> list[Line]:
    """All networks at all n, in the order of the groups."""
    roots = {run.root: run for each in groups for run in each.runs if run.result.control is None}
    found = []
    for each in groups:
        references = [reference(run, roots.get(run.root)) for run in each.runs]
        ratio = off(each.one, roots.get(each.one.root))
        for place in range(len(each.result.rows)):
            rows = [run.result.rows[place] for run in each.runs]
            rates = [row.inputs_per_second for row in rows]
            speed = [rate / base if rate and base else None for rate, base in zip(rates, references, strict=True)]
            found.append(Line(group=each, rows=rows, speedups=by_device(each.runs, speed), ratio=ratio))
    return found


def reference(run: Run, root: Run | None) -> float | None:
    """Inputs a second that a run's are measured against: of the same experiment, on the same device."""
    if root is None or root.result.device != run.result.device or not root.result.superposed:
        return None
    return min(root.result.rows, key=lambda row: row.n).inputs_per_second


def off(run: Run, root: Run | None) -> float | None:
    """Multiply-adds of a control of equal cost over those of the experiment's network at that n, unless within TOLERANCE."""
    wanted = re.fullmatch(r"equal_cost_n(\d+)", run.result.control or "")
    like = [row.macs for row in root.result.rows if row.n == int(wanted[1])] if root and wanted else []
    ratio = run.result.rows[0].macs / like[0] if like else 1.0
    return None if abs(ratio - 1) <= TOLERANCE else ratio


def percent(values: Sequence[float | None]) -> str:
    """Mean of shares and its standard deviation; nothing where there are none."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    return f"{fmean(known):.2f}" + (f" ± {stdev(known):.2f}" if len(known) > 1 else "") + "%"


def figures(value: float) -> str:
    """Three figures, but never fewer than the whole ones."""
    return f"{value:,.{max(0, 2 - floor(log10(value)))}f}"


def reported(line: Line) -> str:
    """The paper's accuracy."""
    found = line.group.result.paper.get(str(line.rows[0].n))
    if found is None:
        return ""
    mean, std = found
    return f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}") + "%"


def each_device(values: Mapping[str, Sequence[float]], show: Callable[[float], str]) -> str:
    """Means, in the order of the devices."""
    return " / ".join(show(fmean(each)) if each else "-" for each in values.values())


COLUMNS: dict[str, Callable[[Line], str]] = {
    "preset": lambda line: line.group.preset,
    "model": lambda line: line.group.model,
    "control": lambda line: line.control,
    "n": lambda line: line.n,
    "accuracy (seeds)": lambda line: f"{percent([row.accuracy for row in line.rows])} ({len(line.rows)})",
    "with batch statistics": lambda line: percent([row.accuracy_batch_statistics for row in line.rows]),
    "paper": reported,
    "speed-up": lambda line: each_device(line.speedups, "{:.2f}x".format),
    "inputs/s": lambda line: each_device(line.rates(), figures),
    "multiply-adds/input": lambda line: f"{figures(line.macs / 1e6)} M",
    "changed by regrouping": lambda line: percent([row.changed_by_regrouping for row in line.rows]),
    "device": lambda line: " / ".join(sorted({run.result.device for run in line.group.runs})),
}


def table(rows: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Head and cells, without columns that are empty, and without the preset and the device where there is only one."""
    several = {
        "preset": {line.group.preset for line in rows},
        "device": {run.result.device for line in rows for run in line.group.runs},
    }
    hidden = {name for name, found in several.items() if len(found) == 1}
    shown = {name: [cell(line) for line in rows] for name, cell in COLUMNS.items() if name not in hidden}
    kept = {name: cells for name, cells in shown.items() if any(cells)}
    return list(kept), [list(cells) for cells in zip(*kept.values(), strict=True)]
