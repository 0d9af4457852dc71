"""Describe where a run takes place: machine, versions, git revision, command line."""

import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

OURS = ("vsa-core", "mimoconv", "mimoformer", "mimo-benchmarks")
OTHERS = ("torch", "torchvision", "numpy", "scikit-learn", "accelerate")


def environment(device: torch.device) -> dict[str, Any]:
    """Return machine, versions, git revision and command line for environment.json."""
    return {
        "command": command_line(),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "versions": {name: installed_version(name) for name in OURS + OTHERS},
    }


def device_name(device: torch.device) -> str:
    """Return what tells rates of one machine from those of another: a GPU's model, or a CPU's model and torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model() if device.type == 'cpu' else device} (threads = {torch.get_num_threads()})"


def cpu_model() -> str:
    """Return the name of the CPU's model, or of its architecture where the system does not tell the model."""
    try:
        found = re.search(r"^model name[ \t]*:[ \t]*(\S.*)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "cpu"


def command_line() -> str:
    """Return the command of this process as a shell takes it, the program mimonets by its name rather than its path."""
    program = ["mimonets"] if Path(sys.argv[0]).stem == "mimonets" else ["python", sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])


def installed_version(name: str) -> str:
    """Return the version of a distribution, or "not installed" if only its source is used."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def git_revision() -> str:
    """Return the commit of this checkout, followed by "+" if files have changed since; "unknown" outside one.

    A repository around an installed package is not its checkout. Changes of uv.lock do not count, because uv itself fills in
    addresses, nor do those of `results`, where runs leave theirs.
    """
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:  # bytes, because git can print names as they are
        found = subprocess.run([*git, "rev-parse", "HEAD", "--show-prefix"], check=True, capture_output=True).stdout
        status = [*git, "status", "--porcelain", "--", ":/", ":(top,exclude)uv.lock", ":(top,exclude)results"]
        changed = subprocess.run(status, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    revision, _, place = found.decode(errors="replace").strip().partition("\n")
    return revision + ("+" if changed else "") if place == "packages/benchmarks/src/mimo_benchmarks/" else "unknown"


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes in use so far: allocated on a GPU, or resident in this process; None if not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
