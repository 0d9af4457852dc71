"""What autocast means for types: turn it off, and check which types may meet."""

import torch
from torch import Tensor

__all__ = ["autocast_off", "check_meeting", "half_types_clash"]

HALF_TYPES = (torch.float16, torch.bfloat16)


def autocast_off(like: Tensor) -> torch.autocast:
    """Return a context without autocast on the device of a tensor."""
    return torch.autocast(autocast_device(like), enabled=False)


def autocast_device(like: Tensor) -> str:
    """Name the type of device whose autocast counts for a tensor; the meta device has none of its own."""
    return "cpu" if like.is_meta else like.device.type


def check_meeting(name: str, x: Tensor, weight: Tensor) -> None:
    """Raise TypeError if a layer cannot compute with `x`, because it has another dtype than the weight.

    Autocast gives both one type, but for float64, which it leaves alone. Quantised weights, of whole numbers, take any type.
    """
    if x.dtype == weight.dtype or not weight.is_floating_point():
        return
    if torch.float64 in (x.dtype, weight.dtype) or not torch.is_autocast_enabled(autocast_device(x)):
        raise TypeError(f"{name} of {x.dtype} meet weights of {weight.dtype}: convert either, as in x.to({weight.dtype})")


def half_types_clash(weight: Tensor) -> str | None:
    """Say how autocast's half type differs from that of weights, which norm layers do not mix; None if it does not."""
    device = autocast_device(weight)
    if weight.dtype not in HALF_TYPES or not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    if dtype not in HALF_TYPES or dtype == weight.dtype:
        return None
    return f"the weights have {weight.dtype} but autocast computes in {dtype}, which norm layers do not mix: choose one"
