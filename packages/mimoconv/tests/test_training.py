"""A short training run on real images."""

import pytest
import torch
from torch.nn import functional as F

from mimoconv import MIMOConv, create_model, predict

STATISTICS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)}
STEPS, GROUPS = 160, 32
REPEATED = 40
"""Steps that are made twice."""
pytestmark = pytest.mark.once


def trained(
    images: torch.Tensor, labels: torch.Tensor, seed: int, steps: int = STEPS
) -> tuple[MIMOConv, dict[str, torch.Tensor]]:
    """MIMOConv-10-1 after 160 steps of 32 passes of one and of two CIFAR-10 images in turn, and its state after 40 of them."""
    torch.manual_seed(seed)
    model = create_model("mimoconv_10_1", capacity=2, stem_channels=32, init="orthogonal", **STATISTICS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS + 1, cycle_momentum=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in STATISTICS.values())
    at, early = 0, {}
    for step in range(steps):
        n = 1 + step % 2
        x, y = (images[at : at + GROUPS * n] / 255 - mean) / std, labels[at : at + GROUPS * n]
        at += GROUPS * n
        loss = F.cross_entropy(model(x.unflatten(0, (GROUPS, n))).flatten(0, 1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step + 1 == REPEATED:
            early = {name: value.clone() for name, value in model.state_dict().items()}
    return model, early


def test_cifar10_is_learnt_beyond_chance_and_repeatably(cifar10):
    """On 2,000 images never seen: at least 25 % are right with one per pass and 20 % with two, where chance is 10 %."""
    images, labels = cifar10
    (model, early), (_, repeated) = trained(images, labels, 0), trained(images, labels, 0, REPEATED)
    assert len(early) == len(model.state_dict())
    assert all(torch.equal(value, repeated[name]) for name, value in early.items())
    right = {n: (predict(model, images[-2000:], n).argmax(-1) == labels[-2000:]).double() for n in (1, 2)}
    assert right[1].mean() > 0.25
    assert right[2].mean() > 0.2
    assert min(right[2][slot::2].mean() for slot in (0, 1)) > 0.17
