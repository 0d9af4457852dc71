"""MIMOFormer, and the plain Performer and Transformer, which are MIMOFormers with a grid of 1 x 1."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

import mimoformer
from mimo_benchmarks.networks.network import Network
from mimoformer import MIMOFormerConfig
from mimoformer.hub import LIBRARY


class TokenNetwork(Network):
    """A network that reads sequences of tokens (b *axes l), or pairs of them (b *axes 2 l)."""

    takes = "tokens"

    @property
    def token_settings(self) -> MIMOFormerConfig:
        """Return a configuration with the head, the tokenizer and the vocabulary of the network."""
        return self.config

    @property
    def takes_texts(self) -> bool:
        """Return whether `tokenize` makes the inputs from texts: not where tokens are grey levels."""
        return self.config.tokenizer != "pixels"

    @property
    def takes_pairs(self) -> bool:
        """Return whether an input is a pair of texts."""
        return bool(self.config.head == "pair")

    @property
    def predicts_tokens(self) -> bool:
        """Return whether the network answers with the next token instead of a class."""
        return self.config.head in ("tokens", "last")

    def example(self, count: int, device: torch.device) -> Int[Tensor, "count *pair l"]:
        """Draw sequences of the greatest length, or pairs of them."""
        pair = (2,) if self.config.head == "pair" else ()
        return torch.randint(self.config.vocab_size, (count, *pair, self.config.max_length), device=device)

    def tokenize(self, texts: Sequence[Any]) -> tuple[Integer[Tensor, "count *pair l"], Bool[Tensor, "count *pair l"]]:
        """Turn whole texts, or pairs of them, into tokens as the configuration says, and say which tokens are real.

        Raises:
            ValueError: the configuration does not say how, or it does not know a word.
        """
        return mimoformer.tokenize(replace(self.token_settings, max_length=sys.maxsize), texts)

    def answer_name(self, place: int) -> str:
        """Return the name of the class, or of the token: its word or byte if it has one, else its id."""
        if not self.predicts_tokens:
            return super().answer_name(place)
        words = self.config.words or ()
        if 1 <= place <= len(words):
            return str(words[place - 1])
        if self.config.tokenizer == "bytes" and 1 <= place <= 256:
            return repr(bytes([place - 1]))[2:-1]
        return str(place)


class MIMOFormerNetwork(TokenNetwork):
    """A MIMOFormer of any grid."""

    settings = MIMOFormerConfig
    library = LIBRARY

    @property
    def largest_n(self) -> int:
        """Return the side of the largest square that fits into the grid."""
        return int(min(self.config.m, self.config.n))

    def axes(self, n: int) -> tuple[int, int]:
        """Return (n, n), or (1, 1) for a plain network."""
        return (1, 1) if self.plain else (n, n)

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
