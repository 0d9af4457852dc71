"""What all forms of FAVOR+S share: bundles of bound queries, keys and values, their features, sums, and unbinding."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from vsa_core import checks

FeatureMap = Callable[..., Any]
"""A function of vectors (... d) to features (... r), or a module with `query` and `key`: see `mimoformer.features`."""


class Bundles(NamedTuple):
    """Bound, bundled and masked: queries, keys, values, and which tokens are real (1) where a mask was given."""

    q: Float[Tensor, "b n h l d"]
    k: Float[Tensor, "b m h l d"]
    v: Float[Tensor, "b m h l d"]
    real: Float[Tensor, "b m n l"] | None


class Sums(NamedTuple):
    """Sums over tokens."""

    context: Float[Tensor, "b h r d"]
    """A of Eq. 19: bundled values times the features of bundled keys, summed over rows of the grid too."""
    total: Float[Tensor, "b m n h r"]
    """The key features at each slot's own real tokens."""
    whole: Float[Tensor, "b h r"]
    """The key features of everything that the context holds."""


class Quotients(NamedTuple):
    """What queries read from the sums."""

    value: Float[Tensor, "b n h l d"]
    """Numerators, still bound and bundled over m."""
    weight: Float[Tensor, "b m n h l"]
    """Denominators of every slot."""
    whole: Float[Tensor, "b n h l"]
    """The weight of all that a numerator holds, the other slots' included."""


def bind_and_bundle(
    q: Float[Tensor, "b m n h l d"],
    k: Float[Tensor, "b m n h l d"],
    v: Float[Tensor, "b m n h l d"],
    keys: Float[Tensor, "m n d"],
    mask: Bool[Tensor, "b m n l"] | None,
) -> Bundles:
    """Queries bundled over m, keys and values over n, after binding; what is not real is 0 before that."""
    dtype = torch.promote_types(torch.promote_types(q.dtype, torch.promote_types(k.dtype, v.dtype)), torch.float32)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if mask is not None:
        padding = rearrange(~mask, "b m n l -> b m n 1 l 1")
        q, k, v = q.masked_fill(padding, 0), k.masked_fill(padding, 0), v.masked_fill(padding, 0)
    key = rearrange(keys.to(dtype), "m n d -> m n 1 1 d")
    return Bundles((q * key).sum(1), (k * key).sum(2), (v * key).sum(2), None if mask is None else mask.to(dtype))


def sums(bundles: Bundles, feature_map: FeatureMap) -> Sums:
    """What every query reads, of all tokens."""
    key = getattr(feature_map, "key", None)
    phi_k = feature_map(bundles.k) if key is None else key(bundles.k, real_bundles(bundles))
    return summed(without_padding(phi_k, real_bundles(bundles)), bundles.v, bundles.real, bundles.q.shape[1])


def query_features(bundles: Bundles, feature_map: FeatureMap) -> Float[Tensor, "b n h l r"]:
    """phi of the bundled queries, 0 where none of a bundle is real."""
    phi_q: Tensor = getattr(feature_map, "query", feature_map)(bundles.q)
    return without_padding(phi_q, None if bundles.real is None else bundles.real.any(1))


def real_bundles(bundles: Bundles) -> Bool[Tensor, "b m l"] | None:
    """Where a bundle of keys holds a real token."""
    return None if bundles.real is None else bundles.real.any(2)


def without_padding(phi: Float[Tensor, "b s h l r"], real: Bool[Tensor, "b s l"] | None) -> Float[Tensor, "b s h l r"]:
    """Features, 0 where nothing is real: there phi(0) may be anything."""
    return phi if real is None else phi.masked_fill(~rearrange(real, "b s l -> b s 1 l 1"), 0)


def summed(
    phi_k: Float[Tensor, "b m h l r"], v: Float[Tensor, "b m h l d"], real: Float[Tensor, "b m n l"] | None, n: int
) -> Sums:
    """The sums over some tokens."""
    context = einsum(phi_k, v, "b m h l r, b m h l d -> b h r d")
    rows = phi_k.sum(-2)
    if real is None:
        return Sums(context, rows[:, :, None].expand(-1, -1, n, -1, -1), rows.sum(1))
    return Sums(context, einsum(phi_k, real, "b m h l r, b m n l -> b m n h r"), rows.sum(1))


def read(phi_q: Float[Tensor, "b n h l r"], sums: Sums) -> Quotients:
    """Numerators and denominators of every query."""
    return Quotients(
        einsum(phi_q, sums.context, "b n h l r, b h r d -> b n h l d"),
        einsum(phi_q, sums.total, "b n h l r, b m n h r -> b m n h l"),
        einsum(phi_q, sums.whole, "b n h l r, b h r -> b n h l"),
    )


def unbind(
    quotients: Quotients, keys: Float[Tensor, "m n d"], mask: Bool[Tensor, "b m n l"] | None
) -> Float[Tensor, "b m n h l d"]:
    """Every slot's own attention: divided by its denominator, multiplied with its key, 0 where its token is not real."""
    value, weight, whole = quotients
    out = divide(value[:, None], weight, whole[:, None]) * rearrange(keys.to(value.dtype), "m n d -> m n 1 1 d")
    return out if mask is None else out.masked_fill(rearrange(~mask, "b m n l -> b m n 1 l 1"), 0)


def divide(value: Float[Tensor, "*#b d"], weight: Float[Tensor, "*#b"], whole: Float[Tensor, "*#b"]) -> Float[Tensor, "*_ d"]:
    """value / weight, 0 where the weight is 0, or too small for the quotient to mean anything.

    That is below 8 units of rounding of the whole weight of the numerator, which then holds hardly more of this slot than
    rounding errors, multiplied a million times in float32; and where the quotient or its gradient might overflow. An infinite
    weight is not hidden: it gives NaN.
    """
    limits = torch.finfo(weight.dtype)
    nothing = (weight <= (8 * limits.eps * whole).clamp(limits.tiny / limits.eps**2, limits.max))[..., None]
    return (value / weight[..., None].masked_fill(nothing, 1)).masked_fill(nothing, 0)


def exact(like: Tensor) -> torch.autocast:
    """No autocast inside."""
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)  # meta tensors have none of their own


def check(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, mask: Tensor | None) -> None:
    """Raise unless these are grids of sequences, a key each, and the mask says of every token whether it is real."""
    checks.floating(q=q, k=k, v=v, keys=keys)
    if q.dim() != 6 or not q.shape == k.shape == v.shape or 0 in q.shape[1:]:
        raise ValueError(
            f"q, k and v have shapes {tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}: "
            "all must be (b, m, n, h, l, d), with at least one slot, head, token and number"
        )
    if keys.shape != (*q.shape[1:3], q.shape[-1]):
        raise ValueError(f"keys have shape {tuple(keys.shape)}: {(*q.shape[1:3], q.shape[-1])} is needed, (m, n, d) of q")
    if mask is not None:
        check_mask(mask, (*q.shape[:3], q.shape[4]), "b, m, n, l")


def check_mask(mask: Tensor, shape: tuple[int, ...], axes: str) -> None:
    """Raise unless the mask is boolean and of that shape."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"the mask is {found}; it must be torch.bool, True where a token is real")
    if mask.shape != shape:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}: {shape} is needed, ({axes})")
