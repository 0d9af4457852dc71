"""Sequences of unequal length as one tensor, the whole set on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from mimo_benchmarks.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Byte strings laid end to end, with a label for every `parts` of them (2 where an item is a pair of documents)."""

    values: UInt8[Tensor, " total"]
    offsets: Int[Tensor, " bounds"]
    """Where each starts in `values`, and the end of the last."""
    labels: Int[Tensor, " count"]
    parts: int = 1
    shift: int = 1
    """Token ids are the values plus this; id 0 is padding. With 0, a value of 0 is padding too."""

    @classmethod
    def of(cls, strings: Sequence[bytes], labels: Sequence[int], *, parts: int = 1, shift: int = 1) -> "Sequences":
        """From `parts` strings for every label.

        Raises:
            DatasetError: all strings are empty, or there are others than `parts` for each label.
        """
        if not any(strings) or len(strings) != parts * len(labels):
            raise DatasetError(f"{len(strings)} texts, {sum(map(bool, strings))} of them not empty, for {len(labels)} labels")
        values = torch.from_numpy(np.frombuffer(b"".join(strings), np.uint8).copy())
        offsets = torch.from_numpy(np.cumsum([0, *map(len, strings)], dtype=np.int64))
        return cls(values=values, offsets=offsets, labels=torch.tensor(labels, dtype=torch.long), parts=parts, shift=shift)

    @classmethod
    def rows(cls, values: UInt8[Tensor, "count l"], labels: Int[Tensor, " count"], *, shift: int = 1) -> "Sequences":
        """From sequences of equal length."""
        count, length = values.shape
        return cls(values=values.flatten(), offsets=torch.arange(count + 1) * length, labels=labels, shift=shift)

    def part(self, start: int, stop: int) -> "Sequences":
        """Items from `start` to before `stop`."""
        offsets = self.offsets[start * self.parts : stop * self.parts + 1]
        values = self.values[int(offsets[0]) : int(offsets[-1])]
        return replace(self, values=values, offsets=offsets - offsets[0], labels=self.labels[start:stop])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def targets(self) -> Int[Tensor, " count"]:
        """The labels."""
        return self.labels

    @cached_property
    def part_lengths(self) -> Int[Tensor, "count parts"]:
        """Tokens of each part of each item, on the CPU."""
        return self.offsets.cpu().diff().unflatten(0, (-1, self.parts))

    @cached_property
    def lengths(self) -> Int[Tensor, " count"]:
        """Tokens of each item, of the longer one of a pair, on the CPU."""
        return self.part_lengths.amax(1)

    def tokens(self, index: Int[Tensor, " b"], length: int) -> tuple[Int[Tensor, "b *parts l"], Bool[Tensor, "b *parts l"]]:
        """Items as token ids, padded with 0 to `length` or cut there, and where they are real.

        The axis of the parts is there for pairs only.
        """
        start, end = (bounds.unflatten(0, (-1, self.parts))[index, :, None] for bounds in (self.offsets[:-1], self.offsets[1:]))
        position = start + torch.arange(length, device=index.device)
        mask = position < end
        ids = self.values[position.clamp(max=len(self.values) - 1)].long() + self.shift
        mask = mask & (ids != 0)
        ids = ids.masked_fill(~mask, 0)
        return (ids[:, 0], mask[:, 0]) if self.parts == 1 else (ids, mask)

    def to(self, device: torch.device) -> "Sequences":
        """The same on another device."""
        return replace(self, values=self.values.to(device), offsets=self.offsets.to(device), labels=self.labels.to(device))
