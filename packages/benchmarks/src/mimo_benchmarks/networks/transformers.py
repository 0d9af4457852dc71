"""MIMOFormer, and the plain Performer and Transformer, which are its grids of 1 x 1."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor, nn

import mimoformer
from mimo_benchmarks.networks.network import Network
from mimoformer import MIMOFormerConfig
from mimoformer.hub import LIBRARY


class TokenNetwork(Network):
    """A network that reads sequences of tokens (b *axes l)."""

    takes = "tokens"
    layouts = (torch.contiguous_format,)

    def example(self, count: int, device: torch.device) -> Int[Tensor, "count *pair l"]:
        """Draw sequences of the greatest length, or pairs of them."""
        pair = (2,) if self.config.head == "pair" else ()
        return torch.randint(self.config.vocab_size, (count, *pair, self.config.max_length), device=device)

    def tokenize(self, texts: Sequence[Any]) -> tuple[Int[Tensor, "count *pair l"], Bool[Tensor, "count *pair l"]]:
        """Turn texts, or pairs of them, into tokens by the rule of the configuration, and say which are real.

        Raises:
            ValueError: the configuration has no rule, or it does not know a word.
        """
        return mimoformer.tokenize(self.config, texts)


class MIMOFormerNetwork(TokenNetwork):
    """A MIMOFormer of any grid."""

    settings = MIMOFormerConfig
    library = LIBRARY

    @property
    def largest_n(self) -> int:
        """The largest square that fits into the grid."""
        return int(min(self.config.m, self.config.n))

    def axes(self, n: int) -> tuple[int, int]:
        """Return (n, n), or (1, 1) for a plain network."""
        return (1, 1) if self.plain else (n, n)

    def build(self) -> nn.Module:
        """Make the network with fresh weights."""
        return mimoformer.MIMOFormer(self.config)

    def predict(
        self,
        module: Any,
        inputs: Integer[Tensor, "count *pair l"],
        n: int,
        mask: Bool[Tensor, "count *pair l"] | None = None,
    ) -> Float[Tensor, "count *out"]:
        """Return the logits of a flat batch of sequences in eval mode."""
        return mimoformer.predict(module, inputs, self.axes(n), mask)

    def count_macs(self, module: Any, n: int) -> float:
        """Count multiply-adds per sequence of the greatest length."""
        return mimoformer.count_macs(module, self.axes(n))
