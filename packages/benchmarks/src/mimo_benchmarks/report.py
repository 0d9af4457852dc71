"""A run as a table, a plot and a page that needs no other file."""

import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from mimo_benchmarks.baselines.equal_cost import TOLERANCE

matplotlib.use("Agg")

import matplotlib.pyplot as plt


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network at one number of inputs a pass."""

    model: str
    """What the table calls the network."""
    n: int
    accuracy: float
    """Share of the test images classified right."""
    images_per_second: float
    speedup: float
    """Images a second over those of the superposed network at its smallest n."""
    macs: float
    """Multiply-adds per image."""
    superposed: bool


COLUMNS = ("model", "n", "accuracy", "images/s", "speed-up", "multiply-adds/image")


def cells(row: Row) -> tuple[str, ...]:
    """A row as the table shows it."""
    return (
        row.model,
        str(row.n),
        f"{row.accuracy:.2%}",
        f"{row.images_per_second:,.0f}",
        f"{row.speedup:.2f}x",
        f"{row.macs / 1e6:.3f} M",
    )


def table(rows: list[Row]) -> str:
    """Markdown with aligned columns."""
    lines = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(2, *(len(line[i]) for line in lines)) for i in range(len(COLUMNS))]  # a rule takes two
    padded = [[line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def verdict(rows: list[Row]) -> str:
    """What the rows say of superposition, in the favour of whoever won."""
    superposed, plain = [row for row in rows if row.superposed], [row for row in rows if not row.superposed]
    fast = max(superposed, key=lambda row: row.n)
    if not plain:
        return "No controls were trained, so this run says nothing of whether a smaller plain network would do as well."
    rival = min(plain, key=lambda row: row.macs)
    compared = f"the {rival.model}, scores {rival.accuracy:.2%} against {fast.accuracy:.2%} at n = {fast.n}"
    if rival.accuracy >= fast.accuracy and rival.macs <= (1 + TOLERANCE) * fast.macs:
        return (
            f"On this task a smaller plain network does as well: {compared}. "
            "What superposition adds is one set of weights whose throughput is chosen at every call."
        )
    return f"Here {compared}, from one set of weights whose throughput is chosen at every call."


def plot(rows: list[Row], path: Path) -> None:
    """Accuracy against images a second, as a PNG."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    superposed = [row for row in rows if row.superposed]
    axes.plot([r.images_per_second for r in superposed], [100 * r.accuracy for r in superposed],
              "o-", color="#c2410c", label="one MIMOConv, n chosen per call")  # fmt: skip
    for row, marker in zip([row for row in rows if not row.superposed], "sD^v", strict=False):
        axes.plot(row.images_per_second, 100 * row.accuracy, marker, color="#1d4ed8", label=row.model)
    for row in superposed:
        place = (row.images_per_second, 100 * row.accuracy)
        axes.annotate(f"n = {row.n}", place, xytext=(0, 9), textcoords="offset points", ha="center")
    axes.set(xlabel="images per second", ylabel="test accuracy (%)")
    axes.margins(0.12, 0.2)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_crosstalk(before: dict[int, dict[str, float]], after: dict[int, dict[str, float]], path: Path) -> None:
    """Crosstalk along the network for each n, before and after training, as a PNG."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for (n, shares), colour in zip(after.items(), plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False):
        axes.plot(list(before[n]), list(before[n].values()), ":", color=colour)
        axes.plot(list(shares), list(shares.values()), "o-", color=colour, label=f"n = {n}")
    axes.plot([], [], ":", color="gray", label="before training")
    axes.set(ylabel="crosstalk: share of the variance", ylim=(-0.03, 1.08))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150)
    plt.close(figure)


STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem }
div { overflow-x: auto }
table { border-collapse: collapse; white-space: nowrap }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #8886; text-align: right }
th:first-child, td:first-child { text-align: left }
img { max-width: 100%; background: white }
pre { overflow-x: auto; font-size: .8rem }
"""


def page(rows: list[Row], title: str, pictures: list[Path], details: dict[str, Any]) -> str:
    """The table, the plots and what the run was, as one HTML file that loads nothing."""

    def line(values: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    images = [
        f'<img alt="{path.stem.replace("_", " ")}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in pictures
    ]
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
<h1>{html.escape(title)}</h1>
<div><table>
{line(COLUMNS, "th")}
{"".join(line(cells(row), "td") for row in rows)}
</table></div>
<p>{html.escape(verdict(rows))}</p>
{"".join(images)}
<details><summary>Configuration and environment</summary>
<pre>{html.escape(json.dumps(details, indent=2, default=str))}</pre></details>
</html>
"""
