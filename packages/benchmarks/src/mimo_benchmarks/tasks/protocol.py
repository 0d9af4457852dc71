"""What the program asks of a task: one protocol, which a file of this folder answers for each kind of data."""

from collections.abc import Mapping
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
    """Items and what is asked about them, all on one device."""

    @property
    def targets(self) -> Int[Tensor, "count *asked"]:
        """The right answers; UNSCORED where nothing is asked."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Any:
        """The same on another device."""


Batch = tuple[Tensor, Tensor | None, Tensor]
"""Inputs (b *item), a mask (b *real) where tokens are real or none, and targets (b *asked): classes, or their shares."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A data set as networks see it. Each kind is a subclass, whose loaders have one line each in `registry.TASKS`."""

    takes: ClassVar[Inputs]
    """What its networks take."""

    name: str
    train: Any
    test: Any
    dev: Any = None
    """Items to choose weights by; None where the data set has no such split."""

    @property
    def most_frequent(self) -> dict[str, float]:
        """The share of the test set that is right when every answer is the most frequent class."""
        labels = self.test.targets
        return {"the most frequent class": torch.bincount(labels).max().item() / len(labels)}

    def guess_accuracies(self) -> Mapping[str, float]:
        """Return the share of the test set that each guess gets right which does not look at the question."""
        return self.most_frequent

    @property
    def saved(self) -> dict[str, Any]:
        """Fields of a network's configuration that its finished form takes from the task, for `predict` without the task."""
        return {}

    def to(self, device: torch.device) -> "Task":
        """Return the whole set on another device."""
        splits = {name: getattr(self, name) for name in ("train", "dev", "test")}
        return replace(self, **{name: split.to(device) for name, split in splits.items() if split is not None})

    def check(self, config: RunConfig, network: Network) -> None:
        """Raise ConfigError unless the network and the settings fit the task."""
        require(network.takes == self.takes, f"task {self.name} has {self.takes}, and the network takes {network.takes}")
        for name in self.saved:
            given = getattr(config.model, name, None)
            require(given is None, f"--model.{name.replace('_', '-')} is set by the task: leave it out")

    def require_model(self, config: RunConfig, **needed: object) -> None:
        """Raise ConfigError unless these fields of the network's configuration have these values."""
        for name, value in needed.items():
            given = getattr(config.model, name)
            require(given == value, f"task {self.name} needs --model.{name.replace('_', '-')} {value}, got {given}")

    def lengths(self, split: Any) -> Int[Tensor, " count"] | None:
        """Tokens of each item of a split, on the CPU, to batch items of like length; None where all are as long."""
        return None

    def items(self, split: Any, index: Int[Tensor, " b"]) -> tuple[Shaped[Tensor, "b *item"], Bool[Tensor, "b *real"] | None]:
        """Return items as a network sees them, and where their tokens are real.

        Args:
            split: one of the task's.
            index: which, on the CPU.
        """
        raise NotImplementedError

    def evaluation_batches(
        self, split: Any, inputs: int, passes: int | None, shuffle: torch.Generator | None
    ) -> list[Int[Tensor, " size"]]:
        """Return the index of all items once, in batches of whole passes but for the last; on the CPU.

        Args:
            split: one of the task's.
            inputs: how many share a pass.
            passes: passes per batch; as many as memory allows unless given.
            shuffle: take the items in a random order; in the split's own unless given.
        """
        order = torch.randperm(len(split), generator=shuffle) if shuffle else torch.arange(len(split))
        return list(order.split((passes or self.passes_at_once(split, inputs)) * inputs))

    def passes_at_once(self, split: Any, inputs: int) -> int:
        """How many passes of so many inputs are evaluated at a time, to bound memory."""
        return 2048

    def training_batch(
        self, index: Int[Tensor, " size"], inputs: int, share: tuple[int, int], augment: AugmentConfig, key: Int[Tensor, "2"]
    ) -> Batch:
        """Return the items that one process sees in a part of a step, in the order of their superpositions.

        Args:
            index: the items of the whole step, on the CPU.
            inputs: inputs per superposition.
            share: the number of this share of the step's superpositions, and how many shares there are.
            augment: how images are varied.
            key: what random draws depend on.
        """
        number, shares = share
        own = group(index, inputs)[number::shares].flatten()
        items, mask = self.items(self.train, own)
        targets = self.train.targets
        return items, mask, targets[own.to(targets.device, non_blocking=True)]

    def describe(self) -> str:
        """Say in a few lines what is in the task."""
        raise NotImplementedError

    @classmethod
    def random(cls, network: Network, count: int) -> "Task":
        """Return a task of random items of the shape that a network takes, to try it without data."""
        raise NotImplementedError


def class_counts(name: str, labels: Int[Tensor, " count"], classes: int) -> str:
    """Say how many items a split has, and how many the rarest and the most frequent class have."""
    counts = torch.bincount(labels, minlength=classes)
    return f"    {name}: {len(labels):,}, {int(counts.min()):,} to {int(counts.max()):,} of each class"
