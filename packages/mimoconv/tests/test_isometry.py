"""The isometry penalty against its definition, written as loops, and the starts at which it is 0."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mimoconv import MIMOConv, MIMOConvConfig, Superposed, WideResNet, WideResNetConfig, isometry_penalty
from mimoconv.blocks import conv
from mimoconv.isometry import convolution_isometry


def by_loops(weight, stride):
    """Half the squared distance of all shifted inner products of filters from those of orthonormal filters."""
    if weight.shape[1] < weight.shape[0]:
        weight = weight.transpose(0, 1)
    filters, channels, height, width = weight.shape
    total = torch.zeros((), dtype=weight.dtype)
    for a, b in product(range(filters), repeat=2):
        for dy, dx in product(range(1 - height, height), range(1 - width, width)):
            if dy % stride[0] or dx % stride[1]:
                continue
            inner = torch.zeros((), dtype=weight.dtype)
            for c, y, x in product(range(channels), range(height), range(width)):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    inner = inner + weight[a, c, y, x] * weight[b, c, y + dy, x + dx]
            total = total + (inner - int(a == b and dy == dx == 0)) ** 2
    return total / 2


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (4, 4), (2, 3), (5, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 3), (1, 2)])
@pytest.mark.parametrize("channels", [(3, 2), (2, 3)], ids=["more inputs", "more outputs"])
def test_value_and_gradient_are_those_of_the_definition(kernel, stride, channels):
    c_in, c_out = channels
    weight = torch.randn(c_out, c_in, *kernel, dtype=torch.float64, requires_grad=True)
    value, expected = convolution_isometry(weight, stride), by_loops(weight, stride)
    assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for result, definition in zip(*(torch.autograd.grad(v, weight) for v in (value, expected)), strict=True):
        assert_close(result, definition, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_the_published_form_is_the_same_for_its_layers(kernel, stride):
    """Conv(W, W) with padding k - 1, the layer's stride, and the identity in the middle."""
    weight = torch.randn(5, 6, kernel, kernel, dtype=torch.float64)
    gram = F.conv2d(weight, weight, padding=kernel - 1, stride=stride)
    gram[:, :, gram.shape[2] // 2, gram.shape[3] // 2] -= torch.eye(5, dtype=torch.float64)
    assert_close(convolution_isometry(weight, (stride, stride)), gram.square().sum() / 2)


def test_each_group_is_a_convolution_of_its_own():
    weight = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    expected = by_loops(weight[:3], (2, 2)) + by_loops(weight[3:], (2, 2))
    assert_close(convolution_isometry(weight, (2, 2), groups=2), expected)


def test_the_penalty_sums_over_the_body_alone():
    model = MIMOConv(MIMOConvConfig(capacity=2, depth=10, width=0.25, stem_channels=6, stem="conv-norm-relu")).double()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert len(layers) == 10  # nine in the body, shortcuts included, and the stem's
    expected = sum(convolution_isometry(layer.weight, layer.stride) for layer in layers if layer is not model.stem[0])
    assert_close(isometry_penalty(model), expected)
    isometry_penalty(model).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (name.startswith("body") and "conv" in name), name


@pytest.mark.parametrize("init", ["orthogonal", "delta"])
@pytest.mark.parametrize(
    ("kernel", "stride", "c_in", "c_out"), [(3, 1, 8, 8), (3, 2, 8, 4), (3, 1, 4, 8), (1, 2, 4, 8), (5, 1, 8, 8)]
)
def test_isometric_starts(init, kernel, stride, c_in, c_out):
    layer = conv(c_in, c_out, kernel, stride, init)
    assert convolution_isometry(layer.weight, layer.stride).item() < 1e-9
    if stride == 1 and c_in <= c_out:
        x, y = torch.randn(2, 3, c_in, 7, 7)
        assert_close((layer(x) * layer(y)).sum(), (x * y).sum(), rtol=1e-4, atol=1e-3)  # inner products are kept


def test_the_start_is_an_option_of_the_configuration():
    penalties = {init: isometry_penalty(WideResNet(WideResNetConfig(depth=10, width=0.5, init=init))).item()
                 for init in ("kaiming", "orthogonal", "delta")}  # fmt: skip
    assert penalties["kaiming"] > 10
    assert penalties["orthogonal"] < 1e-8
    assert penalties["delta"] < 1e-8
    random, unit = (WideResNet(WideResNetConfig(depth=10, width=0.5, init=init)).body.module.stage1[0].conv1.weight[:, :, 1, 1]
                    for init in ("orthogonal", "delta"))  # fmt: skip
    assert (random - torch.eye(*random.shape)).norm() > 1
    assert torch.equal(unit, torch.eye(*unit.shape))


def test_autocast_changes_nothing():
    model = WideResNet(WideResNetConfig(depth=10, width=0.5, init="orthogonal"))
    with torch.autocast("cpu", torch.bfloat16):
        assert isometry_penalty(model).item() < 1e-8


def test_a_body_with_groups_and_one_without_convolutions():
    body = nn.Conv2d(4, 6, 3, groups=2)
    grouped = Superposed(nn.Conv2d(3, 4, 3), body, nn.Linear(6, 2), 2, 4)
    assert_close(isometry_penalty(grouped), convolution_isometry(body.weight, groups=2))
    assert isometry_penalty(Superposed(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2), 2, 4)) == 0


@pytest.mark.unchecked
def test_dilated_convolutions_are_refused():
    body = nn.Conv2d(4, 4, 3, dilation=2)
    model = Superposed(nn.Conv2d(3, 4, 3), body, nn.Linear(4, 2), 2, 4)
    with pytest.raises(ValueError, match=r"dilation \(2, 2\)"):
        isometry_penalty(model)
