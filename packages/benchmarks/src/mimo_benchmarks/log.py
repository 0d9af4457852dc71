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
from pathlib import Path
from typing import Any

import torch

from mimo_benchmarks.config import RunConfig
from mimo_benchmarks.errors import ConfigError

PACKAGES = ("vsa-core", "mimoconv", "mimo-benchmarks", "torch", "torchvision", "numpy", "scikit-learn", "accelerate")


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
    """Writes config.json and environment.json at once, metrics.jsonl as it grows, result.json in the end."""

    def __init__(self, path: Path, preset: str, config: RunConfig, device: torch.device) -> None:
        self.path = path
        self.environment = environment(device)
        self.write("config.json", {"preset": preset, **asdict(config)})
        self.write("environment.json", self.environment)

    def write(self, name: str, content: dict[str, Any]) -> None:
        """One JSON file."""
        (self.path / name).write_text(json.dumps(content, indent=2, default=str) + "\n")

    def log(self, **values: Any) -> None:
        """One line of metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")


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
        "versions": {name: installed(name) for name in PACKAGES},
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
