"""The induction head: every sequence is parsed in plain Python, and shares are compared with their definition."""

from collections import Counter
from fractions import Fraction
from itertools import product
from math import comb, sqrt

import pytest
import torch

from mimo_benchmarks.data.synthetic.induction import induction_guesses, induction_head, induction_splits
from mimo_benchmarks.data.synthetic.token_splits import UNSCORED
from mimo_benchmarks.errors import ConfigError

FULL = {"vocab_size": 20, "length": 30}
SETTINGS = [FULL, {"vocab_size": 5, "length": 9}]
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def seeded_sequences(count, seed=0, **setting):
    return induction_head(count, **setting, generator=torch.Generator().manual_seed(seed))


def seeded_splits(seed=0, **setting):
    return induction_splits(**setting, generator=torch.Generator().manual_seed(seed))


def parse_induction_sequence(sequence, vocab_size, length):
    """Check that a sequence follows the rule; return the place of the first "=>", the other symbols, and the answer."""
    *body, arrow, answer = sequence
    special = vocab_size - 2
    assert (len(body), arrow, body.count(special)) == (length, special, 1)
    place = body.index(special)
    assert place in range(length - 2)
    symbols = body[:place] + body[place + 1 :]
    assert all(symbol in range(special) for symbol in symbols)
    assert answer == body[place + 1]
    return place, symbols, answer


@each_setting
def test_every_sequence_asks_for_what_followed_the_arrow(setting):
    tokens = seeded_sequences(2000, **setting)
    assert tokens.shape == (2000, setting["length"] + 2)
    for sequence in tokens.tolist():
        parse_induction_sequence(sequence, **setting)


@each_setting
def test_places_symbols_and_answers_are_uniform(setting, count=4000):
    """Counts of independent events: within 5 standard deviations of a binomial, of 13 to 64 events a setting, with seed 1."""
    ordinary, length = setting["vocab_size"] - 2, setting["length"]
    places, answers, at = Counter(), Counter(), Counter()
    for sequence in seeded_sequences(count, seed=1, **setting).tolist():
        place, symbols, answer = parse_induction_sequence(sequence, **setting)
        places[place] += 1
        answers[answer] += 1
        at.update(symbols)

    def near(found, trials, chance):
        return abs(found - trials * chance) < 5 * sqrt(trials * chance * (1 - chance))

    assert all(near(places[place], count, 1 / (length - 2)) for place in range(length - 2))
    assert all(near(answers[symbol], count, 1 / ordinary) for symbol in range(ordinary))
    assert all(near(at[symbol], count * (length - 1), 1 / ordinary) for symbol in range(ordinary))


def every_sequence(vocab_size, length):
    """Return all sequences of the rule, by trying all symbols at all places, and all places of "=>"."""
    special = vocab_size - 2
    return {
        (*symbols[:place], special, *symbols[place + 1 :], special, symbols[place + 1])
        for symbols in product(range(special), repeat=length)
        for place in range(length - 2)
    }


@pytest.mark.parametrize(("vocab_size", "length"), [(3, 3), (3, 7), (4, 3), (4, 6), (5, 4), (5, 5), (7, 4)])
def test_sequences_are_different_and_all_of_them_can_be_drawn(vocab_size, length):
    """As many sequences as there are give each one once; one more is an error."""
    every = every_sequence(vocab_size, length)
    with pytest.raises(ConfigError, match=f"there are {len(every)} different"):
        seeded_sequences(10**9, vocab_size=vocab_size, length=length)
    tokens = seeded_sequences(len(every), vocab_size=vocab_size, length=length)
    assert set(map(tuple, tokens.tolist())) == every
    with pytest.raises(ConfigError, match=rf"count is {len(every) + 1}, but there are {len(every)} different .* ask for fewer"):
        seeded_sequences(len(every) + 1, vocab_size=vocab_size, length=length)


def test_splits_have_the_published_sizes_and_targets():
    train, test = seeded_splits()
    assert (train.inputs.shape, test.inputs.shape) == ((5000, 31), (500, 31))
    for split in (train, test):
        assert len(set(map(tuple, split.inputs.tolist()))) == len(split)
        for inputs, targets in zip(split.inputs.tolist(), split.targets.tolist(), strict=True):
            _, _, answer = parse_induction_sequence([*inputs, targets[-1]], **FULL)
            assert targets == ([*inputs[1:], answer] if split is train else [UNSCORED] * 30 + [answer])


def test_a_test_sequence_may_also_be_trained_on():
    """Both splits hold all sequences."""
    every = len(every_sequence(4, 4))
    train, test = seeded_splits(vocab_size=4, length=4, train=every, test=every)
    assert set(map(tuple, train.inputs.tolist())) == set(map(tuple, test.inputs.tolist()))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"vocab_size": 2}, "vocab_size is 2; it must be at least 3"),
        ({"vocab_size": -1}, "vocab_size is -1; it must be at least 3"),
        ({"length": 2}, "length is 2; it must be at least 3"),
        ({"count": 0}, "count is 0; it must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(changed, named):
    with pytest.raises(ConfigError, match=named):
        seeded_sequences(**{"count": 5} | FULL | changed)


def guess_scores(sequence, vocab_size, length):
    """Return the expected accuracy of each guess on one sequence."""
    _, _, answer = parse_induction_sequence(sequence, vocab_size, length)
    could_be = [symbol for symbol in sequence[1 : length - 1] if symbol < vocab_size - 2]  # answers never stand at either end
    shown = Counter(could_be)
    most = [symbol for symbol, number in shown.items() if number == max(shown.values())]
    return {
        "chance": Fraction(1, vocab_size - 2),
        "last": Fraction(sequence[length - 2] == answer),
        "frequent": Fraction(answer in most, len(most)),
    }


@pytest.mark.parametrize("setting", [FULL, {"vocab_size": 5, "length": 5}, {"vocab_size": 4, "length": 6}], ids=str)
def test_guesses_equal_their_definitions(setting):
    train, test = seeded_splits(train=100, test=100, **setting)
    for split in (train, test):
        rows = torch.cat([split.inputs, split.targets[:, -1:]], 1).tolist()
        expected = {
            name: float(sum(guess_scores(row, **setting)[name] for row in rows) / 100)
            for name in guess_scores(rows[0], **setting)
        }
        assert induction_guesses(split, vocab_size=setting["vocab_size"]) == pytest.approx(expected, abs=1e-6)


def most_shown(symbols, places):
    """Return the expected count of the commonest of `symbols` symbols at independent places.

    It follows from the number of rows in which no symbol appears more than `most` times.
    """
    within = []
    for most in range(places + 1):
        rows = [1] + [0] * places  # number of rows of each length over the symbols so far
        for _ in range(symbols):
            rows = [sum(comb(n, k) * rows[n - k] for k in range(min(most, n) + 1)) for n in range(places + 1)]
        within.append(Fraction(rows[places], symbols**places))
    return sum(1 - share for share in within)  # the probabilities of more than 0, of more than 1, ..


def test_guesses_of_the_published_setting(count=50_000):
    """Chance 5.6 %, last 8.9 %, commonest 15.1 %, each within 4 standard errors (of at most 0.16 % for 50,000 sequences).

    28 places can hold the answer. "=>" takes one of them, unless it is at the start, and the answer is any of the rest: the
    commonest symbol is right as often as its share of these places. The last place holds the answer in 1 of 28 sequences, and
    else by chance.
    """
    frequent = float(most_shown(18, 28) / 28 / 28 + most_shown(18, 27) / 27 * 27 / 28)
    assert frequent == pytest.approx(0.1509, abs=0.0001)
    _, test = seeded_splits(train=1, test=count)
    found = induction_guesses(test, vocab_size=20)
    assert list(found) == ["chance", "last", "frequent"]
    for value, expected in zip(found.values(), (1 / 18, 1 / 28 + 27 / 28 / 18, frequent), strict=True):
        assert value == pytest.approx(expected, abs=4 * sqrt(expected * (1 - expected) / count))
