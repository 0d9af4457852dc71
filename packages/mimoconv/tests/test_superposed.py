"""Any CNN in superposition: torchvision's, on real images."""

import copy
import threading

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from mimoconv import Superposed, count_macs, predict, recalibrate
from vsa_core import hrr

MEAN = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
STD = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]


def resnet18(capacity: int = 2, **options) -> Superposed:
    """torchvision's ResNet-18; for small images without the max-pooling after the first convolution."""
    net = torchvision.models.resnet18(num_classes=10)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    body = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)
    return Superposed(stem, body, net.fc, capacity, 64, **options)


def mobilenet_v3(capacity: int = 2) -> Superposed:
    """torchvision's MobileNetV3 small: depthwise convolutions, squeeze and excitation, a head of two layers with dropout."""
    net = torchvision.models.mobilenet_v3_small(num_classes=10)
    return Superposed(net.features[0], net.features[1:], net.classifier, capacity, 16)


every_cnn = pytest.mark.parametrize("make", [resnet18, mobilenet_v3])


@every_cnn
def test_every_n_and_every_parameter(make):
    model = make(3)
    for n in (1, 2, 3):
        logits = model(torch.randn(4, n, 3, 32, 32))
        assert logits.shape == (4, n, 10)
        model.zero_grad()
        logits.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
    assert predict(model, torch.randn(7, 3, 32, 32), 2).shape == (7, 10)


@every_cnn
def test_statistics_are_kept_for_each_n(make):
    model = make(3).train()
    model(torch.randn(4, 2, 3, 32, 32))
    counts = {tuple(buffer.tolist()) for name, buffer in model.body.named_buffers() if "num_batches" in name}
    assert counts == {(0, 1, 0)}
    with pytest.raises(RuntimeError, match=r"recalibrate\(model, batches, n=3\)"):
        predict(model, torch.randn(6, 3, 32, 32), 3)
    recalibrate(model, [torch.randn(12, 3, 32, 32)], 3)
    assert predict(model, torch.randn(6, 3, 32, 32), 3).isfinite().all()


def test_it_is_what_its_parts_make_one_by_one():
    net = torchvision.models.resnet18(num_classes=10).double().eval()
    stem = nn.Sequential(net.conv1, net.bn1, net.relu)
    body = nn.Sequential(net.layer1, net.layer2, net.layer3, net.layer4)
    model = Superposed(stem, copy.deepcopy(body), net.fc, 2, 64).double().eval()
    x = torch.randn(3, 2, 3, 32, 32, dtype=torch.float64)
    bound = [hrr.bind(stem(x[:, i]).movedim(1, -1), model.binding.keys[i]).movedim(-1, 1) for i in (0, 1)]
    pooled = body(bound[0] + bound[1]).mean((2, 3))
    for i in (0, 1):
        features = F.relu(pooled @ model.unbinding.weight[i].T + model.unbinding.bias[i])
        assert_close(model(x)[:, i], net.fc(features))


def test_a_body_may_pool_by_itself():
    flat = nn.Sequential(nn.Conv2d(8, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = Superposed(nn.Conv2d(3, 8, 3), flat, nn.Linear(5, 4), 2, 8)
    assert model.unbinding.weight.shape == (2, 5, 5)
    assert model(torch.randn(3, 2, 3, 16, 16)).shape == (3, 2, 4)


def test_costs_of_any_cnn():
    model = resnet18(4)
    assert count_macs(model, 1, shape=(3, 32, 32)) / count_macs(model, 4, shape=(3, 32, 32)) == pytest.approx(3.6, abs=0.2)


def test_a_body_that_was_trained_before_has_no_statistics_of_superpositions():
    body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    body(torch.randn(4, 8, 9, 9))
    mean = body[1].running_mean.clone()
    model = Superposed(nn.Conv2d(3, 8, 3), body, nn.Linear(8, 3), 2, 8).train()
    assert torch.equal(body[1].running_mean, mean.expand(2, 8))
    predict(model, torch.randn(4, 3, 9, 9), 1)  # untrained: the statistics that it came with
    model(torch.randn(4, 2, 3, 9, 9))
    with pytest.raises(RuntimeError, match="never with 1 images per pass"):
        predict(model, torch.randn(4, 3, 9, 9), 1)


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"momentum": None}, {"affine": False}])
def test_batch_norm_of_every_kind(options):
    body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, **options))
    model = Superposed(nn.Conv2d(3, 8, 3), body, nn.Linear(8, 3), 2, 8).train()
    for n in (1, 2):
        model(torch.randn(4, n, 3, 9, 9))
        recalibrate(model, [torch.randn(8, 3, 9, 9)], n)
        assert predict(model, torch.randn(5, 3, 9, 9), n).shape == (5, 3)
    assert body[1].momentum == options.get("momentum", 0.1)


@pytest.mark.unchecked
def test_parts_that_do_not_fit():
    stem, body, head = nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)), nn.Linear(8, 3)
    Superposed(stem, body, head, 2, 8)
    x = torch.randn(2, 2, 3, 9, 9)
    with pytest.raises(ValueError, match="a body of its own"):
        Superposed(stem, body, head, 2, 8, features=8)
    with pytest.raises(
        ValueError, match=r"the body fails on maps of shape \(2, 8, 64, 64\): .*Is dim = 8 what the stem returns\?"
    ):
        Superposed(stem, nn.Conv2d(16, 8, 3), head, 2, 8)
    with pytest.raises(ValueError, match=r"the head takes \(b, 6\) and fails: .*Is 6 what the body returns and the head takes\?"):
        Superposed(stem, nn.Conv2d(8, 6, 3), head, 2, 8)
    with pytest.raises(
        ValueError, match=r"the head takes \(b, 8\) and must return \(b, classes\); for b = 2 it returns \(2, 4, 2\)"
    ):
        Superposed(stem, nn.Conv2d(8, 8, 3), nn.Sequential(head, nn.Linear(3, 8), nn.Unflatten(1, (4, 2))), 2, 8)
    with pytest.raises(ValueError, match=r"the stem returns maps of shape \(4, 16, 7, 7\); expected \(b 8 h w\)"):
        Superposed(nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 3), head, 2, 8)(x)
    with pytest.raises(ValueError, match="the body returns 8 features, but 5 are unbound: give features=8"):
        Superposed(stem, nn.Conv2d(8, 8, 3), nn.Linear(5, 3), 2, 8, features=5)(x)
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        Superposed(stem, nn.Conv2d(8, 8, 3), head, 2, 8, features=0)
    with pytest.raises(ValueError, match="the head has layers with running statistics"):
        Superposed(stem, nn.Conv2d(8, 8, 3), nn.Sequential(nn.BatchNorm1d(8), head), 2, 8)
    with pytest.raises(TypeError, match="images are a list"):
        predict(Superposed(stem, nn.Conv2d(8, 8, 3), head, 2, 8), [1, 2], 1)


class Moody(nn.Module):
    """A head that looks at its numbers, or holds a lock, or returns something of another kind."""

    def __init__(self, mood):
        super().__init__()
        self.mood, self.linear = mood, nn.Linear(8, 3)
        self.lock = threading.Lock() if mood == "lock" else None

    def forward(self, x):
        if self.mood == "numbers" and x.isnan().any():
            raise ValueError
        return (self.linear(x),) if self.mood == "tuple" else self.linear(x)


@pytest.mark.unchecked
def test_heads_that_cannot_run_without_memory():
    for mood in ("numbers", "lock"):
        model = Superposed(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), Moody(mood), 2, 8)
        assert model(torch.randn(2, 2, 3, 9, 9)).shape == (2, 2, 3)
    with pytest.raises(ValueError, match=r"must return \(b, classes\); for b = 2 it returns tuple"):
        Superposed(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), Moody("tuple"), 2, 8)
    with pytest.raises(TypeError, match="the head is a function; it must be a module"):
        Superposed(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), lambda x: x, 2, 8)
    with pytest.raises(ValueError, match=r"the body fails on maps.*cannot be copied.*Give features="):
        Superposed(nn.Conv2d(3, 8, 3), Moody("lock"), nn.Linear(3, 3), 2, 8)


def test_unbinding_that_outweighs_the_network_is_warned_of():
    """A VGG's classifier takes maps that were flattened: 2 x 25,088^2 numbers to unbind them, ten times its own."""
    with torch.device("meta"):
        net = torchvision.models.vgg16(num_classes=10)
        flat = nn.Sequential(*net.features[1:], net.avgpool, nn.Flatten())
        message = r"unbinding will have 1,258,865,664 parameters, the network itself has 134,301,514: 2 matrices of 25088 x 25088"
        with pytest.warns(UserWarning, match=message):
            Superposed(net.features[0], flat, net.classifier, 2, 64)
        pooled = Superposed(net.features[0], net.features[1:], nn.Linear(512, 10), 2, 64)  # no warning, which would be an error
    assert pooled.unbinding.weight.shape == (2, 512, 512)


@pytest.mark.unchecked
@pytest.mark.parametrize("name", ["capacity", "dim", "features"])
@pytest.mark.parametrize("value", [8.0, True, "8"])
def test_counts_that_are_not_whole_numbers(name, value):
    counts = {"capacity": 2, "dim": 8, "features": 8} | {name: value}
    if name == "dim":
        del counts["features"]  # found by running the body on maps of dim channels
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got {value!r}"):
        Superposed(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3), **counts)


@pytest.mark.unchecked
def test_what_superposed_refuses():
    model = resnet18(2)
    with pytest.raises(ValueError, match="give shape="):
        count_macs(model, 1)
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 32\); expected \(b n c h w\)"):
        model(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="3 superposed inputs, but there are 2 slots"):
        model(torch.zeros(2, 3, 3, 32, 32))
    with pytest.raises(TypeError, match=r"torch\.uint8, but the model's configuration has no mean"):
        predict(model, torch.zeros(2, 3, 32, 32, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        resnet18(0)


@every_cnn
def test_loss_falls_on_real_images(make, cifar10):
    """Two images per pass; 14 steps on two batches of CIFAR-10 in turn bring the loss below 70 % of where it began."""
    images, labels = cifar10
    batches = list(zip((((images[:64] / 255) - MEAN) / STD).split(32), labels[:64].split(32), strict=True))
    model, losses = make(2).train(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(14):
        x, y = batches[step % 2]
        loss = F.cross_entropy(model(x.unflatten(0, (16, 2))).flatten(0, 1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-2:]) < 0.7 * sum(losses[:2])
