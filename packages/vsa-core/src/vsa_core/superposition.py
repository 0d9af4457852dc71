"""Superposition holds several vectors in the space of one: bind each to a key of its own, then add them up."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from vsa_core import checks

__all__ = ["bundle", "superpose"]


def bundle(x: Float[Tensor, "*b n dim"]) -> Float[Tensor, "*b dim"]:
    """Add up n vectors, which gives a vector similar to each of them; all three algebras bundle this way.

    Raises:
        TypeError: `x` is not real floating point.
        ValueError: `x` has fewer than two axes.
    """
    checks.floating(x=x)
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; bundling needs (..., n, dim)")
    return x.sum(-2)


def superpose(
    x: Float[Tensor, "*b n dim"], keys: Float[Tensor, "n *key"], bind: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, "*b _"]:
    """Bind each of n vectors to its own key, then bundle (Menet et al., 2023, Eq. 1).

    Args:
        x: vectors (*b n dim).
        keys: one key per vector: (n dim), or (n out dim) for matrix binding.
        bind: the algebra, for example `hrr.bind`.

    Raises:
        TypeError: an operand is not real floating point.
        ValueError: the numbers of vectors and keys differ.

    >>> import torch
    >>> from vsa_core import hadamard
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> superpose(x, torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard.bind)
    tensor([ 4., -2.])
    """
    checks.one_key_per_vector(x, keys)
    return bundle(bind(x, keys))
