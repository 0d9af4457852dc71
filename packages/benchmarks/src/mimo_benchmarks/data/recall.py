"""Associative recall, the synthetic task of H3 (Fu et al., 2023, "Hungry Hungry Hippos", section 3.1).

A sequence shows `pairs` keys, each followed by its value, then "=>" and one of these keys; what comes next is its value.
"""

from math import comb

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
        generator: on the CPU; the same state gives the same sequences.

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
    different = possible(vocab_size, pairs)
    if count > different:
        raise ConfigError(
            f"count is {count}, but there are {different} different sequences with vocab_size {vocab_size} and pairs {pairs}: "
            "ask for fewer, or raise one of these"
        )
    tokens = torch.empty(0, 2 * pairs + 3, dtype=torch.long)
    while len(tokens) < count:
        tokens = distinct(torch.cat([tokens, draw(count, (vocab_size - 2) // 2, pairs, generator)]))[:count]
    return tokens


def possible(vocab_size: int, pairs: int) -> int:
    """How many different sequences there are: over how many keys they show, choices of these, orders, values and questions."""
    keys = (vocab_size - 2) // 2
    return sum(comb(keys, shown) * onto(pairs, shown) * keys**shown * shown for shown in range(1, min(keys, pairs) + 1))


def onto(places: int, keys: int) -> int:
    """In how many ways `keys` keys fill `places` places so that each appears (inclusion and exclusion)."""
    return sum((-1) ** missing * comb(keys, missing) * (keys - missing) ** places for missing in range(keys))


def draw(count: int, half: int, pairs: int, generator: torch.Generator) -> Int[Tensor, "count length"]:
    """Independent sequences with `half` keys and as many values."""
    value_of = torch.randint(half, 2 * half, (count, half), generator=generator)
    keys = torch.randint(half, (count, pairs), generator=generator)
    shown = torch.zeros(count, half).scatter_(1, keys, 1)
    query = torch.multinomial(shown, 1, generator=generator)
    body = torch.stack([keys, value_of.gather(1, keys)], -1).flatten(1)
    return torch.cat([body, torch.full((count, 1), 2 * half), query, value_of.gather(1, query)], 1)


def distinct(tokens: Int[Tensor, "count length"]) -> Int[Tensor, "fewer length"]:
    """The first of each, in order."""
    different, which = tokens.unique(dim=0, return_inverse=True)
    first = torch.full((len(different),), len(tokens)).scatter_reduce(0, which, torch.arange(len(tokens)), "amin")
    return tokens[first.sort().values]


def query_blind(tokens: Int[Tensor, "count length"], *, vocab_size: int) -> dict[str, float]:
    """Accuracies on these sequences that need no look at the key asked for: what a network must exceed to have learnt the rule.

    Returns:
        Shares right of "chance", a value at random; "last", the last value shown; "frequent", the value shown most often;
        "keys", the value of the most different keys shown. Of values that tie, one at random: its expectation is returned.
    """
    half = (vocab_size - 2) // 2
    keys, values, answer = tokens[:, :-3:2], tokens[:, 1:-3:2] - half, tokens[:, -1] - half
    shown = torch.zeros(len(tokens), half * half).scatter_(1, keys * half + values, 1).unflatten(1, (half, half))
    guesses = {
        "chance": torch.ones(len(tokens), half),
        "last": torch.zeros(len(tokens), half).scatter_(1, values[:, -1:], 1),
        "frequent": torch.zeros(len(tokens), half).scatter_add_(1, values, torch.ones(values.shape)),
        "keys": shown.sum(1),
    }
    return {name: right(votes, answer) for name, votes in guesses.items()}


def right(votes: Float[Tensor, "count values"], answer: Int[Tensor, " count"]) -> float:
    """How often the value with the most votes is the answer, in expectation over ties."""
    most = votes == votes.amax(1, keepdim=True)
    return float((most.gather(1, answer[:, None])[:, 0] / most.sum(1)).mean())
