"""Matrix binding of additive terms: binding multiplies by the key, a matrix (Gallant and Okaywe, 2013)."""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from vsa_core import checks
from vsa_core.autocast import autocast_off
from vsa_core.float64 import float64_device, rounded

__all__ = ["bind", "random_keys", "unbind"]


def bind(x: Float[Tensor, "*#b dim"], key: Float[Tensor, "*#b out dim"]) -> Float[Tensor, "*_ out"]:
    """Bind `x` to `key` by the matrix product `key @ x` (Gallant and Okaywe, 2013). Leading axes broadcast.

    The result has the promoted type of both operands and is computed in it, under autocast too.

    Args:
        x: vectors (*b dim), real floating point.
        key: matrices (*b out dim); only square ones can be undone.

    Raises:
        TypeError: an operand is not real floating point.
        ValueError: the last axes differ or are empty, or the leading axes do not broadcast.

    >>> import torch
    >>> bind(torch.tensor([1.0, 2.0]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    tensor([ 2., -1.])
    """
    checks.broadcastable(x, key, key_axes=2)
    dtype = torch.promote_types(x.dtype, key.dtype)
    with autocast_off(x):
        return einsum(x.to(dtype), key.to(dtype), "... dim, ... out dim -> ... out")


def unbind(x: Float[Tensor, "*#b out"], key: Float[Tensor, "*#b out dim"]) -> Float[Tensor, "*_ dim"]:
    """Unbind `x` from `key` by the transposed matrix: exact for orthogonal keys. Raises as `bind` does."""
    checks.floating(key=key)
    if key.dim() < 2:
        raise ValueError(f"key has shape {tuple(key.shape)}; it must be a matrix (..., out, dim)")
    return bind(x, key.mT)


def random_keys(
    n: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n dim dim"]:
    """Draw orthogonal matrices from the uniform (Haar) distribution: QR of a Gaussian, with the signs of R's diagonal undone.

    Raises:
        ValueError: `n` or `dim` is below 1.
        TypeError: `n` or `dim` is not a whole number, or `dtype` is not a floating-point type of 16 bits or more.
    """
    checks.positive(n=n, dim=dim)
    draw = torch.randn(n, dim, dim, generator=generator, device=float64_device(device), dtype=torch.float64)
    q, r = torch.linalg.qr(draw)
    keys: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None, :]
    return rounded(keys, device, dtype)
