"""Every wrong argument is refused with its value and the expectation."""

import pytest
import torch
from test_mimoconv import small

from mimoconv import MIMOConvConfig, WideResNet, WideResNetConfig, count_macs, predict, recalibrate
from mimoconv.inference import norms_per_n

pytestmark = pytest.mark.unchecked  # these errors are ours, not the shape checker's


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"stem_channels": 0}, "stem_channels must be at least 1, got 0"),
        ({"width": float("inf")}, "width must be finite .* got inf"),
        ({"width": float("nan")}, "width must be finite .* got nan"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"depth": 12}, r"depth must be 6k \+ 4 .* got 12"),
        ({"depth": 4}, "got 4"),
        ({"width": 0.01}, "width must be finite and leave at least one channel of 16, got 0.01"),
        ({"in_channels": -1}, "in_channels must be at least 1, got -1"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
    ],
)
def test_configurations_that_cannot_work(options, named):
    with pytest.raises(ValueError, match=named):
        MIMOConvConfig(**options)


@pytest.mark.parametrize("name", ["num_classes", "depth", "in_channels", "image_size", "stem_channels", "capacity"])
@pytest.mark.parametrize("value", [16.0, True, "16", None])
def test_counts_that_are_not_whole_numbers(name, value):
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got {value!r}"):
        MIMOConvConfig(**{name: value})


@pytest.mark.parametrize("name", ["unbinding_relu", "trainable_keys", "final_norm"])
@pytest.mark.parametrize("value", [1, None, "yes"])
def test_flags_that_are_not_true_or_false(name, value):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got {value!r}"):
        MIMOConvConfig(**{name: value})


@pytest.mark.parametrize("value", ["1", None, True])
def test_widths_that_are_not_numbers(value):
    with pytest.raises(TypeError, match=f"width must be a number, got {value!r}"):
        MIMOConvConfig(width=value)


@pytest.mark.parametrize(
    ("names", "error", "named"),
    [
        (["cat"], ValueError, "class_names has 1 names, but num_classes is 2"),
        (("cat", "dog", "cow"), ValueError, "class_names has 3 names, but num_classes is 2"),
        (("cat", 3), TypeError, "class_names must be a sequence of strings"),
        ("ab", TypeError, "class_names must be a sequence of strings, got 'ab'"),
    ],
)
def test_class_names_that_do_not_fit(names, error, named):
    with pytest.raises(error, match=named):
        WideResNetConfig(num_classes=2, class_names=names)


def test_wide_resnet_configuration():
    with pytest.raises(TypeError, match="unexpected keyword argument 'capacity'"):
        WideResNetConfig(capacity=1)
    with pytest.raises(ValueError, match="stem_channels must be at least 1, got 0"):
        WideResNetConfig(stem_channels=0)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        ((2, 0, 2, 8, 8), "0 superposed inputs, but there are 4 slots"),
        ((2, 5, 2, 8, 8), "5 superposed inputs, but there are 4 slots"),
        ((2, 2, 3, 8, 8), r"\(2, 2, 3, 8, 8\); expected \(b n c h w\) with c = 2"),
        ((2, 2, 8, 8), r"\(2, 2, 8, 8\); expected"),
        ((2, 2, 2, 8, 0), r"\(2, 2, 2, 8, 0\); expected .* h and w at least 1"),
    ],
)
def test_images_that_do_not_fit(shape, named):
    with pytest.raises(ValueError, match=named):
        small(4)(torch.zeros(shape, dtype=torch.float64))


def test_images_for_the_wide_resnet():
    with pytest.raises(ValueError, match=r"\(3, 8, 8\); expected \(b \.\.\. c h w\)"):
        WideResNet(WideResNetConfig(depth=10, width=1))(torch.zeros(3, 8, 8))


def test_uint8_images_for_a_model_without_mean_and_std():
    with pytest.raises(TypeError, match="configuration has no mean and std"):
        predict(small(4), torch.zeros(4, 2, 8, 8, dtype=torch.uint8), 1)


def test_images_for_predict():
    with pytest.raises(ValueError, match=r"\(2, 8, 8\); expected \(count c h w\) with c = 2"):
        predict(small(4), torch.zeros(2, 8, 8, dtype=torch.float64), 1)


def test_integer_images():
    with pytest.raises(TypeError, match=r"torch\.uint8; scale and normalise"):
        small(4)(torch.zeros(2, 2, 2, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("n", [0, -1, 5])
def test_n_beyond_capacity(n):
    model, images = small(4), torch.zeros(3, 2, 8, 8, dtype=torch.float64)
    for call in (lambda: predict(model, images, n), lambda: recalibrate(model, [images], n), lambda: count_macs(model, n)):
        with pytest.raises(ValueError, match=f"{n} superposed inputs, but there are 4 slots"):
            call()


@pytest.mark.parametrize(
    ("batches", "error", "named"),
    [
        ([], ValueError, "holds no images"),
        ([torch.zeros(0, 2, 8, 8, dtype=torch.float64)], ValueError, "holds no images"),
        ([torch.randn(8, 2, 8, 8, dtype=torch.float64), torch.zeros(4, 3, 8, 8, dtype=torch.float64)], ValueError, "with c = 2"),
        ([torch.randn(8, 2, 8, 8, dtype=torch.float64), (torch.zeros(4, 2, 8, 8), torch.zeros(4))], TypeError, "is a tuple"),
        ([torch.zeros(8, 2, 8, 8, dtype=torch.uint8)], TypeError, "uint8"),
    ],
)
def test_a_failed_recalibration_changes_nothing(batches, error, named):
    model = small(4)
    recalibrate(model, [torch.randn(8, 2, 8, 8, dtype=torch.float64)], 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=named):
        recalibrate(model, batches, 2)
    assert model.training
    assert all(norm.momentum == 0.1 for norm in norms_per_n(model))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
