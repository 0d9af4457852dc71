"""MIMOConv against its definition, for every n that fits."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, WideResNetConfig
from mimoconv.binding import PositionwiseHRR, Unbinding, bind_in_place
from mimoconv.blocks import Block, bias_as_channel, body
from mimoconv.statistics_per_n import StatisticsPerN
from vsa_core import hrr, slots

ALL_N = [(capacity, n) for capacity in (1, 2, 3, 4, 5, 8) for n in range(1, capacity + 1)]
every_n = pytest.mark.parametrize(("capacity", "n"), ALL_N)


def small(capacity: int = 4, **options) -> MIMOConv:
    options = {"depth": 10, "width": 0.5, "stem_channels": 8, "in_channels": 2, "image_size": 8, "num_classes": 3} | options
    return MIMOConv(MIMOConvConfig(capacity=capacity, **options)).double()


@every_n
def test_any_n_up_to_capacity_runs_and_every_parameter_learns(capacity, n):
    model = small(capacity)
    logits = model(torch.randn(3, n, 2, 8, 8, dtype=torch.float64))
    assert logits.shape == (3, n, 3)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_n
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bind_and_bundle_equal_the_loop_over_slots(capacity, n, layout, dim=6):
    binding = PositionwiseHRR(capacity, dim).double()
    x = torch.randn(2 * n, dim, 3, 4, dtype=torch.float64).to(memory_format=layout).unflatten(0, (2, n))
    expected = torch.zeros(2, dim, 3, 4, dtype=torch.float64)
    for slot, source in enumerate(slots.assignment(n, capacity)):
        for row in range(3):
            for column in range(4):
                expected[:, :, row, column] += hrr.bind(x[:, source, :, row, column], binding.keys[slot])
    found = binding(x)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=layout)


@every_n
def test_a_third_axis_of_a_convolution_binds_maps_whose_channels_come_last(capacity, n):
    binding = PositionwiseHRR(capacity, 6).double()
    x = torch.randn(2 * n, 6, 3, 4, dtype=torch.float64).to(memory_format=torch.channels_last).unflatten(0, (2, n))
    assert_close(bind_in_place(x, binding.matrices(n)), binding(x), rtol=1e-12, atol=1e-12)


def test_networks_can_be_mapped_over():
    model = small(2).eval().to(memory_format=torch.channels_last)
    x = torch.randn(3, 2, 2, 2, 8, 8, dtype=torch.float64)
    assert_close(torch.vmap(model)(x), torch.stack([model(each) for each in x]))


def change_padding(stem):
    stem.conv.padding_mode = "circular"


def change_kernel(stem):
    stem.conv = nn.Conv2d(2, 8, 5, padding=1, bias=False).double()


def change_forward(stem):
    stem.conv.forward = lambda x: torch.zeros(x.shape[0], 8, *x.shape[2:], dtype=x.dtype)


def train_the_norm(stem):
    stem.norm.train()


@pytest.mark.parametrize("change", [change_padding, change_kernel, change_forward, train_the_norm])
def test_a_stem_of_another_kind_is_run_as_it_is(change):
    model = small(2, stem="conv-norm").eval()
    change(model.stem)
    x = torch.randn(3, 2, 2, 8, 8, dtype=torch.float64)
    maps = copy.deepcopy(model.stem)(x.flatten(0, 1)).unflatten(0, (3, 2))
    assert_close(model.superpose(x), model.binding(maps))


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (1, 3), (5, 3)])
def test_a_bias_may_be_a_channel(kernel):
    images, bias = torch.randn(2, 3, 6, 7, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64)
    found = F.conv2d(*bias_as_channel(images, weight, bias), padding="same")
    assert_close(found, F.conv2d(images, weight, bias, padding="same"), rtol=1e-12, atol=1e-12)


@every_n
def test_unbinding_averages_the_slots_of_an_input(capacity, n, dim=6):
    unbinding = Unbinding(capacity, dim).double()
    nn.init.normal_(unbinding.bias)
    x = torch.randn(5, dim, dtype=torch.float64)
    assignment = slots.assignment(n, capacity).tolist()
    for source in range(n):
        own = [slot for slot in range(capacity) if assignment[slot] == source]
        features = [F.relu(x @ unbinding.weight[slot].T + unbinding.bias[slot]) for slot in own]
        assert_close(unbinding(x, n)[:, source], sum(features) / len(own))


@pytest.mark.parametrize("capacity", [2, 3, 5])
def test_permuting_inputs_with_their_keys_permutes_outputs(capacity):
    model = small(capacity).eval()
    x = torch.randn(3, capacity, 2, 8, 8, dtype=torch.float64)
    order = torch.randperm(capacity)
    expected = model(x)[:, order]
    with torch.no_grad():
        for parameter in (model.binding.keys, model.unbinding.weight, model.unbinding.bias):
            parameter.copy_(parameter[order])
    assert_close(model(x[:, order]), expected, rtol=1e-10, atol=1e-10)


@every_n
def test_stem_and_binding_are_one_convolution_in_eval_mode(capacity, n):
    model = small(capacity).eval()
    for tensor in (*model.stem.norm.parameters(), model.stem.norm.running_mean):
        nn.init.normal_(tensor.data)
    model.stem.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, n, 2, 8, 8, dtype=torch.float64)
    step_by_step = model.binding(model.stem(x.flatten(0, 1)).unflatten(0, (3, n)))
    assert_close(model.superpose(x), step_by_step)


@pytest.mark.parametrize("change", ["stride", "hook", "sync"])
def test_a_stem_that_was_changed_is_used_as_it_is(change):
    model = small(2).eval()
    if change == "stride":
        model.stem.conv = nn.Conv2d(2, 8, 3, stride=2, padding=1).double()
    elif change == "hook":
        model.stem.norm.register_forward_hook(lambda _, arguments, out: 2 * out)
    else:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    x = torch.randn(3, 2, 2, 8, 8, dtype=torch.float64)
    step_by_step = model.binding(model.stem(x.flatten(0, 1)).unflatten(0, (3, 2)))
    assert_close(model.superpose(x), step_by_step)


def test_published_starts():
    """Kaiming normal, fan-out: variance 2 / (9 c_out) of the convolutions, 2 / (N D') of the unbinding, within 10 %."""
    model = MIMOConv(MIMOConvConfig(capacity=4, depth=10, width=2, stem_channels=16))
    assert model.body.module.stage3[0].conv1.weight.var().item() == pytest.approx(2 / (9 * 128), rel=0.1)
    assert model.unbinding.weight.var().item() == pytest.approx(2 / (4 * 128), rel=0.1)


def test_an_input_in_every_slot_equals_that_input_alone():
    """n = 1 is the network with one image copied to all slots: same superposition, so same features, averaged."""
    model = small(4)
    x = torch.randn(3, 1, 2, 8, 8, dtype=torch.float64)
    alone = model.binding(model.stem(x[:, 0])[:, None])
    copied = model.binding(model.stem(x[:, 0])[:, None].expand(-1, 4, -1, -1, -1))
    assert_close(alone, copied)


def test_one_slot_with_the_unit_key_is_the_plain_network():
    """Binding to (1, 0, 0, ..) changes nothing, so stem and body see what a plain wide ResNet's would."""
    model = small(1).eval()
    with torch.no_grad():
        model.binding.keys.copy_(F.one_hot(torch.tensor([0]), 8))
    x = torch.randn(3, 1, 2, 8, 8, dtype=torch.float64)
    pooled = model.body(model.stem(x[:, 0]), 1).mean((-2, -1))
    features = F.relu(pooled @ model.unbinding.weight[0].T + model.unbinding.bias[0])
    assert_close(model(x)[:, 0], model.head(features))


def test_batch_norm_keeps_statistics_for_each_n_under_one_affine_map():
    per_n, references = StatisticsPerN(nn.BatchNorm2d(3), 4), {n: nn.BatchNorm2d(3) for n in (1, 3)}
    norm = per_n.module
    for step in range(6):
        n = (1, 3)[step % 2]
        x = n * torch.randn(5, 3, 2, 2) + n
        assert_close(per_n(x, n), references[n](x))
    for n, reference in references.items():
        assert_close(norm.running_mean[n - 1], reference.running_mean)
        assert_close(norm.running_var[n - 1], reference.running_var)
    assert norm.num_batches_tracked.tolist() == [3, 0, 3, 0]
    assert torch.equal(norm.running_mean[[1, 3]], torch.zeros(2, 3))
    assert torch.equal(norm.running_var[[1, 3]], torch.ones(2, 3))
    x = torch.randn(5, 3, 2, 2)
    assert_close(per_n.eval()(x, 3), references[3].eval()(x))
    assert norm.num_batches_tracked.tolist() == [3, 0, 3, 0]
    assert list(per_n.parameters()) == [norm.weight, norm.bias]


@pytest.mark.parametrize(("c_in", "c_out", "stride"), [(4, 4, 1), (4, 6, 1), (4, 4, 2), (4, 6, 2)])
def test_block_equals_its_layers_one_by_one(c_in, c_out, stride):
    block = Block(c_in, c_out, stride, MIMOConvConfig()).eval()
    x = torch.randn(2, c_in, 8, 8)

    def half_negative(x):  # PReLU at its start; a fresh BatchNorm in eval mode divides by sqrt(1 + eps)
        x = x / (1 + 1e-5) ** 0.5
        return torch.where(x > 0, x, 0.5 * x)

    out = F.conv2d(half_negative(x), block.conv1.weight, stride=stride, padding=1)
    out = F.conv2d(half_negative(out), block.conv2.weight, padding=1)
    if (c_in, stride) == (c_out, 1):
        assert isinstance(block.shortcut, nn.Identity)
        skip = x
    else:
        skip = F.conv2d(x, block.shortcut.conv.weight, stride=stride) / (1 + 1e-5) ** 0.5
    assert_close(block(x), out + skip)


@pytest.mark.parametrize("depth", [10, 16, 28])
def test_depth_counts_all_convolutions(depth):
    """The stem, 6k in the blocks and three 1x1 shortcuts."""
    model = WideResNet(WideResNetConfig(depth=depth, width=2))
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == depth


def test_fractional_width_rounds_channels():
    assert MIMOConvConfig(width=7.07).stages == (113, 226, 452)


def test_frozen_keys():
    model = small(trainable_keys=False)
    assert not model.binding.keys.requires_grad
    assert "trainable=False" in repr(model)


def test_wide_resnet_takes_any_leading_axes():
    model = WideResNet(WideResNetConfig(depth=10, width=0.5, num_classes=3)).eval()
    x = torch.randn(4, 3, 16, 16)
    assert_close(model(x[:, None])[:, 0], model(x))
    assert model(x[:0]).shape == (0, 3)


@pytest.mark.parametrize("mode", [True, False])
def test_an_empty_batch_has_no_rows_and_leaves_the_statistics_alone(mode):
    model = small().train(mode)
    before = {name: value.clone() for name, value in model.body.state_dict().items()}
    assert model(torch.zeros(0, 2, 2, 8, 8, dtype=torch.float64)).shape == (0, 2, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.body.state_dict().items())


def test_blocks_in_a_row_are_one_after_the_other():
    """Bit for bit, though the sum of one is left to the next; and who watches a block sees its output."""
    config = WideResNetConfig(depth=16, width=0.5, in_channels=2, image_size=8, num_classes=3)
    stage = body(config).double().stage2
    x = torch.randn(2, stage[0].norm1.num_features, 8, 8, dtype=torch.float64)
    found = stage(x)
    seen = []
    stage[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    assert torch.equal(stage(x), found)
    assert torch.equal(stage[1](seen[0]), found)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stem", ["conv", "conv-norm", "conv-norm-relu"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_maps_stay_in_the_layout_of_the_weights(layout, n, channels, stem, training):
    """From the first convolution on; else they would be converted in every layer."""
    model = small(4, in_channels=channels, stem=stem).float().train(training).to(memory_format=layout)
    seen = []
    for layer in model.body.modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=layout)))
    model(torch.randn(2, n, channels, 8, 8))
    assert len(seen) > 10
    assert all(seen)
