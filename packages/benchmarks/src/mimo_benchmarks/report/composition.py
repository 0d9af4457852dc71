"""A report of any number of runs: tables, figures, verdicts, and one HTML page that needs no other file."""

from collections.abc import Sequence
from functools import partial
from itertools import chain, groupby
from math import hypot
from pathlib import Path
from statistics import fmean

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.presets.controls import TOLERANCE
from mimo_benchmarks.report import plots
from mimo_benchmarks.report import rendering as page
from mimo_benchmarks.report.comparison import Line, each_device, figures, group, lines, table
from mimo_benchmarks.report.rendering import Picture, Section
from mimo_benchmarks.report.runs import Run
from mimo_benchmarks.result import Crosstalk, one_line

SPREAD = (
    "Behind ± is the standard deviation over the seeds, whose number is in brackets; speed-up is over the network's smallest n."
)
AT_WILL = "What superposition adds is one set of weights whose throughput is chosen at every call."


def verdicts(rows: Sequence[Line]) -> list[str]:
    """What the rows of one experiment say of superposition, in the favour of whoever won."""
    ours = [line for line in rows if line.group.result.superposed and line.group.result.control is None]
    plain = [line for line in rows if line.group.result.control is not None and not line.group.result.superposed]
    if not ours:
        return []
    if not plain:
        who = ours[0].group.preset
        return [f"{who}: no controls were trained, so this says nothing of whether a smaller plain network would do as well."]
    return [verdict(line, plain) for line in ours]


def verdict(line: Line, plain: Sequence[Line]) -> str:
    """Whether a plain network that costs no more does as well as a superposed one at one n."""
    affordable = [rival for rival in plain if rival.macs <= (1 + TOLERANCE) * line.macs]
    head = f"{line.group.preset}, n = {line.n}: "
    if not affordable:
        rival = min(plain, key=lambda each: each.macs)
        costs = f"the cheapest, {rival.name}, takes {rival.macs / line.macs:.2f} times the multiply-adds"
        return f"{head}no plain network that costs as little was trained; {costs} and scores {scores(rival, line)}."
    rival = max(affordable, key=lambda each: each.accuracy)
    wins = rival.accuracy >= line.accuracy
    said = "a plain network does as well at the same cost or less" if wins else "no plain network does as well at the same cost"
    return f"{head}{said}: {rival.name} scores {scores(rival, line)}{doubt(rival, line)}."


def scores(rival: Line, line: Line) -> str:
    """Accuracies, and measured rates where both are of one device."""
    ours, theirs = line.rates(), rival.rates()
    both = f"{rival.accuracy:.2%} against {line.accuracy:.2%}"
    if len(ours) == 1 and ours.keys() == theirs.keys():
        return f"{both}, at {each_device(theirs, figures)} inputs/s against {each_device(ours, figures)}"
    return both


def doubt(rival: Line, line: Line) -> str:
    """How far the seeds bear a comparison out."""
    if len(rival.rows) == 1 or len(line.rows) == 1:
        return "; with one seed, a small difference says little"
    within = abs(rival.accuracy - line.accuracy) <= hypot(rival.spread, line.spread)
    return "; the difference is within the spread over seeds" if within else ""


def notes(rows: Sequence[Line]) -> list[str]:
    """What is to be read below a table: verdicts, what guessing is worth, and what the numbers are."""
    experiments = groupby(rows, key=lambda line: (line.group.result.preset, line.group.preset))
    told = [said for _, members in experiments for said in verdicts(list(members))]
    has_dial = any(line.group.result.superposed and len(line.group.result.rows) > 1 for line in rows)
    if has_dial and any(line.control for line in rows):
        told.append(AT_WILL)
    guesses = {name: share for line in rows for run in line.group.runs for name, share in run.result.guesses.items()}
    if guesses:
        told.append(f"Right by guessing: {', '.join(f'{name} {share:.2%}' for name, share in guesses.items())}.")
    return [*told, SPREAD]


def drawn(rows: Sequence[Line], task: str) -> list[tuple[str, str, bytes]]:
    """Kind, caption and PNG of all that can be drawn of a task."""
    devices = [device for line in rows for device, rates in line.rates().items() if rates]
    main = max(sorted(set(devices)), key=devices.count, default="")
    several = len({line.group.preset for line in rows}) > 1
    networks = [list(members) for _, members in groupby(rows, key=lambda line: id(line.group))]
    series = [series_of(own, main, f"{own[0].group.preset}: " * several) for own in networks]
    found = [("accuracy_throughput", f"{task}: accuracy against cost", partial(plots.accuracy_throughput, series, main))]
    if any(one.curves or one.dev for one in series):
        found.append(("learning_curves", f"{task}: accuracy while training", partial(plots.learning_curves, series)))
    for each in (own[0].group for own in networks):
        if known := [run.result.crosstalk for run in each.runs if run.result.crosstalk]:
            before, after = (over_seeds([both[when] for both in known]) for when in ("before", "after"))
            caption = f"{each.preset}: crosstalk along the network"
            found.append(("crosstalk", caption, partial(plots.crosstalk, before, after)))
    return [(kind, caption, plots.png(draw)) for kind, caption, draw in found]


def series_of(own: Sequence[Line], device: str, prefix: str) -> plots.Series:
    """One network as the figures have it, with its rates on one device."""
    points = [
        plots.Point(
            n=f"n = {line.rows[0].n}",
            accuracy=line.accuracy,
            spread=line.spread,
            macs=line.macs,
            rate=fmean(rates) if (rates := line.rates().get(device)) else None,
        )
        for line in own
    ]
    return plots.Series(
        label=prefix + own[0].name,
        superposed=own[0].group.result.superposed,
        points=points,
        curves=list(chain(*(run.train_curves for run in own[0].group.runs))),
        dev=list(chain(*(run.dev_curves for run in own[0].group.runs))),
    )


def over_seeds(found: Sequence[Crosstalk]) -> Crosstalk:
    """Mean crosstalk."""
    return {n: {s: fmean(each[n][s] for each in found if s in each.get(n, {})) for s in found[0][n]} for n in found[0]}


def write_report(runs: Sequence[Run], begun: Sequence[Path], out: Path, title: str) -> str:
    """Write report.md, its pictures and report.html over all runs, and return the tables and verdicts in Markdown.

    Args:
        runs: what is reported.
        begun: directories of runs that are not finished, to be named.
        out: folder to write to.
        title: heading of the report.

    Raises:
        ConfigError: `out` cannot be written.
    """
    groups, repeated = group(runs)
    sections, pictures = [], list[Picture]()
    for task, members in groupby(lines(groups), key=lambda line: line.group.result.task):
        rows = list(members)
        presets = list(dict.fromkeys(line.group.preset for line in rows))
        columns, cells = table(rows)
        heading = task if len(presets) > 1 else f"{task}: {presets[0]}"
        own = [picture(kind, caption, content, pictures) for kind, caption, content in drawn(rows, task)]
        sections.append(Section(heading=heading, columns=columns, rows=cells, notes=notes(rows), pictures=own))
    head = introduction(runs, begun, [run.path for run in repeated])
    facts = {one_line(run.path): run.facts() for run in runs}
    files = {
        "report.md": f"# {page.escape(title)}\n\n{page.markdown(head, sections, pictures=True)}".encode(),
        "report.html": page.page(title, head, sections, facts).encode(),
        **{picture.file: picture.content for picture in pictures},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"the report cannot be written ({error}): choose another --out") from error
    return page.markdown(head, sections, pictures=False)


def picture(kind: str, caption: str, content: bytes, others: list[Picture]) -> Picture:
    """Add a picture to the others, under a name of its own."""
    count = sum(other.file.startswith(kind) for other in others)
    new = Picture(file=f"{kind}_{count + 1}.png" if count else f"{kind}.png", caption=caption, content=content)
    others.append(new)
    return new


def introduction(found: Sequence[Run], begun: Sequence[Path], repeated: Sequence[Path]) -> list[str]:
    """What the report is about, and what it leaves out."""
    devices = sorted({run.result.device for run in found})
    told = [
        f"Networks: {len(found)}, on {', '.join(devices)}." + " Rates of different devices do not compare." * (len(devices) > 1)
    ]
    for paths, why in ((begun, "not finished"), (repeated, "the settings and the seed of another")):
        if paths:
            told.append(f"Left out, {why}: {', '.join(map(one_line, paths))}.")
    return told
