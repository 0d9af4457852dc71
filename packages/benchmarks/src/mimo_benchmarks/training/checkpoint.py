"""Checkpoints that are whole or absent, and verified byte by byte before anything in them is parsed.

The checkpoint of step 1234 is the folder step-00001234. It holds one safetensors file for each dict of tensors, state.json, and
manifest.json, which names the folder and gives size and SHA-256 of every other file. Only one process may write at a time.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor

from mimo_benchmarks.data.storage.files import make_folder, sync
from mimo_benchmarks.errors import CheckpointError, first_line
from mimo_benchmarks.memory import ran_out_of_memory

MANIFEST, STATE, TENSORS = "manifest.json", "state.json", ".safetensors"
UNFINISHED, REPLACED = ".saving", ".replaced-"
NOT_TENSORS = "not_tensors"
"""Entry of an optimizer's first group that holds the state that is not tensors."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint as `load_checkpoint` found it."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    """Tensors by the name of their file without its suffix, such as "model"."""
    state: dict[str, Any]
    skipped: list[str]
    """One line for each newer checkpoint that is not valid, saying why; the newest comes first."""


@contextmanager
def must_fit(path: Path) -> Iterator[None]:
    """Turn errors of restoring a checkpoint into a CheckpointError that says it belongs to another network or optimizer."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        if ran_out_of_memory(error):
            raise
        reason = f"it is of another network or optimizer than config.json's ({first_line(error)})"
        raise CheckpointError(f"{path} does not fit: {reason}; bring back the run's own files") from error


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write a checkpoint; once it is on disk, remove older ones.

    Args:
        folder: where checkpoints go; created if missing.
        step: number of the step; an earlier checkpoint of the same step is replaced.
        tensors: dense tensors on any device; those that share memory are loaded apart.
        state: dicts, lists, strings, finite numbers, booleans and None; tuples are loaded as lists.
        keep: how many checkpoints stay: this one and the newest before it. Later ones, which a run that went back has left,
            stay too.

    Returns:
        The folder of the checkpoint.

    Raises:
        CheckpointError: the disk refuses it, or JSON cannot hold the state. Earlier checkpoints still load.
        ValueError: `keep` is not positive.
    """
    if keep < 1:
        raise ValueError(f"keep must be positive, got {keep}")
    name = f"step-{step:08}"
    path, beside, replaced = folder / name, folder / UNFINISHED, folder / f"{REPLACED}{name}"
    files = {f"{part}{TENSORS}": tensors_as_bytes(values) for part, values in tensors.items()}
    files[STATE] = state_as_bytes(state, path)
    files[MANIFEST] = manifest_text(name, files)
    try:
        remove(beside)  # a save that was killed has left it
        make_folder(folder, exist_ok=True)
        beside.mkdir()
        for file, content in files.items():
            (beside / file).write_bytes(content)
            sync(beside / file)
        sync(beside)
        if os.path.lexists(path):
            remove(replaced)
            os.rename(path, replaced)  # `load_checkpoint` still finds it there if the process dies now
        os.rename(beside, path)
        sync(folder)
        older = [other for other in list_checkpoints(folder) if step_of(other) <= step and other != replaced]
        for old in (replaced, *older[keep:]):
            with suppress(OSError):  # the next save tries again what cannot be removed now
                remove(old)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"{path} cannot be written ({error}): make room in {folder} and check that it is a folder that may be written, "
            "then resume with --resume"
        ) from error
    return path


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """Load the newest valid checkpoint; return None if there are no checkpoints.

    Raises:
        CheckpointError: there are checkpoints, but none is valid; or the folder cannot be read.
    """
    skipped: list[str] = []
    try:
        paths = list_checkpoints(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error}): name a folder of checkpoints that may be read") from error
    for path in paths:
        try:
            files = read_verified(path)
            state = json.loads(files.pop(STATE))
            tensors = {file.removesuffix(TENSORS): safetensors.load(content) for file, content in files.items()}
        except Exception as error:  # damaged bytes can raise anything
            if ran_out_of_memory(error):  # the checkpoint may well be valid
                raise
            skipped.append(f"{path}: {type(error).__name__}: {error}")
            continue
        placed = {part: {name: value.to(device) for name, value in values.items()} for part, values in tensors.items()}
        return Checkpoint(path=path, step=step_of(path), tensors=placed, state=state, skipped=skipped)
    if skipped:
        reasons = "\n".join(skipped)
        raise CheckpointError(f"no checkpoint is valid: put a copy of one back, or start a new run\n{reasons}")
    return None


def newest_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return path and state of the newest checkpoint whose state.json is whole, without reading its tensors; None without one."""
    try:
        paths = list_checkpoints(folder)
    except OSError:  # which `load_checkpoint` says
        return None
    for path in paths:
        try:
            if not (path / STATE).is_file() or not (path / MANIFEST).is_file():
                continue  # opening a pipe would wait for ever
            content, listed = (path / STATE).read_bytes(), json.loads((path / MANIFEST).read_bytes())["files"]
            if hashlib.sha256(content).hexdigest() == listed[STATE]["sha256"]:
                return path, dict(json.loads(content))
        except Exception:  # damaged bytes can raise anything; `load_checkpoint` says what is wrong
            continue
    return None


def remove(path: Path) -> None:
    """Remove whatever is at a path, if anything is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def list_checkpoints(folder: Path) -> list[Path]:
    """List all checkpoints, valid or not, the newest first; one that was being replaced follows its replacement."""
    if not os.path.lexists(folder):  # a link to nowhere is an error, not a run without checkpoints
        return []
    paths = [path for path in folder.iterdir() if re.fullmatch(rf"({re.escape(REPLACED)})?step-[0-9]{{8,}}", path.name)]
    return sorted(paths, key=lambda path: (step_of(path), path.name), reverse=True)


def step_of(path: Path) -> int:
    """Return the step of a checkpoint, which its name tells."""
    return int(path.name.rpartition("-")[2])


def read_verified(path: Path) -> dict[str, bytes]:
    """Read every file of a checkpoint but the manifest, which must match them; anything wrong raises an exception."""
    if odd := sorted(entry.name for entry in path.iterdir() if not entry.is_file()):
        raise ValueError(f"{odd} are not files")  # opening a pipe would wait for ever
    text = (path / MANIFEST).read_bytes()
    listed = {file: entry["size"] for file, entry in json.loads(text)["files"].items()}
    sizes = {entry.name: entry.stat().st_size for entry in path.iterdir() if entry.name != MANIFEST}
    if wrong := sorted(file for file in listed.keys() | sizes.keys() if listed.get(file) != sizes.get(file)):
        raise ValueError(f"{wrong} are missing, unexpected, or not of the size in {MANIFEST}")
    files = {file: (path / file).read_bytes() for file in sizes}
    if text != manifest_text(path.name.removeprefix(REPLACED), files):
        raise ValueError(f"a file was changed, or {MANIFEST} is of another checkpoint: their SHA-256 differ")
    return files


def manifest_text(name: str, files: Mapping[str, bytes]) -> bytes:
    """Return what manifest.json must be, byte for byte, in a folder with this name and these files."""
    entries = {file: {"size": len(files[file]), "sha256": hashlib.sha256(files[file]).hexdigest()} for file in sorted(files)}
    return json.dumps({"checkpoint": name, "files": entries}, indent=1).encode()


def tensors_as_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors in safetensors' format, which knows neither shared memory nor strides."""
    return safetensors.save(
        {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    )


def state_as_bytes(state: Mapping[str, Any], path: Path) -> bytes:
    """Return the state as JSON; raise CheckpointError if it would be loaded as something else."""
    try:
        text = json.dumps(dict(state), allow_nan=False)
        if json.loads(text) != tuples_as_lists(dict(state)):
            raise ValueError("it would be loaded as something else")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be written, because JSON cannot hold the state ({error}): leave only dicts with strings as keys, "
            "lists, strings, finite numbers, booleans and None in it"
        ) from error
    return text.encode()


def tuples_as_lists(value: Any) -> Any:
    """Return a value with its tuples turned into lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: tuples_as_lists(item) for key, item in value.items()}
    return [tuples_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def flatten_optimizer(state_dict: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Split an optimizer's state dict into tensors, named like "3.exp_avg" by parameter and entry, and groups for JSON."""
    state = {f"{index}.{name}": value for index, values in state_dict["state"].items() for name, value in values.items()}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    groups = [dict(group) for group in state_dict["param_groups"]]
    if others := {name: value for name, value in state.items() if name not in tensors}:
        groups[0][NOT_TENSORS] = others
    return tensors, groups


def restore_optimizer(tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the state dict that `flatten_optimizer` split; JSON's lists, such as betas, become tuples again."""
    state: dict[int, dict[str, Any]] = {}
    for full_name, value in {**tensors, **groups[0].get(NOT_TENSORS, {})}.items():
        index, _, name = full_name.partition(".")
        state.setdefault(int(index), {})[name] = value
    restored = [
        {
            name: tuple(value) if isinstance(value, list) and name != "params" else value
            for name, value in group.items()
            if name != NOT_TENSORS
        }
        for group in groups
    ]
    return {"state": state, "param_groups": restored}
