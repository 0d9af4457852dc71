"""How images are varied in training, on the device that holds the whole set."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from mimo_benchmarks.data.vision.chance import below, permutation, uniform
from mimo_benchmarks.settings import AugmentConfig, require

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


def draw(config: AugmentConfig, groups: int, n: int, key: Int[Tensor, "2"], quantiles: Float[Tensor, " points"]) -> Draws:
    """Draws for a batch of groups x n images, on the device of the key; the same key gives the same ones on any.

    Args:
        config: what is done.
        groups: those that share a pass.
        n: images of a group.
        key: see `chance.scattered`.
        quantiles: of the shares of mixup, from `beta_quantiles`.

    Raises:
        ConfigError: mixup of a single group.
    """
    b = groups * n
    affine = torch.stack([2 * uniform(key, stream, b) - 1 for stream in range(5)], 1)
    corner = torch.stack([below(2 * config.crop + 1, key, stream, b) for stream in (5, 6)], 1)
    flip = uniform(key, 7, b) < config.flip / 2
    if not config.mixup:
        whole = torch.ones(b, device=key.device)
        return Draws(affine=affine, corner=corner, flip=flip, partner=torch.arange(b, device=key.device), share=whole)
    position = uniform(key, 8, b if config.mixup_each else 1) * (len(quantiles) - 1)
    left = position.long()
    share = torch.lerp(quantiles[left], quantiles[left + 1], position - left).expand(b)
    return Draws(affine=affine, corner=corner, flip=flip, partner=partners(groups, n, key), share=share)


@lru_cache
def beta_quantiles(alpha: float, device: torch.device) -> Float[Tensor, " points"]:
    """What 0, 1, .. 2^14 in 2^14 of all shares from Beta(alpha, alpha) lie below; straight lines between will do."""
    if alpha in (0, 1):  # not asked for, or all shares alike
        return torch.tensor([0.0, 1.0], device=device)
    from scipy.special import betaincinv  # here, because the import takes long

    return torch.from_numpy(betaincinv(alpha, alpha, np.linspace(0, 1, 2**14 + 1))).float().to(device)


def partners(groups: int, n: int, key: Int[Tensor, "2"]) -> Int[Tensor, " b"]:
    """A permutation of groups x n places that leaves no image in its own group, where the two would share a pass.

    Slot s of a group gets slot t(s) of another, so many places further in a random circle of the groups: for each slot another
    number, if there are groups enough. Every place in any other group is as likely as the next.
    """
    require(groups > 1, f"mixup takes partners from other groups, and there is {groups} group")
    circle, slots = permutation(key, 9, groups), permutation(key, 10, n)
    steps = 1 + permutation(key, 11, groups - 1)[torch.arange(n, device=key.device) % (groups - 1)]
    place = (torch.arange(groups, device=key.device)[:, None] + steps) % groups
    return torch.empty_like(place).index_copy(0, circle, circle[place] * n + slots).flatten()


def varied_batch(
    images: UInt8[Tensor, "count c h w"],
    labels: Int[Tensor, " count"],
    index: Int[Tensor, " b"],
    key: Int[Tensor, "2"],
    quantiles: Float[Tensor, " points"],
    gain: Float[Tensor, "c 1 1"],
    offset: Float[Tensor, "c 1 1"],
    *,
    config: AugmentConfig,
    n: int,
    classes: int,
    rank: int,
    world: int,
) -> tuple[Float[Tensor, "own c h w"], Float[Tensor, "own classes"]]:
    """The images of a batch as a network sees them and their classes' shares: one function, so that it compiles to few kernels.

    Args:
        images: the whole set; all tensors are on its device.
        labels: likewise.
        index: the batch, as places in the set.
        key: see `draw`.
        quantiles: see `draw`.
        gain: what grey levels are multiplied with,
        offset: and what is added then.
        config: what is done.
        n: images that share a pass.
        classes: of all labels.
        rank: number of this process, which gets every world-th group of a batch that does not depend on their number.
        world: of all processes.
    """
    draws = draw(config, len(index) // n, n, key, quantiles)
    rows = torch.arange(len(index), device=key.device).view(-1, n)[rank::world].flatten()
    targets = F.one_hot(labels[index[rows]], classes).float()
    if config.mixup:
        targets = torch.lerp(F.one_hot(labels[index[draws.partner[rows]]], classes).float(), targets, draws.share[rows, None])
    return torch.addcmul(offset, augment(images, index, draws, rows, config), gain), targets


def augment(
    images: UInt8[Tensor, "count c h w"], index: Int[Tensor, " b"], draws: Draws, rows: Int[Tensor, " own"], config: AugmentConfig
) -> Float[Tensor, "own c h w"]:
    """Some images of a batch, varied and mixed, as grey levels.

    In the order of the published code: mirror, pad and crop; then rotate, stretch and shift, which is ours; mix with the partner,
    varied likewise. Normalisation comes after it, where theirs is before mixing: both are affine.

    Args:
        images: the whole set.
        index: the batch, as places in the set.
        draws: for the whole batch.
        rows: which of the batch are wanted.
        config: what is done; 0 leaves a step out.
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
    return pixels


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
    inner_row, inner_column = reflect(row, height), reflect(column, width)
    source_column = torch.where(flip[:, None], width - 1 - inner_column, inner_column)
    place = (inner_row[:, :, None] * width + source_column[:, None]).flatten(1)
    out = images.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1)).view_as(images)
    if config.border == "zero":
        out = out.masked_fill(((row != inner_row)[:, :, None] | (column != inner_column)[:, None])[:, None], 0)
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
