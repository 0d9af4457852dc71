"""Draw sequences for associative recall, a synthetic task of H3 (Fu et al., 2023, "Hungry Hungry Hippos", section 3.1).

A sequence shows `pairs` keys, each followed by its value, then "=>" and one of these keys. The next token is the key's value.
"""

from math import comb

import torch
from jaxtyping import Int
from torch import Tensor

from mimo_benchmarks.data.synthetic.token_splits import TokenSplit, draw_different, expected_accuracy, next_token_splits
from mimo_benchmarks.errors import ConfigError

VS10 = {"vocab_size": 10, "pairs": 10}
"""The smaller of H3's two settings, with 4 keys and 4 values; the larger one, with 9 and 9, is the default."""


def associative_recall(
    count: int, *, vocab_size: int = 20, pairs: int = 20, generator: torch.Generator
) -> Int[Tensor, "count length"]:
    """Draw different sequences of 2 pairs + 3 tokens; a repeated sequence is replaced.

    Each sequence has its own map from keys to values, uniform among all such maps. The keys shown are uniform, with replacement.
    The key asked for is uniform among those shown. H3 draws it from all keys, and anew from those shown if it is not among
    them, which is the same.

    The first half of the ordinary ids are keys, the second half values. The last two ids are "=>" and "."; the latter is in
    H3's vocabulary, but this task never shows it. H3 halves its symbols sorted as strings, which is the same up to names.

    A network reads `tokens[:, :-1]` and predicts `tokens[:, 1:]`. The loss is over all positions, the accuracy of the last one.

    Args:
        count: number of sequences.
        vocab_size: number of ids, two of which are special.
        pairs: number of keys shown with their values.
        generator: random numbers; the sequences are on its device. The same state gives the same sequences, on any machine if
            it is a CPU generator (unless two numbers agree to the last bit of a logarithm).

    Raises:
        ConfigError: an argument is out of range, or there are fewer than `count` different sequences.

    >>> associative_recall(1, vocab_size=8, pairs=4, generator=torch.Generator().manual_seed(0))  # keys 0-2, values 3-5
    tensor([[0, 5, 1, 3, 0, 5, 1, 3, 6, 1, 3]])
    """
    if vocab_size < 4 or vocab_size % 2:
        raise ConfigError(f"vocab_size is {vocab_size}; it must be even and at least 4 (2 special ids, keys and values)")
    for name, value in (("pairs", pairs), ("count", count)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    half = (vocab_size - 2) // 2
    if count > half ** (pairs + 1) and count > count_recall_sequences(vocab_size, pairs):  # a cheap lower bound first
        possible = count_recall_sequences(vocab_size, pairs)
        raise ConfigError(
            f"count is {count}, but there are {possible} different sequences with vocab_size {vocab_size} and pairs {pairs}: ask "
            "for fewer sequences, or raise vocab_size or pairs"
        )
    return draw_different(count, lambda count: draw_recall_sequences(count, half, pairs, generator))


def count_recall_sequences(vocab_size: int, pairs: int) -> int:
    """Count the different sequences: sum over the number of keys shown, times choices of keys, orders, values and questions."""
    keys = (vocab_size - 2) // 2
    most = min(keys, pairs)
    return sum(comb(keys, shown) * count_surjections(pairs, shown) * keys**shown * shown for shown in range(1, most + 1))


def count_surjections(places: int, keys: int) -> int:
    """Count the ways in which `keys` keys fill `places` places so that each key appears (inclusion and exclusion)."""
    return sum((-1) ** missing * comb(keys, missing) * (keys - missing) ** places for missing in range(keys))


def draw_recall_sequences(count: int, half: int, pairs: int, generator: torch.Generator) -> Int[Tensor, "count length"]:
    """Draw independent sequences with `half` keys and as many values."""
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
    """Return training and test sequences as H3 has them (HazyResearch/safari, configs/dataset/icl_synthetics.yaml).

    The training loss is over all positions, the test accuracy of the last one. The sequences of a split differ from each other,
    but a test sequence may also be a training sequence. See `associative_recall` for the arguments and errors.
    """
    train_tokens, test_tokens = (
        associative_recall(count, vocab_size=vocab_size, pairs=pairs, generator=generator) for count in (train, test)
    )
    return next_token_splits(train_tokens, test_tokens)


def query_blind(tokens: Int[Tensor, "count length"], *, vocab_size: int) -> dict[str, float]:
    """Return the accuracies of guesses that ignore the key asked for. A network that has learnt the rule must exceed them.

    Returns:
        Expected accuracy of each guess: "chance", a random value; "last", the last value shown; "frequent", the value shown
        most often; "keys", the value shown with most different keys. Ties are broken at random.
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
    return {name: expected_accuracy(most, answer) for name, most in votes.items()}


def recall_guesses(split: TokenSplit, *, vocab_size: int) -> dict[str, float]:
    """Return the accuracies of guesses on a split, as `query_blind` does on sequences."""
    return query_blind(torch.cat([split.inputs, split.targets[:, -1:]], 1), vocab_size=vocab_size)
