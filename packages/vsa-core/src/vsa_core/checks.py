"""Checks of arguments, shared so that every error reads alike."""

from numbers import Integral

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "booleans",
    "broadcastable",
    "floating",
    "key_dtype",
    "one_key_per_vector",
    "positive",
    "vectors",
    "whole_numbers",
]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that vectors and keys may have."""


def floating(**tensors: Tensor) -> None:
    """Raise TypeError unless every named value is a real floating-point tensor of 16 bits or more."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a tensor")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} has dtype {tensor.dtype}; convert it to a real floating-point type, as in {name}.float()")


def vectors(**tensors: Tensor) -> None:
    """Raise unless every named tensor is real floating point and has a last axis dim of at least 1."""
    floating(**tensors)
    for name, tensor in tensors.items():
        if tensor.dim() < 1 or tensor.shape[-1] < 1:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it needs a last axis dim of at least 1")


def broadcastable(x: Tensor, key: Tensor, key_axes: int = 1) -> None:
    """Raise unless `x` (*b dim) and `key`, whose last `key_axes` axes make one key, agree in dim >= 1 and broadcast."""
    floating(x=x, key=key)
    if x.dim() < 1 or key.dim() < key_axes:
        raise ValueError(f"x of shape {tuple(x.shape)} and key of shape {tuple(key.shape)}: both need a last axis dim")
    if x.shape[-1] != key.shape[-1] or x.shape[-1] < 1:
        raise ValueError(f"x has dim {x.shape[-1]} and key has dim {key.shape[-1]}: their last axes must be equal and at least 1")
    shared = range(min(x.dim() - 1, key.dim() - key_axes))  # torch 2.8 cannot compile a zip of unequal lengths here
    if any(x.shape[-2 - i] not in (key.shape[-1 - key_axes - i], 1) and key.shape[-1 - key_axes - i] != 1 for i in shared):
        raise ValueError(
            f"the leading axes of x {tuple(x.shape[:-1])} and key {tuple(key.shape[:-key_axes])} do not broadcast: "
            "aligned from the right, each pair must be equal or contain a 1"
        )


def positive(**counts: int) -> None:
    """Raise unless every named count is a whole number (else TypeError) of at least 1 (else ValueError)."""
    whole_numbers(**counts)
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def whole_numbers(**counts: int) -> None:
    """Raise TypeError unless every named count is a whole number; 2.0 and True are not."""
    for name, value in counts.items():
        if not isinstance(value, (int, Integral, torch.SymInt)) or isinstance(value, bool):
            raise TypeError(f"{name} must be a whole number, got {value!r}")


def booleans(**flags: bool) -> None:
    """Raise TypeError unless every named flag is True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def one_key_per_vector(x: Tensor, keys: Tensor) -> None:
    """Raise unless `x` (*b n dim) and `keys` (n ...) are tensors (else TypeError), as many vectors as keys (else ValueError)."""
    for name, tensor in (("x", x), ("keys", keys)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a tensor")
    if keys.dim() < 1:
        raise ValueError("keys is a scalar; it needs a first axis n, one key per vector")
    if x.dim() < 2 or x.shape[-2] != keys.shape[0]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and there are {keys.shape[0]} keys: x must be (..., {keys.shape[0]}, dim)"
        )


def key_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """Return the type to draw keys in, torch's default unless given; TypeError if it is not real floating point."""
    dtype = dtype or torch.get_default_dtype()
    if dtype not in DTYPES:
        raise TypeError(f"keys cannot have dtype {dtype}; choose a floating-point type such as torch.float32")
    return dtype
