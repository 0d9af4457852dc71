"""Associative recall: every sequence is parsed in plain Python, and shares are compared with their definition."""

from collections import Counter
from itertools import product
from math import sqrt

import pytest
import torch

from mimo_benchmarks.data.synthetic.recall import (
    VS10,
    associative_recall,
    count_recall_sequences,
    query_blind,
    recall_guesses,
    recall_splits,
)
from mimo_benchmarks.data.synthetic.token_splits import UNSCORED
from mimo_benchmarks.errors import ConfigError

FULL = {"vocab_size": 20, "pairs": 20}
SETTINGS = [VS10, FULL, {"vocab_size": 8, "pairs": 9}]
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def seeded_sequences(count, seed=0, **setting):
    return associative_recall(count, **setting, generator=torch.Generator().manual_seed(seed))


def parse_recall_sequence(sequence):
    """Return the pairs of a sequence, "=>", the key asked for and its value."""
    *body, arrow, query, answer = sequence
    return list(zip(body[::2], body[1::2], strict=True)), arrow, query, answer


@each_setting
def test_every_sequence_follows_one_map_and_its_answer_was_shown(setting):
    tokens, half = seeded_sequences(2000, **setting), (setting["vocab_size"] - 2) // 2
    assert tokens.shape == (2000, 2 * setting["pairs"] + 3)
    assert tokens.dtype == torch.long
    for sequence in tokens.tolist():
        pairs, arrow, query, answer = parse_recall_sequence(sequence)
        value_of = {}
        for key, value in pairs:
            assert 0 <= key < half <= value < 2 * half
            assert value_of.setdefault(key, value) == value
        assert (arrow, value_of[query]) == (2 * half, answer)


@each_setting
def test_keys_values_and_questions_are_uniform(setting, count=4000):
    """Counts of independent events: within 5 standard deviations of a binomial, of 2 to 30 events a setting, with seed 1."""
    half, pairs = (setting["vocab_size"] - 2) // 2, setting["pairs"]
    keys, values, absent, first = Counter(), Counter(), Counter(), 0
    chances = []
    for sequence in seeded_sequences(count, seed=1, **setting).tolist():
        shown, _, query, _ = parse_recall_sequence(sequence)
        value_of = dict(shown)
        keys.update(key for key, _ in shown)
        values.update(value_of.values())  # the value of each key once: these are independent
        absent.update(set(range(half)) - value_of.keys())
        first += query == shown[0][0]
        chances.append(1 / len(value_of))

    def near(found, trials, chance):
        return abs(found - trials * chance) < 5 * sqrt(trials * chance * (1 - chance))

    assert all(near(keys[key], count * pairs, 1 / half) for key in range(half))
    assert all(near(values[half + value], values.total(), 1 / half) for value in range(half))
    assert all(near(absent[key], count, (1 - 1 / half) ** pairs) for key in range(half))
    assert abs(first - sum(chances)) < 5 * sqrt(
        sum(chance * (1 - chance) for chance in chances)
    )  # the key asked for is uniform among those shown


def test_sequences_repeat_with_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    assert torch.equal(seeded_sequences(100, **VS10), seeded_sequences(100, **VS10))
    assert not torch.equal(seeded_sequences(100, **VS10), seeded_sequences(100, seed=1, **VS10))
    assert torch.equal(torch.get_rng_state(), before)


def every_sequence(vocab_size, pairs):
    """Return all sequences of the rule, by trying all maps, rows of keys and questions."""
    half = (vocab_size - 2) // 2
    return {
        (*(token for key in keys for token in (key, value_of[key])), 2 * half, query, value_of[query])
        for value_of in product(range(half, 2 * half), repeat=half)
        for keys in product(range(half), repeat=pairs)
        for query in keys
    }


@pytest.mark.parametrize(("vocab_size", "pairs"), [(4, 1), (4, 3), (6, 1), (6, 2), (6, 5), (8, 2), (8, 4), (10, 3)])
def test_sequences_are_different_and_all_of_them_can_be_drawn(vocab_size, pairs):
    """As many sequences as there are give each one once; one more is an error."""
    every = every_sequence(vocab_size, pairs)
    assert count_recall_sequences(vocab_size, pairs) == len(every)
    tokens = seeded_sequences(len(every), vocab_size=vocab_size, pairs=pairs)
    assert set(map(tuple, tokens.tolist())) == every
    with pytest.raises(ConfigError, match=rf"count is {len(every) + 1}, but there are {len(every)} different .* ask for fewer"):
        seeded_sequences(len(every) + 1, vocab_size=vocab_size, pairs=pairs)


def test_a_large_vocabulary_is_drawn_without_counting_its_sequences():
    """Counting the sequences of 4,000 pairs would take too long."""
    assert seeded_sequences(5, vocab_size=8192, pairs=4000).shape == (5, 8003)


def test_splits_have_the_published_sizes_and_targets():
    train, test = recall_splits(generator=torch.Generator().manual_seed(0))
    assert (train.inputs.shape, test.inputs.shape) == ((5000, 42), (500, 42))
    for split in (train, test):
        assert len(set(map(tuple, split.inputs.tolist()))) == len(split)
        for inputs, targets in zip(split.inputs.tolist(), split.targets.tolist(), strict=True):
            shown, arrow, query, answer = parse_recall_sequence([*inputs, targets[-1]])
            assert (arrow, dict(shown)[query]) == (18, answer)
            assert targets == ([*inputs[1:], answer] if split is train else [UNSCORED] * 41 + [answer])
        tokens = torch.cat([split.inputs, split.targets[:, -1:]], 1)
        assert recall_guesses(split, vocab_size=20) == query_blind(tokens, vocab_size=20)


def test_a_test_sequence_may_also_be_trained_on():
    """Both splits hold all sequences."""
    every = count_recall_sequences(6, 2)
    train, test = recall_splits(vocab_size=6, pairs=2, train=every, test=every, generator=torch.Generator().manual_seed(0))
    assert set(map(tuple, train.inputs.tolist())) == set(map(tuple, test.inputs.tolist()))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"vocab_size": 9}, "vocab_size is 9; it must be even and at least 4"),
        ({"vocab_size": 2}, "vocab_size is 2; it must be even and at least 4"),
        ({"vocab_size": -4}, "vocab_size is -4; it must be even and at least 4"),
        ({"pairs": 0}, "pairs is 0; it must be at least 1"),
        ({"count": 0}, "count is 0; it must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(changed, named):
    with pytest.raises(ConfigError, match=named):
        seeded_sequences(**{"count": 5} | VS10 | changed)


def expected_score(votes, answer):
    """Return the expected accuracy of a random guess among the values with most votes."""
    most = [value for value, number in votes.items() if number == max(votes.values())]
    return (answer in most) / len(most)


@each_setting
def test_query_blind_accuracies_equal_their_definitions(setting, count=300):
    half = (setting["vocab_size"] - 2) // 2
    tokens = seeded_sequences(count, **setting)
    total = Counter()
    for sequence in tokens.tolist():
        shown, _, _, answer = parse_recall_sequence(sequence)
        total["chance"] += 1 / half
        total["last"] += shown[-1][1] == answer
        total["frequent"] += expected_score(Counter(value for _, value in shown), answer)
        total["keys"] += expected_score(Counter(dict(shown).values()), answer)
    found = query_blind(tokens, vocab_size=setting["vocab_size"])
    assert found == pytest.approx({name: score / count for name, score in total.items()}, abs=1e-6)


@pytest.mark.parametrize(("setting", "percent"), [(VS10, (25, 45, 51, 54)), (FULL, (11.1, 22, 28, 31))], ids=str)
def test_query_blind_accuracies_of_the_two_settings(setting, percent, count=50_000):
    """Within 0.5 %, for rounding to a percent, and 4 standard errors (of at most 0.22 % for 50,000 sequences)."""
    found = query_blind(seeded_sequences(count, **setting), vocab_size=setting["vocab_size"])
    assert list(found) == ["chance", "last", "frequent", "keys"]
    assert list(found.values()) == pytest.approx([value / 100 for value in percent], abs=0.005 + 4 * sqrt(0.25 / count))
