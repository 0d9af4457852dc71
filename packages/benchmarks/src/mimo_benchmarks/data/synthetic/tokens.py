"""Tasks on tokens: what a network reads, and what it is asked at each position."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNSCORED = -100
"""The target where nothing is asked: what torch's cross_entropy ignores unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class TokenSplit:
    """Sequences and their targets, position by position, as many scored in each: the mean over a batch is that of its parts."""

    inputs: Int[Tensor, "count l"]
    targets: Int[Tensor, "count l"]
    """The token to be predicted at each position, having read it and those before; UNSCORED where none is."""

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> "TokenSplit":
        """The same on another device."""
        return TokenSplit(inputs=self.inputs.to(device), targets=self.targets.to(device))


def next_token(train: Int[Tensor, "count length"], test: Int[Tensor, "tests length"]) -> tuple[TokenSplit, TokenSplit]:
    """Sequences split as H3 does: the target of a token is the next one, in test sequences of the last two tokens only."""
    targets = torch.full_like(test[:, 1:], UNSCORED)
    targets[:, -1] = test[:, -1]
    return TokenSplit(inputs=train[:, :-1], targets=train[:, 1:]), TokenSplit(inputs=test[:, :-1], targets=targets)


def different(count: int, draw: Callable[[int], Int[Tensor, "drawn length"]]) -> Int[Tensor, "count length"]:
    """The first `count` different rows of draw(count), draw(count), ..: whatever came before is replaced.

    It ends only if there are as many, which the caller is to check.
    """
    rows = distinct(draw(count))
    while len(rows) < count:
        rows = distinct(torch.cat([rows, draw(count)]))[:count]
    return rows


def distinct(rows: Int[Tensor, "count length"]) -> Int[Tensor, "fewer length"]:
    """The first of each, in order."""
    unequal, which = torch.unique(rows, dim=0, return_inverse=True)
    order = torch.arange(len(rows), device=rows.device)
    first = torch.full((len(unequal),), len(rows), device=rows.device).scatter_reduce(0, which, order, "amin")
    return rows[first.sort().values]


def right(votes: Float[Tensor, "count values"], answer: Int[Tensor, " count"]) -> float:
    """How often the value with the most votes is the answer, in expectation over ties."""
    most = votes == votes.amax(1, keepdim=True)
    return float((most.gather(1, answer[:, None])[:, 0] / most.sum(1)).mean())
