"""Modules that own keys, one for each algebra; the algebra's functions compute. And `evaluating`, for any module."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vsa_core import checks, hadamard, hrr, mbat, superposition

__all__ = ["Algebra", "Binding", "HRRBinding", "HadamardBinding", "MBATBinding", "evaluating"]


class Algebra(Protocol):
    """The functions that `hrr`, `hadamard` and `mbat` have in common."""

    def bind(self, x: Tensor, key: Tensor) -> Tensor: ...
    def unbind(self, x: Tensor, key: Tensor) -> Tensor: ...
    def random_keys(self, n: int, dim: int, *, generator: torch.Generator | None = None) -> Tensor: ...


class Binding(nn.Module):
    """Binds n vectors to n keys of its own, which are trained by default; subclasses name the algebra."""

    algebra: ClassVar[Algebra]
    """Module whose functions bind, unbind and draw the keys."""

    def __init__(self, n: int, dim: int, *, trainable: bool = True, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.keys = nn.Parameter(self.algebra.random_keys(n, dim, generator=generator), requires_grad=trainable)

    def forward(self, x: Float[Tensor, "*b n dim"]) -> Float[Tensor, "*b n dim"]:
        """Bind vector i of the n to key i.

        Raises:
            ValueError: `x` is not (*b n dim).
        """
        checks.one_key_per_vector(x, self.keys)
        return self.algebra.bind(x, self.keys)

    def superpose(self, x: Float[Tensor, "*b n dim"]) -> Float[Tensor, "*b dim"]:
        """Bind each vector to its key, then add them up.

        Raises:
            ValueError: `x` is not (*b n dim).
        """
        return superposition.superpose(x, self.keys, self.algebra.bind)

    def unbind(self, s: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b n dim"]:
        """Retrieve from a superposition what is bound to each of the n keys."""
        checks.vectors(s=s)
        return self.algebra.unbind(s[..., None, :], self.keys)

    def extra_repr(self) -> str:
        return f"n={self.keys.shape[0]}, dim={self.keys.shape[-1]}, trainable={self.keys.requires_grad}"


class HRRBinding(Binding):
    """Binds by circular convolution with Gaussian keys (n dim).

    >>> import torch
    >>> binding = HRRBinding(4, 64)
    >>> binding.unbind(binding.superpose(torch.randn(10, 4, 64))).shape
    torch.Size([10, 4, 64])
    """

    algebra: ClassVar[Algebra] = hrr


class HadamardBinding(Binding):
    """Binds by the elementwise product with bipolar keys (n dim)."""

    algebra: ClassVar[Algebra] = hadamard


class MBATBinding(Binding):
    """Binds by the product with orthogonal matrices (n dim dim)."""

    algebra: ClassVar[Algebra] = mbat


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode inside a `with` block, then every layer back into the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
