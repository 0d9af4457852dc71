"""What every form of FAVOR+S needs around its equation: checks of operands, binding, masks, and a safe division."""

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F

from mimoformer.features import AnyFeatureMap, as_feature_map
from vsa_core import checks, hadamard
from vsa_core.autocast import autocast_off

__all__ = [
    "any_real",
    "bind_real_tokens",
    "check_alike",
    "check_mask",
    "check_operands",
    "check_scale",
    "close_gaps",
    "divide_or_zero",
    "key_features",
    "mark_padding",
    "query_features",
    "sum_own_tokens",
    "unbind_slots",
    "zero_padding",
]


def bind_real_tokens(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    mask: Bool[Tensor, "b m n l"] | None,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "b m n h l d"], Float[Tensor, "b m n h l d"], Float[Tensor, "b m n h l d"]]:
    """Bind queries, keys and values to their slots' keys, in float32 at least; padding becomes 0, whatever it held.

    Queries and keys are multiplied by `scale` before.

    The caller bundles: `vsa_core.superposition.superpose` sums over the axis before the vector, and here that axis is tokens.
    """
    check_scale(scale)
    dtype = torch.promote_types(torch.promote_types(q.dtype, torch.promote_types(k.dtype, v.dtype)), torch.float32)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if scale != 1:
        q, k = q * scale, k * scale
    if mask is not None:  # before bundling: what padding holds would reach the real tokens of its bundle
        padding = rearrange(~mask, "b m n l -> b m n 1 l 1")
        q, k, v = q.masked_fill(padding, 0), k.masked_fill(padding, 0), v.masked_fill(padding, 0)
    key = rearrange(keys.to(dtype), "m n d -> m n 1 1 d")
    return hadamard.bind(q, key), hadamard.bind(k, key), hadamard.bind(v, key)


def unbind_slots(
    out: Float[Tensor, "b #m #n h l d"], keys: Float[Tensor, "m n d"], mask: Bool[Tensor, "b m n l"] | None
) -> Float[Tensor, "b m n h l d"]:
    """Unbind each slot with its key; padding gives 0."""
    out = hadamard.unbind(out, rearrange(keys.to(out.dtype), "m n d -> m n 1 1 d"))
    return out if mask is None else out.masked_fill(rearrange(~mask, "b m n l -> b m n 1 l 1"), 0)


def query_features(
    feature_map: AnyFeatureMap, q: Float[Tensor, "b n h l d"], real: Bool[Tensor, "b n l"] | None
) -> Float[Tensor, "b n h l r"]:
    """Features of bundled queries; 0 where no token of a bundle is real."""
    return zero_padding(as_feature_map(feature_map).query(q), real)


def key_features(
    feature_map: AnyFeatureMap, k: Float[Tensor, "b m h l d"], real: Bool[Tensor, "b m l"] | None
) -> Float[Tensor, "b m h l r"]:
    """Features of bundled keys; 0 where no token of a bundle is real."""
    return zero_padding(as_feature_map(feature_map).key(k, real), real)


def any_real(mask: Bool[Tensor, "b m n l"] | None, axis: int) -> Bool[Tensor, "b s l"] | None:
    """Where a bundle over an axis of the grid holds at least one real token."""
    return None if mask is None else mask.any(axis)


def zero_padding(phi: Float[Tensor, "b s h l r"], real: Bool[Tensor, "b s l"] | None) -> Float[Tensor, "b s h l r"]:
    """Set features to 0 where nothing is real: phi(0) may be anything, and would count."""
    return phi if real is None else phi.masked_fill(~rearrange(real, "b s l -> b s 1 l 1"), 0)


def sum_own_tokens(
    phi_k: Float[Tensor, "b #m h l r"],
    total: Float[Tensor, "b #m h r"],
    mask: Bool[Tensor, "b m n l"] | None,
    grid: tuple[int, ...],
) -> Float[Tensor, "b m n h r"]:
    """Sum key features over each slot's own real tokens; without a mask that is `total`, the sum over all tokens."""
    if mask is None:
        return total[:, :, None].expand(-1, *grid, -1, -1)
    return einsum(phi_k, mask.to(phi_k.dtype), "b m h l r, b m n l -> b m n h r")


def divide_or_zero(
    numerator: Float[Tensor, "*#b d"], denominator: Float[Tensor, "*#b"], whole: Float[Tensor, "*#b"]
) -> Float[Tensor, "*_ d"]:
    """numerator / denominator; 0 where the denominator is 0, or too small for the quotient to mean anything.

    Too small is below 8 units of rounding of `whole`, the weight of everything in the numerator: the numerator then holds little
    of this slot but rounding errors, which the quotient would multiply a million times in float32. Too small is also where the
    quotient or its gradient might overflow. An infinite denominator is not hidden: it gives NaN.
    """
    limits = torch.finfo(denominator.dtype)
    lost = (denominator <= (8 * limits.eps * whole).clamp(limits.tiny / limits.eps**2, limits.max))[..., None]
    return (numerator / denominator[..., None].masked_fill(lost, 1)).masked_fill(lost, 0)


def mark_padding(
    q: Float[Tensor, "*b h l d"], k: Float[Tensor, "*b h l d"], mask: Bool[Tensor, "*b l"]
) -> tuple[Float[Tensor, "*b h l c"], Float[Tensor, "*b h l c"]]:
    """Append 1 to 8 channels to queries and keys that are 0 at padding, so that softmax attention needs no mask.

    Divide scores by the sqrt(d) of before. For a real query the score of padding is -2**30 / sqrt(d) and its weight 0 if real
    keys score more, while their scores are what they were. A query at padding has score 0 for every key, so that nothing
    overflows. The number of channels becomes a multiple of 8, as fused kernels want. Powers of 2 fit float16 and bfloat16, and
    add no rounding error to the exponents of a block of nothing but padding.
    """
    real = 2.0**15 * rearrange(mask, "... l -> ... 1 l 1")
    marks = (F.pad(mark.to(q.dtype), (0, 7 - q.shape[-1] % 8)) for mark in (real, real - 2.0**15))
    with autocast_off(q):  # which refuses to join another half type than its own
        q, k = (torch.cat([x, mark.expand(*x.shape[:-1], -1)], -1) for x, mark in zip((q, k), marks, strict=True))
    return q, k


def close_gaps(
    tokens: Integer[Tensor, "*b l"], mask: Bool[Tensor, "*b l"]
) -> tuple[Integer[Tensor, "*b l"], Bool[Tensor, "*b l"], Integer[Tensor, "*b l"]]:
    """Move the real tokens of every sequence to its beginning, in order, so that it does not matter where padding stood.

    Returns:
        The tokens with id 0 as padding; their mask; and for every place the one that its token has moved to, which is any for
        padding.
    """
    count = mask.long().cumsum(-1)
    place = (count - 1).clamp_min(0)
    end = tokens.shape[-1]
    moved = F.pad(torch.zeros_like(tokens), (0, 1)).scatter(-1, place.masked_fill(~mask, end), tokens)[..., :end]
    return moved, torch.arange(end, device=mask.device) < count[..., -1:], place


def check_operands(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, mask: Tensor | None) -> None:
    """Raise unless q, k and v are (b m n h l d), each slot has a key, and the mask, if any, covers every token."""
    checks.floating(q=q, k=k, v=v, keys=keys)
    check_alike(q, k, v, q.dim() == 6 and 0 not in q.shape[1:], "(b, m, n, h, l, d) with all axes but b at least 1")
    if keys.shape != (*q.shape[1:3], q.shape[-1]):
        expected = (*q.shape[1:3], q.shape[-1])
        raise ValueError(f"keys have shape {tuple(keys.shape)}; expected {expected}, the m, n and d of q")
    if mask is not None:
        check_mask(mask, (*q.shape[:3], q.shape[4]), "b, m, n, l")


def check_scale(scale: float) -> None:
    """Raise TypeError if the scale is a tensor, whose gradient kernels would not compute; in a trace, sizes are tensors."""
    if isinstance(scale, Tensor) and not torch.jit.is_tracing():
        raise TypeError("scale is a tensor; it must be a number: multiply q and k by the tensor instead")


def check_alike(q: Tensor, k: Tensor, v: Tensor, fits: bool, expected: str) -> None:
    """Raise ValueError unless q fits and k and v have its shape."""
    if not fits or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v have shapes {shapes}; expected one shape {expected}")


def check_mask(mask: Tensor, shape: tuple[int, ...], axes: str) -> None:
    """Raise unless the mask is a boolean tensor of this shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask is {found}; expected torch.bool, True where a token is real")
    if mask.shape != shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected {shape}, ({axes})")
