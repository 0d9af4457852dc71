"""Multiply-add-permute: binding multiplies elementwise by a bipolar key, which is its own inverse (Gayler, 1998)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vsa_core import checks

__all__ = ["bind", "random_keys", "unbind"]


def bind(x: Float[Tensor, "*#b dim"], key: Float[Tensor, "*#b dim"]) -> Float[Tensor, "*_ dim"]:
    """Bind `x` to `key` by the elementwise product (Gayler, 1998). Leading axes broadcast.

    Raises:
        TypeError: an operand is not real floating point.
        ValueError: the last axes differ or are empty, or the leading axes do not broadcast.

    >>> import torch
    >>> bind(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, -1.0, -1.0]))
    tensor([ 1., -2., -3.])
    """
    checks.broadcastable(x, key)
    return x * key


def unbind(x: Float[Tensor, "*#b dim"], key: Float[Tensor, "*#b dim"]) -> Float[Tensor, "*_ dim"]:
    """Unbind `x` from `key` by the same product: exact for bipolar keys, which are their own inverses. Raises as `bind` does."""
    return bind(x, key)


def random_keys(
    n: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n dim"]:
    """Draw bipolar keys: each entry is -1 or +1 with equal probability (Rademacher), so every norm is sqrt(dim).

    Raises:
        ValueError: `n` or `dim` is below 1.
        TypeError: `n` or `dim` is not a whole number, or `dtype` is not a floating-point type of 16 bits or more.
    """
    checks.positive(n=n, dim=dim)
    bits = torch.randint(2, (n, dim), generator=generator, device=device)
    return (2 * bits - 1).to(checks.key_dtype(dtype))
