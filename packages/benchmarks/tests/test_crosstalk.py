"""Crosstalk of networks in which it is known."""

import pytest
import torch
from torch.testing import assert_close

from mimo_benchmarks.evaluation.crosstalk import crosstalk_by_depth
from mimo_benchmarks.networks.registry import build, describe
from mimoconv import MIMOConvConfig


def network(**options):
    """What the program knows of a small MIMOConv, and the module."""
    options = {"capacity": 4, "depth": 10, "width": 0.5, "stem_channels": 32, "in_channels": 1, "image_size": 8} | options
    config = MIMOConvConfig(**options)
    return describe(config), build(config)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_crosstalk_along_the_network(n):
    """A bundle of alike images owes (n - 1) / n of its variance to the others; nothing unbinds them before training."""
    shares = crosstalk_by_depth(*network(capacity=n), torch.randn(800, 1, 8, 8), n, torch.Generator().manual_seed(0))
    assert list(shares) == ["superposed", "stage 1", "stage 2", "stage 3", "unbound", "logits"]
    assert shares["superposed"] == pytest.approx((n - 1) / n, abs=0.05)
    for share in shares.values():
        assert (n - 1) / n - 0.1 < share < (1.1 if n > 1 else 1e-9)


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_crosstalk_is_unknown_where_features_do_not_vary(value):
    """Or where they are not finite."""
    about, model = network()
    torch.nn.init.constant_(model.head.weight, value)
    shares = crosstalk_by_depth(about, model, torch.randn(20, 1, 8, 8), 4, torch.Generator().manual_seed(0))
    assert [name for name, share in shares.items() if share is None] == ["logits"]


def test_crosstalk_is_that_of_the_slot_alone():
    """A network that ignores all slots but the first has none, and one that ignores the first has nothing else."""
    (about, alone), (_, others) = network(), network()
    with torch.no_grad():
        alone.binding.keys[1:] = 0
        others.binding.keys[0] = 0
    images = torch.randn(200, 1, 8, 8)
    for model, share in ((alone, 0.0), (others, 1.0)):
        measured = crosstalk_by_depth(about, model, images, 4, torch.Generator().manual_seed(0))
        assert_close(torch.tensor(list(measured.values())), torch.full((6,), share), rtol=0, atol=0.06 if share else 1e-9)
        assert not model.body._forward_pre_hooks
