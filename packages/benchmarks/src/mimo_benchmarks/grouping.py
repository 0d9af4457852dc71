"""What each training step sees: its n, its items in groups, and how they are varied, as functions of (seed, step)."""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mimo_benchmarks.config import RunConfig, require
from mimo_benchmarks.data.augment import beta_quantiles, varied_batch
from mimo_benchmarks.data.sequences import Sequences
from mimo_benchmarks.kinds import ImageTask
from mimo_benchmarks.sampling import Batches, entropy
from vsa_core.slots import group


def inputs_per_step(config: RunConfig) -> list[int]:
    """The n of every training step: the i-th depends on the seed, the odds and i alone, since Philox is counter-based."""
    uniform = (np.random.Philox(entropy(config.seed, 0, "n")).random_raw(config.optim.steps) >> 11) * 2.0**-53
    odds = np.cumsum(config.n_odds)
    return [config.n[place] for place in np.searchsorted(odds / odds[-1], uniform, side="right")]


@cache
def compiled(device: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """`varied_batch` as one compiled function on a GPU; as it stands on a CPU, where it is fast enough."""
    return torch.compile(varied_batch) if device == "cuda" else varied_batch


def batch(
    task: ImageTask, config: RunConfig, batches: Batches, step: int, n: int, device: torch.device, rank: int = 0, world: int = 1
) -> tuple[Float[Tensor, "groups n c h w"], Float[Tensor, "groups n classes"]]:
    """Images of a step, varied and grouped, with their classes' shares: 1 for the label, less where another image is mixed in.

    Of `world` processes each takes every world-th group of a batch that does not depend on their number.
    """
    key = entropy(config.seed, step, "augment").generate_state(2).astype(np.int64)
    images, targets = compiled(device.type)(
        task.train.images,
        task.train.labels,
        batches.at(step).to(device, non_blocking=True),
        torch.from_numpy(key).to(device, non_blocking=True),
        beta_quantiles(config.augment.mixup, device),
        *task.normaliser(device),
        config=config.augment,
        n=n,
        classes=task.classes,
        rank=rank,
        world=world,
    )
    return group(images, n), group(targets, n)


def grid(items: Shaped[Tensor, "size *item"], m: int, n: int) -> Shaped[Tensor, "b m n *item"]:
    """A flat batch as grids of m x n, in order; the last grid is filled by repeating items from the front."""
    return group(items, m * n).unflatten(1, (m, n))


def sequence_batch(
    split: Sequences, index: Int[Tensor, " size"], m: int, n: int, *, length: int, rank: int = 0, world: int = 1
) -> tuple[Int[Tensor, "b m n *parts l"], Bool[Tensor, "b m n *parts l"], Int[Tensor, "b m n"]]:
    """Sequences of a step in grids of m x n: token ids padded to `length`, where they are real, and labels.

    Of `world` processes each takes every world-th grid of a batch that does not depend on their number.

    Args:
        split: on the device.
        index: the batch, such as `Batches.at` gives it, on the device.
        m: rows of a grid.
        n: columns of a grid.
        length: that of the longest sequence or more, lest it be cut, and at least 1. Lengths on the CPU tell it without waiting
            for a GPU.
        rank: number of this process.
        world: of all processes.

    Raises:
        ConfigError: there is no grid for this process.
    """
    own = grid(index, m, n)[rank::world]
    require(len(own) > 0, f"process {rank} of {world} has no grid of {m} x {n} in a batch of {len(index)}: make batches larger")
    tokens, mask = split.tokens(own.flatten(), length)
    return tokens.unflatten(0, own.shape), mask.unflatten(0, own.shape), split.labels[own]
