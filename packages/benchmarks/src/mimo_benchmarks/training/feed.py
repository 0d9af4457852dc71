"""What each training step sees: its n, its items in groups, and how they are varied, as functions of (seed, step)."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.vision.augment import beta_quantiles, varied_batch
from mimo_benchmarks.networks import registry as models
from mimo_benchmarks.settings import RunConfig, require
from mimo_benchmarks.tasks.kinds import ImageTask, Task
from mimo_benchmarks.training.sampling import Batches, entropy
from vsa_core.slots import group

Batch = tuple[Tensor, Tensor | None, Tensor]
"""Inputs (b *grid *item), a mask where tokens are real or none, and targets (b *grid *asked): classes, or their shares."""


def n_of_steps(config: RunConfig) -> list[int]:
    """The n of every training step: the curriculum's, then draws that depend on seed, odds and the step's number alone."""
    steps = config.optim.steps
    uniform = (np.random.Philox(entropy(config.seed, 0, "n")).random_raw(steps) >> 11) * 2.0**-53
    odds = np.cumsum(config.n_odds)
    drawn = [config.n[place] for place in np.searchsorted(odds / odds[-1], uniform, side="right")]
    first = config.curriculum_steps
    return [config.curriculum[step * len(config.curriculum) // first] for step in range(first)] + drawn[first:]


@cache
def compiled(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """`varied_batch` as one compiled function on a GPU; as it stands on a CPU, where it is fast enough."""
    return torch.compile(varied_batch) if device == "cuda" else varied_batch


def check_shares(config: RunConfig, world: int) -> None:
    """Raise ConfigError unless every process has as many groups in each part of a step."""
    groups, parts = config.optim.groups, config.optim.accumulate
    shared = f"{world} processes with optim.accumulate = {parts}"
    require(groups % (world * parts) == 0, f"optim.groups = {groups} cannot be shared by {shared}: change either")


class Feed:
    """The batches of a run, each by its step: every process and every part of an accumulated batch takes groups of its own.

    Args:
        task: on the device.
        config: of the run.
        device: where the batches are to be.

    Raises:
        ConfigError: the groups cannot be shared.
    """

    def __init__(self, task: Task, config: RunConfig, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.task, self.config, self.device, self.rank, self.world = task, config, device, rank, world
        check_shares(config, world)
        self.n = n_of_steps(config)
        filled = [max(config.n)] * config.curriculum_steps + self.n[config.curriculum_steps :]
        sizes = [config.optim.groups * models.inputs(config.model, n) for n in filled]
        train = task.train
        self.lengths = train.lengths.cpu() if isinstance(train, Sequences) else None
        self.batches = Batches(len(train), sizes, config.seed, lengths=self.lengths)

    def inputs(self, step: int) -> int:
        """How many inputs all processes have seen after a step."""
        return int(self.batches.places[step])

    def at(self, step: int, part: int = 0) -> Batch:
        """What this process sees in a part of a step."""
        index, n = self.batches.at(step), self.n[step - 1]
        rank, world = part * self.world + self.rank, self.world * self.config.optim.accumulate
        grid = models.grid(self.config.model, n)
        if isinstance(self.task, ImageTask):
            images, shares = self.images(index, step, n, rank, world)
            return images.unflatten(0, (-1, *grid)), None, shares.unflatten(0, (-1, *grid))
        own = group(index, models.inputs(self.config.model, n))[rank::world].flatten()
        place = own.to(self.device, non_blocking=True)
        train = self.task.train
        if isinstance(train, Sequences):
            assert self.lengths is not None
            tokens, mask = train.tokens(place, max(1, int(self.lengths[own].max())))
            return tokens.unflatten(0, (-1, *grid)), mask.unflatten(0, (-1, *grid)), train.labels[place].unflatten(0, (-1, *grid))
        return train.inputs[place].unflatten(0, (-1, *grid)), None, train.targets[place].unflatten(0, (-1, *grid))

    def images(self, index: Int[Tensor, " size"], step: int, n: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
        """Images, varied, and their classes' shares: 1 for the label, less where another image is mixed in."""
        assert isinstance(self.task, ImageTask)
        train = self.task.train
        key = entropy(self.config.seed, step, "augment").generate_state(2).astype(np.int64)
        return compiled(self.device.type)(
            train.images,
            train.labels,
            index.to(self.device, non_blocking=True),
            torch.from_numpy(key).to(self.device, non_blocking=True),
            beta_quantiles(self.config.augment.mixup, self.device),
            *self.task.normaliser(self.device),
            config=self.config.augment,
            n=models.inputs(self.config.model, n),
            classes=self.task.classes,
            rank=rank,
            world=world,
        )
