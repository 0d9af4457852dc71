"""Using a network: predict, re-estimate its statistics, count its cost."""

import copy
from collections.abc import Iterable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from mimoconv.config import NetworkConfig
from mimoconv.model import WideResNet
from mimoconv.superposed import StatisticsPerN, Superposed, check_images
from vsa_core import slots
from vsa_core.modules import evaluating

PASSES_AT_ONCE = 512
"""Passes that `predict` makes at a time, to bound memory."""
PASSES = 1024
"""Passes that multiply-adds are counted over: what is computed once for a whole batch is shared by all of them."""


@torch.no_grad()
def predict(model: Superposed | WideResNet, images: Shaped[Tensor, "count c h w"], n: int) -> Float[Tensor, "count classes"]:
    """Logits of a flat batch in eval mode, n images a pass in their order; the last group is filled by repeating images.

    Every image gets its row, whatever the count. The same images in the same order get the same logits; in another order they
    share their passes with other images, and some logits move (docs/crosstalk.md has how much). The mode of the model and
    of each of its layers stays as it is.

    Args:
        model: the network.
        images: floating-point images as the network was trained on; or uint8 ones, which are scaled to 0..1 and normalised by
            the `mean` and `std` of the model's configuration.
        n: images a pass, from 1 to capacity.

    Raises:
        ValueError: n is not from 1 to capacity, or the images do not fit the network.
        TypeError: integer images that are not uint8, or uint8 ones for a model whose configuration has no mean and std.
        RuntimeError: the model was trained, but its BatchNorm statistics for n were never estimated: see `recalibrate`.
    """
    slots.assignment(n, model.capacity)  # refuses an n that does not fit
    seen = [norm.num_batches_tracked for norm in norms_per_n(model) if norm.num_batches_tracked is not None]
    if any(counts.any() and not counts[n - 1] for counts in seen):
        raise RuntimeError(
            f"this model was trained, but never with {n} images a pass, so its BatchNorm has no statistics for n = {n}: "
            f"estimate them on training images with recalibrate(model, batches, n={n})"
        )
    images = normalised(model, images)
    groups = torch.split(slots.group(images, n), PASSES_AT_ONCE)
    with evaluating(model):
        return slots.ungroup(torch.cat([model(part) for part in groups]), len(images))


@torch.no_grad()
def recalibrate(model: Superposed | WideResNet, batches: Iterable[Shaped[Tensor, "_ c h w"]], n: int) -> None:
    """Estimate the running statistics for n images a pass afresh: averages over batches of training images, by their sizes.

    Statistics for other n, those of the stem, all weights and modes stay as they are; after an error, everything does.

    Args:
        model: the network, trained.
        batches: flat batches of images (no labels), as `predict` takes them; empty ones are passed over.
        n: images a pass, from 1 to capacity.

    Raises:
        ValueError: n is not from 1 to capacity, the images do not fit the network, or there are none.
        TypeError: a batch is no tensor of images that `predict` would take.
    """
    slots.assignment(n, model.capacity)  # refuses an n that does not fit
    norms = norms_per_n(model)
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    passes = 0
    with evaluating(model):
        try:
            for norm in norms:
                for buffer, start in ((norm.running_mean, 0), (norm.running_var, 1), (norm.num_batches_tracked, 0)):
                    if buffer is not None:
                        buffer[n - 1] = start
                norm.train()
            for images in batches:
                if not isinstance(images, Tensor):
                    raise TypeError(f"a batch is a {type(images).__name__}; it must be a tensor of images, without labels")
                groups = slots.group(normalised(model, images), n)
                passes += len(groups)
                for norm in norms:
                    norm.momentum = len(groups) / max(1, passes)
                if len(groups):
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


def count_macs(model: Superposed | WideResNet, n: int = 1, *, shape: tuple[int, int, int] | None = None) -> float:
    """Multiply-adds per image with n images a pass: convolutions and matrix products, by torch's flop counter.

    Args:
        model: the network; a copy of it without memory is run, and it stays as it is.
        n: images a pass, from 1 to capacity.
        shape: (c, h, w) of an image; what the model's configuration says unless given.

    Raises:
        ValueError: n is not from 1 to capacity, or neither `shape` nor a configuration is there.

    >>> from mimoconv import WideResNetConfig
    >>> count_macs(WideResNet(WideResNetConfig(depth=28, width=10)))
    5243328768.0
    """
    slots.assignment(n, model.capacity)  # refuses an n that does not fit
    if shape is None:
        if (config := configuration(model)) is None:
            raise ValueError("this model has no configuration that names the size of its images: give shape=(c, h, w)")
        shape = config.in_channels, config.image_size, config.image_size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        probe = copy.deepcopy(getattr(model, "_orig_mod", model)).to("meta", torch.float32).eval()
        probe(torch.zeros(PASSES, n, *shape, device="meta"))
    return float(counter.get_total_flops() / 2 / (PASSES * n))


def normalised(model: Superposed | WideResNet, images: Shaped[Tensor, "count c h w"]) -> Float[Tensor, "count c h w"]:
    """Floating-point images as they are; uint8 ones scaled to 0..1 and normalised as the model's configuration says."""
    config = configuration(model)
    raw = isinstance(images, Tensor) and images.dtype == torch.uint8
    if raw:
        images = images / 255
    check_images(images, "count c h w", config.in_channels if config else None)
    if raw:
        if config is None or config.mean is None:
            raise TypeError(
                "images have dtype torch.uint8, but the model has no configuration with mean and std to normalise them by: "
                "give it some, or floating-point images"
            )
        mean, std = (images.new_tensor(values)[:, None, None] for values in (config.mean, config.std))
        images = ((images - mean) / std).to(next(model.parameters()).dtype)
    return images


def configuration(model: torch.nn.Module) -> NetworkConfig | None:
    """The configuration of a network that has one, also of a compiled one."""
    config = getattr(model, "config", None)
    return config if isinstance(config, NetworkConfig) else None


def norms_per_n(model: torch.nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers whose statistics depend on n."""
    return [norm for module in model.modules() if isinstance(module, StatisticsPerN) for norm in module.norms()]
