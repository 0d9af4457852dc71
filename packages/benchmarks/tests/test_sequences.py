"""Sequences of unequal length against loops over items and positions."""

import pytest
import torch

from mimo_benchmarks.data.long_range_arena.sequences import Sequences


def random_strings(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 9, (count,), generator=generator).tolist()
    return [bytes(torch.randint(256, (length,), generator=generator).tolist()) for length in lengths]


def tokens_by_loop(items, length, shift):
    """Return token ids, and where they are real, item by item."""
    ids, mask = torch.zeros(len(items), length, dtype=torch.long), torch.zeros(len(items), length, dtype=torch.bool)
    for row, item in enumerate(items):
        for place, value in enumerate(item[:length]):
            if value + shift != 0:
                ids[row, place], mask[row, place] = value + shift, True
    return ids, mask


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("length", [1, 5, 8, 12])
def test_tokens_equal_the_loop(length, shift):
    items = random_strings(30)
    items[3] = bytes([0, 255, 0])
    sequences = Sequences.of(items, range(30), shift=shift)
    index = torch.tensor([29, 3, 0, 3, 17])
    tokens, mask = sequences.tokens(index, length)
    expected, real = tokens_by_loop([items[place] for place in index], length, shift)
    assert torch.equal(tokens, expected)
    assert torch.equal(mask, real)
    assert sequences.lengths.tolist() == list(map(len, items))
    assert len(sequences) == 30


def test_pairs_equal_the_loop():
    items = random_strings(20)
    pairs = Sequences.of(items, [0, 1] * 5, parts=2)
    tokens, mask = pairs.tokens(torch.tensor([9, 0, 4]), 10)
    assert tokens.shape == (3, 2, 10)
    for row, place in enumerate((9, 0, 4)):
        expected, real = tokens_by_loop(items[2 * place : 2 * place + 2], 10, 1)
        assert torch.equal(tokens[row], expected)
        assert torch.equal(mask[row], real)
    assert pairs.lengths.tolist() == [max(len(items[2 * pair]), len(items[2 * pair + 1])) for pair in range(10)]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_part_holds_its_items_alone(parts):
    items = random_strings(12)
    whole = Sequences.of(items, range(12 // parts), parts=parts)
    part = whole.part(2, 5)
    assert bytes(part.values.tolist()) == b"".join(items[2 * parts : 5 * parts])
    assert part.labels.tolist() == [2, 3, 4]
    for ours, theirs in zip(part.tokens(torch.arange(3), 9), whole.tokens(torch.arange(2, 5), 9), strict=True):
        assert torch.equal(ours, theirs)


def test_rows_are_sequences_of_equal_length():
    values = torch.randint(256, (4, 6), dtype=torch.uint8)
    rows = Sequences.rows(values, torch.arange(4), shift=0)
    same = Sequences.of([bytes(row.tolist()) for row in values], range(4), shift=0)
    assert rows.shift == 0
    for name in ("values", "offsets", "labels"):
        assert torch.equal(getattr(rows, name), getattr(same, name))


def test_to_another_device_takes_everything_along():
    moved = Sequences.of(random_strings(4), [0, 1], parts=2, shift=0).to(torch.device("meta"))
    assert {moved.values.device.type, moved.offsets.device.type, moved.labels.device.type} == {"meta"}
    assert (moved.parts, moved.shift) == (2, 0)
