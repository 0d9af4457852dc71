"""Run directories as a report sees them: found, read and checked."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.run_directory import flat, read_json
from mimo_benchmarks.settings import FREE

Settings = Mapping[str, str]
Stages = dict[str, dict[str, float]]
Curve = tuple[list[float], list[float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network at one n; accuracies and shares from 0 to 1."""

    n: int
    inputs: int
    accuracy: float
    batch_accuracy: float | None
    """With the statistics of the test batch instead of those of training."""
    per_slot: tuple[float, ...]
    changed: float | None
    """Share of the answers that change with the others of the pass."""
    macs: float
    """Multiply-adds per input."""
    rate: float | None
    """Inputs a second."""
    paper: tuple[float, float | None] | None
    """The paper's accuracy and its standard deviation, in percent."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A network that was trained and evaluated."""

    path: Path
    root: Path
    """The directory of the experiment: the run's own, or the one around that of a control."""
    preset: str
    task: str
    control: str | None
    model: str
    superposed: bool
    seed: int
    device: str
    settings: Settings
    """All but the seed and FREE, by their names on the command line, and the number of processes; JSON."""
    experiment: Settings
    """The same of the root."""
    rows: tuple[Row, ...]
    guesses: Mapping[str, float]
    crosstalk: tuple[Stages, Stages] | None
    """Before and after training: n, place in the network, share of the variance."""
    facts: Mapping[str, str]
    """What else is known of it, for people to read."""


def find(folders: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """The finished runs in these folders and in all below them, and the directories of those that are not finished.

    Raises:
        ConfigError: there is none, or a file of one is damaged.
    """
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise ConfigError(f"{', '.join(missing)}: no such folder; name run directories, or a folder that holds some")
    found = {path.resolve(): path for folder in folders for path in sorted({p.parent for p in folder.rglob("*.json")})}
    runs = [read(path) for path in found.values() if (path / "result.json").exists()]
    runs = [adopted(run, runs) for run in runs]
    if not runs:
        named = ", ".join(map(str, folders)) or "nothing"
        raise ConfigError(f"no finished run in {named}: name run directories with a result.json, or a folder that holds some")
    begun = [path for path in found.values() if (path / "config.json").exists() and not (path / "result.json").exists()]
    return runs, begun


def adopted(run: Run, runs: Sequence[Run]) -> Run:
    """A control that was trained alone, as one of the only experiment whose settings but for the network are its own."""

    def apart(one: Run) -> tuple[str, str, Settings]:
        return one.task, one.preset, {name: value for name, value in one.settings.items() if not name.startswith("model.")}

    if run.control is None or run.root != run.path.resolve():
        return run
    own = apart(run)
    found = [one.experiment for one in runs if one.control is None and apart(one) == own]
    return replace(run, experiment=found[0]) if found and all(one == found[0] for one in found) else run


def read(path: Path) -> Run:
    """One run; ConfigError where its result.json or its config.json is damaged."""
    result = read_json(path / "result.json", dict)
    around = path.resolve().parent
    root = around if result.get("control") is not None and (around / "config.json").exists() else path.resolve()
    try:
        if not result["rows"]:
            raise ValueError("no rows")
        paper = {n: (number(mean), optional(std)) for n, (mean, std) in result["paper"].items()}
        crosstalk = result["crosstalk"] and (stages(result["crosstalk"]["before"]), stages(result["crosstalk"]["after"]))
        shares = {"processes": text(result.get("processes", 1))}
        return Run(
            path=path,
            root=root,
            preset=text(result["preset"]),
            task=text(result["task"]),
            control=None if result["control"] is None else text(result["control"]),
            model=text(result["model"]),
            superposed=bool(result["superposed"]),
            seed=int(number(result["seed"])),
            device=text(result["device"]),
            settings={**settings(path), **shares},
            experiment={**settings(root), **shares},
            rows=tuple(row(each, paper) for each in result["rows"]),
            guesses={text(name): number(share) for name, share in result["guesses"].items()},
            crosstalk=crosstalk or None,
            facts=facts(result),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{path / 'result.json'} is damaged, or of another version ({reason}): leave this run out") from error


def row(found: dict[str, Any], paper: Mapping[str, tuple[float, float | None]]) -> Row:
    """One of the rows of result.json."""
    n, macs = int(number(found["n"])), number(found["macs"])
    if macs <= 0:
        raise ValueError(f"macs = {macs}")
    return Row(
        n=n,
        inputs=int(number(found["inputs"])),
        accuracy=number(found["accuracy"]),
        batch_accuracy=optional(found["accuracy_batch_statistics"]),
        per_slot=tuple(number(share) for share in found["accuracy_per_slot"]),
        changed=optional(found["changed_by_regrouping"]),
        macs=macs,
        rate=optional(found["inputs_per_second"]) or None,
        paper=paper.get(str(n)),
    )


def facts(result: dict[str, Any]) -> dict[str, str]:
    """How a run went; what its file does not tell is left out."""
    units = {"wall_seconds": "{:,.0f} s", "train_seconds": "{:,.0f} s", "peak_memory_bytes": "{:,} bytes"}
    names = ("command", "git_revision", "device", "seed", "steps", "inputs_seen", "skipped_updates", *units)
    told = {name: units.get(name, "{:,}" if isinstance(result.get(name), int) else "{}") for name in names}
    found = {
        name.replace("_", " "): text(unit.format(result[name])) for name, unit in told.items() if result.get(name) is not None
    }
    slots = [f"n = {row['n']}: " + ", ".join(f"{share:.2%}" for share in row["accuracy_per_slot"]) for row in result["rows"]]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return found | {"accuracy per slot": text("; ".join(slots)), "versions": text(versions)}


def settings(path: Path) -> Settings:
    """What a run was asked to do, from its config.json, nested names joined with dots."""
    found = read_json(path / "config.json", dict).get("config")
    if not isinstance(found, dict):
        raise ConfigError(f"{path / 'config.json'} holds no settings: leave this run out")
    asked = flat({name: value for name, value in found.items() if name not in FREE | {"seed"}})
    return {text(name): text(json.dumps(value)) for name, value in asked.items()}


def curves(run: Run) -> tuple[list[Curve], list[Curve]]:
    """Steps and accuracies of metrics.jsonl, of the training inputs and of the dev split for each n, without lines cut off."""
    path = run.path / "metrics.jsonl"
    train: Curve = ([], [])
    dev: dict[str, Curve] = {}
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            found = json.loads(line)
            step = number(found["step"])
            shares = found.get("dev_accuracy") or {}
            for curve, share in [(train, found.get("accuracy")), *((dev.setdefault(n, ([], [])), s) for n, s in shares.items())]:
                if share is not None:
                    value = number(share)
                    curve[0].append(step)
                    curve[1].append(value)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
    return [train] if train[0] else [], [curve for curve in dev.values() if curve[0]]


def text(value: object) -> str:
    """On one line, without characters that steer a terminal or the direction of writing."""
    return "".join(c if c.isprintable() else " " for c in str(value)).strip()


def number(value: object) -> float:
    """A finite number; ValueError where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def optional(value: object) -> float | None:
    """A finite number, or None."""
    return None if value is None else number(value)


def stages(found: dict[str, dict[str, float]]) -> Stages:
    """Crosstalk as result.json has it."""
    return {text(n): {text(place): number(share) for place, share in places.items()} for n, places in found.items()}
