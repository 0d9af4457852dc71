"""Random affine maps, one for each image of a batch."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from mimo_benchmarks.config import AugmentConfig


def random_affine(
    images: Float[Tensor, "b c h w"], config: AugmentConfig, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Rotate, scale and shift every image by amounts of its own, uniform up to the configured ones; zeros come in at the border.

    The amounts are drawn on the generator's device, so that a CPU generator gives the same pictures on any device.
    """
    b, _, height, width = images.shape
    uniform = 2 * torch.rand(b, 5, generator=generator, device=generator.device) - 1
    angle = uniform[:, 0] * math.radians(config.rotate)
    scale = 1 + uniform[:, 1:3] * config.scale
    shift = uniform[:, 3:] * config.shift * 2 / torch.tensor([width, height])  # the image spans -1..1
    cos, sin = angle.cos(), angle.sin()
    rows = (torch.stack([cos * scale[:, 0], -sin * scale[:, 1], shift[:, 0]], -1),
            torch.stack([sin * scale[:, 0], cos * scale[:, 1], shift[:, 1]], -1))  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
