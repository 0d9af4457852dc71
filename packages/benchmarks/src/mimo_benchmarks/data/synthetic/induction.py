"""Draw sequences for the induction head, a synthetic task of H3 (Fu et al., 2023, "Hungry Hungry Hippos", section 3.1).

A sequence has "=>" somewhere among random symbols, and again at the end. The next token is the symbol after the first "=>".
"""

import torch
from jaxtyping import Int
from torch import Tensor

from mimo_benchmarks.data.synthetic.token_splits import TokenSplit, draw_different, expected_accuracy, next_token_splits
from mimo_benchmarks.errors import ConfigError


def induction_head(
    count: int, *, vocab_size: int = 20, length: int = 30, generator: torch.Generator
) -> Int[Tensor, "count tokens"]:
    """Draw different sequences of `length` + 2 tokens; a repeated sequence is replaced.

    The rule is that of generate_induction_head in HazyResearch/safari's src/dataloaders/synthetics.py, with one trigger and one
    symbol to copy. The body is `length` ordinary symbols, uniform and independent; "=>" replaces the one at p, uniform in
    0 .. length - 3. Then come "=>" again, and the symbol at p + 1. So the answer is never the first or the last symbol of the
    body, and "=>" never follows itself.

    The ordinary ids come first. The last two ids are "=>" and "."; the latter is in H3's vocabulary, but this task never shows
    it. H3 sorts its symbols as strings, which is the same up to names.

    Args:
        count: number of sequences.
        vocab_size: number of ids, two of which are special.
        length: number of symbols before the second "=>".
        generator: random numbers; the sequences are on its device. The same state gives the same sequences, on any machine if
            it is a CPU generator.

    Raises:
        ConfigError: an argument is out of range, or there are fewer than `count` different sequences.

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
            "ask for fewer sequences, or raise vocab_size or length"
        )
    return draw_different(count, lambda count: draw_induction_sequences(count, vocab_size - 2, length, generator))


def draw_induction_sequences(count: int, symbols: int, length: int, generator: torch.Generator) -> Int[Tensor, "count tokens"]:
    """Draw independent sequences over `symbols` ordinary symbols."""
    device = generator.device
    body = torch.randint(symbols, (count, length), generator=generator, device=device)
    place = torch.randint(length - 2, (count, 1), generator=generator, device=device)
    arrow = torch.full_like(place, symbols)
    return torch.cat([body.scatter(1, place, arrow), arrow, body.gather(1, place + 1)], 1)


def induction_splits(
    *, vocab_size: int = 20, length: int = 30, train: int = 5000, test: int = 500, generator: torch.Generator
) -> tuple[TokenSplit, TokenSplit]:
    """Return training and test sequences as H3 has them (safari's dataset/icl_synthetics.yaml and pipeline/induction_head.yaml).

    The training loss is over all positions, the test accuracy of the last one. The sequences of a split differ from each other,
    but a test sequence may also be a training sequence. See `induction_head` for the arguments and errors.
    """
    train_tokens, test_tokens = (
        induction_head(count, vocab_size=vocab_size, length=length, generator=generator) for count in (train, test)
    )
    return next_token_splits(train_tokens, test_tokens)


def induction_guesses(split: TokenSplit, *, vocab_size: int) -> dict[str, float]:
    """Return the accuracies of guesses that ignore what follows "=>". A network that has learnt the rule must exceed them.

    Returns:
        Expected accuracy of each guess: "chance", a random symbol; "last", the last symbol that can be the answer; "frequent",
        the symbol shown most often. Ties are broken at random.
    """
    body, answer = split.inputs[:, 1:-2], split.targets[:, -1]  # the places that can hold the answer
    none = torch.zeros(len(body), vocab_size, device=body.device)
    shown = none.scatter_add(1, body, torch.ones_like(body, dtype=none.dtype))
    votes = {"chance": none, "last": none.scatter(1, body[:, -1:], 1), "frequent": shown}
    return {name: expected_accuracy(symbols[:, :-2], answer) for name, symbols in votes.items()}
