"""What every algebra asks of its arguments, in one place, so that every error reads alike."""

import torch
from torch import Tensor


def floating(**tensors: Tensor) -> None:
    """Raise TypeError unless every named tensor is real and floating point."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; convert it to a real floating-point type, as in {name}.float()")


def same_dim(x: Tensor, key: Tensor, key_axes: int = 1) -> None:
    """Raise unless `x` (*b dim) and `key`, with `key_axes` axes of its own, agree in dim >= 1 and broadcast."""
    floating(x=x, key=key)
    if x.dim() < 1 or key.dim() < key_axes:
        raise ValueError(f"x of shape {tuple(x.shape)} and key of shape {tuple(key.shape)}: both need a last axis dim")
    if x.shape[-1] != key.shape[-1] or x.shape[-1] < 1:
        raise ValueError(f"x has dim {x.shape[-1]} and key has dim {key.shape[-1]}: their last axes must be equal and at least 1")
    shared = zip(reversed(x.shape[:-1]), reversed(key.shape[:-key_axes]), strict=False)
    if any(a not in (b, 1) and b != 1 for a, b in shared):
        raise ValueError(
            f"the leading axes of x {tuple(x.shape[:-1])} and key {tuple(key.shape[:-key_axes])} do not broadcast: "
            "aligned from the right, each pair must be equal or contain a 1"
        )


def positive(**counts: int) -> None:
    """Raise ValueError unless every named count is at least 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def key_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The type keys are drawn in: the default type where none is named; TypeError if it is no real floating type."""
    dtype = dtype or torch.get_default_dtype()
    if not dtype.is_floating_point:
        raise TypeError(f"keys cannot have dtype {dtype}; choose a floating-point type such as torch.float32")
    return dtype
