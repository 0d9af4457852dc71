"""Multiply-add-permute: binding is the elementwise product with a bipolar key, its own inverse (Gayler, 1998)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vsa_core import checks


def bind(x: Float[Tensor, "*#b dim"], key: Float[Tensor, "*#b dim"]) -> Float[Tensor, "*_ dim"]:
    """Elementwise product over the last axis; leading axes broadcast (Gayler, 1998).

    Raises:
        TypeError: an operand is not real floating point.
        ValueError: the last axes differ or are empty, or the leading axes do not broadcast.

    >>> import torch
    >>> bind(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, -1.0, -1.0]))
    tensor([ 1., -2., -3.])
    """
    checks.same_dim(x, key)
    return x * key


def unbind(x: Float[Tensor, "*#b dim"], key: Float[Tensor, "*#b dim"]) -> Float[Tensor, "*_ dim"]:
    """The same product again: exact for bipolar keys, each of which is its own inverse. Errors as in `bind`."""
    return bind(x, key)


def random_keys(
    n: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n dim"]:
    """Bipolar keys: every entry -1 or +1 with equal probability (Rademacher), so the norm is sqrt(dim).

    Raises:
        ValueError: `n` or `dim` is below 1.
        TypeError: `n` or `dim` is not a whole number, or `dtype` is not a floating-point type of 16 bits or more.
    """
    checks.positive(n=n, dim=dim)
    bits = torch.randint(2, (n, dim), generator=generator, device=device)
    return (2 * bits - 1).to(checks.key_dtype(dtype))
