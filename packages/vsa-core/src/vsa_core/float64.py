"""Compute in float64 whatever the device: on the CPU where a device, such as Apple's MPS, may have no float64."""

import torch
from jaxtyping import Float
from torch import Tensor

from vsa_core import checks

__all__ = ["float64_device", "rounded", "to_float64"]

DEVICES = ("cpu", "cuda", "meta")
"""Types of devices that have float64."""


def float64_device(device: torch.device | str | None = None) -> torch.device:
    """Return the device, torch's default one unless given, if it has float64; otherwise the CPU."""
    device = torch.get_default_device() if device is None else torch.device(device)
    return device if device.type in DEVICES else torch.device("cpu")


def to_float64(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert a tensor to float64, on its device or the CPU."""
    return x.to(float64_device(x.device), torch.float64)


def rounded(keys: Float[Tensor, "*n"], device: torch.device | str | None, dtype: torch.dtype | None) -> Float[Tensor, "*n"]:
    """Return keys of float64 on the device and in the dtype that were asked for, or torch's default ones."""
    return keys.to(torch.get_default_device() if device is None else device, checks.key_dtype(dtype))
