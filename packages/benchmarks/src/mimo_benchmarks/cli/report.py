"""`mimonets report`: compare finished runs in tables, figures and one HTML page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from mimo_benchmarks.report.composition import left_out_lines, write_report
from mimo_benchmarks.report.runs import find_runs
from mimo_benchmarks.settings import require


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional], *, out: Path = Path("report"), page: Path | None = None
) -> None:
    """Compare finished runs: write report.md, its pictures, and report.html, which needs no other file.

    Args:
        runs: run directories, or folders with run directories anywhere below.
        out: folder that the report is written to.
        page: instead, write the paper's tables to this Markdown file, with figures beside it, from a folder of results as
            `mimonets reproduce --results` makes it.
    """
    if page is not None:
        require(len(runs) == 1 and runs[0].is_dir(), "--page takes one folder of results")
        from mimo_benchmarks.reproduce.page import write_page

        write_page(runs[0], page)
        print(f"{page} and its figures")
        return
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
