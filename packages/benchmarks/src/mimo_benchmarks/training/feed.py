"""Say what each training step sees, as a function of (seed, step): its n, its items in superpositions, how they are varied."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from mimo_benchmarks.data.batching import Batches, seed_sequence
from mimo_benchmarks.networks.registry import describe
from mimo_benchmarks.settings import RunConfig, require
from mimo_benchmarks.tasks.protocol import Batch, Task


def n_of_steps(config: RunConfig) -> list[int]:
    """Return the n of every training step: first the curriculum's, then draws that depend only on seed, odds and step."""
    steps = config.optim.steps
    uniform = (np.random.Philox(seed_sequence(config.seed, 0, "n")).random_raw(steps) >> 11) * 2.0**-53
    odds = np.cumsum(config.n_odds)
    drawn = [config.n[place] for place in np.searchsorted(odds / odds[-1], uniform, side="right")]
    first = config.curriculum_steps
    return [config.curriculum[step * len(config.curriculum) // first] for step in range(first)] + drawn[first:]


def require_equal_shares(config: RunConfig, world: int) -> None:
    """Raise ConfigError unless all processes get equally many superpositions in each part of a step."""
    groups, parts = config.optim.groups, config.optim.accumulate
    shared = f"{world} processes with optim.accumulate = {parts}"
    require(groups % (world * parts) == 0, f"optim.groups = {groups} cannot be shared equally by {shared}: change one of them")


class Drawn(NamedTuple):
    """What chance decides of a step, drawn on the CPU; its first two values say the shapes of its tensors, with `len(items)`."""

    n: int
    length: int | None
    """Tokens that all sequences of the step are padded to; None where all are as long."""
    items: Int[Tensor, " size"]
    """Indices of the items of the step, over all processes and parts."""
    key: Int[Tensor, "2"]
    """Seed of the augmentation."""


class Feed:
    """Gives the batch of any step of a run; every process and every part of an accumulated batch takes its own share.

    Args:
        task: the task, already on the device.
        config: settings of the run.
        rank: number of this process, from 0.
        world: number of processes.

    Raises:
        ConfigError: the superpositions of a step cannot be shared equally.
    """

    def __init__(self, task: Task, config: RunConfig, rank: int = 0, world: int = 1) -> None:
        require_equal_shares(config, world)
        self.task, self.config, self.rank, self.world = task, config, rank, world
        self.network, self.n = describe(config.model), n_of_steps(config)
        filled = [max(config.n)] * config.curriculum_steps + self.n[config.curriculum_steps :]
        sizes = [config.optim.groups * self.network.inputs(n) for n in filled]
        lengths = task.lengths(task.train)
        self.longest = 0 if lengths is None else max(1, int(lengths.max()))
        self.batches = Batches(len(task.train), sizes, config.seed, lengths=lengths)

    @property
    def epoch(self) -> int:
        """Return the steps of an epoch, which is as published: as many passes over the set as a superposition has inputs."""
        shared = self.network.inputs(max(self.config.n))
        return shared * max(1, len(self.task.train) // (self.config.optim.groups * shared))

    def inputs(self, step: int) -> int:
        """Return how many inputs all processes together have seen by the end of a step."""
        return int(self.batches.places[step])

    def draw(self, step: int, *, few_lengths: bool = False) -> Drawn:
        """Draw what chance decides of a step; `few_lengths` rounds the length up to one of eight per octave."""
        items, lengths = self.batches.at(step), self.batches.lengths
        key = torch.from_numpy(seed_sequence(self.config.seed, step, "augment").generate_state(2).astype(np.int64))
        length = None if lengths is None else max(1, int(lengths[items].max()))
        if few_lengths and length is not None:
            length = min(rounded_up(length), self.longest)
        return Drawn(self.n[step - 1], length, items, key)

    def batch(self, drawn: Drawn, part: int = 0) -> Batch:
        """Return what this process sees in one part of a step, with the axes of the network's pass."""
        n, shares = drawn.n, self.world * self.config.optim.accumulate
        share, axes = (part * self.world + self.rank, shares), (-1, *self.network.axes(n))
        inputs, augment = self.network.inputs(n), self.config.augment
        length = {} if drawn.length is None else {"length": drawn.length}
        batch = self.task.training_batch(drawn.items, inputs, share, augment, drawn.key, **length)
        x, mask, targets = (values if values is None else values.unflatten(0, axes) for values in batch)
        assert x is not None
        assert targets is not None
        return x, mask, targets


def rounded_up(length: int) -> int:
    """Round a length up to one with four binary digits at most, which adds an eighth at most."""
    step = 2 ** max(0, length.bit_length() - 4)
    return -(-length // step) * step
