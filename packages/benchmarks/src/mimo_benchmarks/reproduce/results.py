"""Keep the results of runs in a folder of small files, without weights and without anything of the machine but its device."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.report.runs import Run, read_run, relevant_settings
from mimo_benchmarks.reproduce.jobs import Job
from mimo_benchmarks.run_directory import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    RESULT,
    RunDirectory,
    read_json,
    read_metrics,
    settings_as_json,
)
from mimo_benchmarks.settings import UNRELATED_TO_LEARNING

LARGEST = 12_000
"""Most bytes of the files of one run."""
UNTRUE = "inputs_per_second"
"""Entry of metrics that is left out, because several runs shared a device."""
KEPT = ("device", "processes", "cores", "threads", "python", "versions", "git_revision")
"""What is kept of the environment of each start."""


def keep(job: Job, run: Path, folder: Path) -> None:
    """Copy the result of a finished run, its settings, environments and thinned metrics, into a folder of results.

    Folders of the machine are taken out on the way: the command is the one that makes the run anew.

    Raises:
        ConfigError: the run is not finished, damaged, or not a run of this row.
    """
    found = read_run(run)
    require_job(job, found)
    given = read_json(run / CONFIG, dict)
    config = {name: value for name, value in given["config"].items() if name not in UNRELATED_TO_LEARNING}
    command = shlex.join(["mimonets", *job.command()])
    starts = [{"command": command} | {name: start[name] for name in KEPT} for start in read_json(run / ENVIRONMENT, list)]
    directory = RunDirectory(folder / job.folder)
    directory.write_with_checksum(CONFIG, {"preset": given["preset"], "config": config})
    directory.write(ENVIRONMENT, starts)
    sizes = sum((directory.path / name).stat().st_size for name in (CONFIG, ENVIRONMENT))
    result = replace(found.result, command=command).to_json()
    room = LARGEST - sizes - len(json.dumps(result, indent=2)) - 200
    directory.write_text(METRICS, thinned(read_metrics(run), room))
    directory.write_with_checksum(RESULT, result)  # last, as it says that the run is finished


def require_job(job: Job, run: Run) -> None:
    """Raise ConfigError, naming what differs, unless a run has the preset, settings and seed of a job."""
    config = replace(job.config, precision=job.config.precision or "no")  # a run writes down what it has
    expected = relevant_settings(settings_as_json(config)) | {"processes": "1"}
    differ = [name for name in expected.keys() | run.settings.keys() if expected.get(name) != run.settings.get(name)]
    preset, control = run.result.preset, run.result.control
    if (full := f"{preset}.{control}" if control else preset) != job.row.preset:
        differ.append(f"preset: {full}")
    if run.result.seed != job.seed:
        differ.append(f"seed: {run.result.seed}")
    if differ:
        raise ConfigError(f"{run.path} is not a run of {job.folder}, with other {', '.join(sorted(differ))}: move it away")


def thinned(metrics: Sequence[dict[str, Any]], room: int) -> str:
    """Return lines of metrics.jsonl: of those of training every first, second, fourth .. so that all fit into so many bytes."""
    short = [
        {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in line.items() if name != UNTRUE}
        for line in metrics
    ]
    every = 1
    while True:
        training = [number for number, line in enumerate(short) if "dev_accuracy" not in line]
        kept = set(training[::-1][::every])
        lines = [json.dumps(line) for number, line in enumerate(short) if "dev_accuracy" in line or number in kept]
        text = "".join(f"{line}\n" for line in lines)
        if len(text) <= room or every > len(short):
            return text
        every *= 2
