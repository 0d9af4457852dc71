"""How images are varied in training, on the device that holds the whole set."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from mimo_benchmarks.config import AugmentConfig, require

NONE = AugmentConfig(rotate=0, shift=0, scale=0)
CIFAR = replace(NONE, crop=4, flip=True, mixup=1)
CORRECTED = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "svhn": replace(NONE, crop=2, border="zero", mixup=1),
    "mnist20": replace(NONE, mixup=1),
}
"""What Menet et al. (2023) trained with, by task, with two defects mended: a mixup share for every image, digits not mirrored."""
PUBLISHED = {name: replace(config, mixup_each=False, flip=name != "svhn") for name, config in CORRECTED.items()}
"""The same as their code has it: one mixup share for a whole batch, and MNIST's digits mirrored."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What chance decided for each image of a batch, in the batch's order."""

    affine: Float[Tensor, "b 5"]
    """From -1 to 1: shares of the largest rotation, of the scales of columns and rows, of the shifts along them."""
    corner: Int[Tensor, "b 2"]
    """Row and column of the padded image where the crop starts."""
    flip: Bool[Tensor, " b"]
    partner: Int[Tensor, " b"]
    """Place in the batch of the image that is mixed in."""
    share: Float[Tensor, " b"]
    """Weight of the image itself beside its partner."""

    def to(self, device: torch.device) -> "Draws":
        """The same on another device."""
        return Draws(**{name: draw.to(device, non_blocking=True) for name, draw in vars(self).items()})


def draw(config: AugmentConfig, groups: int, n: int, generator: torch.Generator) -> Draws:
    """Draws for a batch of groups x n images: on the CPU, so that a seed gives the same pictures on any device.

    Raises:
        ConfigError: mixup of a single group, which has no other to mix with.
    """
    b = groups * n
    affine = 2 * torch.rand(b, 5, generator=generator) - 1
    corner = torch.randint(2 * config.crop + 1, (b, 2), generator=generator)
    flip = torch.rand(b, generator=generator) < config.flip / 2
    partner = partners(groups, n, generator) if config.mixup else torch.arange(b)
    share = beta(config.mixup, b if config.mixup_each else 1, generator).expand(b) if config.mixup else torch.ones(b)
    return Draws(affine=affine, corner=corner, flip=flip, partner=partner, share=share)


def beta(alpha: float, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Draws from Beta(alpha, alpha), by numpy, because torch's own take no generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()


def partners(groups: int, n: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """A permutation of groups x n places that leaves no image in its own group, where the two would share a pass.

    Slot s of a group gets slot t(s) of another, so many places further in a random circle of the groups: every place in any other
    group is as likely as the next.
    """
    require(groups > 1, f"mixup takes partners from other groups, and there is {groups} group")
    circle, slots = torch.randperm(groups, generator=generator), torch.randperm(n, generator=generator)
    steps = torch.randint(1, groups, (n,), generator=generator)
    place = (torch.arange(groups)[:, None] + steps) % groups
    partner = torch.empty(groups, n, dtype=torch.long)
    partner[circle] = circle[place] * n + slots
    return partner.flatten()


def augment(
    images: UInt8[Tensor, "count c h w"],
    index: Int[Tensor, " b"],
    draws: Draws,
    rows: Int[Tensor, " own"],
    config: AugmentConfig,
    scale: float,
    mean: Float[Tensor, " c"],
    std: Float[Tensor, " c"],
) -> Float[Tensor, "own c h w"]:
    """Some images of a batch, varied, normalised and mixed: one function, so that it compiles to few kernels.

    In the order of the published code: mirror, pad and crop; then rotate, stretch and shift, which is ours; mix with the partner,
    varied likewise; normalise, which may come after mixing because both are affine.

    Args:
        images: the whole set.
        index: the batch, as places in the set.
        draws: for the whole batch, on the device of the images, like all tensors here.
        rows: which of the batch are wanted, so that processes can share the work.
        config: what is done; 0 leaves a step out.
        scale: the value of a white pixel.
        mean: of each channel, on a scale from 0 to 1.
        std: likewise.
    """

    def varied(rows: Int[Tensor, " own"]) -> Float[Tensor, "own c h w"]:
        pixels = images[index[rows]]
        if config.crop or config.flip:
            pixels = crop(pixels, draws.corner[rows], draws.flip[rows], config)
        if config.rotate or config.shift or config.scale:
            return affine(pixels.float(), draws.affine[rows], config)
        return pixels.float()

    pixels = varied(rows)
    if config.mixup:
        pixels = torch.lerp(varied(draws.partner[rows]), pixels, draws.share[rows, None, None, None])
    return torch.addcmul(-(mean / std)[:, None, None], pixels, (1 / (scale * std))[:, None, None])


def crop(
    images: UInt8[Tensor, "b c h w"], corner: Int[Tensor, "b 2"], flip: Bool[Tensor, " b"], config: AugmentConfig
) -> UInt8[Tensor, "b c h w"]:
    """Mirror images left to right where `flip` says so, then pad them and cut them back to their size from `corner` on.

    Raises:
        RuntimeError: reflection of more pixels than an image has.
    """
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device) + corner[:, :1] - config.crop
    column = torch.arange(width, device=images.device) + corner[:, 1:] - config.crop
    source_row, source_column = reflect(row, height), reflect(column, width)
    source_column = torch.where(flip[:, None], width - 1 - source_column, source_column)
    place = (source_row[:, :, None] * width + source_column[:, None]).flatten(1)
    out = images.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1)).view_as(images)
    if config.border == "zero":
        out = out.masked_fill(((row != source_row)[:, :, None] | (column != reflect(column, width))[:, None])[:, None], 0)
    return out


def reflect(place: Int[Tensor, "b size"], size: int) -> Int[Tensor, "b size"]:
    """Places beyond either end as they look in a mirror that stands on the last pixel."""
    return size - 1 - (size - 1 - place.abs()).abs()


def affine(images: Float[Tensor, "b c h w"], amounts: Float[Tensor, "b 5"], config: AugmentConfig) -> Float[Tensor, "b c h w"]:
    """Rotate, scale and shift every image by shares, from -1 to 1, of the configured amounts; zeros come in at the border."""
    height, width = images.shape[2:]
    angle = amounts[:, 0] * math.radians(config.rotate)
    scale = 1 + amounts[:, 1:3] * config.scale
    shift = amounts[:, 3:] * config.shift * 2  # the image spans -1..1
    cos, sin = angle.cos(), angle.sin()
    rows = (torch.stack([cos * scale[:, 0], -sin * scale[:, 1], shift[:, 0] / width], -1),
            torch.stack([sin * scale[:, 0], cos * scale[:, 1], shift[:, 1] / height], -1))  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
