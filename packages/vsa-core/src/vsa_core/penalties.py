"""Penalties that keep trained keys apart."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from vsa_core import checks


def key_orthonormality(keys: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
    """Mean squared cosine over the pairs of keys (0 where there is no pair) plus mean squared deviation of the norms from 1.

    0 for orthonormal keys and only for them; computed in float32 for half types. The weight, 0.1 in the published runs (Menet
    et al., 2023), is the caller's.

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
    cosine = (unit @ unit.mT).masked_fill(torch.eye(n, dtype=torch.bool, device=keys.device), 0)
    norm = torch.linalg.vector_norm(keys, dim=-1)
    penalty: Tensor = cosine.square().sum() / max(1, n * (n - 1)) + (norm - 1).square().mean()
    return penalty
