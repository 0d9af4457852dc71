"""Holographic reduced representations: binding is circular convolution (Plate, 1995).

Keys of norm 1 (`random_keys`) preserve lengths on average. Keys with a flat spectrum (`unitary_keys`) preserve all lengths and
angles exactly, and with them unbinding inverts binding.
"""

import math
from itertools import chain, repeat

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fft import fft, ifft, irfft, rfft
from torch.nn import functional as F

from vsa_core import checks, mbat
from vsa_core.autocast import autocast_off
from vsa_core.float64 import float64_device, rounded

__all__ = ["bind", "circulant", "involution", "orthogonal_keys", "random_keys", "unbind", "unitary_keys"]

CIRCULANT_MAX_DIM = {
    ("cpu", torch.float32): 128,
    ("cpu", torch.float64): 128,
    ("cpu", torch.float16): 128,
    ("cpu", torch.bfloat16): 256,
    ("cuda", torch.float16): 2048,
    ("cuda", torch.bfloat16): 2048,
}
"""Largest dim at which a matrix product with a shared key's circulant is faster than three FFTs (measured; docs/binding.md)."""
BLOCK = 2**18
"""Numbers per thread that one FFT on a CPU handles, so that spectra stay in its cache (measured; docs/binding.md)."""


def bind(x: Float[Tensor, "*#b dim"], key: Float[Tensor, "*#b dim"]) -> Float[Tensor, "*_ dim"]:
    """Bind `x` to `key` by circular convolution: `out[i] = sum_j x[j] key[(i - j) mod dim]` (Plate, 1995).

    Leading axes broadcast. The result has the promoted type of both operands, under autocast too. FFTs (in float32 for half
    types) or a matrix product with the key's circulant compute it, whichever is faster for these shapes.

    Args:
        x: vectors (*b dim), real floating point, dim >= 1.
        key: keys (*b dim).

    Raises:
        TypeError: an operand is not real floating point.
        ValueError: the last axes differ or are empty, or the leading axes do not broadcast.

    >>> import torch
    >>> bind(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 0.0]))
    tensor([3., 1., 2.])
    """
    checks.broadcastable(x, key)
    dtype = torch.promote_types(x.dtype, key.dtype)
    x, key = x.to(dtype), key.to(dtype)
    if _circulant_pays(x, key):
        return mbat.bind(x, circulant(key))
    if _circulant_pays(key, x):  # convolution commutes
        return mbat.bind(key, circulant(x))
    fft_dtype = torch.promote_types(dtype, torch.float32)
    return _fft_convolve(x.to(fft_dtype), key.to(fft_dtype)).to(dtype)


def unbind(x: Float[Tensor, "*#b dim"], key: Float[Tensor, "*#b dim"]) -> Float[Tensor, "*_ dim"]:
    """Unbind `x` from `key` by circular correlation: `out[i] = sum_j x[j] key[(j - i) mod dim]` (Plate, 1995).

    It inverts `bind` exactly for unitary keys, approximately for others. Shapes, types and errors are those of `bind`.

    >>> import torch
    >>> key = unitary_keys(1, 64)[0]
    >>> x = torch.randn(64)
    >>> torch.allclose(unbind(bind(x, key), key), x, atol=1e-5)
    True
    """
    checks.broadcastable(x, key)
    return bind(x, involution(key))


def involution(key: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b dim"]:
    """Reverse a key, `out[i] = key[-i mod dim]`: binding to the result is unbinding (Plate's approximate inverse).

    Raises:
        TypeError: `key` is not real floating point.
        ValueError: `key` has no last axis dim of at least 1.
    """
    checks.vectors(key=key)
    with autocast_off(key):  # which refuses to roll another half type than its own
        return key.flip(-1).roll(1, -1)


def circulant(key: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b dim dim"]:
    """Write a key as a matrix, `out[i, j] = key[(i - j) mod dim]`, so that `circulant(key) @ x == bind(x, key)`.

    Raises:
        TypeError: `key` is not real floating point.
        ValueError: `key` has no last axis dim of at least 1.

    >>> import torch
    >>> circulant(torch.tensor([1.0, 2.0, 3.0]))
    tensor([[1., 3., 2.],
            [2., 1., 3.],
            [3., 2., 1.]])
    """
    checks.vectors(key=key)
    # The key repeated, in rows of dim + 1, moves on by one from row to row: without its first column, row i holds key[i + j + 1].
    # An index would do too, but its gradient is made of atomic additions, which are slow and in no fixed order on GPUs.
    *leading, dim = key.shape
    rows = key[..., None, :].expand(*leading, dim + 1, dim).flatten(-2).view(*leading, dim, dim + 1)
    return rows[..., 1:].flip(-1)


def random_keys(
    n: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n dim"]:
    """Draw Gaussian keys, N(0, 1/dim), scaled to norm exactly 1 (Plate, 1995; Menet et al., 2023).

    Raises:
        ValueError: `n` or `dim` is below 1.
        TypeError: `n` or `dim` is not a whole number, or `dtype` is not a floating-point type of 16 bits or more.
    """
    checks.positive(n=n, dim=dim)
    draw = torch.randn(n, dim, generator=generator, device=float64_device(device), dtype=torch.float64)
    return rounded(F.normalize(draw, dim=-1), device, dtype)


def unitary_keys(
    n: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n dim"]:
    """Draw keys whose spectrum has modulus 1 and random phases; binding to one is a rotation (Plate, 1995, sec. 3.6).

    Raises:
        ValueError: `n` or `dim` is below 1.
        TypeError: `n` or `dim` is not a whole number, or `dtype` is not a floating-point type of 16 bits or more.
    """
    checks.positive(n=n, dim=dim)
    spectrum = rfft(torch.randn(n, dim, generator=generator, device=float64_device(device), dtype=torch.float64))
    keys: Tensor = irfft(spectrum / spectrum.abs(), n=dim)
    return rounded(keys, device, dtype)


def orthogonal_keys(
    n: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "n dim"]:
    """Draw orthonormal keys, at which `penalties.key_orthonormality` is 0; at most `dim` of them exist.

    Raises:
        ValueError: `n` or `dim` is below 1, or `n` exceeds `dim`.
        TypeError: `n` or `dim` is not a whole number, or `dtype` is not a floating-point type of 16 bits or more.
    """
    checks.positive(n=n, dim=dim)
    if n > dim:
        raise ValueError(f"{n} orthogonal keys of dim {dim} do not exist, only up to {dim}: raise dim, or use random_keys")
    (basis,) = mbat.random_keys(1, dim, generator=generator, device=float64_device(device), dtype=torch.float64)
    keys: Tensor = basis[:n]
    return rounded(keys, device, dtype)


def _circulant_pays(x: Tensor, key: Tensor) -> bool:
    """Tell whether each key serves enough vectors to be worth building its dim x dim matrix."""
    dim = x.shape[-1]
    if dim > CIRCULANT_MAX_DIM.get((x.device.type, x.dtype), 0):
        return False
    if torch.compiler.is_compiling():  # Deciding on a symbolic size would fix that size in the graph.
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

        return key.dim() < x.dim() and statically_known_true(math.prod(key.shape) * dim <= BLOCK)
    return x.numel() >= key.numel() * dim


def _fft_convolve(x: Tensor, key: Tensor) -> Tensor:
    """Convolve by FFT; on a CPU in blocks whose spectra fit the cache, where all vectors share a key or each has its own."""
    if not torch.compiler.is_compiling() and torch._C._is_tracing():  # A trace would fix the length of an axis, or their number.
        traced: Tensor = ifft(fft(x) * fft(key)).real
        return traced
    dim = x.shape[-1]
    shared = key.numel() == dim and key.dim() <= x.dim()
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not (shared or x.shape == key.shape):
        out: Tensor = irfft(rfft(x) * rfft(key), n=dim)
        return out
    rows = max(1, torch.get_num_threads() * BLOCK // dim)
    spectra = repeat(rfft(key.reshape(dim))) if shared else map(rfft, torch.split(key.reshape(-1, dim), rows))
    blocks = zip(torch.split(x.reshape(-1, dim), rows), spectra, strict=False)
    bound = (irfft(rfft(block) * spectrum, n=dim) for block, spectrum in blocks)
    if x.numel() <= rows * dim or (torch.is_grad_enabled() and (x.requires_grad or key.requires_grad)):
        return torch.cat(list(bound)).reshape(x.shape)
    first = next(bound)
    out = first.new_empty(x.shape)  # not like x, which vmap may not map over
    for part, block in zip(torch.split(out.view(-1, dim), rows), chain([first], bound), strict=True):
        part.copy_(block)  # while the block is in the cache, and its memory serves the next one
    return out
