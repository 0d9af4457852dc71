"""Vary images in training (crop, mirror, rotate, mixup) on the device that holds the whole set."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from mimo_benchmarks.data.vision.random_numbers import random_integers, random_permutation, random_uniform
from mimo_benchmarks.settings import AugmentConfig, require

NONE = AugmentConfig(rotate=0, shift=0, scale=0)
CIFAR = replace(NONE, crop=4, flip=True, mixup=1)
CORRECTED = {
    "cifar10": CIFAR,
    "cifar100": CIFAR,
    "svhn": replace(NONE, crop=2, border="zero", mixup=1),
    "mnist20": replace(NONE, mixup=1),
}
"""Augmentation of Menet et al. (2023) by task, two defects mended: each image has its own mixup share, digits stay unmirrored."""
PUBLISHED = {name: replace(config, mixup_each=False, flip=name != "svhn") for name, config in CORRECTED.items()}
"""Augmentation by task as in the code of Menet et al. (2023): one mixup share per batch, and MNIST's digits mirrored."""


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Random choices for each image of a batch, in the order of the batch."""

    affine: Float[Tensor, "b 5"]
    """Shares, from -1 to 1, of the largest rotation, of the scales of columns and rows, and of the shifts along them."""
    corner: Int[Tensor, "b 2"]
    """Row and column of the padded image at which the crop starts."""
    flip: Bool[Tensor, " b"]
    """Whether the image is mirrored left to right."""
    partner: Int[Tensor, " b"]
    """Index in the batch of the image that is mixed in."""
    share: Float[Tensor, " b"]
    """Weight of the image itself in the mix; its partner has the rest."""


def draw_augmentation(
    config: AugmentConfig, groups: int, n: int, key: Int[Tensor, "2"], quantiles: Float[Tensor, " points"]
) -> Draws:
    """Draw the random choices for a batch of groups x n images. They are a function of the key, the same on any device.

    Args:
        config: which steps to apply, and how strongly.
        groups: number of groups in the batch; the images of a group share a pass.
        n: images per group.
        key: see `random_words`.
        quantiles: quantiles of the mixup shares, from `beta_quantiles`.

    Raises:
        ConfigError: mixup is on, but there is a single group.
    """
    b = groups * n
    affine = torch.stack([2 * random_uniform(key, stream, b) - 1 for stream in range(5)], 1)
    corner = torch.stack([random_integers(2 * config.crop + 1, key, stream, b) for stream in (5, 6)], 1)
    flip = random_uniform(key, 7, b) < config.flip / 2
    if not config.mixup:
        whole = torch.ones(b, device=key.device)
        return Draws(affine=affine, corner=corner, flip=flip, partner=torch.arange(b, device=key.device), share=whole)
    position = random_uniform(key, 8, b if config.mixup_each else 1) * (len(quantiles) - 1)
    left = position.long()
    share = torch.lerp(quantiles[left], quantiles[left + 1], position - left).expand(b)
    return Draws(affine=affine, corner=corner, flip=flip, partner=mixup_partners(groups, n, key), share=share)


@lru_cache
def beta_quantiles(alpha: float, device: torch.device) -> Float[Tensor, " points"]:
    """Return 2^14 + 1 evenly spaced quantiles of Beta(alpha, alpha), dense enough to interpolate linearly."""
    if alpha in (0, 1):  # mixup is off, or the shares are uniform
        return torch.tensor([0.0, 1.0], device=device)
    from scipy.special import betaincinv  # here, because the import is slow

    return torch.from_numpy(betaincinv(alpha, alpha, np.linspace(0, 1, 2**14 + 1))).float().to(device)


def mixup_partners(groups: int, n: int, key: Int[Tensor, "2"]) -> Int[Tensor, " b"]:
    """Draw a permutation of groups x n images that mixes no image with one of its own group, since these share a pass.

    The groups are put into a random circle. Slot s of a group takes its partner from slot t(s) of the group some steps further;
    the number of steps differs between slots, if there are enough groups. All places in all other groups are equally likely.
    """
    require(groups > 1, f"mixup takes partners from other groups, but there is only {groups} group: raise the groups per batch")
    circle, slots = random_permutation(key, 9, groups), random_permutation(key, 10, n)
    steps = 1 + random_permutation(key, 11, groups - 1)[torch.arange(n, device=key.device) % (groups - 1)]
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
    """Return the images of a batch as a network sees them, and the shares of their classes. One function compiles to few kernels.

    Args:
        images: images of the whole set; all tensors are on their device.
        labels: labels of the whole set.
        index: indices of the batch's images in the set.
        key: see `draw_augmentation`.
        quantiles: see `draw_augmentation`.
        gain: factor that normalises grey levels.
        offset: summand that normalises grey levels, added after `gain` is multiplied.
        config: which augmentation steps to apply, and how strongly.
        n: images per group; the images of a group share a pass.
        classes: number of classes.
        rank: number of this process; it returns every world-th group, and the batch does not depend on `world`.
        world: number of processes.
    """
    draws = draw_augmentation(config, len(index) // n, n, key, quantiles)
    rows = torch.arange(len(index), device=key.device).view(-1, n)[rank::world].flatten()
    targets = F.one_hot(labels[index[rows]], classes).float()
    if config.mixup:
        targets = torch.lerp(F.one_hot(labels[index[draws.partner[rows]]], classes).float(), targets, draws.share[rows, None])
    return torch.addcmul(offset, augment_images(images, index, draws, rows, config), gain), targets


def augment_images(
    images: UInt8[Tensor, "count c h w"], index: Int[Tensor, " b"], draws: Draws, rows: Int[Tensor, " own"], config: AugmentConfig
) -> Float[Tensor, "own c h w"]:
    """Vary and mix some images of a batch; return them as grey levels.

    The order is that of the published code: mirror, pad, crop; then rotate, stretch and shift, which we added; then mix with a
    partner that was varied in the same way. Normalisation follows, whereas the published code normalises before it mixes; both
    steps are affine, so the result is the same.

    Args:
        images: images of the whole set.
        index: indices of the batch's images in the set.
        draws: random choices for the whole batch.
        rows: positions in the batch of the images to return.
        config: how strong each step is; 0 leaves it out.
    """

    def varied(rows: Int[Tensor, " own"]) -> Float[Tensor, "own c h w"]:
        pixels = images[index[rows]]
        if config.crop or config.flip:
            pixels = crop_and_mirror(pixels, draws.corner[rows], draws.flip[rows], config)
        if config.rotate or config.shift or config.scale:
            return rotate_scale_shift(pixels.float(), draws.affine[rows], config)
        return pixels.float()

    pixels = varied(rows)
    if config.mixup:
        pixels = torch.lerp(varied(draws.partner[rows]), pixels, draws.share[rows, None, None, None])
    return pixels


def crop_and_mirror(
    images: UInt8[Tensor, "b c h w"], corner: Int[Tensor, "b 2"], flip: Bool[Tensor, " b"], config: AugmentConfig
) -> UInt8[Tensor, "b c h w"]:
    """Mirror the images with `flip` left to right, then pad all images and cut each back to its size, starting at `corner`.

    Raises:
        RuntimeError: the images are to be padded by more reflected pixels than they have.
    """
    height, width = images.shape[2:]
    row = torch.arange(height, device=images.device) + corner[:, :1] - config.crop
    column = torch.arange(width, device=images.device) + corner[:, 1:] - config.crop
    inner_row, inner_column = reflected_index(row, height), reflected_index(column, width)
    source_column = torch.where(flip[:, None], width - 1 - inner_column, inner_column)
    place = (inner_row[:, :, None] * width + source_column[:, None]).flatten(1)
    out = images.flatten(2).gather(2, place[:, None].expand(-1, images.shape[1], -1)).view_as(images)
    if config.border == "zero":
        out = out.masked_fill(((row != inner_row)[:, :, None] | (column != inner_column)[:, None])[:, None], 0)
    return out


def reflected_index(place: Int[Tensor, "b size"], size: int) -> Int[Tensor, "b size"]:
    """Map indices beyond either end of an axis back into it, as a mirror on the last pixel would show them."""
    return size - 1 - (size - 1 - place.abs()).abs()


def rotate_scale_shift(
    images: Float[Tensor, "b c h w"], amounts: Float[Tensor, "b 5"], config: AugmentConfig
) -> Float[Tensor, "b c h w"]:
    """Rotate, scale and shift each image by shares, from -1 to 1, of the configured amounts; pixels from outside are zero."""
    height, width = images.shape[2:]
    angle = amounts[:, 0] * math.radians(config.rotate)
    scale = 1 + amounts[:, 1:3] * config.scale
    shift = amounts[:, 3:] * config.shift * 2  # the image spans -1..1
    cos, sin = angle.cos(), angle.sin()
    rows = (torch.stack([cos * scale[:, 0], -sin * scale[:, 1], shift[:, 0] / width], -1),
            torch.stack([sin * scale[:, 0], cos * scale[:, 1], shift[:, 1] / height], -1))  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
