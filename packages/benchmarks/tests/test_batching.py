"""Which items a step sees: a function of (seed, step), whatever came before and whoever asks."""

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mimo_benchmarks.data.batching import STREAMS, WINDOW, Batches, by_length, padding, pass_order, random_generator


def lengths(count, seed=3):
    """Unequal ones, long tail and all."""
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)).reciprocal() * 10).long().clamp(max=1000)


@pytest.mark.parametrize("stream", STREAMS)
def test_generators_differ_by_seed_step_and_stream_alone(stream):
    def draw(seed, step, stream):
        return torch.rand(4, generator=random_generator(seed, step, stream)).tolist()

    assert draw(1, 2, stream) == draw(1, 2, stream)
    others = [draw(2, 2, stream), draw(1, 3, stream), draw(2, 1, stream)]
    others += [draw(1, 2, other) for other in STREAMS if other != stream]
    assert draw(1, 2, stream) not in others


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("sizes", [[7] * 40, [3, 12, 5, 1] * 50, [250] * 3])
def test_every_item_comes_once_a_pass(sizes, sort):
    """And the items of a pass are spread over its steps alone: in the windows' order if sorted, in the steps' if not."""
    count = 100
    batches = Batches(count, sizes, 0, lengths=lengths(count) if sort else None)
    seen = [batches.at(step) for step in range(1, len(sizes) + 1)]
    assert list(map(len, seen)) == sizes
    counts = torch.bincount(torch.cat(seen), minlength=count)
    assert counts.max() - counts.min() <= 1
    if not sort:
        passes = torch.cat(seen)[: sum(sizes) // count * count].view(-1, count)
        for epoch, items in enumerate(passes):
            assert torch.equal(items, pass_order(count, 0, epoch))
        assert len({tuple(items.tolist()) for items in passes}) == len(passes)


def test_another_seed_is_another_order():
    assert Batches(100, [9] * 3, 0).at(2).tolist() != Batches(100, [9] * 3, 1).at(2).tolist()


@pytest.mark.parametrize("sort", [False, True])
def test_a_run_resumes_at_any_step(sort):
    sizes = [5, 2, 9] * 60
    options = {"lengths": lengths(70) if sort else None}
    whole = list(Batches(70, sizes, 4, **options))
    for start in (1, 2, WINDOW, WINDOW + 1, WINDOW + 2, 180):
        resumed = Batches(70, sizes, 4, **options, start=start)
        assert len(resumed) == 181 - start
        assert list(resumed) == whole[start - 1 :]


def test_a_longer_run_starts_alike():
    assert list(Batches(70, [6] * 30, 4)) == list(Batches(70, [6] * 90, 4))[:30]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # it forks before any tensor work
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than cores
@pytest.mark.parametrize("workers", [0, pytest.param(3, marks=pytest.mark.once)])
def test_workers_make_no_difference(workers):
    """They are forked: a worker that starts afresh takes seconds to import torch, and gets the same items."""
    items = TensorDataset(torch.arange(50))
    batches = Batches(50, [8] * 20, 1, lengths=lengths(50), start=3)
    context = multiprocessing.get_context("fork") if workers else None
    loader = DataLoader(items, batch_sampler=batches, num_workers=workers, multiprocessing_context=context)
    assert [batch.tolist() for (batch,) in loader] == [batches.at(step).tolist() for step in range(3, 21)]


def test_batches_are_of_like_length_and_in_no_order_of_length():
    """Padding falls from more than half to a sixth, with lengths from 10 to 1,000, and long sequences come at any time."""
    real = lengths(5000)
    sizes = [32] * 312
    like, chance = (Batches(5000, sizes, 0, lengths=sort) for sort in (real, None))
    shares = [padding(real[:, None], [batches.at(step) for step in range(1, 313)]) for batches in (like, chance)]
    assert shares[0] < 0.2
    assert shares[1] > 0.6
    longest = torch.tensor([float(real[like.at(step)].max()) for step in range(1, WINDOW + 1)])
    assert abs(torch.corrcoef(torch.stack([longest, torch.arange(WINDOW)]))[0, 1]) < 0.5  # sorted they would be above 0.6
    for step in (1, 100):
        inside = real[like.at(step)]
        assert torch.equal(inside, inside.sort().values)


def test_the_order_of_lengths_follows_the_seed():
    """Also where all steps hold the same lengths."""
    real = torch.arange(64).repeat_interleave(4)
    orders = [[int(real[batch[0]]) for batch in Batches(256, [4] * 64, seed, lengths=real)] for seed in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(64))
    assert orders[0] != orders[1]


def test_padding_by_hand():
    batches = [torch.tensor([0, 1]), torch.tensor([2, 3])]
    assert padding(torch.tensor([[1], [4], [2], [2]]), batches) == pytest.approx(3 / 12)
    assert padding(torch.tensor([[1, 4], [2, 2]]), [torch.tensor([0, 1])]) == pytest.approx(7 / 16)


@pytest.mark.parametrize("count", [500, 2100, 65])
def test_no_item_shares_a_batch_with_itself_but_where_passes_meet(count):
    """Whose windows hold several passes, or the end of one and the start of the next."""
    batches = Batches(count, [32] * 200, 0, lengths=lengths(count))
    twice = sum(len(set(batches.at(step).tolist())) < 32 for step in range(1, 201))
    assert twice <= 200 * 32 // count
    counts = torch.bincount(torch.cat([batches.at(step) for step in range(1, 201)]), minlength=count)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("size", [1, 7, 32, 1000])
def test_evaluation_drops_nothing(size):
    real = lengths(100)
    batches = by_length(real, size)
    assert sorted(torch.cat(batches).tolist()) == list(range(100))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    ordered = real[torch.cat(batches)]
    assert torch.equal(ordered, ordered.sort().values)
