"""The protocol by which the program knows tasks; a file of this folder implements it for each kind of data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mimo_benchmarks.networks.network import Inputs, Network
from mimo_benchmarks.settings import AugmentConfig, RunConfig, require
from vsa_core.slots import group


@runtime_checkable
class DataSplit(Protocol):
    """Items with their targets, on one device."""

    @property
    def targets(self) -> Int[Tensor, "count *asked"]:
        """Return the right answers; UNSCORED where there is no question."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Any:
        """Return the split on another device."""


Batch = tuple[Tensor, Tensor | None, Tensor]
"""Inputs (b *item), a mask (b *real) where tokens are real or none, and targets (b *asked): classes, or their shares."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set as networks see it.

    A kind of task is a subclass, which must give `takes`, the splits, `items`, `check`, `describe` and `random`; a task is a
    function that loads one, with one line in `registry.TASKS`.
    """

    takes: ClassVar[Inputs]
    """What its networks must take."""

    name: str
    train: Any
    """Items to train on, a `DataSplit`."""
    test: Any
    """Items to test on."""
    dev: Any = None
    """Items to choose weights by; None if the data set has no such split."""

    @property
    def most_frequent(self) -> dict[str, float]:
        """Return the accuracy of always answering the most frequent class."""
        labels = self.test.targets
        return {"the most frequent class": torch.bincount(labels).max().item() / len(labels)}

    @property
    def guesses(self) -> Mapping[str, float]:
        """Return the accuracy of guesses that ignore the input, by the name of the guess."""
        return self.most_frequent

    @property
    def saved(self) -> dict[str, Any]:
        """Return fields of a network's configuration that are set when it is saved, so that `predict` does not need the task."""
        return {}

    def to(self, device: torch.device) -> "Task":
        """Return the whole set on another device."""
        splits = {name: getattr(self, name) for name in ("train", "dev", "test")}
        return replace(self, **{name: split.to(device) for name, split in splits.items() if split is not None})

    def check(self, config: RunConfig, network: Network) -> None:
        """Raise ConfigError unless network and settings fit the task."""
        require(network.takes == self.takes, f"task {self.name} has {self.takes}, and the network takes {network.takes}")
        self.require_fields(config, self.saved)
        for name in self.saved:
            require(getattr(config.model, name) is None, f"--model.{name.replace('_', '-')} is set by the task: leave it out")

    def require_model(self, config: RunConfig, **needed: object) -> None:
        """Raise ConfigError unless the network's configuration has these values."""
        self.require_fields(config, needed)
        for name, value in needed.items():
            given = getattr(config.model, name)
            require(given == value, f"task {self.name} needs --model.{name.replace('_', '-')} {value}, got {given}")

    def require_fields(self, config: RunConfig, names: Iterable[str]) -> None:
        """Raise ConfigError unless the network's configuration has fields of these names."""
        missing = [name for name in names if not hasattr(config.model, name)]
        kind = type(config.model).__name__
        require(not missing, f"{kind} has no {', '.join(missing)}, and task {self.name} needs fields of these names: add them")

    def lengths(self, split: Any) -> Int[Tensor, " count"] | None:
        """Return the tokens of each item of a split, on the CPU, for batches of similar length; None if all are as long."""
        return None

    def items(
        self, split: Any, index: Int[Tensor, " b"], length: int | None = None
    ) -> tuple[Shaped[Tensor, "b *item"], Bool[Tensor, "b *real"] | None]:
        """Return items as a network takes them, and a mask of real tokens if there is padding.

        Args:
            split: a split of the task.
            index: indices of the items: on the CPU, or on the device in a training that CUDA graphs record.
            length: tokens to pad to, for items that have `lengths`; the longest item's unless given.
        """
        raise NotImplementedError

    def evaluation_batches(
        self, split: Any, inputs: int, passes: int | None, shuffle: torch.Generator | None
    ) -> list[Int[Tensor, " size"]]:
        """Return the indices of all items, on the CPU, in batches of whole passes; the last batch may end in a part of one.

        Args:
            split: a split of the task.
            inputs: inputs per pass.
            passes: passes per batch; as many as memory allows unless given.
            shuffle: draws a random order of the items; they keep their order unless given.
        """
        order = torch.randperm(len(split), generator=shuffle) if shuffle else torch.arange(len(split))
        return list(order.split((passes or self.passes_at_once(split, inputs)) * inputs))

    def passes_at_once(self, split: Any, inputs: int) -> int:
        """Return how many passes, each with this number of inputs, are evaluated at a time, which bounds memory."""
        return 2048

    def training_batch(
        self,
        index: Int[Tensor, " size"],
        inputs: int,
        share: tuple[int, int],
        augment: AugmentConfig,
        key: Int[Tensor, "2"],
        length: int | None = None,
    ) -> Batch:
        """Return the items that one process trains on in a part of a step, superposition by superposition.

        Nothing here may wait for the device or depend on the values of tensors, because it is recorded as part of a CUDA graph.

        Args:
            index: indices of the items of the whole step.
            inputs: inputs per superposition.
            share: which share of the step's superpositions to return, and the number of shares.
            augment: how images are varied.
            key: seed of random draws.
            length: tokens to pad to, for items that have `lengths`.
        """
        number, shares = share
        own = group(index, inputs)[number::shares].flatten()
        items, mask = self.items(self.train, own) if length is None else self.items(self.train, own, length)
        targets = self.train.targets
        return items, mask, targets[own.to(targets.device, non_blocking=True)]

    def describe(self) -> str:
        """Describe in a few lines what is in the task."""
        raise NotImplementedError

    @classmethod
    def random(cls, network: Network, count: int) -> "Task":
        """Return a task of random items of the shape that a network takes, to time the network without data."""
        raise NotImplementedError


def class_counts(name: str, labels: Int[Tensor, " count"], classes: int) -> str:
    """Describe how many items a split has, and how many the rarest and the most frequent class have."""
    counts = torch.bincount(labels, minlength=classes)
    return f"    {name}: {len(labels):,}, {int(counts.min()):,} to {int(counts.max()):,} of each class"
