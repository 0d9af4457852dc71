"""Random numbers by key and place: a permutation, uniform, and without ties between neighbours, streams and keys."""

import pytest
import torch

from mimo_benchmarks.data.vision.chance import below, mixed, permutation, scattered, uniform

KEY = torch.tensor([123, 2**32 - 1])


def loop(word):
    """In Python's integers, which never overflow."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1)):
        word = (word ^ word >> shift) * factor % 2**32
    return word


def test_mixed_equals_the_loop():
    words = [0, 1, 2**31, 2**32 - 1, *range(1000, 1100)]
    assert mixed(torch.tensor(words)).tolist() == list(map(loop, words))


def test_a_number_depends_on_key_stream_and_place_alone():
    long, short = scattered(KEY, 3, 1000), scattered(KEY, 3, 10)
    assert torch.equal(long[:10], short)
    assert long.tolist() == [loop(loop((16 * place + 3) ^ 123) ^ 2**32 - 1) for place in range(1000)]
    others = [scattered(KEY, 4, 1000), scattered(KEY.flip(0), 3, 1000), scattered(KEY + torch.tensor([1, 0]), 3, 1000)]
    for other in others:
        assert not (other == long).any()


def test_uniform_by_its_moments_and_its_neighbours():
    """100,000 numbers: mean, variance, and correlations with the next, other streams and other keys; 5 standard deviations."""
    count = 100_000
    x = uniform(KEY, 0, count).double()
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(x.mean() - 1 / 2) < 5 * (1 / 12 / count) ** 0.5
    assert abs(x.var() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5
    others = [
        x.roll(1),
        x.roll(16),
        uniform(KEY, 1, count),
        uniform(KEY + 1, 0, count),
        uniform(KEY ^ torch.tensor([16, 0]), 0, count),
    ]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([x, other.double()]))[0, 1]) < 5 / count**0.5


def test_every_bit_is_a_fair_coin():
    bits = scattered(KEY, 2, 10_000)[:, None] >> torch.arange(32) & 1
    assert (bits.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / 100


@pytest.mark.parametrize("limit", [1, 2, 9, 2**24])
def test_below_stays_below(limit):
    numbers = below(limit, KEY, 0, 10_000)
    assert numbers.min() >= 0
    assert numbers.max() < limit
    counts = torch.bincount(numbers * min(limit, 9) // limit)
    assert (counts - 10_000 / len(counts)).abs().max() < 5 * (10_000 / len(counts)) ** 0.5


def test_permutations_are_all_alike_likely():
    """6,000 of 3 things: each of 6 orders within 5 standard deviations of a sixth."""
    orders = [tuple(permutation(torch.tensor([seed, 1]), 5, 3).tolist()) for seed in range(6000)]
    assert set(map(tuple, map(sorted, orders))) == {(0, 1, 2)}
    counts = torch.tensor([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert (counts / 6000 - 1 / 6).abs().max() < 5 * (5 / 36 / 6000) ** 0.5
