"""Thin modules that own keys; all computing is in the algebra's functions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vsa_core import checks, hadamard, hrr, mbat, superposition


class Algebra(Protocol):
    """What each of `hrr`, `hadamard` and `mbat` offers."""

    def bind(self, x: Tensor, key: Tensor) -> Tensor: ...
    def unbind(self, x: Tensor, key: Tensor) -> Tensor: ...
    def random_keys(self, n: int, dim: int, *, generator: torch.Generator | None = None) -> Tensor: ...


class Binding(nn.Module):
    """n slots, a key each, in the algebra of a subclass; the keys are trained by default."""

    algebra: ClassVar[Algebra]

    def __init__(self, n: int, dim: int, *, trainable: bool = True, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.keys = nn.Parameter(self.algebra.random_keys(n, dim, generator=generator), requires_grad=trainable)

    def forward(self, x: Float[Tensor, "*b n dim"]) -> Float[Tensor, "*b n dim"]:
        """Bind vector i of the n to key i.

        Raises:
            ValueError: `x` does not hold n vectors.
        """
        checks.a_key_each(x, self.keys)
        return self.algebra.bind(x, self.keys)

    def superpose(self, x: Float[Tensor, "*b n dim"]) -> Float[Tensor, "*b dim"]:
        """Bind each vector to its key, then add them up."""
        return superposition.superpose(x, self.keys, self.algebra.bind)

    def unbind(self, s: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b n dim"]:
        """What each of the n keys retrieves from a superposition."""
        checks.vectors(s=s)
        return self.algebra.unbind(s[..., None, :], self.keys)

    def extra_repr(self) -> str:
        return f"n={self.keys.shape[0]}, dim={self.keys.shape[-1]}, trainable={self.keys.requires_grad}"


class HRRBinding(Binding):
    """Circular convolution with Gaussian keys (n dim).

    >>> import torch
    >>> binding = HRRBinding(4, 64)
    >>> binding.unbind(binding.superpose(torch.randn(10, 4, 64))).shape
    torch.Size([10, 4, 64])
    """

    algebra: ClassVar[Algebra] = hrr


class HadamardBinding(Binding):
    """Elementwise product with bipolar keys (n dim)."""

    algebra: ClassVar[Algebra] = hadamard


class MBATBinding(Binding):
    """Product with orthogonal matrices (n dim dim)."""

    algebra: ClassVar[Algebra] = mbat


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every layer is in the mode that it was found in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
