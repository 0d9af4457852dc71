"""Networks by name, and what their configurations can say."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, WideResNetConfig, create_model, list_models
from mimoconv.config import SuperposedConfig


@pytest.mark.parametrize("name", list_models())
def test_every_listed_network_can_be_created(name):
    family, depth, width = name.rsplit("_", 2)
    with torch.device("meta"):
        model = create_model(name, num_classes=100, in_channels=1)
    assert isinstance(model, MIMOConv if family == "mimoconv" else WideResNet)
    assert (model.config.depth, model.config.width) == (int(depth), float(width))
    assert model(torch.zeros(2, 1, 1, 32, 32, device="meta")).shape == (2, 1, 100)


def test_wildcards():
    assert list_models("wide_*_16_?") == ["wide_resnet_16_4", "wide_resnet_16_8", "wide_isonet_16_4", "wide_isonet_16_8"]
    assert list_models("none") == []


def test_sizes_that_are_not_listed_work_too():
    model = create_model("mimoconv_22_0.3", capacity=3)
    assert (model.config.depth, model.capacity, model.config.stages) == (22, 3, (5, 10, 19))
    assert "depth=22, width=0.3 (5, 10, 19 channels)" in repr(model)


def test_families_are_what_they_are_called():
    wide_resnet, wide_isonet = create_model("wide_resnet_10_1"), create_model("wide_isonet_10_1")
    assert [type(layer) for layer in wide_resnet.stem] == [nn.Conv2d]
    assert [type(layer) for layer in wide_isonet.stem] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert [name for name, _ in wide_resnet.body.module.named_children()][-2:] == ["norm", "activation"]
    assert [name for name, _ in wide_isonet.body.module.named_children()][-1] == "stage3"
    assert not any(isinstance(layer, nn.PReLU) for layer in wide_isonet.modules())  # slopes are MIMOConv's alone
    assert not any(isinstance(layer, nn.PReLU) for layer in wide_resnet.modules())
    assert create_model("wide_isonet_10_1", final_norm=True).config.final_norm


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("name", "options", "error", "named"),
    [
        ("mimoconv_28_11x", {}, ValueError, "no network 'mimoconv_28_11x': did you mean mimoconv_28_10"),
        ("resnet18", {}, ValueError, "no network 'resnet18'"),
        ("zzz", {}, ValueError, "names are mimoconv or wide_resnet or wide_isonet, then _DEPTH_WIDTH"),
        ("mimoconv_12_1", {}, ValueError, "depth must be 6k"),
        ("mimoconv_10_1", {"capacity": 0}, ValueError, "capacity must be at least 1, got 0"),
        ("wide_resnet_10_1", {"capacity": 2}, TypeError, "capacity"),
        ("mimoconv_10_1", {"stem": "norm"}, ValueError, "stem must be one of conv, conv-norm, conv-norm-relu, got 'norm'"),
        ("mimoconv_10_1", {"activation": "gelu"}, ValueError, "activation must be one of relu, prelu"),
        ("mimoconv_10_1", {"init": "zero"}, ValueError, "init must be one of kaiming, orthogonal, delta"),
        ("mimoconv_10_1", {"mean": (0.5,) * 3}, ValueError, "mean is .* and std is None: give both or neither"),
        ("mimoconv_10_1", {"mean": (125.3, 123, 113.9), "std": (0.2,) * 3}, ValueError, "must be from 0 to 1"),
        ("mimoconv_10_1", {"num_classes": True}, TypeError, "num_classes must be a whole number, got True"),
        ("mimoconv_10_1", {"mean": (0.5,), "std": (0.2,)}, ValueError, "must have 3 entries"),
        ("mimoconv_10_1", {"mean": (0.5,) * 3, "std": (0.2, 0.2, 0.0)}, ValueError, "std .* above 0 and at most 1"),
    ],
)
def test_what_cannot_be_created(name, options, error, named):
    with pytest.raises(error, match=named):
        create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "label"),
    [
        ("mimoconv_28_10", {"capacity": 4}, "MIMOConv-28-10"),
        ("mimoconv_16_2.5", {"capacity": 1, "activation": "relu"}, "MIMOConv-16-2.5"),
        ("wide_resnet_28_10", {}, "WideResNet-28-10"),
        ("wide_isonet_28_7", {}, "WideResNet-28-7"),
    ],
)
def test_labels_and_capacities(name, options, label):
    with torch.device("meta"):
        model = create_model(name, **options)
    assert model.config.label == label
    assert model.capacity == model.config.capacity == options.get("capacity", 1)


@pytest.mark.unchecked
@pytest.mark.parametrize("names", [("cat", "dog"), ["cat", "dog"], {"cat": 0, "dog": 1}.keys(), np.array(["cat", "dog"])])
def test_class_names_may_be_any_sequence(names, tmp_path):
    model = create_model("wide_resnet_10_1", num_classes=2, class_names=names)
    assert model.config.class_names == ("cat", "dog")
    model.save_pretrained(tmp_path)
    assert WideResNet.from_pretrained(tmp_path).config.class_names == ("cat", "dog")
    assert create_model("wide_resnet_10_1").config.class_names is None


@pytest.mark.unchecked
def test_mean_and_std_may_be_any_sequences():
    model = create_model("mimoconv_10_1", mean=[0.5] * 3, std=torch.full((3,), 0.25))
    assert (model.config.mean, model.config.std) == ((0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("training", [True, False])
def test_a_relu_before_binding(training):
    """The published stem; no longer linear, so images go through it one by one in eval mode too."""
    options = {"capacity": 2, "depth": 10, "width": 0.5, "stem_channels": 8, "in_channels": 2}
    model = MIMOConv(MIMOConvConfig(**options, stem="conv-norm-relu")).double().train(training)
    x = torch.randn(3, 2, 2, 8, 8, dtype=torch.float64)
    maps = F.relu(
        F.batch_norm(model.stem.conv(x.flatten(0, 1)), torch.zeros(8).double(), torch.ones(8).double(), training=training)
    )
    assert_close(model.superpose(x), model.binding(maps.unflatten(0, (3, 2))))


def test_the_plain_operator_of_the_paper():
    model = create_model("mimoconv_10_1", capacity=2, unbinding_relu=False)
    assert model.unbinding.bias is None
    x = torch.randn(5, 64)
    assert_close(model.unbinding(x, 2)[:, 1], x @ model.unbinding.weight[1].T)


@pytest.mark.parametrize("final_norm", [True, False])
def test_final_norm_and_activation_come_before_pooling(final_norm):
    model = create_model("mimoconv_10_1", capacity=2, final_norm=final_norm).eval()
    seen = {}
    model.body.module.stage3.register_forward_hook(lambda *arguments: seen.update(maps=arguments[-1]))
    model.unbinding.register_forward_pre_hook(lambda _, arguments: seen.update(pooled=arguments[0]))
    model(torch.randn(3, 2, 3, 16, 16))
    expected = seen["maps"]
    if final_norm:
        expected = F.prelu(expected / (1 + 1e-5) ** 0.5, torch.tensor([0.5]))
    assert_close(seen["pooled"], expected.mean((2, 3)))


@pytest.mark.parametrize("kind", [MIMOConvConfig, WideResNetConfig, SuperposedConfig])
def test_help_explains_every_field_once(kind):
    explained = re.findall(r"^ {4,8}(\w+): [\w`]", kind.__doc__.partition("Attributes:\n")[2], re.MULTILINE)
    assert set(explained) >= {field.name for field in dataclasses.fields(kind)}
    assert len(explained) == len(set(explained))
