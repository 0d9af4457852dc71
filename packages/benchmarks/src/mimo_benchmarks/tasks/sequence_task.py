"""Tasks of classifying sequences of unequal length, or pairs of them."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mimo_benchmarks.data.batching import Batches, by_length, padding
from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.networks.network import Inputs, Network
from mimo_benchmarks.settings import RunConfig
from mimo_benchmarks.tasks.image_task import numbered
from mimo_benchmarks.tasks.protocol import Task, class_counts
from mimo_benchmarks.tasks.token_task import check_token_network
from mimoformer.config import Tokenizer

TOKENS_AT_ONCE = 2**19
"""Tokens that are evaluated at a time, which bounds memory."""
DESCRIBED_BATCH = 32
"""Sequences in the batches whose padding `describe` reports."""


@dataclass(frozen=True, kw_only=True)
class SequenceTask(Task):
    """Sequences to classify, or pairs of them."""

    takes: ClassVar[Inputs] = "tokens"
    train: Sequences
    dev: Sequences
    test: Sequences
    class_names: tuple[str, ...]
    vocab_size: int
    """Token ids are below this; id 0 is padding."""
    max_length: int
    """Most tokens of a sequence."""
    tokenizer: Tokenizer | None = None
    """Tokenizer of `mimoformer.tokenize` that gives these tokens; None if there is none."""
    words: tuple[str, ...] | None = None
    """Vocabulary of the tokenizer words."""
    padding_stays: bool = False
    """Whether padding stands among the tokens and has to keep its place, as black pixels have that are padding."""

    @property
    def saved(self) -> dict[str, Any]:
        """Return class names, tokenizer and vocabulary."""
        return {"class_names": self.class_names, "tokenizer": self.tokenizer, "words": self.words}

    def lengths(self, split: Sequences) -> Int[Tensor, " count"]:
        """Return the tokens of each item, or of the longer one of a pair, on the CPU."""
        return split.lengths

    def items(
        self, split: Sequences, index: Int[Tensor, " b"], length: int | None = None
    ) -> tuple[Int[Tensor, "b *pair l"], Bool[Tensor, "b *pair l"]]:
        """Return tokens, padded to a length or to the longest of these items, and a mask of real tokens."""
        length = max(1, int(split.lengths[index].max())) if length is None else length
        return split.tokens(index.to(split.values.device, non_blocking=True), length)

    def evaluation_batches(
        self, split: Sequences, inputs: int, passes: int | None, shuffle: torch.Generator | None
    ) -> list[Int[Tensor, " size"]]:
        """Return the indices of all items, in batches of similar length; `shuffle` mixes the items of each batch."""
        size = inputs * (passes or max(1, TOKENS_AT_ONCE // max(1, int(split.lengths.max())) // inputs))
        batches = by_length(split.lengths, size)
        return [batch[torch.randperm(len(batch), generator=shuffle)] for batch in batches] if shuffle else batches

    def check(self, config: RunConfig, network: Network) -> None:
        """Raise ConfigError unless the network and the settings fit these sequences."""
        super().check(config, network)
        check_token_network(self, config, vocab_size=self.vocab_size, max_length=self.max_length)
        head = "pair" if self.train.parts == 2 else "classes"
        self.require_model(config, num_classes=len(self.class_names), head=head)
        if self.padding_stays:
            self.require_model(config, pool="all")

    def describe(self) -> str:
        """Describe how long the sequences are, and how many each class has."""
        splits = {"train": self.train, "dev": self.dev, "test": self.test}
        lines = [
            f"{class_counts(name, split.labels, len(self.class_names))}; {length_statistics(split)}"
            for name, split in splits.items()
        ]
        return "\n".join([f"sequences of up to {self.max_length} tokens, ids below {self.vocab_size}", *lines])

    @classmethod
    def random(cls, network: Network, count: int) -> "SequenceTask":
        """Return random sequences of the network's greatest length, or pairs of them."""
        model, generator = network.config, torch.Generator().manual_seed(0)
        parts = 2 if model.head == "pair" else 1
        shape = (count, parts * model.max_length)
        values = torch.randint(min(model.vocab_size, 256) - 1, shape, generator=generator).to(torch.uint8)
        offsets = torch.arange(count * parts + 1) * model.max_length
        labels = torch.randint(model.num_classes, (count,), generator=generator)
        split = Sequences(values=values.flatten(), offsets=offsets, labels=labels, parts=parts)
        sizes: dict[str, Any] = {"vocab_size": model.vocab_size, "max_length": model.max_length}
        return cls(name="random", train=split, dev=split, test=split, class_names=numbered(model.num_classes), **sizes)


def length_statistics(split: Sequences) -> str:
    """Describe how long sequences are, and how much padding they need in batches of training and in random ones."""
    lengths = split.lengths
    sizes = [DESCRIBED_BATCH] * max(len(lengths) // DESCRIBED_BATCH, 1)
    like, chance = (Batches(len(lengths), sizes, 0, lengths=sort) for sort in (lengths, None))
    like_share, chance_share = (
        padding(split.part_lengths, [batches.at(step + 1) for step in range(len(sizes))]) for batches in (like, chance)
    )
    return (
        f"{lengths.double().mean():.0f} tokens on average; {like_share:.1%} padding in batches of {DESCRIBED_BATCH} "
        f"of similar length, {chance_share:.1%} at random"
    )
