"""Associative recall, the synthetic task of H3 (Fu et al., 2023, "Hungry Hungry Hippos", section 3.1).

A sequence shows `pairs` keys, each followed by its value, then "=>" and one of these keys; what comes next is its value.
"""

from math import comb

import torch
from jaxtyping import Int
from torch import Tensor

from mimo_benchmarks.data.synthetic.tokens import TokenSplit, different, next_token, right
from mimo_benchmarks.errors import ConfigError

VS10 = {"vocab_size": 10, "pairs": 10}
"""The smaller of the two settings that H3 has, with 4 keys and 4 values; the larger one is the default, with 9 and 9."""


def associative_recall(
    count: int, *, vocab_size: int = 20, pairs: int = 20, generator: torch.Generator
) -> Int[Tensor, "count length"]:
    """Sequences of 2 pairs + 3 tokens, no two of them equal.

    Each has a map of its own from keys to values, uniform among all such maps. The keys shown are uniform, with replacement. The
    one asked for is uniform among those shown: H3 draws it from all keys, and anew from those shown if it is not among them,
    which is the same. A sequence that came before is replaced.

    The first half of the ordinary ids are keys, the second half values; the last two ids are "=>" and ".", which H3's vocabulary
    has and this task never shows. H3 takes the halves of its symbols sorted as strings: that is the same up to names.

    A network reads `tokens[:, :-1]` and predicts `tokens[:, 1:]`: the loss is over all positions, the accuracy of the last one.

    Args:
        count: sequences.
        vocab_size: ids, two of them special.
        pairs: keys shown with their values.
        generator: the sequences are drawn on its device and stay there. The same state gives the same ones, on any machine if it
            is on the CPU (unless two numbers agree to the last bit of a logarithm).

    Raises:
        ConfigError: there are no such sequences, or fewer than `count`.

    >>> associative_recall(1, vocab_size=8, pairs=4, generator=torch.Generator().manual_seed(0))  # keys 0-2, values 3-5
    tensor([[0, 5, 1, 3, 0, 5, 1, 3, 6, 1, 3]])
    """
    if vocab_size < 4 or vocab_size % 2:
        raise ConfigError(f"vocab_size is {vocab_size}; it must be even and at least 4: two special ids, half of the rest values")
    for name, value in (("pairs", pairs), ("count", count)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    half = (vocab_size - 2) // 2
    if count > half ** (pairs + 1) and count > possible(vocab_size, pairs):  # the first is a lower bound that takes no time
        raise ConfigError(
            f"count is {count}, but there are {possible(vocab_size, pairs)} different sequences with vocab_size {vocab_size} and "
            f"pairs {pairs}: ask for fewer, or raise one of these"
        )
    return different(count, lambda count: draw(count, half, pairs, generator))


def possible(vocab_size: int, pairs: int) -> int:
    """How many different sequences there are: over how many keys they show, choices of these, orders, values and questions."""
    keys = (vocab_size - 2) // 2
    return sum(comb(keys, shown) * onto(pairs, shown) * keys**shown * shown for shown in range(1, min(keys, pairs) + 1))


def onto(places: int, keys: int) -> int:
    """In how many ways `keys` keys fill `places` places so that each appears (inclusion and exclusion)."""
    return sum((-1) ** missing * comb(keys, missing) * (keys - missing) ** places for missing in range(keys))


def draw(count: int, half: int, pairs: int, generator: torch.Generator) -> Int[Tensor, "count length"]:
    """Independent sequences with `half` keys and as many values."""
    device = generator.device
    value_of = torch.randint(half, 2 * half, (count, half), generator=generator, device=device)
    keys = torch.randint(half, (count, pairs), generator=generator, device=device)
    shown = torch.zeros(count, half, device=device).scatter_(1, keys, 1)
    query = torch.multinomial(shown, 1, generator=generator)
    body = torch.stack([keys, value_of.gather(1, keys)], -1).flatten(1)
    return torch.cat([body, torch.full_like(query, 2 * half), query, value_of.gather(1, query)], 1)


def recall_splits(
    *, vocab_size: int = 20, pairs: int = 20, train: int = 5000, test: int = 500, generator: torch.Generator
) -> tuple[TokenSplit, TokenSplit]:
    """Training and test sequences as H3 has them (HazyResearch/safari, configs/dataset/icl_synthetics.yaml).

    The loss of training is over all positions, the accuracy of testing that of the last. No two sequences of a split are equal;
    one of the test sequences may also be among the others. See `associative_recall` for the arguments and errors.
    """
    train_tokens, test_tokens = (
        associative_recall(count, vocab_size=vocab_size, pairs=pairs, generator=generator) for count in (train, test)
    )
    return next_token(train_tokens, test_tokens)


def query_blind(tokens: Int[Tensor, "count length"], *, vocab_size: int) -> dict[str, float]:
    """Accuracies on these sequences that need no look at the key asked for: what a network must exceed to have learnt the rule.

    Returns:
        Shares right of "chance", a value at random; "last", the last value shown; "frequent", the value shown most often;
        "keys", the value of the most different keys shown. Of values that tie, one at random: its expectation is returned.
    """
    half = (vocab_size - 2) // 2
    keys, values, answer = tokens[:, :-3:2], tokens[:, 1:-3:2] - half, tokens[:, -1] - half
    none = torch.zeros(len(tokens), half, device=tokens.device)
    shown = none.repeat(1, half).scatter_(1, keys * half + values, 1).view(-1, half, half)
    votes = {
        "chance": none,
        "last": none.scatter(1, values[:, -1:], 1),
        "frequent": none.scatter_add(1, values, torch.ones_like(values, dtype=none.dtype)),
        "keys": shown.sum(1),
    }
    return {name: right(most, answer) for name, most in votes.items()}


def guesses(split: TokenSplit, *, vocab_size: int) -> dict[str, float]:
    """`query_blind` of a split."""
    return query_blind(torch.cat([split.inputs, split.targets[:, -1:]], 1), vocab_size=vocab_size)
