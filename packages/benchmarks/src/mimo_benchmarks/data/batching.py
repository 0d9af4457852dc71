"""Choose the items of each training step as a function of (seed, step), without state, so that a run can start at any step."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

STREAMS = ("n", "order", "augment", "window", "dropout")
"""Each random choice has a stream of its own, so that a change to one leaves the others alone."""
WINDOW = 64
"""Number of steps whose sequences are sorted by length together: enough for like lengths, few beside a pass over the set."""


def seed_sequence(seed: int, step: int, stream: str, *rest: int) -> np.random.SeedSequence:
    """Return the seed of a step's choice; `rest` is the number of the process where each process chooses for itself."""
    return np.random.SeedSequence((seed, step, STREAMS.index(stream), *rest))


def random_generator(seed: int, step: int, stream: str) -> torch.Generator:
    """Return a CPU generator that depends on nothing but these three arguments."""
    return torch.Generator().manual_seed(int(seed_sequence(seed, step, stream).generate_state(1, np.uint64)[0]))


@lru_cache(maxsize=4)
def pass_order(count: int, seed: int, epoch: int) -> Int[Tensor, " count"]:
    """Return the order of one pass over the set."""
    return torch.randperm(count, generator=random_generator(seed, epoch, "order"))


class Batches(Sampler[list[int]]):
    """Gives the items of every training step, numbered from 1; after the set's last item comes another pass over it.

    Sequences are sorted by length within windows of `WINDOW` steps and cut into batches, which are then shuffled: a batch, and
    each superposition in it, holds sequences of like length. Passes over the set are sorted separately, so an item shares a
    batch with itself only if the batch holds the end of one pass and the start of the next. Every item still comes once per
    pass.

    Iterates from step `start` on, as `batch_sampler` of a torch DataLoader; the number of workers and processes makes no
    difference.

    Args:
        count: number of items in the set.
        sizes: number of items in each step.
        seed: seed of the order.
        lengths: length of each item in tokens, on the CPU; None for images.
        start: step from which to iterate.
    """

    def __init__(
        self, count: int, sizes: Sequence[int], seed: int, *, lengths: Int[Tensor, " count"] | None = None, start: int = 1
    ) -> None:
        self.count, self.sizes, self.seed, self.lengths, self.start = count, sizes, seed, lengths, start
        self.places = np.cumsum([0, *sizes])
        self.sorted = lru_cache(maxsize=2)(self._sorted)

    def __len__(self) -> int:
        return len(self.sizes) - self.start + 1

    def __iter__(self) -> Iterator[list[int]]:
        return (self.at(step).tolist() for step in range(self.start, len(self.sizes) + 1))

    def at(self, step: int) -> Int[Tensor, " size"]:
        """Return the items of one step."""
        if self.lengths is None:
            return self._stream(int(self.places[step - 1]), int(self.places[step]))
        window, place = divmod(step - 1, WINDOW)
        return self.sorted(window)[place]

    def _stream(self, start: int, stop: int) -> Int[Tensor, " size"]:
        """Return the items at places `start` to `stop` of all passes over the set, one after the other."""
        first, last = start // self.count, (stop - 1) // self.count
        passes = [pass_order(self.count, self.seed, epoch) for epoch in range(first, last + 1)]
        whole = passes[0] if len(passes) == 1 else torch.cat(passes)
        return whole[start - first * self.count : stop - first * self.count]

    def _sorted(self, window: int) -> list[Int[Tensor, " size"]]:
        """Return the batches of a window of steps."""
        assert self.lengths is not None
        first, last = window * WINDOW, min((window + 1) * WINDOW, len(self.sizes))
        start, stop = int(self.places[first]), int(self.places[last])
        items, passes = self._stream(start, stop), torch.arange(start, stop) // self.count
        order_of_length = self.lengths[items].argsort(stable=True)
        items = items[order_of_length[passes[order_of_length].argsort(stable=True)]]  # by length within each pass
        order = torch.randperm(last - first, generator=random_generator(self.seed, window, "window")).tolist()
        cut = items.split([self.sizes[first + step] for step in order])
        return [cut[place] for place in np.argsort(order)]


def by_length(lengths: Int[Tensor, " count"], size: int) -> list[Int[Tensor, " size"]]:
    """Return all items once, in batches of like length, for evaluation; the last batch may be smaller."""
    return list(lengths.argsort(stable=True).split(size))


def padding(lengths: Int[Tensor, "count parts"], batches: Sequence[Int[Tensor, " size"]]) -> float:
    """Return the share of padding among the tokens of these batches, each padded to its longest sequence (or part of a pair)."""
    chosen = [lengths[batch] for batch in batches]
    return 1 - sum(int(part.sum()) for part in chosen) / sum(part.numel() * int(part.max()) for part in chosen)
