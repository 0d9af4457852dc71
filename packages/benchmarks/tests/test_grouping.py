"""What a step sees depends on (seed, step) and on nothing else."""

from dataclasses import replace

import pytest
import torch

from mimo_benchmarks.config import AugmentConfig, OptimConfig
from mimo_benchmarks.grouping import STREAMS, batch, generator, inputs_per_pass
from mimo_benchmarks.presets import quickstart
from mimo_benchmarks.tasks import Split, Task

CPU = torch.device("cpu")
STILL = AugmentConfig(rotate=0, shift=0, scale=0)


def numbered(count: int) -> Task:
    """Images whose pixels and labels both tell their place in the set."""
    index = torch.arange(count)
    split = Split(images=index.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8), labels=index)
    return Task(name="numbered", train=split, test=split, classes=count, scale=1)


def config(seed=0, groups=5, augment=STILL):
    return replace(quickstart(), seed=seed, optim=OptimConfig(groups=groups), augment=augment)


@pytest.mark.parametrize("stream", STREAMS)
def test_generators_differ_by_seed_step_and_stream_alone(stream):
    def draw(seed, step, stream):
        return torch.rand(4, generator=generator(seed, step, stream)).tolist()

    assert draw(1, 2, stream) == draw(1, 2, stream)
    others = [draw(2, 2, stream), draw(1, 3, stream), draw(2, 1, stream)]
    others += [draw(1, 2, other) for other in STREAMS if other != stream]
    assert draw(1, 2, stream) not in others


def test_a_step_is_the_same_whatever_came_before():
    task, settings = numbered(100), config(augment=AugmentConfig())
    whole = [batch(task, settings, step, inputs_per_pass(settings, step), CPU) for step in range(1, 6)]
    alone = batch(task, settings, 4, inputs_per_pass(settings, 4), CPU)
    assert all(torch.equal(a, b) for a, b in zip(whole[3], alone, strict=True))
    torch.rand(7)  # the global generator does not matter
    assert torch.equal(batch(task, settings, 4, 2, CPU)[0], batch(task, settings, 4, 2, CPU)[0])
    assert not torch.equal(batch(task, config(seed=1), 4, 2, CPU)[1], batch(task, config(), 4, 2, CPU)[1])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_images_keep_their_labels_and_none_comes_twice(n):
    x, y = batch(numbered(100), config(), 3, n, CPU)
    assert x.shape == (5, n, 1, 8, 8)
    assert torch.allclose(x[..., 4, 4].squeeze(2), y.float())
    assert len(set(y.flatten().tolist())) == 5 * n


def test_more_images_than_the_set_holds():
    _, y = batch(numbered(8), config(groups=5), 1, 4, CPU)
    counts = torch.bincount(y.flatten(), minlength=8)
    assert counts.min() >= 2
    assert counts.max() <= 3


def test_n_follows_its_odds():
    """1,000 draws with odds 1:1:2, each within 5 standard deviations."""
    settings = replace(quickstart(), n_odds=(1, 1, 2))
    drawn = torch.tensor([inputs_per_pass(settings, step) for step in range(1000)])
    for n, share in ((1, 0.25), (2, 0.25), (4, 0.5)):
        assert abs((drawn == n).double().mean() - share) < 5 * (share * (1 - share) / 1000) ** 0.5
    never = replace(quickstart(), n_odds=(0, 1, 0))
    assert {inputs_per_pass(never, step) for step in range(50)} == {2}
