"""Describe token tasks, in which a network predicts some tokens of a sequence, and share code between them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNSCORED = -100
"""Target of positions that are not scored; torch's cross_entropy ignores it by default."""


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


def next_token_splits(train: Int[Tensor, "count length"], test: Int[Tensor, "tests length"]) -> tuple[TokenSplit, TokenSplit]:
    """Return training and test sequences as H3 has them: targets are the next tokens, in test sequences only the last one."""
    targets = torch.full_like(test[:, 1:], UNSCORED)
    targets[:, -1] = test[:, -1]
    return TokenSplit(inputs=train[:, :-1], targets=train[:, 1:]), TokenSplit(inputs=test[:, :-1], targets=targets)


def draw_different(count: int, draw: Callable[[int], Int[Tensor, "drawn length"]]) -> Int[Tensor, "count length"]:
    """Return the first `count` different rows of draw(count), draw(count), ..

    This ends only if there are that many different rows, which the caller must check.
    """
    rows = distinct_rows(draw(count))
    while len(rows) < count:
        rows = distinct_rows(torch.cat([rows, draw(count)]))[:count]
    return rows


def distinct_rows(rows: Int[Tensor, "count length"]) -> Int[Tensor, "fewer length"]:
    """Return the first occurrence of each row, in order."""
    unequal, which = torch.unique(rows, dim=0, return_inverse=True)
    order = torch.arange(len(rows), device=rows.device)
    first = torch.full((len(unequal),), len(rows), device=rows.device).scatter_reduce(0, which, order, "amin")
    return rows[first.sort().values]


def expected_accuracy(votes: Float[Tensor, "count values"], answer: Int[Tensor, " count"]) -> float:
    """Return how often the value with most votes is the answer, in expectation over ties."""
    most = votes == votes.amax(1, keepdim=True)
    return float((most.gather(1, answer[:, None])[:, 0] / most.sum(1)).mean())
