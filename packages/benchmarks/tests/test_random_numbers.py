"""Random numbers by key and position: permuted, uniform, and independent between neighbours, streams and keys."""

import pytest
import torch

from mimo_benchmarks.data.vision.random_numbers import (
    mix_bits,
    random_integers,
    random_permutation,
    random_uniform,
    random_words,
)

KEY = torch.tensor([123, 2**32 - 1])


def mixed_by_loop(word):
    """Mix the bits of a word with Python's integers, which never overflow."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1)):
        word = (word ^ word >> shift) * factor % 2**32
    return word


def test_mix_bits_equals_the_loop():
    words = [0, 1, 2**31, 2**32 - 1, *range(1000, 1100)]
    assert mix_bits(torch.tensor(words)).tolist() == list(map(mixed_by_loop, words))


def test_a_number_depends_on_key_stream_and_place_alone():
    long, short = random_words(KEY, 3, 1000), random_words(KEY, 3, 10)
    assert torch.equal(long[:10], short)
    assert long.tolist() == [mixed_by_loop(mixed_by_loop((16 * place + 3) ^ 123) ^ 2**32 - 1) for place in range(1000)]
    others = [random_words(KEY, 4, 1000), random_words(KEY.flip(0), 3, 1000), random_words(KEY + torch.tensor([1, 0]), 3, 1000)]
    for other in others:
        assert not (other == long).any()


def test_uniform_by_its_moments_and_its_neighbours():
    """100,000 numbers: mean, variance, and correlations with the next, other streams and other keys; 5 standard deviations."""
    count = 100_000
    x = random_uniform(KEY, 0, count).double()
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean() - 1 / 2) < 5 * (1 / 12 / count) ** 0.5
    assert abs(x.var() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5
    others = [
        x.roll(1),
        x.roll(16),
        random_uniform(KEY, 1, count),
        random_uniform(KEY + 1, 0, count),
        random_uniform(KEY ^ torch.tensor([16, 0]), 0, count),
    ]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([x, other.double()]))[0, 1]) < 5 / count**0.5


def test_every_bit_is_a_fair_coin():
    bits = random_words(KEY, 2, 10_000)[:, None] >> torch.arange(32) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / 100


@pytest.mark.parametrize("limit", [1, 2, 9, 2**24])
def test_random_integers_are_uniform_below_their_limit(limit):
    numbers = random_integers(limit, KEY, 0, 10_000)
    assert numbers.min() >= 0
    assert numbers.max() < limit
    counts = torch.bincount(numbers * min(limit, 9) // limit)
    assert (counts - 10_000 / len(counts)).abs().max() < 5 * (10_000 / len(counts)) ** 0.5


def test_all_permutations_are_equally_likely():
    """6,000 permutations of 3 items: each of 6 orders within 5 standard deviations of a sixth."""
    orders = [tuple(random_permutation(torch.tensor([seed, 1]), 5, 3).tolist()) for seed in range(6000)]
    assert set(map(tuple, map(sorted, orders))) == {(0, 1, 2)}
    counts = torch.tensor([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert (counts / 6000 - 1 / 6).abs().max() < 5 * (5 / 36 / 6000) ** 0.5
