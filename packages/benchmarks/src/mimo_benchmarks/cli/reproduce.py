"""`mimonets reproduce`: run the rows of one of the paper's tables, several at once, and print the table."""

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import tyro

from mimo_benchmarks.reproduce.tables import find_table
from mimo_benchmarks.settings import require


def reproduce(
    table: Annotated[str, tyro.conf.Positional],
    *,
    seeds: tuple[int, ...] = (0, 1, 2),
    share: float | None = None,
    gpus: int | None = None,
    at_once: int | None = None,
    rows: str = "*",
    minutes: float | None = None,
    out: Path = Path("runs"),
    results: Path | None = None,
) -> None:
    """Run the rows of a table with their controls, and print the table. What is finished is not run again.

    The same command goes on after a signal, the end of --minutes or a crash. Rows run in the table's order, each with all seeds.

    Args:
        table: figure4, table3, mqar, table2, table1 or ablations.
        seeds: seeds of every row.
        share: share of the published steps; the table's own unless given.
        gpus: number of GPUs, 0 for the CPU; all that there are unless given.
        at_once: runs that train at the same time on a GPU, or on the CPU; the table's own unless given. Rates are measured only
            where one runs alone.
        rows: names of rows, with a shell's wildcards.
        minutes: time after which running rows are saved and stopped; 0 starts none, and prints the table.
        out: folder in which a folder of the table's name holds the run directories and logs.
        results: folder to which the results of finished runs are added, and where those of earlier ones are looked for.
    """
    chosen = find_table(table)
    share = chosen.share if share is None else share
    require(0 < share <= 1, f"share must be above 0 and at most 1, got {share}")
    require(len(set(seeds)) == len(seeds) > 0, f"seeds must be different numbers, at least one, got {seeds}")
    require(minutes is None or minutes >= 0, f"minutes must not be negative, got {minutes}")
    for name, number, least in (("gpus", gpus, 0), ("at_once", at_once, 1)):
        require(number is None or number >= least, f"{name} must be at least {least}, got {number}")
    picked = [row for row in chosen.rows if fnmatchcase(row.name, rows)]
    require(
        len(picked) > 0, f"{table} has no row with a name like {rows!r}: its rows are {', '.join(r.name for r in chosen.rows)}"
    )
    import torch

    from mimo_benchmarks.reproduce.jobs import Job
    from mimo_benchmarks.reproduce.page import read_results, table_lines, table_text
    from mimo_benchmarks.reproduce.results import keep
    from mimo_benchmarks.reproduce.workers import Machine, carry_out
    from mimo_benchmarks.run_lock import lock_run
    from mimo_benchmarks.training.signals import Stopped, note_signals

    there = torch.cuda.device_count()
    require(gpus is None or gpus <= there, f"gpus is {gpus}, and this machine has {there}")
    folder, kept = out / table, None if results is None else results / table
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [Job(row=row, share=share, seed=seed) for row in picked for seed in seeds]
    known = [folder] if kept is None else [folder, kept]
    read_results(table, known)  # what is not of this table is refused before anything runs
    waiting = [job for job in jobs if not job.is_finished(*known)]
    print(
        f"{table}: {len(jobs) - len(waiting)} of {len(jobs)} runs are finished; run directories and logs are in {folder}",
        flush=True,
    )
    machine = Machine(gpus=there if gpus is None else gpus, at_once=at_once or chosen.at_once, out=folder)
    failed: list[Job] = []

    def add(job: Job) -> None:
        if kept is not None and not job.is_finished(kept):
            keep(job, folder / job.folder, kept)

    with note_signals() as request:
        for job in jobs:
            if job.is_finished(folder):
                add(job)
        if minutes != 0:
            with lock_run(folder):
                failed = carry_out(waiting, machine, request, None if minutes is None else 60 * minutes, add)
    found = read_results(table, known)
    if lines := [line for line in table_lines(table, found) if line.row in picked]:
        print(f"\n{table_text(lines)}")
    left = sum(not job.is_finished(*known) for job in jobs)
    if request.signal:
        raise Stopped(request.signal, f"{left} runs are left; the same command goes on")
    if failed:
        print(f"{len(failed)} runs failed; see {', '.join(str(folder / f'{job.folder}.log') for job in failed)}", file=sys.stderr)
        sys.exit(1)
    print(f"{left} runs are left; the same command goes on" if left else "all runs are finished")


def execute_reproduce(arguments: Sequence[str]) -> None:
    """Run `reproduce` with these arguments.

    Raises:
        ConfigError: an unknown table or row, a number that cannot be, or a run directory that holds another run.
        Stopped: a signal came; running rows were saved.
        SystemExit: a flag that tyro refuses (code 2), --help (code 0), or runs that failed (code 1).
    """
    tyro.cli(reproduce, args=arguments, prog="mimonets reproduce")
