"""Slots, the superposition channels: which input sits in which slot, and flat batches as groups of n and back."""

from collections.abc import Iterator

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from vsa_core import checks

__all__ = ["assignment", "check", "group", "group_in_parts", "ungroup"]


def assignment(n: int, capacity: int, *, device: torch.device | str | None = None) -> Int[Tensor, " capacity"]:
    """Assign inputs to slots when n inputs share a pass: 0, 1, .., n-1, 0, 1, .., so their numbers of slots differ by 1 at most.

    Raises:
        ValueError: `n` is not from 1 to `capacity`.
        TypeError: `n` or `capacity` is not a whole number.

    >>> assignment(2, 4)
    tensor([0, 1, 0, 1])
    >>> assignment(3, 4)
    tensor([0, 1, 2, 0])
    """
    check(n, capacity)
    return torch.arange(capacity, device=device) % n


def check(n: int, capacity: int) -> None:
    """Raise unless n inputs fit into the slots, as `assignment` does."""
    checks.whole_numbers(n=n, capacity=capacity)
    if not 1 <= n <= capacity:
        raise ValueError(f"{n} superposed inputs, but there are {capacity} slots: n must be from 1 to {capacity}")


def group(items: Shaped[Tensor, "count *item"], n: int) -> Shaped[Tensor, "b n *item"]:
    """Split a flat batch into ceil(count / n) groups of n, in order; the last is filled by repeating items from the front.

    `ungroup` undoes it. An empty batch gives no groups.

    Raises:
        ValueError: `n` is below 1, or `items` has no batch axis.
        TypeError: `n` is not a whole number, or `items` is not a tensor.

    >>> import torch
    >>> group(torch.arange(5), 2)
    tensor([[0, 1],
            [2, 3],
            [4, 0]])
    """
    checks.positive(n=n)
    if not isinstance(items, Tensor):
        raise TypeError(f"items is a {type(items).__name__}; it must be a tensor")
    if items.dim() < 1:
        raise ValueError("items is a scalar; it needs a batch axis (count, ...)")
    return next(group_in_parts(items, n, max(1, items.shape[0])))


def group_in_parts(items: Shaped[Tensor, "count *item"], n: int, groups_at_once: int) -> Iterator[Shaped[Tensor, "b n *item"]]:
    """Yield the groups of `group`, so many at a time; only the last part takes memory, and only if its last group is filled."""
    count = items.shape[0]
    filled, size = -(-count // n) * n, groups_at_once * n
    for start in range(0, max(1, filled), size):
        end = min(start + size, filled)
        if end > count:
            part = items[torch.arange(start, end, device=items.device) % count]
        else:
            part = items if end - start == count else items[start:end]
        yield part.reshape((end - start) // n, n, *items.shape[1:])


def ungroup(groups: Shaped[Tensor, "b n *item"], count: int) -> Shaped[Tensor, "count *item"]:
    """Return the first `count` items of the groups as a flat batch, which undoes `group`.

    Raises:
        ValueError: `groups` has fewer than two axes or fewer than `count` items, or `count` is negative.
        TypeError: `count` is not a whole number, or `groups` is not a tensor.

    >>> import torch
    >>> ungroup(group(torch.arange(5), 2), 5)
    tensor([0, 1, 2, 3, 4])
    """
    if not isinstance(groups, Tensor):
        raise TypeError(f"groups is a {type(groups).__name__}; it must be a tensor")
    if groups.dim() < 2:
        raise ValueError(f"groups has shape {tuple(groups.shape)}; it needs axes (b, n, ...)")
    checks.whole_numbers(count=count)
    held = groups.shape[0] * groups.shape[1]
    if not 0 <= count <= held:
        raise ValueError(
            f"cannot take {count} items from {groups.shape[0]} groups of {groups.shape[1]}: count must be from 0 to {held}"
        )
    return groups.flatten(0, 1)[:count]
