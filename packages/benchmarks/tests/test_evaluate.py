"""What sharing a pass does, on networks whose answers are known."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mimo_benchmarks import evaluate
from mimo_benchmarks.data.images import Split
from mimo_benchmarks.kinds import ImageTask
from mimoconv import MIMOConv, MIMOConvConfig


class Known(nn.Module):
    """Says for every image the class that it carries in its pixel, plus `confusion` times its neighbours' sum."""

    capacity = 4

    def __init__(self, confusion: float, last_is_wrong: bool = False) -> None:
        super().__init__()
        self.confusion, self.last_is_wrong = confusion, last_is_wrong

    def forward(self, x):
        own = x[:, :, 0, 0, 0]
        says = own + self.confusion * (own.sum(1, keepdim=True) - own)
        if self.last_is_wrong:
            says[:, -1] += 1
        return nn.functional.one_hot(says.long() % 10, 10).float()


@pytest.fixture
def task():
    labels = torch.arange(30) % 10
    split = Split(images=labels.to(torch.uint8)[:, None, None, None], labels=labels)
    return ImageTask(name="known", train=split, test=split, classes=10, scale=1)


def predict(model, images, n):
    return torch.cat([model(group[None])[0] for group in images.split(n)])


@pytest.mark.unchecked
def test_accuracies_and_regrouping_of_known_networks(task, monkeypatch):
    monkeypatch.setattr(evaluate, "predict", predict)
    labels = task.test.labels

    def classes(network, n):
        return evaluate.classify(network, task, task.test, n)

    assert torch.equal(classes(Known(0), 2), labels)
    assert evaluate.accuracy_per_slot(classes(Known(0, last_is_wrong=True), 3) == labels, 3) == [1, 1, 0]
    for confusion, n, low, high in ((0, 2, 0, 0), (1, 2, 0.5, 1), (1, 1, 0, 0)):
        network = Known(confusion)
        share = evaluate.regrouped_share(network, task, n, classes(network, n), torch.Generator())
        assert low <= share <= high


def network(**options):
    options = {"capacity": 4, "depth": 10, "width": 0.5, "stem_channels": 32, "in_channels": 1, "image_size": 8} | options
    return MIMOConv(MIMOConvConfig(**options))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_crosstalk_along_the_network(n):
    """A bundle of alike images owes (n - 1) / n of its variance to the others; nothing unbinds them before training."""
    shares = evaluate.crosstalk_by_depth(network(capacity=n), torch.randn(800, 1, 8, 8), n, torch.Generator().manual_seed(0))
    assert list(shares) == ["superposed", "stage 1", "stage 2", "stage 3", "unbound", "logits"]
    assert shares["superposed"] == pytest.approx((n - 1) / n, abs=0.05)
    for share in shares.values():
        assert (n - 1) / n - 0.1 < share < (1.1 if n > 1 else 1e-9)


def test_crosstalk_is_that_of_the_slot_alone():
    """A network that ignores all slots but the first has none, and one that ignores the first has nothing else."""
    alone, others = network(), network()
    with torch.no_grad():
        alone.binding.keys[1:] = 0
        others.binding.keys[0] = 0
    images = torch.randn(200, 1, 8, 8)
    for model, share in ((alone, 0.0), (others, 1.0)):
        measured = evaluate.crosstalk_by_depth(model, images, 4, torch.Generator().manual_seed(0))
        assert_close(torch.tensor(list(measured.values())), torch.full((6,), share), rtol=0, atol=0.06 if share else 1e-9)
        assert not model.body._forward_pre_hooks
