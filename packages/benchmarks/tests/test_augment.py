"""How images are varied: against loops over images and pixels, with the draws given."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mimo_benchmarks.config import AugmentConfig
from mimo_benchmarks.data.augment import CORRECTED, NONE, PUBLISHED, Draws, affine, augment, beta, crop, draw, partners
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.tasks import TASKS


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def affine_loops(images, uniform, config):
    """Image by image and pixel by pixel, with bilinear interpolation and zeros outside."""
    b, _c, height, width = images.shape
    images = images.double()
    out = torch.zeros(images.shape, dtype=torch.float64)
    for i in range(b):
        angle = float(uniform[i, 0]) * math.radians(config.rotate)
        scale_x, scale_y = (1 + float(u) * config.scale for u in uniform[i, 1:3])
        shift_x, shift_y = (float(u) * config.shift * 2 for u in uniform[i, 3:])
        for row in range(height):
            for column in range(width):
                x, y = (2 * column + 1) / width - 1, (2 * row + 1) / height - 1  # pixel centres on -1..1
                at_x = math.cos(angle) * scale_x * x - math.sin(angle) * scale_y * y + shift_x / width
                at_y = math.sin(angle) * scale_x * x + math.cos(angle) * scale_y * y + shift_y / height
                source_column, source_row = ((at_x + 1) * width - 1) / 2, ((at_y + 1) * height - 1) / 2
                for r in (math.floor(source_row), math.floor(source_row) + 1):
                    for s in (math.floor(source_column), math.floor(source_column) + 1):
                        if 0 <= r < height and 0 <= s < width:
                            weight = (1 - abs(source_row - r)) * (1 - abs(source_column - s))
                            out[i, :, row, column] += weight * images[i, :, r, s]
    return out


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 2, 5, 9)])
def test_affine_equals_the_loops(shape):
    images, config = torch.rand(shape), replace(NONE, rotate=20, shift=1.5, scale=0.2)
    uniform = 2 * torch.rand(shape[0], 5) - 1
    assert_close(affine(images, uniform, config), affine_loops(images, uniform, config).float(), rtol=1e-4, atol=1e-4)


def test_affine_of_zero_amounts_changes_nothing():
    images = torch.rand(3, 1, 8, 8)
    assert_close(affine(images, 2 * torch.rand(3, 5) - 1, NONE), images)


def cropped(image, corner, flip, config):
    """One image (c h w) as the published order has it: mirrored, padded, cut."""
    pixels = image.numpy()
    if flip:
        pixels = pixels[:, :, ::-1]
    padding = [(0, 0), (config.crop, config.crop), (config.crop, config.crop)]
    mode = {"reflect": "reflect", "zero": "constant"}[config.border]
    row, column = corner.tolist()
    height, width = pixels.shape[1:]
    return np.pad(pixels, padding, mode=mode)[:, row : row + height, column : column + width]


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize(("shape", "pixels"), [((9, 3, 32, 32), 4), ((6, 1, 5, 7), 4), ((4, 2, 8, 8), 0), ((3, 1, 1, 1), 0)])
def test_crop_and_flip_equal_the_loop(shape, pixels, border):
    images = torch.randint(1, 256, shape, dtype=torch.uint8)
    config = replace(NONE, crop=pixels, border=border, flip=True)
    for seed in range(5):
        draws = draw(config, shape[0], 1, generator(seed))
        out = crop(images, draws.corner, draws.flip, config)
        for place, image in enumerate(images):
            assert np.array_equal(out[place].numpy(), cropped(image, draws.corner[place], draws.flip[place], config))


def test_every_corner_and_both_mirror_images_come_alike():
    """2,500 draws of 9 x 9 corners and a coin, each within 5 standard deviations."""
    draws = draw(replace(NONE, crop=4, flip=True), 2500, 1, generator())
    for axis in draws.corner.T:
        counts = torch.bincount(axis, minlength=9).double()
        assert (counts - 2500 / 9).abs().max() < 5 * (2500 * 8 / 81) ** 0.5
    assert abs(draws.flip.double().mean() - 0.5) < 5 * 0.5 / 50
    assert not draw(NONE, 2500, 1, generator()).flip.any()


@pytest.mark.parametrize(("groups", "n"), [(2, 1), (2, 4), (3, 2), (7, 4), (32, 1)])
def test_partners_are_a_permutation_that_leaves_every_group(groups, n):
    for seed in range(20):
        partner = partners(groups, n, generator(seed))
        assert sorted(partner.tolist()) == list(range(groups * n))
        assert all(place // n != other // n for place, other in enumerate(partner.tolist()))


def test_every_place_of_every_other_group_is_as_likely_a_partner():
    """6,000 draws for 4 groups of 3: each of 9 partners of each place within 5 standard deviations of 1/9."""
    draws = torch.stack([partners(4, 3, generator(seed)) for seed in range(6000)])
    for place in range(12):
        share = torch.bincount(draws[:, place], minlength=12).double() / 6000
        others = [other for other in range(12) if other // 3 != place // 3]
        assert (share[others] - 1 / 9).abs().max() < 5 * (8 / 81 / 6000) ** 0.5


def test_one_group_has_no_partners():
    with pytest.raises(ConfigError, match="there is 1 group"):
        draw(replace(NONE, mixup=1), 1, 4, generator())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_beta(alpha):
    """Mean 1/2 and variance 1 / (8 alpha + 4), of 20,000 draws; 5 standard deviations, those of the variance at most 1/4."""
    shares = beta(alpha, 20_000, generator()).double()
    variance = 1 / (8 * alpha + 4)
    assert abs(shares.mean() - 0.5) < 5 * (variance / 20_000) ** 0.5
    assert abs(shares.var() - variance) < 5 * (variance / 4 / 20_000) ** 0.5
    assert beta(alpha, 3, generator()).tolist() == beta(alpha, 3, generator()).tolist()


def test_a_share_for_each_image_or_one_for_all():
    each, one = (draw(replace(NONE, mixup=1, mixup_each=each), 8, 2, generator()).share for each in (True, False))
    assert len(set(each.tolist())) == 16
    assert len(set(one.tolist())) == 1
    assert draw(NONE, 8, 2, generator()).share.tolist() == [1] * 16


def augment_loop(images, index, draws, config, scale, mean, std):
    """The whole, image by image in float64."""
    varied = []
    for place, item in enumerate(index.tolist()):
        image = torch.from_numpy(cropped(images[item], draws.corner[place], draws.flip[place], config).copy()).double() / scale
        if config.rotate:
            image = affine_loops(image[None], draws.affine[place : place + 1], config)[0]
        varied.append(np.stack([(image[c] - mean[c]) / std[c] for c in range(len(mean))]))
    return [
        float(share) * varied[place] + (1 - float(share)) * varied[partner]
        for place, (share, partner) in enumerate(zip(draws.share, draws.partner.tolist(), strict=True))
    ]


CONFIGS = {
    "none": NONE,
    "cifar": CORRECTED["cifar10"],
    "cifar, published": PUBLISHED["cifar10"],
    "svhn": CORRECTED["svhn"],
    "all": AugmentConfig(rotate=10, shift=1, scale=0.1, crop=2, border="zero", flip=True, mixup=0.4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_whole_equals_the_loop(name):
    config, images = CONFIGS[name], torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    index, draws = torch.randperm(20)[:12], draw(config, 6, 2, generator())
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 1.0, 2.0])
    rows = torch.tensor([4, 5, 0, 11])
    out = augment(images, index, draws, rows, config, 255, mean, std)
    loop = augment_loop(images, index, draws, config, 255, mean.double(), std.double())
    assert_close(out.double(), torch.from_numpy(np.stack([loop[row] for row in rows])), rtol=1e-4, atol=2e-4)


@pytest.mark.unchecked
def test_compiled_equals_eager():
    """As it runs on a GPU: one graph, without a break."""
    config, images = CONFIGS["cifar"], torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    draws, stats = draw(config, 6, 2, generator()), (torch.full((3,), 0.5), torch.full((3,), 0.2))
    arguments = images, torch.randperm(20)[:12], draws, torch.arange(12), config, 255.0, *stats
    assert_close(torch.compile(augment, fullgraph=True)(*arguments), augment(*arguments))


def test_published_and_corrected_differ_in_the_two_defects():
    assert CORRECTED.keys() == PUBLISHED.keys() <= TASKS.keys()
    for name, ours in CORRECTED.items():
        theirs = PUBLISHED[name]
        assert (ours.mixup, ours.mixup_each, theirs.mixup_each) == (1, True, False)
        assert replace(theirs, mixup_each=True, flip=ours.flip) == ours
        assert (theirs.flip != ours.flip) == (name == "mnist20")
    assert [(CORRECTED[name].crop, CORRECTED[name].border) for name in ("cifar10", "svhn")] == [(4, "reflect"), (2, "zero")]


def test_draws_move_to_a_device():
    draws = draw(CONFIGS["all"], 2, 2, generator()).to(torch.device("meta"))
    assert isinstance(draws, Draws)
    assert {value.device.type for value in vars(draws).values()} == {"meta"}
