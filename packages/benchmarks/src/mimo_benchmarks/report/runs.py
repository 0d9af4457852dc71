"""Read finished runs for a report: each result with the settings that it belongs to."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimo_benchmarks.errors import ConfigError, OtherVersion
from mimo_benchmarks.result import Result, one_line
from mimo_benchmarks.run_directory import (
    CONFIG,
    RESULT,
    Curve,
    experiment_around,
    flatten_settings,
    learning_curves,
    read_json,
    read_metrics,
    read_result,
    require_unchanged,
)
from mimo_benchmarks.settings import SET_BY_TASK, UNRELATED_TO_LEARNING

Settings = Mapping[str, str]
"""Settings in JSON, by their names on the command line."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A network that was trained and evaluated."""

    path: Path
    """The run directory."""
    root: Path
    """Directory of the experiment: that of the run itself, or for a control the one that holds it."""
    result: Result
    settings: Settings
    """Settings that decide what is learnt, except the seed; and the number of processes."""
    experiment: Settings
    """The same settings of the experiment's own network, which the run may be a control of."""
    train_curves: Mapping[str, Curve]
    """For each n, the steps with it, and the accuracy on their training inputs; a plain network has a single curve."""
    dev_curves: Mapping[str, Curve]
    """For each n, steps, and the accuracy on the dev split; a plain network has a single curve."""

    def facts(self) -> dict[str, str]:
        """Return how the run went, as text for people to read; unknown facts are left out."""
        result = self.result
        known = {
            "command": one_line(result.command),
            "git revision": result.git_revision,
            "device": result.device,
            "seed": f"{result.seed:,}",
            "steps": f"{result.steps:,}",
            "inputs seen": f"{result.inputs_seen:,}",
            "skipped updates": f"{result.skipped_updates:,}",
            "wall seconds": f"{result.wall_seconds:,.0f} s",
            "train seconds": f"{result.train_seconds:,.0f} s",
            "peak memory bytes": "" if result.peak_memory_bytes is None else f"{result.peak_memory_bytes:,} bytes",
            "accuracy per slot": "; ".join(
                f"n = {row.n}: " + ", ".join(f"{share:.2%}" for share in row.accuracy_per_slot) for row in result.rows
            ),
            "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
            "settings": ", ".join(map(" = ".join, self.settings.items())),
        }
        return {name: value for name, value in known.items() if value}


def make_run(
    path: Path, root: Path, result: Result, settings: Mapping[str, Any], around: Mapping[str, Any], metrics: list[dict[str, Any]]
) -> Run:
    """Make a run from its result, its settings, the settings `around` of the experiment's own network, and its metrics."""
    train, dev = learning_curves(metrics, by_n=result.superposed)
    both = [relevant_settings(each) | {"processes": str(result.processes)} for each in (settings, around)]
    return Run(path=path, root=root, result=result, settings=both[0], experiment=both[1], train_curves=train, dev_curves=dev)


def relevant_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that decide what is learnt, except the seed, as JSON text by their names on the command line."""
    asked = flatten_settings({name: value for name, value in config.items() if name not in UNRELATED_TO_LEARNING | {"seed"}})
    unset = {f"model.{name}" for name in SET_BY_TASK}
    return {one_line(name): one_line(json.dumps(value)) for name, value in asked.items() if name not in unset}


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], dict[str, list[Path]]]:
    """Return the finished runs in these folders and all folders below them, and by reason the directories of runs left out.

    A run that is not finished, is damaged, or was written by another version is left out.

    Raises:
        ConfigError: a folder does not exist, a folder is itself a run that cannot be read, or no run is left.
    """
    if not folders:
        raise ConfigError("no folder was named: name run directories, or a folder that holds some")
    if missing := [str(folder) for folder in folders if not os.path.isdir(folder)]:
        raise ConfigError(f"no such folder: {', '.join(missing)}; name run directories, or a folder that holds some")
    found = {path.resolve(): path for folder in folders for path in sorted({p.parent for p in folder.rglob("*.json")})}
    named_runs = {folder.resolve() for folder in folders}
    runs: list[Run] = []
    left_out: dict[str, list[Path]] = {}
    refused: ConfigError | None = None
    for place, path in found.items():
        if not (path / RESULT).exists():
            if is_run(path):
                left_out.setdefault("not finished", []).append(path)
            continue
        try:
            runs.append(read_run(path))
        except ConfigError as error:
            if place in named_runs:
                raise
            refused = refused or error
            why = "written by another version" if isinstance(error, OtherVersion) else "damaged"
            left_out.setdefault(why, []).append(path)
    if refused and not runs:
        raise refused
    if not runs:
        named = ", ".join(map(str, folders))
        raise ConfigError(f"no finished run in {named}: name run directories with a {RESULT}, or a folder that holds some")
    return [with_experiment(run, runs) for run in runs], left_out


def is_run(path: Path) -> bool:
    """Return whether a folder is a run directory, rather than a saved network, which has a config.json too."""
    return (path / CONFIG).exists() and not (path / "model.safetensors").exists()


def read_run(path: Path) -> Run:
    """Read a finished run; ConfigError if its result.json or config.json is damaged or of another version."""
    result = read_result(path)
    root = (experiment_around(path) if result.control is not None else None) or path.resolve()
    settings = [read_json(folder / CONFIG, dict).get("config") for folder in (path, root)]
    for folder, found in zip((path, root), settings, strict=True):
        require_unchanged(folder)
        if not isinstance(found, dict):
            raise ConfigError(f"{folder / CONFIG} holds no settings: it is damaged, so leave this run out")
    return make_run(path, root, result, settings[0], settings[1], read_metrics(path))


def with_experiment(run: Run, runs: Sequence[Run]) -> Run:
    """Attach a control that was trained alone to the one experiment that differs only in its network."""

    def apart_from_network(one: Run) -> tuple[str, str, Settings]:
        own = {name: value for name, value in one.settings.items() if not name.startswith("model.")}
        return one.result.task, one.result.preset, own

    if run.result.control is None or run.root != run.path.resolve():
        return run
    own = apart_from_network(run)
    found = [one.experiment for one in runs if one.result.control is None and apart_from_network(one) == own]
    return replace(run, experiment=found[0]) if found and all(one == found[0] for one in found) else run
