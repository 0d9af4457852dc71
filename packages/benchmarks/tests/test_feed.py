"""A step sees what (seed, step) decides and nothing else, images and sequences alike."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from mimo_benchmarks.data.long_range_arena.sequences import Sequences
from mimo_benchmarks.data.vision.augment import NONE
from mimo_benchmarks.data.vision.images import Split
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.presets.find import quickstart
from mimo_benchmarks.settings import OptimConfig, RunConfig
from mimo_benchmarks.tasks.image_task import ImageTask
from mimo_benchmarks.tasks.image_task import numbered as names
from mimo_benchmarks.tasks.sequence_task import SequenceTask
from mimo_benchmarks.training.feed import Feed, n_of_steps
from mimoconv import WideResNetConfig
from mimoformer import MIMOFormerConfig

ALL = replace(NONE, rotate=3, crop=1, flip=True, mixup=1)


def numbered(count: int) -> ImageTask:
    """Images whose pixels and labels both tell their place in the set."""
    index = torch.arange(count)
    split = Split(images=index.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8), labels=index)
    return ImageTask(name="numbered", train=split, test=split, class_names=names(count), scale=1)


def config(seed=0, groups=5, augment=NONE):
    return replace(quickstart(), seed=seed, optim=OptimConfig(groups=groups), augment=augment)


def step_of(settings, step, n, count=100, task=None, rank=0, world=1, part=0):
    """Images and targets of a step of a run in which every step has n inputs a pass."""
    settings = replace(settings, n=(n,), n_odds=(1,))
    feed = Feed(task or numbered(count), settings, rank, world)
    images, mask, targets = feed.batch(feed.draw(step), part)
    assert mask is None
    return images, targets


def test_a_step_is_the_same_whatever_came_before():
    settings = config(augment=ALL)
    whole = [step_of(settings, step, 2) for step in range(1, 6)]
    torch.rand(7)  # the global generator does not matter
    alone = step_of(settings, 4, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole[3], alone, strict=True))
    assert not torch.equal(step_of(config(seed=1, augment=ALL), 4, 2)[1], alone[1])
    assert not torch.equal(whole[2][1], alone[1])


def test_every_step_draws_anew():
    """The same image, turned by other angles."""
    task = replace(
        numbered(1), train=Split(images=torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8), labels=torch.zeros(1).long())
    )
    first, second = (step_of(config(augment=replace(NONE, rotate=30)), step, 1, count=1, task=task)[0] for step in (1, 2))
    assert len({tuple(image.flatten().tolist()) for image in torch.cat([first, second])}) == 10


@pytest.mark.parametrize("n", [1, 2, 4])
def test_images_keep_their_labels(n):
    x, y = step_of(config(), 3, n)
    assert x.shape == (5, n, 1, 8, 8)
    assert y.shape == (5, n, 100)
    assert torch.equal(y.sum(-1), torch.ones(5, n))
    assert torch.equal(x[..., 4, 4].squeeze(2), y.argmax(-1).float())


def test_targets_are_mixed_as_the_images_are():
    """With pixels that count the images, the mean of the targets is the mixed pixel."""
    x, y = step_of(config(augment=replace(NONE, mixup=1)), 3, 2)
    assert_close(x[..., 0, 0].squeeze(2), (y * torch.arange(100)).sum(-1), rtol=1e-5, atol=1e-4)
    assert (y.amax(-1) < 1).all()
    assert_close(y.sum(-1), torch.ones(5, 2))


def test_more_images_than_the_set_holds():
    _, y = step_of(config(), 1, 4, count=8)
    counts = y.sum((0, 1))
    assert counts.min() >= 2
    assert counts.max() <= 3


@pytest.mark.parametrize("n", [1, 2])
def test_processes_share_what_one_process_would_see(n):
    settings = config(groups=6, augment=ALL)
    whole = step_of(settings, 2, n)
    for rank in (0, 1, 2):
        part = step_of(settings, 2, n, rank=rank, world=3)
        for tensor, own in zip(whole, part, strict=True):
            assert_close(tensor[rank::3], own)


def test_accumulated_parts_share_what_a_step_holds():
    settings = config(groups=6, augment=ALL)
    parts = replace(settings, optim=replace(settings.optim, accumulate=3))
    whole = step_of(settings, 2, 2)
    for part in (0, 1, 2):
        for tensor, own in zip(whole, step_of(parts, 2, 2, part=part), strict=True):
            assert_close(tensor[part::3], own)


def test_a_plain_network_sees_the_same_images_one_by_one():
    """What a superposed one of the same n sees, in the same order."""
    settings = config(augment=ALL)
    plain = replace(settings, model=WideResNetConfig(depth=10, width=1, in_channels=1, image_size=8))
    whole, alone = step_of(settings, 3, 4), step_of(plain, 3, 4)
    assert alone[0].shape == (20, 1, 1, 8, 8)
    for grouped, single in zip(whole, alone, strict=True):
        assert torch.equal(grouped.flatten(0, 1), single.flatten(0, 1))


def test_images_are_normalised():
    task = replace(numbered(100), scale=255, mean=(0.5,), std=(0.25,))
    x, y = step_of(config(), 1, 2, task=task)
    assert_close(x[..., 0, 0].squeeze(2), (y.argmax(-1) / 255 - 0.5) / 0.25)
    assert_close(task.pixels(task.train.images[[0, 51]])[:, 0, 0, 0], torch.tensor([-2.0, -1.2]))


def test_n_follows_its_odds():
    """1,000 draws with odds 1:1:2, each within 5 standard deviations."""
    settings = replace(quickstart(), n_odds=(1, 1, 2), optim=OptimConfig(steps=1000))
    drawn = torch.tensor(n_of_steps(settings))
    for n, share in ((1, 0.25), (2, 0.25), (4, 0.5)):
        assert abs((drawn == n).double().mean() - share) < 5 * (share * (1 - share) / 1000) ** 0.5
    never = replace(settings, n_odds=(0, 1, 0))
    assert set(n_of_steps(never)) == {2}


def test_n_of_a_step_depends_on_seed_and_step_alone():
    def drawn(steps, seed):
        return n_of_steps(replace(quickstart(), seed=seed, optim=OptimConfig(steps=steps)))

    assert drawn(1000, 0)[:10] == drawn(10, 0)
    assert drawn(100, 0) != drawn(100, 1)


def test_steps_of_a_curriculum_hold_as_many_inputs():
    """Four passes of four images each, and at first 16 of one and eight of two."""
    settings = replace(config(groups=4), n=(4,), n_odds=(1,), curriculum=(1, 2), curriculum_share=0.2)
    feed = Feed(numbered(100), replace(settings, optim=replace(settings.optim, steps=10)))
    assert [feed.batch(feed.draw(step))[0].shape[:2] for step in (1, 2, 3)] == [(16, 1), (8, 2), (4, 4)]
    assert feed.inputs(10) == 160


def test_a_curriculum_comes_first():
    """30 steps of a curriculum of two n, then draws as without one."""
    base = replace(quickstart(), n=(4,), n_odds=(1,), optim=OptimConfig(steps=100))
    with_one = replace(base, curriculum=(1, 2), curriculum_share=0.3)
    assert n_of_steps(with_one) == [1] * 15 + [2] * 15 + [4] * 70
    drawn = replace(quickstart(), optim=OptimConfig(steps=100))
    assert n_of_steps(replace(drawn, curriculum=(2,), curriculum_share=0.3)) == [2] * 30 + n_of_steps(drawn)[30:]


def numbered_sequences():
    return Sequences.of([bytes([item] * (1 + item % 5)) for item in range(60)], range(60))


def sequence_feed(n, groups=6, accumulate=1, **processes):
    """Of a run on numbered sequences, in grids of n x n."""
    network = MIMOFormerConfig(m=n, n=n, vocab_size=64, max_length=5, num_classes=60)
    optim = OptimConfig(steps=70, groups=groups, accumulate=accumulate)
    config = RunConfig(model=network, n=(n,), n_odds=(1,), optim=optim)
    parts = {"train": numbered_sequences(), "dev": numbered_sequences(), "test": numbered_sequences()}
    task = SequenceTask(name="numbered", **parts, class_names=names(60), vocab_size=64, max_length=5)
    return Feed(task, config, **processes)


@pytest.mark.parametrize("n", [1, 2])
def test_processes_and_parts_share_the_sequences_that_one_process_would_see(n):
    """Group by group: process r takes every second one in its parts, padded to its own longest sequence."""
    for step in (1, 65):
        whole = sequence_feed(n)
        tokens, mask, labels = whole.batch(whole.draw(step))
        for rank in (0, 1):
            for part in (0, 1, 2):
                feed = sequence_feed(n, accumulate=3, rank=rank, world=2)
                own = feed.batch(feed.draw(step), part)
                place = slice(2 * part + rank, None, 6)
                length = own[0].shape[-1]
                assert torch.equal(own[0], tokens[place, ..., :length])
                assert torch.equal(own[1], mask[place, ..., :length])
                assert torch.equal(own[2], labels[place])
                assert not mask[place, ..., length:].any()


def test_grids_keep_sequences_and_labels_together():
    feed = sequence_feed(2)
    tokens, mask, labels = feed.batch(feed.draw(3))
    assert tokens.shape == mask.shape == (6, 2, 2, tokens.shape[-1])
    assert torch.equal(tokens.amax(-1), labels + 1)
    assert torch.equal(mask.sum(-1), 1 + labels % 5)


def test_groups_that_cannot_be_shared():
    with pytest.raises(ConfigError, match=r"optim.groups = 6 cannot be shared equally by 4 processes with optim.accumulate = 1"):
        sequence_feed(2, world=4)
