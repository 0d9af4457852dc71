"""State dicts of the published code: the same logits, computed here from its entries step by step; and the refusals."""

import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from mimoconv import MIMOConv, MIMOConvConfig, WideResNet, WideResNetConfig, predict
from mimoconv.importer import convolution_keys, import_published
from vsa_core import hrr

pytestmark = pytest.mark.usefixtures("one_thread")  # sharing out the work of networks this small takes longer
STRIDES = {1: 1, 2: 2, 3: 2}

networks = pytest.mark.parametrize(
    "options",
    [
        {"slots": 1},
        {"slots": 2},
        {"slots": 4},
        {"slots": 6},
        {"slots": 4, "blocks": 2, "classes": 7},
        {"slots": 2, "dim": 6, "channels": 1},
        {"slots": 2, "dim": 2, "base": 6, "channels": 4},  # base 6: the three stages have 6, 12 and 24 channels
        {"slots": 2, "dim": 16, "base": 16},  # D is the first stage's width: no shortcut convolution there
        {"slots": 2, "dim": 16, "base": 40, "classes": 100},
        {"slots": None},
        {"slots": None, "dim": 7, "blocks": 2, "base": 9},
        {"slots": None, "dim": 16, "base": 16},
        {"slots": None, "slopes": False},
        {"slots": None, "slopes": False, "dim": 16, "blocks": 2, "base": 40},
        {"slots": 4, "slopes": False},
    ],
    ids=str,
)


def published(slots: int | None = 2, *, dim=8, channels=3, base=4, blocks=1, classes=5, slopes=True) -> dict[str, Tensor]:
    """A state dict as the published code writes it, of random numbers; without binding where `slots` is None.

    MIMONet has slopes; the baselines WideResNet and WideISOReLUNet have ReLUs, so nothing of `relu1` and `relu2`.
    """
    entries: dict[str, Tensor] = {}

    def norm(name: str, width: int) -> None:
        entries[f"{name}.weight"] = torch.rand(width) + 0.5
        entries[f"{name}.bias"] = torch.randn(width)
        entries[f"{name}.running_mean"] = torch.randn(width)
        entries[f"{name}.running_var"] = torch.rand(width) + 0.5
        entries[f"{name}.num_batches_tracked"] = torch.tensor(1000)

    def weight(name: str, *shape: int) -> None:
        entries[f"{name}.weight"] = torch.randn(shape) * (2 / torch.Size(shape[1:]).numel()) ** 0.5

    weight("conv1", dim, channels, 3, 3)
    norm("bn1", dim)
    if slots is not None:
        weight("channelConv", slots, 1, dim)
    c_in = dim
    for stage, stride in STRIDES.items():
        width = base * 2 ** (stage - 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            entries[f"{name}.alpha"] = torch.tensor(0.0)
            norm(f"{name}.bn1", c_in)
            if slopes:
                entries[f"{name}.relu1.weight"] = torch.rand(c_in)
            weight(f"{name}.conv1", width, c_in, 3, 3)
            norm(f"{name}.bn2", width)
            if slopes:
                entries[f"{name}.relu2.weight"] = torch.rand(width)
            weight(f"{name}.conv2", width, width, 3, 3)
            if block == 0 and (stride != 1 or c_in != width):
                weight(f"{name}.downsample.0", width, c_in, 1, 1)
                norm(f"{name}.downsample.1", width)
            c_in = width
    if slots is not None:
        weight("unbind.0", slots * c_in, c_in, 1, 1)
        entries["unbind.0.bias"] = torch.randn(slots * c_in)
    weight("fc", classes, c_in)
    entries["fc.bias"] = torch.randn(classes)
    return entries


def reference(entries: dict[str, Tensor], images: Tensor, n: int) -> Tensor:
    """Logits (count classes) of the published network in eval mode, n images per pass."""

    def norm(x: Tensor, name: str) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(entries[f"{name}.{entry}"] for entry in names), eps=1e-5)

    def activate(x: Tensor, name: str) -> Tensor:
        return F.prelu(x, entries[f"{name}.weight"]) if f"{name}.weight" in entries else F.relu(x)

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        inner = activate(norm(x, f"{name}.bn1"), f"{name}.relu1")
        inner = F.conv2d(inner, entries[f"{name}.conv1.weight"], stride=stride, padding=1)
        inner = activate(norm(inner, f"{name}.bn2"), f"{name}.relu2")
        inner = F.conv2d(inner, entries[f"{name}.conv2.weight"], padding=1)
        if f"{name}.downsample.0.weight" in entries:
            x = norm(F.conv2d(x, entries[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
        return x + inner

    x = F.relu(norm(F.conv2d(images, entries["conv1.weight"], padding=1), "bn1"))
    keys = entries.get("channelConv.weight")
    if keys is not None:
        slots, _, dim = keys.shape
        filled = x.unflatten(0, (-1, n)).repeat(1, slots // n, 1, 1, 1)  # (groups, slots, dim, h, w)
        groups, _, _, height, width = filled.shape
        pixels = filled.permute(0, 3, 4, 1, 2).reshape(groups * height * width, slots, dim)
        padded = F.pad(pixels, (dim // 2, dim // 2), mode="circular")
        bound = F.conv1d(padded, keys, groups=slots)[:, :, 1:]
        x = bound.sum(1).reshape(groups, height, width, dim).permute(0, 3, 1, 2)
    for stage, stride in STRIDES.items():
        number = 0
        while f"layer{stage}.{number}.bn1.weight" in entries:
            x = block(x, f"layer{stage}.{number}", stride if number == 0 else 1)
            number += 1
    features = F.adaptive_avg_pool2d(x, 1)
    if keys is not None:
        unbound = F.relu(F.conv2d(features, entries["unbind.0.weight"], entries["unbind.0.bias"]))
        chunks = unbound.chunk(slots, dim=1)
        images_of_a_group = [torch.stack(chunks[image::n]).mean(0) for image in range(n)]
        features = torch.stack(images_of_a_group, dim=1).flatten(0, 1)
    return F.linear(features.flatten(1), entries["fc.weight"], entries["fc.bias"])


def dividing(slots: int | None) -> list[int]:
    return [n for n in range(1, (slots or 1) + 1) if (slots or 1) % n == 0]


def as_type(entries: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in entries.items()}


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["float64", "float32"])
@networks
def test_logits_are_the_published_ones_for_every_n(options, dtype, rtol):
    entries = as_type(published(**options), dtype)
    model = import_published(entries)
    assert not model.training
    images = torch.randn(12, options.get("channels", 3), 8, 8, dtype=dtype)
    for n in dividing(options["slots"]):
        expected = reference(entries, images, n)
        assert expected.std(0).min() > 0.01  # images differ
        logits = predict(model, images, n)
        assert logits.dtype == dtype
        assert_close(logits, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


@networks
def test_configuration_is_read_from_the_shapes(options):
    model = import_published(published(**options))
    sizes = {"dim": 8, "channels": 3, "base": 4, "blocks": 1, "classes": 5} | options
    common = {
        "num_classes": sizes["classes"],
        "depth": 6 * sizes["blocks"] + 4,
        "width": sizes["base"] / 16,
        "in_channels": sizes["channels"],
        "stem_channels": sizes["dim"],
        "stem": "conv-norm-relu",
        "activation": "prelu" if sizes.get("slopes", True) else "relu",
        "final_norm": False,
    }
    if sizes["slots"] is None:
        assert isinstance(model, WideResNet)
        assert model.config == WideResNetConfig(**common)
    else:
        assert isinstance(model, MIMOConv)
        assert model.config == MIMOConvConfig(capacity=sizes["slots"], unbinding_relu=True, **common)


@pytest.mark.parametrize("dim", [2, 4, 6, 8, 10, 64])
def test_convolution_with_the_converted_key_is_the_published_binding(dim):
    weight = torch.randn(3, 1, dim, dtype=torch.float64)
    x = torch.randn(dim, dtype=torch.float64)
    keys = convolution_keys(weight)
    for slot in range(3):
        for d in range(dim):
            assert keys[slot, d] == weight[slot, 0, (dim // 2 - 1 - d) % dim]
        correlated = [sum(weight[slot, 0, j] * x[(i + 1 + j - dim // 2) % dim] for j in range(dim)) for i in range(dim)]
        assert_close(hrr.bind(x, keys[slot]), torch.stack(correlated), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slots", [None, 2])
def test_names_of_distributed_training(slots):
    entries = published(slots)
    model = import_published({f"module.{name}": value for name, value in entries.items()})
    assert_close(model.state_dict(), import_published(entries).state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_numbers_keep_their_type(dtype):
    model = import_published(as_type(published(), dtype))
    for name, value in model.state_dict().items():
        assert value.dtype == (torch.int64 if "num_batches" in name else dtype), name


def test_counts_of_another_type_are_taken():
    """A loop that casts all entries of a state dict casts the counts too."""
    entries = {name: value.double() for name, value in published().items()}
    model = import_published(entries)
    assert model.body.module.stage1[0].norm1.num_batches_tracked.tolist() == [1000, 1000]
    assert model.body.module.stage1[0].norm1.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("slots", [None, 4])
@pytest.mark.parametrize(("count", "imported"), [(1000, 1000), (0, 0), (None, 1)])
def test_batch_counts_serve_every_n(slots, count, imported):
    entries = {name: value for name, value in published(slots).items() if count is not None or "num_batches" not in name}
    entries |= {name: torch.tensor(count) for name in entries if "num_batches" in name}
    model = import_published(entries)
    counts = [value for name, value in model.state_dict().items() if "num_batches" in name]
    assert len(counts) == 1 + 3 * 2 + 3
    assert all((value == imported).all() for value in counts)
    for n in range(1, model.capacity + 1):
        assert predict(model, torch.randn(5, 3, 8, 8), n).shape == (5, 5)


def test_an_untrained_network_is_known_as_one_after_training():
    """Its statistics are as good as none, so `predict` refuses the n that were not trained, as for any network of ours."""
    entries = {name: torch.zeros_like(value) if "num_batches" in name else value for name, value in published(2).items()}
    model = import_published(entries).train()
    model(torch.randn(4, 2, 3, 8, 8))
    assert predict(model, torch.randn(4, 3, 8, 8), 2).shape == (4, 5)
    with pytest.raises(RuntimeError, match="never with 1 images per pass"):
        predict(model, torch.randn(4, 3, 8, 8), 1)


@pytest.mark.parametrize("slots", [None, 2, 4])
def test_the_network_trains_and_leaves_the_state_dict_alone(slots):
    entries = published(slots)
    for value in entries.values():
        value.requires_grad_(value.is_floating_point())
    before = {name: value.detach().clone() for name, value in entries.items()}
    model = import_published(entries).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for n in dividing(slots):
        optimizer.zero_grad()
        model(torch.randn(4, n, 3, 8, 8)).square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.is_leaf, name
            assert parameter.grad.abs().sum() > 0, name
        optimizer.step()
    statistics = model.body.module.stage1[0].norm1
    assert statistics.num_batches_tracked.tolist() == [1000 + (n in dividing(slots)) for n in range(1, model.capacity + 1)]
    for first in range(model.capacity):  # every n has its own copy
        for second in range(first):
            both_untrained = not {first + 1, second + 1} & set(dividing(slots))
            assert torch.equal(statistics.running_mean[first], statistics.running_mean[second]) == both_untrained
    for name, value in entries.items():
        assert torch.equal(value, before[name]), name
        assert value.grad is None, name


@pytest.mark.parametrize("slots", [None, 4])
def test_the_network_is_a_normal_one(slots):
    """Its configuration rebuilds it, and its state dict loads there; importing takes no random numbers."""
    entries = published(slots)
    state = torch.random.get_rng_state()
    model = import_published(entries)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = type(model)(model.config).eval()
    again.load_state_dict(model.state_dict())
    images = torch.randn(4, 3, 8, 8)
    for n in range(1, model.capacity + 1):
        assert_close(predict(again, images, n), predict(model, images, n))


def changed(options: dict, changes: dict[str, object]) -> dict[str, object]:
    """A published state dict with entries replaced or, where None, left out."""
    entries = published(**options) | changes
    return {name: value for name, value in entries.items() if value is not None}


NAN = torch.tensor(float("nan"))
BASELINE = {"slots": None}

refusals = [
    # missing
    ({}, {"conv1.weight": None}, "conv1.weight is missing; expected a tensor (D c 3 3)"),
    ({}, {"fc.weight": None}, "fc.weight is missing; expected a tensor (classes features)"),
    ({}, {"layer1.0.conv2.weight": None}, "layer1.0.conv2.weight is missing"),
    ({}, {"channelConv.weight": None}, "channelConv.weight is missing; expected a tensor (N 1 D)"),
    ({}, {"unbind.0.bias": None}, "missing: unbind.0.bias (32,)"),
    ({}, {"unbind.0.weight": None}, "missing: unbind.0.weight (32, 16, 1, 1)"),
    ({}, {"unbind.0.weight": None, "unbind.0.bias": None}, "missing: unbind.0.weight (32, 16, 1, 1), unbind.0.bias (32,)"),
    ({}, {"layer2.0.bn1.running_var": None}, "missing: layer2.0.bn1.running_var (4,)"),
    ({}, {"layer3.0.relu2.weight": None}, "missing: layer3.0.relu2.weight (16,)"),
    ({"blocks": 2}, {"layer3.1.conv1.weight": None}, "missing: layer3.1.conv1.weight (16, 16, 3, 3)"),
    ({}, {"layer1.0.downsample.0.weight": None}, "missing: layer1.0.downsample.0.weight (4, 8, 1, 1)"),
    ({}, {"layer1.0.alpha": None}, "missing: layer1.0.alpha ()"),
    (BASELINE, {"bn1.bias": None}, "missing: bn1.bias (8,)"),
    # surplus
    ({}, {"channelLinear.weight": torch.zeros(16, 8, 1, 1)}, "surplus: channelLinear.weight (16, 8, 1, 1)"),
    ({}, {"conv1.bias": torch.zeros(8)}, "surplus: conv1.bias (8,)"),
    ({"dim": 4}, {"layer1.0.downsample.0.weight": torch.zeros(4, 4, 1, 1)}, "surplus: layer1.0.downsample.0.weight (4, 4, 1, 1)"),
    ({}, {"layer1.1.alpha": torch.tensor(0.0)}, "missing: layer1.1.bn1.weight (4,)"),
    ({}, {"module.conv1.weight": torch.zeros(8, 3, 3, 3)}, "surplus: module.conv1.weight (8, 3, 3, 3)"),
    (BASELINE, {"unbind.0.bias": torch.zeros(16)}, "channelConv.weight is missing"),
    # both: a block with shifted ReLUs
    (
        {},
        {"layer1.0.relu1.weight": None, "layer1.0.relu1.srelu_bias": torch.zeros(1, 8, 1, 1)},
        "missing: layer1.0.relu1.weight (8,); surplus: layer1.0.relu1.srelu_bias (1, 8, 1, 1)",
    ),
    # misshapen
    ({}, {"conv1.weight": torch.zeros(8, 3, 3)}, "conv1.weight has shape (8, 3, 3); expected (D c 3 3)"),
    ({}, {"conv1.weight": torch.zeros(8, 0, 3, 3)}, "conv1.weight has shape (8, 0, 3, 3); expected (D c 3 3), none of them 0"),
    ({}, {"conv1.weight": torch.zeros(8, 3, 7, 7)}, "conv1.weight has shape (8, 3, 7, 7); expected (8, 3, 3, 3)"),
    ({}, {"channelConv.weight": torch.zeros(2, 8)}, "channelConv.weight has shape (2, 8); expected (N 1 D)"),
    ({}, {"channelConv.weight": torch.zeros(2, 1, 10)}, "channelConv.weight has shape (2, 1, 10); expected (2, 1, 8)"),
    ({}, {"channelConv.weight": torch.zeros(2, 2, 8)}, "channelConv.weight has shape (2, 2, 8); expected (2, 1, 8)"),
    ({}, {"unbind.0.weight": torch.zeros(16, 16, 1, 1)}, "unbind.0.weight has shape (16, 16, 1, 1); expected (32, 16, 1, 1)"),
    ({}, {"unbind.0.weight": torch.zeros(32, 16)}, "unbind.0.weight has shape (32, 16); expected (32, 16, 1, 1)"),
    ({}, {"unbind.0.bias": torch.zeros(2, 16)}, "unbind.0.bias has shape (2, 16); expected (32,)"),
    ({}, {"fc.bias": torch.zeros(6)}, "fc.bias has shape (6,); expected (5,)"),
    ({}, {"fc.weight": torch.zeros(5, 15)}, "fc.weight has shape (5, 15); expected (5, 16)"),
    ({}, {"layer1.0.relu1.weight": torch.zeros(1)}, "layer1.0.relu1.weight has shape (1,); expected (8,)"),
    ({}, {"layer2.0.bn2.running_mean": torch.zeros(2, 8)}, "layer2.0.bn2.running_mean has shape (2, 8); expected (8,)"),
    ({}, {"layer2.0.bn2.num_batches_tracked": torch.zeros(2)}, "layer2.0.bn2.num_batches_tracked has shape (2,); expected ()"),
    (
        {},
        {"layer2.0.conv2.weight": torch.zeros(9, 9, 3, 3)},
        "layer2.0.conv2.weight has shape (9, 9, 3, 3); expected (8, 8, 3, 3)",
    ),
    ({"dim": 7}, {}, "channelConv.weight has shape (2, 1, 7); expected an even D, got 7"),
    # numbers
    ({}, {"bn1.bias": NAN.repeat(8)}, "bn1.bias holds NaN or infinite values"),
    ({}, {"fc.bias": torch.tensor([0, 0, 0, 0, float("-inf")])}, "fc.bias holds NaN or infinite values"),
    ({}, {"channelConv.weight": NAN.repeat(2, 1, 8)}, "channelConv.weight holds NaN"),
    ({}, {"layer1.0.alpha": NAN}, "layer1.0.alpha holds NaN"),
    ({}, {"layer1.0.alpha": torch.tensor(0.25)}, "layer1.0.alpha is 0.25; expected 0: this network was trained with skip-init"),
    ({}, {"layer1.0.bn2.bias": torch.zeros(4).double()}, "layer1.0.bn2.bias is torch.float64; expected one floating-point type"),
    ({}, {"layer1.0.bn2.bias": torch.zeros(4).long()}, "layer1.0.bn2.bias is torch.int64; expected one floating-point type"),
    ({}, {"conv1.weight": torch.zeros(8, 3, 3, 3).int()}, "conv1.weight is torch.int32; expected one floating-point type"),
    ({}, {"bn1.num_batches_tracked": torch.tensor(-5)}, "bn1.num_batches_tracked is -5; expected a count"),
    ({}, {"bn1.num_batches_tracked": torch.tensor(2.5)}, "bn1.num_batches_tracked is 2.5; expected a count"),
    ({}, {"bn1.num_batches_tracked": torch.tensor(2.0**70)}, "expected a count, which is a whole number of at least 0"),
    ({}, {"bn1.num_batches_tracked": torch.tensor(2 + 3j)}, "bn1.num_batches_tracked is (2+3j); expected a count"),
]


@pytest.mark.unchecked
@pytest.mark.parametrize(("options", "changes", "named"), refusals, ids=[named.split(";")[0][:60] for _, _, named in refusals])
def test_entries_that_do_not_fit(options, changes, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        import_published(changed(options, changes))


@pytest.mark.unchecked
def test_a_network_of_something_else():
    with pytest.raises(ValueError, match=r"conv1\.weight is missing"):
        import_published({})
    plain = {name: value for name, value in published(None, blocks=4).items() if "alpha" not in name}
    with pytest.raises(ValueError, match=r"missing: layer1\.0\.alpha \(\), .*, and 4 more$"):
        import_published(plain)


@pytest.mark.unchecked
def test_what_is_no_state_dict():
    entries = published()
    with pytest.raises(TypeError, match=r"fc\.bias is a list; expected a tensor"):
        import_published(entries | {"fc.bias": [0.0] * 5})
    with pytest.raises(TypeError, match=r"model_state_dict is a dict; expected a tensor: is this a checkpoint around"):
        import_published({"model_state_dict": entries, "epoch": 3})
    with pytest.raises(TypeError, match="state_dict is a str; expected a mapping"):
        import_published("checkpoint.pt")
    huge = {"fc.weight": torch.zeros(1, 1).expand(3 * 10**10, 16), "fc.bias": torch.zeros(1).expand(3 * 10**10)}
    for value in (huge["fc.weight"], entries["fc.weight"].to_sparse(), entries["fc.weight"].to("meta")):
        with pytest.raises(TypeError, match=r"fc\.weight \(\d+, 16\) is sparse, expanded or empty; expected a dense tensor"):
            import_published(entries | huge | {"fc.weight": value})
