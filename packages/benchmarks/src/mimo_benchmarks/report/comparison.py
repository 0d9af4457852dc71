"""Compare networks at each n over their seeds, and show them as the lines of a report's tables."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import floor, log10
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from mimo_benchmarks.presets.controls import TOLERANCE
from mimo_benchmarks.report.runs import Run, Settings
from mimo_benchmarks.result import Result, Row, Spread

UNEXPLAINED = 1.15
"""A speed-up is marked where it is more than this many times the ratio of multiply-adds, and its whole range above that ratio."""


def over_runs(found: Sequence[Spread]) -> Spread:
    """Return the mean of the values, and the range from the lowest to the highest end."""
    return Spread(value=fmean(one.value for one in found), low=min(one.low for one in found), high=max(one.high for one in found))


@dataclass(frozen=True, kw_only=True)
class SeedGroup:
    """Runs that differ only in their seed."""

    preset: str
    """Name of the preset, and the settings in which the experiment differs from others of this preset."""
    model: str
    """Name of the network, and the settings in which it differs from others of the same experiment."""
    runs: tuple[Run, ...]

    @property
    def example(self) -> Run:
        """Return one of the runs, for what all of them share."""
        return self.runs[0]

    @property
    def result(self) -> Result:
        """Return the result of one of the runs, for what all of them share."""
        return self.example.result


def keep_devices_apart(runs: Sequence[Run]) -> list[Run]:
    """Add the device to the settings of experiments that were repeated with the same seed on another device.

    Such runs would count as two seeds, though they learn the same; and their rates differ.
    """

    def family(run: Run) -> tuple[str, str]:
        return run.result.task, run.result.preset

    def content(run: Run) -> str:
        ns = [row.n for row in run.result.rows]
        return repr((family(run), sorted(run.experiment.items()), run.result.control, sorted(run.settings.items()), ns))

    devices: dict[tuple[str, int], set[str]] = {}
    for run in runs:
        devices.setdefault((content(run), run.result.seed), set()).add(run.result.device)
    apart = {family(run) for run in runs if len(devices[content(run), run.result.seed]) > 1}
    return [
        replace(run, experiment={**run.experiment, "device": run.result.device}) if family(run) in apart else run for run in runs
    ]


def group_by_seed(runs: Sequence[Run]) -> tuple[list[SeedGroup], list[Run]]:
    """Group runs that differ only in their seed, sorted by task, preset and settings, with controls last.

    Returns:
        The groups, and the runs that were left out because another run of the group has their seed and device.
    """
    runs = keep_devices_apart(runs)

    def hashable(values: Settings) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(values.items()))

    def family(run: Run) -> tuple[str, str]:
        return run.result.task, run.result.preset

    def key(run: Run) -> tuple[Any, ...]:
        return (
            *family(run),
            hashable(run.experiment),
            run.result.control or "",
            run.result.model,
            hashable(run.settings),
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
        groups.append(
            SeedGroup(preset=preset, model=one.result.model + differences(one.settings, twins), runs=tuple(seeds.values()))
        )
    return groups, repeated


def differences(own: Settings, all_: Sequence[Settings]) -> str:
    """Write out the settings that tell one run from the others, without those that tell no more of them apart."""
    names: list[str] = []
    kinds = 1
    for name in dict.fromkeys(name for other in all_ for name in other):
        found = len({tuple(other.get(each) for each in (*names, name)) for other in all_})
        if found > kinds:
            names, kinds = [*names, name], found
    return "".join(f", {setting_in_words(name, own.get(name, 'unknown'))}" for name in names)


def setting_in_words(name: str, value: str) -> str:
    """Write a setting for a label; `value` is JSON."""
    if name == "n":
        return f"trained with n = {value.strip('[]')}"
    return f"on {value}" if name == "device" else f"{name} = {value.strip(chr(34))}"


@dataclass(frozen=True, kw_only=True)
class TableLine:
    """A line of a report's table: one network at one n, over its seeds."""

    group: SeedGroup
    rows: Sequence[Row]
    """Row of each seed's result at this n."""
    baseline: Row | None
    """Row that speed-ups are relative to: the first seed's superposed network at its smallest n; None without speed-ups."""
    speedups: Mapping[str, Sequence[Spread]]
    """For each device, the speed-up of each seed: its inputs per second over those of the baseline in the same run."""
    cost_ratio: float | None
    """Multiply-adds of a control over those that it was built to have, if they differ by more than TOLERANCE."""

    @property
    def n(self) -> str:
        """Return n as tables show it, with the inputs per pass where their number is another."""
        row = self.rows[0]
        return str(row.n) if row.inputs == row.n else f"{row.n} ({row.inputs} per pass)"

    @property
    def accuracy(self) -> float:
        """Return the mean accuracy over the seeds."""
        return fmean(row.accuracy for row in self.rows)

    @property
    def spread(self) -> float:
        """Return the standard deviation of accuracy over the seeds; 0 for one seed."""
        return stdev([row.accuracy for row in self.rows]) if len(self.rows) > 1 else 0.0

    @property
    def macs(self) -> float:
        """Return the mean multiply-adds per input over the seeds."""
        return fmean(row.macs for row in self.rows)

    @property
    def control(self) -> str:
        """Return the kind of control, with its cost where that is not the intended one; empty for other networks."""
        name = (self.group.result.control or "").replace("equal_cost_n", "equal cost, n = ").replace("_", " ")
        return name if self.cost_ratio is None else name.replace("equal cost,", f"{self.cost_ratio:.2f}x the cost of")

    @property
    def name(self) -> str:
        """Return the name of the network, with the kind of control in brackets."""
        return self.group.model + (f" ({self.control})" if self.control else "")

    def rates(self) -> dict[str, list[Spread]]:
        """Return the inputs per second of each seed, with their quartiles, by device."""
        return by_device(self.group.runs, [row.rate for row in self.rows])

    def timings(self) -> dict[tuple[Path, str], float]:
        """Return the inputs per second by experiment and device: networks with the same key were timed side by side."""
        found = zip(self.group.runs, self.rows, strict=True)
        return {(run.root, run.result.device): row.inputs_per_second for run, row in found if row.inputs_per_second}

    def unexplained(self, speedup: Spread) -> bool:
        """Return whether a speed-up is well above the ratio of multiply-adds, and so is the lower end of its range."""
        ratio = self.baseline.macs / self.macs if self.baseline else math.inf
        return speedup.value > UNEXPLAINED * ratio and speedup.low > ratio


def speed_up(row: Row, baseline: Row | None) -> Spread | None:
    """Return how many times the baseline's inputs per second a row has, from worst to best quartiles; None if not known."""
    ours, base = row.rate, baseline.rate if baseline else None
    if ours is None or base is None:
        return None
    if row is baseline:
        return Spread(value=1, low=1, high=1)
    return Spread(value=ours.value / base.value, low=ours.low / base.high, high=ours.high / base.low)


def by_device(runs: Sequence[Run], values: Sequence[Spread | None]) -> dict[str, list[Spread]]:
    """Return one value of each run, by device; empty if no run has one."""
    found: dict[str, list[Spread]] = {device: [] for device in sorted({run.result.device for run in runs})}
    for run, value in zip(runs, values, strict=True):
        found[run.result.device] += [] if value is None else [value]
    return found if any(found.values()) else {}


def table_lines(groups: Sequence[SeedGroup]) -> list[TableLine]:
    """Return one line for each network and n, in the order of the groups."""
    roots = {run.root: run for each in groups for run in each.runs if run.result.control is None}
    found = []
    for each in groups:
        baselines = [baseline_row(run, roots.get(run.root)) for run in each.runs]
        cost_ratio = unequal_cost(each.example, roots.get(each.example.root))
        for place in range(len(each.result.rows)):
            rows = [run.result.rows[place] for run in each.runs]
            speedups = by_device(each.runs, list(map(speed_up, rows, baselines)))
            baseline = next((base for base in baselines if base), None) if speedups else None
            found.append(TableLine(group=each, rows=rows, baseline=baseline, speedups=speedups, cost_ratio=cost_ratio))
    return found


def baseline_row(run: Run, root: Run | None) -> Row | None:
    """Return the row that speed-ups of a run are relative to: the experiment's network at its smallest n.

    None where that network is plain, was measured on another device, or is not in the report; and where it is the run itself and
    has only one n, so that nothing would be compared.
    """
    if root is None or root.result.device != run.result.device or not root.result.superposed:
        return None
    if root is run and len(root.result.rows) == 1:
        return None
    return min(root.result.rows, key=lambda row: row.n)


def unequal_cost(run: Run, root: Run | None) -> float | None:
    """Return multiply-adds of an equal-cost control over those of the experiment's network at that n; None within TOLERANCE."""
    wanted = re.fullmatch(r"equal_cost_n(\d+)", run.result.control or "")
    like = [row.macs for row in root.result.rows if row.n == int(wanted[1])] if root and wanted else []
    ratio = run.result.rows[0].macs / like[0] if like else 1.0
    return None if abs(ratio - 1) <= TOLERANCE else ratio


def mean_percent(values: Sequence[float | None]) -> str:
    """Write the mean of shares and their standard deviation in percent; empty where there are none."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    return f"{fmean(known):.2f}" + (f" ± {stdev(known):.2f}" if len(known) > 1 else "") + "%"


def three_digits(value: float) -> str:
    """Write a number with three significant digits, or with all digits of its whole part."""
    return f"{value:,.{max(0, 2 - floor(log10(value)))}f}"


def paper_accuracy(line: TableLine) -> str:
    """Write the accuracy that the paper reports; empty where it has none."""
    found = line.group.result.paper.get(str(line.rows[0].n))
    if found is None:
        return ""
    mean, std = found
    return f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}") + "%"


def write_per_device(values: Mapping[str, Sequence[Spread]], show: Callable[[float], str], unit: Callable[[Spread], str]) -> str:
    """Write the mean over the runs of each device and its unit, in the order of the devices, with the range in brackets.

    A range of a single number, as that of a network's speed-up over itself, is left out.
    """
    found = [over_runs(each) if each else None for each in values.values()]
    ranges = [f" ({show(one.low)} to {show(one.high)})" if one and one.low < one.high else "" for one in found]
    return " / ".join(show(one.value) + unit(one) + around if one else "-" for one, around in zip(found, ranges, strict=True))


COLUMNS: dict[str, Callable[[TableLine], str]] = {
    "preset": lambda line: line.group.preset,
    "model": lambda line: line.group.model,
    "control": lambda line: line.control,
    "n": lambda line: line.n,
    "accuracy (seeds)": lambda line: f"{mean_percent([row.accuracy for row in line.rows])} ({len(line.rows)})",
    "with batch statistics": lambda line: mean_percent([row.accuracy_batch_statistics for row in line.rows]),
    "paper": paper_accuracy,
    "speed-up": lambda line: write_per_device(line.speedups, "{:.2f}".format, lambda one: "x" + "†" * line.unexplained(one)),
    "inputs/s (quartiles)": lambda line: write_per_device(line.rates(), three_digits, lambda _: ""),
    "multiply-adds/input": lambda line: f"{three_digits(line.macs / 1e6)} M",
    "changed by regrouping": lambda line: mean_percent([row.changed_by_regrouping for row in line.rows]),
    "device": lambda line: " / ".join(sorted({run.result.device for run in line.group.runs})),
}


def table_cells(lines: Sequence[TableLine]) -> tuple[list[str], list[list[str]]]:
    """Return the titles and cells of a table, without empty columns, and without preset and device where there is only one."""
    several = {
        "preset": {line.group.preset for line in lines},
        "device": {run.result.device for line in lines for run in line.group.runs},
    }
    hidden = {name for name, found in several.items() if len(found) == 1}
    shown = {name: [cell(line) for line in lines] for name, cell in COLUMNS.items() if name not in hidden}
    kept = {name: cells for name, cells in shown.items() if any(cells)}
    smallest = {line.baseline.n for line in lines if line.baseline}
    over = f"speed-up over n = {smallest.pop()}" if len(smallest) == 1 else "speed-up over smallest n"
    return [over if name == "speed-up" else name for name in kept], [list(cells) for cells in zip(*kept.values(), strict=True)]
