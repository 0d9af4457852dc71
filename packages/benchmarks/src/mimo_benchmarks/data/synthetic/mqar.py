"""Draw sequences for multi-query associative recall (Arora et al., 2023, "Zoology: Measuring and Improving Recall in Efficient
Language Models").

A sequence shows `pairs` keys, each followed by its value. Then every key appears once more, with gaps, and asks for its value.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mimo_benchmarks.data.synthetic.token_splits import UNSCORED, TokenSplit
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class MQARSetting:
    """A setting of the paper."""

    length: int
    pairs: int
    batch_size: int
    train: int = 100_000
    test: int = 3_000
    vocab_size: int = 8192
    random_non_queries: bool = False


MQAR = {
    64: MQARSetting(length=64, pairs=4, batch_size=512),
    128: MQARSetting(length=128, pairs=8, batch_size=512),
    256: MQARSetting(length=256, pairs=16, batch_size=256),
    512: MQARSetting(length=512, pairs=64, batch_size=128),
}
"""The four settings of the paper's figure 2, by length, as in iclr24_zoology_figure2/configs.py of HazyResearch/zoology."""

ROWS = 1000
"""Sequences drawn at a time, 33 MB for each choice among 4096 values. Another number would give other sequences."""


def multi_query_recall(
    count: int,
    *,
    length: int,
    pairs: int,
    vocab_size: int = 8192,
    power: float = 0.01,
    random_non_queries: bool = True,
    generator: torch.Generator,
) -> TokenSplit:
    """Draw sequences of `length` tokens; only the keys that are asked for have a target, their value.

    The rule is that of zoology/data/multiquery_ar.py of HazyResearch/zoology, with one pass over the pairs. Id 0 fills empty
    places; the rest of the first half of the ids are keys, the second half values. A sequence has `pairs` different keys and
    different values, uniform, and starts with key, value, key, value .. Slots of two tokens follow. Each key stands at the start
    of its own slot; the other tokens are 0. The slots are drawn key by key without replacement, the i-th slot with weight
    i^(power - 1), so the first pairs tend to be asked first. The value is not shown again: it is the target of the key, the
    next token of a text that the network does not read.

    Args:
        count: number of sequences; equal ones are kept, as published.
        length: number of tokens, even and at least 4 * pairs.
        pairs: number of keys shown with their values.
        vocab_size: number of ids.
        power: with 1, all slots are equally likely; smaller powers make early slots likelier.
        random_non_queries: fill empty places with random ids other than the keys and values of the sequence, instead of 0. The
            published code fills them with any ids, so that a key may come again without a question, or with another value.
        generator: random numbers; the sequences are on its device. The same state gives the same sequences, on any machine if
            it is a CPU generator (unless two numbers agree to the last bit of a logarithm).

    Raises:
        ConfigError: an argument is out of range.

    >>> options = {"length": 12, "pairs": 2, "vocab_size": 12, "random_non_queries": False}
    >>> example = multi_query_recall(1, **options, generator=torch.Generator().manual_seed(3))
    >>> print(*example.inputs, *example.targets)
    tensor([ 3, 10,  5,  6,  5,  0,  0,  0,  0,  0,  3,  0])
    tensor([-100, -100, -100, -100,    6, -100, -100, -100, -100, -100,   10, -100])
    """
    for name, value in (("pairs", pairs), ("count", count)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if vocab_size % 2 or vocab_size < 2 * pairs + 2:
        raise ConfigError(
            f"vocab_size is {vocab_size}; it must be even and at least {2 * pairs + 2} (for 0, {pairs} keys and as many values)"
        )
    if length % 2 or length < 4 * pairs:
        raise ConfigError(
            f"length is {length}; it must be even and at least {4 * pairs} (two tokens to show each pair and two to ask for it)"
        )
    if not 0 < power < math.inf:
        raise ConfigError(f"power is {power}; it must be a positive number")
    inputs = torch.empty(count, length, dtype=torch.long, device=generator.device)
    targets = torch.empty_like(inputs)
    with progress_bar("drawing sequences", count) as bar:
        for start in range(0, count, ROWS):
            rows = slice(start, min(start + ROWS, count))
            number = rows.stop - start
            inputs[rows], targets[rows] = draw_mqar_sequences(
                number, length, pairs, vocab_size // 2, power, random_non_queries, generator
            )
            bar.update(number)
    return TokenSplit(inputs=inputs, targets=targets)


def draw_mqar_sequences(
    count: int, length: int, pairs: int, half: int, power: float, random_non_queries: bool, generator: torch.Generator
) -> tuple[Int[Tensor, "count length"], Int[Tensor, "count length"]]:
    """Draw inputs and targets of independent sequences with `half` - 1 keys and `half` values.

    To choose without replacement, give each item an independent random score and take the highest scores, best first. With
    uniform scores, all orders are equally likely. With the score log w - log(-log u), u uniform, the score falls with
    -log(u) / w, the waiting time of an event of rate w. The first event is that of item i with probability w_i / sum of all w;
    the remaining waiting times are then again exponential with their old rates, so each further event is a draw among the items
    left, in proportion to their weights. numpy's choice(replace=False, p=..) has the same distribution: it draws with
    replacement and skips what it has drawn before.
    """

    def uniform(items: int) -> Float[Tensor, "count items"]:
        return torch.rand(count, items, generator=generator, device=generator.device, dtype=torch.float64)

    shown, slots = 2 * pairs, length // 2 - pairs
    keys = 1 + uniform(half - 1).topk(pairs).indices
    values = half + uniform(half).topk(pairs).indices
    log_weight = (power - 1) * torch.arange(1, slots + 1, device=generator.device).double().log()
    places = shown + 2 * (log_weight - (-uniform(slots).log()).log()).topk(pairs).indices

    others = 2 * (half - pairs) if random_non_queries else 1  # how many ids may fill empty places
    inputs = torch.randint(others, (count, length), generator=generator, device=generator.device)
    if random_non_queries:  # step over the ids of the sequence: the id of rank r among the others has r others below it
        own = torch.cat([keys, values], 1).sort(1).values
        inputs += torch.searchsorted(own - torch.arange(shown, device=own.device), inputs, right=True)
    inputs[:, :shown] = torch.stack([keys, values], -1).flatten(1)
    inputs.scatter_(1, places, keys)
    return inputs, torch.full_like(inputs, UNSCORED).scatter_(1, places, values)


def mqar_splits(setting: MQARSetting, *, generator: torch.Generator) -> tuple[TokenSplit, TokenSplit]:
    """Return training and test sequences of a setting; both are scored at the keys asked for. See `multi_query_recall`."""
    arguments = vars(setting) | {"generator": generator}
    counts = arguments.pop("train"), arguments.pop("test")
    del arguments["batch_size"]
    train, test = (multi_query_recall(count, **arguments) for count in counts)
    return train, test


def mqar_guesses(split: TokenSplit, *, vocab_size: int) -> dict[str, float]:
    """Return the accuracies of guesses that ignore the key asked for. A network that has learnt the rule must exceed them.

    Returns:
        Accuracy of each guess: "chance", a random value; "shown", a random value of those shown, or always the last one (this is
        exact, because each is asked for once); "unasked", a random value whose key was not asked for before; "first", the first
        of these. Only "first" depends on the sequences; the others are expectations.
    """
    scored = split.targets != UNSCORED
    asked = split.inputs[scored].view(len(split), -1)
    pairs = asked.shape[1]
    keys, order = split.inputs[:, : 2 * pairs : 2].sort(1)
    turn = torch.empty_like(asked)
    turn.scatter_(1, order.gather(1, torch.searchsorted(keys, asked)), torch.arange(pairs, device=asked.device).expand_as(asked))
    return {
        "chance": 2 / vocab_size,
        "shown": 1 / pairs,
        "unasked": sum(1 / left for left in range(1, pairs + 1)) / pairs,
        "first": float((turn == turn.cummax(1).values).double().mean()),  # all pairs before it have been asked for
    }
