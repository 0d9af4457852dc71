"""Checkpoints: folders that are whole or not there, and are checked byte by byte before anything in them is parsed.

One of step 1234 is step-00001234, with a safetensors file for each dict of tensors, state.json, and manifest.json, which holds
the folder's name and size and SHA-256 of every other file. There is one writer at a time.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor

from mimo_benchmarks.data.storage.files import sync
from mimo_benchmarks.errors import CheckpointError, first_line

MANIFEST, STATE, TENSORS = "manifest.json", "state.json", ".safetensors"
UNFINISHED, REPLACED = ".saving", ".replaced-"
OTHERS = "not_tensors"
"""Entry of an optimizer's first group for what its state holds besides tensors."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What `load` found."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    """By the file's name without its suffix, such as "model"."""
    state: dict[str, Any]
    skipped: list[str]
    """Why each newer checkpoint is not valid, a line for each, the newest first."""


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Inside, what is not the network's or optimizer's that it is given to is a CheckpointError of this checkpoint."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        reason = f"it is of another network or optimizer than config.json's ({first_line(error)})"
        raise CheckpointError(f"{path} does not fit: {reason}; bring back the run's own files") from error


def save(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Write a checkpoint, and when it is on disk remove older ones.

    Args:
        folder: made where there is none.
        step: a checkpoint of it that is there is replaced.
        tensors: dense, on any device; those that share memory come back apart.
        state: of dicts, lists, strings, finite numbers, booleans and None; tuples come back as lists.
        keep: how many stay, this one and those before it. Later ones, which a run that goes back has left, stay too.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written, or JSON cannot hold the state. Checkpoints that were there still load.
        ValueError: `keep` is not positive.
    """
    if keep < 1:
        raise ValueError(f"keep must be positive, got {keep}")
    name = f"step-{step:08}"
    path, beside, replaced = folder / name, folder / UNFINISHED, folder / f"{REPLACED}{name}"
    files = {f"{part}{TENSORS}": packed(values) for part, values in tensors.items()} | {STATE: as_json(state, path)}
    files[MANIFEST] = manifest(name, files)
    try:
        if beside.exists():
            shutil.rmtree(beside)  # of a save that was killed
        beside.mkdir(parents=True)
        for file, content in files.items():
            (beside / file).write_bytes(content)
            sync(beside / file)
        sync(beside)
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(path, replaced)  # where `load` finds it, should the process die now
        os.rename(beside, path)
        sync(folder)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in [other for other in found(folder) if number(other) <= step][keep:]:
            shutil.rmtree(old, ignore_errors=True)  # what cannot be removed is tried again by the next save
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise CheckpointError(
            f"{path} cannot be written ({error}): make room in {folder} and see that it is a folder that may be written, "
            "then go on with --resume"
        ) from error
    return path


def load(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """The newest valid checkpoint; None where there is none at all.

    Raises:
        CheckpointError: there are some, but none is valid; or the folder cannot be read.
    """
    skipped: list[str] = []
    try:
        paths = found(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error}): name a folder of checkpoints that may be read") from error
    for path in paths:
        try:
            files = verified(path)
            state = json.loads(files.pop(STATE))
            tensors = {file.removesuffix(TENSORS): safetensors.load(content) for file, content in files.items()}
        except Exception as error:  # whatever foreign bytes lead to
            skipped.append(f"{path}: {type(error).__name__}: {error}")
            continue
        placed = {part: {name: value.to(device) for name, value in values.items()} for part, values in tensors.items()}
        return Checkpoint(path=path, step=number(path), tensors=placed, state=state, skipped=skipped)
    if skipped:
        reasons = "\n".join(skipped)
        raise CheckpointError(f"no checkpoint is valid: put a copy of one back, or start the run anew\n{reasons}")
    return None


def found(folder: Path) -> list[Path]:
    """All checkpoints, valid or not, the newest first; one that was to be replaced follows its replacement."""
    if not folder.exists():
        return []
    paths = [path for path in folder.iterdir() if re.fullmatch(rf"({re.escape(REPLACED)})?step-[0-9]{{8,}}", path.name)]
    return sorted(paths, key=lambda path: (number(path), path.name), reverse=True)


def number(path: Path) -> int:
    """The step of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def verified(path: Path) -> dict[str, bytes]:
    """The content of every file but the manifest, which says the same of them; whatever is wrong is an exception."""
    if odd := sorted(entry.name for entry in path.iterdir() if not entry.is_file()):
        raise ValueError(f"{odd} are no files")  # opening a pipe would wait for ever
    text = (path / MANIFEST).read_bytes()
    listed = {file: entry["size"] for file, entry in json.loads(text)["files"].items()}
    sizes = {entry.name: entry.stat().st_size for entry in path.iterdir() if entry.name != MANIFEST}
    if wrong := sorted(file for file in listed.keys() | sizes.keys() if listed.get(file) != sizes.get(file)):
        raise ValueError(f"{wrong} are missing, too many, or not of the size that {MANIFEST} says")
    files = {file: (path / file).read_bytes() for file in sizes}
    if text != manifest(path.name.removeprefix(REPLACED), files):
        raise ValueError(f"a file was changed, or {MANIFEST} is of another checkpoint: their SHA-256 differ")
    return files


def manifest(name: str, files: Mapping[str, bytes]) -> bytes:
    """What manifest.json must be, byte for byte, in a folder of that name and content."""
    entries = {file: {"size": len(files[file]), "sha256": hashlib.sha256(files[file]).hexdigest()} for file in sorted(files)}
    return json.dumps({"checkpoint": name, "files": entries}, indent=1).encode()


def packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as safetensors, which has neither memory that is shared nor strides."""
    return safetensors.save(
        {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    )


def as_json(state: Mapping[str, Any], path: Path) -> bytes:
    """The state as JSON; CheckpointError where it would come back as something else."""
    try:
        text = json.dumps(dict(state), allow_nan=False)
        if json.loads(text) != without_tuples(dict(state)):
            raise ValueError("it would come back as something else")
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be written, as JSON cannot hold the state ({error}): leave only dicts with strings as keys, lists, "
            "strings, finite numbers, booleans and None in it"
        ) from error
    return text.encode()


def without_tuples(value: Any) -> Any:
    """A value of JSON with lists for tuples."""
    if isinstance(value, dict):
        return {key: without_tuples(item) for key, item in value.items()}
    return [without_tuples(item) for item in value] if isinstance(value, list | tuple) else value


def flatten_optimizer(state_dict: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state dict as tensors, named "3.exp_avg" by parameter and entry, and its groups, which JSON can hold."""
    state = {f"{index}.{name}": value for index, values in state_dict["state"].items() for name, value in values.items()}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    groups = [dict(group) for group in state_dict["param_groups"]]
    if others := {name: value for name, value in state.items() if name not in tensors}:
        groups[0][OTHERS] = others
    return tensors, groups


def restore_optimizer(tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The state dict of which `flatten_optimizer` made these; JSON's lists, such as betas, are tuples again."""
    state: dict[int, dict[str, Any]] = {}
    for full_name, value in {**tensors, **groups[0].get(OTHERS, {})}.items():
        index, _, name = full_name.partition(".")
        state.setdefault(int(index), {})[name] = value
    restored = [
        {
            name: tuple(value) if isinstance(value, list) and name != "params" else value
            for name, value in group.items()
            if name != OTHERS
        }
        for group in groups
    ]
    return {"state": state, "param_groups": restored}
