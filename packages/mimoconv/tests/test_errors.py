"""Every wrong argument is refused with its value and the expectation."""

import pytest
import torch
from test_mimoconv import small

from mimoconv import MIMOConvConfig, WideResNet, WideResNetConfig, count_macs, predict, recalibrate

pytestmark = pytest.mark.unchecked  # these errors are ours, not the shape checker's


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"stem_channels": 0}, "stem_channels must be at least 1, got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"depth": 12}, r"depth must be 6k \+ 4 .* got 12"),
        ({"depth": 4}, "got 4"),
        ({"width": 0.01}, "width must leave at least one channel of 16, got 0.01"),
        ({"in_channels": -1}, "in_channels must be at least 1, got -1"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_configurations_that_cannot_work(options, named):
    with pytest.raises(ValueError, match=named):
        MIMOConvConfig(**options)


def test_wide_resnet_configuration():
    with pytest.raises(ValueError, match="stem_channels must be at least 1, got 0"):
        WideResNetConfig(stem_channels=0)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((2, 0, 2, 8, 8), "0 superposed images, but this network has 4 slots"),
        ((2, 5, 2, 8, 8), "5 superposed images, but this network has 4 slots"),
        ((2, 2, 3, 8, 8), r"\(2, 2, 3, 8, 8\); expected \(b n c h w\) with c = 2"),
        ((2, 2, 8, 8), r"\(2, 2, 8, 8\); expected"),
    ],
)
def test_images_that_do_not_fit(shape, named):
    with pytest.raises(ValueError, match=named):
        small(4)(torch.zeros(shape, dtype=torch.float64))


def test_images_for_the_wide_resnet():
    with pytest.raises(ValueError, match=r"\(8, 8\); expected"):
        WideResNet(WideResNetConfig(depth=10, width=1))(torch.zeros(8, 8))


def test_integer_images():
    with pytest.raises(TypeError, match=r"torch\.uint8; scale and normalise"):
        small(4)(torch.zeros(2, 2, 2, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("n", [0, -1, 5])
def test_n_beyond_capacity(n):
    model, images = small(4), torch.zeros(3, 2, 8, 8, dtype=torch.float64)
    for call in (lambda: predict(model, images, n), lambda: recalibrate(model, [images], n), lambda: count_macs(model, n)):
        with pytest.raises(ValueError, match=f"{n} superposed images, but this network has 4 slots"):
            call()


def test_recalibrate_needs_a_batch():
    with pytest.raises(ValueError, match="batches is empty"):
        recalibrate(small(4), [], 2)
