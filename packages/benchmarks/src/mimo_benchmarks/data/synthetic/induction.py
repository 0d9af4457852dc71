"""The induction head, a synthetic task of H3 (Fu et al., 2023, "Hungry Hungry Hippos", section 3.1).

Somewhere among random symbols stands "=>", and again at the end; what comes next is the symbol that followed the first one.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from mimo_benchmarks.data.synthetic.tokens import TokenSplit, different, next_token, right
from mimo_benchmarks.errors import ConfigError


def induction_head(
    count: int, *, vocab_size: int = 20, length: int = 30, generator: torch.Generator
) -> Int[Tensor, "count tokens"]:
    """Sequences of `length` + 2 tokens, no two of them equal.

    As in generate_induction_head of HazyResearch/safari's src/dataloaders/synthetics.py, with one trigger and one symbol to copy:
    `length` ordinary symbols, uniform and independent; "=>" takes the place of the one at p, uniform in 0 .. length - 3; then
    "=>" again, and the symbol at p + 1. So no answer stands at the first or the last place of the body, and "=>" never follows
    itself. A sequence that came before is replaced.

    The ordinary ids come first; the last two are "=>" and ".", which H3's vocabulary has and this task never shows. H3 sorts its
    symbols as strings: that is the same up to names.

    Args:
        count: sequences.
        vocab_size: ids, two of them special.
        length: symbols before the second "=>".
        generator: the sequences are drawn on its device and stay there. The same state gives the same ones, on any machine if it
            is on the CPU.

    Raises:
        ConfigError: there are no such sequences, or fewer than `count`.

    >>> induction_head(1, vocab_size=6, length=8, generator=torch.Generator().manual_seed(1))  # 4 is "=>"
    tensor([[1, 3, 0, 0, 3, 4, 3, 1, 4, 3]])
    """
    for name, value, least in (("vocab_size", vocab_size, 3), ("length", length, 3), ("count", count, 1)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    possible = (length - 2) * (vocab_size - 2) ** (length - 1)
    if count > possible:
        raise ConfigError(
            f"count is {count}, but there are {possible} different sequences with vocab_size {vocab_size} and length {length}: "
            "ask for fewer, or raise one of these"
        )
    return different(count, lambda count: draw(count, vocab_size - 2, length, generator))


def draw(count: int, symbols: int, length: int, generator: torch.Generator) -> Int[Tensor, "count tokens"]:
    """Independent sequences of that many ordinary symbols."""
    device = generator.device
    body = torch.randint(symbols, (count, length), generator=generator, device=device)
    place = torch.randint(length - 2, (count, 1), generator=generator, device=device)
    arrow = torch.full_like(place, symbols)
    return torch.cat([body.scatter(1, place, arrow), arrow, body.gather(1, place + 1)], 1)


def induction_splits(
    *, vocab_size: int = 20, length: int = 30, train: int = 5000, test: int = 500, generator: torch.Generator
) -> tuple[TokenSplit, TokenSplit]:
    """Training and test sequences as H3 has them (safari's configs/dataset/icl_synthetics.yaml and pipeline/induction_head.yaml).

    The loss of training is over all positions, the accuracy of testing that of the last. No two sequences of a split are equal;
    one of the test sequences may also be among the others. See `induction_head` for the arguments and errors.
    """
    train_tokens, test_tokens = (
        induction_head(count, vocab_size=vocab_size, length=length, generator=generator) for count in (train, test)
    )
    return next_token(train_tokens, test_tokens)


def guesses(split: TokenSplit, *, vocab_size: int) -> dict[str, float]:
    """Accuracies of the last token that need no look at what follows "=>": what a network must exceed to have learnt the rule.

    Returns:
        Shares right of "chance", a symbol at random; "last", the last one that could be it; "frequent", the one shown most
        often. Of symbols that tie, one at random: its expectation is returned.
    """
    body, answer = split.inputs[:, 1:-2], split.targets[:, -1]  # where answers stand
    none = torch.zeros(len(body), vocab_size, device=body.device)
    shown = none.scatter_add(1, body, torch.ones_like(body, dtype=none.dtype))
    votes = {"chance": none, "last": none.scatter(1, body[:, -1:], 1), "frequent": shown}
    return {name: right(symbols[:, :-2], answer) for name, symbols in votes.items()}
