"""Using a network: predict, re-estimate its statistics, count its cost."""

import copy
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimoconv.blocks import BatchNormPerN
from mimoconv.model import MIMOConv, WideResNet
from vsa_core import slots

PASSES = 1024
"""Passes that multiply-adds are counted over: what is computed once for a whole batch is shared by all of them."""


@torch.no_grad()
def predict(model: MIMOConv | WideResNet, images: Float[Tensor, "count c h w"], n: int) -> Float[Tensor, "count classes"]:
    """Logits of a flat batch in eval mode, n images a pass in their order; the last group is filled by repeating images.

    Every image gets its row, whatever the count. The model's mode is left as it was found.

    Raises:
        ValueError: n is not from 1 to capacity, or the images do not fit the network.
        RuntimeError: the model was trained, but its BatchNorm statistics for n were never estimated: see `recalibrate`.
    """
    check_n(model, n)
    norms = batch_norms(model)
    if any(norm.batches_seen.any() for norm in norms) and not all(norm.batches_seen[n - 1] for norm in norms):
        raise RuntimeError(
            f"this model was trained, but never with {n} images a pass, so its BatchNorm has no statistics for n = {n}: "
            f"estimate them on training images with recalibrate(model, batches, n={n})"
        )
    mode = model.training
    model.eval()
    try:
        return slots.ungroup(model(slots.group(images, n)), len(images))
    finally:
        model.train(mode)


@torch.no_grad()
def recalibrate(model: MIMOConv | WideResNet, batches: Iterable[Float[Tensor, "count c h w"]], n: int) -> None:
    """Estimate the running statistics for n images a pass afresh, as plain averages over the batches of training images.

    Statistics for other n, those of the stem, and all weights stay as they are; so does the model's mode.

    Raises:
        ValueError: n is not from 1 to capacity, the images do not fit the network, or there is no batch.
    """
    check_n(model, n)
    norms, mode = batch_norms(model), model.training
    momenta = [norm.momentum for norm in norms]
    model.eval()
    count = 0
    try:
        for norm in norms:
            norm.batches_seen[n - 1] = 0
            norm.train()
        for images in batches:
            count += 1
            for norm in norms:
                norm.momentum = 1 / count
            model(slots.group(images, n))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(mode)
    if count == 0:
        raise ValueError("batches is empty: statistics need at least one batch of training images")


def count_macs(model: MIMOConv | WideResNet, n: int = 1) -> float:
    """Multiply-adds per image with n images a pass: convolutions and matrix products, by torch's flop counter.

    Raises:
        ValueError: n is not from 1 to capacity.

    >>> from mimoconv import WideResNetConfig
    >>> count_macs(WideResNet(WideResNetConfig(depth=28, width=10)))
    5243328768.0
    """
    check_n(model, n)
    config = model.config
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        probe = copy.deepcopy(model).to("meta", torch.float32).eval()
        probe(torch.zeros(PASSES, n, config.in_channels, config.image_size, config.image_size, device="meta"))
    return float(counter.get_total_flops() / 2 / (PASSES * n))


def check_n(model: MIMOConv | WideResNet, n: int) -> None:
    """Raise ValueError unless n images fit into one pass."""
    if not 1 <= n <= model.capacity:
        raise ValueError(
            f"{n} superposed images, but this network has {model.capacity} slots: n must be from 1 to {model.capacity}"
        )


def batch_norms(model: MIMOConv | WideResNet) -> list[BatchNormPerN]:
    """The layers whose statistics depend on n."""
    return [module for module in model.modules() if isinstance(module, BatchNormPerN)]
