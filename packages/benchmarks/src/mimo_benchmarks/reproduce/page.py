"""Write the page of results: for each table of the paper what came out, seed by seed, beside the paper's figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.presets.controls import TOLERANCE, cost_ratio
from mimo_benchmarks.presets.find import find_preset
from mimo_benchmarks.presets.paper import PAPER
from mimo_benchmarks.report import plots
from mimo_benchmarks.report.comparison import mean_percent, three_digits
from mimo_benchmarks.report.runs import Run, read_run
from mimo_benchmarks.reproduce.jobs import FOLDER, Job
from mimo_benchmarks.reproduce.results import require_job
from mimo_benchmarks.reproduce.tables import KINDS, Row, find_table
from mimo_benchmarks.run_directory import RESULT
from vsa_core.hub.markdown import markdown_table

HEAD = """# Results

For readers who want to know what of the paper this software has measured: each table lists networks, the plain networks of
equal cost (*equal_cost*) or of a single slot (*thin*) beside them, and every seed. Accuracies are in percent on the test set, of
the last weights or, where the paper chooses them so, of those that are best on the dev split; ± is the standard deviation over
the seeds. *Share* is that of the published steps, and rows of other shares are other rows. *Hours* are those of training one
seed, mostly while other runs used the same GPU.

`results/` holds the settings, environment, result and thinned metrics of each run, and this page is made from it by
`mimonets report results --page docs/results.md`. The command in a result.json makes its run anew, on another machine with other
roundings: `mimonets train mnist_datamux_n1 --seed 0` and `mimonets train mnist_datamux_n2 --seed 0` gave 99.14 and 98.01 % on one
core of an AMD EPYC (torch 2.15, commit 7b51613), in 8 and 10 minutes, where the seeds below have 99.12 ± 0.05 and 98.09 ± 0.13.
"""
COLUMNS = ("row", "n", "accuracy", "seeds", "paper", "share", "steps", "hours", "multiply-adds/input")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a table at one n, over its seeds."""

    row: Row
    share: float
    n: int
    runs: tuple[Run, ...]

    @property
    def accuracies(self) -> list[float]:
        """Return the accuracy of each seed, as a share."""
        return [row.accuracy for run in self.runs for row in run.result.rows if row.n == self.n]

    @property
    def paper(self) -> tuple[float, float | None] | None:
        """Return the paper's mean and standard deviation in percent; None where it has none, or the row has a variant."""
        return None if self.row.variant else PAPER.get(self.row.preset, {}).get(str(self.n))

    @property
    def label(self) -> str:
        """Return what a figure calls the line."""
        several = len(self.runs[0].result.rows) > 1
        return self.row.name + (f", n = {self.n}" if several else "") + (f", share {self.share:g}" if self.share != 1 else "")

    @property
    def cost(self) -> str:
        """Say how many times the intended multiply-adds a control of equal cost has, where no network has fewer."""
        base, _, control = self.row.preset.partition(".")
        wanted = control.removeprefix("equal_cost_n")
        if not wanted.isdecimal():
            return ""
        ratio = cost_ratio(find_preset(base).model, find_preset(self.row.preset).model, int(wanted))
        return f" (x{ratio:.1f} the cost)" if abs(ratio - 1) > TOLERANCE else ""

    def cells(self) -> list[str]:
        """Return the line as cells of COLUMNS."""
        first, paper = self.runs[0].result, self.paper
        reported = "" if paper is None else f"{paper[0]:.2f}" + ("" if paper[1] is None else f" ± {paper[1]:.2f}")
        return [
            self.row.name + self.cost,
            str(self.n),
            mean_percent(self.accuracies).rstrip("%"),
            ", ".join(f"{share:.2%}".rstrip("%") for share in self.accuracies),
            reported,
            f"{self.share:g}",
            f"{first.steps:,}",
            f"{fmean(run.result.train_seconds for run in self.runs) / 3600:.2f}",
            f"{three_digits(next(row.macs for row in first.rows if row.n == self.n) / 1e6)} M",
        ]


def read_results(name: str, folders: Sequence[Path]) -> dict[str, Run]:
    """Return a table's finished runs in folders by the names of their directories; the first folder that has one counts.

    Raises:
        ConfigError: a result is damaged, or of a run with other settings than its row.
    """
    rows = {row.name: row for row in find_table(name).rows}
    found: dict[str, Run] = {}
    for path in (path.parent for folder in folders for path in sorted(folder.glob(f"*/{RESULT}"))):
        parts = FOLDER.fullmatch(path.name)
        if parts and path.name not in found and (row := rows.get(parts["row"])):
            found[path.name] = read_run(path)
            share = int(parts["steps"]) / row.config(1.0).optim.steps
            require_job(Job(row=row, share=share, seed=int(parts["seed"])), found[path.name])
    return found


def table_lines(name: str, found: dict[str, Run]) -> list[Line]:
    """Return the lines of a table, in the order of its rows, from runs by the names of their directories."""
    lines = []
    for row in find_table(name).rows:
        by_steps: dict[int, list[Run]] = {}
        for run in sorted(found.values(), key=lambda run: run.result.seed):
            parts = FOLDER.fullmatch(run.path.name)
            if parts and parts["row"] == row.name:
                by_steps.setdefault(int(parts["steps"]), []).append(run)
        published = row.config(1.0).optim.steps
        for steps, runs in sorted(by_steps.items(), reverse=True):
            share = float(f"{steps / published:.3g}")
            lines += [Line(row=row, share=share, n=each.n, runs=tuple(runs)) for each in runs[0].result.rows]
    return lines


def table_text(lines: Sequence[Line]) -> str:
    """Return lines as a Markdown table, without columns that are empty."""
    cells = [line.cells() for line in lines]
    kept = [place for place in range(len(COLUMNS)) if any(row[place] for row in cells)]
    columns = [COLUMNS[place] for place in kept]
    return markdown_table(columns, [[row[place] for place in kept] for row in cells], left=["row", "seeds"])


def section(name: str, found: dict[str, Run], picture: str) -> str:
    """Return the section of a table: what it shows, its lines and figure, what was measured where, and what was not run."""
    table, lines = find_table(name), table_lines(name, found)
    run_rows = {line.row for line in lines}
    missing = [row.name for row in table.rows if row not in run_rows]
    parts = [f"## {table.title}\n", f"{table.about}\n"]
    if lines:
        results = [run.result for line in lines for run in line.runs]
        devices, versions = {result.device for result in results}, {result.versions["torch"] for result in results}
        commits = sorted({result.git_revision[:7] + result.git_revision[40:] for result in results})
        example = lines[0].runs[0].result.command
        parts += [
            table_text(lines),
            f"![{table.title}: accuracy of each seed, and the paper's]({picture})\n",
            f"On {', '.join(sorted(devices))}, torch {', '.join(sorted(versions))}, at commit {', '.join(commits)}. "
            f"`mimonets reproduce {name}` runs the table, and `{example}` the first row with its first seed.\n",
        ]
    else:
        parts.append(f"Nothing was run yet; `mimonets reproduce {name}` does.\n")
    if missing and lines:
        parts.append(f"Not run yet: {', '.join(missing)}.\n")
    return "\n".join(parts)


def draw(lines: Sequence[Line]) -> Figure:
    """Draw the accuracy of each seed of each line, and the paper's mean and standard deviation."""
    figure = Figure(figsize=(plots.WIDTH, 0.9 + 0.24 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for place, line in enumerate(lines):
        superposed = line.runs[0].result.superposed
        values = [100 * share for share in line.accuracies]
        axes.plot(values, [place] * len(values), "o", markersize=4, color=plots.WARM[0] if superposed else plots.COLD[0])
        if line.paper:
            mean, spread = line.paper
            axes.errorbar([mean], [place], xerr=[spread or 0], fmt="|", markersize=9, color="#0f172a", capsize=2, linewidth=1)
    axes.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy in %; dots: seeds, red in superposition; black: the paper", fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(axis="x", linewidth=0.4)
    return figure


def write_page(folder: Path, page: Path, *, render: Callable[[Callable[[], Figure]], bytes] = plots.render_png) -> None:
    """Write the page of the results in a folder, which has one of each table's name, and the figures beside the page.

    Raises:
        ConfigError: there is no result, one is damaged or not of its row, or the page cannot be written.
    """
    sections = []
    results = {name: read_results(name, [folder / name]) for name in KINDS}
    if not any(results.values()):
        raise ConfigError(f"{folder} holds no result of a table: name the folder of `mimonets reproduce --results`")
    try:
        for name, found in results.items():
            picture = f"{page.stem}_{name}.png"
            sections.append(section(name, found, picture))
            if lines := table_lines(name, found):
                (page.parent / picture).write_bytes(render(partial(draw, lines)))
        page.write_text("\n".join([HEAD, *sections]))
    except OSError as error:
        raise ConfigError(f"the page cannot be written ({error}): choose another --page") from error
