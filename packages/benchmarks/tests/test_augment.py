import math

import pytest
import torch
from torch.testing import assert_close

from mimo_benchmarks.config import AugmentConfig
from mimo_benchmarks.data.augment import random_affine


def generator():
    return torch.Generator().manual_seed(5)


def loops(images, config):
    """The same map, image by image and pixel by pixel, with bilinear interpolation and zeros outside."""
    b, _c, height, width = images.shape
    uniform = 2 * torch.rand(b, 5, generator=generator()) - 1
    out = torch.zeros_like(images)
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
def test_equals_the_loops(shape):
    images, config = torch.rand(shape), AugmentConfig(rotate=20, shift=1.5, scale=0.2)
    assert_close(random_affine(images, config, generator()), loops(images, config), rtol=1e-4, atol=1e-4)


def test_zero_amounts_change_nothing():
    images = torch.rand(3, 1, 8, 8)
    assert_close(random_affine(images, AugmentConfig(rotate=0, shift=0, scale=0), generator()), images)


def test_every_image_has_a_map_of_its_own():
    images = torch.rand(1, 1, 8, 8).expand(4, -1, -1, -1)
    out = random_affine(images, AugmentConfig(), generator())
    assert len({tuple(image.flatten().tolist()) for image in out}) == 4
