"""Using a network: predict, re-estimate its statistics, count its cost."""

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mimoconv.blocks import BatchNormPerN
from mimoconv.model import MIMOConv, WideResNet, check_images
from vsa_core import slots

PASSES = 1024
"""Passes that multiply-adds are counted over: what is computed once for a whole batch is shared by all of them."""


@torch.no_grad()
def predict(model: MIMOConv | WideResNet, images: Float[Tensor, "count c h w"], n: int) -> Float[Tensor, "count classes"]:
    """Logits of a flat batch in eval mode, n images a pass in their order; the last group is filled by repeating images.

    Every image gets its row, whatever the count. The mode of the model and of each of its layers stays as it is.

    Raises:
        ValueError: n is not from 1 to capacity, or the images do not fit the network.
        TypeError: the images are not floating point.
        RuntimeError: the model was trained, but its BatchNorm statistics for n were never estimated: see `recalibrate`.
    """
    check_n(model, n)
    check_images(images, model.config, axes="count c h w")
    norms = batch_norms(model)
    if any(norm.batches_seen.any() for norm in norms) and not all(norm.batches_seen[n - 1] for norm in norms):
        raise RuntimeError(
            f"this model was trained, but never with {n} images a pass, so its BatchNorm has no statistics for n = {n}: "
            f"estimate them on training images with recalibrate(model, batches, n={n})"
        )
    with evaluating(model):
        return slots.ungroup(model(slots.group(images, n)), len(images))


@torch.no_grad()
def recalibrate(model: MIMOConv | WideResNet, batches: Iterable[Float[Tensor, "count c h w"]], n: int) -> None:
    """Estimate the running statistics for n images a pass afresh: averages over batches of training images, by their sizes.

    Statistics for other n, those of the stem, all weights and modes stay as they are; after an error, everything does.

    Args:
        model: the network, trained.
        batches: flat batches of images (no labels), as `predict` takes them; empty ones are passed over.
        n: images a pass, from 1 to capacity.

    Raises:
        ValueError: n is not from 1 to capacity, the images do not fit the network, or there are none.
        TypeError: a batch is no tensor of floating-point images.
    """
    check_n(model, n)
    norms = batch_norms(model)
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    passes = 0
    with evaluating(model):
        try:
            for norm in norms:
                norm.batches_seen[n - 1] = 0
                norm.train()
            for images in batches:
                if not isinstance(images, Tensor):
                    raise TypeError(f"a batch is a {type(images).__name__}; it must be a tensor of images, without labels")
                check_images(images, model.config, axes="count c h w")
                groups = slots.group(images, n)
                passes += len(groups)
                for norm in norms:
                    norm.momentum = len(groups) / max(1, passes)
                model(groups)
            if not passes:
                raise ValueError("batches holds no image: statistics need training images")
        except BaseException:
            for norm, (_, state) in zip(norms, before, strict=True):
                norm.load_state_dict(state)
            raise
        finally:
            for norm, (momentum, _) in zip(norms, before, strict=True):
                norm.momentum = momentum


@contextmanager
def evaluating(model: MIMOConv | WideResNet) -> Iterator[None]:
    """Eval mode inside; afterwards every layer is in the mode that it was found in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


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
