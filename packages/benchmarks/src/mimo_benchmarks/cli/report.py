"""`mimonets report`: compare finished runs in tables, figures and one HTML page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mimo_benchmarks.report.composition import left_out_lines, write_report
from mimo_benchmarks.report.runs import find_runs


def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], *, out: Path = Path("report")) -> None:
    """Compare finished runs: write report.md, its pictures, and report.html, which needs no other file.

    Args:
        runs: run directories, or folders with run directories anywhere below.
        out: folder that the report is written to.
    """
    found, left_out = find_runs(runs)
    for line in left_out_lines(left_out):
        print(line, file=sys.stderr)
    print(write_report(found, left_out, out, "Report"))
    print(f"{out}: report.md, report.html and their pictures")


def execute_report(arguments: Sequence[str]) -> None:
    """Run `report` with these arguments.

    Raises:
        ConfigError: no run is finished, one that was named by itself is damaged, or the folder cannot be written.
        SystemExit: a flag that tyro refuses (code 2), or --help (code 0).
    """
    tyro.cli(report, args=arguments, prog="mimonets report")
