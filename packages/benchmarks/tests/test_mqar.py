"""Multi-query associative recall: every sequence is parsed in plain Python, and shares are compared with their definition."""

import math
from collections import Counter
from itertools import permutations
from math import sqrt

import numpy as np
import pytest
import torch

from mimo_benchmarks.data.synthetic.mqar import (
    MQAR,
    MQARSetting,
    draw_mqar_sequences,
    mqar_guesses,
    mqar_splits,
    multi_query_recall,
)
from mimo_benchmarks.data.synthetic.token_splits import UNSCORED
from mimo_benchmarks.errors import ConfigError

TINY = {"length": 14, "pairs": 3, "vocab_size": 12}
TIGHT = {"length": 8, "pairs": 2, "vocab_size": 6}
"""A setting with as many keys and slots as pairs."""
SETTINGS = [TINY, TIGHT, {"length": 64, "pairs": 4, "vocab_size": 8192}]
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def seeded_split(count, seed=0, **setting):
    return multi_query_recall(count, **setting, generator=torch.Generator().manual_seed(seed))


def rows_of(sequences):
    """Return inputs and targets of each sequence."""
    return list(zip(sequences.inputs.tolist(), sequences.targets.tolist(), strict=True))


def parse_mqar_sequence(inputs, targets, length, pairs, vocab_size):
    """Check that a sequence follows the rule; return its pairs, the slot that asks for each, and the tokens elsewhere."""
    assert len(inputs) == length
    shown = [(inputs[2 * pair], inputs[2 * pair + 1]) for pair in range(pairs)]
    value_of = dict(shown)
    assert len(value_of) == len(set(value_of.values())) == pairs
    assert all(0 < key < vocab_size // 2 <= value < vocab_size for key, value in shown)
    slot_of, rest, expected = {}, [], [UNSCORED] * length
    for place in range(2 * pairs, length):
        if targets[place] == UNSCORED:
            rest.append(inputs[place])
        else:
            assert inputs[place] not in slot_of
            slot, inside = divmod(place - 2 * pairs, 2)
            assert inside == 0
            slot_of[inputs[place]] = slot
            expected[place] = value_of[inputs[place]]
    assert slot_of.keys() == value_of.keys()
    assert targets == expected
    return shown, [slot_of[key] for key, _ in shown], rest


@each_setting
@pytest.mark.parametrize("filled", [False, True])
def test_every_sequence_asks_each_key_once_and_nothing_else(setting, filled):
    sequences = seeded_split(1500, random_non_queries=filled, **setting)
    assert sequences.inputs.dtype == sequences.targets.dtype == torch.long
    for inputs, targets in rows_of(sequences):
        shown, _, rest = parse_mqar_sequence(inputs, targets, **setting)
        own = {token for pair in shown for token in pair}
        allowed = set(range(setting["vocab_size"])) - own if filled else {0}
        assert set(rest) <= allowed


def test_empty_places_are_filled_by_default():
    """Filling changes nothing else; it is uniform over all ids, including 0, but for the keys and values of the sequence."""
    filled, same, bare = (
        seeded_split(1000, **TINY),
        seeded_split(1000, random_non_queries=True, **TINY),
        seeded_split(1000, random_non_queries=False, **TINY),
    )
    assert torch.equal(filled.inputs, same.inputs)
    assert torch.equal(filled.targets, bare.targets)
    assert torch.equal(filled.inputs.where(bare.inputs != 0, 0), bare.inputs)
    ranks = Counter()
    for inputs, targets in rows_of(filled):
        shown, _, rest = parse_mqar_sequence(inputs, targets, **TINY)
        others = sorted(set(range(12)) - {token for pair in shown for token in pair})
        ranks.update(others.index(token) for token in rest)
    assert_shares(ranks, dict.fromkeys(range(6), 1 / 6))


def assert_shares(found, chances):
    """Check counts of independent events: within 5 standard deviations of a binomial, for up to 200 events per test."""
    assert found.keys() <= chances.keys()
    assert math.isclose(sum(chances.values()), 1)
    total = found.total()
    for event, chance in chances.items():
        assert abs(found[event] - total * chance) < 5 * sqrt(total * chance * (1 - chance)), event


@pytest.mark.parametrize("setting", [TINY, TIGHT], ids=str)
def test_keys_and_values_are_uniform_without_replacement(setting, count=20_000):
    """All orders of different keys are equally likely, and of different values."""
    pairs, half = setting["pairs"], setting["vocab_size"] // 2
    context = seeded_split(count, seed=1, **setting).inputs[:, : 2 * pairs]
    for column, ids in ((0, range(1, half)), (1, range(half, 2 * half))):
        orders = list(permutations(ids, pairs))
        assert_shares(Counter(map(tuple, context[:, column::2].tolist())), dict.fromkeys(orders, 1 / len(orders)))


def sequential(weights, chosen):
    """Return the chance of each order of `chosen` items drawn one by one, in proportion to the weights of those left."""
    chances = {}
    for order in permutations(range(len(weights)), chosen):
        left, chance = sum(weights), 1.0
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        chances[order] = chance
    return chances


@pytest.mark.parametrize(
    ("length", "pairs", "power"), [(14, 3, 0.01), (12, 2, 0.01), (12, 2, 1.0), (16, 4, 0.01), (12, 2, 2.5), (14, 2, 1e-9)]
)
def test_slots_are_drawn_one_after_the_other(length, pairs, power, count=20_000):
    """The slots that ask for the pairs, in order of the pairs, have the distribution of sequential draws."""
    setting = {"length": length, "pairs": pairs, "vocab_size": 12}
    slots = (length - 2 * pairs) // 2
    found = Counter(
        tuple(parse_mqar_sequence(*row, **setting)[1]) for row in rows_of(seeded_split(count, seed=2, power=power, **setting))
    )
    assert_shares(found, sequential([i ** (power - 1) for i in range(1, slots + 1)], pairs))


def test_the_published_choice_is_sequential_too(count=8000):
    """The published code draws slots with numpy's choice."""
    weights = np.arange(1, 5) ** -0.99
    random = np.random.RandomState(0)
    found = Counter(tuple(random.choice(4, 3, replace=False, p=weights / weights.sum()).tolist()) for _ in range(count))
    assert_shares(found, sequential(weights.tolist(), 3))


def test_the_first_gap_of_a_published_setting_follows_the_weights(count=20_000):
    """The slot of the first pair is drawn among all 28 slots. The vocabulary plays no part."""
    sequences = seeded_split(count, seed=3, length=64, pairs=4, vocab_size=16)
    first = (sequences.inputs[:, 8:] == sequences.inputs[:, :1]) & (sequences.targets[:, 8:] != UNSCORED)
    total = sum(i**-0.99 for i in range(1, 29))
    assert_shares(Counter((first.nonzero()[:, 1] // 2).tolist()), {i - 1: i**-0.99 / total for i in range(1, 29)})


def test_sequences_are_drawn_a_thousand_at_a_time():
    """Portions bound the memory. The first sequences are the same however many there are, and no two portions are equal."""
    many = seeded_split(2500, **MQARS[0])
    generator = torch.Generator().manual_seed(0)
    portions = [draw_mqar_sequences(count, 64, 4, 4096, 0.01, True, generator) for count in (1000, 1000, 500)]
    for found, expected in zip((many.inputs, many.targets), zip(*portions, strict=True), strict=True):
        assert torch.equal(found, torch.cat(expected))
    few = seeded_split(1000, **MQARS[0])
    assert torch.equal(many.inputs[:1000], few.inputs)
    assert torch.equal(many.targets[:1000], few.targets)
    assert len(set(map(tuple, many.inputs.tolist()))) == 2500


PUBLISHED = list(MQAR.values())
MQARS = [{"length": setting.length, "pairs": setting.pairs} for setting in PUBLISHED]


def test_settings_are_the_published_ones():
    found = [(setting.length, setting.pairs, setting.batch_size) for setting in PUBLISHED]
    assert found == [(64, 4, 512), (128, 8, 512), (256, 16, 256), (512, 64, 128)]
    for setting in PUBLISHED:
        assert (setting.train, setting.test, setting.vocab_size, setting.random_non_queries) == (100_000, 3_000, 8192, False)


@pytest.mark.parametrize("setting", PUBLISHED, ids=str)
def test_splits_of_a_setting(setting):
    """Both splits follow the rule, have 0 between the queries and differ from each other."""
    fewer = MQARSetting(**vars(setting) | {"train": 40, "test": 30})
    train, test = mqar_splits(fewer, generator=torch.Generator().manual_seed(0))
    assert (len(train), len(test)) == (40, 30)
    for row in rows_of(train) + rows_of(test):
        _, _, rest = parse_mqar_sequence(*row, length=setting.length, pairs=setting.pairs, vocab_size=8192)
        assert set(rest) == {0}
    assert not torch.equal(train.inputs[:30], test.inputs)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"count": 0}, "count is 0; it must be at least 1"),
        ({"pairs": 0}, "pairs is 0; it must be at least 1"),
        ({"vocab_size": 13}, "vocab_size is 13; it must be even and at least 8"),
        ({"vocab_size": 6}, "vocab_size is 6; it must be even and at least 8"),
        ({"length": 15}, "length is 15; it must be even and at least 12"),
        ({"length": 10}, "length is 10; it must be even and at least 12"),
        ({"power": 0.0}, "power is 0.0; it must be a positive number"),
        ({"power": math.inf}, "power is inf; it must be a positive number"),
        ({"power": math.nan}, "power is nan; it must be a positive number"),
    ],
)
def test_arguments_out_of_range_are_refused(changed, named):
    with pytest.raises(ConfigError, match=named):
        seeded_split(**{"count": 5} | TINY | changed)


def guess_scores(slots):
    """Return the expected accuracy of each guess on the queries of a sequence, from the slots of its pairs."""
    total, asked = Counter(), []
    for pair in sorted(range(len(slots)), key=lambda pair: slots[pair]):
        left = [other for other in range(len(slots)) if other not in asked]
        total += {"shown": 1 / len(slots), "unasked": 1 / len(left), "first": left[0] == pair}
        asked.append(pair)
    return {name: score / len(slots) for name, score in total.items()}


@each_setting
@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("count", [1, 300])
def test_guesses_equal_their_definitions(setting, filled, count):
    sequences = seeded_split(count, random_non_queries=filled, **setting)
    each = [guess_scores(parse_mqar_sequence(*row, **setting)[1]) for row in rows_of(sequences)]
    expected = {name: sum(score[name] for score in each) / count for name in each[0]}
    assert mqar_guesses(sequences, vocab_size=setting["vocab_size"]) == pytest.approx(
        {"chance": 2 / setting["vocab_size"]} | expected
    )


def test_guesses_in_expectation_over_all_orders(count=50_000):
    """3 pairs in 5 slots, averaged over all orders. A mean of 50,000 scores between 0 and 1: within 4 standard errors."""
    chances = sequential([i**-0.99 for i in range(1, 6)], 3)
    expected = sum(chance * guess_scores(order)["first"] for order, chance in chances.items())
    found = mqar_guesses(seeded_split(count, **TINY | {"length": 16}), vocab_size=12)
    assert found["first"] == pytest.approx(expected, abs=4 * sqrt(0.25 / count))
    assert found["unasked"] == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert found["unasked"] < expected


def test_guesses_of_the_published_settings(count=8000):
    """Accuracies of "shown", "unasked" and "first" in percent. They depend on the slots alone, not on the vocabulary.

    A sequence's score of "first" has a standard deviation of about 0.2 at 4 pairs (that of the number of records of a random
    order, 0.81, over 4) and less at more pairs: 1 % is 4 standard errors and the rounding.
    """
    percent = {64: (25, 52.1, 55.1), 128: (12.5, 34.0, 36.5), 256: (6.25, 21.1, 23.0), 512: (1.5625, 7.4, 8.5)}
    for setting in PUBLISHED:
        sequences = seeded_split(count, length=setting.length, pairs=setting.pairs, vocab_size=2 * setting.pairs + 2)
        found = mqar_guesses(sequences, vocab_size=8192)
        shown, unasked, first = percent[setting.length]
        assert found["chance"] == 1 / 4096
        assert found["shown"] == shown / 100
        assert found["unasked"] == pytest.approx(unasked / 100, abs=0.0005)
        assert found["first"] == pytest.approx(first / 100, abs=0.01)
