"""Write and read run directories: settings, environment, metrics and result of a run."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from itertools import count, islice
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from mimo_benchmarks.data.storage.files import make_folder, sync
from mimo_benchmarks.environment import environment
from mimo_benchmarks.errors import CheckpointError, ConfigError, OtherVersion
from mimo_benchmarks.result import Result, share, whole
from mimo_benchmarks.run_lock import LOCK
from mimo_benchmarks.settings import RunConfig
from vsa_core.hub.library import digest
from vsa_core.hub.typed import as_dataclass, as_type

CONFIG, ENVIRONMENT, METRICS, RESULT = "config.json", "environment.json", "metrics.jsonl", "result.json"
CHECKPOINTS, MODEL, DIAGNOSTIC = "checkpoints", "model", "diagnostic"
SUFFIXES = (".json", ".jsonl", ".md", ".html", ".png", ".safetensors")
"""Suffixes of the files that a run writes."""
DEEPEST = 20
"""Files of a run do not nest lists and objects deeper than this."""
Curve = tuple[list[float], list[float]]
"""Steps and accuracies."""


def make_run_directory(given: Path | None, preset: str) -> Path:
    """Make the given run directory, or the first free one of runs/PRESET-001, -002, .. below the current folder.

    Raises:
        ConfigError: the given directory exists already, or none can be made.
    """
    for path in [given] if given else (Path("runs") / f"{preset}-{number:03}" for number in count(1)):
        try:
            make_folder(path)
        except OSError as error:
            if isinstance(error, FileExistsError) and os.path.lexists(path):
                continue
            raise ConfigError(f"the run directory cannot be made ({error}): choose another --out") from error
        return path
    raise ConfigError(f"{given} exists already, and a run never overwrites another: choose another --out")


class RunDirectory:
    """Writes the files of a run: config.json and environment.json at the start, metrics.jsonl line by line, and result.json.

    Environments and metrics are also kept in memory, so that the process that wrote them never reads them back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts: list[dict[str, Any]] = []
        """Environments in which the run was started and resumed, the first start first."""
        self.metrics: list[dict[str, Any]] = []
        """Lines of metrics.jsonl."""

    def check(self) -> None:
        """Raise ConfigError if anything stands in the way of what the run will write, perhaps only after all training."""
        for folder in (self.path, self.path / CHECKPOINTS, self.path / MODEL, self.path / DIAGNOSTIC):
            if not os.path.lexists(folder):
                continue
            try:
                entries = list(folder.iterdir())
            except OSError as error:
                raise ConfigError(f"{folder} cannot be read ({error}): the run needs this folder; move it away") from error
            if not os.access(folder, os.W_OK):
                raise ConfigError(f"{folder} may not be written, and the run needs this folder: change its permissions")
            for entry in entries:
                written = entry.suffix in SUFFIXES or entry.name == LOCK
                if written and entry.name != ENVIRONMENT and not entry.is_file():
                    raise ConfigError(f"{entry} is not a file, and the run needs one there: move it away, then resume")

    def write_config(self, preset: str, config: RunConfig) -> None:
        """Write config.json unless it exists; with it, a run can be resumed."""
        if not (self.path / CONFIG).exists():
            self.write_with_checksum(CONFIG, run_as_json(preset, config))

    def begin(self, preset: str, config: RunConfig, device: torch.device, step: int = 0) -> list[str]:
        """Write config.json unless it exists, and add an environment to environment.json, before a run starts or resumes.

        Lines of metrics.jsonl that are damaged or come after `step`, from which the run resumes, are dropped. A damaged
        environment.json is moved aside, because it is only a record; what is returned says so.
        """
        self.write_config(preset, config)
        path = self.path / ENVIRONMENT
        before: list[Any] = []
        notes = []
        try:
            before = read_json(path, list) if os.path.lexists(path) else []
            if not all(isinstance(start, dict) and isinstance(start.get("command"), str) for start in before):
                raise ConfigError(f"{path} does not say where the run was started: it is damaged")
        except ConfigError as error:
            names = (path.with_name(f"environment.damaged-{number}") for number in count(1))
            before, aside = [], next(name for name in names if not os.path.lexists(name))
            with suppress(OSError):  # what cannot be moved cannot be replaced either, which `write` says
                path.replace(aside)
            notes = [f"{error}; moved to {aside.name}"]
        self.starts = [*before, environment(device)]
        self.write(ENVIRONMENT, self.starts)
        if (self.path / METRICS).exists():
            self.metrics = [line for line in read_metrics(self.path) if line["step"] <= step]
            self.write_text(METRICS, "".join(json.dumps(line) + "\n" for line in self.metrics))
        return notes

    def write_with_checksum(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON object with the SHA-256 of what will be read of it, so that no other content is taken for it.

        It comes first, because a damaged sector that overwrote it at the end could leave JSON that only lacks it.
        """
        read = json.loads(json.dumps(content))
        self.write(name, {"sha256": digest(read, b""), **read})

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(content, indent=2, default=str) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all; once it is written, it survives a loss of power."""
        beside = self.path / f".{name}"
        with self.writing(name):
            make_folder(self.path, exist_ok=True)
            beside.write_text(text)
            sync(beside)
            beside.replace(self.path / name)
            sync(self.path)

    def log(self, **values: Any) -> None:
        """Append a line to metrics.jsonl; numbers that are not finite become null."""
        line = {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in values.items()}
        with self.writing(METRICS), (self.path / METRICS).open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.metrics.append(line)

    def sync_metrics(self) -> None:
        """Let the lines of metrics.jsonl survive a loss of power, as a checkpoint of the same step does."""
        if self.metrics:
            with self.writing(METRICS):
                sync(self.path / METRICS)
                sync(self.path)

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Turn errors of writing a file into a CheckpointError that says what to do."""
        try:
            yield
        except OSError as error:
            path = self.path / name
            raise CheckpointError(f"{path} cannot be written ({error}): make room, then resume with --resume") from error


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the undamaged lines of a run's metrics.jsonl; none if it is missing, ConfigError if it is not a file."""
    path, found = run / METRICS, []
    for text in read_text(path).splitlines() if os.path.lexists(path) else ():
        try:
            line = parse_json(text)
            whole(line["step"])
        except (ValueError, KeyError, TypeError):
            continue
        found.append(line)
    return found


def learning_curves(metrics: list[dict[str, Any]], *, by_n: bool) -> tuple[dict[str, Curve], dict[str, Curve]]:
    """Return the accuracy curves of metrics, on the training inputs and on the dev split, each by n.

    Damaged entries are left out. Unless `by_n`, there is one curve of each kind: a plain network takes its inputs one by one, so
    that what it learnt does not depend on n.
    """
    train: dict[str, Curve] = {}
    dev: dict[str, Curve] = {}
    for line in metrics:
        try:
            step, shares = whole(line["step"]), line.get("dev_accuracy") or {}
            n = str(line.get("n")) if by_n else "1"
            for curves, key, found in [
                (train, n, line.get("accuracy")),
                *((dev, str(each), found) for each, found in shares.items()),
            ]:
                if found is not None:
                    value = share(found)
                    steps, values = curves.setdefault(key, ([], []))
                    steps.append(step)
                    values.append(value)
        except (ValueError, AttributeError):
            continue
    return train, dev if by_n else dict(islice(dev.items(), 1))


def settings_as_json(config: RunConfig) -> dict[str, Any]:
    """Return the settings for config.json; "kind" in "model" names the class of the network's configuration."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config), default=str))
    values["model"] = {"kind": type(config.model).__name__, **values["model"]}
    return values


def run_as_json(preset: str, config: RunConfig) -> dict[str, Any]:
    """Return what config.json says of a run, and each of its checkpoints too."""
    return {"preset": preset, "config": settings_as_json(config)}


def flatten_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as a flat dict, by their names on the command line, such as optim.lr."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flatten_settings(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def read_text(path: Path) -> str:
    """Return a file's text, with a sign in place of what is not UTF-8; raise ConfigError unless it is a file that can be read."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise OSError("it is not a file")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}): is {path.parent} a run directory?") from error


def parse_json(text: str) -> Any:
    """Return what JSON text holds; raise ValueError if it is damaged, or nested deeper than any file of a run."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists or objects are nested too deep") from error
    level = [found]
    for _ in range(DEEPEST):
        inside = (value.values() if isinstance(value, dict) else value for value in level if isinstance(value, dict | list))
        level = [value for values in inside for value in values]
    if level:
        raise ValueError("its lists or objects are nested too deep")
    return found


def read_json(path: Path, kind: type) -> Any:
    """Return what a JSON file holds; raise ConfigError unless it is of this type."""
    try:
        found = parse_json(read_text(path))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}): it is damaged, or {path.parent} is not a run directory") from error
    if not isinstance(found, kind):
        raise ConfigError(
            f"{path} holds a {type(found).__name__}, expected a {kind.__name__}: it is damaged, or not a file of a run"
        )
    return found


def read_settings(run: Path) -> tuple[str, RunConfig]:
    """Return the name of the preset and the settings of a run; every value is of the type of its setting.

    Raises:
        ConfigError: config.json is missing or damaged, or has settings that this version does not know.
    """
    if never_began(run):
        raise ConfigError(f"{run} holds nothing to resume, because its run was killed before it began: delete it")
    return parse_run(read_json(run / CONFIG, dict), run / CONFIG)


def never_began(run: Path) -> bool:
    """Tell whether a run directory is that of a run that was killed before it wrote its settings."""
    with suppress(OSError):  # whoever reads its files explains that
        return {entry.name for entry in run.iterdir()} <= {LOCK, f".{CONFIG}"}
    return False


def experiment_around(run: Path) -> Path | None:
    """Return the run directory that a run lies in as a control; None where the folder around it is something else."""
    around = run.resolve().parent
    if not (around / CONFIG).is_file():
        return None
    try:
        found = read_json(around / CONFIG, dict)
    except ConfigError:  # a run's that is damaged, for all that can be said
        return around
    return around if found.keys() >= {"preset", "config"} else None


def parse_run(found: Any, path: Path) -> tuple[str, RunConfig]:
    """Return preset and settings from what `run_as_json` made; ConfigError names the file at `path` and the wrong setting."""
    try:
        return as_type(str, found.get("preset"), "preset"), as_dataclass(RunConfig, found.get("config"))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} does not hold settings of this version ({error}): start a new run") from error


def require_unchanged(run: Path) -> None:
    """Raise ConfigError if config.json was changed after it was written; earlier versions wrote it without its SHA-256."""
    if wrong := wrong_checksum(read_json(run / CONFIG, dict), ("preset", "config")):
        raise ConfigError(f"{run / CONFIG} was changed after it was written: {wrong}; undo that, and give settings as flags")


def wrong_checksum(found: dict[str, Any], known: Collection[str]) -> str:
    """Remove from a JSON object the SHA-256 of the rest, and say what is wrong with it, if anything.

    Earlier versions wrote none. So without it every entry must be one of those that are `known`: the name of the missing one may
    be what was changed.
    """
    expected, actual = found.pop("sha256", None), digest(found, b"")
    if expected is None:
        unknown = sorted(found.keys() - set(known))
        return f"it has no SHA-256, but the unknown entries {unknown}" if unknown else ""
    return "" if expected == actual else f"its SHA-256 is {actual}, expected {expected}"


def read_result(run: Path) -> Result:
    """Return the result of a finished run.

    Raises:
        OtherVersion: an entry of result.json is missing.
        ConfigError: result.json is damaged.
    """
    found = read_json(run / RESULT, dict)
    if wrong := wrong_checksum(found, [field.name for field in fields(Result)]):
        raise ConfigError(f"{run / RESULT} was changed after it was written ({wrong}): leave this run out")
    try:
        return Result.from_json(found)
    except OtherVersion as error:
        raise OtherVersion(f"{run / RESULT} was written by another version ({error}): leave this run out") from error
    except ValueError as error:
        raise ConfigError(f"{run / RESULT} is damaged ({error}): leave this run out") from error
