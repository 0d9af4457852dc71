"""Checks of the state dicts that importers of published weights are given: names, shapes, types and numbers."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

__all__ = ["check_entry_names", "check_entry_values", "entry_shape", "published_entries"]


def published_entries(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Check that a state dict maps names to tensors; return it without the prefix of DataParallel, `module.`, if all have it.

    Raises:
        TypeError: it is not a mapping, a name is not a string, or an entry is not a dense tensor with all its numbers in memory.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict is a {type(state_dict).__name__}; expected a mapping of names to tensors")
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a tensor: is this a checkpoint around a state dict?")
        if not isinstance(name, str):
            raise TypeError(f"an entry is named {name!r}; expected a string")
        if value.layout != torch.strided or value.is_meta or value.untyped_storage().nbytes() < value.nbytes:
            # An expanded tensor can claim any size in a file of a few bytes.
            raise TypeError(
                f"{name} {tuple(value.shape)} is sparse, expanded or empty; expected a dense tensor with all its numbers"
            )
    prefix = "module." if all(name.startswith("module.") for name in state_dict) else ""
    return {name.removeprefix(prefix): value for name, value in state_dict.items()}


def entry_shape(entries: Mapping[str, Tensor], name: str, axes: str) -> tuple[int, ...]:
    """Return the shape of an entry; ValueError unless it has the named axes, none of them empty."""
    if name not in entries:
        raise ValueError(f"{name} is missing; expected a tensor ({axes})")
    shape = tuple(entries[name].shape)
    if len(shape) != len(axes.split()) or 0 in shape:
        raise ValueError(f"{name} has shape {shape}; expected ({axes}), none of them 0")
    return shape


def check_entry_names(entries: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless the entries are those expected."""
    missing = [f"{name} {shape}" for name, shape in shapes.items() if name not in entries]
    surplus = [f"{name} {tuple(value.shape)}" for name, value in entries.items() if name not in shapes]
    faults = [f"{kind}: {join_first(names)}" for kind, names in (("missing", missing), ("surplus", surplus)) if names]
    if faults:
        raise ValueError(f"expected the {len(shapes)} entries of a published network of these sizes; {'; '.join(faults)}")


def join_first(names: list[str], limit: int = 8) -> str:
    """Join the first names, and say how many more there are."""
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return ", ".join(names[:limit] + more)


def check_entry_values(
    entries: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], like: str, counts: Collection[str] = ()
) -> None:
    """Raise ValueError unless every entry has the shape expected and finite numbers, all but the counts of the dtype of one."""
    dtype = entries[like].dtype
    for name, value in entries.items():
        if value.shape != shapes[name]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shapes[name]}")
        if name not in counts and (value.dtype != dtype or not dtype.is_floating_point):
            raise ValueError(f"{name} is {value.dtype}; expected one floating-point type throughout, and {like} is {dtype}")
        if name in counts and (value.is_complex() or not 0 <= value.item() < 2**63 or value.item() % 1):
            raise ValueError(f"{name} is {value.item()}; expected a count, which is a whole number of at least 0")
        if name not in counts and not value.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values; expected finite ones")
