"""The run directory: what was asked for, where it ran, what came out."""

import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from math import isfinite
from pathlib import Path
from typing import Any, get_args

import torch

from mimo_benchmarks.errors import CheckpointError, ConfigError
from mimo_benchmarks.settings import AugmentConfig, ModelConfig, OptimConfig, RunConfig

OURS = ("vsa-core", "mimoconv", "mimoformer", "mimo-benchmarks")
OTHERS = ("torch", "torchvision", "numpy", "scikit-learn", "accelerate")


def new_directory(given: Path | None, preset: str) -> Path:
    """Make the run directory: the given one, else the first free runs/PRESET-001, -002, .. below the current folder.

    Raises:
        ConfigError: it exists already, or cannot be made.
    """
    for path in [given] if given else (Path("runs") / f"{preset}-{number:03}" for number in count(1)):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"the run directory cannot be made ({error}): choose another --out") from error
        return path
    raise ConfigError(f"{given} exists already, and a run never overwrites another: choose another --out")


class RunDirectory:
    """Where a run is written down: config.json and environment.json at once, metrics.jsonl as it grows, then result.json."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, preset: str, config: RunConfig, device: torch.device) -> None:
        """Write what was asked for, unless it stands there already, and where it runs, one entry for each start."""
        if not (self.path / "config.json").exists():
            self.write("config.json", {"preset": preset, "config": as_json(config)})
        self.write("environment.json", [*self.starts(), environment(device)])

    def starts(self) -> list[dict[str, Any]]:
        """The environments in which the run was started and resumed."""
        path = self.path / "environment.json"
        found: list[dict[str, Any]] = read_json(path, list) if path.exists() else []
        return found

    def write(self, name: str, content: Any) -> None:
        """One JSON file, whole or not at all."""
        self.put(name, json.dumps(content, indent=2, default=str) + "\n")

    def put(self, name: str, text: str) -> None:
        """One file, whole or not at all."""
        path = self.path / name
        try:
            self.path.mkdir(exist_ok=True)
            beside = path.with_name(f".{name}")
            beside.write_text(text)
            beside.replace(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written ({error}): make room, then go on with --resume") from error

    def log(self, **values: Any) -> None:
        """One line of metrics.jsonl; what is not finite is null."""
        line = {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in values.items()}
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise CheckpointError(f"metrics.jsonl cannot be written ({error}): make room, then go on with --resume") from error

    def rewind(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that come after a step, and any that was cut off."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue
        self.put("metrics.jsonl", "".join(kept))


def as_json(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON has them, the kind of network by the name of its configuration."""
    values = json.loads(json.dumps(asdict(config), default=str))
    values["model"] = {"kind": type(config.model).__name__, **values["model"]}
    return values


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their names on the command line, which are joined with dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def read_json(path: Path, kind: type) -> Any:
    """What a JSON file holds; ConfigError unless it is of that kind."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): is {path.parent} a run directory?") from error
    if not isinstance(found, kind):
        raise ConfigError(f"{path} holds no {kind.__name__}: it is damaged, or no file of a run")
    return found


def read_config(run: Path) -> tuple[str, RunConfig]:
    """The preset's name and the settings of a run directory.

    Raises:
        ConfigError: there are none, or none that this version knows.
    """
    found = read_json(run / "config.json", dict)
    try:
        values = dict(found["config"])
        model = dict(values.pop("model"))
        kind = {kind.__name__: kind for kind in get_args(ModelConfig)}[model.pop("kind")]
        nested: dict[str, Any] = {"model": kind(**tuples(model)), "optim": OptimConfig(**tuples(values.pop("optim")))}
        nested["augment"] = AugmentConfig(**tuples(values.pop("augment")))
        paths: dict[str, Any] = {name: Path(values.pop(name)) for name in PATHS if values.get(name) is not None}
        return str(found["preset"]), RunConfig(**tuples(values), **nested, **paths)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{run / 'config.json'} holds no settings of this version ({error})") from error


PATHS = ("data_dir", "out", "resume")


def tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions, git revision and command line."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "versions": {name: installed(name) for name in OURS + OTHERS},
    }


def installed(name: str) -> str:
    """The version of a distribution; "not installed" where its source is used in place."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def git_revision() -> str:
    """The commit of this source tree, "+" appended where it was changed since; "unknown" outside a checkout.

    Changes of uv.lock do not count: uv itself fills in addresses.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--", ":/", ":(top,exclude)uv.lock"]
        changed = subprocess.run(status, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+" if changed else "")
