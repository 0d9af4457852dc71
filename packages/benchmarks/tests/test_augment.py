"""Augmentation against loops over images and pixels, with the random choices given."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from mimo_benchmarks.data.vision.augment import (
    CORRECTED,
    NONE,
    PUBLISHED,
    augment_images,
    beta_quantiles,
    crop_and_mirror,
    draw_augmentation,
    mixup_partners,
    rotate_scale_shift,
    varied_batch,
)
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.settings import AugmentConfig
from mimo_benchmarks.tasks.registry import TASKS


def augmentation_key(seed=5):
    return torch.tensor([seed, 4_000_000_000])


def drawn_choices(config, groups, n, seed=5):
    return draw_augmentation(config, groups, n, augmentation_key(seed), beta_quantiles(config.mixup, torch.device("cpu")))


def rotated_by_loops(images, uniform, config):
    """Rotate, scale and shift image by image and pixel by pixel, with bilinear interpolation and zeros outside."""
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
def test_rotate_scale_shift_equals_the_loops(shape):
    images, config = torch.rand(shape), replace(NONE, rotate=20, shift=1.5, scale=0.2)
    uniform = 2 * torch.rand(shape[0], 5) - 1
    assert_close(
        rotate_scale_shift(images, uniform, config), rotated_by_loops(images, uniform, config).float(), rtol=1e-4, atol=1e-4
    )


def test_zero_amounts_change_nothing():
    images = torch.rand(3, 1, 8, 8)
    assert_close(rotate_scale_shift(images, 2 * torch.rand(3, 5) - 1, NONE), images)


def cropped(image, corner, flip, config):
    """Mirror, pad and cut one image (c h w), in the published order."""
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
        draws = drawn_choices(config, shape[0], 1, seed)
        out = crop_and_mirror(images, draws.corner, draws.flip, config)
        for place, image in enumerate(images):
            assert np.array_equal(out[place].numpy(), cropped(image, draws.corner[place], draws.flip[place], config))


def test_corners_and_mirror_images_are_uniform():
    """2,500 draws of 9 x 9 corners and of a coin: each share is within 5 standard deviations."""
    draws = drawn_choices(replace(NONE, crop=4, flip=True), 2500, 1)
    for axis in draws.corner.T:
        counts = torch.bincount(axis, minlength=9).double()
        assert (counts - 2500 / 9).abs().max() < 5 * (2500 * 8 / 81) ** 0.5
    assert abs(draws.flip.double().mean() - 0.5) < 5 * 0.5 / 50
    assert not drawn_choices(NONE, 2500, 1).flip.any()


def test_rotation_scales_and_shifts_are_independent():
    """2,500 draws: moments of the uniform distribution from -1 to 1, and no correlation, within 5 standard deviations."""
    draws = drawn_choices(NONE, 2500, 1).affine.double()
    assert (draws.mean(0)).abs().max() < 5 * (1 / 3 / 2500) ** 0.5
    assert (draws.var(0) - 1 / 3).abs().max() < 5 * (4 / 45 / 2500) ** 0.5
    assert (torch.corrcoef(draws.T) - torch.eye(5)).abs().max() < 5 / 50


@pytest.mark.parametrize(("groups", "n"), [(2, 1), (2, 4), (3, 2), (7, 4), (32, 1)])
def test_partners_are_a_permutation_that_leaves_every_group(groups, n):
    for seed in range(20):
        partner = mixup_partners(groups, n, augmentation_key(seed))
        assert sorted(partner.tolist()) == list(range(groups * n))
        assert all(place // n != other // n for place, other in enumerate(partner.tolist()))
        for group in partner.view(groups, n) // n:
            assert len(set(group.tolist())) == min(n, groups - 1)  # mixed with as many other groups as possible


def test_partners_are_uniform_over_the_other_groups():
    """6,000 draws for 4 groups of 3: each of the 9 partners of each place is within 5 standard deviations of 1/9."""
    draws = torch.stack([mixup_partners(4, 3, augmentation_key(seed)) for seed in range(6000)])
    for place in range(12):
        share = torch.bincount(draws[:, place], minlength=12).double() / 6000
        others = [other for other in range(12) if other // 3 != place // 3]
        assert (share[others] - 1 / 9).abs().max() < 5 * (8 / 81 / 6000) ** 0.5


def test_one_group_has_no_partners():
    with pytest.raises(ConfigError, match="there is only 1 group"):
        drawn_choices(replace(NONE, mixup=1), 1, 4)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_beta(alpha):
    """20,000 draws: mean 1/2 and variance 1 / (8 alpha + 4), within 5 standard deviations (for the variance, of at most 1/4)."""
    shares = drawn_choices(replace(NONE, mixup=alpha), 20_000, 1).share.double()
    variance = 1 / (8 * alpha + 4)
    assert abs(shares.mean() - 0.5) < 5 * (variance / 20_000) ** 0.5
    assert abs(shares.var() - variance) < 5 * (variance / 4 / 20_000) ** 0.5


def test_a_share_for_each_image_or_one_for_all():
    each, one = (drawn_choices(replace(NONE, mixup=1, mixup_each=each), 8, 2).share for each in (True, False))
    assert len(set(each.tolist())) == 16
    assert len(set(one.tolist())) == 1
    assert drawn_choices(NONE, 8, 2).share.tolist() == [1] * 16


def augmented_by_loop(images, index, draws, config):
    """Vary and mix a batch, image by image in float64."""
    varied = []
    for place, item in enumerate(index.tolist()):
        image = torch.from_numpy(cropped(images[item], draws.corner[place], draws.flip[place], config).copy()).double()
        varied.append(rotated_by_loops(image[None], draws.affine[place : place + 1], config)[0] if config.rotate else image)
    return torch.stack(
        [
            float(share) * varied[place] + (1 - float(share)) * varied[partner]
            for place, (share, partner) in enumerate(zip(draws.share, draws.partner.tolist(), strict=True))
        ]
    )


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
    index, draws = torch.randperm(20)[:12], drawn_choices(config, 6, 2)
    rows = torch.tensor([4, 5, 0, 11])
    assert_close(
        augment_images(images, index, draws, rows, config).double(),
        augmented_by_loop(images, index, draws, config)[rows],
        rtol=1e-4,
        atol=0.05,
    )


def batch_arguments(name):
    """Return the arguments of `varied_batch` for 6 groups of 2, in the second of two processes."""
    config = CONFIGS[name]
    images, index = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8), torch.randperm(20)[:12]
    quantiles = beta_quantiles(config.mixup, torch.device("cpu"))
    gain, offset = torch.tensor([0.5, 1.0, 2.0])[:, None, None] / 255, torch.tensor([0.1, 0.0, -1.0])[:, None, None]
    tensors = images, torch.arange(20) % 7, index, augmentation_key(), quantiles, gain, offset
    return tensors, {"config": config, "n": 2, "classes": 7, "rank": 1, "world": 2}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_is_normalised_and_its_targets_are_mixed_alike(name):
    tensors, options = batch_arguments(name)
    images, labels, index, _, _, gain, offset = tensors
    draws, rows = drawn_choices(CONFIGS[name], 6, 2), torch.tensor([2, 3, 6, 7, 10, 11])
    x, y = varied_batch(*tensors, **options)
    assert_close(x.double(), (augmented_by_loop(images, index, draws, CONFIGS[name]) * gain + offset)[rows], rtol=1e-4, atol=1e-3)
    expected = torch.zeros(6, 7)
    for place, row in enumerate(rows.tolist()):
        expected[place, labels[index[row]]] += draws.share[row]
        expected[place, labels[index[draws.partner[row]]]] += 1 - draws.share[row]
    assert_close(y, expected)


@pytest.mark.unchecked
@pytest.mark.once
def test_compiled_equals_eager():
    """It compiles, as on a GPU, to one graph without a break."""
    tensors, options = batch_arguments("all")
    compiled = torch.compile(varied_batch, fullgraph=True)
    for ours, theirs in zip(compiled(*tensors, **options), varied_batch(*tensors, **options), strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_gives_the_same_images(name):
    torch.manual_seed(0)
    tensors, options = batch_arguments(name)
    moved = [tensor.cuda() for tensor in tensors]
    for ours, theirs in zip(torch.compile(varied_batch)(*moved, **options), varied_batch(*tensors, **options), strict=True):
        assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)


def test_published_and_corrected_differ_in_the_two_defects():
    assert CORRECTED.keys() == PUBLISHED.keys() <= TASKS.keys()
    for name, ours in CORRECTED.items():
        theirs = PUBLISHED[name]
        assert (ours.mixup, ours.mixup_each, theirs.mixup_each) == (1, True, False)
        assert replace(theirs, mixup_each=True, flip=ours.flip) == ours
        assert (theirs.flip != ours.flip) == (name == "mnist20")
    assert [(CORRECTED[name].crop, CORRECTED[name].border) for name in ("cifar10", "svhn")] == [(4, "reflect"), (2, "zero")]
