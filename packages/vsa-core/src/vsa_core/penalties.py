"""Penalties that keep trained keys apart."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vsa_core import checks
from vsa_core.autocast import autocast_off

__all__ = ["key_orthonormality"]


def key_orthonormality(keys: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    """Measure how far keys are from orthonormal, as a penalty to add to a loss; 0 for orthonormal keys only.

    It is the mean squared cosine over pairs of keys (0 for a single key) plus the mean squared deviation of their norms from 1.
    Half types are computed in float32, under autocast too. The caller weights it, by 0.1 in the published runs (Menet et al.,
    2023).

    Raises:
        TypeError: `keys` is not real floating point.
        ValueError: `keys` is not (n dim) with n >= 1.

    >>> import torch
    >>> key_orthonormality(torch.eye(3)).item()
    0.0
    """
    checks.floating(keys=keys)
    if keys.dim() != 2 or keys.shape[0] < 1:
        raise ValueError(f"keys has shape {tuple(keys.shape)}; it must be (n, dim) with n >= 1")
    n, keys = keys.shape[0], keys.to(torch.promote_types(keys.dtype, torch.float32))  # squares overflow half types
    unit = F.normalize(keys, dim=-1)
    with autocast_off(unit):
        cosine = (unit @ unit.mT).masked_fill(torch.eye(n, dtype=torch.bool, device=keys.device), 0)
    norm = torch.linalg.vector_norm(keys, dim=-1)
    penalty: Tensor = cosine.square().sum() / max(1, n * (n - 1)) + (norm - 1).square().mean()
    return penalty
