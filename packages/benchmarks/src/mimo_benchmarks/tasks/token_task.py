"""Tasks of predicting tokens of sequences from the tokens before them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from mimo_benchmarks.data.synthetic.token_splits import TokenSplit
from mimo_benchmarks.networks.network import Inputs, Network
from mimo_benchmarks.settings import RunConfig, require
from mimo_benchmarks.tasks.protocol import Task

LOGITS_AT_ONCE = 2**27
"""Logits that are computed at a time, which bounds memory."""


@dataclass(frozen=True, kw_only=True)
class TokenTask(Task):
    """Sequences in which some tokens are to be predicted from the tokens before them."""

    takes: ClassVar[Inputs] = "tokens"
    train: TokenSplit
    test: TokenSplit
    vocab_size: int
    """Token ids are below this."""
    blind_guesses: Mapping[str, float] = field(default_factory=dict)
    """Accuracy of guesses that ignore the question, by the name of the guess."""

    @property
    def guesses(self) -> Mapping[str, float]:
        """Return the accuracy of guesses that ignore the question, by the name of the guess."""
        return self.blind_guesses

    @property
    def saved(self) -> dict[str, Any]:
        """Return the tokenizer of the finished network: texts hold token ids as numbers."""
        return {"tokenizer": "ids"}

    def items(self, split: TokenSplit, index: Int[Tensor, " b"], length: int | None = None) -> tuple[Int[Tensor, "b l"], None]:
        """Return token ids, all of one length."""
        return split.inputs[index.to(split.inputs.device, non_blocking=True)], None

    def passes_at_once(self, split: TokenSplit, inputs: int) -> int:
        """Return how many passes are evaluated at a time; a larger vocabulary means fewer, with a logit per token and id."""
        return max(1, LOGITS_AT_ONCE // (split.inputs.shape[1] * self.vocab_size * inputs))

    def check(self, config: RunConfig, network: Network) -> None:
        """Raise ConfigError unless the network and the settings fit these sequences."""
        super().check(config, network)
        check_token_network(self, config, vocab_size=self.vocab_size, max_length=self.train.inputs.shape[1])
        self.require_model(config, head="tokens")

    def describe(self) -> str:
        """Say how many sequences there are, and what guesses get right."""
        counts = f"{len(self.train):,} + {len(self.test):,} sequences of {self.train.inputs.shape[1]} tokens"
        head = f"{counts}, ids below {self.vocab_size}; right without looking at the question:"
        return "\n".join([head, *(f"    {guess}: {share:.2%}" for guess, share in self.guesses.items())])

    @classmethod
    def random(cls, network: Network, count: int) -> "TokenTask":
        """Return random sequences of the network's greatest length."""
        model, generator = network.config, torch.Generator().manual_seed(0)
        shape = (count, model.max_length)
        inputs, targets = (torch.randint(model.vocab_size, shape, generator=generator) for _ in range(2))
        split = TokenSplit(inputs=inputs, targets=targets)
        return cls(name="random", train=split, test=split, vocab_size=model.vocab_size)


def check_token_network(task: Task, config: RunConfig, **least: int) -> None:
    """Raise ConfigError unless the network has at least these sizes, and the loss is one for tokens."""
    squared = f"optim.loss squared is for images, and task {task.name} has tokens: leave it out"
    require(config.optim.loss == "cross_entropy", squared)
    for name, size in least.items():
        given = getattr(config.model, name)
        require(given >= size, f"task {task.name} needs --model.{name.replace('_', '-')} {size} or more, got {given}")
