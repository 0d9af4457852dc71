"""Say what each training step sees, as a function of (seed, step): its n, its items in superpositions, how they are varied."""

import numpy as np
import torch

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
        self.batches = Batches(len(task.train), sizes, config.seed, lengths=task.lengths(task.train))

    def inputs(self, step: int) -> int:
        """Return how many inputs all processes together have seen by the end of a step."""
        return int(self.batches.places[step])

    def batch(self, step: int, part: int = 0) -> Batch:
        """Return what this process sees in one part of a step, with the axes of the network's pass."""
        n, shares = self.n[step - 1], self.world * self.config.optim.accumulate
        key = torch.from_numpy(seed_sequence(self.config.seed, step, "augment").generate_state(2).astype(np.int64))
        share, axes = (part * self.world + self.rank, shares), (-1, *self.network.axes(n))
        batch = self.task.training_batch(self.batches.at(step), self.network.inputs(n), share, self.config.augment, key)
        inputs, mask, targets = (values if values is None else values.unflatten(0, axes) for values in batch)
        assert inputs is not None
        assert targets is not None
        return inputs, mask, targets
