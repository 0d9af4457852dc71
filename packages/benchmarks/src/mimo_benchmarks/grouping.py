"""What each training step sees, as a function of (seed, step): nothing here has a state, so a run can start at any step."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mimo_benchmarks.config import RunConfig
from mimo_benchmarks.data.augment import random_affine
from mimo_benchmarks.tasks import Task
from vsa_core.slots import group

STREAMS = ("n", "order", "augment")
"""One stream of random numbers for each choice, so that a change to one leaves the others alone."""


def generator(seed: int, step: int, stream: str) -> torch.Generator:
    """A CPU generator that depends on its three arguments and on nothing else."""
    state = np.random.SeedSequence((seed, step, STREAMS.index(stream))).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def inputs_per_pass(config: RunConfig, step: int) -> int:
    """The n of a training step."""
    odds = torch.tensor(config.n_odds, dtype=torch.float64)
    return config.n[int(torch.multinomial(odds, 1, generator=generator(config.seed, step, "n")))]


def batch(
    task: Task, config: RunConfig, step: int, n: int, device: torch.device
) -> tuple[Float[Tensor, "groups n c h w"], Int[Tensor, "groups n"]]:
    """Images of a step, augmented and grouped, with their labels: no image twice in a pass over the set.

    More images than the set holds are drawn as several passes, each in an order of its own.
    """
    count, size = len(task.train.labels), config.optim.groups * n
    order = generator(config.seed, step, "order")
    index = torch.cat([torch.randperm(count, generator=order) for _ in range(-(-size // count))])[:size].to(device)
    images = random_affine(task.pixels(task.train.images[index]), config.augment, generator(config.seed, step, "augment"))
    return group(images, n), group(task.train.labels[index], n)
