"""The one way in which images are normalised: by one multiplication and one addition."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from vsa_core import checks

__all__ = ["normalization_gain_offset", "normalize"]


def normalize(
    images: Shaped[Tensor, "*b c h w"], mean: Sequence[float], std: Sequence[float], *, scale: float = 255
) -> Float[Tensor, "*b c h w"]:
    """Normalise integer-valued images: scale them to 0..1, subtract the mean and divide by the standard deviation.

    Args:
        images: images whose white pixels have the value `scale`, such as uint8 ones.
        mean: mean of each channel over the training images, from 0 to 1.
        std: standard deviation of each channel.
        scale: value of a white pixel.

    Returns:
        `images * gain + offset` with the float32 numbers of `normalization_gain_offset`.

    Raises:
        TypeError: the images are complex, or floating point of fewer than 16 bits.

    >>> normalize(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), [0.5], [0.25])
    tensor([[[[2.]]]])
    """
    if images.is_complex() or (images.is_floating_point() and images.dtype not in checks.DTYPES):
        raise TypeError(f"images have dtype {images.dtype}; expected integers, or floating point of 16 bits or more")
    gain, offset = normalization_gain_offset(tuple(map(float, mean)), tuple(map(float, std)), scale=scale, device=images.device)
    return images * gain + offset


@lru_cache
def normalization_gain_offset(
    mean: tuple[float, ...], std: tuple[float, ...], *, scale: float = 255, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
    """Compute the numbers of `normalize`, for code that fuses it with other work: 1 / (scale std) and -mean / std.

    They are computed in float64, rounded to float32 once and cached; do not change them in place.
    """
    deviation = torch.tensor(std, dtype=torch.float64, device="cpu")  # other devices may have no float64
    # The mean is rounded to float32 first, as in all runs so far, whose results would move otherwise.
    gain, offset = 1 / (scale * deviation), -torch.tensor(mean, dtype=torch.float32, device="cpu") / deviation
    return gain.float()[:, None, None].to(device), offset.float()[:, None, None].to(device)
