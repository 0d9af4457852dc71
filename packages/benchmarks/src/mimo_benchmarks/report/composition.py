"""Compose a report of any number of runs: tables, figures, verdicts, and one HTML page that needs no other file."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from math import hypot, isnan, nan
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.presets.controls import TOLERANCE
from mimo_benchmarks.report import plots
from mimo_benchmarks.report.comparison import (
    UNEXPLAINED,
    TableLine,
    group_by_seed,
    over_runs,
    table_cells,
    table_lines,
    three_digits,
)
from mimo_benchmarks.report.rendering import Picture, Section, escape_markdown, html_page, markdown_body
from mimo_benchmarks.report.runs import Run
from mimo_benchmarks.result import Crosstalk, one_line

SPREAD = "± is the standard deviation over the seeds; their number is in brackets after the accuracy."
AT_WILL = "What superposition adds is one set of weights whose throughput can be chosen at every call."


def verdicts(lines: Sequence[TableLine]) -> list[str]:
    """Say for each n of one experiment whether superposition did better than the plain networks trained beside it."""
    ours = [line for line in lines if line.group.result.superposed and line.group.result.control is None]
    plain = [line for line in lines if line.group.result.control is not None and not line.group.result.superposed]
    if not ours:
        return []
    if not plain:
        preset = ours[0].group.preset
        return [f"{preset}: no controls were trained, so a smaller plain network may do as well."]
    return [verdict(line, plain) for line in ours]


def verdict(line: TableLine, plain: Sequence[TableLine]) -> str:
    """Say whether a plain network that costs no more does as well as a superposed one at one n."""
    affordable = [rival for rival in plain if rival.macs <= (1 + TOLERANCE) * line.macs]
    head = f"{line.group.preset}, n = {line.n}: "
    if not affordable:
        rival = min(plain, key=lambda each: each.macs)
        costs = f"the cheapest, {rival.name}, takes {rival.macs / line.macs:.2f} times the multiply-adds"
        return f"{head}no plain network that costs as little was trained; {costs} and scores {compare_scores(rival, line)}."
    rival = max(affordable, key=lambda each: each.accuracy)
    wins = rival.accuracy >= line.accuracy
    outcome = (
        "a plain network does as well at the same cost or less" if wins else "no plain network does as well at the same cost"
    )
    return f"{head}{outcome}: {rival.name} scores {compare_scores(rival, line)}{seed_caveat(rival, line)}."


def compare_scores(rival: TableLine, line: TableLine) -> str:
    """Write both accuracies, and both rates if they were measured side by side, on a single device."""
    both = f"{rival.accuracy:.2%} against {line.accuracy:.2%}"
    shared = line.timings().keys() & rival.timings().keys()
    if len({device for _, device in shared}) != 1:
        return both
    theirs, ours = (three_digits(fmean(each.timings()[one] for one in shared)) for each in (rival, line))
    return f"{both}, at {theirs} inputs/s against {ours}"


def seed_caveat(rival: TableLine, line: TableLine) -> str:
    """Say where the seeds are too few, or their spread too large, for the comparison to be sure."""
    if len(rival.rows) == 1 or len(line.rows) == 1:
        return "; with one seed, a small difference says little"
    within = abs(rival.accuracy - line.accuracy) <= hypot(rival.spread, line.spread)
    return "; the difference is within the spread over seeds" if within else ""


def table_notes(lines: Sequence[TableLine]) -> list[str]:
    """Write the notes below a table: verdicts, what guessing gets right, and what the numbers mean."""
    experiments = groupby(lines, key=lambda line: (line.group.result.preset, line.group.preset))
    notes = [note for _, members in experiments for note in verdicts(list(members))]
    has_several_n = any(line.group.result.superposed and len(line.group.result.rows) > 1 for line in lines)
    if has_several_n and any(line.control for line in lines):
        notes.append(AT_WILL)
    guesses = {name: share for line in lines for run in line.group.runs for name, share in run.result.guesses.items()}
    if guesses:
        notes.append(f"Right by guessing: {', '.join(f'{name} {share:.2%}' for name, share in guesses.items())}.")
    return [*notes, SPREAD, *rate_notes(lines)]


def rate_notes(lines: Sequence[TableLine]) -> list[str]:
    """Say where rates were measured, what is in their brackets, and which of them do not compare; nothing without rates."""
    timings = sorted({timing for line in lines for timing in line.timings()})
    devices = sorted({device for _, device in timings})
    if not timings:
        return []
    notes = [f"Rates were measured on {', '.join(devices)}: medians over the timing rounds, with quartiles in brackets."]
    if len(timings) > 1:
        notes.append(
            "Runs were timed apart, so their rates do not compare: each speed-up is a ratio within one run. Where a line has "
            "several runs, it shows the mean of their medians, and in brackets the lowest and the highest quartile."
        )
    if len(devices) > 1:
        notes.append("Rates of different devices do not compare.")
    speedups = [(line, over_runs(found)) for line in lines for found in line.speedups.values() if found]
    if speedups:
        notes.append(
            "Speed-up is inputs/s over those of the superposed network at its smallest n, in the same run. The range in brackets "
            "is that of the quartiles of both rates."
        )
    if any(line.unexplained(speedup) for line, speedup in speedups):
        notes.append(
            f"† Faster than multiply-adds explain: more than {UNEXPLAINED - 1:.0%} above the ratio of multiply-adds/input (those "
            "of the superposed network at its smallest n over those of this line), and above it with the whole range in "
            "brackets. Small networks spend much of their time outside multiply-adds, and the inputs of a pass share much of "
            "that time."
        )
    return notes


def task_figures(lines: Sequence[TableLine], task: str) -> list[tuple[str, str, str, Callable[[], Figure]]]:
    """Return the figures of a task: the kind, the caption, what it shows in words, and a function that draws it."""
    timings = {timing for line in lines for timing in line.timings()}
    devices = [device for _, device in timings]
    apart = {device for device in devices if devices.count(device) > 1}
    several = len({line.group.preset for line in lines}) > 1
    networks = [list(members) for _, members in groupby(lines, key=lambda line: id(line.group))]
    series = [network_series(own, f"{own[0].group.preset}: " * several) for own in networks]
    caption = f"{task}: accuracy against cost{' and rate' * bool(devices)}"
    draw: Callable[[], Figure] = partial(plots.draw_accuracy_throughput, series, apart)
    found = [("accuracy_throughput", caption, f"{caption}; the table above has the numbers", draw)]
    if any(one.train_curves or one.dev_curves for one in series):
        caption = f"{task}: accuracy while training"
        last = [
            f"{one.label}{f', n = {n}' * one.superposed}: {values[-1]:.0%} at step {steps[-1]:,.0f}"
            for one in series
            for n, steps, values in one.train_curves
        ]
        found.append(("learning_curves", caption, "; ".join([caption, *last]), partial(plots.draw_learning_curves, series)))
    for each in (own[0].group for own in networks):
        if known := [run.result.crosstalk for run in each.runs if run.result.crosstalk]:
            before, after = (mean_crosstalk([both[when] for both in known]) for when in ("before", "after"))
            unknown = any(isnan(share) for stages in after.values() for share in stages.values())
            caption = f"{each.preset}: crosstalk along the network{', unknown where features do not vary' * unknown}"
            stages = [
                f"n = {n}: {', '.join(f'{stage} {in_words(share)}' for stage, share in own.items())}" for n, own in after.items()
            ]
            draw = partial(plots.draw_crosstalk, before, after)
            found.append(("crosstalk", caption, "; ".join([f"{caption} after training", *stages]), draw))
    return found


def network_series(lines: Sequence[TableLine], prefix: str) -> plots.Series:
    """Return one network as figures show it."""
    group = lines[0].group
    points = [
        plots.Point(
            n=f"n = {line.rows[0].n}",
            accuracy=line.accuracy,
            spread=line.spread,
            macs=line.macs,
            rates={device: over_runs(rates) for device, rates in line.rates().items() if rates},
        )
        for line in lines
    ]
    return plots.Series(
        label=prefix + lines[0].name,
        superposed=group.result.superposed,
        points=points,
        train_curves=[(n, *curve) for run in group.runs for n, curve in run.train_curves.items()],
        dev_curves=[(n, *curve) for run in group.runs for n, curve in run.dev_curves.items()],
    )


def mean_crosstalk(found: Sequence[Crosstalk]) -> dict[str, plots.Stages]:
    """Return the mean crosstalk over the seeds, for each n and place of the network; NaN where no seed knows it."""

    def mean(n: str, place: str) -> float:
        known = [share for each in found if (share := each.get(n, {}).get(place)) is not None]
        return fmean(known) if known else nan

    return {n: {place: mean(n, place) for place in places} for n, places in found[0].items()}


def in_words(share: float) -> str:
    """Write a share with two digits; NaN is unknown."""
    return "unknown" if isnan(share) else f"{share:.2f}"


def write_report(
    runs: Sequence[Run],
    left_out: Mapping[str, Sequence[Path]],
    out: Path,
    title: str,
    *,
    render: Callable[[Callable[[], Figure]], bytes] = plots.render_png,
) -> str:
    """Write report.md, report.html and their pictures, and return the tables and verdicts for a terminal.

    Args:
        runs: the runs to report.
        left_out: directories of runs that the report names as left out, by reason.
        out: folder to write to.
        title: heading of the report.
        render: turns a function that draws a figure into the PNG file.

    Raises:
        ConfigError: `out` cannot be written.
    """
    groups, repeated = group_by_seed(runs)
    sections, pictures = [], list[Picture]()
    for task, members in groupby(table_lines(groups), key=lambda line: line.group.result.task):
        lines = list(members)
        presets = list(dict.fromkeys(line.group.preset for line in lines))
        columns, cells = table_cells(lines)
        heading = task if len(presets) > 1 else f"{task}: {presets[0]}"
        own: list[Picture] = []
        for kind, caption, alt, draw in task_figures(lines, task):
            number = sum(picture.file.startswith(kind) for picture in pictures + own) + 1
            file = f"{kind}_{number}.png" if number > 1 else f"{kind}.png"
            own.append(Picture(file=file, caption=caption, alt=alt, content=render(draw)))
        pictures += own
        sections.append(Section(heading=heading, columns=columns, rows=cells, notes=table_notes(lines), pictures=own))
    shown = [run for group in groups for run in group.runs]
    if repeated:
        left_out = {**left_out, "same settings, seed and device as another run": [run.path for run in repeated]}
    head = introduction(shown, left_out)
    facts = {one_line(run.path): run.facts() for run in shown}
    files = {
        "report.md": f"# {escape_markdown(title)}\n\n{markdown_body(head, sections, pictures=True)}".encode(),
        "report.html": html_page(title, head, sections, facts).encode(),
        **{picture.file: picture.content for picture in pictures},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = out / name
            if path.exists() and not path.is_file():  # opening a pipe would wait for ever
                raise OSError(f"{path} is not a file")
            path.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"the report cannot be written ({error}): choose another --out") from error
    return markdown_body(head, sections, pictures=False)


def introduction(shown: Sequence[Run], left_out: Mapping[str, Sequence[Path]]) -> list[str]:
    """Say how many networks and which devices the report shows, and which runs it leaves out."""
    devices = sorted({run.result.device for run in shown})
    return [f"Networks: {len(shown)}, on {', '.join(devices)}.", *left_out_lines(left_out)]


def left_out_lines(left_out: Mapping[str, Sequence[Path]]) -> list[str]:
    """Say for each reason which runs are left out."""
    return [f"Left out, {why}: {', '.join(map(one_line, paths))}." for why, paths in left_out.items()]
